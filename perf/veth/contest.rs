//! The pipeline against the bare forwarder: all subjects take turns, so that whatever disturbs the machine disturbs all.

use std::{thread, time::Duration};

use super::{
    lab::{Result, best_and_median, enter},
    source::Source,
    subject::{Kind, Subject},
    trial::{Bench, Outcome, Trial},
};

/// Turns of each subject.
const TURNS: usize = 11;
/// More than any subject carries, and less than would keep the source's core from everything else.
pub const TOO_FAST: f64 = 3.0;
const WARM_UP: Duration = Duration::from_millis(10);
const TIME: Duration = Duration::from_millis(40);
/// Frames that the source holds: enough for a turn in which none may come twice.
pub const ROOM: usize = 163_840;

/// A size of frames and a kind of far end, at which subjects are compared.
#[derive(Clone, Copy)]
pub struct Setting {
    pub bytes: usize,
    pub sink: bool,
}

impl Setting {
    pub const ALL: [Self; 4] = [
        Self { bytes: 64, sink: false },
        Self { bytes: 1400, sink: false },
        Self { bytes: 64, sink: true },
        Self { bytes: 1400, sink: true },
    ];

    /// What a row is called.
    pub fn row(&self, kind: Kind) -> String {
        let far = if self.sink { "XDP" } else { "plain" };
        format!("{}, {} B, far end {far}", kind.name(), self.bytes)
    }

    /// The subjects of the rows that are wanted, and the bare forwarder, ready to run.
    pub fn benches(&self, source: &mut Source, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Bench>> {
        let mut benches = Vec::new();
        for kind in Kind::all() {
            if (kind == Kind::Bare || wanted(&self.row(kind)))
                && let Some(subject) = Subject::new(kind, self.bytes)?
            {
                let mut bench = Bench::new(subject, source, self.sink)?;
                // One after the other: they would be in each other's way on the core.
                bench.start(source)?;
                benches.push(bench);
            }
        }
        Ok(benches)
    }
}

/// Does something in a thread with a network namespace of its own for each setting of which a row is wanted.
pub fn settings(
    wanted: &(dyn Fn(&str) -> bool + Sync),
    work: impl Fn(Setting) -> Result<()> + Sync,
) -> Result<()> {
    for setting in Setting::ALL {
        if Kind::all().iter().any(|kind| wanted(&setting.row(*kind))) {
            let run = || enter().and_then(|()| work(setting));
            thread::scope(|scope| scope.spawn(run).join()).map_err(|_| "a run panicked")??;
        }
    }
    Ok(())
}

/// Measures the rate of every row that is wanted, and of the bare forwarder beside it.
pub fn rates(wanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<()> {
    settings(wanted, |setting| {
        let mut source = Source::load(ROOM)?;
        let mut benches = setting.benches(&mut source, wanted)?;
        let trial = Trial { rate: TOO_FAST, warm_up: WARM_UP, time: TIME };
        let mut outcomes: Vec<Vec<Outcome>> = benches.iter().map(|_| Vec::new()).collect();
        for _ in 0..TURNS {
            for (bench, outcomes) in benches.iter_mut().zip(&mut outcomes) {
                outcomes.push(bench.run(&mut source, ROOM, &trial)?);
            }
        }
        println!(
            "\n{:44} {:>6} {:>6} {:>7} {:>6} {:>7} {:>6}  Mpps, {TURNS} turns of {TIME:?}",
            "", "best", "median", "per CPU", "Gbps", "of bare", "batch"
        );
        let mut bare = f64::NAN;
        for (bench, outcomes) in benches.iter().zip(&outcomes) {
            let of = |figure: fn(&Outcome) -> f64| {
                best_and_median(&outcomes.iter().map(figure).collect::<Vec<_>>())
            };
            let ((best, median), (own, _)) = (of(|o| o.rate), of(|o| o.of_processor));
            if bench.subject.kind == Kind::Bare {
                bare = median;
            }
            let (gbps, share) = (median * setting.bytes as f64 * 8e-3, 100.0 * median / bare);
            println!(
                "{:44} {best:6.2} {median:6.2} {own:7.2} {gbps:6.2} {share:6.1}% {:6.0}",
                setting.row(bench.subject.kind),
                of(|o| o.batch).1,
            );
        }
        benches.into_iter().try_for_each(|bench| bench.subject.end())
    })
}
