//! Packets of up to eight vectors, and what they have in common with longer ones.

use core::arch::x86_64::__m128i;

use super::{Product, Simd, base, more_rounds, rounds, schedule::Schedule};
use crate::{Aad, Job, Key, LAST_ROUND, POWERS, TAG_LEN};

/// The last AES round of `N` vectors: encrypts or decrypts `text` in place. Leaves in `state` what GHASH takes and
/// returns lane 0 of the first vector, the encrypted J0 if this is the packet's `FIRST` group. Of a packet's last
/// group `len` bytes of text remain, and the last `PART` vectors may have fewer than they hold.
#[inline(always)]
pub(super) fn apply<S: Simd, const N: usize, const FIRST: bool, const PART: usize, const OPEN: bool>(
    cpu: S,
    last_key: S::V,
    aad: &Aad,
    state: &mut [S::V; N],
    text: &mut [u8],
    len: usize,
) -> __m128i {
    let vector = 16 * S::LANES;
    let mut first = cpu.narrow().pair(0, 0);
    let mut start = 0;
    for n in 0..N {
        let Some(here) = text.get_mut(start..) else { return first };
        if FIRST && n == 0 {
            let len = if PART == N { len.min(vector - 16) } else { vector - 16 };
            let input = cpu.load_head(here, len);
            let output = cpu.last_round(state[n], cpu.xor(last_key, input));
            cpu.store_head(here, output, len);
            first = cpu.first(output);
            let hashed = if OPEN { input } else { cpu.keep_head(output, len) };
            state[n] = cpu.reverse(cpu.xor(hashed, cpu.widen(cpu.narrow().aad(aad))));
            start = vector - 16;
        } else if n + PART >= N {
            let len = len.saturating_sub(start).min(vector);
            let input = cpu.load_part(here, len);
            let output = cpu.last_round(state[n], cpu.xor(last_key, input));
            cpu.store_part(here, output, len);
            state[n] = cpu.reverse(if OPEN { input } else { cpu.keep(output, len) });
            start += vector;
        } else {
            let input = cpu.load(here);
            let output = cpu.last_round(state[n], cpu.xor(last_key, input));
            cpu.store(here, output);
            state[n] = cpu.reverse(if OPEN { input } else { output });
            start += vector;
        }
    }
    first
}

/// `blocks` times descending powers of H, the first block times `H^power`.
#[inline(always)]
pub(super) fn sum_of_products<S: Simd, const N: usize>(
    cpu: S,
    key: &Key,
    blocks: &[S::V; N],
    power: usize,
) -> Product<S> {
    let at = POWERS.saturating_sub(power);
    let mut sum = Product::new(cpu, blocks[0], cpu.blocks(&key.powers, at));
    for pair in 1..N.div_ceil(2) {
        let (n, m) = (2 * pair - 1, 2 * pair);
        let first = (blocks[n], cpu.blocks(&key.powers, at + n * S::LANES));
        let second = (blocks[m], cpu.blocks(&key.powers, at + m * S::LANES));
        sum = sum.add_pair(cpu, first, second);
    }
    if N.is_multiple_of(2) {
        sum.add(cpu, blocks[N - 1], cpu.blocks(&key.powers, at + (N - 1) * S::LANES))
    } else {
        sum
    }
}

/// The end of `P` packets at once, at most as many as a vector has lanes: adds the length blocks to their `sums`,
/// reduces, and writes the tags; or compares them with the packets' and wipes a text that is not authentic.
#[inline(always)]
pub(super) fn finish<S: Simd, const P: usize, const OPEN: bool>(
    cpu: S,
    jobs: [&mut Job<'_>; P],
    sums: &[Product<S>; P],
    masks: &[__m128i; P],
) {
    let narrow = cpu.narrow();
    let mut lengths = *masks;
    let mut h = *masks;
    let mut low = [sums[0].low; P];
    let mut middle = [sums[0].middle; P];
    let mut high = [sums[0].high; P];
    for p in 0..P {
        let text = jobs[p].text.len().saturating_sub(TAG_LEN) as u64;
        lengths[p] = narrow.pair(text * 8, u64::from(jobs[p].aad.len) * 8);
        h[p] = narrow.block(&jobs[p].key.powers[POWERS - 1]);
        low[p] = sums[p].low;
        middle[p] = sums[p].middle;
        high[p] = sums[p].high;
    }
    let (lengths, h) = (cpu.gather(&lengths), cpu.gather(&h));
    let sum = if P == 1 {
        cpu.fold(&[sums[0].add(cpu, lengths, h).reduce(cpu)])
    } else {
        let sum = Product { low: cpu.fold(&low), middle: cpu.fold(&middle), high: cpu.fold(&high) };
        sum.add(cpu, lengths, h).reduce(cpu)
    };
    tags::<S, P, OPEN>(cpu, jobs, sum, masks);
}

/// Writes or compares the tags of `P` packets, of which lane `i` of `hash` has the hash of the packet of that number.
#[inline(always)]
pub(super) fn tags<S: Simd, const P: usize, const OPEN: bool>(
    cpu: S,
    jobs: [&mut Job<'_>; P],
    hash: S::V,
    masks: &[__m128i; P],
) {
    let narrow = cpu.narrow();
    let tags: [__m128i; P] = cpu.scatter(cpu.xor(cpu.reverse(hash), cpu.gather(masks)));
    for (job, tag) in jobs.into_iter().zip(tags) {
        let Some((text, place)) = job.text.split_last_chunk_mut::<TAG_LEN>() else { return };
        if OPEN {
            job.ok = narrow.equal(tag, narrow.block(place));
            if !job.ok {
                text.fill(0);
            }
        } else {
            *place = narrow.bytes(tag);
            job.ok = true;
        }
    }
}

/// `P` packets with keys of one size that fit in `N` vectors each, all in flight together.
#[inline(always)]
pub(super) fn short<
    S: Simd,
    K: Schedule<S>,
    const P: usize,
    const N: usize,
    const PART: usize,
    const OPEN: bool,
>(
    cpu: S,
    jobs: [&mut Job<'_>; P],
    keys: [K; P],
) {
    let mut state = [[cpu.counters(0); N]; P];
    for p in 0..P {
        let base = base(cpu, jobs[p]);
        for n in 0..N {
            state[p][n] = cpu.xor(base, cpu.counters(n as u32));
        }
    }
    rounds::<S, K, 1, LAST_ROUND, P, N>(cpu, &keys, &mut state);
    more_rounds(cpu, &keys, jobs[0].key.rounds, &mut state);
    let mut masks = [cpu.narrow().pair(0, 0); P];
    for p in 0..P {
        let len = jobs[p].text.len().saturating_sub(TAG_LEN);
        let aad = jobs[p].aad;
        let last_key = keys[p].round_key(cpu, LAST_ROUND);
        masks[p] = apply::<S, N, true, PART, OPEN>(cpu, last_key, &aad, &mut state[p], jobs[p].text, len);
    }
    let mut sums = [Product::<S>::zero(cpu); P];
    for p in 0..P {
        let len = jobs[p].text.len().saturating_sub(TAG_LEN);
        sums[p] = sum_of_products(cpu, jobs[p].key, &state[p], len.div_ceil(16) + 2);
    }
    finish::<S, P, OPEN>(cpu, jobs, &sums, &masks);
}

/// One packet that fits in `N` vectors.
#[inline(always)]
pub(super) fn alone<S: Simd, const N: usize, const PART: usize, const OPEN: bool>(cpu: S, job: &mut Job<'_>) {
    let key = job.key;
    short::<S, &Key, 1, N, PART, OPEN>(cpu, [job], [key]);
}
