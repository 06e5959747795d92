//! A handful of IPv4 routes, longest prefix first, with which an address is compared all at once.

use super::NO_ROUTE;
use super::arena::View;

/// The most routes: as many as the bits of the result's two halves.
pub const MOST: usize = 32;

/// Routes that share a vector.
const STEP: usize = 4;
/// Words of four routes in a block: their masks, prefixes and values, two to a word.
const WORDS: usize = 6;

/// Prefix, length of its mask in bits, value.
pub type Route = (u32, u8, u32);

/// The words of a block with these routes, in any order; none when they are too many. The first says how many fours there
/// are.
pub fn words(routes: impl Iterator<Item = Route>) -> Vec<u64> {
    let mut routes: Vec<Route> = routes.take(MOST + 1).collect();
    if routes.len() > MOST {
        return Vec::new();
    }
    // The first that covers an address is the longest that does.
    routes.sort_by_key(|(_, length, _)| std::cmp::Reverse(*length));
    // What a mask of zeros leaves is never 1: these cover nothing.
    routes.resize(routes.len().next_multiple_of(STEP), (1, 0, NO_ROUTE));
    let fours = routes.as_chunks::<STEP>().0;
    let mask = |length: u8| u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let words = fours.iter().flat_map(|[a, b, c, d]| {
        [
            pair(mask(a.1), mask(b.1)),
            pair(mask(c.1), mask(d.1)),
            pair(a.0, b.0),
            pair(c.0, d.0),
            pair(a.2, b.2),
            pair(c.2, d.2),
        ]
    });
    std::iter::once(fours.len() as u64).chain(words).collect()
}

/// Four numbers, of which a processor makes one vector.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct Four([u32; STEP]);

/// All routes of a table, read for a burst.
#[derive(Debug)]
pub struct Few {
    masks: [Four; MOST / STEP],
    prefixes: [Four; MOST / STEP],
    /// By place of the route; behind all of them, that of no route.
    values: [u32; MOST + STEP],
    /// Whether more than half of the places are used.
    more: bool,
}

impl Few {
    /// The routes that stand from this word on; `None` where none do.
    #[inline]
    pub fn read(view: View<'_>, at: u32) -> Option<Self> {
        let count = view.load(at) as usize;
        if count == 0 || count > MOST / STEP {
            return None;
        }
        let mut few = Self {
            masks: [Four([0; STEP]); MOST / STEP],
            prefixes: [Four([1; STEP]); MOST / STEP],
            values: [NO_ROUTE; MOST + STEP],
            more: count > MOST / STEP / 2,
        };
        let mut next = at + 1;
        let places = few.masks.iter_mut().zip(&mut few.prefixes).zip(few.values.as_chunks_mut::<STEP>().0);
        for ((mask, prefix), values) in places.take(count) {
            let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|word| view.load(next + word));
            let four =
                |low: u64, high: u64| [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
            (*mask, *prefix, *values) = (Four(four(a, b)), Four(four(c, d)), four(e, f));
            next += WORDS as u32;
        }
        Some(few)
    }

    /// The value of the longest prefix that covers `address`, or [`NO_ROUTE`].
    #[inline(always)]
    pub fn find(&self, address: u32) -> u32 {
        // The bit behind the last stands for none.
        let place = (u64::from(self.covers(address)) | 1 << MOST).trailing_zeros() as usize;
        self.values.get(place).copied().unwrap_or(NO_ROUTE)
    }

    /// Which of the routes cover the address, a bit each.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[allow(unsafe_code)]
    fn covers(&self, address: u32) -> u32 {
        // SAFETY: SSE2 is part of x86-64, and the function asks for nothing else.
        unsafe { self.covers_sse2(address) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "sse2")]
    fn covers_sse2(&self, address: u32) -> u32 {
        use std::arch::x86_64::{
            _mm_and_si128, _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32,
            _mm_set_epi32, _mm_set1_epi32,
        };
        let lanes = |Four([a, b, c, d]): Four| {
            _mm_set_epi32(d.cast_signed(), c.cast_signed(), b.cast_signed(), a.cast_signed())
        };
        let address = _mm_set1_epi32(address.cast_signed());
        let half = |masks: &[Four; 4], prefixes: &[Four; 4]| {
            let [a, b, c, d] = masks.map(|mask| _mm_and_si128(address, lanes(mask)));
            let [e, f, g, h] = prefixes.map(lanes);
            let (a, b, c, d) =
                (_mm_cmpeq_epi32(a, e), _mm_cmpeq_epi32(b, f), _mm_cmpeq_epi32(c, g), _mm_cmpeq_epi32(d, h));
            _mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d))).cast_unsigned()
        };
        let ([m0, m1, m2, m3, m4, m5, m6, m7], [p0, p1, p2, p3, p4, p5, p6, p7]) =
            (self.masks, self.prefixes);
        let first = half(&[m0, m1, m2, m3], &[p0, p1, p2, p3]);
        if self.more { first | half(&[m4, m5, m6, m7], &[p4, p5, p6, p7]) << 16 } else { first }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn covers(&self, address: u32) -> u32 {
        let fours = if self.more { MOST / STEP } else { MOST / STEP / 2 };
        let masks = self.masks.iter().take(fours).flat_map(|four| four.0);
        let prefixes = self.prefixes.iter().flat_map(|four| four.0);
        let covers = masks.zip(prefixes).map(|(mask, prefix)| address & mask == prefix);
        covers.enumerate().fold(0, |all, (place, covers)| all | u32::from(covers) << place)
    }
}
