//! The network of `pipelines/site-to-site` and others for tests: namespaces, gateways as processes, and the kernels'
//! own stacks as hosts. What a test makes goes when it ends, in whatever way.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod echoes;

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use af_xdp::{
    Device, Namespace,
    packet_socket::{PacketConfig, PacketSocket, Stop},
};
use causeway::cli::{
    demo::{
        gateways::{CLOUD, GatewayProcess, IDC, Keys, cores, settled},
        machine,
        network::{HostEnd, Network, Process, path_of},
        report::Report,
    },
    run::Account,
};

/// How long to wait for what must come. Reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command under test.
pub fn causeway() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_causeway"))
}

/// Whether the test can run. Without root it says so and does nothing; in CI (with `CI` set) it fails instead, so that
/// it is never skipped there unseen.
pub fn is_root() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !root {
        assert!(std::env::var_os("CI").is_none(), "this test needs root, and CI must not skip it");
        eprintln!("NOT RUN: this test needs root");
    }
    root
}

/// A network with gateways in it. Fields go in this order: processes before what they stand on.
pub struct Site {
    servers: Vec<Process>,
    gateways: HashMap<String, GatewayProcess>,
    texts: HashMap<String, String>,
    pub wire: Option<Wire>,
    pub network: Network,
    place: tempfile::TempDir,
    keys: Keys,
}

impl Site {
    /// An empty one.
    pub fn empty() -> Self {
        Self {
            servers: Vec::new(),
            gateways: HashMap::new(),
            texts: HashMap::new(),
            wire: None,
            network: Network::new(),
            place: tempfile::tempdir().unwrap(),
            keys: Keys::random(),
        }
    }

    /// The demo's network, gateways and all, the configurations changed by `edit`.
    pub fn new(edit: impl Fn(&str) -> String) -> Self {
        let mut site = Self::empty();
        machine::site_to_site(&mut site.network).unwrap();
        site.start_both(edit);
        site
    }

    /// The same with a wire between the gateways that records.
    pub fn recorded() -> Self {
        let mut site = Self::empty();
        for namespace in ["idc-host", "idc", "wire", "cloud", "vpc-host"] {
            site.network.add(namespace).unwrap();
        }
        site.network.link(("idc-host", "eth0"), ("idc", "lan0")).unwrap();
        site.network.link(("idc", "wan0"), ("wire", "idc")).unwrap();
        site.network.link(("wire", "cloud"), ("cloud", "wan0")).unwrap();
        site.network.link(("cloud", "vpc0"), ("vpc-host", "eth0")).unwrap();
        site.host("idc-host", 10, &["10.1.0.10/24"], &["10.1.0.1"]);
        site.host("vpc-host", 20, &["10.2.0.10/24"], &["10.2.0.1"]);
        site.wire = Some(Wire::new(&path_of(&site.network.full("wire"))));
        site.start_both(str::to_string);
        site
    }

    fn start_both(&mut self, edit: impl Fn(&str) -> String) {
        for ((name, text), core) in [("idc", IDC), ("cloud", CLOUD)].into_iter().zip(cores()) {
            self.start(name, &edit(text), core);
        }
    }

    /// Makes `eth0` of a namespace a host's.
    pub fn host(&self, namespace: &str, vlan: u16, addresses: &[&str], routers: &[&str]) {
        self.network.host(&HostEnd { namespace, device: "eth0", vlan, addresses, routers }).unwrap();
    }

    /// Starts a gateway in the namespace of its name.
    pub fn start(&mut self, name: &str, text: &str, core: usize) {
        let text = settled(text, core, &self.run_dir(name));
        assert!(text.contains("run_dir"), "the configuration has no line `cores = [1]`");
        self.texts.insert(name.into(), text);
        self.start_again(name);
    }

    /// Starts a gateway with what an earlier one of its name left.
    pub fn start_again(&mut self, name: &str) {
        let (text, dir) = (&self.texts[name], self.run_dir(name));
        let gateway =
            GatewayProcess::start(causeway(), &self.network, name, text, &dir, &self.keys, true).unwrap();
        let gateway = self.gateways.entry(name.into()).insert_entry(gateway).into_mut();
        gateway.wait_until_up(&|| true).unwrap();
    }

    /// Where a gateway has its files.
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Kills a gateway as a crash would.
    pub fn kill(&mut self, name: &str) {
        self.gateways.remove(name).unwrap().kill();
    }

    /// What a gateway logged last.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.run_dir(name).join("log")).unwrap_or_default()
    }

    /// Reads a gateway's counters anew, once its associations or other rows have changed: it has moved them to another
    /// segment, and an earlier one stays as it was.
    pub fn read_again(&mut self, name: &str) {
        self.gateways.get_mut(name).unwrap().wait_until_up(&|| true).unwrap();
    }

    /// Drops of a gateway so far, by reason.
    pub fn drops(&self, name: &str) -> std::collections::BTreeMap<String, u64> {
        causeway::cli::demo::view::drops(self.gateways[name].reader().unwrap())
    }

    /// The sum of a counter over the rows of its group.
    pub fn counter(&self, name: &str, group: &str, column: &str) -> u64 {
        self.gateways[name].reader().unwrap().sum(group, column)
    }

    /// Runs a program in a namespace, and returns whether it succeeded and what it printed.
    pub fn run(&self, namespace: &str, line: &str) -> (bool, String) {
        let mut command = self.network.command(causeway(), namespace, true);
        let output = command.args(line.split_whitespace()).env("LC_ALL", "C").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs a program that must succeed.
    #[track_caller]
    pub fn ok(&self, namespace: &str, line: &str) -> String {
        let (good, text) = self.run(namespace, line);
        assert!(good, "{line}: {text}\nidc: {}\ncloud: {}", self.log("idc"), self.log("cloud"));
        text
    }

    /// Sends so many pings, one and then the others at once, and requires that every one is answered. `rest` is where to
    /// and how.
    #[track_caller]
    pub fn pings(&self, namespace: &str, count: u64, rest: &str) {
        for count in [1, count - 1].into_iter().filter(|count| *count > 0) {
            self.echoes(namespace, count, &echoes::burst(count, rest));
        }
    }

    /// Runs a `ping`, and requires that it has so many answers and none is missing.
    #[track_caller]
    pub fn echoes(&self, namespace: &str, count: u64, ping: &str) {
        let (_, text) = self.run(namespace, ping);
        let drops = || -> Vec<_> { self.gateways.keys().map(|name| (name, self.drops(name))).collect() };
        assert_eq!(echoes::answered(&text), (count, 0), "{namespace}: {text}\n{:?}", drops());
    }

    /// Starts the demo's server in a namespace.
    pub fn serve(&mut self, namespace: &str) {
        self.servers.push(machine::serve(causeway(), &self.network, namespace).unwrap());
    }

    /// Runs the demo's client in a namespace, and returns its report.
    #[track_caller]
    pub fn client(&self, namespace: &str, line: &str) -> Report {
        let mut command = self.network.command(causeway(), namespace, true);
        command.arg(causeway()).arg("demo-host").args(line.split_whitespace());
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{line}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let report: Report = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(report.done);
        report
    }

    /// Copies so many bytes to the server or back, and requires that they arrive as they were.
    #[track_caller]
    pub fn copy(&self, namespace: &str, server: &str, bytes: u64, back: bool) -> Report {
        let back = if back { "--back" } else { "" };
        let report = self.client(namespace, &format!("copy {server} {bytes} {back}"));
        let stream = &report.tcp[0];
        assert_eq!((stream.sent, stream.received, stream.intact), (Some(bytes), Some(bytes), Some(true)));
        report
    }

    /// Ends servers and gateways, and requires that each gateway accounts for every packet and buffer. Returns the
    /// accounts, by gateway.
    #[track_caller]
    pub fn end(mut self) -> HashMap<String, Account> {
        self.servers.clear();
        let mut accounts = HashMap::new();
        for (name, gateway) in &mut self.gateways {
            let account = gateway.stop().unwrap();
            assert!(account.balanced, "{name}: {account:?}\n{}", gateway.log());
            let dropped: u64 = causeway::cli::demo::view::drops(gateway.reader().unwrap()).values().sum();
            assert_eq!(dropped, account.dropped, "{name}: drops by reason are not all drops");
            accounts.insert(name.clone(), account);
        }
        accounts
    }
}

/// A frame that passed the wire, and whether the data centre's gateway sent it.
pub type Passed = (bool, Vec<u8>);

/// A cable between two gateways that notes what passes. A gateway's own packets cannot be seen at its device: they go
/// around every tap of the kernel.
pub struct Wire {
    frames: Arc<Mutex<Vec<Passed>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// A cable in a namespace between its devices `idc` and `cloud`.
    pub fn new(namespace: &Path) -> Self {
        let (frames, over): (Arc<Mutex<Vec<Passed>>>, Arc<AtomicBool>) = Default::default();
        let (noted, end, namespace) = (Arc::clone(&frames), Arc::clone(&over), namespace.to_path_buf());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            Namespace::open(&namespace).unwrap().enter().unwrap();
            let config = PacketConfig { promiscuous: true, block_timeout: 1, ..PacketConfig::default() };
            let open = |name| PacketSocket::open(&Device::by_name(name).unwrap(), &config).unwrap();
            let (mut idc, mut cloud) = (open("idc"), open("cloud"));
            ready.send(()).unwrap();
            while !end.load(Ordering::Relaxed) {
                let moved =
                    carry(&mut idc, &mut cloud, true, &noted) + carry(&mut cloud, &mut idc, false, &noted);
                if moved == 0 {
                    let _ = idc.poll(Some(Duration::from_millis(1)));
                }
            }
        });
        is_ready.recv().unwrap();
        Self { frames, over, thread: Some(thread) }
    }

    /// What has passed so far.
    pub fn frames(&self) -> Vec<Passed> {
        self.frames.lock().unwrap().clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(
    from: &mut PacketSocket,
    to: &mut PacketSocket,
    from_idc: bool,
    noted: &Mutex<Vec<Passed>>,
) -> usize {
    let mut frames = Vec::new();
    from.receive(64, |received| {
        let mut frame = vec![0; received.len()];
        assert!(received.is_whole() && received.copy_to(&mut frame));
        frames.push(frame);
        true
    });
    let mut sent = 0;
    while sent < frames.len() {
        let (n, stop) = to.send(frames[sent..].iter().map(Vec::as_slice));
        sent += n;
        // A device that is down loses the rest, as a cable would.
        if matches!(stop, Stop::Down | Stop::Gone) {
            break;
        }
    }
    let count = frames.len();
    noted.lock().unwrap().extend(frames.into_iter().map(|frame| (from_idc, frame)));
    count
}

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
