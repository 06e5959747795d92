//! `causeway demo-inside`: goes into a network namespace and becomes another program there. The demo starts everything
//! by it, so that nothing outlives the demo, however that ends.

use std::{
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::network;
use crate::cli::{CANNOT, fail};

/// Run a program in a network namespace.
#[derive(Debug, Args)]
pub struct Inside {
    /// The namespace's file.
    #[arg(long)]
    namespace: PathBuf,
    /// End with this process, which must be the parent.
    #[arg(long)]
    parent: Option<u32>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

/// Runs the command. Returns only if it fails.
#[must_use]
pub fn run(args: &Inside) -> ExitCode {
    let what = args.program.first().map_or("", String::as_str);
    fail(&format!("cannot run {what} in {}: {}", args.namespace.display(), become_program(args)), CANNOT)
}

fn become_program(args: &Inside) -> io::Error {
    if let Some(parent) = args.parent {
        if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
            return error.into();
        }
        // It may have ended before it was listened to.
        if getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get() as u32) != Some(parent) {
            return io::Error::other("the process that asked for it has ended");
        }
    }
    if let Err(error) = network::enter(&args.namespace) {
        return error;
    }
    let [program, arguments @ ..] = args.program.as_slice() else {
        return io::ErrorKind::InvalidInput.into();
    };
    Command::new(program).args(arguments).exec()
}
