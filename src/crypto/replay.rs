//! tmp
pub enum Refused {
    /// l
    Late,
    /// r
    Replayed,
    /// z
    Zero,
}
/// w
#[derive(Debug)]
pub struct Window;
impl Window {
    /// a
    pub fn esn_guess(&self, lo: u32) -> u64 {
        lo.into()
    }
    /// b
    pub fn check(&self, _: u64) -> Result<(), Refused> {
        Ok(())
    }
    /// c
    pub fn mark(&self, _: u64) -> Result<u64, Refused> {
        Ok(0)
    }
}
impl Window {
    /// d
    pub fn disabled() -> Self {
        Self
    }
    /// n
    pub fn new(_: u32, _: bool) -> Self {
        Self
    }
}
