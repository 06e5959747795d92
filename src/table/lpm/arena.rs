//! Where the nodes live: one run of cache lines made of atomic words.
//!
//! When the run is full the writer copies it into one of twice the size and goes on there. Readers find the run
//! that a root belongs to by its number, once a burst, so that a step down the trie is one bounds check and one
//! load. A run that was left behind stays as it was, for readers still in it; all of them together are as large
//! as the newest.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::node::{self, Encoded};
use crate::table::{pages::Pages, prefetch::prefetch_read};

/// Words (8 bytes) in a cache line.
pub const LINE_WORDS: usize = 8;
/// Lines in the first run: 4 KiB, so that a gateway with few routes stays small.
const FIRST_LINES: usize = 64;
/// Run 20 has 2^26 lines, the most that a reference can name.
const RUNS: usize = 21;
const DENSE: u32 = 1 << 31;

/// Names a node: its form (1 bit) and its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference(pub u32);

impl Reference {
    /// No node. Line 0 is never given out.
    pub const NONE: Self = Self(0);

    /// The same lines, holding a dense node.
    pub const fn dense(self) -> Self {
        Self(self.0 | DENSE)
    }

    #[inline(always)]
    pub const fn is_dense(self) -> bool {
        self.0 & DENSE != 0
    }

    pub const fn line(self) -> u32 {
        self.0 & !DENSE
    }

    /// The place of the node's first word; the others follow.
    #[inline(always)]
    pub const fn first_word(self) -> u32 {
        // The form's bit is shifted out.
        self.0 << LINE_WORDS.trailing_zeros()
    }
}

/// One run of lines, as a reader or the writer goes through it: whole cache lines of words.
#[derive(Clone, Copy, Debug)]
pub struct View<'a>(&'a [AtomicU64]);

impl View<'_> {
    /// The number of lines.
    #[inline(always)]
    pub fn lines(self) -> usize {
        self.0.len() / LINE_WORDS
    }

    #[inline(always)]
    fn word(&self, position: u32) -> Option<&AtomicU64> {
        self.0.get(position as usize)
    }

    /// The word at a position; the empty entry where there is none.
    #[inline(always)]
    pub fn load(self, position: u32) -> u64 {
        self.word(position).map_or(node::EMPTY, |word| word.load(Ordering::Relaxed))
    }

    /// Stores a word of a node that no reader can reach.
    pub fn store(self, position: u32, word: u64) {
        if let Some(place) = self.word(position) {
            place.store(word, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub fn prefetch(self, position: u32) {
        if let Some(word) = self.word(position) {
            prefetch_read(word);
        }
    }

    /// The position of the entry for slot `byte` of a node.
    #[inline(always)]
    pub fn position(self, node: Reference, byte: u8) -> u32 {
        let first = node.first_word();
        if node.is_dense() {
            return first + u32::from(byte);
        }
        let marks = self.load(first + u32::from(byte >> 6));
        first + node::entry_index(marks, self.load(first + node::RANKS), byte)
    }

    /// The entry for slot `byte` of a node.
    #[inline(always)]
    pub fn entry(self, node: Reference, byte: u8) -> u64 {
        self.load(self.position(node, byte))
    }
}

/// The runs. Readers and the writer share it; a run appears once and stays.
#[derive(Debug, Default)]
pub struct Arena {
    runs: [OnceLock<Pages<AtomicU64>>; RUNS],
}

impl Arena {
    /// A run; empty if there is none of this number.
    #[inline(always)]
    pub fn view(&self, run: usize) -> View<'_> {
        View(self.runs.get(run).and_then(OnceLock::get).map_or(&[], |words| &**words))
    }

    /// Makes a run that begins as a copy of the one before. `None` when it would be too large.
    fn grow(&self, run: usize) -> Option<usize> {
        let lines = FIRST_LINES << run;
        let place = self.runs.get(run)?;
        if place.get().is_none() {
            place.set(Pages::new(lines * LINE_WORDS).ok()?).ok()?;
        }
        let (new, old) = (self.view(run), self.view(run.checked_sub(1)?));
        for position in 0..(old.lines() * LINE_WORDS) as u32 {
            new.store(position, old.load(position));
        }
        Some(lines)
    }

    /// Bytes in all runs.
    pub fn memory(&self) -> usize {
        self.runs.iter().filter_map(OnceLock::get).map(|run| size_of_val::<[AtomicU64]>(run)).sum()
    }
}

/// The most lines a block can have: those of a dense node.
pub const MAX_LINES: usize = 256 / LINE_WORDS;

/// Which lines of the newest run are free. Owned by the writer.
#[derive(Debug)]
pub struct Allocator {
    /// Free blocks by number of lines.
    free: [Vec<Reference>; MAX_LINES + 1],
    run: usize,
    next: usize,
    end: usize,
}

impl Allocator {
    /// Starts the arena's first run.
    pub fn new(arena: &Arena) -> Self {
        let _ = arena.grow(0);
        let end = arena.view(0).lines();
        // Line 0 stays unused because its reference means "none": whoever looks into it all the same finds nothing.
        let nothing = Encoded::new(&[node::EMPTY; 256], false);
        for (position, word) in (0..).zip(nothing.words()) {
            arena.view(0).store(position, word);
        }
        Self { free: [const { Vec::new() }; MAX_LINES + 1], run: 0, next: 1, end }
    }

    /// The number of the newest run: where the writer works.
    pub fn run(&self) -> usize {
        self.run
    }

    /// A block of `lines` lines (1 to [`MAX_LINES`]). `None` when the arena is full.
    pub fn allocate(&mut self, arena: &Arena, lines: usize) -> Option<Reference> {
        if let Some(block) = self.free.get_mut(lines).and_then(Vec::pop) {
            return Some(block);
        }
        if self.end - self.next < lines {
            if let Some(block) = self.split(lines) {
                return Some(block);
            }
            self.end = arena.grow(self.run + 1)?;
            self.run += 1;
        }
        let block = Reference(self.next as u32);
        self.next += lines;
        Some(block)
    }

    /// Takes the front of a larger free block, before memory grows.
    fn split(&mut self, lines: usize) -> Option<Reference> {
        let (larger, block) = self
            .free
            .iter_mut()
            .enumerate()
            .skip(lines + 1)
            .find_map(|(size, blocks)| Some((size, blocks.pop()?)))?;
        self.release(Reference(block.line() + lines as u32), larger - lines);
        Some(block)
    }

    /// Takes back a block that no reader can reach.
    pub fn release(&mut self, block: Reference, lines: usize) {
        if let Some(blocks) = self.free.get_mut(lines)
            && lines > 0
        {
            blocks.push(Reference(block.line()));
        }
    }
}
