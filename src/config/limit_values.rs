//! Rates and bursts of limits.

use super::decode::{Complaint, Text};
use super::model::{AddressLimit, Limit, OwnLimit};
use super::quantity::{BitsPerSecond, Bytes};
use crate::table::limit::{Cap, GREATEST, GREATEST_BURST, LEAST, LEAST_BURST};

/// A rate of a limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitRate(pub Option<u64>);

impl Text for LimitRate {
    const WORDS: &'static str = "a rate with its unit, or \"none\"";
    const EXAMPLE: &'static str = "100Mbps";
    const PATTERN: Option<&'static str> = Some("^(none|[0-9]+ ?(bps|kbps|Mbps|Gbps|Tbps))$");

    fn read(text: &str) -> Result<Self, Complaint> {
        if text == "none" {
            return Ok(Self(None));
        }
        let rate = BitsPerSecond::read(text)?.0;
        let wrong =
            |message: String, help: &str| Complaint { code: "out-of-range", message, help: help.into() };
        match rate {
            0 => Err(wrong(
                "a limit of zero lets nothing pass".into(),
                "to have no limit write \"none\", or leave it out; to stop traffic use a policy with action = \"discard\"",
            )),
            LEAST..=GREATEST => Ok(Self(Some(rate))),
            _ => Err(wrong(format!("a limit of {text} is out of range"), "limits go from 1kbps to 400Gbps")),
        }
    }
}

/// What may pass at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst(pub u64);

impl Text for Burst {
    const WORDS: &'static str = Bytes::WORDS;
    const EXAMPLE: &'static str = "1MB";
    const PATTERN: Option<&'static str> = Bytes::PATTERN;

    fn read(text: &str) -> Result<Self, Complaint> {
        let bytes = Bytes::read(text)?.0;
        if (LEAST_BURST..=GREATEST_BURST).contains(&bytes) {
            return Ok(Self(bytes));
        }
        Err(Complaint {
            code: "out-of-range",
            message: format!("a burst of {text} is out of range"),
            help: "write 4KiB or more, or the largest packets would never pass, and 125GB at most".into(),
        })
    }
}

/// The limit that a rate and a burst of the file mean.
#[must_use]
pub fn cap(rate: Option<LimitRate>, burst: Option<Burst>) -> Option<Cap> {
    let cap = Cap::of(rate?.0?);
    Some(burst.map_or(cap, |burst| Cap { burst: burst.0, ..cap }))
}

impl Limit {
    /// The limits in and out.
    #[must_use]
    pub fn caps(&self) -> [Option<Cap>; 2] {
        let burst = self.burst.as_ref().map(|burst| burst.value);
        [&self.inwards, &self.outwards].map(|rate| cap(rate.as_ref().map(|rate| rate.value), burst))
    }
}

impl AddressLimit {
    /// The limits to and from each address that has none of its own.
    #[must_use]
    pub fn caps(&self) -> [Option<Cap>; 2] {
        let burst = self.burst.as_ref().map(|burst| burst.value);
        [&self.inwards, &self.outwards].map(|rate| cap(rate.as_ref().map(|rate| rate.value), burst))
    }
}

impl OwnLimit {
    /// The limits to and from each of its addresses, where all have those of `others`.
    #[must_use]
    pub fn caps(&self, others: &AddressLimit) -> [Option<Cap>; 2] {
        let burst = self.burst.as_ref().map(|burst| burst.value);
        let [inwards, outwards] = others.caps();
        [(&self.inwards, inwards), (&self.outwards, outwards)].map(|(own, common)| match own {
            Some(rate) => cap(Some(rate.value), burst),
            None => common,
        })
    }
}

/// Reads a rate as the file writes it.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn read_rate(text: &str) -> Result<LimitRate, String> {
    LimitRate::read(text).map_err(|why| format!("{}: {}", why.message, why.help))
}

/// Reads a burst as the file writes it.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn read_burst(text: &str) -> Result<Burst, String> {
    Burst::read(text).map_err(|why| format!("{}: {}", why.message, why.help))
}

/// A rate as people write it.
#[must_use]
pub fn rate_text(rate: u64) -> String {
    let units = [(1_000_000_000, "Gbps"), (1_000_000, "Mbps"), (1_000, "kbps")];
    let unit = units.iter().find(|(scale, _)| rate.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{rate}bps"), |(scale, name)| format!("{}{name}", rate / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_from_one_kilobit_to_four_hundred_gigabits() {
        for (text, rate) in [("1kbps", 1_000), ("5Mbps", 5_000_000), ("400Gbps", 400_000_000_000)] {
            assert_eq!(LimitRate::read(text).unwrap(), LimitRate(Some(rate)));
            assert_eq!(rate_text(rate), text);
        }
        assert_eq!(LimitRate::read("none").unwrap(), LimitRate(None));
        assert_eq!(rate_text(1_234_567), "1234567bps");
        for (text, wanted) in
            [("0Mbps", "lets nothing pass"), ("999bps", "out of range"), ("1Tbps", "out of range")]
        {
            let complaint = LimitRate::read(text).unwrap_err();
            assert!(complaint.message.contains(wanted), "{text}: {}", complaint.message);
        }
        assert!(read_rate("0bps").unwrap_err().contains("\"none\""));
        assert!(read_burst("4095B").unwrap_err().contains("4KiB"));
        assert_eq!(read_burst("4KiB").unwrap(), Burst(4096));
    }

    #[test]
    fn a_burst_goes_with_the_rate_unless_it_is_said() {
        let rate = |rate| Some(LimitRate(Some(rate)));
        assert_eq!(cap(rate(5_000_000), None), Some(Cap { rate: 5_000_000, burst: 5_000 }));
        assert_eq!(cap(rate(1_000), None), Some(Cap { rate: 1_000, burst: 4_096 }));
        assert_eq!(cap(rate(1_000), Some(Burst(9_000))), Some(Cap { rate: 1_000, burst: 9_000 }));
        assert_eq!((cap(None, None), cap(Some(LimitRate(None)), Some(Burst(9_000)))), (None, None));
    }
}
