//! Every kind of error: its code, its line, and what would be right. And all of a file at once.

use std::path::Path;

use causeway::config::{Diagnostics, Severity, parse};

const GOOD: &str = r#"[system]
name = "box"
cores = [1, 2]
buffers = 65536
[port.line]
driver = "xdp"
device = "eth1"
[port.other]
driver = "memory"
[gateway.vpc]
prefixes = ["10.2.0.0/16"]
[gateway.hub]
[interface.wan]
port = "line"
vlan = 100
gateway = "vpc"
side = "peer"
addresses = ["192.0.2.2/30"]
[interface.vpc]
port = "other"
gateway = "vpc"
side = "local"
addresses = ["10.2.0.1/24", "2001:db8::1/64"]
[interface.hub]
port = "other"
vlan = 7
gateway = "hub"
side = "local"
addresses = ["10.9.0.1/24"]
[tunnel.dc]
gateway = "vpc"
local = "192.0.2.2"
remote = "192.0.2.1"
out = { spi = 0x1001, key = { env = "A" } }
in = [{ spi = 0x2001, key = { env = "B" } }]
[[gateway.vpc.policy]]
name = "to-dc"
action = "protect"
tunnel = "dc"
source = ["10.2.0.0/16"]
destination = ["10.1.0.0/16"]
[[gateway.vpc.route]]
to = "10.8.0.0/16"
via = "192.0.2.1"
[[gateway.vpc.route]]
to = "10.9.0.0/16"
gateway = "hub"
[[gateway.vpc.nat]]
kind = "local"
original = "10.2.0.5"
translated = "203.0.113.5"
"#;

const KEY_A: &str = "00112233445566778899aabbccddeeff01020304";

fn environment(name: &str) -> Option<String> {
    match name {
        "A" => Some(KEY_A.into()),
        "B" => Some("10112233445566778899aabbccddeeff01020304".into()),
        "C" => Some("20112233445566778899aabbccddeeff01020304".into()),
        "D" => Some("30112233445566778899aabbccddeeff01020304".into()),
        "SALTED" => Some("00112233445566778899aabbccddeeff0a0b0c0d".into()),
        "SHORT" => Some("0011".into()),
        _ => None,
    }
}

fn problems(text: &str) -> Diagnostics {
    match parse(Path::new("box.toml"), text, &environment) {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors,
    }
}

/// One change of the good file: what is replaced, by what, and the one problem that must come of it: its code, a
/// part of its line, a part of its help.
#[rustfmt::skip]
const CASES: &[(&str, &str, &str, &str, &str)] = &[
    // Keys, types and values.
    ("buffers = 65536", "bufers = 65536", "unknown-key", "bufers", "did you mean `buffers`"),
    ("[gateway.hub]", "[gatway.hub]", "unknown-key", "[gatway.hub]", "did you mean `gateway`"),
    ("driver = \"xdp\"\n", "", "missing-key", "[port.line]", "add `driver = \"xdp\"`"),
    ("device = \"eth1\"\n", "", "missing-key", "[port.line]", "add `device ="),
    ("side = \"peer\"", "side = \"perr\"", "bad-value", "perr", "did you mean \"peer\""),
    ("vlan = 100", "vlan = \"100\"", "wrong-type", "vlan = \"100\"", "write it as 100"),
    ("vlan = 100", "vlan = 4095", "out-of-range", "4095", "1 to 4094"),
    ("vlan = 100", "vlan = { outer = 1 }", "missing-key", "outer = 1", "inner"),
    ("vlan = 100", "vlan = { outer = 1, iner = 2, inner = 3 }", "unknown-key", "iner", "`inner`"),
    ("buffers = 65536", "buffers = 65535", "bad-value", "65535", "32768 or 65536"),
    ("buffers = 65536", "buffers = 99999999999999999999999999999999999999999999", "out-of-range", "9999", "power of two"),
    ("buffers = 65536", "buffers = 65536\nbuffer_size = 1024", "out-of-range", "1024", "2048"),
    ("buffers = 65536", "buffers = 65536\nidle = { sleep_after = \"50\" }", "bad-value", "sleep_after", "unit"),
    ("cores = [1, 2]", "cores = [1, 1]", "duplicate-core", "cores", "once"),
    ("cores = [1, 2]", "cores = []", "bad-value", "cores", "at least one"),
    ("prefixes = [\"10.2.0.0/16\"]", "prefixes = [\"10.2.3.4/16\"]", "host-bits-set", "10.2.3.4", "\"10.2.0.0/16\""),
    ("[port.line]", "[port.LINE]", "bad-name", "LINE", "a-z"),
    ("buffers = 65536", "buffers = 65536\nstate = \"\"", "bad-value", "state", "path"),
    // Ports and interfaces.
    ("device = \"eth1\"", "device = \"eth1\"\nmac = \"03:00:00:00:00:01\"", "bad-value", "mac", "six pairs"),
    ("device = \"eth1\"", "device = \"eth1\"\nmac = \"02:00:00:00:01\"", "bad-value", "mac", "six pairs"),
    ("device = \"eth1\"", "device = \"a-name-too-long-by-far\"", "bad-value", "too-long", "15 characters"),
    ("device = \"eth1\"", "device = \"eth1\"\nbusy_poll = \"20US\"", "bad-value", "busy_poll", "20us"),
    ("device = \"eth1\"", "device = \"eth1\"\nring = 0", "out-of-range", "ring", "64 to 32768"),
    ("port = \"line\"", "port = \"lnie\"", "undefined-reference", "lnie", "did you mean \"line\"? there are: line, other"),
    ("driver = \"memory\"", "driver = \"memory\"\ndevice = \"eth9\"", "option-not-for-driver", "eth9", "take `device` out"),
    ("driver = \"memory\"", "driver = \"memory\"\nzero_copy = \"never\"", "option-not-for-driver", "zero_copy", "driver = \"xdp\""),
    ("driver = \"memory\"", "driver = \"tap\"\ndevice = \"eth1\"", "duplicate-device", "eth1", "one port's"),
    ("side = \"peer\"", "side = \"peer\"\nhost_tap = \"eth1\"", "duplicate-device", "host_tap", "one port's"),
    ("vlan = 7", "", "duplicate-vlan", "[interface.hub]", "its own VLAN"),
    ("device = \"eth1\"", "device = \"eth1\"\nmtu = 1775", "mtu-exceeds-buffer", "1775", "at most 1774"),
    ("device = \"eth1\"", "device = \"eth1\"\nmtu = 1775", "mtu-exceeds-buffer", "1775", "buffer_size = 4096"),
    ("device = \"eth1\"", "device = \"eth1\"\nmtu = 3823", "mtu-exceeds-buffer", "3823", "buffer_size = 8192"),
    ("device = \"eth1\"", "device = \"eth1\"\nmtu = 9001", "mtu-exceeds-buffer", "9001", "buffer_size = 16384"),
    ("device = \"eth1\"", "device = \"eth1\"\nmtu = 16120", "mtu-exceeds-buffer", "16120", "at most 1774"),
    ("device = \"eth1\"", "device = \"eth1\"\nmtu = 16129", "out-of-range", "16129", "16128"),
    ("buffers = 65536", "buffers = 65536\nbuffer_size = 12288", "out-of-range", "12288", "16384"),
    ("vlan = 7", "vlan = 7\nmtu = 1600", "mtu-exceeds-port", "1600", "at most 1500"),
    ("[port.other]", "[port.idle]\ndriver = \"memory\"\n[port.other]", "unused-port", "[port.idle]", "[interface.NAME]"),
    ("buffers = 65536", "buffers = 4096", "few-buffers", "4096", "16384"),
    // Addresses.
    ("\"192.0.2.2/30\"", "\"192.0.2.3/30\"", "bad-address", "192.0.2.3", "192.0.2.0/30"),
    ("\"192.0.2.2/30\"", "\"192.0.2.2/30\", \"224.0.0.1/24\"", "bad-address", "224.0.0.1", "unicast"),
    ("\"192.0.2.2/30\"", "\"192.0.2.2/30\", \"10.2.0.1/24\"", "duplicate-address", "[\"10.2.0.1/24", "its own address"),
    ("\"192.0.2.2/30\"", "\"192.0.2.2/30\", \"10.2.0.9/24\"", "overlapping-addresses", "[\"10.2.0.1/24", "two gateways"),
    ("\"2001:db8::1/64\"", "\"2001:db8::1/64\", \"2001:db8::1/64\"", "duplicate-address", "2001", "its own address"),
    ("\"192.0.2.2/30\"", "\"192.0.2.2/30\", \"10.2.0.77/25\"", "overlapping-addresses", "10.2.0.77", "overlap"),
    // Health.
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { interval = \"50ms\" }", "out-of-range", "interval", "100ms to 5s"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { timeout = \"6s\" }", "out-of-range", "timeout", "10ms to 5s"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { count = 2 }", "out-of-range", "count", "3 to 8"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { intervall = \"1s\" }", "unknown-key", "intervall", "`interval`"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = 5", "wrong-type", "probe = 5", "{ … }"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nbfd = { min_tx = \"10ms\" }", "out-of-range", "min_tx", "50ms to 3s"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nbfd = { min_rx = \"4s\" }", "out-of-range", "min_rx", "50ms to 3s"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nbfd = { multiplier = 9 }", "out-of-range", "multiplier", "3 to 8"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nhold_down = \"48h\"", "out-of-range", "hold_down", "86400s"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nfailback = \"never\"", "bad-value", "failback", "auto, manual"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"192.0.2.2\" }", "probe-address-in-use", "source", "169.254.128.0/17"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"192.0.2.1\" }", "probe-address-in-use", "source", "169.254.128.0/17"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"10.2.200.1\" }", "probe-address-in-use", "source", "169.254.128.0/17"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"203.0.113.5\" }", "probe-address-in-use", "source", "169.254.128.0/17"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { target = \"203.0.113.5\" }", "probe-address-in-use", "target", "169.254.128.0/17"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"169.254.130.1\", target = \"169.254.130.1\" }", "probe-to-itself", "target", "other end"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"224.0.0.9\" }", "bad-address", "224.0.0.9", "unicast"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nbfd = { target = \"2001:db8:5::1\" }", "mixed-families", "target", "IPv4 or IPv6"),
    ("key = { env = \"B\" } }]", "key = { env = \"B\" } }]\nprobe = { source = \"169.254.130.1\" }\nbfd = { target = \"169.254.130.1\" }", "probe-address-in-use", "bfd", "other end"),
    ("addresses = [\"192.0.2.2/30\"]", "addresses = [\"192.0.2.2/30\"]\nprobe = { target = \"192.0.2.9\" }", "probe-not-on-line", "192.0.2.9", "192.0.2.0/30"),
    ("addresses = [\"192.0.2.2/30\"]", "addresses = [\"192.0.2.2/30\"]\nprobe = { target = \"10.2.0.1\" }", "probe-to-itself", "10.2.0.1", "other end"),
    ("addresses = [\"192.0.2.2/30\"]", "addresses = [\"192.0.2.2/30\"]\nprobe = { target = \"192.0.2.1\", source = \"10.2.0.1\" }", "probe-source", "source", "leave `source` out"),
    ("addresses = [\"192.0.2.2/30\"]", "addresses = [\"192.0.2.2/30\"]\nbfd = { min_tx = \"50ms\" }", "missing-key", "bfd", "target"),
    ("addresses = [\"192.0.2.2/30\"]", "addresses = [\"192.0.2.2/30\"]\nbfd = { target = \"192.0.2.1\", min_tx = \"20ms\" }", "out-of-range", "min_tx", "50ms to 3s"),
    ("[[gateway.vpc.route]]\nto = \"10.8", "[tunnel.dc2]\ngateway = \"vpc\"\nlocal = \"192.0.2.2\"\nremote = \"192.0.2.1\"\nout = { spi = 0x1002, key = { env = \"C\" } }\nin = [{ spi = 0x2002, key = { env = \"D\" } }]\nprobe = {}\n[tunnel.dc.probe]\n[[gateway.vpc.route]]\nto = \"10.3.0.0/16\"\ntunnel = \"dc2\"\n[[gateway.vpc.route]]\nto = \"10.8", "probe-address-in-use", "[tunnel.dc2]", "of its own"),
    // Tunnels.
    ("local = \"192.0.2.2\"", "local = \"192.0.2.9\"", "local-not-an-address", "192.0.2.9", "192.0.2.2"),
    ("remote = \"192.0.2.1\"", "remote = \"192.0.2.2\"", "tunnel-to-itself", "remote", "other machine"),
    ("remote = \"192.0.2.1\"", "remote = \"2001:db8::2\"", "mixed-families", "remote", "both"),
    ("remote = \"192.0.2.1\"", "remote = \"198.51.100.1\"", "remote-unreachable", "198.51.100.1", "default route"),
    ("remote = \"192.0.2.1\"", "remote = \"239.1.1.1\"", "bad-address", "239", "unicast"),
    ("remote = \"192.0.2.1\"", "remote = \"192.0.2.1/30\"", "bad-value", "remote", "without a prefix length"),
    ("to = \"10.9.0.0/16\"\ngateway = \"hub\"", "to = \"10.9.0.0/16\"\ntunnel = \"dc\"\n[[gateway.vpc.route]]\nto = \"192.0.2.1/32\"\ntunnel = \"dc\"", "tunnel-through-itself", "remote", "192.0.2.1/32"),
    ("spi = 0x2001", "spi = 255", "out-of-range", "spi = 255", "reserved"),
    ("in = [{", "in = [{ spi = 0x2001, key = { env = \"C\" } }, {", "duplicate-spi", "in = ", "its own SPI"),
    ("in = [{", "in = [{ spi = 0x2002, key = { env = \"SALTED2\" } }, {", "missing-secret", "SALTED2", "set it"),
    ("key = { env = \"B\" }", "key = { env = \"A\" }", "duplicate-key", "in = ", "/dev/urandom"),
    ("key = { env = \"B\" }", "key = { env = \"SALTED\" }", "duplicate-key", "in = ", "/dev/urandom"),
    ("key = { env = \"B\" }", "key = { env = \"SHORT\" }", "bad-key", "SHORT", "40, 56 or 72"),
    ("key = { env = \"B\" }", "key = { env = \"B\", hex = \"00\" }", "bad-key", "in = ", "one of"),
    ("key = { env = \"B\" }", "key = { file = \"no/such.key\" }", "missing-secret", "such.key", "relative to the configuration file"),
    ("key = { env = \"B\" }", "key = { hex = \"0011zz\" }", "bad-key", "hex", "40, 56 or 72"),
    ("key = { env = \"B\" }", "key = { hex = 5 }", "wrong-type", "hex", "\"…\""),
    ("in = [{ spi = 0x2001, key = { env = \"B\" } }]", "in = []", "missing-key", "in = []", "at least one"),
    ("in = [{", "replay_window = 0\nin = [{", "esn-without-window", "replay_window", "1024"),
    ("in = [{", "replay_window = 0\nesn = false\nin = [{", "no-replay-check", "replay_window", "1024"),
    ("in = [{", "replay_window = 63\nin = [{", "out-of-range", "replay_window", "64 to 65536"),
    ("in = [{", "mtu = 1447\nin = [{", "mtu-exceeds-line", "1447", "at most 1446"),
    ("in = [{", "dscp = 64\nin = [{", "out-of-range", "dscp", "0 to 63"),
    ("in = [{", "mss = 100\nin = [{", "out-of-range", "mss", "536 to 3800"),
    ("in = [{", "mss = \"most\"\nin = [{", "bad-value", "mss", "auto"),
    ("in = [{", "keepalive = \"20s\"\nin = [{", "keepalive-without-udp", "20s", "encapsulation = \"udp\""),
    ("in = [{", "encapsulation = \"udp\"\nkeepalive = \"10ms\"\nin = [{", "out-of-range", "10ms", "1s or more"),
    ("in = [{", "tfc = 1447\nin = [{", "tfc-exceeds-mtu", "1447", "at most 1446"),
    ("in = [{", "dummy = \"10\"\nin = [{", "bad-value", "dummy", "10/s"),
    ("[[gateway.vpc.route]]\nto = \"10.8.0.0/16\"", "[[gateway.vpc.policy]]\naction = \"discard\"\nsource = [\"10.2.3.0/24\"]\ndestination = [\"10.1.7.0/24\"]\nprotocol = \"tcp\"\n[[gateway.vpc.route]]\nto = \"10.8.0.0/16\"", "shadowed-policy", "[[gateway.vpc.policy]]", "to-dc"),
    ("name = \"to-dc\"", "name = \"all\"\naction = \"bypass\"\npriority = 1\n[[gateway.vpc.policy]]\nname = \"to-dc\"", "shadowed-policy", "[[gateway.vpc.policy]]", "all"),
    ("in = [{", "lifetime_packets = 0\nin = [{", "out-of-range", "lifetime_packets", "above 0"),
    ("in = [{", "lifetime_bytes = \"9 miles\"\nin = [{", "bad-value", "lifetime_bytes", "GB"),
    ("action = \"protect\"\ntunnel = \"dc\"", "action = \"bypass\"", "unused-tunnel", "[tunnel.dc]", "policy"),
    // Policies.
    ("tunnel = \"dc\"\nsource", "source", "protect-without-tunnel", "protect", "tunnel ="),
    ("action = \"protect\"", "action = \"discard\"", "tunnel-without-protect", "tunnel = \"dc\"", "protect"),
    ("tunnel = \"dc\"\nsource", "tunnel = \"dc\"\nstandby = [\"dc\"]\nsource", "duplicate-standby", "standby", "once"),
    ("destination = [\"10.1.0.0/16\"]", "destination = [\"2001:db8:1::/48\"]", "mixed-families", "2001:db8:1", "two policies"),
    ("destination = [\"10.1.0.0/16\"]", "destination = []", "bad-value", "destination", "leave the key out"),
    ("name = \"to-dc\"", "name = \"to-dc\"\nprotocol = \"icmpv6\"", "mixed-families", "icmpv6", "\"icmp\""),
    ("name = \"to-dc\"", "name = \"to-dc\"\nprotocol = \"tpc\"", "bad-value", "tpc", "\"tcp\""),
    ("name = \"to-dc\"", "name = \"to-dc\"\ndestination_port = 443", "port-without-protocol", "443", "tcp"),
    ("name = \"to-dc\"", "name = \"to-dc\"\nprotocol = \"gre\"\nsource_port = 1", "port-without-protocol", "source_port", "tcp"),
    ("name = \"to-dc\"", "name = \"to-dc\"\nprotocol = 6\nsource_port = \"9-1\"", "bad-value", "9-1", "1-9"),
    ("name = \"to-dc\"", "name = \"to-dc\"\nprotocol = 6\nicmp = 8", "icmp-without-protocol", "icmp", "protocol"),
    ("[[gateway.vpc.policy]]", "[[gateway.vpc.policy]]\naction = \"bypass\"\nname = \"to-dc\"\nsource = [\"10.250.0.0/16\"]\n[[gateway.vpc.policy]]", "duplicate-policy", "name = \"to-dc\"", "own name"),
    ("[[gateway.vpc.policy]]", "[[gateway.hub.policy]]\naction = \"protect\"\ntunnel = \"dc\"\n[[gateway.vpc.policy]]", "other-gateway", "tunnel = \"dc\"", "own gateway"),
    // Routes.
    ("via = \"192.0.2.1\"", "via = \"192.0.9.1\"", "via-unreachable", "192.0.9.1", "192.0.2.0/30"),
    ("via = \"192.0.2.1\"", "via = \"192.0.2.1\"\ninterface = \"vpc\"", "via-unreachable", "192.0.2.1", "10.2.0.0/24"),
    ("via = \"192.0.2.1\"", "via = \"192.0.2.2\"", "via-is-own", "via", "other end"),
    ("via = \"192.0.2.1\"", "via = \"2001:db8::2\"", "mixed-families", "via", "same family"),
    ("via = \"192.0.2.1\"", "", "route-target", "[[gateway.vpc.route]]", "exactly one"),
    ("via = \"192.0.2.1\"", "via = \"192.0.2.1\"\nblackhole = true", "route-target", "[[gateway.vpc.route]]", "exactly one"),
    ("via = \"192.0.2.1\"", "interface = \"hub\"", "other-gateway", "hub", "its own"),
    ("via = \"192.0.2.1\"", "blackhole = false", "bad-value", "blackhole", "leave it out"),
    ("via = \"192.0.2.1\"", "via = \"192.0.2.1\"\n[[gateway.vpc.route]]\nto = \"10.8.0.0/16\"\nvia = \"192.0.2.1\"\npriority = 200", "duplicate-route", "10.8.0.0/16", "different places"),
    ("via = \"192.0.2.1\"", "via = \"192.0.2.1\"\nweight = 0", "out-of-range", "weight", "1 to 100"),
    ("gateway = \"hub\"\n[[gateway.vpc.nat]]", "gateway = \"vpc\"\n[[gateway.vpc.nat]]", "gateway-loop", "gateway = \"vpc\"", "blackhole"),
    ("[gateway.hub]", "[gateway.none]\n[gateway.hub]", "unused-gateway", "[gateway.none]", "take the gateway out"),
    // Mappings.
    ("original = \"10.2.0.5\"", "original = \"10.3.0.5\"", "nat-original-outside", "10.3.0.5", "10.2.0.0/16"),
    ("translated = \"203.0.113.5\"", "translated = \"10.2.0.6\"", "nat-translated-inside", "10.2.0.6", "VPC does not have"),
    ("translated = \"203.0.113.5\"", "translated = \"203.0.113.0/24\"", "nat-unequal-lengths", "203.0.113.0", "length 32"),
    ("translated = \"203.0.113.5\"", "translated = \"2001:db8::9\"", "mixed-families", "2001", "two IPv4"),
    ("translated = \"203.0.113.5\"", "translated = \"192.0.2.2\"", "nat-interface-address", "192.0.2.2", "no interface"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"local\"\noriginal = \"10.2.0.5\"\ntranslated = \"203.0.113.6\"\n[[gateway.vpc.nat]]", "duplicate-nat", "original = \"10.2.0.5\"", "for itself"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"local\"\noriginal = \"10.2.1.0/24\"\ntranslated = \"203.0.113.0/24\"\n[[gateway.vpc.nat]]", "duplicate-nat", "translated = \"203.0.113.5\"", "for itself"),
    ("kind = \"local\"\noriginal = \"10.2.0.5\"\ntranslated = \"203.0.113.5\"", "kind = \"peer\"\noriginal = \"10.1.0.5\"\ntranslated = \"10.2.0.5\"", "nat-translated-inside", "10.2.0.5", "VPC does not have"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"192.0.2.2\"\n[[gateway.vpc.nat]]", "nat-interface-address", "192.0.2.2", "no interface"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"10.2.9.0/28\"\n[[gateway.vpc.nat]]", "nat-translated-inside", "10.2.9.0", "VPC does not have"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\noriginal = \"10.3.0.0/24\"\ntranslated = \"203.0.113.9\"\n[[gateway.vpc.nat]]", "nat-original-outside", "10.3.0.0", "10.2.0.0/16"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"203.0.113.0-203.0.113.9\"\n[[gateway.vpc.nat]]", "nat-pool-overlap", "translated = \"203.0.113.5\"", "nothing else"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"203.0.113.9-203.0.113.8\"\n[[gateway.vpc.nat]]", "bad-value", "203.0.113.9", "lower address first"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"2001:db8:7::/120\"\n[[gateway.vpc.nat]]", "nat-ipv6", "2001:db8:7", "one to one"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"203.0.0.0/15\"\n[[gateway.vpc.nat]]", "nat-too-many", "203.0.0.0/15", "64512"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"203.0.113.9\"\nports = \"80-90\"\n[[gateway.vpc.nat]]", "bad-value", "80-90", "1024-65535"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"pool\"\ntranslated = \"203.0.113.9\"\ndestination_port = 53\n[[gateway.vpc.nat]]", "port-without-protocol", "53", "tcp"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"port\"\noriginal = \"10.2.0.6\"\ntranslated = \"203.0.113.9\"\ntranslated_port = 80\n[[gateway.vpc.nat]]", "missing-key", "[[gateway.vpc.nat]]", "protocol"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.6\"\ntranslated = \"203.0.113.9\"\n[[gateway.vpc.nat]]", "missing-key", "[[gateway.vpc.nat]]", "translated_port"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"port\"\nprotocol = \"icmp\"\noriginal = \"10.2.0.6\"\ntranslated = \"203.0.113.9\"\ntranslated_port = 80\n[[gateway.vpc.nat]]", "bad-value", "icmp", "udp"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.0/28\"\ntranslated = \"203.0.113.9\"\ntranslated_port = 80\n[[gateway.vpc.nat]]", "nat-key", "10.2.0.0/28", "one address and port"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.6\"\ntranslated = \"203.0.113.9\"\ntranslated_port = 80\n[[gateway.vpc.nat]]\nkind = \"port\"\nprotocol = \"tcp\"\noriginal = \"10.2.0.7\"\ntranslated = \"203.0.113.9\"\ntranslated_port = 80\n[[gateway.vpc.nat]]", "duplicate-nat", "translated_port = 80", "another address or port"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"peer\"\noriginal = \"10.1.0.6\"\ntranslated = \"203.0.113.9\"\nprotocol = \"tcp\"\n[[gateway.vpc.nat]]", "nat-key", "protocol", "local, port, pool"),
    ("[[gateway.vpc.nat]]", "[[gateway.vpc.nat]]\nkind = \"local\"\noriginal = \"10.2.0.6\"\ntranslated = [\"203.0.113.9\", \"203.0.113.11\"]\n[[gateway.vpc.nat]]", "nat-key", "203.0.113.9", "pool"),
    ("buffers = 65536", "buffers = 65536\nnat_sessions = 100", "out-of-range", "nat_sessions", "1024"),
    ("prefixes = [\"10.2.0.0/16\"]", "prefixes = [\"10.2.0.0/16\"]\nnat_udp_timeout = \"100ms\"", "out-of-range", "nat_udp_timeout", "300s"),
    ("prefixes = [\"10.2.0.0/16\"]", "prefixes = [\"10.2.0.0/16\"]\nnat_sessions = 300000", "out-of-range", "nat_sessions", "lower"),
    // Syntax.
    ("buffers = 65536", "buffers 65536", "syntax", "buffers 65536", "TOML"),
    ("buffers = 65536", "name = \"twice\"", "syntax", "twice", "TOML"),
    ("buffers = 65536", "a.b.c.d.e.f.g.h.i.j = 1", "too-deep", "a.b.c", "four parts"),
];

#[test]
fn the_good_file_is_good() {
    assert_eq!(problems(GOOD).problems.len(), 0, "{:#?}", problems(GOOD).problems);
}

#[test]
fn every_error_has_its_code_line_and_help() {
    let mut wrong = Vec::new();
    for (find, replace, code, line, help) in CASES {
        assert!(GOOD.contains(find), "{find}");
        let text = GOOD.replacen(find, replace, 1);
        let found = problems(&text).problems;
        let matching: Vec<_> = found.iter().filter(|p| p.code == *code).collect();
        let [problem] = matching[..] else {
            wrong.push(format!("{find} → {replace}: no single {code}: {found:#?}"));
            continue;
        };
        let shown = text.lines().nth(problem.line() - 1).unwrap_or_default();
        let said = problem.help.as_deref().unwrap_or_default();
        let warning = matches!(*code, "unused-port" | "unused-gateway" | "no-replay-check" | "few-buffers");
        if !shown.contains(line) || !said.contains(help) || (problem.severity == Severity::Warning) != warning
        {
            wrong.push(format!("{find} → {replace}: {shown:?} and {said:?} for {line:?} and {help:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A mistake must not drag others along: those that may come with it are named here.
#[test]
fn one_mistake_is_one_error() {
    let companions = |code: &str| -> &[&str] {
        match code {
            "bad-name" => &["undefined-reference"],
            "unknown-key" => &["undefined-reference", "unknown-key"],
            "host-bits-set" | "overlapping-addresses" => &[],
            "unused-tunnel" | "tunnel-without-protect" => &["unused-tunnel"],
            _ => &[],
        }
    };
    // These files say more than one true thing.
    let several = ["protect-without-tunnel", "tunnel-through-itself", "missing-secret", "gateway-loop"];
    let mut wrong = Vec::new();
    for (find, replace, code, ..) in CASES.iter().filter(|(_, _, code, ..)| !several.contains(code)) {
        let found = problems(&GOOD.replacen(find, replace, 1)).problems;
        let strange = found.iter().filter(|p| p.code != *code && !companions(code).contains(&p.code));
        wrong.extend(strange.map(|p| format!("{find} → {replace} ({code}): {} {}", p.code, p.message)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn everything_is_found_at_once() {
    let text = GOOD
        .replace("driver = \"xdp\"", "driver = \"xdq\"")
        .replace("vlan = 100", "vlan = 5000")
        .replace("10.8.0.0/16", "10.8.1.0/16")
        .replace("gateway = \"hub\"\nside", "gateway = \"hubb\"\nside")
        .replace("key = { env = \"B\" }", "key = { env = \"A\" }")
        .replace("translated = \"203.0.113.5\"", "translated = \"10.2.0.6\"")
        .replace("cores = [1, 2]", "cores = [1, \"2\", -3]");
    let found = problems(&text);
    let mut codes: Vec<&str> = found.problems.iter().map(|p| p.code).collect();
    let lines: Vec<usize> = found.problems.iter().map(|p| p.line()).collect();
    assert!(lines.is_sorted());
    codes.sort_unstable();
    let wanted = [
        "bad-value",
        "duplicate-key",
        "host-bits-set",
        "nat-translated-inside",
        "out-of-range",
        "out-of-range",
        "undefined-reference",
        "wrong-type",
    ];
    assert_eq!(codes, wanted, "{:#?}", found.problems);
    assert_eq!(found.errors(), wanted.len());
}

/// Limits: each mistake with its place, and what would be right.
#[test]
fn limits_that_cannot_be_are_refused() {
    for (section, code, help) in [
        ("[gateway.vpc.limit]\nin = \"0Mbps\"", "out-of-range", "\"none\""),
        ("[gateway.vpc.limit]\nin = \"0bps\"", "out-of-range", "leave it out"),
        ("[interface.wan.limit]\nout = \"401Gbps\"", "out-of-range", "400Gbps"),
        ("[tunnel.dc.limit]\nout = \"100mbps\"", "bad-value", "100Mbps"),
        ("[tunnel.dc.limit]\nburst = \"1MB\"", "empty-limit", "in = "),
        ("[gateway.vpc.limit]\nin = \"5Mbps\"\nburst = \"1500B\"", "out-of-range", "4KiB"),
        ("[gateway.vpc.limit]\nrate = \"5Mbps\"", "unknown-key", "in, out, burst"),
        ("[gateway.vpc.address_limit]\nin = \"0kbps\"", "out-of-range", "\"none\""),
        ("[gateway.vpc.address_limit]\naddresses = 4", "out-of-range", "from 16"),
        (
            "[[gateway.vpc.address_limit.own]]\naddress = [\"10.3.0.1\"]\nin = \"1Mbps\"",
            "limit-outside",
            "prefix",
        ),
        ("[[gateway.vpc.address_limit.own]]\naddress = [\"10.2.0.1\"]", "empty-limit", "in = "),
        (
            "[[gateway.vpc.address_limit.own]]\naddress = [\"10.2.0.1\", \"10.2.0.1/32\"]\nin = \"1Mbps\"",
            "duplicate-limit",
            "keep one",
        ),
    ] {
        let errors = problems(&format!("{GOOD}{section}\n")).to_json();
        let wanted = format!("config::{code}");
        let found = errors.as_array().unwrap().iter().find(|error| error["code"] == wanted.as_str());
        let found = found.unwrap_or_else(|| panic!("{section}: {errors:#}"));
        assert!(found["help"].as_str().unwrap().contains(help), "{section}: {found:#}");
        let line = found["line"].as_u64().unwrap() as usize;
        let first = GOOD.lines().count();
        assert!((first + 1..=first + 3).contains(&line), "{section}: {found:#}");
    }
}

#[test]
fn limits_must_hold_the_longest_packet() {
    let jumbo = GOOD
        .replace("buffers = 65536", "buffers = 65536\nbuffer_size = 16384")
        .replace("device = \"eth1\"", "device = \"eth1\"\nmtu = 9001");
    for (section, fits) in [
        ("[gateway.vpc.limit]\nin = \"8Mbps\"", false),
        ("[gateway.vpc.limit]\nin = \"10Mbps\"", true),
        ("[gateway.vpc.limit]\nin = \"8Mbps\"\nburst = \"9000B\"", false),
        ("[gateway.vpc.limit]\nin = \"8Mbps\"\nburst = \"9001B\"", true),
        ("[gateway.vpc.limit]\nin = \"1Gbps\"\nout = \"1Mbps\"", false),
        ("[gateway.vpc.limit]\nin = \"none\"\nout = \"1Gbps\"", true),
        ("[interface.wan.limit]\nout = \"1Mbps\"", false),
        ("[tunnel.dc.limit]\nout = \"1Mbps\"", false),
        ("[gateway.vpc.address_limit]\nout = \"1Mbps\"", false),
        ("[gateway.vpc.address_limit]\nout = \"1Mbps\"\nburst = \"9KiB\"", true),
        (
            "[gateway.vpc.address_limit]\n\
             [[gateway.vpc.address_limit.own]]\naddress = [\"10.2.0.1\"]\nin = \"1Mbps\"",
            false,
        ),
    ] {
        let found = problems(&format!("{jumbo}{section}\n")).to_json();
        let errors = found.as_array().unwrap();
        assert_eq!(errors.len(), usize::from(!fits), "{section}: {errors:#?}");
        for error in errors {
            assert_eq!(error["code"], "config::burst-below-mtu");
            assert!(error["help"].as_str().unwrap().contains("burst = \"9KiB\""), "{error:#}");
        }
        // With smaller packets every one of these is good.
        let small = problems(&format!("{GOOD}{section}\n")).to_json();
        assert_eq!(small.as_array().unwrap().len(), 0, "{section}: {small:#}");
    }
}

#[test]
fn an_error_is_shown_with_its_line_and_a_marker() {
    let errors = problems(&GOOD.replace("10.2.0.0/16\"]\n[gateway", "10.2.9.9/16\"]\n[gateway"));
    let mut shown = String::new();
    let theme = miette::GraphicalTheme::unicode_nocolor();
    miette::GraphicalReportHandler::new_themed(theme).render_report(&mut shown, &errors).unwrap();
    for part in [
        "config::host-bits-set",
        "box.toml:11:13",
        "prefixes = [\"10.2.9.9/16\"]",
        "help: write \"10.2.0.0/16\"",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let json = errors.to_json();
    assert_eq!(json[0]["file"], "box.toml");
    assert_eq!((json[0]["line"].as_u64(), json[0]["column"].as_u64()), (Some(11), Some(13)));
    assert_eq!(json[0]["code"], "config::host-bits-set");
    assert_eq!(json[0]["severity"], "error");
    assert!(json[0]["help"].as_str().unwrap().contains("10.2.0.0/16"));
}

/// However wrong the line of a key is, the key itself is not shown.
#[test]
fn no_error_shows_a_key() {
    for line in [
        format!("key = {{ hex = \"{KEY_A}0\" }}"),
        format!("key = {{ hex = \"{KEY_A}\", file = \"x\" }}"),
        format!("key = {{ hex = \"{KEY_A} }}"),
        format!("key = {{ hex = {KEY_A} }}"),
        format!("key = {{ hxe = \"{KEY_A}\" }}"),
        format!("key = {{ env = \"{KEY_A}\" }}"),
        format!("key = {{ file = \"{KEY_A}\" }}"),
        format!("key = \"{KEY_A}\""),
        format!("key = {{ {KEY_A} = 1 }}"),
        "key = { hex = \"00112233-44556677-8899aabb-ccddeeff-01020304\" }".to_owned(),
    ] {
        let errors = problems(&GOOD.replace("key = { env = \"B\" }", &line));
        assert!(errors.errors() > 0, "{line}");
        let mut shown = errors.to_json().to_string();
        let theme = miette::GraphicalTheme::unicode_nocolor();
        miette::GraphicalReportHandler::new_themed(theme).render_report(&mut shown, &errors).unwrap();
        shown += &format!("{errors:?}");
        for part in ["8899aabb", "ccddeeff", "0011223344"] {
            assert!(!shown.contains(part), "{line}:\n{shown}");
        }
    }
}
