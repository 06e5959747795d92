//! Keys that change while packets flow: two whole gateways, with workers of their own, joined by wires in memory.
//!
//! Nothing is lost, nothing comes twice, and what flows keeps its order.

mod common;

use std::{
    collections::HashMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
};

use causeway::{
    config::{self, Config, Key},
    control::{
        gateway::{Gateway, ReloadError, StartOptions},
        ports::derived_mac,
        rekey::{Action, Change, RekeyError},
    },
    io::mem::{MemPort, wire},
    packet::DropReason,
    stats::{Reader, counters::group},
};
use common::{frame::*, *};

/// One end, 1 or 2, with the keys that seal and open in each direction.
struct Site {
    gateway: Gateway,
    /// One for each worker.
    hosts: Vec<MemPort>,
    mac: Mac,
    own: Mac,
    run_dir: PathBuf,
    sent: u32,
    /// The numbers received, in order.
    received: Vec<u32>,
}

/// What differs in a file: SPIs of the outbound and the inbound associations, and lines for the tunnel's section.
#[derive(Clone)]
struct Keys {
    out: u32,
    into: Vec<u32>,
    more: String,
    workers: usize,
}

fn text(end: u8, keys: &Keys, dir: &Path) -> String {
    let other = 3 - end;
    let sa = |spi: u32| format!("{{ spi = {spi}, key = {{ env = \"KEY_{spi:x}\" }} }}");
    let into: Vec<String> = keys.into.iter().map(|spi| sa(*spi)).collect();
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap().iter().rev().map(|core| core.id).collect();
    let cores = cores.get(..keys.workers).expect("a core for each worker");
    format!(
        r#"
[system]
name = "site-{end}"
cores = {cores:?}
buffers = 4096
huge_pages = "never"
run_dir = "{run_dir}"
state = "{state}"
[port.lan]
driver = "memory"
mtu = 1600
[port.wan]
driver = "memory"
[gateway.g]
prefixes = ["10.{end}.0.0/16"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.{end}.0.1/24"]
[interface.wan]
port = "wan"
gateway = "g"
side = "peer"
addresses = ["192.0.2.{end}/30"]
[tunnel.t]
gateway = "g"
local = "192.0.2.{end}"
remote = "192.0.2.{other}"
out = {out}
in = [{into}]
{more}
[[gateway.g.policy]]
name = "to-other"
action = "protect"
tunnel = "t"
source = ["10.{end}.0.0/16"]
destination = ["10.{other}.0.0/16"]
"#,
        run_dir = dir.join(format!("run-{end}")).display(),
        state = dir.join(format!("state-{end}")).display(),
        out = sa(keys.out),
        into = into.join(", "),
        more = keys.more,
    )
}

/// As [`key`], and different for each of many thousand names.
fn own_key(name: &str) -> Vec<u8> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    [&key(name)[..12], &hash.to_be_bytes()].concat()
}

fn parse(text: &str) -> Config {
    let environment = |name: &str| Some(hex(&own_key(name)));
    match config::parse(Path::new("/bench/bench.toml"), text, &environment) {
        Ok((config, _)) => config,
        Err(errors) => panic!("{}", errors.to_json()),
    }
}

/// The key of an SPI, as a command takes it.
fn key_of(spi: u32, dir: &Path) -> Key {
    let path = dir.join(format!("{spi:x}.key"));
    fs::write(&path, hex(&own_key(&format!("KEY_{spi:x}")))).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    Key::read(&path).unwrap()
}

const FLOWS: u32 = 4;
/// Packets on their way at once: fewer than a wire holds.
const UNDERWAY: usize = 300;

impl Site {
    fn new(end: u8, keys: &Keys, dir: &Path, wan: Vec<MemPort>, new_state: bool) -> Self {
        let config = parse(&text(end, keys, dir));
        let own = derived_mac(&config, &config.ports[0]).0;
        let run_dir = config.system.run_dir.value.0.clone();
        let (lan, hosts) = wires(keys.workers);
        let wires = HashMap::from([("lan".to_string(), lan), ("wan".to_string(), wan)]);
        let gateway =
            Gateway::start(config, StartOptions { new_state, wires, ..StartOptions::default() }).unwrap();
        Self { gateway, hosts, mac: [2, 0, 0, 0, 0xee, end], own, run_dir, sent: 0, received: Vec::new() }
    }

    fn tick(&mut self) {
        self.gateway.tick().unwrap();
        assert!(!self.gateway.has_failed());
    }

    /// The host answers for its address and takes what comes for it.
    fn serve(&mut self, end: u8) {
        let frames =
            self.hosts.iter().flat_map(|host| std::iter::from_fn(move || Some((host, host.receive()?))));
        for (from, bytes) in frames {
            let frame_in = read_frame(&bytes);
            if frame_in.ether_type == ARP {
                let (host, own) = (format!("10.{end}.0.9"), format!("10.{end}.0.1"));
                let answer = arp(2, (self.mac, &host), (self.own, &own));
                assert!(from.send(&frame(self.own, self.mac, &[], ARP, &answer)));
            } else if frame_in.ether_type == IPV4 && frame_in.dst == self.mac {
                let packet = Ip::read(&frame_in.payload);
                let number = packet.payload[8..12].try_into().unwrap();
                self.received.push(u32::from_be_bytes(number));
            }
        }
    }

    fn send(&mut self, end: u8) {
        let (from, to) = (format!("10.{end}.0.9"), format!("10.{}.0.9", 3 - end));
        let packet = udp(&from, &to, (1000 + (self.sent % FLOWS) as u16, 9), &self.sent.to_be_bytes());
        // A flow stays with one worker, as with the hash of a network card.
        let host = &self.hosts[(self.sent % FLOWS) as usize % self.hosts.len()];
        assert!(host.send(&frame(self.own, self.mac, &[], IPV4, &packet.bytes())));
        self.sent += 1;
    }

    fn drops(&self) -> Vec<(String, u64)> {
        let reader = Reader::open(&self.run_dir.join("stats")).unwrap();
        let work = [DropReason::ArpConsumed, DropReason::ArpNotForUs];
        let all = DropReason::ALL.iter().filter(|reason| !work.contains(reason));
        let all = all.map(|reason| (reason.name().to_string(), reader.sum(group::DROP, reason.name())));
        all.filter(|(_, count)| *count > 0).collect()
    }
}

/// Both ends of a wire for each worker.
fn wires(workers: usize) -> (Vec<MemPort>, Vec<MemPort>) {
    (0..workers).map(|_| wire(1024)).unzip()
}

struct Pair {
    a: Site,
    b: Site,
    _dir: tempfile::TempDir,
    dir: PathBuf,
}

impl Pair {
    fn new(more: &str) -> Self {
        Self::of(1, more)
    }

    fn of(workers: usize, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (wan_a, wan_b) = wires(workers);
        let more = more.to_string();
        let a = Site::new(
            1,
            &Keys { out: 0x1001, into: vec![0x2001], more: more.clone(), workers },
            dir.path(),
            wan_a,
            true,
        );
        let b =
            Site::new(2, &Keys { out: 0x2001, into: vec![0x1001], more, workers }, dir.path(), wan_b, true);
        let mut pair = Self { a, b, dir: dir.path().into(), _dir: dir };
        // The first packets find their way; then both ways are open.
        pair.flow(100);
        pair
    }

    fn round(&mut self) {
        self.a.tick();
        self.b.tick();
        self.a.serve(1);
        self.b.serve(2);
        thread::yield_now();
    }

    /// Sends so many packets each way, a few at a time; the last of them are still underway then.
    fn flow(&mut self, packets: u32) {
        let until = (self.a.sent + packets, self.b.sent + packets);
        // Until the hosts are known only a few packets may wait.
        let underway = |sent: u32, got: usize| sent as usize - got < if got == 0 { 1 } else { UNDERWAY };
        while self.a.sent < until.0 || self.b.sent < until.1 {
            for _ in 0..32 {
                if self.a.sent < until.0 && underway(self.a.sent, self.b.received.len()) {
                    self.a.send(1);
                }
                if self.b.sent < until.1 && underway(self.b.sent, self.a.received.len()) {
                    self.b.send(2);
                }
            }
            self.round();
        }
    }

    /// Waits for everything underway, and shows that nothing was lost, repeated or reordered.
    fn settle(&mut self) {
        while self.a.received.len() < self.b.sent as usize || self.b.received.len() < self.a.sent as usize {
            self.round();
            assert_eq!((self.a.drops(), self.b.drops()), (vec![], vec![]));
        }
        for (sent, received) in [(self.a.sent, &self.b.received), (self.b.sent, &self.a.received)] {
            for flow in 0..FLOWS {
                let of_flow = received.iter().copied().filter(|number| number % FLOWS == flow);
                assert!(
                    of_flow.eq((flow..sent).step_by(FLOWS as usize)),
                    "each once, and in order in a flow"
                );
            }
            let one = self.a.hosts.len() == 1;
            assert!(!one || received.iter().copied().eq(0..sent), "one worker keeps the order of all");
        }
    }

    fn rekey(&mut self, on_a: bool, spi: u32, action: fn(Key) -> Action) {
        let action = action(key_of(spi, &self.dir));
        let site = if on_a { &mut self.a } else { &mut self.b };
        site.gateway.rekey(Change { tunnel: "t".into(), spi, action }).unwrap();
    }

    fn stop(self) {
        assert_eq!((self.a.drops(), self.b.drops()), (vec![], vec![]));
        for site in [self.a, self.b] {
            let summary = site.gateway.stop();
            assert!(summary.balances(), "{summary:?}");
        }
    }

    fn packets_of(&self, sa: &str) -> u64 {
        let reader = Reader::open(&self.a.run_dir.join("stats")).unwrap();
        let rows = &reader.layout().group(group::SA).unwrap().rows;
        let row = rows.iter().position(|name| name == sa);
        row.map_or(0, |row| reader.total(group::SA, row, "packets"))
    }
}

#[test]
fn a_rekey_by_command_loses_nothing_under_load() {
    rekey_by_command(Pair::new(""));
}

/// Two workers share the tunnel at both ends: its numbers, its windows, and the changes of its keys.
#[test]
fn a_rekey_by_command_loses_nothing_under_load_with_two_workers() {
    rekey_by_command(Pair::of(2, ""));
}

fn rekey_by_command(mut pair: Pair) {
    let retire = |_: Key| Action::Retire;
    for step in 1..=6 {
        let (old, new) = (0x1000 + step, 0x1001 + step);
        pair.flow(300);
        pair.rekey(true, new + 0x1000, Action::Add);
        pair.rekey(false, new, Action::Add);
        pair.flow(300);
        pair.rekey(true, new, Action::Switch);
        pair.flow(300);
        pair.rekey(false, new + 0x1000, Action::Switch);
        // Before what opened is retired, what was sealed for it must have come.
        pair.settle();
        pair.flow(300);
        pair.rekey(false, old, retire);
        pair.rekey(true, old + 0x1000, retire);
        pair.flow(300);
        // Whoever has worked on what came after the command has taken its counts along.
        pair.settle();
        assert!(pair.packets_of(&format!("t/out/{new:#x}")) > 0);
    }
    pair.settle();
    let tables = pair.a.gateway.tables();
    assert_eq!(tables.sas.len(), 1);
    assert_eq!((tables.sas[0].spi, tables.tunnels[0].sa.as_ref().unwrap().spi), (0x2007, 0x1007));
    pair.stop();
}

#[test]
fn a_rekey_by_reload_loses_nothing_under_load_and_takes_over_what_commands_did() {
    let mut pair = Pair::new("");
    let keys = |out, into: &[u32]| Keys { out, into: into.to_vec(), more: String::new(), workers: 1 };
    let steps = [
        (keys(0x1001, &[0x2001, 0x2002]), keys(0x2001, &[0x1001, 0x1002])),
        (keys(0x1002, &[0x2001, 0x2002]), keys(0x2002, &[0x1001, 0x1002])),
        (keys(0x1002, &[0x2002]), keys(0x2002, &[0x1002])),
    ];
    for (a, b) in &steps {
        pair.flow(500);
        // Each step waits for the one before to have reached the other end.
        pair.settle();
        let dir = pair.dir.clone();
        pair.a.gateway.reload(parse(&text(1, a, &dir))).unwrap();
        pair.flow(200);
        pair.b.gateway.reload(parse(&text(2, b, &dir))).unwrap();
        pair.flow(500);
    }
    // A command adds; the file that does not know of it yet does not take it away; the one that does owns it.
    pair.rekey(true, 0x2003, Action::Add);
    let dir = pair.dir.clone();
    let spis = |pair: &Pair| pair.a.gateway.tables().sas.iter().map(|sa| sa.spi).collect::<Vec<_>>();
    pair.a.gateway.reload(parse(&text(1, &steps[2].0, &dir))).unwrap();
    assert_eq!(spis(&pair), [0x2002, 0x2003]);
    pair.a.gateway.reload(parse(&text(1, &keys(0x1002, &[0x2002, 0x2003]), &dir))).unwrap();
    pair.a.gateway.reload(parse(&text(1, &steps[2].0, &dir))).unwrap();
    assert_eq!(spis(&pair), [0x2002]);
    pair.flow(300);
    pair.settle();
    pair.stop();
}

/// The size of the window changes again and again while two workers open what two others seal: nothing is refused for it.
#[test]
fn a_window_changes_its_size_under_load_with_two_workers() {
    let mut pair = Pair::of(2, "");
    let dir = pair.dir.clone();
    for size in [65_536, 2048, 8192, 4096, 1024] {
        let more = format!("replay_window = {size}");
        let keys = |out, into| Keys { out, into: vec![into], more: more.clone(), workers: 2 };
        pair.flow(400);
        pair.a.gateway.reload(parse(&text(1, &keys(0x1001, 0x2001), &dir))).unwrap();
        pair.flow(50);
        pair.b.gateway.reload(parse(&text(2, &keys(0x2001, 0x1001), &dir))).unwrap();
        pair.flow(400);
    }
    pair.settle();
    let sa = &pair.a.gateway.tables().sas[0];
    assert!(sa.former.as_ref().is_some_and(|former| former.is_over()), "the one before no longer counts");
    // What was accepted by any of the windows is not accepted again.
    let newest = sa.window.newest();
    assert!((1..=newest).all(|number| sa.check_at(sa.window.newest(), number).is_err()));
    pair.stop();
}

#[test]
fn policies_change_and_are_counted_while_packets_flow() {
    let mut pair = Pair::new("");
    let more = "[[gateway.g.policy]]\nname = \"telnet\"\naction = \"discard\"\nprotocol = \"tcp\"\n\
        destination_port = 23\n";
    let keys = Keys { out: 0x1001, into: vec![0x2001], more: String::new(), workers: 1 };
    let dir = pair.dir.clone();
    let plain = text(1, &keys, &dir);
    let other = plain.replace("[[gateway.g.policy]]", &format!("{more}[[gateway.g.policy]]"));
    for round in 0..6 {
        pair.flow(300);
        pair.a.gateway.reload(parse(if round % 2 == 0 { &other } else { &plain })).unwrap();
    }
    pair.flow(300);
    pair.settle();
    let reader = Reader::open(&pair.a.run_dir.join("stats")).unwrap();
    assert_eq!(reader.layout().group(group::POLICY).unwrap().rows, ["g/to-other"]);
    let count = |column| reader.total(group::POLICY, 0, column);
    assert_eq!((count("out_packets"), count("in_packets")), (pair.a.sent.into(), pair.b.sent.into()));
    // 20 of IP, 8 of UDP and 4 of number.
    assert_eq!(count("out_bytes"), 32 * u64::from(pair.a.sent));
    pair.stop();
}

#[test]
fn changes_that_cannot_be_change_nothing() {
    let mut pair = Pair::new("");
    let dir = pair.dir.clone();
    let mut try_to = |tunnel: &str, spi, action| {
        let change = Change { tunnel: tunnel.into(), spi, action };
        match pair.a.gateway.rekey(change).unwrap_err() {
            ReloadError::Associations(error) => error,
            other => panic!("{other}"),
        }
    };
    let key = |spi| key_of(spi, &dir);
    assert_eq!(try_to("x", 0x2002, Action::Add(key(0x2002))), RekeyError::Tunnel("x".into()));
    assert_eq!(try_to("t", 255, Action::Add(key(0x2002))), RekeyError::Reserved(255));
    let spi = RekeyError::Spi { tunnel: "t".into(), spi: 0x2001 };
    assert_eq!(try_to("t", 0x2001, Action::Add(key(0x2002))), spi);
    assert_eq!(try_to("t", 0x2002, Action::Add(key(0x1001))), RekeyError::Key("t".into()));
    assert_eq!(try_to("t", 0x1002, Action::Switch(key(0x2001))), RekeyError::Key("t".into()));
    let last = RekeyError::Last { tunnel: "t".into(), spi: 0x2001 };
    assert_eq!(try_to("t", 0x2001, Action::Retire), last);
    assert!(matches!(try_to("t", 0x2009, Action::Retire), RekeyError::Unknown { .. }));
    pair.flow(100);
    pair.settle();
    pair.stop();
}

#[test]
fn what_was_received_is_not_accepted_again_after_a_restart() {
    let mut pair = Pair::new("replay_window = 64");
    pair.flow(500);
    pair.settle();
    let newest = |pair: &Pair| pair.b.gateway.tables().sas[0].window.newest();
    let before = newest(&pair);
    assert!(before >= 500);
    let Pair { a, b, _dir, dir } = pair;
    assert!(b.gateway.stop().balances());
    assert!(a.gateway.stop().balances());
    let (wan_a, wan_b) = wires(1);
    let keys = |out, into| Keys { out, into: vec![into], more: "replay_window = 64".into(), workers: 1 };
    let a = Site::new(1, &keys(0x1001, 0x2001), &dir, wan_a, false);
    let b = Site::new(2, &keys(0x2001, 0x1001), &dir, wan_b, false);
    let mut pair = Pair { a, b, dir, _dir };
    assert_eq!(newest(&pair), before);
    let window = &pair.b.gateway.tables().sas[0].window;
    assert!((1..=before).all(|number| window.check(number).is_err()));
    pair.flow(500);
    pair.settle();
    assert!(newest(&pair) >= before + 500);
    pair.stop();
}

#[test]
fn a_lifetime_in_packets_is_due_and_then_over() {
    let mut pair = Pair::new("lifetime_packets = 2000\nrekey_at = 50");
    let stages = |pair: &Pair| {
        let (gateway, now) = (&pair.a.gateway, pair.a.gateway.now());
        let used = |a| gateway.lifetimes().used(a, gateway.segment(), now).1.name();
        gateway.built().associations.iter().map(used).collect::<Vec<_>>()
    };
    pair.flow(600);
    pair.settle();
    pair.round();
    assert_eq!(stages(&pair), ["current", "current"]);
    pair.flow(600);
    pair.settle();
    pair.round();
    assert_eq!(stages(&pair), ["due", "due"]);
    // Beyond the end nothing more is sealed.
    while stages(&pair)[0] != "over" {
        pair.a.send(1);
        pair.round();
    }
    for _ in 0..50 {
        pair.a.send(1);
        pair.round();
    }
    while !pair.a.drops().iter().any(|(name, count)| name == "esp-expired" && *count >= 50) {
        pair.round();
    }
    assert_eq!(pair.a.drops().len(), 1, "{:?}", pair.a.drops());
    // A new key opens the way again: the same steps as always.
    pair.rekey(false, 0x1002, Action::Add);
    pair.rekey(true, 0x1002, Action::Switch);
    let before = pair.b.received.len();
    pair.a.send(1);
    while pair.b.received.len() == before {
        pair.round();
    }
    assert_eq!(stages(&pair)[0], "current");
}

#[test]
fn lifetimes_in_time_and_bytes_stop_an_association() {
    for (more, seconds) in [("lifetime = \"1s\"", true), ("lifetime_bytes = \"60kB\"", false)] {
        let mut pair = Pair::new(more);
        let over =
            |pair: &Pair| pair.a.drops().iter().any(|(name, count)| name == "esp-expired" && *count > 0);
        while !over(&pair) {
            pair.a.send(1);
            if pair.a.sent.is_multiple_of(64) {
                thread::sleep(std::time::Duration::from_millis(1));
            }
            pair.round();
            assert!(seconds || pair.a.sent < 60_000, "{more}");
        }
        let gateway = &pair.a.gateway;
        let (used, _) =
            gateway.lifetimes().used(&gateway.built().associations[0], gateway.segment(), gateway.now());
        if seconds { assert!(used.age >= 1) } else { assert!(used.bytes >= 60_000) }
    }
}

/// Of ten thousand tunnels one gets new keys: only what changes is made anew, and it is soon done.
#[test]
fn a_rekey_among_many_tunnels_leaves_the_others_as_they_are() {
    const TUNNELS: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys { out: 0x1001, into: vec![0x2001], more: String::new(), workers: 1 };
    let mut many = text(1, &keys, dir.path());
    many += "[[gateway.g.route]]\nto = \"198.18.0.0/15\"\nvia = \"192.0.2.2\"\n";
    for n in 0..TUNNELS - 1 {
        let remote = format!("198.{}.{}.{}", 18 + n / 65_536, n / 256 % 256, n % 256);
        let (out, into) = (0x10_0000 + n, 0x20_0000 + n);
        many += &format!(
            "[tunnel.t{n}]\ngateway = \"g\"\nlocal = \"192.0.2.1\"\nremote = \"{remote}\"\n\
             out = {{ spi = {out}, key = {{ env = \"KEY_{out:x}\" }} }}\n\
             in = [{{ spi = {into}, key = {{ env = \"KEY_{into:x}\" }} }}]\n\
             [[gateway.g.route]]\nto = \"172.{}.{}.{}/32\"\ntunnel = \"t{n}\"\n",
            16 + n / 65_536,
            n / 256 % 256,
            n % 256,
        );
    }
    let config = parse(&many);
    let wires = |name: &str| (name.to_string(), vec![wire(64).0]);
    let wires = HashMap::from([wires("lan"), wires("wan")]);
    let options = StartOptions { new_state: true, wires, ..StartOptions::default() };
    let mut gateway = Gateway::start(config, options).unwrap();
    let before = gateway.tables().sas.clone();
    assert_eq!(before.len(), TUNNELS);
    let mut times = Vec::new();
    for (spi, action) in [
        (0x2002, Action::Add(key_of(0x2002, dir.path()))),
        (0x1002, Action::Switch(key_of(0x1002, dir.path()))),
        (0x2001, Action::Retire),
    ] {
        let begun = std::time::Instant::now();
        gateway.rekey(Change { tunnel: "t".into(), spi, action }).unwrap();
        times.push(begun.elapsed());
        gateway.tick().unwrap();
    }
    println!("one change among {TUNNELS} tunnels took {times:?}");
    let after = &gateway.tables().sas;
    let same = after.iter().filter(|sa| before.iter().any(|old| std::sync::Arc::ptr_eq(old, sa))).count();
    assert_eq!((after.len(), same), (TUNNELS, TUNNELS - 1));
    assert_eq!(gateway.tables().tunnels[0].sa.as_ref().unwrap().spi, 0x1002);
    assert!(gateway.stop().balances());
}
