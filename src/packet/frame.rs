//! The owned token of a buffer.

use std::num::NonZeroU32;

use arrayvec::ArrayVec;

/// An owned token for the bytes of one packet: a chunk of a [`Umem`](super::Umem), and where in it the packet
/// starts and how long it is.
///
/// Eight bytes, not `Clone` and not constructible outside this layer, so whoever holds it is the only one who
/// can reach the bytes. Chunk numbers are unique in the process, so a frame of one UMEM is refused by another.
#[derive(Debug)]
#[must_use = "a frame that is forgotten is a buffer lost: send it, drop it through a burst, or free it"]
pub struct Frame {
    /// Process-wide chunk number.
    pub(super) chunk: NonZeroU32,
    /// Offset of the first byte in the chunk.
    pub(super) start: u16,
    /// Bytes of the packet.
    pub(super) len: u16,
}

impl Frame {
    /// Bytes of the packet.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether the packet has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes free in front of the packet.
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.start)
    }

    /// Removes `n` bytes from the front; removes all when there are fewer.
    pub fn trim_front(&mut self, n: usize) {
        let n = u16::try_from(n).unwrap_or(u16::MAX).min(self.len);
        self.start += n;
        self.len -= n;
    }

    /// Shortens the packet to `len` bytes; leaves it when it is already shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(u16::try_from(len).unwrap_or(u16::MAX));
    }

    /// Keeps the `len` bytes from offset `at` on and puts `front` bytes in front of them: what
    /// [`trim_front`](Self::trim_front), [`truncate`](Self::truncate) and [`grow_front`](Self::grow_front) do one
    /// after the other. `false`, and no change, when there are not as many bytes.
    #[inline]
    pub fn reframe(&mut self, at: usize, len: usize, front: usize) -> bool {
        if at + len > usize::from(self.len) || front > usize::from(self.start) + at {
            return false;
        }
        // The packet ends no later than before, so all of it is within the chunk, whose size fits 16 bits.
        self.start = (usize::from(self.start) + at - front) as u16;
        self.len = (len + front) as u16;
        true
    }

    /// Takes back `n` bytes in front of the packet. `false`, and no change, when there are not as many.
    pub fn grow_front(&mut self, n: usize) -> bool {
        match u16::try_from(n).ok().and_then(|n| Some((self.start.checked_sub(n)?, self.len.checked_add(n)?)))
        {
            Some((start, len)) => {
                (self.start, self.len) = (start, len);
                true
            }
            None => false,
        }
    }
}

/// Frames in order, on their way to or from a port: room for two bursts.
pub type FrameQueue = ArrayVec<Frame, { 2 * super::BURST }>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_and_its_absence_are_one_word() {
        assert_eq!(size_of::<Frame>(), 8);
        assert_eq!(size_of::<Option<Frame>>(), 8);
    }

    #[test]
    fn reframing_is_trimming_and_growing() {
        for (at, len, front) in
            [(0, 20, 0), (5, 15, 3), (5, 10, 15), (20, 0, 30), (5, 16, 0), (0, 20, 11), (5, 10, 16)]
        {
            let new = || Frame { chunk: NonZeroU32::MIN, start: 10, len: 20 };
            let (mut one, mut other) = (new(), new());
            let done = one.reframe(at, len, front);
            other.trim_front(at);
            let had = other.len() >= len;
            other.truncate(len);
            let expected = other.grow_front(front) && had;
            assert_eq!(done, expected, "{at} {len} {front}");
            if done {
                assert_eq!((one.headroom(), one.len()), (other.headroom(), other.len()));
            } else {
                assert_eq!((one.headroom(), one.len()), (10, 20));
            }
        }
    }

    #[test]
    fn trimming_and_growing_never_leave_the_chunk() {
        let mut frame = Frame { chunk: NonZeroU32::MIN, start: 10, len: 20 };
        frame.trim_front(5);
        assert_eq!((frame.headroom(), frame.len()), (15, 15));
        frame.trim_front(70_000);
        assert_eq!((frame.headroom(), frame.len()), (30, 0));
        assert!(!frame.grow_front(31));
        assert!(frame.grow_front(30));
        assert_eq!((frame.headroom(), frame.len()), (0, 30));
        frame.truncate(7);
        frame.truncate(9);
        assert_eq!(frame.len(), 7);
    }
}
