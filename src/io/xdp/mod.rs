//! AF_XDP: the XDP program that gives frames to the gateway, and the ports on its sockets.
//!
//! [`XdpDevice::open`] does all of it for one device: a port for each queue, the program told of them and attached.

mod device;
mod pieces;
mod port;
pub mod program;

pub use device::{XdpDevice, XdpError, XdpOptions, share};
pub use port::XdpPort;
pub use program::{Program, ProgramError};
