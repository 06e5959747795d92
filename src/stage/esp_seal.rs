//! Seals packets into their tunnels (RFC 4303 3.3, RFC 4106, RFC 3948).

use std::{ops::Range, sync::atomic::Ordering::Relaxed};

use arrayvec::ArrayVec;

use super::{Cx, Entry, Stage, fragment, icmp_error};
use crate::{
    crypto::aead::{self, Aad, Job},
    packet::{BURST, Burst, DropReason, Flags, Frame, Meta, Slot, Slots, Umem},
    stats::{SaColumn, WorkerCounters},
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
        let mut last = None;
        let firsts =
            slots.filter(|slot| last.replace(burst.meta(slot).tunnel) != Some(burst.meta(slot).tunnel));
        let sealed = seal(cx, burst, slots, firsts);
        cx.lanes.tx |= sealed.slots;
        for (slot, reason) in sealed.refused {
            refuse(cx, burst, slot, reason);
        }
        if !(sealed.oversize | sealed.unsummed).is_empty() {
            complete(cx, burst, sealed.oversize, sealed.unsummed);
        }
    }
}

/// The tunnel and the association that a packet is sealed with.
fn association<'a>(cx: &Cx<'a>, meta: &Meta) -> Option<(&'a Tunnel, &'a SaOut)> {
    let tunnel = cx.tables.tunnel(meta.tunnel)?;
    Some((tunnel, tunnel.sa.as_deref()?))
}

/// Drops a packet that was not sealed. Where the tunnel cannot carry it, it is still as it was, and its sender is told.
#[cold]
fn refuse(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, reason: DropReason) {
    if reason == DropReason::TunnelDown {
        let problem = icmp_error::Problem::HostUnreachable;
        icmp_error::drop_with_error(cx, burst, slot, reason, problem);
    } else {
        burst.drop(slot, reason);
    }
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
    /// Whether the outer packet is IPv6, and its UDP checksum is due.
    v6: bool,
    needs_checksum: bool,
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
            v6: tunnel.outer.is_v6(),
            needs_checksum: tunnel.outer.needs_checksum(),
            in_front: tunnel.outer.header_len() + esp::HEADER_IV_LEN,
            most: tunnel.outer_mtu().max(LEAST_V4).into(),
        })
    }
}

/// Packets in a row that go into one tunnel.
struct Run<'a> {
    way: Way<'a>,
    /// Sequence numbers that are taken for them.
    numbers: Range<u64>,
    packets: u64,
    bytes: u64,
    dummies: u64,
    dummy_bytes: u64,
}

impl<'a> Run<'a> {
    /// The way into the tunnel of this number, for so many packets.
    ///
    /// # Errors
    /// Why it takes none.
    fn new(cx: &Cx<'a>, number: u16, packets: usize) -> Result<Self, DropReason> {
        let way = Way::of(cx.tables, number).ok_or(DropReason::TunnelDown)?;
        if way.sa.ended.load(Relaxed) {
            cx.counters.sa(way.sa.index, SaColumn::Expired, packets as u64);
            return Err(DropReason::EspExpired);
        }
        let numbers = way.sa.sequence.take(packets as u32).unwrap_or(0..0);
        Ok(Self { way, numbers, packets: 0, bytes: 0, dummies: 0, dummy_bytes: 0 })
    }

    /// The next sequence number.
    #[inline(always)]
    fn number(&mut self) -> Option<u64> {
        self.numbers.next().or_else(|| self.last_number())
    }

    /// Where fewer are left than packets, the last packets go without.
    #[cold]
    fn last_number(&self) -> Option<u64> {
        self.way.sa.sequence.take(1).and_then(|mut one| one.next())
    }

    /// Puts a packet's headers in front of it and the trailer behind, all but encrypted. The result is what is left to do.
    ///
    /// # Errors
    /// Why it cannot be sealed.
    #[inline(always)]
    fn prepare<'b>(
        &mut self,
        umem: &'b Umem,
        counters: &WorkerCounters,
        frame: &'b mut Frame,
        meta: &mut Meta,
    ) -> Result<Job<'b>, DropReason>
    where
        'a: 'b,
    {
        let sa = self.way.sa;
        let Some(sequence) = self.number() else {
            counters.sa(sa.index, SaColumn::Exhausted, 1);
            return Err(DropReason::SequenceExhausted);
        };
        let (length, dummy) = (u64::from(meta.ip_len), meta.flags.has(Flags::DUMMY));
        let text = encapsulate(umem, frame, meta, &self.way, sequence).ok_or(DropReason::NoBuffer)?;
        self.packets += 1;
        self.bytes += length;
        if dummy {
            self.dummies += 1;
            self.dummy_bytes += length;
        }
        let aad = if sa.esn { Aad::esn(sa.spi, sequence) } else { Aad::new(sa.spi, sequence as u32) };
        Ok(Job::new(&sa.key, sequence.to_be_bytes(), aad, text))
    }

    fn count(&self, counters: &WorkerCounters) {
        let (packets, bytes) = (self.packets - self.dummies, self.bytes - self.dummy_bytes);
        counters.tunnel_out(self.way.number, packets, bytes);
        counters.sa(self.way.sa.index, SaColumn::Packets, self.packets);
        counters.sa(self.way.sa.index, SaColumn::Bytes, self.bytes);
    }
}

/// What became of the packets of a burst.
#[derive(Default)]
struct Sealed {
    slots: Slots,
    /// Packets that are larger than line or path take.
    oversize: Slots,
    /// Packets whose UDP checksum is due.
    unsummed: Slots,
    /// Packets that were not sealed.
    refused: ArrayVec<(Slot, DropReason), BURST>,
}

/// Numbers packets, puts headers and trailers around them, and encrypts all of them together. `firsts`: those that go into
/// another tunnel than the one before.
fn seal(cx: &Cx<'_>, burst: &mut Burst, slots: Slots, firsts: Slots) -> Sealed {
    let mut sealed = Sealed::default();
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    let mut run = Err(DropReason::TunnelDown);
    let umem = cx.umem;
    burst.for_each_mut(slots, |slot, frame, meta| {
        if firsts.contains(slot) {
            if let Ok(run) = &run {
                Run::count(run, cx.counters);
            }
            run = Run::new(cx, meta.tunnel, slots.run(slot, firsts).len());
        }
        let job = match &mut run {
            Ok(run) => run.prepare(umem, cx.counters, frame, meta),
            Err(reason) => Err(*reason),
        };
        match job {
            Ok(job) => {
                // As many as slots, so there is room.
                let _ = jobs.try_push(job);
                sealed.slots.insert(slot);
                if let Ok(run) = &run {
                    sealed.oversize.insert_if(slot, usize::from(meta.ip_len) > run.way.most);
                    sealed.unsummed.insert_if(slot, run.way.needs_checksum);
                }
            }
            Err(reason) => {
                let _ = sealed.refused.try_push((slot, reason));
            }
        }
    });
    if let Ok(run) = &run {
        run.count(cx.counters);
    }
    aead::seal(&mut jobs);
    sealed
}

/// Fills in checksums over what is sealed now, and divides what is too large for the line or the path.
#[cold]
fn complete(cx: &mut Cx<'_>, burst: &mut Burst, oversize: Slots, unsummed: Slots) {
    for slot in unsummed & burst.live() {
        if let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) {
            tunnel.outer.fill_checksum(burst.bytes_mut(cx.umem, slot));
        }
    }
    for slot in oversize & burst.live() {
        let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) else { continue };
        let mtu = tunnel.outer_mtu();
        let divided = if tunnel.outer.is_v6() {
            let header = esp::Esp::at(burst.bytes(cx.umem, slot), tunnel.outer.header_len());
            let sequence = header.map_or(0, |header| header.sequence());
            fragment::split_v6(cx, burst, slot, mtu, Entry::Tx, sequence)
        } else {
            fragment::split(cx, burst, slot, mtu, Entry::Tx)
        };
        if divided.is_none() {
            burst.drop(slot, DropReason::FragmentationFailed);
        }
    }
}

/// Puts the headers in front and the trailer behind, all but encrypted. The result is what is to be encrypted, with room for
/// the ICV; `None` when the buffer is too small.
#[inline(always)]
fn encapsulate<'a>(
    umem: &'a Umem,
    frame: &'a mut Frame,
    meta: &mut Meta,
    way: &Way<'_>,
    sequence: u64,
) -> Option<&'a mut [u8]> {
    let tunnel = way.tunnel;
    let (flags, tos) = (meta.flags, meta.tos);
    let length = usize::from(meta.ip_len);
    let payload = tunnel.padded(length);
    let behind = esp::padding(payload) + esp::TRAILER_LEN + esp::ICV_LEN;
    let total = way.in_front + payload + behind;
    if !umem.wrap(frame, meta.l3.into(), length, way.in_front, total - way.in_front - length) {
        return None;
    }
    let bytes = umem.bytes_mut(frame);
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
    // RFC 6040 4.1, normal mode: ECN is copied. DSCP is copied or set (RFC 4301 5.1.2.1).
    let class = tunnel.dscp.map_or(tos, |dscp| dscp << 2 | tos & 3);
    // Unlike a count of its own, the sequence number is no other worker's at the same time.
    tunnel.outer.write(bytes, class, df && total <= way.most, sequence as u16);
    let (front, inner) = bytes.split_at_mut_checked(way.in_front)?;
    if let Some(header) = front.last_chunk_mut() {
        // The sequence number is the IV (RFC 4106 3.1): never twice under one key.
        *header = esp::header(esp::Spi(way.sa.spi), sequence as u32, sequence.to_be_bytes());
    }
    if payload > length {
        // What was in the buffer before goes nowhere, sealed or not.
        inner.get_mut(length..payload)?.fill(0);
    }
    esp::write_trailer(inner, payload, next_header)?;
    meta.l3 = 0;
    meta.ip_len = total as u16;
    meta.flags = Flags::NONE.with(Flags::V6, way.v6).with(Flags::ORIGINATED, flags.has(Flags::ORIGINATED));
    meta.next_hop = way.next_hop;
    meta.egress = way.egress;
    meta.neighbour = way.neighbour;
    Some(inner)
}
