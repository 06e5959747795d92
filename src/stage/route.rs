//! Longest prefix match: where the route table sends what no policy claimed.

use arrayvec::ArrayVec;

use super::{Cx, Stage};
use crate::{
    packet::{BURST, Burst, Meta, NatMarks},
    table::lpm::NO_ROUTE,
    wire::ipv6::Ipv6,
};

/// Looks destinations up in their gateway's route table.
#[derive(Debug, Default)]
pub struct Route;

/// The address that decides: the destination, unless NAT says that peers have addresses of the VPC and the route is
/// the one to what stands for them.
#[inline]
const fn destination_v4(meta: &Meta) -> u32 {
    if meta.nat.has(NatMarks::ROUTE_AS_SEEN) { meta.next_hop } else { meta.dst }
}

impl Stage for Route {
    const NAME: &'static str = "route";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.lookup, burst);
        cx.lanes.chosen |= slots;
        let mut left = slots;
        while let Some(first) = left.first() {
            let (number, v6) = (burst.meta(first).gateway, burst.meta(first).is_v6());
            let same =
                left.filter(|slot| burst.meta(slot).gateway == number && burst.meta(slot).is_v6() == v6);
            left -= same;
            let mut found = [NO_ROUTE; BURST];
            if let Some(gateway) = cx.tables.gateway(number) {
                if v6 {
                    let destination = |slot| {
                        let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(burst.meta(slot).l3));
                        header.map_or(0, |header| header.destination().to_bits())
                    };
                    let addresses: ArrayVec<u128, BURST> = same.into_iter().map(destination).collect();
                    gateway.routes_v6.lookup_burst(&addresses, &mut found);
                } else {
                    let addresses: ArrayVec<u32, BURST> =
                        same.into_iter().map(|slot| destination_v4(burst.meta(slot))).collect();
                    gateway.routes_v4.lookup_burst(&addresses, &mut found);
                }
            }
            for (slot, next_hop) in same.into_iter().zip(found) {
                let meta = burst.meta_mut(slot);
                meta.next_hop = next_hop;
                meta.nat = meta.nat.without(NatMarks::ROUTE_AS_SEEN);
            }
        }
    }
}
