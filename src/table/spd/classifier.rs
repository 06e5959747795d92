//! The hash tables over the first bits of source and destination.

use std::collections::{BTreeMap, HashMap};

use super::rule::{Key, Rule};
use super::tree::{self, Leaf, Node};
use super::{Address, BURST, NO_POLICY};
use crate::table::hash::Seed;
use crate::table::prefetch::prefetch_read;

/// Rules in a bucket that are compared one by one; above, the bucket becomes a tree.
const BUCKET_RULES: usize = 8;
/// The most tables; when they are used up, buckets get crowded instead.
const MAX_TABLES: usize = 24;
/// How many of the tables that could take a group of rules are tried before it gets a new one.
const CANDIDATES: usize = 4;
/// Bytes up to which a classifier counts as always in the nearest caches, where prefetch only costs.
const NEAR_BYTES: usize = 24 << 10;

/// Where the rules are that a hash names. Half of the slots of a table are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    tag: u32,
    bucket: Bucket,
}

/// A run of rules (first in the upper 24 bits, number in the lower 8), a tree (its root, and [`Bucket::TREE`] in
/// the lower bits), or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket(u32);

impl Bucket {
    const EMPTY: Self = Self(0);
    const TREE: u32 = 0xFF;

    const fn new(start: u32, count: u32) -> Self {
        Self(start << 8 | count)
    }
}

/// The rules whose prefixes are at least as long as the table's.
#[derive(Debug)]
struct Table<A> {
    source_mask: A,
    destination_mask: A,
    /// The best priority in the table.
    best: u32,
    /// The only bucket, if both masks are empty: no need to hash.
    whole: Bucket,
    slots: Box<[Slot]>,
}

/// The rules of one IP version.
#[derive(Debug)]
pub struct Classifier<A> {
    seed: Seed,
    /// In order of best priority.
    tables: Box<[Table<A>]>,
    rules: Box<[Rule<A>]>,
    nodes: Box<[Node<A>]>,
    near: bool,
}

impl<A: Address> Table<A> {
    #[inline(always)]
    fn hash(&self, key: &Key<A>, seed: &Seed) -> u64 {
        A::hash_pair(key.source & self.source_mask, key.destination & self.destination_mask, seed)
    }

    #[inline(always)]
    fn slot(&self, position: usize) -> Option<&Slot> {
        self.slots.get(position & self.slots.len().wrapping_sub(1))
    }
}

#[inline(always)]
const fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

impl<A: Address> Classifier<A> {
    /// The place of the best policy that matches, or [`NO_POLICY`].
    #[inline]
    pub fn lookup(&self, key: &Key<A>) -> u32 {
        let mut best = NO_POLICY;
        for table in &self.tables {
            if table.best >= best {
                break;
            }
            if table.whole == Bucket::EMPTY {
                best = self.probe(table, table.hash(key, &self.seed), key, best);
            } else {
                best = best.min(self.scan(table.whole, key));
            }
        }
        best
    }

    /// The best of `best` and what one table says. Two keys may share hash and tag, so the walk goes on to the first
    /// empty slot; the rules themselves decide.
    #[inline(always)]
    fn probe(&self, table: &Table<A>, hash: u64, key: &Key<A>, mut best: u32) -> u32 {
        let mut position = hash as usize;
        while let Some(slot) = table.slot(position) {
            if slot.bucket == Bucket::EMPTY {
                break;
            }
            if slot.tag == tag_of(hash) {
                best = best.min(self.scan(slot.bucket, key));
            }
            position = position.wrapping_add(1);
        }
        best
    }

    /// The best policy in a bucket.
    #[inline(always)]
    fn scan(&self, bucket: Bucket, key: &Key<A>) -> u32 {
        let (start, count) = (bucket.0 >> 8, bucket.0 & 0xFF);
        let leaf = if count == Bucket::TREE {
            match tree::find(&self.nodes, start, key) {
                Some(leaf) => leaf,
                None => return NO_POLICY,
            }
        } else {
            Leaf { start, count }
        };
        let rules = self.rules.get(leaf.start as usize..).unwrap_or_default();
        for rule in rules.iter().take(leaf.count as usize) {
            if rule.matches(key) {
                return rule.policy;
            }
        }
        NO_POLICY
    }

    /// As [`Self::lookup`] for each key.
    pub fn lookup_burst(&self, keys: &[Key<A>], results: &mut [u32]) {
        for (keys, results) in keys.chunks(BURST).zip(results.chunks_mut(BURST)) {
            if self.near {
                for (key, result) in keys.iter().zip(results) {
                    *result = self.lookup(key);
                }
            } else {
                self.lookup_together(keys, results);
            }
        }
    }

    fn lookup_together(&self, keys: &[Key<A>], results: &mut [u32]) {
        results.fill(NO_POLICY);
        for table in &self.tables {
            if results.iter().all(|best| table.best >= *best) {
                break;
            }
            if table.whole == Bucket::EMPTY {
                self.probe_together(table, keys, results);
            } else {
                for (key, best) in keys.iter().zip(results.iter_mut()) {
                    if table.best < *best {
                        *best = (*best).min(self.scan(table.whole, key));
                    }
                }
            }
        }
    }

    /// One table for a whole burst: first all slots are asked for, then the rules they name, then all are read.
    fn probe_together(&self, table: &Table<A>, keys: &[Key<A>], results: &mut [u32]) {
        let mut hashes = [0u64; BURST];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = table.hash(key, &self.seed);
            if let Some(slot) = table.slot(*hash as usize) {
                prefetch_read(slot);
            }
        }
        for hash in hashes.iter().take(keys.len()) {
            if let Some(slot) = table.slot(*hash as usize) {
                // An empty slot asks for the first rule: a harmless line, and no branch.
                match slot.bucket.0 & 0xFF {
                    Bucket::TREE => {}
                    _ => {
                        if let Some(rule) = self.rules.get((slot.bucket.0 >> 8) as usize) {
                            prefetch_read(rule);
                        }
                    }
                }
            }
        }
        for ((hash, key), best) in hashes.iter().zip(keys).zip(results) {
            if table.best < *best {
                *best = self.probe(table, *hash, key, *best);
            }
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.tables.iter().map(|table| size_of_val::<[Slot]>(&table.slots)).sum::<usize>()
            + size_of_val::<[Rule<A>]>(&self.rules)
            + size_of_val::<[Node<A>]>(&self.nodes)
    }

    /// The number of tables.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Builds the classifier of rules that stand in order of priority.
    pub fn build(rules: Vec<Rule<A>>, seed: Seed) -> Self {
        let mut classifier = Self { seed, tables: [].into(), rules: [].into(), nodes: [].into(), near: true };
        let (mut stored, mut nodes) = (Vec::with_capacity(rules.len()), Vec::new());
        let mut tables: Vec<_> = group(&rules)
            .into_iter()
            .map(|draft| draft.finish(&rules, &seed, &mut stored, &mut nodes))
            .collect();
        tables.sort_by_key(|table| table.best);
        classifier.tables = tables.into_boxed_slice();
        classifier.rules = stored.into_boxed_slice();
        classifier.nodes = nodes.into_boxed_slice();
        classifier.near = classifier.memory() <= NEAR_BYTES;
        classifier
    }
}

/// A table while rules are handed out.
#[derive(Default)]
struct Draft<A> {
    source_length: u8,
    destination_length: u8,
    buckets: HashMap<(A, A), Vec<u32>>,
}

impl<A: Address> Draft<A> {
    fn key(&self, rule: &Rule<A>) -> (A, A) {
        let (source, destination) = rule.addresses();
        (source & A::mask(self.source_length), destination & A::mask(self.destination_length))
    }

    fn accepts(&self, (source, destination): (u8, u8)) -> bool {
        self.source_length <= source && self.destination_length <= destination
    }

    /// Whether no bucket would get crowded by these rules.
    fn has_room(&self, rules: &[Rule<A>], group: &[u32]) -> bool {
        let mut more: HashMap<(A, A), usize> = HashMap::new();
        group.iter().filter_map(|&place| rules.get(place as usize)).all(|rule| {
            let key = self.key(rule);
            let count = more.entry(key).or_insert_with(|| self.buckets.get(&key).map_or(0, Vec::len));
            *count += 1;
            *count <= BUCKET_RULES
        })
    }

    fn add(&mut self, rules: &[Rule<A>], group: &[u32]) {
        for &place in group {
            if let Some(rule) = rules.get(place as usize) {
                self.buckets.entry(self.key(rule)).or_default().push(place);
            }
        }
    }

    fn finish(
        self,
        rules: &[Rule<A>],
        seed: &Seed,
        stored: &mut Vec<Rule<A>>,
        nodes: &mut Vec<Node<A>>,
    ) -> Table<A> {
        let mut table = Table {
            source_mask: A::mask(self.source_length),
            destination_mask: A::mask(self.destination_length),
            best: self
                .buckets
                .values()
                .flatten()
                .filter_map(|&place| rules.get(place as usize))
                .fold(NO_POLICY, |best, rule| best.min(rule.policy)),
            whole: Bucket::EMPTY,
            slots: vec![Slot::default(); (self.buckets.len() * 2).next_power_of_two()].into(),
        };
        // Sorted, so that neighbours in address space are neighbours in memory.
        let buckets: BTreeMap<_, _> = self.buckets.into_iter().collect();
        for ((source, destination), mut places) in buckets {
            // Places in the list of rules are in order of priority.
            places.sort_unstable();
            let bucket = if places.len() <= BUCKET_RULES {
                let start = stored.len() as u32;
                stored.extend(places.iter().filter_map(|&place| rules.get(place as usize)));
                Bucket::new(start, places.len() as u32)
            } else {
                let members: Vec<_> =
                    places.iter().filter_map(|&place| rules.get(place as usize)).copied().collect();
                Bucket::new(tree::build(&members, nodes, stored), Bucket::TREE)
            };
            if self.source_length == 0 && self.destination_length == 0 {
                table.whole = bucket;
                table.slots = [].into();
                break;
            }
            let hash = A::hash_pair(source, destination, seed);
            let mask = table.slots.len() - 1;
            let mut position = hash as usize & mask;
            while let Some(slot) = table.slots.get_mut(position) {
                if slot.bucket == Bucket::EMPTY {
                    *slot = Slot { tag: tag_of(hash), bucket };
                    break;
                }
                position = (position + 1) & mask;
            }
        }
        table
    }
}

/// Hands the rules out to tables: by prefix lengths, shortest first, each group to the table with the longest
/// prefixes that has room for it, or to a new one.
fn group<A: Address>(rules: &[Rule<A>]) -> Vec<Draft<A>> {
    let everything = || Draft { source_length: 0, destination_length: 0, buckets: HashMap::new() };
    if rules.len() <= BUCKET_RULES {
        let mut draft = everything();
        draft.add(rules, &(0..rules.len() as u32).collect::<Vec<_>>());
        return if rules.is_empty() { Vec::new() } else { vec![draft] };
    }
    let mut groups: BTreeMap<(u16, u8, u8), Vec<u32>> = BTreeMap::new();
    for (place, rule) in rules.iter().enumerate() {
        let (source, destination) = rule.lengths();
        let order = u16::from(source) + u16::from(destination);
        groups.entry((order, source, destination)).or_default().push(place as u32);
    }
    let mut drafts: Vec<Draft<A>> = Vec::new();
    for ((_, source_length, destination_length), group) in groups {
        // The newest have the longest prefixes.
        let fitting = || {
            (0..drafts.len()).rev().filter(|&at| {
                drafts.get(at).is_some_and(|draft| draft.accepts((source_length, destination_length)))
            })
        };
        let with_room = fitting()
            .take(CANDIDATES)
            .find(|&at| drafts.get(at).is_some_and(|draft| draft.has_room(rules, &group)));
        let chosen = match with_room {
            Some(at) => at,
            None if drafts.len() + 1 < MAX_TABLES => {
                drafts.push(Draft { source_length, destination_length, buckets: HashMap::new() });
                drafts.len() - 1
            }
            None => match fitting().next() {
                Some(at) => at,
                None => {
                    drafts.push(everything());
                    drafts.len() - 1
                }
            },
        };
        if let Some(draft) = drafts.get_mut(chosen) {
            draft.add(rules, &group);
        }
    }
    drafts
}
