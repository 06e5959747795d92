//! Gateways with the same addresses: a packet is in one of them until a route says otherwise. Random topologies, random
//! packets, and a model that knows routes and nothing else.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::common::{frame::*, *};
use causeway::control::routes::ChangeRoutes;

/// Where a route of the model leads.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Leads {
    Router,
    Gateway(usize),
    Blackhole,
}

#[derive(Debug, Clone)]
struct World {
    /// By gateway: whether peers may reach each other through it, and its routes.
    gateways: Vec<(bool, BTreeMap<&'static str, Leads>)>,
}

const PREFIXES: [&str; 4] = ["10.3.0.0/16", "10.3.4.0/24", "10.2.0.0/16", "0.0.0.0/0"];
/// Whether the prefix of the same place holds the address of the same row.
const TARGETS: [(&str, [bool; 4]); 5] = [
    ("10.1.0.9", [false, false, false, true]),
    ("10.2.0.2", [false, false, true, true]),
    ("10.3.4.5", [true, true, false, true]),
    ("10.3.9.9", [true, false, false, true]),
    ("198.51.100.9", [false, false, false, true]),
];
/// Places of `PREFIXES`, the longest first.
const LONGEST: [usize; 4] = [1, 0, 2, 3];

fn world() -> impl Strategy<Value = World> {
    (2..=5_usize).prop_flat_map(|count| {
        let leads = prop_oneof![
            3 => Just(None),
            2 => Just(Some(Leads::Router)),
            3 => (0..count).prop_map(|gateway| Some(Leads::Gateway(gateway))),
            1 => Just(Some(Leads::Blackhole)),
        ];
        let routes = proptest::collection::vec(leads, PREFIXES.len());
        let gateway = (any::<bool>(), routes);
        proptest::collection::vec(gateway, count).prop_map(|gateways| {
            let of = |(place, (transit, routes)): (usize, (bool, Vec<Option<Leads>>))| {
                let routes =
                    PREFIXES.iter().zip(routes).filter_map(|(prefix, leads)| Some((*prefix, leads?)));
                // A gateway does not lead into itself.
                (transit, routes.filter(|(_, leads)| *leads != Leads::Gateway(place)).collect())
            };
            World { gateways: gateways.into_iter().enumerate().map(of).collect() }
        })
    })
}

/// What becomes of a packet.
#[derive(Debug, PartialEq)]
enum End {
    /// Out of this gateway: of its local side, or the peers'.
    Out(usize, bool),
    Dropped(&'static str),
}

impl World {
    /// Every gateway has the same two links: 10.1.0.0/24 towards its VPC, 10.2.0.0/24 towards its peers.
    fn config(&self) -> String {
        let mut text = String::new();
        for (place, (transit, _)) in self.gateways.iter().enumerate() {
            text += &format!(
                r#"
[gateway.g{place}]
prefixes = ["10.1.0.0/16"]
transit = {transit}
[interface.local{place}]
port = "lan"
vlan = {local}
gateway = "g{place}"
side = "local"
addresses = ["10.1.0.1/24"]
[interface.peer{place}]
port = "wan"
vlan = {peer}
gateway = "g{place}"
side = "peer"
addresses = ["10.2.0.1/24"]
"#,
                local = 100 + place,
                peer = 200 + place
            );
        }
        text
    }

    fn target(&self, gateway: usize, to: usize) -> Option<Leads> {
        let (_, routes) = &self.gateways[gateway];
        let holds = TARGETS[to].1;
        LONGEST.iter().filter(|place| holds[**place]).find_map(|place| routes.get(PREFIXES[*place]).copied())
    }

    fn end(&self, mut gateway: usize, mut from_local: bool, to: usize) -> End {
        let mut passes = 0;
        loop {
            let out = |local: bool| {
                let forbidden = !local && !from_local && !self.gateways[gateway].0;
                if forbidden { End::Dropped("transit-forbidden") } else { End::Out(gateway, local) }
            };
            match to {
                // On the links themselves.
                0 => return out(true),
                1 => return out(false),
                _ => {}
            }
            match self.target(gateway, to) {
                None => return End::Dropped("no-route"),
                Some(Leads::Router) => return out(false),
                Some(Leads::Blackhole) => return End::Dropped("blackhole"),
                Some(Leads::Gateway(_)) if passes == 8 => return End::Dropped("too-many-passes"),
                Some(Leads::Gateway(next)) => {
                    gateway = next;
                    from_local = false;
                    passes += 1;
                }
            }
        }
    }
}

/// Routes by command: the file's checks would refuse those that go round, and the pipeline must stand them.
fn load(lab: &mut Lab, world: &World) {
    for (place, (_, routes)) in world.gateways.iter().enumerate() {
        let line = |(to, leads): (&&str, &Leads)| match leads {
            Leads::Router => format!(r#"{{"to":"{to}","via":"10.2.0.2"}}"#),
            Leads::Gateway(next) => format!(r#"{{"to":"{to}","into":"g{next}"}}"#),
            Leads::Blackhole => format!(r#"{{"to":"{to}","blackhole":true}}"#),
        };
        let lines: Vec<String> = routes.iter().map(line).collect();
        let text = format!(
            r#"{{"route":"add","gateway":"g{place}","source":"ebgp","routes":[{}]}}"#,
            lines.join(",")
        );
        let change: ChangeRoutes = serde_json::from_str(&text).unwrap();
        lab.single.change_routes(&change, 0).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn packets_leave_where_the_routes_of_their_gateway_say_and_nowhere_else(
        world in world(),
        packets in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..TARGETS.len()), 1..24),
    ) {
        let mut lab = Lab::new(&world.config());
        load(&mut lab, &world);
        let count = world.gateways.len();
        let hosts: Vec<[Host; 2]> = (0..count)
            .map(|place| {
                let (local, peer) = (100 + place as u16, 200 + place as u16);
                [
                    lab.neighbour("lan", &[local], 10 + place as u8, &[("10.1.0.9", "10.1.0.1")]),
                    lab.neighbour("wan", &[peer], 20 + place as u8, &[("10.2.0.2", "10.2.0.1")]),
                ]
            })
            .collect();
        for (place, from_local, to) in packets {
            let place = place.index(count);
            let from = &hosts[place][usize::from(!from_local)];
            // From an address that no gateway has on a link: errors about it are no part of this.
            let packet = udp("10.77.0.1", TARGETS[to].0, (to as u16, 9), b"x");
            lab.from(from, &packet.bytes());
            let mut out = Vec::new();
            for (gateway, [local, peer]) in hosts.iter().enumerate() {
                for (host, is_local) in [(local, true), (peer, false)] {
                    let _ = host;
                    out.push((gateway, is_local, host.tags[0].1));
                }
            }
            let mut seen = Vec::new();
            for port in 0..2 {
                for bytes in lab.raw(port) {
                    let frame = read_frame(&bytes);
                    let carried = frame.ether_type == IPV4 && Ip::read(&frame.payload).proto == UDP;
                    if carried {
                        let (gateway, local, _) =
                            out.iter().find(|(.., tag)| frame.tags[0].1 == *tag).copied().unwrap();
                        seen.push(End::Out(gateway, local));
                    }
                }
            }
            let dropped = lab.dropped();
            match world.end(place, from_local, to) {
                End::Dropped(reason) => {
                    prop_assert!(dropped.iter().any(|(name, _)| *name == reason), "{dropped:?} for {reason}");
                    prop_assert_eq!(seen, []);
                }
                end => prop_assert_eq!(seen, [end], "{:?}", dropped),
            }
        }
    }
}

#[test]
fn a_hub_without_a_vpc_joins_its_peers() {
    let mut lab = Lab::new(
        r#"
[gateway.hub]
[interface.one]
port = "wan"
vlan = 1
gateway = "hub"
side = "peer"
addresses = ["192.0.2.1/30"]
[interface.two]
port = "wan"
vlan = 2
gateway = "hub"
side = "peer"
addresses = ["198.51.100.1/30"]
[[gateway.hub.route]]
to = "10.1.0.0/16"
via = "192.0.2.2"
[[gateway.hub.route]]
to = "10.2.0.0/16"
via = "198.51.100.2"
"#,
    );
    let one = lab.neighbour("wan", &[1], 1, &[("192.0.2.2", "192.0.2.1")]);
    let two = lab.neighbour("wan", &[2], 2, &[("198.51.100.2", "198.51.100.1")]);
    lab.from(&one, &udp("10.1.0.1", "10.2.0.1", (1, 2), b"x").bytes());
    assert_eq!(Ip::read(&lab.one(&two)).dst.to_string(), "10.2.0.1");
    lab.from(&two, &udp("10.2.0.1", "10.1.0.1", (2, 1), b"x").bytes());
    assert_eq!(Ip::read(&lab.one(&one)).dst.to_string(), "10.1.0.1");
}

/// Two gateways with the same addresses on their local sides: 10.1.0.9 and 2001:db8:1::9 are a host of each. The first
/// leads into the second, and the second into a third.
const OVERLAPPING: &str = r#"
[gateway.a]
prefixes = ["10.1.0.0/16", "2001:db8:1::/48"]
[interface.a]
port = "lan"
vlan = 10
gateway = "a"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[[gateway.a.route]]
to = "0.0.0.0/0"
gateway = "b"
[[gateway.a.route]]
to = "2001:db8::/32"
gateway = "b"

[gateway.b]
prefixes = ["10.1.0.0/16", "10.2.0.0/16", "2001:db8:1::/48"]
transit = false
[interface.b]
port = "lan"
vlan = 20
gateway = "b"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.b-small]
port = "lan"
vlan = 21
gateway = "b"
side = "local"
mtu = 1400
addresses = ["10.2.0.1/24", "2001:db8:2::1/64"]
[interface.b-peer]
port = "wan"
vlan = 22
gateway = "b"
side = "peer"
addresses = ["192.0.2.1/30"]
NAT
[[gateway.b.route]]
to = "10.3.0.0/16"
via = "192.0.2.2"
[[gateway.b.route]]
to = "10.5.0.0/16"
gateway = "c"

[gateway.c]
[interface.c]
port = "wan"
vlan = 30
gateway = "c"
side = "local"
addresses = ["10.1.0.2/24"]
"#;

/// The gateway, the host of `a`, and the host of `b` that has the same addresses.
fn overlapping(nat: &str) -> (Lab, Host, Host) {
    let mut lab = Lab::new(&OVERLAPPING.replace("NAT\n", nat));
    let known = [("10.1.0.9", "10.1.0.1"), ("2001:db8:1::9", "2001:db8:1::1")];
    let (mine, other) = (lab.neighbour("lan", &[10], 9, &known), lab.neighbour("lan", &[20], 8, &known));
    (lab, mine, other)
}

/// Sends a packet of `a`'s host; what comes back to it. Nothing else may leave but what `others` says, by VLAN.
#[track_caller]
fn answer(lab: &mut Lab, mine: &Host, packet: &Ip) -> Vec<Vec<u8>> {
    lab.from(mine, &packet.bytes());
    let mut answers = Vec::new();
    for port in 0..2 {
        for bytes in lab.raw(port) {
            let frame = read_frame(&bytes);
            if frame.ether_type == ARP {
                continue;
            }
            assert_eq!(
                (frame.tags, frame.dst),
                (mine.tags.clone(), mine.mac),
                "somebody else's: {bytes:02x?}"
            );
            answers.push(frame.payload);
        }
    }
    answers
}

#[test]
fn errors_go_to_the_gateway_that_the_packet_came_into_and_never_to_a_namesake() {
    let (mut lab, mine, _) = overlapping("");
    let from = "10.1.0.9";
    // Destination, size, type and code, and the word behind.
    for (to, size, kind, code, word) in [
        ("10.9.0.1", 10, 3, 0, 0),      // no route in b
        ("10.2.0.5", 1450, 3, 4, 1400), // too big for an interface of b
        ("10.3.0.5", 10, 3, 13, 0),     // b lets no peer reach another, and another gateway is one
        ("10.5.0.5", 10, 3, 0, 0),      // no route in c
        ("192.0.2.1", 10, 3, 3, 0),     // nobody listens at b's own address
    ] {
        let sent = udp(from, to, (1000, 2000), &vec![7; size]).df();
        let answers = answer(&mut lab, &mine, &sent);
        assert_eq!(answers.len(), 1, "{to}: {:?}", lab.dropped());
        let error = super::icmp_error(&answers[0]);
        assert_eq!((error.from.as_str(), error.to.as_str()), ("10.1.0.1", from), "{to}");
        assert_eq!((error.kind, error.code, error.word), (kind, code, word), "{to}");
        assert_eq!(error.quote[12..20], sent.bytes()[12..20], "{to}");
    }
    let sent = udp("2001:db8:1::9", "2001:db8:2::5", (1000, 2000), &[7; 1450]);
    let error = super::icmp_error(&answer(&mut lab, &mine, &sent)[0]);
    assert_eq!((error.from.as_str(), error.to.as_str()), ("2001:db8:1::1", "2001:db8:1::9"));
    assert_eq!((error.kind, error.code, error.word), (2, 0, 1400));
    // An address of b itself answers, and its answers find their way as well.
    for (from, to) in [(from, "192.0.2.1"), ("2001:db8:1::9", "2001:db8:2::1")] {
        let answers = answer(&mut lab, &mine, &ping(from, to, 1));
        assert_eq!(answers.len(), 1, "{to}: {:?}", lab.dropped());
        let reply = Ip::read(&answers[0]);
        assert_eq!((reply.src.to_string(), reply.dst.to_string()), (to.into(), from.into()));
    }
    lab.dropped();
}

#[test]
fn errors_about_who_does_not_answer_in_another_gateway_come_back_too() {
    let (mut lab, mine, _) = overlapping("");
    assert_eq!(answer(&mut lab, &mine, &udp("10.1.0.9", "10.2.0.77", (1, 2), b"x")), Vec::<Vec<u8>>::new());
    lab.pass(std::time::Duration::from_secs(4));
    let mut errors = Vec::new();
    for bytes in lab.raw(0) {
        let frame = read_frame(&bytes);
        if frame.ether_type != ARP {
            assert_eq!(frame.tags, mine.tags, "{bytes:02x?}");
            errors.push(super::icmp_error(&frame.payload));
        }
    }
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].from.as_str(), errors[0].to.as_str()), ("10.1.0.1", "10.1.0.9"));
    assert_eq!((errors[0].kind, errors[0].code), (3, 1));
    lab.dropped();
}

#[test]
fn errors_say_what_was_sent_though_another_gateway_has_translated_it() {
    // 10.1.0.0/24 of b is known outside as 203.0.113.0/24, and a's host is known in there by an address of its own.
    let nat = r#"
[[gateway.b.nat]]
kind = "local"
original = "10.2.0.0/24"
translated = "203.0.113.0/24"
[[gateway.b.nat]]
kind = "local"
original = "10.1.0.0/24"
translated = "203.0.114.0/24"
[[gateway.b.nat]]
kind = "peer"
original = "10.1.0.9"
translated = "198.51.100.9"
"#;
    let (mut lab, mine, _) = overlapping(nat);
    let sent = udp("10.1.0.9", "203.0.113.5", (1000, 2000), &[7; 1450]).df();
    let answers = answer(&mut lab, &mine, &sent);
    assert_eq!(answers.len(), 1, "{:?}", lab.dropped());
    let error = super::icmp_error(&answers[0]);
    assert_eq!((error.from.as_str(), error.to.as_str()), ("10.1.0.1", "10.1.0.9"));
    assert_eq!((error.kind, error.code, error.word), (3, 4, 1400));
    // Source, destination and ports, as they were sent.
    assert_eq!(error.quote[12..24], sent.bytes()[12..24]);
    // Nobody can say what a gateway between has changed: rather no error than one to somebody else.
    let before = lab.single.worker.counters().read_worker(causeway::stats::WorkerColumn::IcmpSuppressed);
    let sent = udp("10.1.0.9", "10.5.0.5", (1000, 2000), b"x");
    assert_eq!(answer(&mut lab, &mine, &sent), Vec::<Vec<u8>>::new());
    let after = lab.single.worker.counters().read_worker(causeway::stats::WorkerColumn::IcmpSuppressed);
    assert_eq!(after - before, 1);
    assert_eq!(lab.dropped(), [("no-route", 1), ("packet-too-big", 1)]);
}
