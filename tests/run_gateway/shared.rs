//! A device that the gateway shares with the host's own stack.

use std::fs;

use crate::lab::{Lab, Running, is_root};

fn echos(host: &crate::lab::Host) -> u64 {
    let text = host.run("cat /proc/net/snmp");
    let mut lines = text.lines().filter(|line| line.starts_with("Icmp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|name| name == "InEchos").unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
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
