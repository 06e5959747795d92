use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const AGES: NeighbourAges =
    NeighbourAges { incomplete: 3 * SECOND, reachable: 30 * SECOND, stale: 600 * SECOND };

fn mac(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 0, a, b, c, d]
}

#[test]
fn an_entry_lives_through_its_states() {
    let (table, mut writer) = NeighbourTable::new(8, Seed::random());
    let key = NeighbourKey::v4(3, 0x0A00_0001);
    assert_eq!(table.lookup(&key), None);
    let id = writer.ensure(&key, SECOND).unwrap();
    assert_eq!((table.lookup(&key), table.mac(id)), (Some(id), None));
    assert!(writer.resolve(id, mac(7), 2 * SECOND));
    assert_eq!(table.mac(id), Some(mac(7)));
    assert_eq!(writer.expire(31 * SECOND, &AGES), 0);
    assert_eq!(table.state(id), Some(NeighbourState::Reachable));
    assert_eq!(writer.expire(32 * SECOND, &AGES), 0);
    assert_eq!((table.state(id), table.mac(id)), (Some(NeighbourState::Stale), Some(mac(7))));
    table.touch(id, 400 * SECOND);
    assert_eq!(writer.expire(700 * SECOND, &AGES), 0);
    assert_eq!(writer.expire(1000 * SECOND, &AGES), 1);
    assert_eq!((table.lookup(&key), table.mac(id), writer.len()), (None, None, 0));
}

#[test]
fn who_fails_is_forgotten_but_keeps_a_pinned_slot() {
    let (table, mut writer) = NeighbourTable::new(8, Seed::random());
    let keys = [1, 2, 3].map(|address| NeighbourKey::v4(3, address));
    let [pinned, loose] = [keys[0], keys[1]].map(|key| writer.ensure(&key, 0).unwrap());
    let permanent = writer.insert_permanent(&keys[2], mac(3), 0).unwrap();
    assert!(writer.pin(pinned));
    for (id, number) in [(pinned, 1), (loose, 2)] {
        assert!(writer.resolve(id, mac(number), SECOND));
        assert!(writer.fail(id, 2 * SECOND));
        assert_eq!(table.mac(id), None);
    }
    assert_eq!(table.state(pinned), Some(NeighbourState::Incomplete));
    assert_eq!((table.lookup(&keys[0]), table.lookup(&keys[1])), (Some(pinned), None));
    assert!(!writer.fail(loose, 0) && !writer.fail(permanent, 0));
    assert_eq!(table.mac(permanent), Some(mac(3)));
    // As a pinned one it stays however long nobody answers, and is found again under its old id.
    assert_eq!(writer.expire(1000 * SECOND, &AGES), 0);
    assert!(writer.resolve(pinned, mac(9), 1000 * SECOND));
    assert_eq!(table.mac(pinned), Some(mac(9)));
}

#[test]
fn versions_and_interfaces_do_not_mix() {
    let (table, mut writer) = NeighbourTable::new(8, Seed::random());
    let ids = [
        NeighbourKey::v4(1, 5),
        NeighbourKey::v4(2, 5),
        NeighbourKey::v6(1, 5),
        NeighbourKey::v6(1, 5 << 64),
    ]
    .map(|key| (key, writer.ensure(&key, 0).unwrap()));
    for (key, id) in ids {
        assert_eq!(table.lookup(&key), Some(id));
        assert_eq!(ids.iter().filter(|(_, other)| *other == id).count(), 1);
    }
}

#[test]
fn an_old_id_never_gives_the_new_address() {
    let (table, mut writer) = NeighbourTable::new(1, Seed::random());
    let old = writer.ensure(&NeighbourKey::v4(1, 1), 0).unwrap();
    writer.resolve(old, mac(1), 0);
    assert!(writer.remove(old));
    let new = writer.ensure(&NeighbourKey::v4(1, 2), 0).unwrap();
    writer.resolve(new, mac(2), 0);
    assert_eq!(old.slot(), new.slot());
    assert_eq!((table.mac(old), table.mac(new)), (None, Some(mac(2))));
    assert!(!writer.resolve(old, mac(3), 0));
    assert!(!writer.remove(old));
    assert!(!writer.pin(old));
}

#[test]
fn a_flood_pushes_out_incomplete_then_idle_stale_and_nothing_else() {
    let (table, mut writer) = NeighbourTable::new(5, Seed::random());
    let permanent = writer.insert_permanent(&NeighbourKey::v4(1, 1), mac(1), 0).unwrap();
    let pinned = writer.ensure(&NeighbourKey::v4(1, 2), 0).unwrap();
    assert!(writer.pin(pinned));
    let reachable = writer.ensure(&NeighbourKey::v4(1, 3), 0).unwrap();
    writer.resolve(reachable, mac(3), 0);
    let busy = writer.ensure(&NeighbourKey::v4(1, 4), 0).unwrap();
    let idle = writer.ensure(&NeighbourKey::v4(1, 5), 0).unwrap();
    for (id, number) in [(busy, 4), (idle, 5)] {
        writer.resolve(id, mac(number), 0);
    }
    // The busy one turns stale first, but a worker uses it after the other did.
    assert!(writer.suspect(busy, SECOND) && writer.suspect(idle, 2 * SECOND));
    table.touch(busy, 9 * SECOND);
    for number in 100..200 {
        let id = writer.ensure(&NeighbourKey::v4(1, number), 10 * SECOND).unwrap();
        assert_eq!(id.slot(), idle.slot(), "each newcomer takes the place of the one before");
    }
    for (id, number) in [(permanent, 1), (reachable, 3), (busy, 4)] {
        assert_eq!(table.mac(id), Some(mac(number)));
    }
    assert_eq!(table.state(pinned), Some(NeighbourState::Incomplete));
    assert!(!writer.remove(pinned));
    let last = table.lookup(&NeighbourKey::v4(1, 199)).unwrap();
    writer.resolve(last, mac(199), 10 * SECOND);
    assert!(writer.ensure(&NeighbourKey::v4(1, 300), 0).is_ok(), "the busy stale one goes now");
    assert_eq!(table.mac(busy), None);
    let newest = table.lookup(&NeighbourKey::v4(1, 300)).unwrap();
    writer.resolve(newest, mac(300), 10 * SECOND);
    assert_eq!(writer.ensure(&NeighbourKey::v4(1, 301), 0), Err(Full));
    assert!(writer.unpin(pinned, 0));
    assert!(writer.ensure(&NeighbourKey::v4(1, 301), 0).is_ok());
    assert_eq!(table.iter().count(), 5);
}

#[test]
fn a_reader_never_sees_a_foreign_mac() {
    // 12 addresses fight over 8 slots in few buckets while a reader looks each up. The MAC tells the address.
    let (table, mut writer) = NeighbourTable::new(8, Seed::random());
    let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for number in 0..12 {
                    if let Some(id) = table.lookup(&NeighbourKey::v4(1, number))
                        && let Some(found) = table.mac(id)
                    {
                        assert_eq!(found, mac(number));
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
                assert!(
                    table
                        .iter()
                        .all(|view| { view.mac.is_none_or(|found| found == mac(view.key.address as u32)) })
                );
            }
        });
        let (mut number, mut turns) = (0u32, 0);
        // Until the reader, which may be given no processor for long, has seen something too.
        while turns < 300_000 || seen.load(Ordering::Relaxed) == 0 && !reader.is_finished() {
            turns += 1;
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = NeighbourKey::v4(1, (number >> 16) % 12);
            let id = writer.ensure(&key, 0).unwrap();
            writer.resolve(id, mac(key.address as u32), 0);
            writer.suspect(id, u64::from(number));
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        assert!(seen.load(Ordering::Relaxed) > 0);
    });
}

proptest! {
    #[test]
    fn agrees_with_a_hash_map(steps in proptest::collection::vec((0u8..4, 0u32..40), 1..400)) {
        let (table, mut writer) = NeighbourTable::new(16, Seed::random());
        let mut model: HashMap<u32, [u8; 6]> = HashMap::new();
        for (time, (action, address)) in steps.into_iter().enumerate() {
            let key = NeighbourKey::v4(9, address);
            let known = table.lookup(&key);
            prop_assert_eq!(known.is_some(), model.contains_key(&address));
            match action {
                0 | 1 => match writer.insert_permanent(&key, mac(time as u32), time as u64) {
                    Ok(_) => {
                        model.insert(address, mac(time as u32));
                    }
                    Err(Full) => prop_assert!(model.len() == 16 && !model.contains_key(&address)),
                },
                2 => {
                    if let Some(id) = known {
                        prop_assert!(writer.remove(id));
                    }
                    model.remove(&address);
                }
                _ => prop_assert_eq!(known.and_then(|id| table.mac(id)), model.get(&address).copied()),
            }
            prop_assert_eq!(writer.len(), model.len());
            prop_assert_eq!(table.iter().count(), model.len());
        }
    }
}
