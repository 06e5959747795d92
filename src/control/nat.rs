//! NAT beside the workers: their tables, and what is told of sessions, pools and rules.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::gateway::Gateway;
use crate::{
    config::{Config, Nat, NatKind},
    stage::{NatTables, SessionLog},
    stats::{PoolColumn, counters::group},
    table::{
        gateway_nat::GatewayNat,
        hash::Seed,
        session::{Claims, Kind, Records, Sources, View, tick},
        tables::Tables,
    },
    wire::ip::protocol,
};

/// Places of the session tables that one answer looks at, at most: about a millisecond.
const SCAN: usize = 1 << 15;
/// Room that each of several workers has beyond its part of the sessions, since the gateways' parts are rounded up.
const SLACK: usize = 1024;
/// Beginnings and ends of sessions on their way to the log, for each worker.
const NOTES: usize = 1 << 16;
/// Where a worker's number stands in the place of a session in the list of all.
const WORKER_SHIFT: u32 = 40;

/// What is needed to make the workers' tables, when the first rule with sessions comes.
#[derive(Debug)]
pub struct NatSetup {
    workers: usize,
    sessions: usize,
    seed: Seed,
    log: bool,
    records: Vec<Records>,
    logs: Vec<Arc<SessionLog>>,
}

impl NatSetup {
    /// Nothing made yet.
    #[must_use]
    pub fn new(config: &Config, workers: usize, seed: Seed) -> Self {
        Self {
            workers,
            sessions: config.system.nat_sessions.get() as usize,
            // Not the one of tables whose places others may learn of.
            seed: seed.next(),
            log: config.system.nat_log.is_some(),
            records: Vec::new(),
            logs: Vec::new(),
        }
    }

    /// One set of tables for each worker, when `tables` have rules that need them and they are not there yet.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn make(&mut self, tables: &Tables) -> io::Result<Vec<Option<Box<NatTables>>>> {
        let mut rules = tables.gateways.iter().filter_map(|gateway| gateway.nat.as_ref());
        let needed = rules.any(GatewayNat::needs_tables);
        if !needed || !self.records.is_empty() {
            return Ok((0..self.workers).map(|_| None).collect());
        }
        let sources = Arc::new(Sources::new(self.sessions, self.seed)?);
        // One worker has all.
        let claims = Arc::new(Claims::new(if self.workers > 1 { self.sessions } else { 1 })?);
        let slack = if self.workers > 1 { SLACK } else { 0 };
        let each = self.sessions.div_ceil(self.workers.max(1)) + slack;
        let mut made = Vec::new();
        for own in 0..self.workers {
            let log = self.log.then(|| Arc::new(SessionLog::new(NOTES)));
            made.push(Box::new(NatTables::new(
                own as u32,
                each,
                self.seed,
                Arc::clone(&sources),
                Arc::clone(&claims),
                log.clone(),
            )?));
            self.logs.extend(log);
        }
        self.records = made.iter().map(|tables| Arc::clone(tables.sessions.records())).collect();
        Ok(made.into_iter().map(Some).collect())
    }

    /// The workers' sessions, for whoever only looks.
    pub(super) fn records(&self) -> &[Records] {
        &self.records
    }

    /// What the workers tell the log.
    #[must_use]
    pub fn logs(&self) -> &[Arc<SessionLog>] {
        &self.logs
    }
}

/// Which sessions to show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// With this address, inside, outside or remote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Of the rule of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// In this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// What names it to end it.
    pub id: String,
    /// Its gateway.
    pub gateway: String,
    /// The rule that made it.
    pub rule: String,
    /// pool or port.
    pub kind: String,
    /// tcp, udp or icmp.
    pub protocol: String,
    /// The host of the VPC; of ICMP the port is the identifier.
    pub inside: SocketAddrV4,
    /// What stands for it.
    pub outside: SocketAddrV4,
    /// Whom it talks to.
    pub remote: SocketAddrV4,
    /// TCP: opening, established, closing, closed or reset; otherwise active.
    pub state: String,
    /// Seconds since it was made.
    pub age: u64,
    /// Seconds since its last packet.
    pub idle: u64,
    /// Seconds until it ends, if no packet comes.
    pub expires: u64,
    /// Packets from the host.
    pub packets_out: u32,
    /// Packets to the host.
    pub packets_in: u32,
}

/// A source pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Its gateway.
    pub gateway: String,
    /// Its rule.
    pub rule: String,
    /// Its addresses.
    pub translated: String,
    /// How many they are.
    pub addresses: u32,
    /// Ports of each.
    pub ports: u32,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions ever made.
    pub made: u64,
    /// Packets dropped because no port was free.
    pub exhausted: u64,
    /// Share of the ports tried of late for new sessions that were taken, in percent.
    pub occupied: f64,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRow {
    /// Its gateway.
    pub gateway: String,
    /// Its name.
    pub rule: String,
    /// local, peer, port or pool.
    pub kind: String,
    /// What it translates.
    pub original: String,
    /// To what.
    pub translated: String,
    /// When it holds.
    pub conditions: String,
}

/// What an address, and the port behind it, are of a protocol.
fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMPV4 => "icmp".into(),
        number => number.to_string(),
    }
}

/// In what state a session is, in a word.
fn state_name(view: &View) -> &'static str {
    if view.inside.protocol() == protocol::TCP { view.tcp.name() } else { "active" }
}

/// Names of the rules with sessions of a gateway: pools, and port mappings, each in the order of their places.
pub(super) fn rule_names(config: &Config, place: usize, kind: Kind) -> impl Iterator<Item = &str> {
    let wanted = match kind {
        Kind::Pool => NatKind::Pool,
        Kind::Mapping => NatKind::Port,
    };
    let rules = config.gateways.get(place).map_or(&[][..], |gateway| &gateway.nat);
    rules.iter().filter(move |nat| *nat.kind == wanted).map(|nat| nat.name.value.as_str())
}

impl Gateway {
    /// A page of the sessions that `filter` lets through.
    #[must_use]
    pub fn nat_sessions(&self, wanted: Option<&str>, filter: &Filter, from: usize, page: usize) -> Value {
        let (config, built, now) = (self.config(), self.built(), self.now());
        let of_number = |number: u16| built.gateways.iter().position(|known| *known == number);
        let mut rows = Vec::new();
        let (mut worker, mut at) = (from >> WORKER_SHIFT, from & ((1 << WORKER_SHIFT) - 1));
        let mut left = SCAN;
        let next = loop {
            let Some(records) = self.nat().records.get(worker) else { break None };
            if at >= records.len() {
                (worker, at) = (worker + 1, 0);
                continue;
            }
            if left == 0 || rows.len() >= page {
                break Some(worker << WORKER_SHIFT | at);
            }
            left -= 1;
            let view = records[at].view();
            let id = at;
            at += 1;
            let Some(view) = view else { continue };
            let Some(place) = of_number(view.inside.gateway()) else { continue };
            let gateway = &config.gateways[place];
            let name = gateway.name.value.as_str();
            let rule = rule_names(config, place, view.kind).nth(view.rule as usize).unwrap_or("-");
            let state = state_name(&view);
            let addresses = [view.inside.address(), view.outside.address(), view.inside.remote()];
            let fits = wanted.is_none_or(|wanted| wanted == name)
                && filter.address.is_none_or(|address| addresses.contains(&address.to_bits()))
                && filter.rule.as_deref().is_none_or(|wanted| wanted == rule)
                && filter.state.as_deref().is_none_or(|wanted| wanted == state);
            if !fits {
                continue;
            }
            let rules = self.tables().gateway(view.inside.gateway());
            let rules = rules.and_then(|g| g.nat.as_ref()).and_then(|nat| nat.sessions.as_deref());
            let life = rules.map_or(0, |rules| rules.time_outs.of(view.inside.protocol(), view.tcp));
            // Ticks of 2^20 ns.
            let seconds = |ticks: u32| (u64::from(ticks) << 20) / 1_000_000_000;
            let since = |then: u32| tick(now).wrapping_sub(then);
            let socket = |address: u32, port: u16| SocketAddrV4::new(Ipv4Addr::from_bits(address), port);
            rows.push(SessionRow {
                id: format!("{worker}-{id}-{}", view.incarnation),
                gateway: name.into(),
                rule: rule.into(),
                kind: match view.kind {
                    Kind::Pool => "pool".into(),
                    Kind::Mapping => "port".into(),
                },
                protocol: protocol_name(view.inside.protocol()),
                inside: socket(view.inside.address(), view.inside.port()),
                outside: socket(view.outside.address(), view.outside.port()),
                remote: socket(view.inside.remote(), view.inside.remote_port()),
                state: state.into(),
                age: seconds(since(view.made)),
                idle: seconds(since(view.seen)),
                expires: seconds(life.saturating_sub(since(view.seen))),
                packets_out: view.packets_out,
                packets_in: view.packets_in,
            });
        };
        json!({ "ok": super::view::Page { rows, next, generation: self.tables().generation } })
    }

    /// The source pools.
    pub fn nat_pools(&self) -> impl Iterator<Item = PoolRow> {
        let (config, built, layout) = (self.config(), self.built(), self.segment().layout());
        let read = move |row: &str, column: PoolColumn, greatest: bool| {
            let place = layout.group(group::POOL);
            let cell =
                place.and_then(|g| g.cell(g.rows.iter().position(|known| known == row)?, column as usize));
            let cells = self.segment().cells();
            let of = |worker: usize| {
                let cell = cells.get(worker * layout.block() + cell?)?;
                Some(cell.load(std::sync::atomic::Ordering::Relaxed))
            };
            let all = (0..layout.workers).filter_map(of);
            if greatest { all.max().unwrap_or(0) } else { all.sum() }
        };
        config.gateways.iter().zip(&built.gateways).flat_map(move |(gateway, &number)| {
            let rules = self.tables().gateway(number).and_then(|g| g.nat.as_ref());
            let pools = rules.and_then(|nat| nat.sessions.as_deref()).map_or(&[][..], |rules| &rules.pools);
            let configured = gateway.nat.iter().filter(|nat| *nat.kind == NatKind::Pool);
            let name = gateway.name.value.as_str();
            configured.zip(pools).map(move |(nat, pool)| {
                let row = format!("{name}/{}", nat.name.value.as_str());
                PoolRow {
                    gateway: name.into(),
                    rule: nat.name.value.as_str().into(),
                    translated: nat.translated.value.to_string(),
                    addresses: pool.addresses,
                    ports: pool.ports.count(),
                    sessions: read(&row, PoolColumn::Sessions, false),
                    made: read(&row, PoolColumn::Made, false),
                    exhausted: read(&row, PoolColumn::Exhausted, false),
                    occupied: read(&row, PoolColumn::Occupied, true) as f64 / 10.0,
                }
            })
        })
    }

    /// The rules.
    pub fn nat_rules(&self) -> impl Iterator<Item = RuleRow> {
        self.config().gateways.iter().flat_map(|gateway| {
            gateway.nat.iter().map(|nat| RuleRow {
                gateway: gateway.name.value.as_str().into(),
                rule: nat.name.value.as_str().into(),
                kind: nat.kind.as_str().into(),
                original: original(nat),
                translated: translated(nat),
                conditions: conditions(nat),
            })
        })
    }

    /// Ends the session of this name. What is wrong, where it cannot be.
    ///
    /// # Errors
    /// There is no such session, or its worker is busy.
    pub fn end_session(&self, id: &str) -> Result<(), String> {
        let mut parts = id.split('-').map(str::parse::<u32>);
        let (Some(Ok(worker)), Some(Ok(place)), Some(Ok(incarnation)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!(
                "{id:?} names no session: `causeway show nat sessions` lists those there are"
            ));
        };
        let records = self.nat().records.get(worker as usize);
        let view = records.and_then(|records| records.get(place as usize)).and_then(|record| record.view());
        match view {
            Some(view) if u32::from(view.incarnation) == incarnation => {
                self.end_at(worker as usize, place, view.incarnation)
            }
            _ => Err(format!("the session {id} has ended already")),
        }
    }
}

fn original(nat: &Nat) -> String {
    let prefix = nat.original.as_ref().map_or_else(|| "the VPC".into(), |o| o.value.to_string());
    match nat.original_port.as_ref().or(nat.translated_port.as_ref()) {
        Some(port) => format!("{prefix} port {}", port.get()),
        None => prefix,
    }
}

fn translated(nat: &Nat) -> String {
    let address = nat.translated.value.to_string();
    match &nat.translated_port {
        Some(port) => format!("{address} port {}", port.get()),
        None => address,
    }
}

fn conditions(nat: &Nat) -> String {
    let ports = |ports: &crate::config::PortRanges| {
        let one = |range: &crate::config::PortRange| match range.first == range.last {
            true => range.first.to_string(),
            false => format!("{}-{}", range.first, range.last),
        };
        ports.0.iter().map(one).collect::<Vec<_>>().join(",")
    };
    let mut all = Vec::new();
    if let Some(protocol) = &nat.protocol {
        all.push(protocol.value.to_string());
    }
    if let Some(source) = &nat.source_port {
        all.push(format!("from port {}", ports(&source.value)));
    }
    if let Some(destination) = &nat.destination_port {
        all.push(format!("to port {}", ports(&destination.value)));
    }
    if let Some(destination) = &nat.destination {
        let prefixes: Vec<String> = destination.value.iter().map(ToString::to_string).collect();
        all.push(format!("to {}", prefixes.join(",")));
    }
    all.join(" ")
}
