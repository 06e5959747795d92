//! What is learned of the way to a tunnel's peer: its MTU (RFC 1191, RFC 8201, RFC 4301 8.2), and whether it is there.
//!
//! Workers write it when an ICMP error about one of our own ESP packets comes in, which is seldom, and read it; the
//! control thread lets it age. Nothing else depends on it, so plain atomics without order are enough.

use std::sync::atomic::{AtomicU64, Ordering};

/// The least MTU that is believed of an IPv4 path: hosts must take as much (RFC 791 3.2), and no line of today takes
/// less, but a forged error would like to.
pub const LEAST_V4: u16 = 576;
/// The least MTU of an IPv6 path (RFC 8200 5).
pub const LEAST_V6: u16 = 1280;
/// How long a learned MTU holds, in ns: then the path is tried again (RFC 1191 6.3, RFC 8201 4).
pub const MTU_AGE: u64 = 600_000_000_000;
/// How long a peer counts as out of reach after a report, in ns: errors come for as long as packets go.
pub const TROUBLE_AGE: u64 = 2_000_000_000;

/// The way to a tunnel's peer.
#[derive(Debug, Default)]
pub struct Path {
    /// Milliseconds on the gateway's clock when it was learned, and the MTU in the low 16 bits; 0 when none is known.
    mtu: AtomicU64,
    /// Until when the peer is out of reach (ns).
    trouble: AtomicU64,
}

const fn pack(mtu: u16, now: u64) -> u64 {
    ((now / 1_000_000) << 16) | mtu as u64
}

impl Path {
    /// The largest outer packet that the path takes, where that was learned.
    #[inline]
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        match self.mtu.load(Ordering::Relaxed) as u16 {
            0 => None,
            mtu => Some(mtu),
        }
    }

    /// Learns an MTU. A larger one than is known counts for nothing: only time raises it. Whether it was news.
    pub fn lower(&self, mtu: u16, now: u64) -> bool {
        let new = pack(mtu, now);
        let lowered = self.mtu.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            (old as u16 == 0 || old as u16 >= mtu).then_some(new)
        });
        lowered.is_ok_and(|old| old as u16 != mtu)
    }

    /// Forgets an MTU that was learned too long ago; the result is what was forgotten.
    pub fn age(&self, now: u64) -> Option<u16> {
        let old = self.mtu.load(Ordering::Relaxed);
        let learned = (old >> 16) * 1_000_000;
        if old as u16 == 0 || now.saturating_sub(learned) < MTU_AGE {
            return None;
        }
        // Where a worker has just learned another, that one stays.
        let done = self.mtu.compare_exchange(old, 0, Ordering::Relaxed, Ordering::Relaxed);
        done.ok().map(|old| old as u16)
    }

    /// Remembers that the peer was found out of reach.
    pub fn report_unreachable(&self, now: u64) {
        self.trouble.store(now + TROUBLE_AGE, Ordering::Relaxed);
    }

    /// Whether the peer was found out of reach lately.
    #[inline]
    #[must_use]
    pub fn is_unreachable(&self, now: u64) -> bool {
        now < self.trouble.load(Ordering::Relaxed)
    }
}

/// The next lower MTU in use (RFC 1191 7): for errors of routers that say no MTU.
#[must_use]
pub fn plateau_below(len: u16) -> u16 {
    const PLATEAUS: [u16; 9] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 576, 576];
    PLATEAUS.into_iter().find(|plateau| *plateau < len).unwrap_or(LEAST_V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn only_time_raises_a_learned_mtu() {
        let path = Path::default();
        assert_eq!(path.mtu(), None);
        assert!(path.lower(1400, 5 * SECOND));
        assert!(!path.lower(1450, 6 * SECOND) && !path.lower(1400, 6 * SECOND));
        assert!(path.lower(1300, 7 * SECOND));
        assert_eq!(path.mtu(), Some(1300));
        assert_eq!((path.age(7 * SECOND + MTU_AGE - 1), path.mtu()), (None, Some(1300)));
        // Learned again, it lives again.
        path.lower(1300, 100 * SECOND);
        assert_eq!(path.age(99 * SECOND + MTU_AGE), None);
        assert_eq!((path.age(100 * SECOND + MTU_AGE), path.mtu()), (Some(1300), None));
    }

    #[test]
    fn trouble_passes() {
        let path = Path::default();
        assert!(!path.is_unreachable(0));
        path.report_unreachable(SECOND);
        assert!(path.is_unreachable(3 * SECOND - 1) && !path.is_unreachable(3 * SECOND));
    }

    #[test]
    fn plateaus() {
        assert_eq!([1500, 1492, 1006, 600, 500].map(plateau_below), [1492, 1006, 576, 576, 576]);
    }
}
