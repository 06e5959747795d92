//! A port of any kind: which one is chosen when the gateway starts, and asked once a burst.

use std::os::fd::BorrowedFd;

use super::{
    PacketIo, PortHealth, PortStats, af_packet::PacketPort, mem::MemPort, tap::TapPort, xdp::XdpPort,
};
use crate::packet::{FramePool, FrameQueue};

/// A port of any kind.
#[derive(Debug)]
pub enum AnyPort {
    /// AF_XDP.
    Xdp(Box<XdpPort>),
    /// AF_PACKET.
    Packet(Box<PacketPort>),
    /// A TAP.
    Tap(Box<TapPort>),
    /// A wire in memory.
    Mem(MemPort),
}

macro_rules! each {
    ($port:expr, $inner:ident => $call:expr) => {
        match $port {
            AnyPort::Xdp($inner) => $call,
            AnyPort::Packet($inner) => $call,
            AnyPort::Tap($inner) => $call,
            AnyPort::Mem($inner) => $call,
        }
    };
}

impl PacketIo for AnyPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut FrameQueue, max: usize) -> usize {
        each!(self, port => port.rx_burst(pool, out, max))
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut FrameQueue) -> usize {
        each!(self, port => port.tx_burst(pool, frames))
    }

    fn complete(&mut self, pool: &mut FramePool) {
        each!(self, port => port.complete(pool));
    }

    fn shutdown(&mut self, pool: &mut FramePool) -> usize {
        each!(self, port => port.shutdown(pool))
    }

    fn held(&self) -> usize {
        each!(self, port => port.held())
    }

    fn stats(&mut self) -> PortStats {
        each!(self, port => port.stats())
    }

    fn health(&mut self) -> PortHealth {
        each!(self, port => port.health())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        each!(self, port => port.fd())
    }
}
