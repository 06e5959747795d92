//! Ports, their interfaces, and the machine they share.

use std::collections::HashMap;

use super::{duplicate, seen};
use crate::config::decode::{Context, Slot};
use crate::config::diagnostics::Problem;
use crate::config::document::Draft;
use crate::config::model::{Driver, PortDraft};
use crate::config::span::Span;
use crate::config::types::BufferSize;

/// Bytes the XDP program and the headers of a seal find in front of a frame.
const HEADROOM: u32 = 256;

/// An Ethernet header without tags.
const ETHERNET: u32 = 14;

pub(crate) fn check(draft: &Draft, cx: &mut Context<'_>) {
    cores(draft, cx);
    devices(draft, cx);
    draft.ports.iter().for_each(|port| driver_options(port, cx));
    interfaces(draft, cx);
    sizes(draft, cx);
    rings(draft, cx);
}

fn cores(draft: &Draft, cx: &mut Context<'_>) {
    let Some(cores) = draft.system.cores.get() else { return };
    if cores.is_empty() {
        let problem = Problem::new("bad-value", cores.span, "no core to work on");
        cx.report(problem.help("name at least one core, or leave the key out"));
    }
    let mut first = HashMap::new();
    for core in cores.iter() {
        if let Some(first) = seen(&mut first, core.get(), core.span) {
            let message = format!("core {} stands here twice", core.get());
            let help = "a core has one worker: name every core once";
            cx.report(duplicate("duplicate-core", core.span, first, message, help));
        }
    }
}

/// A device belongs to one port, or is the TAP of one interface.
fn devices(draft: &Draft, cx: &mut Context<'_>) {
    let ports = draft.ports.iter().filter_map(|port| port.device.get());
    let taps = draft.interfaces.iter().filter_map(|interface| interface.host_tap.get());
    let mut first = HashMap::new();
    for device in ports.chain(taps) {
        if let Some(first) = seen(&mut first, device.as_str(), device.span) {
            let message = format!("the device {} is in use already", device.value);
            let help = "a device is one port's, or the host_tap of one interface; to split a line, give one port \
                        several interfaces with VLANs";
            cx.report(duplicate("duplicate-device", device.span, first, message, help));
        }
    }
}

fn driver_options(port: &PortDraft, cx: &mut Context<'_>) {
    let Some(driver) = port.driver.get() else { return };
    match (&port.device, driver.value) {
        (Slot::Given(device), Driver::Memory) => {
            let problem =
                Problem::new("option-not-for-driver", device.span, "a port in memory has no device");
            cx.report(
                problem.help("take `device` out, or choose another driver").also(driver.span, "the driver"),
            );
        }
        (Slot::Absent, Driver::Xdp | Driver::AfPacket | Driver::Tap) => {
            let message = format!("a port with driver \"{}\" has no `device`", driver.as_str());
            cx.report(
                Problem::new("missing-key", port.at, message)
                    .help("add `device = \"eth1\"`; `ip link` lists the devices there are")
                    .label("in this section"),
            );
        }
        _ => {}
    }
    if driver.value == Driver::Xdp {
        return;
    }
    let options = [
        ("xdp_mode", port.xdp_mode.given().map(|at| at.span)),
        ("zero_copy", port.zero_copy.given().map(|at| at.span)),
        ("busy_poll", port.busy_poll.given().map(|at| at.span)),
        ("share_with_host", port.share_with_host.given().map(|at| at.span)),
    ];
    for (key, span) in options.into_iter().filter_map(|(key, span)| Some((key, span?))) {
        let message = format!("`{key}` is for driver \"xdp\" only");
        cx.report(
            Problem::new("option-not-for-driver", span, message)
                .help(format!("take `{key}` out, or write `driver = \"xdp\"`"))
                .also(driver.span, "the driver"),
        );
    }
}

/// Two interfaces of a port never share a tag; a port without any is idle.
fn interfaces(draft: &Draft, cx: &mut Context<'_>) {
    let mut first = HashMap::new();
    let mut used = vec![false; draft.ports.len()];
    let mut all_read = true;
    for interface in &draft.interfaces {
        let Some(port) = interface.port.get() else {
            all_read = false;
            continue;
        };
        if let Some(used) = used.get_mut(port.value.0) {
            *used = true;
        }
        let Some(vlan) = interface.vlan.get() else { continue };
        if let Some(first) = seen(&mut first, (port.value, vlan.value), vlan.span) {
            let message = format!(
                "port \"{}\" has an interface with this tag already: {}",
                cx.names.ports.list[port.value.0], vlan.value
            );
            let help = "a frame must belong to one interface: give each its own VLAN";
            cx.report(duplicate("duplicate-vlan", vlan.span, first, message, help));
        }
    }
    for (port, used) in draft.ports.iter().zip(used) {
        if !used && all_read {
            cx.report(
                Problem::warning(
                    "unused-port",
                    port.at,
                    "no interface uses this port: what it receives is dropped",
                )
                .help("add an [interface.NAME] with this port, or take the port out"),
            );
        }
    }
}

/// Packets fit into lines, and frames into buffers.
fn sizes(draft: &Draft, cx: &mut Context<'_>) {
    let mut tags = vec![0; draft.ports.len()];
    for interface in &draft.interfaces {
        let Some((port, tags)) = interface
            .port
            .get()
            .and_then(|id| Some((draft.ports.get(id.value.0)?, tags.get_mut(id.value.0)?)))
        else {
            continue;
        };
        if let Some(vlan) = interface.vlan.get() {
            *tags = vlan.tag_bytes().max(*tags);
        }
        if let (Some(mtu), Some(limit)) = (interface.mtu.given(), port.mtu.get())
            && mtu.get() > limit.get()
        {
            let message = format!("an MTU of {} is more than the port's {}", mtu.get(), limit.get());
            cx.report(
                Problem::new("mtu-exceeds-port", mtu.span, message)
                    .also(limit.span, "the port's")
                    .help(format!("write at most {}, or raise the port's mtu", limit.get())),
            );
        }
    }
    let Some(buffer) = draft.system.buffer_size.get() else { return };
    for (port, tags) in draft.ports.iter().zip(tags) {
        let Some(mtu) = port.mtu.get() else { continue };
        let most = buffer.get() - HEADROOM - ETHERNET - tags;
        if mtu.get() > most {
            let message = format!(
                "a packet of {} bytes with {} of headers and {HEADROOM} of headroom does not fit a buffer of {}",
                mtu.get(),
                ETHERNET + tags,
                buffer.get()
            );
            let needed = mtu.get() + ETHERNET + tags + HEADROOM;
            let larger = BufferSize::ALL.into_iter().find(|size| *size >= needed);
            let help = larger.map_or_else(
                || format!("write at most {most}"),
                |size| format!("write at most {most}, or buffer_size = {size} in [system]"),
            );
            cx.report(Problem::new("mtu-exceeds-buffer", mtu.span, message).help(help));
        }
    }
}

/// Receive rings that take every buffer leave none to send with.
fn rings(draft: &Draft, cx: &mut Context<'_>) {
    let Some(buffers) = draft.system.buffers.get() else { return };
    let rings: u64 = draft.ports.iter().filter_map(|p| p.ring.get()).map(|r| u64::from(r.get())).sum();
    // A port keeps two bursts back for packets that the gateway makes itself.
    let kept_back = 2 * crate::packet::BURST as u64 * draft.ports.len() as u64;
    let wanted = rings * 2 + kept_back;
    if wanted > u64::from(buffers.get()) {
        let at = draft.system.buffers.given().map(|b| b.span);
        let at: Span = at.or(draft.ports.first().map(|p| p.at)).unwrap_or(buffers.span);
        let message = format!(
            "the ports' rings can hold {wanted} frames, receiving and sending, and a worker has {} buffers",
            buffers.get()
        );
        let help = format!("write buffers = {} in [system], or smaller rings", wanted.next_power_of_two());
        cx.report(Problem::warning("few-buffers", at, message).help(help));
    }
}
