//! `causeway drain`, `undrain` and `failback`: which ways out traffic may take.

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};

use super::{CANNOT, NOT_WELL, fail, show::find::Which};
use crate::control::{
    gateway::socket_path,
    health::{
        Kind,
        view::{HealthAction, HealthChange},
    },
    socket_client::{Client, ClientError},
    view::Request,
};

/// How long the control thread may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Take an interface or tunnel of a running gateway out of service. Traffic that has another way takes it with the next
/// packet; probes and BFD go on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway drain tunnel dc-1
  causeway drain interface line-1
  causeway undrain tunnel dc-1

It stays so over reloads and restarts, until `causeway undrain`.")]
pub struct Drain {
    #[command(flatten)]
    way: Way,
}

/// Put an interface or tunnel that was drained back into service.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  causeway undrain tunnel dc-1")]
pub struct Undrain {
    #[command(flatten)]
    way: Way,
}

/// Let traffic come back to an interface or tunnel that works again: one with `failback = \"manual\"`, or one whose
/// hold-down still runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  causeway show health
  causeway failback tunnel dc-1

Exit code 1: it does not work yet, or is in use.")]
pub struct Failback {
    #[command(flatten)]
    way: Way,
}

/// Which one.
#[derive(Debug, Args)]
struct Way {
    /// What it is.
    #[arg(value_enum)]
    kind: KindWord,
    /// Its name.
    #[arg(value_name = "WHICH")]
    way: String,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindWord {
    /// An interface.
    Interface,
    /// A tunnel.
    Tunnel,
}

/// Runs `causeway drain`.
#[must_use]
pub fn drain(args: &Drain) -> ExitCode {
    ask(&args.way, HealthAction::Drain)
}

/// Runs `causeway undrain`.
#[must_use]
pub fn undrain(args: &Undrain) -> ExitCode {
    ask(&args.way, HealthAction::Undrain)
}

/// Runs `causeway failback`.
#[must_use]
pub fn failback(args: &Failback) -> ExitCode {
    ask(&args.way, HealthAction::Failback)
}

fn ask(way: &Way, health: HealthAction) -> ExitCode {
    let run_dir = match way.which.run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => return fail(&error, CANNOT),
    };
    let kind = match way.kind {
        KindWord::Interface => Kind::Interface,
        KindWord::Tunnel => Kind::Tunnel,
    };
    let request = Request::Health(HealthChange { health, kind, name: way.way.clone() });
    let answer =
        Client::connect(&socket_path(&run_dir), PATIENCE).and_then(|mut client| client.ask(&request));
    match answer {
        Ok(done) => {
            println!("{}", done.as_str().unwrap_or("done"));
            ExitCode::SUCCESS
        }
        Err(ClientError::Refused { message, .. }) => fail(&message, NOT_WELL),
        Err(error) => fail(&error, CANNOT),
    }
}
