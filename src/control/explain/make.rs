//! The frame of the packet that is asked about.

use super::*;

pub(super) fn interface(config: &Config, entry: &Entry) -> Result<usize, ExplainError> {
    let listed = |names: Vec<&str>| if names.is_empty() { "none".into() } else { names.join(", ") };
    match entry {
        Entry::Interface(name) => {
            let names = || config.interfaces.iter().map(|interface| interface.name.value.as_str());
            names().position(|known| known == name).ok_or_else(|| ExplainError::Unknown {
                kind: "interface",
                name: name.clone(),
                all: listed(names().collect()),
            })
        }
        Entry::Gateway(name, side) => {
            let names = || config.gateways.iter().map(|gateway| gateway.name.value.as_str());
            let gateway = names().position(|known| known == name).ok_or_else(|| ExplainError::Unknown {
                kind: "gateway",
                name: name.clone(),
                all: listed(names().collect()),
            })?;
            let is_it = |i: &crate::config::Interface| i.gateway.value.0 == gateway && *i.side == *side;
            config
                .interfaces
                .iter()
                .position(is_it)
                .ok_or_else(|| ExplainError::NoInterface { gateway: name.clone(), side: side.as_str() })
        }
    }
}

/// The IP packet.
pub(super) fn bytes(packet: &Packet, most: usize, port: &str) -> Result<Vec<u8>, ExplainError> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    let (transport, data) = match (packet.content, packet.protocol) {
        (Content::Ports(..), protocol::TCP) => (20, 0),
        (Content::Ports(..) | Content::Icmp(..), _) => (8, 32),
        (Content::Opaque, _) => (0, 32),
    };
    let least = header + transport;
    let size = packet.size.map_or(least + data, usize::from);
    if size < least || size > most {
        return Err(ExplainError::Size { size, least, most, port: port.into() });
    }
    let length = size - header;
    let mut payload = vec![0; length];
    let at = match packet.content {
        Content::Ports(source, destination) => {
            payload[..2].copy_from_slice(&source.to_be_bytes());
            payload[2..4].copy_from_slice(&destination.to_be_bytes());
            if packet.protocol == protocol::TCP {
                // A connection that opens.
                (payload[7], payload[12], payload[13], payload[14]) = (1, 0x50, 0x02, 0xff);
                Some(16)
            } else {
                payload[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                Some(6)
            }
        }
        Content::Icmp(kind, code) => {
            payload[..2].copy_from_slice(&[kind, code]);
            // An identifier and a sequence number, where it is a query.
            (payload[5], payload[7]) = (1, 1);
            Some(2)
        }
        Content::Opaque => None,
    };
    if let Some(at) = at {
        let pseudo = match (packet.source, packet.destination) {
            _ if packet.protocol == protocol::ICMPV4 => Sum::of(&[]),
            (IpAddr::V4(s), IpAddr::V4(d)) => Sum::pseudo_v4(s, d, packet.protocol, length as u16),
            (IpAddr::V6(s), IpAddr::V6(d)) => Sum::pseudo_v6(s, d, packet.protocol, length as u32),
            _ => Sum::of(&[]),
        };
        let sum = pseudo.combine(Sum::of(&payload));
        let sum = if packet.protocol == protocol::UDP { sum.udp_checksum() } else { sum.checksum() };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let head = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut head = [0; 20];
            ipv4::Repr {
                traffic_class: 0,
                total_len: size as u16,
                identification: 1,
                dont_fragment: packet.dont_fragment,
                more_fragments: false,
                fragment_offset: 0,
                ttl: packet.ttl,
                protocol: packet.protocol,
                source,
                destination,
            }
            .emit(&mut head);
            head.to_vec()
        }
        (source, destination) => {
            let v6 = |address| match address {
                IpAddr::V4(a) => std::net::Ipv4Addr::to_ipv6_mapped(&a),
                IpAddr::V6(a) => a,
            };
            let mut head = [0; 40];
            ipv6::Repr {
                traffic_class: 0,
                flow_label: 0,
                payload_len: length as u16,
                next_header: packet.protocol,
                hop_limit: packet.ttl,
                source: v6(source),
                destination: v6(destination),
            }
            .emit(&mut head);
            head.to_vec()
        }
    };
    Ok([head, payload].concat())
}

pub(super) fn tags(vlan: Vlan) -> Tags {
    let tag = |kind, id| VlanId::new(id).map(|id| Tag::new(kind, id, 0, false));
    match vlan {
        Vlan::Untagged => Tags::None,
        Vlan::Tagged(id) => tag(TagKind::Customer, id).map_or(Tags::None, Tags::One),
        Vlan::Stacked { outer, inner } => {
            let both = tag(TagKind::Service, outer).zip(tag(TagKind::Customer, inner));
            both.map_or(Tags::None, |(outer, inner)| Tags::Two(outer, inner))
        }
    }
}
