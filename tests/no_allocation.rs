//! After it has warmed up, a worker allocates nothing: not on its way in, not on its way out, not when it drops.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use causeway::{
    cli::bench::{
        profile,
        rig::gateway,
        topology::{MACS, ROUTERS, Topology, WAN},
        traffic::{Traffic, readdress},
    },
    io::mem::wire,
};

/// The system's allocator, which counts what this thread asks of it.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and is not the one that is looked at.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came, so what `GlobalAlloc` asks for holds because it holds
// there; counting touches a thread-local number that needs no allocation and no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: `pointer` came from `System` with this layout, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about `pointer`, `layout` and `size` are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations, releases and both in one, of this thread while `work` runs.
fn asked(work: impl FnOnce()) -> u64 {
    let before = ASKED.get();
    work();
    ASKED.get() - before
}

#[test]
fn the_count_counts() {
    let mut list = Vec::new();
    assert_eq!(asked(|| list.push(1)), 1);
    assert_eq!(asked(|| list.push(2)), 0);
    assert_eq!(asked(|| drop(list)), 1);
}

/// Bursts through [`causeway::runtime::Worker::round`]: a gateway seals what its peer opens. Every 16th packet is one
/// that the gateway drops, half of them with an ICMP error.
#[test]
fn a_worker_that_is_warm_allocates_nothing() {
    const WARM: usize = 200;
    const BURSTS: usize = 5_000;
    let topology = Topology::new(&profile::named("gateway").unwrap().unwrap());
    let mut traffic = Traffic::new(&topology, topology.profile.sizes[0]);
    let ((lan, hosts), (wan, line)) = (wire(256), wire(256));
    let ((peer_lan, outside), (peer_wan, peer_line)) = (wire(256), wire(256));
    let mut sealing = gateway(&topology.gateway(1024).unwrap(), |_| vec![lan, wan]).unwrap();
    let mut opening = gateway(&topology.peer(1024).unwrap(), |_| vec![peer_lan, peer_wan]).unwrap();
    let (mut total, mut sent, mut wrong) = (0, 0_u64, 0_u64);
    for burst in 0..WARM + BURSTS {
        // The ports' own counts are read every 100 ms, so each 10th round reads them.
        let now = burst as u64 * 10_000_000;
        for n in 0..32 {
            traffic.next(&topology.flows, |bytes| {
                if n % 16 == 15 {
                    let mut bytes = bytes.to_vec();
                    // A TTL at its end, which is answered, or a VLAN that no interface has.
                    if n == 15 {
                        expire(&mut bytes)
                    } else {
                        bytes[15] = 7
                    }
                    wrong += 1;
                    assert!(hosts.send(&bytes));
                } else {
                    sent += 1;
                    assert!(hosts.send(bytes));
                }
            });
        }
        let mut during = asked(|| {
            sealing.worker.round(now);
        });
        while let Some(mut sealed) = line.receive() {
            readdress(&mut sealed, MACS[WAN], ROUTERS[WAN]);
            assert!(peer_line.send(&sealed));
        }
        during += asked(|| {
            opening.worker.round(now);
        });
        if burst >= WARM {
            total += during;
        }
        while hosts.receive().is_some() {}
        while outside.receive().is_some() {}
    }
    assert_eq!(total, 0, "the workers asked the allocator {total} times in {BURSTS} bursts");
    let (sealing, opening) = (sealing.worker.ledger(), opening.worker.ledger());
    assert!(sealing.balances() && opening.balances(), "{sealing:?} {opening:?}");
    assert_eq!((sealing.dropped, opening.dropped), (wrong, 0), "{sealing:?}");
    assert_eq!((opening.received, opening.sent), (sent, sent), "{opening:?}");
}

/// Every burst makes sessions, finds others, and ends some: all come back after they have expired.
#[test]
fn a_worker_that_makes_and_ends_sessions_allocates_nothing() {
    let topology = Topology::new(&profile::named("nat-pool-1k").unwrap().unwrap());
    let mut traffic = Traffic::new(&topology, topology.profile.sizes[0]);
    let ((lan, hosts), (wan, line)) = (wire(256), wire(256));
    let mut gateway = gateway(&topology.gateway(1024).unwrap(), |_| vec![lan, wan]).unwrap();
    let (mut total, mut sent, mut now) = (0, 0_u64, 1_000_000_000_u64);
    for burst in 0..3_000_u64 {
        // Every tenth burst comes when all sessions before it have had their time (300 s).
        now += if burst % 10 == 0 { 301_000_000_000 } else { 1_000_000 };
        for _ in 0..32 {
            traffic.next(&topology.flows, |bytes| assert!(hosts.send(bytes)));
            sent += 1;
        }
        let during = asked(|| {
            gateway.worker.round(now);
        });
        if burst >= 200 {
            total += during;
        }
        while line.receive().is_some() {}
    }
    assert_eq!(total, 0, "the worker asked the allocator {total} times");
    let (ledger, counters) = (gateway.worker.ledger(), gateway.worker.counters());
    assert_eq!((ledger.received, ledger.sent), (sent, sent), "{ledger:?}");
    use causeway::stats::WorkerColumn::{NatEnded, NatMade};
    assert!(counters.read_worker(NatMade) > 2000 && counters.read_worker(NatEnded) > 1000);
}

/// Sets the TTL of a tagged frame to 1, and the checksum that follows from it.
fn expire(frame: &mut [u8]) {
    let mut header = causeway::wire::ipv4::Ipv4::at_mut(frame, 18).unwrap();
    header.set_ttl(1);
    header.fill_checksum();
}
