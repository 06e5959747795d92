//! Every interleaving of workers at a bucket, and at the table of addresses.

mod sync {
    pub use loom::{
        sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        thread::yield_now,
    };
}

#[allow(dead_code)]
#[path = "../src/table/limit/addresses.rs"]
mod addresses;
#[allow(dead_code)]
#[path = "../src/table/limit/bucket.rs"]
mod bucket;
#[allow(dead_code)]
#[path = "../src/table/limit/cell.rs"]
mod cell;

use addresses::{AddressTable, Entered};
use bucket::{Account, Bucket, Cap, Purse, Rate};
use cell::{Traffic, Way};
use loom::{sync::Arc, thread};

/// Threads change places so often at most: what goes wrong, goes wrong with fewer.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    builder.check(body);
}

const NOW: u64 = 1_000_000_000;
const BURST: u64 = 16_000;

/// Pays for packets of these sizes, as a stage does: how many bytes were paid for.
fn run(bucket: &Bucket, purse: &Purse, lens: &[u64], now: u64) -> u64 {
    let rate = Rate::default();
    rate.set(Some(Cap { rate: 8_000_000, burst: BURST }));
    let mut account = Account::open(rate.terms().unwrap(), bucket, purse);
    let all = account.pay_all(lens.iter().sum(), || lens.iter().copied().min().unwrap_or(0), now);
    let paid = lens.iter().filter(|len| all || account.pay(**len)).sum();
    account.close();
    paid
}

/// Two workers that want more than there is together never get more, and what they give back is not lost.
#[test]
fn no_token_is_spent_twice_and_none_is_lost() {
    model(|| {
        let bucket = Arc::new(Bucket::default());
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || {
                let purse = Purse::default();
                // 6000 pass or none does: what is left over goes back.
                (run(&bucket, &purse, &[6_000, 6_000], NOW), purse)
            })
        };
        let purse = Purse::default();
        let mine = run(&bucket, &purse, &[5_000, 5_000], NOW);
        let (others, others_purse) = other.join().unwrap();
        // Both drain what is left.
        let mut rest = 0;
        for purse in [&purse, &others_purse] {
            while run(&bucket, purse, &[50], NOW) > 0 {
                rest += 50;
            }
        }
        let sum = mine + others + rest;
        assert!((BURST - 100..=BURST).contains(&sum), "{mine} + {others} + {rest}");
    });
}

/// While a cap is set and lifted, whoever reads it meets none or one that lets something pass.
#[test]
fn a_rate_is_never_seen_without_its_burst() {
    model(|| {
        let rate = Arc::new(Rate::default());
        let writer = {
            let rate = Arc::clone(&rate);
            thread::spawn(move || {
                rate.set(Some(Cap { rate: 8_000_000, burst: BURST }));
                rate.set(None);
            })
        };
        for _ in 0..2 {
            if let Some(terms) = rate.terms() {
                let (bucket, purse) = (Bucket::default(), Purse::default());
                assert!(Account::open(terms, &bucket, &purse).pay_all(100, || 100, NOW));
            }
        }
        writer.join().unwrap();
    });
}

const KEY: u128 = 0xffff_0a02_0005;
const OTHER: u128 = 0xffff_0a02_0006;
/// Both stand in the same places.
const HASH: u64 = 3;
const OTHER_HASH: u64 = 3;

/// Two workers that meet an address for the first time make one entry for it.
#[test]
fn an_address_is_entered_once() {
    model(|| {
        let table = Arc::new(AddressTable::new(2, 2));
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.enter(KEY, HASH, 1))
        };
        let mine = table.enter(KEY, HASH, 1);
        let others = other.join().unwrap();
        let entry = table.find(KEY, HASH).expect("one of the two was not disturbed");
        for entered in [mine, others] {
            assert!(matches!(entered, Entered::Busy) || entered == Entered::At(entry), "{entered:?}");
        }
        assert_eq!((table.len(), table.key(entry)), (1, Some(KEY)));
    });
}

/// Who finds an address finds its own entry, whole, while it is entered.
#[test]
fn what_is_found_is_whole() {
    model(|| {
        let table = Arc::new(AddressTable::new(2, 1));
        let reader = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                if let Some(entry) = table.find(KEY, HASH) {
                    assert_eq!((table.key(entry), table.class(entry)), (Some(KEY), 9));
                }
                assert_eq!(table.find(OTHER, OTHER_HASH), None);
            })
        };
        assert_eq!(table.enter(KEY, HASH, 9), Entered::At(3));
        reader.join().unwrap();
    });
}

/// The control thread forgets an address while a worker enters another: every entry is one address's or free.
#[test]
fn entries_are_neither_lost_nor_given_twice() {
    model(|| {
        let table = Arc::new(AddressTable::new(1, 1));
        assert_eq!(table.enter(KEY, HASH, 0), Entered::At(3));
        table.share(0).unwrap().cell(3).unwrap().passed(Way::Out).add(60);
        let control = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.remove(KEY, HASH))
        };
        let entered = table.enter(OTHER, OTHER_HASH, 0);
        control.join().unwrap();
        assert_eq!(table.find(KEY, HASH), None);
        match entered {
            Entered::At(entry) => {
                assert_eq!((table.find(OTHER, OTHER_HASH), table.len()), (Some(entry), 1));
                assert_eq!(table.view(entry).unwrap().traffic, [Traffic::default(); 2]);
            }
            Entered::Busy | Entered::Full => {
                assert_eq!((table.find(OTHER, OTHER_HASH), table.len()), (None, 0));
                assert_eq!(table.enter(OTHER, OTHER_HASH, 0), Entered::At(3));
            }
        }
    });
}
