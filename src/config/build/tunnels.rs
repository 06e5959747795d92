//! Tunnels: outer headers, and the way to their far end.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use super::{BuildError, Builder, renew::line_mtu};
use crate::{
    config::{self, DontFragment, Dscp, Encapsulation, IcmpErrors},
    table::{
        hash::Seed,
        lpm::NO_ROUTE,
        path::Path,
        sad::Sad,
        tables::Gateway,
        tunnel::{Df, Mss, Outer, SaOut, TrafficClass, Tunnel},
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
        let next_hop = self.routers.towards(underlay, remote, gateways)?;
        let udp = *tunnel.encapsulation == Encapsulation::Udp;
        let outer = Outer::new(local, remote, udp).ok_or_else(|| BuildError::Table {
            what: format!("tunnel {}", tunnel.name.value.as_str()),
            source: "its two ends are of different IP versions".into(),
        })?;
        // The line that outer packets leave by need not be the one that has `local`.
        let mtu = |number| self.interface_mtu(number);
        let line_mtu = next_hop.and_then(|hop| line_mtu(self.routers.hops.table(), hop, &mtu));
        let line_mtu = line_mtu.unwrap_or(u16::MAX);
        let probe = tunnel.probe.as_ref().map(|probe| (probe.source.value, probe.target.value));
        let bfd = tunnel.bfd.as_ref().map(|bfd| (bfd.source.value, bfd.target.value));
        let watch = self.watch(probe, bfd, 0);
        Ok(Tunnel {
            gateway: self.gateways[tunnel.gateway.value.0],
            underlay,
            outer,
            sa: Some(sa),
            next_hop: next_hop.unwrap_or(NO_ROUTE),
            mtu: (tunnel.mtu.value.get() as u16).min(outer.largest_inner(line_mtu)),
            line_mtu,
            path,
            df: match *tunnel.df {
                DontFragment::Copy => Df::Copy,
                DontFragment::Set => Df::Set,
                DontFragment::Clear => Df::Clear,
            },
            class: TrafficClass::new(match *tunnel.dscp {
                Dscp::Copy => None,
                Dscp::Set(value) => Some(value),
            }),
            // Known when all routes are.
            routed: false,
            errors_by_quote: *tunnel.icmp_errors == IcmpErrors::Quoted,
            mss: tunnel.mss.as_ref().map(|mss| match mss.value {
                config::Mss::Auto => Mss::Auto,
                config::Mss::Fixed(most) => Mss::Fixed(most),
            }),
            tfc: tunnel.tfc.as_ref().map_or(0, |tfc| tfc.value.get() as u16),
            watch,
        })
    }

    fn interface_mtu(&self, number: u16) -> Option<u16> {
        let place = self.interfaces.iter().position(|known| *known == number)?;
        self.config.interfaces.get(place).map(|interface| interface.mtu.value.get() as u16)
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
