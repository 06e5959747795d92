//! The AES-GCM kernel for processors with AES and carry-less multiplication, written once over [`Simd`].
//!
//! # The stream of a packet
//!
//! GCM encrypts the counter blocks J0, 2, 3, … and hashes the blocks AAD, ciphertext 1, 2, …, length. The kernel
//! lays the two side by side: lane 0 of the first vector encrypts J0, which masks the tag, and hashes the AAD in
//! the same lane. The text follows from lane 1 on, so that a frame of 64 bytes, whose text is 48 bytes, fills one
//! vector of four lanes exactly. Only the length block stands apart, because it needs no encryption.
//!
//! Every block is multiplied by its own power of H and all are reduced together: once in a packet of up to
//! eight vectors, once in a group of eight otherwise, whose products take three multiplications (Karatsuba) instead
//! of four: the carry-less multiplier takes one operation in two cycles on Zen 4, and AES shares its unit.
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
    clippy::needless_range_loop,
    reason = "arrays of const length in loops that end at the same const: the compiler proves each index"
)]

use core::arch::x86_64::__m128i;

use crate::vaes128::AesNi;
use crate::{Aad, Block, Job, Key, LAST_ROUND, POWERS, TAG_LEN};

/// Proof that the processor has a set of instructions, and those instructions over vectors of `LANES` blocks.
pub(crate) trait Simd: Copy {
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
    /// Lane `i` is the sum of the lanes of `vectors[i]`, zero for `i >= P`. `P` is 1 or `LANES`.
    fn fold<const P: usize>(self, vectors: &[Self::V; P]) -> Self::V;
    /// Lane `i` is `blocks[i]`, zero for `i >= P`. `P` is 1 or `LANES`.
    fn gather<const P: usize>(self, blocks: &[__m128i; P]) -> Self::V;
    /// The first `P` lanes. `P` is 1 or `LANES`.
    fn scatter<const P: usize>(self, v: Self::V) -> [__m128i; P];
    /// Counter of lane `i` in its last four bytes, big-endian: `i + 1 + LANES * vector`; zero elsewhere. The compiler
    /// makes it a constant where `vector` is one.
    fn counters(self, vector: u32) -> Self::V;
    /// `counter` in the last four bytes of every lane, big-endian; zero elsewhere.
    fn counter(self, counter: u32) -> Self::V;
    /// The last lane of `b`, the others of `a`.
    fn with_last(self, a: Self::V, b: Self::V) -> Self::V;
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

    /// Computes `v` here, not earlier or later: no instruction, but the compiler keeps the order of what is held.
    /// Left alone it puts independent chains one behind another to save registers, and their latencies with them.
    fn hold(self, v: Self::V) -> Self::V;

    fn xor(self, a: Self::V, b: Self::V) -> Self::V;
    fn xor3(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Reverses the bytes of each lane.
    fn reverse(self, v: Self::V) -> Self::V;
    /// Exchanges the halves of each lane.
    fn swap_halves(self, v: Self::V) -> Self::V;
    /// The sum of each lane's halves: those of `a` in the low halves, those of `b` in the high ones.
    fn halves_added(self, a: Self::V, b: Self::V) -> Self::V;
    /// One AES round.
    fn round(self, state: Self::V, key: Self::V) -> Self::V;
    /// The last AES round.
    fn last_round(self, state: Self::V, key: Self::V) -> Self::V;
    /// Carry-less product, lane by lane, of a half of `a` (bit 0 of `HALVES`) and one of `b` (bit 4).
    fn multiply<const HALVES: i32>(self, a: Self::V, b: Self::V) -> Self::V;
}

/// Vectors that go through AES together in a long packet: at a round each, twice as many as hide its latency of
/// four cycles, so that multiplications find room between them.
const GROUP: usize = 8;

/// A sum of products of the field's elements, before reduction: 256 bits a lane, the middle overlapping.
#[derive(Clone, Copy)]
struct Product<S: Simd> {
    low: S::V,
    middle: S::V,
    high: S::V,
}

impl<S: Simd> Product<S> {
    #[inline(always)]
    fn zero(cpu: S) -> Self {
        let zero = cpu.widen(cpu.narrow().pair(0, 0));
        Self { low: zero, middle: zero, high: zero }
    }

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

    /// Two products at once, for fewer additions.
    #[inline(always)]
    fn add_pair(self, cpu: S, (a, b): (S::V, S::V), (c, d): (S::V, S::V)) -> Self {
        let middle = cpu.xor3(self.middle, cpu.multiply::<0x01>(a, b), cpu.multiply::<0x10>(a, b));
        Self {
            low: cpu.xor3(self.low, cpu.multiply::<0x00>(a, b), cpu.multiply::<0x00>(c, d)),
            middle: cpu.xor3(middle, cpu.multiply::<0x01>(c, d), cpu.multiply::<0x10>(c, d)),
            high: cpu.xor3(self.high, cpu.multiply::<0x11>(a, b), cpu.multiply::<0x11>(c, d)),
        }
    }

    /// Two products more of Karatsuba's sort, with three multiplications each: in place of the middle its sum with
    /// low and high. `sums` are the halves' sums of `b` and of `d`.
    #[inline(always)]
    fn add_karatsuba(self, cpu: S, (a, b): (S::V, S::V), (c, d): (S::V, S::V), sums: S::V) -> Self {
        let halves = cpu.halves_added(a, c);
        Self {
            low: cpu.xor3(self.low, cpu.multiply::<0x00>(a, b), cpu.multiply::<0x00>(c, d)),
            middle: cpu.xor3(
                self.middle,
                cpu.multiply::<0x00>(halves, sums),
                cpu.multiply::<0x11>(halves, sums),
            ),
            high: cpu.xor3(self.high, cpu.multiply::<0x11>(a, b), cpu.multiply::<0x11>(c, d)),
        }
    }

    /// See [`Simd::hold`].
    #[inline(always)]
    fn hold(self, cpu: S) -> Self {
        Self { low: cpu.hold(self.low), middle: cpu.hold(self.middle), high: cpu.hold(self.high) }
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

/// Fills in the round keys and the powers of H, for vectors of `lanes` blocks.
pub(crate) fn expand(cpu: AesNi, this: &mut Key, key: &[u8], lanes: usize) {
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
    for (to, from) in this.round_keys.0.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().zip(&schedule) {
        *to = from.to_le_bytes();
    }
    zeroize::Zeroize::zeroize(&mut schedule);
    this.round_keys.0[LAST_ROUND..=usize::from(this.rounds)].rotate_right(1);

    let mut state = [[cpu.block(&this.round_keys.0[0])]];
    rounds::<_, 1, LAST_ROUND, 1, 1>(cpu, &[this], &mut state);
    more_rounds(cpu, &[this], &mut state);
    let state = cpu.last_round(state[0][0], cpu.block(&this.round_keys.0[LAST_ROUND]));
    let h = u128::from_be_bytes(cpu.bytes(state));
    // Times x: the carry is folded back without a branch, for H is secret.
    let h = (h << 1) ^ ((h >> 127).wrapping_neg() & (0xc2 << 120 | 1));
    let h = cpu.block(&h.to_le_bytes());
    let mut power = h;
    for slot in this.powers[..POWERS].iter_mut().rev() {
        *slot = cpu.bytes(power);
        power = Product::new(cpu, power, h).reduce(cpu);
    }
    for (n, sums) in this.sums.iter_mut().enumerate() {
        let at = POWERS - lanes * (GROUP - 2 * n);
        let (first, second) = (cpu.block(&this.powers[at]), cpu.block(&this.powers[at + lanes]));
        *sums = cpu.bytes(cpu.halves_added(first, second));
    }
}

/// The nonce (RFC 4106 section 4: salt and IV) with a counter of zero, under the first round key.
#[inline(always)]
fn base<S: Simd>(cpu: S, job: &Job<'_>) -> S::V {
    let salt = u64::from(u32::from_le_bytes(job.key.salt));
    let iv = u64::from_le_bytes(job.iv);
    let nonce = cpu.narrow().pair(salt | iv << 32, iv >> 32);
    cpu.splat(cpu.narrow().xor(nonce, cpu.narrow().block(&job.key.round_keys.0[0])))
}

/// AES rounds `FROM..TO` of `N` vectors of each of `P` packets at once; round 0 is in [`base`], the last in
/// [`apply`].
#[inline(always)]
fn rounds<S: Simd, const FROM: usize, const TO: usize, const P: usize, const N: usize>(
    cpu: S,
    keys: &[&Key; P],
    state: &mut [[S::V; N]; P],
) {
    for r in FROM..TO {
        for p in 0..P {
            let round_key = cpu.splat(cpu.narrow().block(&keys[p].round_keys.0[r]));
            for n in 0..N {
                state[p][n] = cpu.hold(cpu.round(state[p][n], round_key));
            }
        }
    }
}

/// The rounds that AES-192 and AES-256 have more. All keys are of one size.
#[inline(always)]
fn more_rounds<S: Simd, const P: usize, const N: usize>(
    cpu: S,
    keys: &[&Key; P],
    state: &mut [[S::V; N]; P],
) {
    if keys[0].rounds > 10 {
        rounds::<S, { LAST_ROUND + 1 }, { LAST_ROUND + 3 }, P, N>(cpu, keys, state);
    }
    if keys[0].rounds > 12 {
        rounds::<S, { LAST_ROUND + 3 }, { LAST_ROUND + 5 }, P, N>(cpu, keys, state);
    }
}

/// The last AES round of `N` vectors: encrypts or decrypts `text` in place. Leaves in `state` what GHASH takes and
/// returns lane 0 of the first vector, the encrypted J0 if this is the packet's `FIRST` group. Of a packet's last
/// group `len` bytes of text remain, and the last `PART` vectors may have fewer than they hold.
#[inline(always)]
fn apply<S: Simd, const N: usize, const FIRST: bool, const PART: usize, const OPEN: bool>(
    cpu: S,
    key: &Key,
    aad: &Aad,
    state: &mut [S::V; N],
    text: &mut [u8],
    len: usize,
) -> __m128i {
    let vector = 16 * S::LANES;
    let last_key = cpu.splat(cpu.narrow().block(&key.round_keys.0[LAST_ROUND]));
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
fn sum_of_products<S: Simd, const N: usize>(
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
fn finish<S: Simd, const P: usize, const OPEN: bool>(
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
    let tags: [__m128i; P] = cpu.scatter(cpu.xor(cpu.reverse(sum), cpu.gather(masks)));
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
fn short<S: Simd, const P: usize, const N: usize, const PART: usize, const OPEN: bool>(
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
    rounds::<S, 1, LAST_ROUND, P, N>(cpu, &keys, &mut state);
    more_rounds(cpu, &keys, &mut state);
    let mut masks = [cpu.narrow().pair(0, 0); P];
    for p in 0..P {
        let len = jobs[p].text.len().saturating_sub(TAG_LEN);
        let aad = jobs[p].aad;
        masks[p] = apply::<S, N, true, PART, OPEN>(cpu, keys[p], &aad, &mut state[p], jobs[p].text, len);
    }
    let mut sums = [Product::<S>::zero(cpu); P];
    for p in 0..P {
        let len = jobs[p].text.len().saturating_sub(TAG_LEN);
        sums[p] = sum_of_products(cpu, keys[p], &state[p], len.div_ceil(16) + 2);
    }
    finish::<S, P, OPEN>(cpu, jobs, &sums, &masks);
}

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
        sums = cpu.splat(cpu.narrow().block(&key.sums[n / 2]));
    }
    sum.add_karatsuba(cpu, (first, a), (second, b), sums).hold(cpu)
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
    let keys = [key];
    rounds::<S, 1, 3, 1, N>(cpu, &keys, state);
    let sum = add_to_hash::<S, LAST>(cpu, key, Product::zero(cpu), 2, before[2], before[3]);
    rounds::<S, 3, 5, 1, N>(cpu, &keys, state);
    let sum = add_to_hash::<S, LAST>(cpu, key, sum, 4, before[4], before[5]);
    rounds::<S, 5, 6, 1, N>(cpu, &keys, state);
    let sum = add_to_hash::<S, LAST>(cpu, key, sum, 6, before[6], before[7]);
    rounds::<S, 6, 8, 1, N>(cpu, &keys, state);
    let sum = add_to_hash::<S, LAST>(cpu, key, sum, 0, cpu.xor(before[0], hash), before[1]);
    rounds::<S, 8, 9, 1, N>(cpu, &keys, state);
    let middle = cpu.xor3(sum.low, sum.middle, sum.high);
    let hash = cpu.hold(Product { middle, ..sum }.reduce(cpu));
    rounds::<S, 9, LAST_ROUND, 1, N>(cpu, &keys, state);
    more_rounds(cpu, &keys, state);
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
    apply::<S, N, false, PART, OPEN>(cpu, key, &job.aad, &mut state, text, len);
    state[0] = cpu.xor(state[0], hash);
    let sum = sum_of_products(cpu, key, &state, len.div_ceil(16) + 1);
    finish::<S, 1, OPEN>(cpu, [job], &[sum], &[done.mask]);
}

/// A packet of more than [`GROUP`] vectors: groups of that many, then what remains.
#[inline(always)]
fn long<S: Simd, const OPEN: bool>(cpu: S, job: &mut Job<'_>, vectors: usize) {
    let key = job.key;
    let group = 16 * S::LANES * GROUP;
    let base = base(cpu, job);
    let here = next(cpu, base, 0);
    let mut state = start::<S, GROUP>(cpu, base, here);
    rounds::<S, 1, LAST_ROUND, 1, GROUP>(cpu, &[key], &mut state);
    more_rounds(cpu, &[key], &mut state);
    let [mut before] = state;
    let Some(text) = job.text.get_mut(..group - 16) else { return };
    let mask = apply::<S, GROUP, true, 0, OPEN>(cpu, key, &job.aad, &mut before, text, 0);
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
        apply::<S, GROUP, false, 0, OPEN>(cpu, key, &job.aad, &mut done.before, text, 0);
        done.vector += GROUP;
    }
    let remain = vectors - done.vector;
    if S::LANES == 4 {
        match remain {
            1 => return tail::<S, 1, 1, OPEN>(cpu, job, &done),
            3 => return tail::<S, 3, 1, OPEN>(cpu, job, &done),
            5 => return tail::<S, 5, 1, OPEN>(cpu, job, &done),
            7 => return tail::<S, 7, 1, OPEN>(cpu, job, &done),
            _ => {}
        }
    }
    match remain.div_ceil(2) {
        1 => tail::<S, 2, 2, OPEN>(cpu, job, &done),
        2 => tail::<S, 4, 2, OPEN>(cpu, job, &done),
        3 => tail::<S, 6, 2, OPEN>(cpu, job, &done),
        _ => tail::<S, 8, 2, OPEN>(cpu, job, &done),
    }
}

/// Packets ahead of its use that a key is asked for: two packs of four, or one to two microseconds of long packets.
const AHEAD: usize = 8;

/// Seals or opens all jobs, whose keys are of this backend. `P` is the vector's number of lanes: that many packets
/// next to each other go together if they are short, have keys of one size and fit in `N` vectors, or `M`.
#[inline(always)]
pub(crate) fn burst<S: Simd, const P: usize, const N: usize, const M: usize, const OPEN: bool>(
    cpu: S,
    jobs: &mut [Job<'_>],
) {
    let mut from = 0;
    while let Some(here) = jobs.get_mut(from..) {
        for job in here.iter().skip(AHEAD).take(P) {
            job.key.lines().into_iter().for_each(|line| cpu.narrow().prefetch(line));
        }
        let Some(pack) = here.first_chunk_mut::<P>() else { break };
        from += P;
        let rounds = pack[0].key.rounds;
        let mut alike = true;
        let mut longest = 0;
        for job in pack.iter() {
            alike &= job.key.rounds == rounds;
            // A text without room for its tag is longer than any other.
            longest = longest.max(job.text.len().wrapping_sub(TAG_LEN));
        }
        if alike && longest <= 16 * (S::LANES * N - 1) {
            short::<S, P, N, N, OPEN>(cpu, pack.each_mut());
        } else if P > 1 && M > N && alike && longest <= 16 * (S::LANES * M - 1) {
            short::<S, P, M, M, OPEN>(cpu, pack.each_mut());
        } else {
            for job in pack {
                single::<S, OPEN>(cpu, job);
            }
        }
    }
    for job in jobs.iter_mut().skip(from) {
        single::<S, OPEN>(cpu, job);
    }
}

/// One packet of any length.
#[inline(always)]
fn single<S: Simd, const OPEN: bool>(cpu: S, job: &mut Job<'_>) {
    let Some(len) = job.text.len().checked_sub(TAG_LEN) else {
        job.ok = false;
        return;
    };
    let vectors = (len.div_ceil(16) + 1).div_ceil(S::LANES);
    if S::LANES == 4 {
        match vectors {
            1 => return short::<S, 1, 1, 1, OPEN>(cpu, [job]),
            3 => return short::<S, 1, 3, 1, OPEN>(cpu, [job]),
            5 => return short::<S, 1, 5, 1, OPEN>(cpu, [job]),
            7 => return short::<S, 1, 7, 1, OPEN>(cpu, [job]),
            _ => {}
        }
    }
    match vectors.div_ceil(2) {
        1 => short::<S, 1, 2, 2, OPEN>(cpu, [job]),
        2 => short::<S, 1, 4, 2, OPEN>(cpu, [job]),
        3 => short::<S, 1, 6, 2, OPEN>(cpu, [job]),
        4 => short::<S, 1, 8, 2, OPEN>(cpu, [job]),
        _ => long::<S, OPEN>(cpu, job, vectors),
    }
}
