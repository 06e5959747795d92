//! A device through an AF_PACKET socket: the fallback where XDP is not to be had.
//!
//! The kernel keeps a copy of every frame and handles it too, so this is for devices that carry nothing of the
//! host's own.

use std::os::fd::{AsFd, BorrowedFd};

use af_xdp::{
    Device, Error, LinkState,
    packet_socket::{PacketConfig, PacketSocket, Received, Stop},
};

use super::{PacketIo, PortHealth, PortStats};
use crate::packet::{Frame, FramePool, FrameQueue, HEADROOM};

/// One device, or a share of its flows, through an AF_PACKET socket.
#[derive(Debug)]
pub struct PacketPort {
    socket: PacketSocket,
    health: PortHealth,
    /// Received frames that did not fit a buffer, or that the ring holds in part only.
    too_long: u64,
    /// Frames that the kernel would not send.
    refused: u64,
    kicks: u64,
}

impl PacketPort {
    /// Opens a device.
    ///
    /// # Errors
    /// See [`PacketSocket::open`].
    pub fn open(device: &Device, config: &PacketConfig) -> Result<Self, Error> {
        let socket = PacketSocket::open(device, config)?;
        Ok(Self { socket, health: PortHealth::Up, too_long: 0, refused: 0, kicks: 0 })
    }
}

/// Copies a frame from the ring. `Err` gives the buffer back, when the frame does not fit it.
fn copy(pool: &FramePool, mut frame: Frame, from: &Received<'_>) -> Result<Frame, Frame> {
    let umem = pool.umem();
    umem.reset(&mut frame, HEADROOM);
    if from.is_whole() && umem.grow_back(&mut frame, from.len()) && from.copy_to(umem.bytes_mut(&mut frame)) {
        Ok(frame)
    } else {
        Err(frame)
    }
}

impl PacketIo for PacketPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        let before = out.len();
        let too_long = &mut self.too_long;
        self.socket.receive(out.remaining_capacity().min(max), |received| {
            // Without a buffer the frame waits in the ring, and the kernel counts what it must drop.
            let Some(frame) = pool.alloc() else { return false };
            match copy(pool, frame, received) {
                Ok(frame) => out.extend([frame]),
                Err(frame) => {
                    *too_long += 1;
                    pool.free(frame);
                }
            }
            true
        });
        out.len() - before
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        let before = frames.len();
        while !frames.is_empty() && self.health != PortHealth::Gone {
            let umem = pool.umem();
            self.kicks += 1;
            let (sent, stop) = self.socket.send(frames.iter().map(|frame| umem.bytes(frame)));
            // A refused frame is the next one: it will not be taken another time either.
            let refused = usize::from(stop == Stop::Refused);
            self.refused += refused as u64;
            for frame in frames.drain(..(sent + refused).min(frames.len())) {
                pool.free(frame);
            }
            self.health = match stop {
                Stop::Finished | Stop::Refused | Stop::Busy => PortHealth::Up,
                Stop::Down => PortHealth::Down,
                Stop::Gone => PortHealth::Gone,
            };
            if !matches!(stop, Stop::Finished | Stop::Refused) {
                break;
            }
        }
        before - frames.len()
    }

    fn complete(&mut self, _: &mut FramePool) {}

    fn shutdown(&mut self, _: &mut FramePool) -> usize {
        0
    }

    fn held(&self) -> usize {
        0
    }

    fn stats(&mut self) -> PortStats {
        let kernel = self.socket.statistics().unwrap_or_default();
        PortStats {
            rx_ring_full: kernel.dropped,
            rx_dropped: self.too_long,
            invalid_descriptors: self.refused,
            tx_kicks: self.kicks,
            ..PortStats::default()
        }
    }

    fn health(&mut self) -> PortHealth {
        if self.health != PortHealth::Gone {
            self.health = match self.socket.link_state() {
                LinkState::Up => PortHealth::Up,
                LinkState::Down => PortHealth::Down,
                LinkState::Gone => PortHealth::Gone,
            };
        }
        self.health
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}
