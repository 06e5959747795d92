//! Outbound sequence numbers, which are also the nonces of AES-GCM (RFC 4106 3.1): a number used twice under one
//! key gives the key's authentication away, and the text of both packets.
//!
//! - [`Sequence`]: hands numbers out to workers, up to a limit.
//! - [`StateFile`]: reserves numbers on disk, then raises the limit. A number that was handed out lies below what
//!   the disk holds at any moment, so after a kill or a power cut the next run starts beyond it.
//! - [`Fingerprint`]: what names a key there.

mod error;
mod fingerprint;
mod mapped;
mod record;
mod state;
#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

pub use error::StateError;
pub use fingerprint::Fingerprint;
pub use state::StateFile;

/// The numbers of one outbound association that are not used yet. Workers share it.
#[derive(Debug)]
#[repr(align(64))]
pub struct Sequence {
    /// The next number.
    next: AtomicU64,
    /// The first number that may not be taken yet. Only the state file raises it.
    limit: AtomicU64,
    /// The first number that may never be taken.
    end: AtomicU64,
}

/// The first number that an association may not use: a counter must not come round to 0 (RFC 4303 3.3.3).
///
/// With ESN it is 2^64 - 1, one less than the RFC allows, for a limit to fit.
const fn end(esn: bool) -> u64 {
    if esn { u64::MAX } else { 1 << 32 }
}

impl Sequence {
    /// Numbers that no file remembers, from `first` on (0 is none: 1 is taken instead). For benchmarks and replays:
    /// nothing that is sealed with them may leave the machine.
    #[must_use]
    pub fn ephemeral(first: u64, esn: bool) -> Self {
        Self::new(first, end(esn), esn)
    }

    fn new(next: u64, limit: u64, esn: bool) -> Self {
        Self {
            next: AtomicU64::new(next.max(1)),
            limit: AtomicU64::new(limit.min(end(esn))),
            end: AtomicU64::new(end(esn)),
        }
    }

    /// Takes the next `n` numbers. `None`, and takes none, when fewer are reserved or left.
    #[inline]
    #[must_use = "numbers taken are used up"]
    pub fn take(&self, n: u32) -> Option<Range<u64>> {
        // Only the value counts: the disk holds the reservation before the limit is stored.
        let limit = self.limit.load(Ordering::Acquire);
        let mut first = self.next.load(Ordering::Relaxed);
        loop {
            let after = first.checked_add(n.into()).filter(|after| *after <= limit)?;
            match self.next.compare_exchange_weak(first, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(first..after),
                Err(other) => first = other,
            }
        }
    }

    /// The next number that will be taken, if one is left.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// How many numbers are left before the key must be replaced, reserved or not.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.end.load(Ordering::Relaxed).saturating_sub(self.next())
    }

    /// Whether no number is left: the key must be replaced.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.remaining() == 0
    }

    /// Whether numbers have 64 bits: both ends may change their mind while the key stays. Only the state file.
    fn set_esn(&self, esn: bool) {
        self.end.store(end(esn), Ordering::Relaxed);
        self.limit.fetch_min(end(esn), Ordering::AcqRel);
    }
}
