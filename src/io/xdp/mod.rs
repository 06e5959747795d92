//! AF_XDP: the XDP program that gives frames to the gateway, and the ports on its sockets.

pub mod program;

pub use program::{Program, ProgramError};
