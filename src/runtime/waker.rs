//! Wakes a worker that sleeps when another one hands it a packet.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering, fence},
};

use rustix::event::{EventfdFlags, eventfd};

/// What one worker sleeps on, beside its ports. Costs nothing while it is awake.
#[derive(Debug)]
pub struct Waker {
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Waker {
    /// A waker.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    /// Others: something was published for the worker.
    #[inline]
    pub fn wake(&self) {
        // Either the worker sees what was published before it sleeps, or this sees that it is about to: one of the two
        // fences comes first.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// The worker: is about to sleep, unless `is_empty` says that there is something for it. Whether it may.
    pub fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may = is_empty();
        if !may {
            self.asleep.store(false, Ordering::Relaxed);
        }
        may
    }

    /// The worker: is awake again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    /// What becomes readable when the worker is to wake.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn sleep(waker: &Waker, timeout: Timespec) -> bool {
        poll(&mut [PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    #[test]
    fn who_sleeps_is_woken_and_who_is_awake_is_left_alone() {
        let waker = Arc::new(Waker::new().unwrap());
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        waker.wake();
        assert!(!sleep(&waker, now) && !waker.may_sleep(|| false));
        waker.wake();
        assert!(!sleep(&waker, now) && waker.may_sleep(|| true));
        let other = Arc::clone(&waker);
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            other.wake();
        });
        assert!(sleep(&waker, Timespec { tv_sec: 60, tv_nsec: 0 }));
        waker.awake();
        thread.join().unwrap();
        assert!(!sleep(&waker, now));
    }
}
