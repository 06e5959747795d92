//! AES-GCM for ESP in bursts, sequence numbers that never repeat, and the replay window.
//!
//! - [`aead`]: seals and opens a whole burst of ESP packets at once (RFC 4106), by the fastest backend of the
//!   machine or by the `aes-gcm` crate, which every other backend is tested against.
//! - [`replay`]: the inbound window (RFC 4303 3.4.3, RFC 6479), shared by workers without a lock.
//! - [`sequence`]: the outbound numbers, reserved on disk before they are used.
//!
//! Names nothing else of this crate.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

/// AES-GCM for a burst of ESP packets; a crate of its own.
pub use burst_gcm as aead;
pub mod replay;
pub mod sequence;
