//! VLAN tags, ARP, neighbour discovery, and the gateway's own addresses.

use std::time::Duration;

use super::{
    common::{frame::*, *},
    forward, icmp_error,
};
use causeway::packet::DropReason;

const CONFIG: &str = r#"
[gateway.g]
prefixes = ["10.1.0.0/16"]
[interface.lan]
port = "lan"
vlan = 10
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.untagged]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.1.1/24", "2001:db8:2::1/64"]
[interface.stacked]
port = "lan"
vlan = { outer = 200, inner = 7 }
gateway = "g"
side = "local"
addresses = ["10.1.2.1/24", "2001:db8:3::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
addresses = ["192.0.2.1/30", "2001:db8:ff::1/64"]
[[gateway.g.route]]
to = "10.9.0.0/16"
via = "192.0.2.2"
"#;

#[test]
fn pings_of_own_addresses_are_answered_with_the_tags_they_came_with() {
    let mut lab = Lab::new(CONFIG);
    let links: [(&[u16], [&str; 2], [&str; 2]); 3] = [
        (&[10], ["10.1.0.9", "2001:db8:1::9"], ["10.1.0.1", "2001:db8:1::1"]),
        (&[], ["10.1.1.9", "2001:db8:2::9"], ["10.1.1.1", "2001:db8:2::1"]),
        (&[200, 7], ["10.1.2.9", "2001:db8:3::9"], ["10.1.2.1", "2001:db8:3::1"]),
    ];
    for (vlans, addresses, own) in links {
        let host = lab.host("lan", vlans, 9);
        for (address, own) in addresses.into_iter().zip(own) {
            lab.meet(&host, address, own);
            // Also the address of another interface, and one that lies on the other side.
            let others = if own.contains(':') {
                [own, "2001:db8:2::1", "2001:db8:ff::1"]
            } else {
                [own, "10.1.1.1", "192.0.2.1"]
            };
            for target in others {
                let request = ping(address, target, 7).tos(0x20);
                lab.from(&host, &request.bytes());
                let reply = Ip::read(&lab.one(&host));
                let mut expected = request.readdressed(target, address);
                expected.payload = ping(target, address, 7).payload;
                expected.payload[0] = if own.contains(':') { 129 } else { 0 };
                expected.payload[2..4].fill(0);
                let expected = expected.readdressed(target, address);
                assert_eq!(reply.bytes(), expected.bytes(), "{address} pings {target}");
            }
        }
    }
}

#[test]
fn a_priority_tag_is_no_vlan_and_other_tags_are_nobodys() {
    let mut lab = Lab::new(CONFIG);
    let host = lab.host("lan", &[], 9);
    lab.meet(&host, "10.1.1.9", "10.1.1.1");
    let priority = Host { tags: vec![(CUSTOMER, 5 << 13)], ..host.clone() };
    lab.from(&priority, &ping("10.1.1.9", "10.1.1.1", 1).bytes());
    assert_eq!(lab.packets(&host).len(), 1);
    // Priority bits of a VLAN tag are not part of its number.
    let lan = lab.host("lan", &[10], 8);
    lab.meet(&lan, "10.1.0.8", "10.1.0.1");
    let urgent = Host { tags: vec![(CUSTOMER, 7 << 13 | 1 << 12 | 10)], ..lan.clone() };
    lab.from(&urgent, &ping("10.1.0.8", "10.1.0.1", 1).bytes());
    assert_eq!(lab.packets(&lan).len(), 1);
    for tags in [
        vec![(CUSTOMER, 11)],
        vec![(SERVICE, 10)],
        vec![(SERVICE, 200)],
        vec![(CUSTOMER, 200), (CUSTOMER, 7)],
        vec![(SERVICE, 200), (CUSTOMER, 8)],
        vec![(SERVICE, 200), (SERVICE, 7)],
    ] {
        lab.from(&Host { tags: tags.clone(), ..host.clone() }, &ping("10.1.1.9", "10.1.1.1", 1).bytes());
        assert_eq!(lab.dropped(), [("unknown-vlan", 1)], "{tags:04x?}");
        assert!(lab.raw(host.port).is_empty());
    }
    let stranger = Host { gateway: [2, 9, 9, 9, 9, 9], ..host.clone() };
    lab.from(&stranger, &ping("10.1.1.9", "10.1.1.1", 1).bytes());
    assert_eq!(lab.dropped(), [("not-for-us", 1)]);
}

#[test]
fn arp_requests_are_answered_in_their_own_tags() {
    let mut lab = Lab::new(CONFIG);
    for (vlans, own, asker) in [
        (&[10_u16][..], "10.1.0.1", "10.1.0.9"),
        (&[], "10.1.1.1", "10.1.1.9"),
        (&[200, 7], "10.1.2.1", "10.1.2.9"),
    ] {
        let mut host = lab.host("lan", vlans, 9);
        // The priority of the question is that of the answer.
        if let Some((_, tci)) = host.tags.first_mut() {
            *tci |= 6 << 13;
        }
        for sender in [asker, "0.0.0.0"] {
            let request = arp(1, (host.mac, sender), ([0; 6], own));
            lab.send(host.port, &frame(BROADCAST, host.mac, &host.tags, ARP, &request));
            let answers = lab.frames(&host);
            let expected = arp(2, (host.gateway, own), (host.mac, sender));
            assert_eq!(answers.len(), 1, "{sender} asks for {own}");
            assert_eq!(
                (&answers[0].payload, answers[0].dst, &answers[0].tags),
                (&expected, host.mac, &host.tags)
            );
        }
    }
    let host = lab.host("lan", &[10], 9);
    for (target, what) in [("10.1.0.77", "another host"), ("10.1.1.1", "an address of another link")] {
        let request = arp(1, (host.mac, "10.1.0.9"), ([0; 6], target));
        lab.send(host.port, &frame(BROADCAST, host.mac, &host.tags, ARP, &request));
        assert_eq!(lab.dropped(), [("arp-not-for-us", 1)], "{what}");
    }
    for bad in [&arp(1, (host.mac, "10.1.0.9"), ([0; 6], "10.1.0.1"))[..27], &[0; 28], &[]] {
        lab.send(host.port, &frame(BROADCAST, host.mac, &host.tags, ARP, bad));
        assert_eq!(lab.dropped(), [("arp-malformed", 1)]);
    }
    assert!(lab.raw(host.port).is_empty());
}

#[test]
fn gratuitous_arp_moves_a_known_neighbour_and_adds_none() {
    let mut lab = Lab::new(CONFIG);
    let (host, moved) = (lab.host("lan", &[10], 9), lab.host("lan", &[10], 0x99));
    let peer = lab.host("wan", &[100], 2);
    lab.meet(&peer, "192.0.2.2", "192.0.2.1");
    lab.meet(&host, "10.1.0.9", "10.1.0.1");
    let packet = udp("10.9.0.1", "10.1.0.9", (1, 2), b"hello");
    lab.from(&peer, &packet.bytes());
    assert_eq!(lab.packets(&host), [packet.forwarded()]);
    for operation in [1, 2] {
        let to = if operation == 1 { &moved } else { &host };
        let gratuitous = arp(operation, (to.mac, "10.1.0.9"), ([0; 6], "10.1.0.9"));
        lab.send(host.port, &frame(BROADCAST, to.mac, &host.tags, ARP, &gratuitous));
        lab.from(&peer, &packet.bytes());
        assert_eq!(lab.packets(to), [packet.forwarded()], "operation {operation}");
    }
    // Of one that nobody asked for, nothing is kept: it is asked for when a packet goes there.
    let other = lab.host("lan", &[10], 0x55);
    let gratuitous = arp(2, (other.mac, "10.1.0.55"), (other.mac, "10.1.0.55"));
    lab.send(host.port, &frame(BROADCAST, other.mac, &host.tags, ARP, &gratuitous));
    lab.from(&peer, &udp("10.9.0.1", "10.1.0.55", (1, 2), b"hello").bytes());
    let asked = lab.frames(&other);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].ether_type, asked[0].dst), (ARP, BROADCAST));
}

#[test]
fn a_host_with_our_address_is_told_so_at_most_every_ten_seconds() {
    let mut lab = Lab::new(CONFIG);
    let host = lab.host("lan", &[10], 9);
    let claim =
        frame(BROADCAST, host.mac, &host.tags, ARP, &arp(1, (host.mac, "10.1.0.1"), ([0; 6], "10.1.0.1")));
    let mut defences = 0;
    for _ in 0..12 {
        lab.send(host.port, &claim);
        assert_eq!(lab.dropped(), [("address-conflict", 1)]);
        for answer in lab.frames(&host) {
            assert_eq!(answer.payload, arp(1, (host.gateway, "10.1.0.1"), ([0; 6], "10.1.0.1")));
            assert_eq!(answer.dst, BROADCAST);
            defences += 1;
        }
        lab.pass(Duration::from_secs(1));
    }
    assert_eq!(defences, 2);
    // The same in IPv6: an advertisement of our address.
    let claim = discovery(136, 0x20, "2001:db8:1::1", Some(host.mac), "2001:db8:1::1", "ff02::1");
    let to = [0x33, 0x33, 0, 0, 0, 1];
    lab.send(host.port, &frame(to, host.mac, &host.tags, IPV6, &claim.bytes()));
    assert_eq!(lab.dropped(), [("address-conflict", 1)]);
    assert_eq!(lab.frames(&host).len(), 1);
}

#[test]
fn packets_wait_for_their_neighbour_and_leave_in_order() {
    let mut lab = Lab::new(CONFIG);
    let peer = lab.neighbour("wan", &[100], 2, &forward::ROUTER);
    let host = lab.host("lan", &[10], 9);
    let packets: Vec<_> = (0..17).map(|n| udp("10.9.0.1", "10.1.0.9", (n, 2), b"hello")).collect();
    packets.iter().for_each(|packet| lab.from(&peer, &packet.bytes()));
    assert_eq!(lab.dropped(), [("neighbour-queue-full", 1)]);
    let asked = lab.frames(&host);
    assert_eq!(asked.len(), 1, "one question for all");
    assert_eq!(asked[0].payload, arp(1, (host.gateway, "10.1.0.1"), ([0; 6], "10.1.0.9")));
    let reply = arp(2, (host.mac, "10.1.0.9"), (host.gateway, "10.1.0.1"));
    lab.send(host.port, &frame(host.gateway, host.mac, &host.tags, ARP, &reply));
    let expected: Vec<_> = packets[..16].iter().map(Ip::forwarded).collect();
    assert_eq!(lab.packets(&host), expected);

    let packet = udp("2001:db8:9::1", "2001:db8:1::9", (1, 2), b"hello");
    lab.from(&peer, &packet.bytes());
    let asked = lab.frames(&host);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].dst, [0x33, 0x33, 0xff, 0, 0, 9]);
    let source = Some(host.gateway);
    let expected = discovery(135, 0, "2001:db8:1::9", source, "2001:db8:1::1", "ff02::1:ff00:9");
    assert_eq!(Ip::read(&asked[0].payload).bytes(), expected.bytes());
    let reply = discovery(136, 0x60, "2001:db8:1::9", Some(host.mac), "2001:db8:1::9", "2001:db8:1::1");
    lab.from(&host, &reply.bytes());
    assert_eq!(lab.packets(&host), [packet.forwarded()]);
}

#[test]
fn who_does_not_answer_is_asked_three_times_and_then_unreachable() {
    let mut lab = Lab::new(CONFIG);
    let peer = lab.neighbour("wan", &[100], 2, &forward::ROUTER);
    let host = lab.host("lan", &[10], 9);
    for (packet, kind, code, own) in [
        (udp("10.9.0.1", "10.1.0.9", (1, 2), b"hello"), 3, 1, "192.0.2.1"),
        (udp("2001:db8:ff::2", "2001:db8:1::9", (1, 2), b"hello"), 1, 3, "2001:db8:ff::1"),
    ] {
        lab.from(&peer, &packet.bytes());
        lab.pass(Duration::from_secs(5));
        assert_eq!(lab.frames(&host).len(), 3);
        let error = icmp_error(&lab.packets(&peer).remove(0));
        assert_eq!((error.kind, error.code, error.from.as_str()), (kind, code, own));
        assert_eq!(error.to, packet.src.to_string());
        assert_eq!(error.quote, packet.forwarded());
        assert_eq!(lab.dropped(), [("neighbour-unreachable", 1)]);
    }
}

#[test]
fn a_router_that_goes_silent_is_asked_then_given_up_and_found_again_elsewhere() {
    for (us, them, host_at, router_at, far) in [
        ("10.1.0.1", "10.1.0.9", "192.0.2.1", "192.0.2.2", "10.9.0.1"),
        ("2001:db8:1::1", "2001:db8:1::9", "2001:db8:ff::1", "2001:db8:ff::2", "2001:db8:9::1"),
    ] {
        // The route pins its next hop.
        let route = "[[gateway.g.route]]\nto = \"2001:db8:9::/48\"\nvia = \"2001:db8:ff::2\"\n";
        let mut lab = Lab::new(&format!("{CONFIG}{route}"));
        let (host, router) = (lab.host("lan", &[10], 9), lab.host("wan", &[100], 2));
        lab.meet(&router, router_at, host_at);
        // While nobody uses it, it is not asked, and its address holds.
        lab.pass(Duration::from_secs(700));
        assert!(lab.raw(router.port).is_empty());
        lab.meet(&host, them, us);
        let packet = udp(them, far, (1, 2), b"hello");
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.packets(&router), [packet.forwarded()]);
        let mut asked = Vec::new();
        let mut lost = 0;
        for _ in 0..60 {
            lab.from(&host, &packet.bytes());
            lab.pass(Duration::from_millis(500));
            let (arp, rest): (Vec<_>, Vec<_>) = lab
                .frames(&router)
                .into_iter()
                .partition(|frame| frame.ether_type == ARP || Ip::read(&frame.payload).proto == ICMPV6);
            asked.extend(arp.iter().map(|frame| frame.dst == router.mac));
            // The host, which is asked as well since it is in use, answers; it has been told what became of its packets.
            lab.raw(host.port);
            lab.meet(&host, them, us);
            if rest.is_empty() {
                lost += 1;
            }
        }
        assert_eq!(asked[..3], [true, true, false], "twice itself, then all");
        assert!(asked[3..].iter().all(|itself| !itself), "its address is not used any more");
        assert!((20..60).contains(&lost), "{lost} packets went nowhere");
        assert!(lab.drops(DropReason::NeighbourUnreachable) > 0);
        // Another takes over the router's address, when nothing waits for it any more: the route leads there.
        lab.pass(Duration::from_secs(10));
        lab.raw(router.port);
        let other = Host { mac: [2, 0, 0, 0, 0xee, 0x77], ..router.clone() };
        lab.meet(&other, router_at, host_at);
        lab.raw(router.port);
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.packets(&other), [packet.forwarded()]);
    }
}

#[test]
fn what_waited_for_its_neighbour_is_not_overtaken() {
    let mut lab = Lab::new(CONFIG);
    let host = lab.neighbour("lan", &[10], 9, &[("10.1.0.9", "10.1.0.1")]);
    let router = lab.host("wan", &[100], 2);
    let packets = [b"first", b"other"].map(|text| udp("10.1.0.9", "10.9.0.1", (1, 2), text));
    lab.from(&host, &packets[0].bytes());
    assert_eq!(lab.packets(&router), [[0; 0]; 0]);
    // The round in which the router makes itself known ends; with the next comes another packet of the flow.
    let question = arp(1, (router.mac, "192.0.2.2"), ([0; 6], "192.0.2.1"));
    lab.put(router.port, &frame(BROADCAST, router.mac, &router.tags, ARP, &question));
    lab.step();
    lab.put(host.port, &host.frame(&packets[1].bytes()));
    lab.run();
    assert_eq!(lab.packets(&router), packets.map(|packet| packet.forwarded()));
}

#[test]
fn neighbour_solicitations_are_answered_and_duplicate_detection_too() {
    let mut lab = Lab::new(CONFIG);
    let host = lab.host("lan", &[10], 9);
    let group = [0x33, 0x33, 0xff, 0, 0, 1];
    let ask = |lab: &mut Lab, from: &str, mac: Option<Mac>| {
        let question = discovery(135, 0, "2001:db8:1::1", mac, from, "ff02::1:ff00:1");
        lab.send(host.port, &frame(group, host.mac, &host.tags, IPV6, &question.bytes()));
        lab.frames(&host)
    };
    let answer = |flags: u8, to: &str| {
        discovery(136, flags, "2001:db8:1::1", Some(host.gateway), "2001:db8:1::1", to).bytes()
    };
    let got = ask(&mut lab, "2001:db8:1::9", Some(host.mac));
    assert_eq!((got[0].dst, &got[0].payload), (host.mac, &answer(0xe0, "2001:db8:1::9")));
    // Without its option the sender's address is that of the frame (RFC 4861 7.2.4).
    let got = ask(&mut lab, "fe80::9", None);
    assert_eq!((got[0].dst, &got[0].payload), (host.mac, &answer(0xe0, "fe80::9")));
    let got = ask(&mut lab, "::", None);
    assert_eq!((got[0].dst, &got[0].payload), ([0x33, 0x33, 0, 0, 0, 1], &answer(0xa0, "ff02::1")));
    // For another's address, nothing; and nothing that went through a router, or is not whole.
    let other = discovery(135, 0, "2001:db8:1::5", Some(host.mac), "2001:db8:1::9", "ff02::1:ff00:5");
    lab.send(host.port, &frame([0x33, 0x33, 0xff, 0, 0, 5], host.mac, &host.tags, IPV6, &other.bytes()));
    let routed =
        discovery(135, 0, "2001:db8:1::1", Some(host.mac), "2001:db8:1::9", "ff02::1:ff00:1").ttl(254);
    lab.send(host.port, &frame(group, host.mac, &host.tags, IPV6, &routed.bytes()));
    // An address in use is not asked for from nowhere with an option (RFC 4861 7.1.1).
    assert!(ask(&mut lab, "::", Some(host.mac)).is_empty());
    assert_eq!(lab.dropped(), [("nd-malformed", 2)]);
    assert_eq!(lab.drops(DropReason::NeighbourDiscoveryConsumed), 1);
}

#[test]
fn what_nobody_serves_is_refused() {
    let mut lab = Lab::new(CONFIG);
    let host = lab.neighbour("lan", &[10], 9, &forward::HOST);
    let (us, them) = ("10.1.0.1", "10.1.0.9");
    let (us6, them6) = ("2001:db8:1::1", "2001:db8:1::9");
    for (packet, kind, code, own) in [
        (udp(them, us, (9, 53), b"?"), 3, 3, us),
        (tcp(them, us, (9, 80), b""), 3, 3, us),
        (ip(them, us, 99, b"xyz"), 3, 2, us),
        (udp(them6, us6, (9, 53), b"?"), 1, 4, us6),
        (ip(them6, us6, 99, b"xyz"), 4, 1, us6),
        // Not the address it came to, but that of the interface it came by.
        (udp(them, "192.0.2.1", (9, 53), b"?"), 3, 3, us),
    ] {
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.dropped(), [("local-unserved", 1)]);
        let error = icmp_error(&lab.one(&host));
        assert_eq!((error.kind, error.code, error.from.as_str()), (kind, code, own));
        assert_eq!(error.quote, packet.bytes());
    }
    for mut packet in [ping(them, us, 1), ping(them6, us6, 1)] {
        packet.payload[9] ^= 1;
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.dropped(), [("local-checksum", 1)]);
    }
    // An answer to nothing we asked.
    lab.from(&host, &icmp(them, us, 0, 0, [0; 4], b"x").bytes());
    assert_eq!(lab.dropped(), [("local-unserved", 1)]);
    assert!(lab.raw(host.port).is_empty());
}

#[test]
fn a_gateway_announces_its_addresses_and_asks_for_its_routers() {
    let mut lab = Lab::new(CONFIG);
    lab.announce();
    let (lan, wan) = (lab.host("lan", &[10], 9), lab.host("wan", &[100], 2));
    let frames = lab.frames(&lan);
    assert_eq!(frames[0].payload, arp(1, (lan.gateway, "10.1.0.1"), ([0; 6], "10.1.0.1")));
    let all = "ff02::1";
    let advertised = discovery(136, 0xa0, "2001:db8:1::1", Some(lan.gateway), "2001:db8:1::1", all);
    assert_eq!(Ip::read(&frames[1].payload).bytes(), advertised.bytes());
    let asked = lab.frames(&wan);
    assert!(asked.iter().any(|f| f.payload == arp(1, (wan.gateway, "192.0.2.1"), ([0; 6], "192.0.2.2"))));
    lab.pass(Duration::from_secs(5));
}
