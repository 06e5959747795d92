//! What `causeway replay` says and does when it is used wrongly, and when captures are not what they should be.

#[path = "common/emulated.rs"]
mod emulated;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

const CASE: &str = "pipelines/bench-forward/golden/sixteen-routes";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs it over the file of a benchmark, with these arguments.
fn replay(arguments: &[&str]) -> Output {
    let mut command = emulated::command(env!("CARGO_BIN_EXE_causeway"));
    command.arg("replay").arg(root().join("pipelines/bench-forward/gateway.toml")).args(arguments);
    command.output().unwrap()
}

/// Its exit code, and what it wrote to the standard error.
fn fails(arguments: &[&str]) -> (i32, String) {
    let output = replay(arguments);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn input(port: &str) -> PathBuf {
    root().join(CASE).join(format!("{port}.in.pcap"))
}

/// `NAME=PATH`.
fn given(port: &str, path: &Path) -> String {
    format!("{port}={}", path.display())
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let foreign = dir.path().join("foreign.pcap");
    fs::write(&foreign, "Internet Protocol, Version 4").unwrap();
    let good = given("in", &input("in"));
    for (port, expected) in [
        (given("inn", &input("in")), "has no port inn; did you mean in? There are: in, out"),
        (given("wan-left", &input("in")), "has no port wan-left. There are: in, out"),
        (given("in", &dir.path().join("none.pcap")), "none.pcap: No such file"),
        (given("in", &foreign), "foreign.pcap is no pcap or pcapng capture"),
    ] {
        let (code, text) = fails(&["--port", &port, "--out", out]);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(!Path::new(out).exists(), "nothing may be made for {port}");
    }
    let (code, text) = fails(&["--port", &good, "--port", &good, "--out", out]);
    assert_eq!(code, 3);
    assert!(text.contains("port in is given two captures"), "{text}");
    for port in ["in", "=x.pcap", "in="] {
        let (code, text) = fails(&["--port", port, "--out", out]);
        assert_eq!(code, 2);
        assert!(text.contains("an equals sign"), "{text}");
    }
    assert_eq!(fails(&["--out", out]).0, 2);
    assert!(!Path::new(out).exists());
}

#[test]
fn what_is_read_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    // By its own name, and by another.
    let (own, link) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    let bytes = fs::read(input("in")).unwrap();
    fs::write(&own, &bytes).unwrap();
    fs::hard_link(&own, &link).unwrap();
    for path in [&own, &link] {
        let (code, text) = fails(&["--port", &given("in", path), "--out", dir.path().to_str().unwrap()]);
        assert_eq!(code, 3);
        assert!(text.contains("would be overwritten"), "{text}");
        assert_eq!(fs::read(path).unwrap(), bytes);
    }
}

#[test]
fn a_capture_that_breaks_off_is_played_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(input("in")).unwrap();
    let broken = dir.path().join("broken.pcap");
    fs::write(&broken, &bytes[..bytes.len() - 5]).unwrap();
    let out = dir.path().join("out");
    let (code, text) = fails(&["--port", &given("in", &broken), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(text.contains("broken.pcap ends in the middle of packet 23"), "{text}");
    let counters: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("counters.json")).unwrap()).unwrap();
    assert_eq!(counters["port"]["in"]["rx_packets"], 22);
}

/// A pcapng file of the packets of a pcap file with nanoseconds: one interface that counts nanoseconds.
fn pcapng(pcap: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(pcap[at..at + 4].try_into().unwrap());
    let block = |kind: u32, body: &[u8]| {
        let length = (12 + body.len() as u32).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    let interface = [1, 0, 0, 0, 0, 0, 4, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    let mut file = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
    let mut at = 24;
    while at < pcap.len() {
        let (time, length) = (u64::from(word(at)) * 1_000_000_000 + u64::from(word(at + 4)), word(at + 8));
        let mut body = 0_u32.to_le_bytes().to_vec();
        for part in [(time >> 32) as u32, time as u32, length, length] {
            body.extend_from_slice(&part.to_le_bytes());
        }
        body.extend_from_slice(&pcap[at + 16..at + 16 + length as usize]);
        body.resize(body.len().next_multiple_of(4), 0);
        file.extend_from_slice(&block(6, &body));
        at += 16 + length as usize;
    }
    file
}

#[test]
fn pcapng_is_read_like_pcap_and_the_counters_are_printed_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let converted = dir.path().join("in.pcapng");
    fs::write(&converted, pcapng(&fs::read(input("in")).unwrap())).unwrap();
    let mut results = Vec::new();
    for (name, path) in [("one", input("in")), ("two", converted)] {
        let out = dir.path().join(name);
        let output = replay(&[
            "--port",
            &given("in", &path),
            "--port",
            &given("out", &input("out")),
            "--out",
            out.to_str().unwrap(),
            "--json",
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, fs::read(out.join("counters.json")).unwrap());
        let sent = ["in", "out"].map(|port| fs::read(out.join(format!("{port}.pcap"))).unwrap());
        for (port, sent) in ["in", "out"].iter().zip(&sent) {
            assert_eq!(sent, &fs::read(root().join(CASE).join(format!("{port}.expect.pcap"))).unwrap());
        }
        results.push((output.stdout, sent));
    }
    assert_eq!(results[0], results[1]);
    let counters: serde_json::Value = serde_json::from_slice(&results[0].0).unwrap();
    let ledger = |name: &str| counters["ledger"][name].as_u64().unwrap();
    let gone = ledger("sent") + ledger("delivered") + ledger("waiting") + ledger("dropped");
    assert_eq!(ledger("received") + ledger("originated"), gone);
    assert_eq!(counters["frames_missing"], 0);
    // Drops that did not happen are left out, other counters are not.
    assert!(counters["drop"]["in"].get("no-route").is_none());
    assert_eq!(counters["interface"]["in"]["in_packets"], 22);
    assert_eq!(counters["worker"]["all"]["icmp_suppressed"], 0);
}

#[test]
fn a_summary_says_what_became_of_the_packets() {
    let dir = tempfile::tempdir().unwrap();
    let output = replay(&["--port", &given("in", &input("in")), "--out", dir.path().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("23 received"), "{text}");
    assert!(text.contains("1 ttl-expired"), "{text}");
    assert!(text.contains(" sent + 0 delivered + "), "{text}");
}

#[test]
fn a_reader_that_has_gone_ends_the_program_without_a_word() {
    for args in [&["bench", "--list"][..], &["doctor"], &["check", "pipelines/direct-connect/gateway.toml"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = emulated::command(env!("CARGO_BIN_EXE_causeway"))
            .args(args)
            .current_dir(root())
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert!(!output.status.success() && output.status.code().is_none(), "{args:?}: {}", output.status);
    }
}
