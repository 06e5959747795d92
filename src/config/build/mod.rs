//! From a checked configuration to the tables that workers read.

mod associations;
mod gateways;
mod interfaces;
#[cfg(test)]
mod kept_tests;
mod limits;
mod nat;
mod renew;
pub mod routes;
mod tunnels;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
};

use renew::Routers;
use thiserror::Error;

use super::{Cipher, Config, GatewayId, Prefix};
use crate::{
    crypto::{aead::Backend, replay::Window, sequence::Sequence},
    stats::counters::{Rows, health_row},
    table::{
        hash::{HashKey, Seed},
        limit::Level,
        liveness::Liveness,
        lpm::NO_ROUTE,
        neighbour::{NeighbourId, NeighbourWriter},
        next_hops::Hop,
        path::Path,
        probe::{Ends, Watch},
        tables::{Features, NextHop, Tables},
        tunnel::{Df, Outer, TrafficClass, Tunnel},
    },
    wire::{
        ethernet::MacAddr,
        ip::{IpPrefix, Ipv4Prefix, Ipv6Prefix},
    },
};

/// Why tables cannot be built from a configuration that was found good.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The sequence state of an outbound key is lost or cannot be had.
    #[error("tunnel {tunnel}: {source}")]
    Sequence {
        /// The tunnel.
        tunnel: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cipher asked for is not for this processor.
    #[error("this processor has no {0}: set cipher = \"auto\"")]
    Cipher(Backend),
    /// Something a table refuses.
    #[error("{what}: {source}")]
    Table {
        /// Which table, of what.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub use limits::{BuiltAddresses, BuiltLimits, key_of};
pub use renew::renewed;
pub use routes::Routes;

pub use associations::{Association, Half, Rekeyed, Replaced, rekey};

/// What names an outbound association's sequence numbers or an inbound one's window across reloads: a digest of
/// the key and what it is used for, never the key.
pub type Fingerprint = crate::crypto::sequence::Fingerprint;

/// Where sequence numbers come from.
pub trait Sequences {
    /// Says which keys seal and which open, so that their state can be made ready at once.
    ///
    /// # Errors
    /// The state cannot be read or written.
    fn prepare(
        &mut self,
        _outbound: &[(Fingerprint, bool)],
        _inbound: &[Fingerprint],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }

    /// The newest number that an earlier run accepted by this inbound association; 0 for none.
    fn received(&self, _fingerprint: Fingerprint) -> u64 {
        0
    }

    /// From now on this window's newest number is to be remembered for the next run.
    fn watch(&mut self, _fingerprint: Fingerprint, _window: &Arc<Window>) {}

    /// The numbers of the key with this fingerprint.
    ///
    /// # Errors
    /// Its state is lost, or cannot be read or written.
    fn sequence(
        &mut self,
        fingerprint: Fingerprint,
        esn: bool,
    ) -> Result<Arc<Sequence>, Box<dyn std::error::Error + Send + Sync>>;
}

/// Numbers from 1 on, for benchmarks and replays: nothing that is sealed with them may leave the machine.
#[derive(Debug, Default)]
pub struct Ephemeral(HashMap<Fingerprint, Arc<Sequence>>);

impl Sequences for Ephemeral {
    fn sequence(
        &mut self,
        fingerprint: Fingerprint,
        esn: bool,
    ) -> Result<Arc<Sequence>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Arc::clone(self.0.entry(fingerprint).or_insert_with(|| Arc::new(Sequence::ephemeral(1, esn)))))
    }
}

/// Numbers for names that stay the same over reloads: what is in flight keeps meaning what it meant.
#[derive(Debug, Clone, Default)]
struct Numbering(Vec<String>);

impl Numbering {
    /// Gives each name its number: the one it had, a free one, or a new one. The names that are gone stay free.
    fn assign<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Vec<usize> {
        let names: Vec<&str> = names.collect();
        let known: HashMap<String, usize> =
            self.0.drain(..).zip(0..).filter(|(name, _)| !name.is_empty()).collect();
        let numbers: Vec<Option<usize>> = names.iter().map(|name| known.get(*name).copied()).collect();
        let taken: HashSet<usize> = numbers.iter().flatten().copied().collect();
        let mut free = (0..).filter(|number| !taken.contains(number));
        let numbers: Vec<usize> =
            numbers.into_iter().map(|number| number.or_else(|| free.next()).unwrap_or_default()).collect();
        let length = numbers.iter().chain(known.values()).max().map_or(0, |greatest| greatest + 1);
        self.0.resize(length, String::new());
        for (name, number) in names.iter().zip(&numbers) {
            self.0[*number] = (*name).to_string();
        }
        numbers
    }
}

/// What outlives a reload.
pub struct Kept {
    /// The neighbour table's only writer.
    pub neighbours: NeighbourWriter,
    windows: associations::Windows,
    /// What workers have of each association, and whether it opens.
    halves: HashMap<(Fingerprint, bool), Half>,
    /// By what its keys were expanded.
    cipher: Option<Backend>,
    /// What was learned of the ways to peers, by tunnel and its ends.
    paths: HashMap<(u16, IpAddr, IpAddr), Arc<Path>>,
    trouble: Arc<AtomicU64>,
    /// Which interfaces and tunnels can be used.
    pub liveness: Arc<Liveness>,
    /// Routes, configured and learned, and their next hops.
    pub routes: Routes,
    interfaces: Numbering,
    gateways: Numbering,
    tunnels: Numbering,
    /// Numbers of interfaces, gateways and tunnels before a build that is not taken up yet.
    before: Option<[Numbering; 3]>,
    associations: Numbering,
    /// Next hops that the newest snapshot keeps in the neighbour table.
    pinned: Vec<NeighbourId>,
    /// Those of the one before and the time of the build, until that is taken up or back.
    pinned_before: Option<(Vec<NeighbourId>, u64)>,
    seed: Seed,
    generation: u64,
    /// Whether several workers share the associations.
    shared: bool,
    workers: usize,
    limits: limits::KeptLimits,
}

impl Kept {
    /// Nothing kept yet. `workers`: how many share the associations; `seed`: of all hashes, secret where the
    /// traffic is somebody else's, fixed where a run is to be repeated.
    #[must_use]
    pub fn new(neighbours: NeighbourWriter, workers: usize, seed: Seed) -> Self {
        Self {
            neighbours,
            windows: HashMap::new(),
            halves: HashMap::new(),
            cipher: None,
            paths: HashMap::new(),
            trouble: Arc::default(),
            liveness: Arc::default(),
            routes: Routes::default(),
            interfaces: Numbering::default(),
            gateways: Numbering::default(),
            tunnels: Numbering::default(),
            before: None,
            associations: Numbering::default(),
            pinned: Vec::new(),
            pinned_before: None,
            seed,
            generation: 0,
            shared: workers > 1,
            workers,
            limits: limits::KeptLimits::default(),
        }
    }

    /// A router as a next hop; with a place in the neighbour table that means nothing where it has none.
    #[must_use]
    pub fn router(&self, interface: u16, address: IpAddr) -> NextHop {
        let neighbour = self.neighbours.table().lookup(&renew::neighbour_key(interface, address));
        NextHop::Via { interface, neighbour: neighbour.unwrap_or(NeighbourId::from_bits(u32::MAX)), address }
    }

    /// The number of a router as a next hop, with a place in the neighbour table that it keeps.
    ///
    /// # Errors
    /// One of the tables is full.
    pub fn number_router(&mut self, interface: u16, address: IpAddr, now: u64) -> Result<u32, BuildError> {
        if let Some(known) = self.routes.hops.known(self.router(interface, address)) {
            return Ok(known);
        }
        let mut routers = Routers::new(&mut self.routes.hops, &mut self.neighbours, now);
        let number = routers.via(interface, address);
        let mut pinned = routers.take_pinned();
        self.pinned.append(&mut pinned);
        number
    }

    /// What was built last is in force. Without it the next build takes it back first. The result is the next hops that the
    /// snapshot before had pinned: to be let go once no worker uses it.
    #[must_use]
    pub fn commit(&mut self) -> Vec<NeighbourId> {
        self.routes.commit();
        let (pinned, now) = self.pinned_before.take().unwrap_or_default();
        if let Some([interfaces, ..]) = self.before.take() {
            self.forget_neighbours(&interfaces, now);
        }
        pinned
    }

    /// Forgets who was on links whose numbers are free now, or another's: addresses there are of other hosts.
    fn forget_neighbours(&mut self, before: &Numbering, now: u64) {
        let named =
            |numbering: &Numbering, number: usize| numbering.0.get(number).cloned().unwrap_or_default();
        let gone: Vec<u16> = (0..before.0.len())
            .filter(|number| {
                let name = named(before, *number);
                !name.is_empty() && name != named(&self.interfaces, *number)
            })
            .map(|number| number as u16)
            .collect();
        if gone.is_empty() {
            return;
        }
        let table = Arc::clone(self.neighbours.table());
        for entry in table.iter().filter(|entry| gone.contains(&entry.key.interface)) {
            // Where a next hop has its place, it is asked for anew.
            self.neighbours.fail(entry.id, now);
        }
    }

    /// Keeps next hops pinned until the next build is in force.
    pub fn keep_pinned(&mut self, mut pinned: Vec<NeighbourId>) {
        self.pinned.append(&mut pinned);
    }

    /// What was built last is not taken up: routes and numbers are what they were.
    pub fn go_back(&mut self) {
        if let Some([interfaces, gateways, tunnels]) = self.before.take() {
            (self.interfaces, self.gateways, self.tunnels) = (interfaces, gateways, tunnels);
        }
        if let Some((before, now)) = self.pinned_before.take() {
            for router in std::mem::replace(&mut self.pinned, before) {
                self.neighbours.unpin(router, now);
            }
        }
        self.routes.go_back();
    }

    /// Every worker uses the newest snapshot and has begun a new burst since the last change.
    pub fn quiesce(&mut self) {
        self.routes.quiesce();
    }

    /// Whether what had a number has it no more.
    fn is_gone(&self, hop: Option<&Hop>) -> bool {
        let Some([interfaces, gateways, tunnels]) = &self.before else { return false };
        let moved = |before: &Numbering, now: &Numbering, number: u16| {
            let name = |names: &Numbering| names.0.get(usize::from(number)).cloned().unwrap_or_default();
            name(before) != name(now)
        };
        match hop {
            Some(Hop::One(NextHop::Via { interface, .. } | NextHop::Connected { interface })) => {
                moved(interfaces, &self.interfaces, *interface)
            }
            Some(Hop::One(NextHop::Tunnel(tunnel))) => moved(tunnels, &self.tunnels, *tunnel),
            Some(Hop::One(NextHop::Gateway(gateway))) => moved(gateways, &self.gateways, *gateway),
            Some(Hop::One(_) | Hop::Choice(_)) => false,
            None => true,
        }
    }
}

/// Tables, and what the control thread needs to know of them.
pub struct Built {
    /// For the workers.
    pub tables: Arc<Tables>,
    /// Rows of the statistics.
    pub rows: Rows,
    /// Number of each interface, in the order of the configuration.
    pub interfaces: Vec<u16>,
    /// Number of each tunnel, in the order of the configuration.
    pub tunnels: Vec<u16>,
    /// Number of each gateway, in the order of the configuration.
    pub gateways: Vec<u16>,
    /// Security associations, tunnel after tunnel.
    pub associations: Vec<Association>,
    /// Windows in place of others.
    pub replaced: Replaced,
    /// Interfaces with a host TAP, in the order of their host numbers.
    pub hosts: Vec<u16>,
    /// Limits; to be applied once the workers have the tables.
    pub limits: BuiltLimits,
}

/// The backend that a configuration asks for.
///
/// # Errors
/// This processor has it not.
pub fn backend(cipher: Cipher) -> Result<Backend, BuildError> {
    let backend = match cipher {
        Cipher::Auto => return Ok(Backend::best()),
        Cipher::AesGcm => Backend::Reference,
        Cipher::Vaes512 => Backend::Vaes512,
        Cipher::Vaes256 => Backend::Vaes256,
    };
    if backend.is_available() { Ok(backend) } else { Err(BuildError::Cipher(backend)) }
}

fn table_error<E: std::error::Error + Send + Sync + 'static>(what: String) -> impl FnOnce(E) -> BuildError {
    move |source| BuildError::Table { what, source: Box::new(source) }
}

/// Builds tables. `macs`: the MAC address of each port, in the order of the configuration. `now`: ns on the gateway's
/// clock.
///
/// # Errors
/// [`BuildError`]; what was kept is unchanged then.
pub fn build(
    config: &Config,
    macs: &[MacAddr],
    kept: &mut Kept,
    sequences: &mut dyn Sequences,
    now: u64,
) -> Result<Built, BuildError> {
    kept.go_back();
    kept.before = Some([kept.interfaces.clone(), kept.gateways.clone(), kept.tunnels.clone()]);
    let built = build_from(config, macs, kept, sequences, now);
    if built.is_err() {
        kept.go_back();
    }
    built
}

fn build_from(
    config: &Config,
    macs: &[MacAddr],
    kept: &mut Kept,
    sequences: &mut dyn Sequences,
    now: u64,
) -> Result<Built, BuildError> {
    let numbers = |numbers: Vec<usize>| -> Vec<u16> { numbers.into_iter().map(|n| n as u16).collect() };
    let interfaces = numbers(kept.interfaces.assign(config.interfaces.iter().map(|i| i.name.value.as_str())));
    let gateways = numbers(kept.gateways.assign(config.gateways.iter().map(|g| g.name.value.as_str())));
    let tunnels = numbers(kept.tunnels.assign(config.tunnels.iter().map(|t| t.name.value.as_str())));
    let associations = associations::associations(config, kept, sequences, &tunnels, &gateways)?;
    let sealing = associations.sealing();
    kept.routes.begin(kept.gateways.0.len());
    let hops = Arc::clone(kept.routes.hops.table());
    let gone: HashSet<u32> =
        hops.iter().filter(|(_, hop)| kept.is_gone(Some(hop))).map(|(number, _)| number).collect();
    let mut builder = Builder {
        config,
        seed: kept.seed,
        interfaces,
        gateways,
        tunnels,
        routers: Routers::new(&mut kept.routes.hops, &mut kept.neighbours, now),
        pools: Vec::new(),
        generation: kept.generation.wrapping_add(1) as u32,
    };
    let mut interfaces = builder.interfaces(macs, kept.interfaces.0.len())?;
    let hosts = interfaces::number_hosts(config, &builder.interfaces, &mut interfaces);
    let mut gateways = Vec::new();
    let mut policies = Vec::new();
    let by_number = |list: &[u16], number: usize| list.iter().position(|n| usize::from(*n) == number);
    for number in 0..kept.gateways.0.len() {
        let place = by_number(&builder.gateways, number);
        let Some(routes) = kept.routes.gateways.get_mut(number) else { continue };
        let mut gateway = builder.gateway(place, routes, &gone)?;
        gateway.first_policy = policies.len();
        policies.extend(
            by_number(&builder.gateways, number)
                .into_iter()
                .flat_map(|place| policy_names(&config.gateways[place])),
        );
        gateways.push(gateway);
    }
    let mut tunnels = Vec::new();
    let mut paths = HashMap::new();
    for number in 0..kept.tunnels.0.len() {
        let place = by_number(&builder.tunnels, number);
        let found = place.and_then(|place| Some((place, sealing.get(&place)?)));
        let Some((place, sa)) = found else {
            tunnels.push(vacant_tunnel());
            continue;
        };
        let tunnel = &config.tunnels[place];
        let ends = (number as u16, tunnel.local.value, tunnel.remote.value);
        let path = kept.paths.get(&ends).cloned().unwrap_or_default();
        paths.insert(ends, Arc::clone(&path));
        tunnels.push(builder.tunnel(place, Arc::clone(sa), path, &gateways)?);
    }
    let (sealing_v4, sealing_v6) = tunnels::sealing(&tunnels, kept.seed);
    let names = [&*kept.gateways.0, &kept.interfaces.0, &kept.tunnels.0];
    let limits = limits::limits(config, &mut kept.limits, names, &builder.gateways, kept.workers, kept.seed)?;
    let [gateway_names, interface_names, tunnel_names] = names;
    let limit_rows = limits::rows([
        (Level::Gateway, gateway_names),
        (Level::Interface, interface_names),
        (Level::Tunnel, tunnel_names),
    ]);
    kept.generation += 1;
    let demux = builder.demux().into();
    // From here on nothing fails.
    let mut pinned = builder.routers.take_pinned();
    let pools = std::mem::take(&mut builder.pools);
    let [interface_numbers, tunnel_numbers, gateway_numbers] =
        [&mut builder.interfaces, &mut builder.tunnels, &mut builder.gateways].map(std::mem::take);
    drop(builder);
    kept.routes.renew(renew::outside_routes(&interfaces, &tunnels));
    for router in kept.routes.routers() {
        kept.neighbours.pin(router);
        pinned.push(router);
    }
    for (number, tunnel) in tunnels.iter_mut().enumerate() {
        tunnel.routed = kept.routes.lead_into(number as u16);
    }
    let tables = Tables {
        generation: kept.generation,
        features: Features::of(&gateways, &interfaces, &tunnels),
        demux,
        interfaces: interfaces.into(),
        gateways: gateways.into(),
        next_hops: Arc::clone(kept.routes.hops.table()),
        sad_v4: associations.v4,
        sad_v6: associations.v6,
        sas: associations.opening,
        sealing_v4,
        sealing_v6,
        tunnels,
        trouble: Arc::clone(&kept.trouble),
        liveness: Arc::clone(&kept.liveness),
        neighbours: Arc::clone(kept.neighbours.table()),
        limits: Arc::clone(&limits.limits),
    };
    let mut built = Built {
        rows: Rows {
            stages: crate::runtime::pipeline::STAGE_NAMES.iter().map(|s| (*s).to_string()).collect(),
            ports: config.ports.iter().map(|p| p.name.value.as_str().to_string()).collect(),
            interfaces: kept.interfaces.0.clone(),
            tunnels: kept.tunnels.0.clone(),
            policies,
            sas: kept.associations.0.clone(),
            pools,
            health: health_rows(config),
            limits: limit_rows,
        },
        tables: Arc::new(tables),
        interfaces: interface_numbers,
        tunnels: tunnel_numbers,
        gateways: gateway_numbers,
        associations: associations.all,
        replaced: Vec::new(),
        hosts,
        limits,
    };
    kept.pinned_before = Some((std::mem::replace(&mut kept.pinned, pinned), now));
    built.replaced = associations::keep(associations.windows, associations.cipher, &built.associations, kept);
    kept.paths = paths;
    Ok(built)
}

/// What statistics call the interfaces and tunnels whose health is watched.
fn health_rows(config: &Config) -> Vec<String> {
    let interfaces = config.interfaces.iter().filter(|i| i.probe.is_some() || i.bfd.is_some());
    let tunnels = config.tunnels.iter().filter(|t| t.probe.is_some() || t.bfd.is_some());
    let interfaces = interfaces.map(|interface| health_row("interface", interface.name.value.as_str()));
    interfaces.chain(tunnels.map(|tunnel| health_row("tunnel", tunnel.name.value.as_str()))).collect()
}

/// What statistics call the policies of a gateway, in its order.
fn policy_names(gateway: &super::Gateway) -> impl Iterator<Item = String> {
    gateway.policies.iter().map(|policy| format!("{}/{}", gateway.name.value.as_str(), policy.name.as_str()))
}

fn vacant_tunnel() -> Tunnel {
    let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    Tunnel {
        gateway: u16::MAX,
        underlay: u16::MAX,
        outer: Outer::new(nowhere, nowhere, false).unwrap_or_else(|| unreachable!("one family")),
        sa: None,
        next_hop: NO_ROUTE,
        mtu: 0,
        line_mtu: 0,
        path: Arc::default(),
        df: Df::Copy,
        class: TrafficClass::new(None),
        routed: false,
        errors_by_quote: true,
        mss: None,
        tfc: 0,
        watch: Watch::default(),
    }
}

/// What the token in echo requests is made from, together with the seed that nobody outside knows.
const PROBE_TOKEN: u64 = 0x7072_6f62_6573;

struct Builder<'a> {
    config: &'a Config,
    seed: Seed,
    interfaces: Vec<u16>,
    gateways: Vec<u16>,
    tunnels: Vec<u16>,
    routers: Routers<'a>,
    /// Names of NAT pools, by row.
    pools: Vec<String>,
    generation: u32,
}

impl Builder<'_> {
    /// Between which ends a way out is probed, and has its BFD session; `link` is its next hop, by number.
    fn watch(&self, probe: Option<(IpAddr, IpAddr)>, bfd: Option<(IpAddr, IpAddr)>, link: u32) -> Watch {
        let token = PROBE_TOKEN.keyed_hash(&self.seed.next());
        let ends = |(own, other)| Ends { own, other, next_hop: link, token };
        Watch { echo: probe.map(ends), bfd: bfd.map(ends) }
    }
}

fn wire_prefix(prefix: Prefix) -> IpPrefix {
    match prefix.address() {
        IpAddr::V4(a) => IpPrefix::V4(Ipv4Prefix::truncated(a.to_bits(), prefix.length())),
        IpAddr::V6(a) => IpPrefix::V6(Ipv6Prefix::truncated(a.to_bits(), prefix.length())),
    }
}

/// The gateway's number, for whoever has its place in the configuration.
#[must_use]
pub fn gateway_number(built: &Built, id: GatewayId) -> Option<u16> {
    built.gateways.get(id.0).copied()
}
