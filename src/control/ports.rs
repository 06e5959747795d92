//! Opens the ports that a configuration names.

use std::collections::HashMap;

use af_xdp::{BusyPoll, Device, Mode, SocketConfig, packet_socket::PacketConfig};
use thiserror::Error;

use crate::{
    config::{Config, Driver, Mac, Port, XdpMode, ZeroCopy},
    io::{
        af_packet::PacketPort,
        any::AnyPort,
        mem::MemPort,
        tap::TapPort,
        xdp::{
            XdpDevice, XdpError, XdpOptions,
            program::{AddressUse, Attach, Attached, Division, OwnPrefix},
            share,
        },
    },
    packet::{BURST, FramePool, Umem},
    wire::ethernet::MacAddr,
};

/// Why a port cannot be opened.
#[derive(Debug, Error)]
pub enum PortError {
    /// The device, the socket or the program.
    #[error("port {port}: {source}")]
    Xdp {
        /// The port.
        port: String,
        /// What is wrong, and what to do.
        source: XdpError,
    },
    /// The device or the socket.
    #[error("port {port}: {source}")]
    Socket {
        /// The port.
        port: String,
        /// What is wrong, and what to do.
        source: af_xdp::Error,
    },
    /// Fewer queues than workers: a packet that one worker receives could not leave by this port.
    #[error(
        "port {port} has {queues} queue(s) for {workers} workers, and each worker needs one: give the device as many \
         (`ethtool -L DEVICE combined {workers}`; for a veth, `ip link add ... numrxqueues {workers} numtxqueues \
         {workers}`), or list fewer `cores` in [system]"
    )]
    Queues {
        /// The port.
        port: String,
        /// Its queues.
        queues: usize,
        /// The workers.
        workers: usize,
    },
    /// A memory port that nobody holds the other end of.
    #[error(
        "port {0} has driver memory: it is for `causeway bench`, `causeway demo --memory` and tests; choose xdp, af_packet or tap"
    )]
    NoOtherEnd(String),
}

/// What a driver can do for several workers.
fn check_queues(port: &Port, queues: usize, workers: usize) -> Result<(), PortError> {
    if queues == workers {
        return Ok(());
    }
    let port = port.name.value.as_str().to_string();
    Err(PortError::Queues { port, queues, workers })
}

/// All ports of a gateway, opened.
#[derive(Debug)]
pub struct Opened {
    /// For each worker, its queue of each port.
    pub queues: Vec<Vec<AnyPort>>,
    /// The MAC address of each port.
    pub macs: Vec<MacAddr>,
    /// How each port was opened, for people.
    pub descriptions: Vec<String>,
    /// XDP programs, detached when this goes; by port.
    pub devices: Vec<Option<XdpDevice>>,
}

/// The ends of memory wires that ports take, by the ports' names: one for each worker.
pub type Wires = HashMap<String, Vec<MemPort>>;

/// Opens every port of the configuration, with a queue for each pool.
///
/// # Errors
/// [`PortError`]; what was opened before is closed.
pub fn open(
    config: &Config,
    umem: &Umem,
    pools: &mut [FramePool],
    wires: &mut Wires,
) -> Result<Opened, PortError> {
    let mut opened = Opened {
        queues: pools.iter().map(|_| Vec::new()).collect(),
        macs: Vec::new(),
        descriptions: Vec::new(),
        devices: Vec::new(),
    };
    let mut shared: Option<af_xdp::Umem> = None;
    for (number, port) in config.ports.iter().enumerate() {
        let one = match *port.driver {
            Driver::Xdp => open_xdp(config, number, port, umem, &mut shared, pools)?,
            Driver::AfPacket => open_packet(port, pools.len(), number)?,
            Driver::Tap => open_tap(port, pools.len())?,
            Driver::Memory => open_memory(config, port, wires)?,
        };
        check_queues(port, one.queues.len(), pools.len())?;
        for (queues, port) in opened.queues.iter_mut().zip(one.queues) {
            queues.push(port);
        }
        opened.macs.push(port.mac.as_ref().map_or(one.mac, |mac| MacAddr(mac.value.0)));
        opened.descriptions.push(one.description);
        opened.devices.push(one.device);
    }
    Ok(opened)
}

struct One {
    queues: Vec<AnyPort>,
    mac: MacAddr,
    description: String,
    device: Option<XdpDevice>,
}

fn device_name(port: &Port) -> &str {
    port.device.as_ref().map_or("", |device| device.value.as_str())
}

/// The MAC address of a port without a device: locally administered, made from names so that it stays the same.
#[must_use]
pub fn derived_mac(config: &Config, port: &Port) -> MacAddr {
    let name = format!("{}/{}", config.system.name.value.as_str(), port.name.value.as_str());
    port.mac.as_ref().map_or_else(|| MacAddr(Mac::derived_from(&name).0), |mac| MacAddr(mac.value.0))
}

fn open_memory(config: &Config, port: &Port, wires: &mut Wires) -> Result<One, PortError> {
    let name = port.name.value.as_str();
    let ends = wires.remove(name).ok_or_else(|| PortError::NoOtherEnd(name.to_string()))?;
    Ok(One {
        queues: ends.into_iter().map(AnyPort::Mem).collect(),
        mac: derived_mac(config, port),
        description: "memory".into(),
        device: None,
    })
}

fn socket_error(port: &Port) -> impl Fn(af_xdp::Error) -> PortError {
    let port = port.name.value.as_str().to_string();
    move |source| PortError::Socket { port: port.clone(), source }
}

fn open_packet(port: &Port, workers: usize, number: usize) -> Result<One, PortError> {
    let failed = socket_error(port);
    let device = Device::by_name(device_name(port)).map_err(&failed)?;
    // A group of one needs no fan-out; of more, its number is unique on this machine but for other gateways.
    let fanout =
        (workers > 1).then(|| (std::process::id() as u16).wrapping_mul(31).wrapping_add(number as u16));
    let config = PacketConfig { promiscuous: *port.promiscuous, fanout, ..PacketConfig::default() };
    let open = |_| PacketPort::open(&device, &config).map(|p| AnyPort::Packet(Box::new(p)));
    let queues: Vec<AnyPort> = (0..workers).map(open).collect::<Result<_, _>>().map_err(&failed)?;
    let mac = MacAddr(device.mac().map_err(&failed)?);
    Ok(One { queues, mac, description: format!("{}: af_packet", device.name()), device: None })
}

fn open_tap(port: &Port, workers: usize) -> Result<One, PortError> {
    let failed = socket_error(port);
    let taps = TapPort::open_queues(device_name(port), workers).map_err(&failed)?;
    let device = taps.first().map(|tap| tap.device().clone());
    // There is at least one.
    let device = device.map_or_else(|| Device::by_name(device_name(port)), Ok).map_err(&failed)?;
    // The host has the device's own address; the gateway is the station at the other end of the cable.
    let MacAddr([first, rest @ ..]) = MacAddr(device.mac().map_err(&failed)?);
    let [a, b, c, d, last] = rest;
    let mac = MacAddr([first | 2, a, b, c, d, last ^ 1]);
    device.set_up().map_err(&failed)?;
    let description = format!("{}: tap, {} queue(s)", device.name(), taps.len());
    let queues = taps.into_iter().map(|tap| AnyPort::Tap(Box::new(tap))).collect();
    Ok(One { queues, mac, description, device: None })
}

fn open_xdp(
    config: &Config,
    number: usize,
    port: &Port,
    umem: &Umem,
    shared: &mut Option<af_xdp::Umem>,
    pools: &mut [FramePool],
) -> Result<One, PortError> {
    let name = || port.name.value.as_str().to_string();
    let failed = |source: XdpError| PortError::Xdp { port: name(), source };
    let umem = match shared {
        Some(umem) => umem,
        None => shared.insert(share(umem).map_err(|source| PortError::Socket { port: name(), source })?),
    };
    let ring = port.ring.get();
    let socket = SocketConfig {
        rx_size: ring,
        tx_size: ring,
        fill_size: ring * 2,
        completion_size: ring,
        mode: match *port.zero_copy {
            ZeroCopy::Auto => Mode::Auto,
            ZeroCopy::Require => Mode::ZeroCopy,
            ZeroCopy::Never => Mode::Copy,
        },
        busy_poll: port.busy_poll.as_ref().map(|interval| BusyPoll {
            micros: u32::try_from(interval.value.0.as_micros()).unwrap_or(u32::MAX),
            budget: BURST as u32,
        }),
        ..SocketConfig::default()
    };
    let options = XdpOptions {
        socket,
        attach: match *port.xdp_mode {
            XdpMode::Auto => Attach::Auto,
            XdpMode::Native => Attach::Native,
            XdpMode::Generic => Attach::Generic,
        },
        division: if *port.share_with_host { Division::HostShared } else { Division::Exclusive },
        addresses: own_prefixes(config, number),
        services: Vec::new(),
        pin: None,
    };
    let (device, ports) = XdpDevice::open(umem, device_name(port), &options, pools).map_err(failed)?;
    let mac = MacAddr(device.device.mac().map_err(|source| PortError::Socket { port: name(), source })?);
    let zero_copy = if ports.iter().all(|p| p.is_zero_copy()) { "zero-copy" } else { "copy" };
    let Attached { hook, fallback } = &device.attached;
    let mut description =
        format!("{}: xdp, {hook:?} mode, {zero_copy}, {} queue(s)", device.device.name(), ports.len())
            .to_lowercase();
    if let Some(reason) = fallback {
        description.push_str(&format!(" (not in the driver: {reason})"));
    }
    if !device.turned_off.is_empty() {
        description.push_str(&format!("; turned off: {}", device.turned_off.join(", ")));
    }
    let queues = ports.into_iter().map(|p| AnyPort::Xdp(Box::new(p))).collect();
    Ok(One { queues, mac, description, device: Some(device) })
}

/// What the program must know of our addresses, where it shares the device with the host.
#[must_use]
pub fn own_prefixes(config: &Config, port: usize) -> Vec<OwnPrefix> {
    let on_port = || config.interfaces.iter().filter(move |interface| interface.port.value.0 == port);
    let ends_tunnels = |address| config.tunnels.iter().any(|tunnel| tunnel.local.value == address);
    let own = on_port().flat_map(|interface| &interface.addresses.value).map(|address| {
        let address = address.value.address;
        let length = if address.is_ipv4() { 32 } else { 128 };
        let usage = if ends_tunnels(address) { AddressUse::Tunnel } else { AddressUse::Host };
        OwnPrefix { address, length, usage }
    });
    let rules = on_port().flat_map(|interface| &config.gateways[interface.gateway.value.0].nat);
    let mapped = rules.flat_map(crate::config::Nat::translated_prefixes).map(|prefix| OwnPrefix {
        address: prefix.address(),
        length: prefix.length(),
        usage: AddressUse::Nat,
    });
    let mut all: Vec<OwnPrefix> = mapped.chain(own).collect();
    // An address that is both keeps its own use, which comes last.
    all.reverse();
    let mut seen = std::collections::HashSet::new();
    all.retain(|prefix| seen.insert((prefix.address, prefix.length)));
    all
}
