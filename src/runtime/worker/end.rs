//! The end of a worker: every packet accounted for, every frame home.

use super::Worker;
use crate::{io::PacketIo, packet::DropReason, stats::WorkerColumn};

/// The balance of a worker's packets: where each one went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Taken from ports and host TAPs.
    pub received: u64,
    /// Made here.
    pub originated: u64,
    /// Handed to ports.
    pub sent: u64,
    /// Handed to the host.
    pub delivered: u64,
    /// Waiting now: for neighbours, or for room in a port.
    pub waiting: u64,
    /// Dropped, for all reasons.
    pub dropped: u64,
    /// Taken from other workers.
    pub taken_over: u64,
    /// Handed to other workers.
    pub handed_over: u64,
}

impl Ledger {
    /// Whether every packet is accounted for.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.received + self.originated + self.taken_over
            == self.sent + self.delivered + self.waiting + self.dropped + self.handed_over
    }
}

impl<P: PacketIo> Worker<P> {
    /// Sends what is on its way, drops what waits, and takes every frame home.
    pub fn end(&mut self, now: u64) {
        self.commands(now);
        self.resume(now);
        for _ in 0..64 {
            self.ports.iter_mut().for_each(|port| port.complete(&mut self.pool));
            if self.transmit() == 0 {
                break;
            }
        }
        for packet in self.out.pending.drain(..) {
            self.counters.drops(None, DropReason::Shutdown, 1);
            self.pool.free(packet.frame);
        }
        if let Some(nat) = &mut self.nat.tables {
            nat.give_up(&self.counters, &mut self.pool);
        }
        self.out.reassembly.clear(&mut self.pool, &self.counters);
        for queue in self.out.ports.iter_mut().chain(&mut self.out.hosts) {
            for frame in queue.drain(..) {
                self.counters.drops(None, DropReason::Shutdown, 1);
                self.pool.free(frame);
            }
        }
        (0..self.ports.len()).for_each(|number| self.port_stats(number));
        for port in self.ports.iter_mut().chain(self.hosts.iter_mut().map(|(port, _)| port)) {
            port.shutdown(&mut self.pool);
        }
    }

    /// Takes home what other workers handed to this one too late, and the buffers that they gave back: to be done when
    /// all workers have ended, and twice, since each may still owe the others.
    pub fn collect_handed(&mut self) {
        let (pool, counters) = (&mut self.pool, &self.counters);
        let n = self.nat.links.take(usize::MAX, |packet| {
            counters.drops(None, DropReason::Shutdown, 1);
            pool.free(packet.frame);
        });
        self.counters.worker(WorkerColumn::TakenOver, n as u64);
        self.nat.links.settle(&mut self.pool);
    }

    /// The balance of this worker's packets.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let read = |column| self.counters.read_worker(column);
        Ledger {
            received: read(WorkerColumn::Received),
            originated: read(WorkerColumn::Originated),
            sent: read(WorkerColumn::Sent),
            delivered: read(WorkerColumn::Delivered),
            waiting: self.waiting(),
            dropped: DropReason::ALL.iter().map(|reason| self.counters.read_drops(*reason)).sum(),
            taken_over: read(WorkerColumn::TakenOver),
            handed_over: read(WorkerColumn::HandedOver),
        }
    }

    /// Frames that are neither in the pool nor anywhere a packet may be: none, unless there is a bug.
    #[must_use]
    pub fn frames_missing(&self) -> usize {
        let held: usize =
            self.ports.iter().chain(self.hosts.iter().map(|(port, _)| port)).map(PacketIo::held).sum();
        let waiting = self.frames_waiting() as usize + self.out.reassembly.frames();
        let owned = self.pool.owned().saturating_add_signed(self.nat.links.gained() as isize);
        owned.saturating_sub(self.pool.available() + held + waiting)
    }
}
