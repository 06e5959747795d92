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
        if !has_ports(meta) {
            return (spd::OPAQUE, spd::OPAQUE);
        }
        let (first, second) = match meta.proto {
            protocol::ICMPV4 | protocol::ICMPV6 => (meta.dport >> 8, meta.dport & 0xff),
            _ if reversed => (meta.dport, meta.sport),
            _ => (meta.sport, meta.dport),
        };
        (first.into(), second.into())
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

/// Packets that follow each other, that one policy decides about, and that came the same way: decided about once.
struct Run<'a, V> {
    policy: u32,
    /// The tunnel they came out of, or [`NO_TUNNEL`].
    from: u16,
    action: Option<&'a PolicyAction>,
    verdict: V,
    packets: u64,
    bytes: u64,
}

impl<'a, V: Copy> Run<'a, V> {
    fn new(verdict: V) -> Self {
        Self { policy: NO_POLICY, from: NO_TUNNEL, action: None, verdict, packets: 0, bytes: 0 }
    }

    /// Goes on with a packet that `policy` decides about.
    #[inline(always)]
    fn follow(
        &mut self,
        cx: &Cx<'a>,
        gateway: &'a Gateway,
        way: Way,
        (policy, meta): (u32, &Meta),
        judge: impl FnOnce(&Cx<'_>, u16, Option<&PolicyAction>) -> V,
    ) {
        let from = if meta.flags.has(Flags::FROM_TUNNEL) { meta.ingress_tunnel } else { NO_TUNNEL };
        if (self.policy != policy) | (self.from != from) | (self.packets == 0) {
            self.count(cx, gateway, way);
            let action = gateway.actions.get(policy as usize);
            *self = Self { policy, from, action, verdict: judge(cx, from, action), packets: 0, bytes: 0 };
        }
        self.packets += 1;
        self.bytes += u64::from(meta.ip_len);
    }

    #[inline(never)]
    fn count(&self, cx: &Cx<'_>, gateway: &Gateway, way: Way) {
        if self.packets == 0 || self.policy == NO_POLICY {
            return;
        }
        let row = gateway.first_policy + self.policy as usize;
        match way {
            Way::In => cx.counters.policy_in(row, self.packets, self.bytes),
            Way::Out => cx.counters.policy_out(row, self.packets, self.bytes),
        }
    }
}

/// Looks up what `keys` give for a burst among many rules, or a few of IPv6.
fn search(gateway: &Gateway, cx: &Cx<'_>, burst: &Burst, slots: Slots, v6: bool, way: Way) -> [u32; BURST] {
    let (spd, reversed) = (&gateway.spd, way == Way::In);
    let mut found = [NO_POLICY; BURST];
    if spd.is_empty() {
        return found;
    }
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

/// Calls `carry_out` for each packet with what `judge` says of the policy that matches it, if any, and of the tunnel that
/// the packet came out of; and with what that policy does.
#[inline(always)]
fn look_up<'a, V: Copy>(
    cx: &mut Cx<'a>,
    burst: &mut Burst,
    slots: Slots,
    way: Way,
    judge: impl Fn(&Cx<'_>, u16, Option<&PolicyAction>) -> V,
    mut carry_out: impl FnMut(&mut Cx<'a>, &mut Burst, Slot, V, Option<PolicyAction>),
) {
    let tables = cx.tables;
    let mut left = slots;
    // Packets of one gateway and one IP version are looked up together; a burst is nearly always of one kind.
    while let Some(first) = left.first() {
        let (number, v6) = (burst.meta(first).gateway, burst.meta(first).is_v6());
        let is_same = |meta: &Meta| (meta.gateway == number) & (meta.is_v6() == v6);
        let Some(gateway) = tables.gateway(number) else {
            left -= left.filter(|slot| is_same(burst.meta(slot)));
            continue;
        };
        let mut run = Run::new(judge(cx, NO_TUNNEL, None));
        if !v6 && let Some(few) = gateway.spd.few_v4() {
            let mut others = Slots::NONE;
            for slot in left {
                let meta = burst.meta(slot);
                if !is_same(meta) {
                    others.insert(slot);
                    continue;
                }
                let policy = find(few, meta, way == Way::In);
                run.follow(cx, gateway, way, (policy, meta), &judge);
                carry_out(cx, burst, slot, run.verdict, run.action.copied());
            }
            left = others;
        } else {
            let same = left.filter(|slot| is_same(burst.meta(slot)));
            left -= same;
            let found = search(gateway, cx, burst, same, v6, way);
            for (slot, policy) in same.into_iter().zip(found) {
                run.follow(cx, gateway, way, (policy, burst.meta(slot)), &judge);
                carry_out(cx, burst, slot, run.verdict, run.action.copied());
            }
        }
        run.count(cx, gateway, way);
    }
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
        look_up(cx, burst, slots, Way::In, verdict, |cx, burst, slot, verdict, action| {
            let refused = if quoted::is_error(burst.meta(slot).flags) {
                error(cx, burst, slot, action)
            } else {
                verdict
            };
            match refused {
                Some(reason) => burst.drop(slot, reason),
                None => burst.meta_mut(slot).flags |= Flags::ADMITTED,
            }
        });
    }
}

/// Why packets may not come in that came out of the tunnel `from`, or in the clear where that is [`NO_TUNNEL`], and of
/// which policies say `action`.
fn verdict(cx: &Cx<'_>, from: u16, action: Option<&PolicyAction>) -> Option<DropReason> {
    if from == NO_TUNNEL {
        return match action {
            Some(PolicyAction::Protect(_)) => Some(DropReason::PolicyUnprotected),
            Some(PolicyAction::Discard) => Some(DropReason::PolicyDiscard),
            Some(PolicyAction::Bypass) | None => None,
        };
    }
    let fits = match action {
        Some(PolicyAction::Protect(by)) => by.has(from),
        // A route leads into the tunnel, so what comes out is bound by no selectors.
        Some(PolicyAction::Bypass) | None => cx.tables.tunnel(from).is_some_and(|tunnel| tunnel.routed),
        Some(PolicyAction::Discard) => false,
    };
    (!fits).then_some(DropReason::PolicyMismatch)
}

/// Whether policies let an ICMP error in (RFC 4301 6): by its own headers, of which `action` is what they say, and by
/// the packet that it quotes, which must be one that they would send where the error comes from.
#[cold]
fn error(cx: &Cx<'_>, burst: &Burst, slot: Slot, action: Option<PolicyAction>) -> Option<DropReason> {
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
    let fits = |action| match action {
        Some(PolicyAction::Protect(by)) => by.has(own),
        Some(PolicyAction::Bypass) | None => routed(),
        Some(PolicyAction::Discard) => false,
    };
    let quote_fits = quoted.is_ok_and(fits);
    match action {
        Some(PolicyAction::Discard) => Some(DropReason::PolicyMismatch),
        action if fits(action) => (by_quote(own) && !quote_fits).then_some(DropReason::IcmpQuoteMismatch),
        // From a router on the way, whose address no policy names.
        _ => (!quote_fits).then_some(DropReason::PolicyMismatch),
    }
}

/// What becomes of an ICMP error that no policy names: it goes where replies to the packet that it quotes would go, back into
/// the tunnel that this came out of (RFC 4301 6.2).
#[cold]
fn of_replies(cx: &Cx<'_>, burst: &Burst, slot: Slot) -> Outcome {
    let replies = quoted::action(cx, burst, slot, true).ok().flatten();
    match outcome(cx, replies.as_ref()) {
        Outcome::Seal(tunnel) => Outcome::Seal(tunnel),
        Outcome::Discard | Outcome::Route => Outcome::Route,
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
}

#[inline(always)]
fn outcome(cx: &Cx<'_>, action: Option<&PolicyAction>) -> Outcome {
    match action {
        Some(PolicyAction::Protect(by)) => Outcome::Seal(by.choose(&cx.tables.liveness)),
        Some(PolicyAction::Bypass) | None => Outcome::Route,
        Some(PolicyAction::Discard) => Outcome::Discard,
    }
}

impl Stage for SpdOutbound {
    const NAME: &'static str = "spd";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = cx.lanes.lookup & burst.live();
        let judge = |cx: &Cx<'_>, _, action: Option<&PolicyAction>| (outcome(cx, action), action.is_none());
        let mut sealed = Slots::NONE;
        look_up(cx, burst, slots, Way::Out, judge, |cx, burst, slot, (mut result, nothing), _| {
            if nothing && quoted::is_error(burst.meta(slot).flags) {
                result = of_replies(cx, burst, slot);
            }
            match result {
                Outcome::Seal(tunnel) => {
                    let meta = burst.meta_mut(slot);
                    meta.tunnel = tunnel;
                    meta.next_hop = NextHop::BY_POLICY;
                    sealed.insert(slot);
                }
                Outcome::Discard => burst.drop(slot, DropReason::PolicyDiscard),
                Outcome::Route => {}
            }
        });
        cx.lanes.lookup -= sealed;
        cx.lanes.chosen |= sealed;
    }
}
