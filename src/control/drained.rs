//! What operators have drained, over restarts: a file beside the sequence state.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{durable, health::Kind};

/// An interface or tunnel that is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Which of the two.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// The file.
#[derive(Debug)]
pub struct Drained {
    place: PathBuf,
    /// What stands in it; nothing is known when it could not be read.
    written: Option<Vec<Way>>,
}

impl Drained {
    /// Of a gateway with this sequence state.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let place = state.with_extension("drained");
        let read = || -> io::Result<Vec<Way>> {
            let bytes = durable::read(&place)?;
            Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.unwrap_or_default())
        };
        let written = read().map_err(|error| {
            tracing::error!("what was drained is not known: {}: {error}", place.display());
        });
        Self { place, written: written.ok() }
    }

    /// What stands in it.
    #[must_use]
    pub fn ways(&self) -> &[Way] {
        self.written.as_deref().unwrap_or_default()
    }

    /// Has the file say that these are drained.
    ///
    /// # Errors
    /// It cannot be written, and says what it said.
    pub fn keep(&mut self, ways: Vec<Way>) -> io::Result<()> {
        if self.written.as_ref() == Some(&ways) {
            return Ok(());
        }
        if ways.is_empty() {
            durable::forget(&self.place)?;
        } else {
            durable::write(&self.place, &[&serde_json::to_vec(&ways)?])?;
        }
        self.written = Some(ways);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drained_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/down/box.state");
        let way = |kind, name: &str| Way { kind, name: name.into() };
        let ways = vec![way(Kind::Interface, "line-1"), way(Kind::Tunnel, "line-1")];
        let mut drained = Drained::open(&state);
        assert_eq!(drained.ways(), []);
        drained.keep(Vec::new()).unwrap();
        assert!(!dir.path().join("deep").exists(), "nothing to keep, no file");
        drained.keep(ways.clone()).unwrap();
        let mut again = Drained::open(&state);
        assert_eq!(again.ways(), ways);
        again.keep(Vec::new()).unwrap();
        assert_eq!(Drained::open(&state).ways(), []);
        // What is no such file is told, not taken for nothing: the next change writes it anew.
        std::fs::write(dir.path().join("deep/down/box.drained"), "[{").unwrap();
        let mut broken = Drained::open(&state);
        assert_eq!(broken.ways(), []);
        broken.keep(Vec::new()).unwrap();
        assert!(!dir.path().join("deep/down/box.drained").exists());
    }
}
