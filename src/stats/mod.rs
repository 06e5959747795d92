//! Per-worker counters and the memory-mapped segment that readers map.
