//! Tunnels and their outer headers (RFC 4301, RFC 4303).

use std::{net::IpAddr, sync::Arc};

use super::{
    path::{LEAST_V4, LEAST_V6, Path},
    prefetch::prefetch_read,
    probe::Watch,
};
use crate::wire::{
    checksum::Sum,
    esp,
    ip::protocol,
    ipv4::{self, Ipv4},
    ipv6::{self, Ipv6},
    udp,
};

pub use super::association::{Former, SaIn, SaOut, address_bits};

/// What the outer header's DF bit becomes (RFC 4301 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Df {
    /// As in the inner packet; clear over an inner IPv6 packet.
    Copy,
    /// Set.
    Set,
    /// Clear.
    Clear,
}

/// What the outer header's traffic class becomes (RFC 6040 4.1, normal mode): ECN is copied; DSCP is copied or set
/// (RFC 4301 5.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrafficClass {
    /// The bits that are copied.
    copied: u8,
    /// Those that are set.
    set: u8,
}

impl TrafficClass {
    /// With this DSCP; `None` copies the inner one.
    #[must_use]
    pub const fn new(dscp: Option<u8>) -> Self {
        match dscp {
            Some(dscp) => Self { copied: 3, set: dscp << 2 },
            None => Self { copied: u8::MAX, set: 0 },
        }
    }

    /// The outer packet's, by the inner packet's.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, inner: u8) -> u8 {
        inner & self.copied | self.set
    }
}

/// The largest TCP segment that connections through a tunnel may agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mss {
    /// What fits the tunnel as it is at the time.
    Auto,
    /// So many bytes.
    Fixed(u16),
}

/// Largest outer header: IPv6 and UDP.
const MAX_OUTER: usize = ipv6::HEADER_LEN + udp::HEADER_LEN;

/// The largest inner packet that fits, whatever is learned of a path: of a short packet nobody need ask.
pub const FITS_ANY_PATH: u16 = match esp::payload_within(LEAST_V4 as usize - MAX_OUTER) {
    Some(len) => len as u16,
    None => 0,
};

/// The outer header of a tunnel, ready but for lengths, class, identification and checksum.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Outer {
    /// The first 24 bytes, as little-endian words.
    words: [u64; 3],
    /// Sum over the IPv4 header as it stands: what its checksum is computed from.
    sum: Sum,
    len: u8,
    v6: bool,
    udp: bool,
    bytes: [u8; MAX_OUTER],
}

impl Outer {
    /// The header between two addresses of one family; with `udp`, ESP goes in UDP from and to port 4500
    /// (RFC 3948). `None` when the families differ.
    #[must_use]
    pub fn new(local: IpAddr, remote: IpAddr, udp_encapsulation: bool) -> Option<Self> {
        let mut bytes = [0; MAX_OUTER];
        let next = if udp_encapsulation { protocol::UDP } else { protocol::ESP };
        let (ip_len, v6, sum) = match (local, remote) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = bytes.first_chunk_mut::<{ ipv4::HEADER_LEN }>()?;
                let repr = ipv4::Repr {
                    traffic_class: 0,
                    total_len: 0,
                    identification: 0,
                    dont_fragment: false,
                    more_fragments: false,
                    fragment_offset: 0,
                    ttl: 64,
                    protocol: next,
                    source,
                    destination,
                };
                repr.emit(header);
                Ipv4::new(&mut *header).set_checksum(0);
                (ipv4::HEADER_LEN, false, Sum::of_header(header))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = bytes.first_chunk_mut::<{ ipv6::HEADER_LEN }>()?;
                let repr = ipv6::Repr {
                    traffic_class: 0,
                    flow_label: 0,
                    payload_len: 0,
                    next_header: next,
                    hop_limit: 64,
                    source,
                    destination,
                };
                repr.emit(header);
                (ipv6::HEADER_LEN, true, Sum::ZERO)
            }
            _ => return None,
        };
        let mut len = ip_len;
        if udp_encapsulation {
            let (mut header, _) = udp::Udp::split_mut(bytes.get_mut(ip_len..)?)?;
            header.set_source_port(esp::UDP_PORT);
            header.set_destination_port(esp::UDP_PORT);
            len += udp::HEADER_LEN;
        }
        let word =
            |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |w| u64::from_le_bytes(*w));
        let words = [word(0), word(8), word(16)];
        Some(Self { bytes, len: len as u8, v6, udp: udp_encapsulation, sum, words })
    }

    /// Bytes of the IP header and, where there is one, the UDP header.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.len as usize
    }

    /// Whether the outer packet is IPv6.
    #[inline]
    #[must_use]
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// Where it is IPv4 alone: its bytes as little-endian words, all but lengths, class, identification and checksum, and
    /// their sum.
    #[inline(always)]
    #[must_use]
    pub const fn plain_v4(&self) -> Option<([u64; 3], Sum)> {
        if self.v6 | self.udp { None } else { Some((self.words, self.sum)) }
    }

    /// Whether ESP goes in UDP.
    #[inline]
    #[must_use]
    pub const fn is_udp(&self) -> bool {
        self.udp
    }

    /// This end's address.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        if self.v6 {
            return Some(IpAddr::V6(Ipv6::at(&self.bytes, 0)?.source()));
        }
        Some(IpAddr::V4(Ipv4::at(&self.bytes, 0)?.source()))
    }

    /// The other end's address.
    #[must_use]
    pub fn destination(&self) -> Option<IpAddr> {
        if self.v6 {
            return Some(IpAddr::V6(Ipv6::at(&self.bytes, 0)?.destination()));
        }
        Some(IpAddr::V4(Ipv4::at(&self.bytes, 0)?.destination()))
    }

    /// The largest inner packet whose outer packet has at most `outer` bytes.
    #[inline]
    #[must_use]
    pub const fn largest_inner(&self, outer: u16) -> u16 {
        match (outer as usize).checked_sub(self.header_len()) {
            Some(room) => match esp::payload_within(room) {
                Some(len) => len as u16,
                None => 0,
            },
            None => 0,
        }
    }

    /// Whether the UDP checksum must be filled in once the packet is sealed: over IPv6 it may not be zero (RFC 8200
    /// 8.1), and hosts that have not been told to take such packets drop them.
    #[inline]
    #[must_use]
    pub const fn needs_checksum(&self) -> bool {
        self.v6 && self.udp
    }

    /// Fills in the UDP checksum of a whole outer packet over IPv6.
    pub fn fill_checksum(&self, packet: &mut [u8]) {
        let Some(header) = Ipv6::at(packet, 0) else { return };
        let len = packet.len().saturating_sub(ipv6::HEADER_LEN);
        let pseudo = Sum::pseudo_v6(header.source(), header.destination(), protocol::UDP, len as u32);
        let sum = pseudo.combine(Sum::of(packet.get(ipv6::HEADER_LEN..).unwrap_or(&[])));
        if let Some(mut header) = udp::Udp::at_mut(packet, ipv6::HEADER_LEN) {
            header.set_checksum(sum.udp_checksum());
        }
    }

    /// Writes the header to the front of `packet`, which is the whole outer packet.
    ///
    /// The UDP checksum is zero (RFC 3948 2.1); over IPv6 [`Outer::fill_checksum`] comes later.
    /// `identification` is used when `df` is clear; an atomic packet needs none (RFC 6864).
    #[inline(always)]
    pub fn write(&self, packet: &mut [u8], class: u8, df: bool, identification: u16) {
        if self.v6 {
            self.write_v6(packet, class);
        } else {
            self.write_v4(packet, class, df, identification);
        }
        if self.udp {
            self.write_udp(packet);
        }
    }

    fn write_v6(&self, packet: &mut [u8], class: u8) {
        let total = packet.len();
        let Some(target) = packet.get_mut(..self.header_len()) else { return };
        target.copy_from_slice(self.bytes.get(..self.header_len()).unwrap_or(&[]));
        if let Some((mut header, _)) = Ipv6::split_mut(target) {
            header.set_traffic_class(class);
            header.set_payload_len((total - ipv6::HEADER_LEN) as u16);
        }
    }

    #[inline(always)]
    fn write_v4(&self, packet: &mut [u8], class: u8, df: bool, identification: u16) {
        let total = packet.len();
        let Some(header) = packet.first_chunk_mut::<{ ipv4::HEADER_LEN }>() else { return };
        let flags: u16 = if df { 0x4000 } else { 0 };
        let identification = if df { 0 } else { identification };
        // Words of 16 bits: their sum and its carries fit 32.
        let sum = u32::from(self.sum.get()) + u32::from(class) + total as u32;
        let sum = Sum::of_u32(sum + u32::from(identification) + u32::from(flags));
        // As three words, so that the header is written by three stores; the first byte is the lowest.
        let place = |field: u16, at: usize| u64::from(field.swap_bytes()) << (8 * at);
        let [a, b, c] = self.words;
        let a =
            a | u64::from(class) << 8 | place(total as u16, 2) | place(identification, 4) | place(flags, 6);
        let b = b | place(sum.checksum(), 2);
        let (words, last) = header.as_chunks_mut::<8>();
        for (bytes, word) in words.iter_mut().zip([a, b]) {
            *bytes = word.to_le_bytes();
        }
        last.copy_from_slice(&(c as u32).to_le_bytes());
    }

    fn write_udp(&self, packet: &mut [u8]) {
        let (at, total) = (self.header_len() - udp::HEADER_LEN, packet.len());
        let ready = self.bytes.get(at..self.header_len()).unwrap_or(&[]);
        if let Some(target) = packet.get_mut(at..self.header_len()) {
            target.copy_from_slice(ready);
        }
        if let Some(mut header) = udp::Udp::at_mut(packet, at) {
            header.set_length((total - at) as u16);
        }
    }
}

/// A tunnel to a peer.
///
/// What a packet into it needs is its first cache line: with thousands of tunnels, each line is waited for.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Tunnel {
    /// The security association to seal with.
    pub sa: Option<Arc<SaOut>>,
    /// What was learned of the way to the peer.
    pub path: Arc<Path>,
    /// The next hop towards the peer, by number, or [`NO_ROUTE`](super::lpm::NO_ROUTE); it leads over an interface.
    pub next_hop: u32,
    /// Largest inner packet, in bytes, as far as configuration and line say; see [`Tunnel::inner_mtu`].
    pub mtu: u16,
    /// MTU of the interface that outer packets leave by.
    pub line_mtu: u16,
    /// The size that inner packets are padded to (RFC 4303 2.7); 0: none.
    pub tfc: u16,
    /// What the outer DF bit becomes.
    pub df: Df,
    /// What the outer traffic class becomes.
    pub class: TrafficClass,
    /// The outer header.
    pub outer: Outer,
    /// The gateway that inner packets belong to.
    pub gateway: u16,
    /// The gateway that carries outer packets.
    pub underlay: u16,
    /// Whether a route leads into it: then packets come out of it that no policy covers.
    pub routed: bool,
    /// Whether ICMP errors about its traffic must quote what its policies cover.
    pub errors_by_quote: bool,
    /// The largest TCP segment that connections through it may agree on.
    pub mss: Option<Mss>,
    /// How health is found out inside it.
    pub watch: Watch,
}

impl Tunnel {
    /// Starts loading what a packet into it needs.
    #[inline]
    pub fn fetch(&self) {
        prefetch_read(self);
    }

    /// Starts loading what was learned of its path. To be asked for when [`Self::fetch`] has had time.
    #[inline]
    pub fn fetch_path(&self) {
        prefetch_read(&*self.path);
    }

    /// The largest outer packet that line and path take.
    #[inline]
    #[must_use]
    pub fn outer_mtu(&self) -> u16 {
        self.path.mtu().map_or(self.line_mtu, |learned| learned.min(self.line_mtu))
    }

    /// The largest inner packet that fits when it is sealed, by all that is known.
    #[inline]
    #[must_use]
    pub fn inner_mtu(&self) -> u16 {
        self.path.mtu().map_or(self.mtu, |learned| self.outer.largest_inner(learned).min(self.mtu))
    }

    /// Whether an inner packet of `len` bytes fits when it is sealed.
    #[inline(always)]
    #[must_use]
    pub fn admits(&self, len: u16) -> bool {
        len <= self.mtu && (len <= FITS_ANY_PATH || len <= self.inner_mtu())
    }

    /// What a packet of `len` bytes is padded to before it is sealed.
    #[inline]
    #[must_use]
    pub fn padded(&self, len: usize) -> usize {
        if self.tfc == 0 { len } else { len.max(self.tfc.min(self.inner_mtu()).into()) }
    }

    /// The largest inner packet of an IP version that is let in. An IPv6 packet of 1280 bytes always is, since its
    /// sender need not make smaller ones (RFC 8200 5): where it does not fit, the outer packet is divided.
    #[inline]
    #[must_use]
    pub fn admitted(&self, v6: bool) -> u16 {
        if v6 { self.inner_mtu().max(LEAST_V6) } else { self.inner_mtu() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opening_reads_first_is_one_cache_line() {
        assert_eq!(std::mem::offset_of!(SaIn, key), 64);
    }

    #[test]
    fn what_a_packet_needs_is_one_cache_line() {
        let outer = std::mem::offset_of!(Tunnel, outer);
        assert!(outer + std::mem::offset_of!(Outer, bytes) <= 64);
        assert_eq!(std::mem::offset_of!(SaOut, key), 64);
    }

    #[test]
    fn short_packets_fit_any_path() {
        let addresses: [(IpAddr, IpAddr); 2] = [
            ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap()),
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()),
        ];
        let kinds = addresses.into_iter().flat_map(|ends| [(ends, false), (ends, true)]);
        let largest = kinds
            .map(|((local, remote), udp)| Outer::new(local, remote, udp).unwrap().largest_inner(LEAST_V4));
        assert_eq!(largest.min(), Some(FITS_ANY_PATH));
    }

    #[test]
    fn outer_headers_are_what_a_full_computation_gives() {
        let addresses: [(IpAddr, IpAddr); 2] = [
            ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap()),
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()),
        ];
        for (local, remote) in addresses {
            for udp in [false, true] {
                for (class, df, id) in [(0, true, 5), (0xb9, false, 0xfffe), (255, false, 0)] {
                    let outer = Outer::new(local, remote, udp).unwrap();
                    let mut packet = vec![0xaa; outer.header_len() + 40];
                    outer.write(&mut packet, class, df, id);
                    let at = if local.is_ipv4() {
                        let parsed = ipv4::parse(&packet).unwrap();
                        assert_eq!(IpAddr::V4(parsed.header.source()), local);
                        assert_eq!(IpAddr::V4(parsed.header.destination()), remote);
                        assert_eq!(parsed.header.traffic_class(), class);
                        assert_eq!(parsed.header.dont_fragment(), df);
                        assert_eq!(parsed.header.identification(), if df { 0 } else { id });
                        20
                    } else {
                        let parsed = ipv6::parse(&packet).unwrap();
                        assert_eq!(IpAddr::V6(parsed.header.source()), local);
                        assert_eq!(parsed.header.traffic_class(), class);
                        assert_eq!(parsed.payload.len(), packet.len() - 40);
                        40
                    };
                    if udp {
                        let header = udp::Udp::at(&packet, at).unwrap();
                        assert_eq!((header.source_port(), header.destination_port()), (4500, 4500));
                        assert_eq!((usize::from(header.length()), header.checksum()), (packet.len() - at, 0));
                    }
                    assert_eq!(packet[outer.header_len()..], [0xaa; 40]);
                }
            }
        }
        assert!(Outer::new(addresses[0].0, addresses[1].0, false).is_none());
    }
}
