//! From a hash to the number of a session: buckets of one cache line, with a tag of each hash.
//!
//! There are twice as many places as sessions. What finds its bucket full goes into one after it, and the full one
//! remembers how many have passed it by: a look-up goes on only where that number is not zero, which at a full table
//! is one bucket in fifty, and removing an entry undoes it exactly. No tombstones, no rehashing.

use std::io;

use crate::table::pages::{Pages, Zeroed};
use crate::table::prefetch::prefetch_read;

/// No session's number.
pub const NOWHERE: u32 = u32::MAX;
/// Entries of a bucket.
const PLACES: usize = 8;
/// Buckets that an entry may be away from its own. At a full table (load one half) not one in 10^12 goes as far.
const REACH: usize = 16;

/// Numbers and tags of up to eight sessions.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// 16 bits of each hash; zero where there is none.
    tags: [u16; PLACES],
    /// Sessions, where there are tags.
    ids: [u32; PLACES],
    /// Entries that have passed this bucket by because it was full.
    passed: u32,
}

// SAFETY: numbers, which zero is a value of.
#[allow(unsafe_code)]
unsafe impl Zeroed for Bucket {}

impl Bucket {
    /// A bit for each place whose tag is this.
    #[inline(always)]
    fn matching(&self, tag: u16) -> u32 {
        equal(self.tags, tag)
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "the place is masked to the array's length")]
    const fn id(&self, place: u32) -> u32 {
        self.ids[place as usize % PLACES]
    }
}

/// Where sessions are, by the hash of one of their keys.
#[derive(Debug)]
pub struct Index {
    buckets: Pages<Bucket>,
    mask: usize,
}

/// A bit for each of the words that is this one. All eight are compared at once: a third of the instructions that
/// it takes one by one, and every packet of a session does it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn equal(words: [u16; PLACES], word: u16) -> u32 {
    // SAFETY: SSE2 is part of x86-64, and the function asks for nothing else.
    unsafe { equal_sse2(words, word) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn equal_sse2(words: [u16; PLACES], word: u16) -> u32 {
    use core::arch::x86_64::{
        _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set_epi16, _mm_set1_epi16, _mm_setzero_si128,
    };
    let [a, b, c, d, e, f, g, h] = words.map(u16::cast_signed);
    let same = _mm_cmpeq_epi16(_mm_set_epi16(h, g, f, e, d, c, b, a), _mm_set1_epi16(word.cast_signed()));
    _mm_movemask_epi8(_mm_packs_epi16(same, _mm_setzero_si128())) as u32
}

#[cfg(not(target_arch = "x86_64"))]
fn equal(words: [u16; PLACES], word: u16) -> u32 {
    words.iter().enumerate().fold(0, |found, (place, known)| found | u32::from(*known == word) << place)
}

#[inline(always)]
const fn tag_of(hash: u64) -> u16 {
    let tag = (hash >> 48) as u16;
    if tag == 0 { 1 } else { tag }
}

impl Index {
    /// Room for `sessions` sessions.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(sessions: usize) -> io::Result<Self> {
        let buckets = (2 * sessions).div_ceil(PLACES).next_power_of_two();
        Ok(Self { buckets: Pages::new(buckets)?, mask: buckets - 1 })
    }

    #[inline(always)]
    const fn place(&self, hash: u64, step: usize) -> usize {
        ((hash as usize) + step) & self.mask
    }

    /// Starts loading the bucket of a hash.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.place(hash, 0)) {
            prefetch_read(bucket);
        }
    }

    /// The session that the hash most likely means, or [`NOWHERE`]: to be prefetched. [`Index::find`] says which it is.
    #[inline(always)]
    #[must_use]
    pub fn likely(&self, hash: u64) -> u32 {
        let Some(bucket) = self.buckets.get(self.place(hash, 0)) else { return NOWHERE };
        let found = bucket.matching(tag_of(hash));
        if found == 0 { NOWHERE } else { bucket.id(found.trailing_zeros()) }
    }

    /// The session with this hash for which `is` holds.
    #[inline]
    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag_of(hash);
        for step in 0..REACH {
            let bucket = self.buckets.get(self.place(hash, step))?;
            let mut found = bucket.matching(tag);
            while found != 0 {
                let id = bucket.id(found.trailing_zeros());
                if is(id) {
                    return Some(id);
                }
                found &= found - 1;
            }
            if bucket.passed == 0 {
                return None;
            }
        }
        None
    }

    /// Adds a session. `false`, and nothing changed, when there is no place within reach.
    #[must_use]
    pub fn insert(&mut self, hash: u64, id: u32) -> bool {
        let free = (0..REACH).find(|&step| {
            let bucket = self.buckets.get(self.place(hash, step));
            bucket.is_some_and(|bucket| bucket.matching(0) != 0)
        });
        let Some(distance) = free else { return false };
        for step in 0..=distance {
            let place = self.place(hash, step);
            let Some(bucket) = self.buckets.slice_mut().get_mut(place) else { return false };
            if step < distance {
                bucket.passed += 1;
                continue;
            }
            let free = bucket.matching(0).trailing_zeros() as usize;
            if let (Some(tag), Some(known)) = (bucket.tags.get_mut(free), bucket.ids.get_mut(free)) {
                (*tag, *known) = (tag_of(hash), id);
            }
        }
        true
    }

    /// Takes a session out. Whether it was there.
    pub fn remove(&mut self, hash: u64, id: u32) -> bool {
        let tag = tag_of(hash);
        let position = (0..REACH).find_map(|step| {
            let bucket = self.buckets.get(self.place(hash, step))?;
            let mut places = bucket.tags.iter().zip(&bucket.ids);
            places.position(|(known, other)| *known == tag && *other == id).map(|place| (step, place))
        });
        let Some((distance, at)) = position else { return false };
        for step in 0..=distance {
            let place = self.place(hash, step);
            let Some(bucket) = self.buckets.slice_mut().get_mut(place) else { return false };
            if step < distance {
                bucket.passed = bucket.passed.saturating_sub(1);
            } else if let Some(tag) = bucket.tags.get_mut(at) {
                *tag = 0;
            }
        }
        true
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    #[test]
    fn all_places_of_a_tag_are_found() {
        for places in 0..256_u32 {
            for (own, other) in [(0, 1), (1, 0), (0x7fff, 0xffff), (0x8000, 0), (0xffff, 0x7fff)] {
                let mut bucket = Bucket { tags: [other; PLACES], ids: [0; PLACES], passed: 0 };
                (0..8).filter(|n| places >> n & 1 == 1).for_each(|n| bucket.tags[n] = own);
                let (mut found, mut seen) = (bucket.matching(own), 0);
                while found != 0 {
                    seen |= 1 << found.trailing_zeros();
                    found &= found - 1;
                }
                assert_eq!(seen, places);
            }
        }
    }

    #[test]
    fn a_bucket_that_overflows_is_followed_and_mended() {
        let mut index = Index::new(64).unwrap();
        // All for one bucket, with one tag: 128 places are within reach of 16 buckets.
        assert!((0..128).all(|id| index.insert(5, id)));
        assert!(!index.insert(5, 128));
        assert!((0..128).all(|id| index.find(5, |found| found == id).is_some()));
        assert!((0..128).rev().all(|id| index.remove(5, id)));
        assert!(!index.remove(5, 0));
        assert!(index.buckets.iter().all(|bucket| bucket.passed == 0 && bucket.tags == [0; PLACES]));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(operations in prop::collection::vec((any::<bool>(), 0u32..200), 0..600)) {
            // Each session has its hash; they meet in few buckets, so that everything happens.
            let hash = |id: u32| u64::from(id % 5) << 48 | u64::from(id / 5 % 4);
            let mut index = Index::new(512).unwrap();
            let mut model = BTreeSet::new();
            for (add, id) in operations {
                let known = model.contains(&id);
                if add && !known {
                    prop_assert!(index.insert(hash(id), id));
                    model.insert(id);
                } else if !add {
                    prop_assert_eq!(index.remove(hash(id), id), known);
                    model.remove(&id);
                }
            }
            for id in 0..200 {
                prop_assert_eq!(index.find(hash(id), |found| found == id).is_some(), model.contains(&id));
            }
        }
    }
}
