//! The poll-mode loop of one core.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod commands;
mod end;

use std::{sync::Arc, time::Duration};

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Clock, Mailbox, Pipeline, Waker};
use crate::{
    io::{PacketIo, PortHealth},
    packet::{Burst, DropReason, Frame, FramePool, FrameQueue, Links, Umem},
    stage::{
        Cx, Entry, EventQueue, IcmpLimit, Lanes, NatState, NatTables, Output, Resumed, link::SILENT_NEIGHBOUR,
    },
    stats::{PortColumn, WorkerColumn, WorkerCounters},
    table::{neighbour::NeighbourKey, tables::Tables},
    wire::ethernet::{EtherType, Ethernet},
};

pub use self::end::Ledger;

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Polls on.
    Spin,
    /// Sleeps on its rings after so long without work.
    SleepAfter(Duration),
}

/// Longest sleep, in ns: what the control thread sends, and packets that wait for neighbours, are seen to at least
/// as often.
const LONGEST_SLEEP: i64 = 1_000_000;
/// A nap where a port cannot wake the worker.
const NAP: Duration = Duration::from_micros(50);
/// Rounds of packets that the gateway makes while it works on packets: errors about errors there are none, and a
/// fragment is not divided again.
const MAX_RESUMED_ROUNDS: usize = 4;
/// How long a packet waits for its neighbour, in ns. Three solicitations a second apart (RFC 4861 10).
const PENDING_TIME: u64 = 3_000_000_000;
/// How often the ports' own counts and health are read, in ns: each costs a system call.
const PORT_STATS_INTERVAL: u64 = 100_000_000;
/// How long host TAPs are left alone, in ns, when the last look found nothing: each look is a system call.
const HOST_INTERVAL: u64 = 20_000;

/// One core's work: a queue of each port, and the pipeline between them.
#[derive(Debug)]
pub struct Worker<P> {
    ports: Vec<P>,
    /// Host TAPs, each with the interface it stands for.
    hosts: Vec<(P, u16)>,
    pool: FramePool,
    /// The pool's memory, held for as long as the worker lives: workers that counted a reference for each burst would
    /// take the line with the count from each other, and with it what each access to a frame reads.
    umem: Arc<Umem>,
    tables: Arc<Tables>,
    counters: Box<WorkerCounters>,
    pipeline: Pipeline,
    burst: Burst,
    received: FrameQueue,
    out: Output,
    events: Arc<EventQueue>,
    mailbox: Arc<Mailbox>,
    icmp_limit: IcmpLimit,
    nat: NatState,
    /// What each worker sleeps on; none where there is one worker.
    wakers: Vec<Arc<Waker>>,
    burst_size: usize,
    port_stats_due: u64,
    /// The port whose turn it is.
    port_stats_next: usize,
    hosts_due: u64,
}

impl<P: PacketIo> Worker<P> {
    /// A worker over these ports. `hosts` are the TAPs, each with the number of its interface.
    #[expect(clippy::too_many_arguments, reason = "the parts of a worker, each made elsewhere")]
    #[must_use]
    pub fn new(
        ports: Vec<P>,
        hosts: Vec<(P, u16)>,
        pool: FramePool,
        tables: Arc<Tables>,
        counters: WorkerCounters,
        events: Arc<EventQueue>,
        mailbox: Arc<Mailbox>,
        burst_size: usize,
    ) -> Self {
        Self {
            out: Output::new(ports.len(), hosts.len()),
            ports,
            hosts,
            umem: Arc::clone(pool.umem()),
            pool,
            tables,
            counters: Box::new(counters),
            pipeline: Pipeline::default(),
            burst: Burst::default(),
            received: FrameQueue::new(),
            events,
            mailbox,
            icmp_limit: IcmpLimit::default(),
            nat: NatState::default(),
            wakers: Vec::new(),
            burst_size: burst_size.clamp(1, crate::packet::BURST),
            port_stats_due: 0,
            port_stats_next: 0,
            hosts_due: 0,
        }
    }

    /// Gives it tables for NAT sessions.
    pub fn set_nat(&mut self, tables: Option<Box<NatTables>>) {
        self.nat.tables = tables;
    }

    /// Gives it its ways to the other workers, and what each of them sleeps on.
    pub fn link(&mut self, links: Links, wakers: Vec<Arc<Waker>>) {
        (self.nat.links, self.wakers) = (links, wakers);
    }

    /// Its NAT sessions.
    #[must_use]
    pub fn nat_tables(&self) -> Option<&NatTables> {
        self.nat.tables.as_deref()
    }

    /// Times one burst in `every`, stage by stage; none when that is 0.
    pub fn set_timing(&mut self, every: u32) {
        self.pipeline = Pipeline::timing_one_in(every);
    }

    /// Works until the mailbox says stop, then drains what is on its way and takes every frame home.
    pub fn run(&mut self, clock: &Clock, idle: Idle) {
        let mut ticks = clock.ticks();
        let mut last_work = clock.at(ticks);
        while !self.mailbox.is_stopping() {
            let now = clock.at(ticks);
            let moved = self.round(now);
            if moved == 0
                && let Idle::SleepAfter(after) = idle
                && now.saturating_sub(last_work) > after.as_nanos() as u64
            {
                self.sleep();
            }
            // Read once a round: where one round ends the next begins.
            let end = clock.ticks();
            if moved > 0 {
                last_work = now;
                self.counters.worker(WorkerColumn::BusyTicks, end.saturating_sub(ticks));
            }
            ticks = end;
        }
        self.end(clock.now());
    }

    /// One round over all ports. The result is how many packets were moved.
    pub fn round(&mut self, now: u64) -> usize {
        self.commands(now);
        self.mailbox.pass();
        self.resume(now);
        // What waited for its neighbour goes before what comes now: of one flow it is the older.
        let mut moved = self.pending(now);
        for port in 0..self.ports.len() {
            moved += self.port(port, now);
        }
        moved += self.host_taps(now);
        moved += self.take_over(now);
        if self.out.reassembly.is_due(now) {
            self.late_fragments(now);
        }
        moved += self.transmit();
        moved += self.nat(now, moved == 0);
        self.counters.worker(WorkerColumn::Rounds, 1);
        if moved == 0 {
            self.counters.worker(WorkerColumn::IdleRounds, 1);
        }
        if now >= self.port_stats_due {
            // One after the other: packets wait for as long as it takes.
            let ports = self.ports.len().max(1);
            self.port_stats_due = now + PORT_STATS_INTERVAL / ports as u64;
            self.port_stats(self.port_stats_next);
            self.port_stats_next = (self.port_stats_next + 1) % ports;
        }
        moved
    }

    /// Receives from the host TAPs, where it is time to look.
    fn host_taps(&mut self, now: u64) -> usize {
        if self.hosts.is_empty() || now < self.hosts_due {
            return 0;
        }
        let moved = (0..self.hosts.len()).map(|host| self.host(host)).sum();
        if moved == 0 {
            self.hosts_due = now + HOST_INTERVAL;
        }
        moved
    }

    /// Receives one burst from a port and takes it through the pipeline.
    fn port(&mut self, number: usize, now: u64) -> usize {
        let Some(port) = self.ports.get_mut(number) else { return 0 };
        port.complete(&mut self.pool);
        let n = port.rx_burst(&mut self.pool, &mut self.received, self.burst_size);
        if n > 0 {
            self.carry(number, now);
            self.transmit();
        }
        n
    }

    /// Takes the received frames, which came from port `number`, as far as the queues of the ports they leave by.
    ///
    /// [`Worker::round`] does this for each port. A benchmark calls it alone, on frames that it put into
    /// [`Worker::received_mut`] (at most a burst) itself, and takes them back with [`Worker::take_sent`].
    pub fn carry(&mut self, number: usize, now: u64) {
        let n = self.received.len() as u64;
        let mut bytes = 0;
        for frame in &self.received {
            self.pool.umem().prefetch(frame);
            bytes += frame.len() as u64;
        }
        // The burst is empty between rounds, and no more frames come than it holds.
        self.burst.load(&mut self.received, number as u16);
        self.received.drain(..).for_each(|frame| self.pool.free(frame));
        self.counters.worker(WorkerColumn::Received, n);
        self.counters.port(number, PortColumn::RxPackets, n);
        self.counters.port(number, PortColumn::RxBytes, bytes);
        self.pipeline(now, Entry::Rx);
        self.resume(now);
    }

    /// What the first packet of the last burst left in the burst's metadata: for whoever takes one packet through and
    /// asks what became of it.
    #[must_use]
    pub fn last_meta(&self) -> Option<&crate::packet::Meta> {
        crate::packet::Slot::new(0).map(|slot| self.burst.meta(slot))
    }

    /// The frames that [`Worker::carry`] takes up next.
    pub const fn received_mut(&mut self) -> &mut FrameQueue {
        &mut self.received
    }

    /// Takes the frames queued for port `number`, as if the port had sent them.
    pub fn take_sent(&mut self, number: usize, to: &mut impl Extend<Frame>) {
        let Some(queue) = self.out.ports.get_mut(number) else { return };
        let bytes = queue.iter().map(|frame| frame.len() as u64).sum();
        self.counters.worker(WorkerColumn::Sent, queue.len() as u64);
        self.counters.port(number, PortColumn::TxPackets, queue.len() as u64);
        self.counters.port(number, PortColumn::TxBytes, bytes);
        to.extend(queue.drain(..));
    }

    /// Takes what other workers handed to this one through the rest of its way.
    fn take_over(&mut self, now: u64) -> usize {
        let (umem, burst) = (&self.umem, &mut self.burst);
        let mut lost = None;
        let n = self.nat.links.take(self.burst_size, |packet| {
            umem.prefetch(&packet.frame);
            // The burst is empty between rounds, and no more come than it holds.
            lost = burst.push(packet.frame, packet.meta).err().or(lost.take());
        });
        if let Some(frame) = lost {
            self.pool.free(frame);
        }
        if n > 0 {
            self.counters.worker(WorkerColumn::TakenOver, n as u64);
            self.pipeline(now, Entry::Forward);
            self.resume(now);
        }
        self.nat.links.settle(&mut self.pool);
        n
    }

    /// What NAT does between bursts: lets fragments go on whose first one has come, and ends sessions.
    fn nat(&mut self, now: u64, idle: bool) -> usize {
        let Some(tables) = &mut self.nat.tables else { return 0 };
        if idle {
            tables.age(&self.tables, &self.counters, now, true);
        }
        if tables.waiting() == 0 {
            return 0;
        }
        let moved = tables.release(&self.counters, &mut self.pool, &mut self.out.resumed, now);
        self.resume(now);
        moved
    }

    /// Gives up packets whose fragments did not come in time.
    #[cold]
    fn late_fragments(&mut self, now: u64) {
        while self.burst.has_room() {
            let late = self.out.reassembly.expire(now, &mut self.pool, &self.counters);
            let Some((frame, meta)) = late else { break };
            if let Err(frame) = self.burst.push(frame, meta) {
                self.pool.free(frame);
            }
        }
        self.pipeline(now, Entry::Late);
        self.resume(now);
    }

    /// Runs what is in the burst through the pipeline and empties it.
    fn pipeline(&mut self, now: u64, entry: Entry) {
        let tables = &*self.tables;
        let mut cx = Cx {
            umem: &self.umem,
            pool: &mut self.pool,
            tables,
            counters: &self.counters,
            lanes: Lanes::default(),
            out: &mut self.out,
            events: &self.events,
            icmp_limit: &mut self.icmp_limit,
            nat: &mut self.nat,
            now,
        };
        self.pipeline.run(&mut cx, &mut self.burst, entry);
        if let Some(nat) = &mut self.nat.tables {
            nat.age(&self.tables, &self.counters, now, false);
        }
        self.nat.links.publish(|worker| {
            if let Some(waker) = self.wakers.get(worker) {
                waker.wake();
            }
        });
        self.counters.worker(WorkerColumn::Bursts, 1);
        self.sweep(entry);
    }

    /// Counts drops and takes their frames home.
    fn sweep(&mut self, entry: Entry) {
        let interfaces = self.tables.interfaces.len();
        self.burst.sweep(&mut self.pool, |meta, reason| {
            let known = Some(meta.interface).filter(|&number| usize::from(number) < interfaces);
            match (known, entry) {
                // No frame, or of no VLAN that is ours: only the port is known.
                (None, Entry::Rx) => self.counters.port_drops(meta.port, reason, 1),
                _ => self.counters.drops(known, reason, 1),
            }
        });
    }

    /// Takes packets that the stages made or put back through the rest of their way.
    fn resume(&mut self, now: u64) {
        // Before anything is moved: the list itself is 8 KiB.
        if self.out.resumed.is_empty() {
            return;
        }
        for _ in 0..MAX_RESUMED_ROUNDS {
            let mut packets = std::mem::take(&mut self.out.resumed);
            if packets.is_empty() {
                return;
            }
            while let Some(entry) = packets.first().map(|packet| packet.entry) {
                let mut rest: ArrayVec<Resumed, { crate::packet::BURST }> = ArrayVec::new();
                for packet in packets.drain(..) {
                    if packet.entry != entry {
                        rest.push(packet);
                    } else if let Err(frame) = self.burst.push(packet.frame, packet.meta) {
                        self.pool.free(frame);
                    }
                }
                self.pipeline(now, entry);
                packets = rest;
            }
        }
        for packet in self.out.resumed.drain(..) {
            self.counters.drops(None, DropReason::TooManyPasses, 1);
            self.pool.free(packet.frame);
        }
    }

    /// Hands queued frames to their ports. What a port does not take stays for the next round.
    fn transmit(&mut self) -> usize {
        let mut moved = 0;
        for (number, (port, queue)) in self.ports.iter_mut().zip(&mut self.out.ports).enumerate() {
            if queue.is_empty() {
                continue;
            }
            let lengths: ArrayVec<u16, { 2 * crate::packet::BURST }> =
                queue.iter().map(|f| f.len() as u16).collect();
            let n = port.tx_burst(&mut self.pool, queue);
            let bytes = lengths.iter().take(n).map(|&len| u64::from(len)).sum();
            self.counters.worker(WorkerColumn::Sent, n as u64);
            self.counters.port(number, PortColumn::TxPackets, n as u64);
            self.counters.port(number, PortColumn::TxBytes, bytes);
            self.counters.port(number, PortColumn::TxFull, u64::from(!queue.is_empty()));
            moved += n;
        }
        for ((port, _), queue) in self.hosts.iter_mut().zip(&mut self.out.hosts) {
            if queue.is_empty() {
                continue;
            }
            let n = port.tx_burst(&mut self.pool, queue);
            self.counters.worker(WorkerColumn::Delivered, n as u64);
            moved += n;
        }
        moved
    }

    /// Takes what the host sends through a TAP, puts the interface's tags in, and queues it for the port.
    fn host(&mut self, number: usize) -> usize {
        let Some((port, interface)) = self.hosts.get_mut(number) else { return 0 };
        let interface = *interface;
        port.complete(&mut self.pool);
        let n = port.rx_burst(&mut self.pool, &mut self.received, self.burst_size);
        self.counters.worker(WorkerColumn::Received, n as u64);
        let umem = &self.umem;
        for mut frame in self.received.drain(..) {
            let outcome = match self.tables.interface(interface) {
                Some(to) => {
                    let link = Ethernet::at(umem.bytes(&frame), 0).map(|h| (h.destination(), h.ether_type()));
                    link.ok_or(DropReason::EthernetTruncated).and_then(|(destination, kind)| {
                        let header =
                            to.header_v4.with_destination(destination).with_ether_type(EtherType(kind.0));
                        frame.trim_front(14);
                        if !frame.grow_front(header.header_len()) {
                            return Err(DropReason::NoBuffer);
                        }
                        header.write(umem.bytes_mut(&mut frame));
                        Ok(to.port)
                    })
                }
                None => Err(DropReason::PortDown),
            };
            let queue = outcome.map(|port| self.out.ports.get_mut(usize::from(port)));
            match queue {
                Ok(Some(queue)) if !queue.is_full() => {
                    self.counters.interface_out(interface, 1, frame.len() as u64);
                    queue.push(frame);
                }
                other => {
                    let reason = match other {
                        Ok(Some(_)) => DropReason::TxFull,
                        Ok(None) => DropReason::PortDown,
                        Err(reason) => reason,
                    };
                    self.counters.drops(Some(interface), reason, 1);
                    self.pool.free(frame);
                }
            }
        }
        n
    }

    /// Sends packets whose neighbour is known now; gives up on those that waited too long.
    fn pending(&mut self, now: u64) -> usize {
        let mut moved = 0;
        let mut at = 0;
        while let Some(packet) = self.out.pending.get(at) {
            let key = match packet.key.address {
                std::net::IpAddr::V4(a) => NeighbourKey::v4(packet.key.interface, a.to_bits()),
                std::net::IpAddr::V6(a) => NeighbourKey::v6(packet.key.interface, a.to_bits()),
            };
            let known =
                self.tables.neighbours.lookup(&key).filter(|id| self.tables.neighbours.mac(*id).is_some());
            let late = now.saturating_sub(packet.since) > PENDING_TIME;
            if known.is_none() && !late || !self.burst.has_room() {
                at += 1;
                continue;
            }
            // In order, so that a flow's packets leave as they came.
            let mut packet = self.out.pending.remove(at);
            packet.meta.neighbour = known.map_or(SILENT_NEIGHBOUR, |id| id.to_bits());
            moved += 1;
            if let Err(frame) = self.burst.push(packet.frame, packet.meta) {
                self.pool.free(frame);
            }
        }
        if moved > 0 {
            self.pipeline(now, Entry::Tx);
            self.resume(now);
        }
        moved
    }

    /// Sleeps until a frame comes, or for a millisecond.
    fn sleep(&mut self) {
        self.counters.worker(WorkerColumn::Sleeps, 1);
        let io = self.ports.iter().chain(self.hosts.iter().map(|(port, _)| port));
        let mut fds: ArrayVec<PollFd<'_>, 64> = ArrayVec::new();
        for port in io {
            let Some(fd) = port.fd() else {
                std::thread::sleep(NAP);
                return;
            };
            let _ = fds.try_push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let waker = self.wakers.get(self.nat.links.own());
        if let Some(waker) = waker {
            let links = &mut self.nat.links;
            if !waker.may_sleep(|| links.is_empty()) {
                return;
            }
            let _ = fds.try_push(PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN));
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: LONGEST_SLEEP };
        // An interrupted or refused sleep is a short one.
        let _ = poll(&mut fds, Some(&timeout));
        if let Some(waker) = waker {
            waker.awake();
        }
    }

    /// Reads what a port counts itself.
    fn port_stats(&mut self, number: usize) {
        self.counters.worker_gauge(WorkerColumn::Waiting, self.waiting());
        let Some(port) = self.ports.get_mut(number) else { return };
        let stats = port.stats();
        let health = match port.health() {
            PortHealth::Up => 0,
            PortHealth::Down => 1,
            PortHealth::Gone => 2,
        };
        for (column, value) in [
            (PortColumn::RxRingFull, stats.rx_ring_full),
            (PortColumn::RxFillEmpty, stats.rx_fill_empty),
            (PortColumn::RxDropped, stats.rx_dropped),
            (PortColumn::InvalidDescriptors, stats.invalid_descriptors),
            (PortColumn::TxKicks, stats.tx_kicks),
            (PortColumn::RxWakeups, stats.rx_wakeups),
            (PortColumn::Health, health),
        ] {
            self.counters.port_gauge(number, column, value);
        }
    }

    /// Packets that wait now: for neighbours, for other fragments, or for room in a port.
    fn waiting(&self) -> u64 {
        self.frames_waiting() + self.out.reassembly.waiting()
    }

    /// Packets that wait and have a buffer each.
    fn frames_waiting(&self) -> u64 {
        let queued: usize = self.out.ports.iter().chain(&self.out.hosts).map(|queue| queue.len()).sum();
        let held = self.nat.tables.as_ref().map_or(0, |nat| nat.waiting());
        (self.out.pending.len() + self.out.resumed.len() + queued + held) as u64
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Its ports.
    pub fn ports_mut(&mut self) -> &mut [P] {
        &mut self.ports
    }

    /// What it looks things up in.
    #[must_use]
    pub const fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Its free frames.
    pub const fn pool_mut(&mut self) -> &mut FramePool {
        &mut self.pool
    }
}
