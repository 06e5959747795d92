//! AES-NI and PCLMULQDQ: one block a vector. Also what the wider backends do with single blocks.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use crate::vaes::{self, Simd};
use crate::{Aad, Backend, Block, Job, Key, POWERS};

/// Proof that the processor has AES, PCLMULQDQ, SSSE3 and SSE4.1.
#[derive(Clone, Copy)]
pub(crate) struct AesNi(());

impl AesNi {
    /// The proof, if the processor has them.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1"))
        .then_some(Self(()))
    }

    /// The proof by a key, which exists only where `detect` found the instructions that its backend needs.
    #[inline(always)]
    pub(crate) fn proved_by(key: &Key) -> Option<Self> {
        (key.backend() != Backend::Reference).then_some(Self(()))
    }

    /// Fills in the round keys and the powers of H.
    pub(crate) fn expand(self, this: &mut Key, key: &[u8]) {
        vaes::expand(self, this, key, Self::LANES);
    }

    /// Sixteen bytes of memory.
    #[inline(always)]
    pub(crate) fn block(self, block: &Block) -> __m128i {
        // SAFETY: an unaligned read of exactly the bytes that are borrowed.
        unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
    }

    /// Asks for the cache line of `block`.
    #[inline(always)]
    pub(crate) fn prefetch(self, block: &Block) {
        // SAFETY: a prefetch reads nothing that a program can see, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().cast()) };
    }

    /// Asks for the cache line of `byte`, so that it can be written to.
    #[inline(always)]
    pub(crate) fn prefetch_write(self, byte: &u8) {
        // The intrinsic makes a plain PREFETCHT0 of it for a processor that is not known to have this one.
        #[cfg(not(miri))]
        // SAFETY: PREFETCHW never faults and writes nothing, whatever the address, and changes no flag (Intel SDM 2B,
        // AMD APM 3); a 64-bit processor that does not have it takes it for a NOP.
        unsafe {
            core::arch::asm!("prefetchw [{}]", in(reg) byte, options(nostack, preserves_flags, readonly));
        }
    }

    /// The bytes of a block.
    #[inline(always)]
    pub(crate) fn bytes(self, v: __m128i) -> Block {
        let mut block = [0; 16];
        // SAFETY: an unaligned write of exactly the bytes of `block`.
        unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), v) };
        block
    }

    /// Two little-endian halves.
    #[inline(always)]
    pub(crate) fn pair(self, low: u64, high: u64) -> __m128i {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_set_epi64x(high.cast_signed(), low.cast_signed()) }
    }

    /// The block that GHASH takes for `aad`.
    #[inline(always)]
    pub(crate) fn aad(self, aad: &Aad) -> __m128i {
        let (low, high) = aad.words();
        self.pair(low, high)
    }

    /// Whether two blocks are equal, in constant time.
    #[inline(always)]
    pub(crate) fn equal(self, a: __m128i, b: __m128i) -> bool {
        let different = self.xor(a, b);
        // SAFETY: `self` proves SSE4.1.
        unsafe { _mm_testz_si128(different, different) != 0 }
    }

    /// AES's S-box on each byte of a word: the last round shifts rows, which are equal here.
    pub(crate) fn substitute(self, word: u32) -> u32 {
        // SAFETY: SSE2 is part of x86-64.
        let columns = unsafe { _mm_set1_epi32(word.cast_signed()) };
        let columns = self.last_round(columns, self.pair(0, 0));
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_cvtsi128_si32(columns) }.cast_unsigned()
    }
}

impl Simd for AesNi {
    type V = __m128i;
    const LANES: usize = 1;

    #[inline(always)]
    fn narrow(self) -> AesNi {
        self
    }
    #[inline(always)]
    fn splat(self, block: __m128i) -> __m128i {
        block
    }
    #[inline(always)]
    fn widen(self, block: __m128i) -> __m128i {
        block
    }
    #[inline(always)]
    fn first(self, v: __m128i) -> __m128i {
        v
    }
    #[inline(always)]
    fn fold<const P: usize>(self, vectors: &[__m128i; P]) -> __m128i {
        self.gather(vectors)
    }
    #[inline(always)]
    fn gather<const P: usize>(self, blocks: &[__m128i; P]) -> __m128i {
        blocks.first().copied().unwrap_or(self.pair(0, 0))
    }
    #[inline(always)]
    fn scatter<const P: usize>(self, v: __m128i) -> [__m128i; P] {
        [v; P]
    }
    #[inline(always)]
    fn counters(self, vector: u32) -> __m128i {
        self.pair(0, u64::from((vector + 1).to_be()) << 32)
    }
    #[inline(always)]
    fn counter(self, counter: u32) -> __m128i {
        self.pair(0, u64::from(counter.to_be()) << 32)
    }
    #[inline(always)]
    fn with_last(self, _: __m128i, b: __m128i) -> __m128i {
        b
    }
    #[inline(always)]
    fn blocks(self, table: &[Block; POWERS + 2], at: usize) -> __m128i {
        table.get(at).map_or(self.pair(0, 0), |block| self.block(block))
    }

    #[inline(always)]
    fn load(self, text: &[u8]) -> __m128i {
        self.load_part(text, 16)
    }
    #[inline(always)]
    fn store(self, text: &mut [u8], v: __m128i) {
        self.store_part(text, v, 16);
    }
    #[inline(always)]
    fn load_part(self, text: &[u8], len: usize) -> __m128i {
        match text.first_chunk() {
            Some(block) if len > 0 => self.keep(self.block(block), len),
            _ => self.pair(0, 0),
        }
    }
    #[inline(always)]
    fn store_part(self, text: &mut [u8], v: __m128i, len: usize) {
        let Some(block) = text.first_chunk_mut() else { return };
        if len >= 16 {
            *block = self.bytes(v);
        } else if len > 0 {
            let kept = self.xor(self.block(block), self.keep(self.block(block), len));
            *block = self.bytes(self.xor(kept, self.keep(v, len)));
        }
    }
    #[inline(always)]
    fn keep(self, v: __m128i, len: usize) -> __m128i {
        if len >= 16 {
            return v;
        }
        let bits = u128::MAX.checked_shr(128 - 8 * len as u32).unwrap_or(0);
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_and_si128(v, self.block(&bits.to_le_bytes())) }
    }
    #[inline(always)]
    fn load_head(self, _: &[u8], _: usize) -> __m128i {
        self.pair(0, 0)
    }
    #[inline(always)]
    fn store_head(self, _: &mut [u8], _: __m128i, _: usize) {}
    #[inline(always)]
    fn keep_head(self, _: __m128i, _: usize) -> __m128i {
        self.pair(0, 0)
    }

    #[inline(always)]
    fn hold(self, v: __m128i) -> __m128i {
        #[inline]
        #[target_feature(enable = "sse2")]
        fn hold(mut v: __m128i) -> __m128i {
            // SAFETY: no instruction; `v` stays in its register.
            unsafe {
                core::arch::asm!("/* {0} */", inout(xmm_reg) v, options(nomem, nostack, preserves_flags))
            };
            v
        }
        // SAFETY: `self` proves the instructions.
        unsafe { hold(v) }
    }

    #[inline(always)]
    fn xor(self, a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_xor_si128(a, b) }
    }
    #[inline(always)]
    fn xor3(self, a: __m128i, b: __m128i, c: __m128i) -> __m128i {
        self.xor(self.xor(a, b), c)
    }
    #[inline(always)]
    fn reverse(self, v: __m128i) -> __m128i {
        let order = self.pair(0x0809_0a0b_0c0d_0e0f, 0x0001_0203_0405_0607);
        // SAFETY: `self` proves SSSE3.
        unsafe { _mm_shuffle_epi8(v, order) }
    }
    #[inline(always)]
    fn swap_halves(self, v: __m128i) -> __m128i {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_shuffle_epi32::<0x4e>(v) }
    }
    #[inline(always)]
    fn halves_added(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: SSE2 is part of x86-64.
        let low = unsafe { _mm_unpacklo_epi64(a, b) };
        // SAFETY: as above.
        let high = unsafe { _mm_unpackhi_epi64(a, b) };
        self.xor(low, high)
    }
    #[inline(always)]
    fn round(self, state: __m128i, key: __m128i) -> __m128i {
        // SAFETY: `self` proves AES.
        unsafe { _mm_aesenc_si128(state, key) }
    }
    #[inline(always)]
    fn last_round(self, state: __m128i, key: __m128i) -> __m128i {
        // SAFETY: `self` proves AES.
        unsafe { _mm_aesenclast_si128(state, key) }
    }
    #[inline(always)]
    fn multiply<const HALVES: i32>(self, a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: `self` proves PCLMULQDQ.
        unsafe { _mm_clmulepi64_si128::<HALVES>(a, b) }
    }
}

/// Seals or opens jobs whose keys are of this backend.
pub(crate) fn run<const OPEN: bool>(jobs: &mut [Job<'_>]) {
    #[target_feature(enable = "aes,pclmulqdq,ssse3,sse4.1")]
    fn enabled<const OPEN: bool>(cpu: AesNi, jobs: &mut [Job<'_>]) {
        vaes::burst::<AesNi, 1, 2, 2, OPEN>(cpu, jobs);
    }
    let Some(cpu) = jobs.first().and_then(|job| AesNi::proved_by(job.key)) else { return };
    // SAFETY: `cpu` proves the instructions.
    unsafe { enabled::<OPEN>(cpu, jobs) };
}
