//! The scripts, as far as they can be looked at without running what they run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every script, with the shell that its first line asks for.
fn scripts() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["scripts", "perf/peers"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let Ok(text) = text else { continue };
            let first = text.lines().next().unwrap_or_default();
            let shell = first.strip_prefix("#!").and_then(|line| line.rsplit(['/', ' ']).next());
            if let Some(shell @ ("sh" | "bash")) = shell {
                found.push((path, shell.to_owned()));
            }
        }
    }
    found
}

#[test]
fn shells_can_read_every_script() {
    let scripts = scripts();
    assert!(scripts.len() >= 4, "{scripts:?}");
    for (path, shell) in scripts {
        let output = Command::new(&shell).arg("-n").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_peer_that_is_not_there_says_so_and_ends_with_status_3() {
    let output = Command::new(root().join("perf/peers/dpdk"))
        .args(["start", "l3fwd"])
        .env("CAUSEWAY_PEERS", "/nowhere")
        .env("PEER_CORE", "1")
        .env("PEER_PORTS", "a b")
        .env("PEER_ROUTERS", "c d")
        .env("PEER_KEY", "00")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("perf/peers/dpdk install"), "{said}");
}
