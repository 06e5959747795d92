//! Numbers in one process; runs that are killed are in `tests/crypto_sequence_kill.rs`.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::{Arc, Barrier},
    thread,
};

use proptest::prelude::*;

use super::{mapped::CHUNK, record::GREATEST_STEP, *};
use crate::crypto::replay::Window;

fn key(n: u8) -> Fingerprint {
    Fingerprint::of(1000, &[n; 16], [n; 4])
}

#[test]
fn the_last_number_without_esn_is_all_ones() {
    let sequence = Sequence::ephemeral(0xffff_fffd, false);
    assert_eq!(sequence.remaining(), 3);
    assert_eq!(sequence.take(4), None);
    assert_eq!(sequence.take(2), Some(0xffff_fffd..0xffff_ffff));
    assert_eq!(sequence.take(2), None);
    assert!(!sequence.is_exhausted());
    assert_eq!(sequence.take(1), Some(0xffff_ffff..0x1_0000_0000));
    assert_eq!(sequence.take(1), None);
    assert!(sequence.is_exhausted());
    assert_eq!(sequence.take(0).map(Iterator::count), Some(0));
}

#[test]
fn with_esn_numbers_go_on_to_the_end_of_64_bits() {
    let sequence = Sequence::ephemeral(0xffff_ffff, true);
    assert_eq!(sequence.take(2), Some(0xffff_ffff..0x1_0000_0001));
    let sequence = Sequence::ephemeral(u64::MAX - 2, true);
    assert_eq!(sequence.take(u32::MAX), None);
    assert_eq!(sequence.take(2), Some(u64::MAX - 2..u64::MAX));
    assert_eq!(sequence.take(1), None);
    assert!(sequence.is_exhausted());
    assert_eq!(Sequence::ephemeral(u64::MAX, true).take(1), None);
}

#[test]
fn zero_is_no_number() {
    assert_eq!(Sequence::ephemeral(0, false).take(1), Some(1..2));
}

#[test]
fn turning_esn_off_ends_what_is_beyond_32_bits() {
    let sequence = Sequence::new(1 << 33, 1 << 34, true);
    sequence.set_esn(false);
    assert_eq!(sequence.take(1), None);
    assert!(sequence.is_exhausted());
    sequence.set_esn(true);
    assert!(!sequence.is_exhausted());
    assert_eq!(sequence.next(), 1 << 33);
}

proptest! {
    /// Takes in a row follow each other, and never pass the limit, whatever sizes are asked for.
    #[test]
    fn takes_exactly_what_was_asked(
        first in 1..200u64,
        room in 0..2000u64,
        sizes in prop::collection::vec(0..100u32, 0..100),
    ) {
        let sequence = Sequence::new(first, first + room, false);
        let mut next = first;
        for n in sizes {
            let expect = (next + u64::from(n) <= first + room).then(|| next..next + u64::from(n));
            next = expect.as_ref().map_or(next, |taken| taken.end);
            prop_assert_eq!(sequence.take(n), expect);
            prop_assert_eq!(sequence.next(), next);
        }
    }
}

/// Empties a sequence from several threads, while `meanwhile` runs again and again; returns how often each number
/// below `end` was taken.
fn empty(sequence: &Arc<Sequence>, end: u64, mut meanwhile: impl FnMut()) -> Vec<u8> {
    let mut seen = vec![0u8; end as usize];
    let together = Barrier::new(4);
    thread::scope(|scope| {
        let workers: Vec<_> = (1..=4u32)
            .map(|n| {
                let (sequence, together) = (Arc::clone(sequence), &together);
                scope.spawn(move || {
                    together.wait();
                    let mut taken = Vec::new();
                    while sequence.next() < end - 100 {
                        match sequence.take(n).or_else(|| sequence.take(1)) {
                            Some(range) => taken.push(range),
                            None => thread::yield_now(),
                        }
                    }
                    taken
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            meanwhile();
        }
        for number in workers.into_iter().flat_map(|worker| worker.join().unwrap()).flatten() {
            seen[number as usize] += 1;
        }
    });
    seen
}

/// Every number from `first` on was taken exactly once, up to some number beyond `least`.
fn once(seen: &[u8], first: usize, least: usize) -> bool {
    let taken = seen.iter().skip(first).take_while(|times| **times == 1).count();
    first + taken >= least && seen[..first].iter().chain(&seen[first + taken..]).all(|times| *times == 0)
}

#[test]
fn workers_never_get_the_same_number() {
    // Again and again, as on a busy machine they seldom run at the same moment.
    for _ in 0..5 {
        let sequence = Arc::new(Sequence::ephemeral(1, false));
        assert!(once(&empty(&sequence, 1_000_000, thread::yield_now), 1, 999_900));
    }
}

#[test]
fn workers_never_get_the_same_number_while_more_is_reserved() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = StateFile::create(directory.path().join("state")).unwrap().with_block(512);
    let sequence = file.sequence(key(1), true).unwrap();
    let seen = empty(&sequence, 60_000, || file.top_up().unwrap());
    assert!(once(&seen, 1, 59_900));
    // The next run starts beyond all of them.
    drop(file);
    let mut file = StateFile::open(directory.path().join("state")).unwrap().with_block(512);
    assert!(file.sequence(key(1), true).unwrap().next() >= sequence.next());
}

#[test]
fn what_is_not_reserved_cannot_be_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut file = StateFile::create(&path).unwrap().with_block(10);
    let sequence = file.sequence(key(1), true).unwrap();
    assert_eq!(sequence.take(11), None);
    assert_eq!(sequence.take(5), Some(1..6));
    file.top_up().unwrap();
    // Half a block is left: nothing is reserved.
    assert_eq!(sequence.take(6), None);
    assert_eq!(sequence.take(1), Some(6..7));
    file.top_up().unwrap();
    assert_eq!(sequence.take(14), Some(7..21));
    assert_eq!(sequence.take(1), None);
    assert!(!sequence.is_exhausted());
    drop((file, sequence));
    let mut file = StateFile::open(&path).unwrap().with_block(10);
    assert_eq!(file.sequence(key(1), true).unwrap().take(10), Some(21..31));
}

#[test]
fn keys_are_apart_and_each_is_one_sequence() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut file = StateFile::create(&path).unwrap().with_block(100);
    // More keys than a page holds: the file grows.
    let sequences: Vec<_> = (0..150).map(|n| file.sequence(key(n), true).unwrap()).collect();
    for (n, sequence) in (0..150u8).zip(&sequences) {
        assert_eq!(sequence.take(u32::from(n % 100) + 1).map(|taken| taken.start), Some(1));
        assert!(Arc::ptr_eq(sequence, &file.sequence(key(n), true).unwrap()));
    }
    file.top_up().unwrap();
    drop((file, sequences));
    let mut file = StateFile::open(&path).unwrap().with_block(100);
    for n in (0..150u8).rev() {
        let reserved = if n % 100 > 49 { 201 } else { 101 };
        assert_eq!(file.sequence(key(n), true).unwrap().next(), reserved, "key {n}");
    }
    assert_eq!(file.sequence(key(200), true).unwrap().next(), 1);
}

/// Many keys at once, some known and one twice, are as if asked for one by one.
#[test]
fn many_keys_are_prepared_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut file = StateFile::create(&path).unwrap().with_block(100);
    let early = file.sequence(key(7), true).unwrap();
    assert_eq!(early.take(10), Some(1..11));
    let keys: Vec<_> = (0..200).chain([3]).map(|n| (key(n), true)).collect();
    file.prepare(&keys, &[]).unwrap();
    assert!(Arc::ptr_eq(&early, &file.sequence(key(7), true).unwrap()));
    let written = fs::read(&path).unwrap();
    for n in (0..200).filter(|n| *n != 7) {
        assert_eq!(file.sequence(key(n), true).unwrap().take(100), Some(1..101), "key {n}");
        if n == 0 {
            assert_eq!(fs::read(&path).unwrap(), written, "nothing was left to write");
        }
    }
    drop((file, early));
    let mut file = StateFile::open(&path).unwrap();
    file.prepare(&keys, &[]).unwrap();
    for n in 0..200 {
        assert!(file.sequence(key(n), true).unwrap().next() >= 101, "key {n}");
    }
}

/// The nonce is salt and number: another SPI does not make the key a new one.
#[test]
fn a_key_goes_on_under_another_spi() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = StateFile::create(directory.path().join("state")).unwrap();
    let one = file.sequence(Fingerprint::of(1, &[1; 32], [1; 4]), true).unwrap();
    let same = file.sequence(Fingerprint::of(2, &[1; 32], [1; 4]), true).unwrap();
    assert!(Arc::ptr_eq(&one, &same));
    let other_salt = file.sequence(Fingerprint::of(1, &[1; 32], [2; 4]), true).unwrap();
    assert!(!Arc::ptr_eq(&one, &other_salt));
}

#[test]
fn blocks_are_far_less_than_a_jump_that_a_receiver_cannot_follow() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let mut used = 0;
    for _ in 0..20 {
        let mut file = StateFile::open(&path).unwrap();
        let sequence = file.sequence(key(1), true).unwrap();
        assert!(
            sequence.next() - used <= (1 << 24) + (1 << 23),
            "a restart passes over {}",
            sequence.next() - used
        );
        used = sequence.take((1 << 23) + 1).unwrap().end - 1;
        file.top_up().unwrap();
    }
}

#[test]
fn without_esn_a_key_ends_and_stays_at_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let mut restarts = 0;
    for _ in 0..1100 {
        let mut file = StateFile::open(&path).unwrap();
        let sequence = file.sequence(key(1), false).unwrap();
        let Some(taken) = sequence.take(1) else { break };
        assert!(taken.end <= 1 << 32);
        restarts += 1;
    }
    assert_eq!(restarts, 1024);
    let mut file = StateFile::open(&path).unwrap();
    let sequence = file.sequence(key(1), false).unwrap();
    assert!(sequence.is_exhausted());
    file.top_up().unwrap();
    assert_eq!(sequence.take(1), None);
    // With ESN, agreed at both ends, the key goes on where it was.
    assert!(Arc::ptr_eq(&sequence, &file.sequence(key(1), true).unwrap()));
    assert_eq!(sequence.take(1), Some(1 << 32..(1 << 32) + 1));
    drop(file.sequence(key(1), false).unwrap());
    assert_eq!(sequence.take(1), None);
    drop(file.sequence(key(1), true).unwrap());
    assert_eq!(sequence.take(1), Some((1 << 32) + 1..(1 << 32) + 2));
}

/// A file with three keys, and the numbers up to which each has used: more than the older slot of its record says.
fn used(path: &Path, times: u32) -> [u64; 3] {
    let mut file = StateFile::create(path).unwrap().with_block(1 << 20);
    let sequences = [1, 2, 3].map(|n| file.sequence(key(n), true).unwrap());
    for _ in 0..times {
        for sequence in &sequences {
            assert!(sequence.take(1 << 20).is_some());
        }
        file.top_up().unwrap();
    }
    for (n, sequence) in (1..).zip(&sequences) {
        assert!(sequence.take(n).is_some());
    }
    sequences.map(|sequence| sequence.next())
}

/// Whichever byte of the file rots, and however: it is refused, or no number comes twice.
#[test]
fn no_damaged_byte_brings_a_number_back() {
    // The newer number is in the one slot or in the other.
    for times in [5, 6] {
        damage_each_byte(times);
    }
}

fn damage_each_byte(times: u32) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let used = used(&path, times);
    let bytes = fs::read(&path).unwrap();
    let (mut refused, mut went_on) = (0, 0);
    for at in 0..CHUNK * 5 {
        for flip in [0x01, 0x80, 0xff] {
            let raw = File::options().write(true).open(&path).unwrap();
            raw.write_all_at(&[bytes[at] ^ flip], at as u64).unwrap();
            match StateFile::open(&path) {
                Ok(mut file) => {
                    went_on += 1;
                    file.prepare(&[1, 2, 3].map(|n| (key(n), true)), &[]).unwrap();
                    for (n, used) in (1..).zip(used) {
                        let next = file.sequence(key(n), true).unwrap().next();
                        assert!(next >= used, "byte {at} ^ {flip:#x} brings {next} of {used} back");
                        assert!(next <= used + (2 << 20) + GREATEST_STEP);
                    }
                }
                Err(
                    StateError::Corrupted { .. } | StateError::Foreign { .. } | StateError::Version { .. },
                ) => {
                    refused += 1;
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
            raw.write_all_at(&bytes, 0).unwrap();
        }
    }
    // Header and names are refused; a number in one of its slots is passed over.
    assert_eq!(refused, 3 * (7 * 8 + 3 * 16));
    assert_eq!(went_on, 3 * CHUNK * 5 - refused);
}

/// Stopped after any number of bytes of a slot's store, old or new: never less than was released, and it goes on.
#[test]
fn a_torn_slot_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut file = StateFile::create(&path).unwrap().with_block(100);
    let sequence = file.sequence(key(1), true).unwrap();
    assert_eq!(sequence.take(90), Some(1..91));
    let before = fs::read(&path).unwrap();
    file.top_up().unwrap();
    let after = fs::read(&path).unwrap();
    drop(file);
    let raw = File::options().write(true).open(&path).unwrap();
    let changed: Vec<usize> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
    assert!(
        changed.len() <= 16 && changed.iter().all(|i| i / CHUNK == 1),
        "one slot of one record: {changed:?}"
    );
    for kept in 0..1u32 << changed.len() {
        let mut torn = before.clone();
        for (_, at) in changed.iter().enumerate().filter(|(n, _)| kept >> n & 1 == 1) {
            torn[*at] = after[*at];
        }
        raw.write_all_at(&torn[..CHUNK * 2], 0).unwrap();
        let chunk = record_of(&torn[CHUNK..]);
        let said = record::read(&chunk).expect("one slot is whole");
        assert!(said.reserved >= 101);
    }
    // The last one through the file: it is repaired, and the repair is kept.
    let mut torn = after;
    torn[changed[0]] ^= 1;
    raw.write_all_at(&torn, 0).unwrap();
    drop(StateFile::open(&path).unwrap());
    let said = record::read(&record_of(&fs::read(&path).unwrap()[CHUNK..])).unwrap();
    assert!(!said.repair && said.reserved == 101 + GREATEST_STEP, "{said:?}");
    for _ in 0..2 {
        let mut file = StateFile::open(&path).unwrap().with_block(100);
        assert!(file.sequence(key(1), true).unwrap().next() >= 101 + GREATEST_STEP);
    }
}

fn record_of(bytes: &[u8]) -> mapped::Chunk {
    let words = bytes.as_chunks::<8>().0;
    std::array::from_fn(|i| AtomicU64::new(u64::from_ne_bytes(words[i])))
}

#[test]
fn a_file_cut_short_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    used(&path, 5);
    for len in (0..CHUNK as u64 * 4).rev() {
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let refused = StateFile::open(&path).unwrap_err();
        assert!(matches!(refused, StateError::Truncated { .. }), "{len}: {refused}");
    }
}

#[test]
fn each_unusable_file_has_its_own_error() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let path = at("state");
    let refused = |path: &Path| StateFile::open(path).unwrap_err();
    assert!(matches!(refused(&path), StateError::Missing { .. }));
    used(&path, 5);
    assert!(matches!(StateFile::create(&path).unwrap_err(), StateError::Exists { .. }));

    fs::copy(&path, at("copy")).unwrap();
    assert!(matches!(refused(&at("copy")), StateError::Copied { .. }));
    // A copy that gets the original's inode number is not the original either.
    fs::remove_file(&path).unwrap();
    fs::copy(at("copy"), &path).unwrap();
    assert!(matches!(refused(&path), StateError::Copied { .. }));
    fs::remove_file(&path).unwrap();
    assert!(matches!(refused(&path), StateError::Missing { .. }));

    used(&path, 5);
    fs::rename(&path, at("moved")).unwrap();
    drop(StateFile::open(at("moved")).unwrap());
    let open = StateFile::open(at("moved")).unwrap();
    assert!(matches!(refused(&at("moved")), StateError::Locked { .. }));
    drop(open);
    for mode in [0o640, 0o604, 0o620, 0o602, 0o601] {
        fs::set_permissions(at("moved"), Permissions::from_mode(mode)).unwrap();
        assert!(matches!(refused(&at("moved")), StateError::Exposed { mode: found, .. } if found == mode));
    }

    fs::write(at("other"), [b'x'; 4096]).unwrap();
    fs::set_permissions(at("other"), Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(refused(&at("other")), StateError::Foreign { .. }));
    assert!(matches!(refused(directory.path()), StateError::Io { .. }));
    assert!(matches!(StateFile::create(at("no/such/state")).unwrap_err(), StateError::Io { .. }));
}

#[test]
fn a_new_file_is_private_and_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let file = StateFile::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(StateFile::open(&path).unwrap_err(), StateError::Locked { .. }));
    drop(file);
    drop(StateFile::open(&path).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left behind");
}

#[test]
fn errors_say_what_to_do() {
    let refused = StateFile::open("/no/such/state").unwrap_err().to_string();
    assert!(refused.contains("/no/such/state") && refused.contains("must not be used again"), "{refused}");
    assert!(refused.contains("causeway run --new-state"), "{refused}");
}

#[test]
fn what_was_received_is_remembered_and_not_accepted_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let mut file = StateFile::create(&path).unwrap();
    file.prepare(&[], &[key(1), key(2)]).unwrap();
    assert_eq!((file.received(key(1)), file.received(key(3))), (0, 0));
    let newest = (5 << 32) + 77;
    let window = Arc::new(Window::new(64, true));
    file.watch(key(1), &window);
    window.mark(newest - 3).unwrap();
    window.mark(newest).unwrap();
    file.note_received();
    // The process is killed here: nothing was flushed, and no orderly end.
    drop(file);
    let mut file = StateFile::open(&path).unwrap();
    assert_eq!((file.received(key(1)), file.received(key(2))), (newest, 0));
    let resumed = Window::resume(1024, true, file.received(key(1)));
    assert_eq!(resumed.esn_guess(newest as u32 + 1), newest + 1);
    for number in newest.saturating_sub(2000)..=newest {
        assert!(resumed.check(number).is_err() && resumed.mark(number).is_err(), "{number}");
    }
    resumed.mark(newest + 1).unwrap();
    // The same key sealing has numbers of its own.
    assert_eq!(file.sequence(key(1), true).unwrap().next(), 1);
    assert!(file.since(key(1), true).is_some() && file.since(key(9), true).is_none());
}

#[test]
fn a_slot_that_was_being_written_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let mut file = StateFile::create(&path).unwrap();
    file.prepare(&[], &[key(1)]).unwrap();
    let window = Arc::new(Window::new(64, true));
    file.watch(key(1), &window);
    for newest in [1000, 2000] {
        window.mark(newest).unwrap();
        file.flush_received(true).unwrap();
    }
    drop(file);
    let bytes = fs::read(&path).unwrap();
    // Either slot's check, in the first record.
    for at in [CHUNK + 24, CHUNK + 40] {
        let mut torn = bytes.clone();
        torn[at] ^= 1;
        fs::write(&path, &torn).unwrap();
        let received = StateFile::open(&path).unwrap().received(key(1));
        assert!(received == 1000 || received == 2000, "{received}");
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn the_file_of_another_machine_is_refused_unless_it_was_moved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let open = |machine, moved| StateFile::open_on(&path, machine, moved);
    drop(open(Some(1), true).unwrap());
    assert!(matches!(open(Some(2), false).unwrap_err(), StateError::OtherMachine { .. }));
    // Where the machine does not say what it is, nothing can be told.
    drop(open(None, false).unwrap());
    drop(open(Some(2), true).unwrap());
    assert!(matches!(open(Some(1), false).unwrap_err(), StateError::OtherMachine { .. }));
    drop(open(Some(2), false).unwrap());
}
