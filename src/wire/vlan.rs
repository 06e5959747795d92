//! VLAN tags (802.1Q, 802.1ad) and the layer-2 header with up to two of them.

use super::ethernet::{EtherType, Ethernet, MacAddr};
use std::fmt;

/// Bytes of one tag.
pub const TAG_LEN: usize = 4;
/// The largest layer-2 header here: Ethernet and two tags.
pub const MAX_L2_LEN: usize = 22;

/// A VLAN identifier, 0 to 4094; 0 means untagged, or tagged for priority only (802.1Q 9.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// No VLAN.
    pub const UNTAGGED: Self = Self(0);

    /// `None` above 4094: 4095 is reserved.
    #[inline]
    pub const fn new(id: u16) -> Option<Self> {
        if id < 4095 { Some(Self(id)) } else { None }
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that is no VLAN identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a VLAN identifier is 1 to 4094, or 0 for untagged")]
pub struct VlanIdError;

impl TryFrom<u16> for VlanId {
    type Error = VlanIdError;
    fn try_from(id: u16) -> Result<Self, VlanIdError> {
        Self::new(id).ok_or(VlanIdError)
    }
}

/// Which of the two tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TagKind {
    /// 802.1Q, customer tag, TPID 0x8100.
    Customer,
    /// 802.1ad, service tag, TPID 0x88a8.
    Service,
}

impl TagKind {
    /// The tag's TPID.
    #[inline]
    pub const fn ether_type(self) -> EtherType {
        match self {
            Self::Customer => EtherType::VLAN,
            Self::Service => EtherType::SERVICE_VLAN,
        }
    }

    /// The tag of a TPID, or `None` when it is an EtherType.
    #[inline]
    pub const fn of(ether_type: EtherType) -> Option<Self> {
        match ether_type {
            EtherType::VLAN => Some(Self::Customer),
            EtherType::SERVICE_VLAN => Some(Self::Service),
            _ => None,
        }
    }
}

/// A tag: its kind and its tag control information (TCI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// 802.1Q or 802.1ad.
    pub kind: TagKind,
    /// Priority (3 bits), drop eligible (1), VLAN identifier (12).
    pub tci: u16,
}

impl Tag {
    /// A tag from its parts; of `priority` the low three bits count.
    pub const fn new(kind: TagKind, id: VlanId, priority: u8, drop_eligible: bool) -> Self {
        Self { kind, tci: (priority as u16 & 7) << 13 | (drop_eligible as u16) << 12 | id.0 }
    }

    /// The VLAN identifier; `None` for the reserved 4095, which must not be sent (802.1Q 9.6).
    #[inline]
    pub const fn id(self) -> Option<VlanId> {
        VlanId::new(self.tci & 0xfff)
    }

    /// The priority code point, 0 to 7.
    #[inline]
    pub const fn priority(self) -> u8 {
        (self.tci >> 13) as u8
    }

    /// The drop eligible indicator.
    #[inline]
    pub const fn drop_eligible(self) -> bool {
        self.tci & 0x1000 != 0
    }
}

/// The tags of a frame, outermost first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tags {
    /// No tag.
    #[default]
    None,
    /// One tag.
    One(Tag),
    /// An outer and an inner tag.
    Two(Tag, Tag),
}

impl Tags {
    /// Bytes the tags take.
    #[inline]
    pub const fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => TAG_LEN,
            Self::Two(..) => 2 * TAG_LEN,
        }
    }

    /// Whether there is no tag.
    #[inline]
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None)
    }

    /// The tags with `tag` put outside; `None` when there are two already.
    #[inline]
    pub const fn push(self, tag: Tag) -> Option<Self> {
        match self {
            Self::None => Some(Self::One(tag)),
            Self::One(inner) => Some(Self::Two(tag, inner)),
            Self::Two(..) => None,
        }
    }

    /// The outer tag, and the tags without it.
    #[inline]
    pub const fn pop(self) -> Option<(Tag, Self)> {
        match self {
            Self::None => None,
            Self::One(tag) => Some((tag, Self::None)),
            Self::Two(outer, inner) => Some((outer, Self::One(inner))),
        }
    }
}

/// The frame ends within its layer-2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame ends within its Ethernet header or tags")]
pub struct Truncated;

/// A parsed layer-2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2 {
    /// The destination address.
    pub destination: MacAddr,
    /// The source address.
    pub source: MacAddr,
    /// Up to two tags.
    pub tags: Tags,
    /// The EtherType after the tags; a TPID if there was a third tag.
    pub ether_type: EtherType,
}

impl L2 {
    /// Reads the header of a frame and steps over up to two tags of either kind, in any order.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, Truncated> {
        let (ethernet, rest) = Ethernet::split(frame).ok_or(Truncated)?;
        let (mut tags, mut ether_type) = (Tags::None, ethernet.ether_type());
        if let Some(kind) = TagKind::of(ether_type) {
            let (outer, next, rest) = Self::tag(kind, rest)?;
            (tags, ether_type) = (Tags::One(outer), next);
            if let Some(kind) = TagKind::of(ether_type) {
                let (inner, next, _) = Self::tag(kind, rest)?;
                (tags, ether_type) = (Tags::Two(outer, inner), next);
            }
        }
        Ok(Self { destination: ethernet.destination(), source: ethernet.source(), tags, ether_type })
    }

    #[inline]
    fn tag(kind: TagKind, bytes: &[u8]) -> Result<(Tag, EtherType, &[u8]), Truncated> {
        let (&[t0, t1, e0, e1], rest) = bytes.split_first_chunk().ok_or(Truncated)?;
        let tag = Tag { kind, tci: u16::from_be_bytes([t0, t1]) };
        Ok((tag, EtherType(u16::from_be_bytes([e0, e1])), rest))
    }

    /// Bytes of the header: 14, 18 or 22; where layer 3 starts.
    #[inline]
    pub const fn header_len(&self) -> usize {
        super::ethernet::HEADER_LEN + self.tags.len()
    }
}

/// A layer-2 header ready to be copied before a packet: made once for an interface and neighbour, written often.
///
/// To push, pop or change tags is to write another template in front of the same layer-3 packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct L2Header {
    bytes: [u8; MAX_L2_LEN],
    len: u8,
}

impl L2Header {
    /// The header with these parts, 14, 18 or 22 bytes long.
    pub fn new(destination: MacAddr, source: MacAddr, tags: Tags, ether_type: EtherType) -> Self {
        let mut bytes = [0; MAX_L2_LEN];
        let types = match tags {
            Tags::None => [ether_type.0, 0, 0, 0, 0],
            Tags::One(tag) => [tag.kind.ether_type().0, tag.tci, ether_type.0, 0, 0],
            Tags::Two(outer, inner) => {
                [outer.kind.ether_type().0, outer.tci, inner.kind.ether_type().0, inner.tci, ether_type.0]
            }
        };
        let words = types.into_iter().flat_map(u16::to_be_bytes);
        for (place, byte) in bytes.iter_mut().zip(destination.0.into_iter().chain(source.0).chain(words)) {
            *place = byte;
        }
        Self { bytes, len: (super::ethernet::HEADER_LEN + tags.len()) as u8 }
    }

    /// Bytes of the header: 14, 18 or 22.
    #[inline]
    pub const fn header_len(&self) -> usize {
        self.len as usize
    }

    /// The header's bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.header_len()).unwrap_or(&self.bytes)
    }

    /// Copies the header to the start of `buffer` and returns its length; `None`, and nothing written, when
    /// it does not fit.
    #[inline]
    pub fn write(&self, buffer: &mut [u8]) -> Option<usize> {
        // Copies of known sizes are a few moves each; one of unknown size is a call.
        match self.len {
            14 => *buffer.first_chunk_mut::<14>()? = *self.bytes.first_chunk()?,
            18 => *buffer.first_chunk_mut::<18>()? = *self.bytes.first_chunk()?,
            _ => *buffer.first_chunk_mut::<22>()? = self.bytes,
        }
        Some(self.header_len())
    }

    /// The template for another EtherType behind the same addresses and tags.
    #[must_use]
    pub fn with_ether_type(mut self, ether_type: EtherType) -> Self {
        let end = self.header_len();
        if let Some(place) = self.bytes.get_mut(..end).and_then(<[u8]>::last_chunk_mut) {
            *place = ether_type.0.to_be_bytes();
        }
        self
    }

    /// The template towards another station.
    #[must_use]
    pub fn with_destination(mut self, destination: MacAddr) -> Self {
        super::field::set_array::<0, 6, MAX_L2_LEN>(&mut self.bytes, destination.0);
        self
    }
}

impl fmt::Debug for L2Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        L2::parse(self.as_bytes()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag() -> impl Strategy<Value = Tag> {
        (any::<bool>(), any::<u16>()).prop_map(|(service, tci)| Tag {
            kind: if service { TagKind::Service } else { TagKind::Customer },
            tci,
        })
    }

    fn tags() -> impl Strategy<Value = Tags> {
        prop_oneof![
            Just(Tags::None),
            tag().prop_map(Tags::One),
            (tag(), tag()).prop_map(|(a, b)| Tags::Two(a, b))
        ]
    }

    #[test]
    fn identifiers() {
        assert_eq!(VlanId::new(4094).map(VlanId::get), Some(4094));
        assert_eq!(VlanId::new(4095), None);
        assert_eq!(VlanId::try_from(65535), Err(VlanIdError));
        let tag = Tag::new(TagKind::Service, VlanId::new(100).unwrap(), 5, true);
        assert_eq!((tag.tci, tag.priority(), tag.drop_eligible()), (0xb064, 5, true));
        assert_eq!(Tag { kind: TagKind::Customer, tci: 0x0fff }.id(), None);
    }

    #[test]
    fn q_in_q_bytes() {
        let outer = Tag::new(TagKind::Service, VlanId::new(2).unwrap(), 0, false);
        let inner = Tag::new(TagKind::Customer, VlanId::new(3).unwrap(), 7, false);
        let header =
            L2Header::new(MacAddr([1; 6]), MacAddr([2; 6]), Tags::Two(outer, inner), EtherType::IPV4);
        assert_eq!(header.as_bytes()[12..], [0x88, 0xa8, 0, 2, 0x81, 0, 0xe0, 3, 8, 0]);
        assert_eq!(
            L2Header::new(MacAddr([1; 6]), MacAddr([2; 6]), Tags::One(inner), EtherType::IPV6)
                .with_ether_type(EtherType::IPV4)
                .with_destination(MacAddr([9; 6]))
                .as_bytes(),
            [9, 9, 9, 9, 9, 9, 2, 2, 2, 2, 2, 2, 0x81, 0, 0xe0, 3, 8, 0]
        );
    }

    #[test]
    fn a_third_tag_is_left_to_the_caller() {
        let mut frame = [0; 26];
        for at in [12, 16, 20] {
            frame[at..at + 2].copy_from_slice(&[0x81, 0]);
        }
        assert_eq!(L2::parse(&frame).map(|l2| l2.ether_type), Ok(EtherType::VLAN));
    }

    proptest! {
        #[test]
        fn emit_then_parse(destination: [u8; 6], source: [u8; 6], tags in tags(), ether_type in 0x0800u16..0x8100) {
            let (destination, source) = (MacAddr(destination), MacAddr(source));
            let l2 = L2 { destination, source, tags, ether_type: EtherType(ether_type) };
            let template = L2Header::new(destination, source, tags, l2.ether_type);
            let mut buffer = [0xaa; 64];
            prop_assert_eq!(template.write(&mut buffer), Some(l2.header_len()));
            prop_assert_eq!(L2::parse(&buffer), Ok(l2));
            prop_assert_eq!(&buffer[..l2.header_len()], template.as_bytes());
            prop_assert!(buffer[l2.header_len()..].iter().all(|byte| *byte == 0xaa));
            for short in 0..l2.header_len() {
                prop_assert_eq!(L2::parse(&template.as_bytes()[..short]), Err(Truncated));
                prop_assert_eq!(template.write(&mut buffer[..short]), None);
            }
        }

        #[test]
        fn push_then_pop(tags in tags(), tag in tag()) {
            match tags.push(tag) {
                Some(pushed) => prop_assert_eq!(pushed.pop(), Some((tag, tags))),
                None => prop_assert_eq!(tags.len(), 8),
            }
        }
    }
}
