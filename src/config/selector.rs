//! What a policy matches above IP: protocols, ports, and types of ICMP.

use std::fmt;

use serde_json::json;
use toml::de::DeValue;

use super::decode::{Context, Shape, Value, integer};
use super::diagnostics::Problem;
use super::quantity::out_of_range;
use super::span::Span;
use super::suggest::{self, shorten};

/// A protocol above IP, by its number (IANA "Protocol Numbers").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

const PROTOCOLS: [(&str, u8); 12] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("sctp", 132),
];

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);

    /// Its name, where it has one.
    pub fn name(self) -> Option<&'static str> {
        PROTOCOLS.iter().find(|(_, number)| *number == self.0).map(|(name, _)| *name)
    }

    /// TCP, UDP, DCCP and SCTP start with a source and a destination port.
    pub fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 33 | 132)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

impl Value for Protocol {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let names = || PROTOCOLS.iter().map(|(name, _)| *name);
        match (value.as_str(), integer(value)) {
            (Some(text), _) => {
                let found = PROTOCOLS.iter().find(|(name, _)| *name == text);
                if found.is_none() {
                    let near = suggest::nearest(text, names()).map(|n| format!("did you mean \"{n}\"? "));
                    let all = names().collect::<Vec<_>>().join(", ");
                    let message = format!("\"{}\" is not a protocol", shorten(text));
                    let help = format!("{}write a number, or one of {all}", near.unwrap_or_default());
                    cx.report(Problem::new("bad-value", span, message).help(help));
                }
                found.map(|(_, number)| Protocol(*number))
            }
            (_, Some(number)) => {
                let found = u8::try_from(number).ok();
                if found.is_none() {
                    cx.report(out_of_range(number, span).help("protocols go from 0 to 255"));
                }
                found.map(Protocol)
            }
            _ => {
                cx.wrong_type(span, &Self::shape(), value);
                None
            }
        }
    }

    fn shape() -> Shape {
        let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        Shape {
            words: "a protocol by name or number".into(),
            example: "\"tcp\"".into(),
            schema: json!({ "oneOf": [
                { "enum": names }, { "type": "integer", "minimum": 0, "maximum": 255 },
            ]}),
        }
    }
}

/// Ports of TCP, UDP, DCCP or SCTP: from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port, never below `first`.
    pub last: u16,
}

/// One port, a range, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRanges(pub Vec<PortRange>);

fn port_range(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<PortRange> {
    let help = "write a port such as 443, or a range such as \"1024-65535\"";
    if let Some(number) = integer(value) {
        let port = u16::try_from(number).ok();
        if port.is_none() {
            cx.report(out_of_range(number, span).help("ports go from 0 to 65535"));
        }
        return port.map(|port| PortRange { first: port, last: port });
    }
    let Some(text) = value.as_str() else {
        cx.wrong_type(span, &PortRanges::shape(), value);
        return None;
    };
    let number = |part: &str| {
        let part = part.trim();
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u16>().ok()).flatten()
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Some(PortRange { first, last }),
        (Some(first), Some(last)) => {
            let message = format!("the range \"{}\" runs backwards", shorten(text));
            cx.report(Problem::new("bad-value", span, message).help(format!("write \"{last}-{first}\"")));
            None
        }
        _ => {
            let message = format!("\"{}\" is not a range of ports", shorten(text));
            cx.report(Problem::new("bad-value", span, message).help(help));
            None
        }
    }
}

impl Value for PortRanges {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let DeValue::Array(array) = value else {
            return port_range(value, span, cx).map(|range| PortRanges(vec![range]));
        };
        if array.is_empty() {
            let problem = Problem::new("bad-value", span, "an empty list of ports matches nothing");
            cx.report(problem.help("leave the key out to match every port"));
            return None;
        }
        let ranges: Vec<Option<PortRange>> =
            array.iter().map(|item| port_range(item.get_ref(), item.span().into(), cx)).collect();
        ranges.into_iter().collect::<Option<Vec<_>>>().map(PortRanges)
    }

    fn shape() -> Shape {
        let one = json!({ "oneOf": [
            { "type": "integer", "minimum": 0, "maximum": 65535 },
            { "type": "string", "pattern": "^[0-9]{1,5}( ?- ?[0-9]{1,5})?$" },
        ]});
        Shape {
            words: "a port, a range, or a list of them".into(),
            example: "[443, \"1024-65535\"]".into(),
            schema: json!({ "oneOf": [one, { "type": "array", "items": one, "minItems": 1 }] }),
        }
    }
}

/// A type of ICMP or ICMPv6, and perhaps a code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpMatch {
    /// The type.
    pub kind: u8,
    /// The code; without one, every code.
    pub code: Option<u8>,
}

impl Value for IcmpMatch {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        if let Some(number) = integer(value) {
            let kind = u8::try_from(number).ok();
            if kind.is_none() {
                cx.report(out_of_range(number, span).help("ICMP types go from 0 to 255"));
            }
            return kind.map(|kind| IcmpMatch { kind, code: None });
        }
        let Some(text) = value.as_str() else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        let number =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let found = match text.split_once('/') {
            None => number(text).map(|kind| IcmpMatch { kind, code: None }),
            Some((kind, code)) => {
                number(kind).zip(number(code)).map(|(kind, code)| IcmpMatch { kind, code: Some(code) })
            }
        };
        if found.is_none() {
            let message = format!("\"{}\" is not a type or type and code of ICMP", shorten(text));
            cx.report(
                Problem::new("bad-value", span, message).help("write it as \"8\" or \"8/0\", each up to 255"),
            );
        }
        found
    }

    fn shape() -> Shape {
        Shape {
            words: "an ICMP type, or a type and a code".into(),
            example: "\"8/0\"".into(),
            schema: json!({ "oneOf": [
                { "type": "integer", "minimum": 0, "maximum": 255 },
                { "type": "string", "pattern": "^[0-9]{1,3}(/[0-9]{1,3})?$" },
            ]}),
        }
    }
}
