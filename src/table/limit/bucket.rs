//! A token bucket that workers share.
//!
//! Tokens are time: a bucket of 100 Mbps earns a byte in 80 ns, so a byte costs 80 ns, and what a bucket holds is how
//! long ago the time lies up to which it has been spent, at most the time that its burst takes to earn. So the whole
//! state is one word, nobody refills it, it earns exactly what passes of the clock, and another rate is in force with
//! the next packet, whatever was spent at the old one.
//!
//! A worker takes what the packets of a burst need that have the same owner in one step, and [`CHUNK`] more, which it
//! keeps in its [`Purse`]. So the shared word is written once for many packets, by packets of 64 bytes at 10 Gbps once
//! in 5000; and what a purse holds back is 0.25 ms of the rate, 0.025 % of a second, and nothing when the bucket is
//! empty and the packets are larger. Whoever comes first is served: each packet, whichever worker has it, meets the same
//! bucket, so all workers lose the same share of what they are offered.

use super::sync::{AtomicU64, Ordering};

/// Units of time in a nanosecond, as a power of two: at 400 Gbps a byte takes 1.28 of them.
const UNITS: u32 = 6;
/// Binary places of what a byte costs: at 400 Gbps it is exact to 1 in 40 000, at 1 kbps 64 packets of 16 KiB fit a word.
const PLACES: u32 = 15;
/// What the clock shows more than it does: a new bucket, spent up to 0, is full. Leaves 6 years.
const ORIGIN: u64 = 1 << 62;
/// What a purse may hold, in units: a worker's 0.25 ms.
const CHUNK: u64 = 250_000 << UNITS;
/// A purse holds at most this part of a burst, as a power of two.
const PART_OF_BURST: u32 = 4;
/// Workers that want the same bucket at the same moment: each failure is another's success.
const TRIALS: usize = 64;

/// The least and the greatest rate, in bits a second.
pub const LEAST: u64 = 1_000;
/// See [`LEAST`].
pub const GREATEST: u64 = 400_000_000_000;
/// The least burst in bytes: more than the largest packet, which would never pass otherwise. (The configuration sees to
/// it where an MTU is greater.)
pub const LEAST_BURST: u64 = 4096;
/// The greatest burst in bytes: 2.5 s of the greatest rate.
pub const GREATEST_BURST: u64 = 125_000_000_000;

/// A rate and its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Bits of IP packets a second, from [`LEAST`] to [`GREATEST`].
    pub rate: u64,
    /// Bytes that may pass at once after a pause, from [`LEAST_BURST`] to [`GREATEST_BURST`].
    pub burst: u64,
}

impl Cap {
    /// With the burst that goes with a rate by default: 8 ms of it, so that any second, also the first after a pause,
    /// is true to 1 %; but no less than [`LEAST_BURST`].
    #[must_use]
    pub const fn of(rate: u64) -> Self {
        let burst = rate / 1000;
        Self { rate, burst: if burst < LEAST_BURST { LEAST_BURST } else { burst } }
    }
}

/// What is in force for a bucket; the control thread writes it, workers read it once for a run of packets.
#[derive(Debug, Default)]
pub struct Rate {
    /// Units that a byte costs, with [`PLACES`]; 0: no limit.
    cost: AtomicU64,
    /// Units that the burst takes to earn.
    burst: AtomicU64,
    /// Bytes of a chunk.
    spare: AtomicU64,
    /// The same as it was set: bits a second, and bytes.
    set: [AtomicU64; 2],
}

/// A rate as it is for one run of packets.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    cost: u64,
    burst: u64,
    spare: u64,
}

impl Rate {
    /// Puts a cap in force, or lifts it.
    pub fn set(&self, cap: Option<Cap>) {
        if let Some(terms) = cap.map(Terms::of) {
            self.burst.store(terms.burst, Ordering::Relaxed);
            self.spare.store(terms.spare, Ordering::Relaxed);
        }
        // Released, and the burst left when the cap is lifted: a cost is never seen with a burst of 0, with which
        // nothing passes.
        self.cost.store(cap.map_or(0, |cap| Terms::of(cap).cost), Ordering::Release);
        let [rate, burst] = &self.set;
        rate.store(cap.map_or(0, |cap| cap.rate), Ordering::Relaxed);
        burst.store(cap.map_or(0, |cap| cap.burst), Ordering::Relaxed);
    }

    /// The cap as it was set, where there is one.
    #[must_use]
    pub fn cap(&self) -> Option<Cap> {
        let [rate, burst] = &self.set;
        let (rate, burst) = (rate.load(Ordering::Relaxed), burst.load(Ordering::Relaxed));
        (rate > 0).then_some(Cap { rate, burst })
    }

    /// What is in force; nothing when there is no limit.
    #[inline(always)]
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        let cost = self.cost.load(Ordering::Acquire);
        let [burst, spare] = [&self.burst, &self.spare].map(|word| word.load(Ordering::Relaxed));
        if cost == 0 { None } else { Some(Terms { cost, burst, spare }) }
    }
}

impl Terms {
    fn of(cap: Cap) -> Self {
        let rate = cap.rate.clamp(LEAST, GREATEST);
        let cost = ((8_000_000_000_u64 << UNITS << PLACES) + rate / 2) / rate;
        let burst = (u128::from(cap.burst.max(LEAST_BURST)) * u128::from(cost)) >> PLACES;
        // No more than a year.
        let terms = Self { cost, burst: burst.min(u128::from(u64::MAX >> 4)) as u64, spare: 0 };
        Self { spare: (terms.chunk() << PLACES) / cost, ..terms }
    }

    #[inline(always)]
    const fn price(&self, bytes: u64) -> u64 {
        (bytes * self.cost + (1 << (PLACES - 1))) >> PLACES
    }

    #[inline(always)]
    const fn chunk(&self) -> u64 {
        let part = self.burst >> PART_OF_BURST;
        if part < CHUNK { part } else { CHUNK }
    }
}

/// What a worker has taken from a bucket and not spent yet: units. It alone writes.
#[derive(Debug, Default)]
pub struct Purse(AtomicU64);

/// A bucket, which all workers take from.
#[derive(Debug, Default)]
pub struct Bucket {
    /// The time up to which it is spent, in units.
    spent: AtomicU64,
}

impl Bucket {
    /// Takes `most` units at `now` (ns), or as many as there are, but nothing when there are less than `least`.
    fn take(&self, terms: Terms, least: u64, most: u64, now: u64) -> u64 {
        let now = ORIGIN + (now << UNITS);
        let mut spent = self.spent.load(Ordering::Relaxed);
        for _ in 0..TRIALS {
            let from = spent.max(now.saturating_sub(terms.burst));
            let there = now.saturating_sub(from);
            if there == 0 || there < least {
                return 0;
            }
            let taken = there.min(most);
            let new = from + taken;
            match self.spent.compare_exchange_weak(spent, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return taken,
                Err(other) => spent = other,
            }
        }
        0
    }

    /// Buys `bytes` and, where there is enough, those of a chunk beside them, at `now` (ns). The result is the bytes that
    /// were bought: none when there is not enough for `bytes`.
    pub fn buy(&self, terms: Terms, bytes: u64, now: u64) -> u64 {
        let now = ORIGIN + (now << UNITS);
        let (least, most) = (terms.price(bytes), terms.price(bytes + terms.spare));
        let mut spent = self.spent.load(Ordering::Relaxed);
        for _ in 0..TRIALS {
            let from = spent.max(now.saturating_sub(terms.burst));
            let there = now.saturating_sub(from);
            let (bought, price) = if there >= most { (bytes + terms.spare, most) } else { (bytes, least) };
            if there < price {
                return 0;
            }
            let new = from + price;
            match self.spent.compare_exchange_weak(spent, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return bought,
                Err(other) => spent = other,
            }
        }
        0
    }

    /// The bytes that are there at `now` (ns); nothing is taken.
    #[must_use]
    pub fn left(&self, terms: Terms, now: u64) -> u64 {
        let now = ORIGIN + (now << UNITS);
        let from = self.spent.load(Ordering::Relaxed).max(now.saturating_sub(terms.burst));
        ((u128::from(now.saturating_sub(from)) << PLACES) / u128::from(terms.cost.max(1))) as u64
    }

    /// Full again: for another owner.
    pub fn reset(&self) {
        self.spent.store(0, Ordering::Relaxed);
    }
}

/// A bucket and a worker's purse for it, at one moment.
#[derive(Debug)]
pub struct Account<'a> {
    terms: Terms,
    bucket: &'a Bucket,
    purse: &'a Purse,
    credit: u64,
}

impl<'a> Account<'a> {
    /// Opens the account; to be closed with [`Account::close`].
    #[inline(always)]
    #[must_use]
    pub fn open(terms: Terms, bucket: &'a Bucket, purse: &'a Purse) -> Self {
        Self { terms, bucket, purse, credit: purse.0.load(Ordering::Relaxed) }
    }

    /// Pays for packets of `bytes` bytes together, the smallest of them of `smallest()`. When there is not enough for
    /// all of them the result is false and nothing is paid: then each is to be asked for with [`Account::pay`].
    #[inline(always)]
    pub fn pay_all(&mut self, bytes: u64, smallest: impl FnOnce() -> u64, now: u64) -> bool {
        let price = self.terms.price(bytes);
        if self.credit < price {
            let least = self.terms.price(smallest()).saturating_sub(self.credit);
            let most = price - self.credit + self.terms.chunk();
            self.credit += self.bucket.take(self.terms, least, most, now);
            if self.credit < price {
                return false;
            }
        }
        self.credit -= price;
        true
    }

    /// Pays for one packet of what is in the purse.
    #[inline]
    pub fn pay(&mut self, bytes: u64) -> bool {
        let price = self.terms.price(bytes);
        let enough = self.credit >= price;
        self.credit -= if enough { price } else { 0 };
        enough
    }

    /// Keeps what is left, and gives back what is more than a purse may hold.
    #[inline(always)]
    pub fn close(self) {
        let keep = self.credit.min(self.terms.chunk());
        if keep < self.credit {
            // It was taken from there before, so there is as much.
            self.bucket.spent.fetch_sub(self.credit - keep, Ordering::Relaxed);
        }
        self.purse.0.store(keep, Ordering::Relaxed);
    }
}
