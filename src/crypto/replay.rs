//! The window that keeps a received packet from being taken twice (RFC 4303 3.4.3).
//!
//! After RFC 6479 the window is a ring of words that is never shifted, with more words than the window needs, so
//! that the one being reused never holds a number still inside. Unlike there, each word carries the number of the
//! block of 32 sequence numbers it stands for beside their bits. One compare-and-swap then answers "is this word
//! still about my block, and was my bit set", which lets several workers share a window without a lock.

use std::{
    fmt, slice,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use arrayvec::ArrayVec;
use thiserror::Error;

/// Sequence numbers of a word.
const BITS: u32 = 32;
/// Number of the block that a sequence number is in.
const BLOCK_SHIFT: u32 = BITS.trailing_zeros();
/// Numbers that are marked at once.
const AT_ONCE: usize = 64;
/// Words of a [`Line`].
const LINE: usize = 16;
/// From this many blocks on (2^36 numbers), which of two truncated block numbers is the newer is not known.
const AMBIGUOUS: u64 = 1 << 31;

/// Why a sequence number is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// Older than the window holds.
    #[error("older than the replay window")]
    Late,
    /// Accepted before.
    #[error("a replayed packet")]
    Replayed,
    /// No sender sends number 0 (RFC 4303 3.3.3).
    #[error("sequence number 0")]
    Zero,
}

/// What became of numbers that were marked together, other than that they were accepted as the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked<'a> {
    /// Accepted numbers in a row, rising, of which none is newer than the newest before them.
    Behind {
        /// The numbers.
        numbers: &'a [u64],
        /// The newest before them.
        newest: u64,
    },
    /// One number, and why it is not accepted.
    Refused(Refused),
}

/// The sequence numbers received of one inbound association.
///
/// # Why it is right
///
/// A number is first shown to `top`, then marked in its word; so no word stands for a block beyond that of `top`.
///
/// - *Never twice.* A word's block only ever grows, and a bit is set by exactly one compare-and-swap. Whoever
///   comes later with the same number finds the bit set, or the word about a newer block. It needs no order
///   between `top` and the words, so all accesses are relaxed.
/// - *Nothing inside is refused.* A window of `size` numbers touches at most `size / 32 + 1` blocks, the newest of
///   them that of `top`. The ring has at least `size / 16` words, which is as many from a size of 64 on. The next
///   newer block in the word of a block inside is therefore newer than `top`.
/// - *Block numbers are kept to 32 bits* and compared as RFC 1982 compares serial numbers, which is right when
///   the two are less than 2^31 blocks (2^36 packets) apart. Whoever advances `top` brings each word passed over
///   to its new block, so no word stays further back than one jump and the ring, however many packets have come
///   and whichever numbers the sender leaves out. A jump is less than 2^33: [`Self::esn_guess`] yields no more.
///   Should one of 2^36 be marked all the same, every word is set outright; then alone, two workers that make
///   such a jump at the same moment could both accept one number.
#[repr(align(64))]
pub struct Window {
    /// Block number in the high half, a bit a number in the low half. Empty when replays are not checked.
    ring: Box<[Line]>,
    size: u64,
    /// The newest number accepted: here when one worker at a time marks, for which plain loads and stores do.
    near: AtomicU64,
    /// When several mark, here: each time one of them writes it the others lose its line, and nothing else with it.
    apart: Option<Box<Apart>>,
}

#[derive(Default)]
#[repr(align(128))]
struct Apart(AtomicU64);

/// Words that workers take from each other, with nothing else: two cache lines, as processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; LINE]);

impl Window {
    /// The least size in sequence numbers.
    pub const LEAST: u32 = 64;
    /// The greatest size in sequence numbers.
    pub const GREATEST: u32 = 65536;

    /// A window over the `size` newest numbers, rounded up to a power of two from 64 to 65536.
    ///
    /// `exclusive`: only one worker at a time calls [`Self::mark`], which then needs no locked instruction.
    #[must_use]
    pub fn new(size: u32, exclusive: bool) -> Self {
        let size = size.clamp(Self::LEAST, Self::GREATEST).next_power_of_two();
        // Words begin with block 0 and no number seen: older than, or the same as, whatever comes.
        let ring = (0..(2 * size / BITS).div_ceil(LINE as u32)).map(|_| Line::default()).collect();
        let apart = if exclusive { None } else { Some(Box::default()) };
        Self { ring, size: size.into(), near: AtomicU64::new(0), apart }
    }

    /// A window that goes on after `newest`, of which it is not known what came before it: nothing up to there is
    /// accepted. For an association that an earlier run, or a window of another size, has received by.
    #[must_use]
    pub fn resume(size: u32, exclusive: bool, newest: u64) -> Self {
        let window = Self::new(size, exclusive);
        window.raise(newest);
        window
    }

    /// Whether several workers mark in it.
    #[inline]
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.apart.is_some()
    }

    /// Where the newest number stands: for whoever asks for its line before it is needed.
    #[inline]
    #[must_use]
    pub fn top(&self) -> &AtomicU64 {
        self.apart.as_ref().map_or(&self.near, |apart| &apart.0)
    }

    /// Refuses every number up to `newest` from now on. An exclusive window only before a worker has it.
    pub fn raise(&self, newest: u64) {
        if self.ring.is_empty() {
            self.top().fetch_max(newest, Relaxed);
            return;
        }
        if newest == 0 {
            return;
        }
        self.advance(newest);
        // All numbers of a block, or those up to the newest.
        self.merge(newest, |block| if block == newest >> BLOCK_SHIFT { up_to(newest) } else { u32::MAX });
    }

    /// Takes over what another window of the same association has seen: what that would refuse, this one refuses from
    /// now on too, and what is still to come inside of both is accepted. An exclusive window only before a worker has
    /// it; the other one may be in use meanwhile.
    pub fn absorb(&self, other: &Self) {
        let newest = other.newest();
        if newest == 0 || self.ring.is_empty() || other.ring.is_empty() {
            // Of a window that remembers nothing all may have been seen.
            return self.raise(newest);
        }
        self.advance(newest);
        // What came before the other's oldest number it does not know.
        let edge = newest.saturating_sub(other.size - 1);
        self.merge(newest, |block| {
            let start = block << BLOCK_SHIFT;
            let unknown = match edge.saturating_sub(start) {
                0 => 0,
                numbers @ 1..32 => u32::MAX >> (u64::from(BITS) - numbers),
                _ => u32::MAX,
            };
            let word = other.word(start).map_or(0, |word| word.load(Relaxed));
            match age(word, block) {
                ..0 => u32::MAX,
                0 => unknown | word as u32,
                1.. => unknown,
            }
        });
    }

    /// Marks, in each block of the ring up to that of `newest`, the numbers that `seen` says of it.
    fn merge(&self, newest: u64, seen: impl Fn(u64) -> u32) {
        let last = newest >> BLOCK_SHIFT;
        for block in (last + 1).saturating_sub(self.words())..=last {
            let Some(word) = self.word(block << BLOCK_SHIFT) else { return };
            let seen = u64::from(block as u32) << BITS | u64::from(seen(block));
            loop {
                let old = word.load(Relaxed);
                let new = match age(old, block) {
                    ..0 => break,
                    0 => old | seen,
                    1.. => seen,
                };
                if self.replace(word, old, new) {
                    break;
                }
            }
        }
    }

    /// No window: accepts every number as often as it comes, and remembers the newest for [`Self::esn_guess`].
    #[must_use]
    pub fn disabled() -> Self {
        // The guess is then the number nearest to the newest one.
        Self { ring: Box::default(), size: 1 << 31, near: AtomicU64::new(0), apart: Some(Box::default()) }
    }

    /// The newest number accepted, 0 before the first.
    #[inline]
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.top().load(Relaxed)
    }

    /// The whole number of a packet that carries its low half (RFC 4303 appendix A2.2): the only number with that
    /// low half from the window's lower edge to 2^32 beyond it.
    #[inline]
    #[must_use]
    pub fn esn_guess(&self, low: u32) -> u64 {
        whole(self.edge_at(self.newest()), low)
    }

    /// The oldest number that the window holds when [`Self::newest`] was this: for [`whole`].
    #[inline]
    #[must_use]
    pub const fn edge_at(&self, newest: u64) -> u64 {
        newest.saturating_sub(self.size - 1)
    }

    /// Whether a number would be accepted: to be asked before a packet is authenticated.
    ///
    /// # Errors
    /// Why it would not be.
    #[inline]
    pub fn check(&self, sequence: u64) -> Result<(), Refused> {
        self.check_at(self.newest(), sequence)
    }

    /// As [`Self::check`] when [`Self::newest`] was this. Whoever asks for many numbers looks it up once: it stands in a
    /// line that other workers write to.
    ///
    /// # Errors
    /// Why it would not be.
    #[inline]
    pub fn check_at(&self, newest: u64, sequence: u64) -> Result<(), Refused> {
        // No number newer than the newest was seen.
        if sequence > newest { Ok(()) } else { self.check_word(newest, sequence) }
    }

    /// As [`Self::check_at`], by the number's word.
    fn check_word(&self, newest: u64, sequence: u64) -> Result<(), Refused> {
        let Some(word) = self.word(sequence) else { return Ok(()) };
        if sequence == 0 {
            return Err(Refused::Zero);
        }
        if newest.saturating_sub(sequence) >= self.size {
            return Err(Refused::Late);
        }
        with_bit(word.load(Relaxed), sequence).map(|_| ())
    }

    /// Accepts a number once: to be told after a packet was authenticated. Returns by how much it was behind the
    /// newest, 0 when it is the newest itself.
    ///
    /// # Errors
    /// Why it is not accepted.
    #[inline]
    pub fn mark(&self, sequence: u64) -> Result<u64, Refused> {
        let top = self.newest();
        let next = (sequence > top) & (sequence ^ top < u64::from(BITS));
        match self.word(sequence) {
            // Nearly always: newer, and in the block of the newest, so that no word is to be brought to a new one.
            Some(word) if next & !self.is_shared() => {
                self.near.store(sequence, Relaxed);
                word.store(with_bit(word.load(Relaxed), sequence)?, Relaxed);
                Ok(0)
            }
            _ => self.mark_word(sequence),
        }
    }

    /// As [`Self::mark`], whatever the number is.
    #[inline(never)]
    fn mark_word(&self, sequence: u64) -> Result<u64, Refused> {
        let Some(word) = self.word(sequence) else { return Ok(self.advance(sequence)) };
        if sequence == 0 {
            return Err(Refused::Zero);
        }
        let lateness = self.advance(sequence);
        if lateness >= self.size {
            return Err(Refused::Late);
        }
        // A turn is repeated only when another worker has changed the word: one of them always gets on.
        loop {
            let old = word.load(Relaxed);
            if self.replace(word, old, with_bit(old, sequence)?) {
                return Ok(lateness);
            }
        }
    }

    /// Accepts several numbers in their order, as [`Self::mark`] one after the other does. `each` is told, by the place of the
    /// first, of all numbers but those that are newer than all before.
    ///
    /// Workers that share a window take its lines from each other. Here the newest number is raised once, and a word
    /// changed once for all numbers in a row that rise in it, where [`Self::mark`] does both for each; and what to do is
    /// worked out first, so that lines asked for before have the time to come.
    #[inline]
    pub fn mark_all(&self, numbers: &[u64], mut each: impl FnMut(usize, Marked<'_>)) {
        for (number, numbers) in numbers.chunks(AT_ONCE).enumerate() {
            self.mark_some(numbers, |place, result| each(number * AT_ONCE + place, result));
        }
    }

    /// As [`Self::mark_all`], of at most [`AT_ONCE`] numbers.
    #[inline]
    fn mark_some(&self, numbers: &[u64], mut each: impl FnMut(usize, Marked<'_>)) {
        let mut runs: ArrayVec<Run, AT_ONCE> = ArrayVec::new();
        let (mut oldest, mut newest, mut rest) = (u64::MAX, 0, numbers);
        while let Some(run) = Run::first(rest) {
            (oldest, newest) = (run.oldest.min(oldest), run.newest.max(newest));
            rest = rest.get(run.numbers..).unwrap_or(&[]);
            // As many as numbers at most, so there is room.
            let _ = runs.try_push(run);
        }
        let mut top = self.newest();
        // None of them makes another late, so it makes no difference which is shown to `top` first.
        let near = newest.saturating_sub(oldest) < self.size;
        let mut passed = if near { self.show(newest).err() } else { None };
        // Now, where that sets words outright.
        if let Some(before) = passed.take_if(|before| is_ambiguous(*before, newest)) {
            self.renew(before, newest);
        }
        let (mut place, mut rest) = (0, numbers);
        for &run in &runs {
            if !near {
                top = top.max(self.newest());
                self.advance(run.newest);
            }
            let (numbers, after) = rest.split_at_checked(run.numbers).unwrap_or((rest, &[]));
            self.mark_run(run, numbers, top, |number, result| each(place + number, result));
            (place, rest, top) = (place + run.numbers, after, top.max(run.newest));
        }
        // Of the words passed over most have been marked since.
        if let Some(before) = passed {
            self.renew(before, newest);
        }
    }

    /// As [`Self::mark_all`], of numbers that rise in one word and have been shown to `top`, which was there before.
    #[inline]
    fn mark_run(&self, run: Run, numbers: &[u64], top: u64, each: impl FnMut(usize, Marked<'_>)) {
        let behind = if run.newest <= top {
            numbers
        } else {
            numbers.split_at(numbers.partition_point(|number| *number <= top)).0
        };
        let Some(word) = self.word(run.oldest) else { return tell_behind(behind, top, each) };
        let inside = (run.oldest != 0) & (top.saturating_sub(run.oldest) < self.size);
        loop {
            let old = word.load(Relaxed);
            match with_bits(old, run.oldest >> BLOCK_SHIFT, run.bits) {
                Ok(new) if inside => {
                    if self.replace(word, old, new) {
                        return tell_behind(behind, top, each);
                    }
                }
                _ => return self.mark_each(word, numbers, top, each),
            }
        }
    }

    /// As [`Self::mark_run`], where not all of the numbers are accepted.
    #[cold]
    fn mark_each(
        &self,
        word: &AtomicU64,
        numbers: &[u64],
        top: u64,
        mut each: impl FnMut(usize, Marked<'_>),
    ) {
        for (place, number) in numbers.iter().enumerate() {
            let refused = loop {
                let old = word.load(Relaxed);
                let new = match with_bit(old, *number) {
                    _ if *number == 0 => break Some(Refused::Zero),
                    _ if top.saturating_sub(*number) >= self.size => break Some(Refused::Late),
                    Ok(new) => new,
                    Err(refused) => break Some(refused),
                };
                if self.replace(word, old, new) {
                    break None;
                }
            };
            match refused {
                Some(refused) => each(place, Marked::Refused(refused)),
                None if *number <= top => {
                    each(place, Marked::Behind { numbers: slice::from_ref(number), newest: top })
                }
                None => {}
            }
        }
    }

    /// The word of a number, of which only the low half counts: for whoever asks for it before it is needed.
    #[inline]
    #[must_use]
    pub fn line(&self, low: u32) -> Option<&AtomicU64> {
        self.word(low.into())
    }

    /// Raises `top` to a newer number, and brings the words passed over to their new blocks; returns how far behind
    /// `top` the number is.
    #[inline]
    fn advance(&self, sequence: u64) -> u64 {
        match self.show(sequence) {
            Ok(lateness) => lateness,
            Err(before) => {
                self.renew(before, sequence);
                0
            }
        }
    }

    /// Raises `top` to a newer number. How far behind `top` the number is, or what `top` was before it was raised.
    #[inline]
    fn show(&self, sequence: u64) -> Result<u64, u64> {
        loop {
            let top = self.newest();
            if sequence <= top {
                return Ok(top - sequence);
            }
            if self.replace(self.top(), top, sequence) {
                return Err(top);
            }
        }
    }

    /// Brings the words of the blocks after that of one number, up to that of another, to their new blocks: at most the
    /// whole ring.
    #[inline]
    fn renew(&self, before: u64, newest: u64) {
        let (from, to) = (before >> BLOCK_SHIFT, newest >> BLOCK_SHIFT);
        let ambiguous = is_ambiguous(before, newest);
        let first = (from + 1).max((to + 1).saturating_sub(self.words()));
        for block in first..=to {
            let Some(word) = self.word(block << BLOCK_SHIFT) else { return };
            let empty = u64::from(block as u32) << BITS;
            loop {
                let old = word.load(Relaxed);
                // Another worker was here first, with this block or a newer one.
                if !ambiguous && age(old, block) <= 0 {
                    break;
                }
                if self.replace(word, old, empty) {
                    break;
                }
            }
        }
    }

    /// The word a number is marked in; none without a window.
    #[inline]
    fn word(&self, sequence: u64) -> Option<&AtomicU64> {
        // The ring's length is a power of two, or zero, where nothing is found.
        let (mask, block) = (self.ring.len().wrapping_sub(1), (sequence >> BLOCK_SHIFT) as usize);
        self.ring.get((block / LINE) & mask).and_then(|line| line.0.get(block % LINE))
    }

    /// Words of the ring.
    const fn words(&self) -> u64 {
        (self.ring.len() * LINE) as u64
    }

    /// Stores `new` if `old` is still there.
    #[inline]
    fn replace(&self, place: &AtomicU64, old: u64, new: u64) -> bool {
        if !self.is_shared() {
            place.store(new, Relaxed);
            return true;
        }
        place.compare_exchange(old, new, Relaxed, Relaxed).is_ok()
    }
}

/// Tells of numbers that were behind, if any.
#[inline]
fn tell_behind(numbers: &[u64], newest: u64, mut each: impl FnMut(usize, Marked<'_>)) {
    if !numbers.is_empty() {
        each(0, Marked::Behind { numbers, newest });
    }
}

/// The whole number of a packet that carries its low half, from the window's lower edge on (RFC 4303 appendix A2.2).
#[inline]
#[must_use]
pub const fn whole(edge: u64, low: u32) -> u64 {
    // The RFC's two cases are one when the edge is kept in 64 bits, where it cannot go below zero either.
    let above = low.wrapping_sub(edge as u32);
    match edge.checked_add(above as u64) {
        Some(number) => number,
        // There is none above: the one below.
        None => edge & !(u32::MAX as u64) | low as u64,
    }
}

/// Buckets of [`behind`].
pub const BUCKETS: usize = 17;

/// The bucket of a distance behind the newest number: 0 is the newest itself, 1 is one behind, 2 is two or three, and
/// so on by powers of two; the last is for all that only the largest window holds.
#[inline]
#[must_use]
pub const fn behind(lateness: u64) -> usize {
    let bucket = (u64::BITS - lateness.leading_zeros()) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The bits of a block's numbers up to one of them.
#[inline]
const fn up_to(sequence: u64) -> u32 {
    u32::MAX >> (BITS - 1 - (sequence % BITS as u64) as u32)
}

/// Whether, from one number to another, it is not known which of two words is the newer.
#[inline]
const fn is_ambiguous(before: u64, newest: u64) -> bool {
    (newest >> BLOCK_SHIFT) - (before >> BLOCK_SHIFT) >= AMBIGUOUS
}

/// By how many blocks a word is older than a block; negative when it is newer.
#[inline]
const fn age(word: u64, block: u64) -> i32 {
    (block as u32).wrapping_sub((word >> BITS) as u32).cast_signed()
}

/// A word with the bit of a number set.
#[inline]
const fn with_bit(word: u64, sequence: u64) -> Result<u64, Refused> {
    with_bits(word, sequence >> BLOCK_SHIFT, bit(sequence))
}

/// The bit of a number in its word.
#[inline]
const fn bit(sequence: u64) -> u64 {
    1 << (sequence & (BITS - 1) as u64)
}

/// A word with some bits of a block set, none of which is to be set before.
#[inline]
const fn with_bits(word: u64, block: u64, bits: u64) -> Result<u64, Refused> {
    match age(word, block) {
        // Another worker has passed the window on meanwhile.
        ..0 => Err(Refused::Late),
        0 if word & bits != 0 => Err(Refused::Replayed),
        0 => Ok(word | bits),
        1.. => Ok((block as u32 as u64) << BITS | bits),
    }
}

/// Numbers in a row that rise and stand in one word.
#[derive(Debug, Clone, Copy)]
struct Run {
    oldest: u64,
    newest: u64,
    /// How many.
    numbers: usize,
    /// Their bits.
    bits: u64,
}

impl Run {
    /// Those that numbers begin with.
    #[inline]
    fn first(numbers: &[u64]) -> Option<Self> {
        let (&oldest, rest) = numbers.split_first()?;
        // Its word's last number.
        let last = oldest | u64::from(BITS - 1);
        let mut run = Self { oldest, newest: oldest, numbers: 1, bits: bit(oldest) };
        for &number in rest {
            if (number <= run.newest) | (number > last) {
                break;
            }
            run = Self { newest: number, numbers: run.numbers + 1, bits: run.bits | bit(number), ..run };
        }
        Some(run)
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("newest", &self.newest())
            .field("size", &if self.ring.is_empty() { 0 } else { self.size })
            .field("exclusive", &!self.is_shared())
            .finish()
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
