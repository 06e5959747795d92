//! Sizes and headers around IPsec, through the real pipeline in one thread: what is divided, put together, padded, marked
//! and told to senders. After every packet the books must balance; see [`common::Lab`].

#[path = "../common/mod.rs"]
mod common;

mod headers;
mod jumbo;
mod mtu;
mod path;
mod reassembly;
mod sites;

use common::frame::*;

/// An ICMP error, taken apart.
#[derive(Debug)]
struct IcmpError {
    from: String,
    kind: u8,
    code: u8,
    /// The second word: an MTU, or nothing.
    word: u32,
    quote: Vec<u8>,
}

fn icmp_error(packet: &[u8]) -> IcmpError {
    let packet = Ip::read(packet);
    assert!(matches!(packet.proto, ICMP | ICMPV6), "{packet:02x?}");
    let l4 = &packet.payload;
    IcmpError {
        from: packet.src.to_string(),
        kind: l4[0],
        code: l4[1],
        word: u32::from_be_bytes(l4[4..8].try_into().unwrap()),
        quote: l4[8..].to_vec(),
    }
}
