//! The inbound SAD: which SA an ESP packet names (RFC 4301 4.1: SPI and destination address).
//!
//! Built once from all SAs and never changed; a rekey builds a new one. The cost does not grow with their number.

use super::address::Address;
use super::hash::{FixedMap, HashKey, Seed};

/// The most keys that one pass of [`Sad::lookup_burst`] interleaves.
pub const BURST: usize = 64;

/// What a look-up gives where there is no SA; no SA can have this index.
pub const NO_SA: u32 = u32::MAX;

/// SPI and destination address of a packet.
pub type SadKey<A> = (u32, A);

/// The inbound SAs whose outer header is of one IP version.
#[derive(Debug, Clone)]
pub struct Sad<A> {
    map: FixedMap<SadKey<A>, u32>,
}

/// The same SPI and destination came twice: the place of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SA {0} has the SPI and destination of one before it")]
pub struct DuplicateSa(pub usize);

impl<A: Address> Sad<A>
where
    SadKey<A>: HashKey,
{
    /// Builds the table of (key, index).
    ///
    /// # Errors
    ///
    /// [`DuplicateSa`].
    pub fn build(entries: &[(SadKey<A>, u32)], seed: Seed) -> Result<Self, DuplicateSa> {
        Ok(Self { map: FixedMap::build(seed, entries).map_err(DuplicateSa)? })
    }

    /// The number of SAs.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no SA.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The index of the SA that `key` names.
    #[inline(always)]
    pub fn lookup(&self, key: SadKey<A>) -> Option<u32> {
        self.map.get(key)
    }

    /// Looks up every key: `results[i]` is the index for `keys[i]`, or [`NO_SA`]. Works through [`BURST`] keys at a
    /// time with their cache misses side by side. The shorter of the two slices counts.
    pub fn lookup_burst(&self, keys: &[SadKey<A>], results: &mut [u32]) {
        for (keys, results) in keys.chunks(BURST).zip(results.chunks_mut(BURST)) {
            let mut hashes = [0; BURST];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.map.hash(*key);
                self.map.prefetch_place(*hash);
            }
            let mut places = [0; BURST];
            for ((place, hash), _) in places.iter_mut().zip(hashes).zip(keys) {
                *place = self.map.place(hash);
            }
            for ((place, key), result) in places.iter().zip(keys).zip(results) {
                *result = self.map.get_at(*place, *key).unwrap_or(NO_SA);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_sa_with_the_same_key_is_refused() {
        let entries = [((256, 1u32), 0), ((256, 2), 1), ((256, 1), 2)];
        assert_eq!(Sad::build(&entries, Seed::random()).unwrap_err(), DuplicateSa(2));
    }

    proptest! {
        #[test]
        fn agrees_with_a_hash_map(model in proptest::collection::hash_map((0u32..64, 0u128..64), 0u32..1000, 0..200)) {
            let entries: Vec<_> = model.iter().map(|(key, index)| (*key, *index)).collect();
            let sad = Sad::build(&entries, Seed::random()).unwrap();
            let keys: Vec<(u32, u128)> = (0..64).flat_map(|spi| (0..64).map(move |address| (spi, address))).collect();
            let mut results = vec![0; keys.len()];
            sad.lookup_burst(&keys, &mut results);
            let model: HashMap<(u32, u128), u32> = model;
            for (key, result) in keys.iter().zip(results) {
                prop_assert_eq!(sad.lookup(*key), model.get(key).copied());
                prop_assert_eq!(result, model.get(key).copied().unwrap_or(NO_SA));
            }
        }
    }
}
