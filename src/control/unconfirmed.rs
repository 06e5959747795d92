//! What nobody has confirmed, over the end of the process: no start takes it up by itself.
//!
//! A mark in the history's directory names the file and its text, and what was in force before. It is written before
//! the change is made. While it is there, a start with a file that says the same takes the configuration before in its place.
//! An operator who confirms, or takes up a file without a condition, takes the mark away.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    durable,
    history::{self, History},
};
use crate::config::{Config, Diagnostics, FileText, diff};

/// The mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The generation that nobody has confirmed.
    pub generation: u64,
    /// The file it was read from.
    pub file: PathBuf,
    /// Its text's SHA-256, in hexadecimal digits.
    pub digest: String,
    /// The generation that is to be in force instead.
    pub before: u64,
}

fn place(dir: &Path) -> PathBuf {
    dir.join("unconfirmed")
}

impl Mark {
    /// The mark in a history's directory, where there is one.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        let bytes = durable::read(&place(dir))?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)).transpose()
    }

    /// Writes it, in place of the one there is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        durable::write(&place(dir), &[&serde_json::to_vec(self)?])
    }

    /// Takes the mark away, where there is one.
    ///
    /// # Errors
    /// It is still there.
    pub fn forget(dir: &Path) -> io::Result<()> {
        durable::forget(&place(dir))
    }

    /// Whether a text says what nobody has confirmed, be it in other words.
    fn is_of(&self, text: &FileText, config: &Config, history: &History) -> bool {
        if text.digest() == self.digest {
            return true;
        }
        let Ok((_, marked)) = history.read(self.generation) else { return false };
        let named = config.system.name.value.as_str();
        marked.digest() == self.digest
            && marked
                .check(Some(named))
                .is_ok_and(|(marked, _)| diff::compare(&marked, config).changes.is_empty())
    }
}

/// The mark of a gateway that runs, as it stands in the history's directory: of a change that waits, or was taken back.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    mark: Option<Mark>,
}

impl Kept {
    /// What stands in the directory.
    #[must_use]
    pub fn read(dir: PathBuf) -> Self {
        let mark = Mark::read(&dir).unwrap_or_default();
        Self { dir, mark }
    }

    /// The mark, where there is one.
    #[must_use]
    pub const fn get(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Writes this mark in place of the one there is. The result is why it is not kept.
    pub fn set(&mut self, mark: Mark) -> Option<io::Error> {
        match mark.write(&self.dir) {
            Ok(()) => {
                self.mark = Some(mark);
                None
            }
            Err(error) => {
                tracing::error!("that nobody has confirmed {} is not kept: {error}", mark.file.display());
                Some(error)
            }
        }
    }

    /// What was not confirmed is, or is somebody's will all the same.
    pub fn forget(&mut self) {
        if self.mark.take().is_some()
            && let Err(error) = Mark::forget(&self.dir)
        {
            tracing::error!(
                "the next start may take the configuration before: {}: {error}",
                self.dir.display()
            );
        }
    }
}

/// What a gateway starts with in place of its file.
#[derive(Debug)]
pub struct Instead {
    /// The text that was in force before.
    pub text: FileText,
    /// What it says.
    pub config: Config,
    /// Warnings about it.
    pub warnings: Diagnostics,
    /// Why.
    pub mark: Mark,
}

/// What to start with in place of a file, where that says what nobody has confirmed. Changes nothing: another gateway
/// may run with this state.
#[must_use]
pub fn instead_of(text: &FileText, config: &Config) -> Option<Instead> {
    let dir = history::directory(&config.system.state.value.0);
    let mark = Mark::read(&dir).unwrap_or_else(|error| {
        tracing::error!("whether a change waits to be confirmed is not known: {}: {error}", dir.display());
        None
    })?;
    let failed = |why: &dyn std::fmt::Display| {
        tracing::error!(
            "{} says what nobody has confirmed (generation {}), but is taken up: generation {} cannot be: {why}",
            text.path().display(),
            mark.generation,
            mark.before
        );
    };
    let history = History::open(&dir).map_err(|error| failed(&error)).ok()?;
    if !mark.is_of(text, config, &history) {
        return None;
    }
    let (_, before) = history.read(mark.before).map_err(|error| failed(&error)).ok()?;
    let named = config.system.name.value.as_str();
    let (config, warnings) = before.check(Some(named)).map_err(|error| failed(&error)).ok()?;
    Some(Instead { text: before, config, warnings, mark })
}
