//! No sequence number twice under one key: with several workers in one tunnel, over reloads, changes of keys and
//! restarts. What is sealed is read where it leaves, on the wire.

mod common;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    thread,
};

use causeway::{
    config::{self, Config},
    control::{
        gateway::{Gateway, StartError, StartOptions},
        ports::derived_mac,
    },
    crypto::sequence::StateError,
    io::mem::{MemPort, wire},
};
use common::{frame::*, *};

const SEALING: u32 = 0x1001;

fn text(dir: &Path, workers: usize, spi: u32, more: &str) -> String {
    let cores = if workers == 2 { "cores = [0, 1]" } else { "" };
    format!(
        r#"
[system]
name = "nonces"
buffers = 4096
huge_pages = "never"
{cores}
run_dir = "{run_dir}"
state = "{state}"
[port.lan]
driver = "memory"
[port.wan]
driver = "memory"
mtu = 1600
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
out = {{ spi = {spi}, key = {{ env = "OUT" }} }}
in = [{{ spi = 0x2001, key = {{ env = "IN" }} }}]
[[gateway.g.route]]
to = "10.2.0.0/16"
tunnel = "t"
{more}
"#,
        run_dir = dir.join("run").display(),
        state = dir.join("state").display(),
    )
}

fn parse(text: &str) -> Config {
    let environment = |name: &str| Some(hex(&key(name)));
    match config::parse(Path::new("/bench/bench.toml"), text, &environment) {
        Ok((config, _)) => config,
        Err(errors) => panic!("{}", errors.to_json()),
    }
}

/// A gateway, and the far ends of its wires: one for each worker.
struct Rig {
    gateway: Gateway,
    hosts: Vec<MemPort>,
    routers: Vec<MemPort>,
    macs: (Mac, Mac),
    sent: u32,
}

const ROUTER: Mac = [2, 0, 0, 0, 0xee, 2];
const HOST: Mac = [2, 0, 0, 0, 0xee, 1];

/// Every number that was ever sealed with, under whatever SPI: the key stays.
#[derive(Default)]
struct Seen {
    numbers: HashSet<u32>,
    /// The last number of each worker's wire, under one SPI.
    last: HashMap<(usize, u32), u32>,
    packets: usize,
}

impl Rig {
    fn start(config: Config, workers: usize, new_state: bool) -> Result<Self, StartError> {
        let macs = (derived_mac(&config, &config.ports[0]).0, derived_mac(&config, &config.ports[1]).0);
        let wires = || (0..workers).map(|_| wire(1024)).unzip::<_, _, Vec<_>, Vec<_>>();
        let ((lan, hosts), (wan, routers)) = (wires(), wires());
        let wires = HashMap::from([("lan".to_string(), lan), ("wan".to_string(), wan)]);
        let gateway = Gateway::start(config, StartOptions { new_state, wires, ..StartOptions::default() })?;
        Ok(Self { gateway, hosts, routers, macs, sent: 0 })
    }

    /// Sends a packet to every worker and waits until it is out: while the router is not known they wait apart.
    fn find_router(&mut self, seen: &mut Seen) {
        for worker in 0..self.hosts.len() {
            let packet = udp("10.1.0.9", "10.2.0.9", (7, 9), &[0; 4]);
            assert!(self.hosts[worker].send(&frame(self.macs.0, HOST, &[], IPV4, &packet.bytes())));
            self.sent += 1;
            while !seen.last.keys().any(|(known, _)| *known == worker) {
                self.gateway.tick().unwrap();
                self.read(seen);
                thread::yield_now();
            }
        }
    }

    /// Sends packets to every worker, and reads what it seals.
    fn flow(&mut self, packets: usize, seen: &mut Seen) {
        if seen.last.is_empty() {
            self.find_router(seen);
        }
        let until = seen.packets + packets;
        while seen.packets < until {
            for host in &self.hosts {
                // No more than the wires hold.
                for _ in 0..20 {
                    if (self.sent as usize - seen.packets) < 800 {
                        let packet = udp("10.1.0.9", "10.2.0.9", (7, 9), &self.sent.to_be_bytes());
                        assert!(host.send(&frame(self.macs.0, HOST, &[], IPV4, &packet.bytes())));
                        self.sent += 1;
                    }
                }
                while host.receive().is_some() {}
            }
            self.gateway.tick().unwrap();
            self.read(seen);
            thread::yield_now();
        }
    }

    fn read(&self, seen: &mut Seen) {
        for (worker, router) in self.routers.iter().enumerate() {
            while let Some(bytes) = router.receive() {
                let got = read_frame(&bytes);
                if got.ether_type == ARP {
                    let answer = arp(2, (ROUTER, "192.0.2.2"), (self.macs.1, "192.0.2.1"));
                    assert!(router.send(&frame(self.macs.1, ROUTER, &[], ARP, &answer)));
                    continue;
                }
                let esp = &got.payload[20..];
                let word = |at: usize| u32::from_be_bytes(esp[at..at + 4].try_into().unwrap());
                let (spi, number) = (word(0), word(4));
                assert_eq!(word(12), number, "the vector is the number");
                assert!(seen.numbers.insert(number), "number {number} came twice");
                let last = seen.last.insert((worker, spi), number);
                assert!(last.is_none_or(|last| last < number), "worker {worker}: {number} after {last:?}");
                seen.packets += 1;
            }
        }
    }

    fn stop(self, seen: &mut Seen) {
        let Self { gateway, routers, hosts, macs, sent } = self;
        let summary = gateway.stop();
        assert!(summary.balances(), "{summary:?}");
        // What was sealed last is on the wires.
        let mut last = Vec::new();
        for router in &routers {
            while let Some(bytes) = router.receive() {
                let got = read_frame(&bytes);
                if got.ether_type != ARP {
                    last.push(u32::from_be_bytes(got.payload[24..28].try_into().unwrap()));
                }
            }
        }
        for number in last {
            assert!(seen.numbers.insert(number), "number {number} came twice");
            seen.packets += 1;
        }
        seen.last.clear();
        let _ = (hosts, macs, sent);
    }
}

/// Two, where there are cores for them.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(2))
}

#[test]
fn workers_share_a_tunnel_over_reloads_new_names_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    let workers = workers();
    let config = |spi, more: &str| parse(&text(dir.path(), workers, spi, more));
    let mut rig = Rig::start(config(SEALING, ""), workers, true).unwrap();
    rig.flow(5_000, &mut seen);
    for round in 0..5 {
        // A route more; then the same key under another SPI, which is the same key.
        let more = format!("[[gateway.g.route]]\nto = \"10.{}.0.0/16\"\ntunnel = \"t\"\n", 50 + round);
        rig.gateway.reload(config(SEALING, &more)).unwrap();
        rig.flow(2_000, &mut seen);
        rig.gateway.reload(config(SEALING + 1 + round, "")).unwrap();
        rig.flow(2_000, &mut seen);
    }
    for _ in 0..3 {
        rig.stop(&mut seen);
        rig = Rig::start(config(SEALING, ""), workers, false).unwrap();
        // Its own counts begin again.
        rig.sent = seen.packets as u32;
        rig.flow(2_000, &mut seen);
    }
    if workers == 2 {
        let used: HashSet<usize> = seen.last.keys().map(|(worker, _)| *worker).collect();
        assert_eq!(used.len(), 2, "both workers have sealed");
    }
    rig.stop(&mut seen);
    assert!(seen.numbers.len() == seen.packets && seen.packets >= 31_000);
}

#[test]
fn a_state_that_is_lost_or_copied_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    let config = || parse(&text(dir.path(), 1, SEALING, ""));
    let refused = |wanted: fn(&StateError) -> bool, words: &str| match Rig::start(config(), 1, false).err() {
        Some(StartError::State(error)) => {
            assert!(wanted(&error), "{error}");
            let text = error.to_string();
            assert!(text.contains(words) && text.contains("--new-state"), "{text}");
        }
        other => panic!("{other:?}"),
    };
    refused(|error| matches!(error, StateError::Missing { .. }), "is missing");
    let mut rig = Rig::start(config(), 1, true).unwrap();
    rig.flow(500, &mut seen);
    rig.stop(&mut seen);
    let state = dir.path().join("state");
    let backup = dir.path().join("backup");
    std::fs::copy(&state, &backup).unwrap();
    let mut rig = Rig::start(config(), 1, false).unwrap();
    rig.sent = seen.packets as u32;
    rig.flow(500, &mut seen);
    rig.stop(&mut seen);
    // The backup comes back in the place of the file.
    std::fs::rename(&state, dir.path().join("newer")).unwrap();
    std::fs::rename(&backup, &state).unwrap();
    refused(|error| matches!(error, StateError::Copied { .. }), "is a copy");
    std::fs::remove_file(&state).unwrap();
    refused(|error| matches!(error, StateError::Missing { .. }), "is missing");
    // The file itself, moved back, is good.
    std::fs::rename(dir.path().join("newer"), &state).unwrap();
    let mut rig = Rig::start(config(), 1, false).unwrap();
    rig.sent = seen.packets as u32;
    rig.flow(500, &mut seen);
    rig.stop(&mut seen);
}
