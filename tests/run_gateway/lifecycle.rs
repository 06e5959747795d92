//! Start, signals, reload, sudden death.

use std::fs;

use crate::lab::{Lab, Running, is_root};

#[test]
fn sigterm_and_sigint_drain_and_account_for_every_packet() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    for signal in ["-TERM", "-INT"] {
        let mut gateway = lab.start();
        assert!(lab.vpc.pings("10.1.0.2", 20));
        gateway.signal(signal);
        // The exit code says too that every packet and buffer was accounted for.
        assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.log());
        assert!(gateway.log().contains("ended: "), "{}", gateway.log());
        let left: Vec<_> = fs::read_dir(lab.run_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"], "the socket and the statistics go with the gateway");
        let show = gateway.show("summary");
        assert_eq!(show.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&show.stderr).contains("no gateway runs in"), "{show:?}");
    }
}

#[test]
fn a_good_file_changes_routes_and_interfaces_and_keeps_counts() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    assert!(lab.vpc.pings("10.1.0.2", 10));
    assert!(lab.vpc.silent("10.9.0.1", 3), "there is no route yet");
    let count = |gateway: &Running, interface: &str| {
        gateway.row("interfaces", interface)["counters"]["in_packets"].as_u64().unwrap()
    };
    let (vpc, no_route) = (count(&gateway, "vpc"), gateway.row("drops", "no-route")["packets"].clone());
    assert!(vpc >= 13);
    assert_eq!(no_route, 3);

    let more = "[[gateway.vpc.route]]\nto = \"10.9.0.0/16\"\nvia = \"10.1.0.2\"\n\
        [interface.extra]\nport = \"d\"\nvlan = 30\ngateway = \"vpc\"\nside = \"peer\"\naddresses = [\"10.3.0.1/24\"]\n";
    fs::write(lab.file(), lab.config("renamed", more)).unwrap();
    gateway.signal("-HUP");
    gateway.until(|g| g.log().contains("is in force"));
    assert!(lab.vpc.pings("10.9.0.1", 3), "{}", gateway.log());
    let names: Vec<String> = gateway
        .json("interfaces")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(["vpc", "renamed", "extra"].iter().all(|n| names.iter().any(|name| name == n)), "{names:?}");
    assert!(count(&gateway, "vpc") >= vpc + 3, "counts of what has its name still go on");
    assert_eq!(gateway.row("drops", "no-route")["packets"], no_route);

    // And with an answer: back to the first file.
    fs::write(lab.file(), lab.config("dc", "")).unwrap();
    let reload = crate::show::causeway(&gateway, "reload");
    assert!(reload.status.success(), "{reload:?}");
    assert!(lab.vpc.silent("10.9.0.1", 2));
    assert!(lab.vpc.pings("10.1.0.2", 2));
    assert_eq!(gateway.row("drops", "no-route")["packets"], 5);
    gateway.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_says_where() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    let routes = gateway.json("routes");
    let good = fs::read_to_string(lab.file()).unwrap();
    let bad = good.replace("10.1.0.1/24", "10.1.0.1/99");
    let line = 1 + bad.lines().position(|l| l.contains("/99")).unwrap();
    fs::write(lab.file(), &bad).unwrap();
    gateway.signal("-HUP");
    gateway.until(|g| g.log().contains("nothing has changed"));
    let place = format!("gateway.toml:{line}:");
    assert!(gateway.log().contains(&place), "{}", gateway.log());
    let reload = crate::show::causeway(&gateway, "reload");
    assert_eq!(reload.status.code(), Some(1));
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert!(said.contains(&place) && said.contains("nothing has changed"), "{said}");

    // Good by itself, but not while this gateway runs.
    fs::write(lab.file(), good.replace("buffers = 16384", "buffers = 32768")).unwrap();
    let reload = crate::show::causeway(&gateway, "reload");
    assert_eq!(reload.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&reload.stderr).contains("restart"), "{reload:?}");

    fs::remove_file(lab.file()).unwrap();
    assert_eq!(crate::show::causeway(&gateway, "reload").status.code(), Some(1));
    assert_eq!(gateway.json("routes"), routes);
    assert!(lab.vpc.pings("10.1.0.2", 5));
    gateway.stop();
}

#[test]
fn a_killed_gateway_leaves_nothing_in_the_way() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    assert!(lab.vpc.pings("10.1.0.2", 5));
    gateway.signal("-KILL");
    gateway.wait();
    assert!(lab.run_dir().join("control.sock").exists() && lab.run_dir().join("stats").exists());
    let show = gateway.show("summary");
    assert_eq!(show.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&show.stderr).contains("is dead"), "{show:?}");
    let last = gateway.show("interfaces --stale --json");
    assert!(last.status.success(), "{last:?}");
    let last: serde_json::Value = serde_json::from_slice(&last.stdout).unwrap();
    assert!(last[0]["counters"]["in_packets"].as_u64().unwrap() >= 5, "{last:#}");

    let gateway = lab.start();
    assert!(lab.vpc.pings("10.1.0.2", 5));
    gateway.stop();
}
