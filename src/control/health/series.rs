//! Delay and loss of one way over time: a histogram of all round trips, and a ring of seconds and of minutes.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const SECOND: u64 = 1_000_000_000;
/// Round trips up to this are told apart, in microseconds: as long as an answer may take.
const LONGEST: u64 = 10_000_000;

/// What became of the probes of one second or minute.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    /// Which second or minute it is, from 1 on.
    at: u64,
    sent: u32,
    lost: u32,
    sum: u64,
    most: u64,
}

/// The last 60 seconds, or minutes.
#[derive(Debug, Clone)]
struct Ring {
    cells: [Cell; 60],
    /// Nanoseconds of a cell.
    span: u64,
}

impl Ring {
    const fn new(span: u64) -> Self {
        Self { cells: [Cell { at: 0, sent: 0, lost: 0, sum: 0, most: 0 }; 60], span }
    }

    /// The cell of a time.
    fn cell(&mut self, now: u64) -> &mut Cell {
        let at = now / self.span + 1;
        let cell = &mut self.cells[(at % 60) as usize];
        if cell.at != at {
            *cell = Cell { at, ..Cell::default() };
        }
        cell
    }

    /// Cells of the last 60 spans, this one among them, the newest first, with how many spans ago they began.
    fn recent(&self, now: u64) -> impl Iterator<Item = (u64, &Cell)> {
        let newest = now / self.span + 1;
        let known = move |ago: u64| {
            let at = newest.checked_sub(ago).filter(|at| *at > 0)?;
            Some((ago, &self.cells[(at % 60) as usize])).filter(|(_, cell)| cell.at == at)
        };
        (0..60).filter_map(known)
    }

    /// Lost of those whose fate is known, of a million.
    fn loss(&self, now: u64) -> u64 {
        let (lost, sent) = self.recent(now).fold((0, 0), |(lost, sent), (_, cell)| {
            (lost + u64::from(cell.lost), sent + u64::from(cell.sent))
        });
        lost * 1_000_000 / sent.max(1)
    }
}

/// What one minute brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minute {
    /// How many minutes ago it began.
    pub ago: u64,
    /// Probes whose fate is known.
    pub probes: u32,
    /// Of these, lost.
    pub lost: u32,
    /// Mean round trip, in microseconds.
    pub mean_us: u64,
    /// Longest round trip, in microseconds.
    pub longest_us: u64,
}

/// Delay and loss of one way.
#[derive(Debug, Clone)]
pub struct Series {
    delays: Histogram<u32>,
    seconds: Ring,
    minutes: Ring,
    /// Probes whose fate is known.
    pub sent: u64,
    /// Of these, lost.
    pub lost: u64,
    /// The last round trip (ns).
    pub last: Option<u64>,
}

impl Default for Series {
    fn default() -> Self {
        // Two digits: 4 KiB for each way. The bounds are constants that fit.
        let delays =
            Histogram::new_with_bounds(1, LONGEST, 2).unwrap_or_else(|_| unreachable!("good bounds"));
        Self {
            delays,
            seconds: Ring::new(SECOND),
            minutes: Ring::new(60 * SECOND),
            sent: 0,
            lost: 0,
            last: None,
        }
    }
}

impl Series {
    /// A probe was answered after `delay` (ns).
    pub fn answered(&mut self, delay: u64, now: u64) {
        let us = delay / 1_000;
        self.delays.saturating_record(us.max(1));
        self.last = Some(delay);
        self.sent += 1;
        for cell in [self.seconds.cell(now), self.minutes.cell(now)] {
            cell.sent += 1;
            cell.sum += us;
            cell.most = cell.most.max(us);
        }
    }

    /// No answer came to a probe in time.
    pub fn lost(&mut self, now: u64) {
        self.sent += 1;
        self.lost += 1;
        for cell in [self.seconds.cell(now), self.minutes.cell(now)] {
            cell.sent += 1;
            cell.lost += 1;
        }
    }

    /// The round trip that this part of all (0 to 1) did not exceed, in microseconds.
    #[must_use]
    pub fn delay_at(&self, part: f64) -> Option<u64> {
        (!self.delays.is_empty()).then(|| self.delays.value_at_quantile(part))
    }

    /// Probes lost in the last minute, of a million.
    #[must_use]
    pub fn loss_minute(&self, now: u64) -> u64 {
        self.seconds.loss(now)
    }

    /// Probes lost in the last hour, of a million.
    #[must_use]
    pub fn loss_hour(&self, now: u64) -> u64 {
        self.minutes.loss(now)
    }

    /// The minutes of the last hour that brought anything, the newest first.
    #[must_use]
    pub fn minutes(&self, now: u64) -> Vec<Minute> {
        let row = |(ago, cell): (u64, &Cell)| Minute {
            ago,
            probes: cell.sent,
            lost: cell.lost,
            mean_us: cell.sum / u64::from(cell.sent - cell.lost).max(1),
            longest_us: cell.most,
        };
        self.minutes.recent(now).map(row).collect()
    }

    /// The histogram: upper ends of its buckets in microseconds, and how many round trips each has.
    #[must_use]
    pub fn histogram(&self) -> Vec<(u64, u64)> {
        self.delays.iter_recorded().map(|v| (v.value_iterated_to(), v.count_since_last_iteration())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_and_losses_are_those_of_their_time() {
        let mut series = Series::default();
        assert_eq!((series.delay_at(0.5), series.loss_minute(0), series.last), (None, 0, None));
        for n in 0..100 {
            series.answered((n + 1) * 10_000, n * SECOND / 10);
        }
        for _ in 0..25 {
            series.lost(11 * SECOND);
        }
        assert_eq!(series.loss_minute(30 * SECOND), 200_000);
        let (half, most) = (series.delay_at(0.5).unwrap(), series.delay_at(0.99).unwrap());
        assert!((490..=510).contains(&half) && (980..=1000).contains(&most), "{half} {most}");
        assert_eq!(series.histogram().iter().map(|(_, count)| count).sum::<u64>(), 100);
        // A minute later they are of the last hour alone; after it they are forgotten.
        assert_eq!((series.loss_minute(80 * SECOND), series.loss_hour(80 * SECOND)), (0, 200_000));
        assert_eq!(series.loss_hour(3700 * SECOND), 0);
        let minutes = series.minutes(80 * SECOND);
        let expected = Minute { ago: 1, probes: 125, lost: 25, mean_us: 505, longest_us: 1000 };
        assert_eq!(minutes, [expected]);
        assert_eq!((series.sent, series.lost, series.last), (125, 25, Some(1_000_000)));
    }

    proptest! {
        #[test]
        fn the_last_minute_is_what_a_list_of_all_says(
            events in prop::collection::vec((0_u64..20 * SECOND, any::<bool>()), 1..200),
        ) {
            let mut series = Series::default();
            let (mut now, mut all) = (0, Vec::new());
            for (wait, lost) in events {
                now += wait;
                if lost { series.lost(now) } else { series.answered(1_000_000, now) }
                all.push((now, lost));
                let first = (now / SECOND + 1).saturating_sub(59);
                let recent: Vec<_> = all.iter().filter(|(at, _)| at / SECOND + 1 >= first).collect();
                let lost = recent.iter().filter(|(_, lost)| *lost).count() as u64;
                prop_assert_eq!(series.loss_minute(now), lost * 1_000_000 / recent.len() as u64);
            }
        }
    }
}
