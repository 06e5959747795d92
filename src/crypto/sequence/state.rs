//! The file that remembers which sequence numbers each key may have used.

use std::{
    collections::{HashMap, HashSet},
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
};

use rustix::fs::{FlockOperation, flock};

use super::{
    Fingerprint, Sequence, StateError, end,
    mapped::{CHUNK, Mapped, zeros},
    record::{self, Bad, FORMAT, GREATEST_STEP, Identity, Slot},
};

/// How many numbers are reserved at once with ESN: a second at 16 million packets a second.
///
/// A restart passes over what was reserved and not used, up to one and a half times this. The receiver must not see
/// a jump of 2^32 less its window, or it takes the high half of every later number for one too low (RFC 4303
/// appendix A2.2) and never recovers. So it is far less: 170 restarts in a row without one packet received do no
/// harm.
const BLOCK_ESN: u64 = GREATEST_STEP;
/// How many without: of 2^32 in all, a key outlives some 700 restarts.
const BLOCK: u64 = 1 << 22;

/// The sequence numbers of all outbound keys, on disk.
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
}

/// A record, as the disk has it.
#[derive(Debug)]
struct Key {
    nonces: [u8; 16],
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
        let path = path.as_ref();
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
        Self::load(path, file)
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
        let mut state =
            Self { path: path.into(), file, keys: Vec::new(), known: HashMap::new(), block: None };
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
            if state.known.insert(said.nonces, index).is_some() {
                return Err(state.corrupted(format!("record {index} is there twice")));
            }
            let record::Said { nonces, reserved, slot, .. } = said;
            state.keys.push(Key { nonces, reserved, slot, sequence: None });
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
        self.prepare(&[(fingerprint, esn)])?;
        let index = self.known.get(&fingerprint.nonces());
        match index.and_then(|index| self.keys.get(*index)?.sequence.as_ref()) {
            Some(sequence) => Ok(Arc::clone(sequence)),
            None => Err(self.corrupted("a record is gone".into())),
        }
    }

    /// Does for many keys at once what [`Self::sequence`] does for one, which then need not wait for the disk: it
    /// takes milliseconds a time.
    ///
    /// # Errors
    /// The reservations cannot be written.
    pub fn prepare(&mut self, keys: &[(Fingerprint, bool)]) -> Result<(), StateError> {
        let mut new = HashSet::new();
        new.extend(
            keys.iter().map(|(key, _)| key.nonces()).filter(|nonces| !self.known.contains_key(nonces)),
        );
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
        self.top_up()
    }

    /// Reserves more for each key that has less than half a block left, then lets workers take it. To be called
    /// every few milliseconds.
    ///
    /// # Errors
    /// The disk has not taken it. What was reserved before can be used; call again.
    pub fn top_up(&mut self) -> Result<(), StateError> {
        let mut due = Vec::new();
        let mut written: Option<(usize, usize)> = None;
        for (index, (key, chunk)) in self.keys.iter_mut().zip(self.file.chunks().iter().skip(1)).enumerate() {
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

    /// Adds records, which count only once they are on disk.
    fn add(&mut self, new: Vec<[u8; 16]>) -> Result<(), StateError> {
        let first = self.keys.len();
        let after = first + new.len();
        while self.file.chunks().len() <= after {
            self.file.grow().map_err(|e| failed(&self.path, "extend", e))?;
        }
        let [header, records @ ..] = self.file.chunks() else {
            return Err(self.corrupted("no header".into()));
        };
        for (chunk, nonces) in records.iter().skip(first).zip(&new) {
            record::write_new(chunk, *nonces);
        }
        self.file.flush(first + 1..=after).map_err(|e| failed(&self.path, "write", e))?;
        record::set_count(header, after as u32);
        self.file.flush(0..=0).map_err(|e| failed(&self.path, "write", e))?;
        for (index, nonces) in (first..).zip(new) {
            self.keys.push(Key { nonces, reserved: 1, slot: Slot::First, sequence: None });
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
    let header = record::new_header(&Identity::of(&file.metadata()?));
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
