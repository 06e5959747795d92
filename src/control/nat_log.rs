//! The log of NAT sessions: who had which outside address and port, and when.
//!
//! A thread of its own takes what the workers note and writes it, a line of JSON for each beginning and each end.
//! Nothing waits for it: what it is too slow for is lost, and counted as `nat_log_lost`. Files are put aside when they
//! are full, and only so many are kept, so what it takes on the disk is bounded.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::nat::rule_names;
use crate::{
    config::Config,
    runtime::Clock,
    stage::{SessionLog, SessionNote},
    table::session::Kind,
    wire::ip::protocol,
};

/// How long the thread rests when there is nothing to write.
const REST: Duration = Duration::from_millis(20);
/// Notes of one worker that are written before the next one's turn.
const BATCH: usize = 1024;

/// Names by gateway number: of the gateway, its pools, its port mappings.
type Names = Vec<Option<(String, Vec<String>, Vec<String>)>>;

/// The log's thread.
#[derive(Debug)]
pub struct NatLog {
    thread: JoinHandle<()>,
    over: Arc<AtomicBool>,
    names: Arc<RwLock<Names>>,
}

impl NatLog {
    /// Starts to write what comes out of `notes`, where the configuration wants it.
    ///
    /// # Errors
    /// The file cannot be made, or the thread.
    pub fn start(config: &Config, notes: Vec<Arc<SessionLog>>, clock: Clock) -> io::Result<Option<Self>> {
        let system = &config.system;
        let Some(path) = system.nat_log.as_ref().map(|path| path.value.0.clone()) else { return Ok(None) };
        let most = u64::from(system.nat_log_size.get()) * 1_000_000;
        let mut files = Files::open(path, most, system.nat_log_files.get())?;
        let (over, names) = (Arc::new(AtomicBool::new(false)), Arc::new(RwLock::new(Names::new())));
        let (ends, known) = (Arc::clone(&over), Arc::clone(&names));
        // What the clock showed at a time that others know.
        let (now, wall) = (clock.now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let epoch = wall.saturating_sub(Duration::from_nanos(now));
        let body = move || {
            let mut failing = false;
            loop {
                let last = ends.load(Ordering::Acquire);
                let written = round(&notes, &known, epoch, &mut files);
                if let Err(error) = &written
                    && !failing
                {
                    tracing::error!("the log of NAT sessions cannot be written: {error}");
                }
                failing = written.is_err();
                match written {
                    Ok(0) | Err(_) if last => return,
                    Ok(0) | Err(_) => thread::sleep(REST),
                    Ok(_) => {}
                }
            }
        };
        let thread = thread::Builder::new().name("nat-log".into()).spawn(body)?;
        Ok(Some(Self { thread, over, names }))
    }

    /// Notes the names that numbers stand for from now on.
    pub fn rename(&self, config: &Config, gateways: &[u16]) {
        let count = gateways.iter().max().map_or(0, |most| usize::from(*most) + 1);
        let mut names: Names = vec![None; count];
        for (place, (gateway, &number)) in config.gateways.iter().zip(gateways).enumerate() {
            let rules = |kind| rule_names(config, place, kind).map(String::from).collect();
            let name = gateway.name.value.as_str().to_string();
            names[usize::from(number)] = Some((name, rules(Kind::Pool), rules(Kind::Mapping)));
        }
        if let Ok(mut known) = self.names.write() {
            *known = names;
        }
    }

    /// Writes what is left, and ends.
    pub fn end(self) {
        self.over.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!("the log of NAT sessions ended on its own");
        }
    }
}

/// Writes what has come. The result is how many lines.
fn round(
    notes: &[Arc<SessionLog>],
    names: &RwLock<Names>,
    epoch: Duration,
    files: &mut Files,
) -> io::Result<usize> {
    let mut count = 0;
    for queue in notes {
        for _ in 0..BATCH {
            let Some(note) = queue.pop() else { break };
            count += 1;
            let line = match names.read() {
                Ok(names) => line(&note, &names, epoch).to_string(),
                Err(_) => line(&note, &Vec::new(), epoch).to_string(),
            };
            files.write(&line)?;
        }
    }
    if count > 0 {
        files.flush()?;
    }
    Ok(count)
}

fn line(note: &SessionNote, names: &Names, epoch: Duration) -> Value {
    let session = &note.session;
    let known = names.get(usize::from(session.inside.gateway())).and_then(Option::as_ref);
    let rule = known.and_then(|(_, pools, mappings)| {
        let rules = if session.kind == Kind::Pool { pools } else { mappings };
        rules.get(session.rule as usize)
    });
    let time = epoch + Duration::from_nanos(note.now);
    let address = |bits: u32| Ipv4Addr::from_bits(bits).to_string();
    let protocol = match session.inside.protocol() {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        _ => "icmp",
    };
    let mut line = json!({
        "time": time.as_micros() as f64 / 1e6,
        "event": if note.end.is_some() { "end" } else { "begin" },
        "gateway": known.map(|(name, _, _)| name),
        "rule": rule,
        "protocol": protocol,
        "inside_address": address(session.inside.address()),
        "inside_port": session.inside.port(),
        "outside_address": address(session.outside.address()),
        "outside_port": session.outside.port(),
        "remote_address": address(session.inside.remote()),
        "remote_port": session.inside.remote_port(),
    });
    if let Some(end) = note.end {
        let lived = crate::table::session::tick(note.now).wrapping_sub(session.made);
        line["cause"] = end.name().into();
        line["seconds"] = ((u64::from(lived) << 20) as f64 / 1e9).into();
        line["packets_out"] = session.packets_out.into();
        line["packets_in"] = session.packets_in.into();
    }
    line
}

/// The file that is written, and those that were put aside.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    most: u64,
    kept: u32,
}

impl Files {
    fn open(path: PathBuf, most: u64, kept: u32) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let (file, written) = append(&path)?;
        Ok(Self { path, file, written, most, kept })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.written > 0 && self.written + length > self.most {
            self.turn()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.written += length;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Puts the file aside and begins a new one.
    fn turn(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let aside = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.kept).rev() {
            match fs::rename(aside(number), aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, aside(1))?;
        (self.file, self.written) = append(&self.path)?;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    // Who talked to whom is not for everybody.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((BufWriter::with_capacity(1 << 16, file), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_put_aside_and_only_so_many_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log/nat.log");
        let mut files = Files::open(path.clone(), 100, 3).unwrap();
        for n in 0..100 {
            files.write(&format!("{n:029}")).unwrap();
        }
        files.flush().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join("log").join(name)).unwrap_or_default();
        // Three lines of 30 bytes fit.
        assert_eq!(read("nat.log"), format!("{:029}\n", 99));
        assert_eq!(read("nat.log.1"), format!("{:029}\n{:029}\n{:029}\n", 96, 97, 98));
        assert_eq!(read("nat.log.3"), format!("{:029}\n{:029}\n{:029}\n", 90, 91, 92));
        assert_eq!(read("nat.log.4"), "");
        // What was there is gone on with.
        let mut files = Files::open(path, 100, 3).unwrap();
        files.write("more").unwrap();
        files.flush().unwrap();
        assert_eq!(read("nat.log"), format!("{:029}\nmore\n", 99));
    }
}
