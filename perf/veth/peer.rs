//! Other people's programs between the same kind of devices: processes of their own, which take turns with ours.
//!
//! `--peers=PROGRAM` says what starts them. It is run as `PROGRAM start NAME`, with what the peer is to do in its
//! environment, writes the number of the peer's process into a file and stays until that has ended; see
//! `perf/peers/README.md`. When it ends with status 3, the peer is not to be had here, and its rows are left out.
//!
//! The starter runs at ordinary priority, and whatever a peer leaves behind is its to clear away: a thread that has the
//! core to itself and waits for the last traces of a process of lower priority on the same core waits for ever.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use causeway::cli::bench::topology::{ROUTERS, Topology};
use rustix::process::{Pid, Signal, kill_process};

use super::lab::{OUR_CORE, Result, SOURCE_CORE};

/// Status of a peer's program when what it needs is not there.
const NOT_THERE: i32 = 3;
/// How long a peer may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

static STARTER: OnceLock<PathBuf> = OnceLock::new();

/// Which program, doing what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// DPDK's testpmd: frames go from one port to the other as they are.
    Testpmd,
    /// DPDK's l3fwd: IPv4 by longest prefix, the same 16 routes.
    L3fwd,
    /// DPDK's ipsec-secgw: one policy, one SA, AES-128-GCM.
    SecgwOut,
    /// The same the other way.
    SecgwIn,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Testpmd, Self::L3fwd, Self::SecgwOut, Self::SecgwIn];

    /// As it is written in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Testpmd => "DPDK testpmd",
            Self::L3fwd => "DPDK l3fwd",
            Self::SecgwOut => "DPDK ipsec-secgw out",
            Self::SecgwIn => "DPDK ipsec-secgw in",
        }
    }

    /// As its starter knows it.
    const fn program(self) -> &'static str {
        match self {
            Self::Testpmd => "testpmd",
            Self::L3fwd => "l3fwd",
            Self::SecgwOut => "secgw-out",
            Self::SecgwIn => "secgw-in",
        }
    }
}

/// Says what starts peers; without this there are none.
pub fn started_by(program: PathBuf) {
    let _ = STARTER.set(program);
}

/// Whether any peers are to be measured.
pub fn are_wanted() -> bool {
    STARTER.get().is_some()
}

/// A peer that runs, or rests.
pub struct Process {
    peer: Peer,
    /// What started it.
    child: Child,
    id: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts a peer between two devices, which exist. None: it is not to be had here, and has said why.
    pub fn start(peer: Peer, ports: &[String; 2], topology: &Topology) -> Result<Option<Self>> {
        let starter = STARTER.get().ok_or("no peers are wanted")?;
        let log = std::env::temp_dir().join(format!("causeway-peer-{}.log", peer.program()));
        let output = File::create(&log)?;
        let routes: Vec<_> = topology
            .outside
            .iter()
            .map(|(base, length)| format!("{}/{length}", std::net::Ipv4Addr::from_bits(*base as u32)))
            .collect();
        let id_file = std::env::temp_dir().join(format!("causeway-peer-{}.id", std::process::id()));
        // At ordinary priority, and not only on the core that is measured.
        let child = Command::new("chrt")
            .args(["-o", "0", "taskset", "-c", &format!("{SOURCE_CORE},{OUR_CORE}")])
            .arg(starter)
            .args(["start", peer.program()])
            .env("PEER_ID_FILE", &id_file)
            .env("PEER_PRIORITY", (real_time_priority()? - 1).max(0).to_string())
            .env("PEER_PORTS", ports.join(" "))
            .env("PEER_CORE", OUR_CORE.to_string())
            .env("PEER_OTHER_CORE", SOURCE_CORE.to_string())
            .env("PEER_ROUTERS", format!("{} {}", ROUTERS[0], ROUTERS[1]))
            .env("PEER_ROUTES", routes.join(" "))
            .env("PEER_KEY", topology.key("B0"))
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| format!("{}: {error}", starter.display()))?;
        let mut process = Self { peer, child, id: Pid::INIT, log };
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if let Some(status) = process.child.try_wait()? {
                if status.code() == Some(NOT_THERE) {
                    println!("{}: not measured. {}", peer.name(), process.last_words());
                    return Ok(None);
                }
                return Err(process.failed(status));
            }
            if let Ok(text) = std::fs::read_to_string(&id_file)
                && let Some(id) = text.trim().parse().ok().and_then(Pid::from_raw)
            {
                std::fs::remove_file(&id_file)?;
                process.id = id;
                return Ok(Some(process));
            }
            thread::sleep(LOOK);
        }
        Err(format!("{} does not start", peer.name()).into())
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn failed(&self, status: ExitStatus) -> Box<dyn std::error::Error + Send + Sync> {
        let (peer, log) = (self.peer.name(), self.log.display());
        format!("{peer} ended by itself, {status}; see {log}:\n{}", self.last_words()).into()
    }

    /// Lets it work, or makes it rest while another has its turn.
    pub fn work(&mut self, work: bool) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.failed(status));
        }
        Ok(kill_process(self.id, if work { Signal::CONT } else { Signal::STOP })?)
    }

    /// Seconds that its threads have run.
    pub fn processor_time(&self) -> Result<f64> {
        let mut nanoseconds = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.id))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += text.split_whitespace().next().ok_or("no schedstat")?.parse::<f64>()?;
        }
        Ok(nanoseconds / 1e9)
    }

    /// Ends it as a user would.
    pub fn end(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.failed(status));
        }
        kill_process(self.id, Signal::CONT)?;
        kill_process(self.id, Signal::INT)?;
        // Some wait for the end of their input too.
        drop(self.child.stdin.take());
        let since = Instant::now();
        while self.child.try_wait()?.is_none() {
            if since.elapsed() > PATIENCE {
                return Err(format!("{} does not end", self.peer.name()).into());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // However a run ends, nothing of it stays: the peer goes with its starter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Priority of this thread, 0 where it has no real-time one.
fn real_time_priority() -> Result<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/stat")?;
    // proc(5): field 40, of which the third is the first behind the name.
    let (_, fields) = text.rsplit_once(')').ok_or("no name")?;
    Ok(fields.split_whitespace().nth(37).ok_or("no priority")?.parse()?)
}
