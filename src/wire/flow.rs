//! What tells flows apart: ports, or ICMP type, code and identifier, and the 5-tuple with them.

use super::ip::protocol;
use super::{icmpv4, icmpv6};

/// What the two numbers of an [`L4`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: the protocol has no ports, or this is a fragment other than the first.
    #[default]
    Opaque,
    /// Source and destination port.
    Ports,
    /// ICMP with an identifier: echo and timestamp.
    IcmpQuery,
    /// An ICMP error, which quotes another flow's packet.
    IcmpError,
    /// Other ICMP: neighbour discovery and the like.
    IcmpOther,
}

/// The layer-4 part of a flow's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L4 {
    /// The protocol number.
    pub protocol: u8,
    /// What the numbers are.
    pub kind: Kind,
    /// Source port; or the identifier of an ICMP query; or zero.
    pub source: u16,
    /// Destination port; or ICMP type (high byte) and code (low); or zero.
    pub destination: u16,
}

/// The packet ends before its ports, or ICMP's first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer-4 header truncated")]
pub struct Truncated;

impl L4 {
    /// A flow without ports: by protocol only.
    #[inline]
    pub const fn opaque(protocol: u8) -> Self {
        Self { protocol, kind: Kind::Opaque, source: 0, destination: 0 }
    }

    /// Reads the key from the start of `l4`, bounded by the packet. Do not call it for a fragment other than the
    /// first: its bytes are no header.
    ///
    /// The ports of UDP and TCP are read from a header that may be cut short later on, as in a quote.
    #[inline]
    pub fn parse(protocol: u8, l4: &[u8]) -> Result<Self, Truncated> {
        match protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDP_LITE => {
                let &[s0, s1, d0, d1] = l4.first_chunk().ok_or(Truncated)?;
                let (source, destination) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
                Ok(Self { protocol, kind: Kind::Ports, source, destination })
            }
            protocol::ICMPV4 => {
                let kind_of = |kind| (icmpv4::is_query(kind), icmpv4::is_error(kind));
                Self::icmp(protocol, l4, kind_of)
            }
            protocol::ICMPV6 => {
                let kind_of = |kind| (icmpv6::is_query(kind), icmpv6::is_error(kind));
                Self::icmp(protocol, l4, kind_of)
            }
            _ => Ok(Self::opaque(protocol)),
        }
    }

    #[inline]
    fn icmp(protocol: u8, l4: &[u8], kind_of: impl Fn(u8) -> (bool, bool)) -> Result<Self, Truncated> {
        let &[icmp_type, code, _, _, i0, i1, _, _] = l4.first_chunk().ok_or(Truncated)?;
        let destination = u16::from_be_bytes([icmp_type, code]);
        let (kind, source) = match kind_of(icmp_type) {
            (true, _) => (Kind::IcmpQuery, u16::from_be_bytes([i0, i1])),
            (_, true) => (Kind::IcmpError, 0),
            _ => (Kind::IcmpOther, 0),
        };
        Ok(Self { protocol, kind, source, destination })
    }

    /// ICMP type and code.
    #[inline]
    pub const fn icmp_type_code(self) -> Option<(u8, u8)> {
        match self.kind {
            Kind::IcmpQuery | Kind::IcmpError | Kind::IcmpOther => {
                Some(((self.destination >> 8) as u8, self.destination as u8))
            }
            Kind::Ports | Kind::Opaque => None,
        }
    }

    /// Source and destination port.
    #[inline]
    pub const fn ports(self) -> Option<(u16, u16)> {
        match self.kind {
            Kind::Ports => Some((self.source, self.destination)),
            _ => None,
        }
    }

    /// The identifier of an ICMP query.
    #[inline]
    pub const fn identifier(self) -> Option<u16> {
        match self.kind {
            Kind::IcmpQuery => Some(self.source),
            _ => None,
        }
    }

    /// The key of packets the other way: ports change places; ICMP requests and replies do not have the same
    /// type, so their keys stay as they are.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self.kind {
            Kind::Ports => Self { source: self.destination, destination: self.source, ..self },
            _ => self,
        }
    }
}

/// The 5-tuple of an IPv4 flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowV4 {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Protocol and ports.
    pub l4: L4,
}

/// The 5-tuple of an IPv6 flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowV6 {
    /// Source address.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
    /// Protocol and ports.
    pub l4: L4,
}

impl FlowV4 {
    /// The flow of packets the other way; see [`L4::reversed`].
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, l4: self.l4.reversed() }
    }
}

impl FlowV6 {
    /// The flow of packets the other way; see [`L4::reversed`].
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, l4: self.l4.reversed() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports() {
        let l4 = L4::parse(17, &[0x12, 0x34, 0, 53]).unwrap();
        assert_eq!((l4.ports(), l4.icmp_type_code(), l4.identifier()), (Some((0x1234, 53)), None, None));
        assert_eq!(l4.reversed().ports(), Some((53, 0x1234)));
        assert_eq!(L4::parse(6, &[0, 1, 2]), Err(Truncated));
    }

    #[test]
    fn icmp() {
        let echo = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
        let l4 = L4::parse(1, &echo).unwrap();
        assert_eq!((l4.icmp_type_code(), l4.identifier(), l4.ports()), (Some((8, 0)), Some(0x1234), None));
        assert_eq!(L4::parse(1, &echo[..7]), Err(Truncated));
        let error = L4::parse(1, &[3, 4, 0, 0, 0x12, 0x34, 0, 1]).unwrap();
        assert_eq!((error.kind, error.identifier(), error.source), (Kind::IcmpError, None, 0));
        // Type 8 means nothing to ICMPv6 but "an error of unknown type".
        assert_eq!(L4::parse(58, &echo).unwrap().kind, Kind::IcmpError);
        assert_eq!(L4::parse(58, &[135, 0, 0, 0, 0, 0, 0, 0]).unwrap().kind, Kind::IcmpOther);
        assert_eq!(L4::parse(58, &[129, 0, 0, 0, 0, 7, 0, 0]).unwrap().identifier(), Some(7));
    }

    #[test]
    fn without_ports() {
        assert_eq!(L4::parse(50, &[]), Ok(L4::opaque(50)));
        assert_eq!(size_of::<FlowV4>(), 16);
    }

    proptest! {
        #[test]
        fn total(protocol: u8, bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(l4) = L4::parse(protocol, &bytes) {
                prop_assert_eq!(l4.protocol, protocol);
                prop_assert_eq!(l4.reversed().reversed(), l4);
            } else {
                prop_assert!(bytes.len() < 8);
            }
        }
    }
}
