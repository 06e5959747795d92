//! Each pipeline of the repository over captures, compared byte by byte with what it is to send.
//!
//! A case is a directory `pipelines/NAME/golden/CASE`: `PORT.in.pcap` is what a port receives, `PORT.expect.pcap` what
//! it sends, `counters.toml` the counters that are not zero. `UPDATE_GOLDEN=1` makes the captures and writes down what
//! comes out; then it is for a reader, and for `scripts/judge-esp`, to say whether that is right.

mod common;

#[path = "common/emulated.rs"]
mod emulated;
#[path = "golden/scenarios.rs"]
mod scenarios;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use causeway::io::pcap::{PcapSink, PcapSource};
use common::{hex, key};
use serde_json::Value;

/// The variables of all pipelines that keys come from.
const KEYS: [&str; 12] = [
    "CAUSEWAY_CLOUD_KEY_A",
    "CAUSEWAY_CLOUD_KEY_B",
    "CAUSEWAY_BENCH_KEY_A",
    "CAUSEWAY_BENCH_KEY_B",
    "CAUSEWAY_KEY_TO_A",
    "CAUSEWAY_KEY_FROM_A",
    "CAUSEWAY_KEY_TO_A2",
    "CAUSEWAY_KEY_FROM_A2",
    "CAUSEWAY_KEY_TO_B",
    "CAUSEWAY_KEY_FROM_B",
    "CAUSEWAY_KEY_TO_C",
    "CAUSEWAY_KEY_FROM_C",
];

pub(crate) type Capture = Vec<(u64, Vec<u8>)>;

/// One run of a pipeline.
pub(crate) struct Case {
    /// The directory below `pipelines/`, the file in it, and the case.
    pub(crate) pipeline: &'static str,
    pub(crate) file: &'static str,
    pub(crate) name: String,
    /// What each port receives.
    pub(crate) inputs: BTreeMap<&'static str, Capture>,
}

impl Case {
    fn directory(&self) -> PathBuf {
        root().join("pipelines").join(self.pipeline).join("golden").join(&self.name)
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &Path) -> Capture {
    let mut source = PcapSource::open(path).unwrap();
    let mut all = Vec::new();
    while let Some(record) = source.next() {
        let record = record.unwrap();
        all.push((record.timestamp, record.bytes.to_vec()));
    }
    all
}

fn write(path: &Path, capture: &Capture) {
    let mut sink = PcapSink::create(path).unwrap();
    capture.iter().for_each(|(time, bytes)| sink.write(*time, bytes).unwrap());
    sink.finish().unwrap();
}

/// Runs the program over the captures in `inputs`; the result is what it wrote.
fn replay(case: &Case, inputs: &Path, out: &Path) -> (BTreeMap<String, Capture>, Value) {
    let file = root().join("pipelines").join(case.pipeline).join(case.file);
    let mut command = emulated::command(env!("CARGO_BIN_EXE_causeway"));
    command.arg("replay").arg(&file).arg("--out").arg(out);
    for port in case.inputs.keys() {
        command.arg("--port").arg(format!("{port}={}", inputs.join(format!("{port}.in.pcap")).display()));
    }
    command.envs(KEYS.iter().map(|name| (name, hex(&key(name)))));
    let result = command.output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let mut sent = BTreeMap::new();
    for entry in fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pcap") {
            sent.insert(path.file_stem().unwrap().to_str().unwrap().to_string(), read(&path));
        }
    }
    let counters = fs::read_to_string(out.join("counters.json")).unwrap();
    (sent, serde_json::from_str(&counters).unwrap())
}

/// The counters that say what happened to packets, without those that are zero, as TOML.
fn counted(counters: &Value) -> String {
    let mut text = String::new();
    for (group, rows) in counters.as_object().unwrap() {
        let Some(rows) = rows.as_object() else { continue };
        let mut lines = |name: &str, values: &Value| {
            let values = values.as_object().unwrap().iter().filter(|(column, value)| {
                value.as_u64().is_some_and(|v| v != 0) && !column.contains("rounds") && *column != "bursts"
            });
            let values: Vec<_> = values.map(|(column, value)| format!("{column} = {value}\n")).collect();
            if !values.is_empty() {
                text.push_str(&format!(
                    "{}[{group}{name}]\n{}",
                    if text.is_empty() { "" } else { "\n" },
                    values.concat()
                ));
            }
        };
        match group.as_str() {
            "ledger" => lines("", &counters[group]),
            "worker" => {}
            _ => rows.iter().for_each(|(row, values)| lines(&format!(".\"{row}\""), values)),
        }
    }
    text
}

fn check(case: &Case, update: bool) {
    let directory = case.directory();
    let what = directory.strip_prefix(root()).unwrap().display().to_string();
    if update {
        fs::create_dir_all(&directory).unwrap();
        for (port, capture) in &case.inputs {
            write(&directory.join(format!("{port}.in.pcap")), capture);
        }
    }
    for (port, capture) in &case.inputs {
        let committed = read(&directory.join(format!("{port}.in.pcap")));
        assert_eq!(&committed, capture, "{what}: {port}.in.pcap is not what its scenario makes");
    }
    let out = tempfile::tempdir().unwrap();
    let (sent, counters) = replay(case, &directory, out.path());
    let counted = counted(&counters);
    for (port, sent) in &sent {
        let path = directory.join(format!("{port}.expect.pcap"));
        if update {
            write(&path, sent);
        }
        let expected = read(&path);
        for (number, (sent, expected)) in sent.iter().zip(&expected).enumerate() {
            assert_eq!(sent, expected, "{what}: {port}, packet {}", number + 1);
        }
        assert_eq!(sent.len(), expected.len(), "{what}: {port} sends as many packets");
    }
    if update {
        fs::write(directory.join("counters.toml"), &counted).unwrap();
    }
    let expected = fs::read_to_string(directory.join("counters.toml")).unwrap();
    assert_eq!(counted, expected, "{what}: counters.toml");
}

#[test]
fn every_pipeline_sends_what_it_is_to_send() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let cases = scenarios::cases();
    for case in &cases {
        check(case, update);
    }
    // What lies about and is no case any more.
    for pipeline in fs::read_dir(root().join("pipelines")).unwrap() {
        let Ok(golden) = fs::read_dir(pipeline.unwrap().path().join("golden")) else { continue };
        for directory in golden.map(|entry| entry.unwrap().path()) {
            assert!(
                cases.iter().any(|case| case.directory() == directory),
                "{} is no case",
                directory.display()
            );
        }
    }
}

#[test]
fn a_run_can_be_repeated() {
    let case = scenarios::first();
    let run = || {
        let (inputs, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (port, capture) in &case.inputs {
            write(&inputs.path().join(format!("{port}.in.pcap")), capture);
        }
        replay(&case, inputs.path(), out.path())
    };
    assert_eq!(run(), run());
}

/// Which line carries which datagram, as the capture of `pipelines/direct-connect-standby/golden/lost-line` has it.
#[test]
fn a_lost_line_hands_its_traffic_over_and_gets_it_back() {
    use common::frame::{IPV4, Ip, UDP, read_frame};
    use scenarios::vpn::{DATAGRAMS, EVERY, FIRST_PORT, SILENT};
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        // It is being written.
        return;
    }
    let directory = root().join("pipelines/direct-connect-standby/golden/lost-line");
    let carried = |line: &str| -> Vec<u64> {
        let all = read(&directory.join(format!("{line}.expect.pcap")));
        let frames = all.iter().map(|(_, bytes)| read_frame(bytes)).filter(|frame| frame.ether_type == IPV4);
        let packets = frames.map(|frame| Ip::read(&frame.payload)).filter(|packet| packet.proto == UDP);
        let ports = packets.map(|packet| u16::from_be_bytes(packet.payload[2..4].try_into().unwrap()));
        ports.map(|port| u64::from(port - FIRST_PORT)).collect()
    };
    let (one, two) = (carried("line-1"), carried("line-2"));
    // Each goes by one line, none is lost here, and those of the second follow each other.
    let mut all = [one, two.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..u64::from(DATAGRAMS)).collect::<Vec<_>>());
    let (first, last) = (two[0], two[two.len() - 1]);
    assert_eq!(two, (first..=last).collect::<Vec<_>>());
    // Three probes in a row, a second apart, and the time for an answer.
    let found = first * EVERY;
    assert!((SILENT.start + 2_000_000_000..=SILENT.start + 3_400_000_000).contains(&found), "{found}");
    // Three answers in a row, and ten seconds held down.
    let back = (last + 1) * EVERY;
    assert!((SILENT.end + 12_000_000_000..=SILENT.end + 13_400_000_000).contains(&back), "{back}");
}
