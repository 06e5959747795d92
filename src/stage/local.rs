//! What is for the gateway itself: ESP, ping, neighbour discovery, and the host's traffic.

use std::net::Ipv6Addr;

use super::{Cx, Stage, icmp_error, neighbour, reassemble::is_esp, way_back::way_back};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, NatMarks, Slot},
    stage::icmp_error::Problem,
    stats::WorkerColumn,
    table::tables::Tables,
    wire::{
        checksum::{Delta, Sum},
        ethernet::EtherType,
        icmpv4, icmpv6,
        ip::protocol,
        ipv4::Ipv4,
        ipv6::{self, Ipv6},
    },
};

/// Tells what is for the gateway itself from what is to be carried on.
#[derive(Debug, Default)]
pub struct Local;

/// Serves what is for the gateway itself: answers pings, gives the rest to the host where there is one.
#[derive(Debug, Default)]
pub struct Serve;

impl Stage for Local {
    const NAME: &'static str = "local";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.ip, burst) {
            let meta = burst.meta(slot);
            let own = if meta.is_v6() {
                let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(meta.l3));
                let (source, destination) = header
                    .map_or((Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), |h| {
                        (h.source(), h.destination())
                    });
                if neighbour::is_discovery(meta)
                    && (destination.is_multicast() || owns_v6(cx.tables, meta, destination))
                {
                    neighbour::discovery(cx, burst, slot);
                    continue;
                }
                if destination.is_multicast() {
                    burst.drop(slot, DropReason::Multicast);
                    continue;
                }
                // Only duplicate address detection may send from nowhere.
                if source.is_unspecified() {
                    burst.drop(slot, DropReason::MartianSource);
                    continue;
                }
                let own = owns_v6(cx.tables, meta, destination);
                if !own && (ipv6::is_link_scope(source) || ipv6::is_link_scope(destination)) {
                    burst.drop(slot, DropReason::LinkScope);
                    continue;
                }
                own
            } else {
                cx.tables.gateway(meta.gateway).is_some_and(|g| g.own.v4(meta.dst).is_some())
            };
            let lane = match own {
                false => &mut cx.lanes.forward,
                true if meta.flags.has(Flags::FRAGMENT) => &mut cx.lanes.fragments,
                true if is_esp(meta) => &mut cx.lanes.esp,
                true => &mut cx.lanes.local,
            };
            lane.insert(slot);
        }
    }
}

fn owns_v6(tables: &Tables, meta: &Meta, address: Ipv6Addr) -> bool {
    tables.gateway(meta.gateway).is_some_and(|g| g.own.v6(address.to_bits()).is_some())
}

impl Stage for Serve {
    const NAME: &'static str = "serve";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.local, burst) {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            match echo(bytes, meta) {
                Ok(true) if meta.nat.has(NatMarks::CROSSED) => {
                    // The answer belongs to where the request came in, and goes through NAT there as the request did.
                    let Some(back) = way_back(cx.tables, meta) else {
                        burst.drop(slot, DropReason::NatUntranslatable);
                        continue;
                    };
                    meta.gateway = back.gateway;
                    meta.flags =
                        meta.flags.without(Flags::FROM_LOCAL).with(Flags::FROM_LOCAL, !back.from_local);
                    meta.nat = NatMarks::NONE;
                    cx.lanes.forward.insert(slot);
                    continue;
                }
                Ok(true) => {
                    cx.lanes.lookup.insert(slot);
                    continue;
                }
                Ok(false) => {}
                Err(reason) => {
                    burst.drop(slot, reason);
                    continue;
                }
            }
            if !to_host(cx, burst, slot) {
                refuse(cx, burst, slot);
            }
        }
    }
}

/// Turns an echo request into its reply, in place. Whether it was one.
pub(super) fn echo(bytes: &mut [u8], meta: &mut Meta) -> Result<bool, DropReason> {
    let request =
        u16::from(if meta.is_v6() { icmpv6::kind::ECHO_REQUEST } else { icmpv4::kind::ECHO_REQUEST }) << 8;
    let icmp = if meta.is_v6() { protocol::ICMPV6 } else { protocol::ICMPV4 };
    // A fragment is left to the host, which can put it together.
    if meta.proto != icmp
        || meta.dport != request
        || meta.flags.any(Flags::FRAGMENT)
        || !meta.flags.has(Flags::HAS_PORTS)
    {
        return Ok(false);
    }
    let truncated = DropReason::TransportTruncated;
    let (start, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let packet = bytes.get_mut(start..start + usize::from(meta.ip_len)).ok_or(truncated)?;
    let message = packet.get(l4 - start..).ok_or(truncated)?;
    let reply = if meta.is_v6() { icmpv6::kind::ECHO_REPLY } else { icmpv4::kind::ECHO_REPLY };
    if meta.is_v6() {
        let header = Ipv6::at(packet, 0).ok_or(truncated)?;
        if icmpv6::parse(message, header.source(), header.destination()).is_err() {
            return Err(DropReason::LocalChecksum);
        }
    } else if !Sum::of(message).is_valid() {
        return Err(DropReason::LocalChecksum);
    }
    if let Some([kind, _, high, low]) = packet.get_mut(l4 - start..).and_then(|m| m.first_chunk_mut()) {
        let change = Delta::between_u16(u16::from(*kind) << 8, u16::from(reply) << 8);
        *kind = reply;
        // The pseudo-header's sum is the same both ways.
        [*high, *low] = change.apply(u16::from_be_bytes([*high, *low])).to_be_bytes();
    }
    if let (true, Some(mut header)) = (meta.is_v6(), Ipv6::at_mut(packet, 0)) {
        let (source, destination) = (header.source(), header.destination());
        header.set_source(destination);
        header.set_destination(source);
        header.set_hop_limit(64);
    } else if let Some(mut header) = Ipv4::at_mut(packet, 0) {
        let (source, destination, ttl) = (header.source(), header.destination(), header.ttl());
        header.set_source(destination);
        header.set_destination(source);
        header.set_ttl(64);
        let change = Delta::between_u16(u16::from(ttl) << 8, 64 << 8);
        let checksum = change.apply(header.checksum());
        header.set_checksum(checksum);
        (meta.src, meta.dst) = (meta.dst, meta.src);
    }
    meta.dport = u16::from(reply) << 8;
    meta.flags |= Flags::ORIGINATED;
    Ok(true)
}

/// Gives the packet to the host behind the interface that has its destination address.
fn to_host(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) -> bool {
    let meta = *burst.meta(slot);
    let tables = cx.tables;
    let Some(gateway) = tables.gateway(meta.gateway) else { return false };
    let number = if meta.is_v6() {
        let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(meta.l3));
        header.and_then(|header| gateway.own.v6(header.destination().to_bits()))
    } else {
        gateway.own.v4(meta.dst)
    };
    let Some(interface) = number.and_then(|n| tables.interface(n)) else { return false };
    let Some(queue) = interface.host.and_then(|host| cx.out.hosts.get_mut(usize::from(host))) else {
        return false;
    };
    if queue.is_full() {
        burst.drop(slot, DropReason::HostQueueFull);
        return true;
    }
    // The sender's link address, where the packet came by a link: the host may answer along it.
    let from = burst.bytes(cx.umem, slot).get(6..12).and_then(|b| b.first_chunk::<6>()).copied();
    let from = from.filter(|_| usize::from(meta.l3) >= 14).unwrap_or(interface.mac.0);
    let kind = if meta.is_v6() { EtherType::IPV6 } else { EtherType::IPV4 };
    let Some(frame) = burst.frame_mut(slot) else { return true };
    frame.trim_front(usize::from(meta.l3));
    frame.truncate(usize::from(meta.ip_len));
    if !frame.grow_front(14) {
        burst.drop(slot, DropReason::NoBuffer);
        return true;
    }
    if let Some(head) = cx.umem.bytes_mut(frame).first_chunk_mut::<14>() {
        let [k0, k1] = kind.0.to_be_bytes();
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (interface.mac.0, from);
        *head = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, k0, k1];
    }
    if let Some(frame) = burst.take(slot) {
        queue.push(frame);
        cx.counters.worker(WorkerColumn::Delivered, 0);
    }
    true
}

/// Nobody serves it: the sender of TCP and UDP learns that the port is closed (RFC 1122 3.2.2.1).
fn refuse(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let problem = match burst.meta(slot).proto {
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP => {
            Some(Problem::PortUnreachable)
        }
        protocol::ICMPV4 | protocol::ICMPV6 | protocol::ESP | protocol::AH => None,
        _ => Some(Problem::ProtocolUnreachable),
    };
    match problem {
        Some(problem) => icmp_error::drop_with_error(cx, burst, slot, DropReason::LocalUnserved, problem),
        None => burst.drop(slot, DropReason::LocalUnserved),
    }
}
