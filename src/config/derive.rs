//! Defaults that depend on other values.

use std::path::{Path, PathBuf};

use super::decode::{Context, Slot};
use super::document::Draft;
use super::model::{Driver, Encapsulation};
use super::quantity::Ranged;
use super::types::{Location, Mac, Name};

/// Fills what the file leaves to be computed. `path` is the configuration file's.
pub(crate) fn fill(draft: &mut Draft, path: &Path, cx: &Context<'_>) {
    system(draft, path, cx);
    ports(draft);
    interfaces(draft);
    tunnels(draft);
    for gateway in &mut draft.gateways {
        for (number, policy) in (1..).zip(&mut gateway.policies) {
            policy.name.derive(Name::from_any(&format!("policy-{number}")), policy.at);
        }
        for (number, nat) in (1..).zip(&mut gateway.nat) {
            nat.name.derive(Name::from_any(&format!("nat-{number}")), nat.at);
        }
    }
}

fn system(draft: &mut Draft, path: &Path, cx: &Context<'_>) {
    let system = &mut draft.system;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let stem = cx.box_name.unwrap_or(&stem);
    system.name.derive(Name::from_any(stem), system.at);
    let Some(name) = system.name.get().map(|name| name.as_str().to_owned()) else {
        return;
    };
    system.state.derive(Location(PathBuf::from(format!("/var/lib/causeway/{name}.state"))), system.at);
    system.run_dir.derive(Location(PathBuf::from(format!("/run/causeway/{name}"))), system.at);
    for location in [&mut system.state, &mut system.run_dir, &mut system.nat_log] {
        if let Slot::Given(given) = location {
            given.value.0 = cx.base_dir.join(&given.value.0);
        }
    }
}

/// A port in memory has no device to take a MAC address from: it gets one of its names, the same at every start.
fn ports(draft: &mut Draft) {
    let system = draft.system.name.get().map(|name| name.as_str().to_owned()).unwrap_or_default();
    for port in &mut draft.ports {
        let memory = port.driver.get().is_some_and(|driver| driver.value == Driver::Memory);
        if let (true, Some(name)) = (memory, &port.name) {
            port.mac.derive(Mac::derived_from(&format!("{system}/{name}")), port.at);
        }
    }
}

fn interfaces(draft: &mut Draft) {
    for interface in &mut draft.interfaces {
        let port = interface.port.get().and_then(|id| draft.ports.get(id.value.0));
        if let Some(mtu) = port.and_then(|port| port.mtu.get()) {
            interface.mtu.derive(mtu.value, interface.at);
        }
    }
}

fn tunnels(draft: &mut Draft) {
    for tunnel in &mut draft.tunnels {
        if let Some(gateway) = tunnel.gateway.get() {
            tunnel.underlay.derive(gateway.value, tunnel.at);
        }
        let (Some(underlay), Some(local)) = (tunnel.underlay.get(), tunnel.local.get()) else {
            continue;
        };
        let carrier = draft.interfaces.iter().find(|interface| {
            interface.gateway.get().is_some_and(|gateway| gateway.value == underlay.value)
                && interface.addresses.get().is_some_and(|all| all.iter().any(|a| a.address == local.value))
        });
        let outer = carrier.and_then(|interface| interface.mtu.get());
        if let (Some(outer), Some(encapsulation)) = (outer, tunnel.encapsulation.get()) {
            let inner = largest_inner(outer.get(), local.value.is_ipv4(), encapsulation.value);
            if let Some(inner) = Ranged::new(inner) {
                tunnel.mtu.derive(inner, tunnel.at);
            }
        }
    }
}

/// The largest packet that fits, sealed, into an outer packet of `outer` bytes.
///
/// ESP adds a header of 8 bytes, an IV of 8, and after the packet padding to a multiple of 4, two bytes of trailer
/// and an ICV of 16 (RFC 4303 2, RFC 4106 3); UDP encapsulation 8 more (RFC 3948 2.1).
pub(crate) fn largest_inner(outer: u32, ipv4: bool, encapsulation: Encapsulation) -> u32 {
    let ip = if ipv4 { 20 } else { 40 };
    let udp = if encapsulation == Encapsulation::Udp { 8 } else { 0 };
    let room = outer.saturating_sub(ip + udp + 8 + 8 + 16);
    (room - room % 4).saturating_sub(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_sizes_of_inner_packets() {
        assert_eq!(largest_inner(1500, true, Encapsulation::Esp), 1446);
        assert_eq!(largest_inner(1500, true, Encapsulation::Udp), 1438);
        assert_eq!(largest_inner(1500, false, Encapsulation::Esp), 1426);
        assert_eq!(largest_inner(10, true, Encapsulation::Esp), 0);
    }
}
