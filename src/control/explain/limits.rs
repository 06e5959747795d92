//! Limits that are asked about a packet. It is alone and its buckets are its own, so none of them is used up by it: what
//! is told is which would decide, and of a running gateway what is there now.

use super::*;
use crate::{
    config::{HostOrPrefix, build::key_of, rate_text},
    control::limits::{of_file, of_file_addresses},
    table::limit::{Cap, Level, Rate, Way},
};

/// A limit that was asked.
struct Told {
    level: Level,
    name: String,
    address: Option<IpAddr>,
    way: Way,
    cap: Option<Cap>,
    /// Whether the file says otherwise, or nothing.
    by_command: bool,
    /// Bytes that are there now, in a running gateway.
    left: Option<u64>,
    span: Option<Span>,
}

impl Teller<'_> {
    /// Limits of what the packet comes by, and of the VPC's side that it comes from.
    pub(super) fn limits_in(&mut self) {
        self.limits_of(&[Level::Interface, Level::Tunnel], Way::In);
        self.limits_of_addresses(Way::Out);
        self.limits_of(&[Level::Gateway], Way::Out);
    }

    /// Limits of the VPC that the packet goes to, and of what it leaves by.
    pub(super) fn limits_out(&mut self) {
        self.limits_of_addresses(Way::In);
        self.limits_of(&[Level::Gateway], Way::In);
        self.limits_of(&[Level::Tunnel, Level::Interface], Way::Out);
    }

    fn limits_of(&mut self, levels: &[Level], way: Way) {
        let column = if way == Way::In { "in_packets" } else { "out_packets" };
        let (config, run) = (self.config, &self.run);
        let mut told = Vec::new();
        for (level, row) in
            levels.iter().flat_map(|level| run.moved(group::LIMIT, column).map(|row| (*level, row)))
        {
            let Some(name) = row.strip_prefix(level.name()).and_then(|row| row.strip_prefix(' ')) else {
                continue;
            };
            let named = |known: &crate::config::At<crate::config::Name>| known.value.as_str() == name;
            let (place, numbers) = match level {
                Level::Gateway => (config.gateways.iter().position(|g| named(&g.name)), &run.gateways),
                Level::Interface => (config.interfaces.iter().position(|i| named(&i.name)), &run.interfaces),
                Level::Tunnel => (config.tunnels.iter().position(|t| named(&t.name)), &run.tunnels),
            };
            let Some((place, number)) = place.and_then(|place| Some((place, *numbers.get(place)?))) else {
                continue;
            };
            let limit = match level {
                Level::Gateway => &config.gateways[place].limit,
                Level::Interface => &config.interfaces[place].limit,
                Level::Tunnel => &config.tunnels[place].limit,
            };
            let cap = run.limits.limits.of(level, number).and_then(|(pair, _)| pair.way(way).rate.cap());
            let real = run.limits.real.as_ref();
            let left = real.and_then(|(limits, now)| limits.of(level, number)?.0.way(way).left(*now));
            told.push(Told {
                level,
                name: name.into(),
                address: None,
                way,
                cap,
                by_command: cap != of_file(config, level, place)[way as usize],
                left,
                span: limit.as_ref().map(|limit| limit.at),
            });
        }
        told.into_iter().for_each(|told| self.tell_limit(told));
    }

    fn limits_of_addresses(&mut self, way: Way) {
        let run = &self.run;
        let mut all = Vec::new();
        for (number, place, sections) in &run.limits.addresses {
            let Some(known) = run.limits.limits.addresses_of(*number) else { continue };
            let Some(gateway) = self.config.gateways.get(*place) else { continue };
            for view in (0..known.table.common()).filter_map(|entry| known.table.view(entry)) {
                if view.traffic[way as usize].passed_packets == 0 {
                    continue;
                }
                let rate = known.rate(view.class as usize, way);
                let cap = rate.and_then(Rate::cap);
                let address: IpAddr = match u32::try_from(view.key & 0xffff_ffff) {
                    Ok(bits) if view.key >> 32 == 0xffff => IpAddr::V4(bits.into()),
                    _ => IpAddr::V6(view.key.into()),
                };
                let section = sections.get(view.class as usize).copied().flatten();
                let limit = gateway.address_limit.as_ref();
                let own = limit.and_then(|limit| {
                    let is_it = |address: &crate::config::At<HostOrPrefix>| Some(address.value.0) == section;
                    limit.own.iter().find(|own| own.address.value.iter().any(is_it))
                });
                let file = of_file_addresses(self.config, *place, section);
                let left = run.limits.real.as_ref().and_then(|(limits, now)| {
                    let (real, key) = (limits.addresses_of(*number)?, key_of(address));
                    let entry = real.table.find(key, real.hash(key));
                    let bucket = real.table.bucket(entry?, way)?;
                    Some(bucket.left(rate.and_then(Rate::terms)?, *now))
                });
                all.push(Told {
                    level: Level::Gateway,
                    name: gateway.name.value.to_string(),
                    address: Some(address),
                    way,
                    cap,
                    by_command: cap != file.and_then(|file| file[way as usize]),
                    left,
                    span: own.map(|own| own.at).or(limit.map(|limit| limit.at)),
                });
            }
        }
        all.into_iter().for_each(|told| self.tell_limit(told));
    }

    fn tell_limit(&mut self, told: Told) {
        let Told { level, name, address, way, cap, by_command, left, span } = told;
        let kind = level.name();
        let word = if way == Way::In { "in" } else { "out" };
        let of = address.map_or_else(String::new, |address| format!("address {address} of "));
        let mut shown = cap.map_or_else(
            || "counted, without a limit".into(),
            |cap| format!("{} at most, {} bytes at once", rate_text(cap.rate), cap.burst),
        );
        if by_command {
            shown += ", set by command";
        }
        let size = self.ip_size();
        match left {
            Some(left) if left < size => {
                shown +=
                    &format!("; it is spent: {left} bytes are there now, so such packets are dropped here");
            }
            Some(left) => shown += &format!("; {left} bytes are there now"),
            None => {}
        }
        let place = span.filter(|_| !by_command).map_or_else(String::new, |span| self.at(span));
        let text = format!("limit of {of}{kind} {name}, {word}{place}: {shown}");
        let details = json!({
            "kind": kind, "name": name, "address": address, "way": word, "by_command": by_command, "left": left,
            "rate": cap.map(|cap| cap.rate), "burst": cap.map(|cap| cap.burst),
            "line": span.filter(|_| !by_command).and_then(|span| self.line(span)),
        });
        self.step("limit", text, details);
    }

    /// Bytes of the IP packet as it came.
    fn ip_size(&self) -> u64 {
        let link = match self.config.interfaces[self.place].vlan.value {
            Vlan::Untagged => 14,
            Vlan::Tagged(_) => 18,
            Vlan::Stacked { .. } => 22,
        };
        self.run.received.1.len().saturating_sub(link) as u64
    }
}
