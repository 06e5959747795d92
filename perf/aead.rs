//! AES-GCM alone: nanoseconds a packet to seal and to open, warm in cache, in place.
//!
//! `cargo bench --bench aead [-- quick] [BACKEND …]`
//!
//! A row is the length of the ESP text. 48 bytes is that of a 64-byte frame: 64 bytes of Ethernet with a VLAN tag
//! carry 46 bytes of IP, which pad to 48 with ESP's trailer of two. The AAD is 12 bytes (ESN). Each figure is the
//! best of the runs, with the median behind it; runs of the backends alternate, so that noise meets all of them.
//! An open cannot be repeated in place, so its packets are sealed again before each round, outside the clock.

use std::hint::black_box;
use std::time::Instant;

use causeway::crypto::aead::{self, Aad, Backend, Job, Key, TAG_LEN};

/// Packets in a round: as many buffers, which stay in the second-level cache.
const PACKETS: usize = 256;
/// Bytes from one packet's buffer to the next, as in a UMEM of 2 KiB frames.
const STRIDE: usize = 2048;
/// Where the text starts in its buffer: Ethernet, VLAN, IPv4, ESP and IV before it.
const OFFSET: usize = 54;

struct Case {
    text: usize,
    burst: usize,
    /// The key of each packet.
    keys: Vec<usize>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let quick = arguments.iter().any(|a| a == "quick");
    let chosen: Vec<Backend> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    let backends: Vec<Backend> =
        Backend::available().filter(|b| chosen.is_empty() || chosen.contains(b)).collect();
    let runs = if quick { 15 } else { 31 };

    println!("AES-GCM, ns a packet: best (median) of {runs} runs\n");
    for key_bytes in if quick { vec![16, 32] } else { vec![16, 24, 32] } {
        let one = Keys::new(&backends, key_bytes, 1);
        println!("AES-{}, one key, bursts of 32", key_bytes * 8);
        header(&backends);
        for text in [48, 112, 256, 512, 1024, 1440] {
            report(&backends, &one, &Case { text, burst: 32, keys: vec![0; PACKETS] }, runs);
        }
        if key_bytes == 24 {
            continue;
        }
        println!("AES-{}, one key, other bursts", key_bytes * 8);
        for burst in [1, 64] {
            for text in [48, 1440] {
                report(&backends, &one, &Case { text, burst, keys: vec![0; PACKETS] }, runs);
            }
        }
        for count in [1024, 10_000] {
            println!("AES-{}, {count} keys at random, bursts of 64", key_bytes * 8);
            let keys = Keys::new(&backends, key_bytes, count);
            for text in [48, 512, 1440] {
                let order = shuffled(count);
                report(&backends, &keys, &Case { text, burst: 64, keys: order }, runs);
            }
        }
    }
    println!("AES-128, one key, bursts of 32, lengths mixed (IMIX: 28 of 48, 16 of 556, 4 of 1440)");
    let one = Keys::new(&backends, 16, 1);
    report(&backends, &one, &Case { text: 0, burst: 32, keys: vec![0; PACKETS] }, runs);
}

/// The same keys for each backend.
struct Keys(Vec<Vec<Key>>);

impl Keys {
    fn new(backends: &[Backend], bytes: usize, count: usize) -> Self {
        let key = |i: usize| -> Vec<u8> { (0..bytes).map(|b| (b * 7 + i * 13 + (i >> 8)) as u8).collect() };
        let expand = |backend: &Backend| {
            (0..count)
                .map(|i| Key::new(*backend, &key(i), (i as u32).to_be_bytes()).expect("a valid key"))
                .collect()
        };
        Self(backends.iter().map(expand).collect())
    }
}

/// Numbers below `count` in an order that no prefetcher guesses, enough for many rounds.
fn shuffled(count: usize) -> Vec<usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..65_536)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % count as u64) as usize
        })
        .collect()
}

fn header(backends: &[Backend]) {
    print!("{:>22}", "text burst");
    for backend in backends {
        print!("{:>17} seal {:>10} open", backend.name(), "");
    }
    println!("   reference / best");
}

fn length(case: &Case, i: usize) -> usize {
    match (case.text, (i * 29) % 48) {
        (0, 0..28) => 48,
        (0, 28..44) => 556,
        (0, _) => 1440,
        (text, _) => text,
    }
}

fn report(backends: &[Backend], keys: &Keys, case: &Case, runs: usize) {
    let mut seal = vec![Vec::new(); backends.len()];
    let mut open = vec![Vec::new(); backends.len()];
    let mut memory = vec![0u8; PACKETS * STRIDE + 64];
    let skew = memory.as_ptr().align_offset(64);
    for run in 0..runs {
        for (i, keys) in keys.0.iter().enumerate() {
            let (s, o) = measure(keys, case, memory.get_mut(skew..).unwrap_or_default(), run);
            seal[i].push(s);
            open[i].push(o);
        }
    }
    print!("{:>15} {:>6}", case.text, case.burst);
    let mut best = Vec::new();
    for i in 0..backends.len() {
        seal[i].sort_by(f64::total_cmp);
        open[i].sort_by(f64::total_cmp);
        let (s, o) = (&seal[i], &open[i]);
        print!("{:>13.1} ({:>6.1}) {:>8.1} ({:>6.1})", s[0], s[runs / 2], o[0], o[runs / 2]);
        best.push(s[0]);
    }
    println!("{:>8.1}", best[best.len() - 1] / best[0]);
}

/// One run of one backend: nanoseconds a packet of sealing and of opening.
fn measure(keys: &[Key], case: &Case, memory: &mut [u8], run: usize) -> (f64, f64) {
    let rounds = (400_000 / (PACKETS * (case.text.max(400) / 32))).max(4);
    let (mut seal, mut open) = (0u128, 0u128);
    for round in 0..rounds {
        let from = (run * rounds + round) * PACKETS % case.keys.len();
        let mut jobs: Vec<Job<'_>> = memory
            .chunks_exact_mut(STRIDE)
            .zip(case.keys.iter().cycle().skip(from))
            .enumerate()
            .map(|(i, (buffer, key))| {
                let text = &mut buffer[OFFSET..OFFSET + length(case, i) + TAG_LEN];
                Job::new(&keys[*key], (i as u64).to_be_bytes(), Aad::esn(0x1234, i as u64), text)
            })
            .collect();
        let start = Instant::now();
        for burst in jobs.chunks_mut(case.burst) {
            aead::seal(black_box(burst));
        }
        let middle = Instant::now();
        for burst in jobs.chunks_mut(case.burst) {
            aead::open(black_box(burst));
        }
        open += middle.elapsed().as_nanos();
        seal += (middle - start).as_nanos();
        assert!(jobs.iter().all(|job| job.ok), "a packet did not open");
    }
    let packets = (rounds * PACKETS) as f64;
    (seal as f64 / packets, open as f64 / packets)
}
