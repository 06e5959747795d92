//! TCP (RFC 9293): header, flags, options, and the MSS clamp.

use super::checksum::Delta;
use super::ipv4::MalformedOption;
use std::borrow::Borrow;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// Option kinds (IANA "TCP Option Kind Numbers").
pub mod option {
    /// End of the list.
    pub const END: u8 = 0;
    /// Padding of one byte.
    pub const NOP: u8 = 1;
    /// Maximum segment size.
    pub const MSS: u8 = 2;
    /// Window scale.
    pub const WINDOW_SCALE: u8 = 3;
    /// Selective acknowledgement permitted.
    pub const SACK_PERMITTED: u8 = 4;
    /// Timestamps.
    pub const TIMESTAMPS: u8 = 8;
}

/// The control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// Whether all bits of `flags` are set.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any bit of `flags` is set.
    #[inline]
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// The bits of both.
    #[inline]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

field!(Flags, bytes => { let [bits]: [u8; 1] = bytes; Flags(bits) }, value => [value.0]);

header! {
    /// The fixed part of a TCP header.
    Tcp: 20 {
        /// Source port.
        source_port, set_source_port: u16 = 0;
        /// Destination port.
        destination_port, set_destination_port: u16 = 2;
        /// Sequence number.
        sequence, set_sequence: u32 = 4;
        /// Acknowledgement number.
        acknowledgement, set_acknowledgement: u32 = 8;
        /// Header length in words (high four bits).
        data_offset, set_data_offset: u8 = 12;
        /// Control bits.
        flags, set_flags: Flags = 13;
        /// Window.
        window, set_window: u16 = 14;
        /// Checksum.
        checksum, set_checksum: u16 = 16;
        /// Urgent pointer.
        urgent, set_urgent: u16 = 18;
    }
}

impl<T: Borrow<[u8; HEADER_LEN]>> Tcp<T> {
    /// Bytes of header and options, as the header claims: 0 to 60, at least 20 when valid.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.data_offset() >> 4) * 4
    }
}

/// Why bytes are not a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than the header claims, or than any header has.
    #[error("TCP header truncated")]
    Truncated,
    /// The header length is below 20 bytes.
    #[error("TCP header length below 20 bytes")]
    HeaderLength,
}

/// A segment with checked lengths.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The fixed header.
    pub header: Tcp<&'a [u8; HEADER_LEN]>,
    /// The options, 0 to 40 bytes; see [`Options`].
    pub options: &'a [u8],
    /// The data.
    pub payload: &'a [u8],
}

/// Checks the lengths of the segment in an IP payload.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Segment<'_>, Error> {
    let (header, rest) = Tcp::split(bytes).ok_or(Error::Truncated)?;
    let options_len = header.header_len().checked_sub(HEADER_LEN).ok_or(Error::HeaderLength)?;
    let (options, payload) = rest.split_at_checked(options_len).ok_or(Error::Truncated)?;
    Ok(Segment { header, options, payload })
}

/// One option of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption<'a> {
    /// Its kind.
    pub kind: u8,
    /// Where its first byte (the kind) is among the options.
    pub at: usize,
    /// What follows kind and length.
    pub data: &'a [u8],
}

/// The options of a segment, without padding; a malformed one ends it with an error.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Options<'a> {
    /// Walks the options' bytes.
    pub const fn new(options: &'a [u8]) -> Self {
        Self { rest: options, at: 0 }
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<TcpOption<'a>, MalformedOption>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = std::mem::take(&mut self.rest);
            match *rest {
                [] | [option::END, ..] => return None,
                [option::NOP, ..] => {
                    self.rest = rest.get(1..).unwrap_or(&[]);
                    self.at += 1;
                }
                [kind, len, ..] => {
                    // Two bytes are there and a length below two fails, so each turn moves on.
                    let Some((this, rest)) = rest.split_at_checked(usize::from(len)) else {
                        return Some(Err(MalformedOption));
                    };
                    let Some(data) = this.get(2..) else { return Some(Err(MalformedOption)) };
                    let at = self.at;
                    (self.rest, self.at) = (rest, at + this.len());
                    return Some(Ok(TcpOption { kind, at, data }));
                }
                [_] => return Some(Err(MalformedOption)),
            }
        }
    }
}

impl Segment<'_> {
    /// The maximum segment size the sender accepts; `None` when it does not say, or its options are malformed
    /// before it does.
    #[inline]
    pub fn mss(&self) -> Option<u16> {
        find_mss(self.options).map(|(_, mss)| mss)
    }
}

/// Where the MSS value is among the options, and the value.
fn find_mss(options: &[u8]) -> Option<(usize, u16)> {
    for found in Options::new(options) {
        let found = found.ok()?;
        if found.kind == option::MSS {
            return <[u8; 2]>::try_from(found.data).ok().map(|mss| (found.at + 2, u16::from_be_bytes(mss)));
        }
    }
    None
}

/// Lowers the MSS option of a SYN to `max` and updates the checksum (RFC 1624); returns the old value when it
/// was above. `segment` starts at the TCP header. Other segments, and SYNs without the option, stay as they are.
#[inline]
pub fn clamp_mss(segment: &mut [u8], max: u16) -> Option<u16> {
    let parsed = parse(segment).ok()?;
    if !parsed.header.flags().contains(Flags::SYN) || parsed.options.is_empty() {
        return None;
    }
    let (at, old) = find_mss(parsed.options)?;
    if old <= max {
        return None;
    }
    // Padding may put the option at an odd offset, where its bytes belong to two words of the sum.
    let delta = Delta::between_u16(old, max);
    let delta = if at % 2 == 0 { delta } else { delta.shifted() };
    let place = segment.get_mut(HEADER_LEN + at..)?.first_chunk_mut()?;
    *place = max.to_be_bytes();
    let (mut header, _) = Tcp::split_mut(segment)?;
    let checksum = delta.apply(header.checksum());
    header.set_checksum(checksum);
    Some(old)
}

#[cfg(test)]
mod tests {
    use super::super::checksum::Sum;
    use super::*;
    use proptest::prelude::*;

    /// A SYN with these options (their length a multiple of four) and a right checksum.
    fn syn(options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut header = Tcp::new([0; HEADER_LEN]);
        header.set_source_port(1000);
        header.set_destination_port(443);
        header.set_flags(Flags::SYN);
        header.set_data_offset(((HEADER_LEN + options.len()) as u8 / 4) << 4);
        let mut bytes = [&header.bytes()[..], options, payload].concat();
        let checksum = Sum::of(&bytes).checksum();
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    #[test]
    fn options() {
        let bytes = syn(&[1, 2, 4, 5, 0xb4, 3, 3, 7, 4, 2, 0, 99], b"data");
        let segment = parse(&bytes).unwrap();
        assert_eq!((segment.mss(), segment.payload), (Some(1460), &b"data"[..]));
        let kinds: Vec<_> = Options::new(segment.options).map(|o| o.map(|o| (o.kind, o.at))).collect();
        assert_eq!(kinds, [Ok((2, 1)), Ok((3, 5)), Ok((4, 8))]);
        for bad in [&[2][..], &[2, 0], &[2, 1, 0, 0], &[2, 9, 0]] {
            assert_eq!(Options::new(bad).last(), Some(Err(MalformedOption)), "{bad:?}");
        }
        assert_eq!(find_mss(&[2, 3, 1, 2, 4, 1, 1]), None);
    }

    #[test]
    fn each_error() {
        let mut bytes = syn(&[2, 4, 5, 0xb4], &[]);
        assert_eq!(parse(&bytes[..19]).map(|_| ()), Err(Error::Truncated));
        assert_eq!(parse(&bytes[..23]).map(|_| ()), Err(Error::Truncated));
        bytes[12] = 0x40;
        assert_eq!(parse(&bytes).map(|_| ()), Err(Error::HeaderLength));
    }

    #[test]
    fn clamp_leaves_the_rest_alone() {
        let small = syn(&[2, 4, 2, 0], &[]);
        let mut bytes = small.clone();
        assert_eq!(clamp_mss(&mut bytes, 1400), None);
        assert_eq!(bytes, small);
        let mut ack = syn(&[2, 4, 5, 0xb4], &[]);
        ack[13] = Flags::ACK.0;
        let before = ack.clone();
        assert_eq!(clamp_mss(&mut ack, 1000), None);
        assert_eq!(ack, before);
    }

    proptest! {
        #[test]
        fn clamp_keeps_the_checksum(old: u16, max: u16, nops in 0usize..4, payload in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut options = vec![1; nops];
            options.extend([2, 4]);
            options.extend(old.to_be_bytes());
            options.resize(8, 0);
            let mut bytes = syn(&options, &payload);
            prop_assert_eq!(clamp_mss(&mut bytes, max), (old > max).then_some(old));
            prop_assert_eq!(parse(&bytes).unwrap().mss(), Some(old.min(max)));
            prop_assert!(Sum::of(&bytes).is_valid());
        }

        #[test]
        fn fields_are_where_the_wire_has_them(bytes: [u8; 20]) {
            let (view, mut copy) = (Tcp::new(&bytes), Tcp::new([0; 20]));
            copy.set_source_port(view.source_port());
            copy.set_destination_port(view.destination_port());
            copy.set_sequence(view.sequence());
            copy.set_acknowledgement(view.acknowledgement());
            copy.set_data_offset(view.data_offset());
            copy.set_flags(view.flags());
            copy.set_window(view.window());
            copy.set_checksum(view.checksum());
            copy.set_urgent(view.urgent());
            prop_assert_eq!(copy.bytes(), &bytes);
        }
    }
}
