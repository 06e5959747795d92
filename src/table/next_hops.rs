//! Next hops by number: what the values of route tables mean.
//!
//! Workers read it while the control thread adds to it: a number that is in use never changes its meaning, so that
//! no route has to change when another next hop comes.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use super::{
    choice::{Choice, Tier},
    tables::NextHop,
};

/// What a number stands for.
#[derive(Debug)]
pub enum Hop {
    /// One way.
    One(NextHop),
    /// The best of several.
    Choice(Arc<Choice>),
}

/// Numbers in the first run; every further one has as many as all before it.
const FIRST: u32 = 1024;
/// Two million numbers.
const RUNS: usize = 12;

type Run = Box<[OnceLock<Hop>]>;

/// The next hops that workers read.
#[derive(Debug, Default)]
pub struct NextHops {
    runs: [OnceLock<Run>; RUNS],
}

/// The run that has a number, and its place there.
#[inline(always)]
const fn place(number: u32) -> (usize, usize) {
    let run = u32::BITS - (number / FIRST).leading_zeros();
    let first = if run == 0 { 0 } else { FIRST << (run - 1) };
    (run as usize, (number - first) as usize)
}

impl NextHops {
    /// What the number stands for.
    #[inline]
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Hop> {
        let (run, place) = place(number);
        self.runs.get(run)?.get()?.get(place)?.get()
    }

    /// The one way that the number stands for, if it is no choice.
    #[inline]
    #[must_use]
    pub fn one(&self, number: u32) -> Option<&NextHop> {
        match self.get(number)? {
            Hop::One(hop) => Some(hop),
            Hop::Choice(_) => None,
        }
    }

    /// All that are in use, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Hop)> {
        let runs = self.runs.iter().filter_map(OnceLock::get).flat_map(|run| run.iter());
        (0..).zip(runs).filter_map(|(number, slot)| Some((number, slot.get()?)))
    }

    /// Control: gives a free number its meaning. `false` when there are no more numbers.
    fn set(&self, number: u32, hop: Hop) -> bool {
        let (run, place) = place(number);
        let Some(slots) = self.runs.get(run) else { return false };
        let length = if run == 0 { FIRST } else { FIRST << (run - 1) };
        let slots = slots.get_or_init(|| (0..length).map(|_| OnceLock::new()).collect());
        slots.get(place).is_some_and(|slot| slot.set(hop).is_ok())
    }
}

/// The tiers of a choice: number and weight of each next hop, those of the best tier first.
pub type Tiers = Vec<Vec<(u32, u8)>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    One(NextHop),
    Choice(Tiers),
}

/// Who gives numbers: the only one that changes a [`NextHops`].
#[derive(Debug, Default)]
pub struct NextHopWriter {
    table: Arc<NextHops>,
    numbers: HashMap<Name, u32>,
    next: u32,
}

impl NextHopWriter {
    /// What workers read.
    #[must_use]
    pub const fn table(&self) -> &Arc<NextHops> {
        &self.table
    }

    /// The number of a next hop, which is given once. `None` when there are no more numbers.
    pub fn one(&mut self, hop: NextHop) -> Option<u32> {
        self.number(Name::One(hop), || Hop::One(hop))
    }

    /// The number for the best of several next hops; the only one's own where there is no choice.
    pub fn choice(&mut self, tiers: Tiers) -> Option<u32> {
        if let [tier] = tiers.as_slice()
            && let [(only, _)] = tier.as_slice()
        {
            return Some(*only);
        }
        let table = Arc::clone(&self.table);
        let made = |tiers: &Tiers| {
            let leads = |&(hop, weight): &(u32, u8)| Some((hop, weight, *table.one(hop)?));
            let tier = |hops: &Vec<_>| Tier::new(&hops.iter().filter_map(leads).collect::<Vec<_>>());
            Hop::Choice(Arc::new(Choice::new(tiers.iter().map(tier).collect())))
        };
        let name = Name::Choice(tiers);
        let Name::Choice(tiers) = &name else { return None };
        if let Some(number) = self.numbers.get(&name) {
            return Some(*number);
        }
        let hop = made(tiers);
        self.number(name, || hop)
    }

    fn number(&mut self, name: Name, hop: impl FnOnce() -> Hop) -> Option<u32> {
        if let Some(number) = self.numbers.get(&name) {
            return Some(*number);
        }
        let number = self.next;
        if !self.table.set(number, hop()) {
            return None;
        }
        self.next += 1;
        self.numbers.insert(name, number);
        Some(number)
    }
}
