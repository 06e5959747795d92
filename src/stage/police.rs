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

use arrayvec::ArrayVec;

use super::{Cx, Stage, next_hop::NO_TUNNEL};
use crate::{
    packet::{BURST, Burst, DropReason, Flags, Meta, Slot, Slots},
    stats::LimitColumn,
    table::{
        limit::{
            Account, Cell, GATEWAYS, GatewayAddresses, INTERFACES_OUT, Level, Rate, TUNNELS_OUT, Traffic,
            WAYS_IN, Way, key_v4,
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
        if active & WAYS_IN != 0 {
            let came = (cx.lanes.forward | cx.lanes.esp | cx.lanes.fragments) - crossed;
            ways(cx, burst, came & burst.live(), Way::In, came_by, ip_len);
        }
        if active & GATEWAYS != 0 {
            let from_vpc = |slot| burst.meta(slot).flags.has(Flags::FROM_LOCAL);
            let slots = (cx.lanes.forward & burst.live()).filter(from_vpc);
            gateways(cx, burst, slots, Way::Out);
        }
    }
}

impl Stage for PoliceInwards {
    const NAME: &'static str = "police-inwards";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let to_vpc = |slot| !burst.meta(slot).flags.any(Flags::FROM_LOCAL | Flags::ORIGINATED);
        let slots = (cx.lanes.lookup & burst.live()).filter(to_vpc);
        gateways(cx, burst, slots, Way::In);
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
    let hop = tables.tunnel(meta.tunnel).and_then(|tunnel| tunnel.next_hop);
    match hop.and_then(|hop| tables.outer_way(hop, meta.tunnel)) {
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

/// Asks the limits of addresses and then of their gateways about packets that go one way.
fn gateways(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, way: Way) {
    let mut left = slots;
    while let Some(first) = left.first() {
        let number = burst.meta(first).gateway;
        let same = left.filter(|slot| burst.meta(slot).gateway == number);
        left -= same;
        let tables = cx.tables;
        if let Some(addresses) = tables.limits.addresses_of(number) {
            each_address(cx, burst, same, way, addresses);
        }
        let mut run = Run::NONE;
        for slot in same & burst.live() {
            run.add(slot, u64::from(burst.meta(slot).ip_len));
        }
        ask(cx, burst, run, way, (Level::Gateway, number), ip_len);
    }
}

/// So many addresses stay in the caches near the core by themselves.
const NEAR_ADDRESSES: usize = 4096;

/// The VPC's address in a packet, as a key.
#[inline(always)]
fn address(cx: &Cx<'_>, burst: &Burst, slot: Slot, way: Way) -> u128 {
    let meta = burst.meta(slot);
    if meta.is_v6() {
        let header = Ipv6::at(burst.bytes(cx.umem, slot), usize::from(meta.l3));
        header.map_or(0, |header| match way {
            Way::In => header.destination().to_bits(),
            Way::Out => header.source().to_bits(),
        })
    } else {
        key_v4(if way == Way::In { meta.dst } else { meta.src })
    }
}

/// In place of an entry's number: the address is not of the VPC.
const NOBODY: u32 = u32::MAX;

/// Asks the limits of the VPC's addresses: first finds all of them, then charges them, so that what is looked up for one
/// packet is on its way while another one's is looked at.
fn each_address(cx: &Cx<'_>, burst: &mut Burst, slots: Slots, way: Way, addresses: &GatewayAddresses) {
    let Some(cells) = addresses.table.cells(cx.nat.links.own()) else { return };
    if addresses.table.len() > NEAR_ADDRESSES {
        for slot in slots {
            if let Some(line) = addresses.table.line(addresses.hash(address(cx, burst, slot, way))) {
                prefetch_read(line);
            }
        }
    }
    let mut entries: ArrayVec<u32, BURST> = ArrayVec::new();
    for slot in slots {
        let key = address(cx, burst, slot, way);
        let entry = addresses.entry(key, addresses.hash(key)).map_or(NOBODY, |entry| entry as u32);
        if let Some([inwards, outwards]) = cells.get(entry as usize) {
            prefetch_read(if way == Way::In { inwards } else { outwards });
        }
        // As many as slots, so there is room.
        let _ = entries.try_push(entry);
    }
    for (slot, entry) in slots.into_iter().zip(entries) {
        let Some([inwards, outwards]) = cells.get(entry as usize) else { continue };
        let cell = if way == Way::In { inwards } else { outwards };
        let bytes = u64::from(burst.meta(slot).ip_len);
        if pays(cx, addresses, entry, way, cell, bytes) {
            cell.count(Traffic { passed_packets: 1, passed_bytes: bytes, ..Traffic::default() });
        } else {
            cell.count(Traffic { dropped_packets: 1, dropped_bytes: bytes, ..Traffic::default() });
            burst.drop(slot, DropReason::AddressLimit);
        }
    }
}

/// Whether an address has enough for a packet.
#[inline(always)]
fn pays(cx: &Cx<'_>, addresses: &GatewayAddresses, entry: u32, way: Way, cell: &Cell, bytes: u64) -> bool {
    let Some(terms) = addresses.rate(cell.class(), way).and_then(Rate::terms) else { return true };
    let Some(bucket) = addresses.table.bucket(entry as usize, way) else { return true };
    let mut account = Account::open(terms, bucket, &cell.purse);
    let enough = account.pay_all(bytes, || bytes, cx.now);
    account.close();
    enough
}
