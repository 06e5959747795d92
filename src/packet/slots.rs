//! Sets of packets of a burst: one bit a packet.

use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not, Sub, SubAssign};

/// The place of one packet in a burst: 0 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// The slot of this number, if it is one.
    #[must_use]
    pub const fn new(n: usize) -> Option<Self> {
        if n < super::BURST { Some(Self(n as u8)) } else { None }
    }

    /// The slot's number, below [`BURST`](super::BURST).
    #[must_use]
    pub const fn index(self) -> usize {
        // The mask changes nothing; it shows the compiler that no bounds check is needed.
        (self.0 & 63) as usize
    }
}

/// A set of slots: how stages say which packets of the burst they mean.
///
/// Set operations are single instructions, and walking a set costs one a packet, so a stage that has nothing to
/// do for a burst costs one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots(pub u64);

impl Slots {
    /// No slot.
    pub const NONE: Self = Self(0);

    /// The first `n` slots; all of them when `n` is larger than a burst.
    #[must_use]
    pub const fn first_n(n: usize) -> Self {
        if n >= super::BURST { Self(u64::MAX) } else { Self((1 << n) - 1) }
    }

    /// Only this slot.
    #[must_use]
    pub const fn only(slot: Slot) -> Self {
        Self(1 << slot.index())
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether `slot` is one of them.
    #[must_use]
    pub const fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.index() & 1 == 1
    }

    /// Adds `slot`.
    #[inline]
    pub const fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.index();
    }

    /// Adds `slot` when `yes`, without a branch.
    #[inline]
    pub const fn insert_if(&mut self, slot: Slot, yes: bool) {
        self.0 |= (yes as u64) << slot.index();
    }

    /// Takes `slot` away.
    #[inline]
    pub const fn remove(&mut self, slot: Slot) {
        self.0 &= !(1 << slot.index());
    }

    /// The lowest slot.
    #[must_use]
    pub const fn first(self) -> Option<Slot> {
        if self.0 == 0 { None } else { Some(Slot(self.0.trailing_zeros() as u8)) }
    }

    /// Takes the lowest slot away, where there is one.
    #[inline]
    pub const fn remove_first(&mut self) {
        self.0 &= self.0.wrapping_sub(1);
    }

    /// The last of them.
    #[inline]
    #[must_use]
    pub const fn last(self) -> Option<Slot> {
        match self.0.checked_ilog2() {
            Some(last) => Some(Slot(last as u8)),
            None => None,
        }
    }

    /// Those from `first` on, up to the next of `firsts`: a run, where `firsts` has the first of each.
    #[inline]
    #[must_use]
    pub const fn run(self, first: Slot, firsts: Self) -> Self {
        let from = u64::MAX << first.index();
        let behind = match Self(firsts.0 & from & !(1 << first.index())).first() {
            Some(next) => u64::MAX << next.index(),
            None => 0,
        };
        Self(self.0 & from & !behind)
    }

    /// Those for which `f` holds.
    #[must_use]
    pub fn filter(self, mut f: impl FnMut(Slot) -> bool) -> Self {
        let mut out = Self::NONE;
        for slot in self {
            out.insert_if(slot, f(slot));
        }
        out
    }
}

/// Walks a set from the lowest slot up.
#[derive(Debug, Clone)]
pub struct Iter(u64);

impl Iterator for Iter {
    type Item = Slot;

    #[inline]
    fn next(&mut self) -> Option<Slot> {
        if self.0 == 0 {
            return None;
        }
        let slot = Slot(self.0.trailing_zeros() as u8);
        self.0 &= self.0 - 1;
        Some(slot)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = self.0.count_ones() as usize;
        (n, Some(n))
    }
}

impl ExactSizeIterator for Iter {}

impl IntoIterator for Slots {
    type Item = Slot;
    type IntoIter = Iter;

    #[inline]
    fn into_iter(self) -> Iter {
        Iter(self.0)
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(iter: I) -> Self {
        let mut out = Self::NONE;
        for slot in iter {
            out.insert(slot);
        }
        out
    }
}

impl BitAnd for Slots {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitAndAssign for Slots {
    fn bitand_assign(&mut self, other: Self) {
        self.0 &= other.0;
    }
}

impl BitOr for Slots {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Slots {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Sub for Slots {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl SubAssign for Slots {
    fn sub_assign(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

impl Not for Slots {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_is_what_a_set_should_be(a in prop::collection::btree_set(0usize..64, 0..64), b in prop::collection::btree_set(0usize..64, 0..64)) {
            let set = |s: &std::collections::BTreeSet<usize>| s.iter().filter_map(|&n| Slot::new(n)).collect::<Slots>();
            let list = |s: Slots| s.into_iter().map(Slot::index).collect::<std::collections::BTreeSet<_>>();
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(list(x), a.clone());
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(list(x | y), &a | &b);
            prop_assert_eq!(list(x & y), &a & &b);
            prop_assert_eq!(list(x - y), &a - &b);
            prop_assert_eq!(x.first().map(Slot::index), a.first().copied());
            prop_assert_eq!(x.last().map(Slot::index), a.last().copied());
            let mut rest = x;
            rest.remove_first();
            prop_assert_eq!(list(rest), a.iter().skip(1).copied().collect());
        }
    }

    #[test]
    fn runs_end_where_the_next_begins() {
        let slot = |n| Slot::new(n).unwrap();
        let slots = Slots(0b1011_0110 | 1 << 63);
        let firsts = Slots(0b0001_0010);
        assert_eq!(slots.run(slot(1), firsts), Slots(0b0110));
        assert_eq!(slots.run(slot(4), firsts), Slots(0b1011_0000 | 1 << 63));
        assert_eq!(Slots(u64::MAX).run(slot(63), Slots(1 << 63)), Slots(1 << 63));
        assert_eq!(Slots(u64::MAX).run(slot(0), Slots(1)), Slots(u64::MAX));
    }

    #[test]
    fn the_first_n() {
        assert_eq!(Slots::first_n(0), Slots::NONE);
        assert_eq!(Slots::first_n(3).0, 7);
        assert_eq!(Slots::first_n(64).len(), 64);
        assert_eq!(Slots::first_n(1000).len(), 64);
        assert!(Slot::new(64).is_none());
    }
}
