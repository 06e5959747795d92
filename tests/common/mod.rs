//! A gateway on a bench: its configuration is a text, its ports are wires in memory, its time is the test's.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod frame;

use std::{net::IpAddr, path::Path, time::Duration};

use causeway::{
    config::{self, Config, build::Ephemeral},
    control::{ports::derived_mac, single::Single},
    io::mem::{MemPort, wire},
    packet::DropReason,
    table::hash::Seed,
};
use frame::*;

/// The key that the variable `name` holds: of 32 bytes and salt where the name ends in 256, otherwise of 16.
pub fn key(name: &str) -> Vec<u8> {
    let len = if name.ends_with("256") { 36 } else { 20 };
    let seed = name.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    (0..len).map(|i: u8| seed.wrapping_add(i.wrapping_mul(11))).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// `[system]` of a gateway on a bench.
pub fn system(buffers: usize) -> String {
    format!("[system]\nname = \"bench\"\nbuffers = {buffers}\nhuge_pages = \"never\"\n")
}

/// A configuration with what all gateways on a bench have in common in front, as far as it does not say so itself:
/// `[system]`, and a port in memory for every port that an interface names.
fn whole(text: &str) -> String {
    let mut head = if text.contains("[system]") { String::new() } else { system(1024) };
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("port = \"").and_then(|rest| rest.strip_suffix('"')) {
            let section = format!("[port.{name}]\n");
            if !head.contains(&section) && !text.contains(&section) {
                head += &format!("{section}driver = \"memory\"\nring = 64\n");
            }
        }
    }
    // The system first: its section must not end up among the keys of another.
    if text.contains("[system]") { format!("{text}\n{head}") } else { format!("{head}{text}") }
}

/// A gateway on a bench. When it goes, every packet must be accounted for.
pub struct Lab {
    pub single: Single<MemPort>,
    pub config: Config,
    ends: Vec<MemPort>,
    now: u64,
    /// Drops as they were when they were last asked for.
    seen: Vec<u64>,
}

/// A host, or a router, on a port of the gateway.
#[derive(Debug, Clone)]
pub struct Host {
    pub port: usize,
    pub tags: Tagged,
    pub mac: Mac,
    pub gateway: Mac,
}

impl Host {
    /// The packet in a frame to the gateway.
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let ether_type = if packet[0] >> 4 == 6 { IPV6 } else { IPV4 };
        frame(self.gateway, self.mac, &self.tags, ether_type, packet)
    }
}

/// What drops are part of every test: packets that did their work.
const WORK: [DropReason; 3] =
    [DropReason::ArpConsumed, DropReason::NeighbourDiscoveryConsumed, DropReason::FragmentReassembled];

impl Lab {
    /// A gateway; its text need not say what all have in common, see [`whole`]. Keys come from variables of any name,
    /// see [`key`].
    pub fn new(text: &str) -> Self {
        Self::with(text, &|name: &str| Some(hex(&key(name))))
    }

    pub fn with(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Self {
        let environment = |name: &str| environment(name);
        let config = match config::parse(Path::new("/bench/bench.toml"), &whole(text), &environment) {
            Ok((config, _)) => config,
            Err(errors) => panic!("{}", errors.to_json()),
        };
        let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
        let (ports, ends) = config.ports.iter().map(|_| wire(1024)).unzip();
        let single =
            Single::new(&config, &macs, &mut Ephemeral::default(), Seed::new(1, 2), |_| ports).unwrap();
        Self { single, config, ends, now: 1_000_000_000, seen: vec![0; DropReason::COUNT] }
    }

    /// Takes up another configuration, as a reload does.
    pub fn reload(&mut self, text: &str) {
        let config =
            match config::parse(Path::new("/bench/bench.toml"), text, &|name: &str| Some(hex(&key(name)))) {
                Ok((config, _)) => config,
                Err(errors) => panic!("{}", errors.to_json()),
            };
        let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
        self.single.reload(&config, &macs, &mut Ephemeral::default(), self.now).unwrap();
        self.config = config;
        self.run();
    }

    fn port(&self, name: &str) -> usize {
        self.config.ports.iter().position(|port| port.name.value.as_str() == name).unwrap()
    }

    /// A host on a port, behind tags of 802.1Q (one) or 802.1ad and 802.1Q (two).
    pub fn host(&self, port: &str, vlans: &[u16], last: u8) -> Host {
        let port = self.port(port);
        let tags = match *vlans {
            [] => vec![],
            [one] => vec![(CUSTOMER, one)],
            [outer, inner] => vec![(SERVICE, outer), (CUSTOMER, inner)],
            _ => panic!("three tags"),
        };
        let gateway = derived_mac(&self.config, &self.config.ports[port]).0;
        Host { port, tags, mac: [2, 0, 0, 0, 0xee, last], gateway }
    }

    /// A host on a port, that is known by these addresses; each stands with the gateway's own on the link.
    pub fn neighbour(&mut self, port: &str, vlans: &[u16], last: u8, addresses: &[(&str, &str)]) -> Host {
        let host = self.host(port, vlans, last);
        for (address, own) in addresses {
            self.meet(&host, address, own);
        }
        host
    }

    /// Makes a host known: it asks for the gateway's address on its link, `own`, and is answered.
    pub fn meet(&mut self, host: &Host, address: &str, own: &str) {
        let asked = if address.contains(':') {
            host.frame(&discovery(135, 0, own, Some(host.mac), address, own).bytes())
        } else {
            frame(BROADCAST, host.mac, &host.tags, ARP, &arp(1, (host.mac, address), ([0; 6], own)))
        };
        self.send(host.port, &asked);
        let answers = self.frames(host);
        assert_eq!(answers.len(), 1, "{address} asked for {own}: {answers:02x?}");
        self.dropped();
    }

    /// The same for a host that others wait for: whatever comes for it then stays there.
    pub fn meet_quietly(&mut self, host: &Host, address: &str, own: &str) {
        let asked = arp(1, (host.mac, address), ([0; 6], own));
        self.send(host.port, &frame(BROADCAST, host.mac, &host.tags, ARP, &asked));
    }

    /// Puts a frame on a port's wire and lets the gateway work.
    pub fn send(&mut self, port: usize, bytes: &[u8]) {
        assert!(self.ends[port].send(bytes));
        self.run();
    }

    /// Puts a frame on a port's wire.
    pub fn put(&mut self, port: usize, bytes: &[u8]) {
        assert!(self.ends[port].send(bytes));
    }

    /// Sends a packet from a host to the gateway.
    pub fn from(&mut self, host: &Host, packet: &[u8]) {
        self.send(host.port, &host.frame(packet));
    }

    /// Lets the gateway work for one round.
    pub fn step(&mut self) {
        self.single.step(self.now);
    }

    /// Lets the gateway work until it rests.
    pub fn run(&mut self) {
        self.single.settle(self.now, 10_000);
        self.check();
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time.as_nanos() as u64;
        while self.now < end {
            self.now += 100_000_000;
            self.run();
        }
    }

    /// Lets time pass of which nobody notices anything but the clock.
    pub fn elapse(&mut self, time: Duration) {
        self.now += time.as_nanos() as u64;
    }

    /// Lets a short time pass, and the gateway work once.
    pub fn advance(&mut self, time: Duration) {
        self.now += time.as_nanos() as u64;
        self.run();
    }

    /// Nanoseconds on the gateway's clock.
    pub fn now(&self) -> u64 {
        self.now
    }

    pub fn announce(&mut self) {
        self.single.announce(self.now);
        self.run();
    }

    /// Every frame that stands at a port.
    pub fn raw(&mut self, port: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.ends[port].receive()).collect()
    }

    /// Frames for a host: to its address or to all, with its tags, and from the port's address.
    pub fn frames(&mut self, host: &Host) -> Vec<Frame> {
        let frames: Vec<_> = self.raw(host.port).iter().map(|bytes| read_frame(bytes)).collect();
        let mine =
            |frame: &Frame| frame.tags == host.tags && (frame.dst == host.mac || frame.dst[0] & 1 == 1);
        for frame in &frames {
            assert_eq!(frame.src, host.gateway, "{frame:02x?}");
        }
        frames.into_iter().filter(mine).collect()
    }

    /// IP packets for a host, as they are.
    pub fn packets(&mut self, host: &Host) -> Vec<Vec<u8>> {
        let ip = |frame: &Frame| matches!(frame.ether_type, IPV4 | IPV6) && frame.dst == host.mac;
        self.frames(host).into_iter().filter(ip).map(|frame| frame.payload).collect()
    }

    /// The one packet for a host.
    pub fn one(&mut self, host: &Host) -> Vec<u8> {
        let mut packets = self.packets(host);
        let dropped = self.dropped();
        assert_eq!(packets.len(), 1, "{packets:02x?}; dropped: {dropped:?}");
        packets.remove(0)
    }

    /// Drops since they were last asked for, by name, but for packets that did their work.
    pub fn dropped(&mut self) -> Vec<(&'static str, u64)> {
        let mut all = Vec::new();
        for (reason, seen) in DropReason::ALL.iter().zip(&mut self.seen) {
            let count = self.single.worker.counters().read_drops(*reason);
            if count > *seen && !WORK.contains(reason) {
                all.push((reason.name(), count - *seen));
            }
            *seen = count;
        }
        all
    }

    /// Drops for a reason since the start.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.single.worker.counters().read_drops(reason)
    }

    /// Every packet is somewhere, and every frame.
    pub fn check(&mut self) {
        let ledger = self.single.worker.ledger();
        assert!(ledger.balances(), "{ledger:?}");
        assert_eq!(self.single.worker.frames_missing(), 0);
    }

    /// The gateway's address that a host on an interface sees.
    pub fn own(&self, interface: &str) -> Vec<IpAddr> {
        let found = self.config.interfaces.iter().find(|i| i.name.value.as_str() == interface).unwrap();
        found.addresses.iter().map(|a| a.value.address).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.check();
        self.single.worker.end(self.now);
        self.check();
        assert_eq!(self.single.worker.ledger().waiting, 0);
        let pool = self.single.worker.pool_mut();
        assert_eq!(pool.available(), pool.owned());
    }
}

/// A wire between ports of two gateways: carries frames both ways until both rest.
pub fn ferry(one: (&mut Lab, &str), other: (&mut Lab, &str)) {
    let (a, b) = (one.0.port(one.1), other.0.port(other.1));
    for _ in 0..64 {
        let (there, back) = (one.0.raw(a), other.0.raw(b));
        if there.is_empty() && back.is_empty() {
            return;
        }
        there.iter().for_each(|bytes| other.0.send(b, bytes));
        back.iter().for_each(|bytes| one.0.send(a, bytes));
    }
    panic!("two gateways talk without an end");
}
