//! Network namespaces of threads. Devices are found, and sockets opened, in the namespace of the calling thread.

use std::{fs::File, io, os::fd::AsRawFd};

/// A network namespace, kept alive by this value.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// A namespace by its path, such as `/run/netns/NAME`, where `ip netns` keeps them.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(path: &std::path::Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Puts the calling thread, and what it starts, into this namespace.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: no memory is passed.
        let result = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Puts the calling thread into a new, empty namespace, which goes with the last thread, process, socket or
    /// value of this type in it, and takes its devices along.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn unshare() -> io::Result<()> {
        // SAFETY: no memory is passed.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
