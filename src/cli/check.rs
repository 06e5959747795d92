//! `causeway check`: every error of a file at once.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::NOT_WELL;
use crate::config::{self, Diagnostics};

/// Check a configuration file: every error at once, each with its place and what would be right.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway check pipelines/direct-connect/gateway.toml
  causeway check --json /etc/causeway/gateway.toml")]
pub struct Check {
    /// The configuration file.
    file: PathBuf,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Check) -> ExitCode {
    let (diagnostics, good) = match config::load(&args.file) {
        Ok((_, warnings)) => (warnings, true),
        Err(errors) => (errors, false),
    };
    if args.json {
        println!("{:#}", diagnostics.to_json());
        return if good { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) };
    }
    if !good {
        return report(diagnostics);
    }
    warn(&diagnostics);
    println!("{}: good", args.file.display());
    ExitCode::SUCCESS
}

/// Prints errors, and says so by the exit code.
pub(crate) fn report(errors: Diagnostics) -> ExitCode {
    eprintln!("{:?}", miette::Report::new(errors));
    ExitCode::from(NOT_WELL)
}

/// Prints warnings, where there are any.
pub(crate) fn warn(warnings: &Diagnostics) {
    if !warnings.problems.is_empty() {
        eprintln!("{:?}", miette::Report::new(warnings.clone()));
    }
}
