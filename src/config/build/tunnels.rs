//! Tunnels: outer headers, and the way to their far end.

use std::{net::IpAddr, sync::Arc};

use super::{BuildError, Builder};
use crate::{
    config::{DontFragment, Dscp, Encapsulation, NextHop as Where},
    table::{
        tables::{Gateway, NextHop},
        tunnel::{Df, Outer, SaOut, Tunnel},
    },
};

impl Builder<'_> {
    pub(super) fn tunnel(
        &mut self,
        place: usize,
        sa: Arc<SaOut>,
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
        Ok(Tunnel {
            gateway: self.gateways[tunnel.gateway.value.0],
            underlay,
            outer,
            sa: Some(sa),
            next_hop,
            mtu: tunnel.mtu.value.get() as u16,
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
        })
    }

    /// The next hop of outer packets to `remote`; `None` when no route leads there over an interface.
    fn towards(
        &mut self,
        mut gateway: u16,
        remote: IpAddr,
        gateways: &[Gateway],
    ) -> Result<Option<u32>, BuildError> {
        for _ in 0..gateways.len() {
            let tables = &gateways[usize::from(gateway)];
            let hop = match remote {
                IpAddr::V4(a) => tables.routes_v4.lookup(a.to_bits()),
                IpAddr::V6(a) => tables.routes_v6.lookup(a.to_bits()),
            };
            match hop.and_then(|hop| self.next_hops.get(hop as usize).copied()) {
                Some(NextHop::Via { .. }) => return Ok(hop),
                Some(NextHop::Connected { interface }) => {
                    let via = self.via(interface, remote)?;
                    return Ok(Some(self.next_hop(via)));
                }
                Some(NextHop::Gateway(next)) => gateway = next,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}
