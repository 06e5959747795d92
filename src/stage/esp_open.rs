//! Opens ESP packets (RFC 4303 3.4, RFC 4106, RFC 3948).

mod header;
mod inner;
mod mark;
mod path;

use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use self::{
    header::{Header, ends_v6, header},
    inner::{Lengths, any, ordinary},
    mark::{fetch_to_mark, mark_all, mark_few},
    path::{Path, ToOpen, whole},
};
use super::{Cx, Stage};
use crate::{
    crypto::{
        aead::{self, Aad, Job},
        replay::Refused,
    },
    packet::{BURST, Burst, DropReason, Meta, Slot, Slots},
    stats::{SaColumn, WorkerColumn, WorkerCounters},
    table::{
        address::Address,
        hash::HashKey,
        limit::{GATEWAYS, WAYS_IN},
        prefetch::{prefetch_read, prefetch_write},
        sad::{NO_SA, Sad, SadKey},
        tables::Tables,
        tunnel::SaIn,
    },
    wire::{esp, ip::protocol, udp},
};

/// Opens what was sent to us in a tunnel, and sends the inner packets on, or back to the start.
///
/// In two walks over the burst, before the cipher and after it. What packets in a row have in common is found once: nearly
/// always they are of one association.
#[derive(Debug)]
pub struct EspOpen {
    found: [Found; BURST],
    /// The whole sequence numbers of those that the cipher has, one after the other.
    numbers: [u64; BURST],
    /// The association of the packets before.
    last: u32,
}

/// What the header of an ESP packet names.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// The low half of the sequence number.
    sequence: u32,
    /// The association, by number; where only a few are in use, of the first packet of a run alone.
    sa: u32,
}

impl Default for EspOpen {
    fn default() -> Self {
        Self { found: [Found { sequence: 0, sa: NO_SA }; BURST], numbers: [0; BURST], last: NO_SA }
    }
}

/// So many associations, at about 2 KiB each with their keys and windows, stay in the caches near the core by
/// themselves.
const NEAR_SAS: usize = 64;

/// Of fewer packets of an association in a row, each number is marked by itself.
const FEW: usize = 4;

impl Stage for EspOpen {
    const NAME: &'static str = "esp-open";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.esp, burst);
        let opened = if cx.tables.sas.len() > NEAR_SAS {
            self.look_up(cx, burst, slots);
            self.fetch(cx.tables, slots);
            self.open::<true>(cx, burst, slots)
        } else {
            self.open::<false>(cx, burst, slots)
        };
        self.strip(cx, burst, opened);
    }
}

/// Packets that the cipher had: all, and those whose ICV is right.
struct Opened {
    all: Slots,
    good: Slots,
    /// Those of another association than the one before.
    firsts: Slots,
}

/// What the cipher is to do.
struct Work<'a> {
    jobs: ArrayVec<Job<'a>, BURST>,
    /// The whole sequence number of each.
    numbers: &'a mut [u64; BURST],
    slots: Slots,
}

impl<'a> Work<'a> {
    /// Adds a packet, of which this is ciphertext and ICV.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "the place is below the array's length")]
    fn add(&mut self, slot: Slot, text: &'a mut [u8], to_open: &ToOpen<'a>) {
        let &ToOpen { sa, sequence, iv, .. } = to_open;
        let aad = if sa.esn { Aad::esn(sa.spi, sequence) } else { Aad::new(sa.spi, sequence as u32) };
        let place = self.jobs.len();
        // As many as slots at most, so there is room.
        if self.jobs.try_push(Job::new(&sa.key, iv, aad, text)).is_ok() {
            self.numbers[place % BURST] = sequence;
            self.slots.insert(slot);
        }
    }
}

/// What is found out about the packets of a burst before they are opened.
struct Search<'a, 'f> {
    found: &'f mut [Found; BURST],
    /// Of the packet before, where only a few associations are in use.
    path: Option<Path<'a>>,
    /// The association of the packet before.
    number: u32,
    /// Packets of another association than the one before.
    firsts: Slots,
    refused: ArrayVec<(Slot, DropReason), BURST>,
}

impl EspOpen {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn found(&self, slot: Slot) -> &Found {
        &self.found[slot.index()]
    }

    /// Starts loading what other workers write to of the association of the packets before, most likely that of the next
    /// ones too: to be called as early as anything is known of these.
    #[inline]
    pub fn expect(&self, tables: &Tables) {
        if let Some(sa) = tables.sas.get(self.last as usize).filter(|sa| sa.is_shared()) {
            prefetch_read(sa.window.top());
            // Of two workers each has every other packet of the tunnel, about.
            const NUMBERS: u32 = 2 * BURST as u32;
            let [before, ..] = self.numbers;
            for next in [1, 2].map(|bursts| (before as u32).wrapping_add(bursts * NUMBERS)) {
                sa.window.line(next).into_iter().for_each(prefetch_write);
            }
        }
    }

    /// Finds the associations of all packets, where there are so many that they have to be waited for.
    fn look_up(&mut self, cx: &Cx<'_>, burst: &Burst, slots: Slots) {
        let v6 = slots.filter(|slot| burst.meta(slot).is_v6());
        self.look_up_in(cx, burst, &cx.tables.sad_v4, slots - v6, |slot| burst.meta(slot).dst);
        if !v6.is_empty() {
            self.look_up_in(cx, burst, &cx.tables.sad_v6, v6, |slot| {
                ends_v6(burst.bytes(cx.umem, slot), burst.meta(slot)).1
            });
        }
    }

    /// As [`Self::look_up`], for one IP version.
    #[inline]
    fn look_up_in<A: Address>(
        &mut self,
        cx: &Cx<'_>,
        burst: &Burst,
        sad: &Sad<A>,
        slots: Slots,
        destination: impl Fn(Slot) -> A,
    ) where
        SadKey<A>: HashKey,
    {
        let mut keys: ArrayVec<SadKey<A>, BURST> = ArrayVec::new();
        for slot in slots {
            let meta = burst.meta(slot);
            let at = if meta.proto == protocol::UDP { udp::HEADER_LEN } else { 0 };
            // What is no ESP packet finds any association or none, and is found out when it is to be opened.
            let header = esp::Esp::at(burst.bytes(cx.umem, slot), usize::from(meta.l4) + at);
            let (spi, sequence) = header.map_or((0, 0), |header| (header.spi().0, header.sequence()));
            entry(&mut self.found, slot).sequence = sequence;
            // As many keys as slots, so there is room.
            let _ = keys.try_push((spi, destination(slot)));
        }
        let mut results = [NO_SA; BURST];
        sad.lookup_burst(&keys, &mut results);
        for (slot, number) in slots.into_iter().zip(results) {
            entry(&mut self.found, slot).sa = number;
        }
    }

    /// Starts loading what the packets will be opened with: of all packets at once, one step of the way at a time.
    fn fetch(&mut self, tables: &Tables, slots: Slots) {
        for slot in slots {
            if let Some(sa) = tables.sas.get(entry(&mut self.found, slot).sa as usize) {
                prefetch_read(sa);
            }
        }
        for slot in slots {
            if let Some(sa) = tables.sas.get(entry(&mut self.found, slot).sa as usize) {
                prefetch_read::<SaIn>(sa);
                sa.key.lines().into_iter().for_each(prefetch_read);
            }
        }
        for slot in slots {
            if let Some(sa) = tables.sas.get(entry(&mut self.found, slot).sa as usize) {
                prefetch_read(&*sa.window);
            }
        }
        for slot in slots {
            let found = *entry(&mut self.found, slot);
            if let Some(word) =
                tables.sas.get(found.sa as usize).and_then(|sa| sa.window.line(found.sequence))
            {
                prefetch_read(word);
            }
        }
    }

    /// Refuses what can be refused unopened, and decrypts all others together. With `FAR`, their associations are known.
    fn open<const FAR: bool>(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Opened {
        let umem = cx.umem;
        let mut search = Search {
            found: &mut self.found,
            path: None,
            number: NO_SA,
            firsts: Slots::NONE,
            refused: ArrayVec::new(),
        };
        // In a scope of its own: from the first packet on to where the cipher is done, it has what it borrows.
        let (all, good) = {
            let mut work = Work { jobs: ArrayVec::new(), numbers: &mut self.numbers, slots: Slots::NONE };
            let mut packets = burst.packets().part(slots);
            loop {
                let next = if !FAR && let Some(path) = &search.path {
                    let (next, rest) = path.follow_all(umem, packets, &mut work);
                    packets = rest;
                    next
                } else {
                    packets.next()
                };
                let Some((slot, frame, meta)) = next else { break };
                let found = umem.cut_if(frame, |bytes| {
                    let found = search.find_out::<FAR>(cx, slot, bytes, meta)?;
                    Some((found.text.0, found.text.1, found))
                });
                if let Ok((text, found)) = found {
                    work.add(slot, text, &found);
                }
            }
            if let Some(path) = &search.path {
                self.last = path.number;
                fetch_to_mark(path, work.numbers.get(..work.jobs.len()).unwrap_or_default());
            }
            aead::open(&mut work.jobs);
            let good = if work.jobs.iter().all(|job| job.ok) {
                work.slots
            } else {
                work.jobs.iter().zip(work.slots).filter(|(job, _)| job.ok).map(|(_, slot)| slot).collect()
            };
            (work.slots, good)
        };
        let Search { firsts, refused, .. } = search;
        for (slot, reason) in refused {
            burst.drop(slot, reason);
        }
        Opened { all, good, firsts }
    }

    /// Takes the ESP packets off and sends on what was in them, or back to the start.
    fn strip(&self, cx: &mut Cx<'_>, burst: &mut Burst, opened: Opened) {
        let mut left: &[u64] = &self.numbers;
        let (mut onwards, mut back) = (Slots::NONE, Slots::NONE);
        let limited = cx.tables.limits.active.bits() & (WAYS_IN | GATEWAYS) != 0;
        for first in opened.firsts {
            let run = opened.all.run(first, opened.firsts);
            let (numbers, rest) = left.split_at_checked(run.len()).unwrap_or((left, &[]));
            left = rest;
            let Some(sa) = cx.tables.sas.get(self.found(first).sa as usize) else { continue };
            for slot in run - opened.good {
                failed(cx.counters, burst, slot, sa, DropReason::EspIntegrity);
            }
            let good = run & opened.good;
            let good = if good.len() < FEW {
                mark_few(cx.counters, burst, sa, run, good, numbers)
            } else if good == run {
                mark_all(cx.counters, burst, sa, good, numbers)
            } else {
                let numbers = run.into_iter().zip(numbers).filter(|(slot, _)| good.contains(*slot));
                let numbers: ArrayVec<u64, BURST> = numbers.map(|(_, number)| *number).collect();
                mark_all(cx.counters, burst, sa, good, &numbers)
            };
            let own = cx.tables.gateway(sa.gateway).map(|gateway| &gateway.own);
            let (mut count, mut others, mut near) = (Count::default(), Slots::NONE, Slots::NONE);
            for slot in good {
                burst.prefetch_after(cx.umem, slot);
                let Some((lengths, destination)) = ordinary(cx.umem, burst, slot, sa) else {
                    others.insert(slot);
                    continue;
                };
                count.add(lengths);
                near.insert_if(slot, own.is_none_or(|own| own.v4(destination).is_some()));
            }
            let ordinary = good - others;
            (count.packets, count.inner_packets) = (ordinary.len() as u64, ordinary.len() as u64);
            // What is not for the gateway itself goes on at once, unless limits are asked before.
            onwards |= if limited { Slots::NONE } else { ordinary - near };
            back |= ordinary;
            for slot in others {
                let lengths = any(cx, burst, slot, sa);
                count.add(lengths);
                count.packets += u64::from(lengths.text != 0);
                count.inner_packets += u64::from(lengths.inner != 0);
                back.insert_if(slot, lengths.inner != 0);
            }
            count_in(cx.counters, sa, count);
        }
        cx.lanes.forward |= onwards;
        cx.lanes.opened |= onwards;
        cx.lanes.ip |= back - onwards;
    }
}

impl<'a> Search<'a, '_> {
    /// What there is to open in a packet; `None` where it is refused, or for the host.
    #[inline(always)]
    fn find_out<const FAR: bool>(
        &mut self,
        cx: &mut Cx<'a>,
        slot: Slot,
        bytes: &[u8],
        meta: &Meta,
    ) -> Option<ToOpen<'a>> {
        let known = if FAR { self.known(cx.tables, slot, bytes, meta) } else { None };
        known.or_else(|| self.search::<FAR>(cx, slot, bytes, meta))
    }

    /// Finds out about a packet that is not of the path of those before, or about which there is something to be said: by
    /// which path it and those after it come, and what there is to open.
    #[inline(never)]
    fn search<const FAR: bool>(
        &mut self,
        cx: &mut Cx<'a>,
        slot: Slot,
        bytes: &[u8],
        meta: &Meta,
    ) -> Option<ToOpen<'a>> {
        let (tables, counters) = (cx.tables, cx.counters);
        let header = match header(bytes, meta) {
            Ok(Some(header)) => header,
            Ok(None) => {
                counters.worker(WorkerColumn::NonEsp, 1);
                cx.lanes.local.insert(slot);
                return None;
            }
            Err(reason) => {
                self.refuse(slot, reason);
                return None;
            }
        };
        let found = match &self.path {
            _ if FAR => {
                let number = entry(self.found, slot).sa;
                admit(tables, counters, number, bytes, meta).map(|sa| Path::new(sa, number, meta))
            }
            Some(path) if path.is_of(header.spi, meta) => Ok(*path),
            _ => find(tables, counters, &header, bytes, meta),
        };
        let path = found.map_err(|reason| self.refuse(slot, reason)).ok()?;
        let sequence = path.sequence(&header);
        let checked = path.sa.check_at(path.newest, sequence);
        self.begin(slot, path.number);
        self.path = Some(path).filter(|_| !FAR);
        match checked {
            Ok(()) => Some(ToOpen::new(&header, path.sa, sequence)),
            Err(reason) => {
                self.refuse(slot, refusal(counters, path.sa, reason));
                None
            }
        }
    }

    /// As [`Self::search`], of a packet whose association is known; `None` also where there is something to be said.
    #[inline(always)]
    fn known(&mut self, tables: &'a Tables, slot: Slot, bytes: &[u8], meta: &Meta) -> Option<ToOpen<'a>> {
        let header = header(bytes, meta).ok().flatten()?;
        let number = entry(self.found, slot).sa;
        let sa = tables.sas.get(number as usize).filter(|sa| may_come(sa, bytes, meta).is_ok())?;
        let newest = sa.window.newest();
        let sequence = whole(sa, sa.window.edge_at(newest), &header);
        sa.check_at(newest, sequence).ok()?;
        self.begin(slot, number);
        Some(ToOpen::new(&header, sa, sequence))
    }

    /// Notes where packets of another association begin.
    #[inline(always)]
    fn begin(&mut self, slot: Slot, number: u32) {
        if self.number != number {
            self.number = number;
            entry(self.found, slot).sa = number;
            self.firsts.insert(slot);
        }
    }

    fn refuse(&mut self, slot: Slot, reason: DropReason) {
        // As many as slots at most, so there is room.
        let _ = self.refused.try_push((slot, reason));
    }
}

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
const fn entry(found: &mut [Found; BURST], slot: Slot) -> &mut Found {
    &mut found[slot.index()]
}

/// What is counted of packets of one association that follow each other.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    packets: u64,
    bytes: u64,
    inner_packets: u64,
    inner_bytes: u64,
}

impl Count {
    #[inline(always)]
    fn add(&mut self, lengths: Lengths) {
        self.bytes += u64::from(lengths.text);
        self.inner_bytes += u64::from(lengths.inner);
    }
}

fn count_in(counters: &WorkerCounters, sa: &SaIn, count: Count) {
    counters.sa(sa.index, SaColumn::Packets, count.packets);
    counters.sa(sa.index, SaColumn::Bytes, count.bytes);
    counters.tunnel_in(sa.tunnel, count.inner_packets, count.inner_bytes);
}

#[cold]
fn failed(counters: &WorkerCounters, burst: &mut Burst, slot: Slot, sa: &SaIn, reason: DropReason) {
    match reason {
        DropReason::EspIntegrity => counters.sa(sa.index, SaColumn::Integrity, 1),
        // These have a count of their own, or are no fault.
        DropReason::EspReplayed | DropReason::EspLate | DropReason::EspDummy => {}
        _ => counters.sa(sa.index, SaColumn::Malformed, 1),
    }
    burst.drop(slot, reason);
}

/// Finds the association that a packet names, and whether the packet may come by it.
#[inline(never)]
fn find<'a>(
    tables: &'a Tables,
    counters: &WorkerCounters,
    header: &Header,
    bytes: &[u8],
    meta: &Meta,
) -> Result<Path<'a>, DropReason> {
    let spi = header.spi;
    let number = if meta.is_v6() {
        tables.sad_v6.lookup((spi, ends_v6(bytes, meta).1))
    } else {
        tables.sad_v4.lookup((spi, meta.dst))
    };
    let number = number.unwrap_or(NO_SA);
    let sa = admit(tables, counters, number, bytes, meta)?;
    if sa.is_shared() {
        // The words that the packets of a burst are checked by, while the newest number is waited for.
        let ends = [header.sequence, header.sequence.wrapping_add(2 * BURST as u32)];
        ends.into_iter().filter_map(|low| sa.window.line(low)).for_each(prefetch_read);
    }
    Ok(Path::new(sa, number, meta))
}

/// The association of this number, if the packet may come by it.
#[inline(always)]
fn admit<'a>(
    tables: &'a Tables,
    counters: &WorkerCounters,
    number: u32,
    bytes: &[u8],
    meta: &Meta,
) -> Result<&'a SaIn, DropReason> {
    let sa = tables.sas.get(number as usize).ok_or(DropReason::NoSa)?;
    may_come(sa, bytes, meta).map_err(|(column, reason)| {
        counters.sa(sa.index, column, 1);
        reason
    })?;
    Ok(sa)
}

/// Whether a packet may come by an association; if not, where that is counted, and why not.
#[inline(always)]
fn may_come(sa: &SaIn, bytes: &[u8], meta: &Meta) -> Result<(), (SaColumn, DropReason)> {
    let remote = if meta.is_v6() { ends_v6(bytes, meta).0 } else { meta.src.into() };
    let in_udp = meta.proto == protocol::UDP;
    if (sa.underlay != meta.gateway) | (sa.remote != remote) | (sa.udp != in_udp) {
        return Err((SaColumn::Outer, DropReason::EspOuterMismatch));
    }
    if sa.ended.load(Relaxed) {
        return Err((SaColumn::Expired, DropReason::EspExpired));
    }
    Ok(())
}

#[cold]
fn refusal(counters: &WorkerCounters, sa: &SaIn, refused: Refused) -> DropReason {
    match refused {
        Refused::Late => {
            counters.sa(sa.index, SaColumn::Late, 1);
            DropReason::EspLate
        }
        Refused::Replayed | Refused::Zero => {
            counters.sa(sa.index, SaColumn::Replayed, 1);
            DropReason::EspReplayed
        }
    }
}
