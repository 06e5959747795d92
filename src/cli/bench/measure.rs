//! The measuring itself: runs, stages, latency.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::rig::{Rig, RigError};
use crate::{runtime::pipeline::STAGE_NAMES, stats::StageColumn};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Packets of a burst.
    pub burst: usize,
    /// Runs.
    pub runs: usize,
    /// Packets of a run.
    pub packets: usize,
}

/// Time a packet, over the runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Nanoseconds, in the best run.
    pub ns_best: f64,
    /// Nanoseconds, in the median run.
    pub ns_median: f64,
    /// Nanoseconds, in the worst run.
    pub ns_worst: f64,
    /// Clocks of the time-stamp counter, in the best run.
    pub clocks_best: f64,
    /// Clocks of the time-stamp counter, in the median run.
    pub clocks_median: f64,
}

/// What one stage takes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageCost {
    /// The stage.
    pub stage: String,
    /// Nanoseconds a packet that entered the gateway.
    pub ns: f64,
    /// Clocks of the same.
    pub clocks: f64,
}

/// How long a burst takes from receive to queue, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Packets of the burst.
    pub burst: usize,
    /// Percentiles.
    pub p50: u64,
    /// 90 of 100 are as fast.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p99_9: u64,
    /// 9999 of 10,000.
    pub p99_99: u64,
}

/// Ticks of `packets` packets (rounded up to whole rounds) in bursts of `burst`, and how many they were.
fn run(
    rig: &mut Rig,
    burst: usize,
    packets: usize,
    mut each: impl FnMut(u64),
) -> Result<(u64, usize), RigError> {
    rig.restart();
    let (mut ticks, mut done) = (0, 0);
    while done < packets {
        rig.prepare(|_| ())?;
        done += rig.ready();
        while rig.ready() > 0 {
            let taken = rig.burst(burst)?;
            each(taken);
            ticks += taken;
        }
    }
    Ok((ticks, done))
}

/// Measures time a packet. `tick` is called after every run.
///
/// # Errors
/// [`RigError::Wrong`].
pub fn cost(rig: &mut Rig, effort: Effort, mut tick: impl FnMut()) -> Result<Cost, RigError> {
    // One run warms up what there is to warm up.
    run(rig, effort.burst, effort.packets / 4, |_| ())?;
    let mut clocks = Vec::with_capacity(effort.runs);
    for _ in 0..effort.runs.max(1) {
        let (ticks, packets) = run(rig, effort.burst, effort.packets, |_| ())?;
        clocks.push(ticks as f64 / packets as f64);
        tick();
    }
    clocks.sort_by(f64::total_cmp);
    let at = |n: usize| clocks.get(n).copied().unwrap_or(f64::NAN);
    let (best, median, worst) = (at(0), at(clocks.len() / 2), at(clocks.len() - 1));
    let ns = 1e9 / rig.clock().tick_hz() as f64;
    Ok(Cost {
        ns_best: best * ns,
        ns_median: median * ns,
        ns_worst: worst * ns,
        clocks_best: best,
        clocks_median: median,
    })
}

/// Measures each stage, the reading of the clock around it not counted.
///
/// # Errors
/// [`RigError::Wrong`].
pub fn stages(rig: &mut Rig, effort: Effort) -> Result<Vec<StageCost>, RigError> {
    let read = |rig: &mut Rig| -> Vec<(u64, u64)> {
        let counters = rig.gateway_mut().worker.counters();
        let of = |stage| {
            (counters.read_stage(stage, StageColumn::Ticks), counters.read_stage(stage, StageColumn::Bursts))
        };
        (0..STAGE_NAMES.len()).map(of).collect()
    };
    rig.gateway_mut().worker.set_timing(1);
    run(rig, effort.burst, effort.packets / 4, |_| ())?;
    let before = read(rig);
    let (_, packets) = run(rig, effort.burst, effort.packets, |_| ())?;
    let after = read(rig);
    rig.gateway_mut().worker.set_timing(0);
    let (overhead, ns) = (rig.overhead(), 1e9 / rig.clock().tick_hz() as f64);
    let costs = before.iter().zip(after).zip(STAGE_NAMES).map(|((before, after), name)| {
        let (ticks, bursts) = (after.0 - before.0, after.1 - before.1);
        let clocks = ticks.saturating_sub(bursts * overhead) as f64 / packets as f64;
        StageCost { stage: (*name).to_string(), ns: clocks * ns, clocks }
    });
    Ok(costs.filter(|cost| cost.clocks > 0.0).collect())
}

/// Measures how long bursts of this many packets take.
///
/// # Errors
/// [`RigError::Wrong`].
pub fn latency(rig: &mut Rig, burst: usize, packets: usize) -> Result<Latency, RigError> {
    // A minute in ns, to three digits.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)
        .map_err(|error| RigError::Setup(error.to_string()))?;
    let clock = rig.clock().clone();
    run(rig, burst, packets / 4, |_| ())?;
    run(rig, burst, packets, |ticks| histogram.saturating_record(clock.nanoseconds(0, ticks).max(1)))?;
    let at = |quantile| histogram.value_at_quantile(quantile);
    Ok(Latency { burst, p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), p99_99: at(0.9999) })
}
