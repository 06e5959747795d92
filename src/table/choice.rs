//! Several ways to one prefix: which one a packet takes.
//!
//! The ways stand in tiers, best first; the first tier with a way that can be used decides. Within it flows are
//! spread by weight: a flow's hash names a bucket, and each bucket has an order of its own in which it prefers the
//! members (weighted rendezvous, Thaler and Ravishankar 1998). The first of them that can be used has the flow. So
//! a flow keeps its way while the members stand, a member that is lost moves no other's flows, and one that comes
//! back gets its own flows back.

use super::{hash::HashKey, hash::Seed, liveness::Liveness, tables::NextHop};
use crate::{
    packet::{Flags, Meta},
    wire::{ip::protocol, ipv6::Ipv6},
};

/// Ways of one tier, at most: a bit of a word each.
pub const MOST_MEMBERS: usize = 64;
/// Buckets of a tier: with two equal members one has 50 ± 1.6 % of them.
const BUCKETS: usize = 1024;
/// The hash of flows has a fixed key: a flow takes the same way after a restart, and on a second box.
const FLOWS: Seed = Seed::new(0x8C5F_B6E1_0D3A_4927, 0x51A9_7C02_E4D8_3B6F);
/// The hash that orders members within a bucket.
const ORDER: Seed = Seed::new(0xD6E8_FEB8_6659_FD93, 0xA076_1D64_78BD_642F);

/// What must work for a way to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing outside this box.
    Nothing,
    /// An interface.
    Interface(u16),
    /// A tunnel.
    Tunnel(u16),
}

impl Needs {
    /// What a next hop needs.
    #[inline]
    #[must_use]
    pub const fn of(hop: &NextHop) -> Self {
        match *hop {
            NextHop::Via { interface, .. } | NextHop::Connected { interface } => Self::Interface(interface),
            NextHop::Tunnel(tunnel) => Self::Tunnel(tunnel),
            NextHop::Gateway(_) | NextHop::Blackhole | NextHop::Local | NextHop::Broadcast => Self::Nothing,
        }
    }

    /// Whether that works now.
    #[inline]
    #[must_use]
    pub fn met(self, liveness: &Liveness) -> bool {
        match self {
            Self::Nothing => true,
            Self::Interface(number) => liveness.interface_is_up(number),
            Self::Tunnel(number) => liveness.tunnel_is_up(number),
        }
    }

    /// Whether it works, though it may be held down: enough where there is nothing better.
    #[inline]
    #[must_use]
    pub fn works(self, liveness: &Liveness) -> bool {
        match self {
            Self::Nothing => true,
            Self::Interface(number) => liveness.interface_works(number),
            Self::Tunnel(number) => liveness.tunnel_works(number),
        }
    }
}

/// One way of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The number of its next hop.
    pub hop: u32,
    /// Its share among those of its tier.
    pub weight: u8,
    needs: Needs,
}

/// Ways that are equally good.
#[derive(Debug)]
pub struct Tier {
    members: Box<[Member]>,
    /// For each bucket the places of the members, the one it prefers first. Empty where there is one member.
    order: Box<[u8]>,
}

/// Everything that leads to one prefix, tier after tier.
#[derive(Debug)]
pub struct Choice {
    tiers: Box<[Tier]>,
}

/// The tier in force, and which of its members can be used: found once for packets in a row.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    tier: &'a Tier,
    live: u64,
}

impl Tier {
    /// A tier of these next hops: number, weight, and the next hop itself. Those beyond [`MOST_MEMBERS`] are left
    /// out.
    #[must_use]
    pub fn new(hops: &[(u32, u8, NextHop)]) -> Self {
        let hops = hops.get(..MOST_MEMBERS).unwrap_or(hops);
        let member = |&(hop, weight, ref leads)| Member { hop, weight, needs: Needs::of(leads) };
        let members: Box<[Member]> = hops.iter().map(member).collect();
        let mut order = Vec::new();
        if members.len() > 1 {
            for bucket in 0..BUCKETS as u64 {
                let score = |(_, weight, leads): &(u32, u8, NextHop)| {
                    let hash = (identity(leads), bucket).keyed_hash(&ORDER);
                    // Uniform in (0, 1]; the member with the least -ln(u) / weight comes first.
                    let uniform = ((hash >> 11) + 1) as f64 / (1_u64 << 53) as f64;
                    -uniform.ln() / f64::from((*weight).max(1))
                };
                let mut scored: Vec<(f64, u8)> = hops.iter().map(score).zip(0..).collect();
                scored.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
                order.extend(scored.into_iter().map(|(_, place)| place));
            }
        }
        Self { members, order: order.into() }
    }

    /// Its members.
    #[must_use]
    pub const fn members(&self) -> &[Member] {
        &self.members
    }

    #[inline]
    fn live(&self, is_live: impl Fn(Needs) -> bool) -> u64 {
        let bits = self.members.iter().zip(0..).map(|(m, place)| u64::from(is_live(m.needs)) << place);
        bits.fold(0, |all, bit| all | bit)
    }
}

/// What names a member, whatever its number is.
fn identity(hop: &NextHop) -> u64 {
    let bits = |kind: u64, number: u16| kind << 32 | u64::from(number);
    match *hop {
        NextHop::Via { interface, address, .. } => {
            let address = super::tunnel::address_bits(address);
            ((address >> 64) as u64 ^ bits(1, interface), address as u64).keyed_hash(&ORDER)
        }
        NextHop::Connected { interface } => bits(2, interface),
        NextHop::Tunnel(number) => bits(3, number),
        NextHop::Gateway(number) => bits(4, number),
        NextHop::Blackhole => bits(5, 0),
        NextHop::Local => bits(6, 0),
        NextHop::Broadcast => bits(7, 0),
    }
}

impl Choice {
    /// Between these tiers, the best first.
    #[must_use]
    pub fn new(tiers: Vec<Tier>) -> Self {
        Self { tiers: tiers.into() }
    }

    /// The tiers, the best first.
    #[must_use]
    pub const fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The first tier of which anything can be used; where there is none, the first of which anything works that is held
    /// down.
    #[inline]
    #[must_use]
    pub fn standing(&self, liveness: &Liveness) -> Option<Standing<'_>> {
        self.first_of(|needs| needs.met(liveness)).or_else(|| self.first_of(|needs| needs.works(liveness)))
    }

    #[inline]
    fn first_of(&self, is_live: impl Fn(Needs) -> bool) -> Option<Standing<'_>> {
        self.tiers.iter().find_map(|tier| {
            let live = tier.live(&is_live);
            (live != 0).then_some(Standing { tier, live })
        })
    }

    /// The best tier, as if all of it could be used.
    #[inline]
    #[must_use]
    pub fn regardless(&self) -> Option<Standing<'_>> {
        self.tiers.first().map(|tier| Standing { tier, live: u64::MAX })
    }
}

impl Standing<'_> {
    /// Those that can be used.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.tier.members.iter().zip(0..).filter(|(_, place)| self.live >> place & 1 != 0).map(|(m, _)| m)
    }

    /// The next hop's number for a flow with this hash, which is asked for only where it matters.
    #[inline]
    #[must_use]
    pub fn pick(&self, hash: impl FnOnce() -> u64) -> Option<u32> {
        let members = &self.tier.members;
        if let [only] = &**members {
            return Some(only.hop);
        }
        let bucket = (hash() >> (64 - BUCKETS.trailing_zeros())) as usize;
        let order = self.tier.order.get(bucket * members.len()..)?.iter().take(members.len());
        let place = order.copied().find(|place| self.live >> place & 1 != 0)?;
        members.get(usize::from(place)).map(|member| member.hop)
    }
}

/// The hash of a tunnel's outer packets.
#[inline]
#[must_use]
pub fn tunnel_hash(tunnel: u16) -> u64 {
    u64::from(tunnel).keyed_hash(&FLOWS)
}

/// The hash of a packet's flow: addresses, protocol and ports of TCP and UDP; of ICMP the identifier in place of
/// ports; otherwise, and for every fragment, source and destination alone. `bytes`: the packet.
#[inline]
#[must_use]
pub fn flow_hash(bytes: &[u8], meta: &Meta) -> u64 {
    let whole = meta.flags.has(Flags::HAS_PORTS) && !meta.flags.any(Flags::FRAGMENT);
    let upper = match meta.proto {
        protocol::TCP | protocol::UDP if whole => {
            u64::from(meta.proto) << 32 | u64::from(meta.sport) << 16 | u64::from(meta.dport)
        }
        protocol::ICMPV4 | protocol::ICMPV6 if whole => {
            u64::from(meta.proto) << 32 | u64::from(meta.sport) << 16
        }
        _ => 0,
    };
    let addresses = if meta.is_v6() {
        let header = Ipv6::at(bytes, usize::from(meta.l3));
        let (source, destination) =
            header.map_or((0, 0), |h| (h.source().to_bits(), h.destination().to_bits()));
        (source.keyed_hash(&FLOWS), destination.keyed_hash(&FLOWS).rotate_left(32)).keyed_hash(&FLOWS)
    } else {
        u64::from(meta.src) << 32 | u64::from(meta.dst)
    };
    // Folded twice: the top bits must depend on every bit of both.
    (addresses, upper).keyed_hash(&FLOWS).keyed_hash(&ORDER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::liveness::Cause;
    use proptest::prelude::*;

    fn tier(weights: &[u8]) -> Tier {
        let hops: Vec<_> = weights
            .iter()
            .zip(0..)
            .map(|(weight, n)| (u32::from(n) + 100, *weight, NextHop::Tunnel(n)))
            .collect();
        Tier::new(&hops)
    }

    /// Flows as they come: their hashes are spread over all numbers.
    fn flows() -> impl Iterator<Item = u64> {
        (0..4096_u64).map(|n| n.keyed_hash(&Seed::new(7, 9)))
    }

    fn down(liveness: &Liveness, tunnels: &[u16]) {
        for tunnel in tunnels {
            liveness.set_tunnel(*tunnel, Cause::UNREACHED, true);
        }
    }

    proptest! {
        #[test]
        fn losing_members_moves_only_their_flows(
            weights in proptest::collection::vec(1..=100_u8, 1..=MOST_MEMBERS),
            first in any::<u64>(),
            more in any::<u64>(),
        ) {
            let choice = Choice::new(vec![tier(&weights)]);
            let (before, after) = (Liveness::default(), Liveness::default());
            let lost = |mask: u64| (0..weights.len() as u16).filter(move |n| mask >> n & 1 != 0).collect::<Vec<_>>();
            let lost_first = lost(first);
            let lost_then = lost(first | more);
            down(&before, &lost_first);
            down(&after, &lost_then);
            let (Some(one), other) = (choice.standing(&before), choice.standing(&after)) else {
                prop_assert_eq!(lost_first.len(), weights.len());
                return Ok(());
            };
            for flow in flows().take(512) {
                let hop = one.pick(|| flow).unwrap();
                prop_assert!(!lost_first.contains(&(hop as u16 - 100)));
                match other {
                    None => prop_assert_eq!(lost_then.len(), weights.len()),
                    Some(other) => {
                        let then = other.pick(|| flow).unwrap();
                        prop_assert!(!lost_then.contains(&(then as u16 - 100)));
                        prop_assert!(then == hop || lost_then.contains(&(hop as u16 - 100)), "{hop} moved to {then}");
                    }
                }
            }
        }

        #[test]
        fn a_member_that_joins_takes_flows_only_to_itself(
            weights in proptest::collection::vec(1..=100_u8, 2..=MOST_MEMBERS),
        ) {
            let liveness = Liveness::default();
            let (few, all) = (weights.len() - 1, Choice::new(vec![tier(&weights)]));
            let less = Choice::new(vec![tier(&weights[..few])]);
            let (less, all) = (less.standing(&liveness).unwrap(), all.standing(&liveness).unwrap());
            for flow in flows().take(512) {
                let (before, after) = (less.pick(|| flow), all.pick(|| flow));
                prop_assert!(before == after || after == Some(100 + few as u32));
            }
        }
    }

    #[test]
    fn members_get_their_share() {
        let liveness = Liveness::default();
        for weights in [&[1, 1][..], &[1, 3], &[1, 1, 1, 1], &[10, 20, 30, 40], &[1; 16]] {
            let choice = Choice::new(vec![tier(weights)]);
            let standing = choice.standing(&liveness).unwrap();
            let total: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            for (place, weight) in weights.iter().enumerate() {
                let hop = Some(100 + place as u32);
                let count = flows().filter(|flow| standing.pick(|| *flow) == hop).count() as f64;
                let share = f64::from(*weight) / f64::from(total) * 4096.0;
                // Four standard deviations of the buckets' and of the flows' own scatter.
                assert!(
                    (count - share).abs() < 4.0 * (share * 5.0).sqrt(),
                    "{weights:?}: {count} for {share}"
                );
            }
        }
    }

    #[test]
    fn the_first_tier_with_anything_up_decides() {
        let hop = |n: u16| (u32::from(n), 1, NextHop::Tunnel(n));
        let choice = Choice::new(vec![Tier::new(&[hop(1), hop(2)]), Tier::new(&[hop(3)])]);
        let liveness = Liveness::default();
        let pick =
            |liveness: &Liveness| choice.standing(liveness).and_then(|standing| standing.pick(|| 1 << 60));
        let usual = pick(&liveness).unwrap();
        assert!(usual == 1 || usual == 2);
        down(&liveness, &[usual as u16]);
        assert_eq!(pick(&liveness), Some(3 - usual));
        down(&liveness, &[1, 2]);
        assert_eq!(pick(&liveness), Some(3));
        down(&liveness, &[3]);
        assert_eq!(pick(&liveness), None);
        assert_eq!(choice.regardless().and_then(|standing| standing.pick(|| 1 << 60)), Some(usual));
        assert_eq!(Choice::new(vec![]).standing(&liveness).map(|_| ()), None);
    }

    #[test]
    fn flows_are_told_apart_by_what_their_protocol_has() {
        let meta = Meta { src: 1, dst: 2, sport: 10, dport: 20, proto: protocol::UDP, ..Meta::EMPTY };
        let whole = |meta: Meta| Meta { flags: Flags::HAS_PORTS, ..meta };
        let hash = |meta: Meta| flow_hash(&[], &meta);
        let udp = hash(whole(meta));
        assert_ne!(udp, hash(whole(Meta { sport: 11, ..meta })));
        assert_ne!(udp, hash(whole(Meta { dport: 21, ..meta })));
        assert_ne!(udp, hash(whole(Meta { proto: protocol::TCP, ..meta })));
        assert_ne!(udp, hash(whole(Meta { src: 3, ..meta })));
        // Of ICMP the identifier counts, type and code do not.
        let echo = Meta { proto: protocol::ICMPV4, ..meta };
        assert_eq!(hash(whole(echo)), hash(whole(Meta { dport: 0, ..echo })));
        assert_ne!(hash(whole(echo)), hash(whole(Meta { sport: 0, ..echo })));
        // Fragments, first or not, and all else: source and destination alone.
        let piece = Meta { flags: Flags::HAS_PORTS | Flags::FRAGMENT, ..meta };
        let later = Meta { sport: 0, dport: 0, flags: Flags::FRAGMENT | Flags::LATER_FRAGMENT, ..meta };
        assert_eq!(hash(piece), hash(later));
        assert_eq!(hash(piece), hash(whole(Meta { proto: 50, sport: 0, dport: 0, ..meta })));
        assert_ne!(hash(piece), udp);
    }
}
