//! What a look-up costs, table by table and size by size: `cargo bench --bench tables [-- WORD]`.
//!
//! Each row is measured in several runs of many bursts; the best and the median run are shown in nanoseconds
//! for each key. Keys are drawn beforehand, more of them than fit in the caches near the core, in an order that
//! no predictor knows. WORD keeps only the rows whose name contains it.

use std::hint::black_box;
use std::time::Instant;

use causeway::table::lpm::{Lpm4, Lpm6};

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
