//! Neighbours: which MAC address an IP address on an interface has (RFC 826, RFC 4861).
//!
//! One writer, the control plane, adds, resolves and removes; workers look up without locks. An entry is one
//! cache line. Its MAC, state and generation share one word, so [`NeighbourTable::mac`] is one atomic load
//! and no reader ever sees half of a change.
//!
//! **Reuse.** A slot that is given to another address gets the next of 8192 generations, and an id carries the
//! generation it was made in: a worker that still holds the id of the old address is told "none", not the new
//! address's MAC. A worker holds an id for one burst; whoever keeps one longer must [`NeighbourWriter::pin`]
//! it, and a pinned entry is never reused.
//!
//! **Flood.** The capacity is fixed. When it is used up, a new address takes the place of the oldest incomplete
//! entry, else of the stale entry that was idle for longest. Permanent, pinned and reachable entries are
//! never pushed out: a scan of a subnet cannot cut traffic that flows.

mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::address::IpVersion;
use super::hash::{HashKey, Seed};

pub use writer::{NeighbourAges, NeighbourWriter};

/// The most entries a table can hold.
pub const MAX_CAPACITY: usize = 1 << 19;

/// Workers write `last_used` at most this often (ns): a store a packet would move the cache line between cores.
pub const LAST_USED_RESOLUTION: u64 = 1_000_000_000;

const END: u32 = u32::MAX;
const MAC_MASK: u64 = (1 << 48) - 1;
const STATE_SHIFT: u32 = 48;
const STATE_MASK: u64 = 0b111;
const GENERATION_SHIFT: u32 = 51;
/// A look-up that meets slots in the middle of reuse starts again this often before it answers "none".
const RETRIES: u32 = 4;

/// Chains of one entry are walked without a mispredicted branch; this many buckets make nearly all of them so.
const BUCKETS_PER_SLOT: usize = 4;

/// What is known about a neighbour. See RFC 4861 7.3.2; there is no state for "is being asked now": the control plane
/// keeps its questions elsewhere, and workers use the MAC until [`NeighbourWriter::fail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NeighbourState {
    /// Asked for, not answered.
    Incomplete,
    /// Confirmed of late.
    Reachable,
    /// Confirmed long ago; its MAC is used until it is found wrong.
    Stale,
    /// Configured; never ages.
    Permanent,
}

impl NeighbourState {
    const fn bits(self) -> u64 {
        match self {
            Self::Incomplete => 1,
            Self::Reachable => 2,
            Self::Stale => 3,
            Self::Permanent => 4,
        }
    }

    const fn of(word: u64) -> Option<Self> {
        match (word >> STATE_SHIFT) & STATE_MASK {
            1 => Some(Self::Incomplete),
            2 => Some(Self::Reachable),
            3 => Some(Self::Stale),
            4 => Some(Self::Permanent),
            _ => None,
        }
    }
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourKey {
    /// The interface's index.
    pub interface: u16,
    /// The IP version of `address`.
    pub version: IpVersion,
    /// The address in host order; an IPv4 address uses the low 32 bits.
    pub address: u128,
}

impl NeighbourKey {
    /// The key of an IPv4 address.
    pub const fn v4(interface: u16, address: u32) -> Self {
        Self { interface, version: IpVersion::V4, address: address as u128 }
    }

    /// The key of an IPv6 address.
    pub const fn v6(interface: u16, address: u128) -> Self {
        Self { interface, version: IpVersion::V6, address }
    }

    #[inline(always)]
    fn tag(&self) -> u64 {
        u64::from(self.interface) << 8 | self.version as u64
    }

    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        (self.tag(), self.address.keyed_hash(seed)).keyed_hash(seed)
    }
}

/// Names one entry in one of its lives: slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourId(u32);

impl NeighbourId {
    fn new(slot: u32, word: u64) -> Self {
        Self(slot | ((word >> GENERATION_SHIFT) as u32) << 19)
    }

    /// The slot's number, below the table's capacity: a dense index for counters or display.
    #[inline(always)]
    pub const fn slot(self) -> usize {
        (self.0 & (MAX_CAPACITY as u32 - 1)) as usize
    }

    /// The id as a number, for a packet's metadata.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The id that [`Self::to_bits`] gave; any other number names no entry, or a wrong one, but nothing worse.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[inline(always)]
    const fn names(self, word: u64) -> bool {
        (word >> GENERATION_SHIFT) as u32 == self.0 >> 19
    }
}

/// No slot is free and nothing may be pushed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the neighbour table is full")]
pub struct Full;

/// One entry. All fields are written by the control plane, `last_used` by workers too.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    /// MAC (48 bits), state (3), generation (13).
    word: AtomicU64,
    tag: AtomicU64,
    address_high: AtomicU64,
    address_low: AtomicU64,
    last_used: AtomicU64,
    confirmed: AtomicU64,
    next: AtomicU32,
}

impl Slot {
    fn key(&self) -> NeighbourKey {
        let tag = self.tag.load(Ordering::Relaxed);
        let high = self.address_high.load(Ordering::Relaxed);
        let low = self.address_low.load(Ordering::Relaxed);
        NeighbourKey {
            interface: (tag >> 8) as u16,
            version: if tag as u8 == IpVersion::V4 as u8 { IpVersion::V4 } else { IpVersion::V6 },
            address: u128::from(high) << 64 | u128::from(low),
        }
    }
}

/// What an entry looked like at one moment, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourView {
    /// Its id.
    pub id: NeighbourId,
    /// Interface and address.
    pub key: NeighbourKey,
    /// Its state.
    pub state: NeighbourState,
    /// Its MAC, unless incomplete.
    pub mac: Option<[u8; 6]>,
    /// When a worker last used it (ns), to [`LAST_USED_RESOLUTION`].
    pub last_used: u64,
    /// When it was last confirmed (ns).
    pub confirmed: u64,
}

/// The table that workers read.
#[derive(Debug)]
pub struct NeighbourTable {
    seed: Seed,
    buckets: Box<[AtomicU32]>,
    slots: Box<[Slot]>,
    /// Counts reuses. Bumped before the `next` of a reused slot changes: a reader that may have been led into
    /// another chain, and so missed its entry, sees the count differ and walks again.
    reuses: AtomicU64,
}

impl NeighbourTable {
    /// A table of `capacity` entries (at most [`MAX_CAPACITY`]) and its only writer.
    pub fn new(capacity: usize, seed: Seed) -> (Arc<Self>, NeighbourWriter) {
        let capacity = capacity.clamp(1, MAX_CAPACITY);
        let table = Arc::new(Self {
            seed,
            buckets: (0..capacity.next_power_of_two() * BUCKETS_PER_SLOT)
                .map(|_| AtomicU32::new(END))
                .collect(),
            slots: (0..capacity).map(|_| Slot::default()).collect(),
            reuses: AtomicU64::new(0),
        });
        let writer = NeighbourWriter::new(Arc::clone(&table));
        (table, writer)
    }

    fn bucket(&self, key: &NeighbourKey) -> Option<&AtomicU32> {
        self.buckets.get(key.keyed_hash(&self.seed) as usize & (self.buckets.len() - 1))
    }

    /// The entry of `key`, in any state.
    pub fn lookup(&self, key: &NeighbourKey) -> Option<NeighbourId> {
        let bucket = self.bucket(key)?;
        let (tag, high, low) = (key.tag(), (key.address >> 64) as u64, key.address as u64);
        for _ in 0..RETRIES {
            let before = self.reuses.load(Ordering::Acquire);
            let mut place = bucket.load(Ordering::Acquire);
            // A chain is never longer than the table; the bound holds off a loop made of chains in motion.
            for _ in 0..self.slots.len() {
                let Some(slot) = self.slots.get(place as usize) else { break };
                let word = slot.word.load(Ordering::Acquire);
                if slot.address_low.load(Ordering::Relaxed) == low
                    && slot.address_high.load(Ordering::Relaxed) == high
                    && slot.tag.load(Ordering::Relaxed) == tag
                {
                    // The key belongs to this generation only if the generation still stands after it was read,
                    // and is whole only if the word was not that of a free slot before.
                    fence(Ordering::Acquire);
                    let id = NeighbourId::new(place, word);
                    if NeighbourState::of(word).is_some() && id.names(slot.word.load(Ordering::Relaxed)) {
                        return Some(id);
                    }
                }
                place = slot.next.load(Ordering::Acquire);
            }
            if self.reuses.load(Ordering::Acquire) == before {
                return None;
            }
        }
        None
    }

    /// The MAC of an entry, unless it is incomplete or its slot has been given to another address.
    #[inline(always)]
    pub fn mac(&self, id: NeighbourId) -> Option<[u8; 6]> {
        let word = self.slots.get(id.slot())?.word.load(Ordering::Relaxed);
        if id.names(word) { mac_of(word) } else { None }
    }

    /// The state of an entry, unless its slot has been given to another address.
    #[inline(always)]
    pub fn state(&self, id: NeighbourId) -> Option<NeighbourState> {
        let word = self.slots.get(id.slot())?.word.load(Ordering::Relaxed);
        if id.names(word) { NeighbourState::of(word) } else { None }
    }

    /// Starts loading an entry's cache line.
    #[inline(always)]
    pub fn prefetch(&self, id: NeighbourId) {
        if let Some(slot) = self.slots.get(id.slot()) {
            super::prefetch::prefetch_read(slot);
        }
    }

    /// A worker notes that it used an entry at `now` (ns). Stores at most once in [`LAST_USED_RESOLUTION`].
    #[inline(always)]
    pub fn touch(&self, id: NeighbourId, now: u64) {
        if let Some(slot) = self.slots.get(id.slot())
            && now.saturating_sub(slot.last_used.load(Ordering::Relaxed)) > LAST_USED_RESOLUTION
        {
            slot.last_used.store(now, Ordering::Relaxed);
        }
    }

    /// The number of entries the table can hold.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Every entry, in order of slots. Each is whole; an entry that changes meanwhile may be left out.
    pub fn iter(&self) -> impl Iterator<Item = NeighbourView> + '_ {
        self.slots.iter().enumerate().filter_map(|(place, slot)| {
            let word = slot.word.load(Ordering::Acquire);
            let view = NeighbourView {
                id: NeighbourId::new(place as u32, word),
                key: slot.key(),
                state: NeighbourState::of(word)?,
                mac: mac_of(word),
                last_used: slot.last_used.load(Ordering::Relaxed),
                confirmed: slot.confirmed.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            view.id.names(slot.word.load(Ordering::Relaxed)).then_some(view)
        })
    }
}

#[inline(always)]
fn mac_of(word: u64) -> Option<[u8; 6]> {
    match NeighbourState::of(word)? {
        NeighbourState::Incomplete => None,
        _ => {
            let [_, _, mac @ ..] = (word & MAC_MASK).to_be_bytes();
            Some(mac)
        }
    }
}

fn mac_bits(mac: [u8; 6]) -> u64 {
    mac.iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte))
}

#[cfg(test)]
#[path = "neighbour_tests.rs"]
mod tests;
