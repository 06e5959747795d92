//! IPv4 (RFC 791): header, options, the router's checks (RFC 1812 5.2.2), kinds of address.

use super::checksum::Sum;
use std::borrow::{Borrow, BorrowMut};
use std::net::Ipv4Addr;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

header! {
    /// The fixed part of an IPv4 header.
    Ipv4: 20 {
        /// Version (high four bits) and header length in words (low four).
        version_ihl, set_version_ihl: u8 = 0;
        /// DSCP (high six bits) and ECN (low two).
        traffic_class, set_traffic_class: u8 = 1;
        /// Bytes of header and payload.
        total_len, set_total_len: u16 = 2;
        /// Identification: shared by the fragments of a packet.
        identification, set_identification: u16 = 4;
        /// Flags (high three bits) and fragment offset in units of eight bytes (low thirteen).
        flags_offset, set_flags_offset: u16 = 6;
        /// Time to live.
        ttl, set_ttl: u8 = 8;
        /// Protocol of the payload.
        protocol, set_protocol: u8 = 9;
        /// Header checksum.
        checksum, set_checksum: u16 = 10;
        /// Source address.
        source, set_source: Ipv4Addr = 12;
        /// Destination address.
        destination, set_destination: Ipv4Addr = 16;
    }
}

impl<T: Borrow<[u8; HEADER_LEN]>> Ipv4<T> {
    /// The version; 4 in every valid header.
    #[inline]
    pub fn version(&self) -> u8 {
        self.version_ihl() >> 4
    }

    /// Bytes of header and options, as the header claims: 0 to 60, at least 20 when valid.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl() & 0xf) * 4
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

    /// Whether routers must not fragment this packet.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags_offset() & DONT_FRAGMENT != 0
    }

    /// Whether more fragments follow this one.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags_offset() & MORE_FRAGMENTS != 0
    }

    /// Where this fragment's payload belongs, in bytes; zero in a first fragment and in a whole packet.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        (self.flags_offset() & OFFSET_MASK) << 3
    }

    /// Whether this is a part of a packet.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_offset() & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }
}

impl<T: BorrowMut<[u8; HEADER_LEN]>> Ipv4<T> {
    /// Takes one from the time to live, keeps the checksum right, and returns what is left; zero stays zero.
    #[inline]
    pub fn decrement_ttl(&mut self) -> u8 {
        // The TTL is the lowest byte; from the third on comes the checksum, its high byte first.
        let place = self.0.borrow_mut().as_chunks_mut::<4>().0.get_mut(2);
        if let Some(place) = place {
            let word = u32::from_le_bytes(*place);
            let (ttl, high) = (word as u8, (word >> 16) as u8);
            if ttl != 0 && high < 0xfe {
                // Nothing is carried, and the checksum stays off -0: one from the TTL, and one to the high byte.
                *place = (word + (1 << 16) - 1).to_le_bytes();
                return ttl - 1;
            }
        }
        self.decrement_ttl_with_carry()
    }

    #[cold]
    fn decrement_ttl_with_carry(&mut self) -> u8 {
        let ttl = self.ttl();
        let left = ttl.saturating_sub(1);
        // RFC 1141 2: the field rises by what the sum falls by; the end-around carry keeps it from being -0.
        let raised = u32::from(self.checksum()) + (u32::from(ttl - left) << 8);
        self.set_ttl(left);
        self.set_checksum((raised + u32::from(raised >= 0xffff)) as u16);
        left
    }

    /// Computes and writes the checksum of a header without options.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let checksum = Sum::of_header(self.bytes()).checksum();
        self.set_checksum(checksum);
    }
}

/// Why bytes are not an IPv4 packet a router may forward (RFC 1812 5.2.2), in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than the header claims, or than any header has.
    #[error("IPv4 header truncated")]
    Truncated,
    /// The version is not 4.
    #[error("IPv4 version is not 4")]
    Version,
    /// The header length is below 20 bytes.
    #[error("IPv4 header length below 20 bytes")]
    HeaderLength,
    /// The total length is below the header length.
    #[error("IPv4 total length below its header length")]
    TotalLength,
    /// The total length exceeds the bytes there are.
    #[error("IPv4 total length beyond the frame")]
    BeyondFrame,
    /// The header checksum is wrong.
    #[error("IPv4 header checksum wrong")]
    Checksum,
}

/// A checked IPv4 packet: the frame's padding is cut off.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The fixed header.
    pub header: Ipv4<&'a [u8; HEADER_LEN]>,
    /// The options, 0 to 40 bytes; see [`Options`].
    pub options: &'a [u8],
    /// What the packet carries.
    pub payload: &'a [u8],
}

/// Checks a packet as a router must: lengths, version, checksum. A time to live of zero is not looked at.
///
/// `bytes` starts at the IPv4 header and may be longer than the packet (Ethernet pads to 60 bytes).
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Error> {
    let packet = parse_lengths(bytes)?;
    let sum = Sum::of_header(packet.header.bytes());
    let sum = if packet.options.is_empty() { sum } else { sum.combine(Sum::of(packet.options)) };
    if sum.is_valid() { Ok(packet) } else { Err(Error::Checksum) }
}

/// As [`parse`], without the checksum: for packets quoted in ICMP errors, and those already verified.
#[inline]
pub fn parse_lengths(bytes: &[u8]) -> Result<Packet<'_>, Error> {
    let (header, rest) = Ipv4::split(bytes).ok_or(Error::Truncated)?;
    if header.version() != 4 {
        return Err(Error::Version);
    }
    let options_len = header.header_len().checked_sub(HEADER_LEN).ok_or(Error::HeaderLength)?;
    let (options, rest) = rest.split_at_checked(options_len).ok_or(Error::Truncated)?;
    let payload_len =
        usize::from(header.total_len()).checked_sub(HEADER_LEN + options_len).ok_or(Error::TotalLength)?;
    let payload = rest.get(..payload_len).ok_or(Error::BeyondFrame)?;
    Ok(Packet { header, options, payload })
}

/// Option types (IANA "IP Option Numbers"), the copied bit included.
pub mod option {
    /// End of the list.
    pub const END: u8 = 0;
    /// Padding of one byte.
    pub const NOP: u8 = 1;
    /// Record route.
    pub const RECORD_ROUTE: u8 = 7;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 68;
    /// Loose source and record route.
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    /// Strict source and record route.
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
    /// Router alert (RFC 2113).
    pub const ROUTER_ALERT: u8 = 148;
}

/// An option's length is missing, below two, or beyond the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed option")]
pub struct MalformedOption;

/// The options of a header: type and data of each, without padding; a malformed one ends it with an error.
#[derive(Clone, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// Walks the options' bytes.
    pub const fn new(options: &'a [u8]) -> Self {
        Self(options)
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u8, &'a [u8]), MalformedOption>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = std::mem::take(&mut self.0);
            match *rest {
                [] | [option::END, ..] => return None,
                [option::NOP, ..] => self.0 = rest.get(1..).unwrap_or(&[]),
                [kind, len, ..] => {
                    // Two bytes are there and a length below two fails, so each turn moves on.
                    let Some((this, rest)) = rest.split_at_checked(usize::from(len)) else {
                        return Some(Err(MalformedOption));
                    };
                    let Some(data) = this.get(2..) else { return Some(Err(MalformedOption)) };
                    self.0 = rest;
                    return Some(Ok((kind, data)));
                }
                [_] => return Some(Err(MalformedOption)),
            }
        }
    }
}

/// What a gateway must know of a packet's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionSummary {
    /// A loose or strict source route is there (RFC 7126 4.3, 4.4: drop).
    pub source_route: bool,
    /// Routers are asked to look at the packet (RFC 2113).
    pub router_alert: bool,
    /// A record of the route or timestamps is asked for.
    pub record: bool,
}

/// Walks all options once.
pub fn summarise_options(options: &[u8]) -> Result<OptionSummary, MalformedOption> {
    let mut summary = OptionSummary::default();
    for found in Options::new(options) {
        match found?.0 {
            option::LOOSE_SOURCE_ROUTE | option::STRICT_SOURCE_ROUTE => summary.source_route = true,
            option::ROUTER_ALERT => summary.router_alert = true,
            option::RECORD_ROUTE | option::TIMESTAMP => summary.record = true,
            _ => {}
        }
    }
    Ok(summary)
}

/// What a header without options says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Identification.
    pub identification: u16,
    /// Whether routers must not fragment it.
    pub dont_fragment: bool,
    /// Whether more fragments follow.
    pub more_fragments: bool,
    /// Where the payload belongs, in bytes: a multiple of eight.
    pub fragment_offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Repr {
    /// What a header says, its options aside.
    pub fn parse<T: Borrow<[u8; HEADER_LEN]>>(header: &Ipv4<T>) -> Self {
        Self {
            traffic_class: header.traffic_class(),
            total_len: header.total_len(),
            identification: header.identification(),
            dont_fragment: header.dont_fragment(),
            more_fragments: header.more_fragments(),
            fragment_offset: header.fragment_offset(),
            ttl: header.ttl(),
            protocol: header.protocol(),
            source: header.source(),
            destination: header.destination(),
        }
    }

    /// Writes a header of 20 bytes with its checksum.
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        let mut header = Ipv4::new(bytes);
        header.set_version_ihl(0x45);
        header.set_traffic_class(self.traffic_class);
        header.set_total_len(self.total_len);
        header.set_identification(self.identification);
        let dont_fragment = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        let more_fragments = if self.more_fragments { MORE_FRAGMENTS } else { 0 };
        header.set_flags_offset(dont_fragment | more_fragments | self.fragment_offset >> 3);
        header.set_ttl(self.ttl);
        header.set_protocol(self.protocol);
        header.set_source(self.source);
        header.set_destination(self.destination);
        header.fill_checksum();
    }
}

/// Whether no host may send from this address (RFC 1812 5.3.7): "this network", loopback, multicast, reserved
/// and the limited broadcast.
#[inline]
pub const fn is_martian_source(addr: Ipv4Addr) -> bool {
    let [first, ..] = addr.octets();
    first == 0 || first == 127 || first >= 224
}

/// Whether no router may forward to this address (RFC 1812 5.3.7): "this network", loopback, reserved and the
/// limited broadcast. Multicast is not among them; see [`Ipv4Addr::is_multicast`].
#[inline]
pub const fn is_martian_destination(addr: Ipv4Addr) -> bool {
    let [first, ..] = addr.octets();
    first == 0 || first == 127 || first >= 240
}

/// Whether a router must keep packets from or to this address on its link: 169.254/16 (RFC 3927 2.6.2), and
/// 224.0.0/24 (RFC 5771 4).
#[inline]
pub const fn is_link_scope(addr: Ipv4Addr) -> bool {
    addr.is_link_local() || matches!(addr.octets(), [224, 0, 0, _])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn repr() -> impl Strategy<Value = Repr> {
        let flags = (any::<bool>(), any::<bool>(), 0u16..0x2000);
        (any::<(u8, u16, u16, u8, u8)>(), flags, any::<([u8; 4], [u8; 4])>()).prop_map(|(a, b, c)| Repr {
            traffic_class: a.0,
            total_len: a.1,
            identification: a.2,
            dont_fragment: b.0,
            more_fragments: b.1,
            fragment_offset: b.2 * 8,
            ttl: a.3,
            protocol: a.4,
            source: c.0.into(),
            destination: c.1.into(),
        })
    }

    /// RFC 1071-style sample with a known checksum.
    const SAMPLE: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7,
    ];

    fn packet() -> Vec<u8> {
        let mut bytes = SAMPLE.to_vec();
        bytes.resize(0x73, 7);
        bytes
    }

    #[test]
    fn sample_parses() {
        let bytes = [packet(), vec![0; 9]].concat();
        let packet = parse(&bytes).unwrap();
        assert_eq!((packet.payload.len(), packet.options.len()), (0x73 - 20, 0));
        let header = packet.header;
        assert!(header.dont_fragment() && !header.is_fragment());
        assert_eq!((header.ttl(), header.protocol(), header.checksum()), (64, 17, 0xb861));
        assert_eq!(header.destination(), Ipv4Addr::new(192, 168, 0, 199));
    }

    #[test]
    fn each_error() {
        let fail = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = packet();
            change(&mut bytes);
            parse(&bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(fail(&|b| b.truncate(19)), Error::Truncated);
        assert_eq!(
            fail(&|b| {
                b[0] = 0x4f;
                b.truncate(59)
            }),
            Error::Truncated
        );
        assert_eq!(fail(&|b| b[0] = 0x65), Error::Version);
        assert_eq!(fail(&|b| b[0] = 0x44), Error::HeaderLength);
        assert_eq!(fail(&|b| b[3] = 19), Error::TotalLength);
        assert_eq!(fail(&|b| b.truncate(0x72)), Error::BeyondFrame);
        assert_eq!(fail(&|b| b[8] = 63), Error::Checksum);
    }

    #[test]
    fn options() {
        let found: Vec<_> = Options::new(&[1, 148, 4, 0, 0, 1, 131, 3, 4, 0, 99]).collect();
        assert_eq!(found, [Ok((148, &[0, 0][..])), Ok((131, &[4][..]))]);
        let summary = summarise_options(&[148, 4, 0, 0, 137, 3, 4, 0]).unwrap();
        assert_eq!(summary, OptionSummary { source_route: true, router_alert: true, record: false });
        for bad in [&[7][..], &[7, 0], &[7, 1, 0], &[7, 5, 0, 0]] {
            assert_eq!(summarise_options(bad), Err(MalformedOption), "{bad:?}");
        }
    }

    #[test]
    fn options_are_under_the_checksum() {
        let mut bytes = packet();
        bytes.splice(20..20, [148, 4, 0, 0]);
        bytes[0] = 0x46;
        bytes[3] += 4;
        bytes[10..12].copy_from_slice(&[0, 0]);
        let checksum = Sum::of(&bytes[..24]).checksum();
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(parse(&bytes).unwrap().options, [148, 4, 0, 0]);
        bytes[22] = 1;
        assert_eq!(parse(&bytes).map(|_| ()), Err(Error::Checksum));
    }

    #[test]
    fn kinds_of_address() {
        let martian = |text: &str| is_martian_source(text.parse().unwrap());
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(martian(text), "{text}");
        }
        for text in ["1.0.0.0", "10.0.0.1", "126.255.255.255", "128.0.0.0", "169.254.1.1", "223.255.255.255"]
        {
            assert!(!martian(text), "{text}");
        }
        assert!(!is_martian_destination(Ipv4Addr::new(224, 0, 0, 1)));
        assert!(is_martian_destination(Ipv4Addr::BROADCAST));
        assert!(is_link_scope(Ipv4Addr::new(224, 0, 0, 251)) && !is_link_scope(Ipv4Addr::new(224, 0, 1, 1)));
    }

    #[test]
    fn the_checksum_stays_right_whatever_it_was_when_the_ttl_falls() {
        for identification in 0..=u16::MAX {
            let mut header = Ipv4::new([0; HEADER_LEN]);
            header.bytes_mut()[..10].copy_from_slice(&[0x45, 0, 0, 20, 0, 0, 0, 0, 9, 17]);
            header.bytes_mut()[4..6].copy_from_slice(&identification.to_be_bytes());
            header.fill_checksum();
            assert_eq!(header.decrement_ttl(), 8);
            let lowered = *header.bytes();
            header.fill_checksum();
            assert_eq!(lowered, *header.bytes(), "{identification:#x}");
        }
    }

    proptest! {
        #[test]
        fn emit_then_parse(repr in repr()) {
            let mut bytes = [0xff; HEADER_LEN];
            repr.emit(&mut bytes);
            prop_assert!(Sum::of(&bytes).is_valid());
            prop_assert_eq!(Repr::parse(&Ipv4::new(&bytes)), repr);
        }

        #[test]
        fn decrement_keeps_the_checksum(repr in repr()) {
            let mut header = Ipv4::new([0; HEADER_LEN]);
            repr.emit(header.bytes_mut());
            prop_assert_eq!(header.decrement_ttl(), repr.ttl.saturating_sub(1));
            let mut fresh = header;
            fresh.fill_checksum();
            prop_assert_eq!(header, fresh);
        }

        #[test]
        fn parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..100), ihl in 0u8..16, total in 0u16..120) {
            let mut bytes = bytes;
            if bytes.len() >= 20 {
                bytes[0] = 0x40 | ihl;
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
            }
            if let Ok(packet) = parse_lengths(&bytes) {
                prop_assert_eq!(20 + packet.options.len() + packet.payload.len(), usize::from(total));
                prop_assert!(usize::from(total) <= bytes.len());
            }
        }
    }
}
