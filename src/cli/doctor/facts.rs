//! What is so: read from `/proc`, `/sys` and `ethtool`, and not judged here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::crypto::aead::Backend;

/// What `ethtool` with the arguments prints; `None` if it is not installed or refuses.
pub type Ethtool<'a> = &'a dyn Fn(&[&str]) -> Option<String>;

/// What was found out about a machine. What could not be read is `None` or empty.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The running kernel's release, such as `6.1.0-18-amd64`.
    pub kernel: Option<String>,
    /// Whether the kernel has AF_XDP sockets.
    pub af_xdp: Option<bool>,
    /// Whether BPF programs are compiled: 0, 1, or 2 with tracing.
    pub bpf_jit: Option<u64>,
    /// Whether the kernel describes its types (BTF).
    pub btf: bool,
    /// Effective capabilities of this process, a bit each.
    pub capabilities: Option<u64>,
    /// Whether this process is in the first user namespace of the machine.
    pub first_user_namespace: bool,
    /// Bytes this process may lock in memory.
    pub locked_memory: Option<Limit>,
    /// Huge pages by size.
    pub huge_pages: Vec<HugePagePool>,
    /// The processors.
    pub processor: Processor,
    /// What seals and opens ESP on this machine.
    pub backend: Backend,
    /// Whether this program was compiled for x86-64-v3 or better.
    pub v3: bool,
    /// Whether `ethtool` can be asked.
    pub ethtool: bool,
    /// Network devices, those named first.
    pub devices: Vec<Device>,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// None.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
}

/// The huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePagePool {
    /// Size of a page in KiB.
    pub kib: u64,
    /// Pages reserved.
    pub total: u64,
    /// Pages not in use.
    pub free: u64,
}

/// What the processors are and how they are set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processor {
    /// The model's name.
    pub model: Option<String>,
    /// Instruction set extensions.
    pub flags: BTreeSet<String>,
    /// Whether they are Arm's.
    pub arm: bool,
    /// Processors in use.
    pub online: usize,
    /// Processors that the scheduler leaves alone (`isolcpus`), as a list such as `2-7`.
    pub isolated: String,
    /// Frequency governors in use.
    pub governors: BTreeSet<String>,
    /// Groups of processors that share a core, such as `0,4`.
    pub siblings: BTreeSet<String>,
}

/// One network device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether the user named it, as a port to be.
    pub named: bool,
    /// Whether there is such a device.
    pub exists: bool,
    /// Whether it carries Ethernet frames.
    pub ethernet: bool,
    /// Largest payload of a frame in bytes.
    pub mtu: u64,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a carrier. Unknown while it is down.
    pub carrier: Option<bool>,
    /// Receive queues.
    pub rx_queues: usize,
    /// Transmit queues.
    pub tx_queues: usize,
    /// Most queues the device can have.
    pub max_queues: Option<usize>,
    /// The driver's name.
    pub driver: Option<String>,
    /// Offloads by the names of `ethtool -k`.
    pub features: BTreeMap<String, Feature>,
    /// The device at the other end of a veth, if it is in this namespace.
    pub peer: Option<Box<Device>>,
}

/// An offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Whether it is on.
    pub on: bool,
    /// Whether the driver lets it be changed.
    pub fixed: bool,
}

impl Device {
    /// Whether an offload is on.
    #[must_use]
    pub fn is_on(&self, feature: &str) -> bool {
        self.features.get(feature).is_some_and(|feature| feature.on)
    }
}

impl Facts {
    /// Looks at the machine whose `/proc` and `/sys` lie under `root`: at the named devices, or else at all Ethernet
    /// devices.
    #[must_use]
    pub fn gather(root: &Path, ethtool: Ethtool<'_>, names: &[String]) -> Self {
        let text = |path: &str| line(&root.join(path));
        let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
        let protocols = fs::read_to_string(root.join("proc/net/protocols")).ok();
        let net = root.join("sys/class/net");
        let devices = if names.is_empty() {
            let found = entries(&net).into_iter().map(|name| device(&net, name, false, ethtool));
            found.filter(|device| device.ethernet).collect()
        } else {
            names.iter().map(|name| device(&net, name.clone(), true, ethtool)).collect()
        };
        Self {
            kernel: text("proc/sys/kernel/osrelease"),
            // The kernel lists its socket families' protocols here, in use or not.
            af_xdp: protocols.map(|p| p.lines().any(|line| line.split_whitespace().next() == Some("XDP"))),
            bpf_jit: text("proc/sys/net/core/bpf_jit_enable").and_then(|n| n.parse().ok()),
            btf: root.join("sys/kernel/btf/vmlinux").exists(),
            capabilities: field(&status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok()),
            first_user_namespace: text("proc/self/uid_map")
                .is_none_or(|map| map.split_whitespace().eq(["0", "0", "4294967295"])),
            locked_memory: locked_memory(
                &fs::read_to_string(root.join("proc/self/limits")).unwrap_or_default(),
            ),
            huge_pages: huge_pages(&root.join("sys/kernel/mm/hugepages")),
            processor: processor(root),
            backend: Backend::best(),
            v3: cfg!(all(target_feature = "avx2", target_feature = "bmi2", target_feature = "movbe")),
            ethtool: ethtool(&["--version"]).is_some(),
            devices,
        }
    }
}

/// The first line of a file.
fn line(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next().unwrap_or_default().trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    line(path)?.parse().ok()
}

/// The names in a directory, sorted.
fn entries(path: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(path).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The value of a line `name: value`, spaces around either being nothing.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| (key.trim() == name).then_some(value.trim()))
}

fn locked_memory(limits: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Limit::Unlimited),
        bytes => bytes.parse().ok().map(Limit::Bytes),
    }
}

fn huge_pages(path: &Path) -> Vec<HugePagePool> {
    let pool = |name: String| {
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = |file| number(&path.join(&name).join(file)).unwrap_or(0);
        Some(HugePagePool { kib, total: count("nr_hugepages"), free: count("free_hugepages") })
    };
    let mut pools: Vec<_> = entries(path).into_iter().filter_map(pool).collect();
    pools.sort_by_key(|pool| pool.kib);
    pools
}

fn processor(root: &Path) -> Processor {
    let info = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let cpus = root.join("sys/devices/system/cpu");
    let (mut governors, mut siblings) = (BTreeSet::new(), BTreeSet::new());
    for cpu in entries(&cpus).iter().filter(|name| {
        name.strip_prefix("cpu").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    }) {
        governors.extend(line(&cpus.join(cpu).join("cpufreq/scaling_governor")));
        let group = line(&cpus.join(cpu).join("topology/thread_siblings_list"));
        siblings.extend(group.filter(|group| group.contains([',', '-'])));
    }
    Processor {
        model: field(&info, "model name").map(str::to_owned),
        arm: field(&info, "Features").is_some(),
        // x86 calls them flags, Arm features.
        flags: field(&info, "flags")
            .or_else(|| field(&info, "Features"))
            .map(|flags| flags.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
        online: info
            .lines()
            .filter(|line| line.split(':').next().map(str::trim) == Some("processor"))
            .count(),
        isolated: line(&cpus.join("isolated")).unwrap_or_default(),
        governors,
        siblings,
    }
}

fn device(net: &Path, name: String, named: bool, ethtool: Ethtool<'_>) -> Device {
    let mut device = simple_device(net, name, named, ethtool);
    if device.driver.as_deref() == Some("veth") {
        let ids = |name: &str| {
            Some((number(&net.join(name).join("ifindex"))?, number(&net.join(name).join("iflink"))?))
        };
        // The two ends of a veth name each other; an index of another namespace may be anyone's here.
        let peer = ids(&device.name).and_then(|(index, link)| {
            entries(net).into_iter().find(|other| ids(other) == Some((link, index)) && *other != device.name)
        });
        device.peer = peer.map(|name| Box::new(simple_device(net, name, false, ethtool)));
    }
    device
}

fn simple_device(net: &Path, name: String, named: bool, ethtool: Ethtool<'_>) -> Device {
    let path = net.join(&name);
    // A name is no path: `..` and `/` are no devices.
    if name.contains('/') || name.starts_with(['.', '-']) || !path.join("ifindex").exists() {
        return Device { name, named, ..Device::default() };
    }
    /// IFF_UP, of `linux/if.h`.
    const UP: u64 = 1;
    let flags = line(&path.join("flags"));
    let flags = flags.and_then(|text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    let queues = entries(&path.join("queues"));
    let count = |prefix: &str| queues.iter().filter(|queue| queue.starts_with(prefix)).count();
    let linked = fs::read_link(path.join("device/driver")).ok();
    let linked = linked.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    // A virtual device has no bus to say its driver.
    let asked = || field(&ethtool(&["-i", &name])?, "driver").map(str::to_owned);
    Device {
        named,
        exists: true,
        // ARPHRD_ETHER, of `linux/if_arp.h`.
        ethernet: number(&path.join("type")) == Some(1),
        mtu: number(&path.join("mtu")).unwrap_or(0),
        up: flags.is_some_and(|flags| flags & UP != 0),
        carrier: number(&path.join("carrier")).map(|carrier| carrier == 1),
        rx_queues: count("rx-"),
        tx_queues: count("tx-"),
        max_queues: ethtool(&["-l", &name]).and_then(|text| max_queues(&text)),
        driver: linked.or_else(asked),
        features: ethtool(&["-k", &name]).map(|text| features(&text)).unwrap_or_default(),
        peer: None,
        name,
    }
}

/// The larger of combined and receive queues, of the first half of what `ethtool -l` prints: the maximums.
fn max_queues(text: &str) -> Option<usize> {
    let maximums = text.split("Current hardware settings").next()?;
    let queues = |name| field(maximums, name).and_then(|n| n.parse().ok());
    queues("Combined").max(queues("RX"))
}

/// What `ethtool -k` prints: `name: on`, `name: off [fixed]`.
fn features(text: &str) -> BTreeMap<String, Feature> {
    let feature = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let on = match value.split_whitespace().next()? {
            "on" => true,
            "off" => false,
            _ => return None,
        };
        Some((name.trim().to_owned(), Feature { on, fixed: value.contains("[fixed]") }))
    };
    text.lines().filter_map(feature).collect()
}
