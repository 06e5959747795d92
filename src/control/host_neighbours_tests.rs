use std::net::{Ipv4Addr, Ipv6Addr};

use smallvec::smallvec;

use super::*;
use crate::{
    stage::neighbour::{discovery_len, write_discovery},
    table::interface::{InterfaceAddress, Side},
    wire::{
        ip::IpPrefix,
        vlan::{L2Header, Tags},
    },
};

const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn interface() -> Interface {
    let header = L2Header::new(MacAddr::ZERO, OURS, Tags::None, EtherType::IPV4);
    Interface {
        port: 0,
        gateway: 0,
        side: Side::Peer,
        mac: OURS,
        mtu: 1500,
        header_v4: header,
        header_v6: header.with_ether_type(EtherType::IPV6),
        addresses: smallvec![
            InterfaceAddress { address: GATEWAY.into(), prefix_len: 24 },
            InterfaceAddress { address: "2001:db8::1".parse().unwrap(), prefix_len: 64 },
        ],
        proxied: Vec::<IpPrefix>::new(),
        watch: crate::table::probe::Watch::default(),
        host: None,
    }
}

fn arp_frame(packet: &arp::Repr) -> Vec<u8> {
    let mut frame = [MacAddr::BROADCAST.0, THEIRS.0].concat();
    frame.extend([8, 6]);
    let mut body = [0; arp::PACKET_LEN];
    packet.emit(&mut body);
    frame.extend(body);
    frame.resize(60, 0);
    frame
}

fn neighbour(address: IpAddr, claim: NeighbourClaim) -> Option<Event> {
    Some(Event::Neighbour { interface: 7, address, mac: THEIRS, claim })
}

#[test]
fn arp_is_believed_when_it_concerns_us() {
    let hear = |packet: &arp::Repr| heard(7, &interface(), &arp_frame(packet));
    let asked = arp::Repr::request(THEIRS, PEER, GATEWAY);
    assert_eq!(hear(&asked), neighbour(PEER.into(), NeighbourClaim::Asked));
    let answer = arp::Repr::request(OURS, GATEWAY, PEER).reply(THEIRS);
    assert_eq!(hear(&answer), neighbour(PEER.into(), NeighbourClaim::Answered { solicited: true }));
    let told = arp::Repr::gratuitous(THEIRS, PEER);
    assert_eq!(hear(&told), neighbour(PEER.into(), NeighbourClaim::Answered { solicited: false }));
    // Others' business; a probe without a sender; a sender that is not on the link, or no station.
    for other in [
        arp::Repr::request(THEIRS, PEER, Ipv4Addr::new(192, 0, 2, 9)),
        arp::Repr::probe(THEIRS, GATEWAY),
        arp::Repr::request(THEIRS, Ipv4Addr::new(198, 51, 100, 1), GATEWAY),
        arp::Repr::request(MacAddr::BROADCAST, PEER, GATEWAY),
    ] {
        assert_eq!(hear(&other), None, "{other:?}");
    }
    let conflict = arp::Repr::gratuitous(THEIRS, GATEWAY);
    assert_eq!(hear(&conflict), Some(Event::Conflict { interface: 7, address: GATEWAY.into(), mac: THEIRS }));
}

#[test]
fn neighbour_discovery_is_believed_when_it_concerns_us() {
    let peer: Ipv6Addr = "2001:db8::2".parse().unwrap();
    let ours: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let link = L2Header::new(OURS, THEIRS, Tags::None, EtherType::IPV6);
    let frame = |message: &Neighbour| {
        let mut frame = vec![0; discovery_len(&link, message)];
        write_discovery(&mut frame, &link, message, peer, ours, OURS).unwrap();
        frame
    };
    let hear = |message: &Neighbour| heard(7, &interface(), &frame(message));
    let answer = Neighbour::Advertisement {
        target: peer,
        target_mac: Some(THEIRS),
        router: true,
        solicited: true,
        replaces: true,
    };
    assert_eq!(hear(&answer), neighbour(peer.into(), NeighbourClaim::Answered { solicited: true }));
    let question = Neighbour::Solicitation { target: ours, source_mac: Some(THEIRS) };
    assert_eq!(hear(&question), neighbour(peer.into(), NeighbourClaim::Asked));
    let others = Neighbour::Solicitation { target: "2001:db8::9".parse().unwrap(), source_mac: Some(THEIRS) };
    assert_eq!(hear(&others), None);
    // A hop limit below 255 came through a router (RFC 4861 7.1).
    let mut routed = frame(&answer);
    routed[14 + 7] = 254;
    assert_eq!(heard(7, &interface(), &routed), None);
}

#[test]
fn no_prefix_of_a_frame_panics() {
    let whole = arp_frame(&arp::Repr::request(THEIRS, PEER, GATEWAY));
    for len in 0..HEADER_LEN + arp::PACKET_LEN {
        assert_eq!(heard(7, &interface(), &whole[..len]), None);
    }
}
