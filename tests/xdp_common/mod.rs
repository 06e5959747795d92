//! What the tests of the XDP program and of the kernel's ports share.
#![allow(dead_code, reason = "each test program uses a part")]

use std::os::unix::fs::MetadataExt;

/// Whether the test can run: loading programs and making devices takes root. Without it the test says so and
/// does nothing; in CI (with `CI` set) it fails instead, so that it is never skipped there unseen.
pub fn is_root() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !root {
        assert!(std::env::var_os("CI").is_none(), "this test needs root, and CI must not skip it");
        eprintln!("NOT RUN: this test needs root");
    }
    root
}

/// An Ethernet frame.
pub fn ethernet(destination: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A unicast address.
pub const UNICAST: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A UDP header and what follows it, or the like of it: only the ports and the length are right.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(source.to_be_bytes());
    datagram.extend(destination.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// Fields of an IPv4 header that tests vary.
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub protocol: u8,
    /// Flags and offset as they stand in the packet.
    pub fragment: u16,
    pub identification: u16,
    /// Words of options.
    pub options: u8,
}

impl Ipv4 {
    pub fn to(destination: [u8; 4], protocol: u8) -> Self {
        Self { source: [198, 51, 100, 7], destination, protocol, fragment: 0, identification: 1, options: 0 }
    }

    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + 4 * u16::from(self.options);
        let mut packet = vec![0x45 + self.options, 0];
        packet.extend((header + payload.len() as u16).to_be_bytes());
        packet.extend(self.identification.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.resize(usize::from(header), 1);
        packet.extend(payload);
        ethernet(UNICAST, 0x0800, &packet)
    }
}

/// An IPv6 packet in a frame. `payload` starts with whatever `next_header` names.
pub fn ipv6(destination: [u8; 16], next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, hop_limit]);
    packet.extend("2001:db8:99::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(destination);
    packet.extend(payload);
    ethernet(UNICAST, 0x86dd, &packet)
}

/// Runs a test in a network namespace of its own, which takes its devices along when the test ends, in whatever way.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        return;
    }
    let run = std::thread::spawn(|| {
        af_xdp::Namespace::unshare().unwrap();
        be_quiet();
        test();
    });
    if let Err(panic) = run.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Prepares a new network namespace: the kernel shall not send router solicitations and the like into the test.
pub fn be_quiet() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    ip("link set lo up");
}

/// Runs `ip` with these arguments in the namespace of this thread, and returns what it prints.
#[track_caller]
pub fn ip(arguments: &str) -> String {
    let output = std::process::Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a pair of veth devices with that many queues each way, both up.
#[track_caller]
pub fn veth(one: &str, other: &str, queues: u32) {
    let q = format!("numrxqueues {queues} numtxqueues {queues}");
    ip(&format!("link add {one} {q} type veth peer name {other} {q}"));
    ip(&format!("link set {one} up"));
    ip(&format!("link set {other} up"));
}
