//! The worker loop, the pipeline and the publication of tables.
