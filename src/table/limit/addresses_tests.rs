//! The table of addresses, against a map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{addresses::*, gateway_addresses::hash_of};
use crate::table::hash::Seed;

const SEED: Seed = Seed::new(1, 2);

fn hash(key: u128) -> u64 {
    hash_of(key, &SEED)
}

#[test]
fn a_full_table_refuses_and_a_free_place_is_used_again() {
    let table = AddressTable::new(3, 1);
    let enter = |address: u32| table.enter(key_v4(address), hash(key_v4(address)), 0);
    let numbers: Vec<_> = (1..=3).map(enter).collect();
    assert!(numbers.iter().all(|entered| matches!(entered, Entered::At(_))), "{numbers:?}");
    assert_eq!((enter(4), table.refused(), table.len()), (Entered::Full, 1, 3));
    assert_eq!(enter(2), Entered::Full, "who is in the table is looked for before");
    table.remove(key_v4(2), hash(key_v4(2)));
    assert_eq!((table.find(key_v4(2), hash(key_v4(2))), table.len()), (None, 2));
    assert_eq!(enter(4), numbers[1], "the only one that is free");
}

#[test]
fn counts_begin_with_the_address() {
    let table = AddressTable::new(1, 2);
    let (a, b) = (key_v4(1), key_v4(2));
    let Entered::At(entry) = table.enter(a, hash(a), 0) else { panic!("there is room") };
    let one = Traffic { passed_packets: 1, passed_bytes: 100, ..Traffic::default() };
    for worker in [0, 1] {
        table.cells(worker).unwrap()[entry][Way::Out as usize].count(one);
    }
    assert_eq!(table.view(entry).unwrap().traffic, [Traffic::default(), one.and(one)]);
    table.remove(a, hash(a));
    assert_eq!(table.view(entry), None);
    assert_eq!(table.enter(b, hash(b), 7), Entered::At(entry));
    let view = table.view(entry).unwrap();
    assert_eq!((view.key, view.class, view.traffic), (b, 7, [Traffic::default(); 2]));
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
}
