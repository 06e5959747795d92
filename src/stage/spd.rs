//! The security policy database: what may come in (RFC 4301 5.2), and what goes into a tunnel (RFC 4301 5.1).

use arrayvec::ArrayVec;

use super::{Cx, Stage, quoted};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    table::{
        prefetch::prefetch_read,
        spd::{self, Few, Key, Key4, Key6, Keys, NO_POLICY},
        tables::{Gateway, NO_TUNNEL, NextHop, PolicyAction},
    },
    wire::{ip::protocol, ipv6::Ipv6},
};

/// Checks what came from peers against the policies, read the other way round; also what is for the gateway itself.
///
/// A packet out of a tunnel must be one that a policy would send into that tunnel; a packet in the clear must not
/// be one that a policy protects.
#[derive(Debug, Default)]
pub struct SpdInbound;

/// Asks the policies where a packet goes. What they leave alone goes on to the route table.
#[derive(Debug, Default)]
pub struct SpdOutbound;

/// Ports as the SPD sees them: of ICMP, type and code.
#[inline]
fn ports(meta: &Meta) -> (u16, u16, bool) {
    match meta.proto {
        protocol::ICMPV4 | protocol::ICMPV6 => (meta.dport >> 8, meta.dport & 0xff, !has_ports(meta)),
        _ => (meta.sport, meta.dport, !has_ports(meta)),
    }
}

#[inline]
fn has_ports(meta: &Meta) -> bool {
    meta.flags.has(Flags::HAS_PORTS)
}

#[inline]
fn key<A>(meta: &Meta, source: A, destination: A, reversed: bool) -> Key<A> {
    let (source_port, destination_port, opaque_ports) = ports(meta);
    let plain =
        Key { source, destination, protocol: meta.proto, source_port, destination_port, opaque_ports };
    if !reversed {
        return plain;
    }
    let icmp = matches!(meta.proto, protocol::ICMPV4 | protocol::ICMPV6);
    let (source_port, destination_port) =
        if icmp { (source_port, destination_port) } else { (destination_port, source_port) };
    Key { source: plain.destination, destination: plain.source, source_port, destination_port, ..plain }
}

/// What few rules say of a packet. Not by way of a key, of which the compiler makes a vector and takes that apart again.
#[inline(always)]
fn find(few: &Few, meta: &Meta, reversed: bool) -> u32 {
    let ports = || {
        let both = u32::from(meta.sport) | u32::from(meta.dport) << 16;
        let ports = match meta.proto {
            protocol::ICMPV4 | protocol::ICMPV6 => both >> 24 | both & 0xff_0000,
            _ if reversed => both.rotate_left(16),
            _ => both,
        };
        has_ports(meta).then_some(ports)
    };
    let ends = if reversed { (meta.dst, meta.src) } else { (meta.src, meta.dst) };
    few.find(ends, ports, meta.proto)
}

fn key_v4(meta: &Meta, reversed: bool) -> Key4 {
    key(meta, meta.src, meta.dst, reversed)
}

fn key_v6(bytes: &[u8], meta: &Meta, reversed: bool) -> Key6 {
    let header = Ipv6::at(bytes, usize::from(meta.l3));
    let (source, destination) = header.map_or((0, 0), |h| (h.source().to_bits(), h.destination().to_bits()));
    key(meta, source, destination, reversed)
}

/// Which way packets go that are asked about: decides how policies are read, and where it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Towards the gateway: policies are read the other way round.
    In,
    /// Out of the gateway.
    Out,
}

/// The counters of so many policies stay in the caches near the core by themselves.
const NEAR_POLICIES: usize = 256;

/// What packets have in common that a policy decides about alike: from the highest bits on flags, gateway, and the tunnel that they
/// came out of, where a flag says so. One word, since it is passed on through memory: a processor forwards one store to one load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind(u64);

impl Kind {
    #[inline(always)]
    fn of(meta: &Meta) -> Self {
        let matter = Flags::V6 | Flags::FROM_TUNNEL | Flags::ICMP_ERROR | Flags::LATER_FRAGMENT;
        let flags = u64::from((meta.flags & matter).bits());
        Self(flags << 32 | u64::from(meta.gateway) << 16 | u64::from(meta.ingress_tunnel))
    }

    const fn flags(self) -> Flags {
        Flags::from_bits((self.0 >> 32) as u16)
    }

    const fn gateway(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether a gateway looks packets of both kinds up together.
    const fn is_beside(self, other: Self) -> bool {
        self.gateway() == other.gateway() && self.flags().has(Flags::V6) == other.flags().has(Flags::V6)
    }

    /// The tunnel that they came out of, or [`NO_TUNNEL`].
    const fn from(self) -> u16 {
        if self.flags().has(Flags::FROM_TUNNEL) { self.0 as u16 } else { NO_TUNNEL }
    }
}

/// Looks up packets among many rules, or a few of IPv6: their policies, in the order of slots.
fn search(gateway: &Gateway, cx: &Cx<'_>, burst: &Burst, slots: Slots, v6: bool, way: Way) -> [u32; BURST] {
    let (spd, reversed) = (&gateway.spd, way == Way::In);
    let mut found = [NO_POLICY; BURST];
    if v6 {
        let keys = slots.into_iter().map(|s| key_v6(burst.bytes(cx.umem, s), burst.meta(s), reversed));
        if let Some(rules) = spd.few_v6() {
            let mut list = Keys::default();
            keys.for_each(|key| list.push(&key));
            spd::choose(rules, &list, &mut found);
        } else {
            let keys: ArrayVec<Key6, BURST> = keys.collect();
            spd.lookup_burst_v6(&keys, &mut found);
        }
    } else {
        let keys: ArrayVec<Key4, BURST> =
            slots.into_iter().map(|slot| key_v4(burst.meta(slot), reversed)).collect();
        spd.lookup_burst_v4(&keys, &mut found);
    }
    if gateway.actions.len() > NEAR_POLICIES {
        for policy in found {
            if let Some(cell) = cx.counters.policy_line(gateway.first_policy + policy as usize) {
                prefetch_read(cell);
            }
        }
    }
    found
}

/// Packets of one kind in a row that one policy decides about.
struct Run<'a> {
    packets: Slots,
    kind: Kind,
    /// What the policy does; `None` where none matches.
    action: Option<&'a PolicyAction>,
}

/// Finds the policies that match packets, and calls `decide` for each run of them. The result is all packets that this names.
#[inline(always)]
fn look_up<'a>(
    cx: &mut Cx<'a>,
    burst: &mut Burst,
    slots: Slots,
    way: Way,
    decide: impl Fn(&mut Cx<'a>, &mut Burst, Run<'a>) -> Slots + Copy,
) -> Slots {
    let (mut left, mut named) = (slots, Slots::NONE);
    // Packets of one gateway and one IP version are looked up together; a burst is nearly always of one kind.
    while let Some(first) = left.first() {
        let kind = Kind::of(burst.meta(first));
        let v6 = kind.flags().has(Flags::V6);
        let beside = |slot| kind.is_beside(Kind::of(burst.meta(slot)));
        let Some(gateway) = cx.tables.gateway(kind.gateway()) else {
            left -= left.filter(beside);
            continue;
        };
        if gateway.spd.is_empty() {
            named |= in_runs(cx, burst, &mut left, (gateway, way), |_| NO_POLICY, decide);
        } else if !v6 && let Some(few) = gateway.spd.few_v4() {
            let find = |meta: &Meta| find(few, meta, way == Way::In);
            named |= in_runs(cx, burst, &mut left, (gateway, way), find, decide);
        } else {
            let mut same = left.filter(beside);
            left -= same;
            let mut found = search(gateway, cx, burst, same, v6, way).into_iter();
            let find = |_: &Meta| found.next().unwrap_or(NO_POLICY);
            named |= in_runs(cx, burst, &mut same, (gateway, way), find, decide);
        }
    }
    named
}

/// As [`look_up`], up to the first packet of another gateway or IP version: those from there on are left. `find` is asked once
/// for each packet, in their order.
#[inline(always)]
fn in_runs<'a>(
    cx: &mut Cx<'a>,
    burst: &mut Burst,
    left: &mut Slots,
    (gateway, way): (&'a Gateway, Way),
    mut find: impl FnMut(&Meta) -> u32,
    decide: impl Fn(&mut Cx<'a>, &mut Burst, Run<'a>) -> Slots,
) -> Slots {
    let (mut slots, mut named) = (*left, Slots::NONE);
    let Some(front) = slots.first().map(|first| Kind::of(burst.meta(first))) else { return named };
    // Of the first packet that is not of the run before.
    let mut known = None;
    while let Some(first) = slots.first() {
        let meta = burst.meta(first);
        let kind = Kind::of(meta);
        if !front.is_beside(kind) {
            break;
        }
        let policy = known.take().unwrap_or_else(|| find(meta));
        let (mut packets, mut bytes) = (Slots::only(first), u64::from(meta.ip_len));
        for slot in slots - packets {
            let meta = burst.meta(slot);
            if Kind::of(meta) != kind {
                break;
            }
            let own = find(meta);
            if own != policy {
                known = Some(own);
                break;
            }
            packets.insert(slot);
            bytes += u64::from(meta.ip_len);
        }
        slots -= packets;
        if policy != NO_POLICY {
            let row = gateway.first_policy + policy as usize;
            match way {
                Way::In => cx.counters.policy_in(row, packets.len() as u64, bytes),
                Way::Out => cx.counters.policy_out(row, packets.len() as u64, bytes),
            }
        }
        named |= decide(cx, burst, Run { packets, kind, action: gateway.actions.get(policy as usize) });
    }
    *left = slots;
    named
}

/// Packets that policies must let in, of those in the lanes.
#[inline]
fn to_be_admitted(cx: &mut Cx<'_>, burst: &Burst) -> Slots {
    let opened = super::take(&mut cx.lanes.opened, burst);
    let mut gateway = None;
    let mut protects = false;
    let others = (cx.lanes.forward | cx.lanes.local) & (burst.live() - opened);
    let others = others.filter(|slot| {
        let meta = burst.meta(slot);
        if meta.flags.any(Flags::ADMITTED | Flags::FROM_TUNNEL) {
            // What came out of a tunnel is checked also when it is for the gateway itself.
            return !meta.flags.has(Flags::ADMITTED);
        }
        // A tunnel may end behind a gateway that its outer packets came through.
        if meta.flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED)
            || meta.passes != 0
            || !cx.lanes.forward.contains(slot)
        {
            return false;
        }
        if gateway != Some(meta.gateway) {
            gateway = Some(meta.gateway);
            protects = cx.tables.gateway(meta.gateway).is_some_and(|g| g.protects);
        }
        protects
    });
    opened | others
}

impl Stage for SpdInbound {
    const NAME: &'static str = "spd-inbound";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = to_be_admitted(cx, burst);
        if slots.is_empty() {
            return;
        }
        look_up(cx, burst, slots, Way::In, admit);
    }
}

/// Lets packets in, or drops them. Names none.
fn admit(cx: &mut Cx<'_>, burst: &mut Burst, run: Run<'_>) -> Slots {
    let verdict = admission(cx, run.kind, run.action);
    for slot in run.packets {
        let refused = match verdict {
            Admission::Granted => None,
            Admission::Refused(reason) => Some(reason),
            Admission::ByQuote => error(cx, burst, slot, run.action),
        };
        match refused {
            Some(reason) => burst.drop(slot, reason),
            None => burst.meta_mut(slot).flags |= Flags::ADMITTED,
        }
    }
    Slots::NONE
}

/// Whether packets may come in.
#[derive(Debug, Clone, Copy)]
enum Admission {
    Granted,
    Refused(DropReason),
    /// Each has to be looked at: what it quotes counts too.
    ByQuote,
}

/// Whether packets of a kind may come in of which policies say `action`.
fn admission(cx: &Cx<'_>, kind: Kind, action: Option<&PolicyAction>) -> Admission {
    if quoted::is_error(kind.flags()) {
        return Admission::ByQuote;
    }
    let from = kind.from();
    let refused = if from == NO_TUNNEL {
        match action {
            Some(PolicyAction::Protect(_)) => Some(DropReason::PolicyUnprotected),
            Some(PolicyAction::Discard) => Some(DropReason::PolicyDiscard),
            Some(PolicyAction::Bypass) | None => None,
        }
    } else {
        let fits = match action {
            Some(PolicyAction::Protect(by)) => by.has(from),
            // A route leads into the tunnel, so what comes out is bound by no selectors.
            Some(PolicyAction::Bypass) | None => cx.tables.tunnel(from).is_some_and(|tunnel| tunnel.routed),
            Some(PolicyAction::Discard) => false,
        };
        (!fits).then_some(DropReason::PolicyMismatch)
    };
    refused.map_or(Admission::Granted, Admission::Refused)
}

/// Whether policies let an ICMP error in (RFC 4301 6): by its own headers, of which `action` is what they say, and by
/// the packet that it quotes, which must be one that they would send where the error comes from.
#[cold]
fn error(cx: &Cx<'_>, burst: &Burst, slot: Slot, action: Option<&PolicyAction>) -> Option<DropReason> {
    let meta = burst.meta(slot);
    let quoted = quoted::action(cx, burst, slot, false);
    let by_quote = |tunnel| cx.tables.tunnel(tunnel).is_some_and(|tunnel| tunnel.errors_by_quote);
    if !meta.flags.has(Flags::FROM_TUNNEL) {
        return match (action, quoted) {
            (Some(PolicyAction::Protect(_)), _) => Some(DropReason::PolicyUnprotected),
            (Some(PolicyAction::Discard), _) => Some(DropReason::PolicyDiscard),
            // Nobody out there has seen in the clear what it quotes.
            (_, Ok(Some(PolicyAction::Protect(by)))) if by.tunnels().any(by_quote) => {
                Some(DropReason::PolicyUnprotected)
            }
            _ => None,
        };
    }
    let own = meta.ingress_tunnel;
    let routed = || cx.tables.tunnel(own).is_some_and(|tunnel| tunnel.routed);
    let fits = |action: Option<&PolicyAction>| match action {
        Some(PolicyAction::Protect(by)) => by.has(own),
        Some(PolicyAction::Bypass) | None => routed(),
        Some(PolicyAction::Discard) => false,
    };
    let quote_fits = quoted.as_ref().is_ok_and(|action| fits(action.as_ref()));
    match action {
        Some(PolicyAction::Discard) => Some(DropReason::PolicyMismatch),
        action if fits(action) => (by_quote(own) && !quote_fits).then_some(DropReason::IcmpQuoteMismatch),
        // From a router on the way, whose address no policy names.
        _ => (!quote_fits).then_some(DropReason::PolicyMismatch),
    }
}

/// What becomes of packets that policies decide about.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Into this tunnel.
    Seal(u16),
    /// On to the route table.
    Route,
    Discard,
    /// Each has to be looked at: it goes where replies to the packet that it quotes would go.
    ByQuote,
}

/// What becomes of packets of which policies say `action`.
#[inline(always)]
fn outcome(cx: &Cx<'_>, action: Option<&PolicyAction>) -> Outcome {
    match action {
        Some(PolicyAction::Protect(by)) => Outcome::Seal(by.choose(&cx.tables.liveness)),
        Some(PolicyAction::Bypass) | None => Outcome::Route,
        Some(PolicyAction::Discard) => Outcome::Discard,
    }
}

/// The tunnel of an ICMP error that no policy names: where replies to the packet that it quotes would go, back into the tunnel
/// that this came out of (RFC 4301 6.2), if any.
#[cold]
fn tunnel_of_replies(cx: &Cx<'_>, burst: &Burst, slot: Slot) -> Option<u16> {
    match quoted::action(cx, burst, slot, true) {
        Ok(Some(PolicyAction::Protect(by))) => Some(by.choose(&cx.tables.liveness)),
        _ => None,
    }
}

impl Stage for SpdOutbound {
    const NAME: &'static str = "spd";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = cx.lanes.lookup & burst.live();
        let sealed = look_up(cx, burst, slots, Way::Out, send);
        cx.lanes.lookup -= sealed;
        cx.lanes.chosen |= sealed;
    }
}

/// Does what the policy says. Names packets that are to be sealed.
fn send(cx: &mut Cx<'_>, burst: &mut Burst, run: Run<'_>) -> Slots {
    let outcome = match run.action {
        None if quoted::is_error(run.kind.flags()) => Outcome::ByQuote,
        action => outcome(cx, action),
    };
    let seal = |burst: &mut Burst, slot, tunnel| {
        let meta = burst.meta_mut(slot);
        meta.tunnel = tunnel;
        meta.next_hop = NextHop::BY_POLICY;
    };
    match outcome {
        Outcome::Seal(tunnel) => {
            run.packets.into_iter().for_each(|slot| seal(burst, slot, tunnel));
            run.packets
        }
        Outcome::Route => Slots::NONE,
        Outcome::Discard => {
            run.packets.into_iter().for_each(|slot| burst.drop(slot, DropReason::PolicyDiscard));
            Slots::NONE
        }
        Outcome::ByQuote => run.packets.filter(|slot| {
            let tunnel = tunnel_of_replies(cx, burst, slot);
            tunnel.into_iter().for_each(|tunnel| seal(burst, slot, tunnel));
            tunnel.is_some()
        }),
    }
}
