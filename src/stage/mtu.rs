//! Whether a packet fits the way it goes; if not, fragments or an ICMP error (RFC 1191, RFC 8201, RFC 4301 8.2).

use std::sync::atomic::Ordering;

use super::{Cx, Entry, Stage, fragment, icmp_error, next_hop::NO_TUNNEL};
use crate::{
    packet::{Burst, DropReason, Flags, Meta, Slot},
    stage::icmp_error::Problem,
    table::{
        path::{ALWAYS_FITS, TROUBLE_AGE},
        tunnel::Tunnel,
    },
};

/// Checks sizes against the interface or tunnel that each packet leaves by.
#[derive(Debug, Default)]
pub struct Mtu;

impl Stage for Mtu {
    const NAME: &'static str = "mtu";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        // Once a burst: nearly always no peer is out of reach.
        let reported = cx.tables.trouble.load(Ordering::Relaxed);
        let trouble = reported > 0 && cx.now < reported + TROUBLE_AGE;
        for slot in super::take(&mut cx.lanes.leaving, burst) {
            let meta = burst.meta(slot);
            let tables = cx.tables;
            let (mtu, entry) = if meta.tunnel == NO_TUNNEL {
                cx.lanes.tx.insert(slot);
                (tables.interface(meta.egress).map(|i| i.mtu), Entry::Tx)
            } else {
                cx.lanes.seal.insert(slot);
                let tunnel = tables.tunnel(meta.tunnel);
                if trouble && tunnel.is_some_and(|tunnel| tunnel.path.is_unreachable(cx.now)) {
                    // The packet itself goes on: the report may be wrong, or over (RFC 4301 8.2, RFC 5927 6).
                    icmp_error::tell(cx, burst, slot, Problem::HostUnreachable);
                }
                (tunnel.map(|tunnel| tunnel_mtu(tunnel, burst.meta(slot))), Entry::Seal)
            };
            let Some(mtu) = mtu else {
                burst.drop(slot, DropReason::NoRoute);
                continue;
            };
            let meta = burst.meta(slot);
            if meta.ip_len > mtu {
                oversize(cx, burst, slot, mtu, entry);
            }
        }
    }
}

/// The largest packet like this one that the tunnel takes.
#[inline]
fn tunnel_mtu(tunnel: &Tunnel, meta: &Meta) -> u16 {
    // What was learned of the path is in a cache line of its own, which small packets need not touch.
    if meta.ip_len <= ALWAYS_FITS { tunnel.mtu } else { tunnel.admitted(meta.is_v6()) }
}

/// The packet is larger than `mtu`.
#[cold]
fn oversize(cx: &mut Cx<'_>, burst: &mut Burst, slot: Slot, mtu: u16, entry: Entry) {
    let flags = burst.meta(slot).flags;
    let divided = if flags.has(Flags::ORIGINATED | Flags::V6) {
        // Only its sender divides an IPv6 packet: that is the gateway itself.
        let identification = cx.out.next_identification().into();
        fragment::split_v6(cx, burst, slot, mtu, entry, identification)
    } else if flags.has(Flags::DONT_FRAGMENT) {
        let problem = Problem::TooBig { mtu };
        icmp_error::drop_with_error(cx, burst, slot, DropReason::PacketTooBig, problem);
        return;
    } else {
        fragment::split(cx, burst, slot, mtu, entry)
    };
    if divided.is_none() {
        burst.drop(slot, DropReason::FragmentationFailed);
    }
}
