//! Attaching an XDP program to a device by a BPF link: the program goes with the last descriptor of the link, so
//! also with a process that is killed. A link that is pinned to a file stays for as long as the file does.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
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
        const BPF_XDP: u32 = 37;
        // From linux/if_link.h.
        let flags: u32 = match hook {
            Hook::Native => 1 << 2,
            Hook::Generic => 1 << 1,
        };
        // The link_create part of `union bpf_attr`: program, device, kind, flags.
        let attributes = [program.as_raw_fd() as u32, device.index(), BPF_XDP, flags];
        // SAFETY: `link_create` has no pointers.
        let fd =
            unsafe { bpf(BPF_LINK_CREATE, &attributes) }.map_err(|source| explain(source, device, hook))?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, hook })
    }

    /// Pins the link to a new file in a BPF file system (`/sys/fs/bpf`), where it outlives this value and the process.
    /// Removing the file, once this value is gone, detaches the program.
    ///
    /// # Errors
    /// [`Error::System`]: no BPF file system there, or a file of that name.
    pub fn pin(&self, path: &Path) -> Result<(), Error> {
        let path = c_path(path)?;
        // bpf_attr for objects: path (u64), descriptor, flags.
        let (low, high) = halves(path.as_ptr() as u64);
        let attributes = [low, high, self.fd.as_raw_fd() as u32, 0];
        // SAFETY: `path` is a string that ends in zero and outlives the call, which only reads it.
        let pinned = unsafe { bpf(BPF_OBJ_PIN, &attributes) };
        pinned.map(drop).map_err(|source| Error::System { call: "pinning an XDP program", source })
    }

    /// Opens a link that was pinned, of which `hook` must be known, and puts another program in the place of the one
    /// that is attached: no frame passes between the two. `None` if the pinned link is not one of this device, as when
    /// the device was removed and made anew.
    ///
    /// # Errors
    /// [`Error::System`]: no such file, or not a link.
    pub fn take_over(
        path: &Path,
        program: BorrowedFd<'_>,
        device: &Device,
        hook: Hook,
    ) -> Result<Option<Self>, Error> {
        let system = |call| move |source| Error::System { call, source };
        let c_path = c_path(path)?;
        let (low, high) = halves(c_path.as_ptr() as u64);
        // SAFETY: `c_path` is a string that ends in zero and outlives the call, which only reads it.
        let fd = unsafe { bpf(BPF_OBJ_GET, &[low, high, 0, 0]) }.map_err(system("opening a pinned link"))?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if linked_device(&fd).map_err(system("asking a link for its device"))? != device.index() {
            return Ok(None);
        }
        // bpf_attr for link_update: link, new program, flags.
        let attributes = [fd.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
        // SAFETY: `link_update` has no pointers.
        unsafe { bpf(BPF_LINK_UPDATE, &attributes) }.map_err(system("replacing an XDP program"))?;
        Ok(Some(Self { fd, hook }))
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

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// Makes a `bpf` system call.
///
/// # Safety
/// Where the command takes pointers, those among the attributes must be valid for it.
unsafe fn bpf(command: libc::c_long, attributes: &[u32; 4]) -> io::Result<i32> {
    // `bpf_attr` holds 64-bit words.
    #[repr(align(8))]
    struct Aligned([u32; 4]);
    let attributes = Aligned(*attributes);
    // SAFETY: pointer and length describe `attributes`, which the kernel reads; the rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_ptr(), size_of_val(&attributes.0)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// The device of an XDP link, 0 when it is no more.
fn linked_device(link: &OwnedFd) -> io::Result<u32> {
    // struct bpf_link_info: type, id, program, (padding), device.
    const DEVICE: usize = 4;
    let mut info = [0u32; 16];
    let (low, high) = halves(&raw mut info as u64);
    // SAFETY: the address is that of `info`, whose length goes with it, and which any bytes may be written to.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &[link.as_raw_fd() as u32, size_of_val(&info) as u32, low, high]) }?;
    Ok(info[DEVICE])
}

/// A 64-bit word as the two 32-bit words that it consists of in memory.
fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::Geometry { reason: format!("`{}` is not a path", path.display()) })
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
