//! Whether a packet fits the way it goes; if not, fragments or an ICMP error (RFC 1191, RFC 8201).

use super::{Cx, Stage, fragment, icmp_error, next_hop::NO_TUNNEL};
use crate::{
    packet::{Burst, DropReason, Flags},
    stage::icmp_error::Problem,
};

/// Checks sizes against the interface or tunnel that each packet leaves by.
#[derive(Debug, Default)]
pub struct Mtu;

impl Stage for Mtu {
    const NAME: &'static str = "mtu";

    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
        for slot in super::take(&mut cx.lanes.leaving, burst) {
            let meta = burst.meta(slot);
            let mtu = if meta.tunnel == NO_TUNNEL {
                cx.lanes.tx.insert(slot);
                cx.tables.interface(meta.egress).map(|i| i.mtu)
            } else {
                cx.lanes.seal.insert(slot);
                cx.tables.tunnel(meta.tunnel).map(|t| t.mtu)
            };
            let Some(mtu) = mtu else {
                burst.drop(slot, DropReason::NoRoute);
                continue;
            };
            if meta.ip_len <= mtu {
                continue;
            }
            if meta.flags.has(Flags::DONT_FRAGMENT) {
                icmp_error::drop_with_error(
                    cx,
                    burst,
                    slot,
                    DropReason::PacketTooBig,
                    Problem::TooBig { mtu },
                );
            } else if fragment::split(cx, burst, slot, mtu).is_none() {
                burst.drop(slot, DropReason::FragmentationFailed);
            }
        }
    }
}
