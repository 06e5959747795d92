//! Sequence numbers over runs that are killed at any moment: no number comes twice.
//!
//! This program starts itself again as the run that is killed, with [`ROLE`] set and [`run`] as the only test. A run
//! writes each number it takes to a pipe, before it would be used; what is in the pipe outlives it.

#[path = "common/emulated.rs"]
mod emulated;

use std::{
    collections::HashSet,
    env,
    fs::{self, Permissions},
    io::{self, Read, Write},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use causeway::crypto::{
    replay::Window,
    sequence::{Fingerprint, StateError, StateFile},
};
use rand::Rng;

/// What the started program is to do; unset in the tests themselves.
const ROLE: &str = "SEQUENCE_RUN_ROLE";
const PATH: &str = "SEQUENCE_RUN_PATH";
const KEYS: &str = "SEQUENCE_RUN_KEYS";
const BLOCK: &str = "SEQUENCE_RUN_BLOCK";
/// Bytes of a number in the pipe: the key's and its own. Few enough to be written whole.
const ENTRY: usize = 16;
const SIGKILL: i32 = 9;

fn key(n: u64) -> Fingerprint {
    Fingerprint::of(n as u32, &[n as u8; 32], [9; 4])
}

/// Not a test of its own: the run that the tests start and kill.
#[test]
fn run() {
    let Ok(role) = env::var(ROLE) else { return };
    let path = env::var(PATH).expect("a path");
    let number = |name| env::var(name).expect("set").parse::<u64>().expect("a number");
    match role.as_str() {
        "create" => {
            say(0, 0).expect("the pipe");
            drop(StateFile::create(path));
        }
        // Until killed, or until it has taken enough.
        "forever" => take(&path, number(KEYS), number(BLOCK), u64::MAX),
        "receive" => receive(&path, number(KEYS)),
        "clean" => take(&path, number(KEYS), number(BLOCK), 60),
        other => panic!("no role {other}"),
    }
}

/// Two workers take from every key, while this thread reserves more, as in the gateway.
fn take(path: &str, keys: u64, block: u64, turns: u64) {
    let mut file = StateFile::open(path).expect("the file of earlier runs").with_block(block);
    let sequences: Vec<_> = (0..keys).map(|n| file.sequence(key(n), n % 2 == 0).expect("numbers")).collect();
    thread::scope(|scope| {
        let workers = [1, 3].map(|burst| {
            let sequences = &sequences;
            scope.spawn(move || {
                for _ in 0..turns {
                    for (n, sequence) in (0..).zip(sequences) {
                        for number in sequence.take(burst).into_iter().flatten() {
                            if say(n, number).is_err() {
                                return;
                            }
                        }
                    }
                    thread::yield_now();
                }
            })
        });
        while workers.iter().any(|worker| !worker.is_finished()) {
            file.top_up().expect("more numbers");
        }
    });
}

/// Keys that stand for "this was remembered" in the pipe.
const NOTED: u64 = 1 << 32;

/// Goes on where the file says, in steps of all sizes, and remembers what it receives now and then.
fn receive(path: &str, keys: u64) {
    let mut file = StateFile::open(path).expect("the file of earlier runs");
    let all: Vec<_> = (0..keys).map(key).collect();
    file.prepare(&[], &all).expect("records");
    let windows: Vec<Arc<Window>> = all
        .iter()
        .map(|key| {
            let window = Arc::new(Window::resume(64, true, file.received(*key)));
            file.watch(*key, &window);
            window
        })
        .collect();
    for step in 1u64.. {
        for (n, window) in (0..).zip(&windows) {
            let number = window.newest() + 1 + step % 7 * (step % 5) * 1_000_000_000;
            // Said first: what comes next may be the end.
            if say(n, number).is_err() {
                return;
            }
            window.mark(number).expect("a new number");
        }
        if step % 3 == 0 {
            file.note_received();
            for (n, window) in (0..).zip(&windows) {
                if say(NOTED + n, window.newest()).is_err() {
                    return;
                }
            }
        }
    }
}

/// How long a run lives at most before it is killed, in µs.
const LONGEST: u64 = 25_000;

/// The same for the next run: on a machine that is busy a process takes longer to get anywhere.
const fn longer(longest: u64, got_nowhere: bool) -> u64 {
    if got_nowhere { longest + longest / 16 } else { longest }
}

#[test]
fn what_was_received_before_a_kill_is_not_accepted_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let mut random = rand::rng();
    let (mut spoke, mut known, mut longest) = (0, [0u64; 5], LONGEST);
    for round in 0..60 {
        let keys = 1 + round / 15;
        let time = Duration::from_micros(random.random_range(0..longest));
        let (said, _) = finish(start("receive", &path, keys, 1), Some(time));
        spoke += u32::from(!said.is_empty());
        longest = longer(longest, said.is_empty());
        let file = StateFile::open(&path).unwrap();
        for (n, known) in (0..keys).zip(&mut known) {
            let greatest =
                |wanted: u64| said.iter().filter(|(key, _)| *key == wanted).map(|(_, number)| *number).max();
            let received = file.received(key(n));
            assert!(received >= *known, "round {round}: key {n} went back from {known} to {received}");
            let noted = greatest(NOTED + n).unwrap_or(0);
            assert!(
                received >= noted,
                "round {round}: {noted} was remembered by key {n}, now it is {received}"
            );
            let most = greatest(n).unwrap_or(0).max(*known);
            assert!(
                received <= most,
                "round {round}: key {n} remembers {received}, and received {most} at most"
            );
            *known = received;
            let window = Window::resume(64, true, received);
            assert!((received.saturating_sub(200)..=received).all(|number| window.mark(number).is_err()));
            assert!(window.mark(received + 1).is_ok());
        }
    }
    assert!(spoke >= 30, "{spoke} runs got as far as a number");
}

/// Standard error is the pipe: the test harness writes to standard output, and nothing buffers here.
fn say(key: u64, number: u64) -> io::Result<()> {
    let mut entry = [0; ENTRY];
    entry[..8].copy_from_slice(&key.to_le_bytes());
    entry[8..].copy_from_slice(&number.to_le_bytes());
    io::stderr().write_all(&entry)
}

/// Starts this program again as a run.
fn start(role: &str, path: &Path, keys: u64, block: u64) -> Child {
    emulated::command(env::current_exe().expect("this program"))
        .args(["run", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(PATH, path)
        .env(KEYS, keys.to_string())
        .env(BLOCK, block.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program starts")
}

/// What a run said before its end, and whether it was killed; kills it after some time if one is given. A run that
/// failed fails the test.
fn finish(mut child: Child, kill_after: Option<Duration>) -> (Vec<(u64, u64)>, bool) {
    let mut pipe = child.stderr.take().expect("the pipe");
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).map(|_| all)
    });
    if let Some(time) = kill_after {
        thread::sleep(time);
        child.kill().expect("it can be killed");
    }
    let status = child.wait().expect("it ends");
    let all = reader.join().expect("the reader").expect("the pipe can be read");
    let killed = status.signal() == Some(SIGKILL);
    assert!(killed || status.success(), "{status}: {}", String::from_utf8_lossy(&all));
    let (entries, rest) = all.as_chunks::<ENTRY>();
    assert!(rest.is_empty() || killed);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    (entries.iter().map(|entry| (word(&entry[..8]), word(&entry[8..]))).collect(), killed)
}

#[test]
fn no_number_comes_twice_over_runs_that_are_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let mut random = rand::rng();
    let (mut seen, mut spoke, mut kills, mut longest) = (HashSet::new(), 0, 0, LONGEST);
    for round in 0..160u64 {
        // Now and then a key more; past 63 keys the file grows.
        let keys = if round < 120 { 1 + round / 10 } else { 50 + round / 8 };
        let block = random.random_range(1..40);
        let (said, killed) = if round % 8 == 7 {
            finish(start("clean", &path, keys, block), None)
        } else {
            let time = Duration::from_micros(random.random_range(0..longest));
            finish(start("forever", &path, keys, block), Some(time))
        };
        spoke += u32::from(!said.is_empty());
        longest = longer(longest, said.is_empty());
        kills += u32::from(killed);
        for (key, number) in said {
            assert!(seen.insert((key, number)), "round {round}: number {number} of key {key} came twice");
        }
    }
    assert!(kills >= 100, "{kills} runs were killed");
    assert!(spoke >= 50, "{spoke} runs got as far as a number");
    // What the file says now is beyond all of them.
    let mut file = StateFile::open(&path).unwrap();
    for n in 0..69 {
        let next = file.sequence(key(n), n % 2 == 0).unwrap().next();
        let most = seen.iter().filter(|(key, _)| *key == n).map(|(_, number)| *number).max();
        assert!(most.is_none_or(|most| most < next), "key {n}: {most:?} was used, and {next} comes next");
    }
}

#[test]
fn a_file_whose_making_is_killed_is_whole_or_missing() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = rand::rng();
    let (mut whole, mut missing) = (0, 0);
    for round in 0..60 {
        let path = directory.path().join(format!("state-{round}"));
        let mut child = start("create", &path, 0, 1);
        // It speaks just before it makes the file.
        let mut pipe = child.stderr.take().unwrap();
        pipe.read_exact(&mut [0; ENTRY]).unwrap();
        let time = Duration::from_micros(random.random_range(0..if round % 2 == 0 { 300 } else { 30_000 }));
        thread::sleep(time);
        child.kill().unwrap();
        child.wait().unwrap();
        match StateFile::open(&path) {
            Ok(mut file) => {
                whole += 1;
                assert_eq!(file.sequence(key(1), true).unwrap().next(), 1);
            }
            Err(StateError::Missing { .. }) => {
                missing += 1;
                // What is left of it is in nobody's way.
                drop(StateFile::create(&path).unwrap());
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(whole > 0, "{missing} of 60 files are missing");
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let mut child = start("forever", &path, 1, 8);
    let mut pipe = child.stderr.take().unwrap();
    pipe.read_exact(&mut [0; ENTRY]).unwrap();
    let refused = StateFile::open(&path).unwrap_err();
    assert!(matches!(refused, StateError::Locked { .. }), "{refused}");
    assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(StateFile::open(&path).unwrap());
}

#[test]
fn what_a_killed_run_leaves_is_refused_when_it_is_not_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    drop(StateFile::create(&path).unwrap());
    let at = |name: &str| directory.path().join(name);
    let (said, _) = finish(start("clean", &path, 2, 8), None);
    assert!(!said.is_empty());

    fs::copy(&path, at("backup")).unwrap();
    assert!(matches!(StateFile::open(at("backup")).unwrap_err(), StateError::Copied { .. }));
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(StateFile::open(&path).unwrap_err(), StateError::Exposed { .. }));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    drop(StateFile::open(&path).unwrap());

    let mut damaged = fs::read(&path).unwrap();
    damaged[70] ^= 1;
    write_over(&path, &damaged);
    assert!(matches!(StateFile::open(&path).unwrap_err(), StateError::Corrupted { .. }));
    damaged[70] ^= 1;
    write_over(&path, &damaged);
    drop(StateFile::open(&path).unwrap());
    write_over(&path, &damaged[..100]);
    assert!(matches!(StateFile::open(&path).unwrap_err(), StateError::Truncated { .. }));

    fs::remove_file(&path).unwrap();
    assert!(matches!(StateFile::open(&path).unwrap_err(), StateError::Missing { .. }));
}

/// Keeps the file and replaces its bytes.
fn write_over(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}
