//! Starts programs built for the machine that this test was built for, which may not be the one that it runs on.

use std::{ffi::OsStr, process::Command};

/// A command that runs `program`: by what `CAUSEWAY_TEST_RUNNER` names, words apart, where it is set. An emulator of user
/// programs does not follow into those that they start (see `scripts/test-aarch64`).
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let runner = std::env::var("CAUSEWAY_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(emulator) = words.next() else { return Command::new(program) };
    let mut command = Command::new(emulator);
    command.args(words).arg(program);
    command
}
