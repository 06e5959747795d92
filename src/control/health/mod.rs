//! Whether ways out can be used: probes, BFD, the signs that tunnels and ports give, and what operators say.
//!
//! Each interface and each tunnel has a [`machine::Machine`], which is told what is thought of the way and says whether
//! traffic may use it. The result is a word of [`Liveness`] that workers read: a switch is one store, no table is built.
//! Everything is driven by [`Health::tick`], with whatever clock there is.

pub mod machine;
mod path;
pub mod prober;
pub mod series;
pub mod session;
pub mod view;

use std::{collections::HashMap, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    config::{
        Config, Failback, Interval,
        build::{Built, Half},
    },
    runtime::Command,
    stage::Event,
    stats::{HealthColumn, PortColumn, Segment, TrafficColumn, counters::group, counters::health_row},
    table::{
        liveness::Liveness,
        probe::Way,
        tables::{NextHop, Tables},
    },
};
use machine::{Policy, State};
use path::{CAUSES, Path, control_packet, report, report_session, set};

const SECOND: u64 = 1_000_000_000;
/// How often the signs of tunnels are looked at (ns).
const LOOK: u64 = 50_000_000;
/// A tunnel that was sent into for so long without anything coming out of it is asked whether it works (ns).
const SILENCE: u64 = SECOND;
/// How often the gauges in the statistics are written (ns).
const GAUGES: u64 = SECOND;
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

/// Packets that all workers have counted of a tunnel.
fn counted(segment: &Segment, tunnel: u16, column: TrafficColumn) -> u64 {
    let layout = segment.layout();
    let cell = layout.group(group::TUNNEL).and_then(|g| g.cell(tunnel.into(), column as usize));
    let Some(cell) = cell else { return 0 };
    let cells = (0..layout.workers).filter_map(|worker| segment.cells().get(worker * layout.block() + cell));
    cells.map(|cell| cell.load(Relaxed)).sum()
}
