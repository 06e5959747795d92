//! Acts on the next hop that a policy or a route chose: TTL, transit, and the way out.

use super::{
    Cx, Stage, icmp_error,
    link::{Link, NO_NEIGHBOUR},
    rewrite,
};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, NatMarks, Slot, Slots, prefetch::prefetch_around},
    stage::icmp_error::Problem,
    table::{
        choice::{Choice, Needs, Standing, flow_hash},
        interface::Side,
        limit::WAYS_OUT,
        neighbour::NeighbourKey,
        next_hops::Hop,
        tables::{NextHop as Target, Tables},
        tunnel::{FITS_ANY_PATH, Tunnel},
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

/// Why a packet cannot go on, and what its sender is told.
type Refusal = (DropReason, Option<Problem>);

impl Stage for NextHop {
    const NAME: &'static str = "next-hop";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let mut slots = super::take(&mut cx.lanes.chosen, burst);
        if cx.tables.tunnels.len() > WAYS {
            slots -= into_tunnels(cx, burst, slots);
        }
        // What stages between this one and the last may ask about goes through them.
        let express = cx.tables.limits.active.bits() & WAYS_OUT == 0 && !cx.tables.features.clamps;
        let (mut ways, mut met) = (Ways::new(express), Met::NONE);
        let mut left = slots;
        while let Some(slot) = left.first() {
            // What a burst has is mostly packets in a row that go one way, or several that take turns.
            if !ways.last().way.is_of(burst.meta(slot)) {
                let mut hop = cx.tables.next_hops.get(burst.meta(slot).next_hop);
                if let Some(Hop::Choice(choice)) = hop {
                    met.choose(cx, burst, left, choice);
                    hop = cx.tables.next_hops.get(burst.meta(slot).next_hop);
                }
                let (bytes, meta) = burst.packet_mut(cx.umem, slot);
                if !ways.find(cx, hop, meta) {
                    if let Err(refusal) = stay(cx, hop, bytes, meta, slot) {
                        refuse(cx, burst, slot, refusal);
                    }
                    left.remove(slot);
                    continue;
                }
            }
            let Known { way, link } = ways.last();
            let sent = link.as_ref().map_or(Slots::NONE, |link| send(cx, burst, left, way, link));
            // Where some can be sent at once, those that cannot are rare.
            let slots = if link.is_some() { Slots::only(slot) } else { left };
            left -= if sent.is_empty() { pass(cx, burst, slots, way) } else { sent };
            // Whatever became of it: the loop ends.
            left.remove(slot);
        }
    }
}

/// Lets packets into tunnels that nothing speaks against: of many tunnels, packets in a row seldom go into the same. The
/// result is which these are; the others go the long way.
#[inline(never)] // Once a burst: inlined, it takes registers from the loop of those that have few tunnels or none.
fn into_tunnels(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
    let tables = cx.tables;
    let mut large = Slots::NONE;
    // One step of the way at a time, of all packets at once: so they wait for memory together.
    let slots = slots.filter(|slot| {
        let meta = burst.meta_mut(slot);
        let number = match meta.next_hop {
            Target::BY_POLICY => meta.tunnel,
            number => match tables.next_hops.one(number) {
                Some(Target::Tunnel(tunnel)) => *tunnel,
                _ => return false,
            },
        };
        let Some(tunnel) = tables.tunnel(number) else { return false };
        tunnel.fetch();
        meta.tunnel = number;
        large.insert_if(slot, meta.ip_len > FITS_ANY_PATH);
        true
    });
    for slot in large {
        tables.tunnel(burst.meta(slot).tunnel).into_iter().for_each(Tunnel::fetch_path);
    }
    let (mut passed, mut too_big) = (Slots::NONE, Slots::NONE);
    let (mut gateway, mut among_peers) = (None, false);
    for slot in slots {
        let (bytes, meta) = burst.packet_mut(cx.umem, slot);
        let Some(tunnel) = tables.tunnel(meta.tunnel) else { continue };
        prefetch_around(bytes);
        if gateway != Some(meta.gateway) {
            gateway = Some(meta.gateway);
            among_peers = tables.gateway(meta.gateway).is_some_and(|gateway| gateway.transit);
        }
        let may_enter = among_peers | meta.flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED);
        if !may_enter || !tables.liveness.tunnel_works(meta.tunnel) || lower_ttl(bytes, meta).is_err() {
            continue;
        }
        (meta.egress, meta.neighbour) = (WayOut::NONE.egress, NO_NEIGHBOUR);
        passed.insert(slot);
        too_big.insert_if(slot, !tunnel.admits(meta.ip_len));
    }
    cx.lanes.too_big |= too_big;
    cx.lanes.seal |= passed - too_big;
    passed
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
    fn find(tables: &Tables, hop: Option<&Hop>, meta: &Meta) -> Option<Self> {
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
        let Hop::One(hop) = hop? else { return None };
        // By reference: a next hop is 28 bytes, of which a packet needs few.
        match hop {
            Target::Via { interface, neighbour, .. } => {
                Some(Self { neighbour: neighbour.to_bits(), ..by(*interface)? })
            }
            Target::Connected { interface } => Some(Self { on_link: true, ..by(*interface)? }),
            Target::Tunnel(tunnel) => into(*tunnel),
            _ => None,
        }
    }
}

/// Takes packets the rest of their way at once, from the first of `slots` on that go this way, where nothing is left to
/// ask about: no limit, no tunnel, no fragment, no neighbour that is unknown. The result is which were sent.
#[inline(always)]
fn send(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, way: &WayOut, link: &Link) -> Slots {
    let umem = cx.umem;
    let once = Flags::V6 | Flags::TTL_DONE | Flags::ORIGINATED;
    rewrite::send(cx, burst, slots, link.to(), |frame, meta| {
        if !way.is_of(meta) || meta.flags & once != link.version() || meta.ttl <= 1 || meta.ip_len > way.mtu {
            return false;
        }
        let Some(packet) = link.put(umem, frame, meta) else { return false };
        lower(packet, 0, meta.is_v6());
        true
    })
}

/// A way out, and the link that packets can be sent over at once, if they can.
#[derive(Clone, Copy)]
struct Known {
    way: WayOut,
    link: Option<Link>,
}

/// The ways out that packets of a burst have taken.
struct Ways {
    known: [Known; WAYS],
    /// The place of the one that was asked for last.
    last: usize,
    /// Whether packets may be sent on at once.
    express: bool,
}

impl Ways {
    #[inline]
    const fn new(express: bool) -> Self {
        Self { known: [Known { way: WayOut::NONE, link: None }; WAYS], last: 0, express }
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a number modulo the length of an array is a place in it")]
    const fn last(&self) -> &Known {
        &self.known[self.last % WAYS]
    }

    /// Makes the packet's way out the last: as it was found before in this burst, or found now. `false`: it has none.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "a number modulo the length of an array is a place in it")]
    fn find(&mut self, cx: &Cx<'_>, hop: Option<&Hop>, meta: &Meta) -> bool {
        self.last = meta.next_hop as usize % WAYS;
        let known = &mut self.known[self.last];
        if known.way.is_of(meta) {
            return true;
        }
        let way = WayOut::find(cx.tables, hop, meta);
        known.link = None;
        known.way = way.unwrap_or(WayOut::NONE);
        if let Some(way) = way
            && self.express
            && way.only == Flags::NONE
            && way.tunnel == NO_TUNNEL
            && !way.on_link
        {
            known.link = Link::of(cx, way.egress, way.neighbour, meta.is_v6()).ok();
        }
        way.is_some()
    }
}

/// The choice that packets of a burst met last, and which of its members stand: found once for those in a row.
struct Met<'a> {
    number: u32,
    standing: Option<Standing<'a>>,
}

impl<'a> Met<'a> {
    /// None: no next hop has this number.
    const NONE: Self = Self { number: WayOut::NONE.next_hop, standing: None };

    /// Several ways lead to the destination of the first of `slots`: takes the one for its flow of those that are up, and so
    /// for those after it in a row that have the same choice. What the gateway itself sends takes the best one even when
    /// none is: it may find out that one works again.
    #[inline]
    fn choose(&mut self, cx: &Cx<'a>, burst: &mut Burst, slots: Slots, choice: &'a Choice) {
        let Some(number) = slots.first().map(|slot| burst.meta(slot).next_hop) else { return };
        if number != self.number {
            *self = Self { number, standing: choice.standing(&cx.tables.liveness) };
        }
        for slot in slots {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            if meta.next_hop != number {
                return;
            }
            let standing = match self.standing {
                None if meta.flags.has(Flags::ORIGINATED) => choice.regardless(),
                standing => standing,
            };
            match standing.and_then(|standing| standing.pick(|| flow_hash(bytes, meta))) {
                Some(chosen) => meta.next_hop = chosen,
                None => return,
            }
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

/// Lets packets pass, from the first of `slots` on that go this way. The result is which these are.
#[inline]
fn pass(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, way: &WayOut) -> Slots {
    let (mut done, mut passed, mut too_big) = (Slots::NONE, Slots::NONE, Slots::NONE);
    for slot in slots {
        let (bytes, meta) = burst.packet_mut(cx.umem, slot);
        if !way.is_of(meta) {
            break;
        }
        if way.tunnel != NO_TUNNEL {
            prefetch_around(bytes);
        }
        done.insert(slot);
        match pass_one(cx.tables, way, bytes, meta) {
            Ok(()) => {
                passed.insert(slot);
                too_big.insert_if(slot, meta.ip_len > way.mtu);
            }
            Err(refusal) => refuse(cx, burst, slot, refusal),
        }
    }
    cx.lanes.too_big |= too_big;
    let lane = if way.tunnel == NO_TUNNEL { &mut cx.lanes.tx } else { &mut cx.lanes.seal };
    *lane |= passed - too_big;
    done
}

/// Lets one packet pass this way.
#[inline(always)]
fn pass_one(tables: &Tables, way: &WayOut, bytes: &mut [u8], meta: &mut Meta) -> Result<(), Refusal> {
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
fn stay(
    cx: &mut Cx<'_>,
    hop: Option<&Hop>,
    bytes: &mut [u8],
    meta: &mut Meta,
    slot: Slot,
) -> Result<(), Refusal> {
    match hop {
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
    lower(bytes, meta.l3.into(), meta.is_v6());
    meta.flags |= Flags::TTL_DONE;
    Ok(())
}

/// Takes one from the TTL or hop limit of the IP header at this place.
#[inline(always)]
fn lower(bytes: &mut [u8], at: usize, v6: bool) {
    if v6 {
        if let Some(mut header) = Ipv6::at_mut(bytes, at) {
            header.decrement_hop_limit();
        }
    } else if let Some(mut header) = Ipv4::at_mut(bytes, at) {
        header.decrement_ttl();
    }
}
