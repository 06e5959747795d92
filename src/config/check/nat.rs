//! Address mappings: each as its kind wants it, and never onto something that is in use.

use std::collections::HashMap;

use super::lookup::PrefixMap;
use super::{Network, Networks, duplicate, seen};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{GatewayDraft, NatDraft, NatKind};
use crate::config::prefix::{Prefix, not_a_host};
use crate::config::selector::Protocol;
use crate::config::span::{At, Span};

/// Addresses of all pools of a gateway together, at most.
const MOST_POOL_ADDRESSES: u64 = 65_536;
/// Local rules with conditions in a gateway, at most: they are asked one after the other.
const MOST_CONDITIONAL: usize = 256;
/// Ports below are of services.
const FIRST_PORT: u16 = 1024;

pub(crate) fn check(draft: &Draft, networks: &Networks, cx: &mut Context<'_>) {
    for (gateway, network) in draft.gateways.iter().zip(&networks.0) {
        for rule in &gateway.nat {
            keys(rule, cx);
            unicast(rule, cx);
            match kind(rule) {
                Some(NatKind::Local | NatKind::Peer) => pair(rule, cx),
                Some(NatKind::Port) => mapping(rule, cx),
                Some(NatKind::Pool) => pool(rule, cx),
                None => {}
            }
            place(gateway, rule, cx);
            interfaces(rule, network, cx);
        }
        unique(gateway, cx);
        services(gateway, cx);
        pools(gateway, cx);
        times(gateway, cx);
    }
    sessions(draft, cx);
}

fn kind(rule: &NatDraft) -> Option<NatKind> {
    rule.kind.get().map(|kind| kind.value)
}

/// The original as one prefix.
fn original(rule: &NatDraft) -> Option<At<Prefix>> {
    rule.original.get().map(|at| At::new(at.value.0, at.span))
}

/// The translated address or prefix, where it is one.
fn translated(rule: &NatDraft) -> Option<At<Prefix>> {
    let at = rule.translated.get()?;
    at.value.single().map(|prefix| At::new(prefix, at.span))
}

fn shown(prefix: Prefix) -> String {
    if prefix.is_host() { prefix.address().to_string() } else { prefix.to_string() }
}

fn is_conditional(rule: &NatDraft) -> bool {
    rule.protocol.given().is_some()
        || rule.source_port.given().is_some()
        || rule.destination_port.given().is_some()
        || rule.destination.given().is_some()
}

/// No key that the kind has no use for, and none missing that it needs.
fn keys(rule: &NatDraft, cx: &mut Context<'_>) {
    fn span<T>(slot: &Slot<T>) -> Option<Span> {
        slot.given().map(|at| at.span)
    }
    let Some(kind) = kind(rule) else { return };
    use NatKind::{Local, Peer, Pool, Port};
    let table: [(&str, Option<Span>, &[NatKind]); 7] = [
        ("original_port", span(&rule.original_port), &[Port]),
        ("translated_port", span(&rule.translated_port), &[Port]),
        ("ports", span(&rule.ports), &[Pool]),
        ("protocol", span(&rule.protocol), &[Local, Port, Pool]),
        ("source_port", span(&rule.source_port), &[Local, Pool]),
        ("destination_port", span(&rule.destination_port), &[Local, Port, Pool]),
        ("destination", span(&rule.destination), &[Local, Port, Pool]),
    ];
    for (key, given, kinds) in table {
        if let Some(span) = given
            && !kinds.contains(&kind)
        {
            let words: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
            let message = format!("a {} mapping takes no `{key}`", kind.as_str());
            cx.report(Problem::new("nat-key", span, message).help(format!("it is for {}", words.join(", "))));
        }
    }
    let needed: [(&str, bool, &[NatKind], &str); 3] = [
        ("original", rule.original.is_present(), &[Local, Peer, Port], "\"10.2.0.5\""),
        ("protocol", rule.protocol.is_present(), &[Port], "\"tcp\""),
        ("translated_port", rule.translated_port.is_present(), &[Port], "443"),
    ];
    for (key, present, kinds, example) in needed {
        if !present && kinds.contains(&kind) && !cx.incomplete {
            let message = format!("a {} mapping has no `{key}`", kind.as_str());
            let problem = Problem::new("missing-key", rule.at, message);
            cx.report(problem.help(format!("add `{key} = {example}`")).label("in this section"));
        }
    }
    let ports = rule.source_port.given().or(rule.destination_port.given());
    let without = rule.protocol.get().is_none_or(|protocol| !protocol.has_ports());
    if let (Some(ports), true) = (ports, without && kind != Port) {
        let problem = Problem::new("port-without-protocol", ports.span, "only some protocols have ports");
        cx.report(problem.help("add protocol = \"tcp\", or another protocol that has ports"));
    }
    if kind != Pool
        && let Some(translated) = rule.translated.get()
        && translated.single().is_none()
    {
        let message = format!("a {} mapping translates to one address or prefix", kind.as_str());
        let problem = Problem::new("nat-key", translated.span, message);
        cx.report(problem.help("ranges and lists are for mappings of kind \"pool\""));
    }
}

/// Every address can be a host's.
fn unicast(rule: &NatDraft, cx: &mut Context<'_>) {
    let mut refuse = |address: std::net::IpAddr, span, text: String| {
        if let Some(why) = not_a_host(address) {
            let problem = Problem::new("bad-address", span, format!("{text} {why}"));
            cx.report(problem.help("a mapping is between unicast addresses"));
        }
    };
    if let Some(original) = original(rule)
        && kind(rule) != Some(NatKind::Pool)
    {
        refuse(original.address(), original.span, shown(original.value));
    }
    if let Some(translated) = rule.translated.get() {
        for range in &translated.ranges {
            refuse(range.first, translated.span, translated.value.to_string());
        }
    }
}

/// Both ends are of one family and as large as each other.
fn pair(rule: &NatDraft, cx: &mut Context<'_>) {
    let (Some(original), Some(translated)) = (original(rule), translated(rule)) else { return };
    if original.is_ipv4() != translated.is_ipv4() {
        cx.report(
            Problem::new("mixed-families", translated.span, "a mapping is between addresses of one family")
                .help("give two IPv4 or two IPv6 addresses")
                .also(original.span, "of the other family"),
        );
    } else if original.length() != translated.length() {
        let (a, b) = (original.length(), translated.length());
        cx.report(
            Problem::new(
                "nat-unequal-lengths",
                translated.span,
                format!("/{a} cannot be mapped one to one onto /{b}"),
            )
            .help(format!("give a prefix of length {a}"))
            .also(original.span, "the original"),
        );
    } else if original.value == translated.value {
        let problem = Problem::new("nat-onto-itself", translated.span, "this mapping changes nothing");
        cx.report(
            problem
                .help("give another translated address, or take the rule out")
                .also(original.span, "the original"),
        );
    }
}

fn only_ipv4(span: Span, cx: &mut Context<'_>) {
    let problem = Problem::new("nat-ipv6", span, "mappings with sessions are for IPv4");
    cx.report(problem.help("IPv6 addresses are mapped one to one: kind \"local\" or \"peer\""));
}

/// One address to one address, of a protocol with ports.
fn mapping(rule: &NatDraft, cx: &mut Context<'_>) {
    for end in [original(rule), translated(rule)].into_iter().flatten() {
        if !end.is_ipv4() {
            only_ipv4(end.span, cx);
        } else if !end.is_host() {
            let message = format!("{} is more than one address", end.value);
            let help = "a port mapping is from one address and port to one address and port";
            cx.report(Problem::new("nat-key", end.span, message).help(help));
        }
    }
    if let Some(protocol) = rule.protocol.get()
        && !matches!(protocol.value, Protocol(6 | 17))
    {
        let message = format!("{} has no ports that could be mapped", protocol.value);
        cx.report(Problem::new("bad-value", protocol.span, message).help("write \"tcp\" or \"udp\""));
    }
}

/// IPv4, and ports that are not of services.
fn pool(rule: &NatDraft, cx: &mut Context<'_>) {
    if let Some(translated) = rule.translated.get()
        && translated.ranges.iter().any(|range| range.first.is_ipv6())
    {
        only_ipv4(translated.span, cx);
    }
    if let Some(original) = original(rule)
        && !original.is_ipv4()
    {
        only_ipv4(original.span, cx);
    }
    if let Some(ports) = rule.ports.given() {
        let good = matches!(&ports.value.0[..], [range] if range.first >= FIRST_PORT);
        if !good {
            let problem =
                Problem::new("bad-value", ports.span, "a pool has one range of ports, from 1024 on");
            cx.report(problem.help("write a range such as \"1024-65535\""));
        }
    }
}

/// A local host is in the VPC; what stands for it, or for a peer's host, is not.
fn place(gateway: &GatewayDraft, rule: &NatDraft, cx: &mut Context<'_>) {
    let (Some(kind), Some(prefixes)) = (kind(rule), gateway.prefixes.get()) else { return };
    if let (NatKind::Local | NatKind::Port | NatKind::Pool, Some(original)) = (kind, original(rule))
        && !prefixes.iter().any(|prefix| prefix.covers(original.value))
    {
        let all: Vec<String> = prefixes.iter().take(100).map(|p| p.to_string()).collect();
        let help = match all.is_empty() {
            true => "give the gateway the VPC's prefixes: prefixes = [\"…\"]".to_owned(),
            false => format!("the VPC's prefixes are {}", crate::config::suggest::listing(&all)),
        };
        let message = format!("{} is not in the VPC, and so has no local mapping", shown(original.value));
        cx.report(Problem::new("nat-original-outside", original.span, message).help(help));
    }
    if kind == NatKind::Pool && !rule.original.is_present() && !prefixes.iter().any(|p| p.is_ipv4()) {
        let problem = Problem::new("nat-original-outside", rule.at, "this pool is for no host at all");
        cx.report(problem.help("give the gateway the VPC's prefixes, or the pool an `original`"));
    }
    let Some(translated) = rule.translated.get() else { return };
    let inside = |prefix: &&At<Prefix>| translated.ranges.iter().any(|range| range.overlaps(prefix.value));
    if let Some(prefix) = prefixes.iter().find(inside) {
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
    let mut report = |text: String, span: Span, own: &super::Connected| {
        let message = format!("{text} overlaps an address of an interface of this gateway");
        cx.report(
            Problem::new("nat-interface-address", span, message)
                .help("use an address that no interface has")
                .also(own.address.span, "the interface's"),
        );
    };
    if let Some(original) = original(rule)
        && original.is_host()
        && let Some(own) = network.own(original.address())
    {
        report(shown(original.value), original.span, own);
    }
    if let Some(translated) = rule.translated.get() {
        let covers = |address| translated.ranges.iter().any(|range| range.overlaps(Prefix::host(address)));
        if let Some(own) = network.connected.iter().find(|c| covers(c.address.address)) {
            report(translated.value.to_string(), translated.span, own);
        }
    }
}

/// Within a kind, no two 1:1 rules share an original or a translated address; but local rules with conditions may
/// share an original, since only one of them decides.
fn unique(gateway: &GatewayDraft, cx: &mut Context<'_>) {
    for one_to_one in [NatKind::Local, NatKind::Peer] {
        let rules = || gateway.nat.iter().filter(|rule| kind(rule) == Some(one_to_one));
        let originals: Vec<_> = rules().filter(|rule| !is_conditional(rule)).filter_map(original).collect();
        let translated: Vec<_> = rules().filter_map(translated).collect();
        for (mut ends, word) in [(originals, "original"), (translated, "translated")] {
            // Shorter first, so that whatever overlaps an entry covers it.
            ends.sort_by_key(|end| (end.length(), end.span.start));
            let mut first = PrefixMap::default();
            for end in ends {
                let other = first.longest(end.value).map(|(_, span)| *span);
                first.insert_first(end.value, end.span);
                if let Some(other) = other {
                    let message =
                        format!("another {} mapping has this {word} address already", one_to_one.as_str());
                    let help = "a 1:1 mapping needs both addresses for itself";
                    cx.report(duplicate("duplicate-nat", end.span, other, message, help));
                }
            }
        }
    }
    let conditional = gateway.nat.iter().filter(|rule| kind(rule) == Some(NatKind::Local));
    if let Some(rule) = conditional.filter(|rule| is_conditional(rule)).nth(MOST_CONDITIONAL) {
        let message = format!("more than {MOST_CONDITIONAL} local mappings of one gateway have conditions");
        cx.report(
            Problem::new("nat-too-many", rule.at, message).help("use fewer, or mappings without conditions"),
        );
    }
}

/// No two port mappings share protocol, address and port.
fn services(gateway: &GatewayDraft, cx: &mut Context<'_>) {
    let mut first = HashMap::new();
    for rule in gateway.nat.iter().filter(|rule| kind(rule) == Some(NatKind::Port)) {
        let (Some(protocol), Some(translated), Some(port)) =
            (rule.protocol.get(), translated(rule), rule.translated_port.get())
        else {
            continue;
        };
        let service = (protocol.value, translated.address(), port.get());
        if let Some(first) = seen(&mut first, service, port.span) {
            let message = format!("{} port {} is mapped already", protocol.value, port.get());
            let help = "give the service another address or port";
            cx.report(duplicate("duplicate-nat", port.span, first, message, help));
        }
    }
}

/// How far addresses have reached so far, and whose.
type Reach = Option<(u128, Span)>;

/// Pools are disjoint from each other and from what other rules translate to, and not larger than they may be.
fn pools(gateway: &GatewayDraft, cx: &mut Context<'_>) {
    let mut taken: Vec<(u128, u128, Span, bool)> = Vec::new();
    let mut addresses = 0_u64;
    let bits = |address: std::net::IpAddr| match address {
        // One order for both families.
        std::net::IpAddr::V4(a) => u128::from(a.to_bits()),
        std::net::IpAddr::V6(a) => a.to_bits() | 1 << 127,
    };
    for rule in &gateway.nat {
        let (Some(kind), Some(translated)) = (kind(rule), rule.translated.get()) else { continue };
        let is_pool = kind == NatKind::Pool;
        for range in &translated.ranges {
            taken.push((bits(range.first), bits(range.last), translated.span, is_pool));
            if is_pool && range.first.is_ipv4() {
                addresses = addresses.saturating_add((bits(range.last) - bits(range.first)) as u64 + 1);
            }
        }
        if is_pool && addresses > MOST_POOL_ADDRESSES {
            let message = format!("the pools of this gateway have more than {MOST_POOL_ADDRESSES} addresses");
            let problem = Problem::new("nat-too-many", translated.span, message);
            cx.report(problem.help("one address serves 64512 sessions with each remote address and port"));
            return;
        }
    }
    taken.sort_unstable_by_key(|(first, last, span, _)| (*first, *last, span.start));
    // What reaches furthest of what came before, of pools and of all.
    let (mut pool, mut any): (Reach, Reach) = (None, None);
    for (first, last, span, is_pool) in taken {
        let before = if is_pool { any } else { pool };
        if let Some((reach, other)) = before
            && reach >= first
        {
            let message = "a pool shares addresses with another mapping";
            cx.report(
                Problem::new("nat-pool-overlap", span, message)
                    .help("give the pool addresses that nothing else translates to")
                    .also(other, "the other one"),
            );
        }
        let further = |known: Reach| known.filter(|(r, _)| *r >= last).or(Some((last, span)));
        any = further(any);
        if is_pool {
            pool = further(pool);
        }
    }
}

/// Sessions live for a second at least and a month at most.
fn times(gateway: &GatewayDraft, cx: &mut Context<'_>) {
    let all = [
        &gateway.nat_udp_timeout,
        &gateway.nat_tcp_timeout,
        &gateway.nat_tcp_transitory_timeout,
        &gateway.nat_icmp_timeout,
    ];
    for time in all.into_iter().filter_map(|slot| slot.given()) {
        if !(1..=30 * 86_400).contains(&time.value.0.as_secs()) {
            let problem = Problem::new("out-of-range", time.span, "sessions live from one second to 30 days");
            cx.report(problem.help("write a time such as \"300s\""));
        }
    }
}

/// The gateways' shares fit the table.
fn sessions(draft: &Draft, cx: &mut Context<'_>) {
    let Some(table) = draft.system.nat_sessions.get() else { return };
    for limit in draft.gateways.iter().filter_map(|gateway| gateway.nat_sessions.given()) {
        if limit.get() > table.get() {
            let message = format!("the table of all gateways has room for {} sessions", table.get());
            let problem = Problem::new("out-of-range", limit.span, message);
            cx.report(
                problem
                    .help("raise nat_sessions of [system], or lower this one")
                    .also(table.span, "the table's"),
            );
        }
    }
}
