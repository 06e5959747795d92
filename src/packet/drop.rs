//! Why packets are dropped.

/// Declares the reasons once: variant, the name in counters, and what an operator is told.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped: the cause, not the place. One packet, one reason, one count.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// How many reasons there are: the length of an array of counters.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in counters, `show` and golden tests.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means and what to do about it.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header and its tags.
    EthernetTruncated = "ethernet-truncated",
    /// The frame's destination MAC address is another station's. Expected on a promiscuous port.
    NotForUs = "not-for-us",
    /// The VLAN tag (or its absence) belongs to no interface of this port.
    UnknownVlan = "unknown-vlan",
    /// The EtherType is neither IPv4, IPv6 nor ARP.
    UnknownEtherType = "unknown-ethertype",
    /// An ARP packet that is cut short, or not for IPv4 over Ethernet.
    ArpMalformed = "arp-malformed",
    /// An ARP request or reply that does not concern an address of this gateway.
    ArpNotForUs = "arp-not-for-us",
    /// ARP or neighbour discovery claims one of the gateway's own addresses. Another host has the same address.
    AddressConflict = "address-conflict",
    /// An ARP packet that was answered or learned from; it has done its work here.
    ArpConsumed = "arp-consumed",
    /// A neighbour discovery packet that was answered or learned from; it has done its work here.
    NeighbourDiscoveryConsumed = "nd-consumed",
    /// A neighbour discovery packet that RFC 4861 tells to ignore (hop limit not 255, bad length or option).
    NeighbourDiscoveryMalformed = "nd-malformed",
    /// More neighbour events than the control thread takes. A flood of ARP or neighbour discovery.
    NeighbourEventsFull = "neighbour-events-full",
    /// The IP header is cut short.
    IpTruncated = "ip-truncated",
    /// The IP version does not fit the EtherType.
    IpVersion = "ip-version",
    /// The IPv4 header length is below 20 bytes or beyond the packet.
    Ipv4HeaderLength = "ipv4-header-length",
    /// The IP length field is larger than the frame, or smaller than the header.
    IpLength = "ip-length",
    /// The IPv4 header checksum is wrong (RFC 1812 5.2.2).
    Ipv4Checksum = "ipv4-checksum",
    /// IPv4 options that are malformed, or that route from the source (RFC 7126: dropped).
    Ipv4Options = "ipv4-options",
    /// IPv6 extension headers that are cut short, out of order, or too many.
    Ipv6ExtensionHeaders = "ipv6-extension-headers",
    /// The source address can be no sender's (RFC 1812 5.3.7, RFC 4291).
    MartianSource = "martian-source",
    /// The destination address can be no receiver's (RFC 1812 5.3.7, RFC 4291).
    MartianDestination = "martian-destination",
    /// A broadcast or multicast packet. The gateway forwards none.
    Multicast = "multicast",
    /// An IPv6 packet from or to a link-local address, which may not leave its link (RFC 4291 2.5.6).
    LinkScope = "link-scope",
    /// The TCP, UDP or ICMP header is cut short.
    TransportTruncated = "transport-truncated",
    /// The TTL or hop limit ran out. The sender is told by ICMP.
    TtlExpired = "ttl-expired",
    /// No route leads to the destination. The sender is told by ICMP.
    NoRoute = "no-route",
    /// Routes or a policy lead on, but each by an interface or tunnel that is down. The sender is told by ICMP.
    NoLivePath = "no-live-path",
    /// A blackhole route leads to the destination.
    Blackhole = "blackhole",
    /// A packet from one peer to another in a gateway with `transit = false`.
    TransitForbidden = "transit-forbidden",
    /// The packet went through too many gateways: their routes form a loop.
    TooManyPasses = "too-many-passes",
    /// A policy of the SPD discards it.
    PolicyDiscard = "policy-discard",
    /// A packet out of a tunnel that no policy for this tunnel covers (RFC 4301 5.2).
    PolicyMismatch = "policy-mismatch",
    /// A packet in the clear that a policy wants protected (RFC 4301 5.2), or an ICMP error that quotes one.
    PolicyUnprotected = "policy-unprotected",
    /// The packet is larger than the MTU and may not be fragmented. The sender is told by ICMP.
    PacketTooBig = "packet-too-big",
    /// The packet would have to be fragmented and there was no buffer, or it cannot be.
    FragmentationFailed = "fragmentation-failed",
    /// A packet to the gateway itself, for a protocol or port it does not serve.
    LocalUnserved = "local-unserved",
    /// A packet to the gateway itself whose ICMP or UDP checksum is wrong.
    LocalChecksum = "local-checksum",
    /// A packet to the gateway itself that has done its work here: a reply to its own probe, or an ICMP error about one
    /// of its ESP packets, which it has learned from.
    LocalConsumed = "local-consumed",
    /// A BFD packet from the other end that is cut short, or whose TTL is not 255: it has passed a router, or is forged
    /// (RFC 5881 5).
    BfdRefused = "bfd-refused",
    /// An ICMP error about an ESP packet that this gateway has not sent, or not lately; or, out of a tunnel, about a
    /// packet that no policy sends into it (RFC 4301 6.2). Forged, or very late.
    IcmpQuoteMismatch = "icmp-quote-mismatch",
    /// A fragment to the gateway itself that is part of a whole packet now; it has done its work here.
    FragmentReassembled = "fragment-reassembled",
    /// A fragment to the gateway itself, others of whose packet did not come in time (15 s, IPv6: 60 s).
    FragmentTimeout = "fragment-timeout",
    /// Fragments to the gateway itself that overlap or contradict each other (RFC 5722): an attack, or a packet that
    /// came twice. All of the packet is dropped; of an exact copy, only the copy.
    FragmentOverlap = "fragment-overlap",
    /// Fragments to the gateway itself of a packet that one buffer does not hold. It takes 256 bytes
    /// less than `buffer_size` behind the IP header.
    FragmentTooLarge = "fragment-too-large",
    /// More packets to the gateway itself wait for fragments than are kept; the oldest gave way.
    FragmentTableFull = "fragment-table-full",
    /// A fragment to the gateway itself that is empty, ends off a multiple of 8, or is one of more than 32.
    FragmentMalformed = "fragment-malformed",
    /// The host's TAP takes no more.
    HostQueueFull = "host-queue-full",
    /// The link address of the next hop is not known yet, and more packets wait for it than are kept.
    NeighbourQueueFull = "neighbour-queue-full",
    /// The next hop does not answer ARP or neighbour solicitation. The sender is told by ICMP.
    NeighbourUnreachable = "neighbour-unreachable",
    /// No more neighbours can be kept.
    NeighbourTableFull = "neighbour-table-full",
    /// An ESP packet that is cut short, or whose length is no multiple of 4.
    EspLength = "esp-length",
    /// No security association has this SPI and destination.
    NoSa = "no-sa",
    /// The ICV is wrong: the packet was changed on its way, or sealed with another key.
    EspIntegrity = "esp-integrity",
    /// The sequence number was seen before: a replayed packet.
    EspReplayed = "esp-replayed",
    /// The sequence number is older than the replay window holds.
    EspLate = "esp-late",
    /// The security association has reached the end of its lifetime and was not replaced in time.
    EspExpired = "esp-expired",
    /// The padding of an ESP packet is longer than the packet, or not 1, 2, 3 …
    EspPadding = "esp-padding",
    /// The next header of an ESP packet is no IP version, or what it holds is no packet of that version.
    EspNextHeader = "esp-next-header",
    /// A dummy packet (RFC 4303 2.6): made to be dropped.
    EspDummy = "esp-dummy",
    /// The ESP packet came from or to another place, or in another encapsulation, than its SA says.
    EspOuterMismatch = "esp-outer-mismatch",
    /// The outer header says that congestion was met, but the inner packet cannot say so (RFC 6040 4.2).
    EcnContradiction = "ecn-contradiction",
    /// A NAT-T keepalive (RFC 3948 2.3), which has no further use.
    NatKeepalive = "nat-keepalive",
    /// The outbound SA has no sequence number left, or none reserved yet.
    SequenceExhausted = "sequence-exhausted",
    /// The tunnel has no outbound SA, or no way to its peer.
    TunnelDown = "tunnel-down",
    /// The address has a NAT rule, but the packet cannot be translated (a quoted packet that is cut too short).
    NatUntranslatable = "nat-untranslatable",
    /// A packet to an outside address of NAT that no session and no mapping is for.
    NatNoSession = "nat-no-session",
    /// The NAT table, or this gateway's part of it, is full: see `causeway show nat pools`.
    NatTableFull = "nat-table-full",
    /// Every port of the pool that was tried for a new session has one with this remote address and port already.
    NatPortsExhausted = "nat-ports-exhausted",
    /// The host has as many NAT sessions as `nat_sessions_per_source` allows it.
    NatSourceLimit = "nat-source-limit",
    /// A new session between two ends that have another session already, by another mapping.
    NatConflict = "nat-conflict",
    /// The worker that has the packet's NAT session takes no more: its ring is full.
    NatHandoverFull = "nat-handover-full",
    /// A fragment that NAT needs the first fragment for, and more such fragments wait than are kept.
    NatFragmentsFull = "nat-fragments-full",
    /// A fragment whose first fragment did not come in time.
    NatFragmentTimeout = "nat-fragment-timeout",
    /// The gateway carries more than its limit lets pass.
    GatewayLimit = "gateway-limit",
    /// The interface receives or sends more than its limit lets pass.
    InterfaceLimit = "interface-limit",
    /// More comes out of or goes into the tunnel than its limit lets pass.
    TunnelLimit = "tunnel-limit",
    /// An address of the VPC sends or gets more than its limit lets pass.
    AddressLimit = "address-limit",
    /// No buffer was free for a packet that the gateway wanted to send.
    NoBuffer = "no-buffer",
    /// The port takes no more: its transmit ring is full.
    TxFull = "tx-full",
    /// The port is gone or was never usable.
    PortDown = "port-down",
    /// The gateway ends and the packet was still waiting.
    Shutdown = "shutdown",
    /// Fault injection took it, as its configuration asks.
    InjectedFault = "injected-fault",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_as_listed_and_named_once() {
        let mut names = std::collections::BTreeSet::new();
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
            assert!(reason.explanation().trim().ends_with(['.', '…']), "{reason:?}");
        }
    }
}
