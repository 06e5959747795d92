//! Seals packets into their tunnels (RFC 4303 3.3, RFC 4106, RFC 3948).

use std::{ops::Range, sync::atomic::Ordering::Relaxed};

use arrayvec::ArrayVec;

use super::{
    Cx, Entry, Stage,
    esp_front::{FRONT, Front, LinkWords, df_over},
    fragment, icmp_error,
    link::{Link, NO_NEIGHBOUR},
    rewrite,
};
use crate::{
    crypto::aead::{self, Aad, Job},
    packet::{BURST, Burst, DropReason, Flags, Frame, Meta, Packets, Slot, Slots, Umem},
    stats::{SaColumn, WorkerCounters},
    table::{
        lpm::NO_ROUTE,
        path::LEAST_V4,
        prefetch::prefetch_read,
        tables::{NextHop, Tables},
        tunnel::{SaOut, Tunnel},
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
        cx.lanes.tx |= sealed.unready - sealed.failed;
        send(cx, burst, slots - sealed.unready - sealed.failed);
        for (slot, reason) in sealed.refused {
            refuse(cx, burst, slot, reason);
        }
        if !(sealed.oversize | sealed.unsummed).is_empty() {
            complete(cx, burst, sealed.oversize - sealed.failed, sealed.unsummed - sealed.failed);
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

/// So many tunnels, at about 1.5 KiB each with their keys, stay in the caches near the core by themselves.
const NEAR_TUNNELS: usize = 64;

/// Packets in a row into so many tunnels are sealed together: what that takes finds room in the nearest cache, beside what is
/// asked for meanwhile for the next.
const TOGETHER: usize = 16;

/// For so many packets into one tunnel it pays to find out first what they have in common.
const LONG_RUN: u32 = 3;

/// Starts loading what packets are sealed with: the associations and their keys.
fn fetch(groups: &[Group<'_>]) {
    for (_, sa) in groups.iter().filter_map(|group| group.with) {
        prefetch_read(sa);
        sa.key.lines().into_iter().for_each(prefetch_read);
    }
}

/// The next step of the way: what changes with each packet.
fn fetch_counts(counters: &WorkerCounters, groups: &[Group<'_>]) {
    for group in groups {
        if let Some((_, sa)) = group.with {
            prefetch_read(&*sa.sequence);
            counters.tunnel_line(group.tunnel).into_iter().for_each(prefetch_read);
            counters.sa_line(sa.index).into_iter().for_each(prefetch_read);
        }
    }
}

/// The way of outer packets: found once for tunnels in a row that have the same.
struct Line {
    /// Whose way: the tunnels' next hop, and whether their outer packets are IPv6.
    of: u32,
    v6: bool,
    /// The next hop itself: not that of the tunnels where they have a choice.
    next_hop: u32,
    egress: u16,
    neighbour: u32,
    /// Where it is known, packets get their link-layer header at once.
    link: Option<Link>,
    /// Its header.
    words: LinkWords,
}

impl Line {
    /// Nobody's.
    const NONE: Self = Self {
        of: NO_ROUTE,
        v6: false,
        next_hop: NO_ROUTE,
        egress: 0,
        neighbour: NO_NEIGHBOUR,
        link: None,
        words: LinkWords::NONE,
    };

    /// Makes it that of a tunnel, by its number. `None` when nothing carries its packets.
    #[inline(always)]
    fn lead(&mut self, cx: &Cx<'_>, tunnel: &Tunnel, number: u16) -> Option<()> {
        let v6 = tunnel.outer.is_v6();
        if tunnel.next_hop == self.of && self.v6 == v6 && self.of != NO_ROUTE {
            return Some(());
        }
        self.find(cx, tunnel.next_hop, number, v6)
    }

    fn find(&mut self, cx: &Cx<'_>, of: u32, number: u16, v6: bool) -> Option<()> {
        let (next_hop, &NextHop::Via { interface, neighbour, .. }) = cx.tables.outer_way(of, number)? else {
            return None;
        };
        let neighbour = neighbour.to_bits();
        if !self.link.is_some_and(|link| link.leads(interface, neighbour, v6)) {
            self.link = Link::of(cx, interface, neighbour, v6).ok();
            self.words = self.link.map_or(LinkWords::NONE, |link| LinkWords::new(&link.header));
        }
        // Of those that have a choice, each has a way of its own.
        self.of = if next_hop == of { of } else { NO_ROUTE };
        (self.v6, self.next_hop, self.egress, self.neighbour) = (v6, next_hop, interface, neighbour);
        Some(())
    }
}

/// Packets in a row that go into one tunnel.
struct Run<'a, 'b> {
    tunnel: &'a Tunnel,
    sa: &'a SaOut,
    line: &'b Line,
    /// That of the line, where nothing else remains to be done to packets once they are sealed.
    link: Option<&'b Link>,
    /// Bytes that an outer packet may have at any rate, as far as that was looked for: of short packets nobody need ask.
    most: usize,
    /// Sequence numbers that are taken for them.
    numbers: Range<u64>,
    /// Packets for which none was left.
    exhausted: u64,
    /// Of the inner packets.
    bytes: u64,
    dummies: u64,
    dummy_bytes: u64,
}

impl<'a, 'b> Run<'a, 'b> {
    #[inline(always)]
    fn new((tunnel, sa): (&'a Tunnel, &'a SaOut), line: &'b Line, count: u32) -> Self {
        let link = line.link.as_ref();
        Self {
            tunnel,
            sa,
            line,
            link: link.filter(|_| !tunnel.outer.needs_checksum()),
            most: LEAST_V4.into(),
            numbers: sa.sequence.take(count).unwrap_or(0..0),
            exhausted: 0,
            bytes: 0,
            dummies: 0,
            dummy_bytes: 0,
        }
    }

    /// The next sequence number.
    #[inline(always)]
    fn number(&mut self) -> Option<u64> {
        self.numbers.next().or_else(|| self.last_number())
    }

    /// Where fewer are left than packets, the last packets go without.
    #[cold]
    fn last_number(&mut self) -> Option<u64> {
        let number = self.sa.sequence.take(1).and_then(|mut one| one.next());
        self.exhausted += u64::from(number.is_none());
        number
    }

    #[cold]
    const fn count_dummy(&mut self, bytes: u64) {
        self.dummies += 1;
        self.dummy_bytes += bytes;
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

    /// Prepares its packets, where they are many.
    ///
    /// On its own, since the loop around it needs the registers that this needs.
    #[inline(never)]
    fn prepare_all<'p>(
        &mut self,
        umem: &'p Umem,
        packets: &mut Packets<'p>,
        slots: Slots,
        sealed: &mut Sealed,
        jobs: &mut ArrayVec<Job<'p>, BURST>,
    ) where
        'a: 'p,
    {
        let (line, tunnel) = (self.line, self.tunnel);
        let link = line.link.as_ref().filter(|_| tunnel.tfc == 0);
        let front = link.and_then(|link| Front::new(&line.words, link, tunnel, self.sa));
        for (slot, frame, meta) in packets.part(slots) {
            let done = match &front {
                Some(front) if self.is_common(front, frame, meta) => {
                    self.prepare_common(front, umem, frame, meta, jobs)
                }
                _ => self.prepare(umem, (slot, frame, meta), sealed, jobs),
            };
            if let Err(reason) = done {
                sealed.refuse(slot, reason);
            }
        }
    }

    /// Whether nothing about a packet asks for more than [`Self::prepare_common`] does.
    #[inline(always)]
    fn is_common(&mut self, front: &Front, frame: &Frame, meta: &Meta) -> bool {
        let length = usize::from(meta.ip_len);
        let room = frame.headroom() + usize::from(meta.l3) >= FRONT;
        room & !meta.flags.has(Flags::DUMMY) && self.takes(front.outer_len(length))
    }

    /// As [`Self::prepare`], for a packet that is neither padded nor divided nor a dummy.
    #[inline(always)]
    fn prepare_common<'p>(
        &mut self,
        front: &Front,
        umem: &'p Umem,
        frame: &'p mut Frame,
        meta: &mut Meta,
        jobs: &mut ArrayVec<Job<'p>, BURST>,
    ) -> Result<(), DropReason>
    where
        'a: 'p,
    {
        let (flags, length) = (meta.flags, usize::from(meta.ip_len));
        let sequence = self.number().ok_or(DropReason::SequenceExhausted)?;
        let behind = esp::padding(length) + esp::TRAILER_LEN + esp::ICV_LEN;
        let bytes = umem.wrap_within::<FRONT>(frame, (meta.l3, meta.ip_len), front.len, behind);
        let (place, text) = bytes.ok_or(DropReason::NoBuffer)?;
        let words = front.words(front.outer_len(length) as u16, meta.tos, flags, sequence);
        for (bytes, word) in place.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        let next_header = if flags.has(Flags::V6) { protocol::IPV6 } else { protocol::IPV4 };
        esp::write_trailer(text, length, next_header);
        meta.egress = front.egress;
        self.bytes += length as u64;
        push(jobs, self.sa, sequence, text);
        Ok(())
    }

    /// Puts a packet's headers in front of it and the trailer behind, all but encrypted, and notes what is left to do.
    ///
    /// # Errors
    /// Why it cannot be sealed.
    #[inline(never)]
    fn prepare<'p>(
        &mut self,
        umem: &'p Umem,
        packet: (Slot, &'p mut Frame, &mut Meta),
        sealed: &mut Sealed,
        jobs: &mut ArrayVec<Job<'p>, BURST>,
    ) -> Result<(), DropReason>
    where
        'a: 'p,
    {
        let sequence = self.number().ok_or(DropReason::SequenceExhausted)?;
        let (length, dummy) = (u64::from(packet.2.ip_len), packet.2.flags.has(Flags::DUMMY));
        let text = self.encapsulate(umem, packet, sequence, sealed).ok_or(DropReason::NoBuffer)?;
        self.bytes += length;
        if dummy {
            self.count_dummy(length);
        }
        push(jobs, self.sa, sequence, text);
        Ok(())
    }

    /// Puts the headers in front and the trailer behind, all but encrypted. The result is what is to be encrypted, with room
    /// for the ICV; `None` when the buffer is too small.
    #[inline(always)]
    fn encapsulate<'p>(
        &mut self,
        umem: &'p Umem,
        (slot, frame, meta): (Slot, &'p mut Frame, &mut Meta),
        sequence: u64,
        sealed: &mut Sealed,
    ) -> Option<&'p mut [u8]> {
        let (tunnel, line) = (self.tunnel, self.line);
        let (flags, tos) = (meta.flags, meta.tos);
        let length = usize::from(meta.ip_len);
        let payload = tunnel.padded(length);
        let in_front = tunnel.outer.header_len() + esp::HEADER_IV_LEN;
        let behind = esp::padding(payload) + esp::TRAILER_LEN + esp::ICV_LEN;
        let total = in_front + payload + behind;
        // Also the least ESP packet is longer than a link's least frame.
        let fits = self.takes(total);
        let link = self.link.filter(|_| fits);
        let l2 = link.map_or(0, |link| link.header.header_len());
        if !umem.wrap(frame, meta.l3.into(), length, l2 + in_front, payload - length + behind) {
            return None;
        }
        let (front, bytes) = umem.bytes_mut(frame).split_at_mut_checked(l2)?;
        meta.egress = line.egress;
        if let Some(link) = link {
            link.header.write(front)?;
        } else {
            meta.l3 = 0;
            meta.ip_len = total as u16;
            let originated = flags.has(Flags::ORIGINATED);
            meta.flags = Flags::NONE.with(Flags::V6, line.v6).with(Flags::ORIGINATED, originated);
            (meta.next_hop, meta.neighbour) = (line.next_hop, line.neighbour);
            sealed.unready.insert(slot);
            sealed.oversize.insert_if(slot, !fits);
            sealed.unsummed.insert_if(slot, tunnel.outer.needs_checksum());
        }
        let (asked, expected) = df_over(tunnel.df);
        let df = (flags & asked == expected) & fits;
        let next_header = match (flags.has(Flags::DUMMY), flags.has(Flags::V6)) {
            (true, _) => protocol::NO_NEXT_HEADER,
            (false, true) => protocol::IPV6,
            (false, false) => protocol::IPV4,
        };
        // Unlike a count of its own, the sequence number is no other worker's at the same time.
        tunnel.outer.write(bytes, tunnel.class.of(tos), df, sequence as u16);
        let (front, inner) = bytes.split_at_mut_checked(in_front)?;
        if let Some(header) = front.last_chunk_mut() {
            // The sequence number is the IV (RFC 4106 3.1): never twice under one key.
            *header = esp::header(esp::Spi(self.sa.spi), sequence as u32, sequence.to_be_bytes());
        }
        if payload > length {
            // What was in the buffer before goes nowhere, sealed or not.
            inner.get_mut(length..payload)?.fill(0);
        }
        esp::write_trailer(inner, payload, next_header)?;
        Some(inner)
    }

    /// Counts the packets, so many, that go into the tunnel of this number.
    #[inline(always)]
    fn count(&self, counters: &WorkerCounters, tunnel: u16, packets: u64) {
        counters.tunnel_out(tunnel, packets - self.dummies, self.bytes - self.dummy_bytes);
        counters.sa_traffic(self.sa.index, packets, self.bytes);
        if self.exhausted > 0 {
            counters.sa(self.sa.index, SaColumn::Exhausted, self.exhausted);
        }
    }
}

/// Notes what is to be sealed.
#[inline(always)]
fn push<'p>(jobs: &mut ArrayVec<Job<'p>, BURST>, sa: &'p SaOut, sequence: u64, text: &'p mut [u8]) {
    let aad = if sa.esn { Aad::esn(sa.spi, sequence) } else { Aad::new(sa.spi, sequence as u32) };
    // As many as slots, so there is room.
    let _ = jobs.try_push(Job::new(&sa.key, sequence.to_be_bytes(), aad, text));
}

/// What became of the packets of a burst.
#[derive(Default)]
struct Sealed {
    /// Packets that get their link-layer header later.
    unready: Slots,
    /// Of these, those that are larger than line or path take.
    oversize: Slots,
    /// Of these, those whose UDP checksum is due.
    unsummed: Slots,
    /// Packets that were not sealed, and why.
    failed: Slots,
    refused: ArrayVec<(Slot, DropReason), BURST>,
}

impl Sealed {
    #[cold]
    fn refuse(&mut self, slot: Slot, reason: DropReason) {
        self.failed.insert(slot);
        // As many as slots, so there is room.
        let _ = self.refused.try_push((slot, reason));
    }
}

/// Packets that follow each other and go into one tunnel.
#[derive(Debug, Clone, Copy)]
struct Group<'a> {
    tunnel: u16,
    count: u32,
    slots: Slots,
    /// What they are sealed with; `None`: there is nothing.
    with: Option<(&'a Tunnel, &'a SaOut)>,
}

impl<'a> Group<'a> {
    #[inline(always)]
    fn new(tables: &'a Tables, tunnel: u16) -> Self {
        let known = tables.tunnel(tunnel);
        Self {
            tunnel,
            count: 0,
            slots: Slots::NONE,
            with: known.and_then(|tunnel| Some((tunnel, tunnel.sa.as_deref()?))),
        }
    }
}

#[inline]
fn groups<'a>(tables: &'a Tables, burst: &Burst, slots: Slots) -> ArrayVec<Group<'a>, BURST> {
    let mut groups = ArrayVec::new();
    let Some(first) = slots.first() else { return groups };
    let mut group = Group::new(tables, burst.meta(first).tunnel);
    for slot in slots {
        let tunnel = burst.meta(slot).tunnel;
        if tunnel != group.tunnel {
            // As many as slots, so there is room.
            let _ = groups.try_push(group);
            group = Group::new(tables, tunnel);
        }
        group.count += 1;
        group.slots.insert(slot);
    }
    let _ = groups.try_push(group);
    groups
}

/// Numbers packets, puts headers and trailers around them, and encrypts them, those of [`TOGETHER`] groups together.
fn seal(cx: &Cx<'_>, burst: &mut Burst, slots: Slots) -> Sealed {
    let mut sealed = Sealed::default();
    let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
    let mut line = Line::NONE;
    let (umem, counters) = (cx.umem, cx.counters);
    let groups = groups(cx.tables, burst, slots);
    let far = cx.tables.tunnels.len() > NEAR_TUNNELS;
    let mut ahead = groups.chunks(TOGETHER).filter(|_| far);
    let mut next = ahead.next();
    if let Some(groups) = next {
        fetch(groups);
        fetch_counts(counters, groups);
    }
    let mut packets = burst.packets();
    for groups in groups.chunks(TOGETHER) {
        next = ahead.next();
        next.into_iter().for_each(fetch);
        for &Group { tunnel, count, slots, with } in groups {
            let with = with.filter(|(known, _)| line.lead(cx, known, tunnel).is_some());
            let Some(with) = with.filter(|(_, sa)| !sa.ended.load(Relaxed)) else {
                let expired = with.map(|(_, sa)| counters.sa(sa.index, SaColumn::Expired, count.into()));
                let reason = expired.map_or(DropReason::TunnelDown, |()| DropReason::EspExpired);
                slots.into_iter().for_each(|slot| sealed.refuse(slot, reason));
                continue;
            };
            let mut run = Run::new(with, &line, count);
            let before = jobs.len();
            if count >= LONG_RUN {
                run.prepare_all(umem, &mut packets, slots, &mut sealed, &mut jobs);
            } else {
                for slot in slots {
                    let Some(packet) = packets.one(slot) else { continue };
                    if let Err(reason) = run.prepare(umem, packet, &mut sealed, &mut jobs) {
                        sealed.refuse(slot, reason);
                    }
                }
            }
            run.count(counters, tunnel, (jobs.len() - before) as u64);
        }
        next.into_iter().for_each(|groups| fetch_counts(counters, groups));
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
