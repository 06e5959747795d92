//! One way out: what looks after it, and what workers were told of it.

use std::net::IpAddr;

use super::{
    Kind,
    machine::{Change, Machine, Policy, Reason, State, Verdict},
    prober::{self, Prober},
    session::{self, Session},
};
use crate::{
    runtime::Command,
    table::{
        liveness::{Cause, Liveness},
        probe::{Probe, Way},
    },
    wire::bfd,
};

/// The two addresses of a probe or session: ours, and the other.
pub(super) type Ends = (IpAddr, IpAddr);

/// Signs of life of a tunnel.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Packets in and out when they were last counted.
    pub counted: (u64, u64),
    /// Since when packets go in and none comes out (ns).
    pub silent_since: Option<u64>,
    /// Whether it can seal, and open.
    pub associations: bool,
}

/// What is known of one way out.
#[derive(Debug)]
pub(super) struct Path {
    pub kind: Kind,
    pub name: String,
    pub way: Way,
    pub machine: Machine,
    pub prober: Option<(Prober, Ends)>,
    pub session: Option<(Session, Ends)>,
    pub signs: Signs,
    /// The port has a carrier; of a tunnel, the line it goes by can be used.
    pub carrier: bool,
    pub drained: bool,
    /// Of a tunnel: the line it goes by works, but traffic is not to come back to it yet.
    pub line_held: bool,
    /// What workers were told last: not reached, held, drained, no carrier.
    pub told: Option<[bool; 4]>,
}

/// The causes, in the order of [`Path::told`].
pub(super) const CAUSES: [Cause; 4] = [Cause::UNREACHED, Cause::HELD, Cause::DRAINED, Cause::NO_CARRIER];

/// How many source ports BFD sessions share (RFC 5881 4).
const SOURCE_PORTS: u32 = 16_384;

/// The command that sends a packet of a session.
pub(super) fn control_packet(way: Way, session: &Session, packet: [u8; bfd::LEN]) -> Command {
    let source_port = bfd::FIRST_SOURCE_PORT + (session.discriminators().0 % SOURCE_PORTS) as u16;
    Command::Probe { way, probe: Probe::Bfd { packet, source_port } }
}

/// Logs a session that comes or goes.
pub(super) fn report_session(kind: Kind, name: &str, session: &Session, before: bfd::State) {
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
pub(super) fn report(path: &Path, change: Change, reason: Option<Reason>) {
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
    pub fn new(kind: Kind, name: &str, policy: Policy, now: u64) -> Self {
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
    pub const fn is_watched(&self) -> bool {
        self.prober.is_some() || self.session.is_some()
    }

    /// Whether traffic may go this way.
    pub const fn is_usable(&self) -> bool {
        self.machine.state().is_usable() && !self.line_held && !self.drained && self.carrier
    }

    /// Whether it works, though it may be held down.
    pub fn works(&self) -> bool {
        self.machine.state() != State::Down && !self.drained && self.carrier
    }

    /// Probes from now on like this, if at all; the first probe goes at the time given.
    pub fn set_prober(&mut self, wanted: Option<(prober::Timing, Ends, u64)>, now: u64) {
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
    pub fn set_session(&mut self, wanted: Option<(session::Timing, Ends)>, next: &mut u32, now: u64) {
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
    pub fn probe(&mut self, now: u64, send: &mut dyn FnMut(Command) -> bool) {
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

    pub fn judge(&mut self, now: u64) {
        let verdict = self.verdict(now);
        if let Some(change) = self.machine.update(verdict, now) {
            report(self, change, self.machine.reason());
        }
    }

    /// Tells workers.
    pub fn tell(&mut self, liveness: &Liveness) {
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

pub(super) fn set(liveness: &Liveness, way: Way, cause: Cause, holds: bool) {
    match way {
        Way::Interface(number) => liveness.set_interface(number, cause, holds),
        Way::Tunnel(number) => liveness.set_tunnel(number, cause, holds),
    };
}
