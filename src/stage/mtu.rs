//! What does not fit the way it goes: fragments or an ICMP error (RFC 1191, RFC 8201, RFC 4301 8.2).

use super::{Cx, Entry, Stage, fragment, icmp_error, next_hop::NO_TUNNEL};
use crate::{
    packet::{Burst, DropReason, Flags, Slot},
    stage::icmp_error::Problem,
};

/// Deals with packets that are larger than what the interface or tunnel they leave by can carry.
#[derive(Debug, Default)]
pub struct Mtu;

impl Stage for Mtu {
    const NAME: &'static str = "mtu";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.too_big, burst) {
            let meta = burst.meta(slot);
            let (mtu, lane, entry) = if meta.tunnel == NO_TUNNEL {
                let mtu = cx.tables.interface(meta.egress).map(|interface| interface.mtu);
                (mtu, &mut cx.lanes.tx, Entry::Tx)
            } else {
                let mtu = cx.tables.tunnel(meta.tunnel).map(|tunnel| tunnel.admitted(meta.is_v6()));
                (mtu, &mut cx.lanes.seal, Entry::Seal)
            };
            // As it is, or its first fragment.
            lane.insert(slot);
            match mtu {
                Some(mtu) if meta.ip_len > mtu => oversize(cx, burst, slot, mtu, entry),
                Some(_) => {}
                None => burst.drop(slot, DropReason::NoRoute),
            }
        }
    }
}

/// The packet is larger than `mtu`.
fn oversize(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, mtu: u16, entry: Entry) {
    let flags = burst.meta(slot).flags;
    let divided = if flags.has(Flags::ORIGINATED | Flags::V6) {
        // Only its sender divides an IPv6 packet: that is the gateway itself.
        let identification = cx.out.next_identification().into();
        fragment::split_v6(cx, burst, slot, mtu, entry, identification)
    } else if flags.has(Flags::DONT_FRAGMENT) {
        let problem = Problem::TooBig { mtu };
        icmp_error::drop_with_error(cx, burst, slot, DropReason::PacketTooBig, problem);
        return;
    } else {
        fragment::split(cx, burst, slot, mtu, entry)
    };
    if divided.is_none() {
        burst.drop(slot, DropReason::FragmentationFailed);
    }
}
