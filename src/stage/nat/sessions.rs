//! Packets whose session decides: found together, made where they may begin, applied.

use arrayvec::ArrayVec;

use super::{
    NatState, hand, note_route,
    rewrite::{self, Port},
    state::NatTables,
    turn,
};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stage::{Cx, EventQueue},
    stats::{PoolColumn, WorkerCounters},
    table::{
        gateway_nat::{Addresses, Flow, GatewayNat, Pool, SessionRules, service},
        hash::HashKey,
        session::{Claimed, Counted, Key, Kind, NOWHERE, NewSession, PortRange, Tcp, tick},
    },
    wire::{checksum::Delta, icmpv4, ip::protocol},
};

pub use crate::table::session::Side;

/// A packet on its way to its session.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    /// The packet.
    pub slot: Slot,
    /// Which of the session's keys it has.
    pub side: Side,
    /// It is for an outside address: it goes through once more.
    pub hairpin: bool,
    /// The key.
    pub key: Key,
    /// The key's hash.
    pub hash: u64,
    /// Where the session most likely is.
    pub likely: u32,
    /// What 1:1 rules make of the remote end.
    pub new: Addresses<u32>,
    /// Whether a rule lets a session begin with it.
    pub may_begin: bool,
    /// The place of the pool that does, from inside.
    pub pool: u16,
}

/// Pool addresses that are tried for a session: the host's own (RFC 4787 REQ-2: paired), and others when it is full.
const ADDRESSES: u32 = 4;

/// Why there is no session.
enum Refusal {
    Drop(DropReason),
    /// Another worker may have it.
    Ask(u32),
}

/// Resolves the look-ups of a burst, whose buckets are on their way.
pub fn resolve(cx: &mut Cx<'_>, burst: &mut Burst, lookups: &mut ArrayVec<Lookup, BURST>, again: &mut Slots) {
    if let Some(tables) = &cx.nat.tables {
        let (own, workers) = (cx.nat.links.own() as u32, cx.nat.links.workers() as u32);
        let mut begins = 0;
        for lookup in lookups.iter_mut() {
            lookup.likely = tables.sessions.prefetch_likely(lookup.side, lookup.hash);
            if lookup.likely == NOWHERE && lookup.may_begin && lookup.side == Side::Inside {
                let nat = cx.tables.gateway(lookup.key.gateway()).and_then(|g| g.nat.as_ref());
                if let Some(rules) = nat.and_then(|nat| nat.sessions.as_deref()) {
                    prefetch_first(tables, rules, lookup, own, workers);
                    if workers > 1 {
                        tables.claims.prefetch(lookup.hash);
                    }
                    tables.sessions.prefetch_free(begins);
                    begins += 1;
                }
            }
        }
    }
    for lookup in lookups.iter() {
        let (bytes, meta) = burst.packet_mut(cx.umem, lookup.slot);
        let nat = cx.tables.gateway(meta.gateway).and_then(|g| g.nat.as_ref());
        let known = nat.and_then(|nat| Some((nat, nat.sessions.as_deref()?)));
        // They were there when the look-up was noted.
        let Some((nat, rules)) = known else {
            burst.drop(lookup.slot, DropReason::NatNoSession);
            continue;
        };
        let segment = Segment::of(bytes, meta);
        let found = find(cx, nat, rules, lookup).map_or_else(
            || begin(cx.nat, (cx.counters, cx.events), (nat, rules), meta, segment, lookup, cx.now),
            Ok,
        );
        match found.and_then(|id| apply(cx.nat, nat, bytes, meta, segment, lookup, id, cx.now)) {
            Ok(()) if lookup.hairpin => turn(burst, lookup.slot, again),
            Ok(()) => cx.lanes.lookup.insert(lookup.slot),
            Err(Refusal::Drop(reason)) => burst.drop(lookup.slot, reason),
            Err(Refusal::Ask(worker)) => hand(cx, burst, lookup.slot, worker),
        }
    }
}

/// The session of a look-up, if it is there and goes on.
#[inline(always)]
fn find(cx: &mut Cx<'_>, nat: &GatewayNat, rules: &SessionRules, lookup: &Lookup) -> Option<u32> {
    let tables = cx.nat.tables.as_ref()?;
    // Nearly always it is where it most likely is, nothing has changed, and its time is not over.
    let id = lookup.likely;
    if tables.sessions.is(id, lookup.side, lookup.key)
        && let Some(record) = tables.sessions.get(id)
    {
        let (seen, generation) = record.seen();
        let life = rules.time_outs.of(lookup.key.protocol(), record.tcp());
        if generation == nat.generation && tick(cx.now).wrapping_sub(seen) <= life {
            return Some(id);
        }
    }
    find_any(cx, nat, rules, lookup)
}

#[cold]
#[inline(never)]
fn find_any(cx: &mut Cx<'_>, nat: &GatewayNat, rules: &SessionRules, lookup: &Lookup) -> Option<u32> {
    let tables = cx.nat.tables.as_mut()?;
    let id = tables.sessions.find(lookup.side, lookup.hash, lookup.key)?;
    tables.is_valid(cx.counters, id, rules, nat.generation, cx.now).then_some(id)
}

/// What a packet says of its connection.
#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    /// TCP flags, where it has a header.
    flags: Option<u8>,
}

impl Segment {
    #[inline]
    fn of(bytes: &[u8], meta: &Meta) -> Self {
        let has = meta.proto == protocol::TCP && !meta.flags.has(Flags::LATER_FRAGMENT);
        Self { flags: if has { bytes.get(usize::from(meta.l4) + 13).copied() } else { None } }
    }

    const fn is_reset(self) -> bool {
        matches!(self.flags, Some(flags) if flags & 4 != 0)
    }
}

/// Begins a session, where a rule lets it.
#[cold]
#[inline(never)]
fn begin(
    state: &mut NatState,
    (counters, events): (&WorkerCounters, &EventQueue),
    (nat, rules): (&GatewayNat, &SessionRules),
    meta: &Meta,
    segment: Segment,
    lookup: &Lookup,
    now: u64,
) -> Result<u32, Refusal> {
    let nothing = Err(Refusal::Drop(DropReason::NatNoSession));
    let (own, workers) = (state.links.own() as u32, state.links.workers() as u32);
    let inside = lookup.side == Side::Inside;
    let Some(tables) = state.tables.as_mut() else { return nothing };
    // Another worker may have the session: this packet has come another way than the flow's first one.
    let several = inside && workers > 1;
    if several
        && let Some(owner) = tables.claims.owner(lookup.hash)
        && owner != own
        && owner < workers
    {
        return Err(Refusal::Ask(owner));
    }
    // Neither the end of a connection nor what has no header of its own begins anything, nor an answer from inside.
    let answer = meta.proto == protocol::ICMPV4 && !is_request((meta.dport >> 8) as u8);
    if !lookup.may_begin || segment.is_reset() || meta.flags.has(Flags::LATER_FRAGMENT) || inside && answer {
        return nothing;
    }
    let key = lookup.key;
    let host_view = Flow {
        protocol: meta.proto,
        source_port: key.port(),
        destination_port: key.remote_port(),
        has_ports: meta.proto != protocol::ICMPV4,
    };
    let gateway = meta.gateway;
    let (rule, pool, host) = if inside {
        let Some((rule, pool)) = rules.pool(key.address(), host_view, key.remote()) else { return nothing };
        (rule, Some(pool), (key.address(), key.port()))
    } else {
        let service = service(meta.proto, (key.address(), key.port()));
        let Some((rule, mapping)) = rules.mapping(service, host_view.reversed(), key.remote()) else {
            return nothing;
        };
        (rule, None, mapping.original)
    };
    let refuse = |tables: &mut NatTables, address: u32, reason: DropReason| {
        tables.tell(counters, events, now, (gateway, address), reason);
        Err(Refusal::Drop(reason))
    };
    if tables.of_gateway(gateway) >= rules.limit.div_ceil(workers) {
        return refuse(tables, host.0, DropReason::NatTableFull);
    }
    let mut counted = false;
    if let Some(limit) = rules.source_limit {
        match tables.sources.count(gateway, host.0, limit) {
            Counted::Yes => counted = true,
            Counted::NoRoom => {}
            Counted::Limit => return refuse(tables, host.0, DropReason::NatSourceLimit),
        }
    }
    let uncount = |tables: &NatTables| {
        if counted {
            tables.sources.release(gateway, host.0);
        }
    };
    let (inside_key, outside_key) = match pool {
        Some(pool) => {
            let part = pool.ports.part(own, workers);
            let Some(outside) = choose(tables, counters, (nat, rules), pool, part, key, now) else {
                uncount(tables);
                counters.pool(pool.row, PoolColumn::Exhausted, 1);
                return refuse(tables, pool.address(0), DropReason::NatPortsExhausted);
            };
            counters.pool(pool.row, PoolColumn::Made, 1);
            (key, outside)
        }
        None => {
            let inside = key.with_host(host.0, host.1);
            let other = tables.sessions.find(Side::Inside, tables.sessions.hash(inside), inside);
            // Two mappings of one service, or the host itself, use the same remote end.
            if other.is_some_and(|id| tables.is_valid(counters, id, rules, nat.generation, now)) {
                uncount(tables);
                return Err(Refusal::Drop(DropReason::NatConflict));
            }
            (inside, key)
        }
    };
    let claimed = match several.then(|| tables.claims.claim(lookup.hash, own)) {
        Some(Claimed::By(owner)) => {
            uncount(tables);
            return Err(Refusal::Ask(owner));
        }
        Some(Claimed::Own) => true,
        Some(Claimed::NoRoom) | None => false,
    };
    let tcp = segment.flags.map_or(Tcp::default(), |flags| Tcp::default().after(flags, inside));
    let new = NewSession {
        inside: inside_key,
        outside: outside_key,
        kind: if inside { Kind::Pool } else { Kind::Mapping },
        rule,
        generation: nat.generation,
        counted,
        claimed,
        tcp,
        address_delta: Delta::between_u32(inside_key.address(), outside_key.address()).to_bits(),
        port_delta: Delta::between_u16(inside_key.port(), outside_key.port()).to_bits(),
    };
    match tables.sessions.insert(&new, tick(now)) {
        Ok(id) => {
            tables.begun(counters, id, gateway, now);
            Ok(id)
        }
        Err(_) => {
            uncount(tables);
            if new.claimed {
                tables.claims.give_up(lookup.hash, own);
            }
            refuse(tables, host.0, DropReason::NatTableFull)
        }
    }
}

const fn is_request(kind: u8) -> bool {
    matches!(kind, icmpv4::kind::ECHO_REQUEST | icmpv4::kind::TIMESTAMP)
}

/// Where the search for a host's outside address begins, which is the same for all its ports, and for its port's.
#[inline]
fn start(tables: &NatTables, key: Key) -> (u32, u64) {
    let host = u64::from(key.gateway()) << 32 | u64::from(key.address());
    let endpoint = (host, u64::from(key.port()) << 8 | u64::from(key.protocol()));
    ((host.keyed_hash(&tables.seed) >> 32) as u32, endpoint.keyed_hash(&tables.seed))
}

/// Starts loading what [`choose`] will look at first.
fn prefetch_first(tables: &NatTables, rules: &SessionRules, lookup: &Lookup, own: u32, workers: u32) {
    let Some(pool) = rules.pools.get(usize::from(lookup.pool)) else { return };
    let (address_at, random) = start(tables, lookup.key);
    let address = pool.address(address_at % pool.addresses.max(1));
    if let Some(port) = pool.ports.part(own, workers).candidates(lookup.key.port(), random).next() {
        let outside = lookup.key.with_host(address, port);
        tables.sessions.prefetch(Side::Outside, tables.sessions.hash(outside));
    }
}

/// An outside address and port for a host's session: free towards its remote end.
fn choose(
    tables: &mut NatTables,
    counters: &WorkerCounters,
    (nat, rules): (&GatewayNat, &SessionRules),
    pool: &Pool,
    part: PortRange,
    key: Key,
    now: u64,
) -> Option<Key> {
    let (address_at, random) = start(tables, key);
    let (mut tried, mut taken, mut chosen) = (0, 0, None);
    'search: for n in 0..ADDRESSES.min(pool.addresses) {
        let address = pool.address(address_at % pool.addresses.max(1) + n);
        for port in part.candidates(key.port(), random) {
            let outside = key.with_host(address, port);
            tried += 1;
            let hash = tables.sessions.hash(outside);
            let known = tables.sessions.find(Side::Outside, hash, outside);
            if known.is_none_or(|id| !tables.is_valid(counters, id, rules, nat.generation, now)) {
                chosen = Some(outside);
                break 'search;
            }
            taken += 1;
        }
    }
    tables.tried(counters, pool.row, tried, taken);
    chosen
}

/// Makes of a packet what its session says.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a packet, and all that is known of it")]
fn apply(
    state: &mut NatState,
    nat: &GatewayNat,
    bytes: &mut [u8],
    meta: &mut Meta,
    segment: Segment,
    lookup: &Lookup,
    id: u32,
    now: u64,
) -> Result<(), Refusal> {
    let cut = Refusal::Drop(DropReason::NatUntranslatable);
    let Some(record) = state.tables.as_ref().and_then(|tables| tables.sessions.get(id)) else {
        return Err(cut);
    };
    let (address, port) = record.deltas();
    let (address, port) = (Delta::from_bits(address), Delta::from_bits(port));
    let inside = lookup.side == Side::Inside;
    let new = &lookup.new;
    let (address, port, source, destination, to) = if inside {
        let outside = record.outside();
        (address, port, outside.address(), new.destination, Port::Source(outside.port()))
    } else {
        let host = record.inside();
        (address.inverse(), port.inverse(), new.source, host.address(), Port::Destination(host.port()))
    };
    let address = address.combine(new.delta);
    if inside && new.destination_changed {
        note_route(nat, meta, meta.dst, destination);
    }
    let whole = !meta.flags.has(Flags::LATER_FRAGMENT);
    let done = rewrite::addresses_v4(bytes, meta, source, destination, address).and_then(|()| {
        if !whole {
            return Some(());
        }
        rewrite::set_port(meta.proto, rewrite::payload(bytes, meta)?, to, address, port, true)
    });
    if done.is_none() {
        return Err(cut);
    }
    match (meta.proto, to) {
        (protocol::ICMPV4, Port::Source(id) | Port::Destination(id)) | (_, Port::Source(id)) => {
            meta.sport = id
        }
        (_, Port::Destination(port)) => meta.dport = port,
    }
    if let Some(flags) = segment.flags {
        record.set_tcp(record.tcp().after(flags, inside));
    }
    record.touch(tick(now), inside);
    if !new.changed() && !lookup.hairpin {
        record.set_alone(inside);
    }
    Ok(())
}
