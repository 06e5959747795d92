//! Limits of a running gateway: what they let pass, who uses them, and how they are changed.
//!
//! The control thread looks at every limit once a second, so that rates can be told at any time, and at the tables of
//! addresses piece by piece: rates again, and who has been idle for so long that it is forgotten.

mod change;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::change::{LimitChange, LimitRequest, change};
use super::{gateway::Gateway, view::PAGE};
use crate::{
    config::{
        Config, Prefix,
        build::{Built, BuiltAddresses},
    },
    stats::{LimitColumn, Segment, WorkerCounters},
    table::limit::{AddressTable, Cap, GatewayAddresses, Level, Pair, Traffic, Way},
};

/// How often each limit and each address is looked at, in ns.
const INTERVAL: u64 = 1_000_000_000;
/// Addresses looked at in one tick: some ten microseconds of the control thread.
const ADDRESSES_PER_TICK: usize = 1024;
/// How often it is said that a table of addresses is full, in ns.
const WARN_INTERVAL: u64 = 10_000_000_000;

/// What was seen of bytes that are counted, and what rate that makes.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    bytes: [u64; 2],
    at: u64,
    /// Bits a second, in and out.
    rates: [u64; 2],
}

impl Sample {
    fn see(&mut self, bytes: [u64; 2], now: u64) {
        let elapsed = now.saturating_sub(self.at).max(1);
        let rate = |new: u64, old: u64| {
            (u128::from(new.saturating_sub(old)) * 8_000_000_000 / u128::from(elapsed)) as u64
        };
        if self.at > 0 {
            self.rates = [rate(bytes[0], self.bytes[0]), rate(bytes[1], self.bytes[1])];
        }
        (self.bytes, self.at) = (bytes, now);
    }
}

/// What was seen of an address.
#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    key: u128,
    sample: Sample,
    packets: u64,
    /// When its packets were last more than before.
    used: u64,
}

/// What was seen of a gateway's addresses.
#[derive(Debug, Default)]
struct WatchedTable {
    entries: Vec<Watched>,
    next: usize,
    /// When the next look at all of them begins.
    due: u64,
    refused: u64,
    warned: u64,
}

/// What the control thread knows of limits.
#[derive(Debug, Default)]
pub struct LimitCare {
    /// By row.
    meters: Vec<Sample>,
    due: u64,
    /// By the gateway's number.
    addresses: HashMap<u16, WatchedTable>,
}

/// The counters of all workers.
fn all_counters(segment: &Arc<Segment>) -> Vec<WorkerCounters> {
    (0..segment.layout().workers).map(|worker| WorkerCounters::new(segment, worker)).collect()
}

/// What the workers together have counted of a limit.
fn counted(workers: &[WorkerCounters], row: usize, way: Way) -> Traffic {
    use LimitColumn as C;
    let columns = match way {
        Way::In => [C::InPackets, C::InBytes, C::InDropped, C::InDroppedBytes],
        Way::Out => [C::OutPackets, C::OutBytes, C::OutDropped, C::OutDroppedBytes],
    };
    workers.iter().fold(Traffic::default(), |sum, worker| {
        let [passed_packets, passed_bytes, dropped_packets, dropped_bytes] =
            columns.map(|column| worker.read_limit(row, column));
        sum.and(Traffic { passed_packets, passed_bytes, dropped_packets, dropped_bytes })
    })
}

impl LimitCare {
    /// Looks at what is due. For the control thread, at each tick.
    pub fn tick(&mut self, built: &Built, segment: &Arc<Segment>, now: u64) {
        if now >= self.due {
            self.due = now + INTERVAL;
            let (limits, workers) = (&built.limits.limits, all_counters(segment));
            let rows = limits.gateways.len() + limits.interfaces.len() + limits.tunnels.len();
            self.meters.resize(rows, Sample::default());
            let pairs = limits.gateways.iter().chain(&limits.interfaces).chain(&limits.tunnels);
            for ((row, sample), pair) in self.meters.iter_mut().enumerate().zip(pairs) {
                let limited = [Way::In, Way::Out].iter().any(|way| pair.way(*way).rate.cap().is_some());
                if limited {
                    let bytes = [Way::In, Way::Out].map(|way| counted(&workers, row, way).passed_bytes);
                    sample.see(bytes, now);
                } else {
                    *sample = Sample::default();
                }
            }
            self.addresses.retain(|gateway, _| limits.addresses_of(*gateway).is_some());
        }
        for addresses in &built.limits.addresses {
            if let Some(known) = built.limits.limits.addresses_of(addresses.gateway) {
                let watched = self.addresses.entry(addresses.gateway).or_default();
                watched.tick(known, addresses.idle, now);
            }
        }
    }

    /// Bits a second that a row has carried of late, in and out.
    fn rates(&self, row: usize) -> [u64; 2] {
        self.meters.get(row).map_or([0; 2], |sample| sample.rates)
    }
}

impl WatchedTable {
    fn tick(&mut self, known: &GatewayAddresses, idle: u64, now: u64) {
        let table = &known.table;
        self.entries.resize(table.common() + 1, Watched::default());
        if self.next == 0 {
            if now < self.due {
                return;
            }
            self.due = now + INTERVAL;
        }
        let end = (self.next + ADDRESSES_PER_TICK).min(self.entries.len());
        for number in self.next..end {
            self.look(known, number, idle, now);
        }
        self.next = if end == self.entries.len() { 0 } else { end };
        let refused = table.refused();
        if refused > self.refused && now >= self.warned {
            self.warned = now + WARN_INTERVAL;
            tracing::warn!(
                "the table of {} addresses is full: further ones share one limit; raise `addresses` in address_limit",
                table.capacity()
            );
        }
        self.refused = refused;
    }

    fn look(&mut self, known: &GatewayAddresses, number: usize, idle: u64, now: u64) {
        let Some(watched) = self.entries.get_mut(number) else { return };
        let Some(view) = known.table.view(number) else {
            *watched = Watched::default();
            return;
        };
        let packets: u64 =
            view.traffic.iter().map(|t| t.passed_packets.wrapping_add(t.dropped_packets)).sum();
        let is_new = watched.key != view.key || watched.sample.at == 0;
        if is_new {
            *watched = Watched { key: view.key, ..Watched::default() };
        }
        if is_new || packets != watched.packets {
            (watched.packets, watched.used) = (packets, now);
        }
        watched.sample.see(view.traffic.map(|traffic| traffic.passed_bytes), now);
        if now.saturating_sub(watched.used) >= idle && number != known.table.common() {
            known.table.remove(view.key, known.hash(view.key));
            *watched = Watched::default();
        }
    }
}

/// A limit, one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LimitRow {
    /// gateway, interface, tunnel, or address for those of each address of a gateway.
    pub kind: String,
    /// Its name; of addresses that of the gateway.
    pub name: String,
    /// The prefix whose addresses have this limit each; nothing where it is of all others.
    #[serde(default)]
    pub address: Option<String>,
    /// in or out.
    pub way: String,
    /// Bits a second; nothing: no limit.
    pub rate: Option<u64>,
    /// Bytes that may pass at once after a pause.
    pub burst: Option<u64>,
    /// Whether it is other than the file says: set by command.
    pub by_command: bool,
    /// Packets that passed, while there was a limit. Of addresses see the talkers.
    pub passed_packets: u64,
    /// Bytes of them.
    pub passed_bytes: u64,
    /// Packets that were dropped.
    pub dropped_packets: u64,
    /// Bytes of them.
    pub dropped_bytes: u64,
    /// Bits a second of late that passed.
    pub bits_per_second: u64,
    /// The same in percent of the limit.
    pub usage_percent: Option<f64>,
}

/// An address of a VPC, and what it has sent and got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TalkerRow {
    /// The gateway.
    pub gateway: String,
    /// The address; nothing: all for which there was no room.
    pub address: Option<IpAddr>,
    /// To the VPC.
    #[serde(rename = "in")]
    pub inwards: TalkerWay,
    /// From the VPC.
    #[serde(rename = "out")]
    pub outwards: TalkerWay,
}

/// One way of a talker, since it was entered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TalkerWay {
    /// Bits a second that it may have; nothing: no limit.
    pub rate: Option<u64>,
    /// Bits a second of late that passed.
    pub bits_per_second: u64,
    /// Packets that passed.
    pub passed_packets: u64,
    /// Bytes of them.
    pub passed_bytes: u64,
    /// Packets that were dropped.
    pub dropped_packets: u64,
    /// Bytes of them.
    pub dropped_bytes: u64,
}

/// What has a limit: level, name, place in the configuration and number.
fn things(config: &Config, built: &Built) -> Vec<(Level, String, usize, u16)> {
    let of = |level, names: Vec<String>, numbers: &[u16]| {
        let numbers = numbers.to_vec();
        names
            .into_iter()
            .zip(numbers)
            .enumerate()
            .map(move |(place, (name, number))| (level, name, place, number))
    };
    let name = |name: &crate::config::At<crate::config::Name>| name.value.as_str().to_string();
    of(Level::Gateway, config.gateways.iter().map(|g| name(&g.name)).collect(), &built.gateways)
        .chain(of(
            Level::Interface,
            config.interfaces.iter().map(|i| name(&i.name)).collect(),
            &built.interfaces,
        ))
        .chain(of(Level::Tunnel, config.tunnels.iter().map(|t| name(&t.name)).collect(), &built.tunnels))
        .collect()
}

/// What the file says of a limit.
pub(super) fn of_file(config: &Config, level: Level, place: usize) -> [Option<Cap>; 2] {
    let limit = match level {
        Level::Gateway => config.gateways.get(place).and_then(|g| g.limit.as_ref()),
        Level::Interface => config.interfaces.get(place).and_then(|i| i.limit.as_ref()),
        Level::Tunnel => config.tunnels.get(place).and_then(|t| t.limit.as_ref()),
    };
    limit.map_or([None; 2], |limit| limit.caps())
}

/// What the file says of addresses in a prefix of their own (`None`: of all others); nothing when it says nothing.
pub(super) fn of_file_addresses(
    config: &Config,
    place: usize,
    prefix: Option<Prefix>,
) -> Option<[Option<Cap>; 2]> {
    let limit = config.gateways.get(place)?.address_limit.as_ref()?;
    let Some(prefix) = prefix else { return Some(limit.caps()) };
    let own =
        limit.own.iter().find(|own| own.address.value.iter().any(|address| address.value.0 == prefix))?;
    Some(own.caps(limit))
}

/// The rates in force, in and out.
pub(super) fn in_force(built: &Built, level: Level, number: u16) -> [Option<u64>; 2] {
    let caps = built.limits.limits.of(level, number).map_or([None; 2], |(pair, _)| caps_of(pair));
    caps.map(|cap| cap.map(|cap| cap.rate))
}

const WAYS: [(Way, &str); 2] = [(Way::In, "in"), (Way::Out, "out")];

/// Every limit there is.
pub fn rows(gateway: &Gateway) -> Vec<LimitRow> {
    let (config, built) = (gateway.config(), gateway.built());
    let (limits, workers) = (&built.limits.limits, all_counters(gateway.segment()));
    let mut rows = Vec::new();
    for (level, name, place, number) in things(config, built) {
        let Some((pair, row)) = limits.of(level, number) else { continue };
        let file = of_file(config, level, place);
        let recent = gateway.limit_care().rates(row);
        for (((way, word), file), recent) in WAYS.into_iter().zip(file).zip(recent) {
            let cap = pair.way(way).rate.cap();
            if cap.is_none() && file.is_none() {
                continue;
            }
            let traffic = counted(&workers, row, way);
            rows.push(LimitRow {
                kind: level.name().into(),
                name: name.clone(),
                address: None,
                way: word.into(),
                rate: cap.map(|cap| cap.rate),
                burst: cap.map(|cap| cap.burst),
                by_command: cap != file,
                passed_packets: traffic.passed_packets,
                passed_bytes: traffic.passed_bytes,
                dropped_packets: traffic.dropped_packets,
                dropped_bytes: traffic.dropped_bytes,
                bits_per_second: recent,
                usage_percent: cap.map(|cap| 100.0 * recent as f64 / cap.rate as f64),
            });
        }
    }
    for addresses in &built.limits.addresses {
        address_rows(gateway, addresses, &mut rows);
    }
    rows
}

fn address_rows(gateway: &Gateway, addresses: &BuiltAddresses, rows: &mut Vec<LimitRow>) {
    let config = gateway.config();
    let Some(known) = gateway.built().limits.limits.addresses_of(addresses.gateway) else { return };
    let name = config.gateways.get(addresses.place).map_or("", |g| g.name.value.as_str());
    for (number, section) in addresses.sections.iter().enumerate() {
        let Some(class) = known.classes.get(number).filter(|_| number == 0 || section.is_some()) else {
            continue;
        };
        let file = of_file_addresses(config, addresses.place, *section);
        for (index, (way, word)) in WAYS.into_iter().enumerate() {
            let cap = if way == Way::In { class.inwards.cap() } else { class.outwards.cap() };
            rows.push(LimitRow {
                kind: "address".into(),
                name: name.into(),
                address: section.map(|prefix| crate::config::HostOrPrefix(prefix).to_string()),
                way: word.into(),
                rate: cap.map(|cap| cap.rate),
                burst: cap.map(|cap| cap.burst),
                by_command: file.is_none_or(|file| file.get(index).copied().flatten() != cap),
                passed_packets: 0,
                passed_bytes: 0,
                dropped_packets: 0,
                dropped_bytes: 0,
                bits_per_second: 0,
                usage_percent: None,
            });
        }
    }
}

/// The address that a key stands for; nothing: of the common entry.
fn address_of(key: u128) -> Option<IpAddr> {
    match key {
        0 => None,
        key if key >> 32 == 0xffff => Some(IpAddr::V4((key as u32).into())),
        key => Some(IpAddr::V6(key.into())),
    }
}

/// The addresses with most traffic of late, of one gateway or of all; at most [`PAGE`] of them, busiest first.
pub fn talkers(gateway: &Gateway, wanted: Option<&str>) -> Vec<TalkerRow> {
    let (config, built) = (gateway.config(), gateway.built());
    let mut busiest: Vec<(u64, u64, &BuiltAddresses, usize)> = Vec::new();
    for addresses in &built.limits.addresses {
        let name = config.gateways.get(addresses.place).map_or("", |g| g.name.value.as_str());
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let Some(watched) = gateway.limit_care().addresses.get(&addresses.gateway) else { continue };
        for (number, entry) in watched.entries.iter().enumerate() {
            if entry.sample.at > 0 && entry.packets > 0 {
                let bytes = entry.sample.bytes.iter().sum();
                busiest.push((entry.sample.rates.iter().sum(), bytes, addresses, number));
            }
        }
    }
    let order = |a: &(u64, u64, &BuiltAddresses, usize), b: &(u64, u64, &BuiltAddresses, usize)| {
        (b.0, b.1, a.2.gateway, a.3).cmp(&(a.0, a.1, b.2.gateway, b.3))
    };
    if busiest.len() > PAGE {
        busiest.select_nth_unstable_by(PAGE, order);
        busiest.truncate(PAGE);
    }
    busiest.sort_unstable_by(order);
    busiest.iter().filter_map(|(_, _, addresses, number)| talker(gateway, addresses, *number)).collect()
}

fn talker(gateway: &Gateway, addresses: &BuiltAddresses, number: usize) -> Option<TalkerRow> {
    let known = gateway.built().limits.limits.addresses_of(addresses.gateway)?;
    let view = known.table.view(number)?;
    let watched = gateway.limit_care().addresses.get(&addresses.gateway)?.entries.get(number)?;
    let class = known.classes.get(view.class as usize).or_else(|| known.classes.first())?;
    let way = |rate: Option<Cap>, traffic: Traffic, recent: u64| TalkerWay {
        rate: rate.map(|cap| cap.rate),
        bits_per_second: recent,
        passed_packets: traffic.passed_packets,
        passed_bytes: traffic.passed_bytes,
        dropped_packets: traffic.dropped_packets,
        dropped_bytes: traffic.dropped_bytes,
    };
    let [traffic_in, traffic_out] = view.traffic;
    let [rate_in, rate_out] = watched.sample.rates;
    Some(TalkerRow {
        gateway: gateway.config().gateways.get(addresses.place)?.name.value.as_str().into(),
        address: address_of(view.key),
        inwards: way(class.inwards.cap(), traffic_in, rate_in),
        outwards: way(class.outwards.cap(), traffic_out, rate_out),
    })
}

fn caps_of(pair: &Pair) -> [Option<Cap>; 2] {
    [pair.inwards.rate.cap(), pair.outwards.rate.cap()]
}

/// How full the tables of addresses are: gateway, addresses, room, and how often there was none.
pub fn tables(gateway: &Gateway) -> Vec<(String, usize, usize, u64)> {
    let of = |addresses: &BuiltAddresses| {
        let table: &AddressTable = &gateway.built().limits.limits.addresses_of(addresses.gateway)?.table;
        let name = gateway.config().gateways.get(addresses.place)?.name.value.as_str().to_string();
        Some((name, table.len(), table.capacity(), table.refused()))
    };
    gateway.built().limits.addresses.iter().filter_map(of).collect()
}
