//! What the pipeline knows of a packet.

use std::ops::{BitAnd, BitOr, BitOrAssign};

use super::DropReason;

/// Facts about a packet that are one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u16);

impl Flags {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// The packet is IPv6; otherwise it is IPv4.
    pub const V6: Self = Self(1);
    /// A fragment, of any place.
    pub const FRAGMENT: Self = Self(1 << 1);
    /// A fragment that is not the first: it has no transport header.
    pub const LATER_FRAGMENT: Self = Self(1 << 2);
    /// The transport header is whole, so ports (or ICMP type and code) are known.
    pub const HAS_PORTS: Self = Self(1 << 3);
    /// It came from the VPC's side of its gateway; otherwise from the peers'.
    pub const FROM_LOCAL: Self = Self(1 << 4);
    /// It came out of a tunnel.
    pub const FROM_TUNNEL: Self = Self(1 << 5);
    /// The gateway itself made it.
    pub const ORIGINATED: Self = Self(1 << 6);
    /// It came as a link-layer broadcast or multicast: no ICMP error may answer it (RFC 1122 3.2.2).
    pub const LINK_MULTICAST: Self = Self(1 << 7);
    /// It is an ICMP error: no ICMP error may answer it, and it quotes a packet that NAT must translate.
    pub const ICMP_ERROR: Self = Self(1 << 8);
    /// The IPv4 header has options, or the IPv6 header extensions.
    pub const OPTIONS: Self = Self(1 << 9);
    /// `DF` is set; always so for IPv6.
    pub const DONT_FRAGMENT: Self = Self(1 << 10);
    /// Its TTL was lowered already: it goes through a further gateway.
    pub const TTL_DONE: Self = Self(1 << 11);
    /// Policies have let it in: what NAT makes of it is not asked about again.
    pub const ADMITTED: Self = Self(1 << 12);

    /// A dummy: sealed as such, and made to be dropped (RFC 4303 2.6).
    pub const DUMMY: Self = Self(1 << 15);

    /// One bit for each that is set.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Those whose bits these are.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Whether all of `other` are set.
    #[inline]
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    #[inline]
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Sets `other` when `yes`, without a branch.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self, yes: bool) -> Self {
        Self(self.0 | (yes as u16).wrapping_neg() & other.0)
    }

    /// All but `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Flags {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What address translation has found out about a packet on its way through it, or has to know of that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatMarks(u8);

impl NatMarks {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A fragment whose ports are known, from the first one: [`Meta::sport`] and [`Meta::dport`] hold them.
    pub const PORTS_KNOWN: Self = Self(1);
    /// Its route is looked up by the address in [`Meta::next_hop`] in place of its destination.
    pub const ROUTE_AS_SEEN: Self = Self(1 << 1);
    /// It came into this gateway from another one of this box, not by an interface or out of a tunnel.
    pub const CROSSED: Self = Self(1 << 2);
    /// A gateway between the one it came into and this one may have translated it: nobody can turn that back.
    pub const CHANGED_BETWEEN: Self = Self(1 << 3);

    /// Whether all of `other` are set.
    #[inline]
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With `other`.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The VLAN tags of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tagging {
    /// None.
    #[default]
    None,
    /// One 802.1Q tag.
    Single,
    /// An 802.1ad tag and in it an 802.1Q tag.
    Double,
    /// Any other arrangement, which no interface has.
    Other,
}

/// In [`Meta::interface`]: not known, or none.
pub const NO_INTERFACE: u16 = u16::MAX;

/// What the pipeline knows of one packet: one cache line, wholly overwritten by the parse stage.
///
/// Offsets count from the packet's first byte as it is now; a stage that moves the front moves them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Meta {
    /// IPv4 source (host order); 0 for IPv6, whose addresses are read where they stand.
    pub src: u32,
    /// IPv4 destination (host order); 0 for IPv6.
    pub dst: u32,
    /// Source port, or the identifier of an ICMP query.
    pub sport: u16,
    /// Destination port, or ICMP type and code (`type << 8 | code`).
    pub dport: u16,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header: behind IPv4 options and IPv6 extension headers.
    pub l4: u16,
    /// Bytes of the IP packet: what the frame has beyond them is link-layer padding.
    pub ip_len: u16,
    /// Bits.
    pub flags: Flags,
    /// TTL or hop limit as it came.
    pub ttl: u8,
    /// Transport protocol (IPv6: after the extension headers).
    pub proto: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Why it was dropped, where it was.
    pub reason: Option<DropReason>,
    /// How many gateways it went through.
    pub passes: u8,
    /// Which VLAN tags it had.
    pub tagging: Tagging,
    /// Outer VLAN tag's TCI as received (0 when untagged), for PCP and the demultiplexer.
    pub outer_tci: u16,
    /// Inner VLAN tag's TCI as received (0 when there is none).
    pub inner_tci: u16,
    /// The port it came from.
    pub port: u16,
    /// The interface that carried the frame; a packet out of a tunnel keeps the outer packet's.
    pub interface: u16,
    /// The tunnel it came out of (with [`Flags::FROM_TUNNEL`]).
    pub ingress_tunnel: u16,
    /// The gateway it is in.
    pub gateway: u16,
    /// Bytes of the frame as received, for accounting.
    pub wire_len: u16,
    /// The next hop that SPD or LPM chose.
    pub next_hop: u32,
    /// The tunnel it goes into.
    pub tunnel: u16,
    /// The interface it leaves by.
    pub egress: u16,
    /// The neighbour it goes to.
    pub neighbour: u32,
    /// What address translation knows of it.
    pub nat: NatMarks,
    /// How often it went from one worker to another.
    pub hops: u8,
}

impl Meta {
    /// Nothing known.
    pub const EMPTY: Self = Self {
        src: 0,
        dst: 0,
        sport: 0,
        dport: 0,
        l3: 0,
        l4: 0,
        ip_len: 0,
        flags: Flags::NONE,
        proto: 0,
        tos: 0,
        ttl: 0,
        reason: None,
        passes: 0,
        tagging: Tagging::None,
        outer_tci: 0,
        inner_tci: 0,
        port: 0,
        interface: NO_INTERFACE,
        ingress_tunnel: 0,
        gateway: 0,
        wire_len: 0,
        next_hop: 0,
        tunnel: 0,
        egress: 0,
        neighbour: 0,
        nat: NatMarks::NONE,
        hops: 0,
    };

    /// Whether the packet is IPv6.
    #[inline]
    #[must_use]
    pub const fn is_v6(&self) -> bool {
        self.flags.has(Flags::V6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_one_cache_line() {
        assert_eq!((size_of::<Meta>(), align_of::<Meta>()), (64, 64));
    }

    #[test]
    fn flags_are_bits() {
        let f = Flags::V6 | Flags::FRAGMENT;
        assert!(f.has(Flags::V6) && !f.has(Flags::V6 | Flags::OPTIONS) && f.any(Flags::V6 | Flags::OPTIONS));
        assert_eq!(f.with(Flags::OPTIONS, true).without(Flags::V6), Flags::FRAGMENT | Flags::OPTIONS);
        assert_eq!(f.with(Flags::OPTIONS, false), f);
    }
}
