//! What can go wrong on the control path, each with what to do about it.

use std::{fmt, io};

/// An error while a socket, a memory region or a device is set up. `Display` says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No device of that name in this network namespace.
    DeviceMissing {
        /// Name or index as it was asked for.
        device: String,
    },
    /// The device exists but is down.
    DeviceDown {
        /// Name of the device.
        device: String,
    },
    /// The device has fewer queues.
    QueueMissing {
        /// Name of the device.
        device: String,
        /// The queue asked for, from 0.
        queue: u32,
        /// How many queues the device has.
        queues: u32,
    },
    /// Another socket holds this queue, or a former one has not been released within a second.
    QueueBusy {
        /// Name of the device.
        device: String,
        /// The queue asked for.
        queue: u32,
    },
    /// A capability is missing.
    Privilege {
        /// The system call refused.
        call: &'static str,
        /// The capability that allows it.
        capability: &'static str,
    },
    /// The region exceeds what the process may lock.
    MemoryLock {
        /// Size of the region in bytes.
        bytes: usize,
    },
    /// The driver cannot do zero-copy, or not with this UMEM.
    ZeroCopyUnsupported {
        /// Name of the device.
        device: String,
    },
    /// The kernel knows no frames of several descriptors, which buffers beyond a page need.
    ScatterGatherUnsupported {
        /// Name of the device.
        device: String,
    },
    /// Another XDP program is attached to the device.
    ProgramPresent {
        /// Name of the device.
        device: String,
    },
    /// The driver cannot run an XDP program, or not with its MTU and queues as they are.
    NativeUnsupported {
        /// Name of the device.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The running kernel lacks a feature.
    KernelTooOld {
        /// The feature.
        feature: &'static str,
    },
    /// Chunk size, region length, alignment or ring size that the kernel would refuse.
    Geometry {
        /// What is wrong with it.
        reason: String,
    },
    /// Any other failure of a system call.
    System {
        /// The call.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// The kernel's error number, where one stands behind this error unchanged.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceMissing { device } => {
                write!(f, "no network device `{device}` in this network namespace; `ip link` lists them")
            }
            Self::DeviceDown { device } => {
                write!(f, "network device `{device}` is down; bring it up with `ip link set {device} up`")
            }
            Self::QueueMissing { device, queue, queues } => write!(
                f,
                "`{device}` has {queues} queue(s), counted from 0, so there is no queue {queue}; use fewer \
                 workers, or raise the number with `ethtool -L {device} combined N`"
            ),
            Self::QueueBusy { device, queue } => write!(
                f,
                "queue {queue} of `{device}` is held by another AF_XDP socket; stop the other program"
            ),
            Self::Privilege { call, capability } => {
                write!(f, "{call} is not permitted; run as root or grant {capability}")
            }
            Self::MemoryLock { bytes } => write!(
                f,
                "cannot lock {bytes} bytes of packet memory; grant CAP_IPC_LOCK or raise the limit \
                 (`ulimit -l`, `LimitMEMLOCK=infinity`)"
            ),
            Self::ZeroCopyUnsupported { device } => write!(
                f,
                "`{device}` cannot do AF_XDP zero-copy with this UMEM; choose copy mode (all devices that \
                 share a UMEM use the mode of the first)"
            ),
            Self::ScatterGatherUnsupported { device } => write!(
                f,
                "`{device}` cannot be used with buffers of more than 4096 bytes: they need AF_XDP frames of several \
                 descriptors, which Linux has from 6.6 on; use such a kernel, or buffers of 4096 bytes and an MTU that \
                 fits them"
            ),
            Self::ProgramPresent { device } => write!(
                f,
                "another XDP program is attached to `{device}`; remove it with `ip link set dev {device} xdp off`, \
                 or stop the program that holds it"
            ),
            Self::NativeUnsupported { device, source } => write!(
                f,
                "the driver of `{device}` cannot run XDP as it is set up ({source}); an MTU above about 3500 \
                 that it cannot receive in pieces, or fewer receive queues than its peer sends on, are common causes"
            ),
            Self::KernelTooOld { feature } => {
                write!(f, "this kernel has no {feature}; use Linux 6.1 or newer with it enabled")
            }
            Self::Geometry { reason } => f.write_str(reason),
            Self::System { call, source } => write!(f, "{call} failed: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } | Self::NativeUnsupported { source, .. } => Some(source),
            _ => None,
        }
    }
}
