//! Which interface, and so which gateway, a frame belongs to.

use super::parse::ordinary::HEAD;
use crate::{
    packet::{Flags, Meta, Tagging},
    table::{
        interface::{Interface, Side},
        tables::{Gateway, Tables},
    },
    wire::{ethernet::EtherType, ipv4},
};

/// The interface that the frame's tags name. Notes it, its gateway and its side in the metadata.
#[inline]
pub fn demux<'a>(tables: &'a Tables, meta: &mut Meta) -> Option<&'a Interface> {
    let demux = tables.demux.get(usize::from(meta.port))?;
    let vlan = |tci: u16| tci & 0xfff;
    let number = match meta.tagging {
        // A tag with VLAN 0 carries a priority only: the frame is untagged (802.1Q 9.6).
        Tagging::None | Tagging::Single => demux.single(vlan(meta.outer_tci))?,
        Tagging::Double => demux.double(vlan(meta.outer_tci), vlan(meta.inner_tci))?,
        Tagging::Other => return None,
    };
    let interface = tables.interface(number)?;
    meta.interface = number;
    meta.gateway = interface.gateway;
    meta.flags = meta.flags.with(Flags::FROM_LOCAL, interface.side == Side::Local);
    Some(interface)
}

/// Bytes of a frame up to the end of an 802.1Q header.
pub const SINGLE_TAGGED: usize = 18;
/// Bytes of a frame up to the end of its addresses, tags and EtherType.
pub const UNTAGGED: usize = 14;
/// Bytes of a frame up to the end of the ports of an IPv4 packet, with an 802.1Q header or without. The shortest on a wire
/// has more.
pub const FRONT: usize = SINGLE_TAGGED + HEAD;

/// The first bytes of all frames with an IPv4 packet that come to one interface by a port: how the frames of a
/// burst, which mostly come one way, are told apart with two comparisons.
#[derive(Debug)]
pub struct Way<'a> {
    /// What the metadata of such a packet begins with.
    pub template: Meta,
    /// The gateway.
    pub gateway: &'a Gateway,
    station: Pattern<0>,
    types: Pattern<10>,
}

/// Eight bytes of a frame from `AT` on, those of which that count.
#[derive(Debug, Default)]
struct Pattern<const AT: usize> {
    /// As they stand in the frame.
    bytes: u64,
    mask: u64,
}

impl<const AT: usize> Pattern<AT> {
    fn new(bytes: [u8; 8], mask: [u8; 8]) -> Self {
        let mask = u64::from_ne_bytes(mask);
        Self { bytes: u64::from_ne_bytes(bytes) & mask, mask }
    }

    #[inline(always)]
    fn difference(&self, front: &[u8; FRONT]) -> u64 {
        let bytes = front.split_at(AT).1.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        (bytes ^ self.bytes) & self.mask
    }
}

impl<'a> Way<'a> {
    /// The way of a frame from `port`, when it is untagged or has one 802.1Q tag, and carries IPv4 to a gateway.
    #[must_use]
    pub fn of(tables: &'a Tables, port: u16, frame: &[u8]) -> Option<Self> {
        let types = *frame.first_chunk::<SINGLE_TAGGED>()?.last_chunk::<8>()?;
        let [.., t0, t1, t2, t3, t4, t5] = types;
        let (tpid, tci, inner) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([t2, t3]), [t4, t5]);
        let (l3, tagging, outer_tci, mask) = match EtherType(tpid) {
            EtherType::IPV4 => (UNTAGGED, Tagging::None, 0, [0, 0, 0xff, 0xff, 0, 0, 0, 0]),
            EtherType::VLAN if EtherType(u16::from_be_bytes(inner)) == EtherType::IPV4 => {
                (SINGLE_TAGGED, Tagging::Single, tci, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
            }
            _ => return None,
        };
        let mut template = Meta {
            port,
            tagging,
            outer_tci,
            l3: l3 as u16,
            l4: (l3 + ipv4::HEADER_LEN) as u16,
            ..Meta::EMPTY
        };
        let interface = demux(tables, &mut template)?;
        let [a, b, c, d, e, f] = interface.mac.0;
        Some(Self {
            gateway: tables.gateway(template.gateway)?,
            template,
            station: Pattern::new([a, b, c, d, e, f, 0, 0], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
            types: Pattern::new(types, mask),
        })
    }

    /// Whether a frame from `port` comes this way.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, port: u16, front: &[u8; FRONT]) -> bool {
        self.types.difference(front) == 0 && port == self.template.port
    }

    /// Zero when the frame is for the interface's own station.
    #[inline(always)]
    #[must_use]
    pub fn differs_in_station(&self, front: &[u8; FRONT]) -> u64 {
        self.station.difference(front)
    }
}
