//! What a gateway does with one packet, and what decides it.
//!
//! The packet really goes through the pipeline: that of a gateway of its own, with tables built from the configuration
//! as for any other, over ports in memory. Nothing reaches a network, and no sequence number of a state file is used.
//! What is told is what that run shows: drops, counters that moved, the packet's metadata, frames that came out. What
//! the run does not name, such as the prefix of a route, is looked up in the same tables.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde_json::{Value, json};
use thiserror::Error;

use super::{
    ports::derived_mac,
    replay::counters,
    single::{Single, SingleError},
};
use crate::{
    config::{Action, Config, HugePages, NatKind, Prefix, Side, Span, Vlan, build::Ephemeral},
    io::mem::{MemPort, wire},
    packet::{DropReason, Flags, Meta, NatMarks, meta::NO_INTERFACE},
    stats::counters::group,
    table::{hash::Seed, neighbour::NeighbourState, tables::NextHop},
    wire::{
        checksum::Sum,
        esp,
        ethernet::{EtherType, MacAddr},
        icmpv6,
        ip::protocol,
        ipv4, ipv6,
        vlan::{L2Header, Tag, TagKind, Tags, VlanId},
    },
};

/// What the gateway's clock shows all the time.
const NOW: u64 = 1_000_000_000;
/// Of all hashes: the same packet gets the same answer each time.
const SEED: Seed = Seed::new(0x6361_7573_6577_6179, 0x6578_706c_6169_6e31);
/// Frames that a port holds.
const QUEUE: usize = 64;
/// Rounds for what follows from the packet. Three without work end it.
const ROUNDS: usize = 64;
/// Gateways that a packet may enter, and neighbours that it may need one after the other.
const MOST: usize = 16;
/// The station that the packet comes from.
const SENDER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
/// Every neighbour.
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

/// Where a packet comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// By this interface.
    Interface(String),
    /// Into this gateway, by the first interface of this side in the file.
    Gateway(String, Side),
}

/// What stands behind the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing that is looked at.
    Opaque,
    /// Source and destination port of TCP or UDP.
    Ports(u16, u16),
    /// Type and code of ICMP.
    Icmp(u8, u8),
}

/// A packet to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes; of the same IP version.
    pub destination: IpAddr,
    /// The protocol above IP.
    pub protocol: u8,
    /// What the protocol says.
    pub content: Content,
    /// Where it comes in.
    pub entry: Entry,
    /// Bytes of the IP packet; where there is none, as few as the protocol takes and some data.
    pub size: Option<u16>,
    /// IPv4: it may not be fragmented.
    pub dont_fragment: bool,
    /// TTL or hop limit as it comes in.
    pub ttl: u8,
}

/// Why nothing can be said about a packet.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The tables cannot be built.
    #[error(transparent)]
    Single(#[from] SingleError),
    /// The configuration has no such thing.
    #[error("the file has no {kind} {name:?}. There are: {all}")]
    Unknown {
        /// Interface or gateway.
        kind: &'static str,
        /// As it was asked for.
        name: String,
        /// Names there are.
        all: String,
    },
    /// The gateway has no interface on that side.
    #[error(
        "gateway {gateway} has no interface on its {side} side: say by which interface, with \"on NAME\""
    )]
    NoInterface {
        /// The gateway.
        gateway: String,
        /// The side.
        side: &'static str,
    },
    /// No packet is of this size.
    #[error(
        "a packet of {size} bytes cannot be: {least} is the least that its headers take, {most} what port {port} takes"
    )]
    Size {
        /// As it was asked for.
        size: usize,
        /// Bytes of its headers.
        least: usize,
        /// The port's MTU.
        most: usize,
        /// The port.
        port: String,
    },
}

/// One thing that decides about the packet, or that happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The part of the pipeline: `arrive`, `local`, `policy-in`, `nat`, `policy`, `route`, `tunnel`, `leave`, `answer`.
    pub stage: &'static str,
    /// In words.
    pub text: String,
    /// The same, to be read by programs.
    pub details: Value,
}

/// A frame that came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The port.
    pub port: String,
    /// VLAN tags, outermost first.
    pub vlans: Vec<u16>,
    /// Bytes of the IP packet.
    pub size: usize,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol above IP.
    pub protocol: u8,
    /// Ports, where the protocol is TCP or UDP and they are there.
    pub ports: Option<(u16, u16)>,
    /// Type and code, where it is ICMP.
    pub icmp: Option<(u8, u8)>,
    /// What names the security association, where it is sealed.
    pub spi: Option<u32>,
    /// The frame.
    pub frame: Vec<u8>,
}

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves by this port.
    Forwarded {
        /// The port.
        port: String,
    },
    /// The gateway answers it itself.
    Answered {
        /// The port that the answer leaves by.
        port: String,
    },
    /// It is dropped. Where frames came out all the same, they tell the sender.
    Dropped {
        /// Why.
        reason: DropReason,
        /// The counter's row: the interface it came by.
        row: String,
    },
    /// It waits in the gateway: a fragment, for others.
    Waits,
}

/// The answer.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// How it ends.
    pub verdict: Verdict,
    /// Frames that came out: the packet, its fragments, or an error for its sender.
    pub sent: Vec<Sent>,
    /// The frame that went in, and the number of the port that it went in by.
    pub received: (usize, Vec<u8>),
}

/// Takes the packet through the gateway of `config`. `text` is the file, for numbers of lines.
///
/// # Errors
/// [`ExplainError`].
pub fn explain(config: &Config, packet: &Packet, text: Option<&str>) -> Result<Explanation, ExplainError> {
    let place = interface(config, &packet.entry)?;
    let run = Run::new(config, packet, place)?;
    Ok(Teller { config, packet, place, text, run, steps: Vec::new() }.tell())
}

fn interface(config: &Config, entry: &Entry) -> Result<usize, ExplainError> {
    let listed = |names: Vec<&str>| if names.is_empty() { "none".into() } else { names.join(", ") };
    match entry {
        Entry::Interface(name) => {
            let names = || config.interfaces.iter().map(|interface| interface.name.value.as_str());
            names().position(|known| known == name).ok_or_else(|| ExplainError::Unknown {
                kind: "interface",
                name: name.clone(),
                all: listed(names().collect()),
            })
        }
        Entry::Gateway(name, side) => {
            let names = || config.gateways.iter().map(|gateway| gateway.name.value.as_str());
            let gateway = names().position(|known| known == name).ok_or_else(|| ExplainError::Unknown {
                kind: "gateway",
                name: name.clone(),
                all: listed(names().collect()),
            })?;
            let is_it = |i: &crate::config::Interface| i.gateway.value.0 == gateway && *i.side == *side;
            config
                .interfaces
                .iter()
                .position(is_it)
                .ok_or_else(|| ExplainError::NoInterface { gateway: name.clone(), side: side.as_str() })
        }
    }
}

/// The IP packet.
fn bytes(packet: &Packet, most: usize, port: &str) -> Result<Vec<u8>, ExplainError> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    let (transport, data) = match (packet.content, packet.protocol) {
        (Content::Ports(..), protocol::TCP) => (20, 0),
        (Content::Ports(..) | Content::Icmp(..), _) => (8, 32),
        (Content::Opaque, _) => (0, 32),
    };
    let least = header + transport;
    let size = packet.size.map_or(least + data, usize::from);
    if size < least || size > most {
        return Err(ExplainError::Size { size, least, most, port: port.into() });
    }
    let length = size - header;
    let mut payload = vec![0; length];
    let at = match packet.content {
        Content::Ports(source, destination) => {
            payload[..2].copy_from_slice(&source.to_be_bytes());
            payload[2..4].copy_from_slice(&destination.to_be_bytes());
            if packet.protocol == protocol::TCP {
                // A connection that opens.
                (payload[7], payload[12], payload[13], payload[14]) = (1, 0x50, 0x02, 0xff);
                Some(16)
            } else {
                payload[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                Some(6)
            }
        }
        Content::Icmp(kind, code) => {
            payload[..2].copy_from_slice(&[kind, code]);
            // An identifier and a sequence number, where it is a query.
            (payload[5], payload[7]) = (1, 1);
            Some(2)
        }
        Content::Opaque => None,
    };
    if let Some(at) = at {
        let pseudo = match (packet.source, packet.destination) {
            _ if packet.protocol == protocol::ICMPV4 => Sum::of(&[]),
            (IpAddr::V4(s), IpAddr::V4(d)) => Sum::pseudo_v4(s, d, packet.protocol, length as u16),
            (IpAddr::V6(s), IpAddr::V6(d)) => Sum::pseudo_v6(s, d, packet.protocol, length as u32),
            _ => Sum::of(&[]),
        };
        let sum = pseudo.combine(Sum::of(&payload));
        let sum = if packet.protocol == protocol::UDP { sum.udp_checksum() } else { sum.checksum() };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let head = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut head = [0; 20];
            ipv4::Repr {
                traffic_class: 0,
                total_len: size as u16,
                identification: 1,
                dont_fragment: packet.dont_fragment,
                more_fragments: false,
                fragment_offset: 0,
                ttl: packet.ttl,
                protocol: packet.protocol,
                source,
                destination,
            }
            .emit(&mut head);
            head.to_vec()
        }
        (source, destination) => {
            let v6 = |address| match address {
                IpAddr::V4(a) => std::net::Ipv4Addr::to_ipv6_mapped(&a),
                IpAddr::V6(a) => a,
            };
            let mut head = [0; 40];
            ipv6::Repr {
                traffic_class: 0,
                flow_label: 0,
                payload_len: length as u16,
                next_header: packet.protocol,
                hop_limit: packet.ttl,
                source: v6(source),
                destination: v6(destination),
            }
            .emit(&mut head);
            head.to_vec()
        }
    };
    Ok([head, payload].concat())
}

fn tags(vlan: Vlan) -> Tags {
    let tag = |kind, id| VlanId::new(id).map(|id| Tag::new(kind, id, 0, false));
    match vlan {
        Vlan::Untagged => Tags::None,
        Vlan::Tagged(id) => tag(TagKind::Customer, id).map_or(Tags::None, Tags::One),
        Vlan::Stacked { outer, inner } => {
            let both = tag(TagKind::Service, outer).zip(tag(TagKind::Customer, inner));
            both.map_or(Tags::None, |(outer, inner)| Tags::Two(outer, inner))
        }
    }
}

/// The run of one packet, and what it left behind.
struct Run {
    single: Single<MemPort>,
    /// The metadata of the packet, or of the error that answers it.
    meta: Option<Meta>,
    /// Counters that moved: group, row, column.
    moved: Vec<(String, String, String, u64)>,
    sent: Vec<Sent>,
    received: (usize, Vec<u8>),
}

impl Run {
    fn new(config: &Config, packet: &Packet, place: usize) -> Result<Self, ExplainError> {
        let mut config = config.clone();
        // It is for a moment.
        config.system.huge_pages.value = HugePages::Never;
        let interface = &config.interfaces[place];
        let port = interface.port.value;
        let name = config.port(port).name.value.as_str();
        let content = bytes(packet, usize::from(config.port(port).mtu.get() as u16), name)?;
        let macs: Vec<MacAddr> = config.ports.iter().map(|port| derived_mac(&config, port)).collect();
        let ether_type = if packet.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let header = L2Header::new(macs[port.0], SENDER, tags(interface.vlan.value), ether_type);
        let frame = [header.as_bytes(), &content].concat();
        let (ports, ends): (Vec<_>, Vec<_>) = config.ports.iter().map(|_| wire(QUEUE)).unzip();
        let mut single = Single::new(&config, &macs, &mut Ephemeral::default(), SEED, |_| ports)?;
        single.worker.set_timing(0);
        // What the gateway does by itself is no part of the answer.
        single.settle(NOW, ROUNDS);
        introduce(&mut single);
        single.settle(NOW, ROUNDS);
        ends.iter().for_each(|end| while end.receive().is_some() {});
        let before = counters(&single.segment);
        // The wire is empty and holds more than one.
        let _ = ends[port.0].send(&frame);
        single.worker.round(NOW);
        let meta = single.worker.last_meta().copied();
        single.settle(NOW, ROUNDS);
        for _ in 0..MOST {
            if !introduce(&mut single) {
                break;
            }
            single.settle(NOW, ROUNDS);
        }
        let moved = difference(&before, &counters(&single.segment));
        let mut sent = Vec::new();
        for (end, port) in ends.iter().zip(&config.ports) {
            while let Some(frame) = end.receive() {
                sent.extend(read(port.name.value.as_str(), frame));
            }
        }
        Ok(Self { single, meta, moved, sent, received: (port.0, frame) })
    }

    fn moved<'a>(&'a self, group: &'a str, column: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |(g, _, c, _): &&(String, String, String, u64)| g == group && c == column;
        self.moved.iter().filter(of).map(|(_, row, ..)| row.as_str())
    }
}

/// Pretends that every neighbour that is asked for has answered. The result is whether there were any.
fn introduce(single: &mut Single<MemPort>) -> bool {
    let neighbours = &mut single.kept.neighbours;
    let unknown: Vec<_> = neighbours
        .table()
        .iter()
        .filter(|neighbour| neighbour.state == NeighbourState::Incomplete)
        .map(|neighbour| neighbour.key)
        .collect();
    let known = |key| neighbours.insert_permanent(key, NEIGHBOUR, NOW).is_ok();
    unknown.iter().map(known).filter(|known| *known).count() > 0
}

fn difference(before: &Value, after: &Value) -> Vec<(String, String, String, u64)> {
    let mut all = Vec::new();
    for (group, rows) in after.as_object().into_iter().flatten() {
        for (row, columns) in rows.as_object().into_iter().flatten() {
            for (column, value) in columns.as_object().into_iter().flatten() {
                let old = before[group][row][column].as_u64().unwrap_or(0);
                let n = value.as_u64().unwrap_or(0).saturating_sub(old);
                if n > 0 {
                    all.push((group.clone(), row.clone(), column.clone(), n));
                }
            }
        }
    }
    all
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// What a frame says. ARP and neighbour discovery are none of the packet's.
fn read(port: &str, frame: Vec<u8>) -> Option<Sent> {
    let mut at = 12;
    let mut vlans = Vec::new();
    while matches!(word(&frame, at)?, 0x8100 | 0x88a8) {
        vlans.push(word(&frame, at + 2)? & 0xfff);
        at += 4;
    }
    let ip = frame.get(at + 2..)?;
    let (source, destination, proto, size, payload): (IpAddr, IpAddr, u8, usize, &[u8]) =
        match EtherType(word(&frame, at)?) {
            EtherType::IPV4 => {
                let parsed = ipv4::parse(ip).ok()?;
                let repr = ipv4::Repr::parse(&parsed.header);
                // Behind the first fragment there is no transport header.
                let payload = if repr.fragment_offset == 0 { parsed.payload } else { &[] };
                let size = usize::from(repr.total_len);
                (repr.source.into(), repr.destination.into(), repr.protocol, size, payload)
            }
            EtherType::IPV6 => {
                let parsed = ipv6::parse(ip).ok()?;
                let repr = ipv6::Repr::parse(&parsed.header);
                let size = 40 + usize::from(repr.payload_len);
                (repr.source.into(), repr.destination.into(), repr.next_header, size, parsed.payload)
            }
            _ => return None,
        };
    let is_icmp = matches!(proto, protocol::ICMPV4 | protocol::ICMPV6);
    let icmp = payload.get(..2).filter(|_| is_icmp).map(|b| (b[0], b[1]));
    if proto == protocol::ICMPV6 && icmp.is_some_and(|(kind, _)| icmpv6::is_neighbour_discovery(kind)) {
        return None;
    }
    let has_ports = matches!(proto, protocol::TCP | protocol::UDP);
    let ports = word(payload, 0).zip(word(payload, 2)).filter(|_| has_ports);
    let spi = |at: usize| payload.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let spi = match (proto, ports) {
        (protocol::ESP, _) => spi(0),
        (protocol::UDP, Some((from, to))) if from == esp::UDP_PORT || to == esp::UDP_PORT => spi(8),
        _ => None,
    };
    let spi = spi.filter(|spi| *spi != 0);
    let port = port.to_string();
    Some(Sent { port, vlans, size, source, destination, protocol: proto, ports, icmp, spi, frame })
}

/// Puts what the run shows into steps.
struct Teller<'a> {
    config: &'a Config,
    packet: &'a Packet,
    place: usize,
    text: Option<&'a str>,
    run: Run,
    steps: Vec<Step>,
}

impl Teller<'_> {
    fn step(&mut self, stage: &'static str, text: String, details: Value) {
        self.steps.push(Step { stage, text, details });
    }

    fn line(&self, span: Span) -> Option<usize> {
        let head = self.text?.as_bytes().get(..span.start)?;
        Some(1 + head.iter().filter(|byte| **byte == b'\n').count())
    }

    /// " (line N)", where it is known.
    fn at(&self, span: Span) -> String {
        self.line(span).map_or_else(String::new, |line| format!(" (line {line})"))
    }

    /// The metadata of the packet, where nothing else came after it.
    fn meta(&self) -> Option<Meta> {
        self.run.meta.filter(|meta| !meta.flags.has(Flags::ORIGINATED))
    }

    fn tell(mut self) -> Explanation {
        let verdict = self.verdict();
        self.arrive();
        let entry = self.config.interfaces[self.place].gateway.value.0;
        self.policies_in();
        let own = self.config.interfaces_of(crate::config::GatewayId(entry)).find_map(|(_, interface)| {
            let addresses = interface.addresses.iter();
            addresses
                .map(|address| address.value.address)
                .any(|address| address == self.packet.destination)
                .then(|| interface.name.value.to_string())
        });
        if let Some(name) = &own {
            let text =
                format!("{} is the gateway's own address, on interface {name}", self.packet.destination);
            self.step("local", text, json!({ "interface": name }));
        }
        if own.is_none() || self.run.moved(group::POLICY, "out_packets").next().is_some() {
            self.nat();
            self.ways(entry, &verdict);
        }
        self.tunnels();
        self.leave();
        if let Some(reason) = self.drops().get(1).map(|(reason, _)| reason.name()) {
            let text = format!("the error for its sender is dropped: {reason}");
            self.step("answer", text, json!({ "reason": reason }));
        }
        Explanation { steps: self.steps, verdict, sent: self.run.sent, received: self.run.received }
    }

    /// Drops that were counted: reason and row. First that of the packet itself, then that of the error that answers
    /// it, which is counted by the same interface.
    fn drops(&self) -> Vec<(DropReason, &str)> {
        let mut drops: Vec<(DropReason, &str)> = Vec::new();
        for (_, row, column, n) in self.run.moved.iter().filter(|(g, ..)| g == group::DROP) {
            if let Some(reason) = DropReason::ALL.iter().find(|reason| reason.name() == column) {
                drops.extend((0..*n).map(|_| (*reason, row.as_str())));
            }
        }
        if let Some(meta) = &self.run.meta
            && let Some(place) = drops.iter().position(|(reason, _)| Some(*reason) == meta.reason)
        {
            // The last packet of the burst is the answer, where there is one.
            let one = drops.remove(place);
            let at = if meta.flags.has(Flags::ORIGINATED) { drops.len() } else { 0 };
            drops.insert(at, one);
        }
        drops
    }

    fn verdict(&self) -> Verdict {
        if let Some((reason, row)) = self.drops().first() {
            return Verdict::Dropped { reason: *reason, row: (*row).into() };
        }
        let Some(sent) = self.run.sent.first() else { return Verdict::Waits };
        let port = sent.port.clone();
        let answers = sent.destination == self.packet.source && sent.source == self.packet.destination;
        if answers { Verdict::Answered { port } } else { Verdict::Forwarded { port } }
    }

    fn arrive(&mut self) {
        let interface = &self.config.interfaces[self.place];
        let gateway = self.config.gateway(interface.gateway.value).name.value.to_string();
        let (name, port) = (&interface.name.value, &self.config.port(interface.port.value).name.value);
        let vlan = match interface.vlan.value {
            Vlan::Untagged => "untagged".to_string(),
            Vlan::Tagged(id) => format!("VLAN {id}"),
            Vlan::Stacked { outer, inner } => format!("VLANs {outer} and {inner}"),
        };
        let side = interface.side.as_str();
        let place = self.at(interface.name.span);
        let text =
            format!("interface {name}{place}: port {port}, {vlan}; the {side} side of gateway {gateway}");
        let line = self.line(interface.name.span);
        let details = json!({
            "interface": name.as_str(), "port": port.as_str(), "vlan": vlan, "gateway": gateway, "side": side,
            "line": line, "size": self.run.received.1.len(),
        });
        self.step("arrive", text, details);
    }

    /// A policy by its row in the counters.
    fn policy(&self, row: &str) -> Option<(String, &crate::config::Policy)> {
        let (gateway, policy) = row.split_once('/')?;
        let gateway = self.config.gateways.iter().find(|g| g.name.value.as_str() == gateway)?;
        let found = gateway.policies.iter().find(|p| p.name.as_str() == policy)?;
        Some((gateway.name.value.to_string(), found))
    }

    fn tell_policy(&mut self, stage: &'static str, row: &str) {
        let Some((gateway, policy)) = self.policy(row) else { return };
        let (name, action) = (policy.name.to_string(), policy.action.as_str());
        let tunnel = policy.tunnel.as_ref().map(|t| self.config.tunnel(t.value).name.value.to_string());
        let through = tunnel.as_ref().map_or_else(String::new, |tunnel| format!(" through tunnel {tunnel}"));
        let read = if stage == "policy-in" { ", read the other way round," } else { "" };
        let (place, line) = (self.at(policy.action.span), self.line(policy.action.span));
        let text = format!("policy {name}{place} of gateway {gateway}{read} matches: {action}{through}");
        let details =
            json!({ "gateway": gateway, "policy": name, "action": action, "tunnel": tunnel, "line": line });
        self.step(stage, text, details);
    }

    fn policies_in(&mut self) {
        let rows: Vec<String> = self.run.moved(group::POLICY, "in_packets").map(String::from).collect();
        rows.iter().for_each(|row| self.tell_policy("policy-in", row));
    }

    /// Addresses and ports behind translation, as far as the run shows them.
    fn translated(&self) -> Option<(SocketAddr, SocketAddr)> {
        if let Some(sent) = self.run.sent.iter().find(|sent| sent.spi.is_none())
            && !matches!(self.verdict(), Verdict::Dropped { .. })
        {
            let (from, to) = sent.ports.unwrap_or_default();
            return Some((SocketAddr::new(sent.source, from), SocketAddr::new(sent.destination, to)));
        }
        let meta = self.meta().filter(|meta| !meta.is_v6() && meta.interface != NO_INTERFACE)?;
        let ports = matches!(meta.proto, protocol::TCP | protocol::UDP);
        let (from, to) = if ports { (meta.sport, meta.dport) } else { (0, 0) };
        let address = |bits: u32| IpAddr::V4(bits.into());
        Some((SocketAddr::new(address(meta.src), from), SocketAddr::new(address(meta.dst), to)))
    }

    fn nat(&mut self) {
        let Some((source, destination)) = self.translated() else { return };
        let (from, to) = match self.packet.content {
            Content::Ports(from, to) => (from, to),
            _ => (0, 0),
        };
        let changes = [
            ("source", SocketAddr::new(self.packet.source, from), source),
            ("destination", SocketAddr::new(self.packet.destination, to), destination),
        ];
        for (end, old, new) in changes {
            if old == new {
                continue;
            }
            let shown = |address: SocketAddr| {
                if old.port() == new.port() { address.ip().to_string() } else { address.to_string() }
            };
            let rule = self.rule(old.ip(), new.ip());
            let by = rule.as_ref().map_or_else(String::new, |(gateway, name, kind, span)| {
                format!(": rule {name}{} of gateway {gateway}, kind {kind}", self.at(*span))
            });
            let text = format!("{end} {} becomes {}{by}", shown(old), shown(new));
            let line = rule.as_ref().and_then(|rule| self.line(rule.3));
            let details = json!({
                "end": end, "from": shown(old), "to": shown(new), "line": line,
                "gateway": rule.as_ref().map(|rule| &rule.0), "rule": rule.as_ref().map(|rule| &rule.1),
            });
            self.step("nat", text, details);
        }
    }

    /// The rule that makes one address of another: the first in the file that can.
    fn rule(&self, old: IpAddr, new: IpAddr) -> Option<(String, String, &'static str, Span)> {
        for gateway in &self.config.gateways {
            for nat in &gateway.nat {
                let inside = |address| {
                    nat.original().map_or_else(
                        || gateway.prefixes.iter().any(|prefix| prefix.value.contains(address)),
                        |original| original.contains(address),
                    )
                };
                let outside =
                    |address| nat.translated_prefixes().iter().any(|prefix| prefix.contains(address));
                let fits =
                    inside(old) && outside(new) || *nat.kind != NatKind::Pool && outside(old) && inside(new);
                if fits {
                    let name = nat.name.to_string();
                    return Some((gateway.name.value.to_string(), name, nat.kind.as_str(), nat.kind.span));
                }
            }
        }
        None
    }

    /// Policies and routes of the gateways that the packet goes through.
    fn ways(&mut self, entry: usize, verdict: &Verdict) {
        let rows: Vec<String> = self.run.moved(group::POLICY, "out_packets").map(String::from).collect();
        let mut gateway = entry;
        let mut seen = BTreeSet::new();
        while seen.insert(gateway) && seen.len() <= MOST {
            let name = self.config.gateways[gateway].name.value.to_string();
            let mut decided = false;
            for row in rows.iter().filter(|row| row.split_once('/').is_some_and(|(g, _)| g == name)) {
                self.tell_policy("policy", row);
                decided |= self.policy(row).is_some_and(|(_, policy)| *policy.action != Action::Bypass);
            }
            if decided || !looks_routes_up(verdict) {
                return;
            }
            match self.route(gateway) {
                Some(next) => gateway = next,
                None => return,
            }
        }
    }

    /// The route that decides in a gateway; the result is the gateway that it leads to, if it does.
    fn route(&mut self, place: usize) -> Option<usize> {
        let as_seen = self.meta().is_some_and(|meta| meta.nat.has(NatMarks::ROUTE_AS_SEEN));
        let translated = self.translated().map(|(_, to)| to.ip()).filter(|_| !as_seen);
        let destination = translated.unwrap_or(self.packet.destination);
        let gateway = &self.config.gateways[place];
        let name = gateway.name.value.to_string();
        let built = &self.run.single.built;
        let table = built.tables.gateway(*built.gateways.get(place)?)?;
        let number = match destination {
            IpAddr::V4(a) => table.routes_v4.lookup(a.to_bits()),
            IpAddr::V6(a) => table.routes_v6.lookup(a.to_bits()),
        };
        let Some(hop) = number.and_then(|number| built.tables.next_hop(number)) else {
            let text = format!("no route of gateway {name} leads to {destination}");
            self.step("route", text, json!({ "gateway": name, "destination": destination, "route": null }));
            return None;
        };
        let named = |numbers: &[u16], number: u16| numbers.iter().position(|n| *n == number);
        let interface = |number| {
            let place = named(&built.interfaces, number);
            place.map_or_else(String::new, |place| self.config.interfaces[place].name.value.to_string())
        };
        let (leads, next) = match hop {
            NextHop::Via { interface: by, address, .. } => {
                (format!("via {address} on interface {}", interface(by)), None)
            }
            NextHop::Connected { interface: by } => {
                (format!("on the link of interface {}", interface(by)), None)
            }
            NextHop::Tunnel(number) => {
                let place = named(&built.tunnels, number);
                let tunnel = place.map_or("", |place| self.config.tunnels[place].name.value.as_str());
                (format!("through tunnel {tunnel}"), None)
            }
            NextHop::Gateway(number) => {
                let next = named(&built.gateways, number);
                let gateway = next.map_or("", |place| self.config.gateways[place].name.value.as_str());
                (format!("into gateway {gateway}"), next)
            }
            NextHop::Blackhole => ("nowhere: a blackhole".into(), None),
            NextHop::Local => ("to the gateway itself".into(), None),
            NextHop::Broadcast => ("to the broadcast address of a link".into(), None),
        };
        let routes = gateway.routes.iter().map(|route| (route.to.value, Some(route.to.span)));
        let links = self
            .config
            .interfaces
            .iter()
            .filter(|interface| interface.gateway.value.0 == place)
            .flat_map(|interface| interface.addresses.iter().map(|a| (a.value.network(), Some(a.span))));
        let longest = links.chain(routes).filter(|(prefix, _)| prefix.contains(destination));
        let longest: Option<(Prefix, Option<Span>)> = longest.max_by_key(|(prefix, _)| prefix.length());
        let is_host = matches!(hop, NextHop::Local | NextHop::Broadcast);
        let longest = longest.filter(|_| !is_host);
        let prefix = longest.map_or_else(|| destination.to_string(), |(prefix, _)| prefix.to_string());
        let span = longest.and_then(|(_, span)| span);
        let (place, line) = (span.map_or_else(String::new, |s| self.at(s)), span.and_then(|s| self.line(s)));
        let text = format!("{destination} is in {prefix}{place} of gateway {name}: {leads}");
        let details = json!({
            "gateway": name, "destination": destination, "route": prefix, "next_hop": leads, "line": line,
        });
        self.step("route", text, details);
        next
    }

    fn tunnels(&mut self) {
        let rows: Vec<String> = self.run.moved(group::TUNNEL, "out_packets").map(String::from).collect();
        for row in rows {
            let Some(tunnel) = self.config.tunnels.iter().find(|t| t.name.value.as_str() == row) else {
                continue;
            };
            let outer = self.run.sent.iter().find(|sent| sent.spi.is_some());
            let spi = outer.and_then(|outer| outer.spi);
            let (local, remote) = (tunnel.local.value, tunnel.remote.value);
            let shown = spi.map_or_else(String::new, |spi| format!("SPI {spi:#x}, "));
            let size = outer.map_or_else(String::new, |outer| format!(", {} bytes", outer.size));
            let place = self.at(tunnel.name.span);
            let text = format!("sealed into tunnel {row}{place}: {shown}{local} to {remote}{size}");
            let line = self.line(tunnel.name.span);
            let details = json!({
                "tunnel": row, "spi": spi, "local": local, "remote": remote,
                "size": outer.map(|outer| outer.size), "line": line,
            });
            self.step("tunnel", text, details);
        }
    }

    fn leave(&mut self) {
        let interfaces: Vec<String> =
            self.run.moved(group::INTERFACE, "out_packets").map(String::from).collect();
        let sent = self.run.sent.clone();
        for one in &sent {
            let mut text = format!("port {}", one.port);
            if let Some(interface) = interfaces.iter().find(|name| {
                let of = |i: &&crate::config::Interface| i.name.value.as_str() == name.as_str();
                let interface = self.config.interfaces.iter().find(of);
                interface.is_some_and(|i| self.config.port(i.port.value).name.value.as_str() == one.port)
            }) {
                text = format!("interface {interface}, {text}");
            }
            let what = describe(one);
            let details = sent_json(one);
            self.step("leave", format!("{text}: {what}"), details);
        }
    }
}

/// Whether a packet with this end came as far as the route table.
fn looks_routes_up(verdict: &Verdict) -> bool {
    use DropReason as R;
    match verdict {
        Verdict::Dropped { reason, .. } => matches!(
            reason,
            R::NoRoute
                | R::Blackhole
                | R::TransitForbidden
                | R::TtlExpired
                | R::TooManyPasses
                | R::PacketTooBig
                | R::FragmentationFailed
        ),
        _ => true,
    }
}

/// A frame's packet in words.
#[must_use]
pub fn describe(sent: &Sent) -> String {
    let with = |address: IpAddr, port: Option<u16>| {
        port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
    };
    let protocol = crate::config::Protocol(sent.protocol);
    let icmp = sent.icmp.map_or_else(String::new, |(kind, code)| format!(" {kind}/{code}"));
    let spi = sent.spi.map_or_else(String::new, |spi| format!(", SPI {spi:#x}"));
    let from = with(sent.source, sent.ports.map(|ports| ports.0));
    let to = with(sent.destination, sent.ports.map(|ports| ports.1));
    format!("{protocol}{icmp} from {from} to {to}, {} bytes{spi}", sent.size)
}

fn sent_json(sent: &Sent) -> Value {
    json!({
        "port": sent.port, "vlans": sent.vlans, "size": sent.size, "source": sent.source,
        "destination": sent.destination, "protocol": sent.protocol, "source_port": sent.ports.map(|p| p.0),
        "destination_port": sent.ports.map(|p| p.1), "icmp_type": sent.icmp.map(|i| i.0),
        "icmp_code": sent.icmp.map(|i| i.1), "spi": sent.spi,
    })
}

impl Explanation {
    /// The end in words.
    #[must_use]
    pub fn ending(&self) -> String {
        match &self.verdict {
            Verdict::Forwarded { port } if self.sent.len() > 1 => {
                format!("forwarded by port {port}, in {} fragments", self.sent.len())
            }
            Verdict::Forwarded { port } => format!("forwarded by port {port}"),
            Verdict::Answered { port } => format!("answered by the gateway itself, by port {port}"),
            Verdict::Waits => "waits in the gateway for more".into(),
            Verdict::Dropped { reason, row } => {
                let why = reason.explanation().trim();
                format!("dropped: {} (counted by {row}). {why}", reason.name())
            }
        }
    }

    /// All of it, for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let steps = self.steps.iter().map(|step| {
            let mut value = step.details.clone();
            value["stage"] = step.stage.into();
            value["text"] = step.text.as_str().into();
            value
        });
        let verdict = match &self.verdict {
            Verdict::Forwarded { port } => json!({ "result": "forwarded", "port": port }),
            Verdict::Answered { port } => json!({ "result": "answered", "port": port }),
            Verdict::Waits => json!({ "result": "waits" }),
            Verdict::Dropped { reason, row } => {
                json!({ "result": "dropped", "reason": reason.name(), "counted_by": row })
            }
        };
        let sent: Vec<Value> = self.sent.iter().map(sent_json).collect();
        json!({ "steps": steps.collect::<Vec<_>>(), "verdict": verdict, "sent": sent })
    }
}
