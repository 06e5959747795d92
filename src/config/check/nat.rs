//! Address mappings: one to one, and never onto something that is in use.

use super::lookup::PrefixMap;
use super::{Network, Networks, duplicate};
use crate::config::decode::Context;
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{GatewayDraft, NatDraft, NatKind};
use crate::config::prefix::{HostOrPrefix, not_a_host};
use crate::config::span::At;

pub(crate) fn check(draft: &Draft, networks: &Networks, cx: &mut Context<'_>) {
    for (gateway, network) in draft.gateways.iter().zip(&networks.0) {
        for rule in &gateway.nat {
            pair(rule, cx);
            place(gateway, rule, cx);
            interfaces(rule, network, cx);
        }
        unique(gateway, cx);
    }
}

fn ends(rule: &NatDraft) -> impl Iterator<Item = &At<HostOrPrefix>> {
    [&rule.original, &rule.translated].into_iter().filter_map(|end| end.get())
}

/// Both ends are unicast and as large as each other.
fn pair(rule: &NatDraft, cx: &mut Context<'_>) {
    for end in ends(rule) {
        if let Some(why) = not_a_host(end.0.address()) {
            let problem = Problem::new("bad-address", end.span, format!("{} {why}", end.value));
            cx.report(problem.help("a mapping is between unicast addresses"));
        }
    }
    let (Some(original), Some(translated)) = (rule.original.get(), rule.translated.get()) else { return };
    if original.0.is_ipv4() != translated.0.is_ipv4() {
        cx.report(
            Problem::new("mixed-families", translated.span, "a mapping is between addresses of one family")
                .help("give two IPv4 or two IPv6 addresses")
                .also(original.span, "of the other family"),
        );
    } else if original.0.length() != translated.0.length() {
        let (a, b) = (original.0.length(), translated.0.length());
        cx.report(
            Problem::new(
                "nat-unequal-lengths",
                translated.span,
                format!("/{a} cannot be mapped one to one onto /{b}"),
            )
            .help(format!("give a prefix of length {a}"))
            .also(original.span, "the original"),
        );
    } else if original.0 == translated.0 {
        let problem = Problem::new("nat-onto-itself", translated.span, "this mapping changes nothing");
        cx.report(
            problem
                .help("give another translated address, or take the rule out")
                .also(original.span, "the original"),
        );
    }
}

/// A local host is in the VPC; what stands for it, or for a peer's host, is not.
fn place(gateway: &GatewayDraft, rule: &NatDraft, cx: &mut Context<'_>) {
    let (Some(kind), Some(prefixes)) = (rule.kind.get(), gateway.prefixes.get()) else { return };
    if let (NatKind::Local, Some(original)) = (kind.value, rule.original.get())
        && !prefixes.iter().any(|prefix| prefix.covers(original.0))
    {
        let all: Vec<String> = prefixes.iter().take(100).map(|p| p.to_string()).collect();
        let help = match all.is_empty() {
            true => "give the gateway the VPC's prefixes: prefixes = [\"…\"]".to_owned(),
            false => format!("the VPC's prefixes are {}", crate::config::suggest::listing(&all)),
        };
        let message = format!("{} is not in the VPC, and so has no local mapping", original.value);
        cx.report(Problem::new("nat-original-outside", original.span, message).help(help));
    }
    let Some(translated) = rule.translated.get() else { return };
    if let Some(prefix) = prefixes.iter().find(|prefix| prefix.overlaps(translated.0)) {
        cx.report(
            Problem::new(
                "nat-translated-inside",
                translated.span,
                format!("{} is in the VPC", translated.value),
            )
            .help("translate to addresses that the VPC does not have")
            .also(prefix.span, "the VPC's prefix"),
        );
    }
}

/// An interface's own address is answered by the gateway, never mapped. The original of a prefix rule may well hold
/// one: the rest of the prefix is what is meant.
fn interfaces(rule: &NatDraft, network: &Network, cx: &mut Context<'_>) {
    let original = rule.original.get().filter(|original| original.0.is_host());
    for end in rule.translated.get().into_iter().chain(original) {
        let own = match end.0.is_host() {
            true => network.own(end.0.address()),
            false => network.connected.iter().find(|c| end.0.contains(c.address.address)),
        };
        if let Some(own) = own {
            let message = format!("{} overlaps an address of an interface of this gateway", end.value);
            cx.report(
                Problem::new("nat-interface-address", end.span, message)
                    .help("use an address that no interface has")
                    .also(own.address.span, "the interface's"),
            );
        }
    }
}

/// Within a kind, no two rules share an original or a translated address.
fn unique(gateway: &GatewayDraft, cx: &mut Context<'_>) {
    for kind in [NatKind::Local, NatKind::Peer] {
        let rules = || gateway.nat.iter().filter(|r| r.kind.get().is_some_and(|k| k.value == kind));
        let originals: Vec<_> = rules().filter_map(|rule| rule.original.get()).collect();
        let translated: Vec<_> = rules().filter_map(|rule| rule.translated.get()).collect();
        for (mut ends, word) in [(originals, "original"), (translated, "translated")] {
            // Shorter first, so that whatever overlaps an entry covers it.
            ends.sort_by_key(|end| (end.0.length(), end.span.start));
            let mut first = PrefixMap::default();
            for end in ends {
                let other = first.longest(end.0).map(|(_, span)| *span);
                first.insert_first(end.0, end.span);
                if let Some(other) = other {
                    let message =
                        format!("another {} mapping has this {word} address already", kind.as_str());
                    let help = "a 1:1 mapping needs both addresses for itself";
                    cx.report(duplicate("duplicate-nat", end.span, other, message, help));
                }
            }
        }
    }
}
