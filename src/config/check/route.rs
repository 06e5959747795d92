//! Routes: each leads somewhere, and somewhere that can be reached.

use super::{Network, Networks};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{GatewayId, InterfaceId, NextHop, RouteDraft};
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
            route.next_hop = next_hop(route, network, cx);
        }
    }
}

/// The one place a route leads to.
fn next_hop(route: &RouteDraft, network: &Network, cx: &mut Context<'_>) -> Option<NextHop> {
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
        "via" => via(route, network, cx),
        "interface" => route.interface.get().map(|at| NextHop::Connected(at.value)),
        "tunnel" => route.tunnel.get().map(|at| NextHop::Tunnel(at.value)),
        "gateway" => route.gateway.get().map(|at| NextHop::Gateway(at.value)),
        _ => route.blackhole.get().map(|_| NextHop::Blackhole),
    }
}

/// The router must be on a prefix of the interface named, or of any of the gateway's.
fn via(route: &RouteDraft, network: &Network, cx: &mut Context<'_>) -> Option<NextHop> {
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
    let on = |c: &&super::Connected| c.address.network().contains(via.value);
    let found = match route.interface.get() {
        Some(wanted) => network.connected.iter().filter(|c| c.interface == wanted.value.0).find(on),
        None => network.towards(via.value),
    };
    if let Some(found) = found {
        return Some(NextHop::Via { address: via.value, interface: InterfaceId(found.interface) });
    }
    if network.incomplete {
        return None;
    }
    let prefixes: Vec<String> = network
        .connected
        .iter()
        .filter(|c| route.interface.get().is_none_or(|wanted| wanted.value.0 == c.interface))
        .map(|c| c.address.network().to_string())
        .collect();
    let whose = if route.interface.get().is_some() { "this interface" } else { "this gateway" };
    let help = match prefixes.is_empty() {
        true => format!("{whose} has no addresses; give an interface one on the router's prefix"),
        false => format!("{whose} is on {}", crate::config::suggest::listing(&prefixes)),
    };
    let message = format!("no connected prefix holds {}", via.value);
    cx.report(Problem::new("via-unreachable", via.span, message).help(help));
    None
}
