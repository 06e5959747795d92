//! `causeway doctor`: what this machine offers a gateway, and what to do about what it lacks.
//!
//! [`Facts`] are read from `/proc`, `/sys` and `ethtool`; [`examine`] turns them into [`Check`]s and touches nothing,
//! so each piece of advice is tested against a machine made of files.

mod devices;
pub mod drivers;
pub mod facts;
mod machine;
mod print;

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::{Command, ExitCode},
};

use serde::Serialize;

pub use facts::Facts;

/// Checks whether this machine is fit for a gateway.
///
/// Without a device, every Ethernet device is looked at, and what would harm it as a port is a warning. A device that
/// is named is taken for a port: the same is then a problem. The exit code is 0 without a problem and 1 with one.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Network devices that are to be ports [default: all are looked at]
    #[arg(value_name = "DEVICE")]
    pub devices: Vec<String>,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Neither good nor bad, but good to know.
    Info,
    /// The gateway runs, but slower or at a risk.
    Warning,
    /// The gateway will not run, or will do the wrong thing.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it belongs to: `kernel`, `privileges`, `memory`, `processor`, or the name of a device.
    pub area: String,
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// All checks, and how many came out badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order they are printed: checks of one area stand together.
    pub checks: Vec<Check>,
    /// How many are warnings.
    pub warnings: usize,
    /// How many are problems.
    pub problems: usize,
}

impl Report {
    /// 0 without a problem, 1 with one.
    #[must_use]
    pub const fn code(&self) -> u8 {
        (self.problems > 0) as u8
    }

    /// The report for a person, `width` columns wide at most where words allow it.
    #[must_use]
    pub fn text(&self, colour: bool, width: usize) -> String {
        print::text(self, colour, width)
    }
}

/// What to make of the facts.
#[must_use]
pub fn examine(facts: &Facts) -> Report {
    let mut checks = machine::checks(facts);
    for device in &facts.devices {
        checks.extend(devices::checks(facts, device));
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (warnings, problems) = (count(Status::Warning), count(Status::Problem));
    Report { checks, warnings, problems }
}

/// Looks at this machine and prints the report.
#[must_use]
pub fn run(args: &Doctor) -> ExitCode {
    let report = examine(&Facts::gather(Path::new("/"), &ethtool, &args.devices));
    let mut out = io::stdout().lock();
    let text = if args.json {
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    } else {
        report.text(out.is_terminal() && wants_colour(), 100)
    };
    // A reader that has gone away (`| head`) changes nothing about the verdict.
    let _ = out.write_all(text.as_bytes());
    ExitCode::from(report.code())
}

/// What `ethtool` with these arguments prints; `None` if it is not installed or refuses.
#[must_use]
pub fn ethtool(arguments: &[&str]) -> Option<String> {
    let output = Command::new("ethtool").args(arguments).env("LC_ALL", "C").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// <https://no-color.org>: set and not empty means none.
fn wants_colour() -> bool {
    let unset = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    unset && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Makes the checks of one area.
struct Area<'a> {
    name: &'a str,
    checks: Vec<Check>,
}

impl<'a> Area<'a> {
    const fn new(name: &'a str) -> Self {
        Self { name, checks: Vec::new() }
    }

    fn add(
        &mut self,
        status: Status,
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let advice = Some(advice.into()).filter(|advice| !advice.is_empty());
        self.checks.push(Check { area: self.name.to_owned(), name, status, found: found.into(), advice });
    }
}
