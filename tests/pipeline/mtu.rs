//! Packets that do not fit: fragments, or an error with the right size.

use std::collections::BTreeMap;

use super::{
    common::{frame::*, *},
    forward, icmp_error,
};

const CONFIG: &str = r#"
[gateway.g]
prefixes = ["10.1.0.0/16"]
[interface.lan]
port = "lan"
vlan = 10
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
[interface.wan]
port = "wan"
vlan = 100
gateway = "g"
side = "peer"
mtu = 1300
addresses = ["192.0.2.1/30", "2001:db8:ff::1/64"]
[[gateway.g.route]]
to = "10.9.0.0/16"
via = "192.0.2.2"
[[gateway.g.route]]
to = "2001:db8:9::/48"
via = "2001:db8:ff::2"
"#;

fn lab(text: &str) -> (Lab, Host, Host) {
    let mut lab = Lab::new(text);
    let host = lab.neighbour("lan", &[10], 9, &forward::HOST);
    let router = lab.neighbour("wan", &[100], 2, &forward::ROUTER);
    (lab, host, router)
}

/// Puts fragments together; every one must be of the same packet, and none overlap or leave a hole.
pub fn reassemble(fragments: &[Vec<u8>]) -> Ip {
    let mut parts = BTreeMap::new();
    for fragment in fragments {
        let fragment = Ip::read(fragment);
        assert!(parts.insert(fragment.offset, fragment).is_none(), "two fragments of one place");
    }
    let last = parts.len() - 1;
    let first = parts.values().next().unwrap().clone();
    let mut whole = Ip { payload: Vec::new(), ..first.clone() };
    for (number, (offset, part)) in parts.into_iter().enumerate() {
        assert_eq!(usize::from(offset), usize::from(first.offset) + whole.payload.len(), "a hole");
        assert!(part.more || number == last, "the end before the last fragment");
        whole.more = part.more;
        assert_eq!((part.id, part.src, part.dst, part.proto), (whole.id, whole.src, whole.dst, whole.proto));
        assert_eq!((part.ttl, part.tos), (whole.ttl, whole.tos));
        whole.payload.extend_from_slice(&part.payload);
    }
    whole
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn a_packet_that_may_not_be_divided_is_sent_back_with_the_size_that_fits() {
    let (mut lab, host, router) = lab(CONFIG);
    for (packet, kind, code, own) in [
        (udp("10.1.0.9", "10.9.0.1", (5, 6), &data(1273)).df(), 3, 4, "10.1.0.1"),
        (udp("2001:db8:1::9", "2001:db8:9::1", (5, 6), &data(1253)), 2, 0, "2001:db8:1::1"),
    ] {
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.dropped(), [("packet-too-big", 1)]);
        let error = icmp_error(&lab.one(&host));
        assert_eq!((error.kind, error.code, error.word, error.from.as_str()), (kind, code, 1300, own));
        assert!(packet.forwarded().starts_with(&error.quote));
    }
    for packet in [
        udp("10.1.0.9", "10.9.0.1", (5, 6), &data(1272)).df(),
        udp("2001:db8:1::9", "2001:db8:9::1", (5, 6), &data(1252)),
    ] {
        lab.from(&host, &packet.bytes());
        assert_eq!(lab.packets(&router), [packet.forwarded()]);
    }
}

#[test]
fn fragments_make_the_packet_again() {
    let (mut lab, host, router) = lab(CONFIG);
    for len in [1273, 1280, 1281, 1400, 1472] {
        for options in
            [&[][..], &[148, 4, 0, 0], &[7, 7, 4, 0, 0, 0, 0, 0], &[148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0]]
        {
            if len + options.len() > 1472 {
                continue;
            }
            let packet = udp("10.1.0.9", "10.9.0.1", (5, 6), &data(len)).options(options).tos(0x28);
            lab.from(&host, &packet.bytes());
            let fragments = lab.packets(&router);
            assert!(fragments.iter().all(|f| f.len() <= 1300), "{len}");
            assert_eq!(fragments.len(), 2);
            assert_eq!(reassemble(&fragments).bytes(), packet.forwarded());
            // The first has all options, the others those that are to be copied (RFC 791 3.1).
            let later = Ip::read(&fragments[1]);
            assert_eq!(Ip::read(&fragments[0]).options, options);
            assert_eq!(later.options, if options.first() == Some(&148) { &options[..4] } else { &[][..] });
        }
    }
}

#[test]
fn small_mtus_make_many_fragments_and_fragments_are_divided_again() {
    let (mut lab, host, router) = lab(&CONFIG.replace("mtu = 1300", "mtu = 576"));
    let packet = udp("10.1.0.9", "10.9.0.1", (5, 6), &data(1472));
    lab.from(&host, &packet.bytes());
    let fragments = lab.packets(&router);
    assert_eq!(fragments.len(), 3);
    assert_eq!(reassemble(&fragments).bytes(), packet.forwarded());
    for more in [true, false] {
        let mut middle = ip("10.1.0.9", "10.9.0.1", UDP, &data(1200));
        (middle.offset, middle.more) = (8000, more);
        lab.from(&host, &middle.bytes());
        let fragments = lab.packets(&router);
        assert_eq!(fragments.len(), 3);
        let whole = reassemble(&fragments);
        assert_eq!(whole.payload, middle.payload);
        assert_eq!(whole.offset, 8000);
        assert_eq!(Ip::read(fragments.last().unwrap()).more, more);
    }
    assert_eq!(lab.dropped(), []);
}

#[test]
fn a_full_burst_of_packets_that_must_be_divided_loses_none_unseen() {
    let (mut lab, host, router) = lab(&CONFIG.replace("mtu = 1300", "mtu = 576"));
    // The wire first, then one round for all of them.
    for n in 0..64 {
        let frame = host.frame(&udp("10.1.0.9", "10.9.0.1", (n, 6), &data(1472)).bytes());
        lab.put(host.port, &frame);
    }
    lab.run();
    let sent = lab.packets(&router).len() as u64;
    let lost = lab.dropped();
    let failed = lost.first().map_or(0, |(_, n)| *n);
    assert_eq!(sent, (64 - failed) * 3, "{lost:?}");
    assert!(failed == 0 || lost[0].0 == "fragmentation-failed", "{lost:?}");
}
