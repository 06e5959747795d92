//! `causeway rollback`: back to a configuration that was in force.

use std::process::ExitCode;

use clap::Args;

use super::{
    apply::{HowToApply, change},
    show::find::Which,
};
use crate::control::{apply::Rollback as Back, view::Request};

/// Make a running gateway return to a configuration that was in force before.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway history
  causeway rollback                 # to the one before; again, to the one before that
  causeway rollback 12 --dry-run    # to generation 12 of the history

The last ten are kept, as their files were; key files and environment variables are read anew. The file itself is not
written: correct it before the next reload or restart.")]
pub struct Rollback {
    /// The generation, as `causeway history` has it. Without it the one before.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    generation: Option<u64>,
    #[command(flatten)]
    how: HowToApply,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Rollback) -> ExitCode {
    let rollback = args.generation.unwrap_or(0);
    change(&args.how, &args.which, |dry_run, confirm, digest, generation| {
        Request::Rollback(Back { rollback, dry_run, confirm, digest, generation })
    })
}
