//! The writer: the sorted set of routes, and the publication of what changed in it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::arena::{Allocator, LINE_WORDS, Reference, View};
use super::few;
use super::node::{self, Encoded, Slots, child, entry, value};
use super::{Entrance, Lpm, NO_ROUTE, Start};
use crate::table::address::Address;

/// Dense nodes that a table may have beyond those that hold many runs: with few routes every node is dense
/// (16 cost 32 KiB) and a look-up counts no bits; with many, memory matters more.
const SPARE_DENSE_NODES: usize = 16;

/// Why a table refused a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LpmError {
    /// The prefix is longer than an address.
    #[error("a prefix of {0} bits is longer than the address")]
    LengthTooLong(u8),
    /// [`NO_ROUTE`] given as a route's value.
    #[error("the value {NO_ROUTE} is reserved")]
    ReservedValue,
    /// The nodes would need more than 4 GiB. The published table stands as it was.
    #[error("the route table is full")]
    Full,
}

/// Routes sort by the node they end in, then by length: a node's own routes are one range, in the order in which
/// they are painted over its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RouteKey<A> {
    /// Bits above the node.
    depth: u8,
    /// Those bits, the rest zero.
    node: A,
    length: u8,
    address: A,
}

impl<A: Address> RouteKey<A> {
    fn new(address: A, length: u8) -> Result<Self, LpmError> {
        if length > A::WIDTH {
            return Err(LpmError::LengthTooLong(length));
        }
        let address = address & A::mask(length);
        let depth = length.saturating_sub(1) / 8 * 8;
        Ok(Self { depth, node: address & A::mask(depth), length, address })
    }
}

/// The only one who changes an [`Lpm`].
///
/// Changes are invisible until [`Self::publish`].
#[derive(Debug)]
pub struct LpmWriter<A> {
    table: Arc<Lpm<A>>,
    routes: BTreeMap<RouteKey<A>, u32>,
    /// By level, the nodes whose own routes changed since the last publication.
    dirty: Vec<HashSet<A>>,
    allocator: Allocator,
    /// The node at depth 0, and the published [`Start`] block.
    root: Reference,
    start: Reference,
    /// Blocks that the last publications took out of the trie, which a reader may still be in.
    retired: Vec<Reference>,
    dense_nodes: usize,
}

/// Nodes of one publication, not yet reachable.
#[derive(Default)]
struct Draft {
    fresh: Vec<Reference>,
    replaced: Vec<Reference>,
}

impl<A: Address> LpmWriter<A> {
    pub(super) fn new(table: Arc<Lpm<A>>) -> Self {
        let allocator = Allocator::new(&table.arena);
        Self {
            table,
            routes: BTreeMap::new(),
            dirty: vec![HashSet::new(); usize::from(A::WIDTH / 8)],
            allocator,
            root: Reference::NONE,
            start: Reference::NONE,
            retired: Vec::new(),
            dense_nodes: 0,
        }
    }

    /// What workers read.
    pub fn table(&self) -> &Arc<Lpm<A>> {
        &self.table
    }

    /// Lets the table that readers have now stay as it is, whatever comes, and writes into another one from now on,
    /// which begins as its equal and shares its nodes. What readers of the first see must stay until [`Self::quiesce`].
    /// The result is the first, for [`Self::rejoin`].
    pub fn part(&mut self) -> Arc<Lpm<A>> {
        let entrance = AtomicU64::new(self.table.entrance.load(Ordering::Relaxed));
        let arena = Arc::clone(&self.table.arena);
        let next = Arc::new(Lpm { arena, entrance, address: std::marker::PhantomData });
        std::mem::replace(&mut self.table, next)
    }

    /// Goes back to the table that readers had before [`Self::part`]: nobody has seen the other. Its routes are put
    /// back by whoever changed them, and then published.
    pub fn rejoin(&mut self, table: Arc<Lpm<A>>) {
        self.table = table;
    }

    /// The number of routes.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Adds a route or changes its value; the value it had. Bits of `address` beyond `length` are ignored.
    ///
    /// # Errors
    ///
    /// [`LpmError::LengthTooLong`] and [`LpmError::ReservedValue`].
    pub fn insert(&mut self, address: A, length: u8, value: u32) -> Result<Option<u32>, LpmError> {
        if value == NO_ROUTE {
            return Err(LpmError::ReservedValue);
        }
        let key = RouteKey::new(address, length)?;
        let old = self.routes.insert(key, value);
        if old != Some(value) {
            self.mark(&key);
        }
        Ok(old)
    }

    /// Removes a route; the value it had.
    ///
    /// # Errors
    ///
    /// [`LpmError::LengthTooLong`].
    pub fn remove(&mut self, address: A, length: u8) -> Result<Option<u32>, LpmError> {
        let key = RouteKey::new(address, length)?;
        let old = self.routes.remove(&key);
        if old.is_some() {
            self.mark(&key);
        }
        Ok(old)
    }

    /// The value of exactly this prefix, published or not.
    pub fn get_exact(&self, address: A, length: u8) -> Option<u32> {
        self.routes.get(&RouteKey::new(address, length).ok()?).copied()
    }

    /// Every route as (address, length, value), published or not; sorted for no reader's sake.
    pub fn iter(&self) -> impl Iterator<Item = (A, u8, u32)> + '_ {
        self.routes.iter().map(|(key, &value)| (key.address, key.length, value))
    }

    fn mark(&mut self, key: &RouteKey<A>) {
        if let Some(nodes) = self.dirty.get_mut(usize::from(key.depth / 8)) {
            nodes.insert(key.node);
        }
    }

    /// Makes all changes since the last publication visible, at once.
    ///
    /// # Errors
    ///
    /// [`LpmError::Full`]: nothing became visible, and all changes are kept for the next try.
    pub fn publish(&mut self) -> Result<(), LpmError> {
        if self.dirty.iter().all(HashSet::is_empty) {
            return Ok(());
        }
        let mut draft = Draft::default();
        let rebuilt =
            self.rebuild(&mut draft).and_then(|root| Some((root, self.write_start(&mut draft, root)?)));
        match rebuilt {
            Some((root, start)) => {
                (self.root, self.start) = (root, start);
                let entrance = Entrance { run: self.allocator.run(), start };
                self.table.entrance.store(entrance.pack(), Ordering::Release);
                self.dirty.iter_mut().for_each(HashSet::clear);
                for &block in &draft.replaced {
                    self.dense_nodes -= usize::from(block.is_dense());
                }
                self.retired.append(&mut draft.replaced);
                Ok(())
            }
            None => {
                // No reader has seen these.
                for block in draft.fresh {
                    self.dense_nodes -= usize::from(block.is_dense());
                    self.free(block);
                }
                Err(LpmError::Full)
            }
        }
    }

    /// Says that every reader has started a new burst since the last [`Self::publish`]: what that took out of
    /// the trie is used again. Without it the table grows with every change.
    pub fn quiesce(&mut self) {
        for block in std::mem::take(&mut self.retired) {
            self.free(block);
        }
    }

    /// Blocks waiting for [`Self::quiesce`].
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// The run of the arena that all blocks are in.
    fn newest(&self) -> View<'_> {
        self.table.arena.view(self.allocator.run())
    }

    fn free(&mut self, block: Reference) {
        let lines = if block.is_dense() {
            super::arena::MAX_LINES
        } else {
            node::lines_of(self.newest().load(block.first_word() + node::RANKS))
        };
        self.allocator.release(block, lines);
    }

    /// Writes new copies of all changed nodes and their ancestors, deepest first; the new root.
    fn rebuild(&mut self, draft: &mut Draft) -> Option<Reference> {
        let mut below: Vec<(A, Reference)> = Vec::new();
        for level in (0..A::WIDTH / 8).rev() {
            let depth = level * 8;
            let mask = A::mask(depth);
            let mut nodes: Vec<A> = below.iter().map(|(node, _)| *node & mask).collect();
            nodes.extend(self.dirty.get(usize::from(level)).into_iter().flatten());
            nodes.sort_unstable();
            nodes.dedup();
            let mut children = below.as_slice();
            let mut rebuilt = Vec::with_capacity(nodes.len());
            for node in nodes {
                let own = children.iter().take_while(|(child, _)| *child & mask == node).count();
                let (own, rest) = children.split_at_checked(own)?;
                children = rest;
                rebuilt.push((node, self.rebuild_node(draft, node, depth, own)?));
            }
            below = rebuilt;
        }
        below.first().map(|&(_, root)| root)
    }

    /// Writes the block that tells look-ups where to start: below all the nodes through which there is one way only.
    fn write_start(&mut self, draft: &mut Draft, root: Reference) -> Option<Reference> {
        let mut start = Start { node: root, depth: 0, default: NO_ROUTE, prefix: A::default() };
        while start.node != Reference::NONE && start.depth + 8 < A::WIDTH {
            let entries = (0..=u8::MAX).map(|byte| (byte, self.newest().entry(start.node, byte)));
            let mut ways = entries.clone().filter(|(_, entry)| child(*entry) != Reference::NONE);
            let (Some((byte, only)), None) = (ways.next(), ways.next()) else { break };
            if entries.clone().any(|(_, entry)| value(entry) != value(only)) {
                break;
            }
            start = Start {
                node: child(only),
                depth: start.depth + 8,
                default: if value(only) == NO_ROUTE { start.default } else { value(only) },
                prefix: start.prefix | A::from_byte(byte, start.depth),
            };
        }
        let few = if A::WIDTH == u32::BITS as u8 && self.routes.len() <= few::MOST {
            few::words(self.iter().map(|(address, length, value)| (address.widen() as u32, length, value)))
        } else {
            Vec::new()
        };
        let words = start.words(&few);
        let block = self.allocator.allocate(&self.table.arena, words.len().div_ceil(LINE_WORDS))?;
        draft.fresh.push(block);
        if self.start != Reference::NONE {
            draft.replaced.push(self.start);
        }
        for (position, word) in (block.first_word()..).zip(words) {
            self.newest().store(position, word);
        }
        Some(block)
    }

    /// Writes a new copy of one node, with `children` in place of those it had; none if nothing is left in it.
    fn rebuild_node(
        &mut self,
        draft: &mut Draft,
        address: A,
        depth: u8,
        children: &[(A, Reference)],
    ) -> Option<Reference> {
        let old = self.find(address, depth);
        let mut slots: Slots = [node::EMPTY; 256];
        if old != Reference::NONE {
            draft.replaced.push(old);
            for (byte, slot) in (0..=u8::MAX).zip(&mut slots) {
                *slot = entry(NO_ROUTE, child(self.newest().entry(old, byte)));
            }
        }
        for (below, reference) in children {
            if let Some(slot) = slots.get_mut(usize::from(below.byte(depth))) {
                *slot = entry(NO_ROUTE, *reference);
            }
        }
        self.paint(&mut slots, address, depth);
        if slots.iter().all(|&slot| slot == node::EMPTY) {
            return Some(Reference::NONE);
        }
        let encoded = Encoded::new(&slots, depth == 0 || self.dense_nodes < SPARE_DENSE_NODES);
        let block = self.allocator.allocate(&self.table.arena, encoded.lines())?;
        for (position, word) in (block.first_word()..).zip(encoded.words()) {
            self.newest().store(position, word);
        }
        self.dense_nodes += usize::from(encoded.dense);
        let block = if encoded.dense { block.dense() } else { block };
        draft.fresh.push(block);
        Some(block)
    }

    /// Lays the values of a node's own routes over its slots, shortest prefix first.
    fn paint(&self, slots: &mut Slots, address: A, depth: u8) {
        let first = RouteKey { depth, node: address, length: 0, address: A::default() };
        let last = RouteKey { depth, node: address, length: u8::MAX, address: A::MAX };
        for (route, &route_value) in self.routes.range(first..=last) {
            let start = usize::from(route.address.byte(depth));
            let covered = 1usize << (depth + 8 - route.length.max(depth)).min(8);
            for slot in slots.iter_mut().skip(start).take(covered) {
                *slot = entry(route_value, child(*slot));
                debug_assert_eq!(value(*slot), route_value);
            }
        }
    }

    /// The published node of an address and depth.
    fn find(&self, address: A, depth: u8) -> Reference {
        let mut node = self.root;
        let mut level = 0;
        while level < depth && node != Reference::NONE {
            node = child(self.newest().entry(node, address.byte(level)));
            level += 8;
        }
        node
    }
}
