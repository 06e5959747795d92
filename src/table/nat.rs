//! Static 1:1 NAT: prefixes mapped onto prefixes of equal length, both ways, without state (RFC 3022 2.1).
//!
//! A set of rules of one IP version is built once and never changes. No two rules may overlap on either side, so
//! that what one direction translates the other translates back; it follows that at most one rule matches an
//! address, and the order of rules means nothing. A look-up probes one hash table for each distinct prefix length,
//! of which there is most often one: hosts. Up to [`INLINE`] rules are compared one by one instead.

use std::collections::BTreeMap;

use super::address::Address;
use super::hash::{FixedMap, Seed};

/// Rules up to which a set is compared in order: one comparison costs a third of a look-up by hash.
pub const INLINE: usize = 4;

/// One rule: the addresses under `original` appear as those under `translated`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<A> {
    /// First address of the prefix as its owner knows it.
    pub original: A,
    /// First address of the prefix as the other side knows it.
    pub translated: A,
    /// Length of both prefixes.
    pub length: u8,
}

/// Which side of the rules two of them share addresses on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The original prefixes.
    Original,
    /// The translated prefixes.
    Translated,
}

/// Why rules were refused. Numbers are places in the list of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NatError {
    /// Two rules share addresses.
    #[error("1:1 rules {first} and {second} overlap in their {side:?} prefixes")]
    Overlap {
        /// The rule with the shorter or equal prefix.
        first: usize,
        /// The rule inside it.
        second: usize,
        /// Where.
        side: Side,
    },
    /// A prefix is longer than an address.
    #[error("1:1 rule {0} has a prefix longer than the address")]
    LengthTooLong(usize),
    /// A prefix has bits set beyond its length.
    #[error("1:1 rule {0} has a prefix with host bits set")]
    HostBits(usize),
}

/// A translated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<A> {
    /// The new address.
    pub address: A,
    /// The place of the rule in the list the set was built from.
    pub rule: u32,
    /// What the change of address adds to an Internet checksum's complement, in one's-complement arithmetic over
    /// 16-bit words (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')). It is the same for all addresses of a rule,
    /// because they keep their host bits. For IPv6 it is also the whole change of a TCP or UDP checksum.
    pub checksum_delta: u16,
}

/// What one rule makes of addresses, one way.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping<A> {
    to: A,
    rule: u32,
    checksum_delta: u16,
}

impl<A: Address> Mapping<A> {
    #[inline(always)]
    fn apply(&self, mask: A, address: A) -> Translation<A> {
        Translation {
            address: self.to | (address & !mask),
            rule: self.rule,
            checksum_delta: self.checksum_delta,
        }
    }
}

/// The rules of one prefix length.
#[derive(Debug)]
struct OfLength<A> {
    mask: A,
    rules: FixedMap<A, Mapping<A>>,
}

/// One way through all rules.
#[derive(Debug)]
enum Direction<A> {
    /// Few rules, each with its mask and its prefix.
    Inline { rules: [(A, A, Mapping<A>); INLINE], count: usize },
    /// By prefix length, longest first.
    Hashed(Box<[OfLength<A>]>),
}

impl<A: Address> Direction<A> {
    /// Of these rules: length and prefix of each, and what it does.
    fn build(seed: Seed, mappings: &[(u8, A, Mapping<A>)]) -> Result<Self, usize> {
        if mappings.len() <= INLINE {
            let mut rules = [(A::default(), A::default(), Mapping::default()); INLINE];
            for (place, (length, from, mapping)) in rules.iter_mut().zip(mappings) {
                *place = (A::mask(*length), *from, *mapping);
            }
            return Ok(Self::Inline { rules, count: mappings.len() });
        }
        let mut lengths: BTreeMap<u8, Vec<(A, Mapping<A>)>> = BTreeMap::new();
        for (length, from, mapping) in mappings {
            lengths.entry(*length).or_default().push((*from, *mapping));
        }
        let mut tables = Vec::with_capacity(lengths.len());
        for (length, rules) in lengths.iter().rev() {
            tables.push(OfLength { mask: A::mask(*length), rules: FixedMap::build(seed, rules)? });
        }
        Ok(Self::Hashed(tables.into_boxed_slice()))
    }

    #[inline(always)]
    fn translate(&self, address: A) -> Option<Translation<A>> {
        match self {
            Self::Inline { rules, count } => rules
                .iter()
                .take(*count)
                .find(|(mask, from, _)| address & *mask == *from)
                .map(|(mask, _, mapping)| mapping.apply(*mask, address)),
            Self::Hashed(tables) => {
                let of = |table: &OfLength<A>| {
                    Some(table.rules.get(address & table.mask)?.apply(table.mask, address))
                };
                // Most often all prefixes are of one length.
                match &**tables {
                    [table] => of(table),
                    tables => tables.iter().find_map(of),
                }
            }
        }
    }

    /// The table that is asked first, where there is one.
    #[inline(always)]
    fn first(&self) -> Option<&OfLength<A>> {
        match self {
            Self::Inline { .. } => None,
            Self::Hashed(tables) => tables.first(),
        }
    }

    /// Starts loading what translating these addresses will read: one step of the way at a time, so that they wait for memory
    /// together.
    #[inline(always)]
    fn prefetch<const N: usize>(&self, addresses: impl Iterator<Item = A>) {
        let Some(table) = self.first() else { return };
        let mut hashes = [0; N];
        let mut count = 0;
        for (hash, address) in hashes.iter_mut().zip(addresses) {
            *hash = table.rules.hash(address & table.mask);
            table.rules.prefetch_place(*hash);
            count += 1;
        }
        for hash in hashes.iter().take(count) {
            table.rules.place(*hash);
        }
    }
}

/// The 1:1 rules of one gateway, one end and one IP version.
#[derive(Debug)]
pub struct Static1to1<A> {
    outward: Direction<A>,
    inward: Direction<A>,
    length: usize,
}

impl<A: Address> Static1to1<A> {
    /// Builds the set.
    ///
    /// # Errors
    ///
    /// See [`NatError`]; the places are those in `rules`.
    pub fn build(rules: &[Rule<A>], seed: Seed) -> Result<Self, NatError> {
        for (place, rule) in rules.iter().enumerate() {
            if rule.length > A::WIDTH {
                return Err(NatError::LengthTooLong(place));
            }
            if (rule.original | rule.translated) & !A::mask(rule.length) != A::default() {
                return Err(NatError::HostBits(place));
            }
        }
        check_overlap(rules, Side::Original, |rule| rule.original)?;
        check_overlap(rules, Side::Translated, |rule| rule.translated)?;
        let direction = |from: fn(&Rule<A>) -> A, to: fn(&Rule<A>) -> A, side| {
            let mapping = |(place, rule): (usize, &Rule<A>)| {
                let (from, to) = (from(rule), to(rule));
                let checksum_delta = checksum_delta(from, to);
                (rule.length, from, Mapping { to, rule: place as u32, checksum_delta })
            };
            let mappings: Vec<_> = rules.iter().enumerate().map(mapping).collect();
            // Equal prefixes were found above; the table's own check stands behind that one.
            Direction::build(seed, &mappings).map_err(|second| NatError::Overlap {
                first: second,
                second,
                side,
            })
        };
        Ok(Self {
            outward: direction(|rule| rule.original, |rule| rule.translated, Side::Original)?,
            inward: direction(|rule| rule.translated, |rule| rule.original, Side::Translated)?,
            length: rules.len(),
        })
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Original to translated: for the source of a packet from the rules' own end.
    #[inline(always)]
    pub fn translate_source(&self, address: A) -> Option<Translation<A>> {
        self.outward.translate(address)
    }

    /// Translated to original: for the destination of a packet to the rules' own end.
    #[inline(always)]
    pub fn translate_destination(&self, address: A) -> Option<Translation<A>> {
        self.inward.translate(address)
    }

    /// Starts loading what [`Self::translate_source`] of these addresses will read; of the first `N`.
    #[inline]
    pub fn prefetch_sources<const N: usize>(&self, addresses: impl Iterator<Item = A>) {
        self.outward.prefetch::<N>(addresses);
    }

    /// Starts loading what [`Self::translate_destination`] of these addresses will read; of the first `N`.
    #[inline]
    pub fn prefetch_destinations<const N: usize>(&self, addresses: impl Iterator<Item = A>) {
        self.inward.prefetch::<N>(addresses);
    }
}

/// Sorted by first address, a prefix that overlaps any other overlaps the one before it or lies in one that
/// began earlier and has not ended: the one that reaches furthest.
fn check_overlap<A: Address>(
    rules: &[Rule<A>],
    side: Side,
    prefix: fn(&Rule<A>) -> A,
) -> Result<(), NatError> {
    let mut order: Vec<(A, u8, usize)> =
        rules.iter().enumerate().map(|(place, rule)| (prefix(rule), rule.length, place)).collect();
    order.sort_unstable();
    for pair in order.windows(2) {
        // Prefixes nest or are apart: with no overlap so far, only the one just before can reach this one.
        if let [(first, length, first_place), (second, _, second_place)] = pair
            && *second & A::mask(*length) == *first
        {
            return Err(NatError::Overlap { first: *first_place, second: *second_place, side });
        }
    }
    Ok(())
}

/// ~m + m' of RFC 1624, folded to 16 bits, for all 16-bit words of both addresses.
fn checksum_delta<A: Address>(from: A, to: A) -> u16 {
    let words = |address: u128| (0..8).map(move |word| (address >> (16 * word)) as u16);
    let removed = words(from.widen()).map(|word| u32::from(!word));
    let mut sum: u32 = removed.chain(words(to.widen()).map(u32::from)).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(original: u32, translated: u32, length: u8) -> Rule<u32> {
        Rule { original, translated, length }
    }

    fn build(rules: &[Rule<u32>]) -> Result<Static1to1<u32>, NatError> {
        Static1to1::build(rules, Seed::random())
    }

    /// The Internet checksum over 16-bit words (RFC 1071).
    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&word| u32::from(word)).sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn overlap_is_found_on_either_side() {
        let overlap = |first, second, side| NatError::Overlap { first, second, side };
        let inside = [rule(0x0A00_0005, 0x0B00_0000, 32), rule(0x0A00_0000, 0x0C00_0000, 24)];
        assert_eq!(build(&inside).unwrap_err(), overlap(1, 0, Side::Original));
        let twice = [rule(1, 9, 32), rule(2, 9, 32)];
        assert_eq!(build(&twice).unwrap_err(), overlap(0, 1, Side::Translated));
        let apart = [rule(0x0A00_0000, 0x0B00_0000, 24), rule(0x0A00_0100, 0x0B00_0100, 24)];
        assert!(build(&apart).is_ok());
    }

    #[test]
    fn bad_prefixes_are_refused() {
        assert_eq!(build(&[rule(0, 0, 33)]).unwrap_err(), NatError::LengthTooLong(0));
        assert_eq!(build(&[rule(1, 0, 24)]).unwrap_err(), NatError::HostBits(0));
        assert_eq!(build(&[rule(0, 1, 24)]).unwrap_err(), NatError::HostBits(0));
    }

    #[test]
    fn prefixes_keep_their_host_bits() {
        let nat = build(&[rule(0x0A01_0200, 0xC0A8_0500, 24)]).unwrap();
        let out = nat.translate_source(0x0A01_02FE).unwrap();
        assert_eq!((out.address, out.rule), (0xC0A8_05FE, 0));
        assert_eq!(nat.translate_destination(0xC0A8_0501).unwrap().address, 0x0A01_0201);
        assert_eq!(nat.translate_source(0x0A01_0300), None);
        assert_eq!(nat.translate_destination(0x0A01_0201), None);
    }

    #[test]
    fn a_default_rule_maps_everything_and_an_empty_set_nothing() {
        let nat = build(&[rule(0, 0, 0)]).unwrap();
        assert_eq!(nat.translate_source(77).unwrap().address, 77);
        assert_eq!(build(&[]).unwrap().translate_source(0), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan_and_back_again(
            candidates in proptest::collection::vec((any::<u32>(), any::<u32>(), 20u8..=32), 0..60),
            strangers in proptest::collection::vec(any::<u32>(), 20),
            host in any::<u32>(),
        ) {
            let mut rules: Vec<Rule<u32>> = Vec::new();
            for (original, translated, length) in candidates {
                let mask = u32::mask(length);
                rules.push(rule(original & mask, translated & mask, length));
                if build(&rules).is_err() {
                    rules.pop();
                }
            }
            let nat = build(&rules).unwrap();
            let insiders = rules.iter().map(|rule| rule.original | host & !u32::mask(rule.length));
            for address in insiders.chain(strangers) {
                let matching = rules.iter().position(|rule| address & u32::mask(rule.length) == rule.original);
                let result = nat.translate_source(address);
                prop_assert_eq!(result.map(|found| found.rule as usize), matching);
                if let (Some(found), Some(place)) = (result, matching) {
                    let mask = u32::mask(rules[place].length);
                    prop_assert_eq!(found.address, rules[place].translated | address & !mask);
                    let back = nat.translate_destination(found.address).unwrap();
                    prop_assert_eq!((back.address, back.rule), (address, found.rule));
                }
            }
        }

        #[test]
        fn the_delta_updates_a_checksum(original in any::<u32>(), translated in any::<u32>(), length in 0u8..=32,
                                        host in any::<u32>(), others in any::<[u16; 5]>()) {
            let mask = u32::mask(length);
            let nat = build(&[rule(original & mask, translated & mask, length)]).unwrap();
            let old = original & mask | host & !mask;
            let new = nat.translate_source(old).unwrap();
            let words = |address: u32| [&others[..], &[(address >> 16) as u16, address as u16]].concat();
            let before = checksum(&words(old));
            let sum = u32::from(!before) + u32::from(new.checksum_delta);
            let after = !((sum & 0xFFFF) as u16 + (sum >> 16) as u16);
            // A header is never all zero, which is the one case where 0 and 0xFFFF would differ.
            if words(new.address).iter().any(|&word| word != 0) && words(old).iter().any(|&word| word != 0) {
                prop_assert_eq!(after, checksum(&words(new.address)));
            }
        }
    }

    #[test]
    fn ipv6_prefixes_translate() {
        let rules: Vec<Rule<u128>> = (0..100u128)
            .map(|number| Rule {
                original: (0xFD00u128 << 112) | number << 64,
                translated: number << 64,
                length: 64,
            })
            .collect();
        let nat = Static1to1::build(&rules, Seed::random()).unwrap();
        let found = nat.translate_source((0xFD00u128 << 112) | 42 << 64 | 7).unwrap();
        assert_eq!((found.address, found.rule), (42 << 64 | 7, 42));
        assert_eq!(found.checksum_delta, !0xFD00);
    }
}
