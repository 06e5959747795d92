//! The pipelines of the VPN product's scenarios and of a line divided by VLANs, between Linux hosts in namespaces that
//! ping, and are refused, as each pipeline says. Every data centre has a gateway of its own. Needs root.

mod netns_common;

use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

use af_xdp::Device;
use causeway::cli::demo::{
    gateways::cores,
    network::{HostEnd, ip},
};
use netns_common::{Site, is_root, until};

/// A pipeline's gateways, hosts, and the net between them.
struct Scenario {
    site: Site,
    keys: tempfile::TempDir,
    pipeline: &'static str,
    started: usize,
}

impl Scenario {
    fn new(pipeline: &'static str) -> Self {
        let mut site = Site::empty();
        site.network.add("gateway").unwrap();
        let scenario = Self { site, keys: tempfile::tempdir().unwrap(), pipeline, started: 0 };
        for name in ["TO_A", "FROM_A", "TO_A2", "FROM_A2", "TO_B", "FROM_B", "TO_C", "FROM_C"] {
            let random: [u8; 20] = rand::random();
            let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            let path = scenario.keys.path().join(format!("CAUSEWAY_KEY_{name}"));
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .unwrap();
            std::io::Write::write_all(&mut file, hex.as_bytes()).unwrap();
        }
        scenario
    }

    /// A switch in a namespace of this name, with a cable to a device of the gateway.
    fn switch(&mut self, name: &str, device: &str) {
        self.site.network.add(name).unwrap();
        let full = self.site.network.full(name);
        ip(&format!("-n {full} link add switch type bridge")).unwrap();
        ip(&format!("-n {full} link set switch up")).unwrap();
        self.plug(name, "gateway", device);
    }

    /// A cable from a switch to a device.
    fn plug(&self, switch: &str, namespace: &str, device: &str) {
        self.site.network.link((switch, namespace), (namespace, device)).unwrap();
        let full = self.site.network.full(switch);
        ip(&format!("-n {full} link set {namespace} master switch")).unwrap();
        // A switch of cables sends tags in the frames, not beside them.
        let tags = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];
        let plain = || Device::by_name(namespace).unwrap().turn_off(&tags).map(drop);
        self.site.network.inside(switch, plain).unwrap().unwrap();
    }

    /// A host on a device of the gateway or of a data centre's.
    fn host(&mut self, name: &str, at: (&str, &str), vlan: u16, addresses: &[&str], router: &str) {
        self.site.network.add(name).unwrap();
        self.site.network.link((name, "eth0"), at).unwrap();
        self.site.host(name, vlan, addresses, &[router]);
    }

    /// A data centre of this letter and number: its box on the switch, and its host.
    fn idc(&mut self, letter: &str, number: u8) {
        let (idc, host) = (format!("idc-{letter}"), format!("host-{letter}"));
        self.site.network.add(&idc).unwrap();
        self.plug("net", &idc, "wan0");
        let (address, router) = (format!("10.{number}.0.10/24"), format!("10.{number}.0.1"));
        self.host(&host, (&idc, "lan0"), 10, &[&address], &router);
        self.start(&idc, &idc);
    }

    /// Starts a gateway in its namespace from a file of the pipeline.
    fn start(&mut self, namespace: &str, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(self.pipeline);
        let text = fs::read_to_string(path.join(format!("{file}.toml"))).unwrap();
        let text = text.replace("{ env = \"", &format!("{{ file = \"{}/", self.keys.path().display()));
        let usable = cores();
        self.site.start(namespace, &text, usable[self.started % usable.len()]);
        self.started += 1;
    }

    #[track_caller]
    fn pings(&self, from: &str, to: &[&str]) {
        for to in to {
            self.site.pings(from, 5, to);
        }
    }

    /// Cuts a cable in the middle, or mends it: the gateway's own device stays as it is.
    fn cable(&self, switch: &str, end: &str, state: &str) {
        ip(&format!("-n {} link set {end} {state}", self.site.network.full(switch))).unwrap();
    }

    /// After a while pings are answered again, and then all of them.
    #[track_caller]
    fn pings_again(&self, from: &str, to: &[&str]) {
        for to in to {
            until(&format!("{from} reaches {to} again"), || {
                self.site.run(from, &format!("ping -n -c 1 -W 1 {to}")).0
            });
        }
        self.pings(from, to);
    }

    /// Nobody answers, and a gateway counts why.
    #[track_caller]
    fn refused(&self, from: &str, to: &str, by: &str, reason: &str) {
        let before = self.site.drops(by).get(reason).copied().unwrap_or(0);
        let (good, text) = self.site.run(from, &format!("ping -n -c 3 -i 0.02 -W 1 {to}"));
        assert!(!good && text.contains("3 packets transmitted, 0 received"), "{from} {to}: {text}");
        let after = self.site.drops(by);
        assert!(after.get(reason).copied().unwrap_or(0) >= before + 3, "{from} {to}: {reason} of {after:?}");
    }
}

/// A VPC with data centres of these letters.
fn vpn(pipeline: &'static str, idcs: &[(&str, u8)]) -> Scenario {
    let mut scenario = Scenario::new(pipeline);
    scenario.switch("net", "wan0");
    scenario.host("vpc", ("gateway", "vpc0"), 20, &["10.200.0.10/24"], "10.200.0.1");
    scenario.start("gateway", "gateway");
    idcs.iter().for_each(|(letter, number)| scenario.idc(letter, *number));
    scenario
}

#[test]
fn one_vpc_and_one_data_centre() {
    if !is_root() {
        return;
    }
    let s = vpn("vpn-one-idc", &[("a", 1)]);
    s.pings("vpc", &["10.1.0.10"]);
    s.pings("host-a", &["10.200.0.10", "10.200.0.1"]);
    s.refused("vpc", "10.2.0.10", "gateway", "no-route");
    s.refused("host-a", "10.2.0.10", "idc-a", "no-route");
    s.site.end();
}

#[test]
fn several_data_centres_reach_the_vpc_and_each_other() {
    if !is_root() {
        return;
    }
    let s = vpn("vpn-many-idcs", &[("a", 1), ("b", 2)]);
    s.pings("vpc", &["10.1.0.10", "10.2.0.10"]);
    s.pings("host-a", &["10.200.0.10", "10.2.0.10"]);
    s.pings("host-b", &["10.200.0.10", "10.1.0.10"]);
    s.refused("host-a", "10.3.0.10", "idc-a", "no-route");
    s.refused("vpc", "10.3.0.10", "gateway", "no-route");
    s.site.end();
}

#[test]
fn several_data_centres_meet_without_a_vpc() {
    if !is_root() {
        return;
    }
    let mut s = Scenario::new("vpn-idc-hub");
    s.switch("net", "wan0");
    s.start("gateway", "gateway");
    s.idc("a", 1);
    s.idc("b", 2);
    s.pings("host-a", &["10.2.0.10"]);
    s.pings("host-b", &["10.1.0.10"]);
    s.refused("host-a", "10.200.0.10", "idc-a", "no-route");
    s.site.end();
}

#[test]
fn data_centres_are_isolated_by_policies() {
    if !is_root() {
        return;
    }
    let s = vpn("vpn-isolated", &[("a", 1), ("b", 2)]);
    s.pings("vpc", &["10.1.0.10", "10.2.0.10"]);
    s.pings("host-a", &["10.200.0.10"]);
    s.pings("host-b", &["10.200.0.10"]);
    s.refused("host-a", "10.2.0.10", "gateway", "policy-mismatch");
    s.refused("host-b", "10.1.0.10", "gateway", "policy-mismatch");
    s.site.end();
}

#[test]
fn policies_for_two_and_a_route_for_the_third_keep_all_apart() {
    if !is_root() {
        return;
    }
    let s = vpn("vpn-isolated-by-route", &[("a", 1), ("b", 2), ("c", 3)]);
    s.pings("vpc", &["10.1.0.10", "10.2.0.10", "10.3.0.10"]);
    for host in ["host-a", "host-b", "host-c"] {
        s.pings(host, &["10.200.0.10"]);
    }
    s.refused("host-a", "10.2.0.10", "gateway", "policy-mismatch");
    s.refused("host-a", "10.3.0.10", "gateway", "policy-mismatch");
    s.refused("host-b", "10.3.0.10", "gateway", "policy-mismatch");
    s.refused("host-c", "10.1.0.10", "gateway", "no-route");
    s.refused("host-c", "10.2.0.10", "gateway", "no-route");
    s.site.end();
}

#[test]
fn data_centres_vpcs_and_a_line_meet_in_a_cloud_connect_network() {
    if !is_root() {
        return;
    }
    let mut s = Scenario::new("vpn-cloud-connect");
    s.switch("net", "wan0");
    s.host("vpc-1", ("gateway", "vpc0"), 20, &["10.200.0.10/24"], "10.200.0.1");
    s.host("vpc-2", ("gateway", "vpc1"), 21, &["10.201.0.10/24"], "10.201.0.1");
    s.host("line", ("gateway", "line0"), 301, &["10.3.0.10/24"], "10.3.0.1");
    s.start("gateway", "gateway");
    s.idc("a", 1);
    s.idc("b", 2);
    s.pings("vpc-1", &["10.201.0.10", "10.1.0.10", "10.2.0.10", "10.3.0.10"]);
    s.pings("vpc-2", &["10.200.0.10", "10.1.0.10", "10.3.0.10"]);
    s.pings("line", &["10.200.0.10", "10.201.0.10", "10.1.0.10", "10.2.0.10"]);
    s.pings("host-a", &["10.200.0.10", "10.201.0.10", "10.2.0.10", "10.3.0.10"]);
    s.pings("host-b", &["10.200.0.10", "10.1.0.10", "10.3.0.10"]);
    // VPC 2 has no way to data centre B, and so no answer for it either.
    s.refused("vpc-2", "10.2.0.10", "gateway", "no-route");
    s.refused("host-b", "10.201.0.10", "gateway", "no-route");
    s.site.end();
}

#[test]
fn one_line_carries_three_data_centres_by_vlans_with_address_translation() {
    if !is_root() {
        return;
    }
    let mut s = Scenario::new("direct-connect-vlans");
    s.switch("net", "line0");
    s.host(
        "vpc",
        ("gateway", "vpc0"),
        20,
        &["10.200.0.10/24", "10.200.0.20/24", "10.200.0.80/24"],
        "10.200.0.1",
    );
    let lines = [
        ("a", 1, "192.0.2.1/30", "192.0.2.2"),
        ("b", 2, "192.0.2.5/30", "192.0.2.6"),
        ("c", 3, "192.0.2.9/30", "192.0.2.10"),
    ];
    for (letter, number, own, gateway) in lines {
        let host = format!("host-{letter}");
        s.site.network.add(&host).unwrap();
        s.plug("net", &host, "eth0");
        s.site.host(&host, 300 + number, &[own], &[gateway]);
        ip(&format!("-n {} addr add 10.{number}.0.10/32 dev lo", s.site.network.full(&host))).unwrap();
    }
    s.start("gateway", "gateway");
    // The server, under its own address and from the pool; data centre C under the address that the VPC knows.
    s.pings(
        "vpc",
        &["10.1.0.10", "10.2.0.10", "198.18.0.10", "-I 10.200.0.20 10.1.0.10", "-I 10.200.0.20 198.18.0.10"],
    );
    for (letter, number, ..) in lines {
        let host = format!("host-{letter}");
        s.pings(&host, &[&format!("-I 10.{number}.0.10 203.0.113.10")]);
        // Only the server is known here, and no other data centre.
        s.refused(&host, &format!("-I 10.{number}.0.10 203.0.113.17"), "gateway", "nat-no-session");
        let other = 1 + number % 3;
        s.refused(&host, &format!("-I 10.{number}.0.10 10.{other}.0.10"), "gateway", "transit-forbidden");
    }
    s.site.end();
}

/// A data centre with two tunnels over two lines.
fn standby(pipeline: &'static str, vpcs: &[(&str, &str, u16)]) -> Scenario {
    let mut s = Scenario::new(pipeline);
    s.switch("net", "wan0");
    s.switch("net-2", "wan1");
    for (number, (name, device, vlan)) in vpcs.iter().enumerate() {
        let (address, router) = (format!("10.20{number}.0.10/24"), format!("10.20{number}.0.1"));
        s.host(name, ("gateway", device), *vlan, &[&address], &router);
    }
    s.start("gateway", "gateway");
    s.site.network.add("idc-a").unwrap();
    s.plug("net", "idc-a", "wan0");
    s.plug("net-2", "idc-a", "wan1");
    s.host("host-a", ("idc-a", "lan0"), 10, &["10.1.0.10/24"], "10.1.0.1");
    s.start("idc-a", "idc-a");
    s
}

#[test]
fn a_tunnel_stands_by_for_another_into_one_vpc() {
    if !is_root() {
        return;
    }
    let s = standby("vpn-standby", &[("vpc", "vpc0", 20)]);
    s.pings("vpc", &["10.1.0.10"]);
    s.pings("host-a", &["10.200.0.10"]);
    s.cable("net", "idc-a", "down");
    s.pings_again("vpc", &["10.1.0.10"]);
    s.pings_again("host-a", &["10.200.0.10"]);
    // And the other way round.
    s.cable("net", "idc-a", "up");
    s.cable("net-2", "idc-a", "down");
    s.pings_again("vpc", &["10.1.0.10"]);
    s.pings_again("host-a", &["10.200.0.10"]);
    s.refused("vpc", "10.2.0.10", "gateway", "no-route");
    s.site.end();
}

#[test]
fn a_tunnel_stands_by_for_another_into_several_vpcs() {
    if !is_root() {
        return;
    }
    let s = standby("vpn-standby-many-vpcs", &[("vpc-1", "vpc0", 20), ("vpc-2", "vpc1", 21)]);
    for down in [false, true] {
        if down {
            s.cable("net", "idc-a", "down");
        }
        s.pings_again("vpc-1", &["10.1.0.10"]);
        s.pings_again("vpc-2", &["10.1.0.10"]);
        s.pings_again("host-a", &["10.200.0.10", "10.201.0.10"]);
        s.refused("vpc-1", "10.201.0.10", "gateway", "no-route");
    }
    s.site.end();
}

#[test]
fn a_line_stands_by_for_another() {
    if !is_root() {
        return;
    }
    let mut s = Scenario::new("direct-connect-standby");
    s.switch("net", "line0");
    s.switch("net-2", "line1");
    s.host("vpc", ("gateway", "vpc0"), 20, &["10.200.0.10/24"], "10.200.0.1");
    s.site.network.add("host-a").unwrap();
    s.plug("net", "host-a", "eth0");
    s.plug("net-2", "host-a", "eth1");
    s.site.host("host-a", 301, &["192.0.2.1/30"], &["192.0.2.2"]);
    let second = HostEnd {
        namespace: "host-a",
        device: "eth1",
        vlan: 302,
        addresses: &["192.0.2.5/30"],
        routers: &[],
    };
    s.site.network.host(&second).unwrap();
    let full = s.site.network.full("host-a");
    // The second way back is for when the first line has no carrier, which Linux overlooks unless it is told not to.
    let minds = |device: &str| {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/ignore_routes_with_linkdown"), "1").unwrap();
    };
    s.site.network.inside("host-a", || ["all", "eth0"].into_iter().for_each(minds)).unwrap();
    ip(&format!("-n {full} route add default via 192.0.2.6 metric 200")).unwrap();
    ip(&format!("-n {full} addr add 10.1.0.10/32 dev lo")).unwrap();
    s.start("gateway", "gateway");
    s.pings("vpc", &["10.1.0.10"]);
    s.pings("host-a", &["-I 10.1.0.10 10.200.0.10"]);
    s.cable("net", "host-a", "down");
    s.pings_again("vpc", &["10.1.0.10"]);
    s.pings_again("host-a", &["-I 10.1.0.10 10.200.0.10"]);
    s.refused("vpc", "10.2.0.10", "gateway", "no-route");
    s.site.end();
}
