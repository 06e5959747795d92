//! BFD with BIRD, on a line between two namespaces: up at both ends, down at both when the line is cut, and up again.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use causeway::cli::demo::{
    gateways::cores,
    network::{Process, ip},
};
use serde_json::Value;

use crate::{
    can_run,
    netns_common::{PATIENCE, Site, causeway},
};

/// A gateway on one side of a switch, BIRD on the other.
struct Line {
    /// Before the network that it runs in.
    bird: Process,
    socket: PathBuf,
    site: Site,
    folder: tempfile::TempDir,
}

impl Line {
    fn new(own: &str, far: &str, length: u8) -> Self {
        let mut site = Site::empty();
        for namespace in ["gateway", "switch", "bird"] {
            site.network.add(namespace).unwrap();
        }
        site.network.link(("gateway", "wan0"), ("switch", "left")).unwrap();
        site.network.link(("switch", "right"), ("bird", "eth0")).unwrap();
        let full = site.network.full("switch");
        for line in [
            "link add bridge type bridge forward_delay 0 mcast_snooping 0",
            "link set left master bridge",
            "link set right master bridge",
            "link set bridge up",
        ] {
            ip(&format!("-n {full} {line}")).unwrap();
        }
        site.host("bird", 0, &[&format!("{far}/{length}")], &[]);
        let text = format!(
            "[system]\nname = \"gateway\"\ncores = [1]\nbuffers = 16384\n[port.wan]\ndriver = \"xdp\"\ndevice = \"wan0\"\n\
             [gateway.g]\n[interface.wan]\nport = \"wan\"\ngateway = \"g\"\nside = \"peer\"\n\
             addresses = [\"{own}/{length}\"]\nhold_down = \"0s\"\n\
             bfd = {{ target = \"{far}\", min_tx = \"50ms\", min_rx = \"60ms\", multiplier = 4 }}\n"
        );
        site.start("gateway", &text, cores()[0]);
        let folder = tempfile::tempdir().unwrap();
        let (config, socket) = (folder.path().join("bird.conf"), folder.path().join("bird.ctl"));
        let text = format!(
            "log \"{}\" all;\nrouter id 192.0.2.9;\nprotocol device {{}}\nprotocol bfd {{\n\
             interface \"eth0\" {{ min rx interval 50 ms; min tx interval 80 ms; idle tx interval 1 s; multiplier 3; }};\n\
             neighbor {own} dev \"eth0\" local {far};\n}}\n",
            folder.path().join("bird.log").display()
        );
        fs::write(&config, text).unwrap();
        let mut command = site.network.command(causeway(), "bird", true);
        command.args(["bird", "-f", "-c"]).arg(&config).arg("-s").arg(&socket);
        command.arg("-P").arg(folder.path().join("bird.pid"));
        let bird = Process::start(&mut command).unwrap();
        Self { bird, socket, site, folder }
    }

    /// What BIRD says of its session.
    fn bird(&self) -> String {
        let socket = self.socket.display();
        let (_, text) = self.site.run("bird", &format!("birdc -s {socket} show bfd sessions"));
        text
    }

    /// The session as the gateway has it.
    fn ours(&self) -> Value {
        let dir = self.site.run_dir("gateway").display().to_string();
        let line = format!("{} show health --json --run-dir {dir}", causeway().display());
        let rows: Value = serde_json::from_str(&self.site.ok("gateway", &line)).unwrap();
        rows.as_array().unwrap().iter().find(|row| row["kind"] == "interface").unwrap().clone()
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Value, &str) -> bool) {
        let since = Instant::now();
        loop {
            let (ours, theirs) = (self.ours(), self.bird());
            if holds(&ours, &theirs) {
                return;
            }
            let log = fs::read_to_string(self.folder.path().join("bird.log")).unwrap_or_default();
            assert!(
                since.elapsed() < PATIENCE,
                "{what}: {ours}\n{theirs}\n{log}\n{}",
                self.site.log("gateway")
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn cut(&self, is_cut: bool) {
        let state = if is_cut { "down" } else { "up" };
        ip(&format!("-n {} link set bridge {state}", self.site.network.full("switch"))).unwrap();
    }
}

fn both_up(ours: &Value, theirs: &str) -> bool {
    ours["bfd"]["state"] == "Up" && ours["bfd"]["remote_state"] == "Up" && theirs.contains(" Up ")
}

fn both_down(ours: &Value, theirs: &str) -> bool {
    ours["bfd"]["state"] == "Down" && ours["usable"] == false && theirs.contains(" Down ")
}

#[track_caller]
fn meets_bird(own: &str, far: &str, length: u8) {
    if !can_run(&["bird", "birdc"]) {
        return;
    }
    let mut line = Line::new(own, far, length);
    line.until("the session does not come up", both_up);
    // Both have agreed on the slower of what one sends and the other takes: 80 ms to us, 50 ms to BIRD.
    line.until("the times are not agreed on", |ours, _| {
        ours["bfd"]["detection_ms"] == 240.0 && ours["bfd"]["transmit_ms"] == 50.0
    });
    // It stays up, by far longer than any detection time.
    thread::sleep(Duration::from_secs(3));
    let before = line.ours();
    assert_eq!((&before["bfd"]["downs"], &before["bfd"]["refused"]), (&0.into(), &0.into()), "{before}");
    assert!(both_up(&before, &line.bird()), "{before}\n{}", line.bird());
    assert!(before["bfd"]["received"].as_u64().unwrap() > 30, "{before}");

    line.cut(true);
    line.until("the session does not go down", both_down);
    assert_eq!(line.ours()["bfd"]["diagnostic"], "control detection time expired");
    line.cut(false);
    line.until("the session does not come up again", both_up);
    line.until("the line is not used again", |ours, _| ours["usable"] == true && ours["state"] == "up");

    // BIRD ends: the session goes down here, and comes up when there is another BIRD.
    let _ = line.bird.child().kill();
    let _ = line.bird.child().wait();
    line.until("the end of BIRD is not noticed", |ours, _| ours["bfd"]["state"] == "Down");
    let mut command = line.site.network.command(causeway(), "bird", true);
    command.args(["bird", "-f", "-c"]).arg(line.folder.path().join("bird.conf")).arg("-s").arg(&line.socket);
    line.bird = Process::start(&mut command).unwrap();
    line.until("the session with another BIRD does not come up", both_up);
    println!("BFD with BIRD: {}", line.ours()["bfd"]);
    let Line { bird, site, folder, .. } = line;
    drop(bird);
    site.end();
    drop(folder);
}

#[test]
fn bird_and_a_gateway_hold_a_session_over_ipv4() {
    meets_bird("192.0.2.2", "192.0.2.1", 30);
}

#[test]
fn bird_and_a_gateway_hold_a_session_over_ipv6() {
    meets_bird("2001:db8:7::2", "2001:db8:7::1", 64);
}
