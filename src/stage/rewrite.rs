//! Puts the link-layer header in front of each packet and hands it to its port.

use std::net::IpAddr;

use super::{
    Cx, Event, PendingKey, Stage,
    icmp_error::{self, Problem},
    link::{Link, Unready},
    path_errors,
};
use crate::{
    packet::{Burst, DropReason, Frame, Meta, Slot, Slots},
    stats::WorkerColumn,
    table::tables::{NextHop, Tables},
    wire::ipv6::Ipv6,
};

/// Sends packets to the neighbours they were given; those whose neighbour is not known yet wait.
#[derive(Debug, Default)]
pub struct Rewrite;

impl Stage for Rewrite {
    const NAME: &'static str = "rewrite";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let mut slots = super::take(&mut cx.lanes.tx, burst);
        while let Some(first) = slots.first() {
            // In runs of packets that get the same header, which a burst mostly is.
            let meta = burst.meta(first);
            match Link::of(cx, meta.egress, meta.neighbour, meta.is_v6()) {
                Ok(link) => {
                    let umem = cx.umem;
                    let sent = send(cx, burst, slots, link.to(), |frame, meta| {
                        link.is_of(meta) && link.put(umem, frame, meta).is_some()
                    });
                    slots -= if sent.is_empty() { drop_first(cx, burst, slots, link.port) } else { sent };
                }
                Err(unready) => {
                    slots.remove(first);
                    match unready {
                        Unready::Gone => burst.drop(first, DropReason::NoRoute),
                        Unready::Unknown => wait(cx, burst, first),
                        Unready::Silent => silent(cx, burst, first),
                    }
                }
            }
        }
    }
}

/// The neighbour does not answer: the packet's sender is told (RFC 1122 2.3.2.2).
#[cold]
fn silent(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let reason = DropReason::NeighbourUnreachable;
    if let Some(tunnel) = cx.tables.tunnel(burst.meta(slot).tunnel) {
        // Who sent what is sealed cannot be told; those can who send into the tunnel now.
        path_errors::unreachable_peer(cx, tunnel);
        burst.drop(slot, reason);
    } else {
        icmp_error::drop_with_error(cx, burst, slot, reason, Problem::HostUnreachable);
    }
}

/// Hands frames to the port of an interface: those of the packets from the first of `slots` on for which `finish` says that
/// they are ready to go, as many as find room. The result is which these are.
#[inline(always)]
pub(super) fn send(
    cx: &mut Cx<'_>,
    burst: &mut Burst,
    slots: Slots,
    (interface, port): (u16, u16),
    finish: impl FnMut(&mut Frame, &Meta) -> bool,
) -> Slots {
    let Some(queue) = cx.out.ports.get_mut(usize::from(port)) else { return Slots::NONE };
    let (sent, octets) = burst.queue_while(slots, queue, finish);
    if !sent.is_empty() {
        cx.counters.interface_out(interface, sent.len() as u64, octets);
    }
    sent
}

/// Drops the first of `slots`, which could not be sent; the result is which that is.
#[cold]
pub(super) fn drop_first(cx: &Cx<'_>, burst: &mut Burst, slots: Slots, port: u16) -> Slots {
    let reason = match cx.out.ports.get(usize::from(port)) {
        None => DropReason::PortDown,
        Some(queue) if queue.is_full() => DropReason::TxFull,
        Some(_) => DropReason::NoBuffer,
    };
    let first = slots.first().map_or(Slots::NONE, Slots::only);
    first.into_iter().for_each(|slot| burst.drop(slot, reason));
    first
}

/// Hands a whole frame to its port. The result is the frame's length.
pub fn queue(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, port: u16) -> Option<usize> {
    let len = burst.frame(slot).map(Frame::len);
    let queue = cx.out.ports.get_mut(usize::from(port));
    let sent = queue.map_or(Slots::NONE, |queue| burst.queue_while(Slots::only(slot), queue, |_, _| true).0);
    if sent.is_empty() {
        drop_first(cx, burst, Slots::only(slot), port);
    }
    len.filter(|_| !sent.is_empty())
}

/// The neighbour is not known: the packet waits and the control thread is asked.
fn wait(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot) {
    let meta = burst.meta(slot);
    let Some(key) = pending_key(cx.tables, burst.bytes(cx.umem, slot), meta) else {
        burst.drop(slot, DropReason::NoRoute);
        return;
    };
    // One question is enough for all packets that wait for its answer.
    let asked = cx.out.pending.iter().any(|packet| packet.key == key);
    let event = Event::Solicit { interface: key.interface, address: key.address };
    if !asked && cx.events.push(event).is_err() {
        cx.counters.worker(WorkerColumn::EventsLost, 1);
        burst.drop(slot, DropReason::NeighbourEventsFull);
        return;
    }
    cx.out.wait(burst, slot, key, cx.now);
}

/// Whom the packet goes to on its interface's link: the next hop's router, or the destination itself.
fn pending_key(tables: &Tables, bytes: &[u8], meta: &Meta) -> Option<PendingKey> {
    let address = match tables.next_hop(meta.next_hop) {
        Some(NextHop::Via { address, .. }) => address,
        Some(NextHop::Connected { .. }) if meta.is_v6() => {
            IpAddr::V6(Ipv6::at(bytes, usize::from(meta.l3))?.destination())
        }
        Some(NextHop::Connected { .. }) => IpAddr::V4(meta.dst.into()),
        _ => return None,
    };
    Some(PendingKey { interface: meta.egress, address })
}
