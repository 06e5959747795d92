//! One network device: whether it would make a good port.

use super::{
    Area, Check, Status, drivers,
    drivers::{Driver, Version},
    facts::{Device, Facts},
    machine::version,
};

/// Bytes of an Ethernet header with two VLAN tags.
const HEADER: u64 = 22;
/// Bytes of a buffer that are in front of a frame.
const HEADROOM: u64 = 256;
/// The largest buffer that the kernel takes as it is, in KiB. Frames come into larger ones in pieces.
const LARGEST_WHOLE: u64 = 4;
/// The kernel from which AF_XDP has frames in pieces.
const PIECES: Version = (6, 6);

pub(super) fn checks(facts: &Facts, device: &Device) -> Vec<Check> {
    let mut area = Area::new(&device.name);
    if !device.exists {
        area.add(
            Status::Problem,
            "device",
            "does not exist",
            "`ip link` lists the devices of this network namespace",
        );
        return area.checks;
    }
    if !device.ethernet {
        area.add(Status::Problem, "device", "carries no Ethernet frames", "choose an Ethernet device");
        return area.checks;
    }
    let driver = device.driver.as_deref().and_then(drivers::find);
    driver_check(&mut area, facts, device, driver);
    carrier(&mut area, device);
    mtu(&mut area, facts, device, driver);
    queues(&mut area, device);
    if device.features.is_empty() {
        let advice = match facts.ethtool {
            true => "check by hand that the device neither strips VLAN tags nor merges packets",
            false => {
                "install `ethtool`, and run this again: stripped VLAN tags would put packets into the wrong network"
            }
        };
        area.add(Status::Warning, "offloads", "unknown", advice);
    } else {
        vlan_tags(&mut area, device);
        merging(&mut area, device);
    }
    if device.driver.as_deref() == Some("veth") {
        other_end(&mut area, device);
    }
    area.checks
}

/// What would harm a port is a problem for a device that is to be one, and otherwise a warning.
const fn harm(device: &Device) -> Status {
    if device.named { Status::Problem } else { Status::Warning }
}

fn driver_check(area: &mut Area<'_>, facts: &Facts, device: &Device, driver: Option<&Driver>) {
    let Some(name) = device.driver.as_deref() else {
        let advice =
            if facts.ethtool { "" } else { "install `ethtool` to learn the driver of a virtual device" };
        area.add(Status::Info, "driver", "unknown", advice);
        return;
    };
    let Some(driver) = driver else {
        let advice = "Causeway tries XDP in the driver, then the kernel's generic XDP, which is slower; it reports \
                      which it got";
        area.add(Status::Info, "driver", format!("{name}: XDP support unknown"), advice);
        return;
    };
    let kernel = facts.kernel.as_deref().and_then(version);
    let since = |wanted: Option<Version>| match (wanted, kernel) {
        (Some(wanted), Some(kernel)) => kernel >= wanted,
        (wanted, _) => wanted.is_some(),
    };
    if name == "bonding" {
        let advice = "make ports of the bond's members, not of the bond: it has no zero-copy";
        area.add(Status::Warning, "driver", format!("{name}: native XDP through its members"), advice);
    } else if since(driver.zero_copy) {
        area.add(Status::Ok, "driver", format!("{name}: native XDP, zero-copy"), "");
    } else if since(driver.native) {
        let advice = match driver.zero_copy {
            Some((major, minor)) => format!("zero-copy comes with Linux {major}.{minor}"),
            None => String::new(),
        };
        area.add(Status::Ok, "driver", format!("{name}: native XDP, copy"), advice);
    } else {
        let advice = match driver.native {
            Some((major, minor)) => format!("native XDP comes with Linux {major}.{minor}"),
            None => {
                "the kernel's generic XDP works and is slower; a device with native XDP is better".to_owned()
            }
        };
        area.add(Status::Warning, "driver", format!("{name}: no native XDP"), advice);
    }
}

fn carrier(area: &mut Area<'_>, device: &Device) {
    let name = &device.name;
    match (device.up, device.carrier) {
        (false, _) => area.add(Status::Warning, "carrier", "set down", format!("`ip link set {name} up`")),
        (true, Some(false)) => {
            area.add(Status::Warning, "carrier", "no", "check the cable and the port at its other end");
        }
        (true, _) => area.add(Status::Ok, "carrier", "yes", ""),
    }
}

fn mtu(area: &mut Area<'_>, facts: &Facts, device: &Device, driver: Option<&Driver>) {
    let (mtu, name) = (device.mtu, &device.name);
    let found = mtu.to_string();
    let kernel = facts.kernel.as_deref().and_then(version);
    let since = |wanted: Version| kernel.is_none_or(|kernel| kernel >= wanted);
    let largest = |kib: u64| kib * 1024 - HEADROOM - HEADER;
    let buffer = [2, 4, 8, 16].into_iter().find(|kib| mtu <= largest(*kib));
    if let Some(limit) = driver.and_then(|driver| driver.max_mtu)
        && mtu > limit
        && !driver.and_then(Driver::fragments).is_some_and(since)
    {
        let advice = format!(
            "the driver takes our XDP program up to an MTU of {limit}: `ip link set {name} mtu {limit}`"
        );
        area.add(harm(device), "MTU", found, advice);
        return;
    }
    match buffer {
        None => {
            let most = largest(16);
            let advice =
                format!("such frames fit no buffer of 16 KiB: `ip link set {name} mtu {most}`, or less");
            area.add(harm(device), "MTU", found, advice);
        }
        Some(kib) if kib > LARGEST_WHOLE && !since(PIECES) => {
            let ((major, minor), most) = (PIECES, largest(LARGEST_WHOLE));
            let advice = format!(
                "buffers beyond 4 KiB come with Linux {major}.{minor}; until then: `ip link set {name} mtu {most}`, or less"
            );
            area.add(harm(device), "MTU", found, advice);
        }
        Some(2) => area.add(Status::Ok, "MTU", found, ""),
        Some(kib) => {
            let advice = format!("takes buffers of {kib} KiB: `buffer_size = {}` in [system]", kib * 1024);
            area.add(Status::Info, "MTU", found, advice);
        }
    }
}

fn queues(area: &mut Area<'_>, device: &Device) {
    let (rx, tx, name) = (device.rx_queues, device.tx_queues, &device.name);
    let most = device.max_queues.map_or_else(String::new, |most| format!(", at most {most}"));
    let advice = match (rx > 1, device.max_queues.is_some_and(|most| most > 1)) {
        (true, _) => format!(
            "every receive queue needs a worker, or its packets are dropped: `ethtool -L {name} combined WORKERS`"
        ),
        (false, true) => format!("for more workers: `ethtool -L {name} combined WORKERS`"),
        (false, false) => String::new(),
    };
    area.add(Status::Info, "queues", format!("{rx} receive, {tx} transmit{most}"), advice);
}

/// A tag that the device strips from the frame is one that XDP never sees: the packet seems to be untagged.
fn vlan_tags(area: &mut Area<'_>, device: &Device) {
    let name = &device.name;
    // On a veth it is the other end that leaves the tag out.
    if device.driver.as_deref() == Some("veth") {
        return;
    }
    let stripping: Vec<_> =
        ["rx-vlan-offload", "rx-vlan-stag-hw-parse"].into_iter().filter(|f| device.is_on(f)).collect();
    if stripping.is_empty() {
        area.add(Status::Ok, "VLAN tags", "left in the frame", "");
        return;
    }
    let fixed = stripping.iter().any(|f| device.features.get(*f).is_some_and(|feature| feature.fixed));
    let advice = if fixed {
        "the driver does not let it be turned off: tagged packets would seem to be untagged; use another device for \
         VLANs"
            .to_owned()
    } else {
        let off: String = stripping.iter().map(|feature| format!(" {feature} off")).collect();
        format!(
            "tagged packets seem to be untagged, and come into the wrong network: `ethtool -K {name}{off}`"
        )
    };
    area.add(harm(device), "VLAN tags", format!("stripped ({})", stripping.join(", ")), advice);
}

/// Packets merged by the device are larger than any buffer, and drivers refuse XDP programs with it.
fn merging(area: &mut Area<'_>, device: &Device) {
    let name = &device.name;
    let on: Vec<_> = ["large-receive-offload", "rx-gro-hw"].into_iter().filter(|f| device.is_on(f)).collect();
    if on.is_empty() {
        area.add(Status::Ok, "merging", "off", "");
        return;
    }
    let fixed = on.iter().any(|f| device.features.get(*f).is_some_and(|feature| feature.fixed));
    // This driver turns it off itself when a program is attached, if the hypervisor lets it.
    if device.driver.as_deref() == Some("virtio_net") && !fixed {
        area.add(Status::Ok, "merging", "off while an XDP program is attached", "");
        return;
    }
    let advice = if fixed {
        "the device merges packets and does not let it be turned off, so its driver refuses XDP programs; on a virtual \
         machine turn it off at the hypervisor (`guest_tso4=off,guest_tso6=off,guest_ufo=off` of QEMU)"
            .to_owned()
    } else {
        let off: String = on.iter().map(|feature| format!(" {feature} off")).collect();
        format!("drivers refuse XDP programs while the device merges packets: `ethtool -K {name}{off}`")
    };
    area.add(harm(device), "merging", format!("on ({})", on.join(", ")), advice);
}

/// What a local stack at the other end of a veth leaves undone, since it expects a device that does it.
const LEFT_UNDONE: [(&str, &str); 5] = [
    ("tx-checksumming", "tx"),
    ("tcp-segmentation-offload", "tso"),
    ("generic-segmentation-offload", "gso"),
    ("generic-receive-offload", "gro"),
    ("tx-vlan-offload", "txvlan"),
];

fn other_end(area: &mut Area<'_>, device: &Device) {
    let all: String = LEFT_UNDONE.iter().map(|(_, short)| format!(" {short} off")).collect();
    let Some(peer) = &device.peer else {
        let advice = format!(
            "if a host uses the other end, its packets come with unfinished checksums, too large, and without VLAN \
             tags, unless you run there: `ethtool -K DEVICE{all}`"
        );
        area.add(Status::Info, "other end", "in another network namespace", advice);
        return;
    };
    let name = &peer.name;
    if peer.tx_queues > device.rx_queues {
        let advice = format!(
            "the kernel refuses an XDP program here: make {} with `numrxqueues {}` or {name} with fewer transmit queues",
            device.name, peer.tx_queues
        );
        let found = format!("{name}: {} transmit queues to {} here", peer.tx_queues, device.rx_queues);
        area.add(harm(device), "other end's queues", found, advice);
    }
    let on: Vec<_> = LEFT_UNDONE.iter().filter(|(feature, _)| peer.is_on(feature)).collect();
    if on.is_empty() {
        let status = if peer.features.is_empty() { Status::Info } else { Status::Ok };
        let what = if peer.features.is_empty() { "offloads unknown" } else { "no offload that hurts" };
        area.add(status, "other end", format!("{name}: {what}"), "");
        return;
    }
    let off: String = on.iter().map(|(_, short)| format!(" {short} off")).collect();
    let found = on.iter().map(|(feature, _)| *feature).collect::<Vec<_>>().join(", ");
    let advice = format!(
        "packets of a host at {name} come with unfinished checksums, too large or without VLAN tags: \
         `ethtool -K {name}{off}`"
    );
    area.add(Status::Warning, "other end", format!("{name}: {found}"), advice);
}
