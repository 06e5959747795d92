//! What a run shows, in the order of the stages.

use super::*;
use crate::table::tables::Protection;

/// Puts what the run shows into steps.
pub(super) struct Teller<'a> {
    pub(super) config: &'a Config,
    pub(super) packet: &'a Packet,
    pub(super) place: usize,
    pub(super) text: Option<&'a str>,
    pub(super) run: Run,
    pub(super) steps: Vec<Step>,
}

impl Teller<'_> {
    pub(super) fn step(&mut self, stage: &'static str, text: String, details: Value) {
        self.steps.push(Step { stage, text, details });
    }

    pub(super) fn line(&self, span: Span) -> Option<usize> {
        let head = self.text?.as_bytes().get(..span.start)?;
        Some(1 + head.iter().filter(|byte| **byte == b'\n').count())
    }

    /// " (line N)", where it is known.
    pub(super) fn at(&self, span: Span) -> String {
        self.line(span).map_or_else(String::new, |line| format!(" (line {line})"))
    }

    /// The metadata of the packet, where nothing else came after it.
    pub(super) fn meta(&self) -> Option<Meta> {
        self.run.meta.filter(|meta| !meta.flags.has(Flags::ORIGINATED))
    }

    pub(super) fn tell(mut self) -> Explanation {
        let verdict = self.verdict();
        let known = std::mem::take(&mut self.run.known);
        self.steps.extend(known);
        self.arrive();
        self.limits_in();
        let entry = self.config.interfaces[self.place].gateway.value.0;
        self.policies_in();
        let own = self.config.interfaces_of(crate::config::GatewayId(entry)).find_map(|(_, interface)| {
            let addresses = interface.addresses.iter();
            addresses
                .map(|address| address.value.address)
                .any(|address| address == self.packet.destination)
                .then(|| interface.name.value.to_string())
        });
        if let Some(name) = &own {
            let text =
                format!("{} is the gateway's own address, on interface {name}", self.packet.destination);
            self.step("local", text, json!({ "interface": name }));
        }
        if own.is_none() || self.run.moved(group::POLICY, "out_packets").next().is_some() {
            self.nat();
            self.ways(entry, &verdict);
        }
        self.limits_out();
        self.tunnels();
        self.neighbours();
        self.leave();
        if let Some(reason) = self.drops().get(1).map(|(reason, _)| reason.name()) {
            let text = format!("the error for its sender is dropped: {reason}");
            self.step("answer", text, json!({ "reason": reason }));
        }
        Explanation { steps: self.steps, verdict, sent: self.run.sent, received: self.run.received }
    }

    /// Drops that were counted: reason and row. First that of the packet itself, then that of the error that answers
    /// it, which is counted by the same interface.
    pub(super) fn drops(&self) -> Vec<(DropReason, &str)> {
        let mut drops: Vec<(DropReason, &str)> = Vec::new();
        for (_, row, column, n) in self.run.moved.iter().filter(|(g, ..)| g == group::DROP) {
            if let Some(reason) = DropReason::ALL.iter().find(|reason| reason.name() == column) {
                drops.extend((0..*n).map(|_| (*reason, row.as_str())));
            }
        }
        if let Some(meta) = &self.run.meta
            && let Some(place) = drops.iter().position(|(reason, _)| Some(*reason) == meta.reason)
        {
            // The last packet of the burst is the answer, where there is one.
            let one = drops.remove(place);
            let at = if meta.flags.has(Flags::ORIGINATED) { drops.len() } else { 0 };
            drops.insert(at, one);
        }
        drops
    }

    pub(super) fn verdict(&self) -> Verdict {
        if let Some((reason, row)) = self.drops().first() {
            return Verdict::Dropped { reason: *reason, row: (*row).into() };
        }
        let Some(sent) = self.run.sent.first() else { return Verdict::Waits };
        let port = sent.port.clone();
        let answers = sent.destination == self.packet.source && sent.source == self.packet.destination;
        if answers { Verdict::Answered { port } } else { Verdict::Forwarded { port } }
    }

    pub(super) fn arrive(&mut self) {
        let interface = &self.config.interfaces[self.place];
        let gateway = self.config.gateway(interface.gateway.value).name.value.to_string();
        let (name, port) = (&interface.name.value, &self.config.port(interface.port.value).name.value);
        let vlan = match interface.vlan.value {
            Vlan::Untagged => "untagged".to_string(),
            Vlan::Tagged(id) => format!("VLAN {id}"),
            Vlan::Stacked { outer, inner } => format!("VLANs {outer} and {inner}"),
        };
        let side = interface.side.as_str();
        let place = self.at(interface.name.span);
        let text =
            format!("interface {name}{place}: port {port}, {vlan}; the {side} side of gateway {gateway}");
        let line = self.line(interface.name.span);
        let details = json!({
            "interface": name.as_str(), "port": port.as_str(), "vlan": vlan, "gateway": gateway, "side": side,
            "line": line, "size": self.run.received.1.len(),
        });
        self.step("arrive", text, details);
    }

    /// A policy by its row in the counters.
    pub(super) fn policy(&self, row: &str) -> Option<(String, &crate::config::Policy)> {
        let (gateway, policy) = row.split_once('/')?;
        let gateway = self.config.gateways.iter().find(|g| g.name.value.as_str() == gateway)?;
        let found = gateway.policies.iter().find(|p| p.name.as_str() == policy)?;
        Some((gateway.name.value.to_string(), found))
    }

    pub(super) fn tell_policy(&mut self, stage: &'static str, row: &str) {
        let Some((gateway, policy)) = self.policy(row) else { return };
        let (name, action) = (policy.name.to_string(), policy.action.as_str());
        let tunnel = policy.tunnel.as_ref().map(|t| self.config.tunnel(t.value).name.value.to_string());
        let through = tunnel.as_ref().map_or_else(String::new, |tunnel| format!(" through tunnel {tunnel}"));
        let read = if stage == "policy-in" { ", read the other way round," } else { "" };
        let (place, line) = (self.at(policy.action.span), self.line(policy.action.span));
        let ways = self.standing(policy).filter(|_| stage == "policy");
        let (chosen, taken) = ways.unwrap_or_default();
        let text =
            format!("policy {name}{place} of gateway {gateway}{read} matches: {action}{through}{chosen}");
        let details = json!({
            "gateway": gateway, "policy": name, "action": action, "tunnel": tunnel, "line": line, "taken": taken,
        });
        self.step(stage, text, details);
    }

    /// Where other tunnels stand by for a policy's: how each is, and which is taken, also alone.
    fn standing(&self, policy: &crate::config::Policy) -> Option<(String, Option<String>)> {
        let active = policy.tunnel.as_ref()?.value;
        let others: Vec<_> = policy.standby.iter().flat_map(|list| &list.value).map(|t| t.value).collect();
        if others.is_empty() {
            return None;
        }
        let number = |id: crate::config::TunnelId| self.run.tunnels.get(id.0).copied();
        let numbers: Vec<u16> = others.iter().filter_map(|id| number(*id)).collect();
        let liveness = &self.run.tables.liveness;
        let taken = Protection::new(number(active)?, &numbers).choose(liveness);
        let name = |id: crate::config::TunnelId| self.config.tunnel(id).name.value.to_string();
        let state = |number: u16| if liveness.tunnel_is_up(number) { "up" } else { "down" };
        let all = std::iter::once((active, "active")).chain(others.iter().map(|id| (*id, "standby")));
        let shown: Vec<String> = all
            .clone()
            .filter_map(|(id, role)| Some(format!("{} ({role}) is {}", name(id), state(number(id)?))))
            .collect();
        let (id, role) = all.clone().find(|(id, _)| number(*id) == Some(taken))?;
        let taken = name(id);
        Some((format!("; {}: {role} {taken} is taken", shown.join(", ")), Some(taken)))
    }

    pub(super) fn policies_in(&mut self) {
        let rows: Vec<String> = self.run.moved(group::POLICY, "in_packets").map(String::from).collect();
        rows.iter().for_each(|row| self.tell_policy("policy-in", row));
    }

    /// Addresses and ports behind translation, as far as the run shows them.
    pub(super) fn translated(&self) -> Option<(SocketAddr, SocketAddr)> {
        let plain = |sent: &'_ Sent| -> Option<Sent> {
            if sent.spi.is_none() { Some(sent.clone()) } else { sent.inner.as_deref().cloned() }
        };
        if let Some(sent) = self.run.sent.iter().find_map(plain)
            && !matches!(self.verdict(), Verdict::Dropped { .. })
        {
            let (from, to) = sent.ports.unwrap_or_default();
            return Some((SocketAddr::new(sent.source, from), SocketAddr::new(sent.destination, to)));
        }
        let meta = self.meta().filter(|meta| !meta.is_v6() && meta.interface != NO_INTERFACE)?;
        let ports = matches!(meta.proto, protocol::TCP | protocol::UDP);
        let (from, to) = if ports { (meta.sport, meta.dport) } else { (0, 0) };
        let address = |bits: u32| IpAddr::V4(bits.into());
        Some((SocketAddr::new(address(meta.src), from), SocketAddr::new(address(meta.dst), to)))
    }

    pub(super) fn nat(&mut self) {
        let Some((source, destination)) = self.translated() else { return };
        let (from, to) = match self.packet.content {
            Content::Ports(from, to) => (from, to),
            _ => (0, 0),
        };
        let changes = [
            ("source", SocketAddr::new(self.packet.source, from), source),
            ("destination", SocketAddr::new(self.packet.destination, to), destination),
        ];
        for (end, old, new) in changes {
            if old == new {
                continue;
            }
            let shown = |address: SocketAddr| {
                if old.port() == new.port() { address.ip().to_string() } else { address.to_string() }
            };
            let rule = self.rule(end == "source", (old, new), destination.ip());
            let by = rule.as_ref().map_or_else(String::new, |(gateway, name, kind, span)| {
                format!(": rule {name}{} of gateway {gateway}, kind {kind}", self.at(*span))
            });
            let text = format!("{end} {} becomes {}{by}", shown(old), shown(new));
            let line = rule.as_ref().and_then(|rule| self.line(rule.3));
            let details = json!({
                "end": end, "from": shown(old), "to": shown(new), "line": line,
                "gateway": rule.as_ref().map(|rule| &rule.0), "rule": rule.as_ref().map(|rule| &rule.1),
            });
            self.step("nat", text, details);
        }
    }

    /// The rule that makes one address of another, and whose conditions the packet meets: the first in the file, of the
    /// gateway that the packet enters before others. `source`: whether it is the source that changes; `peer`: the
    /// destination as it is behind all translation.
    pub(super) fn rule(
        &self,
        source: bool,
        (old, new): (SocketAddr, SocketAddr),
        peer: IpAddr,
    ) -> Option<(String, String, &'static str, Span)> {
        let entry = self.config.interfaces[self.place].gateway.value.0;
        let gateways = self.config.gateways.iter();
        let (first, others): (Vec<_>, Vec<_>) = gateways.enumerate().partition(|(place, _)| *place == entry);
        for (_, gateway) in first.into_iter().chain(others) {
            for nat in &gateway.nat {
                let inside = |address| {
                    nat.original().map_or_else(
                        || gateway.prefixes.iter().any(|prefix| prefix.value.contains(address)),
                        |original| original.contains(address),
                    )
                };
                let outside =
                    |address| nat.translated_prefixes().iter().any(|prefix| prefix.contains(address));
                // Whose address it is appears as the source of what it sends and the destination of what comes to it:
                // so of every kind of rule, whichever end it is for.
                let fits = if source {
                    inside(old.ip()) && outside(new.ip())
                } else {
                    outside(old.ip()) && inside(new.ip())
                };
                if fits && self.meets(nat, source, (old, new), peer) {
                    let name = nat.name.to_string();
                    return Some((gateway.name.value.to_string(), name, nat.kind.as_str(), nat.kind.span));
                }
            }
        }
        None
    }

    /// Whether the packet meets a rule's conditions, which are about the VPC's host and its peer.
    fn meets(
        &self,
        nat: &crate::config::Nat,
        from_host: bool,
        (old, new): (SocketAddr, SocketAddr),
        peer: IpAddr,
    ) -> bool {
        let ports = match self.packet.content {
            Content::Ports(from, to) => Some((from, to)),
            _ => None,
        };
        // Of the host as it is, and of its peer.
        let (host, remote) = match (ports, from_host) {
            (Some((from, to)), true) => (Some(from), Some(to)),
            (Some((from, _)), false) => (Some(new.port()), Some(from)),
            (None, _) => (None, None),
        };
        let peer = if from_host { peer } else { self.packet.source };
        let holds = |ranges: &crate::config::PortRanges, port: Option<u16>| {
            port.is_some_and(|port| ranges.0.iter().any(|range| (range.first..=range.last).contains(&port)))
        };
        let outside = if from_host { new.port() } else { old.port() };
        nat.protocol.as_ref().is_none_or(|protocol| protocol.value.0 == self.packet.protocol)
            && nat.source_port.as_ref().is_none_or(|ports| holds(&ports.value, host))
            && nat.destination_port.as_ref().is_none_or(|ports| holds(&ports.value, remote))
            && nat.destination.as_ref().is_none_or(|all| all.value.iter().any(|p| p.value.contains(peer)))
            && nat.translated_port.as_ref().is_none_or(|port| port.get() == u32::from(outside))
    }

    /// Policies and routes of the gateways that the packet goes through.
    pub(super) fn ways(&mut self, entry: usize, verdict: &Verdict) {
        let rows: Vec<String> = self.run.moved(group::POLICY, "out_packets").map(String::from).collect();
        let mut gateway = entry;
        let mut seen = BTreeSet::new();
        while seen.insert(gateway) && seen.len() <= MOST {
            let name = self.config.gateways[gateway].name.value.to_string();
            let mut decided = false;
            for row in rows.iter().filter(|row| row.split_once('/').is_some_and(|(g, _)| g == name)) {
                self.tell_policy("policy", row);
                decided |= self.policy(row).is_some_and(|(_, policy)| *policy.action != Action::Bypass);
            }
            if decided || !looks_routes_up(verdict) {
                return;
            }
            match self.route(gateway) {
                Some(next) => gateway = next,
                None => return,
            }
        }
    }

    /// The next hop that the packet's flow has of those that a number stands for, and how it came to it.
    fn chosen(&self, number: u32) -> (u32, String) {
        let tables = &self.run.tables;
        let Some(Hop::Choice(choice)) = tables.next_hops.get(number) else { return (number, String::new()) };
        let all: usize = choice.tiers().iter().map(|tier| tier.members().len()).sum();
        let up = choice.standing(&tables.liveness);
        let Some(standing) = up.or_else(|| choice.regardless()) else { return (number, String::new()) };
        let members: Vec<u32> = standing.members().map(|member| member.hop).collect();
        // What the run shows where it ended here; otherwise what the same hash gives.
        let seen = self.meta().map(|meta| meta.next_hop).filter(|seen| members.contains(seen));
        let hash = || self.run.meta.map_or(0, |meta| flow_hash(&self.run.received.1, &meta));
        let picked = seen.or_else(|| standing.pick(hash)).unwrap_or(number);
        let how = match (up, members.len()) {
            (None, _) => format!(", the best of {all} routes, which are all down"),
            (Some(_), 1) => format!(", the best of {all} routes that is up"),
            (Some(_), equal) => {
                format!(", by the hash of its flow one of the {equal} best of {all} routes that are up")
            }
        };
        (picked, how)
    }

    /// The route that decides in a gateway; the result is the gateway that it leads to, if it does.
    pub(super) fn route(&mut self, place: usize) -> Option<usize> {
        let as_seen = self.meta().is_some_and(|meta| meta.nat.has(NatMarks::ROUTE_AS_SEEN));
        let translated = self.translated().map(|(_, to)| to.ip()).filter(|_| !as_seen);
        let destination = translated.unwrap_or(self.packet.destination);
        let gateway = &self.config.gateways[place];
        let name = gateway.name.value.to_string();
        let built = &self.run;
        let table = built.tables.gateway(*built.gateways.get(place)?)?;
        let number = match destination {
            IpAddr::V4(a) => table.routes_v4.lookup(a.to_bits()),
            IpAddr::V6(a) => table.routes_v6.lookup(a.to_bits()),
        };
        let (number, how) = match number.map(|number| self.chosen(number)) {
            Some((number, how)) => (Some(number), how),
            None => (None, String::new()),
        };
        let Some(hop) = number.and_then(|number| built.tables.next_hop(number)) else {
            let text = format!("no route of gateway {name} leads to {destination}");
            self.step("route", text, json!({ "gateway": name, "destination": destination, "route": null }));
            return None;
        };
        let named = |numbers: &[u16], number: u16| numbers.iter().position(|n| *n == number);
        let interface = |number| {
            let place = named(&built.interfaces, number);
            place.map_or_else(String::new, |place| self.config.interfaces[place].name.value.to_string())
        };
        let (leads, next) = match hop {
            NextHop::Via { interface: by, address, .. } => {
                (format!("via {address} on interface {}", interface(by)), None)
            }
            NextHop::Connected { interface: by } => {
                (format!("on the link of interface {}", interface(by)), None)
            }
            NextHop::Tunnel(number) => {
                let place = named(&built.tunnels, number);
                let tunnel = place.map_or("", |place| self.config.tunnels[place].name.value.as_str());
                (format!("through tunnel {tunnel}"), None)
            }
            NextHop::Gateway(number) => {
                let next = named(&built.gateways, number);
                let gateway = next.map_or("", |place| self.config.gateways[place].name.value.as_str());
                (format!("into gateway {gateway}"), next)
            }
            NextHop::Blackhole => ("nowhere: a blackhole".into(), None),
            NextHop::Local => ("to the gateway itself".into(), None),
            NextHop::Broadcast => ("to the broadcast address of a link".into(), None),
        };
        let leads_there = |route: &crate::config::Route| match (route.next_hop, hop) {
            (Where::Via { address, .. }, NextHop::Via { address: to, .. }) => address == to,
            (Where::Connected(id), NextHop::Connected { interface }) => built.interfaces[id.0] == interface,
            (Where::Tunnel(id), NextHop::Tunnel(number)) => built.tunnels[id.0] == number,
            (Where::Gateway(id), NextHop::Gateway(number)) => built.gateways[id.0] == number,
            (Where::Blackhole, NextHop::Blackhole) => true,
            _ => false,
        };
        // Of several to one prefix, that which was chosen.
        let routes = gateway.routes.iter().filter(|route| leads_there(route));
        let routes = routes.map(|route| (route.to.value, Some(route.to.span)));
        let links = self
            .config
            .interfaces
            .iter()
            .filter(|interface| interface.gateway.value.0 == place)
            .flat_map(|interface| interface.addresses.iter().map(|a| (a.value.network(), Some(a.span))));
        let longest = links.chain(routes).filter(|(prefix, _)| prefix.contains(destination));
        let longest: Option<(Prefix, Option<Span>)> = longest.max_by_key(|(prefix, _)| prefix.length());
        let is_host = matches!(hop, NextHop::Local | NextHop::Broadcast);
        let longest = longest.filter(|_| !is_host);
        let prefix = longest.map_or_else(|| destination.to_string(), |(prefix, _)| prefix.to_string());
        let span = longest.and_then(|(_, span)| span);
        let (place, line) = (span.map_or_else(String::new, |s| self.at(s)), span.and_then(|s| self.line(s)));
        let text = format!("{destination} is in {prefix}{place} of gateway {name}: {leads}{how}");
        let details = json!({
            "gateway": name, "destination": destination, "route": prefix, "next_hop": leads, "line": line,
            "choice": how.strip_prefix(", "),
        });
        self.step("route", text, details);
        next
    }

    pub(super) fn tunnels(&mut self) {
        let rows: Vec<String> = self.run.moved(group::TUNNEL, "out_packets").map(String::from).collect();
        for row in rows {
            let Some(tunnel) = self.config.tunnels.iter().find(|t| t.name.value.as_str() == row) else {
                continue;
            };
            let outer = self.run.sent.iter().find(|sent| sent.spi.is_some());
            let spi = outer.and_then(|outer| outer.spi);
            let (local, remote) = (tunnel.local.value, tunnel.remote.value);
            let shown = spi.map_or_else(String::new, |spi| format!("SPI {spi:#x}, "));
            let size = outer.map_or_else(String::new, |outer| format!(", {} bytes", outer.size));
            let place = self.at(tunnel.name.span);
            let inner = outer.and_then(|outer| outer.inner.as_deref());
            let inside = inner.map_or_else(String::new, |inner| format!("; inside {}", describe(inner)));
            let number = self.config.tunnels.iter().position(|t| t.name.value.as_str() == row);
            let known = number.and_then(|place| self.run.tunnels.get(place));
            let known = known.and_then(|number| self.run.tables.tunnel(*number));
            let (mtu, path) = (known.map(|t| t.inner_mtu()), known.and_then(|t| t.path.mtu()));
            let takes = mtu.map_or_else(String::new, |mtu| format!("; it takes up to {mtu} bytes"));
            let learned = path.map_or_else(String::new, |path| {
                format!(", since the path was found to take no more than {path}")
            });
            let text = format!(
                "sealed into tunnel {row}{place}: {shown}{local} to {remote}{size}{inside}{takes}{learned}"
            );
            let line = self.line(tunnel.name.span);
            let details = json!({
                "tunnel": row, "spi": spi, "local": local, "remote": remote,
                "size": outer.map(|outer| outer.size), "line": line, "mtu": mtu, "path_mtu": path,
                "inner": inner.map(sent_json),
            });
            self.step("tunnel", text, details);
        }
    }

    /// Neighbours that are asked for first, where they are not all known.
    pub(super) fn neighbours(&mut self) {
        for (number, address) in std::mem::take(&mut self.run.waits_for) {
            let place = self.run.interfaces.iter().position(|known| *known == number);
            let name =
                place.map_or("", |place| self.config.interfaces[place].name.value.as_str()).to_string();
            let text =
                format!("{address} on interface {name} has not told its link address: it is asked first");
            self.step("neighbour", text, json!({ "interface": name, "address": address }));
        }
    }

    pub(super) fn leave(&mut self) {
        let interfaces: Vec<String> =
            self.run.moved(group::INTERFACE, "out_packets").map(String::from).collect();
        let sent = self.run.sent.clone();
        for one in &sent {
            let mut text = format!("port {}", one.port);
            if let Some(interface) = interfaces.iter().find(|name| {
                let of = |i: &&crate::config::Interface| i.name.value.as_str() == name.as_str();
                let interface = self.config.interfaces.iter().find(of);
                interface.is_some_and(|i| self.config.port(i.port.value).name.value.as_str() == one.port)
            }) {
                text = format!("interface {interface}, {text}");
            }
            let what = describe(one);
            let details = sent_json(one);
            self.step("leave", format!("{text}: {what}"), details);
        }
    }
}

/// Whether a packet with this end came as far as the route table.
pub(super) fn looks_routes_up(verdict: &Verdict) -> bool {
    use DropReason as R;
    match verdict {
        Verdict::Dropped { reason, .. } => matches!(
            reason,
            R::NoRoute
                | R::NoLivePath
                | R::Blackhole
                | R::TransitForbidden
                | R::TtlExpired
                | R::TooManyPasses
                | R::PacketTooBig
                | R::FragmentationFailed
        ),
        _ => true,
    }
}
