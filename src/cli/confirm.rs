//! `causeway confirm`: what was applied last is to stay.

use std::process::ExitCode;

use clap::Args;

use super::{
    CANNOT,
    apply::{Refused, connect},
    fail, print,
    show::find::Which,
};
use crate::control::view::{Request, Word};

/// Keep a change that was made with --confirm.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  causeway apply new.toml --yes --confirm 60s && ping -c 3 10.1.0.1 && causeway confirm

Exit code 1: nothing waits to be confirmed, or it was too late.")]
pub struct Confirm {
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Confirm) -> ExitCode {
    let mut client = match connect(&args.which) {
        Ok(client) => client,
        Err(error) => return fail(&error, CANNOT),
    };
    match client.ask(&Request::Word(Word::Confirm)) {
        Ok(_) => {
            print("confirmed\n");
            ExitCode::SUCCESS
        }
        Err(error) => Refused::from(error).fail(),
    }
}
