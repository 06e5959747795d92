//! AF_XDP sockets: UMEM registration, the four rings, socket options and statistics.

mod memory;

pub use memory::{HugePages, MappedMemory, Memory};
