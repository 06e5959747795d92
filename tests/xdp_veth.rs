//! Ports on real devices of the kernel: veth pairs and TAPs in a namespace of the test's own. Needs root.

mod xdp_common;

use std::{
    io::{BufRead, BufReader},
    net::IpAddr,
    os::fd::AsFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use af_xdp::{
    BusyPoll, Device, Error, Hook, Mode, SocketConfig,
    packet_socket::{PacketConfig, PacketSocket, Stop},
};
use causeway::{
    io::{
        PacketIo, PortHealth,
        af_packet::PacketPort,
        tap::TapPort,
        xdp::{
            XdpDevice, XdpError, XdpOptions, XdpPort,
            program::{AddressUse, Attach, Division, OwnPrefix, Program, ProgramError, Verdict},
            share,
        },
    },
    packet::{FramePool, FrameQueue, HugePages, Umem},
};
use xdp_common::{Ipv4, UNICAST, be_quiet, ethernet, in_namespace, ip, is_root, udp, veth};

/// How long to wait for what must come. Reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// An ethertype that the kernel does nothing with (IEEE 802, local experiments).
const EXPERIMENT: u16 = 0x88b5;

fn small() -> SocketConfig {
    SocketConfig { rx_size: 256, tx_size: 256, fill_size: 512, completion_size: 256, ..Default::default() }
}

fn options(attach: Attach) -> XdpOptions {
    XdpOptions { socket: small(), attach, division: Division::Exclusive, ..Default::default() }
}

/// One memory, and a pool for each worker.
fn pools(workers: usize) -> (af_xdp::Umem, Vec<FramePool>) {
    let umem = Umem::new(2048 * workers, 2048, HugePages::Never).unwrap();
    let shared = share(&umem).unwrap();
    (shared, umem.into_pools(workers))
}

fn all_home(pools: &[FramePool]) {
    let (home, owned): (usize, usize) =
        pools.iter().fold((0, 0), |(home, owned), pool| (home + pool.available(), owned + pool.owned()));
    assert_eq!(home, owned, "frames are missing");
}

/// The far end of a veth, as a host that speaks raw Ethernet.
struct Peer(PacketSocket);

impl Peer {
    fn new(name: &str) -> Self {
        Self(PacketSocket::open(&Device::by_name(name).unwrap(), &PacketConfig::default()).unwrap())
    }

    #[track_caller]
    fn send(&mut self, frames: &[Vec<u8>]) {
        let mut sent = 0;
        while sent < frames.len() {
            let (n, stop) = self.0.send(frames[sent..].iter().map(Vec::as_slice));
            assert!(matches!(stop, Stop::Finished | Stop::Busy), "{stop:?} after {sent}");
            sent += n;
        }
    }

    /// Receives that many frames.
    #[track_caller]
    fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let since = Instant::now();
        let mut got = Vec::new();
        while got.len() < count {
            assert!(since.elapsed() < PATIENCE, "{} of {count} frames came", got.len());
            self.0.poll(Some(Duration::from_millis(10))).unwrap();
            self.0.receive(count - got.len(), |frame| {
                let mut bytes = vec![0; frame.len()];
                assert!(frame.is_whole() && frame.copy_to(&mut bytes));
                got.push(bytes);
                true
            });
        }
        got
    }
}

/// Frames of all lengths, tagged ones among them, each with its number in it.
fn frames(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let mut payload = (i as u32).to_be_bytes().to_vec();
            payload.extend((0..(i * 37) % 1450).map(|b| b as u8));
            match i % 4 {
                0 => ethernet(UNICAST, 0x8100, &[&[0x20, 5, 0x88, 0xb5], &payload[..]].concat()),
                1 => ethernet(UNICAST, 0x88a8, &[&[0, 7, 0x81, 0, 0, 9, 0x88, 0xb5], &payload[..]].concat()),
                _ => ethernet(UNICAST, EXPERIMENT, &payload),
            }
        })
        .collect()
}

/// Receives that many frames and returns their bytes; the frames go home.
#[track_caller]
fn receive(port: &mut impl PacketIo, pool: &mut FramePool, count: usize) -> Vec<Vec<u8>> {
    let since = Instant::now();
    let mut got = Vec::new();
    let mut queue = FrameQueue::new();
    while got.len() < count {
        assert!(since.elapsed() < PATIENCE, "{} of {count} frames came, {:?}", got.len(), port.stats());
        port.complete(pool);
        port.rx_burst(pool, &mut queue, 64);
        for frame in queue.drain(..) {
            got.push(pool.umem().bytes(&frame).to_vec());
            pool.free(frame);
        }
    }
    got
}

/// Sends these frames, as many rounds as it takes.
#[track_caller]
fn send(port: &mut impl PacketIo, pool: &mut FramePool, frames: &[Vec<u8>]) {
    let since = Instant::now();
    let mut queue = FrameQueue::new();
    let mut next = frames.iter();
    while next.len() > 0 || !queue.is_empty() {
        assert!(since.elapsed() < PATIENCE, "{} frames left, {:?}", next.len(), port.stats());
        port.complete(pool);
        while !queue.is_full() {
            let Some(bytes) = next.next() else { break };
            queue.push(pool.alloc_with(bytes).unwrap());
        }
        port.tx_burst(pool, &mut queue);
    }
}

/// In chunks, since nobody empties the port's rings meanwhile.
fn both_ways(port: &mut impl PacketIo, pool: &mut FramePool, peer: &mut Peer) {
    for chunk in frames(1000).chunks(100) {
        peer.send(chunk);
        assert_eq!(receive(port, pool, chunk.len()), chunk);
        send(port, pool, chunk);
        assert_eq!(peer.receive(chunk.len()), chunk);
    }
}

fn xdp_both_ways(attach: Attach, hook: Hook) {
    veth("gw", "peer", 1);
    let (umem, mut pools) = pools(1);
    let (device, mut ports) = XdpDevice::open(&umem, "gw", &options(attach), &mut pools).unwrap();
    assert_eq!(device.attached.hook, hook);
    assert!(!ports[0].is_zero_copy());
    assert_eq!(ports[0].health(), PortHealth::Up);
    both_ways(&mut ports[0], &mut pools[0], &mut Peer::new("peer"));
    assert_eq!(device.program.counters().unwrap().get(Verdict::Exclusive), 1000);
    let stats = ports[0].stats();
    assert_eq!((stats.rx_ring_full, stats.rx_dropped, stats.invalid_descriptors), (0, 0, 0));
    assert!(stats.tx_kicks > 0);
    assert!(ports[0].held() > 0);
    assert_eq!(ports[0].shutdown(&mut pools[0]), 0);
    assert_eq!(ports[0].held(), 0);
    all_home(&pools);
}

#[test]
fn frames_pass_a_native_port_both_ways() {
    in_namespace(|| xdp_both_ways(Attach::Auto, Hook::Native));
}

#[test]
fn frames_pass_a_generic_port_both_ways() {
    in_namespace(|| xdp_both_ways(Attach::Generic, Hook::Generic));
}

#[test]
fn frames_pass_a_packet_port_both_ways_with_their_tags() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (_, mut pools) = pools(1);
        let device = Device::by_name("gw").unwrap();
        let mut port = PacketPort::open(&device, &PacketConfig::default()).unwrap();
        let mut peer = Peer::new("peer");
        both_ways(&mut port, &mut pools[0], &mut peer);
        assert_eq!(port.health(), PortHealth::Up);
        assert_eq!(port.held(), 0);
        // Longer than the MTU: the kernel refuses it, and what follows is sent all the same.
        let long = ethernet(UNICAST, EXPERIMENT, &[1; 1700]);
        let short = ethernet(UNICAST, EXPERIMENT, b"short");
        send(&mut port, &mut pools[0], &[long, short.clone()]);
        assert_eq!(peer.receive(1), std::slice::from_ref(&short));
        assert_eq!(port.stats().invalid_descriptors, 1);
        ip("link del gw");
        let mut queue = FrameQueue::new();
        queue.push(pools[0].alloc_with(&short).unwrap());
        assert_eq!(port.tx_burst(&mut pools[0], &mut queue), 0);
        assert_eq!(port.health(), PortHealth::Gone);
        queue.drain(..).for_each(|frame| pools[0].free(frame));
        all_home(&pools);
    });
}

#[test]
fn packet_ports_of_one_group_share_flows_and_lose_none() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (_, mut pools) = pools(1);
        let device = Device::by_name("gw").unwrap();
        let config = PacketConfig { fanout: Some(77), ..Default::default() };
        let mut ports =
            [PacketPort::open(&device, &config).unwrap(), PacketPort::open(&device, &config).unwrap()];
        let flows: Vec<_> =
            (0..200).map(|port| Ipv4::to([203, 0, 113, 9], 17).frame(&udp(port, 9, &[0; 40]))).collect();
        Peer::new("peer").send(&flows);
        let since = Instant::now();
        let mut counts = [0; 2];
        let mut queue = FrameQueue::new();
        while counts.iter().sum::<usize>() < flows.len() {
            assert!(since.elapsed() < PATIENCE, "{counts:?}");
            for (port, count) in ports.iter_mut().zip(&mut counts) {
                *count += port.rx_burst(&mut pools[0], &mut queue, 64);
                queue.drain(..).for_each(|frame| pools[0].free(frame));
            }
        }
        assert!(counts.iter().all(|&n| n > 0), "{counts:?}");
        all_home(&pools);
    });
}

#[test]
fn frames_go_from_one_device_to_another_without_leaving_their_memory() {
    in_namespace(|| {
        veth("gw0", "peer0", 1);
        veth("gw1", "peer1", 1);
        let (umem, mut pools) = pools(1);
        let base = af_xdp::Memory::base(&**pools[0].umem().memory()) as usize;
        let (_left, mut lefts) = XdpDevice::open(&umem, "gw0", &options(Attach::Native), &mut pools).unwrap();
        let (_right, mut rights) =
            XdpDevice::open(&umem, "gw1", &options(Attach::Generic), &mut pools).unwrap();
        let (left, right, pool) = (&mut lefts[0], &mut rights[0], &mut pools[0]);
        let (mut source, mut sink) = (Peer::new("peer0"), Peer::new("peer1"));
        let mut queue = FrameQueue::new();
        for chunk in frames(4000).chunks(200) {
            source.send(chunk);
            let since = Instant::now();
            let (mut received, mut sent) = (0, 0);
            while sent < chunk.len() {
                assert!(since.elapsed() < PATIENCE, "{received} received, {sent} sent");
                received += left.rx_burst(pool, &mut queue, 64);
                for frame in &queue {
                    // Where the kernel of the left device wrote it, the right one reads it.
                    let at = pool.umem().bytes(frame).as_ptr() as usize - base;
                    assert!(at < 2048 * 2048 && at % 2048 == 256);
                }
                sent += right.tx_burst(pool, &mut queue);
                left.complete(pool);
                right.complete(pool);
                assert!(pool.available() + left.held() + right.held() + queue.len() == pool.owned());
            }
            assert_eq!(sink.receive(chunk.len()), chunk);
        }
        assert_eq!(left.shutdown(pool), 0);
        assert_eq!(right.shutdown(pool), 0);
        all_home(&pools);
    });
}

#[test]
fn two_queues_of_a_device_are_two_ports_on_one_memory() {
    in_namespace(|| {
        veth("gw", "peer", 2);
        let (umem, mut pools) = pools(2);
        let (_device, mut ports) =
            XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
        assert_eq!(ports.len(), 2);
        let mut peer = Peer::new("peer");
        // Each port sends; what the peer sends may come in on either queue.
        for (i, (port, pool)) in ports.iter_mut().zip(&mut pools).enumerate() {
            let frame = ethernet(UNICAST, EXPERIMENT, &[i as u8; 100]);
            send(port, pool, std::slice::from_ref(&frame));
            assert_eq!(peer.receive(1), [frame]);
        }
        let sent: Vec<_> = (0..256_u16)
            .map(|port| Ipv4::to([203, 0, 113, 9], 17).frame(&udp(port, 9, &port.to_be_bytes())))
            .collect();
        peer.send(&sent);
        let since = Instant::now();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            assert!(since.elapsed() < PATIENCE, "{} frames came", got.len());
            for (port, pool) in ports.iter_mut().zip(&mut pools) {
                let mut queue = FrameQueue::new();
                port.complete(pool);
                port.rx_burst(pool, &mut queue, 64);
                for frame in queue.drain(..) {
                    got.push(pool.umem().bytes(&frame).to_vec());
                    pool.free(frame);
                }
            }
        }
        got.sort();
        let mut sent = sent;
        sent.sort();
        assert_eq!(got, sent);
        for (port, pool) in ports.iter_mut().zip(&mut pools) {
            assert_eq!(port.shutdown(pool), 0);
        }
        all_home(&pools);
    });
}

#[test]
fn a_queue_can_be_opened_again_at_once() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (umem, mut pools) = pools(1);
        let mut peer = Peer::new("peer");
        for round in 0..5 {
            let (device, mut ports) =
                XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
            let sent = frames(50);
            peer.send(&sent);
            assert_eq!(receive(&mut ports[0], &mut pools[0], 50), sent, "round {round}");
            // With frames in every ring.
            peer.send(&sent);
            send(&mut ports[0], &mut pools[0], &sent);
            drop(device);
            ports[0].shutdown(&mut pools[0]);
            peer.receive(50);
            all_home(&pools);
        }
    });
}

#[test]
fn full_rings_lose_frames_into_a_count_and_no_buffer() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (umem, mut pools) = pools(1);
        let (device, mut ports) = XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
        Peer::new("peer").send(&frames(2000));
        let since = Instant::now();
        while device.program.counters().unwrap().get(Verdict::Exclusive) < 2000 {
            assert!(since.elapsed() < PATIENCE);
        }
        let got = receive(&mut ports[0], &mut pools[0], 256).len();
        let stats = ports[0].stats();
        assert_eq!(stats.rx_ring_full as usize, 2000 - got, "{stats:?}");
        let sent = frames(100);
        Peer::new("peer").send(&sent);
        assert_eq!(receive(&mut ports[0], &mut pools[0], 100), sent);
        ports[0].shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

#[test]
fn a_device_that_disappears_is_reported_and_its_frames_come_home() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        veth("gw2", "peer2", 1);
        let (umem, mut pools) = pools(1);
        let (device, mut ports) = XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
        let pool = &mut pools[0];
        Peer::new("peer").send(&frames(20));
        ip("link set gw down");
        assert_eq!(ports[0].health(), PortHealth::Down);
        let mut queue: FrameQueue = frames(20).iter().filter_map(|bytes| pool.alloc_with(bytes)).collect();
        assert_eq!(ports[0].tx_burst(pool, &mut queue), 20);
        for _ in 0..10_000 {
            ports[0].complete(pool);
        }
        let kicks = ports[0].stats().tx_kicks;
        assert!(kicks < 10, "{kicks} system calls for a device that is down");
        ip("link set gw up");
        ip("link del gw");
        let more = pool.alloc_with(&frames(1)[0]).unwrap();
        queue.push(more);
        for _ in 0..10_000 {
            ports[0].complete(pool);
            ports[0].tx_burst(pool, &mut queue);
        }
        assert_eq!(ports[0].health(), PortHealth::Gone);
        let kicks = ports[0].stats().tx_kicks;
        for _ in 0..10_000 {
            ports[0].complete(pool);
            assert_eq!(ports[0].tx_burst(pool, &mut queue), 0);
        }
        assert_eq!(ports[0].stats().tx_kicks, kicks, "no system call for a device that is gone");
        ports[0].shutdown(pool);
        assert_eq!(ports[0].health(), PortHealth::Gone);
        assert_eq!(ports[0].rx_burst(pool, &mut queue, 64), 0);
        queue.drain(..).for_each(|frame| pool.free(frame));
        drop(device);
        all_home(&pools);

        // The memory was registered through a socket that is no more: another device can still use it.
        let (_device, mut ports) =
            XdpDevice::open(&umem, "gw2", &options(Attach::Native), &mut pools).unwrap();
        let sent = frames(20);
        Peer::new("peer2").send(&sent);
        assert_eq!(receive(&mut ports[0], &mut pools[0], 20), sent);
        ports[0].shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

#[test]
fn a_second_device_outlives_the_one_that_registered_the_memory() {
    in_namespace(|| {
        veth("gw0", "peer0", 1);
        veth("gw1", "peer1", 1);
        veth("gw2", "peer2", 1);
        let (umem, mut pools) = pools(1);
        let open = |name, pools: &mut [FramePool]| {
            XdpDevice::open(&umem, name, &options(Attach::Native), pools).unwrap()
        };
        let (_zero, mut zero) = open("gw0", &mut pools);
        let (_one, mut one) = open("gw1", &mut pools);
        ip("link del gw0");
        let (_two, mut two) = open("gw2", &mut pools);
        zero[0].shutdown(&mut pools[0]);
        let sent = frames(20);
        for (port, name) in [(&mut one[0], "peer1"), (&mut two[0], "peer2")] {
            Peer::new(name).send(&sent);
            assert_eq!(receive(port, &mut pools[0], 20), sent);
            port.shutdown(&mut pools[0]);
        }
        all_home(&pools);
    });
}

#[test]
fn the_kernel_keeps_what_is_its_own() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        ip("addr add 192.0.2.1/24 dev gw");
        let mac = Device::by_name("gw").unwrap().mac().unwrap();
        let (umem, mut pools) = pools(1);
        let address: IpAddr = [192, 0, 2, 1].into();
        let options = XdpOptions {
            division: Division::HostShared,
            addresses: vec![OwnPrefix { address, length: 32, usage: AddressUse::Tunnel }],
            ..options(Attach::Native)
        };
        let (device, mut ports) = XdpDevice::open(&umem, "gw", &options, &mut pools).unwrap();
        let mut peer = Peer::new("peer");
        // Who has 192.0.2.1? Tell 192.0.2.9.
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 0, 2, 9];
        request.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        peer.send(&[ethernet([255; 6], 0x0806, &request)]);
        let reply = peer.receive(1).remove(0);
        assert_eq!(reply[12..14], [8, 6]);
        assert_eq!(reply[20..22], [0, 2], "an answer");
        assert_eq!(reply[22..28], mac);
        // ESP to the same address is the gateway's.
        let esp = Ipv4::to([192, 0, 2, 1], 50).frame(&[9; 60]);
        peer.send(std::slice::from_ref(&esp));
        assert_eq!(receive(&mut ports[0], &mut pools[0], 1), [esp]);
        let counters = device.program.counters().unwrap();
        assert_eq!((counters.get(Verdict::LinkControl), counters.get(Verdict::Esp)), (1, 1));
        ports[0].shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

#[test]
fn a_tap_is_a_port_to_the_kernels_own_stack() {
    in_namespace(|| {
        let (_, mut pools) = pools(1);
        let mut tap = TapPort::open("host0").unwrap();
        let mut queue = FrameQueue::new();
        queue.push(pools[0].alloc_with(&ethernet(UNICAST, EXPERIMENT, b"down")).unwrap());
        assert_eq!(tap.tx_burst(&mut pools[0], &mut queue), 0);
        assert_eq!(tap.health(), PortHealth::Down);
        ip("addr add 192.0.2.1/24 dev host0");
        tap.device().set_up().unwrap();
        assert_eq!(tap.tx_burst(&mut pools[0], &mut queue), 1);
        assert_eq!(tap.health(), PortHealth::Up);
        assert_eq!(tap.rx_burst(&mut pools[0], &mut queue, 64), 0);

        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 0, 2, 9];
        request.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        send(&mut tap, &mut pools[0], &[ethernet([255; 6], 0x0806, &request)]);
        let reply = receive(&mut tap, &mut pools[0], 1).remove(0);
        assert_eq!((&reply[12..14], &reply[20..22]), (&[8, 6][..], &[0, 2][..]));
        assert_eq!(reply[22..28], tap.device().mac().unwrap());

        ip("link del host0");
        queue.push(pools[0].alloc_with(&ethernet(UNICAST, EXPERIMENT, b"gone")).unwrap());
        assert_eq!(tap.tx_burst(&mut pools[0], &mut queue), 0);
        assert_eq!(tap.health(), PortHealth::Gone);
        assert_eq!(tap.rx_burst(&mut pools[0], &mut queue, 64), 0);
        queue.drain(..).for_each(|frame| pools[0].free(frame));
        all_home(&pools);
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (umem, mut pools) = pools(1);
        let open = |name: &str, config: &SocketConfig, queue, pool: &mut FramePool| {
            let device = Device::by_name(name)?;
            XdpPort::open(&umem, &device, queue, config, pool)
        };
        let missing = open("gw9", &small(), 0, &mut pools[0]).unwrap_err();
        assert!(matches!(missing, XdpError::Device(Error::DeviceMissing { .. })), "{missing}");
        let queue = open("gw", &small(), 1, &mut pools[0]).unwrap_err();
        assert!(matches!(queue, XdpError::Device(Error::QueueMissing { queues: 1, .. })), "{queue}");
        let zero_copy = SocketConfig { mode: Mode::ZeroCopy, ..small() };
        let unsupported = open("gw", &zero_copy, 0, &mut pools[0]).unwrap_err();
        assert!(matches!(unsupported, XdpError::Device(Error::ZeroCopyUnsupported { .. })), "{unsupported}");
        let ring = SocketConfig { tx_size: 1000, ..small() };
        let geometry = open("gw", &ring, 0, &mut pools[0]).unwrap_err();
        assert!(geometry.to_string().contains("tx ring cannot have 1000"), "{geometry}");
        let greedy = SocketConfig { fill_size: 2048, ..small() };
        let few = open("gw", &greedy, 0, &mut pools[0]).unwrap_err();
        assert!(matches!(few, XdpError::TooFewFrames { needed: 2176, available: 2048, .. }), "{few}");
        all_home(&pools);

        ip("link set gw mtu 1771");
        let mtu = open("gw", &small(), 0, &mut pools[0]).unwrap_err();
        assert!(mtu.to_string().contains("MTU of 1771") && mtu.to_string().contains("1770"), "{mtu}");
        ip("link set gw mtu 1770");
        let mut port = open("gw", &small(), 0, &mut pools[0]).unwrap();
        let busy = open("gw", &small(), 0, &mut pools[0]).unwrap_err();
        assert!(matches!(busy, XdpError::Device(Error::QueueBusy { .. })), "{busy}");
        // And the same from another program, which has other memory.
        let ((other_umem, mut other_pools), device) = (self::pools(1), Device::by_name("gw").unwrap());
        let busy = XdpPort::open(&other_umem, &device, 0, &small(), &mut other_pools[0]).unwrap_err();
        assert!(matches!(busy, XdpError::Device(Error::QueueBusy { .. })), "{busy}");
        all_home(&other_pools);
        port.shutdown(&mut pools[0]);

        let device = Device::by_name("gw").unwrap();
        let (mut first, mut second) = (Program::load().unwrap(), Program::load().unwrap());
        first.attach(&device, Attach::Native).unwrap();
        let present = second.attach(&device, Attach::Auto).unwrap_err();
        assert!(matches!(present, ProgramError::Attach(Error::ProgramPresent { .. })), "{present}");
        let lo = Device::by_name("lo").unwrap();
        let attached = second.attach(&lo, Attach::Auto).unwrap();
        assert_eq!(attached.hook, Hook::Generic);
        assert!(matches!(attached.fallback, Some(Error::NativeUnsupported { .. })));
        assert!(second.attach(&lo, Attach::Native).is_err());

        veth("many", "others", 2);
        let queues = XdpDevice::open(&umem, "many", &options(Attach::Native), &mut pools).unwrap_err();
        assert!(queues.to_string().contains("receives on 2 queues, but there are 1 workers"), "{queues}");
        all_home(&pools);
    });
}

#[test]
fn a_device_that_strips_tags_is_told_to_stop() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (umem, mut pools) = pools(1);
        for expected in [&["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"][..], &[]] {
            let (device, mut ports) =
                XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
            assert_eq!(device.turned_off, expected);
            ports[0].shutdown(&mut pools[0]);
        }
        let features = Command::new("ethtool").args(["-k", "gw"]).output().unwrap().stdout;
        let features = String::from_utf8(features).unwrap();
        assert!(features.contains("rx-vlan-offload: off"), "{features}");
        assert!(features.contains("rx-vlan-stag-hw-parse: off"), "{features}");
        // A feature that is there and fixed, and one that is not.
        let device = Device::by_name("lo").unwrap();
        let stubborn = device.turn_off(&["loopback", "no-such-feature"]).unwrap();
        assert_eq!(stubborn, (vec![], vec!["loopback"]));
    });
}

#[test]
fn every_option_of_a_socket_carries_frames() {
    let busy_poll = Some(BusyPoll { micros: 20, budget: 64 });
    for socket in [
        SocketConfig { need_wakeup: false, ..small() },
        SocketConfig { busy_poll, ..small() },
        SocketConfig { tx_budget: None, mode: Mode::Copy, ..small() },
        SocketConfig { rx_size: 64, tx_size: 32, fill_size: 128, completion_size: 32, ..small() },
    ] {
        in_namespace(move || {
            veth("gw", "peer", 1);
            let (umem, mut pools) = pools(1);
            let options = XdpOptions { socket, ..options(Attach::Native) };
            let (_device, mut ports) = XdpDevice::open(&umem, "gw", &options, &mut pools).unwrap();
            let mut peer = Peer::new("peer");
            for chunk in frames(240).chunks(60) {
                peer.send(chunk);
                assert_eq!(receive(&mut ports[0], &mut pools[0], 60), chunk);
                send(&mut ports[0], &mut pools[0], chunk);
                assert_eq!(peer.receive(60), chunk);
            }
            assert_eq!(ports[0].shutdown(&mut pools[0]), 0);
            all_home(&pools);
        });
    }
}

/// Devices "gw" and "peer" with an MTU, and ports at "gw" whose buffers have so many bytes.
fn line(mtu: usize, buffer: usize, options: &XdpOptions) -> (XdpDevice, Vec<XdpPort>, Vec<FramePool>) {
    veth("gw", "peer", 1);
    ip(&format!("link set gw mtu {mtu}"));
    ip(&format!("link set peer mtu {mtu}"));
    let umem = Umem::new(1024, buffer, HugePages::Never).unwrap();
    let shared = share(&umem).unwrap();
    let mut pools = umem.into_pools(1);
    let (device, ports) = XdpDevice::open(&shared, "gw", options, &mut pools).unwrap();
    (device, ports, pools)
}

#[test]
fn larger_buffers_carry_larger_frames() {
    in_namespace(|| {
        let (_device, mut ports, mut pools) = line(3400, 4096, &options(Attach::Native));
        let sent: Vec<_> = (3380..=3400).map(|n| ethernet(UNICAST, EXPERIMENT, &vec![n as u8; n])).collect();
        let mut peer = Peer::new("peer");
        peer.send(&sent);
        assert_eq!(receive(&mut ports[0], &mut pools[0], sent.len()), sent);
        send(&mut ports[0], &mut pools[0], &sent);
        assert_eq!(peer.receive(sent.len()), sent);
        ports[0].shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

/// Frames of 60 bytes to those of an MTU of 9001, in no order.
fn jumbo_frames(count: usize) -> Vec<Vec<u8>> {
    let lengths = [60, 9015, 3840, 1514, 3841, 7680, 64, 9014, 7681, 2048, 4096, 5000];
    let lengths = (0..count).map(|i| (lengths[i % lengths.len()] + i / lengths.len()).min(9015));
    let fill = |len: usize| (0..len).map(|i| (i * 7 + i / 256 + len) as u8).collect::<Vec<u8>>();
    lengths.map(|len| ethernet(UNICAST, EXPERIMENT, &fill(len - 14))).collect()
}

#[test]
fn jumbo_frames_come_in_pieces_and_go_in_pieces() {
    for (attach, buffer) in [(Attach::Native, 16384), (Attach::Generic, 16384), (Attach::Native, 8192)] {
        in_namespace(move || {
            let longest = if buffer == 8192 { 7000 } else { 9001 };
            let (device, mut ports, mut pools) = line(longest, buffer, &options(attach));
            let hook = if attach == Attach::Generic { Hook::Generic } else { Hook::Native };
            assert_eq!(device.attached.hook, hook);
            let mut sent = jumbo_frames(96);
            sent.retain(|frame| frame.len() <= longest + 14);
            let mut peer = Peer::new("peer");
            // More than the rings hold, so that every descriptor is used again.
            for chunk in std::iter::repeat_n(sent.chunks(24), 10).flatten() {
                peer.send(chunk);
                assert_eq!(receive(&mut ports[0], &mut pools[0], chunk.len()), chunk);
                send(&mut ports[0], &mut pools[0], chunk);
                assert_eq!(peer.receive(chunk.len()), chunk);
            }
            let stats = ports[0].stats();
            assert_eq!((stats.rx_dropped, stats.invalid_descriptors), (0, 0));
            assert_eq!(ports[0].shutdown(&mut pools[0]), 0);
            all_home(&pools);
        });
    }
}

#[test]
fn jumbo_frames_that_find_no_room_to_be_sent_wait() {
    in_namespace(|| {
        let options =
            XdpOptions { socket: SocketConfig { tx_size: 8, ..small() }, ..options(Attach::Native) };
        let (_device, mut ports, mut pools) = line(9001, 16384, &options);
        let sent = vec![jumbo_frames(2).pop().unwrap(); 4];
        let mut frames = FrameQueue::new();
        frames.extend(sent.iter().map(|bytes| pools[0].alloc_with(bytes).unwrap()));
        // Three pieces each: two packets fit eight descriptors.
        let mut peer = Peer::new("peer");
        assert_eq!(ports[0].tx_burst(&mut pools[0], &mut frames), 2);
        while !frames.is_empty() {
            ports[0].complete(&mut pools[0]);
            ports[0].tx_burst(&mut pools[0], &mut frames);
        }
        assert_eq!(peer.receive(4), sent);
        assert_eq!(ports[0].shutdown(&mut pools[0]), 0);
        all_home(&pools);
    });
}

#[test]
fn jumbo_frames_pass_where_xdp_is_not_to_be_had() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        ip("link set gw mtu 9001");
        ip("link set peer mtu 9001");
        let mut pools = Umem::new(512, 16384, HugePages::Never).unwrap().into_pools(1);
        let mut port = PacketPort::open(&Device::by_name("gw").unwrap(), &PacketConfig::default()).unwrap();
        let (sent, mut peer) = (jumbo_frames(48), Peer::new("peer"));
        peer.send(&sent);
        assert_eq!(receive(&mut port, &mut pools[0], sent.len()), sent);
        send(&mut port, &mut pools[0], &sent);
        assert_eq!(peer.receive(sent.len()), sent);
        assert_eq!((port.stats().rx_dropped, port.stats().invalid_descriptors), (0, 0));
        port.shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

#[test]
fn an_mtu_beyond_a_page_needs_buffers_for_it() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        ip("link set gw mtu 9001");
        let umem = Umem::new(1024, 4096, HugePages::Never).unwrap();
        let shared = share(&umem).unwrap();
        let mut pools = umem.into_pools(1);
        let error = XdpDevice::open(&shared, "gw", &options(Attach::Native), &mut pools).unwrap_err();
        assert!(matches!(error, XdpError::Mtu { mtu: 9001, chunk: 4096, largest: 3818, .. }), "{error}");
        assert!(error.to_string().contains("buffer_size = 16384"), "{error}");
        all_home(&pools);
    });
}

#[test]
fn ports_can_move_to_the_thread_of_their_worker() {
    fn can_move<T: Send>() {}
    can_move::<XdpPort>();
    can_move::<PacketPort>();
    can_move::<TapPort>();
    can_move::<XdpDevice>();
}

#[test]
fn a_foreign_pool_is_refused() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let ((umem, _), (_, mut others)) = (pools(1), pools(1));
        let error = XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut others).unwrap_err();
        assert!(matches!(error, XdpError::ForeignFrames { .. }), "{error}");
        all_home(&others);
    });
}

#[test]
fn the_descriptor_wakes_a_sleeper() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let (umem, mut pools) = pools(1);
        let (_device, mut ports) =
            XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
        assert!(ports[0].fd().is_some());
        Peer::new("peer").send(&frames(1));
        let socket = ports[0].fd().unwrap().as_fd().try_clone_to_owned().unwrap();
        assert!(af_xdp::wait_readable(&socket, Some(PATIENCE)).unwrap());
        assert_eq!(receive(&mut ports[0], &mut pools[0], 1), frames(1));
        assert!(!af_xdp::wait_readable(&socket, Some(Duration::ZERO)).unwrap());
        drop(socket);
        ports[0].shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

/// Names the device that the child of the next test opens. Unset, the test below is no child and does nothing.
const CHILD: &str = "CAUSEWAY_TEST_CHILD";

#[test]
fn child_that_holds_a_port() {
    let Some(name) = std::env::var_os(CHILD) else { return };
    let (umem, mut pools) = pools(1);
    let name = name.into_string().unwrap();
    let _held = XdpDevice::open(&umem, &name, &options(Attach::Native), &mut pools).unwrap();
    println!("\nholding");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_process_leaves_no_program_behind() {
    in_namespace(|| {
        veth("gw", "peer", 1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_holds_a_port", "--nocapture"])
            .env(CHILD, "gw")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "holding"), "the child ended");
        assert!(ip("-details link show gw").contains("prog/xdp"), "attached");
        child.kill().unwrap();
        child.wait().unwrap();
        // The kernel takes links apart behind the process's back.
        let since = Instant::now();
        while ip("-details link show gw").contains("prog/xdp") {
            assert!(since.elapsed() < PATIENCE, "the program is still attached");
        }
        // And the queue is free again.
        let (umem, mut pools) = pools(1);
        let (_device, mut ports) =
            XdpDevice::open(&umem, "gw", &options(Attach::Native), &mut pools).unwrap();
        let sent = frames(10);
        Peer::new("peer").send(&sent);
        assert_eq!(receive(&mut ports[0], &mut pools[0], 10), sent);
        ports[0].shutdown(&mut pools[0]);
        all_home(&pools);
    });
}

/// Set: this process is the one below, in a mount and a network namespace of its own.
const PINNED: &str = "CAUSEWAY_TEST_PINNED";

/// A BPF file system needs a mount, so the test runs in a process that can have one without anybody seeing it.
#[test]
fn a_pinned_program_stays_and_is_replaced_in_place() {
    if std::env::var_os(PINNED).is_none() {
        if !is_root() {
            return;
        }
        let status = Command::new("unshare")
            .args(["--mount", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_pinned_program_stays_and_is_replaced_in_place", "--nocapture"])
            .env(PINNED, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    be_quiet();
    let directory = tempfile::tempdir().unwrap();
    let pins = directory.path();
    let mounted = Command::new("mount").args(["-t", "bpf", "none"]).arg(pins).status().unwrap();
    assert!(mounted.success());
    let attached = || {
        let shown = ip("-details link show gw.1");
        let id = shown.split_whitespace().skip_while(|&word| word != "prog/xdp").nth(2);
        id.map(|id| id.parse::<u32>().unwrap())
    };
    // Made again under the same name, a device is another one, whose former pin means nothing.
    // One beyond a page takes the program for frames in pieces, each time.
    for mtu in [1500, 1500, 9001] {
        veth("gw.1", "peer", 1);
        ip(&format!("link set gw.1 mtu {mtu}"));
        ip(&format!("link set peer mtu {mtu}"));
        let memory = Umem::new(1024, if mtu > 1500 { 16384 } else { 2048 }, HugePages::Never).unwrap();
        let umem = share(&memory).unwrap();
        let mut pools = memory.into_pools(1);
        let options = XdpOptions { pin: Some(pins.to_owned()), ..options(Attach::Native) };
        let mut before = None;
        for _ in 0..3 {
            let (device, mut ports) = XdpDevice::open(&umem, "gw.1", &options, &mut pools).unwrap();
            assert_eq!(device.attached.hook, Hook::Native);
            assert_ne!(attached(), before, "the new program");
            before = attached();
            let sent = if mtu > 1500 { jumbo_frames(10) } else { frames(10) };
            Peer::new("peer").send(&sent);
            assert_eq!(receive(&mut ports[0], &mut pools[0], 10), sent);
            ports[0].shutdown(&mut pools[0]);
            drop(device);
            assert_eq!(attached(), before, "it stays");
            assert!(before.is_some());
        }
        ip("link del gw.1");
        all_home(&pools);
    }
    // Another hook than the one pinned, and an end of it by hand.
    veth("gw.1", "peer", 1);
    let device = Device::by_name("gw.1").unwrap();
    for attach in [Attach::Native, Attach::Generic, Attach::Auto] {
        let mut program = Program::load().unwrap();
        let expected = if attach == Attach::Native { Hook::Native } else { Hook::Generic };
        assert_eq!(program.attach_pinned(&device, attach, pins).unwrap().hook, expected);
    }
    assert!(ip("-details link show gw.1").contains("xdpgeneric"));
    assert!(Program::clean_up("gw.1", pins));
    assert!(!Program::clean_up("gw.1", pins));
    let since = Instant::now();
    while ip("-details link show gw.1").contains("xdpgeneric") {
        assert!(since.elapsed() < PATIENCE, "the program is still attached");
    }
    assert!(Program::load().unwrap().attach_pinned(&device, Attach::Auto, "/nowhere".as_ref()).is_err());
    Command::new("umount").arg(pins).status().unwrap();
}
