//! Limits of every level, both ways, for both IP versions, on VLANs and in tunnels.

use std::time::Duration;

use super::common::{frame::*, *};
use super::tunnel::{PLAIN, Pair};
use causeway::{
    config::build::key_of,
    packet::DropReason,
    stats::LimitColumn,
    table::limit::{Cap, Level, Way},
};

/// A gateway between a VPC on VLAN 20 and two lines, and another gateway beside it on VLANs of the same ports.
fn text(more: &str) -> String {
    format!(
        r#"
[gateway.g]
prefixes = ["10.2.0.0/16", "2001:db8:2::/48"]
[interface.vpc]
port = "vpc"
vlan = 20
gateway = "g"
side = "local"
addresses = ["10.2.0.1/16", "2001:db8:2::1/48"]
[interface.line]
port = "line"
vlan = {{ outer = 200, inner = 30 }}
gateway = "g"
side = "peer"
addresses = ["10.1.0.1/16", "2001:db8:1::1/48"]
[gateway.other]
[interface.other-vpc]
port = "vpc"
vlan = 21
gateway = "other"
side = "local"
addresses = ["10.2.0.1/16"]
[interface.other-line]
port = "line"
vlan = 31
gateway = "other"
side = "peer"
addresses = ["10.1.0.1/16"]
{more}
"#
    )
}

struct Bench {
    lab: Lab,
    vpc: Host,
    line: Host,
    other_vpc: Host,
    other_line: Host,
}

/// Bytes of the packets of these tests.
const SIZE: usize = 1000;
/// A limit of 800 kbps lets 100 of them pass each second, and 4 at once.
const LIMIT: &str = "800kbps";
const BURST: u64 = 4;
const A_SECOND: u64 = 100;

fn bench(more: &str) -> Bench {
    let mut lab = Lab::new(&text(more));
    let mut host = |port: &str, vlans: &[u16], last: u8, side: u8, count: u8| {
        let host = lab.host(port, vlans, last);
        for n in 0..count {
            lab.meet(&host, &format!("10.{side}.0.{}", 9 + n), &format!("10.{side}.0.1"));
        }
        host
    };
    let (vpc, line) = (host("vpc", &[20], 9, 2, 3), host("line", &[200, 30], 8, 1, 1));
    let (other_vpc, other_line) = (host("vpc", &[21], 7, 2, 1), host("line", &[31], 6, 1, 1));
    lab.meet(&vpc, "2001:db8:2::9", "2001:db8:2::1");
    lab.meet(&line, "2001:db8:1::9", "2001:db8:1::1");
    lab.announce();
    (0..2).for_each(|port| drop(lab.raw(port)));
    lab.dropped();
    Bench { lab, vpc, line, other_vpc, other_line }
}

/// A packet of [`SIZE`] bytes from one address to another.
fn packet(from: &str, to: &str) -> Vec<u8> {
    let headers = if from.contains(':') { 48 } else { 28 };
    let bytes = udp(from, to, (5, 6), &vec![7; SIZE - headers]).bytes();
    assert_eq!(bytes.len(), SIZE);
    bytes
}

impl Bench {
    /// Sends so many of the packet, and says how many arrive.
    fn flood(&mut self, outwards: bool, packet: &[u8], count: usize) -> u64 {
        let (from, to) = if outwards {
            (self.vpc.clone(), self.line.clone())
        } else {
            (self.line.clone(), self.vpc.clone())
        };
        flood(&mut self.lab, &from, &to, packet, count)
    }
}

fn flood(lab: &mut Lab, from: &Host, to: &Host, packet: &[u8], count: usize) -> u64 {
    (0..count).for_each(|_| lab.put(from.port, &from.frame(packet)));
    lab.run();
    lab.packets(to).len() as u64
}

/// A limit lets a burst pass at once, and its rate from then on; all else is dropped for `reason`.
fn obeys(bench: &mut Bench, outwards: bool, packet: &[u8], reason: &'static str) {
    assert_eq!(bench.flood(outwards, packet, 20), BURST, "{reason}");
    assert_eq!(bench.lab.dropped(), [(reason, 20 - BURST)]);
    let mut passed = 0;
    for _ in 0..50 {
        bench.lab.pass(Duration::from_millis(100));
        passed += bench.flood(outwards, packet, 20);
    }
    // In 100 ms ten packets are earned, of which the bucket keeps four.
    assert!((50 * BURST..=50 * BURST + 10).contains(&passed), "{reason}: {passed}");
    bench.lab.dropped();
    // A second in steps of 10 ms, of which each earns a packet.
    passed = 0;
    for _ in 0..100 {
        bench.lab.elapse(Duration::from_millis(10));
        passed += bench.flood(outwards, packet, 3);
    }
    assert!(passed.abs_diff(A_SECOND) <= BURST, "{reason}: {passed} in a second");
    assert_eq!(bench.lab.dropped(), [(reason, 300 - passed)]);
}

#[test]
fn every_level_limits_each_way_and_both_ip_versions() {
    let limit = |of: &str, way: &str| format!("[{of}]\n{way} = \"{LIMIT}\"\n");
    for (section, way, outwards, reason) in [
        ("gateway.g.limit", "out", true, "gateway-limit"),
        ("gateway.g.limit", "in", false, "gateway-limit"),
        ("interface.vpc.limit", "in", true, "interface-limit"),
        ("interface.vpc.limit", "out", false, "interface-limit"),
        ("interface.line.limit", "out", true, "interface-limit"),
        ("interface.line.limit", "in", false, "interface-limit"),
        ("gateway.g.address_limit", "out", true, "address-limit"),
        ("gateway.g.address_limit", "in", false, "address-limit"),
    ] {
        for (near, far) in [("10.2.0.9", "10.1.0.9"), ("2001:db8:2::9", "2001:db8:1::9")] {
            let mut bench = bench(&limit(section, way));
            let (there, back) = (packet(near, far), packet(far, near));
            let (limited, free) = if outwards { (&there, &back) } else { (&back, &there) };
            obeys(&mut bench, outwards, limited, reason);
            // The other way there is no limit.
            assert_eq!(bench.flood(!outwards, free, 50), 50, "{section} {way}");
        }
    }
}

/// A packet that nothing is left to ask about is sent where its way is found; with a limit it goes through the stages behind.
#[test]
fn what_is_sent_at_once_goes_as_what_a_limit_looks_at_that_is_never_reached() {
    let routes = "[[gateway.g.route]]\nto = \"172.16.0.0/12\"\nvia = \"10.1.0.9\"\n\
                  [[gateway.g.route]]\nto = \"2001:db8:99::/48\"\nvia = \"2001:db8:1::9\"\n\
                  [[gateway.g.route]]\nto = \"172.31.0.0/16\"\nvia = \"10.1.0.99\"\n";
    let outcome = |more: &str| {
        let mut bench = bench(&format!("{routes}{more}"));
        for n in 0..200_usize {
            let data = vec![n as u8; [0, 1, 18, 100, 1472, 1473, 1600][n % 7]];
            let ports = (1000 + n as u16, 53);
            let packet = match n % 5 {
                0 => udp("2001:db8:2::9", &format!("2001:db8:99::{n:x}"), ports, &data),
                // Somebody who does not answer.
                1 if n % 40 == 1 => udp("10.2.0.9", "172.31.0.1", ports, &data),
                _ => udp("10.2.0.9", &format!("172.16.{n}.1"), ports, &data),
            };
            let packet = packet.ttl([64, 2, 1, 255][n / 7 % 4]).tos(n as u8);
            let packet = if n % 3 == 0 { packet.df() } else { packet };
            let packet = if n % 11 == 1 && n % 5 != 0 { packet.options(&[1, 1, 1, 0]) } else { packet };
            bench.lab.put(bench.vpc.port, &bench.vpc.frame(&packet.bytes()));
        }
        bench.lab.run();
        let mut frames = [bench.lab.raw(0), bench.lab.raw(1)];
        frames.iter_mut().for_each(|port| port.sort_unstable());
        (frames, bench.lab.dropped())
    };
    let (at_once, looked_at) = (outcome(""), outcome("[interface.line.limit]\nout = \"100Gbps\"\n"));
    assert!(at_once.0.iter().any(|frames| frames.len() > 100), "most arrive");
    assert_eq!(at_once, looked_at);
}

#[test]
fn a_tunnel_limits_what_it_carries() {
    for (near, far) in [("10.1.0.9", "10.2.0.9"), ("2001:db8:1::9", "2001:db8:2::9")] {
        for outer_v6 in [false, true] {
            let kind = super::tunnel::Kind {
                outer_v6,
                more: "limit = { in = \"800kbps\", out = \"1600kbps\", burst = \"8kB\" }",
                ..PLAIN
            };
            let mut pair = Pair::with(kind, super::tunnel::Kind { outer_v6, ..PLAIN });
            // What the first packets took is earned again.
            pair.a.pass(Duration::from_secs(1));
            for _ in 0..30 {
                pair.a.put(pair.host_a.port, &pair.host_a.frame(&packet(near, far)));
            }
            pair.a.run();
            assert_eq!(pair.a.dropped(), [("tunnel-limit", 22)], "out: 8 kB");
            pair.ferry();
            assert_eq!(pair.b.packets(&pair.host_b).len(), 8);
            for _ in 0..30 {
                pair.b.put(pair.host_b.port, &pair.host_b.frame(&packet(far, near)));
            }
            pair.b.run();
            pair.ferry();
            assert_eq!(pair.a.packets(&pair.host_a).len(), 8);
            assert_eq!(pair.a.dropped(), [("tunnel-limit", 22)], "in: 8 kB");
        }
    }
}

#[test]
fn an_interface_counts_sealed_packets_as_they_are_on_the_line() {
    let kind = super::tunnel::Kind { udp: true, ..PLAIN };
    let mut pair = Pair::with(kind, kind);
    let place = |lab: &Lab| lab.single.built.interfaces[1];
    let row = pair.a.single.built.limits.limits.of(Level::Interface, place(&pair.a)).unwrap().1;
    {
        let built = &pair.a.single.built.limits;
        let (limited, _) = built.limits.of(Level::Interface, place(&pair.a)).unwrap();
        limited.outwards.rate.set(Some(Cap { rate: 1_000_000_000, burst: 100_000_000 }));
        built.refresh();
    }
    for size in [100, 777, 1000] {
        let before = pair.a.single.worker.counters().read_limit(row, LimitColumn::OutBytes);
        pair.a.from(&pair.host_a, &udp("10.1.0.9", "10.2.0.9", (1, 1), &vec![0; size]).bytes());
        let sealed = pair.sealed();
        let frame = read_frame(&sealed[0]);
        let after = pair.a.single.worker.counters().read_limit(row, LimitColumn::OutBytes);
        assert_eq!((sealed.len(), after - before), (1, frame.payload.len() as u64), "{size} bytes inside");
    }
    // What is too much is not even sealed: no sequence number is used for it.
    pair.a
        .single
        .built
        .limits
        .limits
        .of(Level::Interface, place(&pair.a))
        .unwrap()
        .0
        .outwards
        .rate
        .set(Some(Cap { rate: 1_000, burst: 4096 }));
    pair.a.dropped();
    for _ in 0..10 {
        pair.a.put(pair.host_a.port, &pair.host_a.frame(&packet("10.1.0.9", "10.2.0.9")));
    }
    let newest = |lab: &Lab| lab.single.built.associations[0].newest();
    let before = newest(&pair.a);
    pair.a.run();
    let dropped = pair.a.dropped();
    let [("interface-limit", n)] = dropped[..] else { panic!("{dropped:?}") };
    assert!(n >= 7 && newest(&pair.a) - before == 10 - n, "{n} dropped");
}

#[test]
fn a_capped_gateway_does_not_slow_another() {
    let mut bench = bench(&format!("[gateway.g.limit]\nin = \"{LIMIT}\"\nout = \"{LIMIT}\"\n"));
    let packet = packet("10.2.0.9", "10.1.0.9");
    let (mut capped, mut free) = (0, 0);
    for _ in 0..20 {
        // In the same bursts, one after the other.
        for _ in 0..30 {
            bench.lab.put(bench.vpc.port, &bench.vpc.frame(&packet));
            bench.lab.put(bench.other_vpc.port, &bench.other_vpc.frame(&packet));
        }
        bench.lab.run();
        for frame in bench.lab.raw(bench.line.port) {
            match read_frame(&frame).tags {
                tags if tags == bench.other_line.tags => free += 1,
                tags if tags == bench.line.tags => capped += 1,
                tags => panic!("{tags:?}"),
            }
        }
    }
    assert_eq!((capped, free), (BURST, 600));
}

#[test]
fn each_address_has_its_own_and_takes_nothing_from_the_others() {
    let mut bench = bench(
        "[gateway.g.limit]\nout = \"8Mbps\"\nin = \"8Mbps\"\n\
         [gateway.g.address_limit]\nout = \"800kbps\"\nin = \"800kbps\"\n\
         [[gateway.g.address_limit.own]]\naddress = [\"10.2.0.10\"]\nout = \"400kbps\"\nburst = \"8kB\"\n\
         [[gateway.g.address_limit.own]]\naddress = [\"10.2.0.11\", \"2001:db8:2::/64\"]\nout = \"none\"\n",
    );
    let out = |host: u8| packet(&format!("10.2.0.{host}"), "10.1.0.9");
    // What an address may not have is not charged to the gateway, which lets 8 packets pass at once.
    assert_eq!(bench.flood(true, &out(9), 60), 4);
    assert_eq!(bench.lab.dropped(), [("address-limit", 56)]);
    assert_eq!(bench.flood(true, &out(11), 2), 2);
    assert_eq!(bench.flood(true, &out(12), 2), 2);
    bench.lab.pass(Duration::from_secs(1));
    assert_eq!(bench.flood(true, &out(10), 60), 8);
    bench.lab.pass(Duration::from_secs(1));
    // Only the gateway's own limit is left.
    bench.lab.dropped();
    assert_eq!(bench.flood(true, &out(11), 60), 8);
    assert_eq!(bench.lab.dropped(), [("gateway-limit", 52)]);
    bench.lab.pass(Duration::from_secs(1));
    assert_eq!(bench.flood(true, &packet("2001:db8:2::9", "2001:db8:1::9"), 60), 8);
    // To it there is the common limit.
    bench.lab.pass(Duration::from_secs(1));
    assert_eq!(bench.flood(false, &packet("10.1.0.9", "10.2.0.11"), 60), 4);

    let limits = &bench.lab.single.built.limits.limits;
    let known = limits.addresses_of(bench.lab.single.built.gateways[0]).unwrap();
    let key = key_of("10.2.0.9".parse().unwrap());
    let view = known.table.view(known.table.find(key, known.hash(key)).unwrap()).unwrap();
    let out = view.traffic[Way::Out as usize];
    assert_eq!((out.passed_packets, out.passed_bytes), (4, 4000));
    assert_eq!((out.dropped_packets, out.dropped_bytes), (56, 56_000));
    assert_eq!(view.traffic[Way::In as usize].passed_packets, 0);
}

#[test]
fn addresses_are_those_of_the_vpc_before_and_behind_nat() {
    let mut bench = bench(
        "[gateway.g.address_limit]\nout = \"800kbps\"\nin = \"800kbps\"\n\
         [[gateway.g.nat]]\nkind = \"local\"\noriginal = \"10.2.0.9\"\ntranslated = \"203.0.113.9\"\n\
         [[gateway.g.nat]]\nkind = \"local\"\noriginal = \"10.2.0.10\"\ntranslated = \"203.0.113.10\"\n",
    );
    assert_eq!(bench.flood(true, &packet("10.2.0.9", "10.1.0.9"), 10), 4);
    assert_eq!(bench.flood(false, &packet("10.1.0.9", "203.0.113.9"), 10), 4);
    assert_eq!(bench.flood(false, &packet("10.1.0.9", "203.0.113.10"), 10), 4);
    // From one host of the VPC to another by its outside address: out of one, and in to the other.
    bench.lab.pass(Duration::from_secs(1));
    bench.lab.dropped();
    let (vpc, hairpin) = (bench.vpc.clone(), packet("10.2.0.9", "203.0.113.10"));
    assert_eq!(flood(&mut bench.lab, &vpc, &vpc, &hairpin, 10), 4);
    assert_eq!(bench.lab.dropped(), [("address-limit", 6)]);
    assert_eq!(bench.flood(false, &packet("10.1.0.9", "203.0.113.10"), 10), 0);
    let limits = &bench.lab.single.built.limits.limits;
    let table = &limits.addresses_of(bench.lab.single.built.gateways[0]).unwrap().table;
    let known: Vec<u128> = (0..table.common()).filter_map(|entry| table.key(entry)).collect();
    let mut wanted = ["10.2.0.9", "10.2.0.10"].map(|address| key_of(address.parse().unwrap()));
    let mut known = known;
    known.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(known, wanted, "no outside address has an entry");
}

#[test]
fn addresses_without_room_share_one_limit() {
    let mut bench = bench("[gateway.g.address_limit]\nout = \"800kbps\"\naddresses = 16\n");
    for host in 0..16 {
        assert_eq!(bench.flood(true, &packet(&format!("10.2.1.{host}"), "10.1.0.9"), 1), 1);
    }
    let strangers: u64 =
        (0..10).map(|host| bench.flood(true, &packet(&format!("10.2.2.{host}"), "10.1.0.9"), 1)).sum();
    assert_eq!(strangers, BURST);
    // Those who are known have their own.
    assert_eq!(bench.flood(true, &packet("10.2.1.3", "10.1.0.9"), 10), 3);
    let limits = &bench.lab.single.built.limits.limits;
    let table = &limits.addresses_of(bench.lab.single.built.gateways[0]).unwrap().table;
    assert_eq!((table.len(), table.refused()), (16, 10));
    let common = table.view(table.common()).unwrap().traffic[Way::Out as usize];
    assert_eq!((common.passed_packets, common.dropped_packets), (4, 6));
}

#[test]
fn what_the_gateway_makes_and_what_is_for_it_is_not_asked_about() {
    let mut bench = bench(
        "[gateway.g.limit]\nin = \"1kbps\"\nout = \"1kbps\"\n[interface.line.limit]\nin = \"1kbps\"\nout = \"1kbps\"\n\
         [interface.vpc.limit]\nin = \"1kbps\"\nout = \"1kbps\"\n",
    );
    // Used up, each way.
    bench.flood(true, &packet("10.2.0.9", "10.1.0.9"), 20);
    bench.flood(false, &packet("10.1.0.9", "10.2.0.9"), 20);
    bench.lab.dropped();
    let vpc = bench.vpc.clone();
    let ping = |n| ping("10.2.0.9", "10.2.0.1", n).bytes();
    for n in 0..20 {
        bench.lab.from(&vpc, &ping(n));
        assert_eq!(Ip::read(&bench.lab.one(&vpc)).payload[0], 0, "a reply");
    }
}

#[test]
fn a_change_is_in_force_with_the_next_burst() {
    let mut bench = bench("");
    let out = packet("10.2.0.9", "10.1.0.9");
    assert_eq!(bench.flood(true, &out, 60), 60);
    let number = bench.lab.single.built.gateways[0];
    let set = |bench: &Bench, cap| {
        let built = &bench.lab.single.built.limits;
        built.limits.of(Level::Gateway, number).unwrap().0.outwards.rate.set(cap);
        built.refresh();
    };
    set(&bench, Some(Cap { rate: 8_000, burst: 10_000 }));
    assert_eq!(bench.flood(true, &out, 60), 10);
    // A greater rate gives at once what passes of the clock at it; nothing of the old one is left to wait for.
    set(&bench, Some(Cap { rate: 800_000_000, burst: 1_000_000 }));
    bench.lab.elapse(Duration::from_micros(500));
    assert_eq!(bench.flood(true, &out, 60), 50);
    set(&bench, None);
    assert_eq!(bench.flood(true, &out, 60), 60);
    assert_eq!(bench.lab.single.built.limits.limits.active.bits(), 0, "nothing is asked any more");
}

#[test]
fn a_reload_keeps_what_is_spent_and_counted_and_changes_the_rest() {
    let file = |gateway: &str, more: &str| {
        let head = "[system]\nname = \"bench\"\nbuffers = 1024\nhuge_pages = \"never\"\n\
                    [port.vpc]\ndriver = \"memory\"\nring = 64\n[port.line]\ndriver = \"memory\"\nring = 64\n";
        let limits = format!(
            "[gateway.g.limit]\nout = \"{gateway}\"\nburst = \"6kB\"\n\
             [gateway.g.address_limit]\nout = \"800kbps\"\n{more}"
        );
        format!("{head}{}", text(&limits))
    };
    let mut bench = bench(
        "[gateway.g.limit]\nout = \"800kbps\"\nburst = \"6kB\"\n[gateway.g.address_limit]\nout = \"800kbps\"\n",
    );
    let out = |host: u8| packet(&format!("10.2.0.{host}"), "10.1.0.9");
    assert_eq!((bench.flood(true, &out(9), 10), bench.flood(true, &out(10), 10)), (4, 2));
    let row = |bench: &Bench| {
        let counters = bench.lab.single.worker.counters();
        [LimitColumn::OutPackets, LimitColumn::OutDropped].map(|column| counters.read_limit(0, column))
    };
    assert_eq!(row(&bench), [6, 2], "of the second four by its own limit");
    // The same again: nothing is given anew.
    bench.lab.reload(&file("800kbps", ""));
    assert_eq!((bench.flood(true, &out(9), 10), bench.flood(true, &out(10), 10)), (0, 0));
    let before = row(&bench);
    assert_eq!(before[0], 6, "counts go on");
    // Another rate for the gateway, and one of its own for an address.
    let own =
        "[[gateway.g.address_limit.own]]\naddress = [\"10.2.0.10\"]\nout = \"8Mbps\"\nburst = \"20kB\"\n";
    bench.lab.reload(&file("80Mbps", own));
    bench.lab.pass(Duration::from_secs(1));
    assert_eq!(bench.flood(true, &out(9), 10), 4);
    bench.lab.pass(Duration::from_secs(1));
    assert_eq!(bench.flood(true, &out(10), 10), 6, "the gateway's burst");
    assert_eq!(bench.lab.drops(DropReason::InterfaceLimit), 0);
}
