//! What tunnels need from time to time: keepalives through NATs, dummy packets, and paths that are tried again.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use crate::{
    config::{Config, build::Built},
    runtime::Command,
    stats::{Segment, TrafficColumn, counters::group},
};

const SECOND: u64 = 1_000_000_000;
/// How often tunnels with keepalives are looked at (ns): the interval is seconds.
const LOOK: u64 = 100_000_000;
/// Dummies handed over at once, at most: after a stall the rate is not made up for.
const MOST_AT_ONCE: u64 = 64;

/// What is known of one tunnel.
#[derive(Debug, Default)]
struct State {
    /// The path's MTU as it was last told of.
    mtu: Option<u16>,
    /// Packets sent when it was last looked at, and since when there were no more (ns).
    sent: u64,
    quiet_since: u64,
    /// When dummies were last counted out (ns), and the parts of a dummy that were left over.
    counted: u64,
    owed: u64,
}

/// Looks after tunnels.
#[derive(Debug, Default)]
pub struct TunnelCare {
    tunnels: BTreeMap<u16, State>,
    paths_due: u64,
    silence_due: u64,
}

/// Packets that all workers have sent into a tunnel.
fn sent(segment: &Segment, tunnel: u16) -> u64 {
    let layout = segment.layout();
    let cell =
        layout.group(group::TUNNEL).and_then(|g| g.cell(tunnel.into(), TrafficColumn::OutPackets as usize));
    let Some(cell) = cell else { return 0 };
    let cells = (0..layout.workers).filter_map(|worker| segment.cells().get(worker * layout.block() + cell));
    cells.map(|cell| cell.load(Ordering::Relaxed)).sum()
}

impl TunnelCare {
    /// Does what is due at `now` (ns). `send` hands a command to a worker.
    pub fn tick(
        &mut self,
        config: &Config,
        built: &Built,
        segment: &Segment,
        now: u64,
        send: &mut dyn FnMut(Command),
    ) {
        if now >= self.paths_due {
            self.paths_due = now + SECOND;
            self.paths(config, built, now);
        }
        if now >= self.silence_due {
            self.silence_due = now + LOOK;
            self.keepalives(config, built, segment, now, send);
        }
        self.dummies(config, built, now, send);
    }

    /// Lets what was learned of paths age, and tells of changes.
    fn paths(&mut self, config: &Config, built: &Built, now: u64) {
        self.tunnels.retain(|number, _| built.tunnels.contains(number));
        for (tunnel, &number) in config.tunnels.iter().zip(&built.tunnels) {
            let Some(known) = built.tables.tunnel(number) else { continue };
            known.path.age(now);
            let mtu = known.path.mtu();
            let state = self.tunnels.entry(number).or_default();
            if std::mem::replace(&mut state.mtu, mtu) == mtu {
                continue;
            }
            let (name, inner) = (tunnel.name.value.as_str(), known.inner_mtu());
            match mtu {
                Some(mtu) => tracing::info!(
                    "tunnel {name}: its path takes packets of {mtu} bytes, so inner ones of {inner}"
                ),
                None => tracing::info!(
                    "tunnel {name}: what was learned of its path is too old; inner packets of {inner} bytes are tried again"
                ),
            }
        }
    }

    /// Keeps NATs from forgetting tunnels that have nothing to send (RFC 3948 4).
    fn keepalives(
        &mut self,
        config: &Config,
        built: &Built,
        segment: &Segment,
        now: u64,
        send: &mut dyn FnMut(Command),
    ) {
        for (tunnel, &number) in config.tunnels.iter().zip(&built.tunnels) {
            let Some(interval) = &tunnel.keepalive else { continue };
            let sent = sent(segment, number);
            let state =
                self.tunnels.entry(number).or_insert_with(|| State { quiet_since: now, ..State::default() });
            if std::mem::replace(&mut state.sent, sent) != sent {
                state.quiet_since = now;
            } else if now.saturating_sub(state.quiet_since) >= interval.value.0.as_nanos() as u64 {
                state.quiet_since = now;
                send(Command::Keepalive { tunnel: number });
            }
        }
    }

    /// Sends dummies at their rate.
    fn dummies(&mut self, config: &Config, built: &Built, now: u64, send: &mut dyn FnMut(Command)) {
        for (tunnel, &number) in config.tunnels.iter().zip(&built.tunnels) {
            let Some(rate) = &tunnel.dummy else { continue };
            let state = self.tunnels.entry(number).or_default();
            let passed = now.saturating_sub(std::mem::replace(&mut state.counted, now)).min(SECOND);
            let earned = state.owed + passed * u64::from(rate.value.0);
            let (due, rest) = (earned / SECOND, earned % SECOND);
            state.owed = rest;
            if due > 0 {
                state.quiet_since = now;
                send(Command::Dummies { tunnel: number, count: due.min(MOST_AT_ONCE) as u16 });
            }
        }
    }
}
