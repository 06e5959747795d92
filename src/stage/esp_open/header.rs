//! Where ESP is in an outer packet, and whether it can be.

use crate::{
    packet::{DropReason, Meta},
    wire::{
        esp::{self, Encapsulated},
        ip::protocol,
        ipv6::Ipv6,
        udp,
    },
};

/// The ESP header of a packet, and where its parts are.
pub(super) struct Header {
    pub spi: u32,
    pub sequence: u32,
    pub iv: [u8; esp::IV_LEN],
    /// Offset of the header.
    pub at: usize,
    /// Offset behind the ICV.
    pub end: usize,
}

/// Finds the ESP header of a packet, and refuses what cannot be one.
///
/// `None`: it is no ESP packet after all, but something for the host.
#[inline(always)]
pub(super) fn header(bytes: &[u8], meta: &Meta) -> Result<Option<Header>, DropReason> {
    if meta.proto != protocol::UDP {
        return bare(bytes, meta).map(Some);
    }
    let (at, end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.ip_len));
    if in_udp(bytes.get(at..end))? { read(bytes, at + udp::HEADER_LEN, end).map(Some) } else { Ok(None) }
}

/// As [`header`], of a packet that is ESP by its protocol.
#[inline(always)]
pub(super) fn bare(bytes: &[u8], meta: &Meta) -> Result<Header, DropReason> {
    read(bytes, usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.ip_len))
}

/// Reads the header of what is from offset `at` to `end`.
#[inline(always)]
fn read(bytes: &[u8], at: usize, end: usize) -> Result<Header, DropReason> {
    let packet = bytes.get(at..end).ok_or(DropReason::EspLength)?;
    if packet.len() < esp::MIN_LEN || packet.len() % esp::ALIGNMENT != 0 {
        return Err(DropReason::EspLength);
    }
    let header = esp::Esp::at(packet, 0).ok_or(DropReason::EspLength)?;
    Ok(Header { spi: header.spi().0, sequence: header.sequence(), iv: header.iv(), at, end })
}

/// Whether ESP is in a UDP datagram for port 4500; otherwise it is for the host.
fn in_udp(l4: Option<&[u8]>) -> Result<bool, DropReason> {
    let l4 = l4.ok_or(DropReason::EspLength)?;
    let datagram = udp::parse(l4).map_err(|_| DropReason::EspLength)?;
    match esp::classify(datagram.payload) {
        // The datagram must end where the packet does, or what follows would be taken for ciphertext.
        Encapsulated::Esp(packet) if udp::HEADER_LEN + packet.len() == l4.len() => Ok(true),
        Encapsulated::Keepalive => Err(DropReason::NatKeepalive),
        Encapsulated::Ike(_) => Ok(false),
        Encapsulated::Esp(_) | Encapsulated::Malformed => Err(DropReason::EspLength),
    }
}

/// Source and destination of an outer packet over IPv6.
pub(super) fn ends_v6(bytes: &[u8], meta: &Meta) -> (u128, u128) {
    let outer = Ipv6::at(bytes, usize::from(meta.l3));
    outer.map_or((0, 0), |outer| (outer.source().to_bits(), outer.destination().to_bits()))
}
