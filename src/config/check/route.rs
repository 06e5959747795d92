//! Routes: each leads somewhere, and somewhere that can be reached.

use std::collections::HashMap;
use std::net::IpAddr;

use super::lookup::PrefixMap;
use super::{Network, Networks, duplicate, seen};
use crate::config::MOST_GATEWAYS;
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{GatewayId, InterfaceDraft, InterfaceId, NextHop, RouteDraft, TunnelId};
use crate::config::prefix::Prefix;
use crate::config::span::Span;

/// Finds the next hop of every route.
pub(crate) fn resolve(draft: &mut Draft, networks: &Networks, cx: &mut Context<'_>) {
    let Draft { gateways, interfaces, tunnels, .. } = draft;
    let interface_gateway = |id: InterfaceId| interfaces.get(id.0).and_then(|i| i.gateway.get());
    for (index, (gateway, network)) in gateways.iter_mut().zip(&networks.0).enumerate() {
        for route in &mut gateway.routes {
            let home = |owner: Option<GatewayId>, what: &str, span: Span, cx: &mut Context<'_>| match owner {
                Some(owner) if owner != GatewayId(index) => {
                    let message =
                        format!("the {what} belongs to gateway \"{}\"", cx.names.gateways.list[owner.0]);
                    let here = &cx.names.gateways.list[index];
                    let help = format!("a route of \"{here}\" leads to one of its own, or to that gateway");
                    cx.report(Problem::new("other-gateway", span, message).help(help));
                    false
                }
                _ => true,
            };
            if let Some(interface) = route.interface.get() {
                let owner = interface_gateway(interface.value).map(|g| g.value);
                if !home(owner, "interface", interface.span, cx) {
                    continue;
                }
            }
            if let Some(tunnel) = route.tunnel.get() {
                let owner = tunnels.get(tunnel.value.0).and_then(|t| t.gateway.get()).map(|g| g.value);
                if !home(owner, "tunnel", tunnel.span, cx) {
                    continue;
                }
            }
            route.next_hop = next_hop(route, interfaces, network, cx);
        }
    }
}

/// The one place a route leads to.
fn next_hop(
    route: &RouteDraft,
    interfaces: &[InterfaceDraft],
    network: &Network,
    cx: &mut Context<'_>,
) -> Option<NextHop> {
    let blackhole = match &route.blackhole {
        Slot::Given(at) if !at.value => {
            let problem = Problem::new("bad-value", at.span, "`blackhole = false` says nothing");
            cx.report(problem.help("leave it out, or write `blackhole = true`"));
            return None;
        }
        slot => slot.is_present(),
    };
    let present = [
        ("via", route.via.is_present()),
        ("interface", route.interface.is_present() && !route.via.is_present()),
        ("tunnel", route.tunnel.is_present()),
        ("gateway", route.gateway.is_present()),
        ("blackhole", blackhole),
    ];
    let named: Vec<&str> = present.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    if named.len() != 1 {
        let message = match named.len() {
            0 => "the route leads nowhere".to_owned(),
            _ => format!("the route leads to more than one place: {}", named.join(" and ")),
        };
        let help = "give exactly one of via, interface, tunnel, gateway and `blackhole = true`; only via goes together \
                    with interface";
        cx.report(Problem::new("route-target", route.at, message).help(help).label("this route"));
        return None;
    }
    match named[0] {
        "via" => via(route, interfaces, network, cx),
        "interface" => route.interface.get().map(|at| NextHop::Connected(at.value)),
        "tunnel" => route.tunnel.get().map(|at| NextHop::Tunnel(at.value)),
        "gateway" => route.gateway.get().map(|at| NextHop::Gateway(at.value)),
        _ => route.blackhole.get().map(|_| NextHop::Blackhole),
    }
}

/// The router must be on a prefix of the interface named, or of any of the gateway's.
fn via(
    route: &RouteDraft,
    interfaces: &[InterfaceDraft],
    network: &Network,
    cx: &mut Context<'_>,
) -> Option<NextHop> {
    let via = route.via.get()?;
    if let Slot::Broken = route.interface {
        return None;
    }
    if let Some(to) = route.to.get().filter(|to| to.is_ipv4() != via.is_ipv4()) {
        cx.report(
            Problem::new("mixed-families", via.span, "the router and the prefix are of different families")
                .help("give a router of the same family as the prefix")
                .also(to.span, "the prefix"),
        );
        return None;
    }
    if let Some(own) = network.own(via.value) {
        cx.report(
            Problem::new(
                "via-is-own",
                via.span,
                format!("{} is an address of this gateway itself", via.value),
            )
            .help("give the address of the router at the other end")
            .also(own.address.span, "its interface has it here"),
        );
        return None;
    }
    let prefixes: Vec<Prefix> = match route.interface.get() {
        Some(wanted) => interface_prefixes(interfaces, wanted.value),
        None => Vec::new(),
    };
    let found = match route.interface.get() {
        Some(wanted) => prefixes.iter().any(|prefix| prefix.contains(via.value)).then_some(wanted.value),
        None => network.towards(via.value).map(|found| InterfaceId(found.interface)),
    };
    if let Some(interface) = found {
        return Some(NextHop::Via { address: via.value, interface });
    }
    if network.incomplete {
        return None;
    }
    let prefixes: Vec<String> = match route.interface.get() {
        Some(_) => prefixes.iter().map(Prefix::to_string).collect(),
        None => network.connected.iter().take(100).map(|c| c.address.network().to_string()).collect(),
    };
    let whose = if route.interface.get().is_some() { "this interface" } else { "this gateway" };
    let help = match prefixes.is_empty() {
        true => format!("{whose} has no addresses; give an interface one on the router's prefix"),
        false => format!("{whose} is on {}", crate::config::suggest::listing(&prefixes)),
    };
    let message = format!("no connected prefix holds {}", via.value);
    cx.report(Problem::new("via-unreachable", via.span, message).help(help));
    None
}

fn interface_prefixes(interfaces: &[InterfaceDraft], id: InterfaceId) -> Vec<Prefix> {
    let addresses = interfaces.get(id.0).and_then(|interface| interface.addresses.get());
    addresses.map_or_else(Vec::new, |all| all.iter().map(|address| address.network()).collect())
}

/// Where a prefix of a gateway leads, as far as the checks care.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leads {
    /// To a line, or nowhere.
    Out,
    /// Into a tunnel, by the route here.
    Tunnel(TunnelId, Span),
    /// To another gateway.
    Gateway(GatewayId),
}

/// The route table of a gateway, connected prefixes included.
#[derive(Default)]
pub(crate) struct Table {
    map: PrefixMap<Leads>,
    /// Where prefixes lead of which there are several routes, beyond the first.
    more: HashMap<Prefix, Vec<Leads>>,
    /// Some route or interface could not be read: it may have led anywhere.
    pub incomplete: bool,
}

impl Table {
    /// Every way that the longest prefix leads which covers the whole of `wanted`; with the prefix.
    pub fn longest(&self, wanted: Prefix) -> Option<(Prefix, impl Iterator<Item = &Leads>)> {
        let (prefix, first) = self.map.longest(wanted)?;
        Some((prefix, std::iter::once(first).chain(self.more.get(&prefix).into_iter().flatten())))
    }
}

/// Builds the tables, and finds routes that stand twice.
pub(crate) fn tables(draft: &Draft, networks: &Networks, cx: &mut Context<'_>) -> Vec<Table> {
    let mut tables = Vec::with_capacity(draft.gateways.len());
    for (gateway, network) in draft.gateways.iter().zip(&networks.0) {
        let mut table = Table { incomplete: network.incomplete, ..Table::default() };
        for connected in &network.connected {
            table.map.insert_first(connected.address.network(), Leads::Out);
        }
        let mut first: HashMap<(Prefix, NextHop), Span> = HashMap::with_capacity(gateway.routes.len());
        for route in &gateway.routes {
            let Some(to) = route.to.get() else {
                table.incomplete = true;
                continue;
            };
            let Some(next_hop) = route.next_hop else {
                table.incomplete = true;
                continue;
            };
            if let Some(first) = seen(&mut first, (to.value, next_hop), to.span) {
                let message = format!("this gateway has a route to {} with this next hop already", to.value);
                let help =
                    "routes to one prefix lead to different places: take one out, or change its next hop";
                cx.report(duplicate("duplicate-route", to.span, first, message, help));
                continue;
            }
            let leads = match (route.tunnel.get(), route.gateway.get()) {
                (Some(tunnel), _) => Leads::Tunnel(tunnel.value, route.at),
                (None, Some(gateway)) => Leads::Gateway(gateway.value),
                (None, None) => Leads::Out,
            };
            if table.map.insert_first(to.value, leads).is_some() {
                table.more.entry(to.value).or_default().push(leads);
            }
        }
        tables.push(table);
    }
    tables
}

/// Steps on the ways from one route that are followed at most: each gateway may lead a prefix several ways.
const MOST_STEPS: usize = 4096;

/// Follows every route into another gateway, all the ways there are: the packet must not come back to a gateway that it
/// has been through, nor pass more than [`MOST_GATEWAYS`].
/// In each gateway the longest route that holds the whole prefix is followed; longer ones may lead parts of it
/// elsewhere, but what they leave over would still go round.
pub(crate) fn loops(draft: &Draft, tables: &[Table], cx: &mut Context<'_>) {
    for (index, gateway) in draft.gateways.iter().enumerate() {
        for route in &gateway.routes {
            let (Some(to), Some(next)) = (route.to.get(), route.gateway.get()) else { continue };
            let mut path = vec![GatewayId(index)];
            if !goes_round(tables, to.value, next.value, &mut path, &mut MOST_STEPS.clone()) {
                continue;
            }
            let names: Vec<&str> = path.iter().map(|id| cx.names.gateways.list[id.0].as_str()).collect();
            let goes = if path.len() > MOST_GATEWAYS { "pass too many gateways" } else { "go round" };
            let message = format!("packets to {} {goes}: {}", to.value, names.join(" → "));
            let help = "lead the prefix out of one of these gateways, or drop what is left of it there with a \
                        route `blackhole = true`";
            cx.report(Problem::new("gateway-loop", next.span, message).help(help));
        }
    }
}

/// Whether a prefix that enters a gateway after those of `path` can come back to one of them. The path is the one it
/// takes then.
fn goes_round(
    tables: &[Table],
    to: Prefix,
    at: GatewayId,
    path: &mut Vec<GatewayId>,
    steps: &mut usize,
) -> bool {
    let known = path.contains(&at);
    path.push(at);
    if known || path.len() > MOST_GATEWAYS {
        return true;
    }
    let ways = tables.get(at.0).and_then(|table| table.longest(to)).into_iter().flat_map(|(_, ways)| ways);
    for way in ways {
        let Leads::Gateway(next) = way else { continue };
        *steps = steps.saturating_sub(1);
        if *steps > 0 && goes_round(tables, to, *next, path, steps) {
            return true;
        }
    }
    path.pop();
    false
}

/// A route into a gateway that has none for any of its packets leads nowhere, unless one is learned there.
pub(crate) fn dead_ends(draft: &Draft, tables: &[Table], cx: &mut Context<'_>) {
    let mut sorted: HashMap<usize, Vec<(IpAddr, u8)>> = HashMap::new();
    for gateway in &draft.gateways {
        for route in &gateway.routes {
            let (Some(to), Some(next)) = (route.to.get(), route.gateway.get()) else { continue };
            let (place, to) = (next.value.0, to.value);
            let Some(table) = tables.get(place).filter(|table| !table.incomplete) else { continue };
            if table.longest(to).is_some() {
                continue;
            }
            let inside = sorted.entry(place).or_insert_with(|| {
                let mut all: Vec<(IpAddr, u8)> =
                    table.map.prefixes().map(|prefix| (prefix.address(), prefix.length())).collect();
                all.sort_unstable();
                all
            });
            let first = inside.partition_point(|known| *known < (to.address(), to.length()));
            if inside.get(first).is_some_and(|(address, length)| to.covers(Prefix::of(*address, *length))) {
                continue;
            }
            let name = &cx.names.gateways.list[place];
            let message = format!("gateway \"{name}\" has no route to {to}: it drops what comes this way");
            let problem = Problem::warning("gateway-dead-end", next.span, message);
            cx.report(problem.help("add a [[gateway.NAME.route]] there, unless one is learned"));
        }
    }
}
