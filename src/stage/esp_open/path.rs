//! What packets in a row have in common that are of one association.

use super::{
    Work,
    header::{Header, bare, header},
};
use crate::{
    crypto::replay,
    packet::{Frame, Meta, Packets, Slot, Umem},
    table::tunnel::SaIn,
    wire::{esp, ip::protocol},
};

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

    /// Whether a packet with this SPI is of it.
    #[inline(always)]
    pub fn is_of(&self, spi: u32, meta: &Meta) -> bool {
        (self.sa.spi == spi) & self.leads(meta)
    }

    /// Whether a packet comes from where those before did, to where they went, and in the same way.
    #[inline(always)]
    fn leads(&self, meta: &Meta) -> bool {
        (self.ends == ends(meta)) & (self.gateway == meta.gateway) & (self.proto == meta.proto)
    }

    /// Adds packets to what the cipher is to do as long as they are of it and there is nothing to be said of them. The result is
    /// the first for which that does not hold, and those behind it.
    #[inline(never)] // What each packet is compared with then stays in registers.
    pub fn follow_all<'p>(
        &self,
        umem: &'p Umem,
        mut packets: Packets<'p>,
        work: &mut Work<'p>,
    ) -> (Option<(Slot, &'p mut Frame, &'p mut Meta)>, Packets<'p>)
    where
        'a: 'p,
    {
        while let Some((slot, frame, meta)) = packets.next() {
            let found = umem.cut_if(frame, |bytes| {
                let found = self.follow(bytes, meta)?;
                Some((found.text.0, found.text.1, found))
            });
            match found {
                Ok((text, found)) => work.add(slot, text, &found),
                Err(frame) => return (Some((slot, frame, meta)), packets),
            }
        }
        (None, packets)
    }

    /// What there is to open in a packet that is of it and of which there is nothing to be said; `None` for any other.
    #[inline(always)]
    fn follow(&self, bytes: &[u8], meta: &Meta) -> Option<ToOpen<'a>> {
        if !self.leads(meta) {
            return None;
        }
        let header =
            if meta.proto == protocol::UDP { found_in_udp(bytes, meta)? } else { bare(bytes, meta).ok()? };
        let sequence = self.sequence(&header);
        let goes_on = header.spi == self.sa.spi && self.sa.check_at(self.newest, sequence).is_ok();
        goes_on.then(|| ToOpen::new(&header, self.sa, sequence))
    }

    /// The whole sequence number of a packet.
    #[inline(always)]
    pub fn sequence(&self, header: &Header) -> u64 {
        whole(self.sa, self.edge, header)
    }
}

/// As [`header`], where there is one. Apart, so that what comes bare pays nothing for it.
#[inline(never)]
fn found_in_udp(bytes: &[u8], meta: &Meta) -> Option<Header> {
    header(bytes, meta).ok().flatten()
}

/// What there is to open in a packet, and by what.
pub(super) struct ToOpen<'a> {
    pub sa: &'a SaIn,
    pub sequence: u64,
    pub iv: [u8; esp::IV_LEN],
    /// Offset of the ciphertext, and its bytes with the ICV.
    pub text: (usize, usize),
}

impl<'a> ToOpen<'a> {
    #[inline(always)]
    pub const fn new(header: &Header, sa: &'a SaIn, sequence: u64) -> Self {
        let start = header.at + esp::HEADER_IV_LEN;
        Self { sa, sequence, iv: header.iv, text: (start, header.end - start) }
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
