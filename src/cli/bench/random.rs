//! Numbers that repeat, so that every run of a benchmark does the same work.

/// The seed that chooses flows.
pub const FLOWS: u64 = 4;
/// That which puts the lengths of a mix in order.
pub const LENGTHS: u64 = 3;
/// That which puts buffers in order.
pub const BUFFERS: u64 = 0x5EED;

/// xorshift64*.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next 32 bits.
    pub const fn word(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    /// A number below `bound`.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.word() as usize * bound) >> 32
    }

    /// Puts these in any order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shuffled_is_all_there_in_another_order_which_is_always_the_same() {
        let shuffled = || {
            let mut all: Vec<u32> = (0..1000).collect();
            Random::new(BUFFERS).shuffle(&mut all);
            all
        };
        let mut all = shuffled();
        assert_eq!(all, shuffled());
        assert!(all.windows(2).filter(|two| two[0] + 1 == two[1]).count() < 20);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1000));
    }
}
