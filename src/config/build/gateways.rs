//! One gateway: its routes, policies and addresses.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use super::{BuildError, Builder, routes::GatewayRoutes, table_error};
use crate::{
    config::{self, Action, NextHop as Where, Prefix, Side},
    table::{
        interface::{OF_A_PROBE, OwnAddresses},
        rib::{Candidate, Rank, Source},
        spd::{self, Ports, Spd},
        tables::{Gateway, NextHop, PolicyAction, Protection},
    },
};

impl Builder<'_> {
    /// The gateway at `place` in the configuration; an empty one for a number that is free.
    /// `routes` has those of the configuration before, and learned ones, of which those to a next hop of `gone` go.
    pub(super) fn gateway(
        &mut self,
        place: Option<usize>,
        routes: &mut GatewayRoutes,
        gone: &HashSet<u32>,
    ) -> Result<Gateway, BuildError> {
        let mut own = OwnAddresses::default();
        let mut policies = Vec::new();
        let mut actions = Vec::new();
        let mut nat = None;
        let mut icmp_source = (None, None);
        let name = place.map_or("", |place| self.config.gateways[place].name.value.as_str());
        let what = || format!("routes of gateway {name}");
        let wanted = place.map_or(Ok(Vec::new()), |place| self.candidates(place))?;
        // The routes of a gateway that is no more go with it.
        let goes = |hop: u32| place.is_none() || gone.contains(&hop);
        let withdrawn = routes.follow(wanted, &goes).map_err(table_error(what()))?;
        if withdrawn > 0 && place.is_some() {
            tracing::info!("gateway {name}: {withdrawn} learned routes had a next hop that is no more");
        }
        routes.publish(self.routers.hops).map_err(table_error(what()))?;
        if let Some(place) = place {
            let gateway = &self.config.gateways[place];
            let mine = |(interface, _): &(&config::Interface, &u16)| interface.gateway.value.0 == place;
            let numbers = self.config.interfaces.iter().zip(&self.interfaces).filter(mine);
            // The VPC's side first: errors about tunnel traffic come from an address that policies know.
            let mut numbers: Vec<_> = numbers.collect();
            numbers.sort_by_key(|(interface, _)| *interface.side != Side::Local);
            for (interface, &number) in numbers {
                for address in interface.addresses.iter().map(|a| a.value.address) {
                    own.insert(address, number);
                    match address {
                        IpAddr::V4(a) => icmp_source.0 = icmp_source.0.or(Some(a)),
                        IpAddr::V6(a) => icmp_source.1 = icmp_source.1.or(Some(a)),
                    }
                }
            }
            for address in probe_sources(self.config, place) {
                own.insert(address, OF_A_PROBE);
            }
            for policy in &gateway.policies {
                policies.push(spd_policy(policy, actions.len() as u32));
                actions.push(match *policy.action {
                    Action::Protect => {
                        let number = |id: &config::TunnelId| self.tunnels[id.0];
                        let standby = policy.standby.iter().flat_map(|list| &list.value);
                        let standby: Vec<u16> = standby.map(|tunnel| number(&tunnel.value)).collect();
                        policy.tunnel.as_ref().map_or(PolicyAction::Discard, |tunnel| {
                            PolicyAction::Protect(Protection::new(number(&tunnel.value), &standby))
                        })
                    }
                    Action::Bypass => PolicyAction::Bypass,
                    Action::Discard => PolicyAction::Discard,
                });
            }
            if !gateway.nat.is_empty() {
                nat = Some(self.nat(place)?);
            }
        }
        let spd =
            Spd::build(&policies, self.seed).map_err(table_error(format!("policies of gateway {name}")))?;
        let (routes_v4, routes_v6) = routes.tables();
        let gateway = Gateway {
            own,
            routes_v4,
            routes_v6,
            spd,
            protects: actions.iter().any(|a| matches!(a, PolicyAction::Protect(_))),
            first_policy: 0,
            actions,
            nat,
            transit: place.is_some_and(|place| *self.config.gateways[place].transit),
            icmp_source,
        };
        Ok(gateway)
    }

    /// Every route that the configuration gives a gateway: its own addresses, its links, and what is written there.
    fn candidates(&mut self, place: usize) -> Result<Vec<(Prefix, Candidate)>, BuildError> {
        let gateway = &self.config.gateways[place];
        let mut all = Vec::with_capacity(gateway.routes.len());
        let connected =
            |hop, rank| Candidate { hop, rank, source: Source::Connected, priority: 0, weight: 1 };
        let local = self.routers.next_hop(NextHop::Local)?;
        let broadcast = self.routers.next_hop(NextHop::Broadcast)?;
        for (interface, number) in self.config.interfaces.iter().zip(self.interfaces.clone()) {
            if interface.gateway.value.0 != place {
                continue;
            }
            let link = self.routers.next_hop(NextHop::Connected { interface: number })?;
            for address in interface.addresses.iter().map(|a| a.value) {
                // Nothing may take its own addresses away from a gateway.
                all.push((Prefix::host(address.address), connected(local, Rank::OWN)));
                all.push((address.network(), connected(link, rank_of(interface))));
                // The directed broadcast of a link is nobody's address (RFC 2644).
                if address.address.is_ipv4() && address.length <= 30 {
                    for end in [address.network().last(), address.network().address()] {
                        all.push((Prefix::host(end), connected(broadcast, Rank::OWN)));
                    }
                }
            }
        }
        for route in &gateway.routes {
            let (hop, rank) = match route.next_hop {
                Where::Via { address, interface } => {
                    let rank = rank_of(&self.config.interfaces[interface.0]);
                    (self.routers.via(self.interfaces[interface.0], address)?, rank)
                }
                Where::Connected(interface) => {
                    let hop = NextHop::Connected { interface: self.interfaces[interface.0] };
                    (self.routers.next_hop(hop)?, rank_of(&self.config.interfaces[interface.0]))
                }
                Where::Tunnel(tunnel) => {
                    (self.routers.next_hop(NextHop::Tunnel(self.tunnels[tunnel.0]))?, Rank::TUNNEL)
                }
                Where::Gateway(gateway) => {
                    (self.routers.next_hop(NextHop::Gateway(self.gateways[gateway.0]))?, Rank::GATEWAY)
                }
                Where::Blackhole => (self.routers.next_hop(NextHop::Blackhole)?, Rank::BLACKHOLE),
            };
            let (priority, weight) = (route.priority.get() as u16, route.weight.get() as u8);
            let candidate = Candidate { hop, rank, source: Source::Static, priority, weight };
            all.push((route.to.value, candidate));
        }
        Ok(all)
    }
}

/// How good a way over an interface is.
const fn rank_of(interface: &config::Interface) -> Rank {
    match interface.side.value {
        Side::Local => Rank::LOCAL,
        Side::Peer => Rank::LINE,
    }
}

/// The addresses that probes inside a gateway's tunnels come from, each once.
fn probe_sources(config: &config::Config, gateway: usize) -> BTreeSet<IpAddr> {
    let tunnels = config.tunnels.iter().filter(|tunnel| tunnel.gateway.value.0 == gateway);
    let sources = |tunnel: &config::Tunnel| {
        let probe = tunnel.probe.as_ref().map(|probe| probe.source.value);
        [probe, tunnel.bfd.as_ref().map(|bfd| bfd.source.value)]
    };
    tunnels.flat_map(sources).flatten().collect()
}

fn spd_policy(policy: &config::Policy, action: u32) -> spd::Policy {
    let prefix = |p: &config::At<Prefix>| match p.value.address() {
        IpAddr::V4(a) => spd::Prefix::V4(a.to_bits(), p.value.length()),
        IpAddr::V6(a) => spd::Prefix::V6(a.to_bits(), p.value.length()),
    };
    let ports = |ranges: Option<&config::PortRanges>| {
        ranges.map_or(Ports::Any, |r| Ports::Ranges(r.0.iter().map(|p| (p.first, p.last)).collect()))
    };
    let (mut source_ports, mut destination_ports) = (
        ports(policy.source_port.as_ref().map(|p| &p.value)),
        ports(policy.destination_port.as_ref().map(|p| &p.value)),
    );
    if let Some(icmp) = &policy.icmp {
        source_ports = Ports::Ranges(vec![(icmp.value.kind.into(), icmp.value.kind.into())]);
        destination_ports =
            icmp.value.code.map_or(Ports::Any, |code| Ports::Ranges(vec![(code.into(), code.into())]));
    }
    spd::Policy {
        sources: policy.source.iter().flat_map(|s| &s.value).map(prefix).collect(),
        destinations: policy.destination.iter().flat_map(|d| &d.value).map(prefix).collect(),
        protocol: policy.protocol.as_ref().map(|p| p.value.0),
        source_ports,
        destination_ports,
        action,
    }
}
