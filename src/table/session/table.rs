//! The sessions of one worker.

use std::{io, sync::Arc};

use super::{
    index::Index,
    record::{Key, NewSession, Record},
};
use crate::table::{hash::Seed, pages::Pages, prefetch::prefetch_read};

/// The sessions' cache lines, which others may read.
pub type Records = Arc<Pages<Record>>;

/// Which of its two keys a session is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// As the host sends and receives.
    Inside,
    /// As the remote end does.
    Outside,
}

/// The table has no room for another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Sessions, of a number that was fixed when the table was made.
#[derive(Debug)]
pub struct Sessions {
    records: Records,
    inside: Index,
    outside: Index,
    /// Places that were used and are free.
    free: Vec<u32>,
    /// Places from here on were never used.
    fresh: u32,
    /// Where ageing goes on.
    hand: u32,
    seed: Seed,
}

impl Sessions {
    /// Room for `capacity` sessions. Memory is taken as sessions come.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(capacity: usize, seed: Seed) -> io::Result<Self> {
        let capacity = capacity.min(u32::MAX as usize - 1);
        Ok(Self {
            records: Arc::new(Pages::new(capacity)?),
            inside: Index::new(capacity)?,
            outside: Index::new(capacity)?,
            free: Vec::with_capacity(capacity),
            fresh: 0,
            hand: 0,
            seed,
        })
    }

    /// The most sessions it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.records.len()
    }

    /// The sessions it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fresh as usize - self.free.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records, for whoever wants to list them.
    #[must_use]
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// Bytes of memory when it is full.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of_val::<[Record]>(&self.records)
            + self.inside.memory()
            + self.outside.memory()
            + self.free.capacity() * size_of::<u32>()
    }

    /// The hash of a key.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: Key) -> u64 {
        key.hash(&self.seed)
    }

    const fn index(&self, side: Side) -> &Index {
        match side {
            Side::Inside => &self.inside,
            Side::Outside => &self.outside,
        }
    }

    /// Starts loading what a look-up of this hash reads first.
    #[inline(always)]
    pub fn prefetch(&self, side: Side, hash: u64) {
        self.index(side).prefetch(hash);
    }

    /// The place of the record that a look-up of this hash will most likely find, which starts to be loaded;
    /// one beyond all where there is none.
    #[inline(always)]
    #[must_use]
    pub fn prefetch_likely(&self, side: Side, hash: u64) -> u32 {
        let id = self.index(side).likely(hash);
        if let Some(record) = self.records.get(id as usize) {
            prefetch_read(record);
        }
        id
    }

    /// All records, of sessions or not, by place.
    #[inline(always)]
    #[must_use]
    pub fn places_of_all(&self) -> &[Record] {
        &self.records
    }

    /// Starts loading the record that a session will be written to which begins after `ahead` others.
    #[inline(always)]
    pub fn prefetch_free(&self, ahead: usize) {
        let freed = self.free.len().checked_sub(ahead + 1).and_then(|place| self.free.get(place));
        // Those that were never used come one after the other.
        if let Some(record) = freed.and_then(|id| self.records.get(*id as usize)) {
            prefetch_read(record);
        }
    }

    /// The session of a place.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Record> {
        self.records.get(id as usize).filter(|record| record.is_live())
    }

    /// Whether the session of a place is the one of a key.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, id: u32, side: Side, key: Key) -> bool {
        self.get(id).is_some_and(|record| match side {
            Side::Inside => record.inside() == key,
            Side::Outside => record.outside() == key,
        })
    }

    /// The session of a key whose hash is `hash`.
    #[inline]
    #[must_use]
    pub fn find(&self, side: Side, hash: u64, key: Key) -> Option<u32> {
        self.index(side).find(hash, |id| self.is(id, side, key))
    }

    /// Adds a session, neither of whose keys any other has: the caller has looked.
    ///
    /// # Errors
    /// There is no room.
    pub fn insert(&mut self, new: &NewSession, tick: u32) -> Result<u32, Full> {
        let id = match self.free.last() {
            Some(id) => *id,
            None if (self.fresh as usize) < self.records.len() => self.fresh,
            None => return Err(Full),
        };
        let (inside, outside) = (self.hash(new.inside), self.hash(new.outside));
        debug_assert!(self.find(Side::Inside, inside, new.inside).is_none());
        debug_assert!(self.find(Side::Outside, outside, new.outside).is_none());
        let Some(record) = self.records.get(id as usize) else { return Err(Full) };
        if !self.inside.insert(inside, id) {
            return Err(Full);
        }
        if !self.outside.insert(outside, id) {
            self.inside.remove(inside, id);
            return Err(Full);
        }
        record.write(new, tick);
        if self.free.pop().is_none() {
            self.fresh += 1;
        }
        Ok(id)
    }

    /// Takes a session out. Whether there was one.
    pub fn remove(&mut self, id: u32) -> bool {
        let Some(record) = self.records.get(id as usize).filter(|record| record.is_live()) else {
            return false;
        };
        let (inside, outside) = (record.inside().hash(&self.seed), record.outside().hash(&self.seed));
        record.clear();
        let both = (self.inside.remove(inside, id), self.outside.remove(outside, id));
        debug_assert_eq!(both, (true, true));
        // There is room for all: nothing is allocated.
        self.free.push(id);
        true
    }

    /// Looks at the next `count` places, going round, and tells `ended` of each session there, which says whether it
    /// is to go. The result is how many went.
    pub fn age(&mut self, count: u32, mut ended: impl FnMut(u32, &Record) -> bool) -> u32 {
        let mut gone = 0;
        for _ in 0..count.min(self.fresh) {
            if self.hand >= self.fresh {
                self.hand = 0;
            }
            let id = self.hand;
            self.hand += 1;
            let over =
                self.records.get(id as usize).is_some_and(|record| record.is_live() && ended(id, record));
            if over && self.remove(id) {
                gone += 1;
            }
        }
        gone
    }

    /// Places that were ever used: what [`Sessions::age`] goes round.
    #[must_use]
    pub const fn places(&self) -> u32 {
        self.fresh
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::session::{Kind, Tcp};

    fn session(inside: Key, outside: Key) -> NewSession {
        NewSession {
            inside,
            outside,
            kind: Kind::Pool,
            rule: 3,
            generation: 1,
            counted: false,
            claimed: false,
            tcp: Tcp::default(),
            address_delta: 0xABCD,
            port_delta: 0x1234,
        }
    }

    fn key(n: u32) -> Key {
        Key::new(1, 17, (n, 1000), (9, 53))
    }

    #[test]
    fn a_full_table_takes_no_more_until_one_goes() {
        let mut table = Sessions::new(100, Seed::random()).unwrap();
        for n in 0..100 {
            table.insert(&session(key(n), key(1000 + n)), 5).unwrap();
        }
        assert_eq!(table.insert(&session(key(100), key(1100)), 5), Err(Full));
        assert_eq!(table.age(100, |_, record| record.inside() == key(50)), 1);
        assert_eq!(table.insert(&session(key(100), key(1100)), 5), Ok(50));
        assert_eq!((table.len(), table.capacity()), (100, 100));
    }

    #[test]
    fn a_record_says_what_it_was_made_of() {
        let mut table = Sessions::new(4, Seed::random()).unwrap();
        let id = table.insert(&session(key(1), key(2)), 77).unwrap();
        let record = table.get(id).unwrap();
        record.touch(80, true);
        record.touch(81, false);
        record.set_tcp(Tcp::default().after(2, true));
        record.confirm(9, 4);
        assert_eq!(
            (record.deltas(), record.seen(), record.kind()),
            ((0xABCD, 0x1234), (81, 9), Some(Kind::Pool))
        );
        let view = record.view().unwrap();
        assert_eq!((view.inside, view.outside, view.made, view.seen), (key(1), key(2), 77, 81));
        assert_eq!((view.packets_out, view.packets_in, view.rule, view.tcp.name()), (1, 1, 4, "opening"));
        table.remove(id);
        assert!(table.records()[id as usize].view().is_none() && !table.remove(id));
        // The next one here is another.
        table.insert(&session(key(1), key(2)), 77).unwrap();
        assert_ne!(table.get(id).unwrap().view().unwrap().incarnation, view.incarnation);
    }

    proptest! {
        #[test]
        fn agrees_with_two_maps(operations in prop::collection::vec((0u8..4, 0u32..60, 0u32..60), 0..500)) {
            let mut table = Sessions::new(40, Seed::random()).unwrap();
            let (mut inside, mut outside) = (HashMap::new(), HashMap::new());
            let mut live: HashMap<u32, (Key, Key)> = HashMap::new();
            for (operation, a, b) in operations {
                let (one, other) = (key(a), key(1000 + b));
                match operation {
                    0..=1 if !inside.contains_key(&one) && !outside.contains_key(&other) => {
                        let made = table.insert(&session(one, other), 0);
                        prop_assert_eq!(made.is_err(), live.len() == 40);
                        if let Ok(id) = made {
                            inside.insert(one, id);
                            outside.insert(other, id);
                            prop_assert!(live.insert(id, (one, other)).is_none());
                        }
                    }
                    2 => {
                        let id = inside.get(&one).copied();
                        prop_assert_eq!(id.is_some_and(|id| table.remove(id)), id.is_some());
                        if let Some((one, other)) = id.and_then(|id| live.remove(&id)) {
                            inside.remove(&one);
                            outside.remove(&other);
                        }
                    }
                    3 => {
                        let gone = table.age(a, |_, record| record.outside().address() % 7 == b % 7);
                        let before = live.len();
                        live.retain(|id, _| table.get(*id).is_some());
                        prop_assert_eq!(before - live.len(), gone as usize);
                        inside.retain(|_, id| live.contains_key(id));
                        outside.retain(|_, id| live.contains_key(id));
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), live.len());
                let find = |side, key: Key| table.find(side, table.hash(key), key);
                prop_assert_eq!(find(Side::Inside, one), inside.get(&one).copied());
                prop_assert_eq!(find(Side::Outside, other), outside.get(&other).copied());
            }
        }
    }
}
