//! `causeway replay`: the pipeline of a file over captures.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use clap::Args;

use super::{CANNOT, NOT_WELL, fail};
use crate::{
    config::{self, Config},
    control::replay::{self, Outcome},
    io::pcap::{PcapPort, PcapSink, PcapSource},
};

/// Run a file's pipeline over captures, with the captures' own time, and write what each port sends.
///
/// The result depends on the file and the captures alone: the same run gives the same bytes. Sequence numbers start
/// at 1 each time, so what a replay has sealed must never be sent anywhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway replay idc.toml --port lan=lan.pcap --out out
  causeway replay idc.toml --port lan=lan.pcap --port wan=wan.pcapng --out out --json

Writes OUT/NAME.pcap for every port of the file, and OUT/counters.json. A port without a capture receives nothing.
Frames for a port must go to its `mac`, or, where the file names none, to the address that is printed.")]
pub struct Replay {
    /// The configuration file.
    file: PathBuf,
    /// What a port receives: a pcap or pcapng capture. Once for each port.
    #[arg(long = "port", value_name = "NAME=CAPTURE", required = true)]
    ports: Vec<Input>,
    /// The directory to write to. It is made where there is none.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the counters as JSON instead of a summary.
    #[arg(long)]
    json: bool,
}

/// A capture for a port.
#[derive(Debug, Clone)]
struct Input {
    port: String,
    capture: PathBuf,
}

impl FromStr for Input {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((port, capture)) if !port.is_empty() && !capture.is_empty() => {
                Ok(Self { port: port.into(), capture: capture.into() })
            }
            _ => Err("write the name of a port, an equals sign and the path of a capture: lan=lan.pcap"),
        }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Replay) -> ExitCode {
    let config = match config::load(&args.file) {
        Ok((config, warnings)) => {
            super::check::warn(&warnings);
            config
        }
        Err(errors) => return super::check::report(errors),
    };
    let names: Vec<&str> = config.ports.iter().map(|port| port.name.value.as_str()).collect();
    let ports = match ports(args, &names) {
        Ok(ports) => ports,
        Err(error) => return fail(&error, CANNOT),
    };
    let outcome = match replay::replay(&config, ports) {
        Ok(outcome) => outcome,
        Err(error) => return fail(&error, CANNOT),
    };
    let text = format!("{:#}\n", outcome.counters);
    let path = args.out.join(COUNTERS);
    if let Err(error) = fs::write(&path, &text) {
        return fail(&format!("cannot write {}: {error}", path.display()), CANNOT);
    }
    if args.json {
        print!("{text}")
    } else {
        summary(&config, &names, &outcome, &args.out)
    }
    for (_, error) in &outcome.failed {
        eprintln!("causeway: {error}");
    }
    if !outcome.balances() {
        let (ledger, missing) = (&outcome.ledger, outcome.frames_missing);
        return fail(
            &format!("not every packet is accounted for: {ledger:?}, {missing} buffers missing"),
            NOT_WELL,
        );
    }
    if outcome.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) }
}

const COUNTERS: &str = "counters.json";

/// Opens what is read before anything is written, so that no mistake costs a file.
fn ports(args: &Replay, names: &[&str]) -> Result<Vec<PcapPort>, String> {
    let mut inputs: Vec<Option<&Path>> = vec![None; names.len()];
    for input in &args.ports {
        let Some(place) = names.iter().position(|name| *name == input.port) else {
            let near = names.iter().find(|name| strsim::damerau_levenshtein(name, &input.port) <= 2);
            let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or(".".into());
            let (file, all) = (args.file.display(), names.join(", "));
            return Err(format!("{file} has no port {}{near} There are: {all}", input.port));
        };
        if inputs[place].replace(&input.capture).is_some() {
            return Err(format!(
                "port {} is given two captures; join them with mergecap, and give one",
                input.port
            ));
        }
    }
    let mut sources = Vec::new();
    for input in &inputs {
        sources.push(input.map(PcapSource::open).transpose().map_err(|error| error.to_string())?);
    }
    let outputs: Vec<PathBuf> = names.iter().map(|name| args.out.join(format!("{name}.pcap"))).collect();
    let counters = args.out.join(COUNTERS);
    for output in outputs.iter().chain([&counters]) {
        let read = inputs.iter().flatten().copied().chain([args.file.as_path()]);
        if let Some(input) = read.into_iter().find(|input| is_same_file(input, output)) {
            return Err(format!(
                "{} would be overwritten, and is read: choose another directory for --out",
                input.display()
            ));
        }
    }
    let out = &args.out;
    fs::create_dir_all(out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
    let port = |(source, output): (Option<PcapSource>, &PathBuf)| {
        let sink = PcapSink::create(output)?;
        PcapPort::new(source, Some(sink))
    };
    sources.into_iter().zip(&outputs).map(|pair| port(pair).map_err(|error| error.to_string())).collect()
}

/// Whether two paths lead to one file, by whatever names and links.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    identity(one).is_some_and(|identity_of_one| identity(other) == Some(identity_of_one))
}

fn summary(config: &Config, names: &[&str], outcome: &Outcome, out: &Path) {
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    for (place, name) in names.iter().enumerate() {
        let mac = crate::control::ports::derived_mac(config, &config.ports[place]);
        let (received, sent) = (outcome.received[place], outcome.sent[place]);
        println!("{name:width$}  {mac}  {received} received, {sent} sent");
    }
    let ledger = &outcome.ledger;
    println!(
        "{} received + {} originated = {} sent + {} delivered + {} dropped",
        ledger.received, ledger.originated, ledger.sent, ledger.delivered, ledger.dropped
    );
    for (reason, count) in &outcome.drops {
        println!("  {count} {}", reason.name());
    }
    println!("captures and {COUNTERS} are in {}", out.display());
}
