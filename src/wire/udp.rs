//! UDP (RFC 768).

use super::checksum::Sum;
use std::borrow::Borrow;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

header! {
    /// A UDP header.
    Udp: 8 {
        /// Source port.
        source_port, set_source_port: u16 = 0;
        /// Destination port.
        destination_port, set_destination_port: u16 = 2;
        /// Bytes of header and data.
        length, set_length: u16 = 4;
        /// Checksum; zero is "none", which IPv6 does not allow (RFC 8200 8.1).
        checksum, set_checksum: u16 = 6;
    }
}

/// Why bytes are not a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer than 8 bytes.
    #[error("UDP header truncated")]
    Truncated,
    /// The length is below 8, or beyond the IP payload.
    #[error("UDP length wrong")]
    Length,
}

/// A datagram with checked lengths.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The header.
    pub header: Udp<&'a [u8; HEADER_LEN]>,
    /// The data.
    pub payload: &'a [u8],
}

/// Checks the lengths of the datagram in an IP payload; bytes after it are cut off.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Datagram<'_>, Error> {
    let (header, rest) = Udp::split(bytes).ok_or(Error::Truncated)?;
    let len = usize::from(header.length()).checked_sub(HEADER_LEN).ok_or(Error::Length)?;
    Ok(Datagram { header, payload: rest.get(..len).ok_or(Error::Length)? })
}

impl Datagram<'_> {
    /// Whether the checksum proves the datagram, given its pseudo-header's sum. A checksum of zero does
    /// not: over IPv4 the caller lets it pass, over IPv6 it must not.
    #[inline]
    pub fn is_checksum_valid(&self, pseudo_header: Sum) -> bool {
        let header = Sum::of_header(self.header.bytes());
        self.header.checksum() != 0 && pseudo_header.combine(header).combine(Sum::of(self.payload)).is_valid()
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Bytes of header and data.
    pub length: u16,
}

impl Repr {
    /// What a header says, its checksum aside.
    #[inline]
    pub fn parse<T: Borrow<[u8; HEADER_LEN]>>(header: &Udp<T>) -> Self {
        Self {
            source_port: header.source_port(),
            destination_port: header.destination_port(),
            length: header.length(),
        }
    }

    /// Writes the header with no checksum (zero): over IPv4, and for ESP in UDP (RFC 3948 2.1).
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        let mut header = Udp::new(bytes);
        header.set_source_port(self.source_port);
        header.set_destination_port(self.destination_port);
        header.set_length(self.length);
        header.set_checksum(0);
    }

    /// Writes the header with the checksum over `payload`.
    pub fn emit_with_checksum(&self, bytes: &mut [u8; HEADER_LEN], payload: &[u8], pseudo_header: Sum) {
        self.emit(bytes);
        let sum = pseudo_header.combine(Sum::of_header(bytes)).combine(Sum::of(payload));
        Udp::new(bytes).set_checksum(sum.udp_checksum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths() {
        let bytes = [0, 1, 0, 2, 0, 9, 0, 0, 7, 7];
        assert_eq!(parse(&bytes).unwrap().payload, [7]);
        assert_eq!(parse(&bytes[..8]).map(|_| ()), Err(Error::Length));
        assert_eq!(parse(&bytes[..7]).map(|_| ()), Err(Error::Truncated));
        assert_eq!(parse(&[0, 1, 0, 2, 0, 7, 0, 0]).map(|_| ()), Err(Error::Length));
    }

    proptest! {
        #[test]
        fn emit_then_parse(ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..50), a: [u8; 16], b: [u8; 16]) {
            let length = (HEADER_LEN + payload.len()) as u16;
            let repr = Repr { source_port: ports.0, destination_port: ports.1, length };
            let mut header = [0xff; HEADER_LEN];
            let pseudo = Sum::pseudo_v6(a.into(), b.into(), 17, u32::from(length));
            repr.emit_with_checksum(&mut header, &payload, pseudo);
            let mut bytes = [&header[..], &payload].concat();
            let datagram = parse(&bytes).unwrap();
            prop_assert_eq!(Repr::parse(&datagram.header), repr);
            prop_assert_eq!(datagram.payload, &payload[..]);
            prop_assert!(datagram.is_checksum_valid(pseudo));
            bytes[1] ^= 1;
            prop_assert!(!parse(&bytes).unwrap().is_checksum_valid(pseudo));
        }
    }
}
