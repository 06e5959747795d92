use super::*;

const TCP: Flow = Flow { protocol: 6, source_port: 4000, destination_port: 443, has_ports: true };

#[test]
fn conditions_are_of_the_vpc_s_view() {
    let any = Conditions::<u32>::default();
    assert!(any.is_empty() && any.hold(TCP, 1));
    let https = Conditions { protocol: Some(6), destination_ports: vec![(443, 443)], ..any.clone() };
    assert!(https.hold(TCP, 1) && !https.hold(TCP.reversed(), 1) && https.needs_ports());
    assert!(!https.hold(Flow { has_ports: false, ..TCP }, 1));
    let there = Conditions { destinations: vec![(0x0A01_0000, 0xFFFF_0000)], ..any };
    assert!(there.hold(TCP, 0x0A01_0203) && !there.hold(TCP, 0x0A02_0203) && !there.needs_ports());
}

#[test]
fn a_pool_s_addresses_are_counted_through_its_ranges() {
    let pool = Pool {
        sources: vec![(0x0A00_0000, 0xFF00_0000)],
        conditions: Conditions::default(),
        ranges: vec![(100, 2), (200, 3)],
        addresses: 5,
        ports: PortRange::new(1024, 65535),
        row: 0,
    };
    assert_eq!((0..7).map(|n| pool.address(n)).collect::<Vec<_>>(), [100, 101, 200, 201, 202, 100, 101]);
    assert!(pool.has(202) && !pool.has(203) && !pool.has(99) && !pool.has(102));
    assert!(pool.takes(0x0A01_0101, TCP, 9) && !pool.takes(0x0B01_0101, TCP, 9));
}
