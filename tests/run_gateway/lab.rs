//! Hosts in network namespaces of their own, and a gateway among them.
//!
//! A host is a sleeping process; its namespace, with all devices in it, goes when the process does, and the kernel
//! ends the process when the test's thread ends, in whatever way. So nothing has a name on this machine.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::echoes;

pub const CAUSEWAY: &str = env!("CARGO_BIN_EXE_causeway");

/// Whether the test can run: namespaces and devices take root. Without it the test says so and does nothing; in CI
/// (with `CI` set) it fails instead, so that it is never skipped there unseen.
pub fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !root {
        assert!(std::env::var_os("CI").is_none(), "this test needs root, and CI must not skip it");
        eprintln!("NOT RUN: this test needs root");
    }
    root
}

/// A command that the kernel kills when this thread ends.
fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// A network namespace.
pub struct Host(Child);

impl Host {
    pub fn new() -> Self {
        let child = bound("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
        let host = Self(child);
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        while fs::read_link(format!("/proc/{}/ns/net", host.0.id())).unwrap() == own {
            thread::sleep(Duration::from_millis(1));
        }
        // Neither solicitations of routers nor duplicate address detection shall come between what a test counts.
        host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        host.run("ip link set lo up");
        host
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = bound("nsenter");
        command.args(["--target", &self.0.id().to_string(), "--net", program]);
        command
    }

    /// Runs a command line here and gives what it prints.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn try_run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        self.command(words.next().unwrap()).args(words).output().unwrap()
    }

    /// A cable to another host.
    #[track_caller]
    pub fn connect(&self, device: &str, other: &Host, other_device: &str) {
        self.connect_queues(device, other, other_device, 1);
    }

    /// A cable to another host, between devices of several queues.
    #[track_caller]
    pub fn connect_queues(&self, device: &str, other: &Host, other_device: &str, queues: u32) {
        let peer = other.0.id();
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.run(&format!(
            "ip link add {device} {queues} type veth peer name {other_device} {queues} netns {peer}"
        ));
        self.run(&format!("ip link set {device} up"));
        other.run(&format!("ip link set {other_device} up"));
    }

    /// Whether `count` pings are all answered, one and then the others at once.
    pub fn pings(&self, to: &str, count: u64) -> bool {
        [1, count - 1].into_iter().filter(|count| *count > 0).all(|count| {
            let output = self.try_run(&echoes::burst(count, to));
            echoes::answered(&String::from_utf8_lossy(&output.stdout)) == (count, 0)
        })
    }

    /// Whether none of `count` pings is answered within a second.
    pub fn silent(&self, to: &str, count: u64) -> bool {
        !self.try_run(&format!("ping -n -q -c {count} -i 0.01 -W 1 {to}")).status.success()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running gateway.
pub struct Running {
    child: Child,
    pub log: PathBuf,
    pub run_dir: PathBuf,
}

impl Running {
    /// Starts a gateway on a host, and waits until it answers.
    #[track_caller]
    pub fn start(host: &Host, file: &Path, run_dir: &Path) -> Self {
        let log = file.with_extension("log");
        let output = fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = host.command(CAUSEWAY);
        command.args(["run", "--new-state"]).arg(file).stderr(output).stdout(Stdio::null());
        let mut running = Self { child: command.spawn().unwrap(), log, run_dir: run_dir.into() };
        running.until(|r| r.ask("\"ping\"").is_some_and(|a| a["ok"] == "pong"));
        running
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for something, for as long as the gateway lives.
    #[track_caller]
    pub fn until(&mut self, mut is_so: impl FnMut(&Self) -> bool) {
        while !is_so(self) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gateway ended with {status}:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// One request on the control socket. Nothing when nobody is there.
    pub fn ask(&self, request: &str) -> Option<Value> {
        use std::io::{BufRead, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(self.run_dir.join("control.sock")).ok()?;
        writeln!(stream, "{request}").ok()?;
        let mut line = String::new();
        std::io::BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends it as an operator does.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal("-TERM");
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// `causeway show …` of this gateway.
    pub fn show(&self, what: &str) -> Output {
        let run_dir = self.run_dir.to_str().unwrap();
        Command::new(CAUSEWAY)
            .arg("show")
            .args(what.split_whitespace())
            .args(["--run-dir", run_dir])
            .output()
            .unwrap()
    }

    #[track_caller]
    pub fn text(&self, what: &str) -> String {
        let output = self.show(what);
        assert!(output.status.success() && output.stderr.is_empty(), "show {what}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, what: &str) -> Value {
        serde_json::from_str(&self.text(&format!("{what} --json"))).unwrap()
    }

    /// The row of a list with this name.
    #[track_caller]
    pub fn row(&self, what: &str, name: &str) -> Value {
        let list = self.json(what);
        let row = list.as_array().unwrap().iter().find(|row| row["name"] == name || row["reason"] == name);
        row.unwrap_or_else(|| panic!("no {name} in {list:#}")).clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A VPC host and a data centre's host, with a gateway's host between them.
pub struct Lab {
    pub gateway: Host,
    pub vpc: Host,
    pub dc: Host,
    pub dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self {
            gateway: Host::new(),
            vpc: Host::new(),
            dc: Host::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        lab.gateway.connect("gv", &lab.vpc, "eth0");
        lab.gateway.connect("gd", &lab.dc, "eth0");
        lab.vpc.run("ip address add 10.2.0.2/24 dev eth0");
        lab.vpc.run("ip route add default via 10.2.0.1");
        lab.dc.run("ip address add 10.1.0.2/24 dev eth0");
        lab.dc.run("ip route add default via 10.1.0.1");
        // A second network behind the data centre's host.
        lab.dc.run("ip address add 10.9.0.1/32 dev lo");
        lab
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("gateway.toml")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// `[system]` of a small gateway.
    pub fn system(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "[system]\nname = \"lab\"\nrun_dir = \"{dir}/run\"\nstate = \"{dir}/lab.state\"\nbuffers = 16384\nhuge_pages = \"never\"\n"
        )
    }

    /// The configuration of a gateway between the two hosts, with `more` behind it. `dc` names the second interface.
    pub fn config(&self, dc: &str, more: &str) -> String {
        self.system()
            + &format!(
                r#"
[port.v]
driver = "af_packet"
device = "gv"
[port.d]
driver = "af_packet"
device = "gd"
[gateway.vpc]
prefixes = ["10.2.0.0/24"]
[interface.vpc]
port = "v"
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24"]
[interface.{dc}]
port = "d"
gateway = "vpc"
side = "peer"
addresses = ["10.1.0.1/24"]
{more}"#
            )
    }

    /// A gateway with that configuration.
    #[track_caller]
    pub fn start(&self) -> Running {
        fs::write(self.file(), self.config("dc", "")).unwrap();
        Running::start(&self.gateway, &self.file(), &self.run_dir())
    }
}
