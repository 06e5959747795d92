//! Fragments to the gateway itself: ESP that was divided on its way, and pings.

use std::time::Duration;

use causeway::packet::DropReason;
use proptest::prelude::*;

use super::{
    common::{frame::*, *},
    sites::*,
};

/// The order that a number names, of all orders of `n` things.
fn shuffled(n: usize, mut number: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..n).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        order.push(left.remove(number % left.len()));
        number /= left.len() + 1;
    }
    order
}

#[test]
fn divided_esp_is_opened_in_whatever_order_its_pieces_come() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let line = pair.line();
        for (from, to) in WAYS {
            for order in 0..24 {
                let packet = udp(from, to, (1, 2), &data(1200));
                let sealed = pair.seal(&packet.bytes());
                let fragments = divide(&sealed.payload, &[400, 416, 1000], 77);
                assert_eq!(fragments.len(), 4);
                let order = shuffled(4, order);
                for &which in &order {
                    assert_eq!(pair.b.packets(&pair.host_b).len(), 0);
                    pair.b.from(&line, &fragments[which]);
                }
                assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet), "{kind:?}, {order:?}");
                assert_eq!(pair.b.dropped(), []);
            }
        }
    }
}

#[test]
fn a_divided_ping_to_the_gateway_is_answered() {
    let mut pair = Pair::new(PLAIN);
    for (from, to) in [("10.2.0.9", "10.2.0.1"), ("2001:db8:2::9", "2001:db8:2::1")] {
        let kind = if from.contains(':') { 128 } else { 8 };
        let request = icmp(from, to, kind, 0, [1, 2, 3, 4], &data(1400));
        let pieces = divide(&request.bytes(), &[8, 640], 5);
        for piece in pieces.iter().rev() {
            pair.b.from(&pair.host_b.clone(), piece);
        }
        let reply = Ip::read(&pair.b.one(&pair.host_b));
        assert_eq!(reply.payload[4..], request.payload[4..]);
        assert_eq!((reply.src, reply.dst), (request.dst, request.src));
    }
    // Through the tunnel, too: what came by it is put together with nothing else.
    for (from, to) in [("10.1.0.9", "10.2.0.1"), ("2001:db8:1::9", "2001:db8:2::1")] {
        let kind = if from.contains(':') { 128 } else { 8 };
        let request = icmp(from, to, kind, 0, [1, 2, 3, 4], &data(1600));
        for piece in divide(&request.bytes(), &[800], 6) {
            pair.a.from(&pair.host_a.clone(), &piece);
        }
        pair.ferry();
        let replies = pair.a.packets(&pair.host_a);
        // The answer is larger than the tunnel takes, and divided by its sender, the gateway.
        assert_eq!((replies.len(), pair.a.dropped(), pair.b.dropped()), (2, vec![], vec![]));
    }
}

#[test]
fn pieces_that_overlap_are_refused_with_all_of_their_packet() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        let line = pair.line();
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1200)).bytes()).payload;
        let part = |start, end, more| piece(&sealed, start, end, more, 9);
        let end = sealed.len() - if kind.outer_v6 { 40 } else { 20 };
        for pieces in [
            // By one unit, within, around, and at the same place with another length.
            [part(0, 800, true), part(792, end, false)],
            [part(0, 800, true), part(400, 408, true)],
            [part(400, 408, true), part(0, 800, true)],
            [part(0, 800, true), part(0, 792, true)],
            // Two ends.
            [part(800, end, false), part(640, 800, false)],
        ] {
            pieces.iter().for_each(|piece| pair.b.from(&line, piece));
            assert_eq!(pair.b.dropped(), [("fragment-overlap", 2)]);
            // What still comes of it is refused, too, though it would make the packet whole.
            for piece in [part(0, 400, true), part(400, end, false)] {
                pair.b.from(&line, &piece);
                assert_eq!(pair.b.dropped(), [("fragment-overlap", 1)]);
            }
            assert!(pair.b.packets(&pair.host_b).is_empty());
            pair.b.pass(Duration::from_secs(61));
            assert_eq!(pair.b.dropped(), []);
        }
        // A copy is dropped alone.
        for piece in [part(0, 400, true), part(0, 400, true)] {
            pair.b.from(&line, &piece);
        }
        assert_eq!(pair.b.dropped(), [("fragment-overlap", 1)]);
        pair.b.from(&line, &part(400, end, false));
        assert_eq!(pair.b.packets(&pair.host_b).len(), 1);
    }
}

#[test]
fn a_packet_waits_for_its_pieces_as_long_as_the_standards_say() {
    for (kind, seconds) in [(PLAIN, 15), (Kind { outer_v6: true, ..PLAIN }, 60)] {
        let mut pair = Pair::new(kind);
        let line = pair.line();
        let sealed = pair.seal(&udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1200)).bytes()).payload;
        let pieces = divide(&sealed, &[400, 800], 9);
        pair.b.from(&line, &pieces[2]);
        pair.b.pass(Duration::from_secs(seconds - 1));
        pair.b.from(&line, &pieces[0]);
        assert_eq!(pair.b.single.worker.ledger().waiting, 2);
        assert_eq!(pair.b.dropped(), []);
        // From the first piece on, not the latest.
        pair.b.pass(Duration::from_millis(1100));
        assert_eq!(pair.b.dropped(), [("fragment-timeout", 2)]);
        pair.b.from(&line, &pieces[1]);
        pair.b.pass(Duration::from_secs(seconds + 1));
        assert_eq!(pair.b.dropped(), [("fragment-timeout", 1)]);
    }
}

#[test]
fn a_packet_of_more_than_a_buffer_is_refused() {
    let mut pair = Pair::new(PLAIN);
    let host = pair.b.host("lan", &[10], 8);
    for (buffer, most) in [(2048, 1792), (4096, 3840), (8192, 7936), (16384, 16128)] {
        let text =
            site(2, PLAIN).replace("buffers = 1024", &format!("buffers = 1024\nbuffer_size = {buffer}"));
        let mut lab = Lab::new(&text);
        lab.meet(&host, "10.2.0.9", "10.2.0.1");
        for (size, fits) in [(most, true), (most + 1, false), (most + 800, false)] {
            let request = icmp("10.2.0.9", "10.2.0.1", 8, 0, [1, 2, 3, 4], &data(size - 8));
            let places: Vec<usize> = (1..=21).map(|n| n * 800).collect();
            let pieces = divide(&request.bytes(), &places, size as u32);
            for piece in &pieces {
                lab.from(&host, piece);
            }
            let (dropped, answered) = (lab.dropped(), lab.packets(&host).len());
            if fits {
                assert_eq!(dropped, []);
                assert!(answered > 1, "the answer is divided");
            } else {
                assert_eq!((dropped, answered), (vec![("fragment-too-large", pieces.len() as u64)], 0));
            }
        }
        lab.pass(Duration::from_secs(16));
        assert_eq!(lab.dropped(), []);
    }
    pair.ferry();
}

#[test]
fn malformed_pieces_are_refused() {
    let mut pair = Pair::new(PLAIN);
    let host = pair.host_b.clone();
    let request = icmp("10.2.0.9", "10.2.0.1", 8, 0, [1, 2, 3, 4], &data(1000)).bytes();
    for (start, end, more) in [(0, 804, true), (800, 800, true), (800, 800, false)] {
        pair.b.from(&host, &piece(&request, start, end, more, 3));
        assert_eq!(pair.b.dropped(), [("fragment-malformed", 1)], "{start} to {end}");
    }
    // More pieces than any honest path makes.
    for n in 0..32 {
        pair.b.from(&host, &piece(&request, n * 8, n * 8 + 8, true, 4));
        assert_eq!(pair.b.dropped(), []);
    }
    pair.b.from(&host, &piece(&request, 800, 1008, false, 4));
    assert_eq!(pair.b.dropped(), [("fragment-malformed", 33)]);
    pair.b.pass(Duration::from_secs(16));
}

#[test]
fn of_too_many_unfinished_packets_the_oldest_gives_way() {
    let mut pair = Pair::new(PLAIN);
    let host = pair.host_b.clone();
    let request = icmp("10.2.0.9", "10.2.0.1", 8, 0, [1, 2, 3, 4], &data(1000)).bytes();
    let free = pair.b.single.worker.pool_mut().available();
    for n in 0..100 {
        pair.b.from(&host, &piece(&request, 0, 800, true, n));
        pair.b.pass(Duration::from_millis(10));
    }
    assert_eq!(pair.b.dropped(), [("fragment-table-full", 36)]);
    assert_eq!(free - pair.b.single.worker.pool_mut().available(), 64);
    // The newest goes on; the oldest does not.
    pair.b.from(&host, &piece(&request, 800, 1008, false, 99));
    assert_eq!(pair.b.packets(&host).len(), 1);
    pair.b.pass(Duration::from_secs(16));
    assert_eq!(pair.b.dropped(), [("fragment-timeout", 63)]);
    assert_eq!(pair.b.single.worker.pool_mut().available(), free);
}

#[test]
fn congestion_that_any_piece_met_is_the_packets() {
    for kind in [PLAIN, Kind { outer_v6: true, ..PLAIN }] {
        let mut pair = Pair::new(kind);
        let line = pair.line();
        for (marks, result) in [([2, 2], Some(2)), ([2, 3], Some(3)), ([3, 2], Some(3)), ([0, 3], None)] {
            let packet = udp("10.1.0.9", "10.2.0.9", (1, 2), &data(1000)).tos(2);
            let sealed = pair.seal(&packet.bytes()).payload;
            for (mark, mut fragment) in marks.into_iter().zip(divide(&sealed, &[400], 3)) {
                if kind.outer_v6 {
                    fragment[1] = fragment[1] & 0xcf | mark << 4;
                } else {
                    fragment[1] = fragment[1] & 0xfc | mark;
                    fragment[10..12].fill(0);
                    let sum = checksum(&fragment[..20]);
                    fragment[10..12].copy_from_slice(&sum.to_be_bytes());
                }
                pair.b.from(&line, &fragment);
            }
            let got = pair.b.packets(&pair.host_b);
            match result {
                Some(mark) => assert_eq!(got, [passed_twice(&packet.tos(mark))], "{marks:?}"),
                None => {
                    assert_eq!((got.len(), pair.b.dropped()), (0, vec![("ecn-contradiction", 1)]));
                }
            }
        }
    }
}

#[test]
fn pieces_that_came_by_different_ways_are_not_of_one_packet() {
    let mut pair = Pair::new(PLAIN);
    let request = icmp("10.1.0.9", "10.2.0.1", 8, 0, [1, 2, 3, 4], &data(1000)).bytes();
    let pieces = divide(&request, &[400], 3);
    pair.a.from(&pair.host_a.clone(), &pieces[0]);
    pair.ferry();
    // The other comes in the clear, as if somebody on the line wanted to put in his own end.
    pair.b.from(&pair.line(), &pieces[1]);
    assert_eq!(pair.b.dropped(), []);
    assert_eq!(pair.b.single.worker.ledger().waiting, 2);
    pair.b.pass(Duration::from_secs(16));
    assert_eq!(pair.b.dropped(), [("fragment-timeout", 2)]);
}

#[test]
fn the_pieces_of_a_whole_are_counted_as_such() {
    let mut pair = Pair::new(PLAIN);
    let host = pair.host_b.clone();
    let request = icmp("10.2.0.9", "10.2.0.1", 8, 0, [1, 2, 3, 4], &data(1000)).bytes();
    for piece in divide(&request, &[80, 160, 800], 3) {
        pair.b.from(&host, &piece);
    }
    assert_eq!(pair.b.packets(&host).len(), 1);
    // Four came and one went on.
    assert_eq!(pair.b.drops(DropReason::FragmentReassembled), 3);
}

#[test]
fn held_pieces_go_home_when_the_gateway_ends() {
    let mut pair = Pair::new(PLAIN);
    let host = pair.host_b.clone();
    let request = icmp("10.2.0.9", "10.2.0.1", 8, 0, [1, 2, 3, 4], &data(1000)).bytes();
    for n in 0..3 {
        pair.b.from(&host, &piece(&request, 0, 400, true, n));
        pair.b.from(&host, &piece(&request, 400, 800, true, n));
    }
    assert_eq!(pair.b.single.worker.ledger().waiting, 6);
    pair.b.single.worker.end(2_000_000_000);
    assert_eq!(pair.b.dropped(), [("shutdown", 6)]);
    assert_eq!(pair.b.single.worker.ledger().waiting, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_packet_divided_anywhere_in_any_order_comes_out_whole(
        kind in 0usize..4,
        v6: bool,
        len in 0usize..1300,
        places in prop::collection::btree_set(1usize..170, 1..12),
        order in any::<u64>(),
        copies in prop::collection::vec(0usize..12, 0..4),
    ) {
        let kind = every_kind().nth(kind).unwrap();
        let mut pair = Pair::new(kind);
        let line = pair.line();
        let (from, to) = WAYS[usize::from(v6)];
        let packet = udp(from, to, (1, 2), &data(len));
        let sealed = pair.seal(&packet.bytes()).payload;
        let places: Vec<usize> = places.into_iter().map(|unit| unit * 8).collect();
        let mut fragments = divide(&sealed, &places, 0x1234_5678);
        // A first piece shorter than its transport header is refused by whoever reads headers.
        prop_assume!(fragments.len() > 1);
        let order = shuffled(fragments.len(), order as usize);
        fragments = order.into_iter().map(|which| fragments[which].clone()).collect();
        let last = fragments.pop().unwrap();
        let mut copied = 0;
        for (n, fragment) in fragments.iter().enumerate() {
            pair.b.from(&line, fragment);
            if copies.contains(&n) {
                pair.b.from(&line, fragment);
                copied += 1;
            }
        }
        prop_assert!(pair.b.packets(&pair.host_b).is_empty());
        let expected = if copied > 0 { vec![("fragment-overlap", copied)] } else { vec![] };
        prop_assert_eq!(pair.b.dropped(), expected);
        pair.b.from(&line, &last);
        prop_assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
    }
}

/// Whose packet does not become whole in time is told, where its first piece is here (RFC 792, RFC 8200 4.5); the error
/// quotes that piece as it came.
#[test]
fn the_sender_of_a_packet_that_stays_in_pieces_is_told() {
    /// Until just before it is time the host is silent; then it shows that it is still there.
    fn wait(pair: &mut Pair, host: &Host, seconds: u64) {
        pair.b.pass(Duration::from_secs(seconds - 1));
        pair.b.raw(host.port);
        pair.b.meet(host, "10.2.0.9", "10.2.0.1");
        pair.b.meet(host, "2001:db8:2::9", "2001:db8:2::1");
        pair.b.pass(Duration::from_secs(2));
    }
    let cases = [
        ("10.2.0.9", "10.2.0.1", 15, (11, 1), 576 - 28),
        ("2001:db8:2::9", "2001:db8:2::1", 60, (3, 1), 1280 - 48),
    ];
    for (from, to, seconds, kind, quoted) in cases {
        let (mut pair, mut timed_out) = (Pair::new(PLAIN), 0);
        let host = pair.host_b.clone();
        let echo = if from.contains(':') { 128 } else { 8 };
        let request = icmp(from, to, echo, 0, [1, 2, 3, 4], &data(1500)).bytes();
        let pieces = divide(&request, &[600, 1200], 9);
        // The first piece and another, in either order; a copy in between tells nothing new.
        for order in [[0, 1], [2, 0]] {
            order.iter().for_each(|which| pair.b.from(&host, &pieces[*which]));
            wait(&mut pair, &host, seconds);
            let told = Ip::read(&pair.b.one(&host));
            timed_out += 2;
            assert_eq!(pair.b.drops(DropReason::FragmentTimeout), timed_out);
            assert_eq!((told.src.to_string(), told.dst.to_string()), (to.into(), from.into()));
            assert_eq!((told.payload[0], told.payload[1]), kind);
            let first = &pieces[0][..pieces[0].len().min(quoted)];
            assert_eq!(&told.payload[8..], first);
        }
        let silent =
            |lab: &mut Lab| lab.packets(&host).iter().all(|bytes| Ip::read(bytes).payload[0] != kind.0);
        // Without the first piece nobody can be told.
        for which in [1, 2] {
            pair.b.from(&host, &pieces[which]);
        }
        pair.b.pass(Duration::from_secs(seconds + 1));
        assert_eq!(pair.b.dropped(), [("fragment-timeout", 2)]);
        assert!(silent(&mut pair.b));
        // Nor is anybody told of a packet that was refused for another reason.
        for piece in [piece(&request, 0, 800, true, 10), piece(&request, 792, 1400, true, 10)] {
            pair.b.from(&host, &piece);
        }
        pair.b.pass(Duration::from_secs(seconds + 1));
        assert_eq!(pair.b.dropped(), [("fragment-overlap", 2)]);
        assert!(silent(&mut pair.b));
        assert_eq!(pair.b.single.worker.ledger().waiting, 0);
    }
}

/// So is a tunnel's peer, and who sent through a tunnel: then the error goes back through it.
#[test]
fn so_is_who_sent_through_a_tunnel() {
    for (from, to) in [("10.1.0.9", "10.2.0.1"), ("2001:db8:1::9", "2001:db8:2::1")] {
        let mut pair = Pair::new(PLAIN);
        let kind = if from.contains(':') { 128 } else { 8 };
        let request = icmp(from, to, kind, 0, [1, 2, 3, 4], &data(1600)).bytes();
        pair.a.from(&pair.host_a.clone(), &divide(&request, &[800], 6)[0]);
        pair.ferry();
        pair.b.pass(Duration::from_secs(61));
        assert_eq!(pair.b.dropped(), [("fragment-timeout", 1)]);
        pair.ferry();
        let told = Ip::read(&pair.a.one(&pair.host_a));
        assert_eq!((told.src.to_string(), told.payload[1]), (to.into(), 1));
    }
}
