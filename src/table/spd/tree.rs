//! A binary decision tree over the rules of one crowded bucket.
//!
//! Each node compares one field with one number (HyperSplit, Qi et al. 2009). A rule on both sides of the
//! number goes to both, so the largest leaf is split first and the splitting stops at a bound on the number of
//! copies: memory and building time are linear in the number of rules, and only rule sets made of overlaps in
//! every field keep leaves that are long. In a leaf, whatever stands behind a rule that covers the leaf's whole
//! region is dropped.

use std::collections::BinaryHeap;

use super::Address;
use super::rule::{FIELDS, Field, Key, Rule};

/// Rules in a leaf that is not worth splitting.
const LEAF_RULES: usize = 8;
/// Copies of rules in a tree, for each rule.
const COPIES: usize = 16;
/// Rules looked at while a tree is built, for each rule: no set of rules takes longer than linear time.
const VISITS: usize = 256;

/// A run of rules in the classifier's list, in order of priority.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    pub start: u32,
    pub count: u32,
}

/// A node: an inner one compares, a leaf names rules.
#[derive(Clone, Copy, Debug)]
pub enum Node<A> {
    /// Below `threshold` in `field`: go to the node `below`, else to the next one after it.
    Split { field: Field, below: u32, threshold: A },
    /// The end.
    Leaf(Leaf),
}

/// The leaf of a key, from the node `root`. A child stands behind its parent, so the walk ends.
#[inline(always)]
pub fn find<A: Address>(nodes: &[Node<A>], root: u32, key: &Key<A>) -> Option<Leaf> {
    let mut place = root as usize;
    loop {
        match nodes.get(place)? {
            Node::Leaf(leaf) => return Some(*leaf),
            Node::Split { field, below, threshold } => {
                place = *below as usize + usize::from(key.field(*field) >= *threshold);
            }
        }
    }
}

/// First and last number in each of [`FIELDS`].
type Region = [(u128, u128); FIELDS.len()];

/// A leaf while the tree is built. The number of rules comes first: a heap gives the largest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    size: usize,
    rules: Vec<u32>,
    place: usize,
    region: Region,
}

/// What the splitting of a leaf would do.
struct Plan {
    field: usize,
    threshold: u128,
    below: usize,
    above: usize,
}

/// Builds a tree over `rules` (in order of priority) behind what `nodes` and `stored` hold; its root.
pub fn build<A: Address>(rules: &[Rule<A>], nodes: &mut Vec<Node<A>>, stored: &mut Vec<Rule<A>>) -> u32 {
    let root = nodes.len();
    let everything = FIELDS.map(|field| match field {
        Field::Source | Field::Destination => (0, A::MAX.widen()),
        Field::SourcePort | Field::DestinationPort => (0, 1 << 16),
        Field::Protocol => (0, 255),
    });
    let all = within(rules, (0..rules.len() as u32).collect(), &everything);
    let mut copies = all.len();
    let bound = rules.len() * COPIES;
    let mut visits = rules.len() * VISITS;
    let mut open =
        BinaryHeap::from([Candidate { size: all.len(), rules: all, place: root, region: everything }]);
    let mut closed = Vec::new();
    nodes.push(Node::Leaf(Leaf { start: 0, count: 0 }));
    while let Some(leaf) = open.pop() {
        let splits = leaf.size > LEAF_RULES && leaf.size <= visits;
        visits = visits.saturating_sub(leaf.size);
        let plan = if splits { plan(rules, &leaf) } else { None };
        let Some(plan) = plan.filter(|plan| copies - leaf.rules.len() + plan.below + plan.above <= bound)
        else {
            closed.push(leaf);
            continue;
        };
        let (mut lower, mut upper) = (leaf.region, leaf.region);
        if let (Some(lower), Some(upper)) = (lower.get_mut(plan.field), upper.get_mut(plan.field)) {
            lower.1 = plan.threshold - 1;
            upper.0 = plan.threshold;
        }
        let below = nodes.len();
        if let (Some(node), Some(&field)) = (nodes.get_mut(leaf.place), FIELDS.get(plan.field)) {
            *node = Node::Split { field, below: below as u32, threshold: A::truncate(plan.threshold) };
        }
        copies -= leaf.rules.len();
        for (place, region) in [(below, lower), (below + 1, upper)] {
            let rules = within(rules, leaf.rules.clone(), &region);
            copies += rules.len();
            nodes.push(Node::Leaf(Leaf { start: 0, count: 0 }));
            open.push(Candidate { size: rules.len(), rules, place, region });
        }
    }
    for leaf in closed {
        let place = Leaf { start: stored.len() as u32, count: leaf.rules.len() as u32 };
        stored.extend(leaf.rules.iter().filter_map(|&rule| rules.get(rule as usize)));
        if let Some(node) = nodes.get_mut(leaf.place) {
            *node = Node::Leaf(place);
        }
    }
    root as u32
}

/// Those of the rules that reach into the region, up to one that covers it all.
fn within<A: Address>(rules: &[Rule<A>], mut among: Vec<u32>, region: &Region) -> Vec<u32> {
    let ends = |place: u32| rules.get(place as usize).map(|rule| FIELDS.map(|field| rule.ends(field)));
    among.retain(|&place| {
        ends(place).is_some_and(|ends| {
            ends.iter().zip(region).all(|((low, high), (first, last))| low <= last && high >= first)
        })
    });
    let covering = among.iter().position(|&place| {
        ends(place).is_some_and(|ends| {
            ends.iter().zip(region).all(|((low, high), (first, last))| low <= first && high >= last)
        })
    });
    if let Some(covering) = covering {
        among.truncate(covering + 1);
    }
    among
}

/// The best split of a leaf: in each field at the median of the rules' ends, in the field where the two sides come
/// out smallest. None if every split leaves nearly all rules on both sides.
fn plan<A: Address>(rules: &[Rule<A>], leaf: &Candidate) -> Option<Plan> {
    let size = leaf.rules.len();
    let mut best: Option<Plan> = None;
    let mut ends = Vec::with_capacity(size * 2);
    for (field, (&name, &(first, last))) in FIELDS.iter().zip(&leaf.region).enumerate() {
        ends.clear();
        let members = || leaf.rules.iter().filter_map(|&rule| Some(rules.get(rule as usize)?.ends(name)));
        for (low, high) in members() {
            ends.extend((low > first).then_some(low));
            ends.extend((high < last).then(|| high + 1));
        }
        if ends.is_empty() {
            continue;
        }
        let middle = ends.len() / 2;
        let (_, &mut threshold, _) = ends.select_nth_unstable(middle);
        let below = members().filter(|(low, _)| *low < threshold).count();
        let above = members().filter(|(_, high)| *high >= threshold).count();
        let cost = |below: usize, above: usize| below * below + above * above;
        if below + above <= size + size * 7 / 8
            && best.as_ref().is_none_or(|best| cost(below, above) < cost(best.below, best.above))
        {
            best = Some(Plan { field, threshold, below, above });
        }
    }
    best
}
