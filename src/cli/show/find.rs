//! Which gateway a command means, and whether it runs.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use clap::Args;
use thiserror::Error;

use crate::{
    control::gateway::{segment_path, socket_path},
    stats::{Reader, SegmentError},
};

/// Where gateways have their run directories, unless their files say otherwise.
const RUN_DIRS: &str = "/run/causeway";

/// Which gateway.
#[derive(Debug, Args, Clone)]
pub struct Which {
    /// The gateway's run directory. Without this and --name: the only one under /run/causeway.
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "name")]
    run_dir: Option<PathBuf>,
    /// The gateway's name: its run directory is /run/causeway/NAME.
    #[arg(long, global = true, value_name = "NAME")]
    name: Option<String>,
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum FindError {
    /// No gateway runs.
    #[error(
        "no gateway runs: there is none under {RUN_DIRS}; if yours has a run_dir of its own, name it with --run-dir"
    )]
    None,
    /// Several do.
    #[error("several gateways run: choose one with --name: {0}")]
    Several(String),
    /// None runs there.
    #[error("no gateway runs in {0}")]
    NotThere(PathBuf),
    /// Its process is gone.
    #[error(
        "the gateway in {run_dir} is dead: process {pid} ended without cleaning up; start it again, or add --stale to see its last counts"
    )]
    Dead {
        /// Its run directory.
        run_dir: PathBuf,
        /// Its process.
        pid: u32,
    },
    /// The statistics are not for this user.
    #[error("the statistics in {0} may not be read by this user: run this command as root")]
    Permission(PathBuf),
    /// The statistics cannot be read.
    #[error(transparent)]
    Segment(SegmentError),
}

impl Which {
    /// The gateway in this run directory or, where that is no path, of this name.
    #[must_use]
    pub fn of(run_dir_or_name: &Path) -> Self {
        match run_dir_or_name.to_str() {
            Some(name) if !name.contains('/') && name != "." => {
                Self { run_dir: None, name: Some(name.into()) }
            }
            _ => Self { run_dir: Some(run_dir_or_name.into()), name: None },
        }
    }

    /// The run directory.
    ///
    /// # Errors
    /// None or several to choose from.
    pub fn run_dir(&self) -> Result<PathBuf, FindError> {
        match (&self.run_dir, &self.name) {
            (Some(run_dir), _) => Ok(run_dir.clone()),
            (None, Some(name)) => Ok(Path::new(RUN_DIRS).join(name)),
            (None, None) => only_one(Path::new(RUN_DIRS)),
        }
    }

    /// The statistics of the gateway. With `stale` also those that a dead one left.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn open(&self, stale: bool) -> Result<(PathBuf, Reader), FindError> {
        let run_dir = self.run_dir()?;
        let reader = Reader::open(&segment_path(&run_dir)).map_err(|error| match error {
            SegmentError::Io { ref source, .. } => match source.kind() {
                io::ErrorKind::NotFound => FindError::NotThere(run_dir.clone()),
                io::ErrorKind::PermissionDenied => FindError::Permission(run_dir.clone()),
                _ => FindError::Segment(error),
            },
            error => FindError::Segment(error),
        })?;
        let pid = reader.layout().pid;
        if !stale && !lives(&run_dir, pid) {
            return Err(FindError::Dead { run_dir, pid });
        }
        Ok((run_dir, reader))
    }
}

/// Whether the process of a segment lives. Another may have its number by now: its socket says so.
fn lives(run_dir: &Path, pid: u32) -> bool {
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return false;
    }
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    !UnixStream::connect(socket_path(run_dir)).is_err_and(refused)
}

/// The only run directory in `parent` whose gateway runs; else the only one there is.
fn only_one(parent: &Path) -> Result<PathBuf, FindError> {
    let entries = fs::read_dir(parent).map_err(|_| FindError::None)?;
    let mut dead = Vec::new();
    let mut running = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if !segment_path(&path).exists() {
            continue;
        }
        // One that cannot be read is not passed over: the error says why.
        match Reader::open(&segment_path(&path)) {
            Ok(reader) if !lives(&path, reader.layout().pid) => dead.push(path),
            _ => running.push(path),
        }
    }
    running.sort();
    match (running.as_slice(), dead.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one.clone()),
        ([], _) => Err(FindError::None),
        (several, _) => {
            let names: Vec<_> = several.iter().filter_map(|p| p.file_name()?.to_str()).collect();
            Err(FindError::Several(names.join(", ")))
        }
    }
}
