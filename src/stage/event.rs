//! What workers tell the control thread.

use std::net::IpAddr;

use crossbeam::queue::ArrayQueue;

use crate::{
    packet::DropReason,
    table::probe::Way,
    wire::{bfd, ethernet::MacAddr},
};

/// How sure a neighbour's claim of an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourClaim {
    /// It asked us for something: it exists, and wants an answer.
    Asked,
    /// It answered: to us, or (gratuitously) to all.
    Answered {
        /// Whether the answer came to us alone.
        solicited: bool,
    },
}

/// Something for the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Packets wait for the link address of this neighbour.
    Solicit {
        /// On this interface.
        interface: u16,
        /// Its address.
        address: IpAddr,
    },
    /// A neighbour told its link address.
    Neighbour {
        /// On this interface.
        interface: u16,
        /// Its address.
        address: IpAddr,
        /// Its link address.
        mac: MacAddr,
        /// On what occasion.
        claim: NeighbourClaim,
    },
    /// NAT makes no more sessions, for this reason. Told once a second at most.
    NatExhausted {
        /// In this gateway.
        gateway: u16,
        /// Why.
        reason: DropReason,
        /// For a host, or by a pool, with this address.
        address: u32,
    },
    /// A probe of ours was answered.
    Echo {
        /// Which way it went.
        way: Way,
        /// Its number.
        sequence: u16,
        /// When a worker made it (ns).
        sent: u64,
        /// When a worker got the answer (ns).
        received: u64,
    },
    /// A BFD control packet came from the other end.
    Bfd {
        /// Which way it came.
        way: Way,
        /// Its first bytes.
        packet: [u8; bfd::LEN],
        /// How many its datagram has.
        len: u16,
        /// When a worker got it (ns).
        received: u64,
    },
    /// A host claims an address that is ours.
    Conflict {
        /// On this interface.
        interface: u16,
        /// Our address.
        address: IpAddr,
        /// The other host.
        mac: MacAddr,
    },
}

/// Events from workers to the control thread. When it is full, events are lost, and counted by whoever loses them.
pub type EventQueue = ArrayQueue<Event>;
