//! Prefixes and addresses with a prefix length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::json;
use toml::de::DeValue;

use super::decode::{Complaint, Context, Shape, Text, Value};
use super::diagnostics::Problem;
use super::span::Span;
use super::suggest::shorten;

/// An IPv4 or IPv6 prefix; no bit is set outside its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of this length that holds `address`. A length too long for the family is cut to it.
    pub fn of(address: IpAddr, length: u8) -> Self {
        let length = length.min(width(address));
        let address = match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
            }
        };
        Prefix { address, length }
    }

    /// The prefix that is one address.
    pub fn host(address: IpAddr) -> Self {
        Prefix::of(address, 128)
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits are fixed.
    pub fn length(self) -> u8 {
        self.length
    }

    /// One address.
    pub fn is_host(self) -> bool {
        self.length == width(self.address)
    }

    /// An IPv4 prefix.
    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Holds the address.
    pub fn contains(self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && Prefix::of(address, self.length) == self
    }

    /// Holds every address of the other.
    pub fn covers(self, other: Prefix) -> bool {
        self.length <= other.length && self.contains(other.address)
    }

    /// Shares an address with the other.
    pub fn overlaps(self, other: Prefix) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The last address.
    pub fn last(self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => {
                let host = u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | host))
            }
            IpAddr::V6(a) => {
                let host = u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | host))
            }
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Reads an address, a slash and a length.
fn address_and_length(text: &str, what: &str, example: &str) -> Result<(IpAddr, u8), Complaint> {
    let help = format!("write it as \"{example}\"");
    let shown = shorten(text);
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(Complaint::new(format!("\"{shown}\" is not {what}"), help));
    };
    if length.is_empty() {
        let help = format!("write \"{address}/{}\" for one address, or another length", width(address));
        return Err(Complaint::new(format!("\"{shown}\" has no prefix length"), help));
    }
    let digits = length.bytes().all(|b| b.is_ascii_digit());
    match length.parse::<u8>() {
        Ok(length) if digits && length <= width(address) => Ok((address, length)),
        _ => {
            let help = format!("lengths go from 0 to {}", width(address));
            Err(Complaint::new(format!("\"{shown}\" has a wrong prefix length"), help))
        }
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|complaint| format!("{}: {}", complaint.message, complaint.help))
    }
}

impl serde::Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Text for Prefix {
    const WORDS: &'static str = "a prefix";
    const EXAMPLE: &'static str = "10.0.0.0/8";
    const PATTERN: Option<&'static str> = Some("^[0-9a-fA-F:.]+/[0-9]{1,3}$");

    fn read(text: &str) -> Result<Self, Complaint> {
        let (address, length) = address_and_length(text, "a prefix", "10.0.0.0/8")?;
        let prefix = Prefix::of(address, length);
        if prefix.address == address {
            return Ok(prefix);
        }
        Err(Complaint {
            code: "host-bits-set",
            message: format!("\"{text}\" has bits set beyond its prefix length"),
            help: format!("write \"{prefix}\", or \"{address}/{}\" for one address", width(address)),
        })
    }
}

/// A prefix where one address may be written alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostOrPrefix(pub Prefix);

impl fmt::Display for HostOrPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_host() {
            true => self.0.address.fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl Text for HostOrPrefix {
    const WORDS: &'static str = "an address or a prefix";
    const EXAMPLE: &'static str = "203.0.113.5";
    const PATTERN: Option<&'static str> = Some("^[0-9a-fA-F:.]+(/[0-9]{1,3})?$");

    fn read(text: &str) -> Result<Self, Complaint> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(HostOrPrefix(Prefix::host(address))),
            Err(_) => Prefix::read(text).map(HostOrPrefix),
        }
    }
}

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    /// The first address.
    pub first: IpAddr,
    /// The last address, not below the first.
    pub last: IpAddr,
}

impl AddressRange {
    /// Shares an address with a prefix.
    pub fn overlaps(self, prefix: Prefix) -> bool {
        let same = self.first.is_ipv4() == prefix.is_ipv4();
        same && self.first <= prefix.last() && prefix.address() <= self.last
    }

    /// The fewest prefixes that hold exactly its addresses; IPv4.
    pub fn prefixes(self) -> Vec<Prefix> {
        let (IpAddr::V4(first), IpAddr::V4(last)) = (self.first, self.last) else { return Vec::new() };
        let (mut at, end) = (u64::from(first.to_bits()), u64::from(last.to_bits()) + 1);
        let mut found = Vec::new();
        while at < end {
            let aligned = if at == 0 { 32 } else { at.trailing_zeros().min(32) };
            let bits = aligned.min((end - at).ilog2());
            let address = IpAddr::V4(Ipv4Addr::from_bits(at as u32));
            found.push(Prefix::of(address, 32 - bits as u8));
            at += 1 << bits;
        }
        found
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Addresses, prefixes and ranges: one, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressRanges {
    /// All of them, as ranges.
    pub ranges: Vec<AddressRange>,
    single: Option<Prefix>,
}

impl AddressRanges {
    /// The one prefix or address that it is, when it is no list and no range.
    pub fn single(&self) -> Option<Prefix> {
        self.single
    }

    fn read_one(text: &str) -> Result<(AddressRange, Option<Prefix>), Complaint> {
        let Some((first, last)) = text.split_once('-') else {
            let prefix = HostOrPrefix::read(text)?.0;
            return Ok((AddressRange { first: prefix.address(), last: prefix.last() }, Some(prefix)));
        };
        let (first, last): (IpAddr, IpAddr) = match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) => (first, last),
            _ => {
                let message = format!("\"{}\" is not a range of addresses", shorten(text));
                return Err(Complaint::new(message, "write it as \"203.0.113.5-203.0.113.9\""));
            }
        };
        if first.is_ipv4() != last.is_ipv4() || first > last {
            let message = format!("\"{}\" does not run from a lower to a higher address", shorten(text));
            return Err(Complaint::new(message, "write the lower address first, both of one family"));
        }
        Ok((AddressRange { first, last }, None))
    }
}

impl fmt::Display for AddressRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(single) = self.single {
            return HostOrPrefix(single).fmt(f);
        }
        for (number, range) in self.ranges.iter().enumerate() {
            write!(f, "{}{range}", if number > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl Value for AddressRanges {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let read = |value: &DeValue<'_>, span: Span, cx: &mut Context<'_>| {
            let Some(text) = value.as_str() else {
                cx.wrong_type(span, &Self::shape(), value);
                return None;
            };
            let read = Self::read_one(text);
            read.map_err(|why| cx.report(Problem::new(why.code, span, why.message).help(why.help))).ok()
        };
        let DeValue::Array(array) = value else {
            let (range, single) = read(value, span, cx)?;
            return Some(Self { ranges: vec![range], single });
        };
        if array.is_empty() {
            let problem = Problem::new("bad-value", span, "an empty list of addresses translates nothing");
            cx.report(problem.help("give at least one address"));
            return None;
        }
        let all: Vec<_> = array.iter().map(|item| read(item.get_ref(), item.span().into(), cx)).collect();
        let ranges: Vec<_> = all.into_iter().collect::<Option<_>>()?;
        let single = match &ranges[..] {
            [(_, single)] => *single,
            _ => None,
        };
        Some(Self { ranges: ranges.into_iter().map(|(range, _)| range).collect(), single })
    }

    fn shape() -> Shape {
        let one = json!({ "type": "string" });
        Shape {
            words: "an address, a prefix, a range of addresses, or a list of them".into(),
            example: "\"203.0.113.5\" or [\"203.0.113.16/28\", \"203.0.113.40-203.0.113.49\"]".into(),
            schema: json!({ "oneOf": [one, { "type": "array", "items": one, "minItems": 1 }] }),
        }
    }
}

/// The address of an interface and the length of the prefix it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub length: u8,
}

impl InterfaceAddress {
    /// The prefix that is directly connected.
    pub fn network(self) -> Prefix {
        Prefix::of(self.address, self.length)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Text for InterfaceAddress {
    const WORDS: &'static str = "an address with its prefix length";
    const EXAMPLE: &'static str = "192.0.2.1/30";
    const PATTERN: Option<&'static str> = Some("^[0-9a-fA-F:.]+/[0-9]{1,3}$");

    fn read(text: &str) -> Result<Self, Complaint> {
        let (address, length) = address_and_length(text, "an interface address", "192.0.2.1/30")?;
        let network = Prefix::of(address, length);
        let refused = |why: &str, help: String| {
            Err(Complaint { code: "bad-address", message: format!("{address} {why}"), help })
        };
        if let Some(why) = not_a_host(address) {
            return refused(why, "an interface has a unicast address".into());
        }
        // The first and last address of a prefix are not hosts' (RFC 1122 3.2.1.3), but for the two addresses
        // of a /31 (RFC 3021); the first one of IPv6 is the subnet-router anycast address (RFC 4291 2.6.1).
        let pair = width(address) - 1;
        if length < pair && address == network.address {
            return refused("is the address of its network", format!("write a host's address of {network}"));
        }
        if length < pair && address.is_ipv4() && address == network.last() {
            return refused(
                "is the broadcast address of its network",
                format!("write a host's address of {network}"),
            );
        }
        Ok(InterfaceAddress { address, length })
    }
}

/// Why an address can be no host's, where it cannot.
pub(crate) fn not_a_host(address: IpAddr) -> Option<&'static str> {
    match address {
        a if a.is_multicast() => Some("is a multicast address"),
        a if a.is_unspecified() => Some("is the unspecified address"),
        a if a.is_loopback() => Some("is a loopback address"),
        IpAddr::V4(a) if a.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V4(a) if a.octets()[0] == 0 => Some("is of \"this network\" (0.0.0.0/8)"),
        IpAddr::V4(a) if a.octets()[0] >= 240 => Some("is of the reserved block 240.0.0.0/4"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Some("is an IPv4 address in IPv6 clothing"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::read(text).unwrap()
    }

    #[test]
    fn the_right_prefix_is_said() {
        let complaint = Prefix::read("10.1.2.3/8").unwrap_err();
        assert_eq!(complaint.code, "host-bits-set");
        assert!(complaint.help.contains("\"10.0.0.0/8\""), "{}", complaint.help);
        assert!(Prefix::read("10.0.0.0").unwrap_err().help.contains("10.0.0.0/32"));
        for wrong in
            ["", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0/8", "::/129", "::/-1", "x/8"]
        {
            assert!(Prefix::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn families_never_meet() {
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(!prefix("::/0").overlaps(prefix("0.0.0.0/0")));
    }

    #[test]
    fn interface_addresses_are_hosts() {
        for good in
            ["192.0.2.1/30", "192.0.2.0/31", "192.0.2.1/31", "192.0.2.3/32", "2001:db8::1/64", "fe80::1/64"]
        {
            assert!(InterfaceAddress::read(good).is_ok(), "{good}");
        }
        for bad in [
            "192.0.2.0/30",
            "192.0.2.3/30",
            "224.0.0.1/24",
            "127.0.0.1/8",
            "0.0.0.0/0",
            "255.255.255.255/32",
            "2001:db8::/64",
            "ff02::1/64",
            "::1/128",
            "::ffff:10.0.0.1/128",
        ] {
            assert_eq!(InterfaceAddress::read(bad).unwrap_err().code, "bad-address", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_its_prefixes(first: u32, count in 0u32..100_000) {
            let last = first.saturating_add(count);
            let v4 = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
            let prefixes = AddressRange { first: v4(first), last: v4(last) }.prefixes();
            let mut at = u64::from(first);
            for prefix in prefixes {
                prop_assert_eq!(prefix.address(), v4(at as u32));
                at += 1 << (32 - prefix.length());
            }
            prop_assert_eq!(at, u64::from(last) + 1);
        }

        #[test]
        fn a_prefix_is_the_addresses_from_its_first_to_its_last(a: u32, length in 0u8..=32, probe: u32) {
            let prefix = Prefix::of(IpAddr::V4(Ipv4Addr::from_bits(a)), length);
            let probe = IpAddr::V4(Ipv4Addr::from_bits(probe));
            prop_assert_eq!(prefix.contains(probe), (prefix.address()..=prefix.last()).contains(&probe));
            prop_assert!(prefix.contains(IpAddr::V4(Ipv4Addr::from_bits(a))));
            prop_assert_eq!(Prefix::read(&prefix.to_string()).unwrap(), prefix);
        }

        #[test]
        fn the_same_in_ipv6(a: u128, length in 0u8..=128, probe: u128) {
            let prefix = Prefix::of(IpAddr::V6(Ipv6Addr::from_bits(a)), length);
            let probe = IpAddr::V6(Ipv6Addr::from_bits(probe));
            prop_assert_eq!(prefix.contains(probe), (prefix.address()..=prefix.last()).contains(&probe));
            prop_assert_eq!(Prefix::read(&prefix.to_string()).unwrap(), prefix);
        }
    }
}
