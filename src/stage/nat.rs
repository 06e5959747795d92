//! Address translation: 1:1 without state (RFC 3022 2.1), port mappings and source pools with sessions (RFC 4787,
//! RFC 5382, RFC 5508).
//!
//! A packet is looked at once (`one`): by an address rule, or none, it is done with at once; where a session
//! decides, it is noted, and all such packets of the burst are looked up together (`sessions`). A packet of one
//! host of the VPC for the outside address of another goes through twice: as from the VPC, and as from a peer.

mod errors;
mod established;
mod fragments;
mod rewrite;
mod sessions;
pub mod state;

use arrayvec::ArrayVec;

use self::{
    sessions::{Lookup, Side},
    state::NatState,
};
use super::{Cx, Stage};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Handed, Meta, NO_INTERFACE, NatMarks, Slot, Slots, Umem},
    table::{
        gateway_nat::{
            Addresses, Flow, GatewayNat, NatAddress, Outside, SessionRules, has_sessions, service,
        },
        hash::HashKey,
        session::{Datagram, Key, NOWHERE, Translation},
    },
    wire::{checksum::Delta, icmpv4, ip::protocol, ipv6::Ipv6},
};

/// Translates what enters a gateway, by the gateway's rules.
#[derive(Debug, Default)]
pub struct Nat;

/// Look-ups of a burst.
type Lookups = ArrayVec<Lookup, BURST>;

/// What is to become of a packet.
enum Next {
    /// On to policies and routes.
    Go,
    /// Once more, as from a peer: it is for an address that stands for a host of the VPC.
    Again,
    /// Its session decides, which is being looked up.
    Wait,
    /// Another worker is to see to it.
    Hand(u32),
    /// It waits for the first fragment of its datagram.
    Hold(Datagram),
    /// Nowhere.
    Drop(DropReason),
}

/// So often may a packet go from one worker to another: to the one that puts fragments in order, from there to its
/// session, and past each of those that might have the session.
const MAX_HOPS: u8 = 200;

impl Stage for Nat {
    const NAME: &'static str = "nat";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let slots = super::take(&mut cx.lanes.forward, burst);
        fetch(cx, burst, slots);
        let slots = established::pass(cx, burst, slots);
        let slots = simple(cx, burst, slots);
        if slots.is_empty() {
            return;
        }
        let again = pass(cx, burst, slots);
        if !again.is_empty() {
            // What is from a peer does not come back again.
            let left = pass(cx, burst, again);
            debug_assert!(left.is_empty());
            cx.lanes.lookup |= left;
        }
    }
}

/// The short way of TCP and UDP through a gateway with nothing but 1:1 rules for the VPC's hosts, without conditions: what
/// [`one_end`] does. The result is those that are left for [`pass`].
#[inline]
fn simple(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
    // The first packet speaks for all: a burst is nearly always of one gateway, and of one way through it.
    let Some(first) = slots.first().map(|slot| burst.meta(slot)) else { return slots };
    let nat = cx.tables.gateway(first.gateway).and_then(|gateway| gateway.nat.as_ref());
    let Some(nat) = nat.filter(|nat| nat.plain && nat.v4.peer.is_empty()) else { return slots };
    let done = if first.flags.has(Flags::FROM_LOCAL) {
        simple_end::<true>(cx.umem, nat, burst, slots, first.gateway)
    } else {
        simple_end::<false>(cx.umem, nat, burst, slots, first.gateway)
    };
    cx.lanes.lookup |= done;
    slots - done
}

/// As [`simple`], for packets from the VPC (`SOURCE`) or from peers. The result is those that are done with.
#[inline(never)]
fn simple_end<const SOURCE: bool>(
    umem: &Umem,
    nat: &GatewayNat,
    burst: &mut Burst,
    slots: Slots,
    gateway: u16,
) -> Slots {
    let others = Flags::V6 | Flags::FRAGMENT | Flags::ICMP_ERROR | Flags::OPTIONS;
    let asked = others | Flags::HAS_PORTS | Flags::FROM_LOCAL;
    let wanted = Flags::HAS_PORTS.with(Flags::FROM_LOCAL, SOURCE);
    let rules = &nat.v4.local;
    let (mut done, mut changed) = (Slots::NONE, Slots::NONE);
    let mut changes = Changes { addresses: [0; BURST], deltas: [0; BURST] };
    // In two loops: so many rules are asked at once, and what each of the loops works with stays in registers.
    for slot in slots {
        let meta = burst.meta(slot);
        if (meta.gateway != gateway)
            | (meta.flags & asked != wanted)
            | !matches!(meta.proto, protocol::TCP | protocol::UDP)
        {
            continue;
        }
        if SOURCE && meta.dst.is_vpc(nat) {
            done.insert(slot);
            continue;
        }
        let new =
            if SOURCE { rules.translate_source(meta.src) } else { rules.translate_destination(meta.dst) };
        match new {
            None => done.insert(slot),
            // It may be for an outside address, and then goes through once more.
            Some(_) if SOURCE && nat.is_outside(meta.dst) => {}
            Some(new) => {
                changes.put(slot, new.address, new.checksum_delta);
                changed.insert(slot);
            }
        }
    }
    for slot in changed {
        let (bytes, meta) = burst.packet_mut(umem, slot);
        let (address, delta) = changes.of(slot);
        let address_delta = Delta::from_bits(delta);
        let change = Translation { address, port: None, address_delta, port_delta: Delta::NONE };
        if rewrite::end::<SOURCE>(bytes, meta, change).is_some() {
            done.insert(slot);
        }
    }
    done
}

/// The new addresses of a burst's packets, and what they do to a checksum.
struct Changes {
    addresses: [u32; BURST],
    deltas: [u16; BURST],
}

impl Changes {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the arrays' length")]
    const fn put(&mut self, slot: Slot, address: u32, delta: u16) {
        self.addresses[slot.index()] = address;
        self.deltas[slot.index()] = delta;
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the arrays' length")]
    const fn of(&self, slot: Slot) -> (u32, u16) {
        (self.addresses[slot.index()], self.deltas[slot.index()])
    }
}

/// Takes packets through their gateway's rules. The result is those that are to go through again.
fn pass(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots) -> Slots {
    let mut lookups = Lookups::new();
    let mut again = Slots::NONE;
    let (umem, tables) = (cx.umem, cx.tables);
    // A burst is nearly always of one gateway.
    let (mut gateway, mut rules) = (None, None);
    for slot in slots {
        let (bytes, meta) = burst.packet_mut(umem, slot);
        if gateway != Some(meta.gateway) {
            gateway = Some(meta.gateway);
            rules = tables.gateway(meta.gateway).and_then(|gateway| gateway.nat.as_ref());
        }
        let Some(nat) = rules else {
            cx.lanes.lookup.insert(slot);
            continue;
        };
        let next = if meta.is_v6() {
            one_v6(cx, nat, bytes, meta)
        } else if nat.plain && !meta.flags.has(Flags::ICMP_ERROR) {
            plain(nat, bytes, meta)
        } else {
            one(cx, nat, bytes, meta, slot, &mut lookups)
        };
        match next {
            Next::Go => cx.lanes.lookup.insert(slot),
            Next::Wait => {}
            Next::Again => turn(burst, slot, &mut again),
            Next::Hand(worker) => hand(cx, burst, slot, worker),
            Next::Hold(datagram) => fragments::hold(cx, burst, slot, datagram),
            Next::Drop(reason) => burst.drop(slot, reason),
        }
    }
    if !lookups.is_empty() {
        sessions::resolve(cx, burst, &mut lookups, &mut again);
    }
    again
}

/// Makes a packet of the VPC one from a peer.
fn turn(burst: &mut Burst, slot: Slot, again: &mut Slots) {
    let meta = burst.meta_mut(slot);
    // Policies have let it in as what it was.
    meta.flags = meta.flags.without(Flags::FROM_LOCAL) | Flags::ADMITTED;
    again.insert(slot);
}

/// Takes an ICMP error about a packet that came from another gateway back through the rules of this one, before it goes
/// on in the other. Its own source is of that other gateway, and stays. `None`: it cannot be turned back.
pub fn turn_back(cx: &mut Cx<'_>, bytes: &mut [u8], error: &mut Meta) -> Option<()> {
    let tables = cx.tables;
    let Some(nat) = tables.gateway(error.gateway)?.nat.as_ref() else { return Some(()) };
    if error.is_v6() {
        let source = Ipv6::at(bytes, usize::from(error.l3))?.source().to_bits();
        let Next::Go = errors::one_v6(nat, bytes, error) else { return None };
        let header = Ipv6::at(bytes, usize::from(error.l3))?;
        let (changed, destination) = (header.source().to_bits(), header.destination().to_bits());
        rewrite::addresses_v6(bytes, error, source, destination)?;
        return rewrite::after_addresses(bytes, error, Delta::between_u128(changed, source));
    }
    let source = error.src;
    let (Next::Go | Next::Again) = errors::one(cx, nat, bytes, error) else { return None };
    let change = Delta::between_u32(error.src, source);
    rewrite::addresses_v4(bytes, error, source, error.dst, change)
}

/// The interface that a packet came by, where it is known.
fn interface(meta: &Meta) -> Option<u16> {
    (meta.interface != NO_INTERFACE).then_some(meta.interface)
}

/// Hands a packet to another worker.
fn hand(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, worker: u32) {
    let mut meta = *burst.meta(slot);
    meta.hops = meta.hops.saturating_add(1);
    let worker = worker as usize;
    if meta.hops > MAX_HOPS || !cx.nat.links.has_room(worker) {
        burst.drop(slot, DropReason::NatHandoverFull);
        return;
    }
    if let Some(frame) = burst.take(slot)
        && let Err(packet) = cx.nat.links.hand(worker, Handed { frame, meta })
    {
        // Never: there was room.
        cx.counters.drops(interface(&meta), DropReason::NatHandoverFull, 1);
        cx.pool.free(packet.frame);
        return;
    }
    cx.counters.worker(crate::stats::WorkerColumn::HandedOver, 1);
}

/// So many rules stay in the caches near the core by themselves.
const NEAR_RULES: usize = 4096;

/// Starts loading the rules of all packets, where they are many. The first packet speaks for all: a burst is nearly
/// always of one gateway, and of one way through it.
#[inline]
fn fetch(cx: &Cx<'_>, burst: &Burst, slots: Slots) {
    let Some(first) = slots.first().map(|slot| burst.meta(slot)) else { return };
    let nat = cx.tables.gateway(first.gateway).and_then(|gateway| gateway.nat.as_ref());
    let Some(rules) = nat.map(|nat| &nat.v4.local).filter(|rules| rules.len() > NEAR_RULES) else { return };
    if first.flags.has(Flags::FROM_LOCAL) {
        rules.prefetch_sources::<BURST>(slots.into_iter().map(|slot| burst.meta(slot).src));
    } else {
        rules.prefetch_destinations::<BURST>(slots.into_iter().map(|slot| burst.meta(slot).dst));
    }
}

/// What rules ask of a packet beside its addresses.
#[inline]
const fn flow(meta: &Meta) -> Flow {
    let known = meta.flags.has(Flags::HAS_PORTS) || meta.nat.has(NatMarks::PORTS_KNOWN);
    Flow {
        protocol: meta.proto,
        source_port: meta.sport,
        destination_port: meta.dport,
        has_ports: known && !matches!(meta.proto, protocol::ICMPV4 | protocol::ICMPV6),
    }
}

/// One IPv6 packet: 1:1 rules alone.
fn one_v6(cx: &mut Cx<'_>, nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    let fragment = meta.flags.has(Flags::FRAGMENT) && !meta.nat.has(NatMarks::PORTS_KNOWN);
    if fragment
        && nat.needs_ports_v6
        && let Some(next) = fragments::one(cx.nat, bytes, meta, cx.now)
    {
        return next;
    }
    // An error from a host that has no rule may quote a packet of one that has.
    if meta.flags.has(Flags::ICMP_ERROR) {
        return errors::one_v6(nat, bytes, meta);
    }
    if nat.v6.is_empty() {
        return Next::Go;
    }
    let cut = Next::Drop(DropReason::NatUntranslatable);
    let Some(header) = Ipv6::at(bytes, usize::from(meta.l3)) else { return cut };
    let (source, destination) = (header.source().to_bits(), header.destination().to_bits());
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    let new = nat.translate(from_local, source, destination, flow(meta));
    if !new.changed() {
        return Next::Go;
    }
    let done = rewrite::addresses_v6(bytes, meta, new.source, new.destination)
        .and_then(|()| rewrite::after_addresses(bytes, meta, new.delta));
    match done {
        None => cut,
        Some(()) => after(nat, from_local, &new),
    }
}

/// Where a packet goes whose addresses are as they should be.
#[inline]
fn after<A: NatAddress>(nat: &GatewayNat, from_local: bool, new: &Addresses<A>) -> Next {
    let hairpin =
        from_local && new.source_changed && !new.destination_changed && nat.is_outside(new.destination);
    if hairpin { Next::Again } else { Next::Go }
}

/// Notes that the route to a peer's host is the one to what stands for it, where the VPC has such hosts too.
#[inline]
fn note_route(nat: &GatewayNat, meta: &mut Meta, seen: u32, real: u32) {
    if nat.overlapping && real.is_vpc(nat) {
        meta.next_hop = seen;
        meta.nat = meta.nat.with(NatMarks::ROUTE_AS_SEEN);
    }
}

/// Applies what 1:1 rules say of an IPv4 packet.
#[inline]
fn apply(nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta, new: &Addresses<u32>) -> Next {
    if !new.changed() {
        return Next::Go;
    }
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    if from_local && new.destination_changed {
        note_route(nat, meta, meta.dst, new.destination);
    }
    let done = rewrite::addresses_v4(bytes, meta, new.source, new.destination, new.delta)
        .and_then(|()| rewrite::after_addresses(bytes, meta, new.delta));
    match done {
        None => Next::Drop(DropReason::NatUntranslatable),
        Some(()) => after(nat, from_local, new),
    }
}

/// One IPv4 packet of a gateway with nothing but 1:1 rules without conditions: what [`one`] does, with nothing to ask.
#[inline(always)]
fn plain(nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    let rules = &nat.v4;
    if rules.peer.is_empty() {
        return if from_local {
            one_end::<true>(nat, bytes, meta)
        } else {
            one_end::<false>(nat, bytes, meta)
        };
    }
    let (mut source, mut destination, mut delta) = (meta.src, meta.dst, Delta::NONE);
    let mut mapped = false;
    if from_local {
        if destination.is_vpc(nat) {
            return Next::Go;
        }
        if let Some(real) = rules.peer.translate_destination(destination) {
            note_route(nat, meta, destination, real.address);
            (destination, delta) = (real.address, Delta::from_bits(real.checksum_delta));
            mapped = true;
        }
        if let Some(outside) = rules.local.translate_source(source) {
            (source, delta) = (outside.address, delta.combine(Delta::from_bits(outside.checksum_delta)));
        } else if !mapped {
            return Next::Go;
        }
    } else {
        let host = rules.local.translate_destination(destination);
        let inwards = host.is_some() || destination.is_vpc(nat);
        if let Some(host) = host {
            (destination, delta) = (host.address, Delta::from_bits(host.checksum_delta));
        }
        if inwards && let Some(seen) = rules.peer.translate_source(source) {
            (source, delta) = (seen.address, delta.combine(Delta::from_bits(seen.checksum_delta)));
        } else if host.is_none() {
            return Next::Go;
        }
    }
    let hairpin = from_local && !mapped && source != meta.src && nat.is_outside(destination);
    match rewrite::any_ends(bytes, meta, source, destination, delta) {
        None => Next::Drop(DropReason::NatUntranslatable),
        Some(()) if hairpin => Next::Again,
        Some(()) => Next::Go,
    }
}

/// The same where there are rules for the VPC's hosts alone: a packet from there (`SOURCE`) or from a peer.
#[inline(always)]
fn one_end<const SOURCE: bool>(nat: &GatewayNat, bytes: &mut [u8], meta: &mut Meta) -> Next {
    let rules = &nat.v4.local;
    if SOURCE && meta.dst.is_vpc(nat) {
        return Next::Go;
    }
    let new = if SOURCE { rules.translate_source(meta.src) } else { rules.translate_destination(meta.dst) };
    let Some(new) = new else { return Next::Go };
    let delta = Delta::from_bits(new.checksum_delta);
    let change =
        Translation { address: new.address, port: None, address_delta: delta, port_delta: Delta::NONE };
    let hairpin = SOURCE && nat.is_outside(meta.dst);
    let short = meta.flags.has(Flags::HAS_PORTS)
        && !meta.flags.any(Flags::OPTIONS | Flags::FRAGMENT)
        && matches!(meta.proto, protocol::TCP | protocol::UDP);
    let done = if short {
        rewrite::end::<SOURCE>(bytes, meta, change).is_some()
    } else {
        let (source, destination) = if SOURCE { (new.address, meta.dst) } else { (meta.src, new.address) };
        rewrite::any_ends(bytes, meta, source, destination, delta).is_some()
    };
    match done {
        false => Next::Drop(DropReason::NatUntranslatable),
        true if hairpin => Next::Again,
        true => Next::Go,
    }
}

/// One IPv4 packet.
#[inline(always)]
fn one(
    cx: &mut Cx<'_>,
    nat: &GatewayNat,
    bytes: &mut [u8],
    meta: &mut Meta,
    slot: Slot,
    lookups: &mut Lookups,
) -> Next {
    let rules = nat.sessions.as_deref();
    let fragment = meta.flags.has(Flags::FRAGMENT) && !meta.nat.has(NatMarks::PORTS_KNOWN);
    if fragment
        && (rules.is_some() || nat.needs_ports)
        && let Some(next) = fragments::one(cx.nat, bytes, meta, cx.now)
    {
        return next;
    }
    // An error from a host that has no rule may quote a packet of one that has.
    if meta.flags.has(Flags::ICMP_ERROR) {
        return errors::one(cx, nat, bytes, meta);
    }
    if meta.flags.has(Flags::LATER_FRAGMENT)
        && meta.proto == protocol::ICMPV4
        && icmpv4::is_error((meta.dport >> 8) as u8)
    {
        return errors::later(cx, nat, bytes, meta);
    }
    let from_local = meta.flags.has(Flags::FROM_LOCAL);
    let flow = flow(meta);
    let new = nat.translate(from_local, meta.src, meta.dst, flow);
    let Some(rules) = rules else { return apply(nat, bytes, meta, &new) };
    // An address rule goes before one of ports.
    let decided = if from_local { new.source_changed } else { new.destination_changed };
    if decided {
        return apply(nat, bytes, meta, &new);
    }
    let next = if from_local {
        outwards(cx.nat, nat, rules, meta, flow, &new, slot, lookups)
    } else {
        inwards(cx.nat, nat, rules, meta, &new, slot, lookups)
    };
    next.unwrap_or_else(|| apply(nat, bytes, meta, &new))
}

/// The worker that has the sessions of port mappings with a remote end: known from a packet of either direction.
fn mapping_owner(state: &NatState, remote: u32, remote_port: u16) -> u32 {
    let workers = state.links.workers() as u64;
    let Some(tables) = state.tables.as_ref().filter(|_| workers > 1) else { return 0 };
    let hash = (u64::from(remote) << 16 | u64::from(remote_port)).keyed_hash(&tables.seed);
    (((hash >> 32) * workers) >> 32) as u32
}

/// Ports as sessions have them: of an ICMP query its identifier alone. `None`: it can have no session.
#[inline]
const fn session_ports(meta: &Meta, from_host: bool) -> Option<(u16, u16)> {
    match meta.proto {
        protocol::ICMPV4 if icmpv4::is_query((meta.dport >> 8) as u8) => {
            Some(if from_host { (meta.sport, 0) } else { (0, meta.sport) })
        }
        protocol::ICMPV4 => None,
        proto if has_sessions(proto) => Some((meta.sport, meta.dport)),
        _ => None,
    }
}

/// A packet from the VPC that no address rule is for. `None`: no session either.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a packet, and all that is known of it")]
fn outwards(
    state: &mut NatState,
    nat: &GatewayNat,
    rules: &SessionRules,
    meta: &Meta,
    flow: Flow,
    new: &Addresses<u32>,
    slot: Slot,
    lookups: &mut Lookups,
) -> Option<Next> {
    if meta.dst.is_vpc(nat) {
        return None;
    }
    let remote = new.destination;
    let mapped = rules.is_mapped(service(meta.proto, (meta.src, meta.sport)));
    let pool = rules.pool(meta.src, flow, remote).map(|(place, _)| place as u16);
    if !mapped && pool.is_none() {
        return None;
    }
    let Some((port, remote_port)) = session_ports(meta, true) else {
        // A protocol without ports cannot share an address: what has a pool and is none of its protocols stays inside.
        return pool.is_some().then_some(Next::Drop(DropReason::NatUntranslatable));
    };
    let own = state.links.own() as u32;
    let owner = if mapped { mapping_owner(state, remote, remote_port) } else { own };
    if owner != own {
        return Some(Next::Hand(owner));
    }
    let tables = state.tables.as_ref()?;
    let key = Key::new(meta.gateway, meta.proto, (meta.src, port), (remote, remote_port));
    let hash = tables.sessions.hash(key);
    tables.sessions.prefetch(Side::Inside, hash);
    let hairpin = !new.destination_changed && nat.is_outside(remote);
    // There are no more than the burst has packets.
    lookups.push(Lookup {
        slot,
        side: Side::Inside,
        hairpin,
        key,
        hash,
        likely: NOWHERE,
        new: *new,
        may_begin: pool.is_some(),
        pool: pool.unwrap_or_default(),
    });
    Some(Next::Wait)
}

/// A packet from a peer that no address rule is for. `None`: no session either.
#[inline(always)]
fn inwards(
    state: &mut NatState,
    nat: &GatewayNat,
    rules: &SessionRules,
    meta: &Meta,
    new: &Addresses<u32>,
    slot: Slot,
    lookups: &mut Lookups,
) -> Option<Next> {
    let outside = rules.outside(meta.dst)?;
    let nothing = Some(Next::Drop(DropReason::NatNoSession));
    let Some((remote_port, port)) = session_ports(meta, false) else { return nothing };
    let own = state.links.own() as u32;
    let owner = match outside {
        Outside::Pool(place) => {
            let Some(pool) = rules.pools.get(usize::from(place)) else { return nothing };
            pool.ports.owner(port, state.links.workers() as u32)
        }
        Outside::Mappings => mapping_owner(state, meta.src, remote_port),
    };
    if owner != own {
        return Some(Next::Hand(owner));
    }
    let Some(tables) = state.tables.as_ref() else { return nothing };
    let key = Key::new(meta.gateway, meta.proto, (meta.dst, port), (meta.src, remote_port));
    let hash = tables.sessions.hash(key);
    tables.sessions.prefetch(Side::Outside, hash);
    // What comes to a host of the VPC comes from the address that it knows the peer by.
    let seen = if nat.v4.peer.is_empty() { None } else { nat.v4.peer.translate_source(meta.src) };
    let new = seen.map_or(*new, |seen| new.with_source(seen));
    let may_begin = outside == Outside::Mappings;
    // There are no more than the burst has packets.
    lookups.push(Lookup {
        slot,
        side: Side::Outside,
        hairpin: false,
        key,
        hash,
        likely: NOWHERE,
        new,
        may_begin,
        pool: 0,
    });
    Some(Next::Wait)
}
