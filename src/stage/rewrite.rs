//! Puts the link-layer header in front of each packet and hands it to its port.

use std::net::IpAddr;

use super::{
    Cx, Event, PendingKey, Stage,
    icmp_error::{self, Problem},
    next_hop::{NO_NEIGHBOUR, SILENT_NEIGHBOUR},
    path_errors,
};
use crate::{
    packet::{Burst, DropReason, Frame, Meta, Slot, Slots, Umem},
    stats::WorkerColumn,
    table::{
        neighbour::NeighbourId,
        tables::{NextHop, Tables},
    },
    wire::{ethernet::MacAddr, ipv6::Ipv6, vlan::L2Header},
};

/// Sends packets to the neighbours they were given; those whose neighbour is not known yet wait.
#[derive(Debug, Default)]
pub struct Rewrite;

/// Least bytes of an Ethernet frame, without its FCS (IEEE 802.3 3.2.8).
const MIN_FRAME: usize = 60;

impl Stage for Rewrite {
    const NAME: &'static str = "rewrite";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        let mut slots = super::take(&mut cx.lanes.tx, burst);
        while let Some(first) = slots.first() {
            // In runs of packets that get the same header, which a burst mostly is.
            match Link::of(cx, burst.meta(first)) {
                Ok(link) => slots -= send(cx, burst, slots, &link),
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

/// The way over a link to one neighbour.
struct Link {
    egress: u16,
    neighbour: u32,
    v6: bool,
    port: u16,
    header: L2Header,
}

/// Why a packet cannot be sent now.
enum Unready {
    /// Its interface is no more.
    Gone,
    /// Its neighbour's address is not known yet.
    Unknown,
    /// Its neighbour does not answer.
    Silent,
}

impl Link {
    #[inline]
    fn of(cx: &Cx<'_>, meta: &Meta) -> Result<Self, Unready> {
        let (egress, neighbour, v6) = (meta.egress, meta.neighbour, meta.is_v6());
        let interface = cx.tables.interface(egress).ok_or(Unready::Gone)?;
        let header = if v6 { &interface.header_v6 } else { &interface.header_v4 };
        let mac = match neighbour {
            SILENT_NEIGHBOUR => return Err(Unready::Silent),
            NO_NEIGHBOUR => None,
            bits => {
                let id = NeighbourId::from_bits(bits);
                cx.tables.neighbours.touch(id, cx.now);
                cx.tables.neighbours.mac(id)
            }
        };
        let header = header.with_destination(MacAddr(mac.ok_or(Unready::Unknown)?));
        Ok(Self { egress, neighbour, v6, port: interface.port, header })
    }

    #[inline(always)]
    const fn is_of(&self, meta: &Meta) -> bool {
        meta.egress == self.egress && meta.neighbour == self.neighbour && meta.is_v6() == self.v6
    }
}

/// Writes the header and queues the frame, for the packets from the first of `slots` on that go over this link. The
/// result says which these are.
#[inline]
fn send(cx: &mut Cx<'_>, burst: &mut Burst, slots: Slots, link: &Link) -> Slots {
    let mut ready = Slots::NONE;
    let mut failed = Slots::NONE;
    for slot in slots {
        let (frame, meta) = burst.frame_and_meta(slot);
        if !link.is_of(meta) {
            break;
        }
        let (at, len) = (usize::from(meta.l3), usize::from(meta.ip_len));
        let header = &link.header;
        let Some(frame) =
            frame.and_then(|frame| frame.reframe(at, len, header.header_len()).then_some(frame))
        else {
            failed.insert(slot);
            continue;
        };
        pad(cx.umem, frame);
        header.write(cx.umem.bytes_mut(frame));
        ready.insert(slot);
    }
    failed.into_iter().for_each(|slot| burst.drop(slot, DropReason::NoBuffer));
    let Some(queue) = cx.out.ports.get_mut(usize::from(link.port)) else {
        ready.into_iter().for_each(|slot| burst.drop(slot, DropReason::PortDown));
        return ready | failed;
    };
    let (packets, octets) = burst.queue(ready, queue);
    if packets > 0 {
        cx.counters.interface_out(link.egress, packets, octets);
    }
    ready | failed
}

/// Makes a frame as long as Ethernet asks for.
#[inline]
pub fn pad(umem: &Umem, frame: &mut Frame) {
    let short = MIN_FRAME.saturating_sub(frame.len());
    if short > 0 {
        // Padding is zeros: what stood in the buffer before is nobody's business (RFC 1042).
        let end = frame.len();
        let _ = umem.grow_back(frame, short);
        umem.bytes_mut(frame).get_mut(end..).unwrap_or(&mut []).fill(0);
    }
}

/// Hands a whole frame to its port. The result is the frame's length.
pub fn queue(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, port: u16) -> Option<usize> {
    let Some(queue) = cx.out.ports.get_mut(usize::from(port)) else {
        burst.drop(slot, DropReason::PortDown);
        return None;
    };
    let (packets, octets) = burst.queue(Slots::only(slot), queue);
    (packets > 0).then_some(octets as usize)
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
