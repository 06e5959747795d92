//! ICMP errors about what tunnels carry (RFC 4301 6): what counts is the packet that they quote.

use super::{
    common::frame::*,
    tunnel::{Kind, PLAIN, Pair, site},
};

const HEADERS: Kind = Kind { more: "icmp_errors = \"headers\"", ..PLAIN };

/// The addresses of a test: a host on each side, one beyond, and two routers that no policy names.
struct Net {
    a: &'static str,
    b: &'static str,
    elsewhere: &'static str,
    router_b: &'static str,
    outside: &'static str,
}

const V4: Net = Net {
    a: "10.1.0.9",
    b: "10.2.0.9",
    elsewhere: "10.9.0.9",
    router_b: "172.16.0.1",
    outside: "203.0.113.7",
};
const V6: Net = Net {
    a: "2001:db8:1::9",
    b: "2001:db8:2::9",
    elsewhere: "2001:db8:9::9",
    router_b: "2001:db8:bb::1",
    outside: "2001:db8:cc::7",
};

/// "Unreachable" about a packet from one to another.
fn about(from: &str, to: &str, quoted: &Ip) -> Vec<u8> {
    let (kind, code) = if from.contains(':') { (1, 4) } else { (3, 3) };
    icmp(from, to, kind, code, [0; 4], &quoted.bytes()).bytes()
}

fn data(from: &str, to: &str) -> Ip {
    udp(from, to, (1000, 2000), &[7; 64])
}

/// Everything of the far end goes into the tunnel, whatever this end thinks of it.
fn careless(kind: Kind) -> String {
    site(2, kind)
        .replace("source = [\"10.2.0.0/16\"]", "source = [\"0.0.0.0/0\"]")
        .replace("source = [\"2001:db8:2::/48\"]", "source = [\"::/0\"]")
}

#[test]
fn an_error_out_of_a_tunnel_must_quote_what_goes_into_it() {
    for net in [&V4, &V6] {
        let mut pair = Pair::of(&site(1, PLAIN), &careless(PLAIN));
        for (what, bytes, dropped) in [
            ("from the host itself", about(net.b, net.a, &data(net.a, net.b)), None),
            ("from a router that no policy names", about(net.router_b, net.a, &data(net.a, net.b)), None),
            (
                "about a flow of no tunnel",
                about(net.b, net.a, &data(net.a, net.elsewhere)),
                Some("icmp-quote-mismatch"),
            ),
            (
                "about what came out, not what went in",
                about(net.b, net.a, &data(net.b, net.a)),
                Some("icmp-quote-mismatch"),
            ),
            (
                "from a router, about a flow of no tunnel",
                about(net.router_b, net.a, &data(net.a, net.elsewhere)),
                Some("policy-mismatch"),
            ),
            (
                "about what is discarded here",
                about(net.b, net.a, &udp(net.a, net.b, (1000, 666), b"x")),
                Some("icmp-quote-mismatch"),
            ),
            (
                "that quotes nothing",
                icmp(net.b, net.a, 3, 3, [0; 4], &[]).bytes(),
                Some("icmp-quote-mismatch"),
            ),
        ] {
            pair.b.from(&pair.host_b, &bytes);
            pair.ferry();
            let (came, drops) = (pair.a.packets(&pair.host_a), pair.a.dropped());
            assert_eq!(pair.b.dropped(), [], "{what}");
            match dropped {
                None => assert_eq!((came.len(), drops), (1, vec![]), "{what}"),
                Some(reason) => assert_eq!((came.len(), drops), (0, vec![(reason, 1)]), "{what}"),
            }
        }
    }
}

#[test]
fn a_tunnel_may_go_by_the_headers_of_errors_alone() {
    for net in [&V4, &V6] {
        let mut pair = Pair::of(&site(1, HEADERS), &careless(PLAIN));
        // Its own addresses fit, so nobody looks further.
        pair.b.from(&pair.host_b, &about(net.b, net.a, &data(net.a, net.elsewhere)));
        pair.ferry();
        assert_eq!(pair.a.packets(&pair.host_a).len(), 1);
        // They do not: only the quote can speak for it.
        pair.b.from(&pair.host_b, &about(net.router_b, net.a, &data(net.a, net.b)));
        pair.b.from(&pair.host_b, &about(net.router_b, net.a, &data(net.a, net.elsewhere)));
        pair.ferry();
        assert_eq!((pair.a.packets(&pair.host_a).len(), pair.a.dropped()), (1, vec![("policy-mismatch", 1)]));
    }
}

#[test]
fn an_error_that_no_policy_names_goes_back_where_the_quoted_packet_came_from() {
    for net in [&V4, &V6] {
        let mut pair = Pair::new(PLAIN);
        // The router is behind the second gateway, and no policy of either names it.
        pair.b.from(&pair.host_b, &about(net.router_b, net.a, &data(net.a, net.b)));
        pair.ferry();
        assert_eq!(pair.b.dropped(), []);
        assert_eq!(pair.a.packets(&pair.host_a).len(), 1);
        // About a packet that no tunnel brought: by the route table, which knows no way.
        pair.b.from(&pair.host_b, &about(net.router_b, net.a, &data(net.a, net.elsewhere)));
        assert_eq!(pair.b.dropped(), [("no-route", 1)]);
    }
}

#[test]
fn an_error_in_the_clear_about_what_is_protected_is_refused() {
    for net in [&V4, &V6] {
        for (kind, believed) in [(PLAIN, false), (HEADERS, true)] {
            let mut pair = Pair::new(kind);
            let attacker = pair.a.host("wan", &[100], 77);
            pair.a.from(&attacker, &about(net.outside, net.a, &data(net.a, net.b)));
            let (came, drops) = (pair.a.packets(&pair.host_a).len(), pair.a.dropped());
            let expected = if believed { (1, vec![]) } else { (0, vec![("policy-unprotected", 1)]) };
            assert_eq!((came, drops), expected);
            // About what goes in the clear it may speak.
            pair.a.from(&attacker, &about(net.outside, net.a, &data(net.a, net.elsewhere)));
            assert_eq!((pair.a.packets(&pair.host_a).len(), pair.a.dropped()), (1, vec![]));
        }
    }
}
