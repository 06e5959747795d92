//! Which interface, and so which gateway, a frame belongs to.

use super::{Cx, Stage};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, Tagging},
    table::{
        interface::{Interface, Side},
        tables::Tables,
    },
    wire::ethernet::{Ethernet, MacAddr},
};

/// Finds each frame's interface by its tags, and drops what is for another station.
#[derive(Debug, Default)]
pub struct VlanDemux;

impl Stage for VlanDemux {
    const NAME: &'static str = "vlan-demux";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        // Counted in runs of packets of one interface, which a burst mostly is.
        let (mut counted, mut packets, mut octets) = (0, 0, 0);
        for slot in (cx.lanes.ip | cx.lanes.arp) & burst.live() {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            let Some((number, interface)) = interface(cx.tables, meta) else {
                burst.drop(slot, DropReason::UnknownVlan);
                continue;
            };
            meta.interface = number;
            meta.gateway = interface.gateway;
            meta.flags = meta.flags.with(Flags::FROM_LOCAL, interface.side == Side::Local);
            if number != counted {
                cx.counters.interface_in(counted, packets, octets);
                (counted, packets, octets) = (number, 0, 0);
            }
            packets += 1;
            octets += u64::from(meta.wire_len);
            let destination = Ethernet::at(bytes, 0).map_or(MacAddr::ZERO, |header| header.destination());
            if destination != interface.mac && !meta.flags.has(Flags::LINK_MULTICAST) {
                burst.drop(slot, DropReason::NotForUs);
            }
        }
        cx.counters.interface_in(counted, packets, octets);
    }
}

#[inline]
fn interface<'a>(tables: &'a Tables, meta: &Meta) -> Option<(u16, &'a Interface)> {
    let demux = tables.demux.get(usize::from(meta.port))?;
    let vlan = |tci: u16| tci & 0xfff;
    let number = match meta.tagging {
        // A tag with VLAN 0 carries a priority only: the frame is untagged (802.1Q 9.6).
        Tagging::None | Tagging::Single => demux.single(vlan(meta.outer_tci))?,
        Tagging::Double => demux.double(vlan(meta.outer_tci), vlan(meta.inner_tci))?,
        Tagging::Other => return None,
    };
    Some((number, tables.interface(number)?))
}
