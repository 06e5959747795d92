//! The address translation of one gateway.

use std::net::IpAddr;

use super::{BuildError, Builder, table_error, wire_prefix};
use crate::{
    config::{At, Gateway, Nat, NatKind, PortRanges, Prefix},
    table::{
        address::Address,
        gateway_nat::{
            Conditional, Conditions, GatewayNat, Mapping, Outside, Pool, Rules, SessionRules, TimeOuts,
            service,
        },
        hash::FixedMap,
        nat::{Rule, Static1to1},
        session::{PortRange, ticks},
    },
    wire::ip::IpPrefix,
};

/// The lowest port that stands for a host's: those below are of services (RFC 6056 3.2, RFC 4787 4.2.1).
const FIRST_PORT: u16 = 1024;

fn v4(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(a) => Some(a.to_bits()),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<u128> {
    match address {
        IpAddr::V6(a) => Some(a.to_bits()),
        IpAddr::V4(_) => None,
    }
}

/// A prefix as address and mask, when it is of the version that `bits` takes.
fn masked<A: Address>(prefix: Prefix, bits: impl Fn(IpAddr) -> Option<A>) -> Option<(A, A)> {
    bits(prefix.address()).map(|address| (address, A::mask(prefix.length())))
}

fn conditions<A: Address>(nat: &Nat, bits: impl Fn(IpAddr) -> Option<A> + Copy) -> Conditions<A> {
    let ports = |ports: Option<&At<PortRanges>>| {
        ports.map_or_else(Vec::new, |p| p.value.0.iter().map(|range| (range.first, range.last)).collect())
    };
    let destinations = nat.destination.iter().flat_map(|list| &list.value);
    Conditions {
        protocol: nat.protocol.as_ref().map(|protocol| protocol.value.0),
        source_ports: ports(nat.source_port.as_ref()),
        destination_ports: ports(nat.destination_port.as_ref()),
        destinations: destinations.filter_map(|prefix| masked(prefix.value, bits)).collect(),
    }
}

impl Builder<'_> {
    pub(super) fn nat(&mut self, place: usize) -> Result<GatewayNat, BuildError> {
        let config = self.config;
        let gateway = &config.gateways[place];
        let what = format!("nat of gateway {}", gateway.name.value.as_str());
        let v4_rules = self.rules(gateway, &what, v4)?;
        let v6_rules = self.rules(gateway, &what, v6)?;
        let vpc = || gateway.prefixes.iter().map(|p| wire_prefix(p.value));
        let peers = gateway.nat.iter().filter(|nat| *nat.kind == NatKind::Peer);
        let overlaps = |prefix: Prefix| gateway.prefixes.iter().any(|vpc| vpc.overlaps(prefix));
        let overlapping = peers.filter_map(Nat::original).any(overlaps);
        let sessions = match gateway.nat.iter().any(Nat::has_sessions) {
            true => Some(Box::new(self.session_rules(gateway, &what)?)),
            false => None,
        };
        Ok(GatewayNat {
            needs_ports: v4_rules.ask_for_ports(),
            needs_ports_v6: v6_rules.ask_for_ports(),
            plain: v4_rules.conditional.is_empty() && sessions.is_none(),
            v4: v4_rules,
            v6: v6_rules,
            vpc_v4: vpc()
                .filter_map(|p| if let IpPrefix::V4(p) = p { Some((p.addr(), p.mask())) } else { None })
                .collect(),
            vpc_v6: vpc().filter_map(|p| if let IpPrefix::V6(p) = p { Some(p) } else { None }).collect(),
            sessions,
            overlapping,
            generation: self.generation,
        })
    }

    /// The 1:1 rules of one IP version: those whose addresses `bits` takes.
    fn rules<A: Address>(
        &self,
        gateway: &Gateway,
        what: &str,
        bits: impl Fn(IpAddr) -> Option<A> + Copy,
    ) -> Result<Rules<A>, BuildError> {
        let rule = |nat: &Nat| {
            let (original, translated) = (nat.original()?, nat.translated()?);
            let (length, translated) = (original.length(), bits(translated.address())?);
            Some(Rule { original: bits(original.address())?, translated, length })
        };
        let of = |kind: NatKind, conditional: bool| {
            let chosen = gateway.nat.iter().filter(move |nat| *nat.kind == kind);
            chosen.filter(move |nat| nat.is_conditional() == conditional)
        };
        let build =
            |rules: Vec<Rule<A>>| Static1to1::build(&rules, self.seed).map_err(table_error(what.to_string()));
        let mut conditional = Vec::new();
        for nat in of(NatKind::Local, true) {
            if let Some(rule) = rule(nat) {
                conditional.push(Conditional { rule: build(vec![rule])?, conditions: conditions(nat, bits) });
            }
        }
        let translated = || gateway.nat.iter().filter(|nat| *nat.kind == NatKind::Local).filter_map(rule);
        let low = translated().map(|rule| rule.translated).min();
        let high = translated().map(|rule| rule.translated | !A::mask(rule.length)).max();
        Ok(Rules {
            reach: (low.unwrap_or(A::MAX), high.unwrap_or_default()),
            local: build(of(NatKind::Local, false).filter_map(rule).collect())?,
            conditional,
            peer: build(of(NatKind::Peer, false).filter_map(rule).collect())?,
        })
    }

    fn session_rules(&mut self, gateway: &Gateway, what: &str) -> Result<SessionRules, BuildError> {
        let name = gateway.name.value.as_str();
        let (mut pools, mut mappings, mut outside) = (Vec::new(), Vec::new(), Vec::new());
        for nat in &gateway.nat {
            match *nat.kind {
                NatKind::Pool => {
                    let ranges: Vec<(u32, u32)> = nat
                        .translated
                        .ranges
                        .iter()
                        .filter_map(|range| Some((v4(range.first)?, v4(range.last)?)))
                        .map(|(first, last)| (first, last - first + 1))
                        .collect();
                    let place = pools.len() as u16;
                    let all = ranges.iter().flat_map(|(first, count)| *first..=first + (count - 1));
                    outside.extend(all.map(|address| (address, Outside::Pool(place))));
                    let sources = match nat.original() {
                        Some(original) => masked(original, v4).into_iter().collect(),
                        None => gateway.prefixes.iter().filter_map(|p| masked(p.value, v4)).collect(),
                    };
                    let ports = nat.ports.as_ref().and_then(|ports| ports.value.0.first());
                    self.pools.push(format!("{name}/{}", nat.name.value.as_str()));
                    pools.push(Pool {
                        sources,
                        conditions: conditions(nat, v4),
                        addresses: ranges.iter().map(|(_, count)| count).sum(),
                        ranges,
                        ports: ports.map_or(PortRange::new(FIRST_PORT, u16::MAX), |range| {
                            PortRange::new(range.first.max(FIRST_PORT), range.last)
                        }),
                        row: (self.pools.len() - 1) as u16,
                    });
                }
                NatKind::Port => {
                    let address = |prefix: Option<Prefix>| prefix.and_then(|p| v4(p.address()));
                    let (Some(host), Some(appears)) = (address(nat.original()), address(nat.translated()))
                    else {
                        continue;
                    };
                    let (Some(protocol), Some(port)) = (&nat.protocol, &nat.translated_port) else {
                        continue;
                    };
                    let port = port.get() as u16;
                    let original_port = nat.original_port.as_ref().map_or(port, |port| port.get() as u16);
                    outside.push((appears, Outside::Mappings));
                    mappings.push(Mapping {
                        protocol: protocol.value.0,
                        translated: (appears, port),
                        original: (host, original_port),
                        conditions: Conditions { protocol: None, ..conditions(nat, v4) },
                    });
                }
                NatKind::Local | NatKind::Peer => {}
            }
        }
        let twice =
            |_| BuildError::Table { what: what.to_string(), source: "two mappings of one port".into() };
        let by_translated: Vec<_> = mappings
            .iter()
            .enumerate()
            .map(|(place, mapping)| (service(mapping.protocol, mapping.translated), place as u32))
            .collect();
        let mut originals: Vec<_> =
            mappings.iter().map(|mapping| (service(mapping.protocol, mapping.original), ())).collect();
        originals.sort_unstable();
        originals.dedup();
        // Several mappings share an address; the check has seen to it that no pool has one of theirs.
        outside.sort_by_key(|(address, _)| *address);
        outside.dedup_by_key(|(address, _)| *address);
        let with_sessions = |g: &&Gateway| g.nat.iter().any(Nat::has_sessions);
        let gateways = self.config.gateways.iter().filter(with_sessions).count().max(1);
        let share = self.config.system.nat_sessions.get() / gateways as u32;
        let of = |place: Option<&(u32, Outside)>| place.map(|(address, _)| *address);
        Ok(SessionRules {
            reach: (of(outside.first()).unwrap_or(u32::MAX), of(outside.last()).unwrap_or(0)),
            by_translated: FixedMap::build(self.seed, &by_translated).map_err(twice)?,
            by_original: FixedMap::build(self.seed, &originals).map_err(twice)?,
            outside: FixedMap::build(self.seed, &outside).map_err(twice)?,
            pools,
            mappings,
            time_outs: TimeOuts {
                udp: ticks(gateway.nat_udp_timeout.0),
                tcp_established: ticks(gateway.nat_tcp_timeout.0),
                tcp_transitory: ticks(gateway.nat_tcp_transitory_timeout.0),
                icmp: ticks(gateway.nat_icmp_timeout.0),
            },
            limit: gateway.nat_sessions.as_ref().map_or(share, |limit| limit.get()),
            source_limit: gateway.nat_sessions_per_source.as_ref().map(|limit| limit.get() as u16),
        })
    }
}
