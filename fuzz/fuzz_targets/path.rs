//! Hostile frames through a whole gateway; `tests/fuzz_targets.rs` runs the same on stable.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| causeway::control::fuzz::path(bytes));
