//! AES-GCM with a 16-byte tag for ESP (RFC 4106), a burst at a time.
//!
//! A caller gathers the packets of a burst into [`Job`]s and calls [`seal`] or [`open`] once. The jobs may mix
//! keys, key sizes and lengths: a backend sorts them so that packets whose latencies overlap run together.
//!
//! A crate of its own so that its kernels, which are long to compile, are compiled once and always optimised.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod reference;
#[cfg(target_arch = "x86_64")]
mod vaes;
#[cfg(target_arch = "x86_64")]
mod vaes128;
#[cfg(target_arch = "x86_64")]
mod vaes256;
#[cfg(target_arch = "x86_64")]
mod vaes512;

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, ZeroizeOnDrop};

use reference::Reference;

/// Bytes of the authentication tag that follows every text (RFC 4106 section 6: the ICV of 16 octets).
pub const TAG_LEN: usize = 16;

/// What computes AES-GCM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The `aes-gcm` crate, one packet at a time: works everywhere, and is the oracle for the others.
    Reference,
    /// AES-NI and PCLMULQDQ: one block a register.
    AesNi,
    /// AVX2 with VAES and VPCLMULQDQ: two blocks a register.
    Vaes256,
    /// AVX-512 with VAES and VPCLMULQDQ: four blocks a register.
    Vaes512,
}

impl Backend {
    /// Every backend, the fastest first.
    pub const ALL: [Self; 4] = [Self::Vaes512, Self::Vaes256, Self::AesNi, Self::Reference];

    /// The backends this machine can run, the fastest first. [`Backend::Reference`] is always the last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|backend| backend.is_available())
    }

    /// The fastest backend this machine can run.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self::Reference)
    }

    /// Whether this machine can run the backend, by asking the processor.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Reference => true,
                Self::AesNi => crate::vaes128::AesNi::detect().is_some(),
                Self::Vaes256 => crate::vaes256::Vaes256::detect().is_some(),
                Self::Vaes512 => crate::vaes512::Vaes512::detect().is_some(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Reference
        }
    }

    /// The name that a configuration file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reference => "aes-gcm",
            Self::AesNi => "aes-ni",
            Self::Vaes256 => "vaes256",
            Self::Vaes512 => "vaes512",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no backend's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no AEAD backend is called `{0}`: try vaes512, vaes256, aes-ni or aes-gcm")]
pub struct UnknownBackend(String);

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// RFC 4106 section 8.1 knows keys of 128, 192 and 256 bits.
    #[error("an AES key has 16, 24 or 32 bytes, not {0}")]
    Length(usize),
    /// The processor lacks the instructions.
    #[error("this machine cannot run the AEAD backend {0}")]
    Unavailable(Backend),
}

/// Sixteen bytes: an AES block, or an element of GHASH's field.
pub(crate) type Block = [u8; 16];

/// Powers of H that a key holds: 32 blocks and the length block take one reduction.
pub(crate) const POWERS: usize = 33;

/// Where [`RoundKeys`] has the key of the last round.
#[cfg(target_arch = "x86_64")]
pub(crate) const LAST_ROUND: usize = 10;

/// One SA's key: what the backend needs to seal or open a packet, and nothing it has to derive again.
///
/// A frame of 64 bytes reads five or six cache lines of it: they lie next to each other, the small powers of H,
/// the salt and the round keys. Zeroised when dropped.
#[repr(C, align(64))]
pub struct Key {
    /// H^33 … H^1 (each times x, bytes reversed: see `vaes`), then two zero blocks that a vector load may touch.
    pub(crate) powers: [Block; POWERS + 2],
    pub(crate) reference: Option<Box<Reference>>,
    pub(crate) salt: [u8; 4],
    /// AES rounds: 10, 12 or 14.
    pub(crate) rounds: u8,
    pub(crate) backend: Backend,
    pub(crate) round_keys: RoundKeys,
    /// For the groups of a long packet: the halves' sums of the power at the same place and of that a vector further on.
    pub(crate) sums: [Block; POWERS + 2],
}

/// Those of rounds 0 to 9 and of the last round, and behind them the others of longer keys: so each has its place
/// whatever the size of the key. Aligned, so that loading one never touches two cache lines.
#[repr(C, align(16))]
pub(crate) struct RoundKeys(pub(crate) [Block; 15]);

impl Key {
    /// Expands `key` (16, 24 or 32 bytes) for `backend`. `salt` is the nonce's fixed part (RFC 4106 section 4).
    ///
    /// # Errors
    /// [`KeyError`] when the length is none of AES's, or the machine cannot run the backend.
    pub fn new(backend: Backend, key: &[u8], salt: [u8; 4]) -> Result<Self, KeyError> {
        let rounds = match key.len() {
            16 => 10,
            24 => 12,
            32 => 14,
            other => return Err(KeyError::Length(other)),
        };
        let mut this = Self {
            sums: [[0; 16]; POWERS + 2],
            powers: [[0; 16]; POWERS + 2],
            reference: None,
            salt,
            rounds,
            backend,
            round_keys: RoundKeys([[0; 16]; 15]),
        };
        let done = match backend {
            Backend::Reference => {
                this.reference = Reference::new(key).map(Box::new);
                this.reference.is_some()
            }
            #[cfg(target_arch = "x86_64")]
            Backend::AesNi => crate::vaes128::AesNi::detect().map(|cpu| cpu.expand(&mut this, key)).is_some(),
            #[cfg(target_arch = "x86_64")]
            Backend::Vaes256 => {
                crate::vaes256::Vaes256::detect().map(|cpu| cpu.expand(&mut this, key)).is_some()
            }
            #[cfg(target_arch = "x86_64")]
            Backend::Vaes512 => {
                crate::vaes512::Vaes512::detect().map(|cpu| cpu.expand(&mut this, key)).is_some()
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        if done { Ok(this) } else { Err(KeyError::Unavailable(backend)) }
    }

    /// A part of each cache line that a short packet reads, for whoever asks for them before they are needed.
    #[inline]
    pub const fn lines(&self) -> [&[u8; 16]; 6] {
        let keys = &self.round_keys.0;
        [&self.powers[POWERS - 5], &self.powers[POWERS - 1], &keys[0], &keys[4], &keys[8], &keys[12]]
    }

    /// The backend that this key was expanded for.
    pub const fn backend(&self) -> Backend {
        self.backend
    }

    /// Bits of the AES key: 128, 192 or 256.
    pub const fn bits(&self) -> usize {
        match self.rounds {
            10 => 128,
            12 => 192,
            _ => 256,
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.sums.zeroize();
        self.powers.zeroize();
        self.round_keys.0.zeroize();
        self.salt.zeroize();
    }
}

impl ZeroizeOnDrop for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(AES-{}-GCM, {})", self.bits(), self.backend)
    }
}

/// Additional authenticated data of an ESP packet (RFC 4106 section 5): SPI and sequence number, 8 bytes, or 12
/// with an extended sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Aad {
    /// Zero from `len` on: the block that GHASH takes. In words, so that it is not written byte by byte.
    pub(crate) bytes: [[u8; 4]; 3],
    pub(crate) len: u32,
}

impl Aad {
    /// SPI and 32-bit sequence number.
    #[inline]
    pub const fn new(spi: u32, sequence: u32) -> Self {
        Self { bytes: [spi.to_be_bytes(), sequence.to_be_bytes(), [0; 4]], len: 8 }
    }

    /// SPI and 64-bit extended sequence number, of which the packet itself carries the low half.
    #[inline]
    pub const fn esn(spi: u32, sequence: u64) -> Self {
        let (high, low) = ((sequence >> 32) as u32, sequence as u32);
        Self { bytes: [spi.to_be_bytes(), high.to_be_bytes(), low.to_be_bytes()], len: 12 }
    }

    /// Any data of up to 12 bytes, which is more than ESP needs: for test vectors. `None` when it is longer.
    pub fn from_bytes(data: &[u8]) -> Option<Self> {
        let mut bytes = [[0; 4]; 3];
        bytes.as_flattened_mut().get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { bytes, len: data.len() as u32 })
    }

    /// The data, padded with zeros to a block, as two little-endian halves.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn words(&self) -> (u64, u64) {
        let [[a, b, c, d], [e, f, g, h], last] = self.bytes;
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes(last) as u64)
    }

    /// The data itself.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        let bytes = self.bytes.as_flattened();
        bytes.get(..self.len as usize).unwrap_or(bytes)
    }
}

/// One packet to seal or open, in place.
#[derive(Debug)]
pub struct Job<'a> {
    /// The SA's key.
    pub key: &'a Key,
    /// The packet's explicit IV (RFC 4106 section 3.1), never the same twice under one key when sealing.
    pub iv: [u8; 8],
    /// The data that is authenticated but not encrypted.
    pub aad: Aad,
    /// Plaintext or ciphertext, followed by [`TAG_LEN`] bytes for the tag.
    pub text: &'a mut [u8],
    /// Set by [`seal`] and [`open`]: whether this packet may be used.
    pub ok: bool,
}

impl<'a> Job<'a> {
    /// A job that has not been done.
    #[inline]
    pub const fn new(key: &'a Key, iv: [u8; 8], aad: Aad, text: &'a mut [u8]) -> Self {
        Self { key, iv, aad, text, ok: false }
    }
}

/// Encrypts and authenticates each job's text in place and writes its tag behind it.
///
/// A job is not `ok`, and untouched, only when its text has no room for a tag.
#[inline(never)] // Once in this crate: inlined, the kernels would be compiled again by every user.
pub fn seal(jobs: &mut [Job<'_>]) {
    each_run::<false>(jobs);
}

/// Verifies each job's tag, in constant time, and decrypts its text in place.
///
/// A job that is not `ok` was forged, damaged or shorter than a tag: its text is wiped or still the ciphertext,
/// never plaintext.
#[inline(never)] // Once in this crate: inlined, the kernels would be compiled again by every user.
pub fn open(jobs: &mut [Job<'_>]) {
    each_run::<true>(jobs);
}

/// Dispatches once for each run of jobs that share a backend, which in a gateway is the whole burst.
fn each_run<const OPEN: bool>(mut jobs: &mut [Job<'_>]) {
    while let Some(first) = jobs.first() {
        let backend = first.key.backend;
        let length = jobs.iter().take_while(|job| job.key.backend == backend).count();
        let Some((run, rest)) = jobs.split_at_mut_checked(length) else { return };
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Vaes512 => crate::vaes512::run::<OPEN>(run),
            #[cfg(target_arch = "x86_64")]
            Backend::Vaes256 => crate::vaes256::run::<OPEN>(run),
            #[cfg(target_arch = "x86_64")]
            Backend::AesNi => crate::vaes128::run::<OPEN>(run),
            _ => crate::reference::run::<OPEN>(run),
        }
        jobs = rest;
    }
}
