//! `causeway route`: routes that are in no file, as a routing daemon or an operator brings them.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{CANNOT, NOT_WELL, fail, show::find::Which};
use crate::{
    config::Prefix,
    control::{
        gateway::socket_path,
        routes::{ChangeRoutes, Learned, RouteLine, Verb},
        socket::MAX_LINE,
        socket_client::{Client, ClientError},
        view::Request,
    },
};

/// How long the control thread may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wrong lines of a file that are shown.
const MOST_COMPLAINTS: usize = 20;

/// Add routes to a running gateway, or remove them, in place: no table is built again. `causeway show routes` lists
/// them. They are in no file: they stay over a reload while their next hop exists, and are gone after a restart.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  causeway route add vpc 10.1.0.0/16 via 192.0.2.1
  causeway route add vpc 10.1.0.0/16 tunnel dc-2 --source ebgp --priority 200
  causeway route delete vpc 10.1.0.0/16 --source ebgp
  causeway route load vpc routes.txt --source ebgp
  birdc show route | my-filter | causeway route load vpc - --source ebgp

A file has one route a line, as on the command line without the gateway: PREFIX via|interface|tunnel|gateway NAME, or
PREFIX blackhole, then if wanted `priority N` and `weight N`. Lines that begin with # are passed over.

Exit code 1: something is wrong with a route; those of the same request are not taken, those of others are."
)]
pub struct Route {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Add a route, or give it another priority or weight.
    Add {
        /// The gateway.
        gateway: String,
        /// The destinations.
        to: Prefix,
        /// `via ROUTER`, `via ROUTER interface NAME`, `interface NAME`, `tunnel NAME`, `gateway NAME` or `blackhole`.
        #[arg(required = true, num_args = 1..=4)]
        next_hop: Vec<String>,
        /// Who says so: routes of the same kind of next hop are preferred in this order.
        #[arg(long, value_enum, default_value = "static")]
        source: Learned,
        /// The lower goes first.
        #[arg(long, default_value_t = 100)]
        priority: u16,
        /// The share of flows, beside equal routes; 1 to 100.
        #[arg(long, default_value_t = 1)]
        weight: u8,
    },
    /// Remove a route; without a next hop, all to the prefix that have the source.
    Delete {
        /// The gateway.
        gateway: String,
        /// The destinations.
        to: Prefix,
        /// As in `add`.
        #[arg(num_args = 0..=4)]
        next_hop: Vec<String>,
        /// Who said so.
        #[arg(long, value_enum, default_value = "static")]
        source: Learned,
    },
    /// Add the routes of a file, many at a time.
    Load {
        /// The gateway.
        gateway: String,
        /// The file; `-` is the standard input.
        file: PathBuf,
        /// Who says so.
        #[arg(long, value_enum, default_value = "ebgp")]
        source: Learned,
        /// Remove them.
        #[arg(long)]
        delete: bool,
    },
}

/// Reads a route's words after its prefix.
fn line(to: Prefix, words: &[&str]) -> Result<RouteLine, String> {
    let mut line = RouteLine {
        to,
        via: None,
        interface: None,
        tunnel: None,
        into: None,
        blackhole: false,
        priority: 100,
        weight: 1,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().ok_or_else(|| format!("{to}: nothing follows {word:?}"));
        let number = |text: &str| format!("{to}: {text:?} is not a number for {word:?}");
        match *word {
            "via" => {
                let text = value()?;
                let router = text.parse::<IpAddr>();
                line.via = Some(router.map_err(|_| format!("{to}: {text:?} is not an address"))?);
            }
            "interface" => line.interface = Some(value()?.into()),
            "tunnel" => line.tunnel = Some(value()?.into()),
            "gateway" => line.into = Some(value()?.into()),
            "blackhole" => line.blackhole = true,
            "priority" => line.priority = value().and_then(|text| text.parse().map_err(|_| number(text)))?,
            "weight" => line.weight = value().and_then(|text| text.parse().map_err(|_| number(text)))?,
            other => {
                let words = "via, interface, tunnel, gateway, blackhole, priority or weight";
                return Err(format!("{to}: {other:?} is none of {words}"));
            }
        }
    }
    Ok(line)
}

/// Runs the command.
#[must_use]
pub fn run(args: &Route) -> ExitCode {
    let run_dir = match args.which.run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => return fail(&error, CANNOT),
    };
    let socket = socket_path(&run_dir);
    match &args.what {
        What::Add { gateway, to, next_hop, source, priority, weight } => {
            let words: Vec<&str> = next_hop.iter().map(String::as_str).collect();
            match line(*to, &words) {
                Ok(line) => {
                    let line = RouteLine { priority: *priority, weight: *weight, ..line };
                    one(&socket, Verb::Add, gateway, *source, line)
                }
                Err(error) => fail(&error, NOT_WELL),
            }
        }
        What::Delete { gateway, to, next_hop, source } => {
            let words: Vec<&str> = next_hop.iter().map(String::as_str).collect();
            match line(*to, &words) {
                Ok(line) => one(&socket, Verb::Delete, gateway, *source, line),
                Err(error) => fail(&error, NOT_WELL),
            }
        }
        What::Load { gateway, file, source, delete } => {
            let verb = if *delete { Verb::Delete } else { Verb::Add };
            let change =
                ChangeRoutes { route: verb, gateway: gateway.clone(), source: *source, routes: vec![] };
            match read(file) {
                Ok(lines) => load(&socket, &change, lines),
                Err((error, code)) => fail(&error, code),
            }
        }
    }
}

fn one(socket: &Path, route: Verb, gateway: &str, source: Learned, line: RouteLine) -> ExitCode {
    let request = ChangeRoutes { route, gateway: gateway.into(), source, routes: vec![line] };
    let mut client = match Client::connect(socket, PATIENCE) {
        Ok(client) => client,
        Err(error) => return fail(&error, CANNOT),
    };
    match client.ask(&Request::Routes(request)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(ClientError::Refused { message, .. }) => fail(&message, NOT_WELL),
        Err(error) => fail(&error, CANNOT),
    }
}

/// Every route of a file; or what is wrong with it, all at once.
fn read(file: &Path) -> Result<Vec<RouteLine>, (String, u8)> {
    let cannot = |error: io::Error| (format!("cannot read {}: {error}", file.display()), CANNOT);
    let input: Box<dyn BufRead> = if file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(file).map_err(cannot)?))
    };
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for (number, text) in (1..).zip(input.lines()) {
        let text = text.map_err(cannot)?;
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let Some((to, rest)) = words.split_first().filter(|(first, _)| !first.starts_with('#')) else {
            continue;
        };
        match to.parse().and_then(|to| line(to, rest)) {
            Ok(line) => lines.push(line),
            Err(error) => wrong.push(format!("line {number}: {error}")),
        }
    }
    if wrong.is_empty() {
        return Ok(lines);
    }
    let count = wrong.len();
    wrong.truncate(MOST_COMPLAINTS);
    let rest =
        if count > wrong.len() { format!("\n… and {} more", count - wrong.len()) } else { String::new() };
    Err((format!("{}: nothing is sent\n{}{rest}", file.display(), wrong.join("\n")), NOT_WELL))
}

/// Requests that are sent before the first is answered, at most: the gateway finds the next as soon as it has time.
const AHEAD: usize = 4;

/// Sends routes, as many at a time as a request holds.
fn load(socket: &Path, change: &ChangeRoutes, mut lines: Vec<RouteLine>) -> ExitCode {
    let mut client = match Client::connect(socket, PATIENCE) {
        Ok(client) => client,
        Err(error) => return fail(&error, CANNOT),
    };
    // Neighbours in the gateway's table one after the other: it writes each part of it once. Of routes to one prefix
    // the later still comes later.
    lines.sort_by_key(|line| (line.to.address(), line.to.length()));
    let mut requests = requests(change, &lines);
    let (mut sent, mut taken, mut changed) = (VecDeque::new(), 0, 0);
    loop {
        while sent.len() < AHEAD
            && let Some((request, count)) = requests.next()
        {
            if let Err(error) = client.send(request) {
                return fail(&error, CANNOT);
            }
            sent.push_back(count);
        }
        let Some(count) = sent.pop_front() else { break };
        match client.receive() {
            Ok(answer) => changed += answer.get("changed").and_then(Value::as_u64).unwrap_or(0),
            Err(ClientError::Refused { message, .. }) => {
                // Those sent ahead stand on their own.
                let others = sent.iter().filter_map(|count| client.receive().is_ok().then_some(*count));
                let taken = taken + others.sum::<usize>();
                return fail(&format!("{message}; {taken} of {} routes were taken", lines.len()), NOT_WELL);
            }
            Err(error) => return fail(&error, CANNOT),
        }
        taken += count;
    }
    println!("{} routes, {changed} of them changed", lines.len());
    ExitCode::SUCCESS
}

/// Requests for all these routes, in JSON, and how many each has.
fn requests(change: &ChangeRoutes, lines: &[RouteLine]) -> impl Iterator<Item = (String, usize)> {
    // The routes are the last field.
    let frame = serde_json::to_string(change).unwrap_or_default();
    let frame = frame.strip_suffix("]}").unwrap_or_default().to_owned();
    let mut lines = lines.iter().filter_map(|line| serde_json::to_string(line).ok()).peekable();
    std::iter::from_fn(move || {
        let (mut text, mut count) = (frame.clone(), 0);
        while let Some(line) = lines.next_if(|line| count == 0 || text.len() + line.len() + 3 < MAX_LINE) {
            if count > 0 {
                text.push(',');
            }
            text.push_str(&line);
            count += 1;
        }
        text.push_str("]}");
        (count > 0).then_some((text, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let to: Prefix = "10.1.0.0/16".parse().unwrap();
        let read =
            line(to, &["via", "192.0.2.1", "interface", "wan", "priority", "7", "weight", "3"]).unwrap();
        assert_eq!(read.via, Some("192.0.2.1".parse().unwrap()));
        assert_eq!((read.interface.as_deref(), read.priority, read.weight), (Some("wan"), 7, 3));
        assert!(line(to, &["blackhole"]).unwrap().blackhole);
        for wrong in [&["via"][..], &["via", "x"], &["tunel", "x"], &["tunnel", "x", "weight", "300"]] {
            assert!(line(to, wrong).unwrap_err().contains("10.1.0.0/16"), "{wrong:?}");
        }
    }
    #[test]
    fn requests_hold_all_routes_in_order_and_are_as_long_as_may_be() {
        let lines: Vec<RouteLine> = (0..5000_u32)
            .map(|n| {
                let to = Prefix::of(IpAddr::V4((n << 8).into()), 24);
                line(to, &["via", "192.0.2.1", "weight", if n % 2 == 0 { "1" } else { "2" }]).unwrap()
            })
            .collect();
        let (route, source) = (Verb::Add, Learned::Ebgp);
        let change = ChangeRoutes { route, gateway: "vpc\"]}".into(), source, routes: vec![] };
        let all: Vec<(String, usize)> = requests(&change, &lines).collect();
        assert!(all.iter().all(|(text, _)| text.len() < MAX_LINE));
        assert!(all[..all.len() - 1].iter().all(|(text, _)| text.len() > MAX_LINE - 200));
        let mut read = Vec::new();
        for (text, count) in &all {
            let Ok(Request::Routes(request)) = serde_json::from_str(text) else { panic!("{text}") };
            assert_eq!((request.routes.len(), &request.gateway), (*count, &change.gateway));
            read.extend(request.routes);
        }
        assert_eq!(read, lines);
        assert_eq!(requests(&change, &[]).count(), 0);
    }
}
