//! The highest rate without loss, by the search that `causeway bench --rfc2544` uses too.

use std::time::Duration;

use causeway::cli::bench::search::{Offered, Search};

use super::{
    contest::{ROOM, Setting, TOO_FAST, settings},
    lab::{Result, best_and_median},
    source::Source,
    trial::{Bench, Outcome, Trial},
};

const WARM_UP: Duration = Duration::from_millis(5);
const TIME: Duration = Duration::from_millis(145);
/// Loss that others' "zero loss" often allows.
const SOME_LOSS: f64 = 0.005;
const SEARCH: Search = Search { steps: 8, width: 0.005 };
/// Times the maximum, a little more than can be carried.
const JUST_TOO_FAST: f64 = 1.05;
/// Share of the core that a subject must have had for a trial to count, and how often a trial may be repeated.
const OURS: f64 = 0.9;
const VOID: usize = 10;
/// Trials in a row at 95 % of the maximum.
const TRIALS: usize = 5;

/// One trial, and again where the kernel gave the core to others meanwhile: it lets even a real-time thread have 95 % of
/// each second only.
fn trial(bench: &mut Bench, source: &mut Source, rate: f64) -> Result<Outcome> {
    let mut once = || bench.run(source, ROOM, &Trial { rate, warm_up: WARM_UP, time: TIME });
    let mut outcome = once()?;
    for _ in 0..VOID {
        if outcome.rate > OURS * outcome.of_processor {
            break;
        }
        outcome = once()?;
    }
    Ok(outcome)
}

fn ratio(outcome: &Outcome) -> f64 {
    outcome.lost as f64 / outcome.offered.max(1) as f64
}

/// The highest rate offered of which no more than `most` was lost.
fn search(bench: &mut Bench, source: &mut Source, maximum: f64, passed: f64, most: f64) -> Result<f64> {
    SEARCH.highest(maximum, passed, most, |rate| {
        let outcome = trial(bench, source, rate)?;
        Ok(Offered { rate: outcome.offered_rate, loss: ratio(&outcome) })
    })
}

/// Finds, for every row that is wanted, the highest rate without loss.
pub fn rates(wanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<()> {
    settings(wanted, |setting: Setting| {
        let mut source = Source::load(ROOM)?;
        let mut benches = setting.benches(&mut source, wanted)?;
        println!(
            "\n{:44} {:>7} {:>7} {:>8} {:>8} {:>8}  Mpps, trials of {TIME:?}; at 95 % of max, {TRIALS} trials",
            "", "max", "at 105%", "no loss", "of max", "0.5 %"
        );
        for bench in &mut benches {
            let mut rates = Vec::new();
            for _ in 0..TRIALS {
                rates.push(trial(bench, &mut source, TOO_FAST)?.rate);
            }
            let (_, maximum) = best_and_median(&rates);
            let none = search(bench, &mut source, maximum, 0.0, 0.0)?;
            let some = search(bench, &mut source, maximum, none, SOME_LOSS)?;
            // What is carried when no more comes than that, rather than far too much.
            let mut carried = Vec::new();
            for _ in 0..TRIALS {
                carried.push(trial(bench, &mut source, JUST_TOO_FAST * maximum)?.rate);
            }
            let (_, carried) = best_and_median(&carried);
            let (mut losses, mut lost, mut in_rings) = (Vec::new(), 0, 0);
            for _ in 0..TRIALS {
                let outcome = trial(bench, &mut source, 0.95 * maximum)?;
                losses.push(ratio(&outcome));
                (lost, in_rings) = (lost + outcome.lost, in_rings + outcome.lost_in_rings);
            }
            let clean = losses.iter().filter(|loss| **loss == 0.0).count();
            let (worst, _) = best_and_median(&losses);
            println!(
                "{:44} {maximum:7.3} {carried:7.3} {none:8.3} {:7.1}% {some:8.3}  {clean} without loss, worst {:.3} %, \
                 {in_rings} of {lost} in our rings",
                setting.row(bench.subject.kind),
                100.0 * none / maximum,
                100.0 * worst,
            );
        }
        benches.into_iter().try_for_each(|bench| bench.subject.end())
    })
}
