//! Neighbours of ports that are shared with the host.
//!
//! There the XDP program passes ARP and neighbour discovery to the kernel, which answers for the addresses; workers
//! see none of it. A packet socket of the control thread hears what the kernel hears, and tells the resolver. It
//! answers nothing.

use std::net::IpAddr;

use af_xdp::{
    Device,
    packet_socket::{PacketConfig, PacketSocket},
};

use super::ports::PortError;
use crate::{
    config::{Config, Driver},
    stage::{Event, NeighbourClaim},
    table::{interface::Interface, tables::Tables},
    wire::{
        arp,
        ethernet::{EtherType, Ethernet, HEADER_LEN, MacAddr},
        icmpv6::Neighbour,
        ip::protocol,
        ipv6,
    },
};

/// Frames looked at in one tick: the host's own traffic comes here too.
const FRAMES: usize = 1024;
/// Longer frames are no ARP and no neighbour discovery worth reading.
const LONGEST: usize = 512;

/// Hears ARP and neighbour discovery on the ports that are shared with the host.
#[derive(Debug, Default)]
pub struct HostNeighbours {
    /// Each with the number of its port.
    sockets: Vec<(usize, PacketSocket)>,
}

impl HostNeighbours {
    /// Opens a socket for each port with `share_with_host`.
    ///
    /// # Errors
    /// The device or the socket.
    pub fn open(config: &Config) -> Result<Self, PortError> {
        let shared = config.ports.iter().enumerate();
        let shared = shared.filter(|(_, port)| *port.share_with_host && *port.driver == Driver::Xdp);
        let open = |(number, port): (usize, &crate::config::Port)| {
            let name = port.device.as_ref().map_or("", |device| device.value.as_str());
            let small = PacketConfig {
                block_size: 1 << 16,
                blocks: 8,
                promiscuous: false,
                ..PacketConfig::default()
            };
            let socket = Device::by_name(name).and_then(|device| PacketSocket::open(&device, &small));
            let failed = |source| PortError::Socket { port: port.name.value.as_str().into(), source };
            Ok((number, socket.map_err(failed)?))
        };
        Ok(Self { sockets: shared.map(open).collect::<Result<_, _>>()? })
    }

    /// Tells `take` what was heard since the last call.
    pub fn tick(&mut self, tables: &Tables, mut take: impl FnMut(Event)) {
        for (port, socket) in &mut self.sockets {
            // Tagged frames never come this way: the program gives them to the gateway.
            let number = tables.demux.get(*port).and_then(|demux| demux.single(0));
            let Some((number, interface)) = number.and_then(|n| Some((n, tables.interface(n)?))) else {
                socket.receive(FRAMES, |_| true);
                continue;
            };
            let mut bytes = [0; LONGEST];
            socket.receive(FRAMES, |frame| {
                if let Some(bytes) = bytes.get_mut(..frame.len())
                    && frame.copy_to(bytes)
                    && let Some(event) = heard(number, interface, bytes)
                {
                    take(event);
                }
                true
            });
        }
    }
}

/// What a frame says of a neighbour on the interface of this number.
fn heard(number: u16, interface: &Interface, frame: &[u8]) -> Option<Event> {
    let header = Ethernet::at(frame, 0)?;
    let payload = frame.get(HEADER_LEN..)?;
    let (address, mac, claim) = match header.ether_type() {
        EtherType::ARP => from_arp(interface, payload)?,
        EtherType::IPV6 => from_discovery(interface, payload)?,
        _ => return None,
    };
    if interface.answers_for(address) {
        return (mac != interface.mac).then_some(Event::Conflict { interface: number, address, mac });
    }
    let link_local = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
    let believed = mac.is_unicast() && (link_local || interface.is_on_link(address));
    believed.then_some(Event::Neighbour { interface: number, address, mac, claim })
}

fn from_arp(interface: &Interface, payload: &[u8]) -> Option<(IpAddr, MacAddr, NeighbourClaim)> {
    let packet = arp::Repr::parse(payload).ok().filter(|packet| !packet.is_probe())?;
    let for_us = interface.answers_for(IpAddr::V4(packet.target_ip));
    let claim = match packet.operation {
        _ if packet.is_gratuitous() => NeighbourClaim::Answered { solicited: false },
        _ if !for_us => return None,
        arp::Operation::Request => NeighbourClaim::Asked,
        arp::Operation::Reply => NeighbourClaim::Answered { solicited: true },
    };
    Some((IpAddr::V4(packet.sender_ip), packet.sender_mac, claim))
}

fn from_discovery(interface: &Interface, payload: &[u8]) -> Option<(IpAddr, MacAddr, NeighbourClaim)> {
    let packet = ipv6::parse(payload).ok()?;
    let header = packet.header;
    if header.next_header() != protocol::ICMPV6 {
        return None;
    }
    let (source, destination) = (header.source(), header.destination());
    match Neighbour::parse(packet.payload, source, destination, header.hop_limit()).ok()? {
        Neighbour::Advertisement { target, target_mac, solicited, .. } => {
            Some((IpAddr::V6(target), target_mac?, NeighbourClaim::Answered { solicited }))
        }
        Neighbour::Solicitation { target, source_mac } if interface.answers_for(IpAddr::V6(target)) => {
            Some((IpAddr::V6(source), source_mac?, NeighbourClaim::Asked))
        }
        Neighbour::Solicitation { .. } => None,
    }
}

#[cfg(test)]
#[path = "host_neighbours_tests.rs"]
mod tests;
