//! Where the gateway's own probes go, and what of them comes back: the two ends of each way out that is watched.

use std::net::IpAddr;

/// A way out of a gateway, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The interface of this number.
    Interface(u16),
    /// The tunnel of this number.
    Tunnel(u16),
}

/// The ends that probes go between. A packet that comes the same way the other way round is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Ours.
    pub own: IpAddr,
    /// The other one.
    pub other: IpAddr,
    /// The next hop, by number: of an interface the link itself. Not used inside a tunnel.
    pub next_hop: u32,
    /// What our own echo requests hold, so that a reply to another's is not taken for theirs, and nobody makes one up
    /// who has not seen one.
    pub token: u64,
}

/// What is watched of one way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watch {
    /// By ICMP echo.
    pub echo: Option<Ends>,
    /// By BFD.
    pub bfd: Option<Ends>,
}

impl Watch {
    /// Whether anything is.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.echo.is_some() || self.bfd.is_some()
    }

    /// Whether packets between these two addresses, from the first to the second, are probes of the other end.
    #[must_use]
    pub fn has(&self, source: IpAddr, destination: IpAddr) -> bool {
        [self.echo, self.bfd].iter().flatten().any(|ends| ends.own == destination && ends.other == source)
    }
}

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// An echo request.
    Echo {
        /// Its number.
        sequence: u16,
    },
    /// A BFD control packet.
    Bfd {
        /// The packet.
        packet: [u8; crate::wire::bfd::LEN],
        /// The UDP port it comes from.
        source_port: u16,
    },
}
