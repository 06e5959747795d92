//! The NAT rules of a gateway: 1:1 at both ends for both IP versions, and for IPv4 port mappings and source pools.

use super::{
    address::Address,
    hash::FixedMap,
    nat::{Static1to1, Translation},
    session::{Key, Kind, PortRange, Tcp},
};
use crate::wire::{
    checksum::Delta,
    ip::{Ipv6Prefix, protocol},
};

/// What a packet is, apart from its addresses, as far as rules ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Protocol.
    pub protocol: u8,
    /// Source port, or an ICMP query's identifier.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Whether the protocol has ports and they are known.
    pub has_ports: bool,
}

impl Flow {
    /// The flow the other way.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { source_port: self.destination_port, destination_port: self.source_port, ..self }
    }
}

/// When a local rule holds: what a packet from the VPC to a peer must be. A packet the other way is read reversed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions<A> {
    /// Only this protocol.
    pub protocol: Option<u8>,
    /// Only these source ports, each range with both ends; empty: every one, and packets without ports.
    pub source_ports: Vec<(u16, u16)>,
    /// Only these destination ports.
    pub destination_ports: Vec<(u16, u16)>,
    /// Only destinations in these prefixes (address and mask); empty: everywhere.
    pub destinations: Vec<(A, A)>,
}

impl<A: Address> Conditions<A> {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.protocol.is_none() && !self.needs_ports() && self.destinations.is_empty()
    }

    /// Whether ports decide.
    #[must_use]
    pub fn needs_ports(&self) -> bool {
        !self.source_ports.is_empty() || !self.destination_ports.is_empty()
    }

    /// Whether a packet to `remote` that is `flow`, seen from the VPC, fulfils them.
    #[inline]
    #[must_use]
    pub fn hold(&self, flow: Flow, remote: A) -> bool {
        let among = |ranges: &[(u16, u16)], port: u16| {
            ranges.is_empty()
                || flow.has_ports && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
        };
        self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && among(&self.source_ports, flow.source_port)
            && among(&self.destination_ports, flow.destination_port)
            && (self.destinations.is_empty()
                || self.destinations.iter().any(|(prefix, mask)| remote & *mask == *prefix))
    }
}

/// A local 1:1 rule that holds under conditions.
#[derive(Debug)]
pub struct Conditional<A> {
    /// Its one rule.
    pub rule: Static1to1<A>,
    /// When it holds.
    pub conditions: Conditions<A>,
}

/// The 1:1 rules of one IP version.
#[derive(Debug)]
pub struct Rules<A> {
    /// Hosts of the VPC appear to peers under other addresses.
    pub local: Static1to1<A>,
    /// The same under conditions: the first in order that holds goes before all of `local`.
    pub conditional: Vec<Conditional<A>>,
    /// Hosts of peers appear to the VPC under other addresses.
    pub peer: Static1to1<A>,
    /// The lowest and the highest address that a local rule translates to; the first above the second where there is
    /// no such rule.
    pub reach: (A, A),
}

impl<A: Address> Rules<A> {
    /// Whether there is no rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.local.is_empty() && self.conditional.is_empty() && self.peer.is_empty()
    }

    /// Whether conditions ask for ports.
    #[must_use]
    pub fn ask_for_ports(&self) -> bool {
        self.conditional.iter().any(|rule| rule.conditions.needs_ports())
    }

    /// Whether an address stands for a host of the VPC.
    #[inline(always)]
    #[must_use]
    pub fn is_outside(&self, address: A) -> bool {
        (self.reach.0..=self.reach.1).contains(&address) && self.is_translated(address)
    }

    #[inline(never)]
    fn is_translated(&self, address: A) -> bool {
        self.local.translate_destination(address).is_some()
            || self.conditional.iter().any(|rule| rule.rule.translate_destination(address).is_some())
    }

    /// What the source of a packet from the VPC becomes.
    #[inline]
    #[must_use]
    pub fn source(&self, address: A, flow: Flow, remote: A) -> Option<Translation<A>> {
        if !self.conditional.is_empty() {
            let found = self.conditional.iter().find_map(|rule| {
                let new = rule.rule.translate_source(address)?;
                rule.conditions.hold(flow, remote).then_some(new)
            });
            if found.is_some() {
                return found;
            }
        }
        if self.local.is_empty() { None } else { self.local.translate_source(address) }
    }

    /// What the destination of a packet to the VPC becomes; `flow` and `remote` (its source) as it came.
    #[inline]
    #[must_use]
    pub fn destination(&self, address: A, flow: Flow, remote: A) -> Option<Translation<A>> {
        if !self.conditional.is_empty() {
            let found = self.conditional.iter().find_map(|rule| {
                let new = rule.rule.translate_destination(address)?;
                rule.conditions.hold(flow.reversed(), remote).then_some(new)
            });
            if found.is_some() {
                return found;
            }
        }
        if self.local.is_empty() { None } else { self.local.translate_destination(address) }
    }
}

/// A source pool.
#[derive(Debug)]
pub struct Pool {
    /// Sources it is for: address and mask.
    pub sources: Vec<(u32, u32)>,
    /// When it holds.
    pub conditions: Conditions<u32>,
    /// Its addresses: first, and how many.
    pub ranges: Vec<(u32, u32)>,
    /// All of them together.
    pub addresses: u32,
    /// Its ports.
    pub ports: PortRange,
    /// Its row in statistics.
    pub row: u16,
}

impl Pool {
    /// Whether it is for this packet, seen from the VPC.
    #[inline]
    #[must_use]
    pub fn takes(&self, source: u32, flow: Flow, remote: u32) -> bool {
        self.sources.iter().any(|(prefix, mask)| source & mask == *prefix)
            && self.conditions.hold(flow, remote)
    }

    /// Its address number `number`, counted round.
    #[must_use]
    pub fn address(&self, number: u32) -> u32 {
        let mut left = number % self.addresses.max(1);
        for (first, count) in &self.ranges {
            if left < *count {
                return first + left;
            }
            left -= count;
        }
        0
    }

    /// Whether it has this address.
    #[must_use]
    pub fn has(&self, address: u32) -> bool {
        self.ranges.iter().any(|(first, count)| address.wrapping_sub(*first) < *count)
    }
}

/// A port mapping.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// TCP or UDP.
    pub protocol: u8,
    /// Address and port as peers know them.
    pub translated: (u32, u16),
    /// The host's own.
    pub original: (u32, u16),
    /// When it holds.
    pub conditions: Conditions<u32>,
}

/// How long sessions live without a packet, in `session::tick`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeOuts {
    /// UDP.
    pub udp: u32,
    /// TCP connections that are open (RFC 5382 REQ-5: not below 2 h 4 min).
    pub tcp_established: u32,
    /// TCP connections that open or close (RFC 5382 REQ-5: not below 4 min).
    pub tcp_transitory: u32,
    /// ICMP queries (RFC 5508 REQ-2: not below 60 s).
    pub icmp: u32,
}

impl TimeOuts {
    /// The shortest of all.
    #[inline]
    #[must_use]
    pub fn shortest(self) -> u32 {
        self.udp.min(self.tcp_established).min(self.tcp_transitory).min(self.icmp)
    }

    /// How long a session of this protocol and state lives.
    #[inline]
    #[must_use]
    pub const fn of(&self, protocol: u8, tcp: Tcp) -> u32 {
        match protocol {
            protocol::TCP if tcp.is_established() => self.tcp_established,
            protocol::TCP => self.tcp_transitory,
            protocol::ICMPV4 => self.icmp,
            _ => self.udp,
        }
    }
}

/// Whose an outside address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outside {
    /// Of port mappings.
    #[default]
    Mappings,
    /// Of the pool at this place.
    Pool(u16),
}

/// The rules of a gateway whose traffic has sessions. IPv4 only.
#[derive(Debug)]
pub struct SessionRules {
    /// Source pools; the first that takes a packet has it.
    pub pools: Vec<Pool>,
    /// Port mappings.
    pub mappings: Vec<Mapping>,
    /// Places of mappings, by [`service`] as peers know it.
    pub by_translated: FixedMap<u64, u32>,
    /// Services of hosts that have a mapping, by [`service`].
    pub by_original: FixedMap<u64, ()>,
    /// Outside addresses.
    pub outside: FixedMap<u32, Outside>,
    /// The lowest and the highest of them.
    pub reach: (u32, u32),
    /// Times.
    pub time_outs: TimeOuts,
    /// The most sessions of this gateway.
    pub limit: u32,
    /// The most sessions of one host.
    pub source_limit: Option<u16>,
}

/// A protocol, an address and a port in one word.
#[inline]
#[must_use]
pub const fn service(protocol: u8, (address, port): (u32, u16)) -> u64 {
    (address as u64) << 32 | (port as u64) << 8 | protocol as u64
}

/// Whether a protocol can have sessions.
#[inline]
#[must_use]
pub const fn has_sessions(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::ICMPV4)
}

impl SessionRules {
    /// Whose an outside address is.
    #[inline]
    #[must_use]
    pub fn outside(&self, address: u32) -> Option<Outside> {
        if (self.reach.0..=self.reach.1).contains(&address) { self.outside.get(address) } else { None }
    }

    /// The pool that takes a packet from the VPC, and its place.
    #[inline]
    #[must_use]
    pub fn pool(&self, source: u32, flow: Flow, remote: u32) -> Option<(u32, &Pool)> {
        let mut pools = self.pools.iter().enumerate();
        pools.find(|(_, pool)| pool.takes(source, flow, remote)).map(|(place, pool)| (place as u32, pool))
    }

    /// The mapping of a packet from a peer to `service`, and its place.
    #[inline]
    #[must_use]
    pub fn mapping(&self, service: u64, flow: Flow, remote: u32) -> Option<(u32, &Mapping)> {
        let place = self.by_translated.get(service)?;
        let mapping = self.mappings.get(place as usize)?;
        // Seen from the VPC the packet comes from the host's own port.
        let flow = Flow { source_port: mapping.original.1, ..flow.reversed() };
        mapping.conditions.hold(flow, remote).then_some((place, mapping))
    }

    /// Whether a host's service has a mapping.
    #[inline]
    #[must_use]
    pub fn is_mapped(&self, service: u64) -> bool {
        !self.by_original.is_empty() && self.by_original.get(service).is_some()
    }

    /// The rule that still wants a session as it is, if any: its place.
    #[must_use]
    pub fn rule_of(&self, kind: Kind, inside: Key, outside: Key) -> Option<u32> {
        let flow = Flow {
            protocol: inside.protocol(),
            source_port: inside.port(),
            destination_port: inside.remote_port(),
            has_ports: inside.protocol() != protocol::ICMPV4,
        };
        match kind {
            Kind::Pool => {
                let (place, pool) = self.pool(inside.address(), flow, inside.remote())?;
                (pool.has(outside.address()) && pool.ports.contains(outside.port())).then_some(place)
            }
            Kind::Mapping => {
                let service = service(outside.protocol(), (outside.address(), outside.port()));
                let (place, mapping) = self.mapping(service, flow.reversed(), outside.remote())?;
                (mapping.original == (inside.address(), inside.port())).then_some(place)
            }
        }
    }
}

/// All rules of a gateway.
#[derive(Debug)]
pub struct GatewayNat {
    /// 1:1 rules for IPv4.
    pub v4: Rules<u32>,
    /// 1:1 rules for IPv6.
    pub v6: Rules<u128>,
    /// The VPC's own IPv4 prefixes, address and mask: traffic within them is not translated.
    pub vpc_v4: Vec<(u32, u32)>,
    /// The VPC's own IPv6 prefixes.
    pub vpc_v6: Vec<Ipv6Prefix>,
    /// Rules whose traffic has sessions.
    pub sessions: Option<Box<SessionRules>>,
    /// Whether 1:1 rules for IPv4 ask for ports, which of a datagram's fragments only the first has.
    pub needs_ports: bool,
    /// The same of IPv6.
    pub needs_ports_v6: bool,
    /// Some peer has addresses that the VPC has too: routes to its hosts are those to their translated addresses.
    pub overlapping: bool,
    /// Whether its IPv4 rules are 1:1 without conditions: most gateways'.
    pub plain: bool,
    /// Counts changes of the rules.
    pub generation: u32,
}

/// An address that means the same to [`Rules`] of either version.
pub trait NatAddress: Address {
    /// The rules for this kind of address.
    fn rules(nat: &GatewayNat) -> &Rules<Self>;
    /// Whether the address is one of the VPC's.
    fn is_vpc(self, nat: &GatewayNat) -> bool;
    /// Whether it is one of a pool or a port mapping.
    fn is_session_address(self, nat: &GatewayNat) -> bool;
}

impl NatAddress for u32 {
    #[inline]
    fn rules(nat: &GatewayNat) -> &Rules<Self> {
        &nat.v4
    }
    #[inline]
    fn is_vpc(self, nat: &GatewayNat) -> bool {
        nat.vpc_v4.iter().any(|(prefix, mask)| self & mask == *prefix)
    }
    #[inline]
    fn is_session_address(self, nat: &GatewayNat) -> bool {
        nat.sessions.as_ref().is_some_and(|rules| rules.outside(self).is_some())
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
    #[inline]
    fn is_session_address(self, _: &GatewayNat) -> bool {
        false
    }
}

/// What 1:1 rules make of a packet's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses<A> {
    /// The source.
    pub source: A,
    /// The destination.
    pub destination: A,
    /// What the change of both does to a checksum.
    pub delta: Delta,
    /// Whether a rule changed the source.
    pub source_changed: bool,
    /// Whether a rule changed the destination.
    pub destination_changed: bool,
}

impl<A: Address> Addresses<A> {
    /// As they came.
    #[inline]
    #[must_use]
    pub const fn same(source: A, destination: A) -> Self {
        Self { source, destination, delta: Delta::NONE, source_changed: false, destination_changed: false }
    }

    /// With another source.
    #[inline]
    #[must_use]
    pub fn with_source(mut self, new: Translation<A>) -> Self {
        self.set_source(new);
        self
    }

    /// Whether anything changed.
    #[inline]
    #[must_use]
    pub const fn changed(&self) -> bool {
        self.source_changed || self.destination_changed
    }

    #[inline]
    fn set_source(&mut self, new: Translation<A>) {
        (self.source, self.source_changed) = (new.address, true);
        self.delta = self.delta.combine(Delta::from_bits(new.checksum_delta));
    }

    #[inline]
    fn set_destination(&mut self, new: Translation<A>) {
        (self.destination, self.destination_changed) = (new.address, true);
        self.delta = self.delta.combine(Delta::from_bits(new.checksum_delta));
    }
}

impl GatewayNat {
    /// Whether its traffic needs sessions, or the ports of fragments.
    #[must_use]
    pub fn needs_tables(&self) -> bool {
        self.sessions.is_some() || self.needs_ports || self.needs_ports_v6
    }

    /// Whether an address stands for a host of the VPC: a packet to it from another such host comes back (RFC 4787
    /// REQ-9).
    #[inline]
    #[must_use]
    pub fn is_outside<A: NatAddress>(&self, address: A) -> bool {
        A::rules(self).is_outside(address) || address.is_session_address(self)
    }

    /// What 1:1 rules make of a packet's addresses. `from_local`: it comes from the VPC's side.
    #[inline]
    #[must_use]
    pub fn translate<A: NatAddress>(
        &self,
        from_local: bool,
        source: A,
        destination: A,
        flow: Flow,
    ) -> Addresses<A> {
        let rules = A::rules(self);
        let mut new = Addresses::same(source, destination);
        if from_local {
            if destination.is_vpc(self) {
                return new;
            }
            if !rules.peer.is_empty()
                && let Some(real) = rules.peer.translate_destination(destination)
            {
                new.set_destination(real);
            }
            // The rules of the VPC's end see the peer's real address.
            if let Some(outside) = rules.source(source, flow, new.destination) {
                new.set_source(outside);
            }
            return new;
        }
        if let Some(host) = rules.destination(destination, flow, source) {
            new.set_destination(host);
        }
        // A peer's address is mapped only towards the VPC: from one peer to another it stays what it is.
        if !rules.peer.is_empty()
            && (new.destination_changed || destination.is_vpc(self))
            && let Some(seen) = rules.peer.translate_source(source)
        {
            new.set_source(seen);
        }
        new
    }

    /// The same for the packet quoted in an ICMP error that comes from the VPC's side (`from_local`) or from a peer:
    /// the quoted packet went the other way, and was translated then. `source`, `destination` and `flow` as quoted.
    #[must_use]
    pub fn translate_quoted<A: NatAddress>(
        &self,
        from_local: bool,
        source: A,
        destination: A,
        flow: Flow,
    ) -> Addresses<A> {
        let new = self.translate(from_local, destination, source, flow.reversed());
        Addresses {
            source: new.destination,
            destination: new.source,
            source_changed: new.destination_changed,
            destination_changed: new.source_changed,
            ..new
        }
    }
}

#[cfg(test)]
#[path = "gateway_nat_tests.rs"]
mod tests;
