//! `causeway reload`: makes a running gateway read its file again, and says what came of it.

use std::process::ExitCode;

use clap::Args;

use super::{CANNOT, NOT_WELL, fail, show::find::Which};
use crate::control::{
    gateway::socket_path,
    socket_client::{Client, ClientError},
    view::{Request, Word},
};

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
    let run_dir = match args.which.run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => return fail(&error, CANNOT),
    };
    let answer = Client::connect(&socket_path(&run_dir))
        .and_then(|mut client| client.ask(&Request::Word(Word::Reload)));
    match answer {
        Ok(answer) => {
            if let Some(warnings) = answer.get("report").and_then(|w| w.as_str()) {
                eprintln!("{warnings}");
            }
            println!("the file is in force");
            ExitCode::SUCCESS
        }
        Err(ClientError::Refused { message, answer }) => {
            if let Some(report) = answer.get("report").and_then(|r| r.as_str()) {
                eprintln!("{report}");
            }
            fail(&message, NOT_WELL)
        }
        Err(error) => fail(&error, CANNOT),
    }
}
