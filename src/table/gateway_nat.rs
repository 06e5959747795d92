//! The 1:1 rules of a gateway: both ends, both IP versions.

use super::nat::Static1to1;
use crate::wire::ip::{Ipv4Prefix, Ipv6Prefix};

/// The rules of one IP version.
#[derive(Debug)]
pub struct Rules<A> {
    /// Hosts of the VPC appear to peers under other addresses.
    pub local: Static1to1<A>,
    /// Hosts of peers appear to the VPC under other addresses.
    pub peer: Static1to1<A>,
}

/// All 1:1 rules of a gateway.
#[derive(Debug)]
pub struct GatewayNat {
    /// Rules for IPv4.
    pub v4: Rules<u32>,
    /// Rules for IPv6.
    pub v6: Rules<u128>,
    /// The VPC's own IPv4 prefixes: traffic within them is not translated.
    pub vpc_v4: Vec<Ipv4Prefix>,
    /// The VPC's own IPv6 prefixes.
    pub vpc_v6: Vec<Ipv6Prefix>,
}

/// An address that means the same to [`Rules`] of either version.
pub trait NatAddress: super::address::Address {
    /// The rules for this kind of address.
    fn rules(nat: &GatewayNat) -> &Rules<Self>;
    /// Whether the address is one of the VPC's.
    fn is_vpc(self, nat: &GatewayNat) -> bool;
}

impl NatAddress for u32 {
    #[inline]
    fn rules(nat: &GatewayNat) -> &Rules<Self> {
        &nat.v4
    }
    #[inline]
    fn is_vpc(self, nat: &GatewayNat) -> bool {
        nat.vpc_v4.iter().any(|prefix| prefix.contains(self))
    }
}

impl NatAddress for u128 {
    #[inline]
    fn rules(nat: &GatewayNat) -> &Rules<Self> {
        &nat.v6
    }
    #[inline]
    fn is_vpc(self, nat: &GatewayNat) -> bool {
        nat.vpc_v6.iter().any(|prefix| prefix.contains(self))
    }
}

impl GatewayNat {
    /// What a packet's source and destination become. `from_local`: it comes from the VPC's side.
    #[inline]
    #[must_use]
    pub fn translate<A: NatAddress>(&self, from_local: bool, source: A, destination: A) -> (A, A) {
        let rules = A::rules(self);
        if from_local {
            if destination.is_vpc(self) {
                return (source, destination);
            }
            let source = rules.local.translate_source(source).map_or(source, |t| t.address);
            let destination =
                rules.peer.translate_destination(destination).map_or(destination, |t| t.address);
            return (source, destination);
        }
        // A peer's address is mapped only towards the VPC: from one peer to another it stays what it is.
        let mapped = rules.local.translate_destination(destination);
        let source = if mapped.is_some() || destination.is_vpc(self) {
            rules.peer.translate_source(source).map_or(source, |t| t.address)
        } else {
            source
        };
        (source, mapped.map_or(destination, |t| t.address))
    }

    /// What source and destination of a packet quoted in an ICMP error become, when the error itself comes from the
    /// VPC's side (`from_local`) or from a peer: the quoted packet went the other way, and was translated then.
    #[must_use]
    pub fn translate_quoted<A: NatAddress>(&self, from_local: bool, source: A, destination: A) -> (A, A) {
        let (destination, source) = self.translate(from_local, destination, source);
        (source, destination)
    }
}
