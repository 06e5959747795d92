//! A route table as large as that of the Internet, with room: a million IPv4 and 200 000 IPv6 routes.

use std::time::Instant;

use causeway::{
    config::build::{Routes, routes::GatewayRoutes},
    table::{
        rib::{Candidate, Rank, Source},
        tables::NextHop,
    },
};

/// Kilobytes that this process has in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_million_routes_fit_into_half_a_gigabyte() {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    };
    let before = resident();
    let mut routes = Routes::default();
    let hops: Vec<u32> = (0..16).map(|n| routes.hops.one(NextHop::Tunnel(n)).unwrap()).collect();
    let mut gateway = GatewayRoutes::default();
    let start = Instant::now();
    while gateway.v4.len() < 1_000_000 {
        let length = [24, 24, 24, 23, 22, 22, 20, 19][(random() >> 61) as usize];
        let hop = hops[(random() >> 60) as usize];
        let route = Candidate { hop, rank: Rank::TUNNEL, source: Source::Ebgp, priority: 100, weight: 1 };
        gateway.v4.add(((random() >> 32) as u32, length), route).unwrap();
    }
    while gateway.v6.len() < 200_000 {
        let length = [48, 48, 48, 44, 40, 36, 32, 29][(random() >> 61) as usize];
        let hop = hops[(random() >> 60) as usize];
        let route = Candidate { hop, rank: Rank::TUNNEL, source: Source::Ebgp, priority: 100, weight: 1 };
        let address = 0x2000_u128 << 112 | u128::from(random()) << 60;
        gateway.v6.add((address, length), route).unwrap();
    }
    gateway.publish(&mut routes.hops).unwrap();
    let loaded = start.elapsed();
    let used = resident().saturating_sub(before);
    println!("1.2 million routes: {loaded:?}, {} MiB", used >> 10);
    assert!(used < 512 << 10, "{used} kB");
    // A change beside them touches little: what it takes out of the table and puts in is a few nodes.
    let (table, _) = gateway.tables();
    let memory = table.memory();
    let start = Instant::now();
    for n in 0..1000_u32 {
        let hop = hops[n as usize % 16];
        let route = Candidate { hop, rank: Rank::TUNNEL, source: Source::Ebgp, priority: 100, weight: 1 };
        gateway.v4.add((0x0B00_0000 | n << 8, 24), route).unwrap();
        gateway.publish(&mut routes.hops).unwrap();
        gateway.v4.quiesce();
        assert_eq!(table.lookup(0x0B00_0001 | n << 8), Some(hop));
    }
    println!("a change: {:?}", start.elapsed() / 1000);
    assert!(table.memory() <= 2 * memory);
}
