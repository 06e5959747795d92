//! The kernel, privileges, memory and processors.

use super::{
    Area, Check, Status,
    drivers::Version,
    facts::{Facts, Limit},
};
use crate::crypto::aead::Backend;

/// The oldest kernel that Causeway runs on.
const FLOOR: Version = (6, 1);

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    [kernel(facts), privileges(facts), memory(facts), processor(facts)].concat()
}

/// Major and minor of a release such as `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Vec<Check> {
    let mut area = Area::new("kernel");
    let release = facts.kernel.as_deref().unwrap_or("unknown");
    match facts.kernel.as_deref().and_then(version) {
        Some(version) if version >= FLOOR => area.add(Status::Ok, "version", release, ""),
        Some(_) => area.add(Status::Problem, "version", release, "install Linux 6.1 or newer"),
        None => area.add(Status::Warning, "version", release, "Causeway needs Linux 6.1 or newer"),
    }
    match facts.af_xdp {
        Some(true) => area.add(Status::Ok, "AF_XDP", "yes", ""),
        Some(false) => area.add(
            Status::Problem,
            "AF_XDP",
            "no",
            "use a kernel built with CONFIG_XDP_SOCKETS=y, or AF_PACKET ports, which are slower",
        ),
        None => area.add(Status::Info, "AF_XDP", "unknown: /proc/net/protocols cannot be read", ""),
    }
    match facts.bpf_jit {
        Some(0) => area.add(
            Status::Warning,
            "BPF JIT",
            "off",
            "the XDP program is interpreted: `sysctl net.core.bpf_jit_enable=1`",
        ),
        Some(_) => area.add(Status::Ok, "BPF JIT", "on", ""),
        // The file exists in the first network namespace only.
        None => area.add(Status::Info, "BPF JIT", "unknown: cannot be read in this network namespace", ""),
    }
    let btf = if facts.btf { "yes" } else { "no: not needed, but `bpftool` shows less" };
    area.add(if facts.btf { Status::Ok } else { Status::Info }, "BTF", btf, "");
    area.checks
}

/// `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 5] =
    [("NET_RAW", 13), ("NET_ADMIN", 12), ("BPF", 39), ("PERFMON", 38), ("IPC_LOCK", 14)];
const SYS_ADMIN: u32 = 21;

/// Whether the mask has the capability, or the older one that stands for it.
fn has(mask: u64, bit: u32) -> bool {
    mask >> bit & 1 == 1 || bit >= 38 && mask >> SYS_ADMIN & 1 == 1
}

fn privileges(facts: &Facts) -> Vec<Check> {
    let mut area = Area::new("privileges");
    match facts.capabilities {
        Some(mask) => {
            let names = |wanted: bool| {
                let some = CAPABILITIES.iter().filter(|(_, bit)| has(mask, *bit) == wanted);
                some.map(|(name, _)| *name).collect::<Vec<_>>()
            };
            let (present, missing) = (names(true), names(false));
            // Without IPC_LOCK only the limit on locked memory counts, which has a check of its own.
            if missing.iter().any(|name| *name != "IPC_LOCK") {
                let advice = "run as root, or grant the service CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON \
                              and CAP_IPC_LOCK (`AmbientCapabilities=` of systemd)";
                area.add(Status::Problem, "capabilities", format!("without {}", missing.join(", ")), advice);
            } else {
                area.add(Status::Ok, "capabilities", present.join(", "), "");
            }
        }
        None => {
            area.add(
                Status::Warning,
                "capabilities",
                "unknown: /proc/self/status cannot be read",
                "mount /proc",
            );
        }
    }
    if facts.first_user_namespace {
        area.add(Status::Ok, "user namespace", "the machine's own", "");
    } else {
        area.add(
            Status::Problem,
            "user namespace",
            "an inner one",
            "the kernel loads no XDP program from an inner user namespace: run outside of it (rootless \
             containers are inside)",
        );
    }
    area.checks
}

/// What UMEM of a large gateway takes: 64 Ki buffers of 4 KiB.
const ROOMY: u64 = 256 << 20;

fn memory(facts: &Facts) -> Vec<Check> {
    let mut area = Area::new("memory");
    let exempt = facts.capabilities.is_some_and(|mask| has(mask, 14));
    match facts.locked_memory {
        Some(Limit::Unlimited) => area.add(Status::Ok, "locked memory", "unlimited", ""),
        Some(Limit::Bytes(bytes)) if exempt => {
            let found = format!("{}, which CAP_IPC_LOCK lifts", size(bytes / 1024));
            area.add(Status::Ok, "locked memory", found, "");
        }
        Some(Limit::Bytes(bytes)) if bytes >= ROOMY => {
            area.add(Status::Ok, "locked memory", size(bytes / 1024), "");
        }
        Some(Limit::Bytes(bytes)) => area.add(
            Status::Warning,
            "locked memory",
            size(bytes / 1024),
            "packet memory beyond this is refused: grant CAP_IPC_LOCK, or `ulimit -l unlimited` \
             (`LimitMEMLOCK=infinity` of systemd)",
        ),
        None => area.add(Status::Info, "locked memory", "unknown: /proc/self/limits cannot be read", ""),
    }
    let reserved: Vec<_> = facts.huge_pages.iter().filter(|pool| pool.total > 0).collect();
    if reserved.iter().any(|pool| pool.free > 0) {
        let pools =
            reserved.iter().map(|p| format!("{} of {} pages of {} free", p.free, p.total, size(p.kib)));
        area.add(Status::Ok, "huge pages", pools.collect::<Vec<_>>().join(", "), "");
    } else {
        let found = match (facts.huge_pages.is_empty(), reserved.is_empty()) {
            (true, _) => "the kernel has none",
            (false, true) => "none reserved",
            (false, false) => "all in use",
        };
        let advice = "ordinary pages serve, with more TLB misses; 128 MiB of huge pages: `sysctl vm.nr_hugepages=64` (a worker \
             takes 32 MiB, with buffers of 16 KiB 256 MiB)";
        area.add(Status::Info, "huge pages", found, advice);
    }
    area.checks
}

/// A size as people write it.
fn size(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 && kib.is_multiple_of(1 << 20) => format!("{} GiB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{} MiB", kib >> 10),
        kib => format!("{kib} KiB"),
    }
}

/// What the AES-GCM backends use.
const EXTENSIONS: [&str; 8] =
    ["aes", "pclmulqdq", "vaes", "vpclmulqdq", "avx2", "avx512f", "avx512bw", "avx512vl"];
/// The same on Arm.
const ARM: [&str; 2] = ["aes", "pmull"];
/// Of what makes x86-64-v3, as the kernel calls it, what is of use to packets.
const V3: [&str; 5] = ["avx2", "bmi1", "bmi2", "abm", "movbe"];

fn processor(facts: &Facts) -> Vec<Check> {
    let (cpu, mut area) = (&facts.processor, Area::new("processor"));
    area.add(Status::Info, "model", cpu.model.as_deref().unwrap_or("unknown"), "");
    if cpu.online == 1 {
        let advice =
            "a worker polls without a pause and wants a core of its own; give the machine a second one";
        area.add(Status::Warning, "processors", "1", advice);
    } else {
        area.add(Status::Info, "processors", cpu.online.to_string(), "");
    }
    let (present, missing): (Vec<_>, Vec<_>) = (if cpu.arm { &ARM[..] } else { &EXTENSIONS })
        .iter()
        .copied()
        .partition(|name| cpu.flags.contains(*name));
    let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    let found = format!("{}; missing: {}", list(&present), list(&missing));
    area.add(Status::Info, "instructions", found, "");
    let backend = facts.backend;
    match backend {
        Backend::Vaes512 | Backend::Vaes256 => area.add(Status::Ok, "AES-GCM", backend.name(), ""),
        Backend::AesNi => {
            let advice = "a processor with VAES (Ice Lake, Zen 3 or newer) is several times as fast";
            area.add(Status::Info, "AES-GCM", backend.name(), advice);
        }
        Backend::Reference if cpu.arm && missing.is_empty() => {
            area.add(Status::Ok, "AES-GCM", backend.name(), "");
        }
        Backend::Reference if cpu.arm => {
            let advice = "ESP is slow here: use a processor with the AES and PMULL instructions";
            area.add(Status::Warning, "AES-GCM", backend.name(), advice);
        }
        Backend::Reference => {
            let advice = "ESP is slow here: use a processor with AES-NI and PCLMULQDQ, better with VAES; on a virtual \
                          machine have the hypervisor pass them on (`-cpu host`)";
            area.add(Status::Warning, "AES-GCM", backend.name(), advice);
        }
    }
    if facts.v3 {
        area.add(Status::Ok, "compiled for", "x86-64-v3", "");
    } else if V3.iter().all(|name| cpu.flags.contains(*name)) {
        let advice = "this processor has more: build with `RUSTFLAGS=\"-C target-cpu=x86-64-v3\"`, and most packets cost \
                      a twentieth less";
        area.add(Status::Info, "compiled for", "any x86-64", advice);
    }
    if cpu.isolated.is_empty() {
        let advice = "other programs may interrupt workers; for steady latency boot with \
                      `isolcpus=LIST nohz_full=LIST rcu_nocbs=LIST` for the workers' cores";
        area.add(Status::Info, "isolated", "none", advice);
    } else {
        area.add(Status::Ok, "isolated", &*cpu.isolated, "");
    }
    let governors = cpu.governors.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if governors.is_empty() {
        area.add(Status::Info, "governor", "none: the frequency is not set here", "");
    } else if governors == "performance" {
        area.add(Status::Ok, "governor", governors, "");
    } else {
        area.add(Status::Warning, "governor", governors, "`cpupower frequency-set -g performance`");
    }
    if cpu.siblings.is_empty() {
        area.add(Status::Ok, "threads a core", "one", "");
    } else {
        let groups = cpu.siblings.iter().map(String::as_str).collect::<Vec<_>>().join("  ");
        let advice = "give a worker a core of its own and leave the core's other thread idle";
        area.add(Status::Info, "threads a core", format!("shared by {groups}"), advice);
    }
    area.checks
}
