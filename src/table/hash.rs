//! A fast keyed hash of integers, and a hash table that is built once and then only read.
//!
//! The hash multiplies two keyed words and folds the 128-bit product, as wyhash and rapidhash do. The key is
//! drawn at random for each process, so an attacker who cannot see which packets are slow cannot choose keys
//! that collide: he would have to guess 64 bits. It is not a cryptographic hash: one who can measure the
//! time of single look-ups finely enough may in time learn the key. For that reason no table lets a remote
//! party add keys without a bound on their number.

use std::collections::HashSet;

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

    /// Another key, for when this one fails.
    pub fn next(self) -> Self {
        Self::new(mix(self.first), mix(self.second))
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

/// A perfect hash for a set of hashes that never changes: each has a place of its own, so that a look-up reads one
/// place and never walks. Walking costs little memory traffic, but where a walk ends is random: with linear
/// probing the mispredicted branches cost more than everything else together (a NAT hit: 5.7 ns then, 2.8 now).
///
/// The low bits of a hash choose a group; each group has a multiplier, found by trial when the table is built, that
/// sends all its members to free places (hash and displace, Belazzougui et al. 2009).
#[derive(Debug, Clone)]
pub struct Places {
    multipliers: Box<[u64]>,
    /// Places are the top bits of the product: this is how many are shifted out.
    shift: u32,
}

/// Multipliers tried for a group before it counts as impossible.
const TRIALS: u64 = 1 << 14;

impl Places {
    /// Finds places for `hashes`. None if there are none, as when two of them are equal.
    pub fn build(hashes: &[u64]) -> Option<Self> {
        let bits = (hashes.len() * 2).next_power_of_two().max(2).trailing_zeros();
        let groups = (hashes.len() / 2).next_power_of_two();
        let mut places = Self { multipliers: vec![1; groups].into(), shift: 64 - bits };
        let mut members: Vec<Vec<u64>> = vec![Vec::new(); groups];
        for &hash in hashes {
            members.get_mut(hash as usize & (groups - 1))?.push(hash);
        }
        let mut order: Vec<usize> = (0..groups).collect();
        // The largest first, while there is most room.
        order.sort_by_key(|&group| std::cmp::Reverse(members.get(group).map_or(0, Vec::len)));
        let mut taken = vec![false; places.len()];
        let mut wanted = Vec::new();
        for group in order {
            let members = members.get(group)?;
            let multiplier = (1..TRIALS).map(mix).find(|multiplier| {
                wanted.clear();
                members.iter().all(|hash| {
                    let place = (hash.wrapping_mul(*multiplier) >> places.shift) as usize;
                    let free = taken.get(place) == Some(&false) && !wanted.contains(&place);
                    wanted.push(place);
                    free
                })
            })?;
            *places.multipliers.get_mut(group)? = multiplier;
            for &place in &wanted {
                *taken.get_mut(place)? = true;
            }
        }
        Some(places)
    }

    /// The number of places; at least two for each hash.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        1 << (64 - self.shift)
    }

    /// The place of a hash, below [`Self::len`]; for a stranger, some place.
    #[inline(always)]
    pub fn of(&self, hash: u64) -> usize {
        let group = hash as usize & self.multipliers.len().wrapping_sub(1);
        let multiplier = self.multipliers.get(group).copied().unwrap_or(1);
        (hash.wrapping_mul(multiplier) >> self.shift) as usize
    }

    /// Starts loading what [`Self::of`] will read.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        if let Some(multiplier) = self.multipliers.get(hash as usize & self.multipliers.len().wrapping_sub(1))
        {
            super::prefetch::prefetch_read(multiplier);
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        size_of_val::<[u64]>(&self.multipliers)
    }
}

/// The multiplier of one trial: an odd number with no pattern (SplitMix64's finaliser).
fn mix(trial: u64) -> u64 {
    let mut word = trial.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    (word ^ word >> 31) | 1
}

/// A hash table that is built once, at most half full, with a place of its own for each key.
///
/// A place holds key and value side by side: a look-up in a cold table costs one cache line for them and one,
/// of a table 6 to 12 times smaller, for the place.
#[derive(Debug, Clone)]
pub struct FixedMap<K, V> {
    seed: Seed,
    places: Places,
    /// Places that no key has hold a copy of the first entry: its key is not looked for there, and one comparison
    /// tells all strangers, where a mark for empty places would be a second one, and random.
    slots: Box<[(K, V)]>,
    length: usize,
}

impl<K: HashKey + Copy + Eq + std::hash::Hash, V: Copy> FixedMap<K, V> {
    /// Builds the table from `entries`.
    ///
    /// # Errors
    ///
    /// The place in `entries` of the first entry whose key came before.
    pub fn build(seed: Seed, entries: &[(K, V)]) -> Result<Self, usize> {
        let mut present = HashSet::with_capacity(entries.len());
        if let Some(place) = entries.iter().position(|(key, _)| !present.insert(*key)) {
            return Err(place);
        }
        let mut seed = seed;
        loop {
            let hashes: Vec<u64> = entries.iter().map(|(key, _)| key.keyed_hash(&seed)).collect();
            // Distinct keys fail only where their hashes meet, which the next seed makes unlikely anew.
            let Some(places) = Places::build(&hashes) else {
                seed = seed.next();
                continue;
            };
            let slots = entries.first().map_or(Vec::new(), |first| vec![*first; places.len()]);
            let mut slots = slots.into_boxed_slice();
            for (entry, hash) in entries.iter().zip(hashes) {
                if let Some(slot) = slots.get_mut(places.of(hash)) {
                    *slot = *entry;
                }
            }
            return Ok(Self { seed, places, slots, length: entries.len() });
        }
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
        self.get_at(self.places.of(self.hash(key)), key)
    }

    /// The hash to give to [`Self::prefetch_place`] and [`Self::place`].
    #[inline(always)]
    pub fn hash(&self, key: K) -> u64 {
        key.keyed_hash(&self.seed)
    }

    /// First step of a look-up in a burst: starts loading what tells the place of a hash.
    #[inline(always)]
    pub fn prefetch_place(&self, hash: u64) {
        self.places.prefetch(hash);
    }

    /// Second step: the place of a hash, which starts loading.
    #[inline(always)]
    pub fn place(&self, hash: u64) -> usize {
        let place = self.places.of(hash);
        if let Some(slot) = self.slots.get(place) {
            super::prefetch::prefetch_read(slot);
        }
        place
    }

    /// Last step: the value of `key`, whose place is known.
    #[inline(always)]
    pub fn get_at(&self, place: usize, key: K) -> Option<V> {
        match self.slots.get(place) {
            Some((present, value)) if *present == key => Some(*value),
            _ => None,
        }
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
