//! Probes and BFD: times in their ranges, and addresses that nothing else has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{Connected, Network, Networks, duplicate, seen};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{GatewayDraft, InterfaceDraft, TunnelDraft};
use crate::config::prefix::{Prefix, not_a_host};
use crate::config::quantity::Interval;
use crate::config::span::{At, Span};

/// Probes go no faster and no slower.
const PROBE_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// An answer may take no less and no longer.
const PROBE_TIMEOUT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));
/// BFD packets go no faster and no slower.
const BFD_INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// Traffic is held back no longer.
const HOLD_DOWN: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(86_400));

pub(crate) fn check(draft: &Draft, networks: &Networks, cx: &mut Context<'_>) {
    for interface in &draft.interfaces {
        range(&interface.hold_down, HOLD_DOWN, cx);
        if let Some(probe) = &interface.probe {
            range(&probe.interval, PROBE_INTERVAL, cx);
            range(&probe.timeout, PROBE_TIMEOUT, cx);
        }
        if let Some(bfd) = &interface.bfd {
            range(&bfd.min_tx, BFD_INTERVAL, cx);
            range(&bfd.min_rx, BFD_INTERVAL, cx);
        }
        let network = interface.gateway.get().and_then(|gateway| networks.0.get(gateway.value.0));
        for ends in interface_ends(interface) {
            on_line(interface, &ends, network, cx);
        }
    }
    // In a gateway: who has a probe address already, by its place and its tunnel.
    let mut sources: HashMap<(usize, IpAddr), (Span, usize)> = HashMap::new();
    for (index, tunnel) in draft.tunnels.iter().enumerate() {
        range(&tunnel.hold_down, HOLD_DOWN, cx);
        if let Some(probe) = &tunnel.probe {
            range(&probe.interval, PROBE_INTERVAL, cx);
            range(&probe.timeout, PROBE_TIMEOUT, cx);
        }
        if let Some(bfd) = &tunnel.bfd {
            range(&bfd.min_tx, BFD_INTERVAL, cx);
            range(&bfd.min_rx, BFD_INTERVAL, cx);
        }
        let Some(place) = tunnel.gateway.get().map(|gateway| gateway.value.0) else { continue };
        let gateway = draft.gateways.get(place).zip(networks.0.get(place));
        for ends in tunnel_ends(tunnel) {
            if !two_hosts(&ends, cx) {
                continue;
            }
            if let Some((gateway, network)) = gateway {
                in_tunnel(gateway, network, &ends, cx);
            }
            let first = *sources.entry((place, ends.source.value)).or_insert((ends.source.span, index));
            if first.1 != index {
                let message = format!("{} is the probe address of another tunnel already", ends.source.value);
                let help = "give each tunnel of a gateway a `source` of its own, and its other end the same two \
                            addresses the other way round";
                cx.report(duplicate("probe-address-in-use", ends.source.span, first.0, message, help));
            }
        }
    }
    targets(draft, &sources, cx);
}

/// The two ends of a probe.
struct Ends {
    source: At<IpAddr>,
    target: At<IpAddr>,
}

fn ends(source: &Slot<IpAddr>, target: &Slot<IpAddr>) -> Option<Ends> {
    Some(Ends { source: source.get()?.clone(), target: target.get()?.clone() })
}

fn tunnel_ends(tunnel: &TunnelDraft) -> impl Iterator<Item = Ends> {
    let probe = tunnel.probe.as_ref().and_then(|probe| ends(&probe.source, &probe.target));
    let bfd = tunnel.bfd.as_ref().and_then(|bfd| ends(&bfd.source, &bfd.target));
    [probe, bfd].into_iter().flatten()
}

fn interface_ends(interface: &InterfaceDraft) -> impl Iterator<Item = LineEnds> {
    let probe = interface.probe.as_ref().map(|probe| (&probe.source, &probe.target));
    let bfd = interface.bfd.as_ref().map(|bfd| (&bfd.source, &bfd.target));
    let read = |(source, target): (&Slot<IpAddr>, &Slot<IpAddr>)| {
        Some(LineEnds { source: source.get().cloned(), target: target.get()?.clone() })
    };
    [probe, bfd].into_iter().flatten().filter_map(read)
}

/// The ends of a probe on a line, where the source may be missing.
struct LineEnds {
    source: Option<At<IpAddr>>,
    target: At<IpAddr>,
}

fn range(time: &Slot<Interval>, (least, most): (Duration, Duration), cx: &mut Context<'_>) {
    let Some(time) = time.given() else { return };
    if !(least..=most).contains(&time.value.0) {
        let problem = Problem::new("out-of-range", time.span, format!("{:?} is out of range", time.value.0));
        cx.report(problem.help(format!("write a time from {least:?} to {most:?}")));
    }
}

/// Both are hosts of one family, and two.
fn two_hosts(ends: &Ends, cx: &mut Context<'_>) -> bool {
    let mut good = true;
    for end in [&ends.source, &ends.target] {
        if let Some(why) = not_a_host(end.value) {
            let problem = Problem::new("bad-address", end.span, format!("{} {why}", end.value));
            cx.report(problem.help("probes go between two unicast addresses"));
            good = false;
        }
    }
    if ends.source.value.is_ipv4() != ends.target.value.is_ipv4() {
        cx.report(
            Problem::new(
                "mixed-families",
                ends.target.span,
                "the probe's two addresses are of different families",
            )
            .help("give both, IPv4 or IPv6")
            .also(ends.source.span, "the other one"),
        );
        good = false;
    }
    if ends.source.value == ends.target.value {
        cx.report(
            Problem::new("probe-to-itself", ends.target.span, "the probe's two addresses are one")
                .help("`target` is the other end's address")
                .also(ends.source.span, "the other one"),
        );
        good = false;
    }
    good
}

const FREE: &str =
    "take an address that nothing else has, such as one of 169.254.128.0/17, and tell the other end";

/// Inside a tunnel: our end is nobody else's, and the other end is no address of this gateway.
fn in_tunnel(gateway: &GatewayDraft, network: &Network, ends: &Ends, cx: &mut Context<'_>) {
    let mut taken = |end: &At<IpAddr>, by: Span, what: String| {
        let message = format!("the probe address {} {what}", end.value);
        cx.report(Problem::new("probe-address-in-use", end.span, message).also(by, "this").help(FREE));
    };
    for end in [&ends.source, &ends.target] {
        if let Some(Connected { address, .. }) = network.own(end.value) {
            taken(end, address.span, "is an interface's of this gateway".into());
        } else if let Some(Connected { address, .. }) = network.towards(end.value) {
            taken(end, address.span, format!("lies on a line of this gateway, {}", address.network()));
        }
        let prefixes = gateway.prefixes.get().map(|all| all.value.as_slice()).unwrap_or_default();
        if let Some(prefix) = prefixes.iter().find(|prefix| prefix.contains(end.value)) {
            taken(end, prefix.span, format!("lies in the VPC's prefix {}", prefix.value));
        }
        for rule in &gateway.nat {
            let host = Prefix::host(end.value);
            let original = rule.original.get().filter(|at| at.value.0.covers(host));
            if let Some(original) = original {
                taken(end, original.span, "is translated by NAT".into());
            }
            let translated = rule.translated.get();
            let translated = translated.filter(|at| at.value.ranges.iter().any(|range| range.overlaps(host)));
            if let Some(translated) = translated {
                taken(end, translated.span, "is one that NAT translates to".into());
            }
        }
    }
}

/// What one tunnel probes is not where another's probes come from.
fn targets(draft: &Draft, sources: &HashMap<(usize, IpAddr), (Span, usize)>, cx: &mut Context<'_>) {
    let mut told = HashMap::new();
    for tunnel in &draft.tunnels {
        let Some(place) = tunnel.gateway.get().map(|gateway| gateway.value.0) else { continue };
        for ends in tunnel_ends(tunnel) {
            let Some((span, _)) = sources.get(&(place, ends.target.value)) else { continue };
            // A probe to its own address is told of already.
            let known = seen(&mut told, (ends.target.span.start, ends.target.value), *span);
            if ends.target.value == ends.source.value || known.is_some() {
                continue;
            }
            let message = format!("{} is where a probe of this gateway comes from", ends.target.value);
            cx.report(
                Problem::new("probe-address-in-use", ends.target.span, message)
                    .also(*span, "this")
                    .help("`target` is the other end's address, `source` this end's"),
            );
        }
    }
}

/// On a line: our end is an address of the interface, and the other one is on its link.
fn on_line(interface: &InterfaceDraft, ends: &LineEnds, network: Option<&Network>, cx: &mut Context<'_>) {
    let Some(addresses) = interface.addresses.get() else { return };
    let target = &ends.target;
    if let Some(why) = not_a_host(target.value) {
        let problem = Problem::new("bad-address", target.span, format!("{} {why}", target.value));
        cx.report(problem.help("probes go to a unicast address on the line"));
        return;
    }
    if let Some(own) = network.and_then(|network| network.own(target.value)) {
        cx.report(
            Problem::new("probe-to-itself", target.span, format!("{} is this gateway's own", target.value))
                .help("`target` is the address of the router at the other end of the line")
                .also(own.address.span, "this"),
        );
        return;
    }
    let on_link = addresses.iter().any(|own| own.network().contains(target.value));
    if !on_link {
        let prefixes: Vec<String> = addresses.iter().map(|own| own.network().to_string()).collect();
        let message = format!("{} is not on the line", target.value);
        let help = match prefixes.is_empty() {
            true => "give the interface an address first".to_owned(),
            false => format!("write an address of {}", prefixes.join(" or ")),
        };
        cx.report(Problem::new("probe-not-on-line", target.span, message).help(help));
        return;
    }
    match &ends.source {
        Some(source) if !addresses.iter().any(|own| own.address == source.value) => {
            let message = format!("{} is not an address of the interface", source.value);
            let problem = Problem::new("probe-source", source.span, message);
            cx.report(problem.help("leave `source` out: it is found by `target`"));
        }
        Some(source) if source.value.is_ipv4() != target.value.is_ipv4() => cx.report(
            Problem::new(
                "mixed-families",
                target.span,
                "the probe's two addresses are of different families",
            )
            .help("leave `source` out: it is found by `target`")
            .also(source.span, "the other one"),
        ),
        // One that could not be read was told of.
        Some(_) | None => {}
    }
}
