//! AVX-512 with VAES and VPCLMULQDQ: four blocks a vector.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use crate::vaes::{self, Simd};
use crate::vaes128::AesNi;
use crate::{Backend, Block, Job, Key, POWERS};

/// Proof that the processor has AVX-512 (F, BW, VL, DQ), BMI2, VAES and VPCLMULQDQ.
#[derive(Clone, Copy)]
pub(crate) struct Vaes512(AesNi);

impl Vaes512 {
    /// The proof, if the processor has them.
    pub(crate) fn detect() -> Option<Self> {
        let narrow = AesNi::detect()?;
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq"))
        .then_some(Self(narrow))
    }

    /// The proof by a key, which exists only where `detect` found the instructions that its backend needs.
    #[inline(always)]
    fn proved_by(key: &Key) -> Option<Self> {
        if key.backend() == Backend::Vaes512 { AesNi::proved_by(key).map(Self) } else { None }
    }

    /// Fills in the round keys and the powers of H.
    pub(crate) fn expand(self, this: &mut Key, key: &[u8]) {
        vaes::expand(self.0, this, key, Self::LANES);
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    /// Lanes a0 + a2, a1 + a3, b0 + b2, b1 + b3.
    #[inline(always)]
    fn lanes_added(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        let low = unsafe { _mm512_shuffle_i64x2::<0x44>(a, b) };
        // SAFETY: as above.
        let high = unsafe { _mm512_shuffle_i64x2::<0xee>(a, b) };
        self.xor(low, high)
    }

    /// A bit for each of the first `len` bytes.
    #[inline(always)]
    fn mask(self, len: usize) -> u64 {
        // SAFETY: `self` proves BMI2.
        unsafe { _bzhi_u64(u64::MAX, len.min(64) as u32) }
    }
}

impl Simd for Vaes512 {
    type V = __m512i;
    const LANES: usize = 4;

    #[inline(always)]
    fn narrow(self) -> AesNi {
        self.0
    }
    #[inline(always)]
    fn splat(self, block: __m128i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_broadcast_i32x4(block) }
    }
    #[inline(always)]
    fn widen(self, block: __m128i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_zextsi128_si512(block) }
    }
    #[inline(always)]
    fn first(self, v: __m512i) -> __m128i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_castsi512_si128(v) }
    }
    #[inline(always)]
    fn fold<const P: usize>(self, vectors: &[__m512i; P]) -> __m512i {
        match vectors.as_slice() {
            [a, b, c, d] => {
                let left = self.lanes_added(*a, *b);
                let right = self.lanes_added(*c, *d);
                // SAFETY: `self` proves AVX-512F.
                let even = unsafe { _mm512_shuffle_i64x2::<0x88>(left, right) };
                // SAFETY: as above.
                let odd = unsafe { _mm512_shuffle_i64x2::<0xdd>(left, right) };
                self.xor(even, odd)
            }
            [a, ..] => {
                // SAFETY: `self` proves AVX-512F.
                let low = unsafe { _mm512_castsi512_si256(*a) };
                // SAFETY: as above.
                let high = unsafe { _mm512_extracti64x4_epi64::<1>(*a) };
                // SAFETY: `self` proves AVX-512F, which includes AVX2.
                let half = unsafe { _mm256_xor_si256(low, high) };
                // SAFETY: as above.
                let low = unsafe { _mm256_castsi256_si128(half) };
                // SAFETY: as above.
                let high = unsafe { _mm256_extracti128_si256::<1>(half) };
                self.widen(self.0.xor(low, high))
            }
            [] => self.zero(),
        }
    }
    #[inline(always)]
    fn gather<const P: usize>(self, blocks: &[__m128i; P]) -> __m512i {
        match blocks.as_slice() {
            [a, b, c, d] => {
                // SAFETY: `self` proves AVX-512F, which includes AVX2.
                let low = unsafe { _mm256_set_m128i(*b, *a) };
                // SAFETY: as above.
                let high = unsafe { _mm256_set_m128i(*d, *c) };
                // SAFETY: as above.
                let low = unsafe { _mm512_castsi256_si512(low) };
                // SAFETY: as above.
                unsafe { _mm512_inserti64x4::<1>(low, high) }
            }
            [a, ..] => self.widen(*a),
            [] => self.zero(),
        }
    }
    #[inline(always)]
    fn scatter<const P: usize>(self, v: __m512i) -> [__m128i; P] {
        let mut blocks = [self.first(v); P];
        if let [_, b, c, d] = blocks.as_mut_slice() {
            // SAFETY: `self` proves AVX-512F.
            *b = unsafe { _mm512_extracti32x4_epi32::<1>(v) };
            // SAFETY: as above.
            *c = unsafe { _mm512_extracti32x4_epi32::<2>(v) };
            // SAFETY: as above.
            *d = unsafe { _mm512_extracti32x4_epi32::<3>(v) };
        }
        blocks
    }
    #[inline(always)]
    fn counters(self, vector: u32) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        let first = unsafe { _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1) };
        // SAFETY: as above.
        let step = unsafe { _mm512_set1_epi32((4 * vector).cast_signed()) };
        // SAFETY: as above.
        let sum = unsafe { _mm512_maskz_add_epi32(0x1111, first, step) };
        self.reverse(sum)
    }
    #[inline(always)]
    fn counter(self, counter: u32) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_maskz_set1_epi32(0x8888, counter.to_be().cast_signed()) }
    }
    #[inline(always)]
    fn with_last(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_mask_blend_epi64(0xc0, a, b) }
    }
    #[inline(always)]
    fn blocks(self, table: &[Block; POWERS + 2], at: usize) -> __m512i {
        let blocks: &[Block; 4] = match table.get(at..).and_then(<[Block]>::first_chunk) {
            Some(blocks) => blocks,
            None => return self.zero(),
        };
        // SAFETY: an unaligned read of exactly the bytes that are borrowed.
        unsafe { _mm512_loadu_epi8(blocks.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load(self, text: &[u8]) -> __m512i {
        let Some(bytes) = text.first_chunk::<64>() else { return self.load_part(text, 64) };
        // SAFETY: an unaligned read of exactly the bytes that are borrowed.
        unsafe { _mm512_loadu_epi8(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store(self, text: &mut [u8], v: __m512i) {
        let Some(bytes) = text.first_chunk_mut::<64>() else { return self.store_part(text, v, 64) };
        // SAFETY: an unaligned write of exactly the bytes that are borrowed.
        unsafe { _mm512_storeu_epi8(bytes.as_mut_ptr().cast(), v) };
    }
    #[inline(always)]
    fn load_part(self, text: &[u8], len: usize) -> __m512i {
        let mask = self.mask(len.min(text.len()));
        // SAFETY: the mask has no bit beyond the end of `text`; bytes without a bit are not read.
        unsafe { _mm512_maskz_loadu_epi8(mask, text.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_part(self, text: &mut [u8], v: __m512i, len: usize) {
        let mask = self.mask(len.min(text.len()));
        // SAFETY: the mask has no bit beyond the end of `text`; bytes without a bit are not written.
        unsafe { _mm512_mask_storeu_epi8(text.as_mut_ptr().cast(), mask, v) };
    }
    #[inline(always)]
    fn keep(self, v: __m512i, len: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512BW.
        unsafe { _mm512_maskz_mov_epi8(self.mask(len), v) }
    }
    #[inline(always)]
    fn load_head(self, text: &[u8], len: usize) -> __m512i {
        let mask = self.mask(len.min(text.len())) << 16;
        // SAFETY: bit 16 of the mask is the first byte of `text` and no bit is beyond its end; bytes without a bit
        // are not read.
        unsafe { _mm512_maskz_loadu_epi8(mask, text.as_ptr().wrapping_sub(16).cast()) }
    }
    #[inline(always)]
    fn store_head(self, text: &mut [u8], v: __m512i, len: usize) {
        let mask = self.mask(len.min(text.len())) << 16;
        // SAFETY: bit 16 of the mask is the first byte of `text` and no bit is beyond its end; bytes without a bit
        // are not written.
        unsafe { _mm512_mask_storeu_epi8(text.as_mut_ptr().wrapping_sub(16).cast(), mask, v) };
    }
    #[inline(always)]
    fn keep_head(self, v: __m512i, len: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512BW.
        unsafe { _mm512_maskz_mov_epi8(self.mask(len) << 16, v) }
    }

    #[inline(always)]
    fn hold(self, v: __m512i) -> __m512i {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn hold(mut v: __m512i) -> __m512i {
            // SAFETY: no instruction; `v` stays in its register.
            unsafe {
                core::arch::asm!("/* {0} */", inout(zmm_reg) v, options(nomem, nostack, preserves_flags))
            };
            v
        }
        // SAFETY: `self` proves the instructions.
        unsafe { hold(v) }
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn xor3(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_ternarylogic_epi64::<0x96>(a, b, c) }
    }
    #[inline(always)]
    fn reverse(self, v: __m512i) -> __m512i {
        let order = self.splat(self.0.pair(0x0809_0a0b_0c0d_0e0f, 0x0001_0203_0405_0607));
        // SAFETY: `self` proves AVX-512BW.
        unsafe { _mm512_shuffle_epi8(v, order) }
    }
    #[inline(always)]
    fn swap_halves(self, v: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_shuffle_epi32::<0x4e>(v) }
    }
    #[inline(always)]
    fn halves_added(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: `self` proves AVX-512F.
        let low = unsafe { _mm512_unpacklo_epi64(a, b) };
        // SAFETY: as above.
        let high = unsafe { _mm512_unpackhi_epi64(a, b) };
        self.xor(low, high)
    }
    #[inline(always)]
    fn round(self, state: __m512i, key: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F and VAES.
        unsafe { _mm512_aesenc_epi128(state, key) }
    }
    #[inline(always)]
    fn last_round(self, state: __m512i, key: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F and VAES.
        unsafe { _mm512_aesenclast_epi128(state, key) }
    }
    #[inline(always)]
    fn multiply<const HALVES: i32>(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512F and VPCLMULQDQ.
        unsafe { _mm512_clmulepi64_epi128::<HALVES>(a, b) }
    }
}

/// Seals or opens jobs whose keys are of this backend.
pub(crate) fn run<const OPEN: bool>(jobs: &mut [Job<'_>]) {
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi2,vaes,vpclmulqdq,aes,pclmulqdq,ssse3,sse4.1"
    )]
    fn enabled<const OPEN: bool>(cpu: Vaes512, jobs: &mut [Job<'_>]) {
        vaes::burst::<Vaes512, 4, 1, 2, OPEN>(cpu, jobs);
    }
    let Some(cpu) = jobs.first().and_then(|job| Vaes512::proved_by(job.key)) else { return };
    // SAFETY: `cpu` proves the instructions.
    unsafe { enabled::<OPEN>(cpu, jobs) };
}
