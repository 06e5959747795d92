//! Starting a gateway: ports, packet memory, tables, workers.

use std::{io, path::Path, sync::Arc, thread};

use thiserror::Error;

use super::{
    super::{
        drained::Drained,
        health::Health,
        host_neighbours::HostNeighbours,
        lifetimes::Lifetimes,
        limits::LimitCare,
        nat::NatSetup,
        nat_log::NatLog,
        neighbours::Resolver,
        ports::{self, PortError, Wires},
        rekey::Overlay,
        run_dir,
        single::{EVENTS, NEIGHBOURS, huge_pages},
        tunnel_care::TunnelCare,
    },
    Gateway, Persistent, segment_path, to_first,
};
use crate::{
    config::{
        self, Config,
        build::{self, BuildError, Built, Kept},
    },
    crypto::sequence::{StateError, StateFile},
    io::any::AnyPort,
    packet::{HUGE_PAGE, HugePages, Links, Umem, UmemError},
    runtime::{Clock, Idle, Mailbox, Waker, Worker},
    stage::EventQueue,
    stats::{Segment, SegmentError, WorkerCounters},
    table::{hash::Seed, neighbour::NeighbourTable},
};

/// Why a gateway does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Packet memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// The tables.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The sequence state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The statistics segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A directory or thread cannot be made.
    #[error("cannot make {what}: {source}")]
    Make {
        /// What was to be made.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A core that the machine has not, or that this process may not use.
    #[error("there is no core {core} for a worker: this process may use {usable}; set `cores` in [system]")]
    Core {
        /// The core of the configuration.
        core: usize,
        /// Cores that may be used.
        usable: String,
    },
    /// Another gateway of this name runs.
    #[error(
        "a gateway runs in {run_dir} already (process {pid}): stop it, or give this one another name or run_dir"
    )]
    Running {
        /// Its run directory.
        run_dir: String,
        /// Its process.
        pid: String,
    },
}

/// How a gateway is to start, beyond its configuration.
#[derive(Debug, Default)]
pub struct StartOptions {
    /// Make the sequence state file where there is none: all keys are declared never used.
    pub new_state: bool,
    /// The sequence state file comes from another machine, whose disk was moved into this one.
    pub moved_state: bool,
    /// Wires for memory ports.
    pub wires: Wires,
}

fn open_state(config: &Config, new: bool, moved: bool) -> Result<Option<StateFile>, StartError> {
    if config.tunnels.is_empty() {
        return Ok(None);
    }
    let path = &config.system.state.value.0;
    if new && !path.exists() {
        run_dir::make(path.parent().unwrap_or(Path::new("")), 0o700)?;
        return Ok(Some(StateFile::create(path)?));
    }
    Ok(Some(if moved { StateFile::open_moved(path)? } else { StateFile::open(path)? }))
}

/// The core of each worker; the last core that may be used where the configuration names none.
fn cores(config: &Config) -> Result<Vec<core_affinity::CoreId>, StartError> {
    let usable = core_affinity::get_core_ids().unwrap_or_default();
    let Some(wanted) = &config.system.cores else {
        return Ok(usable.last().copied().into_iter().collect());
    };
    let find = |core: usize| {
        let list = || usable.iter().map(|c| c.id.to_string()).collect::<Vec<_>>().join(", ");
        usable.iter().find(|c| c.id == core).copied().ok_or_else(|| StartError::Core { core, usable: list() })
    };
    wanted.value.iter().map(|core| find(core.value.get() as usize)).collect()
}

impl Gateway {
    /// Opens ports, builds tables and starts the workers.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn start(config: Config, mut options: StartOptions) -> Result<Self, StartError> {
        let cores = cores(&config)?;
        let workers = cores.len().max(1);
        let run_dir = &config.system.run_dir.value.0;
        run_dir::make(run_dir, 0o755)?;
        let lock = run_dir::lock(run_dir)?;
        let segment_file = segment_path(run_dir);
        let mut state = open_state(&config, options.new_state, options.moved_state)?;
        let pages = huge_pages(&config);
        let buffers = config.system.buffers.get() as usize * workers;
        let umem = Umem::new(buffers, config.system.buffer_size.get() as usize, pages)?;
        let umem_huge = umem.memory().is_huge();
        if !umem_huge && pages == HugePages::Auto {
            tracing::warn!(
                "packet memory lies on no reserved huge pages: reserve {} (`sysctl vm.nr_hugepages`; see `causeway \
                 doctor`), so that it does not depend on what the kernel finds",
                (umem.chunks() * umem.chunk_size()).div_ceil(HUGE_PAGE)
            );
        }
        let mut pools = umem.into_pools(workers);
        let shared = pools.first().map(|pool| Arc::clone(pool.umem()));
        let shared = shared.ok_or(UmemError::Count(0))?;
        let opened = ports::open(&config, &shared, &mut pools, &mut options.wires)?;
        let clock = Clock::new();
        let seed = Seed::random();
        let (_, writer) = NeighbourTable::new(NEIGHBOURS, seed);
        let mut kept = Kept::new(writer, workers, seed);
        let built = build::build(&config, &opened.macs, &mut kept, &mut Persistent(&mut state), clock.now())?;
        // There was none before.
        let _ = kept.commit();
        let name = config.system.name.value.as_str();
        let layout = built.rows.clone().layout(name, workers, clock.tick_hz());
        let segment = Arc::new(Segment::create(&segment_file, layout)?);
        let hosts = open_hosts(&config, &built, workers)?;
        let host_neighbours = HostNeighbours::open(&config)?;
        let nat = NatSetup::new(&config, workers, seed);
        let mut gateway = Self {
            nat,
            nat_log: None,
            limit_care: LimitCare::default(),
            events: Arc::new(EventQueue::new(EVENTS)),
            mailboxes: (0..workers).map(|_| Arc::new(Mailbox::default())).collect(),
            workers: Vec::new(),
            resolver: Resolver::default(),
            care: TunnelCare::default(),
            macs: opened.macs,
            devices: opened.devices,
            descriptions: opened.descriptions,
            lifetimes: Lifetimes::default(),
            counting: 0,
            overlay: Overlay::default(),
            received_due: (0, 0),
            replaced: Vec::new(),
            unpin: Vec::new(),
            routes_passed: true,
            renewal_due: false,
            epoch: 0,
            health: Health::new(rand::random::<u32>() >> 1),
            drained: Drained::open(&config.system.state.value.0),
            port_health: vec![0; config.ports.len()],
            ports_due: 0,
            config: Arc::new(config),
            clock,
            kept,
            built,
            umem_huge,
            segment,
            state,
            host_neighbours,
            _lock: lock,
        };
        gateway.renew_lifetimes();
        gateway.health.renew(&gateway.config, &gateway.built, gateway.clock.now());
        gateway.drain_again();
        gateway.built.limits.apply();
        gateway.spawn(opened.queues, pools, hosts, &cores)?;
        let mailboxes = &gateway.mailboxes;
        let mut send = |t| to_first(mailboxes, t);
        gateway.resolver.announce(
            &gateway.built.tables,
            &mut gateway.kept.neighbours,
            gateway.clock.now(),
            &mut send,
        );
        Ok(gateway)
    }

    fn spawn(
        &mut self,
        queues: Vec<Vec<AnyPort>>,
        pools: Vec<crate::packet::FramePool>,
        hosts: Vec<Hosts>,
        cores: &[core_affinity::CoreId],
    ) -> Result<(), StartError> {
        let made = |source| StartError::Make { what: "tables for NAT sessions".into(), source };
        let mut nat = self.nat.make(&self.built.tables).map_err(made)?.into_iter();
        let mut links = Links::mesh(pools.len()).into_iter();
        let wakers: Result<Vec<_>, _> = pools.iter().map(|_| Waker::new().map(Arc::new)).collect();
        let wakers = wakers.map_err(|source| StartError::Make { what: "a worker's event".into(), source })?;
        self.log_sessions()?;
        let idle = match *self.config.system.idle {
            config::Idle::Spin => Idle::Spin,
            config::Idle::SleepAfter(after) => Idle::SleepAfter(after),
        };
        for (number, ((ports, pool), hosts)) in queues.into_iter().zip(pools).zip(hosts).enumerate() {
            let mut worker = Worker::new(
                ports,
                hosts,
                pool,
                Arc::clone(&self.built.tables),
                WorkerCounters::new(&self.segment, number),
                Arc::clone(&self.events),
                Arc::clone(&self.mailboxes[number]),
                self.config.system.burst.get() as usize,
            );
            worker.set_nat(nat.next().flatten());
            if wakers.len() > 1 {
                worker.link(links.next().unwrap_or_default(), wakers.clone());
            }
            let (clock, core) = (self.clock.clone(), cores.get(number).copied());
            let body = move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(core = core.id, "a worker could not be pinned to its core");
                }
                worker.run(&clock, idle);
                worker
            };
            let name = format!("worker-{number}");
            let spawned = thread::Builder::new().name(name.clone()).spawn(body);
            self.workers
                .push(spawned.map_err(|source| StartError::Make { what: format!("thread {name}"), source })?);
        }
        Ok(())
    }

    /// Starts the log of NAT sessions, where there is one and it does not run.
    pub(super) fn log_sessions(&mut self) -> Result<(), StartError> {
        if self.nat_log.is_none() && !self.nat.logs().is_empty() {
            let made = NatLog::start(&self.config, self.nat.logs().to_vec(), self.clock.clone());
            let failed = |source| StartError::Make { what: "the log of NAT sessions".into(), source };
            self.nat_log = made.map_err(failed)?;
        }
        if let Some(log) = &self.nat_log {
            log.rename(&self.config, &self.built.gateways);
        }
        Ok(())
    }
}

/// A worker's queues of the host TAPs, in the order of the TAPs' numbers, each with the number of its interface.
type Hosts = Vec<(AnyPort, u16)>;

/// Opens the host TAPs, with a queue for each worker, each TAP with its interface's MAC address.
fn open_hosts(config: &Config, built: &Built, workers: usize) -> Result<Vec<Hosts>, StartError> {
    let mut hosts: Vec<Hosts> = (0..workers).map(|_| Vec::new()).collect();
    for (interface, &number) in config.interfaces.iter().zip(&built.interfaces) {
        let Some(tap) = &interface.host_tap else { continue };
        let failed = |source| {
            StartError::Port(PortError::Socket {
                port: format!("host_tap of interface {}", interface.name.value.as_str()),
                source,
            })
        };
        let queues = crate::io::tap::TapPort::open_queues(tap.value.as_str(), workers).map_err(failed)?;
        if let Some(first) = queues.first() {
            if let Some(known) = built.tables.interface(number) {
                first.device().set_mac(known.mac.0).map_err(failed)?;
            }
            first.device().set_up().map_err(failed)?;
        }
        for (hosts, queue) in hosts.iter_mut().zip(queues) {
            hosts.push((AnyPort::Tap(Box::new(queue)), number));
        }
    }
    Ok(hosts)
}
