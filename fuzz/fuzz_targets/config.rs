//! Hostile configuration files: read, checked, and, where they are good, built into tables; `tests/fuzz_targets.rs`
//! runs the same on stable.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    causeway::control::fuzz::config(bytes);
});
