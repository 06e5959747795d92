//! One gateway: its routes, policies and addresses.

use std::{collections::BTreeSet, net::IpAddr};

use super::{BuildError, Builder, RouteWriters, table_error};
use crate::{
    config::{self, Action, NextHop as Where, Prefix, Side},
    table::{
        interface::{OF_A_PROBE, OwnAddresses},
        lpm::{Lpm4, Lpm6},
        spd::{self, Ports, Spd},
        tables::{Gateway, NextHop, PolicyAction},
    },
};

impl Builder<'_> {
    /// The gateway at `place` in the configuration; an empty one for a number that is free.
    pub(super) fn gateway(&mut self, place: Option<usize>) -> Result<(Gateway, RouteWriters), BuildError> {
        let (routes_v4, mut writer_v4) = Lpm4::new();
        let (routes_v6, mut writer_v6) = Lpm6::new();
        let mut own = OwnAddresses::default();
        let mut policies = Vec::new();
        let mut actions = Vec::new();
        let mut nat = None;
        let mut icmp_source = (None, None);
        let name = place.map_or("", |place| self.config.gateways[place].name.value.as_str());
        let mut insert = |prefix: Prefix, hop: u32| -> Result<(), BuildError> {
            let what = || format!("routes of gateway {name}");
            match prefix.address() {
                IpAddr::V4(a) => {
                    writer_v4.insert(a.to_bits(), prefix.length(), hop).map(drop).map_err(table_error(what()))
                }
                IpAddr::V6(a) => {
                    writer_v6.insert(a.to_bits(), prefix.length(), hop).map(drop).map_err(table_error(what()))
                }
            }
        };
        if let Some(place) = place {
            let gateway = &self.config.gateways[place];
            let mine = |interface: &&config::Interface| interface.gateway.value.0 == place;
            for (interface, number) in
                self.config.interfaces.iter().zip(self.interfaces.clone()).filter(|(i, _)| mine(i))
            {
                for address in interface.addresses.iter().map(|a| a.value) {
                    let connected = self.next_hop(NextHop::Connected { interface: number });
                    insert(address.network(), connected)?;
                    // The directed broadcast of a link is nobody's address (RFC 2644).
                    if address.address.is_ipv4() && address.length <= 30 {
                        let broadcast = self.next_hop(NextHop::Broadcast);
                        insert(Prefix::host(address.network().last()), broadcast)?;
                        insert(Prefix::host(address.network().address()), broadcast)?;
                    }
                }
            }
            for route in &gateway.routes {
                let hop = match route.next_hop {
                    Where::Via { address, interface } => self.via(self.interfaces[interface.0], address)?,
                    Where::Connected(interface) => {
                        NextHop::Connected { interface: self.interfaces[interface.0] }
                    }
                    Where::Tunnel(tunnel) => NextHop::Tunnel(self.tunnels[tunnel.0]),
                    Where::Gateway(gateway) => NextHop::Gateway(self.gateways[gateway.0]),
                    Where::Blackhole => NextHop::Blackhole,
                };
                let hop = self.next_hop(hop);
                insert(route.to.value, hop)?;
            }
            // Own addresses go last: no route may take them away.
            let local = self.next_hop(NextHop::Local);
            let numbers = self.config.interfaces.iter().zip(&self.interfaces).filter(|(i, _)| mine(i));
            // The VPC's side first: errors about tunnel traffic come from an address that policies know.
            let mut numbers: Vec<_> = numbers.collect();
            numbers.sort_by_key(|(interface, _)| *interface.side != Side::Local);
            for (interface, &number) in numbers {
                for address in interface.addresses.iter().map(|a| a.value.address) {
                    insert(Prefix::host(address), local)?;
                    own.insert(address, number);
                    match address {
                        IpAddr::V4(a) => icmp_source.0 = icmp_source.0.or(Some(a)),
                        IpAddr::V6(a) => icmp_source.1 = icmp_source.1.or(Some(a)),
                    }
                }
            }
            for address in probe_sources(self.config, place) {
                own.insert(address, OF_A_PROBE);
            }
            for policy in &gateway.policies {
                policies.push(spd_policy(policy, actions.len() as u32));
                actions.push(match *policy.action {
                    Action::Protect => {
                        let tunnel = policy.tunnel.as_ref().map(|t| self.tunnels[t.value.0]);
                        tunnel.map_or(PolicyAction::Discard, PolicyAction::Protect)
                    }
                    Action::Bypass => PolicyAction::Bypass,
                    Action::Discard => PolicyAction::Discard,
                });
            }
            if !gateway.nat.is_empty() {
                nat = Some(self.nat(place)?);
            }
        }
        writer_v4.publish().map_err(table_error(format!("routes of gateway {name}")))?;
        writer_v6.publish().map_err(table_error(format!("routes of gateway {name}")))?;
        let spd =
            Spd::build(&policies, self.seed).map_err(table_error(format!("policies of gateway {name}")))?;
        let gateway = Gateway {
            own,
            routes_v4,
            routes_v6,
            spd,
            protects: actions.iter().any(|a| matches!(a, PolicyAction::Protect(_))),
            first_policy: 0,
            actions,
            nat,
            transit: place.is_some_and(|place| *self.config.gateways[place].transit),
            icmp_source,
        };
        Ok((gateway, (writer_v4, writer_v6)))
    }
}

/// The addresses that probes inside a gateway's tunnels come from, each once.
fn probe_sources(config: &config::Config, gateway: usize) -> BTreeSet<IpAddr> {
    let tunnels = config.tunnels.iter().filter(|tunnel| tunnel.gateway.value.0 == gateway);
    let sources = |tunnel: &config::Tunnel| {
        let probe = tunnel.probe.as_ref().map(|probe| probe.source.value);
        [probe, tunnel.bfd.as_ref().map(|bfd| bfd.source.value)]
    };
    tunnels.flat_map(sources).flatten().collect()
}

fn spd_policy(policy: &config::Policy, action: u32) -> spd::Policy {
    let prefix = |p: &config::At<Prefix>| match p.value.address() {
        IpAddr::V4(a) => spd::Prefix::V4(a.to_bits(), p.value.length()),
        IpAddr::V6(a) => spd::Prefix::V6(a.to_bits(), p.value.length()),
    };
    let ports = |ranges: Option<&config::PortRanges>| {
        ranges.map_or(Ports::Any, |r| Ports::Ranges(r.0.iter().map(|p| (p.first, p.last)).collect()))
    };
    let (mut source_ports, mut destination_ports) = (
        ports(policy.source_port.as_ref().map(|p| &p.value)),
        ports(policy.destination_port.as_ref().map(|p| &p.value)),
    );
    if let Some(icmp) = &policy.icmp {
        source_ports = Ports::Ranges(vec![(icmp.value.kind.into(), icmp.value.kind.into())]);
        destination_ports =
            icmp.value.code.map_or(Ports::Any, |code| Ports::Ranges(vec![(code.into(), code.into())]));
    }
    spd::Policy {
        sources: policy.source.iter().flat_map(|s| &s.value).map(prefix).collect(),
        destinations: policy.destination.iter().flat_map(|d| &d.value).map(prefix).collect(),
        protocol: policy.protocol.as_ref().map(|p| p.value.0),
        source_ports,
        destination_ports,
        action,
    }
}
