//! Routes: longest prefix, blackholes, other gateways, TTL, transit, and what senders are told.

use super::{
    common::{frame::*, *},
    icmp_error,
};

pub const CONFIG: &str = r#"
[gateway.g]
prefixes = ["10.1.0.0/16"]
transit = false
[interface.lan]
port = "lan"
vlan = 10
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
addresses = ["192.0.2.1/29", "2001:db8:ff::1/64"]
[[gateway.g.route]]
to = "10.9.0.0/16"
via = "192.0.2.2"
[[gateway.g.route]]
to = "10.9.6.0/24"
via = "192.0.2.3"
[[gateway.g.route]]
to = "10.9.6.128/25"
blackhole = true
[[gateway.g.route]]
to = "10.9.6.200/32"
via = "192.0.2.2"
[[gateway.g.route]]
to = "2001:db8:9::/48"
via = "2001:db8:ff::2"
[[gateway.g.route]]
to = "2001:db8:9:6::/64"
blackhole = true
[[gateway.g.route]]
to = "10.20.0.0/16"
gateway = "hub"
[[gateway.g.route]]
to = "10.66.0.0/16"
gateway = "hub"

# Others, with the same addresses as the first on other VLANs.
[gateway.hub]
[interface.hub]
port = "lan"
vlan = 20
gateway = "hub"
side = "local"
addresses = ["10.1.0.1/24"]
[interface.hub-far]
port = "wan"
vlan = 101
gateway = "hub"
side = "peer"
addresses = ["10.20.0.1/24"]
[[gateway.hub.route]]
to = "10.66.0.0/16"
gateway = "h3"
# A chain as long as one may be; a longer one is refused when the file is read.
[gateway.h3]
[[gateway.h3.route]]
to = "10.66.0.0/16"
gateway = "h4"
[gateway.h4]
[[gateway.h4.route]]
to = "10.66.0.0/16"
gateway = "h5"
[gateway.h5]
[[gateway.h5.route]]
to = "10.66.0.0/16"
gateway = "h6"
[gateway.h6]
[[gateway.h6.route]]
to = "10.66.0.0/16"
gateway = "h7"
[gateway.h7]
[[gateway.h7.route]]
to = "10.66.0.0/16"
gateway = "h8"
[gateway.h8]
[[gateway.h8.route]]
to = "10.66.0.0/16"
interface = "end"
[interface.end]
port = "wan"
vlan = 108
gateway = "h8"
side = "peer"
addresses = ["10.66.0.1/24"]
"#;

/// A host and a router, with the gateway's addresses on their links.
pub const HOST: [(&str, &str); 2] = [("10.1.0.9", "10.1.0.1"), ("2001:db8:1::9", "2001:db8:1::1")];
pub const ROUTER: [(&str, &str); 2] = [("192.0.2.2", "192.0.2.1"), ("2001:db8:ff::2", "2001:db8:ff::1")];

/// The gateway, a host on its own side, and two routers on the other.
pub fn lab() -> (Lab, Host, [Host; 2]) {
    let mut lab = Lab::new(CONFIG);
    let host = lab.neighbour("lan", &[10], 9, &HOST);
    let first = lab.neighbour("wan", &[100], 2, &ROUTER);
    let second = lab.neighbour("wan", &[100], 3, &[("192.0.2.3", "192.0.2.1")]);
    (lab, host, [first, second])
}

#[test]
fn the_longest_prefix_decides() {
    let (mut lab, host, routers) = lab();
    for (to, router) in [
        ("10.9.0.1", Some(0)),
        ("10.9.5.255", Some(0)),
        ("10.9.6.0", Some(1)),
        ("10.9.6.127", Some(1)),
        ("10.9.6.128", None),
        ("10.9.6.200", Some(0)),
        ("10.9.6.201", None),
        ("10.9.7.0", Some(0)),
        ("192.0.2.3", Some(1)),
    ] {
        for packet in [
            udp("10.1.0.9", to, (5, 6), b"x").tos(0xb8),
            tcp("10.1.0.9", to, (5, 6), &[7; 900]).df(),
            ping("10.1.0.9", to, 3),
            ip("10.1.0.9", to, 99, b"whatever"),
            ip("10.1.0.9", to, UDP, b"12345678").options(&[148, 4, 0, 0]),
        ] {
            lab.from(&host, &packet.bytes());
            let frames: Vec<_> = lab.raw(routers[0].port).iter().map(|bytes| read_frame(bytes)).collect();
            match router {
                Some(router) => {
                    let expected = Frame {
                        dst: routers[router].mac,
                        src: routers[router].gateway,
                        tags: routers[router].tags.clone(),
                        ether_type: IPV4,
                        payload: packet.forwarded(),
                    };
                    assert_eq!(frames, [expected]);
                    assert_eq!(lab.dropped(), []);
                }
                None => {
                    assert_eq!(frames, []);
                    assert_eq!(lab.dropped(), [("blackhole", 1)]);
                }
            }
        }
    }
    let packet = udp("2001:db8:1::9", "2001:db8:9:5::1", (5, 6), b"x").tos(0xb8);
    lab.from(&host, &packet.bytes());
    assert_eq!(lab.packets(&routers[0]), [packet.forwarded()]);
    lab.from(&host, &udp("2001:db8:1::9", "2001:db8:9:6::1", (5, 6), b"x").bytes());
    assert_eq!(lab.dropped(), [("blackhole", 1)]);
    // A header without a payload is a packet too (RFC 8200 4.7).
    let empty = ip("2001:db8:1::9", "2001:db8:9:5::1", 59, b"");
    lab.from(&host, &empty.bytes());
    assert_eq!(lab.packets(&routers[0]), [empty.forwarded()]);
    // And the other way.
    let packet = tcp("10.9.0.1", "10.1.0.9", (6, 5), b"y");
    lab.from(&routers[1], &packet.bytes());
    assert_eq!(lab.one(&host), packet.forwarded());
}

#[test]
fn bytes_behind_the_packet_are_not_carried_on() {
    let (mut lab, host, routers) = lab();
    let packet = udp("10.1.0.9", "10.9.0.1", (5, 6), b"x");
    let mut bytes = host.frame(&packet.bytes());
    bytes.extend_from_slice(b"what the sender's buffer held before");
    lab.send(host.port, &bytes);
    // The reader of frames checks that padding is zeros.
    assert_eq!(lab.one(&routers[0]), packet.forwarded());
}

#[test]
fn a_packet_whose_time_is_up_is_reported_from_the_interface_it_came_by() {
    let (mut lab, host, routers) = lab();
    for (sender, from, to, kind, own) in [
        (&host, "10.1.0.9", "10.9.0.1", 11, "10.1.0.1"),
        (&routers[0], "10.9.0.1", "10.1.0.9", 11, "192.0.2.1"),
        (&host, "2001:db8:1::9", "2001:db8:9::1", 3, "2001:db8:1::1"),
        (&routers[0], "2001:db8:9::1", "2001:db8:1::9", 3, "2001:db8:ff::1"),
    ] {
        for ttl in [0, 1] {
            for packet in [udp(from, to, (5, 6), &[1; 3]), tcp(from, to, (5, 6), &[9; 1400])] {
                let packet = packet.ttl(ttl);
                lab.from(sender, &packet.bytes());
                assert_eq!(lab.dropped(), [("ttl-expired", 1)]);
                let error = lab.one(sender);
                let longest = if kind == 11 { 576 } else { 1280 };
                assert!(error.len() <= longest, "{} bytes", error.len());
                let error = icmp_error(&error);
                assert_eq!((error.kind, error.code, error.word), (kind, 0, 0));
                assert_eq!((error.from.as_str(), error.to.as_str()), (own, from));
                assert!(packet.bytes().starts_with(&error.quote));
                assert!(error.quote.len() >= packet.bytes().len().min(longest - 48));
            }
        }
    }
    let last = udp("10.1.0.9", "10.9.0.1", (5, 6), b"x").ttl(2);
    lab.from(&host, &last.bytes());
    assert_eq!(lab.one(&routers[0]), last.forwarded());
}

#[test]
fn who_has_no_route_is_told() {
    let (mut lab, host, _) = lab();
    for (packet, kind, code, own) in [
        (udp("10.1.0.9", "8.8.8.8", (5, 6), b"x"), 3, 0, "10.1.0.1"),
        (udp("2001:db8:1::9", "2606:4700::1", (5, 6), b"x"), 1, 0, "2001:db8:1::1"),
    ] {
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.dropped(), [("no-route", 1)]);
        let error = icmp_error(&lab.one(&host));
        assert_eq!((error.kind, error.code, error.from.as_str()), (kind, code, own));
        assert_eq!(error.quote, packet.bytes());
    }
}

#[test]
fn no_error_answers_what_must_not_be_answered() {
    let (mut lab, host, _) = lab();
    let quote = udp("8.8.8.8", "10.1.0.9", (5, 6), b"x").bytes();
    let mut later = udp("10.1.0.9", "8.8.8.8", (5, 6), &[0; 16]);
    later.offset = 800;
    for packet in [icmp("10.1.0.9", "8.8.8.8", 3, 1, [0; 4], &quote), later] {
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.dropped(), [("no-route", 1)]);
        assert!(lab.raw(host.port).is_empty());
    }
    // Neither what came as a link-layer broadcast (RFC 1122 3.2.2).
    let all = Host { gateway: BROADCAST, ..host.clone() };
    lab.from(&all, &udp("10.1.0.9", "8.8.8.8", (5, 6), b"x").bytes());
    assert_eq!(lab.dropped(), [("no-route", 1)]);
    assert!(lab.raw(host.port).is_empty());
    // A query may be answered by an error.
    lab.from(&host, &ping("10.1.0.9", "8.8.8.8", 1).bytes());
    assert_eq!(icmp_error(&lab.packets(&host).remove(0)).kind, 3);
    lab.dropped();
    // But not without a bound.
    for n in 0..200 {
        lab.from(&host, &udp("10.1.0.9", "8.8.8.8", (n, 6), b"x").bytes());
    }
    assert_eq!(lab.dropped(), [("no-route", 200)]);
    let sent = lab.packets(&host).len();
    assert!((40..60).contains(&sent), "{sent} errors at once");
}

#[test]
fn peers_do_not_reach_each_other_where_transit_is_off() {
    let (mut lab, host, routers) = lab();
    let packet = udp("10.9.0.1", "10.9.6.1", (5, 6), b"x");
    lab.from(&routers[0], &packet.bytes());
    assert_eq!(lab.dropped(), [("transit-forbidden", 1)]);
    let error = icmp_error(&lab.packets(&routers[0]).remove(0));
    assert_eq!((error.kind, error.code), (3, 13));
    assert!(lab.packets(&routers[1]).is_empty());
    let packet = udp("2001:db8:9::1", "2001:db8:9::2", (5, 6), b"x");
    lab.from(&routers[0], &packet.bytes());
    let error = icmp_error(&lab.packets(&routers[0]).remove(0));
    assert_eq!((error.kind, error.code), (1, 1));
    lab.dropped();
    // A ping of the gateway from there is answered all the same.
    lab.from(&routers[0], &ping("192.0.2.2", "192.0.2.1", 1).bytes());
    assert_eq!(lab.packets(&routers[0]).len(), 1);
    let _ = host;

    let (mut lab, routers) = {
        let mut lab = Lab::new(&CONFIG.replace("transit = false", "transit = true"));
        let routers = [lab.host("wan", &[100], 2), lab.host("wan", &[100], 3)];
        lab.meet(&routers[0], "192.0.2.2", "192.0.2.1");
        lab.meet(&routers[1], "192.0.2.3", "192.0.2.1");
        (lab, routers)
    };
    let packet = udp("10.9.0.1", "10.9.6.1", (5, 6), b"x");
    lab.from(&routers[0], &packet.bytes());
    assert_eq!(lab.packets(&routers[1]), [packet.forwarded()]);
}

#[test]
fn gateways_meet_only_where_a_route_says_so() {
    let (mut lab, host, _) = lab();
    let far = lab.host("wan", &[101], 7);
    let twin = lab.host("lan", &[20], 9);
    lab.meet(&far, "10.20.0.7", "10.20.0.1");
    lab.meet(&twin, "10.1.0.9", "10.1.0.1");
    // By the route of the first to the second, and with the TTL lowered once.
    let packet = udp("10.1.0.9", "10.20.0.7", (5, 6), b"x");
    lab.from(&host, &packet.bytes());
    assert_eq!(lab.one(&far), packet.forwarded());
    // The second has 10.1.0.0/24 itself, and no way to what the first reaches.
    let packet = udp("10.20.0.7", "10.1.0.9", (5, 6), b"x");
    lab.from(&far, &packet.bytes());
    assert_eq!(lab.one(&twin), packet.forwarded());
    lab.from(&far, &udp("10.20.0.7", "10.9.0.1", (5, 6), b"x").bytes());
    assert_eq!(lab.dropped(), [("no-route", 1)]);
    lab.raw(far.port);
    // A ping from one gateway of the other's address is answered by the other.
    lab.from(&host, &ping("10.1.0.9", "10.20.0.1", 1).bytes());
    assert!(
        lab.raw(twin.port).iter().all(|bytes| read_frame(bytes).tags == host.tags),
        "not to its own 10.1.0.9"
    );
    lab.from(&host, &ping("10.1.0.9", "10.20.0.1", 2).bytes());
    assert_eq!(lab.packets(&host).len(), 1, "it goes back where the request came from");
}

#[test]
fn a_packet_goes_through_as_many_gateways_as_the_file_may_chain() {
    let (mut lab, host, _) = lab();
    let end = lab.host("wan", &[108], 8);
    lab.meet(&end, "10.66.0.8", "10.66.0.1");
    let packet = udp("10.1.0.9", "10.66.0.8", (5, 6), b"x");
    lab.from(&host, &packet.bytes());
    assert_eq!(lab.one(&end), packet.forwarded());
}

#[test]
fn broadcasts_and_groups_are_not_forwarded() {
    let (mut lab, host, _) = lab();
    for to in ["255.255.255.255", "224.0.0.5", "10.1.0.255", "10.1.0.0", "192.0.2.7"] {
        lab.from(&host, &udp("10.1.0.9", to, (5, 6), b"x").bytes());
        assert_eq!(lab.dropped(), [("multicast", 1)], "{to}");
    }
    for to in ["ff02::5", "ff0e::1"] {
        lab.from(&host, &udp("2001:db8:1::9", to, (5, 6), b"x").bytes());
        assert_eq!(lab.dropped(), [("multicast", 1)], "{to}");
    }
    assert!(lab.raw(host.port).is_empty());
}

#[test]
fn a_line_that_takes_another_s_number_does_not_take_its_neighbours() {
    let text = |name: &str, vlan: u16| {
        format!(
            "{}[port.lan]\ndriver = \"memory\"\nring = 64\n[port.wan]\ndriver = \"memory\"\nring = 64\n[gateway.g]\n\
             [interface.lan]\nport = \"lan\"\ngateway = \"g\"\nside = \"local\"\naddresses = [\"10.1.0.1/24\"]\n\
             [interface.{name}]\nport = \"wan\"\nvlan = {vlan}\ngateway = \"g\"\nside = \"peer\"\n\
             addresses = [\"192.0.2.1/24\"]\n[[gateway.g.route]]\nto = \"10.9.0.0/16\"\nvia = \"192.0.2.2\"\n",
            system(1024)
        )
    };
    let mut lab = Lab::new(&text("one", 1));
    let host = lab.neighbour("lan", &[], 9, &[("10.1.0.9", "10.1.0.1")]);
    let old = lab.neighbour("wan", &[1], 2, &[("192.0.2.2", "192.0.2.1"), ("192.0.2.3", "192.0.2.1")]);
    for to in ["10.9.0.1", "192.0.2.3"] {
        lab.from(&host, &udp("10.1.0.9", to, (1, 2), b"x").bytes());
        lab.one(&old);
    }
    lab.reload(&text("two", 2));
    lab.raw(old.port);
    // The router and a host on the link: nothing goes to those of the other link, and both are asked for.
    for (to, asked) in [("10.9.0.1", "192.0.2.2"), ("192.0.2.3", "192.0.2.3")] {
        lab.from(&host, &udp("10.1.0.9", to, (1, 2), b"x").bytes());
        let frames: Vec<_> = lab.raw(old.port).iter().map(|bytes| read_frame(bytes)).collect();
        assert!(
            frames.iter().all(|frame| frame.ether_type == ARP && frame.tags[0].1 == 2),
            "{to}: {frames:02x?}"
        );
        let mut new = lab.host("wan", &[2], 7);
        new.mac[5] = to.len() as u8;
        lab.meet_quietly(&new, asked, "192.0.2.1");
        let packets = lab.packets(&new);
        assert!(!packets.is_empty(), "{to}");
    }
    lab.dropped();
}
