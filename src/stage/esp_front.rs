//! What stands in front of most sealed packets: a link-layer header, an IPv4 header and that of ESP, written in one go.

use super::link::Link;
use crate::{
    packet::Flags,
    table::tunnel::{Df, SaOut, TrafficClass, Tunnel},
    wire::{checksum::Sum, esp, ipv4, vlan::L2Header},
};

/// Bytes that are written in front of the inner packet: the longest headers, and before them whatever fills the last word.
pub(super) const FRONT: usize = 64;

/// Bytes of them that are IP's and ESP's.
const IP_AND_ESP: usize = ipv4::HEADER_LEN + esp::HEADER_IV_LEN;

/// Bytes of them up to the end of the link-layer header.
const LINK: usize = FRONT - IP_AND_ESP;

/// A link-layer header at its place before the IP header, as little-endian words.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkWords([u64; 4]);

impl LinkWords {
    /// Of no link.
    pub(super) const NONE: Self = Self([0; 4]);

    pub(super) fn new(header: &L2Header) -> Self {
        let mut words = [[0; 8]; 4];
        if let Some(place) = words.as_flattened_mut().get_mut(LINK - header.header_len()..) {
            header.write(place);
        }
        Self(words.map(u64::from_le_bytes))
    }

    /// With the words of an IPv4 header behind it, which begins in the middle of a word.
    #[inline(always)]
    const fn before(&self, [first, second, last]: [u64; 3]) -> [u64; 6] {
        let [a, b, c, d] = self.0;
        [a, b, c, d | first << 32, first >> 32 | second << 32, second >> 32 | last << 32]
    }
}

/// DF is set over a packet if it has, of the first of these flags, just the second.
#[inline(always)]
pub(super) fn df_over(df: Df) -> (Flags, Flags) {
    match df {
        Df::Copy => (Flags::DONT_FRAGMENT | Flags::V6, Flags::DONT_FRAGMENT),
        Df::Set => (Flags::NONE, Flags::NONE),
        Df::Clear => (Flags::NONE, Flags::V6),
    }
}

/// What all have in common that go into one tunnel, and by one link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    /// Up to the destination address, as little-endian words.
    words: [u64; 6],
    /// Of the IP header.
    sum: Sum,
    spi: u32,
    class: TrafficClass,
    /// See [`df_over`].
    df: (Flags, Flags),
    /// The interface that they leave by.
    pub egress: u16,
    /// Bytes of it that are the packet's.
    pub len: usize,
}

impl Front {
    /// `None` for outer packets other than IPv4, or in UDP.
    #[inline(always)]
    pub(super) fn new(words: &LinkWords, link: &Link, tunnel: &Tunnel, sa: &SaOut) -> Option<Self> {
        let (ip, sum) = tunnel.outer.plain_v4()?;
        let words = words.before(ip);
        let len = link.header.header_len() + IP_AND_ESP;
        Some(Self {
            words,
            sum,
            spi: sa.spi,
            class: tunnel.class,
            df: df_over(tunnel.df),
            egress: link.egress,
            len,
        })
    }

    /// Bytes of the IP packet around an inner one of so many bytes.
    #[inline(always)]
    pub(super) const fn outer_len(&self, inner: usize) -> usize {
        ipv4::HEADER_LEN + esp::sealed_len(inner)
    }

    /// The bytes for an IP packet of `total` bytes around one of this traffic class and flags, and this sequence number.
    #[inline(always)]
    pub(super) fn words(&self, total: u16, class: u8, flags: Flags, sequence: u64) -> [u64; FRONT / 8] {
        let class = self.class.of(class);
        let (asked, expected) = self.df;
        // An atomic packet needs no identification (RFC 6864). Unlike a count of its own, the sequence number is no other
        // worker's at the same time.
        let fragment: u32 = if flags & asked == expected { 0x4000 } else { (sequence as u32) << 16 };
        let sum = u32::from(self.sum.get()) + u32::from(class) + u32::from(total);
        let sum = Sum::of_u32(sum + (fragment >> 16) + (fragment & 0xffff));
        let [a, b, c, d, e, f] = self.words;
        let d = d | u64::from(class) << 40 | u64::from(total.swap_bytes()) << 48;
        let e = e | u64::from(fragment.swap_bytes()) | u64::from(sum.checksum().swap_bytes()) << 48;
        let spi = u64::from(self.spi) << 32 | u64::from(sequence as u32);
        // The sequence number is the IV (RFC 4106 3.1): never twice under one key.
        [a, b, c, d, e, f, spi.swap_bytes(), sequence.swap_bytes()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        table::tunnel::Outer,
        wire::{
            ethernet::{EtherType, MacAddr},
            vlan::{Tag, TagKind, Tags},
        },
    };

    #[test]
    fn the_words_are_what_the_headers_give_one_by_one() {
        let outer = Outer::new([192, 0, 2, 1].into(), [198, 51, 100, 7].into(), false).unwrap();
        let (ip, sum) = outer.plain_v4().unwrap();
        let (one, two) =
            (Tag { kind: TagKind::Customer, tci: 7 }, Tag { kind: TagKind::Service, tci: 0xe009 });
        for tags in [Tags::None, Tags::One(one), Tags::Two(two, one)] {
            let header = L2Header::new(MacAddr([2; 6]), MacAddr([3; 6]), tags, EtherType::IPV4);
            let len = header.header_len() + IP_AND_ESP;
            let link = LinkWords::new(&header);
            for (mode, flags, df) in [
                (Df::Copy, Flags::DONT_FRAGMENT, true),
                (Df::Copy, Flags::DONT_FRAGMENT | Flags::V6, false),
                (Df::Copy, Flags::NONE, false),
                (Df::Set, Flags::V6, true),
                (Df::Set, Flags::NONE, true),
                (Df::Clear, Flags::DONT_FRAGMENT, false),
                (Df::Clear, Flags::DONT_FRAGMENT | Flags::V6, false),
            ] {
                for (class, inner, sequence) in
                    [(0, 40, 1), (0xb9, 83, 0x1_2345_fffe), (255, 1400, 0xffff_ffff)]
                {
                    let front = Front {
                        words: link.before(ip),
                        sum,
                        spi: 0xdead_beef,
                        class: TrafficClass::new(None),
                        df: df_over(mode),
                        egress: 0,
                        len,
                    };
                    let total = front.outer_len(inner);
                    let words = front.words(total as u16, class, flags, sequence).map(u64::to_le_bytes);

                    let mut packet = vec![0; total];
                    outer.write(&mut packet, class, df, sequence as u16);
                    let esp = esp::header(esp::Spi(0xdead_beef), sequence as u32, sequence.to_be_bytes());
                    let expected = [header.as_bytes(), &packet[..ipv4::HEADER_LEN], &esp].concat();
                    assert_eq!(words.as_flattened()[FRONT - len..], expected);
                }
            }
        }
    }
}
