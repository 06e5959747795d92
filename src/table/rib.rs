//! All routes of a gateway, those in use and those that wait (the RIB): who may lead where, and who does.
//!
//! The control thread's; workers read the [`Lpm`] that it writes. Of the routes to one prefix the best are used, by
//! the kind of their next hop, then by who says so, then by priority; equal ones share the flows. What comes after
//! them stands by, for when they are down.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use thiserror::Error;

use super::{
    address::Address,
    choice::{MOST_MEMBERS, Needs},
    lpm::{Lpm, LpmError, LpmWriter},
    next_hops::{NextHopWriter, Tiers},
    tables::NextHop,
};

/// Who says that a route is one: the lower, the more it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Source {
    /// The gateway's own addresses and links.
    Connected = 0,
    /// The configuration.
    Static = 100,
    /// A router of another company (RFC 4271).
    Ebgp = 150,
    /// A router of this one.
    Ibgp = 200,
}

impl Source {
    /// Every source, the most trusted first.
    pub const ALL: [Self; 4] = [Self::Connected, Self::Static, Self::Ebgp, Self::Ibgp];

    /// What commands and lists call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Static => "static",
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
    pub const fn order(&self) -> (Rank, Source, u16) {
        (self.rank, self.source, self.priority)
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
    fn all(&self) -> &[Candidate] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Several(all) => all,
        }
    }
}

/// A prefix: its address, in which bits beyond the length are clear, and its length.
pub type Key<A> = (A, u8);

/// The routes of one gateway and IP version.
#[derive(Debug)]
pub struct Rib<A> {
    writer: LpmWriter<A>,
    entries: BTreeMap<Key<A>, Entry>,
    /// Prefixes of several routes whose choice is to be made again.
    unsettled: HashSet<Key<A>>,
}

impl<A: Address + std::hash::Hash> Rib<A> {
    /// No routes yet; and the table for workers.
    #[must_use]
    pub fn new() -> (Arc<Lpm<A>>, Self) {
        let (table, writer) = Lpm::new();
        (table, Self { writer, entries: BTreeMap::new(), unsettled: HashSet::new() })
    }

    /// Adds a route, or gives the one with the same next hop and source new values; what was there before.
    /// Workers see it after [`Rib::publish`].
    ///
    /// # Errors
    /// [`RibError`]; nothing has changed then.
    pub fn add(&mut self, (address, length): Key<A>, new: Candidate) -> Result<Option<Candidate>, RibError> {
        if length > A::WIDTH {
            return Err(LpmError::LengthTooLong(length).into());
        }
        let key = (address & A::mask(length), length);
        let Some(entry) = self.entries.get_mut(&key) else {
            self.writer.insert(key.0, key.1, new.hop)?;
            self.entries.insert(key, Entry::One(new));
            return Ok(None);
        };
        let mut all = entry.all().to_vec();
        let same = all.iter().position(|known| (known.hop, known.source) == (new.hop, new.source));
        let old = same.map(|place| all.remove(place));
        let place = all.partition_point(|known| (known.order(), known.hop) <= (new.order(), new.hop));
        all.insert(place, new);
        *entry = if all.len() == 1 { Entry::One(new) } else { Entry::Several(all.into()) };
        if old != Some(new) {
            self.unsettled.insert(key);
        }
        Ok(old)
    }

    /// Removes the route with this next hop and source; what it was.
    ///
    /// # Errors
    /// [`RibError`].
    pub fn remove(
        &mut self,
        (address, length): Key<A>,
        hop: u32,
        source: Source,
    ) -> Result<Option<Candidate>, RibError> {
        if length > A::WIDTH {
            return Err(LpmError::LengthTooLong(length).into());
        }
        let key = (address & A::mask(length), length);
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(None) };
        let mut all = entry.all().to_vec();
        let Some(place) = all.iter().position(|known| (known.hop, known.source) == (hop, source)) else {
            return Ok(None);
        };
        let old = all.remove(place);
        match all.as_slice() {
            [] => {
                self.entries.remove(&key);
                self.unsettled.remove(&key);
                self.writer.remove(key.0, key.1)?;
                return Ok(Some(old));
            }
            [only] => *entry = Entry::One(*only),
            _ => *entry = Entry::Several(all.into()),
        }
        self.unsettled.insert(key);
        Ok(Some(old))
    }

    /// Makes all changes visible to workers at once.
    ///
    /// # Errors
    /// [`RibError`]: nothing became visible, and all changes are kept for the next try.
    pub fn publish(&mut self, hops: &mut NextHopWriter) -> Result<(), RibError> {
        for key in &self.unsettled {
            let Some(entry) = self.entries.get(key) else { continue };
            let value = hops.choice(tiers(entry.all(), hops)).ok_or(RibError::NextHopsFull)?;
            self.writer.insert(key.0, key.1, value)?;
        }
        self.unsettled.clear();
        Ok(self.writer.publish()?)
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

    /// The writer of the table.
    pub const fn writer(&mut self) -> &mut LpmWriter<A> {
        &mut self.writer
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
pub fn tiers(routes: &[Candidate], hops: &NextHopWriter) -> Tiers {
    let mut tiers: Tiers = Vec::new();
    let mut taken = HashSet::new();
    for same in routes.chunk_by(|left, right| left.order() == right.order()) {
        let members: Vec<(u32, u8)> = same
            .iter()
            .filter(|route| taken.insert(route.hop))
            .map(|route| (route.hop, route.weight))
            .take(MOST_MEMBERS)
            .collect();
        let always = |(hop, _): &(u32, u8)| {
            hops.table().one(*hop).map(|hop: &NextHop| Needs::of(hop)) == Some(Needs::Nothing)
        };
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
