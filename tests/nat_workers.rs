//! NAT with two workers, each a thread with its own queues: what comes to the wrong one finds its session all the same.

#[path = "common/frame.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod frame;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    time::{Duration, Instant},
};

use causeway::{
    config,
    control::gateway::{Gateway, StartOptions},
    io::mem::{MemPort, wire},
    packet::DropReason,
    stats::{WorkerColumn, WorkerCounters},
};
use frame::*;

const CONFIG: &str = r#"
[system]
name = "two"
cores = CORES
buffers = 16384
huge_pages = "never"
nat_sessions = 8192
run_dir = "RUN"
[port.vpc]
driver = "memory"
mac = "02:00:00:00:00:01"
[port.wan]
driver = "memory"
mac = "02:00:00:00:00:02"
[gateway.vpc]
prefixes = ["10.2.0.0/16"]
nat_udp_timeout = "2s"
nat_icmp_timeout = "2s"
nat_tcp_transitory_timeout = "2s"
[interface.vpc]
port = "vpc"
vlan = 20
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.1/30"]
[[gateway.vpc.nat]]
kind = "port"
protocol = "tcp"
original = "10.2.0.10"
original_port = 8080
translated = "203.0.113.80"
translated_port = 80
[[gateway.vpc.nat]]
kind = "pool"
translated = ["203.0.113.16", "203.0.113.18-203.0.113.19"]
ports = "PORTS"
[[gateway.vpc.route]]
to = "10.1.0.0/16"
via = "192.0.2.2"
[[gateway.vpc.route]]
to = "10.2.0.0/16"
via = "10.2.0.254"
"#;

const GATEWAY: [Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const ROUTER: [Mac; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
const VLAN: [u16; 2] = [20, 100];
/// Numbers of the ports.
const VPC: usize = 0;
const WAN: usize = 1;
/// How long to wait for what must come. Reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway with two workers. `ends[port][worker]`: what is on the other end of the wire.
struct Two {
    gateway: Option<Gateway>,
    ends: [Vec<MemPort>; 2],
    random: u64,
    _folder: tempfile::TempDir,
}

impl Two {
    fn new(ports: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cores: Vec<usize> =
            core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).take(2).collect();
        assert_eq!(cores.len(), 2, "two workers want two cores");
        let text = CONFIG.replace("RUN", folder.path().to_str().unwrap()).replace("PORTS", ports);
        let text = text.replace("CORES", &format!("{cores:?}"));
        let config = config::parse(Path::new("two.toml"), &text, &|_: &str| None);
        let config = config.unwrap_or_else(|errors| panic!("{}", errors.to_json())).0;
        let mut options = StartOptions::default();
        let mut ends = [Vec::new(), Vec::new()];
        for (port, name) in ["vpc", "wan"].into_iter().enumerate() {
            let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| wire(1024)).unzip();
            options.wires.insert(name.into(), theirs);
            ends[port] = ours;
        }
        let gateway = Some(Gateway::start(config, options).unwrap());
        let mut two = Self { gateway, ends, random: 88_172_645_463_325_252, _folder: folder };
        let stations = [
            (VPC, "10.2.0.254", "10.2.0.1", 1),
            (VPC, "10.2.0.10", "10.2.0.1", 2),
            (WAN, "192.0.2.2", "192.0.2.1", 1),
        ];
        for (port, router, own, known) in stations {
            let asked = arp(1, (ROUTER[port], router), ([0; 6], own));
            let bytes = frame::frame(BROADCAST, ROUTER[port], &[(CUSTOMER, VLAN[port])], ARP, &asked);
            let since = Instant::now();
            let is_ours = |mac: Option<Mac>| mac == Some(ROUTER[port]);
            while two.gateway().tables().neighbours.iter().filter(|n| is_ours(n.mac)).count() < known {
                assert!(since.elapsed() < PATIENCE, "{router} is not known");
                assert!(two.ends[port][0].send(&bytes));
                two.rest(Duration::from_millis(20));
            }
        }
        two.ends.iter().flatten().for_each(|end| while end.receive().is_some() {});
        two
    }

    fn gateway(&mut self) -> &mut Gateway {
        self.gateway.as_mut().unwrap()
    }

    fn rest(&mut self, time: Duration) {
        self.gateway().run_for(time);
    }

    fn below(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize % n
    }

    /// Puts a packet on a port's wire to one of the workers.
    fn send(&mut self, port: usize, worker: usize, packet: &[u8]) {
        let bytes = frame::frame(GATEWAY[port], ROUTER[port], &[(CUSTOMER, VLAN[port])], IPV4, packet);
        let since = Instant::now();
        while !self.ends[port][worker].send(&bytes) {
            assert!(since.elapsed() < PATIENCE, "the wire stays full");
            self.rest(Duration::from_millis(1));
        }
    }

    /// What has come out of a port, in the order of each worker.
    fn received(&mut self, port: usize) -> Vec<Ip> {
        let mut packets = Vec::new();
        for end in &self.ends[port] {
            while let Some(bytes) = end.receive() {
                let frame = read_frame(&bytes);
                if frame.ether_type == IPV4 {
                    packets.push(Ip::read(&frame.payload));
                } else if frame.ether_type == ARP && frame.payload[7] == 1 {
                    // The gateway asks whether a router is still there. Where the wire is full, it asks again.
                    let address = |at: usize| {
                        let octets: [u8; 4] = frame.payload[at..at + 4].try_into().unwrap();
                        std::net::Ipv4Addr::from(octets).to_string()
                    };
                    let (own, router) = (address(14), address(24));
                    let answer = arp(2, (ROUTER[port], &router), (GATEWAY[port], &own));
                    let tags = [(CUSTOMER, VLAN[port])];
                    let _ = end.send(&frame::frame(GATEWAY[port], ROUTER[port], &tags, ARP, &answer));
                }
            }
        }
        packets
    }

    /// Waits until so many packets have come out of a port.
    #[track_caller]
    fn wait_for(&mut self, port: usize, count: usize) -> Vec<Ip> {
        let (since, mut packets) = (Instant::now(), Vec::new());
        while packets.len() < count {
            assert!(since.elapsed() < PATIENCE, "{} of {count} came; {:?}", packets.len(), self.drops());
            self.rest(Duration::from_millis(1));
            packets.extend(self.received(port));
        }
        packets
    }

    fn counters(&mut self) -> [WorkerCounters; 2] {
        let segment = self.gateway().segment();
        [WorkerCounters::new(segment, 0), WorkerCounters::new(segment, 1)]
    }

    fn drops(&mut self) -> BTreeMap<&'static str, u64> {
        let counters = self.counters();
        let of = |reason: &DropReason| counters.iter().map(|c| c.read_drops(*reason)).sum::<u64>();
        let all = DropReason::ALL.iter().map(|reason| (reason.name(), of(reason)));
        all.filter(|(name, count)| *count > 0 && *name != "arp-consumed").collect()
    }

    fn count(&mut self, column: WorkerColumn) -> u64 {
        self.counters().iter().map(|c| c.read_worker(column)).sum()
    }

    /// Ends it: every packet and every buffer is accounted for.
    fn end(mut self) {
        let summary = self.gateway.take().unwrap().stop();
        assert!(summary.balances(), "{summary:?}");
        let total = summary.total();
        assert_eq!((total.handed_over, total.waiting), (total.taken_over, 0), "{summary:?}");
    }
}

fn ports(packet: &Ip) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes(packet.payload[at..at + 2].try_into().unwrap());
    (word(0), word(2))
}

/// Which worker a NIC would choose for a flow.
fn queue(text: &str) -> usize {
    text.bytes().fold(5_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) / 7 % 2
}

#[test]
fn answers_find_their_session_whichever_worker_they_come_to() {
    let mut two = Two::new("1024-65535");
    let mut bindings: HashMap<_, u32> = HashMap::new();
    for round in 0..40_u32 {
        let mut sent = BTreeMap::new();
        for n in 0..100_u32 {
            let flow = round * 100 + n;
            let (host, port) = (format!("10.2.9.{}", 100 + flow % 50), 3000 + (flow / 50) as u16);
            let packet = udp(&host, &format!("10.1.0.{}", flow % 3), (port, 53), &flow.to_be_bytes());
            two.send(VPC, queue(&format!("{host}{port}")), &packet.bytes());
            sent.insert(flow, (host, port));
        }
        let out = two.wait_for(WAN, 100);
        assert_eq!(out.len(), 100);
        for packet in &out {
            let flow = u32::from_be_bytes(packet.payload[8..12].try_into().unwrap());
            // No binding is ever used by two sessions at once.
            let binding = (packet.src, ports(packet).0, packet.dst);
            assert_eq!(bindings.insert(binding, flow), None, "{binding:?} twice");
            let back = udp(
                &packet.dst.to_string(),
                &packet.src.to_string(),
                (53, ports(packet).0),
                &flow.to_be_bytes(),
            );
            let worker = two.below(2);
            two.send(WAN, worker, &back.bytes());
        }
        let home = two.wait_for(VPC, 100);
        for packet in &home {
            let flow = u32::from_be_bytes(packet.payload[8..12].try_into().unwrap());
            let (host, port) = &sent[&flow];
            assert_eq!((packet.dst.to_string(), ports(packet)), (host.clone(), (53, *port)));
        }
    }
    assert_eq!(two.drops(), BTreeMap::new());
    assert!(two.count(WorkerColumn::HandedOver) > 1000);
    two.end();
}

#[test]
fn a_mapped_service_is_reached_and_answers_through_either_worker() {
    let mut two = Two::new("1024-65535");
    for n in 0..300_u16 {
        let (remote, port) = (format!("10.1.0.{}", n % 7), 2000 + n);
        let worker = two.below(2);
        two.send(WAN, worker, &tcp(&remote, "203.0.113.80", (port, 80), &n.to_be_bytes()).bytes());
    }
    let calls = two.wait_for(VPC, 300);
    for call in &calls {
        assert_eq!((call.dst.to_string(), ports(call).1), ("10.2.0.10".into(), 8080));
        let answer = tcp("10.2.0.10", &call.src.to_string(), (8080, ports(call).0), b"!");
        let worker = two.below(2);
        two.send(VPC, worker, &answer.bytes());
    }
    let answers = two.wait_for(WAN, 300);
    let seen: BTreeSet<_> = answers.iter().map(|a| (a.src.to_string(), ports(a).0, ports(a).1)).collect();
    assert_eq!(seen.len(), 300);
    assert!(seen.iter().all(|(source, port, _)| source == "203.0.113.80" && *port == 80));
    assert_eq!((two.drops(), two.count(WorkerColumn::NatMade)), (BTreeMap::new(), 300));
    two.end();
}

#[test]
fn fragments_and_errors_are_put_together_from_both_workers() {
    let mut two = Two::new("1024-65535");
    for n in 0..100_u16 {
        // A session by a whole packet, which the NIC spreads by ports.
        let (host, remote) = ("10.2.9.77", "10.1.0.9");
        let whole = udp(host, remote, (4000 + n, 53), b"first");
        let own = two.below(2);
        two.send(VPC, own, &whole.bytes());
        let seen = two.wait_for(WAN, 1).remove(0);
        // Then one in fragments, which come anywhere and in any order.
        let large = udp(host, remote, (4000 + n, 53), &[n as u8; 90]);
        let mut parts: Vec<Ip> = large
            .payload
            .chunks(32)
            .enumerate()
            .map(|(i, part)| Ip {
                id: n,
                offset: 32 * i as u16,
                more: i < 3,
                payload: part.to_vec(),
                ..large.clone()
            })
            .collect();
        assert_eq!(parts.len(), 4);
        for _ in 0..4 {
            let part = two.below(parts.len());
            let worker = two.below(2);
            two.send(VPC, worker, &parts.swap_remove(part).bytes());
        }
        let mut out = two.wait_for(WAN, 4);
        out.sort_by_key(|part| part.offset);
        let payload: Vec<u8> = out.iter().flat_map(|part| part.payload.clone()).collect();
        let whole = Ip::read(&Ip { more: false, offset: 0, payload, ..out[0].clone() }.bytes());
        assert_eq!((whole.src, ports(&whole)), (seen.src, ports(&seen)), "one flow, one session");
        // Errors from outside and from inside, to the wrong worker as often as not.
        let error = icmp("10.1.9.9", &seen.src.to_string(), 3, 3, [0; 4], &seen.bytes()[..28]);
        let worker = two.below(2);
        two.send(WAN, worker, &error.bytes());
        let told = two.wait_for(VPC, 1).remove(0);
        assert_eq!(
            (told.dst.to_string(), &told.payload[28..30]),
            (host.into(), &(4000 + n).to_be_bytes()[..])
        );
        let home = udp(remote, host, (53, 4000 + n), b"answer");
        let error = icmp(host, remote, 3, 3, [0; 4], &home.bytes()[..28]);
        let worker = two.below(2);
        two.send(VPC, worker, &error.bytes());
        let told = two.wait_for(WAN, 1).remove(0);
        assert_eq!((told.src, &told.payload[30..32]), (seen.src, &ports(&seen).0.to_be_bytes()[..]));
    }
    assert_eq!((two.drops(), two.count(WorkerColumn::NatMade)), (BTreeMap::new(), 100));
    two.end();
}

/// A datagram in fragments, whose pieces come anywhere and in any order, and at the same time a whole packet of the same
/// new flow: one session, whoever is first. Whole packets come to one worker, which need not be the session's.
#[test]
fn a_flow_begun_in_fragments_has_one_session() {
    let mut two = Two::new("1024-65535");
    for n in 0..200_u16 {
        let (host, remote) = ("10.2.9.77", "10.1.0.9");
        let large = udp(host, remote, (4000 + n, 53), &[n as u8; 90]);
        let mut parts: Vec<Ip> = Vec::new();
        for (i, part) in large.payload.chunks(32).enumerate() {
            let (offset, payload) = (32 * i as u16, part.to_vec());
            parts.push(Ip { id: n, offset, more: i < 3, payload, ..large.clone() });
        }
        let whole = udp(host, remote, (4000 + n, 53), b"whole");
        parts.push(whole.clone());
        let home = two.below(2);
        for _ in 0..5 {
            let part = parts.swap_remove(two.below(parts.len()));
            let worker = if part.more || part.offset > 0 { two.below(2) } else { home };
            two.send(VPC, worker, &part.bytes());
        }
        let out = two.wait_for(WAN, 5);
        let (first, alone): (Vec<&Ip>, Vec<&Ip>) =
            out.iter().filter(|part| part.offset == 0).partition(|part| part.more);
        assert_eq!((first[0].src, ports(first[0])), (alone[0].src, ports(alone[0])));
        assert!(out.iter().all(|part| part.src == first[0].src));
        two.send(VPC, home, &whole.bytes());
        let again = two.wait_for(WAN, 1).remove(0);
        assert_eq!((again.src, ports(&again)), (first[0].src, ports(first[0])));
        assert_eq!(two.count(WorkerColumn::NatMade), u64::from(n) + 1);
    }
    // They end, and then the flow is whosever it comes to.
    two.rest(Duration::from_millis(3500));
    assert_eq!(two.count(WorkerColumn::NatSessions), 0);
    for n in 0..20_u16 {
        let before = two.count(WorkerColumn::HandedOver);
        let worker = two.below(2);
        two.send(VPC, worker, &udp("10.2.9.77", "10.1.0.9", (4000 + n, 53), b"new").bytes());
        two.wait_for(WAN, 1);
        assert_eq!(two.count(WorkerColumn::HandedOver), before);
    }
    assert_eq!(two.drops(), BTreeMap::new());
    two.end();
}

/// Errors in fragments, too, whichever worker each piece comes to.
#[test]
fn errors_in_fragments_find_their_session() {
    let mut two = Two::new("1024-65535");
    for n in 0..60_u16 {
        let (host, remote) = ("10.2.9.77", "10.1.0.9");
        let own = two.below(2);
        two.send(VPC, own, &udp(host, remote, (4000 + n, 53), &[1; 200]).bytes());
        let seen = two.wait_for(WAN, 1).remove(0);
        let home = udp(remote, host, (53, 4000 + n), &[2; 200]);
        for (error, from, to, expected) in [
            (
                icmp("10.1.9.9", &seen.src.to_string(), 3, 3, [0; 4], &seen.bytes()),
                WAN,
                VPC,
                host.to_string(),
            ),
            (icmp(host, remote, 3, 3, [0; 4], &home.bytes()), VPC, WAN, remote.to_string()),
        ] {
            let parts: Vec<Ip> = error
                .payload
                .chunks(80)
                .enumerate()
                .map(|(i, part)| Ip {
                    id: n,
                    offset: 80 * i as u16,
                    more: i < 2,
                    payload: part.to_vec(),
                    ..error.clone()
                })
                .collect();
            assert_eq!(parts.len(), 3);
            let order = [[0, 1, 2], [2, 1, 0], [1, 0, 2]][usize::from(n % 3)];
            for part in order {
                let worker = two.below(2);
                two.send(from, worker, &parts[part].bytes());
            }
            let told = two.wait_for(to, 3);
            assert!(told.iter().all(|part| part.dst.to_string() == expected), "{told:?}");
            let sources: BTreeSet<_> = told.iter().map(|part| part.src).collect();
            assert_eq!(sources.len(), 1);
        }
    }
    assert_eq!(two.drops(), BTreeMap::new());
    two.end();
}

/// More flows than the table holds and the ports allow, with answers that come to either worker: what finds no room is
/// dropped and counted, every binding is one session's, every answer goes to who asked, and in the end all are gone.
/// With `NAT_SOAK_SECONDS` for as long as it says.
#[test]
fn a_full_table_with_churn_loses_nothing_but_what_it_says() {
    let soak = std::env::var("NAT_SOAK_SECONDS").ok().map(|text| Duration::from_secs(text.parse().unwrap()));
    let mut two = Two::new("2000-2999");
    let (mut sent, mut came, mut answered) = (0_u64, 0_u64, 0_u64);
    let life = Duration::from_millis(1990);
    let mut live: HashMap<_, (u32, Duration)> = HashMap::new();
    let start = Instant::now();
    let mut round = 0_u32;
    // Where a flow comes from, and where it goes.
    let host = |flow: u32| (format!("10.2.9.{}", 20 + flow % 200), 4000 + (flow / 200) as u16);
    while soak.map_or(round < 60, |soak| start.elapsed() < soak) {
        for _ in 0..500 {
            let flow = two.below(20_000) as u32;
            let (host, port) = host(flow);
            let data = [&flow.to_be_bytes()[..], &(start.elapsed().as_nanos() as u64).to_be_bytes()].concat();
            let packet = udp(&host, &format!("10.1.0.{}", flow % 4), (port, 53), &data);
            two.send(VPC, queue(&format!("{host}{port}")), &packet.bytes());
            sent += 1;
        }
        two.rest(Duration::from_millis(if round % 20 == 19 { 2500 } else { 5 }));
        // Whose it is, and when the packet set out that says so.
        let of = |packet: &Ip| {
            let flow = u32::from_be_bytes(packet.payload[8..12].try_into().unwrap());
            let nanos = u64::from_be_bytes(packet.payload[12..20].try_into().unwrap());
            (flow, Duration::from_nanos(nanos))
        };
        for packet in two.received(WAN) {
            came += 1;
            let (flow, since) = of(&packet);
            let binding = (packet.src, ports(&packet).0, packet.dst);
            // Another flow has it only when the time of the first one is over: counted from when its packet was sent,
            // which was before it went through.
            if let Some((other, last)) = live.insert(binding, (flow, since))
                && other != flow
            {
                assert!(start.elapsed() - last > life, "{binding:?} of {other} and {flow}");
            }
            if flow % 4 == round % 4 {
                let (from, to) = (packet.dst.to_string(), packet.src.to_string());
                let back = udp(&from, &to, (53, ports(&packet).0), &packet.payload[8..20]);
                let worker = two.below(2);
                two.send(WAN, worker, &back.bytes());
                (sent, answered) = (sent + 1, answered + 1);
            }
        }
        for packet in two.received(VPC) {
            came += 1;
            let (flow, since) = of(&packet);
            let there = (packet.dst.to_string(), ports(&packet).1);
            assert!(there == host(flow) || start.elapsed() - since > life, "{flow} answered at {there:?}");
        }
        let sessions = two.count(WorkerColumn::NatSessions);
        assert!(sessions <= 8192 + 2, "{sessions}");
        round += 1;
    }
    two.rest(Duration::from_millis(3500));
    came += (two.received(WAN).len() + two.received(VPC).len()) as u64;
    let drops = two.drops();
    let known = ["nat-table-full", "nat-ports-exhausted", "nat-handover-full", "nat-no-session"];
    assert!(drops.keys().all(|name| known.contains(name)), "{drops:?}");
    assert_eq!(came + drops.values().sum::<u64>(), sent, "{drops:?}");
    assert!(drops.contains_key("nat-table-full"), "{drops:?}");
    assert_eq!(two.count(WorkerColumn::NatSessions), 0);
    println!(
        "{round} rounds in {:?}: {sent} packets, {answered} of them answers; {} sessions made, {} packets handed over; {drops:?}",
        start.elapsed(),
        two.count(WorkerColumn::NatMade),
        two.count(WorkerColumn::HandedOver),
    );
    two.end();
}
