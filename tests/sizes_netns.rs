//! Sizes around IPsec between the kernels' own stacks, in namespaces of the tests' own. Needs root.

mod netns_common;

use std::{net::UdpSocket, time::Duration};

use causeway::cli::demo::{
    gateways::{CLOUD, IDC, cores},
    machine,
    network::ip,
};
use netns_common::{Site, causeway, is_root};

const SERVER: &str = "203.0.113.10";

/// The line between the gateways takes 900 bytes.
fn narrow(text: &str) -> String {
    text.replace("[interface.wan]", "[interface.wan]\nmtu = 900")
}

#[test]
fn large_datagrams_cross_a_narrow_line() {
    if !is_root() {
        return;
    }
    let site = Site::new(narrow);
    // In pieces of the host's, each divided again before it is sealed.
    site.pings("idc-host", 20, &format!("-M dont -s 8000 {SERVER}"));
    let server = site.network.inside("vpc-host", || UdpSocket::bind("10.2.0.10:4000").unwrap()).unwrap();
    let client = site.network.inside("idc-host", || UdpSocket::bind("10.1.0.10:4001").unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let data: Vec<u8> = (0..8000).map(|i| (i * 7 + i / 256) as u8).collect();
    let mut buffer = [0; 9000];
    // The first teaches the host the size that fits.
    let mut received = None;
    for _ in 0..100 {
        let _ = client.send_to(&data, format!("{SERVER}:4000"));
        if let Ok((length, _)) = server.recv_from(&mut buffer) {
            received = Some(length);
            break;
        }
    }
    assert_eq!(received, Some(8000));
    assert_eq!(buffer[..8000], data);
    site.end();
}

/// As [`narrow`], and no ICMP tells anybody: each gateway throws its own "fragmentation needed" away, as a firewall would.
fn silent(text: &str) -> String {
    let (before, after) =
        narrow(text).split_once("[[gateway.").map(|(b, a)| (b.to_string(), a.to_string())).unwrap();
    let gateway = after.split('.').next().unwrap();
    let policy = format!(
        "[[gateway.{gateway}.policy]]\nname = \"no-icmp\"\naction = \"discard\"\nprotocol = \"icmp\"\n\
         icmp = \"3/4\"\n"
    );
    format!("{before}{policy}[[gateway.{after}")
}

#[test]
fn tcp_needs_no_icmp_where_the_segment_size_is_clamped() {
    if !is_root() {
        return;
    }
    let clamped = |text: &str| silent(text).replace("esn = true", "esn = true\nmss = \"auto\"");
    let mut site = Site::new(clamped);
    site.serve("vpc-host");
    for back in [false, true] {
        let report = site.copy("idc-host", SERVER, 5_000_000, back);
        // Nobody was told of a smaller path, because nothing was too big.
        assert!(report.path_mtu.is_none_or(|mtu| mtu == 1500), "{:?}", report.path_mtu);
        for gateway in ["idc", "cloud"] {
            let drops = site.drops(gateway);
            assert!(
                !drops.contains_key("packet-too-big") && !drops.contains_key("policy-discard"),
                "{drops:?}"
            );
        }
    }
    site.end();
}

/// The same without the clamp: large segments are dropped, nobody is told, and the transfer stands still. So it is the
/// clamp that carries it above.
#[test]
fn tcp_stands_still_where_icmp_is_blocked_and_nothing_is_clamped() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(silent);
    site.serve("vpc-host");
    let copy = format!("timeout --kill-after=1 5 {} demo-host copy {SERVER} 5000000", causeway().display());
    let (arrived, text) = site.run("idc-host", &copy);
    assert!(!arrived, "{text}");
    let drops = site.drops("idc");
    assert!(drops["packet-too-big"] > 0 && drops["policy-discard"] > 0, "{drops:?}");
    // What is small goes through all the same.
    site.pings("idc-host", 3, SERVER);
    site.end();
}

/// The demo's network with hosts whose lines take 9001 bytes, and `wan` between the gateways, by this driver.
fn jumbo(wan: u32, driver: &str) -> Site {
    let mut site = Site::empty();
    machine::site_to_site(&mut site.network).unwrap();
    for (namespace, device, mtu) in [
        ("idc-host", "eth0", 9001),
        ("idc", "lan0", 9001),
        ("idc", "wan0", wan),
        ("cloud", "wan0", wan),
        ("cloud", "vpc0", 9001),
        ("vpc-host", "eth0", 9001),
    ] {
        ip(&format!("-n {} link set {device} mtu {mtu}", site.network.full(namespace))).unwrap();
    }
    let port = |text: &str, device: &str, mtu: u32| {
        let line = format!("device = \"{device}\"\n");
        text.replace(&line, &format!("{line}mtu = {mtu}\nring = 512\n"))
    };
    for ((name, text), core) in [("idc", IDC), ("cloud", CLOUD)].into_iter().zip(cores()) {
        let text = text
            .replace("buffers = 16384", "buffers = 4096\nbuffer_size = 16384")
            .replace("driver = \"xdp\"", &format!("driver = \"{driver}\""));
        let text = port(&port(&port(&text, "lan0", 9001), "vpc0", 9001), "wan0", wan);
        site.start(name, &text, core);
    }
    site
}

#[test]
fn jumbo_packets_cross_a_tunnel() {
    if !is_root() {
        return;
    }
    for driver in ["xdp", "af_packet"] {
        let mut site = jumbo(9100, driver);
        site.pings("idc-host", 20, &format!("-M do -s 8900 {SERVER}"));
        // What the lines take, and no more.
        site.pings("idc-host", 3, &format!("-M do -s 8973 {SERVER}"));
        assert!(!site.run("idc-host", &format!("ping -c 1 -M do -s 8974 {SERVER}")).0);
        site.serve("vpc-host");
        for back in [false, true] {
            site.copy("idc-host", SERVER, 20_000_000, back);
        }
        for gateway in ["idc", "cloud"] {
            if driver == "xdp" {
                let log = site.log(gateway);
                assert!(log.contains("native") && !log.contains("not in the driver"), "{log}");
            }
            assert_eq!(site.drops(gateway).get("packet-too-big"), None);
            assert_eq!(site.drops(gateway).get("fragmentation-failed"), None);
        }
        // Forty megabytes in segments of 9001 bytes, and one acknowledgement for each at most.
        let packets = site.counter("idc", "port", "rx_packets");
        let bytes = site.counter("idc", "port", "rx_bytes");
        assert!(bytes / packets > 3000, "{driver}: {packets} packets, {bytes} bytes");
        site.end();
    }
}

#[test]
fn jumbo_hosts_learn_of_a_line_of_1500_between_them() {
    if !is_root() {
        return;
    }
    let mut site = jumbo(1500, "xdp");
    // Divided before it is sealed, and whole again at the other host.
    site.pings("idc-host", 3, &format!("-M dont -s 8900 {SERVER}"));
    let (answered, text) = site.run("idc-host", &format!("ping -c 1 -W 1 -M do -s 8900 {SERVER}"));
    assert!(!answered && text.contains("mtu = 1446"), "{text}");
    site.serve("vpc-host");
    for back in [false, true] {
        let report = site.copy("idc-host", SERVER, 5_000_000, back);
        if !back {
            assert_eq!(report.path_mtu, Some(1446));
        }
    }
    assert!(site.drops("idc")["packet-too-big"] > 0);
    site.end();
}
