//! A gateway with one whole worker or several, each with its own queue of every port: the loop that a core runs, from
//! the port it receives from to the port it sends to.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use super::{
    port::{BenchPort, Feed, Order, Pace, Wire},
    profile::{Direction, Size},
    random::{self, Random},
    rig::{COUNTED, RigError, SEED, drops, gateway, know_neighbours, load_routes, unsealed},
    topology::{LAN, MACS, ROUTERS, Topology, WAN},
    traffic::{Sent, Traffic, entrance, readdress},
};
use crate::{
    config::build::{self, Built, Ephemeral, Kept},
    control::{
        nat::NatSetup,
        single::{EVENTS, NEIGHBOURS, Single, huge_pages},
    },
    io::mem::{MemPort, wire},
    packet::{BURST, Frame, FramePool, Links, Umem},
    runtime::{Clock, Mailbox, Waker, Worker},
    stage::EventQueue,
    stats::{Segment, WorkerCounters},
    table::neighbour::NeighbourTable,
    wire::esp::Esp,
};

/// Bytes of an outer header, in front of which are those of Ethernet and a tag.
const ESP_AT: usize = 18 + 20;
/// Buffers of each worker: two bursts are under way at most.
const BUFFERS: usize = 2048;

/// Who gets which packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deal {
    /// Each flow is one worker's.
    Flows,
    /// Each tunnel is one worker's.
    Tunnels,
}

/// How many packets are to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Each frame of a feed, once.
    Once,
    /// So many, or fewer where none may come again.
    AtMost(u64),
}

/// What a worker did while it counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Done {
    /// Packets that went out.
    pub packets: u64,
    /// In so many ticks.
    pub ticks: u64,
}

/// A gateway of one worker or several.
pub struct Crew {
    topology: Topology,
    deal: Deal,
    /// Each in a place of its own: in a list two would share a cache line.
    workers: Vec<Box<Worker<BenchPort>>>,
    built: Built,
    peer: Option<Single<MemPort>>,
    traffic: Traffic,
    clock: Clock,
    _kept: Kept,
}

impl Crew {
    /// The gateway of a topology with so many workers.
    ///
    /// # Errors
    /// [`RigError::Setup`].
    pub fn new(topology: Topology, size: Size, workers: usize, deal: Deal) -> Result<Self, RigError> {
        let setup = |error: &dyn std::fmt::Display| RigError::Setup(error.to_string());
        let in_full = |error: miette::Report| RigError::Setup(format!("{error:?}"));
        let config = topology.gateway(BUFFERS).map_err(in_full)?;
        let buffer = config.system.buffer_size.get() as usize;
        let umem = Umem::new(BUFFERS * workers, buffer, huge_pages(&config)).map_err(|e| setup(&e))?;
        let (_, writer) = NeighbourTable::new(NEIGHBOURS, SEED);
        let mut kept = Kept::new(writer, workers, SEED);
        let built = build::build(&config, &MACS, &mut kept, &mut Ephemeral::default(), 0);
        let built = built.map_err(|error| setup(&error))?;
        // There was nothing before.
        let _ = kept.commit();
        know_neighbours(&mut kept, &built)?;
        if !topology.routes_are_configured() {
            load_routes(&topology, &mut kept, &built)?;
        }
        built.limits.apply();
        let clock = Clock::new();
        let layout = built.rows.clone().layout("bench", workers, clock.tick_hz());
        let segment = Arc::new(Segment::anonymous(layout).map_err(|error| setup(&error))?);
        let mut nat = NatSetup::new(&config, workers, SEED);
        let mut nat = nat.make(&built.tables).map_err(|error| setup(&error))?.into_iter();
        let mut links = Links::mesh(workers).into_iter();
        let wakers: Result<Vec<_>, _> = (0..workers).map(|_| Waker::new().map(Arc::new)).collect();
        let (wakers, events) = (wakers.map_err(|e| setup(&e))?, Arc::new(EventQueue::new(EVENTS)));
        let pools = umem.into_pools(workers);
        let made = pools.into_iter().enumerate().map(|(number, mut pool)| {
            mix(&mut pool);
            let ports = vec![BenchPort::default(), BenchPort::default()];
            let (tables, counters) = (Arc::clone(&built.tables), WorkerCounters::new(&segment, number));
            let (events, mailbox) = (Arc::clone(&events), Arc::new(Mailbox::default()));
            let burst = config.system.burst.get() as usize;
            let mut worker = Worker::new(ports, Vec::new(), pool, tables, counters, events, mailbox, burst);
            worker.set_nat(nat.next().flatten());
            if workers > 1 {
                worker.link(links.next().unwrap_or_default(), wakers.clone());
            }
            Box::new(worker)
        });
        let workers = made.collect();
        let peer = if topology.profile.direction == Direction::Forward {
            None
        } else {
            let ports = |_: &mut FramePool| vec![wire(1).0, wire(1).0];
            let mut peer = gateway(&topology.peer(1024).map_err(in_full)?, ports)?;
            peer.worker.set_timing(0);
            Some(peer)
        };
        let traffic = Traffic::new(&topology, size);
        Ok(Self { topology, deal, workers, built, peer, traffic, clock, _kept: kept })
    }

    /// The clock that everything is measured with.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The packets that go in.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Whether a packet may go in only once, because the other end sealed it.
    #[must_use]
    pub fn wants_new_frames(&self) -> bool {
        self.topology.profile.direction == Direction::Open
    }

    /// Ports that packets come in by and go out of.
    #[must_use]
    pub const fn ways(&self) -> (usize, usize) {
        entrance(self.topology.profile.direction)
    }

    /// The port of a worker, by number.
    pub fn port(&mut self, worker: usize, number: usize) -> Option<&mut BenchPort> {
        self.workers.get_mut(worker).and_then(|worker| worker.ports_mut().get_mut(number))
    }

    /// How many packets are enough to go round in turn.
    #[must_use]
    pub fn round(&self) -> usize {
        (2 * self.topology.flows.len()).clamp(1024, 1 << 17)
    }

    /// Makes packets, each for the worker that its flow belongs to when `workers` of them share the work. `note` is
    /// told what they are.
    ///
    /// # Errors
    /// [`RigError::Wrong`]: the peer does not seal.
    pub fn feeds(
        &mut self,
        packets: usize,
        workers: usize,
        mut note: impl FnMut(usize, Sent),
    ) -> Result<Vec<Arc<Feed>>, RigError> {
        let mut feeds = vec![Feed::default(); workers];
        let (topology, deal) = (&self.topology, self.deal);
        let mut give = |place: usize, sent: Sent, bytes: &[u8]| {
            let worker = of_worker(topology, deal, sent.flow, workers);
            note(worker, sent);
            if let Some(feed) = feeds.get_mut(worker) {
                feed.push(bytes, place as u64);
            }
        };
        match &mut self.peer {
            Some(peer) if topology.profile.direction == Direction::Open => {
                let umem = Arc::clone(peer.worker.pool_mut().umem());
                let (mut came_out, mut place) = (Vec::with_capacity(2 * BURST), 0);
                while place < packets {
                    let mut sent = Vec::with_capacity(BURST);
                    for _ in 0..BURST.min(packets - place) {
                        let Some(mut frame) = peer.worker.pool_mut().alloc() else { break };
                        sent.push(self.traffic.next(&topology.flows, |bytes| {
                            let _ = umem.fill(&mut frame, bytes);
                        }));
                        peer.worker.received_mut().push(frame);
                    }
                    peer.worker.carry(LAN, self.clock.now());
                    peer.worker.take_sent(WAN, &mut came_out);
                    if came_out.len() != sent.len() {
                        let why = drops(peer.worker.counters());
                        return Err(RigError::Wrong(format!("the peer sealed not all packets: {why}")));
                    }
                    for (mut sealed, sent) in came_out.drain(..).zip(sent) {
                        let bytes = umem.bytes_mut(&mut sealed);
                        readdress(bytes, MACS[WAN], ROUTERS[WAN]);
                        give(place, sent, bytes);
                        place += 1;
                        peer.worker.pool_mut().free(sealed);
                    }
                }
            }
            _ => {
                let mut frame = Vec::new();
                for place in 0..packets {
                    let sent = self.traffic.next(&topology.flows, |bytes| {
                        frame.clear();
                        frame.extend_from_slice(bytes);
                    });
                    give(place, sent, &frame);
                }
            }
        }
        Ok(feeds.into_iter().map(Arc::new).collect())
    }

    /// Gives each worker its packets: the first as many workers as there are feeds. Those of one replay window come from
    /// one wire.
    pub fn order(&mut self, feeds: &[Arc<Feed>], amount: Amount, pace: Pace) {
        let (entrance, once) = (self.ways().0, self.wants_new_frames());
        let common = (once && self.deal == Deal::Flows && feeds.len() > 1).then(|| Wire::new(feeds.len()));
        let clock = self.clock.clone();
        for (number, feed) in feeds.iter().enumerate() {
            let packets = match amount {
                Amount::Once => feed.len() as u64,
                Amount::AtMost(most) if once => most.min(feed.len() as u64),
                Amount::AtMost(most) => most,
            };
            let wire = common.as_ref().map(|wire| (Arc::clone(wire), number));
            let order = Order { feed: Arc::clone(feed), packets, pace, wire };
            if let Some(port) = self.port(number, entrance) {
                port.begin(order, &clock);
            }
        }
    }

    /// The workers that have been given packets, each with the core it is to run on.
    pub fn hands<'a>(&'a mut self, cores: &'a [Option<usize>]) -> impl Iterator<Item = Hand<'a>> {
        let (entrance, exit) = self.ways();
        let clock = &self.clock;
        let workers = self.workers.iter_mut().zip(cores);
        workers.map(move |(worker, core)| Hand { worker, core: *core, entrance, exit, clock })
    }

    /// Takes `packets` packets through all workers at once, and compares every one with what it should be. Of sealed
    /// ones no number may come twice, and those of a flow must be numbered in the order in which they came.
    ///
    /// # Errors
    /// [`RigError::Wrong`].
    pub fn validate(&mut self, packets: usize, cores: &[Option<usize>]) -> Result<(), RigError> {
        let workers = self.workers.len();
        let (_, exit) = self.ways();
        let mut sent: Vec<Vec<Sent>> = vec![Vec::new(); workers];
        let feeds = self.feeds(packets, workers, |worker, packet| {
            if let Some(list) = sent.get_mut(worker) {
                list.push(packet);
            }
        })?;
        self.order(&feeds, Amount::Once, Pace::Full);
        for number in 0..workers {
            if let Some(port) = self.port(number, exit) {
                port.keep_frames();
            }
        }
        turn(self.hands(cores).collect(), None);
        let mut out = Vec::new();
        for number in 0..workers {
            out.push(self.port(number, exit).map(BenchPort::kept_frames).unwrap_or_default());
        }
        for (number, (out, sent)) in out.iter().zip(&sent).enumerate() {
            if out.len() != sent.len() {
                let why = self.workers.get(number).map(|w| drops(w.counters())).unwrap_or_default();
                let (sent, out) = (sent.len(), out.len());
                return Err(RigError::Wrong(format!(
                    "of {sent} packets of worker {number} {out} came out: {why}"
                )));
            }
        }
        let wrong = |error| RigError::Wrong(format!("a packet came out wrong: {error}"));
        let flows = &self.topology.flows;
        let Some(peer) = self.peer.as_mut().filter(|_| self.topology.profile.direction == Direction::Seal)
        else {
            let hops = if self.topology.profile.direction == Direction::Open { 2 } else { 1 };
            for (out, sent) in out.iter().zip(sent) {
                for (number, sent) in sent.into_iter().enumerate() {
                    self.traffic.check(out.frame(number), sent, flows, exit, hops).map_err(wrong)?;
                }
            }
            return Ok(());
        };
        let mut sealed = Vec::new();
        for (out, sent) in out.iter().zip(&sent) {
            numbers_rise(out).map_err(RigError::Wrong)?;
            for (number, sent) in sent.iter().enumerate() {
                let bytes = out.frame(number);
                sealed.push((numbers(bytes).map_err(RigError::Wrong)?, *sent, bytes));
            }
        }
        none_twice(sealed.iter().map(|(numbers, ..)| *numbers)).map_err(RigError::Wrong)?;
        // As the other end gets them: in the order of their numbers.
        sealed.sort_unstable_by_key(|((spi, number), ..)| (*number, *spi));
        for burst in sealed.chunks(BURST) {
            let frames = burst.iter().map(|(_, _, bytes)| bytes.to_vec()).collect();
            let opened = unsealed(peer, frames, &self.clock)?;
            for (frame, (_, sent, _)) in opened.iter().zip(burst) {
                self.traffic.check(frame, *sent, flows, LAN, 2).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// How many sequence numbers have been taken, of all tunnels.
    #[must_use]
    pub fn numbers_taken(&self) -> u64 {
        let tunnels = self.built.tunnels.iter().filter_map(|number| self.built.tables.tunnel(*number));
        tunnels.filter_map(|tunnel| tunnel.sa.as_ref()).map(|sa| sa.sequence.next() - 1).sum()
    }

    /// Packets that have gone out.
    pub fn sent(&mut self) -> u64 {
        let (_, exit) = self.ways();
        (0..self.workers.len()).map(|number| self.port(number, exit).map_or(0, |port| port.sent())).sum()
    }

    /// How long each packet of the first worker took from its arrival until it went out, in ticks.
    pub fn delays(&mut self, each: impl FnMut(u64)) {
        let (entrance, exit) = self.ways();
        let ports = self.workers.first_mut().map(|worker| worker.ports_mut());
        if let Some(ports) = ports
            && let (Some(entrance), Some(exit)) = (ports.get(entrance), ports.get(exit))
        {
            entrance.delays(exit, each);
        }
    }

    /// Ends the gateway and strikes the balance.
    ///
    /// # Errors
    /// [`RigError::Wrong`]: packets, frames or sequence numbers are not accounted for, or packets were dropped.
    pub fn end(mut self) -> Result<(), RigError> {
        if self.topology.profile.direction == Direction::Seal {
            let (taken, sent) = (self.numbers_taken(), self.sent());
            if taken != sent {
                return Err(RigError::Wrong(format!("{sent} packets were sealed with {taken} numbers")));
            }
        }
        let now = self.clock.now();
        self.workers.iter_mut().for_each(|worker| worker.end(now));
        for _ in 0..2 {
            self.workers.iter_mut().for_each(|worker| worker.collect_handed());
        }
        for worker in &self.workers {
            let (ledger, missing) = (worker.ledger(), worker.frames_missing());
            let whole = ledger.balances() && ledger.dropped == 0;
            if COUNTED && !whole || missing > 0 {
                let why = drops(worker.counters());
                let text = format!("the ledger is {ledger:?}, {missing} frames are missing: {why}");
                return Err(RigError::Wrong(text));
            }
        }
        Ok(())
    }
}

/// Puts a pool's frames in any order of their addresses, as they are after some time of operation: otherwise one worker's
/// would follow each other, and of several whose bursts are of all sizes they soon would not.
fn mix(pool: &mut FramePool) {
    let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.alloc()).collect();
    Random::new(random::BUFFERS).shuffle(&mut frames);
    frames.into_iter().for_each(|frame| pool.free(frame));
}

/// The worker that a flow belongs to, of `workers`.
fn of_worker(topology: &Topology, deal: Deal, flow: usize, workers: usize) -> usize {
    let workers = workers.max(1);
    match deal {
        Deal::Flows => flow % workers,
        Deal::Tunnels => topology.tunnel_of(flow) % workers,
    }
}

/// SPI and sequence number of a sealed frame.
fn numbers(frame: &[u8]) -> Result<(u32, u32), String> {
    let header = Esp::at(frame, ESP_AT).ok_or("a sealed frame is too short")?;
    Ok((header.spi().0, header.sequence()))
}

/// Whether what a worker sent bears numbers that rise, tunnel by tunnel: then those of each flow do.
fn numbers_rise(sent: &Feed) -> Result<(), String> {
    let mut last = std::collections::HashMap::new();
    for at in 0..sent.len() {
        let (spi, number) = numbers(sent.frame(at))?;
        if let Some(before) = last.insert(spi, number).filter(|before| *before >= number) {
            return Err(format!("number {number} of SPI {spi:#x} was sent after {before}"));
        }
    }
    Ok(())
}

/// Whether no SPI bears a number twice.
fn none_twice(all: impl Iterator<Item = (u32, u32)>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for (spi, number) in all {
        if !seen.insert((spi, number)) {
            return Err(format!("number {number} of SPI {spi:#x} was sent twice"));
        }
    }
    Ok(())
}

/// A worker that is to work.
pub struct Hand<'a> {
    worker: &'a mut Worker<BenchPort>,
    core: Option<usize>,
    entrance: usize,
    exit: usize,
    clock: &'a Clock,
}

/// Lets workers work at once, each on its core, for a time or until each has done what it was given. The first tenth
/// of the time does not count.
pub fn turn(hands: Vec<Hand<'_>>, time: Option<Duration>) -> Vec<Done> {
    let (ready, count) = (AtomicUsize::new(0), hands.len());
    thread::scope(|scope| {
        let threads: Vec<_> = hands
            .into_iter()
            .map(|mut hand| {
                let ready = &ready;
                scope.spawn(move || {
                    if let Some(id) = hand.core {
                        core_affinity::set_for_current(core_affinity::CoreId { id });
                    }
                    hand.approach();
                    ready.fetch_add(1, SeqCst);
                    while ready.load(SeqCst) < count {
                        std::hint::spin_loop();
                    }
                    hand.work(time)
                })
            })
            .collect();
        let done = |thread: thread::ScopedJoinHandle<'_, Done>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(done).collect()
    })
}

impl Hand<'_> {
    fn sent(&mut self) -> u64 {
        self.worker.ports_mut().get(self.exit).map_or(0, BenchPort::sent)
    }

    fn is_done(&mut self) -> bool {
        self.worker.ports_mut().get(self.entrance).is_none_or(BenchPort::is_done)
    }

    /// Brings what it is to receive near its core, as a network card would: it was made on another.
    fn approach(&mut self) {
        if let Some(port) = self.worker.ports_mut().get(self.entrance) {
            port.approach();
        }
    }

    fn work(&mut self, time: Option<Duration>) -> Done {
        let hz = self.clock.tick_hz() as f64;
        let time = time.map(|time| (time.as_secs_f64() * hz) as u64);
        if let Some(port) = self.worker.ports_mut().get_mut(self.entrance) {
            port.start();
        }
        let start = self.clock.ticks();
        let (counts, end) = (start + time.unwrap_or(0) / 10, start + time.unwrap_or(u64::MAX / 2));
        let (mut begun, mut rounds) = (None, 0_u64);
        loop {
            let ticks = self.clock.ticks();
            if begun.is_none() && ticks >= counts {
                (begun, rounds) = (Some((ticks, self.sent())), 0);
            }
            // At least one round counts, however busy the machine is.
            if ticks >= end && rounds > 0 || self.is_done() {
                let (since, before) = begun.unwrap_or((start, 0));
                return Done { packets: self.sent() - before, ticks: ticks - since };
            }
            self.worker.round(self.clock.at(ticks));
            rounds += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::bench::profile::{Profile, named},
        packet::DropReason,
    };

    fn crew(name: &str, change: fn(&mut Profile), deal: Deal) -> Crew {
        let mut profile: Profile = named(name).unwrap().unwrap();
        change(&mut profile);
        Crew::new(Topology::new(&profile), Size::Bytes(64), 2, deal).unwrap()
    }

    #[test]
    fn two_workers_at_once_lose_nothing_and_take_no_number_twice() {
        for name in ["forward-16", "nat-pool-1k", "seal-1", "open-1", "gateway", "gateway-in", "limit-all"] {
            let mut crew = crew(name, |_| (), Deal::Flows);
            crew.validate(6000, &[None, None]).unwrap_or_else(|error| panic!("{name}: {error}"));
            crew.end().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn each_worker_may_have_a_tunnel_of_its_own() {
        for name in ["seal-1", "open-1"] {
            let two = |profile: &mut Profile| (profile.tunnels, profile.routes) = (2, 2);
            let mut crew = crew(name, two, Deal::Tunnels);
            let feeds = crew.feeds(1000, 2, |_, _| ()).unwrap();
            assert!(feeds.iter().all(|feed| feed.len() > 100), "{name}");
            if name == "open-1" {
                for feed in &feeds {
                    let mut spis = (0..feed.len()).map(|n| numbers(feed.frame(n)).unwrap().0);
                    let first = spis.next().unwrap();
                    assert!(spis.all(|spi| spi == first));
                }
            }
            crew.validate(4000, &[None, None]).unwrap_or_else(|error| panic!("{name}: {error}"));
            crew.end().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn what_both_workers_get_comes_out_once() {
        let mut crew = crew("open-1", |_| (), Deal::Flows);
        let feeds = crew.feeds(6000, 1, |_, _| ()).unwrap();
        let both = [Arc::clone(&feeds[0]), Arc::clone(&feeds[0])];
        crew.order(&both, Amount::Once, Pace::Full);
        turn(crew.hands(&[None, None]).collect(), None);
        assert_eq!(crew.sent(), 6000);
        let replayed = crew.workers.iter().map(|w| w.counters().read_drops(DropReason::EspReplayed));
        assert_eq!(replayed.sum::<u64>(), 6000);
        // A gateway that drops has no speed.
        assert!(crew.end().unwrap_err().to_string().contains("esp-replayed"));
    }

    #[test]
    fn numbers_that_come_twice_or_in_another_order_are_found() {
        let frame = |number: u32| {
            let mut bytes = vec![0; 80];
            let mut header = Esp::at_mut(&mut bytes, ESP_AT).unwrap();
            header.set_spi(crate::wire::esp::Spi(0x1000));
            header.set_sequence(number);
            bytes
        };
        let sent = |numbers: &[u32]| {
            let mut feed = Feed::default();
            numbers.iter().for_each(|number| feed.push(&frame(*number), 0));
            feed
        };
        assert_eq!(numbers_rise(&sent(&[1, 2, 5, 9])), Ok(()));
        assert!(numbers_rise(&sent(&[1, 5, 2])).unwrap_err().contains("number 2 of SPI 0x1000"));
        let all = |one: &[u32], other: &[u32]| {
            let both = [sent(one), sent(other)];
            let frames = both.iter().flat_map(|feed| (0..feed.len()).map(|at| feed.frame(at)));
            none_twice(frames.map(|frame| numbers(frame).unwrap()))
        };
        assert_eq!(all(&[1, 2, 5], &[3, 4, 6]), Ok(()));
        assert!(all(&[1, 2, 5], &[3, 5]).unwrap_err().contains("number 5 of SPI 0x1000 was sent twice"));
        assert!(numbers(&[0; 40]).is_err());
    }
}
