//! Whether the time that it takes to refuse a packet says where it is wrong: Welch's t of measured times, after dudect
//! (Reparaz, Balasch, Verbauwhede, 2017). Nothing is asserted of time, which no shared machine could keep; what is asserted
//! is that each packet is refused. To see the figures, on a core of its own:
//!
//! `chrt -f 50 taskset -c 1 cargo test --test crypto_timing -- --nocapture`

use std::{hint::black_box, time::Instant};

use causeway::crypto::aead::{self, Aad, Backend, Job, Key};

const SAMPLES: usize = 20_000;

/// Where a packet is wrong.
const PLACES: [&str; 5] = [
    "first byte of the text",
    "last byte of the text",
    "first of the ICV",
    "last of the ICV",
    "middle of the ICV",
];

fn damage(text: &mut [u8], place: usize, random: u8) {
    let icv = text.len() - aead::TAG_LEN;
    match place {
        0 => text[0] ^= random,
        1 => text[icv - 1] ^= random,
        2 => text[icv] ^= random,
        3 => text[icv + 15] ^= random,
        _ => text[icv + 7] ^= random,
    }
}

/// Mean and variance of the faster nine tenths: what is slower was interrupted.
fn faster(mut times: Vec<u64>) -> (f64, f64) {
    times.sort_unstable();
    times.truncate(times.len() * 9 / 10);
    let count = times.len() as f64;
    let mean = times.iter().sum::<u64>() as f64 / count;
    let variance = times.iter().map(|time| (*time as f64 - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, variance)
}

#[test]
fn whatever_is_wrong_with_a_packet_it_is_refused_as_fast() {
    for backend in Backend::available() {
        for length in [64, 1400] {
            let key = Key::new(backend, &[7; 32], [9; 4]).unwrap();
            let mut sealed = vec![0x5a; length + aead::TAG_LEN];
            let mut jobs = [Job::new(&key, [1; 8], Aad::new(256, 1), &mut sealed)];
            aead::seal(&mut jobs);
            assert!(jobs[0].ok);
            let mut times: [Vec<u64>; PLACES.len()] = Default::default();
            let mut state = 0x1234_5678_9abc_def1_u64;
            // All are written the same way, whatever is wrong with them.
            let (mut text, mut wrong) = (sealed.clone(), sealed.clone());
            for _ in 0..SAMPLES * PLACES.len() {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let (place, random) = ((state >> 33) as usize % PLACES.len(), (state >> 8) as u8 | 1);
                wrong.copy_from_slice(&sealed);
                damage(&mut wrong, place, random);
                text.copy_from_slice(&wrong);
                let mut jobs = [Job::new(&key, [1; 8], Aad::new(256, 1), &mut text)];
                let begun = Instant::now();
                aead::open(black_box(&mut jobs));
                let time = begun.elapsed().as_nanos() as u64;
                assert!(!jobs[0].ok, "{backend}: {} of {length}", PLACES[place]);
                times[place].push(time);
            }
            let all = times.map(|times| (times.len() as f64 * 0.9, faster(times)));
            let (count, (mean, variance)) = all[0];
            for (place, (n, (m, v))) in PLACES.iter().zip(all).skip(1) {
                let t = (m - mean) / (variance / count + v / n).sqrt();
                println!(
                    "{backend}, {length} bytes: {place} {m:.1} ns, {} {mean:.1} ns, t {t:.1}",
                    PLACES[0]
                );
            }
        }
    }
}
