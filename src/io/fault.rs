//! A port that misbehaves on purpose: loss, duplication, reordering, corruption and a full transmit ring.
//!
//! The faults come from a seed, so a run that fails can be run again. Every frame stays accounted for: it is
//! delivered, held back, or freed and counted.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;

use super::{PacketIo, PortHealth, PortStats};
use crate::packet::{Frame, FramePool, FrameQueue};

/// How often each fault befalls one direction of a port, in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// A frame is lost.
    pub loss: u32,
    /// A frame comes twice, if the pool has a buffer for the copy.
    pub duplication: u32,
    /// A frame is held back until up to [`MAX_OVERTAKEN`] others have overtaken it, or [`MAX_ROUNDS`] rounds are over.
    pub reordering: u32,
    /// A bit of the frame is flipped, or its end is cut off.
    pub corruption: u32,
    /// A whole `tx_burst` finds the port full, and so do up to [`MAX_FULL`] − 1 after it. Nothing to receiving.
    pub full: u32,
}

impl Faults {
    /// A well-behaved direction.
    pub const NONE: Self = Self { loss: 0, duplication: 0, reordering: 0, corruption: 0, full: 0 };
}

/// Parts per million of always.
pub const ALWAYS: u32 = 1_000_000;

/// Most frames that overtake one that is held back.
pub const MAX_OVERTAKEN: u64 = 8;

/// Most calls of [`PacketIo::complete`] that a frame is held back.
pub const MAX_ROUNDS: u64 = 16;

/// Most calls of `tx_burst` in a row that find the port full.
pub const MAX_FULL: u64 = 8;

/// Most frames of one direction held back at a time. Further ones are not reordered.
const MAX_HELD: usize = 16;

/// Most frames taken into one direction at a time: each may be doubled and set free one that was held back.
const MAX_TAKEN: usize = (2 * crate::packet::BURST - MAX_HELD) / 2;

/// What befell the frames of one direction.
///
/// Frames that came in and were duplicated = frames that went out, were lost, taken home, or are still held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Frames that came in: from the port inside (receiving), or from the caller (sending).
    pub taken: u64,
    /// Frames that went out: to the caller (receiving), or into the port inside (sending).
    pub passed: u64,
    /// Frames lost.
    pub lost: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames held back.
    pub reordered: u64,
    /// Frames with a bit flipped or their end cut off.
    pub corrupted: u64,
    /// Calls of `tx_burst` that found the port full.
    pub full: u64,
    /// Frames still held at [`PacketIo::shutdown`], which went back to the pool.
    pub taken_home: u64,
}

/// What a [`FaultPort`] did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultStats {
    /// To received frames.
    pub rx: FaultCounts,
    /// To frames to send.
    pub tx: FaultCounts,
}

/// A port inside another that injects faults.
#[derive(Debug)]
pub struct FaultPort<P> {
    inner: P,
    rx: Lane,
    tx: Lane,
    /// Further calls of `tx_burst` that find the port full.
    full_for: u64,
}

impl<P: PacketIo> FaultPort<P> {
    /// Wraps `inner`. The same seed, faults and calls give the same result.
    #[must_use]
    pub fn new(inner: P, rx: Faults, tx: Faults, seed: u64) -> Self {
        Self { inner, rx: Lane::new(rx, Random(seed)), tx: Lane::new(tx, Random(!seed)), full_for: 0 }
    }

    /// Changes the faults from here on.
    pub const fn set_faults(&mut self, rx: Faults, tx: Faults) {
        (self.rx.faults, self.tx.faults) = (rx, tx);
    }

    /// What it did so far.
    #[must_use]
    pub const fn fault_stats(&self) -> FaultStats {
        FaultStats { rx: self.rx.counts, tx: self.tx.counts }
    }

    /// The port inside.
    #[must_use]
    pub const fn inner(&self) -> &P {
        &self.inner
    }

    /// The port inside, to change.
    #[must_use]
    pub const fn inner_mut(&mut self) -> &mut P {
        &mut self.inner
    }

    /// Whether this call of `tx_burst` finds the port full.
    fn is_full(&mut self) -> bool {
        if self.full_for > 0 {
            self.full_for -= 1;
        } else if self.tx.random.chance(self.tx.faults.full) {
            self.full_for = self.tx.random.below(MAX_FULL);
        } else {
            return false;
        }
        self.tx.counts.full += 1;
        true
    }

    /// Gives the port inside what is ready to be sent.
    fn flush(&mut self, pool: &mut FramePool) {
        if !self.tx.ready.is_empty() {
            self.tx.counts.passed += self.inner.tx_burst(pool, &mut self.tx.ready) as u64;
        }
    }
}

impl<P: PacketIo> PacketIo for FaultPort<P> {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let room = max.min(out.remaining_capacity());
        let mut given = self.rx.give(out, room);
        if given < room && self.rx.ready.is_empty() {
            let mut received = FrameQueue::new();
            self.inner.rx_burst(pool, &mut received, (room - given).min(MAX_TAKEN));
            self.rx.take(pool, received.drain(..));
            given += self.rx.give(out, room - given);
        }
        given
    }

    /// Takes frames from the front of `frames` and returns how many, lost ones included. Duplicates are sent in addition.
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        if frames.is_empty() || self.is_full() {
            return 0;
        }
        // As long as the port inside has not taken what came before, it is full.
        self.flush(pool);
        if !self.tx.ready.is_empty() {
            return 0;
        }
        let taken = frames.len().min(MAX_TAKEN);
        self.tx.take(pool, frames.drain(..taken));
        self.flush(pool);
        taken
    }

    fn complete(&mut self, pool: &mut FramePool) {
        self.inner.complete(pool);
        self.rx.end_round();
        self.tx.end_round();
        self.flush(pool);
    }

    /// Sends what is held back, then takes home the rest. Of a frame and its duplicate that are both unsent, both count.
    fn shutdown(&mut self, pool: &mut FramePool) -> usize {
        self.flush(pool);
        self.tx.release_all();
        self.flush(pool);
        self.rx.take_home(pool);
        self.tx.take_home(pool) + self.inner.shutdown(pool)
    }

    fn held(&self) -> usize {
        self.rx.held() + self.tx.held() + self.inner.held()
    }

    fn stats(&mut self) -> PortStats {
        self.inner.stats()
    }

    fn health(&mut self) -> PortHealth {
        self.inner.health()
    }

    /// That of the port inside, but nothing to sleep on while frames wait here.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        if self.rx.held() == 0 && self.tx.held() == 0 { self.inner.fd() } else { None }
    }
}

/// A frame that others overtake.
#[derive(Debug)]
struct HeldBack {
    frame: Frame,
    /// Frames that may still overtake it.
    others: u64,
    /// Rounds that it may still be held.
    rounds: u64,
}

/// One direction: faults are applied between [`Lane::take`] and `ready`.
#[derive(Debug)]
struct Lane {
    faults: Faults,
    random: Random,
    held_back: ArrayVec<HeldBack, MAX_HELD>,
    /// Frames that have met their fate, and go out next.
    ready: FrameQueue,
    counts: FaultCounts,
}

impl Lane {
    fn new(faults: Faults, random: Random) -> Self {
        let (held_back, ready) = (ArrayVec::new(), FrameQueue::new());
        Self { faults, random, held_back, ready, counts: FaultCounts::default() }
    }

    fn held(&self) -> usize {
        self.ready.len() + self.held_back.len()
    }

    /// Applies the faults to up to [`MAX_TAKEN`] frames. To be called with nothing ready.
    fn take(&mut self, pool: &mut FramePool, frames: impl Iterator<Item = Frame>) {
        for mut frame in frames {
            self.counts.taken += 1;
            if self.random.chance(self.faults.loss) {
                self.counts.lost += 1;
                pool.free(frame);
                continue;
            }
            if self.random.chance(self.faults.corruption) && self.corrupt(pool, &mut frame) {
                self.counts.corrupted += 1;
            }
            let copy =
                if self.random.chance(self.faults.duplication) { duplicate(pool, &frame) } else { None };
            self.pass(pool, frame);
            if let Some(copy) = copy {
                self.counts.duplicated += 1;
                self.pass(pool, copy);
            }
        }
    }

    /// Makes the frame ready, or holds it back.
    fn pass(&mut self, pool: &mut FramePool, frame: Frame) {
        if self.random.chance(self.faults.reordering) && !self.held_back.is_full() {
            let (others, rounds) = (1 + self.random.below(MAX_OVERTAKEN), 1 + self.random.below(MAX_ROUNDS));
            self.counts.reordered += 1;
            self.held_back.push(HeldBack { frame, others, rounds });
            return;
        }
        self.push_ready(pool, frame);
        for held in &mut self.held_back {
            held.others = held.others.saturating_sub(1);
        }
        self.release_due();
    }

    fn corrupt(&mut self, pool: &FramePool, frame: &mut Frame) -> bool {
        let length = frame.len() as u64;
        if length == 0 {
            return false;
        }
        if self.random.below(2) == 0 {
            // At least a byte is left: no device delivers an empty frame, and none sends one.
            let kept = 1 + self.random.below(length);
            frame.truncate(kept as usize);
            return kept < length;
        }
        let bit = self.random.below(8 * length);
        if let Some(byte) = pool.umem().bytes_mut(frame).get_mut((bit / 8) as usize) {
            *byte ^= 1 << (bit % 8);
        }
        true
    }

    /// Ends a round: what was held back long enough becomes ready.
    fn end_round(&mut self) {
        for held in &mut self.held_back {
            held.rounds = held.rounds.saturating_sub(1);
        }
        self.release_due();
    }

    /// Makes ready what has been overtaken or held often enough, the oldest first, as far as there is room.
    fn release_due(&mut self) {
        while !self.ready.is_full()
            && let Some(due) = self.held_back.iter().position(|h| h.others == 0 || h.rounds == 0)
            && let Some(held) = self.held_back.pop_at(due)
        {
            self.ready.push(held.frame);
        }
    }

    /// Makes ready all that is held back, as far as there is room.
    fn release_all(&mut self) {
        for held in &mut self.held_back {
            held.others = 0;
        }
        self.release_due();
    }

    /// There is room as long as no more than [`MAX_TAKEN`] frames are taken at once; without, the frame is lost.
    fn push_ready(&mut self, pool: &mut FramePool, frame: Frame) {
        if let Err(full) = self.ready.try_push(frame) {
            self.counts.lost += 1;
            pool.free(full.element());
        }
    }

    /// Moves up to `room` ready frames to `out`, which has as much room.
    fn give(&mut self, out: &mut FrameQueue, room: usize) -> usize {
        let given = room.min(self.ready.len());
        out.extend(self.ready.drain(..given));
        self.counts.passed += given as u64;
        given
    }

    /// Frees all frames and returns how many.
    fn take_home(&mut self, pool: &mut FramePool) -> usize {
        let held = self.held();
        self.ready.drain(..).for_each(|frame| pool.free(frame));
        self.held_back.drain(..).for_each(|held| pool.free(held.frame));
        self.counts.taken_home += held as u64;
        held
    }
}

fn duplicate(pool: &mut FramePool, frame: &Frame) -> Option<Frame> {
    let mut copy = pool.alloc()?;
    let umem = pool.umem();
    // At the same place, since a packet that grew in front may not fit behind the usual headroom.
    umem.reset(&mut copy, frame.headroom());
    let fits = umem.grow_back(&mut copy, frame.len());
    if fits {
        umem.bytes_mut(&mut copy).copy_from_slice(umem.bytes(frame));
        return Some(copy);
    }
    pool.free(copy);
    None
}

/// Numbers from a seed: SplitMix64 (Steele, Lea, Flood, 2014). Its results never change with a version of a crate.
#[derive(Debug)]
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0. The bounds here are small, so the bias is nothing.
    const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// True `ppm` times in a million.
    const fn chance(&mut self, ppm: u32) -> bool {
        self.below(ALWAYS as u64) < ppm as u64
    }
}

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
