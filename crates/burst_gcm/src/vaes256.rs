//! AVX2 with VAES and VPCLMULQDQ: two blocks a vector. AVX2 has no masks for bytes, so the end of a text is read
//! and written in whole blocks, which reach into the tag's place but never beyond it.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use crate::vaes::{self, Simd};
use crate::vaes128::AesNi;
use crate::{Backend, Block, Job, Key, POWERS};

/// Proof that the processor has AVX2, VAES and VPCLMULQDQ.
#[derive(Clone, Copy)]
pub(crate) struct Vaes256(AesNi);

impl Vaes256 {
    /// The proof, if the processor has them.
    pub(crate) fn detect() -> Option<Self> {
        let narrow = AesNi::detect()?;
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq"))
        .then_some(Self(narrow))
    }

    /// The proof by a key, which exists only where `detect` found the instructions that its backend needs.
    #[inline(always)]
    fn proved_by(key: &Key) -> Option<Self> {
        if key.backend() == Backend::Vaes256 { AesNi::proved_by(key).map(Self) } else { None }
    }

    /// Fills in the round keys and the powers of H.
    pub(crate) fn expand(self, this: &mut Key, key: &[u8]) {
        vaes::expand(self.0, this, key, Self::LANES);
    }

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn two(self, low: __m128i, high: __m128i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set_m128i(high, low) }
    }

    #[inline(always)]
    fn second(self, v: __m256i) -> __m128i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_extracti128_si256::<1>(v) }
    }
}

impl Simd for Vaes256 {
    type V = __m256i;
    const LANES: usize = 2;

    #[inline(always)]
    fn narrow(self) -> AesNi {
        self.0
    }
    #[inline(always)]
    fn splat(self, block: __m128i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_broadcastsi128_si256(block) }
    }
    #[inline(always)]
    fn widen(self, block: __m128i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_zextsi128_si256(block) }
    }
    #[inline(always)]
    fn first(self, v: __m256i) -> __m128i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_castsi256_si128(v) }
    }
    #[inline(always)]
    fn fold<const P: usize>(self, vectors: &[__m256i; P]) -> __m256i {
        match vectors.as_slice() {
            [a, b] => {
                // SAFETY: `self` proves AVX2.
                let low = unsafe { _mm256_permute2x128_si256::<0x20>(*a, *b) };
                // SAFETY: as above.
                let high = unsafe { _mm256_permute2x128_si256::<0x31>(*a, *b) };
                self.xor(low, high)
            }
            [a, ..] => self.widen(self.0.xor(self.first(*a), self.second(*a))),
            [] => self.zero(),
        }
    }
    #[inline(always)]
    fn gather<const P: usize>(self, blocks: &[__m128i; P]) -> __m256i {
        match blocks.as_slice() {
            [a, b] => self.two(*a, *b),
            [a, ..] => self.widen(*a),
            [] => self.zero(),
        }
    }
    #[inline(always)]
    fn scatter<const P: usize>(self, v: __m256i) -> [__m128i; P] {
        let mut blocks = [self.first(v); P];
        if let Some(second) = blocks.get_mut(1) {
            *second = self.second(v);
        }
        blocks
    }
    #[inline(always)]
    fn counters(self, vector: u32) -> __m256i {
        // SAFETY: `self` proves AVX2.
        let first = unsafe { _mm256_set_epi32(0, 0, 0, 2, 0, 0, 0, 1) };
        let step = self.splat(self.0.pair(u64::from(2 * vector), 0));
        // SAFETY: `self` proves AVX2.
        let sum = unsafe { _mm256_add_epi32(first, step) };
        self.reverse(sum)
    }
    #[inline(always)]
    fn counter(self, counter: u32) -> __m256i {
        self.splat(self.0.counter(counter))
    }
    #[inline(always)]
    fn with_last(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_blend_epi32::<0xf0>(a, b) }
    }
    #[inline(always)]
    fn blocks(self, table: &[Block; POWERS + 2], at: usize) -> __m256i {
        let blocks: &[Block; 2] = match table.get(at..).and_then(<[Block]>::first_chunk) {
            Some(blocks) => blocks,
            None => return self.zero(),
        };
        // SAFETY: an unaligned read of exactly the bytes that are borrowed.
        unsafe { _mm256_loadu_si256(blocks.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load(self, text: &[u8]) -> __m256i {
        let Some(bytes) = text.first_chunk::<32>() else { return self.zero() };
        // SAFETY: an unaligned read of exactly the bytes that are borrowed.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store(self, text: &mut [u8], v: __m256i) {
        let Some(bytes) = text.first_chunk_mut::<32>() else { return };
        // SAFETY: an unaligned write of exactly the bytes that are borrowed.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v) };
    }
    #[inline(always)]
    fn load_part(self, text: &[u8], len: usize) -> __m256i {
        if len >= 32 {
            return self.load(text);
        }
        let (low, high) = text.split_at_checked(16).unwrap_or((text, &[]));
        self.two(self.0.load_part(low, len), self.0.load_part(high, len.saturating_sub(16)))
    }
    #[inline(always)]
    fn store_part(self, text: &mut [u8], v: __m256i, len: usize) {
        if len >= 32 {
            return self.store(text, v);
        }
        self.0.store_part(text, self.first(v), len);
        if let Some(high) = text.get_mut(16..) {
            self.0.store_part(high, self.second(v), len.saturating_sub(16));
        }
    }
    #[inline(always)]
    fn keep(self, v: __m256i, len: usize) -> __m256i {
        if len >= 32 {
            return v;
        }
        let low = self.0.keep(self.first(v), len);
        self.two(low, self.0.keep(self.second(v), len.saturating_sub(16)))
    }
    #[inline(always)]
    fn load_head(self, text: &[u8], len: usize) -> __m256i {
        self.two(self.0.pair(0, 0), self.0.load_part(text, len))
    }
    #[inline(always)]
    fn store_head(self, text: &mut [u8], v: __m256i, len: usize) {
        self.0.store_part(text, self.second(v), len);
    }
    #[inline(always)]
    fn keep_head(self, v: __m256i, len: usize) -> __m256i {
        self.two(self.0.pair(0, 0), self.0.keep(self.second(v), len))
    }

    #[inline(always)]
    fn hold(self, v: __m256i) -> __m256i {
        #[inline]
        #[target_feature(enable = "avx")]
        fn hold(mut v: __m256i) -> __m256i {
            // SAFETY: no instruction; `v` stays in its register.
            unsafe {
                core::arch::asm!("/* {0} */", inout(ymm_reg) v, options(nomem, nostack, preserves_flags))
            };
            v
        }
        // SAFETY: `self` proves the instructions.
        unsafe { hold(v) }
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn xor3(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        self.xor(self.xor(a, b), c)
    }
    #[inline(always)]
    fn reverse(self, v: __m256i) -> __m256i {
        let order = self.splat(self.0.pair(0x0809_0a0b_0c0d_0e0f, 0x0001_0203_0405_0607));
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_shuffle_epi8(v, order) }
    }
    #[inline(always)]
    fn swap_halves(self, v: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_shuffle_epi32::<0x4e>(v) }
    }
    #[inline(always)]
    fn halves_added(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves AVX2.
        let low = unsafe { _mm256_unpacklo_epi64(a, b) };
        // SAFETY: as above.
        let high = unsafe { _mm256_unpackhi_epi64(a, b) };
        self.xor(low, high)
    }
    #[inline(always)]
    fn round(self, state: __m256i, key: __m256i) -> __m256i {
        // SAFETY: `self` proves VAES.
        unsafe { _mm256_aesenc_epi128(state, key) }
    }
    #[inline(always)]
    fn last_round(self, state: __m256i, key: __m256i) -> __m256i {
        // SAFETY: `self` proves VAES.
        unsafe { _mm256_aesenclast_epi128(state, key) }
    }
    #[inline(always)]
    fn multiply<const HALVES: i32>(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves VPCLMULQDQ.
        unsafe { _mm256_clmulepi64_epi128::<HALVES>(a, b) }
    }
}

/// Seals or opens jobs whose keys are of this backend.
pub(crate) fn run<const OPEN: bool>(jobs: &mut [Job<'_>]) {
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,aes,pclmulqdq,ssse3,sse4.1")]
    fn enabled<const OPEN: bool>(cpu: Vaes256, jobs: &mut [Job<'_>]) {
        vaes::burst::<Vaes256, 2, 2, 2, OPEN>(cpu, jobs);
    }
    let Some(cpu) = jobs.first().and_then(|job| Vaes256::proved_by(job.key)) else { return };
    // SAFETY: `cpu` proves the instructions.
    unsafe { enabled::<OPEN>(cpu, jobs) };
}
