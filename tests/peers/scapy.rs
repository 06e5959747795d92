//! scapy as the judge of what a gateway seals: every pair of IP versions, encapsulations, key lengths and sequence
//! number sizes.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde::Deserialize;
use serde_json::json;

use crate::{
    can_run,
    common::{Lab, frame::*, hex, unhex},
};

/// A packet that scapy opened.
#[derive(Debug, Deserialize)]
pub struct Opened {
    pub spi: u32,
    pub seq: u32,
    /// Whether it travelled in UDP.
    pub udp: bool,
    inner: String,
}

impl Opened {
    /// The packet that was inside.
    pub fn inner(&self) -> Vec<u8> {
        unhex(&self.inner)
    }
}

/// A key as scapy is told of it: AES key and salt, and whether sequence numbers have 64 bits.
pub type Known = (String, bool);

/// Whether scapy is there.
pub fn is_there() -> bool {
    // Debian's Python, whatever other one stands first in the path.
    let mut import = Command::new("/usr/bin/python3");
    import.args(["-c", "import scapy.layers.ipsec, cryptography"]).stderr(Stdio::null());
    if import.status().is_ok_and(|status| status.success()) {
        return can_run(&[]);
    }
    assert!(std::env::var_os("CI").is_none(), "python3-scapy must be there in CI: scripts/test installs it");
    eprintln!("NOT RUN: python3-scapy must be installed: scripts/test does it");
    false
}

/// Opens the ESP packets among Ethernet frames, and requires that all can be opened.
pub fn open<'a>(keys: &BTreeMap<u32, Known>, frames: impl Iterator<Item = &'a [u8]>) -> Vec<Opened> {
    let keys: BTreeMap<_, _> =
        keys.iter().map(|(spi, (key, esn))| (spi, json!({ "key": key, "esn": esn }))).collect();
    let frames: Vec<_> = frames.map(hex).collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/open.py");
    let mut python = Command::new("/usr/bin/python3");
    let mut python = python.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let asked = json!({ "keys": keys, "frames": frames }).to_string();
    python.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let answers: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let one = |(answer, frame): (serde_json::Value, &String)| {
        assert!(answer.get("error").is_none(), "{answer} in {frame}");
        serde_json::from_value(answer).unwrap()
    };
    answers.into_iter().zip(&frames).filter(|(answer, _)| !answer.is_null()).map(one).collect()
}

/// How a tunnel differs from others.
#[derive(Clone, Copy)]
struct Mode {
    outer: u8,
    udp: bool,
    aes: u16,
    esn: bool,
}

fn modes() -> Vec<Mode> {
    let mut modes = Vec::new();
    for outer in [4, 6] {
        for udp in [false, true] {
            for aes in [128, 192, 256] {
                for esn in [false, true] {
                    modes.push(Mode { outer, udp, aes, esn });
                }
            }
        }
    }
    modes
}

/// The key of 16, 24 or 32 bytes, and salt, of a tunnel.
fn sealing_key(number: usize, aes: u16) -> String {
    let seed = number as u32 * 7919;
    let bytes = (0..u32::from(aes) / 8 + 4).map(|at| ((seed + at * 131) >> (at % 4 * 3)) as u8);
    hex(&bytes.chain(seed.to_be_bytes()).rev().take(usize::from(aes) / 8 + 4).collect::<Vec<_>>())
}

#[test]
fn scapy_opens_every_packet_of_every_mode_and_finds_the_packet_that_went_in() {
    if !is_there() {
        return;
    }
    let modes = modes();
    let mut text = String::from(
        r#"
[system]
name = "modes"
buffers = 2048
huge_pages = "never"
[port.lan]
driver = "memory"
ring = 64
mtu = 1600
[port.wan]
driver = "memory"
ring = 64
[gateway.g]
prefixes = ["10.1.0.0/16", "2001:db8:1::/48"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
addresses = ["192.0.2.1/24", "2001:db8:ff::1/64"]
"#,
    );
    for (number, mode) in modes.iter().enumerate() {
        let (local, remote) =
            if mode.outer == 4 { ("192.0.2.1", "192.0.2.2") } else { ("2001:db8:ff::1", "2001:db8:ff::2") };
        let encapsulation = if mode.udp { "udp" } else { "esp" };
        text += &format!(
            r#"
[tunnel.t{number}]
gateway = "g"
local = "{local}"
remote = "{remote}"
encapsulation = "{encapsulation}"
esn = {}
out = {{ spi = {}, key = {{ env = "OUT_{number}" }} }}
in = [{{ spi = {}, key = {{ env = "IN_{number}" }} }}]
[[gateway.g.policy]]
action = "protect"
tunnel = "t{number}"
source = ["10.1.0.0/16"]
destination = ["10.2.{number}.0/24"]
[[gateway.g.policy]]
action = "protect"
tunnel = "t{number}"
source = ["2001:db8:1::/48"]
destination = ["2001:db8:2:{number}::/64"]
"#,
            mode.esn,
            0x1000 + number,
            0x2000 + number
        );
    }
    let environment = |name: &str| {
        let (way, number) = name.split_once('_').unwrap();
        let number: usize = number.parse().unwrap();
        let other = if way == "IN" { 1000 } else { 0 };
        Some(sealing_key(number + other, modes[number].aes))
    };
    let mut lab = Lab::with(&text, &environment);
    let (host, router) = (lab.host("lan", &[], 9), lab.host("wan", &[100], 2));
    lab.meet(&router, "192.0.2.2", "192.0.2.1");
    lab.meet(&router, "2001:db8:ff::2", "2001:db8:ff::1");
    let (mut expected, mut frames) = (Vec::new(), Vec::new());
    for number in 0..modes.len() {
        let (four, six) = (format!("10.2.{number}.7"), format!("2001:db8:2:{number}::7"));
        for (from, to) in [("10.1.0.9", four.as_str()), ("2001:db8:1::9", six.as_str())] {
            // Every length of padding, and one that fills the tunnel.
            let mut packets: Vec<Ip> =
                (0..5).map(|more| udp(from, to, (4000, 53), &vec![0x5a; 301 + more])).collect();
            packets.push(ping(from, to, 1));
            packets.push(tcp(from, to, (40_000, 443), &[0x77; 1300]).df().tos(0xb8));
            for packet in packets {
                lab.from(&host, &packet.bytes());
                expected.push((0x1000 + number as u32, packet.forwarded()));
                frames.extend(lab.raw(router.port));
            }
        }
    }
    assert_eq!(lab.dropped(), []);
    let keys = modes.iter().enumerate();
    let keys = keys.map(|(n, mode)| (0x1000 + n as u32, (sealing_key(n, mode.aes), mode.esn))).collect();
    let opened = open(&keys, frames.iter().map(Vec::as_slice));
    assert_eq!(opened.len(), expected.len());
    let mut next: BTreeMap<u32, u32> = BTreeMap::new();
    for (packet, (spi, inner)) in opened.iter().zip(&expected) {
        assert_eq!((packet.spi, &packet.inner()), (*spi, inner));
        assert_eq!(packet.udp, modes[*spi as usize - 0x1000].udp);
        let sequence = next.entry(*spi).or_default();
        *sequence += 1;
        assert_eq!(packet.seq, *sequence);
    }
}
