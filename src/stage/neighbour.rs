//! ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861): answers, and what is learned from them.

use std::net::{IpAddr, Ipv6Addr};

use super::{Cx, Event, NeighbourClaim, Stage, link, rewrite};
use crate::{
    packet::{Burst, DropReason, Flags, HEADROOM, Slot},
    stats::WorkerColumn,
    table::{
        interface::Interface,
        neighbour::{NeighbourKey, NeighbourState},
    },
    wire::{
        arp,
        ethernet::{EtherType, MacAddr},
        icmpv6::{self, Neighbour},
        ip::protocol,
        ipv6::{self, Ipv6},
        vlan::L2Header,
    },
};

/// Answers ARP requests for our addresses and learns from requests and replies.
#[derive(Debug, Default)]
pub struct Arp;

impl Stage for Arp {
    const NAME: &'static str = "arp";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.arp, burst) {
            if let Err(reason) = arp(cx, burst, slot) {
                burst.drop(slot, reason);
            }
        }
    }
}

/// Which neighbour said what.
struct Heard<'a> {
    number: u16,
    interface: &'a Interface,
    address: IpAddr,
    mac: MacAddr,
    claim: NeighbourClaim,
}

/// Tells the control thread of a neighbour, unless that would change nothing.
fn learn(cx: &Cx<'_>, heard: &Heard<'_>) -> Result<(), DropReason> {
    let Heard { number, interface, address, mac, claim } = *heard;
    if interface.answers_for(address) {
        if mac == interface.mac {
            return Ok(());
        }
        tell(cx, Event::Conflict { interface: number, address, mac });
        return Err(DropReason::AddressConflict);
    }
    if !mac.is_unicast() || !interface.is_on_link(address) && !is_link_local(address) {
        return Ok(());
    }
    let key = match address {
        IpAddr::V4(a) => NeighbourKey::v4(number, a.to_bits()),
        IpAddr::V6(a) => NeighbourKey::v6(number, a.to_bits()),
    };
    let neighbours = &cx.tables.neighbours;
    let known = neighbours.lookup(&key).is_some_and(|id| {
        let fresh =
            matches!(neighbours.state(id), Some(NeighbourState::Reachable | NeighbourState::Permanent));
        fresh && neighbours.mac(id) == Some(mac.0)
    });
    // A reply confirms what is known (RFC 4861 7.3.1); a request with the same address tells nothing new.
    if !known || claim == (NeighbourClaim::Answered { solicited: true }) {
        tell(cx, Event::Neighbour { interface: number, address, mac, claim });
    }
    Ok(())
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

fn tell(cx: &Cx<'_>, event: Event) {
    if cx.events.push(event).is_err() {
        cx.counters.worker(WorkerColumn::EventsLost, 1);
    }
}

fn arp(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) -> Result<(), DropReason> {
    let meta = *burst.meta(slot);
    let tables = cx.tables;
    let interface = tables.interface(meta.interface).ok_or(DropReason::UnknownVlan)?;
    let bytes = burst.bytes(cx.umem, slot).get(usize::from(meta.l3)..).unwrap_or(&[]);
    let packet = arp::Repr::parse(bytes).map_err(|_| DropReason::ArpMalformed)?;
    let (sender, target) = (IpAddr::V4(packet.sender_ip), IpAddr::V4(packet.target_ip));
    let request = packet.operation == arp::Operation::Request;
    let for_us = interface.answers_for(target);
    if !for_us && !packet.is_gratuitous() {
        return Err(DropReason::ArpNotForUs);
    }
    let claim = if request { NeighbourClaim::Asked } else { NeighbourClaim::Answered { solicited: for_us } };
    let claim = if packet.is_gratuitous() { NeighbourClaim::Answered { solicited: false } } else { claim };
    if !packet.is_probe() {
        let mac = packet.sender_mac;
        learn(cx, &Heard { number: meta.interface, interface, address: sender, mac, claim })?;
    }
    if !request || !for_us {
        copy_to_host(cx, burst, slot, interface);
        return Err(DropReason::ArpConsumed);
    }
    // The answer goes back in the request's own frame, tags and all.
    let reply = packet.reply(interface.mac);
    let frame = burst.bytes_mut(cx.umem, slot);
    let (link, body) = frame.split_at_mut_checked(usize::from(meta.l3)).ok_or(DropReason::ArpMalformed)?;
    reply.emit(body.first_chunk_mut().ok_or(DropReason::ArpMalformed)?);
    if let Some([destination @ .., s0, s1, s2, s3, s4, s5]) = link.first_chunk_mut::<12>() {
        *destination = packet.sender_mac.0;
        [*s0, *s1, *s2, *s3, *s4, *s5] = interface.mac.0;
    }
    // A request that came by no real wire may be shorter than a frame has to be.
    if let Some(frame) = burst.frame_mut(slot) {
        link::pad(cx.umem, frame);
    }
    if let Some(len) = rewrite::queue(cx, burst, slot, interface.port) {
        cx.counters.interface_out(meta.interface, 1, len as u64);
    }
    Ok(())
}

/// Gives the host a copy of an answer: it may have asked as well, from the same address.
pub fn copy_to_host(cx: &mut Cx<'_>, burst: &Burst, slot: Slot, interface: &Interface) {
    let Some(queue) = interface.host.and_then(|host| cx.out.hosts.get_mut(usize::from(host))) else { return };
    let meta = burst.meta(slot);
    let bytes = burst.bytes(cx.umem, slot);
    // The TAP has no tags: addresses, then the EtherType behind the tags.
    let (Some(link), Some(rest)) = (bytes.get(..12), bytes.get(usize::from(meta.l3) - 2..)) else { return };
    let Some(mut frame) = cx.pool.alloc() else { return };
    if queue.is_full() || !cx.umem.grow_back(&mut frame, link.len() + rest.len()) {
        cx.pool.free(frame);
        return;
    }
    if let Some((head, tail)) = cx.umem.bytes_mut(&mut frame).split_at_mut_checked(link.len()) {
        head.copy_from_slice(link);
        tail.copy_from_slice(rest);
    }
    cx.counters.worker(WorkerColumn::Originated, 1);
    queue.push(frame);
}

/// Whether an IPv6 packet is neighbour discovery (RFC 4861).
#[inline]
pub const fn is_discovery(meta: &crate::packet::Meta) -> bool {
    meta.is_v6()
        && meta.proto == protocol::ICMPV6
        && meta.flags.has(Flags::HAS_PORTS)
        && icmpv6::is_neighbour_discovery((meta.dport >> 8) as u8)
}

/// Answers a solicitation for one of our addresses and learns from solicitations and advertisements.
///
/// The packet is answered in its own frame, or consumed.
pub fn discovery(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    if let Err(reason) = try_discovery(cx, burst, slot) {
        burst.drop(slot, reason);
    }
}

fn try_discovery(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) -> Result<(), DropReason> {
    let malformed = DropReason::NeighbourDiscoveryMalformed;
    let meta = *burst.meta(slot);
    let tables = cx.tables;
    let interface = tables.interface(meta.interface).ok_or(DropReason::UnknownVlan)?;
    let bytes = burst.bytes(cx.umem, slot);
    let packet = bytes.get(usize::from(meta.l3)..usize::from(meta.l3 + meta.ip_len)).ok_or(malformed)?;
    let header = Ipv6::at(packet, 0).ok_or(malformed)?;
    let message = packet.get(usize::from(meta.l4 - meta.l3)..).ok_or(malformed)?;
    let (source, destination) = (header.source(), header.destination());
    let from_tunnel = meta.flags.has(Flags::FROM_TUNNEL);
    let heard = match Neighbour::parse(message, source, destination, header.hop_limit()) {
        Ok(heard) if !from_tunnel => heard,
        // Router discovery and redirects are for hosts.
        Err(icmpv6::NeighbourError::Kind) => return Err(DropReason::NeighbourDiscoveryConsumed),
        _ => return Err(malformed),
    };
    match heard {
        Neighbour::Advertisement { target, target_mac: Some(mac), solicited, .. } => {
            let claim = NeighbourClaim::Answered { solicited };
            let address = IpAddr::V6(target);
            learn(cx, &Heard { number: meta.interface, interface, address, mac, claim })?;
            copy_to_host(cx, burst, slot, interface);
            Err(DropReason::NeighbourDiscoveryConsumed)
        }
        Neighbour::Advertisement { .. } => Err(DropReason::NeighbourDiscoveryConsumed),
        Neighbour::Solicitation { target, source_mac } => {
            if !interface.answers_for(IpAddr::V6(target)) {
                return Err(DropReason::NeighbourDiscoveryConsumed);
            }
            if let Some(mac) = source_mac {
                let (address, claim) = (IpAddr::V6(source), NeighbourClaim::Asked);
                learn(cx, &Heard { number: meta.interface, interface, address, mac, claim })?;
            }
            // Who has no address yet asks whether ours is free: all nodes hear the answer (RFC 4861 7.2.4).
            let (to, mac) = match source_mac {
                _ if source.is_unspecified() => (ALL_NODES, MacAddr::of_ipv6_multicast(ALL_NODES)),
                Some(mac) => (source, mac),
                None => {
                    let from = bytes.get(6..12).and_then(|b| b.first_chunk()).ok_or(malformed)?;
                    (source, MacAddr(*from))
                }
            };
            let answer = Neighbour::Advertisement {
                target,
                target_mac: Some(interface.mac),
                router: true,
                solicited: !source.is_unspecified(),
                replaces: true,
            };
            let from = target;
            advertise(cx, burst, slot, interface, &answer, from, to, mac).ok_or(malformed)?;
            let len = rewrite::queue(cx, burst, slot, interface.port).unwrap_or(0);
            cx.counters.interface_out(meta.interface, u64::from(len > 0), len as u64);
            Ok(())
        }
    }
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Writes a neighbour discovery packet into the frame of `slot`, in place of what it held.
#[expect(clippy::too_many_arguments, reason = "the parts of one packet")]
fn advertise(
    cx: &Cx<'_>,
    burst: &mut Burst,
    slot: Slot,
    interface: &Interface,
    message: &Neighbour,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mac: MacAddr,
) -> Option<()> {
    let frame = burst.frame_mut(slot)?;
    cx.umem.reset(frame, HEADROOM);
    let len = discovery_len(&interface.header_v6, message);
    if !cx.umem.grow_back(frame, len) {
        return None;
    }
    write_discovery(cx.umem.bytes_mut(frame), &interface.header_v6, message, source, destination, mac)
}

/// Bytes of the frame that [`write_discovery`] writes.
#[must_use]
pub const fn discovery_len(link: &L2Header, message: &Neighbour) -> usize {
    link.header_len() + ipv6::HEADER_LEN + message.message_len()
}

/// Writes a whole frame with a neighbour discovery message (RFC 4861 4.3, 4.4). `None` when `bytes` is too short.
pub fn write_discovery(
    bytes: &mut [u8],
    link: &L2Header,
    message: &Neighbour,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mac: MacAddr,
) -> Option<()> {
    let link = link.with_destination(mac).with_ether_type(EtherType::IPV6);
    let at = link.write(bytes)?;
    let (header, body) = bytes.get_mut(at..)?.split_first_chunk_mut()?;
    let payload_len = message.emit(body, source, destination)? as u16;
    let repr = ipv6::Repr {
        traffic_class: 0,
        flow_label: 0,
        payload_len,
        next_header: protocol::ICMPV6,
        // What came through no router shows so (RFC 4861 7.1).
        hop_limit: 255,
        source,
        destination,
    };
    repr.emit(header);
    Some(())
}
