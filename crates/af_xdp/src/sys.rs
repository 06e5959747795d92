//! System calls behind safe signatures.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use crate::Error;

/// Opens a socket, close-on-exec.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, io::Error> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Types that are plain bytes to the kernel: every bit pattern is a value and there is no padding to leak.
///
/// # Safety
/// The type must be `repr(C)` or primitive, without pointers that the kernel would follow.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($t:ty),* $(,)?) => { $(
        // SAFETY: a C structure of integers, or an integer.
        unsafe impl Plain for $t {}
    )* };
}

plain!(
    i32,
    u32,
    libc::xdp_umem_reg,
    libc::xdp_mmap_offsets,
    libc::xdp_statistics,
    libc::xdp_options,
    libc::tpacket_req3,
    libc::tpacket_stats_v3,
    libc::packet_mreq,
);

pub(crate) fn set_option<T: Plain>(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: &T,
) -> Result<(), io::Error> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which the kernel only reads.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn get_option<T: Plain>(socket: &impl AsRawFd, level: i32, name: i32) -> Result<T, io::Error> {
    // SAFETY: `Plain` types may be all zero.
    let mut value: T = unsafe { mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which any bytes may be written to.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Binds to an address of any family.
///
/// # Safety
/// `T` must be the address structure of the socket's family.
pub(crate) unsafe fn bind<T: Copy>(socket: &impl AsRawFd, address: &T) -> Result<(), io::Error> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `address`, which the kernel only reads.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const *address).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for any of `events`. Returns those that came, none after the timeout.
pub(crate) fn poll(socket: &impl AsRawFd, events: i16, timeout: Option<Duration>) -> Result<i16, io::Error> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let millis = timeout.map_or(-1, |t| t.as_millis().min(i32::MAX as u128) as i32);
    // SAFETY: one valid entry, and the count says one.
    let result = unsafe { libc::poll(&raw mut entry, 1, millis) };
    match result {
        0.. => Ok(entry.revents),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sleeps until a socket or file can be read, at most for `timeout` (`None`: for ever). Returns whether it can.
///
/// # Errors
/// Those of `poll`, an interrupting signal included.
pub fn wait_readable(file: &impl AsRawFd, timeout: Option<Duration>) -> io::Result<bool> {
    Ok(poll(file, libc::POLLIN, timeout)? & libc::POLLIN != 0)
}

/// Turns the error of a call into the error a person can act on.
pub(crate) fn explain(call: &'static str, capability: &'static str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Privilege { call, capability },
        Some(libc::EAFNOSUPPORT) => Error::KernelTooOld { feature: "AF_XDP (CONFIG_XDP_SOCKETS)" },
        _ => Error::System { call, source },
    }
}
