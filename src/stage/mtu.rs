//! Whether a packet fits the way it goes; if not, fragments or an ICMP error (RFC 1191, RFC 8201).

use super::{Cx, Stage, fragment, icmp_error, next_hop::NO_TUNNEL};
use crate::{
    packet::{Burst, DropReason, Flags},
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
            let (mtu, lane) = if meta.tunnel == NO_TUNNEL {
                (cx.tables.interface(meta.egress).map(|i| i.mtu), &mut cx.lanes.tx)
            } else {
                (cx.tables.tunnel(meta.tunnel).map(|t| t.mtu), &mut cx.lanes.seal)
            };
            let Some(mtu) = mtu else {
                burst.drop(slot, DropReason::NoRoute);
                continue;
            };
            if meta.flags.has(Flags::DONT_FRAGMENT) {
                let problem = Problem::TooBig { mtu };
                icmp_error::drop_with_error(cx, burst, slot, DropReason::PacketTooBig, problem);
                continue;
            }
            // The first fragment goes on in the packet's place.
            lane.insert(slot);
            if fragment::split(cx, burst, slot, mtu).is_none() {
                burst.drop(slot, DropReason::FragmentationFailed);
            }
        }
    }
}
