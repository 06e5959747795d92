//! Routes by command: into the running program, in place, and out again.

use std::{fmt::Write, fs, process::Command};

use crate::lab::{CAUSEWAY, Lab, Running, is_root};

fn route(gateway: &Running, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(CAUSEWAY)
        .arg("route")
        .args(words)
        .arg("--run-dir")
        .arg(&gateway.run_dir)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn routes_come_and_go_by_command() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    assert!(lab.vpc.silent("10.9.0.1", 1), "no route yet");
    assert_eq!(
        route(&gateway, &["add", "vpc", "10.9.0.0/16", "via", "10.1.0.2", "--source", "ebgp"]).0,
        Some(0)
    );
    assert!(lab.vpc.pings("10.9.0.1", 3));
    let shown = gateway.text("routes vpc --prefix 10.9.0.0/16");
    assert!(shown.contains("via 10.1.0.2 on dc") && shown.contains("ebgp, learned"), "{shown}");
    // Over a reload it stays.
    assert!(crate::show::causeway(&gateway, "reload").status.success());
    assert!(lab.vpc.pings("10.9.0.1", 3));
    let wrong = route(&gateway, &["add", "vpc", "10.9.0.0/16", "via", "192.0.2.1"]);
    assert!(wrong.0 == Some(1) && wrong.1.contains("no connected prefix"), "{wrong:?}");
    assert_eq!(route(&gateway, &["delete", "vpc", "10.9.0.0/16", "--source", "ebgp"]).0, Some(0));
    assert!(lab.vpc.silent("10.9.0.1", 1));

    // Many at once, and all that is wrong with a file at once.
    let file = lab.dir.path().join("routes");
    let mut text = String::from("# a comment\n");
    for n in 0..5000 {
        writeln!(text, "20.{}.{}.0/24 via 10.1.0.2", n / 256, n % 256).unwrap();
    }
    fs::write(&file, &text).unwrap();
    let path = file.to_str().unwrap();
    let loaded = route(&gateway, &["load", "vpc", path]);
    assert!(loaded.0 == Some(0) && loaded.1.contains("5000 routes, 5000 of them changed"), "{loaded:?}");
    assert!(gateway.text("routes").contains("the first 1000 routes of 500"));
    let all = gateway.json("routes --all");
    assert_eq!(all.as_array().unwrap().iter().filter(|row| row["source"] == "ebgp").count(), 5000);
    fs::write(
        &file,
        text.replace("20.0.7.0/24 via", "20.0.7.0/24 over").replace("20.1.9.0/24", "20.1.9.0/33"),
    )
    .unwrap();
    let wrong = route(&gateway, &["load", "vpc", path]);
    assert!(wrong.0 == Some(1) && wrong.1.contains("line 9:") && wrong.1.contains("line 267:"), "{wrong:?}");
    fs::write(&file, &text).unwrap();
    let gone = route(&gateway, &["load", "vpc", path, "--delete"]);
    assert!(gone.1.contains("5000 of them changed"), "{gone:?}");
    assert!(lab.vpc.pings("10.1.0.2", 2));
    gateway.stop();
}
