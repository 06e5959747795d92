//! The addresses of a gateway's VPC, each with its buckets and what it was counted: a table of a fixed size.
//!
//! Workers read it without locks, and enter an address with its first packet. Only one at a time enters or removes
//! addresses: a worker that finds another at it does not wait, its packet goes by the common entry, as do packets of
//! addresses for which there is no room. So no address has ever two entries. The control thread removes what is idle.
//!
//! An entry is shared by all workers; of each entry each worker has a cell of its own with its purses and its counts. The
//! hash of an address names two entries that are neighbours; it has one of them if one is free when it comes, so that a
//! worker finds nearly every address in the very cache line that it charges, and reads nothing else. The places, which
//! are a quarter full and small, find all of them.
//!
//! A worker that has found an entry just before it is removed and given to another address charges that packet to the
//! other.

use super::{
    bucket::Bucket,
    cell::{self, Cell, Count, Traffic, Way, word_v4, word_v6},
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, yield_now},
};

/// Places in which an address may stand, from the one that its hash says.
const WINDOW: usize = 16;
/// Up to so many addresses there are four entries for each, else two: an address that is in none of its two neighbours
/// costs twice as much. That is one in 30 of a full table with four, one in ten with two.
const ROOMY: usize = 1 << 17;
/// An empty place. In another one the lower half is [`IS_V6`] and the entry's number and one; the upper half is an IPv4
/// address, so that the place alone says whose it is, or a part of the hash of an IPv6 one.
const EMPTY: u64 = 0;
/// The place is an IPv6 address's.
const IS_V6: u64 = 1 << 31;
/// The number of the entry, and one.
const NUMBER: u64 = IS_V6 - 1;
/// The address of an entry that none has: `::`, which no packet may be from or to.
const NOBODY: u128 = 0;

/// An address, as all workers share it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Entry {
    high: AtomicU64,
    low: AtomicU64,
    buckets: [Bucket; 2],
    /// What the workers had counted before this address was entered, by way: passed and dropped.
    before: [[Count; 2]; 2],
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

/// What one worker keeps: it alone counts and pays here.
#[derive(Debug)]
pub struct Share {
    /// By entry.
    cells: Box<[Cell]>,
    /// Of the common entry.
    common: Cell,
    /// What it dropped, by entry and way.
    dropped: Box<[[Count; 2]]>,
}

/// The cell in which an address with this hash stands first of all: for whoever asks for it before it is needed.
/// `cells` are a power of two.
#[inline(always)]
#[must_use]
pub fn line(cells: &[Cell], hash: u64) -> Option<&Cell> {
    cells.get(hash as usize & cells.len().wrapping_sub(1))
}

/// The entry whose cell says `word`, and the cell, if it is one of the two neighbours where nearly all addresses stand.
/// The choice between the two is no branch: it would be mispredicted.
#[inline(always)]
#[must_use]
pub fn near(cells: &[Cell], hash: u64, word: u64) -> Option<(usize, &Cell)> {
    let other = line(cells, hash)?.word() != word;
    let hash = hash ^ u64::from(other);
    let cell = line(cells, hash)?;
    (cell.word() == word).then_some((hash as usize & cells.len().wrapping_sub(1), cell))
}

impl Share {
    fn new(entries: usize) -> Self {
        Self { cells: make(entries), common: Cell::default(), dropped: make(entries + 1) }
    }

    /// All cells but that of the common entry: a power of two.
    #[inline(always)]
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The cell of an entry.
    #[must_use]
    pub fn cell(&self, entry: usize) -> Option<&Cell> {
        if entry == self.cells.len() { Some(&self.common) } else { self.cells.get(entry) }
    }

    /// Where to count what is dropped.
    #[must_use]
    pub fn dropped(&self, entry: usize, way: Way) -> Option<&Count> {
        Some(way.of(self.dropped.get(entry)?))
    }

    fn counted(&self, entry: usize, way: Way) -> Traffic {
        let get = |count: Option<&Count>| count.map_or([0; 2], Count::get);
        let [passed_packets, passed_bytes] = get(self.cell(entry).map(|cell| cell.passed(way)));
        let [dropped_packets, dropped_bytes] = get(self.dropped(entry, way));
        Traffic { passed_packets, passed_bytes, dropped_packets, dropped_bytes }
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

/// Whether a key is an IPv4 address's.
#[inline(always)]
const fn is_v4(key: u128) -> bool {
    key >> 32 == 0xffff
}

/// The table.
#[derive(Debug)]
pub struct AddressTable {
    /// See [`EMPTY`].
    places: Box<[AtomicU64]>,
    /// The last one is the common entry. The others are a power of two, more than there may be addresses.
    entries: Box<[Entry]>,
    /// By worker.
    shares: Box<[Share]>,
    capacity: usize,
    /// Held by whoever enters or removes an address.
    claimed: AtomicBool,
    /// How many addresses there are.
    used: AtomicU32,
    /// Addresses that were not entered because there was no room.
    refused: AtomicU64,
    /// The newest version of rates.
    version: AtomicU32,
}

fn make<T: Default>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::default()).collect()
}

impl AddressTable {
    /// An empty table for so many addresses and workers.
    #[must_use]
    pub fn new(capacity: usize, workers: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 24);
        let entries = (capacity * if capacity <= ROOMY { 4 } else { 2 }).next_power_of_two().max(4);
        Self {
            // A quarter full at most: hardly an address stands far from its first place.
            places: make((4 * capacity).next_power_of_two().max(WINDOW)),
            entries: make(entries + 1),
            shares: (0..workers.max(1)).map(|_| Share::new(entries)).collect(),
            capacity,
            claimed: AtomicBool::default(),
            used: AtomicU32::default(),
            refused: AtomicU64::default(),
            version: AtomicU32::default(),
        }
    }

    /// How many addresses it holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many addresses it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
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

    /// A version that no rates had before; never 0.
    pub fn new_version(&self) -> u32 {
        self.version.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1)
    }

    /// The entry for all addresses that have none: behind all others.
    #[inline(always)]
    #[must_use]
    pub fn common(&self) -> usize {
        self.entries.len().wrapping_sub(1)
    }

    /// What one worker keeps.
    #[inline(always)]
    #[must_use]
    pub fn share(&self, worker: usize) -> Option<&Share> {
        self.shares.get(worker)
    }

    #[inline(always)]
    fn place(&self, hash: u64, step: usize) -> Option<&AtomicU64> {
        self.places.get((hash as usize).wrapping_add(step) & (self.places.len() - 1))
    }

    /// What a place of the address says, but for the number.
    #[inline(always)]
    const fn mark(key: u128, hash: u64) -> u64 {
        if is_v4(key) { (key as u64) << 32 } else { hash >> 32 << 32 | IS_V6 }
    }

    /// Whether an entry is of this address. Of IPv4 a word or a mark has said it already.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, entry: usize, key: u128) -> bool {
        self.entries.get(entry).is_some_and(|entry| entry.is_of(key))
    }

    /// The entry that a place is of, when it has this mark and key.
    #[inline(always)]
    fn entry_at(&self, word: u64, mark: u64, key: u128) -> Option<usize> {
        let number = (word & NUMBER).wrapping_sub(1) as usize;
        let likely = word & !NUMBER == mark && word != EMPTY && word & NUMBER != 0;
        let is_it = likely && (mark & IS_V6 == 0 || self.is_of(number, key));
        is_it.then_some(number)
    }

    /// The entry of an address.
    #[inline]
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
        if self.len() == self.capacity {
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
        let used = self.used.load(Ordering::Relaxed);
        let vacant = self.vacant(hash).filter(|_| (used as usize) < self.capacity);
        let (Some(place), Some((number, entry))) = (place, vacant) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Entered::Full;
        };
        self.used.store(used + 1, Ordering::Relaxed);
        for (way, [passed, dropped]) in [Way::In, Way::Out].into_iter().zip(&entry.before) {
            let counted = self.counted(number, way);
            passed.set([counted.passed_packets, counted.passed_bytes]);
            dropped.set([counted.dropped_packets, counted.dropped_bytes]);
        }
        entry.buckets.iter().for_each(Bucket::reset);
        self.set_class(number, class);
        entry.set_key(key);
        let word = if is_v4(key) { word_v4(key as u32) } else { word_v6(hash) };
        self.cells(number).for_each(|cell| {
            cell.forget_version();
            cell.set_word(word);
        });
        place.store(Self::mark(key, hash) | (number as u64 + 1), Ordering::Release);
        Entered::At(number)
    }

    /// The entry that an address with this hash gets: one of the two where [`near`] looks, or the next that is
    /// free.
    fn vacant(&self, hash: u64) -> Option<(usize, &Entry)> {
        let mask = self.common().wrapping_sub(1);
        let first = hash as usize & mask;
        let further = (2..=mask).map(|step| first.wrapping_add(step) & mask);
        let numbers = [first, first ^ 1].into_iter().chain(further);
        let mut entries = numbers.filter_map(|number| Some((number, self.entries.get(number)?)));
        entries.find(|(number, entry)| entry.key() == NOBODY && *number != self.common())
    }

    /// Removes an address. For the control thread: it waits for a worker that enters one just now.
    pub fn remove(&self, key: u128, hash: u64) {
        while self.claimed.swap(true, Ordering::Acquire) {
            yield_now();
        }
        let mark = Self::mark(key, hash);
        let at = (0..WINDOW)
            .filter_map(|step| self.place(hash, step))
            .find_map(|place| Some((place, self.entry_at(place.load(Ordering::Relaxed), mark, key)?)));
        if let Some((place, number)) = at {
            place.store(EMPTY, Ordering::Relaxed);
            self.cells(number).for_each(|cell| cell.set_word(cell::NOBODY));
            if let Some(entry) = self.entries.get(number) {
                entry.set_key(NOBODY);
            }
            self.used.store(self.used.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        }
        self.claimed.store(false, Ordering::Release);
    }

    /// The key of an entry that has an address.
    #[must_use]
    pub fn key(&self, entry: usize) -> Option<u128> {
        let key = self.entries.get(entry)?.key();
        (key != NOBODY).then_some(key)
    }

    /// The cells of an entry, of all workers.
    fn cells(&self, entry: usize) -> impl Iterator<Item = &Cell> {
        self.shares.iter().filter_map(move |share| share.cell(entry))
    }

    /// The class of an entry.
    #[must_use]
    pub fn class(&self, entry: usize) -> u32 {
        self.cells(entry).next().map_or(0, |cell| cell.class() as u32)
    }

    /// Puts an entry into a class.
    pub fn set_class(&self, entry: usize, class: u32) {
        self.cells(entry).for_each(|cell| cell.set_class(class));
    }

    /// The bucket of an entry, one way.
    #[inline(always)]
    #[must_use]
    pub fn bucket(&self, entry: usize, way: Way) -> Option<&Bucket> {
        Some(way.of(&self.entries.get(entry)?.buckets))
    }

    fn counted(&self, entry: usize, way: Way) -> Traffic {
        self.shares.iter().fold(Traffic::default(), |sum, share| sum.and(share.counted(entry, way)))
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
        let traffic = [(Way::In, before_in), (Way::Out, before_out)].map(|(way, [passed, dropped])| {
            let ([passed_packets, passed_bytes], [dropped_packets, dropped_bytes]) =
                (passed.get(), dropped.get());
            let before = Traffic { passed_packets, passed_bytes, dropped_packets, dropped_bytes };
            self.counted(number, way).since(before)
        });
        Some(View { key, class: self.class(number), traffic })
    }
}
