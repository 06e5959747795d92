//! Large zeroed memory on huge pages: a table that is hit at random costs a page walk for each access on small ones.
#![allow(unsafe_code)]

use std::{io, marker::PhantomData, ops::Deref, sync::atomic::AtomicU64};

use memmap2::{MmapMut, MmapOptions};

/// What may stand for a run of zero bytes.
///
/// # Safety
/// All bytes zero are a value of the type, it holds no reference, and dropping it does nothing.
pub unsafe trait Zeroed: Sync + Send {}

// SAFETY: a number.
unsafe impl Zeroed for AtomicU64 {}

/// A slice in memory of its own, all zero at first. Pages that were never written take no memory.
#[derive(Debug)]
pub struct Pages<T> {
    memory: MmapMut,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Zeroed> Pages<T> {
    /// `length` elements.
    ///
    /// # Errors
    /// The system has not as much memory.
    pub fn new(length: usize) -> io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        // A wish: where the system has no huge pages, small ones do.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        // Mappings begin at a page.
        debug_assert!(memory.as_ptr().cast::<T>().is_aligned());
        Ok(Self { memory, length, of: PhantomData })
    }

    /// The elements, to change.
    #[inline]
    pub fn slice_mut(&mut self) -> &mut [T] {
        let start = self.memory.as_mut_ptr().cast::<T>();
        // SAFETY: the mapping has `length * size_of::<T>()` bytes, begins at a page, which is aligned for every T
        // used here, is zero or holds T's, which `Zeroed` makes valid, and is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }
}

impl<T: Zeroed> Deref for Pages<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let start = self.memory.as_ptr().cast::<T>();
        // SAFETY: as in `slice_mut`, with a shared borrow.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SAFETY: a number.
    unsafe impl Zeroed for u64 {}

    #[test]
    fn zero_at_first_and_then_what_was_written() {
        let mut pages: Pages<u64> = Pages::new(100_000).unwrap();
        assert!(pages.len() == 100_000 && pages.iter().all(|n| *n == 0));
        pages.slice_mut()[99_999] = 7;
        assert_eq!((pages[99_998], pages[99_999]), (0, 7));
        assert!(Pages::<u64>::new(usize::MAX).is_err());
        assert!(Pages::<u64>::new(0).unwrap().is_empty());
    }
}
