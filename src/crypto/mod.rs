//! AES-GCM for ESP in bursts, sequence numbers that never repeat, and the replay window. Names nothing else of this crate.
