//! ICMP errors about our own ESP packets (RFC 4301 8.2): what they tell of the path to a tunnel's peer.
//!
//! Nobody has signed them, so each must quote a packet that we have just sent: the addresses and the SPI of a live
//! association, and one of its latest sequence numbers. Who is not on the path cannot know these.

use std::{net::IpAddr, sync::atomic::Ordering};

use super::{
    Cx, Stage,
    icmp_error::{self, Problem},
};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, Slot},
    table::{
        path::{self, LEAST_V4, LEAST_V6, TROUBLE_AGE},
        tunnel::Tunnel,
    },
    wire::{esp, icmpv4, icmpv6, ip::protocol, ipv6::Ipv6, udp},
};

/// Learns path MTUs and unreachable peers from what comes to the gateway itself.
#[derive(Debug, Default)]
pub struct PathErrors;

/// Tells those who send into a tunnel whose peer was found out of reach, at the rate that errors may have.
#[derive(Debug, Default)]
pub struct Unreachable;

impl Unreachable {
    /// Whether any tunnel's peer was found out of reach lately: one look a burst.
    #[inline]
    #[must_use]
    pub fn is_due(cx: &Cx<'_>) -> bool {
        let reported = cx.tables.trouble.load(Ordering::Relaxed);
        reported > 0 && cx.now < reported + TROUBLE_AGE
    }
}

impl Stage for Unreachable {
    const NAME: &'static str = "unreachable";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in cx.lanes.seal & burst.live() {
            let tunnel = cx.tables.tunnel(burst.meta(slot).tunnel);
            if tunnel.is_some_and(|tunnel| tunnel.path.is_unreachable(cx.now)) {
                // The packet itself goes on: the report may be wrong, or over (RFC 4301 8.2, RFC 5927 6).
                icmp_error::tell(cx, burst, slot, Problem::HostUnreachable);
            }
        }
    }
}

/// How far behind the newest sequence number a quoted one may be: a round trip of 60 ms at ten million packets a
/// second, of seconds at usual rates.
const RECENT: u32 = 1 << 20;

/// What an error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Packets may be no larger than this; 0: the router does not say.
    TooBig(u32),
    /// The peer cannot be reached.
    Unreachable,
    /// Nothing of use.
    Nothing,
}

/// The packet that an error is about.
struct Quote<'a> {
    source: IpAddr,
    destination: IpAddr,
    /// Bytes of the packet.
    len: u32,
    in_udp: bool,
    esp: &'a [u8],
}

impl Stage for PathErrors {
    const NAME: &'static str = "path-errors";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in cx.lanes.local & burst.live() {
            let flags = burst.meta(slot).flags;
            // Out of a tunnel comes nothing about the tunnel's own path.
            if flags.has(Flags::ICMP_ERROR)
                && !flags.any(Flags::FROM_TUNNEL | Flags::FRAGMENT)
                && let Some(reason) = examine(cx, burst, slot)
            {
                burst.drop(slot, reason);
            }
        }
    }
}

/// Acts on an error about one of our ESP packets. `None`: it is about something else.
#[cold]
fn examine(cx: &Cx<'_>, burst: &Burst, slot: Slot) -> Option<DropReason> {
    let meta = burst.meta(slot);
    let bytes = burst.bytes(cx.umem, slot);
    let message = bytes.get(usize::from(meta.l4)..usize::from(meta.l3 + meta.ip_len))?;
    let (news, quote) = if meta.is_v6() { read_v6(bytes, message, meta)? } else { read_v4(message)? };
    let Some(tunnel) = sender(cx, meta, &quote) else { return Some(DropReason::IcmpQuoteMismatch) };
    match news {
        News::TooBig(mtu) => {
            if let Some(mtu) = believable(mtu, &quote, tunnel) {
                tunnel.path.lower(mtu, cx.now);
            }
        }
        News::Unreachable => unreachable_peer(cx, tunnel),
        News::Nothing => {}
    }
    Some(DropReason::LocalConsumed)
}

/// Remembers that a tunnel's peer is out of reach: those who send into it are told.
pub fn unreachable_peer(cx: &Cx<'_>, tunnel: &Tunnel) {
    tunnel.path.report_unreachable(cx.now);
    cx.tables.trouble.store(cx.now, Ordering::Relaxed);
}

fn read_v4(message: &[u8]) -> Option<(News, Quote<'_>)> {
    let parsed = icmpv4::parse(message).ok()?;
    let quoted = icmpv4::quoted(parsed.body)?;
    let news = match icmpv4::Repr::parse(&parsed.header)? {
        icmpv4::Repr::FragmentationNeeded { mtu } => News::TooBig(mtu.into()),
        icmpv4::Repr::Unreachable { .. } | icmpv4::Repr::TimeExceeded { code: 0 } => News::Unreachable,
        _ => News::Nothing,
    };
    let header = quoted.header;
    // A later fragment of an ESP packet has no SPI.
    if header.fragment_offset() != 0 {
        return None;
    }
    let (in_udp, esp) = esp_of(header.protocol(), quoted.payload)?;
    let (source, destination) = (IpAddr::V4(header.source()), IpAddr::V4(header.destination()));
    Some((news, Quote { source, destination, len: header.total_len().into(), in_udp, esp }))
}

fn read_v6<'a>(packet: &[u8], message: &'a [u8], meta: &Meta) -> Option<(News, Quote<'a>)> {
    let outer = Ipv6::at(packet, usize::from(meta.l3))?;
    let parsed = icmpv6::parse(message, outer.source(), outer.destination()).ok()?;
    let quoted = icmpv6::quoted(parsed.body)?;
    let news = match icmpv6::Repr::parse(&parsed.header)? {
        icmpv6::Repr::PacketTooBig { mtu } => News::TooBig(mtu),
        icmpv6::Repr::Unreachable { .. } | icmpv6::Repr::TimeExceeded { code: 0 } => News::Unreachable,
        _ => News::Nothing,
    };
    if quoted.walk.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    let (in_udp, esp) = esp_of(quoted.walk.protocol, quoted.payload)?;
    let (source, destination) = (IpAddr::V6(quoted.header.source()), IpAddr::V6(quoted.header.destination()));
    let len = u32::from(quoted.header.payload_len()) + crate::wire::ipv6::HEADER_LEN as u32;
    Some((news, Quote { source, destination, len, in_udp, esp }))
}

/// The ESP packet in a quote, and whether it is in UDP. `None`: it is none, or IKE, or too little of it is quoted to know.
fn esp_of(proto: u8, payload: &[u8]) -> Option<(bool, &[u8])> {
    match proto {
        protocol::ESP => Some((false, payload)),
        protocol::UDP => {
            let (header, rest) = udp::Udp::split(payload)?;
            let ours = header.source_port() == esp::UDP_PORT && header.destination_port() == esp::UDP_PORT;
            let marker = rest.first_chunk::<4>()?;
            (ours && *marker != [0; 4]).then_some((true, rest))
        }
        _ => None,
    }
}

/// The tunnel that has sent the quoted packet, lately.
fn sender<'a>(cx: &Cx<'a>, meta: &Meta, quote: &Quote<'_>) -> Option<&'a Tunnel> {
    let &[s0, s1, s2, s3, n0, n1, n2, n3] = quote.esp.first_chunk()?;
    let spi = u32::from_be_bytes([s0, s1, s2, s3]);
    let number = match quote.destination {
        IpAddr::V4(remote) => cx.tables.sealing_v4.lookup((spi, remote.to_bits())),
        IpAddr::V6(remote) => cx.tables.sealing_v6.lookup((spi, remote.to_bits())),
    };
    let tunnel = cx.tables.tunnels.get(number? as usize)?;
    let sa = tunnel.sa.as_deref()?;
    let outer = &tunnel.outer;
    let behind = (sa.sequence.next() as u32).wrapping_sub(u32::from_be_bytes([n0, n1, n2, n3]));
    let ours = sa.spi == spi
        && outer.source() == Some(quote.source)
        && outer.is_udp() == quote.in_udp
        && tunnel.underlay == meta.gateway
        && (1..=RECENT).contains(&behind);
    ours.then_some(tunnel)
}

/// The MTU to be learned from an error, if any: less than the packet that was too big, no less than any path takes, and
/// less than is known.
fn believable(mtu: u32, quote: &Quote<'_>, tunnel: &Tunnel) -> Option<u16> {
    if mtu >= quote.len {
        return None;
    }
    let mtu = u16::try_from(mtu).ok()?;
    let mtu = if tunnel.outer.is_v6() {
        // A path that takes less than any IPv6 path must is none (RFC 8201 4).
        if mtu < LEAST_V6 {
            return None;
        }
        mtu
    } else {
        let said = if mtu == 0 { path::plateau_below(u16::try_from(quote.len).ok()?) } else { mtu };
        said.max(LEAST_V4)
    };
    (mtu < tunnel.line_mtu).then_some(mtu)
}
