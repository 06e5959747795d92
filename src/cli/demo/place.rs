//! The demo's folder: configurations, logs, state, counters.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

const PREFIX: &str = "causeway-demo-";
/// In a folder that is to stay.
const KEPT: &str = "kept";

/// A folder for one run, removed when this value goes.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    kept: bool,
}

fn of(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{pid}"))
}

impl Place {
    /// Makes it. Only this user may look into it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        let path = of(std::process::id());
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path, kept: false })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets it stay when this value goes.
    ///
    /// # Errors
    /// The mark that says so cannot be written.
    pub fn keep(&mut self) -> io::Result<()> {
        fs::write(self.path.join(KEPT), "")?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Whether the demo of this process was to stay.
#[must_use]
pub fn is_kept(pid: u32) -> bool {
    of(pid).join(KEPT).exists()
}

/// Removes folders of demos that have ended: those that are to stay only if `kept`.
pub fn clean(kept: bool) {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() && (kept || !is_kept(pid)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
