//! Ports, interfaces, the VLAN demultiplexer and the gateway's own addresses.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::probe::Watch;
use crate::wire::{
    ethernet::MacAddr,
    ip::{IpPrefix, Ipv4Prefix, Ipv6Prefix},
    vlan::L2Header,
};

/// Towards whom an interface looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The VPC.
    Local,
    /// The IDCs.
    Peer,
}

/// An address of the gateway on an interface, and the length of the prefix that is on-link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of the on-link prefix.
    pub prefix_len: u8,
}

impl InterfaceAddress {
    /// The on-link prefix.
    #[must_use]
    pub const fn prefix(&self) -> IpPrefix {
        match self.address {
            IpAddr::V4(a) => IpPrefix::V4(Ipv4Prefix::truncated(a.to_bits(), self.prefix_len)),
            IpAddr::V6(a) => IpPrefix::V6(Ipv6Prefix::truncated(a.to_bits(), self.prefix_len)),
        }
    }
}

/// A VLAN (or the untagged traffic) of a port, bound to one side of one gateway.
#[derive(Debug, Clone)]
pub struct Interface {
    /// The port's number.
    pub port: u16,
    /// The gateway's number.
    pub gateway: u16,
    /// Which side of the gateway it is on.
    pub side: Side,
    /// Its MAC address: the port's.
    pub mac: MacAddr,
    /// Largest IP packet it carries, in bytes.
    pub mtu: u16,
    /// What stands in front of every IPv4 packet it sends; the destination is filled in for each.
    pub header_v4: L2Header,
    /// The same for IPv6.
    pub header_v6: L2Header,
    /// Its own addresses.
    pub addresses: SmallVec<[InterfaceAddress; 2]>,
    /// Prefixes whose addresses it answers ARP and neighbour solicitations for: NAT addresses that are on-link.
    pub proxied: Vec<IpPrefix>,
    /// The host TAP that takes what is for the host, by number.
    pub host: Option<u16>,
    /// How health is found out on its link.
    pub watch: Watch,
}

impl Interface {
    /// Its first address of the same IP version as `like`: the source of what it originates.
    #[must_use]
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().map(|a| a.address).find(|a| a.is_ipv4() == like.is_ipv4())
    }

    /// Whether it answers for `address`: its own or a proxied one.
    #[must_use]
    pub fn answers_for(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
            || self.proxied.iter().any(|p| p.contains(address))
    }

    /// Whether `address` is one of its own.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }

    /// Whether `address` lies in an on-link prefix.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.prefix().contains(address))
    }
}

/// Finds the interface of a frame by its tags. One for each port.
#[derive(Debug, Clone)]
pub struct Demux {
    /// Interface by the VLAN of a single 802.1Q tag; entry 0 is for untagged frames.
    single: Box<[u16; 4096]>,
    /// Interface by outer and inner VLAN, sorted.
    double: Vec<((u16, u16), u16)>,
}

/// No interface.
const NONE: u16 = u16::MAX;

impl Default for Demux {
    fn default() -> Self {
        Self { single: Box::new([NONE; 4096]), double: Vec::new() }
    }
}

impl Demux {
    /// Binds an 802.1Q VLAN, or untagged frames (VLAN 0), to an interface.
    #[expect(clippy::indexing_slicing, reason = "12 bits index 4096 entries")]
    pub fn bind(&mut self, vlan: u16, interface: u16) {
        self.single[usize::from(vlan & 0xfff)] = interface;
    }

    /// Binds an 802.1ad outer and 802.1Q inner VLAN to an interface.
    pub fn bind_double(&mut self, outer: u16, inner: u16, interface: u16) {
        let key = (outer & 0xfff, inner & 0xfff);
        match self.double.binary_search_by_key(&key, |e| e.0) {
            Ok(at) => self.double.splice(at..=at, [(key, interface)]).for_each(drop),
            Err(at) => self.double.insert(at, (key, interface)),
        }
    }

    /// The interface of untagged frames (VLAN 0), or of those with one 802.1Q tag.
    #[inline]
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "12 bits index 4096 entries")]
    pub fn single(&self, vlan: u16) -> Option<u16> {
        let interface = self.single[usize::from(vlan & 0xfff)];
        (interface != NONE).then_some(interface)
    }

    /// The interface of frames with an 802.1ad and an 802.1Q tag.
    #[inline]
    #[must_use]
    pub fn double(&self, outer: u16, inner: u16) -> Option<u16> {
        let key = (outer & 0xfff, inner & 0xfff);
        let at = self.double.binary_search_by_key(&key, |e| e.0).ok()?;
        self.double.get(at).map(|e| e.1)
    }
}

/// In place of an interface's number: the address is that of a probe inside a tunnel.
pub const OF_A_PROBE: u16 = u16::MAX;

/// The addresses of one gateway itself, on any of its interfaces.
///
/// Every packet is asked whether it is for the gateway, and nearly none is: a filter of 256 bits answers most.
#[derive(Debug, Clone, Default)]
pub struct OwnAddresses {
    filter: [u64; 4],
    v4: Vec<(u32, u16)>,
    v6: Vec<(u128, u16)>,
}

impl OwnAddresses {
    /// Adds an address of `interface`.
    pub fn insert(&mut self, address: IpAddr, interface: u16) {
        let hash = match address {
            IpAddr::V4(a) => {
                let at = self.v4.partition_point(|e| e.0 < a.to_bits());
                self.v4.insert(at, (a.to_bits(), interface));
                hash_v4(a.to_bits())
            }
            IpAddr::V6(a) => {
                let at = self.v6.partition_point(|e| e.0 < a.to_bits());
                self.v6.insert(at, (a.to_bits(), interface));
                hash_v6(a.to_bits())
            }
        };
        if let Some(word) = self.filter.get_mut(usize::from(hash >> 6)) {
            *word |= 1 << (hash & 63);
        }
    }

    #[inline]
    fn may_contain(&self, hash: u8) -> bool {
        self.filter.get(usize::from(hash >> 6)).is_some_and(|word| word >> (hash & 63) & 1 == 1)
    }

    /// Whether an interface may have this IPv4 address (host order): nearly always not.
    #[inline(always)]
    #[must_use]
    pub fn may_have_v4(&self, address: u32) -> bool {
        self.may_contain(hash_v4(address))
    }

    /// The interface that has this IPv4 address (host order).
    #[inline]
    #[must_use]
    pub fn v4(&self, address: u32) -> Option<u16> {
        if !self.may_contain(hash_v4(address)) {
            return None;
        }
        let at = self.v4.binary_search_by_key(&address, |e| e.0).ok()?;
        self.v4.get(at).map(|e| e.1)
    }

    /// The interface that has this IPv6 address (host order).
    #[inline]
    #[must_use]
    pub fn v6(&self, address: u128) -> Option<u16> {
        if !self.may_contain(hash_v6(address)) {
            return None;
        }
        let at = self.v6.binary_search_by_key(&address, |e| e.0).ok()?;
        self.v6.get(at).map(|e| e.1)
    }

    /// All addresses of interfaces, of the same IP version as this one.
    pub fn like(&self, address: IpAddr) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().filter(|e| e.1 != OF_A_PROBE).map(|e| IpAddr::V4(e.0.into()));
        let v6 = self.v6.iter().filter(|e| e.1 != OF_A_PROBE).map(|e| IpAddr::V6(e.0.into()));
        v4.chain(v6).filter(move |own| own.is_ipv4() == address.is_ipv4())
    }

    /// The interface that has this address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<u16> {
        match address {
            IpAddr::V4(a) => self.v4(a.to_bits()),
            IpAddr::V6(a) => self.v6(a.to_bits()),
        }
    }
}

const fn hash_v4(address: u32) -> u8 {
    (address.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

const fn hash_v6(address: u128) -> u8 {
    let folded = (address >> 64) as u64 ^ address as u64;
    hash_v4((folded >> 32) as u32 ^ folded as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_find_their_interface() {
        let mut demux = Demux::default();
        demux.bind(0, 1);
        demux.bind(100, 2);
        demux.bind_double(200, 100, 3);
        demux.bind_double(200, 99, 4);
        demux.bind_double(200, 100, 5);
        assert_eq!([demux.single(0), demux.single(100), demux.single(101)], [Some(1), Some(2), None]);
        assert_eq!(
            [demux.double(200, 100), demux.double(200, 99), demux.double(100, 200)],
            [Some(5), Some(4), None]
        );
    }

    proptest! {
        #[test]
        fn own_addresses_are_found_and_no_others(own in prop::collection::btree_map(any::<u32>(), any::<u16>(), 0..50), other: u32) {
            let mut table = OwnAddresses::default();
            for (&a, &i) in &own {
                table.insert(IpAddr::V4(a.into()), i);
                table.insert(IpAddr::V6((u128::from(a) << 77).into()), i);
            }
            for (&a, &i) in &own {
                prop_assert_eq!(table.v4(a), Some(i));
                prop_assert_eq!(table.v6(u128::from(a) << 77), Some(i));
            }
            prop_assert_eq!(table.v4(other), own.get(&other).copied());
        }
    }
}
