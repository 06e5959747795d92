//! Opens ESP packets (RFC 4303 3.4, RFC 4106, RFC 3948).

use arrayvec::ArrayVec;

use super::{Cx, Stage, parse};
use crate::{
    crypto::{
        aead::{self, Aad, Job},
        replay::Refused,
    },
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stats::{SaColumn, WorkerColumn},
    table::tunnel::SaIn,
    wire::{
        checksum::Delta,
        esp::{self, Encapsulated},
        ip::protocol,
        ipv4::Ipv4,
        ipv6::Ipv6,
        udp,
    },
};

/// Opens what was sent to us in a tunnel and puts the inner packets back to the start.
#[derive(Debug)]
pub struct EspOpen {
    found: [Found; BURST],
}

/// What was found out about an ESP packet before it is opened.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    /// The association, by number.
    sa: u32,
    /// Offset of the ESP header.
    at: u16,
    /// The whole sequence number.
    sequence: u64,
}

impl Default for EspOpen {
    fn default() -> Self {
        Self { found: [Found::default(); BURST] }
    }
}

impl Stage for EspOpen {
    const NAME: &'static str = "esp-open";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let mut slots = super::take(&mut cx.lanes.esp, burst);
        for slot in slots {
            match examine(cx, burst, slot) {
                Ok(Some(found)) => *self.entry(slot) = found,
                Ok(None) => {
                    slots.remove(slot);
                    cx.lanes.local.insert(slot);
                }
                Err(reason) => burst.drop(slot, reason),
            }
        }
        let slots = slots & burst.live();
        let good = self.open(cx, burst, slots);
        for slot in slots {
            let found = *self.entry(slot);
            let Some(sa) = cx.tables.sas.get(found.sa as usize) else { continue };
            let result = if good.contains(slot) {
                inner(cx, burst, slot, sa, found)
            } else {
                cx.counters.sa(sa.index, SaColumn::Integrity, 1);
                Err(DropReason::EspIntegrity)
            };
            match result {
                Ok(()) => cx.lanes.ip.insert(slot),
                Err(reason) => burst.drop(slot, reason),
            }
        }
    }
}

impl EspOpen {
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the array's length")]
    const fn entry(&mut self, slot: Slot) -> &mut Found {
        &mut self.found[slot.index()]
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

/// Finds the association and the sequence number of a packet, and refuses it where it can be refused unopened.
///
/// `None`: it is no ESP packet after all, but something for the host.
fn examine(cx: &Cx<'_>, burst: &Burst, slot: Slot) -> Result<Option<Found>, DropReason> {
    let meta = burst.meta(slot);
    let bytes = burst.bytes(cx.umem, slot);
    let end = usize::from(meta.l3 + meta.ip_len);
    let l4 = bytes.get(usize::from(meta.l4)..end).ok_or(DropReason::EspLength)?;
    let in_udp = meta.proto == protocol::UDP;
    let (packet, at) = if in_udp {
        let datagram = udp::parse(l4).map_err(|_| DropReason::EspLength)?;
        match esp::classify(datagram.payload) {
            Encapsulated::Esp(packet) => (packet, usize::from(meta.l4) + udp::HEADER_LEN),
            Encapsulated::Keepalive => return Err(DropReason::NatKeepalive),
            Encapsulated::Ike(_) => {
                cx.counters.worker(WorkerColumn::NonEsp, 1);
                return Ok(None);
            }
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
    let (number, remote) = if meta.is_v6() {
        let outer = Ipv6::at(bytes, usize::from(meta.l3)).ok_or(DropReason::EspLength)?;
        let number = cx.tables.sad_v6.lookup((header.spi().0, outer.destination().to_bits()));
        (number, std::net::IpAddr::V6(outer.source()))
    } else {
        (cx.tables.sad_v4.lookup((header.spi().0, meta.dst)), std::net::IpAddr::V4(meta.src.into()))
    };
    let number = number.ok_or(DropReason::NoSa)?;
    let sa = cx.tables.sas.get(number as usize).ok_or(DropReason::NoSa)?;
    let tunnel = cx.tables.tunnel(sa.tunnel).ok_or(DropReason::NoSa)?;
    if tunnel.underlay != meta.gateway || sa.remote != remote || sa.udp != in_udp {
        return Err(DropReason::EspOuterMismatch);
    }
    let low = header.sequence();
    let sequence = if sa.esn { sa.window.esn_guess(low) } else { u64::from(low) };
    sa.window.check(sequence).map_err(|refused| refusal(cx, sa, refused))?;
    Ok(Some(Found { sa: number, at: at as u16, sequence }))
}

fn refusal(cx: &Cx<'_>, sa: &SaIn, refused: Refused) -> DropReason {
    match refused {
        Refused::Late => {
            cx.counters.sa(sa.index, SaColumn::Late, 1);
            DropReason::EspLate
        }
        Refused::Replayed | Refused::Zero => {
            cx.counters.sa(sa.index, SaColumn::Replayed, 1);
            DropReason::EspReplayed
        }
    }
}

/// Marks the sequence number, strips the ESP packet off, and reads the inner packet's headers.
fn inner(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, sa: &SaIn, found: Found) -> Result<(), DropReason> {
    let lateness = sa.window.mark(found.sequence).map_err(|refused| refusal(cx, sa, refused))?;
    if lateness > 0 {
        cx.counters.sa_lateness(sa.index, lateness);
    }
    let outer = *burst.meta(slot);
    let start = usize::from(found.at) + esp::HEADER_IV_LEN;
    let end = usize::from(outer.l3 + outer.ip_len) - esp::ICV_LEN;
    let text = burst.bytes(cx.umem, slot).get(start..end).ok_or(DropReason::EspLength)?;
    let trailer = esp::parse_trailer(text).map_err(|_| DropReason::EspPadding)?;
    let v6 = match trailer.next_header {
        protocol::IPV4 => false,
        protocol::IPV6 => true,
        protocol::NO_NEXT_HEADER => return Err(DropReason::EspDummy),
        _ => return Err(DropReason::EspNextHeader),
    };
    cx.counters.sa(sa.index, SaColumn::Packets, 1);
    cx.counters.sa(sa.index, SaColumn::Bytes, text.len() as u64);
    let gateway = cx.tables.tunnel(sa.tunnel).map_or(outer.gateway, |tunnel| tunnel.gateway);
    let frame = burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?;
    frame.trim_front(start);
    frame.truncate(trailer.payload_len);
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    *meta = Meta {
        port: outer.port,
        interface: outer.interface,
        wire_len: outer.wire_len,
        passes: outer.passes,
        gateway,
        ingress_tunnel: sa.tunnel,
        flags: Flags::FROM_TUNNEL,
        ..Meta::EMPTY
    };
    parse::ip(bytes, meta)?;
    meta.flags |= Flags::FROM_TUNNEL;
    if meta.is_v6() != v6 {
        return Err(DropReason::EspNextHeader);
    }
    if is_alarming(meta.tos & 3, outer.tos & 3) {
        cx.counters.sa(sa.index, SaColumn::EcnAlarms, 1);
    }
    let ecn = ecn(meta.tos & 3, outer.tos & 3).ok_or(DropReason::EcnContradiction)?;
    set_ecn(bytes, meta, ecn);
    cx.counters.tunnel_in(sa.tunnel, 1, meta.ip_len.into());
    Ok(())
}

/// ECN of the packet that goes on, from the inner and the outer field (RFC 6040 4.2, normal mode). `None`: drop.
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
