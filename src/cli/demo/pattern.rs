//! Bytes that a receiver can tell from any others.

/// An endless stream of bytes that looks random, by its seed (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The stream of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed ^ 0x9e37_79b9_7f4a_7c15, word: [0; 8], used: 8 }
    }

    const fn next(&mut self) -> [u8; 8] {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    }

    /// Writes the bytes that come next.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.each(bytes, |to, from| {
            to.copy_from_slice(from);
            true
        });
    }

    /// Whether these are the bytes that come next.
    #[must_use]
    pub fn matches(&mut self, bytes: &mut [u8]) -> bool {
        self.each(bytes, |got, expected| got == expected)
    }

    fn each(&mut self, bytes: &mut [u8], mut what: impl FnMut(&mut [u8], &[u8]) -> bool) -> bool {
        // What is left of the word before, then whole words.
        let (first, rest) = bytes.split_at_mut((8 - self.used).min(bytes.len()));
        let mut good = what(first, &self.word[self.used..self.used + first.len()]);
        self.used += first.len();
        for chunk in rest.chunks_mut(8) {
            self.word = self.next();
            self.used = chunk.len();
            good &= what(chunk, &self.word[..chunk.len()]);
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_are_one_stream() {
        let mut whole = [0; 1000];
        Pattern::new(7).fill(&mut whole);
        let (mut written, mut read) = (Pattern::new(7), Pattern::new(7));
        let mut pieces = whole.to_vec();
        let mut rest = pieces.as_mut_slice();
        for length in [1, 7, 8, 9, 16, 3, 500, 456] {
            let (piece, after) = rest.split_at_mut(length);
            assert!(read.matches(&mut piece.to_vec()), "{length}");
            piece.fill(0);
            written.fill(piece);
            rest = after;
        }
        assert_eq!(pieces, whole);
        assert!(!Pattern::new(8).matches(&mut whole));
        whole[999] ^= 1;
        assert!(!Pattern::new(7).matches(&mut whole));
    }
}
