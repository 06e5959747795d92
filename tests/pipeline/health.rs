//! The health of tunnels and lines through the real pipeline, by a clock of the test's own: probes, BFD, what follows from
//! silence, and what must not be taken for a probe.

use std::time::Duration;

use causeway::{
    control::health::{Kind as Way, view::HealthRow},
    packet::DropReason,
    stats::WorkerColumn,
    table::liveness::Cause,
};

use super::{
    common::{frame::*, *},
    tunnel::{Kind, PLAIN, Pair, site},
};

const PROBED: Kind = Kind {
    more: "hold_down = \"1s\"\nprobe = { interval = \"100ms\", timeout = \"50ms\", count = 3, recover = 2 }",
    ..PLAIN
};
const BFD: Kind =
    Kind { more: "hold_down = \"1s\"\nbfd = { min_tx = \"50ms\", min_rx = \"50ms\" }", ..PLAIN };
const SLOW: Kind = Kind { more: "hold_down = \"0s\"\nprobe = {}", ..PLAIN };

/// What of the frames between two gateways arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Good,
    /// Nothing, either way.
    Cut,
    /// Nothing to the first.
    Deaf,
}

/// Lets so many milliseconds pass for both.
fn pass(pair: &mut Pair, ms: u64, line: Line) {
    for _ in 0..ms / 5 {
        pair.a.advance(Duration::from_millis(5));
        pair.b.advance(Duration::from_millis(5));
        match line {
            Line::Good => pair.ferry(),
            Line::Cut => {
                pair.a.raw(1);
                pair.b.raw(1);
            }
            Line::Deaf => {
                pair.b.raw(1);
                for frame in pair.a.raw(1) {
                    pair.b.send(1, &frame);
                }
                pair.b.raw(1);
            }
        }
    }
}

/// How many milliseconds pass until something holds.
fn until(pair: &mut Pair, line: Line, holds: impl Fn(&mut Pair) -> bool) -> u64 {
    let start = pair.a.now();
    while !holds(pair) {
        assert!(pair.a.now() - start < 60_000_000_000, "{:?}", row(&pair.a, Way::Tunnel, "t"));
        pass(pair, 5, line);
    }
    (pair.a.now() - start) / 1_000_000
}

fn row(lab: &Lab, kind: Way, name: &str) -> HealthRow {
    lab.single.health.rows(lab.now()).find(|row| row.kind == kind && row.name == name).unwrap()
}

fn state(lab: &Lab) -> String {
    row(lab, Way::Tunnel, "t").state
}

fn tunnel_is_up(lab: &Lab) -> bool {
    lab.single.built.tables.liveness.tunnel_is_up(0)
}

#[test]
fn both_ends_of_a_tunnel_probe_each_other_and_find_silence_out() {
    for kind in [PROBED, Kind { outer_v6: true, udp: true, ..PROBED }] {
        let mut pair = Pair::new(kind);
        pass(&mut pair, 2_000, Line::Good);
        for lab in [&pair.a, &pair.b] {
            let row = row(lab, Way::Tunnel, "t");
            let probe = row.probe.clone().unwrap();
            assert_eq!((row.state.as_str(), row.usable, probe.lost), ("up", true, 0), "{row:?}");
            assert!((18..=21).contains(&probe.probes), "{probe:?}");
            assert!(probe.last_us.is_some() && probe.p99_us.unwrap() < 10_000, "{probe:?}");
            assert_eq!(probe.minutes[0].probes as u64, probe.probes);
            let counters = lab.single.worker.counters();
            let read = |column| counters.read_worker(column);
            assert_eq!(read(WorkerColumn::ProbesHeard), probe.probes);
            assert!(read(WorkerColumn::Probes).abs_diff(read(WorkerColumn::ProbesAnswered)) <= 1);
        }
        // No policy had to let them through, and the ends are derived: neighbours of 169.254.128.0/17.
        assert_eq!(pair.a.drops(DropReason::PolicyMismatch), 0);
        let ends = |lab: &Lab| row(lab, Way::Tunnel, "t").probe.map(|p| (p.source, p.target)).unwrap();
        assert_eq!(ends(&pair.a), (ends(&pair.b).1, ends(&pair.b).0));

        let took = until(&mut pair, Line::Cut, |pair| state(&pair.a) == "down");
        assert!((250..=360).contains(&took), "{took} ms");
        assert!(!tunnel_is_up(&pair.a));
        assert!(pair.a.single.built.tables.liveness.tunnel_has(0, Cause::UNREACHED));
        let took = until(&mut pair, Line::Good, |pair| state(&pair.a) == "held");
        assert!(took <= 250, "two answers: {took} ms");
        assert!(!tunnel_is_up(&pair.a) && pair.a.single.built.tables.liveness.tunnel_has(0, Cause::HELD));
        let took = until(&mut pair, Line::Good, |pair| tunnel_is_up(&pair.a));
        assert!((995..=1010).contains(&took), "{took} ms");
        assert_eq!(row(&pair.a, Way::Tunnel, "t").switches, 2);
    }
}

#[test]
fn bfd_in_a_tunnel_finds_silence_out_in_three_intervals_and_tells_the_other_end() {
    let mut pair = Pair::new(BFD);
    let up = |pair: &mut Pair| {
        [&pair.a, &pair.b].iter().all(|lab| row(lab, Way::Tunnel, "t").bfd.unwrap().state == "Up")
    };
    assert!(until(&mut pair, Line::Good, up) < 4_000);
    pass(&mut pair, 2_000, Line::Good);
    let bfd = row(&pair.a, Way::Tunnel, "t").bfd.unwrap();
    assert_eq!((bfd.detection_ms, bfd.transmit_ms, bfd.refused), (150.0, 50.0, 0), "{bfd:?}");
    // Only the first hears nothing; the second is told.
    let took = until(&mut pair, Line::Deaf, |pair| state(&pair.a) == "down");
    assert!((100..=160).contains(&took), "{took} ms");
    let took = until(&mut pair, Line::Deaf, |pair| state(&pair.b) == "down");
    assert!(took <= 10, "{took} ms");
    let (one, other) =
        (row(&pair.a, Way::Tunnel, "t").bfd.unwrap(), row(&pair.b, Way::Tunnel, "t").bfd.unwrap());
    assert_eq!(one.diagnostic, "control detection time expired");
    assert_eq!(other.diagnostic, "neighbour signalled session down");
    assert!(until(&mut pair, Line::Good, up) < 4_000);
    until(&mut pair, Line::Good, |pair| tunnel_is_up(&pair.a) && tunnel_is_up(&pair.b));
}

/// The two sites with probes, or BFD, on the line between them.
fn on_the_line(what: &str) -> Pair {
    let lab = |end: u8| {
        let other = 3 - end;
        let own = format!("addresses = [\"192.0.2.{end}/30\"");
        let text = site(end, PLAIN);
        assert!(text.contains(&own));
        let more = what
            .replace("TARGET", &format!("192.0.2.{other}"))
            .replace("SIX", &format!("2001:db8:ff::{other}"));
        text.replace(&own, &format!("{more}\n{own}"))
    };
    Pair::of(&lab(1), &lab(2))
}

#[test]
fn a_line_is_probed_and_takes_its_tunnels_with_it() {
    for target in ["TARGET", "SIX"] {
        let mut pair = on_the_line(&format!(
            "hold_down = \"1s\"\nprobe = {{ target = \"{target}\", interval = \"100ms\", timeout = \"50ms\", count = 3, recover = 2 }}"
        ));
        pass(&mut pair, 1_500, Line::Good);
        let line = row(&pair.a, Way::Interface, "wan");
        assert_eq!((line.state.as_str(), line.probe.clone().unwrap().lost), ("up", 0), "{line:?}");
        let took = until(&mut pair, Line::Cut, |pair| row(&pair.a, Way::Interface, "wan").state == "down");
        assert!((250..=360).contains(&took), "{took} ms");
        assert!(!pair.a.single.built.tables.liveness.interface_is_up(pair.a.single.built.interfaces[1]));
        assert!(!tunnel_is_up(&pair.a), "its tunnel goes by this line");
        assert!(row(&pair.a, Way::Tunnel, "t").reason.unwrap().contains("line"));
        assert!(row(&pair.a, Way::Interface, "lan").usable);
        until(&mut pair, Line::Good, |pair| tunnel_is_up(&pair.a));
        assert!(row(&pair.a, Way::Interface, "wan").usable);
    }
}

#[test]
fn bfd_on_a_line_comes_up_and_goes_down() {
    for target in ["TARGET", "SIX"] {
        let what = format!(
            "hold_down = \"0s\"\nbfd = {{ target = \"{target}\", min_tx = \"50ms\", min_rx = \"50ms\" }}"
        );
        let mut pair = on_the_line(&what);
        let up = |pair: &mut Pair| row(&pair.a, Way::Interface, "wan").bfd.unwrap().state == "Up";
        assert!(until(&mut pair, Line::Good, up) < 4_000);
        pass(&mut pair, 1_500, Line::Good);
        let took = until(&mut pair, Line::Cut, |pair| row(&pair.a, Way::Interface, "wan").state == "down");
        assert!((100..=160).contains(&took), "{took} ms");
        until(&mut pair, Line::Good, |pair| row(&pair.a, Way::Interface, "wan").usable);
    }
}

#[test]
fn a_tunnel_that_swallows_traffic_is_asked_sooner() {
    // Every 5 s, three lost, 150 ms: without a sign 15 s.
    let mut pair = Pair::new(SLOW);
    pass(&mut pair, 6_000, Line::Good);
    assert_eq!(state(&pair.a), "up");
    let start = pair.a.now();
    while state(&pair.a) == "up" {
        let packet = udp("10.1.0.9", "10.2.0.9", (1, 2), b"is anybody there?");
        pair.a.from(&pair.host_a, &packet.bytes());
        pass(&mut pair, 50, Line::Cut);
    }
    let took = (pair.a.now() - start) / 1_000_000;
    assert!((1_300..=1_900).contains(&took), "a second of silence and three probes: {took} ms");
    // The other end has nothing to send, and finds out by its probes alone.
    assert_eq!(state(&pair.b), "up");
}

#[test]
fn a_tunnel_without_keys_in_force_is_down_at_once() {
    let mut pair = Pair::new(Kind { more: "hold_down = \"0s\"", ..PLAIN });
    pass(&mut pair, 100, Line::Good);
    assert_eq!(state(&pair.a), "up");
    for place in 0..2 {
        let association = pair.a.single.built.associations[place].clone();
        association.set_ended(true);
        pass(&mut pair, 60, Line::Good);
        assert!(!tunnel_is_up(&pair.a));
        assert!(row(&pair.a, Way::Tunnel, "t").reason.unwrap().contains("associations"));
        association.set_ended(false);
        pass(&mut pair, 60, Line::Good);
        assert!(tunnel_is_up(&pair.a));
    }
}

#[test]
fn an_operator_drains_and_lets_come_back() {
    let mut pair = Pair::new(Kind {
        more: "hold_down = \"100ms\"\nfailback = \"manual\"\nprobe = { interval = \"100ms\", timeout = \"50ms\" }",
        ..PLAIN
    });
    pass(&mut pair, 1_000, Line::Good);
    let single = &mut pair.a.single;
    let liveness = std::sync::Arc::clone(&single.built.tables.liveness);
    assert_eq!(single.health.drain(Way::Tunnel, "t", true, &liveness), Ok(true));
    assert_eq!(single.health.drain(Way::Tunnel, "t", true, &liveness), Ok(false));
    assert!(!liveness.tunnel_is_up(0));
    let error = single.health.drain(Way::Interface, "t", true, &liveness).unwrap_err();
    assert!(error.contains("there is no interface t; there are: lan, wan"), "{error}");
    // Over a reload it stays drained, and what was measured stays known.
    let probes = |lab: &Lab| row(lab, Way::Tunnel, "t").probe.unwrap().probes;
    let before = probes(&pair.a);
    let text = site(
        1,
        Kind { more: "failback = \"manual\"\nprobe = { interval = \"200ms\", timeout = \"50ms\" }", ..PLAIN },
    );
    pair.a.reload(&text);
    assert!(row(&pair.a, Way::Tunnel, "t").drained && !tunnel_is_up(&pair.a));
    assert!(probes(&pair.a) >= before);
    assert_eq!(row(&pair.a, Way::Tunnel, "t").probe.unwrap().interval_ms, 200);
    pair.a.single.health.drain(Way::Tunnel, "t", false, &liveness).unwrap();
    assert!(tunnel_is_up(&pair.a));

    until(&mut pair, Line::Cut, |pair| state(&pair.a) == "down");
    let now = pair.a.now();
    let error = pair.a.single.health.fail_back(Way::Tunnel, "t", now, &liveness).unwrap_err();
    assert!(error.contains("does not work yet"), "{error}");
    until(&mut pair, Line::Good, |pair| state(&pair.a) == "waiting");
    pass(&mut pair, 30_000, Line::Good);
    assert_eq!((state(&pair.a).as_str(), tunnel_is_up(&pair.a)), ("waiting", false));
    let now = pair.a.now();
    pair.a.single.health.fail_back(Way::Tunnel, "t", now, &liveness).unwrap();
    assert!(tunnel_is_up(&pair.a));
    assert!(pair.a.single.health.fail_back(Way::Tunnel, "t", now, &liveness).is_err());
}

#[test]
fn a_way_that_is_gone_leaves_nothing_to_the_next_of_its_number() {
    let mut pair = Pair::new(PROBED);
    pass(&mut pair, 500, Line::Good);
    until(&mut pair, Line::Cut, |pair| state(&pair.a) == "down");
    assert!(!tunnel_is_up(&pair.a));
    let text =
        site(1, PLAIN).replace("tunnel.t]", "tunnel.other]").replace("tunnel = \"t\"", "tunnel = \"other\"");
    pair.a.reload(&text);
    pass(&mut pair, 100, Line::Cut);
    assert!(row(&pair.a, Way::Tunnel, "other").usable && tunnel_is_up(&pair.a));
}

#[test]
fn what_is_no_probe_is_not_taken_for_one() {
    let ends =
        |what: &str| format!("[tunnel.t.{what}]\nsource = \"169.254.130.1\"\ntarget = \"169.254.130.2\"\n");
    let watched = site(1, PLAIN) + &ends("probe") + &ends("bfd");
    // The other end lets its hosts use the other end's probe address.
    let careless = site(2, PLAIN)
        .replace("source = [\"10.2.0.0/16\"]", "source = [\"10.2.0.0/16\", \"169.254.130.2/32\"]")
        .replace("destination = [\"10.1.0.0/16\"]", "destination = [\"10.1.0.0/16\", \"169.254.130.1/32\"]");
    let mut pair = Pair::of(&watched, &careless);
    pair.a.dropped();
    let count = |lab: &Lab, column| lab.single.worker.counters().read_worker(column);
    let heard = count(&pair.a, WorkerColumn::ProbesHeard);
    let (far, own) = ("169.254.130.2", "169.254.130.1");
    let control = [0x20, 0x40, 3, 24, 0, 0, 0, 9, 0, 0, 0, 0, 0, 15, 66, 64, 0, 15, 66, 64, 0, 0, 0, 0];
    let host = pair.host_b.clone();
    for (packet, reason) in [
        // It has passed a router, the other gateway, so that its TTL is not 255.
        (udp(far, own, (50_000, 3784), &control).ttl(255), Some("bfd-refused")),
        // A reply to no request of ours, as its token shows.
        (icmp(far, own, 0, 0, [0xca, 5, 0, 0], &[0; 16]), Some("policy-mismatch")),
        (udp(far, own, (50_000, 9), b"x"), Some("policy-mismatch")),
        (udp("10.2.0.9", own, (50_000, 3784), &control), Some("policy-mismatch")),
        // The other end may ask.
        (ping(far, own, 1), None),
    ] {
        pair.b.from(&host, &packet.bytes());
        for frame in pair.b.raw(1) {
            pair.a.send(1, &frame);
        }
        let dropped: Vec<_> = pair.a.dropped().into_iter().map(|(reason, _)| reason).collect();
        assert_eq!(dropped, reason.into_iter().collect::<Vec<_>>(), "{packet:02x?}");
    }
    assert_eq!(count(&pair.a, WorkerColumn::ProbesAnswered), 1);
    // From the VPC's side nothing is a probe at all.
    let host = pair.host_a.clone();
    pair.a.from(&host, &udp(far, own, (50_000, 3784), &control).ttl(255).bytes());
    // Whoever it claims to be from cannot be told.
    assert_eq!(pair.a.dropped(), [("no-route", 1), ("local-unserved", 1)]);
    pair.a.from(&host, &icmp(far, own, 0, 0, [0xca, 5, 0, 0], &[0; 16]).bytes());
    assert_eq!(pair.a.dropped(), [("local-unserved", 1)]);
    assert_eq!(count(&pair.a, WorkerColumn::ProbesHeard), heard);
}

#[test]
fn a_probe_from_afar_or_damaged_is_refused_on_a_line() {
    let mut pair = on_the_line("bfd = { target = \"TARGET\" }");
    pair.a.dropped();
    let line = pair.a.host("wan", &[100], 7);
    let control = [0x20, 0x40, 3, 24, 0, 0, 0, 9, 0, 0, 0, 0, 0, 15, 66, 64, 0, 15, 66, 64, 0, 0, 0, 0];
    let good = udp("192.0.2.2", "192.0.2.1", (50_000, 3784), &control).ttl(255);
    let mut damaged = good.clone();
    damaged.payload[20] ^= 1;
    let bytes = |packet: &Ip| packet.bytes();
    let refused = |lab: &Lab| row(lab, Way::Interface, "wan").bfd.unwrap().refused;
    let received = |lab: &Lab| row(lab, Way::Interface, "wan").bfd.unwrap().received;
    let before = received(&pair.a);
    for (packet, reason) in [
        (bytes(&good), "local-consumed"),
        (bytes(&good.clone().ttl(254)), "bfd-refused"),
        (bytes(&damaged), "local-checksum"),
        (bytes(&udp("192.0.2.2", "192.0.2.1", (50_000, 3784), &control[..23]).ttl(255)), "bfd-refused"),
    ] {
        pair.a.from(&line, &packet);
        assert_eq!(pair.a.dropped(), [(reason, 1)], "{packet:02x?}");
    }
    // Whole, but nonsense: the control thread counts it.
    assert_eq!(refused(&pair.a), 0);
    for (at, byte) in [(0, 0x40), (2, 0), (3, 40), (7, 0), (1, 0xc0), (1, 0x44)] {
        let mut wrong = control;
        wrong[at] = byte;
        pair.a.from(&line, &bytes(&udp("192.0.2.2", "192.0.2.1", (50_000, 3784), &wrong).ttl(255)));
        assert_eq!(pair.a.dropped(), [("local-consumed", 1)]);
    }
    assert_eq!(refused(&pair.a), 6);
    assert_eq!(received(&pair.a), before + 1);
    // The host at the other end of another session's addresses is none of this one's.
    pair.a.from(&line, &bytes(&udp("192.0.2.66", "192.0.2.1", (50_000, 3784), &control).ttl(255)));
    let reasons: Vec<_> = pair.a.dropped().into_iter().map(|(reason, _)| reason).collect();
    assert!(reasons.contains(&"local-unserved") && !reasons.contains(&"local-consumed"), "{reasons:?}");
}

/// A site with a second tunnel that stands by.
fn with_standby(end: u8) -> String {
    let other = 3 - end;
    let text = site(end, PROBED).replace("tunnel = \"t\"\n", "tunnel = \"t\"\nstandby = [\"t2\"]\n");
    assert!(text.contains("standby"));
    text + &format!(
        "[tunnel.t2]\ngateway = \"g\"\nlocal = \"192.0.2.{end}\"\nremote = \"192.0.2.{other}\"\n\
         out = {{ spi = 0x101{end}, key = {{ env = \"SPARE_{end}\" }} }}\n\
         in = [{{ spi = 0x101{other}, key = {{ env = \"SPARE_{other}\" }} }}]\n\
         probe = {{ source = \"169.254.130.{end}\", target = \"169.254.130.{other}\", interval = \"100ms\", \
         timeout = \"50ms\" }}\n"
    )
}

/// The SPI of an ESP packet in a frame of the line.
fn spi(frame: &[u8]) -> Option<u32> {
    let packet = Ip::read(&read_frame(frame).payload);
    (packet.proto == ESP).then(|| u32::from_be_bytes(packet.payload[..4].try_into().unwrap()))
}

/// Lets time pass while the first tunnel's packets are lost, or not.
fn pass_without_first(pair: &mut Pair, ms: u64, lost: bool) {
    let passes =
        |frame: &Vec<u8>| !lost || frame[16..18] != [8, 0] || !matches!(spi(frame), Some(0x1001 | 0x1002));
    for _ in 0..ms / 5 {
        pair.a.advance(Duration::from_millis(5));
        pair.b.advance(Duration::from_millis(5));
        for _ in 0..3 {
            let (there, back) = (pair.a.raw(1), pair.b.raw(1));
            there.iter().filter(|frame| passes(frame)).for_each(|frame| pair.b.send(1, frame));
            back.iter().filter(|frame| passes(frame)).for_each(|frame| pair.a.send(1, frame));
        }
    }
}

/// The SPI that a packet of the first site's host leaves with now.
fn chosen(pair: &mut Pair) -> Option<u32> {
    pair.a.raw(1);
    let host = pair.host_a.clone();
    pair.a.from(&host, &udp("10.1.0.9", "10.2.0.9", (1, 2), b"which way?").bytes());
    let sent: Vec<_> = pair.a.raw(1).iter().filter_map(|frame| spi(frame)).collect();
    assert!(sent.len() <= 1, "{sent:x?}");
    sent.first().copied()
}

#[test]
fn the_standby_tunnel_takes_over_with_the_next_burst_and_gives_back_after_the_hold_down() {
    let mut pair = Pair::of(&with_standby(1), &with_standby(2));
    pass_without_first(&mut pair, 2_000, false);
    assert_eq!(chosen(&mut pair), Some(0x1001));
    while state(&pair.a) == "up" {
        pass_without_first(&mut pair, 5, true);
    }
    assert_eq!(chosen(&mut pair), Some(0x1011));
    pass_without_first(&mut pair, 2_000, true);
    assert_eq!(chosen(&mut pair), Some(0x1011));
    while state(&pair.a) == "down" {
        pass_without_first(&mut pair, 5, false);
    }
    assert_eq!(chosen(&mut pair), Some(0x1011), "held down");
    // With nothing better there is no reason to hold it down.
    let liveness = std::sync::Arc::clone(&pair.a.single.built.tables.liveness);
    pair.a.single.health.drain(Way::Tunnel, "t2", true, &liveness).unwrap();
    assert_eq!(chosen(&mut pair), Some(0x1001));
    pair.a.single.health.drain(Way::Tunnel, "t2", false, &liveness).unwrap();
    assert_eq!(chosen(&mut pair), Some(0x1011));
    pass_without_first(&mut pair, 1_005, false);
    assert_eq!((state(&pair.a).as_str(), chosen(&mut pair)), ("up", Some(0x1001)));
    // And when an operator wants it so.
    pair.a.single.health.drain(Way::Tunnel, "t", true, &liveness).unwrap();
    assert_eq!(chosen(&mut pair), Some(0x1011));
    pair.a.single.health.drain(Way::Tunnel, "t2", true, &liveness).unwrap();
    assert_eq!(chosen(&mut pair), None);
    pair.a.dropped();
}
