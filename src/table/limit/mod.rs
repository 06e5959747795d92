//! Limits: token buckets of gateways, interfaces, tunnels, and of each address of a VPC, both ways.
//!
//! Every gateway, interface and tunnel has its buckets, limited or not, so that a limit can be set, changed and lifted
//! in place: it is in force with the next burst, and no snapshot is made for it. They outlive reloads.

mod addresses;
mod bucket;
mod cell;
mod gateway_addresses;
mod sync;

#[cfg(test)]
mod addresses_tests;
#[cfg(test)]
mod bucket_tests;

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

pub use addresses::{AddressTable, Entered, Share, View, key_v4, line, near};
pub use bucket::{Account, Bucket, Cap, GREATEST, GREATEST_BURST, LEAST, LEAST_BURST, Purse, Rate, Terms};
pub use cell::{Cell, Count, Traffic, Way, word_v4, word_v6};
pub use gateway_addresses::{Class, GatewayAddresses, hash_v4};

/// Alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Apart<T>(T);

/// One limit: a rate, a bucket, and a purse for each worker.
#[derive(Debug)]
pub struct Meter {
    /// What is in force.
    pub rate: Rate,
    purses: Box<[Apart<Purse>]>,
    bucket: Apart<Bucket>,
}

impl Meter {
    fn new(workers: usize) -> Self {
        let purses = (0..workers.max(1)).map(|_| Apart::default()).collect();
        Self { rate: Rate::default(), purses, bucket: Apart::default() }
    }

    /// A worker's account, where there is a limit.
    #[inline(always)]
    #[must_use]
    pub fn account(&self, worker: usize) -> Option<Account<'_>> {
        let terms = self.rate.terms()?;
        Some(Account::open(terms, &self.bucket.0, &self.purses.get(worker)?.0))
    }
}

impl Meter {
    /// The bytes that are there at `now` (ns), but for what workers have taken already; nothing without a limit.
    #[must_use]
    pub fn left(&self, now: u64) -> Option<u64> {
        Some(self.bucket.0.left(self.rate.terms()?, now))
    }
}

/// The limits of a gateway, an interface or a tunnel.
#[derive(Debug)]
pub struct Pair {
    /// In: what an interface receives, what comes out of a tunnel, what a gateway carries to its VPC.
    pub inwards: Meter,
    /// Out: what an interface sends, what goes into a tunnel, what a gateway carries from its VPC.
    pub outwards: Meter,
}

impl Pair {
    /// Without limits, for so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { inwards: Meter::new(workers), outwards: Meter::new(workers) }
    }

    /// The limit of one way.
    #[inline(always)]
    #[must_use]
    pub const fn way(&self, way: Way) -> &Meter {
        match way {
            Way::In => &self.inwards,
            Way::Out => &self.outwards,
        }
    }
}

/// Where there are limits at all: bits, so that what has none costs a burst one look.
#[derive(Debug, Default)]
pub struct Active(AtomicU8);

/// Interfaces or tunnels have limits for what comes in.
pub const WAYS_IN: u8 = 1;
/// Interfaces have limits for what goes out.
pub const INTERFACES_OUT: u8 = 1 << 1;
/// Tunnels have limits for what goes out.
pub const TUNNELS_OUT: u8 = 1 << 3;
/// Either.
pub const WAYS_OUT: u8 = INTERFACES_OUT | TUNNELS_OUT;
/// Gateways or their addresses have limits, or addresses are counted.
pub const GATEWAYS: u8 = 1 << 2;

impl Active {
    /// The bits.
    #[inline(always)]
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// Control: says what there is now.
    pub fn set(&self, bits: u8) {
        self.0.store(bits, Ordering::Release);
    }
}

/// All limits of a snapshot, by the numbers of what they are of.
#[derive(Debug, Default)]
pub struct Limits {
    /// Of gateways.
    pub gateways: Box<[Arc<Pair>]>,
    /// Of interfaces.
    pub interfaces: Box<[Arc<Pair>]>,
    /// Of tunnels.
    pub tunnels: Box<[Arc<Pair>]>,
    /// Of the addresses of gateways, by the gateway's number.
    pub addresses: Box<[Option<GatewayAddresses>]>,
    /// What of it there is.
    pub active: Arc<Active>,
    /// Rows in the counters: of the first interface, and of the first tunnel. Gateways are at the beginning.
    pub first_rows: (usize, usize),
}

/// What a limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// A gateway.
    Gateway,
    /// An interface.
    Interface,
    /// A tunnel.
    Tunnel,
}

impl Level {
    /// Its word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Interface => "interface",
            Self::Tunnel => "tunnel",
        }
    }
}

impl Limits {
    /// The limits of something, and their row in the counters.
    #[inline(always)]
    #[must_use]
    pub fn of(&self, level: Level, number: u16) -> Option<(&Pair, usize)> {
        let number = usize::from(number);
        let (pairs, first) = match level {
            Level::Gateway => (&self.gateways, 0),
            Level::Interface => (&self.interfaces, self.first_rows.0),
            Level::Tunnel => (&self.tunnels, self.first_rows.1),
        };
        Some((pairs.get(number)?, first + number))
    }

    /// The limits of a gateway's addresses.
    #[inline(always)]
    #[must_use]
    pub fn addresses_of(&self, gateway: u16) -> Option<&GatewayAddresses> {
        self.addresses.get(usize::from(gateway))?.as_ref()
    }

    /// The same limits with full buckets of their own, for one worker: to ask what they would say, so that nothing is
    /// charged to these.
    #[must_use]
    pub fn apart(&self) -> Self {
        let none = Arc::new(Pair::new(1));
        let pairs = |pairs: &[Arc<Pair>]| {
            let apart = |pair: &Arc<Pair>| {
                let caps = [&pair.inwards, &pair.outwards].map(|meter| meter.rate.cap());
                if caps == [None; 2] {
                    return Arc::clone(&none);
                }
                let own = Pair::new(1);
                [&own.inwards, &own.outwards].into_iter().zip(caps).for_each(|(own, cap)| own.rate.set(cap));
                Arc::new(own)
            };
            pairs.iter().map(apart).collect()
        };
        let of_addresses = |known: &GatewayAddresses| {
            let table = Arc::new(AddressTable::new(1, 1));
            let prefixes = (Arc::clone(&known.v4), Arc::clone(&known.v6));
            GatewayAddresses::new(table, Arc::clone(&known.classes), prefixes, known.seed)
        };
        let apart = Self {
            gateways: pairs(&self.gateways),
            interfaces: pairs(&self.interfaces),
            tunnels: pairs(&self.tunnels),
            addresses: self.addresses.iter().map(|known| known.as_ref().map(of_addresses)).collect(),
            active: Arc::default(),
            first_rows: self.first_rows,
        };
        apart.active.set(apart.present());
        apart
    }

    /// The bits of what there is, by what is in force now.
    #[must_use]
    pub fn present(&self) -> u8 {
        let limited =
            |pairs: &[Arc<Pair>], way| pairs.iter().any(|pair| pair.way(way).rate.terms().is_some());
        let ways_in = limited(&self.interfaces, Way::In) || limited(&self.tunnels, Way::In);
        let gateways = limited(&self.gateways, Way::In)
            || limited(&self.gateways, Way::Out)
            || self.addresses.iter().any(Option::is_some);
        let bit = |yes: bool, bit: u8| if yes { bit } else { 0 };
        bit(ways_in, WAYS_IN)
            | bit(limited(&self.interfaces, Way::Out), INTERFACES_OUT)
            | bit(limited(&self.tunnels, Way::Out), TUNNELS_OUT)
            | bit(gateways, GATEWAYS)
    }
}
