//! The limits of a gateway's addresses: which are counted, and which rate each has.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::{AddressTable, Cap, Entered, Rate, Way, key_v4};
use crate::table::{
    hash::{HashKey, Seed},
    lpm::{Lpm4, Lpm6},
};

/// The rates of addresses that have the same section of the file, or none: class 0.
#[derive(Debug, Default)]
pub struct Class {
    /// Towards the VPC.
    pub inwards: Rate,
    /// From the VPC.
    pub outwards: Rate,
}

impl Class {
    /// Puts caps in force, to and from the VPC.
    pub fn set(&self, [inwards, outwards]: [Option<Cap>; 2]) {
        self.inwards.set(inwards);
        self.outwards.set(outwards);
    }
}

/// The addresses of a gateway's VPC and their limits.
#[derive(Debug)]
pub struct GatewayAddresses {
    /// Who is known. Goes on over reloads.
    pub table: Arc<AddressTable>,
    /// Rates by class; the first is for whoever has none of its own.
    pub classes: Arc<[Class]>,
    /// Classes of IPv4 addresses. Whoever has none is not of the VPC, and is not counted.
    pub v4: Arc<Lpm4>,
    /// Classes of IPv6 addresses.
    pub v6: Arc<Lpm6>,
    /// Of the table's hashes.
    pub seed: Seed,
    /// Of the rates and of who has which: what is paid for at another one counts no more.
    version: Arc<AtomicU32>,
}

/// The hash of a key.
#[inline(always)]
pub(super) fn hash_of(key: u128, seed: &Seed) -> u64 {
    if key >> 32 == 0xffff { hash_v4(key as u32, seed) } else { key.keyed_hash(seed) }
}

/// The hash of an IPv4 address. One multiplication less would do for most seeds; with some, addresses in a row meet.
#[inline(always)]
#[must_use]
pub fn hash_v4(address: u32, seed: &Seed) -> u64 {
    address.keyed_hash(seed)
}

impl GatewayAddresses {
    /// Addresses in these classes.
    #[must_use]
    pub fn new(
        table: Arc<AddressTable>,
        classes: Arc<[Class]>,
        (v4, v6): (Arc<Lpm4>, Arc<Lpm6>),
        seed: Seed,
    ) -> Self {
        let version = Arc::new(AtomicU32::new(table.new_version()));
        Self { table, classes, v4, v6, seed, version }
    }

    /// The version of the rates.
    #[inline(always)]
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Control: says that rates have changed, or who has which.
    pub fn renew(&self) {
        self.version.store(self.table.new_version(), Ordering::Release);
    }

    /// The hash of a key.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: u128) -> u64 {
        hash_of(key, &self.seed)
    }

    /// The entry that an address is charged to, made where there is none; `None`: it is not of the VPC. For those that
    /// are not where [`near`](super::near) looks.
    #[inline(never)]
    #[must_use]
    pub fn entry(&self, key: u128) -> Option<usize> {
        let hash = self.hash(key);
        self.table.find(key, hash).or_else(|| self.enter(key, hash))
    }

    #[cold]
    fn enter(&self, key: u128, hash: u64) -> Option<usize> {
        let class = self.class_of(key)?;
        Some(match self.table.enter(key, hash, class) {
            Entered::At(entry) => entry,
            Entered::Busy | Entered::Full => self.table.common(),
        })
    }

    /// The class of an address; `None`: it is not of the VPC.
    #[must_use]
    pub fn class_of(&self, key: u128) -> Option<u32> {
        if key >> 32 == key_v4(0) >> 32 { self.v4.lookup(key as u32) } else { self.v6.lookup(key) }
    }

    /// The rate of a class, one way.
    #[must_use]
    pub fn rate(&self, class: usize, way: Way) -> Option<&Rate> {
        let class = self.classes.get(class).or_else(|| self.classes.first())?;
        Some(if way == Way::In { &class.inwards } else { &class.outwards })
    }
}
