//! NAT between the kernels' own stacks, in namespaces of the tests' own: TCP, UDP and ICMP through every kind of rule.
//! Needs root.

mod netns_common;

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use causeway::cli::demo::network::{Process, ip};
use netns_common::{PATIENCE, Site, causeway, is_root, until};
use serde_json::Value;

const CONFIG: &str = r#"
[system]
name = "nat"
cores = [1]
nat_log = "sessions.log"

[port.line]
driver = "xdp"
device = "line0"
[port.vpc]
driver = "xdp"
device = "vpc0"

[gateway.vpc]
prefixes = ["10.2.0.0/16"]
[interface.line]
port = "line"
vlan = 301
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.2/30"]
mtu = 1300
[interface.vpc]
port = "vpc"
vlan = 20
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24"]

[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.11"
translated = "203.0.113.11"
[[gateway.vpc.nat]]
name = "web"
kind = "port"
protocol = "tcp"
original = "10.2.0.12"
original_port = 8080
translated = "203.0.113.80"
translated_port = 80
[[gateway.vpc.nat]]
name = "echo"
kind = "port"
protocol = "udp"
original = "10.2.0.12"
original_port = 7000
translated = "203.0.113.80"
translated_port = 7
[[gateway.vpc.nat]]
name = "out"
kind = "pool"
translated = "203.0.113.16-203.0.113.19"

[[gateway.vpc.route]]
to = "10.1.0.0/16"
via = "192.0.2.1"
[[gateway.vpc.route]]
to = "10.2.5.0/24"
via = "10.2.0.10"
"#;

/// Answers everybody with what it heard and from whom; or asks and prints the answer.
const TALK: &str = r#"
import socket, sys, threading
what, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if what == "serve":
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stream.bind((address, port))
    stream.listen(64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    def udp():
        while True:
            data, who = datagrams.recvfrom(65536)
            datagrams.sendto(b"%s:%d %d %d" % (who[0].encode(), who[1], len(data), sum(data)), who)
    def one(connection, who):
        with connection:
            data = connection.makefile("rb").readline()
            connection.sendall(b"%s:%d %d\n" % (who[0].encode(), who[1], len(data)))
    threading.Thread(target=udp, daemon=True).start()
    while True:
        threading.Thread(target=one, args=stream.accept(), daemon=True).start()
source = (sys.argv[4], int(sys.argv[6]) if len(sys.argv) > 6 else 0)
size = int(sys.argv[5])
if what == "trace":
    import select
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(source)
    # IP_RECVERR: errors come with the address of who found them.
    s.setsockopt(socket.IPPROTO_IP, 11, 1)
    s.connect((address, port))
    poll, hops, tries = select.poll(), [], 0
    poll.register(s, select.POLLIN | select.POLLERR)
    while len(hops) < 8 and tries < 16 and hops[-1:] != ["answer"]:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, len(hops) + 1)
        tries += 1
        s.send(b"?")
        poll.poll(3000)
        try:
            _, told, _, _ = s.recvmsg(512, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            hops += [socket.inet_ntoa(data[20:24]) for _, kind, data in told if kind == 11]
        except BlockingIOError:
            try:
                s.recv(65536, socket.MSG_DONTWAIT)
                hops.append("answer")
            except BlockingIOError:
                pass
    print("hops", *hops)
elif what == "many":
    import concurrent.futures
    def stream(n):
        with socket.create_connection((address, port), 30, (source[0], 0)) as s:
            own = s.getsockname()[1]
            s.sendall(b"x" * (size + n) + b"\n")
            who, heard = s.makefile().readline().split()
            return who, int(heard) == size + n + 1, own
    # Kept, lest a port comes twice.
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(source[1])]
    def datagram(n):
        s = sockets[n]
        s.bind((source[0], 0))
        s.connect((address, port))
        s.settimeout(5)
        for _ in range(4):
            s.send(b"y" * (100 + n))
            try:
                who, heard, total = s.recv(65536).decode().split()
                return who, int(total) == 121 * (100 + n), s.getsockname()[1]
            except TimeoutError:
                pass
        return "nobody", False, 0
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(stream, range(source[1]))) + list(pool.map(datagram, range(source[1])))
    # The kernel may give a port again that a stream has had.
    flows, outside = ({(n < source[1], answer[part]) for n, answer in enumerate(answers)} for part in (2, 0))
    print("good", sum(good for _, good, _ in answers), len(outside) + len(answers) - len(flows), sum(int(who.rpartition(":")[2]) & 1 == own & 1 for who, _, own in answers))
elif what == "refused":
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(source)
    s.connect((address, port))
    s.settimeout(10)
    s.send(b"?")
    try:
        print(s.recv(1))
    except ConnectionRefusedError:
        print("refused")
elif what == "tcp":
    s = socket.create_connection((address, port), 30, source)
    s.sendall(b"x" * size + b"\n")
    print(s.makefile().readline())
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # Without this bit datagrams are cut into fragments rather than refused.
    s.setsockopt(socket.IPPROTO_IP, 10, 0)
    s.bind(source)
    s.settimeout(10)
    for _ in range(3):
        s.sendto(b"y" * size, (address, port))
        try:
            print(s.recv(65536).decode())
            break
        except TimeoutError:
            pass
"#;

struct Nat {
    servers: Vec<Process>,
    site: Site,
    script: PathBuf,
    _folder: tempfile::TempDir,
}

/// A link with so many queues each way: the kernel chooses one by a hash of the flow, or for fragments of what all of
/// them have.
fn link(site: &Site, one: (&str, &str), other: (&str, &str), queues: usize) {
    let (a, b) = (site.network.full(one.0), site.network.full(other.0));
    let many = format!("numrxqueues {queues} numtxqueues {queues}");
    for line in [
        format!("link add name {} netns {a} {many} type veth peer name {} netns {b} {many}", one.1, other.1),
        format!("-n {a} link set {} up", one.1),
        format!("-n {b} link set {} up", other.1),
    ] {
        ip(&line).unwrap();
    }
}

fn forward(site: &Site, namespace: &str) {
    let on = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    site.network.inside(namespace, on).unwrap();
}

/// `vpc` (10.2.0.x) ── gateway ── `peer`, a router ── `far` (10.1.0.10).
fn nat(text: &str, vpc: (&[&str], &str)) -> Nat {
    nat_of(text, vpc, 1)
}

/// The same, the gateway's devices with so many queues.
fn nat_of(text: &str, vpc: (&[&str], &str), queues: usize) -> Nat {
    let mut site = Site::empty();
    for namespace in ["vpc", "gateway", "peer", "far"] {
        site.network.add(namespace).unwrap();
    }
    link(&site, ("vpc", "eth0"), ("gateway", "vpc0"), queues);
    link(&site, ("peer", "eth0"), ("gateway", "line0"), queues);
    site.network.link(("peer", "eth1"), ("far", "eth0")).unwrap();
    site.host("vpc", 20, vpc.0, &[vpc.1]);
    site.host("peer", 301, &["192.0.2.1/30"], &["192.0.2.2"]);
    let (peer, far) = (site.network.full("peer"), site.network.full("far"));
    for line in [
        format!("-n {peer} addr add 10.1.9.1/30 dev eth1"),
        format!("-n {far} addr add 10.1.9.2/30 dev eth0"),
        format!("-n {far} addr add 10.1.0.10/32 dev lo"),
        format!("-n {far} route add default via 10.1.9.1"),
        format!("-n {peer} route add 10.1.0.0/24 via 10.1.9.2"),
    ] {
        ip(&line).unwrap();
    }
    forward(&site, "peer");
    // As many errors as there is cause for.
    for namespace in ["peer", "far"] {
        let set = || std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap();
        site.network.inside(namespace, set).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("talk.py");
    std::fs::write(&script, TALK).unwrap();
    let log = folder.path().join("sessions.log");
    let text = text.replace("sessions.log", log.to_str().unwrap());
    site.start("gateway", &text, causeway::cli::demo::gateways::cores()[0]);
    Nat { servers: Vec::new(), site, script, _folder: folder }
}

fn usual() -> Nat {
    nat(CONFIG, (&["10.2.0.10/24", "10.2.0.11/24", "10.2.0.12/24"], "10.2.0.1"))
}

impl Nat {
    fn spawn(&mut self, namespace: &str, line: &str) {
        let mut command = self.site.network.command(causeway(), namespace, true);
        command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        self.servers.push(Process::start(&mut command).unwrap());
    }

    fn serve(&mut self, namespace: &str, address: &str, port: u16) {
        let script = self.script.display().to_string();
        self.spawn(namespace, &format!("python3 {script} serve {address} {port}"));
        until("the server does not answer", || {
            self.site.run(namespace, &format!("python3 {script} tcp {address} {port} {address} 1")).0
        });
    }

    /// What a server said: from whom it heard, and how many bytes.
    #[track_caller]
    fn ask(&self, namespace: &str, line: &str) -> (String, String) {
        let text = self.site.ok(namespace, &format!("python3 {} {line}", self.script.display()));
        let (who, what) = text.trim().split_once(' ').unwrap_or_else(|| panic!("{line}: {text:?}"));
        let address = who.split(':').next().unwrap();
        (address.into(), what.into())
    }

    /// So many streams at once for two seconds, each of which must carry something. A server that is not up yet, or has
    /// not done with the one before, says so in a report without streams: then once more.
    #[track_caller]
    fn iperf(&self, streams: usize, back: &str) -> Value {
        let line = format!("iperf3 -J -c 10.1.0.10 -B 10.2.0.10 -P {streams} -t 2 {back}");
        let since = Instant::now();
        loop {
            let (_, text) = self.site.run("vpc", &line);
            let report: Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(all) = report["end"]["streams"].as_array().filter(|_| report["error"].is_null()) {
                assert_eq!(all.len(), streams);
                assert!(all.iter().all(|one| one["receiver"]["bytes"].as_f64().unwrap() > 0.0), "{report:#}");
                return report;
            }
            assert!(since.elapsed() < PATIENCE, "{text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn show(&self, what: &str) -> Value {
        let run_dir = self.site.run_dir("gateway");
        let program = causeway().display();
        let text = self
            .site
            .ok("gateway", &format!("{program} show nat {what} --run-dir {} --json", run_dir.display()));
        serde_json::from_str(&text).unwrap()
    }

    fn end(mut self) {
        self.servers.clear();
        self.site.end();
    }
}

/// Gives the VPC a host behind another, which is its router: 10.2.5.10, over a link with this MTU.
fn deepen(nat: &mut Nat, mtu: u32) {
    nat.site.network.add("deep").unwrap();
    nat.site.network.link(("vpc", "eth1"), ("deep", "eth0")).unwrap();
    let (vpc, deep) = (nat.site.network.full("vpc"), nat.site.network.full("deep"));
    for line in [
        format!("-n {vpc} addr add 10.2.5.1/24 dev eth1"),
        format!("-n {deep} addr add 10.2.5.10/24 dev eth0"),
        format!("-n {deep} route add default via 10.2.5.1"),
        format!("-n {vpc} link set eth1 mtu {mtu}"),
    ] {
        ip(&line).unwrap();
    }
    forward(&nat.site, "vpc");
}

fn is_of_the_pool(address: &str) -> bool {
    ["203.0.113.16", "203.0.113.17", "203.0.113.18", "203.0.113.19"].contains(&address)
}

#[test]
fn every_protocol_crosses_every_kind_of_rule() {
    if !is_root() {
        return;
    }
    let mut nat = usual();
    nat.serve("far", "10.1.0.10", 7000);
    // A host of the pool, and one with an address of its own.
    for (host, expected) in [("10.2.0.10", None), ("10.2.0.11", Some("203.0.113.11"))] {
        nat.site.pings("vpc", 20, &format!("-I {host} 10.1.0.10"));
        // The second datagram goes in fragments.
        for (how, size) in [("tcp", 5000), ("udp", 100), ("udp", 5000)] {
            let (who, what) = nat.ask("vpc", &format!("{how} 10.1.0.10 7000 {host} {size}"));
            assert!(expected.map_or_else(|| is_of_the_pool(&who), |known| known == who), "{host}: {who}");
            let heard = what.split(' ').next().unwrap().parse::<usize>().unwrap();
            assert_eq!(heard, size + usize::from(how == "tcp"));
        }
    }
    // The mapped services, from outside and from inside by their outside address.
    nat.serve("vpc", "10.2.0.12", 8080);
    nat.serve("vpc", "10.2.0.12", 7000);
    let (who, _) = nat.ask("far", "tcp 203.0.113.80 80 10.1.0.10 100");
    assert_eq!(who, "10.1.0.10");
    for size in [100, 5000] {
        let (who, what) = nat.ask("far", &format!("udp 203.0.113.80 7 10.1.0.10 {size}"));
        assert_eq!((who.as_str(), what), ("10.1.0.10", format!("{size} {}", size * 121)));
    }
    let sessions = nat.show("sessions");
    let of = |rule: &str| sessions.as_array().unwrap().iter().filter(|row| row["rule"] == rule).count();
    assert!(of("out") >= 3 && of("web") == 1 && of("echo") >= 1, "{sessions:#}");
    let web = nat.show("sessions --rule web --address 10.1.0.10");
    assert_eq!(web[0]["inside"], "10.2.0.12:8080");
    assert_eq!(nat.show("sessions --address 10.9.9.9").as_array().unwrap().len(), 0);
    assert_eq!(nat.show("rules").as_array().unwrap().len(), 4);
    let pools = nat.show("pools");
    assert_eq!((&pools[0]["rule"], &pools[0]["addresses"]), (&Value::from("out"), &Value::from(4)));
    // A session that an operator ends is gone.
    let id = web[0]["id"].as_str().unwrap();
    let run_dir = nat.site.run_dir("gateway");
    let end = format!("{} nat end {id} --run-dir {}", causeway().display(), run_dir.display());
    nat.site.ok("gateway", &end);
    until("the session does not end", || nat.show("sessions --rule web").as_array().unwrap().is_empty());
    assert!(!nat.site.run("gateway", &end).0);
    // And the log knows of all of them.
    let log = nat._folder.path().join("sessions.log");
    until("the log says nothing of the end", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let count = |event: &str, rule: &str| {
            lines.iter().filter(|line| line["event"] == event && line["rule"] == rule).count()
        };
        count("begin", "out") >= 3 && count("begin", "web") == 1 && count("end", "web") == 1
    });
    nat.end();
}

#[test]
fn many_streams_cross_a_pool_and_learn_the_path_mtu() {
    if !is_root() {
        return;
    }
    let mut nat = usual();
    nat.spawn("far", "iperf3 -s -B 10.1.0.10");
    for back in ["", "-R"] {
        let report = nat.iperf(16, back);
        let bytes = report["end"]["sum_received"]["bytes"].as_f64().unwrap();
        assert!(bytes > 1e6, "{bytes} bytes in two seconds");
    }
    // The gateway told the host what fits the line.
    let text = nat.site.ok("vpc", "ip route get 10.1.0.10 from 10.2.0.10");
    assert!(text.contains("mtu 1300"), "{text}");
    assert!(nat.site.drops("gateway")["packet-too-big"] > 0);
    nat.end();
}

#[test]
fn every_hop_behind_the_translation_is_seen() {
    if !is_root() {
        return;
    }
    let nat = usual();
    for host in ["10.2.0.10", "10.2.0.11"] {
        for (ttl, hop) in [(1, "10.2.0.1"), (2, "192.0.2.1")] {
            let (_, text) = nat.site.run("vpc", &format!("ping -n -c 1 -W 10 -t {ttl} -I {host} 10.1.0.10"));
            assert!(text.contains(&format!("From {hop} icmp_seq=1 Time to live exceeded")), "{text}");
        }
        nat.site.ok("vpc", &format!("ping -n -c 1 -W 10 -t 3 -I {host} 10.1.0.10"));
        // Nobody listens: the far end says so, and the host's own socket hears it.
        let script = nat.script.display();
        let text = nat.site.ok("vpc", &format!("python3 {script} refused 10.1.0.10 9 {host} 1"));
        assert_eq!(text.trim(), "refused");
    }
    nat.end();
}

#[test]
fn two_parties_with_the_same_addresses_talk() {
    if !is_root() {
        return;
    }
    let text = include_str!("../pipelines/nat-overlap/gateway.toml");
    let mut nat =
        nat(text, (&["100.64.0.2/24", "10.0.0.9/32", "10.0.0.10/32", "10.0.0.80/32"], "100.64.0.1"));
    // The data centre's own 10.0.0.9, behind its router.
    let (peer, far) = (nat.site.network.full("peer"), nat.site.network.full("far"));
    for line in [
        format!("-n {far} addr add 10.0.0.9/32 dev lo"),
        format!("-n {peer} route add 10.0.0.0/16 via 10.1.9.2"),
    ] {
        ip(&line).unwrap();
    }
    nat.serve("far", "10.0.0.9", 7000);
    for host in ["10.0.0.9", "10.0.0.10"] {
        nat.site.pings("vpc", 10, &format!("-I {host} 198.18.0.9"));
        for how in ["tcp", "udp"] {
            let (who, _) = nat.ask("vpc", &format!("{how} 198.18.0.9 7000 {host} 3000"));
            assert!(who.starts_with("203.0.113."), "{who}");
        }
    }
    nat.serve("vpc", "10.0.0.80", 8443);
    let (who, _) = nat.ask("far", "tcp 203.0.113.80 443 10.0.0.9 100");
    assert_eq!(who, "198.18.0.9");
    nat.end();
}

/// The VPC's services, where peers know them, are those of a host behind a router of the VPC's.
fn deep_services() -> String {
    CONFIG.replace("10.2.0.12", "10.2.5.10")
}

#[test]
fn the_path_mtu_is_learned_from_outside_in_and_from_routers_on_both_sides() {
    if !is_root() {
        return;
    }
    let hosts: (&[&str], &str) = (&["10.2.0.10/24"], "10.2.0.1");
    // The gateway's own interface to the VPC is the narrowest; the next time a router behind it, and one beyond the line.
    for (inner, outer, own, expected) in [(1500, 1500, 1280, 1280), (1200, 1240, 1500, 1200)] {
        let text = deep_services().replace("[interface.vpc]\n", &format!("[interface.vpc]\nmtu = {own}\n"));
        let mut nat = nat(&text.replace("mtu = 1300\n", ""), hosts);
        deepen(&mut nat, inner);
        let peer = nat.site.network.full("peer");
        ip(&format!("-n {peer} link set eth1 mtu {outer}")).unwrap();
        nat.serve("deep", "10.2.5.10", 8080);
        nat.serve("far", "10.1.0.10", 7000);
        // From outside to a mapped service: the segments are too large for what is inside.
        let (who, heard) = nat.ask("far", "tcp 203.0.113.80 80 10.1.0.10 60000");
        assert_eq!((who.as_str(), heard.as_str()), ("10.1.0.10", "60001"));
        let text = nat.site.ok("far", "ip route get 203.0.113.80 from 10.1.0.10");
        assert!(text.contains(&format!("mtu {expected}")), "{text}");
        // From inside through the pool: a router outside finds them too large.
        let (who, heard) = nat.ask("deep", "tcp 10.1.0.10 7000 10.2.5.10 60000");
        assert!(is_of_the_pool(&who) && heard == "60001", "{who} {heard}");
        if outer < 1280 {
            let text = nat.site.ok("deep", "ip route get 10.1.0.10 from 10.2.5.10");
            assert!(text.contains(&format!("mtu {outer}")), "{text}");
        }
        nat.end();
    }
}

#[test]
fn the_way_is_traced_both_ways_through_every_kind_of_rule() {
    if !is_root() {
        return;
    }
    let mut nat = nat(&deep_services(), (&["10.2.0.10/24", "10.2.0.11/24"], "10.2.0.1"));
    deepen(&mut nat, 1500);
    nat.serve("far", "10.1.0.10", 7000);
    nat.serve("deep", "10.2.5.10", 7000);
    nat.serve("vpc", "10.2.0.11", 7000);
    let trace = |namespace: &str, line: &str| {
        let script = nat.script.display();
        nat.site.ok(namespace, &format!("python3 {script} trace {line} 1")).trim().to_string()
    };
    // From inside: a pool, an address of the host's own, and a pool from behind the VPC's router.
    for host in ["10.2.0.10", "10.2.0.11"] {
        assert_eq!(trace("vpc", &format!("10.1.0.10 7000 {host}")), "hops 10.2.0.1 192.0.2.1 answer");
    }
    let hops = trace("deep", "10.1.0.10 7000 10.2.5.10");
    assert_eq!(hops, "hops 10.2.5.1 10.2.0.1 192.0.2.1 answer");
    // From outside: what is behind the outside address shows itself as that address alone.
    let hops = trace("far", "203.0.113.80 7 10.1.0.10");
    assert_eq!(hops, "hops 10.1.9.1 192.0.2.2 203.0.113.80 answer");
    assert_eq!(trace("far", "203.0.113.11 7000 10.1.0.10"), "hops 10.1.9.1 192.0.2.2 answer");
    nat.end();
}

/// Two workers with a queue each of both devices. The kernel chooses the queue of a packet, so answers, fragments and
/// errors come to the worker that has the session as often as not.
#[test]
fn two_workers_carry_it_whichever_queue_it_comes_by() {
    if !is_root() {
        return;
    }
    // The test network puts its own lines in place of the one core's.
    let cores = causeway::cli::demo::gateways::cores();
    assert_ne!(cores[0], cores[1], "two workers want two cores");
    let text = CONFIG.replace("cores = [1]", &format!("cores = {cores:?}\n# cores = [1]"));
    let mut nat = nat_of(&text, (&["10.2.0.10/24", "10.2.0.11/24", "10.2.0.12/24"], "10.2.0.1"), 2);
    nat.serve("far", "10.1.0.10", 7000);
    nat.serve("vpc", "10.2.0.12", 8080);
    nat.serve("vpc", "10.2.0.12", 7000);
    let script = nat.script.display().to_string();
    let many = |namespace: &str, line: &str| -> Vec<usize> {
        let text = nat.site.ok(namespace, &format!("python3 {script} many {line}"));
        text.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect()
    };
    // Streams and datagrams from many ports: every one is answered, and all come from different outside ports of the
    // same parity.
    assert_eq!(many("vpc", "10.1.0.10 7000 10.2.0.10 3000 100"), [200, 200, 200]);
    assert_eq!(many("vpc", "10.1.0.10 7000 10.2.0.11 3000 50"), [100, 100, 100]);
    let bindings = nat.show("sessions --rule out");
    let outside: std::collections::BTreeSet<String> = bindings
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{} {} {}", row["protocol"], row["outside"], row["remote"]))
        .collect();
    assert_eq!(outside.len(), bindings.as_array().unwrap().len());
    for n in 0..20 {
        // In fragments, by pool and mapping, and pings.
        let (who, what) = nat.ask("vpc", &format!("udp 10.1.0.10 7000 10.2.0.10 {}", 4000 + n));
        assert!(is_of_the_pool(&who) && what.starts_with(&format!("{} ", 4000 + n)), "{who} {what}");
        let (who, what) = nat.ask("far", &format!("udp 203.0.113.80 7 10.1.0.10 {}", 4000 + n));
        assert!(who == "10.1.0.10" && what.starts_with(&format!("{} ", 4000 + n)), "{who} {what}");
        nat.ask("far", "tcp 203.0.113.80 80 10.1.0.10 5000");
        let text = nat.site.ok("vpc", &format!("python3 {script} refused 10.1.0.10 9 10.2.0.10 1"));
        assert_eq!(text.trim(), "refused");
        nat.site.pings("vpc", 3, "-I 10.2.0.10 10.1.0.10");
    }
    nat.spawn("far", "iperf3 -s -B 10.1.0.10");
    for back in ["", "-R"] {
        nat.iperf(64, back);
    }
    let counted = |column| nat.site.counter("gateway", "worker", column);
    assert!(counted("handed_over") > 1000, "{} packets were handed over", counted("handed_over"));
    // The last may be on their way.
    until("packets are lost between workers", || counted("taken_over") == counted("handed_over"));
    let drops = nat.site.drops("gateway");
    let known = ["packet-too-big", "nat-handover-full", "arp-consumed"];
    assert!(drops.iter().all(|(name, count)| *count == 0 || known.contains(&name.as_str())), "{drops:?}");
    nat.end();
}

/// The site-to-site network, with a pool and a mapped service in the cloud: translated first, then sealed.
#[test]
fn a_pool_and_a_mapping_work_through_a_tunnel() {
    if !is_root() {
        return;
    }
    let site = Site::new(|text| {
        let rules = r#"
[[gateway.vpc.nat]]
kind = "port"
protocol = "tcp"
original = "10.2.0.20"
original_port = 8080
translated = "203.0.113.80"
translated_port = 80
[[gateway.vpc.nat]]
name = "out"
kind = "pool"
translated = "203.0.113.16-203.0.113.19"
[[gateway.vpc.policy]]"#;
        text.replacen("\n[[gateway.vpc.policy]]", rules, 1)
    });
    let vpc = site.network.full("vpc-host");
    ip(&format!("-n {vpc} addr add 10.2.0.20/24 dev eth0")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("talk.py");
    std::fs::write(&script, TALK).unwrap();
    let mut nat = Nat { servers: Vec::new(), site, script, _folder: folder };
    nat.serve("idc-host", "10.1.0.10", 7000);
    nat.serve("vpc-host", "10.2.0.20", 8080);
    nat.site.pings("vpc-host", 20, "-I 10.2.0.20 10.1.0.10");
    for (how, size) in [("udp", 100), ("tcp", 60_000), ("udp", 1430), ("udp", 6000)] {
        let (who, what) = nat.ask("vpc-host", &format!("{how} 10.1.0.10 7000 10.2.0.20 {size}"));
        assert!(is_of_the_pool(&who), "{who}");
        assert_eq!(what.split(' ').next().unwrap(), (size + usize::from(how == "tcp")).to_string());
    }
    // The tunnel's headers leave 1446 bytes: the gateway told the host behind the pool.
    let text = nat.site.ok("vpc-host", "ip route get 10.1.0.10 from 10.2.0.20");
    assert!(text.contains("mtu 1446"), "{text}");
    let (who, heard) = nat.ask("idc-host", "tcp 203.0.113.80 80 10.1.0.10 60000");
    assert_eq!((who.as_str(), heard.as_str()), ("10.1.0.10", "60001"));
    let refused = format!("python3 {} refused 10.1.0.10 9 10.2.0.20 1", nat.script.display());
    assert_eq!(nat.site.ok("vpc-host", &refused).trim(), "refused");
    nat.end();
}
