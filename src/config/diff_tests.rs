use std::{collections::BTreeMap, path::Path};

use proptest::prelude::*;

use super::*;
use crate::config::parse;

fn key(name: &str) -> Option<String> {
    let mut hash = 1_469_598_103_934_665_603u128;
    name.bytes().for_each(|b| hash = (hash ^ u128::from(b)).wrapping_mul(0x0100_0000_01b3));
    Some(format!("{hash:032x}01020304"))
}

fn read(text: &str) -> Config {
    match parse(Path::new("box.toml"), text, &key) {
        Ok((config, _)) => config,
        Err(errors) => panic!("{text}\n{:?}", miette::Report::new(errors)),
    }
}

const BASE: &str = r#"
[system]
name = "box"
[port.line]
driver = "xdp"
device = "eth0"
[port.vpc]
driver = "xdp"
device = "eth1"
[gateway.vpc]
prefixes = ["10.2.0.0/16"]
[interface.wan]
port = "line"
vlan = 100
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.2/30"]
[interface.lan]
port = "vpc"
vlan = 20
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24"]
[tunnel.dc]
gateway = "vpc"
local = "192.0.2.2"
remote = "192.0.2.1"
out = { spi = 0x2001, key = { env = "A" } }
in = [{ spi = 0x1001, key = { env = "B" } }]
[[gateway.vpc.policy]]
name = "to-dc"
action = "protect"
tunnel = "dc"
source = ["10.2.0.0/24", "10.2.1.0/24"]
destination = ["10.1.0.0/16"]
[[gateway.vpc.policy]]
action = "discard"
destination = ["10.9.0.0/16"]
[[gateway.vpc.route]]
to = "10.3.0.0/16"
via = "192.0.2.1"
"#;

fn told(old: &str, new: &str) -> Vec<String> {
    compare(&read(old), &read(new)).changes.iter().map(ToString::to_string).collect()
}

#[test]
fn what_means_the_same_is_no_difference() {
    assert!(told(BASE, BASE).is_empty());
    let spelt = BASE
        .replace(
            "name = \"box\"",
            "name = \"box\"\nbuffer_size = \"2KiB\"\nidle = { sleep_after = \"50000ns\" }",
        )
        .replace("0x2001", "8193")
        .replace("[\"10.2.0.0/24\", \"10.2.1.0/24\"]", "[\"10.2.1.0/24\", \"10.2.0.0/24\"]")
        .replace("prefixes", "# a remark\ntransit = true\nprefixes");
    assert!(told(BASE, &spelt).is_empty(), "{:?}", told(BASE, &spelt));
}

#[test]
fn each_change_is_told_with_what_it_was() {
    let cases = [
        ("vlan = 100", "vlan = 101", "~ interface.wan: vlan 100 → 101"),
        (
            "remote = \"192.0.2.1\"",
            "remote = \"192.0.2.1\"\nlifetime = \"24h\"",
            "~ tunnel.dc: lifetime (none) → \"24h\"",
        ),
        (
            "remote = \"192.0.2.1\"",
            "remote = \"192.0.2.1\"\nesn = false",
            "~ tunnel.dc: esn true (default) → false",
        ),
        ("{ env = \"B\" }", "{ env = \"C\" }", "~ tunnel.dc in 0x1001: key changed (not shown)"),
        ("{ env = \"A\" }", "{ env = \"C\" }", "~ tunnel.dc out: key changed (not shown)"),
        ("spi = 0x2001", "spi = 0x2002", "~ tunnel.dc out: spi 0x2001 → 0x2002"),
        (
            "destination = [\"10.1.0.0/16\"]",
            "destination = [\"10.1.0.0/17\"]",
            "~ gateway.vpc policy to-dc: destination [\"10.1.0.0/16\"] → [\"10.1.0.0/17\"]",
        ),
        (
            "name = \"to-dc\"",
            "name = \"to-dc\"\npriority = 5",
            "~ gateway.vpc policy to-dc: priority 1000 (default) → 5",
        ),
        (
            "via = \"192.0.2.1\"",
            "tunnel = \"dc\"",
            "~ gateway.vpc route 10.3.0.0/16: via \"192.0.2.1\" → (none)",
        ),
        ("device = \"eth0\"", "device = \"eth2\"", "~ port.line: device \"eth0\" → \"eth2\"  [restart]"),
        ("name = \"box\"", "name = \"box\"\ncores = [1, 2]", "~ system: cores (none) → [1, 2]  [restart]"),
        ("vlan = 20", "vlan = 20\nhost_tap = \"cw\"", "~ interface.lan: host_tap (none) → \"cw\"  [restart]"),
        (
            "[port.line]",
            "[port.new]\ndriver = \"memory\"\n[port.line]",
            "+ port.new: driver = \"memory\"  [restart]",
        ),
    ];
    for (old, new, expected) in cases {
        let found = told(BASE, &BASE.replace(old, new));
        assert!(found.iter().any(|line| line == expected), "{expected}\n{found:#?}");
    }
}

#[test]
fn sections_come_and_go_by_name_and_policies_move() {
    let without = BASE.split("[[gateway.vpc.route]]").next().unwrap();
    assert_eq!(
        told(BASE, without),
        ["- gateway.vpc route 10.3.0.0/16: to = \"10.3.0.0/16\", via = \"192.0.2.1\""]
    );
    assert_eq!(
        told(without, BASE),
        ["+ gateway.vpc route 10.3.0.0/16: to = \"10.3.0.0/16\", via = \"192.0.2.1\""]
    );

    // A policy without a name keeps being the same when another comes before it.
    let (before, rest) = BASE.split_at(BASE.find("[[gateway.vpc.policy]]").unwrap());
    let more = format!("{before}[[gateway.vpc.policy]]\naction = \"bypass\"\nprotocol = \"icmp\"\n{rest}");
    assert_eq!(
        told(BASE, &more),
        ["+ gateway.vpc policy policy-1: action = \"bypass\", protocol = \"icmp\""]
    );

    let (discard, route) = rest.split_at(rest.find("[[gateway.vpc.route]]").unwrap());
    let second = discard.rfind("[[gateway.vpc.policy]]").unwrap();
    let swapped = format!("{before}{}{}{route}", &discard[second..], &discard[..second]);
    let moved = told(BASE, &swapped);
    assert_eq!(moved.len(), 1, "{moved:?}");
    assert!(moved[0].starts_with("> gateway.vpc policy"), "{moved:?}");

    // Sections with names may stand anywhere, but ports have numbers.
    let (system, ports) = BASE.split_at(BASE.find("[port.line]").unwrap());
    let (first, others) = ports.split_at(ports.find("[port.vpc]").unwrap());
    let (last, others) = others.split_at(others.find("[gateway.vpc]").unwrap());
    let turned = told(BASE, &format!("{system}{last}{first}{others}"));
    assert_eq!(turned.len(), 1);
    assert!(turned[0].starts_with("> port.") && turned[0].ends_with("[restart]"), "{turned:?}");
}

#[test]
fn no_key_is_told() {
    let secrets: Vec<String> = ["A", "B", "C"].iter().map(|name| key(name).unwrap()).collect();
    let other = BASE
        .replace("env = \"A\"", "env = \"C\"")
        .replace("tunnel.dc", "tunnel.dd")
        .replace("\"dc\"", "\"dd\"");
    let difference = compare(&read(BASE), &read(&other));
    let text = format!("{difference}{}", serde_json::to_string(&difference).unwrap());
    let shown = read(BASE).to_toml(true) + &text;
    assert!(text.contains("hidden"));
    for secret in secrets {
        assert!(!shown.contains(&secret[..8]), "{shown}");
        assert!(!shown.contains(&secret[24..32]), "{shown}");
    }
}

/// The configuration as it is shown is a file again, but for its keys.
#[test]
fn what_is_shown_can_be_read_again() {
    let mut files = vec![BASE.to_owned()];
    for entry in std::fs::read_dir("pipelines").unwrap() {
        let folder = entry.unwrap().path();
        for file in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|e| e == "toml") && file.file_name() != "counters.toml" {
                files.push(std::fs::read_to_string(file.path()).unwrap());
            }
        }
    }
    assert!(files.len() > 5);
    for text in files {
        let config = read(&text);
        let keys: Vec<String> = config
            .tunnels
            .iter()
            .flat_map(|tunnel| std::iter::once(&tunnel.outbound).chain(&tunnel.inbound))
            .map(|sa| {
                let hex: String =
                    sa.key.aes().iter().chain(&sa.key.salt()).map(|b| format!("{b:02x}")).collect();
                hex
            })
            .collect();
        for defaults in [false, true] {
            let mut shown = config.to_toml(defaults);
            for hex in &keys {
                let at = shown.find("{ hidden = ").expect("as many hidden keys as there are");
                let end = at + shown[at..].find('}').unwrap() + 1;
                shown.replace_range(at..end, &format!("{{ hex = \"{hex}\" }}"));
            }
            assert!(!shown.contains("hidden"));
            let difference = compare(&config, &read(&shown));
            // With defaults, names that were made of numbers have become names; policies of one name stay the same.
            let other: Vec<_> =
                difference.changes.iter().filter(|c| !(defaults && c.item.is_some())).collect();
            assert!(other.is_empty(), "{shown}\n{difference}");
        }
    }
}

fn with_routes(routes: &[(u8, u8)]) -> Config {
    let mut text = BASE.split("[[gateway.vpc.route]]").next().unwrap().to_owned();
    for (to, via) in routes {
        text += &format!("[[gateway.vpc.route]]\nto = \"172.16.{to}.0/24\"\n");
        text += &if *via == 0 {
            "tunnel = \"dc\"\n".to_owned()
        } else {
            format!("via = \"192.0.2.{}\"\n", if *via == 1 { 1 } else { 3 })
        };
    }
    read(&text)
}

fn with_policies(policies: &[u8]) -> Config {
    let mut text = BASE.split("[[gateway.vpc.policy]]").next().unwrap().to_owned();
    text += "[[gateway.vpc.route]]\nto = \"10.1.0.0/16\"\ntunnel = \"dc\"\n";
    for number in policies {
        text += &format!(
            "[[gateway.vpc.policy]]\nname = \"p{number}\"\naction = \"discard\"\ndestination = [\"10.7.{number}.0/24\"]\n"
        );
    }
    read(&text)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Of routes the difference is that of two maps, whatever their order.
    #[test]
    fn routes_differ_as_maps_do(
        old in proptest::collection::btree_map(0u8..24, 0u8..2, 0..16),
        new in proptest::collection::btree_map(0u8..24, 0u8..2, 0..16),
        turn in 0usize..16,
    ) {
        let list = |map: &BTreeMap<u8, u8>| map.iter().map(|(to, via)| (*to, *via)).collect::<Vec<_>>();
        let mut second = list(&new);
        let middle = turn.min(second.len());
        second.rotate_left(middle);
        let found = compare(&with_routes(&list(&old)), &with_routes(&second));
        let count = |kind| found.changes.iter().filter(|change| change.kind == kind).count();
        let changed = old.iter().filter(|(to, via)| new.get(to).is_some_and(|other| other != *via)).count();
        prop_assert_eq!(count(Kind::Added), new.keys().filter(|to| !old.contains_key(to)).count());
        prop_assert_eq!(count(Kind::Removed), old.keys().filter(|to| !new.contains_key(to)).count());
        // `via` goes and `tunnel` comes, or the other way round.
        prop_assert_eq!(count(Kind::Changed), changed * 2);
    }

    /// Moving what is told to have moved, and nothing else, makes one order of the other.
    #[test]
    fn what_has_not_moved_is_in_order(order in Just((0u8..12).collect::<Vec<_>>()).prop_shuffle()) {
        let found = compare(&with_policies(&(0..12).collect::<Vec<_>>()), &with_policies(&order));
        prop_assert!(found.changes.iter().all(|change| change.kind == Kind::Moved));
        let moved: Vec<String> = found.changes.iter().filter_map(|change| change.item.clone()).collect();
        let rest: Vec<u8> = order.iter().copied().filter(|n| !moved.contains(&format!("policy p{n}"))).collect();
        prop_assert!(rest.is_sorted());
        prop_assert_eq!(rest.len() + moved.len(), 12);
    }

    #[test]
    fn out_of_order_is_the_fewest(list in Just((0usize..7).collect::<Vec<_>>()).prop_shuffle()) {
        let found = out_of_order(&list);
        let best = (0u32..1 << list.len())
            .filter(|keep| {
                let kept: Vec<_> = list.iter().enumerate().filter(|(at, _)| keep >> at & 1 == 1).map(|(_, n)| n).collect();
                kept.is_sorted()
            })
            .map(u32::count_ones)
            .max();
        prop_assert_eq!((list.len() - found.len()) as u32, best.unwrap_or(0));
    }
}
