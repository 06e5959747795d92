//! The routes of a gateway against a list that is searched from end to end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use proptest::prelude::*;

use super::*;
use crate::table::{
    choice::Standing,
    liveness::{Cause, Liveness},
    next_hops::Hop,
    tables::NextHop,
};

/// Next hops of the tests: the place in this list is the number.
fn hops() -> Vec<NextHop> {
    let mut all: Vec<NextHop> = (0..4).map(|interface| NextHop::Connected { interface }).collect();
    all.extend((0..4).map(NextHop::Tunnel));
    all.extend([NextHop::Gateway(1), NextHop::Blackhole]);
    all
}

fn writer() -> NextHopWriter {
    let mut writer = NextHopWriter::default();
    for (number, hop) in hops().into_iter().enumerate() {
        assert_eq!(writer.one(hop), Some(number as u32));
    }
    writer
}

fn rank(hop: u32) -> Rank {
    match hops()[hop as usize] {
        NextHop::Connected { interface: 0 } => Rank::LOCAL,
        NextHop::Connected { .. } => Rank::LINE,
        NextHop::Tunnel(_) => Rank::TUNNEL,
        NextHop::Gateway(_) => Rank::GATEWAY,
        _ => Rank::BLACKHOLE,
    }
}

const SOURCES: [Source; 4] = [Source::Static, Source::Added, Source::Ebgp, Source::Ibgp];

#[derive(Debug, Clone)]
enum Step {
    Add((u32, u8), Candidate),
    Remove((u32, u8), u32, Source),
    Publish,
    Begin,
    Commit,
    GoBack,
}

fn step() -> impl Strategy<Value = Step> {
    let key = (0..8_u32, 0..=3_u8).prop_map(|(bits, more)| (bits << 28, 1 + more));
    let hop = 0..hops().len() as u32;
    let source = (0..4_usize).prop_map(|place| SOURCES[place]);
    let route =
        (hop.clone(), source.clone(), 1..3_u16, 1..4_u8).prop_map(|(hop, source, priority, weight)| {
            Candidate { hop, rank: rank(hop), source, priority, weight }
        });
    prop_oneof![
        8 => (key.clone(), route).prop_map(|(key, route)| Step::Add(key, route)),
        4 => (key, hop, source).prop_map(|(key, hop, source)| Step::Remove(key, hop, source)),
        3 => Just(Step::Publish),
        1 => Just(Step::Begin),
        1 => Just(Step::Commit),
        1 => Just(Step::GoBack),
    ]
}

type Model = BTreeMap<((u32, u8), u32, Source), Candidate>;

/// What the best routes to an address are, of those that are up: the numbers of their next hops.
fn naive(model: &Model, liveness: &Liveness, address: u32) -> Option<Vec<u32>> {
    let covers = |key: (u32, u8)| address & u32::mask(key.1) == key.0 & u32::mask(key.1);
    let longest = model.keys().filter(|(key, ..)| covers(*key)).map(|(key, ..)| key.1).max()?;
    let to = |key: (u32, u8)| covers(key) && key.1 == longest;
    let routes: Vec<Candidate> =
        model.iter().filter(|((key, ..), _)| to(*key)).map(|(_, route)| *route).collect();
    let up = |route: &&Candidate| Needs::of(&hops()[route.hop as usize]).met(liveness);
    let best = routes.iter().filter(up).map(Candidate::order).min();
    let equal = routes.iter().filter(up).filter(|route| Some(route.order()) == best);
    let mut numbers: Vec<u32> = equal.map(|route| route.hop).collect();
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

/// What the tables say: every next hop that any flow takes.
fn taken(table: &Lpm<u32>, next_hops: &NextHops, liveness: &Liveness, address: u32) -> Option<Vec<u32>> {
    let number = table.lookup(address)?;
    let mut numbers = match next_hops.get(number).unwrap() {
        Hop::One(hop) => {
            let up = Needs::of(hop).met(liveness);
            if up { vec![number] } else { vec![] }
        }
        Hop::Choice(choice) => {
            let pick = |standing: Standing<'_>| {
                (0..2048_u64).map(|n| standing.pick(|| n << 53).unwrap()).collect::<Vec<_>>()
            };
            choice.standing(liveness).map_or(vec![], pick)
        }
    };
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

proptest! {
    #[test]
    fn the_best_that_is_up_is_used(
        steps in proptest::collection::vec(step(), 1..60),
        down in proptest::collection::vec(0..8_u16, 0..5),
    ) {
        let mut next_hops = writer();
        let mut rib = Rib::<u32>::default();
        let mut model = Model::new();
        let liveness = Liveness::default();
        let mut published = Model::new();
        // While a snapshot is being built: what it began with, what workers see meanwhile, and their table.
        let mut begun: Option<(Model, Model, Arc<Lpm<u32>>, crate::table::next_hops::Mark)> = None;
        for step in steps {
            match step {
                Step::Add(key, route) => {
                    let old = rib.add(key, route).unwrap();
                    let key = (key.0 & u32::mask(key.1), key.1);
                    prop_assert_eq!(old, model.insert((key, route.hop, route.source), route));
                }
                Step::Remove(key, hop, source) => {
                    let old = rib.remove(key, hop, source).unwrap();
                    let key = (key.0 & u32::mask(key.1), key.1);
                    prop_assert_eq!(old, model.remove(&(key, hop, source)));
                }
                Step::Publish => {
                    rib.publish(&mut next_hops).unwrap();
                    published = model.clone();
                }
                Step::Begin if begun.is_none() => {
                    rib.publish(&mut next_hops).unwrap();
                    published = model.clone();
                    begun = Some((model.clone(), published.clone(), Arc::clone(rib.table()), next_hops.mark()));
                    rib.begin();
                }
                Step::Commit if begun.is_some() => {
                    rib.commit();
                    begun = None;
                    rib.quiesce();
                }
                Step::GoBack if begun.is_some() => {
                    if let Some((before, _, table, mark)) = begun.take() {
                        next_hops.go_back(mark);
                        rib.go_back(&mut next_hops).unwrap();
                        prop_assert!(Arc::ptr_eq(rib.table(), &table));
                        model = before.clone();
                        published = before;
                        rib.quiesce();
                        next_hops.quiesce();
                    }
                }
                _ => {}
            }
            if begun.is_none() {
                rib.quiesce();
            }
            for (place, hop) in down.iter().enumerate() {
                let up = place % 2 == 0;
                match hops()[usize::from(*hop)] {
                    NextHop::Connected { interface } => liveness.set_interface(interface, Cause::DRAINED, !up),
                    NextHop::Tunnel(tunnel) => liveness.set_tunnel(tunnel, Cause::DRAINED, !up),
                    _ => false,
                };
            }
            for address in (0..16_u32).map(|bits| bits << 28 | 77) {
                let found = taken(rib.table(), next_hops.table(), &liveness, address);
                prop_assert_eq!(found, naive(&published, &liveness, address), "{:x}", address);
                if let Some((_, seen, table, _)) = &begun {
                    let found = taken(table, next_hops.table(), &liveness, address);
                    prop_assert_eq!(found, naive(seen, &liveness, address), "old {:x}", address);
                }
            }
            let routes: usize = rib.iter_from((0, 0)).map(|(_, all)| all.len()).sum();
            prop_assert_eq!(routes, model.len());
            for hop in 0..hops().len() as u32 {
                prop_assert_eq!(rib.uses(hop), model.values().filter(|route| route.hop == hop).count());
            }
        }
    }
}

/// Readers see for each prefix what it was before a change or after it, never anything else, while one writer changes
/// routes in place and uses again what no reader can see any more.
#[test]
fn readers_see_every_change_whole() {
    const PREFIXES: u32 = 512;
    const READERS: usize = 2;
    let mut next_hops = writer();
    let mut rib = Rib::<u32>::default();
    let tunnel = |n: u32| Candidate {
        hop: 4 + n % 4,
        rank: Rank::TUNNEL,
        source: Source::Ebgp,
        priority: 100,
        weight: 1,
    };
    let key = |prefix: u32| (0x0A00_0000 | prefix << 12, 24);
    for prefix in 0..PREFIXES {
        rib.add(key(prefix), tunnel(prefix)).unwrap();
    }
    // One route for all: what has no route of its own.
    rib.add(
        (0, 0),
        Candidate { hop: 9, rank: Rank::BLACKHOLE, source: Source::Static, priority: 100, weight: 1 },
    )
    .unwrap();
    rib.publish(&mut next_hops).unwrap();
    let table = Arc::clone(rib.table());
    let hops = Arc::clone(next_hops.table());
    let stop = Arc::new(AtomicBool::new(false));
    let bursts: Vec<Arc<AtomicU64>> = (0..READERS).map(|_| Arc::default()).collect();
    let readers: Vec<_> = bursts
        .iter()
        .map(|burst| {
            let (table, hops, stop, burst) =
                (Arc::clone(&table), Arc::clone(&hops), Arc::clone(&stop), Arc::clone(burst));
            std::thread::spawn(move || {
                let (mut looked_up, mut state) = (0_u64, 1_u64);
                while !stop.load(Ordering::Relaxed) {
                    burst.fetch_add(1, Ordering::SeqCst);
                    let mut addresses = [0_u32; 32];
                    for address in &mut addresses {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        *address = key((state >> 40) as u32 % PREFIXES).0 | 5;
                    }
                    let mut found = [0; 32];
                    table.lookup_burst(&addresses, &mut found);
                    for (address, number) in addresses.iter().zip(found) {
                        let prefix = (address & 0x00FF_FFFF) >> 12;
                        // Its tunnel, the next one, both at once, or the route for all.
                        let one = |number: u32| {
                            number == 9 || number == 4 + prefix % 4 || number == 4 + (prefix + 1) % 4
                        };
                        match hops.get(number) {
                            Some(Hop::One(_)) => assert!(one(number), "{number} for {prefix}"),
                            Some(Hop::Choice(choice)) => {
                                let mut members = choice.tiers().iter().flat_map(|tier| tier.members());
                                assert!(members.all(|member| one(member.hop)), "{choice:?} for {prefix}");
                            }
                            None => panic!("{number} means nothing"),
                        }
                        looked_up += 1;
                    }
                }
                looked_up
            })
        })
        .collect();
    let mut state = 9_u64;
    for change in 0..6_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let prefix = (state >> 40) as u32 % PREFIXES;
        let (own, next) = (tunnel(prefix), tunnel(prefix + 1));
        match state >> 60 {
            0..4 => drop(rib.add(key(prefix), next).unwrap()),
            4..8 => drop(rib.remove(key(prefix), own.hop, own.source).unwrap()),
            8..12 => drop(rib.remove(key(prefix), next.hop, next.source).unwrap()),
            _ => drop(rib.add(key(prefix), own).unwrap()),
        }
        rib.publish(&mut next_hops).unwrap();
        if change % 16 != 0 {
            continue;
        }
        // The burst that may have seen what was is over when the next one has begun.
        let seen: Vec<u64> = bursts.iter().map(|burst| burst.load(Ordering::SeqCst)).collect();
        for (burst, seen) in bursts.iter().zip(seen) {
            while burst.load(Ordering::SeqCst) == seen {
                std::thread::yield_now();
            }
        }
        rib.quiesce();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    // What is freed is used again: six thousand changes fit where the first few did.
    assert!(table.memory() < 2 << 20, "{} bytes", table.memory());
}

#[test]
fn one_way_twice_is_one_way_and_what_cannot_fail_ends_the_list() {
    let next_hops = writer();
    let route = |hop: u32, source, priority| Candidate { hop, rank: rank(hop), source, priority, weight: 1 };
    let all = [
        route(1, Source::Static, 1),
        route(1, Source::Ebgp, 1),
        route(8, Source::Static, 1),
        route(9, Source::Static, 1),
    ];
    assert_eq!(tiers(&all, next_hops.table()), [vec![(1, 1)], vec![(8, 1)]]);
}
