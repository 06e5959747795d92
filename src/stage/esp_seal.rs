//! Seals packets into their tunnels (RFC 4303 3.3, RFC 4106, RFC 3948).

use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::{Cx, Entry, Stage, fragment, icmp_error};
use crate::{
    crypto::aead::{self, Aad, Job},
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots, Umem},
    stats::SaColumn,
    table::{
        path::LEAST_V4,
        prefetch::prefetch_read,
        tables::{NextHop, Tables},
        tunnel::{Df, SaOut, Tunnel},
    },
    wire::{esp, ip::protocol},
};

/// Puts each packet into the ESP packet of its tunnel; the cipher works on the burst as a whole.
#[derive(Debug, Default)]
pub struct EspSeal;

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
        let mut sealing = Sealing::default();
        let mut left = slots;
        while let Some(first) = left.first() {
            // In runs of packets into one tunnel.
            let number = burst.meta(first).tunnel;
            let mut run = Slots::NONE;
            for slot in left {
                if burst.meta(slot).tunnel != number {
                    break;
                }
                run.insert(slot);
            }
            left -= run;
            match Way::of(cx.tables, number) {
                Some(way) => sealing.prepare(cx, burst, run, &way),
                None => run.into_iter().for_each(|slot| down(cx, burst, slot)),
            }
        }
        sealing.seal(cx, burst);
        cx.lanes.tx |= sealing.slots;
        if !(sealing.oversize | sealing.unsummed).is_empty() {
            sealing.complete(cx, burst);
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
pub(super) const NEAR_TUNNELS: usize = 64;

/// Starts loading what the packets will be sealed with: of all packets at once, one step of the way at a time.
fn fetch(cx: &Cx<'_>, burst: &Burst, slots: Slots) {
    for slot in slots {
        if let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) {
            tunnel.fetch();
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

/// The way into a tunnel: found once for packets in a row that go into the same.
struct Way<'a> {
    number: u16,
    tunnel: &'a Tunnel,
    sa: &'a SaOut,
    next_hop: u32,
    egress: u16,
    neighbour: u32,
    /// Bytes in front of the inner packet.
    in_front: usize,
    /// Bytes of an outer packet above which it is divided. An IPv6 packet of the least size that every line must take
    /// is let in on a way that takes less.
    most: usize,
}

impl<'a> Way<'a> {
    /// `None` when the tunnel cannot carry a packet.
    fn of(tables: &'a Tables, number: u16) -> Option<Self> {
        let tunnel = tables.tunnel(number)?;
        let sa = tunnel.sa.as_deref()?;
        let (next_hop, &NextHop::Via { interface, neighbour, .. }) =
            tables.outer_way(tunnel.next_hop?, number)?
        else {
            return None;
        };
        Some(Self {
            number,
            tunnel,
            sa,
            next_hop,
            egress: interface,
            neighbour: neighbour.to_bits(),
            in_front: tunnel.outer.header_len() + esp::HEADER_IV_LEN,
            most: tunnel.outer_mtu().max(LEAST_V4).into(),
        })
    }
}

/// What the cipher is to know of a packet.
struct Text<'a> {
    sa: &'a SaOut,
    sequence: u64,
    /// Where the text begins in the frame.
    at: usize,
}

/// The packets of a burst on their way to the cipher.
#[derive(Default)]
struct Sealing<'a> {
    /// Those that are ready for it, and in the same order what it needs.
    slots: Slots,
    texts: ArrayVec<Text<'a>, BURST>,
    /// Packets that are larger than line or path take.
    oversize: Slots,
    /// Packets whose UDP checksum is due.
    unsummed: Slots,
}

impl<'a> Sealing<'a> {
    /// Numbers the packets of a run and puts headers and trailers around them.
    fn prepare(&mut self, cx: &mut Cx<'a>, burst: &mut Burst, run: Slots, way: &Way<'a>) {
        let sa = way.sa;
        if sa.ended.load(Relaxed) {
            cx.counters.sa(sa.index, SaColumn::Expired, run.len() as u64);
            run.into_iter().for_each(|slot| burst.drop(slot, DropReason::EspExpired));
            return;
        }
        let mut numbers = sa.sequence.take(run.len() as u32).unwrap_or(0..0);
        let (before, mut bytes) = (self.texts.len(), 0);
        let (mut dummies, mut dummy_bytes) = (0, 0);
        for slot in run {
            // When fewer are left than packets, the last packets go without.
            let number = numbers.next().or_else(|| sa.sequence.take(1).and_then(|mut one| one.next()));
            let Some(sequence) = number else {
                cx.counters.sa(sa.index, SaColumn::Exhausted, 1);
                burst.drop(slot, DropReason::SequenceExhausted);
                continue;
            };
            let (length, flags) = (u64::from(burst.meta(slot).ip_len), burst.meta(slot).flags);
            let Some(total) = encapsulate(cx.umem, burst, slot, way, sequence) else {
                burst.drop(slot, DropReason::NoBuffer);
                continue;
            };
            bytes += length;
            if flags.has(Flags::DUMMY) {
                dummies += 1;
                dummy_bytes += length;
            }
            self.slots.insert(slot);
            self.oversize.insert_if(slot, total > way.most);
            // As many as slots, so there is room.
            let _ = self.texts.try_push(Text { sa, sequence, at: way.in_front });
        }
        let packets = (self.texts.len() - before) as u64;
        if way.tunnel.outer.needs_checksum() {
            self.unsummed |= run;
        }
        cx.counters.tunnel_out(way.number, packets - dummies, bytes - dummy_bytes);
        cx.counters.sa(sa.index, SaColumn::Packets, packets);
        cx.counters.sa(sa.index, SaColumn::Bytes, bytes);
    }

    /// Encrypts all packets together.
    fn seal(&self, cx: &Cx<'_>, burst: &mut Burst) {
        let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
        let mut texts = self.texts.iter();
        burst.for_each_bytes_mut(cx.umem, self.slots, |_, bytes, _| {
            let Some(Text { sa, sequence, at }) = texts.next() else { return };
            let aad = if sa.esn { Aad::esn(sa.spi, *sequence) } else { Aad::new(sa.spi, *sequence as u32) };
            if let Some(text) = bytes.get_mut(*at..) {
                let _ = jobs.try_push(Job::new(&sa.key, sequence.to_be_bytes(), aad, text));
            }
        });
        aead::seal(&mut jobs);
    }

    /// Fills in checksums over what is sealed now, and divides what is too large for the line or the path.
    #[cold]
    fn complete(&self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in self.unsummed & burst.live() {
            if let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) {
                tunnel.outer.fill_checksum(burst.bytes_mut(cx.umem, slot));
            }
        }
        for (slot, text) in
            self.slots.into_iter().zip(&self.texts).filter(|(slot, _)| self.oversize.contains(*slot))
        {
            let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) else { continue };
            let mtu = tunnel.outer_mtu();
            let divided = if tunnel.outer.is_v6() {
                fragment::split_v6(cx, burst, slot, mtu, Entry::Tx, text.sequence as u32)
            } else {
                fragment::split(cx, burst, slot, mtu, Entry::Tx)
            };
            if divided.is_none() {
                burst.drop(slot, DropReason::FragmentationFailed);
            }
        }
    }
}

/// Puts the headers in front and the trailer behind, all but encrypted. The result is the outer packet's bytes; `None` when
/// the buffer is too small.
#[inline(always)]
fn encapsulate(umem: &Umem, burst: &mut Burst, slot: Slot, way: &Way<'_>, sequence: u64) -> Option<usize> {
    let tunnel = way.tunnel;
    let (frame, meta) = burst.frame_and_meta(slot);
    let length = usize::from(meta.ip_len);
    let payload = tunnel.padded(length);
    let behind = esp::padding(payload) + esp::TRAILER_LEN + esp::ICV_LEN;
    let total = way.in_front + payload + behind;
    let frame = frame?;
    if !umem.wrap(frame, meta.l3.into(), length, way.in_front, total - way.in_front - length) {
        return None;
    }
    let (bytes, meta) = burst.packet_mut(umem, slot);
    let (flags, tos) = (meta.flags, meta.tos);
    let df = match tunnel.df {
        Df::Copy => !flags.has(Flags::V6) && flags.has(Flags::DONT_FRAGMENT),
        Df::Set => true,
        Df::Clear => false,
    };
    let next_header = match (flags.has(Flags::DUMMY), flags.has(Flags::V6)) {
        (true, _) => protocol::NO_NEXT_HEADER,
        (false, true) => protocol::IPV6,
        (false, false) => protocol::IPV4,
    };
    let inner = bytes.get_mut(way.in_front..)?;
    if payload > length {
        // What was in the buffer before goes nowhere, sealed or not.
        inner.get_mut(length..payload)?.fill(0);
    }
    esp::write_trailer(inner, payload, next_header)?;
    // RFC 6040 4.1, normal mode: ECN is copied. DSCP is copied or set (RFC 4301 5.1.2.1).
    let class = tunnel.dscp.map_or(tos, |dscp| dscp << 2 | tos & 3);
    // Unlike a count of its own, the sequence number is no other worker's at the same time.
    tunnel.outer.write(bytes, class, df && total <= way.most, sequence as u16);
    if let Some(mut header) = esp::Esp::at_mut(bytes, tunnel.outer.header_len()) {
        header.set_spi(esp::Spi(way.sa.spi));
        header.set_sequence(sequence as u32);
        // The sequence number is the IV (RFC 4106 3.1): never twice under one key.
        header.set_iv(sequence.to_be_bytes());
    }
    meta.l3 = 0;
    meta.ip_len = total as u16;
    meta.flags = Flags::NONE
        .with(Flags::V6, tunnel.outer.is_v6())
        .with(Flags::ORIGINATED, flags.has(Flags::ORIGINATED));
    meta.next_hop = way.next_hop;
    meta.egress = way.egress;
    meta.neighbour = way.neighbour;
    Some(total)
}
