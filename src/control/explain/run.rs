//! The run of one packet.

use std::sync::Arc;

use super::*;
use crate::{
    config::build::BuiltLimits,
    crypto::aead::{self, Aad, Job},
    table::{limit::Limits, tables::Tables, tunnel::Tunnel},
};

/// Limits that a run asks.
pub(super) struct Asked {
    /// What it charges: its own.
    pub(super) limits: Arc<Limits>,
    /// What they stand for in a running gateway, and what its clock shows.
    pub(super) real: Option<(Arc<Limits>, u64)>,
    /// Gateways that count addresses: number, place in the configuration, and prefixes by class.
    pub(super) addresses: Vec<(u16, usize, Vec<Option<Prefix>>)>,
}

impl Asked {
    pub(super) fn of(built: &BuiltLimits, limits: Arc<Limits>, real: Option<(Arc<Limits>, u64)>) -> Self {
        let addresses =
            built.addresses.iter().map(|of| (of.gateway, of.place, of.sections.clone())).collect();
        Self { limits, real, addresses }
    }
}

/// The run of one packet, and what it left behind.
pub(super) struct Run {
    /// What it was looked up in.
    pub(super) tables: Arc<Tables>,
    /// Numbers of interfaces, tunnels and gateways, in the order of the configuration.
    pub(super) interfaces: Vec<u16>,
    pub(super) tunnels: Vec<u16>,
    pub(super) gateways: Vec<u16>,
    /// Limits that the packet was asked about.
    pub(super) limits: Asked,
    /// What is known beforehand, of a running gateway.
    pub(super) known: Vec<Step>,
    /// Neighbours that the packet, or what follows from it, waits for: by interface number.
    pub(super) waits_for: Vec<(u16, IpAddr)>,
    /// The metadata of the packet, or of the error that answers it.
    pub(super) meta: Option<Meta>,
    /// Counters that moved: group, row, column.
    pub(super) moved: Vec<(String, String, String, u64)>,
    pub(super) sent: Vec<Sent>,
    pub(super) received: (usize, Vec<u8>),
}

impl Run {
    pub(super) fn new(config: &Config, packet: &Packet, place: usize) -> Result<Self, ExplainError> {
        let mut config = config.clone();
        // It is for a moment.
        config.system.huge_pages.value = HugePages::Never;
        let port = config.interfaces[place].port.value;
        let macs: Vec<MacAddr> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
        let frame = frame(&config, packet, place, macs[port.0])?;
        let (ports, ends): (Vec<_>, Vec<_>) = config.ports.iter().map(|_| wire(QUEUE)).unzip();
        let mut single = Single::new(&config, &macs, &mut Ephemeral::default(), SEED, |_| ports)?;
        single.worker.set_timing(0);
        // What the gateway does by itself is no part of the answer.
        single.settle(NOW, ROUNDS);
        introduce(&mut single);
        single.settle(NOW, ROUNDS);
        ends.iter().for_each(|end| while end.receive().is_some() {});
        let before = counters(&single.segment);
        // The wire is empty and holds more than one.
        let _ = ends[port.0].send(&frame);
        single.worker.round(NOW);
        let meta = single.worker.last_meta().copied();
        single.settle(NOW, ROUNDS);
        for _ in 0..MOST {
            if !introduce(&mut single) {
                break;
            }
            single.settle(NOW, ROUNDS);
        }
        let moved = difference(&before, &counters(&single.segment));
        let built = single.built;
        let sent = sent(&config, &built.tables, &ends);
        Ok(Self {
            tables: built.tables,
            interfaces: built.interfaces,
            tunnels: built.tunnels,
            gateways: built.gateways,
            limits: Asked::of(&built.limits, Arc::clone(&built.limits.limits), None),
            known: Vec::new(),
            waits_for: Vec::new(),
            meta,
            moved,
            sent,
            received: (port.0, frame),
        })
    }

    pub(super) fn moved<'a>(&'a self, group: &'a str, column: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |(g, _, c, _): &&(String, String, String, u64)| g == group && c == column;
        self.moved.iter().filter(of).map(|(_, row, ..)| row.as_str())
    }
}

/// The frame that the packet comes in.
pub(super) fn frame(
    config: &Config,
    packet: &Packet,
    place: usize,
    mac: MacAddr,
) -> Result<Vec<u8>, ExplainError> {
    let interface = &config.interfaces[place];
    let port = config.port(interface.port.value);
    let content = bytes(packet, usize::from(port.mtu.get() as u16), port.name.value.as_str())?;
    let ether_type = if packet.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
    let header = L2Header::new(mac, SENDER, tags(interface.vlan.value), ether_type);
    Ok([header.as_bytes(), &content].concat())
}

/// What came out of the ports' other ends.
pub(super) fn sent(config: &Config, tables: &Tables, ends: &[MemPort]) -> Vec<Sent> {
    let mut sent = Vec::new();
    for (end, port) in ends.iter().zip(&config.ports) {
        while let Some(frame) = end.receive() {
            sent.extend(read(port.name.value.as_str(), frame));
        }
    }
    for one in &mut sent {
        one.inner = opened(tables, one).map(Box::new);
    }
    sent
}

/// What is sealed in a packet that these tables have sealed.
fn opened(tables: &Tables, sent: &Sent) -> Option<Sent> {
    let seals = |tunnel: &&Tunnel| {
        tunnel.sa.as_ref().map(|sa| sa.spi) == sent.spi
            && tunnel.outer.destination() == Some(sent.destination)
    };
    let tunnel = tables.tunnels.iter().find(seals).filter(|_| sent.spi.is_some())?;
    let sa = tunnel.sa.as_ref()?;
    let start = sent.frame.len().checked_sub(sent.size)? + tunnel.outer.header_len();
    let mut packet = sent.frame.get(start..)?.to_vec();
    let (head, text) = packet.split_at_mut_checked(esp::HEADER_IV_LEN)?;
    let header = esp::Esp::at(head, 0)?;
    // It is one of the latest numbers: the high half is that of the next, or of the one before.
    let number = (sa.sequence.next() & !u64::from(u32::MAX)) | u64::from(header.sequence());
    let number = if number > sa.sequence.next() { number - (1 << 32) } else { number };
    let aad = if sa.esn { Aad::esn(sa.spi, number) } else { Aad::new(sa.spi, number as u32) };
    let mut jobs = [Job::new(&sa.key, header.iv(), aad, text)];
    aead::open(&mut jobs);
    let [job] = jobs;
    job.ok.then_some(())?;
    let text = packet.get(esp::HEADER_IV_LEN..packet.len() - esp::ICV_LEN)?;
    let trailer = esp::parse_trailer(text).ok()?;
    let ether_type = if trailer.next_header == protocol::IPV6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let link = L2Header::new(SENDER, SENDER, Tags::None, ether_type);
    read(&sent.port, [link.as_bytes(), text.get(..trailer.payload_len)?].concat())
}

/// Pretends that every neighbour that is asked for has answered. The result is whether there were any.
pub(super) fn introduce(single: &mut Single<MemPort>) -> bool {
    let neighbours = &mut single.kept.neighbours;
    let unknown: Vec<_> = neighbours
        .table()
        .iter()
        .filter(|neighbour| neighbour.state == NeighbourState::Incomplete)
        .map(|neighbour| neighbour.key)
        .collect();
    let known = |key| neighbours.insert_permanent(key, NEIGHBOUR, NOW).is_ok();
    unknown.iter().map(known).filter(|known| *known).count() > 0
}

pub(super) fn difference(before: &Value, after: &Value) -> Vec<(String, String, String, u64)> {
    let mut all = Vec::new();
    for (group, rows) in after.as_object().into_iter().flatten() {
        for (row, columns) in rows.as_object().into_iter().flatten() {
            for (column, value) in columns.as_object().into_iter().flatten() {
                let old = before[group][row][column].as_u64().unwrap_or(0);
                let n = value.as_u64().unwrap_or(0).saturating_sub(old);
                if n > 0 {
                    all.push((group.clone(), row.clone(), column.clone(), n));
                }
            }
        }
    }
    all
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// What a frame says. ARP and neighbour discovery are none of the packet's.
pub(super) fn read(port: &str, frame: Vec<u8>) -> Option<Sent> {
    let mut at = 12;
    let mut vlans = Vec::new();
    while matches!(word(&frame, at)?, 0x8100 | 0x88a8) {
        vlans.push(word(&frame, at + 2)? & 0xfff);
        at += 4;
    }
    let ip = frame.get(at + 2..)?;
    let (source, destination, proto, size, payload): (IpAddr, IpAddr, u8, usize, &[u8]) =
        match EtherType(word(&frame, at)?) {
            EtherType::IPV4 => {
                let parsed = ipv4::parse(ip).ok()?;
                let repr = ipv4::Repr::parse(&parsed.header);
                // Behind the first fragment there is no transport header.
                let payload = if repr.fragment_offset == 0 { parsed.payload } else { &[] };
                let size = usize::from(repr.total_len);
                (repr.source.into(), repr.destination.into(), repr.protocol, size, payload)
            }
            EtherType::IPV6 => {
                let parsed = ipv6::parse(ip).ok()?;
                let repr = ipv6::Repr::parse(&parsed.header);
                let size = 40 + usize::from(repr.payload_len);
                (repr.source.into(), repr.destination.into(), repr.next_header, size, parsed.payload)
            }
            _ => return None,
        };
    let is_icmp = matches!(proto, protocol::ICMPV4 | protocol::ICMPV6);
    let icmp = payload.get(..2).filter(|_| is_icmp).map(|b| (b[0], b[1]));
    if proto == protocol::ICMPV6 && icmp.is_some_and(|(kind, _)| icmpv6::is_neighbour_discovery(kind)) {
        return None;
    }
    let has_ports = matches!(proto, protocol::TCP | protocol::UDP);
    let ports = word(payload, 0).zip(word(payload, 2)).filter(|_| has_ports);
    let spi = |at: usize| payload.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let spi = match (proto, ports) {
        (protocol::ESP, _) => spi(0),
        (protocol::UDP, Some((from, to))) if from == esp::UDP_PORT || to == esp::UDP_PORT => spi(8),
        _ => None,
    };
    let spi = spi.filter(|spi| *spi != 0);
    let port = port.to_string();
    Some(Sent {
        port,
        vlans,
        size,
        source,
        destination,
        protocol: proto,
        ports,
        icmp,
        spi,
        inner: None,
        frame,
    })
}
