//! IPsec ESP (RFC 4303) with AES-GCM (RFC 4106), and its encapsulation in UDP (RFC 3948).

use std::fmt;

/// Bytes of SPI and sequence number.
pub const HEADER_LEN: usize = 8;
/// Bytes of the explicit initialisation vector of AES-GCM (RFC 4106 3.1).
pub const IV_LEN: usize = 8;
/// Bytes of SPI, sequence number and initialisation vector.
pub const HEADER_IV_LEN: usize = HEADER_LEN + IV_LEN;
/// Bytes of the integrity check value (AES-GCM with a 16-byte tag).
pub const ICV_LEN: usize = 16;
/// Bytes of pad length and next header.
pub const TRAILER_LEN: usize = 2;
/// What payload and trailer together are aligned to (RFC 4303 2.4).
pub const ALIGNMENT: usize = 4;
/// The least bytes of a packet: header, vector, an empty padded payload and the check value.
pub const MIN_LEN: usize = HEADER_IV_LEN + ALIGNMENT + ICV_LEN;
/// The UDP port of encapsulated ESP (RFC 3948).
pub const UDP_PORT: u16 = 4500;

/// A security parameters index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

impl Spi {
    /// The first that may be used: 0 is for local use and 1 to 255 are reserved (RFC 4303 2.1).
    pub const FIRST: Self = Self(256);

    /// Whether an SA may have this index.
    #[inline]
    pub const fn is_usable(self) -> bool {
        self.0 >= Self::FIRST.0
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

field!(Spi, bytes => Spi(u32::from_be_bytes(bytes)), value => value.0.to_be_bytes());

header! {
    /// An ESP header with the explicit vector of AES-GCM.
    Esp: 16 {
        /// Which SA.
        spi, set_spi: Spi = 0;
        /// The low 32 bits of the sequence number.
        sequence, set_sequence: u32 = 4;
        /// The vector, unique for each packet of a key.
        iv, set_iv: [u8; 8] = 8;
    }
}

/// The bytes of a header, made of two words.
#[inline(always)]
#[must_use]
pub const fn header(spi: Spi, sequence: u32, iv: [u8; IV_LEN]) -> [u8; HEADER_IV_LEN] {
    let first = (spi.0 as u64) << 32 | sequence as u64;
    let second = u64::from_be_bytes(iv);
    ((first as u128) << 64 | second as u128).to_be_bytes()
}

/// Bytes of padding that align `payload_len` bytes and the trailer: 0 to 3.
#[inline]
pub const fn padding(payload_len: usize) -> usize {
    // Only the low bits count, so wrapping is harmless.
    payload_len.wrapping_add(TRAILER_LEN).wrapping_neg() % ALIGNMENT
}

/// Bytes of the ESP packet that carries `payload_len` bytes with the least padding.
#[inline]
pub const fn sealed_len(payload_len: usize) -> usize {
    HEADER_IV_LEN + payload_len + padding(payload_len) + TRAILER_LEN + ICV_LEN
}

/// The largest payload whose ESP packet is at most `len` bytes; `None` when not even an empty one fits.
#[inline]
pub const fn payload_within(len: usize) -> Option<usize> {
    match len.checked_sub(HEADER_IV_LEN + ICV_LEN) {
        Some(room) => (room / ALIGNMENT * ALIGNMENT).checked_sub(TRAILER_LEN),
        None => None,
    }
}

/// Padding and pad length for each length of padding, the first byte lowest.
const TRAILERS: [u64; ALIGNMENT] = [0x00, 0x01_01, 0x02_02_01, 0x03_03_02_01];

/// Writes padding (1, 2, 3 …, RFC 4303 2.4), pad length and next header after `payload_len` bytes of payload.
///
/// Returns the bytes to encrypt; `None`, and nothing written, when `buffer` is too short. The bytes behind them, which are
/// the ICV's, may be written too.
#[inline]
pub fn write_trailer(buffer: &mut [u8], payload_len: usize, next_header: u8) -> Option<usize> {
    let padding = padding(payload_len);
    let len = payload_len.checked_add(padding + TRAILER_LEN)?;
    let trailer = TRAILERS.get(padding)? | u64::from(next_header) << (8 * (padding + 1));
    let place = buffer.get_mut(payload_len..)?;
    if let Some(place) = place.first_chunk_mut() {
        // One store, whatever the length.
        *place = trailer.to_le_bytes();
    } else {
        place
            .get_mut(..len - payload_len)?
            .iter_mut()
            .zip(trailer.to_le_bytes())
            .for_each(|(byte, value)| *byte = value);
    }
    Some(len)
}

/// Why decrypted bytes do not end in a trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrailerError {
    /// No room for the trailer, or for the padding it claims.
    #[error("ESP pad length beyond the packet")]
    Length,
    /// The padding is not 1, 2, 3 ….
    #[error("ESP padding wrong")]
    Padding,
}

/// What a trailer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes of payload before the padding; with traffic-flow padding, more than the inner packet has.
    pub payload_len: usize,
    /// What the payload is: 4, 41, or 59 for a dummy packet.
    pub next_header: u8,
}

/// Reads the trailer at the end of decrypted bytes and checks the padding (RFC 4303 2.4).
#[inline]
pub fn parse_trailer(plaintext: &[u8]) -> Result<Trailer, TrailerError> {
    let (rest, &[pad_len, next_header]) = plaintext.split_last_chunk().ok_or(TrailerError::Length)?;
    let payload_len = rest.len().checked_sub(usize::from(pad_len)).ok_or(TrailerError::Length)?;
    let padding = rest.get(payload_len..).unwrap_or(&[]);
    // At most 255 bytes, and 0 to 3 from senders that align only. No early exit: nothing depends on where.
    let wrong = padding.iter().zip(1u8..=255).fold(0, |wrong, (byte, expected)| wrong | (byte ^ expected));
    if wrong == 0 { Ok(Trailer { payload_len, next_header }) } else { Err(TrailerError::Padding) }
}

/// As [`parse_trailer`], for the padding that aligns, which nearly all senders make do with, at the end of eight bytes or
/// more. `None`: what that says.
#[inline(always)]
pub fn parse_aligning_trailer(plaintext: &[u8]) -> Option<Trailer> {
    let last = u64::from_le_bytes(*plaintext.last_chunk()?);
    let (pad_len, next_header) = ((last >> 48) as u8, (last >> 56) as u8);
    let expected = TRAILERS.get(usize::from(pad_len))?;
    let trailer = (last << 8) >> (56 - 8 * u32::from(pad_len));
    let payload_len = plaintext.len() - TRAILER_LEN - usize::from(pad_len);
    (trailer == *expected).then_some(Trailer { payload_len, next_header })
}

/// What a UDP datagram on port 4500 carries (RFC 3948 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulated<'a> {
    /// A NAT keepalive: the one byte 0xff.
    Keepalive,
    /// IKE, after the non-ESP marker of four zero bytes.
    Ike(&'a [u8]),
    /// An ESP packet.
    Esp(&'a [u8]),
    /// Too short to be any of them.
    Malformed,
}

/// Tells apart what a datagram on port 4500 carries.
#[inline]
pub fn classify(payload: &[u8]) -> Encapsulated<'_> {
    match payload.split_first_chunk::<4>() {
        Some(([0, 0, 0, 0], ike)) => Encapsulated::Ike(ike),
        Some(_) if payload.len() >= HEADER_LEN => Encapsulated::Esp(payload),
        None if payload == [0xff] => Encapsulated::Keepalive,
        _ => Encapsulated::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn largest_inner_packets() {
        // Outer 1500 bytes: IPv4, then also UDP.
        assert_eq!(payload_within(1500 - 20), Some(1446));
        assert_eq!(payload_within(1500 - 20 - 8), Some(1438));
        assert_eq!((payload_within(MIN_LEN), payload_within(MIN_LEN - 1)), (Some(2), None));
    }

    #[test]
    fn encapsulated() {
        assert_eq!(classify(&[0xff]), Encapsulated::Keepalive);
        assert_eq!(classify(&[0, 0, 0, 0, 7]), Encapsulated::Ike(&[7]));
        assert_eq!(classify(&[0, 0, 1, 0, 0, 0, 0, 1]), Encapsulated::Esp(&[0, 0, 1, 0, 0, 0, 0, 1]));
        for bad in [&[][..], &[0], &[0xff, 0xff], &[1, 2, 3, 4, 5, 6, 7]] {
            assert_eq!(classify(bad), Encapsulated::Malformed, "{bad:?}");
        }
    }

    #[test]
    fn trailers() {
        assert_eq!(parse_trailer(&[9, 1, 2, 2, 4]), Ok(Trailer { payload_len: 1, next_header: 4 }));
        assert_eq!(parse_trailer(&[0, 59]), Ok(Trailer { payload_len: 0, next_header: 59 }));
        assert_eq!(parse_trailer(&[4]), Err(TrailerError::Length));
        assert_eq!(parse_trailer(&[1, 2, 4]), Err(TrailerError::Length));
        assert_eq!(parse_trailer(&[9, 2, 1, 2, 4]), Err(TrailerError::Padding));
        let mut long: Vec<u8> = (1..=255).collect();
        long.extend([255, 41]);
        assert_eq!(parse_trailer(&long), Ok(Trailer { payload_len: 0, next_header: 41 }));
    }

    #[test]
    fn indices() {
        assert!(!Spi(255).is_usable() && Spi(256).is_usable());
        assert_eq!(Spi(0x1000).to_string(), "0x00001000");
    }

    proptest! {
        #[test]
        fn trailer_round_trip(payload in prop::collection::vec(any::<u8>(), 0..70), next_header: u8) {
            let mut buffer = payload.clone();
            buffer.resize(payload.len() + 5 + ICV_LEN + 8, 0xee);
            let len = write_trailer(&mut buffer, payload.len(), next_header).unwrap();
            prop_assert_eq!(len % ALIGNMENT, 0);
            prop_assert_eq!(HEADER_IV_LEN + len + ICV_LEN, sealed_len(payload.len()));
            let trailer = Trailer { payload_len: payload.len(), next_header };
            prop_assert_eq!(parse_trailer(&buffer[..len]), Ok(trailer));
            prop_assert_eq!(parse_aligning_trailer(&buffer[..len]), (len >= 8).then_some(trailer));
            prop_assert_eq!(&buffer[..payload.len()], &payload[..]);
            prop_assert!(buffer[len + ICV_LEN..].iter().all(|byte| *byte == 0xee));
            prop_assert_eq!(write_trailer(&mut buffer[..len - 1], payload.len(), 4), None);
            // Without room for an ICV, nothing but the trailer is written.
            let mut short = payload.clone();
            short.resize(len, 0xee);
            prop_assert_eq!(write_trailer(&mut short, payload.len(), next_header), Some(len));
            prop_assert_eq!(&short[..], &buffer[..len]);
        }

        #[test]
        fn the_short_cut_to_a_trailer_says_nothing_else(mut bytes in prop::collection::vec(0u8..5, 8..20), next_header: u8) {
            bytes.push(next_header);
            if let Some(trailer) = parse_aligning_trailer(&bytes) {
                prop_assert_eq!(parse_trailer(&bytes), Ok(trailer));
            } else {
                prop_assert!(parse_trailer(&bytes).is_err() || bytes[bytes.len() - 2] > 3);
            }
        }

        #[test]
        fn payload_within_is_the_largest(len in MIN_LEN..2000) {
            let payload = payload_within(len).unwrap();
            prop_assert!(sealed_len(payload) <= len && sealed_len(payload + 1) > len);
        }

        #[test]
        fn header_round_trip(bytes: [u8; 16]) {
            let (view, mut copy) = (Esp::new(&bytes), Esp::new([0; 16]));
            copy.set_spi(view.spi());
            copy.set_sequence(view.sequence());
            copy.set_iv(view.iv());
            prop_assert_eq!(copy.bytes(), &bytes);
            prop_assert_eq!(header(view.spi(), view.sequence(), view.iv()), bytes);
        }
    }
}
