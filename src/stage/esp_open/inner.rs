//! What was in an opened ESP packet: an IP packet behind padding, which takes over the outer one's ECN (RFC 6040).

use super::failed;
use crate::{
    packet::{Burst, DropReason, Flags, Meta, Slot, Umem},
    stage::{
        Cx,
        parse::{self, ordinary::HEAD},
    },
    stats::{SaColumn, WorkerCounters},
    table::tunnel::SaIn,
    wire::{
        checksum::Delta,
        esp,
        ip::protocol,
        ipv4::{self, Ipv4},
        ipv6::Ipv6,
    },
};

/// What was decrypted, of bytes that end with the ICV.
#[inline(always)]
fn text(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.len().checked_sub(esp::ICV_LEN)?)
}

/// What is known of a packet out of a tunnel before its own headers are read: how it came, from the outer packet's.
#[inline(always)]
fn template(sa: &SaIn, outer: &Meta) -> Meta {
    Meta {
        gateway: sa.gateway,
        ingress_tunnel: sa.tunnel,
        flags: Flags::FROM_TUNNEL,
        l4: ipv4::HEADER_LEN as u16,
        port: outer.port,
        interface: outer.interface,
        passes: outer.passes,
        wire_len: outer.wire_len,
        ..Meta::EMPTY
    }
}

/// Bytes of an opened packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lengths {
    /// Of what was decrypted; 0 when there is nothing to count.
    pub text: u16,
    /// Of the inner packet; 0 when it was dropped.
    pub inner: u16,
}

/// Strips the rest of the ESP packet off from what nearly all are: an ordinary IPv4 packet behind the padding that aligns,
/// with the outer packet's ECN. The result is also its destination; `None`, and nothing changed, for any other.
#[inline(always)]
pub(super) fn ordinary(umem: &Umem, burst: &mut Burst, slot: Slot, sa: &SaIn) -> Option<(Lengths, u32)> {
    let (bytes, meta) = burst.packet_mut(umem, slot);
    let text = text(bytes)?;
    let trailer = esp::parse_aligning_trailer(text)?;
    let head = text.first_chunk::<HEAD>()?;
    let [_, tos, ..] = head;
    if (trailer.next_header != protocol::IPV4) | ((tos ^ meta.tos) & 3 != 0) {
        return None;
    }
    // Where the padding begins within the head, the packet's own length says that it is not ordinary.
    let head = parse::ordinary::Head::read(0, head, trailer.payload_len)?;
    *meta = template(sa, meta);
    head.put(meta);
    let lengths = Lengths { text: text.len() as u16, inner: meta.ip_len };
    let destination = meta.dst;
    burst.frame_mut(slot)?.truncate(trailer.payload_len);
    Some((lengths, destination))
}

/// Strips the ESP packet off from whatever was in it, and reads its headers; drops what cannot go on.
#[inline(never)]
pub(super) fn any(cx: &Cx<'_>, burst: &mut Burst, slot: Slot, sa: &SaIn) -> Lengths {
    let mut lengths = Lengths::default();
    if let Err(reason) = inner(cx, burst, slot, sa, &mut lengths) {
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
    lengths: &mut Lengths,
) -> Result<(), DropReason> {
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    let text = text(bytes).ok_or(DropReason::EspLength)?;
    let trailer = esp::parse_trailer(text).map_err(|_| DropReason::EspPadding)?;
    let v6 = match trailer.next_header {
        protocol::IPV4 => false,
        protocol::IPV6 => true,
        protocol::NO_NEXT_HEADER => return Err(DropReason::EspDummy),
        _ => return Err(DropReason::EspNextHeader),
    };
    lengths.text = text.len() as u16;
    let tos = meta.tos;
    burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?.truncate(trailer.payload_len);
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    *meta = template(sa, meta);
    parse::ip(bytes, meta)?;
    if meta.is_v6() != v6 {
        return Err(DropReason::EspNextHeader);
    }
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
