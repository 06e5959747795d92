//! The files that were taken up last, so that there is a way back.
//!
//! One file each in a directory beside the sequence state, which only its owner may enter: the texts may hold keys. A
//! file has a first line that says when, by whom and how it was taken up, and behind it the text as it was. It is
//! written beside its place, given to the disk and moved there, so there is a whole one or none.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::durable;
use crate::config::{FileText, LARGEST_FILE};

/// How many are kept; and as many returns to one, which so push none out.
pub const KEPT: usize = 10;
/// Before what the first line says.
const MARK: &[u8] = b"# causeway ";
/// The longest first line.
const LONGEST_MARK: usize = 16 << 10;

/// How a configuration came into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// The gateway started with it.
    Start,
    /// The file was read again.
    Reload,
    /// `causeway apply`.
    Apply,
    /// `causeway rollback`.
    Rollback,
    /// Nobody confirmed the one before in time.
    Unconfirmed,
}

/// A configuration that was in force, or is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up, over restarts too.
    pub generation: u64,
    /// When it came into force, in seconds since 1970.
    pub time: u64,
    /// The user who asked for it; nobody where it was a signal, the start or the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// How it came into force.
    pub how: How,
    /// The generation that this one is again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<u64>,
    /// The file it was read from. Relative paths in it start there.
    pub file: PathBuf,
    /// The file's permission bits: in one that others may read no key may stand.
    pub mode: u32,
    /// The text's SHA-256, in hexadecimal digits.
    pub digest: String,
    /// How many things it changed.
    pub changes: usize,
}

/// The directory with the last ones.
#[derive(Debug)]
pub struct History {
    dir: PathBuf,
    /// The oldest first.
    entries: Vec<Entry>,
    /// What the next one is called.
    next: u64,
}

/// The directory of a gateway with this sequence state.
#[must_use]
pub fn directory(state: &Path) -> PathBuf {
    state.with_extension("history")
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl History {
    /// Opens the directory, and makes it where there is none.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?,
        }
        let mut history = Self { dir: dir.into(), entries: Vec::new(), next: 1 };
        for found in fs::read_dir(dir)? {
            let name = found?.file_name();
            let Some(generation) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            history.next = history.next.max(generation + 1);
            match history.header(generation) {
                Ok((entry, _)) => history.entries.push(entry),
                Err(error) => tracing::warn!("{}: {error}", history.place(generation).display()),
            }
        }
        history.entries.sort_by_key(|entry| entry.generation);
        Ok(history)
    }

    /// What is kept, the oldest first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What the next one will be called.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    fn place(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("{generation:08}"))
    }

    /// The first line of a file, and what stands behind it.
    fn header(&self, generation: u64) -> io::Result<(Entry, File)> {
        let mut file = File::open(self.place(generation))?;
        let mut line = Vec::new();
        let mut byte = [0];
        // Behind it a text of many megabytes may stand, which nobody wants now.
        while line.len() < LONGEST_MARK && file.read(&mut byte)? == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        let text = line.strip_prefix(MARK).ok_or_else(|| invalid("no file of a history".into()))?;
        let entry: Entry = serde_json::from_slice(text).map_err(|error| invalid(error.to_string()))?;
        if entry.generation == generation { Ok((entry, file)) } else { Err(invalid("renamed".into())) }
    }

    /// Keeps one more, and forgets the oldest. The entry's generation is set here.
    ///
    /// # Errors
    /// It cannot be written; nothing is forgotten then.
    pub fn record(&mut self, mut entry: Entry, text: &[u8]) -> io::Result<&Entry> {
        entry.generation = self.next;
        let header = serde_json::to_vec(&entry)?;
        durable::write(&self.place(entry.generation), &[MARK, &header, b"\n", text])?;
        self.next += 1;
        self.entries.push(entry);
        for returns in [false, true] {
            let of_kind = |entry: &&Entry| entry.again.is_some() == returns;
            let excess = self.entries.iter().filter(of_kind).count().saturating_sub(KEPT);
            let oldest: Vec<u64> =
                self.entries.iter().filter(of_kind).take(excess).map(|entry| entry.generation).collect();
            self.entries.retain(|entry| !oldest.contains(&entry.generation));
            for place in oldest.into_iter().map(|generation| self.place(generation)) {
                if let Err(error) = fs::remove_file(&place) {
                    tracing::warn!("{}: {error}", place.display());
                }
            }
        }
        self.entries.last().ok_or_else(|| invalid("nothing was kept".into()))
    }

    /// One of those that are kept, with its text.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn read(&self, generation: u64) -> io::Result<(Entry, FileText)> {
        let (entry, file) = self.header(generation)?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
        let text = FileText::new(entry.file.clone(), bytes, entry.mode);
        if text.digest() == entry.digest { Ok((entry, text)) } else { Err(invalid("it was changed".into())) }
    }

    /// The one to go back to from the one in force: what was there before, and before what that one is again.
    #[must_use]
    pub fn before(&self, generation: u64) -> Option<u64> {
        let mut at = generation;
        while let Some(again) = self.entries.iter().find(|e| e.generation == at).and_then(|e| e.again) {
            at = again;
        }
        self.entries.iter().rev().map(|entry| entry.generation).find(|number| *number < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(how: How, again: Option<u64>, text: &[u8]) -> Entry {
        let digest = FileText::new("/etc/a".into(), Zeroizing::new(text.to_vec()), 0o600).digest();
        Entry {
            generation: 0,
            time: now(),
            uid: Some(7),
            how,
            again,
            file: "/etc/a".into(),
            mode: 0o600,
            digest,
            changes: 1,
        }
    }

    #[test]
    fn the_last_ten_are_kept_over_restarts_and_only_their_owner_may_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("box.history");
        let mut history = History::open(&dir).unwrap();
        for number in 1..=25u64 {
            let text = format!("text {number}\nwith hex = \"secret\"\n");
            assert_eq!(
                history.record(entry(How::Apply, None, text.as_bytes()), text.as_bytes()).unwrap().generation,
                number
            );
        }
        // What a crash in the middle would leave.
        fs::write(dir.join("00000026.new"), b"# causeway {").unwrap();
        let mut history = History::open(&dir).unwrap();
        let kept: Vec<u64> = history.entries().iter().map(|entry| entry.generation).collect();
        assert_eq!(kept, (16..=25).collect::<Vec<_>>());
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(history.place(25)).unwrap().permissions().mode() & 0o777, 0o600);
        let (found, text) = history.read(16).unwrap();
        assert_eq!(
            (found.generation, found.uid, text.bytes()),
            (16, Some(7), &b"text 16\nwith hex = \"secret\"\n"[..])
        );
        assert!(history.read(15).is_err());
        assert_eq!(history.record(entry(How::Start, None, b"x"), b"x").unwrap().generation, 26);
        // One that somebody changed is not taken for what it was.
        let place = history.place(20);
        let changed = String::from_utf8(fs::read(&place).unwrap()).unwrap().replace("text 20", "text 21");
        fs::write(&place, changed).unwrap();
        assert!(history.read(20).unwrap_err().to_string().contains("changed"));
    }

    #[test]
    fn going_back_again_and_again_goes_further_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        for _ in 0..3 {
            history.record(entry(How::Apply, None, b"x"), b"x").unwrap();
        }
        assert_eq!(history.before(3), Some(2));
        history.record(entry(How::Rollback, Some(2), b"x"), b"x").unwrap();
        assert_eq!(history.before(4), Some(1));
        history.record(entry(How::Rollback, Some(1), b"x"), b"x").unwrap();
        assert_eq!(history.before(5), None);
        history.record(entry(How::Apply, None, b"x"), b"x").unwrap();
        assert_eq!(history.before(6), Some(5));
        // Going to and fro does not push out what there is to go to, and is bounded.
        for _ in 0..30 {
            history.record(entry(How::Rollback, Some(1), b"x"), b"x").unwrap();
        }
        assert!(history.read(1).is_ok());
        assert_eq!(history.entries().len(), 4 + KEPT);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4 + KEPT);
    }
}
