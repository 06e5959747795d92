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
