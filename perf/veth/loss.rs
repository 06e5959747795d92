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
/// Trials in a row at 95 % of the maximum.
const TRIALS: usize = 5;

fn trial(bench: &mut Bench, source: &mut Source, rate: f64) -> Result<Outcome> {
    bench.run(source, ROOM, &Trial { rate, warm_up: WARM_UP, time: TIME })
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
            "\n{:44} {:>7} {:>8} {:>8} {:>8}  Mpps offered, trials of {TIME:?}; at 95 % of max, {TRIALS} trials",
            "", "max", "no loss", "of max", "0.5 %"
        );
        for bench in &mut benches {
            let mut rates = Vec::new();
            for _ in 0..TRIALS {
                rates.push(trial(bench, &mut source, TOO_FAST)?.rate);
            }
            let (_, maximum) = best_and_median(&rates);
            let none = search(bench, &mut source, maximum, 0.0, 0.0)?;
            let some = search(bench, &mut source, maximum, none, SOME_LOSS)?;
            let mut losses = Vec::new();
            for _ in 0..TRIALS {
                losses.push(ratio(&trial(bench, &mut source, 0.95 * maximum)?));
            }
            let clean = losses.iter().filter(|loss| **loss == 0.0).count();
            let (worst, _) = best_and_median(&losses);
            println!(
                "{:44} {maximum:7.3} {none:8.3} {:7.1}% {some:8.3}  {clean} without loss, worst {:.3} %",
                setting.row(bench.subject.kind),
                100.0 * none / maximum,
                100.0 * worst,
            );
        }
        benches.into_iter().try_for_each(|bench| bench.subject.end())
    })
}
