//! The host's own stack behind a TAP of the gateway.

use std::fs;

use crate::lab::{Lab, Running, is_root};

#[test]
fn every_worker_serves_the_host() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    // As many addresses as it takes for the kernel to spread them over both workers.
    for last in 10..42 {
        lab.dc.run(&format!("ip address add 10.1.0.{last}/24 dev eth0"));
    }
    let text = lab
        .config("dc", "host_tap = \"cw-dc\"\n")
        .replace("huge_pages", "cores = [0, 1]\nidle = \"1ms\"\nhuge_pages");
    fs::write(lab.file(), text).unwrap();
    let gateway = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    lab.gateway.run("ip address add 10.1.0.1/24 dev cw-dc");

    // The gateway answers nothing for the address but ARP: it is the host that does.
    for last in 10..42 {
        let ping = format!("ping -n -q -c 3 -i 0.01 -W 2 -I 10.1.0.{last} 10.1.0.1");
        assert!(lab.dc.try_run(&ping).status.success(), "from .{last}: {}", gateway.log());
    }
    assert!(lab.gateway.pings("10.1.0.2", 5), "the host asks by itself");
    assert!(lab.vpc.pings("10.1.0.2", 5), "what is not for the host goes on");
    let summary = gateway.json("summary");
    let delivered: Vec<u64> =
        summary["workers"].as_array().unwrap().iter().map(|w| w["delivered"].as_u64().unwrap()).collect();
    assert_eq!(delivered.len(), 2);
    assert!(delivered.iter().all(|n| *n >= 3), "{delivered:?}");
    assert!(delivered.iter().sum::<u64>() >= 3 * 32);
    gateway.stop();
}
