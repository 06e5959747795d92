//! `causeway explain` over the pipelines of the repository: what it says, and that it is what the gateway does.

mod common;
#[path = "common/emulated.rs"]
mod emulated;

use std::{fs, net::IpAddr, path::Path};

use causeway::{
    config::{self, Config, build::Ephemeral},
    control::{
        explain::{Explanation, Verdict, explain, parse},
        ports::derived_mac,
        single::Single,
    },
    io::mem::wire,
    packet::DropReason,
    table::hash::Seed,
};
use common::{
    frame::{ARP, arp, frame, read_frame},
    hex, key,
};

fn load(file: &str) -> (Config, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(file);
    let text = fs::read_to_string(&path).unwrap();
    let keys = |name: &str| Some(hex(&key(name)));
    let config = match config::parse(&path, &text, &keys) {
        Ok((config, _)) => config,
        Err(errors) => panic!("{}", errors.to_json()),
    };
    (config, text)
}

/// Pipeline, packet, verdict, and what steps must say.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

const IDC: &str = "site-to-site/idc.toml";
const CLOUD: &str = "site-to-site/cloud.toml";
const DIRECT: &str = "direct-connect/gateway.toml";
const OVERLAP: &str = "nat-overlap/gateway.toml";

const STANDBY: &str = "vpn-standby/gateway.toml";

const CASES: &[Case] = &[
    (
        STANDBY,
        "from 10.200.0.10 to 10.1.0.5 udp 53 in vpc",
        "wan",
        &["tunnel idc-a; idc-a (active) is up, idc-a-2 (standby) is up: active idc-a is taken"],
    ),
    (
        DIRECT,
        "from 10.2.0.10 to 10.1.0.5 udp 53 size 1500 in vpc",
        "line-a",
        &[
            "limit of address 10.2.0.10 of gateway vpc, out (line 40): 500Mbps at most, 500000 bytes at once",
            "limit of interface line-a, out (line",
        ],
    ),
    (
        DIRECT,
        "from 10.3.0.5 to 203.0.113.11 udp 53 on line-b",
        "vpc",
        &[
            "limit of interface line-b, in (line",
            "limit of address 10.2.0.11 of gateway vpc, in (line 36): 100Mbps at most",
        ],
    ),
    (
        IDC,
        "from 10.1.0.5 to 203.0.113.10 tcp 51000>443 in idc",
        "wan",
        &[
            "interface lan",
            "policy to-cloud",
            "protect through tunnel cloud",
            "SPI 0x1001, 192.0.2.1 to 192.0.2.2",
        ],
    ),
    (IDC, "from 10.1.0.5 to 203.0.113.10 udp 53 size 1500 df on lan", "packet-too-big", &["policy to-cloud"]),
    (
        IDC,
        "from 10.1.0.5 to 203.0.113.10 udp 53 size 1500 on lan",
        "wan",
        &["policy to-cloud", "sealed into"],
    ),
    (IDC, "from 10.1.0.5 to 203.0.113.10 47 in idc", "wan", &["policy to-cloud", "SPI 0x1001"]),
    (IDC, "from 10.1.0.5 to 203.0.113.10 tcp 443 in idc ttl 1", "ttl-expired", &["policy to-cloud"]),
    (IDC, "from 10.1.0.5 to 8.8.8.8 icmp in idc", "no-route", &["no route of gateway idc leads to 8.8.8.8"]),
    (
        IDC,
        "from 203.0.113.10 to 10.1.0.5 tcp 443 in idc from-peer",
        "policy-unprotected",
        &["policy to-cloud", "the other way round"],
    ),
    (IDC, "from 10.1.0.5 to 10.1.0.1 icmp 8/0 in idc", "lan", &["10.1.0.1 is the gateway's own address"]),
    (IDC, "from 127.0.0.1 to 203.0.113.10 udp 53 in idc", "martian-source", &["interface lan"]),
    (IDC, "from 10.1.0.5 to 224.0.0.5 ospf in idc", "multicast", &["interface lan"]),
    (IDC, "from 192.0.2.2 to 192.0.2.1 esp on wan", "", &["own address"]),
    (
        IDC,
        "from 192.0.2.2 to 10.1.7.7 udp 53 on wan",
        "lan",
        &["10.1.7.7 is in 10.1.0.0/16", "via 10.1.0.254 on interface lan"],
    ),
    (IDC, "from 2001:db8::5 to 2001:db8:1::9 udp 53 in idc", "no-route", &["no route of gateway idc"]),
    (
        CLOUD,
        "from 10.2.0.10 to 10.1.0.5 tcp 51000>443 in vpc",
        "wan",
        &["source 10.2.0.10 becomes 203.0.113.10: rule", "policy to-idc", "SPI 0x2001"],
    ),
    (
        CLOUD,
        "from 10.0.0.10 to 192.0.2.2 tcp 51000>443 on wan",
        "local-unserved",
        &["own address", "the error for its sender is dropped: no-route"],
    ),
    (CLOUD, "from 10.2.0.11 to 10.1.0.5 tcp 51000>443 in vpc", "", &["VLAN 20"]),
    (
        DIRECT,
        "from 10.2.0.10 to 10.1.0.5 tcp 51000>443 in vpc",
        "line-a",
        &[
            "source 10.2.0.10 becomes 203.0.113.10",
            "10.1.0.5 is in 10.1.0.0/16",
            "via 192.0.2.1 on interface line-a",
            "VLAN 20",
        ],
    ),
    (
        DIRECT,
        "from 10.3.0.5 to 203.0.113.11 udp 1>2 on line-b",
        "vpc",
        &[
            "destination 203.0.113.11 becomes 10.2.0.11",
            "10.2.0.11 is in 10.2.0.0/24",
            "on the link of interface vpc",
        ],
    ),
    (
        DIRECT,
        "from 10.1.0.5 to 10.3.0.5 udp 1>2 on line-a",
        "transit-forbidden",
        &["10.3.0.5 is in 10.3.0.0/16"],
    ),
    (
        OVERLAP,
        "from 10.0.0.10 to 198.18.0.5 tcp 51000>443 in vpc",
        "line",
        &[
            "source 10.0.0.10 becomes 203.0.113.10: rule server",
            "destination 198.18.0.5 becomes 10.0.0.5: rule data-centre",
            "198.18.0.5 is in 198.18.0.0/16",
        ],
    ),
    (
        OVERLAP,
        "from 10.0.0.25 to 198.18.0.5 tcp 51000>25 in vpc",
        "line",
        &["becomes 203.0.113.25: rule mail"],
    ),
    (OVERLAP, "from 10.0.0.99 to 198.18.0.5 udp 5>53 in vpc", "line", &["rule out"]),
    (
        OVERLAP,
        "from 10.0.0.5 to 203.0.113.80 tcp 51000>443 in vpc from-peer",
        "vpc",
        &[
            "destination 203.0.113.80:443 becomes 10.0.0.80:8443: rule web",
            "source 10.0.0.5 becomes 198.18.0.5",
        ],
    ),
    (OVERLAP, "from 10.0.0.5 to 203.0.113.80 tcp 51000>80 in vpc from-peer", "", &["interface line"]),
];

fn told(config: &Config, words: &str, text: &str) -> Explanation {
    explain(config, &parse(words).unwrap(), Some(text)).unwrap()
}

/// What the gateway does with the frame when its neighbours answer ARP, as real ones do: the port that it leaves by, or
/// the reason why it is dropped. There are two where the error that answers it is dropped as well.
fn happens(config: &Config, port: usize, bytes: &[u8]) -> Vec<String> {
    let macs: Vec<_> = config.ports.iter().map(|port| derived_mac(config, port)).collect();
    let (ports, ends): (Vec<_>, Vec<_>) = config.ports.iter().map(|_| wire(256)).unzip();
    let seed = Seed::new(1, 2);
    let mut single = Single::new(config, &macs, &mut Ephemeral::default(), seed, |_| ports).unwrap();
    let mut now = 1_000_000_000;
    assert!(ends[port].send(bytes));
    let mut left = Vec::new();
    for _ in 0..20 {
        single.settle(now, 100);
        now += 100_000_000;
        for (place, end) in ends.iter().enumerate() {
            while let Some(out) = end.receive() {
                let seen = read_frame(&out);
                if seen.ether_type != ARP {
                    left.push(place);
                    continue;
                }
                let target =
                    |at: usize| IpAddr::from(<[u8; 4]>::try_from(&seen.payload[at..at + 4]).unwrap());
                let (asker, asked) = (target(14).to_string(), target(24).to_string());
                // An announcement, and what is no question, wants no answer.
                if seen.payload[7] == 1 && asker != asked {
                    let mac = [2, 0, 0, 0, 7, 7];
                    let answer = arp(2, (mac, &asked), (macs[place].0, &asker));
                    assert!(end.send(&frame(macs[place].0, mac, &seen.tags, ARP, &answer)));
                }
            }
        }
    }
    let drops = DropReason::ALL.iter().filter(|reason| {
        **reason != DropReason::ArpConsumed && single.worker.counters().read_drops(**reason) > 0
    });
    let drops: Vec<String> = drops.map(|reason| reason.name().into()).collect();
    match (drops.is_empty(), left.first()) {
        (false, _) => drops,
        (true, Some(place)) => vec![config.ports[*place].name.value.to_string()],
        (true, None) => vec!["waits".into()],
    }
}

fn end(told: &Explanation) -> String {
    match &told.verdict {
        Verdict::Forwarded { port } | Verdict::Answered { port } => port.clone(),
        Verdict::Dropped { reason, .. } => reason.name().into(),
        Verdict::Waits => "waits".into(),
    }
}

#[test]
fn what_is_told_is_what_decides() {
    for (file, words, wanted, says) in CASES {
        let (config, text) = load(file);
        let told = told(&config, words, &text);
        let all: Vec<&str> = told.steps.iter().map(|step| step.text.as_str()).collect();
        let all = format!("{}\n{}", all.join("\n"), told.ending());
        if !wanted.is_empty() {
            assert_eq!(end(&told), *wanted, "{file}: {words}\n{all}");
        }
        for part in *says {
            assert!(all.contains(part), "{file}: {words}\nhas no {part:?}:\n{all}");
        }
    }
}

#[test]
fn what_is_told_is_what_the_gateway_does() {
    let mut ends = std::collections::BTreeSet::new();
    for file in [IDC, CLOUD, DIRECT, OVERLAP] {
        let (config, text) = load(file);
        let mut packets: Vec<String> =
            CASES.iter().filter(|case| case.0 == file).map(|case| case.1.into()).collect();
        // Every pair of these, by every interface: most of them are not meant to go anywhere.
        const PLACES: [&str; 7] =
            ["10.0.0.10", "10.1.0.5", "10.2.0.10", "10.3.0.5", "198.18.0.5", "203.0.113.10", "192.0.2.2"];
        for (interface, from, to) in config.interfaces.iter().flat_map(|i| {
            let name = i.name.value.as_str();
            PLACES.iter().flat_map(move |from| PLACES.iter().map(move |to| (name, from, to)))
        }) {
            packets.push(format!("from {from} to {to} tcp 51000>443 on {interface}"));
        }
        for words in packets {
            let told = told(&config, &words, &text);
            let (port, bytes) = &told.received;
            let answer = told.steps.iter().find(|step| step.stage == "answer");
            let answer = answer.map(|step| step.details["reason"].as_str().unwrap().to_string());
            let mut said: Vec<String> = [end(&told)].into_iter().chain(answer).collect();
            ends.insert(said[0].clone());
            let mut done = happens(&config, *port, bytes);
            said.sort();
            said.dedup();
            done.sort();
            assert_eq!(said, done, "{file}: {words}");
        }
    }
    // The table is worth something only if it leads to many ends.
    assert!(ends.len() >= 9, "{ends:?}");
}

#[test]
fn lines_are_those_of_the_file() {
    let (config, text) = load(DIRECT);
    let told = told(&config, "from 10.2.0.10 to 10.1.0.5 tcp 51000>443 in vpc", &text);
    for (stage, part) in
        [("arrive", "[interface.vpc]"), ("nat", "kind = \"local\""), ("route", "10.1.0.0/16")]
    {
        let step = told.steps.iter().find(|step| step.stage == stage).unwrap();
        let line = step.details["line"].as_u64().unwrap() as usize;
        assert!(text.lines().nth(line - 1).unwrap().contains(part), "{stage}: line {line}");
    }
}

#[test]
fn no_key_is_shown_and_no_state_is_touched() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(IDC);
    let run = |packet: &str, json: bool| {
        let mut command = emulated::command(env!("CARGO_BIN_EXE_causeway"));
        command.arg("explain").arg(&path).arg(packet);
        if json {
            command.arg("--json");
        }
        let names = ["CAUSEWAY_CLOUD_KEY_A", "CAUSEWAY_CLOUD_KEY_B"];
        command.envs(names.map(|name| (name, hex(&key(name)))));
        command.output().unwrap()
    };
    for json in [false, true] {
        let out = run("from 10.1.0.5 to 203.0.113.10 tcp 51000>443 in idc", json);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(text.contains("cloud"), "{text}");
        for name in ["CAUSEWAY_CLOUD_KEY_A", "CAUSEWAY_CLOUD_KEY_B"] {
            assert!(!text.contains(&hex(&key(name))[..16]), "{text}");
        }
        if json {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["verdict"]["result"], "forwarded");
            assert_eq!(value["sent"][0]["spi"], 0x1001);
        }
    }
    let wrong = |packet: &str, code: i32, says: &str| {
        let out = run(packet, false);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{text}");
        assert!(text.contains(says), "{text}");
    };
    wrong("from 10.1.0.5 to 203.0.113.10 tpc 1>2 in idc", 2, "Did you mean tcp?");
    wrong("from 10.1.0.5 to 203.0.113.10 tcp 1>2 in dic", 3, "There are: idc");
    wrong("from 10.1.0.5 to 203.0.113.10 tcp 1>2 on eth0", 3, "There are: lan, wan");
    wrong("from 10.1.0.5 to 203.0.113.10 tcp 1>2 in idc size 9000", 3, "1500 what port lan takes");
}

#[test]
fn ipv6_goes_through_two_gateways_and_two_tags() {
    let text = "[system]\nname = \"x\"\n[port.a]\ndriver = \"memory\"\n[gateway.g]\n[gateway.hub]\n\
        [interface.in]\nport = \"a\"\nvlan = { outer = 200, inner = 100 }\ngateway = \"g\"\nside = \"local\"\n\
        addresses = [\"2001:db8:1::1/64\"]\n\
        [interface.out]\nport = \"a\"\nvlan = 20\ngateway = \"hub\"\nside = \"peer\"\n\
        addresses = [\"2001:db8:2::1/64\"]\n\
        [[gateway.g.route]]\nto = \"2001:db8:9::/48\"\ngateway = \"hub\"\n\
        [[gateway.hub.route]]\nto = \"2001:db8:9::/56\"\nvia = \"2001:db8:2::2\"\n";
    let (config, _) = config::parse(Path::new("/x.toml"), text, &|_: &str| None).unwrap();
    let told = told(&config, "from 2001:db8:1::5 to 2001:db8:9::9 icmpv6 in g size 1500", text);
    let steps: Vec<&str> = told.steps.iter().map(|step| step.text.as_str()).collect();
    let [arrive, first, second, leave] = *steps else { panic!("{steps:?}") };
    assert!(arrive.contains("VLANs 200 and 100"), "{arrive}");
    assert!(first.contains("2001:db8:9::/48") && first.ends_with("into gateway hub"), "{first}");
    assert!(second.contains("2001:db8:9::/56") && second.ends_with("on interface out"), "{second}");
    assert!(
        leave.starts_with("interface out, port a: icmpv6 128/0") && leave.contains("1500 bytes"),
        "{leave}"
    );
    assert_eq!((end(&told), &told.sent[0].vlans), ("a".into(), &vec![20]));
}

/// Of rules that translate alike the one is named whose conditions the packet meets; and what happens to IPv6 before it
/// is sealed is told as well.
#[test]
fn nat_rules_are_named_by_their_conditions_and_before_tunnels() {
    let text = "[system]\nname = \"x\"\n[port.a]\ndriver = \"memory\"\n\
        [gateway.g]\nprefixes = [\"10.2.0.0/16\", \"2001:db8:2::/48\"]\n\
        [interface.in]\nport = \"a\"\nvlan = 10\ngateway = \"g\"\nside = \"local\"\n\
        addresses = [\"10.2.0.1/24\", \"2001:db8:2::1/64\"]\n\
        [interface.out]\nport = \"a\"\nvlan = 20\ngateway = \"g\"\nside = \"peer\"\n\
        addresses = [\"192.0.2.1/30\"]\n\
        [tunnel.t]\ngateway = \"g\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n\
        out = { spi = 0x1001, key = { env = \"OUT\" } }\nin = [{ spi = 0x1002, key = { env = \"IN\" } }]\n\
        [[gateway.g.policy]]\naction = \"protect\"\ntunnel = \"t\"\n\
        source = [\"2001:db8:99::/48\"]\ndestination = [\"2001:db8:1::/48\"]\n\
        [[gateway.g.nat]]\nname = \"http\"\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.9\"\n\
        original_port = 8080\ntranslated = \"203.0.113.80\"\ntranslated_port = 80\n\
        [[gateway.g.nat]]\nname = \"https\"\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.9\"\n\
        original_port = 8443\ntranslated = \"203.0.113.80\"\ntranslated_port = 443\n\
        [[gateway.g.nat]]\nname = \"quic\"\nkind = \"port\"\nprotocol = \"udp\"\noriginal = \"10.2.0.9\"\n\
        original_port = 8443\ntranslated = \"203.0.113.80\"\ntranslated_port = 443\n\
        [[gateway.g.nat]]\nname = \"six\"\nkind = \"local\"\noriginal = \"2001:db8:2::9\"\n\
        translated = \"2001:db8:99::9\"\n\
        [[gateway.g.route]]\nto = \"198.51.100.0/24\"\nvia = \"192.0.2.2\"\n";
    let parsed = config::parse(Path::new("/x.toml"), text, &|name: &str| Some(hex(&key(name))));
    let (config, _) = parsed.unwrap_or_else(|errors| panic!("{}", errors.to_json()));
    for (words, rule) in [
        ("from 198.51.100.7 to 203.0.113.80 tcp 5000>80 in g from-peer", "http"),
        ("from 198.51.100.7 to 203.0.113.80 tcp 5000>443 in g from-peer", "https"),
        ("from 198.51.100.7 to 203.0.113.80 udp 5000>443 in g from-peer", "quic"),
        ("from 2001:db8:2::9 to 2001:db8:1::5 tcp 5000>443 in g", "six"),
    ] {
        let told = told(&config, words, text);
        let nat = told.steps.iter().find(|step| step.stage == "nat");
        let nat = nat.unwrap_or_else(|| panic!("{words}: {:?}", told.steps));
        assert_eq!(nat.details["rule"], rule, "{words}: {}", nat.text);
    }
    let told = told(&config, "from 2001:db8:2::9 to 2001:db8:1::5 tcp 5000>443 in g", text);
    let text: Vec<&str> = told.steps.iter().map(|step| step.text.as_str()).collect();
    let text = text.join("\n");
    assert!(text.contains("source 2001:db8:2::9 becomes 2001:db8:99::9"), "{text}");
    assert!(text.contains("inside tcp from [2001:db8:99::9]:5000 to [2001:db8:1::5]:443"), "{text}");
}
