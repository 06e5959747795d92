//! Policies: each says one thing that a packet can match.

use std::collections::HashMap;

use super::{duplicate, seen};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{Action, GatewayId, PolicyDraft};
use crate::config::selector::Protocol;

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
    }
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
        (Action::Protect, Slot::Given(tunnel)) => {
            let owner = draft.tunnels.get(tunnel.value.0).and_then(|t| t.gateway.get());
            if let Some(owner) = owner.filter(|owner| owner.value != gateway) {
                let message =
                    format!("the tunnel belongs to gateway \"{}\"", cx.names.gateways.list[owner.value.0]);
                cx.report(
                    Problem::new("other-gateway", tunnel.span, message)
                        .help("a policy protects with a tunnel of its own gateway")
                        .also(owner.span, "the tunnel's gateway"),
                );
            }
        }
        _ => {}
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
