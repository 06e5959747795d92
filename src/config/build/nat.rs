//! The address translation of one gateway.

use std::net::IpAddr;

use super::{BuildError, Builder, table_error, wire_prefix};
use crate::{
    config::{NatKind, Prefix},
    table::{
        address::Address,
        gateway_nat::{GatewayNat, Rules},
        nat::{Rule, Static1to1},
    },
    wire::ip::IpPrefix,
};

impl Builder<'_> {
    pub(super) fn nat(&self, place: usize) -> Result<GatewayNat, BuildError> {
        let gateway = &self.config.gateways[place];
        let what = format!("nat of gateway {}", gateway.name.value.as_str());
        let rules = |kind: NatKind| {
            let chosen = gateway.nat.iter().filter(move |nat| *nat.kind == kind);
            chosen.map(|nat| (nat.original.value.0, nat.translated.value.0))
        };
        let v4 = |kind| {
            self.one_to_one(rules(kind), &what, |address| match address {
                IpAddr::V4(a) => Some(a.to_bits()),
                IpAddr::V6(_) => None,
            })
        };
        let v6 = |kind| {
            self.one_to_one(rules(kind), &what, |address| match address {
                IpAddr::V6(a) => Some(a.to_bits()),
                IpAddr::V4(_) => None,
            })
        };
        let vpc = || gateway.prefixes.iter().map(|p| wire_prefix(p.value));
        Ok(GatewayNat {
            v4: Rules { local: v4(NatKind::Local)?, peer: v4(NatKind::Peer)? },
            v6: Rules { local: v6(NatKind::Local)?, peer: v6(NatKind::Peer)? },
            vpc_v4: vpc().filter_map(|p| if let IpPrefix::V4(p) = p { Some(p) } else { None }).collect(),
            vpc_v6: vpc().filter_map(|p| if let IpPrefix::V6(p) = p { Some(p) } else { None }).collect(),
        })
    }

    /// The rules of one IP version: those whose addresses `bits` takes.
    fn one_to_one<A: Address>(
        &self,
        rules: impl Iterator<Item = (Prefix, Prefix)>,
        what: &str,
        bits: impl Fn(IpAddr) -> Option<A>,
    ) -> Result<Static1to1<A>, BuildError> {
        let rule = |(original, translated): (Prefix, Prefix)| {
            let (length, translated) = (original.length(), bits(translated.address())?);
            Some(Rule { original: bits(original.address())?, translated, length })
        };
        let rules: Vec<_> = rules.filter_map(rule).collect();
        Static1to1::build(&rules, self.seed).map_err(table_error(what.to_string()))
    }
}
