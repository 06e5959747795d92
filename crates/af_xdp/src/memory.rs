//! The region that holds packets: what the kernel and the program share.

use std::io;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{MmapOptions, MmapRaw};

/// Memory that can be registered as a UMEM: `len()` bytes at `base()`, in chunks of `chunk_size()` bytes.
///
/// # Safety
/// The region must stay mapped, readable and writable at the same address for as long as the value lives.
///
/// Whoever reaches the rings of a [`crate::Socket`] can name any chunk to the kernel, which then reads and writes it
/// at any time. The implementor must see to it that no Rust reference into a chunk exists while that chunk is with
/// the kernel, for instance by recording which chunks are lent.
pub unsafe trait Memory: Send + Sync {
    /// Address of the first byte, aligned to a page.
    fn base(&self) -> *mut u8;
    /// Bytes of the region: a multiple of the chunk size.
    fn len(&self) -> usize;
    /// Whether the region has no bytes. Never, for a region that can be registered.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of a chunk: a power of two.
    fn chunk_size(&self) -> usize;
}

/// Whether a region shall lie on 2 MiB pages: fewer TLB misses where packets are spread over megabytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Reserved huge pages where there are enough of them, otherwise ordinary ones of which the kernel makes huge ones where it
    /// can.
    #[default]
    Auto,
    /// Huge pages or an error.
    Require,
    /// Ordinary pages.
    Never,
}

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// An anonymous mapping of zeroed memory.
#[derive(Debug)]
pub struct MappedMemory {
    map: MmapRaw,
    len: usize,
    chunk_size: usize,
    huge: bool,
}

impl MappedMemory {
    /// Maps `chunks` chunks of `chunk_size` bytes.
    ///
    /// # Errors
    /// What the kernel says when it has no memory, or no huge pages and they are required.
    pub fn new(chunks: usize, chunk_size: usize, pages: HugePages) -> io::Result<Self> {
        let len = chunks.checked_mul(chunk_size).filter(|&n| n > 0);
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if pages != HugePages::Never {
            let whole = len.next_multiple_of(HUGE_PAGE);
            let page_bits = Some(HUGE_PAGE.trailing_zeros() as u8);
            match MmapOptions::new().len(whole).huge(page_bits).populate().map_anon() {
                Ok(map) => return Ok(Self { map: map.into(), len, chunk_size, huge: true }),
                Err(e) if pages == HugePages::Require => return Err(e),
                Err(_) => {}
            }
        }
        let map = if pages == HugePages::Never {
            MmapOptions::new().len(len).populate().map_anon()?
        } else {
            let map = MmapOptions::new().len(len).map_anon()?;
            // Wishes: what the kernel does not grant now, or never, it does page by page when they are first used.
            #[cfg(target_os = "linux")]
            for wish in [Advice::HugePage, Advice::PopulateWrite] {
                let _ = map.advise(wish);
            }
            map
        };
        Ok(Self { map: map.into(), len, chunk_size, huge: false })
    }

    /// Whether the region lies on huge pages that were reserved.
    #[must_use]
    pub const fn is_huge(&self) -> bool {
        self.huge
    }
}

// SAFETY: the mapping is owned, readable, writable and page-aligned, and lives as long as `self`; `MmapRaw` never
// moves it.
unsafe impl Memory for MappedMemory {
    fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
    fn chunk_size(&self) -> usize {
        self.chunk_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "asks for huge pages")]
    fn all_of_it_is_zero_and_can_be_written_whatever_pages_there_are() {
        for pages in [HugePages::Never, HugePages::Auto] {
            let memory = MappedMemory::new(1500, 2048, pages).unwrap();
            assert_eq!((memory.len(), memory.chunk_size()), (1500 * 2048, 2048));
            // SAFETY: the mapping has as many bytes, and nobody else has it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.base(), memory.len()) };
            assert!(bytes.iter().all(|byte| *byte == 0), "{pages:?}");
            bytes.fill(1);
            assert!(bytes.iter().all(|byte| *byte == 1), "{pages:?}");
        }
    }

    #[test]
    fn a_region_of_no_bytes_or_of_too_many_is_refused() {
        for (chunks, chunk_size) in [(0, 2048), (16, 0), (usize::MAX, 2048)] {
            let refused = MappedMemory::new(chunks, chunk_size, HugePages::Auto).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
