//! Reads the headers of every packet, once, and makes a router's checks.

use std::net::Ipv4Addr;

use super::{
    Cx, Stage,
    vlan_demux::{self, Way},
};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, NO_INTERFACE, Slots, Tagging},
    table::tables::{Gateway, Tables},
    wire::{
        checksum::Sum,
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
        let mut way = Way::none();
        let mut run = Run::default();
        let (mut ip, mut forward, mut esp) = (Slots::NONE, Slots::NONE, Slots::NONE);
        for slot in super::take(&mut cx.lanes.rx, burst) {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            if let Some(gateway) = ordinary(cx.tables, &mut way, bytes, meta) {
                run.add(cx, meta.interface, u64::from(meta.wire_len));
                // Only what is for the gateway itself needs to be looked at by the local stage.
                match gateway.own.v4(meta.dst) {
                    None => forward.insert(slot),
                    Some(_) if meta.proto == protocol::ESP => esp.insert(slot),
                    Some(_) => ip.insert(slot),
                }
                continue;
            }
            let result = frame(cx.tables, bytes, meta);
            if meta.interface != NO_INTERFACE {
                run.add(cx, meta.interface, u64::from(meta.wire_len));
            }
            match result {
                Ok(Carried::Ip) => ip.insert(slot),
                Ok(Carried::Arp) => cx.lanes.arp.insert(slot),
                Err(reason) => burst.drop(slot, reason),
            }
        }
        cx.lanes.ip |= ip;
        cx.lanes.forward |= forward;
        cx.lanes.esp |= esp;
        run.flush(cx);
    }
}

/// Packets and bytes into one interface, not counted yet: a burst is mostly of one.
#[derive(Default)]
struct Run {
    interface: u16,
    packets: u64,
    bytes: u64,
}

impl Run {
    #[inline(always)]
    fn add(&mut self, cx: &Cx<'_>, interface: u16, bytes: u64) {
        if interface != self.interface {
            self.flush(cx);
            self.interface = interface;
        }
        self.packets += 1;
        self.bytes += bytes;
    }

    fn flush(&mut self, cx: &Cx<'_>) {
        if self.packets > 0 {
            cx.counters.interface_in(self.interface, self.packets, self.bytes);
        }
        (self.packets, self.bytes) = (0, 0);
    }
}

/// A short cut for what nearly all packets are: untagged or with one 802.1Q tag, to our station, IPv4 without
/// options, no fragment, TCP, UDP or ESP. Fills in the whole metadata and returns the gateway; `None`, with the metadata
/// as it was, for any other packet, of which [`frame`] finds out what it is.
#[inline(always)]
fn ordinary<'a>(tables: &'a Tables, way: &mut Way<'a>, bytes: &[u8], meta: &mut Meta) -> Option<&'a Gateway> {
    let head = bytes.first_chunk()?;
    if !way.is_of(meta.port, head) {
        way.find(tables, meta.port, head);
    }
    let gateway = way.gateway?;
    let packet = bytes.get(usize::from(way.template.l3)..)?;
    let (header, rest) = packet.split_first_chunk::<{ ipv4::HEADER_LEN }>()?;
    let [p0, p1, p2, p3] = *rest.first_chunk()?;
    let [version_ihl, tos, l0, l1, _, _, f0, f1, ttl, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let (ip_len, fragment) = (u16::from_be_bytes([l0, l1]), u16::from_be_bytes([f0, f1]));
    let (src, dst) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([d0, d1, d2, d3]));
    let least = match proto {
        protocol::TCP => ipv4::HEADER_LEN + tcp::HEADER_LEN,
        protocol::UDP => ipv4::HEADER_LEN + udp::HEADER_LEN,
        protocol::ESP => ipv4::HEADER_LEN,
        _ => return None,
    };
    let is_ordinary = way.is_for_us(head)
        && version_ihl == 0x45
        && usize::from(ip_len) >= least
        && usize::from(ip_len) <= packet.len()
        // The reserved bit may be anything (RFC 791, RFC 3514).
        && fragment & 0x3fff == 0
        && !is_special(src.into())
        && !is_special(dst.into())
        && Sum::of_header(header).is_valid();
    if !is_ordinary {
        return None;
    }
    *meta = way.template;
    meta.src = src;
    meta.dst = dst;
    if proto == protocol::ESP {
        meta.flags = meta.flags.without(Flags::HAS_PORTS);
    } else {
        meta.sport = u16::from_be_bytes([p0, p1]);
        meta.dport = u16::from_be_bytes([p2, p3]);
    }
    meta.ip_len = ip_len;
    meta.flags = meta.flags.with(Flags::DONT_FRAGMENT, fragment & 0x4000 != 0);
    meta.proto = proto;
    meta.tos = tos;
    meta.ttl = ttl;
    meta.wire_len = bytes.len() as u16;
    Some(gateway)
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
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::{
        table::{
            hash::Seed,
            interface::{Demux, Interface, Side},
            lpm::{Lpm4, Lpm6},
            neighbour::NeighbourTable,
            sad::Sad,
            spd::Spd,
            tables::Features,
        },
        wire::{ethernet::MacAddr, vlan::L2Header},
    };

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    /// Port 0 with an untagged interface, VLANs 100 and 300, and 802.1ad 200 with 100 in it.
    fn tables() -> Tables {
        let seed = Seed::new(1, 2);
        let header = L2Header::new(MacAddr::ZERO, MAC, Tags::None, EtherType::IPV4);
        let interface = |number: u16| Interface {
            port: 0,
            gateway: number % 2,
            side: if number == 0 { Side::Local } else { Side::Peer },
            mac: MAC,
            mtu: 1500,
            header_v4: header,
            header_v6: header,
            addresses: smallvec::SmallVec::new(),
            proxied: Vec::new(),
            host: None,
        };
        let gateway = |_| Gateway {
            own: Default::default(),
            routes_v4: Lpm4::new().0,
            routes_v6: Lpm6::new().0,
            spd: Spd::build(&[], seed).unwrap(),
            actions: Vec::new(),
            first_policy: 0,
            protects: false,
            nat: None,
            transit: false,
            icmp_source: (None, None),
        };
        let mut demux = Demux::default();
        demux.bind(0, 0);
        demux.bind(100, 1);
        demux.bind(300, 2);
        demux.bind_double(200, 100, 3);
        Tables {
            generation: 0,
            demux: [demux].into(),
            interfaces: (0..4).map(interface).collect(),
            gateways: (0..2).map(gateway).collect(),
            next_hops: [].into(),
            tunnels: Vec::new(),
            sad_v4: Sad::build(&[], seed).unwrap(),
            sad_v6: Sad::build(&[], seed).unwrap(),
            sas: Vec::new(),
            neighbours: NeighbourTable::new(16, seed).0,
            sealing_v4: Sad::build(&[], seed).unwrap(),
            sealing_v6: Sad::build(&[], seed).unwrap(),
            trouble: Default::default(),
            liveness: Default::default(),
            limits: Default::default(),
            features: Features::of(&[], &[]),
        }
    }

    fn ordinary_frame(tag: Option<u16>, proto: u8, payload: usize, dont_fragment: bool) -> Vec<u8> {
        let mut frame = [MAC.0, [2, 0, 0, 0, 0, 2]].concat();
        if let Some(tci) = tag {
            frame.extend([0x81, 0x00]);
            frame.extend(tci.to_be_bytes());
        }
        frame.extend([0x08, 0x00]);
        let mut header = [0; ipv4::HEADER_LEN];
        ipv4::Repr {
            traffic_class: 0x2e,
            total_len: (ipv4::HEADER_LEN + 20 + payload) as u16,
            identification: 7,
            dont_fragment,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 9,
            protocol: proto,
            source: [10, 0, 0, 1].into(),
            destination: [198, 51, 100, 9].into(),
        }
        .emit(&mut header);
        frame.extend(header);
        frame.extend((0..20 + payload).map(|n| n as u8));
        frame
    }

    #[test]
    fn the_short_cut_takes_what_is_ordinary() {
        let tables = tables();
        let mut way = Way::none();
        for (tag, proto) in
            [(None, 6), (Some(100), 17), (Some(0xe12c), 6), (Some(0x6000), 17), (Some(100), 50)]
        {
            let frame = ordinary_frame(tag, proto, 10, true);
            assert!(ordinary(&tables, &mut way, &frame, &mut Meta::EMPTY.clone()).is_some(), "{tag:?}");
        }
        for (tag, proto) in [(Some(101), 6), (None, 1), (Some(100), 51)] {
            let frame = ordinary_frame(tag, proto, 10, true);
            assert!(ordinary(&tables, &mut way, &frame, &mut Meta::EMPTY.clone()).is_none(), "{tag:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Frames that are ordinary but for a few bytes or their length, on several ways in turn.
        #[test]
        fn the_short_cut_says_what_the_long_way_says(
            frames in prop::collection::vec((
                prop::sample::select(vec![None, Some(100), Some(0xe12c), Some(0), Some(101)]),
                prop::sample::select(vec![6_u8, 17, 1, 50]),
                0..40_usize,
                any::<bool>(),
                prop::collection::vec((any::<Index>(), any::<u8>()), 0..3),
                prop::option::weighted(0.2, any::<Index>()),
                any::<bool>(),
            ), 1..8),
        ) {
            let tables = tables();
            let mut way = Way::none();
            for (tag, proto, payload, dont_fragment, changes, cut, mend) in frames {
                let mut bytes = ordinary_frame(tag, proto, payload, dont_fragment);
                for (place, value) in changes {
                    // Most of them where the headers are.
                    let near = bytes.len().min(48);
                    bytes[place.index(near)] = value;
                }
                let l3 = if tag.is_some() { 18 } else { 14 };
                if let Some(header) = bytes.get_mut(l3..).and_then(|b| ipv4::Ipv4::at_mut(b, 0)).filter(|_| mend) {
                    let mut header = header;
                    header.fill_checksum();
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                let (mut short, mut long) = (Meta::EMPTY, Meta::EMPTY);
                let result = frame(&tables, &bytes, &mut long);
                if let Some(gateway) = ordinary(&tables, &mut way, &bytes, &mut short) {
                    prop_assert_eq!(result, Ok(Carried::Ip));
                    prop_assert_eq!(format!("{short:?}"), format!("{long:?}"));
                    prop_assert!(std::ptr::eq(gateway, tables.gateway(long.gateway).unwrap()));
                }
            }
        }
    }
}
