//! Attaching an XDP program to a device by a BPF link: the program goes with the last descriptor of the link, so
//! also with a process that is killed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::{Device, Error, sys};

/// Where in the receive path of a device an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In the driver, before the kernel has made a packet buffer.
    Native,
    /// In the kernel's own receive path, for drivers without XDP. Slower; works on every device.
    Generic,
}

/// An XDP program attached to a device. Dropping it detaches the program.
#[derive(Debug)]
pub struct XdpLink {
    fd: OwnedFd,
    hook: Hook,
}

impl XdpLink {
    /// Attaches a loaded program (its descriptor) to a device that has none.
    ///
    /// # Errors
    /// [`Error::ProgramPresent`], [`Error::NativeUnsupported`], [`Error::Privilege`], [`Error::DeviceMissing`],
    /// [`Error::System`].
    pub fn attach(program: BorrowedFd<'_>, device: &Device, hook: Hook) -> Result<Self, Error> {
        const BPF_LINK_CREATE: libc::c_long = 28;
        const BPF_XDP: u32 = 37;
        // From linux/if_link.h.
        let flags: u32 = match hook {
            Hook::Native => 1 << 2,
            Hook::Generic => 1 << 1,
        };
        // The link_create part of `union bpf_attr`: program, device, kind, flags.
        let attributes = [program.as_raw_fd() as u32, device.index(), BPF_XDP, flags];
        // SAFETY: pointer and length describe `attributes`, which holds no pointers and which the kernel only reads.
        let fd = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, attributes.as_ptr(), size_of_val(&attributes))
        };
        if fd < 0 {
            return Err(explain(io::Error::last_os_error(), device, hook));
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) }, hook })
    }

    /// Where the program runs.
    pub fn hook(&self) -> Hook {
        self.hook
    }
}

impl AsFd for XdpLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn explain(source: io::Error, device: &Device, hook: Hook) -> Error {
    let name = device.name().to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => Error::ProgramPresent { device: name },
        Some(libc::ENODEV) => Error::DeviceMissing { device: name },
        Some(libc::EPERM | libc::EACCES) => {
            sys::explain("attaching an XDP program", "CAP_NET_ADMIN and CAP_BPF", source)
        }
        // ERANGE: an MTU too large for the driver; ENOSPC: too few queues; others say it cannot at all.
        _ if hook == Hook::Native => Error::NativeUnsupported { device: name, source },
        _ => Error::System { call: "attaching an XDP program", source },
    }
}
