//! Puts fragments to the gateway's own addresses together (RFC 791 3.2, RFC 8200 4.5): an ESP packet must be whole
//! before it can be opened.
//!
//! Of each packet one buffer is held, whatever comes: pieces are copied to their place in it and their own buffers go
//! home at once. So what follows the IP header must fit one buffer behind its headroom: 256 bytes less
//! than the buffer has (`buffer_size` of the configuration). Pieces that overlap are refused with all others of their
//! packet (RFC 5722), for IPv4 as for IPv6.

use arrayvec::ArrayVec;

use super::{
    Cx, Stage,
    icmp_error::{self, Problem},
    next_hop::NO_TUNNEL,
    parse,
};
use crate::{
    packet::{Burst, DropReason, Flags, Frame, FramePool, HEADROOM, Meta, NO_INTERFACE, Slot, Umem},
    stats::WorkerCounters,
    wire::{
        checksum::Sum,
        esp,
        ip::protocol,
        ipv4::{self, Ipv4},
        ipv6::{self, Fragment, FragmentRepr, Ipv6},
    },
};

/// Packets of a worker that wait for fragments. Those of one packet come within a round trip or not at all, so at any
/// rate few packets are unfinished; when there are more, the oldest gives way.
const PACKETS: usize = 64;
/// Pieces of one packet at most. A buffer of 16384 bytes takes 30 pieces of an MTU of 576.
const PIECES: usize = 32;
/// How long a packet waits for its pieces, in ns: the initial timer of RFC 791 3.2.
const TIME_V4: u64 = 15_000_000_000;
/// The same for IPv6 (RFC 8200 4.5).
const TIME_V6: u64 = 60_000_000_000;
/// Longest IPv6 header with the extension headers that come before the fragment header. What is left of the headroom
/// is more than any encapsulation needs.
const LONGEST_HEADER: usize = 128;

/// Puts packets to the gateway itself together.
#[derive(Debug, Default)]
pub struct Reassemble;

/// What the pieces of one packet have in common (RFC 791 3.2, RFC 8200 4.5), and where they came by: pieces that came
/// by different tunnels, or from different sides, are not of one packet (RFC 4301 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    source: u128,
    destination: u128,
    identification: u32,
    gateway: u16,
    tunnel: u16,
    /// IPv4 only: the protocol. IPv6 does not distinguish by it.
    protocol: Option<u8>,
    from_local: bool,
}

/// One piece.
#[derive(Debug, Clone, Copy)]
struct Piece {
    key: Key,
    /// Bytes of the header that the whole packet will have.
    header_len: usize,
    /// Where the byte is that names what follows that header, and what it becomes; IPv6 only.
    named: Option<(usize, u8)>,
    /// Where the piece's bytes begin in the fragment.
    body: usize,
    /// Where they belong in the packet.
    offset: usize,
    more: bool,
}

/// A packet of which pieces have come.
#[derive(Debug)]
struct Unfinished {
    key: Key,
    /// Where it is put together: behind the headroom. Without, it is refused, and what still comes of it is too.
    frame: Option<Frame>,
    /// Why, where it is refused.
    refused: DropReason,
    /// When its first piece came (ns).
    since: u64,
    /// By which interface.
    interface: u16,
    /// Place and length of each piece.
    pieces: ArrayVec<(u16, u16), PIECES>,
    /// Bytes that have come.
    received: usize,
    /// Bytes of the whole, once the last piece has come.
    total: Option<usize>,
    /// The first piece, once it has come.
    head: Option<Head>,
    /// ECN codepoints seen, one bit each.
    ecn: u8,
}

/// What is known of the first piece; its header stands in front of the rest.
#[derive(Debug, Clone, Copy)]
struct Head {
    meta: Meta,
    /// Bytes of the header.
    len: usize,
    /// As of [`Piece`]: where the byte is that named the fragment header.
    named_at: Option<usize>,
}

/// Packets of one worker that wait for fragments.
#[derive(Debug)]
pub struct Reassembly {
    unfinished: Vec<Unfinished>,
    /// Fragments that wait, of all packets.
    waiting: u64,
    /// No packet is to be given up before this (ns).
    due: u64,
}

impl Default for Reassembly {
    fn default() -> Self {
        Self { unfinished: Vec::with_capacity(PACKETS), waiting: 0, due: u64::MAX }
    }
}

impl Reassembly {
    /// Fragments that wait for others.
    #[must_use]
    pub const fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Buffers that are held: one for each packet.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.unfinished.iter().filter(|packet| packet.frame.is_some()).count()
    }

    /// Whether the time of any packet may be over.
    #[inline]
    #[must_use]
    pub const fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    /// Gives up packets whose time is over, until one whose sender is to be told: its first piece as it came, the others
    /// dropped. `None`: there is no more.
    #[cold]
    pub fn expire(
        &mut self,
        now: u64,
        pool: &mut FramePool,
        counters: &WorkerCounters,
    ) -> Option<(Frame, Meta)> {
        let mut at = 0;
        self.due = u64::MAX;
        while let Some(packet) = self.unfinished.get_mut(at) {
            let due = packet.due();
            if due > now {
                self.due = self.due.min(due);
                at += 1;
                continue;
            }
            let first = packet.take_first(pool.umem());
            if first.is_none() {
                self.remove(at, DropReason::FragmentTimeout, pool, counters);
                continue;
            }
            // The first piece is dropped by whoever tells its sender.
            let (held, interface) = (packet.pieces.len() as u64, packet.interface);
            let interface = Some(interface).filter(|i| *i != NO_INTERFACE);
            counters.drops(interface, DropReason::FragmentTimeout, held.saturating_sub(1));
            self.waiting -= held;
            self.unfinished.swap_remove(at);
            // The rest has not been looked at.
            self.due = now;
            return first;
        }
        None
    }

    /// Gives up all packets: the gateway ends.
    pub fn clear(&mut self, pool: &mut FramePool, counters: &WorkerCounters) {
        while !self.unfinished.is_empty() {
            self.remove(0, DropReason::Shutdown, pool, counters);
        }
    }

    /// Forgets a packet. Those of its pieces that wait are dropped for `reason`.
    fn remove(&mut self, at: usize, reason: DropReason, pool: &mut FramePool, counters: &WorkerCounters) {
        self.refuse(at, reason, pool, counters);
        if at < self.unfinished.len() {
            self.unfinished.swap_remove(at);
        }
    }

    /// Drops the pieces of a packet that wait. What still comes of it is dropped for the same reason.
    fn refuse(&mut self, at: usize, reason: DropReason, pool: &mut FramePool, counters: &WorkerCounters) {
        let Some(packet) = self.unfinished.get_mut(at) else { return };
        if let Some(frame) = packet.frame.take() {
            pool.free(frame);
            let held = packet.pieces.len() as u64;
            counters.drops(Some(packet.interface).filter(|i| *i != NO_INTERFACE), reason, held);
            self.waiting -= held;
            packet.refused = reason;
        }
    }

    /// The place of the packet that the piece is of; a new one when it is the first.
    fn place(
        &mut self,
        piece: &Piece,
        meta: &Meta,
        now: u64,
        pool: &mut FramePool,
        counters: &WorkerCounters,
    ) -> Result<usize, DropReason> {
        if let Some(at) = self.unfinished.iter().position(|packet| packet.key == piece.key) {
            return Ok(at);
        }
        if self.unfinished.len() >= PACKETS {
            let ages = self.unfinished.iter().enumerate().map(|(at, packet)| (packet.since, at));
            if let Some((_, oldest)) = ages.min() {
                self.remove(oldest, DropReason::FragmentTableFull, pool, counters);
            }
        }
        let frame = pool.alloc().ok_or(DropReason::NoBuffer)?;
        let packet = Unfinished {
            key: piece.key,
            frame: Some(frame),
            refused: DropReason::FragmentTimeout,
            since: now,
            interface: meta.interface,
            pieces: ArrayVec::new(),
            received: 0,
            total: None,
            head: None,
            ecn: 0,
        };
        self.due = self.due.min(packet.due());
        self.unfinished.push(packet);
        Ok(self.unfinished.len() - 1)
    }
}

impl Unfinished {
    const fn due(&self) -> u64 {
        let time = if self.key.protocol.is_some() { TIME_V4 } else { TIME_V6 };
        self.since.saturating_add(time)
    }

    /// Puts a piece in its place. Whether the packet is whole now; an error concerns the whole packet, `None` the
    /// piece alone: it came before.
    fn add(
        &mut self,
        umem: &Umem,
        piece: &Piece,
        fragment: &[u8],
        meta: &Meta,
    ) -> Result<Option<bool>, DropReason> {
        let body = fragment.get(piece.body..).unwrap_or(&[]);
        let end = piece.offset + body.len();
        let Some(frame) = &mut self.frame else { return Err(self.refused) };
        if end > umem.chunk_size() - HEADROOM {
            return Err(DropReason::FragmentTooLarge);
        }
        // The whole of the buffer behind the headroom.
        umem.reset(frame, HEADROOM);
        let _ = umem.grow_back(frame, umem.chunk_size() - HEADROOM);
        let target = umem.bytes_mut(frame).get_mut(piece.offset..end).ok_or(DropReason::FragmentTooLarge)?;
        let this = (piece.offset as u16, body.len() as u16);
        if self.pieces.contains(&this) && target == body && (piece.more || self.total == Some(end)) {
            return Ok(None);
        }
        let overlaps = |&(at, len): &(u16, u16)| {
            usize::from(at) < end && piece.offset < usize::from(at) + usize::from(len)
        };
        let contradicts = match self.total {
            Some(total) => end > total || !piece.more,
            None => !piece.more && self.pieces.iter().any(|(at, len)| usize::from(at + len) > end),
        };
        if self.pieces.iter().any(overlaps) || contradicts {
            return Err(DropReason::FragmentOverlap);
        }
        self.pieces.try_push(this).map_err(|_| DropReason::FragmentMalformed)?;
        target.copy_from_slice(body);
        self.received += body.len();
        self.ecn |= 1 << (meta.tos & 3);
        if !piece.more {
            self.total = Some(end);
        }
        if piece.offset == 0 {
            let header = fragment.get(..piece.header_len).ok_or(DropReason::FragmentMalformed)?;
            if !frame.grow_front(header.len()) {
                return Err(DropReason::FragmentMalformed);
            }
            let front = umem.bytes_mut(frame).get_mut(..header.len());
            front.unwrap_or(&mut []).copy_from_slice(header);
            if let Some((at, next)) = piece.named
                && let Some(place) = umem.bytes_mut(frame).get_mut(at)
            {
                *place = next;
            }
            let named_at = piece.named.map(|(at, _)| at);
            self.head = Some(Head { meta: *meta, len: header.len(), named_at });
        }
        Ok(Some(self.total == Some(self.received)))
    }

    /// The first piece alone, as it came.
    fn take_first(&mut self, umem: &Umem) -> Option<(Frame, Meta)> {
        let Head { meta, len: header_len, named_at } = self.head?;
        let (_, body) = *self.pieces.iter().find(|(at, _)| *at == 0)?;
        let mut frame = self.frame.take()?;
        umem.reset(&mut frame, HEADROOM);
        let _ = umem.grow_back(&mut frame, body.into()) && frame.grow_front(header_len);
        if let Some(at) = named_at {
            // The header goes to the front to make room for the fragment header behind it.
            let _ = frame.grow_front(ipv6::FRAGMENT_LEN);
            let bytes = umem.bytes_mut(&mut frame);
            let (start, end) = (ipv6::FRAGMENT_LEN, ipv6::FRAGMENT_LEN + header_len);
            if end <= bytes.len() {
                bytes.copy_within(start..end, 0);
            }
            let named = bytes.get_mut(at).map(|byte| std::mem::replace(byte, protocol::FRAGMENT));
            let header = bytes.get_mut(header_len..).and_then(|rest| rest.first_chunk_mut());
            if let (Some(next_header), Some(header)) = (named, header) {
                let identification = self.key.identification;
                FragmentRepr { next_header, offset: 0, more_fragments: true, identification }.emit(header);
            }
        }
        let ip_len = frame.len() as u16;
        Some((frame, Meta { l3: 0, ip_len, ..meta }))
    }

    /// The whole packet, header and all.
    fn finish(&mut self, umem: &Umem) -> Option<(Frame, Meta)> {
        let (mut frame, Head { meta: head, len: header_len, .. }, total) =
            (self.frame.take()?, self.head?, self.total?);
        umem.reset(&mut frame, HEADROOM);
        let _ = umem.grow_back(&mut frame, total) && frame.grow_front(header_len);
        let ecn = merged_ecn(self.ecn, head.tos & 3);
        let bytes = umem.bytes_mut(&mut frame);
        let len = bytes.len();
        if head.is_v6() {
            let mut header = Ipv6::at_mut(bytes, 0)?;
            header.set_payload_len((len - ipv6::HEADER_LEN) as u16);
            header.set_traffic_class(head.tos & !3 | ecn);
        } else {
            let mut header = Ipv4::at_mut(bytes, 0)?;
            header.set_total_len(len as u16);
            header.set_flags_offset(0);
            header.set_traffic_class(head.tos & !3 | ecn);
            header.set_checksum(0);
            let checksum = Sum::of(bytes.get(..header_len)?).checksum();
            Ipv4::at_mut(bytes, 0)?.set_checksum(checksum);
        }
        let kept = Flags::FROM_LOCAL
            | Flags::FROM_TUNNEL
            | Flags::LINK_MULTICAST
            | Flags::ADMITTED
            | Flags::TTL_DONE;
        Some((frame, Meta { l3: 0, flags: head.flags & kept, ..head }))
    }
}

/// ECN of the whole: congestion that any piece met is what the packet met (RFC 3168 5.3).
const fn merged_ecn(seen: u8, first: u8) -> u8 {
    const CE: u8 = 3;
    if seen & 1 << CE != 0 { CE } else { first }
}

/// Tells the senders of packets that did not become whole in time (RFC 792, RFC 8200 4.5), and drops what is there of
/// each: its first piece.
pub fn too_late(cx: &mut Cx<'_>, burst: &mut Burst) {
    for slot in burst.live() {
        icmp_error::drop_with_error(cx, burst, slot, DropReason::FragmentTimeout, Problem::ReassemblyTime);
    }
}

impl Stage for Reassemble {
    const NAME: &'static str = "reassemble";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.fragments, burst) {
            if is_for_host(cx, burst, slot) {
                cx.lanes.local.insert(slot);
                continue;
            }
            match add(cx, burst, slot) {
                Ok(true) => {
                    let meta = burst.meta(slot);
                    let lane = if is_esp(meta) { &mut cx.lanes.esp } else { &mut cx.lanes.local };
                    lane.insert(slot);
                }
                Ok(false) => {}
                Err(reason) => burst.drop(slot, reason),
            }
        }
    }
}

/// Whether a packet to the gateway itself is, or may be, ESP: also in UDP (RFC 3948).
#[inline]
#[must_use]
pub const fn is_esp(meta: &Meta) -> bool {
    let in_udp = meta.proto == protocol::UDP && meta.dport == esp::UDP_PORT;
    meta.proto == protocol::ESP || in_udp && meta.flags.has(Flags::HAS_PORTS)
}

/// Whether the host behind the address puts the packet together itself, of any size. ESP is never the host's, and a
/// later fragment does not say whether its UDP is.
fn is_for_host(cx: &Cx<'_>, burst: &Burst, slot: Slot) -> bool {
    let meta = burst.meta(slot);
    if matches!(meta.proto, protocol::ESP | protocol::UDP) {
        return false;
    }
    let Some(gateway) = cx.tables.gateway(meta.gateway) else { return false };
    let interface = if meta.is_v6() {
        let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(meta.l3));
        header.and_then(|header| gateway.own.v6(header.destination().to_bits()))
    } else {
        gateway.own.v4(meta.dst)
    };
    interface.and_then(|number| cx.tables.interface(number)).is_some_and(|interface| interface.host.is_some())
}

/// Takes a fragment up. Whether the packet is whole now: then it stands in place of the fragment.
fn add(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) -> Result<bool, DropReason> {
    let meta = *burst.meta(slot);
    let start = usize::from(meta.l3);
    let fragment = burst.bytes(cx.umem, slot).get(start..start + usize::from(meta.ip_len));
    let fragment = fragment.ok_or(DropReason::FragmentMalformed)?;
    let piece = read(fragment, &meta).ok_or(DropReason::FragmentMalformed)?;
    let len = fragment.len().saturating_sub(piece.body);
    // Only the last may end off a multiple of eight (RFC 8200 4.5), and none is empty.
    if len == 0 || piece.more && len % 8 != 0 {
        return Err(DropReason::FragmentMalformed);
    }
    let waiting = &mut cx.out.reassembly;
    let at = waiting.place(&piece, &meta, cx.now, cx.pool, cx.counters)?;
    let packet = waiting.unfinished.get_mut(at).ok_or(DropReason::NoBuffer)?;
    let whole = match packet.add(cx.umem, &piece, fragment, &meta) {
        Ok(Some(whole)) => whole,
        Ok(None) => return Err(DropReason::FragmentOverlap),
        Err(reason) => {
            waiting.refuse(at, reason, cx.pool, cx.counters);
            return Err(reason);
        }
    };
    if !whole {
        waiting.waiting += 1;
        if let Some(frame) = burst.take(slot) {
            cx.pool.free(frame);
        }
        return Ok(false);
    }
    let mut packet = waiting.unfinished.swap_remove(at);
    // Its last piece is in the burst, and becomes the whole.
    let others = packet.pieces.len() as u64 - 1;
    waiting.waiting -= others;
    let interface = Some(packet.interface).filter(|i| *i != NO_INTERFACE);
    cx.counters.drops(interface, DropReason::FragmentReassembled, others);
    // Congestion met where the sender cannot be told of it (RFC 3168 5.3).
    let contradiction = packet.ecn & 0b1001 == 0b1001;
    let Some((whole, fresh)) = packet.finish(cx.umem) else { return Err(DropReason::FragmentMalformed) };
    let place = burst.frame_mut(slot).ok_or(DropReason::NoBuffer)?;
    cx.pool.free(std::mem::replace(place, whole));
    let (bytes, meta) = burst.packet_mut(cx.umem, slot);
    *meta = fresh;
    parse::ip(bytes, meta)?;
    // A fragment within a fragment is nobody's packet.
    if meta.flags.has(Flags::FRAGMENT) {
        return Err(DropReason::FragmentMalformed);
    }
    if contradiction {
        return Err(DropReason::EcnContradiction);
    }
    Ok(true)
}

/// Reads what a fragment says of itself.
fn read(fragment: &[u8], meta: &Meta) -> Option<Piece> {
    let from_tunnel = meta.flags.has(Flags::FROM_TUNNEL);
    let key = Key {
        source: 0,
        destination: 0,
        identification: 0,
        gateway: meta.gateway,
        tunnel: if from_tunnel { meta.ingress_tunnel } else { NO_TUNNEL },
        protocol: None,
        from_local: meta.flags.has(Flags::FROM_LOCAL),
    };
    if meta.is_v6() {
        let header = Ipv6::at(fragment, 0)?;
        let (at, named_at, repr) = fragment_header(header.next_header(), fragment)?;
        return (at <= LONGEST_HEADER).then_some(Piece {
            key: Key {
                source: header.source().to_bits(),
                destination: header.destination().to_bits(),
                identification: repr.identification,
                ..key
            },
            header_len: at,
            named: Some((named_at, repr.next_header)),
            body: at + ipv6::FRAGMENT_LEN,
            offset: repr.offset.into(),
            more: repr.more_fragments,
        });
    }
    let packet = ipv4::parse_lengths(fragment).ok()?;
    let header_len = packet.header.header_len();
    Some(Piece {
        key: Key {
            source: meta.src.into(),
            destination: meta.dst.into(),
            identification: packet.header.identification().into(),
            protocol: Some(packet.header.protocol()),
            ..key
        },
        header_len,
        named: None,
        body: header_len,
        offset: packet.header.fragment_offset().into(),
        more: packet.header.more_fragments(),
    })
}

/// Where the fragment header is, where the byte is that names it, and what it says (RFC 8200 4.5).
fn fragment_header(first: u8, packet: &[u8]) -> Option<(usize, usize, FragmentRepr)> {
    let (mut next, mut at, mut named_at) = (first, ipv6::HEADER_LEN, 6);
    for _ in 0..ipv6::MAX_EXTENSIONS {
        let rest = packet.get(at..)?;
        match next {
            protocol::FRAGMENT => {
                let (header, _) = Fragment::split(rest)?;
                return Some((at, named_at, FragmentRepr::parse(&header)));
            }
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let &[following, words] = rest.first_chunk()?;
                named_at = at;
                next = following;
                at += usize::from(words) * 8 + 8;
            }
            _ => return None,
        }
    }
    None
}
