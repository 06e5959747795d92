//! The steps of the pipeline, one file each.
//!
//! A stage is called once a burst. It takes the packets of one or more [`Lanes`], works on all of them, and puts
//! each into the lane of the step that comes next, or drops it with a reason. The order of the steps is the
//! pipeline's ([`crate::runtime::pipeline`]); a stage knows only its lanes.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod esp_open;
pub mod esp_seal;
pub mod filler;
pub mod fragment;
pub mod icmp_error;
pub mod link;
pub mod local;
pub mod mss;
pub mod mtu;
pub mod nat;
pub mod neighbour;
pub mod next_hop;
pub mod parse;
pub mod path_errors;
pub mod police;
pub mod probe;
pub mod quoted;
pub mod reassemble;
pub mod rewrite;
pub mod route;
pub mod spd;
pub mod vlan_demux;
pub mod way_back;

mod cx;
mod esp_front;
mod event;
mod output;

pub use cx::{Cx, IcmpLimit};
pub use event::{Event, EventQueue, NeighbourClaim};
pub use nat::state::{End, NatState, NatTables, SessionLog, SessionNote};
pub use output::{Entry, Output, Pending, PendingKey, Resumed};

use crate::packet::{Burst, Slots};

/// One step of the pipeline.
pub trait Stage {
    /// The name in counters.
    const NAME: &'static str;

    /// Works on the packets of its lanes.
    fn process(&mut self, cx: &mut Cx<'_>, burst: &mut Burst);
}

/// Which packets of the burst each step is to take: the edges of the pipeline.
///
/// A packet that was dropped may still stand in a lane; whoever takes a lane takes only what is live.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lanes {
    /// Just received.
    pub rx: Slots,
    /// ARP packets.
    pub arp: Slots,
    /// IP packets that may be for the gateway itself.
    pub ip: Slots,
    /// Fragments for one of our addresses.
    pub fragments: Slots,
    /// ESP packets for one of our addresses.
    pub esp: Slots,
    /// Other packets for the gateway itself.
    pub local: Slots,
    /// Packets to be carried on, which enter a gateway.
    pub forward: Slots,
    /// Those of them that came out of a tunnel just now, and that policies have not let in yet.
    pub opened: Slots,
    /// Packets that come from another gateway: by no interface and out of no tunnel.
    pub crossed: Slots,
    /// Packets that come from the VPC, as the limits of gateways have found, and do not go back to it: those for what goes
    /// to it need not ask.
    pub asked: Slots,
    /// Packets that await a decision of the SPD and then of the route table.
    pub lookup: Slots,
    /// Packets whose next hop is chosen.
    pub chosen: Slots,
    /// Packets that are larger than the interface or tunnel they leave by can carry.
    pub too_big: Slots,
    /// Packets that go into a tunnel.
    pub seal: Slots,
    /// Packets that get their link-layer header and go out.
    pub tx: Slots,
}

/// Takes the packets of a lane that are still there, and leaves the lane empty.
#[inline]
pub(crate) fn take(lane: &mut Slots, burst: &Burst) -> Slots {
    std::mem::take(lane) & burst.live()
}
