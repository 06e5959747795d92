//! Limits that are asked about a packet. It is alone, so none of them is used up: what is told is which would decide.

use super::*;
use crate::{
    config::rate_text,
    table::limit::{Cap, Way},
};

impl Teller<'_> {
    /// Limits of what the packet comes by, and of the VPC's side that it comes from.
    pub(super) fn limits_in(&mut self) {
        self.limits_of(&["interface", "tunnel"], Way::In);
        self.limits_of_addresses(Way::Out);
        self.limits_of(&["gateway"], Way::Out);
    }

    /// Limits of the VPC that the packet goes to, and of what it leaves by.
    pub(super) fn limits_out(&mut self) {
        self.limits_of_addresses(Way::In);
        self.limits_of(&["gateway"], Way::In);
        self.limits_of(&["tunnel", "interface"], Way::Out);
    }

    fn limits_of(&mut self, kinds: &[&str], way: Way) {
        let column = if way == Way::In { "in_packets" } else { "out_packets" };
        let rows: Vec<String> = self.run.moved(group::LIMIT, column).map(String::from).collect();
        for kind in kinds {
            for (of, name) in rows.iter().filter_map(|row| row.split_once(' ')).filter(|(of, _)| of == kind) {
                let limit = match *kind {
                    "gateway" => {
                        let found = self.config.gateways.iter().find(|g| g.name.value.as_str() == name);
                        found.and_then(|found| found.limit.as_ref())
                    }
                    "interface" => {
                        let found = self.config.interfaces.iter().find(|i| i.name.value.as_str() == name);
                        found.and_then(|found| found.limit.as_ref())
                    }
                    _ => {
                        let found = self.config.tunnels.iter().find(|t| t.name.value.as_str() == name);
                        found.and_then(|found| found.limit.as_ref())
                    }
                };
                if let Some(limit) = limit {
                    let cap = limit.caps()[way as usize];
                    self.tell_limit(of, name, None, way, cap, limit.at);
                }
            }
        }
    }

    fn limits_of_addresses(&mut self, way: Way) {
        let built = &self.run.limits;
        let mut found = Vec::new();
        for addresses in &built.addresses {
            let Some(known) = built.limits.addresses_of(addresses.gateway) else { continue };
            let Some(gateway) = self.config.gateways.get(addresses.place) else { continue };
            let Some(limit) = &gateway.address_limit else { continue };
            for view in (0..known.table.common()).filter_map(|entry| known.table.view(entry)) {
                if view.traffic[way as usize].passed_packets == 0 {
                    continue;
                }
                let class = known.classes.get(view.class as usize);
                let cap = class.and_then(|c| if way == Way::In { c.inwards.cap() } else { c.outwards.cap() });
                let address: IpAddr = match u32::try_from(view.key & 0xffff_ffff) {
                    Ok(bits) if view.key >> 32 == 0xffff => IpAddr::V4(bits.into()),
                    _ => IpAddr::V6(view.key.into()),
                };
                let own = limit.own.iter().find(|own| {
                    let section = addresses.sections.get(view.class as usize).copied().flatten();
                    own.address.value.iter().any(|address| Some(address.value.0) == section)
                });
                let span = own.map_or(limit.at, |own| own.at);
                found.push((gateway.name.value.to_string(), address, cap, span));
            }
        }
        for (name, address, cap, span) in found {
            self.tell_limit("gateway", &name, Some(address), way, cap, span);
        }
    }

    fn tell_limit(
        &mut self,
        kind: &str,
        name: &str,
        address: Option<IpAddr>,
        way: Way,
        cap: Option<Cap>,
        span: Span,
    ) {
        let word = if way == Way::In { "in" } else { "out" };
        let of = address.map_or_else(String::new, |address| format!("address {address} of "));
        let shown = cap.map_or_else(
            || "counted, without a limit".into(),
            |cap| format!("{} at most, {} bytes at once", rate_text(cap.rate), cap.burst),
        );
        let text = format!("limit of {of}{kind} {name}, {word}{}: {shown}", self.at(span));
        let details = json!({
            "kind": kind, "name": name, "address": address, "way": word,
            "rate": cap.map(|cap| cap.rate), "burst": cap.map(|cap| cap.burst), "line": self.line(span),
        });
        self.step("limit", text, details);
    }
}
