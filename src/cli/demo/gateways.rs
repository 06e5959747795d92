//! The demo's two gateways: `pipelines/site-to-site`, on whatever ports and in whatever folder.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::RngCore;
use thiserror::Error;

use super::network::{Network, NetworkError, Process};
use crate::{cli::run::Account, control::gateway::segment_path, stats::Reader};

/// The data centre's gateway.
pub const IDC: &str = include_str!("../../../pipelines/site-to-site/idc.toml");
/// The cloud's.
pub const CLOUD: &str = include_str!("../../../pipelines/site-to-site/cloud.toml");

/// How long a gateway may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a gateway of the demo does not do as it should.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// Its process.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A file.
    #[error("cannot write {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It did not start, or did not go on.
    #[error("gateway {name} {what}{}", said(log))]
    Ended {
        /// The gateway.
        name: String,
        /// What happened.
        what: &'static str,
        /// What it wrote last.
        log: String,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; it said:\n{log}") }
}

/// Keys of one tunnel, both ways: the environment of its gateways.
#[derive(Debug, Clone)]
pub struct Keys([(&'static str, String); 2]);

impl Keys {
    /// New ones.
    #[must_use]
    pub fn random() -> Self {
        let key = || {
            let mut bytes = [0; 20];
            rand::rng().fill_bytes(&mut bytes);
            bytes.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        Self([("CAUSEWAY_CLOUD_KEY_A", key()), ("CAUSEWAY_CLOUD_KEY_B", key())])
    }

    /// Variables and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, variable: &str) -> Option<String> {
        self.iter().find(|(name, _)| *name == variable).map(|(_, value)| value.to_string())
    }
}

/// A configuration with files of its own and on a core of its own.
#[must_use]
pub fn settled(text: &str, core: usize, run_dir: &Path) -> String {
    let (dir, state) = (run_dir.display(), run_dir.join("state"));
    let cores = format!("cores = [{core}]\nrun_dir = \"{dir}\"\nstate = \"{}\"", state.display());
    text.replacen("cores = [1]", &cores, 1)
}

/// The cores of two gateways: the last two that may be used, or twice the only one.
#[must_use]
pub fn cores() -> [usize; 2] {
    let usable: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
    match *usable.as_slice() {
        [.., one, other] => [one, other],
        [only] => [only, only],
        [] => [0, 0],
    }
}

/// A gateway as a process of its own, in a namespace.
#[derive(Debug)]
pub struct GatewayProcess {
    /// The gateway's name.
    pub name: String,
    process: Process,
    run_dir: PathBuf,
    reader: Option<Reader>,
}

impl GatewayProcess {
    /// Starts `causeway run` in a namespace, with `text` as its configuration and all its files in `run_dir`. `own`:
    /// it ends when the calling thread does.
    ///
    /// # Errors
    /// Files cannot be written, or the process not be started. It is not waited for: see [`Self::wait_until_up`].
    pub fn start(
        causeway: &Path,
        network: &Network,
        namespace: &str,
        text: &str,
        run_dir: &Path,
        keys: &Keys,
        own: bool,
    ) -> Result<Self, GatewayError> {
        let name = run_dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let write = |file: &str| {
            let path = run_dir.join(file);
            move |source| GatewayError::File { path, source }
        };
        fs::create_dir_all(run_dir).map_err(write(""))?;
        let file = run_dir.join("gateway.toml");
        fs::write(&file, text).map_err(write("gateway.toml"))?;
        // A gateway that is started again goes on with what it remembers.
        let log =
            File::options().create(true).append(true).open(run_dir.join("log")).map_err(write("log"))?;
        let _ = fs::remove_file(run_dir.join("summary.json"));
        let mut command = network.command(causeway, namespace, own);
        command.arg(causeway).args(["--log", "info", "run"]);
        command.arg("--new-state").arg("--summary").arg(run_dir.join("summary.json")).arg(file);
        command
            .envs(keys.iter())
            .env("NO_COLOR", "1")
            .stdout(log.try_clone().map_err(write("log"))?)
            .stderr(log);
        let process = Process::start(&mut command)?;
        Ok(Self { name, process, run_dir: run_dir.into(), reader: None })
    }

    /// Waits until its ports are open and its counters can be read. `go_on` is asked again and again whether to go
    /// on waiting.
    ///
    /// # Errors
    /// It ended, or takes too long.
    pub fn wait_until_up(&mut self, go_on: &dyn Fn() -> bool) -> Result<(), GatewayError> {
        let since = Instant::now();
        while go_on() {
            self.check()?;
            let own = |reader: &Reader| reader.layout().pid == self.process.id();
            if let Some(reader) = Reader::open(&segment_path(&self.run_dir)).ok().filter(own) {
                self.reader = Some(reader);
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                return Err(self.ended("does not start"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> Result<(), GatewayError> {
        match self.process.child().try_wait() {
            Ok(None) => Ok(()),
            _ => Err(self.ended("has ended")),
        }
    }

    fn ended(&self, what: &'static str) -> GatewayError {
        GatewayError::Ended { name: self.name.clone(), what, log: self.log() }
    }

    /// What it wrote, the last of it.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.run_dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
    }

    /// Its counters, once it is up. They stay readable when it has ended.
    #[must_use]
    pub const fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref()
    }

    /// Its files.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Asks it to end. The counters' last state stays readable.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Ends it without asking, as a crash would.
    pub fn kill(mut self) {
        let _ = self.process.child().kill();
        let _ = self.process.child().wait();
    }

    /// Lets it run on.
    pub fn keep(&mut self) {
        self.process.keep();
    }

    /// Ends it, and takes its account.
    ///
    /// # Errors
    /// It does not end, or leaves no account.
    pub fn stop(&mut self) -> Result<Account, GatewayError> {
        self.terminate();
        let since = Instant::now();
        while let Ok(None) = self.process.child().try_wait() {
            if since.elapsed() > PATIENCE {
                return Err(self.ended("does not end"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let account = fs::read_to_string(self.run_dir.join("summary.json"));
        let account = account.ok().and_then(|text| serde_json::from_str(&text).ok());
        account.ok_or_else(|| self.ended("ended without an account"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn both_files_take_the_demo_s_folder_and_core() {
        let keys = Keys::random();
        for text in [IDC, CLOUD] {
            let text = settled(text, 3, Path::new("/demo/x"));
            let environment = |name: &str| keys.get(name);
            let (config, _) = config::parse(Path::new("x.toml"), &text, &environment).unwrap();
            assert_eq!(config.system.run_dir.value.0, Path::new("/demo/x"));
            assert_eq!(config.system.state.value.0, Path::new("/demo/x/state"));
            assert_eq!(config.system.cores.unwrap().value[0].value.get(), 3);
        }
    }
}
