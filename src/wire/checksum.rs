//! The Internet checksum: RFC 1071 sums, and RFC 1624 updates when a field changes.
//!
//! [`Sum`] is the one's complement sum, [`Sum::checksum`] its complement: what a header carries. They are
//! different types so that one is not written where the other is meant.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A folded one's complement sum of 16-bit words in network byte order (RFC 1071).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u16);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of `bytes`; an odd last byte counts as the high half of a word.
    ///
    /// Words are added in the machine's own byte order, four bytes at a time in eight independent lanes, and
    /// swapped once at the end: the sum does not depend on the byte order (RFC 1071 2(B)).
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<32>();
        let mut lanes = [0u64; 8];
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut total: u64 = lanes.iter().sum();
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            total += u64::from(u32::from_ne_bytes(*word));
        }
        let (halves, last) = rest.as_chunks::<2>();
        for half in halves {
            total += u64::from(u16::from_ne_bytes(*half));
        }
        if let [byte] = last {
            total += u64::from(u16::from_ne_bytes([*byte, 0]));
        }
        Self(u16::from_be(fold(total)))
    }

    /// The sum of a header of fixed size, without loops or branches.
    #[inline]
    pub fn of_header<const N: usize>(header: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4)) };
        let (words, _) = header.as_chunks::<4>();
        Self(u16::from_be(fold(words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum())))
    }

    /// Whether the checksum is right in an IPv4 header of 20 bytes, which are read in order as two words of eight bytes and
    /// one of four, all of them little-endian, and not all zero.
    #[inline(always)]
    #[must_use]
    pub const fn proves_words(first: u64, second: u64, third: u32) -> bool {
        let (sum, carry) = first.overflowing_add(second);
        let (sum, carry) = sum.overflowing_add(third as u64 + carry as u64);
        // After a second carry the sum is small, so this one is the last.
        let sum = sum.wrapping_add(carry as u64);
        // Carries end around, so it is the one's complement sum and some multiple of 0xffff; where that is one too, the
        // sum is 0xffff, since it is not zero. The compiler makes one multiplication of this.
        sum.is_multiple_of(0xffff)
    }

    /// The sum of slices as if they were one, whatever the parity of their lengths.
    #[inline]
    pub fn of_slices(slices: &[&[u8]]) -> Self {
        let (mut sum, mut odd) = (Self::ZERO, false);
        for slice in slices {
            let part = Self::of(slice);
            sum = sum.combine(if odd { part.shifted() } else { part });
            odd ^= slice.len() % 2 == 1;
        }
        sum
    }

    /// The sum of one word.
    #[inline]
    pub const fn of_u16(word: u16) -> Self {
        Self(word)
    }

    /// The sum of the two words of `value`.
    #[inline]
    pub const fn of_u32(value: u32) -> Self {
        // What is turned by half and added to itself has its folded sum in the upper half.
        Self((value.wrapping_add(value.rotate_left(16)) >> 16) as u16)
    }

    /// The sum of the eight words of `value`.
    #[inline]
    pub const fn of_u128(value: u128) -> Self {
        let (high, low) = ((value >> 64) as u64, value as u64);
        Self(fold((high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff)))
    }

    /// The IPv4 pseudo-header's sum (RFC 768, RFC 9293 3.1): `length` is that of the layer-4 header and data.
    #[inline]
    pub const fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> Self {
        let addresses = source.to_bits() as u64 + destination.to_bits() as u64;
        Self(fold(addresses + protocol as u64 + length as u64))
    }

    /// The IPv6 pseudo-header's sum (RFC 8200 8.1): `length` is that of the layer-4 header and data, and
    /// `protocol` the final next header, not that of an extension header.
    #[inline]
    pub const fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u32) -> Self {
        let addresses = Self::of_u128(source.to_bits()).combine(Self::of_u128(destination.to_bits()));
        Self(fold(addresses.0 as u64 + protocol as u64 + length as u64))
    }

    /// The sum of both. What the right one covers must start at an even offset; see [`Self::shifted`].
    #[inline]
    #[must_use]
    pub const fn combine(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// The sum of the same bytes placed at an odd offset.
    #[inline]
    #[must_use]
    pub const fn shifted(self) -> Self {
        Self(self.0.swap_bytes())
    }

    /// The folded sum itself.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The checksum to write: the sum's complement.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.0
    }

    /// The checksum to write into a UDP header: computed zero is sent as all ones, since zero means "none"
    /// (RFC 768, RFC 8200 8.1).
    #[inline]
    pub const fn udp_checksum(self) -> u16 {
        match !self.0 {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether a sum that covers the checksum field itself proves the checksum right.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 == 0xffff
    }
}

/// Folds a sum of words into one, carries end around. Nonzero stays nonzero.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    // At most 2^17 + 2^16 here: two more folds leave 16 bits.
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// Adds two words, carry end around.
#[inline]
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    // With a carry the sum is at most 0xfffe, so this cannot overflow.
    sum + carry as u16
}

/// What a change adds to a sum: RFC 1624's `~m + m'`, folded.
///
/// It depends on the old and the new value only, so a 1:1 address rule keeps one and applies it to each packet
/// with a single addition, to the IPv4 header and to the layer-4 checksum alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u16);

impl Delta {
    /// The change that changes nothing.
    pub const NONE: Self = Self(0);

    /// The change of one sum into another.
    #[inline]
    pub const fn between(old: Sum, new: Sum) -> Self {
        Self(add(!old.0, new.0))
    }

    /// The change of one 16-bit word at an even offset.
    #[inline]
    pub const fn between_u16(old: u16, new: u16) -> Self {
        Self::between(Sum::of_u16(old), Sum::of_u16(new))
    }

    /// The change of a 32-bit field, such as an IPv4 address, at an even offset.
    #[inline]
    pub const fn between_u32(old: u32, new: u32) -> Self {
        Self::between(Sum::of_u32(old), Sum::of_u32(new))
    }

    /// The change of a 128-bit field, such as an IPv6 address, at an even offset.
    #[inline]
    pub const fn between_u128(old: u128, new: u128) -> Self {
        Self::between(Sum::of_u128(old), Sum::of_u128(new))
    }

    /// The change that was kept as these bits.
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The change as 16 bits, to keep it.
    #[inline]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// Both changes.
    #[inline]
    #[must_use]
    pub const fn combine(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// The change back.
    #[inline]
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// The same change of bytes placed at an odd offset.
    #[inline]
    #[must_use]
    pub const fn shifted(self) -> Self {
        Self(self.0.swap_bytes())
    }

    /// The checksum after the change (RFC 1624 eqn. 3).
    ///
    /// Equal to the full computation unless every word covered is zero after the change: that sum comes out as
    /// the other zero, 0xffff, which every receiver takes for the same.
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        !add(!checksum, self.0)
    }

    /// The UDP checksum after the change: "none" stays none, and zero is sent as all ones (RFC 768).
    #[inline]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        match (checksum, self.apply(checksum)) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, updated) => updated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 4.1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).get(), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: a field goes from 0x5555 to 0x3285; eqn. 2 would give 0xffff.
        assert_eq!(Delta::between_u16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn udp_zero_rules() {
        assert_eq!(Delta::between_u16(1, 2).apply_udp(0), 0);
        assert_eq!(Delta::between_u16(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
        assert_eq!(Sum::of_u16(0xffff).udp_checksum(), 0xffff);
        assert_eq!(Sum::of_u16(0xfffe).udp_checksum(), 1);
    }

    #[test]
    fn long_runs_of_ones_do_not_overflow() {
        let ones = vec![0xff; 65_535];
        assert_eq!(Sum::of(&ones).get(), naive(&ones));
        assert_eq!(Sum::of_u128(u128::MAX).get(), 0xffff);
    }

    proptest! {
        #[test]
        fn words_of_a_header_prove_what_its_bytes_do(header: [u8; 20], right: bool, full in prop::collection::vec(any::<bool>(), 20)) {
            let mut header = header;
            for (byte, full) in header.iter_mut().zip(full) {
                // Carries are what is hard: often all ones.
                *byte |= if full { 0xff } else { 0 };
            }
            if right {
                header[10..12].fill(0);
                let checksum = Sum::of(&header).checksum();
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
            let last = u32::from_le_bytes(header[16..].try_into().unwrap());
            prop_assume!(header != [0; 20]);
            prop_assert_eq!(Sum::proves_words(word(0), word(8), last), Sum::of(&header).is_valid());
        }

        #[test]
        fn fast_equals_naive(bytes in prop::collection::vec(any::<u8>(), 0..2100), start in 0usize..40) {
            let bytes = &bytes[start.min(bytes.len())..];
            prop_assert_eq!(Sum::of(bytes).get(), naive(bytes));
        }

        #[test]
        fn header_equals_naive(bytes: [u8; 20], long: [u8; 40]) {
            prop_assert_eq!(Sum::of_header(&bytes).get(), naive(&bytes));
            prop_assert_eq!(Sum::of_header(&long).get(), naive(&long));
        }

        #[test]
        fn slices_equal_their_concatenation(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6)) {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(Sum::of_slices(&slices).get(), naive(&parts.concat()));
        }

        #[test]
        fn pseudo_headers_equal_their_bytes(source: [u8; 16], destination: [u8; 16], protocol: u8, length: u16) {
            let v6 = Sum::pseudo_v6(source.into(), destination.into(), protocol, u32::from(length));
            let bytes = [&source[..], &destination, &[0, 0], &length.to_be_bytes(), &[0, 0, 0, protocol]].concat();
            prop_assert_eq!(v6.get(), naive(&bytes));
            let (a, b) = (*source.first_chunk::<4>().unwrap(), *destination.first_chunk::<4>().unwrap());
            let bytes = [&a[..], &b, &[0, protocol], &length.to_be_bytes()].concat();
            prop_assert_eq!(Sum::pseudo_v4(a.into(), b.into(), protocol, length).get(), naive(&bytes));
        }

        #[test]
        fn incremental_equals_full(
            mut packet in prop::collection::vec(any::<u8>(), 40..200),
            at in 1usize..4, new16: u16, new32: u32, new128: u128,
        ) {
            packet[0] = 0x45; // never all zero, as in any packet
            let checksum = Sum::of(&packet).checksum();

            let at16 = at * 2;
            let old = u16::from_be_bytes(packet[at16..at16 + 2].try_into().unwrap());
            packet[at16..at16 + 2].copy_from_slice(&new16.to_be_bytes());
            let first = Delta::between_u16(old, new16);
            prop_assert_eq!(first.apply(checksum), Sum::of(&packet).checksum());

            let at32 = 8 + at * 2;
            let old = u32::from_be_bytes(packet[at32..at32 + 4].try_into().unwrap());
            packet[at32..at32 + 4].copy_from_slice(&new32.to_be_bytes());
            let second = Delta::between_u32(old, new32);
            prop_assert_eq!(second.apply(first.apply(checksum)), Sum::of(&packet).checksum());

            let at128 = 18 + at * 2;
            let old = u128::from_be_bytes(packet[at128..at128 + 16].try_into().unwrap());
            packet[at128..at128 + 16].copy_from_slice(&new128.to_be_bytes());
            let third = Delta::between_u128(old, new128);
            let all = first.combine(second).combine(third);
            prop_assert_eq!(all.apply(checksum), Sum::of(&packet).checksum());
            prop_assert_eq!(all.inverse().apply(all.apply(checksum)), checksum);
        }

        #[test]
        fn shifted_delta_at_odd_offset(mut packet in prop::collection::vec(any::<u8>(), 10..50), new: u16) {
            packet[0] = 0x45;
            let checksum = Sum::of(&packet).checksum();
            let old = u16::from_be_bytes([packet[5], packet[6]]);
            packet[5..7].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(Delta::between_u16(old, new).shifted().apply(checksum), Sum::of(&packet).checksum());
        }
    }
}
