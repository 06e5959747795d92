//! Lowers the MSS that TCP connections through a tunnel agree on (RFC 9293 3.7.1): then no segment is too large for it,
//! also where ICMP does not get through.

use super::{Cx, Stage, next_hop::NO_TUNNEL};
use crate::{
    packet::{Burst, Flags, Meta},
    stats::WorkerColumn,
    table::tunnel::{Mss as Clamp, Tunnel},
    wire::{ip::protocol, ipv4, ipv6, tcp},
};

/// Looks at what opens a TCP connection on its way into a tunnel or out of one.
#[derive(Debug, Default)]
pub struct Mss;

impl Stage for Mss {
    const NAME: &'static str = "mss";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in (cx.lanes.tx | cx.lanes.seal | cx.lanes.too_big) & burst.live() {
            let meta = *burst.meta(slot);
            if meta.proto != protocol::TCP || meta.flags.has(Flags::LATER_FRAGMENT) {
                continue;
            }
            let into = cx.tables.tunnel(meta.tunnel).filter(|_| meta.tunnel != NO_TUNNEL);
            let out_of = cx.tables.tunnel(meta.ingress_tunnel).filter(|_| meta.flags.has(Flags::FROM_TUNNEL));
            // From one tunnel into another, both count.
            let limits = [into, out_of].into_iter().flatten().filter_map(|tunnel| limit(tunnel, &meta));
            let Some(most) = limits.min() else { continue };
            let end = usize::from(meta.l3 + meta.ip_len);
            let segment = burst.bytes_mut(cx.umem, slot).get_mut(usize::from(meta.l4)..end);
            if segment.and_then(|segment| tcp::clamp_mss(segment, most)).is_some() {
                cx.counters.worker(WorkerColumn::MssClamped, 1);
            }
        }
    }
}

/// The largest segment that connections through the tunnel may agree on.
#[inline]
fn limit(tunnel: &Tunnel, meta: &Meta) -> Option<u16> {
    let headers = if meta.is_v6() { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN } + tcp::HEADER_LEN;
    match tunnel.mss? {
        Clamp::Fixed(most) => Some(most),
        Clamp::Auto => Some(tunnel.inner_mtu().saturating_sub(headers as u16)),
    }
}
