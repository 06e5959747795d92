//! The limits of a gateway's addresses: which are counted, and which rate each has.

use std::sync::Arc;

use super::{AddressTable, Cap, Entered, Rate, Way, addresses::key_v4};
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
}

/// The hash of a key. IPv4 addresses, which have nothing in the upper half, take half the work.
#[inline(always)]
pub(super) fn hash_of(key: u128, seed: &Seed) -> u64 {
    let (high, low) = ((key >> 64) as u64, key as u64);
    let high = if high == 0 { 0 } else { high.keyed_hash(seed) };
    (low ^ high).keyed_hash(seed)
}

impl GatewayAddresses {
    /// The hash of a key.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, key: u128) -> u64 {
        hash_of(key, &self.seed)
    }

    /// The entry that an address is charged to, made where there is none; `None`: it is not of the VPC.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, key: u128, hash: u64) -> Option<usize> {
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
    #[inline(always)]
    #[must_use]
    pub fn rate(&self, class: usize, way: Way) -> Option<&Rate> {
        let class = self.classes.get(class).or_else(|| self.classes.first())?;
        Some(if way == Way::In { &class.inwards } else { &class.outwards })
    }
}
