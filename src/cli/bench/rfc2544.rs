//! Throughput without loss and latency under load (RFC 2544 26.1 and 26.2, RFC 9971), of one whole worker.
//!
//! Packets come at their times into a receive ring of [`RING`] places (see [`super::port`]); latency is the time from
//! then until the worker hands the packet to the port that it leaves by.

use std::{thread, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{
    crew::{Amount, Crew, Deal, turn},
    port::{Pace, RING},
    profile::{Profile, Size},
    rig::RigError,
    search::{Offered, Search},
    topology::Topology,
};

/// How long packets come in a trial.
const TIME: Duration = Duration::from_millis(100);
/// Between two trials others get the processor; a real-time priority may not have all of it.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes that packets of a trial may take where none may come again: the trial is shorter then.
const ROOM: usize = 192 << 20;
/// Packets that are compared with what they should be.
const VALIDATED: usize = 10_000;
/// Loss that others' "zero loss" often allows.
pub const SOME_LOSS: f64 = 0.005;
/// Turns for the rate that comes through when more is offered.
const TURNS: usize = 5;
/// Loads of the rate without loss at which latency is measured, in hundredths, and trials of each.
const LOADS: [u32; 3] = [10, 50, 90];
const TRIALS: usize = 5;

/// How long packets took at a load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AtLoad {
    /// Hundredths of the rate without loss.
    pub load: u32,
    /// Packets.
    pub packets: u64,
    /// Packets lost.
    pub lost: u64,
    /// Percentiles, in ns.
    pub p50: u64,
    /// 90 of 100 are as fast.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p99_9: u64,
    /// 9999 of 10,000.
    pub p99_99: u64,
    /// The slowest.
    pub most: u64,
}

/// Throughput and latency of a profile at one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// The profile.
    pub profile: String,
    /// Size of the frames.
    pub size: String,
    /// Million packets a second that come through when there is always one, in the median turn.
    pub maximum: f64,
    /// The highest rate without any loss.
    pub no_loss: f64,
    /// The highest rate of which no more than 0.5 % is lost.
    pub some_loss: f64,
    /// Packets that the receive ring holds.
    pub ring: u64,
    /// How long packets came in a trial, in ms.
    pub trial_ms: f64,
    /// Latency.
    pub latency: Vec<AtLoad>,
}

/// The line above the rows.
#[must_use]
pub fn heading() -> String {
    format!(
        "{:<16} {:>5} {:>8} {:>8} {:>7} {:>8} {:>6}   latency from arrival to send, us: p50, p90, p99, p99.9, p99.99, most",
        "profile", "size", "max Mpps", "no loss", "of max", "0.5 %", "Gbps"
    )
}

impl Throughput {
    /// The row of the table, with the latency of each load below.
    #[must_use]
    pub fn text(&self, mean_len: f64) -> String {
        let mut text = format!(
            "{:<16} {:>5} {:>8.2} {:>8.2} {:>6.1}% {:>8.2} {:>6.1}   ring of {}, trials of {:.0} ms",
            self.profile,
            self.size,
            self.maximum,
            self.no_loss,
            100.0 * self.no_loss / self.maximum,
            self.some_loss,
            self.no_loss * mean_len * 8e-3,
            self.ring,
            self.trial_ms,
        );
        for at in &self.latency {
            let us = |ns: u64| ns as f64 / 1e3;
            text.push_str(&format!(
                "\n    at {:>2} %: {:>8} packets, {} lost   {:.2}, {:.2}, {:.2}, {:.1}, {:.1}, {:.1}",
                at.load,
                at.packets,
                at.lost,
                us(at.p50),
                us(at.p90),
                us(at.p99),
                us(at.p99_9),
                us(at.p99_99),
                us(at.most)
            ));
        }
        text
    }

    /// Whether another row is about the same.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.profile, &self.size) == (&other.profile, &other.size)
    }
}

/// One worker and what it is offered.
struct Lab {
    crew: Crew,
    feeds: Vec<std::sync::Arc<super::port::Feed>>,
    core: [Option<usize>; 1],
    hz: f64,
    /// Packets that a trial may have.
    most: usize,
}

impl Lab {
    fn new(profile: &Profile, size: Size, core: Option<usize>) -> Result<Self, RigError> {
        let mut crew = Crew::new(Topology::new(profile), size, 1, Deal::Flows)?;
        crew.validate(VALIDATED, &[core])?;
        let hz = crew.clock().tick_hz() as f64;
        let most = if crew.wants_new_frames() {
            // What is around the frame in a tunnel.
            ROOM / (crew.traffic().mean_len() as usize + 64)
        } else {
            usize::MAX
        };
        let feeds = crew.feeds(crew.round(), 1, |_, _| ())?;
        Ok(Self { crew, feeds, core: [core], hz, most })
    }

    /// Makes the packets of a trial, where they may not come again.
    fn renew(&mut self, packets: usize) -> Result<(), RigError> {
        if self.crew.wants_new_frames() {
            self.feeds = self.crew.feeds(packets.min(self.most), 1, |_, _| ())?;
        }
        Ok(())
    }

    /// Millions of packets a second that come through when there is always one.
    fn fullest(&mut self) -> Result<f64, RigError> {
        self.renew(1_000_000)?;
        self.crew.order(&self.feeds, Amount::AtMost(u64::MAX), Pace::Full);
        thread::sleep(PAUSE);
        let done = turn(self.crew.hands(&self.core).collect(), Some(TIME / 2));
        Ok(done.iter().map(|done| done.packets as f64 / done.ticks.max(1) as f64 * self.hz / 1e6).sum())
    }

    /// Offers packets at a rate in millions a second, and says what was lost. `each` is told how long those took that
    /// came through, in ns.
    fn trial(&mut self, rate: f64, mut each: impl FnMut(u64)) -> Result<(Offered, u64, u64), RigError> {
        let packets = ((rate * 1e6 * TIME.as_secs_f64()) as usize).clamp(1, self.most);
        self.renew(packets)?;
        self.crew.order(&self.feeds, Amount::AtMost(packets as u64), Pace::Rate(rate));
        let clock = self.crew.clock().clone();
        let (entrance, exit) = self.crew.ways();
        if let Some(port) = self.crew.port(0, exit) {
            port.note_times(&clock, packets as u64);
        }
        let before = self.crew.sent();
        thread::sleep(PAUSE);
        turn(self.crew.hands(&self.core).collect(), None);
        let sent = self.crew.sent() - before;
        let (offered, lost) = self.crew.port(0, entrance).map_or((0, 0), |port| port.offered());
        if offered != packets as u64 || sent + lost != offered {
            let text = format!("of {packets} packets {offered} came, {lost} were lost and {sent} sent");
            return Err(RigError::Wrong(text));
        }
        self.crew.delays(|ticks| each(clock.nanoseconds(0, ticks).max(1)));
        Ok((Offered { rate, loss: lost as f64 / offered as f64 }, offered, lost))
    }
}

/// Searches for the rate without loss of a profile at one size, and measures latency below it.
///
/// # Errors
/// [`RigError`].
pub fn measure(profile: &Profile, size: Size, core: Option<usize>) -> Result<(Throughput, f64), RigError> {
    let mut lab = Lab::new(profile, size, core)?;
    let mut turns = (0..TURNS).map(|_| lab.fullest()).collect::<Result<Vec<_>, _>>()?;
    turns.sort_by(f64::total_cmp);
    let maximum = turns.get(TURNS / 2).copied().unwrap_or(0.0);
    let search = Search::default();
    let mut highest = |passed, most| {
        search.highest(maximum, passed, most, |rate| lab.trial(rate, |_| ()).map(|(offered, ..)| offered))
    };
    let no_loss = highest(0.0, 0.0)?;
    let some_loss = highest(no_loss, SOME_LOSS)?;
    let mut latency = Vec::new();
    for load in LOADS.into_iter().filter(|_| no_loss > 0.0) {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)
            .map_err(|error| RigError::Setup(error.to_string()))?;
        let (mut packets, mut lost) = (0, 0);
        let rate = no_loss * f64::from(load) / 100.0;
        for _ in 0..TRIALS {
            let (_, offered, missing) = lab.trial(rate, |ns| histogram.saturating_record(ns))?;
            (packets, lost) = (packets + offered, lost + missing);
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        latency.push(AtLoad {
            load,
            packets,
            lost,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            most: histogram.max(),
        });
    }
    let mean_len = lab.crew.traffic().mean_len();
    let trial = (lab.most as f64 / (no_loss * 1e6)).min(TIME.as_secs_f64());
    lab.crew.end()?;
    let row = Throughput {
        profile: profile.name.clone(),
        size: size.label(),
        maximum,
        no_loss,
        some_loss,
        ring: RING,
        trial_ms: trial * 1e3,
        latency,
    };
    Ok((row, mean_len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::profile::named;

    #[test]
    fn every_packet_of_a_trial_is_accounted_for() {
        for name in ["forward-16", "open-1"] {
            let profile: Profile = named(name).unwrap().unwrap();
            let mut lab = Lab::new(&profile, Size::Bytes(64), None).unwrap();
            // So slow that each comes alone, and faster than any worker.
            for (rate, loses) in [(0.02, false), (1000.0, true)] {
                let mut delays = 0;
                lab.most = 100_000;
                let (result, offered, lost) = lab.trial(rate, |_| delays += 1).unwrap();
                assert_eq!(offered, if loses { 100_000 } else { 2000 }, "{name}");
                assert_eq!(delays, offered - lost, "{name}");
                assert!(!loses || result.loss > 0.5, "{name}: {result:?}");
            }
            lab.crew.end().unwrap();
        }
    }
}
