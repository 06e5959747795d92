//! A TAP device as a port: what the gateway sends, the kernel's stack receives, and the other way.
//!
//! One system call a frame: for the host's own traffic, not for the gateway's.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use af_xdp::{Device, Error, LinkState, tap::Tap};

use super::{PacketIo, PortHealth, PortStats};
use crate::packet::{FramePool, FrameQueue};

/// `EBADFD` and `EIO` of Linux: the errors of a TAP that mean something to a port.
const DELETED: i32 = libc::EBADFD;
const DOWN: i32 = libc::EIO;

/// A TAP device, or one queue of it.
#[derive(Debug)]
pub struct TapPort {
    tap: Tap,
    health: PortHealth,
    /// Frames from the kernel that may have been longer than a buffer.
    too_long: u64,
    /// Frames that the kernel would not take.
    refused: u64,
    kicks: u64,
    wakeups: u64,
}

impl TapPort {
    /// Makes a TAP device of that name, or joins a persistent one. It is not set up.
    ///
    /// # Errors
    /// See [`Tap::open`].
    pub fn open(name: &str) -> Result<Self, Error> {
        Tap::open(name).map(Self::new)
    }

    /// As [`TapPort::open`], with a queue for each of several workers.
    ///
    /// # Errors
    /// See [`Tap::open_queues`].
    pub fn open_queues(name: &str, queues: usize) -> Result<Vec<Self>, Error> {
        Ok(Tap::open_queues(name, queues)?.into_iter().map(Self::new).collect())
    }

    const fn new(tap: Tap) -> Self {
        Self { tap, health: PortHealth::Up, too_long: 0, refused: 0, kicks: 0, wakeups: 0 }
    }

    /// The device, as the kernel's stack sees it.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.tap.device()
    }

    fn note(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            Some(DELETED) => self.health = PortHealth::Gone,
            Some(DOWN) => self.health = PortHealth::Down,
            _ => {}
        }
    }
}

impl PacketIo for TapPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let before = out.len();
        while out.len() - before < max && !out.is_full() && self.health != PortHealth::Gone {
            let Some(mut frame) = pool.alloc() else { break };
            let umem = pool.umem();
            let room = umem.max_packet();
            if !umem.grow_back(&mut frame, room) {
                pool.free(frame);
                break;
            }
            self.wakeups += 1;
            match self.tap.receive(umem.bytes_mut(&mut frame)) {
                // A frame that fills the buffer was probably cut to it.
                Ok(len) if len < room => {
                    frame.truncate(len);
                    out.extend([frame]);
                }
                Ok(_) => {
                    self.too_long += 1;
                    pool.free(frame);
                }
                Err(error) => {
                    self.note(&error);
                    pool.free(frame);
                    break;
                }
            }
        }
        out.len() - before
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        let mut taken = 0;
        for frame in frames.iter() {
            if self.health == PortHealth::Gone {
                break;
            }
            self.kicks += 1;
            match self.tap.send(pool.umem().bytes(frame)) {
                Ok(()) => self.health = PortHealth::Up,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if matches!(error.raw_os_error(), Some(DELETED | DOWN)) => {
                    self.note(&error);
                    break;
                }
                Err(_) => self.refused += 1,
            }
            taken += 1;
        }
        for frame in frames.drain(..taken) {
            pool.free(frame);
        }
        taken
    }

    fn complete(&mut self, _: &mut FramePool) {}

    fn shutdown(&mut self, _: &mut FramePool) -> usize {
        0
    }

    fn held(&self) -> usize {
        0
    }

    fn stats(&mut self) -> PortStats {
        PortStats {
            rx_dropped: self.too_long,
            invalid_descriptors: self.refused,
            tx_kicks: self.kicks,
            rx_wakeups: self.wakeups,
            ..PortStats::default()
        }
    }

    fn health(&mut self) -> PortHealth {
        if self.health != PortHealth::Gone {
            self.health = match self.tap.device().state() {
                LinkState::Up => PortHealth::Up,
                LinkState::Down => PortHealth::Down,
                LinkState::Gone => PortHealth::Gone,
            };
        }
        self.health
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }
}
