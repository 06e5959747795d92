//! Longest prefix match: where the route table sends what no policy claimed.

use arrayvec::ArrayVec;

use super::{Cx, Stage};
use crate::{
    packet::{BURST, Burst, Meta, NatMarks, Slot, Slots},
    table::{
        address::{Address, IpVersion},
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
        let mut left = super::take(&mut cx.lanes.lookup, burst);
        cx.lanes.chosen |= left;
        while let Some(first) = left.first() {
            let (number, v6) = (burst.meta(first).gateway, burst.meta(first).is_v6());
            left -= match cx.tables.gateway(number) {
                None => {
                    burst.meta_mut(first).next_hop = NO_ROUTE;
                    Slots::only(first)
                }
                Some(gateway) if v6 => {
                    let destination = |burst: &Burst, slot| {
                        let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(burst.meta(slot).l3));
                        header.map_or(0, |header| header.destination().to_bits())
                    };
                    look_up(&gateway.routes_v6, burst, left, number, destination)
                }
                Some(gateway) => {
                    let destination = |burst: &Burst, slot| destination_v4(burst.meta(slot));
                    look_up(&gateway.routes_v4, burst, left, number, destination)
                }
            };
        }
    }
}

/// Looks up destinations of packets of `slots` that are in the gateway of this number and of the table's IP version:
/// in a small table those from the first on in a row, in a large one all, so that their cache misses overlap. The
/// result says which these are.
#[inline(always)]
fn look_up<A: Address>(
    routes: &Lpm<A>,
    burst: &mut Burst,
    slots: Slots,
    gateway: u16,
    destination: impl Fn(&Burst, Slot) -> A,
) -> Slots {
    let is_of = |meta: &Meta| meta.gateway == gateway && meta.is_v6() == (A::VERSION == IpVersion::V6);
    let mut done = Slots::NONE;
    if let Some(near) = routes.near(slots.len()) {
        for slot in slots {
            if !is_of(burst.meta(slot)) {
                break;
            }
            let next_hop = near.find(destination(burst, slot));
            burst.meta_mut(slot).next_hop = next_hop;
            done.insert(slot);
        }
        return done;
    }
    let mut addresses = ArrayVec::<A, BURST>::new();
    for slot in slots {
        if is_of(burst.meta(slot)) && addresses.try_push(destination(burst, slot)).is_ok() {
            done.insert(slot);
        }
    }
    let mut found = [NO_ROUTE; BURST];
    routes.lookup_burst(&addresses, &mut found);
    for (slot, next_hop) in done.into_iter().zip(found) {
        burst.meta_mut(slot).next_hop = next_hop;
    }
    done
}
