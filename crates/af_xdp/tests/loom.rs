//! Every interleaving of a producer and a consumer on a small ring whose indices wrap at 2^32 on the way.

use af_xdp::{Consumer, Producer, RingStorage};
use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

struct Words {
    producer: AtomicU32,
    consumer: AtomicU32,
    slots: [UnsafeCell<u64>; 2],
}

#[derive(Clone)]
struct Ring(Arc<Words>);

// SAFETY: loom reports any access to a slot that is not ordered by the two indices.
unsafe impl Sync for Words {}

// SAFETY: two slots, orderings as asked, index masked.
unsafe impl RingStorage for Ring {
    type Entry = u64;

    fn size(&self) -> u32 {
        2
    }
    fn load_producer(&self) -> u32 {
        self.0.producer.load(Ordering::Acquire)
    }
    fn store_producer(&self, index: u32) {
        self.0.producer.store(index, Ordering::Release);
    }
    fn load_consumer(&self) -> u32 {
        self.0.consumer.load(Ordering::Acquire)
    }
    fn store_consumer(&self, index: u32) {
        self.0.consumer.store(index, Ordering::Release);
    }
    fn needs_wakeup(&self) -> bool {
        false
    }
    unsafe fn read(&self, index: u32) -> u64 {
        // SAFETY: the caller owns the slot, which loom checks.
        self.0.slots[index as usize % 2].with(|slot| unsafe { *slot })
    }
    unsafe fn write(&self, index: u32, entry: u64) {
        // SAFETY: the caller owns the slot, which loom checks.
        self.0.slots[index as usize % 2].with_mut(|slot| unsafe { *slot = entry });
    }
}

#[test]
fn every_interleaving_passes_entries_in_order() {
    loom::model(|| {
        let start = u32::MAX - 1;
        let ring = Ring(Arc::new(Words {
            producer: AtomicU32::new(start),
            consumer: AtomicU32::new(start),
            slots: [UnsafeCell::new(0), UnsafeCell::new(0)],
        }));
        // SAFETY: the only producing end.
        let mut producer = unsafe { Producer::new(ring.clone()) };
        // SAFETY: the only consuming end.
        let mut consumer = unsafe { Consumer::new(ring) };
        let writer = thread::spawn(move || {
            let mut next = 1;
            while next <= 4 {
                let mut room = producer.reserve(2);
                while next <= 4 && room.push(next) {
                    next += 1;
                }
                if room.submit() == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut expected = 1;
        while expected <= 4 {
            let mut seen = consumer.peek(2);
            for entry in seen.by_ref() {
                assert_eq!(entry, expected);
                expected += 1;
            }
            if seen.release() == 0 {
                thread::yield_now();
            }
        }
        writer.join().unwrap();
    });
}
