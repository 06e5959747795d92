//! `causeway explain`: what a gateway does with a packet, and what decides it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::Value;

use super::{CANNOT, fail, show::find::Which};
use crate::{
    config,
    control::{
        explain::{self, Packet},
        gateway::socket_path,
        socket_client::{Client, ClientError},
        view::{Explain as Question, Request},
    },
};

/// How long a running gateway may take to answer: it builds what it needs while it does its other work.
const PATIENCE: Duration = Duration::from_secs(10);

/// Say what would happen to a packet, stage by stage, and which policy, route, NAT rule or tunnel decides.
///
/// The packet goes through the pipeline of the file, over ports in memory and with all neighbours known: nothing is
/// sent, and no running gateway is asked. With --live the running gateway is asked instead: by its own tables, with what
/// it knows now of neighbours, ways that are down, path MTUs, keys and NAT sessions; nothing is sent or counted.
#[derive(Debug, Args)]
#[command(
    override_usage = "causeway explain [OPTIONS] <FILE> <PACKET>...\n       causeway explain [OPTIONS] --live <RUN_DIR|NAME> <PACKET>...",
    after_help = "\
The packet:
  from ADDRESS to ADDRESS   IPv4 or IPv6
  tcp|udp SPORT>DPORT       or only the destination port: tcp 443
  icmp|icmpv6 TYPE/CODE     or TYPE CODE, or neither: an echo request
  protocol NUMBER           any other protocol above IP, 0 to 255; also esp, gre, ospf, sctp
  in GATEWAY                it comes in by the first interface of the gateway's local side
  in GATEWAY from-peer      by the first of its peer side
  on INTERFACE              it comes in by this interface
  size BYTES                of the IP packet
  df                        IPv4: do not fragment
  ttl NUMBER                TTL or hop limit as it comes in, 64 where nothing is said

Examples:
  causeway explain idc.toml \"from 10.1.0.5 to 203.0.113.10 tcp 51000>443 in idc\"
  causeway explain idc.toml \"from 10.1.0.5 to 203.0.113.10 udp 53 size 1500 df on lan\"
  causeway explain idc.toml \"from 203.0.113.10 to 10.1.0.5 icmp 8/0 in idc from-peer\" --json
  causeway explain --live idc \"from 10.1.0.5 to 203.0.113.10 tcp 51000>443 in idc\""
)]
pub struct Explain {
    /// Ask the running gateway of this name, or in this run directory.
    #[arg(long, value_name = "RUN_DIR|NAME")]
    live: Option<PathBuf>,
    /// The configuration file, but with --live; then the packet, in words; see below.
    #[arg(required = true, num_args = 1.., value_name = "FILE PACKET")]
    words: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Explain) -> ExitCode {
    let told = match (&args.live, args.words.split_first()) {
        (Some(gateway), _) => live(gateway, &args.words.join(" ")),
        (None, Some((file, packet))) if !packet.is_empty() => of_file(Path::new(file), &packet.join(" ")),
        (None, _) => Err(fail(&"the packet is missing: write it behind the file; see --help", 2)),
    };
    match told {
        Ok(told) => {
            print(&told, args.json);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn packet(words: &str) -> Result<Packet, ExitCode> {
    explain::parse(words).map_err(|error| fail(&error, 2))
}

fn of_file(file: &Path, words: &str) -> Result<Value, ExitCode> {
    let packet = packet(words)?;
    let config = match config::load(file) {
        Ok((config, warnings)) => {
            super::check::warn(&warnings);
            config
        }
        Err(errors) => return Err(super::check::report(errors)),
    };
    // Only for numbers of lines.
    let text = std::fs::read_to_string(file).ok().map(zeroize::Zeroizing::new);
    let told = explain::explain(&config, &packet, text.as_ref().map(|text| text.as_str()));
    Ok(told.map_err(|error| fail(&error, CANNOT))?.to_json())
}

/// Asks a running gateway.
fn live(gateway: &Path, words: &str) -> Result<Value, ExitCode> {
    // What is wrong with the words is best said before anybody is asked.
    packet(words)?;
    let which = Which::of(gateway);
    let run_dir = which.run_dir().map_err(|error| fail(&error, CANNOT))?;
    let ask = || -> Result<Value, ClientError> {
        let mut client = Client::connect(&socket_path(&run_dir), PATIENCE)?;
        client.ask(&Request::Explain(Question { explain: words.into() }))
    };
    ask().map_err(|error| fail(&error, CANNOT))
}

fn print(told: &Value, as_json: bool) {
    if as_json {
        println!("{told:#}");
        return;
    }
    let of = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_string();
    let steps = told["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let width = steps.iter().map(|step| of(step, "stage").len()).max().unwrap_or(0);
    for step in steps {
        println!("{:width$}  {}", of(step, "stage"), of(step, "text"));
    }
    println!("{:width$}  {}", "=>", of(told, "ending"));
}
