//! The replay window over long random runs, against a model that keeps every number it has seen.
//!
//! `CAUSEWAY_REPLAY_PACKETS=100000000 cargo test --test ipsec_replay` runs so many packets over all sizes of window
//! together; without it there are ten million.

use causeway::crypto::replay::{self, BUCKETS, Refused, Window};

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
    let packets: u64 = wanted.map_or(10_000_000, |text| text.parse().expect("a number of packets"));
    let sizes = (6..=16).map(|bits| 1u32 << bits);
    // From the beginning, across the first 2^32, across a later one, and close to where the sender must end.
    let starts = [0, (1 << 32) - 5000, (7 << 32) - 70_000, u64::MAX - (1 << 50)];
    let runs = 11 * starts.len() as u64 * 2;
    let mut seed = 0;
    for size in sizes {
        for start in starts {
            for exclusive in [false, true] {
                seed += 1;
                run(size, exclusive, start, packets.div_ceil(runs), seed);
            }
        }
    }
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
