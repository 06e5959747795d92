//! How the control thread hands things to a worker: by moving them through a queue.
//!
//! A new snapshot goes in as an `Arc`, the old one comes back the same way, and the control thread drops it: the
//! worker neither counts references nor frees memory, and nothing is ever locked.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crossbeam::queue::ArrayQueue;

use crate::{
    stage::NatTables,
    stats::WorkerCounters,
    table::{
        probe::{Probe, Way},
        tables::Tables,
    },
};

/// What a worker looks things up in and counts in.
#[derive(Debug)]
pub struct Snapshot {
    /// The tables.
    pub tables: Arc<Tables>,
    /// New counters, when the rows of the statistics changed.
    pub counters: Option<Box<WorkerCounters>>,
    /// Tables for NAT sessions, for a worker that has none and needs some now.
    pub nat: Option<Box<NatTables>>,
}

/// Something for a worker.
#[derive(Debug)]
pub enum Command {
    /// Use these from the next burst on.
    Snapshot(Snapshot),
    /// Send this frame, link-layer header and all, out of the port of this number.
    Transmit {
        /// The port.
        port: u16,
        /// The interface, for counting.
        interface: u16,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Send a NAT keepalive to the peer of the tunnel of this number.
    Keepalive {
        /// The tunnel.
        tunnel: u16,
    },
    /// Send dummy packets into the tunnel of this number.
    Dummies {
        /// The tunnel.
        tunnel: u16,
        /// How many.
        count: u16,
    },
    /// Send a probe.
    Probe {
        /// Which way.
        way: Way,
        /// What it says.
        probe: Probe,
    },
    /// End the NAT session at this place, if it is still the one that is meant.
    EndSession {
        /// Its place.
        id: u32,
        /// Which of those that had the place.
        incarnation: u8,
    },
}

/// What a worker gives back to be dropped.
#[derive(Debug)]
pub enum Retired {
    /// What was used before.
    Snapshot(Snapshot),
    /// The buffer of a frame that was sent.
    Frame(Vec<u8>),
}

/// Commands that wait for a worker, at most: a worker looks every round.
const CAPACITY: usize = 256;

/// The queues between the control thread and one worker.
#[derive(Debug)]
pub struct Mailbox {
    commands: ArrayQueue<Command>,
    retired: ArrayQueue<Retired>,
    /// The last epoch that the worker saw between two bursts.
    seen: AtomicU64,
    /// The epoch that the control thread wants to be seen.
    wanted: AtomicU64,
    stop: AtomicBool,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            commands: ArrayQueue::new(CAPACITY),
            // Everything that goes in comes back at most once, so this never fills up before the other drains;
            // one more for the snapshot in use.
            retired: ArrayQueue::new(2 * CAPACITY),
            seen: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }
}

impl Mailbox {
    /// Control: hands over a command.
    ///
    /// # Errors
    /// The command itself, when the worker has not taken up earlier ones.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.push(command)
    }

    /// Control: whether another command will be taken. Nobody else sends, so it stays so until the next one.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.commands.is_full()
    }

    /// Control: drops what the worker gave back.
    pub fn collect(&self) {
        while self.retired.pop().is_some() {}
    }

    /// Control: asks the worker to show that it is between two bursts; what it could see before is out of its hands
    /// once [`Mailbox::has_passed`].
    pub fn want(&self, epoch: u64) {
        self.wanted.store(epoch, Ordering::Release);
    }

    /// Control: whether the worker was between two bursts since [`Mailbox::want`] with this epoch.
    #[must_use]
    pub fn has_passed(&self, epoch: u64) -> bool {
        self.seen.load(Ordering::Acquire) >= epoch
    }

    /// Control: asks the worker to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Worker: the next command.
    #[inline]
    pub(super) fn take(&self) -> Option<Command> {
        if self.commands.is_empty() { None } else { self.commands.pop() }
    }

    /// Worker: gives something back. The control thread always leaves room; were there none, it is dropped here.
    pub(super) fn give_back(&self, retired: Retired) {
        let _ = self.retired.push(retired);
    }

    /// Worker: is between two bursts now, and has taken up what it was sent. While commands wait that were sent before
    /// [`Mailbox::want`], which may be more than it takes in one round, it has not passed.
    #[inline]
    pub(super) fn pass(&self) {
        let wanted = self.wanted.load(Ordering::Acquire);
        if wanted != self.seen.load(Ordering::Relaxed) && self.commands.is_empty() {
            self.seen.store(wanted, Ordering::Release);
        }
    }

    /// Whether the worker is to end.
    #[inline]
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_in_order_and_what_was_used_comes_back() {
        let mailbox = Mailbox::default();
        for port in 0..3 {
            mailbox.send(Command::Transmit { port, interface: 0, frame: vec![0; 60] }).unwrap();
        }
        for expected in 0..3 {
            let Some(Command::Transmit { port, frame, .. }) = mailbox.take() else { panic!("no command") };
            assert_eq!(port, expected);
            mailbox.give_back(Retired::Frame(frame));
        }
        assert!(mailbox.take().is_none());
        mailbox.collect();
        assert!(mailbox.retired.is_empty());
    }

    #[test]
    fn an_epoch_passes_only_between_bursts() {
        let mailbox = Mailbox::default();
        mailbox.want(1);
        assert!(!mailbox.has_passed(1));
        mailbox.pass();
        assert!(mailbox.has_passed(1) && !mailbox.has_passed(2));
    }

    #[test]
    fn an_epoch_has_not_passed_while_what_came_before_it_waits() {
        let mailbox = Mailbox::default();
        mailbox.send(Command::Keepalive { tunnel: 0 }).unwrap();
        mailbox.want(1);
        mailbox.pass();
        assert!(!mailbox.has_passed(1));
        assert!(mailbox.take().is_some());
        mailbox.pass();
        assert!(mailbox.has_passed(1));
    }
}
