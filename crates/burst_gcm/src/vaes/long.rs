//! Packets of more than eight vectors: in groups of eight, after a first group that has what is left over.
//!
//! AES shares its unit with the multiplier, which takes one operation in two cycles on Zen 4. So nothing but fine mixing
//! keeps both busy: between the AES operations of each group stand, one by one, the multiplications of the group before, and
//! before a packet's first group that of the packet before: its tag is due until then.

use core::arch::x86_64::__m128i;

use arrayvec::ArrayVec;

use super::{
    GROUP, Product, Simd, base,
    schedule::{Lanes, Schedule, Wide},
    short::{apply, tags},
};
use crate::{Block, Job, Key, LAST_ROUND, POWERS, TAG_LEN};

/// The powers of H that a group's vectors are multiplied by.
trait Powers<S: Simd>: Copy {
    /// That of the vector of this number.
    fn of(self, cpu: S, n: usize) -> S::V;
    /// The halves' sums of those of a pair of vectors, the first of this number.
    fn sums(self, cpu: S, n: usize) -> S::V;
}

/// For a packet's groups but the last: each lane of a vector takes the same power, so that lanes need not be added up before the
/// packet's end. What lane `i` then lacks is that its blocks come `i` places later, and the powers of the packet's last
/// group make up for that.
#[derive(Clone, Copy)]
struct Same<K>(K);

impl<S: Simd, K: Schedule<S>> Powers<S> for Same<K> {
    #[inline(always)]
    fn of(self, cpu: S, n: usize) -> S::V {
        self.0.power(cpu, n)
    }
    #[inline(always)]
    fn sums(self, cpu: S, n: usize) -> S::V {
        self.0.sums(cpu, n)
    }
}

/// For the last group, each block its own: descending ones.
#[derive(Clone, Copy)]
struct Descending<'a> {
    /// As many as the group has blocks.
    powers: &'a [Block],
    sums: &'a [Block],
}

impl<'a> Descending<'a> {
    /// From this place on.
    #[inline(always)]
    fn new<S: Simd>(_: S, key: &'a Key, at: usize) -> Self {
        // One length whatever the place, so that the compiler need not check what is read of it.
        let blocks = S::LANES * GROUP;
        let powers = key.powers.get(at..).unwrap_or_default().get(..blocks).unwrap_or(&key.powers[..blocks]);
        let sums = key.sums.get(at..).unwrap_or_default().get(..blocks).unwrap_or(&key.sums[..blocks]);
        Self { powers, sums }
    }
}

impl<S: Simd> Powers<S> for Descending<'_> {
    #[inline(always)]
    fn of(self, cpu: S, n: usize) -> S::V {
        cpu.load(self.powers.get(n * S::LANES..).unwrap_or_default().as_flattened())
    }
    #[inline(always)]
    fn sums(self, cpu: S, n: usize) -> S::V {
        cpu.load(self.sums.get(n * S::LANES..).unwrap_or_default().as_flattened())
    }
}

/// The hash of a group, a multiplication a step. The pairs of vectors take three multiplications each vector (Karatsuba) in
/// place of four; the first pair comes last, because the hash of the group before is added to it.
struct Hashing<S: Simd, P: Powers<S>> {
    powers: P,
    low: S::V,
    /// Its sum with low and high.
    middle: S::V,
    high: S::V,
    /// A first product that waits for the second.
    first: S::V,
    halves: S::V,
    sums: S::V,
}

impl<S: Simd, P: Powers<S>> Hashing<S, P> {
    /// With a product of its own sort to start from.
    #[inline(always)]
    fn new(cpu: S, powers: P, from: Product<S>) -> Self {
        let Product { low, middle, high } = from;
        let zero = cpu.zero();
        Self { powers, low, middle, high, first: zero, halves: zero, sums: zero }
    }

    #[inline(always)]
    fn step(&mut self, cpu: S, group: &[S::V; GROUP], step: usize) {
        let n = (step / 6 * 2 + 2) % GROUP;
        let (a, b) = (group[n], group[n + 1]);
        match step % 6 {
            0 => {
                self.halves = cpu.halves_added(a, b);
                self.first = cpu.hold(cpu.multiply::<0x00>(a, self.powers.of(cpu, n)));
            }
            1 => {
                let second = cpu.multiply::<0x00>(b, self.powers.of(cpu, n + 1));
                self.low = cpu.hold(cpu.xor3(self.low, self.first, second));
            }
            2 => {
                self.sums = self.powers.sums(cpu, n);
                self.first = cpu.hold(cpu.multiply::<0x00>(self.halves, self.sums));
            }
            3 => {
                let second = cpu.multiply::<0x11>(self.halves, self.sums);
                self.middle = cpu.hold(cpu.xor3(self.middle, self.first, second));
            }
            4 => self.first = cpu.hold(cpu.multiply::<0x11>(a, self.powers.of(cpu, n))),
            _ => {
                let second = cpu.multiply::<0x11>(b, self.powers.of(cpu, n + 1));
                self.high = cpu.hold(cpu.xor3(self.high, self.first, second));
            }
        }
    }

    #[inline(always)]
    fn product(&self, cpu: S) -> Product<S> {
        Product { low: self.low, middle: cpu.xor3(self.low, self.middle, self.high), high: self.high }
    }
}

/// One AES round, and between its operations three steps of the hash of another group, from step `3 * third` on. Of that only
/// the last `PAIRS` pairs of vectors have anything.
#[inline(always)]
fn round<S: Simd, P: Powers<S>, const N: usize, const PAIRS: usize>(
    cpu: S,
    key: S::V,
    state: &mut [S::V; N],
    hashing: &mut Hashing<S, P>,
    group: &[S::V; GROUP],
    third: usize,
) {
    let (a, b) = (N.div_ceil(3), (2 * N).div_ceil(3));
    // In the order of the steps, the first pair is the last.
    let last = 2 * (GROUP / 2 - 1);
    let steps = PAIRS == GROUP / 2 || (third < last && third >= last - 2 * PAIRS);
    for n in 0..a {
        state[n] = cpu.hold(cpu.round(state[n], key));
    }
    if steps {
        hashing.step(cpu, group, 3 * third);
    }
    for n in a..b {
        state[n] = cpu.hold(cpu.round(state[n], key));
    }
    if steps {
        hashing.step(cpu, group, 3 * third + 1);
    }
    for n in b..N {
        state[n] = cpu.hold(cpu.round(state[n], key));
    }
    if steps {
        hashing.step(cpu, group, 3 * third + 2);
    }
}

/// All AES rounds of `state` but the first and the last, and between them the hash of `group`.
#[inline(always)]
fn rounds<S: Simd, K: Schedule<S>, P: Powers<S>, const N: usize, const PAIRS: usize>(
    cpu: S,
    key: K,
    rounds: u8,
    state: &mut [S::V; N],
    group: &[S::V; GROUP],
    mut hashing: Hashing<S, P>,
) -> Product<S> {
    // One by one, so that each step is known when this is compiled.
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 2), state, &mut hashing, group, 0);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 3), state, &mut hashing, group, 1);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 4), state, &mut hashing, group, 2);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 5), state, &mut hashing, group, 3);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 6), state, &mut hashing, group, 4);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 7), state, &mut hashing, group, 5);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 8), state, &mut hashing, group, 6);
    round::<S, P, N, PAIRS>(cpu, key.round_key(cpu, 9), state, &mut hashing, group, 7);
    for (least, more) in [(10, LAST_ROUND + 1), (12, LAST_ROUND + 3)] {
        if rounds > least {
            for r in more..more + 2 {
                let round_key = key.round_key(cpu, r);
                for n in 0..N {
                    state[n] = cpu.hold(cpu.round(state[n], round_key));
                }
            }
        }
    }
    hashing.product(cpu)
}

/// The last group of a long packet: its text is done, its tag is not. Nothing of it is written before there is one.
pub(super) struct Due<'j, 'b, S: Simd> {
    job: Option<&'j mut Job<'b>>,
    /// The group, and added to it the hash of those before.
    group: ArrayVec<S::V, GROUP>,
    /// The encrypted J0.
    mask: __m128i,
    /// What packets of one length under one key have in common.
    length: Length<'b, S>,
}

/// What the hash of the last group takes that follows from key and length alone, which packets in a row often share.
struct Length<'b, S: Simd> {
    key: Option<&'b Key>,
    /// Bytes of the text with its tag, and of the AAD.
    len: (usize, u32),
    /// The place of the group's first power of H.
    at: usize,
    /// The length block's share: low, middle and high.
    product: ArrayVec<S::V, 3>,
}

impl<'b, S: Simd> Length<'b, S> {
    /// That of `job`, of so many vectors.
    #[inline(always)]
    fn set(&mut self, cpu: S, job: &Job<'b>, vectors: usize) {
        let len = (job.text.len(), job.aad.len);
        if self.len == len && self.key.is_some_and(|key| core::ptr::eq(key, job.key)) {
            return;
        }
        (self.key, self.len) = (Some(job.key), len);
        let text = len.0.saturating_sub(TAG_LEN);
        let last = (text.div_ceil(16) + 1).saturating_sub((vectors - GROUP) * S::LANES);
        self.at = POWERS.saturating_sub(last + 1);
        let block = cpu.widen(cpu.narrow().pair(text as u64 * 8, u64::from(len.1) * 8));
        let Product { low, middle, high } =
            Product::<S>::new(cpu, block, cpu.widen(cpu.narrow().block(&job.key.powers[POWERS - 1])));
        self.product = ArrayVec::from([low, cpu.xor3(low, middle, high), high]);
    }
}

impl<S: Simd> Due<'_, '_, S> {
    #[inline(always)]
    pub fn new(cpu: S) -> Self {
        let length = Length { key: None, len: (0, 0), at: 0, product: ArrayVec::new_const() };
        Self { job: None, group: ArrayVec::new_const(), mask: cpu.narrow().pair(0, 0), length }
    }

    /// Nobody's, under any key.
    #[inline(always)]
    fn begin(&mut self, cpu: S) {
        if self.group.is_empty() {
            for _ in 0..GROUP {
                let _ = self.group.try_push(cpu.zero());
            }
            for _ in 0..3 {
                let _ = self.length.product.try_push(cpu.zero());
            }
        }
    }

    /// The hash of the group, to be taken step by step.
    #[inline(always)]
    fn hashing<'a>(&'a self, cpu: S, any: &'a Key) -> Option<Hashing<S, Descending<'a>>> {
        let [low, middle, high] = *self.length.product.first_chunk()?;
        let powers = Descending::new(cpu, self.length.key.unwrap_or(any), self.length.at);
        Some(Hashing::new(cpu, powers, Product { low, middle, high }))
    }

    /// Writes or compares the tag.
    #[inline(always)]
    fn finish<const OPEN: bool>(&mut self, cpu: S, sum: Product<S>) {
        if let Some(job) = self.job.take() {
            tags::<S, 1, OPEN>(cpu, [job], cpu.fold(&[sum.reduce(cpu)]), &[self.mask]);
        }
    }

    /// At the end of a burst.
    #[inline(always)]
    pub fn end<const OPEN: bool>(&mut self, cpu: S) {
        let Some(key) = self.job.as_ref().map(|job| job.key) else { return };
        let (Some(group), Some(hashing)) = (self.group.first_chunk(), self.hashing(cpu, key)) else { return };
        let sum = rounds::<S, _, _, 0, { GROUP / 2 }>(cpu, key, 0, &mut [], group, hashing);
        self.finish::<OPEN>(cpu, sum);
    }
}

/// Where a long packet stands: those before `vector` are encrypted or decrypted, and all but the last group of them is in
/// `hash`.
struct Progress<S: Simd> {
    base: S::V,
    vector: usize,
    /// The last group; where it has fewer vectors than others, zeros are in front.
    group: [S::V; GROUP],
    hash: S::V,
    /// The encrypted J0.
    mask: __m128i,
}

/// The first `N` vectors of a packet, and the tag that is due.
#[inline(always)]
fn head<S: Simd, K: Schedule<S>, const N: usize, const OPEN: bool>(
    cpu: S,
    job: &mut Job<'_>,
    schedule: K,
    due: &mut Due<'_, '_, S>,
) -> Progress<S> {
    let key = job.key;
    let base = base(cpu, job);
    let mut state = schedule.start::<N>(cpu, base, 0);
    due.begin(cpu);
    if let (Some(group), Some(hashing)) = (due.group.first_chunk(), due.hashing(cpu, key)) {
        let sum = rounds::<S, _, _, N, { GROUP / 2 }>(cpu, schedule, key.rounds, &mut state, group, hashing);
        due.finish::<OPEN>(cpu, sum);
    }
    let mut done = Progress {
        base,
        vector: N,
        group: [cpu.zero(); GROUP],
        hash: cpu.zero(),
        mask: cpu.narrow().pair(0, 0),
    };
    let Some(text) = job.text.get_mut(..16 * (S::LANES * N - 1)) else { return done };
    done.mask =
        apply::<S, N, true, 0, OPEN>(cpu, schedule.round_key(cpu, LAST_ROUND), &job.aad, &mut state, text, 0);
    for n in 0..N {
        done.group[GROUP - N + n] = state[n];
    }
    done
}

/// The next group of a packet, of which `text` is the rest.
#[inline(always)]
fn group<S: Simd, K: Schedule<S>, const PART: usize, const PAIRS: usize, const OPEN: bool>(
    cpu: S,
    job: &mut Job<'_>,
    schedule: K,
    done: &mut Progress<S>,
) {
    let mut state = schedule.start::<GROUP>(cpu, done.base, done.vector);
    done.group[0] = cpu.xor(done.group[0], done.hash);
    let hashing = Hashing::new(cpu, Same(schedule), Product::zero(cpu));
    done.hash =
        rounds::<S, _, _, GROUP, PAIRS>(cpu, schedule, job.key.rounds, &mut state, &done.group, hashing)
            .reduce(cpu);
    let from = 16 * (done.vector * S::LANES).saturating_sub(1);
    let Some(text) = job.text.get_mut(from..) else { return };
    let len = text.len().saturating_sub(TAG_LEN);
    let text = if PART == 0 { text.get_mut(..16 * S::LANES * GROUP) } else { Some(text) };
    let Some(text) = text else { return };
    apply::<S, GROUP, false, PART, OPEN>(
        cpu,
        schedule.round_key(cpu, LAST_ROUND),
        &job.aad,
        &mut state,
        text,
        len,
    );
    done.group = state;
    done.vector += GROUP;
}

/// A packet of so many vectors, more than [`GROUP`]. Its tag is due afterwards, and that which was due before is done.
#[inline(always)]
pub(super) fn long<'j, 'b, S: Simd, const OPEN: bool>(
    cpu: S,
    job: &'j mut Job<'b>,
    vectors: usize,
    wide: &mut Wide<'b, S>,
    due: &mut Due<'j, 'b, S>,
) {
    match wide.of(cpu, job.key, vectors) {
        Some(lanes) => long_by::<S, Lanes<'_, S>, OPEN>(cpu, job, lanes, vectors, due),
        None => {
            let key = job.key;
            long_by::<S, &Key, OPEN>(cpu, job, key, vectors, due);
        }
    }
}

#[inline(always)]
fn long_by<'j, 'b, S: Simd, K: Schedule<S>, const OPEN: bool>(
    cpu: S,
    job: &'j mut Job<'b>,
    schedule: K,
    vectors: usize,
    due: &mut Due<'j, 'b, S>,
) {
    let mut done = match vectors % GROUP {
        1 => head::<S, K, 1, OPEN>(cpu, job, schedule, due),
        2 => head::<S, K, 2, OPEN>(cpu, job, schedule, due),
        3 => head::<S, K, 3, OPEN>(cpu, job, schedule, due),
        4 => head::<S, K, 4, OPEN>(cpu, job, schedule, due),
        5 => head::<S, K, 5, OPEN>(cpu, job, schedule, due),
        6 => head::<S, K, 6, OPEN>(cpu, job, schedule, due),
        7 => head::<S, K, 7, OPEN>(cpu, job, schedule, due),
        _ => head::<S, K, 8, OPEN>(cpu, job, schedule, due),
    };
    // The hash of a small first group is soon taken.
    match (done.vector, vectors - done.vector == GROUP) {
        (1..=2, false) => group::<S, K, 0, 1, OPEN>(cpu, job, schedule, &mut done),
        (1..=2, true) => group::<S, K, 1, 1, OPEN>(cpu, job, schedule, &mut done),
        (3..=4, false) => group::<S, K, 0, 2, OPEN>(cpu, job, schedule, &mut done),
        (3..=4, true) => group::<S, K, 1, 2, OPEN>(cpu, job, schedule, &mut done),
        _ => {}
    }
    while vectors - done.vector > GROUP {
        group::<S, K, 0, { GROUP / 2 }, OPEN>(cpu, job, schedule, &mut done);
    }
    if vectors > done.vector {
        group::<S, K, 1, { GROUP / 2 }, OPEN>(cpu, job, schedule, &mut done);
    }
    done.group[0] = cpu.xor(done.group[0], done.hash);
    if let Some(group) = due.group.first_chunk_mut() {
        *group = done.group;
    }
    due.length.set(cpu, job, vectors);
    due.mask = done.mask;
    due.job = Some(job);
}
