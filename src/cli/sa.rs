//! `causeway sa`: changes the keys of a running gateway's tunnels, one step at a time.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{CANNOT, NOT_WELL, fail, show::find::Which};
use crate::control::{
    gateway::socket_path,
    socket_client::{Client, ClientError},
    view::{Request, Sa as Change, SaChange},
};

/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Change the keys of a running gateway's tunnel: first add what opens, on both ends; then switch what seals, on both
/// ends; then retire what opened before.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples, on one end; SPIs and keys cross over on the other:
  causeway sa add dc --spi 0x2002 --key-file /etc/causeway/dc-in-2.key
  causeway sa switch dc --spi 0x1002 --key-file /etc/causeway/dc-out-2.key   # once the other end has added 0x1002
  causeway sa retire dc --spi 0x2001                                         # once the other end has switched

No packet is lost by it. What was changed goes on over reloads, but not over a restart: write it into the file as well.
See docs/ipsec.md."
)]
pub struct Sa {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    which: Which,
}

/// A step.
#[derive(Debug, Subcommand)]
enum What {
    /// Open also what comes under a new SPI and key.
    Add(New),
    /// Seal from now on with another SPI and key.
    Switch(New),
    /// Open nothing more that comes under an SPI.
    Retire(Old),
}

/// A new association.
#[derive(Debug, Args)]
struct New {
    #[command(flatten)]
    association: Old,
    /// The file with the key: AES key and salt as hexadecimal digits, readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
}

/// Which association.
#[derive(Debug, Args)]
struct Old {
    /// The tunnel.
    tunnel: String,
    /// The association's SPI, such as 0x2002.
    #[arg(long, value_parser = number)]
    spi: u32,
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "not a number of 32 bits, such as 8194 or 0x2002".into())
}

/// Runs the command.
#[must_use]
pub fn run(args: &Sa) -> ExitCode {
    let (sa, association, key_file) = match &args.what {
        What::Add(new) => (SaChange::Add, &new.association, Some(&new.key_file)),
        What::Switch(new) => (SaChange::Switch, &new.association, Some(&new.key_file)),
        What::Retire(old) => (SaChange::Retire, old, None),
    };
    let key_file = match key_file.map(std::path::absolute).transpose() {
        Ok(key_file) => key_file,
        Err(error) => return fail(&error, CANNOT),
    };
    let run_dir = match args.which.run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => return fail(&error, CANNOT),
    };
    let request = Change { sa, tunnel: association.tunnel.clone(), spi: association.spi, key_file };
    let answer = Client::connect(&socket_path(&run_dir), PATIENCE)
        .and_then(|mut client| client.ask(&Request::Sa(request)));
    match answer {
        Ok(_) => {
            println!("in force");
            ExitCode::SUCCESS
        }
        Err(ClientError::Refused { message, .. }) => fail(&message, NOT_WELL),
        Err(error) => fail(&error, CANNOT),
    }
}
