//! The Linux kernel's own ESP, in a virtual machine: raw ESP with 64-bit sequence numbers, every pair of IP versions,
//! two key lengths, and what both sides count.

use std::{collections::BTreeMap, fs, io::Write, os::unix::fs::OpenOptionsExt};

use af_xdp::{
    Device,
    packet_socket::{PacketConfig, PacketSocket},
};
use causeway::cli::demo::{
    gateways::cores,
    network::{ip, path_of},
};

use crate::{
    can_run,
    common::frame::{Ip, read_frame},
    netns_common::{Site, Wire, echoes, until},
    random_hex, scapy,
    vm::{self, Vm},
};

/// A tunnel: the version of IP outside and the bits of the AES key.
const TUNNELS: [(u8, usize); 4] = [(4, 128), (4, 256), (6, 128), (6, 256)];

/// A host, the gateway, a wire that records, and the machine at its other end.
struct Bench {
    // Before the network it is in.
    vm: Vm,
    site: Site,
    /// Keys of both ways of each tunnel: from the gateway, and to it.
    keys: [(String, String); 4],
    _files: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let mut site = Site::empty();
        for namespace in ["host", "gateway", "wire"] {
            site.network.add(namespace).unwrap();
        }
        site.network.link(("host", "eth0"), ("gateway", "lan0")).unwrap();
        site.network.link(("gateway", "wan0"), ("wire", "idc")).unwrap();
        let wire = site.network.full("wire");
        ip(&format!("-n {wire} tuntap add dev cloud mode tap")).unwrap();
        ip(&format!("-n {wire} link set cloud up")).unwrap();
        site.host("host", 0, &["10.1.0.10/24", "2001:db8:1::10/64"], &["10.1.0.1", "2001:db8:1::1"]);
        let vm = Vm::start(&site.network, "wire", "cloud");
        site.wire = Some(Wire::new(&path_of(&wire)));
        let files = tempfile::tempdir().unwrap();
        let keys = TUNNELS.map(|(_, bits)| (random_hex(bits / 8 + 4), random_hex(bits / 8 + 4)));
        let mut bench = Self { vm, site, keys, _files: files };
        let text = bench.gateway();
        bench.site.start("gateway", &text, cores()[0]);
        bench.machine();
        bench
    }

    fn key_file(&self, name: &str, key: &str) -> String {
        let path = self._files.path().join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        writeln!(file.unwrap(), "{key}").unwrap();
        path.display().to_string()
    }

    fn gateway(&self) -> String {
        let mut text = String::from(
            r#"
[system]
name = "gateway"
cores = [1]
buffers = 16384
[port.lan]
driver = "xdp"
device = "lan0"
[port.wan]
driver = "xdp"
device = "wan0"
[gateway.g]
prefixes = ["10.1.0.0/16", "2001:db8:1::/48"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.wan]
port = "wan"
gateway = "g"
side = "peer"
addresses = ["192.0.2.1/24", "2001:db8:ff::1/64"]
"#,
        );
        for (number, ((version, _), (out, back))) in TUNNELS.iter().zip(&self.keys).enumerate() {
            let outer = if *version == 4 { "192.0.2." } else { "2001:db8:ff::" };
            text += &format!(
                r#"
[tunnel.t{number}]
gateway = "g"
local = "{outer}1"
remote = "{outer}2"
esn = true
replay_window = 128
out = {{ spi = {}, key = {{ file = "{}" }} }}
in = [{{ spi = {}, key = {{ file = "{}" }} }}]
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
                0x1000 + number,
                self.key_file(&format!("out{number}"), out),
                0x2000 + number,
                self.key_file(&format!("in{number}"), back),
            );
        }
        text
    }

    /// Gives the machine its addresses, associations and policies.
    fn machine(&mut self) {
        let vm = &mut self.vm;
        vm.ok("for f in accept_dad accept_ra; do echo 0 > /proc/sys/net/ipv6/conf/all/$f; \
               echo 0 > /proc/sys/net/ipv6/conf/default/$f; done; ip link set lo up; ip link set eth0 up");
        for address in ["192.0.2.2/24", "2001:db8:ff::2/64"] {
            vm.ok(&format!("ip addr add {address} dev eth0"));
        }
        vm.ok("ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:ff::1");
        for (number, ((version, _), (out, back))) in TUNNELS.iter().zip(&self.keys).enumerate() {
            let outer = if *version == 4 { "192.0.2." } else { "2001:db8:ff::" };
            let (four, six) = (format!("10.2.{number}"), format!("2001:db8:2:{number}::"));
            vm.ok(&format!("ip addr add {four}.10/32 dev lo; ip addr add {six}10/128 dev lo"));
            for (from, to, spi, key) in [(1, 2, 0x1000 + number, out), (2, 1, 0x2000 + number, back)] {
                vm.ok(&format!(
                    "ip xfrm state add src {outer}{from} dst {outer}{to} proto esp spi {spi} reqid {} mode tunnel \
                     replay-window 128 flag af-unspec esn aead 'rfc4106(gcm(aes))' 0x{key} 128",
                    number + 1
                ));
            }
            for (own, other) in
                [(format!("{four}.0/24"), "10.1.0.0/16"), (format!("{six}/64"), "2001:db8:1::/48")]
            {
                for (way, (src, dst), (from, to)) in
                    [("out", (own.as_str(), other), (2, 1)), ("in", (other, own.as_str()), (1, 2))]
                {
                    vm.ok(&format!(
                        "ip xfrm policy add src {src} dst {dst} dir {way} tmpl src {outer}{from} dst {outer}{to} \
                         proto esp reqid {} mode tunnel",
                        number + 1
                    ));
                }
            }
        }
    }

    /// What the machine has counted of an association: packets taken, refused as replayed, and refused for their ICV.
    fn counted(&mut self, spi: usize) -> (u64, u64, u64) {
        let text = self.vm.ok("ip -s xfrm state");
        let spi = format!("spi 0x{spi:08x}");
        let own = text.split("\nsrc ").find(|part| part.contains(&spi)).unwrap_or_else(|| panic!("{text}"));
        let number = |text: &str, label: &str| -> u64 {
            let words: Vec<_> =
                text.split([' ', '\t', '\n', '(', ')', ',']).filter(|word| !word.is_empty()).collect();
            let place =
                words.iter().position(|word| *word == label).unwrap_or_else(|| panic!("{label}: {text}"));
            words[place + 1].parse().unwrap()
        };
        let (_, current) = own.split_once("lifetime current:").unwrap();
        let packets = current.lines().nth(1).unwrap().split("bytes), ").nth(1).unwrap();
        let packets = packets.trim_end_matches("(packets)").parse().unwrap();
        let (_, stats) = own.split_once("stats:").unwrap();
        (packets, number(stats, "replay"), number(stats, "failed"))
    }

    /// What the machine says of packets that it did not take or could not send.
    fn refusals(&mut self) -> String {
        self.vm.ok("cat /proc/net/xfrm_stat; ip -s link show eth0; ip neigh; ip -s xfrm state")
    }

    /// Sends frames once more: to the machine, or to the gateway.
    fn inject(&self, device: &str, frames: &[Vec<u8>]) {
        self.site
            .network
            .inside("wire", || {
                let config = PacketConfig::default();
                let mut socket = PacketSocket::open(&Device::by_name(device).unwrap(), &config).unwrap();
                let mut sent = 0;
                while sent < frames.len() {
                    sent += socket.send(frames[sent..].iter().map(Vec::as_slice)).0;
                }
            })
            .unwrap();
    }

    fn frames(&self, from_gateway: bool) -> Vec<Vec<u8>> {
        let frames = self.site.wire.as_ref().unwrap().frames();
        frames.into_iter().filter(|(from, _)| *from == from_gateway).map(|(_, frame)| frame).collect()
    }
}

/// The SPI and sequence number of a frame with ESP.
fn esp(frame: &[u8]) -> Option<(u32, u32)> {
    let frame = read_frame(&{
        let mut padded = frame.to_vec();
        padded.resize(padded.len().max(60), 0);
        padded
    });
    let payload = match frame.ether_type {
        0x0800 if frame.payload[9] == 50 => &frame.payload[20..],
        0x86dd if frame.payload[6] == 50 => &frame.payload[40..],
        _ => return None,
    };
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    Some((word(0), word(4)))
}

#[test]
fn the_kernel_opens_what_the_gateway_seals_and_the_other_way_round() {
    let programs = [
        "qemu-system-x86_64",
        "ip",
        "ping",
        "kmod",
        "depmod",
        "mount",
        "stty",
        "dash",
        "cat",
        "sleep",
        "ldd",
    ];
    if !can_run(&programs) {
        return;
    }
    if vm::kernel().is_none() {
        assert!(std::env::var_os("CI").is_none(), "a kernel must be there in CI: scripts/test unpacks it");
        eprintln!("NOT RUN: there is no kernel in target/peer-kernel: scripts/test unpacks it");
        return;
    }
    let mut bench = Bench::new();
    for number in 0..TUNNELS.len() {
        for (near, far) in [
            ("10.1.0.10".to_string(), format!("10.2.{number}.10")),
            ("2001:db8:1::10".to_string(), format!("2001:db8:2:{number}::10")),
        ] {
            // Whoever starts, and with every length of padding.
            for size in [56, 57, 58, 59, 1300] {
                let (_, text) = bench.site.run("host", &echoes::burst(10, &format!("-s {size} {far}")));
                assert_eq!(
                    echoes::answered(&text),
                    (10, 0),
                    "{text}{:?}\n{}",
                    bench.site.drops("gateway"),
                    bench.refusals()
                );
            }
            let text = bench.vm.ok(&echoes::burst(10, &format!("-I {far} {near}")));
            assert_eq!(echoes::answered(&text), (10, 0), "{text}");
        }
    }
    // Streams and datagrams of the machine's own stack. Its server leaves the choice of a source to the routes.
    bench.vm.ok("ip route add 10.1.0.0/16 via 192.0.2.1 src 10.2.1.10");
    bench.vm.ok("causeway demo-host serve > /tmp/server & sleep 1; cat /tmp/server");
    for far in ["10.2.0.10", "2001:db8:2:1::10", "10.2.2.10", "2001:db8:2:3::10"] {
        bench.site.copy("host", far, 300_000, false);
        bench.site.copy("host", far, 300_000, true);
    }
    let report = bench.site.client("host", "talk 10.2.1.10 --millis 1000 --udp-mbps 2");
    assert_eq!(report.complaints(), Vec::<String>::new());
    both_count_the_same(&mut bench);
    replayed_packets_are_refused_by_both(&mut bench);
    judged(&bench);
    let Bench { vm, site, .. } = bench;
    drop(vm);
    site.end();
}

/// Nothing was lost on the way, and nobody refused anything.
fn both_count_the_same(bench: &mut Bench) {
    let mut on_wire: BTreeMap<u32, u64> = BTreeMap::new();
    until("the streams' last packets are still on their way", || {
        let count = || bench.site.wire.as_ref().unwrap().frames().len();
        let before = count();
        std::thread::sleep(std::time::Duration::from_millis(500));
        before == count()
    });
    for frame in bench.frames(true).iter().chain(&bench.frames(false)) {
        if let Some((spi, _)) = esp(frame) {
            *on_wire.entry(spi).or_default() += 1;
        }
    }
    for number in 0..TUNNELS.len() {
        for spi in [0x1000 + number, 0x2000 + number] {
            let passed = on_wire[&(spi as u32)];
            assert!(passed >= 100, "{passed}");
            assert_eq!(bench.counted(spi), (passed, 0, 0), "SPI {spi:#x} in the kernel");
        }
    }
    let all: u64 = on_wire.values().sum();
    assert_eq!(bench.site.counter("gateway", "sa", "packets"), all);
    for column in ["integrity", "replayed", "late", "outer", "malformed"] {
        assert_eq!(bench.site.counter("gateway", "sa", column), 0, "{column}");
    }
}

/// What passed once is sent again, to both: the newest are marked in the window, older ones lie before it.
fn replayed_packets_are_refused_by_both(bench: &mut Bench) {
    let of = |frames: &[Vec<u8>], wanted: u32| -> Vec<Vec<u8>> {
        frames.iter().filter(|frame| esp(frame).is_some_and(|(spi, _)| spi == wanted)).cloned().collect()
    };
    let (there, back) = (of(&bench.frames(true), 0x1000), of(&bench.frames(false), 0x2000));
    let received = bench.site.drops("gateway").get("replayed-sequence").copied().unwrap_or(0);
    assert_eq!(received, 0);
    let before = bench.counted(0x1000);
    // 20 of the 128 that the window marks, and 20 that are long past it.
    let again = |frames: &[Vec<u8>]| [&frames[..20], &frames[frames.len() - 20..]].concat();
    bench.inject("cloud", &again(&there));
    bench.inject("idc", &again(&back));
    // With 64-bit numbers, one from before the window can only be meant as one of the next 2^32, under which it does not
    // authenticate (RFC 4303 A2.2). So the old ones are failures of integrity, on both sides.
    until("the gateway does not refuse what it had", || {
        let sum = |column| bench.site.counter("gateway", "sa", column);
        (sum("replayed"), sum("integrity")) == (20, 20)
    });
    let mut after = bench.counted(0x1000);
    while after.1 + after.2 < 40 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        after = bench.counted(0x1000);
    }
    assert_eq!(after, (before.0, 20, 20), "packets, replays and failures in the kernel");
    // And they go on.
    bench.site.pings("host", 10, "10.2.0.10");
}

/// scapy opens all that the gateway sent, and every checksum inside is right.
fn judged(bench: &Bench) {
    if !scapy::is_there() {
        return;
    }
    let keys = bench.keys.iter().enumerate();
    let keys = keys.map(|(number, (out, _))| (0x1000 + number as u32, (out.clone(), true))).collect();
    let sent = bench.frames(true);
    let opened = scapy::open(&keys, sent.iter().map(Vec::as_slice));
    assert!(opened.len() > 1000, "{} packets", opened.len());
    let mut last: BTreeMap<u32, u32> = BTreeMap::new();
    for packet in &opened {
        let inner = Ip::read(&packet.inner());
        let number = packet.spi - 0x1000;
        let far = if inner.dst.is_ipv4() {
            format!("10.2.{number}.10")
        } else {
            format!("2001:db8:2:{number}::10")
        };
        assert_eq!(inner.dst, far.parse::<std::net::IpAddr>().unwrap());
        let last = last.entry(packet.spi).or_default();
        assert_eq!(packet.seq, *last + 1);
        *last = packet.seq;
    }
}
