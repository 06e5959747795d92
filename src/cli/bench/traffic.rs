//! The packets of a benchmark: made from templates, and checked when they come out.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    profile::{Direction, Size},
    random::{FLOWS, LENGTHS, Random},
    topology::{Flow, LAN, MACS, POOL, ROUTERS, Topology, VLANS, WAN},
};
use crate::wire::{
    checksum::Sum,
    ethernet::{EtherType, MacAddr},
    ip::protocol,
    ipv4::{self, Ipv4},
    ipv6::{self, Ipv6},
    udp::{self, Udp},
    vlan::{L2, L2Header, Tag, TagKind, Tags, VlanId},
};

/// Bytes of Ethernet and one tag.
const L2: usize = 18;
/// TTL of a packet when it is sent.
const TTL: u8 = 64;

/// Length of the shortest frame: tagged, with a UDP header and nothing in it.
#[must_use]
pub const fn least(v6: bool) -> usize {
    L2 + udp::HEADER_LEN + if v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN }
}

/// A frame of one length, all but its addresses and ports.
#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    /// Sum over UDP payload, lengths and protocol.
    sum: Sum,
}

/// Makes packets, one after the other.
#[derive(Debug)]
pub struct Traffic {
    templates: Vec<Template>,
    /// Which template each packet of a round has: the lengths of a mix come in another order each round.
    order: Vec<usize>,
    v6: bool,
    /// Packets go from the hosts outwards.
    outwards: bool,
    /// Sources come out as one of the pool's.
    pool: bool,
    count: usize,
    flows: Random,
    lengths: Random,
}

/// What was sent, to be compared with what comes out.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Its flow, by number.
    pub flow: usize,
    /// Bytes of the frame.
    pub len: usize,
}

impl Traffic {
    /// The packets of a topology, all of a size.
    #[must_use]
    pub fn new(topology: &Topology, size: Size) -> Self {
        let v6 = topology.profile.version == 6;
        let lengths = size.lengths();
        let mut kinds = lengths.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let order = lengths.iter().filter_map(|len| kinds.iter().position(|kind| kind == len)).collect();
        Self {
            templates: kinds.into_iter().map(|len| Template::new(usize::from(len), v6)).collect(),
            order,
            v6,
            outwards: topology.profile.direction != Direction::Open,
            pool: topology.profile.pool,
            count: 0,
            flows: Random::new(FLOWS),
            lengths: Random::new(LENGTHS),
        }
    }

    /// Starts again from the first packet.
    pub fn restart(&mut self) {
        (self.count, self.flows, self.lengths) = (0, Random::new(FLOWS), Random::new(LENGTHS));
        self.order.sort_unstable();
    }

    /// Makes the next packet, gives it to `take`, and says what it was. The frame is for the port towards the hosts.
    pub fn next(&mut self, flows: &[Flow], take: impl FnOnce(&[u8])) -> Sent {
        let flow = self.flows.below(flows.len());
        self.of(flows, flow, take)
    }

    /// Makes a packet of this flow.
    pub fn of(&mut self, flows: &[Flow], flow: usize, take: impl FnOnce(&[u8])) -> Sent {
        let place = self.count % self.order.len().max(1);
        if place == 0 {
            // A processor knows an order of 48 that repeats by heart after a while.
            self.lengths.shuffle(&mut self.order);
        }
        let kind = self.order.get(place).copied().unwrap_or(0);
        self.count += 1;
        let (Some(template), Some(addresses)) = (self.templates.get_mut(kind), flows.get(flow)) else {
            return Sent { flow, len: 0 };
        };
        if self.outwards {
            let ports = (addresses.host_port, addresses.outside_port);
            template.fill(self.v6, addresses.host, addresses.outside, ports);
        } else {
            let ports = (addresses.outside_port, addresses.host_port);
            template.fill(self.v6, addresses.outside, addresses.appears, ports);
        }
        take(&template.bytes);
        Sent { flow, len: template.bytes.len() }
    }

    /// Compares a frame that came out of the port `out` of a gateway, after `hops` routers, with what was sent.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(
        &self,
        frame: &[u8],
        sent: Sent,
        flows: &[Flow],
        out: usize,
        hops: u8,
    ) -> Result<(), String> {
        let flow = flows.get(sent.flow).ok_or("no such flow")?;
        let l2 = L2::parse(frame).map_err(|error| error.to_string())?;
        let vlan = match l2.tags {
            Tags::One(tag) => tag.id().map_or(0, VlanId::get),
            _ => 0,
        };
        let expected = (ROUTERS[out], MACS[out], VLANS[out]);
        if (l2.destination, l2.source, vlan) != expected {
            return Err(format!("the link-layer header is {l2:?}"));
        }
        let (source, destination, source_port, destination_port) = if self.outwards {
            (flow.appears, flow.outside, flow.host_port, flow.outside_port)
        } else {
            (flow.outside, flow.host, flow.outside_port, flow.host_port)
        };
        let packet = frame.get(L2..).unwrap_or(&[]);
        let (addresses, ttl, pseudo, l4) = if self.v6 {
            let packet = ipv6::parse(packet).map_err(|error| error.to_string())?;
            let (s, d) = (packet.header.source(), packet.header.destination());
            let pseudo = Sum::pseudo_v6(s, d, protocol::UDP, packet.payload.len() as u32);
            ((s.to_bits(), d.to_bits()), packet.header.hop_limit(), pseudo, packet.payload)
        } else {
            let packet = ipv4::parse(packet).map_err(|error| error.to_string())?;
            let (s, d) = (packet.header.source(), packet.header.destination());
            let pseudo = Sum::pseudo_v4(s, d, protocol::UDP, packet.payload.len() as u16);
            ((s.to_bits().into(), d.to_bits().into()), packet.header.ttl(), pseudo, packet.payload)
        };
        let datagram = udp::parse(l4).map_err(|error| error.to_string())?;
        let ports = (datagram.header.source_port(), datagram.header.destination_port());
        let (mut addresses, mut ports) = (addresses, ports);
        if self.pool {
            let known = (POOL.to_bits()..POOL.to_bits() + 16).contains(&(addresses.0 as u32));
            if !known || ports.0 < 1024 || ports.0 & 1 != source_port & 1 {
                return Err(format!("flow {flow:?} came out from {addresses:x?}, {ports:?}: not the pool's"));
            }
            (addresses.0, ports.0) = (source, source_port);
        }
        if addresses != (source, destination) || ports != (source_port, destination_port) {
            return Err(format!("flow {flow:?} came out with addresses {addresses:x?} and ports {ports:?}"));
        }
        if ttl != TTL - hops {
            return Err(format!("the TTL is {ttl}"));
        }
        if !datagram.is_checksum_valid(pseudo) {
            return Err("the UDP checksum is wrong".into());
        }
        let length = sent.len - least(self.v6);
        if datagram.payload.len() != length || !datagram.payload.iter().eq(payload(length).iter()) {
            return Err("the payload is not what was sent".into());
        }
        Ok(())
    }

    /// Mean length of a frame.
    #[must_use]
    pub fn mean_len(&self) -> f64 {
        let lengths = self.order.iter().filter_map(|kind| self.templates.get(*kind)).map(|t| t.bytes.len());
        lengths.sum::<usize>() as f64 / self.order.len() as f64
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + 1) as u8).collect()
}

impl Template {
    fn new(len: usize, v6: bool) -> Self {
        let data = payload(len - least(v6));
        let udp_len = (udp::HEADER_LEN + data.len()) as u16;
        let tag = Tag::new(TagKind::Customer, VlanId::new(VLANS[LAN]).unwrap_or(VlanId::UNTAGGED), 0, false);
        let kind = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
        let mut bytes = vec![0; len];
        L2Header::new(MACS[LAN], ROUTERS[LAN], Tags::One(tag), kind).write(&mut bytes);
        let ip = bytes.get_mut(L2..).unwrap_or(&mut []);
        if v6 {
            if let Some((header, rest)) = ip.split_first_chunk_mut::<{ ipv6::HEADER_LEN }>() {
                let repr = ipv6::Repr {
                    traffic_class: 0,
                    flow_label: 0,
                    payload_len: udp_len,
                    next_header: protocol::UDP,
                    hop_limit: TTL,
                    source: Ipv6Addr::UNSPECIFIED,
                    destination: Ipv6Addr::UNSPECIFIED,
                };
                repr.emit(header);
                datagram(rest, udp_len, &data);
            }
        } else if let Some((header, rest)) = ip.split_first_chunk_mut::<{ ipv4::HEADER_LEN }>() {
            let repr = ipv4::Repr {
                traffic_class: 0,
                total_len: (len - L2) as u16,
                identification: 0,
                dont_fragment: true,
                more_fragments: false,
                fragment_offset: 0,
                ttl: TTL,
                protocol: protocol::UDP,
                source: Ipv4Addr::UNSPECIFIED,
                destination: Ipv4Addr::UNSPECIFIED,
            };
            repr.emit(header);
            datagram(rest, udp_len, &data);
        }
        Self { bytes, sum: Sum::of_u16(udp_len).combine(Sum::of(&data)) }
    }

    /// Puts addresses and ports in, and the checksums that follow from them.
    fn fill(&mut self, v6: bool, source: u128, destination: u128, (from, to): (u16, u16)) {
        let ports = Sum::of_u16(from).combine(Sum::of_u16(to));
        let l4 = if v6 { L2 + ipv6::HEADER_LEN } else { L2 + ipv4::HEADER_LEN };
        let length = (self.bytes.len() - l4) as u16;
        let pseudo = if v6 {
            let (source, destination) = (Ipv6Addr::from_bits(source), Ipv6Addr::from_bits(destination));
            if let Some(mut header) = Ipv6::at_mut(&mut self.bytes, L2) {
                header.set_source(source);
                header.set_destination(destination);
            }
            Sum::pseudo_v6(source, destination, protocol::UDP, length.into())
        } else {
            let v4 = |address: u128| Ipv4Addr::from_bits(address as u32);
            let (source, destination) = (v4(source), v4(destination));
            if let Some(mut header) = Ipv4::at_mut(&mut self.bytes, L2) {
                header.set_source(source);
                header.set_destination(destination);
                header.fill_checksum();
            }
            Sum::pseudo_v4(source, destination, protocol::UDP, length)
        };
        if let Some(mut header) = Udp::at_mut(&mut self.bytes, l4) {
            header.set_source_port(from);
            header.set_destination_port(to);
            header.set_checksum(self.sum.combine(ports).combine(pseudo).udp_checksum());
        }
    }
}

fn datagram(bytes: &mut [u8], length: u16, data: &[u8]) {
    if let Some((header, rest)) = bytes.split_first_chunk_mut::<{ udp::HEADER_LEN }>() {
        udp::Repr { source_port: 0, destination_port: 0, length }.emit(header);
        rest.copy_from_slice(data);
    }
}

/// The address that frames into a port are sent to.
#[must_use]
pub const fn entrance(direction: Direction) -> (usize, usize) {
    match direction {
        Direction::Forward | Direction::Seal => (LAN, WAN),
        Direction::Open => (WAN, LAN),
    }
}

/// Sets a frame's link-layer addresses, as the link between the two gateways would have them.
pub fn readdress(frame: &mut [u8], destination: MacAddr, source: MacAddr) {
    if let Some((to, rest)) = frame.split_first_chunk_mut::<6>() {
        *to = destination.0;
        if let Some(from) = rest.first_chunk_mut::<6>() {
            *from = source.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::profile::{IMIX, Imix, named};

    #[test]
    fn a_mix_is_whole_each_round_in_another_order_and_comes_again_after_a_restart() {
        let topology = Topology::new(&named("forward-16").unwrap().unwrap());
        let mut traffic = Traffic::new(&topology, Size::Mix(Imix::Imix));
        let of_a_round = IMIX.iter().map(|(count, _)| count).sum::<usize>();
        let mut rounds = || {
            let mut lengths = || (0..of_a_round).map(|_| traffic.next(&topology.flows, |_| ()).len).collect();
            let two: [Vec<usize>; 2] = [lengths(), lengths()];
            traffic.restart();
            two
        };
        let [first, second] = rounds();
        assert_ne!(first, second);
        for round in [&first, &second] {
            for (count, len) in IMIX {
                assert_eq!(round.iter().filter(|each| **each == usize::from(len)).count(), count);
            }
        }
        assert_eq!(rounds(), [first, second]);
    }
}
