//! What fits a tunnel, what its senders are told, and how what does not fit is divided.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{common::frame::*, icmp_error, sites::*};

#[test]
fn esp_adds_what_it_must_and_no_more() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        for (from, to) in WAYS {
            for len in (60..80).chain([1000, kind.largest(1500)]) {
                let header = if from.contains(':') { 48 } else { 28 };
                let packet = udp(from, to, (1, 2), &data(len - header));
                let sealed = pair.seal(&packet.bytes()).payload;
                assert_eq!(sealed.len(), kind.sealed(len), "{kind:?}, {len} bytes");
            }
        }
    }
}

#[test]
fn the_mtu_of_a_tunnel_follows_from_its_line() {
    for wan_mtu in [1500, 1400, 1401, 1402, 1403, 1404, 1300, 700] {
        for kind in every_kind() {
            let kind = Kind { wan_mtu, ..kind };
            let most = kind.largest(wan_mtu.into());
            if most < 576 {
                continue;
            }
            let mut pair = Pair::new(kind);
            for (from, to, header, told) in
                [(WAYS[0].0, WAYS[0].1, 28, most), (WAYS[1].0, WAYS[1].1, 48, most.max(1280))]
            {
                let fits = udp(from, to, (1, 2), &data(told - header)).df();
                pair.a.from(&pair.host_a.clone(), &fits.bytes());
                pair.ferry();
                assert_eq!(pair.b.one(&pair.host_b), passed_twice(&fits), "{kind:?}");
                let large = udp(from, to, (1, 2), &data(told + 1 - header)).df();
                pair.a.from(&pair.host_a.clone(), &large.bytes());
                assert_eq!(pair.a.dropped(), [("packet-too-big", 1)]);
                let error = icmp_error(&pair.a.packets(&pair.host_a).remove(0));
                assert_eq!(error.word as usize, told, "{kind:?}");
                assert!(large.forwarded().starts_with(&error.quote));
            }
        }
    }
}

#[test]
fn the_line_that_carries_it_counts_not_the_one_that_has_the_address() {
    // `local` is an address of a line with an MTU of 1500; the peer is reached by one with 1300.
    let text = site(1, Kind { wan_mtu: 1300, ..PLAIN })
        .replace("local = \"192.0.2.1\"", "local = \"198.51.100.1\"")
        + "[interface.loop]\nport = \"wan\"\nvlan = 300\ngateway = \"g\"\nside = \"peer\"\n\
         addresses = [\"198.51.100.1/32\"]\n";
    let other = site(2, Kind { wan_mtu: 1300, ..PLAIN })
        .replace("remote = \"192.0.2.1\"", "remote = \"198.51.100.1\"")
        + "[[gateway.g.route]]\nto = \"198.51.100.1/32\"\nvia = \"192.0.2.1\"\n";
    let mut pair = Pair::of(&text, &other);
    let large = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1400)).df();
    pair.a.from(&pair.host_a.clone(), &large.bytes());
    let error = icmp_error(&pair.a.packets(&pair.host_a).remove(0));
    assert_eq!(error.word as usize, PLAIN.largest(1300));
}

#[test]
fn an_ipv6_packet_of_the_least_mtu_passes_a_line_that_is_too_small_for_it() {
    for kind in every_kind() {
        for wan_mtu in [1280, 1300, 700] {
            let kind = Kind { wan_mtu, ..kind };
            for tunnel in ["", "df = \"set\"", "df = \"clear\""] {
                let mut pair = Pair::new(Kind { tunnel, ..kind });
                let most = kind.largest(wan_mtu.into());
                for len in [most + 1, 1280] {
                    let packet = udp(WAYS[1].0, WAYS[1].1, (1, 2), &data(len - 48));
                    pair.a.from(&pair.host_a.clone(), &packet.bytes());
                    let frames = pair.a.raw(1);
                    assert!(frames.len() > 1, "{kind:?}: {len} bytes");
                    for frame in &frames {
                        assert!(frame.len() <= usize::from(wan_mtu) + 18, "{} bytes", frame.len());
                        pair.b.send(1, frame);
                    }
                    assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet), "{kind:?}");
                }
            }
        }
    }
}

#[test]
fn udp_over_ipv6_has_a_checksum() {
    let mut pair = Pair::new(Kind { outer_v6: true, udp: true, ..PLAIN });
    for len in 0..100 {
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(len)).bytes()).payload;
        // Reading it checks the sum.
        assert_ne!(Ip::read(&sealed).payload[6..8], [0, 0]);
    }
}

/// What comes out of a gateway, as hosts see it: whole packets, those that were divided put together.
fn whole(packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut parts: BTreeMap<u16, Vec<Ip>> = BTreeMap::new();
    let mut out = Vec::new();
    for packet in packets {
        let read = Ip::read(&packet);
        if read.more || read.offset > 0 {
            parts.entry(read.id).or_default().push(read);
        } else {
            out.push(packet);
        }
    }
    for mut pieces in parts.into_values() {
        pieces.sort_by_key(|piece| piece.offset);
        let mut packet = Ip { more: false, payload: Vec::new(), ..pieces[0].clone() };
        for piece in &pieces {
            assert_eq!(usize::from(piece.offset), packet.payload.len(), "a hole");
            packet.payload.extend_from_slice(&piece.payload);
        }
        assert!(!pieces.last().unwrap().more);
        out.push(packet.bytes());
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_packet_comes_out_whole_or_its_sender_is_told(
        kind in 0usize..4,
        wan_mtu in 640u16..1500,
        df in 0usize..3,
        inner_df: bool,
        v6: bool,
        sizes in prop::collection::vec(0usize..1600, 1..6),
    ) {
        let tunnel = ["", "df = \"set\"", "df = \"clear\""][df];
        let kind = Kind { wan_mtu, tunnel, ..every_kind().nth(kind).unwrap() };
        let most = kind.largest(wan_mtu.into());
        prop_assume!(most >= 576);
        let mut pair = Pair::new(kind);
        let (from, to) = WAYS[usize::from(v6)];
        let told = if v6 { most.max(1280) } else { most };
        for size in sizes {
            let packet = Ip { df: inner_df || v6, ..udp(from, to, (1, 2), &data(size)) };
            let len = packet.bytes().len();
            pair.a.from(&pair.host_a.clone(), &packet.bytes());
            let frames = pair.a.raw(1);
            for frame in &frames {
                prop_assert!(frame.len() <= usize::from(wan_mtu) + 18);
                pair.b.send(1, frame);
            }
            let got = whole(pair.b.packets(&pair.host_b));
            prop_assert_eq!(pair.b.dropped(), []);
            if len > told && packet.df {
                prop_assert!(got.is_empty());
                prop_assert_eq!(pair.a.dropped(), [("packet-too-big", 1)]);
                let errors = pair.a.packets(&pair.host_a);
                prop_assert_eq!(icmp_error(&errors[0]).word as usize, told);
            } else {
                prop_assert_eq!(got, [passed_twice(&packet)]);
                prop_assert_eq!(pair.a.dropped(), []);
            }
        }
    }
}
