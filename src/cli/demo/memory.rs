//! x
use std::process::ExitCode;
use super::{Demo, DemoError, Interrupt};
/// Runs.
pub fn run(_: &Demo, _: &Interrupt) -> Result<ExitCode, DemoError> { Err(DemoError::Interrupted) }
