//! What the fuzz targets `path` and `config` do, on stable and in every test run, from seeds that reach far and with
//! changes as a fuzzer makes them. `cargo +nightly fuzz run path` goes on from here. (`wire`: `tests/wire_exercise.rs`.)

use std::{fs, path::Path};

use causeway::control::fuzz;
use proptest::{prelude::*, sample::Index};

/// One change of bytes as a fuzzer makes it.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A piece of the bytes goes to another place too.
    Copy(Index, Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        // Ends of numbers, signs of TOML.
        (place(), proptest::sample::select(b"\0\x7f\x80\xff0919-.\"'[]{}=#,\n".to_vec()))
            .prop_map(|(at, byte)| Change::Set(at, byte)),
        (place(), proptest::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, new)| Change::Insert(at, new)),
        (place(), 1..60usize).prop_map(|(at, len)| Change::Remove(at, len)),
        (place(), place(), 1..60usize).prop_map(|(from, to, len)| Change::Copy(from, to, len)),
    ]
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let piece = |at: &Index, most: usize| {
            let start = at.index(len.max(1)).min(len);
            start..(start + most).min(len)
        };
        match self {
            Self::Set(at, byte) if len > 0 => bytes[at.index(len)] = *byte,
            Self::Set(..) => {}
            Self::Insert(at, new) => {
                drop(bytes.splice(at.index(len + 1)..at.index(len + 1), new.iter().copied()))
            }
            Self::Remove(at, most) => drop(bytes.drain(piece(at, *most))),
            Self::Copy(from, to, most) => {
                let copy = bytes[piece(from, *most)].to_vec();
                bytes.splice(to.index(len + 1)..to.index(len + 1), copy);
            }
        }
    }
}

/// Every configuration of `pipelines/`, and the fuzzers' own.
fn examples() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let mut all = vec![fuzz::CONFIG.to_string()];
    for folder in fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "toml"));
        all.extend(files.map(|file| fs::read_to_string(file).unwrap()));
    }
    assert!(all.len() >= 6);
    // In the same order everywhere, so that a failure can be repeated.
    all[1..].sort();
    all
}

#[test]
fn the_configuration_to_be_damaged_is_good() {
    assert!(fuzz::config(fuzz::CONFIG.as_bytes()));
    assert!(!fuzz::config(b"[port.x]"));
}

/// Stories in which all kinds of events come one after the other.
fn story(seed: u8) -> Vec<u8> {
    (0..2000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_configurations_are_refused_or_built(
        which in any::<Index>(),
        changes in proptest::collection::vec(change(), 1..8),
    ) {
        let mut bytes = which.get(&examples()).clone().into_bytes();
        changes.iter().for_each(|change| change.make(&mut bytes));
        fuzz::config(&bytes);
        // Most bytes changed make no text; what is left of it goes in too.
        fuzz::config(String::from_utf8_lossy(&bytes).as_bytes());
    }

    #[test]
    fn hostile_frames_break_no_gateway(story in proptest::collection::vec(any::<u8>(), 0..3000)) {
        fuzz::path(&story);
    }

    #[test]
    fn stories_that_differ_in_little_break_no_gateway(
        seed in any::<u8>(),
        changes in proptest::collection::vec(change(), 1..8),
    ) {
        let mut bytes = story(seed);
        changes.iter().for_each(|change| change.make(&mut bytes));
        fuzz::path(&bytes);
    }
}
