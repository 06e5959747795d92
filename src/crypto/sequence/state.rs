//! The file that remembers which sequence numbers each key may have used.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    Fingerprint, Sequence, StateError, end,
    mapped::{CHUNK, Mapped, zeros},
    record::{self, Bad, FORMAT, GREATEST_STEP, Identity, Kind, Slot},
};
use crate::crypto::replay::Window;

/// How many numbers are reserved at once with ESN: a second at 16 million packets a second.
///
/// A restart passes over what was reserved and not used, up to one and a half times this. The receiver must not see
/// a jump of 2^32 less its window, or it takes the high half of every later number for one too low (RFC 4303
/// appendix A2.2) and never recovers. So it is far less: 170 restarts in a row without one packet received do no
/// harm.
const BLOCK_ESN: u64 = GREATEST_STEP;
/// How many without: of 2^32 in all, a key outlives some 700 restarts.
const BLOCK: u64 = 1 << 22;

/// Keys that are looked at in one call of [`StateFile::top_up`]. Called every millisecond it comes round tens of thousands
/// in some ten; half a block lasts for 0.2 s at ten million packets a second.
const TOPPED_AT_ONCE: usize = 2048;
/// Inbound associations whose newest number is written in one call: each costs two short hashes.
const NOTED_AT_ONCE: usize = 512;

/// The sequence numbers of all outbound keys, and the newest ones received of all inbound associations, on disk.
///
/// # What was received
///
/// Numbers are reserved before they are used, so a kill cannot make a key repeat one. What is received cannot be
/// known before: it is written after, every few milliseconds, and given to the disk every second. After a kill the
/// windows go on from what was written last, after a power cut from what the disk has, after an orderly end from the
/// last packet. Nothing up to there is accepted, so only what came in those last moments could be replayed, once. The
/// other way, refusing more than was surely received, would shut out a slow peer for a long time after every restart.
///
/// The process that has it open is the only one (`flock`). Records stay when a tunnel is gone: its key may come
/// back. What no file can notice is a disk that is rolled back or cloned as a whole: then keys must be replaced.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    file: Mapped,
    keys: Vec<Key>,
    known: HashMap<[u8; 16], usize>,
    /// How many numbers are reserved at once, where not the usual.
    block: Option<u64>,
    /// The record whose window is looked at next.
    turn: usize,
    /// Where the next call of [`StateFile::top_up`] goes on.
    topped: usize,
    /// Records written since the disk last had them: the first and the last.
    unflushed: Option<(usize, usize)>,
}

/// A record, as the disk has it.
#[derive(Debug)]
struct Key {
    /// Names it.
    nonces: [u8; 16],
    /// Seconds since 1970 when it was first seen.
    since: u32,
    /// Inbound, once it is watched.
    window: Option<Arc<Window>>,
    reserved: u64,
    slot: Slot,
    /// Once it was asked for.
    sequence: Option<Arc<Sequence>>,
}

impl StateFile {
    /// Makes a file that knows no key. On disk when this returns.
    ///
    /// # Errors
    /// There is a file already, or none can be made.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, StateError> {
        let path = path.as_ref();
        // Under another name until it is whole: what has the name is never half a file.
        let unfinished = unfinished(path);
        let made = make(&unfinished).and_then(|file| fs::hard_link(&unfinished, path).map(|()| file));
        let removed = fs::remove_file(&unfinished);
        let file = match made {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists { path: path.into() });
            }
            Err(source) => return Err(failed(path, "create", source)),
        };
        removed
            .and_then(|()| File::open(directory(path))?.sync_all())
            .map_err(|e| failed(path, "create", e))?;
        Self::load(path, file)
    }

    /// Opens the file, and checks all of it.
    ///
    /// # Errors
    /// It is missing, or must not be used: each of [`StateError`] says why and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StateError> {
        Self::open_on(path.as_ref(), record::machine(), false)
    }

    /// Opens the file of another machine, whose disk was moved into this one: from now on it is this one's.
    ///
    /// # Errors
    /// As [`Self::open`], but for [`StateError::OtherMachine`].
    pub fn open_moved(path: impl AsRef<Path>) -> Result<Self, StateError> {
        Self::open_on(path.as_ref(), record::machine(), true)
    }

    pub(super) fn open_on(path: &Path, machine: Option<u32>, moved: bool) -> Result<Self, StateError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Missing { path: path.into() });
            }
            Err(source) => return Err(failed(path, "open", source)),
        };
        let metadata = file.metadata().map_err(|e| failed(path, "open", e))?;
        if !metadata.is_file() {
            return Err(StateError::Foreign { path: path.into() });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StateError::Exposed { path: path.into(), mode });
        }
        lock(&file).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => StateError::Locked { path: path.into() },
            _ => failed(path, "lock", source),
        })?;
        let state = Self::load(path, file)?;
        let (Some(machine), Some(header)) = (machine, state.file.chunks().first()) else { return Ok(state) };
        match record::read_machine(header) {
            Some(known) if known != machine && !moved => {
                return Err(StateError::OtherMachine { path: path.into() });
            }
            Some(known) if known == machine => {}
            _ => {
                record::set_machine(header, machine);
                state.file.flush(0..=0).map_err(|e| failed(path, "write", e))?;
            }
        }
        Ok(state)
    }

    fn load(path: &Path, file: File) -> Result<Self, StateError> {
        let metadata = file.metadata().map_err(|e| failed(path, "read", e))?;
        let truncated = |chunks: usize| StateError::Truncated {
            path: path.into(),
            len: metadata.len(),
            expected: (chunks * CHUNK) as u64,
        };
        if metadata.len() < CHUNK as u64 {
            return Err(truncated(1));
        }
        let file = Mapped::new(file).map_err(|e| failed(path, "map", e))?;
        let mut state = Self {
            path: path.into(),
            file,
            keys: Vec::new(),
            known: HashMap::new(),
            block: None,
            turn: 0,
            topped: 0,
            unflushed: None,
        };
        let Some((header, records)) = state.file.chunks().split_first() else { return Err(truncated(1)) };
        let count =
            record::read_header(header, &Identity::of(&metadata)).map_err(|bad| state.bad(bad))? as usize;
        let records = records.get(..count).ok_or_else(|| truncated(1 + count))?;
        let mut repaired = false;
        for (index, chunk) in records.iter().enumerate() {
            let Some(mut said) = record::read(chunk) else {
                return Err(state.corrupted(format!("record {index}")));
            };
            if said.repair {
                record::write(chunk, &said.nonces, said.slot.other(), said.reserved);
                repaired = true;
            }
            said.repair = false;
            let since = said.since.unwrap_or_else(|| {
                // An older program did not write it: its lifetime begins now.
                record::set_since(chunk, now());
                repaired = true;
                now()
            });
            if state.known.insert(said.nonces, index).is_some() {
                return Err(state.corrupted(format!("record {index} is there twice")));
            }
            let record::Said { nonces, reserved, slot, .. } = said;
            state.keys.push(Key { nonces, since, window: None, reserved, slot, sequence: None });
        }
        if repaired {
            state.file.flush(1..=count).map_err(|e| failed(path, "write", e))?;
        }
        Ok(state)
    }

    /// Reserves this many numbers at once, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_block(mut self, block: u64) -> Self {
        self.block = Some(block.clamp(1, GREATEST_STEP));
        self
    }

    /// The numbers of a key, some of them reserved. A key that the file knows goes on beyond whatever it has used;
    /// one that it does not know is new and starts at 1. The same key has the same numbers, under any SPI.
    ///
    /// # Errors
    /// The reservation cannot be written.
    pub fn sequence(&mut self, fingerprint: Fingerprint, esn: bool) -> Result<Arc<Sequence>, StateError> {
        // Looking for one that is ready costs nothing of the others, of which there may be tens of thousands.
        if let Some(sequence) = self.ready(fingerprint) {
            sequence.set_esn(esn);
            if wanted(&sequence, self.block).is_none() {
                return Ok(sequence);
            }
        }
        self.prepare(&[(fingerprint, esn)], &[])?;
        self.ready(fingerprint).ok_or_else(|| self.corrupted("a record is gone".into()))
    }

    fn ready(&self, fingerprint: Fingerprint) -> Option<Arc<Sequence>> {
        let index = self.known.get(&fingerprint.nonces())?;
        self.keys.get(*index)?.sequence.clone()
    }

    /// Does for many keys at once what [`Self::sequence`] does for one, which then need not wait for the disk: it
    /// takes milliseconds a time. Also makes the records of inbound associations.
    ///
    /// # Errors
    /// The reservations cannot be written.
    pub fn prepare(
        &mut self,
        keys: &[(Fingerprint, bool)],
        inbound: &[Fingerprint],
    ) -> Result<(), StateError> {
        let outbound = keys.iter().map(|(key, _)| (key.nonces(), Kind::Outbound));
        let all = outbound.chain(inbound.iter().map(|key| (key.received(), Kind::Inbound)));
        let new: HashMap<[u8; 16], Kind> = all.filter(|(name, _)| !self.known.contains_key(name)).collect();
        if !new.is_empty() {
            self.add(new.into_iter().collect())?;
        }
        for (fingerprint, esn) in keys {
            let index = self.known.get(&fingerprint.nonces());
            let Some(key) = index.and_then(|index| self.keys.get_mut(*index)) else { continue };
            match &key.sequence {
                Some(sequence) => sequence.set_esn(*esn),
                // Nothing can be taken yet: what was reserved by an earlier run may have been used.
                None => key.sequence = Some(Arc::new(Sequence::new(key.reserved, key.reserved, *esn))),
            }
        }
        self.top_up_some(0..usize::MAX)
    }

    /// Reserves more for each key that has less than half a block left, then lets workers take it. To be called
    /// every few milliseconds: of tens of thousands of keys it looks at a part each time.
    ///
    /// # Errors
    /// The disk has not taken it. What was reserved before can be used; call again.
    pub fn top_up(&mut self) -> Result<(), StateError> {
        let first = if self.topped < self.keys.len() { self.topped } else { 0 };
        self.topped = first.saturating_add(TOPPED_AT_ONCE);
        self.top_up_some(first..self.topped)
    }

    fn top_up_some(&mut self, which: std::ops::Range<usize>) -> Result<(), StateError> {
        let mut due = Vec::new();
        let mut written: Option<(usize, usize)> = None;
        let all = self.keys.iter_mut().zip(self.file.chunks().iter().skip(1)).enumerate();
        for (index, (key, chunk)) in all.take(which.end).skip(which.start) {
            let Some(sequence) = &key.sequence else { continue };
            let Some(limit) = wanted(sequence, self.block) else { continue };
            // Already so when numbers of 32 bits have cut the limit for a while.
            if limit > key.reserved {
                record::write(chunk, &key.nonces, key.slot, limit);
                written = Some((written.map_or(index, |(first, _)| first), index));
            }
            due.push((key, limit));
        }
        if let Some((first, last)) = written {
            // On an error the slots stay to be written: a second flush alone could succeed without writing.
            self.file.flush(first + 1..=last + 1).map_err(|e| failed(&self.path, "write", e))?;
        }
        for (key, limit) in due {
            if limit > key.reserved {
                key.reserved = limit;
                key.slot = key.slot.other();
            }
            if let Some(sequence) = &key.sequence {
                sequence.limit.store(limit, Ordering::Release);
            }
        }
        Ok(())
    }

    /// The newest number that is known to have been accepted by an inbound association; 0 for none.
    #[must_use]
    pub fn received(&self, fingerprint: Fingerprint) -> u64 {
        let index = self.known.get(&fingerprint.received());
        index.and_then(|index| self.keys.get(*index)).map_or(0, |key| {
            // One that was retired and comes back may have received more than was written.
            let newest = key.window.as_ref().map_or(0, |window| window.newest());
            newest.max(key.reserved.saturating_sub(1))
        })
    }

    /// Remembers this window's newest number from now on. Only once [`Self::prepare`] has made its record.
    pub fn watch(&mut self, fingerprint: Fingerprint, window: &Arc<Window>) {
        let index = self.known.get(&fingerprint.received());
        if let Some(key) = index.and_then(|index| self.keys.get_mut(*index)) {
            key.window = Some(Arc::clone(window));
        }
    }

    /// Seconds since 1970 when a key was first seen, by this run or an earlier one.
    #[must_use]
    pub fn since(&self, fingerprint: Fingerprint, inbound: bool) -> Option<u32> {
        let name = if inbound { fingerprint.received() } else { fingerprint.nonces() };
        self.keys.get(*self.known.get(&name)?).map(|key| key.since)
    }

    /// Writes the newest numbers of some of the watched windows, where they have changed: what a kill does not lose.
    /// To be called every few milliseconds.
    pub fn note_received(&mut self) {
        let count = self.keys.len();
        let chunks = self.file.chunks();
        for _ in 0..count.min(NOTED_AT_ONCE) {
            self.turn = (self.turn + 1) % count;
            let (Some(key), Some(chunk)) = (self.keys.get_mut(self.turn), chunks.get(self.turn + 1)) else {
                continue;
            };
            let Some(window) = &key.window else { continue };
            let after = window.newest().saturating_add(1);
            if after > key.reserved {
                record::write(chunk, &key.nonces, key.slot, after);
                (key.reserved, key.slot) = (after, key.slot.other());
                let (first, last) = self.unflushed.unwrap_or((self.turn, self.turn));
                self.unflushed = Some((first.min(self.turn), last.max(self.turn)));
            }
        }
    }

    /// Gives what [`Self::note_received`] wrote to the disk: what a power cut does not lose. To be called every
    /// second, and with `all` at the end, when nothing more is received.
    ///
    /// # Errors
    /// The disk has not taken it. What was written before counts; call again.
    pub fn flush_received(&mut self, all: bool) -> Result<(), StateError> {
        if all {
            for _ in 0..self.keys.len().div_ceil(NOTED_AT_ONCE) {
                self.note_received();
            }
        }
        if let Some((first, last)) = self.unflushed {
            self.file.flush(first + 1..=last + 1).map_err(|e| failed(&self.path, "write", e))?;
            self.unflushed = None;
        }
        Ok(())
    }

    /// Adds records, which count only once they are on disk.
    fn add(&mut self, new: Vec<([u8; 16], Kind)>) -> Result<(), StateError> {
        let first = self.keys.len();
        let after = first + new.len();
        while self.file.chunks().len() <= after {
            self.file.grow().map_err(|e| failed(&self.path, "extend", e))?;
        }
        let [header, records @ ..] = self.file.chunks() else {
            return Err(self.corrupted("no header".into()));
        };
        let since = now();
        for (chunk, (nonces, kind)) in records.iter().skip(first).zip(&new) {
            record::write_new(chunk, *nonces, *kind, since);
        }
        self.file.flush(first + 1..=after).map_err(|e| failed(&self.path, "write", e))?;
        record::set_count(header, after as u32);
        self.file.flush(0..=0).map_err(|e| failed(&self.path, "write", e))?;
        for (index, (nonces, _)) in (first..).zip(new) {
            let slot = Slot::First;
            self.keys.push(Key { nonces, since, window: None, reserved: 1, slot, sequence: None });
            self.known.insert(nonces, index);
        }
        Ok(())
    }

    fn bad(&self, bad: Bad) -> StateError {
        let path = self.path.clone();
        match bad {
            Bad::Magic => StateError::Foreign { path },
            Bad::Format(found) => StateError::Version { path, found, known: FORMAT },
            Bad::Identity => StateError::Copied { path },
            Bad::Check => self.corrupted("its header".into()),
            Bad::Count => self.corrupted("its number of records".into()),
        }
    }

    fn corrupted(&self, what: String) -> StateError {
        StateError::Corrupted { path: self.path.clone(), what }
    }
}

/// Seconds since 1970.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs() as u32)
}

/// The limit that a sequence should have now; `None` when the one it has will do.
fn wanted(sequence: &Sequence, block: Option<u64>) -> Option<u64> {
    let end_now = sequence.end.load(Ordering::Relaxed);
    let block = block.unwrap_or(if end_now == end(true) { BLOCK_ESN } else { BLOCK });
    let limit = sequence.limit.load(Ordering::Relaxed);
    let left = limit.saturating_sub(sequence.next());
    (limit < end_now && left < block.div_ceil(2)).then(|| limit.saturating_add(block).min(end_now))
}

/// Makes a whole file, locked, with a name that is not in use.
fn make(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    lock(&file)?;
    let header = record::new_header(&Identity::of(&file.metadata()?), record::machine());
    let mut whole = header.to_vec();
    whole.extend(zeros(header.len() as u64));
    io::Write::write_all(&mut &file, &whole)?;
    file.sync_all()?;
    Ok(file)
}

fn lock(file: &File) -> io::Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name beside `path` that no other call uses.
fn unfinished(path: &Path) -> PathBuf {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".new-{}-{}", process::id(), CALLS.fetch_add(1, Ordering::Relaxed)));
    let unfinished = path.with_file_name(name);
    // A process that had this number and was killed may have left one.
    _ = fs::remove_file(&unfinished);
    unfinished
}

fn failed(path: &Path, doing: &'static str, source: io::Error) -> StateError {
    StateError::Io { path: path.into(), doing, source }
}
