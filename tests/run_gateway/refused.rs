//! Gateways that cannot start say why in one sentence.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use crate::lab::{CAUSEWAY, Host, Lab, Running, is_root};

/// The one sentence with which a command failed for want of something.
#[track_caller]
fn sentence(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    let said: Vec<_> = text.lines().filter(|line| line.starts_with("causeway: ")).collect();
    assert_eq!(said.len(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    said[0].to_string()
}

fn run(host: &Host, lab: &Lab) -> Output {
    host.command(CAUSEWAY).args(["run", "--new-state"]).arg(lab.file()).output().unwrap()
}

#[test]
fn two_gateways_do_not_share_a_run_directory() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let said = sentence(&run(&lab.gateway, &lab));
    assert!(said.contains("runs in") && said.contains(&gateway.pid().to_string()), "{said}");
    assert!(lab.vpc.pings("10.1.0.2", 3), "the first is not disturbed");
    assert!(
        gateway.text("summary").contains("accounted for") || gateway.text("summary").contains("under way")
    );
    gateway.stop();
}

#[test]
fn a_device_that_is_missing_is_named() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    for driver in ["af_packet", "xdp"] {
        let text = lab.config("dc", "").replace("\"gd\"", "\"nosuch0\"").replace("af_packet", driver);
        fs::write(lab.file(), text).unwrap();
        let said = sentence(&run(&lab.gateway, &lab));
        assert!(said.contains("nosuch0") && said.contains("port d"), "{said}");
    }
    // Nothing was left behind: the other port can be had.
    let gateway = lab.start();
    gateway.stop();
}

#[test]
fn want_of_privilege_is_said() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let open = |path: &std::path::Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    };
    open(lab.dir.path());
    // Where the user `nobody` can reach it.
    let program = lab.dir.path().join("causeway");
    fs::copy(CAUSEWAY, &program).unwrap();
    for driver in ["af_packet", "xdp"] {
        fs::write(lab.file(), lab.config("dc", "").replace("af_packet", driver)).unwrap();
        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let output = lab
            .gateway
            .command("setpriv")
            .args(nobody)
            .arg(&program)
            .args(["run", "--new-state"])
            .arg(lab.file())
            .output()
            .unwrap();
        let said = sentence(&output);
        assert!(said.contains("CAP_") || said.contains("ermission") || said.contains("ermitted"), "{said}");
        let _ = fs::remove_dir_all(lab.run_dir());
    }
    // `show` of a gateway of root's: counters may be seen by all, the rest not.
    let gateway = lab.start();
    let run_dir = lab.run_dir();
    let show = |what: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        command.args(["show", what, "--run-dir"]).arg(&run_dir).output().unwrap()
    };
    assert!(show("drops").status.success());
    assert!(sentence(&show("routes")).contains("only for its owner"));
    gateway.stop();
}

#[test]
fn a_queue_that_is_taken_is_said() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.file(), lab.config("dc", "").replace("af_packet", "xdp")).unwrap();
    let first = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    let text = fs::read_to_string(lab.file()).unwrap();
    let other = lab.dir.path().join("other.toml");
    fs::write(&other, text.replace("\"lab\"", "\"other\"").replace("/run\"", "/run2\"")).unwrap();
    let output = lab.gateway.command(CAUSEWAY).arg("run").arg(&other).output().unwrap();
    let said = sentence(&output);
    assert!(said.contains("gv") && (said.contains("use") || said.contains("busy")), "{said}");
    assert!(lab.vpc.pings("10.1.0.2", 3), "the first is not disturbed");
    first.stop();
}
