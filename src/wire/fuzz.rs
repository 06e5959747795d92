//! Every view over arbitrary bytes: called by the fuzz target and by the tests, so that both walk the same.

use super::checksum::{Delta, Sum};
use super::{arp, bfd, esp, ethernet, flow, icmpv4, icmpv6, ip, ipv4, ipv6, tcp, udp, vlan};
use std::hint::black_box;
use std::net::Ipv6Addr;

/// Reads `bytes` as every header there is, and as a frame of nested ones. Panics when an invariant breaks, which
/// is what a fuzzer looks for; otherwise it has no effect.
pub fn exercise(bytes: &[u8]) {
    frame(bytes);
    ipv4_packet(bytes);
    ipv6_packet(bytes);
    for protocol in
        [ip::protocol::ICMPV4, ip::protocol::TCP, ip::protocol::UDP, ip::protocol::ESP, ip::protocol::ICMPV6]
    {
        layer_4(protocol, bytes);
    }
    options(bytes);
    checksums(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        text_forms(text);
    }
}

fn frame(bytes: &[u8]) {
    let Ok(l2) = vlan::L2::parse(bytes) else { return };
    let template = vlan::L2Header::new(l2.destination, l2.source, l2.tags, l2.ether_type);
    assert_eq!(bytes.get(..l2.header_len()), Some(template.as_bytes()), "layer 2 is what was parsed");
    let payload = bytes.get(l2.header_len()..).unwrap_or(&[]);
    match l2.ether_type {
        ethernet::EtherType::ARP => {
            if let Ok(repr) = arp::Repr::parse(payload) {
                let mut again = [0; arp::PACKET_LEN];
                repr.emit(&mut again);
                assert_eq!(payload.get(..arp::PACKET_LEN), Some(&again[..]), "ARP is what was parsed");
            }
        }
        ethernet::EtherType::IPV4 => ipv4_packet(payload),
        ethernet::EtherType::IPV6 => ipv6_packet(payload),
        _ => {}
    }
}

fn ipv4_packet(bytes: &[u8]) {
    let lengths = ipv4::parse_lengths(bytes);
    let Ok(packet) = lengths else {
        assert!(ipv4::parse(bytes).is_err(), "a bad length stays bad");
        return;
    };
    let parts = ipv4::HEADER_LEN + packet.options.len() + packet.payload.len();
    assert_eq!(parts, usize::from(packet.header.total_len()), "the parts are the whole");
    _ = black_box(ipv4::summarise_options(packet.options));
    if packet.options.is_empty() && ipv4::parse(bytes).is_ok() {
        let mut again = ipv4::Ipv4::new([0; ipv4::HEADER_LEN]);
        ipv4::Repr::parse(&packet.header).emit(again.bytes_mut());
        // The reserved flag is the one bit a `Repr` does not keep.
        if packet.header.flags_offset() & 0x8000 == 0 {
            assert_eq!(again.bytes(), packet.header.bytes(), "IPv4 is what was parsed");
        }
        again.decrement_ttl();
        assert!(Sum::of_header(again.bytes()).is_valid(), "the checksum follows the TTL");
    }
    _ = black_box((
        ipv4::is_martian_source(packet.header.source()),
        ipv4::is_link_scope(packet.header.source()),
    ));
    if packet.header.fragment_offset() == 0 {
        layer_4(packet.header.protocol(), packet.payload);
    }
}

fn ipv6_packet(bytes: &[u8]) {
    let Ok(packet) = ipv6::parse(bytes) else { return };
    let mut again = [0; ipv6::HEADER_LEN];
    ipv6::Repr::parse(&packet.header).emit(&mut again);
    assert_eq!(&again, packet.header.bytes(), "IPv6 is what was parsed");
    let (source, destination) = (packet.header.source(), packet.header.destination());
    assert!(ipv6::solicited_node(source).is_multicast());
    _ = black_box((ipv6::is_martian_source(source), ipv6::is_link_scope(destination)));
    let Ok(walk) = packet.walk() else { return };
    assert!(walk.named_at < walk.offset, "a header is named before it starts");
    let l4 = bytes.get(usize::from(walk.offset)..ipv6::HEADER_LEN + packet.payload.len());
    let l4 = l4.unwrap_or_else(|| unreachable!("layer 4 starts within the packet"));
    if walk.fragment.is_none_or(|fragment| fragment.offset == 0) {
        layer_4(walk.protocol, l4);
        if walk.protocol == ip::protocol::ICMPV6 {
            _ = black_box(icmpv6::parse(l4, source, destination).is_ok());
            neighbour(l4, source, destination, packet.header.hop_limit());
        }
    }
}

fn layer_4(protocol: u8, bytes: &[u8]) {
    _ = black_box(flow::L4::parse(protocol, bytes).map(flow::L4::reversed));
    match protocol {
        ip::protocol::UDP => {
            let Ok(datagram) = udp::parse(bytes) else { return };
            assert_eq!(udp::HEADER_LEN + datagram.payload.len(), usize::from(datagram.header.length()));
            _ = black_box(datagram.is_checksum_valid(Sum::ZERO));
            bfd_packet(datagram.payload);
            if let esp::Encapsulated::Esp(packet) = esp::classify(datagram.payload) {
                _ = black_box(esp::Esp::split(packet).map(|(header, _)| (header.spi(), header.sequence())));
            }
        }
        ip::protocol::TCP => {
            let Ok(segment) = tcp::parse(bytes) else { return };
            let parts = tcp::HEADER_LEN + segment.options.len() + segment.payload.len();
            assert_eq!(parts, bytes.len(), "the parts are the whole");
            clamp(bytes, segment.mss());
        }
        ip::protocol::ESP => {
            _ = black_box(esp::Esp::at(bytes, 0).map(|header| header.iv()));
            if let Ok(trailer) = esp::parse_trailer(bytes) {
                assert!(trailer.payload_len + esp::TRAILER_LEN <= bytes.len());
            }
        }
        ip::protocol::ICMPV4 => {
            let Some((header, body)) = icmpv4::Icmpv4::split(bytes) else { return };
            _ = black_box((icmpv4::parse(bytes).is_ok(), icmpv4::Repr::parse(&header)));
            if let Some(quoted) = icmpv4::quoted(body) {
                assert!(quoted.offset + quoted.payload.len() <= body.len());
                _ = black_box(flow::L4::parse(quoted.header.protocol(), quoted.payload));
            }
        }
        ip::protocol::ICMPV6 => {
            let Some((header, body)) = icmpv6::Icmpv6::split(bytes) else { return };
            _ = black_box(icmpv6::Repr::parse(&header));
            if let Some(quoted) = icmpv6::quoted(body) {
                assert!(usize::from(quoted.walk.offset) + quoted.payload.len() <= body.len());
                _ = black_box(flow::L4::parse(quoted.walk.protocol, quoted.payload));
            }
        }
        _ => {}
    }
}

fn bfd_packet(bytes: &[u8]) {
    let Some((packet, _)) = bfd::Control::split(bytes) else { return };
    if let Ok(repr) = bfd::Repr::parse(&packet, bytes.len()) {
        let again = repr.emit();
        assert_eq!(again.get(4..), packet.bytes().get(4..), "BFD is what was parsed");
    }
}

/// Clamps a copy (bounded, on the stack) and checks that only the option and the checksum change.
fn clamp(segment: &[u8], mss: Option<u16>) {
    let mut copy = [0u8; 96];
    let Some((copy, segment)) =
        copy.get_mut(..segment.len().min(96)).zip(segment.get(..segment.len().min(96)))
    else {
        return;
    };
    copy.copy_from_slice(segment);
    let before = Sum::of(copy);
    let clamped = tcp::clamp_mss(copy, 1000);
    assert!(clamped.is_none() || clamped == mss, "what was clamped is what was read");
    if clamped.is_some() {
        assert_eq!(tcp::parse(copy).ok().and_then(|segment| segment.mss()), Some(1000));
        // The sum covers its own checksum, so a right update leaves it; both zeros are one value.
        assert_eq!(before.get() % 0xffff, Sum::of(copy).get() % 0xffff, "the checksum follows the option");
    } else {
        assert_eq!(copy, segment, "untouched");
    }
}

fn neighbour(bytes: &[u8], source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8) {
    let Ok(message) = icmpv6::Neighbour::parse(bytes, source, destination, hop_limit) else { return };
    let mut again = [0; icmpv6::NEIGHBOUR_WITH_MAC_LEN];
    let len = message.emit(&mut again, source, destination);
    let parsed = again
        .get(..len.unwrap_or(0))
        .map(|again| icmpv6::Neighbour::parse(again, source, destination, hop_limit));
    assert_eq!(parsed, Some(Ok(message)), "neighbour discovery is what was parsed");
}

fn options(bytes: &[u8]) {
    // Each turn takes a byte at least.
    assert!(ipv4::Options::new(bytes).count() <= bytes.len());
    assert!(tcp::Options::new(bytes).count() <= bytes.len());
    for found in tcp::Options::new(bytes).flatten() {
        assert_eq!(bytes.get(found.at), Some(&found.kind), "an option is where it says");
    }
}

fn checksums(bytes: &[u8]) {
    let whole = Sum::of(bytes);
    let (a, b) = bytes.split_at_checked(bytes.len() / 3).unwrap_or((bytes, &[]));
    assert_eq!(Sum::of_slices(&[a, b]), whole, "a sum does not depend on where slices meet");
    if let Some((header, _)) = bytes.split_first_chunk::<20>() {
        assert_eq!(Sum::of_header(header), Sum::of(header));
    }
    if let Some(([a, b, c, d], rest)) = bytes.split_first_chunk::<4>() {
        let delta = Delta::between_u16(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        let updated = delta.apply(whole.checksum());
        let full = Sum::of_slices(&[&[*c, *d], &[*c, *d], rest]).checksum();
        assert_eq!(updated % 0xffff, full % 0xffff, "an update is the recomputation");
    }
}

fn text_forms(text: &str) {
    if let Ok(prefix) = text.parse::<ip::IpPrefix>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
        assert!(prefix.contains(prefix.network()));
    }
    if let Ok(mac) = text.parse::<ethernet::MacAddr>() {
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }
}
