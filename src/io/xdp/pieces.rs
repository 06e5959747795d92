//! Packets longer than what the kernel takes for a chunk.
//!
//! The kernel's chunks have a page at most, and so a larger buffer is several of them, side by side. A long packet comes
//! in pieces, each at the start of a buffer of its own: they are copied behind the first, whose buffer has room for all.
//! Sending copies nothing: the packet lies in one buffer, and each of the kernel's chunks that it touches is a piece.

use af_xdp::{Descriptor, Umem};

use crate::packet::{Frame, FramePool};

/// What a port knows of packets that are in pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Bytes of a chunk of the kernel's.
    piece: u64,
    /// Bytes of a buffer.
    buffer: u64,
    /// How many pieces of each buffer the kernel has to send.
    sending: Box<[u8]>,
    /// The packet of which not all pieces have come.
    begun: Begun,
    /// Packets that no buffer holds, or of which a piece was not to be had.
    spoilt: u64,
}

/// How far the packet is whose pieces come.
#[derive(Debug)]
enum Begun {
    /// The next piece is a packet's first.
    Nothing,
    /// What has come so far.
    Packet(Frame),
    /// What still comes of it goes home.
    Spoilt,
}

impl Pieces {
    /// `None` where the kernel takes buffers as they are.
    pub fn of(umem: &Umem) -> Option<Self> {
        umem.is_divided().then(|| {
            let buffer = umem.memory().chunk_size();
            Self::new(umem.kernel_chunk() as u64, buffer as u64, umem.memory().len() / buffer)
        })
    }

    fn new(piece: u64, buffer: u64, buffers: usize) -> Self {
        Self { piece, buffer, sending: vec![0; buffers].into(), begun: Begun::Nothing, spoilt: 0 }
    }

    /// Takes the next piece (`None` for one that was not to be had), which is a packet's last if not `continued`, and
    /// returns the packet that is complete with it.
    pub fn join(&mut self, piece: Option<Frame>, continued: bool, pool: &mut FramePool) -> Option<Frame> {
        let joined = match (std::mem::replace(&mut self.begun, Begun::Nothing), piece) {
            (Begun::Nothing, Some(first)) => Begun::Packet(first),
            (Begun::Packet(mut packet), Some(piece)) => {
                let fits = pool.umem().append(&mut packet, &piece);
                pool.free(piece);
                if fits {
                    Begun::Packet(packet)
                } else {
                    pool.free(packet);
                    Begun::Spoilt
                }
            }
            (Begun::Spoilt, Some(home)) | (Begun::Packet(home), None) => {
                pool.free(home);
                Begun::Spoilt
            }
            (Begun::Nothing | Begun::Spoilt, None) => Begun::Spoilt,
        };
        if continued {
            self.begun = joined;
            return None;
        }
        let Begun::Packet(packet) = joined else {
            self.spoilt += 1;
            return None;
        };
        Some(packet)
    }

    /// Takes the packet home of which not all pieces have come.
    pub fn abandon(&mut self, pool: &mut FramePool) {
        if let Begun::Packet(frame) = std::mem::replace(&mut self.begun, Begun::Nothing) {
            pool.free(frame);
        }
    }

    /// Frames held here.
    pub const fn held(&self) -> usize {
        matches!(self.begun, Begun::Packet(_)) as usize
    }

    /// Received packets that were lost here.
    pub const fn spoilt(&self) -> u64 {
        self.spoilt
    }

    /// How many pieces a packet is sent in.
    pub fn count(&self, frame: &Frame) -> u32 {
        let start = frame.headroom() as u64;
        let last = start + (frame.len() as u64).saturating_sub(1);
        (last / self.piece - start / self.piece + 1) as u32
    }

    /// The pieces of a packet of `len` bytes at `offset`, which the kernel is now given to send.
    pub fn cut(&mut self, offset: u64, len: u64) -> impl Iterator<Item = Descriptor> + use<> {
        let (piece, end) = (self.piece, offset + len);
        let pieces = (offset + len.saturating_sub(1)) / piece - offset / piece + 1;
        if let Some(sending) = self.sending.get_mut((offset / self.buffer) as usize) {
            *sending = pieces as u8;
        }
        let mut at = offset;
        (0..pieces).map(move |_| {
            let (addr, next) = (at, end.min((at / piece + 1) * piece));
            at = next;
            let options = if next < end { Descriptor::CONTINUED } else { 0 };
            Descriptor { addr, len: (next - addr) as u32, options }
        })
    }

    /// Notes that the kernel has done with the piece at `offset`. Whether that was the last of its buffer.
    pub fn is_sent(&mut self, offset: u64) -> bool {
        let Some(sending) = self.sending.get_mut((offset / self.buffer) as usize) else { return true };
        *sending = sending.saturating_sub(1);
        *sending == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{HugePages, Umem as Memory};

    fn pool() -> FramePool {
        Memory::new(8, 16384, HugePages::Never).unwrap().into_pools(1).pop().unwrap()
    }

    fn pieces() -> Pieces {
        Pieces::new(4096, 16384, 8)
    }

    /// As the kernel divides a packet: each piece fills what a chunk of a page has behind the headroom.
    fn receive(pieces: &mut Pieces, pool: &mut FramePool, packet: &[u8]) -> Option<Frame> {
        let count = packet.len().div_ceil(3840);
        let mut whole = None;
        for (i, bytes) in packet.chunks(3840).enumerate() {
            assert!(whole.is_none());
            let piece = pool.alloc_with(bytes).unwrap();
            whole = pieces.join(Some(piece), i + 1 < count, pool);
        }
        whole
    }

    fn packet(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    #[test]
    fn pieces_become_one_packet() {
        let (mut pool, mut pieces) = (pool(), pieces());
        for len in [1, 60, 3840, 3841, 7680, 7681, 9014, 16128] {
            let whole = receive(&mut pieces, &mut pool, &packet(len)).unwrap();
            assert_eq!(pool.umem().bytes(&whole), packet(len));
            assert_eq!((whole.headroom(), pool.available(), pieces.held()), (256, 7, 0));
            pool.free(whole);
        }
        assert_eq!(pieces.spoilt(), 0);
    }

    #[test]
    fn a_packet_that_no_buffer_holds_goes_home_whole() {
        let (mut pool, mut pieces) = (pool(), pieces());
        for len in [16129, 40_000] {
            assert!(receive(&mut pieces, &mut pool, &packet(len)).is_none());
            assert_eq!((pool.available(), pieces.held()), (8, 0));
        }
        assert_eq!(pieces.spoilt(), 2);
        // The next is a new packet.
        let whole = receive(&mut pieces, &mut pool, &packet(60)).unwrap();
        assert_eq!(whole.len(), 60);
        pool.free(whole);
    }

    #[test]
    fn a_packet_without_one_of_its_pieces_is_lost_as_a_whole() {
        let (mut pool, mut pieces) = (pool(), pieces());
        for missing in 0..3 {
            for i in 0..3 {
                let piece = if i == missing { None } else { pool.alloc_with(&packet(100)) };
                assert!(pieces.join(piece, i < 2, &mut pool).is_none());
            }
            assert_eq!((pool.available(), pieces.held(), pieces.spoilt()), (8, 0, missing + 1));
        }
    }

    #[test]
    fn what_has_begun_can_be_given_up() {
        let (mut pool, mut pieces) = (pool(), pieces());
        let first = pool.alloc_with(&packet(3840));
        assert!(pieces.join(first, true, &mut pool).is_none());
        assert_eq!((pool.available(), pieces.held()), (7, 1));
        pieces.abandon(&mut pool);
        assert_eq!((pool.available(), pieces.held(), pieces.spoilt()), (8, 0, 0));
    }

    #[test]
    fn a_packet_is_sent_by_the_chunks_that_it_touches() {
        let (mut pool, mut pieces) = (pool(), pieces());
        for (headroom, len) in
            [(256, 0), (256, 60), (256, 3840), (256, 3841), (200, 9014), (4095, 2), (4096, 4096), (0, 16384)]
        {
            let mut frame = pool.alloc().unwrap();
            let umem = std::sync::Arc::clone(pool.umem());
            umem.reset(&mut frame, headroom);
            assert!(umem.grow_back(&mut frame, len));
            let offset = 3 * 16384 + headroom as u64;
            let cut: Vec<_> = pieces.cut(offset, len as u64).collect();
            assert_eq!(cut.len() as u32, pieces.count(&frame), "{headroom} {len}");
            let mut at = offset;
            for (i, piece) in cut.iter().enumerate() {
                assert_eq!(piece.addr, at, "{cut:?}");
                at += u64::from(piece.len);
                assert_eq!(piece.is_continued(), i + 1 < cut.len());
                // What the kernel demands: no descriptor leaves its chunk.
                assert!(piece.addr % 4096 + u64::from(piece.len) <= 4096, "{cut:?}");
            }
            assert_eq!(at, offset + len as u64);
            // Only the last piece to come back frees the buffer.
            for (i, piece) in cut.iter().enumerate() {
                assert_eq!(pieces.is_sent(piece.addr), i + 1 == cut.len());
            }
            pool.free(frame);
        }
    }

    #[test]
    fn buffers_are_told_apart() {
        let mut pieces = pieces();
        let one: Vec<_> = pieces.cut(256, 9000).collect();
        let other: Vec<_> = pieces.cut(16384 + 256, 9000).collect();
        assert!(!pieces.is_sent(one[0].addr) && !pieces.is_sent(other[0].addr));
        assert!(!pieces.is_sent(one[1].addr) && pieces.is_sent(one[2].addr));
        assert!(!pieces.is_sent(other[1].addr) && pieces.is_sent(other[2].addr));
    }
}
