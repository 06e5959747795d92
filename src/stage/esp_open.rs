//! Opens ESP packets (RFC 4303 3.4, RFC 4106, RFC 3948).

mod inner;

use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use self::inner::{Lengths, any, ordinary};
use super::{Cx, Stage};
use crate::{
    crypto::{
        aead::{self, Aad, Job},
        replay::{self, Refused, Window},
    },
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stats::{SaColumn, WorkerColumn, WorkerCounters},
    table::{
        address::Address,
        hash::HashKey,
        prefetch::{prefetch_read, prefetch_write},
        sad::{NO_SA, Sad, SadKey},
        tables::Tables,
        tunnel::SaIn,
    },
    wire::{
        esp::{self, Encapsulated},
        ip::protocol,
        ipv4,
        ipv6::Ipv6,
        udp,
    },
};

/// Opens what was sent to us in a tunnel and puts the inner packets back to the start.
///
/// In two walks over the burst, before the cipher and after it. What packets in a row have in common is found once: nearly
/// always they are of one association.
#[derive(Debug)]
pub struct EspOpen {
    found: [Found; BURST],
    /// The association of the packets before.
    last: u32,
}

/// What is known of an ESP packet until it is opened.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// The sequence number, whole.
    sequence: u64,
    /// The association, by number; where only a few are in use, of the first packet of a run alone.
    sa: u32,
}

impl Default for EspOpen {
    fn default() -> Self {
        Self { found: [Found { sequence: 0, sa: NO_SA }; BURST], last: NO_SA }
    }
}

/// So many associations, at about 1 KiB each with their keys and windows, stay in the caches near the core by
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
            // The next packets are most likely of the same.
            if let Some(sa) = cx.tables.sas.get(self.last as usize) {
                prefetch_read(sa.window.top());
            }
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

/// The association that a packet names, and what of its outer header was compared with it: packets in a row that have
/// the same are of the same association, and as right.
struct Path<'a> {
    sa: &'a SaIn,
    number: u32,
    /// The outer packet's source and destination, IPv4.
    ends: (u32, u32),
    gateway: u16,
    proto: u8,
    /// The newest number accepted, as the first packet found it: other workers write to its line.
    newest: u64,
}

impl Path<'_> {
    /// Whether a packet is of it. Those of IPv6 are all looked at.
    #[inline(always)]
    fn is_of(&self, spi: u32, meta: &Meta) -> bool {
        (self.sa.spi == spi)
            & (self.ends == (meta.src, meta.dst))
            & (self.gateway == meta.gateway)
            & (self.proto == meta.proto)
            & !meta.is_v6()
    }
}

impl EspOpen {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn entry(&mut self, slot: Slot) -> &mut Found {
        &mut self.found[slot.index()]
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
            self.entry(slot).sequence = sequence.into();
            // As many keys as slots, so there is room.
            let _ = keys.try_push((spi, destination(slot)));
        }
        let mut results = [NO_SA; BURST];
        sad.lookup_burst(&keys, &mut results);
        for (slot, number) in slots.into_iter().zip(results) {
            self.entry(slot).sa = number;
        }
    }

    /// Starts loading what the packets will be opened with: of all packets at once, one step of the way at a time.
    fn fetch(&mut self, tables: &Tables, slots: Slots) {
        for slot in slots {
            if let Some(sa) = tables.sas.get(self.entry(slot).sa as usize) {
                prefetch_read(sa);
            }
        }
        for slot in slots {
            if let Some(sa) = tables.sas.get(self.entry(slot).sa as usize) {
                prefetch_read::<SaIn>(sa);
                sa.key.lines().into_iter().for_each(prefetch_read);
            }
        }
        for slot in slots {
            if let Some(sa) = tables.sas.get(self.entry(slot).sa as usize) {
                prefetch_read(&*sa.window);
            }
        }
        for slot in slots {
            let found = *self.entry(slot);
            if let Some(word) =
                tables.sas.get(found.sa as usize).and_then(|sa| sa.window.line(found.sequence as u32))
            {
                prefetch_read(word);
            }
        }
    }

    /// Refuses what can be refused unopened, and decrypts all others together. With `FAR`, their associations are known.
    fn open<const FAR: bool>(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Opened {
        let (umem, tables, counters) = (cx.umem, cx.tables, cx.counters);
        let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
        let mut refused: ArrayVec<(Slot, DropReason), BURST> = ArrayVec::new();
        let (mut all, mut firsts, mut last) = (Slots::NONE, Slots::NONE, NO_SA);
        let mut path: Option<Path<'_>> = None;
        burst.for_each_bytes_mut(umem, slots, |slot, bytes, meta| {
            let mut refuse = |reason| {
                // As many as slots at most, so there is room.
                let _ = refused.try_push((slot, reason));
            };
            let header = match header(bytes, meta) {
                Ok(Some(header)) => header,
                Ok(None) => {
                    counters.worker(WorkerColumn::NonEsp, 1);
                    cx.lanes.local.insert(slot);
                    return;
                }
                Err(reason) => return refuse(reason),
            };
            let (sa, number, newest) = match &path {
                _ if FAR => {
                    let number = self.entry(slot).sa;
                    match admit(tables, counters, number, bytes, meta) {
                        Ok(sa) => (sa, number, sa.window.newest()),
                        Err(reason) => return refuse(reason),
                    }
                }
                Some(path) if path.is_of(header.spi, meta) => (path.sa, path.number, path.newest),
                _ => match find(tables, counters, &header, bytes, meta) {
                    Ok(new) => {
                        let new = path.insert(new);
                        (new.sa, new.number, new.newest)
                    }
                    Err(reason) => return refuse(reason),
                },
            };
            let low = header.sequence;
            let sequence = if sa.esn { sa.window.esn_guess_at(newest, low) } else { low.into() };
            if let Err(reason) = sa.check_at(newest, sequence) {
                return refuse(refusal(counters, sa, reason));
            }
            let packet = bytes.get_mut(header.at..header.end).unwrap_or(&mut []);
            let Some((head, text)) = packet.split_first_chunk_mut::<{ esp::HEADER_IV_LEN }>() else { return };
            let aad = if sa.esn { Aad::esn(sa.spi, sequence) } else { Aad::new(sa.spi, header.sequence) };
            if jobs.try_push(Job::new(&sa.key, esp::Esp::new(&*head).iv(), aad, text)).is_ok() {
                self.entry(slot).sequence = sequence;
                all.insert(slot);
                if number != last {
                    last = number;
                    self.entry(slot).sa = number;
                    firsts.insert(slot);
                }
            }
        });
        aead::open(&mut jobs);
        if let Some(path) = &path {
            self.last = path.number;
            self.fetch_to_mark(&path.sa.window, all);
        }
        let good = if jobs.iter().all(|job| job.ok) {
            all
        } else {
            jobs.iter().zip(all).filter(|(job, _)| job.ok).map(|(_, slot)| slot).collect()
        };
        drop(jobs);
        for (slot, reason) in refused {
            burst.drop(slot, reason);
        }
        Opened { all, good, firsts }
    }

    /// Takes the ESP packets off and puts what was in them back to the start.
    fn strip(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, opened: Opened) {
        let mut done = Slots::NONE;
        for first in opened.firsts {
            let Some(sa) = cx.tables.sas.get(self.entry(first).sa as usize) else { continue };
            let run = opened.all.run(first, opened.firsts);
            for slot in run - opened.good {
                failed(cx.counters, burst, slot, sa, DropReason::EspIntegrity);
            }
            let template = Meta {
                gateway: sa.gateway,
                ingress_tunnel: sa.tunnel,
                flags: Flags::FROM_TUNNEL,
                l4: ipv4::HEADER_LEN as u16,
                ..Meta::EMPTY
            };
            let mut count = Count::default();
            let mut good = run & opened.good;
            let few = good.len() < FEW;
            if !few {
                good = self.mark_all(cx.counters, burst, sa, good);
            }
            for slot in good {
                if few && !accepted(cx.counters, burst, slot, sa, sa.mark(self.entry(slot).sequence)) {
                    continue;
                }
                let lengths = match ordinary(cx.umem, burst, slot, sa.udp, &template) {
                    Some(lengths) => lengths,
                    None => any(cx, burst, slot, sa, &template),
                };
                count.add(lengths);
                done.insert_if(slot, lengths.inner != 0);
            }
            count_in(cx.counters, sa, count);
        }
        cx.lanes.ip |= done;
    }

    /// Marks the numbers of opened packets of one association, and returns those accepted.
    #[inline(never)]
    fn mark_all(&mut self, counters: &WorkerCounters, burst: &mut Burst, sa: &SaIn, good: Slots) -> Slots {
        let (mut numbers, mut n) = ([0; BURST], 0);
        for (number, slot) in numbers.iter_mut().zip(good) {
            *number = self.entry(slot).sequence;
            n += 1;
        }
        let (mut refused, mut behind) = (Slots::NONE, Behind::default());
        sa.mark_all(numbers.get(..n).unwrap_or(&[]), |place, result| match result {
            Ok(lateness) => behind.add(counters, sa, lateness),
            Err(reason) => {
                let Some(slot) = good.into_iter().nth(place) else { return };
                refused.insert(slot);
                let reason = refusal(counters, sa, reason);
                failed(counters, burst, slot, sa, reason);
            }
        });
        behind.count(counters, sa);
        good - refused
    }

    /// Starts loading what marking writes to, where other workers have it too: it comes while what is to be written is
    /// worked out.
    #[inline(always)]
    fn fetch_to_mark(&mut self, window: &Window, slots: Slots) {
        if window.is_shared() {
            prefetch_write(window.top());
            for slot in [slots.first(), slots.last()].into_iter().flatten() {
                if let Some(word) = window.line(self.entry(slot).sequence as u32) {
                    prefetch_write(word);
                }
            }
        }
    }
}

/// Packets in a row that are about as far behind the newest.
#[derive(Debug, Clone, Copy, Default)]
struct Behind {
    bucket: usize,
    packets: u64,
    greatest: u64,
}

impl Behind {
    #[inline]
    fn add(&mut self, counters: &WorkerCounters, sa: &SaIn, lateness: u64) {
        let bucket = replay::behind(lateness);
        if bucket != self.bucket {
            self.count(counters, sa);
            *self = Self { bucket, ..Self::default() };
        }
        self.packets += u64::from(lateness > 0);
        self.greatest = self.greatest.max(lateness);
    }

    #[inline]
    fn count(&self, counters: &WorkerCounters, sa: &SaIn) {
        if self.packets > 0 {
            counters.sa_latenesses(sa.index, self.bucket, self.packets, self.greatest);
        }
    }
}

/// Whether a packet's number is accepted; one that is not is dropped.
#[inline(always)]
fn accepted(
    counters: &WorkerCounters,
    burst: &mut Burst,
    slot: Slot,
    sa: &SaIn,
    result: Result<u64, Refused>,
) -> bool {
    match result {
        Ok(0) => true,
        Ok(lateness) => {
            counters.sa_lateness(sa.index, lateness);
            true
        }
        Err(refused) => {
            let reason = refusal(counters, sa, refused);
            failed(counters, burst, slot, sa, reason);
            false
        }
    }
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
        self.packets += u64::from(lengths.text != 0);
        self.bytes += u64::from(lengths.text);
        self.inner_packets += u64::from(lengths.inner != 0);
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

/// The ESP header of a packet, and where its parts are.
struct Header {
    spi: u32,
    sequence: u32,
    /// Offset of the header.
    at: usize,
    /// Offset behind the ICV.
    end: usize,
}

/// Finds the ESP header of a packet, and refuses what cannot be one.
///
/// `None`: it is no ESP packet after all, but something for the host.
#[inline(always)]
fn header(bytes: &[u8], meta: &Meta) -> Result<Option<Header>, DropReason> {
    let end = usize::from(meta.l3) + usize::from(meta.ip_len);
    let mut at = usize::from(meta.l4);
    if meta.proto == protocol::UDP {
        match in_udp(bytes.get(at..end)) {
            Ok(true) => at += udp::HEADER_LEN,
            Ok(false) => return Ok(None),
            Err(reason) => return Err(reason),
        }
    }
    let packet = bytes.get(at..end).ok_or(DropReason::EspLength)?;
    if packet.len() < esp::MIN_LEN || packet.len() % esp::ALIGNMENT != 0 {
        return Err(DropReason::EspLength);
    }
    let header = esp::Esp::at(packet, 0).ok_or(DropReason::EspLength)?;
    Ok(Some(Header { spi: header.spi().0, sequence: header.sequence(), at, end }))
}

/// Whether ESP is in a UDP datagram for port 4500; otherwise it is for the host.
fn in_udp(l4: Option<&[u8]>) -> Result<bool, DropReason> {
    let l4 = l4.ok_or(DropReason::EspLength)?;
    let datagram = udp::parse(l4).map_err(|_| DropReason::EspLength)?;
    match esp::classify(datagram.payload) {
        // The datagram must end where the packet does, or what follows would be taken for ciphertext.
        Encapsulated::Esp(packet) if udp::HEADER_LEN + packet.len() == l4.len() => Ok(true),
        Encapsulated::Keepalive => Err(DropReason::NatKeepalive),
        Encapsulated::Ike(_) => Ok(false),
        Encapsulated::Esp(_) | Encapsulated::Malformed => Err(DropReason::EspLength),
    }
}

/// Source and destination of an outer packet over IPv6.
fn ends_v6(bytes: &[u8], meta: &Meta) -> (u128, u128) {
    let outer = Ipv6::at(bytes, usize::from(meta.l3));
    outer.map_or((0, 0), |outer| (outer.source().to_bits(), outer.destination().to_bits()))
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
    let newest = sa.window.newest();
    Ok(Path { sa, number, ends: (meta.src, meta.dst), gateway: meta.gateway, proto: meta.proto, newest })
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
    let remote = if meta.is_v6() { ends_v6(bytes, meta).0 } else { meta.src.into() };
    let in_udp = meta.proto == protocol::UDP;
    if (sa.underlay != meta.gateway) | (sa.remote != remote) | (sa.udp != in_udp) {
        counters.sa(sa.index, SaColumn::Outer, 1);
        return Err(DropReason::EspOuterMismatch);
    }
    if sa.ended.load(Relaxed) {
        counters.sa(sa.index, SaColumn::Expired, 1);
        return Err(DropReason::EspExpired);
    }
    Ok(sa)
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
