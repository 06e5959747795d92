//! Flows that began with a fragment, and the worker that has their session.
//!
//! The NIC brings the whole packets of a flow to one worker and its fragments, whose ports it cannot read, to another.
//! Were each to begin a session, the flow would have two outside ports. So a first fragment that no session is known
//! of claims its flow here, for one worker, before the others are asked for the session; and who would begin a session
//! for a whole packet looks here first. It finds the claim, unless its own session was there before the question,
//! which then finds that: the question comes through a ring, so whoever has heard it sees the claim too.
//!
//! One table for all workers. A flow has one word, which its hash names and which changes by compare-and-swap, so that
//! all hear of one owner; where another flow has that word, this one goes without. A claim that no session follows
//! lasts a moment.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use super::memory::{Pages, Zeroed};

/// One claim: 39 bits of the flow's hash, whether there is a session, the worker (8 bits), and when it was made, in
/// seconds (16 bits). Zero is none.
#[derive(Debug)]
#[repr(transparent)]
struct Word(AtomicU64);

// SAFETY: an atomic number, which zero is a value of.
#[allow(unsafe_code)]
unsafe impl Zeroed for Word {}

const TAG: u64 = u64::MAX << 25;
const HELD: u64 = 1 << 24;
const WORKER_SHIFT: u32 = 16;
const WORKER: u64 = 0xff << WORKER_SHIFT;
/// How long a claim lasts that no session follows, in seconds of 2^30 ns.
const PATIENCE: u16 = 4;

/// Flows whose session is another worker's than their packets come to.
#[derive(Debug)]
pub struct Claims {
    words: Pages<Word>,
}

#[inline]
const fn second(now: u64) -> u64 {
    now >> 30 & 0xffff
}

/// What a hash is known by. Never zero.
#[inline]
const fn tag_of(hash: u64) -> u64 {
    if hash & TAG == 0 { HELD << 1 } else { hash & TAG }
}

/// Whether a word says nothing any more at `now`.
const fn is_over(word: u64, now: u64) -> bool {
    word == 0 || word & HELD == 0 && (second(now) as u16).wrapping_sub(word as u16) > PATIENCE
}

impl Claims {
    /// Words for `flows`, most of which should stay free.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(flows: usize) -> io::Result<Self> {
        Ok(Self { words: Pages::new(flows.next_power_of_two())? })
    }

    fn word(&self, hash: u64) -> Option<&AtomicU64> {
        self.words.get(hash as usize & (self.words.len() - 1)).map(|Word(word)| word)
    }

    /// Changes the flow's word to what `to` says, if anything. Whether it did.
    fn change(&self, hash: u64, to: impl FnMut(u64) -> Option<u64>) -> bool {
        self.word(hash)
            .is_some_and(|word| word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, to).is_ok())
    }

    /// Claims the flow of a hash for `worker`, or makes the claim there is last on. `false`: another flow has its word.
    pub fn claim(&self, hash: u64, worker: u32, now: u64) -> bool {
        let fresh = tag_of(hash) | u64::from(worker) << WORKER_SHIFT & WORKER | second(now);
        self.change(hash, |word| {
            if is_over(word, now) {
                Some(fresh)
            } else {
                (word & TAG == tag_of(hash)).then_some(word & !0xffff | second(now))
            }
        })
    }

    /// The worker that the flow of a hash is claimed for.
    #[must_use]
    pub fn owner(&self, hash: u64, now: u64) -> Option<u32> {
        let word = self.word(hash)?.load(Ordering::Relaxed);
        let is = word & TAG == tag_of(hash) && !is_over(word, now);
        is.then_some(((word & WORKER) >> WORKER_SHIFT) as u32)
    }

    /// Makes `worker`'s claim of a flow last until it is given up: its session has begun. Whether there was one.
    #[must_use]
    pub fn hold(&self, hash: u64, worker: u32, now: u64) -> bool {
        let own = u64::from(worker) << WORKER_SHIFT & WORKER;
        self.change(hash, |word| {
            let is = word & TAG == tag_of(hash) && word & WORKER == own && !is_over(word, now);
            is.then_some(word | HELD)
        })
    }

    /// Gives the claim of a flow up: its session has ended (`held`), or is one that was there before the claim.
    pub fn give_up(&self, hash: u64, held: bool) {
        self.change(hash, |word| (word & TAG == tag_of(hash) && (word & HELD != 0) == held).then_some(0));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const SECOND: u64 = 1 << 30;

    #[test]
    fn a_claim_lasts_a_moment_or_as_long_as_its_session() {
        let claims = Claims::new(64).unwrap();
        let hash = 0xABCD_EF01_2345_6789;
        assert_eq!(claims.owner(hash, 0), None);
        assert!(claims.claim(hash, 3, 0) && claims.claim(hash, 4, SECOND));
        assert_eq!((claims.owner(hash, 5 * SECOND), claims.owner(hash, 6 * SECOND)), (Some(3), None));
        assert!(!claims.hold(hash, 3, 6 * SECOND));
        assert!(claims.claim(hash, 5, 6 * SECOND) && !claims.hold(hash, 3, 6 * SECOND));
        assert!(claims.hold(hash, 5, 6 * SECOND));
        claims.give_up(hash, false);
        assert_eq!(claims.owner(hash, 6000 * SECOND), Some(5));
        claims.give_up(hash, true);
        assert_eq!(claims.owner(hash, 6000 * SECOND), None);
        // A hash whose tag is nothing.
        assert!(claims.claim(7, 1, 0));
        assert_eq!(claims.owner(7, 0), Some(1));
    }

    #[test]
    fn another_flow_s_word_is_left_to_it() {
        let claims = Claims::new(8).unwrap();
        assert!(claims.claim(1 << 40 | 3, 1, 0) && !claims.claim(2 << 40 | 3, 2, 0));
        assert_eq!((claims.owner(1 << 40 | 3, 0), claims.owner(2 << 40 | 3, 0)), (Some(1), None));
        assert!(claims.claim(2 << 40 | 3, 2, 5 * SECOND));
        assert_eq!(claims.owner(1 << 40 | 3, 5 * SECOND), None);
    }

    #[test]
    fn of_many_who_claim_one_flow_all_hear_of_one_owner() {
        for round in 0..500_u64 {
            let claims = Arc::new(Claims::new(8).unwrap());
            let ask = |worker: u32| {
                let claims = Arc::clone(&claims);
                std::thread::spawn(move || {
                    assert!(claims.claim(round << 30, worker, 0));
                    claims.owner(round << 30, 0).unwrap()
                })
            };
            let threads: Vec<_> = (1..4).map(ask).collect();
            let owners: Vec<u32> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert!(owners.iter().all(|owner| *owner == owners[0] && *owner > 0), "{owners:?}");
        }
    }
}
