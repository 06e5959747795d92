//! The demo in memory: the same two gateways, joined by wires of this process, between hosts of a few lines each.

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use super::{
    Demo, DemoError, Interrupt,
    gateways::{CLOUD, IDC, Keys, cores, settled},
    machine::{IDC_HOST, VPC_HOST, VPC_HOST_SEEN},
    pattern::Pattern,
    place::{self, Place},
    report::{Report, Udp, Way},
    summary::{GatewayEnd, Summary},
    view::View,
};
use crate::{
    cli::run::Account,
    config,
    control::gateway::{Gateway, StartOptions, TICK, segment_path},
    io::mem::{MemPort, wire},
    stats::Reader,
    wire::{
        arp,
        checksum::Sum,
        ethernet::{EtherType, MacAddr},
        icmpv4, ip, ipv4, udp,
        vlan::{L2, L2Header, Tag, TagKind, Tags, VlanId},
    },
};

/// Packets that a wire holds each way.
const WIRE: usize = 4096;
/// Bytes of data in a datagram.
const DATAGRAM: usize = 1400;
/// Megabits a second of UDP.
const MBPS: u64 = 200;
const PORT: u16 = 5201;
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// What is on its way has arrived by then.
const GRACE: Duration = Duration::from_millis(200);
/// How long the first ping may take. The traffic starts then all the same, and shows what is wrong.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Identifier of the pings.
const IDENTIFIER: u16 = 0xca05;

/// What a host received.
#[derive(Debug, PartialEq, Eq)]
enum Arrival {
    /// The answer to an echo request, by its sequence number.
    Answer(u16),
    /// A datagram: who it is from, and whether its data are what was sent.
    Datagram { from: Ipv4Addr, intact: bool },
}

/// A host on a VLAN with one router.
#[derive(Debug)]
struct Host {
    port: MemPort,
    mac: MacAddr,
    address: Ipv4Addr,
    router: Ipv4Addr,
    router_mac: Option<MacAddr>,
    tags: Tags,
}

impl Host {
    fn new(port: MemPort, number: u8, vlan: u16, address: Ipv4Addr, router: Ipv4Addr) -> Self {
        let id = VlanId::new(vlan).unwrap_or(VlanId::UNTAGGED);
        let tags = Tags::One(Tag::new(TagKind::Customer, id, 0, false));
        Self { port, mac: MacAddr([2, 0, 0, 0, 0, number]), address, router, router_mac: None, tags }
    }

    /// Sends a frame. A full wire loses it, as a full link would.
    fn frame(&self, to: MacAddr, kind: EtherType, payload: &[u8]) -> bool {
        let mut frame = L2Header::new(to, self.mac, self.tags, kind).as_bytes().to_vec();
        frame.extend_from_slice(payload);
        frame.resize(frame.len().max(60), 0);
        self.port.send(&frame)
    }

    fn arp(&self, to: MacAddr, packet: &arp::Repr) {
        let mut bytes = [0; arp::PACKET_LEN];
        packet.emit(&mut bytes);
        let _ = self.frame(to, EtherType::ARP, &bytes);
    }

    fn ask_for_router(&self) {
        self.arp(MacAddr::BROADCAST, &arp::Repr::request(self.mac, self.address, self.router));
    }

    /// Sends an IP packet by the router. `false`: the router is not known, or the wire is full.
    fn packet(&self, protocol: u8, to: Ipv4Addr, payload: &[u8]) -> bool {
        let Some(mac) = self.router_mac else { return false };
        let header = ipv4::Repr {
            traffic_class: 0,
            total_len: (ipv4::HEADER_LEN + payload.len()) as u16,
            identification: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            protocol,
            source: self.address,
            destination: to,
        };
        let mut bytes = [0; ipv4::HEADER_LEN];
        header.emit(&mut bytes);
        self.frame(mac, EtherType::IPV4, &[&bytes, payload].concat())
    }

    fn datagram(&self, to: Ipv4Addr, number: u64) -> bool {
        let mut data = vec![0; DATAGRAM];
        let (head, rest) = data.split_at_mut(8);
        head.copy_from_slice(&number.to_be_bytes());
        Pattern::new(number).fill(rest);
        let length = (udp::HEADER_LEN + DATAGRAM) as u16;
        let header = udp::Repr { source_port: PORT, destination_port: PORT, length };
        let mut bytes = [0; udp::HEADER_LEN];
        let pseudo = Sum::pseudo_v4(self.address, to, ip::protocol::UDP, length);
        header.emit_with_checksum(&mut bytes, &data, pseudo);
        self.packet(ip::protocol::UDP, to, &[&bytes[..], &data].concat())
    }

    fn ping(&self, to: Ipv4Addr, sequence: u16) -> bool {
        let mut message = [0x5a; 64];
        let _ = icmpv4::Repr::EchoRequest { identifier: IDENTIFIER, sequence }.emit(&mut message);
        self.packet(ip::protocol::ICMPV4, to, &message)
    }

    /// Receives what has come, and answers what wants an answer.
    fn receive(&mut self, mut arrived: impl FnMut(Arrival)) {
        while let Some(frame) = self.port.receive() {
            let Ok(link) = L2::parse(&frame) else { continue };
            let (own, payload) = (link.destination == self.mac, frame.get(link.header_len()..));
            if link.tags != self.tags || !own && !link.destination.is_broadcast() {
                continue;
            }
            match link.ether_type {
                EtherType::ARP => self.resolve(payload.unwrap_or_default()),
                EtherType::IPV4 if own => self.internet(payload.unwrap_or_default(), &mut arrived),
                _ => {}
            }
        }
    }

    fn resolve(&mut self, bytes: &[u8]) {
        let Ok(packet) = arp::Repr::parse(bytes) else { return };
        if packet.sender_ip == self.router {
            self.router_mac = Some(packet.sender_mac);
        }
        if packet.operation == arp::Operation::Request && packet.target_ip == self.address {
            self.arp(packet.sender_mac, &packet.reply(self.mac));
        }
    }

    fn internet(&self, bytes: &[u8], arrived: &mut impl FnMut(Arrival)) {
        let Ok(packet) = ipv4::parse(bytes) else { return };
        let (from, to) = (packet.header.source(), packet.header.destination());
        if to != self.address {
            return;
        }
        if packet.header.protocol() == ip::protocol::UDP {
            let Ok(datagram) = udp::parse(packet.payload) else { return };
            let pseudo = Sum::pseudo_v4(from, to, ip::protocol::UDP, packet.payload.len() as u16);
            let mut data = datagram.payload.to_vec();
            let numbered = data.split_first_chunk_mut::<8>();
            let intact = datagram.is_checksum_valid(pseudo)
                && numbered.is_some_and(|(n, rest)| Pattern::new(u64::from_be_bytes(*n)).matches(rest));
            arrived(Arrival::Datagram { from, intact });
        } else if packet.header.protocol() == ip::protocol::ICMPV4 {
            let Ok(message) = icmpv4::parse(packet.payload) else { return };
            match icmpv4::Repr::parse(&message.header) {
                Some(icmpv4::Repr::EchoRequest { identifier, sequence }) => {
                    let mut answer = packet.payload.to_vec();
                    let _ = icmpv4::Repr::EchoReply { identifier, sequence }.emit(&mut answer);
                    let _ = self.packet(ip::protocol::ICMPV4, from, &answer);
                }
                Some(icmpv4::Repr::EchoReply { identifier: IDENTIFIER, sequence }) => {
                    arrived(Arrival::Answer(sequence));
                }
                _ => {}
            }
        }
    }
}

/// Both hosts, and what they see.
struct Hosts {
    idc: Host,
    vpc: Host,
    seen: Ipv4Addr,
    report: Report,
    pings: HashMap<u16, Instant>,
    next_ping: Instant,
    started: Instant,
    /// When the first answer came.
    start: Instant,
    /// How long datagrams are sent each way.
    each: Duration,
}

impl Hosts {
    fn new(idc: MemPort, vpc: MemPort, seconds: u64) -> Option<Self> {
        let now = Instant::now();
        let address = |text: &str| text.parse::<Ipv4Addr>().ok();
        Some(Self {
            idc: Host::new(idc, 1, 10, address(IDC_HOST)?, Ipv4Addr::new(10, 1, 0, 1)),
            vpc: Host::new(vpc, 2, 20, address(VPC_HOST)?, Ipv4Addr::new(10, 2, 0, 1)),
            seen: address(VPC_HOST_SEEN)?,
            report: Report::default(),
            pings: HashMap::new(),
            next_ping: now,
            started: now,
            start: now,
            each: Duration::from_secs(seconds) / 2,
        })
    }

    /// Sends what is due, and takes what has come.
    fn round(&mut self) {
        let now = Instant::now();
        // Time starts when the neighbours are known: a queue for what waits for one is short.
        if self.report.ping.answered == 0 && self.started.elapsed() < FIRST_ANSWER {
            self.start = now;
        }
        let elapsed = now.duration_since(self.start);
        if now >= self.next_ping && elapsed < self.each * 2 {
            self.next_ping = now + PING_INTERVAL;
            self.ping(now);
        }
        if elapsed.is_zero() {
            return self.receive();
        }
        let way = (elapsed.as_nanos() / self.each.as_nanos().max(1)) as u32;
        match way {
            0 => self.datagrams(Way::ToCloud, elapsed),
            1 => self.datagrams(Way::ToIdc, elapsed - self.each),
            _ => {}
        }
        self.receive();
        if elapsed > self.each * 2 + GRACE {
            self.report.udp.iter_mut().for_each(|udp| udp.received = Some(udp.progress));
            self.report.done = true;
        }
    }

    fn ping(&mut self, now: Instant) {
        for host in [&self.idc, &self.vpc] {
            if host.router_mac.is_none() {
                host.ask_for_router();
            }
        }
        let sequence = (self.report.ping.sent + 1) as u16;
        if self.idc.ping(self.seen, sequence) {
            self.report.ping.sent += 1;
            self.pings.insert(sequence, now);
        }
    }

    /// Sends datagrams up to what is due after `elapsed` of their time.
    fn datagrams(&mut self, way: Way, elapsed: Duration) {
        let (from, to) = match way {
            Way::ToCloud => (&self.idc, self.seen),
            Way::ToIdc => (&self.vpc, self.idc.address),
        };
        if from.router_mac.is_none() {
            return;
        }
        if self.report.udp.last().is_none_or(|udp| udp.way != way) {
            let size = DATAGRAM as u64;
            let stream =
                Udp { way, sent: Some(0), received: None, wrong: 0, progress: 0, size, seconds: 0.0 };
            self.report.udp.push(stream);
        }
        let Some(udp) = self.report.udp.last_mut() else { return };
        udp.seconds = elapsed.as_secs_f64();
        let due = elapsed.as_micros() as u64 * (MBPS * 1_000_000 / 8 / DATAGRAM as u64) / 1_000_000;
        let sent = udp.sent.get_or_insert(0);
        while *sent < due && from.datagram(to, *sent) {
            *sent += 1;
        }
    }

    fn receive(&mut self) {
        let Self { idc, vpc, report, pings, seen, .. } = self;
        let address = idc.address;
        let count = |report: &mut Report, way: Way, good: bool| {
            if let Some(udp) = report.udp.iter_mut().find(|udp| udp.way == way) {
                udp.progress += u64::from(good);
                udp.wrong += u64::from(!good);
            }
        };
        vpc.receive(|arrival| {
            if let Arrival::Datagram { from, intact } = arrival {
                count(report, Way::ToCloud, intact && from == address);
            }
        });
        idc.receive(|arrival| match arrival {
            // The other host is known by its address in the data centre: that is NAT.
            Arrival::Datagram { from, intact } => count(report, Way::ToIdc, intact && from == *seen),
            Arrival::Answer(sequence) => {
                if let Some(since) = pings.remove(&sequence) {
                    report.ping.answer(since.elapsed());
                }
            }
        });
    }
}

/// A configuration whose ports are memory, wherever they were devices.
fn in_memory(text: &str) -> String {
    let device = |line: &&str| !line.starts_with("device = ");
    text.lines()
        .filter(device)
        .collect::<Vec<_>>()
        .join("\n")
        .replace("driver = \"xdp\"", "driver = \"memory\"")
}

/// The gateway of a configuration, with its wires.
fn start(
    text: &str,
    core: usize,
    run_dir: &Path,
    keys: &Keys,
    wires: Vec<(&str, MemPort)>,
) -> Result<(Gateway, Reader), DemoError> {
    fs::create_dir_all(run_dir).map_err(|error| DemoError::Failed(error.to_string()))?;
    let environment = |name: &str| keys.get(name);
    let text = settled(&in_memory(text), core, run_dir);
    let (config, _) = config::parse(&run_dir.join("gateway.toml"), &text, &environment)
        .map_err(|errors| DemoError::Failed(format!("the built-in configuration is wrong: {errors:?}")))?;
    let wires = wires.into_iter().map(|(port, end)| (port.to_string(), vec![end])).collect();
    let gateway = Gateway::start(config, StartOptions { new_state: true, wires, ..StartOptions::default() })?;
    let reader =
        Reader::open(&segment_path(run_dir)).map_err(|error| DemoError::Failed(error.to_string()))?;
    Ok((gateway, reader))
}

/// Runs the demo.
///
/// # Errors
/// [`DemoError`]; nothing is left behind, whatever happens.
pub fn run(args: &Demo, interrupt: &Interrupt) -> Result<ExitCode, DemoError> {
    place::clean(false);
    let place =
        Place::new().map_err(|error| DemoError::Failed(format!("cannot make the demo's folder: {error}")))?;
    let keys = Keys::random();
    let ((lan, host_a), (wan_a, wan_b), (vpc, host_b)) = (wire(WIRE), wire(WIRE), wire(WIRE));
    let [one, other] = cores();
    let (mut idc, idc_reader) =
        start(IDC, one, &place.path().join("idc"), &keys, vec![("lan", lan), ("wan", wan_a)])?;
    let (mut cloud, cloud_reader) =
        start(CLOUD, other, &place.path().join("cloud"), &keys, vec![("wan", wan_b), ("vpc", vpc)])?;
    let title = format!(
        "host {IDC_HOST} ─ VLAN 10 ─ [idc] ─ VLAN 100, ESP with AES-128-GCM ─ [cloud] ─ VLAN 20 ─ host {VPC_HOST}, \
         seen as {VPC_HOST_SEEN}\nin memory: wires of this process, and hosts built in"
    );
    let mut view = View::new(&title, args.json);
    let mut hosts = Hosts::new(host_a, host_b, args.seconds)
        .ok_or_else(|| DemoError::Failed("the built-in addresses are wrong".into()))?;
    let readers = [&idc_reader, &cloud_reader];
    while !interrupt.came() && !hosts.report.done {
        for gateway in [&mut idc, &mut cloud] {
            gateway.tick().map_err(|error| DemoError::Failed(error.to_string()))?;
            if gateway.has_failed() {
                return Err(DemoError::Failed("a worker ended on its own".into()));
            }
        }
        hosts.round();
        view.show(&readers, &hosts.report);
        thread::sleep(TICK / 2);
    }
    view.end();
    let mut ends = Vec::new();
    for (name, gateway, reader) in [("idc", idc, &idc_reader), ("cloud", cloud, &cloud_reader)] {
        ends.push(GatewayEnd::new(Account::of(name, &gateway.stop()), reader));
    }
    drop(place);
    Ok(Summary::new(hosts.report, ends, interrupt.came()).print(args.json))
}
