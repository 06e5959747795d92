//! Whether ways out can be used: probes, BFD, the signs that tunnels and ports give, and what operators say.
//!
//! Each interface and each tunnel has a [`machine::Machine`], which is told what is thought of the way and says whether
//! traffic may use it. The result is a word of [`Liveness`] that workers read: a switch is one store, no table is built.
//! Everything is driven by [`Health::tick`], with whatever clock there is.

pub mod machine;
pub mod prober;
pub mod series;
pub mod session;
pub mod view;

use std::{collections::HashMap, net::IpAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    config::{
        Config, Failback, Interval,
        build::{Built, Half},
    },
    runtime::Command,
    stage::Event,
    stats::{HealthColumn, PortColumn, Segment, TrafficColumn, counters::group, counters::health_row},
    table::{
        liveness::{Cause, Liveness},
        probe::{Probe, Way},
        tables::{NextHop, Tables},
    },
    wire::bfd,
};
use machine::{Change, Machine, Policy, Reason, State, Verdict};
use prober::Prober;
use session::Session;

const SECOND: u64 = 1_000_000_000;
/// How often the signs of tunnels are looked at (ns).
const LOOK: u64 = 50_000_000;
/// A tunnel that was sent into for so long without anything coming out of it is asked whether it works (ns).
const SILENCE: u64 = SECOND;
/// How often the gauges in the statistics are written (ns).
const GAUGES: u64 = SECOND;
/// How many source ports BFD sessions share (RFC 5881 4).
const SOURCE_PORTS: u32 = 16_384;

/// Which kind of way, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An interface.
    Interface,
    /// A tunnel.
    Tunnel,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::Tunnel => "tunnel",
        }
    }
}

/// The two addresses of a probe or session: ours, and the other.
type Ends = (IpAddr, IpAddr);

/// Signs of life of a tunnel.
#[derive(Debug, Default)]
struct Signs {
    /// Packets in and out when they were last counted.
    counted: (u64, u64),
    /// Since when packets go in and none comes out (ns).
    silent_since: Option<u64>,
    /// Whether it can seal, and open.
    associations: bool,
}

/// What is known of one way out.
#[derive(Debug)]
struct Path {
    kind: Kind,
    name: String,
    way: Way,
    machine: Machine,
    prober: Option<(Prober, Ends)>,
    session: Option<(Session, Ends)>,
    signs: Signs,
    /// The port has a carrier; of a tunnel, the line it goes by can be used.
    carrier: bool,
    drained: bool,
    /// Of a tunnel: the line it goes by works, but traffic is not to come back to it yet.
    line_held: bool,
    /// What workers were told last: not reached, held, drained, no carrier.
    told: Option<[bool; 4]>,
}

/// The causes, in the order of [`Path::told`].
const CAUSES: [Cause; 4] = [Cause::UNREACHED, Cause::HELD, Cause::DRAINED, Cause::NO_CARRIER];

/// Looks after the health of all ways out.
#[derive(Debug)]
pub struct Health {
    /// Interfaces, then tunnels, both in the order of the configuration.
    paths: Vec<Path>,
    interfaces: usize,
    by_way: HashMap<Way, usize>,
    /// The discriminator of the next BFD session.
    next_discriminator: u32,
    look_due: u64,
    gauges_due: u64,
}

const fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

impl Health {
    /// Of nothing yet. `first_discriminator`: of the first BFD session; best a random one.
    #[must_use]
    pub fn new(first_discriminator: u32) -> Self {
        Self {
            paths: Vec::new(),
            interfaces: 0,
            by_way: HashMap::new(),
            next_discriminator: first_discriminator,
            look_due: 0,
            gauges_due: 0,
        }
    }

    /// Takes up a configuration, before workers get its tables. What is known of ways that stay goes on.
    pub fn renew(&mut self, config: &Config, built: &Built, now: u64) {
        let mut known: HashMap<(Kind, String), Path> = std::mem::take(&mut self.paths)
            .into_iter()
            .map(|path| ((path.kind, path.name.clone()), path))
            .collect();
        let count = (config.interfaces.len() + config.tunnels.len()).max(1) as u64;
        for (interface, &number) in config.interfaces.iter().zip(&built.interfaces) {
            let name = interface.name.value.as_str();
            let policy = policy(interface.hold_down.value.0, *interface.failback);
            let mut path = known
                .remove(&(Kind::Interface, name.to_string()))
                .unwrap_or_else(|| Path::new(Kind::Interface, name, policy, now));
            path.way = Way::Interface(number);
            path.machine.policy = policy;
            let spread = self.paths.len() as u64;
            let probe = interface.probe.as_ref().map(|p| {
                let timing = probe_timing(&p.interval, &p.timeout, p.count.get(), p.recover.get());
                (timing, (p.source.value, p.target.value), now + timing.interval * spread / count)
            });
            path.set_prober(probe, now);
            let bfd = interface.bfd.as_ref().map(|b| {
                let timing = bfd_timing(&b.min_tx, &b.min_rx, b.multiplier.get());
                (timing, (b.source.value, b.target.value))
            });
            path.set_session(bfd, &mut self.next_discriminator, now);
            self.paths.push(path);
        }
        self.interfaces = self.paths.len();
        for (tunnel, &number) in config.tunnels.iter().zip(&built.tunnels) {
            let name = tunnel.name.value.as_str();
            let policy = policy(tunnel.hold_down.value.0, *tunnel.failback);
            let mut path = known
                .remove(&(Kind::Tunnel, name.to_string()))
                .unwrap_or_else(|| Path::new(Kind::Tunnel, name, policy, now));
            path.way = Way::Tunnel(number);
            path.machine.policy = policy;
            let spread = self.paths.len() as u64;
            let probe = tunnel.probe.as_ref().map(|p| {
                let timing = probe_timing(&p.interval, &p.timeout, p.count.get(), p.recover.get());
                (timing, (p.source.value, p.target.value), now + timing.interval * spread / count)
            });
            path.set_prober(probe, now);
            let bfd = tunnel.bfd.as_ref().map(|b| {
                let timing = bfd_timing(&b.min_tx, &b.min_rx, b.multiplier.get());
                (timing, (b.source.value, b.target.value))
            });
            path.set_session(bfd, &mut self.next_discriminator, now);
            self.paths.push(path);
        }
        for path in known.values().filter(|path| path.drained) {
            let kind = path.kind.name();
            tracing::warn!(
                "{kind} {} was drained, and is not in the file any more: that is forgotten",
                path.name
            );
        }
        self.by_way = self.paths.iter().enumerate().map(|(place, path)| (path.way, place)).collect();
        // Numbers are given again: what was said of a way that is gone is not said of the next one.
        self.forget(&built.tables);
        self.paths.iter_mut().for_each(|path| path.tell(&built.tables.liveness));
        self.look_due = 0;
    }

    /// Takes back what was said of numbers that no way has.
    fn forget(&mut self, tables: &Tables) {
        let interfaces = (0..tables.interfaces.len()).map(|number| Way::Interface(number as u16));
        let tunnels = (0..tables.tunnels.len()).map(|number| Way::Tunnel(number as u16));
        for way in interfaces.chain(tunnels).filter(|way| !self.by_way.contains_key(way)) {
            CAUSES.into_iter().for_each(|cause| set(&tables.liveness, way, cause, false));
        }
        self.paths.iter_mut().for_each(|path| path.told = None);
    }

    /// Takes up what workers `heard`, sends what is due at `now` (ns), and tells workers which ways they may use. `send`
    /// hands a command to a worker, and says whether it was taken. `segment`: what all workers count in; none while they
    /// move from one to another.
    pub fn tick(
        &mut self,
        built: &Built,
        segment: Option<&Segment>,
        heard: &mut Vec<Event>,
        now: u64,
        send: &mut dyn FnMut(Command) -> bool,
    ) {
        for event in heard.drain(..) {
            self.hear(&event, send);
        }
        if let Some(segment) = segment {
            if now >= self.look_due {
                self.look_due = now + LOOK;
                self.look(built, segment, now);
            }
            self.carriers(built, segment);
        }
        for place in 0..self.paths.len() {
            if place == self.interfaces {
                self.lines(&built.tables);
            }
            let path = &mut self.paths[place];
            path.probe(now, send);
            path.judge(now);
            path.tell(&built.tables.liveness);
        }
        if let Some(segment) = segment
            && now >= self.gauges_due
        {
            self.gauges_due = now + GAUGES;
            self.write_gauges(segment, now);
        }
    }

    /// Takes up one report of a worker.
    fn hear(&mut self, event: &Event, send: &mut dyn FnMut(Command) -> bool) {
        let (Event::Echo { way, .. } | Event::Bfd { way, .. }) = event else { return };
        let Some(path) = self.by_way.get(way).and_then(|place| self.paths.get_mut(*place)) else { return };
        match *event {
            Event::Echo { sequence, sent, received, .. } => {
                if let Some((prober, _)) = &mut path.prober {
                    prober.answered(sequence, received.saturating_sub(sent), received);
                }
            }
            Event::Bfd { way, packet, len, received } => {
                let Some((session, _)) = &mut path.session else { return };
                let before = session.states().0;
                match session.receive(&packet, len.into(), received) {
                    Ok(Some(answer)) => {
                        send(control_packet(way, session, answer));
                    }
                    Ok(None) => {}
                    Err(error) => tracing::debug!("{} {}: {error}", path.kind.name(), path.name),
                }
                report_session(path.kind, &path.name, session, before);
            }
            _ => {}
        }
    }

    /// Looks at the signs that tunnels give.
    fn look(&mut self, built: &Built, segment: &Segment, now: u64) {
        let tunnels = &mut self.paths[self.interfaces..];
        let mut can = vec![(false, false); tunnels.len()];
        for association in &built.associations {
            let Some((seals, opens)) = can.get_mut(association.tunnel) else { continue };
            match &association.half {
                Half::Out(sa) => *seals |= !sa.ended.load(Relaxed) && !sa.sequence.is_exhausted(),
                Half::In(sa) => *opens |= !sa.ended.load(Relaxed),
            }
        }
        for (path, (seals, opens)) in tunnels.iter_mut().zip(can) {
            path.signs.associations = seals && opens;
            let Way::Tunnel(number) = path.way else { continue };
            let counted = (
                counted(segment, number, TrafficColumn::InPackets),
                counted(segment, number, TrafficColumn::OutPackets),
            );
            let before = std::mem::replace(&mut path.signs.counted, counted);
            if counted.0 != before.0 || counted.1 == before.1 && path.signs.silent_since.is_none() {
                path.signs.silent_since = None;
            } else {
                path.signs.silent_since.get_or_insert(now);
            }
            let silent = path.signs.silent_since.is_some_and(|since| now.saturating_sub(since) >= SILENCE);
            let unreachable =
                built.tables.tunnel(number).is_some_and(|tunnel| tunnel.path.is_unreachable(now));
            if let Some((prober, _)) = &mut path.prober
                && (silent || unreachable)
            {
                prober.hurry(now);
                path.signs.silent_since = None;
            }
        }
    }

    /// Finds out which ports have a carrier.
    fn carriers(&mut self, built: &Built, segment: &Segment) {
        let layout = segment.layout();
        let Some(ports) = layout.group(group::PORT) else { return };
        for path in &mut self.paths[..self.interfaces] {
            let Way::Interface(number) = path.way else { continue };
            let Some(interface) = built.tables.interface(number) else { continue };
            let Some(cell) = ports.cell(interface.port.into(), PortColumn::Health as usize) else { continue };
            let mut cells =
                (0..layout.workers).filter_map(|worker| segment.cells().get(worker * layout.block() + cell));
            path.carrier = cells.all(|cell| cell.load(Relaxed) == 0);
        }
    }

    /// Finds out which tunnels go by a line that cannot be used.
    fn lines(&mut self, tables: &Tables) {
        let (interfaces, tunnels) = self.paths.split_at_mut(self.interfaces);
        for path in tunnels {
            let Way::Tunnel(number) = path.way else { continue };
            // Where there are several lines, the one that its packets take now.
            let hop = tables.tunnel(number).and_then(|tunnel| tables.outer_way(tunnel.next_hop, number));
            let line = match hop {
                Some((_, NextHop::Via { interface, .. })) => self.by_way.get(&Way::Interface(*interface)),
                _ => None,
            };
            let line = line.and_then(|place| interfaces.get(*place));
            let usable = line.is_none_or(Path::works);
            path.line_held = line.is_some_and(|line| line.works() && !line.is_usable());
            if std::mem::replace(&mut path.carrier, usable) != usable {
                match usable {
                    true => tracing::info!("tunnel {}: the line it goes by can be used again", path.name),
                    false => tracing::warn!("tunnel {}: the line it goes by cannot be used", path.name),
                }
            }
        }
    }

    /// Writes the gauges.
    fn write_gauges(&self, segment: &Segment, now: u64) {
        let Some(rows) = segment.layout().group(group::HEALTH) else { return };
        for path in self.paths.iter().filter(|path| path.is_watched()) {
            let name = health_row(path.kind.name(), &path.name);
            let Some(row) = rows.rows.iter().position(|row| *row == name) else { continue };
            let set = |column: HealthColumn, value: u64| {
                if let Some(cell) = rows.cell(row, column as usize).and_then(|cell| segment.cells().get(cell))
                {
                    cell.store(value, Relaxed);
                }
            };
            set(HealthColumn::State, path.machine.state().number());
            set(HealthColumn::Usable, path.is_usable().into());
            set(HealthColumn::Switches, path.machine.switches());
            if let Some((prober, _)) = &path.prober {
                let series = &prober.series;
                set(HealthColumn::Sent, series.sent);
                set(HealthColumn::Lost, series.lost);
                set(HealthColumn::LossMinute, series.loss_minute(now));
                set(HealthColumn::LossHour, series.loss_hour(now));
                set(HealthColumn::Delay, series.last.unwrap_or(0) / 1_000);
                set(HealthColumn::Delay50, series.delay_at(0.5).unwrap_or(0));
                set(HealthColumn::Delay99, series.delay_at(0.99).unwrap_or(0));
            }
            if let Some((session, _)) = &path.session {
                set(HealthColumn::BfdState, session.states().0 as u64);
                set(HealthColumn::BfdRefused, session.counts.refused);
            }
        }
    }

    fn find(&mut self, kind: Kind, name: &str) -> Result<&mut Path, String> {
        let found = self.paths.iter().position(|path| path.kind == kind && path.name == name);
        let Some(place) = found else {
            let names: Vec<&str> =
                self.paths.iter().filter(|path| path.kind == kind).map(|path| path.name.as_str()).collect();
            let all = if names.is_empty() {
                "there is none".into()
            } else {
                format!("there are: {}", names.join(", "))
            };
            return Err(format!("there is no {} {name}; {all}", kind.name()));
        };
        Ok(&mut self.paths[place])
    }

    /// Takes an interface or tunnel out of service, or puts it back. The result is whether that changed anything.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn drain(
        &mut self,
        kind: Kind,
        name: &str,
        drained: bool,
        liveness: &Liveness,
    ) -> Result<bool, String> {
        let path = self.find(kind, name)?;
        let changed = std::mem::replace(&mut path.drained, drained) != drained;
        path.tell(liveness);
        if changed {
            let words = if drained { "is drained by an operator" } else { "is in service again" };
            tracing::info!("{} {name} {words}", kind.name());
        }
        Ok(changed)
    }

    /// What operators have drained.
    pub fn drained(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.paths.iter().filter(|path| path.drained).map(|path| (path.kind, path.name.as_str()))
    }

    /// Lets traffic come back to an interface or tunnel that works again.
    ///
    /// # Errors
    /// There is none of this name, or none that traffic could come back to.
    pub fn fail_back(&mut self, kind: Kind, name: &str, now: u64, liveness: &Liveness) -> Result<(), String> {
        let path = self.find(kind, name)?;
        let change = path.machine.fail_back(now).ok_or_else(|| match path.machine.state() {
            State::Down => format!("{} {name} does not work yet", kind.name()),
            _ => format!("{} {name} is in use", kind.name()),
        })?;
        report(path, change, None);
        path.tell(liveness);
        Ok(())
    }
}

fn probe_timing(interval: &Interval, timeout: &Interval, count: u32, recover: u32) -> prober::Timing {
    prober::Timing { interval: ns(interval.0), timeout: ns(timeout.0), count, recover }
}

fn bfd_timing(min_tx: &Interval, min_rx: &Interval, multiplier: u32) -> session::Timing {
    session::Timing { min_tx: ns(min_tx.0), min_rx: ns(min_rx.0), multiplier: multiplier as u8 }
}

fn policy(hold_down: Duration, failback: Failback) -> Policy {
    Policy { hold_down: ns(hold_down), auto: failback == Failback::Auto }
}

fn set(liveness: &Liveness, way: Way, cause: Cause, holds: bool) {
    match way {
        Way::Interface(number) => liveness.set_interface(number, cause, holds),
        Way::Tunnel(number) => liveness.set_tunnel(number, cause, holds),
    };
}

/// Packets that all workers have counted of a tunnel.
fn counted(segment: &Segment, tunnel: u16, column: TrafficColumn) -> u64 {
    let layout = segment.layout();
    let cell = layout.group(group::TUNNEL).and_then(|g| g.cell(tunnel.into(), column as usize));
    let Some(cell) = cell else { return 0 };
    let cells = (0..layout.workers).filter_map(|worker| segment.cells().get(worker * layout.block() + cell));
    cells.map(|cell| cell.load(Relaxed)).sum()
}

/// The command that sends a packet of a session.
fn control_packet(way: Way, session: &Session, packet: [u8; bfd::LEN]) -> Command {
    let source_port = bfd::FIRST_SOURCE_PORT + (session.discriminators().0 % SOURCE_PORTS) as u16;
    Command::Probe { way, probe: Probe::Bfd { packet, source_port } }
}

/// Logs a session that comes or goes.
fn report_session(kind: Kind, name: &str, session: &Session, before: bfd::State) {
    let (now, remote) = session.states();
    if now == before || before != bfd::State::Up && now != bfd::State::Up {
        return;
    }
    let (ours, theirs) = session.diagnostics();
    let (before, after, kind) = (before.name(), now.name(), kind.name());
    if now == bfd::State::Up {
        tracing::info!("{kind} {name}: BFD {before} → {after}");
    } else {
        let (ours, theirs, remote) = (ours.words(), theirs.words(), remote.name());
        tracing::warn!("{kind} {name}: BFD {before} → {after}: {ours}; the other end: {remote}, {theirs}");
    }
}

/// Logs a change of state.
fn report(path: &Path, change: Change, reason: Option<Reason>) {
    let (kind, name) = (path.kind.name(), &path.name);
    let (old, new, lasted) = (change.old.name(), change.new.name(), change.lasted as f64 / 1e9);
    match (change.new, reason) {
        (State::Down, Some(reason)) => {
            tracing::warn!("{kind} {name}: {old} → {new} after {lasted:.3} s: {reason}");
        }
        (State::Waiting, _) => tracing::info!(
            "{kind} {name}: {old} → {new} after {lasted:.3} s: it works; `causeway failback {kind} {name}` lets traffic come back"
        ),
        // Nobody watches it: that it is thought to work is no news.
        (State::Up, _) if change.old == State::Init && !path.is_watched() => {}
        _ => tracing::info!("{kind} {name}: {old} → {new} after {lasted:.3} s"),
    }
}

impl Path {
    fn new(kind: Kind, name: &str, policy: Policy, now: u64) -> Self {
        Self {
            kind,
            name: name.to_string(),
            way: Way::Interface(u16::MAX),
            machine: Machine::new(policy, now),
            prober: None,
            session: None,
            signs: Signs { associations: true, ..Signs::default() },
            carrier: true,
            drained: false,
            line_held: false,
            told: None,
        }
    }

    /// Whether something asks after it.
    const fn is_watched(&self) -> bool {
        self.prober.is_some() || self.session.is_some()
    }

    /// Whether traffic may go this way.
    const fn is_usable(&self) -> bool {
        self.machine.state().is_usable() && !self.line_held && !self.drained && self.carrier
    }

    /// Whether it works, though it may be held down.
    fn works(&self) -> bool {
        self.machine.state() != State::Down && !self.drained && self.carrier
    }

    /// Probes from now on like this, if at all; the first probe goes at the time given.
    fn set_prober(&mut self, wanted: Option<(prober::Timing, Ends, u64)>, now: u64) {
        let Some((timing, ends, first)) = wanted else {
            self.prober = None;
            return;
        };
        match &mut self.prober {
            Some((prober, known)) if *known == ends => {
                if prober.timing() != timing {
                    prober.retime(timing, now);
                }
            }
            other => *other = Some((Prober::new(timing, first), ends)),
        }
    }

    /// Has from now on a BFD session like this, if any.
    fn set_session(&mut self, wanted: Option<(session::Timing, Ends)>, next: &mut u32, now: u64) {
        let Some((timing, ends)) = wanted else {
            self.session = None;
            return;
        };
        match &mut self.session {
            Some((session, known)) if *known == ends => {
                if session.timing() != timing {
                    session.retime(timing);
                }
            }
            other => {
                let discriminator = (*next).max(1);
                *next = discriminator.wrapping_add(1);
                let seed = u64::from(discriminator).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                *other = Some((Session::new(timing, discriminator, seed, now), ends));
            }
        }
    }

    /// Sends what is due, and gives up on what is late.
    fn probe(&mut self, now: u64, send: &mut dyn FnMut(Command) -> bool) {
        let way = self.way;
        if let Some((prober, _)) = &mut self.prober {
            prober.expire(now);
            prober.send(now, |sequence| send(Command::Probe { way, probe: Probe::Echo { sequence } }));
        }
        if let Some((session, _)) = &mut self.session {
            let before = session.states().0;
            session.expire(now);
            report_session(self.kind, &self.name, session, before);
            let command = control_packet(way, session, [0; bfd::LEN]);
            session.send(now, |packet| {
                let Command::Probe { probe: Probe::Bfd { source_port, .. }, .. } = command else {
                    return false;
                };
                send(Command::Probe { way, probe: Probe::Bfd { packet, source_port } })
            });
        }
    }

    /// What is thought of the way now.
    fn verdict(&self, now: u64) -> Verdict {
        // A tunnel's line is told of apart: it has been through a hold-down of its own.
        if self.kind == Kind::Interface && !self.carrier {
            return Verdict::Bad(Reason::Carrier);
        }
        if !self.signs.associations {
            return Verdict::Bad(Reason::Associations);
        }
        let session = self.session.as_ref().map(|(session, _)| session.verdict(now));
        let prober = self.prober.as_ref().map(|(prober, _)| prober.verdict());
        let active = || session.iter().chain(&prober);
        let bad = active().find(|verdict| matches!(verdict, Verdict::Bad(_)));
        match bad {
            Some(bad) => *bad,
            None if !self.is_watched() || active().any(|verdict| *verdict == Verdict::Good) => Verdict::Good,
            None => Verdict::Unknown,
        }
    }

    fn judge(&mut self, now: u64) {
        let verdict = self.verdict(now);
        if let Some(change) = self.machine.update(verdict, now) {
            report(self, change, self.machine.reason());
        }
    }

    /// Tells workers.
    fn tell(&mut self, liveness: &Liveness) {
        let state = self.machine.state();
        let held = self.line_held || matches!(state, State::Held(_) | State::Waiting);
        // A carrier is told of apart: who has no other way tries all the same.
        let unreached = state == State::Down && self.machine.reason() != Some(Reason::Carrier);
        let causes = [unreached, held, self.drained, !self.carrier];
        let told = self.told.replace(causes);
        for (number, cause) in CAUSES.into_iter().enumerate() {
            if told.is_none_or(|told| told[number] != causes[number]) {
                set(liveness, self.way, cause, causes[number]);
            }
        }
    }
}
