//! Captures are put together byte by byte here, so that reader and writer are not judged by themselves.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::packet::{HugePages, Umem};

/// Integers in either byte order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Big,
    Little,
}

impl Order {
    fn u16(self, n: u16) -> [u8; 2] {
        if self == Self::Big { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    fn u32(self, n: u32) -> [u8; 4] {
        if self == Self::Big { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| self.u32(*word)).collect()
    }
}

const MICROS: u32 = 0xa1b2_c3d4;
const NANOS_MAGIC: u32 = 0xa1b2_3c4d;

fn pcap_header(order: Order, magic: u32, link: u32) -> Vec<u8> {
    let mut file = order.u32(magic).to_vec();
    file.extend(order.u16(2));
    file.extend(order.u16(4));
    file.extend(order.words(&[0, 0, 65535, link]));
    file
}

fn pcap_packet(order: Order, seconds: u32, fraction: u32, original: u32, bytes: &[u8]) -> Vec<u8> {
    let mut packet = order.words(&[seconds, fraction, bytes.len() as u32, original]);
    packet.extend_from_slice(bytes);
    packet
}

fn block(order: Order, kind: u32, mut body: Vec<u8>) -> Vec<u8> {
    body.resize(body.len().next_multiple_of(4), 0);
    let length = body.len() as u32 + 12;
    let mut block = order.words(&[kind, length]);
    block.extend(body);
    block.extend(order.u32(length));
    block
}

fn section(order: Order) -> Vec<u8> {
    let mut body = order.u32(0x1a2b_3c4d).to_vec();
    body.extend(order.u16(1));
    body.extend(order.u16(0));
    body.extend([0xff; 8]);
    block(order, 0x0a0d_0d0a, body)
}

fn option(order: Order, code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = order.u16(code).to_vec();
    option.extend(order.u16(value.len() as u16));
    option.extend_from_slice(value);
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

fn interface(order: Order, link: u16, options: &[Vec<u8>]) -> Vec<u8> {
    let mut body = order.u16(link).to_vec();
    body.extend(order.u16(0));
    body.extend(order.u32(0));
    if !options.is_empty() {
        body.extend(options.concat());
        body.extend([0; 4]);
    }
    block(order, 1, body)
}

fn enhanced(order: Order, interface: u32, ticks: u64, original: u32, bytes: &[u8]) -> Vec<u8> {
    let words = [interface, (ticks >> 32) as u32, ticks as u32, bytes.len() as u32, original];
    let mut body = order.words(&words);
    body.extend_from_slice(bytes);
    block(order, 6, body)
}

fn source(file: Vec<u8>) -> Result<PcapSource, CaptureError> {
    PcapSource::from_reader("x.pcap", io::Cursor::new(file))
}

type Packet = (u64, Vec<u8>, u32, u32);

fn read(mut source: PcapSource) -> (Vec<Packet>, Option<CaptureError>) {
    let mut packets = Vec::new();
    loop {
        match source.next() {
            Some(Ok(r)) => packets.push((r.timestamp, r.bytes.to_vec(), r.original_length, r.interface)),
            Some(Err(error)) => {
                assert!(source.next().is_none(), "an error is the end");
                return (packets, Some(error));
            }
            None => return (packets, None),
        }
    }
}

fn whole(file: Vec<u8>) -> Vec<Packet> {
    let (packets, error) = read(source(file).unwrap());
    assert!(error.is_none(), "{error:?}");
    packets
}

fn failure(file: Vec<u8>) -> CaptureError {
    match source(file) {
        Ok(source) => read(source).1.unwrap(),
        Err(error) => error,
    }
}

#[test]
fn all_four_kinds_of_pcap_are_read() {
    for order in [Order::Big, Order::Little] {
        for (magic, unit) in [(MICROS, 1000), (NANOS_MAGIC, 1)] {
            let mut file = pcap_header(order, magic, 1);
            file.extend(pcap_packet(order, 7, 999_999, 3, b"abc"));
            file.extend(pcap_packet(order, u32::MAX, 0, 0, b""));
            let first = (7 * NANOS + 999_999 * unit, b"abc".to_vec(), 3, 0);
            let last = (u64::from(u32::MAX) * NANOS, vec![], 0, 0);
            assert_eq!(whole(file), [first, last]);
        }
    }
}

#[test]
fn pcapng_units_and_offsets_are_those_of_each_interface() {
    for order in [Order::Big, Order::Little] {
        let offset = if order == Order::Big { (-2_i64).to_be_bytes() } else { (-2_i64).to_le_bytes() };
        let mut file = section(order);
        file.extend(interface(order, 1, &[]));
        file.extend(interface(order, 1, &[option(order, 2, b"eth1"), option(order, 9, &[9])]));
        file.extend(interface(order, 1, &[option(order, 9, &[0x80 | 10]), option(order, 14, &offset)]));
        file.extend(interface(order, 1, &[option(order, 9, &[12])]));
        file.extend(interface(order, 1, &[option(order, 9, &[127])]));
        file.extend(interface(order, 1, &[option(order, 9, &[0])]));
        let tick = 0x1_0000_0005_u64;
        for id in 0..5 {
            file.extend(enhanced(order, id, tick, 1, &[id as u8]));
        }
        file.extend(enhanced(order, 5, 3, 1, &[5]));
        let shift = ((tick * NANOS) >> 10) - 2 * NANOS;
        let times = [tick * 1000, tick, shift, tick / 1000, 0, 3 * NANOS];
        let expected: Vec<Packet> =
            times.iter().zip(0..).map(|(t, id)| (*t, vec![id as u8], 1, id)).collect();
        assert_eq!(whole(file), expected);
    }
}

#[test]
fn an_obsolete_packet_block_and_a_second_section_are_read() {
    let mut file = section(Order::Little);
    file.extend(interface(Order::Little, 1, &[option(Order::Little, 9, &[9])]));
    let mut body = Order::Little.u16(0).to_vec();
    body.extend(Order::Little.u16(0));
    body.extend(Order::Little.words(&[1, 2, 3, 3]));
    body.extend(b"old");
    file.extend(block(Order::Little, 2, body));
    file.extend(section(Order::Big));
    file.extend(interface(Order::Big, 1, &[]));
    file.extend(block(Order::Big, 0x0bad, vec![1, 2, 3, 4]));
    file.extend(enhanced(Order::Big, 0, 8, 3, b"new"));
    let expected = [((1 << 32) + 2, b"old".to_vec(), 3, 0), (8000, b"new".to_vec(), 3, 0)];
    assert_eq!(whole(file), expected);
}

#[test]
fn each_error_names_the_file_and_the_packet() {
    let order = Order::Little;
    let start = || {
        let mut file = pcap_header(order, MICROS, 1);
        file.extend(pcap_packet(order, 0, 0, 3, b"abc"));
        file
    };
    let is = |file: Vec<u8>, expected: &str| assert_eq!(failure(file).to_string(), expected);

    is(vec![], "x.pcap is no pcap or pcapng capture: it is empty");
    is(
        vec![0x1f, 0x8b, 8, 0],
        "x.pcap is no pcap or pcapng capture: it is compressed; unpack it with gunzip",
    );
    let text = b"#!/bin/sh\n".to_vec();
    is(text, "x.pcap is no pcap or pcapng capture: its first bytes are those of another format");
    let head = pcap_header(order, MICROS, 1)[..20].to_vec();
    is(head, "x.pcap is no pcap or pcapng capture: its file header is not whole");
    let cooked = pcap_header(order, MICROS, 113);
    is(cooked, "x.pcap has packets of link type LINUX_SLL; only Ethernet is read");
    let mut raw = section(order);
    raw.extend(interface(order, 101, &[]));
    is(raw, "x.pcap has packets of link type RAW; only Ethernet is read");

    let mut short = start();
    short.extend(&pcap_packet(order, 0, 0, 3, b"abc")[..18]);
    is(short, "x.pcap ends in the middle of packet 2");
    let mut cut = start();
    cut.extend(pcap_packet(order, 0, 0, 1500, b"abcd"));
    is(cut.clone(), "x.pcap: packet 2 was cut to 4 of its 1500 bytes; capture again without a snap length");
    let (packets, error) = read(source(cut).unwrap().allow_cut());
    assert!(error.is_none());
    assert_eq!(packets[1], (0, b"abcd".to_vec(), 1500, 0));
    let error = read(source(start()).unwrap().limit(2)).1.unwrap();
    assert_eq!(error.to_string(), "x.pcap: packet 1 has 3 bytes, more than the 2 of a buffer");
    assert!(read(source(start()).unwrap().limit(3)).1.is_none());
    let mut more = start();
    more.extend(pcap_packet(order, 0, 0, 1, b"abc"));
    is(more, "x.pcap: packet 2 cannot be read: it has 3 bytes in the file and 1 on the wire");
    let mut late = start();
    late.extend(pcap_packet(order, 0, 1_000_000, 1, b"a"));
    is(late, "x.pcap: packet 2 cannot be read: its time has more than a second of fraction");

    let mut nobody = section(order);
    nobody.extend(enhanced(order, 0, 0, 1, b"a"));
    is(nobody, "x.pcap: packet 1 cannot be read: it names an interface that the file does not describe");
    let mut timeless = section(order);
    timeless.extend(interface(order, 1, &[]));
    timeless.extend(block(order, 3, order.words(&[4, 0])));
    is(timeless, "x.pcap: packet 1 cannot be read: a simple packet block has no time");
    let mut far = section(order);
    far.extend(interface(order, 1, &[option(order, 9, &[0])]));
    far.extend(enhanced(order, 0, u64::MAX, 1, b"a"));
    is(far, "x.pcap: packet 1 cannot be read: its time is out of range");

    let missing = PcapSource::open("/no/such.pcap").unwrap_err().to_string();
    assert_eq!(missing, "/no/such.pcap: No such file or directory (os error 2)");
    let missing = PcapSink::create("/no/such.pcap").unwrap_err().to_string();
    assert_eq!(missing, "/no/such.pcap: No such file or directory (os error 2)");
}

/// A writer whose bytes can be looked at, and that can be made to fail.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>, bool);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_writes_what_the_format_says() {
    let out = Shared::default();
    let mut sink = PcapSink::from_writer("out.pcap", out.clone()).unwrap();
    sink.write(5 * NANOS + 123_456_789, b"abcde").unwrap();
    assert_eq!(sink.count(), 1);
    let error = sink.write(u64::MAX, b"x").unwrap_err().to_string();
    assert_eq!(error, "out.pcap: packet 2 cannot be stamped 18446744073709551615 ns");
    sink.finish().unwrap();
    let mut expected = Order::Little.u32(NANOS_MAGIC).to_vec();
    expected.extend([2, 0, 4, 0]);
    expected.extend(Order::Little.words(&[0, 0, 262_144, 1]));
    expected.extend(pcap_packet(Order::Little, 5, 123_456_789, 5, b"abcde"));
    assert_eq!(*out.0.lock().unwrap(), expected);

    let mut full = PcapSink::from_writer("full.pcap", Shared(Arc::default(), true)).unwrap();
    full.write(0, b"abc").unwrap();
    assert!(matches!(full.finish(), Err(CaptureError::Io { .. })));
}

fn pool(count: usize) -> FramePool {
    Umem::new(count, 2048, HugePages::Never).unwrap().into_pools(1).pop().unwrap()
}

fn capture(times: &[u64]) -> PcapSource {
    let mut file = pcap_header(Order::Big, NANOS_MAGIC, 1);
    for (n, time) in times.iter().enumerate() {
        let (seconds, fraction) = ((time / NANOS) as u32, (time % NANOS) as u32);
        file.extend(pcap_packet(Order::Big, seconds, fraction, 60, &[n as u8; 60]));
    }
    source(file).unwrap()
}

fn receive(port: &mut PcapPort, pool: &mut FramePool, max: usize) -> Vec<u8> {
    let mut queue = FrameQueue::new();
    let n = port.rx_burst(pool, &mut queue, max);
    assert_eq!(n, queue.len());
    let firsts = queue.iter().map(|frame| pool.umem().bytes(frame)[0]).collect();
    queue.drain(..).for_each(|frame| pool.free(frame));
    firsts
}

#[test]
fn a_port_gives_out_what_is_due_and_stamps_what_it_sends() {
    let mut pool = pool(4);
    let out = Shared::default();
    let sink = PcapSink::from_writer("out.pcap", out.clone()).unwrap();
    let mut port = PcapPort::new(Some(capture(&[5, 10, 7, 20])), Some(sink)).unwrap();
    assert_eq!((port.next_timestamp(), port.now()), (Some(5), 0));
    assert!(receive(&mut port, &mut pool, 64).is_empty());
    port.set_now(10);
    assert_eq!(receive(&mut port, &mut pool, 2), [0, 1]);
    assert_eq!(port.next_timestamp(), Some(7), "out of order, and due at once");
    port.set_now(7);
    assert_eq!(port.now(), 10);
    assert_eq!(receive(&mut port, &mut pool, 64), [2]);
    assert_eq!(port.next_timestamp(), Some(20));

    let mut queue = FrameQueue::new();
    queue.push(pool.alloc_with(b"sent").unwrap());
    assert_eq!(port.tx_burst(&mut pool, &mut queue), 1);
    port.set_now(25);
    assert_eq!(receive(&mut port, &mut pool, 64), [3]);
    assert_eq!(port.next_timestamp(), None);
    assert_eq!((port.sent(), port.held(), pool.available()), (1, 0, 4));
    assert_eq!(port.health(), PortHealth::Up);
    port.finish().unwrap();
    assert_eq!(whole(out.0.lock().unwrap().clone()), [(10, b"sent".to_vec(), 4, 0)]);
}

#[test]
fn a_packet_waits_for_a_buffer() {
    let mut pool = pool(1);
    let mut port = PcapPort::new(Some(capture(&[0, 0])), None).unwrap();
    let mut queue = FrameQueue::new();
    assert_eq!(port.rx_burst(&mut pool, &mut queue, 64), 1);
    assert_eq!(port.rx_burst(&mut pool, &mut queue, 64), 0);
    assert_eq!(port.next_timestamp(), Some(0));
    assert_eq!(port.tx_burst(&mut pool, &mut queue), 1);
    assert_eq!(receive(&mut port, &mut pool, 64), [1]);
    port.finish().unwrap();
}

#[test]
fn a_port_ends_at_an_error_and_keeps_it() {
    let mut pool = pool(4);
    let mut file = pcap_header(Order::Big, NANOS_MAGIC, 1);
    file.extend(pcap_packet(Order::Big, 0, 0, 3, b"abc"));
    file.extend(pcap_packet(Order::Big, 0, 0, 1793, &[0; 1793]));
    let mut port = PcapPort::new(Some(source(file.clone()).unwrap()), None).unwrap();
    assert_eq!(receive(&mut port, &mut pool, 64), [b'a']);
    assert_eq!((port.next_timestamp(), port.health()), (None, PortHealth::Gone));
    let error = port.finish().unwrap_err().to_string();
    assert_eq!(error, "x.pcap: packet 2 has 1793 bytes, more than the 1792 of a buffer");

    file.truncate(24 + 19 + 5);
    let mut port = PcapPort::new(Some(source(file.clone()).unwrap()), None).unwrap();
    assert_eq!(receive(&mut port, &mut pool, 64), [b'a']);
    assert!(matches!(port.error(), Some(CaptureError::Truncated { packet: 2, .. })));
    file.truncate(24 + 5);
    assert!(PcapPort::new(Some(source(file).unwrap()), None).is_err());

    // Larger than the buffer of the writer, so that the failure shows at once.
    let sink = PcapSink::from_writer("full.pcap", Shared(Arc::default(), true)).unwrap();
    let mut port = PcapPort::new(None, Some(sink)).unwrap();
    for _ in 0..8 {
        let mut queue = FrameQueue::new();
        queue.push(pool.alloc_with(&[1; 1700]).unwrap());
        assert_eq!(port.tx_burst(&mut pool, &mut queue), 1);
    }
    assert_eq!((port.health(), pool.available()), (PortHealth::Gone, 4));
    assert!(matches!(port.finish(), Err(CaptureError::Io { .. })));
}

#[test]
fn files_on_disk_are_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("round.pcap");
    let mut sink = PcapSink::create(&path).unwrap();
    sink.write(1, b"one").unwrap();
    sink.finish().unwrap();
    let source = PcapSource::open(&path).unwrap();
    assert_eq!(source.path(), path);
    assert_eq!(read(source).0, [(1, b"one".to_vec(), 3, 0)]);
}

/// A correct file of either format, to be damaged.
fn sound() -> impl Strategy<Value = Vec<u8>> {
    let order = prop_oneof![Just(Order::Big), Just(Order::Little)];
    let frames = prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6);
    (order, any::<bool>(), any::<u8>(), frames).prop_map(|(order, ng, resolution, frames)| {
        let mut file = if ng { section(order) } else { pcap_header(order, MICROS, 1) };
        if ng {
            file.extend(interface(order, 1, &[option(order, 9, &[resolution]), option(order, 2, b"eth0")]));
        }
        for (time, bytes) in frames {
            let length = bytes.len() as u32;
            file.extend(match ng {
                true => enhanced(order, 0, u64::from(time), length, &bytes),
                false => pcap_packet(order, time, time % 1_000_000, length, &bytes),
            });
        }
        file
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(source) = source(bytes) { let _ = read(source); }
    }

    #[test]
    fn no_damage_panics(
        mut file in sound(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
        keep in any::<bool>(),
    ) {
        for (at, value) in damage {
            let at = at.index(file.len());
            file[at] = value;
        }
        if !keep { file.truncate(end.index(file.len() + 1)); }
        let length = file.len();
        if let Ok(source) = source(file) {
            let (packets, _) = read(source.allow_cut());
            prop_assert!(packets.iter().map(|p| p.1.len()).sum::<usize>() <= length);
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        packets in prop::collection::vec((0..=u64::from(u32::MAX) * NANOS, prop::collection::vec(any::<u8>(), 0..200)), 0..20),
    ) {
        let out = Shared::default();
        let mut sink = PcapSink::from_writer("out.pcap", out.clone()).unwrap();
        for (time, bytes) in &packets { sink.write(*time, bytes).unwrap(); }
        sink.finish().unwrap();
        let expected: Vec<Packet> =
            packets.into_iter().map(|(time, bytes)| { let n = bytes.len() as u32; (time, bytes, n, 0) }).collect();
        prop_assert_eq!(whole(out.0.lock().unwrap().clone()), expected);
    }
}
