//! A handful of IPv4 rules, laid out so that one packet is compared with all of them at once.

use super::rule::{ANY_PORT, Key, OPAQUE_PORT, Range, Rule};
use super::{Address, NO_POLICY};
use crate::table::address::IpVersion;

/// The most rules: eight of 32 bits are two vectors of every x86-64 processor.
pub const MOST: usize = 8;

/// Rules that are compared in one step.
const STEP: usize = 4;

/// The difference between numbers with and without signs: SSE2 compares only those with.
const SIGN: u32 = 1 << 31;

/// The same of two numbers in one word.
const SIGNS: u32 = SIGN | 1 << 15;

/// One field of four rules: first numbers, and how many follow each; both with [`SIGN`] turned over, so that what is
/// compared is turned over as well.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct Field {
    low: [u32; STEP],
    span: [u32; STEP],
}

/// Both ports of four rules, likewise: the source port is the lower half of a word.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct PortFields {
    low: [u32; STEP],
    span: [u32; STEP],
}

/// Four rules, field by field.
#[derive(Debug, Clone, Copy)]
struct Four {
    source: Field,
    destination: Field,
    ports: PortFields,
}

impl Four {
    fn new(rules: &[Rule<u32>; STEP]) -> Self {
        let field = |range: fn(&Rule<u32>) -> Range<u32>| Field {
            low: rules.each_ref().map(|rule| range(rule).low ^ SIGN),
            span: rules.each_ref().map(|rule| range(rule).span ^ SIGN),
        };
        // Of ports that cannot be read others say whether a rule covers them.
        let ports = |end: fn(Range<u32>) -> u32| {
            let half = |range| end(range).min(u16::MAX.into());
            let both = |rule: &Rule<u32>| half(rule.source_port) | half(rule.destination_port) << 16;
            rules.each_ref().map(|rule| both(rule) ^ SIGNS)
        };
        Self {
            source: field(|rule| rule.source),
            destination: field(|rule| rule.destination),
            ports: PortFields { low: ports(|range| range.low), span: ports(|range| range.span) },
        }
    }
}

/// Both ports of a packet as one word, the first in the lower half; `None` where they cannot be read.
pub type PortPair = Option<u32>;

/// Which of the rules cover these ends and, where they are given, these ports: a bit each. The compiler makes four times as many
/// instructions of loops over the same arrays, and every packet takes this way.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn covers(rules: &[Four; MOST / STEP], more: bool, ends: (u32, u32), ports: PortPair) -> u32 {
    match ports {
        // SAFETY: SSE2 is part of x86-64, and the function asks for nothing else.
        Some(ports) => unsafe { covers_all_sse2(rules, more, ends.0, ends.1, ports) },
        // SAFETY: likewise.
        None => unsafe { covers_ends_sse2(rules, more, ends.0, ends.1) },
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn covers_all_sse2(
    [first, second]: &[Four; MOST / STEP],
    more: bool,
    source: u32,
    destination: u32,
    ports: u32,
) -> u32 {
    use std::arch::x86_64::{
        _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_cmpgt_epi16, _mm_movemask_ps, _mm_or_si128, _mm_setzero_si128,
        _mm_sub_epi16,
    };
    // Each field of the packet in a vector of its own: in an array it would go by way of memory, there to be waited for.
    let (source, destination, ports) = (vector(source), vector(destination), vector(ports));
    let four = |rules: &Four| {
        let ends = _mm_or_si128(refuse(&rules.source, source), refuse(&rules.destination, destination));
        let above = _mm_sub_epi16(ports, lanes(rules.ports.low));
        let any = _mm_or_si128(ends, _mm_cmpgt_epi16(above, lanes(rules.ports.span)));
        _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(any, _mm_setzero_si128()))).cast_unsigned()
    };
    if more { four(first) | four(second) << STEP } else { four(first) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn covers_ends_sse2([first, second]: &[Four; MOST / STEP], more: bool, source: u32, destination: u32) -> u32 {
    use std::arch::x86_64::{_mm_castsi128_ps, _mm_movemask_ps, _mm_or_si128};
    let (source, destination) = (vector(source), vector(destination));
    let four = |rules: &Four| {
        let any = _mm_or_si128(refuse(&rules.source, source), refuse(&rules.destination, destination));
        !_mm_movemask_ps(_mm_castsi128_ps(any)).cast_unsigned() & 0xf
    };
    if more { four(first) | four(second) << STEP } else { four(first) }
}

/// The same number in every lane.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn vector(value: u32) -> std::arch::x86_64::__m128i {
    std::arch::x86_64::_mm_set1_epi32(value.cast_signed())
}

/// A number for each lane.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn lanes([a, b, c, d]: [u32; STEP]) -> std::arch::x86_64::__m128i {
    let (a, b, c, d) = (a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed());
    std::arch::x86_64::_mm_set_epi32(d, c, b, a)
}

/// Which of four rules do not cover a packet with this number in this field.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn refuse(field: &Field, value: std::arch::x86_64::__m128i) -> std::arch::x86_64::__m128i {
    use std::arch::x86_64::{_mm_cmpgt_epi32, _mm_sub_epi32};
    _mm_cmpgt_epi32(_mm_sub_epi32(value, lanes(field.low)), lanes(field.span))
}

#[cfg(not(target_arch = "x86_64"))]
fn covers(rules: &[Four; MOST / STEP], _: bool, ends: (u32, u32), ports: PortPair) -> u32 {
    let within = |field: &Field, rule: usize, value: u32| {
        let (low, span) = (field.low.get(rule), field.span.get(rule));
        low.zip(span).is_some_and(|(low, span)| value.wrapping_sub(*low).cast_signed() <= span.cast_signed())
    };
    let port = |rules: &Four, rule: usize, ports: u32, shift: u32| {
        let half = |word: &u32| (word >> shift) as u16;
        let (low, span) = (rules.ports.low.get(rule).map(half), rules.ports.span.get(rule).map(half));
        let above = low.map(|low| half(&ports).wrapping_sub(low));
        above.zip(span).is_some_and(|(above, span)| above.cast_signed() <= span.cast_signed())
    };
    let covers = |rules: &Four, rule: usize| {
        within(&rules.source, rule, ends.0)
            && within(&rules.destination, rule, ends.1)
            && ports.is_none_or(|ports| port(rules, rule, ports, 0) && port(rules, rule, ports, 16))
    };
    let places = rules.iter().flat_map(|four| (0..STEP).map(move |rule| (four, rule)));
    places.enumerate().fold(0, |all, (place, (four, rule))| all | u32::from(covers(four, rule)) << place)
}

/// All rules of an SPD for IPv4, when they are few: then comparing a packet with each of them costs least.
#[derive(Debug, Clone)]
pub struct Few {
    /// The last of `rules` is followed by rules that cover nothing.
    rules: [Four; MOST / STEP],
    /// Whether the second four have any.
    more: bool,
    /// Whether any rule asks for ports.
    by_ports: bool,
    /// Which rules cover packets of a protocol whose ports can be read, as far as these go: a bit each.
    readable: [u8; 256],
    /// Which cover packets of a protocol whose ports cannot be read.
    opaque: [u8; 256],
    /// By place of the rule; behind all of them, that of no rule.
    policies: [u32; MOST + 1],
}

impl Few {
    /// Up to eight rules in order of priority. `None` when they are more.
    pub fn new(rules: &[Rule<u32>]) -> Option<Self> {
        if rules.len() > MOST {
            return None;
        }
        let by_protocol = |covers: fn(Range<u32>) -> bool| {
            std::array::from_fn(|protocol| {
                let covers = |rule: &Rule<u32>| {
                    covers(rule.source_port)
                        && covers(rule.destination_port)
                        && rule.protocol.contains(protocol as u32)
                };
                let bits = rules.iter().enumerate().map(|(place, rule)| u8::from(covers(rule)) << place);
                bits.fold(0, |all, bit| all | bit)
            })
        };
        let mut all = [Rule::never(); MOST];
        all.iter_mut().zip(rules).for_each(|(place, rule)| *place = *rule);
        let mut policies = [NO_POLICY; MOST + 1];
        policies.iter_mut().zip(rules).for_each(|(place, rule)| *place = rule.policy);
        let [a, b, c, d, e, f, g, h] = all;
        Some(Self {
            rules: [Four::new(&[a, b, c, d]), Four::new(&[e, f, g, h])],
            more: rules.len() > STEP,
            by_ports: rules
                .iter()
                .any(|rule| (rule.source_port, rule.destination_port) != (ANY_PORT, ANY_PORT)),
            readable: by_protocol(|range| range.low < OPAQUE_PORT),
            opaque: by_protocol(|range| range.contains(OPAQUE_PORT)),
            policies,
        })
    }

    /// The same of any rules that are for IPv4.
    pub fn of<A: Address>(rules: &[Rule<A>]) -> Option<Self> {
        let narrow =
            |range: Range<A>| Range { low: range.low.widen() as u32, span: range.span.widen() as u32 };
        let rule = |rule: &Rule<A>| Rule {
            source: narrow(rule.source),
            destination: narrow(rule.destination),
            source_port: rule.source_port,
            destination_port: rule.destination_port,
            protocol: rule.protocol,
            policy: rule.policy,
        };
        if A::VERSION != IpVersion::V4 || rules.len() > MOST {
            return None;
        }
        Self::new(&rules.iter().map(rule).collect::<Vec<_>>())
    }

    /// As [`Self::find`], for a key of IPv4.
    #[inline(always)]
    pub fn find_key<A: Address>(&self, key: &Key<A>) -> u32 {
        let ends = (key.source.widen() as u32, key.destination.widen() as u32);
        let ports = || {
            let both = u32::from(key.source_port) | u32::from(key.destination_port) << 16;
            (!key.opaque_ports).then_some(both)
        };
        self.find(ends, ports, key.protocol)
    }

    /// The policy of the first rule that covers a packet of these ends (source and destination) and this protocol, or
    /// [`NO_POLICY`]. `ports` is only asked where a rule asks for them.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "a byte is a place in an array of 256")]
    pub fn find(&self, ends: (u32, u32), ports: impl FnOnce() -> PortPair, protocol: u8) -> u32 {
        let protocol = usize::from(protocol);
        let (covers, possible) = if self.by_ports
            && let Some(ports) = ports()
        {
            (covers(&self.rules, self.more, ends, Some(ports)), self.readable[protocol])
        } else {
            (covers(&self.rules, self.more, ends, None), self.opaque[protocol])
        };
        self.first(covers & u32::from(possible))
    }

    /// The policy of the first of the rules that have a bit.
    #[inline(always)]
    fn first(&self, bits: u32) -> u32 {
        // The last stands for none.
        let place = (bits | 1 << MOST).trailing_zeros() as usize;
        self.policies.get(place).copied().unwrap_or(NO_POLICY)
    }
}
