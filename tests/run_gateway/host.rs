//! The host's own stack behind a TAP of the gateway.

use std::{fs, thread, time::Duration};

use crate::{
    lab::{Lab, Running, is_root},
    shared::count,
};

#[test]
fn every_worker_serves_the_host() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    // A cable of two queues, whose frames the host's stack does not see by itself.
    lab.gateway.run("ip link delete gd");
    lab.gateway.connect_queues("gd", &lab.dc, "eth0", 2);
    lab.dc.run("ip address add 10.1.0.2/24 dev eth0");
    lab.dc.run("ip route add default via 10.1.0.1");
    let text = lab.config("dc", "host_tap = \"cw-dc\"\n").replace("huge_pages", "cores = [0, 1]\nhuge_pages");
    fs::write(lab.file(), text).unwrap();
    let gateway = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    lab.gateway.run("ip address add 10.1.0.1/24 dev cw-dc");

    // Pings the gateway answers itself; this is for the host, and of as many flows as it takes for both workers to get
    // some.
    let before = count(&lab.gateway, "Udp: ", "NoPorts");
    let send = "for i in $(seq 64); do echo x > /dev/udp/10.1.0.1/9; done";
    assert!(lab.dc.command("bash").args(["-c", send]).status().unwrap().success());
    for _ in 0..500 {
        if count(&lab.gateway, "Udp: ", "NoPorts") == before + 64 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count(&lab.gateway, "Udp: ", "NoPorts"), before + 64, "{}", gateway.log());
    assert!(lab.gateway.pings("10.1.0.2", 5), "the host asks by itself");
    assert!(lab.vpc.pings("10.1.0.2", 5), "what is not for the host goes on");
    let summary = gateway.json("summary");
    let delivered: Vec<u64> =
        summary["workers"].as_array().unwrap().iter().map(|w| w["delivered"].as_u64().unwrap()).collect();
    assert_eq!(delivered.len(), 2);
    assert!(delivered.iter().all(|n| *n >= 8), "{delivered:?}");
    gateway.stop();
}
