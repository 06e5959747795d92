//! Where an answer belongs: to the gateway that the packet came into, whichever gateways routes have led it through.
//!
//! In those the packet's source may be the address of somebody else: gateways may have the same addresses. So what this box itself
//! says to a sender, an ICMP error or an echo reply, never looks for its way in a gateway that the sender is not in.

use crate::{
    packet::{Flags, Meta, NO_INTERFACE, NatMarks},
    table::{interface::Side, tables::Tables},
};

/// A gateway, and the side of it that a packet came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayBack {
    /// The gateway's number.
    pub gateway: u16,
    /// The packet came from the VPC's side.
    pub from_local: bool,
}

/// Where the packet came into this box. `None`: what was done to its addresses since cannot be turned back.
#[must_use]
pub fn way_back(tables: &Tables, meta: &Meta) -> Option<WayBack> {
    if !meta.nat.has(NatMarks::CROSSED) {
        return Some(WayBack { gateway: meta.gateway, from_local: meta.flags.has(Flags::FROM_LOCAL) });
    }
    if meta.nat.has(NatMarks::CHANGED_BETWEEN) {
        return None;
    }
    if meta.flags.has(Flags::FROM_TUNNEL) {
        let gateway = tables.tunnel(meta.ingress_tunnel)?.gateway;
        return Some(WayBack { gateway, from_local: false });
    }
    let interface = tables.interface(meta.interface).filter(|_| meta.interface != NO_INTERFACE)?;
    Some(WayBack { gateway: interface.gateway, from_local: interface.side == Side::Local })
}
