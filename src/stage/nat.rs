//! 1:1 translation of addresses, without state (RFC 3022 2.1, RFC 7915 in spirit for quoted packets).

use super::{Cx, Stage};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, Slots},
    table::gateway_nat::GatewayNat,
    wire::{
        checksum::{Delta, Sum},
        icmpv4, icmpv6,
        ip::protocol,
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};

/// Translates what enters a gateway, by the gateway's rules.
#[derive(Debug, Default)]
pub struct Nat;

impl Stage for Nat {
    const NAME: &'static str = "nat";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.forward, burst);
        cx.lanes.lookup |= slots;
        fetch(cx, burst, slots);
        for slot in slots {
            let (bytes, meta) = burst.packet_mut(cx.umem, slot);
            let Some(nat) = cx.tables.gateway(meta.gateway).and_then(|g| g.nat.as_ref()) else { continue };
            if translate(nat, bytes, meta).is_none() {
                burst.drop(slot, DropReason::NatUntranslatable);
            }
        }
    }
}

/// So many rules stay in the caches near the core by themselves.
const NEAR_RULES: usize = 4096;

/// Starts loading the rules of all packets, where they are many. The first packet speaks for all: a burst is nearly
/// always of one gateway.
#[inline]
fn fetch(cx: &Cx<'_>, burst: &Burst, slots: Slots) {
    let nat = |slot| cx.tables.gateway(burst.meta(slot).gateway).and_then(|g| g.nat.as_ref());
    let Some(first) = slots.first().and_then(nat) else { return };
    if first.v4.local.len() <= NEAR_RULES {
        return;
    }
    for slot in slots {
        let meta = burst.meta(slot);
        if let Some(nat) = nat(slot).filter(|_| !meta.is_v6()) {
            if meta.flags.has(Flags::FROM_LOCAL) {
                nat.v4.local.prefetch_source(meta.src);
            } else {
                nat.v4.local.prefetch_destination(meta.dst);
            }
        }
    }
}

/// `None` when the packet is too short for what has to change in it.
#[inline]
fn translate(nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Option<()> {
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    // An error from a host that has no rule may quote a packet of one that has.
    let quotes = meta.flags.has(Flags::ICMP_ERROR);
    let delta = if meta.is_v6() {
        let mut header = Ipv6::at_mut(bytes, usize::from(meta.l3))?;
        let old = (header.source().to_bits(), header.destination().to_bits());
        let new = nat.translate(from_local, old.0, old.1);
        if new == old && !quotes {
            return Some(());
        }
        header.set_source(new.0.into());
        header.set_destination(new.1.into());
        Delta::between_u128(old.0, new.0).combine(Delta::between_u128(old.1, new.1))
    } else {
        let old = (meta.src, meta.dst);
        let new = nat.translate(from_local, old.0, old.1);
        if new == old && !quotes {
            return Some(());
        }
        let delta = Delta::between_u32(old.0, new.0).combine(Delta::between_u32(old.1, new.1));
        let mut header = Ipv4::at_mut(bytes, usize::from(meta.l3))?;
        header.set_source(new.0.into());
        header.set_destination(new.1.into());
        let checksum = delta.apply(header.checksum());
        header.set_checksum(checksum);
        (meta.src, meta.dst) = new;
        delta
    };
    if meta.flags.has(Flags::LATER_FRAGMENT) {
        return Some(());
    }
    let end = usize::from(meta.l3 + meta.ip_len);
    let l4 = bytes.get_mut(usize::from(meta.l4)..end)?;
    transport_checksum(meta.proto, l4, delta)?;
    if quotes {
        quoted(nat, from_local, l4, meta.is_v6())?;
    }
    Some(())
}

/// Applies a change of the pseudo-header to the transport checksum. `None` when the header is cut short.
fn transport_checksum(proto: u8, l4: &mut [u8], delta: Delta) -> Option<()> {
    let at = match proto {
        protocol::TCP => 16,
        protocol::UDP | protocol::UDP_LITE => 6,
        protocol::DCCP => 6,
        protocol::ICMPV6 => 2,
        // ICMPv4 and SCTP have no pseudo-header; others are not known.
        _ => return Some(()),
    };
    let field = l4.get_mut(at..)?.first_chunk_mut::<2>()?;
    let old = u16::from_be_bytes(*field);
    let new = if proto == protocol::UDP { delta.apply_udp(old) } else { delta.apply(old) };
    *field = new.to_be_bytes();
    Some(())
}

/// Translates the packet quoted in an ICMP error (RFC 5508 4.2), and the error's checksum.
fn quoted(nat: &GatewayNat, from_local: bool, message: &mut [u8], v6: bool) -> Option<()> {
    let (head, body) = message.split_first_chunk_mut::<{ icmpv4::HEADER_LEN }>()?;
    let before = Sum::of(body);
    // A quote that is cut short within the transport header has no checksum to change.
    if v6 {
        let (offset, proto, later) = icmpv6::quoted(body).map(|quoted| {
            let later = quoted.walk.fragment.is_some_and(|f| f.offset != 0);
            (usize::from(quoted.walk.offset), quoted.walk.protocol, later)
        })?;
        let (mut header, _) = Ipv6::split_mut(body)?;
        let old = (header.source().to_bits(), header.destination().to_bits());
        let new = nat.translate_quoted(from_local, old.0, old.1);
        header.set_source(new.0.into());
        header.set_destination(new.1.into());
        let delta = Delta::between_u128(old.0, new.0).combine(Delta::between_u128(old.1, new.1));
        if !later && let Some(l4) = body.get_mut(offset..) {
            let _ = transport_checksum(proto, l4, delta);
        }
    } else {
        let offset = icmpv4::quoted(body)?.offset;
        let (mut header, _) = Ipv4::split_mut(body)?;
        let old = (header.source().to_bits(), header.destination().to_bits());
        let new = nat.translate_quoted(from_local, old.0, old.1);
        let delta = Delta::between_u32(old.0, new.0).combine(Delta::between_u32(old.1, new.1));
        let checksum = delta.apply(header.checksum());
        header.set_source(new.0.into());
        header.set_destination(new.1.into());
        header.set_checksum(checksum);
        let (proto, later) = (header.protocol(), header.fragment_offset() != 0);
        if !later && let Some(l4) = body.get_mut(offset..) {
            let _ = transport_checksum(proto, l4, delta);
        }
    }
    let change = Delta::between(before, Sum::of(body));
    let [_, _, high, low, ..] = head;
    let checksum = change.apply(u16::from_be_bytes([*high, *low]));
    [*high, *low] = checksum.to_be_bytes();
    Some(())
}
