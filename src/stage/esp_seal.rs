//! Seals packets into their tunnels (RFC 4303 3.3, RFC 4106, RFC 3948).

use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::{Cx, Entry, Stage, fragment, icmp_error};
use crate::{
    crypto::aead::{self, Aad, Job},
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stats::SaColumn,
    table::{
        path::LEAST_V4,
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
    /// Packets that are larger than line or path take.
    oversize: Slots,
    /// Packets whose UDP checksum is due.
    unsummed: Slots,
}

impl Default for EspSeal {
    fn default() -> Self {
        Self { sequence: [0; BURST], oversize: Slots::NONE, unsummed: Slots::NONE }
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
            match self.encapsulate(cx, burst, slot) {
                Ok(()) => {}
                Err(DropReason::TunnelDown) => down(cx, burst, slot),
                Err(reason) => burst.drop(slot, reason),
            }
        }
        let slots = slots & burst.live();
        self.seal(cx, burst, slots);
        cx.lanes.tx |= slots;
        if !(self.oversize | self.unsummed).is_empty() {
            self.complete(cx, burst);
        }
    }
}

/// The tunnel and the association that a packet is sealed with.
fn association<'a>(cx: &Cx<'a>, meta: &Meta) -> Option<(&'a Tunnel, &'a SaOut)> {
    let tunnel = cx.tables.tunnel(meta.tunnel)?;
    Some((tunnel, tunnel.sa.as_deref()?))
}

/// The tunnel cannot carry a packet, which is still as it was: its sender is told.
#[cold]
fn down(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let problem = icmp_error::Problem::HostUnreachable;
    icmp_error::drop_with_error(cx, burst, slot, DropReason::TunnelDown, problem);
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
    fn number(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) {
        let mut left = slots.into_iter().peekable();
        while let Some(first) = left.next() {
            let number = burst.meta(first).tunnel;
            let mut run = Slots::only(first);
            while let Some(next) = left.next_if(|slot| burst.meta(*slot).tunnel == number) {
                run.insert(next);
            }
            let Some((_, sa)) = association(cx, burst.meta(first)) else {
                run.into_iter().for_each(|slot| down(cx, burst, slot));
                continue;
            };
            if sa.ended.load(Relaxed) {
                cx.counters.sa(sa.index, SaColumn::Expired, run.len() as u64);
                run.into_iter().for_each(|slot| burst.drop(slot, DropReason::EspExpired));
                continue;
            }
            let mut numbers = sa.sequence.take(run.len() as u32).unwrap_or(0..0);
            let (mut packets, mut bytes) = (0, 0);
            let (mut dummies, mut dummy_bytes) = (0, 0);
            for slot in run {
                // When fewer are left than packets, the last packets go without.
                match numbers.next().or_else(|| sa.sequence.take(1).and_then(|mut one| one.next())) {
                    Some(sequence) => {
                        self.set(slot, sequence);
                        packets += 1;
                        bytes += u64::from(burst.meta(slot).ip_len);
                        if burst.meta(slot).flags.has(Flags::DUMMY) {
                            dummies += 1;
                            dummy_bytes += u64::from(burst.meta(slot).ip_len);
                        }
                    }
                    None => {
                        cx.counters.sa(sa.index, SaColumn::Exhausted, 1);
                        burst.drop(slot, DropReason::SequenceExhausted);
                    }
                }
            }
            cx.counters.tunnel_out(number, packets - dummies, bytes - dummy_bytes);
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
    fn encapsulate(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) -> Result<(), DropReason> {
        let meta = *burst.meta(slot);
        let (tunnel, sa) = association(cx, &meta).ok_or(DropReason::TunnelDown)?;
        let next_hop = tunnel.next_hop.ok_or(DropReason::TunnelDown)?;
        let Some(&NextHop::Via { interface, neighbour, .. }) = cx.tables.outer_way(next_hop, meta.tunnel)
        else {
            return Err(DropReason::TunnelDown);
        };
        let length = usize::from(meta.ip_len);
        let payload = tunnel.padded(length);
        let in_front = tunnel.outer.header_len() + esp::HEADER_IV_LEN;
        let behind = esp::padding(payload) + esp::TRAILER_LEN + esp::ICV_LEN;
        let df = match tunnel.df {
            Df::Copy => !meta.is_v6() && meta.flags.has(Flags::DONT_FRAGMENT),
            Df::Set => true,
            Df::Clear => false,
        };
        let total = in_front + payload + behind;
        // An IPv6 packet of the least size that every line must take, on a way that takes less.
        let oversize = total > usize::from(LEAST_V4) && total > usize::from(tunnel.outer_mtu());
        let df = df && !oversize;
        self.oversize.insert_if(slot, oversize);
        self.unsummed.insert_if(slot, tunnel.outer.needs_checksum());
        let sequence = self.get(slot);
        // Unlike a count of its own, it is no other worker's at the same time.
        let identification = sequence as u16;
        let frame = burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?;
        let more = payload - length + behind;
        if !frame.reframe(usize::from(meta.l3), length, in_front) || !cx.umem.grow_back(frame, more) {
            return Err(DropReason::NoBuffer);
        }
        let (bytes, known) = burst.packet_mut(cx.umem, slot);
        let next_header = match (meta.flags.has(Flags::DUMMY), meta.is_v6()) {
            (true, _) => protocol::NO_NEXT_HEADER,
            (false, true) => protocol::IPV6,
            (false, false) => protocol::IPV4,
        };
        let inner = bytes.get_mut(in_front..).ok_or(DropReason::NoBuffer)?;
        // What was in the buffer before goes nowhere, sealed or not.
        inner.get_mut(length..payload).unwrap_or(&mut []).fill(0);
        esp::write_trailer(inner, payload, next_header).ok_or(DropReason::NoBuffer)?;
        // RFC 6040 4.1, normal mode: ECN is copied. DSCP is copied or set (RFC 4301 5.1.2.1).
        let class = tunnel.dscp.map_or(meta.tos, |dscp| dscp << 2 | meta.tos & 3);
        tunnel.outer.write(bytes, class, df, identification);
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

    /// Fills in checksums over what is sealed now, and divides what is too large for the line or the path.
    #[cold]
    fn complete(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in std::mem::take(&mut self.unsummed) & burst.live() {
            if let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) {
                tunnel.outer.fill_checksum(burst.bytes_mut(cx.umem, slot));
            }
        }
        for slot in std::mem::take(&mut self.oversize) & burst.live() {
            let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) else { continue };
            let mtu = tunnel.outer_mtu();
            let divided = if tunnel.outer.is_v6() {
                let identification = self.get(slot) as u32;
                fragment::split_v6(cx, burst, slot, mtu, Entry::Tx, identification)
            } else {
                fragment::split(cx, burst, slot, mtu, Entry::Tx)
            };
            if divided.is_none() {
                burst.drop(slot, DropReason::FragmentationFailed);
            }
        }
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
