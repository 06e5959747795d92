//! How a checked configuration is written: one way for each meaning, so that two can be compared and one be shown.

use std::{fmt, fmt::Write, net::IpAddr};

use sha2::{Digest, Sha256};

use super::{
    decode::{Count, SectionShape},
    keys::Key,
    limit_values::{Burst, LimitRate},
    model::{Config, Idle},
    prefix::{AddressRanges, HostOrPrefix, InterfaceAddress, Prefix},
    quantity::{BitsPerSecond, Bytes, Interval, Number, PowerOfTwo, Ranged},
    selector::{IcmpMatch, PortRange, PortRanges, Protocol},
    span::{At, Span},
    tunnel_values::{Mss, PacketsPerSecond},
    types::{BufferSize, DeviceName, Dscp, Location, Mac, Name, ReplayWindow, Spi, Vlan},
};

/// What a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be read. A key is hidden.
    Show,
    /// To be compared, and never to be shown: of a key there is a digest, and what has no order is sorted.
    Compare,
}

/// A value as TOML.
pub(crate) struct Writer<'c> {
    /// Where names of references come from.
    pub config: &'c Config,
    pub purpose: Purpose,
    pub out: String,
}

impl<'c> Writer<'c> {
    pub fn new(config: &'c Config, purpose: Purpose) -> Self {
        Self { config, purpose, out: String::new() }
    }

    /// A string.
    pub fn text(&mut self, value: &dyn fmt::Display) {
        self.out.push('"');
        let start = self.out.len();
        self.raw(value);
        if self.out[start..].contains(|c: char| matches!(c, '"' | '\\') || c.is_control()) {
            let plain = self.out.split_off(start);
            for c in plain.chars() {
                match c {
                    '"' | '\\' => self.out.extend(['\\', c]),
                    c if c.is_control() => self.raw(&format_args!("\\u{:04x}", c as u32)),
                    c => self.out.push(c),
                }
            }
        }
        self.out.push('"');
    }

    /// What needs no quotes.
    pub fn raw(&mut self, value: &dyn fmt::Display) {
        // Writing into a string cannot fail.
        let _ = write!(self.out, "{value}");
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&T, &mut Self)) {
        self.out.push('[');
        for (number, item) in items.iter().enumerate() {
            if number > 0 {
                self.out.push_str(", ");
            }
            write(item, self);
        }
        self.out.push(']');
    }
}

/// A value that can be written as the file writes it.
pub(crate) trait Written {
    /// In a list of these, whether the order has a meaning.
    const ORDERED: bool = true;
    /// Writes it.
    fn write(&self, to: &mut Writer<'_>);
}

/// [`Written`], where the type does not matter.
pub(crate) trait AnyWritten {
    fn write(&self, to: &mut Writer<'_>);
}

impl<T: Written> AnyWritten for T {
    fn write(&self, to: &mut Writer<'_>) {
        Written::write(self, to);
    }
}

/// A section whose fields can be told one by one; `section!` writes it.
pub(crate) trait Told {
    /// Where it starts. A field that stands there too was not given.
    fn at(&self) -> Span;
    /// Its declaration.
    fn shape(&self) -> SectionShape;
    /// Calls for every field that has a value: with its place in the declaration, where it stands, and the value.
    fn fields(&self, visit: &mut dyn FnMut(usize, Span, &dyn AnyWritten));
    /// The sections inside, in the order of the declaration.
    fn children(&self) -> Vec<Vec<&dyn Told>>;
}

/// As `Display` has it, in quotes.
macro_rules! quoted {
    ($($ty:ty),*) => { $(
        impl Written for $ty {
            fn write(&self, to: &mut Writer<'_>) {
                to.text(self);
            }
        }
    )* };
}

quoted!(Name, DeviceName, Mac, IpAddr, HostOrPrefix, InterfaceAddress);

impl Written for Prefix {
    const ORDERED: bool = false;

    fn write(&self, to: &mut Writer<'_>) {
        to.text(self);
    }
}

impl<T: Written> Written for Vec<At<T>> {
    fn write(&self, to: &mut Writer<'_>) {
        if T::ORDERED || to.purpose == Purpose::Show {
            return to.list(self, |item, to| item.value.write(to));
        }
        let mut items: Vec<String> = Vec::with_capacity(self.len());
        for item in self {
            let mut one = Writer::new(to.config, to.purpose);
            item.value.write(&mut one);
            items.push(one.out);
        }
        items.sort_unstable();
        to.list(&items, |item, to| to.out.push_str(item));
    }
}

impl Written for bool {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(self);
    }
}

impl<const MIN: u32, const MAX: u32> Written for Ranged<MIN, MAX> {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(&self.get());
    }
}

impl<const MIN: u32, const MAX: u32> Written for PowerOfTwo<MIN, MAX> {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(&self.get());
    }
}

impl Written for Number {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(&self.0);
    }
}

/// A number with the largest of the units that leaves it whole.
fn scaled(number: u64, units: &[(&str, u64)], to: &mut Writer<'_>) {
    let fits = units.iter().rev().find(|(_, scale)| number != 0 && number.is_multiple_of(*scale));
    if let Some((unit, scale)) = fits.or(units.first()) {
        to.text(&format_args!("{}{unit}", number / scale));
    }
}

impl Written for Interval {
    fn write(&self, to: &mut Writer<'_>) {
        const UNITS: [(&str, u64); 6] = [
            ("ns", 1),
            ("us", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("min", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        scaled(u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX), &UNITS, to);
    }
}

impl Written for Bytes {
    fn write(&self, to: &mut Writer<'_>) {
        const UNITS: [(&str, u64); 5] =
            [("B", 1), ("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000)];
        scaled(self.0, &UNITS, to);
    }
}

impl Written for BitsPerSecond {
    fn write(&self, to: &mut Writer<'_>) {
        const UNITS: [(&str, u64); 5] = [
            ("bps", 1),
            ("kbps", 1_000),
            ("Mbps", 1_000_000),
            ("Gbps", 1_000_000_000),
            ("Tbps", 1_000_000_000_000),
        ];
        scaled(self.0, &UNITS, to);
    }
}

impl Written for LimitRate {
    fn write(&self, to: &mut Writer<'_>) {
        match self.0 {
            Some(rate) => Written::write(&BitsPerSecond(rate), to),
            None => to.text(&"none"),
        }
    }
}

impl Written for Burst {
    fn write(&self, to: &mut Writer<'_>) {
        Written::write(&Bytes(self.0), to);
    }
}

impl Written for PacketsPerSecond {
    fn write(&self, to: &mut Writer<'_>) {
        to.text(&format_args!("{}/s", self.0));
    }
}

impl Written for Location {
    fn write(&self, to: &mut Writer<'_>) {
        to.text(&self.0.display());
    }
}

impl Written for Vlan {
    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Vlan::Untagged => to.raw(&0),
            Vlan::Tagged(id) => to.raw(id),
            Vlan::Stacked { outer, inner } => {
                to.raw(&format_args!("{{ outer = {outer}, inner = {inner} }}"));
            }
        }
    }
}

impl Written for BufferSize {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(&self.get());
    }
}

impl Written for Dscp {
    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Dscp::Copy => to.text(&"copy"),
            Dscp::Set(value) => to.raw(value),
        }
    }
}

impl Written for Spi {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(self);
    }
}

impl Written for ReplayWindow {
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(&self.0);
    }
}

impl Written for Mss {
    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Mss::Auto => to.text(&"auto"),
            Mss::Fixed(bytes) => to.raw(bytes),
        }
    }
}

impl Written for Idle {
    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Idle::Spin => to.text(&"spin"),
            Idle::SleepAfter(time) => {
                to.raw(&"{ sleep_after = ");
                Written::write(&Interval(*time), to);
                to.raw(&" }");
            }
        }
    }
}

impl Written for Protocol {
    fn write(&self, to: &mut Writer<'_>) {
        match self.name() {
            Some(name) => to.text(&name),
            None => to.raw(&self.0),
        }
    }
}

impl Written for PortRanges {
    fn write(&self, to: &mut Writer<'_>) {
        let one = |range: &PortRange, to: &mut Writer<'_>| {
            if range.first == range.last {
                to.raw(&range.first);
            } else {
                to.text(&format_args!("{}-{}", range.first, range.last));
            }
        };
        match &self.0[..] {
            [range] => one(range, to),
            ranges => to.list(ranges, one),
        }
    }
}

impl Written for IcmpMatch {
    fn write(&self, to: &mut Writer<'_>) {
        match self.code {
            Some(code) => to.text(&format_args!("{}/{code}", self.kind)),
            None => to.raw(&self.kind),
        }
    }
}

impl Written for AddressRanges {
    fn write(&self, to: &mut Writer<'_>) {
        match self.single() {
            Some(prefix) => to.text(&HostOrPrefix(prefix)),
            None if self.ranges.len() == 1 => self.ranges.iter().for_each(|range| to.text(range)),
            None => to.list(&self.ranges, |range, to| to.text(range)),
        }
    }
}

impl Written for Key {
    fn write(&self, to: &mut Writer<'_>) {
        match to.purpose {
            Purpose::Show => to.raw(&format_args!("{{ hidden = \"AES-{}-GCM\" }}", self.bits())),
            Purpose::Compare => {
                let digest = Sha256::new().chain_update(self.aes()).chain_update(self.salt()).finalize();
                digest.iter().for_each(|byte| to.raw(&format_args!("{byte:02x}")));
            }
        }
    }
}

/// A field of a section as text.
#[derive(Debug, Clone)]
pub(crate) struct FieldText {
    pub key: &'static str,
    /// Whether the file gives it; otherwise it is a default.
    pub given: bool,
    pub value: String,
}

/// The fields of a section, in the order of the declaration.
pub(crate) fn fields(section: &dyn Told, config: &Config, purpose: Purpose) -> Vec<FieldText> {
    let (shape, at) = (section.shape(), section.at());
    let mut all = Vec::new();
    section.fields(&mut |number, span, value| {
        let Some(field) = shape.fields.get(number) else { return };
        let mut to = Writer::new(config, purpose);
        value.write(&mut to);
        let given = span != at || field.presence == super::decode::Presence::Required;
        all.push(FieldText { key: field.key, given, value: to.out });
    });
    all
}

/// A section in one line, as an inline table without its braces; what is not given is left out, unless it is to be
/// compared.
pub(crate) fn line(section: &dyn Told, config: &Config, purpose: Purpose) -> String {
    let mut text = String::new();
    for field in fields(section, config, purpose) {
        if field.given || purpose == Purpose::Compare {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{} = {}", field.key, field.value);
        }
    }
    let shape = section.shape();
    for (child, sections) in shape.children.iter().zip(section.children()) {
        if sections.is_empty() {
            continue;
        }
        let inner: Vec<String> =
            sections.iter().map(|s| format!("{{ {} }}", line(*s, config, purpose))).collect();
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = match child.count {
            Count::Some | Count::Many => write!(text, "{comma}{} = [{}]", child.key, inner.join(", ")),
            _ => write!(text, "{comma}{} = {}", child.key, inner.concat()),
        };
    }
    text
}

impl Config {
    /// The whole configuration as a file would have it, keys hidden; with `defaults` also what no file gave, as
    /// remarks.
    #[must_use]
    pub fn to_toml(&self, defaults: bool) -> String {
        let mut text = String::new();
        let own = |text: &mut String, section: &dyn Told| {
            for field in fields(section, self, Purpose::Show) {
                if field.given || defaults {
                    let _ = writeln!(
                        text,
                        "{}{} = {}",
                        if field.given { "" } else { "# " },
                        field.key,
                        field.value
                    );
                }
            }
        };
        let mut put = |header: String, section: &dyn Told| {
            let _ = writeln!(text, "{}[{header}]", if text.is_empty() { "" } else { "\n" });
            own(&mut text, section);
            let shape = section.shape();
            let children = || shape.children.iter().zip(section.children());
            // What stands in the section itself goes before what has a header of its own.
            for (child, sections) in children().filter(|(child, _)| child.count != Count::Many) {
                let inner: Vec<String> =
                    sections.iter().map(|s| format!("{{ {} }}", line(*s, self, Purpose::Show))).collect();
                let _ = match child.count {
                    _ if inner.is_empty() => Ok(()),
                    Count::Some => writeln!(text, "{} = [{}]", child.key, inner.join(", ")),
                    _ => writeln!(text, "{} = {}", child.key, inner.concat()),
                };
            }
            for (child, sections) in children().filter(|(child, _)| child.count == Count::Many) {
                for section in sections {
                    let _ = writeln!(text, "\n[[{header}.{}]]", child.key);
                    own(&mut text, section);
                }
            }
        };
        put("system".into(), &self.system);
        self.ports.iter().for_each(|port| put(format!("port.{}", port.name), port));
        self.gateways.iter().for_each(|gateway| put(format!("gateway.{}", gateway.name), gateway));
        self.interfaces.iter().for_each(|interface| put(format!("interface.{}", interface.name), interface));
        self.tunnels.iter().for_each(|tunnel| put(format!("tunnel.{}", tunnel.name), tunnel));
        text
    }
}
