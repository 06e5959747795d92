//! What one worker keeps of an address: what is paid for and what has passed, both ways, in one cache line, which says
//! itself whose it is.
//!
//! A worker pays beforehand: it buys bytes from the address's bucket, a few more than it needs, and lets packets pass
//! until as many bytes have passed as are paid for. So a packet that is paid for already needs no price and no rate: a
//! comparison and two counts. Whoever changes a rate or who has it changes the version, so that what was bought before is
//! forgotten: it is 0.25 ms of the old rate at most.

use super::{
    bucket::{Bucket, Terms},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Bytes that are bought at a time where there is no limit: many packets, but few against any limit that comes then.
const FREE: u64 = 1 << 18;

/// What packets are counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets that passed.
    pub passed_packets: u64,
    /// Bytes of them.
    pub passed_bytes: u64,
    /// Packets that were dropped.
    pub dropped_packets: u64,
    /// Bytes of them.
    pub dropped_bytes: u64,
}

impl Traffic {
    /// The two together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            passed_packets: self.passed_packets.wrapping_add(other.passed_packets),
            passed_bytes: self.passed_bytes.wrapping_add(other.passed_bytes),
            dropped_packets: self.dropped_packets.wrapping_add(other.dropped_packets),
            dropped_bytes: self.dropped_bytes.wrapping_add(other.dropped_bytes),
        }
    }

    /// What came after `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            passed_packets: self.passed_packets.wrapping_sub(earlier.passed_packets),
            passed_bytes: self.passed_bytes.wrapping_sub(earlier.passed_bytes),
            dropped_packets: self.dropped_packets.wrapping_sub(earlier.dropped_packets),
            dropped_bytes: self.dropped_bytes.wrapping_sub(earlier.dropped_bytes),
        }
    }
}

/// Which way a packet goes, as the VPC sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Way {
    /// In: to the VPC.
    In,
    /// Out: from the VPC.
    Out,
}

impl Way {
    /// That of the two which is of this way.
    #[inline(always)]
    pub const fn of<T>(self, [inwards, outwards]: &[T; 2]) -> &T {
        match self {
            Self::In => inwards,
            Self::Out => outwards,
        }
    }
}

/// Packets and their bytes: one thread counts, others read.
#[derive(Debug, Default)]
pub struct Count([AtomicU64; 2]);

impl Count {
    /// Counts a packet.
    #[inline(always)]
    pub fn add(&self, len: u64) {
        self.add_to(self.bytes().wrapping_add(len));
    }

    /// Counts a packet; with its bytes there are `bytes`.
    #[inline(always)]
    fn add_to(&self, bytes: u64) {
        let [packets, sum] = &self.0;
        packets.store(packets.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        sum.store(bytes, Ordering::Relaxed);
    }

    #[inline(always)]
    fn bytes(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }

    /// Packets and bytes.
    #[must_use]
    pub fn get(&self) -> [u64; 2] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Sets both.
    pub fn set(&self, [packets, bytes]: [u64; 2]) {
        self.0[0].store(packets, Ordering::Relaxed);
        self.0[1].store(bytes, Ordering::Relaxed);
    }
}

/// A cell whose entry has no address.
pub(super) const NOBODY: u64 = 0;

/// What the cell of an IPv4 address says: it alone.
#[inline(always)]
#[must_use]
pub const fn word_v4(address: u32) -> u64 {
    1 << 32 | address as u64
}

/// What the cell of an IPv6 address with this hash says: likely it, so whoever reads it looks at the entry too.
#[inline(always)]
#[must_use]
pub const fn word_v6(hash: u64) -> u64 {
    1 << 63 | hash
}

/// One worker's part of an entry: a cache line. What it dropped is elsewhere.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Cell {
    /// Whose it is: see [`word_v4`] and [`word_v6`]. Written by whoever enters or removes the address.
    word: AtomicU64,
    /// What the bytes that passed may come to, in and out.
    paid: [AtomicU64; 2],
    /// What it let pass, in and out.
    passed: [Count; 2],
    /// The class of the address.
    class: AtomicU32,
    /// The version of the rates that it was paid at.
    version: AtomicU32,
}

impl Cell {
    #[inline(always)]
    pub(super) fn word(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    pub(super) fn set_word(&self, word: u64) {
        self.word.store(word, Ordering::Release);
    }

    /// The class of the address.
    #[must_use]
    pub fn class(&self) -> usize {
        self.class.load(Ordering::Relaxed) as usize
    }

    /// For whoever enters an address, too: it shall have nothing that was paid for another.
    pub(super) fn set_class(&self, class: u32) {
        self.class.store(class, Ordering::Relaxed);
    }

    pub(super) fn forget_version(&self) {
        self.version.store(0, Ordering::Relaxed);
    }

    /// What it let pass.
    #[must_use]
    pub const fn passed(&self, way: Way) -> &Count {
        way.of(&self.passed)
    }

    /// Lets a packet of `len` bytes pass that is paid for, and counts it; otherwise nothing is done. Only the worker
    /// whose cell it is may.
    #[inline(always)]
    #[must_use]
    pub fn pass(&self, way: Way, version: u32, len: u64) -> bool {
        let passed = self.passed(way);
        let bytes = passed.bytes().wrapping_add(len);
        let is_paid = bytes <= way.of(&self.paid).load(Ordering::Relaxed);
        let may = is_paid & (self.version.load(Ordering::Relaxed) == version);
        if may {
            passed.add_to(bytes);
        }
        may
    }

    /// Buys what a packet needs, and more, and lets it pass; false when there is not enough. `version` is that of
    /// `terms`, or an earlier one.
    #[must_use]
    pub fn buy(
        &self,
        way: Way,
        (version, terms): (u32, Option<Terms>),
        bucket: &Bucket,
        len: u64,
        now: u64,
    ) -> bool {
        if self.version.load(Ordering::Relaxed) != version {
            for (paid, passed) in self.paid.iter().zip(&self.passed) {
                paid.store(passed.bytes(), Ordering::Relaxed);
            }
            self.version.store(version, Ordering::Relaxed);
        }
        let (passed, paid) = (self.passed(way), way.of(&self.paid));
        let there = paid.load(Ordering::Relaxed).saturating_sub(passed.bytes());
        let missing = len.saturating_sub(there);
        let bought = terms.map_or(missing + FREE, |terms| bucket.buy(terms, missing, now));
        if bought < missing {
            return false;
        }
        paid.store(passed.bytes().wrapping_add(there + bought), Ordering::Relaxed);
        passed.add(len);
        true
    }
}
