//! Network devices by name: index, MTU, address, queues, state.

use std::{ffi::CString, fmt, io, mem, os::fd::AsRawFd};

use crate::{Error, sys};

/// Whether a device can carry frames now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Up, with a carrier.
    Up,
    /// Set down, or without a carrier.
    Down,
    /// No longer in this network namespace.
    Gone,
}

/// A network device of the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    name: String,
    index: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Device {
    /// Finds a device.
    ///
    /// # Errors
    /// [`Error::DeviceMissing`].
    pub fn by_name(name: &str) -> Result<Self, Error> {
        let missing = || Error::DeviceMissing { device: name.to_owned() };
        let c_name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: a string that ends in zero.
        match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
            0 => Err(missing()),
            index => Ok(Self { name: name.to_owned(), index }),
        }
    }

    /// Its name when it was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number for it.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Largest payload of an Ethernet frame, in bytes, without header and tags.
    ///
    /// # Errors
    /// [`Error::DeviceMissing`] when it is gone.
    pub fn mtu(&self) -> Result<u32, Error> {
        let request = self.ioctl(libc::SIOCGIFMTU as _, |_| ())?;
        // SAFETY: SIOCGIFMTU fills this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.max(0) as u32)
    }

    /// Its Ethernet address.
    ///
    /// # Errors
    /// [`Error::DeviceMissing`] when it is gone.
    pub fn mac(&self) -> Result<[u8; 6], Error> {
        let request = self.ioctl(libc::SIOCGIFHWADDR as _, |_| ())?;
        // SAFETY: SIOCGIFHWADDR fills this member.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(data) {
            *to = from as u8;
        }
        Ok(mac)
    }

    /// Whether it is up, down or gone. One system call, or two.
    pub fn state(&self) -> LinkState {
        let mut name = [0; libc::IF_NAMESIZE];
        // SAFETY: the buffer has the size this call asks for.
        let found = unsafe { libc::if_indextoname(self.index, name.as_mut_ptr()) };
        if found.is_null() {
            return LinkState::Gone;
        }
        match self.flags() {
            Ok(flags) if flags & (libc::IFF_UP | libc::IFF_RUNNING) == libc::IFF_UP | libc::IFF_RUNNING => {
                LinkState::Up
            }
            _ => LinkState::Down,
        }
    }

    /// Sets it up.
    ///
    /// # Errors
    /// [`Error::Privilege`] without CAP_NET_ADMIN, [`Error::DeviceMissing`] when it is gone.
    pub fn set_up(&self) -> Result<(), Error> {
        let flags = self.flags()? | libc::IFF_UP;
        self.ioctl(libc::SIOCSIFFLAGS as _, |request| request.ifr_ifru.ifru_flags = flags as i16)?;
        Ok(())
    }

    /// How many queues it has: the larger of its receive and transmit queues. A driver that does not say has 1.
    pub fn queues(&self) -> u32 {
        const ETHTOOL_GCHANNELS: u32 = 0x3c;
        // struct ethtool_channels: cmd, max_{rx,tx,other,combined}, {rx,tx,other,combined}_count.
        let mut channels = [0u32; 9];
        channels[0] = ETHTOOL_GCHANNELS;
        let asked = self.ioctl(libc::SIOCETHTOOL as _, |request| {
            request.ifr_ifru.ifru_data = (&raw mut channels).cast();
        });
        let [.., rx, tx, _, combined] = channels;
        if asked.is_ok() { (combined + rx.max(tx)).max(1) } else { 1 }
    }

    fn flags(&self) -> Result<i32, Error> {
        let request = self.ioctl(libc::SIOCGIFFLAGS as _, |_| ())?;
        // SAFETY: SIOCGIFFLAGS fills this member.
        Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// Makes a request about this device; `prepare` writes what the request needs besides the name.
    fn ioctl(
        &self,
        number: libc::Ioctl,
        prepare: impl FnOnce(&mut libc::ifreq),
    ) -> Result<libc::ifreq, Error> {
        let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
            .map_err(|source| Error::System { call: "socket", source })?;
        let mut request = interface_request(&self.name);
        prepare(&mut request);
        // SAFETY: every request used here reads and writes an `ifreq`; data pointers set by `prepare` lead to
        // memory of the caller that outlives the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut request) } == 0 {
            return Ok(request);
        }
        let source = io::Error::last_os_error();
        Err(match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Error::DeviceMissing { device: self.name.clone() },
            Some(libc::EPERM) => {
                Error::Privilege { call: "changing a network device", capability: "CAP_NET_ADMIN" }
            }
            _ => Error::System { call: "ioctl", source },
        })
    }
}

/// An empty request about the device of that name, cut to the length a name may have.
pub(crate) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: a C structure of integers and unions of such, for which zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_answers() {
        let lo = Device::by_name("lo").unwrap();
        assert_eq!(lo.name(), "lo");
        assert!(lo.index() > 0);
        assert!(lo.mtu().unwrap() >= 1500);
        assert_eq!(lo.mac().unwrap(), [0; 6]);
        assert_eq!(lo.queues(), 1);
        assert_ne!(lo.state(), LinkState::Gone);
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = Device::by_name("no-such-device").unwrap_err();
        assert!(matches!(error, Error::DeviceMissing { .. }));
        assert!(error.to_string().contains("`no-such-device`"), "{error}");
        assert!(Device::by_name("a\0b").is_err());
        let gone = Device { name: "no-such".into(), index: u32::MAX };
        assert_eq!(gone.state(), LinkState::Gone);
        assert!(matches!(gone.mtu(), Err(Error::DeviceMissing { .. })));
    }
}
