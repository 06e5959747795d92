//! Acts on the next hop that a policy or a route chose: TTL, transit, and the way out.

use super::{Cx, Stage, icmp_error};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, NatMarks, Slot},
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
        let mut way = WayOut::NONE;
        for slot in super::take(&mut cx.lanes.chosen, burst) {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            if !way.is_of(meta) {
                way = WayOut::find(cx.tables, meta).unwrap_or(WayOut::NONE);
            }
            let result = if way.is_of(meta) {
                leave(cx, &way, bytes, meta, slot)
            } else {
                stay(cx, bytes, meta, slot)
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

/// A way out of a gateway: found once for packets in a row that take the same.
struct WayOut {
    /// Whose way: the number of the next hop, and the tunnel where that is [`Target::BY_POLICY`].
    next_hop: u32,
    gateway: u16,
    tunnel: u16,
    egress: u16,
    neighbour: u32,
    /// The next hop is the destination itself, and so each packet's own.
    on_link: bool,
    /// Whether packets from a peer may go this way.
    from_peers: bool,
    /// Bytes of the largest IP packet.
    mtu: u16,
}

impl WayOut {
    /// Nobody's: no next hop has this number.
    const NONE: Self = Self {
        next_hop: u32::MAX - 2,
        gateway: 0,
        tunnel: NO_TUNNEL,
        egress: 0,
        neighbour: NO_NEIGHBOUR,
        on_link: false,
        from_peers: false,
        mtu: 0,
    };

    #[inline(always)]
    const fn is_of(&self, meta: &Meta) -> bool {
        meta.next_hop == self.next_hop
            && meta.gateway == self.gateway
            && (meta.next_hop != Target::BY_POLICY || meta.tunnel == self.tunnel)
    }

    /// The way that the packet's next hop is, when it leads out of the gateway.
    #[inline]
    fn find(tables: &Tables, meta: &Meta) -> Option<Self> {
        let this = Self { next_hop: meta.next_hop, gateway: meta.gateway, ..Self::NONE };
        let transit = tables.gateway(meta.gateway)?.transit;
        let into = |tunnel| {
            let mtu = tables.tunnel(tunnel)?.inner_mtu();
            Some(Self { tunnel, from_peers: transit, mtu, ..this })
        };
        let by = |number| {
            let interface = tables.interface(number)?;
            let from_peers = transit || interface.side == Side::Local;
            Some(Self { egress: number, from_peers, mtu: interface.mtu, ..this })
        };
        if meta.next_hop == Target::BY_POLICY {
            return into(meta.tunnel);
        }
        // By reference: a next hop is 28 bytes, of which a packet needs few.
        match tables.next_hops.get(meta.next_hop as usize)? {
            Target::Via { interface, neighbour, .. } => {
                Some(Self { neighbour: neighbour.to_bits(), ..by(*interface)? })
            }
            Target::Connected { interface } => Some(Self { on_link: true, ..by(*interface)? }),
            Target::Tunnel(tunnel) => into(*tunnel),
            _ => None,
        }
    }
}

/// The packet goes out of its gateway.
#[inline(always)]
fn leave(
    cx: &mut Cx<'_>,
    way: &WayOut,
    bytes: &mut [u8],
    meta: &mut Meta,
    slot: Slot,
) -> Result<(), Refusal> {
    // From a peer to a peer, where the gateway does not allow it.
    if !way.from_peers && !meta.flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED) {
        return Err((DropReason::TransitForbidden, Some(Problem::Prohibited)));
    }
    lower_ttl(bytes, meta)?;
    (meta.egress, meta.tunnel, meta.neighbour) = (way.egress, way.tunnel, way.neighbour);
    if way.on_link {
        let key = if meta.is_v6() {
            let header = Ipv6::at(bytes, usize::from(meta.l3));
            NeighbourKey::v6(way.egress, header.map_or(0, |h| h.destination().to_bits()))
        } else {
            NeighbourKey::v4(way.egress, meta.dst)
        };
        meta.neighbour = cx.tables.neighbours.lookup(&key).map_or(NO_NEIGHBOUR, |id| id.to_bits());
    }
    let lane = if meta.ip_len > way.mtu {
        &mut cx.lanes.too_big
    } else if way.tunnel == NO_TUNNEL {
        &mut cx.lanes.tx
    } else {
        &mut cx.lanes.seal
    };
    lane.insert(slot);
    Ok(())
}

/// The packet stays in this box: for another gateway, for this one, or nowhere.
fn stay(cx: &mut Cx<'_>, bytes: &mut [u8], meta: &mut Meta, slot: Slot) -> Result<(), Refusal> {
    match cx.tables.next_hops.get(meta.next_hop as usize) {
        Some(&Target::Gateway(gateway)) => {
            if meta.passes >= MAX_PASSES {
                return Err((DropReason::TooManyPasses, None));
            }
            lower_ttl(bytes, meta)?;
            meta.passes += 1;
            meta.gateway = gateway;
            // What NAT found out about its route was of the gateway before.
            meta.nat = meta.nat.without(NatMarks::ROUTE_AS_SEEN);
            // Another gateway is a peer to this one, whichever side the packet came from at first.
            meta.flags = meta.flags.without(Flags::FROM_LOCAL);
            cx.lanes.ip.insert(slot);
            cx.lanes.crossed.insert(slot);
        }
        Some(Target::Local) => cx.lanes.local.insert(slot),
        Some(Target::Blackhole) => return Err((DropReason::Blackhole, None)),
        Some(Target::Broadcast) => return Err((DropReason::Multicast, None)),
        // What leads out has a way, unless its interface or tunnel is gone.
        Some(_) => return Err((DropReason::NoRoute, None)),
        None => return Err((DropReason::NoRoute, Some(Problem::NoRoute))),
    }
    Ok(())
}

/// Lowers TTL or hop limit once on the packet's way through this box (RFC 1812 5.3.1, RFC 8200 3).
#[inline(always)]
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
