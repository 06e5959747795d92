//! Hosts and gateways without machines: network namespaces, joined by veth, with VLAN tags on the hosts' ends.
//!
//! Everything has a name that starts with the process that made it, so that what a killed process left can be told
//! from what is in use. Devices are made inside the namespaces: the machine's own one never sees them.

use std::{
    fs, io,
    mem::ManuallyDrop,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use af_xdp::Device;
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        SchedClassifier,
        tc::{self, NlOptions, TcAttachOptions, TcAttachType},
    },
};
use thiserror::Error;

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";
/// What the names of all networks start with.
const PREFIX: &str = "cw-";

/// What `scripts/build-bpf` makes of `vlan.bpf.c`.
static TAGS: &[u8] = aya::include_bytes_aligned!("vlan.bpf.o");

/// Offloads that would let a host's kernel hand over packets as they never appear on a wire: without checksums, larger
/// than the MTU, or with the tag beside the bytes.
const OFFLOADS: &[&str] = &[
    "tx-checksum-ip-generic",
    "tx-checksum-sctp",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp-accecn-segmentation",
    "tx-udp-segmentation",
    "tx-generic-segmentation",
    "tx-gso-list",
    "rx-gro",
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
];

/// Why a network cannot be made or used.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// `ip` is not installed.
    #[error("`ip` is missing: install iproute2")]
    NoTool,
    /// A command failed.
    #[error("`ip {arguments}` failed: {message}")]
    Ip {
        /// What was asked of `ip`.
        arguments: String,
        /// What it said.
        message: String,
    },
    /// A namespace cannot be entered.
    #[error("cannot enter the network namespace {namespace}: {source}")]
    Enter {
        /// Its name.
        namespace: String,
        /// What the system said.
        source: io::Error,
    },
    /// A device.
    #[error(transparent)]
    Device(#[from] af_xdp::Error),
    /// VLAN tags.
    #[error("cannot put {device} onto a VLAN: {message}")]
    Tags {
        /// The device.
        device: String,
        /// What the kernel said.
        message: String,
    },
    /// A program cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs `ip`, and returns what it prints.
///
/// # Errors
/// `ip` is missing or fails.
pub fn ip(arguments: &str) -> Result<String, NetworkError> {
    // In a group of its own: an interrupt at the terminal must not keep it from cleaning up.
    let mut command = Command::new("ip");
    let output = command.args(arguments.split_whitespace()).stdin(Stdio::null()).process_group(0).output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NetworkError::NoTool),
        Err(source) => return Err(NetworkError::Start { program: "ip".into(), source }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(NetworkError::Ip { arguments: arguments.into(), message })
}

/// A host's end of a link.
#[derive(Debug, Clone)]
pub struct HostEnd<'a> {
    /// Its namespace, as given to [`Network::add`].
    pub namespace: &'a str,
    /// Its device.
    pub device: &'a str,
    /// The VLAN of its frames; 0 for none.
    pub vlan: u16,
    /// Its addresses, with prefix lengths.
    pub addresses: &'a [&'a str],
    /// Its default routers.
    pub routers: &'a [&'a str],
}

/// A network of namespaces, removed when this value goes.
#[derive(Debug)]
pub struct Network {
    name: String,
    namespaces: Vec<String>,
    kept: bool,
}

impl Network {
    /// An empty network with a name of its own.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let name = match COUNT.fetch_add(1, Ordering::Relaxed) {
            0 => format!("{PREFIX}{pid}"),
            n => format!("{PREFIX}{pid}.{n}"),
        };
        Self { name, namespaces: Vec::new(), kept: false }
    }

    /// What the names of its namespaces start with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The full name of one of its namespaces, as `ip netns` knows it.
    #[must_use]
    pub fn full(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.name)
    }

    /// Adds a namespace. Its kernel says nothing of its own accord.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn add(&mut self, namespace: &str) -> Result<(), NetworkError> {
        let full = self.full(namespace);
        // Before it exists, so that it is removed even if what follows fails half-way.
        self.namespaces.push(full.clone());
        ip(&format!("netns add {full}"))?;
        ip(&format!("-n {full} link set lo up"))?;
        self.inside(namespace, || {
            // Router solicitations, duplicate address detection and multicast reports are nothing of the demo's.
            // A kernel without IPv6 has no such file.
            for (file, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1")] {
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{file}"), value);
            }
        })
    }

    /// Joins two namespaces by a pair of devices, both up, with one queue each way.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn link(&self, one: (&str, &str), other: (&str, &str)) -> Result<(), NetworkError> {
        let (a, b) = (self.full(one.0), self.full(other.0));
        let queues = "numrxqueues 1 numtxqueues 1";
        ip(&format!(
            "link add name {} netns {a} {queues} type veth peer name {} netns {b} {queues}",
            one.1, other.1
        ))?;
        ip(&format!("-n {a} link set {} up", one.1))?;
        ip(&format!("-n {b} link set {} up", other.1)).map(drop)
    }

    /// Makes the device of a link a host's: real packets, tagged, and with addresses.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn host(&self, end: &HostEnd<'_>) -> Result<(), NetworkError> {
        let (full, device) = (self.full(end.namespace), end.device);
        self.inside(end.namespace, || -> Result<(), NetworkError> {
            let (_, on) = Device::by_name(device)?.turn_off(OFFLOADS)?;
            if let Some(feature) = on.first() {
                let message = format!("its {feature} cannot be turned off");
                return Err(NetworkError::Tags { device: device.into(), message });
            }
            if end.vlan == 0 { Ok(()) } else { tag(device, end.vlan) }
        })??;
        for address in end.addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("-n {full} addr add {address} dev {device} {nodad}"))?;
        }
        for router in end.routers {
            ip(&format!("-n {full} route add default via {router} dev {device}"))?;
        }
        Ok(())
    }

    /// Runs `what` in a thread inside a namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<R: Send>(
        &self,
        namespace: &str,
        what: impl FnOnce() -> R + Send,
    ) -> Result<R, NetworkError> {
        let full = self.full(namespace);
        let body = || {
            enter(&path_of(&full))?;
            Ok(what())
        };
        thread::scope(|scope| match scope.spawn(body).join() {
            Ok(result) => {
                result.map_err(|source| NetworkError::Enter { namespace: self.full(namespace), source })
            }
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A command that runs inside a namespace: a program and its arguments are to follow. `causeway` is the program
    /// that goes there first, `own` whether it ends with the thread that starts it.
    #[must_use]
    pub fn command(&self, causeway: &Path, namespace: &str, own: bool) -> Command {
        let mut command = Command::new(causeway);
        command.arg("demo-inside").arg("--namespace").arg(path_of(&self.full(namespace)));
        if own {
            command.arg("--parent").arg(std::process::id().to_string());
        }
        command.arg("--").stdin(Stdio::null());
        command
    }

    /// Leaves the network up when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !self.kept {
            self.namespaces.iter().for_each(|name| remove(name));
        }
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    kept: bool,
}

impl Process {
    /// Starts it. A group of its own keeps an interrupt at the terminal from it: whoever has this value decides.
    ///
    /// # Errors
    /// [`NetworkError::Start`].
    pub fn start(command: &mut Command) -> Result<Self, NetworkError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).spawn();
        let child = child.map_err(|source| NetworkError::Start { program, source })?;
        Ok(Self { child, kept: false })
    }

    /// The process itself.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as `kill` does.
    pub fn terminate(&self) {
        // It is waited for only by this value, so the number is still its own.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Lets it run on when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The file of a namespace.
#[must_use]
pub fn path_of(full: &str) -> PathBuf {
    Path::new(NAMESPACES).join(full)
}

/// Puts the calling thread into a namespace.
///
/// # Errors
/// There is none, or no privilege.
pub fn enter(path: &Path) -> io::Result<()> {
    af_xdp::Namespace::open(path)?.enter()
}

/// Tags what leaves the device, and takes the tag off what comes. Stays for as long as the device does.
fn tag(device: &str, vlan: u16) -> Result<(), NetworkError> {
    let failed = |error: &dyn std::fmt::Display| NetworkError::Tags {
        device: device.into(),
        message: error.to_string(),
    };
    let programs = EbpfLoader::new().override_global("VLAN", &vlan, true).load(TAGS);
    // Dropped, it would take the programs off the device.
    let mut programs: ManuallyDrop<Ebpf> = ManuallyDrop::new(programs.map_err(|e| failed(&e))?);
    tc::qdisc_add_clsact(device).map_err(|e| failed(&e))?;
    for (name, way) in [("leave", TcAttachType::Egress), ("arrive", TcAttachType::Ingress)] {
        let program =
            programs.program_mut(name).ok_or_else(|| failed(&"the program is not in its object"))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e| failed(&e))?;
        program.load().map_err(|e| failed(&e))?;
        let options = TcAttachOptions::Netlink(NlOptions::default());
        program.attach_with_options(device, way, options).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// The process whose network a namespace of this name belongs to, if it is one of ours.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let (pid, _) = rest.split_once(['-', '.'])?;
    pid.parse().ok()
}

/// The names of networks' namespaces on this machine, with the process that made each.
fn existing() -> Vec<(String, u32)> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    entries.filter_map(name).filter_map(|name| owner(&name).map(|pid| (name, pid))).collect()
}

/// Removes a namespace, as far as it is there.
fn remove(name: &str) {
    if path_of(name).exists()
        && let Err(error) = ip(&format!("netns del {name}"))
    {
        tracing::warn!("{error}");
    }
}

/// Removes networks whose maker is gone: those it could not remove (it was killed), and where `kept`, those that it
/// left up on purpose. Returns how many makers there were.
///
/// `is_kept` says whether the network of a process was left up on purpose.
pub fn clean(kept: bool, is_kept: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut makers = Vec::new();
    for (name, pid) in existing() {
        if Path::new(&format!("/proc/{pid}")).exists() || (!kept && is_kept(pid)) {
            continue;
        }
        end_gateways(&name);
        remove(&name);
        if !makers.contains(&pid) {
            makers.push(pid);
        }
    }
    makers
}

/// Ends the gateways in a namespace that nobody looks after any more.
fn end_gateways(name: &str) {
    let Ok(pids) = ip(&format!("netns pids {name}")) else { return };
    for pid in pids.split_whitespace() {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() == env!("CARGO_PKG_NAME")
            && let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_makers() {
        let (one, other) = (Network::new(), Network::new());
        assert_ne!(one.name(), other.name());
        for network in [&one, &other] {
            assert_eq!(owner(&network.full("idc-host")), Some(std::process::id()));
        }
        for foreign in ["cwt", "cw-", "cw-x-y", "my-cw-12-idc", "12"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
