//! Two gateways and a tunnel between them: every pair of IP versions, encapsulations and sequence number sizes.

use super::{
    common::{frame::*, *},
    icmp_error,
    mtu::reassemble,
};
use causeway::packet::DropReason;

/// What differs between tunnels.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub outer_v6: bool,
    pub udp: bool,
    pub esn: bool,
    pub aes256: bool,
    /// Further lines of the tunnel's section.
    pub more: &'static str,
}

pub const PLAIN: Kind = Kind { outer_v6: false, udp: false, esn: true, aes256: false, more: "" };

/// One end: number 1 or 2.
pub fn site(end: u8, kind: Kind) -> String {
    let other = 3 - end;
    let outer =
        |end: u8| if kind.outer_v6 { format!("2001:db8:ff::{end}") } else { format!("192.0.2.{end}") };
    let key = |end: u8| format!("SITE_{end}{}", if kind.aes256 { "_256" } else { "" });
    let encapsulation = if kind.udp { "udp" } else { "esp" };
    format!(
        r#"
[system]
name = "site-{end}"
buffers = 1024
huge_pages = "never"
[port.lan]
driver = "memory"
ring = 64
mtu = 1600
[port.wan]
driver = "memory"
ring = 64
[gateway.g]
prefixes = ["10.{end}.0.0/16", "2001:db8:{end}::/48"]
[interface.lan]
port = "lan"
vlan = 10
gateway = "g"
side = "local"
addresses = ["10.{end}.0.1/24", "2001:db8:{end}::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
addresses = ["192.0.2.{end}/30", "2001:db8:ff::{end}/64"]
[tunnel.t]
gateway = "g"
local = "{local}"
remote = "{remote}"
encapsulation = "{encapsulation}"
esn = {esn}
out = {{ spi = {spi_out}, key = {{ env = "{key_out}" }} }}
in = [{{ spi = {spi_in}, key = {{ env = "{key_in}" }} }}]
{more}
[[gateway.g.policy]]
action = "discard"
protocol = "udp"
destination_port = 666
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["10.{end}.0.0/16"]
destination = ["10.{other}.0.0/16"]
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["2001:db8:{end}::/48"]
destination = ["2001:db8:{other}::/48"]
"#,
        local = outer(end),
        remote = outer(other),
        esn = kind.esn,
        spi_out = 0x1000 + u32::from(end),
        spi_in = 0x1000 + u32::from(other),
        key_out = key(end),
        key_in = key(other),
        more = kind.more,
    )
}

/// Two gateways, each with a host behind it; they know each other.
pub struct Pair {
    pub a: Lab,
    pub b: Lab,
    pub host_a: Host,
    pub host_b: Host,
}

impl Pair {
    pub fn new(kind: Kind) -> Self {
        Self::with(kind, kind)
    }

    pub fn with(one: Kind, other: Kind) -> Self {
        Self::of(&site(1, one), &site(2, other))
    }

    /// Of two files that were made by [`site`].
    pub fn of(one: &str, other: &str) -> Self {
        let (mut a, mut b) = (Lab::new(one), Lab::new(other));
        let (host_a, host_b) = (a.host("lan", &[10], 9), b.host("lan", &[10], 8));
        a.meet(&host_a, "10.1.0.9", "10.1.0.1");
        a.meet(&host_a, "2001:db8:1::9", "2001:db8:1::1");
        b.meet(&host_b, "10.2.0.9", "10.2.0.1");
        b.meet(&host_b, "2001:db8:2::9", "2001:db8:2::1");
        a.announce();
        b.announce();
        let mut pair = Self { a, b, host_a, host_b };
        pair.ferry();
        pair.a.raw(0);
        pair.b.raw(0);
        // The first packet finds the way; from then on the two know each other.
        pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (1, 1), b"first").bytes());
        pair.ferry();
        pair.b.raw(0);
        pair.b.from(&pair.host_b, &udp("10.2.0.9", "10.1.0.9", (1, 1), b"first").bytes());
        pair.ferry();
        pair.a.raw(0);
        pair.a.dropped();
        pair.b.dropped();
        pair
    }

    pub fn ferry(&mut self) {
        ferry((&mut self.a, "wan"), (&mut self.b, "wan"));
    }

    /// The frames that the first gateway has sent towards the second; none goes there by itself.
    pub fn sealed(&mut self) -> Vec<Vec<u8>> {
        self.a.raw(1)
    }
}

fn every_kind() -> impl Iterator<Item = Kind> {
    (0..16).map(|bits| Kind {
        outer_v6: bits & 1 > 0,
        udp: bits & 2 > 0,
        esn: bits & 4 > 0,
        aes256: bits & 8 > 0,
        more: "",
    })
}

fn passed_twice(packet: &Ip) -> Vec<u8> {
    packet.clone().ttl(packet.ttl - 2).bytes()
}

#[test]
fn packets_go_through_and_are_what_they_were() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        for (from, to) in [("10.1.0.9", "10.2.0.9"), ("2001:db8:1::9", "2001:db8:2::9")] {
            for size in (0..40).chain([64, 511, 1200, 1260]) {
                let packet = tcp(from, to, (40_000, 443), &vec![size as u8; size]).tos(0x28);
                pair.a.from(&pair.host_a, &packet.bytes());
                let frames = pair.sealed();
                assert_eq!(frames.len(), 1, "{kind:?}");
                let outer = Ip::read(&read_frame(&frames[0]).payload);
                assert_eq!(outer.proto, if kind.udp { UDP } else { ESP });
                assert_eq!((outer.src.is_ipv6(), outer.tos, outer.ttl), (kind.outer_v6, 0x28, 64));
                let hidden = !frames[0].windows(16).any(|bytes| packet.payload.ends_with(bytes) && size > 16);
                assert!(hidden, "the payload is readable");
                pair.b.send(1, &frames[0]);
                assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet), "{kind:?}, {size} bytes");
                let back = udp(to, from, (443, 40_000), &vec![1; size]);
                pair.b.from(&pair.host_b, &back.bytes());
                pair.ferry();
                assert_eq!(pair.a.one(&pair.host_a), passed_twice(&back), "{kind:?}, {size} bytes back");
            }
        }
    }
}

#[test]
fn sequence_numbers_count_from_one_and_are_the_iv() {
    let mut pair = Pair::new(PLAIN);
    for n in 2..80_u64 {
        pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
        let sealed = Ip::read(&read_frame(&pair.sealed()[0]).payload).payload;
        assert_eq!(sealed[..4], 0x1001_u32.to_be_bytes());
        assert_eq!(sealed[4..8], (n as u32).to_be_bytes());
        assert_eq!(sealed[8..16], n.to_be_bytes());
    }
}

#[test]
fn own_addresses_are_pinged_through_the_tunnel() {
    for kind in every_kind() {
        let mut pair = Pair::new(kind);
        for (from, to) in [("10.1.0.9", "10.2.0.1"), ("2001:db8:1::9", "2001:db8:2::1")] {
            pair.a.from(&pair.host_a, &ping(from, to, 5).bytes());
            pair.ferry();
            let reply = Ip::read(&pair.a.one(&pair.host_a));
            assert_eq!((reply.src.to_string(), reply.ttl), (to.to_string(), 63));
            assert_eq!(reply.payload[4..], ping(from, to, 5).payload[4..]);
            assert_eq!(pair.b.dropped(), [], "{kind:?}");
        }
    }
}

#[test]
fn a_packet_that_comes_again_is_dropped_and_a_late_one_is_not() {
    for esn in [false, true] {
        let mut pair = Pair::new(Kind { esn, more: "replay_window = 64", ..PLAIN });
        // With 64-bit numbers, one left of the window is taken for one of the next 2^32 (RFC 4303 A2.2).
        let late = Some(if esn { "esp-integrity" } else { "esp-late" });
        let mut frames = Vec::new();
        for n in 0..100 {
            pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (n, 2), b"x").bytes());
            frames.extend(pair.sealed());
        }
        pair.b.send(1, &frames[0]);
        pair.b.send(1, &frames[99]);
        assert_eq!(pair.b.packets(&pair.host_b).len(), 2);
        for (which, result) in [
            (99, Some("esp-replayed")),
            (98, None),
            (98, Some("esp-replayed")),
            (36, None),
            (35, late),
            (0, late),
        ] {
            pair.b.send(1, &frames[which]);
            let dropped: Vec<_> = pair.b.dropped().into_iter().map(|(reason, _)| reason).collect();
            assert_eq!(dropped, result.into_iter().collect::<Vec<_>>(), "packet {which}");
            assert_eq!(pair.b.packets(&pair.host_b).len(), usize::from(result.is_none()));
        }
        // One that was changed on its way is dropped, and does not take the place of the right one.
        let mut forged = frames[70].clone();
        *forged.last_mut().unwrap() ^= 1;
        pair.b.send(1, &forged);
        assert_eq!(pair.b.dropped(), [("esp-integrity", 1)]);
        pair.b.send(1, &frames[70]);
        assert_eq!(pair.b.packets(&pair.host_b).len(), 1);
    }
}

#[test]
fn congestion_and_priority_show_outside_and_come_back_in() {
    for kind in [PLAIN, Kind { outer_v6: true, ..PLAIN }] {
        let mut pair = Pair::new(kind);
        for (from, to) in [("10.1.0.9", "10.2.0.9"), ("2001:db8:1::9", "2001:db8:2::9")] {
            for (inner, outer, result) in [
                (0xb8, 0xb8, Some(0xb8)),
                (0xba, 0xbb, Some(0xbb)),
                (0xb9, 0xbb, Some(0xbb)),
                (0xba, 0xb9, Some(0xb9)),
                (0xb8, 0xbb, None),
                (0xbb, 0xb8, Some(0xbb)),
            ] {
                let packet = udp(from, to, (1, 2), b"x").tos(inner);
                pair.a.from(&pair.host_a, &packet.bytes());
                let frame = read_frame(&pair.sealed()[0]);
                let sealed = Ip::read(&frame.payload);
                assert_eq!(sealed.tos, inner);
                let marked = Host { tags: frame.tags, mac: frame.src, gateway: frame.dst, port: 1 };
                pair.b.from(&marked, &sealed.tos(outer).bytes());
                let got = pair.b.packets(&pair.host_b);
                match result {
                    Some(tos) => assert_eq!(got, [passed_twice(&packet.tos(tos))], "{inner:x} in {outer:x}"),
                    None => assert_eq!((got.len(), pair.b.dropped()), (0, vec![("ecn-contradiction", 1)])),
                }
            }
        }
    }
    let mut pair = Pair::new(Kind { more: "dscp = 46", ..PLAIN });
    pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").tos(0x22).bytes());
    assert_eq!(Ip::read(&read_frame(&pair.sealed()[0]).payload).tos, 46 << 2 | 2);
}

#[test]
fn the_outer_df_is_copied_set_or_clear() {
    for (more, expected) in
        [("", [false, true]), ("df = \"set\"", [true, true]), ("df = \"clear\"", [false, false])]
    {
        let mut pair = Pair::new(Kind { more, ..PLAIN });
        for (df, expected) in [false, true].into_iter().zip(expected) {
            let packet = Ip { df, ..udp("10.1.0.9", "10.2.0.9", (1, 2), b"x") };
            pair.a.from(&pair.host_a, &packet.bytes());
            let frame = pair.sealed().remove(0);
            assert_eq!(Ip::read(&read_frame(&frame).payload).df, expected, "{more} {df}");
            pair.b.send(1, &frame);
            assert_eq!(pair.b.one(&pair.host_b), passed_twice(&packet));
        }
    }
}

#[test]
fn what_comes_out_must_fit_a_policy_and_what_must_be_protected_must_not_come_in_the_clear() {
    // The other end sends what our policies do not allow: its network is another, it thinks.
    let mut pair = Pair::new(PLAIN);
    let strange = site(1, PLAIN).replace("10.1.0.0/16", "10.3.0.0/16").replace("10.1.0.1/24", "10.3.0.1/24");
    let mut stranger = Lab::new(&strange);
    let host = stranger.host("lan", &[10], 9);
    stranger.meet(&host, "10.3.0.9", "10.3.0.1");
    // It has the keys of the first, so its first number was seen.
    for _ in 0..2 {
        stranger.from(&host, &udp("10.3.0.9", "10.2.0.9", (1, 2), b"x").bytes());
        ferry((&mut stranger, "wan"), (&mut pair.b, "wan"));
    }
    assert_eq!(pair.b.drops(DropReason::EspReplayed), 1);
    pair.b.dropped();
    stranger.from(&host, &udp("10.3.0.9", "10.2.0.9", (1, 2), b"x").bytes());
    ferry((&mut stranger, "wan"), (&mut pair.b, "wan"));
    assert_eq!(pair.b.dropped(), [("policy-mismatch", 1)]);
    // Nor may it reach the gateway itself (RFC 4301 5.2 makes no difference).
    stranger.from(&host, &ping("10.3.0.9", "10.2.0.1", 1).bytes());
    ferry((&mut stranger, "wan"), (&mut pair.b, "wan"));
    assert_eq!(pair.b.dropped(), [("policy-mismatch", 1)]);
    assert!(pair.b.packets(&pair.host_b).is_empty());

    let wan = pair.b.host("wan", &[100], 7);
    pair.b.from(&wan, &udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
    assert_eq!(pair.b.dropped(), [("policy-unprotected", 1)]);
    assert!(pair.b.raw(1).is_empty(), "no answer to what must not come so");
    // What no policy speaks of passes.
    pair.b.from(&wan, &udp("192.0.2.1", "10.2.0.9", (1, 2), b"x").bytes());
    assert_eq!(pair.b.packets(&pair.host_b).len(), 1);
    // And what a policy discards does not, out or in.
    pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (5, 666), b"x").bytes());
    assert_eq!(pair.a.dropped(), [("policy-discard", 1)]);
    pair.b.from(&wan, &udp("192.0.2.1", "10.2.0.9", (666, 5), b"x").bytes());
    assert_eq!(pair.b.dropped(), [("policy-discard", 1)]);
}

#[test]
fn what_comes_out_must_fit_also_where_the_tunnel_ends_behind_another_gateway() {
    // The second's tunnel ends at an address that its outer gateway has a route to.
    let behind = site(2, PLAIN)
        .replace("gateway = \"g\"\nside = \"peer\"", "gateway = \"edge\"\nside = \"peer\"")
        .replace("local = \"192.0.2.2\"", "local = \"198.51.100.2\"")
        + r#"
[interface.end]
port = "wan"
vlan = 300
gateway = "g"
side = "peer"
addresses = ["198.51.100.2/24"]
[[gateway.g.route]]
to = "192.0.2.0/30"
gateway = "edge"
[gateway.edge]
[[gateway.edge.route]]
to = "198.51.100.2/32"
gateway = "g"
"#;
    let towards = |text: String| {
        text.replace("remote = \"192.0.2.2\"", "remote = \"198.51.100.2\"")
            + "[[gateway.g.route]]\nto = \"198.51.100.0/24\"\nvia = \"192.0.2.2\"\n"
    };
    let strange = site(1, PLAIN).replace("10.1.0.0/16", "10.3.0.0/16").replace("10.1.0.1/24", "10.3.0.1/24");
    for (text, net, passes) in [(site(1, PLAIN), 1, true), (strange, 3, false)] {
        let (mut a, mut b) = (Lab::new(&towards(text)), Lab::new(&behind));
        let (host_a, host_b) = (a.host("lan", &[10], 9), b.host("lan", &[10], 8));
        a.meet(&host_a, &format!("10.{net}.0.9"), &format!("10.{net}.0.1"));
        b.meet(&host_b, "10.2.0.9", "10.2.0.1");
        let packet = udp(&format!("10.{net}.0.9"), "10.2.0.9", (1, 2), b"x");
        a.from(&host_a, &packet.bytes());
        ferry((&mut a, "wan"), (&mut b, "wan"));
        let dropped = b.dropped();
        let got = b.packets(&host_b);
        if passes {
            assert_eq!((got, dropped), (vec![passed_twice(&packet)], vec![]));
            let back = udp("10.2.0.9", "10.1.0.9", (2, 1), b"y");
            b.from(&host_b, &back.bytes());
            ferry((&mut a, "wan"), (&mut b, "wan"));
            assert_eq!(a.one(&host_a), passed_twice(&back));
        } else {
            assert_eq!((got.len(), dropped), (0, vec![("policy-mismatch", 1)]));
        }
    }
}

#[test]
fn a_packet_must_fit_the_tunnel() {
    for (kind, mtu) in [
        (PLAIN, 1446),
        (Kind { udp: true, ..PLAIN }, 1438),
        (Kind { outer_v6: true, ..PLAIN }, 1426),
        (Kind { outer_v6: true, udp: true, ..PLAIN }, 1418),
    ] {
        let mut pair = Pair::new(kind);
        let sized = |len: usize| udp("10.1.0.9", "10.2.0.9", (1, 2), &vec![7; len - 28]);
        let fits = sized(mtu).df();
        pair.a.from(&pair.host_a, &fits.bytes());
        let frame = pair.sealed().remove(0);
        assert!(frame.len() <= 1518, "{} bytes", frame.len());
        pair.b.send(1, &frame);
        assert_eq!(pair.b.one(&pair.host_b), passed_twice(&fits), "{kind:?}");

        let large = sized(mtu + 1).df();
        pair.a.from(&pair.host_a, &large.bytes());
        assert_eq!(pair.a.dropped(), [("packet-too-big", 1)]);
        let error = icmp_error(&pair.a.packets(&pair.host_a).remove(0));
        assert_eq!((error.kind, error.code, error.word as usize), (3, 4, mtu));
        assert_eq!(error.from, "10.1.0.1");
        let large = udp("2001:db8:1::9", "2001:db8:2::9", (1, 2), &vec![7; mtu + 1 - 48]);
        pair.a.from(&pair.host_a, &large.bytes());
        let error = icmp_error(&pair.a.packets(&pair.host_a).remove(0));
        assert_eq!((error.kind, error.code, error.word as usize), (2, 0, mtu));
        pair.a.dropped();

        // Without DF it is divided before it is sealed.
        for len in [mtu + 1, 1500, 1560] {
            let packet = sized(len);
            pair.a.from(&pair.host_a, &packet.bytes());
            pair.ferry();
            let fragments = pair.b.packets(&pair.host_b);
            assert_eq!(fragments.len(), 2);
            assert_eq!(reassemble(&fragments).bytes(), passed_twice(&packet));
            assert_eq!((pair.a.dropped(), pair.b.dropped()), (vec![], vec![]));
        }
    }
}

#[test]
fn errors_about_packets_out_of_a_tunnel_go_back_through_it() {
    let mut pair = Pair::new(PLAIN);
    for (from, to, kind, own) in
        [("10.1.0.9", "10.2.0.9", 11, "10.2.0.1"), ("2001:db8:1::9", "2001:db8:2::9", 3, "2001:db8:2::1")]
    {
        let packet = udp(from, to, (1, 2), b"x").ttl(2);
        pair.a.from(&pair.host_a, &packet.bytes());
        pair.ferry();
        assert_eq!(pair.b.dropped(), [("ttl-expired", 1)]);
        let error = icmp_error(&pair.a.one(&pair.host_a));
        assert_eq!((error.kind, error.from.as_str(), error.to.as_str()), (kind, own, from));
        assert_eq!(error.quote, packet.forwarded());
    }
}

#[test]
fn a_burst_of_many_is_sealed_and_opened_in_order() {
    let mut pair = Pair::new(PLAIN);
    let packets: Vec<_> =
        (0..200).map(|n| udp("10.1.0.9", "10.2.0.9", (n, 2), &vec![3; usize::from(n)])).collect();
    for packet in &packets {
        pair.a.put(0, &pair.host_a.frame(&packet.bytes()));
    }
    pair.a.run();
    let sealed = pair.sealed();
    assert_eq!(sealed.len(), 200);
    sealed.iter().for_each(|frame| pair.b.put(1, frame));
    pair.b.run();
    let expected: Vec<_> = packets.iter().map(passed_twice).collect();
    assert_eq!(pair.b.packets(&pair.host_b), expected);
}

#[test]
fn esp_of_another_place_or_shape_is_refused() {
    let mut pair = Pair::new(PLAIN);
    pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
    let frame = read_frame(&pair.sealed()[0]);
    let sealed = Ip::read(&frame.payload);
    let peer = Host { tags: frame.tags, mac: frame.src, gateway: frame.dst, port: 1 };
    let in_udp = [
        &[0x11, 0x94, 0x11, 0x94][..],
        &(8 + sealed.payload.len() as u16).to_be_bytes(),
        &[0, 0],
        &sealed.payload,
    ]
    .concat();
    let elsewhere = Ip { src: "192.0.2.3".parse().unwrap(), ..sealed.clone() };
    let encapsulated = ip("192.0.2.1", "192.0.2.2", UDP, &in_udp);
    let keepalive = ip("192.0.2.1", "192.0.2.2", UDP, &[0x11, 0x94, 0x11, 0x94, 0, 9, 0, 0, 0xff]);
    for (packet, reason) in [
        (elsewhere, "esp-outer-mismatch"),
        (encapsulated, "esp-outer-mismatch"),
        (keepalive, "nat-keepalive"),
    ] {
        pair.b.from(&peer, &packet.bytes());
        assert_eq!(pair.b.dropped(), [(reason, 1)]);
    }
    // IKE on the same port is nobody's, without a host: the sender is told.
    let ike = udp("192.0.2.1", "192.0.2.2", (4500, 4500), &[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    pair.b.from(&peer, &ike.bytes());
    assert_eq!(pair.b.dropped(), [("local-unserved", 1)]);
    assert_eq!(icmp_error(&pair.b.packets(&peer).remove(0)).code, 3);
    pair.b.from(&peer, &sealed.bytes());
    assert_eq!(pair.b.packets(&pair.host_b).len(), 1);
}

#[test]
fn an_association_whose_lifetime_is_over_stops() {
    let mut pair = Pair::new(PLAIN);
    let packet = udp("10.1.0.9", "10.2.0.9", (1, 1), b"late in life").bytes();
    let outbound = pair.a.single.built.tables.tunnels[0].sa.clone().unwrap();
    outbound.ended.store(true, std::sync::atomic::Ordering::Relaxed);
    pair.a.from(&pair.host_a, &packet);
    assert_eq!(pair.a.dropped(), [("esp-expired", 1)]);
    outbound.ended.store(false, std::sync::atomic::Ordering::Relaxed);
    let inbound = std::sync::Arc::clone(&pair.b.single.built.tables.sas[0]);
    inbound.ended.store(true, std::sync::atomic::Ordering::Relaxed);
    pair.a.from(&pair.host_a, &packet);
    pair.ferry();
    assert_eq!(pair.b.dropped(), [(DropReason::EspExpired.name(), 1)]);
    assert_eq!(pair.b.packets(&pair.host_b).len(), 0);
}
