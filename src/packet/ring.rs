//! A ring of fixed size between one writer and one reader, without locks.
//!
//! The writer fills places and publishes them together; the reader empties what was published and gives the places
//! back together. Each keeps a copy of how far the other has come and looks again only when that is not enough, so
//! that the two cache lines change hands once a burst, not once an entry.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use crossbeam::utils::CachePadded;

use super::sync::{Arc, AtomicUsize, Ordering, UnsafeCell};

struct Shared<T> {
    /// A power of two.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Entries ever published. The writer's.
    published: CachePadded<AtomicUsize>,
    /// Entries ever taken. The reader's.
    taken: CachePadded<AtomicUsize>,
}

// SAFETY: a slot is reached by the writer from when the reader has given it back until it is published, and by the
// reader from then until it gives it back; both hand-overs are Release stores that the other loads with Acquire. The
// entries themselves change threads, so they must be Send.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, index: usize) -> Option<&UnsafeCell<MaybeUninit<T>>> {
        self.slots.get(index & (self.slots.len() - 1))
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Nobody else has it any more.
        let (mut at, end) = (self.taken.load(Ordering::Acquire), self.published.load(Ordering::Acquire));
        while at != end {
            if let Some(slot) = self.slot(at) {
                // Slots between what was taken and what was published hold an entry each.
                slot.with_mut(|slot| {
                    // SAFETY: nobody else reaches it.
                    let slot = unsafe { &mut *slot };
                    // SAFETY: as said above.
                    unsafe { slot.assume_init_drop() }
                });
            }
            at = at.wrapping_add(1);
        }
    }
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring of {}", self.slots.len())
    }
}

/// The writer's end.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Entries ever written, published or not.
    written: usize,
    /// Entries that the reader had taken when last looked.
    taken: usize,
    /// Entries published.
    published: usize,
}

/// The reader's end.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// Entries ever read, given back or not.
    read: usize,
    /// Entries that were published when last looked.
    published: usize,
}

/// A ring for at least `capacity` entries.
#[must_use]
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let slots = (0..capacity.max(1).next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit()));
    let shared = Arc::new(Shared {
        slots: slots.collect(),
        published: CachePadded::new(AtomicUsize::new(0)),
        taken: CachePadded::new(AtomicUsize::new(0)),
    });
    let producer = Producer { shared: Arc::clone(&shared), written: 0, taken: 0, published: 0 };
    (producer, Consumer { shared, read: 0, published: 0 })
}

impl<T> Producer<T> {
    /// Whether another entry finds room.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        let capacity = self.shared.slots.len();
        if self.written.wrapping_sub(self.taken) < capacity {
            return true;
        }
        self.taken = self.shared.taken.load(Ordering::Acquire);
        self.written.wrapping_sub(self.taken) < capacity
    }

    /// Writes an entry, which the reader sees after the next [`Producer::publish`].
    ///
    /// # Errors
    /// The entry itself, when there is no room.
    #[inline]
    pub fn push(&mut self, entry: T) -> Result<(), T> {
        if !self.has_room() {
            return Err(entry);
        }
        let Some(slot) = self.shared.slot(self.written) else { return Err(entry) };
        slot.with_mut(|slot| {
            // SAFETY: the reader has given this slot back (or never had it): `has_room` saw that with Acquire.
            unsafe { (*slot).write(entry) };
        });
        self.written = self.written.wrapping_add(1);
        Ok(())
    }

    /// Shows the reader what was written. Whether there was anything new.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.written {
            return false;
        }
        self.published = self.written;
        self.shared.published.store(self.written, Ordering::Release);
        true
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        // What was written and not shown would never be dropped.
        self.publish();
    }
}

impl<T> Consumer<T> {
    /// Whether nothing is there to be taken.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.read == self.published {
            self.published = self.shared.published.load(Ordering::Acquire);
        }
        self.read == self.published
    }

    /// Takes the next entry. The writer gets its place back with [`Consumer::give_back`].
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let slot = self.shared.slot(self.read)?;
        let entry = slot.with(|slot| {
            // SAFETY: the writer has published this slot, which `is_empty` saw with Acquire, and leaves it alone until
            // it is given back.
            let slot = unsafe { &*slot };
            // SAFETY: it holds an entry, and is read once: `read` moves on below.
            unsafe { slot.assume_init_read() }
        });
        self.read = self.read.wrapping_add(1);
        Some(entry)
    }

    /// Gives the places of what was taken back to the writer.
    #[inline]
    pub fn give_back(&mut self) {
        self.shared.taken.store(self.read, Ordering::Release);
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.give_back();
    }
}
