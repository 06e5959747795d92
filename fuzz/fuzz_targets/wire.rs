//! Hostile bytes against every header view; `tests/wire_exercise.rs` runs the same on stable.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| causeway::wire::fuzz::exercise(bytes));
