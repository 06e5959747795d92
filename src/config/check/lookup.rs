//! A map from prefixes, asked by longest match: the file may have as many routes as it likes.

use std::collections::HashMap;

use crate::config::prefix::Prefix;

/// Values by prefix. One lookup costs as many hashes as there are different lengths.
#[derive(Debug)]
pub(crate) struct PrefixMap<T> {
    entries: HashMap<Prefix, T>,
    /// Which lengths there are, IPv4 and IPv6.
    lengths: [[bool; 129]; 2],
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        PrefixMap { entries: HashMap::new(), lengths: [[false; 129]; 2] }
    }
}

impl<T> PrefixMap<T> {
    /// Keeps the value where the prefix has none yet; otherwise gives back the one it has.
    pub fn insert_first(&mut self, prefix: Prefix, value: T) -> Option<&T> {
        self.lengths[usize::from(prefix.is_ipv4())][usize::from(prefix.length())] = true;
        match self.entries.entry(prefix) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(value);
                None
            }
            std::collections::hash_map::Entry::Occupied(taken) => Some(taken.into_mut()),
        }
    }

    /// The value of the prefix, a default one where there is none yet.
    pub fn entry(&mut self, prefix: Prefix) -> &mut T
    where
        T: Default,
    {
        self.lengths[usize::from(prefix.is_ipv4())][usize::from(prefix.length())] = true;
        self.entries.entry(prefix).or_default()
    }

    /// Every prefix, in no order.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.entries.keys().copied()
    }

    /// The longest prefix that covers the whole of `wanted`.
    pub fn longest(&self, wanted: Prefix) -> Option<(Prefix, &T)> {
        self.covering(wanted).next()
    }

    /// Every prefix that covers the whole of `wanted`, longest first.
    pub fn covering(&self, wanted: Prefix) -> impl Iterator<Item = (Prefix, &T)> {
        let lengths = &self.lengths[usize::from(wanted.is_ipv4())];
        (0..=wanted.length()).rev().filter(|length| lengths[usize::from(*length)]).filter_map(move |length| {
            let prefix = Prefix::of(wanted.address(), length);
            self.entries.get(&prefix).map(|value| (prefix, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_longest_of_those_that_cover(
            entries in proptest::collection::vec((0u32..64, 24u8..=32), 0..20),
            wanted in (0u32..64, 24u8..=32),
        ) {
            let prefix = |(low, length): (u32, u8)| Prefix::of(std::net::Ipv4Addr::from_bits(low).into(), length);
            let mut map = PrefixMap::default();
            for entry in &entries {
                map.insert_first(prefix(*entry), ());
            }
            let wanted = prefix(wanted);
            let naive = entries.iter().map(|e| prefix(*e)).filter(|p| p.covers(wanted)).max_by_key(|p| p.length());
            prop_assert_eq!(map.longest(wanted).map(|(p, ())| p), naive);
        }
    }
}
