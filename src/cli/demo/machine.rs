//! The demo on this machine: four network namespaces, AF_XDP sockets, and the kernels' own stacks.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{
    Demo, DemoError, Interrupt,
    gateways::{CLOUD, GatewayProcess, IDC, Keys, cores, settled},
    network::{self, HostEnd, Network, NetworkError, Process},
    place::{self, Place},
    report::Report,
    summary::{GatewayEnd, Summary},
    view::{View, say},
};
use crate::stats::Reader;

/// The data centre's host.
pub const IDC_HOST: &str = "10.1.0.10";
/// The cloud's host, as it is known to itself and to the data centre.
pub const VPC_HOST: &str = "10.2.0.10";
/// See [`VPC_HOST`].
pub const VPC_HOST_SEEN: &str = "203.0.113.10";

/// What the demo needs, by its bits in `/proc/self/status` (linux/capability.h).
const CAPABILITIES: &[(u32, &str)] =
    &[(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];
/// Longer than the traffic is to last, when it may be given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the network of `pipelines/site-to-site`: host, gateway, gateway, host.
///
/// # Errors
/// [`NetworkError`].
pub fn site_to_site(network: &mut Network) -> Result<(), NetworkError> {
    for namespace in ["idc-host", "idc", "cloud", "vpc-host"] {
        network.add(namespace)?;
    }
    network.link(("idc-host", "eth0"), ("idc", "lan0"))?;
    network.link(("idc", "wan0"), ("cloud", "wan0"))?;
    network.link(("cloud", "vpc0"), ("vpc-host", "eth0"))?;
    network.host(&HostEnd {
        namespace: "idc-host",
        device: "eth0",
        vlan: 10,
        addresses: &["10.1.0.10/24"],
        routers: &["10.1.0.1"],
    })?;
    network.host(&HostEnd {
        namespace: "vpc-host",
        device: "eth0",
        vlan: 20,
        addresses: &["10.2.0.10/24"],
        routers: &["10.2.0.1"],
    })
}

fn require_privilege() -> Result<(), DemoError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(bit, _)| effective >> bit & 1 == 0).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(_, name)| *name).collect();
    Err(DemoError::Cannot(format!(
        "the demo makes network namespaces and loads BPF programs, for which {} is missing: run it as root, or with \
         --memory, which needs no privilege",
        names.join(", ")
    )))
}

/// Removes what demos left on purpose, and what killed ones left.
///
/// # Errors
/// No privilege.
pub fn clean(json: bool) -> Result<ExitCode, DemoError> {
    require_privilege()?;
    let makers = network::clean(true, place::is_kept);
    place::clean(true);
    if json {
        say(&serde_json::json!({ "removed": makers }).to_string());
    } else {
        match makers.len() {
            0 => say("there is nothing to remove"),
            n => say(&format!("removed {n} network{}", if n == 1 { "" } else { "s" })),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The data centre's host at work: its process, and what it has reported.
#[derive(Debug)]
struct Talker {
    process: Process,
    report: Arc<Mutex<Report>>,
}

impl Talker {
    fn start(causeway: &Path, network: &Network, seconds: u64) -> Result<Self, DemoError> {
        let mut command = network.command(causeway, "idc-host", true);
        command.arg(causeway).args(["demo-host", "talk", VPC_HOST_SEEN, "--millis"]);
        command.arg((seconds * 1000).to_string()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let report: Arc<Mutex<Report>> = Arc::default();
        let written = Arc::clone(&report);
        if let Some(out) = process.child().stdout.take() {
            // Ends with the process.
            thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Ok(new) = serde_json::from_str(&line) {
                        *written.lock().unwrap_or_else(PoisonError::into_inner) = new;
                    }
                }
            });
        }
        Ok(Self { process, report })
    }

    fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the cloud's host, and waits until it serves.
///
/// # Errors
/// It cannot be started, or ends.
pub fn serve(causeway: &Path, network: &Network, namespace: &str) -> Result<Process, NetworkError> {
    let mut command = network.command(causeway, namespace, true);
    command.arg(causeway).args(["demo-host", "serve"]).stdout(Stdio::piped());
    let mut process = Process::start(&mut command)?;
    let mut line = String::new();
    if let Some(out) = process.child().stdout.take() {
        let _ = BufReader::new(out).read_line(&mut line);
    }
    if line.trim() == "ready" {
        return Ok(process);
    }
    let source = std::io::Error::other("it ended at once");
    Err(NetworkError::Start { program: "the serving host".into(), source })
}

/// Runs the demo.
///
/// # Errors
/// [`DemoError`]; nothing is left behind, whatever happens.
pub fn run(args: &Demo, interrupt: &Interrupt) -> Result<ExitCode, DemoError> {
    require_privilege()?;
    let failed =
        |what: &'static str| move |error: std::io::Error| DemoError::Failed(format!("{what}: {error}"));
    let causeway = std::env::current_exe().map_err(failed("cannot find this program"))?;
    network::clean(false, place::is_kept);
    place::clean(false);
    interrupt.check()?;
    // Each goes before what stands above it: hosts, gateways, network, folder.
    let mut place = Place::new().map_err(failed("cannot make the demo's folder"))?;
    let mut network = Network::new();
    site_to_site(&mut network)?;
    interrupt.check()?;
    let mut gateways = start_gateways(&causeway, &network, place.path(), !args.keep)?;
    for gateway in &mut gateways {
        gateway.wait_until_up(&|| !interrupt.came())?;
    }
    interrupt.check()?;
    let server = serve(&causeway, &network, "vpc-host")?;
    let mut talker = Talker::start(&causeway, &network, args.seconds)?;
    let title = format!(
        "idc-host {IDC_HOST} ─ VLAN 10 ─ [idc] ─ VLAN 100, ESP with AES-128-GCM ─ [cloud] ─ VLAN 20 ─ vpc-host \
         {VPC_HOST}, seen as {VPC_HOST_SEEN}\nnetwork namespaces {}-*, AF_XDP",
        network.name()
    );
    let mut view = View::new(&title, args.json);
    let complete = watch(&mut talker, &mut gateways, &mut view, interrupt, args.seconds);
    view.end();
    let report = talker.report();
    drop((talker, server));
    complete?;
    // What the hosts' kernels still say to each other.
    thread::sleep(Duration::from_millis(200));
    if args.keep && !interrupt.came() {
        return keep(&mut place, &mut network, gateways, &report, &causeway);
    }
    let mut ends = Vec::new();
    for gateway in &mut gateways {
        let account = gateway.stop()?;
        ends.extend(gateway.reader().map(|reader| GatewayEnd::new(account, reader)));
    }
    let summary = Summary::new(report, ends, interrupt.came());
    // Before the last word, so that it is true.
    drop((gateways, network, place));
    Ok(summary.print(args.json))
}

fn start_gateways(
    causeway: &Path,
    network: &Network,
    place: &Path,
    own: bool,
) -> Result<Vec<GatewayProcess>, DemoError> {
    let keys = Keys::random();
    let both = [("idc", IDC), ("cloud", CLOUD)].into_iter().zip(cores());
    let start = |((name, text), core): ((&str, &str), usize)| {
        let run_dir = place.join(name);
        let text = settled(text, core, &run_dir);
        GatewayProcess::start(causeway, network, name, &text, &run_dir, &keys, own)
    };
    Ok(both.map(start).collect::<Result<_, _>>()?)
}

/// Shows what crosses until the hosts are done.
fn watch(
    talker: &mut Talker,
    gateways: &mut [GatewayProcess],
    view: &mut View,
    interrupt: &Interrupt,
    seconds: u64,
) -> Result<(), DemoError> {
    let since = std::time::Instant::now();
    while !interrupt.came() {
        for gateway in gateways.iter_mut() {
            gateway.check()?;
        }
        let report = talker.report();
        if report.done {
            return Ok(());
        }
        if let Ok(Some(status)) = talker.process.child().try_wait()
            && !status.success()
        {
            return Err(DemoError::Failed("the data centre's host could not go on".into()));
        }
        if since.elapsed() > Duration::from_secs(seconds) + PATIENCE {
            return Err(DemoError::Failed("the hosts' traffic does not come to its end".into()));
        }
        let readers: Vec<&Reader> = gateways.iter().filter_map(GatewayProcess::reader).collect();
        view.show(&readers, &report);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Leaves everything up, and says how to use it.
fn keep(
    place: &mut Place,
    network: &mut Network,
    gateways: Vec<GatewayProcess>,
    report: &Report,
    causeway: &Path,
) -> Result<ExitCode, DemoError> {
    let failed = |error: std::io::Error| DemoError::Failed(format!("the network cannot be kept: {error}"));
    place.keep().map_err(failed)?;
    network.keep();
    let run_dirs: Vec<PathBuf> = gateways.iter().map(|gateway| gateway.run_dir().to_path_buf()).collect();
    gateways.into_iter().for_each(|mut gateway| gateway.keep());
    let (causeway, name) = (causeway.display(), network.name());
    say("\nwhat the hosts saw:");
    super::view::hosts(report).iter().for_each(|line| say(&format!("  {line}")));
    say("\nThe network is up. Look around in it:");
    say(&format!("  ip netns exec {name}-idc-host bash"));
    say(&format!("  ip netns exec {name}-idc-host ping {VPC_HOST_SEEN}"));
    say(&format!("  ip netns exec {name}-vpc-host iperf3 -s -D"));
    say(&format!("  ip netns exec {name}-idc-host iperf3 -c {VPC_HOST_SEEN}"));
    for dir in run_dirs {
        say(&format!("  {causeway} show --run-dir {}", dir.display()));
    }
    say(&format!("Remove it:\n  {causeway} demo --clean"));
    Ok(ExitCode::SUCCESS)
}
