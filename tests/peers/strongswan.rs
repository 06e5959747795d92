//! strongSwan, with the keys that it negotiates and with ESP of its own (`kernel-libipsec`): UDP-encapsulated ESP both
//! ways, through rekeys that either end starts.
//!
//! One charon stands behind the gateway's TAP and does its IKE: the gateway passes that on and keeps ESP for itself.
//! The other is the far end, ESP and all. What the first negotiated it logs, and the test hands that to the gateway,
//! step by step with `causeway sa`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use causeway::cli::demo::{
    gateways::cores,
    network::{Process, ip, path_of},
    report::Report,
};

use serde::Deserialize;

use crate::{
    can_run,
    common::frame::Ip,
    netns_common::{PATIENCE, Site, Wire, causeway, echoes, until},
    random_hex, scapy,
};

/// strongSwan's daemon.
const CHARON: &str = "/usr/sbin/charon-systemd";
/// Its plug-ins that come in packages of their own.
const PLUGINS: &[&str] = &[
    "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so",
    "/usr/lib/ipsec/plugins/libstrongswan-gcm.so",
];
/// Where the far host is, to itself and to the near one.
const FAR: &str = "10.2.0.10";

/// A pair of associations, as its end sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    /// What the end opens, and what it seals.
    back: Association,
    out: Association,
}

/// An SPI, and its AES key with the salt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Association {
    spi: u32,
    key: String,
}

/// An end of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Near,
    Far,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }

    const fn namespace(self) -> &'static str {
        match self {
            Self::Near => "gateway",
            Self::Far => "far",
        }
    }
}

/// A host, the gateway with a charon behind its TAP, a wire that records, and the far charon.
struct Bench {
    kind: Kind,
    // Before the network they are in.
    charons: Vec<Process>,
    site: Site,
    files: tempfile::TempDir,
    /// Who started each negotiation.
    started: Vec<End>,
    /// All pairs so far, the one in force last. The first is the gateway's own.
    pairs: Vec<Pair>,
    /// How many packets of the far end came before the gateway was told of their key, for each negotiation.
    early: Vec<u64>,
}

/// What differs between runs: the IP version outside, and the bits of the AES keys.
#[derive(Debug, Clone, Copy)]
struct Kind {
    v6: bool,
    bits: usize,
}

impl Kind {
    /// The outer address of an end, as both ends write it.
    const fn outer(self, end: End) -> &'static str {
        match (self.v6, end) {
            (false, End::Near) => "192.0.2.1",
            (false, End::Far) => "192.0.2.2",
            (true, End::Near) => "2001:db8:ff::1",
            (true, End::Far) => "2001:db8:ff::2",
        }
    }

    /// The same with the length of its link's prefix.
    fn on_link(self, end: End) -> String {
        format!("{}/{}", self.outer(end), if self.v6 { 64 } else { 24 })
    }

    const fn line_mtu(self) -> usize {
        if self.v6 { 1520 } else { 1500 }
    }

    /// Bytes of an AES key with its salt.
    const fn key_len(self) -> usize {
        self.bits / 8 + 4
    }
}

impl Bench {
    fn new(kind: Kind) -> Self {
        let mut site = Site::empty();
        for namespace in ["host", "gateway", "wire", "far"] {
            site.network.add(namespace).unwrap();
        }
        site.network.link(("host", "eth0"), ("gateway", "lan0")).unwrap();
        site.network.link(("gateway", "wan0"), ("wire", "idc")).unwrap();
        site.network.link(("wire", "cloud"), ("far", "eth0")).unwrap();
        if kind.v6 {
            // As large packets as with the smaller header of IPv4 go through.
            for (namespace, device) in
                [("gateway", "wan0"), ("wire", "idc"), ("wire", "cloud"), ("far", "eth0")]
            {
                let namespace = site.network.full(namespace);
                ip(&format!("-n {namespace} link set dev {device} mtu {}", kind.line_mtu())).unwrap();
            }
        }
        site.host("host", 0, &["10.1.0.10/24"], &["10.1.0.1"]);
        site.host("far", 0, &[&kind.on_link(End::Far), "10.2.0.10/32"], &[]);
        site.wire = Some(Wire::new(&path_of(&site.network.full("wire"))));
        let files = tempfile::tempdir().unwrap();
        // The gateway is up before there are keys, with a pair that nobody else knows.
        let association = |spi| Association { spi, key: random_hex(kind.key_len()) };
        let pairs = vec![Pair { back: association(0x1001), out: association(0x1002) }];
        let mut bench =
            Self { kind, charons: Vec::new(), site, files, started: Vec::new(), pairs, early: Vec::new() };
        let text = bench.gateway();
        bench.site.start("gateway", &text, cores()[0]);
        // The second is for charon alone: it wants an address of its own in what its policy covers.
        for address in [&kind.on_link(End::Near), "10.1.0.1/32"] {
            // Who asks whether an IPv6 address is free asks the gateway, which has it too.
            let free = if address.contains(':') { "nodad" } else { "" };
            let namespace = bench.site.network.full("gateway");
            ip(&format!("-n {namespace} addr add {address} dev cw-wan {free}")).unwrap();
        }
        let psk = random_hex(32);
        for end in [End::Far, End::Near] {
            bench.charon(end, &psk);
        }
        bench
    }

    fn gateway(&self) -> String {
        let Pair { back, out } = &self.pairs[0];
        let (near, far) = (self.kind.outer(End::Near), self.kind.outer(End::Far));
        let (on_link, mtu) = (self.kind.on_link(End::Near), self.kind.line_mtu());
        format!(
            r#"
[system]
name = "gateway"
cores = [1]
buffers = 16384
[port.lan]
driver = "xdp"
device = "lan0"
[port.wan]
driver = "xdp"
device = "wan0"
mtu = {mtu}
[gateway.g]
prefixes = ["10.1.0.0/16"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24"]
[interface.wan]
port = "wan"
gateway = "g"
side = "peer"
addresses = ["{on_link}"]
host_tap = "cw-wan"
[tunnel.far]
gateway = "g"
local = "{near}"
remote = "{far}"
encapsulation = "udp"
esn = false
replay_window = 128
out = {{ spi = {}, key = {{ file = "{}" }} }}
in = [{{ spi = {}, key = {{ file = "{}" }} }}]
[[gateway.g.policy]]
action = "protect"
tunnel = "far"
source = ["10.1.0.0/24"]
destination = ["10.2.0.0/24"]
"#,
            out.spi,
            self.key_file(out),
            back.spi,
            self.key_file(back),
        )
    }

    fn key_file(&self, association: &Association) -> String {
        let path = self.files.path().join(format!("{:08x}.key", association.spi));
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        writeln!(file.unwrap(), "{}", association.key).unwrap();
        path.display().to_string()
    }

    fn file(&self, end: End, name: &str) -> String {
        self.files.path().join(end.name()).join(name).display().to_string()
    }

    /// Starts a charon with all its files in the test's folder, and gives it its connection.
    fn charon(&mut self, end: End, psk: &str) {
        fs::create_dir(self.files.path().join(end.name())).unwrap();
        let (log, socket) = (self.file(end, "log"), self.file(end, "vici"));
        let (settings, connections) = (self.file(end, "strongswan.conf"), self.file(end, "swanctl.conf"));
        let text = format!(
            r#"
charon-systemd {{
    load = random nonce openssl aes aesni gcm sha1 sha2 hmac kdf pem kernel-libipsec kernel-netlink socket-default vici
    keep_alive = 0
    delete_rekeyed_delay = 600
    plugins {{
        vici {{
            socket = unix://{socket}
        }}
    }}
    filelog {{
        all {{
            path = {log}
            flush_line = yes
            default = 1
            ike = 4
            chd = 4
        }}
    }}
}}
swanctl {{
    load = random openssl pem
}}
"#
        );
        fs::write(&settings, text).unwrap();
        let near = (self.kind.outer(End::Near), "10.1.0.0/24");
        let far = (self.kind.outer(End::Far), "10.2.0.0/24");
        let (own, other) = match end {
            End::Near => (near, far),
            End::Far => (far, near),
        };
        let bits = self.kind.bits;
        // Neither end replaces keys unless it is told to.
        let text = format!(
            r#"
connections {{
    site {{
        version = 2
        local_addrs = {0}
        remote_addrs = {1}
        proposals = aes128gcm16-prfsha256-ecp256
        encap = yes
        mobike = no
        rekey_time = 0
        local {{
            auth = psk
            id = {0}
        }}
        remote {{
            auth = psk
            id = {1}
        }}
        children {{
            net {{
                local_ts = {2}
                remote_ts = {3}
                esp_proposals = aes{bits}gcm16-ecp256-noesn
                replay_window = 128
                rekey_time = 0
            }}
        }}
    }}
}}
secrets {{
    ike-site {{
        secret = 0x{psk}
    }}
}}
"#,
            own.0, other.0, own.1, other.1
        );
        fs::write(&connections, text).unwrap();
        let mut command = self.site.network.command(causeway(), end.namespace(), true);
        command.arg(CHARON).env("STRONGSWAN_CONF", &settings).env("SWANCTL_DIR", self.files.path());
        let said = fs::File::create(self.file(end, "said")).unwrap();
        command.stdout(said.try_clone().unwrap()).stderr(said);
        self.charons.push(Process::start(&mut command).unwrap());
        until("charon does not come up", || Path::new(&socket).exists());
        let text = self.swanctl(end, &format!("--load-all --file {connections}"));
        assert!(text.contains("successfully loaded 1 connections"), "{text}");
    }

    /// What charon logged.
    fn log(&self, end: End) -> String {
        fs::read_to_string(self.file(end, "log")).unwrap_or_default()
    }

    #[track_caller]
    fn swanctl(&self, end: End, line: &str) -> String {
        let mut command = self.site.network.command(causeway(), end.namespace(), true);
        command.arg("swanctl").args(line.split_whitespace());
        command.arg("--uri").arg(format!("unix://{}", self.file(end, "vici")));
        command.env("STRONGSWAN_CONF", self.file(end, "strongswan.conf"));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.success(),
            "{line}: {text}\nnear: {}\nfar: {}",
            self.log(End::Near),
            self.log(End::Far)
        );
        text
    }

    fn sa(&self, step: &str, association: &Association) {
        let file = match step {
            "retire" => String::new(),
            _ => format!("--key-file {}", self.key_file(association)),
        };
        let dir = self.site.run_dir("gateway");
        let (program, dir) = (causeway().display(), dir.display());
        let line = format!("{program} sa {step} far --spi {:#x} {file} --run-dir {dir}", association.spi);
        self.site.ok("gateway", &line);
    }

    /// Has an end negotiate, and hands the gateway what came of it.
    #[track_caller]
    fn negotiate(&mut self, starts: End, line: &str) {
        let before = self.drops("no-sa");
        self.started.push(starts);
        self.swanctl(starts, line);
        let known = |end| pairs(&self.log(end), end, &self.started, self.kind);
        // The far end opens the new one by then, and the old one as long as it runs.
        until("the new keys are not in both logs", || {
            [End::Near, End::Far].iter().all(|end| known(*end).len() == self.started.len())
        });
        let pair = known(End::Near).pop().unwrap();
        let Pair { back, out } = known(End::Far).pop().unwrap();
        assert_eq!(pair, Pair { back: out, out: back }, "the ends do not agree");
        let old = self.pairs.last().unwrap().back.clone();
        self.sa("add", &pair.back);
        self.sa("switch", &pair.out);
        // What was sealed before is long there.
        thread::sleep(Duration::from_millis(200));
        self.sa("retire", &old);
        self.pairs.push(pair);
        self.site.read_again("gateway");
        self.early.push(self.drops("no-sa") - before);
    }

    /// Ends all, and requires that nothing is left of it.
    fn end(self) {
        let Self { mut charons, site, .. } = self;
        for charon in &mut charons {
            charon.terminate();
            until_ended(charon);
        }
        for end in [End::Near, End::Far] {
            let (there, text) = site.run(end.namespace(), "ip link show ipsec0");
            assert!(!there, "{text}");
        }
        drop(charons);
        site.end();
    }

    /// ESP on the wire: by SPI, how many packets.
    fn on_wire(&self) -> BTreeMap<u32, u64> {
        let mut counts = BTreeMap::new();
        for (_, frame) in self.site.wire.as_ref().unwrap().frames() {
            if let Some(spi) = spi(&frame) {
                *counts.entry(spi).or_default() += 1;
            }
        }
        counts
    }

    fn drops(&self, reason: &str) -> u64 {
        self.site.drops("gateway").get(reason).copied().unwrap_or(0)
    }
}

fn until_ended(process: &mut Process) {
    let since = Instant::now();
    loop {
        if let Some(status) = process.child().try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return;
        }
        assert!(since.elapsed() < PATIENCE, "charon does not end");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Where the ESP header stands in a frame with ESP in UDP between ports 4500.
fn esp_at(frame: &[u8]) -> Option<usize> {
    let (proto, udp) = match frame.get(12..14)? {
        [8, 0] => (23, 34),
        [0x86, 0xdd] => (20, 54),
        _ => return None,
    };
    let is = *frame.get(proto)? == 17 && frame.get(udp..udp + 4)? == [0x11, 0x94, 0x11, 0x94];
    (is && frame.len() >= udp + 16).then_some(udp + 8)
}

/// The SPI and the sequence number of such a frame.
fn esp(frame: &[u8]) -> Option<(u32, u32)> {
    let at = esp_at(frame)?;
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    // IKE has zeros there.
    (word(at) != 0).then(|| (word(at), word(at + 4)))
}

fn spi(frame: &[u8]) -> Option<u32> {
    Some(esp(frame)?.0)
}

/// The pairs in a charon's log that are in force, as it sees them. Which key is whose depends on who started each
/// negotiation.
fn pairs(log: &str, own_end: End, started: &[End], kind: Kind) -> Vec<Pair> {
    // A heading and lines of 16 bytes for each key; then two headings with their lines for the SPIs.
    let rows = kind.key_len().div_ceil(16);
    let heading = |who: &str| format!("encryption {who} key => {} bytes", kind.key_len());
    let (responder, adding) = (1 + rows, 2 + 2 * rows);
    let lines: Vec<(&str, &str)> = log.lines().filter_map(|line| line.split_once("[CHD] ")).collect();
    let begins = |line: &&(&str, &str)| line.1.starts_with(&heading("initiator"));
    let mut found = Vec::new();
    for (first, _) in lines.iter().enumerate().filter(|(_, line)| begins(line)) {
        // Other threads write between its lines.
        let own = lines[first..].iter().filter(|(thread, _)| *thread == lines[first].0);
        let own: Vec<&str> = own.map(|(_, text)| text.trim()).take(adding + 5).collect();
        if !own.last().is_some_and(|last| last.ends_with("=> INSTALLED")) {
            continue;
        }
        assert!(own[responder].starts_with(&heading("responder")), "{own:?}");
        let outbound = own[adding + 2].ends_with("outbound ESP SA");
        assert!(own[adding] == "adding inbound ESP SA" && outbound, "{own:?}");
        // Lines of 16 bytes, in hexadecimal digits and as text.
        let bytes = |line: &str, count: usize| -> String {
            line.split_once(": ").unwrap().1.split(' ').take(count).collect::<String>().to_lowercase()
        };
        let row = |at: usize, row: usize| bytes(own[at + row], (kind.key_len() - 16 * row).min(16));
        let key = |at: usize| (0..rows).map(|n| row(at, n)).collect::<String>();
        let spi = |at: usize| {
            let digits = own[at].strip_prefix("SPI 0x").unwrap().split(',').next().unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        let (mut out, mut back) = (key(1), key(responder + 1));
        if started[found.len()] != own_end {
            std::mem::swap(&mut out, &mut back);
        }
        let association = |spi, key| Association { spi, key };
        found.push(Pair { back: association(spi(adding + 1), back), out: association(spi(adding + 3), out) });
    }
    found
}

#[test]
fn strongswan_opens_what_the_gateway_seals_and_the_other_way_round_through_rekeys() {
    with_strongswan(Kind { v6: false, bits: 128 });
}

#[test]
fn strongswan_does_so_over_ipv6_with_aes_256() {
    with_strongswan(Kind { v6: true, bits: 256 });
}

#[test]
fn strongswan_does_so_with_aes_192() {
    with_strongswan(Kind { v6: false, bits: 192 });
}

fn with_strongswan(kind: Kind) {
    if !can_run(&[&["ip", "ping", CHARON, "swanctl"], PLUGINS].concat()) {
        return;
    }
    let mut bench = Bench::new(kind);
    bench.site.serve("far");
    bench.negotiate(End::Near, "--initiate --child net");
    everything_passes(&bench);
    both_count_the_same(&bench);

    // While one end asks and the other answers. What the far end seals with a key that the gateway is not told of yet
    // is lost, nothing else.
    let text = thread::scope(|scope| {
        let ping = echoes::steady(800, 0.005, FAR);
        let command = bench.site.network.command(causeway(), "host", true);
        let pings = scope.spawn(move || {
            let mut command = command;
            command.args(ping.split_whitespace()).env("LC_ALL", "C").output().unwrap()
        });
        thread::sleep(Duration::from_millis(500));
        bench.negotiate(End::Near, "--rekey --child net");
        String::from_utf8_lossy(&pings.join().unwrap().stdout).into_owned()
    });
    let lost = *bench.early.last().unwrap();
    assert_eq!(echoes::answered(&text), (800, lost), "{text}{:?}", bench.site.drops("gateway"));
    assert!(lost < 400, "{lost}");
    everything_passes(&bench);
    both_count_the_same(&bench);

    // The far end starts, while streams go both ways: what is lost is sent again.
    let report = thread::scope(|scope| {
        let mut command = bench.site.network.command(causeway(), "host", true);
        command.arg(causeway()).args(["demo-host", "talk", FAR, "--millis", "1500", "--udp-mbps", "2"]);
        let streams = scope.spawn(move || command.output().unwrap());
        thread::sleep(Duration::from_millis(500));
        bench.negotiate(End::Far, "--rekey --child net");
        String::from_utf8_lossy(&streams.join().unwrap().stdout).into_owned()
    });
    let report: Report = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert!(report.done);
    assert_eq!(report.complaints(), Vec::<String>::new());
    everything_passes(&bench);
    both_count_the_same(&bench);

    assert_eq!(bench.early[0], 0, "there was no key before");
    assert_eq!(bench.drops("no-sa"), bench.early.iter().sum::<u64>());
    let drops = bench.site.drops("gateway");
    let esp = ["esp-integrity", "esp-replayed", "esp-late", "esp-length", "esp-padding", "esp-next-header"];
    for reason in esp.iter().chain(&["esp-outer-mismatch", "policy-mismatch"]) {
        assert_eq!(drops.get(*reason).copied().unwrap_or(0), 0, "{reason}: {drops:?}");
    }
    judged(&bench);
    bench.end();
}

/// Echoes of either end, of which none is lost; streams and datagrams, none of them damaged.
fn everything_passes(bench: &Bench) {
    for size in [56, 57, 58, 59, 1300] {
        for (from, to) in [("host", FAR.to_string()), ("far", format!("-I {FAR} 10.1.0.10"))] {
            bench.site.pings(from, 10, &format!("-s {size} {to}"));
        }
    }
    for back in [false, true] {
        bench.site.copy("host", FAR, 300_000, back);
    }
    let report = bench.site.client("host", &format!("talk {FAR} --millis 500 --udp-mbps 1"));
    assert_eq!(report.complaints(), Vec::<String>::new());
}

/// The pair in force: nothing was lost on the way, and nobody refused anything.
fn both_count_the_same(bench: &Bench) {
    let pair = bench.pairs.last().unwrap();
    until("the streams' last packets are still on their way", || {
        let before = bench.on_wire();
        thread::sleep(Duration::from_millis(500));
        before == bench.on_wire()
    });
    let on_wire = bench.on_wire();
    let passed = |association: &Association| on_wire.get(&association.spi).copied().unwrap_or(0);
    let dir = bench.site.run_dir("gateway");
    let line = format!("{} show sa --json --run-dir {}", causeway().display(), dir.display());
    let rows: Vec<Row> = serde_json::from_str(&bench.site.ok("gateway", &line)).unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    let early = *bench.early.last().unwrap();
    for (association, lost) in [(&pair.out, 0), (&pair.back, early)] {
        let row = rows.iter().find(|row| row.spi == association.spi).unwrap();
        assert!(row.packets >= 100, "{row:?}");
        let Row { spi, packets, .. } = *row;
        let good = Row { spi, packets, integrity: 0, replayed: 0, late: 0, outer: 0, malformed: 0 };
        assert_eq!((row, packets + lost), (&good, passed(association)));
    }
    let far = bench.swanctl(End::Far, "--list-sas --raw");
    assert_eq!(counted(&far, "spi-out", pair.back.spi, "packets-out"), passed(&pair.back), "{far}");
    // The far end still opens under earlier pairs, and counts that. What it sealed under them it counts no more.
    let pairs = &bench.pairs[1..];
    let there: u64 = pairs.iter().map(|pair| passed(&pair.out)).sum();
    // It reads its socket slowly, and the kernel counts what finds that full. IKE may be among it: it is sent again.
    let counts = || {
        let far = bench.swanctl(End::Far, "--list-sas --raw");
        let opened: u64 = pairs.iter().map(|pair| counted(&far, "spi-in", pair.out.spi, "packets-in")).sum();
        (opened, overflowed(&bench.site.ok("far", "cat /proc/net/snmp /proc/net/snmp6")))
    };
    until("the far end has not opened all that it took", || {
        let (opened, full) = counts();
        there <= opened + full
    });
    let (opened, full) = counts();
    eprintln!("{opened} of {there} opened, {full} found a full socket; {early} came before their key");
    let again = [End::Near, End::Far].map(|end| bench.log(end).matches("retransmit").count() as u64);
    assert!(full - (there - opened) <= again.iter().sum(), "{there} packets, {opened} opened, {full} lost");
}

/// What `show sa` says of an association.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Row {
    spi: u32,
    packets: u64,
    integrity: u64,
    replayed: u64,
    late: u64,
    outer: u64,
    malformed: u64,
}

/// A number that charon says of the pair with an SPI.
fn counted(text: &str, which: &str, spi: u32, column: &str) -> u64 {
    let number = |part: &str| part.split(' ').next().unwrap().parse().unwrap();
    let own = text.split("uniqueid=").find(|part| part.contains(&format!("{which}={spi:08x}")));
    let own = own.unwrap_or_else(|| panic!("{spi:#x}: {text}"));
    number(own.split_once(&format!(" {column}=")).unwrap().1)
}

/// UDP datagrams of either IP version that found a full socket, in `/proc/net/snmp` and `/proc/net/snmp6`.
fn overflowed(text: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split(' ').zip(numbers.split(' '));
    let v4: u64 = columns.find(|(name, _)| *name == "RcvbufErrors").unwrap().1.parse().unwrap();
    let v6 = text.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")).unwrap();
    v4 + v6.trim().parse::<u64>().unwrap()
}

/// The gateway numbers without a gap; and scapy opens, with the keys that strongSwan logged, the first and the last
/// that it sealed under each.
fn judged(bench: &Bench) {
    let mut sealed: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    for (from_gateway, frame) in bench.site.wire.as_ref().unwrap().frames() {
        if let Some((spi, sequence)) = esp(&frame).filter(|_| from_gateway) {
            let of_spi = sealed.entry(spi).or_default();
            of_spi.push(frame);
            assert_eq!(sequence as usize, of_spi.len(), "SPI {spi:#x}");
        }
    }
    let keys = bench.pairs[1..].iter().map(|pair| (pair.out.spi, (pair.out.key.clone(), false)));
    let keys: BTreeMap<_, _> = keys.collect();
    assert!(sealed.keys().eq(keys.keys()), "packets under {:x?}", sealed.keys());
    if !scapy::is_there() {
        return;
    }
    let some = sealed.values().flat_map(|frames| [&frames[..200], &frames[frames.len() - 200..]].concat());
    let some: Vec<Vec<u8>> = some.collect();
    let opened = scapy::open(&keys, some.iter().map(Vec::as_slice));
    assert_eq!(opened.len(), some.len());
    for packet in &opened {
        let inner = Ip::read(&packet.inner());
        assert!(packet.udp);
        assert_eq!(inner.dst, FAR.parse::<std::net::IpAddr>().unwrap());
    }
}
