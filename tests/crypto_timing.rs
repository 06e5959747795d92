//! That the time it takes to refuse a packet does not say where it is wrong: the processor goes through the same
//! instructions in the same order, whichever byte of the text or of the ICV is another. Followed instruction by
//! instruction, so unlike a measured time it is the same on every run and on every machine.
#![cfg(target_arch = "x86_64")]

use std::hint::black_box;

use causeway::crypto::aead::{self, Aad, Backend, Job, Key};

/// Follows a call by the processor's trap flag: after each instruction the kernel calls a handler.
#[allow(unsafe_code)]
mod steps {
    use std::{
        arch::asm,
        ffi::{c_int, c_void},
        mem::MaybeUninit,
        sync::{
            Once,
            atomic::{AtomicU64, Ordering},
        },
    };

    /// Where a call went: how many instructions, and a hash of their addresses in order.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Way {
        pub count: u64,
        pub hash: u64,
    }

    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HASH: AtomicU64 = AtomicU64::new(0);

    extern "C" fn stepped(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel gives a handler with SA_SIGINFO the context of what it interrupted.
        let context = unsafe { &*context.cast::<libc::ucontext_t>() };
        let at = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
        let hash = (HASH.load(Ordering::Relaxed) ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        HASH.store(hash, Ordering::Relaxed);
        COUNT.fetch_add(1, Ordering::Relaxed);
    }

    /// The way of a call. One at a time.
    #[inline(never)]
    pub fn of(call: &mut dyn FnMut()) -> Way {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask.
            let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            action.sa_flags = libc::SA_SIGINFO;
            action.sa_sigaction = stepped as *const () as usize;
            // SAFETY: the handler is a function of the right kind that only counts in atomics.
            let set = unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) };
            assert_eq!(set, 0, "no handler for SIGTRAP");
        });
        COUNT.store(0, Ordering::Relaxed);
        HASH.store(0, Ordering::Relaxed);
        // SAFETY: sets the trap flag of this thread, for which there is a handler; the stack is as it was after it.
        unsafe { asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq") };
        call();
        // SAFETY: takes the flag away again; the stack is as it was after it.
        unsafe { asm!("pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq") };
        Way { count: COUNT.load(Ordering::Relaxed), hash: HASH.load(Ordering::Relaxed) }
    }
}

/// The way of what stops at the first byte that is not zero.
#[inline(never)]
fn way_to(at: usize) -> steps::Way {
    let mut bytes = [0_u8; 16];
    bytes[at] = 1;
    let mut same = true;
    let way = steps::of(&mut || same = black_box(&bytes).iter().all(|byte| black_box(*byte) == 0));
    assert!(!same);
    way
}

/// The way of what opens a packet in which a byte is wrong, at `at` by these bits.
#[inline(never)]
fn way(key: &Key, sealed: &[u8], (at, bits): (usize, u8)) -> steps::Way {
    let mut text = sealed.to_vec();
    text[at] ^= bits;
    let mut jobs = [Job::new(key, [1; 8], Aad::new(256, 1), &mut text)];
    let way = steps::of(&mut || aead::open(black_box(&mut jobs)));
    assert!(!jobs[0].ok, "byte {at}");
    way
}

// One test, since steps are followed one at a time.
#[test]
fn whatever_is_wrong_with_a_packet_it_is_refused_by_the_same_steps() {
    // What compares byte by byte and stops at the first that differs is found out.
    assert_eq!(way_to(3), way_to(3), "the same steps are not found to be the same");
    assert_ne!(way_to(3), way_to(12), "other steps are not found to be others");

    for backend in Backend::available() {
        for (key, length) in [(&[7; 16][..], 48), (&[7; 16], 1400), (&[7; 32], 48), (&[7; 32], 1437)] {
            let key = Key::new(backend, key, [9; 4]).unwrap();
            let mut sealed = vec![0x5a; length + aead::TAG_LEN];
            let mut jobs = [Job::new(&key, [1; 8], Aad::new(256, 1), &mut sealed)];
            aead::seal(&mut jobs);
            assert!(jobs[0].ok);
            // What is resolved at the first call is out of the way then.
            way(&key, &sealed, (0, 1));
            let first = way(&key, &sealed, (0, 1));
            assert!(first.count > 100, "{backend}: {first:?}");
            let last = length + aead::TAG_LEN - 1;
            let places = [0, 1, length / 2, length - 1, length, length + 1, length + 7, last];
            for (at, bits) in places.into_iter().zip([1, 0x80, 0xff].into_iter().cycle()) {
                assert_eq!(
                    way(&key, &sealed, (at, bits)),
                    first,
                    "{backend}: byte {at} of {length} by {bits:#x}"
                );
            }
        }
    }
}
