//! The configuration file: its schema, its checks, and what is built from it.
