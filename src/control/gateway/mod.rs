//! A running gateway: its workers, and everything beside them.

mod reload;
mod routes;
mod start;

use std::{
    fs::File,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    drained::{self, Drained},
    health::{
        Health,
        view::{HealthAction, HealthChange},
    },
    host_neighbours::HostNeighbours,
    lifetimes::Lifetimes,
    limits::LimitCare,
    nat::NatSetup,
    nat_log::NatLog,
    neighbours::{Resolver, Transmit},
    rekey::Overlay,
    single::transmit,
    tunnel_care::TunnelCare,
};
use crate::{
    config::{
        Config,
        build::{Association, Built, Fingerprint, Half, Kept, Replaced, Sequences},
    },
    crypto::{
        replay::Window,
        sequence::{Sequence, StateError, StateFile},
    },
    io::any::AnyPort,
    runtime::{Clock, Command, Ledger, Mailbox, Worker},
    stage::EventQueue,
    stats::{PortColumn, Segment, WorkerCounters},
    table::{
        interface::Interface,
        neighbour::{NeighbourId, NeighbourWriter},
        tables::Tables,
    },
    wire::ethernet::MacAddr,
};

pub use super::run_dir::{segment_path, socket_path};
pub use reload::{Basis, ReloadError};
pub use start::{StartError, StartOptions};

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
    config: Arc<Config>,
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
    /// Every worker has begun a new burst since routes changed last.
    routes_passed: bool,
    /// Tunnels are to follow routes that changed.
    renewal_due: bool,
    /// Next hops to unpin, once every worker has passed the epoch.
    unpin: Vec<(u64, Vec<NeighbourId>)>,
    epoch: u64,
    host_neighbours: HostNeighbours,
    nat: NatSetup,
    nat_log: Option<NatLog>,
    /// Whether ways out can be used.
    health: Health,
    /// What operators have drained, on disk.
    drained: Drained,
    limit_care: LimitCare,
    /// What each port's health was last (see [`PortColumn::Health`]), and when to look again.
    port_health: Vec<u64>,
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

impl Gateway {
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
        // A port's health is not known to be bad while workers move their counts.
        let segment = (self.counting == self.epoch).then_some(&*self.segment);
        let mut probe = |command| mailboxes.first().is_some_and(|first| first.send(command).is_ok());
        self.health.tick(&self.built, segment, &mut self.resolver.heard, now, &mut probe);
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
                windows.iter().for_each(|(old, new)| old.end(new));
            }
            !done
        });
        self.tick_routes();
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
            if std::mem::replace(&mut self.port_health[number], health) == health {
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

    /// The health of interfaces and tunnels.
    #[must_use]
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Takes an interface or tunnel out of service or puts it back, or lets traffic come back to it.
    ///
    /// # Errors
    /// There is none of this name, or none that traffic could come back to.
    pub fn change_health(&mut self, request: &HealthChange) -> Result<String, String> {
        let (kind, name, liveness) = (request.kind, &request.name, &self.kept.liveness);
        match request.health {
            HealthAction::Drain | HealthAction::Undrain => {
                let drained = request.health == HealthAction::Drain;
                let changed = self.health.drain(kind, name, drained, liveness)?;
                let done = match (changed, drained) {
                    (true, true) => "drained",
                    (true, false) => "in service",
                    (false, true) => "drained already",
                    (false, false) => "in service already",
                };
                Ok(match self.keep_drained() {
                    Ok(()) => done.into(),
                    Err(error) => format!("{done}, but a restart does not know it: {error}"),
                })
            }
            HealthAction::Failback => {
                self.health.fail_back(kind, name, self.clock.now(), liveness).map(|()| "in use".into())
            }
        }
    }

    /// Takes out of service what was drained when the gateway ended.
    fn drain_again(&mut self) {
        for drained::Way { kind, name } in self.drained.ways().to_vec() {
            if self.health.drain(kind, &name, true, &self.kept.liveness).is_err() {
                tracing::warn!(
                    "{} {name} was drained, and is not in the file: that is forgotten",
                    kind.name()
                );
            }
        }
        // What cannot be written is in the log.
        let _ = self.keep_drained();
    }

    /// Has the disk say what is drained.
    fn keep_drained(&mut self) -> std::io::Result<()> {
        let ways = self.health.drained().map(|(kind, name)| drained::Way { kind, name: name.into() });
        let kept = self.drained.keep(ways.collect());
        if let Err(error) = &kept {
            tracing::error!("what is drained is not kept for a restart: {error}");
        }
        kept
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
    pub fn config(&self) -> &Config {
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
