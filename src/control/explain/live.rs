//! The run of one packet through the tables of a running gateway.

use std::sync::{Arc, atomic::AtomicBool};

use super::{
    run::{Asked, frame, sent},
    *,
};
use crate::{
    config::build,
    crypto::{aead::Key, sequence::Sequence},
    packet::{HugePages as Pages, Umem},
    runtime::{Mailbox, Worker},
    stage::{Event, EventQueue, NatTables},
    stats::{Segment, WorkerCounters},
    table::{
        gateway_nat::GatewayNat,
        session::{Claims, Kind, NewSession, Sources, View, tick},
        tables::Tables,
        tunnel::SaOut,
    },
    wire::checksum::Delta,
};

/// Buffers of the worker: for a packet in as many fragments as there can be, and what waits.
const BUFFERS: usize = 256;
/// Records of NAT sessions that are looked at, at most: some milliseconds.
const SCAN: usize = 1 << 20;
/// Sessions that the worker can have.
const SESSIONS: usize = 64;

/// Takes the packet through.
pub(super) fn run(gateway: &Gateway, packet: &Packet, place: usize) -> Result<Run, ExplainError> {
    let (config, built, now) = (gateway.config(), gateway.built(), gateway.now());
    let failed = |error: std::io::Error| ExplainError::Single(error.into());
    let port = config.interfaces[place].port.value;
    let frame = frame(config, packet, place, gateway.port_macs()[port.0])?;
    let tables = Arc::new(harmless(gateway)?);
    let size = config.system.buffer_size.get() as usize;
    let mut pools = Umem::new(BUFFERS, size, Pages::Never).map_err(SingleError::from)?.into_pools(1);
    let pool = pools.pop().ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
    let (ports, ends): (Vec<_>, Vec<_>) = config.ports.iter().map(|_| wire(QUEUE)).unzip();
    let name = config.system.name.value.as_str();
    let layout = built.rows.clone().layout(name, 1, gateway.segment().layout().tick_hz);
    let segment = Arc::new(Segment::anonymous(layout).map_err(failed)?);
    let events = Arc::new(EventQueue::new(QUEUE));
    let mut worker = Worker::new(
        ports,
        Vec::new(),
        pool,
        Arc::clone(&tables),
        WorkerCounters::new(&segment, 0),
        Arc::clone(&events),
        Arc::new(Mailbox::default()),
        config.system.burst.get() as usize,
    );
    worker.set_timing(0);
    let session = session(gateway, packet, place);
    let mut rules = tables.gateways.iter().filter_map(|gateway| gateway.nat.as_ref());
    if rules.any(GatewayNat::needs_tables) {
        let sources = Arc::new(Sources::new(SESSIONS, SEED).map_err(failed)?);
        let claims = Arc::new(Claims::new(1).map_err(failed)?);
        let mut nat = Box::new(NatTables::new(0, SESSIONS, SEED, sources, claims, None).map_err(failed)?);
        if let Some(view) = session {
            let _ = nat.sessions.insert(&again(&view, &tables), view.seen);
        }
        worker.set_nat(Some(nat));
    }
    // The wire is empty and holds more than one.
    let _ = ends[port.0].send(&frame);
    worker.round(now);
    let meta = worker.last_meta().copied();
    let mut quiet = 0;
    for _ in 0..ROUNDS {
        quiet = if worker.round(now) == 0 { quiet + 1 } else { 0 };
        if quiet == 3 {
            break;
        }
    }
    let mut waits_for = Vec::new();
    while let Some(event) = events.pop() {
        if let Event::Solicit { interface, address } = event {
            waits_for.push((interface, address));
        }
    }
    let moved = moved(&segment);
    let sent = sent(config, &tables, &ends);
    let text = format!(
        "the running gateway {name} (process {}), with its tables as they are now (number {})",
        std::process::id(),
        tables.generation
    );
    let details = json!({ "name": name, "pid": std::process::id(), "generation": tables.generation });
    let mut known = vec![Step { stage: "gateway", text, details }];
    known.extend(session.map(|view| tell(gateway, &view)));
    let limits =
        Asked::of(&built.limits, Arc::clone(&tables.limits), Some((Arc::clone(&built.limits.limits), now)));
    Ok(Run {
        tables,
        interfaces: built.interfaces.clone(),
        tunnels: built.tunnels.clone(),
        gateways: built.gateways.clone(),
        limits,
        known,
        waits_for,
        meta,
        moved,
        sent,
        received: (port.0, frame),
    })
}

/// What was counted: of a gateway with thousands of tunnels a few of a million cells.
fn moved(segment: &Segment) -> Vec<(String, String, String, u64)> {
    let mut all = Vec::new();
    for table in segment.layout().groups.iter().filter(|table| table.name != group::STAGE) {
        let columns = table.columns.len().max(1);
        let cells = segment.cells().get(table.offset..).unwrap_or(&[]).iter().take(table.cells());
        for (place, cell) in cells.enumerate() {
            let value = cell.load(std::sync::atomic::Ordering::Relaxed);
            if value > 0 {
                let (row, column) = (&table.rows[place / columns], &table.columns[place % columns]);
                all.push((table.name.clone(), row.clone(), column.clone(), value));
            }
        }
    }
    all
}

/// The gateway's tables, with sequence numbers that nobody else uses in place of those of its keys: none of theirs is
/// used up. Where a key has none left, or has ended, so it has here.
fn harmless(gateway: &Gateway) -> Result<Tables, ExplainError> {
    let (config, built) = (gateway.config(), gateway.built());
    let mut tables = Tables::clone(gateway.tables());
    // The gateway's own buckets and counts are its workers'.
    tables.limits = Arc::new(built.limits.limits.apart());
    let backend = build::backend(config.system.cipher.value).map_err(SingleError::from)?;
    for (place, number) in built.tunnels.iter().enumerate() {
        let Some(tunnel) = tables.tunnels.get_mut(usize::from(*number)) else { continue };
        let Some(sa) = &tunnel.sa else { continue };
        let key = &config.tunnels[place].outbound.key.value;
        let Ok(key) = Key::new(backend, key.aes(), key.salt()) else { continue };
        let (next, ended) = (sa.sequence.next(), sa.ended.load(std::sync::atomic::Ordering::Relaxed));
        tunnel.sa = Some(Arc::new(SaOut {
            index: sa.index,
            spi: sa.spi,
            key,
            esn: sa.esn,
            sequence: Arc::new(Sequence::ephemeral(next, sa.esn)),
            ended: AtomicBool::new(ended),
        }));
    }
    Ok(tables)
}

/// The session of NAT that the packet is of, if there is one: as the host inside sends it, or as the peer answers.
fn session(gateway: &Gateway, packet: &Packet, place: usize) -> Option<View> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (packet.source, packet.destination) else {
        return None;
    };
    let (from, to) = match packet.content {
        Content::Ports(from, to) => (from, to),
        // The identifier that the packet is made with.
        Content::Icmp(..) => (1, 1),
        Content::Opaque => return None,
    };
    let entry = gateway.config().interfaces[place].gateway.value.0;
    let number = *gateway.built().gateways.get(entry)?;
    let (source, destination) = (source.to_bits(), destination.to_bits());
    let icmp = packet.protocol == protocol::ICMPV4;
    let is_of = |view: &View| {
        let same = |key: crate::table::session::Key, host: (u32, u16), remote: (u32, u16)| {
            let ports = icmp || (key.port(), key.remote_port()) == (host.1, remote.1);
            let port = !icmp || key.port() == host.1;
            (key.address(), key.remote(), key.protocol(), key.gateway())
                == (host.0, remote.0, packet.protocol, number)
                && ports
                && port
        };
        same(view.inside, (source, from), (destination, to))
            || same(view.outside, (destination, to), (source, from))
    };
    let records = gateway.nat().records().iter().flat_map(|records| records.iter());
    records.take(SCAN).filter_map(|record| record.view()).find(is_of)
}

/// A session once more, for the worker that tries.
fn again(view: &View, tables: &Tables) -> NewSession {
    let nat = tables.gateway(view.inside.gateway()).and_then(|gateway| gateway.nat.as_ref());
    let (inside, outside) = (view.inside, view.outside);
    NewSession {
        inside,
        outside,
        kind: view.kind,
        rule: view.rule,
        generation: nat.map_or(0, |nat| nat.generation),
        counted: false,
        claimed: false,
        tcp: view.tcp,
        address_delta: Delta::between_u32(inside.address(), outside.address()).to_bits(),
        port_delta: Delta::between_u16(inside.port(), outside.port()).to_bits(),
    }
}

fn tell(gateway: &Gateway, view: &View) -> Step {
    let config = gateway.config();
    let place = gateway.built().gateways.iter().position(|number| *number == view.inside.gateway());
    let names = place.map(|place| crate::control::nat::rule_names(config, place, view.kind));
    let rule = names.and_then(|mut names| names.nth(view.rule as usize)).unwrap_or("-");
    let socket = |address: u32, port: u16| SocketAddr::new(IpAddr::V4(address.into()), port);
    let inside = socket(view.inside.address(), view.inside.port());
    let outside = socket(view.outside.address(), view.outside.port());
    let remote = socket(view.inside.remote(), view.inside.remote_port());
    let kind = match view.kind {
        Kind::Pool => "pool",
        Kind::Mapping => "port",
    };
    let idle = (u64::from(tick(gateway.now()).wrapping_sub(view.seen)) << 20) / 1_000_000_000;
    let text = format!(
        "there is a session of rule {rule}: {inside} appears as {outside} to {remote}, last used {idle} s ago"
    );
    let details = json!({
        "rule": rule, "kind": kind, "inside": inside, "outside": outside, "remote": remote, "idle": idle,
    });
    Step { stage: "session", text, details }
}
