//! The security policy database: what may come in (RFC 4301 5.2), and what goes into a tunnel (RFC 4301 5.1).

use arrayvec::ArrayVec;

use super::{Cx, Stage};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots, Umem},
    table::{
        spd::{Key, Key4, Key6, NO_POLICY},
        tables::{Gateway, NextHop, PolicyAction, Tables},
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

/// Calls `decide` for each packet with the action of the policy that matches it, if any.
fn look_up(
    tables: &Tables,
    umem: &Umem,
    burst: &mut Burst,
    slots: Slots,
    reversed: bool,
    mut decide: impl FnMut(&mut Burst, Slot, &Gateway, Option<PolicyAction>),
) {
    let mut left = slots;
    // Packets of one gateway and one IP version are looked up together; a burst is nearly always of one kind.
    while let Some(first) = left.first() {
        let (number, v6) = (burst.meta(first).gateway, burst.meta(first).is_v6());
        let same = left.filter(|slot| burst.meta(slot).gateway == number && burst.meta(slot).is_v6() == v6);
        left -= same;
        let Some(gateway) = tables.gateway(number) else { continue };
        let mut found = [NO_POLICY; BURST];
        if !gateway.spd.is_empty() {
            if v6 {
                let key = |slot| key_v6(burst.bytes(umem, slot), burst.meta(slot), reversed);
                let keys: ArrayVec<Key6, BURST> = same.into_iter().map(key).collect();
                gateway.spd.lookup_burst_v6(&keys, &mut found);
            } else {
                let keys: ArrayVec<Key4, BURST> =
                    same.into_iter().map(|slot| key_v4(burst.meta(slot), reversed)).collect();
                gateway.spd.lookup_burst_v4(&keys, &mut found);
            }
        }
        for (slot, policy) in same.into_iter().zip(found) {
            decide(burst, slot, gateway, gateway.actions.get(policy as usize).copied());
        }
    }
}

impl Stage for SpdInbound {
    const NAME: &'static str = "spd-inbound";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        // Also what is for the gateway itself: its addresses are no way round the policies.
        let peers = ((cx.lanes.forward | cx.lanes.local) & burst.live()).filter(|slot| {
            let meta = burst.meta(slot);
            let trusted =
                meta.flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED) && !meta.flags.has(Flags::FROM_TUNNEL);
            let checked = trusted || meta.flags.has(Flags::ADMITTED);
            let protects = || cx.tables.gateway(meta.gateway).is_some_and(|g| g.protects);
            !checked && meta.passes == 0 && (meta.flags.has(Flags::FROM_TUNNEL) || protects())
        });
        if peers.is_empty() {
            return;
        }
        let tables = cx.tables;
        look_up(tables, cx.umem, burst, peers, true, |burst, slot, _, action| {
            let meta = burst.meta(slot);
            let verdict = if meta.flags.has(Flags::FROM_TUNNEL) {
                let routed = tables.tunnel(meta.ingress_tunnel).is_some_and(|t| t.routed);
                let fits = match action {
                    Some(PolicyAction::Protect(tunnel)) => tunnel == meta.ingress_tunnel,
                    // A route leads into the tunnel, so what comes out is bound by no selectors.
                    Some(PolicyAction::Bypass) | None => routed,
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

impl Stage for SpdOutbound {
    const NAME: &'static str = "spd";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = cx.lanes.lookup & burst.live();
        let lanes = &mut cx.lanes;
        look_up(cx.tables, cx.umem, burst, slots, false, |burst, slot, _, action| match action {
            Some(PolicyAction::Protect(tunnel)) => {
                burst.meta_mut(slot).tunnel = tunnel;
                lanes.lookup.remove(slot);
                lanes.chosen.insert(slot);
                burst.meta_mut(slot).next_hop = NextHop::BY_POLICY;
            }
            Some(PolicyAction::Discard) => burst.drop(slot, DropReason::PolicyDiscard),
            Some(PolicyAction::Bypass) | None => {}
        });
    }
}
