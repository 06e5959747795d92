//! The window against a set of numbers, and against workers that mark the same ones.

use std::{
    collections::BTreeSet,
    sync::{
        Barrier,
        atomic::{AtomicU32, AtomicU64},
    },
    thread,
};

use proptest::prelude::*;

use super::*;

/// What the window should do, said as plainly as possible.
struct Model {
    size: u64,
    newest: u64,
    seen: BTreeSet<u64>,
}

impl Model {
    fn new(size: u64) -> Self {
        Self { size, newest: 0, seen: BTreeSet::new() }
    }

    fn check(&self, sequence: u64) -> Result<(), Refused> {
        if sequence == 0 {
            Err(Refused::Zero)
        } else if self.newest >= sequence && self.newest - sequence >= self.size {
            Err(Refused::Late)
        } else if self.seen.contains(&sequence) {
            Err(Refused::Replayed)
        } else {
            Ok(())
        }
    }

    fn mark(&mut self, sequence: u64) -> Result<u64, Refused> {
        self.check(sequence)?;
        self.newest = self.newest.max(sequence);
        self.seen.insert(sequence);
        if self.newest > self.size {
            self.seen = self.seen.split_off(&(self.newest - self.size + 1));
        }
        Ok(self.newest - sequence)
    }
}

/// The two cases of RFC 4303 appendix A2.2, as written there, with Th = 0 never taken below.
fn guess_of_the_rfc(newest: u64, size: u32, low: u32) -> u64 {
    let (th, tl) = ((newest >> 32) as u32, newest as u32);
    let high = if tl >= size - 1 {
        let bl = tl - size + 1;
        if low >= bl { th } else { th.wrapping_add(1) }
    } else {
        let bl = tl.wrapping_sub(size).wrapping_add(1);
        if low >= bl && th > 0 { th - 1 } else { th }
    };
    u64::from(high) << 32 | u64::from(low)
}

/// A step of a test, relative to the newest number so that most of it falls on edges.
#[derive(Debug, Clone, Copy)]
enum Step {
    Ahead(u64),
    Behind(u64),
    AtEdge(i64),
    Again,
}

fn step(size: u64) -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..=3u64).prop_map(Step::Ahead),
        2 => (1..size * 3).prop_map(Step::Ahead),
        1 => (1..1u64 << 33).prop_map(Step::Ahead),
        8 => (0..size).prop_map(Step::Behind),
        2 => (0..size * 3).prop_map(Step::Behind),
        3 => (-40..40i64).prop_map(Step::AtEdge),
        2 => Just(Step::Again),
    ]
}

/// As [`step`], now and then beyond what block numbers tell apart.
fn step_or_leap(size: u64) -> impl Strategy<Value = Step> {
    prop_oneof![200 => step(size), 1 => (1 << 33..1u64 << 40).prop_map(Step::Ahead)]
}

fn run(size: u64, exclusive: bool, start: u64, steps: &[Step]) {
    let window = Window::new(size as u32, exclusive);
    let mut model = Model::new(size);
    let mut last = start;
    if start > 0 {
        assert_eq!(window.mark(start), model.mark(start));
    }
    for step in steps {
        let newest = model.newest;
        let sequence = match *step {
            Step::Ahead(n) => newest + n,
            Step::Behind(n) => newest.saturating_sub(n),
            Step::AtEdge(n) => newest.saturating_sub(size).saturating_add_signed(n),
            Step::Again => last,
        };
        last = sequence;
        assert_eq!(window.check(sequence), model.check(sequence), "check {sequence} at {newest}");
        assert_eq!(window.mark(sequence), model.mark(sequence), "mark {sequence} at {newest}");
        assert_eq!(window.newest(), model.newest);
    }
    // At the end every number of the window, and some around it, is as the model has it.
    let newest = model.newest;
    for sequence in newest.saturating_sub(size + 70)..=newest + 70 {
        assert_eq!(window.check(sequence), model.check(sequence), "{sequence} at {newest}");
    }
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 6..=10u32, 1 => 11..=16u32].prop_map(|power| 1 << power)
}

/// Where the low half, the block number's 32 bits, and the ring come round.
fn start() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        (0..200u64).prop_map(|n| (1 << 32) - n),
        (0..200u64).prop_map(|n| (1 << 36) - n),
        (0..200u64).prop_map(|n| (1 << 37) - n),
        (0..200u64).prop_map(|n| (1 << 38) - n),
        (0..200u64).prop_map(|n| (1 << 63) - n),
        1..1u64 << 62,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn as_a_set_of_numbers(
        (size, steps) in size().prop_flat_map(|size| (Just(size), prop::collection::vec(step(size), 0..1500))),
        start in start(),
        exclusive: bool,
    ) {
        run(size, exclusive, start, &steps);
    }

    #[test]
    fn guesses_as_the_rfc(newest in start(), power in 6..=16u32, low: u32, near in -70_000..70_000i64) {
        let window = Window::new(1 << power, true);
        if newest > 0 {
            window.mark(newest).unwrap();
        }
        for low in [low, newest.wrapping_add_signed(near) as u32, 0, 1, u32::MAX] {
            prop_assert_eq!(window.esn_guess(low), guess_of_the_rfc(newest, 1 << power, low));
        }
    }

    /// A sender's number is guessed right as long as it is in the window or less than 2^32 beyond it.
    #[test]
    fn guesses_the_senders_number(newest in start(), power in 6..=16u32, offset in 0..1u64 << 32) {
        let size = 1u64 << power;
        let window = Window::new(size as u32, false);
        if newest > 0 {
            window.mark(newest).unwrap();
        }
        let sent = newest.saturating_sub(size - 1) + offset;
        prop_assert_eq!(window.esn_guess(sent as u32), sent);
    }
}

#[test]
fn sizes_are_rounded_and_bounded() {
    for (asked, size) in
        [(0, 64), (64, 64), (65, 128), (1000, 1024), (65535, 65536), (65536, 65536), (u32::MAX, 65536)]
    {
        let window = Window::new(asked, true);
        assert_eq!(window.mark(200_000), Ok(0));
        assert_eq!(window.check(200_000 - size + 1), Ok(()));
        assert_eq!(window.check(200_000 - size), Err(Refused::Late));
    }
}

#[test]
fn zero_is_refused_until_it_is_the_low_half_of_a_number() {
    let window = Window::new(64, true);
    assert_eq!(window.esn_guess(0), 0);
    assert_eq!((window.check(0), window.mark(0)), (Err(Refused::Zero), Err(Refused::Zero)));
    assert_eq!(window.mark(0xffff_fff0), Ok(0));
    assert_eq!(window.esn_guess(0), 1 << 32);
    assert_eq!(window.mark(1 << 32), Ok(0));
    assert_eq!(window.mark(0xffff_fff1), Ok(15));
    assert_eq!(window.esn_guess(0xffff_fff1), 0xffff_fff1);
}

/// A million numbers in order over the edge of 2^32, each then once more.
#[test]
fn every_number_once_in_order() {
    for exclusive in [true, false] {
        let window = Window::new(1024, exclusive);
        let start = (1 << 32) - 250_000;
        for sequence in start..start + 500_000 {
            assert_eq!(window.esn_guess(sequence as u32), sequence);
            assert_eq!(window.mark(sequence), Ok(0));
            assert_eq!(window.mark(sequence), Err(Refused::Replayed));
        }
    }
}

/// A sender that uses few numbers leaves most words alone: they must not come to look new as block numbers wrap.
#[test]
fn words_left_alone_do_not_age_into_the_future() {
    for exclusive in [true, false] {
        let window = Window::new(64, exclusive);
        let mut sequence = 0u64;
        // Marks every number of the first ring, then only numbers of one word, for more than 2^38.
        for n in 1..=128 {
            assert_eq!(window.mark(n), Ok(0));
        }
        while sequence < 1 << 38 {
            sequence += (1 << 32) - 128;
            assert_eq!(window.mark(sequence), Ok(0));
        }
        for behind in 1..64 {
            assert_eq!(window.mark(sequence - behind), Ok(behind));
            assert_eq!(window.mark(sequence - behind), Err(Refused::Replayed));
        }
        assert_eq!(window.mark(sequence - 64), Err(Refused::Late));
    }
}

#[test]
fn without_a_window_everything_is_accepted_and_the_nearest_number_guessed() {
    let window = Window::disabled();
    let newest = (7 << 32) + 5;
    assert_eq!(window.mark(newest), Ok(0));
    assert_eq!(window.mark(newest), Ok(0));
    assert_eq!(window.check(1), Ok(()));
    assert_eq!(window.mark(newest - 100_000), Ok(100_000));
    assert_eq!(window.mark(0), Ok(newest));
    assert_eq!(window.newest(), newest);
    assert_eq!(window.esn_guess(u32::MAX), (7 << 32) - 1);
    assert_eq!(window.esn_guess(6), (7 << 32) + 6);
    assert_eq!(window.esn_guess(0x7fff_0000), (7 << 32) + 0x7fff_0000);
    assert_eq!(window.esn_guess(0x8000_0010), (6 << 32) + 0x8000_0010);
}

/// Workers mark the same numbers in different orders: each number is accepted at most once, and exactly once where
/// none can fall behind.
fn share(workers: u64, size: u32, total: u64, spread: u64, start: u64) -> (Vec<u32>, u64) {
    let window = Window::new(size, false);
    let accepted: Vec<AtomicU32> = (0..total).map(|_| AtomicU32::new(0)).collect();
    let refused_late = AtomicU64::new(0);
    let barrier = Barrier::new(workers as usize);
    thread::scope(|scope| {
        for worker in 0..workers {
            let (window, accepted, refused_late, barrier) = (&window, &accepted, &refused_late, &barrier);
            scope.spawn(move || {
                // Shuffles within groups of `spread`, in an order of its own, and waits for the others at each.
                for group in 0..total / spread {
                    barrier.wait();
                    for n in 0..spread {
                        let mixed = ((n * 5 + worker * 31) % spread) ^ worker;
                        let index = group * spread + mixed % spread;
                        match window.mark(start + index) {
                            Ok(_) => {
                                accepted[index as usize].fetch_add(1, Relaxed);
                            }
                            Err(Refused::Late) => {
                                refused_late.fetch_add(1, Relaxed);
                            }
                            Err(Refused::Replayed) => {}
                            Err(Refused::Zero) => panic!("not zero"),
                        }
                    }
                }
            });
        }
    });
    (accepted.into_iter().map(AtomicU32::into_inner).collect(), refused_late.into_inner())
}

#[test]
fn shared_each_number_is_accepted_exactly_once() {
    for (workers, start) in [(2, 1), (3, (1 << 37) - 50_000), (4, (1 << 32) - 50_000)] {
        // A group fits the smallest window, so nothing may be refused as late.
        for (size, spread) in [(64, 64), (1024, 512)] {
            let (accepted, late) = share(workers, size, 1 << 17, spread, start);
            assert!(accepted.iter().all(|times| *times == 1), "{workers} workers, window {size}");
            assert_eq!(late, 0);
        }
    }
}

#[test]
fn shared_no_number_is_accepted_twice_when_workers_race_ahead() {
    // Groups of many windows: words are reused while other workers are still marking in them.
    for workers in 2..=4 {
        let (accepted, late) = share(workers, 64, 1 << 18, 1 << 14, 1);
        assert!(accepted.iter().all(|times| *times <= 1));
        assert!(late > 0, "the test should make workers fall behind");
    }
}

/// What a worker finds that read `top` before others moved the window on by more than the ring: nothing may be set
/// in a word that is about a newer block, nor the block set back.
#[test]
fn a_word_that_has_moved_on_refuses_an_old_number() {
    let newer = with_bit(0, 37 * 32).unwrap();
    assert_eq!(with_bit(newer, 5 * 32), Err(Refused::Late));
    assert_eq!(with_bit(newer, 37 * 32), Err(Refused::Replayed));
    assert_eq!(with_bit(newer, 37 * 32 + 1), Ok(37 << 32 | 3));
    assert_eq!(with_bit(newer, 69 * 32 + 1), Ok(69 << 32 | 2));
    // Over the end of the block number's 32 bits.
    let last = with_bit(0xffff_ffff << 32, 0xffff_ffff << 5).unwrap();
    assert_eq!(with_bit(last, 1 << 37), Ok(1));
    assert_eq!(with_bit(1, 0xffff_ffff << 5), Err(Refused::Late));
}

proptest! {
    #[test]
    fn several_numbers_at_once_are_accepted_as_one_after_the_other(
        size in prop_oneof![Just(64u32), Just(128), Just(1024)],
        exclusive in any::<bool>(),
        start in prop_oneof![Just(0u64), Just(1 << 32), 1..1u64 << 40],
        bursts in prop::collection::vec(prop::collection::vec(step_or_leap(128), 1..64), 1..20),
    ) {
        let (one_by_one, at_once) = (Window::resume(size, exclusive, start), Window::resume(size, exclusive, start));
        let mut last = start;
        for steps in bursts {
            let mut newest = at_once.newest();
            let numbers: Vec<u64> = steps
                .into_iter()
                .map(|step| {
                    let number = match step {
                        Step::Ahead(n) => newest + n,
                        Step::Behind(n) => newest.saturating_sub(n),
                        Step::AtEdge(n) => (newest.saturating_sub(size.into())).saturating_add_signed(n),
                        Step::Again => last,
                    };
                    (newest, last) = (newest.max(number), number);
                    number
                })
                .collect();
            let expected: Vec<_> = numbers.iter().map(|number| one_by_one.mark(*number)).collect();
            // What nothing is told of is newer than all before.
            let mut results = vec![Ok(0); numbers.len()];
            let mut told = BTreeSet::new();
            at_once.mark_all(&numbers, |first, marked| {
                for (place, result) in results_of(first, marked) {
                    results[place] = result;
                    assert!(told.insert(place), "each is told of once");
                }
            });
            prop_assert_eq!(results, expected);
            prop_assert_eq!(at_once.newest(), one_by_one.newest());
        }
    }
}

/// What [`Window::mark`] would return of each number, by place.
fn results_of(first: usize, marked: Marked<'_>) -> Vec<(usize, Result<u64, Refused>)> {
    match marked {
        Marked::Behind { numbers, newest } => {
            numbers.iter().enumerate().map(|(place, number)| (first + place, Ok(newest - number))).collect()
        }
        Marked::Refused(refused) => vec![(first, Err(refused))],
    }
}

#[test]
fn workers_that_mark_the_same_numbers_in_bursts_accept_each_once() {
    let window = Window::new(1024, false);
    let accepted: Vec<AtomicU32> = (0..40_000).map(|_| AtomicU32::new(0)).collect();
    let barrier = Barrier::new(3);
    thread::scope(|scope| {
        for worker in 0..3_u64 {
            let (window, accepted, barrier) = (&window, &accepted, &barrier);
            scope.spawn(move || {
                barrier.wait();
                // Overlapping bursts of different lengths, each out of order in itself.
                let length = 40 + 10 * worker;
                let mut start = 1;
                while start + length < 40_000 {
                    let numbers: Vec<u64> = (start..start + length).map(|n| n ^ 1).collect();
                    let mut refused = BTreeSet::new();
                    window.mark_all(&numbers, |place, marked| {
                        if matches!(marked, Marked::Refused(_)) {
                            refused.insert(place);
                        }
                    });
                    for place in (0..numbers.len()).filter(|place| !refused.contains(place)) {
                        accepted[numbers[place] as usize].fetch_add(1, Relaxed);
                    }
                    start += length - 7;
                }
            });
        }
    });
    assert!(accepted.iter().all(|count| count.load(Relaxed) <= 1));
    assert!(accepted.iter().filter(|count| count.load(Relaxed) == 1).count() > 10_000);
}

/// A leap that sets all words outright must not undo what is marked by it.
#[test]
fn a_burst_beyond_what_block_numbers_tell_apart_is_remembered() {
    for exclusive in [true, false] {
        let window = Window::new(64, exclusive);
        for start in [1 << 20, (1 << 36) + (1 << 20), 1 << 41] {
            let numbers: Vec<u64> = (start..start + 60).collect();
            window.mark_all(&numbers, |place, marked| panic!("{place} of {start}: {marked:?}"));
            let mut refused = 0;
            window.mark_all(&numbers, |_, marked| {
                refused += u32::from(marked == Marked::Refused(Refused::Replayed));
            });
            assert_eq!(refused, 60, "{start}");
        }
    }
}

/// What several workers find who read `top` at different times: a number is as it was then, or refused for good.
#[test]
fn what_is_checked_against_an_older_newest_number_is_marked_once() {
    let window = Window::new(64, false);
    window.mark_all(&[1, 2, 3], |place, _| panic!("{place}"));
    let before = window.newest();
    window.mark_all(&[5, 200], |place, _| panic!("{place}"));
    assert_eq!(window.check_at(before, 150), Ok(()), "newer than all, then");
    assert_eq!(window.check_at(before, 3), Err(Refused::Replayed));
    assert_eq!(window.check_at(before, 2), window.check_at(before, 1));
    assert_eq!((window.mark(150), window.mark(150)), (Ok(50), Err(Refused::Replayed)));
    assert_eq!(window.mark(200), Err(Refused::Replayed));
    assert_eq!(window.mark(136), Err(Refused::Late));
}

#[test]
fn without_a_window_several_numbers_are_all_accepted() {
    let window = Window::disabled();
    let mut results = Vec::new();
    window.mark_all(&[5, 5, 3, 9], |first, marked| results.extend(results_of(first, marked)));
    assert_eq!(results, [(1, Ok(0)), (2, Ok(2))]);
    assert_eq!(window.newest(), 9);
}
