//! Translation with sessions: source pools, port mappings, what goes together with 1:1 rules, errors and fragments.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use causeway::table::session::View;
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
nat_sessions = 1024
[port.vpc]
driver = "memory"
ring = 64
[port.wan]
driver = "memory"
ring = 64
[gateway.vpc]
prefixes = ["10.2.0.0/16"]
nat_udp_timeout = "20s"
nat_tcp_timeout = "40s"
nat_tcp_transitory_timeout = "10s"
nat_icmp_timeout = "5s"
[interface.vpc]
port = "vpc"
vlan = 20
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.1/30"]

[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.11"
translated = "203.0.113.11"
[[gateway.vpc.nat]]
kind = "peer"
original = "10.1.7.0/24"
translated = "198.51.100.0/24"
[[gateway.vpc.nat]]
name = "web"
kind = "port"
protocol = "tcp"
original = "10.2.0.10"
original_port = 8080
translated = "203.0.113.80"
translated_port = 80
[[gateway.vpc.nat]]
kind = "port"
protocol = "udp"
original = "10.2.0.10"
translated = "203.0.113.80"
translated_port = 53
[[gateway.vpc.nat]]
name = "out"
kind = "pool"
translated = "203.0.113.16-203.0.113.17"

[[gateway.vpc.route]]
to = "10.1.0.0/16"
via = "192.0.2.2"
[[gateway.vpc.route]]
to = "10.2.0.0/16"
via = "10.2.0.254"
"#;

/// The gateway, the VPC's router, and the peer's.
fn lab_of(text: &str) -> (Lab, Host, Host) {
    let mut lab = Lab::new(text);
    let (vpc, peer) = (lab.host("vpc", &[20], 0xfe), lab.host("wan", &[100], 2));
    for host in ["10.2.0.254", "10.2.0.10", "10.2.0.11", "10.2.0.12", "10.2.0.20", "10.2.0.21"] {
        lab.meet(&vpc, host, "10.2.0.1");
    }
    lab.meet(&peer, "192.0.2.2", "192.0.2.1");
    (lab, vpc, peer)
}

fn lab() -> (Lab, Host, Host) {
    lab_of(CONFIG)
}

/// Both ports; of ICMP the identifier twice.
fn ports(packet: &Ip) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes(packet.payload[at..at + 2].try_into().unwrap());
    if packet.proto == ICMP { (word(4), word(4)) } else { (word(0), word(2)) }
}

/// The packet with other ends, all checksums computed anew.
fn with(packet: &Ip, src: (&str, u16), dst: (&str, u16)) -> Ip {
    let mut packet = packet.clone();
    if packet.proto == ICMP {
        // Of the two ports only one is an identifier.
        let id = src.1.max(dst.1);
        packet.payload[4..6].copy_from_slice(&id.to_be_bytes());
    } else {
        packet.payload[..2].copy_from_slice(&src.1.to_be_bytes());
        packet.payload[2..4].copy_from_slice(&dst.1.to_be_bytes());
    }
    packet.readdressed(src.0, dst.0)
}

/// TCP with these flags.
fn segment(src: &str, dst: &str, ports: (u16, u16), flags: u8) -> Ip {
    let mut packet = tcp(src, dst, ports, b"");
    packet.payload[13] = flags;
    packet.readdressed(src, dst)
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn reply_to(packet: &Ip) -> Ip {
    let (from, to) = ports(packet);
    let (src, dst) = (packet.src.to_string(), packet.dst.to_string());
    if packet.proto == ICMP {
        let mut back = packet.clone().ttl(64);
        back.payload[0] = 0;
        return with(&back, (&dst, from), (&src, from));
    }
    with(&packet.clone().ttl(64), (&dst, to), (&src, from))
}

fn sessions(lab: &Lab) -> Vec<View> {
    let tables = lab.single.worker.nat_tables().unwrap();
    tables.sessions.records().iter().filter_map(|record| record.view()).collect()
}

fn names(lab: &Lab) -> Vec<&'static str> {
    sessions(lab).iter().map(|view| view.tcp.name()).collect()
}

/// Sends a packet from the VPC, and gives what the peer sees.
fn out(lab: &mut Lab, vpc: &Host, peer: &Host, packet: &Ip) -> Ip {
    lab.from(vpc, &packet.bytes());
    Ip::read(&lab.one(peer))
}

fn back(lab: &mut Lab, vpc: &Host, peer: &Host, packet: &Ip) -> Ip {
    lab.from(peer, &packet.bytes());
    Ip::read(&lab.one(vpc))
}

#[track_caller]
fn refused(lab: &mut Lab, from: &Host, packet: &Ip, reason: &'static str) {
    lab.from(from, &packet.bytes());
    assert_eq!(lab.dropped(), [(reason, 1)]);
}

#[test]
fn hosts_share_the_pool_s_addresses_and_get_their_answers() {
    let (mut lab, vpc, peer) = lab();
    let mut seen = BTreeSet::new();
    for host in ["10.2.0.20", "10.2.0.21"] {
        let mut silent = udp(host, "10.1.0.5", (4000, 9), b"none");
        silent.payload[6..8].fill(0);
        for packet in [
            udp(host, "10.1.0.5", (4000, 53), b"odd"),
            udp(host, "10.1.0.5", (4001, 53), b""),
            silent,
            tcp(host, "10.1.0.5", (40_000, 443), b"hello"),
            ping(host, "10.1.0.5", 7),
        ] {
            let there = out(&mut lab, &vpc, &peer, &packet);
            let (src, (port, remote)) = (there.src.to_string(), ports(&there));
            assert!(["203.0.113.16", "203.0.113.17"].contains(&&*src), "{there:02x?}");
            assert!(port >= 1024 && port % 2 == ports(&packet).0 % 2, "{port}");
            let expected = with(&packet, (&src, port), ("10.1.0.5", remote));
            assert_eq!(there.bytes(), expected.forwarded());
            assert!(seen.insert((packet.proto, src, port, remote)), "{there:02x?} twice");
            let home = back(&mut lab, &vpc, &peer, &reply_to(&there));
            assert_eq!(home.bytes(), reply_to(&packet).forwarded());
        }
    }
    assert_eq!(sessions(&lab).len(), 10);
}

#[test]
fn only_who_was_talked_to_may_answer() {
    let (mut lab, vpc, peer) = lab();
    let there = out(&mut lab, &vpc, &peer, &udp("10.2.0.20", "10.1.0.5", (4000, 53), b"x"));
    let (src, port) = (there.src.to_string(), ports(&there).0);
    let answer = |from: &str, ports: (u16, u16)| udp(from, &src, ports, b"y");
    for wrong in [
        answer("10.1.0.5", (54, port)),
        answer("10.1.0.6", (53, port)),
        answer("10.1.0.5", (53, port ^ 2)),
        tcp("10.1.0.5", &src, (53, port), b""),
        ping("10.1.0.5", &src, 1),
        ip("10.1.0.5", &src, 47, &[0; 8]),
    ] {
        refused(&mut lab, &peer, &wrong, "nat-no-session");
    }
    back(&mut lab, &vpc, &peer, &answer("10.1.0.5", (53, port)));
    // Neither what has no ports, nor the end of a connection, nor an answer begins a session.
    refused(&mut lab, &vpc, &ip("10.2.0.20", "10.1.0.5", 47, &[0; 8]), "nat-untranslatable");
    refused(&mut lab, &vpc, &segment("10.2.0.20", "10.1.0.5", (1, 2), RST), "nat-no-session");
    let mut answer = ping("10.2.0.20", "10.1.0.5", 1);
    answer.payload[0] = 0;
    refused(&mut lab, &vpc, &answer.readdressed("10.2.0.20", "10.1.0.5"), "nat-no-session");
}

#[test]
fn an_endpoint_keeps_its_outside_port_for_all_it_talks_to() {
    let (mut lab, vpc, peer) = lab();
    let mut seen = BTreeSet::new();
    for n in 0..50 {
        let packet = udp("10.2.0.20", &format!("10.1.0.{n}"), (4000, 53), b"x");
        let there = out(&mut lab, &vpc, &peer, &packet);
        seen.insert((there.src, ports(&there).0));
    }
    assert_eq!((seen.len(), sessions(&lab).len()), (1, 50));
}

#[test]
fn a_port_serves_many_remote_ends_and_when_none_is_free_it_is_said() {
    let text = CONFIG.replace("\"203.0.113.16-203.0.113.17\"", "\"203.0.113.16\"\nports = \"5000-5003\"");
    let (mut lab, vpc, peer) = lab_of(&text);
    let packet = |n: u16, remote: &str| udp("10.2.0.20", remote, (4000 + n, 53), b"x");
    let mut used = BTreeSet::new();
    for n in 0..4 {
        let there = out(&mut lab, &vpc, &peer, &packet(n, "10.1.0.5"));
        used.insert(ports(&there).0);
    }
    assert_eq!(used, BTreeSet::from([5000, 5001, 5002, 5003]));
    for _ in 0..3 {
        refused(&mut lab, &vpc, &packet(9, "10.1.0.5"), "nat-ports-exhausted");
    }
    // Nobody else notices.
    out(&mut lab, &vpc, &peer, &packet(0, "10.1.0.5"));
    out(&mut lab, &vpc, &peer, &packet(9, "10.1.0.6"));
    out(&mut lab, &vpc, &peer, &tcp("10.2.0.20", "10.1.0.5", (1, 53), b"x"));
    let counters = lab.single.worker.counters();
    use causeway::stats::PoolColumn;
    assert_eq!(counters.read_pool(0, PoolColumn::Exhausted), 3);
    assert!(counters.read_pool(0, PoolColumn::Occupied) > 0);
    lab.pass(Duration::from_secs(3));
    assert_eq!(lab.single.worker.counters().read_pool(0, PoolColumn::Sessions), 6);
}

#[test]
fn peers_reach_a_mapped_service() {
    let (mut lab, vpc, peer) = lab();
    let call = segment("10.1.0.5", "203.0.113.80", (40_000, 80), SYN);
    let inside = back(&mut lab, &vpc, &peer, &call);
    assert_eq!(inside.bytes(), with(&call, ("10.1.0.5", 40_000), ("10.2.0.10", 8080)).forwarded());
    let answer = segment("10.2.0.10", "10.1.0.5", (8080, 40_000), SYN | ACK);
    let outside = out(&mut lab, &vpc, &peer, &answer);
    assert_eq!(outside.bytes(), with(&answer, ("203.0.113.80", 80), ("10.1.0.5", 40_000)).forwarded());
    assert_eq!(names(&lab), ["established"]);
    refused(&mut lab, &peer, &segment("10.1.0.5", "203.0.113.80", (40_000, 81), SYN), "nat-no-session");
    refused(&mut lab, &peer, &udp("10.1.0.5", "203.0.113.80", (40_000, 80), b""), "nat-no-session");
    refused(&mut lab, &peer, &segment("10.1.0.6", "203.0.113.80", (40_000, 80), RST), "nat-no-session");
    // A peer that the VPC knows by another address comes by that one.
    let query = udp("10.1.7.9", "203.0.113.80", (5000, 53), b"?");
    let inside = back(&mut lab, &vpc, &peer, &query);
    assert_eq!(inside.bytes(), with(&query, ("198.51.100.9", 5000), ("10.2.0.10", 53)).forwarded());
    let answer = udp("10.2.0.10", "198.51.100.9", (53, 5000), b"!");
    let outside = out(&mut lab, &vpc, &peer, &answer);
    assert_eq!(outside.bytes(), with(&answer, ("203.0.113.80", 53), ("10.1.7.9", 5000)).forwarded());
    // What the host itself begins goes by the pool, from the mapped port too.
    let own = out(&mut lab, &vpc, &peer, &udp("10.2.0.10", "10.1.0.99", (53, 53), b"?"));
    assert!(own.src.to_string().starts_with("203.0.113.1"), "{own:02x?}");
    // Then its remote end cannot call in from the same port: one inside pair of ends has one session.
    refused(&mut lab, &peer, &udp("10.1.0.99", "203.0.113.80", (53, 53), b"?"), "nat-conflict");
}

#[test]
fn an_address_rule_goes_before_one_of_ports() {
    let (mut lab, vpc, peer) = lab();
    let packet = udp("10.2.0.11", "10.1.0.5", (4000, 53), b"x");
    let there = out(&mut lab, &vpc, &peer, &packet);
    assert_eq!(there.bytes(), packet.readdressed("203.0.113.11", "10.1.0.5").forwarded());
    assert!(sessions(&lab).is_empty());
    // Within the VPC nothing is translated.
    lab.from(&vpc, &udp("10.2.0.20", "10.2.0.21", (1, 2), b"x").bytes());
    assert_eq!(Ip::read(&lab.one(&vpc)).src.to_string(), "10.2.0.20");
}

#[test]
fn rules_hold_under_their_conditions() {
    let extra = r#"
[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.12"
translated = "203.0.113.12"
protocol = "tcp"
destination_port = [443, "8000-8010"]
[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.12"
translated = "203.0.113.13"
destination = ["10.1.4.0/24"]
[[gateway.vpc.nat]]
kind = "pool"
original = "10.2.0.12"
translated = "203.0.113.99"
protocol = "udp"
destination_port = 123
[[gateway.vpc.nat]]
name = "out""#;
    let text = CONFIG.replace("\n[[gateway.vpc.nat]]\nname = \"out\"", extra);
    let (mut lab, vpc, peer) = lab_of(&text);
    for (packet, expected) in [
        (tcp("10.2.0.12", "10.1.0.5", (4000, 443), b""), "203.0.113.12"),
        (tcp("10.2.0.12", "10.1.4.5", (4000, 8005), b""), "203.0.113.12"),
        (tcp("10.2.0.12", "10.1.4.5", (4000, 22), b""), "203.0.113.13"),
        (ping("10.2.0.12", "10.1.4.5", 1), "203.0.113.13"),
        (udp("10.2.0.12", "10.1.0.5", (4000, 123), b""), "203.0.113.99"),
        (udp("10.2.0.12", "10.1.0.5", (4000, 124), b""), "203.0.113.1"),
        (tcp("10.2.0.12", "10.1.0.5", (4000, 22), b""), "203.0.113.1"),
    ] {
        let there = out(&mut lab, &vpc, &peer, &packet);
        assert!(there.src.to_string().starts_with(expected), "{packet:02x?}: {}", there.src);
        assert_eq!(back(&mut lab, &vpc, &peer, &reply_to(&there)).bytes(), reply_to(&packet).forwarded());
    }
    // From elsewhere the address does not stand for the host.
    lab.from(&peer, &tcp("10.1.0.5", "203.0.113.12", (443, 4000), b"").bytes());
    assert_eq!(lab.packets(&vpc).len(), 1);
    lab.from(&peer, &tcp("10.1.0.5", "203.0.113.12", (22, 4000), b"").bytes());
    assert!(lab.packets(&vpc).is_empty());
    lab.dropped();
    lab.raw(peer.port);
}

#[test]
fn hosts_of_the_vpc_meet_at_their_outside_addresses() {
    let (mut lab, vpc, _) = lab();
    let through = |lab: &mut Lab, packet: &Ip| {
        lab.from(&vpc, &packet.bytes());
        Ip::read(&lab.one(&vpc))
    };
    // A host of the pool and a mapped service.
    let call = segment("10.2.0.20", "203.0.113.80", (4000, 80), SYN);
    let there = through(&mut lab, &call);
    let (src, port) = (there.src.to_string(), ports(&there).0);
    assert!(src.starts_with("203.0.113.1"), "{src}");
    assert_eq!(there.bytes(), with(&call, (&src, port), ("10.2.0.10", 8080)).forwarded());
    let answer = segment("10.2.0.10", &src, (8080, port), SYN | ACK);
    let home = through(&mut lab, &answer);
    assert_eq!(home.bytes(), with(&answer, ("203.0.113.80", 80), ("10.2.0.20", 4000)).forwarded());
    assert_eq!(names(&lab), ["established", "established"]);
    // An error about it finds its way too.
    let error = icmp("10.2.0.10", &src, 3, 3, [0; 4], &there.bytes()[..28]);
    let told = icmp_error(&through(&mut lab, &error).bytes());
    assert_eq!((told.from.as_str(), told.to.as_str()), ("203.0.113.80", "10.2.0.20"));
    assert_eq!(told.quote, call.forwarded()[..28]);
    // A host with an address of its own, and back.
    let call = udp("10.2.0.20", "203.0.113.11", (4000, 53), b"?");
    let there = through(&mut lab, &call);
    assert_eq!(there.dst.to_string(), "10.2.0.11");
    let home = through(&mut lab, &reply_to(&there));
    assert_eq!(home.bytes(), reply_to(&call).forwarded());
}

#[test]
fn two_parties_with_the_same_addresses_talk() {
    let text = CONFIG
        .replace("original = \"10.1.7.0/24\"", "original = \"10.2.0.0/24\"")
        .replace("to = \"10.1.0.0/16\"", "to = \"198.51.100.0/24\"");
    let (mut lab, vpc, peer) = lab_of(&text);
    // The host 10.2.0.20 of either party: here it is 198.51.100.20, there it is one of the pool.
    for packet in [
        udp("10.2.0.20", "198.51.100.20", (4000, 53), b"?"),
        ping("10.2.0.20", "198.51.100.20", 3),
        tcp("10.2.0.11", "198.51.100.11", (4000, 80), b"1:1"),
    ] {
        let there = out(&mut lab, &vpc, &peer, &packet);
        assert_eq!(there.dst, packet.src);
        assert!(there.src.to_string().starts_with("203.0.113.1"), "{there:02x?}");
        let home = back(&mut lab, &vpc, &peer, &reply_to(&there));
        assert_eq!(home.bytes(), reply_to(&packet).forwarded());
    }
    // And the other party's host calls the service here.
    let call = segment("10.2.0.20", "203.0.113.80", (4000, 80), SYN);
    let inside = back(&mut lab, &vpc, &peer, &call);
    assert_eq!(
        (inside.src.to_string(), inside.dst.to_string()),
        ("198.51.100.20".into(), "10.2.0.10".into())
    );
    let answer = segment("10.2.0.10", "198.51.100.20", (8080, 4000), SYN | ACK);
    let outside = out(&mut lab, &vpc, &peer, &answer);
    assert_eq!(
        (outside.src.to_string(), outside.dst.to_string()),
        ("203.0.113.80".into(), "10.2.0.20".into())
    );
}

#[test]
fn errors_about_sessions_go_both_ways_however_short_they_quote() {
    let (mut lab, vpc, peer) = lab();
    for packet in [
        udp("10.2.0.20", "10.1.0.5", (4000, 53), b"a question"),
        tcp("10.2.0.20", "198.51.100.5", (4000, 80), b"hello"),
        ping("10.2.0.20", "10.1.0.5", 9),
    ] {
        let there = out(&mut lab, &vpc, &peer, &packet);
        for len in [1000, 28, 40] {
            let quote = there.bytes();
            let quote = &quote[..len.min(quote.len())];
            let error = icmp("10.1.255.7", &there.src.to_string(), 3, 4, [0, 0, 5, 0], quote);
            let told = icmp_error(&back(&mut lab, &vpc, &peer, &error).bytes());
            assert_eq!((told.from.as_str(), told.to.as_str()), ("10.1.255.7", "10.2.0.20"));
            assert_eq!((told.code, told.word), (4, 1280));
            let sent = packet.forwarded();
            assert_eq!(told.quote, sent[..sent.len().min(len)]);
        }
        // Too short to say whose it is; or about nobody's.
        let error = icmp("10.1.255.7", &there.src.to_string(), 3, 4, [0; 4], &there.bytes()[..23]);
        refused(&mut lab, &peer, &error, "nat-untranslatable");
        let other = with(&there, (&there.src.to_string(), 3), ("10.1.0.77", 1));
        let error = icmp("10.1.255.7", &there.src.to_string(), 3, 4, [0; 4], &other.bytes()[..28]);
        refused(&mut lab, &peer, &error, "nat-no-session");
        // The host has had enough of the answers: from its own address, and from a router's.
        let home = back(&mut lab, &vpc, &peer, &reply_to(&there));
        for router in ["10.2.0.20", "10.2.9.9"] {
            let error = icmp(router, &home.src.to_string(), 3, 3, [0; 4], &home.bytes()[..28]);
            let told = icmp_error(&out(&mut lab, &vpc, &peer, &error).bytes());
            assert_eq!((told.from, told.to), (there.src.to_string(), there.dst.to_string()));
            assert_eq!(told.quote, reply_to(&there).forwarded()[..28]);
        }
    }
}

#[test]
fn the_gateway_s_own_errors_are_for_the_host_that_sent() {
    let (mut lab, vpc, peer) = lab();
    let packet = udp("10.2.0.20", "10.1.0.5", (4000, 33434), b"traceroute").ttl(1);
    lab.from(&vpc, &packet.bytes());
    let error = icmp_error(&lab.packets(&vpc).remove(0));
    assert_eq!((error.kind, error.to.as_str()), (11, "10.2.0.20"));
    assert_eq!(error.quote, packet.bytes());
    let call = segment("10.1.0.5", "203.0.113.80", (40_000, 80), SYN).ttl(1);
    lab.from(&peer, &call.bytes());
    let error = icmp_error(&lab.packets(&peer).remove(0));
    assert_eq!((error.kind, error.to.as_str(), error.from.as_str()), (11, "10.1.0.5", "192.0.2.1"));
    assert_eq!(error.quote, call.bytes());
}

/// The packet in fragments of at most `size` bytes of payload.
fn fragments(packet: &Ip, size: usize, id: u16) -> Vec<Ip> {
    let count = packet.payload.len().div_ceil(size);
    let part = |(n, bytes): (usize, &[u8])| Ip {
        id,
        offset: (n * size) as u16,
        more: n + 1 < count,
        payload: bytes.to_vec(),
        ..packet.clone()
    };
    packet.payload.chunks(size).enumerate().map(part).collect()
}

/// What fragments are together.
fn joined(parts: &[Ip]) -> Ip {
    let mut parts = parts.to_vec();
    parts.sort_by_key(|part| part.offset);
    let payload = parts.iter().flat_map(|part| part.payload.clone()).collect();
    let whole = Ip { more: false, offset: 0, payload, ..parts[0].clone() };
    // Reading checks the checksum over all of it.
    Ip::read(&whole.bytes())
}

#[test]
fn fragments_follow_the_first_one_in_any_order() {
    let (mut lab, vpc, peer) = lab();
    let packet = udp("10.2.0.20", "10.1.0.5", (4000, 53), &[7; 100]);
    for (id, order) in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]].into_iter().enumerate() {
        let parts = fragments(&packet, 24, 100 + id as u16);
        assert_eq!(parts.len(), 5);
        for n in order {
            lab.from(&vpc, &parts[n].bytes());
        }
        let seen: Vec<Ip> = lab.packets(&peer).iter().map(|bytes| Ip::read(bytes)).collect();
        assert_eq!(seen.len(), 5, "{:?}", lab.dropped());
        assert!(seen.iter().all(|part| part.src == seen[0].src && part.dst.to_string() == "10.1.0.5"));
        let there = joined(&seen);
        assert_eq!(ports(&there).1, 53);
        // And the answer.
        let parts = fragments(&reply_to(&there), 32, 200 + id as u16);
        for part in parts.iter().rev() {
            lab.from(&peer, &part.bytes());
        }
        let home: Vec<Ip> = lab.packets(&vpc).iter().map(|bytes| Ip::read(bytes)).collect();
        let expected = reply_to(&packet);
        assert_eq!((joined(&home).payload, home[0].dst), (expected.payload, expected.dst));
    }
    assert_eq!(sessions(&lab).len(), 1);
}

/// The fragments of an error have its first one's ends, which only that one's quote tells.
#[test]
fn errors_in_fragments_go_both_ways_in_any_order() {
    let (mut lab, vpc, peer) = lab();
    let packet = udp("10.2.0.20", "10.1.0.5", (4000, 53), &[7; 500]);
    let there = out(&mut lab, &vpc, &peer, &packet);
    let answer = udp("10.1.0.5", &there.src.to_string(), (53, ports(&there).0), &[8; 500]);
    let here = back(&mut lab, &vpc, &peer, &answer);
    let outside = there.src.to_string();
    let mut id = 0;
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        // From a router of the peer's, from the peer's host itself, and from the VPC's host.
        for (error, from, to, quote, expected) in [
            (
                icmp("10.1.9.9", &outside, 11, 0, [0; 4], &there.bytes()),
                &peer,
                &vpc,
                &packet,
                ["10.1.9.9", "10.2.0.20"],
            ),
            (
                icmp("10.1.0.5", &outside, 3, 3, [0; 4], &there.bytes()),
                &peer,
                &vpc,
                &packet,
                ["10.1.0.5", "10.2.0.20"],
            ),
            (
                icmp("10.2.0.20", "10.1.0.5", 3, 3, [0; 4], &here.bytes()),
                &vpc,
                &peer,
                &answer,
                [&outside, "10.1.0.5"],
            ),
        ] {
            id += 1;
            let parts = fragments(&error, 160, id);
            for n in order {
                lab.from(from, &parts[n].bytes());
            }
            let seen: Vec<Ip> = lab.packets(to).iter().map(|bytes| Ip::read(bytes)).collect();
            assert_eq!(seen.len(), 4, "{:?}", lab.dropped());
            assert!(
                seen.iter().all(|part| [part.src.to_string(), part.dst.to_string()] == expected),
                "{seen:?}"
            );
            assert_eq!(joined(&seen).payload[8..], quote.forwarded());
        }
    }
    // What follows a first one that went nowhere goes nowhere.
    let stray = icmp(
        "10.1.9.9",
        "203.0.113.16",
        11,
        0,
        [0; 4],
        &udp("203.0.113.16", "10.1.0.5", (9, 9), &[0; 300]).bytes(),
    );
    for part in fragments(&stray, 160, 99) {
        lab.from(&peer, &part.bytes());
    }
    assert_eq!(lab.dropped(), [("nat-no-session", 3)]);
}

#[test]
fn fragments_wait_for_the_first_one_not_long_and_not_many() {
    let (mut lab, vpc, peer) = lab();
    let packet = udp("10.2.0.20", "10.1.0.5", (4000, 53), &[7; 1000]);
    let parts = fragments(&packet, 16, 1);
    for part in &parts[1..=60] {
        lab.from(&vpc, &part.bytes());
    }
    assert_eq!(lab.dropped(), [("nat-fragments-full", 12)]);
    assert_eq!(lab.single.worker.ledger().waiting, 48);
    lab.pass(Duration::from_secs(3));
    assert_eq!(lab.dropped(), [("nat-fragment-timeout", 48)]);
    assert!(lab.packets(&peer).is_empty() && sessions(&lab).is_empty());
    // What waits at the end is counted: see `Lab`.
    lab.from(&vpc, &fragments(&packet, 16, 2)[1].bytes());
}

#[test]
fn sessions_end_when_their_time_is_over() {
    let (mut lab, vpc, peer) = lab();
    let udp_there = out(&mut lab, &vpc, &peer, &udp("10.2.0.20", "10.1.0.5", (4000, 53), b"x"));
    let ping_there = out(&mut lab, &vpc, &peer, &ping("10.2.0.20", "10.1.0.5", 7));
    let open = out(&mut lab, &vpc, &peer, &segment("10.2.0.20", "10.1.0.5", (1, 80), SYN));
    let (src, port) = (open.src.to_string(), ports(&open).0);
    back(&mut lab, &vpc, &peer, &segment("10.1.0.5", &src, (80, port), SYN | ACK));
    let half = out(&mut lab, &vpc, &peer, &segment("10.2.0.20", "10.1.0.5", (3, 80), SYN));
    assert_eq!(sessions(&lab).len(), 4);
    lab.pass(Duration::from_secs(6));
    refused(&mut lab, &peer, &reply_to(&ping_there), "nat-no-session");
    assert_eq!(sessions(&lab).len(), 3);
    // Packets of either way keep a session.
    back(&mut lab, &vpc, &peer, &reply_to(&udp_there));
    lab.pass(Duration::from_secs(6));
    assert_eq!(sessions(&lab).len(), 2);
    refused(
        &mut lab,
        &peer,
        &segment("10.1.0.5", &half.src.to_string(), (80, ports(&half).0), ACK),
        "nat-no-session",
    );
    lab.pass(Duration::from_secs(10));
    back(&mut lab, &vpc, &peer, &reply_to(&udp_there));
    back(&mut lab, &vpc, &peer, &segment("10.1.0.5", &src, (80, port), ACK));
    // Closed by both, it lives as one that opens.
    back(&mut lab, &vpc, &peer, &segment("10.1.0.5", &src, (80, port), FIN | ACK));
    out(&mut lab, &vpc, &peer, &segment("10.2.0.20", "10.1.0.5", (1, 80), FIN | ACK));
    lab.pass(Duration::from_secs(12));
    refused(&mut lab, &peer, &segment("10.1.0.5", &src, (80, port), ACK), "nat-no-session");
    lab.pass(Duration::from_secs(15));
    assert!(sessions(&lab).is_empty());
    let tables = lab.single.worker.nat_tables().unwrap();
    assert_eq!((tables.sessions.len(), tables.of_gateway(0)), (0, 0));
}

#[test]
fn one_host_and_one_gateway_have_their_limits() {
    let text =
        CONFIG.replace("nat_udp_timeout", "nat_sessions = 16\nnat_sessions_per_source = 10\nnat_udp_timeout");
    let (mut lab, vpc, peer) = lab_of(&text);
    let packet = |host: &str, n: u16| udp(host, "10.1.0.5", (4000 + n, 53), b"x");
    for n in 0..10 {
        out(&mut lab, &vpc, &peer, &packet("10.2.0.20", n));
    }
    refused(&mut lab, &vpc, &packet("10.2.0.20", 10), "nat-source-limit");
    for n in 0..6 {
        out(&mut lab, &vpc, &peer, &packet("10.2.0.21", n));
    }
    refused(&mut lab, &vpc, &packet("10.2.0.21", 6), "nat-table-full");
    // What is there goes on, and address rules know nothing of it.
    out(&mut lab, &vpc, &peer, &packet("10.2.0.20", 3));
    out(&mut lab, &vpc, &peer, &packet("10.2.0.11", 3));
    lab.pass(Duration::from_secs(25));
    out(&mut lab, &vpc, &peer, &packet("10.2.0.20", 10));
    assert_eq!(
        lab.single.worker.nat_tables().unwrap().sources.of(0, Ipv4Addr::new(10, 2, 0, 20).to_bits()),
        1
    );
}

#[test]
fn a_reload_keeps_every_session_whose_rule_still_stands() {
    let (mut lab, vpc, peer) = lab();
    let (question, call) = (
        udp("10.2.0.20", "10.1.0.5", (4000, 53), b"?"),
        segment("10.1.0.5", "203.0.113.80", (40_000, 80), SYN),
    );
    let there = out(&mut lab, &vpc, &peer, &question);
    back(&mut lab, &vpc, &peer, &call);
    let before = sessions(&lab);
    // Other rules come before and after, and the pool grows.
    let more = CONFIG.replace(
        "[[gateway.vpc.nat]]\nname = \"web\"",
        "[[gateway.vpc.nat]]\nkind = \"pool\"\noriginal = \"10.2.9.0/24\"\ntranslated = \"203.0.113.60\"\n[[gateway.vpc.nat]]\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.12\"\ntranslated = \"203.0.113.81\"\ntranslated_port = 81\n[[gateway.vpc.nat]]\nname = \"web\"",
    );
    lab.reload(&more.replace("203.0.113.17\"", "203.0.113.40\""));
    assert_eq!(back(&mut lab, &vpc, &peer, &reply_to(&there)).bytes(), reply_to(&question).forwarded());
    assert_eq!(out(&mut lab, &vpc, &peer, &question).bytes(), there.bytes());
    back(&mut lab, &vpc, &peer, &call);
    assert_eq!(sessions(&lab).len(), before.len());
    // The mapping goes: its session too, at once. The pool's stays.
    lab.reload(&CONFIG.replace("translated_port = 80\n", "translated_port = 8000\n"));
    refused(&mut lab, &peer, &call, "nat-no-session");
    back(&mut lab, &vpc, &peer, &reply_to(&there));
    // The pool loses the address: without a packet the session ends too.
    let other = if there.src.to_string() == "203.0.113.16" { "203.0.113.17" } else { "203.0.113.16" };
    lab.reload(&CONFIG.replace("203.0.113.16-203.0.113.17", other));
    lab.pass(Duration::from_secs(3));
    assert!(sessions(&lab).is_empty(), "{:?}", sessions(&lab));
    let again = out(&mut lab, &vpc, &peer, &question);
    assert_eq!(again.src.to_string(), other);
    // Without any rule the tables stay, empty.
    lab.reload(
        &CONFIG
            .replace("kind = \"pool\"", "kind = \"local\"\noriginal = \"10.2.0.99\"")
            .replace("203.0.113.16-203.0.113.17", "203.0.113.99"),
    );
    lab.pass(Duration::from_secs(3));
    assert!(sessions(&lab).is_empty());
}

/// The first packet of a session takes the long way through the rules, those after it a short one: both end in the same
/// place, until the rules change.
#[test]
fn packets_after_the_first_become_what_it_became() {
    let (mut lab, vpc, peer) = lab();
    let mut silent = udp("10.2.0.20", "10.1.0.5", (4001, 53), b"no checksum");
    silent.payload[6..8].fill(0);
    let questions = [
        udp("10.2.0.20", "10.1.0.5", (4000, 53), b"odd"),
        silent,
        tcp("10.2.0.20", "10.1.0.5", (4000, 53), b"hello"),
        tcp("10.2.0.20", "10.1.0.6", (4000, 53), b""),
        udp("10.2.0.20", "198.51.100.5", (4000, 53), b"to one that has another address here"),
    ];
    for question in &questions {
        let first = out(&mut lab, &vpc, &peer, question);
        for _ in 0..3 {
            assert_eq!(
                back(&mut lab, &vpc, &peer, &reply_to(&first)).bytes(),
                reply_to(question).forwarded()
            );
            assert_eq!(out(&mut lab, &vpc, &peer, question).bytes(), first.bytes());
        }
        // Options, fragments and errors in between take the long way all the same.
        let fragment = Ip { more: true, ..question.clone() };
        assert_eq!(out(&mut lab, &vpc, &peer, &fragment).src, first.src);
        let stamped = question.clone().options(&[1, 1, 1, 0]);
        let there = out(&mut lab, &vpc, &peer, &stamped);
        assert_eq!((there.src, ports(&there), there.options.len()), (first.src, ports(&first), 4));
    }
    let calls = [
        tcp("10.1.0.5", "203.0.113.80", (40_000, 80), b"call"),
        udp("10.1.0.5", "203.0.113.80", (40_000, 53), b"call"),
    ];
    for call in &calls {
        let first = back(&mut lab, &vpc, &peer, call);
        for _ in 0..3 {
            assert_eq!(out(&mut lab, &vpc, &peer, &reply_to(&first)).bytes(), reply_to(call).forwarded());
            assert_eq!(back(&mut lab, &vpc, &peer, call).bytes(), first.bytes());
        }
    }
    let live = sessions(&lab);
    assert_eq!(live.len(), questions.len() + calls.len());
    // Each was counted, whichever way it went.
    assert!(live.iter().all(|view| view.packets_out + view.packets_in >= 7), "{live:?}");
    // An address rule for the host goes before its sessions from now on.
    let rule = "[[gateway.vpc.nat]]\nkind = \"local\"\noriginal = \"10.2.0.20\"\ntranslated = \"203.0.113.20\"\n[[gateway.vpc.nat]]\nname = \"web\"";
    lab.reload(&CONFIG.replace("[[gateway.vpc.nat]]\nname = \"web\"", rule));
    for _ in 0..2 {
        let there = out(&mut lab, &vpc, &peer, &questions[0]);
        assert_eq!(there.bytes(), questions[0].readdressed("203.0.113.20", "10.1.0.5").forwarded());
    }
    // And a condition: of the two flows one.
    let rule = rule.replace("translated", "protocol = \"tcp\"\ntranslated");
    lab.reload(&CONFIG.replace("[[gateway.vpc.nat]]\nname = \"web\"", &rule));
    for _ in 0..2 {
        assert!(out(&mut lab, &vpc, &peer, &questions[0]).src.to_string().starts_with("203.0.113.1"));
        assert_eq!(out(&mut lab, &vpc, &peer, &questions[2]).src.to_string(), "203.0.113.20");
    }
}

#[test]
fn an_operator_ends_a_session() {
    use causeway::runtime::Command;
    let (mut lab, vpc, peer) = lab();
    let there = out(&mut lab, &vpc, &peer, &udp("10.2.0.20", "10.1.0.5", (4000, 53), b"?"));
    let id = 0;
    let view = sessions(&lab)[0];
    for incarnation in [view.incarnation.wrapping_add(1), view.incarnation] {
        back(&mut lab, &vpc, &peer, &reply_to(&there));
        lab.single.command(Command::EndSession { id, incarnation });
        lab.run();
    }
    refused(&mut lab, &peer, &reply_to(&there), "nat-no-session");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever hosts send to whomever, what comes back is theirs, checksums are right, and no two live sessions share
    /// an outside pair of ends.
    #[test]
    fn there_and_back_is_the_packet_that_left(
        story in prop::collection::vec((0u8..3, 0u8..2, 0u8..4, 0u16..3, 0u16..2, prop::collection::vec(any::<u8>(), 0..20)), 1..60),
    ) {
        let (mut lab, vpc, peer) = lab_of(&CONFIG.replace("\"203.0.113.16-203.0.113.17\"", "[\"203.0.113.16\", \"203.0.113.32/31\"]\nports = \"6000-6007\""));
        for (proto, host, remote, port, remote_port, data) in story {
            let (host, seen) = (format!("10.2.0.{}", 20 + host), format!("10.1.{}.5", [0, 1, 2, 7][usize::from(remote)]));
            let known = seen.replace("10.1.7.", "198.51.100.");
            let packet = match proto {
                0 => udp(&host, &known, (4000 + port, 50 + remote_port), &data),
                1 => tcp(&host, &known, (4000 + port, 50 + remote_port), &data),
                _ => ping(&host, &known, 1),
            };
            let there = out(&mut lab, &vpc, &peer, &packet);
            prop_assert_eq!(there.dst.to_string(), seen);
            let home = back(&mut lab, &vpc, &peer, &reply_to(&there));
            prop_assert_eq!(home.bytes(), reply_to(&packet).forwarded());
        }
        let live = sessions(&lab);
        let outside: BTreeSet<_> = live.iter().map(|view| view.outside).collect();
        prop_assert_eq!(outside.len(), live.len());
    }
}
