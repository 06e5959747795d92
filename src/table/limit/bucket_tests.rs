//! Buckets against a model that is exact, and in the hands of several workers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::bucket::*;

const SECOND: u64 = 1_000_000_000;

/// How many of `lens` pass at `now`, and their bytes: as a stage asks.
fn run(terms: Terms, bucket: &Bucket, purse: &Purse, lens: &[u64], now: u64) -> Vec<bool> {
    let mut account = Account::open(terms, bucket, purse);
    let all = account.pay_all(lens.iter().sum(), || lens.iter().copied().min().unwrap_or(0), now);
    let passed = lens.iter().map(|len| all || account.pay(*len)).collect();
    account.close();
    passed
}

fn terms(cap: Cap) -> Terms {
    let rate = Rate::default();
    rate.set(Some(cap));
    rate.terms().unwrap()
}

/// A token bucket as the books have it, in whole 8e9ths of a byte.
struct Exact {
    rate: u128,
    burst: u128,
    tokens: u128,
    at: u64,
}

impl Exact {
    fn pass(&mut self, len: u64, now: u64) -> bool {
        const BYTE: u128 = 8_000_000_000;
        self.tokens = (self.tokens + u128::from(now - self.at) * self.rate).min(self.burst * BYTE);
        self.at = now;
        let enough = self.tokens >= u128::from(len) * BYTE;
        self.tokens -= if enough { u128::from(len) * BYTE } else { 0 };
        enough
    }
}

/// The bytes that a saturated bucket lets pass from `from` for `time`, offered bursts of `packets` packets of `len`
/// bytes every `every` ns.
fn passed(cap: Cap, len: u64, packets: usize, every: u64, from: u64, time: u64) -> u64 {
    let (bucket, purse, terms) = (Bucket::default(), Purse::default(), terms(cap));
    let lens = vec![len; packets];
    // Saturated: what a pause has saved is gone.
    let mut now = from - 100 * 1_000_000;
    let mut sum = 0;
    while now < from + time {
        let n = run(terms, &bucket, &purse, &lens, now).iter().filter(|passed| **passed).count() as u64;
        sum += if now >= from { n * len } else { 0 };
        now += every;
    }
    sum
}

#[test]
fn a_second_is_true_to_one_percent_at_every_rate() {
    for (rate, every) in [
        (1_000_000, 1_000_000),
        (5_000_000, 100_000),
        (100_000_000, 20_000),
        (10_000_000_000, 3_000),
        (400_000_000_000, 100),
    ] {
        for (len, packets) in [(64, 64), (1500, 64), (1500, 1), (576, 3)] {
            // Enough must be offered.
            if (len * packets as u64 * 8) as f64 / every as f64 * 1e9 < 1.2 * rate as f64 {
                continue;
            }
            let time = if rate > 100_000_000_000 { SECOND / 50 } else { SECOND };
            let sum = passed(Cap::of(rate), len, packets, every, 10 * SECOND, time) as f64;
            let wanted = rate as f64 / 8.0 * time as f64 / 1e9;
            assert!(
                (sum / wanted - 1.0).abs() < 0.01,
                "{rate} bit/s, {packets} packets of {len}: {sum}, not {wanted}"
            );
        }
    }
}

#[test]
fn the_first_second_after_a_pause_is_true_too() {
    for rate in [5_000_000, 10_000_000_000] {
        let (bucket, purse, terms) = (Bucket::default(), Purse::default(), terms(Cap::of(rate)));
        let (mut sum, mut now) = (0, 100 * SECOND);
        while now < 101 * SECOND {
            sum += 1500 * run(terms, &bucket, &purse, &[1500; 32], now).iter().filter(|p| **p).count();
            now += if rate > 1_000_000_000 { 20_000 } else { 1_000_000 };
        }
        let wanted = rate as f64 / 8.0;
        assert!((sum as f64 / wanted - 1.0).abs() < 0.0101, "{rate}: {sum}, not {wanted}");
    }
}

#[test]
fn what_is_within_the_rate_always_passes() {
    // 1 Mbps is a packet of 1250 bytes each 10 ms.
    let (bucket, purse, terms) = (Bucket::default(), Purse::default(), terms(Cap::of(1_000_000)));
    for n in 0..1000 {
        assert_eq!(run(terms, &bucket, &purse, &[1250], SECOND + n * 10_000_000), [true], "packet {n}");
    }
}

#[test]
fn another_rate_is_in_force_at_once_both_ways() {
    let rate = Rate::default();
    let (bucket, purse) = (Bucket::default(), Purse::default());
    assert!(rate.terms().is_none(), "there is no limit at first");
    let mut now = SECOND;
    let mut second = |cap: Cap| {
        rate.set(Some(cap));
        let end = now + SECOND;
        let mut sum = 0;
        while now < end {
            let lens = [1000; 8];
            sum +=
                1000 * run(rate.terms().unwrap(), &bucket, &purse, &lens, now).iter().filter(|p| **p).count();
            now += 50_000;
        }
        sum as f64
    };
    for (rate, bytes) in [(800_000_000, 1e8), (8_000_000, 1e6), (80_000_000, 1e7), (8_000_000, 1e6)] {
        let sum = second(Cap::of(rate));
        assert!((sum / bytes - 1.0).abs() < 0.015, "{rate}: {sum}");
    }
    rate.set(None);
    assert!(rate.terms().is_none());
}

/// Two workers, each with its purse, offer one bucket more than it lets pass: together they get the rate, and neither is
/// left out. How alike their shares are when they come in any order, `workers_in_turn_get_the_same` says.
#[test]
fn workers_share_a_bucket() {
    const RATE: u64 = 1_000_000_000;
    let (bucket, terms) = (Bucket::default(), terms(Cap::of(RATE)));
    // One clock for both, which whoever is about to take a burst moves on: so the two offer the same in the same time
    // however the threads are scheduled, and still meet at the bucket.
    let clock = AtomicU64::new(SECOND);
    let over = AtomicBool::new(false);
    let end = 3 * SECOND;
    let worker = |mine: u64| {
        let purse = Purse::default();
        let (mut sum, mut offered) = (0u64, 0u64);
        loop {
            let now = clock.fetch_add(1_000, Ordering::Relaxed);
            if now >= end || over.load(Ordering::Relaxed) {
                return (sum, offered);
            }
            let lens = [if mine == 0 { 600 } else { 601 }; 16];
            sum += lens[0] * run(terms, &bucket, &purse, &lens, now).iter().filter(|p| **p).count() as u64;
            offered += lens.iter().sum::<u64>();
        }
    };
    let ((a, offered_a), (b, offered_b)) = std::thread::scope(|scope| {
        let other = scope.spawn(|| worker(1));
        let mine = worker(0);
        (mine, other.join().unwrap())
    });
    let wanted = RATE as f64 / 8.0 * 2.0;
    let sum = (a + b) as f64;
    assert!((sum / wanted - 1.0).abs() < 0.01, "{a} + {b}, not {wanted}");
    // The scheduler says who offers how much. Of one that has hardly run nothing can be said.
    let both = offered_a + offered_b;
    if offered_a.min(offered_b) > both / 10 {
        let (share_a, share_b) = (a as f64 / offered_a as f64, b as f64 / offered_b as f64);
        assert!((0.5..2.0).contains(&(share_a / share_b)), "{a} of {offered_a}, {b} of {offered_b}");
    }
}

/// Workers that take turns get the same, however small the rate is against their packets.
#[test]
fn workers_in_turn_get_the_same() {
    for (rate, every) in [(5_000_000, 200_000), (10_000_000_000, 5_000)] {
        let (bucket, terms) = (Bucket::default(), terms(Cap::of(rate)));
        let purses: [Purse; 4] = Default::default();
        let mut sums = [0u64; 4];
        let mut order = 1u64;
        let mut now = SECOND;
        while now < 3 * SECOND {
            for _ in 0..4 {
                // In any order.
                order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let who = (order >> 60) as usize % 4;
                let passed = run(terms, &bucket, &purses[who], &[1000; 8], now);
                sums[who] += 1000 * passed.iter().filter(|p| **p).count() as u64;
            }
            now += every;
        }
        let sum: u64 = sums.iter().sum();
        let wanted = rate as f64 / 8.0 * 2.0;
        assert!((sum as f64 / wanted - 1.0).abs() < 0.01, "{rate}: {sums:?}, not {wanted}");
        for one in sums {
            assert!((one as f64 / (sum as f64 / 4.0) - 1.0).abs() < 0.15, "{rate}: {sums:?}");
        }
    }
}

proptest! {
    /// One worker lets as much pass as the model does, or as one whose burst is greater by what a purse may hold beside a
    /// full bucket.
    #[test]
    fn as_the_exact_bucket(
        rate in prop_oneof![Just(1_000u64), 1_000..100_000u64, 1_000_000..1_000_000_000u64, 1_000_000_000..=GREATEST],
        burst in 4096..200_000u64,
        steps in prop::collection::vec((0u64..3_000_000, prop::collection::vec(20u64..4000, 1..64)), 1..60),
    ) {
        let cap = Cap { rate, burst };
        let (bucket, purse, terms) = (Bucket::default(), Purse::default(), terms(cap));
        let start = 1 << 50;
        let model = |burst: u64| Exact {
            rate: rate.into(), burst: burst.into(), tokens: u128::from(burst) * 8_000_000_000, at: start,
        };
        let mut models = [(model(burst), 0u64), (model(burst + burst / 16), 0u64)];
        let (mut now, mut ours, mut offered) = (start, 0u64, 0u64);
        for (wait, lens) in steps {
            now += wait;
            let passed = run(terms, &bucket, &purse, &lens, now);
            ours += lens.iter().zip(passed).map(|(len, passed)| if passed { *len } else { 0 }).sum::<u64>();
            for (exact, sum) in &mut models {
                *sum += lens.iter().map(|len| if exact.pass(*len, now) { *len } else { 0 }).sum::<u64>();
            }
            offered += lens.iter().sum::<u64>();
            prop_assert!(ours <= offered);
            // A packet that just passes here may just fail there.
            let slack = 2 * 4000 + ours / 10_000;
            let [(_, least), (_, most)] = &models;
            let (least, most) = (*least, *most);
            prop_assert!((least..=most + 2 * slack).contains(&(ours + slack)), "{} < {} < {}", least, ours, most);
        }
    }

    /// Whatever several workers do, no interval sees more than its rate, the burst, and their purses.
    #[test]
    fn never_more_than_rate_and_burst(
        rate in 1_000_000..10_000_000_000u64,
        steps in prop::collection::vec((0u64..100_000, 0usize..4, 1usize..64, 64u64..1500), 1..200),
    ) {
        let cap = Cap::of(rate);
        let (bucket, terms) = (Bucket::default(), terms(cap));
        let purses: [Purse; 4] = Default::default();
        let (start, mut now, mut sum) = (10 * SECOND, 10 * SECOND, 0u64);
        for (wait, who, packets, len) in steps {
            now += wait;
            let passed = run(terms, &bucket, &purses[who], &vec![len; packets], now);
            sum += len * passed.iter().filter(|p| **p).count() as u64;
            let most = (now - start) as f64 / 8e9 * rate as f64 * 1.0001 + cap.burst as f64 * 1.01 + 4.0;
            prop_assert!((sum as f64) <= most, "{} > {}", sum, most);
        }
    }
}
