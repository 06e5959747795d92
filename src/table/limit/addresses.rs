//! The addresses of a gateway's VPC, each with its buckets and what it was counted: a table of a fixed size.
//!
//! Workers read it without locks, and enter an address with its first packet. Only one at a time enters or removes
//! addresses: a worker that finds another at it does not wait, its packet goes by the common entry, as do packets of
//! addresses for which there is no room. So no address has ever two entries. The control thread removes what is idle.
//!
//! An entry is shared by all workers; of each entry each worker has a cell of its own with its purse and its counts.
//! A worker that has found an entry just before it is removed and given to another address charges the packets of
//! this one burst to the other. Entries that become free are used again in the order in which they became free, so
//! that this needs a burst that takes as long as the table takes to go round.

use super::{
    bucket::{Bucket, Purse},
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, yield_now},
};

/// Places in which an address may stand, from the one that its hash says.
const WINDOW: usize = 16;
/// An empty place. In another one the lower half is [`IS_V6`] and the entry's number and one; the upper half is an IPv4
/// address, so that the place alone says whose it is, or a part of the hash of an IPv6 one.
const EMPTY: u64 = 0;
/// The place is an IPv6 address's.
const IS_V6: u64 = 1 << 31;
/// The number of the entry, and one.
const NUMBER: u64 = IS_V6 - 1;
/// The address of an entry that none has: `::`, which no packet may be from or to.
const NOBODY: u128 = 0;

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

/// Counts that one thread writes and others read.
#[derive(Debug, Default)]
struct Counts([AtomicU64; 4]);

impl Counts {
    #[inline(always)]
    fn add(&self, traffic: Traffic) {
        let [packets, bytes, dropped, dropped_bytes] = &self.0;
        let add = |count: &AtomicU64, n: u64| {
            count.store(count.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed)
        };
        if traffic.passed_packets > 0 {
            add(packets, traffic.passed_packets);
            add(bytes, traffic.passed_bytes);
        }
        if traffic.dropped_packets > 0 {
            add(dropped, traffic.dropped_packets);
            add(dropped_bytes, traffic.dropped_bytes);
        }
    }

    fn get(&self) -> Traffic {
        let [packets, bytes, dropped, dropped_bytes] = &self.0;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Traffic {
            passed_packets: get(packets),
            passed_bytes: get(bytes),
            dropped_packets: get(dropped),
            dropped_bytes: get(dropped_bytes),
        }
    }

    fn set(&self, traffic: Traffic) {
        let [packets, bytes, dropped, dropped_bytes] = &self.0;
        packets.store(traffic.passed_packets, Ordering::Relaxed);
        bytes.store(traffic.passed_bytes, Ordering::Relaxed);
        dropped.store(traffic.dropped_packets, Ordering::Relaxed);
        dropped_bytes.store(traffic.dropped_bytes, Ordering::Relaxed);
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

/// One worker's part of an entry and a way: a cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Cell {
    /// What the worker has taken of the entry's bucket.
    pub purse: Purse,
    counts: Counts,
    /// The class of the address: here, since the worker has this line in hand anyway.
    class: AtomicU32,
}

impl Cell {
    /// The class of the address.
    #[inline(always)]
    #[must_use]
    pub fn class(&self) -> usize {
        self.class.load(Ordering::Relaxed) as usize
    }

    /// Counts. Only the worker whose cell it is may.
    #[inline(always)]
    pub fn count(&self, traffic: Traffic) {
        self.counts.add(traffic);
    }
}

/// An address.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Entry {
    high: AtomicU64,
    low: AtomicU64,
    buckets: [Bucket; 2],
    /// What the cells had counted before this address was entered, by way.
    before: [Counts; 2],
}

impl Entry {
    #[inline(always)]
    fn is_of(&self, key: u128) -> bool {
        let (high, low) = ((key >> 64) as u64, key as u64);
        (self.low.load(Ordering::Relaxed) == low) & (self.high.load(Ordering::Relaxed) == high)
    }

    fn key(&self) -> u128 {
        u128::from(self.high.load(Ordering::Relaxed)) << 64 | u128::from(self.low.load(Ordering::Relaxed))
    }

    fn set_key(&self, key: u128) {
        self.high.store((key >> 64) as u64, Ordering::Relaxed);
        self.low.store(key as u64, Ordering::Relaxed);
    }
}

/// What became of an address that was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is here.
    At(usize),
    /// Another thread enters or removes one just now.
    Busy,
    /// There is no room.
    Full,
}

/// An entry as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The address; see [`key_v4`]. 0 is the common entry, of addresses for which there is no room.
    pub key: u128,
    /// The class it is in.
    pub class: u32,
    /// Traffic to and from the VPC, since it was entered.
    pub traffic: [Traffic; 2],
}

/// The key of an IPv4 address.
#[inline(always)]
#[must_use]
pub const fn key_v4(address: u32) -> u128 {
    0xffff << 32 | address as u128
}

/// The table.
#[derive(Debug)]
pub struct AddressTable {
    /// See [`EMPTY`].
    places: Box<[AtomicU64]>,
    /// The last one is the common entry.
    entries: Box<[Entry]>,
    /// By worker, entry and way.
    cells: Box<[Box<[[Cell; 2]]>]>,
    /// Held by whoever enters or removes an address.
    claimed: AtomicBool,
    /// Numbers of free entries: a ring from `first_free`, of `free` numbers.
    ring: Box<[AtomicU32]>,
    first_free: AtomicU32,
    free: AtomicU32,
    /// Addresses that were not entered because there was no room.
    refused: AtomicU64,
}

fn make<T: Default>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::default()).collect()
}

impl AddressTable {
    /// An empty table for so many addresses and workers.
    #[must_use]
    pub fn new(capacity: usize, workers: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 24);
        Self {
            // A quarter full at most: nearly every address stands in its first place, and no branch is mispredicted.
            places: make((4 * capacity).next_power_of_two().max(WINDOW)),
            entries: make(capacity + 1),
            cells: (0..workers.max(1)).map(|_| make(capacity + 1)).collect(),
            claimed: AtomicBool::default(),
            ring: (0..capacity as u32).map(AtomicU32::new).collect(),
            first_free: AtomicU32::default(),
            free: AtomicU32::new(capacity as u32),
            refused: AtomicU64::default(),
        }
    }

    /// How many addresses it holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.len()
    }

    /// How many addresses it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.capacity() - self.free.load(Ordering::Relaxed) as usize
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often an address found no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The entry for all addresses that have none.
    #[inline(always)]
    #[must_use]
    pub fn common(&self) -> usize {
        self.ring.len()
    }

    #[inline(always)]
    fn place(&self, hash: u64, step: usize) -> Option<&AtomicU64> {
        self.places.get((hash as usize).wrapping_add(step) & (self.places.len() - 1))
    }

    /// Where the address may stand: for whoever asks for it before it is needed.
    #[inline(always)]
    #[must_use]
    pub fn line(&self, hash: u64) -> Option<&AtomicU64> {
        self.place(hash, 0)
    }

    /// What a place of the address says, but for the number.
    #[inline(always)]
    const fn mark(key: u128, hash: u64) -> u64 {
        if key >> 32 == 0xffff { (key as u64) << 32 } else { hash >> 32 << 32 | IS_V6 }
    }

    /// The entry that a place is of, when it has this mark and key.
    #[inline(always)]
    fn entry_at(&self, word: u64, mark: u64, key: u128) -> Option<usize> {
        let number = (word & NUMBER).wrapping_sub(1) as usize;
        let likely = word & !NUMBER == mark && word != EMPTY && word & NUMBER != 0;
        let is_it = likely && (mark & IS_V6 == 0 || self.entries.get(number)?.is_of(key));
        is_it.then_some(number)
    }

    /// The entry of an address.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, key: u128, hash: u64) -> Option<usize> {
        let mark = Self::mark(key, hash);
        (0..WINDOW).find_map(|step| {
            let word = self.place(hash, step)?.load(Ordering::Acquire);
            self.entry_at(word, mark, key)
        })
    }

    /// Enters an address, if nobody else is at it, in `class`.
    #[cold]
    pub fn enter(&self, key: u128, hash: u64, class: u32) -> Entered {
        if self.free.load(Ordering::Relaxed) == 0 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Entered::Full;
        }
        if self.claimed.swap(true, Ordering::Acquire) {
            return Entered::Busy;
        }
        let entered = self.enter_claimed(key, hash, class);
        self.claimed.store(false, Ordering::Release);
        entered
    }

    fn enter_claimed(&self, key: u128, hash: u64, class: u32) -> Entered {
        // Another may have entered it since it was looked for.
        if let Some(known) = self.find(key, hash) {
            return Entered::At(known);
        }
        let place = (0..WINDOW)
            .filter_map(|step| self.place(hash, step))
            .find(|place| place.load(Ordering::Relaxed) == EMPTY);
        let free = self.free.load(Ordering::Relaxed);
        let (Some(place), true) = (place, free > 0) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Entered::Full;
        };
        let first = self.first_free.load(Ordering::Relaxed);
        let number = self.ring.get(first as usize).map_or(0, |number| number.load(Ordering::Relaxed));
        self.first_free.store((first + 1) % self.ring.len() as u32, Ordering::Relaxed);
        self.free.store(free - 1, Ordering::Relaxed);
        if let Some(entry) = self.entries.get(number as usize) {
            for (way, before) in [Way::In, Way::Out].into_iter().zip(&entry.before) {
                before.set(self.counted(number as usize, way));
            }
            entry.buckets.iter().for_each(Bucket::reset);
            self.set_class(number as usize, class);
            entry.set_key(key);
        }
        place.store(Self::mark(key, hash) | u64::from(number + 1), Ordering::Release);
        Entered::At(number as usize)
    }

    /// Removes an address. For the control thread: it waits for a worker that enters one just now.
    pub fn remove(&self, key: u128, hash: u64) {
        while self.claimed.swap(true, Ordering::Acquire) {
            yield_now();
        }
        let mark = Self::mark(key, hash);
        let at = (0..WINDOW)
            .filter_map(|step| self.place(hash, step))
            .find_map(|place| Some((place, self.entry_at(place.load(Ordering::Relaxed), mark, key)? as u32)));
        if let Some((place, number)) = at {
            place.store(EMPTY, Ordering::Relaxed);
            if let Some(entry) = self.entries.get(number as usize) {
                entry.set_key(NOBODY);
            }
            let (first, free) = (self.first_free.load(Ordering::Relaxed), self.free.load(Ordering::Relaxed));
            if let Some(last) = self.ring.get((first as usize + free as usize) % self.ring.len()) {
                last.store(number, Ordering::Relaxed);
            }
            self.free.store(free + 1, Ordering::Relaxed);
        }
        self.claimed.store(false, Ordering::Release);
    }

    /// The key of an entry that has an address.
    #[must_use]
    pub fn key(&self, entry: usize) -> Option<u128> {
        let key = self.entries.get(entry)?.key();
        (key != NOBODY).then_some(key)
    }

    /// The class of an entry.
    #[must_use]
    pub fn class(&self, entry: usize) -> u32 {
        let cells = self.cells.first().and_then(|cells| cells.get(entry));
        cells.map_or(0, |[cell, _]| cell.class.load(Ordering::Relaxed))
    }

    /// Puts an entry into a class.
    pub fn set_class(&self, entry: usize, class: u32) {
        for cell in self.cells.iter().filter_map(|cells| cells.get(entry)).flatten() {
            cell.class.store(class, Ordering::Relaxed);
        }
    }

    /// A worker's cells, by entry and way.
    #[inline(always)]
    #[must_use]
    pub fn cells(&self, worker: usize) -> Option<&[[Cell; 2]]> {
        self.cells.get(worker).map(|cells| &**cells)
    }

    /// The bucket of an entry, one way.
    #[inline(always)]
    #[must_use]
    pub fn bucket(&self, entry: usize, way: Way) -> Option<&Bucket> {
        let [inwards, outwards] = &self.entries.get(entry)?.buckets;
        Some(if way == Way::In { inwards } else { outwards })
    }

    fn counted(&self, entry: usize, way: Way) -> Traffic {
        let cells = self.cells.iter().filter_map(|cells| cells.get(entry));
        cells.fold(Traffic::default(), |sum, [inwards, outwards]| {
            let cell = if way == Way::In { inwards } else { outwards };
            sum.and(cell.counts.get())
        })
    }

    /// The entry of this number, where there is an address in it; also the common one.
    #[must_use]
    pub fn view(&self, number: usize) -> Option<View> {
        let entry = self.entries.get(number)?;
        let key = entry.key();
        if key == NOBODY && number != self.common() {
            return None;
        }
        let [before_in, before_out] = &entry.before;
        let traffic = [(Way::In, before_in), (Way::Out, before_out)]
            .map(|(way, before)| self.counted(number, way).since(before.get()));
        Some(View { key, class: self.class(number), traffic })
    }
}
