//! ICMP echo probes of one way: when they go, and what their fate says.

use std::collections::VecDeque;

use super::{machine::Verdict, series::Series};

/// How a way is probed. Times in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two probes.
    pub interval: u64,
    /// How long an answer may take.
    pub timeout: u64,
    /// So many lost in a row: it does not work.
    pub count: u32,
    /// So many answered in a row: it works again.
    pub recover: u32,
}

/// Probes go no faster than this, whatever makes them hurry (ns).
const LEAST_INTERVAL: u64 = 100_000_000;

/// Probes of one way.
#[derive(Debug, Clone)]
pub struct Prober {
    timing: Timing,
    next: u64,
    sequence: u16,
    /// Probes without an answer yet, and when they went, the oldest first.
    open: VecDeque<(u16, u64)>,
    lost: u32,
    won: u32,
    verdict: Verdict,
    /// Something speaks against the way: probes go faster until they decide.
    hurry: bool,
    /// Delay and loss.
    pub series: Series,
}

impl Prober {
    /// The first probe goes at `first` (ns).
    #[must_use]
    pub fn new(timing: Timing, first: u64) -> Self {
        Self {
            timing,
            next: first,
            sequence: 0,
            open: VecDeque::new(),
            lost: 0,
            won: 0,
            verdict: Verdict::Unknown,
            hurry: false,
            series: Series::default(),
        }
    }

    /// Goes on with other times.
    pub fn retime(&mut self, timing: Timing, now: u64) {
        self.timing = timing;
        self.next = self.next.min(now + timing.interval);
    }

    /// How it probes.
    #[must_use]
    pub const fn timing(&self) -> Timing {
        self.timing
    }

    /// The number of the probe that is due at `now`, if one is. `send` says whether it went.
    pub fn send(&mut self, now: u64, send: impl FnOnce(u16) -> bool) {
        if now < self.next || !send(self.sequence) {
            return;
        }
        self.open.push_back((self.sequence, now));
        self.sequence = self.sequence.wrapping_add(1);
        let interval = if self.hurry {
            self.timing.timeout.clamp(LEAST_INTERVAL.min(self.timing.interval), self.timing.interval)
        } else {
            self.timing.interval
        };
        // From when it was due, unless that is long ago: the rate is not made up for.
        self.next = (self.next + interval).max(now + interval / 2);
    }

    /// An answer came after `delay` (ns). One that is not waited for, or no longer, counts for nothing.
    pub fn answered(&mut self, sequence: u16, delay: u64, now: u64) {
        let Some(at) = self.open.iter().position(|open| open.0 == sequence) else { return };
        if delay > self.timing.timeout {
            return;
        }
        self.open.remove(at);
        self.series.answered(delay, now);
        (self.lost, self.hurry) = (0, false);
        self.won = self.won.saturating_add(1);
        if !matches!(self.verdict, Verdict::Bad(_)) || self.won >= self.timing.recover {
            self.verdict = Verdict::Good;
        }
    }

    /// Gives up on what was not answered in time.
    pub fn expire(&mut self, now: u64) {
        while let Some(&(_, sent)) = self.open.front() {
            if now.saturating_sub(sent) <= self.timing.timeout {
                return;
            }
            self.open.pop_front();
            self.series.lost(now);
            self.won = 0;
            self.lost = self.lost.saturating_add(1);
            if self.lost >= self.timing.count {
                self.verdict = Verdict::Bad(super::machine::Reason::Probes);
                self.hurry = false;
            }
        }
    }

    /// Something else speaks against the way: asks now, and faster, until it is clear.
    pub fn hurry(&mut self, now: u64) {
        if !self.hurry && !matches!(self.verdict, Verdict::Bad(_)) {
            self.hurry = true;
            self.next = self.next.min(now);
        }
    }

    /// What the probes say.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::health::machine::Reason;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const TIMING: Timing = Timing { interval: 1000 * MS, timeout: 150 * MS, count: 3, recover: 2 };

    /// Runs for a time, a millisecond a step; a probe of the number is answered after the delay that `answer` gives.
    fn run(prober: &mut Prober, from: u64, to: u64, answer: impl Fn(u16) -> Option<u64>) -> Vec<u64> {
        let (mut sent, mut coming) = (Vec::new(), Vec::new());
        for now in (from..to).step_by(MS as usize) {
            coming.retain(|&(at, sequence, delay)| {
                if at == now {
                    prober.answered(sequence, delay, now);
                }
                at > now
            });
            prober.expire(now);
            prober.send(now, |sequence| {
                sent.push(now / MS);
                coming.extend(answer(sequence).map(|delay| (now + delay, sequence, delay)));
                true
            });
        }
        sent
    }

    #[test]
    fn so_many_lost_in_a_row_are_a_fault_and_so_many_answered_its_end() {
        let mut prober = Prober::new(TIMING, 0);
        assert_eq!(run(&mut prober, 0, 3000 * MS, |_| Some(5 * MS)), [0, 1000, 2000]);
        assert_eq!(prober.verdict(), Verdict::Good);
        // Two lost are none too many.
        run(&mut prober, 3000 * MS, 5000 * MS, |_| None);
        assert_eq!(prober.verdict(), Verdict::Good);
        run(&mut prober, 5000 * MS, 6000 * MS, |_| Some(MS));
        run(&mut prober, 6000 * MS, 8151 * MS, |_| None);
        assert_eq!(prober.verdict(), Verdict::Good);
        prober.expire(8151 * MS);
        assert_eq!(prober.verdict(), Verdict::Bad(Reason::Probes));
        run(&mut prober, 8151 * MS, 9500 * MS, |_| Some(MS));
        assert_eq!(prober.verdict(), Verdict::Bad(Reason::Probes), "one answer is none enough");
        run(&mut prober, 9500 * MS, 10_500 * MS, |_| Some(MS));
        assert_eq!(prober.verdict(), Verdict::Good);
        assert_eq!((prober.series.sent, prober.series.lost), (11, 5));
    }

    #[test]
    fn an_answer_that_comes_late_is_none() {
        let mut prober = Prober::new(TIMING, 0);
        run(&mut prober, 0, 3000 * MS, |_| Some(151 * MS));
        assert_eq!((prober.series.sent, prober.series.lost), (3, 3));
        assert_eq!(prober.verdict(), Verdict::Bad(Reason::Probes));
        let mut prober = Prober::new(TIMING, 0);
        run(&mut prober, 0, 3000 * MS, |_| Some(150 * MS));
        assert_eq!((prober.series.lost, prober.verdict()), (0, Verdict::Good));
        // Nor is one that was not asked for, or comes twice.
        prober.answered(0, MS, 3000 * MS);
        prober.answered(77, MS, 3000 * MS);
        assert_eq!(prober.series.sent, 3);
    }

    #[test]
    fn in_a_hurry_it_asks_at_once_and_faster_until_it_is_clear() {
        let mut prober = Prober::new(Timing { interval: 5000 * MS, ..TIMING }, 0);
        run(&mut prober, 0, 1000 * MS, |_| Some(MS));
        prober.hurry(1000 * MS);
        let sent = run(&mut prober, 1000 * MS, 7000 * MS, |_| None);
        assert_eq!(sent[..4], [1000, 1150, 1300, 1450], "{sent:?}");
        assert_eq!(prober.verdict(), Verdict::Bad(Reason::Probes));
        assert!(sent[4..].windows(2).all(|pair| pair[1] - pair[0] >= 2500), "{sent:?}");
        // An answer ends it too.
        let mut prober = Prober::new(Timing { interval: 5000 * MS, ..TIMING }, 0);
        prober.hurry(0);
        assert_eq!(run(&mut prober, 0, 4000 * MS, |_| Some(MS)), [0, 150]);
    }

    #[test]
    fn what_could_not_be_sent_is_not_lost() {
        let mut prober = Prober::new(TIMING, 0);
        prober.send(0, |_| false);
        prober.expire(10_000 * MS);
        assert_eq!(prober.series.sent, 0);
        let mut number = None;
        prober.send(10_000 * MS, |sequence| {
            number = Some(sequence);
            true
        });
        assert_eq!(number, Some(0));
    }

    proptest! {
        /// Against a naive reading of the whole history.
        #[test]
        fn the_verdict_is_that_of_the_history(
            fates in prop::collection::vec(any::<bool>(), 1..60),
            count in 3_u32..=8,
            recover in 1_u32..=8,
        ) {
            let mut prober = Prober::new(Timing { count, recover, ..TIMING }, 0);
            let (mut bad, mut known) = (false, false);
            for (n, answered) in fates.iter().enumerate() {
                let now = n as u64 * 1000 * MS;
                let mut sequence = 0;
                prober.send(now, |number| { sequence = number; true });
                if *answered {
                    prober.answered(sequence, MS, now + MS);
                }
                prober.expire(now + 200 * MS);
                let tail = |wanted: bool| fates[..=n].iter().rev().take_while(|f| **f == wanted).count() as u32;
                bad = if bad { tail(true) < recover } else { tail(false) >= count };
                known |= bad || *answered;
                let expected = match (bad, known) {
                    (true, _) => Verdict::Bad(Reason::Probes),
                    (false, true) => Verdict::Good,
                    (false, false) => Verdict::Unknown,
                };
                prop_assert_eq!(prober.verdict(), expected);
            }
        }
    }
}
