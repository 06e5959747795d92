//! What the ports cost by themselves: receive, send, and move frames from one to the other.

use std::{
    thread,
    time::{Duration, Instant},
};

use af_xdp::{Device, packet_socket::PacketConfig};
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

use super::{
    lab::{Result, SOURCE_CORE, best_and_median, enter, frames_in, pin, processor_time, shell, veth},
    source::{Order, Source},
};

/// Millions of frames a second, and a second of our thread's processor time.
type Rate = (f64, f64);

const RUNS: usize = 25;
const RUN: Duration = Duration::from_millis(100);
const WARM_UP: Duration = Duration::from_millis(200);

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

/// Measures every case whose name contains the word.
pub fn rows(wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let cases: Vec<Case> = cases().into_iter().filter(|case| wanted(&case.name())).collect();
    if !cases.is_empty() {
        println!("\n{:52} {:>8} {:>8} {:>8}  Mpps, {RUNS} runs of {RUN:?}", "", "best", "median", "per CPU");
    }
    for case in cases {
        // A thread has a network namespace of its own, and the devices go with it.
        let rates = thread::spawn(move || run(case)).join().map_err(|_| "a run panicked")??;
        let (rates, of_processor): (Vec<_>, Vec<_>) = rates.into_iter().unzip();
        let ((best, median), (own, _)) = (best_and_median(&rates), best_and_median(&of_processor));
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
    enter()?;
    veth("gw0", "far0")?;
    veth("gw1", "far1")?;
    let mut source = Source::load(1)?;
    let far1 = Device::by_name("far1")?;
    let _sink = case.sink.then(|| source.attach_sink(&far1)).transpose()?;
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    frame.extend([198, 51, 100, 7, 203, 0, 113, 9, 0, 9, 0, 9]);
    frame.resize(case.bytes, 0);
    let length = (case.bytes as u16 - 14).to_be_bytes();
    frame[16..18].copy_from_slice(&length);
    source.set(0, &frame)?;
    let most = if case.work == Work::Send { 0 } else { u64::MAX };
    let device = Device::by_name("far0")?.index();
    source.order(&Order { device, length: case.bytes, frames: 1, rate: None, most })?;
    if case.work == Work::ForwardByPacketSocket || case.attach == Attach::Generic {
        // Without a native XDP program a veth takes redirected frames only so.
        shell("ethtool -K gw0 gro on")?;
    }

    let umem = Umem::new(16384, 2048, HugePages::Auto)?;
    let shared = share(&umem)?;
    let mut pools = umem.into_pools(1);
    let options = XdpOptions { attach: case.attach, division: Division::Exclusive, ..Default::default() };
    let source = &source;
    let delivered = || if case.sink { source.in_sinks() } else { frames_in("far1") };

    thread::scope(|scope| -> Result<Vec<Rate>> {
        let sending = scope.spawn(move || {
            pin(SOURCE_CORE);
            source.run(RUN, most)
        });
        let measured = (|| match case.work {
            Work::ForwardByPacketSocket => {
                let open = |name| PacketPort::open(&Device::by_name(name)?, &PacketConfig::default());
                let (mut left, mut right) = (open("gw0")?, open("gw1")?);
                let mut queue = FrameQueue::new();
                rates(delivered, || forward(&mut left, &mut right, &mut pools[0], &mut queue))
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
                let rates = rates(delivered, || {
                    while queue.len() < 64 {
                        let Some(mut frame) = pool.alloc() else { break };
                        let _ = pool.umem().grow_back(&mut frame, case.bytes);
                        queue.push(frame);
                    }
                    port.tx_burst(pool, &mut queue);
                    port.complete(pool);
                });
                port.shutdown(pool);
                rates
            }
            Work::Forward => {
                let (_zero, mut left) = XdpDevice::open(&shared, "gw0", &options, &mut pools)?;
                let (_one, mut right) = XdpDevice::open(&shared, "gw1", &options, &mut pools)?;
                let (left, right, pool) = (&mut left[0], &mut right[0], &mut pools[0]);
                let mut queue = FrameQueue::new();
                let rates = rates(delivered, || forward(left, right, pool, &mut queue));
                left.shutdown(pool);
                right.shutdown(pool);
                rates
            }
        })();
        source.stop(true)?;
        sending.join().map_err(|_| "the source panicked")??;
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
