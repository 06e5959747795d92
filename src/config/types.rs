//! The values of the file that are more than a number or a choice.

use std::fmt;
use std::net::IpAddr;

use serde_json::json;
use toml::de::DeValue;

use super::decode::{Complaint, Context, Shape, Text, Value, integer};
use super::diagnostics::Problem;
use super::quantity::out_of_range;
use super::span::Span;
use super::suggest::shorten;

/// The name of a port, gateway, interface, tunnel or policy: 1 to 32 of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name from any text: what a name cannot hold becomes `-`.
    pub fn from_any(text: &str) -> Self {
        let fit = |c: char| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '-') => c,
            _ => '-',
        };
        let name: String = text.chars().take(32).map(fit).collect();
        Name(if name.is_empty() { "causeway".to_owned() } else { name })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for Name {
    const WORDS: &'static str = "a name";
    const EXAMPLE: &'static str = "line-1";
    const PATTERN: Option<&'static str> = Some("^[a-z0-9-]{1,32}$");

    fn read(text: &str) -> Result<Self, Complaint> {
        let good = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if (1..=32).contains(&text.len()) && text.bytes().all(good) {
            return Ok(Name(text.to_owned()));
        }
        Err(Complaint {
            code: "bad-name",
            message: format!("\"{}\" is not a name", shorten(text)),
            help: "names are 1 to 32 of the letters a-z, digits and `-`".into(),
        })
    }
}

/// The name of a network device of Linux: 1 to 15 bytes (IFNAMSIZ), no slash, no space, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for DeviceName {
    const WORDS: &'static str = "a network device";
    const EXAMPLE: &'static str = "eth1";
    const PATTERN: Option<&'static str> = Some("^[^/:\\s]{1,15}$");

    fn read(text: &str) -> Result<Self, Complaint> {
        let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':');
        if (1..=15).contains(&text.len()) && text.bytes().all(good) && text != "." && text != ".." {
            return Ok(DeviceName(text.to_owned()));
        }
        Err(Complaint::new(
            format!("\"{}\" is not the name of a network device", shorten(text)),
            "device names have 1 to 15 characters without slash, colon or space; `ip link` lists those there are",
        ))
    }
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address that is always the same for the same text (FNV-1a of it).
    pub fn derived_from(text: &str) -> Self {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv).to_be_bytes();
        Mac([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Text for Mac {
    const WORDS: &'static str = "a MAC address";
    const EXAMPLE: &'static str = "02:00:00:00:00:01";
    const PATTERN: Option<&'static str> = Some("^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$");

    fn read(text: &str) -> Result<Self, Complaint> {
        let wrong = |why: &str| {
            let help = "write six pairs of hexadecimal digits, such as \"02:00:00:00:00:01\"";
            Complaint::new(format!("\"{}\" {why}", shorten(text)), help)
        };
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().unwrap_or_default();
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong("is not a MAC address"));
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong("is not a MAC address"))?;
        }
        if parts.next().is_some() {
            return Err(wrong("is not a MAC address"));
        }
        if octets[0] & 1 == 1 {
            return Err(wrong("is a group address, which no port can have"));
        }
        if octets == [0; 6] {
            return Err(wrong("is the zero address, which no port can have"));
        }
        Ok(Mac(octets))
    }
}

impl Text for IpAddr {
    const WORDS: &'static str = "an IP address";
    const EXAMPLE: &'static str = "192.0.2.1";

    fn read(text: &str) -> Result<Self, Complaint> {
        text.parse().map_err(|_| {
            let help = match text.contains('/') {
                true => "write the address alone, without a prefix length",
                false => "write an address such as \"192.0.2.1\" or \"2001:db8::1\"",
            };
            Complaint::new(format!("\"{}\" is not an IP address", shorten(text)), help)
        })
    }
}

/// A file or directory. Relative to the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(pub std::path::PathBuf);

impl Text for Location {
    const WORDS: &'static str = "a path";
    const EXAMPLE: &'static str = "/var/lib/causeway/idc.state";

    fn read(text: &str) -> Result<Self, Complaint> {
        if text.is_empty() || text.contains('\0') {
            return Err(Complaint::new("this is no path", "write the path of a file"));
        }
        Ok(Location(text.into()))
    }
}

/// The tag that tells an interface from the others of its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vlan {
    /// No tag.
    Untagged,
    /// One 802.1Q tag, 1 to 4094.
    Tagged(u16),
    /// An 802.1ad service tag outside and an 802.1Q customer tag inside.
    Stacked {
        /// The service tag.
        outer: u16,
        /// The customer tag.
        inner: u16,
    },
}

impl Vlan {
    /// How many bytes of tags its frames carry.
    pub fn tag_bytes(self) -> u32 {
        match self {
            Vlan::Untagged => 0,
            Vlan::Tagged(_) => 4,
            Vlan::Stacked { .. } => 8,
        }
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vlan::Untagged => f.write_str("untagged"),
            Vlan::Tagged(id) => write!(f, "VLAN {id}"),
            Vlan::Stacked { outer, inner } => write!(f, "VLAN {outer}.{inner}"),
        }
    }
}

/// VLAN 0 is "priority only" and 4095 is reserved (IEEE 802.1Q 9.6).
fn vlan_id(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<u16> {
    let Some(number) = integer(value) else {
        cx.wrong_type(span, &Vlan::shape(), value);
        return None;
    };
    let id = u16::try_from(number).ok().filter(|id| (1..=4094).contains(id));
    if id.is_none() {
        cx.report(out_of_range(number, span).help("VLAN identifiers go from 1 to 4094"));
    }
    id
}

impl Value for Vlan {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        match value {
            DeValue::Integer(_) if integer(value) == Some(0) => Some(Vlan::Untagged),
            DeValue::Integer(_) => vlan_id(value, span, cx).map(Vlan::Tagged),
            DeValue::Table(table) => {
                let keys = ["outer", "inner"];
                let mut good = true;
                for key in table.keys().filter(|k| !keys.contains(&k.get_ref().as_ref())) {
                    super::reader::unknown_key(
                        key.get_ref(),
                        key.span().into(),
                        "a VLAN",
                        keys.into_iter(),
                        cx,
                    );
                    good = false;
                }
                let [outer, inner] = keys.map(|key| match table.get(key) {
                    Some(id) => vlan_id(id.get_ref(), id.span().into(), cx),
                    None => {
                        let problem =
                            Problem::new("missing-key", span, format!("a VLAN in a VLAN has no `{key}`"));
                        cx.report(problem.help("write it as { outer = 200, inner = 100 }"));
                        None
                    }
                });
                let stacked = Vlan::Stacked { outer: outer?, inner: inner? };
                good.then_some(stacked)
            }
            _ => {
                cx.wrong_type(span, &Self::shape(), value);
                None
            }
        }
    }

    fn shape() -> Shape {
        let id = |lowest: u32| json!({ "type": "integer", "minimum": lowest, "maximum": 4094 });
        Shape {
            words: "a VLAN from 1 to 4094, 0 for untagged, or one in another".into(),
            example: "100 or { outer = 200, inner = 100 }".into(),
            schema: json!({ "oneOf": [id(0), {
                "type": "object",
                "properties": { "outer": id(1), "inner": id(1) },
                "required": ["outer", "inner"],
                "additionalProperties": false,
            }]}),
        }
    }
}

/// The size of a frame's buffer in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferSize(u32);

impl BufferSize {
    /// What there is, ascending.
    pub const ALL: [u32; 4] = [2048, 4096, 8192, 16_384];

    /// In bytes.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Value for BufferSize {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let bytes = match value {
            DeValue::Integer(_) => integer(value).and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            DeValue::String(text) => match super::quantity::Bytes::read(text) {
                Ok(bytes) => bytes.0,
                Err(why) => {
                    cx.report(Problem::new(why.code, span, why.message).help(why.help));
                    return None;
                }
            },
            _ => {
                cx.wrong_type(span, &Self::shape(), value);
                return None;
            }
        };
        let size = Self::ALL.into_iter().find(|size| u64::from(*size) == bytes);
        if size.is_none() {
            let problem = Problem::new("out-of-range", span, "buffers have 2048, 4096, 8192 or 16384 bytes");
            cx.report(problem.help("write 2048; 4096 for an MTU above 1770, or 16384 for one of 9000"));
        }
        size.map(BufferSize)
    }

    fn shape() -> Shape {
        Shape {
            words: "2048, 4096, 8192 or 16384".into(),
            example: "2048".into(),
            schema: json!({ "enum": [2048, 4096, 8192, 16384, "2KiB", "4KiB", "8KiB", "16KiB"] }),
        }
    }
}

/// What happens to the DSCP of the inner header when a packet is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dscp {
    /// The outer header has the inner one's.
    Copy,
    /// The outer header has this one, 0 to 63.
    Set(u8),
}

impl Value for Dscp {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        match (value.as_str(), integer(value)) {
            (Some("copy"), _) => Some(Dscp::Copy),
            (_, Some(number)) => {
                let found = u8::try_from(number).ok().filter(|n| *n < 64);
                if found.is_none() {
                    cx.report(out_of_range(number, span).help("a DSCP goes from 0 to 63"));
                }
                found.map(Dscp::Set)
            }
            (Some(text), _) => {
                let message = format!("\"{}\" is not a DSCP", shorten(text));
                cx.report(
                    Problem::new("bad-value", span, message).help("write \"copy\" or a number from 0 to 63"),
                );
                None
            }
            _ => {
                cx.wrong_type(span, &Self::shape(), value);
                None
            }
        }
    }

    fn shape() -> Shape {
        Shape {
            words: "\"copy\" or a number from 0 to 63".into(),
            example: "\"copy\"".into(),
            schema: json!({ "oneOf": [{ "const": "copy" }, { "type": "integer", "minimum": 0, "maximum": 63 }] }),
        }
    }
}

/// The identifier of a security association. 0 to 255 are reserved (RFC 4303 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(pub u32);

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Value for Spi {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let Some(number) = integer(value) else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        let spi = u32::try_from(number).ok().filter(|spi| *spi >= 256).map(Spi);
        if spi.is_none() {
            cx.report(
                out_of_range(number, span).help("an SPI goes from 256 to 4294967295; 0 to 255 are reserved"),
            );
        }
        spi
    }

    fn shape() -> Shape {
        Shape {
            words: "an SPI".into(),
            example: "0x1001".into(),
            schema: json!({ "type": "integer", "minimum": 256, "maximum": u32::MAX }),
        }
    }
}

/// How many sequence numbers behind the highest one are still accepted; 0 switches the check off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayWindow(pub u32);

impl Value for ReplayWindow {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let Some(number) = integer(value) else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        let window = u32::try_from(number).ok().filter(|n| *n == 0 || (64..=65536).contains(n));
        if window.is_none() {
            cx.report(out_of_range(number, span).help("write 64 to 65536, or 0 for no replay check"));
        }
        window.map(ReplayWindow)
    }

    fn shape() -> Shape {
        Shape {
            words: "a number from 64 to 65536, or 0".into(),
            example: "1024".into(),
            schema: json!({ "oneOf": [{ "const": 0 }, { "type": "integer", "minimum": 64, "maximum": 65536 }] }),
        }
    }
}
