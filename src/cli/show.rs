//! `causeway show`: what a running gateway counts and knows.
//!
//! Counters come from the statistics segment alone, which the workers write whatever else happens; the rest comes
//! from the control socket.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{CANNOT, fail};
use crate::control::{gateway::socket_path, socket_client::Client, view};
use find::Which;
use sample::{Between, Sample};

pub mod find;
mod health;
mod limits;
mod lists;
mod nat;
mod routes;
mod sample;
mod table;
mod traffic;

/// Show what a running gateway counts and knows.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  causeway show summary
  causeway show interfaces --watch            # rates, every second
  causeway show drops --explain
  causeway show drops --by-interface --watch 5
  causeway show routes --gateway vpc --json
  causeway show sa --name idc

Counters are read without disturbing a worker, and also while the control thread is busy.
Exit code 3: no such gateway runs, or this user may not see it."
)]
pub struct Show {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    which: Which,
    /// Print JSON: everything that is known, in one document (with --watch: one a line).
    #[arg(long, global = true)]
    json: bool,
    /// Show again every so many seconds, with rates from the second time on.
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    watch: Option<Duration>,
    /// With --watch: so many times, then end.
    #[arg(long, global = true, value_name = "TIMES", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Show also what a gateway left that did not end by itself.
    #[arg(long, global = true)]
    stale: bool,
}

/// What to show.
#[derive(Debug, Subcommand)]
enum What {
    /// Name, balance of packets, busiest drops.
    #[command(after_help = "\
Example:
  causeway show summary --watch

The balance says where every packet went. While packets flow the counts move as they are read, so that a small
difference is normal; one that stays when the traffic stops is not.")]
    Summary,
    /// Packets and bytes of each interface.
    #[command(after_help = "Examples:\n  causeway show interfaces\n  causeway show interfaces --watch 5")]
    Interfaces,
    /// Frames of each port, what its device lost, and what its XDP program decided.
    #[command(after_help = "Example:\n  causeway show ports --json")]
    Ports,
    /// Packets and bytes of each tunnel.
    #[command(after_help = "Example:\n  causeway show tunnels --watch")]
    Tunnels,
    /// Whether interfaces and tunnels can be used, and why not: probes, BFD, delay and loss.
    #[command(after_help = "\
Examples:
  causeway show health
  causeway show health --json          # also an hour's minutes, and the histogram of delays

States: init (nothing is known yet), up, down, held (it works again, the hold-down runs), waiting (it works again;
`causeway failback` lets traffic come back).")]
    Health,
    /// Packets and bytes that each policy decided about: in, towards its gateway, and out.
    #[command(after_help = "Example:\n  causeway show policies --watch\n\nEach is GATEWAY/POLICY.")]
    Policies,
    /// Security associations: lifetimes, sequence numbers, replay windows, refused packets.
    #[command(after_help = "Example:\n  causeway show sa\n\nKeys are never shown.")]
    Sa,
    /// Neighbours: who has which MAC address.
    #[command(after_help = "Example:\n  causeway show neighbours --json")]
    Neighbours,
    /// Routes, configured and learned: which are used, and why the others are not.
    #[command(after_help = "\
Examples:
  causeway show routes --gateway vpc
  causeway show routes vpc --prefix 10.1.0.0/16 --json

Without --all, 1000 routes at most.")]
    Routes {
        /// Of this gateway only.
        #[arg(value_name = "GATEWAY")]
        of: Option<String>,
        /// The same.
        #[arg(long, conflicts_with = "of")]
        gateway: Option<String>,
        /// Only this prefix, what lies in it, and the longest that holds it.
        #[arg(long)]
        prefix: Option<crate::config::Prefix>,
        /// However many there are.
        #[arg(long)]
        all: bool,
    },
    /// Address translation: sessions, pools, rules.
    Nat {
        #[command(subcommand)]
        what: NatList,
    },
    /// Limits: rates in force, what they let pass and dropped, and how much of them is used.
    #[command(
        after_help = "Example:\n  causeway show limits --watch\n\nSee also: causeway show talkers, causeway limit."
    )]
    Limits,
    /// The addresses of VPCs with most traffic of late, where a gateway has an address_limit.
    #[command(after_help = "\
Examples:
  causeway show talkers --top 10 --watch
  causeway show talkers --gateway vpc --json")]
    Talkers {
        /// Of this gateway only.
        #[arg(long)]
        gateway: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1024))]
        top: u16,
    },
    /// Dropped packets by reason.
    #[command(after_help = "\
Examples:
  causeway show drops --explain
  causeway show drops --by-interface --watch")]
    Drops {
        /// Say what each reason means.
        #[arg(long)]
        explain: bool,
        /// By the interface that the packets came in by; `-` is none.
        #[arg(long)]
        by_interface: bool,
        /// Also reasons that have not occurred.
        #[arg(long)]
        all: bool,
    },
    /// The configuration in force, as a file would have it; keys are hidden.
    #[command(after_help = "\
Examples:
  causeway show config
  causeway show config --defaults > now.toml   # also what no file gave, as remarks

Changes made by command, such as new keys of `causeway sa`, are in it.")]
    Config {
        /// Also what no file gave, as remarks.
        #[arg(long)]
        defaults: bool,
    },
    /// What each stage of the pipeline costs. One burst in 32 is measured.
    #[command(after_help = "\
Example:
  causeway show stages --watch 5      # of the last five seconds

Cycles are those of the time-stamp counter.")]
    Stages,
}

/// What to show of address translation.
#[derive(Debug, Subcommand)]
enum NatList {
    /// Sessions of source pools and port mappings.
    #[command(after_help = "\
Examples:
  causeway show nat sessions --address 10.2.0.5
  causeway show nat sessions --gateway vpc --rule out --state opening --json")]
    Sessions {
        /// Of this gateway only.
        #[arg(long)]
        gateway: Option<String>,
        /// With this address, inside, outside or remote.
        #[arg(long)]
        address: Option<std::net::Ipv4Addr>,
        /// Of the rule of this name.
        #[arg(long)]
        rule: Option<String>,
        /// In this state: opening, established, closing, closed or reset for TCP, active for others.
        #[arg(long)]
        state: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Source pools, and how near they are to their end.
    Pools,
    /// Rules, in the order of the file.
    Rules,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    if (0.1..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("from 0.1 to 86400 seconds".into())
    }
}

/// The same twice: for programs and for people.
struct Shown {
    json: Value,
    text: String,
}

/// How long the control thread may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of the gateway, beyond counters, from its control socket; asked when it is needed, and not again
/// when there was no answer.
struct Facts {
    socket: PathBuf,
    client: Option<Result<Client, String>>,
}

impl Facts {
    /// A list; without it there is nothing to show.
    fn need<T: serde::de::DeserializeOwned>(&mut self, show: &view::Show) -> Result<Vec<T>, String> {
        let connect = || Client::connect(&self.socket, PATIENCE).map_err(|error| error.to_string());
        let client = self.client.get_or_insert_with(connect).as_mut().map_err(|error| error.clone())?;
        let list = client.list(show).map_err(|error| error.to_string());
        if let Err(error) = &list {
            self.client = Some(Err(error.clone()));
        }
        list
    }

    /// The first rows of a list, at least `limit` where there are as many, and whether there are more.
    fn some<T: serde::de::DeserializeOwned>(
        &mut self,
        show: &view::Show,
        limit: usize,
    ) -> Result<(Vec<T>, bool), String> {
        let mut client = Client::connect(&self.socket, PATIENCE).map_err(|error| error.to_string())?;
        let (mut rows, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            if rows.len() >= limit {
                break;
            }
            let request = view::Request::Show(view::Show { from: at, ..show.clone() });
            let answer = client.ask(&request).map_err(|error| error.to_string())?;
            let page: view::Page<T> = serde_json::from_value(answer).map_err(|error| error.to_string())?;
            rows.extend(page.rows);
            from = page.next.filter(|next| *next > at);
        }
        let more = from.is_some() || rows.len() > limit;
        rows.truncate(limit);
        Ok((rows, more))
    }

    /// A list that says more about counters. Without it they are shown all the same.
    fn want<T: serde::de::DeserializeOwned>(&mut self, topic: view::Topic) -> Vec<T> {
        let failed_before = matches!(self.client, Some(Err(_)));
        self.need(&view::Show::first(topic)).unwrap_or_else(|error| {
            if !failed_before {
                tracing::warn!("only counters are shown: {error}");
            }
            Vec::new()
        })
    }
}

/// Shows the limits of a gateway once.
pub(super) fn limits_of(which: Which, json: bool) -> ExitCode {
    run(&Show { what: What::Limits, which, json, watch: None, count: None, stale: false })
}

/// Runs the command.
#[must_use]
pub fn run(args: &Show) -> ExitCode {
    let mut before: Option<Sample> = None;
    let mut left = if args.watch.is_some() { args.count } else { Some(1) };
    loop {
        let (run_dir, reader) = match args.which.open(args.stale) {
            Ok(found) => found,
            Err(error) => return fail(&error, CANNOT),
        };
        let now = Sample::of(&reader);
        let mut facts = Facts { socket: socket_path(&run_dir), client: None };
        let between = Between { now: &now, before: before.as_ref() };
        let shown = match show(&args.what, between, &mut facts) {
            Ok(shown) => shown,
            Err(error) => return fail(&error, CANNOT),
        };
        match print(args, &shown) {
            Ok(()) => {}
            // `causeway show … | head` has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Err(error) => return fail(&error, CANNOT),
        }
        if let Some(left) = &mut left {
            *left -= 1;
            if *left == 0 {
                return ExitCode::SUCCESS;
            }
        }
        before = Some(now);
        thread::sleep(args.watch.unwrap_or_default());
    }
}

fn show(what: &What, between: Between<'_>, facts: &mut Facts) -> Result<Shown, String> {
    Ok(match what {
        What::Summary => traffic::summary(between),
        What::Interfaces => traffic::interfaces(between, facts),
        What::Ports => traffic::ports(between, facts),
        What::Tunnels => traffic::tunnels(between, facts),
        What::Policies => traffic::policies(between),
        What::Health => health::health(facts)?,
        What::Drops { explain, by_interface, all } => traffic::drops(between, *explain, *by_interface, *all),
        What::Stages => traffic::stages(between),
        What::Config { defaults } => lists::configuration(facts, *defaults)?,
        What::Sa => lists::associations(between, facts),
        What::Neighbours => lists::neighbours(facts)?,
        What::Limits => limits::limits(facts)?,
        What::Talkers { gateway, top } => limits::talkers(facts, gateway.clone(), usize::from(*top))?,
        What::Routes { of, gateway, prefix, all } => {
            routes::routes(facts, gateway.clone().or_else(|| of.clone()), *prefix, *all)?
        }
        What::Nat { what } => match what {
            NatList::Sessions { gateway, address, rule, state, limit } => {
                let filter = crate::control::nat::Filter {
                    address: *address,
                    rule: rule.clone(),
                    state: state.clone(),
                };
                nat::sessions(facts, gateway.clone(), filter, *limit)?
            }
            NatList::Pools => nat::pools(facts)?,
            NatList::Rules => nat::rules(facts)?,
        },
    })
}

fn print(args: &Show, shown: &Shown) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        return if args.watch.is_some() {
            writeln!(out, "{}", shown.json)
        } else {
            writeln!(out, "{:#}", shown.json)
        };
    }
    if args.watch.is_some() {
        if out.is_terminal() {
            // Home, and clear what is below.
            write!(out, "\x1b[H\x1b[J{}", shown.text)?;
        } else {
            writeln!(out, "{}", shown.text)?;
        }
        return out.flush();
    }
    write!(out, "{}", shown.text)
}
