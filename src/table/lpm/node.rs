//! A node's two forms, and the way from 256 slots to words.
//!
//! An entry is a word: the value in its low half, the child's [`Reference`] in its high half.
//!
//! - *Dense*: 256 entries, 32 cache lines.
//! - *Compressed*: 4 words of marks, where bit *s* is set if slot *s* begins a run (bit 0 always is); one word of
//!   ranks; then one entry a run. Byte *g* of the ranks is the index of the entry of the last run that begins
//!   before group *g* of 64 slots, so that a visit counts the bits of one word. Bits 32 to 47 are the number of
//!   lines of the node.

use super::NO_ROUTE;
use super::arena::{LINE_WORDS, MAX_LINES, Reference};

/// No value, no child.
pub const EMPTY: u64 = NO_ROUTE as u64;

/// Words before the first entry of a compressed node.
const HEADER_WORDS: usize = 5;
/// Runs from which a node is dense: compressed it would need half as much memory or more.
const DENSE_RUNS: usize = 16 * LINE_WORDS - HEADER_WORDS;

/// The value of an entry, or [`NO_ROUTE`].
#[inline(always)]
pub const fn value(entry: u64) -> u32 {
    entry as u32
}

/// The child of an entry.
#[inline(always)]
pub const fn child(entry: u64) -> Reference {
    Reference((entry >> 32) as u32)
}

/// An entry of both.
pub const fn entry(value: u32, child: Reference) -> u64 {
    (child.0 as u64) << 32 | value as u64
}

/// The index in a compressed node of the entry of slot `byte`, whose group's marks are `marks`.
#[inline(always)]
pub const fn entry_index(marks: u64, ranks: u64, byte: u8) -> u32 {
    let upto = marks & (u64::MAX >> (63 - (byte & 63)));
    let before = (ranks >> ((byte >> 6) * 8)) & 0xFF;
    before as u32 + upto.count_ones()
}

/// The number of lines of a compressed node.
pub const fn lines_of(ranks: u64) -> usize {
    (ranks >> 32) as u16 as usize
}

/// The ranks of a block of so many lines that holds no node.
pub const fn ranks_of(lines: usize) -> u64 {
    (lines as u64) << 32
}

/// The position of the ranks in a compressed node.
pub const RANKS: u32 = 4;

/// A node's slots, before it is written.
pub type Slots = [u64; 256];

/// The words of a node.
#[derive(Debug)]
pub struct Encoded {
    words: Slots,
    length: usize,
    /// Whether the node is dense.
    pub dense: bool,
}

impl Encoded {
    /// Writes `slots` in the form that suits them; dense whatever they hold if `prefer_dense`.
    pub fn new(slots: &Slots, prefer_dense: bool) -> Self {
        let starts = || {
            let previous = std::iter::once(None).chain(slots.iter().map(Some));
            slots.iter().zip(previous).enumerate().filter(|(_, (slot, previous))| Some(*slot) != *previous)
        };
        let runs = starts().count();
        if prefer_dense || runs > DENSE_RUNS {
            return Self { words: *slots, length: slots.len(), dense: true };
        }
        let mut words = [EMPTY; 256];
        let (header, entries) = words.split_at_mut(HEADER_WORDS);
        header.fill(0);
        let mut before = [HEADER_WORDS as u64 - 1; 4];
        for ((slot, (entry, _)), place) in starts().zip(entries) {
            *place = *entry;
            if let Some(marks) = header.get_mut(slot / 64) {
                *marks |= 1 << (slot % 64);
            }
            before.iter_mut().skip(slot / 64 + 1).for_each(|rank| *rank += 1);
        }
        let length = HEADER_WORDS + runs;
        let lines = length.div_ceil(LINE_WORDS) as u64;
        let ranks = before.iter().rev().fold(0, |ranks, rank| ranks << 8 | rank);
        if let [.., last] = header {
            *last = ranks | lines << 32;
        }
        Self { words, length, dense: false }
    }

    /// The lines the node needs.
    pub fn lines(&self) -> usize {
        if self.dense { MAX_LINES } else { self.length.div_ceil(LINE_WORDS) }
    }

    /// The words to store.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().copied().take(self.length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_slot_is_found_again(starts in proptest::collection::btree_map(any::<u8>(), 0u64..9, 0..140)) {
            let mut slots = [EMPTY; 256];
            for (start, value) in starts {
                slots[usize::from(start)..].fill(value);
            }
            let encoded = Encoded::new(&slots, false);
            let words: Vec<u64> = encoded.words().collect();
            for byte in 0..=255u8 {
                let index = if encoded.dense {
                    usize::from(byte)
                } else {
                    entry_index(words[usize::from(byte >> 6)], words[RANKS as usize], byte) as usize
                };
                prop_assert_eq!(words[index], slots[usize::from(byte)]);
            }
            if !encoded.dense {
                prop_assert_eq!(lines_of(words[RANKS as usize]), encoded.lines());
                prop_assert!(encoded.lines() <= 16);
            }
        }
    }
}
