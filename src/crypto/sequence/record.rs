//! What the chunks of a state file say.
//!
//! ```text
//! chunk 0      magic | format | inode | device | time of birth | check of these | number of records | machine
//! chunk 1 …    key's digest (2) | number, check | number, check | kind | first seen
//! ```
//!
//! Chunk 0 never changes but for the number of records, which is one word with its own complement in it, as are the
//! machine, where it is known, and when a key was first seen, in seconds since 1970. A record has two slots, written
//! in turn, the one with the lower number first. Stopped between any two stores, or with only some of them on disk, a
//! record has one whole slot left, of before.
//!
//! An outbound key (kind 0) may use what is below the higher number of the two; numbers of a slot that is not whole
//! were never released. An inbound association (kind 1) has accepted, as far as is known, no number above the higher.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release},
    time::UNIX_EPOCH,
};

use super::{
    fingerprint::digest,
    mapped::{CHUNK, Chunk},
};

/// First bytes of a state file.
const MAGIC: u64 = u64::from_le_bytes(*b"CWAYSEQS");
/// The format written here.
pub(super) const FORMAT: u64 = 1;

/// Marks a record of an inbound association.
const INBOUND: u64 = u64::from_le_bytes(*b"RECEIVED");

/// The greatest step from one number of a record to the next.
///
/// A slot that does not check was either being written or has rotted since: then it may have said as much as this
/// more than the other, and the key goes on from there.
pub(super) const GREATEST_STEP: u64 = 1 << 24;

fn load(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Relaxed))
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value.to_le(), Release);
}

fn check(purpose: &str, words: &[u64]) -> u64 {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    u64::from_le_bytes(digest(purpose, &[&bytes]))
}

/// What makes a file this one and not a copy of it.
///
/// Inode numbers are given out again, so the time of birth, which the file system sets and no program can, is part
/// of it. Where there is none the device's number is instead, which can change when the machine is restarted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    inode: u64,
    device: u64,
    /// Nanoseconds, 0 when the file system does not know.
    born: u64,
}

/// Names this machine: a digest of what its firmware, or else its system, says it is. `None` where neither does.
///
/// A clone of a virtual machine has its files' inodes and times of birth, but nearly always another UUID.
pub(super) fn machine() -> Option<u32> {
    let told = ["/sys/class/dmi/id/product_uuid", "/etc/machine-id"].into_iter().find_map(|path| {
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
    })?;
    Some(u32::from_le_bytes(digest("causeway machine", &[told.as_bytes()])))
}

/// What machine a first chunk says; `None` where it says nothing.
pub(super) fn read_machine(chunk: &Chunk) -> Option<u32> {
    let [.., word] = chunk.each_ref().map(load);
    read_doubled(word)
}

/// Sets the machine, in one store.
pub(super) fn set_machine(chunk: &Chunk, machine: u32) {
    let [.., word] = chunk;
    store(word, count_word(machine));
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            inode: metadata.ino(),
            device: metadata.dev(),
            born: born.map_or(0, |time| time.as_nanos() as u64),
        }
    }

    const fn is(&self, other: &Self) -> bool {
        let same = if self.born != 0 && other.born != 0 {
            self.born == other.born
        } else {
            self.device == other.device
        };
        same && self.inode == other.inode
    }
}

/// Why a first chunk is not that of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    Magic,
    Format(u64),
    Check,
    Identity,
    Count,
}

/// The first chunk of a new file, as bytes.
pub(super) fn new_header(identity: &Identity, machine: Option<u32>) -> [u8; CHUNK] {
    let said = [MAGIC, FORMAT, identity.inode, identity.device, identity.born];
    let words = said.into_iter().chain([
        check("causeway sequence state", &said),
        count_word(0),
        machine.map_or(0, count_word),
    ]);
    let mut bytes = [0; CHUNK];
    for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    bytes
}

/// The number of records that a first chunk says.
pub(super) fn read_header(chunk: &Chunk, file: &Identity) -> Result<u32, Bad> {
    let [magic, format, inode, device, born, checked, count, _] = chunk.each_ref().map(load);
    if magic != MAGIC {
        return Err(Bad::Magic);
    }
    if format != FORMAT {
        return Err(Bad::Format(format));
    }
    if checked != check("causeway sequence state", &[magic, format, inode, device, born]) {
        return Err(Bad::Check);
    }
    if !(Identity { inode, device, born }).is(file) {
        return Err(Bad::Identity);
    }
    if count != count_word(count as u32) {
        return Err(Bad::Count);
    }
    Ok(count as u32)
}

/// Sets the number of records, in one store.
pub(super) fn set_count(chunk: &Chunk, count: u32) {
    let [_, _, _, _, _, _, word, _] = chunk;
    store(word, count_word(count));
}

fn count_word(count: u32) -> u64 {
    u64::from(!count) << 32 | u64::from(count)
}

/// Where one of a record's two numbers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    First,
    Second,
}

impl Slot {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An outbound key: its numbers are reserved.
    Outbound,
    /// An inbound association: its numbers were received.
    Inbound,
}

/// A word of 32 bits and their complement; `None` when it is something else, as zero is.
fn read_doubled(word: u64) -> Option<u32> {
    (word == count_word(word as u32)).then_some(word as u32)
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    /// What it is about.
    pub(super) kind: Kind,
    /// When the key was first seen, in seconds since 1970; unknown in records of an older program.
    pub(super) since: Option<u32>,
    /// Digest of the key and salt.
    pub(super) nonces: [u8; 16],
    /// Outbound: the first number that was never reserved. Inbound: one more than the newest that was received.
    pub(super) reserved: u64,
    /// The slot to write next: not the one that says `reserved`.
    pub(super) slot: Slot,
    /// The slot that says `reserved` does not, and must be written: it was not whole.
    pub(super) repair: bool,
}

/// Reads a record; `None` when it has no whole slot.
pub(super) fn read(chunk: &Chunk) -> Option<Said> {
    let [name, more, first, first_check, second, second_check, kind, since] = chunk.each_ref().map(load);
    let kind = if kind == INBOUND { Kind::Inbound } else { Kind::Outbound };
    // What a slot that is not whole may have said more.
    let lost = if kind == Kind::Outbound { GREATEST_STEP } else { 0 };
    let nonces = join(name, more);
    let whole = |number, checked| (checked == slot_check(&nonces, number)).then_some(number);
    let (reserved, slot, repair) = match (whole(first, first_check), whole(second, second_check)) {
        (Some(first), Some(second)) if first >= second => (first, Slot::Second, false),
        (Some(_), Some(second)) => (second, Slot::First, false),
        (Some(first), None) => (first.saturating_add(lost), Slot::First, true),
        (None, Some(second)) => (second.saturating_add(lost), Slot::Second, true),
        (None, None) => return None,
    };
    Some(Said { kind, since: read_doubled(since), nonces, reserved, slot, repair })
}

/// Writes a record that has reserved or received nothing, in a chunk that does not count yet.
pub(super) fn write_new(chunk: &Chunk, nonces: [u8; 16], kind: Kind, since: u32) {
    let (name, more) = split(nonces);
    let kind = if kind == Kind::Inbound { INBOUND } else { 0 };
    for (word, value) in chunk.iter().zip([name, more, 0, 0, 0, 0, kind, count_word(since)]) {
        store(word, value);
    }
    write(chunk, &nonces, Slot::First, 1);
    write(chunk, &nonces, Slot::Second, 1);
}

/// Writes when a key was first seen, where a record does not say.
pub(super) fn set_since(chunk: &Chunk, since: u32) {
    let [.., word] = chunk;
    store(word, count_word(since));
}

/// Writes a slot of a record.
pub(super) fn write(chunk: &Chunk, nonces: &[u8; 16], slot: Slot, reserved: u64) {
    let [_, _, first, first_check, second, second_check, _, _] = chunk;
    let (number, checked) = match slot {
        Slot::First => (first, first_check),
        Slot::Second => (second, second_check),
    };
    store(number, reserved);
    store(checked, slot_check(nonces, reserved));
}

fn slot_check(nonces: &[u8; 16], number: u64) -> u64 {
    let (name, more) = split(*nonces);
    check("causeway sequence record", &[name, more, number])
}

fn split(nonces: [u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(nonces);
    (both as u64, (both >> 64) as u64)
}

fn join(name: u64, more: u64) -> [u8; 16] {
    (u128::from(more) << 64 | u128::from(name)).to_le_bytes()
}
