//! What frames are sent through: a forwarder that only moves frames, a worker with the whole pipeline, or a peer.

use std::{sync::OnceLock, thread, time::Duration};

use af_xdp::{BusyPoll, Device};
use causeway::{
    cli::bench::{
        profile::{Direction, Size, named},
        rig::gateway,
        topology::{LAN, MACS, ROUTERS, Topology, WAN},
        traffic::{Traffic, entrance, readdress},
    },
    control::single::Single,
    io::{
        PacketIo,
        mem::{MemPort, wire},
        xdp::{
            XdpDevice, XdpOptions, XdpPort,
            program::{Attach, Division},
            share,
        },
    },
    packet::{BURST, DropReason, FramePool, FrameQueue, HugePages, Umem},
    runtime::Clock,
};

use super::{
    lab::{Result, processor_time, shell, veth},
    peer::{self, Peer, Process},
};

/// Buffers of each subject: the fill rings of two ports, and what is under way.
const BUFFERS: usize = 16_384;
/// How long this core is left to a peer before we look again. Looking costs it some microseconds.
const LOOK: Duration = Duration::from_millis(5);

static BUSY_POLL: OnceLock<u32> = OnceLock::new();
static DEFER: OnceLock<()> = OnceLock::new();

/// Lets our own ports busy-poll for so many microseconds a call, as `busy_poll` in a configuration does.
pub fn busy_poll(micros: u32) {
    let _ = BUSY_POLL.set(micros);
}

/// Has the kernel hold interrupts of our devices back, for whoever busy-polls.
pub fn defer_interrupts() {
    let _ = DEFER.set(());
}

/// What happens to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It goes from one port to the other as it is: what the ports and the kernel cost.
    Bare,
    /// VLAN to IPv4 to VLAN, 16 routes.
    Forward,
    /// VLAN, 1:1 NAT, SPD, LPM, ESP seal.
    Gateway,
    /// ESP open, SPD, 1:1 NAT, LPM.
    Inbound,
    /// Another program.
    Peer(Peer),
}

impl Kind {
    /// Our own, the one that the others are compared with first.
    pub const OURS: [Self; 4] = [Self::Bare, Self::Forward, Self::Gateway, Self::Inbound];

    /// Ours, and the peers if they are to be measured.
    pub fn all() -> Vec<Self> {
        let peers = Peer::ALL.into_iter().filter(|_| peer::are_wanted()).map(Self::Peer);
        Self::OURS.into_iter().chain(peers).collect()
    }

    /// As it is written in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare forwarder",
            Self::Forward => "pipeline: forward",
            Self::Gateway => "pipeline: gateway",
            Self::Inbound => "pipeline: inbound",
            Self::Peer(peer) => peer.name(),
        }
    }

    /// Number of its devices.
    fn number(self) -> usize {
        Self::all().iter().position(|kind| *kind == self).unwrap_or(0)
    }

    const fn profile(self) -> &'static str {
        match self {
            Self::Bare | Self::Forward | Self::Peer(Peer::Testpmd | Peer::L3fwd) => "forward-16",
            Self::Gateway | Self::Peer(Peer::SecgwOut) => "gateway",
            Self::Inbound | Self::Peer(Peer::SecgwIn) => "gateway-in",
        }
    }

    /// Whether every frame must be one that was never sent before: a replayed one would be dropped.
    pub const fn wants_new_frames(self) -> bool {
        matches!(self, Self::Inbound | Self::Peer(Peer::SecgwIn))
    }
}

/// The frames that go into a subject.
pub struct Frames {
    topology: Topology,
    traffic: Traffic,
    /// Seals what is to be opened.
    peer: Option<Single<MemPort>>,
    tagged: bool,
    clock: Clock,
}

impl Frames {
    /// Those of a kind; `bytes` is the length towards the VPC.
    pub fn new(kind: Kind, bytes: usize) -> Result<Self> {
        let profile = named(kind.profile()).ok_or("no such profile")??;
        let mut topology = Topology::new(&profile);
        let traffic = Traffic::new(&topology, Size::Bytes(bytes as u16));
        let report = |error: miette::Report| format!("{error:?}");
        let peer = (profile.direction == Direction::Open)
            .then(|| -> Result<_> {
                let ports = |_: &mut FramePool| vec![wire(1).0, wire(1).0];
                Ok(gateway(&topology.peer(1024).map_err(report)?, ports)?)
            })
            .transpose()?;
        let tagged = !peer::are_wanted();
        topology.tagged = tagged;
        Ok(Self { topology, traffic, peer, tagged, clock: Clock::new() })
    }

    /// Leaves the VLAN tags out.
    pub fn without_tags(mut self) -> Self {
        self.tagged = false;
        self
    }

    /// Gives the next `count` frames to `take`.
    pub fn each(&mut self, count: usize, mut take: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        if self.tagged {
            return self.each_tagged(count, take);
        }
        self.each_tagged(count, |number, bytes| {
            let mut frame = bytes.to_vec();
            frame.drain(12..16);
            take(number, &frame)
        })
    }

    fn each_tagged(&mut self, count: usize, mut take: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let flows = &self.topology.flows;
        let Some(peer) = &mut self.peer else {
            let mut frame = Vec::new();
            for number in 0..count {
                self.traffic.next(flows, |bytes| frame = bytes.to_vec());
                take(number, &frame)?;
            }
            return Ok(());
        };
        let worker = &mut peer.worker;
        let umem = std::sync::Arc::clone(worker.pool_mut().umem());
        let mut sealed = Vec::new();
        for first in (0..count).step_by(BURST) {
            for _ in first..count.min(first + BURST) {
                let mut frame = worker.pool_mut().alloc().ok_or("the peer has no buffers")?;
                self.traffic.next(flows, |bytes| {
                    let _ = umem.fill(&mut frame, bytes);
                });
                worker.received_mut().push(frame);
            }
            worker.carry(LAN, self.clock.now());
            worker.take_sent(WAN, &mut sealed);
            for (number, mut frame) in (first..).zip(sealed.drain(..)) {
                readdress(umem.bytes_mut(&mut frame), MACS[WAN], ROUTERS[WAN]);
                take(number, umem.bytes(&frame))?;
                worker.pool_mut().free(frame);
            }
        }
        Ok(())
    }
}

/// Where the frames of a subject are, and were.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Taken from the entrance.
    pub received: u64,
    /// Given to the exit.
    pub sent: u64,
    /// Dropped by the pipeline, for any reason.
    pub dropped: u64,
    /// Dropped by the kernel since a ring of ours had no room.
    pub refused: u64,
    /// Calls to make the kernel send.
    pub kicks: u64,
}

enum Engine {
    Bare(Box<Bare>),
    Pipeline(Box<Single<XdpPort>>),
    Peer(Process),
}

struct Bare {
    ports: [XdpPort; 2],
    pool: FramePool,
    queue: FrameQueue,
    received: u64,
    sent: u64,
}

/// Two devices and what is between them.
pub struct Subject {
    /// What happens to frames.
    pub kind: Kind,
    /// What goes in.
    pub frames: Frames,
    /// The far end of the device where frames come in, and of the one where they leave.
    pub far: [String; 2],
    entrance: usize,
    engine: Engine,
    clock: Clock,
    _devices: Vec<XdpDevice>,
}

impl Subject {
    /// Makes devices, opens them, and builds the gateway. `bytes` is the length of a frame towards the VPC. None: it is
    /// a peer that is not to be had.
    pub fn new(kind: Kind, bytes: usize) -> Result<Option<Self>> {
        let frames = Frames::new(kind, bytes)?;
        let names: [String; 2] = std::array::from_fn(|port| format!("gw{}-{port}", kind.number()));
        for name in &names {
            veth(name, &format!("{name}f"))?;
            if DEFER.get().is_some() {
                // The directory of this network namespace is not the one that is mounted.
                shell(&format!(
                    "unshare -m sh -ec 'mount -t sysfs none /sys; cd /sys/class/net/{name}
                     echo 2 >napi_defer_hard_irqs; echo 200000 >gro_flush_timeout'"
                ))?;
            }
        }
        let mut devices = Vec::new();
        let mut ports = |pool: &mut FramePool| -> Result<Vec<XdpPort>> {
            let shared = share(pool.umem())?;
            let mut options =
                XdpOptions { attach: Attach::Native, division: Division::Exclusive, ..Default::default() };
            options.socket.busy_poll = BUSY_POLL.get().map(|micros| BusyPoll { micros: *micros, budget: 64 });
            let mut ports = Vec::new();
            for name in &names {
                let (device, opened) = XdpDevice::open(&shared, name, &options, std::slice::from_mut(pool))?;
                devices.push(device);
                ports.extend(opened);
            }
            Ok(ports)
        };
        let engine = if let Kind::Peer(peer) = kind {
            let Some(process) = Process::start(peer, &names, &frames.topology)? else { return Ok(None) };
            Engine::Peer(process)
        } else if kind == Kind::Bare {
            let mut pools = Umem::new(BUFFERS, 2048, HugePages::Auto)?.into_pools(1);
            let mut pool = pools.pop().ok_or("no frames")?;
            let ports = ports(&mut pool)?.try_into().map_err(|_| "two ports were asked for")?;
            Engine::Bare(Box::new(Bare { ports, pool, queue: FrameQueue::new(), received: 0, sent: 0 }))
        } else {
            let config = frames.topology.gateway(BUFFERS).map_err(|error| format!("{error:?}"))?;
            let mut failed = None;
            let single = gateway(&config, |pool| {
                ports(pool).unwrap_or_else(|error| {
                    failed = Some(error);
                    Vec::new()
                })
            })?;
            failed.map_or(Ok(()), Err)?;
            Engine::Pipeline(Box::new(single))
        };
        let (entrance, exit) = entrance(frames.topology.profile.direction);
        let far = [format!("{}f", names[entrance]), format!("{}f", names[exit])];
        Ok(Some(Self { kind, frames, far, entrance, engine, clock: Clock::new(), _devices: devices }))
    }

    /// The device that frames are to be sent through to come in.
    pub fn source_device(&self) -> Result<Device> {
        Ok(Device::by_name(&self.far[0])?)
    }

    /// One round of what the core has to do: receive a burst, carry it, send it. The result is how much moved.
    pub fn round(&mut self) -> usize {
        match &mut self.engine {
            Engine::Bare(bare) => {
                let Bare { ports: [one, other], pool, queue, received, sent } = &mut **bare;
                let (left, right) = if self.entrance == LAN { (one, other) } else { (other, one) };
                let moved = left.rx_burst(pool, queue, BURST);
                *received += moved as u64;
                *sent += right.tx_burst(pool, queue) as u64;
                left.complete(pool);
                right.complete(pool);
                moved
            }
            Engine::Pipeline(single) => single.worker.round(self.clock.now()),
            Engine::Peer(_) => {
                // It does so by itself, on this core.
                thread::sleep(LOOK);
                0
            }
        }
    }

    /// Lets a peer work, or rest.
    pub fn wake(&mut self, awake: bool) -> Result<()> {
        match &mut self.engine {
            Engine::Peer(process) => process.work(awake),
            _ => Ok(()),
        }
    }

    /// Seconds that what does the work has run.
    pub fn processor_time(&self) -> Result<f64> {
        match &self.engine {
            Engine::Peer(process) => process.processor_time(),
            _ => processor_time(),
        }
    }

    /// Where frames are now; nobody knows that of a peer. Costs system calls.
    pub fn counts(&mut self) -> Option<Counts> {
        let mut counts = Counts::default();
        let ports: &mut [XdpPort] = match &mut self.engine {
            Engine::Bare(bare) => {
                (counts.received, counts.sent) = (bare.received, bare.sent);
                &mut bare.ports
            }
            Engine::Pipeline(single) => {
                let ledger = single.worker.ledger();
                (counts.received, counts.sent, counts.dropped) =
                    (ledger.received, ledger.sent, ledger.dropped);
                single.worker.ports_mut()
            }
            Engine::Peer(_) => return None,
        };
        for stats in ports.iter_mut().map(PacketIo::stats) {
            counts.refused += stats.rx_ring_full + stats.rx_dropped;
            counts.kicks += stats.tx_kicks;
        }
        Some(counts)
    }

    /// Ends it, and strikes the balance: every frame must be home, and every packet accounted for.
    pub fn end(self) -> Result<()> {
        match self.engine {
            Engine::Bare(bare) => {
                let Bare { mut ports, mut pool, .. } = *bare;
                for port in &mut ports {
                    port.shutdown(&mut pool);
                }
                if pool.available() != pool.owned() {
                    return Err(format!("{} frames are missing", pool.owned() - pool.available()).into());
                }
            }
            Engine::Pipeline(mut single) => {
                let worker = &mut single.worker;
                worker.end(self.clock.now());
                let (ledger, missing) = (worker.ledger(), worker.frames_missing());
                let drops = DropReason::ALL.iter().map(|r| (r.name(), worker.counters().read_drops(*r)));
                let drops: Vec<_> = drops.filter(|(_, n)| *n > 0).collect();
                if !ledger.balances() || missing > 0 || !drops.is_empty() {
                    return Err(format!("{ledger:?}, {missing} frames are missing, {drops:?}").into());
                }
            }
            Engine::Peer(mut process) => process.end()?,
        }
        Ok(())
    }
}
