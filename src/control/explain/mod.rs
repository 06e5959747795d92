//! What a gateway does with one packet, and what decides it.
//!
//! The packet really goes through the pipeline: that of a gateway of its own, with tables built from the configuration
//! as for any other, over ports in memory. Nothing reaches a network, and no sequence number of a state file is used.
//! What is told is what that run shows: drops, counters that moved, the packet's metadata, frames that came out. What
//! the run does not name, such as the prefix of a route, is looked up in the same tables.
//!
//! A running gateway is asked the same way ([`ask`]): a worker of its own, with no port that leads anywhere, takes the
//! packet through the very tables that the workers have.

mod limits;
mod live;
mod make;
mod run;
mod tell;
mod words;

use make::{bytes, interface, tags};
use run::Run;
use tell::Teller;
pub use words::parse;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde_json::{Value, json};
use thiserror::Error;

use super::{
    gateway::Gateway,
    ports::derived_mac,
    replay::counters,
    single::{Single, SingleError},
};
use crate::{
    config::{Action, Config, HugePages, NextHop as Where, Prefix, Side, Span, Vlan, build::Ephemeral},
    io::mem::{MemPort, wire},
    packet::{DropReason, Flags, Meta, NatMarks, meta::NO_INTERFACE},
    stats::counters::group,
    table::{choice::flow_hash, hash::Seed, neighbour::NeighbourState, next_hops::Hop, tables::NextHop},
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
    /// The part of the pipeline: `arrive`, `limit`, `local`, `policy-in`, `nat`, `policy`, `route`, `tunnel`, `neighbour`, `leave`,
    /// `answer`; of a running gateway also `gateway`, what is asked, and `session`, of NAT.
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
    /// What is sealed in it, where it is whole.
    pub inner: Option<Box<Sent>>,
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

/// Takes a packet, given in words, through the tables of a running gateway; the answer is [`Explanation::to_json`].
///
/// Its workers go on as they are: the packet is taken through by another one, whose ports lead nowhere and whose counters,
/// sequence numbers and NAT sessions are its own.
///
/// # Errors
/// What is wrong with the words, or [`ExplainError`].
pub fn ask(gateway: &Gateway, words: &str) -> Result<Value, String> {
    let packet = parse(words)?;
    let config = gateway.config();
    let place = interface(config, &packet.entry).map_err(|error| error.to_string())?;
    let run = live::run(gateway, &packet, place).map_err(|error| error.to_string())?;
    Ok(Teller { config, packet: &packet, place, text: None, run, steps: Vec::new() }.tell().to_json())
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
        "icmp_code": sent.icmp.map(|i| i.1), "spi": sent.spi, "inner": sent.inner.as_deref().map(sent_json),
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
            Verdict::Waits if self.steps.iter().any(|step| step.stage == "neighbour") => {
                "waits in the gateway for its neighbour".into()
            }
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
        let ending = self.ending();
        json!({ "steps": steps.collect::<Vec<_>>(), "verdict": verdict, "ending": ending, "sent": sent })
    }
}
