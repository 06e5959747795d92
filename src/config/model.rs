//! The schema: every section and key of the file, declared once.
//!
//! The doc comments here are what `docs/configuration.md` and `docs/schema.json` say; after a change run
//! `UPDATE_DOCS=1 cargo test --test config_docs`.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use toml::de::{DeTable, DeValue};

use super::decode::{
    Child, Context, Count, Field, Presence, Section, SectionShape, Shape, Slot, Value, section,
};
use super::diagnostics::Problem;
use super::keys::Key;
use super::limit_values::{Burst, LimitRate};
use super::prefix::{AddressRanges, HostOrPrefix, InterfaceAddress, Prefix};
use super::quantity::{Bytes, Interval, Number, PowerOfTwo, Ranged};
use super::reader::Reader;
use super::selector::{IcmpMatch, PortRanges, Protocol};
use super::span::{At, Span};
use super::suggest::{self, shorten};
use super::tunnel_values::{Mss, PacketsPerSecond};
use super::types::{BufferSize, DeviceName, Dscp, Location, Mac, Name, ReplayWindow, Spi, Vlan};
use super::written::{Writer, Written};

/// A checked configuration. Sections stand in the order of the file, and identifiers are their indices.
#[derive(Debug, Clone)]
pub struct Config {
    /// The machine.
    pub system: System,
    /// NICs and their stand-ins.
    pub ports: Vec<Port>,
    /// VRFs.
    pub gateways: Vec<Gateway>,
    /// VLANs of ports.
    pub interfaces: Vec<Interface>,
    /// IPsec tunnels.
    pub tunnels: Vec<Tunnel>,
}

/// Declares an enumeration that is written as one of a few words.
macro_rules! choices {
    ($(#[doc = $doc:literal])* $name:ident { $( $(#[doc = $variant_doc:literal])* $word:literal $variant:ident, )* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $variant_doc])* $variant, )*
        }

        impl $name {
            /// The words of the file.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// As the file writes it.
            pub fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $word, )* }
            }
        }

        impl Written for $name {
            fn write(&self, to: &mut Writer<'_>) {
                to.text(&self.as_str());
            }
        }

        impl Value for $name {
            fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
                match value.as_str() {
                    $( Some($word) => Some($name::$variant), )*
                    Some(other) => {
                        not_a_choice(other, Self::WORDS, span, cx);
                        None
                    }
                    None => {
                        cx.wrong_type(span, &Self::shape(), value);
                        None
                    }
                }
            }

            fn shape() -> Shape {
                let quoted: Vec<String> = Self::WORDS.iter().map(|word| format!("\"{word}\"")).collect();
                let variants = json!([$( { "const": $word, "description": concat!($($variant_doc),*).trim() } ),*]);
                Shape { words: quoted.join(" or "), example: quoted[0].clone(), schema: json!({ "oneOf": variants }) }
            }
        }
    };
}

fn not_a_choice(text: &str, words: &[&'static str], span: Span, cx: &mut Context<'_>) {
    let near = suggest::nearest(text, words.iter().copied()).map(|w| format!("did you mean \"{w}\"? "));
    let help = format!("{}choose one of {}", near.unwrap_or_default(), words.join(", "));
    let message = format!("\"{}\" is not a choice here", shorten(text));
    cx.report(Problem::new("bad-value", span, message).help(help));
}

/// Declares the identifier of a kind of section: written as its name, held as its index.
macro_rules! references {
    ($( $(#[doc = $doc:literal])* $name:ident, $word:literal, $names:ident; )*) => { $(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub usize);

        impl Written for $name {
            fn write(&self, to: &mut Writer<'_>) {
                // An identifier of another configuration has no name here.
                if let Some(named) = to.config.$names.get(self.0) {
                    to.text(&named.name);
                }
            }
        }

        impl Value for $name {
            fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
                let Some(name) = value.as_str() else {
                    cx.wrong_type(span, &Self::shape(), value);
                    return None;
                };
                let found = cx.names.$names.find(name);
                if found.is_none() && !cx.incomplete {
                    let problem = undefined(name, $word, &cx.names.$names.list, span);
                    cx.report(problem);
                }
                found.map($name)
            }

            fn shape() -> Shape {
                Shape {
                    words: concat!("the name of a ", $word).into(),
                    example: concat!("\"", $word, "-1\"").into(),
                    schema: json!({ "type": "string", "pattern": "^[a-z0-9-]{1,32}$" }),
                }
            }
        }
    )* };
}

fn undefined(name: &str, kind: &str, names: &[String], span: Span) -> Problem {
    let near = suggest::nearest(name, names.iter().map(String::as_str));
    let all = match names.is_empty() {
        true => format!("the file declares no {kind}; add a section [{kind}.{}]", shorten(name)),
        false => format!("there are: {}", suggest::listing(names)),
    };
    let help = near.map_or(all.clone(), |near| format!("did you mean \"{near}\"? {all}"));
    Problem::new("undefined-reference", span, format!("there is no {kind} \"{}\"", shorten(name))).help(help)
}

references! {
    /// A port: an index of [`Config::ports`].
    PortId, "port", ports;
    /// A gateway: an index of [`Config::gateways`].
    GatewayId, "gateway", gateways;
    /// An interface: an index of [`Config::interfaces`].
    InterfaceId, "interface", interfaces;
    /// A tunnel: an index of [`Config::tunnels`].
    TunnelId, "tunnel", tunnels;
}

choices! {
    /// When to use huge pages for the frames' memory.
    HugePages {
        /// Where the system has them free; else ordinary ones, of which the kernel makes transparent huge pages where it may.
        "auto" Auto,
        /// Refuse to start without them.
        "require" Require,
        /// Ordinary pages.
        "never" Never,
    }
}

choices! {
    /// Which AES-GCM code seals and opens.
    Cipher {
        /// The fastest this CPU has.
        "auto" Auto,
        /// The portable `aes-gcm` crate.
        "aes-gcm" AesGcm,
        /// VAES over 512-bit registers.
        "vaes512" Vaes512,
        /// VAES over 256-bit registers.
        "vaes256" Vaes256,
    }
}

choices! {
    /// What moves the frames of a port.
    Driver {
        /// AF_XDP: the fast way, on a NIC of this machine.
        "xdp" Xdp,
        /// AF_PACKET: any device, slower.
        "af_packet" AfPacket,
        /// A TAP device that is made for the purpose.
        "tap" Tap,
        /// Queues in memory: for measurements and tests.
        "memory" Memory,
    }
}

choices! {
    /// How the XDP program is attached.
    XdpMode {
        /// In the driver where it can, otherwise in the kernel's generic path.
        "auto" Auto,
        /// In the driver, or refuse to start.
        "native" Native,
        /// In the kernel's generic path: works everywhere, slowly.
        "generic" Generic,
    }
}

choices! {
    /// Whether the NIC reads and writes frames in place.
    ZeroCopy {
        /// Where the driver can.
        "auto" Auto,
        /// Or refuse to start.
        "require" Require,
        /// The kernel copies.
        "never" Never,
    }
}

choices! {
    /// Which way an interface looks.
    Side {
        /// Towards the VPC.
        "local" Local,
        /// Towards the data centres.
        "peer" Peer,
    }
}

choices! {
    /// How ESP travels.
    Encapsulation {
        /// IP protocol 50.
        "esp" Esp,
        /// In UDP on port 4500, through NATs (RFC 3948).
        "udp" Udp,
    }
}

choices! {
    /// The "don't fragment" bit of the outer header (RFC 4301 8.1).
    DontFragment {
        /// As in the inner header.
        "copy" Copy,
        /// Always set.
        "set" Set,
        /// Never set.
        "clear" Clear,
    }
}

choices! {
    /// What of an ICMP error about a tunnel's traffic must fit the policies (RFC 4301 6).
    IcmpErrors {
        /// The packet that it quotes.
        "quoted" Quoted,
        /// Its own addresses are enough.
        "headers" Headers,
    }
}

choices! {
    /// What a policy does with a packet that it matches.
    Action {
        /// Sends it through a tunnel.
        "protect" Protect,
        /// Leaves it to the route table.
        "bypass" Bypass,
        /// Drops it.
        "discard" Discard,
    }
}

choices! {
    /// How traffic comes back to a way out that works again.
    Failback {
        /// By itself.
        "auto" Auto,
        /// When an operator says so: `causeway failback`.
        "manual" Manual,
    }
}

choices! {
    /// What a mapping of addresses does.
    NatKind {
        /// A host or prefix of the VPC appears to peers under another, one to one, both ways, without state.
        "local" Local,
        /// A host or prefix of a peer appears to the VPC under another, one to one, both ways, without state.
        "peer" Peer,
        /// Peers reach a service of a host of the VPC under another address and port. IPv4; with sessions.
        "port" Port,
        /// Hosts of the VPC reach peers from addresses and ports of a pool. IPv4; with sessions.
        "pool" Pool,
    }
}

/// What a worker does when there is no work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Keeps polling: lowest delay, a whole core.
    Spin,
    /// Sleeps on the rings after so long without work.
    SleepAfter(Duration),
}

impl Value for Idle {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) if text == "spin" => Some(Idle::Spin),
            DeValue::String(text) => {
                let message = format!("\"{}\" is not a choice here", shorten(text));
                let help = "write \"spin\" or { sleep_after = \"50us\" }";
                cx.report(Problem::new("bad-value", span, message).help(help));
                None
            }
            DeValue::Table(table) => {
                let draft = SleepAfter::decode(table, span, cx);
                SleepAfter::finish(draft).map(|sleep| Idle::SleepAfter(sleep.sleep_after.0))
            }
            _ => {
                cx.wrong_type(span, &Self::shape(), value);
                None
            }
        }
    }

    fn shape() -> Shape {
        Shape {
            words: "\"spin\" or after how long to sleep".into(),
            example: "\"spin\" or { sleep_after = \"50us\" }".into(),
            schema: json!({ "oneOf": [
                { "const": "spin" },
                {
                    "type": "object",
                    "properties": { "sleep_after": Interval::shape().schema },
                    "required": ["sleep_after"],
                    "additionalProperties": false,
                },
            ]}),
        }
    }
}

section! {
    /// After how long without work a worker sleeps.
    SleepAfter, SleepAfterDraft, "idle" {
        /// The time.
        "sleep_after" sleep_after: Interval, required, "\"50us\"";
    }
    children {}
    computed {}
}

section! {
    /// The machine and its workers. The whole section may be left out.
    System, SystemDraft, "[system]" {
        /// The name of this box, in statistics and in the names of its files.
        "name" name: Name, derived "the name of the file", "\"idc\"";
        /// The CPU cores to work on: one worker is pinned to each.
        "cores" cores: Vec<At<Ranged<0, 4095>>>, optional "the last core of the machine", "[1, 2]";
        /// The most packets that pass through the pipeline together.
        "burst" burst: Ranged<1, 64>, default "64", "32";
        /// What a worker does when there is no work. `"spin"` keeps polling and takes the whole core.
        "idle" idle: Idle, default "{ sleep_after = \"50us\" }", "\"spin\"";
        /// Frame buffers per worker.
        "buffers" buffers: PowerOfTwo<256, 1_048_576>, default "16384", "32768";
        /// The bytes of a frame buffer. An MTU above 1770 needs 4096, one above 3818 needs 8192, and jumbo frames of 9000
        /// need 16384. What is more than 4096 AF_XDP receives in pieces that are copied together (Linux 6.6 or newer), and
        /// takes memory: 16384 buffers of 16384 bytes are 256 MiB for each worker. It also bounds what can be put together
        /// of fragments to the gateway itself: 256 bytes less, behind the IP header.
        "buffer_size" buffer_size: BufferSize, default "2048", "4096";
        /// Whether the buffers lie in huge pages.
        "huge_pages" huge_pages: HugePages, default "\"auto\"", "\"require\"";
        /// The file that remembers sequence numbers, so that no key meets the same one twice, whatever happens.
        "state" state: Location, derived "`/var/lib/causeway/NAME.state`", "\"/var/lib/causeway/idc.state\"";
        /// The directory of the statistics segment and the control socket.
        "run_dir" run_dir: Location, derived "`/run/causeway/NAME`", "\"/run/causeway/idc\"";
        /// Which AES-GCM code seals and opens.
        "cipher" cipher: Cipher, default "\"auto\"", "\"vaes512\"";
        /// The most NAT sessions of all gateways together: the table is made for as many, divided among the workers.
        /// A session takes 100 to 132 bytes, with several workers 32 more; without mappings of kind `port` or `pool` there
        /// is no table.
        "nat_sessions" nat_sessions: Ranged<1024, 16_777_216>, default "262144", "4194304";
        /// The file that NAT sessions are written to, a line of JSON when one begins and when it ends.
        "nat_log" nat_log: Location, optional "no log", "\"/var/log/causeway/nat.log\"";
        /// Megabytes after which that file is put aside, as `nat.log.1`, and a new one begun.
        "nat_log_size" nat_log_size: Ranged<1, 65_536>, default "64", "512";
        /// How many such files are kept beside it.
        "nat_log_files" nat_log_files: Ranged<1, 1000>, default "8", "30";
    }
    children {}
    computed {}
}

section! {
    /// A line: a NIC, or something that stands in for one.
    Port, PortDraft, "[port.NAME]" {
        /// What moves the frames.
        "driver" driver: Driver, required, "\"xdp\"";
        /// The network device. Every driver needs one but `memory`, which has none.
        "device" device: DeviceName, optional "none, for driver `memory`", "\"eth1\"";
        /// The MAC address that frames are sent from and taken for.
        "mac" mac: Mac, optional "the device's own; for driver `memory` one made from the names", "\"02:00:00:00:00:01\"";
        /// The largest IP packet, without Ethernet header and VLAN tags. Header, tags and 256 bytes of headroom
        /// must fit into the buffer with it.
        "mtu" mtu: Ranged<576, 16_128>, default "1500", "1600";
        /// Descriptors of each ring.
        "ring" ring: PowerOfTwo<64, 32_768>, default "2048", "4096";
        /// Whether the NIC passes on frames for other MAC addresses.
        "promiscuous" promiscuous: bool, default "false", "true";
        /// How the XDP program is attached. Driver `xdp` only.
        "xdp_mode" xdp_mode: XdpMode, default "\"auto\"", "\"native\"";
        /// Whether the NIC reads and writes frames in place. Driver `xdp` only.
        "zero_copy" zero_copy: ZeroCopy, default "\"auto\"", "\"require\"";
        /// How long the kernel busy-polls the NIC for us. Driver `xdp` only.
        "busy_poll" busy_poll: Interval, optional "no busy polling", "\"20us\"";
        /// Whether the kernel keeps ARP, neighbour discovery and what is not the gateway's, so that the device
        /// goes on serving the host. Driver `xdp` only.
        "share_with_host" share_with_host: bool, default "false", "true";
    }
    children {}
    computed {
        /// Its name.
        name: At<Name>;
    }
}

section! {
    /// A VRF: routes, policies and address mappings of its own. Two gateways never see each other's packets unless
    /// a route says so, and may use the same addresses.
    Gateway, GatewayDraft, "[gateway.NAME]" {
        /// The prefixes of the VPC itself: what is `local`.
        "prefixes" prefixes: Vec<At<Prefix>>, default "[]", "[\"10.2.0.0/16\"]";
        /// Whether peers may reach each other through this gateway. `false` drops what comes from one peer and
        /// goes to another.
        "transit" transit: bool, default "true", "false";
        /// The most sessions that mappings of kind `port` and `pool` may have here. Each worker has its equal part.
        "nat_sessions" nat_sessions: Ranged<16, 16_777_216>, optional "an equal part of the table for each gateway that has such mappings", "100000";
        /// The most sessions of one host of the VPC.
        "nat_sessions_per_source" nat_sessions_per_source: Ranged<1, 65_535>, optional "no limit", "2000";
        /// How long a session of UDP lives without a packet (RFC 4787 REQ-5).
        "nat_udp_timeout" nat_udp_timeout: Interval, default "\"300s\"", "\"120s\"";
        /// How long an open TCP connection lives without a packet (RFC 5382 REQ-5).
        "nat_tcp_timeout" nat_tcp_timeout: Interval, default "\"7440s\"", "\"2h\"";
        /// How long a TCP connection that opens or closes lives without a packet (RFC 5382 REQ-5).
        "nat_tcp_transitory_timeout" nat_tcp_transitory_timeout: Interval, default "\"240s\"", "\"60s\"";
        /// How long a session of an ICMP query lives without a packet (RFC 5508 REQ-2).
        "nat_icmp_timeout" nat_icmp_timeout: Interval, default "\"60s\"", "\"30s\"";
    }
    children {
        /// What is protected, passed on or dropped, before the route table is asked.
        "policy" policies: many Policy;
        /// Where packets go.
        "route" routes: many Route;
        /// Address and port mappings.
        "nat" nat: many Nat;
        /// What the gateway carries at most: `in` to its VPC, `out` from it.
        "limit" limit: maybe Limit;
        /// What each address of the VPC may have at most, and that each is counted.
        "address_limit" address_limit: maybe AddressLimit;
    }
    computed {
        /// Its name.
        name: At<Name>;
    }
}

section! {
    /// A VLAN of a port, or the port's untagged frames: where a gateway touches a line.
    Interface, InterfaceDraft, "[interface.NAME]" {
        /// The port.
        "port" port: PortId, required, "\"line\"";
        /// The VLAN: a number, 0 for untagged, or `{ outer = 200, inner = 100 }` for an 802.1ad tag around an
        /// 802.1Q one.
        "vlan" vlan: Vlan, default "0", "100";
        /// The gateway it belongs to.
        "gateway" gateway: GatewayId, required, "\"vpc\"";
        /// Which way it looks: towards the VPC, or towards the data centres.
        "side" side: Side, required, "\"peer\"";
        /// Its addresses, each with the length of the prefix that is directly connected.
        "addresses" addresses: Vec<At<InterfaceAddress>>, default "[]", "[\"192.0.2.1/30\", \"2001:db8::1/64\"]";
        /// The largest IP packet.
        "mtu" mtu: Ranged<576, 16_128>, derived "the port's", "1400";
        /// A TAP device for packets to the interface's own addresses, so that ping, BGP or IKE of the host work.
        "host_tap" host_tap: DeviceName, optional "such packets are answered here or dropped", "\"cw-wan\"";
        /// How long a way out that works again stays out of use, so that traffic does not come and go with every fault.
        "hold_down" hold_down: Interval, default "\"10s\"", "\"60s\"";
        /// How traffic comes back when the hold-down is over.
        "failback" failback: Failback, default "\"auto\"", "\"manual\"";
    }
    children {
        /// Asks the other end of the line, by ICMP echo, whether it is there.
        "probe" probe: maybe InterfaceProbe;
        /// BFD with the other end of the line.
        "bfd" bfd: maybe InterfaceBfd;
        /// What it carries at most: `in` is what it receives, `out` what it sends.
        "limit" limit: maybe Limit;
    }
    computed {
        /// Its name.
        name: At<Name>;
    }
}

section! {
    /// An IPsec tunnel between two addresses: ESP in tunnel mode with AES-GCM.
    Tunnel, TunnelDraft, "[tunnel.NAME]" {
        /// The gateway whose packets go through it.
        "gateway" gateway: GatewayId, required, "\"vpc\"";
        /// The gateway that carries the encrypted packets.
        "underlay" underlay: GatewayId, derived "the same gateway", "\"internet\"";
        /// This end: an address of an interface of the underlay.
        "local" local: IpAddr, required, "\"192.0.2.2\"";
        /// The other end.
        "remote" remote: IpAddr, required, "\"192.0.2.1\"";
        /// How ESP travels.
        "encapsulation" encapsulation: Encapsulation, default "\"esp\"", "\"udp\"";
        /// Extended sequence numbers of 64 bits (RFC 4303 2.2.1). Both ends must agree.
        "esn" esn: bool, default "true", "false";
        /// How far behind the newest packet a late one may be. 0 switches the check for replays off.
        "replay_window" replay_window: ReplayWindow, default "1024", "4096";
        /// How long a key is used. What the key seals or opens later is dropped, so replace it before.
        "lifetime" lifetime: Interval, optional "no bound", "\"24h\"";
        /// How many bytes a key seals or opens, inner packets with their padding.
        "lifetime_bytes" lifetime_bytes: Bytes, optional "no bound", "\"500GB\"";
        /// How many packets a key seals or opens, by their sequence numbers.
        "lifetime_packets" lifetime_packets: Number, optional "no bound, but that of the sequence numbers", "4_000_000_000";
        /// At what part of any lifetime, and of the sequence numbers, a warning asks for a new key, in percent.
        "rekey_at" rekey_at: Ranged<1, 100>, default "80", "90";
        /// The "don't fragment" bit of the outer header.
        "df" df: DontFragment, default "\"copy\"", "\"clear\"";
        /// The DSCP of the outer header.
        "dscp" dscp: Dscp, default "\"copy\"", "46";
        /// What of an ICMP error out of the tunnel must fit the policies: the packet that it quotes, or only its own
        /// addresses. One whose own addresses fit no policy always needs a quote that does. With `"quoted"` an error that
        /// comes in the clear and quotes what the tunnel protects is dropped, too (RFC 4301 6).
        "icmp_errors" icmp_errors: IcmpErrors, default "\"quoted\"", "\"headers\"";
        /// The largest inner packet. The line that carries the tunnel and what is learned of its path (RFC 1191, RFC
        /// 8201) may lower it, but for IPv6 never below 1280: then the sealed packet is divided.
        "mtu" mtu: Ranged<576, 16_128>, derived "what fits the interface that has `local`", "1446";
        /// The largest TCP segment that connections through the tunnel may agree on, both ways. `"auto"` is what fits the
        /// tunnel's MTU as it is at the time. Helps where ICMP is blocked.
        "mss" mss: Mss, optional "connections agree on what they like", "\"auto\"";
        /// After how long without a packet a NAT keepalive is sent (RFC 3948 2.3). Only with encapsulation `udp`.
        "keepalive" keepalive: Interval, optional "no keepalives", "\"20s\"";
        /// Pads inner packets to this size, so that their own does not show (RFC 4303 2.7). Larger ones stay as they are.
        "tfc" tfc: Ranged<64, 16_128>, optional "packets are not padded", "1400";
        /// How many dummy packets are sent, so that traffic does not show (RFC 4303 2.6).
        "dummy" dummy: PacketsPerSecond, optional "no dummy packets", "\"10/s\"";
        /// How long a way out that works again stays out of use, so that traffic does not come and go with every fault.
        "hold_down" hold_down: Interval, default "\"10s\"", "\"60s\"";
        /// How traffic comes back when the hold-down is over.
        "failback" failback: Failback, default "\"auto\"", "\"manual\"";
    }
    children {
        /// Asks the other end through the tunnel, by ICMP echo, whether it is there.
        "probe" probe: maybe TunnelProbe;
        /// BFD with the other end through the tunnel.
        "bfd" bfd: maybe TunnelBfd;
        /// The security association that seals. One is current.
        "out" outbound: one SecurityAssociation;
        /// The security associations that open. Several live side by side while keys change.
        "in" inbound: some SecurityAssociation;
        /// What it carries at most, by inner packets: `in` is what comes out of it into the gateway, `out` what goes
        /// into it.
        "limit" limit: maybe Limit;
    }
    computed {
        /// Its name.
        name: At<Name>;
    }
}

section! {
    /// Probes inside a tunnel, see docs/health.md. `{}` is enough where both ends are Causeway's and no NAT is between them.
    TunnelProbe, TunnelProbeDraft, "[tunnel.NAME.probe]" {
        /// Where probes come from: an address that nothing else has.
        "source" source: IpAddr, derived "one of 169.254.128.0/17, by the tunnel's ends", "\"169.254.128.4\"";
        /// Whom they go to: the other end's `source`, or any host behind the tunnel that answers pings.
        "target" target: IpAddr, derived "the other end's `source`", "\"169.254.128.5\"";
        /// Between two probes: 100 ms to 5 s.
        "interval" interval: Interval, default "\"5s\"", "\"1s\"";
        /// So many lost in a row: the tunnel is down.
        "count" count: Ranged<3, 8>, default "3", "5";
        /// How long an answer may take: 10 ms to 5 s.
        "timeout" timeout: Interval, default "\"150ms\"", "\"500ms\"";
        /// So many answered in a row: it works again.
        "recover" recover: Ranged<1, 8>, default "3", "5";
    }
    children {}
    computed {}
}

section! {
    /// BFD inside a tunnel, which is one hop to it (RFC 5881): port 3784, TTL 255, no authentication.
    TunnelBfd, TunnelBfdDraft, "[tunnel.NAME.bfd]" {
        /// Our end: an address that nothing else has.
        "source" source: IpAddr, derived "one of 169.254.128.0/17, by the tunnel's ends", "\"169.254.128.4\"";
        /// The other end.
        "target" target: IpAddr, derived "the other end's `source`", "\"169.254.128.5\"";
        /// The least interval at which packets are sent: 50 ms to 3 s.
        "min_tx" min_tx: Interval, default "\"1s\"", "\"300ms\"";
        /// The least interval at which packets are taken: 50 ms to 3 s.
        "min_rx" min_rx: Interval, default "\"1s\"", "\"300ms\"";
        /// So many intervals without a packet: the other end calls the session down.
        "multiplier" multiplier: Ranged<3, 8>, default "3", "5";
    }
    children {}
    computed {}
}

section! {
    /// Probes on a line, see docs/health.md.
    InterfaceProbe, InterfaceProbeDraft, "[interface.NAME.probe]" {
        /// Whom they go to: a host on the line.
        "target" target: IpAddr, required, "\"192.0.2.1\"";
        /// Where probes come from: an address of the interface.
        "source" source: IpAddr, derived "the address whose prefix holds `target`", "\"192.0.2.2\"";
        /// Between two probes: 100 ms to 5 s.
        "interval" interval: Interval, default "\"2s\"", "\"1s\"";
        /// So many lost in a row: the line is down.
        "count" count: Ranged<3, 8>, default "5", "3";
        /// How long an answer may take: 10 ms to 5 s.
        "timeout" timeout: Interval, default "\"150ms\"", "\"500ms\"";
        /// So many answered in a row: it works again.
        "recover" recover: Ranged<1, 8>, default "3", "5";
    }
    children {}
    computed {}
}

section! {
    /// BFD on a line, over a single hop (RFC 5881). There is no authentication.
    InterfaceBfd, InterfaceBfdDraft, "[interface.NAME.bfd]" {
        /// The other end: a router on the line.
        "target" target: IpAddr, required, "\"192.0.2.1\"";
        /// Our end: an address of the interface.
        "source" source: IpAddr, derived "the address whose prefix holds `target`", "\"192.0.2.2\"";
        /// The least interval at which packets are sent: 50 ms to 3 s.
        "min_tx" min_tx: Interval, default "\"1s\"", "\"300ms\"";
        /// The least interval at which packets are taken: 50 ms to 3 s.
        "min_rx" min_rx: Interval, default "\"1s\"", "\"300ms\"";
        /// So many intervals without a packet: the other end calls the session down.
        "multiplier" multiplier: Ranged<3, 8>, default "3", "5";
    }
    children {}
    computed {}
}

section! {
    /// One direction of a tunnel: an identifier and a key that nothing else uses.
    SecurityAssociation, SecurityAssociationDraft, "{ spi, key }" {
        /// What names it in the packet.
        "spi" spi: Spi, required, "0x1001";
        /// Where the key is: the AES key and its salt of 4 bytes as hexadecimal digits. A file or variable is
        /// better than `hex`, which needs the configuration file itself to be secret.
        "key" key: Key, required, "{ env = \"DC_KEY_OUT\" }";
    }
    children {}
    computed {}
}

section! {
    /// A limit: token buckets, one for each way. Bits are those of IP packets, without what is below; packets that the
    /// gateway itself makes, and those for it other than ESP, are not counted. See `docs/limits.md`.
    Limit, LimitDraft, "{ in, out, burst }" {
        /// The greatest rate in.
        "in" inwards: LimitRate, optional "no limit", "\"100Mbps\"";
        /// The greatest rate out.
        "out" outwards: LimitRate, optional "no limit", "\"100Mbps\"";
        /// The bytes that may pass at once after a pause, each way.
        "burst" burst: Burst, optional "8 ms of the rate, at least 4 KiB", "\"1MB\"";
    }
    children {}
    computed {}
}

section! {
    /// Limits of each single address of a VPC. Addresses are those that the VPC itself uses: of what it sends the source
    /// before NAT, of what it gets the destination after NAT. Where the gateway has `prefixes`, those in them count. Each
    /// gets its buckets and counters with its first packet.
    AddressLimit, AddressLimitDraft, "[gateway.NAME.address_limit]" {
        /// The greatest rate to one address.
        "in" inwards: LimitRate, optional "no limit, but counted", "\"10Mbps\"";
        /// The greatest rate from one address.
        "out" outwards: LimitRate, optional "no limit, but counted", "\"10Mbps\"";
        /// The bytes that may pass at once after a pause, each way.
        "burst" burst: Burst, optional "8 ms of the rate, at least 4 KiB", "\"64kB\"";
        /// How many addresses are known at a time. What comes when all places are taken shares one bucket of the rates
        /// above. An address takes 400 to 800 bytes for each worker, and 550 to 1100; of more than 131,072 half. A reload
        /// with another number forgets all.
        "addresses" addresses: Ranged<16, 1_048_576>, default "4096", "65536";
        /// After how long without a packet an address is forgotten, with what it was counted.
        "idle" idle: Interval, default "\"300s\"", "\"1h\"";
    }
    children {
        /// Addresses with limits of their own.
        "own" own: many OwnLimit;
    }
    computed {}
}

section! {
    /// Other limits for some addresses, each of them on its own. Where several fit, the longest prefix decides.
    OwnLimit, OwnLimitDraft, "[[gateway.NAME.address_limit.own]]" {
        /// Addresses and prefixes.
        "address" address: Vec<At<HostOrPrefix>>, required, "[\"10.2.0.5\", \"10.2.8.0/24\"]";
        /// The greatest rate to each of them; `"none"` for no limit.
        "in" inwards: LimitRate, optional "that of all addresses", "\"50Mbps\"";
        /// The greatest rate from each of them; `"none"` for no limit.
        "out" outwards: LimitRate, optional "that of all addresses", "\"50Mbps\"";
        /// The bytes that may pass at once after a pause, each way.
        "burst" burst: Burst, optional "8 ms of the rate, at least 4 KiB", "\"64kB\"";
    }
    children {}
    computed {}
}

section! {
    /// A policy of the SPD. The first that matches decides; with none, the route table does.
    Policy, PolicyDraft, "[[gateway.NAME.policy]]" {
        /// What statistics call it.
        "name" name: Name, derived "`policy-` and its number in the file", "\"to-dc\"";
        /// Lower goes first; equal ones in the order of the file.
        "priority" priority: Ranged<0, 65_535>, default "1000", "10";
        /// What to do with a packet that matches.
        "action" action: Action, required, "\"protect\"";
        /// Through which tunnel, for `protect`.
        "tunnel" tunnel: TunnelId, optional "for `bypass` and `discard`", "\"dc\"";
        /// Tunnels that take over while that one is down, the first of them that is up; at most 3. Packets may come
        /// out of any of them at any time.
        "standby" standby: Vec<At<TunnelId>>, optional "no other", "[\"dc-2\"]";
        /// Where the packet comes from, after NAT.
        "source" source: Vec<At<Prefix>>, optional "anywhere", "[\"10.2.0.0/16\"]";
        /// Where it goes, after NAT.
        "destination" destination: Vec<At<Prefix>>, optional "anywhere", "[\"10.1.0.0/16\"]";
        /// The protocol above IP.
        "protocol" protocol: Protocol, optional "every protocol", "\"tcp\"";
        /// The source ports; only with a protocol that has ports.
        "source_port" source_port: PortRanges, optional "every port", "\"1024-65535\"";
        /// The destination ports; only with a protocol that has ports.
        "destination_port" destination_port: PortRanges, optional "every port", "443";
        /// The ICMP type, or type and code; only with protocol `icmp` or `icmpv6`.
        "icmp" icmp: IcmpMatch, optional "every type", "\"8/0\"";
    }
    children {}
    computed {}
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NextHop {
    /// To a router on a connected prefix.
    Via {
        /// The router.
        address: IpAddr,
        /// The interface towards it.
        interface: InterfaceId,
    },
    /// To the destination itself, which is on the line.
    Connected(InterfaceId),
    /// Through a tunnel.
    Tunnel(TunnelId),
    /// To another gateway's route table.
    Gateway(GatewayId),
    /// Nowhere.
    Blackhole,
}

section! {
    /// A route: the longest prefix that holds the destination decides. It leads to exactly one of `via`,
    /// `interface` alone, `tunnel`, `gateway` and `blackhole`.
    Route, RouteDraft, "[[gateway.NAME.route]]" {
        /// The destinations.
        "to" to: Prefix, required, "\"10.1.0.0/16\"";
        /// The address of a router on a connected prefix.
        "via" via: IpAddr, optional "no router", "\"192.0.2.1\"";
        /// The interface: with `via` the one the router is on, alone the one the destinations are on.
        "interface" interface: InterfaceId, optional "with `via`: the one whose prefix holds it", "\"wan\"";
        /// A tunnel of this gateway.
        "tunnel" tunnel: TunnelId, optional "no tunnel", "\"dc\"";
        /// Another gateway, whose route table goes on.
        "gateway" gateway: GatewayId, optional "no other gateway", "\"hub\"";
        /// `true` drops the packets.
        "blackhole" blackhole: bool, default "false", "true";
        /// Of several routes to one prefix whose next hops are of the same kind: the lower goes first, a higher one
        /// is used while all those are down. Equal ones share the flows.
        "priority" priority: Ranged<0, 65_535>, default "100", "200";
        /// The share of flows, beside routes to the same prefix with the same priority.
        "weight" weight: Ranged<1, 100>, default "1", "3";
    }
    children {}
    computed {
        /// Where it leads.
        next_hop: NextHop;
    }
}

section! {
    /// A mapping of addresses. Policies and routes see translated addresses. A mapping of addresses goes before one of
    /// ports; among those with conditions, and among pools, the first in the file that fits.
    Nat, NatDraft, "[[gateway.NAME.nat]]" {
        /// What statistics and lists call it.
        "name" name: Name, derived "`nat-` and its number in the file", "\"to-dc\"";
        /// What it does.
        "kind" kind: NatKind, required, "\"local\"";
        /// The address or prefix that the host really has. For `pool`: the hosts it is for.
        "original" original: HostOrPrefix, optional "for `pool`: every host of the VPC", "\"10.2.0.5\"";
        /// For `port`: the port that the host's service really has.
        "original_port" original_port: Ranged<1, 65_535>, optional "`translated_port`", "8443";
        /// The address or prefix it appears under, of the same length; for `port` one address. For `pool`: addresses,
        /// prefixes or ranges, one or a list of them, at most 65536 addresses in a gateway.
        "translated" translated: AddressRanges, required, "\"203.0.113.5\"";
        /// For `port`: the port that peers use.
        "translated_port" translated_port: Ranged<1, 65_535>, optional "needed by `port`, for no other", "443";
        /// For `pool`: the ports it may use, from 1024 on.
        "ports" ports: PortRanges, optional "`1024-65535`", "\"32768-65535\"";
        /// Only for this protocol. For `port`: which of `tcp` and `udp` it maps.
        "protocol" protocol: Protocol, optional "every protocol; needed by `port`", "\"tcp\"";
        /// Only for these ports of the VPC's host. Not for `peer` and `port`.
        "source_port" source_port: PortRanges, optional "every port", "\"1024-65535\"";
        /// Only for these ports of the peer. Not for `peer`.
        "destination_port" destination_port: PortRanges, optional "every port", "443";
        /// Only for these peers, by their real addresses. Not for `peer`.
        "destination" destination: Vec<At<Prefix>>, optional "every peer", "[\"10.1.0.0/16\"]";
    }
    children {}
    computed {}
}

impl Nat {
    /// The original, where there is one.
    pub fn original(&self) -> Option<Prefix> {
        self.original.as_ref().map(|original| original.value.0)
    }

    /// The one prefix it translates to, for kinds other than `pool`.
    pub fn translated(&self) -> Option<Prefix> {
        self.translated.single()
    }

    /// All that it translates to, as prefixes.
    pub fn translated_prefixes(&self) -> Vec<Prefix> {
        let ranges = || self.translated.ranges.iter().flat_map(|range| range.prefixes()).collect();
        self.translated().map_or_else(ranges, |prefix| vec![prefix])
    }

    /// Whether it holds only under conditions.
    pub fn is_conditional(&self) -> bool {
        let ports = self.source_port.is_some() || self.destination_port.is_some();
        ports || self.protocol.is_some() || self.destination.is_some()
    }

    /// Whether its traffic has sessions.
    pub fn has_sessions(&self) -> bool {
        matches!(*self.kind, NatKind::Port | NatKind::Pool)
    }
}

impl Config {
    /// The port of an identifier of this configuration.
    pub fn port(&self, id: PortId) -> &Port {
        &self.ports[id.0]
    }

    /// The gateway of an identifier of this configuration.
    pub fn gateway(&self, id: GatewayId) -> &Gateway {
        &self.gateways[id.0]
    }

    /// The interface of an identifier of this configuration.
    pub fn interface(&self, id: InterfaceId) -> &Interface {
        &self.interfaces[id.0]
    }

    /// The tunnel of an identifier of this configuration.
    pub fn tunnel(&self, id: TunnelId) -> &Tunnel {
        &self.tunnels[id.0]
    }

    /// The interfaces of a gateway.
    pub fn interfaces_of(&self, gateway: GatewayId) -> impl Iterator<Item = (InterfaceId, &Interface)> {
        let all = self.interfaces.iter().enumerate().map(|(i, interface)| (InterfaceId(i), interface));
        all.filter(move |(_, interface)| interface.gateway.value == gateway)
    }
}
