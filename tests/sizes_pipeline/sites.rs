//! Two gateways with a tunnel between them, and a host behind each.

use super::common::{frame::*, *};

/// What differs between tunnels.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub outer_v6: bool,
    pub udp: bool,
    /// The MTU of the line between the two.
    pub wan_mtu: u16,
    /// Further lines of the tunnel's section.
    pub tunnel: &'static str,
    /// Further sections.
    pub more: &'static str,
}

pub const PLAIN: Kind = Kind { outer_v6: false, udp: false, wan_mtu: 1500, tunnel: "", more: "" };

/// The four ways that ESP travels.
pub fn every_kind() -> impl Iterator<Item = Kind> {
    (0..4).map(|bits| Kind { outer_v6: bits & 1 > 0, udp: bits & 2 > 0, ..PLAIN })
}

impl Kind {
    /// Bytes of IP and UDP in front of ESP.
    pub fn outer_header(&self) -> usize {
        let ip = if self.outer_v6 { 40 } else { 20 };
        ip + if self.udp { 8 } else { 0 }
    }

    /// Bytes of the outer packet around `inner` bytes, by hand: header, SPI, sequence number, IV, padding to a multiple of
    /// four with two bytes of trailer, ICV.
    pub fn sealed(&self, inner: usize) -> usize {
        self.outer_header() + 8 + 8 + (inner + 2).next_multiple_of(4) + 16
    }

    /// The largest inner packet within an outer one of `outer` bytes, by trying.
    pub fn largest(&self, outer: usize) -> usize {
        (0..outer).rev().find(|inner| self.sealed(*inner) <= outer).unwrap()
    }
}

/// One end: number 1 or 2.
pub fn site(end: u8, kind: Kind) -> String {
    let other = 3 - end;
    let outer =
        |end: u8| if kind.outer_v6 { format!("2001:db8:ff::{end}") } else { format!("192.0.2.{end}") };
    let encapsulation = if kind.udp { "udp" } else { "esp" };
    format!(
        r#"
[system]
name = "site-{end}"
buffers = 1024
huge_pages = "never"
[port.lan]
driver = "memory"
ring = 64
mtu = 1700
[port.wan]
driver = "memory"
ring = 64
[gateway.g]
prefixes = ["10.{end}.0.0/16", "2001:db8:{end}::/48"]
[interface.lan]
port = "lan"
vlan = 10
gateway = "g"
side = "local"
addresses = ["10.{end}.0.1/24", "2001:db8:{end}::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
mtu = {wan_mtu}
addresses = ["192.0.2.{end}/30", "2001:db8:ff::{end}/64"]
[tunnel.t]
gateway = "g"
local = "{local}"
remote = "{remote}"
encapsulation = "{encapsulation}"
out = {{ spi = {spi_out}, key = {{ env = "SITE_{end}" }} }}
in = [{{ spi = {spi_in}, key = {{ env = "SITE_{other}" }} }}]
{tunnel}
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["10.{end}.0.0/16"]
destination = ["10.{other}.0.0/16"]
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["2001:db8:{end}::/48"]
destination = ["2001:db8:{other}::/48"]
{more}
"#,
        local = outer(end),
        remote = outer(other),
        spi_out = 0x1000 + u32::from(end),
        spi_in = 0x1000 + u32::from(other),
        wan_mtu = kind.wan_mtu,
        tunnel = kind.tunnel,
        more = kind.more,
    )
}

/// Two gateways, each with a host behind it; they know each other.
pub struct Pair {
    pub a: Lab,
    pub b: Lab,
    pub host_a: Host,
    pub host_b: Host,
}

/// Hosts' addresses, from the first site's to the second's, of both versions.
pub const WAYS: [(&str, &str); 2] = [("10.1.0.9", "10.2.0.9"), ("2001:db8:1::9", "2001:db8:2::9")];

impl Pair {
    pub fn new(kind: Kind) -> Self {
        Self::of(&site(1, kind), &site(2, kind))
    }

    pub fn of(one: &str, other: &str) -> Self {
        let (mut a, mut b) = (Lab::new(one), Lab::new(other));
        let (host_a, host_b) = (a.host("lan", &[10], 9), b.host("lan", &[10], 8));
        a.meet(&host_a, "10.1.0.9", "10.1.0.1");
        a.meet(&host_a, "2001:db8:1::9", "2001:db8:1::1");
        b.meet(&host_b, "10.2.0.9", "10.2.0.1");
        b.meet(&host_b, "2001:db8:2::9", "2001:db8:2::1");
        a.announce();
        b.announce();
        let mut pair = Self { a, b, host_a, host_b };
        pair.ferry();
        pair.a.raw(0);
        pair.b.raw(0);
        // The first packet finds the way; from then on the two know each other.
        pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (1, 1), b"first").bytes());
        pair.ferry();
        pair.b.raw(0);
        pair.b.from(&pair.host_b, &udp("10.2.0.9", "10.1.0.9", (1, 1), b"first").bytes());
        pair.ferry();
        pair.a.raw(0);
        pair.a.dropped();
        pair.b.dropped();
        pair
    }

    pub fn ferry(&mut self) {
        ferry((&mut self.a, "wan"), (&mut self.b, "wan"));
    }

    /// What the first gateway has sent towards the second, taken off the line.
    pub fn sealed(&mut self) -> Vec<Frame> {
        self.a.raw(1).iter().map(|bytes| read_frame(bytes)).collect()
    }

    /// Seals one packet from the first site's host.
    pub fn seal(&mut self, packet: &[u8]) -> Frame {
        self.a.from(&self.host_a.clone(), packet);
        let mut frames = self.sealed();
        assert_eq!(frames.len(), 1, "{:?}", self.a.dropped());
        frames.remove(0)
    }

    /// The first gateway, as the second sees it on the line.
    pub fn line(&self) -> Host {
        let gateway = self.b.host("wan", &[100], 0);
        Host { mac: self.a.host("wan", &[100], 0).gateway, ..gateway }
    }
}

/// The packet after two gateways.
pub fn passed_twice(packet: &Ip) -> Vec<u8> {
    packet.clone().ttl(packet.ttl - 2).bytes()
}

pub fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// Divides a packet at these places, multiples of eight of what may be divided; of IPv6 with a fragment header.
pub fn divide(packet: &[u8], places: &[usize], identification: u32) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let header_len = if v6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    let body = &packet[header_len..];
    let mut ends: Vec<usize> = places.iter().copied().filter(|at| *at > 0 && *at < body.len()).collect();
    ends.push(body.len());
    let mut start = 0;
    let mut fragments = Vec::new();
    for end in ends {
        fragments.push(piece(packet, start, end, end < body.len(), identification));
        start = end;
    }
    fragments
}

/// Bytes `start` to `end` of what may be divided in a packet, as a fragment.
pub fn piece(packet: &[u8], start: usize, end: usize, more: bool, identification: u32) -> Vec<u8> {
    let v6 = packet[0] >> 4 == 6;
    if v6 {
        let mut header = packet[..40].to_vec();
        let len = (8 + end - start) as u16;
        header[4..6].copy_from_slice(&len.to_be_bytes());
        let next = std::mem::replace(&mut header[6], 44);
        let offset = start as u16 | u16::from(more);
        let extension = [&[next, 0][..], &offset.to_be_bytes(), &identification.to_be_bytes()].concat();
        return [header, extension, packet[40..][start..end].to_vec()].concat();
    }
    let header_len = usize::from(packet[0] & 15) * 4;
    let mut header = packet[..header_len].to_vec();
    header[2..4].copy_from_slice(&((header_len + end - start) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
    let flags = u16::from(more) << 13 | (start / 8) as u16;
    header[6..8].copy_from_slice(&flags.to_be_bytes());
    header[10..12].fill(0);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, packet[header_len..][start..end].to_vec()].concat()
}
