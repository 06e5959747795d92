//! Sizes around IPsec between the kernels' own stacks, in namespaces of the tests' own. Needs root.

mod netns_common;

use std::{net::UdpSocket, time::Duration};

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
