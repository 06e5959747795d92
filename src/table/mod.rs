//! What workers look up: LPM, SPD, SAD, NAT, neighbours.
//!
//! The tables are plain data structures over integers in host order: `u32` for an IPv4 address, `u128` for an
//! IPv6 one. Two kinds exist. [`spd`], [`sad`] and [`nat`] are built once and never change: a reload builds
//! new ones. [`lpm`] and [`neighbour`] change while workers read them: one writer, any number of readers, no
//! locks, every shared word an atomic.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod address;
pub mod association;
pub mod choice;
pub mod gateway_nat;
pub mod hash;
pub mod interface;
pub mod limit;
pub mod liveness;
pub mod lpm;
pub mod nat;
pub mod neighbour;
pub mod next_hops;
pub mod pages;
pub mod path;
pub mod probe;
pub mod rib;
pub mod sad;
pub mod session;
pub mod spd;
pub mod tables;
pub mod tunnel;

pub use crate::packet::prefetch;
