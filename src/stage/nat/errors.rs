//! ICMP errors: the addresses of the message, and those of the packet that it quotes (RFC 5508 4, RFC 3022 4.3).
//!
//! An error is about a packet that went the other way and was translated then; the quote is turned into what its
//! sender sent, however short it is cut, as long as it holds what names the session.

use super::{
    NatState, Next, flow, fragments, mapping_owner, note_route,
    rewrite::{self, Port},
};
use crate::{
    packet::{DropReason, Flags, Meta},
    stage::Cx,
    table::{
        gateway_nat::{Flow, GatewayNat, NatAddress, Outside, SessionRules, service},
        session::{Key, Onward, Side},
    },
    wire::{
        checksum::{Delta, Sum},
        flow::{Kind, L4},
        icmpv4, icmpv6,
        ip::protocol,
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};

/// What a quoted packet is, as far as it is quoted.
struct Quoted {
    source: u32,
    destination: u32,
    flow: Flow,
    /// Ports as sessions have them, seen from the quoted source; none where they are not quoted.
    ports: Option<(u16, u16)>,
}

fn read(body: &[u8]) -> Option<Quoted> {
    let quoted = icmpv4::quoted(body)?;
    let header = &quoted.header;
    let later = header.fragment_offset() != 0;
    let l4 = if later { None } else { L4::parse(header.protocol(), quoted.payload).ok() };
    let (ports, has_ports) = match l4 {
        Some(l4) if l4.kind == Kind::Ports => (Some((l4.source, l4.destination)), true),
        Some(l4) if l4.kind == Kind::IcmpQuery => (Some((l4.source, l4.source)), false),
        _ => (None, false),
    };
    let (source_port, destination_port) = ports.filter(|_| has_ports).unwrap_or_default();
    Some(Quoted {
        source: header.source().to_bits(),
        destination: header.destination().to_bits(),
        flow: Flow { protocol: header.protocol(), source_port, destination_port, has_ports },
        ports,
    })
}

/// What becomes of an error's addresses.
#[derive(Default)]
struct Change {
    source: u32,
    destination: u32,
    quoted_source: u32,
    quoted_destination: u32,
    port: Option<Port>,
    port_delta: Delta,
}

/// What a session says of an error.
enum Found {
    /// The address and port that stand for the quoted host's, or the other way round.
    As(u32, Port, Delta),
    /// No session is concerned.
    None,
    Next(Next),
}

/// One ICMP error, or its first fragment.
pub fn one(cx: &mut Cx<'_>, nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    if !meta.flags.has(Flags::FRAGMENT) {
        return whole(cx, nat, bytes, meta);
    }
    let datagram = fragments::datagram(bytes, meta);
    let next = whole(cx, nat, bytes, meta);
    let onward = match next {
        Next::Hand(worker) => Onward::Worker(worker),
        Next::Go | Next::Again => {
            let again = matches!(next, Next::Again);
            Onward::Translated { source: meta.src, destination: meta.dst, again }
        }
        _ => return next,
    };
    if let (Some(datagram), Some(tables)) = (datagram, cx.nat.tables.as_mut()) {
        tables.fragments.learn_onward(datagram, onward, cx.now);
    }
    next
}

/// A later fragment of an ICMP error: it follows the first one, which alone has the quote.
pub fn later(cx: &mut Cx<'_>, nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    let datagram = fragments::datagram(bytes, meta);
    let known = datagram.and_then(|datagram| cx.nat.tables.as_mut()?.fragments.onward(datagram, cx.now));
    let (source, destination, again) = match known {
        Some(Onward::Translated { source, destination, again }) => (source, destination, again),
        Some(Onward::Worker(worker)) => return Next::Hand(worker),
        // The first one has gone nowhere.
        None => return Next::Drop(DropReason::NatNoSession),
    };
    if meta.flags.has(Flags::FROM_LOCAL) && destination != meta.dst {
        note_route(nat, meta, meta.dst, destination);
    }
    let change = Delta::between_u32(meta.src, source).combine(Delta::between_u32(meta.dst, destination));
    match rewrite::addresses_v4(bytes, meta, source, destination, change) {
        None => Next::Drop(DropReason::NatUntranslatable),
        Some(()) if again => Next::Again,
        Some(()) => Next::Go,
    }
}

fn whole(cx: &mut Cx<'_>, nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    let cut = || Next::Drop(DropReason::NatUntranslatable);
    let Some(message) = rewrite::payload(bytes, meta) else { return cut() };
    let Some(quoted) = message.get(icmpv4::HEADER_LEN..).and_then(read) else { return cut() };
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    let outer = nat.translate(from_local, meta.src, meta.dst, flow(meta));
    let inner = nat.translate_quoted(from_local, quoted.source, quoted.destination, quoted.flow);
    let mut change = Change {
        source: outer.source,
        destination: outer.destination,
        quoted_source: inner.source,
        quoted_destination: inner.destination,
        ..Change::default()
    };
    // Of the quoted packet, the end that is a host's of the VPC: by an address rule, or by a session.
    let decided = if from_local { inner.destination_changed } else { inner.source_changed };
    if let Some(rules) = nat.sessions.as_deref()
        && !decided
    {
        match session(cx.nat, nat, rules, meta, &quoted, inner.source) {
            Found::As(address, port, delta) => {
                (change.port, change.port_delta) = (Some(port), delta);
                if from_local {
                    change.quoted_destination = address;
                    // A router within the VPC has no address outside; the gateway's own is one.
                    if !outer.source_changed && !meta.flags.has(Flags::ORIGINATED) {
                        change.source = address;
                    }
                } else {
                    change.quoted_source = address;
                    if !outer.destination_changed {
                        change.destination = address;
                    }
                    // The peer's host may be known inside under another address, also as the one that was talked to.
                    let peer = |real| nat.v4.peer.translate_source(real).map_or(real, |new| new.address);
                    change.source = peer(meta.src);
                    change.quoted_destination = peer(quoted.destination);
                }
            }
            Found::Next(next) => return next,
            Found::None => {}
        }
    }
    if from_local && change.destination != meta.dst {
        note_route(nat, meta, meta.dst, change.destination);
    }
    if write(bytes, meta, &change).is_none() {
        return cut();
    }
    let hairpin = from_local && change.destination == meta.dst && nat.is_outside(meta.dst);
    let through = change.quoted_destination != quoted.destination;
    if hairpin && through { Next::Again } else { Next::Go }
}

/// What the session of the quoted packet says. `remote`: the quoted source as a session has it.
fn session(
    state: &mut NatState,
    nat: &GatewayNat,
    rules: &SessionRules,
    meta: &Meta,
    quoted: &Quoted,
    remote: u32,
) -> Found {
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    let nothing = || Found::Next(Next::Drop(DropReason::NatNoSession));
    let (own, workers) = (state.links.own() as u32, state.links.workers() as u32);
    let proto = quoted.flow.protocol;
    let icmp = proto == protocol::ICMPV4;
    let concerned = if from_local {
        let (host, back) = (quoted.destination, quoted.flow.reversed());
        let service = service(proto, (host, quoted.flow.destination_port));
        !remote.is_vpc(nat) && (rules.is_mapped(service) || rules.pool(host, back, remote).is_some())
    } else {
        rules.outside(quoted.source).is_some()
    };
    if !concerned {
        return Found::None;
    }
    let Some((source_port, destination_port)) = quoted.ports else {
        return Found::Next(Next::Drop(DropReason::NatUntranslatable));
    };
    let (side, key, owner) = if from_local {
        let remote_port = if icmp { 0 } else { source_port };
        let key =
            Key::new(meta.gateway, proto, (quoted.destination, destination_port), (remote, remote_port));
        let mapped = rules.is_mapped(service(proto, (quoted.destination, destination_port)));
        (Side::Inside, key, mapped.then(|| mapping_owner(state, remote, remote_port)))
    } else {
        let remote_port = if icmp { 0 } else { destination_port };
        let key =
            Key::new(meta.gateway, proto, (quoted.source, source_port), (quoted.destination, remote_port));
        let owner = match rules.outside(quoted.source) {
            Some(Outside::Pool(place)) => {
                rules.pools.get(usize::from(place)).map(|pool| pool.ports.owner(source_port, workers))
            }
            _ => Some(mapping_owner(state, quoted.destination, remote_port)),
        };
        (Side::Outside, key, owner)
    };
    if let Some(owner) = owner
        && owner != own
    {
        return Found::Next(Next::Hand(owner));
    }
    let Some(tables) = state.tables.as_ref() else { return nothing() };
    let id = tables.sessions.find(side, tables.sessions.hash(key), key);
    // The session's life does not depend on errors (RFC 5508 REQ-6).
    let Some(record) = id.and_then(|id| tables.sessions.get(id)) else {
        // From inside it is not known which worker has the session: all are asked in turn.
        let next = (own + 1) % workers;
        let ask = owner.is_none() && !fragments::is_asked(meta, workers);
        return if ask { Found::Next(Next::Hand(next)) } else { nothing() };
    };
    let port = Delta::from_bits(record.deltas().1);
    if from_local {
        let outside = record.outside();
        Found::As(outside.address(), Port::Destination(outside.port()), port)
    } else {
        let host = record.inside();
        Found::As(host.address(), Port::Source(host.port()), port.inverse())
    }
}

/// Writes the changes, and all checksums that follow.
fn write(bytes: &mut [u8], meta: &mut Meta, change: &Change) -> Option<()> {
    let outer =
        Delta::between_u32(meta.src, change.source).combine(Delta::between_u32(meta.dst, change.destination));
    rewrite::addresses_v4(bytes, meta, change.source, change.destination, outer)?;
    let message = rewrite::payload(bytes, meta)?;
    let (head, body) = message.split_first_chunk_mut::<{ icmpv4::HEADER_LEN }>()?;
    let before = Sum::of(body);
    let offset = icmpv4::quoted(body)?.offset;
    let (mut header, _) = Ipv4::split_mut(body)?;
    let addresses = Delta::between_u32(header.source().to_bits(), change.quoted_source)
        .combine(Delta::between_u32(header.destination().to_bits(), change.quoted_destination));
    let checksum = addresses.apply(header.checksum());
    header.set_source(change.quoted_source.into());
    header.set_destination(change.quoted_destination.into());
    header.set_checksum(checksum);
    let (proto, later) = (header.protocol(), header.fragment_offset() != 0);
    if !later && let Some(l4) = body.get_mut(offset..) {
        // A quote that is cut short within the transport header has no checksum to change.
        let _ = match change.port {
            Some(port) => rewrite::set_port(proto, l4, port, addresses, change.port_delta, false),
            None => rewrite::transport_checksum(proto, l4, addresses),
        };
    }
    checksum_of(head, Delta::between(before, Sum::of(body)));
    Some(())
}

fn checksum_of(head: &mut [u8; icmpv4::HEADER_LEN], change: Delta) {
    let [_, _, high, low, ..] = head;
    let checksum = change.apply(u16::from_be_bytes([*high, *low]));
    [*high, *low] = checksum.to_be_bytes();
}

/// One ICMPv6 error: 1:1 rules alone.
pub fn one_v6(nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    match translate_v6(nat, bytes, meta) {
        Some(()) => Next::Go,
        None => Next::Drop(DropReason::NatUntranslatable),
    }
}

fn translate_v6(nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Option<()> {
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    let header = Ipv6::at(bytes, usize::from(meta.l3))?;
    let (source, destination) = (header.source().to_bits(), header.destination().to_bits());
    let new = nat.translate(from_local, source, destination, flow(meta));
    rewrite::addresses_v6(bytes, meta, new.source, new.destination)?;
    rewrite::after_addresses(bytes, meta, new.delta)?;
    let message = rewrite::payload(bytes, meta)?;
    let (head, body) = message.split_first_chunk_mut::<{ icmpv4::HEADER_LEN }>()?;
    let before = Sum::of(body);
    let (offset, proto, later, ports) = icmpv6::quoted(body).map(|quoted| {
        let later = quoted.walk.fragment.is_some_and(|f| f.offset != 0);
        let l4 = if later { None } else { L4::parse(quoted.walk.protocol, quoted.payload).ok() };
        (usize::from(quoted.walk.offset), quoted.walk.protocol, later, l4.and_then(L4::ports))
    })?;
    let (source_port, destination_port) = ports.unwrap_or_default();
    let flow = Flow { protocol: proto, source_port, destination_port, has_ports: ports.is_some() };
    let (mut header, _) = Ipv6::split_mut(body)?;
    let (source, destination) = (header.source().to_bits(), header.destination().to_bits());
    let new = nat.translate_quoted(from_local, source, destination, flow);
    header.set_source(new.source.into());
    header.set_destination(new.destination.into());
    if !later && let Some(l4) = body.get_mut(offset..) {
        let _ = rewrite::transport_checksum(proto, l4, new.delta);
    }
    checksum_of(head, Delta::between(before, Sum::of(body)));
    Some(())
}
