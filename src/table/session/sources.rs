//! How many sessions each host has, of all workers together: for limits on one host.
//!
//! Counted only where a gateway limits them. A host's count stands in one of the eight words of the line its hash
//! names; a word whose count is zero is anybody's. All words change by compare-and-swap, so nothing is locked. Two
//! workers that begin to count one host at the same moment may take two words for it; the sum is right all the same.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::table::hash::{HashKey, Seed};
use crate::table::pages::{Pages, Zeroed};

/// Counts of up to eight hosts: address and gateway (48 bits), count (16 bits).
#[derive(Debug)]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);

// SAFETY: atomic numbers, which zero is a value of.
#[allow(unsafe_code)]
unsafe impl Zeroed for Line {}

/// Sessions by host.
#[derive(Debug)]
pub struct Sources {
    lines: Pages<Line>,
    seed: Seed,
}

/// What came of counting a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It is counted, and to be released when it ends.
    Yes,
    /// It cannot be: more hosts meet in one line than it has words. It may be made all the same.
    NoRoom,
    /// The host has as many as it may.
    Limit,
}

const COUNT: u64 = 0xffff;

impl Sources {
    /// Room for the hosts of `sessions` sessions, when each has a host of its own.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(sessions: usize, seed: Seed) -> io::Result<Self> {
        // Four words a session: then one line in 10,000 is asked for more than it has.
        Ok(Self { lines: Pages::new((4 * sessions).div_ceil(8).next_power_of_two())?, seed })
    }

    fn line(&self, host: u64) -> Option<&[AtomicU64; 8]> {
        let place = host.keyed_hash(&self.seed) as usize & (self.lines.len() - 1);
        self.lines.get(place).map(|Line(words)| words)
    }

    /// Counts one more session of a host, unless it has `limit`.
    pub fn count(&self, gateway: u16, address: u32, limit: u16) -> Counted {
        let host = u64::from(gateway) << 32 | u64::from(address);
        let Some(words) = self.line(host) else { return Counted::NoRoom };
        // Lost races are few: each means that another worker has got on.
        for _ in 0..64 {
            let (mut sum, mut own, mut free) = (0, None, None);
            for word in words {
                let value = word.load(Ordering::Relaxed);
                if value & COUNT == 0 {
                    free = free.or(Some((word, value)));
                } else if value >> 16 == host {
                    sum += value & COUNT;
                    own = own.or(Some((word, value)));
                }
            }
            if sum >= u64::from(limit) {
                return Counted::Limit;
            }
            let (word, old, new) = match (own, free) {
                (Some((word, old)), _) if old & COUNT < COUNT => (word, old, old + 1),
                (_, Some((word, old))) => (word, old, host << 16 | 1),
                _ => return Counted::NoRoom,
            };
            if word.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Counted::Yes;
            }
        }
        Counted::NoRoom
    }

    /// A session that was counted has ended.
    pub fn release(&self, gateway: u16, address: u32) {
        let host = u64::from(gateway) << 32 | u64::from(address);
        let Some(words) = self.line(host) else { return };
        for word in words {
            let down = |value: u64| (value >> 16 == host && value & COUNT > 0).then(|| value - 1);
            if word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, down).is_ok() {
                return;
            }
        }
    }

    /// How many sessions a host has.
    #[must_use]
    pub fn of(&self, gateway: u16, address: u32) -> u64 {
        let host = u64::from(gateway) << 32 | u64::from(address);
        let words = self.line(host).map_or(&[][..], |words| words);
        let values = words.iter().map(|word| word.load(Ordering::Relaxed));
        values.filter(|value| value >> 16 == host).map(|value| value & COUNT).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_map(operations in prop::collection::vec((any::<bool>(), 0u32..20), 0..300), limit in 1u16..6) {
            let sources = Sources::new(64, Seed::random()).unwrap();
            let mut model: HashMap<u32, u16> = HashMap::new();
            for (add, host) in operations {
                let count = model.entry(host).or_default();
                if add {
                    let wanted = if *count >= limit { Counted::Limit } else { Counted::Yes };
                    prop_assert_eq!(sources.count(3, host, limit), wanted);
                    *count += u16::from(wanted == Counted::Yes);
                } else if *count > 0 {
                    sources.release(3, host);
                    *count -= 1;
                }
            }
            for (host, count) in model {
                prop_assert_eq!(sources.of(3, host), u64::from(count));
                prop_assert_eq!(sources.of(4, host), 0);
            }
        }
    }

    #[test]
    fn many_threads_count_right() {
        let sources = Arc::new(Sources::new(4, Seed::random()).unwrap());
        let work = |sources: Arc<Sources>| {
            move || {
                for n in 0..20_000_u32 {
                    assert_ne!(sources.count(0, n % 3, u16::MAX), Counted::Limit);
                    if n % 2 == 1 {
                        sources.release(0, n % 3);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(work(Arc::clone(&sources)))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Some found no room in a moment when others held it, and released what was another's: never below zero, and
        // at the end everything can be taken back.
        let total: u64 = (0..3).map(|host| sources.of(0, host)).sum();
        assert!((39_000..=41_000).contains(&total), "{total}");
        for host in 0..3 {
            while sources.of(0, host) > 0 {
                sources.release(0, host);
            }
        }
    }

    #[test]
    fn a_line_that_is_full_says_so() {
        let sources = Sources::new(1, Seed::random()).unwrap();
        assert!((0..8).all(|host| sources.count(0, host, 1) == Counted::Yes));
        assert_eq!(sources.count(0, 8, 1), Counted::NoRoom);
        sources.release(0, 3);
        assert_eq!(sources.count(0, 8, 1), Counted::Yes);
    }
}
