//! ICMP errors about packets that cannot be carried on (RFC 792, RFC 1812 4.3, RFC 4443 2.4).

use std::net::IpAddr;

use super::{
    Cx, Entry, Resumed, nat,
    way_back::{WayBack, way_back},
};
use crate::{
    packet::{Burst, DropReason, Flags, Frame, Meta, NatMarks, Slot},
    stats::WorkerColumn,
    table::{
        spd::{Key, NO_POLICY},
        tables::{Gateway, PolicyAction},
    },
    wire::{
        icmpv4, icmpv6,
        ip::protocol,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
    },
};

/// What the sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// The TTL or hop limit ran out.
    TimeExceeded,
    /// Not all fragments of a packet to the gateway itself came in time.
    ReassemblyTime,
    /// No route.
    NoRoute,
    /// The next hop does not answer.
    HostUnreachable,
    /// The packet may not be fragmented and is larger than this.
    TooBig {
        /// What would fit, in bytes.
        mtu: u16,
    },
    /// Policy forbids it.
    Prohibited,
    /// Nobody listens on the port.
    PortUnreachable,
    /// The protocol is not spoken here.
    ProtocolUnreachable,
}

/// Longest ICMPv4 error (RFC 1812 4.3.2.3) and ICMPv6 error (RFC 4443 2.4 c), with their IP headers.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

/// Drops the packet and, where the standards allow it, tells its sender why.
pub fn drop_with_error(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, reason: DropReason, problem: Problem) {
    tell(cx, burst, slot, problem);
    burst.drop(slot, reason);
}

/// Tells the packet's sender of a problem, where the standards allow it; the packet itself goes on.
pub fn tell(cx: &mut Cx<'_>, burst: &Burst, slot: Slot, problem: Problem) {
    if let Some((frame, meta)) = build(cx, burst, slot, problem)
        && let Err(error) = cx.out.resumed.try_push(Resumed { frame, meta, entry: Entry::Forward })
    {
        cx.pool.free(error.element().frame);
        cx.counters.worker(WorkerColumn::IcmpSuppressed, 1);
    }
}

/// Whether an error may be sent about this packet (RFC 1812 4.3.2.7, RFC 4443 2.4 e).
fn may_answer(meta: &Meta) -> bool {
    let never = Flags::ORIGINATED | Flags::ICMP_ERROR | Flags::LATER_FRAGMENT | Flags::LINK_MULTICAST;
    !meta.flags.any(never)
}

fn build(cx: &mut Cx<'_>, burst: &Burst, slot: Slot, problem: Problem) -> Option<(Frame, Meta)> {
    let meta = burst.meta(slot);
    if !may_answer(meta) || !cx.icmp_limit.allow(cx.now) {
        cx.counters.worker(WorkerColumn::IcmpSuppressed, 1);
        return None;
    }
    let mut frame = cx.pool.alloc()?;
    let built = way_back(cx.tables, meta).and_then(|back| {
        let mut error = write(cx, burst, slot, problem, back, &mut frame)?;
        super::parse::ip(cx.umem.bytes(&frame), &mut error).ok()?;
        // It goes against the packet's own direction, so NAT turns its addresses, and those it quotes, back.
        error.flags |= Flags::ORIGINATED;
        if meta.nat.has(NatMarks::CROSSED) {
            // From another gateway a packet comes as from a peer. It goes on in the one that the packet came into.
            error.flags |= Flags::FROM_LOCAL;
            nat::turn_back(cx, cx.umem.bytes_mut(&mut frame), &mut error)?;
            error.nat = NatMarks::NONE;
        }
        error.gateway = back.gateway;
        error.flags = error.flags.without(Flags::FROM_LOCAL).with(Flags::FROM_LOCAL, !back.from_local);
        Some(error)
    });
    let Some(error) = built else {
        cx.pool.free(frame);
        cx.counters.worker(WorkerColumn::IcmpSuppressed, 1);
        return None;
    };
    cx.counters.worker(WorkerColumn::Originated, 1);
    Some((frame, error))
}

/// Writes the error into `frame`; what is known of it apart from what its headers say is the result.
fn write(
    cx: &Cx<'_>,
    burst: &Burst,
    slot: Slot,
    problem: Problem,
    back: WayBack,
    frame: &mut Frame,
) -> Option<Meta> {
    let meta = burst.meta(slot);
    let start = usize::from(meta.l3);
    let packet = burst.bytes(cx.umem, slot).get(start..start + usize::from(meta.ip_len))?;
    let fresh = Meta { interface: meta.interface, gateway: meta.gateway, port: meta.port, ..Meta::EMPTY };
    if meta.is_v6() {
        let header = Ipv6::at(packet, 0)?;
        let source = header.source();
        let ends = (IpAddr::V6(source), IpAddr::V6(header.destination()));
        let IpAddr::V6(own) = own_address(cx, meta, back, ends)? else { return None };
        if source.is_unspecified() || source.is_multicast() {
            return None;
        }
        let quote = packet.get(..packet.len().min(LONGEST_V6 - ipv6::HEADER_LEN - icmpv6::HEADER_LEN))?;
        let payload_len = icmpv6::HEADER_LEN + quote.len();
        if !cx.umem.grow_back(frame, ipv6::HEADER_LEN + payload_len) {
            return None;
        }
        let (header, message) = cx.umem.bytes_mut(frame).split_first_chunk_mut()?;
        message.get_mut(icmpv6::HEADER_LEN..)?.copy_from_slice(quote);
        repr_v6(problem).emit(message, own, source)?;
        let repr = ipv6::Repr {
            traffic_class: 0,
            flow_label: 0,
            payload_len: payload_len as u16,
            next_header: protocol::ICMPV6,
            hop_limit: 64,
            source: own,
            destination: source,
        };
        repr.emit(header);
    } else {
        let header = Ipv4::at(packet, 0)?;
        let source = header.source();
        let ends = (IpAddr::V4(source), IpAddr::V4(header.destination()));
        let IpAddr::V4(own) = own_address(cx, meta, back, ends)? else { return None };
        let quote = packet.get(..packet.len().min(LONGEST_V4 - ipv4::HEADER_LEN - icmpv4::HEADER_LEN))?;
        let total_len = ipv4::HEADER_LEN + icmpv4::HEADER_LEN + quote.len();
        if !cx.umem.grow_back(frame, total_len) {
            return None;
        }
        let (header, message) = cx.umem.bytes_mut(frame).split_first_chunk_mut()?;
        message.get_mut(icmpv4::HEADER_LEN..)?.copy_from_slice(quote);
        repr_v4(problem).emit(message)?;
        let repr = ipv4::Repr {
            // Errors carry precedence 6, internetwork control (RFC 1812 4.3.2.5).
            traffic_class: 0xc0,
            total_len: total_len as u16,
            identification: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            protocol: protocol::ICMPV4,
            source: own,
            destination: source,
        };
        repr.emit(header);
    }
    Some(fresh)
}

/// The address the error is sent from: where an IPv6 packet was for the gateway itself, the one it was for (RFC 4443 2.2);
/// else of the interface the packet came by (RFC 1812 4.3.2.4); out of a tunnel, the one that the gateway keeps for
/// this. An address of the gateway that the packet came into: those of another may be somebody else's in there.
fn own_address(
    cx: &Cx<'_>,
    meta: &Meta,
    back: WayBack,
    (like, destination): (IpAddr, IpAddr),
) -> Option<IpAddr> {
    if let IpAddr::V6(own) = destination
        && cx.tables.gateway(meta.gateway)?.own.v6(own.to_bits()).is_some()
    {
        return Some(destination);
    }
    let gateway = cx.tables.gateway(back.gateway)?;
    let chosen = || match like {
        IpAddr::V4(_) => gateway.icmp_source.0.map(IpAddr::V4),
        IpAddr::V6(_) => gateway.icmp_source.1.map(IpAddr::V6),
    };
    if meta.flags.has(Flags::FROM_TUNNEL) {
        return within_policies(gateway, meta, like, chosen()).or_else(chosen);
    }
    cx.tables.interface(meta.interface)?.address_like(like).or_else(chosen)
}

/// Own addresses that are tried as the source of an error, at most.
const MAX_SOURCES: usize = 64;

/// An address of the gateway from which a policy leads back into the tunnel that the packet came out of (RFC 4301 6):
/// from another one, the error would go astray, or be dropped at the other end. `usual` goes first.
fn within_policies(gateway: &Gateway, meta: &Meta, sender: IpAddr, usual: Option<IpAddr>) -> Option<IpAddr> {
    let leads_back = |own: &IpAddr| {
        let mut found = [NO_POLICY];
        match (*own, sender) {
            (IpAddr::V4(own), IpAddr::V4(sender)) => {
                let key = error_key(own.to_bits(), sender.to_bits(), protocol::ICMPV4);
                gateway.spd.lookup_burst_v4(&[key], &mut found);
            }
            (IpAddr::V6(own), IpAddr::V6(sender)) => {
                let key = error_key(own.to_bits(), sender.to_bits(), protocol::ICMPV6);
                gateway.spd.lookup_burst_v6(&[key], &mut found);
            }
            _ => {}
        }
        let [policy] = found;
        let action = gateway.actions.get(policy as usize);
        matches!(action, Some(PolicyAction::Protect(by)) if by.has(meta.ingress_tunnel))
    };
    usual.into_iter().chain(gateway.own.like(sender).take(MAX_SOURCES)).find(leads_back)
}

/// What policies are asked about an error whose type and code do not matter.
const fn error_key<A>(source: A, destination: A, protocol: u8) -> Key<A> {
    Key { source, destination, protocol, source_port: 0, destination_port: 0, opaque_ports: true }
}

fn repr_v4(problem: Problem) -> icmpv4::Repr {
    use icmpv4::{Repr, unreachable};
    match problem {
        Problem::TimeExceeded => Repr::TimeExceeded { code: 0 },
        Problem::ReassemblyTime => Repr::TimeExceeded { code: 1 },
        Problem::NoRoute => Repr::Unreachable { code: unreachable::NETWORK },
        Problem::HostUnreachable => Repr::Unreachable { code: unreachable::HOST },
        Problem::TooBig { mtu } => Repr::FragmentationNeeded { mtu },
        Problem::Prohibited => Repr::Unreachable { code: unreachable::FILTERED },
        Problem::PortUnreachable => Repr::Unreachable { code: unreachable::PORT },
        Problem::ProtocolUnreachable => Repr::Unreachable { code: unreachable::PROTOCOL },
    }
}

fn repr_v6(problem: Problem) -> icmpv6::Repr {
    use icmpv6::{Repr, unreachable};
    match problem {
        Problem::TimeExceeded => Repr::TimeExceeded { code: 0 },
        Problem::ReassemblyTime => Repr::TimeExceeded { code: 1 },
        Problem::NoRoute => Repr::Unreachable { code: unreachable::NO_ROUTE },
        Problem::HostUnreachable => Repr::Unreachable { code: unreachable::ADDRESS },
        Problem::TooBig { mtu } => Repr::PacketTooBig { mtu: mtu.into() },
        Problem::Prohibited => Repr::Unreachable { code: unreachable::PROHIBITED },
        Problem::PortUnreachable => Repr::Unreachable { code: unreachable::PORT },
        // Code 1, an unknown next header; the field that names it stands at 6 without extension headers.
        Problem::ProtocolUnreachable => Repr::ParameterProblem { code: 1, pointer: 6 },
    }
}
