//! A fast keyed hash of integers, and a hash table that is built once and then only read.
//!
//! The hash multiplies two keyed words and folds the 128-bit product, as wyhash and rapidhash do. The key is
//! drawn at random for each process, so an attacker who cannot see which packets are slow cannot choose keys
//! that collide: he would have to guess 64 bits. It is not a cryptographic hash: one who can measure the
//! time of single look-ups finely enough may in time learn the key. For that reason no table lets a remote
//! party add keys without a bound on their number.

/// The key of the hash.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    first: u64,
    second: u64,
}

impl Seed {
    /// A key from the thread's cryptographic generator.
    pub fn random() -> Self {
        Self::new(rand::random(), rand::random())
    }

    /// A key from two words, for tests and benchmarks that must repeat.
    pub const fn new(first: u64, second: u64) -> Self {
        // An even factor would lose high bits of the other one.
        Self { first, second: second | 1 }
    }
}

/// A key of a hash table.
pub trait HashKey {
    /// The keyed hash: all 64 bits are usable.
    fn keyed_hash(&self, seed: &Seed) -> u64;
}

#[inline(always)]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product as u64) ^ (product >> 64) as u64
}

impl HashKey for u64 {
    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        // The second fold matters: after one, keys that differ in few high bits still share their low bits.
        fold(fold(self ^ seed.first, seed.second) ^ seed.first, 0x9E37_79B9_7F4A_7C15)
    }
}

impl HashKey for u32 {
    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        u64::from(*self).keyed_hash(seed)
    }
}

impl HashKey for (u64, u64) {
    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        fold(fold(self.0 ^ seed.first, self.1 ^ seed.second) ^ self.1, seed.first | 1)
    }
}

impl HashKey for u128 {
    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        ((*self >> 64) as u64, *self as u64).keyed_hash(seed)
    }
}

impl HashKey for (u32, u32) {
    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        (u64::from(self.0) << 32 | u64::from(self.1)).keyed_hash(seed)
    }
}

impl HashKey for (u32, u128) {
    #[inline(always)]
    fn keyed_hash(&self, seed: &Seed) -> u64 {
        (u64::from(self.0), self.1.keyed_hash(seed)).keyed_hash(seed)
    }
}

/// A hash table with open addressing and linear probing, at most half full, built once.
///
/// A slot holds key and value side by side: a hit in a cold table costs one cache line.
#[derive(Debug)]
pub struct FixedMap<K, V> {
    seed: Seed,
    mask: usize,
    slots: Box<[Option<(K, V)>]>,
    length: usize,
}

impl<K: HashKey + Copy + Eq, V: Copy> FixedMap<K, V> {
    /// Builds the table from `entries`.
    ///
    /// # Errors
    ///
    /// The place in `entries` of the first entry whose key came before.
    pub fn build(seed: Seed, entries: &[(K, V)]) -> Result<Self, usize> {
        let size = (entries.len() * 2).next_power_of_two().max(2);
        let mut slots: Vec<Option<(K, V)>> = vec![None; size];
        let mask = size - 1;
        for (place, &(key, value)) in entries.iter().enumerate() {
            let mut position = key.keyed_hash(&seed) as usize & mask;
            // Half the slots stay empty, so the walk ends.
            while let Some(slot) = slots.get_mut(position) {
                match slot {
                    Some((present, _)) if *present == key => return Err(place),
                    Some(_) => position = (position + 1) & mask,
                    None => {
                        *slot = Some((key, value));
                        break;
                    }
                }
            }
        }
        Ok(Self { seed, mask, slots: slots.into_boxed_slice(), length: entries.len() })
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the table holds nothing.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The value of `key`.
    #[inline(always)]
    pub fn get(&self, key: K) -> Option<V> {
        self.get_hashed(self.hash(key), key)
    }

    /// The hash to give to [`Self::prefetch`] and [`Self::get_hashed`].
    #[inline(always)]
    pub fn hash(&self, key: K) -> u64 {
        key.keyed_hash(&self.seed)
    }

    /// Starts loading the slot where a key with this hash would be.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        if let Some(slot) = self.slots.get(hash as usize & self.mask) {
            super::prefetch::prefetch_read(slot);
        }
    }

    /// The value of `key`, whose hash is known.
    #[inline(always)]
    pub fn get_hashed(&self, hash: u64, key: K) -> Option<V> {
        let mut position = hash as usize & self.mask;
        // Half the slots are empty: the walk ends at the first of them.
        while let Some(Some((present, value))) = self.slots.get(position) {
            if *present == key {
                return Some(*value);
            }
            position = (position + 1) & self.mask;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn duplicate_keys_are_refused_by_place() {
        assert_eq!(FixedMap::build(Seed::random(), &[(1u32, 'a'), (2, 'b'), (1, 'c')]).unwrap_err(), 2);
    }

    #[test]
    fn an_empty_table_answers() {
        let map = FixedMap::<u32, u32>::build(Seed::random(), &[]).unwrap();
        assert!(map.is_empty());
        assert_eq!(map.get(0), None);
    }

    #[test]
    fn regular_keys_spread() {
        // Strides in every part of the key: no slot may gather much more than its share.
        for shift in [0, 8, 16, 24, 32, 40, 48] {
            let seed = Seed::new(0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321);
            let mut low = [0u32; 1024];
            let mut high = [0u32; 1024];
            for key in 0..16384u64 {
                let hash = (key << shift).keyed_hash(&seed);
                low[hash as usize % 1024] += 1;
                high[(hash >> 54) as usize] += 1;
            }
            // The mean is 16; a Poisson slot above 48 is less likely than 1e-9.
            assert!(low.iter().chain(&high).all(|&count| count < 48), "shift {shift}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_hash_map(pairs in proptest::collection::hash_map(any::<(u32, u32)>(), any::<u32>(), 0..300),
                                  strangers in proptest::collection::vec(any::<(u32, u32)>(), 50),
                                  seed in any::<(u64, u64)>()) {
            let pairs: HashMap<(u32, u32), u32> = pairs;
            let entries: Vec<_> = pairs.iter().map(|(key, value)| (*key, *value)).collect();
            let map = FixedMap::build(Seed::new(seed.0, seed.1), &entries).unwrap();
            for key in pairs.keys().chain(&strangers) {
                prop_assert_eq!(map.get(*key), pairs.get(key).copied());
            }
        }
    }
}
