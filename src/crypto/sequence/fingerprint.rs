//! What names a key in a file that anyone who reads it must not learn the key from.

use std::fmt;

use sha2::{Digest, Sha256};

/// A one-way digest of an association: of its key, and of its key with its SPI.
///
/// Numbers belong to the key and salt alone, whose nonces they are: under another SPI the same key goes on where
/// it was. A window belongs to the SPI as well. Equal when both are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    nonces: [u8; 16],
    association: [u8; 16],
}

impl Fingerprint {
    /// Of an association's SPI, AES key and salt.
    #[must_use]
    pub fn of(spi: u32, key: &[u8], salt: [u8; 4]) -> Self {
        let nonces = digest("causeway sequence numbers of key", &[&salt, key]);
        Self { nonces, association: digest("causeway association", &[&spi.to_be_bytes(), &nonces]) }
    }

    /// Names whose nonces the numbers are: the key and its salt.
    pub(super) const fn nonces(&self) -> [u8; 16] {
        self.nonces
    }
}

impl Fingerprint {
    /// Names whose window the received numbers are of: key, salt and SPI. Never what [`Self::nonces`] gives for any
    /// key, as it is a digest for another purpose.
    pub(super) fn received(&self) -> [u8; 16] {
        digest("causeway received numbers of association", &[&self.association])
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({:032x})", u128::from_be_bytes(self.association))
    }
}

/// The first bytes of the SHA-256 of what is said, in parts of which only the last may vary in length, for one
/// purpose.
pub(super) fn digest<const N: usize>(purpose: &str, parts: &[&[u8]]) -> [u8; N] {
    let mut hash = Sha256::new_with_prefix(purpose);
    hash.update([0]);
    for part in parts {
        hash.update(part);
    }
    let mut first = [0; N];
    for (to, from) in first.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differs_by_each_part() {
        let key = [7; 16];
        let base = Fingerprint::of(1, &key, [1; 4]);
        assert_eq!(base, Fingerprint::of(1, &key, [1; 4]));
        for other in [
            Fingerprint::of(2, &key, [1; 4]),
            Fingerprint::of(1, &[8; 16], [1; 4]),
            Fingerprint::of(1, &[7; 32], [1; 4]),
            Fingerprint::of(1, &key, [2; 4]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn nonces_belong_to_the_key_and_salt_not_the_spi() {
        let base = Fingerprint::of(1, &[7; 16], [1; 4]).nonces();
        assert_eq!(base, Fingerprint::of(2, &[7; 16], [1; 4]).nonces());
        assert_ne!(base, Fingerprint::of(1, &[7; 16], [2; 4]).nonces());
        assert_ne!(base, Fingerprint::of(1, &[7; 32], [1; 4]).nonces());
    }

    /// Another program can name the same key: the format is a promise.
    #[test]
    fn is_the_hash_it_says() {
        let nonces = Fingerprint::of(1, b"0123456789abcdef", *b"salt").nonces();
        let hash = Sha256::digest(b"causeway sequence numbers of key\0salt0123456789abcdef");
        assert_eq!(nonces[..], hash[..16]);
    }
}
