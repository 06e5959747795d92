//! What a stage may use.

use super::{EventQueue, Lanes, NatState, Output};
use crate::{
    packet::{FramePool, Umem},
    stats::WorkerCounters,
    table::tables::Tables,
};

/// Everything a stage may use while it works on one burst.
pub struct Cx<'a> {
    /// The memory of the packets.
    pub umem: &'a Umem,
    /// Free frames.
    pub pool: &'a mut FramePool,
    /// What to look things up in; the same snapshot for the whole burst.
    pub tables: &'a Tables,
    /// Where to count.
    pub counters: &'a WorkerCounters,
    /// The lanes of this burst.
    pub lanes: Lanes,
    /// Where packets go from here.
    pub out: &'a mut Output,
    /// What the control thread is told.
    pub events: &'a EventQueue,
    /// How many ICMP errors may still be sent.
    pub icmp_limit: &'a mut IcmpLimit,
    /// NAT sessions of this worker, and its ways to those of others.
    pub nat: &'a mut NatState,
    /// Nanoseconds on the gateway's clock, read once a burst.
    pub now: u64,
}

/// Bounds the rate of ICMP errors of one worker (RFC 1812 4.3.2.8): a token bucket.
#[derive(Debug, Clone, Copy)]
pub struct IcmpLimit {
    tokens: u64,
    updated: u64,
}

/// Errors a second, and at once: what Linux allows (`icmp_msgs_per_sec`, `icmp_msgs_burst`) and routers of this
/// size send without harm.
const ERRORS_PER_SECOND: u64 = 1_000;
const ERRORS_AT_ONCE: u64 = 50;
/// Nanoseconds that earn one error.
const NS_PER_ERROR: u64 = 1_000_000_000 / ERRORS_PER_SECOND;

impl Default for IcmpLimit {
    fn default() -> Self {
        Self { tokens: ERRORS_AT_ONCE, updated: 0 }
    }
}

impl IcmpLimit {
    /// Whether one more error may be sent at `now` (ns).
    #[must_use]
    pub fn allow(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.updated) / NS_PER_ERROR;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(ERRORS_AT_ONCE);
            self.updated = self.updated.saturating_add(earned * NS_PER_ERROR).min(now);
        }
        let allowed = self.tokens > 0;
        self.tokens -= u64::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_bounded_over_any_second() {
        let mut limit = IcmpLimit::default();
        let sent = (0..10_000_000_u64).step_by(1_000).filter(|&us| limit.allow(us * 1_000)).count() as u64;
        assert!(
            (9_990..=10_000 + ERRORS_AT_ONCE).contains(&sent),
            "{sent} in ten seconds at most one per ms"
        );
        let burst = (0..1_000).filter(|_| limit.allow(11_000_000_000)).count() as u64;
        assert_eq!(burst, ERRORS_AT_ONCE);
    }
}
