//! Numbers: plain ones in a range, and those people write with a unit.

use std::time::Duration;

use serde_json::json;
use toml::de::DeValue;

use super::decode::{Complaint, Context, Shape, Text, Value, integer};
use super::diagnostics::Problem;
use super::span::Span;

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ranged<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Ranged<MIN, MAX> {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number, where it is in the range.
    pub fn new(number: u32) -> Option<Self> {
        (MIN..=MAX).contains(&number).then_some(Ranged(number))
    }
}

impl<const MIN: u32, const MAX: u32> Value for Ranged<MIN, MAX> {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let Some(number) = integer(value) else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        let found = u32::try_from(number).ok().and_then(Self::new);
        if found.is_none() {
            cx.report(out_of_range(number, span).help(format!("write a number from {MIN} to {MAX}")));
        }
        found
    }

    fn shape() -> Shape {
        Shape {
            words: format!("a number from {MIN} to {MAX}"),
            example: MIN.to_string(),
            schema: json!({ "type": "integer", "minimum": MIN, "maximum": MAX }),
        }
    }
}

/// A power of two from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PowerOfTwo<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> PowerOfTwo<MIN, MAX> {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl<const MIN: u32, const MAX: u32> Value for PowerOfTwo<MIN, MAX> {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let Some(number) = integer(value) else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        match u32::try_from(number) {
            Ok(n) if n.is_power_of_two() && (MIN..=MAX).contains(&n) => Some(PowerOfTwo(n)),
            Ok(n) if (MIN..=MAX).contains(&n) => {
                let (below, above) = (1u32 << n.ilog2(), n.next_power_of_two());
                let problem = Problem::new("bad-value", span, format!("{n} is not a power of two"));
                cx.report(problem.help(format!("write {below} or {above}")));
                None
            }
            _ => {
                let help = format!("write a power of two from {MIN} to {MAX}");
                cx.report(out_of_range(number, span).help(help));
                None
            }
        }
    }

    fn shape() -> Shape {
        let powers: Vec<u32> = (0..32).map(|bit| 1 << bit).filter(|n| (MIN..=MAX).contains(n)).collect();
        Shape {
            words: format!("a power of two from {MIN} to {MAX}"),
            example: MIN.to_string(),
            schema: json!({ "type": "integer", "enum": powers }),
        }
    }
}

/// A number the field cannot hold.
pub(crate) fn out_of_range(number: i128, span: Span) -> Problem {
    let words = match number {
        i128::MAX => "this number is far out of range".to_owned(),
        number => format!("{number} is out of range"),
    };
    Problem::new("out-of-range", span, words)
}

/// A time to wait, such as `"50us"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub Duration);

impl Text for Interval {
    const WORDS: &'static str = "a time with its unit";
    const EXAMPLE: &'static str = "50us";
    const PATTERN: Option<&'static str> = Some("^[0-9]+ ?(ns|us|µs|ms|s|min|h)$");

    fn read(text: &str) -> Result<Self, Complaint> {
        const UNITS: [(&str, u64); 7] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("min", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        scaled(text, &UNITS, "50us").map(|nanoseconds| Interval(Duration::from_nanos(nanoseconds)))
    }
}

impl std::str::FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|complaint| format!("{}: {}", complaint.message, complaint.help))
    }
}

/// A number of bytes, such as `"2MiB"`, `2048` or `"64 kB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Text for Bytes {
    const WORDS: &'static str = "a number of bytes with its unit";
    const EXAMPLE: &'static str = "500GB";
    const PATTERN: Option<&'static str> = Some("^[0-9]+ ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)$");

    fn read(text: &str) -> Result<Self, Complaint> {
        const UNITS: [(&str, u64); 9] = [
            ("B", 1),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
        ];
        scaled(text, &UNITS, "2KiB").map(Bytes)
    }
}

/// A whole number above zero, as large as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(pub u64);

impl Value for Number {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let Some(number) = integer(value) else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        let found = u64::try_from(number).ok().filter(|number| *number > 0);
        if found.is_none() {
            cx.report(out_of_range(number, span).help("write a number above 0"));
        }
        found.map(Number)
    }

    fn shape() -> Shape {
        Shape {
            words: "a number above 0".into(),
            example: "1_000_000".into(),
            schema: json!({ "type": "integer", "minimum": 1 }),
        }
    }
}

/// A rate of a line or a limit, such as `"10Gbps"`, in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitsPerSecond(pub u64);

impl Text for BitsPerSecond {
    const WORDS: &'static str = "a rate with its unit";
    const EXAMPLE: &'static str = "10Gbps";
    const PATTERN: Option<&'static str> = Some("^[0-9]+ ?(bps|kbps|Mbps|Gbps|Tbps)$");

    fn read(text: &str) -> Result<Self, Complaint> {
        const UNITS: [(&str, u64); 5] = [
            ("bps", 1),
            ("kbps", 1_000),
            ("Mbps", 1_000_000),
            ("Gbps", 1_000_000_000),
            ("Tbps", 1_000_000_000_000),
        ];
        scaled(text, &UNITS, "10Gbps").map(BitsPerSecond)
    }
}

/// Reads digits and a unit, exactly as the unit is spelt: `Mbps` is not `mbps`.
fn scaled(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, Complaint> {
    let names = units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let help = format!("write a whole number and a unit, such as \"{example}\"; units are {names}");
    let shown = super::suggest::shorten(text);
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if digits == 0 {
        return Err(Complaint::new(format!("\"{shown}\" does not start with a number"), help));
    }
    if unit.is_empty() {
        return Err(Complaint::new(format!("\"{shown}\" has no unit"), help));
    }
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        let same = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let help =
            same.map_or(help, |(name, _)| format!("write \"{number}{name}\": units are spelt exactly"));
        return Err(Complaint::new(format!("\"{shown}\" has a unit nobody knows"), help));
    };
    let too_large = || Complaint::new(format!("\"{shown}\" is too large"), "write a smaller number");
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(*scale)).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_people_write_them() {
        assert_eq!(Interval::read("50us").unwrap().0, Duration::from_micros(50));
        assert_eq!(Interval::read("300 s").unwrap().0, Duration::from_secs(300));
        assert_eq!(Bytes::read("2MiB").unwrap(), Bytes(2 << 20));
        assert_eq!(BitsPerSecond::read("10Gbps").unwrap(), BitsPerSecond(10_000_000_000));
    }

    #[test]
    fn slips_are_explained() {
        for (text, message, help) in [
            ("50", "no unit", "50us"),
            ("us", "does not start with a number", "units are"),
            ("50 parsec", "unit nobody knows", "ns, us"),
            ("50US", "unit nobody knows", "write \"50us\""),
            ("99999999999999999999s", "too large", "smaller"),
            ("9999999999999999h", "too large", "smaller"),
            ("-5s", "does not start with a number", "whole number"),
        ] {
            let complaint = Interval::read(text).unwrap_err();
            assert!(complaint.message.contains(message), "{text}: {}", complaint.message);
            assert!(complaint.help.contains(help), "{text}: {}", complaint.help);
        }
    }
}
