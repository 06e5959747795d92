//! Frames, UMEM, bursts, metadata and drop reasons.
//!
//! A [`Frame`] is an owned token for one buffer of a [`Umem`]: whoever holds it owns the bytes. It is not
//! `Clone`, so a buffer is in exactly one place at any time: a [`FramePool`], a [`FrameQueue`], a slot of a
//! [`Burst`], or lent to a driver through a [`Lender`]. "Every frame is home" is then a sum that can be checked.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod burst;
pub mod drop;
pub mod frame;
pub mod handoff;
pub mod meta;
pub mod prefetch;
pub mod ring;
pub mod slots;
mod sync;
pub mod umem;

pub use burst::{Burst, Packets};
pub use drop::DropReason;
pub use frame::{Frame, FrameQueue};
pub use handoff::{Handed, Links};
pub use meta::{Flags, Meta, NO_INTERFACE, NatMarks, Tagging};
pub use slots::{Slot, Slots};
pub use umem::{FramePool, HUGE_PAGE, HugePages, Lender, Umem, UmemError};

/// Largest number of packets in a burst: one bit each in a [`Slots`].
pub const BURST: usize = 64;

/// Bytes kept free in front of a received packet.
///
/// The kernel leaves as much in front of an AF_XDP frame (`XDP_PACKET_HEADROOM`), and it is more than any
/// encapsulation of this gateway needs (22 B Ethernet with two tags, 40 B IPv6, 8 B UDP, 16 B ESP).
pub const HEADROOM: usize = 256;
