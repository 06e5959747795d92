//! Policies: each says one thing that a packet can match.

use std::collections::HashMap;

use super::lookup::PrefixMap;
use super::{duplicate, seen};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{Action, GatewayId, PolicyDraft, TunnelId};
use crate::config::prefix::Prefix;
use crate::config::selector::{PortRanges, Protocol};
use crate::config::span::At;
use crate::table::tables::MOST_STANDBY;

pub(crate) fn check(draft: &Draft, cx: &mut Context<'_>) {
    for (index, gateway) in draft.gateways.iter().enumerate() {
        let mut first = HashMap::new();
        for policy in &gateway.policies {
            if let Some(name) = policy.name.get()
                && let Some(first) = seen(&mut first, name.as_str(), name.span)
            {
                let message = format!("this gateway has a policy \"{}\" already", name.value);
                cx.report(duplicate(
                    "duplicate-policy",
                    name.span,
                    first,
                    message,
                    "give each policy its own name",
                ));
            }
            tunnel(draft, GatewayId(index), policy, cx);
            families(policy, cx);
            upper_layer(policy, cx);
        }
        shadowed(&gateway.policies, cx);
    }
}

/// A policy of which an earlier one matches every packet never decides anything: one of the two is a mistake.
fn shadowed(policies: &[PolicyDraft], cx: &mut Context<'_>) {
    // Those that can be read, in the order in which they are asked: lower priorities first, then as in the file.
    let mut order: Vec<&PolicyDraft> = policies.iter().filter(|policy| is_whole(policy)).collect();
    order.sort_by_key(|policy| policy.priority.get().map(|priority| priority.get()));
    // Earlier policies by one of their destinations, or sources; whoever covers a policy covers its first prefix.
    let (mut by_destination, mut by_source): (PrefixMap<Vec<usize>>, PrefixMap<Vec<usize>>) =
        Default::default();
    let mut of_all = Vec::new();
    for (place, policy) in order.iter().enumerate() {
        let (source, destination) = (prefixes(&policy.source), prefixes(&policy.destination));
        let near = |map: &PrefixMap<Vec<usize>>, list: &[At<Prefix>]| -> Vec<usize> {
            let first = list.first().map(|prefix| prefix.value);
            first.map_or_else(Vec::new, |p| map.covering(p).flat_map(|(_, places)| places.clone()).collect())
        };
        let mut candidates = near(&by_destination, destination);
        candidates.extend(near(&by_source, source));
        candidates.extend(&of_all);
        let earlier = candidates.into_iter().filter(|&at| at < place).filter_map(|at| order.get(at));
        if let Some(first) = earlier.into_iter().find(|earlier| covers(earlier, policy)) {
            let name = first.name.get().map_or("", |name| name.as_str());
            cx.report(
                Problem::new(
                    "shadowed-policy",
                    policy.at,
                    "this policy never decides: an earlier one takes all its packets",
                )
                .help(format!(
                    "put it before \"{name}\" with a lower priority, make that one narrower, or take one out"
                ))
                .also(first.at, "this one comes first"),
            );
        }
        match (destination, source) {
            ([], []) => of_all.push(place),
            ([], list) => list.iter().for_each(|prefix| by_source.entry(prefix.value).push(place)),
            (list, _) => list.iter().for_each(|prefix| by_destination.entry(prefix.value).push(place)),
        }
    }
}

/// Whether all that a policy selects by could be read.
fn is_whole(policy: &PolicyDraft) -> bool {
    fn good<T>(slot: &Slot<T>) -> bool {
        !matches!(slot, Slot::Broken)
    }
    good(&policy.source)
        && good(&policy.destination)
        && good(&policy.protocol)
        && good(&policy.source_port)
        && good(&policy.destination_port)
        && good(&policy.icmp)
        && policy.priority.get().is_some()
}

/// The prefixes of a selector; none for every address.
fn prefixes(slot: &Slot<Vec<At<Prefix>>>) -> &[At<Prefix>] {
    slot.get().map_or(&[], |list| list.value.as_slice())
}

/// Whether every packet of `inner` is one of `outer`.
fn covers(outer: &PolicyDraft, inner: &PolicyDraft) -> bool {
    let addresses = |outer: &[At<Prefix>], inner: &[At<Prefix>]| {
        outer.is_empty()
            || !inner.is_empty() && inner.iter().all(|p| outer.iter().any(|q| q.value.covers(p.value)))
    };
    let ports = |outer: &Slot<PortRanges>, inner: &Slot<PortRanges>| match (outer.get(), inner.get()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) => {
            inner.0.iter().all(|p| outer.0.iter().any(|q| q.first <= p.first && p.last <= q.last))
        }
    };
    let icmp = match (outer.icmp.get(), inner.icmp.get()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) => {
            outer.kind == inner.kind && outer.code.is_none_or(|code| inner.code == Some(code))
        }
    };
    addresses(prefixes(&outer.source), prefixes(&inner.source))
        && addresses(prefixes(&outer.destination), prefixes(&inner.destination))
        && outer
            .protocol
            .get()
            .is_none_or(|outer| inner.protocol.get().is_some_and(|inner| inner.value == outer.value))
        && ports(&outer.source_port, &inner.source_port)
        && ports(&outer.destination_port, &inner.destination_port)
        && icmp
}

/// `protect` names a tunnel of its own gateway, and nothing else does.
fn tunnel(draft: &Draft, gateway: GatewayId, policy: &PolicyDraft, cx: &mut Context<'_>) {
    let Some(action) = policy.action.get() else { return };
    match (action.value, &policy.tunnel) {
        (Action::Protect, Slot::Absent) => cx.report(
            Problem::new(
                "protect-without-tunnel",
                action.span,
                "this policy does not say by which tunnel it protects",
            )
            .help("add `tunnel = \"NAME\"`"),
        ),
        (Action::Bypass | Action::Discard, Slot::Given(tunnel)) => cx.report(
            Problem::new(
                "tunnel-without-protect",
                tunnel.span,
                "only `protect` sends packets through a tunnel",
            )
            .help("write action = \"protect\", or take `tunnel` out")
            .also(action.span, "the action"),
        ),
        (Action::Protect, Slot::Given(tunnel)) => of_this_gateway(draft, gateway, tunnel, cx),
        _ => {}
    }
    standby(draft, gateway, policy, cx);
}

/// Tunnels stand by for another one of their gateway, each once.
fn standby(draft: &Draft, gateway: GatewayId, policy: &PolicyDraft, cx: &mut Context<'_>) {
    let (Some(action), Some(list)) = (policy.action.get(), policy.standby.get()) else { return };
    if action.value != Action::Protect {
        let problem = Problem::new(
            "tunnel-without-protect",
            list.span,
            "only `protect` sends packets through a tunnel, and so has others stand by",
        );
        cx.report(
            problem.help("write action = \"protect\", or take `standby` out").also(action.span, "the action"),
        );
        return;
    }
    if list.len() > MOST_STANDBY {
        let message = format!("{} tunnels stand by, and {MOST_STANDBY} is the most", list.len());
        cx.report(Problem::new("too-many-standby", list.span, message).help("take some out"));
    }
    let mut first = HashMap::new();
    if let Some(tunnel) = policy.tunnel.get() {
        first.insert(tunnel.value.0, tunnel.span);
    }
    for tunnel in list.iter() {
        if let Some(first) = seen(&mut first, tunnel.value.0, tunnel.span) {
            let message = "this policy has the tunnel already".to_owned();
            let help = "name each tunnel once";
            cx.report(duplicate("duplicate-standby", tunnel.span, first, message, help));
        }
        of_this_gateway(draft, gateway, tunnel, cx);
    }
}

/// A tunnel is of its policy's gateway.
fn of_this_gateway(draft: &Draft, gateway: GatewayId, tunnel: &At<TunnelId>, cx: &mut Context<'_>) {
    let owner = draft.tunnels.get(tunnel.value.0).and_then(|t| t.gateway.get());
    if let Some(owner) = owner.filter(|owner| owner.value != gateway) {
        let message = format!("the tunnel belongs to gateway \"{}\"", cx.names.gateways.list[owner.value.0]);
        cx.report(
            Problem::new("other-gateway", tunnel.span, message)
                .help("a policy protects with a tunnel of its own gateway")
                .also(owner.span, "the tunnel's gateway"),
        );
    }
}

fn families(policy: &PolicyDraft, cx: &mut Context<'_>) {
    let mut all = Vec::new();
    for list in [&policy.source, &policy.destination].into_iter().filter_map(|slot| slot.get()) {
        if list.is_empty() {
            let problem = Problem::new("bad-value", list.span, "an empty list of prefixes matches nothing");
            cx.report(problem.help("leave the key out to match every address"));
        }
        all.extend(list.iter());
    }
    let Some(first) = all.first() else { return };
    if let Some(other) = all.iter().find(|prefix| prefix.is_ipv4() != first.is_ipv4()) {
        cx.report(
            Problem::new(
                "mixed-families",
                other.span,
                "the prefixes of one policy are of different families",
            )
            .help("write two policies: one for IPv4 and one for IPv6")
            .also(first.span, "of the other family"),
        );
        return;
    }
    let Some(protocol) = policy.protocol.get() else { return };
    let wrong = if first.is_ipv4() { Protocol::ICMPV6 } else { Protocol::ICMP };
    if protocol.value == wrong {
        let right = if first.is_ipv4() { "icmp" } else { "icmpv6" };
        cx.report(
            Problem::new(
                "mixed-families",
                protocol.span,
                format!("{wrong} does not occur between these prefixes"),
            )
            .help(format!("write protocol = \"{right}\""))
            .also(first.span, "the prefixes"),
        );
    }
}

/// Ports belong to protocols that have them, types to ICMP.
fn upper_layer(policy: &PolicyDraft, cx: &mut Context<'_>) {
    if let Slot::Broken = policy.protocol {
        return;
    }
    let protocol = policy.protocol.get();
    for (key, ports) in [("source_port", &policy.source_port), ("destination_port", &policy.destination_port)]
    {
        if let Some(ports) = ports.get().filter(|_| !protocol.is_some_and(|p| p.has_ports())) {
            let message = match protocol {
                Some(protocol) => format!("{} has no ports", protocol.value),
                None => format!("`{key}` needs a protocol that has ports"),
            };
            let problem = Problem::new("port-without-protocol", ports.span, message);
            cx.report(problem.help("add `protocol = \"tcp\"`, or udp, sctp or dccp"));
        }
    }
    let icmp = |p: Protocol| p == Protocol::ICMP || p == Protocol::ICMPV6;
    if let Some(at) = policy.icmp.get().filter(|_| !protocol.is_some_and(|p| icmp(p.value))) {
        let problem = Problem::new("icmp-without-protocol", at.span, "`icmp` needs protocol icmp or icmpv6");
        cx.report(problem.help("write `protocol = \"icmp\"`, or icmpv6"));
    }
}
