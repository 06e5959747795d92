//! Marks the sequence numbers of opened packets (RFC 4303 3.4.3), and counts how far they were behind the newest.

use super::{failed, path::Path, refusal};
use crate::{
    crypto::replay::{self, Marked},
    packet::{Burst, Slots},
    stats::WorkerCounters,
    table::{prefetch::prefetch_write, tunnel::SaIn},
};

/// Starts loading what marking these numbers writes to, where other workers have it too: it comes while the packets are opened.
#[inline(always)]
pub(super) fn fetch_to_mark(path: &Path<'_>, numbers: &[u64]) {
    let window = &path.sa.window;
    if let [first, .., last] = numbers
        && window.is_shared()
    {
        // A worker that is behind the others does not write there, and would only take it from them.
        if *last > path.newest {
            prefetch_write(window.top());
        }
        for number in [first, last] {
            window.line(*number as u32).into_iter().for_each(prefetch_write);
        }
    }
}

/// Marks the numbers of those of a few packets of one association that are good, each by itself, and returns those accepted.
#[inline(always)]
pub(super) fn mark_few(
    counters: &WorkerCounters,
    burst: &mut Burst,
    sa: &SaIn,
    run: Slots,
    good: Slots,
    numbers: &[u64],
) -> Slots {
    let mut accepted = good;
    for (slot, number) in run.into_iter().zip(numbers).filter(|(slot, _)| good.contains(*slot)) {
        match sa.mark(*number) {
            Ok(0) => {}
            Ok(lateness) => counters.sa_lateness(sa.index, lateness),
            Err(refused) => {
                accepted.remove(slot);
                let reason = refusal(counters, sa, refused);
                failed(counters, burst, slot, sa, reason);
            }
        }
    }
    accepted
}

/// Marks the numbers of opened packets of one association, and returns those accepted.
#[inline(never)]
pub(super) fn mark_all(
    counters: &WorkerCounters,
    burst: &mut Burst,
    sa: &SaIn,
    good: Slots,
    numbers: &[u64],
) -> Slots {
    let (mut refused, mut behind) = (Slots::NONE, Behind::default());
    sa.mark_all(numbers, |place, marked| match marked {
        Marked::Behind { numbers, newest } => behind.add_all(counters, sa, numbers, newest),
        Marked::Refused(reason) => {
            let Some(slot) = good.into_iter().nth(place) else { return };
            refused.insert(slot);
            let reason = refusal(counters, sa, reason);
            failed(counters, burst, slot, sa, reason);
        }
    });
    behind.count(counters, sa);
    good - refused
}

/// Packets in a row that are about as far behind the newest.
#[derive(Debug, Clone, Copy, Default)]
struct Behind {
    bucket: usize,
    packets: u64,
    greatest: u64,
}

impl Behind {
    /// Adds numbers that rise.
    #[inline]
    fn add_all(&mut self, counters: &WorkerCounters, sa: &SaIn, numbers: &[u64], newest: u64) {
        let [Some(most), Some(least)] = [numbers.first(), numbers.last()] else { return };
        let bucket = replay::behind(newest - most);
        if bucket == self.bucket && bucket == replay::behind(newest - least) && bucket > 0 {
            self.packets += numbers.len() as u64;
            self.greatest = self.greatest.max(newest - most);
        } else {
            numbers.iter().for_each(|number| self.add(counters, sa, newest - number));
        }
    }

    #[inline]
    fn add(&mut self, counters: &WorkerCounters, sa: &SaIn, lateness: u64) {
        let bucket = replay::behind(lateness);
        if bucket != self.bucket {
            self.count(counters, sa);
            *self = Self { bucket, ..Self::default() };
        }
        self.packets += u64::from(lateness > 0);
        self.greatest = self.greatest.max(lateness);
    }

    #[inline]
    fn count(&self, counters: &WorkerCounters, sa: &SaIn) {
        if self.packets > 0 {
            counters.sa_latenesses(sa.index, self.bucket, self.packets, self.greatest);
        }
    }
}
