//! The memory that holds packets, and the pools and lenders that hand out its chunks.
//!
//! One UMEM serves all workers of a gateway: a frame can go from any port to any other, and from one worker to
//! another, without a copy. Each worker has a [`FramePool`] of its own part of the chunks.
#![allow(unsafe_code)]

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use af_xdp::{MappedMemory, Memory};
use thiserror::Error;

use super::{
    Frame, HEADROOM,
    prefetch::{CACHE_LINE, prefetch_address, prefetch_address_l2},
};

pub use af_xdp::{HUGE_PAGE, HugePages};

/// Why a UMEM cannot be made.
#[derive(Debug, Error)]
pub enum UmemError {
    /// A chunk size that is not a power of two from 2048 to 16384.
    #[error("a buffer of {0} bytes is not to be had: it must be a power of two from 2048 to 16384")]
    ChunkSize(usize),
    /// No chunks, or more than can be numbered.
    #[error("{0} buffers are not to be had: there must be from 1 to {max}", max = MAX_CHUNKS)]
    Count(usize),
    /// There are too few huge pages.
    #[error(
        "cannot map {bytes} bytes on huge pages: {source}; reserve {pages} that are free, with `sysctl \
         vm.nr_hugepages={pages}` where none are in use, or write huge_pages = \"auto\" in [system]"
    )]
    HugePages {
        /// Bytes that were asked for.
        bytes: usize,
        /// Pages that they take.
        pages: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel gave no memory.
    #[error("cannot map {bytes} bytes for packets: {source}")]
    Map {
        /// Bytes that were asked for.
        bytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
}

const MAX_CHUNKS: usize = 1 << 24;

/// The next chunk number of the process. Chunk numbers never come back, so that a frame names its UMEM.
static NEXT_CHUNK: AtomicU32 = AtomicU32::new(1);

/// A region of packet memory in chunks of one size.
pub struct Umem {
    /// Where `memory` begins: every access to a packet asks.
    base: Base,
    chunk_size: usize,
    /// As a power of two.
    shift: u32,
    first: u32,
    count: u32,
    memory: Arc<MappedMemory>,
}

/// The first byte of a mapping.
#[derive(Clone, Copy)]
struct Base(*mut u8);

// SAFETY: an address alone; what may be done with it is the business of whoever uses it.
unsafe impl Send for Base {}
// SAFETY: likewise.
unsafe impl Sync for Base {}

impl Umem {
    /// Maps `count` chunks of `chunk_size` bytes each.
    ///
    /// # Errors
    /// A size or count out of range, or no memory (with [`HugePages::Require`]: no huge pages).
    pub fn new(count: usize, chunk_size: usize, pages: HugePages) -> Result<Self, UmemError> {
        if !chunk_size.is_power_of_two() || !(2048..=16384).contains(&chunk_size) {
            return Err(UmemError::ChunkSize(chunk_size));
        }
        let chunks = u32::try_from(count).ok().filter(|n| (1..=MAX_CHUNKS as u32).contains(n));
        let chunks = chunks.ok_or(UmemError::Count(count))?;
        let bytes = count * chunk_size;
        let memory = MappedMemory::new(count, chunk_size, pages).map_err(|source| match pages {
            HugePages::Require => UmemError::HugePages { bytes, pages: bytes.div_ceil(HUGE_PAGE), source },
            _ => UmemError::Map { bytes, source },
        })?;
        let first = NEXT_CHUNK
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(chunks))
            .map_err(|_| UmemError::Count(count))?;
        let base = Base(memory.base());
        let shift = chunk_size.trailing_zeros();
        Ok(Self { base, chunk_size, shift, first, count: chunks, memory: Arc::new(memory) })
    }

    /// Bytes of a chunk.
    #[must_use]
    pub const fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// How many chunks there are.
    #[must_use]
    pub const fn chunks(&self) -> usize {
        self.count as usize
    }

    /// Longest packet that a chunk holds behind the usual headroom.
    #[must_use]
    pub const fn max_packet(&self) -> usize {
        self.chunk_size() - HEADROOM
    }

    /// The mapped region, for drivers that register it with the kernel.
    #[must_use]
    pub const fn memory(&self) -> &Arc<MappedMemory> {
        &self.memory
    }

    /// Divides all chunks into `pools` pools of (nearly) equal size. To be done once, by whoever made the UMEM.
    #[must_use]
    pub fn into_pools(self, pools: usize) -> Vec<FramePool> {
        let umem = Arc::new(self);
        let (count, pools) = (umem.count, u32::try_from(pools.max(1)).unwrap_or(u32::MAX));
        let share = |i: u32| (u64::from(count) * u64::from(i) / u64::from(pools)) as u32;
        (0..pools)
            .map(|i| {
                // From the highest down, so that the first frames taken are the lowest chunks.
                let numbers = (umem.first + share(i)..umem.first + share(i + 1)).rev();
                // Room for all, so that frames that other workers hand over find theirs.
                let mut free = Vec::with_capacity(umem.chunks());
                free.extend(numbers.filter_map(NonZeroU32::new));
                FramePool { umem: Arc::clone(&umem), owned: free.len(), free }
            })
            .collect()
    }

    /// Byte offset of the frame's first byte in the region, if the frame is one of this UMEM.
    #[inline]
    fn offset(&self, frame: &Frame) -> Option<usize> {
        let index = frame.chunk.get().wrapping_sub(self.first);
        debug_assert!(index < self.count, "a frame of another UMEM");
        (index < self.count).then_some(index as usize * self.chunk_size + frame.headroom())
    }

    /// The bytes of a packet. Empty for a frame of another UMEM.
    #[inline]
    #[must_use]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let Some(offset) = self.offset(frame) else { return &[] };
        // SAFETY: `offset` lies in the mapping: the chunk was checked, and `start + len` of a frame never
        // exceeds the chunk (only this module and `Frame` change them).
        let start = unsafe { self.base.0.add(offset) };
        // SAFETY: the bytes are mapped as above and initialised (mappings are zeroed). Nobody else writes them:
        // the frame is the only token of its chunk, it is borrowed for as long as the slice lives, and while it
        // exists the chunk is not lent to a driver.
        unsafe { std::slice::from_raw_parts(start, frame.len()) }
    }

    /// The bytes of a packet, to change. Empty for a frame of another UMEM.
    #[inline]
    #[must_use]
    #[allow(clippy::mut_from_ref)] // The exclusive borrow is of the frame, which is the chunk's only token.
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let Some(offset) = self.offset(frame) else { return &mut [] };
        // SAFETY: as in `bytes`.
        let start = unsafe { self.base.0.add(offset) };
        // SAFETY: as in `bytes`; the frame is borrowed exclusively, so this is the only reference to the bytes.
        unsafe { std::slice::from_raw_parts_mut(start, frame.len()) }
    }

    /// As [`Self::bytes_mut`], of a place where there may be no frame: then there are no bytes either.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::mut_from_ref)] // As in `bytes_mut`.
    pub(super) fn entry_mut<'a>(&'a self, entry: &'a mut Option<Frame>) -> &'a mut [u8] {
        // One comparison for both: 0 stands for none, and is the number of no chunk.
        let chunk = entry.as_ref().map_or(0, |frame| frame.chunk.get());
        if chunk.wrapping_sub(self.first) >= self.count {
            return &mut [];
        }
        // SAFETY: the numbers of chunks begin with 1 and do not wrap (`new`), so the number was not 0.
        self.bytes_mut(unsafe { entry.as_mut().unwrap_unchecked() })
    }

    /// Shows the bytes of a packet to `decide`, keeps of them as many as it says from an offset on, and gives these, to
    /// change, with whatever else it found.
    ///
    /// # Errors
    /// The frame as it was, when `decide` says nothing or the packet has not as many bytes.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // As in `bytes_mut`.
    pub fn cut_if<'a, T>(
        &'a self,
        frame: &'a mut Frame,
        decide: impl FnOnce(&[u8]) -> Option<(usize, usize, T)>,
    ) -> Result<(&'a mut [u8], T), &'a mut Frame> {
        // Looked up once for both.
        let Some(offset) = self.offset(frame) else { return Err(frame) };
        // SAFETY: as in `bytes`.
        let start = unsafe { self.base.0.add(offset) };
        // SAFETY: as in `bytes`; nothing of the slice is left when `decide` is done.
        let Some((at, len, found)) = decide(unsafe { std::slice::from_raw_parts(start, frame.len()) }) else {
            return Err(frame);
        };
        if !frame.reframe(at, len, 0) {
            return Err(frame);
        }
        // SAFETY: as in `bytes`: the packet now begins there.
        let start = unsafe { start.add(at) };
        // SAFETY: as in `bytes_mut`; the packet now has so many bytes.
        Ok((unsafe { std::slice::from_raw_parts_mut(start, len) }, found))
    }

    /// Adds `n` bytes behind the packet. `false`, and no change, when the chunk has not as many.
    #[inline]
    #[must_use]
    pub fn grow_back(&self, frame: &mut Frame, n: usize) -> bool {
        let len = frame.len() + n;
        if frame.headroom() + len > self.chunk_size() {
            return false;
        }
        frame.set(frame.start(), len as u16);
        true
    }

    /// Copies the bytes of `piece` behind those of the packet. `false`, and no change, when the chunk has no room for
    /// them.
    #[must_use]
    pub fn append(&self, frame: &mut Frame, piece: &Frame) -> bool {
        let (before, bytes) = (frame.len(), self.bytes(piece));
        if !self.grow_back(frame, bytes.len()) {
            return false;
        }
        if let Some((_, behind)) = self.bytes_mut(frame).split_at_mut_checked(before) {
            behind.copy_from_slice(bytes);
        }
        true
    }

    /// Keeps the `len` bytes from offset `at` of the packet on, and puts `front` bytes in front of them and `behind` behind:
    /// what [`Frame::reframe`] and [`grow_back`](Self::grow_back) do one after the other. `false`, and no change, when the
    /// packet has not as many bytes, or the chunk.
    #[inline]
    #[must_use]
    pub fn wrap(&self, frame: &mut Frame, at: usize, len: usize, front: usize, behind: usize) -> bool {
        // None of the sums wraps: each is asked for where those before have limited what is added.
        if len > frame.len() || at > frame.len() - len || behind > self.chunk_size() {
            return false;
        }
        let start = frame.headroom() + at;
        if front > start || start + len + behind > self.chunk_size() {
            return false;
        }
        frame.set((start - front) as u16, (front + len + behind) as u16);
        true
    }

    /// As [`wrap`](Self::wrap), and gives the bytes to change: `FRONT` in front of those that are kept, of which the last
    /// `front` are the packet's, and the packet's from there on. `None`, and no change, also when the chunk has not as many.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::mut_from_ref)] // As in `bytes_mut`.
    pub fn wrap_within<'a, const FRONT: usize>(
        &'a self,
        frame: &'a mut Frame,
        (at, len): (u16, u16),
        front: usize,
        behind: usize,
    ) -> Option<(&'a mut [u8; FRONT], &'a mut [u8])> {
        let (at, len) = (usize::from(at), usize::from(len));
        let start = frame.headroom() + at;
        let index = frame.chunk.get().wrapping_sub(self.first);
        if at + len > frame.len()
            || front > FRONT
            || start < FRONT
            || behind > self.chunk_size
            || start + len + behind > self.chunk_size
            || index >= self.count
        {
            return None;
        }
        frame.set((start - front) as u16, (front + len + behind) as u16);
        // SAFETY: as in `bytes`: as was checked, the chunk is of the mapping and reaches beyond `start`.
        let kept = unsafe { self.base.0.add(index as usize * self.chunk_size + start) };
        // SAFETY: as was checked, the chunk has so many bytes in front of `start`.
        let ahead = unsafe { kept.sub(FRONT) }.cast::<[u8; FRONT]>();
        // SAFETY: as in `bytes_mut`: the frame is the only token of the whole chunk.
        let ahead = unsafe { &mut *ahead };
        // SAFETY: likewise; as was checked, the chunk has as many bytes, and they begin where the others end.
        Some((ahead, unsafe { std::slice::from_raw_parts_mut(kept, len + behind) }))
    }

    /// Makes the frame an empty packet with `headroom` bytes in front of it (at most the chunk).
    pub fn reset(&self, frame: &mut Frame, headroom: usize) {
        frame.set(headroom.min(self.chunk_size()) as u16, 0);
    }

    /// Fills the frame with `bytes`, behind the usual headroom. `false`, and an empty packet, when they do not fit.
    #[must_use]
    pub fn fill(&self, frame: &mut Frame, bytes: &[u8]) -> bool {
        self.reset(frame, HEADROOM);
        let fits = self.grow_back(frame, bytes.len());
        if fits {
            self.bytes_mut(frame).copy_from_slice(bytes);
        }
        fits
    }

    /// Asks for a packet's first two cache lines, long before they are needed: those of a burst have no room in the nearest
    /// cache, whose sets their chunks, 2 KiB and more apart, do not spread over.
    #[inline]
    pub fn prefetch(&self, frame: &Frame) {
        let first = self.chunk(frame).wrapping_add(frame.headroom());
        prefetch_address_l2(first);
        // Into the nearest one: with both lines asked for the other way, forwarding what is in no cache took 30 ns rather than 24.
        // Where there is no second line something is asked for that is near: lengths come in any order, and a branch would be
        // foreseen as often as not.
        let second = first.wrapping_add(CACHE_LINE);
        prefetch_address(core::hint::select_unpredictable(
            frame.len() > CACHE_LINE,
            second,
            std::ptr::from_ref(self).cast(),
        ));
    }

    /// Asks for the line that a packet begins with when it is received, shortly before it is needed.
    #[inline(always)]
    pub(super) fn prefetch_head(&self, frame: &Frame) {
        prefetch_address(self.chunk(frame).wrapping_add(HEADROOM));
    }

    /// A frame's first byte, to be asked for: of a frame of another UMEM it is nothing's address.
    #[inline(always)]
    fn chunk(&self, frame: &Frame) -> *const u8 {
        let index = frame.chunk.get().wrapping_sub(self.first) as usize;
        self.base.0.wrapping_add(index.wrapping_mul(self.chunk_size))
    }
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Umem({} chunks of {} bytes)", self.count, self.chunk_size())
    }
}

/// The free chunks of one worker.
#[derive(Debug)]
pub struct FramePool {
    umem: Arc<Umem>,
    free: Vec<NonZeroU32>,
    owned: usize,
}

impl FramePool {
    /// The memory behind the frames.
    #[inline]
    #[must_use]
    pub const fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// An empty packet behind the usual headroom; `None` when the pool is empty.
    #[inline]
    #[must_use]
    pub fn alloc(&mut self) -> Option<Frame> {
        Some(Frame::new(self.free.pop()?, HEADROOM as u16, 0))
    }

    /// A packet of these bytes; `None` when the pool is empty or the bytes do not fit a chunk.
    #[must_use]
    pub fn alloc_with(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc()?;
        if self.umem.fill(&mut frame, bytes) {
            return Some(frame);
        }
        self.free(frame);
        None
    }

    /// Takes a frame home.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        debug_assert!(self.umem.offset(&frame).is_some(), "a frame of another UMEM");
        // There is room for every chunk of the UMEM: nothing is allocated.
        self.free.push(frame.chunk);
    }

    /// Frames that are home.
    #[must_use]
    pub const fn available(&self) -> usize {
        self.free.len()
    }

    /// Frames that were given to this pool when it was made.
    #[must_use]
    pub const fn owned(&self) -> usize {
        self.owned
    }

    /// Something to lend this UMEM's frames through. One for each port.
    #[must_use]
    pub fn lender(&self) -> Lender {
        let lent = vec![0; self.umem.chunks().div_ceil(64)];
        Lender { umem: Arc::clone(&self.umem), lent, count: 0 }
    }
}

/// Gives frames to a driver or the kernel as byte offsets, and takes them back.
///
/// It remembers which chunks are out, so an offset that was not lent, or that comes back twice, makes no frame.
#[derive(Debug)]
pub struct Lender {
    umem: Arc<Umem>,
    /// One bit a chunk.
    lent: Vec<u64>,
    count: usize,
}

impl Lender {
    /// Lends the frame; the result is the byte offset of the packet in the region.
    ///
    /// A frame of another UMEM comes back.
    ///
    /// # Errors
    /// The frame itself, if it is of another UMEM.
    #[inline]
    pub fn lend(&mut self, frame: Frame) -> Result<u64, Frame> {
        let index = frame.chunk.get().wrapping_sub(self.umem.first) as usize;
        let (Some(offset), Some(word)) = (self.umem.offset(&frame), self.lent.get_mut(index / 64)) else {
            return Err(frame);
        };
        *word |= 1 << (index % 64);
        self.count += 1;
        Ok(offset as u64)
    }

    /// Takes back the chunk that holds byte `offset` as a packet of `len` bytes at that offset.
    ///
    /// `None` if that chunk is not lent through this lender, or the packet does not fit it.
    #[inline]
    #[must_use]
    pub fn adopt(&mut self, offset: u64, len: u32) -> Option<Frame> {
        let index = offset >> self.umem.shift;
        let start = offset & (self.umem.chunk_size() as u64 - 1);
        let word = self.lent.get_mut(usize::try_from(index / 64).ok()?)?;
        let bit = 1_u64 << (index % 64);
        if *word & bit == 0 || start + u64::from(len) > self.umem.chunk_size() as u64 {
            return None;
        }
        let chunk = NonZeroU32::new(self.umem.first + index as u32)?;
        *word &= !bit;
        self.count -= 1;
        Some(Frame::new(chunk, start as u16, len as u16))
    }

    /// Takes back every chunk that is still out, once the driver can no longer reach any of them.
    pub fn recall(&mut self, pool: &mut FramePool) {
        for index in 0..self.umem.chunks() as u64 {
            if let Some(frame) = self.adopt(index << self.umem.shift, 0) {
                pool.free(frame);
            }
        }
    }

    /// How many frames are out.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
#[path = "umem_tests.rs"]
mod tests;
