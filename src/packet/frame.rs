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
    /// Offset of the first byte in the chunk (low half) and bytes of the packet. One word, since both mostly change
    /// together and the frame is then moved as a whole: a processor forwards one store to one load, not two.
    span: u32,
}

impl Frame {
    /// The packet of `len` bytes from offset `start` of a chunk on. Whoever calls it sees to it that the chunk has as
    /// many, and that no other frame is of it.
    #[inline(always)]
    pub(super) const fn new(chunk: NonZeroU32, start: u16, len: u16) -> Self {
        Self { chunk, span: start as u32 | (len as u32) << 16 }
    }

    /// Offset of the first byte in the chunk.
    #[inline(always)]
    pub(super) const fn start(&self) -> u16 {
        self.span as u16
    }

    /// Changes where the packet is in its chunk. Whoever calls it sees to it that it stays within.
    #[inline(always)]
    pub(super) const fn set(&mut self, start: u16, len: u16) {
        self.span = start as u32 | (len as u32) << 16;
    }

    /// Bytes of the packet.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        (self.span >> 16) as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes free in front of the packet.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.start())
    }

    /// Removes `n` bytes from the front; removes all when there are fewer.
    pub fn trim_front(&mut self, n: usize) {
        let n = n.min(self.len());
        self.set(self.start() + n as u16, (self.len() - n) as u16);
    }

    /// Shortens the packet to `len` bytes; leaves it when it is already shorter.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.set(self.start(), self.len().min(len) as u16);
    }

    /// Keeps the `len` bytes from offset `at` on and puts `front` bytes in front of them: what
    /// [`trim_front`](Self::trim_front), [`truncate`](Self::truncate) and [`grow_front`](Self::grow_front) do one
    /// after the other. `false`, and no change, when there are not as many bytes.
    #[inline]
    pub fn reframe(&mut self, at: usize, len: usize, front: usize) -> bool {
        if len > self.len() || at > self.len() - len || front > self.headroom() + at {
            return false;
        }
        // The packet ends no later than before, so all of it is within the chunk, whose size fits 16 bits.
        self.set((self.headroom() + at - front) as u16, (len + front) as u16);
        true
    }

    /// Takes back `n` bytes in front of the packet. `false`, and no change, when there are not as many.
    pub fn grow_front(&mut self, n: usize) -> bool {
        if n > self.headroom() {
            return false;
        }
        // It ends where it did, so all of it is within the chunk.
        self.set((self.headroom() - n) as u16, (self.len() + n) as u16);
        true
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
            let new = || Frame::new(NonZeroU32::MIN, 10, 20);
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
    fn reframing_refuses_what_would_wrap() {
        let mut frame = Frame::new(NonZeroU32::MIN, 10, 20);
        assert!(!frame.reframe(usize::MAX, 5, 0) && !frame.reframe(5, usize::MAX, 0));
        assert_eq!((frame.headroom(), frame.len()), (10, 20));
    }

    #[test]
    fn trimming_and_growing_never_leave_the_chunk() {
        let mut frame = Frame::new(NonZeroU32::MIN, 10, 20);
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
