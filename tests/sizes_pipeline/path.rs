//! What routers between the gateways say: the path's MTU, and peers that cannot be reached.

use std::time::Duration;

use super::{common::frame::*, icmp_error, sites::*};

/// A router on the line tells the first gateway about a packet that it has sent.
fn tell(pair: &mut Pair, router: (&str, &str), kind: u8, code: u8, word: u32, quote: &[u8]) {
    let own = router.1;
    let error = icmp(router.0, own, kind, code, word.to_be_bytes(), quote);
    let line = pair.a.host("wan", &[100], 77);
    pair.a.from(&line, &error.bytes());
}

/// A router's address and the first gateway's, of the outer version.
fn router(kind: Kind) -> (&'static str, &'static str) {
    if kind.outer_v6 { ("2001:db8:77::1", "2001:db8:ff::1") } else { ("203.0.113.77", "192.0.2.1") }
}

fn too_big(pair: &mut Pair, kind: Kind, mtu: u32, quote: &[u8]) {
    let (icmp_kind, code) = if kind.outer_v6 { (2, 0) } else { (3, 4) };
    tell(pair, router(kind), icmp_kind, code, mtu, quote);
}

/// What the first gateway tells the sender of a packet of 1400 bytes that may not be divided, if anything.
fn told(pair: &mut Pair) -> Option<u32> {
    pair.a.from(&pair.host_a.clone(), &udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1372)).df().bytes());
    let errors = pair.a.packets(&pair.host_a);
    pair.sealed();
    pair.a.dropped();
    errors.first().map(|error| icmp_error(error).word)
}

#[test]
fn a_smaller_path_is_learned_and_senders_are_told() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1372)).df().bytes()).payload;
        assert_eq!(told(&mut pair), None);
        too_big(&mut pair, kind, 1400, &sealed[..kind.outer_header() + 8]);
        // It has done its work, and is nobody else's.
        assert_eq!(pair.a.dropped(), [("local-consumed", 1)], "{kind:?}");
        let most = kind.largest(1400);
        assert_eq!(told(&mut pair), Some(most as u32), "{kind:?}");
        let path = &pair.a.single.built.tables.tunnels[0].path;
        assert_eq!(path.mtu(), Some(1400));
        // What may be divided is, and none of it is larger than the path takes.
        let large = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1400));
        pair.a.from(&pair.host_a.clone(), &large.bytes());
        let frames = pair.a.raw(1);
        assert_eq!(frames.len(), 2);
        assert!(frames.iter().all(|frame| frame.len() <= 1400 + 18));
        // Never up again, but with time.
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1200)).df().bytes()).payload;
        too_big(&mut pair, kind, 1450, &sealed);
        too_big(&mut pair, kind, 1399, &sealed);
        assert_eq!(told(&mut pair), Some(most as u32), "an MTU that the packet had kept to was believed");
        pair.a.pass(Duration::from_secs(602));
        assert_eq!(told(&mut pair), None, "ten minutes are over");
    }
}

#[test]
fn errors_that_quote_what_was_not_sent_are_not_believed() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1372)).df().bytes()).payload;
        let esp = kind.outer_header();
        let (source, destination) = if kind.outer_v6 { (8, 24) } else { (12, 16) };
        for (at, what) in [
            (source, "another sender"),
            (destination, "another peer"),
            (esp + 3, "another SPI"),
            (esp + 4, "a sequence number never used"),
            (esp + 7, "the next sequence number"),
        ] {
            let mut quote = sealed.clone();
            quote[at] = if at == esp + 7 { 200 } else { quote[at] ^ 1 };
            too_big(&mut pair, kind, 1400, &quote);
            assert_eq!(pair.a.dropped(), [("icmp-quote-mismatch", 1)], "{kind:?}: {what}");
        }
        // Too little of it is quoted to know; and what is about something else is not this gateway's.
        too_big(&mut pair, kind, 1400, &sealed[..esp + 7]);
        assert_eq!(pair.a.dropped(), [("icmp-quote-mismatch", 1)]);
        let (from, own) = router(kind);
        too_big(&mut pair, kind, 1400, &udp(own, from, (1, 2), &data(100)).bytes());
        assert_eq!(pair.a.dropped(), [("local-unserved", 1)]);
        // A wrong checksum.
        let (icmp_kind, code) = if kind.outer_v6 { (2, 0) } else { (3, 4) };
        let mut error = icmp(from, own, icmp_kind, code, 1400_u32.to_be_bytes(), &sealed);
        error.payload[20] ^= 1;
        let line = pair.a.host("wan", &[100], 77);
        pair.a.from(&line, &error.bytes());
        assert_eq!(pair.a.dropped(), [("local-unserved", 1)]);
        assert_eq!(told(&mut pair), None);
    }
}

#[test]
fn no_error_makes_a_path_smaller_than_any_is() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1372)).df().bytes()).payload;
        for mtu in if kind.outer_v6 { vec![0, 1, 1279, 1 << 20] } else { vec![70_000, 1500, 1490] } {
            too_big(&mut pair, kind, mtu, &sealed);
            assert_eq!(told(&mut pair), None, "{kind:?}: {mtu}");
        }
        let least = if kind.outer_v6 {
            too_big(&mut pair, kind, 1280, &sealed);
            1280
        } else {
            // From routers that do not say: the next lower usual size.
            too_big(&mut pair, kind, 0, &sealed);
            assert_eq!(told(&mut pair), Some(kind.largest(1006) as u32));
            too_big(&mut pair, kind, 68, &sealed);
            576
        };
        assert_eq!(told(&mut pair), Some(kind.largest(least) as u32), "{kind:?}");
        // IPv6 packets of 1280 bytes go on passing, in pieces that the path takes.
        let packet = udp(WAYS[1].0, WAYS[1].1, (1, 2), &data(1280 - 48));
        pair.a.from(&pair.host_a.clone(), &packet.bytes());
        let frames = pair.a.raw(1);
        assert!(frames.len() > 1 && frames.iter().all(|frame| frame.len() <= least + 18));
        frames.iter().for_each(|frame| pair.b.send(1, frame));
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
    }
}

#[test]
fn senders_are_told_of_a_peer_that_cannot_be_reached() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes()).payload;
        let codes: &[(u8, u8)] =
            if kind.outer_v6 { &[(1, 0), (1, 3), (3, 0)] } else { &[(3, 0), (3, 1), (3, 13), (11, 0)] };
        for &(icmp_kind, code) in codes {
            tell(&mut pair, router(kind), icmp_kind, code, 0, &sealed);
            assert_eq!(pair.a.dropped(), [("local-consumed", 1)]);
            for (from, to) in WAYS {
                let packet = udp(from, to, (1, 2), b"lost?");
                pair.a.from(&pair.host_a.clone(), &packet.bytes());
                let error = icmp_error(&pair.a.one(&pair.host_a));
                let expected = if from.contains(':') { (1, 3) } else { (3, 1) };
                assert_eq!((error.kind, error.code), expected);
                assert_eq!(error.quote, packet.forwarded());
                // The packet itself goes on: the report may be wrong.
                assert_eq!(pair.sealed().len(), 1);
            }
            pair.a.pass(Duration::from_secs(3));
            pair.a.from(&pair.host_a.clone(), &udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
            assert!(pair.a.packets(&pair.host_a).is_empty());
            pair.sealed();
        }
    }
}

#[test]
fn senders_are_told_of_a_next_hop_that_does_not_answer() {
    let mut a = super::common::Lab::new(&site(1, PLAIN));
    let host = a.host("lan", &[10], 9);
    a.meet(&host, "10.1.0.9", "10.1.0.1");
    for n in 0..3 {
        a.from(&host, &udp("10.1.0.9", "10.2.0.9", (n, 2), b"x").bytes());
    }
    a.pass(Duration::from_secs(4));
    assert_eq!(a.dropped(), [("neighbour-unreachable", 3)]);
    assert!(a.packets(&host).is_empty(), "nobody knows what was in those");
    a.from(&host, &udp("10.1.0.9", "10.2.0.9", (7, 2), b"x").bytes());
    let error = icmp_error(&a.packets(&host).remove(0));
    assert_eq!((error.kind, error.code, error.from.as_str()), (3, 1, "10.1.0.1"));
    a.pass(Duration::from_secs(4));
}

#[test]
fn senders_are_told_at_a_bounded_rate() {
    let mut pair = Pair::new(PLAIN);
    let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes()).payload;
    tell(&mut pair, router(PLAIN), 3, 1, 0, &sealed);
    for n in 0..200 {
        pair.a.from(&pair.host_a.clone(), &udp("10.1.0.9", "10.2.0.9", (n, 2), b"x").bytes());
    }
    assert_eq!(pair.a.packets(&pair.host_a).len(), 50);
    assert_eq!(pair.sealed().len(), 200);
}
