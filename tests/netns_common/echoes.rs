//! `ping`, so that no answer is too late on a machine that is busy: one that is told how many echoes to send waits for
//! the last of them for one interval or two round trips, whatever `-W` says.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeSet;

/// A `ping` that sends all at once and waits 10 s for what is not answered. Whoever does not know a neighbour yet
/// keeps a few packets only, so one must have gone this way before.
pub fn burst(count: u64, rest: &str) -> String {
    format!("ping -n -c {count} -l {count} -i 10 -W 10 {rest}")
}

/// A `ping` that sends until it has so many answers, `interval` seconds between echoes.
pub fn steady(count: u64, interval: f64, rest: &str) -> String {
    format!("ping -n -c {count} -i {interval} -w 60 {rest}")
}

/// How many echoes were answered, and how many before the last of these were not. None was answered twice.
#[track_caller]
pub fn answered(text: &str) -> (u64, u64) {
    assert!(!text.contains("DUP!"), "{text}");
    let answers = text.lines().filter(|line| line.contains(" bytes from "));
    let number = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok();
    let numbers: BTreeSet<u64> = answers.filter_map(number).collect();
    let count = numbers.len() as u64;
    (count, numbers.last().map_or(0, |last| last - count))
}
