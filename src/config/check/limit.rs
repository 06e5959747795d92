//! Limits that limit nothing, and addresses that have two.

use std::collections::HashMap;

use super::{duplicate, seen};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::limit_values::{Burst, LimitRate, cap};
use crate::config::model::{AddressLimitDraft, GatewayDraft, LimitDraft};

/// Every limit of the file.
pub(crate) fn check(draft: &Draft, cx: &mut Context<'_>) {
    // The longest packet that comes: what a bucket never holds enough for never passes.
    let longest =
        draft.ports.iter().filter_map(|port| port.mtu.get()).map(|mtu| mtu.get()).max().unwrap_or(0);
    let gateways = draft.gateways.iter().map(|gateway| &gateway.limit);
    let interfaces = draft.interfaces.iter().map(|interface| &interface.limit);
    let tunnels = draft.tunnels.iter().map(|tunnel| &tunnel.limit);
    gateways.chain(interfaces).chain(tunnels).flatten().for_each(|limit| one(limit, longest, cx));
    for gateway in &draft.gateways {
        if let Some(limit) = &gateway.address_limit {
            addresses(gateway, limit, longest, cx);
        }
    }
}

/// A limit has a rate.
fn one(limit: &LimitDraft, longest: u32, cx: &mut Context<'_>) {
    holds(longest, [&limit.inwards, &limit.outwards], &limit.burst, cx);
    if !limit.inwards.is_present() && !limit.outwards.is_present() {
        let problem = Problem::new("empty-limit", limit.at, "this limit has neither `in` nor `out`");
        cx.report(problem.help("give a rate, such as in = \"100Mbps\", or take the limit out"));
    }
}

/// A bucket holds enough for the longest packet.
fn holds(longest: u32, rates: [&Slot<LimitRate>; 2], burst: &Slot<Burst>, cx: &mut Context<'_>) {
    // One that cannot be read may be large enough.
    if burst.is_present() && burst.given().is_none() {
        return;
    }
    for rate in rates.into_iter().filter_map(Slot::given) {
        let Some(cap) = cap(Some(rate.value), burst.given().map(|burst| burst.value)) else { continue };
        if cap.burst < u64::from(longest) {
            let at = burst.given().map_or(rate.span, |burst| burst.span);
            let message = format!(
                "with a burst of {} bytes packets of {longest}, the MTU of a port, would never pass",
                cap.burst
            );
            let help = format!("write burst = \"{}KiB\", or more", longest.div_ceil(1024));
            cx.report(Problem::new("burst-below-mtu", at, message).help(help));
            return;
        }
    }
}

/// Each address has one limit, and is an address of the VPC.
fn addresses(gateway: &GatewayDraft, limit: &AddressLimitDraft, longest: u32, cx: &mut Context<'_>) {
    holds(longest, [&limit.inwards, &limit.outwards], &limit.burst, cx);
    let mut places = HashMap::new();
    let prefixes = gateway.prefixes.get();
    for own in &limit.own {
        holds(longest, [&own.inwards, &own.outwards], &own.burst, cx);
        if !own.inwards.is_present() && !own.outwards.is_present() {
            let problem = Problem::new("empty-limit", own.at, "this limit has neither `in` nor `out`");
            cx.report(problem.help("give a rate, such as in = \"100Mbps\", or take the limit out"));
        }
        for address in own.address.get().into_iter().flat_map(|list| &list.value) {
            let prefix = address.value.0;
            if let Some(first) = seen(&mut places, prefix, address.span) {
                let message = format!("{prefix} has two limits");
                cx.report(duplicate("duplicate-limit", address.span, first, message, "keep one of them"));
            }
            let inside =
                prefixes.is_none_or(|all| all.is_empty() || all.iter().any(|known| known.covers(prefix)));
            if !inside {
                let message = format!("{prefix} is not in the gateway's `prefixes`");
                let problem = Problem::new("limit-outside", address.span, message);
                cx.report(problem.help("limits are of the VPC's own addresses, before NAT: add its prefix, or correct the address"));
            }
        }
    }
}
