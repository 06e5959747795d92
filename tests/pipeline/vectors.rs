//! ESP packets of an independent generator, each set through a gateway that has its association, packet by packet.
//!
//! `tests/data/esp`: keys, sequence numbers, packets, and what is in them. Where standards leave a choice, an
//! implementation may differ from a set (`alt`); this one does so where [`alternative`] says.

use std::{fs, path::Path};

use serde_json::Value;

use super::common::{frame::*, *};

fn config(sa: &Value) -> String {
    let text = |name: &str| sa[name].as_str().unwrap();
    let (src, dst) = (text("src"), text("dst"));
    let encapsulation = if sa["encap"].is_null() { "esp" } else { "udp" };
    format!(
        r#"
[port.wan]
driver = "memory"
ring = 64
mac = "02:00:00:00:00:0b"
[gateway.g]
prefixes = ["10.2.0.0/16", "2001:db8:2::/48"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.2.0.1/24", "2001:db8:2::1/64"]
[interface.wan]
port = "wan"
gateway = "g"
side = "peer"
addresses = ["192.0.2.2/24", "2001:db8::2/64"]
[tunnel.t]
gateway = "g"
local = "{dst}"
remote = "{src}"
encapsulation = "{encapsulation}"
esn = {esn}
replay_window = {window}
out = {{ spi = 0x7001, key = {{ env = "OTHER" }} }}
in = [{{ spi = {spi}, key = {{ env = "VECTORS" }} }}]
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["10.2.0.0/16"]
destination = ["10.1.0.0/16"]
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["2001:db8:2::/48"]
destination = ["2001:db8:1::/48"]
"#,
        esn = sa["esn"],
        window = sa["replay_window"],
        spi = sa["spi"],
    )
}

/// Drop reasons that fit what is wrong with a packet.
fn reasons(packet: &Value) -> &'static [&'static str] {
    let about = packet["reason"].as_str().unwrap();
    match packet["cls"].as_str().unwrap_or(about) {
        "integrity" => &["esp-integrity"],
        "length|integrity" => &["esp-length", "esp-integrity"],
        "length" => &["esp-length"],
        "replay" => &["esp-replayed", "esp-late"],
        "no-sa" => &["no-sa"],
        "padding" | "padding-optional" => &["esp-padding"],
        "inner" => &[
            "esp-next-header",
            "ip-version",
            "ip-truncated",
            "ip-length",
            "ipv4-header-length",
            "ipv4-checksum",
        ],
        "policy" => &["policy-mismatch"],
        other if other.starts_with("ECN inner not-ECT, outer CE") => &["ecn-contradiction"],
        other if other.starts_with("dummy packet") => &["esp-dummy"],
        other if other.contains("keepalive") => &["nat-keepalive"],
        other => panic!("no reason is known for {other}"),
    }
}

/// Whether this gateway does what a set calls another way to do it.
fn alternative(packet: &Value) -> bool {
    packet["alt"] == "icmp-time-exceeded"
}

fn play(set: &Value) {
    let name = set["set"].as_str().unwrap();
    let sa = &set["sas"][0];
    assert_eq!(set["sas"].as_array().unwrap().len(), 1, "{name}");
    let secret = [sa["key"].as_str().unwrap(), sa["salt"].as_str().unwrap()].concat();
    let mut lab = Lab::with(&config(sa), &|variable| {
        Some(if variable == "VECTORS" { secret.clone() } else { hex(&key(variable)) })
    });
    let inside = [("10.2.0.2", "10.2.0.1"), ("2001:db8:2::2", "2001:db8:2::1")];
    let host = lab.neighbour("lan", &[], 2, &inside);
    let peer = lab.neighbour("wan", &[], 0xa, &[("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")]);
    let highest = sa["initial_highest_seq"].as_u64().unwrap();
    if highest > 0 {
        lab.single.built.tables.sas[0].window.mark(highest).unwrap();
    }
    for packet in set["packets"].as_array().unwrap() {
        let what = format!("{name}, packet {}: {}", packet["i"], packet["reason"]);
        lab.send(peer.port, &unhex(packet["frame"].as_str().unwrap()));
        let (out, dropped) = (lab.packets(&host), lab.dropped());
        if packet["verdict"] == "accept" && !alternative(packet) {
            let inner = Ip::read(&unhex(packet["expect_inner"].as_str().unwrap()));
            assert_eq!(dropped, [], "{what}");
            assert_eq!(out.len(), 1, "{what}");
            assert_eq!(out[0], inner.forwarded(), "{what}");
        } else if alternative(packet) {
            assert_eq!((out.len(), dropped), (0, vec![("ttl-expired", 1)]), "{what}");
            let sealed = lab.packets(&peer);
            assert_eq!((sealed.len(), Ip::read(&sealed[0]).proto), (1, ESP), "{what}");
        } else {
            assert!(out.is_empty(), "{what}");
            let fits = matches!(dropped[..], [(reason, 1)] if reasons(packet).contains(&reason));
            assert!(fits, "{what}: dropped for {dropped:?}, not {:?}", reasons(packet));
        }
    }
    // What was refused has changed no sequence state: the counters say so too.
    let last = set["packets"].as_array().unwrap().iter();
    let newest = last.filter(|p| p["verdict"] != "drop" || p["cls"] == "inner" || p["cls"] == "policy");
    let newest = newest.filter_map(|p| p["seq"].as_u64()).max().unwrap();
    assert_eq!(lab.single.built.tables.sas[0].window.newest(), newest, "{name}");
}

#[test]
fn every_set_of_packets_is_opened_or_refused_as_it_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/esp");
    let mut sets: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    sets.retain(|path| path.extension().is_some_and(|e| e == "json"));
    sets.sort();
    assert_eq!(sets.len(), 6);
    for path in sets {
        play(&serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap());
    }
}
