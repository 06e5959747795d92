//! The run of one packet.

use super::*;

/// The run of one packet, and what it left behind.
pub(super) struct Run {
    pub(super) single: Single<MemPort>,
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
        let interface = &config.interfaces[place];
        let port = interface.port.value;
        let name = config.port(port).name.value.as_str();
        let content = bytes(packet, usize::from(config.port(port).mtu.get() as u16), name)?;
        let macs: Vec<MacAddr> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
        let ether_type = if packet.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let header = L2Header::new(macs[port.0], SENDER, tags(interface.vlan.value), ether_type);
        let frame = [header.as_bytes(), &content].concat();
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
        let mut sent = Vec::new();
        for (end, port) in ends.iter().zip(&config.ports) {
            while let Some(frame) = end.receive() {
                sent.extend(read(port.name.value.as_str(), frame));
            }
        }
        Ok(Self { single, meta, moved, sent, received: (port.0, frame) })
    }

    pub(super) fn moved<'a>(&'a self, group: &'a str, column: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |(g, _, c, _): &&(String, String, String, u64)| g == group && c == column;
        self.moved.iter().filter(of).map(|(_, row, ..)| row.as_str())
    }
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
    Some(Sent { port, vlans, size, source, destination, protocol: proto, ports, icmp, spi, frame })
}
