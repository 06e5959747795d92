//! What was in an opened ESP packet: an IP packet behind padding, which takes over the outer one's ECN (RFC 6040).

use super::failed;
use crate::{
    packet::{Burst, DropReason, Meta, Slot, Umem},
    stage::{Cx, parse},
    stats::{SaColumn, WorkerCounters},
    table::tunnel::SaIn,
    wire::{
        checksum::Delta,
        esp,
        ip::protocol,
        ipv4::{self, Ipv4},
        ipv6::Ipv6,
        udp,
    },
};

/// Offset of the text of an ESP packet, by its metadata.
#[inline(always)]
fn text_at(meta: &Meta, in_udp: bool) -> usize {
    usize::from(meta.l4) + esp::HEADER_IV_LEN + if in_udp { udp::HEADER_LEN } else { 0 }
}

/// Bytes of an opened packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lengths {
    /// Of what was decrypted; 0 when there is nothing to count.
    pub text: u16,
    /// Of the inner packet; 0 when it was dropped.
    pub inner: u16,
}

/// Strips the ESP packet off from what nearly all are: an ordinary IPv4 packet behind the padding that aligns, with the
/// outer packet's ECN. `None`, and nothing changed, for any other.
#[inline(always)]
pub(super) fn ordinary(
    umem: &Umem,
    burst: &mut Burst,
    slot: Slot,
    in_udp: bool,
    template: &Meta,
) -> Option<Lengths> {
    let (bytes, meta) = burst.packet_mut(umem, slot);
    let start = text_at(meta, in_udp);
    let end = usize::from(meta.l3 + meta.ip_len) - esp::ICV_LEN;
    let text = bytes.get(start..end)?;
    let trailer = esp::parse_aligning_trailer(text)?;
    let packet = text.get(..trailer.payload_len)?;
    let [_, tos, ..] = packet.first_chunk::<{ ipv4::HEADER_LEN }>()?;
    if (trailer.next_header != protocol::IPV4) | ((tos ^ meta.tos) & 3 != 0) {
        return None;
    }
    let (port, interface, passes) = (meta.port, meta.interface, meta.passes);
    if !parse::ordinary::inner(template, packet, meta) {
        return None;
    }
    (meta.port, meta.interface, meta.passes) = (port, interface, passes);
    let lengths = Lengths { text: text.len() as u16, inner: meta.ip_len };
    burst.frame_mut(slot)?.reframe(start, trailer.payload_len, 0).then_some(lengths)
}

/// Strips the ESP packet off from whatever was in it, and reads its headers; drops what cannot go on.
#[inline(never)]
pub(super) fn any(cx: &Cx<'_>, burst: &mut Burst, slot: Slot, sa: &SaIn, template: &Meta) -> Lengths {
    let mut lengths = Lengths::default();
    if let Err(reason) = inner(cx, burst, slot, sa, template, &mut lengths) {
        failed(cx.counters, burst, slot, sa, reason);
    }
    lengths
}

/// As [`any`], with the reason for which it is to be dropped.
fn inner(
    cx: &Cx<'_>,
    burst: &mut Burst,
    slot: Slot,
    sa: &SaIn,
    template: &Meta,
    lengths: &mut Lengths,
) -> Result<(), DropReason> {
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    let start = text_at(meta, sa.udp);
    let end = usize::from(meta.l3 + meta.ip_len) - esp::ICV_LEN;
    let text = bytes.get(start..end).ok_or(DropReason::EspLength)?;
    let trailer = esp::parse_trailer(text).map_err(|_| DropReason::EspPadding)?;
    let v6 = match trailer.next_header {
        protocol::IPV4 => false,
        protocol::IPV6 => true,
        protocol::NO_NEXT_HEADER => return Err(DropReason::EspDummy),
        _ => return Err(DropReason::EspNextHeader),
    };
    lengths.text = text.len() as u16;
    let (tos, port, interface, passes) = (meta.tos, meta.port, meta.interface, meta.passes);
    let frame = burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?;
    if !frame.reframe(start, trailer.payload_len, 0) {
        return Err(DropReason::EspLength);
    }
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    *meta = Meta { wire_len: meta.wire_len, ..*template };
    parse::ip(bytes, meta)?;
    if meta.is_v6() != v6 {
        return Err(DropReason::EspNextHeader);
    }
    (meta.port, meta.interface, meta.passes) = (port, interface, passes);
    combine_ecn(cx.counters, sa, bytes, meta, tos)?;
    lengths.inner = meta.ip_len;
    Ok(())
}

/// Makes one of the two ECN fields of a packet.
fn combine_ecn(
    counters: &WorkerCounters,
    sa: &SaIn,
    packet: &mut [u8],
    meta: &mut Meta,
    outer_tos: u8,
) -> Result<(), DropReason> {
    if is_alarming(meta.tos & 3, outer_tos & 3) {
        counters.sa(sa.index, SaColumn::EcnAlarms, 1);
    }
    let ecn = ecn(meta.tos & 3, outer_tos & 3).ok_or(DropReason::EcnContradiction)?;
    set_ecn(packet, meta, ecn);
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
