//! Tunnels: outer headers, and the way to their far end.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use super::{BuildError, Builder};
use crate::{
    config::{self, DontFragment, Dscp, Encapsulation, IcmpErrors, NextHop as Where},
    table::{
        hash::Seed,
        next_hops::{Hop, NextHops, Tiers},
        path::Path,
        sad::Sad,
        tables::{Gateway, NextHop},
        tunnel::{Df, Mss, Outer, SaOut, Tunnel},
    },
};

impl Builder<'_> {
    pub(super) fn tunnel(
        &mut self,
        place: usize,
        sa: Arc<SaOut>,
        path: Arc<Path>,
        gateways: &[Gateway],
    ) -> Result<Tunnel, BuildError> {
        let tunnel = &self.config.tunnels[place];
        let (local, remote) = (tunnel.local.value, tunnel.remote.value);
        let underlay = self.gateways[tunnel.underlay.value.0];
        let next_hop = self.towards(underlay, remote, gateways)?;
        let number = self.tunnels[place];
        let routed = self
            .config
            .gateways
            .iter()
            .flat_map(|g| &g.routes)
            .any(|route| matches!(route.next_hop, Where::Tunnel(t) if self.tunnels[t.0] == number));
        let udp = *tunnel.encapsulation == Encapsulation::Udp;
        let outer = Outer::new(local, remote, udp).ok_or_else(|| BuildError::Table {
            what: format!("tunnel {}", tunnel.name.value.as_str()),
            source: "its two ends are of different IP versions".into(),
        })?;
        // The line that outer packets leave by need not be the one that has `local`.
        let line_mtu = next_hop.and_then(|hop| self.line_mtu(hop)).unwrap_or(u16::MAX);
        let probe = tunnel.probe.as_ref().map(|probe| (probe.source.value, probe.target.value));
        let bfd = tunnel.bfd.as_ref().map(|bfd| (bfd.source.value, bfd.target.value));
        let watch = self.watch(probe, bfd, 0);
        Ok(Tunnel {
            gateway: self.gateways[tunnel.gateway.value.0],
            underlay,
            outer,
            sa: Some(sa),
            next_hop,
            mtu: (tunnel.mtu.value.get() as u16).min(outer.largest_inner(line_mtu)),
            line_mtu,
            path,
            df: match *tunnel.df {
                DontFragment::Copy => Df::Copy,
                DontFragment::Set => Df::Set,
                DontFragment::Clear => Df::Clear,
            },
            dscp: match *tunnel.dscp {
                Dscp::Copy => None,
                Dscp::Set(value) => Some(value),
            },
            routed,
            errors_by_quote: *tunnel.icmp_errors == IcmpErrors::Quoted,
            mss: tunnel.mss.as_ref().map(|mss| match mss.value {
                config::Mss::Auto => Mss::Auto,
                config::Mss::Fixed(most) => Mss::Fixed(most),
            }),
            tfc: tunnel.tfc.as_ref().map_or(0, |tfc| tfc.value.get() as u16),
            watch,
        })
    }

    /// What the lines take that packets with this next hop may leave by.
    fn line_mtu(&self, hop: u32) -> Option<u16> {
        match self.next_hops.table().get(hop)? {
            Hop::One(NextHop::Via { interface, .. }) => self.interface_mtu(*interface),
            Hop::One(_) => None,
            Hop::Choice(choice) => {
                let members = choice.tiers().iter().flat_map(|tier| tier.members());
                members.filter_map(|member| self.line_mtu(member.hop)).min()
            }
        }
    }

    fn interface_mtu(&self, number: u16) -> Option<u16> {
        let place = self.interfaces.iter().position(|known| *known == number)?;
        self.config.interfaces.get(place).map(|interface| interface.mtu.value.get() as u16)
    }

    /// The next hop of outer packets to `remote`; `None` when no route leads there over an interface.
    fn towards(
        &mut self,
        gateway: u16,
        remote: IpAddr,
        gateways: &[Gateway],
    ) -> Result<Option<u32>, BuildError> {
        let found = look_up(&gateways[usize::from(gateway)], remote);
        found.map_or(Ok(None), |hop| self.outward(hop, remote, gateways, gateways.len()))
    }

    /// The next hop of outer packets to `remote` where a route names this one; `None` when that leads over no
    /// interface.
    fn outward(
        &mut self,
        hop: u32,
        remote: IpAddr,
        gateways: &[Gateway],
        left: usize,
    ) -> Result<Option<u32>, BuildError> {
        let table = Arc::clone(self.next_hops.table());
        match table.get(hop) {
            Some(Hop::One(NextHop::Via { .. })) => Ok(Some(hop)),
            Some(Hop::One(NextHop::Connected { interface })) => self.via(*interface, remote).map(Some),
            Some(Hop::One(NextHop::Gateway(next))) if left > 0 => {
                let found = gateways.get(usize::from(*next)).and_then(|gateway| look_up(gateway, remote));
                found.map_or(Ok(None), |hop| self.outward(hop, remote, gateways, left - 1))
            }
            Some(Hop::Choice(choice)) => {
                let mut tiers = Tiers::new();
                for tier in choice.tiers() {
                    let mut members = Vec::new();
                    for member in tier.members() {
                        // A choice within a choice counts as its best way.
                        let hop = self.outward(member.hop, remote, gateways, left)?;
                        let hop = hop.and_then(|hop| best(&table, hop));
                        members.extend(hop.map(|hop| (hop, member.weight)));
                    }
                    if !members.is_empty() {
                        tiers.push(members);
                    }
                }
                Ok(if tiers.is_empty() { None } else { self.next_hops.choice(tiers) })
            }
            _ => Ok(None),
        }
    }
}

fn look_up(gateway: &Gateway, address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(a) => gateway.routes_v4.lookup(a.to_bits()),
        IpAddr::V6(a) => gateway.routes_v6.lookup(a.to_bits()),
    }
}

fn best(table: &NextHops, hop: u32) -> Option<u32> {
    match table.get(hop)? {
        Hop::One(_) => Some(hop),
        Hop::Choice(choice) => choice.tiers().first()?.members().first().map(|member| member.hop),
    }
}

/// Tunnels by SPI and destination of what they seal. Of two with both the same, errors are about the first.
pub(super) fn sealing(tunnels: &[Tunnel], seed: Seed) -> (Sad<u32>, Sad<u128>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let (mut known_v4, mut known_v6) = (HashSet::new(), HashSet::new());
    for (number, tunnel) in tunnels.iter().enumerate() {
        let Some(sa) = &tunnel.sa else { continue };
        match tunnel.outer.destination() {
            Some(IpAddr::V4(a)) if known_v4.insert((sa.spi, a)) => {
                v4.push(((sa.spi, a.to_bits()), number as u32));
            }
            Some(IpAddr::V6(a)) if known_v6.insert((sa.spi, a)) => {
                v6.push(((sa.spi, a.to_bits()), number as u32));
            }
            _ => {}
        }
    }
    let unique = "each key was taken once";
    (Sad::build(&v4, seed).expect(unique), Sad::build(&v6, seed).expect(unique))
}
