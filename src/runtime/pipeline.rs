//! A packet's way, top to bottom: the one place that knows the order of the stages.

use super::Clock;
use crate::{
    packet::{Burst, DropReason},
    stage::{
        Cx, Entry, Stage,
        esp_open::EspOpen,
        esp_seal::EspSeal,
        local::{Local, Serve},
        mss::Mss,
        mtu::Mtu,
        nat::Nat,
        neighbour::Arp,
        next_hop::NextHop,
        parse::Parse,
        path_errors::{PathErrors, Unreachable},
        police::{PoliceIn, PoliceInwards, PoliceOut},
        probe::Probes,
        reassemble::{Reassemble, too_late},
        rewrite::Rewrite,
        route::Route,
        spd::{SpdInbound, SpdOutbound},
    },
    table::limit::{GATEWAYS, WAYS_IN, WAYS_OUT},
};

/// Declares the stages once: field, type; their numbers are their order here.
macro_rules! stages {
    ($($field:ident: $stage:ident = $number:literal,)+) => {
        /// Every stage, with what it keeps between bursts.
        #[derive(Debug, Default)]
        struct Stages { $($field: $stage,)+ }

        /// Names of the stages, by number.
        pub const STAGE_NAMES: &[&str] = &[$($stage::NAME,)+];

        impl Pipeline {
            $(
                #[inline]
                fn $field(&mut self, cx: &mut Cx<'_>, burst: &mut Burst) {
                    timed(&self.timer, &mut self.stages.$field, $number, cx, burst);
                }
            )+
        }
    };
}

stages! {
    parse: Parse = 0,
    arp: Arp = 1,
    local: Local = 2,
    police_in: PoliceIn = 3,
    reassemble: Reassemble = 4,
    path_errors: PathErrors = 5,
    esp_open: EspOpen = 6,
    probes: Probes = 7,
    spd_inbound: SpdInbound = 8,
    serve: Serve = 9,
    nat: Nat = 10,
    police_inwards: PoliceInwards = 11,
    spd: SpdOutbound = 12,
    route: Route = 13,
    next_hop: NextHop = 14,
    mss: Mss = 15,
    police_out: PoliceOut = 16,
    mtu: Mtu = 17,
    unreachable: Unreachable = 18,
    esp_seal: EspSeal = 19,
    rewrite: Rewrite = 20,
}

/// Times that packets of a burst may enter a gateway: out of a tunnel, and into others by routes.
const MAX_PASSES: usize = 16;

/// One burst in so many is timed stage by stage. Reading the clock twice a stage costs 14 × 2 × 8 ns: in every
/// burst 3 ns a packet, in one of 32 a tenth of one.
pub const TIMED: u32 = 32;

/// Reads the clock around stages, in the bursts that are timed.
#[derive(Debug, Default)]
struct Timer {
    clock: Clock,
    running: bool,
}

#[inline]
fn timed<S: Stage>(timer: &Timer, stage: &mut S, number: usize, cx: &mut Cx<'_>, burst: &mut Burst) {
    if !timer.running {
        stage.process(cx, burst);
        return;
    }
    let packets = burst.live().len() as u64;
    let start = timer.clock.ticks();
    stage.process(cx, burst);
    cx.counters.stage(number, packets, timer.clock.ticks() - start);
}

/// The stages of one worker.
#[derive(Debug)]
pub struct Pipeline {
    stages: Stages,
    timer: Timer,
    /// How often a burst is timed: never (0), or one in so many.
    every: u32,
    count: u32,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self::timing_one_in(TIMED)
    }
}

impl Pipeline {
    /// A pipeline that times one burst in `every`; none when that is 0.
    #[must_use]
    pub fn timing_one_in(every: u32) -> Self {
        Self { stages: Stages::default(), timer: Timer::default(), every, count: 0 }
    }

    /// Takes the packets of the burst through the stages from `entry` on. Afterwards every packet has been queued
    /// for a port or the host, waits for a neighbour, goes on in a later burst, or is dropped.
    pub fn run(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, entry: Entry) {
        self.count = if self.count + 1 >= self.every { 0 } else { self.count + 1 };
        self.timer.running = self.every != 0 && self.count == 0;
        match entry {
            Entry::Rx => {
                cx.lanes.rx = burst.live();
                self.stages.esp_open.expect(cx.tables);
                self.parse(cx, burst);
                if !cx.lanes.arp.is_empty() {
                    self.arp(cx, burst);
                }
            }
            Entry::Forward => cx.lanes.forward = burst.live(),
            Entry::Seal => cx.lanes.seal = burst.live(),
            Entry::Tx => cx.lanes.tx = burst.live(),
            Entry::Late => return too_late(cx, burst),
        }
        // What comes from other workers, and what the gateway makes, has been looked at or needs not to be.
        let mut limits = if entry == Entry::Rx { cx.tables.limits.active.bits() } else { 0 };
        for _ in 0..MAX_PASSES {
            if (cx.lanes.ip | cx.lanes.esp | cx.lanes.forward | cx.lanes.local).is_empty() {
                break;
            }
            self.gateway(cx, burst, limits);
            limits = cx.tables.limits.active.bits();
        }
        for slot in (cx.lanes.ip | cx.lanes.forward | cx.lanes.local | cx.lanes.lookup) & burst.live() {
            burst.drop(slot, DropReason::TooManyPasses);
        }
        if matches!(entry, Entry::Rx | Entry::Forward) && cx.tables.limits.active.bits() & WAYS_OUT != 0 {
            self.police_out(cx, burst);
        }
        if !cx.lanes.too_big.is_empty() {
            self.mtu(cx, burst);
        }
        if !cx.lanes.seal.is_empty() && entry != Entry::Seal && Unreachable::is_due(cx) {
            self.unreachable(cx, burst);
        }
        if !cx.lanes.seal.is_empty() {
            self.esp_seal(cx, burst);
        }
        self.rewrite(cx, burst);
    }

    /// What happens to packets in one gateway: from who they are for, to their next hop.
    #[inline]
    fn gateway(&mut self, cx: &mut Cx<'_>, burst: &mut Burst, limits: u8) {
        if !cx.lanes.ip.is_empty() {
            self.local(cx, burst);
        }
        if limits & (WAYS_IN | GATEWAYS) != 0 {
            self.police_in(cx, burst);
        }
        if !cx.lanes.fragments.is_empty() {
            self.reassemble(cx, burst);
        }
        if cx.tables.features.tunnels && !cx.lanes.local.is_empty() {
            self.path_errors(cx, burst);
        }
        if !cx.lanes.esp.is_empty() {
            // What comes out of a tunnel goes on in this pass, or is looked at in the next one, with the tunnel as its way
            // in: where it may be for the gateway itself, or limits are asked.
            self.esp_open(cx, burst);
        }
        let features = cx.tables.features;
        if features.probes && !cx.lanes.local.is_empty() {
            self.probes(cx, burst);
        }
        if (features.policies || features.tunnels) && !(cx.lanes.forward | cx.lanes.local).is_empty() {
            self.spd_inbound(cx, burst);
        }
        if !cx.lanes.local.is_empty() {
            self.serve(cx, burst);
        }
        if features.nat && !cx.lanes.forward.is_empty() {
            self.nat(cx, burst);
        }
        cx.lanes.lookup |= std::mem::take(&mut cx.lanes.forward) & burst.live();
        if cx.tables.limits.active.bits() & GATEWAYS != 0 {
            self.police_inwards(cx, burst);
        }
        if !cx.lanes.lookup.is_empty() {
            if features.policies {
                self.spd(cx, burst);
            }
            self.route(cx, burst);
        }
        if !cx.lanes.chosen.is_empty() {
            self.next_hop(cx, burst);
        }
        if features.clamps {
            self.mss(cx, burst);
        }
    }
}
