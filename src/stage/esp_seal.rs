//! Seals packets into their tunnels (RFC 4303 3.3, RFC 4106, RFC 3948).

use std::{ops::Range, sync::atomic::Ordering::Relaxed};

use arrayvec::ArrayVec;

use super::{Cx, Entry, Stage, fragment, icmp_error, link::Link, rewrite};
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
        let sealed = seal(cx, burst, slots);
        cx.lanes.tx |= sealed.slots;
        send(cx, burst, sealed.ready);
        for (slot, reason) in sealed.refused {
            refuse(cx, burst, slot, reason);
        }
        if !(sealed.oversize | sealed.unsummed).is_empty() {
            complete(cx, burst, sealed.oversize, sealed.unsummed);
        }
    }
}

/// Sends packets that are sealed and have their link-layer header.
#[inline]
fn send(cx: &mut Cx<'_>, burst: &mut Burst, mut slots: Slots) {
    while let Some(first) = slots.first() {
        let egress = burst.meta(first).egress;
        let port = cx.tables.interface(egress).map_or(u16::MAX, |interface| interface.port);
        let sent = rewrite::send(cx, burst, slots, (egress, port), |_, meta| meta.egress == egress);
        slots -= if sent.is_empty() { rewrite::drop_first(cx, burst, slots, port) } else { sent };
    }
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
const NEAR_TUNNELS: usize = 64;

/// Packets in a row into so many tunnels are sealed together: what that takes finds room in the nearest cache, beside what is
/// asked for meanwhile for the next.
const TOGETHER: usize = 16;

/// Starts loading what packets are sealed with, whose tunnels have been asked for: the associations and their keys.
fn fetch(tables: &Tables, groups: &[Group]) {
    for group in groups {
        if let Some(sa) = tables.tunnel(group.tunnel).and_then(|tunnel| tunnel.sa.as_deref()) {
            prefetch_read(&sa.index);
            sa.key.lines().into_iter().for_each(prefetch_read);
        }
    }
}

/// The next step of the way: what changes with each packet.
fn fetch_counts(cx: &Cx<'_>, groups: &[Group]) {
    for group in groups {
        if let Some(sa) = cx.tables.tunnel(group.tunnel).and_then(|tunnel| tunnel.sa.as_deref()) {
            prefetch_read(&*sa.sequence);
            cx.counters.tunnel_line(group.tunnel).into_iter().for_each(prefetch_read);
            cx.counters.sa_line(sa.index).into_iter().for_each(prefetch_read);
        }
    }
}

/// The way into a tunnel: found once for packets in a row that go into the same.
struct Way<'a> {
    tunnel: &'a Tunnel,
    sa: &'a SaOut,
    next_hop: u32,
    egress: u16,
    neighbour: u32,
    /// Whether the outer packet is IPv6.
    v6: bool,
    /// Bytes in front of the inner packet, without the link's.
    in_front: usize,
    /// Bytes that an outer packet may have at any rate, as far as that was looked for: of short packets nobody need ask.
    most: usize,
}

impl<'a> Way<'a> {
    /// `None` when the tunnel cannot carry a packet.
    #[inline]
    fn of(tables: &'a Tables, number: u16) -> Option<Self> {
        let tunnel = tables.tunnel(number)?;
        let sa = tunnel.sa.as_deref()?;
        let (next_hop, &NextHop::Via { interface, neighbour, .. }) =
            tables.outer_way(tunnel.next_hop?, number)?
        else {
            return None;
        };
        Some(Self {
            tunnel,
            sa,
            next_hop,
            egress: interface,
            neighbour: neighbour.to_bits(),
            v6: tunnel.outer.is_v6(),
            in_front: tunnel.outer.header_len() + esp::HEADER_IV_LEN,
            most: LEAST_V4.into(),
        })
    }

    /// Whether an outer packet of so many bytes need not be divided. An IPv6 packet of the least size that every line must
    /// take is let in on a way that takes less.
    #[inline(always)]
    fn takes(&mut self, bytes: usize) -> bool {
        if bytes > self.most {
            self.most = self.tunnel.outer_mtu().max(LEAST_V4).into();
        }
        bytes <= self.most
    }

    /// The link of the outer packets, where it is known and nothing else remains to be done to them once they are sealed.
    /// `last`: the link that was found last, often the same.
    #[inline]
    fn link<'b>(&self, cx: &Cx<'_>, last: &'b mut Option<Link>) -> Option<&'b Link> {
        if self.tunnel.outer.needs_checksum() {
            return None;
        }
        if !last.is_some_and(|link| link.leads(self.egress, self.neighbour, self.v6)) {
            *last = Link::of(cx, self.egress, self.neighbour, self.v6).ok();
        }
        last.as_ref()
    }
}

/// Packets in a row that go into one tunnel.
struct Run<'a, 'b> {
    way: Way<'a>,
    link: Option<&'b Link>,
    /// What stays of the inner packet's traffic class, and what is set of the outer one's.
    class: (u8, u8),
    /// Whether the DF bit is copied, and whether it is set.
    df: (bool, bool),
    /// Sequence numbers that are taken for them.
    numbers: Range<u64>,
    /// Of the inner packets.
    bytes: u64,
    dummies: u64,
    dummy_bytes: u64,
    /// Packets that get their link-layer header later.
    unready: Slots,
    /// Of these, those that are larger than line or path take.
    oversize: Slots,
}

impl<'a> Run<'a, '_> {
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

    #[cold]
    const fn count_dummy(&mut self, bytes: u64) {
        self.dummies += 1;
        self.dummy_bytes += bytes;
    }

    /// Puts a packet's headers in front of it and the trailer behind, all but encrypted. The result is what is left to do.
    ///
    /// # Errors
    /// Why it cannot be sealed.
    #[inline(always)]
    fn prepare<'b>(
        &mut self,
        umem: &'b Umem,
        (slot, frame, meta): (Slot, &'b mut Frame, &mut Meta),
    ) -> Result<Job<'b>, DropReason>
    where
        'a: 'b,
    {
        let sa = self.way.sa;
        let sequence = self.number().ok_or(DropReason::SequenceExhausted)?;
        let (length, dummy) = (u64::from(meta.ip_len), meta.flags.has(Flags::DUMMY));
        let text = self.encapsulate(umem, (slot, frame, meta), sequence).ok_or(DropReason::NoBuffer)?;
        self.bytes += length;
        if dummy {
            self.count_dummy(length);
        }
        let aad = if sa.esn { Aad::esn(sa.spi, sequence) } else { Aad::new(sa.spi, sequence as u32) };
        Ok(Job::new(&sa.key, sequence.to_be_bytes(), aad, text))
    }

    /// Puts the headers in front and the trailer behind, all but encrypted. The result is what is to be encrypted, with room
    /// for the ICV; `None` when the buffer is too small.
    #[inline(always)]
    fn encapsulate<'b>(
        &mut self,
        umem: &'b Umem,
        (slot, frame, meta): (Slot, &'b mut Frame, &mut Meta),
        sequence: u64,
    ) -> Option<&'b mut [u8]> {
        let tunnel = self.way.tunnel;
        let way = &mut self.way;
        let (flags, tos) = (meta.flags, meta.tos);
        let length = usize::from(meta.ip_len);
        let payload = tunnel.padded(length);
        let behind = esp::padding(payload) + esp::TRAILER_LEN + esp::ICV_LEN;
        let total = way.in_front + payload + behind;
        // Also the least ESP packet is longer than a link's least frame.
        let fits = way.takes(total);
        let link = self.link.filter(|_| fits);
        let l2 = link.map_or(0, |link| link.header.header_len());
        if !umem.wrap(frame, meta.l3.into(), length, l2 + way.in_front, payload - length + behind) {
            return None;
        }
        let (front, bytes) = umem.bytes_mut(frame).split_at_mut_checked(l2)?;
        meta.egress = way.egress;
        if let Some(link) = link {
            link.header.write(front)?;
        } else {
            meta.l3 = 0;
            meta.ip_len = total as u16;
            let originated = flags.has(Flags::ORIGINATED);
            meta.flags = Flags::NONE.with(Flags::V6, way.v6).with(Flags::ORIGINATED, originated);
            (meta.next_hop, meta.neighbour) = (way.next_hop, way.neighbour);
            self.unready.insert(slot);
            self.oversize.insert_if(slot, !fits);
        }
        let df = self.df.0 & flags.has(Flags::DONT_FRAGMENT) & !flags.has(Flags::V6) | self.df.1;
        let next_header = match (flags.has(Flags::DUMMY), flags.has(Flags::V6)) {
            (true, _) => protocol::NO_NEXT_HEADER,
            (false, true) => protocol::IPV6,
            (false, false) => protocol::IPV4,
        };
        let class = tos & self.class.0 | self.class.1;
        // Unlike a count of its own, the sequence number is no other worker's at the same time.
        tunnel.outer.write(bytes, class, df & fits, sequence as u16);
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
        Some(inner)
    }

    /// Counts the packets, so many, that go into the tunnel of this number.
    fn count(&self, counters: &WorkerCounters, tunnel: u16, packets: u64) {
        counters.tunnel_out(tunnel, packets - self.dummies, self.bytes - self.dummy_bytes);
        counters.sa(self.way.sa.index, SaColumn::Packets, packets);
        counters.sa(self.way.sa.index, SaColumn::Bytes, self.bytes);
    }
}

/// What became of the packets of a burst.
#[derive(Default)]
struct Sealed {
    /// Packets that get their link-layer header yet.
    slots: Slots,
    /// Packets that have it.
    ready: Slots,
    /// Packets that are larger than line or path take.
    oversize: Slots,
    /// Packets whose UDP checksum is due.
    unsummed: Slots,
    /// Packets that were not sealed.
    refused: ArrayVec<(Slot, DropReason), BURST>,
}

impl Sealed {
    fn refuse(&mut self, slot: Slot, reason: DropReason) {
        // As many as slots, so there is room.
        let _ = self.refused.try_push((slot, reason));
    }
}

/// Packets that follow each other and go into one tunnel.
#[derive(Debug, Clone, Copy)]
struct Group {
    tunnel: u16,
    slots: Slots,
    /// How many there are: counting bits takes a dozen instructions where the processor may not be asked to.
    count: u32,
}

#[inline]
fn groups(burst: &Burst, slots: Slots) -> ArrayVec<Group, BURST> {
    let mut groups = ArrayVec::new();
    let mut group = Group { tunnel: 0, slots: Slots::NONE, count: 0 };
    for slot in slots {
        let tunnel = burst.meta(slot).tunnel;
        if tunnel != group.tunnel {
            if group.count > 0 {
                // As many as slots, so there is room.
                let _ = groups.try_push(group);
            }
            group = Group { tunnel, slots: Slots::NONE, count: 0 };
        }
        group.slots.insert(slot);
        group.count += 1;
    }
    let _ = groups.try_push(group);
    groups
}

/// Numbers packets, puts headers and trailers around them, and encrypts all of them together.
fn seal(cx: &Cx<'_>, burst: &mut Burst, slots: Slots) -> Sealed {
    let mut sealed = Sealed::default();
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    let mut link = None;
    let (umem, counters) = (cx.umem, cx.counters);
    let groups = groups(burst, slots);
    let far = cx.tables.tunnels.len() > NEAR_TUNNELS;
    let mut ahead = groups.chunks(TOGETHER);
    let mut next = if far { ahead.next() } else { None };
    if let Some(groups) = next {
        fetch(cx.tables, groups);
        fetch_counts(cx, groups);
    }
    let mut packets = burst.iter_mut(slots);
    for groups in groups.chunks(TOGETHER) {
        if far {
            next = ahead.next();
            next.into_iter().for_each(|groups| fetch(cx.tables, groups));
        }
        for Group { tunnel, slots, count } in groups.iter().copied() {
            let way = match Way::of(cx.tables, tunnel) {
                Some(way) if !way.sa.ended.load(Relaxed) => way,
                found => {
                    let expired = found.map(|way| counters.sa(way.sa.index, SaColumn::Expired, count.into()));
                    let reason = expired.map_or(DropReason::TunnelDown, |()| DropReason::EspExpired);
                    packets.by_ref().take(count as usize).for_each(|(slot, ..)| sealed.refuse(slot, reason));
                    continue;
                }
            };
            let mut run = Run {
                link: way.link(cx, &mut link),
                // RFC 6040 4.1, normal mode: ECN is copied. DSCP is copied or set (RFC 4301 5.1.2.1).
                class: way.tunnel.dscp.map_or((u8::MAX, 0), |dscp| (3, dscp << 2)),
                df: (way.tunnel.df == Df::Copy, way.tunnel.df == Df::Set),
                numbers: way.sa.sequence.take(count).unwrap_or(0..0),
                way,
                bytes: 0,
                dummies: 0,
                dummy_bytes: 0,
                unready: Slots::NONE,
                oversize: Slots::NONE,
            };
            let (mut done, mut prepared) = (slots, u64::from(count));
            for _ in 0..count {
                let Some(packet) = packets.next() else { break };
                let slot = packet.0;
                match run.prepare(umem, packet) {
                    // As many as slots, so there is room.
                    Ok(job) => drop(jobs.try_push(job)),
                    Err(reason) => {
                        if reason == DropReason::SequenceExhausted {
                            counters.sa(run.way.sa.index, SaColumn::Exhausted, 1);
                        }
                        done.remove(slot);
                        prepared -= 1;
                        sealed.refuse(slot, reason);
                    }
                }
            }
            run.count(counters, tunnel, prepared);
            sealed.slots |= done & run.unready;
            sealed.ready |= done - run.unready;
            sealed.oversize |= done & run.oversize;
            if run.way.tunnel.outer.needs_checksum() {
                sealed.unsummed |= done;
            }
        }
        next.into_iter().for_each(|groups| fetch_counts(cx, groups));
        aead::seal(&mut jobs);
        jobs.clear();
    }
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
