//! Ports: where bursts of frames come from and go to.
//!
//! A worker knows its ports only as [`PacketIo`]. Behind it stand AF_XDP and AF_PACKET sockets, TAPs, pcap files,
//! memory rings, and a wrapper that injects faults.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use std::os::fd::BorrowedFd;

use crate::packet::{FramePool, FrameQueue};

pub mod af_packet;
pub mod any;
pub mod fault;
pub mod mem;
pub mod pcap;
pub mod tap;
pub mod xdp;

/// What a port counts itself, since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStats {
    /// Frames the device or kernel dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Frames dropped because the fill ring gave no buffer.
    pub rx_fill_empty: u64,
    /// Frames dropped on receive for other reasons (too long for a buffer, invalid).
    pub rx_dropped: u64,
    /// Descriptors that the kernel refused.
    pub invalid_descriptors: u64,
    /// System calls to make the kernel send.
    pub tx_kicks: u64,
    /// System calls to make the kernel receive.
    pub rx_wakeups: u64,
}

/// Whether a port can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PortHealth {
    /// It works.
    #[default]
    Up,
    /// The device has no carrier or is set down; it may come back.
    Down,
    /// The device is gone for good, as far as this socket goes.
    Gone,
}

/// One queue of a port, owned by one worker.
pub trait PacketIo {
    /// Appends up to `max` received frames to `out`, no more than it has room for. Returns how many.
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize;

    /// Takes frames from the front of `frames`, as many as the port accepts now, and returns how many. The rest stay.
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize;

    /// Gets back the frames that have been sent and gives the port what it needs to receive.
    ///
    /// Called once a round, also when there is nothing to send.
    fn complete(&mut self, pool: &mut FramePool);

    /// Ends the use of the port: takes home every frame that it still holds, and returns how many of them were
    /// packets on their way out (accepted by `tx_burst`, not known to have been sent).
    fn shutdown(&mut self, pool: &mut FramePool) -> usize;

    /// Frames of the pool that the port holds now.
    fn held(&self) -> usize;

    /// What the port counts itself. May cost a system call.
    fn stats(&mut self) -> PortStats {
        PortStats::default()
    }

    /// Whether the port can be used. May cost a system call.
    fn health(&mut self) -> PortHealth {
        PortHealth::Up
    }

    /// Something to sleep on until a frame can be received.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
