//! Which port stands for a host's: of the worker's own part of a pool's, at random, of the same parity.
//!
//! The ports of a pool are divided among the workers, so that whoever gets a reply knows from its port alone whose
//! session it is. A host's port gets the same place for every remote end where that is free (RFC 4787 4.1), chosen by
//! a keyed hash, so that nobody outside can guess it (RFC 6056 3.3.3); even ports get even ones and odd ones odd
//! (RFC 4787 4.2.2). One port serves many sessions, as long as their remote ends differ.

/// Ports from `first` on, `count` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    count: u32,
}

/// Ports that are tried for a session, at most: what a new session costs at an exhausted pool. When 95 of 100 are
/// taken, 128 tries fail once in 700.
pub const TRIES: u32 = 128;

impl PortRange {
    /// Ports `first` to `last`, both included; none when `last` is below.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Self {
        let count = if last < first { 0 } else { last as u32 - first as u32 + 1 };
        Self { first, count }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The lowest.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Whether it holds this port.
    #[inline]
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        (port.wrapping_sub(self.first) as u32) < self.count && port >= self.first
    }

    /// Whose port this is, of `workers`.
    #[inline]
    #[must_use]
    pub const fn owner(self, port: u16, workers: u32) -> u32 {
        if workers <= 1 || self.count == 0 {
            return 0;
        }
        // Both factors are below 2^17.
        (port.saturating_sub(self.first) as u32 * workers) / self.count % workers
    }

    /// The part of worker number `worker` of `workers`: those whose [`PortRange::owner`] it is.
    #[must_use]
    pub const fn part(self, worker: u32, workers: u32) -> Self {
        if workers <= 1 {
            return self;
        }
        let start = (worker * self.count).div_ceil(workers);
        let end = ((worker + 1) * self.count).div_ceil(workers);
        // A last part that is empty begins where there is no port.
        Self { first: self.first.wrapping_add(start as u16), count: end - start }
    }

    /// Ports to try in place of `port`, in this order: those of its parity, then the others.
    #[must_use]
    pub const fn candidates(self, port: u16, random: u64) -> Candidates {
        let same = Self::of_parity(self, port & 1);
        Candidates { range: self, port, random, at: 0, same }
    }

    /// How many have this parity.
    const fn of_parity(self, parity: u16) -> u32 {
        if self.first & 1 == parity { self.count.div_ceil(2) } else { self.count / 2 }
    }
}

/// The ports to try for a session.
#[derive(Debug, Clone)]
pub struct Candidates {
    range: PortRange,
    port: u16,
    random: u64,
    at: u32,
    /// Ports of the same parity.
    same: u32,
}

impl Candidates {
    /// Place `at` of a walk over `count` places that begins at random. Short ranges are walked whole; of long ones
    /// every walk takes strides of its own, none so long that it comes round to a place twice.
    const fn place(&self, at: u32, count: u32) -> u32 {
        let start = (self.random as u32) % count;
        let stride = if count <= TRIES { 1 } else { 1 + (self.random >> 32) as u32 % (count / TRIES) };
        ((start as u64 + at as u64 * stride as u64) % count as u64) as u32
    }
}

impl Iterator for Candidates {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if self.at >= TRIES || self.at >= self.range.count {
            return None;
        }
        // In a long range the last tries go to the other parity; in a short one all that are left.
        let same = self.same.min(TRIES - TRIES / 8);
        let (parity, place) = if self.at < same {
            (self.port & 1, self.place(self.at, self.same))
        } else {
            let others = self.range.count - self.same;
            if others == 0 {
                return None;
            }
            (self.port & 1 ^ 1, self.place(self.at - same, others))
        };
        self.at += 1;
        let first = self.range.first + (self.range.first & 1 ^ parity);
        Some(first + 2 * place as u16)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_port_has_one_owner_and_is_in_its_part(first in 1024u16..=65535, count in 1u32..3000, workers in 1u32..9) {
            let last = (u32::from(first) + count - 1).min(65535) as u16;
            let range = PortRange::new(first, last);
            let parts: Vec<_> = (0..workers).map(|worker| range.part(worker, workers)).collect();
            prop_assert_eq!(parts.iter().map(|part| part.count()).sum::<u32>(), range.count());
            for port in first..=last {
                let owner = range.owner(port, workers);
                for (worker, part) in parts.iter().enumerate() {
                    prop_assert_eq!(part.contains(port), worker as u32 == owner);
                }
            }
            let most = parts.iter().map(|part| part.count()).max().unwrap();
            let least = parts.iter().map(|part| part.count()).min().unwrap();
            prop_assert!(most - least <= 1);
        }

        #[test]
        fn candidates_are_in_the_range_and_of_the_parity_first(
            first in 1024u16..65000, count in 0u32..500, port: u16, random: u64,
        ) {
            let last = (u32::from(first) + count).saturating_sub(1).min(65535) as u16;
            let range = if count == 0 { PortRange::new(2, 1) } else { PortRange::new(first, last) };
            let tried: Vec<u16> = range.candidates(port, random).collect();
            prop_assert!(tried.iter().all(|port| range.contains(*port)));
            prop_assert!(tried.is_sorted_by_key(|tried| tried & 1 != port & 1));
            if range.count() <= TRIES {
                // A short range is tried whole, each port once.
                let all: BTreeSet<u16> = tried.iter().copied().collect();
                prop_assert_eq!((all.len(), all.len() as u32), (tried.len(), range.count()));
            } else {
                let all: BTreeSet<u16> = tried.iter().copied().collect();
                prop_assert_eq!((all.len(), tried.len() as u32), (tried.len(), TRIES));
            }
        }
    }

    #[test]
    fn of_fewer_ports_than_workers_some_get_none() {
        let range = PortRange::new(65533, 65535);
        let parts: Vec<_> = (0..4).map(|worker| range.part(worker, 4)).collect();
        assert_eq!(parts.iter().map(|part| part.count()).collect::<Vec<_>>(), [1, 1, 1, 0]);
        assert!(!(0..=u16::MAX).any(|port| parts[3].contains(port)));
    }

    #[test]
    fn the_whole_range_of_a_box_with_one_worker() {
        let range = PortRange::new(1024, 65535);
        assert_eq!((range.count(), range.owner(65535, 1), range.part(0, 1)), (64512, 0, range));
        assert_eq!(range.owner(65535, 2), 1);
        assert!(!range.contains(1023) && range.contains(1024) && range.contains(65535));
    }
}
