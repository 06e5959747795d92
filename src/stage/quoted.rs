//! What policies say of the packet that an ICMP error quotes (RFC 4301 6.2).
//!
//! An error comes from wherever the trouble is, so its own addresses say little of the traffic that it is about. What
//! does is the packet it quotes: a policy that sends such packets into a tunnel is the one by which errors about them
//! come out of that tunnel, and by which errors about what came out of it go back.

use super::Cx;
use crate::{
    packet::{Burst, Flags, Slot},
    table::{
        spd::{Key, NO_POLICY},
        tables::PolicyAction,
    },
    wire::{
        flow::{Kind, L4},
        icmpv4, icmpv6,
        ip::protocol,
    },
};

/// Whether a packet is an ICMP error that can be read: of a later fragment only the beginning would tell.
#[inline]
pub fn is_error(flags: Flags) -> bool {
    flags.has(Flags::ICMP_ERROR) && !flags.has(Flags::LATER_FRAGMENT)
}

/// What the policies say of the quoted packet as it was sent or, with `reversed`, of its replies. An error means that
/// nothing is quoted that could be read.
#[cold]
pub fn action(
    cx: &Cx<'_>,
    burst: &Burst,
    slot: Slot,
    reversed: bool,
) -> Result<Option<PolicyAction>, Unreadable> {
    let meta = burst.meta(slot);
    let bytes = burst.bytes(cx.umem, slot);
    let end = usize::from(meta.l3 + meta.ip_len);
    let body =
        bytes.get(usize::from(meta.l4)..end).and_then(|m| m.get(icmpv4::HEADER_LEN..)).ok_or(Unreadable)?;
    let gateway = cx.tables.gateway(meta.gateway).ok_or(Unreadable)?;
    let mut found = [NO_POLICY];
    if meta.is_v6() {
        let quoted = icmpv6::quoted(body).ok_or(Unreadable)?;
        let later = quoted.walk.fragment.is_some_and(|fragment| fragment.offset != 0);
        let (source, destination) = (quoted.header.source().to_bits(), quoted.header.destination().to_bits());
        let key = key(source, destination, quoted.walk.protocol, quoted.payload, later, reversed);
        gateway.spd.lookup_burst_v6(&[key], &mut found);
    } else {
        let quoted = icmpv4::quoted(body).ok_or(Unreadable)?;
        let later = quoted.header.fragment_offset() != 0;
        let (source, destination) = (quoted.header.source().to_bits(), quoted.header.destination().to_bits());
        let key = key(source, destination, quoted.header.protocol(), quoted.payload, later, reversed);
        gateway.spd.lookup_burst_v4(&[key], &mut found);
    }
    let [policy] = found;
    Ok(gateway.actions.get(policy as usize).copied())
}

/// An error that quotes no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

fn key<A>(source: A, destination: A, proto: u8, payload: &[u8], later: bool, reversed: bool) -> Key<A> {
    let l4 = if later { None } else { L4::parse(proto, payload).ok() };
    let icmp = matches!(proto, protocol::ICMPV4 | protocol::ICMPV6);
    let (one, other, opaque_ports) = match l4.filter(|l4| l4.kind != Kind::Opaque) {
        // As policies see ICMP: type and code, the same both ways.
        Some(l4) if icmp => (l4.destination >> 8, l4.destination & 0xff, false),
        Some(l4) => (l4.source, l4.destination, false),
        None => (0, 0, true),
    };
    if !reversed {
        return Key {
            source,
            destination,
            protocol: proto,
            source_port: one,
            destination_port: other,
            opaque_ports,
        };
    }
    let (one, other) = if icmp { (one, other) } else { (other, one) };
    Key {
        source: destination,
        destination: source,
        protocol: proto,
        source_port: one,
        destination_port: other,
        opaque_ports,
    }
}
