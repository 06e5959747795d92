//! Which rules share a hash table.
//!
//! Rules of equal prefix lengths stay together. A table keyed by shorter prefixes can take rules with longer ones
//! too, as long as few of its buckets get crowded. Each round tries keys made of the lengths that occur and keeps
//! the table that takes most rules; so a handful of tables serves any mixture of lengths.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Address;
use super::rule::Rule;

/// Rules in a bucket that are compared one by one; above, the bucket becomes a tree.
pub const BUCKET_RULES: usize = 8;
/// Rules in a bucket above which it counts as crowded when rules with longer prefixes want to join.
const ROOM: usize = 4;
/// A group may join if at most one in so many of its rules ends in a crowded bucket.
const CROWDED_SHARE: usize = 16;
/// The most tables; the rules that are left when they are used up share one bucket.
const MAX_TABLES: usize = 24;
/// Lengths of each side that a round tries.
const LENGTHS_TRIED: usize = 5;

/// The keys of a table with their rules.
pub type Contents<A> = Vec<((A, A), Vec<Rule<A>>)>;

/// Rules of one pair of prefix lengths, by their places in the list.
struct Group {
    source: u8,
    destination: u8,
    rules: Vec<u32>,
}

/// A table while rules are handed out.
pub struct Draft<A> {
    source: u8,
    destination: u8,
    taken: usize,
    buckets: HashMap<(A, A), Vec<u32>>,
}

impl<A: Address> Draft<A> {
    fn new(source: u8, destination: u8) -> Self {
        Self { source, destination, taken: 0, buckets: HashMap::new() }
    }

    /// Lengths of source and destination in the table's key.
    pub fn lengths(&self) -> (u8, u8) {
        (self.source, self.destination)
    }

    fn key(&self, rule: &Rule<A>) -> (A, A) {
        let (source, destination) = rule.addresses();
        (source & A::mask(self.source), destination & A::mask(self.destination))
    }

    /// Takes the group if its prefixes are long enough and few of its rules would be crowded; in any case if the
    /// table is made for its lengths.
    fn offer(&mut self, rules: &[Rule<A>], group: &Group) -> bool {
        if self.source > group.source || self.destination > group.destination {
            return false;
        }
        let members = || group.rules.iter().filter_map(|&place| Some((place, rules.get(place as usize)?)));
        if (self.source, self.destination) != (group.source, group.destination) {
            let mut more: HashMap<(A, A), usize> = HashMap::new();
            let crowded = members().filter(|(_, rule)| {
                let key = self.key(rule);
                let count = more.entry(key).or_insert_with(|| self.buckets.get(&key).map_or(0, Vec::len));
                *count += 1;
                *count > ROOM
            });
            if crowded.count() * CROWDED_SHARE > group.rules.len() {
                return false;
            }
        }
        for (place, rule) in members() {
            self.buckets.entry(self.key(rule)).or_default().push(place);
        }
        self.taken += group.rules.len();
        true
    }

    /// Every key with its rules in order of priority. Keys are sorted, so that neighbours in address space become
    /// neighbours in memory.
    pub fn contents(&self, rules: &[Rule<A>]) -> Contents<A> {
        let sorted: BTreeMap<_, _> = self.buckets.iter().collect();
        let members = |places: &Vec<u32>| {
            // Places in the list of rules are in order of priority.
            let places: BTreeSet<u32> = places.iter().copied().collect();
            places.iter().filter_map(|&place| rules.get(place as usize)).copied().collect()
        };
        sorted.into_iter().map(|(key, places)| (*key, members(places))).collect()
    }
}

/// Hands all rules out to tables.
pub fn group<A: Address>(rules: &[Rule<A>]) -> Vec<Draft<A>> {
    if rules.is_empty() {
        return Vec::new();
    }
    let mut lengths: BTreeMap<(u8, u8), Vec<u32>> = BTreeMap::new();
    for (place, rule) in rules.iter().enumerate() {
        lengths.entry(rule.lengths()).or_default().push(place as u32);
    }
    let mut groups: Vec<Group> = lengths
        .into_iter()
        .map(|((source, destination), rules)| Group { source, destination, rules })
        .collect();
    // The largest first: they are worth most.
    groups.sort_by_key(|group| std::cmp::Reverse(group.rules.len()));
    let mut drafts = Vec::new();
    while rules.len() > BUCKET_RULES && drafts.len() + 1 < MAX_TABLES {
        let Some(largest) = groups.first() else { return drafts };
        let mut best = draft_of(rules, &groups, largest.source, largest.destination);
        for source in tried(groups.iter().map(|group| group.source)) {
            for destination in tried(groups.iter().map(|group| group.destination)) {
                let draft = draft_of(rules, &groups, source, destination);
                let worth =
                    |draft: &Draft<A>| (draft.taken, u16::from(draft.source) + u16::from(draft.destination));
                if worth(&draft) > worth(&best) {
                    best = draft;
                }
            }
        }
        let mut again = Draft::new(best.source, best.destination);
        groups.retain(|group| !again.offer(rules, group));
        drafts.push(again);
    }
    if !groups.is_empty() {
        let mut rest = Draft::new(0, 0);
        for group in &mut groups {
            (group.source, group.destination) = (0, 0);
            rest.offer(rules, group);
        }
        drafts.push(rest);
    }
    drafts
}

fn draft_of<A: Address>(rules: &[Rule<A>], groups: &[Group], source: u8, destination: u8) -> Draft<A> {
    let mut draft = Draft::new(source, destination);
    for group in groups {
        draft.offer(rules, group);
    }
    draft
}

/// Some of the lengths that occur, evenly chosen, the shortest among them.
fn tried(lengths: impl Iterator<Item = u8>) -> Vec<u8> {
    let distinct: Vec<u8> = lengths.collect::<BTreeSet<_>>().into_iter().collect();
    let step = distinct.len().div_ceil(LENGTHS_TRIED).max(1);
    // Zero occurs in most lists, as "any"; the shortest true prefix must not be skipped because of it.
    let any = distinct.first().filter(|&&length| length == 0).map(|_| 0);
    any.into_iter().chain(distinct.iter().copied().filter(|&length| length > 0).step_by(step)).collect()
}
