//! Policies as they are written, and the rules they become.

use super::{Address, BURST, MAX_RULES, SpdError};
use crate::table::address::IpVersion;

/// A prefix of either IP version. Bits beyond the length are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// IPv4 address and length.
    V4(u32, u8),
    /// IPv6 address and length.
    V6(u128, u8),
}

impl Prefix {
    const fn parts(self) -> (IpVersion, u128, u8) {
        match self {
            Self::V4(address, length) => (IpVersion::V4, address as u128, length),
            Self::V6(address, length) => (IpVersion::V6, address, length),
        }
    }
}

/// A port selector. For ICMP: of types (source) or codes (destination).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// Every packet, whether its ports can be read or not.
    #[default]
    Any,
    /// Only packets whose ports cannot be read.
    Opaque,
    /// Packets whose port lies in one of these ranges, both ends included.
    Ranges(Vec<(u16, u16)>),
}

/// The number that stands for a port that cannot be read: above every port.
pub(super) const OPAQUE_PORT: u32 = 1 << 16;

/// One policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Source prefixes; none = any source.
    pub sources: Vec<Prefix>,
    /// Destination prefixes; none = any destination.
    pub destinations: Vec<Prefix>,
    /// IP protocol or next header; none = any.
    pub protocol: Option<u8>,
    /// Source ports, or ICMP types.
    pub source_ports: Ports,
    /// Destination ports, or ICMP codes.
    pub destination_ports: Ports,
    /// What the caller wants to know when this policy matches.
    pub action: u32,
}

/// What of a packet the policies see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// IP protocol or next header.
    pub protocol: u8,
    /// Source port, or ICMP type.
    pub source_port: u16,
    /// Destination port, or ICMP code.
    pub destination_port: u16,
    /// The ports cannot be read: the packet is a fragment other than the first, or its protocol has none. The two
    /// fields above then mean nothing.
    pub opaque_ports: bool,
}

impl<A: Address> Key<A> {
    #[inline(always)]
    pub(super) fn port(&self, port: u16) -> u32 {
        if self.opaque_ports { OPAQUE_PORT } else { u32::from(port) }
    }

    /// The value in one field.
    #[inline(always)]
    pub(super) fn field(&self, field: Field) -> A {
        match field {
            Field::Source => self.source,
            Field::Destination => self.destination,
            Field::SourcePort => A::truncate(self.port(self.source_port).into()),
            Field::DestinationPort => A::truncate(self.port(self.destination_port).into()),
            Field::Protocol => A::truncate(self.protocol.into()),
        }
    }
}

/// Keys that are compared at once; with few packets, some of them nobody's.
const GROUP: usize = 8;

/// The keys of a burst, field by field, so that a rule can be compared with several packets at once.
#[derive(Clone, Debug)]
pub struct Keys<A> {
    source: [A; BURST],
    destination: [A; BURST],
    source_port: [u32; BURST],
    destination_port: [u32; BURST],
    protocol: [u32; BURST],
    length: usize,
}

impl<A: Address> Default for Keys<A> {
    fn default() -> Self {
        let (addresses, numbers) = ([A::default(); BURST], [0; BURST]);
        Self {
            source: addresses,
            destination: addresses,
            source_port: numbers,
            destination_port: numbers,
            protocol: numbers,
            length: 0,
        }
    }
}

impl<A: Address> Keys<A> {
    /// Adds a key. One burst holds no more than there is room for.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "the place is below the arrays' length")]
    pub fn push(&mut self, key: &Key<A>) {
        let place = self.length % BURST;
        self.source[place] = key.source;
        self.destination[place] = key.destination;
        self.source_port[place] = key.port(key.source_port);
        self.destination_port[place] = key.port(key.destination_port);
        self.protocol[place] = key.protocol.into();
        self.length = place + 1;
    }

    /// Sets `results[i]` to the rule's policy for each key `i` that the rule covers. No branch depends on a packet.
    #[inline]
    pub(super) fn choose(&self, rule: &Rule<A>, results: &mut [u32; BURST]) {
        // Whole groups, and no iterator but zips, or this loop would not become one of vectors.
        let groups = self.length.div_ceil(GROUP) * GROUP;
        let Some(results) = results.get_mut(..groups) else { return };
        let addresses = self.source.iter().zip(&self.destination);
        let ports = self.source_port.iter().zip(&self.destination_port);
        let fields = results.iter_mut().zip(addresses.zip(ports)).zip(&self.protocol);
        for ((result, ((source, destination), (source_port, destination_port))), protocol) in fields {
            let covers = rule.source.contains(*source)
                & rule.destination.contains(*destination)
                & rule.source_port.contains(*source_port)
                & rule.destination_port.contains(*destination_port)
                & rule.protocol.contains(*protocol);
            *result = if covers { rule.policy } else { *result };
        }
    }
}

/// The fields of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Source address.
    Source,
    /// Destination address.
    Destination,
    /// Source port, 17 bits.
    SourcePort,
    /// Destination port, 17 bits.
    DestinationPort,
    /// Protocol.
    Protocol,
}

/// Every field.
pub const FIELDS: [Field; 5] =
    [Field::Source, Field::Destination, Field::DestinationPort, Field::SourcePort, Field::Protocol];

/// Numbers from `low` to `low + span`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<N> {
    pub(super) low: N,
    pub(super) span: N,
}

impl<N: Address> Range<N> {
    /// One comparison for both ends.
    #[inline(always)]
    pub(super) fn contains(&self, number: N) -> bool {
        number.wrapping_sub(self.low) <= self.span
    }

    fn ends(&self) -> (u128, u128) {
        (self.low.widen(), self.low.widen() + self.span.widen())
    }
}

/// Every port, and none.
pub(super) const ANY_PORT: Range<u32> = Range { low: 0, span: OPAQUE_PORT };
/// Every protocol.
const ANY_PROTOCOL: Range<u32> = Range { low: 0, span: 255 };

/// A range in every field, for one policy.
#[derive(Clone, Copy, Debug)]
pub struct Rule<A> {
    pub(super) source: Range<A>,
    pub(super) destination: Range<A>,
    pub(super) source_port: Range<u32>,
    pub(super) destination_port: Range<u32>,
    pub(super) protocol: Range<u32>,
    /// Place of the policy: lower wins.
    pub policy: u32,
}

impl<A: Address> Rule<A> {
    /// A rule that covers no packet.
    pub fn never() -> Self {
        let any = Range { low: 0, span: 0 };
        Self {
            source: Range { low: A::default(), span: A::default() },
            destination: Range { low: A::default(), span: A::default() },
            source_port: any,
            destination_port: any,
            protocol: Range { low: 256, span: 0 },
            policy: super::NO_POLICY,
        }
    }

    /// Whether the rule covers a packet. Without branches: which field fails is random.
    #[inline(always)]
    pub fn matches(&self, key: &Key<A>) -> bool {
        self.source.contains(key.source)
            & self.destination.contains(key.destination)
            & self.source_port.contains(key.port(key.source_port))
            & self.destination_port.contains(key.port(key.destination_port))
            & self.protocol.contains(key.protocol.into())
    }

    /// First and last number in a field.
    pub fn ends(&self, field: Field) -> (u128, u128) {
        match field {
            Field::Source => self.source.ends(),
            Field::Destination => self.destination.ends(),
            Field::SourcePort => self.source_port.ends(),
            Field::DestinationPort => self.destination_port.ends(),
            Field::Protocol => self.protocol.ends(),
        }
    }

    /// First source and destination.
    pub fn addresses(&self) -> (A, A) {
        (self.source.low, self.destination.low)
    }

    /// Lengths of source and destination prefix.
    pub fn lengths(&self) -> (u8, u8) {
        let length = |range: &Range<A>| A::WIDTH - (128 - range.span.widen().leading_zeros()) as u8;
        (length(&self.source), length(&self.destination))
    }
}

/// The rules of one IP version.
pub type Rules<A> = Vec<Rule<A>>;

/// The rules of all policies, in their order.
pub fn expand(policies: &[Policy]) -> Result<(Rules<u32>, Rules<u128>), SpdError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (policy, selectors) in policies.iter().enumerate() {
        let (before_v4, before_v6) = (v4.len(), v6.len());
        expand_version(policy, selectors, &mut v4)?;
        expand_version(policy, selectors, &mut v6)?;
        if v4.len() == before_v4 && v6.len() == before_v6 {
            return Err(SpdError::VersionsDiffer { policy });
        }
    }
    Ok((v4, v6))
}

fn expand_version<A: Address>(
    policy: usize,
    selectors: &Policy,
    rules: &mut Rules<A>,
) -> Result<(), SpdError> {
    let sources = address_ranges::<A>(policy, &selectors.sources)?;
    let destinations = address_ranges::<A>(policy, &selectors.destinations)?;
    let source_ports = port_ranges(policy, &selectors.source_ports)?;
    let destination_ports = port_ranges(policy, &selectors.destination_ports)?;
    let protocol = match selectors.protocol {
        Some(protocol) => Range { low: protocol.into(), span: 0 },
        None => ANY_PROTOCOL,
    };
    let lists = [sources.len(), destinations.len(), source_ports.len(), destination_ports.len()];
    let count = lists.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
    if count.is_none_or(|count| rules.len().saturating_add(count) > MAX_RULES) {
        return Err(SpdError::TooManyRules { policy });
    }
    for &source in &sources {
        for &destination in &destinations {
            for &source_port in &source_ports {
                for &destination_port in &destination_ports {
                    let policy = policy as u32;
                    rules.push(Rule { source, destination, source_port, destination_port, protocol, policy });
                }
            }
        }
    }
    Ok(())
}

fn address_ranges<A: Address>(policy: usize, prefixes: &[Prefix]) -> Result<Vec<Range<A>>, SpdError> {
    if prefixes.is_empty() {
        return Ok(vec![Range { low: A::default(), span: A::MAX }]);
    }
    let mut ranges = Vec::new();
    for prefix in prefixes {
        let (version, address, length) = prefix.parts();
        if version != A::VERSION {
            continue;
        }
        if length > A::WIDTH {
            return Err(SpdError::LengthTooLong { policy, length });
        }
        let mask = A::mask(length);
        ranges.push(Range { low: A::truncate(address) & mask, span: !mask });
    }
    Ok(ranges)
}

fn port_ranges(policy: usize, ports: &Ports) -> Result<Vec<Range<u32>>, SpdError> {
    match ports {
        Ports::Any => Ok(vec![ANY_PORT]),
        Ports::Opaque => Ok(vec![Range { low: OPAQUE_PORT, span: 0 }]),
        Ports::Ranges(ranges) => {
            if ranges.is_empty() || ranges.iter().any(|(low, high)| low > high) {
                return Err(SpdError::EmptyRange { policy });
            }
            let range = |&(low, high): &(u16, u16)| Range { low: low.into(), span: u32::from(high - low) };
            Ok(ranges.iter().map(range).collect())
        }
    }
}
