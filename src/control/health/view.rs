//! What operators are shown of health.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Health, Kind, Path, machine::State, series::Minute};

/// What an operator does about an interface or tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthChange {
    /// What to do.
    pub health: HealthAction,
    /// interface or tunnel.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// What can be done about an interface or tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthAction {
    /// Take it out of service.
    Drain,
    /// Put it back.
    Undrain,
    /// Let traffic come back to it now that it works again.
    Failback,
}

/// Rows of a page of [`HealthRow`]s: each has an hour's minutes and a histogram.
pub const PAGE: usize = 32;

/// The health of an interface or tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthRow {
    /// interface or tunnel.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// init, up, down, held (the hold-down runs) or waiting (for an operator).
    pub state: String,
    /// Seconds since it is so.
    pub since: f64,
    /// Whether traffic may go this way.
    pub usable: bool,
    /// Why it is not, where the state does not say.
    pub reason: Option<String>,
    /// Whether an operator has drained it.
    pub drained: bool,
    /// Interface: whether the port has a carrier. Tunnel: whether the line it goes by can be used.
    pub carrier: bool,
    /// Seconds until the hold-down is over.
    pub held_for: Option<f64>,
    /// Seconds that it is held down.
    pub hold_down: f64,
    /// auto or manual.
    pub failback: String,
    /// How often traffic had to leave it, or came back.
    pub switches: u64,
    /// Its probes.
    pub probe: Option<ProbeRow>,
    /// Its BFD session.
    pub bfd: Option<BfdRow>,
}

/// Probes of one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Where they come from.
    pub source: IpAddr,
    /// Whom they go to.
    pub target: IpAddr,
    /// Milliseconds between two.
    pub interval_ms: u64,
    /// Milliseconds that an answer may take.
    pub timeout_ms: u64,
    /// So many lost in a row are a fault.
    pub count: u32,
    /// So many answered in a row end it.
    pub recover: u32,
    /// Probes whose fate is known.
    pub probes: u64,
    /// Of these, lost.
    pub lost: u64,
    /// The last round trip, in microseconds.
    pub last_us: Option<u64>,
    /// The median, in microseconds.
    pub p50_us: Option<u64>,
    /// The 99th percentile, in microseconds.
    pub p99_us: Option<u64>,
    /// Lost in the last minute, in percent.
    pub loss_minute: f64,
    /// Lost in the last hour, in percent.
    pub loss_hour: f64,
    /// The minutes of the last hour, the newest first.
    pub minutes: Vec<Minute>,
    /// All round trips: upper ends of buckets in microseconds, and how many each has.
    pub histogram: Vec<(u64, u64)>,
}

/// The BFD session of one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BfdRow {
    /// Our address.
    pub source: IpAddr,
    /// The other end's.
    pub target: IpAddr,
    /// Our state, as RFC 5880 spells it.
    pub state: String,
    /// The other end's, as it said last.
    pub remote_state: String,
    /// Why ours went down last.
    pub diagnostic: String,
    /// Why the other end's did.
    pub remote_diagnostic: String,
    /// Our discriminator.
    pub discriminator: u32,
    /// The other end's; 0 when it is not heard.
    pub remote_discriminator: u32,
    /// Milliseconds between two packets of ours, at most.
    pub transmit_ms: f64,
    /// Milliseconds that the other end may be silent.
    pub detection_ms: f64,
    /// Our multiplier.
    pub multiplier: u8,
    /// Packets sent.
    pub sent: u64,
    /// Packets received and used.
    pub received: u64,
    /// Packets refused: malformed, or of no session.
    pub refused: u64,
    /// Times that it went down from up.
    pub downs: u64,
}

impl Health {
    /// All ways: interfaces, then tunnels, each in the order of the configuration.
    pub fn rows(&self, now: u64) -> impl Iterator<Item = HealthRow> {
        self.paths.iter().map(move |path| row(path, now))
    }
}

fn percent(parts_per_million: u64) -> f64 {
    parts_per_million as f64 / 10_000.0
}

fn row(path: &Path, now: u64) -> HealthRow {
    let machine = &path.machine;
    let state = machine.state();
    let reason = machine.reason().map(|reason| reason.to_string());
    let line = || (!path.carrier).then(|| "the line it goes by cannot be used".to_string());
    let seconds = |ns: u64| ns as f64 / 1e9;
    HealthRow {
        kind: path.kind,
        name: path.name.clone(),
        state: state.name().into(),
        since: seconds(now.saturating_sub(machine.since())),
        usable: path.is_usable(),
        reason: reason.or_else(line),
        drained: path.drained,
        carrier: path.carrier,
        held_for: match state {
            State::Held(until) => Some(seconds(until.saturating_sub(now))),
            _ => None,
        },
        hold_down: seconds(machine.policy.hold_down),
        failback: if machine.policy.auto { "auto" } else { "manual" }.into(),
        switches: machine.switches(),
        probe: path.prober.as_ref().map(|(prober, (source, target))| {
            let (timing, series) = (prober.timing(), &prober.series);
            ProbeRow {
                source: *source,
                target: *target,
                interval_ms: timing.interval / 1_000_000,
                timeout_ms: timing.timeout / 1_000_000,
                count: timing.count,
                recover: timing.recover,
                probes: series.sent,
                lost: series.lost,
                last_us: series.last.map(|last| last / 1_000),
                p50_us: series.delay_at(0.5),
                p99_us: series.delay_at(0.99),
                loss_minute: percent(series.loss_minute(now)),
                loss_hour: percent(series.loss_hour(now)),
                minutes: series.minutes(now),
                histogram: series.histogram(),
            }
        }),
        bfd: path.session.as_ref().map(|(session, (source, target))| {
            let (states, diagnostics) = (session.states(), session.diagnostics());
            let discriminators = session.discriminators();
            let ms = |ns: u64| ns as f64 / 1e6;
            BfdRow {
                source: *source,
                target: *target,
                state: states.0.name().into(),
                remote_state: states.1.name().into(),
                diagnostic: diagnostics.0.words().into(),
                remote_diagnostic: diagnostics.1.words().into(),
                discriminator: discriminators.0,
                remote_discriminator: discriminators.1,
                transmit_ms: ms(session.transmit_interval()),
                detection_ms: ms(session.detection_time()),
                multiplier: session.timing().multiplier,
                sent: session.counts.sent,
                received: session.counts.received,
                refused: session.counts.refused,
                downs: session.counts.downs,
            }
        }),
    }
}
