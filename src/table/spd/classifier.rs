//! The hash tables over the first bits of source and destination.

use super::draft::{Draft, group};
use super::few::Few;
use super::rule::{Key, Rule};
use super::tree::{self, Leaf, Node};
use super::{Address, BURST, NO_POLICY};
use crate::table::hash::{Places, Seed};
use crate::table::prefetch::prefetch_read;

/// Bytes up to which a classifier counts as always in the nearest caches, where prefetch only costs.
const NEAR_BYTES: usize = 24 << 10;

/// A run of rules (first in the upper 24 bits, number in the lower 8) or a tree (its root, and [`Bucket::TREE`] in
/// the lower bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket(u32);

impl Bucket {
    /// The rule that every list starts with: it covers nothing.
    const NOTHING: Self = Self::new(0, 1);
    const TREE: u32 = 0xFF;

    pub const fn new(start: u32, count: u32) -> Self {
        Self(start << 8 | count)
    }

    pub const fn tree(root: u32) -> Self {
        Self::new(root, Self::TREE)
    }

    #[inline(always)]
    const fn start(self) -> u32 {
        self.0 >> 8
    }

    #[inline(always)]
    const fn count(self) -> u32 {
        self.0 & 0xFF
    }
}

/// The rules whose prefixes are at least as long as the table's.
#[derive(Debug)]
struct Table<A> {
    seed: Seed,
    source_mask: A,
    destination_mask: A,
    /// The best priority in the table.
    best: u32,
    places: Places,
    /// By place; [`Bucket::NOTHING`] where no rule is. What a stranger finds, its rules refuse.
    buckets: Box<[Bucket]>,
    /// The rules, where they are few and for packets of any addresses: every packet is compared with all of them.
    few: Option<Few>,
}

impl<A: Address> Table<A> {
    #[inline(always)]
    fn hash(&self, key: &Key<A>) -> u64 {
        A::hash_pair(key.source & self.source_mask, key.destination & self.destination_mask, &self.seed)
    }

    /// The only bucket, if both masks are empty: no need to hash.
    #[inline(always)]
    fn whole(&self) -> Option<Bucket> {
        match *self.buckets {
            [bucket] => Some(bucket),
            _ => None,
        }
    }

    #[inline(always)]
    fn bucket(&self, place: usize) -> Bucket {
        self.buckets.get(place).copied().unwrap_or(Bucket::NOTHING)
    }
}

/// The rules of one IP version.
#[derive(Debug)]
pub struct Classifier<A> {
    /// In order of best priority.
    tables: Box<[Table<A>]>,
    rules: Box<[Rule<A>]>,
    nodes: Box<[Node<A>]>,
    near: bool,
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
            let bucket = table.whole().unwrap_or_else(|| table.bucket(table.places.of(table.hash(key))));
            best = best.min(self.scan(bucket, key));
        }
        best
    }

    /// The best policy in a bucket.
    #[inline(always)]
    fn scan(&self, bucket: Bucket, key: &Key<A>) -> u32 {
        let leaf = if bucket.count() == Bucket::TREE {
            match tree::find(&self.nodes, bucket.start(), key) {
                Some(leaf) => leaf,
                None => return NO_POLICY,
            }
        } else {
            Leaf { start: bucket.start(), count: bucket.count() }
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
            results.fill(NO_POLICY);
            for table in &self.tables {
                if results.iter().all(|best| table.best >= *best) {
                    break;
                }
                self.probe(table, keys, results);
            }
        }
    }

    /// All rules, when they are few: then comparing every key with each of them costs least.
    #[inline]
    pub fn few(&self) -> Option<&[Rule<A>]> {
        let bucket = match &*self.tables {
            [table] => table.whole()?,
            _ => return None,
        };
        if bucket.count() == Bucket::TREE {
            return None;
        }
        let start = bucket.start() as usize;
        self.rules.get(start..start + bucket.count() as usize)
    }

    /// One table for a whole burst. Whether a key finds its rule in this table is random, so nothing branches on it:
    /// the first rule of every bucket is compared, and what needs more than that is noted and done at the end.
    fn probe(&self, table: &Table<A>, keys: &[Key<A>], results: &mut [u32]) {
        if let Some(few) = &table.few {
            for (key, best) in keys.iter().zip(results) {
                *best = few.find_key(key).min(*best);
            }
            return;
        }
        let mut buckets = [Bucket::NOTHING; BURST];
        match table.whole() {
            Some(bucket) => buckets.fill(bucket),
            None if self.near => {
                for (bucket, key) in buckets.iter_mut().zip(keys) {
                    *bucket = table.bucket(table.places.of(table.hash(key)));
                }
            }
            None => self.find_far(table, keys, &mut buckets),
        }
        let mut more = [0u8; BURST];
        let mut count = 0;
        for (place, ((bucket, key), best)) in (0u8..).zip(buckets.iter().zip(keys).zip(results.iter_mut())) {
            let rule =
                if bucket.count() == Bucket::TREE { None } else { self.rules.get(bucket.start() as usize) };
            if let Some(rule) = rule {
                let found = if rule.matches(key) { rule.policy } else { NO_POLICY };
                *best = found.min(*best);
            }
            if let Some(next) = more.get_mut(count) {
                *next = place;
            }
            count += usize::from(bucket.count() > 1);
        }
        for place in more.iter().take(count) {
            let place = usize::from(*place);
            if let (Some(bucket), Some(key), Some(best)) =
                (buckets.get(place), keys.get(place), results.get_mut(place))
                && table.best < *best
            {
                *best = (*best).min(self.scan(*bucket, key));
            }
        }
    }

    /// The bucket of every key, and its first rule on the way to the cache: step by step, so that the misses of
    /// each step overlap.
    #[inline(always)]
    fn find_far(&self, table: &Table<A>, keys: &[Key<A>], buckets: &mut [Bucket; BURST]) {
        let mut hashes = [0u64; BURST];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = table.hash(key);
            table.places.prefetch(*hash);
        }
        let mut places = [0usize; BURST];
        for ((place, hash), _) in places.iter_mut().zip(hashes).zip(keys) {
            *place = table.places.of(hash);
            if let Some(bucket) = table.buckets.get(*place) {
                prefetch_read(bucket);
            }
        }
        for ((bucket, place), _) in buckets.iter_mut().zip(places).zip(keys) {
            *bucket = table.bucket(place);
            // For a tree this asks for some other rule: no branch is worth that.
            if let Some(rule) = self.rules.get(bucket.start() as usize) {
                prefetch_read(rule);
            }
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let table = |table: &Table<A>| size_of_val::<[Bucket]>(&table.buckets) + table.places.memory();
        self.tables.iter().map(table).sum::<usize>()
            + size_of_val::<[Rule<A>]>(&self.rules)
            + size_of_val::<[Node<A>]>(&self.nodes)
    }

    /// The number of tables.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Builds the classifier of rules that stand in order of priority.
    pub fn build(rules: &[Rule<A>], seed: Seed) -> Self {
        let mut stored = vec![Rule::never()];
        let mut nodes = Vec::new();
        let mut tables: Vec<_> = group(rules)
            .iter()
            .map(|draft| build_table(draft, rules, seed, &mut stored, &mut nodes))
            .collect();
        tables.sort_by_key(|table| table.best);
        let mut classifier =
            Self { tables: tables.into(), rules: stored.into(), nodes: nodes.into(), near: true };
        classifier.near = classifier.memory() <= NEAR_BYTES;
        classifier
    }
}

fn build_table<A: Address>(
    draft: &Draft<A>,
    rules: &[Rule<A>],
    mut seed: Seed,
    stored: &mut Vec<Rule<A>>,
    nodes: &mut Vec<Node<A>>,
) -> Table<A> {
    let contents = draft.contents(rules);
    let best = contents.iter().flat_map(|(_, members)| members).map(|rule| rule.policy).min();
    let hash = |seed: &Seed, (source, destination): (A, A)| A::hash_pair(source, destination, seed);
    let places = loop {
        let hashes: Vec<u64> = contents.iter().map(|(key, _)| hash(&seed, *key)).collect();
        match Places::build(&hashes) {
            Some(places) => break places,
            None => seed = seed.next(),
        }
    };
    let (source_length, destination_length) = draft.lengths();
    let whole = source_length == 0 && destination_length == 0;
    let mut buckets = vec![Bucket::NOTHING; if whole { 1 } else { places.len() }];
    let few = match contents.as_slice() {
        [(_, members)] if whole => Few::of(members),
        _ => None,
    };
    for (key, members) in contents {
        let bucket = if members.len() <= super::draft::BUCKET_RULES {
            let start = stored.len() as u32;
            let count = members.len() as u32;
            stored.extend(members);
            Bucket::new(start, count)
        } else {
            Bucket::tree(tree::build(&members, nodes, stored))
        };
        let place = if whole { 0 } else { places.of(hash(&seed, key)) };
        if let Some(slot) = buckets.get_mut(place) {
            *slot = bucket;
        }
    }
    Table {
        seed,
        source_mask: A::mask(source_length),
        destination_mask: A::mask(destination_length),
        best: best.unwrap_or(NO_POLICY),
        places,
        buckets: buckets.into(),
        few,
    }
}
