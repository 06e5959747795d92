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
//! eight vectors (`short`), once in a group of eight otherwise (`long`).
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

mod long;
mod narrow;
mod schedule;
mod short;

use core::arch::x86_64::__m128i;

use arrayvec::ArrayVec;

use crate::vaes128::AesNi;
use crate::{Block, Job, Key, LAST_ROUND, POWERS, TAG_LEN};
use long::{Due, long};
use schedule::{Schedule, Wide};
use short::{alone, short};

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
    /// Zero in every lane.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.widen(self.narrow().pair(0, 0))
    }
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
        let zero = cpu.zero();
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
    rounds::<_, &Key, 1, LAST_ROUND, 1, 1>(cpu, &[this], &mut state);
    more_rounds::<_, &Key, 1, 1>(cpu, &[this], this.rounds, &mut state);
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
    for (at, sums) in this.sums.iter_mut().enumerate() {
        let power = |at: usize| cpu.block(this.powers.get(at).unwrap_or(&[0; 16]));
        *sums = cpu.bytes(cpu.halves_added(power(at), power(at + lanes)));
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
/// [`short::apply`].
#[inline(always)]
fn rounds<S: Simd, K: Schedule<S>, const FROM: usize, const TO: usize, const P: usize, const N: usize>(
    cpu: S,
    keys: &[K; P],
    state: &mut [[S::V; N]; P],
) {
    for r in FROM..TO {
        for p in 0..P {
            let round_key = keys[p].round_key(cpu, r);
            for n in 0..N {
                state[p][n] = cpu.hold(cpu.round(state[p][n], round_key));
            }
        }
    }
}

/// The rounds that AES-192 and AES-256 have more. All keys have so many rounds.
#[inline(always)]
fn more_rounds<S: Simd, K: Schedule<S>, const P: usize, const N: usize>(
    cpu: S,
    keys: &[K; P],
    all: u8,
    state: &mut [[S::V; N]; P],
) {
    if all > 10 {
        rounds::<S, K, { LAST_ROUND + 1 }, { LAST_ROUND + 3 }, P, N>(cpu, keys, state);
    }
    if all > 12 {
        rounds::<S, K, { LAST_ROUND + 3 }, { LAST_ROUND + 5 }, P, N>(cpu, keys, state);
    }
}

/// Packets ahead of its use that a key is asked for, and a text: two packs of four, or one to two microseconds of long
/// packets.
const AHEAD: usize = 8;

/// Jobs of any length that are put in order together.
const BATCH: usize = 64;

/// Vectors beyond which packets come last: two groups.
const LONG: usize = 2 * GROUP;

/// Seals or opens all jobs, whose keys are of this backend. `P` is the vector's number of lanes: that many packets
/// next to each other go together if they are short, have keys of one size and fit in `N` vectors, or `M`.
#[inline(always)]
pub(crate) fn burst<'b, S: Simd, const P: usize, const N: usize, const M: usize, const OPEN: bool>(
    cpu: S,
    mut jobs: &mut [Job<'b>],
) {
    let mut wide = Wide::new();
    // Of most bursts, all: as long as packets are short they go together as they come.
    while let Some(vectors) = jobs.first_chunk::<P>().and_then(|pack| pack_vectors(pack.each_ref(), S::LANES))
        && vectors <= M
        && let Some((pack, rest)) = std::mem::take(&mut jobs).split_first_chunk_mut::<P>()
    {
        rest.iter().skip(AHEAD - P).take(P).for_each(|job| approach(cpu, job));
        together::<S, P, N, M, OPEN>(cpu, pack.each_mut(), vectors, &mut wide);
        jobs = rest;
    }
    for batch in jobs.chunks_mut(BATCH) {
        any_length::<S, P, N, M, OPEN>(cpu, batch, &mut wide);
    }
    wide.wipe(cpu);
}

/// As [`burst`], of at most [`BATCH`] jobs of which some are long: the shorter ones first, so that as many as can go
/// together, and so that the processor foresees what comes.
#[inline(always)]
fn any_length<'b, S: Simd, const P: usize, const N: usize, const M: usize, const OPEN: bool>(
    cpu: S,
    jobs: &mut [Job<'b>],
    wide: &mut Wide<'b, S>,
) {
    let mut order: ArrayVec<&mut Job<'b>, BATCH> = jobs.iter_mut().take(BATCH).collect();
    if order.windows(2).any(|two| two[0].text.len() != two[1].text.len()) {
        let (short, long) = part(&mut order, S::LANES, M);
        part(short, S::LANES, N);
        part(long, S::LANES, LONG);
    }
    let mut jobs = order.as_mut_slice();
    let mut due = Due::new(cpu);
    jobs.iter().take(AHEAD).for_each(|job| approach(cpu, job));
    // Jobs that come next and go alone.
    let mut alone = 0;
    while !jobs.is_empty() {
        if alone == 0 {
            let pack = jobs.first_chunk::<P>().map(|pack| pack.each_ref().map(|job| &**job));
            if let Some(vectors) = pack.and_then(|pack| pack_vectors(pack, S::LANES))
                && vectors <= M
                && let Some((pack, rest)) = std::mem::take(&mut jobs).split_first_chunk_mut::<P>()
            {
                rest.iter().skip(AHEAD - P).take(P).for_each(|job| approach(cpu, job));
                together::<S, P, N, M, OPEN>(cpu, pack.each_mut().map(|job| &mut **job), vectors, wide);
                jobs = rest;
                continue;
            }
            alone = P;
        }
        let Some((job, rest)) = std::mem::take(&mut jobs).split_first_mut() else { break };
        rest.get(AHEAD - 1).into_iter().for_each(|job| approach(cpu, job));
        single::<S, OPEN>(cpu, job, wide, &mut due);
        (jobs, alone) = (rest, alone - 1);
    }
    due.end::<OPEN>(cpu);
}

/// Puts those that fit in `most` vectors before the others. Which those are nobody foresees, so nothing is branched on.
#[inline(always)]
fn part<'a, 'j, 'b>(
    jobs: &'a mut [&'j mut Job<'b>],
    lanes: usize,
    most: usize,
) -> (&'a mut [&'j mut Job<'b>], &'a mut [&'j mut Job<'b>]) {
    let mut short = 0;
    for at in 0..jobs.len() {
        let fits = vectors(length(jobs[at]), lanes) <= most;
        jobs.swap(short, at);
        short += usize::from(fits);
    }
    jobs.split_at_mut(short)
}

/// Asks for what will be read of a job's key, and for the beginning of what the cipher will meet of its text, to be written:
/// then it comes for several packets at once. What lies further on the processor fetches by itself, once it sees where this
/// leads, and to ask for that too costs more where it is near than it gains; the lines before have been read.
#[inline(always)]
fn approach<S: Simd>(cpu: S, job: &Job<'_>) {
    const LINE: usize = 64;
    const LINES: usize = 6;
    job.key.lines().into_iter().for_each(|line| cpu.narrow().prefetch(line));
    let text = job.text.get(2 * LINE..).unwrap_or_default();
    if let Some(text) = text.first_chunk::<{ LINES * LINE }>() {
        for n in 0..LINES {
            cpu.narrow().prefetch_write(&text[n * LINE]);
        }
    } else {
        text.iter().step_by(LINE).for_each(|byte| cpu.narrow().prefetch_write(byte));
    }
}

/// Bytes of a job's text without its tag: more than any has where there is no room for one.
#[inline(always)]
fn length(job: &Job<'_>) -> usize {
    job.text.len().wrapping_sub(TAG_LEN)
}

/// Vectors of a packet with so many bytes of text.
#[inline(always)]
fn vectors(length: usize, lanes: usize) -> usize {
    (length.saturating_add(31) / 16).div_ceil(lanes)
}

/// Vectors of the longest of these packets, if all have keys of one size.
#[inline(always)]
fn pack_vectors<const P: usize>(jobs: [&Job<'_>; P], lanes: usize) -> Option<usize> {
    let rounds = jobs[0].key.rounds;
    let mut longest = 0;
    for job in jobs {
        if job.key.rounds != rounds {
            return None;
        }
        longest = longest.max(length(job));
    }
    Some(vectors(longest, lanes))
}

/// Packets with keys of one size that fit in so many vectors each, at most `M`.
#[inline(always)]
fn together<'b, S: Simd, const P: usize, const N: usize, const M: usize, const OPEN: bool>(
    cpu: S,
    pack: [&mut Job<'b>; P],
    vectors: usize,
    wide: &mut Wide<'b, S>,
) {
    let keys = pack.each_ref().map(|job| job.key);
    let key = keys[0];
    if vectors > N {
        short::<S, &Key, P, M, M, OPEN>(cpu, pack, keys);
    } else if keys.iter().all(|other| core::ptr::eq(*other, key))
        && let Some(lanes) = wide.of(cpu, key, 0)
    {
        short::<S, _, P, N, N, OPEN>(cpu, pack, [lanes; P]);
    } else {
        short::<S, &Key, P, N, N, OPEN>(cpu, pack, keys);
    }
}

/// One packet of any length.
#[inline(always)]
fn single<'j, 'b, S: Simd, const OPEN: bool>(
    cpu: S,
    job: &'j mut Job<'b>,
    wide: &mut Wide<'b, S>,
    due: &mut Due<'j, 'b, S>,
) {
    let Some(len) = job.text.len().checked_sub(TAG_LEN) else {
        job.ok = false;
        return;
    };
    let vectors = (len.div_ceil(16) + 1).div_ceil(S::LANES);
    if S::LANES == 4 {
        match vectors {
            1 => return alone::<S, 1, 1, OPEN>(cpu, job),
            3 => return alone::<S, 3, 1, OPEN>(cpu, job),
            5 => return alone::<S, 5, 1, OPEN>(cpu, job),
            7 => return alone::<S, 7, 1, OPEN>(cpu, job),
            _ => {}
        }
    }
    match vectors.div_ceil(2) {
        1 => alone::<S, 2, 2, OPEN>(cpu, job),
        2 => alone::<S, 4, 2, OPEN>(cpu, job),
        3 => alone::<S, 6, 2, OPEN>(cpu, job),
        4 => alone::<S, 8, 2, OPEN>(cpu, job),
        _ if S::LANES == 4 => long::<S, OPEN>(cpu, job, vectors, wide, due),
        _ => narrow::long::<S, OPEN>(cpu, job, vectors),
    }
}
