//! The XDP program of a port: loading, attaching, and what it is told.
//!
//! `redirect.bpf.c` says which frames go to the gateway and which up to the kernel. One program a port.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use af_xdp::{Device, Hook, XdpLink};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, XskMap, lpm_trie::Key},
    programs::{TestRun, TestRunOptions, Xdp},
};
use thiserror::Error;

/// What `scripts/build-bpf` makes of `redirect.bpf.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("redirect.bpf.o");

/// Queues that the program can tell apart.
pub const MAX_QUEUES: u32 = 256;

/// Why the program cannot be loaded, attached or told something.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// The kernel did not take the program or one of its maps.
    #[error(
        "the kernel refuses the XDP program: {0}; it needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and \
         Linux 6.1 or newer"
    )]
    Load(String),
    /// The program could not be attached to its device.
    #[error(transparent)]
    Attach(#[from] af_xdp::Error),
    /// A map of the program could not be read or written.
    #[error("cannot change {what} of the XDP program: {source}")]
    Map {
        /// What the map holds.
        what: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The kernel would not run the program on a test frame.
    #[error("the XDP program cannot be tried: {0}")]
    Trial(String),
    /// A prefix length beyond the address.
    #[error("{0}/{1} is not a prefix")]
    Prefix(IpAddr, u8),
}

/// Where the program may be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attach {
    /// In the driver where it can, else in the kernel's own receive path.
    #[default]
    Auto,
    /// In the driver, or an error.
    Native,
    /// In the kernel's own receive path.
    Generic,
}

/// Who gets what of the frames that a port receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Division {
    /// The kernel gets everything.
    #[default]
    Off,
    /// The kernel keeps link control, neighbour discovery and its own traffic; the gateway gets the rest.
    HostShared,
    /// The gateway gets everything.
    Exclusive,
}

/// What an address of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressUse {
    /// The kernel's own: all of its traffic goes to the kernel.
    Host,
    /// Tunnels end here: ESP goes to the gateway, IKE and the rest to the kernel.
    Tunnel,
    /// NAT uses it: only listed services go to the kernel.
    Nat,
    /// Tunnels end here, and NAT uses the rest.
    TunnelAndNat,
}

impl AddressUse {
    const fn flags(self) -> u32 {
        match self {
            Self::Host => 0,
            Self::Tunnel => 1,
            Self::Nat => 2,
            Self::TunnelAndNat => 3,
        }
    }
}

/// A prefix of addresses of ours. The longest that holds an address decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnPrefix {
    /// Any address of the prefix.
    pub address: IpAddr,
    /// Its length in bits.
    pub length: u8,
    /// What the addresses are for.
    pub usage: AddressUse,
}

/// A service that the kernel offers on addresses which NAT uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
}

impl Service {
    fn key(self) -> [u8; 4] {
        let [high, low] = self.port.to_be_bytes();
        [self.protocol, 0, high, low]
    }
}

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What the program can decide about a frame, in the order of its counters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Verdict { $($(#[doc = $doc])+ $name,)+ }

        impl Verdict {
            /// All of them.
            pub const ALL: [Self; [$(Self::$name),+].len()] = [$(Self::$name),+];

            /// A name for counters.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

verdicts! {
    /// Passed: the program is off.
    Off = "off",
    /// Redirected: the port belongs to the gateway alone.
    Exclusive = "exclusive",
    /// Redirected: VLAN-tagged.
    Tagged = "tagged",
    /// Passed: ARP, LLDP, LACP, STP.
    LinkControl = "link-control",
    /// Passed: multicast, broadcast or link-local destination.
    Multicast = "multicast",
    /// Passed: neighbour discovery.
    Neighbour = "neighbour",
    /// Redirected: an IP header that cannot be read.
    Unreadable = "unreadable",
    /// Redirected: not to an address of ours.
    Transit = "transit",
    /// Redirected: ESP to a tunnel address.
    Esp = "esp",
    /// Passed: UDP 500, and IKE or keepalives on UDP 4500.
    Ike = "ike",
    /// Redirected: anything else on UDP 4500.
    EspInUdp = "esp-in-udp",
    /// Passed: a listed service of a NAT address.
    Service = "service",
    /// Redirected: anything else to a NAT address.
    Nat = "nat",
    /// Passed: anything else to an address of ours.
    Host = "host",
    /// Dropped: to be redirected, but the queue has no socket.
    NoSocket = "no-socket",
}

/// Frames by verdict, of all processors together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters([u64; Verdict::ALL.len()]);

impl Counters {
    /// Frames with this verdict.
    #[must_use]
    pub fn get(&self, verdict: Verdict) -> u64 {
        self.0.get(verdict as usize).copied().unwrap_or(0)
    }

    /// Every verdict with its frames.
    pub fn iter(&self) -> impl Iterator<Item = (Verdict, u64)> + '_ {
        Verdict::ALL.into_iter().zip(self.0)
    }
}

/// How a program came to be attached.
#[derive(Debug)]
pub struct Attached {
    /// Where it runs.
    pub hook: Hook,
    /// Why not in the driver, where that was tried first.
    pub fallback: Option<af_xdp::Error>,
}

/// The XDP program of one port. It is detached when this value goes, also by `kill -9`, unless it is pinned.
pub struct Program {
    bpf: Ebpf,
    link: Option<XdpLink>,
    /// The file that keeps the program attached.
    pin: Option<PathBuf>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("link", &self.link).finish_non_exhaustive()
    }
}

const PROGRAM: &str = "causeway";
/// The same for frames in pieces.
const PROGRAM_FOR_PIECES: &str = "causeway_frags";

/// How often and how long apart a device is asked whether a program whose pin was removed is off it: a second in all,
/// where tens of milliseconds do (a grace period of the kernel).
const DETACH_TRIES: usize = 100;
const DETACH_WAIT: std::time::Duration = std::time::Duration::from_millis(10);

impl Program {
    /// Loads the program. It is off, knows no address, and is attached nowhere.
    ///
    /// # Errors
    /// [`ProgramError::Load`].
    pub fn load() -> Result<Self, ProgramError> {
        let bpf = Ebpf::load(OBJECT).map_err(|e| refused(&e))?;
        let mut program = Self { bpf, link: None, pin: None };
        program.load_part(PROGRAM)?;
        Ok(program)
    }

    fn load_part(&mut self, name: &str) -> Result<(), ProgramError> {
        let program = self.bpf.program_mut(name).ok_or_else(|| ProgramError::Load("no program".into()))?;
        let program: &mut Xdp = program.try_into().map_err(|e| refused(&e))?;
        match program.load() {
            Err(aya::programs::ProgramError::AlreadyLoaded) => Ok(()),
            result => result.map_err(|e| refused(&e)),
        }
    }

    /// Attaches the program in the driver; the one for frames in pieces where the driver refuses the other, as for an
    /// MTU beyond a page.
    fn attach_native(&mut self, device: &Device) -> Result<XdpLink, ProgramError> {
        match XdpLink::attach(self.descriptor(PROGRAM)?, device, Hook::Native) {
            Err(why @ af_xdp::Error::NativeUnsupported { .. }) => {
                // Linux before 5.18 has no such programs.
                self.load_part(PROGRAM_FOR_PIECES).map_err(|_| why)?;
                Ok(XdpLink::attach(self.descriptor(PROGRAM_FOR_PIECES)?, device, Hook::Native)?)
            }
            result => Ok(result?),
        }
    }

    /// Takes over from an earlier process, as [`XdpLink::take_over`].
    fn take_over(
        &mut self,
        path: &Path,
        device: &Device,
        hook: Hook,
    ) -> Result<Option<XdpLink>, ProgramError> {
        match XdpLink::take_over(path, self.descriptor(PROGRAM)?, device, hook) {
            Err(_) if hook == Hook::Native => {
                self.load_part(PROGRAM_FOR_PIECES)?;
                Ok(XdpLink::take_over(path, self.descriptor(PROGRAM_FOR_PIECES)?, device, hook)?)
            }
            result => Ok(result?),
        }
    }

    /// Attaches the program to a device.
    ///
    /// # Errors
    /// [`ProgramError::Attach`]: another program is there, the device is missing, no privilege, or (with
    /// [`Attach::Native`]) a driver that cannot.
    pub fn attach(&mut self, device: &Device, attach: Attach) -> Result<Attached, ProgramError> {
        self.detach();
        let (link, fallback) = match attach {
            Attach::Native => (self.attach_native(device)?, None),
            Attach::Generic => (XdpLink::attach(self.descriptor(PROGRAM)?, device, Hook::Generic)?, None),
            Attach::Auto => match self.attach_native(device) {
                Ok(link) => (link, None),
                Err(ProgramError::Attach(why @ af_xdp::Error::NativeUnsupported { .. })) => {
                    (XdpLink::attach(self.descriptor(PROGRAM)?, device, Hook::Generic)?, Some(why))
                }
                Err(error) => return Err(error),
            },
        };
        let hook = link.hook();
        self.link = Some(link);
        Ok(Attached { hook, fallback })
    }

    /// Attaches the program so that it stays when the process ends, in whatever way, by a file for the device in
    /// `directory` (of a BPF file system). If one is there from an earlier process, this program takes the place of
    /// that one's, and no frame passes between the two: neither does the kernel see what is the gateway's, nor does
    /// the driver reset the device. Until the next process comes, what is the gateway's is dropped.
    ///
    /// # Errors
    /// As [`Program::attach`], and what the file system says.
    pub fn attach_pinned(
        &mut self,
        device: &Device,
        attach: Attach,
        directory: &Path,
    ) -> Result<Attached, ProgramError> {
        self.detach();
        let mut removed = false;
        for hook in [Hook::Native, Hook::Generic] {
            let path = pin_path(directory, device, hook);
            if !path.exists() {
                continue;
            }
            let fits =
                !matches!((attach, hook), (Attach::Native, Hook::Generic) | (Attach::Generic, Hook::Native));
            let taken = if fits { self.take_over(&path, device, hook)? } else { None };
            if taken.is_some() {
                (self.link, self.pin) = (taken, Some(path));
                return Ok(Attached { hook, fallback: None });
            }
            // Of a device that is no more, or not wanted so.
            removed |= remove(&path);
        }
        let mut left = if removed { DETACH_TRIES } else { 0 };
        let attached = loop {
            match self.attach(device, attach) {
                // The kernel takes a program whose pin was removed off its device a little later.
                Err(ProgramError::Attach(af_xdp::Error::ProgramPresent { .. })) if left > 0 => {
                    left -= 1;
                    std::thread::sleep(DETACH_WAIT);
                }
                result => break result?,
            }
        };
        let path = pin_path(directory, device, attached.hook);
        if let Some(link) = &self.link {
            link.pin(&path)?;
        }
        self.pin = Some(path);
        Ok(attached)
    }

    /// Takes the program off its device, and its file away. Frames go to the kernel again.
    pub fn detach(&mut self) {
        if let Some(path) = self.pin.take() {
            remove(&path);
        }
        self.link = None;
    }

    /// Detaches what an earlier process left attached to a device of that name by [`Program::attach_pinned`]. Returns
    /// whether there was something.
    pub fn clean_up(device: &str, directory: &Path) -> bool {
        let paths = [Hook::Native, Hook::Generic].map(|hook| directory.join(pin_name(device, hook)));
        paths.iter().filter(|path| remove(path)).count() > 0
    }

    /// Where the program runs, if it is attached.
    #[must_use]
    pub fn hook(&self) -> Option<Hook> {
        self.link.as_ref().map(XdpLink::hook)
    }

    /// Says who gets what. To be called when all sockets and addresses are in place.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn set_division(&mut self, division: Division) -> Result<(), ProgramError> {
        let flags: u32 = match division {
            Division::Off => 0,
            Division::HostShared => 1,
            Division::Exclusive => 3,
        };
        let mut settings: Array<_, u32> = self.map("SETTINGS", "the settings")?;
        settings.set(0, flags, 0).map_err(|source| ProgramError::Map { what: "the settings", source })
    }

    /// Gives the frames of a receive queue to an AF_XDP socket that is bound to it.
    ///
    /// # Errors
    /// [`ProgramError::Map`], also for a queue from [`MAX_QUEUES`] on.
    pub fn add_socket(&mut self, queue: u32, socket: &impl AsRawFd) -> Result<(), ProgramError> {
        let mut sockets: XskMap<_> = self.map("SOCKETS", "the sockets")?;
        let result = sockets.set(queue, socket.as_raw_fd(), 0);
        result.map_err(|source| ProgramError::Map { what: "the sockets", source })
    }

    /// Takes the socket of a receive queue out; what the gateway would get of it is dropped.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn remove_socket(&mut self, queue: u32) -> Result<(), ProgramError> {
        let mut sockets: XskMap<_> = self.map("SOCKETS", "the sockets")?;
        sockets.unset(queue).or_else(absent("the sockets"))
    }

    /// Makes these, and no others, the addresses that are ours. Prefixes that stay are never missing meanwhile.
    ///
    /// # Errors
    /// [`ProgramError::Prefix`] (and nothing is changed), [`ProgramError::Map`].
    pub fn set_addresses(&mut self, prefixes: &[OwnPrefix]) -> Result<(), ProgramError> {
        const WHAT: &str = "the addresses";
        let failed = |source| ProgramError::Map { what: WHAT, source };
        let (mut new4, mut new6) = (Vec::new(), Vec::new());
        for &OwnPrefix { address, length, usage } in prefixes {
            let (bits, key) = (u32::from(length), usage.flags());
            match address {
                IpAddr::V4(a) if bits <= 32 => new4.push((bits, masked(a.octets(), bits), key)),
                IpAddr::V6(a) if bits <= 128 => new6.push((bits, masked(a.octets(), bits), key)),
                _ => return Err(ProgramError::Prefix(address, length)),
            }
        }
        let map: LpmTrie<_, [u8; 4], u32> = self.map("ADDRESSES4", WHAT)?;
        replace_prefixes(map, &new4).map_err(failed)?;
        let map: LpmTrie<_, [u8; 16], u32> = self.map("ADDRESSES6", WHAT)?;
        replace_prefixes(map, &new6).map_err(failed)
    }

    /// Makes these, and no others, the services that the kernel offers on NAT addresses.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn set_services(&mut self, services: &[Service]) -> Result<(), ProgramError> {
        const WHAT: &str = "the services";
        let failed = |source| ProgramError::Map { what: WHAT, source };
        let keep: BTreeSet<_> = services.iter().map(|s| s.key()).collect();
        let mut map: HashMap<_, [u8; 4], u32> = self.map("SERVICES", WHAT)?;
        for key in &keep {
            map.insert(key, 1, 0).map_err(failed)?;
        }
        let old: Vec<_> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
        for key in old.iter().filter(|key| !keep.contains(*key)) {
            map.remove(key).or_else(absent(WHAT))?;
        }
        Ok(())
    }

    /// Frames by verdict since the program was loaded.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn counters(&self) -> Result<Counters, ProgramError> {
        const WHAT: &str = "the counters";
        let failed = |source| ProgramError::Map { what: WHAT, source };
        let missing = || failed(MapError::InvalidName { name: WHAT.into() });
        let map = self.bpf.map("COUNTERS").ok_or_else(missing)?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(failed)?;
        let mut counters = Counters::default();
        for (i, sum) in counters.0.iter_mut().enumerate() {
            *sum = map.get(&(i as u32), 0).map_err(failed)?.iter().sum();
        }
        Ok(counters)
    }

    /// Runs the program on a frame without a device, as if it had come in on queue 0. Returns the kernel's action: 1
    /// drop, 2 pass, 4 redirect. The frame counts in [`Program::counters`] and goes nowhere.
    ///
    /// # Errors
    /// [`ProgramError::Trial`], also for frames that are shorter than an Ethernet header.
    pub fn try_frame(&self, frame: &[u8]) -> Result<u32, ProgramError> {
        let trial = |error: &dyn fmt::Display| ProgramError::Trial(error.to_string());
        let program = self.bpf.program(PROGRAM).ok_or_else(|| trial(&"no program"))?;
        let program: &Xdp = program.try_into().map_err(|e: aya::programs::ProgramError| trial(&e))?;
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        program.test_run(options).map(|result| result.return_value).map_err(|e| trial(&e))
    }

    fn descriptor(&self, name: &str) -> Result<BorrowedFd<'_>, ProgramError> {
        use std::os::fd::AsFd;
        let load = |error: &dyn fmt::Display| ProgramError::Load(error.to_string());
        let program = self.bpf.program(name).ok_or_else(|| load(&"no program"))?;
        let program: &Xdp = program.try_into().map_err(|e: aya::programs::ProgramError| load(&e))?;
        program.fd().map(AsFd::as_fd).map_err(|e| load(&e))
    }

    fn map<'a, T>(&'a mut self, name: &str, what: &'static str) -> Result<T, ProgramError>
    where
        T: TryFrom<&'a mut Map, Error = MapError>,
    {
        let missing = || ProgramError::Map { what, source: MapError::InvalidName { name: name.into() } };
        let map = self.bpf.map_mut(name).ok_or_else(missing)?;
        T::try_from(map).map_err(|source| ProgramError::Map { what, source })
    }
}

/// The kernel's reason for not taking the program.
fn refused(error: &dyn std::error::Error) -> ProgramError {
    // It stands at the end of the chain, behind "map error" and the like.
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    // The verifier tells its whole way; its verdict stands at the end.
    let tail = text.char_indices().rev().nth(300).map_or(0, |(i, _)| i);
    ProgramError::Load(text.get(tail..).unwrap_or_default().to_owned())
}

fn pin_path(directory: &Path, device: &Device, hook: Hook) -> PathBuf {
    directory.join(pin_name(device.name(), hook))
}

/// The hook is in the name, since the kernel does not tell it of a link.
fn pin_name(device: &str, hook: Hook) -> String {
    let hook = match hook {
        Hook::Native => "native",
        Hook::Generic => "generic",
    };
    // A BPF file system takes no dots in names, and devices may have them.
    format!("causeway-{}-{hook}", device.replace('.', "_"))
}

/// Removes a file. That it is gone already is no error, and nothing can be done about another.
fn remove(path: &Path) -> bool {
    std::fs::remove_file(path).is_ok()
}

/// The address with all bits behind the prefix zero, as the map returns it.
fn masked<const N: usize>(mut address: [u8; N], length: u32) -> [u8; N] {
    for (i, byte) in address.iter_mut().enumerate() {
        let kept = length.saturating_sub(8 * i as u32).min(8);
        *byte &= !(0xff_u32 >> kept) as u8;
    }
    address
}

fn replace_prefixes<const N: usize>(
    mut map: LpmTrie<&mut MapData, [u8; N], u32>,
    prefixes: &[(u32, [u8; N], u32)],
) -> Result<(), MapError> {
    for (length, address, flags) in prefixes {
        map.insert(&Key::new(*length, *address), flags, 0)?;
    }
    let keep: BTreeSet<_> = prefixes.iter().map(|(length, address, _)| (*length, *address)).collect();
    let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    for key in old.iter().filter(|key| !keep.contains(&(key.prefix_len(), key.data()))) {
        map.remove(key)?;
    }
    Ok(())
}

/// To remove what is not there is no error.
fn absent(what: &'static str) -> impl Fn(MapError) -> Result<(), ProgramError> {
    move |source| match &source {
        MapError::KeyNotFound | MapError::ElementNotFound => Ok(()),
        MapError::SyscallError(e) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(ProgramError::Map { what, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_masked_to_their_length() {
        assert_eq!(masked([255; 4], 0), [0; 4]);
        assert_eq!(masked([255; 4], 20), [255, 255, 240, 0]);
        assert_eq!(masked([1, 2, 3, 4], 32), [1, 2, 3, 4]);
        assert_eq!(masked([255; 16], 65)[8..10], [128, 0]);
    }

    #[test]
    fn services_are_keyed_as_the_program_reads_them() {
        assert_eq!(Service { protocol: 6, port: 179 }.key(), [6, 0, 0, 179]);
        assert_eq!(Service { protocol: 17, port: 4784 }.key(), [17, 0, 0x12, 0xb0]);
    }
}
