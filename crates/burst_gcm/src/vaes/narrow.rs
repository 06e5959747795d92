//! Long packets by processors of sixteen registers, which do not hold what `long` mixes: multiplications stand together between
//! AES rounds, and each packet is done before the next.

use core::arch::x86_64::__m128i;

use super::{
    GROUP, Product, Simd, base, more_rounds, rounds,
    schedule::Schedule,
    short::{apply, finish, sum_of_products},
};
use crate::{Job, Key, LAST_ROUND, POWERS, TAG_LEN};

/// Adds vectors `n` and `n + 1` of a group to its hash. Each lane of a vector takes the same power of H, so that lanes
/// need not be added up before the packet's end: what lane `i` then lacks is that its blocks come `i` places later,
/// and the powers of the packet's last vectors make up for that.
///
/// With `LAST` each block takes its own power.
#[inline(always)]
fn add_to_hash<S: Simd, const LAST: bool>(
    cpu: S,
    key: &Key,
    sum: Product<S>,
    n: usize,
    first: S::V,
    second: S::V,
) -> Product<S> {
    let at = POWERS - S::LANES * (GROUP - n);
    let (a, b, sums);
    if LAST {
        a = cpu.blocks(&key.powers, at);
        b = cpu.blocks(&key.powers, at + S::LANES);
        sums = cpu.halves_added(a, b);
    } else {
        a = cpu.splat(cpu.narrow().block(&key.powers[at]));
        b = cpu.splat(cpu.narrow().block(&key.powers[at + S::LANES]));
        sums = cpu.splat(cpu.narrow().block(&key.sums[at]));
    }
    // Three multiplications a vector (Karatsuba): in place of the middle its sum with low and high.
    let halves = cpu.halves_added(first, second);
    let low = cpu.xor3(sum.low, cpu.multiply::<0x00>(first, a), cpu.multiply::<0x00>(second, b));
    let middle = cpu.xor3(sum.middle, cpu.multiply::<0x00>(halves, sums), cpu.multiply::<0x11>(halves, sums));
    let high = cpu.xor3(sum.high, cpu.multiply::<0x11>(first, a), cpu.multiply::<0x11>(second, b));
    Product { low: cpu.hold(low), middle: cpu.hold(middle), high: cpu.hold(high) }
}

/// All AES rounds but the last of `state`, and between them the hash of the group of the same packet that came
/// before: the two share the units that are scarce, and each fills what the other's latencies leave free.
///
/// A last vector alone may have fewer blocks than lanes, and lanes whose hash they do not take.
#[inline(always)]
fn rounds_and_hash<S: Simd, const N: usize, const LAST: bool>(
    cpu: S,
    key: &Key,
    state: &mut [[S::V; N]; 1],
    before: &[S::V; GROUP],
    hash: S::V,
) -> S::V {
    rounds::<S, &Key, 1, 3, 1, N>(cpu, &[key], state);
    let sum = add_to_hash::<S, LAST>(cpu, key, Product::zero(cpu), 2, before[2], before[3]);
    rounds::<S, &Key, 3, 5, 1, N>(cpu, &[key], state);
    let sum = add_to_hash::<S, LAST>(cpu, key, sum, 4, before[4], before[5]);
    rounds::<S, &Key, 5, 6, 1, N>(cpu, &[key], state);
    let sum = add_to_hash::<S, LAST>(cpu, key, sum, 6, before[6], before[7]);
    rounds::<S, &Key, 6, 8, 1, N>(cpu, &[key], state);
    let sum = add_to_hash::<S, LAST>(cpu, key, sum, 0, cpu.xor(before[0], hash), before[1]);
    rounds::<S, &Key, 8, 9, 1, N>(cpu, &[key], state);
    let middle = cpu.xor3(sum.low, sum.middle, sum.high);
    let hash = cpu.hold(Product::<S> { middle, ..sum }.reduce(cpu));
    rounds::<S, &Key, 9, LAST_ROUND, 1, N>(cpu, &[key], state);
    more_rounds(cpu, &[key], key.rounds, state);
    if LAST { cpu.fold(&[hash]) } else { hash }
}

/// The counter blocks of `N` vectors, after round 0. `here` and `next` are those of this group's first counter and of the
/// next one's, multiples of a group's blocks.
///
/// Between the two, adding to the first counter is an exclusive or with a constant: no bit carries. Only the last
/// block of a whole group is at the next multiple.
#[inline(always)]
fn start<S: Simd, const N: usize>(cpu: S, here: S::V, next: S::V) -> [[S::V; N]; 1] {
    let mut state = [[here; N]];
    for n in 0..N {
        state[0][n] = cpu.xor(here, cpu.counters(n as u32));
    }
    if N == GROUP {
        state[0][N - 1] = cpu.with_last(state[0][N - 1], next);
    }
    state
}

/// The first counter of the group after that at `vector`: see [`start`].
#[inline(always)]
fn next<S: Simd>(cpu: S, base: S::V, vector: usize) -> S::V {
    cpu.xor(base, cpu.counter((S::LANES * (vector + GROUP)) as u32))
}

/// Where a packet of more than [`GROUP`] vectors stands: those before `vector` are encrypted or decrypted, and all
/// but the last group of them, `before`, are in `hash`.
struct Progress<S: Simd> {
    /// See [`start`].
    here: S::V,
    vector: usize,
    before: [S::V; GROUP],
    hash: S::V,
    /// The encrypted J0.
    mask: __m128i,
}

/// The last `N` vectors of a packet.
#[inline(always)]
fn tail<S: Simd, const N: usize, const PART: usize, const OPEN: bool>(
    cpu: S,
    job: &mut Job<'_>,
    done: &Progress<S>,
) {
    let key = job.key;
    let from = (done.vector * 16 * S::LANES).saturating_sub(16);
    let len = job.text.len().saturating_sub(TAG_LEN).saturating_sub(from);
    let next = next(cpu, base(cpu, job), done.vector);
    let mut state = start::<S, N>(cpu, done.here, next);
    let hash = if N == 1 {
        rounds_and_hash::<S, N, true>(cpu, key, &mut state, &done.before, done.hash)
    } else {
        rounds_and_hash::<S, N, false>(cpu, key, &mut state, &done.before, done.hash)
    };
    let [mut state] = state;
    let Some(text) = job.text.get_mut(from..) else { return };
    apply::<S, N, false, PART, OPEN>(cpu, key.round_key(cpu, LAST_ROUND), &job.aad, &mut state, text, len);
    state[0] = cpu.xor(state[0], hash);
    let sum = sum_of_products(cpu, key, &state, len.div_ceil(16) + 1);
    finish::<S, 1, OPEN>(cpu, [job], &[sum], &[done.mask]);
}

/// A packet of more than [`GROUP`] vectors: groups of that many, then what remains.
#[inline(always)]
pub(super) fn long<S: Simd, const OPEN: bool>(cpu: S, job: &mut Job<'_>, vectors: usize) {
    let key = job.key;
    let group = 16 * S::LANES * GROUP;
    let base = base(cpu, job);
    let here = next(cpu, base, 0);
    let mut state = start::<S, GROUP>(cpu, base, here);
    rounds::<S, &Key, 1, LAST_ROUND, 1, GROUP>(cpu, &[key], &mut state);
    more_rounds(cpu, &[key], key.rounds, &mut state);
    let [mut before] = state;
    let Some(text) = job.text.get_mut(..group - 16) else { return };
    let mask =
        apply::<S, GROUP, true, 0, OPEN>(cpu, key.round_key(cpu, LAST_ROUND), &job.aad, &mut before, text, 0);
    let hash = cpu.widen(cpu.narrow().pair(0, 0));
    let mut done = Progress { here, vector: GROUP, before, hash, mask };

    while vectors - done.vector > GROUP {
        let next = next(cpu, base, done.vector);
        let mut state = start::<S, GROUP>(cpu, done.here, next);
        done.here = next;
        done.hash = rounds_and_hash::<S, GROUP, false>(cpu, key, &mut state, &done.before, done.hash);
        [done.before] = state;
        let from = (done.vector * 16 * S::LANES).saturating_sub(16);
        let Some(text) = job.text.get_mut(from..).and_then(|text| text.get_mut(..group)) else { return };
        apply::<S, GROUP, false, 0, OPEN>(
            cpu,
            key.round_key(cpu, LAST_ROUND),
            &job.aad,
            &mut done.before,
            text,
            0,
        );
        done.vector += GROUP;
    }
    let remain = vectors - done.vector;
    match remain.div_ceil(2) {
        1 => tail::<S, 2, 2, OPEN>(cpu, job, &done),
        2 => tail::<S, 4, 2, OPEN>(cpu, job, &done),
        3 => tail::<S, 6, 2, OPEN>(cpu, job, &done),
        _ => tail::<S, 8, 2, OPEN>(cpu, job, &done),
    }
}
