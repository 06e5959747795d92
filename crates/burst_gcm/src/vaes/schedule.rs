//! What the kernel for long packets takes of a key: as the key has it, or prepared for packets in a row.
//!
//! # Counter blocks after round 1
//!
//! Of a packet's counter blocks only the last byte differs, up to the 256th. SubBytes takes bytes one by one, and the steps
//! after it are linear; so what that byte changes of a block after round 1 can be added to what all other bytes make of it.
//! Its value is added to a byte of the first round key, not of the nonce, and so the change is the key's alone.

use arrayvec::ArrayVec;

use super::{GROUP, Simd};
use crate::{Block, Key, POWERS};

/// Vectors whose counter blocks are known after round 1: with four lanes, all of a packet of up to 4016 bytes.
const STARTS: usize = 64;

/// A key as vectors.
pub(super) trait Schedule<S: Simd>: Copy {
    /// A round key in every lane.
    fn round_key(self, cpu: S, round: usize) -> S::V;
    /// The power of H that all lanes of this vector of a group take.
    fn power(self, cpu: S, n: usize) -> S::V;
    /// The halves' sums of the powers of a pair of vectors, the first of this number.
    fn sums(self, cpu: S, n: usize) -> S::V;
    /// The counter blocks of `N` vectors from `vector` on after round 1. `base` is the packet's nonce under the first round key.
    fn start<const N: usize>(self, cpu: S, base: S::V, vector: usize) -> [S::V; N];
}

/// Where the powers of a group begin that are the same in all lanes.
const fn group_powers(lanes: usize) -> usize {
    POWERS - lanes * GROUP
}

impl<S: Simd> Schedule<S> for &Key {
    #[inline(always)]
    fn round_key(self, cpu: S, round: usize) -> S::V {
        cpu.splat(cpu.narrow().block(&self.round_keys.0[round]))
    }
    #[inline(always)]
    fn power(self, cpu: S, n: usize) -> S::V {
        cpu.splat(cpu.narrow().block(&self.powers[group_powers(S::LANES) + n * S::LANES]))
    }
    #[inline(always)]
    fn sums(self, cpu: S, n: usize) -> S::V {
        cpu.splat(cpu.narrow().block(&self.sums[group_powers(S::LANES) + n * S::LANES]))
    }
    #[inline(always)]
    fn start<const N: usize>(self, cpu: S, base: S::V, vector: usize) -> [S::V; N] {
        let key = self.round_key(cpu, 1);
        let mut state = [base; N];
        for n in 0..N {
            state[n] = cpu.round(cpu.xor(base, counters(cpu, vector + n)), key);
        }
        state
    }
}

/// A key in every lane, so that a vector of it costs a load and nothing more: for packets in a row that have the same.
///
/// Nothing is written before there are such: most bursts need none.
pub(super) struct Wide<'k, S: Simd> {
    key: Option<&'k Key>,
    round_keys: ArrayVec<S::V, 15>,
    powers: ArrayVec<S::V, GROUP>,
    sums: ArrayVec<S::V, { GROUP / 2 }>,
    /// What the counters change after round 1.
    starts: ArrayVec<S::V, STARTS>,
}

impl<'k, S: Simd> Wide<'k, S> {
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            key: None,
            round_keys: ArrayVec::new_const(),
            powers: ArrayVec::new_const(),
            sums: ArrayVec::new_const(),
            starts: ArrayVec::new_const(),
        }
    }

    /// The key of a packet of so many vectors, if that of the packet before was the same.
    #[inline(always)]
    pub fn of(&mut self, cpu: S, key: &'k Key, vectors: usize) -> Option<Lanes<'_, S>> {
        if !self.key.is_some_and(|last| core::ptr::eq(last, key)) {
            self.key = Some(key);
            self.round_keys.clear();
            return None;
        }
        if self.round_keys.is_empty() {
            self.set(cpu, key);
        }
        self.start(cpu, vectors);
        Some(Lanes {
            round_keys: self.round_keys.first_chunk()?,
            powers: self.powers.first_chunk()?,
            sums: self.sums.first_chunk()?,
            starts: &self.starts,
        })
    }

    /// Leaves nothing of a key behind on the stack.
    #[inline(always)]
    pub fn wipe(&mut self, cpu: S) {
        let (keys, powers) = (self.round_keys.iter_mut(), self.powers.iter_mut());
        for vector in keys.chain(powers).chain(self.sums.iter_mut()).chain(self.starts.iter_mut()) {
            *vector = cpu.zero();
        }
        // As if it were read again, so that the compiler keeps these writes.
        core::hint::black_box(self);
    }

    #[inline(always)]
    fn set(&mut self, cpu: S, key: &Key) {
        self.powers.clear();
        self.sums.clear();
        self.starts.clear();
        // As many as there is room for.
        for r in 0..15 {
            let _ = self.round_keys.try_push(key.round_key(cpu, r));
        }
        for n in 0..GROUP {
            let _ = self.powers.try_push(key.power(cpu, n));
        }
        for pair in 0..GROUP / 2 {
            let _ = self.sums.try_push(key.sums(cpu, 2 * pair));
        }
    }

    #[inline(always)]
    fn start(&mut self, cpu: S, vectors: usize) {
        let (vectors, Some(key)) = (vectors.min(STARTS), self.round_keys.first()) else { return };
        if self.starts.len() < vectors {
            let others = cpu.round(*key, cpu.zero());
            for vector in self.starts.len()..vectors {
                let block = cpu.xor(*key, counters(cpu, vector));
                let start = cpu.xor(cpu.round(block, cpu.zero()), others);
                // As many as there is room for.
                let _ = self.starts.try_push(start);
            }
        }
    }
}

/// See [`Wide`].
#[derive(Clone, Copy)]
pub(super) struct Lanes<'a, S: Simd> {
    round_keys: &'a [S::V; 15],
    powers: &'a [S::V; GROUP],
    sums: &'a [S::V; GROUP / 2],
    starts: &'a [S::V],
}

impl<S: Simd> Schedule<S> for Lanes<'_, S> {
    #[inline(always)]
    fn round_key(self, _: S, round: usize) -> S::V {
        self.round_keys[round]
    }
    #[inline(always)]
    fn power(self, _: S, n: usize) -> S::V {
        self.powers[n]
    }
    #[inline(always)]
    fn sums(self, _: S, n: usize) -> S::V {
        self.sums[n / 2]
    }
    #[inline(always)]
    fn start<const N: usize>(self, cpu: S, base: S::V, vector: usize) -> [S::V; N] {
        // In the last lane of the last vector the counter may have carried into the byte before.
        let known = self.starts.get(..self.starts.len().min(STARTS - 1)).unwrap_or_default();
        let known = known.get(vector..).unwrap_or_default();
        let mut state = [base; N];
        if let Some(starts) = known.first_chunk::<N>() {
            let others = cpu.round(base, self.round_keys[1]);
            for n in 0..N {
                state[n] = cpu.xor(others, starts[n]);
            }
        } else {
            for n in 0..N {
                state[n] = cpu.round(cpu.xor(base, counters(cpu, vector + n)), self.round_keys[1]);
            }
        }
        state
    }
}

/// The counters of a vector, without a nonce.
#[inline(always)]
fn counters<S: Simd>(cpu: S, vector: usize) -> S::V {
    match COUNTERS.0.get(vector * S::LANES..).and_then(|blocks| blocks.get(..S::LANES)) {
        Some(blocks) => cpu.load(blocks.as_flattened()),
        None => cpu.counters(vector as u32),
    }
}

/// Counter blocks without their nonce: that of a packet's first block is 1.
static COUNTERS: Counters = {
    let mut blocks = [[0; 16]; 4 * STARTS];
    let mut n = 0;
    while n < blocks.len() {
        let [.., high, low] = (n as u32 + 1).to_be_bytes();
        (blocks[n][14], blocks[n][15]) = (high, low);
        n += 1;
    }
    Counters(blocks)
};

/// Aligned, so that loading a vector never touches two cache lines.
#[repr(C, align(64))]
struct Counters([Block; 4 * STARTS]);
