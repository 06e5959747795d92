//! The SPD (RFC 4301 4.4.1): policies in priority order, the first that matches decides.
//!
//! Built once and never changed; a reload builds a new one. IPv4 and IPv6 are classified apart.
//!
//! **Shape.** A policy becomes one or more `rule`s: a range in each of source, destination, protocol and the two
//! ports. Rules are spread over few hash tables (`classifier`), each keyed by the first bits of source and
//! destination, as in tuple-space search; rules with longer prefixes join a table with shorter ones as long as
//! no bucket gets crowded (TupleMerge, Daly et al. 2019). Policies for IPsec are pairs of prefixes, so one or two
//! tables hold nearly all of them and a look-up is one or two probes whatever their number. Crowded buckets, as
//! from many policies on ports alone, become binary decision trees (`tree`) with a bound on their memory.
//! Tables stand in order of their best priority: the walk ends when none that is left could improve the answer.
//!
//! **Ports.** ICMP and ICMPv6 carry type and code in place of ports: type as source port, code as destination port.
//! A packet whose ports cannot be read (a fragment that is not the first, a protocol without ports) has *opaque*
//! ports (RFC 4301 4.4.1.1). It matches policies whose port selectors are [`Ports::Any`] or [`Ports::Opaque`], and
//! no range, the full one included: RFC 4301 tells ANY and 0–65535 apart in just this way.

mod classifier;
mod draft;
mod few;
mod rule;
mod tree;

use super::address::Address;
use super::hash::Seed;

use self::classifier::Classifier;
pub use self::few::{Few, PortPair};
pub use self::rule::{Key, Keys, Policy, Ports, Prefix, Rule};

/// What a burst look-up gives where no policy matches.
pub const NO_POLICY: u32 = u32::MAX;

/// The most keys that one pass of a burst look-up interleaves.
pub const BURST: usize = 64;

/// The most rules that the policies of one SPD may become for one IP version.
pub const MAX_RULES: usize = 1 << 18;

/// Key of an IPv4 packet.
pub type Key4 = Key<u32>;
/// Key of an IPv6 packet.
pub type Key6 = Key<u128>;

/// Why a list of policies was refused. `policy` is its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpdError {
    /// A prefix is longer than an address.
    #[error("policy {policy} has a prefix of {length} bits, longer than the address")]
    LengthTooLong {
        /// The policy.
        policy: usize,
        /// The length.
        length: u8,
    },
    /// A range of ports ends before it starts, or a list of ranges is empty.
    #[error("policy {policy} has an empty range of ports")]
    EmptyRange {
        /// The policy.
        policy: usize,
    },
    /// Sources and destinations have no IP version in common.
    #[error("policy {policy} can match no packet: its sources and destinations differ in IP version")]
    VersionsDiffer {
        /// The policy.
        policy: usize,
    },
    /// The policies' selectors multiply to more than [`MAX_RULES`].
    #[error("policy {policy} brings the number of selector combinations above {MAX_RULES}")]
    TooManyRules {
        /// The policy with which the bound is passed.
        policy: usize,
    },
}

/// The policies of one gateway.
#[derive(Debug)]
pub struct Spd {
    v4: Classifier<u32>,
    v6: Classifier<u128>,
    /// The rules of `v4`, when they are few.
    few_v4: Option<Few>,
    actions: Box<[u32]>,
}

impl Spd {
    /// Builds the SPD from policies in priority order, first is highest.
    ///
    /// # Errors
    ///
    /// See [`SpdError`].
    pub fn build(policies: &[Policy], seed: Seed) -> Result<Self, SpdError> {
        let (v4, v6) = rule::expand(policies)?;
        Ok(Self {
            few_v4: Few::new(&v4),
            v4: Classifier::build(&v4, seed),
            v6: Classifier::build(&v6, seed),
            actions: policies.iter().map(|policy| policy.action).collect(),
        })
    }

    /// The number of policies.
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Whether there is no policy.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The action of the policy at a place in the list.
    #[inline(always)]
    pub fn action(&self, policy: u32) -> Option<u32> {
        self.actions.get(policy as usize).copied()
    }

    /// The place of the policy that decides about an IPv4 packet.
    #[inline]
    pub fn lookup_v4(&self, key: &Key4) -> Option<u32> {
        found(self.v4.lookup(key))
    }

    /// The place of the policy that decides about an IPv6 packet.
    #[inline]
    pub fn lookup_v6(&self, key: &Key6) -> Option<u32> {
        found(self.v6.lookup(key))
    }

    /// Looks up every key: `results[i]` is the place of the policy for `keys[i]`, or [`NO_POLICY`]. Works through
    /// [`BURST`] keys at a time with their cache misses side by side. The shorter of the two slices counts.
    pub fn lookup_burst_v4(&self, keys: &[Key4], results: &mut [u32]) {
        self.v4.lookup_burst(keys, results);
    }

    /// As [`Self::lookup_burst_v4`], for IPv6.
    pub fn lookup_burst_v6(&self, keys: &[Key6], results: &mut [u32]) {
        self.v6.lookup_burst(keys, results);
    }

    /// The IPv4 rules, when they are few.
    #[inline]
    pub fn few_v4(&self) -> Option<&Few> {
        self.few_v4.as_ref()
    }

    /// The IPv6 rules, when they are few enough for [`choose`].
    #[inline]
    pub fn few_v6(&self) -> Option<&[Rule<u128>]> {
        self.v6.few()
    }

    /// Bytes of memory that the classifiers hold.
    pub fn memory(&self) -> usize {
        self.v4.memory() + self.v6.memory()
    }

    /// The number of hash tables for IPv4 and for IPv6: what a look-up may have to probe.
    pub fn tables(&self) -> (usize, usize) {
        (self.v4.tables(), self.v6.tables())
    }
}

/// For each key the policy of the first rule that covers it, or [`NO_POLICY`], as a look-up in these rules gives.
#[inline]
pub fn choose<A: Address>(rules: &[Rule<A>], keys: &Keys<A>, results: &mut [u32; BURST]) {
    results.fill(NO_POLICY);
    // The last first: what stands before it is written over it.
    for rule in rules.iter().rev() {
        keys.choose(rule, results);
    }
}

#[inline(always)]
fn found(policy: u32) -> Option<u32> {
    (policy != NO_POLICY).then_some(policy)
}

#[cfg(test)]
mod tests;
