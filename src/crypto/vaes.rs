//! The AES-GCM kernel for processors with AES and carry-less multiplication, written once over [`Simd`].
//!
//! # The stream of a packet
//!
//! GCM encrypts the counter blocks J0, 2, 3, … and hashes the blocks AAD, ciphertext 1, 2, …, length. The kernel
//! lays the two side by side: lane 0 of the first vector encrypts J0, which masks the tag, and hashes the AAD in
//! the same lane. The text follows from lane 1 on, so that a frame of 64 bytes, whose text is 48 bytes, fills one
//! vector of four lanes exactly. Only the length block stands apart, because it needs no encryption.
//!
//! Every block is multiplied by its own power of H and all are reduced together: once in a packet of up to 17
//! blocks, once in 16 blocks otherwise.
//!
//! # The field
//!
//! Bytes reversed, a block is a polynomial whose coefficients are in the order of an integer's bits, except that
//! GCM's are reflected; multiplying H by x once makes up for the bit that a reflected product lacks (Gueron and
//! Kounaidis, "Intel carry-less multiplication instruction and its usage for computing the GCM mode", 2010, in the
//! form of RFC 8452 appendix A). Reduction takes two multiplications by x^63 + x^62 + x^57.
//!
//! The functions are `inline(always)` because the instructions are enabled at the entry of each backend only
//! (`run` in `vaes512` and its like); what is inlined there is compiled with them.

#![expect(
    clippy::indexing_slicing,
    reason = "arrays of const length in loops that end at the same const: the compiler proves each index"
)]

use core::arch::x86_64::__m128i;

use super::aead::{Aad, Block, Job, Key, POWERS, TAG_LEN};
use super::vaes128::AesNi;

/// Proof that the processor has a set of instructions, and those instructions over vectors of `LANES` blocks.
pub(super) trait Simd: Copy {
    /// A vector of blocks; lane 0 is the first in memory.
    type V: Copy;
    /// Blocks in a vector.
    const LANES: usize;

    /// The same proof for single blocks.
    fn narrow(self) -> AesNi;
    /// `block` in every lane.
    fn splat(self, block: __m128i) -> Self::V;
    /// `block` in lane 0, zero in the others.
    fn widen(self, block: __m128i) -> Self::V;
    /// Lane 0.
    fn first(self, v: Self::V) -> __m128i;
    /// All lanes added up.
    fn fold(self, v: Self::V) -> __m128i;
    /// Counter of lane `i` in its last four bytes, big-endian: `i + 1 + LANES * vector`; zero elsewhere.
    fn counters(self, vector: u32) -> Self::V;
    /// `LANES` consecutive blocks from `table[at]`, or from the last place that has as many.
    fn blocks(self, table: &[Block; POWERS + 2], at: usize) -> Self::V;

    /// The first vector of `text`, or what `load_part` does when it is shorter.
    fn load(self, text: &[u8]) -> Self::V;
    /// Writes a vector at the start of `text`, or what `store_part` does when it is shorter.
    fn store(self, text: &mut [u8], v: Self::V);
    /// The first `len` bytes of `text` and zeros. `text` goes on for [`TAG_LEN`] bytes after them.
    fn load_part(self, text: &[u8], len: usize) -> Self::V;
    /// Writes the first `len` bytes of `v`, and leaves the others as they are or as they will be overwritten by a
    /// tag. `text` goes on for [`TAG_LEN`] bytes after them.
    fn store_part(self, text: &mut [u8], v: Self::V, len: usize);
    /// The first `len` bytes of `v` and zeros.
    fn keep(self, v: Self::V, len: usize) -> Self::V;
    /// Like `load_part`, from lane 1 on; lane 0 is zero.
    fn load_head(self, text: &[u8], len: usize) -> Self::V;
    /// Like `store_part`, from lane 1 on.
    fn store_head(self, text: &mut [u8], v: Self::V, len: usize);
    /// Like `keep`, from lane 1 on; lane 0 is zero.
    fn keep_head(self, v: Self::V, len: usize) -> Self::V;

    fn xor(self, a: Self::V, b: Self::V) -> Self::V;
    fn xor3(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Reverses the bytes of each lane.
    fn reverse(self, v: Self::V) -> Self::V;
    /// Exchanges the halves of each lane.
    fn swap_halves(self, v: Self::V) -> Self::V;
    /// One AES round.
    fn round(self, state: Self::V, key: Self::V) -> Self::V;
    /// The last AES round.
    fn last_round(self, state: Self::V, key: Self::V) -> Self::V;
    /// Carry-less product, lane by lane, of a half of `a` (bit 0 of `HALVES`) and one of `b` (bit 4).
    fn multiply<const HALVES: i32>(self, a: Self::V, b: Self::V) -> Self::V;
}

/// A sum of products of the field's elements, before reduction: 256 bits a lane, the middle overlapping.
struct Product<S: Simd> {
    low: S::V,
    middle: S::V,
    high: S::V,
}

impl<S: Simd> Product<S> {
    #[inline(always)]
    fn new(cpu: S, a: S::V, b: S::V) -> Self {
        Self {
            low: cpu.multiply::<0x00>(a, b),
            middle: cpu.xor(cpu.multiply::<0x01>(a, b), cpu.multiply::<0x10>(a, b)),
            high: cpu.multiply::<0x11>(a, b),
        }
    }

    #[inline(always)]
    fn add(self, cpu: S, a: S::V, b: S::V) -> Self {
        Self {
            low: cpu.xor(self.low, cpu.multiply::<0x00>(a, b)),
            middle: cpu.xor3(self.middle, cpu.multiply::<0x01>(a, b), cpu.multiply::<0x10>(a, b)),
            high: cpu.xor(self.high, cpu.multiply::<0x11>(a, b)),
        }
    }

    #[inline(always)]
    fn reduce(self, cpu: S) -> S::V {
        let polynomial = cpu.splat(cpu.narrow().pair(1, 0xc2 << 56));
        let carry = cpu.multiply::<0x01>(polynomial, self.low);
        let middle = cpu.xor3(self.middle, cpu.swap_halves(self.low), carry);
        let carry = cpu.multiply::<0x01>(polynomial, middle);
        cpu.xor3(self.high, cpu.swap_halves(middle), carry)
    }
}

/// Fills in the round keys and the powers of H.
pub(super) fn expand(cpu: AesNi, this: &mut Key, key: &[u8]) {
    let words = key.len() / 4;
    let mut schedule = [0u32; 60];
    for (to, from) in schedule.iter_mut().zip(key.as_chunks::<4>().0) {
        *to = u32::from_le_bytes(*from);
    }
    // FIPS 197 section 5.2, with little-endian words.
    let mut constant = 1u32;
    for i in words..4 * (usize::from(this.rounds) + 1) {
        let mut word = schedule[i - 1];
        if i % words == 0 {
            word = cpu.substitute(word.rotate_right(8)) ^ constant;
            constant = (constant << 1) ^ (0x11b * (constant >> 7));
        } else if words == 8 && i % words == 4 {
            word = cpu.substitute(word);
        }
        schedule[i] = schedule[i - words] ^ word;
    }
    for (to, from) in this.round_keys.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().zip(&schedule) {
        *to = from.to_le_bytes();
    }
    zeroize::Zeroize::zeroize(&mut schedule);

    let last = usize::from(this.rounds);
    let mut state = cpu.block(&this.round_keys[0]);
    for round_key in &this.round_keys[1..last] {
        state = cpu.round(state, cpu.block(round_key));
    }
    state = cpu.last_round(state, cpu.block(&this.round_keys[last]));
    let h = u128::from_be_bytes(cpu.bytes(state));
    // Times x: the carry is folded back without a branch, for H is secret.
    let h = (h << 1) ^ ((h >> 127).wrapping_neg() & (0xc2 << 120 | 1));
    let h = cpu.block(&h.to_le_bytes());
    let mut power = h;
    for slot in this.powers[..POWERS].iter_mut().rev() {
        *slot = cpu.bytes(power);
        power = Product::new(cpu, power, h).reduce(cpu);
    }
}

/// The nonce (RFC 4106 section 4: salt and IV) with a counter of zero, under the first round key.
#[inline(always)]
fn base<S: Simd>(cpu: S, job: &Job<'_>) -> S::V {
    let salt = u64::from(u32::from_le_bytes(job.key.salt));
    let iv = u64::from_le_bytes(job.iv);
    let nonce = cpu.narrow().pair(salt | iv << 32, iv >> 32);
    cpu.splat(cpu.narrow().xor(nonce, cpu.narrow().block(&job.key.round_keys[0])))
}

/// All AES rounds but the last, for `N` vectors of each of `P` packets at once. `K` is the number of round keys.
#[inline(always)]
fn rounds<S: Simd, const K: usize, const P: usize, const N: usize>(
    cpu: S,
    keys: &[&Key; P],
    state: &mut [[S::V; N]; P],
) {
    for r in 1..K - 1 {
        for p in 0..P {
            let round_key = cpu.splat(cpu.narrow().block(&keys[p].round_keys[r]));
            for n in 0..N {
                state[p][n] = cpu.round(state[p][n], round_key);
            }
        }
    }
}

/// The last AES round of `N` vectors: encrypts or decrypts `text` in place. Leaves in `state` what GHASH takes and
/// returns lane 0 of the first vector, the encrypted J0 if this is the packet's `FIRST` group. In its `LAST` group
/// `len` bytes of the text remain.
#[inline(always)]
fn apply<S: Simd, const K: usize, const N: usize, const FIRST: bool, const LAST: bool, const OPEN: bool>(
    cpu: S,
    key: &Key,
    aad: &Aad,
    state: &mut [S::V; N],
    text: &mut [u8],
    len: usize,
) -> __m128i {
    let vector = 16 * S::LANES;
    let last_key = cpu.splat(cpu.narrow().block(&key.round_keys[K - 1]));
    let mut first = cpu.narrow().pair(0, 0);
    let mut start = 0;
    for n in 0..N {
        let Some(here) = text.get_mut(start..) else { return first };
        if FIRST && n == 0 {
            let len = if LAST { len.min(vector - 16) } else { vector - 16 };
            let input = cpu.load_head(here, len);
            let output = cpu.last_round(state[n], cpu.xor(last_key, input));
            cpu.store_head(here, output, len);
            first = cpu.first(output);
            let hashed = if OPEN { input } else { cpu.keep_head(output, len) };
            state[n] = cpu.reverse(cpu.xor(hashed, cpu.widen(cpu.narrow().aad(aad))));
            start = vector - 16;
        } else if LAST {
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
fn sum_of_products<S: Simd, const N: usize>(
    cpu: S,
    key: &Key,
    blocks: &[S::V; N],
    power: usize,
) -> Product<S> {
    let at = POWERS.saturating_sub(power);
    let mut sum = Product::new(cpu, blocks[0], cpu.blocks(&key.powers, at));
    for n in 1..N {
        sum = sum.add(cpu, blocks[n], cpu.blocks(&key.powers, at + n * S::LANES));
    }
    sum
}

/// The end of a packet's hash: `hashed` are its last blocks, `len` its last bytes; adds the length block, which
/// counts all `total` bytes of text.
#[inline(always)]
fn tail_product<S: Simd, const N: usize>(
    cpu: S,
    job: &Job<'_>,
    hashed: &[S::V; N],
    remaining: usize,
    total: usize,
) -> Product<S> {
    let narrow = cpu.narrow();
    let lengths = narrow.pair(total as u64 * 8, u64::from(job.aad.len) * 8);
    let length = Product::new(narrow, lengths, narrow.block(&job.key.powers[POWERS - 1]));
    let sum = sum_of_products(cpu, job.key, hashed, remaining);
    Product {
        low: cpu.xor(sum.low, cpu.widen(length.low)),
        middle: cpu.xor(sum.middle, cpu.widen(length.middle)),
        high: cpu.xor(sum.high, cpu.widen(length.high)),
    }
}

/// Writes the tag, or compares it with the packet's and wipes a text that is not authentic.
#[inline(always)]
fn finish<S: Simd, const OPEN: bool>(cpu: S, job: &mut Job<'_>, sum: Product<S>, mask: __m128i) {
    let narrow = cpu.narrow();
    let tag = narrow.xor(narrow.reverse(cpu.fold(sum.reduce(cpu))), mask);
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

/// `P` packets that fit in `N` vectors each, all in flight together.
#[inline(always)]
pub(super) fn short<S: Simd, const K: usize, const P: usize, const N: usize, const OPEN: bool>(
    cpu: S,
    jobs: [&mut Job<'_>; P],
) {
    let keys: [&Key; P] = core::array::from_fn(|p| jobs[p].key);
    let mut state = [[cpu.counters(0); N]; P];
    for p in 0..P {
        let base = base(cpu, jobs[p]);
        for n in 0..N {
            state[p][n] = cpu.xor(base, cpu.counters(n as u32));
        }
    }
    rounds::<S, K, P, N>(cpu, &keys, &mut state);
    let mut masks = [cpu.narrow().pair(0, 0); P];
    for p in 0..P {
        let len = jobs[p].text.len().saturating_sub(TAG_LEN);
        let aad = jobs[p].aad;
        masks[p] = apply::<S, K, N, true, true, OPEN>(cpu, keys[p], &aad, &mut state[p], jobs[p].text, len);
    }
    for (p, job) in jobs.into_iter().enumerate() {
        let len = job.text.len().saturating_sub(TAG_LEN);
        let sum = tail_product(cpu, job, &state[p], len.div_ceil(16) + 2, len);
        finish::<S, OPEN>(cpu, job, sum, masks[p]);
    }
}

/// A group of `N` vectors that is not the packet's last, up to its reduced hash.
#[inline(always)]
fn group<S: Simd, const K: usize, const N: usize, const FIRST: bool, const OPEN: bool>(
    cpu: S,
    job: &mut Job<'_>,
    base: S::V,
    vector: usize,
    hash: S::V,
) -> (S::V, __m128i) {
    let key = job.key;
    let start = (vector * 16 * S::LANES).saturating_sub(16);
    let mut state = [[base; N]];
    for n in 0..N {
        state[0][n] = cpu.xor(base, cpu.counters((vector + n) as u32));
    }
    rounds::<S, K, 1, N>(cpu, &[key], &mut state);
    let [mut state] = state;
    let Some(text) = job.text.get_mut(start..) else { return (hash, cpu.first(hash)) };
    let mask = apply::<S, K, N, FIRST, false, OPEN>(cpu, key, &job.aad, &mut state, text, 0);
    if !FIRST {
        state[0] = cpu.xor(state[0], hash);
    }
    let sum = sum_of_products(cpu, key, &state, N * S::LANES);
    (cpu.widen(cpu.fold(sum.reduce(cpu))), mask)
}

/// The last `N` vectors of a packet that had others before.
#[inline(always)]
fn tail<S: Simd, const K: usize, const N: usize, const OPEN: bool>(
    cpu: S,
    job: &mut Job<'_>,
    base: S::V,
    vector: usize,
    hash: S::V,
    mask: __m128i,
) {
    let key = job.key;
    let start = (vector * 16 * S::LANES).saturating_sub(16);
    let total = job.text.len().saturating_sub(TAG_LEN);
    let len = total.saturating_sub(start);
    let mut state = [[base; N]];
    for n in 0..N {
        state[0][n] = cpu.xor(base, cpu.counters((vector + n) as u32));
    }
    rounds::<S, K, 1, N>(cpu, &[key], &mut state);
    let [mut state] = state;
    let Some(text) = job.text.get_mut(start..) else { return };
    apply::<S, K, N, false, true, OPEN>(cpu, key, &job.aad, &mut state, text, len);
    state[0] = cpu.xor(state[0], hash);
    let sum = tail_product(cpu, job, &state, len.div_ceil(16) + 1, total);
    finish::<S, OPEN>(cpu, job, sum, mask);
}

/// A packet of more than `4 * Q` vectors: groups of that many, then what remains in steps of `Q`.
/// `G` is `4 * Q`, `T` is `3 * Q` and `D` is `2 * Q`, which const generics cannot say.
#[inline(always)]
pub(super) fn long<
    S: Simd,
    const K: usize,
    const Q: usize,
    const D: usize,
    const T: usize,
    const G: usize,
    const OPEN: bool,
>(
    cpu: S,
    job: &mut Job<'_>,
) {
    let len = job.text.len().saturating_sub(TAG_LEN);
    let vectors = (len.div_ceil(16) + 1).div_ceil(S::LANES);
    let base = base(cpu, job);
    let (mut hash, mask) = group::<S, K, G, true, OPEN>(cpu, job, base, 0, base);
    let mut vector = G;
    while vectors - vector > G {
        (hash, _) = group::<S, K, G, false, OPEN>(cpu, job, base, vector, hash);
        vector += G;
    }
    match (vectors - vector).div_ceil(Q) {
        1 => tail::<S, K, Q, OPEN>(cpu, job, base, vector, hash, mask),
        2 => tail::<S, K, D, OPEN>(cpu, job, base, vector, hash, mask),
        3 => tail::<S, K, T, OPEN>(cpu, job, base, vector, hash, mask),
        _ => tail::<S, K, G, OPEN>(cpu, job, base, vector, hash, mask),
    }
}

/// Packets sorted at a time, on the stack.
const SORTED: usize = 64;

/// Seals or opens all jobs, whose keys are of this backend. The group sizes are those of [`long`].
#[inline(always)]
pub(super) fn burst<
    S: Simd,
    const Q: usize,
    const D: usize,
    const T: usize,
    const G: usize,
    const OPEN: bool,
>(
    cpu: S,
    jobs: &mut [Job<'_>],
) {
    let small = 16 * (S::LANES * Q - 1);
    for jobs in jobs.chunks_mut(SORTED) {
        let mut fours = jobs.chunks_exact_mut(4);
        for four in &mut fours {
            let [a, b, c, d] = four else { continue };
            let alike = |job: &Job<'_>| {
                job.key.rounds == a.key.rounds && job.text.len().wrapping_sub(TAG_LEN) <= small
            };
            if alike(a) & alike(b) & alike(c) & alike(d) {
                match a.key.rounds {
                    10 => short::<S, 11, 4, Q, OPEN>(cpu, [a, b, c, d]),
                    12 => short::<S, 13, 4, Q, OPEN>(cpu, [a, b, c, d]),
                    _ => short::<S, 15, 4, Q, OPEN>(cpu, [a, b, c, d]),
                }
            } else {
                for job in four {
                    single::<S, Q, D, T, G, OPEN>(cpu, job);
                }
            }
        }
        for job in fours.into_remainder() {
            single::<S, Q, D, T, G, OPEN>(cpu, job);
        }
    }
}

/// One packet of any length.
#[inline(always)]
fn single<S: Simd, const Q: usize, const D: usize, const T: usize, const G: usize, const OPEN: bool>(
    cpu: S,
    job: &mut Job<'_>,
) {
    match job.key.rounds {
        10 => sized::<S, 11, Q, D, T, G, OPEN>(cpu, job),
        12 => sized::<S, 13, Q, D, T, G, OPEN>(cpu, job),
        _ => sized::<S, 15, Q, D, T, G, OPEN>(cpu, job),
    }
}

#[inline(always)]
fn sized<
    S: Simd,
    const K: usize,
    const Q: usize,
    const D: usize,
    const T: usize,
    const G: usize,
    const OPEN: bool,
>(
    cpu: S,
    job: &mut Job<'_>,
) {
    let Some(len) = job.text.len().checked_sub(TAG_LEN) else {
        job.ok = false;
        return;
    };
    match (len.div_ceil(16) + 1).div_ceil(S::LANES * Q) {
        1 => short::<S, K, 1, Q, OPEN>(cpu, [job]),
        2 => short::<S, K, 1, D, OPEN>(cpu, [job]),
        3 => short::<S, K, 1, T, OPEN>(cpu, [job]),
        4 => short::<S, K, 1, G, OPEN>(cpu, [job]),
        _ => long::<S, K, Q, D, T, G, OPEN>(cpu, job),
    }
}
