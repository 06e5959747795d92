//! The snapshot of all tables that a worker looks things up in.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    gateway_nat::GatewayNat,
    interface::{Demux, Interface, OwnAddresses},
    limit::Limits,
    liveness::Liveness,
    lpm::{Lpm4, Lpm6},
    neighbour::{NeighbourId, NeighbourTable},
    sad::Sad,
    spd::Spd,
    tunnel::{SaIn, Tunnel},
};

/// What happens to packets that a route or a policy chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// To a router on an interface's link.
    Via {
        /// The interface.
        interface: u16,
        /// The router's place in the neighbour table.
        neighbour: NeighbourId,
        /// The router's address.
        address: IpAddr,
    },
    /// To the destination itself, on an interface's link.
    Connected {
        /// The interface.
        interface: u16,
    },
    /// Into a tunnel.
    Tunnel(u16),
    /// Into another gateway.
    Gateway(u16),
    /// Nowhere.
    Blackhole,
    /// To this gateway itself.
    Local,
    /// The broadcast address of a link.
    Broadcast,
}

impl NextHop {
    /// In place of a next hop's number: a policy sends the packet into the tunnel that its metadata names.
    pub const BY_POLICY: u32 = u32::MAX - 1;
}

/// What a policy does (RFC 4301 4.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// Into the tunnel.
    Protect(u16),
    /// On to the route table.
    Bypass,
    /// Dropped.
    Discard,
}

/// One gateway (VRF): what its packets are looked up in.
#[derive(Debug)]
pub struct Gateway {
    /// Its own addresses.
    pub own: OwnAddresses,
    /// IPv4 routes; values are numbers of next hops.
    pub routes_v4: Arc<Lpm4>,
    /// IPv6 routes.
    pub routes_v6: Arc<Lpm6>,
    /// Policies; values index `actions`.
    pub spd: Spd,
    /// What each policy does.
    pub actions: Vec<PolicyAction>,
    /// Row of the first policy in the counters; the others follow in order.
    pub first_policy: usize,
    /// Whether any policy protects: then packets in the clear are checked against them.
    pub protects: bool,
    /// 1:1 rules, where there are any.
    pub nat: Option<GatewayNat>,
    /// Whether peers may reach each other through it.
    pub transit: bool,
    /// The source of ICMP errors about packets that came out of a tunnel, IPv4 and IPv6.
    pub icmp_source: (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>),
}

/// Everything a worker looks up, as one immutable whole. Routes and neighbours change in place behind it.
#[derive(Debug)]
pub struct Tables {
    /// Counts snapshots.
    pub generation: u64,
    /// VLAN demultiplexers, by port.
    pub demux: Arc<[Demux]>,
    /// Interfaces, by number.
    pub interfaces: Arc<[Interface]>,
    /// Gateways, by number.
    pub gateways: Arc<[Gateway]>,
    /// Next hops, by number.
    pub next_hops: Arc<[NextHop]>,
    /// Tunnels, by number.
    pub tunnels: Vec<Tunnel>,
    /// Inbound security associations by SPI and destination; values index `sas`.
    pub sad_v4: Sad<u32>,
    /// The same for IPv6.
    pub sad_v6: Sad<u128>,
    /// Inbound security associations.
    pub sas: Vec<Arc<SaIn>>,
    /// Tunnels by the SPI and destination of what they seal, for errors that quote it.
    pub sealing_v4: Sad<u32>,
    /// The same for IPv6.
    pub sealing_v6: Sad<u128>,
    /// When a tunnel's peer was last found out of reach (ns; 0: never). Read once a burst.
    pub trouble: Arc<AtomicU64>,
    /// Which interfaces and tunnels can be used; changes in place.
    pub liveness: Arc<Liveness>,
    /// Link-layer addresses.
    pub neighbours: Arc<NeighbourTable>,
    /// Token buckets; they change in place.
    pub limits: Arc<Limits>,
    /// What any gateway has at all.
    pub features: Features,
}

/// Which parts of the pipeline have anything to do: what no gateway has costs a burst nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Some gateway translates addresses.
    pub nat: bool,
    /// Some gateway has policies.
    pub policies: bool,
    /// There are tunnels: what comes out of one is checked, with policies or without.
    pub tunnels: bool,
    /// Some tunnel clamps the MSS of TCP connections.
    pub clamps: bool,
}

impl Features {
    /// Of these gateways and tunnels.
    #[must_use]
    pub fn of(gateways: &[Gateway], tunnels: &[Tunnel]) -> Self {
        Self {
            nat: gateways.iter().any(|gateway| gateway.nat.is_some()),
            policies: gateways.iter().any(|gateway| !gateway.spd.is_empty()),
            tunnels: !tunnels.is_empty(),
            clamps: tunnels.iter().any(|tunnel| tunnel.mss.is_some()),
        }
    }
}

impl Tables {
    /// The interface of this number.
    #[inline]
    #[must_use]
    pub fn interface(&self, number: u16) -> Option<&Interface> {
        self.interfaces.get(usize::from(number))
    }

    /// The gateway of this number.
    #[inline]
    #[must_use]
    pub fn gateway(&self, number: u16) -> Option<&Gateway> {
        self.gateways.get(usize::from(number))
    }

    /// The tunnel of this number.
    #[inline]
    #[must_use]
    pub fn tunnel(&self, number: u16) -> Option<&Tunnel> {
        self.tunnels.get(usize::from(number))
    }

    /// The next hop of this number.
    #[inline]
    #[must_use]
    pub fn next_hop(&self, number: u32) -> Option<NextHop> {
        self.next_hops.get(number as usize).copied()
    }
}
