//! A ring of plain memory stands in for the kernel's: runs under Miri too. `tests/loom.rs` has the interleavings.

use std::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use super::*;

struct Words {
    producer: AtomicU32,
    consumer: AtomicU32,
    flags: AtomicU32,
    slots: Vec<UnsafeCell<u64>>,
}

// SAFETY: slots are reached only through the two ends, whose protocol these tests check.
unsafe impl Sync for Words {}

// SAFETY: size is a power of two (see `ring`), orderings are as asked, and the index is masked.
unsafe impl RingStorage for Arc<Words> {
    type Entry = u64;

    fn size(&self) -> u32 {
        self.slots.len() as u32
    }
    fn load_producer(&self) -> u32 {
        self.producer.load(Ordering::Acquire)
    }
    fn store_producer(&self, index: u32) {
        self.producer.store(index, Ordering::Release);
    }
    fn load_consumer(&self) -> u32 {
        self.consumer.load(Ordering::Acquire)
    }
    fn store_consumer(&self, index: u32) {
        self.consumer.store(index, Ordering::Release);
    }
    fn needs_wakeup(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & 1 != 0
    }
    unsafe fn read(&self, index: u32) -> u64 {
        // SAFETY: the caller owns the slot.
        unsafe { *self.slots[index as usize % self.slots.len()].get() }
    }
    unsafe fn write(&self, index: u32, entry: u64) {
        // SAFETY: the caller owns the slot.
        unsafe { *self.slots[index as usize % self.slots.len()].get() = entry }
    }
}

fn ring(size: usize, start: u32) -> (Arc<Words>, Producer<Arc<Words>>, Consumer<Arc<Words>>) {
    assert!(size.is_power_of_two());
    let words = Arc::new(Words {
        producer: start.into(),
        consumer: start.into(),
        flags: 0.into(),
        slots: (0..size).map(|_| UnsafeCell::new(u64::MAX)).collect(),
    });
    // SAFETY: the only producing end of a new ring.
    let producer = unsafe { Producer::new(Arc::clone(&words)) };
    // SAFETY: the only consuming end of a new ring.
    let consumer = unsafe { Consumer::new(Arc::clone(&words)) };
    (words, producer, consumer)
}

fn put(producer: &mut Producer<Arc<Words>>, entries: std::ops::Range<u64>) -> u32 {
    let mut room = producer.reserve((entries.end - entries.start) as u32);
    for entry in entries {
        if !room.push(entry) {
            break;
        }
    }
    room.submit()
}

fn take(consumer: &mut Consumer<Arc<Words>>, wanted: u32) -> Vec<u64> {
    let mut seen = consumer.peek(wanted);
    let entries = seen.by_ref().collect();
    seen.release();
    entries
}

#[test]
fn full_and_empty() {
    let (_, mut producer, mut consumer) = ring(8, 0);
    assert!(take(&mut consumer, 8).is_empty());
    assert_eq!(put(&mut producer, 0..20), 8);
    assert_eq!(producer.reserve(1).room(), 0);
    assert_eq!(put(&mut producer, 100..101), 0);
    assert_eq!(take(&mut consumer, 3), [0, 1, 2]);
    assert_eq!(put(&mut producer, 8..20), 3);
    assert_eq!(take(&mut consumer, 64), [3, 4, 5, 6, 7, 8, 9, 10]);
    assert!(take(&mut consumer, 1).is_empty());
}

#[test]
fn indices_wrap_at_two_to_the_32() {
    for start in [u32::MAX, u32::MAX - 3, u32::MAX - 7, u32::MAX - 8, 0x7fff_fffe] {
        let (words, mut producer, mut consumer) = ring(8, start);
        let mut next = 0;
        for round in 0..10 {
            let size = 1 + round % 8;
            assert_eq!(
                u64::from(put(&mut producer, next..next + size)),
                size,
                "start {start}, round {round}"
            );
            assert_eq!(u64::from(producer.pending()), size);
            assert_eq!(producer.outstanding().collect::<Vec<_>>(), (next..next + size).collect::<Vec<_>>());
            assert_eq!(u64::from(consumer.waiting()), size);
            assert_eq!(take(&mut consumer, 8), (next..next + size).collect::<Vec<_>>());
            next += size;
        }
        assert_eq!(words.load_producer(), start.wrapping_add(next as u32));
        assert_eq!(words.load_consumer(), words.load_producer());
    }
}

#[test]
fn a_full_ring_across_the_wrap_stays_full() {
    let (_, mut producer, mut consumer) = ring(8, u32::MAX - 4);
    assert_eq!(put(&mut producer, 0..8), 8);
    assert_eq!(put(&mut producer, 8..9), 0);
    assert_eq!(take(&mut consumer, 8), (0..8).collect::<Vec<_>>());
}

#[test]
fn nothing_is_published_or_given_back_without_a_word() {
    let (words, mut producer, mut consumer) = ring(4, 0);
    assert!(producer.reserve(2).push(1));
    assert_eq!(words.load_producer(), 0);
    put(&mut producer, 7..9);
    assert_eq!(consumer.peek(4).next(), Some(7));
    assert_eq!(words.load_consumer(), 0);
    let mut seen = consumer.peek(4);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen.next(), Some(7));
    assert_eq!(seen.release(), 1);
    assert_eq!(take(&mut consumer, 4), [8]);
}

#[test]
fn an_impossible_index_of_the_other_side_does_no_harm() {
    let (words, mut producer, mut consumer) = ring(4, 100);
    put(&mut producer, 0..1);
    words.store_consumer(103);
    assert_eq!(producer.reserve(4).room(), 0);
    assert_eq!(producer.outstanding().count(), 4);
    words.store_consumer(100);
    words.store_producer(100 + 5000);
    assert_eq!(consumer.waiting(), 4);
    assert_eq!(consumer.peek(u32::MAX).len(), 4);
}

#[test]
fn the_wakeup_flag_is_read_every_time() {
    let (words, producer, _) = ring(4, 0);
    assert!(!producer.needs_wakeup());
    words.flags.store(1, Ordering::Relaxed);
    assert!(producer.needs_wakeup());
}

#[test]
fn two_threads_pass_every_entry_once_and_in_order() {
    let total: u64 = if cfg!(miri) { 300 } else { 200_000 };
    let (_, mut producer, mut consumer) = ring(64, u32::MAX - 100);
    let writer = thread::spawn(move || {
        let mut next = 0;
        while next < total {
            next += u64::from(put(&mut producer, next..(next + 1 + next % 37).min(total)));
            if next % 7 == 0 {
                thread::yield_now();
            }
        }
    });
    let mut expected = 0;
    while expected < total {
        for entry in take(&mut consumer, 1 + (expected % 29) as u32) {
            assert_eq!(entry, expected);
            expected += 1;
        }
        thread::yield_now();
    }
    writer.join().unwrap();
    assert!(take(&mut consumer, 64).is_empty());
}
