//! Headers that change at the ends of a tunnel: TCP's segment size, ECN, padding, and what is around ESP.

use std::time::Duration;

use causeway::{packet::DropReason, stats::WorkerColumn};

use super::{common::frame::*, icmp_error, sites::*};

/// A segment that opens a connection: its flags, its options, and a right checksum.
fn opening(from: &str, to: &str, flags: u8, options: &[u8]) -> Ip {
    let mut packet = tcp(from, to, (40_000, 443), options);
    packet.payload[12] = (((20 + options.len()) / 4) << 4) as u8;
    packet.payload[13] = flags;
    // Other addresses are none: only the checksum is made new.
    packet.readdressed(from, to)
}

/// The MSS option's value in a packet, wherever it stands.
fn mss_of(packet: &[u8]) -> u16 {
    let l4 = Ip::read(packet).payload;
    let options = &l4[20..usize::from(l4[12] >> 4) * 4];
    let at = options.windows(2).position(|pair| pair == [2, 4]).unwrap();
    u16::from_be_bytes([options[at + 2], options[at + 3]])
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

#[test]
fn connections_agree_on_what_fits_both_ways() {
    for (tunnel, fixed) in [("mss = \"auto\"", None), ("mss = 1200", Some(1200))] {
        for kind in every_kind() {
            let mut pair = Pair::of(&site(1, Kind { tunnel, ..kind }), &site(2, kind));
            let inner = kind.largest(1500) as u16;
            for (from, to) in WAYS {
                let header = if from.contains(':') { 60 } else { 40 };
                let most = fixed.unwrap_or(inner - header);
                for flags in [SYN, SYN_ACK] {
                    // At an even and at an odd place, and behind options of other kinds.
                    for before in
                        [&[][..], &[1], &[1, 1, 1], &[3, 3, 7, 1], &[4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]]
                    {
                        for said in [1460, most + 1, most, 536] {
                            let [high, low] = said.to_be_bytes();
                            let mut options = [before, &[2, 4, high, low]].concat();
                            options.resize(options.len().next_multiple_of(4), 0);
                            let packet = opening(from, to, flags, &options);
                            pair.a.from(&pair.host_a.clone(), &packet.bytes());
                            pair.ferry();
                            let got = pair.b.one(&pair.host_b);
                            // Reading it checks the sum.
                            assert_eq!(mss_of(&got), said.min(most), "{kind:?}, {tunnel}");
                            // And out of the tunnel, by the same gateway.
                            let back = opening(to, from, flags, &options);
                            pair.b.from(&pair.host_b.clone(), &back.bytes());
                            pair.ferry();
                            assert_eq!(mss_of(&pair.a.one(&pair.host_a)), said.min(most));
                        }
                    }
                }
                // What opens no connection stays as it is, and so do options that lead nowhere.
                for (flags, options) in [
                    (0x10, [2, 4, 0xff, 0xff]),
                    (SYN, [2, 0, 0xff, 0xff]),
                    (SYN, [2, 40, 0xff, 0xff]),
                    (SYN, [0, 2, 4, 0xff]),
                ] {
                    let packet = opening(from, to, flags, &options);
                    pair.a.from(&pair.host_a.clone(), &packet.bytes());
                    pair.ferry();
                    assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
                }
            }
            assert!(pair.a.single.worker.counters().read_worker(WorkerColumn::MssClamped) > 0);
        }
    }
}

#[test]
fn the_segment_size_follows_the_path() {
    let mut pair = Pair::new(Kind { tunnel: "mss = \"auto\"", ..PLAIN });
    pair.a.single.built.tables.tunnels[0].path.lower(1400, 1_000_000_000);
    let packet = opening("10.1.0.9", "10.2.0.9", SYN, &[2, 4, 5, 0xb4]);
    pair.a.from(&pair.host_a.clone(), &packet.bytes());
    pair.ferry();
    assert_eq!(usize::from(mss_of(&pair.b.one(&pair.host_b))), PLAIN.largest(1400) - 40);
}

#[test]
fn all_combinations_of_ecn_are_those_of_rfc_6040() {
    // Outer Not-ECT, ECT(1), ECT(0), CE; rows likewise for the inner field.
    let expected = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    let alarming = [(0, 1), (0, 2), (0, 3), (3, 1)];
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let line = pair.line();
        for (from, to) in WAYS {
            for (inner, row) in (0..4).zip(expected) {
                for (outer, result) in (0..4).zip(row) {
                    let packet = udp(from, to, (1, 2), b"x").tos(0xb8 | inner);
                    let sealed = Ip::read(&pair.seal(&packet.bytes()).payload);
                    // Normal mode copies the field (RFC 6040 4.1).
                    assert_eq!(sealed.tos, 0xb8 | inner);
                    let before = alarms(&pair);
                    pair.b.from(&line, &sealed.tos(0xb8 | outer).bytes());
                    match result {
                        Some(ecn) => {
                            let whole = passed_twice(&packet.tos(0xb8 | ecn));
                            assert_eq!(pair.b.one(&pair.host_b), whole, "{inner} in {outer}");
                        }
                        None => assert_eq!(pair.b.dropped(), [("ecn-contradiction", 1)]),
                    }
                    let alarm = u64::from(alarming.contains(&(inner, outer)));
                    assert_eq!(alarms(&pair) - before, alarm, "{inner} in {outer}");
                }
            }
        }
    }
}

/// ECN alarms of all associations of the second gateway.
fn alarms(pair: &Pair) -> u64 {
    use std::sync::atomic::Ordering::Relaxed;
    let segment = &pair.b.single.segment;
    let group = segment.layout().group("sa").unwrap();
    let column = group.columns.iter().position(|name| name == "ecn_alarms").unwrap();
    (0..group.rows.len()).map(|row| segment.cells()[group.cell(row, column).unwrap()].load(Relaxed)).sum()
}

#[test]
fn padded_packets_show_one_size_and_come_out_as_they_were() {
    for kind in every_kind() {
        let mut pair = Pair::new(Kind { tunnel: "tfc = 1400", ..kind });
        for (from, to) in WAYS {
            for len in [0, 1, 100, 1300, 1352] {
                let packet = udp(from, to, (1, 2), &data(len));
                let size = packet.bytes().len().max(1400);
                let sealed = pair.seal(&packet.bytes());
                assert_eq!(sealed.payload.len(), kind.sealed(size), "{len} bytes");
                pair.b.from(&pair.line(), &sealed.payload);
                assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
            }
        }
        // On a way that takes less, they are padded to what it takes.
        pair.a.single.built.tables.tunnels[0].path.lower(1300, 1_000_000_000);
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
        assert_eq!(sealed.payload.len(), kind.sealed(kind.largest(1300)));
    }
}

#[test]
fn dummies_come_at_their_rate_and_are_dropped_at_the_other_end() {
    for tunnel in ["dummy = \"10/s\"", "dummy = \"10/s\"\ntfc = 1000"] {
        let kind = Kind { tunnel, ..PLAIN };
        let mut pair = Pair::of(&site(1, kind), &site(2, PLAIN));
        pair.sealed();
        pair.a.pass(Duration::from_secs(5));
        let dummies = pair.sealed();
        assert!((49..=51).contains(&dummies.len()), "{} in five seconds", dummies.len());
        let sizes: std::collections::BTreeSet<usize> = dummies.iter().map(|d| d.payload.len()).collect();
        if tunnel.contains("tfc") {
            assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [kind.sealed(1000)]);
        } else {
            assert!(sizes.len() > 20 && sizes.iter().all(|size| *size <= 1500), "{sizes:?}");
        }
        let line = pair.line();
        for dummy in &dummies {
            pair.b.from(&line, &dummy.payload);
        }
        assert_eq!(pair.b.dropped(), [("esp-dummy", dummies.len() as u64)]);
        assert!(pair.b.packets(&pair.host_b).is_empty());
        assert_eq!(pair.a.dropped(), []);
    }
}

#[test]
fn keepalives_go_when_nothing_else_does() {
    for outer_v6 in [false, true] {
        let kind = Kind { outer_v6, udp: true, tunnel: "keepalive = \"20s\"", ..PLAIN };
        let mut pair = Pair::of(&site(1, kind), &site(2, Kind { tunnel: "", ..kind }));
        pair.a.pass(Duration::from_secs(1));
        pair.sealed();
        let keepalives = |pair: &mut Pair, seconds: u64| {
            let mut count = 0;
            for _ in 0..seconds {
                pair.a.pass(Duration::from_secs(1));
                for bytes in pair.a.raw(1) {
                    let frame = read_frame(&bytes);
                    pair.b.send(1, &bytes);
                    if frame.ether_type == ARP || Ip::read(&frame.payload).proto != UDP {
                        // The other end is asked whether it is still there, and answers.
                        pair.b.raw(1).iter().for_each(|answer| pair.a.send(1, answer));
                        pair.b.dropped();
                        continue;
                    }
                    let packet = Ip::read(&frame.payload);
                    assert_eq!(packet.payload[..6], [0x11, 0x94, 0x11, 0x94, 0, 9]);
                    assert_eq!(packet.payload[8], 0xff);
                    count += 1;
                    assert_eq!(pair.b.dropped(), [("nat-keepalive", 1)]);
                }
            }
            count
        };
        let idle = keepalives(&mut pair, 100);
        assert!((4..=5).contains(&idle), "{idle} in 100 s");
        // Traffic keeps the way open by itself.
        for _ in 0..10 {
            pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
            assert_eq!(keepalives(&mut pair, 10), 0);
        }
        assert_eq!(pair.a.single.worker.counters().read_worker(WorkerColumn::Keepalives) as usize, idle);
    }
}

#[test]
fn what_shares_the_port_with_esp_is_told_apart() {
    let mut pair = Pair::new(Kind { udp: true, ..PLAIN });
    let line = pair.line();
    let on_port = |data: &[u8]| udp("192.0.2.1", "192.0.2.2", (4500, 4500), data).bytes();
    for (payload, reason) in [
        (&[0xff][..], "nat-keepalive"),
        (&[0, 0, 0, 0, 1, 2, 3, 4], "local-unserved"),
        (&[0xff, 0xff], "esp-length"),
        (&[], "esp-length"),
        (
            &[
                0, 0, 0x77, 0x77, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
                13, 14, 15, 16, 17, 18, 19, 20,
            ],
            "no-sa",
        ),
    ] {
        pair.b.from(&line, &on_port(payload));
        assert_eq!(pair.b.dropped(), [(reason, 1)], "{payload:x?}");
    }
    assert_eq!(pair.b.single.worker.counters().read_worker(WorkerColumn::NonEsp), 1);
    assert_eq!(pair.b.drops(DropReason::NatKeepalive), 1);
}

#[test]
fn options_and_extension_headers_around_esp_are_passed_over() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let line = pair.line();
        let packet = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(100));
        let sealed = pair.seal(&packet.bytes()).payload;
        let outer = if kind.outer_v6 {
            // Hop-by-hop, then destination options, each of eight bytes with padding.
            let next = sealed[6];
            let mut bytes = sealed[..40].to_vec();
            bytes[6] = 0;
            let len = (sealed.len() - 40 + 16) as u16;
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes.extend([60, 0, 1, 4, 0, 0, 0, 0, next, 0, 1, 4, 0, 0, 0, 0]);
            [bytes, sealed[40..].to_vec()].concat()
        } else {
            Ip::read(&sealed).options(&[148, 4, 0, 0, 1, 1, 1, 0]).bytes()
        };
        pair.b.from(&line, &outer);
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet), "{kind:?}");
        // And in pieces.
        let sealed = pair.seal(&packet.bytes()).payload;
        let outer = if kind.outer_v6 { sealed } else { Ip::read(&sealed).options(&[148, 4, 0, 0]).bytes() };
        for piece in divide(&outer, &[48], 7) {
            pair.b.from(&line, &piece);
        }
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet), "{kind:?}");
    }
}

#[test]
fn errors_out_of_a_tunnel_have_a_source_that_its_policies_know() {
    // The far gateway has an address on the VPC's side that no policy covers, and it comes first.
    let other = site(2, PLAIN).replace(
        "[interface.lan]",
        "[interface.first]\nport = \"lan\"\nvlan = 9\ngateway = \"g\"\nside = \"local\"\n\
         addresses = [\"172.16.0.1/24\", \"2001:db8:16::1/64\"]\n[interface.lan]",
    );
    let mut pair = Pair::of(&site(1, PLAIN), &other);
    for ((from, to), (kind, own)) in WAYS.into_iter().zip([(11, "10.2.0.1"), (3, "2001:db8:2::1")]) {
        // Trace the way: the first hop, the second, the host.
        let probe = |ttl| udp(from, to, (1, 33_434), b"probe").ttl(ttl);
        pair.a.from(&pair.host_a.clone(), &probe(1).bytes());
        let near = icmp_error(&pair.a.one(&pair.host_a));
        assert_eq!(near.kind, kind);
        pair.a.dropped();
        pair.a.from(&pair.host_a.clone(), &probe(2).bytes());
        pair.ferry();
        assert_eq!(pair.b.dropped(), [("ttl-expired", 1)]);
        let far = icmp_error(&pair.a.one(&pair.host_a));
        assert_eq!((far.kind, far.from.as_str()), (kind, own));
        pair.a.from(&pair.host_a.clone(), &probe(3).bytes());
        pair.ferry();
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&probe(3)));
    }
}
