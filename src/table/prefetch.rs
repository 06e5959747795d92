//! Asking the processor for a cache line before it is needed.

/// Starts loading the cache line at the start of `target` into every cache level.
///
/// A hint: it changes nothing a program can see. On machines other than x86-64 it does nothing.
#[inline(always)]
#[cfg_attr(target_arch = "x86_64", allow(unsafe_code))]
pub fn prefetch_read<T: ?Sized>(target: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = std::ptr::from_ref(target).cast::<i8>();
        // SAFETY: PREFETCHT0 never faults and never writes, whatever the address (Intel SDM 2B, PREFETCHh);
        // SSE, the only feature it needs, is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = target;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_leaves_its_target_alone() {
        let words = [7u64; 8];
        prefetch_read(&words);
        prefetch_read::<[u64]>(&words[8..]);
        assert_eq!(words, [7; 8]);
    }
}
