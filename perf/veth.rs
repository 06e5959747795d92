//! What the ports cost on veth devices: `cargo bench --bench veth [-- WORD]`. Needs root.
//!
//! The kernel is the source (BPF live frames, core 0) and the sink; our side runs on core 1. Rates are millions of
//! frames a second, best and median of several runs, counted where they count: frames received for "rx", frames
//! that reached the far end for the others. The last column is the best rate for each second of our thread's own
//! processor time, which other programs on the machine disturb less. "plain" means that the far end is an ordinary veth, "XDP" that it runs
//! an XDP program, which makes the kernel copy each frame once more. veth measures the kernel: an skb for each frame
//! sent, and the far end's receive path, are on our core. WORD keeps only the rows whose name contains it.

use std::{
    error::Error,
    os::fd::AsFd,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use af_xdp::{Device, Hook, Namespace, SocketConfig, XdpLink, packet_socket::PacketConfig};
use aya::{
    Ebpf,
    maps::{Array, PerCpuArray},
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use causeway::{
    io::{
        PacketIo,
        af_packet::PacketPort,
        xdp::{
            XdpDevice, XdpOptions,
            program::{Attach, Division},
            share,
        },
    },
    packet::{FramePool, FrameQueue, HugePages, Umem},
};

/// Millions of frames a second, and a second of our thread's processor time.
type Rate = (f64, f64);
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

static TRAFFIC: &[u8] = aya::include_bytes_aligned!("traffic.bpf.o");

const RUNS: usize = 25;
const RUN: Duration = Duration::from_millis(100);
const WARM_UP: Duration = Duration::from_millis(200);
const SOURCE_CORE: usize = 0;
const OUR_CORE: usize = 1;

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Receive,
    Send,
    Forward,
    ForwardByPacketSocket,
}

#[derive(Clone, Copy)]
struct Case {
    work: Work,
    bytes: usize,
    /// Whether the far end runs an XDP program.
    sink: bool,
    attach: Attach,
}

impl Case {
    fn name(&self) -> String {
        let work = match self.work {
            Work::Receive => "rx and drop",
            Work::Send => "tx only",
            Work::Forward => "forward",
            Work::ForwardByPacketSocket => "forward by AF_PACKET",
        };
        let hook = if self.attach == Attach::Generic { ", generic hook" } else { "" };
        let far = match (self.work, self.sink) {
            (Work::Receive, _) => "",
            (_, true) => ", far end XDP",
            (_, false) => ", far end plain",
        };
        format!("{work}, {} B{far}{hook}", self.bytes)
    }
}

fn main() -> Result<()> {
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("{:52} {:>8} {:>8} {:>8}  Mpps, {RUNS} runs of {RUN:?}", "", "best", "median", "per CPU");
    for case in cases() {
        if word.as_ref().is_some_and(|word| !case.name().contains(word.as_str())) {
            continue;
        }
        // A thread has a network namespace of its own, and the devices go with it.
        let rates = thread::spawn(move || run(case)).join().map_err(|_| "a run panicked")?;
        let (mut rates, of_processor): (Vec<_>, Vec<_>) = rates?.into_iter().unzip();
        rates.sort_by(f64::total_cmp);
        let (best, median) = (rates.last().copied().unwrap_or(0.0), rates[rates.len() / 2]);
        let own = of_processor.into_iter().fold(0.0, f64::max);
        println!("{:52} {best:8.2} {median:8.2} {own:8.2}", case.name());
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for bytes in [60, 1400] {
        let case = |work, sink, attach| Case { work, bytes, sink, attach };
        cases.extend([
            case(Work::Receive, false, Attach::Native),
            case(Work::Receive, false, Attach::Generic),
            case(Work::Send, false, Attach::Native),
            case(Work::Send, true, Attach::Native),
            case(Work::Forward, false, Attach::Native),
            case(Work::Forward, true, Attach::Native),
            case(Work::ForwardByPacketSocket, false, Attach::Native),
        ]);
    }
    cases
}

fn run(case: Case) -> Result<Vec<Rate>> {
    Namespace::unshare()?;
    pin(OUR_CORE);
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    for (ours, far) in [("gw0", "far0"), ("gw1", "far1")] {
        shell(&format!(
            "ip link add {ours} numrxqueues 1 numtxqueues 1 type veth peer name {far} numrxqueues 1 numtxqueues 1 &&
             ip link set {ours} up && ip link set {far} up"
        ))?;
    }
    let mut bpf = Ebpf::load(TRAFFIC)?;
    let sink: &mut Xdp = bpf.program_mut("sink").ok_or("no sink")?.try_into()?;
    sink.load()?;
    let far1 = Device::by_name("far1")?;
    let attached;
    if case.sink {
        attached = XdpLink::attach(sink.fd()?.as_fd(), &far1, Hook::Native)?;
        debug_assert_eq!(attached.hook(), Hook::Native);
    }
    let source: &mut Xdp = bpf.program_mut("source").ok_or("no source")?.try_into()?;
    source.load()?;
    let mut target: Array<_, u32> = Array::try_from(bpf.map_mut("TARGET").ok_or("no map")?)?;
    target.set(0, Device::by_name("far0")?.index(), 0)?;
    if case.work == Work::ForwardByPacketSocket || case.attach == Attach::Generic {
        // Without a native XDP program a veth takes redirected frames only so.
        shell("ethtool -K gw0 gro on")?;
    }

    let umem = Umem::new(16384, 2048, HugePages::Auto)?;
    let shared = share(&umem)?;
    let mut pools = umem.into_pools(1);
    let options = XdpOptions {
        socket: SocketConfig::default(),
        attach: case.attach,
        division: Division::Exclusive,
        ..Default::default()
    };
    let delivered = |bpf: &Ebpf| -> Result<u64> {
        if case.sink {
            let map: PerCpuArray<_, u64> = PerCpuArray::try_from(bpf.map("RECEIVED").ok_or("no map")?)?;
            Ok(map.get(&0, 0)?.iter().sum())
        } else {
            frames_in("far1")
        }
    };

    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<Vec<Rate>> {
        let bpf = Arc::new(bpf);
        let source = case.work != Work::Send;
        let traffic = Arc::clone(&bpf);
        let stop = &stop;
        let source =
            scope.spawn(move || if source { send_frames(&traffic, case.bytes, stop) } else { Ok(()) });
        let measured = (|| match case.work {
            Work::ForwardByPacketSocket => {
                let open = |name| PacketPort::open(&Device::by_name(name)?, &PacketConfig::default());
                let (mut left, mut right) = (open("gw0")?, open("gw1")?);
                let mut queue = FrameQueue::new();
                rates(|| delivered(&bpf), || forward(&mut left, &mut right, &mut pools[0], &mut queue))
            }
            Work::Receive => {
                let (_device, mut ports) = XdpDevice::open(&shared, "gw0", &options, &mut pools)?;
                let (port, pool) = (&mut ports[0], &mut pools[0]);
                let mut queue = FrameQueue::new();
                let received = std::cell::Cell::new(0);
                let rates = rates(
                    || Ok(received.get()),
                    || {
                        let n = port.rx_burst(pool, &mut queue, 64);
                        queue.drain(..).for_each(|frame| pool.free(frame));
                        port.complete(pool);
                        received.set(received.get() + n as u64);
                    },
                );
                port.shutdown(pool);
                rates
            }
            Work::Send => {
                let (_device, mut ports) = XdpDevice::open(&shared, "gw1", &options, &mut pools)?;
                let (port, pool) = (&mut ports[0], &mut pools[0]);
                let mut queue = FrameQueue::new();
                let rates = rates(
                    || delivered(&bpf),
                    || {
                        while queue.len() < 64 {
                            let Some(mut frame) = pool.alloc() else { break };
                            let _ = pool.umem().grow_back(&mut frame, case.bytes);
                            queue.push(frame);
                        }
                        port.tx_burst(pool, &mut queue);
                        port.complete(pool);
                    },
                );
                port.shutdown(pool);
                rates
            }
            Work::Forward => {
                let (_zero, mut left) = XdpDevice::open(&shared, "gw0", &options, &mut pools)?;
                let (_one, mut right) = XdpDevice::open(&shared, "gw1", &options, &mut pools)?;
                let (left, right, pool) = (&mut left[0], &mut right[0], &mut pools[0]);
                let mut queue = FrameQueue::new();
                let rates = rates(|| delivered(&bpf), || forward(left, right, pool, &mut queue));
                left.shutdown(pool);
                right.shutdown(pool);
                rates
            }
        })();
        stop.store(true, Ordering::Relaxed);
        source.join().map_err(|_| "the source panicked")??;
        measured
    })
}

fn forward(
    left: &mut impl PacketIo,
    right: &mut impl PacketIo,
    pool: &mut FramePool,
    queue: &mut FrameQueue,
) {
    left.rx_burst(pool, queue, 64);
    right.tx_burst(pool, queue);
    left.complete(pool);
    right.complete(pool);
}

/// Repeats `work` and takes what `count` gained, for each run.
fn rates(count: impl Fn() -> Result<u64>, mut work: impl FnMut()) -> Result<Vec<Rate>> {
    let mut repeat = |time: Duration| {
        let since = Instant::now();
        while since.elapsed() < time {
            (0..16).for_each(|_| work());
        }
        since.elapsed()
    };
    repeat(WARM_UP);
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        let (before, used) = (count()?, processor_time()?);
        let time = repeat(RUN);
        let (millions, used) = ((count()? - before) as f64 / 1e6, processor_time()? - used);
        rates.push((millions / time.as_secs_f64(), millions / used));
    }
    Ok(rates)
}

/// Sends frames into `gw0` as fast as the kernel can, until told to stop.
fn send_frames(bpf: &Ebpf, bytes: usize, stop: &AtomicBool) -> Result<()> {
    pin(SOURCE_CORE);
    let program: &Xdp = bpf.program("source").ok_or("no source")?.try_into()?;
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    frame.extend([198, 51, 100, 7, 203, 0, 113, 9, 0, 9, 0, 9]);
    frame.resize(bytes, 0);
    let length = (bytes as u16 - 14).to_be_bytes();
    frame[16..18].copy_from_slice(&length);
    while !stop.load(Ordering::Relaxed) {
        program.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: 1 << 20,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::new()
        })?;
    }
    Ok(())
}

/// Frames that a device of this namespace has received.
fn frames_in(device: &str) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    Ok(line.and_then(|line| line.split_whitespace().nth(1)).ok_or("no such device")?.parse()?)
}

/// Seconds that this thread has run.
fn processor_time() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no schedstat")?.parse::<f64>()? / 1e9)
}

fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

fn shell(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", script]).status()?;
    if status.success() { Ok(()) } else { Err(format!("failed: {script}").into()) }
}
