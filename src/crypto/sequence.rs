//! tmp
/// s
#[derive(Debug)]
pub struct Sequence;
impl Sequence {
    /// t
    pub fn take(&self, n: u32) -> Option<std::ops::Range<u64>> {
        Some(1..1 + u64::from(n))
    }
}
/// fp
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);
impl Fingerprint {
    /// of
    pub fn of(spi: u32, _key: &[u8], _salt: [u8; 4]) -> Self {
        let mut b = [0; 16];
        b[..4].copy_from_slice(&spi.to_be_bytes());
        Self(b)
    }
}
impl Sequence {
    /// e
    pub fn ephemeral(_: u64, _: bool) -> Self {
        Self
    }
}
/// e
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct StateError;
/// f
#[derive(Debug)]
pub struct StateFile;
impl StateFile {
    /// o
    pub fn open(_: &std::path::Path) -> Result<Self, StateError> {
        Ok(Self)
    }
    /// o
    pub fn create(_: &std::path::Path) -> Result<Self, StateError> {
        Ok(Self)
    }
    /// t
    pub fn top_up(&mut self) -> Result<(), StateError> {
        Ok(())
    }
    /// s
    pub fn sequence(&mut self, _: Fingerprint, _: bool) -> Result<std::sync::Arc<Sequence>, StateError> {
        Err(StateError)
    }
}
