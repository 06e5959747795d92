//! What IPv4 and IPv6 share: versions, protocol numbers, prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Protocol and next-header numbers (IANA "Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMPV4: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// IPv4 in IP; the next header of a tunnelled IPv4 packet.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in IP; the next header of a tunnelled IPv6 packet.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// IPsec ESP.
    pub const ESP: u8 = 50;
    /// IPsec AH.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header; in ESP, a dummy packet.
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// OSPF.
    pub const OSPF: u8 = 89;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IpVersion {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl IpVersion {
    /// The version a packet's first four bits claim.
    #[inline]
    pub const fn of(packet: &[u8]) -> Option<Self> {
        match packet {
            [first, ..] => match *first >> 4 {
                4 => Some(Self::V4),
                6 => Some(Self::V6),
                _ => None,
            },
            [] => None,
        }
    }

    /// Bits of an address: 32 or 128.
    #[inline]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why text or parts are not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// No `/`, or a bad address or length.
    #[error("not a prefix: write an address and a length, as 10.0.0.0/8 or 2001:db8::/32")]
    Syntax,
    /// The length exceeds the address.
    #[error("prefix length /{len} is too long: at most /{max}")]
    TooLong {
        /// The length given.
        len: u8,
        /// 32 or 128.
        max: u8,
    },
    /// Bits are set beyond the length.
    #[error("host bits are set: the prefix is {0}")]
    HostBits(IpPrefix),
}

/// Declares a prefix type over one integer.
macro_rules! prefix {
    ($(#[$doc:meta])* $name:ident, $bits:ty, $addr:ty, $max:literal, $variant:ident) => {
        $(#[$doc])*
        ///
        /// Bits beyond the length are zero: [`Self::new`] refuses them, [`Self::truncated`] clears them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            addr: $bits,
            len: u8,
        }

        impl $name {
            /// The prefix that holds every address.
            pub const DEFAULT: Self = Self { addr: 0, len: 0 };

            /// A prefix from its parts; host bits must be zero.
            pub const fn new(addr: $bits, len: u8) -> Result<Self, PrefixError> {
                if len > $max {
                    return Err(PrefixError::TooLong { len, max: $max });
                }
                let prefix = Self::truncated(addr, len);
                if prefix.addr == addr { Ok(prefix) } else { Err(PrefixError::HostBits(IpPrefix::$variant(prefix))) }
            }

            /// The prefix of this length that holds `addr`; a length beyond the address counts as the whole.
            #[inline]
            pub const fn truncated(addr: $bits, len: u8) -> Self {
                let len = if len > $max { $max } else { len };
                Self { addr: addr & Self::mask_of(len), len }
            }

            /// The prefix of one address.
            #[inline]
            pub const fn host(addr: $addr) -> Self {
                Self { addr: addr.to_bits(), len: $max }
            }

            /// The mask of a length: as many leading ones.
            #[inline]
            pub const fn mask_of(len: u8) -> $bits {
                // A shift by all bits is undefined for the type: the default route's mask is zero.
                match <$bits>::MAX.checked_shl($max - if len > $max { $max } else { len as u32 }) {
                    Some(mask) => mask,
                    None => 0,
                }
            }

            /// The first address, as a number.
            #[inline]
            pub const fn addr(self) -> $bits {
                self.addr
            }

            /// The last address, as a number.
            #[inline]
            pub const fn last(self) -> $bits {
                self.addr | !self.mask()
            }

            /// The length in bits.
            #[inline]
            #[expect(clippy::len_without_is_empty, reason = "a count of bits, not of items")]
            pub const fn len(self) -> u8 {
                self.len
            }

            /// Whether this is the prefix of length zero, which holds every address.
            #[inline]
            pub const fn is_default(self) -> bool {
                self.len == 0
            }

            /// The mask of the length.
            #[inline]
            pub const fn mask(self) -> $bits {
                Self::mask_of(self.len)
            }

            /// The first address.
            pub const fn network(self) -> $addr {
                <$addr>::from_bits(self.addr)
            }

            /// Whether `addr` is in this prefix.
            #[inline]
            pub const fn contains(self, addr: $bits) -> bool {
                (addr ^ self.addr) & self.mask() == 0
            }

            /// Whether every address of `other` is in this prefix.
            #[inline]
            pub const fn covers(self, other: Self) -> bool {
                self.len <= other.len && self.contains(other.addr)
            }

            /// Whether the two share an address; one then covers the other.
            #[inline]
            pub const fn overlaps(self, other: Self) -> bool {
                self.covers(other) || other.covers(self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.network(), self.len)
            }
        }

        impl FromStr for $name {
            type Err = PrefixError;

            fn from_str(text: &str) -> Result<Self, PrefixError> {
                let (addr, len) = text.split_once('/').ok_or(PrefixError::Syntax)?;
                let addr: $addr = addr.parse().map_err(|_| PrefixError::Syntax)?;
                if len.is_empty() || !len.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(PrefixError::Syntax);
                }
                Self::new(addr.to_bits(), len.parse().map_err(|_| PrefixError::Syntax)?)
            }
        }

        impl From<$name> for IpPrefix {
            fn from(prefix: $name) -> Self {
                Self::$variant(prefix)
            }
        }
    };
}

prefix! {
    /// An IPv4 prefix.
    Ipv4Prefix, u32, Ipv4Addr, 32, V4
}

prefix! {
    /// An IPv6 prefix.
    Ipv6Prefix, u128, Ipv6Addr, 128, V6
}

/// A prefix of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpPrefix {
    /// IPv4.
    V4(Ipv4Prefix),
    /// IPv6.
    V6(Ipv6Prefix),
}

impl IpPrefix {
    /// A prefix from its parts; host bits must be zero.
    pub const fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        match addr {
            IpAddr::V4(addr) => match Ipv4Prefix::new(addr.to_bits(), len) {
                Ok(prefix) => Ok(Self::V4(prefix)),
                Err(error) => Err(error),
            },
            IpAddr::V6(addr) => match Ipv6Prefix::new(addr.to_bits(), len) {
                Ok(prefix) => Ok(Self::V6(prefix)),
                Err(error) => Err(error),
            },
        }
    }

    /// The prefix of one address.
    pub const fn host(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::V4(Ipv4Prefix::host(addr)),
            IpAddr::V6(addr) => Self::V6(Ipv6Prefix::host(addr)),
        }
    }

    /// Which version.
    pub const fn version(self) -> IpVersion {
        match self {
            Self::V4(_) => IpVersion::V4,
            Self::V6(_) => IpVersion::V6,
        }
    }

    /// The length in bits.
    #[expect(clippy::len_without_is_empty, reason = "a count of bits, not of items")]
    pub const fn len(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.len(),
            Self::V6(prefix) => prefix.len(),
        }
    }

    /// Whether this is the prefix of length zero, which holds every address of its version.
    pub const fn is_default(self) -> bool {
        self.len() == 0
    }

    /// The first address.
    pub const fn network(self) -> IpAddr {
        match self {
            Self::V4(prefix) => IpAddr::V4(prefix.network()),
            Self::V6(prefix) => IpAddr::V6(prefix.network()),
        }
    }

    /// Whether `addr` is in this prefix; never for an address of the other version.
    pub const fn contains(self, addr: IpAddr) -> bool {
        match (self, addr) {
            (Self::V4(prefix), IpAddr::V4(addr)) => prefix.contains(addr.to_bits()),
            (Self::V6(prefix), IpAddr::V6(addr)) => prefix.contains(addr.to_bits()),
            _ => false,
        }
    }

    /// Whether every address of `other` is in this prefix.
    pub const fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::V4(a), Self::V4(b)) => a.covers(b),
            (Self::V6(a), Self::V6(b)) => a.covers(b),
            _ => false,
        }
    }

    /// Whether the two share an address.
    pub const fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(prefix) => prefix.fmt(f),
            Self::V6(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for IpPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        if text.contains(':') { text.parse().map(Self::V6) } else { text.parse().map(Self::V4) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text() {
        let v4: IpPrefix = "10.1.0.0/16".parse().unwrap();
        assert!(v4.contains("10.1.255.1".parse().unwrap()) && !v4.contains("10.2.0.0".parse().unwrap()));
        assert!(!v4.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert_eq!("::/0".parse::<IpPrefix>().unwrap(), IpPrefix::V6(Ipv6Prefix::DEFAULT));
        assert_eq!(
            "10.1.2.3/16".parse::<IpPrefix>().unwrap_err().to_string(),
            "host bits are set: the prefix is 10.1.0.0/16"
        );
        assert_eq!(
            "2001:db8::1/32".parse::<IpPrefix>().unwrap_err().to_string(),
            "host bits are set: the prefix is 2001:db8::/32"
        );
        assert_eq!("10.0.0.0/33".parse::<IpPrefix>(), Err(PrefixError::TooLong { len: 33, max: 32 }));
        for text in ["10.0.0.0", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/300", "x/8", "::/x", "/"] {
            assert_eq!(text.parse::<IpPrefix>(), Err(PrefixError::Syntax), "{text}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(IpVersion::of(&[0x45]), Some(IpVersion::V4));
        assert_eq!(IpVersion::of(&[0x60, 0]), Some(IpVersion::V6));
        assert_eq!((IpVersion::of(&[]), IpVersion::of(&[0x55])), (None, None));
    }

    proptest! {
        #[test]
        fn v4_prefix_holds_its_range(addr: u32, len in 0u8..=32, other: u32) {
            let prefix = Ipv4Prefix::truncated(addr, len);
            prop_assert!(prefix.contains(addr));
            prop_assert_eq!(prefix.contains(other), (prefix.addr()..=prefix.last()).contains(&other));
            prop_assert_eq!(u64::from(prefix.last() - prefix.addr()) + 1, 1u64 << (32 - len));
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
            prop_assert_eq!(Ipv4Prefix::new(addr, len).is_ok(), prefix.addr() == addr);
        }

        #[test]
        fn v6_prefix_holds_its_range(addr: u128, len in 0u8..=128, flip in 0u32..128) {
            let prefix = Ipv6Prefix::truncated(addr, len);
            let other = addr ^ (1 << flip);
            prop_assert_eq!(prefix.contains(other), (prefix.addr()..=prefix.last()).contains(&other));
            prop_assert_eq!(prefix.contains(other), flip < 128 - u32::from(len));
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }

        #[test]
        fn overlap_is_sharing_an_address(a: u32, b in 0u32..256, la in 0u8..=32, lb in 0u8..=32) {
            let (x, y) = (Ipv4Prefix::truncated(a, la), Ipv4Prefix::truncated(a ^ b, lb));
            let shared = x.addr().max(y.addr()) <= x.last().min(y.last());
            prop_assert_eq!(x.overlaps(y), shared);
            prop_assert_eq!(x.covers(y), x.addr() <= y.addr() && y.last() <= x.last());
        }
    }
}
