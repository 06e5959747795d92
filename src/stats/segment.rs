//! The file of counters that workers write and readers map.
#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{Mmap, MmapRaw};
use thiserror::Error;

use super::Layout;

/// First bytes of a segment.
const MAGIC: &[u8; 8] = b"CAUSEWAY";
const VERSION: u64 = 1;
/// Magic, version, bytes of the layout, offset of the first cell: 8 bytes each.
const HEADER: usize = 32;
const PAGE: usize = 4096;
/// A layout larger than this is no layout: a bound on what a reader believes.
const MAX_LAYOUT: u64 = 64 << 20;

/// Why a segment cannot be made or read.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// The file cannot be opened, made or mapped.
    #[error("cannot open the statistics segment {path}: {source}")]
    Io {
        /// The segment's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no segment, or of another version.
    #[error("{path} is no statistics segment of this version: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The writers' side: mapped memory, backed by a file or not.
#[derive(Debug)]
pub struct Segment {
    map: MmapRaw,
    first: usize,
    /// Number of cells. Asked for with every count, so not worked out again from the layout.
    count: usize,
    layout: Layout,
    /// The file, and its device and inode: another may stand under its name by now.
    file: Option<(PathBuf, (u64, u64))>,
}

impl Segment {
    /// A segment that only this process sees.
    ///
    /// # Errors
    /// No memory.
    pub fn anonymous(layout: Layout) -> io::Result<Self> {
        let len = (layout.block() * layout.workers * 8).max(PAGE);
        let map = memmap2::MmapOptions::new().len(len).map_anon()?.into();
        Ok(Self { map, first: 0, count: layout.block() * layout.workers, layout, file: None })
    }

    /// A segment in a file that others may read, once it is shown. The file goes when the segment is dropped, unless a
    /// newer one has taken its place.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn hidden(path: &Path, layout: Layout) -> Result<Self, SegmentError> {
        let failed = |source| SegmentError::Io { path: path.into(), source };
        let text = serde_json::to_vec(&layout).map_err(|e| failed(e.into()))?;
        let first = (HEADER + text.len()).next_multiple_of(PAGE);
        let len = first + (layout.block() * layout.workers * 8).next_multiple_of(PAGE);
        let mut header = Vec::with_capacity(first);
        header.extend_from_slice(MAGIC);
        for word in [VERSION, text.len() as u64, first as u64] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header.extend_from_slice(&text);

        let new = hidden(path);
        let _ = fs::remove_file(&new);
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create_new(true).mode(0o644).open(&new).map_err(failed)?;
        file.set_len(len as u64).map_err(failed)?;
        io::Write::write_all(&mut &file, &header).map_err(failed)?;
        let map = MmapRaw::map_raw(&file).map_err(failed)?;
        let made = file.metadata().map_err(failed)?;
        let count = layout.block() * layout.workers;
        Ok(Self { map, first, count, layout, file: Some((path.into(), (made.dev(), made.ino()))) })
    }

    /// Gives the file its name. An older one is replaced, not overwritten, so that whoever has it mapped keeps a
    /// consistent, if old, picture.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub fn show(&self) -> Result<(), SegmentError> {
        let Some((path, _)) = &self.file else { return Ok(()) };
        fs::rename(hidden(path), path).map_err(|source| SegmentError::Io { path: path.clone(), source })
    }

    /// A segment in a file that others may read from now on.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, layout: Layout) -> Result<Self, SegmentError> {
        let segment = Self::hidden(path, layout)?;
        segment.show()?;
        Ok(segment)
    }

    /// What the segment holds.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All cells, worker after worker.
    #[inline]
    #[must_use]
    pub fn cells(&self) -> &[AtomicU64] {
        // SAFETY: `first` is a multiple of a page and below the mapping's length (see the constructors).
        let start = unsafe { self.map.as_ptr().add(self.first) };
        // SAFETY: the mapping is at least `first + 8 * count` long, page-aligned and lives as long as `self`; it is
        // only ever accessed as atomics, by this process and by readers.
        unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), self.count) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let Some((path, identity)) = &self.file else { return };
        for name in [path, &hidden(path)] {
            if fs::metadata(name).is_ok_and(|found| (found.dev(), found.ino()) == *identity) {
                let _ = fs::remove_file(name);
            }
        }
    }
}

/// The name of a segment's file until it is shown.
fn hidden(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// The readers' side: a segment of another process, mapped for reading.
#[derive(Debug)]
pub struct Reader {
    map: Mmap,
    first: usize,
    layout: Layout,
}

impl Reader {
    /// Maps the segment in `path`.
    ///
    /// # Errors
    /// The file cannot be opened, or is no segment.
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        let failed = |source| SegmentError::Io { path: path.into(), source };
        let wrong = |why: String| SegmentError::Format { path: path.into(), why };
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the writer never shortens the file (a new segment is a new file), so the mapping stays readable;
        // its cells are only read as atomics, its header is written before the file has its name.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let word = |at: usize| {
            let bytes = map.get(at..at + 8).and_then(|b| b.first_chunk::<8>());
            bytes.map(|b| u64::from_le_bytes(*b)).ok_or_else(|| wrong("it is too short".into()))
        };
        if map.get(..8) != Some(MAGIC) {
            return Err(wrong("its first bytes are others".into()));
        }
        if word(8)? != VERSION {
            return Err(wrong(format!("its version is {}, not {VERSION}", word(8)?)));
        }
        let text = word(16)?.min(MAX_LAYOUT) as usize;
        let text = map.get(HEADER..HEADER + text).ok_or_else(|| wrong("its layout is cut short".into()))?;
        let layout: Layout = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        let first = word(24)? as usize;
        let cells = layout.block().checked_mul(layout.workers).and_then(|n| n.checked_mul(8));
        let end = cells.and_then(|n| n.checked_add(first));
        if !first.is_multiple_of(8) || end.is_none_or(|end| end > map.len()) {
            return Err(wrong("its counters are cut short".into()));
        }
        Ok(Self { map, first, layout })
    }

    /// What the segment holds.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    fn cell(&self, worker: usize, cell: usize) -> u64 {
        let at = self.first + (worker * self.layout.block() + cell) * 8;
        let Some(bytes) = self.map.get(at..at + 8) else { return 0 };
        // SAFETY: eight mapped bytes, aligned (the first cell is, and cells are 8 bytes), that a writer may change
        // at any time, hence the atomic.
        let cell = unsafe { &*bytes.as_ptr().cast::<AtomicU64>() };
        cell.load(Ordering::Relaxed)
    }

    /// The counter at `row` and `column` of `group`, of one worker. Zero where there is none.
    #[must_use]
    pub fn of_worker(&self, worker: usize, group: &str, row: usize, column: &str) -> u64 {
        let Some(group) = self.layout.group(group) else { return 0 };
        let column = group.columns.iter().position(|c| c == column);
        let cell = column.and_then(|column| group.cell(row, column));
        cell.filter(|_| worker < self.layout.workers).map_or(0, |cell| self.cell(worker, cell))
    }

    /// The counter at `row` and `column` of `group`, of all workers together.
    #[must_use]
    pub fn total(&self, group: &str, row: usize, column: &str) -> u64 {
        (0..self.layout.workers).map(|w| self.of_worker(w, group, row, column)).sum()
    }

    /// The column's sum over all rows of `group` and all workers.
    #[must_use]
    pub fn sum(&self, group: &str, column: &str) -> u64 {
        let rows = self.layout.group(group).map_or(0, |g| g.rows.len());
        (0..rows).map(|row| self.total(group, row, column)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect::<Vec<_>>();
        Layout::new("test", 2, 1_000, vec![("interface", names(&["a", "b"]), names(&["packets", "bytes"]))])
    }

    #[test]
    fn a_reader_sees_what_workers_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let segment = Segment::create(&path, layout()).unwrap();
        let cell = segment.layout().group("interface").unwrap().cell(1, 0).unwrap();
        segment.cells()[cell].store(5, Ordering::Relaxed);
        segment.cells()[segment.layout().block() + cell].store(7, Ordering::Relaxed);
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.layout(), segment.layout());
        assert_eq!(reader.total("interface", 1, "packets"), 12);
        assert_eq!(reader.of_worker(1, "interface", 1, "packets"), 7);
        assert_eq!(reader.sum("interface", "packets"), 12);
        assert_eq!(reader.total("interface", 9, "packets") + reader.total("x", 0, "y"), 0);
        drop(segment);
        assert!(matches!(Reader::open(&path), Err(SegmentError::Io { .. })));
    }

    #[test]
    fn an_old_segment_leaves_the_file_of_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let old = Segment::create(&path, layout()).unwrap();
        let new = Segment::create(&path, layout()).unwrap();
        drop(old);
        assert!(Reader::open(&path).is_ok());
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn a_hidden_segment_leaves_the_file_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let old = Segment::create(&path, layout()).unwrap();
        let new = Segment::hidden(&path, layout()).unwrap();
        old.cells()[0].store(1, Ordering::Relaxed);
        let first = || Reader::open(&path).unwrap().cell(0, 0);
        assert_eq!(first(), 1);
        new.cells()[0].store(2, Ordering::Relaxed);
        new.show().unwrap();
        assert_eq!(first(), 2);
        drop(Segment::hidden(&path, layout()).unwrap());
        assert_eq!(first(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_segment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let segment = Segment::create(&path, layout()).unwrap();
        let good = fs::read(&path).unwrap();
        drop(segment);
        let damages: [(usize, u8); 3] = [(0, b'X'), (8, 9), (40, 0)];
        for (at, byte) in damages {
            let mut bad = good.clone();
            bad[at] = byte;
            fs::write(&path, bad).unwrap();
            assert!(matches!(Reader::open(&path), Err(SegmentError::Format { .. })), "byte {at}");
        }
        for len in [0, 5, 31, 100, PAGE + 8] {
            fs::write(&path, &good[..len]).unwrap();
            assert!(Reader::open(&path).is_err(), "{len} bytes");
        }
    }
}
