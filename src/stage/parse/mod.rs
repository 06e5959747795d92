//! Reads the headers of every packet, once, and makes a router's checks.

pub mod ordinary;

use std::net::Ipv4Addr;

use super::{
    Cx, Stage,
    vlan_demux::{self, Way},
};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, NO_INTERFACE, Slot, Slots, Tagging},
    table::tables::Tables,
    wire::{
        ethernet::EtherType,
        flow::{Kind, L4},
        ip::protocol,
        ipv4, ipv6, tcp, udp,
        vlan::{L2, TagKind, Tags},
    },
};

/// Finds each frame's interface by its tags, drops what is for another station, and fills each packet's [`Meta`]
/// from its headers (RFC 1812 5.2.2, RFC 8200) or drops it.
#[derive(Debug, Default)]
pub struct Parse;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    Arp,
    Ip,
}

impl Stage for Parse {
    const NAME: &'static str = "parse";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let mut left = super::take(&mut cx.lanes.rx, burst);
        while let Some(first) = left.first() {
            let way = Way::of(cx.tables, burst.meta(first).port, burst.bytes(cx.umem, first));
            let taken = way.map(|way| ordinary::take(cx, burst, left, &way)).unwrap_or_default();
            // What has no such way goes the long one, alone.
            let others = if taken.is_empty() { Slots::only(first) } else { taken.others };
            others.into_iter().for_each(|slot| other(cx, burst, slot));
            left -= taken.ordinary | others;
        }
    }
}

/// Takes up any frame: the long way.
fn other(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    let result = frame(cx.tables, bytes, meta);
    if meta.interface != NO_INTERFACE {
        cx.counters.interface_in(meta.interface, 1, meta.wire_len.into());
    }
    match result {
        Ok(Carried::Ip) => cx.lanes.ip.insert(slot),
        Ok(Carried::Arp) => cx.lanes.arp.insert(slot),
        Err(reason) => burst.drop(slot, reason),
    }
}

/// Reads any frame.
fn frame(tables: &Tables, bytes: &[u8], meta: &mut Meta) -> Result<Carried, DropReason> {
    let port = meta.port;
    *meta = Meta { port, wire_len: bytes.len() as u16, ..Meta::EMPTY };
    let l2 = L2::parse(bytes).map_err(|_| DropReason::EthernetTruncated)?;
    meta.l3 = l2.header_len() as u16;
    meta.flags = Flags::NONE.with(Flags::LINK_MULTICAST, l2.destination.is_multicast());
    match l2.tags {
        Tags::None => {}
        Tags::One(tag) => {
            let single = tag.kind == TagKind::Customer;
            meta.tagging = if single { Tagging::Single } else { Tagging::Other };
            meta.outer_tci = tag.tci;
        }
        Tags::Two(outer, inner) => {
            let double = outer.kind == TagKind::Service && inner.kind == TagKind::Customer;
            meta.tagging = if double { Tagging::Double } else { Tagging::Other };
            (meta.outer_tci, meta.inner_tci) = (outer.tci, inner.tci);
        }
    }
    let interface = vlan_demux::demux(tables, meta).ok_or(DropReason::UnknownVlan)?;
    if l2.destination != interface.mac && !l2.destination.is_multicast() {
        return Err(DropReason::NotForUs);
    }
    let packet = bytes.get(usize::from(meta.l3)..).unwrap_or(&[]);
    match l2.ether_type {
        EtherType::IPV4 => parse_v4(packet, meta).map(|()| Carried::Ip),
        EtherType::IPV6 => parse_v6(packet, meta).map(|()| Carried::Ip),
        EtherType::ARP => Ok(Carried::Arp),
        _ => Err(DropReason::UnknownEtherType),
    }
}

/// Reads the IP packet at `meta.l3` of either version: for packets out of a tunnel, and those made here.
pub fn ip(bytes: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    let packet = bytes.get(usize::from(meta.l3)..).unwrap_or(&[]);
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(packet, meta),
        Some(6) => parse_v6(packet, meta),
        Some(_) => Err(DropReason::IpVersion),
        None => Err(DropReason::IpTruncated),
    }
}

/// Whether an address is none of an ordinary host: "this network", loopback, or 224.0.0.0 and above.
#[inline]
const fn is_special(address: Ipv4Addr) -> bool {
    let first = address.to_bits() >> 24;
    // 1 to 126 and 128 to 223 are ordinary.
    first.wrapping_sub(1) >= 223 || first == 127
}

/// What is wrong with a packet from or to a special address. Everything is.
#[cold]
fn special_v4(source: Ipv4Addr, destination: Ipv4Addr) -> Result<(), DropReason> {
    if ipv4::is_martian_source(source) {
        return Err(DropReason::MartianSource);
    }
    if destination.is_multicast() || destination.is_broadcast() {
        return Err(DropReason::Multicast);
    }
    if ipv4::is_martian_destination(destination) {
        return Err(DropReason::MartianDestination);
    }
    Ok(())
}

#[inline(always)]
fn parse_v4(bytes: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    let packet = ipv4::parse(bytes).map_err(|error| match error {
        ipv4::Error::Truncated => DropReason::IpTruncated,
        ipv4::Error::Version => DropReason::IpVersion,
        ipv4::Error::HeaderLength => DropReason::Ipv4HeaderLength,
        ipv4::Error::TotalLength | ipv4::Error::BeyondFrame => DropReason::IpLength,
        ipv4::Error::Checksum => DropReason::Ipv4Checksum,
    })?;
    let header = &packet.header;
    let (source, destination) = (header.source(), header.destination());
    if is_special(source) || is_special(destination) {
        special_v4(source, destination)?;
    }
    let has_options = !packet.options.is_empty();
    if has_options && !ipv4::summarise_options(packet.options).is_ok_and(|options| !options.source_route) {
        return Err(DropReason::Ipv4Options);
    }
    let later = header.fragment_offset() != 0;
    meta.flags = meta
        .flags
        .without(Flags::V6)
        .with(Flags::FRAGMENT, header.is_fragment())
        .with(Flags::LATER_FRAGMENT, later)
        .with(Flags::OPTIONS, has_options)
        .with(Flags::DONT_FRAGMENT, header.dont_fragment());
    meta.src = source.to_bits();
    meta.dst = destination.to_bits();
    meta.ip_len = header.total_len();
    meta.l4 = meta.l3 + header.header_len() as u16;
    meta.tos = header.traffic_class();
    meta.ttl = header.ttl();
    transport(header.protocol(), packet.payload, meta)
}

#[inline]
fn parse_v6(bytes: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    let packet = ipv6::parse(bytes).map_err(|error| match error {
        ipv6::Error::Truncated => DropReason::IpTruncated,
        ipv6::Error::Version => DropReason::IpVersion,
        ipv6::Error::BeyondFrame => DropReason::IpLength,
    })?;
    let header = &packet.header;
    // An unspecified source is left to the local stage: duplicate address detection sends from it.
    if ipv6::is_martian_source(header.source()) && !header.source().is_unspecified() {
        return Err(DropReason::MartianSource);
    }
    if ipv6::is_martian_destination(header.destination()) {
        return Err(DropReason::MartianDestination);
    }
    // Also a packet without a payload is carried on (RFC 8200 4.7).
    let nothing = ipv6::WalkError::NoNextHeader;
    let walk = match packet.walk() {
        Err(error) if error != nothing => return Err(DropReason::Ipv6ExtensionHeaders),
        walk => walk.ok(),
    };
    let (proto, offset) =
        walk.map_or((protocol::NO_NEXT_HEADER, ipv6::HEADER_LEN as u16), |w| (w.protocol, w.offset));
    if walk.is_some_and(|w| w.source_route) {
        return Err(DropReason::Ipv6ExtensionHeaders);
    }
    let fragment = walk.and_then(|w| w.fragment).filter(|f| !f.is_atomic());
    meta.flags = (meta.flags | Flags::V6 | Flags::DONT_FRAGMENT)
        .with(Flags::FRAGMENT, fragment.is_some())
        .with(Flags::LATER_FRAGMENT, fragment.is_some_and(|f| f.offset != 0))
        .with(Flags::OPTIONS, usize::from(offset) != ipv6::HEADER_LEN);
    meta.ip_len = (ipv6::HEADER_LEN + packet.payload.len()) as u16;
    meta.l4 = meta.l3 + offset;
    meta.tos = header.traffic_class();
    meta.ttl = header.hop_limit();
    let l4 = packet.payload.get(usize::from(offset) - ipv6::HEADER_LEN..).unwrap_or(&[]);
    transport(proto, l4, meta)
}

/// Reads ports, or ICMP type, code and identifier.
///
/// A first fragment must hold the whole fixed header: RFC 1858 and 6192 tell what a shorter one is good for.
#[inline(always)]
fn transport(proto: u8, l4: &[u8], meta: &mut Meta) -> Result<(), DropReason> {
    meta.proto = proto;
    if meta.flags.has(Flags::LATER_FRAGMENT) {
        return Ok(());
    }
    if matches!(proto, protocol::TCP | protocol::UDP) {
        let least = if proto == protocol::TCP { tcp::HEADER_LEN } else { udp::HEADER_LEN };
        let Some(&[s0, s1, d0, d1]) = l4.first_chunk().filter(|_| l4.len() >= least) else {
            return Err(DropReason::TransportTruncated);
        };
        meta.sport = u16::from_be_bytes([s0, s1]);
        meta.dport = u16::from_be_bytes([d0, d1]);
        meta.flags |= Flags::HAS_PORTS;
        return Ok(());
    }
    let flow = L4::parse(proto, l4).map_err(|_| DropReason::TransportTruncated)?;
    meta.sport = flow.source;
    meta.dport = flow.destination;
    meta.flags = meta
        .flags
        .with(Flags::HAS_PORTS, flow.kind != Kind::Opaque)
        .with(Flags::ICMP_ERROR, flow.kind == Kind::IcmpError);
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
