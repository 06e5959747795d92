//! ICMP for IPv4 (RFC 792, RFC 1191, RFC 1812 4.3).

use super::checksum::Sum;
use super::ipv4;
use std::borrow::Borrow;

/// Bytes of the header every message here has.
pub const HEADER_LEN: usize = 8;

/// Message types (IANA "ICMP Type Numbers").
pub mod kind {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench (deprecated, RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 10;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp request.
    pub const TIMESTAMP: u8 = 13;
    /// Timestamp reply.
    pub const TIMESTAMP_REPLY: u8 = 14;
}

header! {
    /// The header of an ICMP message; the meaning of its second half depends on the type.
    Icmpv4: 8 {
        /// Message type; see [`kind`].
        kind, set_kind: u8 = 0;
        /// Code within the type.
        code, set_code: u8 = 1;
        /// Checksum over the message.
        checksum, set_checksum: u16 = 2;
        /// Identifier of a query.
        identifier, set_identifier: u16 = 4;
        /// Sequence number of a query.
        sequence, set_sequence: u16 = 6;
        /// Where the problem is in the quoted packet (parameter problem).
        pointer, set_pointer: u8 = 4;
        /// Next-hop MTU (fragmentation needed); zero from routers older than RFC 1191.
        mtu, set_mtu: u16 = 6;
        /// The second half as one.
        rest, set_rest: u32 = 4;
    }
}

/// Whether messages of this type quote a packet; no error answers an error (RFC 1812 4.3.2.7).
#[inline]
pub const fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        kind::UNREACHABLE
            | kind::SOURCE_QUENCH
            | kind::REDIRECT
            | kind::TIME_EXCEEDED
            | kind::PARAMETER_PROBLEM
    )
}

/// Whether messages of this type carry an identifier that NAT translates (RFC 5508 3): echo, timestamp.
#[inline]
pub const fn is_query(kind: u8) -> bool {
    matches!(kind, kind::ECHO_REQUEST | kind::ECHO_REPLY | kind::TIMESTAMP | kind::TIMESTAMP_REPLY)
}

/// Why bytes are not an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer than 8 bytes.
    #[error("ICMP message truncated")]
    Truncated,
    /// The checksum is wrong.
    #[error("ICMP checksum wrong")]
    Checksum,
}

/// An ICMP message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The header.
    pub header: Icmpv4<&'a [u8; HEADER_LEN]>,
    /// What follows it: echo data, or the start of the quoted packet.
    pub body: &'a [u8],
}

/// Reads the message in an IP payload and verifies its checksum.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, Error> {
    let (header, body) = Icmpv4::split(bytes).ok_or(Error::Truncated)?;
    if Sum::of(bytes).is_valid() { Ok(Message { header, body }) } else { Err(Error::Checksum) }
}

/// A packet quoted in an error: its IP header, and at least eight bytes after it when the sender kept the rule.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a> {
    /// The quoted fixed header. Its total length is the original's, not the quote's.
    pub header: ipv4::Ipv4<&'a [u8; ipv4::HEADER_LEN]>,
    /// Where the quoted layer 4 starts within the message's body.
    pub offset: usize,
    /// What is quoted of layer 4; possibly less than its header, possibly nothing.
    pub payload: &'a [u8],
}

/// Reads the packet quoted in an error's body; `None` when it is no IPv4 header. Its checksum is not verified:
/// it is the sender's evidence, to be matched against a session, and nothing is forwarded by it.
#[inline]
pub fn quoted(body: &[u8]) -> Option<Quoted<'_>> {
    let (header, _) = ipv4::Ipv4::split(body)?;
    let offset = header.header_len();
    if header.version() != 4 || offset < ipv4::HEADER_LEN {
        return None;
    }
    // RFC 4884 extensions and padding may follow the packet: its own length bounds the quote.
    let end = body.len().min(usize::from(header.total_len()).max(offset));
    Some(Quoted { header, offset, payload: body.get(offset..end)? })
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
    /// Destination unreachable, with any code but 4.
    Unreachable {
        /// See [`mod@unreachable`].
        code: u8,
    },
    /// Fragmentation needed but forbidden (RFC 1191 4).
    FragmentationNeeded {
        /// The largest packet the next hop takes.
        mtu: u16,
    },
    /// Time exceeded: code 0 in transit, 1 in reassembly.
    TimeExceeded {
        /// The code.
        code: u8,
    },
    /// Parameter problem: code 0 at the pointer, 1 a required option is missing.
    ParameterProblem {
        /// The code.
        code: u8,
        /// The byte of the packet that is at fault.
        pointer: u8,
    },
}

/// Codes of destination unreachable (RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1).
pub mod unreachable {
    /// Network.
    pub const NETWORK: u8 = 0;
    /// Host.
    pub const HOST: u8 = 1;
    /// Protocol.
    pub const PROTOCOL: u8 = 2;
    /// Port.
    pub const PORT: u8 = 3;
    /// Fragmentation needed and "don't fragment" set.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Source route failed.
    pub const SOURCE_ROUTE_FAILED: u8 = 5;
    /// Destination network unknown.
    pub const NETWORK_UNKNOWN: u8 = 6;
    /// Destination host unknown.
    pub const HOST_UNKNOWN: u8 = 7;
    /// Source host isolated (obsolete).
    pub const SOURCE_ISOLATED: u8 = 8;
    /// Network administratively prohibited.
    pub const NETWORK_PROHIBITED: u8 = 9;
    /// Host administratively prohibited.
    pub const HOST_PROHIBITED: u8 = 10;
    /// Network unreachable for the type of service.
    pub const NETWORK_TOS: u8 = 11;
    /// Host unreachable for the type of service.
    pub const HOST_TOS: u8 = 12;
    /// Communication administratively prohibited by filtering.
    pub const FILTERED: u8 = 13;
    /// Host precedence violation.
    pub const PRECEDENCE_VIOLATION: u8 = 14;
    /// Precedence cutoff in effect.
    pub const PRECEDENCE_CUTOFF: u8 = 15;
}

impl Repr {
    /// What a header says; `None` for types not in the list.
    pub fn parse<T: Borrow<[u8; HEADER_LEN]>>(header: &Icmpv4<T>) -> Option<Self> {
        let (identifier, sequence, code) = (header.identifier(), header.sequence(), header.code());
        Some(match (header.kind(), code) {
            (kind::ECHO_REQUEST, 0) => Self::EchoRequest { identifier, sequence },
            (kind::ECHO_REPLY, 0) => Self::EchoReply { identifier, sequence },
            (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED) => {
                Self::FragmentationNeeded { mtu: header.mtu() }
            }
            (kind::UNREACHABLE, _) => Self::Unreachable { code },
            (kind::TIME_EXCEEDED, _) => Self::TimeExceeded { code },
            (kind::PARAMETER_PROBLEM, _) => Self::ParameterProblem { code, pointer: header.pointer() },
            _ => return None,
        })
    }

    /// Writes header and checksum into `message`, whose body is in place after the header.
    ///
    /// `None`, and nothing written, when it is shorter than the header.
    pub fn emit(&self, message: &mut [u8]) -> Option<()> {
        let (mut header, body) = Icmpv4::split_mut(message)?;
        let body = Sum::of(body);
        let (kind, code, rest) = match *self {
            Self::EchoRequest { identifier, sequence } => {
                (kind::ECHO_REQUEST, 0, words(identifier, sequence))
            }
            Self::EchoReply { identifier, sequence } => (kind::ECHO_REPLY, 0, words(identifier, sequence)),
            Self::Unreachable { code } => (kind::UNREACHABLE, code, 0),
            Self::FragmentationNeeded { mtu } => {
                (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED, words(0, mtu))
            }
            Self::TimeExceeded { code } => (kind::TIME_EXCEEDED, code, 0),
            Self::ParameterProblem { code, pointer } => {
                (kind::PARAMETER_PROBLEM, code, u32::from(pointer) << 24)
            }
        };
        header.set_kind(kind);
        header.set_code(code);
        header.set_checksum(0);
        header.set_rest(rest);
        let checksum = Sum::of_header(header.bytes()).combine(body).checksum();
        header.set_checksum(checksum);
        Some(())
    }
}

fn words(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repr() -> impl Strategy<Value = Repr> {
        any::<(u8, u8, u16, u16)>().prop_map(|(which, code, a, b)| match which % 6 {
            0 => Repr::EchoRequest { identifier: a, sequence: b },
            1 => Repr::EchoReply { identifier: a, sequence: b },
            2 => Repr::Unreachable { code: if code == 4 { 5 } else { code } },
            3 => Repr::FragmentationNeeded { mtu: a },
            4 => Repr::TimeExceeded { code },
            _ => Repr::ParameterProblem { code, pointer: a as u8 },
        })
    }

    #[test]
    fn fragmentation_needed_bytes() {
        let mut message = [0xff; 8];
        Repr::FragmentationNeeded { mtu: 1400 }.emit(&mut message).unwrap();
        assert_eq!(message, [3, 4, 0xf7, 0x83, 0, 0, 5, 0x78]);
    }

    #[test]
    fn types_in_families() {
        assert!((0..=255).all(|kind| !(is_error(kind) && is_query(kind))));
        assert!(is_error(3) && is_error(11) && is_query(8) && !is_error(8) && !is_query(3));
    }

    #[test]
    fn quotes() {
        let mut body = [0u8; 40];
        body[0] = 0x46;
        body[3] = 100;
        let found = quoted(&body).unwrap();
        assert_eq!((found.offset, found.payload.len()), (24, 16));
        body[3] = 30;
        assert_eq!(quoted(&body).unwrap().payload.len(), 6);
        body[3] = 0;
        assert_eq!(quoted(&body).unwrap().payload.len(), 0);
        assert!(quoted(&body[..23]).is_none());
        for first in [0x44, 0x66] {
            body[0] = first;
            assert!(quoted(&body).is_none());
        }
    }

    proptest! {
        #[test]
        fn emit_then_parse(repr in repr(), body in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut message = [&[0xff; 8][..], &body].concat();
            repr.emit(&mut message).unwrap();
            let parsed = parse(&message).unwrap();
            prop_assert_eq!(Repr::parse(&parsed.header), Some(repr));
            prop_assert_eq!(parsed.body, &body[..]);
            message[1] ^= 0x10;
            prop_assert_eq!(parse(&message).map(|_| ()), Err(Error::Checksum));
            prop_assert_eq!(repr.emit(&mut message[..7]), None);
        }
    }
}
