//! `causeway nat`: what an operator does about translations.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{CANNOT, NOT_WELL, fail, show::find::Which};
use crate::control::{
    gateway::socket_path,
    socket_client::{Client, ClientError},
    view::{EndSession, Request},
};

/// How long the control thread may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// End NAT sessions of a running gateway. `causeway show nat` lists them.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Nat {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum What {
    /// End a session. Its next packet begins a new one, where a rule lets it.
    #[command(after_help = "\
Example:
  causeway show nat sessions --address 10.2.0.5
  causeway nat end 0-17-3

Exit code 1: the session has ended already.")]
    End {
        /// The session, as the first column of `causeway show nat sessions` names it.
        session: String,
    },
}

/// Runs the command.
#[must_use]
pub fn run(args: &Nat) -> ExitCode {
    let run_dir = match args.which.run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => return fail(&error, CANNOT),
    };
    let What::End { session } = &args.what;
    let request = Request::EndSession(EndSession { end_session: session.clone() });
    let answer =
        Client::connect(&socket_path(&run_dir), PATIENCE).and_then(|mut client| client.ask(&request));
    match answer {
        Ok(_) => ExitCode::SUCCESS,
        Err(ClientError::Refused { message, .. }) => fail(&message, NOT_WELL),
        Err(error) => fail(&error, CANNOT),
    }
}
