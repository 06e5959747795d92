//! The VPN product's scenarios and a line divided by VLANs: what data centres' boxes seal, and what the gateway makes of
//! it.

use super::{Case, MS, Scene, Station, conversation, read};
use crate::common::frame::*;

/// A data centre: its letter in names, and its number in addresses.
struct Site {
    file: &'static str,
    number: u8,
    /// Whom its host talks to.
    to: &'static [&'static str],
}

/// A VPC's host: its port, its VLAN, and whom it talks to.
struct Host {
    port: &'static str,
    vlan: u16,
    network: &'static str,
    to: &'static [&'static str],
}

const A: &str = "idc-a.toml";
const B: &str = "idc-b.toml";
const C: &str = "idc-c.toml";
const VPC: &str = "10.200.0.10";

fn idc(pipeline: &'static str, site: &Site) -> Case {
    let (n, name) = (site.number, site.file.trim_end_matches(".toml"));
    let mut scene = Scene::new(pipeline, site.file, name);
    scene.at("wan", 100, 1).arp("192.0.2.1", &format!("192.0.2.1{n}"));
    let own = format!("10.{n}.0.10");
    let mut host = scene.at("lan", 10, 9);
    host.arp(&own, &format!("10.{n}.0.1"));
    for to in site.to {
        host.send_all(&conversation(&own, to));
    }
    // Nothing that a policy names.
    host.send(&udp(&own, "9.9.9.9", (1, 2), b"not for the tunnel"));
    scene.case
}

/// What a site sealed, as the gateway's line brings it.
fn bring(scene: &mut Scene, case: &Case, number: u8) {
    let own = scene.mac("wan");
    let sealed = read(&case.directory().join("wan.expect.pcap")).into_iter().map(|(_, bytes)| bytes);
    for mut bytes in sealed.filter(|bytes| bytes[27] == ESP) {
        bytes[..6].copy_from_slice(&own);
        bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0xee, 10 + number]);
        scene.put("wan", bytes);
    }
}

fn scenario(
    update: bool,
    pipeline: &'static str,
    sites: &[Site],
    hosts: &[Host],
    more: impl Fn(&mut Scene),
) -> Vec<Case> {
    let mut cases = Vec::new();
    for site in sites {
        let case = idc(pipeline, site);
        if update {
            crate::check(&case, true);
        }
        cases.push(case);
    }
    let mut scene = Scene::new(pipeline, "gateway.toml", "gateway");
    for site in sites {
        let mut line = scene.at("wan", 100, 10 + site.number);
        line.arp(&format!("192.0.2.1{}", site.number), "192.0.2.1");
    }
    for host in hosts {
        let own = format!("{}.10", host.network);
        let mut station = scene.at(host.port, host.vlan, 10);
        station.arp(&own, &format!("{}.1", host.network));
        for to in host.to {
            station.send_all(&conversation(&own, to));
        }
        station.send(&udp(&own, "10.99.0.1", (1, 2), b"nobody has this"));
    }
    more(&mut scene);
    for (site, case) in sites.iter().zip(&cases) {
        bring(&mut scene, case, site.number);
    }
    // A data centre's packet in the clear.
    let cloud_side = hosts.first().map_or("10.2.0.10".into(), |host| format!("{}.10", host.network));
    scene.at("wan", 100, 11).send(&udp("10.1.0.10", &cloud_side, (1, 2), b"not sealed"));
    cases.push(scene.case);
    cases
}

fn vpc(to: &'static [&'static str]) -> Host {
    Host { port: "vpc", vlan: 20, network: "10.200.0", to }
}

/// One line with three data centres, and every kind of mapping.
fn vlans() -> Case {
    let mut scene = Scene::new("direct-connect-vlans", "gateway.toml", "three-vlans");
    let lines = [
        (301, 1u8, "192.0.2.1", "192.0.2.2"),
        (302, 2, "192.0.2.5", "192.0.2.6"),
        (303, 3, "192.0.2.9", "192.0.2.10"),
    ];
    for (vlan, last, own, gateway) in lines {
        scene.at("line", vlan, last).arp(own, gateway);
    }
    let mut host: Station<'_> = scene.at("vpc", 20, 10);
    for address in [VPC, "10.200.0.20", "10.200.0.80"] {
        host.arp(address, "10.200.0.1");
    }
    host.send_all(&conversation(VPC, "10.1.0.10"));
    host.send_all(&conversation("10.200.0.20", "10.2.0.10"));
    host.send_all(&conversation("10.200.0.20", "198.18.0.10"));
    for (vlan, last, ..) in lines {
        let own = format!("10.{last}.0.10");
        let mut line = scene.at("line", vlan, last);
        line.send_all(&conversation(&own, "203.0.113.10"));
        line.send(&tcp(&own, "203.0.113.80", (40_000, 443), b"GET / HTTP/1.1\r\n\r\n"));
        line.send(&tcp(&own, "203.0.113.80", (40_000, 80), b"no service"));
        // Another data centre.
        line.send(&udp(&own, &format!("10.{}.0.10", 3 - last % 3), (1, 2), b"transit"));
    }
    scene.case
}

/// The other end of the tunnel that stands by.
fn second_line(scene: &mut Scene) {
    scene.at("wan-2", 100, 21).arp("198.51.100.11", "198.51.100.1");
}

/// One line in use and one standing by: what comes by either is taken.
fn two_lines() -> Case {
    let mut scene = Scene::new("direct-connect-standby", "gateway.toml", "two-lines");
    scene.at("line-1", 301, 1).arp("192.0.2.1", "192.0.2.2");
    scene.at("line-2", 302, 5).arp("192.0.2.5", "192.0.2.6");
    let mut host = scene.at("vpc", 20, 10);
    host.arp(VPC, "10.200.0.1").send_all(&conversation(VPC, "10.1.0.10"));
    scene.at("line-1", 301, 1).send_all(&conversation("10.1.0.10", VPC));
    scene.at("line-2", 302, 5).send_all(&conversation("10.1.0.11", VPC));
    scene.case
}

/// When the router of the line that is in use falls silent, and when it is there again, after the first packet.
pub const SILENT: std::ops::Range<u64> = 5_000 * MS..9_000 * MS;
/// A datagram every so often, with its number as the destination port.
pub const EVERY: u64 = 100 * MS;
pub const DATAGRAMS: u16 = 235;
pub const FIRST_PORT: u16 = 20_000;

/// Two lines of which one stands by; the router of the other answers no probe for a while.
///
/// What routers answer quotes the gateway's own probes, so it is made from what a run without answers sends. Whether
/// they are answered changes nothing about when probes go, as long as the clock stops at the same times: here every
/// tenth of a second, and at the answers, which is never when a probe is due.
fn lost_line() -> Case {
    let mut scene = Scene::new("direct-connect-standby", "gateway.toml", "lost-line");
    let routers =
        [("line-1", 301, 1, "192.0.2.1", "192.0.2.2"), ("line-2", 302, 5, "192.0.2.5", "192.0.2.6")];
    let start = scene.now;
    for n in 0..DATAGRAMS {
        let now = start + u64::from(n) * EVERY;
        if n % 80 == 0 {
            // Routers ask from time to time, and so stay known.
            for (place, (port, vlan, last, own, gateway)) in routers.into_iter().enumerate() {
                scene.now = now + (place as u64 + 2) * 5 * MS - 10 * MS;
                scene.at(port, vlan, last).arp(own, gateway);
            }
        }
        scene.now = now + 20 * MS;
        let mut host = scene.at("vpc", 20, 10);
        if n == 0 {
            host.arp(VPC, "10.200.0.1");
        }
        host.send(&udp(VPC, "10.1.0.10", (5_000, FIRST_PORT + n), b"by which line?"));
    }
    let (inputs, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (port, capture) in &scene.case.inputs {
        crate::write(&inputs.path().join(format!("{port}.in.pcap")), capture);
    }
    let (sent, _) = crate::replay(&scene.case, inputs.path(), out.path());
    for (port, vlan, last, own, gateway) in routers {
        for (time, bytes) in &sent[port] {
            let frame = read_frame(bytes);
            if frame.ether_type != IPV4 || *time >= start + u64::from(DATAGRAMS) * EVERY {
                continue;
            }
            let packet = Ip::read(&frame.payload);
            let asks = packet.proto == ICMP && packet.payload[0] == 8 && packet.dst.to_string() == own;
            if !asks || port == "line-1" && SILENT.contains(&(time - start)) {
                continue;
            }
            let word = packet.payload[4..8].try_into().unwrap();
            scene.now = time + 15 * MS - 10 * MS;
            scene.at(port, vlan, last).send(&icmp(own, gateway, 0, 0, word, &packet.payload[8..]));
        }
        scene.case.inputs.entry(port).or_default().sort_by_key(|(time, _)| *time);
    }
    scene.case
}

/// Every case, those that others are made from first.
pub fn cases(update: bool) -> Vec<Case> {
    let nothing = |_: &mut Scene| {};
    let mut all = scenario(
        update,
        "vpn-one-idc",
        &[Site { file: A, number: 1, to: &[VPC, "10.2.0.10"] }],
        &[vpc(&["10.1.0.10", "10.2.0.10"])],
        nothing,
    );
    let both = |of: &'static [&'static str], with: &'static [&'static str]| {
        [Site { file: A, number: 1, to: of }, Site { file: B, number: 2, to: with }]
    };
    let two = both(&[VPC, "10.2.0.10"], &[VPC, "10.1.0.10"]);
    all.extend(scenario(update, "vpn-many-idcs", &two, &[vpc(&["10.1.0.10", "10.2.0.10"])], nothing));
    all.extend(scenario(update, "vpn-idc-hub", &both(&["10.2.0.10", VPC], &["10.1.0.10"]), &[], nothing));
    all.extend(scenario(update, "vpn-isolated", &two, &[vpc(&["10.1.0.10", "10.2.0.10"])], nothing));
    let three = [
        Site { file: A, number: 1, to: &[VPC, "10.2.0.10", "10.3.0.10"] },
        Site { file: B, number: 2, to: &[VPC, "10.1.0.10", "10.3.0.10"] },
        Site { file: C, number: 3, to: &[VPC, "10.1.0.10", "10.2.0.10"] },
    ];
    let reached = vpc(&["10.1.0.10", "10.2.0.10", "10.3.0.10"]);
    all.extend(scenario(update, "vpn-isolated-by-route", &three, &[reached], nothing));
    let everybody = [
        Site { file: A, number: 1, to: &[VPC, "10.201.0.10", "10.2.0.10", "10.3.0.10"] },
        Site { file: B, number: 2, to: &[VPC, "10.201.0.10", "10.1.0.10", "10.3.0.10"] },
    ];
    let hosts = [
        Host {
            port: "vpc-1",
            vlan: 20,
            network: "10.200.0",
            to: &["10.1.0.10", "10.2.0.10", "10.3.0.10", "10.201.0.10"],
        },
        Host {
            port: "vpc-2",
            vlan: 21,
            network: "10.201.0",
            to: &["10.1.0.10", "10.2.0.10", "10.3.0.10", VPC],
        },
    ];
    all.extend(scenario(update, "vpn-cloud-connect", &everybody, &hosts, |scene| {
        let mut line = scene.at("line", 301, 3);
        line.arp("10.3.0.10", "10.3.0.1");
        for to in [VPC, "10.201.0.10", "10.1.0.10", "10.2.0.10"] {
            line.send_all(&conversation("10.3.0.10", to));
        }
    }));
    let one = [Site { file: A, number: 1, to: &[VPC] }];
    all.extend(scenario(update, "vpn-standby", &one, &[vpc(&["10.1.0.10"])], second_line));
    let one = [Site { file: A, number: 1, to: &[VPC, "10.201.0.10"] }];
    let hosts = [
        Host { port: "vpc-1", vlan: 20, network: "10.200.0", to: &["10.1.0.10", "10.201.0.10"] },
        Host { port: "vpc-2", vlan: 21, network: "10.201.0", to: &["10.1.0.10", VPC] },
    ];
    all.extend(scenario(update, "vpn-standby-many-vpcs", &one, &hosts, second_line));
    all.push(two_lines());
    all.push(lost_line());
    all.push(vlans());
    all
}
