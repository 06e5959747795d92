//! Acts on the next hop that a policy or a route chose: TTL, transit, and the way out.

use arrayvec::ArrayVec;

use super::{Cx, Stage, icmp_error};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, NatMarks, Slot, Slots},
    stage::{esp_seal::NEAR_TUNNELS, icmp_error::Problem},
    table::{
        choice::{Choice, Needs, Standing, flow_hash},
        interface::Side,
        neighbour::NeighbourKey,
        next_hops::Hop,
        tables::{NextHop as Target, Tables},
        tunnel::Tunnel,
    },
    wire::{ipv4::Ipv4, ipv6::Ipv6},
};

/// Lowers the TTL and finds the interface, tunnel or gateway that each packet goes to.
#[derive(Debug, Default)]
pub struct NextHop;

/// Gateways that a packet may enter after its first: routes between more form a loop, or a design error.
const MAX_PASSES: u8 = 8;

/// In `Meta::tunnel`: no tunnel.
pub use crate::table::tables::NO_TUNNEL;
/// In `Meta::neighbour`: not known yet.
pub const NO_NEIGHBOUR: u32 = u32::MAX;
/// In `Meta::neighbour`: asked for in vain.
pub const SILENT_NEIGHBOUR: u32 = u32::MAX - 1;

/// Why a packet cannot go on, and what its sender is told.
type Refusal = (DropReason, Option<Problem>);

impl Stage for NextHop {
    const NAME: &'static str = "next-hop";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.chosen, burst);
        if cx.tables.tunnels.len() > NEAR_TUNNELS {
            fetch(cx.tables, burst, slots);
        }
        let (mut way, mut ways, mut met) = (WayOut::NONE, [WayOut::NONE; WAYS], Met::NONE);
        let (mut passed, mut too_big, mut sealed) = (Slots::NONE, Slots::NONE, Slots::NONE);
        for slot in slots {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            // What a burst has is mostly packets in a row that go one way, or several that take turns.
            if !way.is_of(meta) {
                met.choose(cx.tables, bytes, meta);
                way = found(cx.tables, meta, &mut ways);
                if !way.is_of(meta) {
                    if let Err(refusal) = stay(cx, bytes, meta, slot) {
                        refuse(cx, burst, slot, refusal);
                    }
                    continue;
                }
            }
            match pass(cx.tables, &way, bytes, meta) {
                Ok(()) => {
                    passed.insert(slot);
                    too_big.insert_if(slot, meta.ip_len > way.mtu);
                    sealed.insert_if(slot, way.tunnel != NO_TUNNEL);
                }
                Err(refusal) => refuse(cx, burst, slot, refusal),
            }
        }
        cx.lanes.too_big |= too_big;
        cx.lanes.seal |= sealed - too_big;
        cx.lanes.tx |= passed - sealed - too_big;
    }
}

/// Starts loading the tunnels that packets go into: of all packets at once, one step of the way at a time.
fn fetch(tables: &Tables, burst: &Burst, slots: Slots) {
    let tunnel = |slot: Slot| {
        let meta = burst.meta(slot);
        let number = match meta.next_hop {
            Target::BY_POLICY => meta.tunnel,
            number => match tables.next_hops.one(number)? {
                Target::Tunnel(tunnel) => *tunnel,
                _ => return None,
            },
        };
        tables.tunnel(number)
    };
    let tunnels: ArrayVec<&Tunnel, BURST> = slots.into_iter().filter_map(tunnel).collect();
    tunnels.iter().for_each(|tunnel| tunnel.fetch());
    tunnels.iter().for_each(|tunnel| tunnel.fetch_path());
}

/// Drops a packet that cannot go on.
#[cold]
fn refuse(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, (reason, problem): Refusal) {
    match problem {
        None => burst.drop(slot, reason),
        Some(problem) => icmp_error::drop_with_error(cx, burst, slot, reason, problem),
    }
}

/// Ways out that a burst remembers.
const WAYS: usize = 8;

/// A way out of a gateway: found once for the packets of a burst that take the same.
#[derive(Clone, Copy)]
struct WayOut {
    /// Whose way: the number of the next hop, and the tunnel where that is [`Target::BY_POLICY`].
    next_hop: u32,
    gateway: u16,
    tunnel: u16,
    egress: u16,
    neighbour: u32,
    /// The next hop is the destination itself, and so each packet's own.
    on_link: bool,
    /// Only packets with one of these may go this way; with none given, all may.
    only: Flags,
    /// Whether its interface or tunnel is up.
    up: bool,
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
        only: Flags::NONE,
        up: false,
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
        let only = |up, from_peers| match (up, from_peers) {
            (true, true) => Flags::NONE,
            (true, false) => Flags::FROM_LOCAL | Flags::ORIGINATED,
            // What the gateway itself says may find out whether the way works again, or answer who asks that.
            (false, _) => Flags::ORIGINATED,
        };
        let into = |tunnel| {
            let mtu = tables.tunnel(tunnel)?.inner_mtu();
            // What is held down works: it is chosen only where nothing better is there.
            let up = Needs::Tunnel(tunnel).works(&tables.liveness);
            Some(Self { tunnel, only: only(up, transit), up, mtu, ..this })
        };
        let by = |number| {
            let interface = tables.interface(number)?;
            let up = Needs::Interface(number).works(&tables.liveness);
            let only = only(up, transit || interface.side == Side::Local);
            Some(Self { egress: number, only, up, mtu: interface.mtu, ..this })
        };
        if meta.next_hop == Target::BY_POLICY {
            return into(meta.tunnel);
        }
        // By reference: a next hop is 28 bytes, of which a packet needs few.
        match tables.next_hops.one(meta.next_hop)? {
            Target::Via { interface, neighbour, .. } => {
                Some(Self { neighbour: neighbour.to_bits(), ..by(*interface)? })
            }
            Target::Connected { interface } => Some(Self { on_link: true, ..by(*interface)? }),
            Target::Tunnel(tunnel) => into(*tunnel),
            _ => None,
        }
    }
}

/// The packet's way out, as it was found before in this burst, or found now.
#[inline]
#[expect(clippy::indexing_slicing, reason = "a number modulo the length of an array is a place in it")]
fn found(tables: &Tables, meta: &Meta, ways: &mut [WayOut; WAYS]) -> WayOut {
    let known = &mut ways[meta.next_hop as usize % WAYS];
    if !known.is_of(meta) {
        *known = WayOut::find(tables, meta).unwrap_or(WayOut::NONE);
    }
    *known
}

/// The choice that packets of a burst met last, and which of its members stand: found once for those in a row.
struct Met<'a> {
    number: u32,
    choice: Option<&'a Choice>,
    standing: Option<Standing<'a>>,
}

impl<'a> Met<'a> {
    /// None: no next hop has this number.
    const NONE: Self = Self { number: WayOut::NONE.next_hop, choice: None, standing: None };

    /// Where several ways lead to the packet's destination, takes the one for its flow of those that are up. What the
    /// gateway itself sends takes the best one even when none is: it may find out that one works again.
    #[inline]
    fn choose(&mut self, tables: &'a Tables, bytes: &[u8], meta: &mut Meta) {
        if meta.next_hop != self.number {
            let choice = match tables.next_hops.get(meta.next_hop) {
                Some(Hop::Choice(choice)) => Some(&**choice),
                _ => None,
            };
            let standing = choice.and_then(|choice| choice.standing(&tables.liveness));
            *self = Self { number: meta.next_hop, choice, standing };
        }
        let Some(choice) = self.choice else { return };
        let standing = match self.standing {
            None if meta.flags.has(Flags::ORIGINATED) => choice.regardless(),
            standing => standing,
        };
        if let Some(chosen) = standing.and_then(|standing| standing.pick(|| flow_hash(bytes, meta))) {
            meta.next_hop = chosen;
        }
    }
}

/// Why a packet may not go a way that is not for it.
#[cold]
fn refusal(way: &WayOut) -> Refusal {
    if way.up {
        // From a peer to a peer, where the gateway does not allow it.
        (DropReason::TransitForbidden, Some(Problem::Prohibited))
    } else {
        (DropReason::NoLivePath, Some(Problem::HostUnreachable))
    }
}

/// Lets one packet pass this way.
#[inline(always)]
fn pass(tables: &Tables, way: &WayOut, bytes: &mut [u8], meta: &mut Meta) -> Result<(), Refusal> {
    if way.only != Flags::NONE && !meta.flags.any(way.only) {
        return Err(refusal(way));
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
        meta.neighbour = tables.neighbours.lookup(&key).map_or(NO_NEIGHBOUR, |id| id.to_bits());
    }
    Ok(())
}

/// The packet stays in this box: for another gateway, for this one, or nowhere.
fn stay(cx: &mut Cx<'_>, bytes: &mut [u8], meta: &mut Meta, slot: Slot) -> Result<(), Refusal> {
    match cx.tables.next_hops.get(meta.next_hop) {
        Some(&Hop::One(Target::Gateway(gateway))) => {
            if meta.passes >= MAX_PASSES {
                return Err((DropReason::TooManyPasses, None));
            }
            lower_ttl(bytes, meta)?;
            if meta.nat.has(NatMarks::CROSSED)
                && cx.tables.gateway(meta.gateway).is_some_and(|between| between.nat.is_some())
            {
                meta.nat = meta.nat.with(NatMarks::CHANGED_BETWEEN);
            }
            meta.passes += 1;
            meta.gateway = gateway;
            // What NAT found out about its route was of the gateway before.
            meta.nat = meta.nat.without(NatMarks::ROUTE_AS_SEEN).with(NatMarks::CROSSED);
            // Another gateway is a peer to this one, whichever side the packet came from at first.
            meta.flags = meta.flags.without(Flags::FROM_LOCAL);
            cx.lanes.ip.insert(slot);
            cx.lanes.crossed.insert(slot);
        }
        Some(Hop::One(Target::Local)) => cx.lanes.local.insert(slot),
        Some(Hop::One(Target::Blackhole)) => return Err((DropReason::Blackhole, None)),
        Some(Hop::One(Target::Broadcast)) => return Err((DropReason::Multicast, None)),
        // What leads out has a way, unless its interface or tunnel is gone.
        Some(Hop::One(_)) => return Err((DropReason::NoRoute, None)),
        // Nothing was chosen.
        Some(Hop::Choice(_)) => return Err((DropReason::NoLivePath, Some(Problem::HostUnreachable))),
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
