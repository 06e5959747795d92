//! A handful of IPv4 rules, laid out so that one packet is compared with all of them at once.

use super::rule::{Key, OPAQUE_PORT, Range, Rule};
use super::{Address, NO_POLICY};
use crate::table::address::IpVersion;

/// The most rules: eight of 32 bits are two vectors of every x86-64 processor.
pub const MOST: usize = 8;

/// Rules that are compared in one step.
const STEP: usize = 4;

/// The difference between numbers with and without signs: SSE2 compares only those with.
const SIGN: u32 = 1 << 31;

/// One field of four rules: first numbers, and how many follow each; both with [`SIGN`] turned over, so that what is
/// compared is turned over as well.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct Field {
    low: [u32; STEP],
    span: [u32; STEP],
}

/// Four rules, field by field.
#[derive(Debug, Clone, Copy)]
struct Four {
    source: Field,
    destination: Field,
    source_port: Field,
    destination_port: Field,
    protocol: Field,
}

impl Four {
    fn new(rules: &[Rule<u32>; STEP]) -> Self {
        let field = |range: fn(&Rule<u32>) -> Range<u32>| Field {
            low: rules.each_ref().map(|rule| range(rule).low ^ SIGN),
            span: rules.each_ref().map(|rule| range(rule).span ^ SIGN),
        };
        Self {
            source: field(|rule| rule.source),
            destination: field(|rule| rule.destination),
            source_port: field(|rule| rule.source_port),
            destination_port: field(|rule| rule.destination_port),
            protocol: field(|rule| rule.protocol),
        }
    }
}

/// The number that stands for a port that cannot be read.
pub const OPAQUE: u32 = OPAQUE_PORT;

/// Which of the rules cover a packet, a bit each. The compiler makes four times as many instructions of loops over the
/// same arrays, and every packet takes this way.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn covers(rules: &[Four; MOST / STEP], more: bool, ends: (u32, u32), ports: (u32, u32), protocol: u8) -> u32 {
    // SAFETY: SSE2 is part of x86-64, and the function asks for nothing else.
    unsafe { covers_sse2(rules, more, ends.0, ends.1, ports.0, ports.1, protocol.into()) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn covers_sse2(
    [first, second]: &[Four; MOST / STEP],
    more: bool,
    source: u32,
    destination: u32,
    source_port: u32,
    destination_port: u32,
    protocol: u32,
) -> u32 {
    use std::arch::x86_64::{_mm_castsi128_ps, _mm_movemask_ps, _mm_or_si128};
    // Each field of the packet in a vector of its own: in an array it would go by way of memory, there to be waited for.
    let (source, destination) = (vector(source), vector(destination));
    let (source_port, destination_port) = (vector(source_port), vector(destination_port));
    let protocol = vector(protocol);
    let four = |rules: &Four| {
        let addresses = _mm_or_si128(refuse(&rules.source, source), refuse(&rules.destination, destination));
        let ports = _mm_or_si128(
            refuse(&rules.source_port, source_port),
            refuse(&rules.destination_port, destination_port),
        );
        let any = _mm_or_si128(_mm_or_si128(addresses, ports), refuse(&rules.protocol, protocol));
        !_mm_movemask_ps(_mm_castsi128_ps(any)).cast_unsigned() & 0xf
    };
    if more { four(first) | four(second) << STEP } else { four(first) }
}

/// As [`covers`], by addresses alone.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn covers_ends(rules: &[Four; MOST / STEP], more: bool, ends: (u32, u32)) -> u32 {
    // SAFETY: as in `covers`.
    unsafe { covers_ends_sse2(rules, more, ends.0, ends.1) }
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

/// Which of four rules do not cover a packet with this number, turned over, in this field.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn refuse(field: &Field, value: std::arch::x86_64::__m128i) -> std::arch::x86_64::__m128i {
    use std::arch::x86_64::{_mm_cmpgt_epi32, _mm_set_epi32, _mm_sub_epi32};
    let lanes = |[a, b, c, d]: [u32; STEP]| {
        _mm_set_epi32(d.cast_signed(), c.cast_signed(), b.cast_signed(), a.cast_signed())
    };
    _mm_cmpgt_epi32(_mm_sub_epi32(value, lanes(field.low)), lanes(field.span))
}

#[cfg(not(target_arch = "x86_64"))]
fn covers(rules: &[Four; MOST / STEP], _: bool, ends: (u32, u32), ports: (u32, u32), protocol: u8) -> u32 {
    let within = |field: &Field, rule: usize, value: u32| {
        let (low, span) = (field.low.get(rule), field.span.get(rule));
        low.zip(span).is_some_and(|(low, span)| value.wrapping_sub(*low).cast_signed() <= span.cast_signed())
    };
    let covers = |rules: &Four, rule: usize| {
        within(&rules.source, rule, ends.0)
            && within(&rules.destination, rule, ends.1)
            && within(&rules.source_port, rule, ports.0)
            && within(&rules.destination_port, rule, ports.1)
            && within(&rules.protocol, rule, protocol.into())
    };
    let places = rules.iter().flat_map(|four| (0..STEP).map(move |rule| (four, rule)));
    places.enumerate().fold(0, |all, (place, (four, rule))| all | u32::from(covers(four, rule)) << place)
}

#[cfg(not(target_arch = "x86_64"))]
fn covers_ends(rules: &[Four; MOST / STEP], more: bool, ends: (u32, u32)) -> u32 {
    // Where only addresses decide, every port and protocol is covered.
    covers(rules, more, ends, (OPAQUE, OPAQUE), 0)
}

/// All rules of an SPD for IPv4, when they are few: then comparing a packet with each of them costs least.
#[derive(Debug, Clone)]
pub struct Few {
    /// The last of `rules` is followed by rules that cover nothing.
    rules: [Four; MOST / STEP],
    /// Whether the second four have any.
    more: bool,
    /// Whether only addresses decide: no rule asks for ports or a protocol.
    by_ends: bool,
    /// By place of the rule; behind all of them, that of no rule.
    policies: [u32; MOST + 1],
}

impl Few {
    /// Up to eight rules in order of priority. `None` when they are more.
    pub fn new(rules: &[Rule<u32>]) -> Option<Self> {
        if rules.len() > MOST {
            return None;
        }
        let more = rules.len() > STEP;
        let by_ends = rules.iter().all(Rule::is_by_addresses);
        let mut all = [Rule::never(); MOST];
        all.iter_mut().zip(rules).for_each(|(place, rule)| *place = *rule);
        let mut policies = [NO_POLICY; MOST + 1];
        policies.iter_mut().zip(rules).for_each(|(place, rule)| *place = rule.policy);
        let [a, b, c, d, e, f, g, h] = all;
        let rules = [Four::new(&[a, b, c, d]), Four::new(&[e, f, g, h])];
        Some(Self { rules, more, by_ends, policies })
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
        let ports = (key.port(key.source_port), key.port(key.destination_port));
        self.first(covers(&self.rules, self.more, ends, ports, key.protocol))
    }

    /// The policy of the first rule that covers a packet of these ends (source and destination; ports as a
    /// [`Key`](super::Key) has them, or [`OPAQUE`], and only where a rule asks for them), or [`NO_POLICY`].
    #[inline(always)]
    pub fn find(&self, ends: (u32, u32), ports: impl FnOnce() -> (u32, u32), protocol: u8) -> u32 {
        self.first(if self.by_ends {
            covers_ends(&self.rules, self.more, ends)
        } else {
            covers(&self.rules, self.more, ends, ports(), protocol)
        })
    }

    /// The policy of the first of the rules that have a bit. No policy stands behind those that only fill up.
    #[inline(always)]
    fn first(&self, bits: u32) -> u32 {
        // The last stands for none.
        let place = (bits | 1 << MOST).trailing_zeros() as usize;
        self.policies.get(place).copied().unwrap_or(NO_POLICY)
    }
}
