//! Translations with state: the sessions of port mappings and source pools (RFC 4787, RFC 5382, RFC 5508).
//!
//! Each worker has a table of its own, of a size fixed when it is made, which nobody else writes. A session is one
//! cache line ([`Record`]), found by what its packets look like inside (host, remote) and outside (outside address,
//! remote): two [`Index`]es of buckets, one cache line each. So a look-up is two dependent loads that miss, and a
//! burst's are prefetched together. Records are made of atomic words, so that the control thread can list them
//! while the worker works; it may see a session that is just ending, never a mixture of two.

mod claims;
mod fragments;
mod index;
mod ports;
mod record;
mod sources;
mod table;

pub use claims::{Claimed, Claims};
pub use fragments::{Datagram, FragmentPorts, Fragments, Onward};
pub use index::{Index, NOWHERE};
pub use ports::{Candidates, PortRange};
pub use record::{Current, Key, Kind, NewSession, Record, Tcp, Translation, View, tick, ticks};
pub use sources::{Counted, Sources};
pub use table::{Full, Records, Sessions, Side};
