//! Clients of the control socket that mean harm, or know no better.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use crate::lab::{Lab, is_root};

#[test]
fn hostile_clients_do_no_harm() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    let path = lab.run_dir().join("control.sock");
    let connect = || UnixStream::connect(&path).unwrap();

    // Garbage, half lines, a line without end, questions without an ear for the answer.
    let mut kept = Vec::new();
    for bytes in [&b"\0\xff\xfe\n"[..], b"{\"show\":", b"\"re", &[b'['; 4000], b"{}\n\n\n"] {
        let mut client = connect();
        client.write_all(bytes).unwrap();
        kept.push(client);
    }
    let mut giant = connect();
    // The gateway hangs up in the middle of it.
    while giant.write_all(&[b'x'; 1 << 16]).is_ok() {}
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(b"{\"show\":\"routes\"}\n").is_ok() {}
    let mut wrong = connect();
    wrong.write_all(b"[1]\n").unwrap();
    wrong.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    wrong.read_to_string(&mut said).unwrap();
    assert!(said.contains("error"), "{said}");

    // Ten thousand connections, some of them kept, while packets flow and others ask.
    for round in 0..100 {
        let many: Vec<UnixStream> = (0..100).filter_map(|_| UnixStream::connect(&path).ok()).collect();
        if round % 25 == 0 {
            kept.extend(many);
            assert!(lab.vpc.pings("10.1.0.2", 5));
        }
    }
    gateway.until(|g| g.ask("\"ping\"").is_some_and(|answer| answer["ok"] == "pong"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    assert!(descriptors < 100, "{descriptors} descriptors are open\n{status}");
    assert!(lab.vpc.pings("10.1.0.2", 5));
    gateway.stop();
}
