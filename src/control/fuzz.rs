//! What fuzzers and property tests throw at a gateway: any bytes are a story of frames that come in.
//!
//! Nothing here is part of a running gateway. A story is read byte by byte (see `Story`), so that a fuzzer's small
//! changes are small changes of what happens: frames of random bytes, good frames with bytes changed, ESP packets that
//! open and have anything in them, and time.

use std::{net::Ipv4Addr, path::Path};

use super::{ports::derived_mac, single::Single};
use crate::{
    config::{
        self, Config,
        build::{self, Ephemeral, Kept},
    },
    crypto::aead::{self, Aad, Backend, Job, Key},
    io::mem::{MemPort, wire},
    table::{hash::Seed, neighbour::NeighbourTable},
    wire::{
        arp, esp,
        ethernet::{EtherType, MacAddr},
        ip::protocol,
        ipv4, ipv6,
        vlan::{L2Header, Tag, TagKind, Tags, VlanId},
    },
};

/// A gateway with something of everything.
pub const CONFIG: &str = r#"
[system]
name = "fuzz"
buffers = 256
huge_pages = "never"
[port.lan]
driver = "memory"
ring = 64
[port.wan]
driver = "memory"
ring = 64
[gateway.g]
prefixes = ["10.1.0.0/16", "2001:db8:1::/48"]
transit = false
nat_sessions = 64
nat_sessions_per_source = 40
[interface.lan]
port = "lan"
vlan = 10
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.stacked]
port = "lan"
vlan = { outer = 200, inner = 7 }
gateway = "g"
side = "local"
mtu = 576
addresses = ["10.1.2.1/24"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
mtu = 1300
addresses = ["192.0.2.1/29", "2001:db8:ff::1/64"]
[tunnel.t]
gateway = "g"
local = "192.0.2.1"
remote = "192.0.2.2"
replay_window = 64
out = { spi = 0x1001, key = { env = "1" } }
in = [{ spi = 0x2001, key = { env = "2" } }]
[tunnel.u]
gateway = "g"
local = "2001:db8:ff::1"
remote = "2001:db8:ff::2"
encapsulation = "udp"
esn = false
out = { spi = 0x1002, key = { env = "3" } }
in = [{ spi = 0x2002, key = { env = "4" } }]
[[gateway.g.nat]]
kind = "local"
original = "10.1.4.0/24"
translated = "203.0.113.0/24"
[[gateway.g.nat]]
kind = "peer"
original = "10.7.0.0/24"
translated = "198.51.100.0/24"
[[gateway.g.nat]]
kind = "port"
protocol = "udp"
original = "10.1.0.9"
translated = "203.0.114.9"
translated_port = 53
[[gateway.g.nat]]
kind = "local"
original = "10.1.2.9"
translated = "203.0.114.10"
protocol = "tcp"
destination_port = "0-32767"
[[gateway.g.nat]]
kind = "pool"
original = "10.1.2.0/24"
translated = "203.0.114.0/30"
ports = "1024-1055"
[[gateway.g.policy]]
action = "protect"
tunnel = "t"
source = ["10.1.0.0/16"]
destination = ["10.2.0.0/16"]
[[gateway.g.policy]]
action = "discard"
protocol = "tcp"
destination_port = 23
[[gateway.g.route]]
to = "10.3.0.0/16"
tunnel = "u"
[[gateway.g.route]]
to = "2001:db8:3::/48"
tunnel = "t"
[[gateway.g.route]]
to = "10.7.0.0/16"
via = "192.0.2.3"
[[gateway.g.route]]
to = "10.9.0.0/16"
gateway = "other"
[[gateway.g.route]]
to = "10.8.0.0/16"
blackhole = true
[gateway.other]
[interface.untagged]
port = "wan"
gateway = "other"
side = "peer"
addresses = ["10.9.0.1/24", "2001:db8:9::1/64"]
[[gateway.other.route]]
to = "10.1.0.0/16"
gateway = "g"
"#;

/// The key that variable `name` of [`CONFIG`] holds, with its salt.
fn secret(name: &str) -> Vec<u8> {
    let first = name.as_bytes().first().copied().unwrap_or(0);
    (0..20).map(|i| first.wrapping_mul(31).wrapping_add(i)).collect()
}

fn environment(name: &str) -> Option<String> {
    Some(secret(name).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Bytes that tell what happens. Where they end, all that follows is zero.
struct Story<'a>(&'a [u8]);

impl Story<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.min(self.0.len())).map(|_| self.byte()).collect()
    }

    /// One of `list`.
    fn choose<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.byte()) % list.len()]
    }

    /// Changes some bytes, and the end.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.byte() % 8 {
            let (at, value) = (usize::from(self.word()), self.byte());
            let len = bytes.len();
            if let Some(byte) = bytes.get_mut(at % len.max(1)) {
                *byte ^= value;
            }
        }
        match self.byte() {
            0..=31 => bytes.truncate(usize::from(self.word()) % (bytes.len() + 1)),
            32..=63 => bytes.resize(bytes.len() + usize::from(self.byte()), 0x5a),
            _ => {}
        }
    }
}

const SOURCES: [[u8; 4]; 8] = [
    [10, 1, 2, 9],
    [10, 1, 0, 9],
    [10, 1, 4, 9],
    [10, 2, 0, 9],
    [10, 3, 0, 9],
    [10, 7, 0, 9],
    [192, 0, 2, 2],
    [10, 9, 0, 9],
];
const DESTINATIONS: [[u8; 4]; 12] = [
    [203, 0, 114, 1],
    [203, 0, 114, 9],
    [10, 2, 0, 9],
    [10, 1, 0, 9],
    [203, 0, 113, 9],
    [198, 51, 100, 9],
    [10, 3, 0, 9],
    [10, 7, 0, 9],
    [10, 9, 0, 9],
    [10, 1, 0, 1],
    [192, 0, 2, 1],
    [10, 1, 2, 9],
];
const SOURCES_V6: [u128; 3] =
    [0x2001_0db8_0001 << 80 | 9, 0x2001_0db8_00ff << 80 | 2, 0x2001_0db8_0003 << 80 | 9];
const DESTINATIONS_V6: [u128; 5] = [
    0x2001_0db8_0003 << 80 | 9,
    0x2001_0db8_0001 << 80 | 9,
    0x2001_0db8_0001 << 80 | 1,
    0x2001_0db8_00ff << 80 | 1,
    0xff02 << 112 | 0x1_ff00_0001,
];

/// An IP packet that is good as far as its header goes.
fn packet(story: &mut Story<'_>) -> Vec<u8> {
    let proto =
        story.choose(&[protocol::UDP, protocol::TCP, protocol::ICMPV4, protocol::ICMPV6, protocol::ESP, 99]);
    let len = usize::from(story.choose(&[8_u16, 20, 28, 64, 300, 1272, 1400, 1480]));
    let written = usize::from(story.byte() % 64);
    let mut payload = story.bytes(written);
    payload.resize(len, 0);
    if story.byte().is_multiple_of(4) {
        // ICMP errors quote a packet.
        payload.splice(..0, [story.choose(&[3, 11, 1, 2]), story.byte() % 5, 0, 0, 0, 0, 0, 0]);
        if let Some(quote) = payload.get_mut(8..).filter(|_| story.byte().is_multiple_of(2)) {
            let header = v4_header(story, quote.len(), protocol::UDP);
            quote.iter_mut().zip(header).for_each(|(to, from)| *to = from);
        }
        payload.truncate(1480);
    }
    if story.byte().is_multiple_of(3) {
        let mut header = [0; ipv6::HEADER_LEN];
        let repr = ipv6::Repr {
            traffic_class: story.byte(),
            flow_label: 0,
            payload_len: payload.len() as u16,
            next_header: proto,
            hop_limit: story.choose(&[64, 255, 1]),
            source: story.choose(&SOURCES_V6).into(),
            destination: story.choose(&DESTINATIONS_V6).into(),
        };
        repr.emit(&mut header);
        return [&header[..], &payload].concat();
    }
    [&v4_header(story, payload.len(), proto)[..], &payload].concat()
}

fn v4_header(story: &mut Story<'_>, payload_len: usize, protocol: u8) -> [u8; ipv4::HEADER_LEN] {
    let mut header = [0; ipv4::HEADER_LEN];
    let flags = story.byte();
    let repr = ipv4::Repr {
        traffic_class: story.byte(),
        total_len: (ipv4::HEADER_LEN + payload_len) as u16,
        identification: story.word(),
        dont_fragment: flags & 1 > 0,
        more_fragments: flags & 0xe == 2,
        fragment_offset: if flags & 0x70 == 0x10 { 800 } else { 0 },
        ttl: story.choose(&[64, 255, 2, 1]),
        protocol,
        source: story.choose(&SOURCES).into(),
        destination: story.choose(&DESTINATIONS).into(),
    };
    repr.emit(&mut header);
    header
}

/// A packet sealed for one of the tunnels, so that it opens, whatever is in it.
fn sealed(story: &mut Story<'_>, keys: &[Key; 2]) -> Vec<u8> {
    let mut inner = packet(story);
    story.spoil(&mut inner);
    inner.truncate(1400);
    let first = story.byte().is_multiple_of(2);
    let (spi, key) = if first { (0x2001, &keys[0]) } else { (0x2002, &keys[1]) };
    let sequence = u64::from(story.word());
    let next_header =
        story.choose(&[protocol::IPV4, protocol::IPV4, protocol::IPV6, protocol::NO_NEXT_HEADER]);
    let len = inner.len();
    let mut text = inner;
    text.resize(len + esp::padding(len) + esp::TRAILER_LEN + esp::ICV_LEN, 0);
    let _ = esp::write_trailer(&mut text, len, next_header);
    if story.byte().is_multiple_of(8) {
        let behind = text.len() - esp::ICV_LEN - 2;
        text[behind] ^= story.byte();
    }
    let aad = if first { Aad::esn(spi, sequence) } else { Aad::new(spi, sequence as u32) };
    aead::seal(&mut [Job::new(key, sequence.to_be_bytes(), aad, &mut text)]);
    let mut body =
        [&spi.to_be_bytes()[..], &(sequence as u32).to_be_bytes(), &sequence.to_be_bytes(), &text].concat();
    if first {
        let mut header = [0; ipv4::HEADER_LEN];
        let repr = ipv4::Repr {
            traffic_class: story.byte(),
            total_len: (ipv4::HEADER_LEN + body.len()) as u16,
            identification: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            protocol: protocol::ESP,
            source: Ipv4Addr::new(192, 0, 2, 2),
            destination: Ipv4Addr::new(192, 0, 2, 1),
        };
        repr.emit(&mut header);
        return [&header[..], &body].concat();
    }
    let udp_len = (8 + body.len() as u16).to_be_bytes();
    body.splice(..0, [0x11, 0x94, 0x11, 0x94, udp_len[0], udp_len[1], 0, 0]);
    let mut header = [0; ipv6::HEADER_LEN];
    let repr = ipv6::Repr {
        traffic_class: story.byte(),
        flow_label: 0,
        payload_len: body.len() as u16,
        next_header: protocol::UDP,
        hop_limit: 64,
        source: (0x2001_0db8_00ff_u128 << 80 | 2).into(),
        destination: (0x2001_0db8_00ff_u128 << 80 | 1).into(),
    };
    repr.emit(&mut header);
    [&header[..], &body].concat()
}

/// A frame for one of the interfaces.
fn frame(story: &mut Story<'_>, port: usize, macs: &[MacAddr], kind: EtherType, payload: &[u8]) -> Vec<u8> {
    let tag = |kind, id| Tag::new(kind, VlanId::new(id).unwrap_or(VlanId::UNTAGGED), 0, false);
    let (customer, service) = (TagKind::Customer, TagKind::Service);
    let tags = match (port, story.byte() % 8) {
        (0, 0..=1) => Tags::Two(tag(service, 200), tag(customer, 7)),
        (0, _) => Tags::One(tag(customer, 10)),
        (_, 0..=1) => Tags::None,
        _ => Tags::One(tag(customer, 100)),
    };
    let to = if story.byte().is_multiple_of(16) { MacAddr::BROADCAST } else { macs[port] };
    let header = L2Header::new(to, MacAddr([2, 0, 0, 0, 0xee, port as u8]), tags, kind);
    [header.as_bytes(), payload].concat()
}

fn config_of(text: &str) -> Option<Config> {
    config::parse(Path::new("/fuzz/fuzz.toml"), text, &environment).ok().map(|(config, _)| config)
}

/// Lets happen what `bytes` tell, and checks after each event that every packet and every frame is accounted for.
///
/// # Panics
/// Where one is not. Any other panic is a bug as well.
pub fn path(bytes: &[u8]) {
    let Some(config) = config_of(CONFIG) else { panic!("the fuzzed configuration is bad") };
    let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
    let (ports, ends): (Vec<MemPort>, Vec<MemPort>) = config.ports.iter().map(|_| wire(64)).unzip();
    let single = Single::new(&config, &macs, &mut Ephemeral::default(), Seed::new(1, 2), |_| ports);
    let mut single = single.unwrap_or_else(|error| panic!("{error}"));
    let keys = ["2", "4"].map(|name| {
        let secret = secret(name);
        let salt = [secret[16], secret[17], secret[18], secret[19]];
        Key::new(Backend::Reference, &secret[..16], salt).unwrap_or_else(|error| panic!("{error}"))
    });
    let mut story = Story(bytes);
    let mut now = 1_000_000_000;
    let mut events = 0;
    while !story.0.is_empty() && events < 256 {
        events += 1;
        let what = story.byte();
        let port = usize::from(what >> 7);
        let bytes = match what % 16 {
            0..=1 => story.bytes(usize::from(what & 0x70) * 2 + 14),
            2 => {
                now += u64::from(story.byte()) * 20_000_000;
                Vec::new()
            }
            3 => {
                let own = story.choose(&[[10, 1, 0, 1], [192, 0, 2, 1], [10, 9, 0, 1]]);
                let mac = MacAddr([2, 0, 0, 0, 0xee, port as u8]);
                let mut packet = arp::Repr::request(mac, story.choose(&SOURCES).into(), own.into());
                if story.byte().is_multiple_of(2) {
                    packet = packet.reply(mac);
                }
                let mut body = [0; arp::PACKET_LEN];
                packet.emit(&mut body);
                let mut bytes = frame(&mut story, port, &macs, EtherType::ARP, &body);
                story.spoil(&mut bytes);
                bytes
            }
            other => {
                let inner = if other < 8 { sealed(&mut story, &keys) } else { packet(&mut story) };
                let kind = if inner.first().is_some_and(|b| b >> 4 == 6) {
                    EtherType::IPV6
                } else {
                    EtherType::IPV4
                };
                let mut bytes = frame(&mut story, if other < 8 { 1 } else { port }, &macs, kind, &inner);
                if other >= 12 {
                    story.spoil(&mut bytes);
                }
                bytes.truncate(1700);
                let port = if other < 8 { 1 } else { port };
                assert!(ends[port].send(&bytes), "the wire is full");
                Vec::new()
            }
        };
        if !bytes.is_empty() {
            assert!(ends[port].send(&bytes), "the wire is full");
        }
        single.settle(now, 1_000);
        let ledger = single.worker.ledger();
        assert!(ledger.balances(), "{ledger:?}");
        assert_eq!(single.worker.frames_missing(), 0);
        for end in &ends {
            while end.receive().is_some() {}
        }
    }
    single.settle(now + 5_000_000_000, 1_000);
    single.worker.end(now + 5_000_000_000);
    let ledger = single.worker.ledger();
    assert!(ledger.balances() && ledger.waiting == 0, "{ledger:?}");
    let pool = single.worker.pool_mut();
    assert_eq!(pool.available(), pool.owned());
}

/// Reads a configuration; builds its tables where it is good, and words its errors where it is not. Says whether there
/// are tables now.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match config::parse(Path::new("/fuzz/fuzz.toml"), text, &environment) {
        Ok((config, _)) => {
            let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
            let (table, writer) = NeighbourTable::new(1024, Seed::new(1, 2));
            let mut kept = Kept::new(writer, 1, Seed::new(1, 2));
            let built = build::build(&config, &macs, &mut kept, &mut Ephemeral::default(), 0);
            drop(table);
            built.is_ok()
        }
        Err(errors) => {
            drop((errors.to_json(), format!("{errors:?}")));
            false
        }
    }
}
