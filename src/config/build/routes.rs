//! The routes of all gateways, as they outlive reloads: those of the configuration, and those that were learned.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use crate::{
    config::Prefix,
    table::{
        lpm::{Lpm4, Lpm6},
        next_hops::{Hop, Mark, NextHopWriter},
        rib::{Candidate, Rib, RibError, Source},
        tables::NextHop,
    },
};

/// The routes of one gateway.
#[derive(Debug, Default)]
pub struct GatewayRoutes {
    /// IPv4.
    pub v4: Rib<u32>,
    /// IPv6.
    pub v6: Rib<u128>,
}

impl GatewayRoutes {
    /// Adds a route, or changes it; what it was before.
    ///
    /// # Errors
    /// [`RibError`]; nothing has changed then.
    pub fn add(&mut self, to: Prefix, route: Candidate) -> Result<Option<Candidate>, RibError> {
        match to.address() {
            IpAddr::V4(a) => self.v4.add((a.to_bits(), to.length()), route),
            IpAddr::V6(a) => self.v6.add((a.to_bits(), to.length()), route),
        }
    }

    /// Removes a route; what it was.
    ///
    /// # Errors
    /// [`RibError`]; nothing has changed then.
    pub fn remove(&mut self, to: Prefix, hop: u32, source: Source) -> Result<Option<Candidate>, RibError> {
        match to.address() {
            IpAddr::V4(a) => self.v4.remove((a.to_bits(), to.length()), hop, source),
            IpAddr::V6(a) => self.v6.remove((a.to_bits(), to.length()), hop, source),
        }
    }

    /// Makes all changes visible to workers.
    ///
    /// # Errors
    /// [`RibError`].
    pub fn publish(&mut self, hops: &mut NextHopWriter) -> Result<(), RibError> {
        self.v4.publish(hops)?;
        self.v6.publish(hops)
    }

    /// The tables that workers read.
    #[must_use]
    pub fn tables(&self) -> (Arc<Lpm4>, Arc<Lpm6>) {
        (Arc::clone(self.v4.table()), Arc::clone(self.v6.table()))
    }

    /// The routes to exactly this prefix, best first.
    #[must_use]
    pub fn of(&self, to: Prefix) -> &[Candidate] {
        match to.address() {
            IpAddr::V4(a) => self.v4.routes((a.to_bits(), to.length())),
            IpAddr::V6(a) => self.v6.routes((a.to_bits(), to.length())),
        }
    }

    /// How many routes have this next hop.
    #[must_use]
    pub fn uses(&self, hop: u32) -> usize {
        self.v4.uses(hop) + self.v6.uses(hop)
    }

    /// Every prefix with its routes, by address and length: IPv4, then IPv6.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &[Candidate])> {
        self.iter_from(None)
    }

    /// The same, from a prefix on.
    pub fn iter_from(&self, first: Option<Prefix>) -> impl Iterator<Item = (Prefix, &[Candidate])> {
        let (v4, v6) = match first.map(|first| (first.address(), first.length())) {
            None => (Some((0, 0)), (0, 0)),
            Some((IpAddr::V4(a), length)) => (Some((a.to_bits(), length)), (0, 0)),
            Some((IpAddr::V6(a), length)) => (None, (a.to_bits(), length)),
        };
        let v4 = v4.into_iter().flat_map(|first| self.v4.iter_from(first));
        let v4 = v4.map(|((bits, length), all)| (Prefix::of(IpAddr::V4(bits.into()), length), all));
        let v6 = self.v6.iter_from(v6);
        v4.chain(v6.map(|((bits, length), all)| (Prefix::of(IpAddr::V6(bits.into()), length), all)))
    }

    /// Gives the gateway the routes of a configuration in place of those it has from the one before. Those that were
    /// learned stay, but for those to a next hop that `gone` says is none any more; the result is how many went.
    pub(super) fn follow(
        &mut self,
        mut wanted: Vec<(Prefix, Candidate)>,
        gone: &dyn Fn(u32) -> bool,
    ) -> Result<usize, RibError> {
        let key = |(to, route): &(Prefix, Candidate)| (to.address(), to.length(), route.hop, route.source);
        wanted.sort_by_key(key);
        let mut old = Vec::new();
        let mut withdrawn = 0;
        for (to, routes) in self.iter() {
            for route in routes {
                let learned = route.source.is_learned();
                let stays = if learned {
                    !gone(route.hop)
                } else {
                    wanted.binary_search_by_key(&key(&(to, *route)), key).is_ok()
                };
                if !stays {
                    withdrawn += usize::from(learned);
                    old.push((to, route.hop, route.source));
                }
            }
        }
        for (to, hop, source) in old {
            self.remove(to, hop, source)?;
        }
        for (to, route) in wanted {
            self.add(to, route)?;
        }
        Ok(withdrawn)
    }
}

/// The routes of all gateways, and the numbers of their next hops.
#[derive(Debug, Default)]
pub struct Routes {
    /// By gateway number.
    pub gateways: Vec<GatewayRoutes>,
    /// Next hops.
    pub hops: NextHopWriter,
    before: Option<Before>,
    /// How many next hops there were when those that nothing needs were last forgotten.
    tidied: usize,
}

/// So many next hops may be there without need.
const SPARE_HOPS: usize = 4096;

/// How things were before a build that may come to nothing.
#[derive(Debug)]
struct Before {
    gateways: usize,
    hops: Mark,
}

impl Routes {
    /// Begins a snapshot that may come to nothing, for so many gateways.
    pub(super) fn begin(&mut self, gateways: usize) {
        // What came to nothing without a word is taken back now.
        self.go_back();
        self.before = Some(Before { gateways: self.gateways.len(), hops: self.hops.mark() });
        for known in &mut self.gateways {
            known.v4.begin();
            known.v6.begin();
        }
        let missing = gateways.saturating_sub(self.gateways.len());
        self.gateways.extend((0..missing).map(|_| GatewayRoutes::default()));
    }

    /// The snapshot is in force.
    pub fn commit(&mut self) {
        self.before = None;
        for gateway in &mut self.gateways {
            gateway.v4.commit();
            gateway.v6.commit();
        }
    }

    /// The snapshot comes to nothing.
    pub fn go_back(&mut self) {
        let Some(before) = self.before.take() else { return };
        self.gateways.truncate(before.gateways);
        self.hops.go_back(before.hops);
        for gateway in &mut self.gateways {
            let (v4, v6) = (gateway.v4.go_back(&mut self.hops), gateway.v6.go_back(&mut self.hops));
            if let Err(error) = v4.and(v6) {
                tracing::error!("routes are not as they were before: {error}");
            }
        }
    }

    /// Says that every worker uses the newest snapshot and has begun a new burst since the last publication.
    pub fn quiesce(&mut self) {
        self.hops.quiesce();
        for gateway in &mut self.gateways {
            gateway.v4.quiesce();
            gateway.v6.quiesce();
        }
    }

    /// Forgets next hops that neither a route nor one of `others` names.
    pub(super) fn renew(&mut self, others: impl Iterator<Item = u32>) {
        let of = |gateway: &GatewayRoutes| -> Vec<u32> {
            gateway.v4.hops_in_use().chain(gateway.v6.hops_in_use()).collect()
        };
        let in_use: HashSet<u32> = self.gateways.iter().flat_map(of).chain(others).collect();
        self.hops.renew(&in_use);
        self.tidied = self.hops.len();
    }

    /// Whether many next hops have come since those that nothing needs were last forgotten.
    #[must_use]
    pub fn is_untidy(&self) -> bool {
        self.hops.len() > 2 * self.tidied + SPARE_HOPS
    }

    /// Whether any route leads into the tunnel of this number.
    #[must_use]
    pub fn lead_into(&self, tunnel: u16) -> bool {
        let hop = self.hops.known(NextHop::Tunnel(tunnel));
        hop.is_some_and(|hop| self.gateways.iter().any(|gateway| gateway.uses(hop) > 0))
    }

    /// Routers that are next hops, by their places in the neighbour table.
    pub(super) fn routers(&self) -> impl Iterator<Item = crate::table::neighbour::NeighbourId> {
        self.hops.table().iter().filter_map(|(_, hop)| match hop {
            Hop::One(NextHop::Via { neighbour, .. }) => Some(*neighbour),
            _ => None,
        })
    }
}
