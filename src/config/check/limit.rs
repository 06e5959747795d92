//! Limits that limit nothing, and addresses that have two.

use std::collections::HashMap;

use super::{duplicate, seen};
use crate::config::decode::Context;
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{AddressLimitDraft, GatewayDraft, LimitDraft};

/// Every limit of the file.
pub(crate) fn check(draft: &Draft, cx: &mut Context<'_>) {
    let gateways = draft.gateways.iter().map(|gateway| &gateway.limit);
    let interfaces = draft.interfaces.iter().map(|interface| &interface.limit);
    let tunnels = draft.tunnels.iter().map(|tunnel| &tunnel.limit);
    gateways.chain(interfaces).chain(tunnels).flatten().for_each(|limit| one(limit, cx));
    for gateway in &draft.gateways {
        if let Some(limit) = &gateway.address_limit {
            addresses(gateway, limit, cx);
        }
    }
}

/// A limit has a rate.
fn one(limit: &LimitDraft, cx: &mut Context<'_>) {
    if !limit.inwards.is_present() && !limit.outwards.is_present() {
        let problem = Problem::new("empty-limit", limit.at, "this limit has neither `in` nor `out`");
        cx.report(problem.help("give a rate, such as in = \"100Mbps\", or take the limit out"));
    }
}

/// Each address has one limit, and is an address of the VPC.
fn addresses(gateway: &GatewayDraft, limit: &AddressLimitDraft, cx: &mut Context<'_>) {
    let mut places = HashMap::new();
    let prefixes = gateway.prefixes.get();
    for own in &limit.own {
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
