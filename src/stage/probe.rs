//! Probes of the gateway's own: makes them, answers those of the other end, and tells the control thread what came back.
//!
//! Inside a tunnel a probe enters where packets are sealed and leaves before policies are asked: it is between two
//! addresses of its own, which no policy needs to name, and nothing else is let in by them (RFC 4301 5.2 holds for all
//! that is carried).

use std::net::IpAddr;

use super::{Cx, Entry, Event, Resumed, Stage, link::NO_NEIGHBOUR, local};
use crate::{
    packet::{Burst, DropReason, Flags, FramePool, Meta, Slot},
    stats::WorkerColumn,
    table::{
        neighbour::NeighbourKey,
        probe::{Ends, Probe, Way},
        tables::Tables,
    },
    wire::{
        bfd,
        checksum::Sum,
        icmpv4, icmpv6,
        ip::protocol,
        ipv4,
        ipv6::{self, Ipv6},
        udp,
    },
};

/// The identifier of all echo requests.
const IDENTIFIER: u16 = 0xca05;
/// What an echo request carries: the token, and when it was sent.
const DATA_LEN: usize = 16;
/// Network control (RFC 4594 3.1): probes are not to be lost to what they measure the way for.
const CLASS: u8 = 48 << 2;

/// Takes probes, and replies to them, out of what is for the gateway itself.
#[derive(Debug, Default)]
pub struct Probes;

impl Stage for Probes {
    const NAME: &'static str = "probes";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in cx.lanes.local & burst.live() {
            if may_be_probe(burst.meta(slot)) {
                probe(cx, burst, slot);
            }
        }
    }
}

const ECHO_REPLY_V4: u16 = (icmpv4::kind::ECHO_REPLY as u16) << 8;
const ECHO_REPLY_V6: u16 = (icmpv6::kind::ECHO_REPLY as u16) << 8;
const ECHO_REQUEST_V4: u16 = (icmpv4::kind::ECHO_REQUEST as u16) << 8;
const ECHO_REQUEST_V6: u16 = (icmpv6::kind::ECHO_REQUEST as u16) << 8;

/// Whether it is ICMP echo or BFD by its protocol and ports.
fn may_be_probe(meta: &Meta) -> bool {
    let whole = meta.flags.has(Flags::HAS_PORTS) && !meta.flags.any(Flags::FRAGMENT | Flags::ORIGINATED);
    let fits = match meta.proto {
        protocol::ICMPV4 => matches!(meta.dport, ECHO_REQUEST_V4 | ECHO_REPLY_V4),
        protocol::ICMPV6 => matches!(meta.dport, ECHO_REQUEST_V6 | ECHO_REPLY_V6),
        protocol::UDP => meta.dport == bfd::UDP_PORT,
        _ => false,
    };
    whole && fits
}

fn addresses(bytes: &[u8], meta: &Meta) -> Option<(IpAddr, IpAddr)> {
    if meta.is_v6() {
        let header = Ipv6::at(bytes, usize::from(meta.l3))?;
        return Some((IpAddr::V6(header.source()), IpAddr::V6(header.destination())));
    }
    Some((IpAddr::V4(meta.src.into()), IpAddr::V4(meta.dst.into())))
}

/// Handles one packet, when it is a probe.
fn probe(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let meta = *burst.meta(slot);
    let way = if meta.flags.has(Flags::FROM_TUNNEL) {
        Way::Tunnel(meta.ingress_tunnel)
    } else if meta.passes == 0 {
        Way::Interface(meta.interface)
    } else {
        return;
    };
    let bytes = burst.bytes(cx.umem, slot);
    let Some((watch, (source, destination))) = cx.tables.watch(way).zip(addresses(bytes, &meta)) else {
        return;
    };
    let is_between = |ends: &&Ends| ends.own == destination && ends.other == source;
    let message = bytes.get(usize::from(meta.l4)..usize::from(meta.l3 + meta.ip_len)).unwrap_or(&[]);
    let result = if meta.proto == protocol::UDP {
        if watch.bfd.as_ref().filter(is_between).is_none() {
            return;
        }
        control_packet(&meta, message, source, destination).map(|(packet, len)| Event::Bfd {
            way,
            packet,
            len,
            received: cx.now,
        })
    } else if matches!(meta.dport, ECHO_REQUEST_V4 | ECHO_REQUEST_V6) {
        // On a link the gateway answers as it answers everybody.
        if matches!(way, Way::Tunnel(_)) && watch.has(source, destination) {
            answer(cx, burst, slot);
        }
        return;
    } else {
        let Some(ends) = watch.echo.as_ref().filter(is_between) else { return };
        match reply(&meta, message, source, destination, ends.token) {
            Ok(Some((sequence, sent))) => Ok(Event::Echo { way, sequence, sent, received: cx.now }),
            Ok(None) => return,
            Err(reason) => Err(reason),
        }
    };
    let reason = match result {
        Ok(event) => {
            cx.counters.worker(WorkerColumn::ProbesHeard, 1);
            if cx.events.push(event).is_err() {
                cx.counters.worker(WorkerColumn::EventsLost, 1);
            }
            DropReason::LocalConsumed
        }
        Err(reason) => reason,
    };
    burst.drop(slot, reason);
}

/// Sends an echo request of the other end back through its tunnel.
fn answer(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    match local::echo(bytes, meta) {
        Ok(true) => {
            meta.tunnel = meta.ingress_tunnel;
            cx.lanes.local.remove(slot);
            cx.lanes.seal.insert(slot);
            cx.counters.worker(WorkerColumn::ProbesAnswered, 1);
        }
        Ok(false) => {}
        Err(reason) => burst.drop(slot, reason),
    }
}

/// Number and time of sending of an echo reply, when it answers a request of ours.
fn reply(
    meta: &Meta,
    message: &[u8],
    source: IpAddr,
    destination: IpAddr,
    token: u64,
) -> Result<Option<(u16, u64)>, DropReason> {
    // Both versions have identifier and number at one place.
    let Some((header, body)) = icmpv4::Icmpv4::split(message) else { return Ok(None) };
    let words = body.first_chunk::<DATA_LEN>().map(|data| {
        let [t0, t1, t2, t3, t4, t5, t6, t7, s0, s1, s2, s3, s4, s5, s6, s7] = *data;
        (
            u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        )
    });
    let Some((_, sent)) = words.filter(|words| words.0 == token && meta.sport == IDENTIFIER) else {
        return Ok(None);
    };
    let sum = match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            icmpv6::pseudo_header(source, destination, message.len()).combine(Sum::of(message))
        }
        _ => Sum::of(message),
    };
    if sum.is_valid() { Ok(Some((header.sequence(), sent))) } else { Err(DropReason::LocalChecksum) }
}

/// The first bytes of a BFD control packet, and how many bytes its datagram has, when it came over one hop.
fn control_packet(
    meta: &Meta,
    message: &[u8],
    source: IpAddr,
    destination: IpAddr,
) -> Result<([u8; bfd::LEN], u16), DropReason> {
    // The generalised TTL security mechanism (RFC 5881 5, RFC 5082).
    if meta.ttl != bfd::TTL {
        return Err(DropReason::BfdRefused);
    }
    let datagram = udp::parse(message).map_err(|_| DropReason::BfdRefused)?;
    let len = datagram.header.length();
    let pseudo = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::pseudo_v4(source, destination, protocol::UDP, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::pseudo_v6(source, destination, protocol::UDP, len.into())
        }
        _ => return Err(DropReason::BfdRefused),
    };
    let without = datagram.header.checksum() == 0 && !meta.is_v6();
    if !without && !datagram.is_checksum_valid(pseudo) {
        return Err(DropReason::LocalChecksum);
    }
    let packet = datagram.payload.first_chunk().ok_or(DropReason::BfdRefused)?;
    Ok((*packet, datagram.payload.len() as u16))
}

/// A probe, ready for its tunnel or its link. `None`: the way is not watched so (any more), or there is no buffer.
#[must_use]
pub fn make(tables: &Tables, pool: &mut FramePool, way: Way, probe: &Probe, now: u64) -> Option<Resumed> {
    let watch = tables.watch(way)?;
    let ends = match probe {
        Probe::Echo { .. } => watch.echo,
        Probe::Bfd { .. } => watch.bfd,
    }?;
    let (gateway, egress) = match way {
        Way::Interface(number) => (tables.interface(number)?.gateway, number),
        Way::Tunnel(number) => (tables.tunnel(number)?.gateway, 0),
    };
    let mut frame = pool.alloc()?;
    let umem = pool.umem();
    let len = length(&ends, probe);
    let written =
        umem.grow_back(&mut frame, len) && write(umem.bytes_mut(&mut frame), &ends, probe, now).is_some();
    if !written {
        pool.free(frame);
        return None;
    }
    let mut meta = Meta {
        ip_len: len as u16,
        tos: CLASS,
        ttl: bfd::TTL,
        flags: (Flags::ORIGINATED | Flags::DONT_FRAGMENT).with(Flags::V6, ends.own.is_ipv6()),
        gateway,
        ..Meta::EMPTY
    };
    if let (IpAddr::V4(own), IpAddr::V4(other)) = (ends.own, ends.other) {
        (meta.src, meta.dst) = (own.to_bits(), other.to_bits());
    }
    let entry = match way {
        Way::Tunnel(number) => {
            meta.tunnel = number;
            Entry::Seal
        }
        Way::Interface(number) => {
            let key = match ends.other {
                IpAddr::V4(a) => NeighbourKey::v4(number, a.to_bits()),
                IpAddr::V6(a) => NeighbourKey::v6(number, a.to_bits()),
            };
            meta.tunnel = super::next_hop::NO_TUNNEL;
            meta.next_hop = ends.next_hop;
            meta.egress = egress;
            meta.neighbour = tables.neighbours.lookup(&key).map_or(NO_NEIGHBOUR, |id| id.to_bits());
            Entry::Tx
        }
    };
    Some(Resumed { frame, meta, entry })
}

fn length(ends: &Ends, probe: &Probe) -> usize {
    let header = if ends.own.is_ipv6() { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
    header
        + match probe {
            Probe::Echo { .. } => icmpv4::HEADER_LEN + DATA_LEN,
            Probe::Bfd { .. } => udp::HEADER_LEN + bfd::LEN,
        }
}

/// Writes the whole packet.
fn write(bytes: &mut [u8], ends: &Ends, probe: &Probe, now: u64) -> Option<()> {
    let total = bytes.len();
    let icmp = if ends.own.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMPV4 };
    let proto = if matches!(probe, Probe::Echo { .. }) { icmp } else { protocol::UDP };
    let message = match (ends.own, ends.other) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (header, message) = bytes.split_first_chunk_mut()?;
            let repr = ipv4::Repr {
                traffic_class: CLASS,
                total_len: total as u16,
                identification: 0,
                dont_fragment: true,
                more_fragments: false,
                fragment_offset: 0,
                ttl: bfd::TTL,
                protocol: proto,
                source,
                destination,
            };
            repr.emit(header);
            message
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (header, message) = bytes.split_first_chunk_mut()?;
            let repr = ipv6::Repr {
                traffic_class: CLASS,
                flow_label: 0,
                payload_len: (total - ipv6::HEADER_LEN) as u16,
                next_header: proto,
                hop_limit: bfd::TTL,
                source,
                destination,
            };
            repr.emit(header);
            message
        }
        _ => return None,
    };
    let len = message.len();
    match *probe {
        Probe::Echo { sequence } => {
            let (token, sent) = message.get_mut(icmpv4::HEADER_LEN..)?.split_first_chunk_mut::<8>()?;
            *token = ends.token.to_be_bytes();
            *sent.first_chunk_mut::<8>()? = now.to_be_bytes();
            match (ends.own, ends.other) {
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let repr = icmpv6::Repr::EchoRequest { identifier: IDENTIFIER, sequence };
                    repr.emit(message, source, destination)
                }
                _ => icmpv4::Repr::EchoRequest { identifier: IDENTIFIER, sequence }.emit(message),
            }
        }
        Probe::Bfd { packet, source_port } => {
            let pseudo = match (ends.own, ends.other) {
                (IpAddr::V4(s), IpAddr::V4(d)) => Sum::pseudo_v4(s, d, protocol::UDP, len as u16),
                (IpAddr::V6(s), IpAddr::V6(d)) => Sum::pseudo_v6(s, d, protocol::UDP, len as u32),
                _ => return None,
            };
            let (header, data) = message.split_first_chunk_mut()?;
            *data.first_chunk_mut()? = packet;
            let repr = udp::Repr { source_port, destination_port: bfd::UDP_PORT, length: len as u16 };
            repr.emit_with_checksum(header, data, pseudo);
            Some(())
        }
    }
}
