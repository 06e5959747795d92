//! Limits as an operator sees them: what passes is what was said, before and after each change.

use std::{
    fs,
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::lab::{CAUSEWAY, Host, Lab, Running, is_root};

/// Sends datagrams of 1200 bytes to the data centre's host, some 60 Mbps of them, for as long as it runs.
const SENDER: &str = "
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
data = bytes(1200)
due = time.monotonic()
while True:
    for _ in range(12):
        s.sendto(data, ('10.1.0.2', 9))
    due += 0.002
    time.sleep(max(0, due - time.monotonic()))
";

fn limit(gateway: &Running, line: &str) -> Output {
    let args = line.split_whitespace();
    Command::new(CAUSEWAY).arg("limit").args(args).arg("--run-dir").arg(&gateway.run_dir).output().unwrap()
}

#[track_caller]
fn set(gateway: &Running, line: &str) {
    let output = limit(gateway, line);
    assert!(output.status.success(), "limit {line}: {output:?}");
}

/// Bytes of IP packets that a host has received by its only cable.
fn received(host: &Host) -> u64 {
    let text = host.run("ip -s -j link show eth0");
    let json: Value = serde_json::from_str(&text).unwrap();
    let count = |key: &str| json[0]["stats64"]["rx"][key].as_u64().unwrap();
    count("bytes") - 14 * count("packets")
}

/// The rate that reaches a host, in Mbps, once what was in force before has passed by.
fn rate(host: &Host) -> f64 {
    std::thread::sleep(Duration::from_millis(300));
    let (before, since) = (received(host), Instant::now());
    std::thread::sleep(Duration::from_millis(1500));
    let after = received(host);
    (after - before) as f64 * 8.0 / 1e6 / since.elapsed().as_secs_f64()
}

/// Less than was said only by what a machine that does other work makes of it, and no more.
#[track_caller]
fn is_about(rate: f64, wanted: f64) {
    assert!((0.8 * wanted..1.12 * wanted).contains(&rate), "{rate} Mbps instead of {wanted}");
}

#[test]
fn a_limit_holds_and_changes_while_packets_flow() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    // Bursts of 100 ms at the rate, so that a worker that had to wait for its core loses nothing.
    let file = |rate: &str| {
        let limits = format!(
            "[gateway.vpc.limit]\nout = \"{rate}\"\nburst = \"250kB\"\n[gateway.vpc.address_limit]\naddresses = 64\n"
        );
        fs::write(lab.file(), lab.config("dc", &limits)).unwrap();
    };
    file("20Mbps");
    let mut gateway = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    assert!(lab.vpc.pings("10.1.0.2", 3));
    let mut sender = lab.vpc.command("python3").args(["-c", SENDER]).spawn().unwrap();

    is_about(rate(&lab.dc), 20.0);
    let row = |gateway: &Running, way: &str| {
        let rows = gateway.json("limits");
        let found = rows.as_array().unwrap().iter().find(|row| row["kind"] == "gateway" && row["way"] == way);
        found.unwrap_or_else(|| panic!("{rows:#}")).clone()
    };
    let out = row(&gateway, "out");
    assert_eq!((&out["rate"], &out["by_command"]), (&20_000_000.into(), &false.into()));
    assert!(out["dropped_packets"].as_u64().unwrap() > 100, "{out:#}");
    let used = out["usage_percent"].as_f64().unwrap();
    assert!((75.0..=115.0).contains(&used), "{used} % used");
    assert!(gateway.row("drops", "gateway-limit")["packets"].as_u64().unwrap() > 100);

    set(&gateway, "set gateway vpc --out 5Mbps --burst 100kB");
    is_about(rate(&lab.dc), 5.0);
    assert_eq!(row(&gateway, "out")["by_command"], true);

    // The gateway's limit is lifted, and the address gets one of its own, which the file does not have.
    set(&gateway, "set gateway vpc --out none");
    set(&gateway, "set gateway vpc --address 10.2.0.2 --out 10Mbps --burst 200kB");
    is_about(rate(&lab.dc), 10.0);
    gateway.until(|g| {
        let talkers = g.json("talkers --top 1 --gateway vpc");
        let of = &talkers[0]["out"];
        let recent = of["bits_per_second"].as_u64().unwrap_or(0);
        talkers[0]["address"] == "10.2.0.2"
            && of["rate"] == 10_000_000
            && of["dropped_packets"].as_u64().unwrap_or(0) > 100
            && (8_000_000..=11_000_000).contains(&recent)
    });
    assert!(gateway.text("talkers").contains("10.2.0.2"));
    set(&gateway, "clear gateway vpc --address 10.2.0.2");
    set(&gateway, "clear gateway vpc");
    is_about(rate(&lab.dc), 20.0);

    // An interface, which the file does not limit.
    set(&gateway, "set interface dc --out 3Mbps --burst 100kB");
    is_about(rate(&lab.dc), 3.0);
    assert_eq!(gateway.row("interfaces", "dc")["limit"], serde_json::json!([null, 3_000_000]));

    // What the file says is in force again, and nothing that was set.
    file("8Mbps");
    let reload =
        Command::new(CAUSEWAY).arg("reload").arg("--run-dir").arg(&gateway.run_dir).output().unwrap();
    assert!(reload.status.success(), "{reload:?}");
    is_about(rate(&lab.dc), 8.0);
    assert_eq!(gateway.row("interfaces", "dc")["limit"], serde_json::json!([null, null]));

    for (line, why) in [
        ("set gateway vpc --out 0Mbps", "lets nothing pass"),
        ("set gateway none --out 1Mbps", "there is no gateway"),
        ("set gateway vpc", "say what to set"),
        ("set tunnel x --in 1Mbps", "there is no tunnel"),
        ("set gateway vpc --address 10.9.9.9 --in 1Mbps", "not in the gateway's `prefixes`"),
        ("set interface dc --address 10.2.0.2 --in 1Mbps", "addresses have limits in gateways"),
    ] {
        let output = limit(&gateway, line);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(why), "{line}: {output:?}");
    }
    let shown = limit(&gateway, "show");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("8Mbps"), "{shown:?}");
    sender.kill().unwrap();
    sender.wait().unwrap();
    gateway.stop();
}
