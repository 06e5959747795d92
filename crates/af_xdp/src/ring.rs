//! The two ends of a ring, apart from where its words live.
//!
//! A ring has one producer and one consumer, each a free-running 32-bit index: the slot is `index % size`, and the
//! difference of the two is how full the ring is. Indices wrap at 2^32, so all arithmetic on them wraps.
//!
//! The producer writes its slots, then publishes its index with *release*; the consumer reads that index with
//! *acquire* and so sees the slots. The consumer's index goes the other way under the same rule.

/// Where the words and slots of one ring live: memory shared with the kernel, or a stand-in for tests.
///
/// # Safety
///
/// `size` must be a power of two and never change. `load_*` must have acquire and `store_*` release ordering on the
/// word they name. `read` and `write` must access the slot `index % size` and no other.
pub unsafe trait RingStorage {
    /// What a slot holds.
    type Entry: Copy;
    /// Number of slots.
    fn size(&self) -> u32;
    /// Reads the producer index (acquire).
    fn load_producer(&self) -> u32;
    /// Publishes the producer index (release).
    fn store_producer(&self, index: u32);
    /// Reads the consumer index (acquire).
    fn load_consumer(&self) -> u32;
    /// Publishes the consumer index (release).
    fn store_consumer(&self, index: u32);
    /// Whether the kernel asks to be woken (`XDP_RING_NEED_WAKEUP`).
    fn needs_wakeup(&self) -> bool;
    /// Reads the slot of an index.
    ///
    /// # Safety
    /// The other end must not write this slot meanwhile.
    unsafe fn read(&self, index: u32) -> Self::Entry;
    /// Writes the slot of an index.
    ///
    /// # Safety
    /// The other end must not touch this slot meanwhile.
    unsafe fn write(&self, index: u32, entry: Self::Entry);
}

/// The end of a ring that puts entries in.
pub struct Producer<S: RingStorage> {
    storage: S,
    /// Index of the next slot to write; all before it are published.
    next: u32,
    /// The consumer's index as it was last read.
    consumer: u32,
}

impl<S: RingStorage> Producer<S> {
    /// Takes the producing end.
    ///
    /// # Safety
    /// No other producing end of this ring may exist.
    pub unsafe fn new(storage: S) -> Self {
        let (next, consumer) = (storage.load_producer(), storage.load_consumer());
        Self { storage, next, consumer }
    }

    /// Number of slots.
    pub fn size(&self) -> u32 {
        self.storage.size()
    }

    /// Whether the kernel sleeps and must be told about new entries. The fence keeps this read behind the
    /// publication of the entries: without it both sides can miss each other.
    pub fn needs_wakeup(&self) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.storage.needs_wakeup()
    }

    /// Entries published that the consumer has not taken yet.
    pub fn pending(&self) -> u32 {
        self.next.wrapping_sub(self.storage.load_consumer()).min(self.size())
    }

    /// Takes room for up to `wanted` entries, as much as there is, which may be none.
    pub fn reserve(&mut self, wanted: u32) -> Reservation<'_, S> {
        let mut free = self.free();
        if free < wanted {
            self.consumer = self.storage.load_consumer();
            free = self.free();
        }
        Reservation { granted: free.min(wanted), written: 0, ring: self }
    }

    /// The entries published that the consumer has not taken, oldest first: what to take home once the other
    /// end is gone for good.
    pub fn outstanding(&self) -> impl Iterator<Item = S::Entry> + '_ {
        let pending = self.pending();
        let first = self.next.wrapping_sub(pending);
        (0..pending).map(move |i| {
            // SAFETY: this end wrote the slot and published it; the consumer only reads it.
            unsafe { self.storage.read(first.wrapping_add(i)) }
        })
    }

    /// A consumer index that is impossible (a full ring passed) counts as a full ring.
    fn free(&self) -> u32 {
        self.size().saturating_sub(self.next.wrapping_sub(self.consumer))
    }
}

/// Room in a ring. What was pushed is published by [`Reservation::submit`]; dropping it publishes nothing.
pub struct Reservation<'a, S: RingStorage> {
    ring: &'a mut Producer<S>,
    granted: u32,
    written: u32,
}

impl<S: RingStorage> Reservation<'_, S> {
    /// How many entries can still be pushed.
    pub fn room(&self) -> u32 {
        self.granted - self.written
    }

    /// Writes the next entry. Returns false, and does nothing, when there is no room left.
    pub fn push(&mut self, entry: S::Entry) -> bool {
        if self.written == self.granted {
            return false;
        }
        // SAFETY: the slot lies in the reservation, between our index and the consumer's plus the size, where the
        // consumer does not look before we publish; `&mut` on the only producing end excludes other writers.
        unsafe { self.ring.storage.write(self.ring.next.wrapping_add(self.written), entry) };
        self.written += 1;
        true
    }

    /// Publishes what was pushed. Returns how many entries that were.
    pub fn submit(self) -> u32 {
        if self.written > 0 {
            self.ring.next = self.ring.next.wrapping_add(self.written);
            self.ring.storage.store_producer(self.ring.next);
        }
        self.written
    }
}

/// The end of a ring that takes entries out.
pub struct Consumer<S: RingStorage> {
    storage: S,
    /// Index of the next slot to read; all before it are given back.
    next: u32,
    /// The producer's index as it was last read.
    producer: u32,
}

impl<S: RingStorage> Consumer<S> {
    /// Takes the consuming end.
    ///
    /// # Safety
    /// No other consuming end of this ring may exist.
    pub unsafe fn new(storage: S) -> Self {
        let (next, producer) = (storage.load_consumer(), storage.load_producer());
        Self { storage, next, producer }
    }

    /// Number of slots.
    pub fn size(&self) -> u32 {
        self.storage.size()
    }

    /// Entries that wait to be read.
    pub fn waiting(&self) -> u32 {
        self.storage.load_producer().wrapping_sub(self.next).min(self.size())
    }

    /// Looks at up to `wanted` entries, oldest first.
    pub fn peek(&mut self, wanted: u32) -> Peeked<'_, S> {
        let mut available = self.available();
        if available < wanted {
            self.producer = self.storage.load_producer();
            available = self.available();
        }
        Peeked { granted: available.min(wanted), read: 0, ring: self }
    }

    /// A producer index that is impossible (further ahead than the ring is long) yields at most a whole ring.
    fn available(&self) -> u32 {
        self.producer.wrapping_sub(self.next).min(self.size())
    }
}

/// Entries that can be read. Those read are given back by [`Peeked::release`]; if it is dropped instead, the next
/// look shows them again.
pub struct Peeked<'a, S: RingStorage> {
    ring: &'a mut Consumer<S>,
    granted: u32,
    read: u32,
}

impl<S: RingStorage> Iterator for Peeked<'_, S> {
    type Item = S::Entry;

    fn next(&mut self) -> Option<S::Entry> {
        if self.read == self.granted {
            return None;
        }
        // SAFETY: the producer published this slot before its index, which was read with acquire, and does not
        // write it again before we give it back; `&mut` on the only consuming end keeps it ours until then.
        let entry = unsafe { self.ring.storage.read(self.ring.next.wrapping_add(self.read)) };
        self.read += 1;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.granted - self.read) as usize;
        (left, Some(left))
    }
}

impl<S: RingStorage> ExactSizeIterator for Peeked<'_, S> {}

impl<S: RingStorage> Peeked<'_, S> {
    /// Gives the slots that were read back to the producer. Returns how many.
    pub fn release(self) -> u32 {
        if self.read > 0 {
            self.ring.next = self.ring.next.wrapping_add(self.read);
            self.ring.storage.store_consumer(self.ring.next);
        }
        self.read
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
