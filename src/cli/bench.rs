//! `causeway bench`: how fast the pipeline is on this machine, without any I/O.
//!
//! One thread takes packets of a profile through one worker and reads the clock around each burst, from the received
//! frames to the frames queued for their port. Making packets, sealing what is to be opened, and taking frames back
//! are not counted. Before anything is measured, every packet of a first round is compared with what should come out,
//! sealed ones after a second gateway has opened them; a gateway that drops or errs is not measured.

pub mod crew;
pub mod measure;
pub mod port;
pub mod profile;
pub mod random;
pub mod report;
pub mod rfc2544;
pub mod rig;
pub mod scaling;
pub mod search;
pub mod topology;
pub mod traffic;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    measure::Effort,
    profile::{PORTS, Ports, Profile, Size},
    report::{Report, Row, Setting},
    rfc2544::Throughput,
    rig::{Rig, RigError},
    scaling::Scaling,
    topology::Topology,
};
use super::{CANNOT, NOT_WELL, fail};
use crate::{packet::BURST, runtime::Clock};

/// Measure the pipeline on memory ports: time a packet, by stage, and latency.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  causeway bench                        # every profile
  causeway bench gateway gateway-in     # some
  causeway bench gateway --size 64,imix --burst 1,4,16,32,64,128,256 --brief
  causeway bench --workers 2            # two workers beside one
  causeway bench gateway --rfc2544      # throughput without loss, and latency below it
  causeway bench --save                 # keep the result under perf/results
  causeway bench --compare              # with the newest there
  causeway bench --compare=perf/results/2026-11-21-0123456789.json")]
pub struct Bench {
    /// Profiles by name, or files with profiles [default: all].
    profiles: Vec<String>,
    /// List the profiles.
    #[arg(long)]
    list: bool,
    /// Lengths of frames, L2 with the VLAN tag and without FCS, or `imix` [default: the profile's].
    #[arg(long, value_name = "BYTES,…", value_delimiter = ',')]
    size: Vec<Size>,
    /// Packets that wait when the worker looks; it takes at most 64 at once.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u16).range(1..=WARM as i64))]
    burst: Vec<u16>,
    /// Measure throughput of so many workers, each on a core of its own, beside that of one [default profiles: forward-16,
    /// seal-1, open-1, gateway, gateway-in].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=32), conflicts_with_all = ["rfc2544", "cold", "shuffled", "core"])]
    workers: Option<u8>,
    /// Search for the rate without loss, and measure latency at 10, 50 and 90 % of it [default profiles: as above].
    #[arg(long, conflicts_with_all = ["cold", "shuffled"])]
    rfc2544: bool,
    /// Runs of each row: the best and the median are shown.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Packets of each run.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    packets: u32,
    /// Different flows [default: the profile's].
    #[arg(long, value_name = "N")]
    flows: Option<usize>,
    /// Let packets go round in 64 MiB, so that they are in no cache near the core when they come.
    #[arg(long)]
    cold: bool,
    /// Let packets come in buffers in any order of their addresses, as after some time of operation.
    #[arg(long)]
    shuffled: bool,
    /// The core to run on [default: the last].
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Only time a packet: no stages and no latency.
    #[arg(long)]
    brief: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Save the result as perf/results/DATE-COMMIT.json.
    #[arg(long)]
    save: bool,
    /// Show the changes since a saved result, the newest where none is named.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = NEWEST)]
    compare: Option<PathBuf>,
}

/// Frames that go round: four bursts of the largest kind, which stay in the second-level cache.
const WARM: usize = 4 * BURST;
/// Frames of 2 KiB that go round in 64 MiB.
const COLD: usize = 32_768;
/// Where results are kept.
const RESULTS: &str = "perf/results";
/// Stands for the newest result there.
const NEWEST: &str = "newest";
/// Profiles for whole workers, where none is named.
const WHOLE: [&str; 5] = ["forward-16", "seal-1", "open-1", "gateway", "gateway-in"];

/// Runs the command.
#[must_use]
pub fn run(args: &Bench) -> ExitCode {
    let profiles = match profiles(args) {
        Ok(profiles) => profiles,
        Err(error) => return fail(&error, 2),
    };
    if args.list {
        for profile in &profiles {
            let sizes: Vec<String> = profile.sizes.iter().map(|size| size.label()).collect();
            println!("{:<16} {} ({})", profile.name, profile.description, sizes.join(", "));
        }
        return ExitCode::SUCCESS;
    }
    let load = |path: &Path| {
        if path == Path::new(NEWEST) { Report::newest(Path::new(RESULTS)) } else { Report::load(path) }
    };
    let earlier = match args.compare.as_deref().map(load).transpose() {
        Ok(earlier) => earlier,
        Err(error) => return fail(&error, CANNOT),
    };
    let (cores, core) = match cores(usize::from(args.workers.unwrap_or(1)))
        .and_then(|cores| pin(args.core).map(|core| (cores, core)))
    {
        Ok(both) => both,
        Err(error) => return fail(&error, CANNOT),
    };
    let setting = Setting::here(Clock::new().tick_hz(), core, args.runs as usize, args.packets as usize);
    let heading = match (args.workers, args.rfc2544) {
        (Some(_), _) => scaling::heading(),
        (_, true) => rfc2544::heading(),
        _ => report::heading(&setting),
    };
    if !args.json {
        println!("{}\n{heading}", setting.text());
    }
    let mut report = Report { setting, ..Report::default() };
    for profile in &profiles {
        let measured = match (args.workers, args.rfc2544) {
            (Some(_), _) => scaled(args, profile, &cores).map(|rows| report.scaling.extend(rows)),
            (_, true) => trials(args, profile, core).map(|rows| report.throughput.extend(rows)),
            _ => groups(profile)
                .iter()
                .try_for_each(|profile| measure(args, profile).map(|rows| report.rows.extend(rows))),
        };
        if let Err(error) = measured {
            let code = if matches!(error, RigError::Setup(_)) { CANNOT } else { NOT_WELL };
            return fail(&format!("{}: {error}", profile.name), code);
        }
    }
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(&error, super::BUG),
        }
    }
    if let Some(earlier) = &earlier {
        let text = report.compared(earlier);
        if args.json { eprintln!("{text}") } else { println!("\n{text}") }
    }
    if args.save {
        match report.save(Path::new(RESULTS)) {
            Ok(path) => eprintln!("saved as {}", path.display()),
            Err(error) => return fail(&format!("cannot save the result under {RESULTS}: {error}"), CANNOT),
        }
    }
    ExitCode::SUCCESS
}

/// The profiles that were asked for, changed as was asked for.
fn profiles(args: &Bench) -> Result<Vec<Profile>, String> {
    let names: Vec<String> = if args.profiles.is_empty() {
        let whole = (args.workers.is_some() || args.rfc2544) && !args.list;
        profile::names().filter(|name| !whole || WHOLE.contains(name)).map(String::from).collect()
    } else {
        args.profiles.clone()
    };
    names
        .iter()
        .map(|name| {
            let mut profile = match profile::named(name) {
                Some(profile) => profile?,
                None if name.ends_with(".toml") => Profile::load(Path::new(name))?,
                None => {
                    let known: Vec<&str> = profile::names().collect();
                    return Err(format!("no profile is called {name}; there are {}", known.join(", ")));
                }
            };
            if !args.size.is_empty() {
                profile.sizes.clone_from(&args.size);
            }
            if let Some(flows) = args.flows {
                profile.flows = flows;
            }
            profile.checked()
        })
        .collect()
}

/// The last cores that this program may use.
fn cores(count: usize) -> Result<Vec<Option<usize>>, String> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if cores.len() < count {
        return Err(format!("{count} workers need as many cores, and there are {}", cores.len()));
    }
    Ok(cores.iter().skip(cores.len() - count).map(|id| Some(id.id)).collect())
}

/// The profile with its sizes for each kind of ports.
fn groups(profile: &Profile) -> Vec<Profile> {
    let of = |ports: &Ports| {
        let fits = |size: &Size| Ports::of(&[*size]) == *ports;
        let sizes: Vec<Size> = profile.sizes.iter().copied().filter(fits).collect();
        (!sizes.is_empty()).then(|| Profile { sizes, ..profile.clone() })
    };
    PORTS.iter().filter_map(of).collect()
}

/// Measures several workers beside one; prints each row when it is there.
fn scaled(args: &Bench, profile: &Profile, cores: &[Option<usize>]) -> Result<Vec<Scaling>, RigError> {
    let mut rows = Vec::new();
    for size in &profile.sizes {
        let profile = Profile { sizes: vec![*size], ..profile.clone() };
        rows.extend(scaling::measure(&profile, *size, cores, args.runs as usize, |row| {
            if !args.json {
                println!("{}", row.text());
            }
        })?);
    }
    Ok(rows)
}

/// Searches for the rate without loss; prints each row when it is there.
fn trials(args: &Bench, profile: &Profile, core: usize) -> Result<Vec<Throughput>, RigError> {
    let mut rows = Vec::new();
    for size in &profile.sizes {
        let profile = Profile { sizes: vec![*size], ..profile.clone() };
        let (row, mean_len) = rfc2544::measure(&profile, *size, Some(core))?;
        if !args.json {
            println!("{}", row.text(mean_len));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Keeps this thread on one core.
fn pin(core: Option<usize>) -> Result<usize, String> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let id = match core {
        Some(core) => cores.iter().find(|id| id.id == core).copied(),
        None => cores.last().copied(),
    };
    let id = id.ok_or("there is no such core")?;
    if core_affinity::set_for_current(id) { Ok(id.id) } else { Err(format!("cannot run on core {}", id.id)) }
}

/// Measures a profile at each of its sizes; prints each row when it is there.
fn measure(args: &Bench, profile: &Profile) -> Result<Vec<Row>, RigError> {
    let Some(first) = profile.sizes.first() else { return Ok(Vec::new()) };
    let effort = |burst| Effort { burst, runs: args.runs as usize, packets: args.packets as usize };
    let rows_of_all = profile.sizes.len() * args.burst.len();
    let progress = ProgressBar::new(u64::from(args.runs) * rows_of_all as u64);
    let style = ProgressStyle::with_template("{msg:<24} {bar:30} {pos}/{len}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    progress.set_message(format!("{}: tables", profile.name));
    let frames = if args.cold { COLD } else { WARM };
    let mut rig = Rig::new(Topology::new(profile), *first, frames)?;
    if args.shuffled {
        rig.shuffle();
    }
    let mut rows = Vec::new();
    let mut setup = None;
    if profile.pool {
        progress.set_message(format!("{}: sessions", profile.name));
        let ticks = rig.establish(BURST)?;
        setup = Some(ticks as f64 / rig.flows() as f64 * 1e9 / rig.clock().tick_hz() as f64);
    }
    for size in &profile.sizes {
        progress.set_message(format!("{} {}", profile.name, size.label()));
        rig.resize(*size);
        rig.validate()?;
        for effort in args.burst.iter().map(|burst| effort(usize::from(*burst))) {
            let cost = measure::cost(&mut rig, effort, || progress.inc(1))?;
            let (mut stages, mut latency) = (Vec::new(), Vec::new());
            if !args.brief {
                stages = measure::stages(&mut rig, effort)?;
                latency = vec![
                    measure::latency(&mut rig, 1, effort.packets)?,
                    measure::latency(&mut rig, BURST, 4 * effort.packets)?,
                ];
            }
            let goal = profile.goal(*size);
            let row = Row {
                profile: profile.name.clone(),
                size: size.label(),
                burst: effort.burst,
                cold: args.cold,
                shuffled: args.shuffled,
                cost,
                mpps: 1e3 / cost.ns_median,
                gbps: rig.traffic().mean_len() * 8.0 / cost.ns_median,
                goal: goal.and_then(|goal| goal.goal),
                stretch: goal.and_then(|goal| goal.stretch),
                peer: goal.and_then(|goal| goal.peer),
                peer_name: goal.and_then(|goal| goal.peer_name.clone()),
                stages,
                latency,
                setup,
            };
            if !args.json {
                progress.suspend(|| println!("{}", row.text(!args.brief)));
            }
            rows.push(row);
        }
    }
    progress.finish_and_clear();
    rig.end()?;
    Ok(rows)
}
