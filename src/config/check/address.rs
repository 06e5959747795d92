//! Interface addresses within one gateway.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Networks, duplicate, seen};
use crate::config::decode::Context;
use crate::config::diagnostics::Problem;

/// No address twice, and no two interfaces on one prefix.
pub(crate) fn check(networks: &Networks, cx: &mut Context<'_>) {
    for network in &networks.0 {
        let mut first = HashMap::new();
        for connected in &network.connected {
            let address = &connected.address;
            // Every IPv6 interface may have the same link-local prefix: it is never routed (RFC 4291 2.5.6).
            if matches!(address.address, IpAddr::V6(a) if a.is_unicast_link_local()) {
                continue;
            }
            if let Some(first) = seen(&mut first, address.address, address.span) {
                let message = format!("{} is already an address of this gateway", address.address);
                let help = "give every interface its own address";
                cx.report(duplicate("duplicate-address", address.span, first, message, help));
                continue;
            }
            let network_of = |index: &usize| &network.connected[*index];
            let other = network
                .by_prefix
                .covering(address.network())
                .map(|(_, index)| network_of(index))
                .find(|other| other.interface != connected.interface);
            if let Some(other) = other {
                let (this, that) = (address.network(), other.address.network());
                let message =
                    format!("{this} overlaps {that}, which another interface of this gateway is on");
                cx.report(
                    Problem::new("overlapping-addresses", address.span, message)
                        .also(other.address.span, "the other interface")
                        .help(
                            "give the interfaces prefixes that do not overlap, or put them in two gateways",
                        ),
                );
            }
        }
    }
}
