//! A device that the gateway shares with the host's own stack.

use std::fs;

use crate::lab::{Host, Lab, Running, is_root};

/// What the kernel of a host has counted.
pub fn count(host: &Host, protocol: &str, name: &str) -> u64 {
    let text = host.run("cat /proc/net/snmp");
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|known| known == name).unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}

fn echos(host: &Host) -> u64 {
    count(host, "Icmp: ", "InEchos")
}

#[test]
fn the_host_keeps_its_address_while_the_gateway_forwards() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    // The kernel has the address too, and answers for it.
    lab.gateway.run("ip address add 10.1.0.1/24 dev gd");
    let text = lab
        .config("dc", "")
        .replace("[port.d]\ndriver = \"af_packet\"", "[port.d]\ndriver = \"xdp\"\nshare_with_host = true");
    fs::write(lab.file(), text).unwrap();
    let mut gateway = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());

    // From the VPC first: the gateway has heard of nobody on the shared link, and must ask.
    assert!(lab.vpc.pings("10.1.0.2", 5), "{}\n{}", gateway.log(), gateway.text("neighbours"));
    let neighbours = gateway.json("neighbours");
    let known = neighbours.as_array().unwrap().iter().find(|n| n["address"] == "10.1.0.2").unwrap();
    assert_eq!(known["interface"], "dc");
    assert_eq!(known["state"], "reachable");

    let before = echos(&lab.gateway);
    assert!(lab.dc.pings("10.1.0.1", 5));
    assert_eq!(echos(&lab.gateway), before + 5, "the kernel answers for its address");
    assert!(lab.dc.pings("10.2.0.2", 5));
    assert_eq!(echos(&lab.gateway), before + 5, "what is forwarded does not come to the kernel");

    // The station gets another link address and says so: the gateway follows.
    lab.dc.run("ip link set eth0 down");
    lab.dc.run("ip link set eth0 address 02:00:00:00:00:77");
    lab.dc.run("ip link set eth0 up");
    lab.dc.run("ip route replace default via 10.1.0.1");
    assert!(lab.dc.pings("10.1.0.1", 1));
    gateway.until(|g| g.text("neighbours").contains("02:00:00:00:00:77"));
    assert!(lab.vpc.pings("10.1.0.2", 3));

    let ports = gateway.row("ports", "d");
    assert!(ports["xdp"]["link-control"].as_u64().unwrap() >= 1, "{ports:#}");
    assert!(ports["xdp"]["host"].as_u64().unwrap() >= 5, "{ports:#}");
    assert!(ports["xdp"]["transit"].as_u64().unwrap() >= 5, "{ports:#}");
    gateway.stop();
}

/// A gateway with a tunnel, on a device that the host's own stack keeps using.
fn shared_tunnel(lab: &Lab, number: u8, [inside, outside]: [&str; 2]) -> String {
    let dir = lab.dir.path().join(format!("of-{number}"));
    let (dir, other) = (dir.display(), 3 - number);
    let (out, into) = if number == 1 { ("11", "22") } else { ("22", "11") };
    let (out, into, spi) = (out.repeat(20), into.repeat(20), |way: &str| 0x1000 + way.len());
    let spis = if number == 1 { [spi("a"), spi("ab")] } else { [spi("ab"), spi("a")] };
    format!(
        r#"
[system]
name = "end-{number}"
run_dir = "{dir}/run"
state = "{dir}/state"
buffers = 16384
huge_pages = "never"
[port.inside]
driver = "af_packet"
device = "{inside}"
[port.outside]
driver = "xdp"
device = "{outside}"
share_with_host = true
[gateway.g]
prefixes = ["10.2{number}.0.0/24"]
[interface.inside]
port = "inside"
gateway = "g"
side = "local"
addresses = ["10.2{number}.0.1/24"]
[interface.outside]
port = "outside"
gateway = "g"
side = "peer"
addresses = ["10.1.0.{number}/24"]
[tunnel.t]
gateway = "g"
local = "10.1.0.{number}"
remote = "10.1.0.{other}"
out = {{ spi = {}, key = {{ hex = "{out}" }} }}
in = [{{ spi = {}, key = {{ hex = "{into}" }} }}]
[[gateway.g.route]]
to = "10.2{other}.0.0/24"
tunnel = "t"
"#,
        spis[0], spis[1]
    )
}

#[test]
fn a_tunnel_ends_at_the_address_of_a_device_that_the_host_keeps() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let far = Host::new();
    lab.dc.connect("inside", &far, "eth0");
    lab.gateway.run("ip address add 10.1.0.1/24 dev gd");
    lab.vpc.run("ip address add 10.21.0.2/24 dev eth0");
    lab.vpc.run("ip route add 10.22.0.0/24 via 10.21.0.1");
    far.run("ip address add 10.22.0.2/24 dev eth0");
    far.run("ip route add default via 10.22.0.1");
    let mut gateways = Vec::new();
    for (number, host, devices) in [(1, &lab.gateway, ["gv", "gd"]), (2, &lab.dc, ["inside", "eth0"])] {
        let dir = lab.dir.path().join(format!("of-{number}"));
        fs::create_dir(&dir).unwrap();
        let file = dir.join("gateway.toml");
        fs::write(&file, shared_tunnel(&lab, number, devices)).unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        gateways.push(Running::start(host, &file, &dir.join("run")));
    }
    let logs = |all: &[Running]| all.iter().map(Running::log).collect::<String>();
    assert!(lab.vpc.pings("10.22.0.2", 20), "{}", logs(&gateways));
    assert!(far.pings("10.21.0.2", 20), "{}", logs(&gateways));

    // The kernels at both ends speak with each other over the same devices and addresses.
    let before = echos(&lab.gateway);
    assert!(lab.dc.pings("10.1.0.1", 5) && lab.gateway.pings("10.1.0.2", 5));
    assert_eq!(echos(&lab.gateway), before + 5);
    // IKE is the kernel's, or of whoever listens there; ESP is ours, and the kernel sees none of it.
    let before = (count(&lab.gateway, "Udp: ", "NoPorts"), count(&lab.gateway, "Ip: ", "InUnknownProtos"));
    for port in [500, 4500, 53] {
        // In front of IKE on port 4500 are four bytes of zero (RFC 3948 2.2).
        let sends = format!("printf '\\0\\0\\0\\0ike' > /dev/udp/10.1.0.1/{port}");
        assert!(lab.dc.command("bash").args(["-c", &sends]).status().unwrap().success());
    }
    assert!(lab.vpc.pings("10.22.0.2", 20));
    let after = (count(&lab.gateway, "Udp: ", "NoPorts"), count(&lab.gateway, "Ip: ", "InUnknownProtos"));
    assert_eq!(after, (before.0 + 3, before.1));
    let opened = gateways[0].row("tunnels", "t");
    assert!(opened["counters"]["in_packets"].as_u64().unwrap() >= 60, "{opened:#}");
    let ports = gateways[0].row("ports", "outside");
    assert!(ports["xdp"]["host"].as_u64().unwrap() >= 5, "{ports:#}");
    gateways.into_iter().for_each(Running::stop);
}
