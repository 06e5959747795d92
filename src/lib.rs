//! Causeway: a poll-mode packet gateway.
//!
//! The library is a stack of layers, and imports run one way only, each layer using those before it:
//!
//! | layer | what lives there |
//! |---|---|
//! | [`wire`] | header views over bytes |
//! | [`crypto`] | AEAD backends, sequence numbers, replay window |
//! | [`packet`] | frames, UMEM, bursts, metadata, drop reasons |
//! | [`stats`] | per-worker counters and the segment that readers map |
//! | [`table`] | what workers look up: LPM, SPD, SAD, NAT, neighbours |
//! | [`stage`] | one file a step of the pipeline |
//! | [`io`] | ports: AF_XDP, AF_PACKET, TAP, pcap, memory, faults |
//! | [`runtime`] | worker loop, pipeline, publication of tables, affinity |
//! | [`config`] | the file's schema, its checks, and what is built from it |
//! | [`control`] | neighbours, reload, the control socket |
//! | [`cli`] | a file per subcommand |
//!
//! `tests/layering.rs` fails when an import runs the other way.

pub mod cli;
pub mod config;
pub mod control;
pub mod crypto;
pub mod io;
pub mod packet;
pub mod runtime;
pub mod stage;
pub mod stats;
pub mod table;
pub mod wire;
