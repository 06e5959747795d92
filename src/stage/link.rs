//! The way over a link to one neighbour: what rewriting needs, found once for packets in a row.

use super::Cx;
use crate::{
    packet::{Flags, Frame, Meta, Umem},
    table::neighbour::NeighbourId,
    wire::{ethernet::MacAddr, vlan::L2Header},
};

/// In `Meta::neighbour`: not known yet.
pub const NO_NEIGHBOUR: u32 = u32::MAX;
/// In `Meta::neighbour`: asked for in vain.
pub const SILENT_NEIGHBOUR: u32 = u32::MAX - 1;

/// Least bytes of an Ethernet frame, without its FCS (IEEE 802.3 3.2.8).
const MIN_FRAME: usize = 60;

/// The way over a link to one neighbour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub egress: u16,
    neighbour: u32,
    v6: bool,
    pub port: u16,
    pub header: L2Header,
}

/// Why a packet cannot be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unready {
    /// Its interface is no more.
    Gone,
    /// Its neighbour's address is not known yet.
    Unknown,
    /// Its neighbour does not answer.
    Silent,
}

impl Link {
    /// The link of this interface to this neighbour, for packets of one IP version.
    ///
    /// # Errors
    /// Why there is none.
    #[inline]
    pub fn of(cx: &Cx<'_>, egress: u16, neighbour: u32, v6: bool) -> Result<Self, Unready> {
        let interface = cx.tables.interface(egress).ok_or(Unready::Gone)?;
        let header = if v6 { &interface.header_v6 } else { &interface.header_v4 };
        let mac = match neighbour {
            SILENT_NEIGHBOUR => return Err(Unready::Silent),
            NO_NEIGHBOUR => None,
            bits => {
                let id = NeighbourId::from_bits(bits);
                cx.tables.neighbours.touch(id, cx.now);
                cx.tables.neighbours.mac(id)
            }
        };
        let header = header.with_destination(MacAddr(mac.ok_or(Unready::Unknown)?));
        Ok(Self { egress, neighbour, v6, port: interface.port, header })
    }

    /// The interface and the port that its packets leave by.
    #[inline(always)]
    pub const fn to(&self) -> (u16, u16) {
        (self.egress, self.port)
    }

    /// Whether it is the one of this interface to this neighbour, for packets of one IP version.
    #[inline(always)]
    pub const fn leads(&self, egress: u16, neighbour: u32, v6: bool) -> bool {
        self.egress == egress && self.neighbour == neighbour && self.v6 == v6
    }

    /// The IP version of its packets, as their flags tell it.
    #[inline(always)]
    pub const fn version(&self) -> Flags {
        if self.v6 { Flags::V6 } else { Flags::NONE }
    }

    /// Whether the packet goes this way.
    #[inline(always)]
    pub const fn is_of(&self, meta: &Meta) -> bool {
        self.leads(meta.egress, meta.neighbour, meta.is_v6())
    }

    /// Makes of the IP packet at `meta.l3` a frame for this link. The result is its bytes, from the IP header on; `None`, and
    /// nothing changed, when the buffer has no room for the header.
    #[inline(always)]
    pub fn put<'a>(&self, umem: &'a Umem, frame: &'a mut Frame, meta: &Meta) -> Option<&'a mut [u8]> {
        let (at, len) = (usize::from(meta.l3), usize::from(meta.ip_len));
        if !frame.reframe(at, len, self.header.header_len()) {
            return None;
        }
        pad(umem, frame);
        let bytes = umem.bytes_mut(frame);
        let written = self.header.write(bytes)?;
        bytes.get_mut(written..)
    }
}

/// Makes a frame as long as Ethernet asks for.
#[inline]
pub fn pad(umem: &Umem, frame: &mut Frame) {
    let short = MIN_FRAME.saturating_sub(frame.len());
    if short > 0 {
        // Padding is zeros: what stood in the buffer before is nobody's business (RFC 1042).
        let end = frame.len();
        let _ = umem.grow_back(frame, short);
        umem.bytes_mut(frame).get_mut(end..).unwrap_or(&mut []).fill(0);
    }
}
