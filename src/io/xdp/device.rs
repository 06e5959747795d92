//! A whole device: its queues as ports, and its XDP program.

use std::{path::PathBuf, sync::Arc};

use af_xdp::{Device, SocketConfig, Umem};
use thiserror::Error;

use super::{
    XdpPort,
    program::{Attach, Attached, Division, OwnPrefix, Program, ProgramError, Service},
};
use crate::packet::{FramePool, HEADROOM};

/// Bytes of an Ethernet header with two VLAN tags, which an MTU does not count.
pub(super) const LINK_HEADER: usize = 14 + 4 + 4;

/// What a device must not do before the XDP program sees a frame. Tags that it strips are invisible there: the
/// frame would arrive untagged, and so with the wrong interface. Frames that it joins would not fit a buffer.
const HARMFUL: [&str; 4] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse", "rx-lro", "rx-gro-hw"];

/// Why a device cannot be used through AF_XDP.
#[derive(Debug, Error)]
pub enum XdpError {
    /// The device or a socket.
    #[error(transparent)]
    Device(#[from] af_xdp::Error),
    /// The XDP program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The device does to received frames what must not be done, and cannot be stopped.
    #[error("`{device}` insists on {features:?}, with which frames would lose their VLAN tags or be joined")]
    Offload {
        /// Name of the device.
        device: String,
        /// The features, as ethtool names them.
        features: Vec<&'static str>,
    },
    /// Frames would not fit the buffers.
    #[error(
        "`{device}` has an MTU of {mtu}, but a buffer of {chunk} bytes takes an MTU of at most {largest}; lower the \
         MTU with `ip link set {device} mtu {largest}`, or write buffer_size = {} in [system]",
        buffer_for(*mtu)
    )]
    Mtu {
        /// Name of the device.
        device: String,
        /// Its MTU.
        mtu: u32,
        /// Bytes of a buffer.
        chunk: usize,
        /// The largest MTU that fits.
        largest: usize,
    },
    /// Some of what the device receives would reach no worker.
    #[error(
        "`{device}` receives on {queues} queues, but there are {workers} workers; make them equal with `ethtool -L \
         {device} combined {workers}`, or change the number of workers"
    )]
    Queues {
        /// Name of the device.
        device: String,
        /// Its queues.
        queues: u32,
        /// Ports that were to be opened.
        workers: usize,
    },
    /// The pool of frames is of another memory than the sockets' UMEM.
    #[error("the frames of `{device}` lie in other memory than its sockets use")]
    ForeignFrames {
        /// Name of the device.
        device: String,
    },
    /// The rings would take all frames of a worker.
    #[error(
        "the rings of `{device}` take {needed} buffers of a worker that has {available} left; give each worker more \
         buffers, or make the rings smaller"
    )]
    TooFewFrames {
        /// Name of the device.
        device: String,
        /// Frames that its fill ring takes, and what must be left.
        needed: usize,
        /// Frames that the pool has.
        available: usize,
    },
}

/// How a device is to be used.
#[derive(Debug, Clone, Default)]
pub struct XdpOptions {
    /// Rings and modes of the sockets.
    pub socket: SocketConfig,
    /// Where the program is attached.
    pub attach: Attach,
    /// Directory of a BPF file system that keeps the program attached between processes; see
    /// [`Program::attach_pinned`].
    pub pin: Option<PathBuf>,
    /// Who gets what.
    pub division: Division,
    /// Our addresses.
    pub addresses: Vec<OwnPrefix>,
    /// The kernel's services on NAT addresses.
    pub services: Vec<Service>,
}

/// Bytes of the smallest buffer for an MTU.
fn buffer_for(mtu: u32) -> usize {
    (HEADROOM + LINK_HEADER + mtu as usize).next_power_of_two()
}

/// Makes packet memory known to AF_XDP. One of these serves all ports of all devices and workers, so that frames go
/// from any port to any other without a copy.
///
/// # Errors
/// If the chunks have a size that AF_XDP does not take.
pub fn share(umem: &crate::packet::Umem) -> Result<Umem, af_xdp::Error> {
    let memory: Arc<dyn af_xdp::Memory> = Arc::clone(umem.memory()) as _;
    Umem::new(memory, 0)
}

/// The part of a device that no worker owns: its program. The program is detached when this goes, unless pinned.
#[derive(Debug)]
pub struct XdpDevice {
    /// The device.
    pub device: Device,
    /// Its program.
    pub program: Program,
    /// How it was attached.
    pub attached: Attached,
    /// Features of the device that had to be turned off, and stay off afterwards.
    pub turned_off: Vec<&'static str>,
}

impl XdpDevice {
    /// Opens one port for each pool, on queues from 0, and attaches the program. Offloads of the device that would
    /// hide VLAN tags or join frames are turned off first.
    ///
    /// # Errors
    /// [`XdpError`]. Frames that ports had taken are home again.
    pub fn open(
        umem: &Umem,
        name: &str,
        options: &XdpOptions,
        pools: &mut [FramePool],
    ) -> Result<(Self, Vec<XdpPort>), XdpError> {
        let device = Device::by_name(name)?;
        let queues = device.queues();
        if queues as usize > pools.len() {
            return Err(XdpError::Queues { device: name.to_owned(), queues, workers: pools.len() });
        }
        let (turned_off, features) = device.turn_off(&HARMFUL)?;
        if !features.is_empty() {
            return Err(XdpError::Offload { device: name.to_owned(), features });
        }
        let mut ports = Vec::new();
        let opened = Self::open_ports(umem, &device, options, pools, &mut ports);
        if opened.is_err() {
            for (port, pool) in ports.iter_mut().zip(pools) {
                super::super::PacketIo::shutdown(port, pool);
            }
        }
        let (program, attached) = opened?;
        Ok((Self { device, program, attached, turned_off }, ports))
    }

    fn open_ports(
        umem: &Umem,
        device: &Device,
        options: &XdpOptions,
        pools: &mut [FramePool],
        ports: &mut Vec<XdpPort>,
    ) -> Result<(Program, Attached), XdpError> {
        let mut program = Program::load()?;
        program.set_addresses(&options.addresses)?;
        program.set_services(&options.services)?;
        for (queue, pool) in (0..).zip(pools) {
            let port = XdpPort::open(umem, device, queue, &options.socket, pool)?;
            let added = program.add_socket(queue, &port);
            ports.push(port);
            added?;
        }
        program.set_division(options.division)?;
        let attached = match &options.pin {
            Some(directory) => program.attach_pinned(device, options.attach, directory)?,
            None => program.attach(device, options.attach)?,
        };
        Ok((program, attached))
    }
}
