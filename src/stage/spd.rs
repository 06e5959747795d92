//! The security policy database: what may come in (RFC 4301 5.2), and what goes into a tunnel (RFC 4301 5.1).

use arrayvec::ArrayVec;

use super::{Cx, Stage, quoted};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    table::{
        address::Address,
        prefetch::prefetch_read,
        spd::{self, Key, Key4, Key6, Keys, NO_POLICY, Rule},
        tables::{Gateway, NextHop, PolicyAction},
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

/// What is counted of packets that follow each other and that one policy decides about.
#[derive(Default)]
struct Run {
    policy: u32,
    packets: u64,
    bytes: u64,
}

impl Run {
    #[inline(always)]
    fn add(&mut self, cx: &Cx<'_>, gateway: &Gateway, way: Way, policy: u32, bytes: u16) {
        if self.policy != policy {
            self.count(cx, gateway, way);
            *self = Self { policy, ..Self::default() };
        }
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }

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

/// Looks up what `keys` give for a burst in the rules of one IP version.
#[inline(always)]
fn search<A: Address>(
    few: Option<&[Rule<A>]>,
    keys: impl Iterator<Item = Key<A>>,
    found: &mut [u32; BURST],
    many: impl FnOnce(&[Key<A>], &mut [u32]),
) {
    match few {
        Some(rules) => {
            let mut list = Keys::default();
            keys.for_each(|key| list.push(&key));
            spd::choose(rules, &list, found);
        }
        None => {
            let keys: ArrayVec<Key<A>, BURST> = keys.collect();
            many(&keys, found);
        }
    }
}

/// Calls `decide` for each packet with the action of the policy that matches it, if any.
#[inline(always)]
fn look_up(
    cx: &mut Cx<'_>,
    burst: &mut Burst,
    slots: Slots,
    way: Way,
    mut decide: impl FnMut(&mut Cx<'_>, &mut Burst, Slot, Option<PolicyAction>),
) {
    let (tables, umem) = (cx.tables, cx.umem);
    let reversed = way == Way::In;
    let mut left = slots;
    // Packets of one gateway and one IP version are looked up together; a burst is nearly always of one kind.
    while let Some(first) = left.first() {
        let (number, v6) = (burst.meta(first).gateway, burst.meta(first).is_v6());
        let same = left.filter(|slot| {
            let meta = burst.meta(slot);
            (meta.gateway == number) & (meta.is_v6() == v6)
        });
        left -= same;
        let Some(gateway) = tables.gateway(number) else { continue };
        if gateway.spd.is_empty() {
            same.into_iter().for_each(|slot| decide(cx, burst, slot, None));
            continue;
        }
        let mut found = [NO_POLICY; BURST];
        let spd = &gateway.spd;
        if v6 {
            let keys = same.into_iter().map(|s| key_v6(burst.bytes(umem, s), burst.meta(s), reversed));
            search(spd.few_v6(), keys, &mut found, |keys, found| spd.lookup_burst_v6(keys, found));
        } else {
            let keys = same.into_iter().map(|slot| key_v4(burst.meta(slot), reversed));
            search(spd.few_v4(), keys, &mut found, |keys, found| spd.lookup_burst_v4(keys, found));
        }
        if gateway.actions.len() > NEAR_POLICIES {
            for policy in found {
                if let Some(cell) = cx.counters.policy_line(gateway.first_policy + policy as usize) {
                    prefetch_read(cell);
                }
            }
        }
        let mut run = Run::default();
        for (slot, policy) in same.into_iter().zip(found) {
            run.add(cx, gateway, way, policy, burst.meta(slot).ip_len);
            decide(cx, burst, slot, gateway.actions.get(policy as usize).copied());
        }
        run.count(cx, gateway, way);
    }
}

/// Packets that policies must let in, of those in the lanes.
#[inline]
fn to_be_admitted(cx: &Cx<'_>, burst: &Burst) -> Slots {
    let mut gateway = None;
    let mut protects = false;
    ((cx.lanes.forward | cx.lanes.local) & burst.live()).filter(|slot| {
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
    })
}

impl Stage for SpdInbound {
    const NAME: &'static str = "spd-inbound";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = to_be_admitted(cx, burst);
        if slots.is_empty() {
            return;
        }
        // The tunnel of the packet before, and whether a route leads into it.
        let mut last = (None, false);
        look_up(cx, burst, slots, Way::In, |cx, burst, slot, action| {
            let meta = burst.meta(slot);
            if quoted::is_error(meta.flags) {
                match error(cx, burst, slot, action) {
                    Some(reason) => burst.drop(slot, reason),
                    None => burst.meta_mut(slot).flags |= Flags::ADMITTED,
                }
                return;
            }
            let verdict = if meta.flags.has(Flags::FROM_TUNNEL) {
                let fits = match action {
                    Some(PolicyAction::Protect(by)) => by.has(meta.ingress_tunnel),
                    // A route leads into the tunnel, so what comes out is bound by no selectors.
                    Some(PolicyAction::Bypass) | None => {
                        if last.0 != Some(meta.ingress_tunnel) {
                            let tunnel = cx.tables.tunnel(meta.ingress_tunnel);
                            last = (Some(meta.ingress_tunnel), tunnel.is_some_and(|t| t.routed));
                        }
                        last.1
                    }
                    Some(PolicyAction::Discard) => false,
                };
                (!fits).then_some(DropReason::PolicyMismatch)
            } else {
                match action {
                    Some(PolicyAction::Protect(_)) => Some(DropReason::PolicyUnprotected),
                    Some(PolicyAction::Discard) => Some(DropReason::PolicyDiscard),
                    Some(PolicyAction::Bypass) | None => None,
                }
            };
            match verdict {
                Some(reason) => burst.drop(slot, reason),
                None => burst.meta_mut(slot).flags |= Flags::ADMITTED,
            }
        });
    }
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

/// What policies say of a packet; of an ICMP error that none names, where replies to the packet that it quotes would go:
/// back into the tunnel that this came out of (RFC 4301 6.2).
#[inline(always)]
fn or_of_replies(
    cx: &Cx<'_>,
    burst: &Burst,
    slot: Slot,
    action: Option<PolicyAction>,
) -> Option<PolicyAction> {
    if action.is_some() || !quoted::is_error(burst.meta(slot).flags) {
        return action;
    }
    let replies = quoted::action(cx, burst, slot, true).ok().flatten();
    replies.filter(|action| matches!(action, PolicyAction::Protect(_)))
}

impl Stage for SpdOutbound {
    const NAME: &'static str = "spd";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = cx.lanes.lookup & burst.live();
        look_up(cx, burst, slots, Way::Out, |cx, burst, slot, action| {
            match or_of_replies(cx, burst, slot, action) {
                Some(PolicyAction::Protect(by)) => {
                    let meta = burst.meta_mut(slot);
                    meta.tunnel = by.choose(&cx.tables.liveness);
                    meta.next_hop = NextHop::BY_POLICY;
                    cx.lanes.lookup.remove(slot);
                    cx.lanes.chosen.insert(slot);
                }
                Some(PolicyAction::Discard) => burst.drop(slot, DropReason::PolicyDiscard),
                Some(PolicyAction::Bypass) | None => {}
            }
        });
    }
}
