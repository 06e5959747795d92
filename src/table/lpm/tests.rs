use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};

use proptest::prelude::*;

use super::*;

/// The naive table: a scan for the longest prefix that covers.
fn naive<A: Address>(routes: &HashMap<(A, u8), u32>, address: A) -> Option<u32> {
    let covering = routes.iter().filter(|((prefix, length), _)| address & A::mask(*length) == *prefix);
    covering.max_by_key(|((_, length), _)| *length).map(|(_, &value)| value)
}

fn check<A: Address>(table: &Lpm<A>, routes: &HashMap<(A, u8), u32>, probes: &[A]) {
    let mut results = vec![7; probes.len()];
    table.lookup_burst(probes, &mut results);
    for (&probe, &result) in probes.iter().zip(&results) {
        let expected = naive(routes, probe);
        assert_eq!(table.lookup(probe), expected, "{probe:x?}");
        assert_eq!(result, expected.unwrap_or(NO_ROUTE), "{probe:x?} in a burst");
    }
}

/// Both ends of a prefix and both neighbours beyond.
fn edges<A: Address>(address: A, length: u8) -> [A; 4] {
    let first = address & A::mask(length);
    let last = first | !A::mask(length);
    let one = A::truncate(1);
    [first, last, first.wrapping_sub(one), A::truncate(last.widen().wrapping_add(1))]
}

fn follow<A: Address>(steps: Vec<(A, u8, u32, u8)>, probes: &[A]) {
    let (table, mut writer) = Lpm::<A>::new();
    let mut model = HashMap::new();
    let mut all_probes = probes.to_vec();
    for (address, length, value, action) in steps {
        let length = length % (A::WIDTH + 1);
        let key = (address & A::mask(length), length);
        // Now and then a prefix that is there, so that removal finds something.
        let key = if action & 4 != 0 { model.keys().next().copied().unwrap_or(key) } else { key };
        if action & 3 < 2 {
            assert_eq!(writer.insert(key.0, key.1, value), Ok(model.insert(key, value)));
        } else {
            assert_eq!(writer.remove(key.0, key.1), Ok(model.remove(&key)));
        }
        assert_eq!(writer.get_exact(key.0, key.1), model.get(&key).copied());
        all_probes.extend(edges(key.0, key.1));
        if action & 8 != 0 {
            writer.publish().unwrap();
            check(&table, &model, &all_probes);
        }
        if action & 16 != 0 {
            writer.publish().unwrap();
            writer.quiesce();
        }
    }
    writer.publish().unwrap();
    check(&table, &model, &all_probes);
    assert_eq!(writer.len(), model.len());
    for (address, length) in model.keys() {
        writer.remove(*address, *length).unwrap();
    }
    writer.publish().unwrap();
    check(&table, &HashMap::new(), &all_probes);
    assert_eq!(table.enter().1.node, Reference::NONE);
}

proptest! {
    #[test]
    fn v4_agrees_with_a_scan(
        // Few distinct bytes, so that prefixes nest and meet.
        steps in proptest::collection::vec(
            (any::<u32>().prop_map(|bits| bits & 0xC103_0703), 0u8..=32, 0u32..50, any::<u8>()), 1..120),
        probes in proptest::collection::vec(any::<u32>(), 0..70),
    ) {
        follow(steps, &probes);
    }

    #[test]
    fn v6_agrees_with_a_scan(
        steps in proptest::collection::vec(
            (any::<u128>().prop_map(|bits| bits & 0xC100_0003_0000_0000_0100_0000_0000_0003), 0u8..=128, 0u32..50,
             any::<u8>()), 1..60),
        probes in proptest::collection::vec(any::<u128>(), 0..70),
    ) {
        follow(steps, &probes);
    }

    #[test]
    fn random_routes_agree_with_a_scan(
        routes in proptest::collection::hash_map((any::<u32>(), 0u8..=32), 0u32..1000, 0..600),
    ) {
        let (table, mut writer) = Lpm4::new();
        let mut model = HashMap::new();
        let mut probes = Vec::new();
        for ((address, length), value) in routes {
            writer.insert(address, length, value).unwrap();
            model.insert((address & u32::mask(length), length), value);
            probes.extend(edges(address, length));
        }
        writer.publish().unwrap();
        check(&table, &model, &probes);
    }
}

#[test]
fn wrong_prefixes_and_values_are_refused() {
    let (_, mut writer) = Lpm4::new();
    assert_eq!(writer.insert(0, 33, 1), Err(LpmError::LengthTooLong(33)));
    assert_eq!(writer.remove(0, 33), Err(LpmError::LengthTooLong(33)));
    assert_eq!(writer.insert(0, 8, NO_ROUTE), Err(LpmError::ReservedValue));
    assert!(writer.is_empty());
}

#[test]
fn changes_show_when_they_are_published_and_all_at_once() {
    let (table, mut writer) = Lpm4::new();
    writer.insert(0, 0, 1).unwrap();
    writer.insert(0x0A00_0000, 8, 2).unwrap();
    assert_eq!(table.lookup(0x0A00_0001), None);
    writer.publish().unwrap();
    assert_eq!((table.lookup(0x0A00_0001), table.lookup(5)), (Some(2), Some(1)));
}

#[test]
fn a_common_prefix_is_passed_in_one_step() {
    let (table, mut writer) = Lpm4::new();
    let mut model = HashMap::new();
    let mut probes = Vec::new();
    // One /32; then a sibling; then a cover; then a default; then something elsewhere.
    for (address, length, depth) in
        [(0x0A0B_0C0D, 32, 24), (0x0A0B_0D00, 24, 16), (0x0A0B_0000, 16, 8), (0, 0, 8), (0x0B00_0000, 8, 0)]
    {
        writer.insert(address, length, u32::from(length)).unwrap();
        model.insert((address, length), u32::from(length));
        probes.extend(edges(address, length));
        writer.publish().unwrap();
        assert_eq!(table.enter().1.depth, depth, "after /{length}");
        check(&table, &model, &probes);
    }
}

#[test]
fn a_small_table_is_small_and_a_large_one_reuses_its_memory() {
    let (table, mut writer) = Lpm4::new();
    for number in 0..16u32 {
        writer.insert(0x0A00_0000 | number << 8, 24, number).unwrap();
    }
    writer.publish().unwrap();
    assert!(table.memory() <= 64 << 10, "{}", table.memory());
    for number in 0..20_000u32 {
        writer.insert(number.wrapping_mul(0x9E37_79B1), 24, number).unwrap();
    }
    writer.publish().unwrap();
    writer.quiesce();
    let before = table.memory();
    for round in 0..20_000u32 {
        let address = round.wrapping_mul(0x9E37_79B1);
        writer.remove(address, 24).unwrap();
        writer.publish().unwrap();
        writer.insert(address, 24, round).unwrap();
        writer.publish().unwrap();
        writer.quiesce();
    }
    assert!(table.memory() <= before * 2, "{} from {before}", table.memory());
}

#[test]
fn readers_see_only_answers_that_were_valid_meanwhile() {
    // Each version paints nested prefixes over one address with values that grow from version to version, and
    // some versions lack some prefixes. The longest is present in every other version only: the answer must be
    // the one of a version between the last published before the look-up and the last begun before its end.
    const ADDRESS: u32 = 0x0A0B_0C0D;
    const ROUNDS: u32 = 2_000;
    let expected = |version: u32| -> u32 {
        let length = [32, 24, 20, 16, 9, 8, 0][(version % 7) as usize];
        version << 8 | length
    };
    let (table, mut writer) = Lpm4::new();
    // Neighbours of every kind, so that nodes hold more than the one address.
    for number in 0..3000u32 {
        writer.insert(number.wrapping_mul(0x9E37_79B1), 24, 1).unwrap();
        writer.insert(0x0A0B_0000 | number, 32, 2).unwrap();
    }
    writer.remove(ADDRESS, 32).unwrap();
    writer.insert(0, 0, expected(6)).unwrap();
    writer.publish().unwrap();
    let (begun, done, stop) = (AtomicU64::new(6), AtomicU64::new(6), AtomicBool::new(false));
    // A reader's last version when its burst began; the writer waits for both before it quiesces.
    let passed = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        let readers: Vec<_> = passed
            .iter()
            .map(|passed| {
                scope.spawn(|| {
                    let mut answers = [0; 48];
                    while !stop.load(Ordering::SeqCst) {
                        let from = done.load(Ordering::SeqCst);
                        passed.store(from, Ordering::SeqCst);
                        table.lookup_burst(&[ADDRESS; 48], &mut answers);
                        let until = begun.load(Ordering::SeqCst);
                        let version = answers[0] >> 8;
                        assert!(answers.iter().all(|answer| *answer == answers[0]), "one burst, one version");
                        assert!((from..=until).contains(&u64::from(version)), "{from} {version} {until}");
                        assert_eq!(answers[0], expected(version));
                    }
                    passed.store(u64::MAX, Ordering::SeqCst);
                })
            })
            .collect();
        for version in 7..ROUNDS {
            let (old, new) = (expected(version - 1), expected(version));
            begun.store(u64::from(version), Ordering::SeqCst);
            writer.remove(ADDRESS, old as u8).unwrap();
            writer.insert(ADDRESS, new as u8, new).unwrap();
            // An unrelated one, and one in the same leaf node.
            writer.insert(version.wrapping_mul(0x85EB_CA6B) | 1 << 31, 28, version).unwrap();
            writer.insert(0x0A0B_0C00 | (version & 0xF0), 28, version).unwrap();
            writer.remove(0x0A0B_0C00, 28).unwrap();
            writer.publish().unwrap();
            done.store(u64::from(version), Ordering::SeqCst);
            if version % 4 == 0 && readers.iter().all(|reader| !reader.is_finished()) {
                while passed.iter().any(|passed| passed.load(Ordering::SeqCst) < u64::from(version)) {
                    std::thread::yield_now();
                    if readers.iter().any(|reader| reader.is_finished()) {
                        break;
                    }
                }
                writer.quiesce();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
}
