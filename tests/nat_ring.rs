//! Every interleaving of the two ends of the ring that packets go from worker to worker by.

mod sync {
    pub use loom::{
        cell::UnsafeCell,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };
}

#[allow(dead_code)]
#[path = "../src/packet/ring.rs"]
mod ring;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use loom::thread;

/// Two places, five entries: the ring is full, empty, and comes round, in every order that two threads allow.
#[test]
fn every_interleaving_passes_entries_in_order() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::ring::<Box<usize>>(2);
        let reader = thread::spawn(move || {
            let mut next = 0;
            for _ in 0..3 {
                while let Some(entry) = consumer.pop() {
                    assert_eq!(*entry, next);
                    next += 1;
                }
                consumer.give_back();
                thread::yield_now();
            }
            (consumer, next)
        });
        let mut written = 0;
        for _ in 0..4 {
            if producer.push(Box::new(written)).is_ok() {
                written += 1;
            }
            if written % 2 == 1 {
                producer.publish();
            }
        }
        producer.publish();
        let (mut consumer, mut next) = reader.join().unwrap();
        while let Some(entry) = consumer.pop() {
            assert_eq!(*entry, next);
            next += 1;
        }
        assert_eq!(next, written);
    });
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was taken, and what was not, is dropped once, whichever end goes first.
#[test]
fn every_entry_is_dropped_once() {
    loom::model(|| {
        let drops = Arc::new(AtomicUsize::new(0));
        let (mut producer, mut consumer) = ring::ring(4);
        let reader = thread::spawn(move || {
            drop(consumer.pop());
        });
        for n in 0..3 {
            let _ = producer.push(Counted(Arc::clone(&drops)));
            if n == 1 {
                producer.publish();
            }
        }
        drop(producer);
        reader.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 3);
    });
}
