//! Divides packets: IPv4 (RFC 791 3.2), and of IPv6 what the gateway itself sends (RFC 8200 4.5).

use arrayvec::ArrayVec;

use super::{Cx, Entry, Resumed};
use crate::{
    packet::{Burst, Flags, Frame, Meta, Slot},
    stats::WorkerColumn,
    wire::{
        ip::protocol,
        ipv4::{self, Ipv4, Options, option},
        ipv6::{self, FragmentRepr, Ipv6},
    },
};

/// Fragments of one packet beyond the first, at most: a buffer holds 16 KiB, an MTU is at least 576, and options take 40
/// bytes of each fragment.
const MAX_FRAGMENTS: usize = 32;

/// The options that later fragments carry too (the "copied" bit), padded to whole words.
fn copied_options(options: &[u8]) -> ArrayVec<u8, 40> {
    let mut copied = ArrayVec::new();
    for (kind, data) in Options::new(options).flatten() {
        if kind & 0x80 != 0 {
            // What was in 40 bytes fits 40 bytes.
            let _ = copied.try_push(kind).and_then(|()| copied.try_push(data.len() as u8 + 2));
            let _ = copied.try_extend_from_slice(data);
        }
    }
    while copied.len() % 4 != 0 {
        let _ = copied.try_push(option::END);
    }
    copied
}

/// Shortens the packet in `slot` to its first fragment of at most `mtu` bytes, and puts the others in line, to go on
/// at `entry`.
///
/// `None`, and nothing changed, when there are not enough frames or places, or the MTU is too small.
pub fn split(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, mtu: u16, entry: Entry) -> Option<()> {
    let meta = *burst.meta(slot);
    let start = usize::from(meta.l3);
    let bytes = burst.bytes(cx.umem, slot).get(start..start + usize::from(meta.ip_len))?;
    let packet = ipv4::parse_lengths(bytes).ok()?;
    let options = copied_options(packet.options);
    let header_len = packet.header.header_len();
    let room = |header: usize| usize::from(mtu).saturating_sub(header) & !7;
    let first_len = room(header_len);
    let later_header = ipv4::HEADER_LEN + options.len();
    let later_len = room(later_header);
    let rest = packet.payload.get(first_len..)?;
    if first_len == 0 || later_len == 0 {
        return None;
    }
    let count = rest.len().div_ceil(later_len);
    let places = cx.out.resumed.remaining_capacity();
    if count > MAX_FRAGMENTS || count > places || count > cx.pool.available() {
        return None;
    }
    let whole = packet.header;
    let (offset, last_more) = (whole.fragment_offset(), whole.more_fragments());
    let identification =
        if whole.identification() == 0 { cx.out.next_identification() } else { whole.identification() };
    let mut made: ArrayVec<(Frame, Meta), MAX_FRAGMENTS> = ArrayVec::new();
    for (i, part) in rest.chunks(later_len).enumerate() {
        let mut frame = cx.pool.alloc()?;
        let total = later_header + part.len();
        // A chunk holds every packet that came in one, so also a part of it.
        let _ = cx.umem.grow_back(&mut frame, total);
        let at = offset + (first_len + i * later_len) as u16;
        let more = last_more || i + 1 < count;
        write(
            cx.umem.bytes_mut(&mut frame),
            whole.bytes(),
            &options,
            part,
            Place { identification, at, more },
        );
        let flags = meta.flags | Flags::FRAGMENT | Flags::LATER_FRAGMENT;
        let fresh = Meta {
            l3: 0,
            l4: later_header as u16,
            ip_len: total as u16,
            wire_len: 0,
            flags: flags.without(Flags::HAS_PORTS),
            ..meta
        };
        let _ = made.try_push((frame, fresh));
    }
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    if let Some(mut header) = Ipv4::at_mut(bytes, start) {
        header.set_total_len((header_len + first_len) as u16);
        header.set_identification(identification);
        header.set_flags_offset(header.flags_offset() | 0x2000);
        // The checksum covers the options too.
        header.set_checksum(0);
    }
    if let Some(header) = bytes.get_mut(start..start + header_len) {
        let checksum = crate::wire::checksum::Sum::of(header).checksum();
        if let Some((mut header, _)) = Ipv4::split_mut(header) {
            header.set_checksum(checksum);
        }
    }
    meta.ip_len = (header_len + first_len) as u16;
    meta.flags |= Flags::FRAGMENT;
    cx.counters.worker(WorkerColumn::Originated, made.len() as u64);
    for (frame, meta) in made {
        let _ = cx.out.resumed.try_push(Resumed { frame, meta, entry });
    }
    Some(())
}

/// The same for an IPv6 packet that the gateway itself has made, with this identification: the first fragment gets a
/// fragment header, for which there must be headroom.
pub fn split_v6(
    cx: &mut Cx<'_>,
    burst: &mut Burst,
    slot: Slot,
    mtu: u16,
    entry: Entry,
    identification: u32,
) -> Option<()> {
    const HEADERS: usize = ipv6::HEADER_LEN + ipv6::FRAGMENT_LEN;
    let meta = *burst.meta(slot);
    let start = usize::from(meta.l3);
    let packet = burst.bytes(cx.umem, slot).get(start..start + usize::from(meta.ip_len))?;
    let (header, body) = packet.split_first_chunk::<{ ipv6::HEADER_LEN }>()?;
    let header = *header;
    let next_header = Ipv6::new(&header).next_header();
    // What routers look at goes with every fragment; the gateway's own packets have none of it.
    if matches!(next_header, protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT) {
        return None;
    }
    let each = usize::from(mtu).checked_sub(HEADERS)? & !7;
    let rest = body.get(each..).filter(|_| each > 0)?;
    let count = rest.len().div_ceil(each);
    let places = cx.out.resumed.remaining_capacity();
    // The link-layer header in front of it goes; the frame begins with the packet.
    let has_room = burst.frame(slot)?.headroom() + start >= ipv6::FRAGMENT_LEN;
    if count > MAX_FRAGMENTS || count > places || count > cx.pool.available() || !has_room {
        return None;
    }
    let extension = |at: usize, more: bool| {
        let mut bytes = [0; ipv6::FRAGMENT_LEN];
        let offset = at as u16;
        FragmentRepr { next_header, offset, more_fragments: more, identification }.emit(&mut bytes);
        bytes
    };
    let fixed = |len: usize| {
        let mut bytes = header;
        let mut view = Ipv6::new(&mut bytes);
        view.set_next_header(protocol::FRAGMENT);
        view.set_payload_len((ipv6::FRAGMENT_LEN + len) as u16);
        bytes
    };
    let mut made: ArrayVec<(Frame, Meta), MAX_FRAGMENTS> = ArrayVec::new();
    for (i, part) in rest.chunks(each).enumerate() {
        let mut frame = cx.pool.alloc()?;
        // A chunk holds every packet that came in one, so also a part of it.
        let _ = cx.umem.grow_back(&mut frame, HEADERS + part.len());
        let bytes = cx.umem.bytes_mut(&mut frame).iter_mut();
        let parts = [&fixed(part.len())[..], &extension(each + i * each, i + 1 < count), part];
        bytes.zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        let flags = meta.flags | Flags::FRAGMENT | Flags::LATER_FRAGMENT;
        let fresh = Meta {
            l3: 0,
            l4: HEADERS as u16,
            ip_len: (HEADERS + part.len()) as u16,
            wire_len: 0,
            flags: flags.without(Flags::HAS_PORTS),
            ..meta
        };
        let _ = made.try_push((frame, fresh));
    }
    let frame = burst.frame_mut(slot)?;
    frame.trim_front(start);
    frame.truncate(ipv6::HEADER_LEN + each);
    let _ = frame.grow_front(ipv6::FRAGMENT_LEN);
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    let parts = [&fixed(each)[..], &extension(0, true)];
    bytes.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
    (meta.l3, meta.l4) = (0, HEADERS as u16);
    meta.ip_len = (HEADERS + each) as u16;
    meta.flags |= Flags::FRAGMENT;
    cx.counters.worker(WorkerColumn::Originated, made.len() as u64);
    for (frame, meta) in made {
        let _ = cx.out.resumed.try_push(Resumed { frame, meta, entry });
    }
    Some(())
}

/// Where a fragment stands in its packet.
struct Place {
    identification: u16,
    /// Bytes before it.
    at: u16,
    more: bool,
}

fn write(bytes: &mut [u8], header: &[u8; 20], options: &[u8], part: &[u8], place: Place) {
    let header_len = ipv4::HEADER_LEN + options.len();
    let total = bytes.len();
    let Some((head, body)) = bytes.split_at_mut_checked(header_len) else { return };
    body.copy_from_slice(part);
    let Some((fixed, rest)) = head.split_first_chunk_mut() else { return };
    *fixed = *header;
    rest.copy_from_slice(options);
    let mut view = Ipv4::new(fixed);
    view.set_version_ihl(0x40 | (header_len / 4) as u8);
    view.set_total_len(total as u16);
    view.set_identification(place.identification);
    let more = if place.more { 0x2000 } else { 0 };
    view.set_flags_offset((place.at / 8) | more);
    view.set_checksum(0);
    let checksum = crate::wire::checksum::Sum::of(head).checksum();
    if let Some((mut view, _)) = Ipv4::split_mut(head) {
        view.set_checksum(checksum);
    }
}
