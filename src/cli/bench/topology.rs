//! The gateways of a benchmark, as configurations, and the flows between them.
//!
//! ```text
//! hosts ── router ── lan, VLAN 20 ── │ gateway │ ── wan, VLAN 100 ── │ peer │ ── lan, VLAN 20 ── router ── outside
//! 10.64/10 10.63.0.2    10.63.0.1/24 │         │ 192.0.2.1/30     .2 │      │     10.63.0.1/24
//! ```
//!
//! What is measured is the gateway. The peer seals what it opens, and opens what it sealed.

use std::{
    collections::HashMap,
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
};

use rand::RngCore;

use super::{
    profile::{Direction, Limited, Match, Ports, Profile},
    random::Random,
};
use crate::{
    config::{self, Config},
    wire::ethernet::MacAddr,
};

/// Number of the port towards the hosts.
pub const LAN: usize = 0;
/// Number of the port towards the peer.
pub const WAN: usize = 1;
/// VLANs of the ports.
pub const VLANS: [u16; 2] = [20, 100];
/// MAC addresses of a gateway's ports, and of the routers there.
pub const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
/// MAC addresses of the routers behind the ports.
pub const ROUTERS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 1, 1]), MacAddr([2, 0, 0, 0, 1, 2])];

/// The hosts' addresses: 10.64.0.0/10, and what they appear as: 100.64.0.0/10 (RFC 6598).
const HOSTS: u32 = 0x0A40_0000;
const TRANSLATED: u32 = 0x6440_0000;
/// The addresses of a source pool: the first 16 from here (RFC 5737).
pub const POOL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
const HOSTS_V6: u128 = 0x2001_0db8_0064_0000 << 64;
/// Prefixes outside, where there are few: of 198.18.0.0/15 (RFC 2544), or of an /8 that holds 65536.
const FEW: u32 = 0xC612_0000;
const MANY: u32 = 0x1400_0000;
/// Up to so many routes are written into the configuration; more go into the table as a routing daemon brings them.
const CONFIGURED_ROUTES: usize = 20_000;

/// Prefix lengths as in the IPv4 table of the Internet, in thousandths.
const LENGTHS: [(u8, usize); 10] =
    [(15, 3), (16, 16), (17, 8), (18, 14), (19, 26), (20, 45), (21, 52), (22, 113), (23, 103), (24, 620)];

/// A prefix, IPv4 or IPv6 by what the profile is; IPv4 addresses are in the low 32 bits.
pub type Prefix = (u128, u8);

/// Who talks to whom, as the gateway's VPC sees it before translation.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// The host of the VPC.
    pub host: u128,
    /// What the host appears as.
    pub appears: u128,
    /// Who is outside.
    pub outside: u128,
    /// The host's port.
    pub host_port: u16,
    /// The port outside.
    pub outside_port: u16,
}

/// What a profile means in addresses.
pub struct Topology {
    /// The profile.
    pub profile: Profile,
    /// Prefixes outside: of routes, or of policies that protect.
    pub outside: Vec<Prefix>,
    /// The flows.
    pub flows: Vec<Flow>,
    /// Whether the gateway's interfaces are VLANs. The peer's always are.
    pub tagged: bool,
    keys: std::cell::RefCell<HashMap<String, String>>,
}

impl Topology {
    /// The addresses and flows of a profile; the same every time.
    #[must_use]
    pub fn new(profile: &Profile) -> Self {
        let mut random = Random::new(1);
        let count = if profile.matching == Match::Protect { profile.policies } else { profile.routes };
        let outside = prefixes(profile, count, &mut random);
        let v6 = profile.version == 6;
        let flows = (0..profile.flows)
            .map(|n| {
                let (base, length) = outside.get(random.below(outside.len())).copied().unwrap_or_default();
                // Neither the first nor the last address of the prefix.
                let bits = if v6 { 64 } else { 32 - u32::from(length) };
                let host_bits = 1 + u128::from(random.word()) % ((1 << bits) - 2);
                let host = n % profile.hosts;
                let of = |base: u32| u128::from(base) + host as u128;
                Flow {
                    host: if v6 { HOSTS_V6 + 1 + host as u128 } else { of(HOSTS) },
                    appears: match (v6, profile.nat) {
                        (true, _) => HOSTS_V6 + 1 + host as u128,
                        (_, true) => of(TRANSLATED),
                        (_, false) => of(HOSTS),
                    },
                    outside: base | host_bits,
                    host_port: 1024 + (random.word() % 60_000) as u16,
                    outside_port: 53 + (random.word() % 60_000) as u16,
                }
            })
            .collect();
        Self { profile: profile.clone(), outside, flows, tagged: true, keys: std::cell::RefCell::default() }
    }

    /// Whether the routes stand in the configuration; otherwise they are to be put into the table.
    #[must_use]
    pub fn routes_are_configured(&self) -> bool {
        self.profile.routes <= CONFIGURED_ROUTES
    }

    /// The configuration of the gateway that is measured, with frames enough for `buffers`.
    ///
    /// # Errors
    /// A profile that makes no good configuration, in full.
    pub fn gateway(&self, buffers: usize) -> Result<Config, miette::Report> {
        let profile = &self.profile;
        let mut text = system(&self.profile, "gateway", buffers);
        if profile.pool {
            let _ = writeln!(text, "nat_sessions = {}", profile.flows.max(1024));
        }
        let _ = write!(
            text,
            "[gateway.vpc]\nprefixes = [{}]\n",
            if profile.version == 6 { "\"2001:db8:64::/48\"" } else { "\"10.64.0.0/10\"" }
        );
        ports(&mut text, profile, 1, profile.ways, self.tagged);
        self.tunnels(&mut text, ("192.0.2.1", "192.0.2.2"), ("A", "B"));
        self.limits(&mut text);
        if profile.nat {
            for host in 0..profile.hosts as u32 {
                let (original, translated) = (v4(HOSTS + host), v4(TRANSLATED + host));
                let _ = write!(
                    text,
                    "[[gateway.vpc.nat]]\nkind = \"local\"\noriginal = \"{original}\"\ntranslated = \"{translated}\"\n"
                );
            }
        }
        if profile.pool {
            let _ = write!(text, "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"{POOL}/28\"\n");
        }
        self.policies(&mut text);
        let mut route = |to: &str, hop: &str| {
            let _ = write!(text, "[[gateway.vpc.route]]\nto = \"{to}\"\n{hop}\n");
        };
        if profile.version == 6 {
            route("2001:db8:64::/48", "via = \"2001:db8:1::2\"");
        } else {
            route("10.64.0.0/10", "via = \"10.63.0.2\"");
        }
        if profile.matching == Match::Protect {
            route("0.0.0.0/0", "via = \"192.0.2.2\"");
        } else {
            // Of a large table, at least one for each way out.
            let some = if self.routes_are_configured() { self.outside.len() } else { profile.tunnels.max(1) };
            for (number, prefix) in self.outside.iter().take(some.max(profile.tunnels)).enumerate() {
                for way in 0..profile.ways {
                    route(&self.written(*prefix), &self.hop(number, way));
                }
                if profile.standby {
                    route(&self.written(*prefix), &format!("{}\npriority = 200", self.hop(number + 1, 0)));
                }
            }
            // With fewer routes than tunnels, the others get one that no packet takes.
            for number in self.outside.len()..profile.tunnels {
                route(&format!("{}/32", v4(0xCB00_7100 + number as u32)), &self.hop(number, 0));
            }
        }
        self.parse("gateway.toml", &text)
    }

    /// The configuration of the peer.
    ///
    /// # Errors
    /// As [`Topology::gateway`].
    pub fn peer(&self, buffers: usize) -> Result<Config, miette::Report> {
        let mut text = system(&self.profile, "peer", buffers);
        text.push_str("[gateway.vpc]\n");
        ports(&mut text, &self.profile, 2, 1, true);
        self.tunnels(&mut text, ("192.0.2.2", "192.0.2.1"), ("B", "A"));
        text.push_str("[[gateway.vpc.route]]\nto = \"0.0.0.0/0\"\nvia = \"10.63.0.2\"\n");
        let (base, share) = (if self.profile.nat { TRANSLATED } else { HOSTS }, self.share());
        for number in 0..self.profile.tunnels {
            let first = v4(base + number as u32 * share);
            let length = 32 - share.trailing_zeros();
            let _ =
                write!(text, "[[gateway.vpc.route]]\nto = \"{first}/{length}\"\ntunnel = \"t{number}\"\n");
        }
        self.parse("peer.toml", &text)
    }

    /// Hosts that each of the peer's tunnels is for: a power of two.
    fn share(&self) -> u32 {
        (self.profile.hosts.div_ceil(self.profile.tunnels.max(1)) as u32).next_power_of_two()
    }

    /// The tunnel that a flow's packets go through.
    #[must_use]
    pub fn tunnel_of(&self, flow: usize) -> usize {
        let Some(flow) = self.flows.get(flow) else { return 0 };
        let tunnels = self.profile.tunnels.max(1);
        if self.profile.direction == Direction::Open {
            return ((flow.host as u32).wrapping_sub(HOSTS) / self.share()) as usize % tunnels;
        }
        let bits = if self.profile.version == 6 { 128 } else { 32 };
        let of =
            |(base, length): &Prefix| (flow.outside ^ base).checked_shr(bits - u32::from(*length)) == Some(0);
        self.outside.iter().position(of).unwrap_or(0) % tunnels
    }

    /// Where way number `way` of route number `number` of the gateway leads.
    fn hop(&self, number: usize, way: usize) -> String {
        match self.profile.tunnels {
            0 if self.profile.version == 6 => "via = \"2001:db8:2::2\"".into(),
            0 => format!("via = \"192.0.{}.2\"", 2 + way),
            tunnels => format!("tunnel = \"t{}\"", number % tunnels),
        }
    }

    fn written(&self, (base, length): Prefix) -> String {
        if self.profile.version == 6 {
            format!("{}/{length}", Ipv6Addr::from_bits(base))
        } else {
            format!("{}/{length}", v4(base as u32))
        }
    }

    fn tunnels(&self, text: &mut String, (local, remote): (&str, &str), (out, into): (&str, &str)) {
        let spi = |way: &str, number| 0x1000 + 2 * number + usize::from(way == "B");
        for number in 0..self.profile.tunnels {
            let _ = write!(
                text,
                "[tunnel.t{number}]\ngateway = \"vpc\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
                 out = {{ spi = {}, key = {{ env = \"{out}{number}\" }} }}\n\
                 in = [{{ spi = {}, key = {{ env = \"{into}{number}\" }} }}]\n",
                spi(out, number),
                spi(into, number),
            );
        }
    }

    /// Limits that no traffic of a benchmark reaches.
    fn limits(&self, text: &mut String) {
        const RATE: &str = "in = \"400Gbps\"\nout = \"400Gbps\"\nburst = \"100MB\"\n";
        let profile = &self.profile;
        for limited in &profile.limits {
            let sections = match limited {
                Limited::Gateway => vec!["gateway.vpc.limit".to_string()],
                Limited::Interface => vec!["interface.lan.limit".into(), "interface.wan.limit".into()],
                Limited::Tunnel => (0..profile.tunnels).map(|n| format!("tunnel.t{n}.limit")).collect(),
                Limited::Address => {
                    let room = profile.hosts.max(16);
                    let _ = write!(text, "[gateway.vpc.address_limit]\n{RATE}addresses = {room}\n");
                    continue;
                }
            };
            for section in sections {
                let _ = write!(text, "[{section}]\n{RATE}");
            }
        }
    }

    fn policies(&self, text: &mut String) {
        let profile = &self.profile;
        let mut random = Random::new(2);
        for number in 0..profile.policies {
            let (action, rest) = match profile.matching {
                Match::Protect => {
                    let prefix = self.outside.get(number).copied().unwrap_or_default();
                    let tunnel = number % profile.tunnels.max(1);
                    (
                        "protect",
                        format!("tunnel = \"t{tunnel}\"\ndestination = [\"{}\"]", self.written(prefix)),
                    )
                }
                // As rules against some services are: they name them first or the destination too.
                Match::None if number == 0 => {
                    ("discard", "protocol = \"tcp\"\ndestination_port = 23".to_string())
                }
                Match::None if number == 1 => ("bypass", "protocol = \"icmp\"\nicmp = 8".to_string()),
                Match::None => {
                    let flow = self.flows.get(random.below(self.flows.len()));
                    let network = flow.map_or(0, |flow| flow.outside & !0xff);
                    let port = 1024 + random.below(60_000);
                    (
                        "discard",
                        format!(
                            "destination = [\"{}\"]\nprotocol = \"tcp\"\ndestination_port = {port}",
                            self.written((network, 24))
                        ),
                    )
                }
            };
            let _ = write!(text, "[[gateway.vpc.policy]]\naction = \"{action}\"\n{rest}\n");
        }
    }

    fn parse(&self, name: &str, text: &str) -> Result<Config, miette::Report> {
        let environment = |name: &str| Some(self.key(name));
        config::parse(std::path::Path::new(name), text, &environment)
            .map(|(config, _)| config)
            .map_err(miette::Report::new)
    }

    /// The key of this name, made at random when it is first asked for, as hexadecimal digits: key, then salt. Packets
    /// into tunnel `t0` are sealed with `B0`.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        let make = || {
            let mut bytes = vec![0; self.profile.key_bits / 8 + 4];
            rand::rng().fill_bytes(&mut bytes);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        self.keys.borrow_mut().entry(name.to_string()).or_insert_with(make).clone()
    }
}

fn v4(address: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(address)
}

fn system(profile: &Profile, name: &str, buffers: usize) -> String {
    let size = Ports::of(&profile.sizes).buffer;
    let buffers = buffers.next_power_of_two().max(1024);
    format!("[system]\nname = \"bench-{name}\"\nbuffers = {buffers}\nbuffer_size = {size}\n")
}

/// The ports and interfaces; `number` is the last number of the address on the wan, which has a prefix for each of the
/// `ways` that share.
fn ports(text: &mut String, profile: &Profile, number: u8, ways: usize, tagged: bool) {
    let mtu = Ports::of(&profile.sizes).mtu;
    let (lan, wan) = match profile.version {
        6 => ("2001:db8:1::1/64".to_string(), format!("2001:db8:2::{number}/64")),
        _ => {
            let wan: Vec<_> = (2..2 + ways).map(|way| format!("192.0.{way}.{number}/30")).collect();
            ("10.63.0.1/24".to_string(), wan.join("\", \""))
        }
    };
    for (name, vlan, side, address) in [("lan", VLANS[LAN], "local", lan), ("wan", VLANS[WAN], "peer", wan)] {
        let vlan = if tagged { vlan } else { 0 };
        let _ = write!(
            text,
            "[port.{name}]\ndriver = \"memory\"\nmtu = {mtu}\n[interface.{name}]\nport = \"{name}\"\nvlan = {vlan}\n\
             gateway = \"vpc\"\nside = \"{side}\"\naddresses = [\"{address}\"]\n"
        );
    }
}

/// Addresses that mean something else here: no prefix outside overlaps them.
const TAKEN: [(u32, u8); 7] = [
    (0x0A00_0000, 8),
    (0x6440_0000, 10),
    (0x7F00_0000, 8),
    (0xA9FE_0000, 16),
    (0xC000_0200, 24),
    (0xCB00_7100, 24),
    (0x0000_0000, 8),
];

fn prefixes(profile: &Profile, count: usize, random: &mut Random) -> Vec<Prefix> {
    if profile.version == 6 {
        let base = 0x2001_0db8_1000_0000_u128 << 64;
        return (0..count as u128).map(|n| (base + (n << 80), 48)).collect();
    }
    if count <= 32 {
        // As many /20 as 198.18.0.0/15 holds.
        return (0..count as u32).map(|n| (u128::from(FEW + (n << 12)), 20)).collect();
    }
    if count <= 1 << 16 {
        return (0..count as u32).map(|n| (u128::from(MANY + (n << 8)), 24)).collect();
    }
    let total = LENGTHS.iter().map(|(_, weight)| weight).sum();
    let mut found = std::collections::HashSet::with_capacity(count);
    let mut list = Vec::with_capacity(count);
    while list.len() < count {
        let mut left = random.below(total);
        let length = LENGTHS.iter().find(|(_, weight)| {
            let here = left < *weight;
            left = left.saturating_sub(*weight);
            here
        });
        let length = length.map_or(24, |(length, _)| *length);
        let base = (0x0100_0000 + random.below(0xDE00_0000) as u32) & (u32::MAX << (32 - length));
        let overlaps = |(other, other_length): &(u32, u8)| {
            let mask = u32::MAX << (32 - length.min(*other_length));
            base & mask == other & mask
        };
        if !TAKEN.iter().any(overlaps) && found.insert((base, length)) {
            list.push((u128::from(base), length));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_every_direction_make_good_configurations() {
        for name in [
            "forward-16",
            "forward-ecmp",
            "v6-forward",
            "seal-1024",
            "seal-standby",
            "open-1",
            "spd-100",
            "limit-all",
            "gateway",
        ] {
            let profile = super::super::profile::named(name).unwrap().unwrap();
            let topology = Topology::new(&profile);
            topology.gateway(1024).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            if profile.direction != Direction::Forward {
                topology.peer(1024).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            }
        }
    }
}
