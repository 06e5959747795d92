//! 1:1 translation: of the local end, of the peer end, of both, and of what ICMP errors quote.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{
    common::{frame::*, *},
    icmp_error,
};

const CONFIG: &str = r#"
[system]
name = "bench"
buffers = 1024
huge_pages = "never"
[port.vpc]
driver = "memory"
ring = 64
[port.wan]
driver = "memory"
ring = 64
[gateway.vpc]
prefixes = ["10.2.0.0/16", "2001:db8:2::/48"]
[interface.vpc]
port = "vpc"
vlan = 20
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24", "2001:db8:2::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.1/30", "2001:db8:ff::1/64"]

[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.10"
translated = "203.0.113.10"
[[gateway.vpc.nat]]
kind = "local"
original = "10.2.4.0/24"
translated = "203.0.114.0/24"
[[gateway.vpc.nat]]
kind = "local"
original = "2001:db8:2:4::/64"
translated = "2001:db8:cafe:4::/64"
# Hosts of the peer, known here under other addresses.
[[gateway.vpc.nat]]
kind = "peer"
original = "10.1.7.0/24"
translated = "198.51.100.0/24"
[[gateway.vpc.nat]]
kind = "peer"
original = "2001:db8:1:7::/64"
translated = "2001:db8:beef:7::/64"

[[gateway.vpc.route]]
to = "10.1.0.0/16"
via = "192.0.2.2"
[[gateway.vpc.route]]
to = "2001:db8:1::/48"
via = "2001:db8:ff::2"
[[gateway.vpc.route]]
to = "10.2.0.0/16"
via = "10.2.0.254"
[[gateway.vpc.route]]
to = "2001:db8:2::/48"
via = "2001:db8:2::fe"
"#;

/// The gateway, the VPC's router, and the peer's.
fn lab() -> (Lab, Host, Host) {
    let mut lab = Lab::new(CONFIG);
    let (vpc, peer) = (lab.host("vpc", &[20], 0xfe), lab.host("wan", &[100], 2));
    lab.meet(&vpc, "10.2.0.254", "10.2.0.1");
    lab.meet(&vpc, "2001:db8:2::fe", "2001:db8:2::1");
    lab.meet(&vpc, "10.2.0.10", "10.2.0.1");
    lab.meet(&peer, "192.0.2.2", "192.0.2.1");
    lab.meet(&peer, "2001:db8:ff::2", "2001:db8:ff::1");
    (lab, vpc, peer)
}

/// Pairs of (VPC's view, peer's view), each of (host of the VPC, host of the peer).
type Ends = (&'static str, &'static str);
const VIEWS: [(Ends, Ends); 6] = [
    (("10.2.0.10", "10.1.0.5"), ("203.0.113.10", "10.1.0.5")),
    (("10.2.4.99", "10.1.0.5"), ("203.0.114.99", "10.1.0.5")),
    (("10.2.0.20", "198.51.100.8"), ("10.2.0.20", "10.1.7.8")),
    (("10.2.4.99", "198.51.100.8"), ("203.0.114.99", "10.1.7.8")),
    (("10.2.0.20", "10.1.0.5"), ("10.2.0.20", "10.1.0.5")),
    (("2001:db8:2:4::99", "2001:db8:beef:7::8"), ("2001:db8:cafe:4::99", "2001:db8:1:7::8")),
];

fn kinds(from: &str, to: &str) -> Vec<Ip> {
    let mut silent = udp(from, to, (500, 600), b"no checksum");
    silent.payload[6..8].fill(0);
    let mut all = vec![
        udp(from, to, (500, 600), b"odd"),
        udp(from, to, (500, 600), b""),
        tcp(from, to, (40_000, 443), b"hello"),
        ping(from, to, 9),
        ip(from, to, 99, b"no checksum that we know"),
        ip(from, to, 132, &[7; 12]),
    ];
    if !from.contains(':') {
        let mut first = udp(from, to, (500, 600), &[3; 32]);
        first.more = true;
        let mut later = ip(from, to, UDP, &[4; 32]);
        later.offset = 40;
        all.extend([silent, first, later]);
    }
    all
}

/// What a translator makes of a packet, fragments included.
fn translated(packet: &Ip, from: &str, to: &str) -> Ip {
    if packet.offset > 0 {
        return Ip { src: from.parse().unwrap(), dst: to.parse().unwrap(), ..packet.clone() };
    }
    packet.readdressed(from, to)
}

#[test]
fn addresses_change_both_ways_and_checksums_with_them() {
    let (mut lab, vpc, peer) = lab();
    lab.meet(&vpc, "10.2.0.20", "10.2.0.1");
    for ((local, remote), (local_seen, remote_seen)) in VIEWS {
        for packet in kinds(local, remote) {
            lab.from(&vpc, &packet.bytes());
            let expected = translated(&packet, local_seen, remote_seen).forwarded();
            assert_eq!(lab.one(&peer), expected, "{local} to {remote}");
        }
        for packet in kinds(remote_seen, local_seen) {
            lab.from(&peer, &packet.bytes());
            let expected = translated(&packet, remote, local).forwarded();
            assert_eq!(lab.one(&vpc), expected, "{remote_seen} to {local_seen}");
        }
    }
}

/// A quote of `packet`, cut to `len` bytes, in an error of either version.
fn error_about(packet: &[u8], len: usize, from: &str, to: &str) -> Ip {
    let (kind, code) = if from.contains(':') { (3, 0) } else { (11, 0) };
    icmp(from, to, kind, code, [0; 4], &packet[..packet.len().min(len)])
}

#[test]
fn errors_quote_packets_as_their_senders_know_them() {
    let (mut lab, vpc, peer) = lab();
    lab.meet(&vpc, "10.2.0.20", "10.2.0.1");
    for ((local, remote), (local_seen, remote_seen)) in VIEWS {
        let v6 = local.contains(':');
        let header = if v6 { 40 } else { 20 };
        let router = if v6 { "2001:db8:1::77" } else { "10.1.255.77" };
        for packet in kinds(local, remote) {
            // A router of the peer tells the VPC's host: whole, cut to the RFC's eight bytes, and behind the checksum.
            for len in [1000, header + 8, header + 20] {
                lab.from(&vpc, &packet.bytes());
                let seen = lab.one(&peer);
                let error = error_about(&seen, len, router, local_seen);
                lab.from(&peer, &error.bytes());
                let told = icmp_error(&lab.one(&vpc));
                assert_eq!((told.from.as_str(), told.to.as_str()), (router, local));
                let sent = packet.forwarded();
                assert_eq!(told.quote, sent[..sent.len().min(len)], "{packet:?} cut to {len}");
            }
        }
        // And the VPC's host tells the peer.
        for packet in kinds(remote_seen, local_seen) {
            lab.from(&peer, &packet.bytes());
            let seen = lab.one(&vpc);
            let error = error_about(&seen, 1000, local, remote);
            lab.from(&vpc, &error.bytes());
            let told = icmp_error(&lab.one(&peer));
            assert_eq!((told.from.as_str(), told.to.as_str()), (local_seen, remote_seen));
            assert_eq!(told.quote, packet.forwarded());
        }
    }
}

#[test]
fn the_gateways_own_errors_quote_what_was_sent() {
    let (mut lab, vpc, peer) = lab();
    for ((local, remote), (local_seen, remote_seen)) in [VIEWS[3], VIEWS[5]] {
        let kind = if local.contains(':') { 3 } else { 11 };
        let packet = tcp(local, remote, (1, 2), b"hello").ttl(1);
        lab.from(&vpc, &packet.bytes());
        let error = icmp_error(&lab.packets(&vpc).remove(0));
        assert_eq!((error.kind, error.to.as_str()), (kind, local));
        assert_eq!(error.quote, packet.bytes());
        let packet = tcp(remote_seen, local_seen, (1, 2), b"hello").ttl(1);
        lab.from(&peer, &packet.bytes());
        let error = icmp_error(&lab.packets(&peer).remove(0));
        assert_eq!((error.kind, error.to.as_str()), (kind, remote_seen));
        assert_eq!(error.quote, packet.bytes());
    }
}

#[test]
fn a_quote_that_is_cut_too_short_is_not_passed_on() {
    let (mut lab, _, peer) = lab();
    let quote = udp("203.0.113.10", "10.1.0.5", (1, 2), b"x").bytes();
    lab.from(&peer, &error_about(&quote, 19, "10.1.0.5", "203.0.113.10").bytes());
    assert_eq!(lab.dropped(), [("nat-untranslatable", 1)]);
}

#[test]
fn addresses_that_look_on_link_are_answered_for() {
    let mut lab =
        Lab::new(&CONFIG.replace("203.0.113.10", "192.0.2.9").replace("192.0.2.1/30", "192.0.2.1/28"));
    let peer = lab.host("wan", &[100], 2);
    lab.meet(&peer, "192.0.2.2", "192.0.2.9");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What goes there and comes back is the packet that left.
    #[test]
    fn there_and_back_is_the_packet_that_left(
        hosts: (u8, u8),
        wide: (u64, u64),
        ports: (u16, u16),
        proto in 0..3_u8,
        data in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let (mut lab, vpc, peer) = lab();
        let v6 = |net: u128, host: u64| Ipv6Addr::from_bits(net | u128::from(host)).to_string();
        for (local, remote) in [
            (Ipv4Addr::new(10, 2, 4, hosts.0).to_string(), Ipv4Addr::new(198, 51, 100, hosts.1).to_string()),
            (v6(0x2001_0db8_0002_0004 << 64, wide.0), v6(0x2001_0db8_beef_0007 << 64, wide.1)),
        ] {
            let packet = match proto {
                0 => udp(&local, &remote, ports, &data),
                1 => tcp(&local, &remote, ports, &data),
                _ => ping(&local, &remote, ports.0),
            };
            lab.from(&vpc, &packet.bytes());
            // Reading checks every checksum.
            let out = Ip::read(&lab.one(&peer));
            let back = out.readdressed(&out.dst.to_string(), &out.src.to_string()).ttl(64);
            lab.from(&peer, &back.bytes());
            let home = Ip::read(&lab.one(&vpc));
            prop_assert_eq!(home.readdressed(&local, &remote).ttl(64).bytes(), packet.bytes());
            prop_assert_eq!((home.src.to_string(), home.dst.to_string()), (remote, local));
        }
    }
}

/// Of an IPv6 datagram too only the first fragment has ports, by which a rule may ask.
#[test]
fn fragments_of_ipv6_go_by_the_ports_of_the_first_one() {
    let extra = r#"
[[gateway.vpc.nat]]
kind = "local"
original = "2001:db8:2:5::/64"
translated = "2001:db8:cafe:5::/64"
protocol = "udp"
destination_port = 53
[[gateway.vpc.route]]
to = "10.1.0.0/16""#;
    let text = CONFIG.replacen("\n[[gateway.vpc.route]]\nto = \"10.1.0.0/16\"", extra, 1);
    let mut lab = Lab::new(&text);
    let (vpc, peer) = (lab.host("vpc", &[20], 0xfe), lab.host("wan", &[100], 2));
    lab.meet(&vpc, "2001:db8:2::fe", "2001:db8:2::1");
    lab.meet(&peer, "2001:db8:ff::2", "2001:db8:ff::1");
    let mut id = 0_u32;
    for (port, seen) in [(53, "2001:db8:cafe:5::9"), (54, "2001:db8:2:5::9")] {
        for order in [[0, 1, 2, 3], [3, 1, 0, 2]] {
            id += 1;
            let whole = udp("2001:db8:2:5::9", "2001:db8:1::5", (4000, port), &[id as u8; 200]);
            let cut = |packet: &Ip, id: u32| -> Vec<Ip> {
                let parts = packet.payload.chunks(56).enumerate();
                let count = packet.payload.len().div_ceil(56);
                parts
                    .map(|(n, part)| {
                        let offset = (n * 56) as u16 | u16::from(n + 1 < count);
                        let head = [vec![UDP, 0], offset.to_be_bytes().to_vec(), id.to_be_bytes().to_vec()];
                        Ip { proto: 44, payload: [head.concat(), part.to_vec()].concat(), ..packet.clone() }
                    })
                    .collect()
            };
            let parts = cut(&whole, id);
            assert_eq!(parts.len(), 4);
            for n in order {
                lab.from(&vpc, &parts[n].bytes());
            }
            let mut there: Vec<Ip> = lab.packets(&peer).iter().map(|bytes| Ip::read(bytes)).collect();
            there.sort_by_key(|part| u16::from_be_bytes([part.payload[2], part.payload[3]]));
            let expected = cut(&whole.readdressed(seen, "2001:db8:1::5"), id);
            assert_eq!(there.len(), 4, "{:?}", lab.dropped());
            for (part, expected) in there.iter().zip(expected) {
                assert_eq!(part.bytes(), expected.forwarded());
            }
        }
    }
}
