//! TAP devices: an Ethernet port whose other side is the kernel's own network stack.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use crate::{Device, Error, device::interface_request, sys};

/// A queue of a TAP device, non-blocking, one frame a read or write, without any header in front of it. The device goes
/// with the last of its queues, unless somebody made it persistent.
#[derive(Debug)]
pub struct Tap {
    file: File,
    device: Device,
}

impl Tap {
    /// Makes a TAP device, or joins a persistent one that nobody uses. In `name`, `%d` stands for a number the kernel chooses.
    ///
    /// # Errors
    /// [`Error::Privilege`] without CAP_NET_ADMIN, [`Error::KernelTooOld`] without `/dev/net/tun`,
    /// [`Error::Geometry`] for a name that is too long, [`Error::System`] otherwise.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_queue(name, 0)
    }

    /// As [`Tap::open`], with several queues (`IFF_MULTI_QUEUE`), each of them a value of its own. The kernel's stack
    /// sends a flow by the queue that last sent a packet of the flow, and a new one by a hash. A persistent device must
    /// have been made with several queues too.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn open_queues(name: &str, queues: usize) -> Result<Vec<Self>, Error> {
        if queues <= 1 {
            return Ok(vec![Self::open(name)?]);
        }
        let first = Self::open_queue(name, libc::IFF_MULTI_QUEUE)?;
        let name = first.device.name().to_owned();
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(Self::open_queue(&name, libc::IFF_MULTI_QUEUE)?);
        }
        Ok(all)
    }

    fn open_queue(name: &str, flags: libc::c_int) -> Result<Self, Error> {
        if name.len() >= libc::IF_NAMESIZE {
            let reason = format!("`{name}` is too long for the name of a device: 15 bytes are the limit");
            return Err(Error::Geometry { reason });
        }
        let opened =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::KernelTooOld { feature: "/dev/net/tun (CONFIG_TUN)" },
            _ => sys::explain("opening /dev/net/tun", "CAP_NET_ADMIN", source),
        })?;
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as i16;
        // SAFETY: TUNSETIFF reads and writes an `ifreq`.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            let source = io::Error::last_os_error();
            return Err(sys::explain("making a TAP device", "CAP_NET_ADMIN", source));
        }
        let name: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
        let device = Device::by_name(&String::from_utf8_lossy(&name))?;
        Ok(Self { file, device })
    }

    /// The device, as the kernel's stack sees it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Takes a frame that the kernel's stack sent. `WouldBlock` when there is none.
    ///
    /// # Errors
    /// Those of `read`; EBADFD when the device was deleted. A frame longer than `buffer` is cut without a word.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Gives a frame to the kernel's stack.
    ///
    /// # Errors
    /// Those of `write`: EIO while the device is down, EBADFD when it was deleted, EINVAL for a frame without a
    /// whole Ethernet header.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
