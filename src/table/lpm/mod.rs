//! Longest prefix match (RFC 1812 5.2.4.3) for IPv4 and IPv6: one writer, any number of readers, no locks.
//!
//! **Shape.** A multibit trie with strides of 8 bits. A node has 256 slots; a slot holds the value of the longest
//! prefix that ends inside the node and covers the slot, and the child below it. Values are not pushed into
//! children: a look-up remembers the last value on its way down. Nodes come in two forms (`node`): 256 plain
//! entries, or a bitmap that marks where runs of equal slots begin and one entry for each run. The second needs
//! 64 bytes for a lone prefix and two cache lines a visit at most, and lets a million routes stay in cache.
//!
//! **Change.** A published node never changes. [`LpmWriter::publish`] writes new copies of the nodes that changed
//! and of those above them, then stores the new entrance: at most 4 small nodes for an IPv4 route, nothing else
//! moves. A reader loads the entrance once a burst, so a whole burst sees one version of the table, and any number
//! of changes become visible as one. The old nodes are used again after [`LpmWriter::quiesce`].

mod arena;
#[cfg_attr(target_arch = "x86_64", allow(unsafe_code))]
mod few;
mod node;
mod writer;

use std::hint::select_unpredictable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::arena::{Arena, LINE_WORDS, Reference, View};
use self::few::Few;
use self::node::{child, value};
use super::address::Address;

pub use self::writer::{LpmError, LpmWriter};

/// What a look-up gives where no prefix covers the address; no route can have this value.
pub const NO_ROUTE: u32 = u32::MAX;

/// The most addresses that one pass of [`Lpm::lookup_burst`] interleaves.
pub const BURST: usize = 64;

/// Lines of nodes up to which a table counts as always in the nearest caches: its look-ups follow one another,
/// without prefetch and without notes of who goes deeper.
const NEAR_LINES: usize = 1024;

/// The IPv4 table.
pub type Lpm4 = Lpm<u32>;
/// The IPv6 table.
pub type Lpm6 = Lpm<u128>;

/// A route table that workers read. Shared by `Arc`; changed through its [`LpmWriter`] only.
#[derive(Debug)]
pub struct Lpm<A> {
    /// Shared with later versions of the table that are readers' of their own, see [`LpmWriter::part`].
    arena: Arc<Arena>,
    /// A packed [`Entrance`]; stored by the writer (Release) when the nodes it leads to are complete.
    entrance: AtomicU64,
    address: std::marker::PhantomData<A>,
}

/// The run of the arena, and in it the block that holds a [`Start`].
#[derive(Clone, Copy)]
struct Entrance {
    run: usize,
    start: Reference,
}

impl Entrance {
    const fn pack(self) -> u64 {
        (self.run as u64) << 32 | self.start.0 as u64
    }

    #[inline(always)]
    const fn unpack(word: u64) -> Self {
        Self { run: (word >> 32) as usize, start: Reference(word as u32) }
    }
}

/// Where in the block of a [`Start`] the routes stand, when they are [`few`].
const FEW_AT: u32 = node::RANKS + 1;
/// So many look-ups are worth reading a few routes for.
const WORTH_READING: usize = 8;

/// Where every look-up of one version of the table starts. All routes of a gateway often lie under one prefix, such
/// as 10.0.0.0/8 or 2001:db8::/32: the nodes above have one child and one value, and are passed in one step.
#[derive(Clone, Copy)]
struct Start<A> {
    /// The first node with a choice, and the bits above it.
    node: Reference,
    depth: u8,
    /// What holds for all addresses so far, in `node` and outside.
    default: u32,
    /// The addresses in `node`: those that begin with the first `depth` bits of this.
    prefix: A,
}

impl<A: Address> Start<A> {
    /// As a node's block: its number of lines is where [`node`] has it. Behind it are the routes, where they are [`few`].
    fn words(self, few: &[u64]) -> Vec<u64> {
        let prefix = self.prefix.widen();
        let first = u64::from(self.depth) << 32 | u64::from(self.node.0);
        let lines = (FEW_AT as usize + few.len()).div_ceil(LINE_WORDS);
        let start = [first, self.default.into(), (prefix >> 64) as u64, prefix as u64, node::ranks_of(lines)];
        let mut words = start.to_vec();
        words.extend_from_slice(few);
        words.resize(lines * LINE_WORDS, 0);
        words
    }

    #[inline(always)]
    fn read(view: View<'_>, block: Reference) -> Self {
        if block == Reference::NONE {
            return Self { node: Reference::NONE, depth: 0, default: NO_ROUTE, prefix: A::default() };
        }
        let [first, default, high, low] = [0, 1, 2, 3].map(|word| view.load(block.first_word() + word));
        Self {
            node: Reference(first as u32),
            depth: (first >> 32) as u8,
            default: default as u32,
            prefix: A::truncate(u128::from(high) << 64 | u128::from(low)),
        }
    }
}

/// An item of a burst's array. Places in a burst are below [`BURST`], which the mask tells the compiler.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "a number modulo 64 is a place in an array of 64")]
const fn at<T>(items: &mut [T; BURST], place: usize) -> &mut T {
    &mut items[place % BURST]
}

/// The addresses of a burst on their way down the trie.
struct Walk<'a, A> {
    addresses: &'a [A],
    /// The last value that each has met.
    best: &'a mut [u32],
    /// Where in the burst the first `count` are that are still on their way.
    places: [u8; BURST],
    /// The nodes that those visit next; within a step the positions of their entries.
    next: [u32; BURST],
    count: usize,
}

impl<A: Address> Walk<'_, A> {
    #[inline(always)]
    fn address(&self, place: usize) -> A {
        self.addresses.get(place).copied().unwrap_or_default()
    }

    /// The address at `place` met `entry`: keeps its value, if any, and notes its child, if any, as number `count`. The
    /// result is how many are noted then.
    #[inline(always)]
    fn step(&mut self, view: View<'_>, place: u8, entry: u64, count: usize) -> usize {
        // Whether a look-up meets a value and whether it goes deeper is random: so nothing branches on it. The child
        // is always written, and counts if there is one.
        if let Some(best) = self.best.get_mut(usize::from(place)) {
            *best = select_unpredictable(value(entry) == NO_ROUTE, *best, value(entry));
        }
        *at(&mut self.places, count) = place;
        *at(&mut self.next, count) = child(entry).0;
        view.prefetch(child(entry).first_word());
        count + usize::from(child(entry) != Reference::NONE)
    }

    /// The first two steps for all. The nodes of both, 257 at most, are near: only the entries of the second are not.
    #[inline(always)]
    fn begin(&mut self, view: View<'_>, start: &Start<A>) {
        let (count, mask) = (self.addresses.len().min(BURST), A::mask(start.depth));
        for index in 0..count {
            let address = self.address(index);
            let entry = view.entry(start.node, address.byte(start.depth));
            let entry = select_unpredictable(address & mask == start.prefix, entry, node::EMPTY);
            if let Some(best) = self.best.get_mut(index) {
                *best = select_unpredictable(value(entry) == NO_ROUTE, start.default, value(entry));
            }
            let position = view.position(child(entry), address.byte(start.depth + 8));
            view.prefetch(position);
            *at(&mut self.next, index) = position;
        }
        let mut left = 0;
        for index in 0..count {
            let entry = view.load(*at(&mut self.next, index));
            left = self.step(view, index as u8, entry, left);
        }
        self.count = left;
    }

    /// One step down for all that are left.
    #[inline(always)]
    fn level(&mut self, view: View<'_>, depth: u8) {
        let count = self.count.min(BURST);
        for index in 0..count {
            let place = *at(&mut self.places, index);
            let address = self.address(usize::from(place));
            let next = at(&mut self.next, index);
            *next = view.position(Reference(*next), address.byte(depth));
            view.prefetch(*next);
        }
        let mut left = 0;
        for index in 0..count {
            let place = *at(&mut self.places, index);
            let entry = view.load(*at(&mut self.next, index));
            left = self.step(view, place, entry, left);
        }
        self.count = left;
    }
}

/// A small table as it is now. See [`Lpm::near`].
pub struct Near<'a, A> {
    view: View<'a>,
    start: Start<A>,
    mask: A,
    few: Option<Few>,
}

impl<A: Address> Near<'_, A> {
    /// The value of the longest prefix that covers `address`, or [`NO_ROUTE`].
    #[inline(always)]
    pub fn find(&self, address: A) -> u32 {
        match &self.few {
            Some(few) if A::WIDTH == u32::BITS as u8 => few.find(address.widen() as u32),
            _ => Lpm::descend(self.view, &self.start, self.mask, address),
        }
    }
}

impl<A: Address> Lpm<A> {
    /// An empty table, for its readers, and its only writer.
    pub fn new() -> (Arc<Self>, LpmWriter<A>) {
        let table = Arc::new(Self {
            arena: Arc::default(),
            entrance: AtomicU64::new(Entrance { run: 0, start: Reference::NONE }.pack()),
            address: std::marker::PhantomData,
        });
        (Arc::clone(&table), LpmWriter::new(table))
    }

    #[inline(always)]
    fn enter(&self) -> (View<'_>, Start<A>) {
        let entrance = Entrance::unpack(self.entrance.load(Ordering::Acquire));
        let view = self.arena.view(entrance.run);
        (view, Start::read(view, entrance.start))
    }

    /// The value of the longest prefix that covers `address`.
    #[inline]
    pub fn lookup(&self, address: A) -> Option<u32> {
        let (view, start) = self.enter();
        let found = Self::descend(view, &start, A::mask(start.depth), address);
        (found != NO_ROUTE).then_some(found)
    }

    #[inline(always)]
    fn descend(view: View<'_>, start: &Start<A>, mask: A, address: A) -> u32 {
        let mut best = start.default;
        let mut node = if address & mask == start.prefix { start.node } else { Reference::NONE };
        let mut rest = address.starting_at(start.depth);
        // No way down is longer than an address.
        for _ in 0..A::WIDTH / 8 {
            if node == Reference::NONE {
                break;
            }
            let (byte, below) = rest.shift();
            let entry = view.entry(node, byte);
            best = if value(entry) == NO_ROUTE { best } else { value(entry) };
            (node, rest) = (child(entry), below);
        }
        best
    }

    /// The table, if it is so small that it counts as always in the nearest caches: then one look-up after the other
    /// is faster than [`Lpm::lookup_burst`]. About so many will follow.
    #[inline]
    pub fn near(&self, look_ups: usize) -> Option<Near<'_, A>> {
        let entrance = Entrance::unpack(self.entrance.load(Ordering::Acquire));
        let view = self.arena.view(entrance.run);
        if view.lines() > NEAR_LINES {
            return None;
        }
        let start = Start::read(view, entrance.start);
        let worth = A::WIDTH == u32::BITS as u8 && look_ups >= WORTH_READING;
        let few = if worth { Few::read(view, entrance.start.first_word() + FEW_AT) } else { None };
        Some(Near { view, mask: A::mask(start.depth), start, few })
    }

    /// Looks up every address: `results[i]` is the value for `addresses[i]`, or [`NO_ROUTE`]. Works through
    /// [`BURST`] addresses at a time, level by level where the table is large, so that their cache misses overlap.
    /// The shorter of the two slices counts.
    pub fn lookup_burst(&self, addresses: &[A], results: &mut [u32]) {
        for (addresses, results) in addresses.chunks(BURST).zip(results.chunks_mut(BURST)) {
            if let Some(near) = self.near(addresses.len()) {
                for (address, result) in addresses.iter().zip(results) {
                    *result = near.find(*address);
                }
            } else {
                let (view, start) = self.enter();
                Self::descend_fast(view, &start, addresses, results);
            }
        }
    }

    /// [`Self::descend_together`], by the processor's own instructions for counting and shifting where it has them. The
    /// program is compiled for those that do not: a dozen instructions each time.
    #[cfg_attr(target_arch = "x86_64", allow(unsafe_code))]
    fn descend_fast(view: View<'_>, start: &Start<A>, addresses: &[A], results: &mut [u32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("bmi2") {
            #[target_feature(enable = "popcnt,bmi2")]
            fn by_popcnt<A: Address>(view: View<'_>, start: &Start<A>, addresses: &[A], results: &mut [u32]) {
                Lpm::descend_together(view, start, addresses, results);
            }
            // SAFETY: the processor has both features.
            return unsafe { by_popcnt(view, start, addresses, results) };
        }
        Self::descend_together(view, start, addresses, results);
    }

    #[inline(always)]
    fn descend_together(view: View<'_>, start: &Start<A>, addresses: &[A], results: &mut [u32]) {
        let mut walk = Walk { addresses, best: results, places: [0; BURST], next: [0; BURST], count: 0 };
        walk.begin(view, start);
        let mut depth = start.depth + 16;
        while walk.count > 0 && depth < A::WIDTH {
            walk.level(view, depth);
            depth += 8;
        }
    }

    /// Bytes of memory that the table holds for its nodes.
    pub fn memory(&self) -> usize {
        self.arena.memory()
    }
}

#[cfg(test)]
mod tests;
