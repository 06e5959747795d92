//! Faults over a wire in memory, whose other end plays the network.

use proptest::prelude::*;

use super::*;
use crate::{
    io::mem::{self, MemPort},
    packet::{HugePages, Umem},
};

fn pool(count: usize) -> FramePool {
    Umem::new(count, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap()
}

fn port(rx: Faults, tx: Faults, seed: u64) -> (FaultPort<MemPort>, MemPort) {
    let (ours, theirs) = mem::wire(1024);
    (FaultPort::new(ours, rx, tx, seed), theirs)
}

fn packet(n: u16) -> Vec<u8> {
    [&n.to_be_bytes()[..], &[0; 58]].concat()
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Sends as many packets as there are, then ends the round.
fn send(port: &mut FaultPort<MemPort>, pool: &mut FramePool, numbers: std::ops::Range<u16>) -> usize {
    let mut queue: FrameQueue = numbers.filter_map(|n| pool.alloc_with(&packet(n))).collect();
    let sent = port.tx_burst(pool, &mut queue);
    queue.drain(..).for_each(|frame| pool.free(frame));
    port.complete(pool);
    sent
}

fn arrived(theirs: &MemPort) -> Vec<u16> {
    std::iter::from_fn(|| theirs.receive()).map(|bytes| number(&bytes)).collect()
}

fn received(port: &mut FaultPort<MemPort>, pool: &mut FramePool) -> Vec<u16> {
    let mut queue = FrameQueue::new();
    port.rx_burst(pool, &mut queue, 64);
    port.complete(pool);
    let numbers = queue.iter().map(|frame| number(pool.umem().bytes(frame))).collect();
    queue.drain(..).for_each(|frame| pool.free(frame));
    numbers
}

#[test]
fn without_faults_nothing_changes() {
    let mut pool = pool(64);
    let (mut port, theirs) = port(Faults::NONE, Faults::NONE, 1);
    assert_eq!(send(&mut port, &mut pool, 0..40), 40);
    assert_eq!(arrived(&theirs), (0..40).collect::<Vec<_>>());
    (0..40).for_each(|n| assert!(theirs.send(&packet(n))));
    assert_eq!(received(&mut port, &mut pool), (0..40).collect::<Vec<_>>());
    let counts = FaultCounts { taken: 40, passed: 40, ..Default::default() };
    assert_eq!(port.fault_stats(), FaultStats { rx: counts, tx: counts });
    assert_eq!((port.held(), pool.available()), (0, 64));
}

#[test]
fn lost_frames_go_home() {
    let mut pool = pool(64);
    let loss = Faults { loss: ALWAYS, ..Faults::NONE };
    let (mut port, theirs) = port(loss, loss, 1);
    assert_eq!(send(&mut port, &mut pool, 0..10), 10);
    (0..10).for_each(|n| assert!(theirs.send(&packet(n))));
    assert!(received(&mut port, &mut pool).is_empty() && arrived(&theirs).is_empty());
    let stats = port.fault_stats();
    assert_eq!((stats.rx.lost, stats.tx.lost, pool.available()), (10, 10, 64));
}

#[test]
fn a_duplicate_needs_a_buffer() {
    let mut pool = pool(5);
    let twice = Faults { duplication: ALWAYS, ..Faults::NONE };
    let (mut port, theirs) = port(twice, twice, 1);
    assert_eq!(send(&mut port, &mut pool, 0..4), 4);
    assert_eq!(arrived(&theirs), [0, 0, 1, 2, 3], "one buffer was left");
    assert!(theirs.send(&packet(7)));
    assert_eq!(received(&mut port, &mut pool), [7, 7]);
    let stats = port.fault_stats();
    assert_eq!((stats.tx.duplicated, stats.rx.duplicated, pool.available()), (1, 1, 5));
}

#[test]
fn a_duplicate_of_a_grown_packet_is_whole() {
    let mut pool = pool(2);
    let (mut port, theirs) = port(Faults::NONE, Faults { duplication: ALWAYS, ..Faults::NONE }, 1);
    let mut frame = pool.alloc_with(&[3; 1792]).unwrap();
    assert!(frame.grow_front(100));
    let mut queue = FrameQueue::new();
    queue.push(frame);
    assert_eq!(port.tx_burst(&mut pool, &mut queue), 1);
    let (first, second) = (theirs.receive().unwrap(), theirs.receive().unwrap());
    assert_eq!(first.len(), 1892);
    assert_eq!(first, second);
}

#[test]
fn a_frame_held_back_is_overtaken_and_comes() {
    let mut pool = pool(128);
    let (mut port, theirs) = port(Faults::NONE, Faults { reordering: 200_000, ..Faults::NONE }, 7);
    let mut order = Vec::new();
    for start in (0..400).step_by(20) {
        assert_eq!(send(&mut port, &mut pool, start..start + 20), 20);
        order.extend(arrived(&theirs));
    }
    for _ in 0..MAX_ROUNDS {
        port.complete(&mut pool);
    }
    order.extend(arrived(&theirs));
    assert_ne!(order, (0..400).collect::<Vec<_>>());
    for (place, n) in order.iter().enumerate() {
        let overtaken = order[..place].iter().filter(|other| *other > n).count() as u64;
        // Those that are released together with it come before it too.
        assert!(overtaken < MAX_OVERTAKEN + MAX_HELD as u64, "{overtaken} overtook {n}");
    }
    order.sort_unstable();
    assert_eq!(order, (0..400).collect::<Vec<_>>());
    assert_eq!((port.held(), pool.available()), (0, 128));
    assert!(port.fault_stats().tx.reordered > 40);
}

#[test]
fn rounds_alone_release_what_is_held() {
    let mut pool = pool(4);
    let held = Faults { reordering: ALWAYS, ..Faults::NONE };
    let (mut port, theirs) = port(held, held, 1);
    send(&mut port, &mut pool, 0..1);
    assert!(theirs.send(&packet(9)));
    let mut got = Vec::new();
    for _ in 0..=MAX_ROUNDS {
        got.extend(received(&mut port, &mut pool));
    }
    assert_eq!((got, arrived(&theirs)), (vec![9], vec![0]));
    assert_eq!((port.held(), pool.available()), (0, 4));
}

#[test]
fn corruption_changes_one_bit_or_the_length() {
    let mut pool = pool(64);
    let (mut port, theirs) = port(Faults::NONE, Faults { corruption: ALWAYS, ..Faults::NONE }, 3);
    let (mut flipped, mut cut) = (0, 0);
    for _ in 0..20 {
        send(&mut port, &mut pool, 0..20);
        let mut n = 0;
        while let Some(bytes) = theirs.receive() {
            let good = packet(n);
            n += 1;
            let bits: u32 = bytes.iter().zip(&good).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert!(!bytes.is_empty());
            flipped += u64::from(bits == 1 && bytes.len() == good.len());
            cut += u64::from(bits == 0 && bytes.len() < good.len());
        }
        assert_eq!(n, 20);
    }
    assert_eq!(flipped + cut, port.fault_stats().tx.corrupted);
    assert!(flipped > 150 && cut > 150, "{flipped} {cut}");
}

#[test]
fn an_empty_frame_cannot_be_corrupted() {
    let mut pool = pool(1);
    let (mut port, theirs) = port(Faults::NONE, Faults { corruption: ALWAYS, ..Faults::NONE }, 3);
    let mut queue: FrameQueue = pool.alloc().into_iter().collect();
    assert_eq!(port.tx_burst(&mut pool, &mut queue), 1);
    assert_eq!(theirs.receive(), Some(vec![]));
    assert_eq!(port.fault_stats().tx.corrupted, 0);
}

#[test]
fn a_full_port_takes_nothing_for_a_while_only() {
    let mut pool = pool(64);
    let (mut port, theirs) = port(Faults::NONE, Faults { full: 100_000, ..Faults::NONE }, 5);
    let (mut refused, mut longest, mut row, mut there) = (0, 0, 0, 0);
    for _ in 0..1000 {
        match send(&mut port, &mut pool, 0..3) {
            0 => (refused, row) = (refused + 1, row + 1),
            taken => {
                assert_eq!(taken, 3);
                longest = row.max(longest);
                row = 0;
            }
        }
        there += arrived(&theirs).len() as u64;
    }
    assert_eq!(refused, port.fault_stats().tx.full);
    assert!((100..700).contains(&refused) && longest > 1, "{refused} {longest}");
    assert_eq!(there, (1000 - refused) * 3);
}

#[test]
fn a_full_wire_shows() {
    let mut pool = pool(64);
    let (ours, theirs) = mem::wire(4);
    let mut port = FaultPort::new(ours, Faults::NONE, Faults::NONE, 1);
    assert_eq!(send(&mut port, &mut pool, 0..6), 6);
    assert_eq!(port.held(), 2);
    assert_eq!(send(&mut port, &mut pool, 6..9), 0, "what came before has not gone");
    assert_eq!(arrived(&theirs), [0, 1, 2, 3]);
    assert_eq!(send(&mut port, &mut pool, 6..8), 2);
    assert_eq!(arrived(&theirs), [4, 5, 6, 7]);
    send(&mut port, &mut pool, 0..6);
    assert_eq!((port.shutdown(&mut pool), port.held(), pool.available()), (2, 0, 64));
    assert_eq!(port.fault_stats().tx.taken_home, 2);
}

#[test]
fn shutdown_sends_what_it_held_back() {
    let mut pool = pool(64);
    let held = Faults { reordering: ALWAYS, ..Faults::NONE };
    let (mut port, theirs) = port(held, held, 1);
    let mut queue: FrameQueue = (0..3).filter_map(|n| pool.alloc_with(&packet(n))).collect();
    assert_eq!(port.tx_burst(&mut pool, &mut queue), 3);
    assert!(theirs.send(&packet(9)));
    assert_eq!(port.rx_burst(&mut pool, &mut queue, 64), 0);
    assert!(port.fd().is_none());
    assert_eq!((port.held(), pool.available()), (4, 60));
    assert_eq!(port.shutdown(&mut pool), 0);
    assert_eq!(arrived(&theirs), [0, 1, 2]);
    assert_eq!((port.held(), pool.available(), port.fault_stats().rx.taken_home), (0, 64, 1));
}

#[test]
fn chances_are_what_they_say() {
    let mut random = Random(42);
    let hits = (0..100_000).filter(|_| random.chance(30_000)).count();
    assert!((2700..3300).contains(&hits), "{hits}");
    assert!((0..1000).all(|_| random.chance(ALWAYS) && !random.chance(0) && random.below(0) == 0));
    // The first numbers from seed 1234567 as Vigna's own program prints them.
    let mut random = Random(1_234_567);
    let known = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
    assert_eq!(known, [random.next(), random.next(), random.next()]);
}

/// What a caller may do.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Receive(usize),
    Arrive(usize),
    Collect(usize),
    Complete,
    Change(Faults),
}

fn faults() -> impl Strategy<Value = Faults> {
    let often = || prop_oneof![Just(0), 0..=ALWAYS, Just(ALWAYS)];
    // A port that is always full sends nothing, and one that loses all delivers nothing: rarer, that more happens.
    (0..=500_000_u32, often(), often(), often(), 0..=500_000_u32).prop_map(
        |(loss, duplication, reordering, corruption, full)| Faults {
            loss,
            duplication,
            reordering,
            corruption,
            full,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..=128_usize).prop_map(Step::Send),
        3 => (0..=128_usize).prop_map(Step::Receive),
        3 => (0..100_usize).prop_map(Step::Arrive),
        2 => (0..100_usize).prop_map(Step::Collect),
        2 => Just(Step::Complete),
        1 => faults().prop_map(Step::Change),
    ]
}

/// Runs the steps, checks the sums after each, and returns all that came out at either end.
fn run(steps: &[Step], rx: Faults, tx: Faults, seed: u64, frames: usize) -> (Vec<Vec<u8>>, FaultStats) {
    let mut pool = pool(frames);
    let (ours, theirs) = mem::wire(50);
    let mut port = FaultPort::new(ours, rx, tx, seed);
    let (mut offered, mut taken, mut given, mut out) = (0_u16, 0, 0, Vec::new());
    for step in steps {
        match step {
            Step::Send(n) => {
                let mut queue: FrameQueue =
                    (0..*n as u16).map_while(|n| pool.alloc_with(&packet(offered.wrapping_add(n)))).collect();
                offered = offered.wrapping_add(queue.len() as u16);
                let (before, available) = (queue.len(), pool.available());
                let n = port.tx_burst(&mut pool, &mut queue);
                assert_eq!(before - queue.len(), n);
                assert!(n > 0 || pool.available() >= available, "nothing taken and frames gone");
                taken += n as u64;
                queue.drain(..).for_each(|frame| pool.free(frame));
            }
            Step::Receive(max) => {
                let mut queue = FrameQueue::new();
                let n = port.rx_burst(&mut pool, &mut queue, *max);
                assert!(n == queue.len() && n <= *max);
                given += n as u64;
                for frame in queue.drain(..) {
                    out.push(pool.umem().bytes(&frame).to_vec());
                    pool.free(frame);
                }
            }
            Step::Arrive(n) => {
                let _ = (0..*n as u16).take_while(|n| theirs.send(&packet(*n))).count();
            }
            Step::Collect(n) => out.extend((0..*n).map_while(|_| theirs.receive())),
            Step::Complete => port.complete(&mut pool),
            Step::Change(faults) => port.set_faults(*faults, *faults),
        }
        let FaultStats { rx, tx } = port.fault_stats();
        assert_eq!(pool.available() + port.held(), frames, "every frame is home or held");
        assert_eq!((tx.taken, rx.passed), (taken, given));
        assert_eq!(tx.taken + tx.duplicated, tx.passed + tx.lost + port.tx.held() as u64);
        assert_eq!(rx.taken + rx.duplicated, rx.passed + rx.lost + port.rx.held() as u64);
    }
    let unsent = port.shutdown(&mut pool) as u64;
    assert_eq!((port.held(), pool.available()), (0, frames));
    let stats = port.fault_stats();
    assert_eq!(stats.tx.taken_home, unsent);
    assert_eq!(stats.tx.taken + stats.tx.duplicated, stats.tx.passed + stats.tx.lost + unsent);
    (out, stats)
}

proptest! {
    #[test]
    fn every_frame_is_accounted_for(
        steps in prop::collection::vec(step(), 0..60),
        rx in faults(),
        tx in faults(),
        seed in any::<u64>(),
        frames in 1..300_usize,
    ) {
        let first = run(&steps, rx, tx, seed, frames);
        prop_assert_eq!(first, run(&steps, rx, tx, seed, frames), "the same seed, the same result");
    }

    #[test]
    fn without_loss_and_corruption_each_packet_arrives(
        bursts in prop::collection::vec(1..64_u16, 1..20),
        duplication in 0..=ALWAYS,
        reordering in 0..=ALWAYS,
        seed in any::<u64>(),
    ) {
        let faults = Faults { duplication, reordering, ..Faults::NONE };
        let (mut port, theirs) = port(faults, faults, seed);
        let mut pool = pool(256);
        let (mut next, mut there, mut back) = (0, Vec::new(), Vec::new());
        for burst in bursts {
            let taken = send(&mut port, &mut pool, next..next + burst) as u16;
            next += taken;
            while let Some(bytes) = theirs.receive() {
                there.push(number(&bytes));
                prop_assert!(theirs.send(&bytes));
            }
            back.extend(received(&mut port, &mut pool));
        }
        for _ in 0..100 {
            port.complete(&mut pool);
            there.extend(arrived(&theirs).iter().inspect(|n| assert!(theirs.send(&packet(**n)))));
            back.extend(received(&mut port, &mut pool));
        }
        prop_assert_eq!((port.held(), pool.available()), (0, 256));
        let stats = port.fault_stats();
        prop_assert_eq!((stats.rx.lost, stats.tx.lost), (0, 0));
        prop_assert_eq!(there.len() as u64, u64::from(next) + stats.tx.duplicated);
        prop_assert_eq!(back.len() as u64, there.len() as u64 + stats.rx.duplicated);
        for numbers in [&mut there, &mut back] {
            numbers.sort_unstable();
            numbers.dedup();
            prop_assert_eq!(&*numbers, &(0..next).collect::<Vec<_>>());
        }
    }
}
