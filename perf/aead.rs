//! AES-GCM alone: nanoseconds a packet to seal and to open, warm in cache, in place.
//!
//! `cargo bench --bench aead [-- quick] [BACKEND …]`
//!
//! A row is the length of the ESP text. 48 bytes is that of a 64-byte frame: 64 bytes of Ethernet with a VLAN tag
//! carry 46 bytes of IP, which pad to 48 with ESP's trailer of two. The AAD is 12 bytes (ESN). Each figure is the
//! best of the runs, with the median behind it, and how many times faster than the `aes-gcm` crate in the same run;
//! runs of the backends alternate, so that noise meets all of them. With 10,000 keys each packet's is at random.
//! An open cannot be repeated in place, so its packets are sealed again before each round, outside the clock.

use std::hint::black_box;
use std::time::Instant;

use causeway::crypto::aead::{self, Aad, Backend, Job, Key, TAG_LEN};

/// Packets in a round: as many buffers, which stay in the second-level cache.
const PACKETS: usize = 256;
/// The text length that stands for a mix: of 48 packets 28 of 48 bytes, 16 of 556 and 4 of 1440, in any order.
const IMIX: usize = 0;
/// Where the text starts in its buffer: Ethernet, VLAN, IPv4, ESP and IV before it.
const OFFSET: usize = 54;

struct Case {
    text: usize,
    burst: usize,
    /// The key of each packet.
    keys: Vec<usize>,
    /// Of a mix, where in it each packet stands: in an order that no processor learns.
    places: Vec<usize>,
}

impl Case {
    fn new(text: usize, burst: usize, keys: Vec<usize>) -> Self {
        Self { text, burst, keys, places: shuffled(48) }
    }

    /// Text bytes of a packet.
    fn length(&self, number: usize) -> usize {
        match (self.text, self.places[number % self.places.len()]) {
            (IMIX, 0..28) => 48,
            (IMIX, 28..44) => 556,
            (IMIX, _) => 1440,
            (text, _) => text,
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let quick = arguments.iter().any(|a| a == "quick");
    let chosen: Vec<Backend> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    // The `aes-gcm` crate is the last of them, and in every run: it is what the others are compared with.
    let backends: Vec<Backend> = Backend::available()
        .filter(|b| chosen.is_empty() || chosen.contains(b) || *b == Backend::Reference)
        .collect();
    let runs = if quick { 7 } else { 21 };

    println!(
        "AES-GCM in bursts of 32, ns a packet: best (median) of {runs} runs; ratio to aes-gcm, best to best"
    );
    for key_bytes in [16, 32] {
        for count in [1, 256, 10_000] {
            let keys = Keys::new(&backends, key_bytes, count);
            let order = match count {
                10_000 => shuffled(count),
                _ => (0..PACKETS).map(|i| i % count).collect(),
            };
            println!("\nAES-{}, {count} {}", key_bytes * 8, if count == 1 { "key" } else { "keys" });
            header();
            for text in [48, 64, 256, 512, 1024, 1440, 9000, IMIX] {
                report(&backends, &keys, &Case::new(text, 32, order.clone()), runs);
            }
        }
    }
    println!("\nAES-128, 1 key, other bursts");
    let one = Keys::new(&backends, 16, 1);
    header();
    for burst in [1, 64] {
        for text in [48, 1440, IMIX] {
            report(&backends, &one, &Case::new(text, burst, vec![0; PACKETS]), runs);
        }
    }
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

fn header() {
    println!(
        "{:>6} {:>5} {:<8} {:>18} {:>7} {:>18} {:>7}",
        "text", "burst", "backend", "seal", "ratio", "open", "ratio"
    );
}

/// Bytes from one packet's buffer to the next, as in a UMEM of 2 KiB frames, or more for jumbo frames.
fn stride(case: &Case) -> usize {
    if case.text > 1900 { 10_240 } else { 2048 }
}

fn report(backends: &[Backend], keys: &Keys, case: &Case, runs: usize) {
    let mut seal = vec![Vec::new(); backends.len()];
    let mut open = vec![Vec::new(); backends.len()];
    let mut memory = vec![0u8; PACKETS * stride(case) + 64];
    let skew = memory.as_ptr().align_offset(64);
    for run in 0..runs {
        for (i, keys) in keys.0.iter().enumerate() {
            let (s, o) = measure(keys, case, memory.get_mut(skew..).unwrap_or_default(), run);
            seal[i].push(s);
            open[i].push(o);
        }
    }
    seal.iter_mut().chain(&mut open).for_each(|times| times.sort_by(f64::total_cmp));
    let reference = backends.len() - 1;
    for (i, backend) in backends.iter().enumerate() {
        let text = if case.text == IMIX { "IMIX".to_owned() } else { case.text.to_string() };
        let column = |times: &[Vec<f64>]| {
            let (best, median) = (times[i][0], times[i][runs / 2]);
            format!("{best:>8.1} ({median:>7.1}) {:>7.1}", times[reference][0] / best)
        };
        println!("{text:>6} {:>5} {:<8} {} {}", case.burst, backend.name(), column(&seal), column(&open));
    }
}

/// One run of one backend: nanoseconds a packet of sealing and of opening.
fn measure(keys: &[Key], case: &Case, memory: &mut [u8], run: usize) -> (f64, f64) {
    let rounds = (60_000 / (PACKETS * (case.text.max(400) / 32))).max(2);
    let (mut seal, mut open) = (0u128, 0u128);
    for round in 0..rounds {
        let from = (run * rounds + round) * PACKETS;
        let mut jobs: Vec<Job<'_>> = memory
            .chunks_exact_mut(stride(case))
            .zip(case.keys.iter().cycle().skip(from % case.keys.len()))
            .enumerate()
            .map(|(i, (buffer, key))| {
                let text = &mut buffer[OFFSET..OFFSET + case.length(from + i) + TAG_LEN];
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
