//! Tunnels: their ends, what carries them and what uses them.

use std::time::Duration;

use super::route::{Leads, Table};
use super::{Network, Networks};
use crate::config::decode::Context;
use crate::config::derive::largest_inner;
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{Encapsulation, TunnelDraft, TunnelId};
use crate::config::prefix::{Prefix, not_a_host};
use crate::config::suggest::listing;

/// Keepalives closer than this would be traffic of their own.
const LEAST_KEEPALIVE: Duration = Duration::from_secs(1);

pub(crate) fn check(draft: &Draft, networks: &Networks, tables: &[Table], cx: &mut Context<'_>) {
    for (index, tunnel) in draft.tunnels.iter().enumerate() {
        let good = ends(tunnel, cx);
        extras(tunnel, cx);
        let Some(underlay) = tunnel.underlay.get() else { continue };
        if let Some(network) = networks.0.get(underlay.value.0) {
            local(draft, tunnel, network, cx);
        }
        if let (true, Some(table)) = (good, tables.get(underlay.value.0)) {
            remote(TunnelId(index), tunnel, table, cx);
        }
    }
    used(draft, cx);
}

/// Keepalives need UDP, and padding must fit.
fn extras(tunnel: &TunnelDraft, cx: &mut Context<'_>) {
    if let Some(keepalive) = tunnel.keepalive.given() {
        let in_udp = tunnel.encapsulation.get().is_none_or(|e| e.value == Encapsulation::Udp);
        if !in_udp {
            cx.report(
                Problem::new("keepalive-without-udp", keepalive.span, "only ESP in UDP needs keepalives")
                    .help("set encapsulation = \"udp\", or take keepalive out"),
            );
        }
        if keepalive.value.0 < LEAST_KEEPALIVE {
            cx.report(
                Problem::new("out-of-range", keepalive.span, "a keepalive goes at most once a second")
                    .help("write 1s or more; NATs forget after 30 s at the earliest, so \"20s\" is usual"),
            );
        }
    }
    if let (Some(tfc), Some(mtu)) = (tunnel.tfc.given(), tunnel.mtu.get())
        && tfc.get() > mtu.get()
    {
        let message =
            format!("packets of {} bytes do not fit the tunnel, which takes {}", tfc.get(), mtu.get());
        let problem = Problem::new("tfc-exceeds-mtu", tfc.span, message);
        cx.report(problem.help(format!("write at most {}", mtu.get())));
    }
}

/// Both ends are hosts of one family, and two.
fn ends(tunnel: &TunnelDraft, cx: &mut Context<'_>) -> bool {
    let mut good = true;
    for end in [&tunnel.local, &tunnel.remote].into_iter().filter_map(|end| end.get()) {
        if let Some(why) = not_a_host(end.value) {
            let problem = Problem::new("bad-address", end.span, format!("{} {why}", end.value));
            cx.report(problem.help("the end of a tunnel is a unicast address"));
            good = false;
        }
    }
    let (Some(local), Some(remote)) = (tunnel.local.get(), tunnel.remote.get()) else { return false };
    if local.value.is_ipv4() != remote.value.is_ipv4() {
        cx.report(
            Problem::new("mixed-families", remote.span, "the two ends are of different families")
                .help("give both ends IPv4 addresses, or both IPv6")
                .also(local.span, "this end"),
        );
        good = false;
    }
    if local.value == remote.value {
        cx.report(
            Problem::new("tunnel-to-itself", remote.span, "both ends have one address")
                .help("`remote` is the address of the other machine")
                .also(local.span, "this end"),
        );
        good = false;
    }
    good
}

/// `local` is an address of the underlay, and what is sealed fits its interface.
fn local(draft: &Draft, tunnel: &TunnelDraft, network: &Network, cx: &mut Context<'_>) {
    let Some(local) = tunnel.local.get() else { return };
    let Some(own) = network.own(local.value) else {
        if !network.incomplete {
            let all: Vec<String> =
                network.connected.iter().take(100).map(|c| c.address.address.to_string()).collect();
            let help = match all.is_empty() {
                true => "the underlay has no interface with an address; add one with this address".to_owned(),
                false => format!("the underlay's addresses are {}", listing(&all)),
            };
            let message = format!("{} is not an address of an interface of the underlay", local.value);
            cx.report(Problem::new("local-not-an-address", local.span, message).help(help));
        }
        return;
    };
    let outer = draft.interfaces.get(own.interface).and_then(|interface| interface.mtu.get());
    let (Some(outer), Some(encapsulation)) = (outer, tunnel.encapsulation.get()) else { return };
    let most = largest_inner(outer.get(), local.value.is_ipv4(), encapsulation.value);
    if let Some(mtu) = tunnel.mtu.given().filter(|mtu| mtu.get() > most) {
        let message = format!(
            "a packet of {} bytes, sealed, does not fit the line's MTU of {}",
            mtu.get(),
            outer.get()
        );
        cx.report(
            Problem::new("mtu-exceeds-line", mtu.span, message)
                .help(format!("write at most {most}, or leave it out: it is computed"))
                .also(own.address.span, "the interface that carries it"),
        );
    }
    if tunnel.mtu.get().is_none() && !tunnel.mtu.is_present() {
        let message = format!("an MTU of {} leaves {most} bytes for a packet in the tunnel", outer.get());
        cx.report(
            Problem::new("mtu-exceeds-line", tunnel.at, message)
                .help("raise the mtu of the interface that carries the tunnel: inner packets need 576")
                .also(own.address.span, "the interface that carries it"),
        );
    }
}

/// The other end can be reached, and not through the tunnel itself.
fn remote(id: TunnelId, tunnel: &TunnelDraft, table: &Table, cx: &mut Context<'_>) {
    let Some(remote) = tunnel.remote.get() else { return };
    match table.longest(Prefix::host(remote.value)) {
        Some((prefix, mut ways)) => {
            let mut through_itself = None;
            // Of several ways, those that lead into the tunnel itself are not for its own packets.
            let all = ways.all(|way| match way {
                Leads::Tunnel(through, at) if *through == id => {
                    through_itself = Some(*at);
                    true
                }
                _ => false,
            });
            let Some(at) = through_itself.filter(|_| all) else { return };
            let length = if prefix.is_ipv4() { 32 } else { 128 };
            cx.report(
                Problem::new(
                    "tunnel-through-itself",
                    remote.span,
                    format!("{} lies in the tunnel itself", remote.value),
                )
                .help(format!("add a route to {}/{length} outside the tunnel", remote.value))
                .also(at, "this route sends it there"),
            );
        }
        None if !table.incomplete => cx.report(
            Problem::new(
                "remote-unreachable",
                remote.span,
                format!("the underlay has no route to {}", remote.value),
            )
            .help("add a [[gateway.NAME.route]] to it, or a default route"),
        ),
        _ => {}
    }
}

/// A tunnel that no policy and no route names never carries a packet.
fn used(draft: &Draft, cx: &mut Context<'_>) {
    let mut used = vec![false; draft.tunnels.len()];
    let mut uses = |tunnel: TunnelId| {
        if let Some(used) = used.get_mut(tunnel.0) {
            *used = true;
        }
    };
    let policies = draft.gateways.iter().flat_map(|g| &g.policies);
    let routes = draft.gateways.iter().flat_map(|g| &g.routes).map(|r| &r.tunnel);
    for slot in policies.clone().map(|p| &p.tunnel).chain(routes) {
        match slot.get() {
            Some(tunnel) => uses(tunnel.value),
            None if slot.is_present() => return,
            None => {}
        }
    }
    for slot in policies.map(|p| &p.standby) {
        match slot.get() {
            Some(tunnels) => tunnels.iter().for_each(|tunnel| uses(tunnel.value)),
            None if slot.is_present() => return,
            None => {}
        }
    }
    for (tunnel, _) in draft.tunnels.iter().zip(used).filter(|(_, used)| !used) {
        cx.report(
            Problem::new("unused-tunnel", tunnel.at, "no policy and no route leads into this tunnel").help(
                "add a [[gateway.NAME.policy]] with action = \"protect\" and this tunnel, or take it out",
            ),
        );
    }
}
