//! ARP for IPv4 over Ethernet (RFC 826), with probes and announcements (RFC 5227).

use super::ethernet::MacAddr;
use std::net::Ipv4Addr;

/// Bytes of an Ethernet/IPv4 ARP packet.
pub const PACKET_LEN: usize = 28;

header! {
    /// An ARP packet for IPv4 over Ethernet.
    Arp: 28 {
        /// Hardware type; 1 is Ethernet.
        hardware_type, set_hardware_type: u16 = 0;
        /// Protocol type; 0x0800 is IPv4.
        protocol_type, set_protocol_type: u16 = 2;
        /// Bytes of a hardware address.
        hardware_len, set_hardware_len: u8 = 4;
        /// Bytes of a protocol address.
        protocol_len, set_protocol_len: u8 = 5;
        /// 1 is a request, 2 a reply.
        operation, set_operation: u16 = 6;
        /// The sender's MAC address.
        sender_mac, set_sender_mac: MacAddr = 8;
        /// The sender's IPv4 address.
        sender_ip, set_sender_ip: Ipv4Addr = 14;
        /// The target's MAC address.
        target_mac, set_target_mac: MacAddr = 18;
        /// The target's IPv4 address.
        target_ip, set_target_ip: Ipv4Addr = 24;
    }
}

/// Why bytes are not an ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer than 28 bytes.
    #[error("ARP packet truncated")]
    Truncated,
    /// Hardware type or length is not Ethernet's.
    #[error("ARP hardware is not Ethernet")]
    Hardware,
    /// Protocol type or length is not IPv4's.
    #[error("ARP protocol is not IPv4")]
    Protocol,
    /// Neither request nor reply.
    #[error("ARP operation is neither request nor reply")]
    Operation,
}

/// Request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's MAC address.
    pub sender_mac: MacAddr,
    /// The sender's IPv4 address; unspecified in a probe.
    pub sender_ip: Ipv4Addr,
    /// The target's MAC address; zero in a request.
    pub target_mac: MacAddr,
    /// The target's IPv4 address.
    pub target_ip: Ipv4Addr,
}

impl Repr {
    /// Asks who has `target_ip`.
    pub const fn request(sender_mac: MacAddr, sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Self {
        let (operation, target_mac) = (Operation::Request, MacAddr::ZERO);
        Self { operation, sender_mac, sender_ip, target_mac, target_ip }
    }

    /// Asks whether anyone has `target_ip` before it is used (RFC 5227 2.1.1).
    pub const fn probe(sender_mac: MacAddr, target_ip: Ipv4Addr) -> Self {
        Self::request(sender_mac, Ipv4Addr::UNSPECIFIED, target_ip)
    }

    /// Tells everyone that `ip` is at `mac` (an announcement, RFC 5227 2.3).
    pub const fn gratuitous(mac: MacAddr, ip: Ipv4Addr) -> Self {
        Self::request(mac, ip, ip)
    }

    /// Answers this request: its target address is at `mac`.
    #[must_use]
    pub const fn reply(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }

    /// Whether the sender only announces itself: sender and target address are the same.
    pub fn is_gratuitous(&self) -> bool {
        self.sender_ip == self.target_ip
    }

    /// Whether the sender has no address yet; nothing may be learnt from it.
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender_ip.is_unspecified()
    }

    /// Reads and checks a packet; padding after it is ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (arp, _) = Arp::split(bytes).ok_or(Error::Truncated)?;
        if (arp.hardware_type(), arp.hardware_len()) != (1, 6) {
            return Err(Error::Hardware);
        }
        if (arp.protocol_type(), arp.protocol_len()) != (0x0800, 4) {
            return Err(Error::Protocol);
        }
        let operation = match arp.operation() {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Error::Operation),
        };
        Ok(Self {
            operation,
            sender_mac: arp.sender_mac(),
            sender_ip: arp.sender_ip(),
            target_mac: arp.target_mac(),
            target_ip: arp.target_ip(),
        })
    }

    /// Writes the packet.
    pub fn emit(&self, bytes: &mut [u8; PACKET_LEN]) {
        let mut arp = Arp::new(bytes);
        arp.set_hardware_type(1);
        arp.set_protocol_type(0x0800);
        arp.set_hardware_len(6);
        arp.set_protocol_len(4);
        arp.set_operation(match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        });
        arp.set_sender_mac(self.sender_mac);
        arp.set_sender_ip(self.sender_ip);
        arp.set_target_mac(self.target_mac);
        arp.set_target_ip(self.target_ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn request_bytes() {
        let mut bytes = [0xff; PACKET_LEN];
        Repr::request(MAC, IP, Ipv4Addr::new(10, 0, 0, 2)).emit(&mut bytes);
        assert_eq!(
            bytes,
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]
        );
    }

    #[test]
    fn kinds() {
        assert!(Repr::gratuitous(MAC, IP).is_gratuitous() && !Repr::gratuitous(MAC, IP).is_probe());
        assert!(Repr::probe(MAC, IP).is_probe() && !Repr::probe(MAC, IP).is_gratuitous());
        let other = MacAddr([4; 6]);
        let reply = Repr::request(MAC, IP, Ipv4Addr::new(10, 0, 0, 2)).reply(other);
        assert_eq!((reply.sender_mac, reply.target_mac, reply.target_ip), (other, MAC, IP));
    }

    #[test]
    fn each_error() {
        let mut good = [0; PACKET_LEN];
        Repr::probe(MAC, IP).emit(&mut good);
        assert_eq!(Repr::parse(&good[..27]), Err(Error::Truncated));
        for (at, error) in [
            (1, Error::Hardware),
            (4, Error::Hardware),
            (2, Error::Protocol),
            (5, Error::Protocol),
            (7, Error::Operation),
        ] {
            let mut bad = good;
            bad[at] = 77;
            assert_eq!(Repr::parse(&bad), Err(error));
        }
    }

    proptest! {
        #[test]
        fn emit_then_parse(reply: bool, a: [u8; 6], b: [u8; 4], c: [u8; 6], d: [u8; 4]) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let (sender_mac, sender_ip) = (MacAddr(a), b.into());
            let repr = Repr { operation, sender_mac, sender_ip, target_mac: MacAddr(c), target_ip: d.into() };
            let mut bytes = [0; PACKET_LEN];
            repr.emit(&mut bytes);
            prop_assert_eq!(Repr::parse(&bytes), Ok(repr));
        }
    }
}
