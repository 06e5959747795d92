//! Puts new addresses and ports into packets, and the checksums that follow (RFC 1624).

use crate::{
    packet::{Flags, Meta},
    table::session::Translation,
    wire::{checksum::Delta, ip::protocol, ipv4::Ipv4, ipv6::Ipv6, tcp::Tcp, udp::Udp},
};

/// Which of the two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The source's.
    Source(u16),
    /// The destination's.
    Destination(u16),
}

/// Sets both addresses of an IPv4 packet. `delta`: what their change does to a checksum. `None`: no packet.
#[inline]
pub fn addresses_v4(
    bytes: &mut [u8],
    meta: &mut Meta,
    source: u32,
    destination: u32,
    delta: Delta,
) -> Option<()> {
    let mut header = Ipv4::at_mut(bytes, usize::from(meta.l3))?;
    header.set_source(source.into());
    header.set_destination(destination.into());
    let checksum = delta.apply(header.checksum());
    header.set_checksum(checksum);
    (meta.src, meta.dst) = (source, destination);
    Some(())
}

/// Sets both addresses of an IPv4 packet, and all checksums that `delta` changes.
#[inline(never)]
pub fn any_ends(
    bytes: &mut [u8],
    meta: &mut Meta,
    source: u32,
    destination: u32,
    delta: Delta,
) -> Option<()> {
    addresses_v4(bytes, meta, source, destination, delta)?;
    after_addresses(bytes, meta, delta)
}

/// Gives a TCP or UDP packet over IPv4, without options and whole, another source (`SOURCE`) or destination. The result is
/// the flags of TCP. `None`, and nothing changed: no such packet.
#[inline(always)]
pub fn end<const SOURCE: bool>(bytes: &mut [u8], meta: &mut Meta, new: Translation) -> Option<Option<u8>> {
    let (mut header, l4) = Ipv4::split_mut(bytes.get_mut(usize::from(meta.l3)..)?)?;
    let both = new.address_delta.combine(new.port_delta);
    let flags = if meta.proto == protocol::TCP {
        let (mut tcp, _) = Tcp::split_mut(l4)?;
        match new.port {
            Some(port) if SOURCE => tcp.set_source_port(port),
            Some(port) => tcp.set_destination_port(port),
            None => {}
        }
        let checksum = both.apply(tcp.checksum());
        tcp.set_checksum(checksum);
        Some(tcp.flags().0)
    } else {
        let (mut udp, _) = Udp::split_mut(l4)?;
        match new.port {
            Some(port) if SOURCE => udp.set_source_port(port),
            Some(port) => udp.set_destination_port(port),
            None => {}
        }
        let checksum = both.apply_udp(udp.checksum());
        udp.set_checksum(checksum);
        None
    };
    let checksum = new.address_delta.apply(header.checksum());
    header.set_checksum(checksum);
    if SOURCE {
        header.set_source(new.address.into());
        (meta.src, meta.sport) = (new.address, new.port.unwrap_or(meta.sport));
    } else {
        header.set_destination(new.address.into());
        (meta.dst, meta.dport) = (new.address, new.port.unwrap_or(meta.dport));
    }
    Some(flags)
}

/// Sets both addresses of an IPv6 packet.
#[inline]
pub fn addresses_v6(bytes: &mut [u8], meta: &Meta, source: u128, destination: u128) -> Option<()> {
    let mut header = Ipv6::at_mut(bytes, usize::from(meta.l3))?;
    header.set_source(source.into());
    header.set_destination(destination.into());
    Some(())
}

/// The packet's bytes behind the IP headers, without padding of the link layer.
#[inline]
pub fn payload<'a>(bytes: &'a mut [u8], meta: &Meta) -> Option<&'a mut [u8]> {
    let end = usize::from(meta.l3 + meta.ip_len);
    bytes.get_mut(usize::from(meta.l4)..end)
}

/// Applies a change of the pseudo-header to the transport checksum of `l4`, the start of a transport header. `None`
/// when the header is cut short.
#[inline]
pub fn transport_checksum(proto: u8, l4: &mut [u8], delta: Delta) -> Option<()> {
    let at = match proto {
        protocol::TCP => 16,
        protocol::UDP | protocol::UDP_LITE => 6,
        protocol::DCCP => 6,
        protocol::ICMPV6 => 2,
        // ICMPv4 and SCTP have no pseudo-header; others are not known.
        _ => return Some(()),
    };
    update(l4, at, proto, delta)
}

#[inline]
fn update(l4: &mut [u8], at: usize, proto: u8, delta: Delta) -> Option<()> {
    let field = l4.get_mut(at..)?.first_chunk_mut::<2>()?;
    let old = u16::from_be_bytes(*field);
    let new = if proto == protocol::UDP { delta.apply_udp(old) } else { delta.apply(old) };
    *field = new.to_be_bytes();
    Some(())
}

/// The transport part after the packet's addresses changed; of a later fragment there is none.
#[inline]
pub fn after_addresses(bytes: &mut [u8], meta: &Meta, delta: Delta) -> Option<()> {
    if meta.flags.has(Flags::LATER_FRAGMENT) {
        return Some(());
    }
    transport_checksum(meta.proto, payload(bytes, meta)?, delta)
}

/// Sets one port (of an ICMP query: the identifier) at the start of a transport header, and its checksum as far as it
/// is there. `addresses` and `port`: what the changes of addresses and of the port do to a checksum.
///
/// `None` when not even the port is there, or (`whole`) not the checksum.
#[inline]
pub fn set_port(
    proto: u8,
    l4: &mut [u8],
    new: Port,
    addresses: Delta,
    port: Delta,
    whole: bool,
) -> Option<()> {
    let (place, value, checksum_at, delta) = match (proto, new) {
        (protocol::TCP, Port::Source(value)) => (0, value, 16, addresses.combine(port)),
        (protocol::TCP, Port::Destination(value)) => (2, value, 16, addresses.combine(port)),
        (protocol::UDP, Port::Source(value)) => (0, value, 6, addresses.combine(port)),
        (protocol::UDP, Port::Destination(value)) => (2, value, 6, addresses.combine(port)),
        // No pseudo-header.
        (protocol::ICMPV4, Port::Source(value) | Port::Destination(value)) => (4, value, 2, port),
        _ => return None,
    };
    *l4.get_mut(place..)?.first_chunk_mut::<2>()? = value.to_be_bytes();
    let done = update(l4, checksum_at, proto, delta);
    if whole { done } else { Some(()) }
}
