//! A running gateway: its workers, and everything beside them.

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    host_neighbours::HostNeighbours,
    lifetimes::Lifetimes,
    limits::LimitCare,
    nat::NatSetup,
    nat_log::NatLog,
    neighbours::{Resolver, Transmit},
    ports::{self, PortError, Wires},
    rekey::{Change, Overlay, RekeyError},
    run_dir,
    single::{EVENTS, NEIGHBOURS, huge_pages, transmit},
    tunnel_care::TunnelCare,
};
use crate::{
    config::{
        self, Config,
        build::{self, Association, BuildError, Built, Fingerprint, Half, Kept, Replaced, Sequences},
    },
    crypto::{
        replay::Window,
        sequence::{Sequence, StateError, StateFile},
    },
    io::any::AnyPort,
    packet::{HugePages, Links, Umem, UmemError},
    runtime::{Clock, Command, Idle, Ledger, Mailbox, Snapshot, Waker, Worker},
    stage::EventQueue,
    stats::{PortColumn, Segment, SegmentError, WorkerCounters},
    table::{
        hash::Seed,
        interface::Interface,
        neighbour::{NeighbourId, NeighbourTable, NeighbourWriter},
        tables::Tables,
    },
    wire::ethernet::MacAddr,
};

pub use super::run_dir::{segment_path, socket_path};

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

/// Why a new configuration is not taken up. Nothing has changed then.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// What can change only with a restart.
    #[error("{0} cannot change while the gateway runs: restart it")]
    NeedsRestart(&'static str),
    /// The tables.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The statistics segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Security associations.
    #[error("{0}")]
    Associations(RekeyError),
    /// No memory for NAT sessions.
    #[error("no memory for NAT sessions: {0}")]
    Nat(io::Error),
    /// A worker does not take the new tables.
    #[error("a worker has not taken up earlier changes; try again")]
    Busy,
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

/// What a gateway leaves when it has ended.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// The balance of each worker's packets.
    pub ledgers: Vec<Ledger>,
    /// Buffers that did not come home. Zero, unless there is a bug.
    pub frames_missing: usize,
}

impl Summary {
    /// Whether every packet and every buffer is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.frames_missing == 0 && self.ledgers.iter().all(Ledger::balances)
    }

    /// All workers together.
    #[must_use]
    pub fn total(&self) -> Ledger {
        self.ledgers.iter().fold(Ledger::default(), |sum, l| Ledger {
            received: sum.received + l.received,
            originated: sum.originated + l.originated,
            sent: sum.sent + l.sent,
            delivered: sum.delivered + l.delivered,
            waiting: sum.waiting + l.waiting,
            dropped: sum.dropped + l.dropped,
            taken_over: sum.taken_over + l.taken_over,
            handed_over: sum.handed_over + l.handed_over,
        })
    }
}

/// Sequence numbers from the state file.
struct Persistent<'a>(&'a mut Option<StateFile>);

impl Sequences for Persistent<'_> {
    fn prepare(
        &mut self,
        outbound: &[(Fingerprint, bool)],
        inbound: &[Fingerprint],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.as_mut().map_or(Ok(()), |file| Ok(file.prepare(outbound, inbound)?))
    }

    fn received(&self, fingerprint: Fingerprint) -> u64 {
        self.0.as_ref().map_or(0, |file| file.received(fingerprint))
    }

    fn watch(&mut self, fingerprint: Fingerprint, window: &Arc<Window>) {
        if let Some(file) = self.0 {
            file.watch(fingerprint, window);
        }
    }

    fn sequence(
        &mut self,
        fingerprint: Fingerprint,
        esn: bool,
    ) -> Result<Arc<Sequence>, Box<dyn std::error::Error + Send + Sync>> {
        let file = self
            .0
            .as_mut()
            .ok_or("the gateway started without tunnels and so without a state file: restart it")?;
        Ok(file.sequence(fingerprint, esn)?)
    }
}

/// How often the control thread looks at everything.
pub const TICK: Duration = Duration::from_millis(1);

/// A running gateway. Whoever has it calls [`Gateway::tick`] every [`TICK`].
pub struct Gateway {
    config: Config,
    clock: Clock,
    kept: Kept,
    built: Built,
    umem_huge: bool,
    macs: Vec<MacAddr>,
    devices: Vec<Option<crate::io::xdp::XdpDevice>>,
    descriptions: Vec<String>,
    segment: Arc<Segment>,
    events: Arc<EventQueue>,
    mailboxes: Vec<Arc<Mailbox>>,
    workers: Vec<JoinHandle<Worker<AnyPort>>>,
    resolver: Resolver,
    care: TunnelCare,
    state: Option<StateFile>,
    lifetimes: Lifetimes,
    /// The epoch whose counters all workers use.
    counting: u64,
    overlay: Overlay,
    /// When received numbers are next written, and when next given to the disk.
    received_due: (u64, u64),
    /// Windows that were replaced, once every worker has passed the epoch: old and new.
    replaced: Vec<(u64, Replaced)>,
    /// Next hops to unpin, once every worker has passed the epoch.
    unpin: Vec<(u64, Vec<NeighbourId>)>,
    epoch: u64,
    host_neighbours: HostNeighbours,
    nat: NatSetup,
    nat_log: Option<NatLog>,
    limit_care: LimitCare,
    /// What each port's health was last (see [`PortColumn::Health`]), and when to look again.
    health: Vec<u64>,
    ports_due: u64,
    /// Says, for as long as this process lives, that the run directory is taken. Goes last.
    _lock: File,
}

/// How often the newest received numbers are written, in ns: what a kill may lose.
const RECEIVED_INTERVAL: u64 = 4_000_000;
/// How often they are given to the disk, in ns: what a power cut may lose.
const FLUSH_INTERVAL: u64 = 1_000_000_000;
/// How often the ports' health is looked at, in ns.
const PORTS_INTERVAL: u64 = 200_000_000;

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
                "packet memory lies on ordinary pages: reserve huge pages (see `causeway doctor`) for less work per packet"
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
            epoch: 0,
            health: vec![0; config.ports.len()],
            ports_due: 0,
            config,
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
    fn log_sessions(&mut self) -> Result<(), StartError> {
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

    /// Does what is due: neighbours, sequence numbers, and what workers gave back. The time until it wants to be
    /// called again is [`TICK`].
    ///
    /// # Errors
    /// The sequence state cannot be written: then tunnels stop when their reserved numbers are used up.
    pub fn tick(&mut self) -> Result<(), StateError> {
        let now = self.clock.now();
        let mailboxes = &self.mailboxes;
        let mut send = |t| to_first(mailboxes, t);
        let (resolver, writer) = (&mut self.resolver, &mut self.kept.neighbours);
        self.host_neighbours.tick(&self.built.tables, |event| {
            resolver.event(&self.built.tables, writer, event, now, &mut send);
        });
        self.resolver.tick(&self.built.tables, &mut self.kept.neighbours, &self.events, now, &mut send);
        let mut command = |command| {
            if let Some(first) = mailboxes.first()
                && first.send(command).is_err()
            {
                tracing::warn!("a worker takes no more commands: a keepalive or dummy is not sent");
            }
        };
        self.care.tick(&self.config, &self.built, &self.segment, now, &mut command);
        self.mailboxes.iter().for_each(|mailbox| mailbox.collect());
        let passed = |epoch: u64| self.mailboxes.iter().all(|mailbox| mailbox.has_passed(epoch));
        let neighbours = &mut self.kept.neighbours;
        self.unpin.retain(|(epoch, ids)| {
            let done = passed(*epoch);
            if done {
                unpin(neighbours, ids, now);
            }
            !done
        });
        self.replaced.retain(|(epoch, windows)| {
            let done = passed(*epoch);
            if done {
                windows.iter().for_each(|(old, new)| new.raise(old.newest()));
            }
            !done
        });
        self.watch_ports(now);
        self.limit_care.tick(&self.built, &self.segment, now);
        // Not while a worker may still count elsewhere: an association would seem to have used less.
        if self.counting == self.epoch {
            self.lifetimes.tick(&self.config, &self.built.associations, &self.segment, now);
        } else if self.mailboxes.iter().all(|mailbox| mailbox.has_passed(self.epoch)) {
            self.counting = self.epoch;
        }
        self.write_state(now)
    }

    /// Reserves numbers, and remembers those received.
    fn write_state(&mut self, now: u64) -> Result<(), StateError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.top_up()?;
        let (write, flush) = &mut self.received_due;
        if now >= *write {
            *write = now + RECEIVED_INTERVAL;
            state.note_received();
        }
        if now >= *flush {
            *flush = now + FLUSH_INTERVAL;
            state.flush_received(false)?;
        }
        Ok(())
    }

    /// Takes up the lives of the associations that are in force now.
    fn renew_lifetimes(&mut self) {
        let (state, now) = (&self.state, self.clock.now());
        let since = |association: &Association| {
            let inbound = matches!(association.half, Half::In(_));
            state.as_ref().and_then(|state| state.since(association.fingerprint, inbound))
        };
        self.lifetimes.renew(&self.config, &self.built.associations, &self.segment, now, since);
    }

    /// Reports ports that come and go, as the workers see them.
    fn watch_ports(&mut self, now: u64) {
        if now < self.ports_due {
            return;
        }
        self.ports_due = now + PORTS_INTERVAL;
        for (number, port) in self.config.ports.iter().enumerate() {
            let worst = (0..self.mailboxes.len()).map(|w| {
                let counters = WorkerCounters::new(&self.segment, w);
                counters.read_port(number, PortColumn::Health)
            });
            let health = worst.max().unwrap_or(0);
            if std::mem::replace(&mut self.health[number], health) == health {
                continue;
            }
            let name = port.name.value.as_str();
            match health {
                0 => tracing::info!("port {name} is up"),
                1 => tracing::warn!("port {name} is down: its device is set down or has no carrier"),
                _ => tracing::error!(
                    "port {name} is gone: its device was removed; restart the gateway when it is back"
                ),
            }
        }
    }

    /// Takes up a new configuration. Packets, sequence numbers and replay windows of what has not changed go on, and
    /// so do associations that were added, switched to or retired by command, until the file says the same.
    ///
    /// # Errors
    /// [`ReloadError`]; the old configuration stays in force.
    pub fn reload(&mut self, mut config: Config) -> Result<(), ReloadError> {
        let mut overlay = self.overlay.clone();
        overlay.follow(&config);
        overlay.apply(&mut config).map_err(ReloadError::Associations)?;
        self.check_reload(&config)?;
        self.can_publish()?;
        let now = self.clock.now();
        let built = build::build(&config, &self.macs, &mut self.kept, &mut Persistent(&mut self.state), now)?;
        let mut old = std::mem::replace(&mut self.built, built);
        old.unpin.clear();
        let unpin = std::mem::take(&mut self.built.unpin);
        let config = std::mem::replace(&mut self.config, config);
        if let Err(error) = self.publish() {
            (self.built, self.config) = (old, config);
            return Err(error);
        }
        self.built.limits.apply();
        self.overlay = overlay;
        if let Err(error) = self.log_sessions() {
            tracing::error!("{error}");
        }
        self.unpin.push((self.epoch, unpin));
        for (port, device) in self.devices.iter_mut().enumerate() {
            if let Some(device) = device
                && let Err(error) = device.program.set_addresses(&ports::own_prefixes(&self.config, port))
            {
                tracing::error!(%error, "the XDP program did not take the new addresses");
            }
        }
        let mailboxes = &self.mailboxes;
        let mut send = |t| to_first(mailboxes, t);
        self.resolver.announce(&self.built.tables, &mut self.kept.neighbours, now, &mut send);
        Ok(())
    }

    /// Adds, switches to or retires an association of a tunnel; all else goes on as it is. No packet is lost by it.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    pub fn rekey(&mut self, change: Change) -> Result<(), ReloadError> {
        let mut overlay = self.overlay.clone();
        let mut config = self.config.clone();
        overlay.change(&mut config, change).map_err(ReloadError::Associations)?;
        self.can_publish()?;
        let mut other = build::rekey(&config, &mut self.kept, &mut Persistent(&mut self.state), &self.built)?;
        other.exchange(&mut self.built);
        std::mem::swap(&mut self.config, &mut config);
        if let Err(error) = self.publish() {
            other.exchange(&mut self.built);
            self.config = config;
            return Err(error);
        }
        self.overlay = overlay;
        Ok(())
    }

    /// Either all workers take up new tables or none does: whether all can.
    fn can_publish(&self) -> Result<(), ReloadError> {
        if self.mailboxes.iter().all(|mailbox| mailbox.has_room()) { Ok(()) } else { Err(ReloadError::Busy) }
    }

    /// Hands the tables that were built to the workers, with new counters where the rows are others.
    fn publish(&mut self) -> Result<(), ReloadError> {
        self.renew_lifetimes();
        let rows = self.built.rows.clone();
        let name = self.config.system.name.value.as_str();
        let mut layout = rows.layout(name, self.mailboxes.len(), self.clock.tick_hz());
        let segment = if layout.groups == self.segment.layout().groups {
            None
        } else {
            // The counts go on, so they are as old as they were.
            layout.started = self.segment.layout().started;
            Some(Arc::new(Segment::create(&segment_path(&self.config.system.run_dir.value.0), layout)?))
        };
        let mut nat = self.nat.make(&self.built.tables).map_err(ReloadError::Nat)?.into_iter();
        for (number, mailbox) in self.mailboxes.iter().enumerate() {
            let counters = segment
                .as_ref()
                .map(|new| Box::new(WorkerCounters::taking_over(new, number, self.segment.layout())));
            let tables = Arc::clone(&self.built.tables);
            let snapshot = Snapshot { tables, counters, nat: nat.next().flatten() };
            mailbox.send(Command::Snapshot(snapshot)).map_err(|_| ReloadError::Busy)?;
        }
        self.epoch += 1;
        self.mailboxes.iter().for_each(|mailbox| mailbox.want(self.epoch));
        self.replaced.push((self.epoch, std::mem::take(&mut self.built.replaced)));
        if let Some(segment) = segment {
            self.segment = segment;
        }
        Ok(())
    }

    /// What a reload cannot change: the machine, and the ports.
    fn check_reload(&self, new: &Config) -> Result<(), ReloadError> {
        let old = &self.config;
        let port = |p: &config::Port| {
            let device = p.device.as_ref().map(|d| d.value.as_str().to_string());
            (p.name.value.as_str().to_string(), *p.driver, device, p.ring.get(), *p.share_with_host)
        };
        if old.ports.iter().map(port).ne(new.ports.iter().map(port)) {
            return Err(ReloadError::NeedsRestart("the list of ports, their drivers, devices and rings"));
        }
        let machine = |c: &Config| {
            let cores =
                c.system.cores.as_ref().map(|l| l.value.iter().map(|c| c.value.get()).collect::<Vec<_>>());
            let sizes = (c.system.buffers.get(), c.system.buffer_size.get(), c.system.burst.get());
            let log = c.system.nat_log.as_ref().map(|log| log.value.0.clone());
            let nat =
                (c.system.nat_sessions.get(), log, c.system.nat_log_size.get(), c.system.nat_log_files.get());
            (cores, sizes, c.system.run_dir.value.0.clone(), c.system.state.value.0.clone(), nat)
        };
        if machine(old) != machine(new) {
            return Err(ReloadError::NeedsRestart(
                "cores, buffers, burst, run_dir, state and what concerns NAT in [system]",
            ));
        }
        let taps = |c: &Config| {
            let tap = |i: &config::Interface| {
                Some((i.name.value.as_str().to_string(), i.host_tap.as_ref()?.value.as_str().to_string()))
            };
            c.interfaces.iter().filter_map(tap).collect::<Vec<_>>()
        };
        if taps(old) != taps(new) {
            return Err(ReloadError::NeedsRestart("host_tap of interfaces"));
        }
        Ok(())
    }

    /// Stops the workers, when what is on its way has been sent, and takes stock.
    pub fn stop(mut self) -> Summary {
        self.mailboxes.iter().for_each(|mailbox| mailbox.stop());
        let mut summary = Summary::default();
        let mut ended = Vec::new();
        for worker in self.workers.drain(..) {
            match worker.join() {
                Ok(worker) => ended.push(worker),
                Err(_) => {
                    tracing::error!("a worker panicked: its packets are not accounted for");
                    summary.frames_missing += 1;
                }
            }
        }
        // Each may have handed something to one that had ended; what comes home then may be owed to a third.
        for _ in 0..2 {
            ended.iter_mut().for_each(Worker::collect_handed);
        }
        for worker in &ended {
            summary.ledgers.push(worker.ledger());
            summary.frames_missing += worker.frames_missing();
        }
        if let Some(log) = self.nat_log.take() {
            log.end();
        }
        self.mailboxes.iter().for_each(|mailbox| mailbox.collect());
        if let Some(Err(error)) = self.state.as_mut().map(|state| state.flush_received(true)) {
            tracing::error!("what was received last is not remembered: {error}");
        }
        summary
    }

    /// Whether a worker has ended on its own, which is a bug.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.workers.iter().any(JoinHandle::is_finished)
    }

    /// Ticks for at least `time`, whatever happens meanwhile.
    pub fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if let Err(error) = self.tick() {
                tracing::error!(%error, "sequence state");
            }
            thread::sleep(TICK);
        }
    }

    /// The tables of NAT sessions.
    pub(super) const fn nat(&self) -> &NatSetup {
        &self.nat
    }

    /// Ends the NAT session at a place.
    pub(super) fn end_at(&self, worker: usize, id: u32, incarnation: u8) -> Result<(), String> {
        let sent =
            self.mailboxes.get(worker).map(|mailbox| mailbox.send(Command::EndSession { id, incarnation }));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err("the session's worker takes no more commands: try again".into()),
        }
    }

    /// What is known of limits.
    pub(super) const fn limit_care(&self) -> &LimitCare {
        &self.limit_care
    }

    /// What was built of the configuration, for what changes in place.
    pub(super) const fn built_mut(&mut self) -> &mut Built {
        &mut self.built
    }

    /// The configuration in force.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The tables in force.
    #[must_use]
    pub const fn tables(&self) -> &Arc<Tables> {
        &self.built.tables
    }

    /// What was built of the configuration.
    #[must_use]
    pub const fn built(&self) -> &Built {
        &self.built
    }

    /// The statistics segment.
    #[must_use]
    pub const fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// How each port was opened, in the order of the configuration.
    #[must_use]
    pub fn port_descriptions(&self) -> &[String] {
        &self.descriptions
    }

    /// The MAC address of each port, in the order of the configuration.
    #[must_use]
    pub fn port_macs(&self) -> &[MacAddr] {
        &self.macs
    }

    /// The XDP program of each port, where there is one.
    #[must_use]
    pub fn devices(&self) -> &[Option<crate::io::xdp::XdpDevice>] {
        &self.devices
    }

    /// Whether packet memory lies on huge pages.
    #[must_use]
    pub const fn has_huge_pages(&self) -> bool {
        self.umem_huge
    }

    /// The lifetimes of the security associations.
    #[must_use]
    pub const fn lifetimes(&self) -> &Lifetimes {
        &self.lifetimes
    }

    /// Nanoseconds on the gateway's clock.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The interface of this number.
    #[must_use]
    pub fn interface(&self, number: u16) -> Option<&Interface> {
        self.built.tables.interface(number)
    }
}

fn to_first(mailboxes: &[Arc<Mailbox>], t: Transmit) {
    if let Some(first) = mailboxes.first() {
        transmit(first, t);
    }
}

fn unpin(neighbours: &mut NeighbourWriter, ids: &[NeighbourId], now: u64) {
    for &id in ids {
        neighbours.unpin(id, now);
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
