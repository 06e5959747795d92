//! What the control thread asks of a worker.

use super::Worker;
use crate::{
    io::PacketIo,
    packet::DropReason,
    runtime::{Command, Retired, Snapshot},
    stage::{Resumed, filler, probe},
    stats::WorkerColumn,
};

/// Commands taken up in one round.
const COMMANDS_PER_ROUND: usize = 32;

impl<P: PacketIo> Worker<P> {
    /// Takes up what the control thread sent.
    pub(super) fn commands(&mut self, now: u64) {
        for _ in 0..COMMANDS_PER_ROUND {
            let Some(command) = self.mailbox.take() else { return };
            match command {
                Command::Snapshot(Snapshot { tables, counters, nat }) => {
                    if nat.is_some() {
                        self.nat.tables = nat;
                    }
                    let tables = std::mem::replace(&mut self.tables, tables);
                    let counters = counters.map(|new| {
                        new.carry_from(&self.counters);
                        std::mem::replace(&mut self.counters, new)
                    });
                    self.mailbox.give_back(Retired::Snapshot(Snapshot { tables, counters, nat: None }));
                    self.counters.worker(WorkerColumn::Snapshots, 1);
                }
                Command::Keepalive { tunnel } => {
                    let made = filler::keepalive(&self.tables, &mut self.pool, tunnel);
                    self.fill(made, WorkerColumn::Keepalives);
                }
                Command::Dummies { tunnel, count } => {
                    for _ in 0..count {
                        // Any numbers will do that look like none in particular.
                        let random = self.out.next_identification().wrapping_mul(40_503) >> 3;
                        let made = filler::dummy(&self.tables, &mut self.pool, tunnel, random);
                        self.fill(made, WorkerColumn::Dummies);
                    }
                }
                Command::Probe { way, probe } => {
                    let made = probe::make(&self.tables, &mut self.pool, way, &probe, now);
                    self.fill(made, WorkerColumn::Probes);
                }
                Command::Transmit { port, interface, frame: bytes } => {
                    self.originate(port, interface, &bytes);
                    self.mailbox.give_back(Retired::Frame(bytes));
                }
                Command::EndSession { id, incarnation } => {
                    if let Some(nat) = &mut self.nat.tables {
                        nat.delete(&self.counters, id, incarnation, now);
                    }
                }
            }
        }
    }

    /// Sends what keeps a tunnel busy, or asks whether a way is good, with the next packets; there is no harm in doing
    /// without one.
    fn fill(&mut self, made: Option<Resumed>, column: WorkerColumn) {
        let Some(packet) = made else { return };
        if let Err(error) = self.out.resumed.try_push(packet) {
            self.pool.free(error.element().frame);
            return;
        }
        self.counters.worker(column, 1);
        self.counters.worker(WorkerColumn::Originated, 1);
    }

    fn originate(&mut self, port: u16, interface: u16, bytes: &[u8]) {
        self.counters.worker(WorkerColumn::Originated, 1);
        let queue = self.out.ports.get_mut(usize::from(port)).filter(|queue| !queue.is_full());
        let Some(queue) = queue else {
            self.counters.drops(Some(interface), DropReason::TxFull, 1);
            return;
        };
        match self.pool.alloc_with(bytes) {
            Some(frame) => {
                self.counters.interface_out(interface, 1, frame.len() as u64);
                queue.push(frame);
            }
            None => self.counters.drops(Some(interface), DropReason::NoBuffer, 1),
        }
    }
}
