//! What is asked about files, and answered.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{config::diff::Difference, control::history::Entry};

/// A request to take up a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyFile {
    /// The file, which the gateway reads; an absolute path. From then on it is the file that a reload reads.
    pub apply: PathBuf,
    /// Only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Seconds after which the change is taken back, unless it is confirmed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
    /// The digest that the file must have: that of the file whose differences were looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The generation that must be in force: the one that was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A request to go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The generation to return to; 0 for the one before.
    pub rollback: u64,
    /// Only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Seconds after which the change is taken back, unless it is confirmed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
    /// The digest that the text must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The generation that must be in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A request for the configuration in force, as text without keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// How much of it.
    pub config: Extent,
}

/// How much of a configuration to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// What files and commands gave.
    Given,
    /// Also the defaults, as remarks.
    All,
}

/// What came of a request to take up a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What came of it.
    pub result: Came,
    /// The generation in force now.
    pub generation: u64,
    /// The file it was read from.
    pub file: PathBuf,
    /// The text's SHA-256, in hexadecimal digits.
    pub digest: String,
    /// What is different, or would be.
    pub difference: Difference,
    /// Seconds left to confirm it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
    /// Warnings about the file, with their places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// What else is to be known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Came {
    /// It is in force.
    #[serde(rename = "in force")]
    InForce,
    /// It says what was in force already.
    #[serde(rename = "unchanged")]
    Unchanged,
    /// It would be taken up, but that was not asked.
    #[serde(rename = "would be in force")]
    WouldBeInForce,
    /// It would not be: something in it needs a restart.
    #[serde(rename = "needs a restart")]
    NeedsRestart,
}

/// The files taken up last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The oldest first.
    pub entries: Vec<Entry>,
    /// The one in force.
    pub generation: u64,
    /// The file that a reload reads.
    pub file: PathBuf,
    /// Seconds left to confirm the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
}
