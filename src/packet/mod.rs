//! Frames, UMEM, bursts, metadata and drop reasons.
