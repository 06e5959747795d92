//! Limits: drops what is more than a token bucket has.
//!
//! An interface or tunnel is asked where a packet comes in (`PoliceIn`, before anything is opened) and where it goes out
//! (`PoliceOut`, before anything is sealed). An address of the VPC and then its gateway are asked once for each gateway
//! that a packet goes through: about what comes from the VPC before NAT (`PoliceIn`), about what goes to it behind NAT
//! (`PoliceInwards`), both times by the address that the VPC itself uses. The address goes first: what it may not have
//! is not charged to the gateway, so that one that is flooded takes nothing from the others.
//!
//! Packets in a row with the same owner, as a burst has them, are paid for together. What the gateway itself makes, and
//! what is for it other than ESP, is not asked about: pings, BGP and IKE go on where a limit is reached.

use super::{Cx, Stage, next_hop::NO_TUNNEL};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stats::LimitColumn,
    table::{
        limit::{
            Account, Cell, GATEWAYS, GatewayAddresses, INTERFACES_OUT, Level, Rate, TUNNELS_OUT, Traffic,
            WAYS_IN, Way, hash_v4, key_v4, line, near, word_v4, word_v6,
        },
        prefetch::prefetch_read,
        tables::{NextHop, Tables},
        tunnel::Tunnel,
    },
    wire::{esp, ipv6::Ipv6},
};

/// Asks the limits of interfaces and tunnels about what comes in by them, and those of gateways and their addresses
/// about what comes from the VPC.
#[derive(Debug, Default)]
pub struct PoliceIn;

/// Asks the limits of gateways and their addresses about what goes to the VPC.
#[derive(Debug, Default)]
pub struct PoliceInwards;

/// Asks the limits of interfaces and tunnels about what goes out by them.
#[derive(Debug, Default)]
pub struct PoliceOut;

impl Stage for PoliceIn {
    const NAME: &'static str = "police-in";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let active = cx.tables.limits.active.bits();
        let crossed = std::mem::take(&mut cx.lanes.crossed);
        cx.lanes.asked = Slots::NONE;
        if active & WAYS_IN != 0 {
            let came = (cx.lanes.forward | cx.lanes.esp | cx.lanes.fragments) - crossed;
            ways(cx, burst, came & burst.live(), Way::In, came_by, ip_len);
        }
        if active & GATEWAYS != 0 {
            let from_vpc = |flags: Flags| flags.has(Flags::FROM_LOCAL);
            let asked = gateways(cx, burst, cx.lanes.forward & burst.live(), Way::Out, from_vpc);
            // NAT leads some back to the VPC: they are asked about both ways.
            cx.lanes.asked = if cx.tables.features.nat { Slots::NONE } else { asked };
        }
    }
}

impl Stage for PoliceInwards {
    const NAME: &'static str = "police-inwards";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        // Those that came from the VPC are known already.
        let lookup = (cx.lanes.lookup & burst.live()) - std::mem::take(&mut cx.lanes.asked);
        let to_vpc = |flags: Flags| !flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED);
        gateways(cx, burst, lookup, Way::In, to_vpc);
    }
}

impl Stage for PoliceOut {
    const NAME: &'static str = "police-out";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let not_ours = |slot| !burst.meta(slot).flags.has(Flags::ORIGINATED);
        let leaving = cx.lanes.tx | cx.lanes.seal | cx.lanes.too_big;
        let slots = (leaving & burst.live()).filter(not_ours);
        let active = cx.tables.limits.active.bits();
        if active & TUNNELS_OUT != 0 {
            let sealed = slots.filter(|slot| burst.meta(slot).tunnel != NO_TUNNEL);
            let number = |_: &Tables, meta: &Meta| (Level::Tunnel, meta.tunnel);
            ways(cx, burst, sealed, Way::Out, number, ip_len);
        }
        if active & INTERFACES_OUT != 0 {
            let left = slots & burst.live();
            ways(cx, burst, left, Way::Out, leaves_by, size_on_line);
        }
    }
}

/// What a packet came by.
#[inline(always)]
fn came_by(_: &Tables, meta: &Meta) -> (Level, u16) {
    if meta.flags.has(Flags::FROM_TUNNEL) {
        (Level::Tunnel, meta.ingress_tunnel)
    } else {
        (Level::Interface, meta.interface)
    }
}

/// The interface that a packet leaves by: of what goes into a tunnel, the one that carries the tunnel.
#[inline(always)]
fn leaves_by(tables: &Tables, meta: &Meta) -> (Level, u16) {
    if meta.tunnel == NO_TUNNEL {
        return (Level::Interface, meta.egress);
    }
    match tables.tunnel(meta.tunnel).and_then(|tunnel| tables.outer_way(tunnel.next_hop, meta.tunnel)) {
        Some((_, NextHop::Via { interface, .. })) => (Level::Interface, *interface),
        // Nothing carries it: it is dropped when it is to be sealed.
        _ => (Level::Interface, u16::MAX),
    }
}

/// Bytes of the IP packet on the line, whole.
#[inline(always)]
fn size_on_line(tables: &Tables, meta: &Meta) -> u64 {
    let length = usize::from(meta.ip_len);
    match tables.tunnel(meta.tunnel).filter(|_| meta.tunnel != NO_TUNNEL) {
        Some(tunnel) => sealed_len(tunnel, length) as u64,
        None => length as u64,
    }
}

/// Bytes of a packet of `length` bytes, sealed.
fn sealed_len(tunnel: &Tunnel, length: usize) -> usize {
    let payload = tunnel.padded(length);
    let around = tunnel.outer.header_len() + esp::HEADER_IV_LEN + esp::TRAILER_LEN + esp::ICV_LEN;
    around + payload + esp::padding(payload)
}

/// Packets in a row that have the same owner.
struct Run {
    slots: Slots,
    bytes: u64,
}

impl Run {
    const NONE: Self = Self { slots: Slots::NONE, bytes: 0 };

    #[inline(always)]
    const fn add(&mut self, slot: Slot, bytes: u64) {
        self.slots.insert(slot);
        self.bytes += bytes;
    }
}

/// Asks the limits of interfaces or tunnels, which `owner` names, in one way, about packets of `size` bytes.
#[inline(always)]
fn ways(
    cx: &mut Cx<'_>,
    burst: &mut Burst,
    slots: Slots,
    way: Way,
    owner: impl Fn(&Tables, &Meta) -> (Level, u16),
    size: impl Fn(&Tables, &Meta) -> u64,
) {
    let (mut run, mut of) = (Run::NONE, (Level::Gateway, u16::MAX));
    for slot in slots {
        let meta = burst.meta(slot);
        let next = owner(cx.tables, meta);
        let bytes = size(cx.tables, meta);
        if next != of {
            ask(cx, burst, std::mem::replace(&mut run, Run::NONE), way, of, &size);
            of = next;
        }
        run.add(slot, bytes);
    }
    ask(cx, burst, run, way, of, &size);
}

/// Asks one limit about a run of packets, and counts what became of them.
#[inline(always)]
fn ask(
    cx: &Cx<'_>,
    burst: &mut Burst,
    run: Run,
    way: Way,
    (level, number): (Level, u16),
    size: impl Fn(&Tables, &Meta) -> u64,
) {
    if run.slots.is_empty() {
        return;
    }
    let Some((pair, row)) = cx.tables.limits.of(level, number) else { return };
    let Some(account) = pair.way(way).account(cx.nat.links.own()) else { return };
    let reason = match level {
        Level::Gateway => DropReason::GatewayLimit,
        Level::Interface => DropReason::InterfaceLimit,
        Level::Tunnel => DropReason::TunnelLimit,
    };
    let traffic = charge(cx, burst, &run, account, reason, size);
    let [passed, dropped] = match way {
        Way::In => [LimitColumn::InPackets, LimitColumn::InDropped],
        Way::Out => [LimitColumn::OutPackets, LimitColumn::OutDropped],
    };
    cx.counters.limit(row, passed, traffic.passed_packets, traffic.passed_bytes);
    if traffic.dropped_packets > 0 {
        cx.counters.limit(row, dropped, traffic.dropped_packets, traffic.dropped_bytes);
    }
}

/// Charges a run of packets to an account, and drops those that it does not pay for.
#[inline(always)]
fn charge(
    cx: &Cx<'_>,
    burst: &mut Burst,
    run: &Run,
    mut account: Account<'_>,
    reason: DropReason,
    size: impl Fn(&Tables, &Meta) -> u64,
) -> Traffic {
    let smallest = || run.slots.into_iter().map(|slot| size(cx.tables, burst.meta(slot))).min().unwrap_or(0);
    let packets = run.slots.len() as u64;
    let traffic = if account.pay_all(run.bytes, smallest, cx.now) {
        Traffic { passed_packets: packets, passed_bytes: run.bytes, ..Traffic::default() }
    } else {
        one_by_one(cx, burst, run, &mut account, reason, size)
    };
    account.close();
    traffic
}

/// There is not enough for all: what is there goes to the first.
#[cold]
fn one_by_one(
    cx: &Cx<'_>,
    burst: &mut Burst,
    run: &Run,
    account: &mut Account<'_>,
    reason: DropReason,
    size: impl Fn(&Tables, &Meta) -> u64,
) -> Traffic {
    let mut traffic = Traffic::default();
    for slot in run.slots {
        let bytes = size(cx.tables, burst.meta(slot));
        if account.pay(bytes) {
            traffic.passed_packets += 1;
            traffic.passed_bytes += bytes;
        } else {
            traffic.dropped_packets += 1;
            traffic.dropped_bytes += bytes;
            burst.drop(slot, reason);
        }
    }
    traffic
}

fn ip_len(_: &Tables, meta: &Meta) -> u64 {
    u64::from(meta.ip_len)
}

/// So many cells, and an address's second one is further away than it takes to look at the first.
const FAR_CELLS: usize = 1 << 14;

/// Asks the limits of addresses and then of their gateways about those of `slots` that go `way`, as `is` says by their
/// flags. The result is which they are.
#[inline(always)]
fn gateways(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, way: Way, is: impl Fn(Flags) -> bool) -> Slots {
    let Some(first) = slots.first() else { return Slots::NONE };
    let number = burst.meta(first).gateway;
    let tables = cx.tables;
    let addresses = tables.limits.addresses_of(number);
    let share = addresses.and_then(|addresses| addresses.table.share(cx.nat.links.own()));
    let (Some(addresses), Some(share)) = (addresses, share) else {
        let going = slots.filter(|slot| is(burst.meta(slot).flags));
        if going.into_iter().all(|slot| burst.meta(slot).gateway == number) {
            gateway(cx, burst, going, way, number);
        } else {
            several(cx, burst, going, way);
        }
        return going;
    };
    let (cells, seed) = (share.cells(), addresses.seed);
    let are_far = cells.len() > FAR_CELLS;
    let (mut hashes, mut others, mut flags) = ([0; BURST], 0, Flags::NONE);
    let mut going = Slots::NONE;
    // What is to be read for one packet is on its way while others are looked at.
    for slot in slots {
        let meta = burst.meta(slot);
        if is(meta.flags) {
            going.insert(slot);
            others |= meta.gateway ^ number;
            flags |= meta.flags;
            let hash = hash_v4(address_v4(meta, way), &seed);
            if let Some(place) = hashes.get_mut(slot.index()) {
                *place = hash;
            }
            let Some(cell) = line(cells, hash) else { continue };
            prefetch_read(cell);
            if are_far && let Some(cell) = line(cells, hash ^ 1) {
                prefetch_read(cell);
            }
        }
    }
    if others != 0 {
        several(cx, burst, going, way);
        return going;
    }
    if flags.has(Flags::V6) {
        each_address(cx, burst, going, way, addresses);
    } else {
        each_v4(cx, burst, going, way, (addresses, cells), &hashes);
    }
    gateway(cx, burst, going, way, number);
    going
}

/// Asks the limits of the VPC's addresses about IPv4 packets whose cells were asked for.
#[inline(never)]
fn each_v4(
    cx: &Cx<'_>,
    burst: &mut Burst,
    slots: Slots,
    way: Way,
    (addresses, cells): (&GatewayAddresses, &[Cell]),
    hashes: &[u64; BURST],
) {
    let version = addresses.version();
    if cells.is_empty() {
        return;
    }
    for slot in slots {
        let hash = hashes.get(slot.index()).copied().unwrap_or(0);
        let meta = burst.meta(slot);
        let near = near(cells, hash, word_v4(address_v4(meta, way)));
        let bytes = u64::from(meta.ip_len);
        if !near.is_some_and(|(_, cell)| cell.pass(way, version, bytes)) {
            one_address(cx, burst, slot, way, addresses, version);
        }
    }
}

/// The same about packets that are in several gateways.
#[inline(never)]
fn several(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, way: Way) {
    let mut left = slots;
    while let Some(first) = left.first() {
        let number = burst.meta(first).gateway;
        let same = left.filter(|slot| burst.meta(slot).gateway == number);
        left -= same;
        if let Some(addresses) = cx.tables.limits.addresses_of(number) {
            each_address(cx, burst, same, way, addresses);
        }
        gateway(cx, burst, same, way, number);
    }
}

/// Asks a gateway's own limit, where it has one.
#[inline(always)]
fn gateway(cx: &Cx<'_>, burst: &mut Burst, slots: Slots, way: Way, number: u16) {
    let pair = cx.tables.limits.of(Level::Gateway, number);
    if pair.is_some_and(|(pair, _)| pair.way(way).rate.terms().is_some()) {
        let mut run = Run::NONE;
        for slot in slots & burst.live() {
            run.add(slot, u64::from(burst.meta(slot).ip_len));
        }
        ask(cx, burst, run, way, (Level::Gateway, number), ip_len);
    }
}

/// The VPC's address in an IPv4 packet.
#[inline(always)]
const fn address_v4(meta: &Meta, way: Way) -> u32 {
    match way {
        Way::In => meta.dst,
        Way::Out => meta.src,
    }
}

/// The VPC's address in an IPv6 packet, as a key.
#[inline(never)]
fn key_v6(cx: &Cx<'_>, burst: &Burst, slot: Slot, way: Way) -> u128 {
    let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(burst.meta(slot).l3));
    header.map_or(0, |header| match way {
        Way::In => header.destination().to_bits(),
        Way::Out => header.source().to_bits(),
    })
}

/// Asks the limits of the VPC's addresses, of whichever version of IP: first asks for the cell of each, then charges them.
#[inline(never)]
fn each_address(cx: &Cx<'_>, burst: &mut Burst, slots: Slots, way: Way, addresses: &GatewayAddresses) {
    let Some(share) = addresses.table.share(cx.nat.links.own()) else { return };
    let (version, cells) = (addresses.version(), share.cells());
    let mut hashes = [0; BURST];
    for slot in slots {
        let meta = burst.meta(slot);
        let hash = if meta.is_v6() {
            addresses.hash(key_v6(cx, burst, slot, way))
        } else {
            hash_v4(address_v4(meta, way), &addresses.seed)
        };
        if let Some(cell) = line(cells, hash) {
            prefetch_read(cell);
        }
        if let Some(place) = hashes.get_mut(slot.index()) {
            *place = hash;
        }
    }
    for slot in slots {
        let hash = hashes.get(slot.index()).copied().unwrap_or(0);
        let meta = burst.meta(slot);
        let near = if meta.is_v6() {
            // The cell says whose it likely is, the entry says it for sure.
            let near = near(cells, hash, word_v6(hash));
            near.filter(|(number, _)| addresses.table.is_of(*number, key_v6(cx, burst, slot, way)))
        } else {
            near(cells, hash, word_v4(address_v4(meta, way)))
        };
        let bytes = u64::from(meta.ip_len);
        if !near.is_some_and(|(_, cell)| cell.pass(way, version, bytes)) {
            one_address(cx, burst, slot, way, addresses, version);
        }
    }
}

/// Asks the limit of one address, wherever it stands, and lets it buy what it needs.
#[inline(never)]
fn one_address(
    cx: &Cx<'_>,
    burst: &mut Burst,
    slot: Slot,
    way: Way,
    addresses: &GatewayAddresses,
    version: u32,
) {
    let meta = burst.meta(slot);
    let bytes = u64::from(meta.ip_len);
    let key = if meta.is_v6() { key_v6(cx, burst, slot, way) } else { key_v4(address_v4(meta, way)) };
    let Some(number) = addresses.entry(key) else { return };
    let Some(share) = addresses.table.share(cx.nat.links.own()) else { return };
    let (Some(cell), Some(bucket)) = (share.cell(number), addresses.table.bucket(number, way)) else {
        return;
    };
    if cell.pass(way, version, bytes) {
        return;
    }
    let terms = addresses.rate(cell.class(), way).and_then(Rate::terms);
    if !cell.buy(way, (version, terms), bucket, bytes, cx.now) {
        if let Some(dropped) = share.dropped(number, way) {
            dropped.add(bytes);
        }
        burst.drop(slot, DropReason::AddressLimit);
    }
}
