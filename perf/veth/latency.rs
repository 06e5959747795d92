//! How long a lone packet takes from one far end to the other.
//!
//! A prober on the source's core sends one frame through an AF_XDP socket at one far end, polls another at the other
//! far end until it comes, and waits before the next. The way there and back is the same for all: what stands between
//! the two differs, a worker on our core or the kernel's own forwarding.

use std::{
    hint,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use causeway::{
    cli::bench::topology::{MACS, ROUTERS},
    io::{
        PacketIo,
        xdp::{
            XdpDevice, XdpOptions, XdpPort,
            program::{Attach, Division},
            share,
        },
    },
    packet::{FramePool, FrameQueue, HugePages, Umem},
    runtime::Clock,
};
use hdrhistogram::Histogram;

use super::{
    contest::{Setting, settings},
    lab::{Result, SOURCE_CORE, pin, shell, veth},
    subject::{Frames, Kind, Subject},
    trial::PEER_START,
};

/// Packets of each turn, and turns.
const PACKETS: usize = 5_000;
const TURNS: usize = 20;
/// Between two packets, so that each is alone, in ns.
const GAP: u64 = 10_000;
/// A packet that takes longer, in ns, is lost.
const LOST: u64 = 20_000_000;
/// Between two turns others get the processor.
const PAUSE: Duration = Duration::from_millis(60);

/// Sends packets and waits for them.
struct Prober {
    ports: [XdpPort; 2],
    pool: FramePool,
    clock: Clock,
    histogram: Histogram<u64>,
    _devices: Vec<XdpDevice>,
}

impl Prober {
    fn new(far: &[String; 2]) -> Result<Self> {
        let mut pools = Umem::new(8192, 2048, HugePages::Auto)?.into_pools(1);
        let mut pool = pools.pop().ok_or("no frames")?;
        let shared = share(pool.umem())?;
        let mut options =
            XdpOptions { attach: Attach::Native, division: Division::Exclusive, ..Default::default() };
        options.socket.fill_size = 1024;
        let (mut devices, mut ports) = (Vec::new(), Vec::new());
        for name in far {
            let (device, opened) = XdpDevice::open(&shared, name, &options, std::slice::from_mut(&mut pool))?;
            devices.push(device);
            ports.extend(opened);
        }
        let ports = ports.try_into().map_err(|_| "two ports were asked for")?;
        let histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3)?;
        Ok(Self { ports, pool, clock: Clock::new(), histogram, _devices: devices })
    }

    /// Waits until a peer lets a frame through.
    fn wait(&mut self, frame: &[u8]) -> Result<()> {
        let Self { ports: [to, from], pool, .. } = self;
        let (mut queue, mut came) = (FrameQueue::new(), FrameQueue::new());
        let since = Instant::now();
        while from.rx_burst(pool, &mut came, 1) == 0 {
            if since.elapsed() > PEER_START {
                return Err("no frame comes through".into());
            }
            queue.push(pool.alloc_with(frame).ok_or("the prober has no buffers")?);
            to.tx_burst(pool, &mut queue);
            thread::sleep(PAUSE);
            to.complete(pool);
        }
        came.drain(..).for_each(|frame| pool.free(frame));
        // What was on its way.
        thread::sleep(PAUSE);
        while from.rx_burst(pool, &mut came, 64) > 0 {
            came.drain(..).for_each(|frame| pool.free(frame));
            from.complete(pool);
        }
        Ok(())
    }

    /// Sends these frames one by one.
    fn probe(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        let Self { ports: [to, from], pool, clock, histogram, .. } = self;
        let (mut queue, mut came) = (FrameQueue::new(), FrameQueue::new());
        for bytes in frames {
            let until = clock.now() + GAP;
            while clock.now() < until {
                hint::spin_loop();
            }
            queue.push(pool.alloc_with(bytes).ok_or("the prober has no buffers")?);
            let start = clock.ticks();
            to.tx_burst(pool, &mut queue);
            let taken = loop {
                let n = from.rx_burst(pool, &mut came, 1);
                let taken = clock.nanoseconds(start, clock.ticks());
                if n > 0 {
                    break taken;
                }
                if taken > LOST {
                    return Err("a lone packet did not come through".into());
                }
            };
            histogram.record(taken)?;
            came.drain(..).for_each(|frame| pool.free(frame));
            to.complete(pool);
            from.complete(pool);
        }
        Ok(())
    }
}

/// What stands between the far ends.
enum Way {
    Subject(Box<Subject>),
    Kernel(Box<Frames>),
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Subject(subject) => subject.kind.name(),
            Self::Kernel(_) => "kernel: forward, untagged",
        }
    }

    fn frames(&mut self) -> &mut Frames {
        match self {
            Self::Subject(subject) => &mut subject.frames,
            Self::Kernel(frames) => frames,
        }
    }

    /// One turn. A worker works on this thread meanwhile.
    fn turn(&mut self, prober: &mut Prober) -> Result<()> {
        let mut frames = Vec::new();
        self.frames().each(PACKETS, |_, bytes| {
            frames.push(bytes.to_vec());
            Ok(())
        })?;
        let is_peer = matches!(self, Self::Subject(subject) if matches!(subject.kind, Kind::Peer(_)));
        if let Self::Subject(subject) = self {
            subject.wake(true)?;
        }
        if is_peer && prober.histogram.is_empty() {
            let mut first = Vec::new();
            self.frames().each(1, |_, bytes| {
                first = bytes.to_vec();
                Ok(())
            })?;
            prober.wait(&first)?;
        }
        thread::sleep(PAUSE);
        let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
        thread::scope(|scope| {
            let probing = scope.spawn(|| {
                pin(SOURCE_CORE);
                ready.wait();
                let result = prober.probe(&frames);
                done.store(true, Ordering::Release);
                result
            });
            ready.wait();
            if let Self::Subject(subject) = self
                && !is_peer
            {
                while !done.load(Ordering::Acquire) {
                    subject.round();
                }
            }
            probing.join().map_err(|_| "the prober panicked")?
        })?;
        if let Self::Subject(subject) = self {
            subject.wake(false)?;
        }
        Ok(())
    }
}

/// The kernel as the router that the gateway is in `pipeline: forward`, but without VLANs: not every kernel has them.
fn kernel(bytes: usize) -> Result<(Way, [String; 2])> {
    veth("k0", "k0f")?;
    veth("k1", "k1f")?;
    let ([mac_0, mac_1], [lan_router, wan_router]) = (MACS, ROUTERS);
    shell(&format!(
        "ip link set k0 address {mac_0}; ip link set k1 address {mac_1}
         ip address add 10.63.0.1/24 dev k0; ip address add 192.0.2.1/30 dev k1
         ip neighbour add 10.63.0.2 lladdr {lan_router} dev k0
         ip neighbour add 192.0.2.2 lladdr {wan_router} dev k1
         ip route add 10.64.0.0/10 via 10.63.0.2; ip route add 198.18.0.0/15 via 192.0.2.2
         sysctl -qw net.ipv4.ip_forward=1"
    ))?;
    Ok((
        Way::Kernel(Box::new(Frames::new(Kind::Forward, bytes)?.without_tags())),
        ["k0f".into(), "k1f".into()],
    ))
}

/// Measures every row that is wanted, and the kernel beside it.
pub fn rows(wanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<()> {
    settings(wanted, |setting: Setting| {
        if !setting.sink {
            // The far ends are ours here, so there is only one kind of them.
            return Ok(());
        }
        let mut ways = vec![kernel(setting.bytes)?];
        for kind in Kind::all().into_iter().filter(|kind| wanted(&setting.row(*kind))) {
            let Some(subject) = Subject::new(kind, setting.bytes)? else { continue };
            let far = subject.far.clone();
            ways.push((Way::Subject(Box::new(subject)), far));
        }
        let probers = ways.into_iter().map(|(way, far)| Ok((way, Prober::new(&far)?)));
        let mut ways = probers.collect::<Result<Vec<_>>>()?;
        for turn in 0..=TURNS {
            for (way, prober) in &mut ways {
                way.turn(prober)?;
                if turn == 0 {
                    // Warmed up.
                    prober.histogram.reset();
                }
            }
        }
        println!(
            "\n{:44} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}  us, {} lone packets",
            "",
            "least",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "p99.99",
            "most",
            TURNS * PACKETS
        );
        for (way, prober) in ways {
            let histogram = &prober.histogram;
            let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
            println!(
                "{:44} {:7.2} {:7.2} {:7.2} {:7.2} {:7.2} {:7.2} {:7.1}",
                format!("{}, {} B", way.name(), setting.bytes),
                histogram.min() as f64 / 1e3,
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                at(0.9999),
                histogram.max() as f64 / 1e3,
            );
            let Prober { ports: [mut to, mut from], mut pool, .. } = prober;
            to.shutdown(&mut pool);
            from.shutdown(&mut pool);
            if let Way::Subject(subject) = way {
                subject.end()?;
            }
        }
        Ok(())
    })
}
