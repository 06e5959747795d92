//! Interfaces, and which tags lead to them.

use super::{BuildError, Builder, wire_prefix};
use crate::{
    config::{Config, Prefix, Side, Vlan},
    table::{
        interface::{self, Demux, Interface, InterfaceAddress},
        probe::Watch,
        tables::NextHop,
    },
    wire::{
        ethernet::{EtherType, MacAddr},
        vlan::{L2Header, Tag, TagKind, Tags, VlanId},
    },
};

impl Builder<'_> {
    pub(super) fn interfaces(
        &mut self,
        macs: &[MacAddr],
        count: usize,
    ) -> Result<Vec<Interface>, BuildError> {
        let header = L2Header::new(MacAddr::ZERO, MacAddr::ZERO, Tags::None, EtherType::IPV4);
        let vacant = Interface {
            port: u16::MAX,
            gateway: u16::MAX,
            side: interface::Side::Peer,
            mac: MacAddr::ZERO,
            mtu: 0,
            header_v4: header,
            header_v6: header.with_ether_type(EtherType::IPV6),
            addresses: smallvec::SmallVec::new(),
            proxied: Vec::new(),
            host: None,
            watch: Watch::default(),
        };
        let mut interfaces = vec![vacant; count];
        for (interface, number) in self.config.interfaces.iter().zip(self.interfaces.clone()) {
            let mac = macs.get(interface.port.value.0).copied().unwrap_or(MacAddr::ZERO);
            let tag = |kind, id| Tag::new(kind, VlanId::new(id).unwrap_or(VlanId::UNTAGGED), 0, false);
            let tags = match interface.vlan.value {
                Vlan::Untagged => Tags::None,
                Vlan::Tagged(id) => Tags::One(tag(TagKind::Customer, id)),
                Vlan::Stacked { outer, inner } => {
                    Tags::Two(tag(TagKind::Service, outer), tag(TagKind::Customer, inner))
                }
            };
            let header = L2Header::new(MacAddr::ZERO, mac, tags, EtherType::IPV4);
            let addresses: smallvec::SmallVec<[InterfaceAddress; 2]> = interface
                .addresses
                .iter()
                .map(|a| InterfaceAddress { address: a.value.address, prefix_len: a.value.length })
                .collect();
            // Mapped addresses that look on-link from here are answered for (RFC 1027, in its modern use).
            let gateway = &self.config.gateways[interface.gateway.value.0];
            let proxied = gateway.nat.iter().flat_map(crate::config::Nat::translated_prefixes);
            let on_link =
                |prefix: &Prefix| interface.addresses.iter().any(|a| a.value.network().covers(*prefix));
            let probe = interface.probe.as_ref().map(|probe| (probe.source.value, probe.target.value));
            let bfd = interface.bfd.as_ref().map(|bfd| (bfd.source.value, bfd.target.value));
            let watched = probe.is_some() || bfd.is_some();
            let link =
                if watched { self.routers.next_hop(NextHop::Connected { interface: number })? } else { 0 };
            let watch = self.watch(probe, bfd, link);
            interfaces[usize::from(number)] = Interface {
                port: interface.port.value.0 as u16,
                gateway: self.gateways[interface.gateway.value.0],
                side: match *interface.side {
                    Side::Local => interface::Side::Local,
                    Side::Peer => interface::Side::Peer,
                },
                mac,
                mtu: interface.mtu.value.get() as u16,
                header_v4: header,
                header_v6: header.with_ether_type(EtherType::IPV6),
                addresses,
                proxied: proxied.filter(on_link).map(wire_prefix).collect(),
                host: None,
                watch,
            };
        }
        Ok(interfaces)
    }

    pub(super) fn demux(&self) -> Vec<Demux> {
        let mut all = vec![Demux::default(); self.config.ports.len()];
        for (interface, &number) in self.config.interfaces.iter().zip(&self.interfaces) {
            let demux = &mut all[interface.port.value.0];
            match interface.vlan.value {
                Vlan::Untagged => demux.bind(0, number),
                Vlan::Tagged(id) => demux.bind(id, number),
                Vlan::Stacked { outer, inner } => demux.bind_double(outer, inner, number),
            }
        }
        all
    }
}

pub(super) fn number_hosts(config: &Config, numbers: &[u16], interfaces: &mut [Interface]) -> Vec<u16> {
    let mut hosts = Vec::new();
    for (interface, &number) in config.interfaces.iter().zip(numbers) {
        if interface.host_tap.is_some() {
            interfaces[usize::from(number)].host = Some(hosts.len() as u16);
            hosts.push(number);
        }
    }
    hosts
}
