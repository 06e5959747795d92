//! Why sequence numbers cannot be had, and what to do then.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a state file is not used. Each says what to do; none of them is got round by starting at 1 again.
#[derive(Debug, Error)]
pub enum StateError {
    /// There is no file.
    #[error(
        "the sequence state file {path} is missing. A key whose state is lost must not be used again, as its packets \
         would repeat nonces. If the file was only moved within its file system, move it back. Otherwise give every \
         tunnel a new key, on both ends, and start once with `causeway run --new-state`"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A new file is asked for where there is one.
    #[error(
        "the sequence state file {path} exists already and is not replaced: the keys it knows would start again. \
         Start without `--new-state`, or name another file"
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error(
        "the sequence state file {path} is in use by another process. One gateway at a time may use a state file: \
         stop the other one, or give this one a file and keys of its own"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error(
        "the sequence state file {path} has mode {mode:04o}, so that others than its owner can read or write it. \
         Run `chmod 600` on it, after making sure that nobody has changed it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not the file that was created, but a copy.
    #[error(
        "the sequence state file {path} is a copy. It may be older than the numbers that were used, so it is not \
         trusted: put the original back by moving it within its file system, or give every tunnel a new key, on \
         both ends, remove the copy and start once with `causeway run --new-state`"
    )]
    Copied {
        /// The file.
        path: PathBuf,
    },
    /// Another machine used it last.
    #[error(
        "the sequence state file {path} is of another machine. If that machine may still run, or was cloned or \
         restored from a backup, its keys may have been used beyond what the file says: give every tunnel a new key, \
         on both ends, remove the file and start once with `causeway run --new-state`. If its disk was moved here and \
         nothing else has its keys, start once with `causeway run --moved-state`"
    )]
    OtherMachine {
        /// The file.
        path: PathBuf,
    },
    /// It is shorter than it says.
    #[error(
        "the sequence state file {path} is cut short: {len} bytes of {expected}. Give every tunnel a new key, on both \
         ends, move the file away and start once with `causeway run --new-state`"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        len: u64,
        /// The bytes it must have.
        expected: u64,
    },
    /// It says what cannot be.
    #[error(
        "the sequence state file {path} is damaged ({what}). Give every tunnel a new key, on both ends, move the file \
         away and start once with `causeway run --new-state`"
    )]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// Where.
        what: String,
    },
    /// It is something else.
    #[error("{path} is not a sequence state file: check the path in the configuration")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another version of this program wrote it.
    #[error(
        "the sequence state file {path} is of format {found}, and this program knows only format {known}: run the \
         version of causeway that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format known here.
        known: u64,
    },
    /// The system refuses. While running, numbers that are reserved already can still be used.
    #[error("cannot {doing} the sequence state file {path}: {source}. Check the disk, and who owns the file")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
