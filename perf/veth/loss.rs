//! The highest rate without loss: a search as RFC 2544 26.1 has it, with loss ratios and the judging of each rate by
//! several trials as RFC 9971 has them.

use std::time::Duration;

use super::{
    contest::{ROOM, Setting, TOO_FAST, settings},
    lab::{Result, best_and_median},
    source::Source,
    trial::{Bench, Outcome, Trial},
};

const WARM_UP: Duration = Duration::from_millis(5);
const TIME: Duration = Duration::from_millis(145);
/// Loss that may be: none, and what others' "zero loss" often allows.
const RATIOS: [f64; 2] = [0.0, 0.005];
/// Halvings of the interval between a rate that is too high and one that is not.
const STEPS: usize = 7;
/// Trials in a row at 95 % of the maximum.
const TRIALS: usize = 5;

fn trial(bench: &mut Bench, source: &mut Source, rate: f64) -> Result<Outcome> {
    bench.run(source, ROOM, &Trial { rate, warm_up: WARM_UP, time: TIME })
}

fn ratio(outcome: &Outcome) -> f64 {
    outcome.lost as f64 / outcome.offered.max(1) as f64
}

/// The highest rate offered of which no more than `most` was lost in at least two of three trials.
fn search(bench: &mut Bench, source: &mut Source, maximum: f64, most: f64) -> Result<f64> {
    let (mut low, mut high, mut reached) = (0.0, 1.1 * maximum, 0.0_f64);
    for _ in 0..STEPS {
        let rate = if low == 0.0 { maximum * 0.9 } else { (low + high) / 2.0 };
        let (mut good, mut bad, mut offered) = (0, 0, f64::INFINITY);
        while good < 2 && bad < 2 {
            let outcome = trial(bench, source, rate)?;
            if ratio(&outcome) <= most {
                good += 1;
                offered = offered.min(outcome.offered_rate);
            } else {
                bad += 1;
            }
        }
        if good == 2 {
            (low, reached) = (rate, reached.max(offered));
        } else {
            high = rate;
            low = if low == 0.0 { 0.4 * maximum } else { low };
        }
    }
    Ok(reached)
}

/// Finds, for every row that is wanted, the highest rate without loss.
pub fn rates(wanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<()> {
    settings(wanted, |setting: Setting| {
        let mut source = Source::load(ROOM)?;
        let mut benches = setting.benches(&source, wanted)?;
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
            let [none, some] = RATIOS.map(|most| search(bench, &mut source, maximum, most));
            let (none, some) = (none?, some?);
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
