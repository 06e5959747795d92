//! The integers that stand for addresses, so that one table serves both IP versions.

use std::fmt::Debug;
use std::hash::Hash;
use std::ops::{BitAnd, BitOr, Not};

use super::hash::HashKey;

pub use crate::wire::ip::IpVersion;

/// An IP address as an unsigned integer in host order: `u32` for IPv4, `u128` for IPv6.
pub trait Address:
    Copy
    + Ord
    + Hash
    + Debug
    + Default
    + Send
    + Sync
    + HashKey
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + Not<Output = Self>
    + 'static
{
    /// Bits in an address: 32 or 128.
    const WIDTH: u8;
    /// The IP version.
    const VERSION: IpVersion;
    /// The address with every bit set.
    const MAX: Self;

    /// The 8 bits that start `depth` bits from the top. `depth` is a multiple of 8 below [`Self::WIDTH`].
    fn byte(self, depth: u8) -> u8;
    /// The first 8 bits, and the others moved up to take their place.
    fn shift(self) -> (u8, Self);
    /// An address whose 8 bits at `depth` are `byte`, all others zero.
    fn from_byte(byte: u8, depth: u8) -> Self;
    /// The mask of a prefix length; lengths above [`Self::WIDTH`] count as [`Self::WIDTH`].
    fn mask(length: u8) -> Self;
    /// `self - other`, modulo 2^WIDTH.
    fn wrapping_sub(self, other: Self) -> Self;
    /// The bits from `depth` on, in front; `depth` is below [`Self::WIDTH`].
    fn starting_at(self, depth: u8) -> Self;
    /// The same number in 128 bits.
    fn widen(self) -> u128;
    /// The low bits of `number`.
    fn truncate(number: u128) -> Self;
    /// One hash of a source and destination pair.
    fn hash_pair(source: Self, destination: Self, seed: &super::hash::Seed) -> u64;
}

macro_rules! address {
    ($integer:ty, $version:expr) => {
        const WIDTH: u8 = <$integer>::BITS as u8;
        const VERSION: IpVersion = $version;
        const MAX: Self = <$integer>::MAX;

        #[inline(always)]
        fn byte(self, depth: u8) -> u8 {
            (self >> (Self::WIDTH.wrapping_sub(8).wrapping_sub(depth) & (Self::WIDTH - 1))) as u8
        }
        #[inline(always)]
        fn starting_at(self, depth: u8) -> Self {
            self << (depth & (Self::WIDTH - 1))
        }
        #[inline(always)]
        fn shift(self) -> (u8, Self) {
            ((self >> (Self::BITS - 8)) as u8, self << 8)
        }
        #[inline(always)]
        fn from_byte(byte: u8, depth: u8) -> Self {
            <$integer>::from(byte) << (Self::WIDTH.wrapping_sub(8).wrapping_sub(depth) & (Self::WIDTH - 1))
        }
        #[inline(always)]
        fn mask(length: u8) -> Self {
            if length == 0 { 0 } else { <$integer>::MAX << Self::WIDTH.saturating_sub(length) }
        }
        #[inline(always)]
        fn wrapping_sub(self, other: Self) -> Self {
            <$integer>::wrapping_sub(self, other)
        }
        #[inline(always)]
        fn widen(self) -> u128 {
            self as u128
        }
        #[inline(always)]
        fn truncate(number: u128) -> Self {
            number as $integer
        }
    };
}

impl Address for u32 {
    address!(u32, IpVersion::V4);

    #[inline(always)]
    fn hash_pair(source: Self, destination: Self, seed: &super::hash::Seed) -> u64 {
        (u64::from(source) << 32 | u64::from(destination)).keyed_hash(seed)
    }
}

impl Address for u128 {
    address!(u128, IpVersion::V6);

    #[inline(always)]
    fn hash_pair(source: Self, destination: Self, seed: &super::hash::Seed) -> u64 {
        (source.keyed_hash(seed), destination.keyed_hash(seed)).keyed_hash(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_bytes() {
        assert_eq!(u32::mask(0), 0);
        assert_eq!(u32::mask(1), 0x8000_0000);
        assert_eq!(u32::mask(24), 0xFFFF_FF00);
        assert_eq!(u32::mask(32), u32::MAX);
        assert_eq!(u128::mask(128), u128::MAX);
        assert_eq!(u128::mask(64), u128::MAX << 64);
        assert_eq!([0, 8, 16, 24].map(|depth| 0x0A0B_0C0Du32.byte(depth)), [10, 11, 12, 13]);
        assert_eq!((0x2001_0db8u128 << 96).byte(24), 0xb8);
        assert_eq!(u32::from_byte(0x0C, 16), 0x0C00);
        assert_eq!(u128::from_byte(1, 120), 1);
    }
}
