//! `causeway show` against what was sent.

use std::process::{Command, Output};

use crate::lab::{CAUSEWAY, Lab, Running, is_root};

/// `causeway COMMAND` for this gateway.
pub fn causeway(gateway: &Running, command: &str) -> Output {
    Command::new(CAUSEWAY).arg(command).arg("--run-dir").arg(&gateway.run_dir).output().unwrap()
}

#[test]
fn counts_are_those_of_the_traffic() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let mut gateway = lab.start();
    assert!(lab.vpc.pings("10.1.0.2", 50));
    assert!(lab.vpc.silent("172.16.0.1", 4), "nothing is there");
    // The gauges of ports are a tenth of a second old.
    gateway.until(|g| g.json("summary")["balance"]["difference"] == 0);

    let summary = gateway.json("summary");
    let balance = |name: &str| summary["balance"][name].as_u64().unwrap();
    let ports = gateway.json("ports");
    let ports = ports.as_array().unwrap();
    let sum = |column: &str| ports.iter().map(|p| p["counters"][column].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("rx_packets"), balance("received"));
    assert_eq!(sum("tx_packets"), balance("sent"));
    assert!(
        ports.iter().all(|p| p["health"] == "up" && p["description"].as_str().unwrap().contains("af_packet"))
    );

    let [vpc, dc] = ["vpc", "dc"].map(|name| gateway.row("interfaces", name));
    assert_eq!(vpc["addresses"][0], "10.2.0.1/24");
    assert_eq!(
        (&vpc["gateway"], &vpc["side"], &vpc["vlan"]),
        (&"vpc".into(), &"local".into(), &"untagged".into())
    );
    for interface in [&vpc, &dc] {
        for column in ["in_packets", "out_packets"] {
            assert!(interface["counters"][column].as_u64().unwrap() >= 50, "{interface:#}");
        }
    }
    let inside =
        vpc["counters"]["in_packets"].as_u64().unwrap() + dc["counters"]["in_packets"].as_u64().unwrap();
    assert_eq!(inside, balance("received"));

    assert_eq!(gateway.row("drops", "no-route")["packets"], 4);
    let drops = gateway.json("drops");
    let all: u64 = drops.as_array().unwrap().iter().map(|d| d["packets"].as_u64().unwrap()).sum();
    assert_eq!(all, balance("dropped"));
    let by_interface = gateway.json("drops --by-interface");
    let of_vpc = by_interface.as_array().unwrap().iter();
    let of_vpc: Vec<_> = of_vpc.filter(|d| d["reason"] == "no-route" && d["interface"] == "vpc").collect();
    assert_eq!(of_vpc[0]["packets"], 4);
    let text = gateway.text("drops --explain");
    assert!(text.contains("no-route") && text.contains("No route leads to the destination"), "{text}");
    assert!(gateway.text("summary").contains("every packet is accounted for"));
    gateway.stop();
}

#[test]
fn lists_hold_what_is_configured_and_learned() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    assert!(lab.vpc.pings("10.1.0.2", 3));
    let neighbours = gateway.text("neighbours");
    let link = lab.dc.run("ip -brief link show eth0");
    let mac = link.split_whitespace().nth(2).unwrap();
    let line = neighbours.lines().find(|line| line.contains("10.1.0.2")).unwrap();
    assert!(line.starts_with("dc ") && line.contains(mac) && line.contains("reachable"), "{neighbours}");
    let routes = gateway.text("routes --gateway vpc");
    for wanted in ["10.1.0.0/24", "connected on dc", "10.2.0.1/32", "local", "10.1.0.255/32", "broadcast"] {
        assert!(routes.contains(wanted), "{wanted} is missing:\n{routes}");
    }
    let wrong = gateway.show("routes --gateway nosuch");
    assert_eq!(wrong.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("nosuch"));
    assert!(gateway.text("sa").contains("no tunnel") && gateway.text("tunnels").contains("no tunnel"));
    let version = gateway.ask("\"version\"").unwrap();
    assert_eq!(version["ok"]["pid"], gateway.pid());
    gateway.stop();
}

#[test]
fn watching_gives_rates_and_stages_give_costs() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let mut ping = lab.vpc.command("ping");
    ping.args(["-q", "-i", "0.002", "10.1.0.2"]).stdout(std::process::Stdio::null());
    let mut ping = ping.spawn().unwrap();
    let watched = gateway.text("interfaces --watch 0.5 --count 3 --json");
    let samples: Vec<serde_json::Value> = watched.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(samples.len(), 3);
    assert!(samples[0][0].get("per_second").is_none());
    let rate = samples[2][0]["per_second"]["in_packets"].as_f64().unwrap();
    assert!(rate > 1.0 && rate < 5000.0, "{rate} packets a second");
    let text = gateway.text("interfaces --watch 0.2 --count 2");
    assert!(text.contains("IN PACKETS") && text.contains("IN Mbps"), "{text}");
    let stages = gateway.json("stages");
    let parse = stages["stages"].as_array().unwrap().iter().find(|s| s["name"] == "parse").unwrap();
    assert!(parse["packets"].as_u64().unwrap() > 0 && parse["ns_per_packet"].as_f64().unwrap() > 0.0);
    let worker = &stages["workers"][0];
    let busy = worker["busy_percent"].as_f64().unwrap();
    assert!(busy > 0.0 && busy < 100.0, "{worker:#}");
    assert!(worker["packets"].as_u64().unwrap() > 0, "{worker:#}");
    assert!(gateway.text("stages").contains("BUSY %"));
    ping.kill().unwrap();
    ping.wait().unwrap();
    gateway.stop();
}

#[test]
fn associations_show_numbers_and_never_keys() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let (out, into) = ("11".repeat(20), "22".repeat(20));
    let more = format!(
        "[[gateway.vpc.route]]\nto = \"10.9.0.0/16\"\ntunnel = \"t\"\n\
         [tunnel.t]\ngateway = \"vpc\"\nlocal = \"10.1.0.1\"\nremote = \"10.1.0.2\"\n\
         out = {{ spi = 0x1001, key = {{ hex = \"{out}\" }} }}\n\
         in = [{{ spi = 0x1002, key = {{ hex = \"{into}\" }} }}]\n"
    );
    std::fs::write(lab.file(), lab.config("dc", &more)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(lab.file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut gateway = Running::start(&lab.gateway, &lab.file(), &lab.run_dir());
    let number = |g: &Running, name: &str, what: &str| g.row("sa", name)[what].as_u64().unwrap_or(0);
    assert!(lab.vpc.silent("10.9.0.1", 7), "the other end opens nothing");
    gateway.until(|g| number(g, "t/out/0x1001", "packets") == 7);
    assert_eq!(number(&gateway, "t/out/0x1001", "used"), 7);
    assert!(number(&gateway, "t/out/0x1001", "remaining") > 0);
    assert_eq!(number(&gateway, "t/in/0x1002", "window"), 1024);
    assert_eq!(number(&gateway, "t/in/0x1002", "newest"), 0);
    let tunnel = gateway.row("tunnels", "t");
    assert_eq!(tunnel["counters"]["out_packets"], 7, "{tunnel:#}");
    assert_eq!((&tunnel["via"], &tunnel["state"]), (&"10.1.0.2".into(), &"reachable".into()));
    for what in ["summary", "interfaces", "ports", "tunnels", "sa", "neighbours", "routes", "drops", "stages"]
    {
        for text in [gateway.text(what), gateway.json(what).to_string()] {
            assert!(
                !text.contains(&out[..16]) && !text.contains(&into[..16]),
                "show {what} shows a key:\n{text}"
            );
        }
    }
    gateway.stop();
}

#[test]
fn what_cannot_be_shown_is_said() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    let stats = lab.run_dir().join("stats");
    let good = std::fs::read(&stats).unwrap();
    let other = lab.dir.path().join("newer");
    std::fs::create_dir(&other).unwrap();
    let mut newer = good;
    newer[8] = 200;
    std::fs::write(other.join("stats"), newer).unwrap();
    let show = Command::new(CAUSEWAY).args(["show", "summary", "--run-dir"]).arg(&other).output().unwrap();
    assert_eq!(show.status.code(), Some(3));
    let said = String::from_utf8_lossy(&show.stderr).into_owned();
    assert!(said.contains("its version is 200") && said.trim().lines().count() == 1, "{said}");

    // With an empty /run: nothing; with one gateway under it: that one; with two: their names.
    let script = format!(
        "mount -t tmpfs none /run && ({bin} show summary; echo code=$?; mkdir -p /run/causeway && \
         ln -s {dir} /run/causeway/one && {bin} show summary; echo code=$?; {bin} show summary --name one; echo code=$?; \
         ln -s {dir} /run/causeway/two && {bin} show summary; echo code=$?) 2>&1",
        bin = CAUSEWAY,
        dir = lab.run_dir().display()
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let parts: Vec<&str> = text.split("code=").collect();
    assert!(parts[0].contains("no gateway runs: there is none under /run/causeway"), "{text}");
    assert!(parts[1].starts_with('3') && parts[1].contains("gateway  lab"), "{text}");
    assert!(parts[2].starts_with('0') && parts[2].contains("gateway  lab"), "{text}");
    assert!(parts[3].starts_with('0') && parts[3].contains("choose one with --name: one, two"), "{text}");
    assert!(parts[4].starts_with('3'), "{text}");
    gateway.stop();
}

#[test]
fn counters_are_shown_while_nothing_answers() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let gateway = lab.start();
    assert!(lab.vpc.pings("10.1.0.2", 5));
    gateway.signal("-STOP");
    assert!(gateway.text("summary").contains("received"));
    assert!(gateway.json("drops").is_array());
    let show = gateway.show("interfaces --json");
    assert!(show.status.success(), "{show:?}");
    assert!(String::from_utf8_lossy(&show.stderr).contains("too busy to answer"), "{show:?}");
    let interfaces: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
    assert!(interfaces[0]["counters"]["in_packets"].as_u64().unwrap() >= 5, "{interfaces:#}");
    assert_eq!(gateway.show("routes").status.code(), Some(3));
    gateway.signal("-CONT");
    assert!(gateway.text("routes").contains("connected"));
    gateway.stop();
}
