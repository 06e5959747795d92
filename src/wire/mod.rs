//! Header views over bytes: checked constructors, getters and setters. Names nothing else of this crate.
//!
//! A fixed header is viewed through a reference to an array of its size (`&[u8; 20]`, `&mut [u8; 20]`, or an
//! owned array), so the one bounds check is where the view is made and every field read after it is a plain
//! load. What varies in length (options, extension headers, quoted packets) is a slice beside the view, bounded
//! by the packet's own lengths, and walked by iterators that end on any bytes.
//!
//! Nothing here allocates or panics, whatever the bytes: [`fuzz::exercise`] walks every view and is called by a
//! fuzz target and by the tests.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[macro_use]
mod field;

pub mod arp;
pub mod bfd;
pub mod checksum;
pub mod esp;
pub mod ethernet;
pub mod flow;
#[doc(hidden)]
pub mod fuzz;
pub mod icmpv4;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;
pub mod vlan;
