//! ESP and BFD with implementations that nobody here wrote: the Linux kernel in a virtual machine, strongSwan, scapy,
//! and BIRD.
//!
//! Nothing is installed by these tests: `scripts/test` does that. A test whose peer is missing says that it was not
//! run; with `CI` set it fails.

mod bird;
#[path = "../common/mod.rs"]
mod common;
mod kernel;
#[path = "../netns_common/mod.rs"]
mod netns_common;
mod scapy;
mod strongswan;
mod vm;

use std::path::Path;

/// Whether a test can run: as root, and with the programs of its peer.
pub fn can_run(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| find(program).is_none()).collect();
    if !missing.is_empty() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{missing:?} must be there in CI: scripts/test installs them"
        );
        eprintln!("NOT RUN: {missing:?} must be installed: scripts/test does it");
        return false;
    }
    netns_common::is_root()
}

/// The file of a program.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];
    folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists())
}

/// Random bytes as hexadecimal digits.
pub fn random_hex(bytes: usize) -> String {
    (0..bytes).map(|_| format!("{:02x}", rand::random::<u8>())).collect()
}
