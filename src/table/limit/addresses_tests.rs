//! The table of addresses, against a map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{addresses::*, bucket::*, cell::*, gateway_addresses::hash_of};
use crate::table::hash::Seed;

const SEED: Seed = Seed::new(1, 2);

fn hash(key: u128) -> u64 {
    hash_of(key, &SEED)
}

#[test]
fn a_full_table_refuses_and_a_free_place_is_used_again() {
    let table = AddressTable::new(3, 1);
    let enter = |address: u32| table.enter(key_v4(address), hash(key_v4(address)), 0);
    let entered: Vec<_> = (1..=3).map(enter).collect();
    assert!(entered.iter().all(|entered| matches!(entered, Entered::At(_))), "{entered:?}");
    assert_eq!((enter(4), table.refused(), table.len()), (Entered::Full, 1, 3));
    assert_eq!(enter(2), Entered::Full, "who is in the table is looked for before");
    table.remove(key_v4(2), hash(key_v4(2)));
    assert_eq!((table.find(key_v4(2), hash(key_v4(2))), table.len()), (None, 2));
    assert!(matches!(enter(4), Entered::At(_)));
    assert_eq!((enter(5), table.len()), (Entered::Full, 3));
}

#[test]
fn counts_begin_with_the_address() {
    let table = AddressTable::new(1, 2);
    let (a, b) = (key_v4(1), key_v4(2));
    let Entered::At(entry) = table.enter(a, hash(a), 0) else { panic!("there is room") };
    let one = Traffic { passed_packets: 1, passed_bytes: 100, ..Traffic::default() };
    for worker in [0, 1] {
        let share = table.share(worker).unwrap();
        share.cell(entry).unwrap().passed(Way::Out).add(100);
        share.dropped(entry, Way::In).unwrap().add(60);
    }
    let dropped = Traffic { dropped_packets: 1, dropped_bytes: 60, ..Traffic::default() };
    assert_eq!(table.view(entry).unwrap().traffic, [dropped.and(dropped), one.and(one)]);
    table.remove(a, hash(a));
    assert_eq!(table.view(entry), None);
    // Whatever its hash says, of four entries it gets the one that was counted in, or another.
    let Entered::At(entry) = table.enter(b, hash(b), 7) else { panic!("there is room again") };
    let view = table.view(entry).unwrap();
    assert_eq!((view.key, view.class, view.traffic), (b, 7, [Traffic::default(); 2]));
}

#[test]
fn a_cell_is_a_cache_line() {
    assert_eq!((size_of::<Cell>(), align_of::<Cell>()), (64, 64));
}

/// How many of the addresses of a full table are not where they are looked for first, with addresses in a row and such
/// as a power of two lies between.
#[test]
fn nearly_all_addresses_are_near() {
    for seed in 0..20 {
        let seed = Seed::new(seed, 0x1234_5678_9abc_def1).next();
        for step in [1, 256, 1 << 20] {
            for (count, most) in [(1000, 60), (4096, 300)] {
                let table = AddressTable::new(count, 1);
                let key = |n: u32| key_v4(0x0a00_0001_u32.wrapping_add(n * step));
                let keys = (0..count as u32).map(key);
                let mut far = 0;
                for key in keys.filter(|key| *key as u32 != 0) {
                    let hash = hash_of(key, &seed);
                    let known = table.find(key, hash);
                    let at = known.map_or_else(|| table.enter(key, hash, 0), Entered::At);
                    let Entered::At(number) = at else { panic!("{key:x}: {at:?}") };
                    match near(table.share(0).unwrap().cells(), hash, word_v4(key as u32)) {
                        Some((near, _)) => assert_eq!(near, number),
                        None => far += 1,
                    }
                }
                assert!(far <= most, "{far} of {count}, steps of {step}");
            }
        }
    }
}

/// Who comes into a cell pays for itself, whatever the one before has bought, and the rates that it is paid at are those
/// of the version.
#[test]
fn what_was_bought_goes_with_the_address_and_with_the_rate() {
    let table = AddressTable::new(1, 1);
    let rate = Rate::default();
    rate.set(Some(Cap { rate: 8_000_000_000, burst: 1_000_000 }));
    let cell = |key: u128| {
        let Entered::At(entry) = table.enter(key, hash(key), 0) else { panic!("there is room") };
        (table.share(0).unwrap().cell(entry).unwrap(), table.bucket(entry, Way::In).unwrap())
    };
    let (a, version) = (key_v4(1), table.new_version());
    let (first, bucket) = cell(a);
    assert!(!first.pass(Way::In, version, 100), "nothing is bought yet");
    assert!(first.buy(Way::In, (version, rate.terms()), bucket, 100, 1 << 40));
    assert!(first.pass(Way::In, version, 100) && !first.pass(Way::Out, version, 100));
    assert!(!first.pass(Way::In, table.new_version(), 100), "rates have changed");
    assert!(first.pass(Way::In, version, 100));
    table.remove(a, hash(a));
    let (second, _) = cell(key_v4(2));
    assert!(!second.pass(Way::In, version, 100));
    assert_eq!(first.passed(Way::In).get(), [3, 300]);
}

proptest! {
    #[test]
    fn as_a_map_of_bounded_size(steps in prop::collection::vec((any::<bool>(), 0u32..40), 1..200)) {
        let table = AddressTable::new(24, 1);
        let mut model: HashMap<u128, usize> = HashMap::new();
        for (enters, address) in steps {
            let key = if address % 2 == 0 { key_v4(address) } else { u128::from(address) << 64 | 5 };
            if !enters {
                table.remove(key, hash(key));
                model.remove(&key);
            } else if let Some(known) = table.find(key, hash(key)) {
                prop_assert_eq!(model.get(&key), Some(&known));
            } else {
                match table.enter(key, hash(key), 0) {
                    Entered::At(entry) => {
                        prop_assert!(!model.values().any(|other| *other == entry));
                        prop_assert_eq!(model.insert(key, entry), None);
                    }
                    // 24 of 128 places: no window of 16 is full.
                    other => prop_assert_eq!((other, model.len()), (Entered::Full, 24)),
                }
            }
            prop_assert_eq!(table.len(), model.len());
            for (key, entry) in &model {
                prop_assert_eq!(table.find(*key, hash(*key)), Some(*entry));
                prop_assert_eq!(table.view(*entry).unwrap().key, *key);
            }
        }
    }

    /// A worker that buys lets as much pass as an exact bucket does, or as one whose burst is greater by what it may have
    /// bought beside a full one.
    #[test]
    fn who_buys_gets_what_an_exact_bucket_gives(
        rate in prop_oneof![Just(1_000u64), 1_000..100_000u64, 1_000_000..1_000_000_000u64, 1_000_000_000..=GREATEST],
        burst in 4096..200_000u64,
        steps in prop::collection::vec((0u64..3_000_000, 20u64..4000), 1..600),
    ) {
        let cap = Cap { rate, burst };
        let (bucket, cell, terms) = (Bucket::default(), Cell::default(), Rate::default());
        terms.set(Some(cap));
        let start = 1 << 50;
        let full = |burst: u64| (u128::from(burst), u128::from(burst) * 8_000_000_000, start, 0u64);
        let mut models = [full(burst), full(burst + burst / 16)];
        let mut now = start;
        for (wait, len) in steps {
            now += wait;
            let passes = cell.pass(Way::Out, 1, len)
                || cell.buy(Way::Out, (1, terms.terms()), &bucket, len, now);
            let _ = passes;
            for (burst, tokens, at, sum) in &mut models {
                let earned = *tokens + u128::from(now - *at) * u128::from(rate);
                *tokens = earned.min(*burst * 8_000_000_000);
                *at = now;
                if *tokens >= u128::from(len) * 8_000_000_000 {
                    *tokens -= u128::from(len) * 8_000_000_000;
                    *sum += len;
                }
            }
            let [(.., least), (.., most)] = models;
            let [_, ours] = cell.passed(Way::Out).get();
            let slack = 2 * 4000 + ours / 10_000;
            prop_assert!((least..=most + 2 * slack).contains(&(ours + slack)), "{} < {} < {}", least, ours, most);
        }
    }
}
