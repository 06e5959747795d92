//! The backend that runs everywhere: the `aes-gcm` crate, one packet at a time.

use aes_gcm::aead::AeadInOut;
use aes_gcm::aes::Aes192;
use aes_gcm::aes::cipher::consts::U12;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, KeyInit, Nonce, Tag};

use crate::{Job, TAG_LEN};

/// An expanded key of the `aes-gcm` crate, which zeroises itself.
pub(crate) enum Reference {
    Aes128(Aes128Gcm),
    Aes192(AesGcm<Aes192, U12>),
    Aes256(Aes256Gcm),
}

impl Reference {
    /// `None` when the key has not 16, 24 or 32 bytes.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Aes128Gcm::new_from_slice(key).ok().map(Self::Aes128),
            24 => AesGcm::new_from_slice(key).ok().map(Self::Aes192),
            32 => Aes256Gcm::new_from_slice(key).ok().map(Self::Aes256),
            _ => None,
        }
    }

    fn seal(&self, nonce: &Nonce<U12>, aad: &[u8], text: &mut [u8]) -> Option<Tag> {
        match self {
            Self::Aes128(cipher) => cipher.encrypt_inout_detached(nonce, aad, text.into()),
            Self::Aes192(cipher) => cipher.encrypt_inout_detached(nonce, aad, text.into()),
            Self::Aes256(cipher) => cipher.encrypt_inout_detached(nonce, aad, text.into()),
        }
        .ok()
    }

    fn open(&self, nonce: &Nonce<U12>, aad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        match self {
            Self::Aes128(cipher) => cipher.decrypt_inout_detached(nonce, aad, text.into(), tag),
            Self::Aes192(cipher) => cipher.decrypt_inout_detached(nonce, aad, text.into(), tag),
            Self::Aes256(cipher) => cipher.decrypt_inout_detached(nonce, aad, text.into(), tag),
        }
        .is_ok()
    }
}

/// Seals or opens every job.
pub(crate) fn run<const OPEN: bool>(jobs: &mut [Job<'_>]) {
    for job in jobs {
        job.ok = one::<OPEN>(job).unwrap_or(false);
    }
}

fn one<const OPEN: bool>(job: &mut Job<'_>) -> Option<bool> {
    let cipher = job.key.reference.as_deref()?;
    let (text, tag) = job.text.split_last_chunk_mut::<TAG_LEN>()?;
    let mut nonce = Nonce::default();
    nonce.iter_mut().zip(job.key.salt.iter().chain(&job.iv)).for_each(|(to, from)| *to = *from);
    if OPEN {
        return Some(cipher.open(&nonce, job.aad.as_bytes(), text, &Tag::from(*tag)));
    }
    *tag = cipher.seal(&nonce, job.aad.as_bytes(), text)?.into();
    Some(true)
}
