//! The routes of gateways: which are used, and why the others are not.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        Config, Prefix,
        build::{Built, Kept, routes::GatewayRoutes},
    },
    table::{
        choice::{MOST_MEMBERS, Needs},
        liveness::Liveness,
        next_hops::NextHops,
        rib::{Candidate, Rank},
        tables::NextHop,
    },
};

/// Asks for a page of routes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRoutes {
    /// Of this gateway only; empty for all.
    pub list_routes: String,
    /// Only this prefix, what lies in it, and the longest that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Prefix>,
    /// What comes after this gateway's prefix: what the page before gave as `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<(String, Prefix)>,
}

/// Routes, by gateway and prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutePage {
    /// The routes.
    pub rows: Vec<RouteRow>,
    /// Where the next page begins; nothing after the last.
    pub next: Option<(String, Prefix)>,
    /// Prefixes of the gateways asked for.
    pub prefixes: usize,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// The gateway whose route it is.
    pub gateway: String,
    /// The first address of the prefix.
    pub address: IpAddr,
    /// The prefix's length.
    pub length: u8,
    /// via, connected, tunnel, gateway, blackhole, local or broadcast.
    pub kind: String,
    /// The router.
    pub via: Option<IpAddr>,
    /// The interface, tunnel or gateway it leads to.
    pub to: Option<String>,
    /// The state of the router as a neighbour.
    pub state: Option<String>,
    /// connected, static, ebgp or ibgp.
    pub source: String,
    /// Whether it came while the gateway ran, and is in no file.
    pub learned: bool,
    /// How good its kind of next hop is: the lower, the better.
    pub rank: u8,
    /// The lower goes first.
    pub priority: u16,
    /// Its share beside equal ones.
    pub weight: u8,
    /// Whether packets take it.
    pub used: bool,
    /// Why they do not.
    pub why: Option<String>,
}

/// What names and states are taken from.
struct Known<'a> {
    config: &'a Config,
    built: &'a Built,
    hops: &'a NextHops,
}

/// A page of about `most` routes.
///
/// # Errors
/// There is no such gateway.
pub fn list(
    config: &Config,
    built: &Built,
    kept: &Kept,
    request: &ListRoutes,
    most: usize,
) -> Result<RoutePage, String> {
    let wanted = &request.list_routes;
    let mut gateways: Vec<(&str, &GatewayRoutes)> = config
        .gateways
        .iter()
        .zip(&built.gateways)
        .map(|(gateway, number)| (gateway.name.value.as_str(), usize::from(*number)))
        .filter(|(name, _)| wanted.is_empty() || name == wanted)
        .filter_map(|(name, number)| Some((name, kept.routes.gateways.get(number)?)))
        .collect();
    if gateways.is_empty() && !wanted.is_empty() {
        return Err(format!("there is no gateway {wanted:?}"));
    }
    gateways.sort_by_key(|(name, _)| *name);
    let known = Known { config, built, hops: kept.routes.hops.table() };
    let mut page = RoutePage {
        prefixes: gateways.iter().map(|(_, routes)| routes.v4.len() + routes.v6.len()).sum(),
        ..RoutePage::default()
    };
    let mut last = None;
    for (name, routes) in gateways {
        let after = match &request.after {
            Some((gateway, _)) if name < gateway.as_str() => continue,
            Some((gateway, to)) if name == gateway => Some(*to),
            _ => None,
        };
        let start = after.or(request.within);
        let holds = request.within.filter(|_| after.is_none()).and_then(|within| holder(routes, within));
        let inside = routes
            .iter_from(start)
            .take_while(|(to, _)| request.within.is_none_or(|within| within.covers(*to)))
            .filter(|(to, _)| Some(*to) != after);
        for (to, all) in holds.into_iter().chain(inside) {
            if page.rows.len() >= most {
                page.next = last;
                return Ok(page);
            }
            known.rows(name, to, all, &mut page.rows);
            // What holds the prefix stands before it, where no page begins.
            if request.within.is_none_or(|within| within.covers(to)) {
                last = Some((name.to_string(), to));
            }
        }
    }
    Ok(page)
}

/// The longest prefix that is shorter than this one and holds it.
fn holder(routes: &GatewayRoutes, within: Prefix) -> Option<(Prefix, &[Candidate])> {
    let shorter = (0..within.length()).rev().map(|length| Prefix::of(within.address(), length));
    shorter.map(|to| (to, routes.of(to))).find(|(_, all)| !all.is_empty())
}

impl Known<'_> {
    fn interface(&self, number: u16) -> String {
        self.built.rows.interfaces.get(usize::from(number)).cloned().unwrap_or_default()
    }

    fn tunnel(&self, number: u16) -> String {
        self.built.rows.tunnels.get(usize::from(number)).cloned().unwrap_or_default()
    }

    fn gateway(&self, number: u16) -> String {
        let place = self.built.gateways.iter().position(|known| *known == number);
        place.map_or_else(String::new, |place| self.config.gateways[place].name.value.to_string())
    }

    /// The routes to one prefix.
    fn rows(&self, gateway: &str, to: Prefix, all: &[Candidate], rows: &mut Vec<RouteRow>) {
        let liveness = &self.built.tables.liveness;
        let up = |route: &Candidate| is_up(self.hops, liveness, route);
        let best = all.iter().find(|route| up(route));
        let mut shares = 0;
        for (place, route) in all.iter().enumerate() {
            let equal = best.is_some_and(|best| best.order() == route.order());
            let again = all.iter().take(place).any(|better| better.hop == route.hop);
            let why = if !up(route) {
                Some(self.down(route))
            } else if again {
                Some("a better route has the same next hop".to_string())
            } else if let Some(best) = best.filter(|_| !equal) {
                Some(worse(best, route))
            } else if shares >= MOST_MEMBERS {
                Some(format!("{MOST_MEMBERS} equal routes are used at most"))
            } else {
                shares += 1;
                None
            };
            let hop = self.hops.one(route.hop);
            let (kind, via, leads, state) = self.leads(hop);
            rows.push(RouteRow {
                gateway: gateway.into(),
                address: to.address(),
                length: to.length(),
                kind: kind.into(),
                via,
                to: leads,
                state,
                source: route.source.name().into(),
                learned: route.source.is_learned(),
                rank: route.rank.0,
                priority: route.priority,
                weight: route.weight,
                used: why.is_none(),
                why,
            });
        }
    }

    fn leads(&self, hop: Option<&NextHop>) -> (&'static str, Option<IpAddr>, Option<String>, Option<String>) {
        match hop {
            Some(NextHop::Via { interface, neighbour, address }) => {
                let state = self.built.tables.neighbours.state(*neighbour);
                let state = state.map(|state| super::super::view::state_name(state).to_string());
                ("via", Some(*address), Some(self.interface(*interface)), state)
            }
            Some(NextHop::Connected { interface }) => {
                ("connected", None, Some(self.interface(*interface)), None)
            }
            Some(NextHop::Tunnel(tunnel)) => ("tunnel", None, Some(self.tunnel(*tunnel)), None),
            Some(NextHop::Gateway(number)) => ("gateway", None, Some(self.gateway(*number)), None),
            Some(NextHop::Local) => ("local", None, None, None),
            Some(NextHop::Broadcast) => ("broadcast", None, None, None),
            Some(NextHop::Blackhole) | None => ("blackhole", None, None, None),
        }
    }

    fn down(&self, route: &Candidate) -> String {
        match self.hops.one(route.hop).map(Needs::of) {
            Some(Needs::Interface(number)) => format!("interface {} is down", self.interface(number)),
            Some(Needs::Tunnel(number)) => format!("tunnel {} is down", self.tunnel(number)),
            Some(Needs::Nothing) | None => "its next hop is gone".into(),
        }
    }
}

fn is_up(hops: &NextHops, liveness: &Liveness, route: &Candidate) -> bool {
    hops.one(route.hop).is_some_and(|hop| Needs::of(hop).met(liveness))
}

/// What makes a route worse than the best.
fn worse(best: &Candidate, route: &Candidate) -> String {
    let kind = |rank: Rank| match rank {
        Rank::OWN => "the gateway itself",
        Rank::LOCAL => "an interface of the VPC's side",
        Rank::LINE => "a line",
        Rank::TUNNEL => "a tunnel",
        Rank::GATEWAY => "another gateway",
        _ => "a blackhole",
    };
    if best.rank != route.rank {
        return format!("{} goes before {}", kind(best.rank), kind(route.rank));
    }
    if best.source.preference() != route.source.preference() {
        return format!("{} goes before {}", best.source.name(), route.source.name());
    }
    format!("priority {} goes before {}", best.priority, route.priority)
}
