//! Network devices by name: index, MTU, address, queues, state.

use std::{
    ffi::CString,
    fmt, io, mem,
    os::fd::{AsRawFd, OwnedFd},
};

use crate::{Error, sys};

// From linux/ethtool.h.
const ETHTOOL_GLINK: u32 = 0x0a;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_SS_FEATURES: u32 = 4;

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

    /// Sets its MAC address.
    ///
    /// # Errors
    /// [`Error::Privilege`] without CAP_NET_ADMIN, [`Error::DeviceMissing`] when it is gone.
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), Error> {
        self.ioctl(libc::SIOCSIFHWADDR as _, |request| {
            let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
            for (to, from) in address.sa_data.iter_mut().zip(mac) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_hwaddr = address;
        })?;
        Ok(())
    }

    /// Whether it is up, down or gone. A few system calls.
    pub fn state(&self) -> LinkState {
        control_socket().map_or(LinkState::Down, |control| self.state_by(&control))
    }

    /// The same by a socket that is there already: to make one for every look costs more than the look does.
    pub(crate) fn state_by(&self, control: &OwnedFd) -> LinkState {
        let mut request = interface_request("");
        request.ifr_ifru.ifru_ifindex = self.index as i32;
        // SAFETY: SIOCGIFNAME reads and writes an `ifreq`.
        if unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) } < 0 {
            return LinkState::Gone;
        }
        match self.flags(control) {
            Ok(flags) if flags & libc::IFF_UP != 0 && self.has_carrier(control, flags) => LinkState::Up,
            _ => LinkState::Down,
        }
    }

    /// Whether it has a carrier now. The flags say so up to a second late, since the kernel spares its listeners; they are
    /// for drivers that cannot be asked.
    fn has_carrier(&self, control: &OwnedFd, flags: i32) -> bool {
        // struct ethtool_value: cmd, data.
        let mut link = [ETHTOOL_GLINK, 0];
        let data = link.as_mut_ptr();
        self.ioctl_by(control, libc::SIOCETHTOOL as _, |ifreq| ifreq.ifr_ifru.ifru_data = data.cast())
            .map_or(flags & libc::IFF_RUNNING != 0, |_| link[1] != 0)
    }

    /// Sets it up.
    ///
    /// # Errors
    /// [`Error::Privilege`] without CAP_NET_ADMIN, [`Error::DeviceMissing`] when it is gone.
    pub fn set_up(&self) -> Result<(), Error> {
        let flags = self.flags(&control_socket()?)? | libc::IFF_UP;
        self.ioctl(libc::SIOCSIFFLAGS as _, |request| request.ifr_ifru.ifru_flags = flags as i16)?;
        Ok(())
    }

    /// Turns features off, named as `ethtool -k` does within the driver ("rx-vlan-hw-parse", "rx-lro"). Returns those
    /// that were on and are off now, and those that stay on since the driver will not let go of them. Features that
    /// the kernel does not know are off.
    ///
    /// # Errors
    /// [`Error::Privilege`] without CAP_NET_ADMIN, [`Error::DeviceMissing`], [`Error::System`].
    pub fn turn_off<'a>(&self, features: &[&'a str]) -> Result<(Vec<&'a str>, Vec<&'a str>), Error> {
        let names = self.feature_names()?;
        let place = |feature: &str| names.iter().position(|name| name == feature);
        let before = self.active_features(names.len())?;
        let on = |active: &[bool], feature: &str| {
            place(feature).and_then(|i| active.get(i).copied()).unwrap_or(false)
        };
        let wanted: Vec<_> = features.iter().copied().filter(|feature| on(&before, feature)).collect();
        if wanted.is_empty() {
            return Ok((wanted, Vec::new()));
        }
        // struct ethtool_sfeatures: cmd, number of blocks, then for each 32 features which to set, and to what.
        let mut request = vec![0u32; 2 + 2 * names.len().div_ceil(32)];
        request[0] = ETHTOOL_SFEATURES;
        request[1] = names.len().div_ceil(32) as u32;
        for i in wanted.iter().filter_map(|feature| place(feature)) {
            request[2 + 2 * (i / 32)] |= 1 << (i % 32);
        }
        self.ethtool(&mut request)?;
        let after = self.active_features(names.len())?;
        Ok(wanted.into_iter().partition(|feature| !on(&after, feature)))
    }

    fn feature_names(&self) -> Result<Vec<String>, Error> {
        // struct ethtool_sset_info: cmd, reserved, mask of sets (u64), count.
        let mut count = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        self.ethtool(&mut count)?;
        let count = count[4] as usize;
        // struct ethtool_gstrings: cmd, set, count, then strings of 32 bytes.
        let mut request = vec![0u32; 3 + count * 8];
        request[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.ethtool(&mut request)?;
        let name = |words: &[u32]| {
            let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0);
            String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
        };
        Ok(request[3..].chunks_exact(8).map(name).collect())
    }

    fn active_features(&self, count: usize) -> Result<Vec<bool>, Error> {
        // struct ethtool_gfeatures: cmd, number of blocks, then for each 32 features: available, requested,
        // active, never changed.
        let blocks = count.div_ceil(32);
        let mut request = vec![0u32; 2 + 4 * blocks];
        request[0] = ETHTOOL_GFEATURES;
        request[1] = blocks as u32;
        self.ethtool(&mut request)?;
        let blocks = request[2..].chunks_exact(4).map(|block| block[2]);
        Ok(blocks.flat_map(|active| (0..32).map(move |bit| active >> bit & 1 == 1)).collect())
    }

    /// How many queues it has: the larger of its receive and transmit queues. A driver that does not say has 1.
    pub fn queues(&self) -> u32 {
        // struct ethtool_channels: cmd, max_{rx,tx,other,combined}, {rx,tx,other,combined}_count.
        let mut channels = [0u32; 9];
        channels[0] = ETHTOOL_GCHANNELS;
        let asked = self.ethtool(&mut channels);
        let [.., rx, tx, _, combined] = channels;
        if asked.is_ok() { (combined + rx.max(tx)).max(1) } else { 1 }
    }

    /// Makes an ethtool request, whose structure consists of words and has the length that its command expects.
    fn ethtool(&self, request: &mut [u32]) -> Result<(), Error> {
        let data = request.as_mut_ptr();
        self.ioctl(libc::SIOCETHTOOL as _, |ifreq| ifreq.ifr_ifru.ifru_data = data.cast()).map(drop)
    }

    fn flags(&self, control: &OwnedFd) -> Result<i32, Error> {
        let request = self.ioctl_by(control, libc::SIOCGIFFLAGS as _, |_| ())?;
        // SAFETY: SIOCGIFFLAGS fills this member.
        Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// Makes a request about this device; `prepare` writes what the request needs besides the name.
    fn ioctl(
        &self,
        number: libc::Ioctl,
        prepare: impl FnOnce(&mut libc::ifreq),
    ) -> Result<libc::ifreq, Error> {
        self.ioctl_by(&control_socket()?, number, prepare)
    }

    fn ioctl_by(
        &self,
        control: &OwnedFd,
        number: libc::Ioctl,
        prepare: impl FnOnce(&mut libc::ifreq),
    ) -> Result<libc::ifreq, Error> {
        let mut request = interface_request(&self.name);
        prepare(&mut request);
        // SAFETY: every request used here reads and writes an `ifreq`; data pointers set by `prepare` lead to
        // memory of the caller that outlives the call.
        // Some ethtool commands answer with a positive number, of what they could do in part only.
        if unsafe { libc::ioctl(control.as_raw_fd(), number, &raw mut request) } >= 0 {
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

/// A socket for requests about the devices of the calling thread's network namespace.
pub(crate) fn control_socket() -> Result<OwnedFd, Error> {
    sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).map_err(|source| Error::System { call: "socket", source })
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
