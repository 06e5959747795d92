//! Resolves neighbours: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861), the side that asks and remembers.
//!
//! Workers answer and report; this is the neighbour table's only writer. It is driven by [`Resolver::tick`], with
//! whatever clock there is, so that a replay of captures behaves as the gateway did.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    stage::{Event, EventQueue, NeighbourClaim, neighbour as wire_neighbour},
    table::{
        address::IpVersion,
        interface::Interface,
        neighbour::{NeighbourAges, NeighbourKey, NeighbourState, NeighbourWriter},
        next_hops::Hop,
        tables::{NextHop, Tables},
    },
    wire::{
        arp,
        ethernet::{EtherType, MacAddr},
        icmpv6::Neighbour,
        ipv6,
    },
};

const SECOND: u64 = 1_000_000_000;
/// Between two questions, and how many (RFC 4861 10: RETRANS_TIMER, MAX_UNICAST_SOLICIT).
const RETRY: u64 = SECOND;
const TRIES: u8 = 3;
/// How long a confirmed neighbour counts as reachable (RFC 4861 10), and how long an unused one is remembered.
const AGES: NeighbourAges =
    NeighbourAges { incomplete: 4 * SECOND, reachable: 30 * SECOND, stale: 600 * SECOND };
/// A neighbour in use is asked again when its confirmation is this old: before it turns stale. Three seconds later, at
/// the latest, a neighbour that went away is known no more.
const REFRESH: u64 = 25 * SECOND;
/// An address is defended at most so often (RFC 5227 2.4 b).
const DEFEND: u64 = 10 * SECOND;
/// Events taken up in one tick: a flood is worked off in slices.
const EVENTS_PER_TICK: usize = 1024;
/// Questions that are open at once: a scan of a subnet gets no further.
const MAX_QUESTIONS: usize = 4096;

/// A frame that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The port.
    pub port: u16,
    /// The interface.
    pub interface: u16,
    /// The frame, link-layer header and all.
    pub frame: Vec<u8>,
}

/// A question on the link that has no answer yet.
#[derive(Debug)]
struct Question {
    tries: u8,
    next: u64,
}

/// Finds out and remembers where neighbours are.
#[derive(Debug, Default)]
pub struct Resolver {
    /// In the order of addresses, so that a replay asks in the same order each time.
    questions: BTreeMap<(u16, IpAddr), Question>,
    next_ageing: u64,
    defended: BTreeMap<(u16, IpAddr), u64>,
    /// Address conflicts since the start.
    pub conflicts: u64,
    /// What workers told of probes: for [`super::health`].
    pub heard: Vec<Event>,
}

impl Resolver {
    /// Announces the gateway's own addresses, and those it answers for, to all (gratuitous ARP, RFC 5227 3;
    /// unsolicited advertisements, RFC 4861 7.2.6), and asks for the routers that routes lead to.
    pub fn announce(
        &mut self,
        tables: &Tables,
        writer: &mut NeighbourWriter,
        now: u64,
        send: &mut dyn FnMut(Transmit),
    ) {
        for (number, interface) in tables.interfaces.iter().enumerate() {
            let number = number as u16;
            for address in interface.addresses.iter().map(|a| a.address) {
                send(announcement(number, interface, address));
            }
            for prefix in interface
                .proxied
                .iter()
                .filter(|p| p.len() == if matches!(p, crate::wire::ip::IpPrefix::V4(_)) { 32 } else { 128 })
            {
                send(announcement(number, interface, prefix.network()));
            }
        }
        for (_, hop) in tables.next_hops.iter() {
            if let Hop::One(NextHop::Via { interface, neighbour, address }) = *hop
                && writer.table().mac(neighbour).is_none()
            {
                self.ask(tables, interface, address, now);
            }
        }
        self.questions(tables, writer, now, send);
    }

    /// Takes up what workers reported, asks again where there is no answer, and ages what is known.
    ///
    /// `send` gets the frames that are to go out.
    pub fn tick(
        &mut self,
        tables: &Tables,
        writer: &mut NeighbourWriter,
        events: &EventQueue,
        now: u64,
        send: &mut dyn FnMut(Transmit),
    ) {
        for _ in 0..EVENTS_PER_TICK {
            let Some(event) = events.pop() else { break };
            self.event(tables, writer, event, now, send);
        }
        if now >= self.next_ageing {
            self.next_ageing = now + SECOND;
            self.age(tables, writer, now);
        }
        self.questions(tables, writer, now, send);
    }

    /// Takes up one report, by a worker or by [`super::host_neighbours`].
    pub fn event(
        &mut self,
        tables: &Tables,
        writer: &mut NeighbourWriter,
        event: Event,
        now: u64,
        send: &mut dyn FnMut(Transmit),
    ) {
        match event {
            Event::Solicit { interface, address } => {
                let known = writer.table().lookup(&key(interface, address));
                if known.and_then(|id| writer.table().mac(id)).is_none() {
                    // When nothing can be remembered there is no use in asking; the packets time out.
                    let room = known.is_some() || writer.ensure(&key(interface, address), now).is_ok();
                    if room {
                        self.ask(tables, interface, address, now);
                    }
                }
            }
            Event::Neighbour { interface, address, mac, claim } => {
                let known = writer.table().lookup(&key(interface, address));
                let id = match claim {
                    // It will want an answer; and an answer to us was asked for.
                    NeighbourClaim::Asked => {
                        known.or_else(|| writer.ensure(&key(interface, address), now).ok())
                    }
                    // What nobody asked for changes what is known, but adds nothing (RFC 826, RFC 4861 7.2.5).
                    NeighbourClaim::Answered { .. } => known,
                };
                if let Some(id) = id {
                    writer.resolve(id, mac.0, now);
                    self.questions.remove(&(interface, address));
                }
            }
            Event::NatExhausted { gateway, reason, address } => {
                let address = std::net::Ipv4Addr::from_bits(address);
                tracing::warn!(gateway, %address, "NAT makes no new session: {}", reason.explanation().trim());
            }
            Event::Echo { .. } | Event::Bfd { .. } => self.heard.push(event),
            Event::Conflict { interface, address, mac } => {
                self.conflicts += 1;
                let last = self.defended.entry((interface, address)).or_insert(0);
                if *last == 0 || now.saturating_sub(*last) >= DEFEND {
                    *last = now.max(1);
                    tracing::warn!(interface, %address, %mac, "another host has our address");
                    if let Some(ours) = tables.interface(interface) {
                        send(announcement(interface, ours, address));
                    }
                }
            }
        }
    }

    fn ask(&mut self, tables: &Tables, interface: u16, address: IpAddr, now: u64) {
        if tables.interface(interface).is_some() && self.questions.len() < MAX_QUESTIONS {
            self.questions.entry((interface, address)).or_insert(Question { tries: 0, next: now });
        }
    }

    /// Sends the questions that are due, and gives up on those that were asked often enough (RFC 4861 7.3.3): whoever is
    /// known and stays silent is known no more, the next hops of routes included.
    fn questions(
        &mut self,
        tables: &Tables,
        writer: &mut NeighbourWriter,
        now: u64,
        send: &mut dyn FnMut(Transmit),
    ) {
        self.questions.retain(|&(number, address), question| {
            if now < question.next {
                return true;
            }
            let Some(interface) = tables.interface(number) else { return false };
            let id = writer.table().lookup(&key(number, address));
            let known = id.and_then(|id| Some((id, writer.table().mac(id)?)));
            if question.tries >= TRIES {
                if let Some((id, mac)) = known {
                    let mac = MacAddr(mac);
                    writer.fail(id, now);
                    tracing::warn!(interface = number, %address, %mac, "a neighbour in use is silent");
                }
                return false;
            }
            question.tries += 1;
            question.next = now + RETRY;
            // One that is known is asked itself; only when it stays silent, all are.
            let towards = known.map(|(_, mac)| MacAddr(mac)).filter(|_| question.tries < TRIES);
            if let Some(frame) = solicitation(interface, address, towards) {
                send(Transmit { port: interface.port, interface: number, frame });
            }
            true
        });
    }

    fn age(&mut self, tables: &Tables, writer: &mut NeighbourWriter, now: u64) {
        let in_use: Vec<_> = writer
            .table()
            .iter()
            .filter(|entry| {
                let old = now.saturating_sub(entry.confirmed) >= REFRESH;
                let used = now.saturating_sub(entry.last_used) < REFRESH;
                matches!(entry.state, NeighbourState::Reachable | NeighbourState::Stale) && old && used
            })
            .map(|entry| (entry.key.interface, address_of(&entry.key)))
            .collect();
        for (interface, address) in in_use {
            self.ask(tables, interface, address, now);
        }
        writer.expire(now, &AGES);
        self.defended.retain(|_, last| now.saturating_sub(*last) < DEFEND);
    }
}

fn key(interface: u16, address: IpAddr) -> NeighbourKey {
    match address {
        IpAddr::V4(a) => NeighbourKey::v4(interface, a.to_bits()),
        IpAddr::V6(a) => NeighbourKey::v6(interface, a.to_bits()),
    }
}

/// The address of an entry of the neighbour table.
#[must_use]
pub fn address_of(key: &NeighbourKey) -> IpAddr {
    match key.version {
        IpVersion::V4 => IpAddr::V4(Ipv4Addr::from_bits(key.address as u32)),
        IpVersion::V6 => IpAddr::V6(Ipv6Addr::from_bits(key.address)),
    }
}

/// Least bytes of an Ethernet frame without its FCS.
const MIN_FRAME: usize = 60;

fn arp_frame(interface: &Interface, to: MacAddr, packet: &arp::Repr) -> Vec<u8> {
    let link = interface.header_v4.with_ether_type(EtherType::ARP).with_destination(to);
    let mut frame = link.as_bytes().to_vec();
    let mut body = [0; arp::PACKET_LEN];
    packet.emit(&mut body);
    frame.extend_from_slice(&body);
    frame.resize(frame.len().max(MIN_FRAME), 0);
    frame
}

fn discovery_frame(
    interface: &Interface,
    message: &Neighbour,
    from: Ipv6Addr,
    to: Ipv6Addr,
    mac: MacAddr,
) -> Vec<u8> {
    let link = &interface.header_v6;
    let mut frame = vec![0; wire_neighbour::discovery_len(link, message)];
    // The buffer has the length that is asked for, so it is written.
    let _ = wire_neighbour::write_discovery(&mut frame, link, message, from, to, mac);
    frame
}

fn announcement(number: u16, interface: &Interface, address: IpAddr) -> Transmit {
    let frame = match address {
        IpAddr::V4(a) => arp_frame(interface, MacAddr::BROADCAST, &arp::Repr::gratuitous(interface.mac, a)),
        IpAddr::V6(a) => {
            let message = Neighbour::Advertisement {
                target: a,
                target_mac: Some(interface.mac),
                router: true,
                solicited: false,
                replaces: true,
            };
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            discovery_frame(interface, &message, a, all, MacAddr::of_ipv6_multicast(all))
        }
    };
    Transmit { port: interface.port, interface: number, frame }
}

/// Who has `address`? Sent to one station, or to all that may be it. `None` without an address of our own to ask from.
fn solicitation(interface: &Interface, address: IpAddr, to: Option<MacAddr>) -> Option<Vec<u8>> {
    // From an address of the same subnet, where there is one: hosts answer only those.
    let same_link = interface.addresses.iter().find(|a| a.prefix().contains(address)).map(|a| a.address);
    match (address, same_link.or_else(|| interface.address_like(address))?) {
        (IpAddr::V4(target), IpAddr::V4(own)) => {
            let packet = arp::Repr::request(interface.mac, own, target);
            Some(arp_frame(interface, to.unwrap_or(MacAddr::BROADCAST), &packet))
        }
        (IpAddr::V6(target), IpAddr::V6(own)) => {
            let message = Neighbour::Solicitation { target, source_mac: Some(interface.mac) };
            let group = ipv6::solicited_node(target);
            let (destination, mac) =
                to.map_or((group, MacAddr::of_ipv6_multicast(group)), |mac| (target, mac));
            Some(discovery_frame(interface, &message, own, destination, mac))
        }
        _ => None,
    }
}
