//! Defaults that depend on other values.

use std::net::{IpAddr, Ipv4Addr};
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
        let addresses = interface.addresses.get().map(|all| all.value.as_slice()).unwrap_or_default();
        let towards = |target: &Slot<IpAddr>| {
            let target = target.get()?.value;
            addresses.iter().find(|own| own.network().contains(target)).map(|own| own.address)
        };
        let probe = interface.probe.as_mut().map(|probe| (&probe.target, &mut probe.source));
        let bfd = interface.bfd.as_mut().map(|bfd| (&bfd.target, &mut bfd.source));
        for (target, source) in [probe, bfd].into_iter().flatten() {
            if let Some(own) = towards(target) {
                source.derive(own, interface.at);
            }
        }
    }
}

fn tunnels(draft: &mut Draft) {
    for tunnel in &mut draft.tunnels {
        if let Some(gateway) = tunnel.gateway.get() {
            tunnel.underlay.derive(gateway.value, tunnel.at);
        }
        if let (Some(local), Some(remote)) = (tunnel.local.get(), tunnel.remote.get()) {
            let (own, other) = probe_addresses(local.value, remote.value);
            let probe = tunnel.probe.as_mut().map(|probe| (&mut probe.source, &mut probe.target));
            let bfd = tunnel.bfd.as_mut().map(|bfd| (&mut bfd.source, &mut bfd.target));
            for (source, target) in [probe, bfd].into_iter().flatten() {
                source.derive(own, tunnel.at);
                target.derive(other, tunnel.at);
            }
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

/// Where the probe addresses of tunnels are, by default: the second half of 169.254.0.0/16.
const PROBES: Ipv4Addr = Ipv4Addr::new(169, 254, 128, 0);

/// The addresses for probes inside a tunnel between two outer addresses: this end's, and the other's.
///
/// Two neighbours (a /31) of 169.254.128.0/17, by a hash of both outer addresses (FNV-1a over the 16 bytes of each,
/// the lower first), so that both ends come to the same two without a word; the end with the lower outer address
/// has the even one.
pub(crate) fn probe_addresses(local: IpAddr, remote: IpAddr) -> (IpAddr, IpAddr) {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    };
    let (lower, upper) = (bytes(local).min(bytes(remote)), bytes(local).max(bytes(remote)));
    let hash = lower.iter().chain(&upper).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Folded, since the low bits of FNV-1a depend on the low bits of the bytes alone.
    let pair = (hash ^ hash >> 32) as u32 & 0x3fff;
    let even = PROBES.to_bits() + 2 * pair;
    let address = |of: IpAddr| IpAddr::V4(Ipv4Addr::from_bits(even + u32::from(bytes(of) != lower)));
    (address(local), address(remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_tunnel_come_to_the_same_probe_addresses() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut pairs = std::collections::HashSet::new();
        for other in 1..=100 {
            for (a, b) in [
                (address("192.0.2.1"), address(&format!("198.51.100.{other}"))),
                (address(&format!("2001:db8::{other}")), address("2001:db8::ffff")),
            ] {
                let (own, far) = probe_addresses(a, b);
                assert_eq!(probe_addresses(b, a), (far, own));
                let (IpAddr::V4(own), IpAddr::V4(far)) = (own, far) else { panic!("not IPv4") };
                assert_eq!(own.to_bits() ^ far.to_bits(), 1);
                assert!(own.to_bits() & 1 == 0, "the lower end has the even address");
                assert_eq!((own.octets()[0], own.octets()[1], own.octets()[2] >> 7), (169, 254, 1));
                pairs.insert(own);
            }
        }
        // Written down: two versions must agree.
        assert_eq!(probe_addresses(address("192.0.2.1"), address("192.0.2.2")).0, address("169.254.175.8"));
        assert!(pairs.len() >= 195, "{} of 200 are different", pairs.len());
    }

    #[test]
    fn the_known_sizes_of_inner_packets() {
        assert_eq!(largest_inner(1500, true, Encapsulation::Esp), 1446);
        assert_eq!(largest_inner(1500, true, Encapsulation::Udp), 1438);
        assert_eq!(largest_inner(1500, false, Encapsulation::Esp), 1426);
        assert_eq!(largest_inner(10, true, Encapsulation::Esp), 0);
    }
}
