//! Asking the processor for a cache line before it is needed.

/// Starts loading the cache line at the start of `target` into every cache level.
///
/// A hint: it changes nothing a program can see. On machines other than x86-64 and aarch64 it does nothing.
#[inline(always)]
pub fn prefetch_read<T: ?Sized>(target: &T) {
    prefetch_address(std::ptr::from_ref(target).cast());
}

/// The same for an address, which need not be anything's.
#[inline(always)]
#[allow(unsafe_code)]
pub fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: PREFETCHT0 never faults and never writes, whatever the address (Intel SDM 2B, PREFETCHh);
        // SSE, the only feature it needs, is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    {
        // The intrinsic is not stable yet.
        // SAFETY: PRFM never faults and never writes, whatever the address (Arm ARM, C6.2 PRFM), and changes no flag.
        unsafe {
            core::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// As [`prefetch_address`], into the second-level cache: for many lines at once that the first has no room for.
#[inline(always)]
#[allow(unsafe_code)]
pub fn prefetch_address_l2(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: as in `prefetch_address`, of PREFETCHT1.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: as in `prefetch_address`.
        unsafe {
            core::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Starts loading the cache line at the start of `target` so that it can be written to: no other core keeps it.
///
/// A hint, as [`prefetch_read`] is.
#[inline(always)]
pub fn prefetch_write<T: ?Sized>(target: &T) {
    prefetch_write_address(std::ptr::from_ref(target).cast());
}

/// The same for an address, which need not be anything's.
#[inline(always)]
#[allow(unsafe_code)]
fn prefetch_write_address(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        // The intrinsic makes a plain PREFETCHT0 of it for a processor that is not known to have this one.
        // SAFETY: PREFETCHW never faults and writes nothing, whatever the address, and changes no flag (Intel SDM 2B,
        // AMD APM 3); a 64-bit processor that does not have it takes it for a NOP.
        unsafe {
            core::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: as in `prefetch_address`.
        unsafe {
            core::arch::asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(all(target_arch = "x86_64", not(miri)), target_arch = "aarch64")))]
    let _ = address;
}

/// Bytes of a cache line.
pub const CACHE_LINE: usize = 64;

/// Starts loading the lines around a packet, so that they can be written to: where the headers and the trailer of a tunnel go.
#[inline(always)]
pub fn prefetch_around(packet: &[u8]) {
    let ends = packet.as_ptr_range();
    prefetch_write_address(ends.start.wrapping_sub(CACHE_LINE));
    prefetch_write_address(ends.end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_leaves_its_target_alone() {
        let words = [7u64; 8];
        prefetch_read(&words);
        prefetch_read::<[u64]>(&words[8..]);
        prefetch_address(std::ptr::null());
        prefetch_address_l2(std::ptr::null());
        prefetch_write(&words);
        prefetch_write::<[u64]>(&words[8..]);
        assert_eq!(words, [7; 8]);
        for len in [0, 127, 128, 129, 2000] {
            let bytes = vec![7_u8; len];
            prefetch_around(&bytes);
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    }
}
