//! `causeway reload`: makes a running gateway read its file again, and says what came of it.

use std::process::ExitCode;

use clap::Args;

use super::{
    CANNOT,
    apply::{connect, outcome, said},
    fail, print,
    show::find::Which,
};
use crate::control::view::{Request, Word};

/// Make a running gateway read its file again, and wait for what comes of it. As SIGHUP, but with an answer.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway reload
  causeway reload --name idc && echo taken up

A file with errors changes nothing; the errors are printed, with their places, and the exit code is 1.")]
pub struct Reload {
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Reload) -> ExitCode {
    let mut client = match connect(&args.which) {
        Ok(client) => client,
        Err(error) => return fail(&error, CANNOT),
    };
    match outcome(&mut client, &Request::Word(Word::Reload)) {
        Ok(done) => {
            if let Some(warnings) = &done.report {
                eprintln!("{warnings}");
            }
            if !done.difference.is_empty() {
                print(&format!("{}\n", done.difference));
            }
            print(&said(&done));
            ExitCode::SUCCESS
        }
        Err(refused) => refused.fail(),
    }
}
