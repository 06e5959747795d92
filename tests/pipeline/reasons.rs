//! Every reason to drop a packet can happen, or it is said here why not in one thread.

use std::time::Duration;

use super::{
    common::{frame::*, *},
    forward,
};
use causeway::packet::DropReason;

/// What to do so that a packet is dropped for this reason.
enum Way {
    /// Send this frame into the port of the host of [`forward::lab`].
    Frame(Vec<u8>),
    /// See the test of this name, which checks it.
    Test(&'static str),
    /// It cannot happen here.
    Never(&'static str),
}

fn way(reason: DropReason, host: &Host) -> Way {
    use DropReason as R;
    use Way::*;
    let v4 = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = udp("10.1.0.9", "10.9.0.1", (1, 2), b"x").bytes();
        change(&mut bytes);
        Frame(host.frame(&bytes))
    };
    let to = |from: &str, to: &str| Frame(host.frame(&udp(from, to, (1, 2), b"x").bytes()));
    let raw =
        |ether_type: u16, bytes: &[u8]| Frame(frame(host.gateway, host.mac, &host.tags, ether_type, bytes));
    match reason {
        R::EthernetTruncated => Frame(vec![2; 13]),
        R::NotForUs => Frame(frame(
            [2, 2, 2, 2, 2, 2],
            host.mac,
            &host.tags,
            IPV4,
            &udp("10.1.0.9", "10.9.0.1", (1, 2), b"").bytes(),
        )),
        R::UnknownVlan => {
            Frame(frame(host.gateway, host.mac, &[], IPV4, &udp("10.1.0.9", "10.9.0.1", (1, 2), b"").bytes()))
        }
        R::UnknownEtherType => raw(0x88cc, &[0; 46]),
        R::ArpMalformed => raw(ARP, &[0; 46]),
        R::ArpNotForUs => raw(ARP, &arp(1, (host.mac, "10.1.0.9"), ([0; 6], "10.1.0.66"))),
        R::AddressConflict => raw(ARP, &arp(2, (host.mac, "10.1.0.1"), (host.mac, "10.1.0.1"))),
        R::ArpConsumed => raw(ARP, &arp(2, (host.mac, "10.1.0.9"), (host.gateway, "10.1.0.1"))),
        R::NeighbourDiscoveryConsumed => {
            let told =
                discovery(136, 0x60, "2001:db8:1::9", Some(host.mac), "2001:db8:1::9", "2001:db8:1::1");
            Frame(host.frame(&told.bytes()))
        }
        R::NeighbourDiscoveryMalformed => {
            let told =
                discovery(136, 0x60, "2001:db8:1::9", Some(host.mac), "2001:db8:1::9", "2001:db8:1::1");
            Frame(host.frame(&told.ttl(3).bytes()))
        }
        R::IpTruncated => raw(IPV4, &[0x45; 19]),
        R::IpVersion => v4(&|bytes| bytes[0] = 0x55),
        R::Ipv4HeaderLength => v4(&|bytes| bytes[0] = 0x44),
        R::IpLength => v4(&|bytes| bytes[2] = 9),
        R::Ipv4Checksum => v4(&|bytes| bytes[10] ^= 1),
        R::Ipv4Options => {
            let routed = udp("10.1.0.9", "10.9.0.1", (1, 2), b"x").options(&[131, 7, 4, 10, 9, 0, 1, 0]);
            Frame(host.frame(&routed.bytes()))
        }
        R::Ipv6ExtensionHeaders => {
            let source_route = [17, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            Frame(host.frame(&ip("2001:db8:1::9", "2001:db8:9::1", 43, &source_route).bytes()))
        }
        R::MartianSource => to("127.0.0.1", "10.9.0.1"),
        R::MartianDestination => to("10.1.0.9", "127.0.0.1"),
        R::LinkScope => to("2001:db8:1::9", "fe80::1"),
        R::Multicast => to("10.1.0.9", "224.0.0.1"),
        R::TransportTruncated => Frame(host.frame(&ip("10.1.0.9", "10.9.0.1", TCP, &[0; 19]).bytes())),
        R::TtlExpired => Frame(host.frame(&udp("10.1.0.9", "10.9.0.1", (1, 2), b"x").ttl(1).bytes())),
        R::NoRoute => to("10.1.0.9", "8.8.8.8"),
        R::NoLivePath => {
            Test("choice::where_nothing_is_up_the_sender_is_told_and_no_shorter_prefix_takes_over")
        }
        R::Blackhole => to("10.1.0.9", "10.9.6.130"),
        R::TooManyPasses => Never("a file whose gateways lead round, or through too many, is refused"),
        R::PacketTooBig => Frame(host.frame(&udp("10.1.0.9", "10.9.0.1", (1, 2), &[0; 1480]).df().bytes())),
        R::LocalUnserved => to("10.1.0.9", "10.1.0.1"),
        R::LocalChecksum => {
            let mut packet = ping("10.1.0.9", "10.1.0.1", 1);
            packet.payload[10] ^= 1;
            Frame(host.frame(&packet.bytes()))
        }
        R::GatewayLimit | R::InterfaceLimit | R::AddressLimit => {
            Test("limits::every_level_limits_each_way_and_both_ip_versions")
        }
        R::TunnelLimit => Test("limits::a_tunnel_limits_what_it_carries"),
        R::NoSa => Frame(host.frame(&ip("10.1.0.9", "10.1.0.1", ESP, &[1; 48]).bytes())),
        R::EspLength => Frame(host.frame(&ip("10.1.0.9", "10.1.0.1", ESP, &[1; 12]).bytes())),
        R::IcmpQuoteMismatch => {
            Test("../sizes_pipeline/path::errors_that_quote_what_was_not_sent_are_not_believed")
        }
        R::FragmentMalformed => {
            let part = Ip { more: true, ..ip("10.1.0.9", "10.1.0.1", ESP, &[1; 47]) };
            Frame(host.frame(&part.bytes()))
        }
        R::FragmentReassembled => {
            Test("../sizes_pipeline/reassembly::the_pieces_of_a_whole_are_counted_as_such")
        }
        R::FragmentTimeout => {
            Test("../sizes_pipeline/reassembly::a_packet_waits_for_its_pieces_as_long_as_the_standards_say")
        }
        R::FragmentOverlap => {
            Test("../sizes_pipeline/reassembly::pieces_that_overlap_are_refused_with_all_of_their_packet")
        }
        R::FragmentTooLarge => {
            Test("../sizes_pipeline/reassembly::a_packet_of_more_than_a_buffer_is_refused")
        }
        R::FragmentTableFull => {
            Test("../sizes_pipeline/reassembly::of_too_many_unfinished_packets_the_oldest_gives_way")
        }
        R::NatKeepalive => {
            let keepalive = udp("10.1.0.9", "10.1.0.1", (4500, 4500), &[0xff]);
            Frame(host.frame(&keepalive.bytes()))
        }
        R::TransitForbidden => Test("forward::peers_do_not_reach_each_other_where_transit_is_off"),
        R::PolicyDiscard | R::PolicyMismatch | R::PolicyUnprotected => Test(
            "tunnel::what_comes_out_must_fit_a_policy_and_what_must_be_protected_must_not_come_in_the_clear",
        ),
        R::FragmentationFailed => Test("a_tiny_pool_cannot_divide"),
        R::NeighbourQueueFull => Test("link::packets_wait_for_their_neighbour_and_leave_in_order"),
        R::NeighbourUnreachable => {
            Test("link::who_does_not_answer_is_asked_three_times_and_then_unreachable")
        }
        R::EspIntegrity | R::EspReplayed | R::EspLate => {
            Test("tunnel::a_packet_that_comes_again_is_dropped_and_a_late_one_is_not")
        }
        R::EspPadding | R::EspNextHeader | R::EspDummy => {
            Test("vectors::every_set_of_packets_is_opened_or_refused_as_it_says")
        }
        R::EspExpired => Test("tunnel::an_association_whose_lifetime_is_over_stops"),
        R::EspOuterMismatch => Test("tunnel::esp_of_another_place_or_shape_is_refused"),
        R::EcnContradiction => Test("tunnel::congestion_and_priority_show_outside_and_come_back_in"),
        R::NatUntranslatable => Test("nat::a_quote_that_is_cut_too_short_is_not_passed_on"),
        R::NatNoSession => Test("nat_sessions::only_who_was_talked_to_may_answer"),
        R::NatTableFull | R::NatSourceLimit => {
            Test("nat_sessions::one_host_and_one_gateway_have_their_limits")
        }
        R::NatPortsExhausted => {
            Test("nat_sessions::a_port_serves_many_remote_ends_and_when_none_is_free_it_is_said")
        }
        R::NatConflict => Test("nat_sessions::peers_reach_a_mapped_service"),
        R::NatFragmentsFull | R::NatFragmentTimeout => {
            Test("nat_sessions::fragments_wait_for_the_first_one_not_long_and_not_many")
        }
        R::NatHandoverFull => Never("a gateway in one thread has no other worker; see the tests of several"),
        R::TunnelDown => Test("a_tunnel_without_a_way_is_down"),
        R::TxFull | R::Shutdown => Test("what_a_full_wire_does_not_take_waits_and_is_counted"),
        R::NoBuffer => {
            Never("a frame has headroom for every header; only a reply of the control thread needs a buffer")
        }
        R::SequenceExhausted => Never("2^32 packets; the unit tests of sequence numbers end one"),
        R::NeighbourEventsFull => Never("control takes up events after every round, and no round makes 4096"),
        R::NeighbourTableFull => Never("what finds no place in the table waits, and is unreachable"),
        R::LocalConsumed => Test("../sizes_pipeline/path::a_smaller_path_is_learned_and_senders_are_told"),
        R::BfdRefused => Test("health::a_probe_from_afar_or_damaged_is_refused_on_a_line"),
        R::HostQueueFull => Never("a gateway in one thread has no host"),
        R::PortDown => Never("a wire in memory is never down"),
        R::InjectedFault => Never("no faults are injected here; see the tests of io::fault"),
    }
}

#[test]
fn every_reason_has_a_way_to_happen() {
    for &reason in DropReason::ALL {
        let (mut lab, host, _) = forward::lab();
        match way(reason, &host) {
            Way::Frame(bytes) => {
                let before = lab.drops(reason);
                lab.send(host.port, &bytes);
                assert_eq!(lab.drops(reason), before + 1, "{reason:?}; {:?}", lab.dropped());
            }
            Way::Test(name) => {
                let (file, function) = name.rsplit_once("::").unwrap_or(("reasons", name));
                let path = format!("{}/tests/pipeline/{file}.rs", env!("CARGO_MANIFEST_DIR"));
                let text = std::fs::read_to_string(path).unwrap();
                let found = text.contains(&format!("fn {function}()"));
                let named = text.contains(reason.name()) || text.contains(&format!("{reason:?}"));
                assert!(found && named, "{name} does not show {reason:?}");
            }
            Way::Never(why) => {
                assert!(why.len() > 20);
            }
        }
    }
}

#[test]
fn a_tiny_pool_cannot_divide() {
    let mut lab = Lab::new(&[&system(256), forward::CONFIG].concat());
    let host = lab.host("lan", &[10], 9);
    lab.meet(&host, "10.1.0.9", "10.1.0.1");
    // 255 packets wait for neighbours that do not answer and hold the buffers.
    for n in 0..255_u32 {
        lab.from(&host, &udp("10.1.0.9", &format!("10.20.0.{}", 2 + n / 16), (n as u16, 2), b"x").bytes());
    }
    lab.raw(host.port);
    lab.raw(1);
    lab.dropped();
    let large = udp("10.1.0.9", "10.9.0.1", (1, 2), &[0; 1480]);
    lab.from(&host, &large.bytes());
    assert_eq!(lab.dropped(), [("fragmentation-failed", 1)]);
    lab.pass(Duration::from_secs(4));
}

#[test]
fn a_tunnel_without_a_way_is_down() {
    let mut lab = Lab::new(
        r#"
[gateway.g]
prefixes = ["10.1.0.0/16"]
[interface.lan]
port = "lan"
gateway = "g"
side = "local"
addresses = ["10.1.0.1/24"]
[tunnel.t]
gateway = "g"
local = "10.1.0.1"
remote = "198.51.100.1"
out = { spi = 0x1001, key = { env = "A" } }
in = [{ spi = 0x2001, key = { env = "B" } }]
[[gateway.g.route]]
to = "10.2.0.0/16"
tunnel = "t"
[[gateway.g.route]]
to = "198.51.100.0/24"
blackhole = true
"#,
    );
    let host = lab.host("lan", &[], 9);
    lab.meet(&host, "10.1.0.9", "10.1.0.1");
    lab.from(&host, &udp("10.1.0.9", "10.2.0.9", (1, 2), b"x").bytes());
    assert_eq!(lab.dropped(), [("tunnel-down", 1)]);
}

#[test]
fn what_a_full_wire_does_not_take_waits_and_is_counted() {
    let (mut lab, host, routers) = forward::lab();
    // The wire holds 1024 frames and the queue before it 128; nobody takes them off.
    for n in 0..1300 {
        lab.from(&host, &udp("10.1.0.9", "10.9.0.1", (n, 2), b"x").bytes());
    }
    let (tx_full, ledger) = (lab.drops(DropReason::TxFull), lab.single.worker.ledger());
    assert!(tx_full > 0 && ledger.waiting > 0, "{tx_full} lost, {ledger:?}");
    assert_eq!(tx_full + ledger.waiting, 1300 - 1024);
    // Half of what waits gets out; at the end the rest is counted.
    lab.single.worker.end(2_000_000_000);
    assert_eq!(lab.drops(DropReason::Shutdown), ledger.waiting);
    assert_eq!(lab.raw(routers[0].port).len(), 1024);
}
