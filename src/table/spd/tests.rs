use proptest::prelude::*;

use super::*;

/// The naive SPD: policies in order, selectors as RFC 4301 words them.
fn scan<A: Address>(policies: &[Policy], key: &Key<A>) -> Option<u32> {
    let covers = |prefixes: &[Prefix], address: A| {
        prefixes.is_empty()
            || prefixes.iter().any(|prefix| match *prefix {
                Prefix::V4(base, length) => {
                    A::WIDTH == 32 && address & A::mask(length) == A::truncate(base.into()) & A::mask(length)
                }
                Prefix::V6(base, length) => {
                    A::WIDTH == 128 && address & A::mask(length) == A::truncate(base) & A::mask(length)
                }
            })
    };
    let port = |ports: &Ports, port: u16| match ports {
        Ports::Any => true,
        Ports::Opaque => key.opaque_ports,
        Ports::Ranges(ranges) => {
            !key.opaque_ports && ranges.iter().any(|&(low, high)| (low..=high).contains(&port))
        }
    };
    let place = policies.iter().position(|policy| {
        covers(&policy.sources, key.source)
            && covers(&policy.destinations, key.destination)
            && policy.protocol.is_none_or(|protocol| protocol == key.protocol)
            && port(&policy.source_ports, key.source_port)
            && port(&policy.destination_ports, key.destination_port)
    });
    place.map(|place| place as u32)
}

fn check<A: Address>(
    policies: &[Policy],
    keys: &[Key<A>],
    found: impl Fn(&Key<A>) -> Option<u32>,
    burst: &[u32],
) {
    for (key, result) in keys.iter().zip(burst) {
        let expected = scan(policies, key);
        assert_eq!(found(key), expected, "{key:x?}");
        assert_eq!(*result, expected.unwrap_or(NO_POLICY), "{key:x?} in a burst");
    }
}

/// What a burst finds where there are few rules.
fn check_few<A: Address>(policies: &[Policy], rules: &[Rule<A>], keys: &[Key<A>]) {
    for burst in keys.chunks(BURST) {
        let mut list = Keys::default();
        burst.iter().for_each(|key| list.push(key));
        let mut results = [0; BURST];
        choose(rules, &list, &mut results);
        for (key, result) in burst.iter().zip(results) {
            assert_eq!(result, scan(policies, key).unwrap_or(NO_POLICY), "{key:x?} among few");
        }
    }
}

fn check_both(policies: &[Policy], keys4: &[Key4], keys6: &[Key6]) -> Spd {
    let spd = Spd::build(policies, Seed::random()).unwrap();
    let mut results = vec![0; keys4.len()];
    spd.lookup_burst_v4(keys4, &mut results);
    check(policies, keys4, |key| spd.lookup_v4(key), &results);
    if let Some(few) = spd.few_v4() {
        for key in keys4 {
            assert_eq!(few.find_key(key), scan(policies, key).unwrap_or(NO_POLICY), "{key:x?} among few");
        }
    }
    let mut results = vec![0; keys6.len()];
    spd.lookup_burst_v6(keys6, &mut results);
    check(policies, keys6, |key| spd.lookup_v6(key), &results);
    if let Some(rules) = spd.few_v6() {
        check_few(policies, rules, keys6);
    }
    spd
}

/// Few distinct bits, so that prefixes nest and keys hit them.
fn address4() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>().prop_map(|bits| bits & 0xC103_0103), any::<u32>()]
}

fn address6() -> impl Strategy<Value = u128> {
    any::<u128>().prop_map(|bits| bits & 0xC100_0003_0000_0000_0100_0000_0000_0003)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        3 => (address4(), 0u8..=32).prop_map(|(address, length)| Prefix::V4(address, length)),
        1 => (address6(), 0u8..=128).prop_map(|(address, length)| Prefix::V6(address, length)),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    let number = || prop_oneof![0u16..12, Just(u16::MAX), any::<u16>()];
    let range = (number(), number()).prop_map(|(one, other)| (one.min(other), one.max(other)));
    prop_oneof![
        4 => Just(Ports::Any),
        1 => Just(Ports::Opaque),
        4 => proptest::collection::vec(range, 1..3).prop_map(Ports::Ranges),
    ]
}

fn policies(count: usize) -> impl Strategy<Value = Vec<Policy>> {
    let policy = (
        proptest::collection::vec(prefix(), 0..3),
        proptest::collection::vec(prefix(), 0..3),
        proptest::option::of(prop_oneof![Just(6u8), Just(17), Just(1), any::<u8>()]),
        ports(),
        ports(),
    );
    let policy = policy.prop_map(|(sources, destinations, protocol, source_ports, destination_ports)| {
        Policy { sources, destinations, protocol, source_ports, destination_ports, action: 0 }
    });
    let possible = policy.prop_filter("matches nothing", |policy| {
        Spd::build(std::slice::from_ref(policy), Seed::new(1, 1)).is_ok()
    });
    proptest::collection::vec(possible, 0..count)
}

fn keys<A: Address>(address: impl Strategy<Value = A> + Clone) -> impl Strategy<Value = Vec<Key<A>>> {
    let port = || prop_oneof![0u16..12, Just(u16::MAX), any::<u16>()];
    let protocol = prop_oneof![Just(6u8), Just(17), Just(1), any::<u8>()];
    let key = (address.clone(), address, protocol, port(), port(), any::<bool>());
    let key = key.prop_map(|(source, destination, protocol, source_port, destination_port, opaque_ports)| {
        Key { source, destination, protocol, source_port, destination_port, opaque_ports }
    });
    proptest::collection::vec(key, 1..150)
}

fn boxed<A: Address>(strategy: impl Strategy<Value = A> + 'static) -> BoxedStrategy<A> {
    strategy.boxed()
}

proptest! {
    #[test]
    fn few_policies_agree_with_a_scan(policies in policies(12), keys4 in keys(boxed(address4())), keys6 in keys(boxed(address6()))) {
        check_both(&policies, &keys4, &keys6);
    }

    #[test]
    fn many_overlapping_policies_agree_with_a_scan(
        policies in policies(300), keys4 in keys(boxed(address4())), keys6 in keys(boxed(address6())),
    ) {
        check_both(&policies, &keys4, &keys6);
    }
}

/// A generator that repeats.
fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 32) as u32
}

fn random_keys(state: &mut u64, near: &[Policy]) -> Vec<Key4> {
    let inside = |prefixes: &[Prefix], state: &mut u64| match prefixes.first() {
        Some(Prefix::V4(base, length)) => base & u32::mask(*length) | random(state) & !u32::mask(*length),
        _ => random(state),
    };
    (0..600)
        .map(|number| {
            let policy = &near[random(state) as usize % near.len()];
            Key {
                source: inside(&policy.sources, state),
                destination: if number % 4 == 0 {
                    random(state)
                } else {
                    inside(&policy.destinations, state)
                },
                protocol: [6, 17, 1, 47][random(state) as usize % 4],
                source_port: random(state) as u16,
                destination_port: random(state) as u16,
                opaque_ports: number % 5 == 0,
            }
        })
        .collect()
}

fn tcp(low: u16, high: u16) -> Policy {
    Policy { protocol: Some(6), destination_ports: Ports::Ranges(vec![(low, high)]), ..Policy::default() }
}

#[test]
fn thousands_of_wildcards_over_ports_stay_bounded() {
    let mut state = 1;
    let policies: Vec<Policy> = (0..3000)
        .map(|_| {
            let (one, other) = (random(&mut state) as u16, random(&mut state) as u16);
            let (third, fourth) = (random(&mut state) as u16, random(&mut state) as u16);
            Policy {
                source_ports: Ports::Ranges(vec![(third.min(fourth), third.max(fourth))]),
                ..tcp(one.min(other), one.max(other))
            }
        })
        .collect();
    let keys = random_keys(&mut state, &policies);
    let spd = check_both(&policies, &keys, &[]);
    assert!(spd.memory() < 2 * 3000 * 16 * 96, "{}", spd.memory());
}

#[test]
fn thousands_of_nested_prefixes_stay_few_tables() {
    let mut state = 2;
    let policies: Vec<Policy> = (0..3000)
        .map(|_| Policy {
            sources: vec![Prefix::V4(random(&mut state) & 0xFF, (random(&mut state) % 33) as u8)],
            destinations: vec![Prefix::V4(random(&mut state), (random(&mut state) % 33) as u8)],
            ..Policy::default()
        })
        .collect();
    let keys = random_keys(&mut state, &policies);
    let spd = check_both(&policies, &keys, &[]);
    assert!(spd.tables().0 <= 24, "{:?}", spd.tables());
}

#[test]
fn pairs_of_subnets_need_one_table() {
    let policies: Vec<Policy> = (0..2500u32)
        .map(|number| Policy {
            sources: vec![Prefix::V4(0x0A00_0000 | (number % 50) << 8, 24)],
            destinations: vec![Prefix::V4(0xAC10_0000 | (number / 50) << 8, 24)],
            action: number,
            ..Policy::default()
        })
        .collect();
    let mut state = 3;
    let keys = random_keys(&mut state, &policies);
    let spd = check_both(&policies, &keys, &[]);
    assert_eq!(spd.tables(), (1, 0));
    assert_eq!(spd.action(77), Some(77));
    assert_eq!(spd.action(2500), None);
}

/// The two lengths together are 256: more than a byte holds.
#[test]
fn policies_between_ipv6_hosts() {
    let host = |n: u16| vec![Prefix::V6(0x2001_0db8 << 96 | u128::from(n), 128)];
    let policy = |n: u16| Policy {
        sources: host(n),
        destinations: host(n + 1000),
        protocol: None,
        source_ports: Ports::Any,
        destination_ports: Ports::Any,
        action: 0,
    };
    let policies: Vec<_> = (0..20).map(policy).collect();
    let key = |n: u16| Key6 {
        source: 0x2001_0db8 << 96 | u128::from(n),
        destination: 0x2001_0db8 << 96 | u128::from(n + 1000),
        protocol: 6,
        source_port: 1,
        destination_port: 2,
        opaque_ports: false,
    };
    check_both(&policies, &[], &(0..21).map(key).collect::<Vec<_>>());
}

#[test]
fn fragments_match_no_range_not_even_the_full_one() {
    let full = tcp(0, u16::MAX);
    let opaque = Policy { destination_ports: Ports::Opaque, ..Policy::default() };
    let any = Policy::default();
    let spd = Spd::build(&[full, opaque, any], Seed::random()).unwrap();
    let first = Key4 { protocol: 6, ..Key4::default() };
    assert_eq!(spd.lookup_v4(&first), Some(0));
    assert_eq!(spd.lookup_v4(&Key4 { opaque_ports: true, ..first }), Some(1));
    assert_eq!(spd.lookup_v4(&Key4 { protocol: 17, ..first }), Some(2));
}

#[test]
fn icmp_type_and_code_stand_in_place_of_ports() {
    let echo = Policy {
        protocol: Some(1),
        source_ports: Ports::Ranges(vec![(8, 8), (0, 0)]),
        destination_ports: Ports::Ranges(vec![(0, 0)]),
        ..Policy::default()
    };
    let spd = Spd::build(&[echo], Seed::random()).unwrap();
    let key = |kind, code| Key4 { protocol: 1, source_port: kind, destination_port: code, ..Key4::default() };
    assert_eq!(spd.lookup_v4(&key(8, 0)), Some(0));
    assert_eq!(spd.lookup_v4(&key(0, 0)), Some(0));
    assert_eq!(spd.lookup_v4(&key(3, 4)), None);
}

#[test]
fn impossible_policies_are_refused() {
    let build = |policy: Policy| Spd::build(&[Policy::default(), policy], Seed::random()).unwrap_err();
    let mixed =
        Policy { sources: vec![Prefix::V4(0, 8)], destinations: vec![Prefix::V6(0, 8)], ..Policy::default() };
    assert_eq!(build(mixed), SpdError::VersionsDiffer { policy: 1 });
    assert_eq!(build(tcp(2, 1)), SpdError::EmptyRange { policy: 1 });
    let none = Policy { source_ports: Ports::Ranges(Vec::new()), ..Policy::default() };
    assert_eq!(build(none), SpdError::EmptyRange { policy: 1 });
    let long = Policy { sources: vec![Prefix::V4(0, 33)], ..Policy::default() };
    assert_eq!(build(long), SpdError::LengthTooLong { policy: 1, length: 33 });
    let many = Policy {
        sources: vec![Prefix::V4(0, 32); 2000],
        destinations: vec![Prefix::V4(0, 32); 2000],
        ..Policy::default()
    };
    assert_eq!(build(many), SpdError::TooManyRules { policy: 1 });
}
