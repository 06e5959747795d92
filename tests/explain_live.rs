//! `causeway explain --live`: what a running gateway says by its own tables, and that it is not disturbed by it.

#[path = "common/frame.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod frame;

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use causeway::{
    config,
    control::{
        explain,
        gateway::{Gateway, StartOptions},
        limits::{self, LimitChange, LimitRequest},
        rekey::{Action, Change},
    },
    io::mem::{MemPort, wire},
    packet::DropReason,
    stats::{Reader, counters::group},
};
use frame::*;
use serde_json::Value;

const CONFIG: &str = r#"
[system]
name = "live"
buffers = 8192
huge_pages = "never"
nat_sessions = 8192
run_dir = "DIR/run"
state = "DIR/state"
[port.lan]
driver = "memory"
ring = 64
mac = "02:00:00:00:00:01"
[port.wan]
driver = "memory"
ring = 64
mac = "02:00:00:00:00:02"
[gateway.g]
prefixes = ["10.1.0.0/16"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24"]
[interface.wan]
port = "wan"
gateway = "g"
side = "peer"
addresses = ["192.0.2.1/30"]
[tunnel.t]
gateway = "g"
local = "192.0.2.1"
remote = "192.0.2.2"
out = { spi = 0x1001, key = { env = "OUT" } }
in = [{ spi = 0x2001, key = { env = "IN" } }]
[[gateway.g.policy]]
name = "to-other"
action = "protect"
tunnel = "t"
source = ["10.1.0.0/16"]
destination = ["10.2.0.0/16"]
[[gateway.g.nat]]
name = "web"
kind = "pool"
translated = "203.0.113.9"
destination = ["198.51.100.0/24"]
[[gateway.g.route]]
to = "198.51.100.0/24"
via = "192.0.2.2"
"#;

const OWN: [Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const HOST: [Mac; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
/// How long to wait for what must come. Reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

struct Live {
    gateway: Gateway,
    ends: [MemPort; 2],
    dir: tempfile::TempDir,
}

fn key(name: &str) -> Option<String> {
    let byte = name.bytes().fold(1u8, u8::wrapping_add);
    Some(format!("{byte:02x}").repeat(20))
}

impl Live {
    fn new() -> Self {
        Self::with("")
    }

    /// With `more` sections in the file.
    fn with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = CONFIG.replace("DIR", dir.path().to_str().unwrap()) + more;
        let config = config::parse(Path::new("live.toml"), &text, &key);
        let config = config.unwrap_or_else(|errors| panic!("{}", errors.to_json())).0;
        let ((lan, lan_end), (wan, wan_end)) = (wire(256), wire(256));
        let wires = HashMap::from([("lan".to_string(), vec![lan]), ("wan".to_string(), vec![wan])]);
        let options = StartOptions { new_state: true, wires, ..StartOptions::default() };
        let gateway = Gateway::start(config, options).unwrap();
        let mut live = Self { gateway, ends: [lan_end, wan_end], dir };
        // Both neighbours say who they are.
        for (port, address, own) in [(0, "10.1.0.9", "10.1.0.1"), (1, "192.0.2.2", "192.0.2.1")] {
            let asked = arp(1, (HOST[port], address), ([0; 6], own));
            assert!(live.ends[port].send(&frame::frame(BROADCAST, HOST[port], &[], ARP, &asked)));
            let known =
                |live: &Live| live.gateway.tables().neighbours.iter().any(|n| n.mac == Some(HOST[port]));
            live.until(known);
        }
        live.ends.iter().for_each(|end| while end.receive().is_some() {});
        live
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !done(self) {
            assert!(since.elapsed() < PATIENCE);
            self.gateway.run_for(Duration::from_millis(2));
        }
    }

    /// Sends a packet into a port, and gives the first IP packet that comes out of another.
    fn through(&mut self, from: usize, packet: &Ip, to: usize) -> Ip {
        assert!(self.ends[from].send(&frame::frame(OWN[from], HOST[from], &[], IPV4, &packet.bytes())));
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < PATIENCE, "nothing came out");
            self.gateway.run_for(Duration::from_millis(1));
            while let Some(bytes) = self.ends[to].receive() {
                let frame = read_frame(&bytes);
                if frame.ether_type == IPV4 {
                    return Ip::read(&frame.payload);
                }
            }
        }
    }

    /// The steps' text, one a line, and the verdict.
    fn ask(&self, words: &str) -> (String, Value) {
        let told = explain::ask(&self.gateway, words).unwrap();
        let steps = told["steps"].as_array().unwrap().iter();
        let text: Vec<String> =
            steps.map(|s| format!("{}: {}", s["stage"], s["text"]).replace('"', "")).collect();
        (text.join("\n"), told["verdict"].clone())
    }

    /// All that the workers count of packets.
    fn counts(&self) -> Vec<u64> {
        let reader = Reader::open(&self.dir.path().join("run/stats")).unwrap();
        let drops = DropReason::ALL.iter().map(|reason| reader.sum(group::DROP, reason.name()));
        let of = |group, column| reader.total(group, 0, column);
        let others = [
            of(group::POLICY, "out_packets"),
            of(group::TUNNEL, "out_packets"),
            of(group::SA, "packets"),
            reader.sum(group::INTERFACE, "out_packets"),
            reader.sum(group::WORKER, "received"),
        ];
        drops.chain(others).collect()
    }
}

const TO_OTHER: &str = "from 10.1.0.9 to 10.2.0.9 udp 1000>9 in g";

fn assert_says(said: &(String, Value), result: &str, parts: &[&str]) {
    let (text, verdict) = said;
    assert_eq!(verdict["result"], result, "{text}\n{verdict}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
}

#[test]
fn it_goes_by_the_keys_path_and_neighbours_of_the_moment() {
    let mut live = Live::new();
    let number = |live: &Live| live.gateway.tables().tunnels[0].sa.as_ref().unwrap().sequence.next();
    let before = (number(&live), live.counts());
    let said = live.ask(TO_OTHER);
    let generation = format!("tables as they are now (number {})", live.gateway.tables().generation);
    assert_says(
        &said,
        "forwarded",
        &[
            "running gateway live",
            &generation,
            "policy to-other",
            "SPI 0x1001, 192.0.2.1 to 192.0.2.2",
            "inside udp from 10.1.0.9:1000 to 10.2.0.9:9, 60 bytes",
            "it takes up to 1446 bytes",
        ],
    );
    // A smaller path was found since the start, by an error about our own ESP.
    let now = live.gateway.now();
    live.gateway.tables().tunnels[0].path.lower(1300, now);
    let said = live.ask(TO_OTHER);
    assert_says(
        &said,
        "forwarded",
        &["it takes up to 1246 bytes", "the path was found to take no more than 1300"],
    );
    let said = live.ask(&format!("{TO_OTHER} size 1300 df"));
    assert_says(&said, "dropped", &["policy to-other"]);
    assert_eq!(said.1["reason"], "packet-too-big");
    // A neighbour that nobody has heard of.
    let said = live.ask("from 198.51.100.7 to 10.1.0.77 udp 9 in g from-peer");
    assert_says(&said, "waits", &["neighbour: 10.1.0.77 on interface lan has not told its link address"]);
    // A new key by command.
    let file = live.dir.path().join("new.key");
    std::fs::write(&file, "42".repeat(20)).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let action = Action::Switch(config::Key::read(&file).unwrap());
    assert_eq!((number(&live), live.counts()), before, "it was only asked");
    live.gateway.rekey(Change { tunnel: "t".into(), spi: 0x1002, action }).unwrap();
    assert_says(&live.ask(TO_OTHER), "forwarded", &["SPI 0x1002"]);
    assert_eq!(number(&live), 1, "of the new key, too, no number was used");
    // The key's life is over.
    live.gateway.built().associations[0].set_ended(true);
    let said = live.ask(TO_OTHER);
    assert_eq!(said.1["reason"], "esp-expired", "{}", said.0);
    // Nothing has left the gateway for any of it.
    live.gateway.run_for(Duration::from_millis(5));
    let sent: Vec<_> =
        live.ends.iter().filter_map(MemPort::receive).filter(|f| read_frame(f).ether_type == IPV4).collect();
    assert!(sent.is_empty(), "{sent:02x?}");
    assert!(live.gateway.stop().balances());
}

#[test]
fn it_knows_the_sessions_of_nat() {
    let mut live = Live::new();
    let reply = |to: &str, port: u16| format!("from 198.51.100.7 to {to} udp 53>{port} in g from-peer");
    assert_eq!(live.ask(&reply("203.0.113.9", 40_000)).1["result"], "dropped");
    let sent = live.through(0, &udp("10.1.0.9", "198.51.100.7", (5000, 53), b"?"), 1);
    assert_eq!(sent.src.to_string(), "203.0.113.9");
    let port = u16::from_be_bytes([sent.payload[0], sent.payload[1]]);
    let counts = live.counts();
    let text = format!("10.1.0.9:5000 appears as 203.0.113.9:{port} to 198.51.100.7:53");
    let becomes = format!("source 10.1.0.9:5000 becomes 203.0.113.9:{port}: rule web");
    let said = live.ask("from 10.1.0.9 to 198.51.100.7 udp 5000>53 in g");
    assert_says(&said, "forwarded", &["session of rule web", &text, &becomes]);
    let said = live.ask(&reply("203.0.113.9", port));
    let becomes = format!("destination 203.0.113.9:{port} becomes 10.1.0.9:5000: rule web");
    assert_says(&said, "forwarded", &["session of rule web", &becomes]);
    // Of another peer it is not.
    assert_eq!(
        live.ask(&format!("from 198.51.100.8 to 203.0.113.9 udp 53>{port} in g from-peer")).1["result"],
        "dropped"
    );
    assert_eq!(live.counts(), counts);
    let rows = live.gateway.nat_sessions(None, &Default::default(), 0, 16);
    assert_eq!(rows["ok"]["rows"].as_array().unwrap().len(), 1, "no session was made by asking");
    assert!(live.gateway.stop().balances());
}

#[test]
fn limits_are_told_with_what_is_there_and_nothing_is_charged() {
    let mut live =
        Live::with("[gateway.g.limit]\nout = \"10Mbps\"\n[gateway.g.address_limit]\nout = \"5Mbps\"\n");
    let counts = live.counts();
    for _ in 0..2 {
        let said = live.ask(TO_OTHER);
        assert_says(
            &said,
            "forwarded",
            &[
                "limit of address 10.1.0.9 of gateway g, out: 5Mbps at most, 5000 bytes at once",
                "limit of gateway g, out: 10Mbps at most, 10000 bytes at once; 10000 bytes are there now",
            ],
        );
        assert!(!said.0.contains("by command"), "{}", said.0);
    }
    assert_eq!(live.counts(), counts);
    let known = &live.gateway.built().limits.limits;
    assert!(known.addresses_of(0).unwrap().table.is_empty(), "no address was entered by asking");
    // One byte in 8 ms: what is sent now is spent.
    let request = LimitRequest {
        limit: LimitChange::Set,
        gateway: Some("g".into()),
        outwards: Some("1kbps".into()),
        ..LimitRequest::default()
    };
    let answer = limits::change(&mut live.gateway, &request);
    assert_eq!(answer["ok"], "in force", "{answer}");
    let said = live.ask(TO_OTHER);
    assert_says(
        &said,
        "forwarded",
        &["limit of gateway g, out: 1kbps at most, 4096 bytes at once, set by command; 4096"],
    );
    let payload = [0; 1000];
    for _ in 0..3 {
        live.through(0, &udp("10.1.0.9", "198.51.100.7", (5000, 53), &payload), 1);
    }
    let said = live.ask(&format!("{TO_OTHER} size 1400"));
    assert_says(&said, "forwarded", &["limit of gateway g, out: 1kbps", "it is spent:"]);
    assert!(live.gateway.stop().balances());
}

#[test]
fn what_is_wrong_is_said() {
    let live = Live::new();
    for (words, says) in [
        ("from 10.1.0.9 to 10.2.0.9 tpc 1>2 in g", "Did you mean tcp?"),
        ("from 10.1.0.9 to 10.2.0.9 tcp 1>2 in h", "There are: g"),
        ("from 10.1.0.9 to 10.2.0.9 tcp 1>2 in g size 9000", "1500 what port lan takes"),
    ] {
        let error = explain::ask(&live.gateway, words).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    assert!(live.gateway.stop().balances());
}
