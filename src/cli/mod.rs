//! The commands, one file each.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub mod apply;
pub mod bench;
pub mod check;
pub mod confirm;
pub mod demo;
pub mod diff;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod history;
pub mod limit;
pub mod nat;
pub mod reload;
pub mod replay;
pub mod rollback;
pub mod route;
pub mod run;
pub mod sa;
pub mod show;

/// A poll-mode packet gateway: VLAN, NAT, SPD, LPM and AES-GCM ESP over AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "causeway", version, about, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What is written to the log: a level (error, warn, info, debug, trace), or levels by module.
    #[arg(long, global = true, value_name = "FILTER", env = "CAUSEWAY_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; everything is well
  1  what was asked for is not well: errors in a file, a problem of the machine, packets not accounted for
  2  the command line is wrong
  3  it cannot be done here: no privilege, no device, no such gateway, a tool is missing
  4  a bug: please report it with what was printed";

/// Exit code: what was asked for is not well.
pub const NOT_WELL: u8 = 1;
/// Exit code: it cannot be done here.
pub const CANNOT: u8 = 3;
/// Exit code: a bug.
pub const BUG: u8 = 4;

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway that a file describes.
    Run(run::Run),
    /// Check a file: every error at once, each with its place and what would be right.
    Check(check::Check),
    /// Say what would happen to a packet, stage by stage, and what decides.
    Explain(explain::Explain),
    /// Run a file's pipeline over captures, with the captures' own time, and write what each port sends.
    Replay(replay::Replay),
    /// Show what a running gateway counts and knows.
    Show(show::Show),
    /// Add routes to a running gateway, or remove them.
    Route(route::Route),
    /// End NAT sessions of a running gateway.
    Nat(nat::Nat),
    /// Take an interface or tunnel of a running gateway out of service: traffic goes another way.
    Drain(drain::Drain),
    /// Put an interface or tunnel that was drained back into service.
    Undrain(drain::Undrain),
    /// Let traffic come back to an interface or tunnel that works again.
    Failback(drain::Failback),
    /// Show and change limits of a running gateway, effective with the next burst.
    Limit(limit::Limit),
    /// Say what two configurations say differently, or a file and a running gateway.
    Diff(diff::Diff),
    /// Check a file, say what it changes, and make a running gateway take it up.
    Apply(apply::Apply),
    /// Keep a change that was made with --confirm.
    Confirm(confirm::Confirm),
    /// Make a running gateway return to a configuration that was in force before.
    Rollback(rollback::Rollback),
    /// List the configurations that were in force last.
    History(history::History),
    /// Make a running gateway read its file again, and wait for what comes of it.
    Reload(reload::Reload),
    /// Change the keys of a running gateway's tunnel, and lose no packet by it.
    Sa(sa::Sa),
    /// Measure the pipeline of this program on this machine, without any I/O.
    Bench(bench::Bench),
    /// Say what this machine offers, and what to do about it.
    Doctor(doctor::Doctor),
    /// See it work: two gateways, two hosts, and real traffic between them.
    Demo(demo::Demo),
    #[command(hide = true)]
    DemoInside(demo::inside::Inside),
    #[command(hide = true)]
    DemoHost(demo::traffic::Host),
    /// Print a shell's completion script.
    #[command(after_help = "Example:\n  causeway completions bash > /etc/bash_completion.d/causeway")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log);
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("causeway: --log {}: {error}", cli.log);
            return ExitCode::from(2);
        }
    };
    // Colours are for terminals, not for files and journals.
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(colours).init();
    match cli.command {
        Command::Check(_)
        | Command::Replay(_)
        | Command::Bench(_)
        | Command::Doctor(_)
        | Command::Explain(_) => {
            end_when_nobody_reads();
        }
        // The others write to sockets too, whose other end may go, and look after it themselves.
        _ => {}
    }
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Route(args) => route::run(&args),
        Command::Nat(args) => nat::run(&args),
        Command::Drain(args) => drain::drain(&args),
        Command::Undrain(args) => drain::undrain(&args),
        Command::Failback(args) => drain::failback(&args),
        Command::Limit(args) => limit::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Confirm(args) => confirm::run(&args),
        Command::Rollback(args) => rollback::run(&args),
        Command::History(args) => history::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Sa(args) => sa::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::DemoInside(args) => demo::inside::run(&args),
        Command::DemoHost(args) => demo::traffic::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "causeway", &mut script);
            // Whoever reads may stop in the middle, as `head` does.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
            ExitCode::SUCCESS
        }
    }
}

/// Whoever reads the output may stop in the middle, as `head` does: then the program ends as others do, without a word.
fn end_when_nobody_reads() {
    use signal_hook::{consts::SIGPIPE, flag::register_conditional_default};
    let always = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    if let Err(error) = register_conditional_default(SIGPIPE, always) {
        tracing::debug!(%error, "SIGPIPE stays ignored");
    }
}

/// Prints to the standard output. Whoever reads may stop in the middle, as `head` does.
pub(crate) fn print(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
}

/// Prints an error of a command to the standard error, as one sentence.
pub(crate) fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("causeway: {error}");
    ExitCode::from(code)
}
