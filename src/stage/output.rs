//! Where packets go when they leave a burst.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use super::reassemble::Reassembly;
use crate::packet::{BURST, Burst, DropReason, Frame, FrameQueue, Meta, Slot};

/// Where in the pipeline a packet enters that does not come from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// From a port: at the start.
    Rx,
    /// Made by the gateway, or handed in by the host: at NAT.
    Forward,
    /// A fragment of a packet that is already on its way into a tunnel.
    Seal,
    /// Ready for its link-layer header: a fragment, or a packet whose neighbour is known now.
    Tx,
    /// A first fragment that is dropped since others did not come in time: its sender is told.
    Late,
}

/// A packet that goes on in a later burst.
#[derive(Debug)]
pub struct Resumed {
    /// Its frame.
    pub frame: Frame,
    /// What is known of it.
    pub meta: Meta,
    /// Where it goes on.
    pub entry: Entry,
}

/// Whom a packet waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingKey {
    /// On this interface.
    pub interface: u16,
    /// The neighbour's address.
    pub address: IpAddr,
}

/// A packet that waits for a neighbour's link address.
#[derive(Debug)]
pub struct Pending {
    /// Its frame.
    pub frame: Frame,
    /// What is known of it.
    pub meta: Meta,
    /// Whom it waits for.
    pub key: PendingKey,
    /// Since when (ns).
    pub since: u64,
}

/// Packets that wait for any neighbour, of one worker: a bound on what a scan of a subnet can hold.
const MAX_PENDING: usize = 256;
/// Packets that wait for one neighbour. RFC 1122 2.3.2.2 asks for one; a TCP or ping burst is a handful.
const MAX_PENDING_EACH: usize = 16;

/// Where packets of a worker go when they leave a burst.
#[derive(Debug)]
pub struct Output {
    /// Frames for each port.
    pub ports: Vec<FrameQueue>,
    /// Frames for each host TAP.
    pub hosts: Vec<FrameQueue>,
    /// Packets for a later burst.
    pub resumed: ArrayVec<Resumed, BURST>,
    /// Packets that wait for a neighbour.
    pub pending: Vec<Pending>,
    /// Fragments that wait for others of their packets.
    pub reassembly: Reassembly,
    /// Identification of the next outer or originated IPv4 packet that may be fragmented.
    identification: u16,
}

impl Output {
    /// Room for the packets of a worker with this many ports and host TAPs.
    #[must_use]
    pub fn new(ports: usize, hosts: usize) -> Self {
        Self {
            ports: (0..ports).map(|_| FrameQueue::new()).collect(),
            hosts: (0..hosts).map(|_| FrameQueue::new()).collect(),
            resumed: ArrayVec::new(),
            pending: Vec::with_capacity(MAX_PENDING),
            reassembly: Reassembly::default(),
            identification: 0,
        }
    }

    /// Moves a packet of the burst to those that wait for `key`; drops it when too many do.
    pub fn wait(&mut self, burst: &mut Burst, slot: Slot, key: PendingKey, now: u64) {
        let same = self.pending.iter().filter(|p| p.key == key).count();
        if self.pending.len() >= MAX_PENDING || same >= MAX_PENDING_EACH {
            burst.drop(slot, DropReason::NeighbourQueueFull);
            return;
        }
        let meta = *burst.meta(slot);
        if let Some(frame) = burst.take(slot) {
            self.pending.push(Pending { frame, meta, key, since: now });
        }
    }

    /// A fresh IPv4 identification.
    pub const fn next_identification(&mut self) -> u16 {
        self.identification = self.identification.wrapping_add(1);
        self.identification
    }
}
