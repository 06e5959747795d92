//! The run directory: what is in it, and whose it is.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::gateway::StartError;

/// The file of the statistics segment of a gateway with this run directory.
#[must_use]
pub fn segment_path(run_dir: &Path) -> PathBuf {
    run_dir.join("stats")
}

/// The control socket of a gateway with this run directory.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// Makes a directory with this mode, and those above it, where there is none.
///
/// # Errors
/// [`StartError::Make`].
pub(super) fn make(path: &Path, mode: u32) -> Result<(), StartError> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let failed = |source| StartError::Make { what: format!("directory {}", path.display()), source };
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Takes the run directory for this process. The kernel lets go of it when the process ends, however that is.
///
/// # Errors
/// [`StartError::Running`] and [`StartError::Make`].
pub(super) fn lock(run_dir: &Path) -> Result<File, StartError> {
    let path = run_dir.join("lock");
    let failed = |source| StartError::Make { what: format!("the lock {}", path.display()), source };
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() }.to_string();
            return Err(StartError::Running { run_dir: run_dir.display().to_string(), pid });
        }
        Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    let write = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    write.map_err(failed)?;
    Ok(file)
}
