//! The gateway's clock: nanoseconds since it started, and raw ticks for measuring.

/// Nanoseconds and ticks, from the processor's time-stamp counter where there is one.
#[derive(Debug, Clone)]
pub struct Clock {
    clock: quanta::Clock,
    start: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> Self {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        Self { clock, start }
    }

    /// Nanoseconds since the clock was made.
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        self.at(self.clock.raw())
    }

    /// Nanoseconds since the clock was made until the counter stood at `ticks`.
    #[inline]
    #[must_use]
    pub fn at(&self, ticks: u64) -> u64 {
        self.nanoseconds(self.start, ticks)
    }

    /// The counter as it stands.
    #[inline]
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.clock.raw()
    }

    /// Nanoseconds between two readings of the counter.
    #[inline]
    #[must_use]
    pub fn nanoseconds(&self, start: u64, end: u64) -> u64 {
        self.clock.delta_as_nanos(start, end)
    }

    /// Ticks a second.
    #[must_use]
    pub fn tick_hz(&self) -> u64 {
        // Over a span long enough that rounding does not show.
        const SPAN: u64 = 1 << 40;
        let nanoseconds = u128::from(self.nanoseconds(0, SPAN).max(1));
        u64::try_from(u128::from(SPAN) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_forward_at_the_rate_it_says() {
        let clock = Clock::new();
        // This thread may have to wait between any two readings: what passed lies between the least and the most.
        let reading = || (std::time::Instant::now(), clock.ticks(), std::time::Instant::now());
        let first = reading();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let last = reading();
        let by_ticks = (last.1 - first.1) as f64 / clock.tick_hz() as f64;
        let (least, most) = ((last.0 - first.2).as_secs_f64(), (last.2 - first.0).as_secs_f64());
        let right = 0.9 * least..1.1 * most;
        assert!(right.contains(&by_ticks), "{by_ticks} s by ticks, {least} to {most} s really");
    }
}
