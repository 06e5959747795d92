//! Packets for tests, made and read without the code under test: checksums are summed the slow way.

use std::net::IpAddr;

pub type Mac = [u8; 6];
/// Tags of a frame: TPID and TCI of each, outermost first.
pub type Tagged = Vec<(u16, u16)>;

pub const BROADCAST: Mac = [0xff; 6];
pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const CUSTOMER: u16 = 0x8100;
pub const SERVICE: u16 = 0x88a8;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ESP: u8 = 50;
pub const ICMPV6: u8 = 58;

/// The Internet checksum (RFC 1071), word by word.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The checksum over pseudo-header and `l4`, whose own checksum field must be zero.
pub fn transport_checksum(src: IpAddr, dst: IpAddr, proto: u8, l4: &[u8]) -> u16 {
    let mut all = [octets(src), octets(dst)].concat();
    match src {
        IpAddr::V4(_) => all.extend_from_slice(&[0, proto, (l4.len() >> 8) as u8, l4.len() as u8]),
        IpAddr::V6(_) => {
            all.extend_from_slice(&(l4.len() as u32).to_be_bytes());
            all.extend_from_slice(&[0, 0, 0, proto]);
        }
    }
    all.extend_from_slice(l4);
    checksum(&all)
}

/// Where the checksum stands in a transport header.
pub fn checksum_at(proto: u8) -> Option<usize> {
    match proto {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// An IP packet to be: change what matters, then take its [`Ip::bytes`].
#[derive(Debug, Clone)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub df: bool,
    pub id: u16,
    pub more: bool,
    /// In bytes.
    pub offset: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    pub proto: u8,
    /// Transport header and payload.
    pub payload: Vec<u8>,
}

/// A packet between two addresses of one family.
pub fn ip(src: &str, dst: &str, proto: u8, payload: &[u8]) -> Ip {
    Ip {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        ttl: 64,
        tos: 0,
        df: false,
        id: 0x1234,
        more: false,
        offset: 0,
        options: Vec::new(),
        proto,
        payload: payload.to_vec(),
    }
}

/// Fills in the checksum of `l4`.
fn filled(mut packet: Ip) -> Ip {
    if let Some(at) = checksum_at(packet.proto) {
        let sum = match packet.proto {
            ICMP => checksum(&packet.payload),
            proto => transport_checksum(packet.src, packet.dst, proto, &packet.payload),
        };
        let sum = if sum == 0 && packet.proto == UDP { 0xffff } else { sum };
        packet.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

pub fn udp(src: &str, dst: &str, ports: (u16, u16), data: &[u8]) -> Ip {
    let mut l4 = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    l4.extend_from_slice(&(8 + data.len() as u16).to_be_bytes());
    l4.extend_from_slice(&[0, 0]);
    l4.extend_from_slice(data);
    filled(ip(src, dst, UDP, &l4))
}

pub fn tcp(src: &str, dst: &str, ports: (u16, u16), data: &[u8]) -> Ip {
    let mut l4 = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    l4.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    l4.extend_from_slice(data);
    filled(ip(src, dst, TCP, &l4))
}

/// An ICMP message of either version: type, code, the second word, and the rest.
pub fn icmp(src: &str, dst: &str, kind: u8, code: u8, word: [u8; 4], body: &[u8]) -> Ip {
    let mut l4 = vec![kind, code, 0, 0];
    l4.extend_from_slice(&word);
    l4.extend_from_slice(body);
    let proto = if src.contains(':') { ICMPV6 } else { ICMP };
    filled(ip(src, dst, proto, &l4))
}

pub fn ping(src: &str, dst: &str, sequence: u16) -> Ip {
    let [high, low] = sequence.to_be_bytes();
    let kind = if src.contains(':') { 128 } else { 8 };
    icmp(src, dst, kind, 0, [0x12, 0x34, high, low], b"abcdefghijklmnopqrstuvwxyz012345")
}

impl Ip {
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }
    pub fn df(self) -> Self {
        Self { df: true, ..self }
    }
    pub fn options(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    /// The packet's bytes, with a right header checksum.
    pub fn bytes(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header_len = 20 + self.options.len();
                let total = (header_len + self.payload.len()) as u16;
                let flags = u16::from(self.df) << 14 | u16::from(self.more) << 13 | self.offset / 8;
                let mut header = vec![0x40 | (header_len / 4) as u8, self.tos];
                for word in [total, self.id, flags] {
                    header.extend_from_slice(&word.to_be_bytes());
                }
                header.extend_from_slice(&[self.ttl, self.proto, 0, 0]);
                header.extend_from_slice(&src.octets());
                header.extend_from_slice(&dst.octets());
                header.extend_from_slice(&self.options);
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [header, self.payload.clone()].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut header = (0x6000_0000 | u32::from(self.tos) << 20).to_be_bytes().to_vec();
                header.extend_from_slice(&(self.payload.len() as u16).to_be_bytes());
                header.extend_from_slice(&[self.proto, self.ttl]);
                header.extend_from_slice(&src.octets());
                header.extend_from_slice(&dst.octets());
                [header, self.payload.clone()].concat()
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// The packet as a router passes it on: one less of TTL.
    pub fn forwarded(&self) -> Vec<u8> {
        self.clone().ttl(self.ttl - 1).bytes()
    }

    /// The packet with other addresses and right checksums: what a translator makes of it.
    pub fn readdressed(&self, src: &str, dst: &str) -> Self {
        let mut packet = self.clone();
        (packet.src, packet.dst) = (src.parse().unwrap(), dst.parse().unwrap());
        if let Some(at) = checksum_at(packet.proto) {
            // A UDP datagram without a checksum stays without.
            if packet.proto == UDP && packet.payload[at..at + 2] == [0, 0] {
                return packet;
            }
            packet.payload[at..at + 2].fill(0);
        }
        filled(packet)
    }

    /// Reads a packet's bytes, and checks every checksum in it (of whole packets, not of fragments).
    pub fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let packet = match bytes[0] >> 4 {
            4 => {
                let header_len = usize::from(bytes[0] & 15) * 4;
                assert_eq!(checksum(&bytes[..header_len]), 0, "IPv4 header checksum of {bytes:02x?}");
                let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
                Self {
                    src: address(12),
                    dst: address(16),
                    ttl: bytes[8],
                    tos: bytes[1],
                    df: word(6) & 0x4000 != 0,
                    id: word(4),
                    more: word(6) & 0x2000 != 0,
                    offset: (word(6) & 0x1fff) * 8,
                    options: bytes[20..header_len].to_vec(),
                    proto: bytes[9],
                    payload: bytes[header_len..usize::from(word(2))].to_vec(),
                }
            }
            6 => {
                let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
                Self {
                    src: address(8),
                    dst: address(24),
                    ttl: bytes[7],
                    tos: (word(0) >> 4) as u8,
                    df: true,
                    id: 0,
                    more: false,
                    offset: 0,
                    options: Vec::new(),
                    proto: bytes[6],
                    payload: bytes[40..40 + usize::from(word(4))].to_vec(),
                }
            }
            version => panic!("IP version {version}"),
        };
        packet.check();
        packet
    }

    fn check(&self) {
        let Some(at) = checksum_at(self.proto) else { return };
        if self.more || self.offset > 0 || self.proto == UDP && self.payload[at..at + 2] == [0, 0] {
            return;
        }
        let sum = match self.proto {
            ICMP => checksum(&self.payload),
            proto => transport_checksum(self.src, self.dst, proto, &self.payload),
        };
        assert_eq!(sum, 0, "transport checksum of {self:02x?}");
    }
}

/// A frame.
pub fn frame(dst: Mac, src: Mac, tags: &[(u16, u16)], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [dst, src].concat();
    for (tpid, tci) in tags {
        bytes.extend_from_slice(&tpid.to_be_bytes());
        bytes.extend_from_slice(&tci.to_be_bytes());
    }
    bytes.extend_from_slice(&ether_type.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame, taken apart. What stands behind an IP packet must be zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub dst: Mac,
    pub src: Mac,
    pub tags: Tagged,
    pub ether_type: u16,
    pub payload: Vec<u8>,
}

pub fn read_frame(bytes: &[u8]) -> Frame {
    assert!(bytes.len() >= 60, "a frame of {} bytes", bytes.len());
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (mut at, mut tags) = (12, Vec::new());
    while matches!(word(at), CUSTOMER | SERVICE) {
        tags.push((word(at), word(at + 2)));
        at += 4;
    }
    let ether_type = word(at);
    let mut payload = bytes[at + 2..].to_vec();
    let len = match ether_type {
        IPV4 => usize::from(u16::from_be_bytes([payload[2], payload[3]])),
        IPV6 => 40 + usize::from(u16::from_be_bytes([payload[4], payload[5]])),
        ARP => 28,
        _ => payload.len(),
    };
    assert!(payload[len..].iter().all(|byte| *byte == 0), "padding is not zeros: {bytes:02x?}");
    payload.truncate(len);
    Frame {
        dst: bytes[..6].try_into().unwrap(),
        src: bytes[6..12].try_into().unwrap(),
        tags,
        ether_type,
        payload,
    }
}

/// An ARP packet for IPv4 over Ethernet.
pub fn arp(operation: u8, sender: (Mac, &str), target: (Mac, &str)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [sender, target] {
        bytes.extend_from_slice(&mac);
        bytes.extend_from_slice(&octets(address.parse().unwrap()));
    }
    bytes
}

/// A neighbour solicitation (135) or advertisement (136) with its option (RFC 4861 4.3, 4.4).
pub fn discovery(kind: u8, flags: u8, target: &str, mac: Option<Mac>, from: &str, to: &str) -> Ip {
    let mut body = octets(target.parse().unwrap());
    if let Some(mac) = mac {
        body.extend_from_slice(&[if kind == 135 { 1 } else { 2 }, 1]);
        body.extend_from_slice(&mac);
    }
    icmp(from, to, kind, 0, [flags, 0, 0, 0], &body).ttl(255)
}
