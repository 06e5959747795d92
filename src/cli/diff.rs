//! `causeway diff`: what two configurations say differently.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{apply, print, show::find::Which};
use crate::{
    config::{FileText, diff},
    control::apply::ApplyFile,
    control::view::Request,
};

/// Say what two configurations say differently, section by section: what is new, gone, and has other values.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway diff old.toml new.toml
  causeway diff new.toml --live             # against what a running gateway does now
  causeway diff new.toml --live --name idc --json

Order, spelling, remarks and defaults written out are no difference; the order of policies and NAT rules is one.
Of keys nothing is shown but that they are others. Each change says whether it takes effect while the gateway runs;
[restart] marks those that do not.

Exit codes, as those of diff:
  0  no difference
  1  there are differences
  2  they cannot be compared: a file has errors, or no gateway answers")]
pub struct Diff {
    /// A configuration file.
    file: PathBuf,
    /// Another, which may take its place.
    #[arg(required_unless_present = "live", conflicts_with = "live")]
    other: Option<PathBuf>,
    /// Compare what a running gateway does with the file.
    #[arg(long)]
    live: bool,
    /// Print the differences as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

const TROUBLE: u8 = 2;

/// Runs the command.
#[must_use]
pub fn run(args: &Diff) -> ExitCode {
    let difference = match &args.other {
        None => live(args),
        Some(other) => two(&args.file, other),
    };
    let difference = match difference {
        Ok(difference) => difference,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(TROUBLE);
        }
    };
    match args.json {
        true => print(&format!("{:#}\n", serde_json::json!(difference))),
        false => print(&format!("{difference}\n")),
    }
    ExitCode::from(u8::from(!difference.is_empty()))
}

fn two(old: &Path, new: &Path) -> Result<diff::Difference, String> {
    let report = |errors| format!("{:?}", miette::Report::new(errors));
    let (old, _) = FileText::read(old).and_then(|text| text.check(None)).map_err(report)?;
    // A file without a name for the box is for the same box.
    let name = old.system.name.as_str();
    let (new, _) = FileText::read(new).and_then(|text| text.check(Some(name))).map_err(report)?;
    Ok(diff::compare(&old, &new))
}

fn live(args: &Diff) -> Result<diff::Difference, String> {
    let apply = std::path::absolute(&args.file).map_err(|error| error.to_string())?;
    let request = ApplyFile { apply, dry_run: true, confirm: None, digest: None, generation: None };
    let mut client = apply::connect(&args.which).map_err(|error| format!("causeway: {error}"))?;
    let outcome = apply::outcome(&mut client, &Request::Apply(request));
    outcome.map(|outcome| outcome.difference).map_err(|refused| refused.to_string())
}
