//! What threads share things with; tests that walk through every interleaving put loom's in its place.

pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
pub use std::thread::yield_now;
