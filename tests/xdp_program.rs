//! The XDP program, verdict by verdict, run by the kernel on frames without a device. Needs root.

mod xdp_common;

use std::net::{IpAddr, Ipv6Addr};

use af_xdp::{Device, HugePages, MappedMemory, Socket, SocketConfig, Umem};
use causeway::io::xdp::program::{
    AddressUse, Division, MAX_QUEUES, OwnPrefix, Program, ProgramError, Service, Verdict,
};
use xdp_common::{Ipv4, UNICAST, ethernet, ipv6, is_root, udp};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

const ESP: u8 = 50;
const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP: u8 = 1;

const TUNNEL: [u8; 4] = [192, 0, 2, 1];
const NAT: [u8; 4] = [192, 0, 2, 70];
const BOTH: [u8; 4] = [192, 0, 2, 2];
const HOST: [u8; 4] = [192, 0, 2, 3];
const FOREIGN: [u8; 4] = [203, 0, 113, 5];

const MORE_FRAGMENTS: u16 = 0x2000;

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

/// A program with addresses, a service and a socket on queue 0, where the kernel pretends test frames come in.
struct Bench {
    program: Program,
    _socket: Socket,
}

impl Bench {
    fn new(division: Division) -> Self {
        let memory = MappedMemory::new(16, 2048, HugePages::Never).unwrap();
        let umem = Umem::new(std::sync::Arc::new(memory), 0).unwrap();
        let socket =
            Socket::open(&umem, &Device::by_name("lo").unwrap(), 0, &SocketConfig::default()).unwrap();
        let mut program = Program::load().unwrap();
        program.add_socket(0, &socket).unwrap();
        let own = |address: IpAddr, length, usage| OwnPrefix { address, length, usage };
        program
            .set_addresses(&[
                own(TUNNEL.into(), 32, AddressUse::Tunnel),
                own(HOST.into(), 32, AddressUse::Host),
                own(BOTH.into(), 32, AddressUse::TunnelAndNat),
                own([192, 0, 2, 64].into(), 26, AddressUse::Nat),
                own([192, 0, 2, 80].into(), 32, AddressUse::Host),
                own(v6("2001:db8::1").into(), 128, AddressUse::Tunnel),
                own(v6("2001:db8:1::").into(), 64, AddressUse::Nat),
            ])
            .unwrap();
        program
            .set_services(&[Service { protocol: TCP, port: 179 }, Service { protocol: ICMP, port: 0 }])
            .unwrap();
        program.set_division(division).unwrap();
        Self { program, _socket: socket }
    }

    /// Runs the program on a frame and checks what it did, and that it counted that and nothing else.
    #[track_caller]
    fn expect(&self, frame: &[u8], action: u32, verdict: Verdict) {
        let before = self.program.counters().unwrap();
        let got = self.program.try_frame(frame).unwrap();
        let after = self.program.counters().unwrap();
        let counted: Vec<_> = after.iter().filter(|(v, n)| *n != before.get(*v)).collect();
        assert_eq!(counted, [(verdict, before.get(verdict) + 1)], "action {got} on {frame:02x?}");
        assert_eq!(got, action, "{verdict:?} on {frame:02x?}");
    }
}

#[test]
fn off_passes_everything() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::Off);
    bench.expect(&Ipv4::to(FOREIGN, TCP).frame(&[0; 20]), PASS, Verdict::Off);
    bench.expect(&ethernet(UNICAST, 0x8100, &[0, 5, 8, 0]), PASS, Verdict::Off);
}

#[test]
fn an_exclusive_port_redirects_everything() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::Exclusive);
    bench.expect(&ethernet([255; 6], 0x0806, &[0; 28]), REDIRECT, Verdict::Exclusive);
    bench.expect(&ipv6(v6("ff02::1:ff00:1"), 58, 255, &[135; 24]), REDIRECT, Verdict::Exclusive);
    bench.expect(&Ipv4::to(HOST, TCP).frame(&[0; 20]), REDIRECT, Verdict::Exclusive);
    bench.expect(&Ipv4::to(TUNNEL, UDP).frame(&udp(500, 500, &[1; 40])), REDIRECT, Verdict::Exclusive);
}

#[test]
fn tagged_frames_are_redirected_whatever_they_carry() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for ethertype in [0x8100, 0x88a8, 0x9100] {
        bench.expect(&ethernet(UNICAST, ethertype, &[0, 5, 8, 0, 0x45]), REDIRECT, Verdict::Tagged);
        bench.expect(&ethernet([255; 6], ethertype, &[0, 5, 8, 6]), REDIRECT, Verdict::Tagged);
    }
}

#[test]
fn link_control_goes_to_the_kernel() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    bench.expect(&ethernet([255; 6], 0x0806, &[0; 28]), PASS, Verdict::LinkControl);
    bench.expect(&ethernet(UNICAST, 0x0806, &[0; 28]), PASS, Verdict::LinkControl);
    bench.expect(&ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[0; 40]), PASS, Verdict::LinkControl);
    bench.expect(&ethernet([1, 0x80, 0xc2, 0, 0, 2], 0x8809, &[1; 40]), PASS, Verdict::LinkControl);
    // STP: an LLC frame, whose type field is a length.
    bench.expect(&ethernet([1, 0x80, 0xc2, 0, 0, 0], 38, &[0x42, 0x42, 3]), PASS, Verdict::LinkControl);
}

#[test]
fn multicast_broadcast_and_link_local_go_to_the_kernel() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    let mut to_group = Ipv4::to([224, 0, 0, 5], 89).frame(&[0; 24]);
    bench.expect(&to_group, PASS, Verdict::Multicast);
    to_group[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 5]);
    bench.expect(&to_group, PASS, Verdict::Multicast);
    bench.expect(&Ipv4::to([255; 4], UDP).frame(&udp(68, 67, &[0; 40])), PASS, Verdict::Multicast);
    bench.expect(&Ipv4::to([169, 254, 1, 1], TCP).frame(&[0; 20]), PASS, Verdict::Multicast);
    bench.expect(&ipv6(v6("ff02::5"), 89, 1, &[0; 40]), PASS, Verdict::Multicast);
    bench.expect(&ipv6(v6("fe80::1"), TCP, 64, &[0; 20]), PASS, Verdict::Multicast);
    bench.expect(&ipv6(v6("febf::1"), TCP, 64, &[0; 20]), PASS, Verdict::Multicast);
    // Neighbours of those prefixes.
    bench.expect(&Ipv4::to([223, 255, 255, 255], TCP).frame(&[0; 20]), REDIRECT, Verdict::Transit);
    bench.expect(&Ipv4::to([169, 253, 1, 1], TCP).frame(&[0; 20]), REDIRECT, Verdict::Transit);
    bench.expect(&ipv6(v6("fec0::1"), TCP, 64, &[0; 20]), REDIRECT, Verdict::Transit);
}

#[test]
fn neighbour_discovery_goes_to_the_kernel_only_from_the_link() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for kind in 133..=137 {
        let mut message = [0; 24];
        message[0] = kind;
        bench.expect(&ipv6(v6("2001:db8:1::5"), 58, 255, &message), PASS, Verdict::Neighbour);
        bench.expect(&ipv6(v6("2001:db8:ff::5"), 58, 255, &message), PASS, Verdict::Neighbour);
        // A router has let it through: it is not neighbour discovery.
        bench.expect(&ipv6(v6("2001:db8:1::5"), 58, 254, &message), REDIRECT, Verdict::Nat);
    }
    bench.expect(&ipv6(v6("2001:db8:ff::5"), 58, 255, &[128; 24]), REDIRECT, Verdict::Transit);
}

#[test]
fn what_is_not_ours_is_redirected() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for protocol in [TCP, UDP, ICMP, ESP] {
        bench.expect(&Ipv4::to(FOREIGN, protocol).frame(&[0; 40]), REDIRECT, Verdict::Transit);
        bench.expect(&ipv6(v6("2001:db8:ff::5"), protocol, 64, &[0; 40]), REDIRECT, Verdict::Transit);
    }
    bench.expect(&Ipv4::to(FOREIGN, UDP).frame(&udp(500, 500, &[1; 40])), REDIRECT, Verdict::Transit);
    bench.expect(&ethernet(UNICAST, 0x8847, &[0; 46]), REDIRECT, Verdict::Transit);
}

#[test]
fn headers_that_cannot_be_read_are_left_to_the_gateway() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    let whole = Ipv4::to(TUNNEL, TCP).frame(&[0; 20]);
    for length in [14, 15, 33] {
        bench.expect(&whole[..length], REDIRECT, Verdict::Unreadable);
    }
    let mut bad = whole.clone();
    bad[14] = 0x55;
    bench.expect(&bad, REDIRECT, Verdict::Unreadable);
    bad[14] = 0x44;
    bench.expect(&bad, REDIRECT, Verdict::Unreadable);
    let whole = ipv6(v6("2001:db8::1"), TCP, 64, &[0; 20]);
    for length in [14, 53] {
        bench.expect(&whole[..length], REDIRECT, Verdict::Unreadable);
    }
    let mut bad = whole;
    bad[14] = 0x40;
    bench.expect(&bad, REDIRECT, Verdict::Unreadable);
}

#[test]
fn esp_to_a_tunnel_address_is_redirected_with_its_fragments() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for address in [TUNNEL, BOTH] {
        for fragment in [0, 0x4000, MORE_FRAGMENTS, MORE_FRAGMENTS | 100, 100] {
            let header = Ipv4 { fragment, ..Ipv4::to(address, ESP) };
            bench.expect(&header.frame(&[7; 40]), REDIRECT, Verdict::Esp);
        }
    }
    bench.expect(&Ipv4::to(HOST, ESP).frame(&[7; 40]), PASS, Verdict::Host);
    bench.expect(&Ipv4::to(NAT, ESP).frame(&[7; 40]), REDIRECT, Verdict::Nat);
    bench.expect(&ipv6(v6("2001:db8::1"), ESP, 64, &[7; 40]), REDIRECT, Verdict::Esp);
    for (offset, more) in [(0_u16, 1_u16), (1480, 1), (2960, 0)] {
        let mut payload = vec![ESP, 0];
        payload.extend((offset | more).to_be_bytes());
        payload.extend([0, 0, 0, 9]);
        payload.extend([7; 40]);
        bench.expect(&ipv6(v6("2001:db8::1"), 44, 64, &payload), REDIRECT, Verdict::Esp);
    }
}

#[test]
fn ike_and_keepalives_go_to_the_kernel_and_esp_in_udp_to_the_gateway() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for address in [TUNNEL, BOTH] {
        let to = Ipv4::to(address, UDP);
        bench.expect(&to.frame(&udp(500, 500, &[1; 40])), PASS, Verdict::Ike);
        bench.expect(&to.frame(&udp(61000, 500, &[1; 40])), PASS, Verdict::Ike);
        bench.expect(&to.frame(&udp(4500, 4500, &[0, 0, 0, 0, 1, 2, 3])), PASS, Verdict::Ike);
        bench.expect(&to.frame(&udp(4500, 4500, &[0xff])), PASS, Verdict::Ike);
        for spi in [[0, 0, 1, 0], [0, 0, 0, 1], [255; 4], [1, 0, 0, 0]] {
            let packet = [&spi[..], &[0; 40]].concat();
            bench.expect(&to.frame(&udp(4500, 4500, &packet)), REDIRECT, Verdict::EspInUdp);
            let with_options = Ipv4 { options: 10, ..to };
            bench.expect(&with_options.frame(&udp(9, 4500, &packet)), REDIRECT, Verdict::EspInUdp);
        }
    }
    let esp = udp(4500, 4500, &[1; 40]);
    bench.expect(&ipv6(v6("2001:db8::1"), UDP, 64, &esp), REDIRECT, Verdict::EspInUdp);
    bench.expect(&ipv6(v6("2001:db8::1"), UDP, 64, &udp(500, 500, &[1; 40])), PASS, Verdict::Ike);
    // Behind hop-by-hop options, a routing header and destination options.
    let mut chain = vec![43, 0, 0, 0, 0, 0, 0, 0];
    chain.extend([60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend([UDP, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend(&esp);
    bench.expect(&ipv6(v6("2001:db8::1"), 0, 64, &chain), REDIRECT, Verdict::EspInUdp);
}

#[test]
fn later_fragments_go_where_the_first_went() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    let fragment = |identification, fragment| Ipv4 { identification, fragment, ..Ipv4::to(TUNNEL, UDP) };
    let later = |identification| fragment(identification, 185).frame(&[1; 100]);
    let first = |identification, payload: &[u8]| fragment(identification, MORE_FRAGMENTS).frame(payload);
    bench.expect(&later(7), REDIRECT, Verdict::EspInUdp);
    bench.expect(&first(7, &udp(500, 500, &[1; 40])), PASS, Verdict::Ike);
    bench.expect(&later(7), PASS, Verdict::Ike);
    bench.expect(&first(8, &udp(4500, 4500, &[1; 40])), REDIRECT, Verdict::EspInUdp);
    bench.expect(&later(8), REDIRECT, Verdict::EspInUdp);
    // An identification that comes back.
    bench.expect(&first(7, &udp(4500, 4500, &[1; 40])), REDIRECT, Verdict::EspInUdp);
    bench.expect(&later(7), REDIRECT, Verdict::EspInUdp);
    // A fragmented service of a NAT address, and something else.
    let nat =
        |identification, fragment, protocol| Ipv4 { identification, fragment, ..Ipv4::to(NAT, protocol) };
    bench.expect(&nat(1, MORE_FRAGMENTS, ICMP).frame(&[8; 100]), PASS, Verdict::Service);
    bench.expect(&nat(1, 185, ICMP).frame(&[8; 100]), PASS, Verdict::Service);
    bench.expect(&nat(2, 185, ICMP).frame(&[8; 100]), REDIRECT, Verdict::Nat);
    bench.expect(&nat(3, MORE_FRAGMENTS, UDP).frame(&udp(1, 2, &[0; 90])), REDIRECT, Verdict::Nat);
    // And in IPv6, where the fragment header has the identification.
    let six = |offset: u16, payload: &[u8]| {
        let mut fragment = vec![UDP, 0];
        fragment.extend(offset.to_be_bytes());
        fragment.extend([0, 0, 1, 44]);
        fragment.extend(payload);
        ipv6(v6("2001:db8::1"), 44, 64, &fragment)
    };
    bench.expect(&six(8, &[0; 90]), REDIRECT, Verdict::EspInUdp);
    bench.expect(&six(1, &udp(500, 500, &[1; 40])), PASS, Verdict::Ike);
    bench.expect(&six(8, &[0; 90]), PASS, Verdict::Ike);
}

#[test]
fn a_nat_address_keeps_only_listed_services_from_the_gateway() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for address in [NAT, BOTH] {
        let tcp = Ipv4::to(address, TCP);
        bench.expect(&tcp.frame(&udp(40000, 179, &[0; 20])), PASS, Verdict::Service);
        bench.expect(&tcp.frame(&udp(179, 40000, &[0; 20])), REDIRECT, Verdict::Nat);
        bench.expect(&Ipv4::to(address, UDP).frame(&udp(40000, 179, &[0; 20])), REDIRECT, Verdict::Nat);
        bench.expect(&Ipv4::to(address, ICMP).frame(&[8; 40]), PASS, Verdict::Service);
    }
    bench.expect(&Ipv4::to(NAT, UDP).frame(&udp(500, 500, &[1; 40])), REDIRECT, Verdict::Nat);
    bench.expect(&ipv6(v6("2001:db8:1::9"), TCP, 64, &udp(1, 179, &[0; 12])), PASS, Verdict::Service);
    bench.expect(&ipv6(v6("2001:db8:1::9"), TCP, 64, &udp(1, 180, &[0; 12])), REDIRECT, Verdict::Nat);
    // A longer prefix decides otherwise.
    bench.expect(&Ipv4::to([192, 0, 2, 80], TCP).frame(&udp(1, 2, &[0; 12])), PASS, Verdict::Host);
    bench.expect(&Ipv4::to([192, 0, 2, 127], TCP).frame(&udp(1, 2, &[0; 12])), REDIRECT, Verdict::Nat);
    bench.expect(&Ipv4::to([192, 0, 2, 128], TCP).frame(&udp(1, 2, &[0; 12])), REDIRECT, Verdict::Transit);
}

#[test]
fn the_rest_to_us_goes_to_the_kernel() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    for address in [TUNNEL, HOST] {
        bench.expect(&Ipv4::to(address, ICMP).frame(&[8; 40]), PASS, Verdict::Host);
        bench.expect(&Ipv4::to(address, TCP).frame(&udp(1, 22, &[0; 12])), PASS, Verdict::Host);
        bench.expect(&Ipv4::to(address, UDP).frame(&udp(1, 53, &[0; 12])), PASS, Verdict::Host);
    }
    // A UDP header that is cut short.
    let cut = Ipv4::to(TUNNEL, UDP).frame(&[]);
    bench.expect(&cut[..38], PASS, Verdict::Host);
    bench.expect(&ipv6(v6("2001:db8::1"), 58, 64, &[128; 40]), PASS, Verdict::Host);
    // More extension headers than are followed.
    let chain: Vec<u8> = std::iter::repeat_n([60, 0, 0, 0, 0, 0, 0, 0], 9).flatten().collect();
    bench.expect(&ipv6(v6("2001:db8::1"), 60, 64, &chain), PASS, Verdict::Host);
}

#[test]
fn a_queue_without_a_socket_drops() {
    if !is_root() {
        return;
    }
    let mut bench = Bench::new(Division::HostShared);
    bench.program.remove_socket(0).unwrap();
    bench.program.remove_socket(0).unwrap();
    bench.expect(&Ipv4::to(FOREIGN, TCP).frame(&[0; 20]), DROP, Verdict::NoSocket);
    bench.expect(&Ipv4::to(HOST, TCP).frame(&[0; 20]), PASS, Verdict::Host);
    bench.program.set_division(Division::Exclusive).unwrap();
    bench.expect(&ethernet([255; 6], 0x0806, &[0; 28]), DROP, Verdict::NoSocket);
}

#[test]
fn addresses_and_services_are_replaced_as_a_whole() {
    if !is_root() {
        return;
    }
    let mut bench = Bench::new(Division::HostShared);
    let only = OwnPrefix { address: FOREIGN.into(), length: 32, usage: AddressUse::Nat };
    bench.program.set_addresses(&[only]).unwrap();
    bench.expect(&Ipv4::to(TUNNEL, ESP).frame(&[0; 40]), REDIRECT, Verdict::Transit);
    bench.expect(&ipv6(v6("2001:db8::1"), ESP, 64, &[0; 40]), REDIRECT, Verdict::Transit);
    bench.expect(&Ipv4::to(FOREIGN, TCP).frame(&udp(1, 179, &[0; 12])), PASS, Verdict::Service);
    bench.program.set_services(&[]).unwrap();
    bench.expect(&Ipv4::to(FOREIGN, TCP).frame(&udp(1, 179, &[0; 12])), REDIRECT, Verdict::Nat);

    let bad = OwnPrefix { address: FOREIGN.into(), length: 33, usage: AddressUse::Nat };
    assert!(matches!(bench.program.set_addresses(&[bad]), Err(ProgramError::Prefix(_, 33))));
    bench.expect(&Ipv4::to(FOREIGN, TCP).frame(&udp(1, 179, &[0; 12])), REDIRECT, Verdict::Nat);
}

#[test]
fn a_queue_beyond_the_map_is_an_error() {
    if !is_root() {
        return;
    }
    let mut bench = Bench::new(Division::HostShared);
    let fd = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(bench.program.add_socket(MAX_QUEUES, &fd), Err(ProgramError::Map { .. })));
    assert!(bench.program.add_socket(0, &fd).is_err(), "not a socket");
}

/// Random bytes, and real headers with random bytes in them: the program must judge each, and count it once.
#[test]
fn any_bytes_get_one_verdict() {
    use rand::{Rng, SeedableRng};
    if !is_root() {
        return;
    }
    let bench = Bench::new(Division::HostShared);
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let templates = [
        Ipv4::to(TUNNEL, UDP).frame(&udp(4500, 4500, &[1; 30])),
        Ipv4::to(NAT, TCP).frame(&[0; 40]),
        ipv6(v6("2001:db8::1"), 44, 64, &[UDP; 80]),
        ipv6(v6("2001:db8:1::1"), 0, 64, &[0; 80]),
        vec![0; 64],
    ];
    let rounds = 4000_u64;
    for round in 0..rounds {
        let mut frame = templates[round as usize % templates.len()].clone();
        for _ in 0..random.random_range(0..6) {
            let at = random.random_range(12..frame.len());
            frame[at] = random.random();
        }
        frame.truncate(random.random_range(14..=frame.len()));
        let action = bench.program.try_frame(&frame).unwrap();
        assert!(matches!(action, PASS | REDIRECT), "action {action} on {frame:02x?}");
    }
    let total: u64 = bench.program.counters().unwrap().iter().map(|(_, n)| n).sum();
    assert_eq!(total, rounds);
}
