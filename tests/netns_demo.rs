//! `causeway demo` as a user runs it: what it says, and that it leaves nothing behind, however it ends. Namespaces need
//! root; `--memory` needs nothing.

mod netns_common;

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use netns_common::{causeway, is_root, until};
use rustix::process::{Pid, Signal, kill_process};

/// Held by tests that remove what was kept, so that they do not remove it from each other.
static KEPT: Mutex<()> = Mutex::new(());

fn demo(arguments: &str) -> Command {
    let mut command = Command::new(causeway());
    command.arg("demo").args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

/// What a demo with this process number has left: namespaces, its folder, and processes that it started.
fn leftovers(pid: u32) -> Vec<String> {
    let names = |folder: &str, start: String| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap_or_default());
        names.filter(|name| name.starts_with(&start)).collect::<Vec<_>>()
    };
    let mut left = names("/run/netns", format!("cw-{pid}-"));
    left.extend(names(std::env::temp_dir().to_str().unwrap(), format!("causeway-demo-{pid}")));
    left.extend(processes(pid));
    left
}

/// Processes that a demo with this number started, by the folder or namespace they were told.
fn processes(pid: u32) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("causeway-demo-{pid}/")) || line.contains(&format!("cw-{pid}-")) {
            found.push(line);
        }
    }
    found
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[track_caller]
fn is_well(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["well"], true, "{summary:#}");
    for gateway in summary["gateways"].as_array().unwrap() {
        let account = &gateway["account"];
        assert_eq!(account["balanced"], true);
        assert_eq!(account["buffers_missing"], 0);
        assert!(account["received"].as_u64().unwrap() > 100, "{account}");
    }
    assert_eq!(summary["gateways"].as_array().unwrap().len(), 2);
    summary
}

#[test]
fn the_demo_in_memory_accounts_for_every_packet() {
    let summary = is_well(&demo("--memory --seconds 2 --json").output().unwrap());
    assert_eq!(summary["hosts"]["ping"]["sent"], summary["hosts"]["ping"]["answered"]);
    assert_eq!(summary["hosts"]["udp"].as_array().unwrap().len(), 2);
}

#[test]
fn the_demo_passes_the_kernels_traffic_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let child = demo("--seconds 4 --json").stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let summary = is_well(&child.wait_with_output().unwrap());
    assert_eq!(summary["hosts"]["path_mtu"], 1446);
    assert_eq!(summary["hosts"]["tcp"].as_array().unwrap().len(), 2);
    assert_eq!(leftovers(pid), Vec::<String>::new());
}

#[test]
fn without_privilege_it_says_what_is_missing() {
    // Any user but root; in a user namespace of its own where this test is root.
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups"]);
        // The command may lie where only root may look.
        let copy = std::env::temp_dir().join(format!("causeway-{}", std::process::id()));
        std::fs::copy(causeway(), &copy).unwrap();
        command.arg(&copy);
        command
    } else {
        Command::new(causeway())
    };
    let output = command.arg("demo").stdin(Stdio::null()).output().unwrap();
    let _ = std::fs::remove_file(std::env::temp_dir().join(format!("causeway-{}", std::process::id())));
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("CAP_NET_ADMIN") && said.contains("--memory"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_missing_tool_is_named() {
    if !is_root() {
        return;
    }
    let output = demo("").env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "causeway: `ip` is missing: install iproute2\n");
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing() {
    if !is_root() {
        return;
    }
    for (millis, how) in
        [(5, Signal::TERM), (60, Signal::INT), (200, Signal::HUP), (500, Signal::TERM), (1500, Signal::INT)]
    {
        let child = demo("--seconds 600").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        std::thread::sleep(Duration::from_millis(millis));
        signal(&child, how);
        let output = child.wait_with_output().unwrap();
        assert_eq!(leftovers(pid), Vec::<String>::new(), "{how:?} after {millis} ms: {}", text(&output));
        // Before the handlers stand it ends as any program; afterwards by itself.
        if let Some(code) = output.status.code() {
            assert!(code <= 1, "{how:?} after {millis} ms: {}", text(&output));
        }
    }
}

#[test]
fn what_a_killed_demo_leaves_the_next_one_removes() {
    if !is_root() {
        return;
    }
    let _alone = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    for millis in [100, 400, 2500] {
        let mut child = demo("--seconds 600").stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        // Its processes go with it; namespaces and folder cannot.
        until("processes outlive the demo", || processes(pid).is_empty());
        let output = demo("--clean --json").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(leftovers(pid), Vec::<String>::new(), "after {millis} ms");
    }
}

#[test]
fn a_kept_network_works_until_it_is_removed() {
    if !is_root() {
        return;
    }
    let _alone = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let child = demo("--seconds 1 --keep").stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    // Whatever this test finds, the network goes with it.
    struct Clean;
    impl Drop for Clean {
        fn drop(&mut self) {
            let _ = demo("--clean").output();
        }
    }
    let clean = Clean;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("demo --clean"), "{}", text(&output));
    let host = format!("cw-{pid}-idc-host");
    let ping = ["netns", "exec", &host, "ping", "-n", "-c", "5", "-l", "5", "-i", "10", "203.0.113.10"];
    let ping = Command::new("ip").args(ping).output().unwrap();
    assert!(text(&ping).contains(" 5 received"), "{}", text(&ping));
    assert!(Path::new("/run/netns").join(&host).exists());
    drop(clean);
    until("something is left", || leftovers(pid).is_empty());
}
