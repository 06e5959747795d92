//! The replay window over long random runs, against a model that keeps every number it has seen.
//!
//! A hundred million packets over all sizes of window together, some ten seconds of one core;
//! `CAUSEWAY_REPLAY_PACKETS=10000000000 cargo test --test ipsec_replay` runs more.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    thread,
};

use causeway::{
    crypto::{
        aead::{Backend, Key},
        replay::{self, BUCKETS, Refused, Window},
    },
    table::tunnel::{Former, SaIn},
};

/// SplitMix64: the same run every time.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ word >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }
}

/// Every number received, each in the place that it shares with numbers at least four windows away.
struct Model {
    size: u64,
    newest: u64,
    seen: Vec<u64>,
    late: u64,
    replayed: u64,
    behind: [u64; BUCKETS],
}

impl Model {
    fn new(size: u64, newest: u64) -> Self {
        Self { size, newest, seen: vec![0; 4 * size as usize], late: 0, replayed: 0, behind: [0; BUCKETS] }
    }

    fn take(&mut self, number: u64) -> Result<u64, Refused> {
        if number + self.size <= self.newest {
            self.late += 1;
            return Err(Refused::Late);
        }
        let place = (number % (4 * self.size)) as usize;
        if self.seen[place] == number {
            self.replayed += 1;
            return Err(Refused::Replayed);
        }
        self.seen[place] = number;
        let lateness = self.newest.saturating_sub(number);
        self.newest = self.newest.max(number);
        let bucket = if lateness == 0 { 0 } else { 1 + lateness.ilog2() as usize };
        self.behind[bucket] += 1;
        Ok(lateness)
    }
}

/// The number that a sender sends next, by where the receiver is: mostly the next, often late or again, now and then
/// far ahead or at the window's edge.
fn choose(random: &mut Random, newest: u64, size: u64, before: u64) -> u64 {
    let kind = random.below(64);
    let number = match kind {
        0..24 => newest + 1,
        24..32 => newest + 1 + random.below(4),
        32..40 => newest.saturating_sub(random.below(size)),
        40..48 => newest.saturating_sub(random.below(32)),
        48..54 => newest.saturating_sub(size) + random.below(66).saturating_sub(33),
        54..58 => before,
        58..61 => newest + 1 + random.below(3 * size),
        61 => newest.saturating_sub(random.below(4 * size)),
        62 => newest + random.below(1 << 20),
        // A gap as large as the receiver can still follow.
        _ if random.below(1024) == 0 => newest + random.below((1 << 32) - size),
        _ => newest + 1,
    };
    number.max(1)
}

fn run(size: u32, exclusive: bool, start: u64, packets: u64, seed: u64) {
    let window = Window::resume(size, exclusive, start);
    let size = u64::from(size);
    let (mut model, mut random) = (Model::new(size, start), Random(seed));
    // What came before is not known, so that all of it counts as received.
    for number in start.saturating_sub(size)..=start {
        model.seen[(number % (4 * size)) as usize] = number;
    }
    let (mut before, mut behind) = (start.max(1), [0; BUCKETS]);
    for _ in 0..packets {
        let number = choose(&mut random, model.newest, size, before);
        before = number;
        // Only what lies below the window can be taken for a number of the next round; no sender is so late.
        let edge = model.newest.saturating_sub(size - 1);
        if number >= edge {
            assert_eq!(window.esn_guess(number as u32), number, "of size {size} at {}", window.newest());
        }
        let (checked, expected) = (window.check(number), model.take(number));
        assert_eq!(checked.err(), expected.err(), "{number} of size {size} at {}", window.newest());
        let marked = window.mark(number);
        assert_eq!(marked, expected, "{number} of size {size} at {}", window.newest());
        if let Ok(lateness) = marked {
            behind[replay::behind(lateness)] += 1;
        }
    }
    assert_eq!(window.newest(), model.newest);
    assert_eq!(behind, model.behind);
    assert!(model.late > 0 && model.replayed > 0);
    assert_eq!(behind.iter().sum::<u64>() + model.late + model.replayed, packets);
}

#[test]
fn long_runs_of_every_size_agree_with_the_model() {
    let wanted = std::env::var("CAUSEWAY_REPLAY_PACKETS").ok();
    let packets: u64 = wanted.map_or(100_000_000, |text| text.parse().expect("a number of packets"));
    let sizes = (6..=16).map(|bits| 1u32 << bits);
    // From the beginning, across the first 2^32, across a later one, and close to where the sender must end.
    let starts = [0, (1 << 32) - 5000, (7 << 32) - 70_000, u64::MAX - (1 << 50)];
    let runs: Vec<(u32, u64, bool)> = sizes
        .flat_map(|size| starts.into_iter().flat_map(move |start| [false, true].map(|e| (size, start, e))))
        .collect();
    let each = packets.div_ceil(runs.len() as u64);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(size, start, exclusive)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let seed = u64::from(size) << 32 ^ start << 1 ^ u64::from(exclusive);
                    run(size, exclusive, start, each, seed);
                }
            });
        }
    });
}

/// The edge of 2^32 itself, number by number: what comes late from before it is known for what it is, what was seen is
/// refused, and the high half is the sender's in either direction.
#[test]
fn across_the_edge_of_32_bits_in_both_directions() {
    for size in [64, 1024, 65_536u32] {
        for high in [1u64, 2, 1 << 20, (1 << 31) - 1] {
            let edge = high << 32;
            let window = Window::resume(size, true, edge - u64::from(size));
            // Even numbers first, over the edge by half a window; then the odd ones, which are late.
            let half = u64::from(size / 2);
            let numbers = || edge - half + 2..edge + half - 2;
            for number in numbers().filter(|n| n % 2 == 0).chain(numbers().filter(|n| n % 2 == 1)) {
                assert_eq!(window.esn_guess(number as u32), number, "{number:#x}");
                assert!(window.mark(number).is_ok(), "{number:#x}");
            }
            for number in numbers() {
                assert_eq!(window.esn_guess(number as u32), number);
                assert_eq!(window.mark(number), Err(Refused::Replayed), "{number:#x}");
            }
            // Below the window the same low half can only mean the next round: not authentic there, and refused here.
            let late = window.newest() - u64::from(size);
            assert_eq!(window.check(late), Err(Refused::Late));
            assert_eq!(window.esn_guess(late as u32), late + (1 << 32));
        }
    }
}

/// Windows of every size that go on from every place in a word accept nothing up to there, and all after it.
#[test]
fn a_window_goes_on_exactly_after_what_was_received() {
    for size in [64, 128, 4096] {
        for newest in (0..200).chain([(1 << 32) - 1, 1 << 32, (1 << 32) + 31, 5 << 40]) {
            for exclusive in [false, true] {
                let window = Window::resume(size, exclusive, newest);
                assert_eq!(window.newest(), newest);
                for number in newest.saturating_sub(2 * u64::from(size))..=newest {
                    assert!(
                        window.check(number).is_err() && window.mark(number).is_err(),
                        "{number} of {newest}"
                    );
                }
                for number in (newest + 1..newest + 60).rev() {
                    assert!(window.mark(number).is_ok(), "{number} of {newest}");
                }
            }
        }
    }
}

/// Raising a window that is in use forgets nothing that it has seen.
#[test]
fn raising_a_window_keeps_what_is_newer() {
    let window = Window::new(64, false);
    for number in [10, 50, 70] {
        window.mark(number).unwrap();
    }
    window.raise(55);
    assert_eq!(window.newest(), 70);
    let accepted: Vec<u64> = (1..75).filter(|number| window.mark(*number).is_ok()).collect();
    assert_eq!(accepted, (56..70).chain(71..75).collect::<Vec<_>>());
}

/// A window of another size takes over exactly what the one before has seen.
#[test]
fn a_window_takes_over_what_another_has_seen() {
    let mut random = Random(7);
    for (from, to) in [(64, 64), (64, 1024), (1024, 64), (128, 4096), (4096, 256), (65_536, 128)] {
        for start in [0, 31, 1000, (1 << 32) - 40, 9 << 33] {
            let old = Window::resume(from, true, start);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..300 {
                let newest = old.newest();
                let number = (newest + random.below(9)).saturating_sub(random.below(40)).max(1);
                if old.mark(number).is_ok() {
                    seen.insert(number);
                }
            }
            // One that is new, and one that has seen something itself.
            let (new, used) = (Window::new(to, true), Window::new(to, false));
            let newest = old.newest();
            used.mark(newest + 20).unwrap();
            new.absorb(&old);
            used.absorb(&old);
            assert_eq!((new.newest(), used.newest()), (newest, newest + 20));
            let edge = (newest + 1).saturating_sub(from.min(to).into()).max(1);
            for number in newest.saturating_sub(2 * u64::from(to)).max(1)..newest + 60 {
                let fresh = number > newest || number >= edge && old.check(number).is_ok();
                assert_eq!(new.check(number).is_ok(), fresh, "{number}, newest {newest}, {from} to {to}");
                let fresh = fresh && number != newest + 20 && number + u64::from(to) > newest + 20;
                assert_eq!(used.check(number).is_ok(), fresh, "{number}, newest {newest}, {from} to {to}");
            }
            assert!(seen.iter().all(|number| new.mark(*number).is_err()));
        }
    }
}

fn opening(window: &Arc<Window>, former: Option<&Arc<Former>>) -> SaIn {
    SaIn {
        remote: 0,
        window: Arc::clone(window),
        former: former.cloned(),
        spi: 256,
        index: 0,
        tunnel: 0,
        gateway: 0,
        underlay: 0,
        esn: true,
        udp: false,
        ended: AtomicBool::new(false),
        key: Key::new(Backend::Reference, &[1; 16], [2; 4]).unwrap(),
    }
}

/// What a worker has of the association at the time.
type Which<'a> = &'a dyn Fn() -> &'a SaIn;

/// Shows a worker every number, a little out of order.
fn present(seed: u64, all: std::ops::Range<usize>, which: Which<'_>, taken: &[AtomicU8]) {
    let mut random = Random(seed);
    for block in all.clone().step_by(16) {
        let mut numbers: Vec<usize> = (block..(block + 16).min(all.end)).collect();
        for place in (1..numbers.len()).rev() {
            numbers.swap(place, random.below(place as u64 + 1) as usize);
        }
        for number in numbers {
            let sa = which();
            if sa.check_at(sa.window.newest(), number as u64).is_ok() && sa.mark(number as u64).is_ok() {
                taken[number].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// While a window is replaced, one worker has the new tables and another still the old ones. Whichever of them gets a
/// number first takes it, and nobody takes it again: not before, while, or after all have the new window.
#[test]
fn a_window_that_is_replaced_under_two_workers_takes_each_number_once() {
    const NUMBERS: usize = 40_000;
    for (from, to) in [(64, 4096), (4096, 64), (1024, 0), (0, 1024), (65_536, 64)] {
        let make = |size| Arc::new(if size == 0 { Window::disabled() } else { Window::new(size, false) });
        let (old, new) = (make(from), make(to));
        let former = Arc::new(Former::new(Arc::clone(&old), None));
        let before = opening(&old, None);
        let after = opening(&new, Some(&former));
        let settled = opening(&new, None);
        let taken: Vec<AtomicU8> = (0..=NUMBERS).map(|_| AtomicU8::new(0)).collect();
        let (start, passed) = (Barrier::new(3), Barrier::new(2));
        let work = |seed, numbers, which: Which<'_>| present(seed, numbers, which, &taken);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                work(1, 1..NUMBERS, &|| &after);
            });
            scope.spawn(|| {
                start.wait();
                work(2, 1..NUMBERS / 2, &|| &before);
                passed.wait();
                work(3, NUMBERS / 2..NUMBERS, &|| if former.is_over() { &settled } else { &after });
            });
            start.wait();
            passed.wait();
            former.end(&new);
            assert!(former.is_over());
        });
        let times =
            |times: u8| taken[1..NUMBERS].iter().filter(|n| n.load(Ordering::Relaxed) == times).count();
        if from != 0 && to != 0 {
            // A worker that was stopped between two looks at a number finds the window gone on: that one is lost.
            assert!(
                times(0) <= 16 && times(0) + times(1) == NUMBERS - 1,
                "{from} to {to}: {} lost",
                times(0)
            );
        }
        // What one of them has taken is known to all from now on.
        if to != 0 {
            for (number, taken) in taken.iter().enumerate().skip(1) {
                let again = taken.load(Ordering::Relaxed) > 0 && settled.mark(number as u64).is_ok();
                assert!(!again, "{number} again, {from} to {to}");
            }
        }
    }
}
