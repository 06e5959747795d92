//! A short cut for what nearly all packets are: untagged or with one 802.1Q tag, to our station, IPv4 without options,
//! no fragment, TCP, UDP or ESP.
//!
//! The IP header and the ports are read as three words, and what a router checks is asked of several fields at once: in
//! minimum-size frames at line rate, parsing is the largest part of forwarding.

use crate::{
    packet::{Burst, Flags, Meta, Slots},
    stage::{
        Cx,
        vlan_demux::{SINGLE_TAGGED, Way},
    },
    wire::{checksum::Sum, ip::protocol, ipv4, tcp, udp},
};

/// Bytes from the IP header on that are read: it, and the ports.
const HEAD: usize = 24;

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
    let mut taken = Taken::default();
    // Only what is for the gateway itself needs to be looked at by the local stage.
    let (mut own, mut esp) = (Slots::NONE, Slots::NONE);
    let mut bytes_in = 0;
    for slot in slots {
        let (bytes, meta) = burst.packet_mut(cx.umem, slot);
        let Some(front) = bytes.first_chunk().filter(|front| way.is_of(meta.port, front)) else { break };
        if !read(way, front, bytes, meta) {
            taken.others.insert(slot);
            continue;
        }
        taken.ordinary.insert(slot);
        bytes_in += bytes.len() as u64;
        if way.gateway.own.v4(meta.dst).is_some() {
            let lane = if meta.proto == protocol::ESP { &mut esp } else { &mut own };
            lane.insert(slot);
        }
    }
    cx.lanes.ip |= own;
    cx.lanes.esp |= esp;
    cx.lanes.forward |= taken.ordinary - own - esp;
    if !taken.ordinary.is_empty() {
        cx.counters.interface_in(way.template.interface, taken.ordinary.len() as u64, bytes_in);
    }
    taken
}

/// Least bytes of an IP packet of a protocol that is ordinary; for any other, more than a packet has.
#[expect(clippy::indexing_slicing, reason = "checked when compiled")]
static LEAST: [u16; 256] = {
    let mut least = [u16::MAX; 256];
    least[protocol::TCP as usize] = (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16;
    least[protocol::UDP as usize] = (ipv4::HEADER_LEN + udp::HEADER_LEN) as u16;
    least[protocol::ESP as usize] = HEAD as u16;
    least
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

/// Fills in the metadata of an ordinary packet that came this way. `false`, with the metadata as it was, for any other.
#[inline(always)]
pub(super) fn read(way: &Way<'_>, front: &[u8; SINGLE_TAGGED], bytes: &[u8], meta: &mut Meta) -> bool {
    let Some(packet) = bytes.get(usize::from(way.template.l3)..) else { return false };
    fill(&way.template, way.differs_in_station(front), packet, bytes.len() as u16, meta)
}

/// Fills in the metadata of an ordinary packet that came out of a tunnel; `template` is what it begins with. `false`, with
/// the metadata as it was, for any other.
#[inline(always)]
pub fn inner(template: &Meta, packet: &[u8], meta: &mut Meta) -> bool {
    let wire_len = meta.wire_len;
    fill(template, 0, packet, wire_len, meta)
}

/// Reads an ordinary packet, unless `differs` is something else than zero.
#[inline(always)]
fn fill(template: &Meta, differs: u64, packet: &[u8], wire_len: u16, meta: &mut Meta) -> bool {
    let Some(head) = packet.first_chunk::<HEAD>() else { return false };
    let word = |at: usize| head.split_at(at).1.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // Version to fragment offset; TTL to source; destination and ports. The first byte is the lowest.
    let (a, b, c) = (word(0), word(8), word(16));
    let proto = (b >> 8) as u8;
    let ip_len = (a >> 16) as u16;
    let ip_len = ip_len.swap_bytes();
    // Version 4 with 20 bytes of header; no fragment. DF and the reserved bit may be anything (RFC 791, RFC 3514).
    let shape = a & 0xff3f_0000_0000_00ff ^ 0x45;
    if shape | differs != 0
        || ip_len < of_byte(&LEAST, proto.into())
        || usize::from(ip_len) > packet.len()
        || of_byte(&SPECIAL, b >> 32) | of_byte(&SPECIAL, c)
        || !Sum::of_words(a, b, c as u32).is_valid()
    {
        return false;
    }
    *meta = *template;
    // Fields that lie side by side are taken from one word, so that they are written by one store.
    let addresses = (b >> 32 | c << 32).swap_bytes().rotate_left(32);
    (meta.src, meta.dst) = (addresses as u32, (addresses >> 32) as u32);
    let has_ports = proto != protocol::ESP;
    let ports = if has_ports { ((c >> 32) as u32).swap_bytes().rotate_left(16) } else { 0 };
    (meta.sport, meta.dport) = (ports as u16, (ports >> 16) as u16);
    let flags = template.flags.with(Flags::HAS_PORTS, has_ports);
    meta.ip_len = ip_len;
    meta.flags = flags.with(Flags::DONT_FRAGMENT, a >> 54 & 1 == 1);
    (meta.ttl, meta.proto) = (b as u8, (b >> 8) as u8);
    meta.tos = (a >> 8) as u8;
    meta.wire_len = wire_len;
    true
}
