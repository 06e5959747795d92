//! `causeway apply`: makes a running gateway take up a file; and what other commands that change it share.

use std::{
    fmt,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;

use super::{CANNOT, NOT_WELL, fail, print, show::find::Which};
use crate::{
    config::Interval,
    control::{
        apply::{ApplyFile, Came, Outcome},
        gateway::socket_path,
        socket_client::{Client, ClientError},
        view::Request,
    },
};

/// How long a file of many routes may take, behind others.
const PATIENCE: Duration = Duration::from_secs(300);

/// Check a file, say what it changes, and make a running gateway take it up without losing a packet.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway apply new.toml                     # shows what changes, and asks
  causeway apply new.toml --dry-run
  causeway apply new.toml --yes --confirm 60s # goes back by itself, unless `causeway confirm` comes in time
  causeway rollback                           # back to what was in force before

What has not changed goes on: packets, sessions, sequence numbers, counters. A file with errors, or with a change that
needs a restart, changes nothing. From then on `causeway reload` and SIGHUP read this file; a restart takes the one
of its command line. Nothing is copied anywhere. What nobody has confirmed is not taken up by a restart either: when the
gateway ends meanwhile, the next start takes what was in force before. The gateway reads the file itself: with
PrivateTmp or ProtectHome of systemd it does not see /tmp or /home.
Exit code 1: the file is not taken up.")]
pub struct Apply {
    /// The configuration file.
    file: PathBuf,
    #[command(flatten)]
    how: HowToApply,
    #[command(flatten)]
    which: Which,
}

/// How to go about a change.
#[derive(Debug, Args)]
pub struct HowToApply {
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask. Needed where nobody can be asked.
    #[arg(long, short, conflicts_with = "dry_run")]
    yes: bool,
    /// Take the change back after this time, unless `causeway confirm` comes before.
    #[arg(long, value_name = "TIME", conflicts_with = "dry_run")]
    confirm: Option<Interval>,
    /// Print what came of it as JSON.
    #[arg(long)]
    json: bool,
}

/// Why nothing came of a request.
#[derive(Debug)]
pub struct Refused {
    message: String,
    report: Option<String>,
    code: u8,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(report) = &self.report {
            writeln!(f, "{report}")?;
        }
        write!(f, "causeway: {}", self.message)
    }
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { message, answer } => {
                let report = answer.get("report").and_then(|report| report.as_str()).map(str::to_owned);
                Refused { message, report, code: NOT_WELL }
            }
            error => Refused { message: error.to_string(), report: None, code: CANNOT },
        }
    }
}

impl Refused {
    /// Prints it, and gives the exit code.
    pub fn fail(&self) -> ExitCode {
        eprintln!("{self}");
        ExitCode::from(self.code)
    }
}

/// Connects to a gateway.
///
/// # Errors
/// It is not there.
pub fn connect(which: &Which) -> Result<Client, String> {
    let run_dir = which.run_dir().map_err(|error| error.to_string())?;
    Client::connect(&socket_path(&run_dir), PATIENCE).map_err(|error| error.to_string())
}

/// Asks for a change, and waits for what comes of it.
///
/// # Errors
/// [`Refused`].
pub fn outcome(client: &mut Client, request: &Request) -> Result<Outcome, Refused> {
    let answer = client.ask(request)?;
    serde_json::from_value(answer).map_err(|error| ClientError::Answer(error.to_string()).into())
}

/// Runs the command.
#[must_use]
pub fn run(args: &Apply) -> ExitCode {
    let file = match std::path::absolute(&args.file) {
        Ok(file) => file,
        Err(error) => return fail(&error, CANNOT),
    };
    change(&args.how, &args.which, |dry_run, confirm, digest, generation| {
        Request::Apply(ApplyFile { apply: file.clone(), dry_run, confirm, digest, generation })
    })
}

/// Shows what a change would be, asks, and makes it. What is made is what was shown, or nothing.
pub fn change(
    how: &HowToApply,
    which: &Which,
    request: impl Fn(bool, Option<u64>, Option<String>, Option<u64>) -> Request,
) -> ExitCode {
    let confirm = how.confirm.map(|time| time.0.as_secs().max(1));
    let mut client = match connect(which) {
        Ok(client) => client,
        Err(error) => return fail(&error, CANNOT),
    };
    let shown = match outcome(&mut client, &request(true, None, None, None)) {
        Ok(shown) => shown,
        Err(refused) => return refused.fail(),
    };
    if !how.json {
        if let Some(report) = &shown.report {
            eprintln!("{report}");
        }
        print(&format!("{}\n", shown.difference));
    }
    if how.dry_run || shown.result == Came::NeedsRestart {
        if how.json {
            print(&format!("{:#}\n", serde_json::json!(shown)));
        }
        return match (shown.result, how.dry_run) {
            (Came::NeedsRestart, _) => {
                fail(&"nothing has changed: restart the gateway for this file", NOT_WELL)
            }
            _ => ExitCode::SUCCESS,
        };
    }
    if shown.result != Came::Unchanged && !how.yes && !asked() {
        return fail(&"nothing has changed", NOT_WELL);
    }
    match outcome(&mut client, &request(false, confirm, Some(shown.digest), Some(shown.generation))) {
        Ok(done) => {
            match how.json {
                true => print(&format!("{:#}\n", serde_json::json!(done))),
                false => print(&said(&done)),
            }
            ExitCode::SUCCESS
        }
        Err(refused) => refused.fail(),
    }
}

/// What came of a change, for people.
#[must_use]
pub fn said(done: &Outcome) -> String {
    let mut text = match done.result {
        Came::Unchanged => format!("in force already: generation {} says the same\n", done.generation),
        _ => format!("in force: generation {}\n", done.generation),
    };
    if let Some(seconds) = done.confirm {
        text += &format!("taken back in {seconds} s, unless `causeway confirm` comes before\n");
    }
    done.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
    text
}

fn asked() -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("causeway: nobody can be asked here: say --yes");
        return false;
    }
    eprint!("apply this? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}
