//! Routes that come and go by command. They are changed in place: no table is built again.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        Config, InterfaceId, Prefix, Side,
        build::{Built, Kept, routes::GatewayRoutes},
    },
    table::{
        rib::{Candidate, Rank, Source},
        tables::NextHop,
    },
};

/// Lines of a request that are complained about, at most.
const MOST_COMPLAINTS: usize = 10;

/// Adds or removes routes of one gateway: all of them, or none when anything is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRoutes {
    /// What to do.
    pub route: Verb,
    /// The gateway.
    pub gateway: String,
    /// Who says so.
    pub source: Learned,
    /// The routes.
    pub routes: Vec<RouteLine>,
}

/// What can be done with routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Add it, or give it another priority or weight.
    Add,
    /// Remove it; without a next hop, all to the prefix that have the source.
    Delete,
}

/// Sources of routes that are not in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Learned {
    /// An operator: as good as a route of the file.
    Static,
    /// A router of another company.
    Ebgp,
    /// A router of this one.
    Ibgp,
}

impl Learned {
    const fn source(self) -> Source {
        match self {
            Self::Static => Source::Added,
            Self::Ebgp => Source::Ebgp,
            Self::Ibgp => Source::Ibgp,
        }
    }
}

/// A route, as in the file: it leads to exactly one of `via`, `interface` alone, `tunnel`, `into` and `blackhole`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteLine {
    /// The destinations.
    pub to: Prefix,
    /// The address of a router on a connected prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// The interface: with `via` the one the router is on, alone the one the destinations are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// A tunnel of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Another gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Drops the packets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blackhole: bool,
    /// The lower goes first.
    #[serde(default = "default_priority", skip_serializing_if = "is_default_priority")]
    pub priority: u16,
    /// The share of flows; 1 to 100.
    #[serde(default = "default_weight", skip_serializing_if = "is_default_weight")]
    pub weight: u8,
}

const fn default_priority() -> u16 {
    100
}

const fn default_weight() -> u8 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_default_priority(priority: &u16) -> bool {
    *priority == default_priority()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_default_weight(weight: &u8) -> bool {
    *weight == default_weight()
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// Routes that are other than before.
    pub routes: usize,
    /// Whether tunnels may have another way to their peers, or are led into for the first or last time.
    pub tunnels: bool,
}

/// Where a line leads, in numbers; nowhere for a removal that names no next hop.
struct Way {
    to: Prefix,
    hop: Option<(NextHop, Rank)>,
    priority: u16,
    weight: u8,
}

/// Names of a gateway and its numbers.
struct Names<'a> {
    config: &'a Config,
    built: &'a Built,
    place: usize,
}

impl Names<'_> {
    fn way(&self, line: &RouteLine, kept: &Kept, adds: bool) -> Result<Way, String> {
        let named = [
            line.via.is_some(),
            line.interface.is_some() && line.via.is_none(),
            line.tunnel.is_some(),
            line.into.is_some(),
            line.blackhole,
        ];
        let count = named.iter().filter(|named| **named).count();
        if count > 1 || adds && count == 0 {
            return Err(format!("{}: one next hop is needed, and {count} are named", line.to));
        }
        if !(1..=100).contains(&line.weight) {
            return Err(format!("{}: weights go from 1 to 100", line.to));
        }
        let gateway = &self.config.gateways[self.place].name.value;
        let hop = if let Some(address) = line.via {
            Some(self.via(line, address, kept)?)
        } else if let Some(name) = &line.interface {
            let id =
                self.interface(name).ok_or_else(|| format!("gateway {gateway} has no interface {name:?}"))?;
            Some((NextHop::Connected { interface: self.built.interfaces[id.0] }, self.rank(id)))
        } else if let Some(name) = &line.tunnel {
            let is =
                |t: &&crate::config::Tunnel| t.name.value.as_str() == name && t.gateway.value.0 == self.place;
            let place = self.config.tunnels.iter().position(|tunnel| is(&tunnel));
            let place = place.ok_or_else(|| format!("gateway {gateway} has no tunnel {name:?}"))?;
            Some((NextHop::Tunnel(self.built.tunnels[place]), Rank::TUNNEL))
        } else if let Some(name) = &line.into {
            let place = self.config.gateways.iter().position(|g| g.name.value.as_str() == name);
            let place = place.ok_or_else(|| format!("there is no gateway {name:?}"))?;
            if place == self.place {
                return Err(format!("{}: a route of gateway {gateway} into itself", line.to));
            }
            Some((NextHop::Gateway(self.built.gateways[place]), Rank::GATEWAY))
        } else {
            line.blackhole.then_some((NextHop::Blackhole, Rank::BLACKHOLE))
        };
        Ok(Way { to: line.to, hop, priority: line.priority, weight: line.weight })
    }

    fn interface(&self, name: &str) -> Option<InterfaceId> {
        let mine =
            |i: &crate::config::Interface| i.gateway.value.0 == self.place && i.name.value.as_str() == name;
        self.config.interfaces.iter().position(mine).map(InterfaceId)
    }

    fn rank(&self, id: InterfaceId) -> Rank {
        match *self.config.interfaces[id.0].side {
            Side::Local => Rank::LOCAL,
            Side::Peer => Rank::LINE,
        }
    }

    /// The router must be on a prefix of the interface named, or of any of the gateway's.
    fn via(&self, line: &RouteLine, address: IpAddr, kept: &Kept) -> Result<(NextHop, Rank), String> {
        if address.is_ipv4() != line.to.is_ipv4() {
            return Err(format!("{}: the router {address} is of the other IP version", line.to));
        }
        let wanted = match &line.interface {
            Some(name) => Some(self.interface(name).ok_or_else(|| format!("no interface {name:?} here"))?),
            None => None,
        };
        let mut found: Option<(u8, InterfaceId)> = None;
        for (place, interface) in self.config.interfaces.iter().enumerate() {
            let id = InterfaceId(place);
            if interface.gateway.value.0 != self.place || wanted.is_some_and(|wanted| wanted != id) {
                continue;
            }
            for own in interface.addresses.iter().map(|own| own.value) {
                if own.address == address {
                    return Err(format!("{}: {address} is the gateway's own address", line.to));
                }
                let longer = found.is_none_or(|(length, _)| own.network().length() > length);
                if own.network().contains(address) && longer {
                    found = Some((own.network().length(), id));
                }
            }
        }
        let Some((_, id)) = found else {
            return Err(format!("{}: no connected prefix holds the router {address}", line.to));
        };
        let interface = self.built.interfaces[id.0];
        Ok((kept.router(interface, address), self.rank(id)))
    }
}

/// Changes routes of a gateway. Workers see all of it at once, and [`Kept::quiesce`] may be called when each has begun
/// a new burst since.
///
/// # Errors
/// What is wrong, line by line. Nothing has changed then.
pub fn apply(
    config: &Config,
    built: &Built,
    kept: &mut Kept,
    change: &ChangeRoutes,
    now: u64,
) -> Result<Changed, Vec<String>> {
    let place = config.gateways.iter().position(|g| g.name.value.as_str() == change.gateway);
    let Some(place) = place else { return Err(vec![format!("there is no gateway {:?}", change.gateway)]) };
    let names = Names { config, built, place };
    let adds = change.route == Verb::Add;
    let mut ways = Vec::with_capacity(change.routes.len());
    let mut wrong = Vec::new();
    for line in &change.routes {
        match names.way(line, kept, adds) {
            Ok(way) => ways.push(way),
            Err(error) if wrong.len() < MOST_COMPLAINTS => wrong.push(error),
            Err(_) => {}
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let number = usize::from(built.gateways[place]);
    let source = change.source.source();
    let mut changed = Changed::default();
    let mut planned = Vec::with_capacity(ways.len());
    for way in ways {
        let hop = match way.hop {
            Some((NextHop::Via { interface, address, .. }, rank)) => {
                let number = if adds {
                    kept.number_router(interface, address, now).map_err(|error| vec![error.to_string()])?
                } else {
                    let known = kept.routes.hops.known(kept.router(interface, address));
                    known.ok_or_else(|| vec![no_route(&way.to)])?
                };
                Some((number, rank))
            }
            Some((hop, rank)) => {
                let number = if adds { kept.routes.hops.one(hop) } else { kept.routes.hops.known(hop) };
                Some((number.ok_or_else(|| vec![no_route(&way.to)])?, rank))
            }
            None => None,
        };
        planned.push((way, hop));
    }
    let tunnels: Vec<IpAddr> = config.tunnels.iter().map(|tunnel| tunnel.remote.value).collect();
    let Some(routes) = kept.routes.gateways.get_mut(number) else {
        return Err(vec!["no such gateway".into()]);
    };
    // Removals are all looked at first, so that either all happen or none.
    if !adds && let Some(error) = missing(routes, &planned, source) {
        return Err(vec![error]);
    }
    for (way, hop) in planned {
        let before = changed.routes;
        match hop {
            Some((hop, rank)) if adds => {
                let (priority, weight) = (way.priority, way.weight);
                let route = Candidate { hop, rank, source, priority, weight };
                let old = routes.add(way.to, route).map_err(|error| vec![error.to_string()])?;
                changed.routes += usize::from(old != Some(route));
            }
            Some((hop, _)) => {
                let old = routes.remove(way.to, hop, source).map_err(|error| vec![error.to_string()])?;
                changed.routes += usize::from(old.is_some());
            }
            None => {
                for hop in hops_of(routes, way.to, source) {
                    let old = routes.remove(way.to, hop, source).map_err(|error| vec![error.to_string()])?;
                    changed.routes += usize::from(old.is_some());
                }
            }
        }
        let leads_into_tunnel = hop.is_none_or(|(_, rank)| rank == Rank::TUNNEL);
        changed.tunnels = changed.tunnels
            || changed.routes > before
                && (leads_into_tunnel || tunnels.iter().any(|remote| way.to.contains(*remote)));
    }
    routes.publish(&mut kept.routes.hops).map_err(|error| vec![error.to_string()])?;
    changed.tunnels &= !tunnels.is_empty();
    Ok(changed)
}

fn no_route(to: &Prefix) -> String {
    format!("{to}: no such route")
}

fn hops_of(routes: &GatewayRoutes, to: Prefix, source: Source) -> Vec<u32> {
    routes.of(to).iter().filter(|route| route.source == source).map(|route| route.hop).collect()
}

/// A route that is to be removed and is not there.
fn missing(routes: &GatewayRoutes, planned: &[(Way, Option<(u32, Rank)>)], source: Source) -> Option<String> {
    let absent = planned.iter().find(|(way, hop)| {
        let known = hops_of(routes, way.to, source);
        hop.map_or(known.is_empty(), |(hop, _)| !known.contains(&hop))
    });
    absent.map(|(way, _)| no_route(&way.to))
}
