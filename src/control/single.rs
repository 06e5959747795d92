//! One worker and its control in one thread, by whatever clock: for replays, benchmarks and tests, where what happens
//! must not depend on how threads are scheduled.

use std::sync::Arc;

use thiserror::Error;

use super::{
    health::Health,
    nat::NatSetup,
    neighbours::Resolver,
    routes::{self, ChangeRoutes, Changed},
    tunnel_care::TunnelCare,
};
use crate::{
    config::{
        self, Config,
        build::{self, BuildError, Built, Kept, Sequences},
    },
    io::PacketIo,
    packet::{FramePool, HugePages, Umem, UmemError},
    runtime::{Command, Mailbox, Snapshot, Worker},
    stage::EventQueue,
    stats::{Segment, WorkerCounters},
    table::{hash::Seed, neighbour::NeighbourTable},
    wire::ethernet::MacAddr,
};

/// Neighbours that a gateway can know.
pub const NEIGHBOURS: usize = 16_384;
/// Events on their way to the control thread.
pub const EVENTS: usize = 4_096;

/// Why a gateway in one thread cannot be made.
#[derive(Debug, Error)]
pub enum SingleError {
    /// No tables.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// No packet memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// No memory for counters.
    #[error("cannot map memory for statistics: {0}")]
    Counters(#[from] std::io::Error),
}

/// The pages that a configuration wants packet memory on.
#[must_use]
pub fn huge_pages(config: &Config) -> HugePages {
    match *config.system.huge_pages {
        config::HugePages::Auto => HugePages::Auto,
        config::HugePages::Require => HugePages::Require,
        config::HugePages::Never => HugePages::Never,
    }
}

/// A gateway in one thread.
pub struct Single<P> {
    /// The worker.
    pub worker: Worker<P>,
    /// What outlives a reload; holds the neighbour table's writer.
    pub kept: Kept,
    /// What was built of the configuration.
    pub built: Built,
    /// The counters' memory.
    pub segment: Arc<Segment>,
    /// The configuration.
    config: Config,
    resolver: Resolver,
    care: TunnelCare,
    /// Whether ways out can be used.
    pub health: Health,
    events: Arc<EventQueue>,
    mailbox: Arc<Mailbox>,
    nat: NatSetup,
}

impl<P: PacketIo> Single<P> {
    /// A gateway over `ports`, one for each of the configuration, made by `ports` from the pool of frames. `seed` is of
    /// all hashes.
    ///
    /// # Errors
    /// [`SingleError`].
    pub fn new(
        config: &Config,
        macs: &[MacAddr],
        sequences: &mut dyn Sequences,
        seed: Seed,
        ports: impl FnOnce(&mut FramePool) -> Vec<P>,
    ) -> Result<Self, SingleError> {
        let pages = huge_pages(config);
        let (count, size) = (config.system.buffers.get() as usize, config.system.buffer_size.get() as usize);
        let mut pools = Umem::new(count, size, pages)?.into_pools(1);
        // One was asked for.
        let Some(mut pool) = pools.pop() else { return Err(UmemError::Count(0).into()) };
        let ports = ports(&mut pool);
        let (_, writer) = NeighbourTable::new(NEIGHBOURS, seed);
        let mut kept = Kept::new(writer, 1, seed);
        let built = build::build(config, macs, &mut kept, sequences, 0)?;
        // There was none before.
        let _ = kept.commit();
        let clock = crate::runtime::Clock::new();
        let layout = built.rows.clone().layout(config.system.name.value.as_str(), 1, clock.tick_hz());
        let segment = Arc::new(Segment::anonymous(layout)?);
        let events = Arc::new(EventQueue::new(EVENTS));
        let mailbox = Arc::new(Mailbox::default());
        let mut nat = NatSetup::new(config, 1, seed);
        let mut worker = Worker::new(
            ports,
            Vec::new(),
            pool,
            Arc::clone(&built.tables),
            WorkerCounters::new(&segment, 0),
            Arc::clone(&events),
            Arc::clone(&mailbox),
            config.system.burst.get() as usize,
        );
        worker.set_nat(nat.make(&built.tables)?.pop().flatten());
        let mut health = Health::new(1);
        health.renew(config, &built, 0);
        built.limits.apply();
        Ok(Self {
            worker,
            kept,
            built,
            segment,
            config: config.clone(),
            resolver: Resolver::default(),
            care: TunnelCare::default(),
            health,
            nat,
            events,
            mailbox,
        })
    }

    /// Takes up another configuration, as a reload does, at `now` (ns). What was counted goes on.
    ///
    /// # Errors
    /// [`SingleError`]; nothing has changed then.
    pub fn reload(
        &mut self,
        config: &Config,
        macs: &[MacAddr],
        sequences: &mut dyn Sequences,
        now: u64,
    ) -> Result<(), SingleError> {
        let built = build::build(config, macs, &mut self.kept, sequences, now)?;
        let tick_hz = self.segment.layout().tick_hz;
        let layout = built.rows.clone().layout(config.system.name.value.as_str(), 1, tick_hz);
        let segment = Arc::new(Segment::anonymous(layout)?);
        let counters = Some(Box::new(WorkerCounters::taking_over(&segment, 0, &self.segment)));
        let nat = self.nat.make(&built.tables)?.pop().flatten();
        let snapshot = Snapshot { tables: Arc::clone(&built.tables), counters, nat };
        if self.mailbox.send(Command::Snapshot(snapshot)).is_err() {
            tracing::warn!("a worker takes no more commands");
        }
        (self.built, self.segment) = (built, segment);
        self.config = config.clone();
        self.health.renew(config, &self.built, now);
        self.built.limits.apply();
        self.worker.round(now);
        for router in self.kept.commit() {
            self.kept.neighbours.unpin(router, now);
        }
        self.kept.quiesce();
        Ok(())
    }

    /// Changes routes, as a command does, at `now` (ns).
    ///
    /// # Errors
    /// What is wrong, line by line. Nothing has changed then.
    pub fn change_routes(&mut self, change: &ChangeRoutes, now: u64) -> Result<Changed, Vec<String>> {
        let changed = routes::apply(&self.config, &self.built, &mut self.kept, change, now)?;
        let tidy = self.kept.routes.is_untidy();
        if changed.tunnels || tidy {
            let renewed = build::renewed(&self.config, &self.built, &mut self.kept, tidy, now);
            if let Some((tables, unpin)) = renewed.map_err(|error| vec![error.to_string()])? {
                let snapshot = Snapshot { tables: Arc::clone(&tables), counters: None, nat: None };
                if self.mailbox.send(Command::Snapshot(snapshot)).is_err() {
                    tracing::warn!("a worker takes no more commands");
                }
                self.built.tables = tables;
                self.worker.round(now);
                for router in unpin {
                    self.kept.neighbours.unpin(router, now);
                }
            }
        }
        self.kept.quiesce();
        Ok(changed)
    }

    /// Announces the gateway's addresses and asks for its routers, as at the start of a gateway.
    pub fn announce(&mut self, now: u64) {
        let mailbox = &self.mailbox;
        let mut send = |t| transmit(mailbox, t);
        self.resolver.announce(&self.built.tables, &mut self.kept.neighbours, now, &mut send);
    }

    /// Gives the worker a command. A full mailbox loses it.
    pub fn command(&mut self, command: Command) {
        if self.mailbox.send(command).is_err() {
            tracing::warn!("a worker takes no more commands");
        }
    }

    /// One round of the worker and of its control, at `now` (ns). The result is how many packets were moved.
    pub fn step(&mut self, now: u64) -> usize {
        let moved = self.worker.round(now);
        let mailbox = &self.mailbox;
        let mut send = |t| transmit(mailbox, t);
        let tables = &self.built.tables;
        self.resolver.tick(tables, &mut self.kept.neighbours, &self.events, now, &mut send);
        let mut command = |command| {
            // As with frames: a full mailbox loses it.
            let _ = mailbox.send(command);
        };
        self.care.tick(&self.config, &self.built, &self.segment, now, &mut command);
        let mut probe = |command| mailbox.send(command).is_ok();
        self.health.tick(&self.built, Some(&self.segment), &mut self.resolver.heard, now, &mut probe);
        self.mailbox.collect();
        moved
    }

    /// Rounds at `now` until nothing moves any more, at most `rounds` of them.
    pub fn settle(&mut self, now: u64, rounds: usize) {
        let mut quiet = 0;
        for _ in 0..rounds {
            quiet = if self.step(now) == 0 { quiet + 1 } else { 0 };
            // What control answers in one round the worker sends in the next.
            if quiet == 3 {
                break;
            }
        }
    }
}

/// Hands a frame to the worker. A full mailbox loses it, as a full link would.
pub fn transmit(mailbox: &Mailbox, t: super::neighbours::Transmit) {
    let command = Command::Transmit { port: t.port, interface: t.interface, frame: t.frame };
    if mailbox.send(command).is_err() {
        tracing::warn!("a worker takes no more commands: a frame of the control thread is lost");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::build::Ephemeral,
        io::mem::{MemPort, wire},
    };

    fn single(pages: &str) -> Result<Single<MemPort>, SingleError> {
        let text = format!(
            "[system]\nname = \"x\"\nbuffers = 65536\nbuffer_size = 4096\nhuge_pages = \"{pages}\"\n\
             [port.a]\ndriver = \"memory\"\n[gateway.g]\n\
             [interface.a]\nport = \"a\"\ngateway = \"g\"\nside = \"local\"\naddresses = [\"10.1.0.1/24\"]\n"
        );
        let config = config::parse(Path::new("/x.toml"), &text, &|_: &str| None).unwrap().0;
        let macs = [MacAddr([2, 0, 0, 0, 0, 1])];
        Single::new(&config, &macs, &mut Ephemeral::default(), Seed::new(1, 2), |_| vec![wire(1).0])
    }

    #[test]
    fn packet_memory_lies_on_the_pages_that_the_configuration_says() {
        let mut never = single("never").unwrap();
        assert!(!never.worker.pool_mut().umem().memory().is_huge());
        // A quarter of a gigabyte: where the machine has not reserved as much, it is refused.
        match single("require") {
            Ok(mut single) => assert!(single.worker.pool_mut().umem().memory().is_huge()),
            Err(error) => assert!(error.to_string().contains("`sysctl vm.nr_hugepages=128`"), "{error}"),
        }
    }
}
