//! A file that uses every section is read into the model.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use causeway::config::*;

const FILE: &str = r#"
[system]
cores = [1]
idle = "spin"
state = "state/idc.state"

[port.line]
driver = "xdp"
device = "eth1"
busy_poll = "20us"

[port.mem]
driver = "memory"

[gateway.vpc]
prefixes = ["10.2.0.0/16"]

[[gateway.vpc.policy]]
action = "bypass"
protocol = "icmp"
icmp = "8/0"

[[gateway.vpc.policy]]
name = "to-dc"
priority = 10
action = "protect"
tunnel = "dc"
source = ["10.2.0.0/16"]
destination = ["10.1.0.0/16"]
protocol = "tcp"
source_port = "1024-65535"
destination_port = [80, 443]

[[gateway.vpc.route]]
to = "0.0.0.0/0"
via = "192.0.2.1"

[[gateway.vpc.route]]
to = "198.51.100.0/24"
blackhole = true

[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.5"
translated = "203.0.113.5"

[interface.wan]
port = "line"
vlan = 100
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.2/30", "2001:db8::1/64"]

[interface.vpc]
port = "mem"
vlan = { outer = 200, inner = 100 }
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24"]

[tunnel.dc]
gateway = "vpc"
local = "192.0.2.2"
remote = "192.0.2.1"
out = { spi = 0x1001, key = { env = "OUT" } }
in = [{ spi = 0x2001, key = { env = "IN" } }]
"#;

fn environment(name: &str) -> Option<String> {
    match name {
        "OUT" => Some("00112233445566778899aabbccddeeff01020304\n".into()),
        "IN" => Some("10112233445566778899aabbccddeeff01020304".into()),
        _ => None,
    }
}

#[test]
fn every_section_is_read() {
    let (config, warnings) = parse(Path::new("/etc/causeway/IDC 1.toml"), FILE, &environment).unwrap();
    assert!(warnings.problems.is_empty(), "{:?}", warnings.problems);

    let system = &config.system;
    assert_eq!(system.name.as_str(), "idc-1");
    assert_eq!(system.cores.as_ref().unwrap()[0].get(), 1);
    assert_eq!(system.burst.get(), 64);
    assert_eq!(system.idle.value, Idle::Spin);
    assert_eq!(system.buffer_size.get(), 2048);
    assert_eq!(system.state.0, Path::new("/etc/causeway/state/idc.state"));
    assert_eq!(system.run_dir.0, Path::new("/run/causeway/idc-1"));

    let [line, mem] = &config.ports[..] else { panic!("two ports") };
    assert_eq!((line.name.as_str(), line.driver.value), ("line", Driver::Xdp));
    assert_eq!(line.busy_poll.as_ref().unwrap().0, Duration::from_micros(20));
    assert!(line.mac.is_none());
    assert_eq!(mem.mac.as_ref().unwrap().0[0], 2);

    let [wan, inside] = &config.interfaces[..] else { panic!("two interfaces") };
    assert_eq!((wan.port.value, wan.vlan.value, wan.mtu.get()), (PortId(0), Vlan::Tagged(100), 1500));
    assert_eq!(inside.vlan.value, Vlan::Stacked { outer: 200, inner: 100 });

    let gateway = &config.gateways[0];
    assert_eq!(gateway.policies[0].name.as_str(), "to-dc");
    assert_eq!(gateway.policies[1].name.as_str(), "policy-1");
    assert_eq!(gateway.policies[0].tunnel.as_ref().unwrap().value, TunnelId(0));
    let router: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(gateway.routes[0].next_hop, NextHop::Via { address: router, interface: InterfaceId(0) });
    assert_eq!(gateway.routes[1].next_hop, NextHop::Blackhole);

    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.underlay.value, tunnel.mtu.get()), (GatewayId(0), 1446));
    assert_eq!(tunnel.outbound.key.bits(), 128);
    assert_eq!(tunnel.inbound[0].key.salt(), [1, 2, 3, 4]);
    assert!(tunnel.esn.value);
}

#[test]
fn keys_are_not_shown() {
    let (config, _) = parse(Path::new("x.toml"), FILE, &environment).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("hidden"));
    assert!(!shown.contains("aabb") && !shown.contains("170, 187"), "{shown}");
}
