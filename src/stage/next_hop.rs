//! Acts on the next hop that a policy or a route chose: TTL, transit, and the way out.

use super::{Cx, Stage, icmp_error};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, Slot},
    stage::icmp_error::Problem,
    table::{
        interface::Side,
        neighbour::NeighbourKey,
        tables::{NextHop as Target, Tables},
    },
    wire::{ipv4::Ipv4, ipv6::Ipv6},
};

/// Lowers the TTL and finds the interface, tunnel or gateway that each packet goes to.
#[derive(Debug, Default)]
pub struct NextHop;

/// Gateways that a packet may enter after its first: routes between more form a loop, or a design error.
const MAX_PASSES: u8 = 8;

/// In `Meta::tunnel`: no tunnel.
pub const NO_TUNNEL: u16 = u16::MAX;
/// In `Meta::neighbour`: not known yet.
pub const NO_NEIGHBOUR: u32 = u32::MAX;
/// In `Meta::neighbour`: asked for in vain.
pub const SILENT_NEIGHBOUR: u32 = u32::MAX - 1;

/// Why a packet cannot go on, and what its sender is told.
type Refusal = (DropReason, Option<Problem>);

impl Stage for NextHop {
    const NAME: &'static str = "next-hop";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.chosen, burst) {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            let by_policy = Target::Tunnel(meta.tunnel);
            let target = match meta.next_hop {
                Target::BY_POLICY => Some(&by_policy),
                // By reference: a next hop is 28 bytes, of which a packet needs few.
                number => cx.tables.next_hops.get(number as usize),
            };
            let result = match target {
                Some(target) => go(cx, bytes, meta, slot, target),
                None => Err((DropReason::NoRoute, Some(Problem::NoRoute))),
            };
            match result {
                Ok(()) => {}
                Err((reason, None)) => burst.drop(slot, reason),
                Err((reason, Some(problem))) => {
                    icmp_error::drop_with_error(cx, burst, slot, reason, problem);
                }
            }
        }
    }
}

#[inline]
fn go(
    cx: &mut Cx<'_>,
    bytes: &mut [u8],
    meta: &mut Meta,
    slot: Slot,
    target: &Target,
) -> Result<(), Refusal> {
    match *target {
        Target::Via { interface, neighbour, .. } => {
            leave(cx.tables, meta, interface)?;
            meta.neighbour = neighbour.to_bits();
        }
        Target::Connected { interface } => {
            leave(cx.tables, meta, interface)?;
            let key = if meta.is_v6() {
                let header = Ipv6::at(bytes, usize::from(meta.l3));
                NeighbourKey::v6(interface, header.map_or(0, |h| h.destination().to_bits()))
            } else {
                NeighbourKey::v4(interface, meta.dst)
            };
            meta.neighbour = cx.tables.neighbours.lookup(&key).map_or(NO_NEIGHBOUR, |id| id.to_bits());
        }
        Target::Tunnel(tunnel) => {
            forbid_transit(cx.tables, meta)?;
            meta.tunnel = tunnel;
        }
        Target::Gateway(gateway) => {
            if meta.passes >= MAX_PASSES {
                return Err((DropReason::TooManyPasses, None));
            }
            lower_ttl(bytes, meta)?;
            meta.passes += 1;
            meta.gateway = gateway;
            // Another gateway is a peer to this one, whichever side the packet came from at first.
            meta.flags = meta.flags.without(Flags::FROM_LOCAL);
            cx.lanes.ip.insert(slot);
            return Ok(());
        }
        Target::Local => {
            cx.lanes.local.insert(slot);
            return Ok(());
        }
        Target::Blackhole => return Err((DropReason::Blackhole, None)),
        Target::Broadcast => return Err((DropReason::Multicast, None)),
    }
    lower_ttl(bytes, meta)?;
    cx.lanes.leaving.insert(slot);
    Ok(())
}

/// The packet leaves its gateway by this interface.
#[inline]
fn leave(tables: &Tables, meta: &mut Meta, number: u16) -> Result<(), Refusal> {
    meta.egress = number;
    meta.tunnel = NO_TUNNEL;
    match tables.interface(number) {
        Some(interface) if interface.side == Side::Peer => forbid_transit(tables, meta),
        Some(_) => Ok(()),
        None => Err((DropReason::NoRoute, None)),
    }
}

/// From a peer to a peer, where the gateway does not allow it.
#[inline]
fn forbid_transit(tables: &Tables, meta: &Meta) -> Result<(), Refusal> {
    let from_peer = !meta.flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED);
    if from_peer && tables.gateway(meta.gateway).is_some_and(|g| !g.transit) {
        return Err((DropReason::TransitForbidden, Some(Problem::Prohibited)));
    }
    Ok(())
}

/// Lowers TTL or hop limit once on the packet's way through this box (RFC 1812 5.3.1, RFC 8200 3).
#[inline]
fn lower_ttl(bytes: &mut [u8], meta: &mut Meta) -> Result<(), Refusal> {
    if meta.flags.any(Flags::TTL_DONE | Flags::ORIGINATED) {
        return Ok(());
    }
    if meta.ttl <= 1 {
        return Err((DropReason::TtlExpired, Some(Problem::TimeExceeded)));
    }
    let at = usize::from(meta.l3);
    if meta.is_v6() {
        if let Some(mut header) = Ipv6::at_mut(bytes, at) {
            header.decrement_hop_limit();
        }
    } else if let Some(mut header) = Ipv4::at_mut(bytes, at) {
        header.decrement_ttl();
    }
    meta.flags |= Flags::TTL_DONE;
    Ok(())
}
