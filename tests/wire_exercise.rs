//! Hostile bytes against every header view: what the fuzz target runs, on stable and in every test run.
//!
//! Random bytes seldom get past the first check, so most cases start from a good frame, and spoil it.

use causeway::wire::checksum::Sum;
use causeway::wire::ethernet::{EtherType, MacAddr};
use causeway::wire::fuzz::exercise;
use causeway::wire::ip::protocol;
use causeway::wire::vlan::{L2Header, Tag, TagKind, Tags};
use causeway::wire::{arp, icmpv4, icmpv6, ipv4, ipv6, tcp, udp};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const DESTINATION_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const DESTINATION_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

fn frame(tags: Tags, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = L2Header::new(MacAddr([2; 6]), MacAddr([4; 6]), tags, ether_type);
    [header.as_bytes(), payload].concat()
}

fn ipv4_packet(protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    ipv4::Repr {
        traffic_class: 0,
        total_len: (20 + options.len() + payload.len()) as u16,
        identification: 7,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        protocol,
        source: SOURCE_V4,
        destination: DESTINATION_V4,
    }
    .emit(&mut header);
    header[0] += (options.len() / 4) as u8;
    header[10..12].copy_from_slice(&[0, 0]);
    let checksum = Sum::of_slices(&[&header, options]).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&header[..], options, payload].concat()
}

fn ipv6_packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 40];
    ipv6::Repr {
        traffic_class: 0,
        flow_label: 1,
        payload_len: payload.len() as u16,
        next_header,
        hop_limit: 255,
        source: SOURCE_V6,
        destination: DESTINATION_V6,
    }
    .emit(&mut header);
    [&header[..], payload].concat()
}

fn tcp_syn() -> Vec<u8> {
    let mut header = tcp::Tcp::new([0; 20]);
    header.set_data_offset(8 << 4);
    header.set_flags(tcp::Flags::SYN);
    [&header.bytes()[..], &[1, 2, 4, 5, 0xb4, 3, 3, 7, 4, 2, 0, 0]].concat()
}

fn udp_with(payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 8];
    let length = (8 + payload.len()) as u16;
    udp::Repr { source_port: 4500, destination_port: 4500, length }.emit(&mut header);
    [&header[..], payload].concat()
}

/// Good frames of every kind the views know.
fn seeds() -> Vec<Vec<u8>> {
    let tag = |kind, tci| Tag { kind, tci };
    let two = Tags::Two(tag(TagKind::Service, 100), tag(TagKind::Customer, 0xe007));
    let one = Tags::One(tag(TagKind::Customer, 5));

    let mut arp_bytes = [0; 28];
    arp::Repr::request(MacAddr([4; 6]), SOURCE_V4, DESTINATION_V4).emit(&mut arp_bytes);

    let esp = [[0, 0, 0x10, 0, 0, 0, 0, 1], [9; 8], [1, 2, 3, 4, 5, 6, 7, 8]].concat();
    let quoted_v4 = ipv4_packet(protocol::UDP, &[], &udp_with(b"quoted"));
    let mut error_v4 = [&[0; 8][..], &quoted_v4].concat();
    icmpv4::Repr::FragmentationNeeded { mtu: 1400 }.emit(&mut error_v4).unwrap();

    let quoted_v6 = ipv6_packet(protocol::TCP, &tcp_syn());
    let mut error_v6 = [&[0; 8][..], &quoted_v6].concat();
    icmpv6::Repr::PacketTooBig { mtu: 1280 }.emit(&mut error_v6, SOURCE_V6, DESTINATION_V6).unwrap();

    let mut neighbour = [0; 32];
    let mac = Some(MacAddr([4; 6]));
    icmpv6::Neighbour::Solicitation { target: DESTINATION_V6, source_mac: mac }
        .emit(&mut neighbour, SOURCE_V6, DESTINATION_V6)
        .unwrap();

    let options = [0u8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let hop_by_hop = [&[protocol::FRAGMENT][..], &options[1..]].concat();
    let fragment = [protocol::UDP, 0, 0, 1, 0, 0, 0, 9];
    let chain = [&hop_by_hop[..], &fragment, &udp_with(b"data")].concat();

    vec![
        frame(one, EtherType::ARP, &arp_bytes),
        frame(two, EtherType::IPV4, &ipv4_packet(protocol::TCP, &[148, 4, 0, 0], &tcp_syn())),
        frame(Tags::None, EtherType::IPV4, &ipv4_packet(protocol::UDP, &[], &udp_with(&esp))),
        frame(Tags::None, EtherType::IPV4, &ipv4_packet(protocol::ESP, &[], &esp)),
        frame(one, EtherType::IPV4, &ipv4_packet(protocol::ICMPV4, &[], &error_v4)),
        frame(one, EtherType::IPV6, &ipv6_packet(protocol::ICMPV6, &error_v6)),
        frame(two, EtherType::IPV6, &ipv6_packet(protocol::ICMPV6, &neighbour)),
        frame(Tags::None, EtherType::IPV6, &ipv6_packet(protocol::HOP_BY_HOP, &chain)),
    ]
}

/// The seeds are what they are meant to be: otherwise the cases below reach less than they seem to.
#[test]
fn seeds_are_good() {
    let seeds = seeds();
    for seed in &seeds {
        exercise(seed);
    }
    let at = |seed: usize, l2: usize| &seeds[seed][l2..];
    assert!(arp::Repr::parse(at(0, 18)).is_ok());
    let tcp_in_v4 = ipv4::parse(at(1, 22)).unwrap();
    assert!(ipv4::summarise_options(tcp_in_v4.options).unwrap().router_alert);
    assert_eq!(tcp::parse(tcp_in_v4.payload).unwrap().mss(), Some(1460));
    assert!(udp::parse(ipv4::parse(at(2, 14)).unwrap().payload).is_ok());
    let error = icmpv4::parse(ipv4::parse(at(4, 18)).unwrap().payload).unwrap();
    assert_eq!(icmpv4::quoted(error.body).unwrap().payload.len(), 14);
    let error = ipv6::parse(at(5, 18)).unwrap().payload;
    let error = icmpv6::parse(error, SOURCE_V6, DESTINATION_V6).unwrap();
    assert_eq!(icmpv6::quoted(error.body).unwrap().walk.protocol, protocol::TCP);
    let solicitation = ipv6::parse(at(6, 22)).unwrap().payload;
    assert!(icmpv6::Neighbour::parse(solicitation, SOURCE_V6, DESTINATION_V6, 255).is_ok());
    let walk = ipv6::parse(at(7, 14)).unwrap().walk().unwrap();
    assert_eq!((walk.protocol, walk.offset, walk.hop_by_hop), (protocol::UDP, 64, true));
}

/// Every prefix of every seed, and every byte of it set to each of the values that matter most.
#[test]
fn truncated_and_spoilt_frames() {
    for seed in seeds() {
        for len in 0..seed.len() {
            exercise(&seed[..len]);
            exercise(&seed[len..]);
        }
        for at in 0..seed.len() {
            for value in [0, 1, 2, 4, 0x0f, 0x40, 0x44, 0x4f, 0x7f, 0x80, 0xff] {
                let mut spoilt = seed.clone();
                spoilt[at] = value;
                exercise(&spoilt);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(&bytes);
    }

    #[test]
    fn arbitrary_changes(
        seed in prop::sample::select(seeds()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = seed;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        bytes.extend(tail);
        exercise(&bytes);
    }

    #[test]
    fn text(text in "[0-9a-f:./]{0,30}") {
        exercise(text.as_bytes());
    }
}
