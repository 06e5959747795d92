//! What a gateway tells of itself beyond its counters: neighbours, routes, associations and what its parts are.
//!
//! Answers come from the control thread's own data and are bounded: long lists come in pages. No key is in any.

use std::net::IpAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub use super::request::{EndSession, Explain, Request, Sa, SaChange, Show, Topic, Word};
use super::{
    gateway::Gateway,
    health::{self, view::HealthChange},
    limits,
    neighbours::address_of,
    rekey::{Action, Change},
};
use crate::{
    config::{Encapsulation, Key, Side, build::Half},
    stats::{SaColumn, Segment, counters::group},
    table::{
        limit::Level,
        neighbour::NeighbourState,
        tables::{NextHop, Tables},
    },
};

/// Rows of a page at most: what one answer costs the control thread stays below a millisecond.
pub const PAGE: usize = 1024;

/// Changes associations as asked for.
#[must_use]
pub fn change_associations(gateway: &mut Gateway, request: &Sa) -> Value {
    let key = || match &request.key_file {
        Some(path) if path.is_absolute() => Key::read(path),
        Some(_) => Err("the path of the key file is not absolute".to_string()),
        None => Err("a key file is needed".to_string()),
    };
    let action = match request.sa {
        SaChange::Add => key().map(Action::Add),
        SaChange::Switch => key().map(Action::Switch),
        SaChange::Retire => Ok(Action::Retire),
    };
    let change = action.map(|action| Change { tunnel: request.tunnel.clone(), spi: request.spi, action });
    match change.and_then(|change| gateway.rekey(change).map_err(|error| error.to_string())) {
        Ok(()) => {
            let word = match request.sa {
                SaChange::Add => "opens also",
                SaChange::Switch => "seals now",
                SaChange::Retire => "opens no more",
            };
            tracing::info!("tunnel {} {word} under SPI {:#x}", request.tunnel, request.spi);
            json!({ "ok": "in force" })
        }
        Err(error) => refusal(&error),
    }
}

/// Does what an operator wants with an interface or tunnel.
#[must_use]
pub fn change_health(gateway: &mut Gateway, request: &HealthChange) -> Value {
    match gateway.change_health(request) {
        Ok(done) => json!({ "ok": done }),
        Err(error) => refusal(&error),
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next page begins; nothing after the last.
    pub next: Option<usize>,
    /// Counts reloads: pages of different numbers do not belong together.
    pub generation: u64,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourRow {
    /// The interface.
    pub interface: String,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC address, when known.
    pub mac: Option<String>,
    /// incomplete, reachable, stale or permanent.
    pub state: String,
    /// Seconds since it was last confirmed, when ever.
    pub confirmed: Option<u64>,
    /// Seconds since a packet last went to it, when ever.
    pub used: Option<u64>,
}

/// A security association.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaRow {
    /// Its name in statistics.
    pub name: String,
    /// The tunnel.
    pub tunnel: String,
    /// out or in.
    pub direction: String,
    /// What names it in the packet.
    pub spi: u32,
    /// This end.
    pub local: IpAddr,
    /// The other end.
    pub remote: IpAddr,
    /// Whether ESP goes in UDP.
    pub udp: bool,
    /// Whether sequence numbers have 64 bits.
    pub esn: bool,
    /// Out: numbers that are used up.
    pub used: Option<u64>,
    /// Out: numbers that are left before the key must be replaced.
    pub remaining: Option<u64>,
    /// In: the newest number accepted, 0 before the first.
    pub newest: Option<u64>,
    /// In: size of the replay window, 0 when replays are not checked.
    pub window: Option<u32>,
    /// In: how far behind the newest an accepted packet was at most.
    pub lateness: Option<u64>,
    /// current, due (a new key is asked for) or over (it seals or opens nothing more).
    pub state: String,
    /// Seconds since its key was first seen.
    pub age: u64,
    /// Bytes sealed or opened since the gateway was started.
    pub used_bytes: u64,
    /// Seconds that it may live at most.
    pub lifetime: Option<u64>,
    /// Bytes that it may seal or open at most.
    pub lifetime_bytes: Option<u64>,
    /// Packets that it may seal or open at most, by their numbers.
    pub lifetime_packets: Option<u64>,
}

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRow {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: String,
    /// How its port was opened.
    pub description: String,
    /// Its VLAN.
    pub vlan: String,
    /// Its gateway.
    pub gateway: String,
    /// local or peer.
    pub side: String,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<String>,
    /// Its MAC address.
    pub mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// The TAP device of the host.
    pub host_tap: Option<String>,
    /// Limits in force, in and out, in bits a second.
    #[serde(default)]
    pub limit: [Option<u64>; 2],
}

/// What a tunnel is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRow {
    /// Its name.
    pub name: String,
    /// The gateway whose packets go through it.
    pub gateway: String,
    /// The gateway that carries the encrypted packets.
    pub underlay: String,
    /// This end.
    pub local: IpAddr,
    /// The other end.
    pub remote: IpAddr,
    /// esp or udp.
    pub encapsulation: String,
    /// Largest inner packet in bytes, by all that is known.
    pub mtu: u16,
    /// Largest outer packet of the path in bytes, where one was learned that is smaller than the line's.
    #[serde(default)]
    pub path_mtu: Option<u16>,
    /// Whether errors say that the peer cannot be reached.
    #[serde(default)]
    pub unreachable: bool,
    /// The neighbour that outer packets go to.
    pub via: Option<IpAddr>,
    /// Its state; nothing when no route leads to the other end.
    pub state: Option<String>,
    /// Limits in force, in and out, in bits a second.
    #[serde(default)]
    pub limit: [Option<u64>; 2],
}

/// What a port is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    /// Its name.
    pub name: String,
    /// How it was opened.
    pub description: String,
    /// The network device.
    pub device: Option<String>,
    /// Its MAC address.
    pub mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether the kernel keeps what is the host's.
    pub share_with_host: bool,
}

/// What a port's XDP program decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpRow {
    /// The port.
    pub port: String,
    /// The verdict.
    pub verdict: String,
    /// Frames.
    pub frames: u64,
}

/// An error as an answer.
#[must_use]
pub fn refusal(error: &dyn std::fmt::Display) -> Value {
    json!({ "error": error.to_string() })
}

/// The answer to a request for a list, or to a word that does not concern the file.
#[must_use]
pub fn answer(gateway: &Gateway, request: &Request) -> Value {
    match request {
        Request::Word(Word::Ping) => json!({ "ok": "pong" }),
        Request::Word(Word::Version) => json!({ "ok": {
            "version": env!("CARGO_PKG_VERSION"),
            "name": gateway.config().system.name.value.as_str(),
            "pid": std::process::id(),
        }}),
        Request::Word(Word::Reload | Word::Confirm | Word::History)
        | Request::Apply(_)
        | Request::Rollback(_)
        | Request::Configuration(_) => refusal(&"this gateway runs without a file"),
        Request::Show(show) => list(gateway, show),
        Request::ListRoutes(request) => gateway.list_routes(request),
        Request::Explain(question) => match super::explain::ask(gateway, &question.explain) {
            Ok(told) => json!({ "ok": told }),
            Err(why) => refusal(&why),
        },
        Request::Sa(_) | Request::Health(_) | Request::Limit(_) | Request::Routes(_) => {
            refusal(&"this is changed by whoever runs the gateway")
        }
        Request::EndSession(request) => match gateway.end_session(&request.end_session) {
            Ok(()) => json!({ "ok": "ended" }),
            Err(why) => refusal(&why),
        },
    }
}

fn list(gateway: &Gateway, show: &Show) -> Value {
    let generation = gateway.tables().generation;
    match show.show {
        Topic::Neighbours => page(neighbours(gateway), show.from, generation),
        Topic::Sa => page(associations(gateway), show.from, generation),
        Topic::Interfaces => page(interfaces(gateway), show.from, generation),
        Topic::Tunnels => page(tunnels(gateway), show.from, generation),
        Topic::Ports => page(ports(gateway), show.from, generation),
        Topic::Xdp => page(xdp(gateway), show.from, generation),
        Topic::NatSessions => {
            let filter = show.filter.clone().unwrap_or_default();
            gateway.nat_sessions(show.gateway.as_deref(), &filter, show.from, PAGE)
        }
        Topic::Health => {
            pages_of(health::view::PAGE, gateway.health().rows(gateway.now()), show.from, generation)
        }
        Topic::NatPools => page(gateway.nat_pools(), show.from, generation),
        Topic::NatRules => page(gateway.nat_rules(), show.from, generation),
        Topic::Limits => page(limits::rows(gateway).into_iter(), show.from, generation),
        Topic::Talkers => {
            if let Some(wanted) = &show.gateway
                && !gateway.config().gateways.iter().any(|g| g.name.value.as_str() == wanted)
            {
                return refusal(&format!("there is no gateway {wanted:?}"));
            }
            page(limits::talkers(gateway, show.gateway.as_deref()).into_iter(), show.from, generation)
        }
    }
}

fn page<T: Serialize + DeserializeOwned>(
    rows: impl Iterator<Item = T>,
    from: usize,
    generation: u64,
) -> Value {
    pages_of(PAGE, rows, from, generation)
}

/// As [`page`], with so many rows.
fn pages_of<T: Serialize + DeserializeOwned>(
    size: usize,
    rows: impl Iterator<Item = T>,
    from: usize,
    generation: u64,
) -> Value {
    let mut rows: Vec<T> = rows.skip(from).take(size + 1).collect();
    let more = rows.len() > size;
    rows.truncate(size);
    json!({ "ok": Page { rows, next: more.then(|| from.saturating_add(size)), generation } })
}

pub(super) const fn state_name(state: NeighbourState) -> &'static str {
    match state {
        NeighbourState::Incomplete => "incomplete",
        NeighbourState::Reachable => "reachable",
        NeighbourState::Stale => "stale",
        NeighbourState::Permanent => "permanent",
    }
}

fn name_of(names: &[String], number: u16) -> String {
    names.get(usize::from(number)).cloned().unwrap_or_default()
}

fn mac(bytes: [u8; 6]) -> String {
    crate::wire::ethernet::MacAddr(bytes).to_string()
}

fn neighbours(gateway: &Gateway) -> impl Iterator<Item = NeighbourRow> {
    let now = gateway.now();
    let ago = move |then: u64| (then > 0).then(|| now.saturating_sub(then) / 1_000_000_000);
    gateway.tables().neighbours.iter().map(move |view| NeighbourRow {
        interface: name_of(&gateway.built().rows.interfaces, view.key.interface),
        address: address_of(&view.key),
        mac: view.mac.map(mac),
        state: state_name(view.state).into(),
        confirmed: ago(view.confirmed),
        used: ago(view.last_used),
    })
}

/// The greatest value that any worker has in a cell.
fn greatest(segment: &Segment, group: &str, row: usize, column: usize) -> u64 {
    let layout = segment.layout();
    let Some(cell) = layout.group(group).and_then(|g| g.cell(row, column)) else { return 0 };
    let cells = (0..layout.workers).filter_map(|worker| segment.cells().get(worker * layout.block() + cell));
    cells.map(|cell| cell.load(std::sync::atomic::Ordering::Relaxed)).max().unwrap_or(0)
}

fn associations(gateway: &Gateway) -> impl Iterator<Item = SaRow> {
    let (config, now) = (gateway.config(), gateway.now());
    gateway.built().associations.iter().map(move |association| {
        let tunnel = &config.tunnels[association.tunnel];
        let (used, stage) = gateway.lifetimes().used(association, gateway.segment(), now);
        let row = SaRow {
            name: association.name.clone(),
            tunnel: tunnel.name.value.as_str().into(),
            direction: String::new(),
            spi: association.spi,
            local: tunnel.local.value,
            remote: tunnel.remote.value,
            udp: *tunnel.encapsulation == Encapsulation::Udp,
            esn: *tunnel.esn,
            used: None,
            remaining: None,
            newest: None,
            window: None,
            lateness: None,
            state: stage.name().into(),
            age: used.age,
            used_bytes: used.bytes,
            lifetime: tunnel.lifetime.as_ref().map(|bound| bound.value.0.as_secs()),
            lifetime_bytes: tunnel.lifetime_bytes.as_ref().map(|bound| bound.value.0),
            lifetime_packets: tunnel.lifetime_packets.as_ref().map(|bound| bound.value.0),
        };
        match &association.half {
            Half::Out(sa) => SaRow {
                direction: "out".into(),
                used: Some(association.newest()),
                remaining: Some(sa.sequence.remaining()),
                ..row
            },
            Half::In(_) => SaRow {
                direction: "in".into(),
                newest: Some(association.newest()),
                window: Some(tunnel.replay_window.0),
                lateness: Some(greatest(
                    gateway.segment(),
                    group::SA,
                    association.row as usize,
                    SaColumn::Lateness as usize,
                )),
                ..row
            },
        }
    })
}

fn interfaces(gateway: &Gateway) -> impl Iterator<Item = InterfaceRow> {
    let (config, built) = (gateway.config(), gateway.built());
    config.interfaces.iter().zip(&built.interfaces).map(move |(interface, &number)| {
        let known = gateway.interface(number);
        InterfaceRow {
            name: interface.name.value.as_str().into(),
            port: config.port(interface.port.value).name.value.as_str().into(),
            description: gateway.port_descriptions().get(interface.port.value.0).cloned().unwrap_or_default(),
            vlan: interface.vlan.value.to_string(),
            gateway: config.gateway(interface.gateway.value).name.value.as_str().into(),
            side: match *interface.side {
                Side::Local => "local".into(),
                Side::Peer => "peer".into(),
            },
            addresses: interface.addresses.iter().map(|a| a.value.to_string()).collect(),
            mac: known.map(|i| i.mac.to_string()).unwrap_or_default(),
            mtu: known.map_or(0, |i| i.mtu),
            host_tap: interface.host_tap.as_ref().map(|tap| tap.value.as_str().into()),
            limit: limits::in_force(built, Level::Interface, number),
        }
    })
}

fn towards(tables: &Tables, hop: Option<u32>) -> (Option<IpAddr>, Option<String>) {
    match hop.and_then(|hop| tables.next_hop(hop)) {
        Some(NextHop::Via { neighbour, address, .. }) => {
            (Some(address), tables.neighbours.state(neighbour).map(|s| state_name(s).into()))
        }
        _ => (None, None),
    }
}

fn tunnels(gateway: &Gateway) -> impl Iterator<Item = TunnelRow> {
    let (config, built, tables) = (gateway.config(), gateway.built(), gateway.tables());
    config.tunnels.iter().zip(&built.tunnels).map(move |(tunnel, &number)| {
        let known = tables.tunnel(number);
        let (via, state) = towards(tables, known.map(|t| t.next_hop));
        TunnelRow {
            name: tunnel.name.value.as_str().into(),
            gateway: config.gateway(tunnel.gateway.value).name.value.as_str().into(),
            underlay: config.gateway(tunnel.underlay.value).name.value.as_str().into(),
            local: tunnel.local.value,
            remote: tunnel.remote.value,
            encapsulation: tunnel.encapsulation.as_str().into(),
            mtu: known.map_or(0, |t| t.inner_mtu()),
            path_mtu: known.and_then(|t| t.path.mtu()),
            unreachable: known.is_some_and(|t| t.path.is_unreachable(gateway.now())),
            via,
            state,
            limit: limits::in_force(built, Level::Tunnel, number),
        }
    })
}

fn ports(gateway: &Gateway) -> impl Iterator<Item = PortRow> {
    let config = gateway.config();
    config.ports.iter().enumerate().map(move |(number, port)| PortRow {
        name: port.name.value.as_str().into(),
        description: gateway.port_descriptions().get(number).cloned().unwrap_or_default(),
        device: port.device.as_ref().map(|d| d.value.as_str().into()),
        mac: gateway.port_macs().get(number).map(ToString::to_string).unwrap_or_default(),
        mtu: port.mtu.get(),
        share_with_host: *port.share_with_host,
    })
}

fn xdp(gateway: &Gateway) -> impl Iterator<Item = XdpRow> {
    let ports = gateway.config().ports.iter().zip(gateway.devices());
    let counted = ports.filter_map(|(port, device)| {
        let counters = device.as_ref()?.program.counters().ok()?;
        Some((port.name.value.as_str(), counters))
    });
    counted.flat_map(|(port, counters)| {
        let rows: Vec<XdpRow> = counters
            .iter()
            .map(|(verdict, frames)| XdpRow { port: port.into(), verdict: verdict.name().into(), frames })
            .collect();
        rows
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_documented() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#""ping""#).unwrap(), Request::Word(Word::Ping));
        assert_eq!(read(r#""reload""#).unwrap(), Request::Word(Word::Reload));
        let sessions = Show { gateway: Some("vpc".into()), from: 1024, ..Show::first(Topic::NatSessions) };
        assert_eq!(
            read(r#"{"show":"nat-sessions","gateway":"vpc","from":1024}"#).unwrap(),
            Request::Show(sessions.clone())
        );
        let written = serde_json::to_string(&Request::Show(sessions.clone())).unwrap();
        assert_eq!(read(&written).unwrap(), Request::Show(sessions));
        let add = r#"{"route":"add","gateway":"vpc","source":"ebgp","routes":[{"to":"10.1.0.0/16","tunnel":"dc"}]}"#;
        let Request::Routes(change) = read(add).unwrap() else { panic!("{add}") };
        assert_eq!((change.routes[0].priority, change.routes[0].weight), (100, 1));
        let list = r#"{"list_routes":"vpc","within":"10.0.0.0/8","after":["vpc","10.1.0.0/16"]}"#;
        assert!(matches!(read(list).unwrap(), Request::ListRoutes(_)));
        for wrong in [r#""stop""#, "ping", "{}", r#"{"show":"keys"}"#, r#"{"show":"sa","x":1}"#, "[]", "7"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pages_cover_a_list_once() {
        let count = 2 * PAGE + 3;
        let (mut from, mut seen, mut pages) = (0, Vec::new(), 0);
        loop {
            let value = page(0..count, from, 1);
            let page: Page<usize> = serde_json::from_value(value["ok"].clone()).unwrap();
            seen.extend(page.rows);
            pages += 1;
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        assert_eq!((seen, pages), ((0..count).collect(), 3));
        let exact: Page<usize> = serde_json::from_value(page(0..PAGE, 0, 1)["ok"].clone()).unwrap();
        assert_eq!(exact.next, None);
        let beyond: Page<usize> = serde_json::from_value(page(0..PAGE, usize::MAX, 1)["ok"].clone()).unwrap();
        assert!(beyond.rows.is_empty());
    }
}
