//! Opens ESP packets (RFC 4303 3.4, RFC 4106, RFC 3948).

use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::{Cx, Stage, parse};
use crate::{
    crypto::{
        aead::{self, Aad, Job},
        replay::Refused,
    },
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots, Umem},
    stats::{SaColumn, WorkerColumn, WorkerCounters},
    table::{
        address::Address,
        hash::HashKey,
        prefetch::prefetch_read,
        sad::{NO_SA, Sad, SadKey},
        tables::Tables,
        tunnel::SaIn,
    },
    wire::{
        checksum::Delta,
        esp::{self, Encapsulated},
        ip::protocol,
        ipv4::{self, Ipv4},
        ipv6::Ipv6,
        udp,
    },
};

/// Opens what was sent to us in a tunnel and puts the inner packets back to the start.
///
/// Each step is taken for the whole burst before the next, so that what packets wait for (associations, keys,
/// windows) is waited for once.
#[derive(Debug)]
pub struct EspOpen {
    found: [Found; BURST],
}

/// What was found out about an ESP packet before it is opened.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    /// The sequence number: first its low half, as the packet has it, then the whole.
    sequence: u64,
    spi: u32,
    /// The association, by number.
    sa: u32,
    /// Offset of the ESP header.
    at: u16,
}

impl Default for EspOpen {
    fn default() -> Self {
        Self { found: [Found::default(); BURST] }
    }
}

/// So many associations, at about 1 KiB each with their keys and windows, stay in the caches near the core by
/// themselves.
const NEAR_SAS: usize = 64;

impl Stage for EspOpen {
    const NAME: &'static str = "esp-open";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.esp, burst);
        let slots = self.read(cx, burst, slots);
        self.look_up(cx, burst, slots);
        if cx.tables.sas.len() > NEAR_SAS {
            self.fetch(cx.tables, slots);
        }
        let slots = self.admit(cx, burst, slots);
        let good = self.open(cx, burst, slots);
        let mut run = Run::NONE;
        for slot in slots {
            let found = *self.entry(slot);
            let Some(sa) = cx.tables.sas.get(found.sa as usize) else { continue };
            run.follow(cx.counters, sa);
            let result = if good.contains(slot) {
                inner(cx.counters, cx.umem, burst, slot, sa, found, &mut run)
            } else {
                cx.counters.sa(sa.index, SaColumn::Integrity, 1);
                Err(DropReason::EspIntegrity)
            };
            match result {
                Ok(()) => cx.lanes.ip.insert(slot),
                Err(reason) => {
                    use DropReason::{EspDummy, EspIntegrity, EspLate, EspReplayed};
                    // These have a count of their own, or are no fault.
                    if !matches!(reason, EspIntegrity | EspReplayed | EspLate | EspDummy) {
                        cx.counters.sa(sa.index, SaColumn::Malformed, 1);
                    }
                    burst.drop(slot, reason);
                }
            }
        }
        run.count(cx.counters);
    }
}

impl EspOpen {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn entry(&mut self, slot: Slot) -> &mut Found {
        &mut self.found[slot.index()]
    }

    /// Reads the ESP header of each packet. The result is those that have one.
    fn read(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
        let mut good = Slots::NONE;
        for slot in slots {
            match header(burst.bytes(cx.umem, slot), burst.meta(slot)) {
                Ok(Some(found)) => {
                    *self.entry(slot) = found;
                    good.insert(slot);
                }
                Ok(None) => {
                    cx.counters.worker(WorkerColumn::NonEsp, 1);
                    cx.lanes.local.insert(slot);
                }
                Err(reason) => burst.drop(slot, reason),
            }
        }
        good
    }

    /// Finds the association of each packet.
    fn look_up(&mut self, cx: &Cx<'_>, burst: &Burst, slots: Slots) {
        let v6 = slots.filter(|slot| burst.meta(slot).is_v6());
        self.look_up_in(&cx.tables.sad_v4, slots - v6, |slot| burst.meta(slot).dst);
        if !v6.is_empty() {
            self.look_up_in(&cx.tables.sad_v6, v6, |slot| {
                let outer = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(burst.meta(slot).l3));
                outer.map_or(0, |outer| outer.destination().to_bits())
            });
        }
    }

    /// As [`Self::look_up`], for one IP version: once for each run of packets with the same key.
    #[inline]
    fn look_up_in<A: Address>(&mut self, sad: &Sad<A>, slots: Slots, destination: impl Fn(Slot) -> A)
    where
        SadKey<A>: HashKey,
    {
        let mut keys: ArrayVec<SadKey<A>, BURST> = ArrayVec::new();
        for slot in slots {
            let found = self.entry(slot);
            let key = (found.spi, destination(slot));
            if keys.last() != Some(&key) {
                // As many keys as slots, so there is room.
                let _ = keys.try_push(key);
            }
            found.sa = keys.len() as u32 - 1;
        }
        let mut results = [NO_SA; BURST];
        sad.lookup_burst(&keys, &mut results);
        for slot in slots {
            let found = self.entry(slot);
            found.sa = results.get(found.sa as usize).copied().unwrap_or(NO_SA);
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

    /// Refuses what can be refused unopened. The result is the packets to be opened.
    fn admit(&mut self, cx: &Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
        let mut good = Slots::NONE;
        for slot in slots {
            let found = self.entry(slot);
            let Some(sa) = cx.tables.sas.get(found.sa as usize) else {
                burst.drop(slot, DropReason::NoSa);
                continue;
            };
            let meta = burst.meta(slot);
            let remote = if meta.is_v6() {
                let outer = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(meta.l3));
                outer.map_or(0, |outer| outer.source().to_bits())
            } else {
                meta.src.into()
            };
            let in_udp = meta.proto == protocol::UDP;
            if (sa.underlay != meta.gateway) | (sa.remote != remote) | (sa.udp != in_udp) {
                cx.counters.sa(sa.index, SaColumn::Outer, 1);
                burst.drop(slot, DropReason::EspOuterMismatch);
                continue;
            }
            if sa.ended.load(Relaxed) {
                cx.counters.sa(sa.index, SaColumn::Expired, 1);
                burst.drop(slot, DropReason::EspExpired);
                continue;
            }
            if sa.esn {
                found.sequence = sa.window.esn_guess(found.sequence as u32);
            }
            if let Err(refused) = sa.check(found.sequence) {
                let reason = refusal(cx.counters, sa, refused);
                burst.drop(slot, reason);
                continue;
            }
            good.insert(slot);
        }
        good
    }

    /// Decrypts all packets of `slots` together; those whose ICV is right are the result.
    fn open(&self, cx: &Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
        let mut jobs: ArrayVec<Job<'_>, BURST> = ArrayVec::new();
        let mut places: ArrayVec<Slot, BURST> = ArrayVec::new();
        burst.for_each_bytes_mut(cx.umem, slots, |slot, bytes, meta| {
            let Some(&found) = self.found.get(slot.index()) else { return };
            let Some(sa) = cx.tables.sas.get(found.sa as usize) else { return };
            let end = usize::from(meta.l3 + meta.ip_len);
            let Some(packet) = bytes.get_mut(usize::from(found.at)..end) else { return };
            let Some((head, text)) = packet.split_at_mut_checked(esp::HEADER_IV_LEN) else { return };
            let iv = esp::Esp::at(head, 0).map_or([0; 8], |header| header.iv());
            let aad = if sa.esn {
                Aad::esn(sa.spi, found.sequence)
            } else {
                Aad::new(sa.spi, found.sequence as u32)
            };
            // As many jobs as slots, so there is room.
            let _ = jobs.try_push(Job::new(&sa.key, iv, aad, text)).map(|()| places.push(slot));
        });
        aead::open(&mut jobs);
        let mut good = Slots::NONE;
        for (job, slot) in jobs.iter().zip(places) {
            good.insert_if(slot, job.ok);
        }
        good
    }
}

/// Finds the ESP header of a packet, and refuses what cannot be one.
///
/// `None`: it is no ESP packet after all, but something for the host.
#[inline(always)]
fn header(bytes: &[u8], meta: &Meta) -> Result<Option<Found>, DropReason> {
    let end = usize::from(meta.l3 + meta.ip_len);
    let l4 = bytes.get(usize::from(meta.l4)..end).ok_or(DropReason::EspLength)?;
    let (packet, at) = if meta.proto == protocol::UDP {
        let datagram = udp::parse(l4).map_err(|_| DropReason::EspLength)?;
        match esp::classify(datagram.payload) {
            Encapsulated::Esp(packet) => (packet, usize::from(meta.l4) + udp::HEADER_LEN),
            Encapsulated::Keepalive => return Err(DropReason::NatKeepalive),
            Encapsulated::Ike(_) => return Ok(None),
            Encapsulated::Malformed => return Err(DropReason::EspLength),
        }
    } else {
        (l4, usize::from(meta.l4))
    };
    // The datagram must end where the packet does, or what follows would be taken for ciphertext.
    if at + packet.len() != end || packet.len() < esp::MIN_LEN || packet.len() % esp::ALIGNMENT != 0 {
        return Err(DropReason::EspLength);
    }
    let header = esp::Esp::at(packet, 0).ok_or(DropReason::EspLength)?;
    Ok(Some(Found { sequence: header.sequence().into(), spi: header.spi().0, sa: NO_SA, at: at as u16 }))
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

/// What is counted of packets of one association that follow each other.
struct Run<'a> {
    sa: Option<&'a SaIn>,
    /// What the metadata of its inner packets begins with.
    template: Meta,
    packets: u64,
    bytes: u64,
    inner_packets: u64,
    inner_bytes: u64,
}

impl<'a> Run<'a> {
    /// No packets.
    const NONE: Self =
        Self { sa: None, template: Meta::EMPTY, packets: 0, bytes: 0, inner_packets: 0, inner_bytes: 0 };

    /// Goes on with a packet of `sa`.
    #[inline(always)]
    fn follow(&mut self, counters: &WorkerCounters, sa: &'a SaIn) {
        if !self.sa.is_some_and(|last| std::ptr::eq(last, sa)) {
            self.count(counters);
            let template = Meta {
                gateway: sa.gateway,
                ingress_tunnel: sa.tunnel,
                flags: Flags::FROM_TUNNEL,
                l4: ipv4::HEADER_LEN as u16,
                ..Meta::EMPTY
            };
            *self = Self { sa: Some(sa), template, ..Self::NONE };
        }
    }

    fn count(&self, counters: &WorkerCounters) {
        let Some(sa) = self.sa else { return };
        counters.sa(sa.index, SaColumn::Packets, self.packets);
        counters.sa(sa.index, SaColumn::Bytes, self.bytes);
        counters.tunnel_in(sa.tunnel, self.inner_packets, self.inner_bytes);
    }
}

/// Marks the sequence number, strips the ESP packet off, and reads the inner packet's headers.
#[inline(always)]
fn inner(
    counters: &WorkerCounters,
    umem: &Umem,
    burst: &mut Burst,
    slot: Slot,
    sa: &SaIn,
    found: Found,
    run: &mut Run<'_>,
) -> Result<(), DropReason> {
    match sa.mark(found.sequence) {
        Ok(0) => {}
        Ok(lateness) => counters.sa_lateness(sa.index, lateness),
        Err(refused) => return Err(refusal(counters, sa, refused)),
    }
    let start = usize::from(found.at) + esp::HEADER_IV_LEN;
    let (bytes, meta) = burst.packet_mut(umem, slot);
    let end = usize::from(meta.l3 + meta.ip_len) - esp::ICV_LEN;
    let text = bytes.get(start..end).ok_or(DropReason::EspLength)?;
    let trailer = esp::parse_trailer(text).map_err(|_| DropReason::EspPadding)?;
    let v6 = match trailer.next_header {
        protocol::IPV4 => false,
        protocol::IPV6 => true,
        protocol::NO_NEXT_HEADER => return Err(DropReason::EspDummy),
        _ => return Err(DropReason::EspNextHeader),
    };
    run.packets += 1;
    run.bytes += text.len() as u64;
    let (outer_tos, port, interface, passes) = (meta.tos, meta.port, meta.interface, meta.passes);
    let frame = burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?;
    if !frame.reframe(start, trailer.payload_len, 0) {
        return Err(DropReason::EspLength);
    }
    let (bytes, meta) = burst.packet_mut(umem, slot);
    if v6 || !parse::ordinary::inner(&run.template, bytes, meta) {
        *meta = Meta { wire_len: meta.wire_len, ..run.template };
        parse::ip(bytes, meta)?;
        if meta.is_v6() != v6 {
            return Err(DropReason::EspNextHeader);
        }
    }
    (meta.port, meta.interface, meta.passes) = (port, interface, passes);
    if (meta.tos ^ outer_tos) & 3 != 0 {
        if is_alarming(meta.tos & 3, outer_tos & 3) {
            counters.sa(sa.index, SaColumn::EcnAlarms, 1);
        }
        let ecn = ecn(meta.tos & 3, outer_tos & 3).ok_or(DropReason::EcnContradiction)?;
        set_ecn(bytes, meta, ecn);
    }
    run.inner_packets += 1;
    run.inner_bytes += u64::from(meta.ip_len);
    Ok(())
}

/// ECN of the packet that goes on, from the inner and the outer field (RFC 6040 4.2, normal mode). `None`: drop.
///
/// Of two equal fields it is the same.
const fn ecn(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (CE, _) | (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Whether no sender makes this combination of inner and outer field: the outer one was set without right on its way,
/// or the tunnel's entry is at odds with RFC 6040 (figure 4: `!!!`).
const fn is_alarming(inner: u8, outer: u8) -> bool {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const CE: u8 = 3;
    inner == NOT_ECT && outer != NOT_ECT || inner == CE && outer == ECT_1
}

fn set_ecn(bytes: &mut [u8], meta: &mut Meta, ecn: u8) {
    let class = meta.tos & !3 | ecn;
    if class == meta.tos {
        return;
    }
    if meta.is_v6() {
        if let Some(mut header) = Ipv6::at_mut(bytes, usize::from(meta.l3)) {
            header.set_traffic_class(class);
        }
    } else if let Some(mut header) = Ipv4::at_mut(bytes, usize::from(meta.l3)) {
        let change = Delta::between_u16(meta.tos.into(), class.into());
        let checksum = change.apply(header.checksum());
        header.set_traffic_class(class);
        header.set_checksum(checksum);
    }
    meta.tos = class;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecn_is_that_of_rfc_6040_figure_4() {
        // Columns: outer Not-ECT, ECT(0), ECT(1), CE. Rows likewise, for the inner field.
        let (not, e0, e1, ce) = (0, 2, 1, 3);
        let table = [
            (not, [Some(not), Some(not), Some(not), None]),
            (e0, [Some(e0), Some(e0), Some(e1), Some(ce)]),
            (e1, [Some(e1), Some(e1), Some(e1), Some(ce)]),
            (ce, [Some(ce); 4]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [not, e0, e1, ce].into_iter().zip(row) {
                assert_eq!(ecn(inner, outer), expected, "inner {inner}, outer {outer}");
            }
        }
    }
}
