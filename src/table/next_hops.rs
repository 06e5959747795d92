//! Next hops by number: what the values of route tables mean.
//!
//! Workers read it while the control thread adds to it: a number that is in use never changes its meaning, so that
//! no route has to change when another next hop comes.

use std::{
    collections::{HashMap, HashSet},
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

impl Hop {
    fn share(&self) -> Self {
        match self {
            Self::One(hop) => Self::One(*hop),
            Self::Choice(choice) => Self::Choice(Arc::clone(choice)),
        }
    }
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
    /// Tables that workers may still use. What is new goes into them too: routes may name it at once.
    before: Vec<Arc<NextHops>>,
    numbers: HashMap<Name, u32>,
    /// Numbers that mean nothing in any table.
    free: Vec<u32>,
    /// Numbers that mean nothing in `table`, but something in one of `before`.
    freed: Vec<u32>,
    /// The first number that was never given.
    next: u32,
}

/// How a [`NextHopWriter`] was: for [`NextHopWriter::go_back`].
#[derive(Debug)]
pub struct Mark {
    table: Arc<NextHops>,
    numbers: HashMap<Name, u32>,
}

impl NextHopWriter {
    /// What workers read.
    #[must_use]
    pub const fn table(&self) -> &Arc<NextHops> {
        &self.table
    }

    /// How many numbers are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether no number is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The number of a next hop, which is given once. `None` when there are no more numbers.
    pub fn one(&mut self, hop: NextHop) -> Option<u32> {
        self.number(Name::One(hop), |_| Hop::One(hop))
    }

    /// The number that a next hop has, if it has one.
    #[must_use]
    pub fn known(&self, hop: NextHop) -> Option<u32> {
        self.numbers.get(&Name::One(hop)).copied()
    }

    /// The number for the best of several next hops; the only one's own where there is no choice. `None` when there
    /// are no more numbers.
    pub fn choice(&mut self, tiers: Tiers) -> Option<u32> {
        if let [tier] = tiers.as_slice()
            && let [(only, _)] = tier.as_slice()
        {
            return Some(*only);
        }
        self.number(Name::Choice(tiers.clone()), |table| {
            let leads = |&(hop, weight): &(u32, u8)| Some((hop, weight, *table.one(hop)?));
            let tier = |hops: &Vec<_>| Tier::new(&hops.iter().filter_map(leads).collect::<Vec<_>>());
            Hop::Choice(Arc::new(Choice::new(tiers.iter().map(tier).collect())))
        })
    }

    fn number(&mut self, name: Name, hop: impl FnOnce(&NextHops) -> Hop) -> Option<u32> {
        if let Some(number) = self.numbers.get(&name) {
            return Some(*number);
        }
        let hop = hop(&self.table);
        let number = loop {
            let number = self.free.pop().unwrap_or(self.next);
            if number == self.next {
                if number == FIRST << (RUNS - 1) {
                    return None;
                }
                self.next += 1;
            }
            // One that was given to what was then not taken up stays without use.
            if self.table.set(number, hop.share()) {
                break number;
            }
        };
        for table in &self.before {
            table.set(number, hop.share());
        }
        self.numbers.insert(name, number);
        Some(number)
    }

    /// How it is now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { table: Arc::clone(&self.table), numbers: self.numbers.clone() }
    }

    /// Is as it was: no worker has seen what came since. Numbers that were given since stay without use.
    pub fn go_back(&mut self, mark: Mark) {
        self.before.retain(|table| !Arc::ptr_eq(table, &mark.table));
        (self.table, self.numbers) = (mark.table, mark.numbers);
        self.freed.retain(|number| !self.numbers.values().any(|used| used == number));
    }

    /// Goes on in a new table without what `in_use` does not name. The old one is kept up until [`Self::quiesce`].
    pub fn renew(&mut self, in_use: &HashSet<u32>) {
        // What a choice in use leads to is in use.
        let members: HashSet<u32> = self
            .numbers
            .iter()
            .filter(|(_, number)| in_use.contains(*number))
            .flat_map(|(name, _)| match name {
                Name::One(_) => Vec::new(),
                Name::Choice(tiers) => tiers.iter().flatten().map(|(hop, _)| *hop).collect(),
            })
            .collect();
        let new = Arc::new(NextHops::default());
        let freed = &mut self.freed;
        let table = &self.table;
        self.numbers.retain(|_, number| {
            let used = in_use.contains(number) || members.contains(number);
            match table.get(*number).filter(|_| used) {
                Some(hop) => new.set(*number, hop.share()),
                None => {
                    freed.push(*number);
                    false
                }
            }
        });
        self.before.push(std::mem::replace(&mut self.table, new));
    }

    /// Says that workers use the newest table only, and have begun a new burst since.
    pub fn quiesce(&mut self) {
        self.before.clear();
        self.free.append(&mut self.freed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_keeps_its_meaning_until_nobody_can_see_it() {
        let mut writer = NextHopWriter::default();
        let tunnels: Vec<u32> = (0..3000).map(|n| writer.one(NextHop::Tunnel(n)).unwrap()).collect();
        assert_eq!(writer.one(NextHop::Tunnel(7)), Some(tunnels[7]), "given once");
        let pair = writer.choice(vec![vec![(tunnels[1], 1), (tunnels[2], 1)]]).unwrap();
        assert_eq!(writer.choice(vec![vec![(tunnels[2], 4)]]), Some(tunnels[2]), "no choice");
        let old = Arc::clone(writer.table());
        writer.renew(&HashSet::from([pair, tunnels[2500]]));
        let kept = [1, 2, 2500].map(|n| writer.table().one(tunnels[n]).copied());
        assert_eq!(kept, [1, 2, 2500].map(|n| Some(NextHop::Tunnel(n))));
        assert!(matches!(writer.table().get(pair), Some(Hop::Choice(_))));
        assert_eq!((writer.table().iter().count(), old.iter().count()), (4, 3001));
        // Until workers have left the old table, its numbers mean what they meant, and new ones are in both.
        let new = writer.one(NextHop::Blackhole).unwrap();
        assert!(old.one(new) == Some(&NextHop::Blackhole) && writer.table().one(new).is_some());
        assert!(!tunnels.contains(&new));
        writer.quiesce();
        let reused = writer.one(NextHop::Local).unwrap();
        assert!(tunnels.contains(&reused) && old.one(reused) != Some(&NextHop::Local));
    }

    #[test]
    fn what_was_not_taken_up_is_as_if_it_had_not_been() {
        let mut writer = NextHopWriter::default();
        let one = writer.one(NextHop::Tunnel(1)).unwrap();
        let mark = writer.mark();
        let table = Arc::clone(writer.table());
        let two = writer.one(NextHop::Tunnel(2)).unwrap();
        writer.renew(&HashSet::from([two]));
        writer.go_back(mark);
        assert!(Arc::ptr_eq(writer.table(), &table));
        assert_eq!(writer.one(NextHop::Tunnel(1)), Some(one));
        writer.quiesce();
        let again = writer.one(NextHop::Tunnel(2)).unwrap();
        assert_eq!(writer.table().one(again), Some(&NextHop::Tunnel(2)));
        assert_eq!(writer.table().one(one), Some(&NextHop::Tunnel(1)));
    }

    #[test]
    fn places_are_dense_and_apart() {
        let mut seen = HashSet::new();
        for number in (0..5000).chain([(FIRST << (RUNS - 1)) - 1]) {
            let (run, place) = place(number);
            let length = if run == 0 { FIRST } else { FIRST << (run - 1) };
            assert!(run < RUNS && place < length as usize && seen.insert((run, place)), "{number}");
        }
        assert!(
            NextHops::default().get(u32::MAX).is_none() && NextHops::default().get(u32::MAX - 1).is_none()
        );
    }
}
