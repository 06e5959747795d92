//! Failover between real gateways under load: two lines, and on them two tunnels, of which the first is cut while TCP and UDP
//! flow both ways. Each test prints the outage in milliseconds, and asserts that the flows survive it. Needs root.

mod load;
#[path = "../netns_common/mod.rs"]
mod netns_common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use af_xdp::Device;
use causeway::cli::demo::{gateways::cores, network::ip};
use load::{Load, Outage};
use netns_common::{PATIENCE, Site, causeway, is_root, until};
use serde_json::Value;

/// One after the other: what is measured is time, and the machine may be small.
static ALONE: Mutex<()> = Mutex::new(());

/// What the two boxes have in common: a side with a host, and two lines to the other box.
fn common(name: &str, own: u8) -> String {
    let (net, lan) = (own, own * 10);
    format!(
        r#"
[system]
name = "{name}"
cores = [1]
buffers = 16384
[port.lan]
driver = "xdp"
device = "lan0"
[port.one]
driver = "xdp"
device = "wan0"
[port.two]
driver = "xdp"
device = "wan1"
[gateway.g]
prefixes = ["10.{net}.0.0/16"]
[interface.lan]
port = "lan"
vlan = {lan}
gateway = "g"
side = "local"
addresses = ["10.{net}.0.1/24"]
"#
    )
}

fn line(number: u8, own: u8, health: &str) -> String {
    let port = if number == 1 { "one" } else { "two" };
    format!(
        "[interface.line-{number}]\nport = \"{port}\"\nvlan = {number}00\ngateway = \"g\"\nside = \"peer\"\n\
         addresses = [\"192.0.{number}.{own}/30\"]\nhold_down = \"1s\"\n{health}\n"
    )
}

/// A box whose two tunnels each have a line of their own; the second stands by.
fn with_tunnels(name: &str, own: u8, keys: &str, health: &str) -> String {
    let far = 3 - own;
    let mut text = common(name, own) + &line(1, own, "") + &line(2, own, "");
    for number in [1, 2] {
        text += &format!(
            "[tunnel.t{number}]\ngateway = \"g\"\nlocal = \"192.0.{number}.{own}\"\nremote = \"192.0.{number}.{far}\"\n\
             out = {{ spi = 0x{number}00{own}, key = {{ file = \"{keys}/{number}{own}\" }} }}\n\
             in = [{{ spi = 0x{number}00{far}, key = {{ file = \"{keys}/{number}{far}\" }} }}]\n\
             hold_down = \"1s\"\n{health}\n"
        );
    }
    text + &format!(
        "[[gateway.g.policy]]\nname = \"sites\"\naction = \"protect\"\ntunnel = \"t1\"\nstandby = [\"t2\"]\n\
         source = [\"10.{own}.0.0/16\"]\ndestination = [\"10.{far}.0.0/16\"]\n"
    )
}

/// A box with two plain lines; routes prefer the first.
fn with_lines(name: &str, own: u8, health: &str) -> String {
    let far = 3 - own;
    let health = |number: u8| health.replace("TARGET", &format!("192.0.{number}.{far}"));
    let mut text = common(name, own) + &line(1, own, &health(1)) + &line(2, own, &health(2));
    for (number, priority) in [(1, 100), (2, 200)] {
        text += &format!(
            "[[gateway.g.route]]\nto = \"10.{far}.0.0/16\"\nvia = \"192.0.{number}.{far}\"\npriority = {priority}\n"
        );
    }
    text
}

/// How the first line is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Frames are lost on the way; both boxes see a good line.
    Silent,
    /// The data centre's port loses its carrier; the cloud's does not.
    Carrier,
}

struct Lab {
    site: Site,
    _keys: tempfile::TempDir,
}

impl Lab {
    /// Two hosts, two boxes, and two lines through a switch each: `text` makes a box's file, given its name, its number and
    /// where keys are.
    fn new(text: impl Fn(&str, u8, &str) -> String) -> Self {
        let mut site = Site::empty();
        for namespace in ["idc-host", "idc", "one", "two", "cloud", "vpc-host"] {
            site.network.add(namespace).unwrap();
        }
        site.network.link(("idc-host", "eth0"), ("idc", "lan0")).unwrap();
        site.network.link(("cloud", "lan0"), ("vpc-host", "eth0")).unwrap();
        for (switch, device) in [("one", "wan0"), ("two", "wan1")] {
            site.network.link(("idc", device), (switch, "idc")).unwrap();
            site.network.link((switch, "cloud"), ("cloud", device)).unwrap();
            let full = site.network.full(switch);
            ip(&format!("-n {full} link add bridge type bridge forward_delay 0 mcast_snooping 0")).unwrap();
            for line in ["link set idc master bridge", "link set cloud master bridge", "link set bridge up"] {
                ip(&format!("-n {full} {line}")).unwrap();
            }
            // As a switch of hardware does: tags stay in the frames.
            for device in ["idc", "cloud"] {
                let off = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];
                let turn_off = || Device::by_name(device).unwrap().turn_off(&off).unwrap();
                site.network.inside(switch, turn_off).unwrap();
            }
        }
        site.host("idc-host", 10, &["10.1.0.10/24"], &["10.1.0.1"]);
        site.host("vpc-host", 20, &["10.2.0.10/24"], &["10.2.0.1"]);
        let keys = tempfile::tempdir().unwrap();
        for name in ["11", "12", "21", "22"] {
            let path = keys.path().join(name);
            let key: String = (0..20).map(|_| format!("{:02x}", rand::random::<u8>())).collect();
            fs::write(&path, key).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let folder = keys.path().display().to_string();
        for ((name, number), core) in [("idc", 1), ("cloud", 2)].into_iter().zip(cores()) {
            site.start(name, &text(name, number, &folder), core);
        }
        let lab = Self { site, _keys: keys };
        let reached = |from: &str, to: &str| lab.site.run(from, &format!("ping -n -c 1 -W 1 {to}")).0;
        until("no way", || reached("idc-host", "10.2.0.10") && reached("vpc-host", "10.1.0.10"));
        lab
    }

    /// The health of a way of a box.
    fn health(&self, gateway: &str, way: &str) -> Value {
        let (kind, name) = way.split_once(' ').unwrap();
        let dir = self.site.run_dir(gateway).display().to_string();
        let text =
            self.site.ok(gateway, &format!("{} show health --json --run-dir {dir}", causeway().display()));
        let rows: Value = serde_json::from_str(&text).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["kind"] == kind && row["name"] == name);
        row.unwrap_or_else(|| panic!("no {way} in {rows}")).clone()
    }

    fn wait(&self, way: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        for gateway in ["idc", "cloud"] {
            let since = Instant::now();
            while !holds(&self.health(gateway, way)) {
                let row = self.health(gateway, way);
                assert!(
                    since.elapsed() < PATIENCE,
                    "{gateway}: {way} is not {what}: {row}\n{}",
                    self.site.log(gateway)
                );
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn operate(&self, gateway: &str, command: &str) -> (bool, String) {
        let dir = self.site.run_dir(gateway).display().to_string();
        self.site.run(gateway, &format!("{} {command} --run-dir {dir}", causeway().display()))
    }

    fn cut(&self, cut: Cut, is_cut: bool) {
        let state = if is_cut { "down" } else { "up" };
        let full = self.site.network.full("one");
        let device = if cut == Cut::Silent { "bridge" } else { "idc" };
        ip(&format!("-n {full} link set {device} {state}")).unwrap();
    }

    /// Packets that a box has sent so far by a row of a group.
    fn sent(&self, gateway: &str, group: &str, name: &str) -> u64 {
        let dir = self.site.run_dir(gateway);
        let reader = causeway::stats::Reader::open(&causeway::control::gateway::segment_path(&dir)).unwrap();
        let row = reader.layout().group(group).unwrap().rows.iter().position(|row| row == name).unwrap();
        reader.total(group, row, "out_packets")
    }

    /// Runs load, cuts the first way, has it come back, and says what the load saw of both.
    fn fail_over(
        &self,
        cut: Cut,
        ways: [&str; 2],
        group: &str,
        health: impl Fn(&Value) -> bool,
    ) -> [Outage; 2] {
        self.wait(ways[0], "ready", &health);
        self.wait(ways[1], "ready", &health);
        let load = Load::start(&self.site.network, ("idc-host", "10.1.0.10"), ("vpc-host", "10.2.0.10"));
        thread::sleep(Duration::from_millis(1500));
        let standby = |gateway: &str| self.sent(gateway, group, ways[1].split_once(' ').unwrap().1);
        let before = [standby("idc"), standby("cloud")];
        load.mark();
        self.cut(cut, true);
        self.wait(ways[0], "down", |row| row["usable"] == false);
        load.wait_for_progress(PATIENCE);
        thread::sleep(Duration::from_millis(500));
        let lost = load.take();
        for (gateway, before) in ["idc", "cloud"].into_iter().zip(before) {
            let by = standby(gateway) - before;
            assert!(by > 50, "{gateway} sent {by} packets by the standby way");
        }
        load.mark();
        self.cut(cut, false);
        self.wait(ways[0], "back", |row| row["usable"] == true);
        thread::sleep(Duration::from_millis(500));
        let back = load.take();
        load.end();
        [lost, back]
    }
}

fn report(what: &str, [lost, back]: [Outage; 2]) {
    println!("failover, {what}: outage {lost}; when it came back: {back}");
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

const BFD: &str = "bfd = { min_tx = \"50ms\", min_rx = \"50ms\", multiplier = 3 }";
const PROBE: &str = "probe = { interval = \"100ms\", timeout = \"80ms\", count = 3, recover = 2 }";
const SLOW_PROBE: &str = "probe = { recover = 1 }";

fn session_is_up(row: &Value) -> bool {
    row["bfd"]["state"] == "Up" && row["bfd"]["detection_ms"] == 150.0 && row["usable"] == true
}

fn is_up(row: &Value) -> bool {
    row["state"] == "up"
}

#[test]
fn tunnels_with_bfd_at_50_ms_times_3() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let lab = Lab::new(|name, number, keys| with_tunnels(name, number, keys, BFD));
    let outages = lab.fail_over(Cut::Silent, ["tunnel t1", "tunnel t2"], "tunnel", session_is_up);
    report("tunnels, BFD 50 ms x 3, frames lost", outages);
    lab.site.end();
}

#[test]
fn tunnels_with_bfd_when_a_carrier_is_lost() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let lab = Lab::new(|name, number, keys| with_tunnels(name, number, keys, BFD));
    let outages = lab.fail_over(Cut::Carrier, ["tunnel t1", "tunnel t2"], "tunnel", session_is_up);
    report("tunnels, BFD 50 ms x 3, carrier lost at one end", outages);
    lab.site.end();
}

#[test]
fn tunnels_with_probes_at_100_ms() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let lab = Lab::new(|name, number, keys| with_tunnels(name, number, keys, PROBE));
    let outages = lab.fail_over(Cut::Silent, ["tunnel t1", "tunnel t2"], "tunnel", is_up);
    report("tunnels, probes 100 ms x 3, frames lost", outages);
    lab.site.end();
}

#[test]
fn tunnels_with_probes_at_their_defaults_and_the_tunnel_s_own_signs() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let lab = Lab::new(|name, number, keys| with_tunnels(name, number, keys, SLOW_PROBE));
    let outages = lab.fail_over(Cut::Silent, ["tunnel t1", "tunnel t2"], "tunnel", is_up);
    report("tunnels, probes 5 s x 3 and signs, frames lost", outages);
    lab.site.end();
}

#[test]
fn lines_with_bfd_at_50_ms_times_3() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let bfd = BFD.replace("{ ", "{ target = \"TARGET\", ");
    let lab = Lab::new(|name, number, _| with_lines(name, number, &bfd));
    let ways = ["interface line-1", "interface line-2"];
    let outages = lab.fail_over(Cut::Silent, ways, "interface", session_is_up);
    report("lines, BFD 50 ms x 3, frames lost", outages);
    lab.site.end();
}

#[test]
fn lines_with_probes_when_a_carrier_is_lost() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let probe = PROBE.replace("{ ", "{ target = \"TARGET\", ");
    let lab = Lab::new(|name, number, _| with_lines(name, number, &probe));
    let outages = lab.fail_over(Cut::Carrier, ["interface line-1", "interface line-2"], "interface", is_up);
    report("lines, probes 100 ms x 3, carrier lost at one end", outages);
    lab.site.end();
}

#[test]
fn draining_a_tunnel_loses_nothing() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let lab = Lab::new(|name, number, keys| with_tunnels(name, number, keys, SLOW_PROBE));
    lab.wait("tunnel t1", "ready", is_up);
    lab.wait("tunnel t2", "ready", is_up);
    let load = Load::start(&lab.site.network, ("idc-host", "10.1.0.10"), ("vpc-host", "10.2.0.10"));
    thread::sleep(Duration::from_millis(500));
    load.mark();
    let before = lab.sent("idc", "tunnel", "t2");
    for gateway in ["idc", "cloud"] {
        assert_eq!(lab.operate(gateway, "drain tunnel t1"), (true, "drained\n".into()));
    }
    assert_eq!(lab.operate("idc", "drain tunnel t1"), (true, "drained already\n".into()));
    thread::sleep(Duration::from_millis(500));
    assert!(lab.sent("idc", "tunnel", "t2") - before > 50);
    let row = lab.health("idc", "tunnel t1");
    assert_eq!((&row["drained"], &row["usable"], &row["state"]), (&true.into(), &false.into(), &"up".into()));
    let (good, text) = lab.operate("idc", "show health");
    assert!(good && text.contains("tunnel t1") && text.contains("drained"), "{text}");
    for gateway in ["idc", "cloud"] {
        assert_eq!(lab.operate(gateway, "undrain tunnel t1"), (true, "in service\n".into()));
    }
    thread::sleep(Duration::from_millis(500));
    let drained = load.take();
    println!("drain and undrain: {drained}");
    assert_eq!(drained.lost, 0, "{drained}");
    let (good, text) = lab.operate("idc", "failback tunnel t1");
    assert!(!good && text.contains("is in use"), "{text}");
    let (good, text) = lab.operate("idc", "drain tunnel t9");
    assert!(!good && text.contains("there is no tunnel t9; there are: t1, t2"), "{text}");
    load.end();
    lab.site.end();
}
