//! Gateways on real devices between the kernels' own stacks, in namespaces of the tests' own. Needs root.

mod netns_common;

use std::{collections::BTreeMap, net::UdpSocket, time::Duration};

use netns_common::{PATIENCE, Site, is_root, until};

/// The cloud's server, as the data centre knows it.
const SERVER: &str = "203.0.113.10";

fn unchanged(text: &str) -> String {
    text.to_string()
}

#[test]
fn pings_cross_both_ways_and_all_are_answered() {
    if !is_root() {
        return;
    }
    let site = Site::new(unchanged);
    site.pings("idc-host", 50, SERVER);
    site.pings("vpc-host", 50, "10.1.0.10");
    let accounts = site.end();
    assert!(accounts["idc"].received >= 200, "{accounts:?}");
}

#[test]
fn fifty_megabytes_of_tcp_come_intact_both_ways_by_path_mtu_discovery() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(unchanged);
    site.serve("vpc-host");
    let report = site.copy("idc-host", SERVER, 50_000_000, false);
    // 1500 less the tunnel's headers: what the gateway's ICMP told the kernel of the host.
    assert_eq!(report.path_mtu, Some(1446));
    assert!(site.drops("idc")["packet-too-big"] > 0, "{:?}", site.drops("idc"));
    site.copy("idc-host", SERVER, 50_000_000, true);
    site.end();
}

#[test]
fn the_kernel_learns_the_path_mtu_through_the_address_translation() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(unchanged);
    site.serve("idc-host");
    // The packet that is too big has the translated source when the gateway finds out; its sender must know it again.
    let report = site.copy("vpc-host", "10.1.0.10", 2_000_000, false);
    assert_eq!(report.path_mtu, Some(1446));
    assert!(site.drops("cloud")["packet-too-big"] > 0, "{:?}", site.drops("cloud"));
    site.end();
}

#[test]
fn udp_crosses_both_ways_and_the_peer_sees_the_translated_address() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(unchanged);
    site.serve("vpc-host");
    let report = site.client("idc-host", &format!("talk {SERVER} --millis 4000 --udp-mbps 20"));
    assert_eq!(report.complaints(), Vec::<String>::new());
    for udp in &report.udp {
        assert_eq!(udp.sent, udp.received, "{udp:?}");
    }
    // And from the other side: what the server starts comes from its address in the data centre.
    let socket = site.network.inside("idc-host", || UdpSocket::bind("10.1.0.10:4000").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = site.network.inside("vpc-host", || UdpSocket::bind("10.2.0.10:4001").unwrap()).unwrap();
    sender.send_to(b"who am I?", "10.1.0.10:4000").unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.to_string()), (&b"who am I?"[..], format!("{SERVER}:4001")));
    site.end();
}

#[test]
fn ipv6_crosses_in_the_same_tunnel() {
    if !is_root() {
        return;
    }
    let both = |text: &str| {
        text.replace("\"10.1.0.1/24\"]", "\"10.1.0.1/24\", \"2001:db8:1::1/64\"]")
            .replace("\"10.2.0.1/24\"]", "\"10.2.0.1/24\", \"2001:db8:2::1/64\"]")
            .replace("prefixes = [\"10.1.0.0/16\"]", "prefixes = [\"10.1.0.0/16\", \"2001:db8:1::/48\"]")
            .replace("prefixes = [\"10.2.0.0/16\"]", "prefixes = [\"10.2.0.0/16\", \"2001:db8:2::/48\"]")
    };
    let policy = |gateway: &str, tunnel: &str, from: u8, to: u8| {
        format!(
            "\n[[gateway.{gateway}.policy]]\nname = \"six\"\naction = \"protect\"\ntunnel = \"{tunnel}\"\n\
             source = [\"2001:db8:{from}::/48\"]\ndestination = [\"2001:db8:{to}::/48\"]\n"
        )
    };
    let mut site = Site::new(|text| {
        let more = if text.contains("[gateway.idc]") {
            policy("idc", "cloud", 1, 2)
        } else {
            policy("vpc", "idc", 2, 1)
        };
        both(text) + &more
    });
    for (host, number) in [("idc-host", 1), ("vpc-host", 2)] {
        let full = site.network.full(host);
        for line in [
            format!("-n {full} addr add 2001:db8:{number}::10/64 dev eth0 nodad"),
            format!("-n {full} route add default via 2001:db8:{number}::1 dev eth0"),
        ] {
            causeway::cli::demo::network::ip(&line).unwrap();
        }
    }
    site.pings("idc-host", 50, "2001:db8:2::10");
    site.pings("vpc-host", 50, "2001:db8:1::10");
    site.serve("vpc-host");
    let report = site.copy("idc-host", "2001:db8:2::10", 5_000_000, false);
    assert_eq!(report.path_mtu, Some(1446));
    site.copy("idc-host", "2001:db8:2::10", 5_000_000, true);
    site.end();
}

#[test]
fn hosts_are_told_when_time_runs_out_and_when_nobody_is_there() {
    if !is_root() {
        return;
    }
    let site = Site::new(unchanged);
    site.pings("idc-host", 50, SERVER);
    // The first hop.
    let (_, text) = site.run("idc-host", &format!("ping -n -c 1 -W 10 -t 1 {SERVER}"));
    assert!(text.contains("From 10.1.0.1 icmp_seq=1 Time to live exceeded"), "{text}");
    // Nobody has this address: the gateway asks three times, and says so. The answer comes through the tunnel.
    let (_, text) = site.run("vpc-host", "ping -n -c 1 -W 10 10.1.0.77");
    assert!(text.contains("Destination Host Unreachable"), "{text}");
    assert!(site.drops("idc").contains_key("neighbour-unreachable"), "{:?}", site.drops("idc"));
    // Nothing is there for this network.
    let (_, text) = site.run("vpc-host", "ping -n -c 1 -W 10 198.51.100.1");
    assert!(text.contains("From 10.2.0.1 icmp_seq=1 Destination Net Unreachable"), "{text}");
    site.end();
}

/// An ESP packet on the wire: its SPI and sequence number.
fn esp(frame: &[u8]) -> Option<(u32, u32)> {
    // Ethernet, tag 100, IPv4 without options, ESP.
    let is_esp = frame.len() >= 46
        && frame[12..16] == [0x81, 0, 0, 100]
        && frame[16..19] == [8, 0, 0x45]
        && frame[27] == 50;
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    is_esp.then(|| (word(38), word(42)))
}

fn is_tagged_arp(frame: &[u8]) -> bool {
    frame[12..18] == [0x81, 0, 0, 100, 8, 6]
}

#[test]
fn only_esp_with_its_tag_is_on_the_wire() {
    if !is_root() {
        return;
    }
    let mut site = Site::recorded();
    site.serve("vpc-host");
    site.pings("idc-host", 20, &format!("-p c0ffeec0ffeebabe {SERVER}"));
    site.copy("idc-host", SERVER, 1_000_000, false);
    let frames = site.wire.as_ref().unwrap().frames();
    let (sealed, others): (Vec<_>, Vec<_>) = frames.iter().partition(|(_, frame)| esp(frame).is_some());
    assert!(sealed.len() > 700, "{} ESP packets", sealed.len());
    assert!(others.iter().all(|(_, frame)| is_tagged_arp(frame)), "{others:02x?}");
    // Each side uses its own SPI.
    for (from_idc, frame) in &sealed {
        assert_eq!(esp(frame).unwrap().0, if *from_idc { 0x1001 } else { 0x2001 });
    }
    // No clear text: the pattern of the pings, and an address that is only inside.
    for secret in [&[0xc0, 0xff, 0xee, 0xc0, 0xff, 0xee, 0xba, 0xbe][..], &[10, 1, 0, 10, 203, 0, 113, 10]] {
        let shown = frames.iter().any(|(_, frame)| frame.windows(secret.len()).any(|bytes| bytes == secret));
        assert!(!shown, "{secret:02x?} is on the wire");
    }
    site.end();
}

#[test]
fn a_killed_gateway_goes_on_with_numbers_that_were_never_used() {
    if !is_root() {
        return;
    }
    let mut site = Site::recorded();
    site.pings("idc-host", 50, SERVER);
    for name in ["idc", "cloud", "idc"] {
        // In the midst of traffic.
        let flood = site
            .network
            .command(netns_common::causeway(), "idc-host", true)
            .args(["ping", "-n", "-q", "-i", "0.002", "-c", "300", SERVER])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));
        site.kill(name);
        site.start_again(name);
        let mut flood = flood;
        flood.wait().unwrap();
        until("traffic does not go on", || site.run("idc-host", &format!("ping -c 1 -W 1 {SERVER}")).0);
        site.pings("idc-host", 50, SERVER);
    }
    let mut seen: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for (_, frame) in site.wire.as_ref().unwrap().frames() {
        if let Some(packet) = esp(&frame) {
            *seen.entry(packet).or_default() += 1;
        }
    }
    assert!(seen.len() > 600, "{} ESP packets", seen.len());
    let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "sequence numbers that were used again: {twice:?}");
    site.end();
}

#[track_caller]
fn crosses_with(port: &str, description: &str) {
    if !is_root() {
        return;
    }
    let mut site = Site::new(|text| text.replace("driver = \"xdp\"", port));
    for name in ["idc", "cloud"] {
        until(description, || site.log(name).contains(description));
    }
    site.pings("idc-host", 50, SERVER);
    site.serve("vpc-host");
    site.copy("idc-host", SERVER, 5_000_000, false);
    site.copy("idc-host", SERVER, 5_000_000, true);
    site.end();
}

#[test]
fn traffic_crosses_with_xdp_in_the_driver() {
    crosses_with("driver = \"xdp\"\nxdp_mode = \"native\"", "native mode");
}

#[test]
fn traffic_crosses_with_xdp_in_the_kernel_s_receive_path() {
    crosses_with("driver = \"xdp\"\nxdp_mode = \"generic\"", "generic mode");
}

#[test]
fn traffic_crosses_with_packet_sockets() {
    crosses_with("driver = \"af_packet\"", "af_packet");
}

#[test]
fn two_lines_lead_into_one_vpc_and_not_into_each_other() {
    if !is_root() {
        return;
    }
    let mut site = Site::empty();
    for namespace in ["a", "b", "gateway", "vpc"] {
        site.network.add(namespace).unwrap();
    }
    for (host, device) in [("a", "line0"), ("b", "line1"), ("vpc", "vpc0")] {
        site.network.link((host, "eth0"), ("gateway", device)).unwrap();
    }
    // The data centres' routers are their hosts too: an address behind each.
    site.host("a", 301, &["192.0.2.1/30", "10.1.0.10/32"], &["192.0.2.2"]);
    site.host("b", 302, &["192.0.2.5/30", "10.3.0.10/32"], &["192.0.2.6"]);
    site.host("vpc", 20, &["10.2.0.10/24", "10.2.0.12/24"], &["10.2.0.1"]);
    let text = include_str!("../pipelines/direct-connect/gateway.toml");
    site.start("gateway", text, causeway::cli::demo::gateways::cores()[0]);
    for (host, address) in [("a", "10.1.0.10"), ("b", "10.3.0.10")] {
        site.pings(host, 20, &format!("-I {address} {SERVER}"));
    }
    site.serve("vpc");
    site.copy("a", SERVER, 5_000_000, false);
    site.copy("b", SERVER, 5_000_000, true);
    // No transit: nothing comes from one data centre to the other.
    let (reached, text) = site.run("a", "ping -n -c 3 -i 0.2 -W 1 -I 10.1.0.10 10.3.0.10");
    assert!(!reached, "{text}");
    assert_eq!(site.drops("gateway").get("transit-forbidden"), Some(&3), "{:?}", site.drops("gateway"));
    site.end();
}
