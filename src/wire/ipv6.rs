//! IPv6 (RFC 8200): header, extension headers, kinds of address.

use super::ip::protocol;
use std::borrow::{Borrow, BorrowMut};
use std::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;
/// Extension headers walked before a packet is given up: real packets have two or three, and each costs a step.
pub const MAX_EXTENSIONS: usize = 8;

header! {
    /// The fixed IPv6 header.
    Ipv6: 40 {
        /// Version (high four bits), traffic class (eight) and flow label (low twenty).
        version_class_label, set_version_class_label: u32 = 0;
        /// Bytes after this header, extension headers included.
        payload_len, set_payload_len: u16 = 4;
        /// What follows this header.
        next_header, set_next_header: u8 = 6;
        /// Hop limit.
        hop_limit, set_hop_limit: u8 = 7;
        /// Source address.
        source, set_source: Ipv6Addr = 8;
        /// Destination address.
        destination, set_destination: Ipv6Addr = 24;
    }
}

impl<T: Borrow<[u8; HEADER_LEN]>> Ipv6<T> {
    /// The version; 6 in every valid header.
    #[inline]
    pub fn version(&self) -> u8 {
        (self.version_class_label() >> 28) as u8
    }

    /// DSCP (high six bits) and ECN (low two).
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (self.version_class_label() >> 20) as u8
    }

    /// Differentiated services code point.
    #[inline]
    pub fn dscp(&self) -> u8 {
        self.traffic_class() >> 2
    }

    /// Explicit congestion notification bits.
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.traffic_class() & 3
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        self.version_class_label() & 0xf_ffff
    }
}

impl<T: BorrowMut<[u8; HEADER_LEN]>> Ipv6<T> {
    /// Sets DSCP and ECN.
    #[inline]
    pub fn set_traffic_class(&mut self, class: u8) {
        self.set_version_class_label(self.version_class_label() & 0xf00f_ffff | u32::from(class) << 20);
    }

    /// Takes one from the hop limit and returns what is left; zero stays zero.
    #[inline]
    pub fn decrement_hop_limit(&mut self) -> u8 {
        let left = self.hop_limit().saturating_sub(1);
        self.set_hop_limit(left);
        left
    }
}

/// Why bytes are not an IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer than 40 bytes.
    #[error("IPv6 header truncated")]
    Truncated,
    /// The version is not 6.
    #[error("IPv6 version is not 6")]
    Version,
    /// The payload length exceeds the bytes there are.
    #[error("IPv6 payload length beyond the frame")]
    BeyondFrame,
}

/// A checked IPv6 packet: the frame's padding is cut off.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The fixed header.
    pub header: Ipv6<&'a [u8; HEADER_LEN]>,
    /// What follows it: extension headers and layer 4.
    pub payload: &'a [u8],
}

/// Checks version and lengths. `bytes` starts at the IPv6 header and may be longer than the packet.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Error> {
    let (header, rest) = Ipv6::split(bytes).ok_or(Error::Truncated)?;
    if header.version() != 6 {
        return Err(Error::Version);
    }
    let payload = rest.get(..usize::from(header.payload_len())).ok_or(Error::BeyondFrame)?;
    Ok(Packet { header, payload })
}

impl Packet<'_> {
    /// Walks the extension headers to what they lead to; offsets count from the start of the packet.
    #[inline]
    pub fn walk(&self) -> Result<Walk, WalkError> {
        walk(self.header.next_header(), self.payload)
    }
}

header! {
    /// A fragment header (RFC 8200 4.5).
    Fragment: 8 {
        /// What the whole packet has after this header.
        next_header, set_next_header: u8 = 0;
        /// Reserved, zero.
        reserved, set_reserved: u8 = 1;
        /// Offset (high thirteen bits, units of eight bytes) and the "more" flag (lowest bit).
        offset_flags, set_offset_flags: u16 = 2;
        /// Identification: shared by the fragments of a packet.
        identification, set_identification: u32 = 4;
    }
}

impl<T: Borrow<[u8; FRAGMENT_LEN]>> Fragment<T> {
    /// Where this fragment's part belongs, in bytes.
    #[inline]
    pub fn offset(&self) -> u16 {
        self.offset_flags() & 0xfff8
    }

    /// Whether more fragments follow this one.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.offset_flags() & 1 == 1
    }
}

/// What a fragment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentRepr {
    /// What the whole packet has after this header.
    pub next_header: u8,
    /// Where this part belongs, in bytes: a multiple of eight.
    pub offset: u16,
    /// Whether more follow.
    pub more_fragments: bool,
    /// Identification.
    pub identification: u32,
}

impl FragmentRepr {
    /// Reads a fragment header.
    #[inline]
    pub fn parse<T: Borrow<[u8; FRAGMENT_LEN]>>(header: &Fragment<T>) -> Self {
        Self {
            next_header: header.next_header(),
            offset: header.offset(),
            more_fragments: header.more_fragments(),
            identification: header.identification(),
        }
    }

    /// Writes a fragment header.
    pub fn emit(&self, bytes: &mut [u8; FRAGMENT_LEN]) {
        let mut header = Fragment::new(bytes);
        header.set_next_header(self.next_header);
        header.set_reserved(0);
        header.set_offset_flags(self.offset & 0xfff8 | u16::from(self.more_fragments));
        header.set_identification(self.identification);
    }

    /// Whether this is the whole packet after all (an atomic fragment, RFC 6946).
    #[inline]
    pub const fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more_fragments
    }
}

/// Where the extension headers lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The upper-layer protocol; ESP counts as one.
    pub protocol: u8,
    /// Where it starts, in bytes from the start of the IPv6 header. In a fragment other than the first this
    /// is where the fragment's part starts, and no layer-4 header is there.
    pub offset: u16,
    /// Where the next-header byte that names it is: the pointer of a parameter problem (RFC 4443 3.4).
    pub named_at: u16,
    /// The last fragment header met.
    pub fragment: Option<FragmentRepr>,
    /// Whether hop-by-hop options are there, which a router may have to look at.
    pub hop_by_hop: bool,
    /// Whether a routing header of type 0 is there, which must not be obeyed (RFC 5095).
    pub source_route: bool,
}

/// Why the extension headers lead nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// An extension header goes beyond the packet.
    #[error("IPv6 extension header truncated")]
    Truncated,
    /// More than [`MAX_EXTENSIONS`].
    #[error("too many IPv6 extension headers")]
    TooMany,
    /// Hop-by-hop options after another header (RFC 8200 4.1).
    #[error("IPv6 hop-by-hop options are not first")]
    HopByHopNotFirst,
    /// The chain ends in "no next header" (RFC 8200 4.7): nothing to deliver.
    #[error("IPv6 packet has no next header")]
    NoNextHeader,
}

/// Walks extension headers from the one `next_header` names, at the start of `payload`.
#[inline]
pub fn walk(next_header: u8, payload: &[u8]) -> Result<Walk, WalkError> {
    let mut walk = Walk {
        protocol: next_header,
        offset: HEADER_LEN as u16,
        named_at: 6,
        fragment: None,
        hop_by_hop: false,
        source_route: false,
    };
    match next_header {
        protocol::TCP | protocol::UDP | protocol::ICMPV6 | protocol::ESP => Ok(walk),
        _ => walk.extensions(payload).map(|()| walk),
    }
}

impl Walk {
    fn extensions(&mut self, mut rest: &[u8]) -> Result<(), WalkError> {
        for seen in 0..=MAX_EXTENSIONS {
            let len = match self.protocol {
                protocol::HOP_BY_HOP if seen > 0 => return Err(WalkError::HopByHopNotFirst),
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    let &[_, words, kind, _] = rest.first_chunk().ok_or(WalkError::Truncated)?;
                    self.hop_by_hop |= self.protocol == protocol::HOP_BY_HOP;
                    self.source_route |= self.protocol == protocol::ROUTING && kind == 0;
                    usize::from(words) * 8 + 8
                }
                protocol::AH => {
                    let &[_, words] = rest.first_chunk().ok_or(WalkError::Truncated)?;
                    usize::from(words) * 4 + 8
                }
                protocol::FRAGMENT => {
                    let (header, _) = Fragment::split(rest).ok_or(WalkError::Truncated)?;
                    self.fragment = Some(FragmentRepr::parse(&header));
                    FRAGMENT_LEN
                }
                protocol::NO_NEXT_HEADER => return Err(WalkError::NoNextHeader),
                _ => return Ok(()),
            };
            if seen == MAX_EXTENSIONS {
                return Err(WalkError::TooMany);
            }
            let (header, after) = rest.split_at_checked(len).ok_or(WalkError::Truncated)?;
            let Some(next) = header.first() else { return Err(WalkError::Truncated) };
            self.protocol = *next;
            self.named_at = self.offset;
            // Each header is within a payload of at most 65,535 bytes, after a header of 40: saturation is for
            // callers that pass more than a packet.
            self.offset = self.offset.saturating_add(len as u16);
            rest = after;
            if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
                return Ok(());
            }
        }
        Err(WalkError::TooMany)
    }
}

/// What a fixed header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes after the header.
    pub payload_len: u16,
    /// What follows the header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Repr {
    /// What a header says.
    pub fn parse<T: Borrow<[u8; HEADER_LEN]>>(header: &Ipv6<T>) -> Self {
        Self {
            traffic_class: header.traffic_class(),
            flow_label: header.flow_label(),
            payload_len: header.payload_len(),
            next_header: header.next_header(),
            hop_limit: header.hop_limit(),
            source: header.source(),
            destination: header.destination(),
        }
    }

    /// Writes the header; of the flow label the low 20 bits count.
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        let mut header = Ipv6::new(bytes);
        let class = u32::from(self.traffic_class) << 20;
        header.set_version_class_label(6 << 28 | class | self.flow_label & 0xf_ffff);
        header.set_payload_len(self.payload_len);
        header.set_next_header(self.next_header);
        header.set_hop_limit(self.hop_limit);
        header.set_source(self.source);
        header.set_destination(self.destination);
    }
}

/// Whether no host may send from this address over a router: unspecified, loopback, multicast, and IPv4-mapped
/// (RFC 4291 2.5.2, 2.5.3, 2.7; RFC 6890).
#[inline]
pub const fn is_martian_source(addr: Ipv6Addr) -> bool {
    addr.is_multicast() || is_martian_unicast(addr)
}

/// Whether no router may forward to this address: unspecified, loopback, IPv4-mapped. Multicast is not among
/// them; see [`Ipv6Addr::is_multicast`].
#[inline]
pub const fn is_martian_destination(addr: Ipv6Addr) -> bool {
    is_martian_unicast(addr)
}

const fn is_martian_unicast(addr: Ipv6Addr) -> bool {
    let bits = addr.to_bits();
    // ::/128, ::1/128 and ::ffff:0:0/96.
    bits <= 1 || bits >> 32 == 0xffff
}

/// Whether a router must keep packets from or to this address on its link: fe80::/10 (RFC 4291 2.5.6), and
/// multicast of interface or link scope (RFC 4291 2.7).
#[inline]
pub const fn is_link_scope(addr: Ipv6Addr) -> bool {
    match addr.octets() {
        [0xfe, second, ..] => second & 0xc0 == 0x80,
        [0xff, scope, ..] => scope & 0x0f <= 2,
        _ => false,
    }
}

/// The solicited-node multicast group of an address (RFC 4291 2.7.1): where its neighbour solicitations go.
pub const fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | addr.to_bits() & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An options header of `8 * (words + 1)` bytes.
    fn options(next: u8, words: u8) -> Vec<u8> {
        let mut bytes = vec![0; 8 * (usize::from(words) + 1)];
        (bytes[0], bytes[1], bytes[2]) = (next, words, 1);
        bytes
    }

    fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
        let mut bytes = [0; 8];
        FragmentRepr { next_header: next, offset, more_fragments: more, identification: 9 }.emit(&mut bytes);
        bytes.to_vec()
    }

    #[test]
    fn plain() {
        let found = walk(6, &[]).unwrap();
        assert_eq!((found.protocol, found.offset, found.named_at, found.fragment), (6, 40, 6, None));
        assert_eq!(walk(59, &[]), Err(WalkError::NoNextHeader));
        assert_eq!(walk(89, &[]).unwrap().protocol, 89);
    }

    #[test]
    fn chain() {
        let chain =
            [options(60, 0), options(43, 1), options(44, 0), fragment(51, 0, true), vec![17, 4]].concat();
        let mut bytes = chain.clone();
        bytes.resize(chain.len() - 2 + 24 + 8, 0);
        let found = walk(0, &bytes).unwrap();
        assert_eq!((found.protocol, usize::from(found.offset)), (17, 40 + 8 + 16 + 8 + 8 + 24));
        assert_eq!(usize::from(found.named_at), 40 + 8 + 16 + 8 + 8);
        assert!(found.hop_by_hop && !found.source_route);
        assert_eq!(found.fragment.map(|f| (f.more_fragments, f.offset)), Some((true, 0)));
        for short in 0..chain.len() - 2 + 24 {
            assert_eq!(walk(0, &bytes[..short]), Err(WalkError::Truncated), "{short}");
        }
    }

    #[test]
    fn a_later_fragment_ends_the_walk() {
        let bytes = [fragment(60, 1480, false), vec![0xff; 8]].concat();
        let found = walk(44, &bytes).unwrap();
        assert_eq!((found.protocol, found.offset), (60, 48));
    }

    #[test]
    fn refused_chains() {
        assert_eq!(walk(60, &[options(0, 0), options(6, 0)].concat()), Err(WalkError::HopByHopNotFirst));
        assert_eq!(walk(60, &options(59, 0)), Err(WalkError::NoNextHeader));
        let eight = options(60, 0).repeat(7);
        assert_eq!(walk(60, &[eight.clone(), options(6, 0)].concat()).map(|w| w.offset), Ok(104));
        let nine = [eight, options(60, 0), options(6, 0)].concat();
        assert_eq!(walk(60, &nine), Err(WalkError::TooMany));
        let mut routing = options(6, 0);
        routing[2] = 0;
        assert!(walk(43, &routing).unwrap().source_route);
    }

    #[test]
    fn each_error() {
        let mut bytes = [0; 44];
        Repr {
            traffic_class: 0,
            flow_label: 0,
            payload_len: 4,
            next_header: 59,
            hop_limit: 1,
            source: Ipv6Addr::LOCALHOST,
            destination: Ipv6Addr::LOCALHOST,
        }
        .emit(bytes.first_chunk_mut().unwrap());
        assert_eq!(parse(&bytes).unwrap().payload.len(), 4);
        assert_eq!(parse(&bytes[..43]).map(|_| ()), Err(Error::BeyondFrame));
        assert_eq!(parse(&bytes[..39]).map(|_| ()), Err(Error::Truncated));
        bytes[0] = 0x40;
        assert_eq!(parse(&bytes).map(|_| ()), Err(Error::Version));
    }

    #[test]
    fn kinds_of_address() {
        let addr = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        for text in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
            assert!(is_martian_source(addr(text)), "{text}");
        }
        for text in ["2001:db8::1", "fe80::1", "fc00::1", "::2"] {
            assert!(!is_martian_source(addr(text)), "{text}");
        }
        assert!(!is_martian_destination(addr("ff02::1")) && is_martian_destination(addr("::1")));
        for (text, link) in
            [("fe80::1", true), ("febf::1", true), ("fec0::1", false), ("ff02::1", true), ("ff05::1", false)]
        {
            assert_eq!(is_link_scope(addr(text)), link, "{text}");
        }
        assert_eq!(solicited_node(addr("fe80::2aa:ff:fe28:9c5a")), addr("ff02::1:ff28:9c5a"));
    }

    proptest! {
        #[test]
        fn emit_then_parse(a: (u8, u16, u8, u8), flow_label in 0u32..1 << 20, source: [u8; 16], destination: [u8; 16]) {
            let repr = Repr {
                traffic_class: a.0, flow_label, payload_len: a.1, next_header: a.2, hop_limit: a.3,
                source: source.into(), destination: destination.into(),
            };
            let mut header = Ipv6::new([0xff; HEADER_LEN]);
            repr.emit(header.bytes_mut());
            prop_assert_eq!((header.version(), Repr::parse(&header)), (6, repr));
            header.set_traffic_class(!a.0);
            prop_assert_eq!(Repr::parse(&header), Repr { traffic_class: !a.0, ..repr });
            prop_assert_eq!(header.version(), 6);
        }

        #[test]
        fn fragment_emit_then_parse(next_header: u8, units in 0u16..0x2000, more_fragments: bool, identification: u32) {
            let repr = FragmentRepr { next_header, offset: units * 8, more_fragments, identification };
            let mut bytes = [0xff; FRAGMENT_LEN];
            repr.emit(&mut bytes);
            prop_assert_eq!(FragmentRepr::parse(&Fragment::new(&bytes)), repr);
        }

        #[test]
        fn a_walk_stays_within_the_packet(
            next in prop::sample::select(vec![0u8, 43, 44, 51, 60]),
            bytes in prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 6, 43, 44, 51, 59, 60]), 0..200),
        ) {
            if let Ok(found) = walk(next, &bytes) {
                prop_assert!(usize::from(found.offset) <= 40 + bytes.len());
            }
        }
    }
}
