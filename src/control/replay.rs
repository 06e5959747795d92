//! A gateway over captures: the file's pipeline, with the time of the captures instead of a clock.
//!
//! What comes out depends on the configuration and the captures alone, so a run can be repeated and compared. The
//! clock is that of the captures, all ports together; hashes have a fixed seed; sequence numbers start at 1. So
//! **nothing that a replay has sealed may be sent anywhere**: a gateway that uses the same keys uses, or used, the
//! same numbers, and a key must not meet a number twice.

use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use super::{
    ports::derived_mac,
    single::{Single, SingleError},
};
use crate::{
    config::{Config, build::Ephemeral},
    io::pcap::{CaptureError, PcapPort},
    packet::DropReason,
    runtime::Ledger,
    stats::{Segment, counters::group},
    table::hash::Seed,
};

/// What the clock advances by where nothing arrives. Time-outs of the gateway are seconds.
const STEP: u64 = 100_000_000;
/// How long the clock runs on after the last packet: neighbours that do not answer are given up after three seconds,
/// and the answers to that take another round.
const AFTER: u64 = 5_000_000_000;
/// A silence is stepped through for this long; what is left of it passes at once.
const LONGEST_SILENCE: u64 = 3_600_000_000_000;
/// What the gateway's clock shows at the first packet: it starts a second after the machine, as it were.
const EPOCH: u64 = 1_000_000_000;
/// Of all hashes. Any number will do, as long as it is the same each time.
const SEED: Seed = Seed::new(0x6361_7573_6577_6179, 0x7265_706c_6179_2e31);

/// What came of a replay.
#[derive(Debug)]
pub struct Outcome {
    /// Where each packet went.
    pub ledger: Ledger,
    /// Frames that are nowhere: none, unless there is a bug.
    pub frames_missing: usize,
    /// Packets sent, by port.
    pub sent: Vec<u64>,
    /// Packets received, by port.
    pub received: Vec<u64>,
    /// Drops that happened, by reason, in the order of the reasons.
    pub drops: Vec<(DropReason, u64)>,
    /// Every counter, see [`counters`], with `ledger` and `frames_missing` beside.
    pub counters: Value,
    /// Captures that could not be read to their end or written, by port.
    pub failed: Vec<(usize, CaptureError)>,
}

impl Outcome {
    /// Whether every packet and every frame is accounted for.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.ledger.balances() && self.frames_missing == 0
    }
}

/// Runs the gateway of `config` over `ports`, one for each of the configuration, until their captures end and five
/// seconds more. Whatever driver the file names, none is used.
///
/// # Errors
/// The gateway cannot be built. A capture that breaks off is told in the outcome.
pub fn replay(config: &Config, ports: Vec<PcapPort>) -> Result<Outcome, SingleError> {
    let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(config, port)).collect();
    let mut single = Single::new(config, &macs, &mut Ephemeral::default(), SEED, |_| ports)?;
    // Stages are timed by the machine's clock, which would give other figures each time.
    single.worker.set_timing(0);
    let start = next(&mut single).unwrap_or(0);
    let mut now = start;
    advance(&mut single, start, now);
    single.announce(EPOCH);
    settle(&mut single, start, now);
    while let Some(due) = next(&mut single) {
        // A capture may be out of order: then the clock stays.
        let due = due.max(now);
        let silence_ends = due.min(now.saturating_add(LONGEST_SILENCE));
        while now.saturating_add(STEP) < silence_ends {
            now += STEP;
            settle(&mut single, start, now);
        }
        now = due;
        settle(&mut single, start, now);
    }
    for _ in 0..AFTER / STEP {
        now += STEP;
        settle(&mut single, start, now);
    }
    single.worker.end(clock(start, now));
    Ok(outcome(single))
}

/// The gateway's clock when that of the captures shows `now`.
const fn clock(start: u64, now: u64) -> u64 {
    now - start + EPOCH
}

/// When the next packet of any port is due.
fn next(single: &mut Single<PcapPort>) -> Option<u64> {
    single.worker.ports_mut().iter().filter_map(PcapPort::next_timestamp).min()
}

fn advance(single: &mut Single<PcapPort>, start: u64, now: u64) {
    debug_assert!(now >= start);
    single.worker.ports_mut().iter_mut().for_each(|port| port.set_now(now));
}

/// Takes in all that is due at `now`, and all that follows from it.
fn settle(single: &mut Single<PcapPort>, start: u64, now: u64) {
    advance(single, start, now);
    // Captures end, so this ends.
    single.settle(clock(start, now), usize::MAX);
}

fn outcome(mut single: Single<PcapPort>) -> Outcome {
    let worker = &single.worker;
    let ledger = worker.ledger();
    let frames_missing = worker.frames_missing();
    let count = |reason: &DropReason| (*reason, worker.counters().read_drops(*reason));
    let drops = DropReason::ALL.iter().map(count).filter(|(_, n)| *n > 0).collect();
    let mut counters = counters(&single.segment);
    counters["ledger"] = json!({
        "received": ledger.received,
        "originated": ledger.originated,
        "sent": ledger.sent,
        "delivered": ledger.delivered,
        "waiting": ledger.waiting,
        "dropped": ledger.dropped,
    });
    counters["frames_missing"] = frames_missing.into();
    let received = 0..single.worker.ports_mut().len();
    let received = received.map(|port| cell(&single.segment, group::PORT, port, "rx_packets")).collect();
    let ports = single.worker.ports_mut();
    let sent = ports.iter().map(PcapPort::sent).collect();
    let finish = |(number, port): (usize, &mut PcapPort)| {
        std::mem::take(port).finish().err().map(|error| (number, error))
    };
    let failed = ports.iter_mut().enumerate().filter_map(finish).collect();
    Outcome { ledger, frames_missing, sent, received, drops, counters, failed }
}

fn cell(segment: &Segment, group: &str, row: usize, column: &str) -> u64 {
    let layout = segment.layout();
    let cell = layout.group(group).and_then(|group| {
        let column = group.columns.iter().position(|known| known == column)?;
        group.cell(row, column)
    });
    let block = layout.block();
    let of_worker =
        |cell| segment.cells()[cell..].iter().step_by(block).map(|c| c.load(Ordering::Relaxed)).sum();
    cell.map_or(0, of_worker)
}

/// Every counter of a segment, of all workers together: group, row, column. Drops that are zero are left out. What
/// is measured in ticks of the machine's clock has no place here.
#[must_use]
pub fn counters(segment: &Segment) -> Value {
    let mut all = Map::new();
    for group in &segment.layout().groups {
        if group.name == group::STAGE {
            continue;
        }
        let mut rows = Map::new();
        for (row, name) in group.rows.iter().enumerate() {
            let columns = group.columns.iter().filter(|column| !column.ends_with("ticks"));
            let values = columns.map(|column| (column, cell(segment, &group.name, row, column)));
            let values = values.filter(|(_, value)| *value > 0 || group.name != group::DROP);
            let values: Map<_, _> = values.map(|(column, value)| (column.clone(), value.into())).collect();
            if !values.is_empty() {
                rows.insert(name.clone(), values.into());
            }
        }
        all.insert(group.name.clone(), rows.into());
    }
    all.into()
}
