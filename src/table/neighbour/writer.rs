//! The one who changes the table of neighbours: adds, resolves, ages and removes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::{
    Full, GENERATION_SHIFT, MAC_MASK, NeighbourId, NeighbourKey, NeighbourState, NeighbourTable, STATE_SHIFT,
    mac_bits,
};

/// For how long (ns) an entry stays in each state.
#[derive(Clone, Copy, Debug)]
pub struct NeighbourAges {
    /// An unanswered entry is removed after this.
    pub incomplete: u64,
    /// A confirmed entry turns stale after this (RFC 4861 10: 30 s).
    pub reachable: u64,
    /// A stale entry that no worker has used is removed after this.
    pub stale: u64,
}

/// The only one who changes the table.
#[derive(Debug)]
pub struct NeighbourWriter {
    table: Arc<NeighbourTable>,
    free: Vec<u32>,
    /// (since, slot), entries that may be pushed out; pinned ones are not here.
    incomplete: BTreeSet<(u64, u32)>,
    /// (since or last seen in use, slot), as above.
    stale: BTreeSet<(u64, u32)>,
    /// The time under which a slot stands in one of the two sets.
    since: Vec<u64>,
    pins: Vec<u32>,
}

impl NeighbourWriter {
    /// The only writer of an empty table.
    pub(super) fn new(table: Arc<NeighbourTable>) -> Self {
        let capacity = table.capacity();
        Self {
            table,
            free: (0..capacity as u32).rev().collect(),
            incomplete: BTreeSet::new(),
            stale: BTreeSet::new(),
            since: vec![0; capacity],
            pins: vec![0; capacity],
        }
    }

    /// What workers read.
    pub fn table(&self) -> &Arc<NeighbourTable> {
        &self.table
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.table.capacity() - self.free.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of `key`; a new one is incomplete since `now` (ns).
    ///
    /// # Errors
    ///
    /// [`Full`] when nothing may be pushed out.
    pub fn ensure(&mut self, key: &NeighbourKey, now: u64) -> Result<NeighbourId, Full> {
        if let Some(id) = self.table.lookup(key) {
            return Ok(id);
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None => self.evict().ok_or(Full)?,
        };
        self.link(place, key, now).ok_or(Full)
    }

    /// A configured entry: it never ages. An entry learnt for the same key becomes permanent.
    ///
    /// # Errors
    ///
    /// [`Full`] when nothing may be pushed out.
    pub fn insert_permanent(
        &mut self,
        key: &NeighbourKey,
        mac: [u8; 6],
        now: u64,
    ) -> Result<NeighbourId, Full> {
        let id = self.ensure(key, now)?;
        self.change(id, NeighbourState::Permanent, Some(mac), now);
        Ok(id)
    }

    /// An answer came: the entry has this MAC and is reachable from `now`. False when the entry is gone or
    /// permanent.
    pub fn resolve(&mut self, id: NeighbourId, mac: [u8; 6], now: u64) -> bool {
        match self.table.state(id) {
            None | Some(NeighbourState::Permanent) => false,
            Some(_) => {
                self.change(id, NeighbourState::Reachable, Some(mac), now);
                if let Some(slot) = self.table.slots.get(id.slot()) {
                    slot.confirmed.store(now, Ordering::Relaxed);
                }
                true
            }
        }
    }

    /// A reachable entry turns stale, its MAC kept. False for any other entry.
    pub fn suspect(&mut self, id: NeighbourId, now: u64) -> bool {
        let reachable = self.table.state(id) == Some(NeighbourState::Reachable);
        if reachable {
            self.change(id, NeighbourState::Stale, None, now);
        }
        reachable
    }

    /// Nobody answers for the entry any more: it is removed, or, where it is pinned, incomplete again, so that packets
    /// wait and it is asked for anew. False when it is permanent or gone.
    pub fn fail(&mut self, id: NeighbourId, now: u64) -> bool {
        match self.table.state(id) {
            None | Some(NeighbourState::Permanent) => return false,
            Some(_) => {}
        }
        if !self.remove(id) {
            self.change(id, NeighbourState::Incomplete, None, now);
        }
        true
    }

    /// Keeps an entry's slot for as long as its id is used elsewhere, as a static next hop's is. Counted.
    /// False when the entry is gone.
    pub fn pin(&mut self, id: NeighbourId) -> bool {
        if self.table.state(id).is_none() {
            return false;
        }
        self.unqueue(id.slot() as u32);
        if let Some(pins) = self.pins.get_mut(id.slot()) {
            *pins += 1;
        }
        true
    }

    /// Takes back one [`Self::pin`]. False when there is none.
    pub fn unpin(&mut self, id: NeighbourId, now: u64) -> bool {
        let Some(state) = self.table.state(id) else { return false };
        match self.pins.get_mut(id.slot()) {
            Some(pins) if *pins > 0 => *pins -= 1,
            _ => return false,
        }
        self.queue(id.slot() as u32, state, now);
        true
    }

    /// How many entries are pinned.
    #[must_use]
    pub fn pinned(&self) -> usize {
        self.pins.iter().filter(|pins| **pins > 0).count()
    }

    /// Removes an entry. False when it is pinned or gone.
    pub fn remove(&mut self, id: NeighbourId) -> bool {
        let place = id.slot() as u32;
        if self.table.state(id).is_none() || self.is_pinned(place) {
            return false;
        }
        self.unlink(place);
        self.free.push(place);
        true
    }

    /// Ages every entry: reachable to stale; incomplete and idle stale ones are removed. Pinned entries change
    /// state and stay. Returns the number removed. Call it about once a second.
    pub fn expire(&mut self, now: u64, ages: &NeighbourAges) -> usize {
        let table = Arc::clone(&self.table);
        let mut removed = 0;
        for view in table.iter() {
            let since = self.since.get(view.id.slot()).copied().unwrap_or(now);
            match view.state {
                NeighbourState::Reachable if now.saturating_sub(view.confirmed) >= ages.reachable => {
                    self.change(view.id, NeighbourState::Stale, None, now);
                }
                NeighbourState::Incomplete if now.saturating_sub(since) >= ages.incomplete => {
                    removed += usize::from(self.remove(view.id));
                }
                NeighbourState::Stale if now.saturating_sub(since.max(view.last_used)) >= ages.stale => {
                    removed += usize::from(self.remove(view.id));
                }
                _ => {}
            }
        }
        removed
    }

    fn is_pinned(&self, place: u32) -> bool {
        self.pins.get(place as usize).is_some_and(|&pins| pins > 0)
    }

    /// One store of the word that holds MAC, state and generation; no MAC = keep the one it has.
    fn change(&mut self, id: NeighbourId, state: NeighbourState, mac: Option<[u8; 6]>, now: u64) {
        let place = id.slot() as u32;
        let Some(slot) = self.table.slots.get(id.slot()) else { return };
        let word = slot.word.load(Ordering::Relaxed);
        let mac = mac.map_or(word & MAC_MASK, mac_bits);
        let generation = word >> GENERATION_SHIFT << GENERATION_SHIFT;
        slot.word.store(generation | state.bits() << STATE_SHIFT | mac, Ordering::Release);
        self.unqueue(place);
        self.queue(place, state, now);
    }

    fn queue(&mut self, place: u32, state: NeighbourState, now: u64) {
        if let Some(since) = self.since.get_mut(place as usize) {
            *since = now;
        }
        if self.is_pinned(place) {
            return;
        }
        match state {
            NeighbourState::Incomplete => self.incomplete.insert((now, place)),
            NeighbourState::Stale => self.stale.insert((now, place)),
            _ => false,
        };
    }

    fn unqueue(&mut self, place: u32) {
        if let Some(&since) = self.since.get(place as usize) {
            self.incomplete.remove(&(since, place));
            self.stale.remove(&(since, place));
        }
    }

    /// Unlinks the entry that matters least and returns its slot.
    fn evict(&mut self) -> Option<u32> {
        if let Some(&(_, place)) = self.incomplete.first() {
            self.unlink(place);
            return Some(place);
        }
        // A stale entry that was used since it was queued moves back to its true place in the order: each
        // entry at most once a call, because the time it moves to is its own last use.
        for _ in 0..=self.stale.len() {
            let &(since, place) = self.stale.first()?;
            let used = self.table.slots.get(place as usize)?.last_used.load(Ordering::Relaxed);
            if used <= since {
                self.unlink(place);
                return Some(place);
            }
            self.unqueue(place);
            self.queue(place, NeighbourState::Stale, used);
        }
        let &(_, place) = self.stale.first()?;
        self.unlink(place);
        Some(place)
    }

    /// Fills a slot that no chain holds and puts it at the head of its chain.
    fn link(&mut self, place: u32, key: &NeighbourKey, now: u64) -> Option<NeighbourId> {
        let table = Arc::clone(&self.table);
        let slot = table.slots.get(place as usize)?;
        let bucket = table.bucket(key)?;
        // `unlink` left the word free in a new generation; that must be seen before any part of the new key.
        let generation = slot.word.load(Ordering::Relaxed) >> GENERATION_SHIFT << GENERATION_SHIFT;
        table.reuses.store(table.reuses.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        slot.tag.store(key.tag(), Ordering::Relaxed);
        slot.address_high.store((key.address >> 64) as u64, Ordering::Relaxed);
        slot.address_low.store(key.address as u64, Ordering::Relaxed);
        slot.last_used.store(0, Ordering::Relaxed);
        slot.confirmed.store(0, Ordering::Relaxed);
        slot.next.store(bucket.load(Ordering::Relaxed), Ordering::Release);
        let word = generation | NeighbourState::Incomplete.bits() << STATE_SHIFT;
        slot.word.store(word, Ordering::Release);
        bucket.store(place, Ordering::Release);
        self.queue(place, NeighbourState::Incomplete, now);
        Some(NeighbourId::new(place, word))
    }

    /// Ends an entry's life: its generation is over, no chain holds it, no queue does.
    fn unlink(&mut self, place: u32) {
        self.unqueue(place);
        let table = Arc::clone(&self.table);
        let Some(slot) = table.slots.get(place as usize) else { return };
        let generation = (slot.word.load(Ordering::Relaxed) >> GENERATION_SHIFT).wrapping_add(1);
        slot.word.store(generation << GENERATION_SHIFT, Ordering::Release);
        let mut link = table.bucket(&slot.key());
        while let Some(current) = link {
            let next = current.load(Ordering::Relaxed);
            if next == place {
                // `next` of the slot itself stays, for a reader that stands on it.
                current.store(slot.next.load(Ordering::Relaxed), Ordering::Release);
                return;
            }
            link = table.slots.get(next as usize).map(|slot| &slot.next);
        }
    }
}
