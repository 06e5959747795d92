//! A gateway, its peer where there is one, and the frames that go round between them.

use std::{collections::VecDeque, sync::Arc};

use super::{
    profile::{Direction, Size},
    random::{self, Random},
    topology::{LAN, MACS, ROUTERS, Topology, WAN},
    traffic::{Sent, Traffic, entrance, readdress},
};
use crate::{
    config::{
        Config,
        build::{Built, Ephemeral, Kept},
    },
    control::single::Single,
    io::{
        PacketIo,
        mem::{MemPort, wire},
    },
    packet::{BURST, DropReason, Frame, FramePool},
    runtime::Clock,
    stats::WorkerCounters,
    table::{
        hash::Seed,
        neighbour::NeighbourKey,
        next_hops::Hop,
        rib::{Candidate, Rank, Source},
        tables::NextHop,
    },
};

/// Whether anything is counted: without, there is no ledger to strike a balance of.
pub const COUNTED: bool = cfg!(not(feature = "uncounted"));

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// There is no such gateway here.
    #[error("cannot set up the gateway: {0}")]
    Setup(String),
    /// The gateway does not do what it should, so its speed means nothing.
    #[error("the gateway does not work: {0}")]
    Wrong(String),
}

/// Makes a gateway of a topology over these ports, with all its routes and neighbours.
///
/// # Errors
/// [`RigError::Setup`].
pub fn gateway<P: PacketIo>(
    config: &Config,
    ports: impl FnOnce(&mut FramePool) -> Vec<P>,
) -> Result<Single<P>, RigError> {
    let setup = |error: &dyn std::fmt::Display| RigError::Setup(error.to_string());
    let mut sequences = Ephemeral::default();
    let mut single =
        Single::new(config, &MACS, &mut sequences, SEED, ports).map_err(|error| setup(&error))?;
    know_neighbours(&mut single.kept, &single.built)?;
    Ok(single)
}

/// The fixed seed of all hashes, so that every run does the same work.
pub(super) const SEED: Seed = Seed::new(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

/// Tells a gateway the routers behind its ports.
pub(super) fn know_neighbours(kept: &mut Kept, built: &Built) -> Result<(), RigError> {
    let setup = |error: &dyn std::fmt::Display| RigError::Setup(error.to_string());
    for (port, &number) in built.interfaces.iter().enumerate() {
        // Whoever else is on the link: the router, or the other of the two gateways.
        let far = |own: u8| if own == 1 { 2 } else { 1 };
        for address in &built.tables.interfaces[usize::from(number)].addresses {
            let key = match address.address {
                std::net::IpAddr::V4(a) => {
                    let [x, y, z, own] = a.octets();
                    NeighbourKey::v4(number, u32::from_be_bytes([x, y, z, far(own)]))
                }
                std::net::IpAddr::V6(a) => {
                    let [head @ .., own] = a.octets();
                    let head =
                        u128::from_be_bytes(std::array::from_fn(|i| head.get(i).copied().unwrap_or(0)));
                    NeighbourKey::v6(number, head | u128::from(far(own)))
                }
            };
            kept.neighbours.insert_permanent(&key, ROUTERS[port].0, 0).map_err(|error| setup(&error))?;
        }
    }
    Ok(())
}

/// Puts the routes into the table that are too many for a configuration.
pub(super) fn load_routes(topology: &Topology, kept: &mut Kept, built: &Built) -> Result<(), RigError> {
    let setup = |error: &dyn std::fmt::Display| RigError::Setup(error.to_string());
    let hops = Arc::clone(&built.tables.next_hops);
    let place = |wanted: &dyn Fn(&NextHop) -> bool| {
        hops.iter().find(|(_, hop)| matches!(hop, Hop::One(hop) if wanted(hop))).map(|(number, _)| number)
    };
    let tunnels: Vec<u32> =
        built.tunnels.iter().filter_map(|number| place(&|hop| *hop == NextHop::Tunnel(*number))).collect();
    let wan = built.interfaces.get(WAN).copied();
    let router = place(&|hop| matches!(hop, NextHop::Via { interface, .. } if Some(*interface) == wan));
    let rank = if tunnels.is_empty() { Rank::LINE } else { Rank::TUNNEL };
    let crate::config::build::Routes { gateways, hops, .. } = &mut kept.routes;
    let Some(routes) = gateways.first_mut() else { return Ok(()) };
    for (number, (base, length)) in topology.outside.iter().enumerate() {
        let hop = if tunnels.is_empty() { router } else { tunnels.get(number % tunnels.len()).copied() };
        let hop = hop.ok_or_else(|| RigError::Setup("no next hop for a route".into()))?;
        let route = Candidate { hop, rank, source: Source::Ebgp, priority: 100, weight: 1 };
        routes.v4.add((*base as u32, *length), route).map_err(|error| setup(&error))?;
    }
    routes.publish(hops).map_err(|error| setup(&error))
}

/// A gateway under measurement.
pub struct Rig {
    topology: Topology,
    gateway: Single<MemPort>,
    peer: Option<Single<MemPort>>,
    traffic: Traffic,
    clock: Clock,
    /// Frames with packets in them, in the order in which they go in.
    ready: VecDeque<Frame>,
    /// Frames that came out.
    home: VecDeque<Frame>,
    came_out: Vec<Frame>,
    /// What it costs to read the clock, in ticks.
    overhead: u64,
}

impl Rig {
    /// A gateway as the topology says, with `frames` frames that go round.
    ///
    /// # Errors
    /// [`RigError::Setup`].
    pub fn new(topology: Topology, size: Size, frames: usize) -> Result<Self, RigError> {
        let setup = |error: miette::Report| RigError::Setup(format!("{error:?}"));
        let ports = |_: &mut FramePool| vec![wire(1).0, wire(1).0];
        let config = topology.gateway(2 * frames).map_err(setup)?;
        let mut single = gateway(&config, ports)?;
        if !topology.routes_are_configured() {
            load_routes(&topology, &mut single.kept, &single.built)?;
        }
        single.worker.set_timing(0);
        let peer = if topology.profile.direction == Direction::Forward {
            None
        } else {
            let mut peer = gateway(&topology.peer(1024).map_err(setup)?, ports)?;
            peer.worker.set_timing(0);
            Some(peer)
        };
        let home: VecDeque<Frame> = (0..frames).map_while(|_| single.worker.pool_mut().alloc()).collect();
        let clock = Clock::new();
        let overhead = clock_overhead(&clock);
        let traffic = Traffic::new(&topology, size);
        Ok(Self {
            topology,
            gateway: single,
            peer,
            traffic,
            clock,
            ready: VecDeque::with_capacity(frames),
            home,
            came_out: Vec::with_capacity(2 * BURST),
            overhead,
        })
    }

    /// Lets the frames go round in any order of their addresses, as after some time of operation.
    pub fn shuffle(&mut self) {
        Random::new(random::BUFFERS).shuffle(self.home.make_contiguous());
    }

    /// Goes on with frames of another size.
    pub fn resize(&mut self, size: Size) {
        self.traffic = Traffic::new(&self.topology, size);
    }

    /// The packets that go in.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The gateway under measurement.
    pub const fn gateway_mut(&mut self) -> &mut Single<MemPort> {
        &mut self.gateway
    }

    /// The clock that everything is measured with.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What it costs to read the clock, in ticks.
    #[must_use]
    pub const fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Starts again from the first packet.
    pub fn restart(&mut self) {
        self.traffic.restart();
    }

    /// Packets that wait to go in.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Sends a packet of each flow, in order, in bursts of `burst`. The result is the ticks of all of them: what it
    /// takes to make a session, where each flow has one.
    ///
    /// # Errors
    /// [`RigError::Wrong`].
    pub fn establish(&mut self, burst: usize) -> Result<u64, RigError> {
        let umem = Arc::clone(self.gateway.worker.pool_mut().umem());
        let (mut flow, mut ticks) = (0, 0);
        while flow < self.topology.flows.len() {
            while flow < self.topology.flows.len()
                && let Some(mut frame) = self.home.pop_front()
            {
                self.traffic.of(&self.topology.flows, flow, |bytes| {
                    let _ = umem.fill(&mut frame, bytes);
                });
                self.ready.push_back(frame);
                flow += 1;
            }
            while self.ready() > 0 {
                ticks += self.burst(burst)?;
            }
        }
        self.restart();
        Ok(ticks)
    }

    /// Flows.
    #[must_use]
    pub const fn flows(&self) -> usize {
        self.topology.flows.len()
    }

    /// Fills all frames with the next packets. The result says what they are.
    ///
    /// # Errors
    /// [`RigError::Wrong`]: the peer does not seal.
    pub fn prepare(&mut self, mut note: impl FnMut(Sent)) -> Result<(), RigError> {
        let umem = Arc::clone(self.gateway.worker.pool_mut().umem());
        if self.topology.profile.direction != Direction::Open {
            while let Some(mut frame) = self.home.pop_front() {
                let sent = self.traffic.next(&self.topology.flows, |bytes| {
                    let _ = umem.fill(&mut frame, bytes);
                });
                note(sent);
                self.ready.push_back(frame);
            }
            return Ok(());
        }
        let Some(peer) = &mut self.peer else { return Ok(()) };
        let of_peer = Arc::clone(peer.worker.pool_mut().umem());
        while !self.home.is_empty() {
            let n = self.home.len().min(BURST);
            for _ in 0..n {
                let Some(mut frame) = peer.worker.pool_mut().alloc() else { break };
                note(self.traffic.next(&self.topology.flows, |bytes| {
                    let _ = of_peer.fill(&mut frame, bytes);
                }));
                peer.worker.received_mut().push(frame);
            }
            peer.worker.carry(LAN, self.clock.now());
            peer.worker.take_sent(WAN, &mut self.came_out);
            if self.came_out.len() != n {
                return Err(RigError::Wrong(format!(
                    "the peer sealed not all packets: {}",
                    drops(peer.worker.counters())
                )));
            }
            for mut sealed in self.came_out.drain(..) {
                readdress(of_peer.bytes_mut(&mut sealed), MACS[WAN], ROUTERS[WAN]);
                if let Some(mut frame) = self.home.pop_front() {
                    let _ = umem.fill(&mut frame, of_peer.bytes(&sealed));
                    self.ready.push_back(frame);
                }
                peer.worker.pool_mut().free(sealed);
            }
        }
        Ok(())
    }

    /// Takes the next `n` packets through the gateway; more than a worker takes at once in several bursts. The result is
    /// the ticks from the received frames to the frames queued for their port, the reading of the clock not counted.
    ///
    /// # Errors
    /// [`RigError::Wrong`]: not all came out.
    #[inline]
    pub fn burst(&mut self, n: usize) -> Result<u64, RigError> {
        let (mut left, mut ticks) = (n, 0);
        while left > BURST && self.ready.len() > BURST {
            ticks += self.one_burst(BURST)?;
            left -= BURST;
        }
        Ok(ticks + self.one_burst(left)?)
    }

    #[inline]
    fn one_burst(&mut self, n: usize) -> Result<u64, RigError> {
        let (entrance, exit) = entrance(self.topology.profile.direction);
        let worker = &mut self.gateway.worker;
        let n = n.min(self.ready.len()).min(BURST);
        worker.received_mut().extend(self.ready.drain(..n));
        let now = self.clock.now();
        let start = self.clock.ticks();
        worker.carry(entrance, now);
        let ticks = self.clock.ticks().saturating_sub(start);
        worker.take_sent(exit, &mut self.came_out);
        if self.came_out.len() != n {
            let out = self.came_out.len();
            return Err(RigError::Wrong(format!(
                "of {n} packets {out} came out: {}",
                drops(self.gateway.worker.counters())
            )));
        }
        self.home.extend(self.came_out.drain(..));
        Ok(ticks.saturating_sub(self.overhead))
    }

    /// Takes one round of packets through the gateway, and what was sealed through the peer, and compares every one
    /// with what it should be.
    ///
    /// # Errors
    /// [`RigError::Wrong`].
    pub fn validate(&mut self) -> Result<(), RigError> {
        self.restart();
        let mut sent = Vec::new();
        self.prepare(|packet| sent.push(packet))?;
        let mut sent = sent.into_iter();
        let umem = Arc::clone(self.gateway.worker.pool_mut().umem());
        let (_, exit) = entrance(self.topology.profile.direction);
        while self.ready() > 0 {
            let n = self.ready().min(BURST);
            let before = self.home.len();
            self.burst(n)?;
            let frames =
                self.home.range(before..).map(|frame| umem.bytes(frame).to_vec()).collect::<Vec<_>>();
            let (frames, out, hops) = match (self.topology.profile.direction, &mut self.peer) {
                (Direction::Seal, Some(peer)) => (unsealed(peer, frames, &self.clock)?, LAN, 2),
                (Direction::Open, _) => (frames, exit, 2),
                _ => (frames, exit, 1),
            };
            for (frame, packet) in frames.iter().zip(sent.by_ref()) {
                self.traffic
                    .check(frame, packet, &self.topology.flows, out, hops)
                    .map_err(|error| RigError::Wrong(format!("a packet came out wrong: {error}")))?;
            }
        }
        self.restart();
        Ok(())
    }

    /// Ends the gateway and strikes the balance.
    ///
    /// # Errors
    /// [`RigError::Wrong`]: packets or frames are not accounted for, or were dropped.
    pub fn end(mut self) -> Result<(), RigError> {
        let worker = &mut self.gateway.worker;
        for frame in self.ready.drain(..).chain(self.home.drain(..)) {
            worker.pool_mut().free(frame);
        }
        worker.end(self.clock.now());
        let (ledger, missing) = (worker.ledger(), worker.frames_missing());
        let whole = ledger.balances() && ledger.dropped == 0 && ledger.sent == ledger.received;
        if COUNTED && !whole || missing > 0 {
            return Err(RigError::Wrong(format!("the ledger is {ledger:?}, {missing} frames are missing")));
        }
        Ok(())
    }
}

/// Takes sealed frames through the peer.
pub(super) fn unsealed(
    peer: &mut Single<MemPort>,
    frames: Vec<Vec<u8>>,
    clock: &Clock,
) -> Result<Vec<Vec<u8>>, RigError> {
    let n = frames.len();
    for mut bytes in frames {
        readdress(&mut bytes, MACS[WAN], ROUTERS[WAN]);
        let frame = peer.worker.pool_mut().alloc_with(&bytes);
        peer.worker.received_mut().extend(frame);
    }
    peer.worker.carry(WAN, clock.now());
    let mut out = Vec::new();
    peer.worker.take_sent(LAN, &mut out);
    if out.len() != n {
        let opened = out.len();
        return Err(RigError::Wrong(format!(
            "the peer opened {opened} of {n} packets: {}",
            drops(peer.worker.counters())
        )));
    }
    let umem = Arc::clone(peer.worker.pool_mut().umem());
    let bytes = out.iter().map(|frame| umem.bytes(frame).to_vec()).collect();
    out.into_iter().for_each(|frame| peer.worker.pool_mut().free(frame));
    Ok(bytes)
}

/// What a worker dropped, and why.
pub(super) fn drops(counters: &WorkerCounters) -> String {
    let reasons = DropReason::ALL.iter().map(|reason| (reason.name(), counters.read_drops(*reason)));
    let list: Vec<String> = reasons.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
    if list.is_empty() { "none was dropped".into() } else { list.join(", ") }
}

/// What two readings of the clock are apart at least, in ticks: the median of many.
fn clock_overhead(clock: &Clock) -> u64 {
    let mut all: Vec<u64> = (0..10_001)
        .map(|_| {
            let start = clock.ticks();
            clock.ticks() - start
        })
        .collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::profile::{Profile, named};

    #[test]
    fn packets_of_every_kind_of_profile_go_through() {
        for name in [
            "forward-16",
            "forward-ecmp",
            "v6-forward",
            "nat-1to1",
            "nat-pool-1k",
            "seal-1024",
            "seal-standby",
            "open-1024",
            "spd-100",
            "gateway",
            "gateway-in",
        ] {
            let profile: Profile = named(name).unwrap().unwrap();
            for size in profile.sizes.clone() {
                let mut rig = Rig::new(Topology::new(&profile), size, 256).unwrap();
                rig.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
                rig.end().unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }

    #[test]
    fn the_longest_frames_go_through_and_more_wait_than_a_burst_holds() {
        use crate::cli::bench::profile::LARGEST;
        for name in ["gateway", "gateway-in"] {
            let mut profile: Profile = named(name).unwrap().unwrap();
            profile.sizes = vec![Size::Bytes(LARGEST)];
            let mut rig = Rig::new(Topology::new(&profile), Size::Bytes(LARGEST), 256).unwrap();
            rig.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
            rig.prepare(|_| ()).unwrap();
            rig.burst(200).unwrap();
            assert_eq!(rig.ready(), 56);
            rig.burst(200).unwrap();
            assert_eq!(rig.ready(), 0);
            rig.end().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn a_gateway_that_drops_or_errs_is_not_measured() {
        let profile: Profile = named("gateway").unwrap().unwrap();
        let rig = |change: fn(&mut Topology)| {
            let topology = Topology::new(&profile);
            let mut rig = Rig::new(topology, Size::Bytes(64), 256).unwrap();
            change(&mut rig.topology);
            rig.validate()
        };
        assert!(rig(|_| ()).is_ok());
        // A destination that no route leads to.
        let dropped = rig(|topology| topology.flows.iter_mut().for_each(|flow| flow.outside = 0x0808_0808));
        assert!(dropped.unwrap_err().to_string().contains("of 64 packets 0 came out"));
        // Another translation than the one configured.
        let wrong = rig(|topology| topology.flows.iter_mut().for_each(|flow| flow.appears += 1));
        assert!(wrong.unwrap_err().to_string().contains("came out wrong"));
    }
}
