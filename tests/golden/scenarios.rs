//! What happens to the gateways of `pipelines/`: named packets, from hosts that answer ARP.

#[path = "vpn.rs"]
pub mod vpn;

use std::{collections::BTreeMap, path::Path};

use causeway::{
    config::{self, Config},
    control::ports::derived_mac,
};

use super::{Case, read, root};
use crate::common::{frame::*, hex, key};

/// Captures start at a round second of 2026, so that a reader finds packets by their times.
const START: u64 = 1_767_225_600_000_000_000;
const MS: u64 = 1_000_000;

/// A station on a port, and what it sends.
struct Station<'a> {
    scene: &'a mut Scene,
    port: &'static str,
    tags: Tagged,
    mac: Mac,
}

/// A case in the making. Each frame comes ten milliseconds after the one before.
struct Scene {
    config: Config,
    case: Case,
    now: u64,
}

impl Scene {
    fn new(pipeline: &'static str, file: &'static str, name: &str) -> Self {
        let path = root().join("pipelines").join(pipeline).join(file);
        let environment = |name: &str| Some(hex(&key(name)));
        let text = std::fs::read_to_string(&path).unwrap();
        let config = config::parse(Path::new(&path), &text, &environment).unwrap().0;
        let case = Case { pipeline, file, name: name.into(), inputs: BTreeMap::new() };
        Self { config, case, now: START }
    }

    fn mac(&self, port: &str) -> Mac {
        let found = self.config.ports.iter().find(|known| known.name.value.as_str() == port).unwrap();
        derived_mac(&self.config, found).0
    }

    fn put(&mut self, port: &'static str, bytes: Vec<u8>) {
        self.now += 10 * MS;
        let mut bytes = bytes;
        bytes.resize(bytes.len().max(60), 0);
        self.case.inputs.entry(port).or_default().push((self.now, bytes));
    }

    fn at(&mut self, port: &'static str, vlan: u16, last: u8) -> Station<'_> {
        Station { port, tags: vec![(CUSTOMER, vlan)], mac: [2, 0, 0, 0, 0xee, last], scene: self }
    }
}

impl Station<'_> {
    fn arp(&mut self, own: &str, gateway: &str) -> &mut Self {
        let request = arp(1, (self.mac, own), ([0; 6], gateway));
        self.scene.put(self.port, frame(BROADCAST, self.mac, &self.tags, ARP, &request));
        self
    }

    fn send(&mut self, packet: &Ip) -> &mut Self {
        self.raw(&packet.bytes())
    }

    fn send_all(&mut self, packets: &[Ip]) {
        for packet in packets {
            self.send(packet);
        }
    }

    fn raw(&mut self, packet: &[u8]) -> &mut Self {
        let gateway = self.scene.mac(self.port);
        let ether_type = if packet[0] >> 4 == 6 { IPV6 } else { IPV4 };
        self.scene.put(self.port, frame(gateway, self.mac, &self.tags, ether_type, packet));
        self
    }
}

/// A ping, a TCP segment and a datagram each way that has an own meaning to NAT and policies.
fn conversation(from: &str, to: &str) -> Vec<Ip> {
    vec![
        ping(from, to, 1),
        tcp(from, to, (40_000, 443), b"GET / HTTP/1.1\r\n\r\n").df(),
        udp(from, to, (5_353, 53), &[0x55; 301]).tos(0xb8),
    ]
}

/// Packets with something wrong, from a host to an address that a good packet would reach.
fn troubles(station: &mut Station<'_>, from: &str, to: &str) {
    station.send(&udp(from, to, (1, 2), b"the last hop").ttl(1));
    let mut bad = udp(from, to, (1, 2), b"checksum").bytes();
    bad[10] ^= 0xff;
    station.raw(&bad);
    station.send(&tcp(from, to, (1, 2), &[7; 1460]).df());
    station.send(&udp(from, to, (1, 2), &[8; 1472]));
    let own = station.tags.clone();
    station.tags = vec![(CUSTOMER, 999)];
    station.send(&udp(from, to, (1, 2), b"a VLAN of nobody"));
    station.tags = own;
    station.send(&udp("127.0.0.1", to, (1, 2), b"a martian"));
}

fn idc() -> Case {
    let mut scene = Scene::new("site-to-site", "idc.toml", "idc-to-cloud");
    scene.at("wan", 100, 2).arp("192.0.2.2", "192.0.2.1");
    let mut host = scene.at("lan", 10, 9);
    host.arp("10.1.0.9", "10.1.0.1").send(&ping("10.1.0.9", "10.1.0.1", 1));
    host.send_all(&conversation("10.1.0.9", "203.0.113.10"));
    troubles(&mut host, "10.1.0.9", "203.0.113.10");
    host.send(&udp("10.1.0.9", "8.8.8.8", (1, 2), b"no route"));
    // A host behind the router that nobody has heard of yet.
    host.send(&udp("10.1.0.9", "10.1.5.5", (1, 2), b"who has the router?"));
    scene.case
}

/// The cloud's box gets what the data centre's box has sent.
fn cloud(idc: &Case) -> Case {
    let mut scene = Scene::new("site-to-site", "cloud.toml", "cloud-from-idc");
    let mut server = scene.at("vpc", 20, 10);
    server.arp("10.2.0.10", "10.2.0.1");
    let sent = idc.directory().join("wan.expect.pcap");
    let sealed = read(&sent).into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes[27] == ESP);
    let sealed: Vec<_> = sealed.collect();
    scene.at("wan", 100, 1).arp("192.0.2.1", "192.0.2.2");
    let (own, other) = (scene.mac("wan"), [2, 0, 0, 0, 0xee, 1]);
    for bytes in &sealed {
        let mut bytes = bytes.clone();
        bytes[..6].copy_from_slice(&own);
        bytes[6..12].copy_from_slice(&other);
        scene.put("wan", bytes);
    }
    // One of them again, one with another sequence number, and one in the clear.
    let mut again = sealed[0].clone();
    again[..6].copy_from_slice(&own);
    scene.put("wan", again.clone());
    *again.last_mut().unwrap() ^= 1;
    again[45] = 77;
    scene.put("wan", again);
    scene.at("wan", 100, 1).send(&ping("10.1.0.9", "203.0.113.10", 9));
    let mut server = scene.at("vpc", 20, 10);
    server.send_all(&conversation("10.2.0.10", "10.1.0.9"));
    troubles(&mut server, "10.2.0.10", "10.1.0.9");
    // A server without a rule is covered by no policy.
    server.send(&udp("10.2.0.20", "10.1.0.9", (1, 2), b"not mapped"));
    scene.case
}

fn direct_connect() -> Case {
    let mut scene = Scene::new("direct-connect", "gateway.toml", "two-lines");
    scene.at("line-a", 301, 1).arp("192.0.2.1", "192.0.2.2");
    scene.at("line-b", 302, 5).arp("192.0.2.5", "192.0.2.6");
    let mut vpc = scene.at("vpc", 20, 10);
    vpc.arp("10.2.0.10", "10.2.0.1").arp("10.2.0.254", "10.2.0.1");
    vpc.send_all(&conversation("10.2.0.10", "10.1.0.9"));
    vpc.send_all(&conversation("10.2.9.9", "10.3.0.9"));
    troubles(&mut vpc, "10.2.0.10", "10.3.0.9");
    vpc.send(&ping("10.2.0.10", "10.2.0.1", 3));
    let mut line = scene.at("line-a", 301, 1);
    line.send_all(&conversation("10.1.0.9", "203.0.113.10"));
    line.send(&udp("10.1.0.9", "10.2.77.7", (1, 2), b"behind the VPC's router"));
    // One data centre does not reach the other, and a router on the line reports a translated packet.
    line.send(&udp("10.1.0.9", "10.3.0.9", (1, 2), b"transit"));
    let seen = tcp("203.0.113.10", "10.1.0.9", (40_000, 443), b"GET / HTTP/1.1\r\n\r\n").df().forwarded();
    line.send(&icmp("192.0.2.1", "203.0.113.10", 3, 4, [0, 0, 5, 0], &seen[..28]));
    // Nobody is at this address.
    line.send(&udp("10.1.0.9", "10.2.0.99", (1, 2), b"anybody?"));
    scene.case
}

/// Both parties are 10.0.0.0/16: what is told apart by translated addresses, ports and conditions.
fn nat_overlap() -> Case {
    let mut scene = Scene::new("nat-overlap", "gateway.toml", "two-parties");
    scene.at("line", 301, 1).arp("192.0.2.1", "192.0.2.2");
    let mut vpc = scene.at("vpc", 20, 2);
    vpc.arp("100.64.0.2", "100.64.0.1");
    // A server with an address of its own, a host of the pool, and mail, each to the host that has its own address.
    vpc.send_all(&conversation("10.0.0.10", "198.18.0.10"));
    vpc.send_all(&conversation("10.0.0.9", "198.18.0.9"));
    vpc.send(&tcp("10.0.0.25", "198.18.0.25", (40_000, 25), b"EHLO"));
    vpc.send(&tcp("10.0.0.25", "198.18.0.25", (40_000, 26), b"not mail"));
    vpc.send(&icmp("10.0.0.9", "198.18.0.9", 0, 0, [0, 9, 0, 9], b"an answer to nothing"));
    // In fragments, the last one first.
    let whole = udp("10.0.0.9", "198.18.0.77", (5_353, 53), &[0x66; 40]);
    let (first, last) = whole.payload.split_at(24);
    vpc.send(&Ip { offset: 24, payload: last.to_vec(), ..whole.clone() });
    vpc.send(&Ip { more: true, payload: first.to_vec(), ..whole.clone() });
    // A host of the VPC calls the web service by its outside address.
    vpc.send(&tcp("10.0.0.9", "203.0.113.80", (41_000, 443), b"hairpin"));
    troubles(&mut vpc, "10.0.0.9", "198.18.0.9");
    let mut line = scene.at("line", 301, 1);
    line.send_all(&conversation("10.0.0.9", "203.0.113.10"));
    line.send(&tcp("10.0.0.9", "203.0.113.80", (40_000, 443), b"GET / HTTP/1.1\r\n\r\n"));
    line.send(&tcp("10.0.0.9", "203.0.113.80", (40_000, 80), b"nobody is here"));
    line.send(&udp("10.0.0.9", "203.0.113.17", (53, 5_353), b"an answer to nothing"));
    scene.at("vpc", 20, 2).send(&tcp("10.0.0.80", "198.18.0.9", (8_443, 40_000), b"HTTP/1.1 200 OK\r\n\r\n"));
    scene.case
}

fn bench_forward() -> Case {
    let mut scene = Scene::new("bench-forward", "gateway.toml", "sixteen-routes");
    scene.at("out", 20, 2).arp("198.18.1.2", "198.18.1.1");
    let mut generator = scene.at("in", 10, 9);
    generator.arp("198.18.0.9", "198.18.0.1");
    for network in 0..16 {
        let to = format!("198.19.{}.{}", network * 16 + 7, network);
        generator.send(&udp("198.18.0.9", &to, (network, 9), &[0; 18]));
    }
    troubles(&mut generator, "198.18.0.9", "198.19.0.1");
    scene.at("out", 20, 2).send(&udp("198.19.0.1", "198.18.0.9", (9, 9), b"and back"));
    scene.case
}

fn bench_gateway() -> Case {
    let mut scene = Scene::new("bench-gateway", "gateway.toml", "all-of-it");
    scene.at("wan", 100, 1).arp("192.0.2.1", "192.0.2.2");
    let mut server = scene.at("vpc", 20, 10);
    server.arp("10.2.3.4", "10.2.0.1");
    server.send_all(&conversation("10.2.3.4", "10.1.0.9"));
    troubles(&mut server, "10.2.3.4", "10.1.0.9");
    server.send(&tcp("10.2.3.4", "10.1.0.9", (1, 23), b"telnet"));
    server.send(&udp("10.2.3.4", "10.4.0.9", (1, 2), b"into a hole"));
    server.send(&udp("10.2.3.4", "10.3.0.9", (1, 2), b"in the clear"));
    server.send(&udp("10.2.3.4", "9.9.9.9", (1, 2), b"to the Internet"));
    scene.at("wan", 100, 1).send(&udp("9.9.9.9", "198.18.3.4", (2, 1), b"and back"));
    scene.case
}

/// One that needs no other.
pub fn first() -> Case {
    idc()
}

/// Every case, those that others are made from first.
pub fn cases() -> Vec<Case> {
    let idc = idc();
    // With UPDATE_GOLDEN what the first sends is new too.
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        super::check(&idc, true);
    }
    let cloud = cloud(&idc);
    let mut all = vec![idc, cloud, direct_connect(), nat_overlap(), bench_forward(), bench_gateway()];
    all.extend(vpn::cases(std::env::var_os("UPDATE_GOLDEN").is_some()));
    all
}
