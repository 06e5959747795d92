//! Files applied to both gateways of `pipelines/site-to-site` while real hosts talk through tunnel and NAT: nothing of
//! what did not change is lost. Needs root.

mod netns_common;

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use netns_common::{Site, causeway, is_root};

/// The cloud's server, as the data centre knows it.
const SERVER: &str = "203.0.113.10";

/// What comes and goes: an interface, a policy in front of all others, a route, and in the cloud a mapping.
fn more(gateway: &str, port: &str) -> String {
    let mapping =
        "[[gateway.vpc.nat]]\nkind = \"local\"\noriginal = \"10.2.0.11\"\ntranslated = \"203.0.113.11\"\n";
    format!(
        "\n[interface.extra]\nport = \"{port}\"\nvlan = 777\ngateway = \"{gateway}\"\nside = \"peer\"\naddresses = [\"198.51.100.1/24\"]\n\
         [[gateway.{gateway}.policy]]\naction = \"discard\"\npriority = 1\nprotocol = \"gre\"\n\
         [[gateway.{gateway}.route]]\nto = \"172.16.0.0/12\"\nvia = \"198.51.100.2\"\n{}",
        if gateway == "vpc" { mapping } else { "" }
    )
}

#[test]
fn streams_and_datagrams_cross_while_files_are_applied_to_both_gateways() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(str::to_string);
    site.serve("vpc-host");
    let files: Vec<(PathBuf, PathBuf, PathBuf)> = [("idc", "idc"), ("cloud", "vpc")]
        .into_iter()
        .map(|(name, gateway)| {
            let dir = site.run_dir(name);
            let (plain, other) = (dir.join("gateway.toml"), dir.join("more.toml"));
            std::fs::write(&other, std::fs::read_to_string(&plain).unwrap() + &more(gateway, "wan")).unwrap();
            (dir, plain, other)
        })
        .collect();
    let apply = |dir: &PathBuf, words: &[&str]| {
        let output = Command::new(causeway()).args(words).arg("--run-dir").arg(dir).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let over = AtomicBool::new(false);
    let (rounds, report) = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                for (dir, plain, other) in &files {
                    for file in [other, plain] {
                        let said = apply(dir, &["apply", file.to_str().unwrap(), "--yes"]);
                        assert!(said.contains("in force: generation"), "{said}");
                    }
                    apply(dir, &["rollback", "--yes"]);
                    apply(dir, &["apply", plain.to_str().unwrap(), "--yes"]);
                }
                rounds += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            rounds
        });
        let report = site.client("idc-host", &format!("talk {SERVER} --millis 4000 --udp-mbps 20"));
        over.store(true, Ordering::Relaxed);
        (changes.join().unwrap(), report)
    });
    assert!(rounds >= 3, "{rounds}");
    assert_eq!(report.complaints(), Vec::<String>::new());
    assert!(!report.udp.is_empty());
    for udp in &report.udp {
        assert_eq!(udp.sent, udp.received, "{udp:?}");
    }
    for name in ["idc", "cloud"] {
        site.read_again(name);
        let drops = site.drops(name);
        for lost in ["esp-replayed", "no-sa", "sequence-exhausted", "policy-mismatch", "no-route"] {
            assert_eq!(drops.get(lost).copied().unwrap_or(0), 0, "{name}: {drops:?}");
        }
    }
    site.end();
}
