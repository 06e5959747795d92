//! Small files that outlive a crash: there is a whole one or none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Writes a file that only its owner may read: beside its place, given to the disk, and moved there.
///
/// # Errors
/// It cannot be written; what stood there before still does.
pub(super) fn write(place: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let dir = place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut new = place.as_os_str().to_owned();
    new.push(".new");
    // What a crash in the middle left.
    forget(Path::new(&new))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(&new, place)?;
    File::open(dir)?.sync_all()
}

/// Removes a file, where there is one.
///
/// # Errors
/// It is still there.
pub(super) fn forget(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The content of a file, where there is one.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(place: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(place) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
