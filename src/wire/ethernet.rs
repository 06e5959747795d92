//! Ethernet II: addresses, the 14-byte header, EtherTypes.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Bytes of an untagged Ethernet header.
pub const HEADER_LEN: usize = 14;

/// A 48-bit MAC address, in the order it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All zeros: no station has it.
    pub const ZERO: Self = Self([0; 6]);
    /// All ones: every station.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The group address an IPv4 multicast group maps to (RFC 1112 6.4).
    pub const fn of_ipv4_multicast(group: Ipv4Addr) -> Self {
        let [_, b, c, d] = group.octets();
        Self([0x01, 0x00, 0x5e, b & 0x7f, c, d])
    }

    /// The group address an IPv6 multicast group maps to (RFC 2464 7).
    pub const fn of_ipv6_multicast(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }

    /// Whether the group bit is set: multicast, broadcast included.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether this is the broadcast address.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Whether this is all zeros.
    #[inline]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// Whether one station can have this address: neither a group nor zero.
    #[inline]
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }
}

field!(MacAddr, bytes => MacAddr(bytes), value => value.0);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address: write six pairs of hexadecimal digits, as 02:00:5e:10:00:01")]
pub struct ParseMacError;

impl FromStr for MacAddr {
    type Err = ParseMacError;

    /// Six pairs of hexadecimal digits, separated by `:` or `-`.
    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut octets = [0; 6];
        let mut pairs = text.split([':', '-']);
        for octet in &mut octets {
            let pair = pairs.next().ok_or(ParseMacError)?;
            if pair.len() != 2 || !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| ParseMacError)?;
        }
        if pairs.next().is_some() { Err(ParseMacError) } else { Ok(Self(octets)) }
    }
}

/// What an Ethernet frame carries (IANA "IEEE 802 Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// 802.1Q customer tag.
    pub const VLAN: Self = Self(0x8100);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// Ethernet flow control (802.3x pause).
    pub const FLOW_CONTROL: Self = Self(0x8808);
    /// Slow protocols (LACP).
    pub const SLOW: Self = Self(0x8809);
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: Self = Self(0x88a8);
    /// LLDP.
    pub const LLDP: Self = Self(0x88cc);

    /// Whether the value is an 802.3 length instead (at most 1500) or undefined (below 1536).
    #[inline]
    pub const fn is_length(self) -> bool {
        self.0 < 0x0600
    }
}

field!(EtherType, bytes => EtherType(u16::from_be_bytes(bytes)), value => value.0.to_be_bytes());

header! {
    /// An Ethernet II header: where it goes, where it is from, and the EtherType (or first tag's TPID).
    Ethernet: 14 {
        /// The destination address.
        destination, set_destination: MacAddr = 0;
        /// The source address.
        source, set_source: MacAddr = 6;
        /// The EtherType; a tag's TPID when the frame is tagged.
        ether_type, set_ether_type: EtherType = 12;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_of_address() {
        let unicast: MacAddr = "02:00:5e:10:00:01".parse().unwrap();
        assert!(unicast.is_unicast() && !unicast.is_multicast() && !unicast.is_zero());
        assert!(MacAddr::BROADCAST.is_broadcast() && MacAddr::BROADCAST.is_multicast());
        assert!(MacAddr::ZERO.is_zero() && !MacAddr::ZERO.is_unicast());
        assert_eq!(
            MacAddr::of_ipv4_multicast(Ipv4Addr::new(239, 129, 2, 3)).to_string(),
            "01:00:5e:01:02:03"
        );
        let group = "ff02::1:ff28:9c5a".parse().unwrap();
        assert_eq!(MacAddr::of_ipv6_multicast(group).to_string(), "33:33:ff:28:9c:5a");
    }

    #[test]
    fn text_that_is_no_address() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:+1",
            "é2:00:5e:10:00:01",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(ParseMacError), "{text}");
        }
        assert_eq!("AA-bb-00-11-22-33".parse(), Ok(MacAddr([0xaa, 0xbb, 0, 0x11, 0x22, 0x33])));
    }

    proptest! {
        #[test]
        fn text_round_trip(octets: [u8; 6]) {
            prop_assert_eq!(MacAddr(octets).to_string().parse(), Ok(MacAddr(octets)));
        }

        #[test]
        fn fields_are_where_the_wire_has_them(bytes: [u8; 14]) {
            let mut copy = Ethernet::new([0; 14]);
            let view = Ethernet::new(&bytes);
            copy.set_destination(view.destination());
            copy.set_source(view.source());
            copy.set_ether_type(view.ether_type());
            prop_assert_eq!(copy.bytes(), &bytes);
            prop_assert_eq!(&view.destination().0[..], &bytes[..6]);
        }
    }
}
