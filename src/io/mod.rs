//! Ports: where bursts of frames come from and go to.
