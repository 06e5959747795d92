//! The snapshot of all tables that a worker looks things up in.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    choice,
    gateway_nat::GatewayNat,
    interface::{Demux, Interface, OwnAddresses},
    limit::Limits,
    liveness::Liveness,
    lpm::{Lpm4, Lpm6},
    neighbour::{NeighbourId, NeighbourTable},
    next_hops::{Hop, NextHops},
    probe::{Watch, Way},
    sad::Sad,
    spd::Spd,
    tunnel::{SaIn, Tunnel},
};

/// What happens to packets that a route or a policy chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// In place of a tunnel's number: none.
pub const NO_TUNNEL: u16 = u16::MAX;
/// Tunnels that may stand by for a policy's first.
pub const MOST_STANDBY: usize = 3;

/// The tunnels of a policy that protects: the first of them that is up takes the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    first: u16,
    /// Filled up with [`NO_TUNNEL`].
    standby: [u16; MOST_STANDBY],
}

impl Protection {
    /// By `first`, and by those of `standby` while it is down; at most [`MOST_STANDBY`] of them.
    #[must_use]
    pub fn new(first: u16, standby: &[u16]) -> Self {
        let mut this = Self { first, standby: [NO_TUNNEL; MOST_STANDBY] };
        this.standby.iter_mut().zip(standby).for_each(|(place, tunnel)| *place = *tunnel);
        this
    }

    /// The tunnels, in order.
    pub fn tunnels(&self) -> impl Iterator<Item = u16> {
        let standby = self.standby;
        std::iter::once(self.first).chain(standby).filter(|tunnel| *tunnel != NO_TUNNEL)
    }

    /// Whether this is one of them: packets may come out of any.
    #[inline]
    #[must_use]
    pub fn has(&self, tunnel: u16) -> bool {
        self.first == tunnel || tunnel != NO_TUNNEL && self.standby.contains(&tunnel)
    }

    /// The first that is up, or else that works and is held down; the first of all when none does, whose state is looked at again where it is used.
    #[inline]
    #[must_use]
    pub fn choose(&self, liveness: &Liveness) -> u16 {
        let [second, ..] = self.standby;
        if second == NO_TUNNEL || liveness.tunnel_is_up(self.first) {
            return self.first;
        }
        let up = |tunnel: &&u16| **tunnel != NO_TUNNEL && liveness.tunnel_is_up(**tunnel);
        let works = |tunnel: &u16| liveness.tunnel_works(*tunnel);
        let held = || self.tunnels().find(works);
        self.standby.iter().find(up).copied().or_else(held).unwrap_or(self.first)
    }
}

/// What a policy does (RFC 4301 4.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// Into a tunnel.
    Protect(Protection),
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
#[derive(Debug, Clone)]
pub struct Tables {
    /// Counts snapshots.
    pub generation: u64,
    /// VLAN demultiplexers, by port.
    pub demux: Arc<[Demux]>,
    /// Interfaces, by number.
    pub interfaces: Arc<[Interface]>,
    /// Gateways, by number.
    pub gateways: Arc<[Gateway]>,
    /// Next hops, by number; more come while workers read.
    pub next_hops: Arc<NextHops>,
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
    /// Some interface or tunnel is probed.
    pub probes: bool,
}

impl Features {
    /// Of these gateways, interfaces and tunnels.
    #[must_use]
    pub fn of(gateways: &[Gateway], interfaces: &[Interface], tunnels: &[Tunnel]) -> Self {
        Self {
            nat: gateways.iter().any(|gateway| gateway.nat.is_some()),
            policies: gateways.iter().any(|gateway| !gateway.spd.is_empty()),
            tunnels: !tunnels.is_empty(),
            clamps: tunnels.iter().any(|tunnel| tunnel.mss.is_some()),
            probes: interfaces.iter().any(|interface| interface.watch.is_set())
                || tunnels.iter().any(|tunnel| tunnel.watch.is_set()),
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

    /// How health is found out on a way out.
    #[inline]
    #[must_use]
    pub fn watch(&self, way: Way) -> Option<&Watch> {
        match way {
            Way::Interface(number) => self.interface(number).map(|interface| &interface.watch),
            Way::Tunnel(number) => self.tunnel(number).map(|tunnel| &tunnel.watch),
        }
    }

    /// The next hop of this number, if it is one and no choice.
    #[inline]
    #[must_use]
    pub fn next_hop(&self, number: u32) -> Option<NextHop> {
        self.next_hops.one(number).copied()
    }

    /// The way that a tunnel's outer packets take to the next hop of this number, and its own number: all of them the same,
    /// so that they stay in order. Where nothing is up, the best way is tried all the same: the tunnel's own health says more.
    #[inline]
    #[must_use]
    pub fn outer_way(&self, number: u32, tunnel: u16) -> Option<(u32, &NextHop)> {
        match self.next_hops.get(number)? {
            Hop::One(hop) => Some((number, hop)),
            Hop::Choice(choice) => {
                let standing = choice.standing(&self.liveness).or_else(|| choice.regardless())?;
                let number = standing.pick(|| choice::tunnel_hash(tunnel))?;
                Some((number, self.next_hops.one(number)?))
            }
        }
    }
}
