//! Which worker has the session of a flow from inside, where there are several.
//!
//! The NIC brings the whole packets of a flow to one worker, but its fragments, whose ports it cannot read, to another;
//! and a flow may move, when queues are rearranged or a sender hashes anew after a loss. Were each worker to begin a
//! session, the flow would have two outside ports. So who begins one claims the flow here first, and who finds it
//! claimed hands the packet over instead. A claim lasts as long as its session.
//!
//! One table for all workers. Eight words that a hash may be in make a line; all change by compare-and-swap, so nothing
//! is locked. Who has written a word looks at the line again, and gives way where another has the same flow: of two who
//! claim it at the same moment at most one believes that it has it. If both gave way, the packet comes back and tries
//! again. Where a line is full a session begins without a claim: at a full table one in ten thousand.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::table::pages::{Pages, Zeroed};
use crate::table::prefetch::prefetch_read;

/// A cache line of claims. Of each word: 56 bits of the flow's hash, and the worker. Zero is none.
#[derive(Debug)]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);

// SAFETY: atomic numbers, which zero is a value of.
#[allow(unsafe_code)]
unsafe impl Zeroed for Line {}

const WORKER: u64 = 0xff;
/// The bits of a hash that its claim is known by; the place of the line comes from those from `PLACE_SHIFT` on.
const TAG: u64 = !WORKER;
const PLACE_SHIFT: u32 = 20;

/// Flows from inside, by hash.
#[derive(Debug)]
pub struct Claims {
    lines: Pages<Line>,
}

/// What came of claiming a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// It is this worker's now.
    Own,
    /// It is this one's.
    By(u32),
    /// It cannot be claimed: more flows meet in one line than it has words.
    NoRoom,
}

/// What a hash is known by. Never zero.
#[inline]
const fn tag_of(hash: u64) -> u64 {
    if hash & TAG == 0 { WORKER + 1 } else { hash & TAG }
}

impl Claims {
    /// Room for `sessions` sessions.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(sessions: usize) -> io::Result<Self> {
        // Four words a session: then one line in 10,000 is asked for more than it has.
        Ok(Self { lines: Pages::new((4 * sessions).div_ceil(8).next_power_of_two())? })
    }

    #[inline]
    fn words(&self, hash: u64) -> &[AtomicU64] {
        let place = (hash >> PLACE_SHIFT) as usize & (self.lines.len() - 1);
        self.lines.get(place).map_or(&[], |Line(words)| words)
    }

    /// Starts loading what [`Claims::claim`] looks at.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch_read(self.words(hash));
    }

    /// The word of a flow other than `own`, and what it holds.
    fn find(&self, hash: u64, own: Option<usize>) -> Option<u64> {
        let words = self.words(hash).iter().enumerate().filter(|(place, _)| Some(*place) != own);
        words.map(|(_, word)| word.load(Ordering::SeqCst)).find(|word| word & TAG == tag_of(hash))
    }

    /// Claims the flow of a hash for `worker` (below 256), unless it is claimed.
    pub fn claim(&self, hash: u64, worker: u32) -> Claimed {
        let by = |word: u64| {
            let other = (word & WORKER) as u32;
            if other == worker { Claimed::Own } else { Claimed::By(other) }
        };
        if let Some(word) = self.find(hash, None) {
            return by(word);
        }
        let new = tag_of(hash) | u64::from(worker) & WORKER;
        let swap =
            |word: &AtomicU64| word.compare_exchange(0, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        let Some(place) = self.words(hash).iter().position(swap) else { return Claimed::NoRoom };
        match self.find(hash, Some(place)) {
            None => Claimed::Own,
            Some(word) => {
                if let Some(own) = self.words(hash).get(place) {
                    own.store(0, Ordering::SeqCst);
                }
                by(word)
            }
        }
    }

    /// The worker that has a flow.
    #[must_use]
    pub fn owner(&self, hash: u64) -> Option<u32> {
        self.find(hash, None).map(|word| (word & WORKER) as u32)
    }

    /// Gives `worker`'s claim of a flow up: its session has ended.
    pub fn give_up(&self, hash: u64, worker: u32) {
        let claim = tag_of(hash) | u64::from(worker) & WORKER;
        for word in self.words(hash) {
            // Nobody but the worker itself changes what it has claimed.
            if word.load(Ordering::Relaxed) == claim {
                word.store(0, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn a_claim_lasts_until_it_is_given_up() {
        let claims = Claims::new(64).unwrap();
        let hash = 0xABCD_EF01_2345_6789;
        assert_eq!(claims.owner(hash), None);
        assert_eq!((claims.claim(hash, 3), claims.claim(hash, 3)), (Claimed::Own, Claimed::Own));
        assert_eq!((claims.claim(hash, 4), claims.owner(hash)), (Claimed::By(3), Some(3)));
        claims.give_up(hash, 4);
        assert_eq!(claims.owner(hash), Some(3));
        claims.give_up(hash, 3);
        assert_eq!((claims.owner(hash), claims.claim(hash, 4)), (None, Claimed::Own));
        // A hash whose tag is nothing.
        assert_eq!((claims.claim(7, 1), claims.owner(7)), (Claimed::Own, Some(1)));
    }

    #[test]
    fn a_full_line_takes_no_more() {
        let claims = Claims::new(1).unwrap();
        assert!((1..=8_u64).all(|n| claims.claim(n << 40, 1) == Claimed::Own));
        assert_eq!(claims.claim(9 << 40, 1), Claimed::NoRoom);
        claims.give_up(3 << 40, 1);
        assert_eq!(claims.claim(9 << 40, 2), Claimed::Own);
    }

    /// Whatever the moment, of those who claim one flow no two believe that they have it; and each who does not knows
    /// another.
    #[test]
    fn a_flow_never_has_two_owners() {
        let claims = Arc::new(Claims::new(1).unwrap());
        for round in 1..400_u64 {
            let barrier = Arc::new(Barrier::new(3));
            let ask = |worker: u32| {
                let (claims, barrier) = (Arc::clone(&claims), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    claims.claim(round << 30, worker)
                })
            };
            let threads: Vec<_> = (0..3).map(ask).collect();
            let told: Vec<Claimed> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            let owners: Vec<u32> = (0..3).filter(|worker| told[*worker as usize] == Claimed::Own).collect();
            assert!(owners.len() <= 1, "{told:?}");
            assert_eq!(claims.owner(round << 30), owners.first().copied());
            owners.iter().for_each(|owner| claims.give_up(round << 30, *owner));
        }
    }
}
