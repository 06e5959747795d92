//! Fragments of datagrams, of which only the first has ports (RFC 4787 11, RFC 5382 REQ-10).
//!
//! All fragments of a datagram go through one worker, which their common fields name; it learns the ports from the
//! first one and gives them to the others, which wait for it where they come first.

use super::{NatState, Next};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, NatMarks, Slot},
    stage::Cx,
    table::session::{Datagram, FragmentPorts},
    wire::{ipv4::Ipv4, ipv6},
};

/// What [`Meta::hops`] of a fragment is from here on, wherever it came in: so all go the same way.
pub const HOPS: u8 = 1;

/// The datagram that a fragment is of, by the addresses that it has now.
pub fn datagram(bytes: &[u8], meta: &Meta) -> Option<Datagram> {
    let packet = bytes.get(usize::from(meta.l3)..)?;
    if !meta.is_v6() {
        let (header, _) = Ipv4::split(packet)?;
        return Some(Datagram::new(meta.gateway, meta.src, meta.dst, header.identification(), meta.proto));
    }
    let packet = ipv6::parse(packet).ok()?;
    let (source, destination) = (packet.header.source().to_bits(), packet.header.destination().to_bits());
    let fragment = packet.walk().ok()?.fragment?;
    Some(Datagram::new_v6(meta.gateway, source, destination, fragment.identification))
}

/// Gives a fragment the ports of its datagram.
pub const fn give_ports(meta: &mut Meta, ports: FragmentPorts) {
    meta.proto = ports.protocol;
    (meta.sport, meta.dport) = (ports.source, ports.destination);
    meta.nat = meta.nat.with(NatMarks::PORTS_KNOWN);
}

/// One fragment whose ports are to be known. `None`: they are, it goes on.
pub fn one(state: &mut NatState, bytes: &[u8], meta: &mut Meta, now: u64) -> Option<Next> {
    let Some(datagram) = datagram(bytes, meta) else {
        return Some(Next::Drop(DropReason::NatUntranslatable));
    };
    let (own, workers) = (state.links.own() as u32, state.links.workers() as u32);
    let tables = state.tables.as_mut()?;
    let owner = datagram.owner(&tables.seed, workers);
    if owner != own {
        return Some(Next::Hand(owner));
    }
    meta.hops = HOPS;
    if !meta.flags.has(Flags::LATER_FRAGMENT) {
        let ports = FragmentPorts { protocol: meta.proto, source: meta.sport, destination: meta.dport };
        tables.fragments.learn(datagram, ports, now);
        meta.nat = meta.nat.with(NatMarks::PORTS_KNOWN);
        return None;
    }
    let Some(ports) = tables.fragments.ports(datagram, now) else { return Some(Next::Hold(datagram)) };
    give_ports(meta, ports);
    None
}

/// Whether all workers have been asked for the session of a packet: each once, in turn.
pub const fn is_asked(meta: &Meta, workers: u32) -> bool {
    let first = if meta.nat.has(NatMarks::PORTS_KNOWN) { HOPS } else { 0 };
    meta.hops.saturating_sub(first) as u32 + 1 >= workers
}

/// Keeps a fragment until its first one comes.
pub fn hold(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, datagram: Datagram) {
    let meta = *burst.meta(slot);
    let Some(tables) = cx.nat.tables.as_mut() else {
        burst.drop(slot, DropReason::NatFragmentsFull);
        return;
    };
    let Some(frame) = burst.take(slot) else { return };
    if let Err(frame) = tables.hold(datagram, frame, meta, cx.now) {
        cx.counters.drops(super::interface(&meta), DropReason::NatFragmentsFull, 1);
        cx.pool.free(frame);
    }
}
