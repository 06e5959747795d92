//! `causeway doctor` on this machine, and on machines made of files that lack one thing each.

use std::{collections::HashMap, fs, path::Path};

use causeway::{
    cli::doctor::{Check, Doctor, Facts, Report, Status, drivers, ethtool, examine, facts::Limit},
    crypto::aead::Backend,
};
use clap::Parser;

/// A machine made of files: a good one until a test changes it.
struct Machine {
    root: tempfile::TempDir,
    /// What `ethtool` prints, by its arguments.
    ethtool: HashMap<String, String>,
}

const GOOD: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
    ("proc/net/protocols", "protocol  size sockets\nTCP 2304 1\nXDP 1088 0\n"),
    ("proc/sys/net/core/bpf_jit_enable", "1\n"),
    ("sys/kernel/btf/vmlinux", ""),
    ("proc/self/status", "Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n"),
    ("proc/self/uid_map", "         0          0 4294967295\n"),
    ("proc/self/limits", "Limit  Soft  Hard  Units\nMax locked memory         8388608   8388608   bytes\n"),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n"),
    ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "60\n"),
    ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
    (
        "proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Good CPU\nflags\t\t: aes pclmulqdq vaes vpclmulqdq avx2 avx512f avx512bw avx512vl\n\
         processor\t: 1\nprocessor\t: 2\n",
    ),
    ("sys/devices/system/cpu/isolated", "1-2\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
    ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0\n"),
    ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1\n"),
    ("sys/devices/system/cpu/cpufreq/boost", "1\n"),
];

impl Machine {
    fn good() -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
            ethtool: HashMap::from([("--version".into(), "ethtool version 6.1\n".into())]),
        };
        GOOD.iter().for_each(|(path, text)| machine.write(path, text));
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.root.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    fn answer(&mut self, arguments: &str, text: &str) {
        self.ethtool.insert(arguments.to_owned(), text.to_owned());
    }

    /// Adds a device on a bus, up and with nothing wrong.
    fn device(&mut self, name: &str, driver: &str, index: u32) {
        self.virtual_device(name, driver, index, index);
        let device = self.root.path().join(format!("sys/class/net/{name}/device"));
        fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink(format!("../../bus/pci/drivers/{driver}"), device.join("driver")).unwrap();
    }

    /// Adds a device whose driver only ethtool knows.
    fn virtual_device(&mut self, name: &str, driver: &str, index: u32, link: u32) {
        let values = [("type", "1"), ("mtu", "1500"), ("flags", "0x1003"), ("carrier", "1")];
        let (index, link) = (index.to_string(), link.to_string());
        for (file, value) in values.into_iter().chain([("ifindex", &*index), ("iflink", &*link)]) {
            self.write(&format!("sys/class/net/{name}/{file}"), &format!("{value}\n"));
        }
        for queue in ["rx-0", "tx-0"] {
            self.write(&format!("sys/class/net/{name}/queues/{queue}/x"), "");
        }
        self.answer(&format!("-i {name}"), &format!("driver: {driver}\nversion: 6\n"));
        self.features(name, &[]);
    }

    /// Which offloads are on; `FEATURE [fixed]` for one that cannot be changed.
    fn features(&mut self, name: &str, on: &[&str]) {
        let mut text = format!("Features for {name}:\nrx-checksumming: off\n");
        for feature in on {
            let (feature, fixed) = feature.split_once(' ').unwrap_or((feature, ""));
            text += &format!("{feature}: on {fixed}\n");
        }
        self.answer(&format!("-k {name}"), &text);
    }

    fn facts(&self, names: &[&str]) -> Facts {
        let ethtool = |arguments: &[&str]| self.ethtool.get(&arguments.join(" ")).cloned();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut facts = Facts::gather(self.root.path(), &ethtool, &names);
        facts.backend = Backend::Vaes512;
        facts
    }

    fn report(&self, names: &[&str]) -> Report {
        examine(&self.facts(names))
    }

    /// The check of that name, for the named devices.
    #[track_caller]
    fn check(&self, names: &[&str], name: &str) -> (Status, String, String) {
        of(&self.report(names), name)
    }
}

#[track_caller]
fn of(report: &Report, name: &str) -> (Status, String, String) {
    let found: Vec<&Check> = report.checks.iter().filter(|check| check.name == name).collect();
    let [check] = found[..] else { panic!("{} checks `{name}` in {report:#?}", found.len()) };
    (check.status, check.found.clone(), check.advice.clone().unwrap_or_default())
}

#[track_caller]
fn is(check: (Status, String, String), status: Status, found: &str, advice: &str) {
    assert_eq!((check.0, &*check.1), (status, found));
    assert!(check.2.contains(advice), "`{}` lacks `{advice}`", check.2);
    assert_eq!(advice.is_empty(), check.2.is_empty(), "`{}`", check.2);
}

use Status::{Info, Ok as Good, Problem, Warning};

#[test]
fn a_good_machine_has_nothing_to_complain_of() {
    let mut machine = Machine::good();
    machine.device("eth0", "ice", 2);
    let report = machine.report(&["eth0"]);
    assert!(report.checks.iter().all(|check| check.status <= Info), "{report:#?}");
    assert_eq!((report.warnings, report.problems, report.code()), (0, 0, 0));
    is(of(&report, "driver"), Good, "ice: native XDP, zero-copy", "");
    is(of(&report, "huge pages"), Good, "60 of 64 pages of 2 MiB free", "");
    is(of(&report, "locked memory"), Good, "8 MiB, which CAP_IPC_LOCK lifts", "");
    is(of(&report, "isolated"), Good, "1-2", "");
    is(of(&report, "processors"), Info, "3", "");
    is(of(&report, "queues"), Info, "1 receive, 1 transmit", "");
}

#[test]
fn the_kernel_is_looked_at() {
    let machine = Machine::good();
    let kernel = |release: &str| {
        machine.write("proc/sys/kernel/osrelease", release);
        machine.check(&[], "version")
    };
    is(kernel("5.15.0-91-generic"), Problem, "5.15.0-91-generic", "install Linux 6.1");
    is(kernel("6.0.19"), Problem, "6.0.19", "install Linux 6.1");
    is(kernel("6.1.0"), Good, "6.1.0", "");
    is(kernel("10.0-rc1"), Good, "10.0-rc1", "");
    is(kernel("strange"), Warning, "strange", "needs Linux 6.1");
    machine.remove("proc/sys/kernel/osrelease");
    is(machine.check(&[], "version"), Warning, "unknown", "needs Linux 6.1");

    machine.write("proc/net/protocols", "protocol size\nTCP 1\n");
    is(machine.check(&[], "AF_XDP"), Problem, "no", "CONFIG_XDP_SOCKETS");
    machine.remove("proc/net/protocols");
    is(machine.check(&[], "AF_XDP"), Info, "unknown: /proc/net/protocols cannot be read", "");
    machine.write("proc/sys/net/core/bpf_jit_enable", "0");
    is(machine.check(&[], "BPF JIT"), Warning, "off", "bpf_jit_enable=1");
    machine.remove("proc/sys/net/core/bpf_jit_enable");
    is(machine.check(&[], "BPF JIT"), Info, "unknown: cannot be read in this network namespace", "");
    machine.remove("sys/kernel/btf/vmlinux");
    is(machine.check(&[], "BTF"), Info, "no: not needed, but `bpftool` shows less", "");
}

#[test]
fn privileges_are_looked_at() {
    let machine = Machine::good();
    let mask = |mask: u64| machine.write("proc/self/status", &format!("CapEff:\t{mask:016x}\n"));
    let (raw, admin, bpf, perfmon, lock, sys_admin) = (1 << 13, 1 << 12, 1 << 39, 1 << 38, 1 << 14, 1 << 21);
    mask(0);
    let all = "without NET_RAW, NET_ADMIN, BPF, PERFMON, IPC_LOCK";
    is(machine.check(&[], "capabilities"), Problem, all, "AmbientCapabilities");
    mask(raw | admin | lock | perfmon);
    is(machine.check(&[], "capabilities"), Problem, "without BPF", "CAP_BPF");
    mask(raw | admin | sys_admin | lock);
    is(machine.check(&[], "capabilities"), Good, "NET_RAW, NET_ADMIN, BPF, PERFMON, IPC_LOCK", "");
    mask(raw | admin | bpf | perfmon);
    is(machine.check(&[], "capabilities"), Good, "NET_RAW, NET_ADMIN, BPF, PERFMON", "");
    is(machine.check(&[], "locked memory"), Warning, "8 MiB", "LimitMEMLOCK=infinity");
    machine.write("proc/self/limits", "Max locked memory         268435456   unlimited   bytes\n");
    is(machine.check(&[], "locked memory"), Good, "256 MiB", "");
    machine.write("proc/self/limits", "Max locked memory         unlimited   unlimited   bytes\n");
    is(machine.check(&[], "locked memory"), Good, "unlimited", "");
    assert_eq!(machine.facts(&[]).locked_memory, Some(Limit::Unlimited));
    machine.remove("proc/self/limits");
    is(machine.check(&[], "locked memory"), Info, "unknown: /proc/self/limits cannot be read", "");
    machine.remove("proc/self/status");
    let unknown = "unknown: /proc/self/status cannot be read";
    is(machine.check(&[], "capabilities"), Warning, unknown, "mount /proc");
    machine.write("proc/self/uid_map", "0 1000 1\n");
    is(machine.check(&[], "user namespace"), Problem, "an inner one", "outside");
}

#[test]
fn huge_pages_are_looked_at() {
    let machine = Machine::good();
    let pages = "sys/kernel/mm/hugepages/hugepages-2048kB";
    machine.write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "2");
    machine.write("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "1");
    let both = "60 of 64 pages of 2 MiB free, 1 of 2 pages of 1 GiB free";
    is(machine.check(&[], "huge pages"), Good, both, "");
    machine.remove("sys/kernel/mm/hugepages/hugepages-1048576kB");
    machine.write(&format!("{pages}/free_hugepages"), "0");
    is(machine.check(&[], "huge pages"), Info, "all in use", "vm.nr_hugepages");
    machine.write(&format!("{pages}/nr_hugepages"), "0");
    is(machine.check(&[], "huge pages"), Info, "none reserved", "vm.nr_hugepages");
    machine.remove("sys/kernel/mm/hugepages");
    is(machine.check(&[], "huge pages"), Info, "the kernel has none", "vm.nr_hugepages");
}

fn with_backend(machine: &Machine, backend: Backend) -> (Status, String, String) {
    let facts = Facts { backend, ..machine.facts(&[]) };
    of(&examine(&facts), "AES-GCM")
}

#[test]
fn processors_are_looked_at() {
    let machine = Machine::good();
    let with = |backend| with_backend(&machine, backend);
    is(with(Backend::Vaes512), Good, "vaes512", "");
    is(with(Backend::Vaes256), Good, "vaes256", "");
    is(with(Backend::AesNi), Info, "aes-ni", "VAES");
    is(with(Backend::Reference), Warning, "aes-gcm", "AES-NI");
    machine.write("sys/devices/system/cpu/isolated", "\n");
    is(machine.check(&[], "isolated"), Info, "none", "isolcpus");
    machine.write("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n");
    is(machine.check(&[], "governor"), Warning, "performance, powersave", "cpupower");
    machine.remove("sys/devices/system/cpu/cpu0/cpufreq");
    machine.remove("sys/devices/system/cpu/cpu1/cpufreq");
    is(machine.check(&[], "governor"), Info, "none: the frequency is not set here", "");
    for (cpu, group) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
        machine.write(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"), group);
    }
    is(machine.check(&[], "threads a core"), Info, "shared by 0,2  1,3", "idle");
    machine.write("proc/cpuinfo", "processor : 0\nmodel name : Old\nflags : fpu aes\n");
    is(machine.check(&[], "processors"), Warning, "1", "second");
    is(machine.check(&[], "model"), Info, "Old", "");
    let missing = "aes; missing: pclmulqdq vaes vpclmulqdq avx2 avx512f avx512bw avx512vl";
    is(machine.check(&[], "instructions"), Info, missing, "");
    machine.write("proc/cpuinfo", "processor : 0\nFeatures : fp aes\n");
    is(machine.check(&[], "instructions"), Info, "aes; missing: pmull", "");
    is(with_backend(&machine, Backend::Reference), Warning, "aes-gcm", "PMULL");
    machine.write("proc/cpuinfo", "processor : 0\nFeatures : fp aes pmull\n");
    is(with_backend(&machine, Backend::Reference), Good, "aes-gcm", "");
    machine.write("proc/cpuinfo", "processor : 0\nflags : abm avx2 bmi1 bmi2 movbe\n");
    let compiled = |v3| {
        let facts = Facts { v3, ..machine.facts(&[]) };
        of(&examine(&facts), "compiled for")
    };
    is(compiled(false), Info, "any x86-64", "RUSTFLAGS");
    is(compiled(true), Good, "x86-64-v3", "");
    machine.remove("proc/cpuinfo");
    is(machine.check(&[], "model"), Info, "unknown", "");
}

#[test]
fn drivers_are_told_apart_by_the_kernel_they_run_on() {
    let mut machine = Machine::good();
    machine.virtual_device("eth0", "virtio_net", 2, 2);
    let mut driver = |name: &str, kernel: &str| {
        machine.write("proc/sys/kernel/osrelease", kernel);
        machine.answer("-i eth0", &format!("driver: {name}\n"));
        machine.check(&["eth0"], "driver")
    };
    is(driver("virtio_net", "6.11"), Good, "virtio_net: native XDP, zero-copy", "");
    is(driver("virtio_net", "6.1"), Good, "virtio_net: native XDP, copy", "Linux 6.11");
    is(driver("veth", "6.11"), Good, "veth: native XDP, copy", "");
    is(driver("ionic", "6.1"), Warning, "ionic: no native XDP", "Linux 6.9");
    is(driver("e1000e", "6.1"), Warning, "e1000e: no native XDP", "generic");
    is(driver("bonding", "6.1"), Warning, "bonding: native XDP through its members", "members");
    is(driver("brandnew", "6.1"), Info, "brandnew: XDP support unknown", "generic");
    machine.ethtool.remove("-i eth0");
    is(machine.check(&["eth0"], "driver"), Info, "unknown", "");
    machine.ethtool.clear();
    is(machine.check(&["eth0"], "driver"), Info, "unknown", "install `ethtool`");
    is(machine.check(&["eth0"], "offloads"), Warning, "unknown", "install `ethtool`");
    machine.answer("--version", "");
    is(machine.check(&["eth0"], "offloads"), Warning, "unknown", "by hand");
}

#[test]
fn the_table_of_drivers_is_sorted_and_makes_sense() {
    assert!(drivers::DRIVERS.windows(2).all(|pair| pair[0].name < pair[1].name));
    for driver in drivers::DRIVERS {
        assert!(driver.zero_copy.is_none_or(|version| Some(version) >= driver.native), "{driver:?}");
        assert!(driver.native.is_some() || driver.max_mtu.is_none(), "{driver:?}");
        assert!(driver.fragments().is_none_or(|version| Some(version) >= driver.native), "{driver:?}");
    }
}

#[test]
fn harm_is_a_problem_on_a_port_and_a_warning_elsewhere() {
    let mut machine = Machine::good();
    machine.device("eth0", "ice", 2);
    machine.features("eth0", &["rx-vlan-offload", "rx-vlan-stag-hw-parse"]);
    let found = "stripped (rx-vlan-offload, rx-vlan-stag-hw-parse)";
    let advice = "`ethtool -K eth0 rx-vlan-offload off rx-vlan-stag-hw-parse off`";
    is(machine.check(&["eth0"], "VLAN tags"), Problem, found, advice);
    is(machine.check(&[], "VLAN tags"), Warning, found, advice);
    assert_eq!((machine.report(&["eth0"]).code(), machine.report(&[]).code()), (1, 0));
    machine.features("eth0", &["rx-vlan-offload [fixed]"]);
    let found = "stripped (rx-vlan-offload)";
    is(machine.check(&["eth0"], "VLAN tags"), Problem, found, "another device");

    machine.features("eth0", &["large-receive-offload"]);
    let found = "on (large-receive-offload)";
    is(machine.check(&["eth0"], "merging"), Problem, found, "`ethtool -K eth0 large-receive-offload off`");
    machine.features("eth0", &["rx-gro-hw [fixed]"]);
    is(machine.check(&["eth0"], "merging"), Problem, "on (rx-gro-hw)", "hypervisor");
    is(machine.check(&[], "merging"), Warning, "on (rx-gro-hw)", "hypervisor");
    machine.device("eth1", "virtio_net", 3);
    machine.features("eth1", &["rx-gro-hw"]);
    is(machine.check(&["eth1"], "merging"), Good, "off while an XDP program is attached", "");
    machine.features("eth1", &["rx-gro-hw [fixed]"]);
    is(machine.check(&["eth1"], "merging"), Problem, "on (rx-gro-hw)", "hypervisor");
}

#[test]
fn carrier_mtu_and_queues_are_looked_at() {
    let mut machine = Machine::good();
    machine.device("eth0", "ice", 2);
    machine.device("eth1", "sfc", 3);
    machine.device("eth2", "ixgbe", 4);
    machine.write("sys/class/net/eth0/carrier", "0");
    is(machine.check(&["eth0"], "carrier"), Warning, "no", "cable");
    machine.write("sys/class/net/eth0/flags", "0x1002");
    is(machine.check(&["eth0"], "carrier"), Warning, "set down", "`ip link set eth0 up`");

    let mtu = |device: &str, mtu: u32| {
        machine.write(&format!("sys/class/net/{device}/mtu"), &mtu.to_string());
        machine.check(&[device], "MTU")
    };
    is(mtu("eth0", 1770), Good, "1770", "");
    is(mtu("eth0", 1771), Info, "1771", "4 KiB");
    is(mtu("eth0", 3046), Info, "3046", "4 KiB");
    // Its driver has fragments.
    is(mtu("eth0", 3047), Info, "3047", "4 KiB");
    is(mtu("eth0", 9001), Info, "9001", "takes buffers of 16 KiB: `buffer_size = 16384`");
    is(mtu("eth1", 3818), Info, "3818", "4 KiB");
    is(mtu("eth1", 3819), Info, "3819", "8 KiB");
    is(mtu("eth1", 7914), Info, "7914", "8 KiB");
    is(mtu("eth1", 7915), Info, "7915", "16 KiB");
    is(mtu("eth1", 16106), Info, "16106", "16 KiB");
    is(mtu("eth1", 16107), Problem, "16107", "`ip link set eth1 mtu 16106`");
    machine.write("proc/sys/kernel/osrelease", "6.5.1-amd64\n");
    is(mtu("eth0", 9001), Problem, "9001", "come with Linux 6.6");
    is(mtu("eth1", 3818), Info, "3818", "4 KiB");
    is(mtu("eth1", 3819), Problem, "3819", "`ip link set eth1 mtu 3818`");
    machine.write("proc/sys/kernel/osrelease", "6.1.0-amd64\n");
    is(mtu("eth0", 3047), Problem, "3047", "`ip link set eth0 mtu 3046`");
    machine.write("proc/sys/kernel/osrelease", "6.12.9-amd64\n");
    is(mtu("eth2", 9001), Problem, "9001", "`ip link set eth2 mtu 3050`");

    machine.answer(
        "-l eth0",
        "Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t8\n\
         Current hardware settings:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t16\n",
    );
    let found = "1 receive, 1 transmit, at most 8";
    is(
        machine.check(&["eth0"], "queues"),
        Info,
        found,
        "for more workers: `ethtool -L eth0 combined WORKERS`",
    );
    machine.write("sys/class/net/eth0/queues/rx-1/x", "");
    let found = "2 receive, 1 transmit, at most 8";
    is(machine.check(&["eth0"], "queues"), Info, found, "every receive queue needs a worker");
}

#[test]
fn the_other_end_of_a_veth_is_looked_at() {
    let mut machine = Machine::good();
    machine.virtual_device("va", "veth", 7, 8);
    machine.virtual_device("vb", "veth", 8, 7);
    is(machine.check(&["va"], "other end"), Good, "vb: no offload that hurts", "");
    machine.features("vb", &["tx-checksumming", "tcp-segmentation-offload", "tx-vlan-offload"]);
    let found = "vb: tx-checksumming, tcp-segmentation-offload, tx-vlan-offload";
    is(machine.check(&["va"], "other end"), Warning, found, "`ethtool -K vb tx off tso off txvlan off`");
    machine.write("sys/class/net/vb/queues/tx-1/x", "");
    let found = "vb: 2 transmit queues to 1 here";
    is(machine.check(&["va"], "other end's queues"), Problem, found, "fewer transmit queues");
    // Its own stripping is the other end's doing, and so is its own checksum.
    machine.features("va", &["rx-vlan-offload", "tx-checksumming"]);
    assert!(machine.report(&["va"]).checks.iter().all(|check| check.name != "VLAN tags"));

    // An index of another namespace that someone here has too.
    machine.write("sys/class/net/vb/iflink", "9");
    let advice = "`ethtool -K DEVICE tx off tso off gso off gro off txvlan off`";
    is(machine.check(&["va"], "other end"), Info, "in another network namespace", advice);
}

#[test]
fn names_that_are_no_devices_are_problems() {
    let mut machine = Machine::good();
    machine.device("eth0", "ice", 2);
    machine.virtual_device("tun0", "tun", 3, 3);
    machine.write("sys/class/net/tun0/type", "65534");
    machine.write("sys/class/net/bonding_masters", "");
    for name in ["eth9", "../net/eth0", "..", "", "bonding_masters", "--version"] {
        is(machine.check(&[name], "device"), Problem, "does not exist", "`ip link`");
    }
    is(machine.check(&["tun0"], "device"), Problem, "carries no Ethernet frames", "Ethernet device");
    let names: Vec<_> = machine.facts(&[]).devices.into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["eth0"]);
    let names: Vec<_> = machine.facts(&["tun0", "eth0"]).devices.into_iter().map(|d| d.name).collect();
    assert_eq!(names, ["tun0", "eth0"]);
}

#[test]
fn an_empty_machine_is_described_too() {
    let nothing = tempfile::tempdir().unwrap();
    let report = examine(&Facts::gather(nothing.path(), &|_| None, &[]));
    assert!(report.text(false, 100).contains("unknown"));
    assert_eq!(report.code(), 0);
}

#[test]
fn json_says_the_same() {
    let mut machine = Machine::good();
    machine.device("eth0", "ice", 2);
    machine.features("eth0", &["rx-vlan-offload"]);
    let report = machine.report(&["eth0"]);
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["problems"], 1);
    assert_eq!(json["checks"].as_array().unwrap().len(), report.checks.len());
    let tags = json["checks"].as_array().unwrap().iter().find(|check| check["name"] == "VLAN tags").unwrap();
    assert_eq!((&tags["area"], &tags["status"]), (&"eth0".into(), &"problem".into()));
    assert_eq!(json["checks"][0]["advice"], serde_json::Value::Null);
}

#[test]
fn this_machine_can_be_examined() {
    let facts = Facts::gather(Path::new("/"), &ethtool, &["lo".to_owned()]);
    assert!(facts.kernel.is_some() && facts.capabilities.is_some() && facts.locked_memory.is_some());
    assert!(facts.processor.online > 0);
    let report = examine(&facts);
    is(of(&report, "device"), Problem, "carries no Ethernet frames", "Ethernet device");
    assert_eq!(report.code(), 1);

    let all = examine(&Facts::gather(Path::new("/"), &ethtool, &[]));
    let text = all.text(false, 100);
    assert!(!text.contains('\x1b'));
    for check in &all.checks {
        assert!(text.contains(check.name) && !check.found.is_empty(), "{check:?}");
    }
    assert_eq!(all.problems > 0, all.code() == 1);
    println!("{text}");
}

#[test]
fn arguments_are_flags_and_devices() {
    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        doctor: Doctor,
    }
    let doctor = Command::parse_from(["causeway", "--json", "eth0", "eth1"]).doctor;
    assert!(doctor.json);
    assert_eq!(doctor.devices, ["eth0", "eth1"]);
    assert!(Command::parse_from(["causeway"]).doctor.devices.is_empty());
}
