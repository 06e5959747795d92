//! All routes of a gateway, those in use and those that wait (the RIB): who may lead where, and who does.
//!
//! The control thread's; workers read the [`Lpm`] that it writes. Of the routes to one prefix the best are used, by
//! the kind of their next hop, then by who says so, then by priority; equal ones share the flows. What comes after
//! them stands by, for when they are down.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use thiserror::Error;

use super::{
    address::Address,
    choice::{MOST_MEMBERS, Needs},
    lpm::{Lpm, LpmError, LpmWriter},
    next_hops::{NextHopWriter, NextHops, Tiers},
};

/// Who says that a route is one: the lower, the more it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The gateway's own addresses and links.
    Connected,
    /// The configuration.
    Static,
    /// An operator's command.
    Added,
    /// A router of another company (RFC 4271).
    Ebgp,
    /// A router of this one.
    Ibgp,
}

impl Source {
    /// How much it is trusted: the lower, the more.
    #[must_use]
    pub const fn preference(self) -> u8 {
        match self {
            Self::Connected => 0,
            Self::Static | Self::Added => 100,
            Self::Ebgp => 150,
            Self::Ibgp => 200,
        }
    }

    /// Whether the route came while the gateway ran: a reload does not take it away.
    #[must_use]
    pub const fn is_learned(self) -> bool {
        matches!(self, Self::Added | Self::Ebgp | Self::Ibgp)
    }

    /// What commands and lists call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Static | Self::Added => "static",
            Self::Ebgp => "ebgp",
            Self::Ibgp => "ibgp",
        }
    }
}

/// How good a kind of next hop is: the lower, the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub u8);

impl Rank {
    /// The gateway itself.
    pub const OWN: Self = Self(0);
    /// An interface on the VPC's side.
    pub const LOCAL: Self = Self(100);
    /// An interface on the peers' side.
    pub const LINE: Self = Self(120);
    /// A tunnel.
    pub const TUNNEL: Self = Self(140);
    /// Another gateway.
    pub const GATEWAY: Self = Self(160);
    /// Nowhere.
    pub const BLACKHOLE: Self = Self(200);
}

/// One route to a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The number of its next hop.
    pub hop: u32,
    /// How good its kind of next hop is.
    pub rank: Rank,
    /// Who says so.
    pub source: Source,
    /// The lower goes first.
    pub priority: u16,
    /// Its share beside equal ones; at least 1.
    pub weight: u8,
}

impl Candidate {
    /// What makes it better or worse than another: the least is best, equal ones share.
    #[must_use]
    pub const fn order(&self) -> (Rank, u8, u16) {
        (self.rank, self.source.preference(), self.priority)
    }
}

/// Why a route is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RibError {
    /// The table.
    #[error(transparent)]
    Table(#[from] LpmError),
    /// No more next hops.
    #[error("there are as many next hops as can be kept")]
    NextHopsFull,
}

/// The routes to one prefix, best first; nearly always one.
#[derive(Debug, Clone)]
enum Entry {
    One(Candidate),
    Several(Box<[Candidate]>),
}

impl Entry {
    /// Of at least one route.
    fn of(all: Vec<Candidate>) -> Self {
        match all.as_slice() {
            [only] => Self::One(*only),
            _ => Self::Several(all.into()),
        }
    }

    fn all(&self) -> &[Candidate] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Several(all) => all,
        }
    }
}

/// A prefix: its address, in which bits beyond the length are clear, and its length.
pub type Key<A> = (A, u8);

fn normal<A: Address>((address, length): Key<A>) -> Result<Key<A>, LpmError> {
    if length > A::WIDTH {
        Err(LpmError::LengthTooLong(length))
    } else {
        Ok((address & A::mask(length), length))
    }
}

/// What was there before changes that may be taken back.
#[derive(Debug)]
struct Undo<A> {
    table: Arc<Lpm<A>>,
    /// Prefixes as they were before each change, the oldest first.
    before: Vec<(Key<A>, Option<Entry>)>,
}

/// The routes of one gateway and IP version.
#[derive(Debug)]
pub struct Rib<A> {
    writer: LpmWriter<A>,
    entries: BTreeMap<Key<A>, Entry>,
    /// Prefixes whose value in the table is to be found again.
    unsettled: HashSet<Key<A>>,
    /// How many routes have a next hop, by its number.
    uses: HashMap<u32, usize>,
    undo: Option<Undo<A>>,
}

impl<A: Address + std::hash::Hash> Default for Rib<A> {
    fn default() -> Self {
        Self {
            writer: Lpm::new().1,
            entries: BTreeMap::new(),
            unsettled: HashSet::new(),
            uses: HashMap::new(),
            undo: None,
        }
    }
}

impl<A: Address + std::hash::Hash> Rib<A> {
    /// Adds a route, or gives the one with the same next hop and source new values; what was there before.
    /// Workers see it after [`Rib::publish`].
    ///
    /// # Errors
    /// [`RibError`]; nothing has changed then.
    pub fn add(&mut self, key: Key<A>, new: Candidate) -> Result<Option<Candidate>, RibError> {
        let key = normal(key)?;
        let Some(entry) = self.entries.get(&key) else {
            self.writer.insert(key.0, key.1, new.hop)?;
            self.put(key, Some(Entry::One(new)));
            *self.uses.entry(new.hop).or_default() += 1;
            return Ok(None);
        };
        let same = |known: &Candidate| (known.hop, known.source) == (new.hop, new.source);
        let old = entry.all().iter().find(|known| same(known)).copied();
        if old == Some(new) {
            return Ok(old);
        }
        let mut all: Vec<Candidate> = entry.all().iter().filter(|known| !same(known)).copied().collect();
        let place = all.partition_point(|known| (known.order(), known.hop) <= (new.order(), new.hop));
        all.insert(place, new);
        self.put(key, Some(Entry::of(all)));
        self.unsettled.insert(key);
        if old.is_none() {
            *self.uses.entry(new.hop).or_default() += 1;
        }
        Ok(old)
    }

    /// Removes the route with this next hop and source; what it was.
    ///
    /// # Errors
    /// [`RibError`]; nothing has changed then.
    pub fn remove(&mut self, key: Key<A>, hop: u32, source: Source) -> Result<Option<Candidate>, RibError> {
        let key = normal(key)?;
        let Some(entry) = self.entries.get(&key) else { return Ok(None) };
        let same = |known: &Candidate| (known.hop, known.source) == (hop, source);
        let Some(old) = entry.all().iter().find(|known| same(known)).copied() else { return Ok(None) };
        let all: Vec<Candidate> = entry.all().iter().filter(|known| !same(known)).copied().collect();
        self.unsettled.insert(key);
        self.put(key, (!all.is_empty()).then(|| Entry::of(all)));
        if let Some(uses) = self.uses.get_mut(&hop) {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&hop);
            }
        }
        Ok(Some(old))
    }

    fn put(&mut self, key: Key<A>, entry: Option<Entry>) {
        let before = match entry {
            Some(entry) => self.entries.insert(key, entry),
            None => self.entries.remove(&key),
        };
        if let Some(undo) = &mut self.undo {
            undo.before.push((key, before));
        }
    }

    /// Makes all changes visible to workers at once.
    ///
    /// # Errors
    /// [`RibError`]: nothing became visible, and all changes are kept for the next try.
    pub fn publish(&mut self, hops: &mut NextHopWriter) -> Result<(), RibError> {
        for key in &self.unsettled {
            match self.entries.get(key) {
                Some(entry) => {
                    let value = match entry {
                        Entry::One(only) => only.hop,
                        Entry::Several(all) => {
                            hops.choice(tiers(all, hops.table())).ok_or(RibError::NextHopsFull)?
                        }
                    };
                    self.writer.insert(key.0, key.1, value)?;
                }
                None => drop(self.writer.remove(key.0, key.1)?),
            }
        }
        self.unsettled.clear();
        Ok(self.writer.publish()?)
    }

    /// From now on changes go into a table that only readers of a new snapshot see, and can be taken back, until
    /// [`Rib::commit`] or [`Rib::go_back`].
    pub fn begin(&mut self) {
        let table = self.writer.part();
        self.undo = Some(Undo { table, before: Vec::new() });
    }

    /// The new snapshot is in force.
    pub fn commit(&mut self) {
        self.undo = None;
    }

    /// The new snapshot is not taken up: everything is as it was at [`Rib::begin`].
    ///
    /// # Errors
    /// [`RibError`]; the table that workers read stands as it was all the same.
    pub fn go_back(&mut self, hops: &mut NextHopWriter) -> Result<(), RibError> {
        let Some(undo) = self.undo.take() else { return Ok(()) };
        self.writer.rejoin(undo.table);
        for (key, entry) in undo.before.into_iter().rev() {
            self.put(key, entry);
            self.unsettled.insert(key);
        }
        self.uses.clear();
        for hop in self.entries.values().flat_map(Entry::all).map(|route| route.hop) {
            *self.uses.entry(hop).or_default() += 1;
        }
        self.publish(hops)
    }

    /// Says that every worker uses the newest snapshot and has begun a new burst since the last publication.
    pub fn quiesce(&mut self) {
        self.writer.quiesce();
    }

    /// How many routes have this next hop.
    #[must_use]
    pub fn uses(&self, hop: u32) -> usize {
        self.uses.get(&hop).copied().unwrap_or(0)
    }

    /// Numbers of all next hops that routes have, and of the choices between them.
    pub fn hops_in_use(&self) -> impl Iterator<Item = u32> {
        let several = self.entries.iter().filter(|(_, entry)| matches!(entry, Entry::Several(_)));
        let choices = several.filter_map(|(key, _)| self.writer.get_exact(key.0, key.1));
        self.uses.keys().copied().chain(choices)
    }

    /// The routes to exactly this prefix, best first.
    #[must_use]
    pub fn routes(&self, (address, length): Key<A>) -> &[Candidate] {
        let key = (address & A::mask(length.min(A::WIDTH)), length);
        self.entries.get(&key).map_or(&[], Entry::all)
    }

    /// Every prefix from `first` on with its routes, by address and length.
    pub fn iter_from(&self, first: Key<A>) -> impl Iterator<Item = (Key<A>, &[Candidate])> {
        self.entries.range(first..).map(|(key, entry)| (*key, entry.all()))
    }

    /// The number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The table that workers read.
    #[must_use]
    pub fn table(&self) -> &Arc<Lpm<A>> {
        self.writer.table()
    }
}

/// Groups routes, best first, into tiers. A next hop counts once, and after one that nothing can take down there is
/// no other.
#[must_use]
pub fn tiers(routes: &[Candidate], hops: &NextHops) -> Tiers {
    let mut tiers: Tiers = Vec::new();
    let mut taken = HashSet::new();
    for same in routes.chunk_by(|left, right| left.order() == right.order()) {
        let members: Vec<(u32, u8)> = same
            .iter()
            .filter(|route| taken.insert(route.hop))
            .map(|route| (route.hop, route.weight))
            .take(MOST_MEMBERS)
            .collect();
        let always = |(hop, _): &(u32, u8)| hops.one(*hop).map(Needs::of) == Some(Needs::Nothing);
        let last = members.iter().any(always);
        if !members.is_empty() {
            tiers.push(members);
        }
        if last {
            break;
        }
    }
    tiers
}

#[cfg(test)]
#[path = "rib_tests.rs"]
mod tests;
