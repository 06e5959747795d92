//! What packets in a row have in common that are of one association.

use super::header::Header;
use crate::{crypto::replay, packet::Meta, table::tunnel::SaIn};

/// The association that a packet names, and what of its outer header was compared with it: packets in a row that have
/// the same are of the same association, and as right.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    pub sa: &'a SaIn,
    pub number: u32,
    /// The outer packet's [`ends`]; of IPv6, what no packet has, so that all are looked at.
    ends: u64,
    gateway: u16,
    proto: u8,
    /// The newest number accepted, as the first packet found it: other workers write to its line.
    pub newest: u64,
    /// The oldest number that the window then held.
    edge: u64,
}

impl<'a> Path<'a> {
    pub fn new(sa: &'a SaIn, number: u32, meta: &Meta) -> Self {
        let ends = if meta.is_v6() { u64::MAX } else { ends(meta) };
        let newest = sa.window.newest();
        let edge = sa.window.edge_at(newest);
        Self { sa, number, ends, gateway: meta.gateway, proto: meta.proto, newest, edge }
    }

    /// Whether a packet is of it.
    #[inline(always)]
    pub fn is_of(&self, spi: u32, meta: &Meta) -> bool {
        (self.sa.spi == spi)
            & (self.ends == ends(meta))
            & (self.gateway == meta.gateway)
            & (self.proto == meta.proto)
    }

    /// The whole sequence number of a packet.
    #[inline(always)]
    pub fn sequence(&self, header: &Header) -> u64 {
        whole(self.sa, self.edge, header)
    }

    /// The association and whole sequence number of a packet that is of it, and may be opened.
    #[inline(always)]
    pub fn follow(&self, header: &Header, meta: &Meta) -> Option<(&'a SaIn, u64)> {
        let sequence = self.sequence(header);
        let goes_on = self.is_of(header.spi, meta) && self.sa.check_at(self.newest, sequence).is_ok();
        goes_on.then_some((self.sa, sequence))
    }
}

/// The whole sequence number of a packet, where the window begins with `edge`.
#[inline(always)]
pub(super) const fn whole(sa: &SaIn, edge: u64, header: &Header) -> u64 {
    if sa.esn { replay::whole(edge, header.sequence) } else { header.sequence as u64 }
}

/// Source and destination of an outer packet over IPv4 in one word, which is compared at once.
#[inline(always)]
fn ends(meta: &Meta) -> u64 {
    u64::from(meta.src) | u64::from(meta.dst) << 32
}
