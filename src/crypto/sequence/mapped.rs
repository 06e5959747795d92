//! A file of 64-byte chunks in memory, written back when asked. The only unsafe code of the sequence numbers.

#![allow(unsafe_code)]

use std::{fs::File, io, ops::RangeInclusive, os::unix::fs::FileExt, slice, sync::atomic::AtomicU64};

use memmap2::MmapRaw;

/// Bytes of a chunk. A disk's sector is a multiple of it, so no chunk lies in two.
pub(super) const CHUNK: usize = 64;
/// By how much the file grows.
const PAGE: usize = 4096;

/// Eight words of a file, little-endian.
pub(super) type Chunk = [AtomicU64; CHUNK / 8];

/// A mapped file. Another process that cuts it short stops this one with SIGBUS: numbers are not repeated.
#[derive(Debug)]
pub(super) struct Mapped {
    file: File,
    map: MmapRaw,
}

impl Mapped {
    /// Maps a file of at least one chunk.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let map = MmapRaw::map_raw(&file)?;
        Ok(Self { file, map })
    }

    /// The whole chunks of the file.
    pub(super) fn chunks(&self) -> &[Chunk] {
        let first = self.map.as_ptr().cast::<Chunk>();
        // SAFETY: the mapping is page-aligned, at least this long, readable and writable, and lives as long as the
        // slice, which borrows `self`. Any bytes are valid words. Atomic access alone is made through it, so that
        // what another process may write at the same time is a race of values, not of memory.
        unsafe { slice::from_raw_parts(first, self.map.len() / CHUNK) }
    }

    /// Returns once the disk has these chunks.
    pub(super) fn flush(&self, chunks: RangeInclusive<usize>) -> io::Result<()> {
        let (first, last) = chunks.into_inner();
        self.map.flush_range(first * CHUNK, (last + 1 - first) * CHUNK)
    }

    /// Appends zeros up to the next page, on disk when this returns.
    pub(super) fn grow(&mut self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        // Written rather than left as a hole, for a full disk to be an error here and not a signal later.
        self.file.write_all_at(&zeros(len), len)?;
        self.file.sync_all()?;
        self.map = MmapRaw::map_raw(&self.file)?;
        Ok(())
    }
}

/// What fills a file of this length up to the next page.
pub(super) fn zeros(len: u64) -> Vec<u8> {
    vec![0; PAGE - len as usize % PAGE]
}
