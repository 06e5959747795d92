//! What a look-up costs, table by table and size by size: `cargo bench --bench tables [-- WORD]`.
//!
//! Each row is measured in several runs of many bursts; the best and the median run are shown in nanoseconds
//! for each key. Keys are drawn beforehand, more of them than fit in the caches near the core, in an order that
//! no predictor knows. WORD keeps only the rows whose name contains it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use causeway::config::build::{Routes, routes::GatewayRoutes};
use causeway::table::hash::Seed;
use causeway::table::lpm::{Lpm4, Lpm6};
use causeway::table::nat::{Rule, Static1to1};
use causeway::table::neighbour::{NeighbourKey, NeighbourTable};
use causeway::table::rib::{Candidate, Rank, Source};
use causeway::table::sad::Sad;
use causeway::table::spd::{Key4, Key6, Policy, Ports, Prefix, Spd};
use causeway::table::tables::NextHop;

const RUNS: usize = 9;
const BURST: usize = 64;
/// Keys a row draws; a run goes through all of them.
const KEYS: usize = 1 << 18;

/// A generator that repeats: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.word() as usize * bound) >> 32
    }
}

/// Rows, as they are asked for.
struct Bench {
    filter: Option<String>,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }

    /// Times `work` on `keys`, in bursts.
    fn row<K>(&self, name: &str, keys: &[K], mut work: impl FnMut(&[K])) {
        if !self.wants(name) {
            return;
        }
        let mut times: Vec<f64> = (0..RUNS)
            .map(|_| {
                let start = Instant::now();
                for burst in keys.chunks_exact(BURST) {
                    work(black_box(burst));
                }
                start.elapsed().as_nanos() as f64 / (keys.len() / BURST * BURST) as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!("{name:<52} {:>8.2} {:>8.2}", times[0], times[RUNS / 2]);
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let bench = Bench { filter };
    println!("{:<52} {:>8} {:>8}", "ns a key", "best", "median");
    lpm4(&bench);
    lpm6(&bench);
    routes(&bench);
    nat(&bench);
    spd(&bench);
    sad(&bench);
    neighbour(&bench);
}

/// Prefix lengths as in the IPv4 table of the Internet, in thousandths.
const LENGTHS_V4: [(u8, usize); 13] = [
    (8, 1),
    (12, 1),
    (14, 1),
    (15, 2),
    (16, 14),
    (17, 8),
    (18, 14),
    (19, 26),
    (20, 45),
    (21, 52),
    (22, 113),
    (23, 103),
    (24, 620),
];

fn length_of(random: &mut Random, lengths: &[(u8, usize)]) -> u8 {
    let mut left = random.below(lengths.iter().map(|(_, weight)| weight).sum());
    for &(length, weight) in lengths {
        if left < weight {
            return length;
        }
        left -= weight;
    }
    0
}

fn lpm4(bench: &Bench) {
    let mut random = Random(1);
    for (name, routes, realistic) in [
        ("lpm4 1 route", 1, false),
        ("lpm4 16 routes", 16, false),
        ("lpm4 1k random /24", 1000, false),
        ("lpm4 100k random /24", 100_000, false),
        ("lpm4 1M random /24", 1_000_000, false),
        ("lpm4 1M realistic", 1_000_000, true),
    ] {
        if !bench.wants(name) {
            continue;
        }
        let (table, mut writer) = Lpm4::new();
        let mut prefixes = Vec::new();
        while prefixes.len() < routes {
            let length = if realistic { length_of(&mut random, &LENGTHS_V4) } else { 24 };
            // Small tables as gateways have them: subnets of one private prefix.
            let base = if routes <= 16 { 0x0A00_0000 | (random.word() & 0x000F_FF00) } else { random.word() };
            prefixes.push((base, length));
        }
        let start = Instant::now();
        for (value, &(base, length)) in prefixes.iter().enumerate() {
            writer.insert(base, length, value as u32).unwrap();
        }
        writer.publish().unwrap();
        let load = start.elapsed();
        println!(
            "  {name}: {} distinct, loaded in {:.3} s, {:.1} MiB of nodes",
            writer.len(),
            load.as_secs_f64(),
            table.memory() as f64 / (1 << 20) as f64
        );
        let anywhere: Vec<u32> = (0..KEYS).map(|_| random.word()).collect();
        let covered: Vec<u32> = (0..KEYS)
            .map(|_| {
                let (base, length) = prefixes[random.below(routes)];
                base & (u32::MAX << (32 - length)) | (random.word() >> length)
            })
            .collect();
        let mut results = [0; BURST];
        for (kind, keys) in [("covered destinations", &covered), ("random destinations", &anywhere)] {
            bench.row(&format!("{name}, {kind}"), keys, |burst| {
                table.lookup_burst(burst, &mut results);
                black_box(&results);
            });
        }
        bench.row(&format!("{name}, one at a time"), &covered, |burst| {
            for &address in burst {
                black_box(table.lookup(address));
            }
        });
        let start = Instant::now();
        let changes = 20_000;
        for _ in 0..changes {
            let (base, length) = prefixes[random.below(routes)];
            writer.remove(base, length).unwrap();
            writer.publish().unwrap();
            writer.insert(base, length, 5).unwrap();
            writer.publish().unwrap();
            writer.quiesce();
        }
        println!(
            "  {name}: {:.0} ns a published change",
            start.elapsed().as_nanos() as f64 / (2 * changes) as f64
        );
    }
}

fn lpm6(bench: &Bench) {
    let mut random = Random(2);
    for (name, routes) in
        [("lpm6 16 routes /48", 16), ("lpm6 200k realistic", 200_000), ("lpm6 200k random /48", 200_001)]
    {
        if !bench.wants(name) {
            continue;
        }
        let (table, mut writer) = Lpm6::new();
        let mut prefixes = Vec::new();
        while prefixes.len() < routes {
            let high = u128::from(random.next()) << 64 | u128::from(random.next());
            // Lengths and the clustering under few registries' /12s, as in the IPv6 table of the Internet.
            let clustered = 0x2000u128 << 112 | (high % 24) << 116 | (high & ((1 << 116) - 1));
            let (base, length) = match routes {
                16 => (0x2001_0db8u128 << 96 | high & (0xFFFF << 80), 48),
                200_000 => (
                    clustered,
                    length_of(&mut random, &[(29, 80), (32, 180), (36, 60), (40, 100), (44, 100), (48, 480)]),
                ),
                _ => (0x2000u128 << 112 | high >> 3, 48),
            };
            prefixes.push((base, length));
        }
        let start = Instant::now();
        for (value, &(base, length)) in prefixes.iter().enumerate() {
            writer.insert(base, length, value as u32).unwrap();
        }
        writer.publish().unwrap();
        println!(
            "  {name}: {} distinct, loaded in {:.3} s, {:.1} MiB of nodes",
            writer.len(),
            start.elapsed().as_secs_f64(),
            table.memory() as f64 / (1 << 20) as f64
        );
        let covered: Vec<u128> = (0..KEYS)
            .map(|_| {
                let (base, length) = prefixes[random.below(routes)];
                base & (u128::MAX << (128 - length)) | (u128::from(random.next()) << 64 >> length)
            })
            .collect();
        let mut results = [0; BURST];
        bench.row(&format!("{name}, covered destinations"), &covered, |burst| {
            table.lookup_burst(burst, &mut results);
            black_box(&results);
        });
        bench.row(&format!("{name}, one at a time"), &covered, |burst| {
            for &address in burst {
                black_box(table.lookup(address));
            }
        });
    }
}

/// The routes of a gateway: loading a full table, and a change beside it until a reader on another core sees it.
fn routes(bench: &Bench) {
    if !bench.wants("routes") {
        return;
    }
    let mut random = Random(3);
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<usize>().ok()).unwrap_or(0) >> 10
    };
    let before = resident();
    let mut all = Routes::default();
    let tunnel = |n| NextHop::Tunnel(n);
    let hops: Vec<u32> = (0..16).filter_map(|n| all.hops.one(tunnel(n))).collect();
    let route = |hop| Candidate { hop, rank: Rank::TUNNEL, source: Source::Ebgp, priority: 100, weight: 1 };
    let v4: Vec<(u32, u8)> =
        (0..1_000_000).map(|_| (random.word() | 1 << 31, length_of(&mut random, &LENGTHS_V4))).collect();
    let v6: Vec<(u128, u8)> = (0..200_000)
        .map(|_| (0x2000 << 112 | u128::from(random.next()) << 60, [48, 48, 44, 40, 36, 32][random.below(6)]))
        .collect();
    let mut gateway = GatewayRoutes::default();
    let start = Instant::now();
    for (place, key) in v4.iter().enumerate() {
        gateway.v4.add(*key, route(hops[place % 16])).expect("a good prefix");
    }
    for (place, key) in v6.iter().enumerate() {
        gateway.v6.add(*key, route(hops[place % 16])).expect("a good prefix");
    }
    gateway.publish(&mut all.hops).expect("room");
    let (loaded, used) = (start.elapsed(), resident() - before);
    let sizes = format!("{} + {} prefixes", gateway.v4.len(), gateway.v6.len());
    println!("routes: 1M IPv4 and 200k IPv6 loaded: {loaded:.2?}, {used} MiB with what is loaded ({sizes})");

    // A reader spins on the address of a change, as a worker's next burst would ask for it.
    let (table, _) = gateway.tables();
    let (wanted, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (theirs, answers) = (Arc::clone(&wanted), Arc::clone(&seen));
    let reader = std::thread::spawn(move || {
        let mut last = 0;
        loop {
            match theirs.load(Ordering::Acquire) {
                u32::MAX => return,
                address if address != last => {
                    if table.lookup(address).is_some() {
                        answers.store(address, Ordering::Release);
                        last = address;
                    }
                }
                _ => std::hint::spin_loop(),
            }
        }
    });
    let (mut changes, mut visible) = (Vec::new(), Vec::new());
    for n in 1..2000_u32 {
        let address = n << 12;
        wanted.store(address, Ordering::Release);
        let start = Instant::now();
        gateway.v4.add((address, 24), route(hops[0])).expect("a good prefix");
        gateway.publish(&mut all.hops).expect("room");
        changes.push(start.elapsed().as_nanos() as f64 / 1000.0);
        while seen.load(Ordering::Acquire) != address {
            std::hint::spin_loop();
        }
        visible.push(start.elapsed().as_nanos() as f64 / 1000.0);
        gateway.v4.quiesce();
    }
    wanted.store(u32::MAX, Ordering::Release);
    let _ = reader.join();
    for (name, times) in [("a change", &mut changes), ("a change until a reader sees it", &mut visible)] {
        times.sort_by(f64::total_cmp);
        let (best, median, most) = (times[0], times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("routes: {name}: best {best:.1} µs, median {median:.1} µs, 99 % below {most:.1} µs");
    }
    drop(black_box(gateway));
}

fn nat(bench: &Bench) {
    let mut random = Random(3);
    for rules in [1usize, 100, 10_000] {
        let list: Vec<Rule<u32>> = (0..rules as u32)
            .map(|number| Rule {
                original: 0x0A00_0000 + number.wrapping_mul(0x9E37_79B1) % 0x00FF_FFFF,
                translated: 0xCB00_0000 + number,
                length: 32,
            })
            .collect();
        let nat = Static1to1::build(&list, Seed::random()).unwrap();
        let hits: Vec<u32> = (0..KEYS).map(|_| list[random.below(rules)].original).collect();
        let misses: Vec<u32> = (0..KEYS).map(|_| random.word() | 1 << 31).collect();
        for (kind, keys) in [("hits", &hits), ("misses", &misses)] {
            bench.row(&format!("nat 1:1 {rules} rules, {kind}"), keys, |burst| {
                for &address in burst {
                    black_box(nat.translate_source(address));
                }
            });
        }
    }
}

/// Policies as sites have them: subnet to subnet, one in ten narrowed to a port, the last one for everything.
fn site_policies(random: &mut Random, count: usize) -> Vec<Policy> {
    let mut policies: Vec<Policy> = (1..count)
        .map(|number| {
            let source = 0x0A00_0000 | (random.word() & 0x003F_FF00);
            let destination = 0xAC10_0000 | (random.word() & 0x000F_FF00);
            let lengths = [24u8, 24, 24, 24, 24, 24, 22, 20, 28, 32];
            let narrow = number % 10 == 0;
            Policy {
                sources: vec![Prefix::V4(source, lengths[random.below(10)])],
                destinations: vec![Prefix::V4(destination, lengths[random.below(10)])],
                protocol: narrow.then_some(6),
                destination_ports: if narrow { Ports::Ranges(vec![(443, 443)]) } else { Ports::Any },
                action: number as u32,
                ..Policy::default()
            }
        })
        .collect();
    policies.push(Policy::default());
    policies
}

/// Keys of which nine in ten lie in the prefixes of some policy.
fn policy_keys(random: &mut Random, policies: &[Policy]) -> Vec<Key4> {
    (0..KEYS)
        .map(|_| {
            let policy = &policies[random.below(policies.len())];
            let stray = random.below(10) == 0;
            let mut inside = |prefixes: &[Prefix]| match prefixes.first() {
                Some(Prefix::V4(base, length)) if !stray => {
                    let host = u32::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
                    base & !host | random.word() & host
                }
                _ => random.word(),
            };
            Key4 {
                source: inside(&policy.sources),
                destination: inside(&policy.destinations),
                protocol: 6,
                source_port: random.word() as u16,
                destination_port: if random.below(2) == 0 { 443 } else { random.word() as u16 },
                opaque_ports: false,
            }
        })
        .collect()
}

fn spd(bench: &Bench) {
    let mut random = Random(4);
    let mut sets: Vec<(String, Vec<Policy>)> = [1, 10, 100, 1000, 10_000]
        .map(|count| (format!("spd {count} policies"), site_policies(&mut random, count)))
        .into();
    let mut ports = |count: usize| -> Vec<Policy> {
        let mut range = || {
            let (one, other) = (random.word() as u16, random.word() as u16);
            Ports::Ranges(vec![(one.min(other), one.max(other))])
        };
        (0..count)
            .map(|_| Policy {
                protocol: Some(6),
                source_ports: range(),
                destination_ports: range(),
                ..Policy::default()
            })
            .collect()
    };
    sets.push(("spd 10k wildcards over random port ranges".into(), ports(10_000)));
    let nested = (0..10_000)
        .map(|_| Policy {
            sources: vec![Prefix::V4(random.word(), random.below(33) as u8)],
            destinations: vec![Prefix::V4(random.word(), random.below(33) as u8)],
            ..Policy::default()
        })
        .collect();
    sets.push(("spd 10k random prefixes of /0 to /32".into(), nested));
    for (name, policies) in sets {
        if !bench.wants(&name) {
            continue;
        }
        let start = Instant::now();
        let spd = Spd::build(&policies, Seed::random()).unwrap();
        println!(
            "  {name}: built in {:.3} s, {:.0} KiB, {} tables",
            start.elapsed().as_secs_f64(),
            spd.memory() as f64 / 1024.0,
            spd.tables().0
        );
        let keys = policy_keys(&mut random, &policies);
        let mut results = [0; BURST];
        bench.row(&name, &keys, |burst| {
            spd.lookup_burst_v4(burst, &mut results);
            black_box(&results);
        });
        bench.row(&format!("{name}, one at a time"), &keys, |burst| {
            for key in burst {
                black_box(spd.lookup_v4(key));
            }
        });
        let anything: Vec<Key4> = (0..KEYS)
            .map(|_| Key4 {
                source: random.word(),
                destination: random.word(),
                protocol: 6,
                ..Key4::default()
            })
            .collect();
        bench.row(&format!("{name}, random keys"), &anything, |burst| {
            spd.lookup_burst_v4(burst, &mut results);
            black_box(&results);
        });
    }
    for count in [1usize, 10_000] {
        let base = 0x2001_0db8u128 << 96;
        let prefix = |number: u128| Prefix::V6(base | number << 80, 48);
        let policies: Vec<Policy> = (0..count as u128)
            .map(|number| Policy {
                sources: vec![prefix(number % 64)],
                destinations: vec![prefix(number / 64 + 64)],
                ..Policy::default()
            })
            .collect();
        let spd = Spd::build(&policies, Seed::random()).unwrap();
        let keys: Vec<Key6> = (0..KEYS)
            .map(|_| {
                let number = random.below(count) as u128;
                Key6 {
                    source: base | (number % 64) << 80 | u128::from(random.next()),
                    destination: base | (number / 64 + 64) << 80 | u128::from(random.next()),
                    ..Key6::default()
                }
            })
            .collect();
        let mut results = [0; BURST];
        bench.row(&format!("spd {count} policies, IPv6"), &keys, |burst| {
            spd.lookup_burst_v6(burst, &mut results);
            black_box(&results);
        });
    }
}

fn sad(bench: &Bench) {
    let mut random = Random(5);
    for sas in [1usize, 1000, 50_000, 1_000_000] {
        let entries: Vec<((u32, u32), u32)> = (0..sas as u32)
            .map(|number| ((256 + number, 0x0A00_0000 + random.word() % 64), number))
            .collect();
        let sad = Sad::build(&entries, Seed::random()).unwrap();
        let wide: Vec<((u32, u128), u32)> =
            entries.iter().map(|&((spi, address), index)| ((spi, u128::from(address)), index)).collect();
        let sad6 = Sad::build(&wide, Seed::random()).unwrap();
        let keys: Vec<(u32, u32)> = (0..KEYS).map(|_| entries[random.below(sas)].0).collect();
        let keys6: Vec<(u32, u128)> = keys.iter().map(|&(spi, address)| (spi, u128::from(address))).collect();
        let mut results = [0; BURST];
        bench.row(&format!("sad {sas} SAs, IPv4"), &keys, |burst| {
            sad.lookup_burst(burst, &mut results);
            black_box(&results);
        });
        bench.row(&format!("sad {sas} SAs, IPv6"), &keys6, |burst| {
            sad6.lookup_burst(burst, &mut results);
            black_box(&results);
        });
    }
}

fn neighbour(bench: &Bench) {
    let mut random = Random(6);
    for count in [16usize, 1000, 64_000] {
        let (table, mut writer) = NeighbourTable::new(count, Seed::random());
        let keys: Vec<NeighbourKey> = (0..count as u32)
            .map(|number| NeighbourKey::v4(number as u16 % 8, 0x0A00_0000 + number))
            .collect();
        let ids: Vec<_> = keys.iter().map(|key| writer.insert_permanent(key, [2; 6], 0).unwrap()).collect();
        let probes: Vec<NeighbourKey> = (0..KEYS).map(|_| keys[random.below(count)]).collect();
        bench.row(&format!("neighbour {count}, look-up and MAC"), &probes, |burst| {
            for key in burst {
                black_box(table.lookup(key).and_then(|id| table.mac(id)));
            }
        });
        let probes: Vec<_> = (0..KEYS).map(|_| ids[random.below(count)]).collect();
        bench.row(&format!("neighbour {count}, MAC by id"), &probes, |burst| {
            for &id in burst {
                black_box(table.mac(id));
            }
        });
    }
}
