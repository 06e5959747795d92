//! Ways to tunnels' far ends, and tables that follow routes which changed while they are in use.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{BuildError, Built, Kept, table_error};
use crate::{
    config::Config,
    table::{
        interface::Interface,
        lpm::NO_ROUTE,
        neighbour::{NeighbourId, NeighbourKey, NeighbourWriter},
        next_hops::{Hop, NextHopWriter, NextHops, Tiers},
        rib::RibError,
        tables::{Gateway, NextHop, Tables},
        tunnel::Tunnel,
    },
};

/// Numbers of next hops, and of the routers among them places in the neighbour table.
pub(super) struct Routers<'a> {
    pub hops: &'a mut NextHopWriter,
    pub neighbours: &'a mut NeighbourWriter,
    /// Routers that were pinned here, and are let go when nobody takes them.
    pinned: Vec<NeighbourId>,
    known: HashMap<(u16, IpAddr), u32>,
    now: u64,
}

impl<'a> Routers<'a> {
    pub fn new(hops: &'a mut NextHopWriter, neighbours: &'a mut NeighbourWriter, now: u64) -> Self {
        Self { hops, neighbours, pinned: Vec::new(), known: HashMap::new(), now }
    }

    /// The routers that were pinned here; whoever takes them lets them go.
    pub fn take_pinned(&mut self) -> Vec<NeighbourId> {
        std::mem::take(&mut self.pinned)
    }

    /// The number of a next hop, which is listed once.
    pub fn next_hop(&mut self, hop: NextHop) -> Result<u32, BuildError> {
        let number = self.hops.one(hop).ok_or(RibError::NextHopsFull);
        number.map_err(table_error("next hops".into()))
    }

    /// A router or peer on a link, with a place of its own in the neighbour table.
    pub fn via(&mut self, interface: u16, address: IpAddr) -> Result<u32, BuildError> {
        if let Some(known) = self.known.get(&(interface, address)) {
            return Ok(*known);
        }
        let key = neighbour_key(interface, address);
        let id =
            self.neighbours.ensure(&key, self.now).map_err(table_error(format!("next hop {address}")))?;
        self.neighbours.pin(id);
        self.pinned.push(id);
        let number = self.next_hop(NextHop::Via { interface, neighbour: id, address })?;
        self.known.insert((interface, address), number);
        Ok(number)
    }

    /// The next hop of outer packets to `remote`; `None` when no route leads there over an interface.
    pub fn towards(
        &mut self,
        gateway: u16,
        remote: IpAddr,
        gateways: &[Gateway],
    ) -> Result<Option<u32>, BuildError> {
        let found = gateways.get(usize::from(gateway)).and_then(|gateway| look_up(gateway, remote));
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
        let table = Arc::clone(self.hops.table());
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
                Ok(if tiers.is_empty() { None } else { self.hops.choice(tiers) })
            }
            _ => Ok(None),
        }
    }
}

impl Drop for Routers<'_> {
    /// A build that comes to nothing leaves nothing pinned.
    fn drop(&mut self) {
        for router in self.take_pinned() {
            self.neighbours.unpin(router, self.now);
        }
    }
}

/// What names a router on a link.
pub(super) fn neighbour_key(interface: u16, address: IpAddr) -> NeighbourKey {
    match address {
        IpAddr::V4(a) => NeighbourKey::v4(interface, a.to_bits()),
        IpAddr::V6(a) => NeighbourKey::v6(interface, a.to_bits()),
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

/// What the lines take that packets with this next hop may leave by; `mtu` gives that of an interface.
pub(super) fn line_mtu(hops: &NextHops, hop: u32, mtu: &dyn Fn(u16) -> Option<u16>) -> Option<u16> {
    match hops.get(hop)? {
        Hop::One(NextHop::Via { interface, .. }) => mtu(*interface),
        Hop::One(_) => None,
        Hop::Choice(choice) => {
            let members = choice.tiers().iter().flat_map(|tier| tier.members());
            members.filter_map(|member| line_mtu(hops, member.hop, mtu)).min()
        }
    }
}

/// Next hops that are named elsewhere than in routes: the links that are probed, and the ways to tunnels' peers.
pub(super) fn outside_routes(interfaces: &[Interface], tunnels: &[Tunnel]) -> impl Iterator<Item = u32> {
    let probed = interfaces.iter().flat_map(|interface| [interface.watch.echo, interface.watch.bfd]);
    let ways = tunnels.iter().map(|tunnel| tunnel.next_hop).filter(|hop| *hop != NO_ROUTE);
    probed.flatten().map(|ends| ends.next_hop).chain(ways)
}

/// Tables in place of others, and neighbours to unpin when no worker uses those any more.
pub type Renewed = (Arc<Tables>, Vec<NeighbourId>);

/// Tables like those in force, but in which tunnels follow the routes as they are now, and next hops that nothing
/// needs any more are forgotten. Everything large is shared. `None` when no tunnel has another way, and `tidy` does
/// not ask for it.
///
/// # Errors
/// [`BuildError`]; nothing has changed then.
pub fn renewed(
    config: &Config,
    built: &Built,
    kept: &mut Kept,
    tidy: bool,
    now: u64,
) -> Result<Option<Renewed>, BuildError> {
    let old = &built.tables;
    let mut tunnels = old.tunnels.clone();
    let mut routers = Routers::new(&mut kept.routes.hops, &mut kept.neighbours, now);
    let mut changed = tidy;
    for (tunnel, number) in config.tunnels.iter().zip(&built.tunnels) {
        let Some(known) = tunnels.get_mut(usize::from(*number)).filter(|tunnel| tunnel.sa.is_some()) else {
            continue;
        };
        let next_hop = routers.towards(known.underlay, tunnel.remote.value, &old.gateways)?;
        if next_hop.unwrap_or(NO_ROUTE) != known.next_hop {
            let mtu = |number| old.interface(number).map(|interface| interface.mtu);
            let line = next_hop.and_then(|hop| line_mtu(routers.hops.table(), hop, &mtu));
            known.line_mtu = line.unwrap_or(u16::MAX);
            known.mtu = (tunnel.mtu.value.get() as u16).min(known.outer.largest_inner(known.line_mtu));
            known.next_hop = next_hop.unwrap_or(NO_ROUTE);
            changed = true;
        }
    }
    let mut pinned = routers.take_pinned();
    drop(routers);
    for (number, tunnel) in tunnels.iter_mut().enumerate() {
        let routed = kept.routes.lead_into(number as u16);
        changed |= routed != tunnel.routed;
        tunnel.routed = routed;
    }
    if !changed {
        kept.pinned.append(&mut pinned);
        return Ok(None);
    }
    kept.routes.renew(outside_routes(&old.interfaces, &tunnels));
    for router in kept.routes.routers() {
        kept.neighbours.pin(router);
        pinned.push(router);
    }
    kept.generation += 1;
    let tables = Tables {
        generation: kept.generation,
        features: old.features,
        demux: Arc::clone(&old.demux),
        interfaces: Arc::clone(&old.interfaces),
        gateways: Arc::clone(&old.gateways),
        next_hops: Arc::clone(kept.routes.hops.table()),
        sealing_v4: old.sealing_v4.clone(),
        sealing_v6: old.sealing_v6.clone(),
        tunnels,
        sad_v4: old.sad_v4.clone(),
        sad_v6: old.sad_v6.clone(),
        sas: old.sas.clone(),
        trouble: Arc::clone(&old.trouble),
        liveness: Arc::clone(&old.liveness),
        limits: Arc::clone(&old.limits),
        neighbours: Arc::clone(&old.neighbours),
    };
    Ok(Some((Arc::new(tables), std::mem::replace(&mut kept.pinned, pinned))))
}
