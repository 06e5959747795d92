//! Several routes to one prefix, and policies with tunnels that stand by: who carries what, and what a flag changes.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    common::{frame::*, *},
    icmp_error,
};
use causeway::{
    config::{
        self,
        build::{Ephemeral, Fingerprint, Sequences},
    },
    control::{
        ports::derived_mac,
        routes::{ChangeRoutes, Changed, ListRoutes, list},
    },
    crypto::sequence::Sequence,
    table::liveness::Cause,
};

/// Two lines and two tunnels, everything twice.
const CONFIG: &str = r#"
[gateway.g]
prefixes = ["10.1.0.0/16"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.a]
port = "wan"
vlan = 1
gateway = "g"
side = "peer"
addresses = ["192.0.2.1/29", "2001:db8:ff::1/64"]
[interface.b]
port = "wan"
vlan = 2
gateway = "g"
side = "peer"
addresses = ["198.51.100.1/29"]
[tunnel.ta]
gateway = "g"
local = "192.0.2.1"
remote = "192.0.2.2"
out = { spi = 0x1001, key = { env = "A" } }
in = [{ spi = 0x2001, key = { env = "B" } }]
[tunnel.tb]
gateway = "g"
local = "198.51.100.1"
remote = "198.51.100.2"
out = { spi = 0x1002, key = { env = "C" } }
in = [{ spi = 0x2002, key = { env = "D" } }]
# Shared one to three.
[[gateway.g.route]]
to = "10.8.0.0/16"
via = "192.0.2.2"
[[gateway.g.route]]
to = "10.8.0.0/16"
via = "198.51.100.2"
weight = 3
# Active and standby; the file's order does not matter.
[[gateway.g.route]]
to = "10.9.0.0/16"
via = "198.51.100.2"
priority = 200
[[gateway.g.route]]
to = "10.9.0.0/16"
via = "192.0.2.2"
# A line goes before a tunnel, whatever its priority; a blackhole is the last.
[[gateway.g.route]]
to = "10.10.0.0/16"
tunnel = "ta"
priority = 1
[[gateway.g.route]]
to = "10.10.0.0/16"
via = "198.51.100.2"
priority = 500
[[gateway.g.route]]
to = "10.10.0.0/16"
blackhole = true
# One way only.
[[gateway.g.route]]
to = "10.11.0.0/16"
via = "192.0.2.2"
[[gateway.g.route]]
to = "10.0.0.0/8"
via = "198.51.100.2"
[[gateway.g.policy]]
action = "protect"
tunnel = "ta"
standby = ["tb"]
destination = ["10.12.0.0/16"]
"#;

struct Site {
    lab: Lab,
    host: Host,
    routers: [Host; 2],
}

impl Site {
    fn new(text: &str) -> Self {
        let mut lab = Lab::new(text);
        let host = lab.neighbour("lan", &[], 9, &[("10.1.0.9", "10.1.0.1")]);
        let routers = [
            lab.neighbour("wan", &[1], 1, &[("192.0.2.2", "192.0.2.1")]),
            lab.neighbour("wan", &[2], 2, &[("198.51.100.2", "198.51.100.1")]),
        ];
        Self { lab, host, routers }
    }

    fn number(&self, interface: &str) -> u16 {
        let place = self.lab.config.interfaces.iter().position(|i| i.name.value.as_str() == interface);
        self.lab.single.built.interfaces[place.unwrap()]
    }

    /// Says whether an interface is up.
    fn line(&mut self, name: &str, up: bool) {
        let number = self.number(name);
        self.lab.single.built.tables.liveness.set_interface(number, Cause::UNREACHED, !up);
    }

    fn tunnel(&mut self, name: &str, up: bool) {
        let place = self.lab.config.tunnels.iter().position(|t| t.name.value.as_str() == name);
        let number = self.lab.single.built.tunnels[place.unwrap()];
        self.lab.single.built.tables.liveness.set_tunnel(number, Cause::UNREACHED, !up);
    }

    /// Which router gets the packet: 0, 1, or none.
    fn way(&mut self, packet: &Ip) -> Option<usize> {
        self.lab.from(&self.host.clone(), &packet.bytes());
        let frames = self.lab.raw(self.routers[0].port);
        assert!(frames.len() <= 1);
        let frame = read_frame(frames.first()?);
        Some(usize::from(frame.tags[0].1) - 1)
    }

    /// Sends flows to a prefix: where each goes.
    fn flows(&mut self, to: &str) -> Vec<Option<usize>> {
        (0..400_u16).map(|port| self.way(&udp("10.1.0.9", to, (port, 443), b"x"))).collect()
    }
}

fn count(ways: &[Option<usize>]) -> BTreeMap<Option<usize>, usize> {
    let mut counts = BTreeMap::new();
    ways.iter().for_each(|way| *counts.entry(*way).or_default() += 1);
    counts
}

#[test]
fn flows_share_equal_routes_by_weight_and_losing_one_moves_only_its_flows() {
    let mut site = Site::new(CONFIG);
    let all = site.flows("10.8.0.1");
    let counts = count(&all);
    assert!(
        (60..140).contains(&counts[&Some(0)]) && counts[&Some(0)] + counts[&Some(1)] == 400,
        "{counts:?}"
    );
    assert_eq!(site.flows("10.8.0.1"), all, "a flow keeps its way");
    site.line("a", false);
    assert!(site.flows("10.8.0.1").iter().all(|way| *way == Some(1)));
    site.line("a", true);
    assert_eq!(site.flows("10.8.0.1"), all, "each comes back to where it was");
    site.line("b", false);
    assert!(site.flows("10.8.0.1").iter().all(|way| *way == Some(0)));
    site.line("b", true);
    assert_eq!(site.lab.dropped(), []);
    // What is no flow by ports goes by its addresses: all pieces of a packet the same way.
    let piece = |more, ports| Ip { more, ..udp("10.1.0.9", "10.8.0.1", ports, b"12345678") };
    let first = site.way(&piece(true, (1, 2)));
    for port in 0..20 {
        assert_eq!(site.way(&piece(true, (port, 2))), first);
    }
    // An echo and its repetitions are a flow.
    let echo = site.way(&ping("10.1.0.9", "10.8.0.1", 7));
    for _ in 0..5 {
        assert_eq!(site.way(&ping("10.1.0.9", "10.8.0.1", 7)), echo);
    }
}

#[test]
fn the_next_burst_after_a_verdict_goes_by_the_standby() {
    let mut site = Site::new(CONFIG);
    for _ in 0..3 {
        assert_eq!(site.way(&udp("10.1.0.9", "10.9.0.1", (1, 2), b"x")), Some(0));
        site.line("a", false);
        assert_eq!(site.way(&udp("10.1.0.9", "10.9.0.1", (1, 2), b"x")), Some(1));
        site.line("a", true);
    }
    // Three kinds of next hop: priority decides among equals only.
    let packet = udp("10.1.0.9", "10.10.0.1", (1, 2), b"x");
    assert_eq!(site.way(&packet), Some(1));
    site.line("b", false);
    assert_eq!(site.way(&packet), Some(0), "through the tunnel");
    assert_eq!(site.lab.dropped(), []);
    site.tunnel("ta", false);
    assert_eq!(site.way(&packet), None);
    assert_eq!(site.lab.dropped(), [("blackhole", 1)]);
}

#[test]
fn where_nothing_is_up_the_sender_is_told_and_no_shorter_prefix_takes_over() {
    let mut site = Site::new(CONFIG);
    let one = udp("10.1.0.9", "10.11.0.1", (1, 2), b"x");
    assert_eq!(site.way(&one), Some(0));
    site.line("a", false);
    let host = site.host.clone();
    assert_eq!(site.way(&one), None);
    let told = site.lab.packets(&host);
    let error = icmp_error(&told[0]);
    assert_eq!((error.kind, error.code), (3, 1), "host unreachable");
    assert_eq!(site.lab.dropped(), [("no-live-path", 1)]);
    site.line("b", false);
    assert_eq!(site.way(&udp("10.1.0.9", "10.8.0.1", (1, 2), b"x")), None);
    assert_eq!(site.way(&udp("10.1.0.9", "10.9.0.1", (1, 2), b"x")), None);
    assert_eq!(site.lab.packets(&host).len(), 2);
    assert_eq!(site.lab.dropped(), [("no-live-path", 2)]);
    // What the gateway itself answers goes all the same: a prober must be able to find that the way is back.
    let router = site.routers[0].clone();
    site.lab.from(&router, &ping("192.0.2.2", "192.0.2.1", 1).bytes());
    assert_eq!(site.lab.packets(&router).len(), 1);
    site.line("a", true);
    assert_eq!(site.way(&one), Some(0));
    assert_eq!(site.lab.dropped(), []);
}

#[test]
fn a_policy_switches_to_the_tunnel_that_stands_by_and_back() {
    let mut site = Site::new(CONFIG);
    let packet = udp("10.1.0.9", "10.12.0.1", (1, 2), b"x");
    assert_eq!(site.way(&packet), Some(0));
    site.tunnel("ta", false);
    assert_eq!(site.way(&packet), Some(1));
    site.tunnel("tb", false);
    assert_eq!(site.way(&packet), None);
    assert_eq!(site.lab.dropped(), [("no-live-path", 1)]);
    site.tunnel("ta", true);
    assert_eq!(site.way(&packet), Some(0));
}

/// A change of routes, as the control socket takes it.
fn change(text: &str) -> ChangeRoutes {
    serde_json::from_str(text).unwrap()
}

fn add(site: &mut Site, source: &str, routes: &str) -> Result<Changed, Vec<String>> {
    let text = format!(r#"{{"route":"add","gateway":"g","source":"{source}","routes":[{routes}]}}"#);
    site.lab.single.change_routes(&change(&text), 0)
}

fn delete(site: &mut Site, source: &str, routes: &str) -> Result<Changed, Vec<String>> {
    let text = format!(r#"{{"route":"delete","gateway":"g","source":"{source}","routes":[{routes}]}}"#);
    site.lab.single.change_routes(&change(&text), 0)
}

/// Routes to a prefix: source, whether used, and why not.
fn listed(site: &Site, to: &str) -> Vec<(String, bool, Option<String>)> {
    let request = ListRoutes { list_routes: "g".into(), within: Some(to.parse().unwrap()), after: None };
    let single = &site.lab.single;
    let page = list(&site.lab.config, &single.built, &single.kept, &request, 1000).unwrap();
    let to = page.rows.into_iter().filter(|row| format!("{}/{}", row.address, row.length) == to);
    to.map(|row| (row.source, row.used, row.why)).collect()
}

#[test]
fn learned_routes_come_and_go_in_place_and_give_way_to_configured_ones() {
    let mut site = Site::new(CONFIG);
    let new = udp("10.1.0.9", "172.16.0.1", (1, 2), b"x");
    assert_eq!(site.way(&new), None);
    assert_eq!(site.lab.dropped(), [("no-route", 1)]);
    let generation = site.lab.single.built.tables.generation;
    let one = r#"{"to":"172.16.0.0/12","via":"192.0.2.2"}"#;
    assert_eq!(add(&mut site, "ebgp", one).unwrap().routes, 1);
    assert_eq!(add(&mut site, "ebgp", one).unwrap().routes, 0, "nothing new");
    assert_eq!(site.way(&new), Some(0));
    // The same prefix from inside goes after it, and takes over when it goes.
    let other = r#"{"to":"172.16.0.0/12","via":"198.51.100.2"}"#;
    add(&mut site, "ibgp", other).unwrap();
    assert_eq!(site.way(&new), Some(0));
    assert_eq!(
        listed(&site, "172.16.0.0/12"),
        [("ebgp".into(), true, None), ("ibgp".into(), false, Some("ebgp goes before ibgp".into()))]
    );
    site.line("a", false);
    assert_eq!(site.way(&new), Some(1));
    assert_eq!(
        listed(&site, "172.16.0.0/12"),
        [("ebgp".into(), false, Some("interface a is down".into())), ("ibgp".into(), true, None)]
    );
    site.line("a", true);
    delete(&mut site, "ebgp", r#"{"to":"172.16.0.0/12"}"#).unwrap();
    assert_eq!(site.way(&new), Some(1));
    // A configured route beats a learned one of the same kind, whatever its priority.
    add(&mut site, "ebgp", r#"{"to":"10.11.0.0/16","via":"198.51.100.2","priority":1}"#).unwrap();
    assert_eq!(site.way(&udp("10.1.0.9", "10.11.0.1", (1, 2), b"x")), Some(0));
    assert_eq!(site.lab.single.built.tables.generation, generation, "no table was built again");
    // All or nothing, and everything that is wrong is said.
    let wrong = r#"{"to":"172.20.0.0/16","via":"192.0.2.2"},{"to":"172.21.0.0/16","via":"203.0.113.1"},
                   {"to":"172.22.0.0/16","tunnel":"tc"},{"to":"172.23.0.0/16"}"#;
    let said = add(&mut site, "ebgp", wrong).unwrap_err();
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!(listed(&site, "172.20.0.0/16"), []);
    assert!(delete(&mut site, "ebgp", r#"{"to":"172.16.0.0/12"}"#).unwrap_err()[0].contains("no such route"));
    assert_eq!(site.lab.dropped(), []);
}

#[test]
fn learned_routes_stay_over_a_reload_while_their_next_hop_does() {
    let mut site = Site::new(CONFIG);
    let whole = [
        &system(1024),
        "[port.lan]\ndriver = \"memory\"\nring = 64\n[port.wan]\ndriver = \"memory\"\nring = 64\n",
        CONFIG,
    ]
    .concat();
    add(
        &mut site,
        "ebgp",
        r#"{"to":"172.16.0.0/16","via":"198.51.100.2"},{"to":"172.17.0.0/16","tunnel":"tb"}"#,
    )
    .unwrap();
    add(&mut site, "static", r#"{"to":"172.18.0.0/16","via":"192.0.2.2"}"#).unwrap();
    let all = |site: &mut Site| {
        ["172.16.0.1", "172.17.0.1", "172.18.0.1"].map(|to| site.way(&udp("10.1.0.9", to, (1, 2), b"x")))
    };
    assert_eq!(all(&mut site), [Some(1), Some(1), Some(0)]);
    let number = site.lab.single.built.tunnels[1];
    assert!(site.lab.single.built.tables.tunnel(number).unwrap().routed, "a learned route leads into it");
    site.lab.reload(&whole);
    assert_eq!(all(&mut site), [Some(1), Some(1), Some(0)]);
    // One tunnel goes and another takes its number: what led into the first leads nowhere now.
    let other =
        whole.replace("[tunnel.tb]", "[tunnel.tc]").replace("standby = [\"tb\"]", "standby = [\"tc\"]");
    site.lab.reload(&other);
    assert_eq!(site.lab.single.built.tunnels[1], number);
    assert_eq!(all(&mut site), [Some(1), None, Some(0)]);
    assert_eq!(site.lab.dropped(), [("no-route", 1)]);
    assert!(!site.lab.single.built.tables.tunnel(number).unwrap().routed);
    site.lab.raw(0);
    // A configured route that changes its next hop: the table follows in place.
    let moved = other.replace(
        "to = \"10.11.0.0/16\"\nvia = \"192.0.2.2\"",
        "to = \"10.11.0.0/16\"\nvia = \"198.51.100.2\"",
    );
    let packet = udp("10.1.0.9", "10.11.0.1", (1, 2), b"x");
    assert_eq!(site.way(&packet), Some(0));
    site.lab.reload(&moved);
    assert_eq!(site.way(&packet), Some(1));
}

/// Sequence numbers that are not to be had.
struct Lost;

impl Sequences for Lost {
    fn sequence(
        &mut self,
        _: Fingerprint,
        _: bool,
    ) -> Result<Arc<Sequence>, Box<dyn std::error::Error + Send + Sync>> {
        Err("lost".into())
    }
}

#[test]
fn what_is_not_taken_up_changes_no_route() {
    let mut site = Site::new(CONFIG);
    let before = listed(&site, "10.8.0.0/16");
    let flows = site.flows("10.8.0.1");
    let mut config = site.lab.config.clone();
    config.gateways[0].routes.retain(|route| route.to.value.to_string() != "10.8.0.0/16");
    config.tunnels[0].name.value = config::Name::from_any("other");
    let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
    for _ in 0..3 {
        assert!(site.lab.single.reload(&config, &macs, &mut Lost, 0).is_err());
        assert_eq!(listed(&site, "10.8.0.0/16"), before);
        assert_eq!(site.flows("10.8.0.1"), flows);
    }
    // A good one goes on from there.
    let good = site.lab.config.clone();
    site.lab.single.reload(&good, &macs, &mut Ephemeral::default(), 0).unwrap();
    assert_eq!(site.flows("10.8.0.1"), flows);
}

#[test]
fn a_tunnel_follows_the_way_to_its_peer() {
    let mut site = Site::new(CONFIG);
    let packet = udp("10.1.0.9", "10.12.0.1", (1, 2), b"x");
    assert_eq!(site.way(&packet), Some(0));
    add(&mut site, "ebgp", r#"{"to":"192.0.2.2/32","via":"198.51.100.2"}"#).unwrap();
    assert_eq!(site.way(&packet), Some(1), "its outer packets take the longer prefix");
    delete(&mut site, "ebgp", r#"{"to":"192.0.2.2/32","via":"198.51.100.2"}"#).unwrap();
    assert_eq!(site.way(&packet), Some(0));
    // Two ways to the peer: while one is down the other is taken.
    add(
        &mut site,
        "ebgp",
        r#"{"to":"192.0.2.2/32","interface":"a"},{"to":"192.0.2.2/32","via":"198.51.100.2","priority":200}"#,
    )
    .unwrap();
    assert_eq!(site.way(&packet), Some(0));
    site.line("a", false);
    assert_eq!(site.way(&packet), Some(1));
    site.line("a", true);
    assert_eq!(site.way(&packet), Some(0));
}
