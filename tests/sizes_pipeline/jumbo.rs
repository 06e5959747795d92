//! Packets of 9000 bytes and more, in buffers of 16384: through NAT and a tunnel, and to lines that take less.

use super::{common::frame::*, icmp_error, sites::*};

/// Packets of 9001 bytes, as clouds' dedicated lines have them, and room for a tunnel around them.
fn jumbo(end: u8, kind: Kind) -> String {
    site(end, kind)
        .replace("buffers = 1024", "buffers = 1024\nbuffer_size = 16384")
        .replace("ring = 64\nmtu = 1700", "ring = 64\nmtu = 9001")
        .replace("[port.wan]\n", "[port.wan]\nmtu = 9100\n")
}

#[test]
fn jumbo_packets_pass_every_tunnel_whole() {
    for kind in every_kind() {
        let kind = Kind { wan_mtu: 9100, ..kind };
        let mut pair = Pair::of(&jumbo(1, kind), &jumbo(2, kind));
        for (from, to) in WAYS {
            let header = if from.contains(':') { 48 } else { 28 };
            for len in [9001, 9000, 8999, 8998, 8192, 4097, 3841, 1500] {
                let packet = udp(from, to, (1, 2), &data(len - header)).df();
                let sealed = pair.seal(&packet.bytes()).payload;
                assert_eq!(sealed.len(), kind.sealed(len), "{kind:?}, {len} bytes");
                let line = pair.line();
                pair.b.from(&line, &sealed);
                assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet), "{kind:?}, {len} bytes");
            }
        }
        assert_eq!((pair.a.dropped(), pair.b.dropped()), (vec![], vec![]));
    }
}

/// The first site's host is known to the second as another.
const NAT: &str =
    "[[gateway.g.nat]]\nkind = \"local\"\noriginal = \"10.1.0.9\"\ntranslated = \"203.0.113.9\"\n";

#[test]
fn jumbo_packets_are_translated_sealed_and_opened_both_ways() {
    let kind = Kind { wan_mtu: 9100, ..PLAIN };
    // Policies see translated addresses.
    let known = |text: String| text.replace("[\"10.1.0.0/16\"]", "[\"10.1.0.0/16\", \"203.0.113.0/24\"]");
    let mut pair = Pair::of(&known(jumbo(1, Kind { more: NAT, ..kind })), &known(jumbo(2, kind)));
    for len in [9001, 9000, 5000, 3841, 100] {
        let packet = tcp("10.1.0.9", "10.2.0.9", (4000, 443), &data(len - 40)).df();
        assert_eq!(packet.bytes().len(), len);
        pair.a.from(&pair.host_a.clone(), &packet.bytes());
        pair.ferry();
        let seen = packet.readdressed("203.0.113.9", "10.2.0.9");
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&seen));
        let answer = tcp("10.2.0.9", "203.0.113.9", (443, 4000), &data(len - 40)).df();
        pair.b.from(&pair.host_b.clone(), &answer.bytes());
        pair.ferry();
        assert_eq!(pair.a.one(&pair.host_a), passed_twice(&answer.readdressed("10.2.0.9", "10.1.0.9")));
    }
    assert_eq!((pair.a.dropped(), pair.b.dropped()), (vec![], vec![]));
}

#[test]
fn jumbo_packets_are_padded_to_what_a_tunnel_pads_them() {
    let kind = Kind { wan_mtu: 9100, tunnel: "tfc = 9000", ..PLAIN };
    let mut pair = Pair::of(&jumbo(1, kind), &jumbo(2, kind));
    for len in [40, 1500, 8999, 9000, 9001] {
        let packet = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(len - 28));
        let sealed = pair.seal(&packet.bytes()).payload;
        assert_eq!(sealed.len(), kind.sealed(len.max(9000)));
        let line = pair.line();
        pair.b.from(&line, &sealed);
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
    }
}

#[test]
fn the_sender_of_a_jumbo_packet_is_told_of_a_line_of_1500() {
    for tunnelled in [false, true] {
        let kind = Kind { wan_mtu: 1500, ..PLAIN };
        let bypass = "[[gateway.g.policy]]\naction = \"bypass\"\nprotocol = \"udp\"\ndestination_port = 2\n";
        let plain =
            jumbo(1, kind).replacen("[[gateway.g.policy]]", &format!("{bypass}[[gateway.g.policy]]"), 1)
                + "[[gateway.g.route]]\nto = \"10.2.0.0/16\"\nvia = \"192.0.2.2\"\n\
               [[gateway.g.route]]\nto = \"2001:db8:2::/48\"\nvia = \"2001:db8:ff::2\"\n";
        let mut pair = Pair::of(&if tunnelled { jumbo(1, kind) } else { plain }, &jumbo(2, kind));
        let mtu = if tunnelled { kind.largest(1500) } else { 1500 };
        for (from, to) in WAYS {
            let header = if from.contains(':') { 48 } else { 28 };
            let packet = udp(from, to, (1, 2), &data(9001 - header)).df();
            pair.a.from(&pair.host_a.clone(), &packet.bytes());
            assert_eq!(pair.a.dropped(), [("packet-too-big", 1)]);
            let error = icmp_error(&pair.a.packets(&pair.host_a).remove(0));
            assert_eq!(error.word as usize, mtu);
            assert!(packet.forwarded().starts_with(&error.quote));
        }
        // Without "don't fragment" it is divided instead, and is whole again behind the pieces.
        let packet = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(9001 - 28));
        pair.a.from(&pair.host_a.clone(), &packet.bytes());
        let frames = pair.a.raw(1);
        assert_eq!(frames.len(), 7);
        assert!(frames.iter().all(|frame| read_frame(frame).payload.len() <= 1500));
        assert_eq!(pair.a.dropped(), []);
    }
}

#[test]
fn a_divided_tunnel_packet_of_9000_bytes_is_opened() {
    let kind = Kind { wan_mtu: 9100, ..PLAIN };
    let mut pair = Pair::of(&jumbo(1, kind), &jumbo(2, kind));
    let line = pair.line();
    let packet = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(9001 - 28));
    let sealed = pair.seal(&packet.bytes()).payload;
    let cuts: Vec<usize> = (1..20).map(|n| n * 552).collect();
    for piece in divide(&sealed, &cuts, 7).iter().rev() {
        assert_eq!(pair.b.packets(&pair.host_b).len(), 0);
        pair.b.from(&line, piece);
    }
    assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
    assert_eq!(pair.b.dropped(), []);
}
