//! AF_XDP sockets: UMEM registration, the four rings, socket options and statistics.
//!
//! Frames live in one region of memory, the *UMEM*, cut into chunks of 2048 to 16384 bytes. The kernel knows chunks of a
//! page at most: of larger ones it sees several, and a long frame takes several descriptors ([`Umem::is_divided`]).
//! Program and kernel pass chunks to and fro as plain addresses over four rings for each (device, queue):
//!
//! | ring | who produces | what it carries |
//! |---|---|---|
//! | fill | program | chunks the kernel may receive into |
//! | rx | kernel | frames received |
//! | tx | program | frames to send |
//! | completion | kernel | chunks whose frame has been sent |
//!
//! Sockets of several devices and queues share one [`Umem`], each with its own four rings, so a frame received
//! on one is sent on another without a copy.
//!
//! ```no_run
//! use af_xdp::{Device, HugePages, MappedMemory, Socket, SocketConfig, Umem};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = std::sync::Arc::new(MappedMemory::new(4096, 2048, HugePages::Auto)?);
//! let umem = Umem::new(memory, 0)?;
//! let device = Device::by_name("eth0")?;
//! let mut socket = Socket::open(&umem, &device, 0, &SocketConfig::default())?;
//! let mut fill = socket.fill.reserve(1024);
//! for chunk in 0..1024 {
//!     fill.push(chunk * 2048);
//! }
//! fill.submit();
//! socket.bind()?;
//! // Give socket's descriptor to an XSKMAP of an attached XDP program, then:
//! let mut received = socket.rx.peek(64);
//! for descriptor in received.by_ref() {
//!     println!("{} bytes at {}", descriptor.len, descriptor.addr);
//! }
//! received.release();
//! # Ok(()) }
//! ```
//!
//! Beside it are the devices a gateway needs where XDP is not to be had: [`packet_socket`] (AF_PACKET with a
//! TPACKET_V3 ring) and [`tap`].
//!
//! Loading the XDP program is left to the user of this crate; [`XdpLink`] attaches it.

mod device;
mod error;
mod link;
mod memory;
mod namespace;
pub mod packet_socket;
mod ring;
mod socket;
mod storage;
mod sys;
pub mod tap;
mod umem;

pub use device::{Device, LinkState};
pub use error::Error;
pub use link::{Hook, XdpLink};
pub use memory::{HUGE_PAGE, HugePages, MappedMemory, Memory};
pub use namespace::Namespace;
pub use ring::{Consumer, Peeked, Producer, Reservation, RingStorage};
pub use socket::{BusyPoll, Kick, Mode, Socket, SocketConfig, Statistics};
pub use storage::{AddressRing, Descriptor, DescriptorRing, MappedRing};
pub use sys::wait_readable;
pub use umem::Umem;
