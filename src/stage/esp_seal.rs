//! Seals packets into their tunnels (RFC 4303 3.3, RFC 4106, RFC 3948).

use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::{Cx, Stage};
use crate::{
    crypto::aead::{self, Aad, Job},
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stats::SaColumn,
    table::{
        prefetch::prefetch_read,
        tables::NextHop,
        tunnel::{Df, SaOut, Tunnel},
    },
    wire::{esp, ip::protocol},
};

/// Puts each packet into the ESP packet of its tunnel; the cipher works on the burst as a whole.
#[derive(Debug)]
pub struct EspSeal {
    /// Sequence number of each packet of the burst.
    sequence: [u64; BURST],
}

impl Default for EspSeal {
    fn default() -> Self {
        Self { sequence: [0; BURST] }
    }
}

impl Stage for EspSeal {
    const NAME: &'static str = "esp-seal";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.seal, burst);
        if slots.is_empty() {
            return;
        }
        if cx.tables.tunnels.len() > NEAR_TUNNELS {
            fetch(cx, burst, slots);
        }
        self.number(cx, burst, slots);
        for slot in slots & burst.live() {
            if let Err(reason) = self.encapsulate(cx, burst, slot) {
                burst.drop(slot, reason);
            }
        }
        let slots = slots & burst.live();
        self.seal(cx, burst, slots);
        cx.lanes.tx |= slots;
    }
}

/// The tunnel and the association that a packet is sealed with.
fn association<'a>(cx: &Cx<'a>, meta: &Meta) -> Option<(&'a Tunnel, &'a SaOut)> {
    let tunnel = cx.tables.tunnel(meta.tunnel)?;
    Some((tunnel, tunnel.sa.as_deref()?))
}

/// So many tunnels, at about 1 KiB each with their keys, stay in the caches near the core by themselves.
const NEAR_TUNNELS: usize = 64;

/// Starts loading what the packets will be sealed with: of all packets at once, one step of the way at a time.
fn fetch(cx: &Cx<'_>, burst: &Burst, slots: Slots) {
    for slot in slots {
        if let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) {
            prefetch_read(tunnel);
            prefetch_read(&tunnel.sa);
        }
    }
    for slot in slots {
        if let Some((_, sa)) = association(cx, burst.meta(slot)) {
            prefetch_read(sa);
            prefetch_read(&sa.sequence);
            sa.key.lines().into_iter().for_each(prefetch_read);
        }
    }
    for slot in slots {
        if let Some((_, sa)) = association(cx, burst.meta(slot)) {
            prefetch_read(&*sa.sequence);
        }
    }
}

impl EspSeal {
    /// Takes sequence numbers, once for each run of packets into one tunnel.
    fn number(&mut self, cx: &Cx<'_>, burst: &mut Burst, slots: Slots) {
        let mut left = slots.into_iter().peekable();
        while let Some(first) = left.next() {
            let number = burst.meta(first).tunnel;
            let mut run = Slots::only(first);
            while let Some(next) = left.next_if(|slot| burst.meta(*slot).tunnel == number) {
                run.insert(next);
            }
            let Some((_, sa)) = association(cx, burst.meta(first)) else {
                run.into_iter().for_each(|slot| burst.drop(slot, DropReason::TunnelDown));
                continue;
            };
            if sa.ended.load(Relaxed) {
                cx.counters.sa(sa.index, SaColumn::Expired, run.len() as u64);
                run.into_iter().for_each(|slot| burst.drop(slot, DropReason::EspExpired));
                continue;
            }
            let mut numbers = sa.sequence.take(run.len() as u32).unwrap_or(0..0);
            let (mut packets, mut bytes) = (0, 0);
            for slot in run {
                // When fewer are left than packets, the last packets go without.
                match numbers.next().or_else(|| sa.sequence.take(1).and_then(|mut one| one.next())) {
                    Some(sequence) => {
                        self.set(slot, sequence);
                        packets += 1;
                        bytes += u64::from(burst.meta(slot).ip_len);
                    }
                    None => {
                        cx.counters.sa(sa.index, SaColumn::Exhausted, 1);
                        burst.drop(slot, DropReason::SequenceExhausted);
                    }
                }
            }
            cx.counters.tunnel_out(number, packets, bytes);
            cx.counters.sa(sa.index, SaColumn::Packets, packets);
            cx.counters.sa(sa.index, SaColumn::Bytes, bytes);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn set(&mut self, slot: Slot, sequence: u64) {
        self.sequence[slot.index()] = sequence;
    }

    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn get(&self, slot: Slot) -> u64 {
        self.sequence[slot.index()]
    }

    /// Puts the headers in front and the trailer behind, all but encrypted.
    #[inline]
    fn encapsulate(&self, cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) -> Result<(), DropReason> {
        let meta = *burst.meta(slot);
        let (tunnel, sa) = association(cx, &meta).ok_or(DropReason::TunnelDown)?;
        let next_hop = tunnel.next_hop.ok_or(DropReason::TunnelDown)?;
        let Some(&NextHop::Via { interface, neighbour, .. }) = cx.tables.next_hops.get(next_hop as usize)
        else {
            return Err(DropReason::TunnelDown);
        };
        let payload = usize::from(meta.ip_len);
        let in_front = tunnel.outer.header_len() + esp::HEADER_IV_LEN;
        let behind = esp::padding(payload) + esp::TRAILER_LEN + esp::ICV_LEN;
        let df = match tunnel.df {
            Df::Copy => !meta.is_v6() && meta.flags.has(Flags::DONT_FRAGMENT),
            Df::Set => true,
            Df::Clear => false,
        };
        let identification = if df { 0 } else { cx.out.next_identification() };
        let frame = burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?;
        if !frame.reframe(usize::from(meta.l3), payload, in_front) || !cx.umem.grow_back(frame, behind) {
            return Err(DropReason::NoBuffer);
        }
        let (bytes, known) = burst.packet_mut(cx.umem, slot);
        let total = bytes.len();
        let next_header = if meta.is_v6() { protocol::IPV6 } else { protocol::IPV4 };
        let inner = bytes.get_mut(in_front..).ok_or(DropReason::NoBuffer)?;
        esp::write_trailer(inner, payload, next_header).ok_or(DropReason::NoBuffer)?;
        // RFC 6040 4.1, normal mode: ECN is copied. DSCP is copied or set (RFC 4301 5.1.2.1).
        let class = tunnel.dscp.map_or(meta.tos, |dscp| dscp << 2 | meta.tos & 3);
        tunnel.outer.write(bytes, class, df, identification);
        let sequence = self.get(slot);
        if let Some(mut header) = esp::Esp::at_mut(bytes, tunnel.outer.header_len()) {
            header.set_spi(esp::Spi(sa.spi));
            header.set_sequence(sequence as u32);
            // The sequence number is the IV (RFC 4106 3.1): never twice under one key.
            header.set_iv(sequence.to_be_bytes());
        }
        known.l3 = 0;
        known.ip_len = total as u16;
        known.flags = Flags::NONE
            .with(Flags::V6, tunnel.outer.is_v6())
            .with(Flags::ORIGINATED, meta.flags.has(Flags::ORIGINATED));
        known.next_hop = next_hop;
        known.egress = interface;
        known.neighbour = neighbour.to_bits();
        Ok(())
    }

    /// Encrypts all packets of `slots` together.
    fn seal(&self, cx: &Cx<'_>, burst: &mut Burst, slots: Slots) {
        let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
        let tables = cx.tables;
        burst.for_each_bytes_mut(cx.umem, slots, |slot, bytes, meta| {
            let Some(tunnel) = tables.tunnel(meta.tunnel) else { return };
            let Some(sa) = tunnel.sa.as_deref() else { return };
            let text = bytes.get_mut(tunnel.outer.header_len() + esp::HEADER_IV_LEN..);
            let sequence = self.get(slot);
            let aad = if sa.esn { Aad::esn(sa.spi, sequence) } else { Aad::new(sa.spi, sequence as u32) };
            if let Some(text) = text {
                // As many jobs as slots, so there is room.
                let _ = jobs.try_push(Job::new(&sa.key, sequence.to_be_bytes(), aad, text));
            }
        });
        aead::seal(&mut jobs);
    }
}
