//! Longest prefix match: where the route table sends what no policy claimed.

use arrayvec::ArrayVec;

use super::{Cx, Stage};
use crate::{
    packet::{BURST, Burst, Meta, NatMarks, Slot, Slots},
    table::{
        address::Address,
        lpm::{Lpm, NO_ROUTE},
    },
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
            let gateway = cx.tables.gateway(number);
            match gateway {
                None => same.into_iter().for_each(|slot| burst.meta_mut(slot).next_hop = NO_ROUTE),
                Some(gateway) if v6 => {
                    let destination = |burst: &Burst, slot| {
                        let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(burst.meta(slot).l3));
                        header.map_or(0, |header| header.destination().to_bits())
                    };
                    look_up(&gateway.routes_v6, burst, same, destination);
                }
                Some(gateway) => {
                    look_up(&gateway.routes_v4, burst, same, |burst, slot| destination_v4(burst.meta(slot)))
                }
            }
        }
    }
}

#[inline(always)]
fn look_up<A: Address>(
    routes: &Lpm<A>,
    burst: &mut Burst,
    slots: Slots,
    destination: impl Fn(&Burst, Slot) -> A,
) {
    if let Some(near) = routes.near() {
        for slot in slots {
            let next_hop = near.find(destination(burst, slot));
            burst.meta_mut(slot).next_hop = next_hop;
        }
        return;
    }
    let addresses: ArrayVec<A, BURST> = slots.into_iter().map(|slot| destination(burst, slot)).collect();
    let mut found = [NO_ROUTE; BURST];
    routes.lookup_burst(&addresses, &mut found);
    for (slot, next_hop) in slots.into_iter().zip(found) {
        burst.meta_mut(slot).next_hop = next_hop;
    }
}
