//! Per-worker counters and the memory-mapped segment that readers map.
//!
//! Every counter has one writer, which adds by a plain load and store; readers map the file and sum the workers'
//! blocks, so they never disturb a worker. The segment describes itself ([`Layout`]), so a reader needs nothing
//! but the file.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod columns;
pub mod counters;
pub mod layout;
pub mod segment;

pub use counters::{
    HealthColumn, LimitColumn, PoolColumn, PortColumn, SaColumn, StageColumn, TrafficColumn, WorkerColumn,
    WorkerCounters,
};
pub use layout::{Group, Layout};
pub use segment::{Reader, Segment, SegmentError};
