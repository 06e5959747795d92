//! From a checked configuration to the tables that workers read.

mod associations;
mod gateways;
mod interfaces;
mod nat;
mod tunnels;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
};

use thiserror::Error;

use super::{Cipher, Config, GatewayId, Prefix};
use crate::{
    crypto::{aead::Backend, replay::Window, sequence::Sequence},
    stats::counters::{Rows, health_row},
    table::{
        hash::{HashKey, Seed},
        liveness::Liveness,
        neighbour::{NeighbourId, NeighbourKey, NeighbourWriter},
        next_hops::NextHopWriter,
        path::Path,
        probe::{Ends, Watch},
        rib::{Rib, RibError},
        tables::{Features, NextHop, Tables},
        tunnel::{Df, Outer, Tunnel},
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
#[derive(Debug, Default)]
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
    interfaces: Numbering,
    gateways: Numbering,
    tunnels: Numbering,
    associations: Numbering,
    pinned: Vec<NeighbourId>,
    seed: Seed,
    generation: u64,
    /// Whether several workers share the associations.
    shared: bool,
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
            interfaces: Numbering::default(),
            gateways: Numbering::default(),
            tunnels: Numbering::default(),
            associations: Numbering::default(),
            pinned: Vec::new(),
            seed,
            generation: 0,
            shared: workers > 1,
        }
    }
}

/// The routes of a gateway, IPv4 and IPv6.
pub type Ribs = (Rib<u32>, Rib<u128>);

/// Tables, and what the control thread needs to know of them.
pub struct Built {
    /// For the workers.
    pub tables: Arc<Tables>,
    /// Rows of the statistics.
    pub rows: Rows,
    /// Routes, by gateway number.
    pub routes: Vec<Ribs>,
    /// The numbers of their next hops.
    pub next_hops: NextHopWriter,
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
    /// Next hops pinned by the snapshot before; to be let go once no worker uses it.
    pub unpin: Vec<NeighbourId>,
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
/// [`BuildError`]; what was kept is unchanged then, but for numbers given to new names.
pub fn build(
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
    let mut builder = Builder {
        config,
        seed: kept.seed,
        interfaces,
        gateways,
        tunnels,
        neighbours: &mut kept.neighbours,
        next_hops: NextHopWriter::default(),
        routers: HashMap::new(),
        pinned: Vec::new(),
        pools: Vec::new(),
        generation: kept.generation.wrapping_add(1) as u32,
        now,
    };
    let mut interfaces = builder.interfaces(macs, kept.interfaces.0.len())?;
    let hosts = interfaces::number_hosts(config, &builder.interfaces, &mut interfaces);
    let mut gateways = Vec::new();
    let mut routes = Vec::new();
    let mut policies = Vec::new();
    let by_number = |list: &[u16], number: usize| list.iter().position(|n| usize::from(*n) == number);
    for number in 0..kept.gateways.0.len() {
        let (mut gateway, writers) = builder.gateway(by_number(&builder.gateways, number))?;
        gateway.first_policy = policies.len();
        policies.extend(
            by_number(&builder.gateways, number)
                .into_iter()
                .flat_map(|place| policy_names(&config.gateways[place])),
        );
        gateways.push(gateway);
        routes.push(writers);
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
    kept.generation += 1;
    let tables = Tables {
        generation: kept.generation,
        features: Features::of(&gateways, &interfaces, &tunnels),
        demux: builder.demux().into(),
        interfaces: interfaces.into(),
        gateways: gateways.into(),
        next_hops: Arc::clone(builder.next_hops.table()),
        sad_v4: associations.v4,
        sad_v6: associations.v6,
        sas: associations.opening,
        sealing_v4,
        sealing_v6,
        tunnels,
        trouble: Arc::clone(&kept.trouble),
        liveness: Arc::clone(&kept.liveness),
        neighbours: Arc::clone(builder.neighbours.table()),
    };
    let mut built = Built {
        rows: Rows {
            stages: crate::runtime::pipeline::STAGE_NAMES.iter().map(|s| (*s).to_string()).collect(),
            ports: config.ports.iter().map(|p| p.name.value.as_str().to_string()).collect(),
            interfaces: kept.interfaces.0.clone(),
            tunnels: kept.tunnels.0.clone(),
            policies,
            sas: kept.associations.0.clone(),
            pools: builder.pools,
            health: health_rows(config),
        },
        tables: Arc::new(tables),
        routes,
        next_hops: builder.next_hops,
        interfaces: builder.interfaces,
        tunnels: builder.tunnels,
        gateways: builder.gateways,
        associations: associations.all,
        replaced: Vec::new(),
        hosts,
        unpin: std::mem::replace(&mut kept.pinned, builder.pinned),
    };
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
        next_hop: None,
        mtu: 0,
        line_mtu: 0,
        path: Arc::default(),
        df: Df::Copy,
        dscp: None,
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
    neighbours: &'a mut NeighbourWriter,
    next_hops: NextHopWriter,
    /// Next hops that are routers, by interface and address.
    routers: HashMap<(u16, IpAddr), u32>,
    pinned: Vec<NeighbourId>,
    /// Names of NAT pools, by row.
    pools: Vec<String>,
    generation: u32,
    now: u64,
}

impl Builder<'_> {
    /// The number of a next hop, which is listed once.
    fn next_hop(&mut self, hop: NextHop) -> Result<u32, BuildError> {
        let number = self.next_hops.one(hop).ok_or(RibError::NextHopsFull);
        number.map_err(table_error("next hops".into()))
    }

    /// Between which ends a way out is probed, and has its BFD session; `link` is its next hop, by number.
    fn watch(&self, probe: Option<(IpAddr, IpAddr)>, bfd: Option<(IpAddr, IpAddr)>, link: u32) -> Watch {
        let token = PROBE_TOKEN.keyed_hash(&self.seed.next());
        let ends = |(own, other)| Ends { own, other, next_hop: link, token };
        Watch { echo: probe.map(ends), bfd: bfd.map(ends) }
    }

    /// A router or peer on a link, with a place of its own in the neighbour table.
    fn via(&mut self, interface: u16, address: IpAddr) -> Result<u32, BuildError> {
        if let Some(known) = self.routers.get(&(interface, address)) {
            return Ok(*known);
        }
        let key = match address {
            IpAddr::V4(a) => NeighbourKey::v4(interface, a.to_bits()),
            IpAddr::V6(a) => NeighbourKey::v6(interface, a.to_bits()),
        };
        let id =
            self.neighbours.ensure(&key, self.now).map_err(table_error(format!("next hop {address}")))?;
        self.neighbours.pin(id);
        self.pinned.push(id);
        let number = self.next_hop(NextHop::Via { interface, neighbour: id, address })?;
        self.routers.insert((interface, address), number);
        Ok(number)
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
