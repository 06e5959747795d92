//! Puts the link-layer header in front of each packet and hands it to its port.

use std::net::IpAddr;

use super::{
    Cx, Event, PendingKey, Stage,
    icmp_error::{self, Problem},
    next_hop::SILENT_NEIGHBOUR,
    path_errors,
};
use crate::{
    packet::{Burst, DropReason, Frame, Meta, Slot, Umem},
    stats::WorkerColumn,
    table::{
        interface::Interface,
        neighbour::NeighbourId,
        tables::{NextHop, Tables},
    },
    wire::{ethernet::MacAddr, ipv6::Ipv6},
};

/// Sends packets to the neighbours they were given; those whose neighbour is not known yet wait.
#[derive(Debug, Default)]
pub struct Rewrite;

/// Least bytes of an Ethernet frame, without its FCS (IEEE 802.3 3.2.8).
const MIN_FRAME: usize = 60;

impl Stage for Rewrite {
    const NAME: &'static str = "rewrite";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        // Counted in runs of packets that leave by one interface, which a burst mostly is.
        let mut run = Run::default();
        for slot in super::take(&mut cx.lanes.tx, burst) {
            let meta = burst.meta(slot);
            let (egress, neighbour) = (meta.egress, meta.neighbour);
            let Some(interface) = cx.tables.interface(egress) else {
                burst.drop(slot, DropReason::NoRoute);
                continue;
            };
            let Some(mac) = mac(cx, neighbour) else {
                if let (SILENT_NEIGHBOUR, Some(tunnel)) = (neighbour, cx.tables.tunnel(meta.tunnel)) {
                    // Nobody can be told of a sealed packet, but those who send into the tunnel now.
                    path_errors::unreachable_peer(cx, tunnel);
                    burst.drop(slot, DropReason::NeighbourUnreachable);
                } else if neighbour == SILENT_NEIGHBOUR {
                    // Its sender is told (RFC 1122 2.3.2.2).
                    let reason = DropReason::NeighbourUnreachable;
                    icmp_error::drop_with_error(cx, burst, slot, reason, Problem::HostUnreachable);
                } else {
                    wait(cx, burst, slot);
                }
                continue;
            };
            if let Some(len) = send(cx, burst, slot, interface, mac) {
                run.add(cx, egress, len);
            }
        }
        run.flush(cx);
    }
}

/// Packets and bytes out of one interface, not counted yet.
#[derive(Default)]
struct Run {
    interface: u16,
    packets: u64,
    bytes: u64,
}

impl Run {
    #[inline]
    fn add(&mut self, cx: &Cx<'_>, interface: u16, bytes: usize) {
        if interface != self.interface {
            self.flush(cx);
            self.interface = interface;
        }
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    fn flush(&mut self, cx: &Cx<'_>) {
        if self.packets > 0 {
            cx.counters.interface_out(self.interface, self.packets, self.bytes);
        }
        (self.packets, self.bytes) = (0, 0);
    }
}

#[inline]
fn mac(cx: &Cx<'_>, neighbour: u32) -> Option<MacAddr> {
    if neighbour >= SILENT_NEIGHBOUR {
        return None;
    }
    let id = NeighbourId::from_bits(neighbour);
    let mac = cx.tables.neighbours.mac(id)?;
    cx.tables.neighbours.touch(id, cx.now);
    Some(MacAddr(mac))
}

/// Writes the header and queues the frame. The result is the frame's length.
#[inline]
fn send(
    cx: &mut Cx<'_>,
    burst: &mut Burst,
    slot: Slot,
    interface: &Interface,
    mac: MacAddr,
) -> Option<usize> {
    let meta = burst.meta(slot);
    let (at, len) = (usize::from(meta.l3), usize::from(meta.ip_len));
    let header = if meta.is_v6() { &interface.header_v6 } else { &interface.header_v4 };
    let frame = burst.frame_mut(slot)?;
    if !frame.reframe(at, len, header.header_len()) {
        burst.drop(slot, DropReason::NoBuffer);
        return None;
    }
    pad(cx.umem, frame);
    let bytes = cx.umem.bytes_mut(frame);
    header.write(bytes);
    if let Some(destination) = bytes.first_chunk_mut() {
        *destination = mac.0;
    }
    queue(cx, burst, slot, interface.port)
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
#[inline(always)]
pub fn queue(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, port: u16) -> Option<usize> {
    let Some(queue) = cx.out.ports.get_mut(usize::from(port)) else {
        burst.drop(slot, DropReason::PortDown);
        return None;
    };
    if queue.is_full() {
        burst.drop(slot, DropReason::TxFull);
        return None;
    }
    let frame = burst.take(slot)?;
    let len = frame.len();
    queue.push(frame);
    Some(len)
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
