//! Values that only tunnels have: the clamp of TCP's segment size, and the rate of dummy packets.

use serde_json::json;
use toml::de::DeValue;

use super::decode::{Complaint, Context, Shape, Text, Value, integer};
use super::diagnostics::Problem;
use super::quantity::out_of_range;
use super::span::Span;
use super::suggest::shorten;

/// The largest TCP segment that connections through a tunnel may agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mss {
    /// What fits the tunnel's effective MTU.
    Auto,
    /// So many bytes.
    Fixed(u16),
}

/// The least segment: what every host takes (RFC 9293 3.7.1).
const LEAST_MSS: u16 = 536;
/// The largest: what the largest MTU leaves.
const LARGEST_MSS: u16 = 3800;

impl Value for Mss {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        match (value.as_str(), integer(value)) {
            (Some("auto"), _) => Some(Mss::Auto),
            (_, Some(number)) => {
                let found = u16::try_from(number).ok().filter(|n| (LEAST_MSS..=LARGEST_MSS).contains(n));
                if found.is_none() {
                    let help = format!("write \"auto\" or a number from {LEAST_MSS} to {LARGEST_MSS}");
                    cx.report(out_of_range(number, span).help(help));
                }
                found.map(Mss::Fixed)
            }
            (Some(text), _) => {
                let message = format!("\"{}\" is not a segment size", shorten(text));
                cx.report(
                    Problem::new("bad-value", span, message).help("write \"auto\" or a number of bytes"),
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
            words: format!("\"auto\" or a number from {LEAST_MSS} to {LARGEST_MSS}"),
            example: "\"auto\"".into(),
            schema: json!({ "oneOf": [
                { "const": "auto" },
                { "type": "integer", "minimum": LEAST_MSS, "maximum": LARGEST_MSS },
            ]}),
        }
    }
}

/// A number of packets a second, such as `"10/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketsPerSecond(pub u32);

/// More than any cover traffic needs; the control thread hands them over one tick at a time.
const MOST_PACKETS: u32 = 10_000;

impl Text for PacketsPerSecond {
    const WORDS: &'static str = "a number of packets a second";
    const EXAMPLE: &'static str = "10/s";
    const PATTERN: Option<&'static str> = Some("^[0-9]+ ?/ ?s$");

    fn read(text: &str) -> Result<Self, Complaint> {
        let help = format!("write a number from 1 to {MOST_PACKETS} and \"/s\", such as \"10/s\"");
        let number = text.trim().strip_suffix('s').and_then(|rest| rest.trim_end().strip_suffix('/'));
        let rate = number.and_then(|n| n.trim().parse().ok()).filter(|n| (1..=MOST_PACKETS).contains(n));
        let refused = || Complaint::new(format!("\"{}\" is not a rate of packets", shorten(text)), help);
        rate.map(PacketsPerSecond).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_people_write_them() {
        for (text, rate) in [("10/s", 10), ("1 /s", 1), (" 10000/ s ", 10_000)] {
            assert_eq!(PacketsPerSecond::read(text).unwrap().0, rate, "{text}");
        }
        for wrong in ["", "10", "/s", "0/s", "10001/s", "-1/s", "10/min", "ten/s"] {
            let complaint = PacketsPerSecond::read(wrong).unwrap_err();
            assert!(complaint.help.contains("10/s"), "{wrong}");
        }
    }
}
