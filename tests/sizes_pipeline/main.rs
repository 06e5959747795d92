//! Sizes and headers around IPsec, through the real pipeline in one thread: what is divided, put together, padded, marked
//! and told to senders. After every packet the books must balance; see [`common::Lab`].

#[path = "../common/mod.rs"]
mod common;

mod mtu;
mod reassembly;
mod sites;
