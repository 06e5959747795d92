//! ICMP for IPv6 (RFC 4443) and the neighbour discovery a router needs (RFC 4861).

use super::checksum::Sum;
use super::ethernet::MacAddr;
use super::ip::protocol;
use super::ipv6;
use std::borrow::Borrow;
use std::net::Ipv6Addr;

/// Bytes of the header every message here has.
pub const HEADER_LEN: usize = 8;
/// Bytes of a neighbour solicitation or advertisement without options.
pub const NEIGHBOUR_LEN: usize = 24;
/// Bytes of one with a link-layer address.
pub const NEIGHBOUR_WITH_MAC_LEN: usize = 32;

/// Message types (IANA "ICMPv6 type Numbers").
pub mod kind {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Codes of destination unreachable (RFC 4443 3.1).
pub mod unreachable {
    /// No route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Administratively prohibited.
    pub const PROHIBITED: u8 = 1;
    /// Beyond the scope of the source address.
    pub const BEYOND_SCOPE: u8 = 2;
    /// Address unreachable.
    pub const ADDRESS: u8 = 3;
    /// Port unreachable.
    pub const PORT: u8 = 4;
    /// The source address failed the ingress or egress policy.
    pub const SOURCE_POLICY: u8 = 5;
    /// Reject route.
    pub const REJECT_ROUTE: u8 = 6;
}

header! {
    /// The header of an ICMPv6 message; the meaning of its second half depends on the type.
    Icmpv6: 8 {
        /// Message type; see [`kind`].
        kind, set_kind: u8 = 0;
        /// Code within the type.
        code, set_code: u8 = 1;
        /// Checksum over pseudo-header and message.
        checksum, set_checksum: u16 = 2;
        /// Identifier of an echo.
        identifier, set_identifier: u16 = 4;
        /// Sequence number of an echo.
        sequence, set_sequence: u16 = 6;
        /// The second half as one: the MTU (packet too big), the pointer (parameter problem), the flags
        /// (neighbour advertisement).
        rest, set_rest: u32 = 4;
    }
}

/// Whether messages of this type quote a packet (RFC 4443 2.1); no error answers an error.
#[inline]
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}

/// Whether messages of this type carry an identifier: echo.
#[inline]
pub const fn is_query(kind: u8) -> bool {
    matches!(kind, kind::ECHO_REQUEST | kind::ECHO_REPLY)
}

/// Whether messages of this type are neighbour discovery, which never passes a router.
#[inline]
pub const fn is_neighbour_discovery(kind: u8) -> bool {
    matches!(kind, kind::ROUTER_SOLICITATION..=kind::REDIRECT)
}

/// Why bytes are not an ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer than 8 bytes.
    #[error("ICMPv6 message truncated")]
    Truncated,
    /// The checksum is wrong.
    #[error("ICMPv6 checksum wrong")]
    Checksum,
}

/// An ICMPv6 message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The header.
    pub header: Icmpv6<&'a [u8; HEADER_LEN]>,
    /// What follows it: echo data, the start of the quoted packet, or neighbour discovery.
    pub body: &'a [u8],
}

/// The sum of the pseudo-header of a message of `len` bytes.
#[inline]
pub const fn pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, len: usize) -> Sum {
    Sum::pseudo_v6(source, destination, protocol::ICMPV6, len as u32)
}

/// Reads the message in an IP payload and verifies its checksum.
#[inline]
pub fn parse(bytes: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> Result<Message<'_>, Error> {
    let (header, body) = Icmpv6::split(bytes).ok_or(Error::Truncated)?;
    let sum = pseudo_header(source, destination, bytes.len()).combine(Sum::of(bytes));
    if sum.is_valid() { Ok(Message { header, body }) } else { Err(Error::Checksum) }
}

/// A packet quoted in an error.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a> {
    /// The quoted fixed header. Its payload length is the original's, not the quote's.
    pub header: ipv6::Ipv6<&'a [u8; ipv6::HEADER_LEN]>,
    /// The quoted extension headers' end and protocol.
    pub walk: ipv6::Walk,
    /// What is quoted of layer 4; possibly less than its header, possibly nothing.
    pub payload: &'a [u8],
}

/// Reads the packet quoted in an error's body; `None` when it is no IPv6 header, or the quote ends within its
/// extension headers.
#[inline]
pub fn quoted(body: &[u8]) -> Option<Quoted<'_>> {
    let (header, rest) = ipv6::Ipv6::split(body)?;
    if header.version() != 6 {
        return None;
    }
    // RFC 4884 extensions and padding may follow the packet: its own length bounds the quote.
    let rest = rest.get(..rest.len().min(usize::from(header.payload_len())))?;
    let walk = ipv6::walk(header.next_header(), rest).ok()?;
    let payload = rest.get(usize::from(walk.offset).checked_sub(ipv6::HEADER_LEN)?..)?;
    Some(Quoted { header, walk, payload })
}

/// What a message says, its body aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repr {
    /// Echo request.
    EchoRequest {
        /// Identifier.
        identifier: u16,
        /// Sequence number.
        sequence: u16,
    },
    /// Echo reply.
    EchoReply {
        /// Identifier.
        identifier: u16,
        /// Sequence number.
        sequence: u16,
    },
    /// Destination unreachable.
    Unreachable {
        /// See [`mod@unreachable`].
        code: u8,
    },
    /// Packet too big.
    PacketTooBig {
        /// The largest packet the next hop takes.
        mtu: u32,
    },
    /// Time exceeded: code 0 in transit, 1 in reassembly.
    TimeExceeded {
        /// The code.
        code: u8,
    },
    /// Parameter problem: code 0 a field, 1 an unknown next header, 2 an unknown option.
    ParameterProblem {
        /// The code.
        code: u8,
        /// The byte of the packet that is at fault.
        pointer: u32,
    },
}

impl Repr {
    /// What a header says; `None` for types not in the list.
    pub fn parse<T: Borrow<[u8; HEADER_LEN]>>(header: &Icmpv6<T>) -> Option<Self> {
        let (identifier, sequence, code) = (header.identifier(), header.sequence(), header.code());
        Some(match (header.kind(), code) {
            (kind::ECHO_REQUEST, 0) => Self::EchoRequest { identifier, sequence },
            (kind::ECHO_REPLY, 0) => Self::EchoReply { identifier, sequence },
            (kind::UNREACHABLE, _) => Self::Unreachable { code },
            // The code is zero when sent and ignored when received (RFC 4443 3.2).
            (kind::PACKET_TOO_BIG, _) => Self::PacketTooBig { mtu: header.rest() },
            (kind::TIME_EXCEEDED, _) => Self::TimeExceeded { code },
            (kind::PARAMETER_PROBLEM, _) => Self::ParameterProblem { code, pointer: header.rest() },
            _ => return None,
        })
    }

    /// Writes header and checksum into `message`, whose body is in place after the header.
    ///
    /// `None`, and nothing written, when it is shorter than the header.
    pub fn emit(&self, message: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) -> Option<()> {
        let (mut header, _) = Icmpv6::split_mut(message)?;
        let words = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
        let (kind, code, rest) = match *self {
            Self::EchoRequest { identifier, sequence } => {
                (kind::ECHO_REQUEST, 0, words(identifier, sequence))
            }
            Self::EchoReply { identifier, sequence } => (kind::ECHO_REPLY, 0, words(identifier, sequence)),
            Self::Unreachable { code } => (kind::UNREACHABLE, code, 0),
            Self::PacketTooBig { mtu } => (kind::PACKET_TOO_BIG, 0, mtu),
            Self::TimeExceeded { code } => (kind::TIME_EXCEEDED, code, 0),
            Self::ParameterProblem { code, pointer } => (kind::PARAMETER_PROBLEM, code, pointer),
        };
        header.set_kind(kind);
        header.set_code(code);
        header.set_rest(rest);
        fill_checksum(message, source, destination)
    }
}

/// Computes and writes the checksum of a message; `None` when it is shorter than a header.
pub fn fill_checksum(message: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) -> Option<()> {
    Icmpv6::split_mut(message)?.0.set_checksum(0);
    let sum = pseudo_header(source, destination, message.len()).combine(Sum::of(message));
    Icmpv6::split_mut(message)?.0.set_checksum(sum.checksum());
    Some(())
}

header! {
    /// A neighbour solicitation or advertisement, without its options.
    NeighbourHeader: 24 {
        /// 135 or 136.
        kind, set_kind: u8 = 0;
        /// Zero.
        code, set_code: u8 = 1;
        /// Checksum over pseudo-header and message.
        checksum, set_checksum: u16 = 2;
        /// Router, solicited and override bits of an advertisement (high three bits).
        flags, set_flags: u32 = 4;
        /// The address asked about or advertised.
        target, set_target: Ipv6Addr = 8;
    }
}

/// Option types of neighbour discovery (RFC 4861 4.6).
pub mod option {
    /// The link-layer address of the sender.
    pub const SOURCE_LINK_LAYER: u8 = 1;
    /// The link-layer address of the target.
    pub const TARGET_LINK_LAYER: u8 = 2;
}

const ROUTER: u32 = 1 << 31;
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;

/// What a neighbour solicitation or advertisement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Who has the target address?
    Solicitation {
        /// The address asked about.
        target: Ipv6Addr,
        /// Where the sender is; absent when it has no address yet.
        source_mac: Option<MacAddr>,
    },
    /// The target address is here.
    Advertisement {
        /// The address advertised.
        target: Ipv6Addr,
        /// Where it is; may be absent in the answer to a unicast solicitation.
        target_mac: Option<MacAddr>,
        /// The sender is a router.
        router: bool,
        /// It answers a solicitation.
        solicited: bool,
        /// It replaces what was known.
        replaces: bool,
    },
}

/// Why a message must be discarded as neighbour discovery (RFC 4861 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NeighbourError {
    /// Neither solicitation nor advertisement.
    #[error("not a neighbour solicitation or advertisement")]
    Kind,
    /// The hop limit is not 255: it came through a router.
    #[error("neighbour discovery hop limit is not 255")]
    HopLimit,
    /// The checksum is wrong.
    #[error("neighbour discovery checksum wrong")]
    Checksum,
    /// The code is not zero.
    #[error("neighbour discovery code is not 0")]
    Code,
    /// Fewer than 24 bytes.
    #[error("neighbour discovery message truncated")]
    Truncated,
    /// An option has length zero, or goes beyond the message.
    #[error("neighbour discovery option malformed")]
    Option,
    /// The target is a multicast address.
    #[error("neighbour discovery target is multicast")]
    Target,
    /// An unspecified source asks other than the solicited-node group, or gives its address; or a multicast
    /// advertisement claims to be solicited.
    #[error("neighbour discovery addresses contradict each other")]
    Addresses,
}

impl Neighbour {
    /// Reads a message and makes every check of RFC 4861 7.1.1 and 7.1.2.
    pub fn parse(
        bytes: &[u8],
        source: Ipv6Addr,
        destination: Ipv6Addr,
        hop_limit: u8,
    ) -> Result<Self, NeighbourError> {
        let (header, options) = NeighbourHeader::split(bytes).ok_or(NeighbourError::Truncated)?;
        let wanted = match header.kind() {
            kind::NEIGHBOUR_SOLICITATION => option::SOURCE_LINK_LAYER,
            kind::NEIGHBOUR_ADVERTISEMENT => option::TARGET_LINK_LAYER,
            _ => return Err(NeighbourError::Kind),
        };
        if hop_limit != 255 {
            return Err(NeighbourError::HopLimit);
        }
        if !pseudo_header(source, destination, bytes.len()).combine(Sum::of(bytes)).is_valid() {
            return Err(NeighbourError::Checksum);
        }
        if header.code() != 0 {
            return Err(NeighbourError::Code);
        }
        let target = header.target();
        if target.is_multicast() {
            return Err(NeighbourError::Target);
        }
        let mac = link_layer(options, wanted)?;
        if header.kind() == kind::NEIGHBOUR_SOLICITATION {
            if source.is_unspecified() && (mac.is_some() || destination != ipv6::solicited_node(target)) {
                return Err(NeighbourError::Addresses);
            }
            return Ok(Self::Solicitation { target, source_mac: mac });
        }
        let flags = header.flags();
        if destination.is_multicast() && flags & SOLICITED != 0 {
            return Err(NeighbourError::Addresses);
        }
        Ok(Self::Advertisement {
            target,
            target_mac: mac,
            router: flags & ROUTER != 0,
            solicited: flags & SOLICITED != 0,
            replaces: flags & OVERRIDE != 0,
        })
    }

    /// Bytes of the message: 24, or 32 with a link-layer address.
    pub const fn message_len(&self) -> usize {
        match self {
            Self::Solicitation { source_mac: None, .. } | Self::Advertisement { target_mac: None, .. } => {
                NEIGHBOUR_LEN
            }
            _ => NEIGHBOUR_WITH_MAC_LEN,
        }
    }

    /// Writes the message and returns its length; `None`, and nothing written, when it does not fit.
    pub fn emit(&self, buffer: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) -> Option<usize> {
        let message = buffer.get_mut(..self.message_len())?;
        let (mut header, options) = NeighbourHeader::split_mut(message)?;
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let (kind, flags, target, option, mac) = match *self {
            Self::Solicitation { target, source_mac } => {
                (kind::NEIGHBOUR_SOLICITATION, 0, target, option::SOURCE_LINK_LAYER, source_mac)
            }
            Self::Advertisement { target, target_mac, router, solicited, replaces } => (
                kind::NEIGHBOUR_ADVERTISEMENT,
                bit(router, ROUTER) | bit(solicited, SOLICITED) | bit(replaces, OVERRIDE),
                target,
                option::TARGET_LINK_LAYER,
                target_mac,
            ),
        };
        header.set_kind(kind);
        header.set_code(0);
        header.set_flags(flags);
        header.set_target(target);
        if let (Some(MacAddr([a, b, c, d, e, f])), Some(place)) = (mac, options.first_chunk_mut()) {
            *place = [option, 1, a, b, c, d, e, f];
        }
        fill_checksum(message, source, destination)?;
        Some(message.len())
    }
}

/// The MAC address in the option of type `wanted`, the last if there are several.
fn link_layer(mut options: &[u8], wanted: u8) -> Result<Option<MacAddr>, NeighbourError> {
    let mut found = None;
    while !options.is_empty() {
        let &[kind, units] = options.first_chunk().ok_or(NeighbourError::Option)?;
        if units == 0 {
            return Err(NeighbourError::Option);
        }
        let (this, rest) = options.split_at_checked(usize::from(units) * 8).ok_or(NeighbourError::Option)?;
        if let (true, &[_, _, a, b, c, d, e, f]) = (kind == wanted, this) {
            found = Some(MacAddr([a, b, c, d, e, f]));
        }
        options = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn repr() -> impl Strategy<Value = Repr> {
        any::<(u8, u8, u16, u16, u32)>().prop_map(|(which, code, a, b, c)| match which % 6 {
            0 => Repr::EchoRequest { identifier: a, sequence: b },
            1 => Repr::EchoReply { identifier: a, sequence: b },
            2 => Repr::Unreachable { code },
            3 => Repr::PacketTooBig { mtu: c },
            4 => Repr::TimeExceeded { code },
            _ => Repr::ParameterProblem { code, pointer: c },
        })
    }

    /// A good solicitation, changed, with its checksum put right again.
    fn solicitation(source: Ipv6Addr, mac: Option<MacAddr>, change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut bytes = [0; 32];
        let message = Neighbour::Solicitation { target: B, source_mac: mac };
        let len = message.emit(&mut bytes, source, ipv6::solicited_node(B)).unwrap();
        change(&mut bytes[..len]);
        fill_checksum(&mut bytes[..len], source, ipv6::solicited_node(B)).unwrap();
        bytes[..len].to_vec()
    }

    #[test]
    fn neighbour_checks() {
        let to = ipv6::solicited_node(B);
        let good = solicitation(A, Some(MAC), |_| ());
        let expected = Neighbour::Solicitation { target: B, source_mac: Some(MAC) };
        assert_eq!(Neighbour::parse(&good, A, to, 255), Ok(expected));
        assert_eq!(Neighbour::parse(&good, A, to, 254), Err(NeighbourError::HopLimit));
        assert_eq!(Neighbour::parse(&good, B, to, 255), Err(NeighbourError::Checksum));
        assert_eq!(Neighbour::parse(&good[..23], A, to, 255), Err(NeighbourError::Truncated));
        let fail = |change: &dyn Fn(&mut [u8])| {
            Neighbour::parse(&solicitation(A, Some(MAC), change), A, to, 255).unwrap_err()
        };
        assert_eq!(fail(&|b| b[0] = 134), NeighbourError::Kind);
        assert_eq!(fail(&|b| b[1] = 1), NeighbourError::Code);
        assert_eq!(fail(&|b| b[8] = 0xff), NeighbourError::Target);
        assert_eq!(fail(&|b| b[25] = 0), NeighbourError::Option);
        assert_eq!(fail(&|b| b[25] = 2), NeighbourError::Option);
    }

    #[test]
    fn an_unspecified_source_gives_no_address() {
        let (none, to) = (Ipv6Addr::UNSPECIFIED, ipv6::solicited_node(B));
        let good = solicitation(none, None, |_| ());
        let expected = Neighbour::Solicitation { target: B, source_mac: None };
        assert_eq!(Neighbour::parse(&good, none, to, 255), Ok(expected));
        let bad = solicitation(none, Some(MAC), |_| ());
        assert_eq!(Neighbour::parse(&bad, none, to, 255), Err(NeighbourError::Addresses));
        let mut unicast = good;
        fill_checksum(&mut unicast, none, B).unwrap();
        assert_eq!(Neighbour::parse(&unicast, none, B, 255), Err(NeighbourError::Addresses));
    }

    #[test]
    fn quotes() {
        let mut body = [0u8; 60];
        body[0] = 0x60;
        body[5] = 200;
        body[6] = 60; // destination options, then TCP
        body[40] = 6;
        let found = quoted(&body).unwrap();
        assert_eq!((found.walk.protocol, found.walk.offset, found.payload.len()), (6, 48, 12));
        body[5] = 10;
        assert_eq!(quoted(&body).unwrap().payload.len(), 2);
        assert!(quoted(&body[..47]).is_none());
        body[0] = 0x45;
        assert!(quoted(&body).is_none());
    }

    proptest! {
        #[test]
        fn emit_then_parse(repr in repr(), body in prop::collection::vec(any::<u8>(), 0..60), a: [u8; 16], b: [u8; 16]) {
            let (a, b) = (a.into(), b.into());
            let mut message = [&[0xff; 8][..], &body].concat();
            repr.emit(&mut message, a, b).unwrap();
            let parsed = parse(&message, a, b).unwrap();
            prop_assert_eq!(Repr::parse(&parsed.header), Some(repr));
            prop_assert_eq!(parsed.body, &body[..]);
            message[1] ^= 0x10;
            prop_assert_eq!(parse(&message, a, b).map(|_| ()), Err(Error::Checksum));
            prop_assert_eq!(repr.emit(&mut message[..7], a, b), None);
        }

        #[test]
        fn neighbour_emit_then_parse(
            advertise: bool, target: [u8; 16], mac: Option<[u8; 6]>, flags: (bool, bool, bool),
        ) {
            let mut target = target;
            target[0] &= 0x7f;
            let (target, mac) = (Ipv6Addr::from(target), mac.map(MacAddr));
            let (router, solicited, replaces) = flags;
            let repr = if advertise {
                Neighbour::Advertisement { target, target_mac: mac, router, solicited, replaces }
            } else {
                Neighbour::Solicitation { target, source_mac: mac }
            };
            let mut buffer = [0xff; 40];
            let len = repr.emit(&mut buffer, A, B).unwrap();
            prop_assert_eq!(len, repr.message_len());
            prop_assert_eq!(Neighbour::parse(&buffer[..len], A, B, 255), Ok(repr));
            prop_assert_eq!(repr.emit(&mut buffer[..len - 1], A, B), None);
        }
    }
}
