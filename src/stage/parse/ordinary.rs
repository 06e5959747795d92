//! A short cut for what nearly all packets are: untagged or with one 802.1Q tag, to our station, IPv4 without options,
//! no fragment, TCP, UDP or ESP.
//!
//! The IP header and the ports are read as three words, and what a router checks is asked of several fields at once: in
//! minimum-size frames at line rate, parsing is the largest part of forwarding.

use crate::{
    packet::{Burst, Flags, Meta, Slots},
    stage::{
        Cx,
        vlan_demux::{FRONT, Way},
    },
    wire::{checksum::Sum, ip::protocol, ipv4, tcp, udp},
};

/// Bytes from the IP header on that are read: it, and the ports.
pub const HEAD: usize = 24;

/// The packets of a burst that one way was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    /// Those whose metadata is filled in.
    pub ordinary: Slots,
    /// Those that came the same way and have to be looked at closer.
    pub others: Slots,
}

impl Taken {
    /// Whether the way was of none.
    pub const fn is_empty(self) -> bool {
        self.ordinary.is_empty() && self.others.is_empty()
    }
}

/// Takes up the packets from the first of `slots` on that came this way, and puts each that is ordinary in its lane.
#[inline(never)]
pub(super) fn take(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, way: &Way<'_>) -> Taken {
    let mut others = Slots::NONE;
    let mut near = Slots::NONE;
    let (mut left, mut bytes_in) = (slots, 0);
    while let Some(slot) = left.first() {
        burst.prefetch_after(cx.umem, slot);
        let (bytes, meta) = burst.packet_mut(cx.umem, slot);
        let Some(front) = bytes.first_chunk().filter(|front| way.is_of(meta.port, front)) else { break };
        left.remove_first();
        if !read(way, front, bytes.len(), meta) {
            others.insert(slot);
            continue;
        }
        bytes_in += bytes.len() as u64;
        near.insert_if(slot, way.gateway.own.may_have_v4(meta.dst));
    }
    // Only what is for the gateway itself needs to be looked at by the local stage: mostly for the same of its addresses.
    let (mut own, mut esp, mut last) = (Slots::NONE, Slots::NONE, None);
    for slot in near {
        let meta = burst.meta(slot);
        if last == Some(meta.dst) || way.gateway.own.v4(meta.dst).is_some() {
            last = Some(meta.dst);
            own.insert(slot);
            esp.insert_if(slot, meta.proto == protocol::ESP);
        }
    }
    let ordinary = slots - left - others;
    cx.lanes.ip |= own - esp;
    cx.lanes.esp |= esp;
    cx.lanes.forward |= ordinary - own;
    if !ordinary.is_empty() {
        cx.counters.interface_in(way.template.interface, ordinary.len() as u64, bytes_in);
    }
    Taken { ordinary, others }
}

/// What there is to know of a protocol whose packets are ordinary.
#[derive(Clone, Copy)]
struct Ordinary {
    /// Least bytes of an IP packet; for any other protocol, more than a packet has.
    least: u16,
    /// [`Flags::HAS_PORTS`], or nothing.
    flags: Flags,
    /// The bits of the ports: all, or none.
    ports: u32,
}

#[expect(clippy::indexing_slicing, reason = "checked when compiled")]
static PROTOCOLS: [Ordinary; 256] = {
    let mut all = [Ordinary { least: u16::MAX, flags: Flags::NONE, ports: 0 }; 256];
    let udp = Ordinary {
        least: (ipv4::HEADER_LEN + udp::HEADER_LEN) as u16,
        flags: Flags::HAS_PORTS,
        ports: u32::MAX,
    };
    all[protocol::UDP as usize] = udp;
    all[protocol::TCP as usize] = Ordinary { least: (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16, ..udp };
    all[protocol::ESP as usize] = Ordinary { least: HEAD as u16, flags: Flags::NONE, ports: 0 };
    all
};

/// Whether addresses that begin with this byte are none of an ordinary host: "this network", loopback, or 224.0.0.0
/// and above.
#[expect(clippy::indexing_slicing, reason = "checked when compiled")]
static SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut first = 0;
    while first < 256 {
        special[first] = first == 0 || first == 127 || first >= 224;
        first += 1;
    }
    special
};

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "a byte is a place in an array of 256")]
fn of_byte<T: Copy>(table: &[T; 256], byte: u64) -> T {
    table[usize::from(byte as u8)]
}

/// Fills in the metadata of an ordinary packet that came this way in a frame of `len` bytes. `false`, with the metadata as
/// it was, for any other.
#[inline(always)]
pub(super) fn read(way: &Way<'_>, front: &[u8; FRONT], len: usize, meta: &mut Meta) -> bool {
    let l3 = usize::from(way.template.l3);
    let Some(head) = front.get(l3..).and_then(|packet| packet.first_chunk()) else { return false };
    let Some(head) = Head::read(way.differs_in_station(front), head, len - l3) else { return false };
    *meta = way.template;
    meta.wire_len = len as u16;
    head.put(meta);
    true
}

/// What the first bytes of an ordinary packet say.
#[derive(Clone, Copy)]
pub struct Head {
    /// Version to fragment offset; TTL to source; destination and ports. The first byte is the lowest.
    words: (u64, u64, u64),
    ip_len: u16,
    kind: Ordinary,
}

impl Head {
    /// Reads an ordinary packet of at most `len` bytes. `None` for any other, and when `differs` is something else than zero.
    #[inline(always)]
    #[must_use]
    pub fn read(differs: u64, head: &[u8; HEAD], len: usize) -> Option<Self> {
        let word =
            |at: usize| head.split_at(at).1.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (a, b, c) = (word(0), word(8), word(16));
        let kind = of_byte(&PROTOCOLS, b >> 8);
        let ip_len = ((a >> 16) as u16).swap_bytes();
        // Version 4 with 20 bytes of header; no fragment. DF and the reserved bit may be anything (RFC 791, RFC 3514).
        let shape = a & 0xff3f_0000_0000_00ff ^ 0x45;
        if shape | differs != 0
            || ip_len < kind.least
            || usize::from(ip_len) > len
            || of_byte(&SPECIAL, b >> 32) | of_byte(&SPECIAL, c)
            || !Sum::proves_words(a, b, c as u32)
        {
            return None;
        }
        Some(Self { words: (a, b, c), ip_len, kind })
    }

    /// Notes it in the metadata, where what does not follow from it is noted already.
    #[inline(always)]
    pub fn put(self, meta: &mut Meta) {
        let (a, b, c) = self.words;
        // Fields that lie side by side are taken from one word, so that they are written by one store.
        let addresses = (b >> 32 | c << 32).swap_bytes().rotate_left(32);
        (meta.src, meta.dst) = (addresses as u32, (addresses >> 32) as u32);
        let ports = ((c >> 32) as u32).swap_bytes().rotate_left(16) & self.kind.ports;
        (meta.sport, meta.dport) = (ports as u16, (ports >> 16) as u16);
        meta.ip_len = self.ip_len;
        meta.flags = (meta.flags | self.kind.flags).with(Flags::DONT_FRAGMENT, a >> 54 & 1 == 1);
        (meta.ttl, meta.proto) = (b as u8, (b >> 8) as u8);
        meta.tos = (a >> 8) as u8;
    }
}
