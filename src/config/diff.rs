//! What two checked configurations say differently, whatever their text looks like.
//!
//! Sections are the same when their names are; policies and NAT rules by name, or without one by what they say; routes
//! by prefix and next hop; inbound associations by SPI. Where the order of sections decides nothing it is not compared.
//! No key is ever in a [`Change`]: that it is another is all that is said.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    decode::Count,
    model::Config,
    written::{FieldText, Purpose, Told, fields, line},
};

/// What became of a section or key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only the second has the section.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, with another value of one key.
    Changed,
    /// Its place among others decides, and is another.
    Moved,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What became of it.
    pub kind: Kind,
    /// The section at the top: `system`, `tunnel.dc`.
    pub section: String,
    /// The section inside that one: `policy "to-dc"`, `route 10.1.0.0/16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The key that has another value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What the first says, as TOML; nothing where it says nothing, and of a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// What the second says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
    /// Of old and new, which is a default that stands in no file.
    #[serde(default)]
    pub default: (bool, bool),
    /// Whether a running gateway can take it up; otherwise it must be restarted for it.
    pub live: bool,
}

/// All differences, in the order of the file's sections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The differences.
    pub changes: Vec<Change>,
    /// How many more there are than `changes` has.
    #[serde(default)]
    pub left_out: usize,
}

/// Whether a change of a key takes effect while the gateway runs. Also what a reload refuses is decided by this.
fn takes_effect(section: &str, key: &str) -> bool {
    match section {
        "system" => key == "cipher",
        // Only a bound for its interfaces, which have an MTU of their own.
        "port" => key == "mtu",
        "interface" => key != "host_tap",
        _ => true,
    }
}

/// The differences between two configurations.
#[must_use]
pub fn compare(old: &Config, new: &Config) -> Difference {
    sections(old, new, true)
}

/// What of the new configuration a gateway with the old one cannot take up while it runs. It costs little: lists that
/// may be long are not compared.
#[must_use]
pub fn needing_restart(old: &Config, new: &Config) -> Difference {
    let mut found = sections(old, new, false);
    found.changes.retain(|change| !change.live);
    found
}

fn sections(old: &Config, new: &Config, all: bool) -> Difference {
    let mut found =
        Comparison { old, new, section: String::new(), kind: "", live: true, changes: Vec::new() };
    found.top("system", &[(None, &old.system as &dyn Told)], &[(None, &new.system)]);
    macro_rules! sections {
        ($kind:literal, $list:ident) => {{
            let named = |config: &'_ Config| -> Vec<Option<String>> {
                config.$list.iter().map(|section| Some(section.name.to_string())).collect()
            };
            let told = |config| named(config);
            let (names_old, names_new) = (told(old), told(new));
            let sections_old: Vec<_> = names_old
                .iter()
                .map(Option::as_deref)
                .zip(old.$list.iter().map(|s| s as &dyn Told))
                .collect();
            let sections_new: Vec<_> = names_new
                .iter()
                .map(Option::as_deref)
                .zip(new.$list.iter().map(|s| s as &dyn Told))
                .collect();
            found.top($kind, &sections_old, &sections_new);
        }};
    }
    sections!("port", ports);
    if all {
        sections!("gateway", gateways);
    }
    sections!("interface", interfaces);
    if all {
        sections!("tunnel", tunnels);
    }
    Difference { changes: found.changes, left_out: 0 }
}

type Named<'a> = (Option<&'a str>, &'a dyn Told);

struct Comparison<'a> {
    old: &'a Config,
    new: &'a Config,
    /// The section at the top that is being compared, and its kind.
    section: String,
    kind: &'static str,
    /// Whether a section like this can come and go.
    live: bool,
    changes: Vec<Change>,
}

impl Comparison<'_> {
    fn push(&mut self, kind: Kind, item: Option<&str>, texts: (Option<String>, Option<String>), live: bool) {
        let (old, new) = texts;
        let (section, item) = (self.section.clone(), item.map(str::to_owned));
        self.changes.push(Change { kind, section, item, key: None, old, new, default: (false, false), live });
    }

    /// Sections of one kind at the top.
    fn top(&mut self, kind: &'static str, old: &[Named<'_>], new: &[Named<'_>]) {
        self.kind = kind;
        let mut places: HashMap<Option<&str>, usize> =
            new.iter().enumerate().map(|(place, (name, _))| (*name, place)).collect();
        let mut both = Vec::new();
        let header = |name: Option<&str>| name.map_or(kind.to_owned(), |name| format!("{kind}.{name}"));
        for (name, section) in old {
            self.section = header(*name);
            match places.remove(name).and_then(|place| Some((place, new.get(place)?.1))) {
                Some((place, other)) => {
                    both.push((place, *name));
                    self.pair(None, *section, other);
                }
                None => {
                    let live = kind != "port" && !self.has_tap(*section);
                    let text = line(*section, self.old, Purpose::Show);
                    self.push(Kind::Removed, None, (Some(text), None), live);
                }
            }
        }
        let mut added: Vec<usize> = places.into_values().collect();
        added.sort_unstable();
        for (name, section) in added.into_iter().filter_map(|place| new.get(place)) {
            self.section = header(*name);
            // Without tunnels a gateway has opened no sequence state.
            let first_tunnel = kind == "tunnel" && self.old.tunnels.is_empty();
            self.live = kind != "port" && !first_tunnel && !self.has_tap(*section);
            let text = line(*section, self.new, Purpose::Show);
            self.push(Kind::Added, None, (None, Some(text)), self.live);
        }
        if kind == "port" {
            // Workers know ports by their place in the file.
            let order: Vec<usize> = both.iter().map(|(place, _)| *place).collect();
            for moved in out_of_order(&order) {
                self.section = header(both.get(moved).and_then(|(_, name)| *name));
                self.push(Kind::Moved, None, (None, None), false);
            }
        }
    }

    fn has_tap(&self, section: &dyn Told) -> bool {
        let mut has = false;
        let shape = section.shape();
        section.fields(&mut |number, _, _| {
            has |= shape.fields.get(number).is_some_and(|field| !takes_effect(self.kind, field.key));
        });
        self.kind == "interface" && has
    }

    /// A section that both have.
    fn pair(&mut self, item: Option<&str>, old: &dyn Told, new: &dyn Told) {
        let texts = |section, config| {
            (fields(section, config, Purpose::Compare), fields(section, config, Purpose::Show))
        };
        let ((old_values, old_shown), (new_values, new_shown)) = (texts(old, self.old), texts(new, self.new));
        let find = |all: &[FieldText], key: &str| all.iter().position(|field| field.key == key);
        for field in old.shape().fields {
            let key = field.key;
            let (a, b) = (find(&old_values, key), find(&new_values, key));
            let value = |all: &'_ [FieldText], place: Option<usize>| -> Option<FieldText> {
                place.and_then(|place| all.get(place).cloned())
            };
            let (a_value, b_value) = (value(&old_values, a), value(&new_values, b));
            let same = a_value.as_ref().map(|f| &f.value) == b_value.as_ref().map(|f| &f.value);
            // A name that was made of a number says nothing.
            let made = |f: &Option<FieldText>| f.as_ref().is_none_or(|f| !f.given);
            if same || (key == "name" && item.is_some() && made(&a_value) && made(&b_value)) {
                continue;
            }
            let (a, b) = (value(&old_shown, a), value(&new_shown, b));
            let secret = key == "key" && a.is_some() && b.is_some();
            let text = |f: &Option<FieldText>| f.as_ref().filter(|_| !secret).map(|f| f.value.clone());
            let live = takes_effect(self.kind, key);
            let default = (a.as_ref().is_some_and(|f| !f.given), b.as_ref().is_some_and(|f| !f.given));
            self.changes.push(Change {
                kind: Kind::Changed,
                section: self.section.clone(),
                item: item.map(str::to_owned),
                key: Some(key.to_owned()),
                old: text(&a),
                new: text(&b),
                default,
                live,
            });
        }
        let (old_children, new_children) = (old.children(), new.children());
        for (child, (old, new)) in old.shape().children.iter().zip(old_children.iter().zip(&new_children)) {
            match child.count {
                Count::One | Count::Maybe if old.len() == 1 && new.len() == 1 => {
                    if let (Some(old), Some(new)) = (old.first(), new.first()) {
                        self.pair(Some(child.key), *old, *new);
                    }
                }
                _ => self.children(child.key, old, new),
            }
        }
    }

    /// Lists of sections inside a section.
    fn children(&mut self, key: &str, old: &[&dyn Told], new: &[&dyn Told]) {
        if let ([old], [new]) = (old, new)
            && !matches!(key, "policy" | "nat" | "route" | "in")
        {
            // What stands once is the same thing, whatever it says.
            return self.pair(Some(key), *old, *new);
        }
        let pairs = match_up(key, (old, self.old), (new, self.new));
        let mut partner_of_new = vec![false; new.len()];
        let mut both = Vec::new();
        for (place, (section, partner)) in old.iter().zip(&pairs).enumerate() {
            if let Some((other_place, same, other)) =
                partner.and_then(|(at, same)| Some((at, same, new.get(at)?)))
            {
                if let Some(taken) = partner_of_new.get_mut(other_place) {
                    *taken = true;
                }
                both.push((place, other_place));
                if !same {
                    let label = label(key, *other, self.new);
                    self.pair(Some(&label), *section, *other);
                }
            } else {
                let (label, text) = (label(key, *section, self.old), line(*section, self.old, Purpose::Show));
                self.push(Kind::Removed, Some(&label), (Some(text), None), true);
            }
        }
        for (section, taken) in new.iter().zip(partner_of_new) {
            if !taken {
                let (label, text) = (label(key, *section, self.new), line(*section, self.new, Purpose::Show));
                self.push(Kind::Added, Some(&label), (None, Some(text)), true);
            }
        }
        if matches!(key, "policy" | "nat") {
            let order: Vec<usize> = both.iter().map(|(_, place)| *place).collect();
            let priority = |section: Option<&&dyn Told>, config| {
                let all =
                    section.map(|section| fields(*section, config, Purpose::Compare)).unwrap_or_default();
                all.into_iter().find(|field| field.key == "priority").map(|field| field.value)
            };
            for moved in out_of_order(&order) {
                let Some((from, to)) = both.get(moved) else { continue };
                // A priority that changed says it already.
                if priority(old.get(*from), self.old) == priority(new.get(*to), self.new)
                    && let Some(section) = new.get(*to)
                {
                    let place = |at: usize| Some(format!("place {}", at + 1));
                    self.push(
                        Kind::Moved,
                        Some(&label(key, *section, self.new)),
                        (place(*from), place(*to)),
                        true,
                    );
                }
            }
        }
    }
}

/// Sixteen bytes that two sections share only if they say the same. A name that nobody gave does not count.
fn digest(section: &dyn Told, config: &Config) -> [u8; 16] {
    let mut text = String::new();
    let unnamed = name_of(section, config).is_none();
    for field in fields(section, config, Purpose::Compare) {
        if field.key != "name" || !unnamed {
            text.extend([field.key, "=", &field.value, "\n"]);
        }
    }
    let shape = section.shape();
    for (child, sections) in shape.children.iter().zip(section.children()) {
        sections.iter().for_each(|s| text.extend([child.key, &line(*s, config, Purpose::Compare)]));
    }
    let mut short = [0; 16];
    short.iter_mut().zip(Sha256::digest(text.as_bytes())).for_each(|(to, from)| *to = from);
    short
}

fn value_of(section: &dyn Told, config: &Config, wanted: &str) -> Option<FieldText> {
    fields(section, config, Purpose::Show).into_iter().find(|field| field.key == wanted)
}

/// The name that the file gives it.
fn name_of(section: &dyn Told, config: &Config) -> Option<String> {
    value_of(section, config, "name").filter(|name| name.given).map(|name| name.value)
}

/// What a section inside another is called.
fn label(key: &str, section: &dyn Told, config: &Config) -> String {
    let identity = match key {
        "route" => value_of(section, config, "to"),
        "in" => value_of(section, config, "spi"),
        _ => value_of(section, config, "name"),
    };
    identity.map_or(key.to_owned(), |field| format!("{key} {}", field.value.trim_matches('"')))
}

/// For each section of the first list, its place in the second, and whether it is known to say the same.
fn match_up(
    key: &str,
    old: (&[&dyn Told], &Config),
    new: (&[&dyn Told], &Config),
) -> Vec<Option<(usize, bool)>> {
    let joined = |section: &dyn Told, config: &Config, keys: &[&str]| -> Option<[u8; 16]> {
        let mut text = String::new();
        for field in fields(section, config, Purpose::Compare) {
            if keys.contains(&field.key) {
                text.extend([field.key, &field.value, "\n"]);
            }
        }
        let mut short = [0; 16];
        short.iter_mut().zip(Sha256::digest(text.as_bytes())).for_each(|(to, from)| *to = from);
        (!text.is_empty()).then_some(short)
    };
    let named = |section: &dyn Told, config: &Config| {
        name_of(section, config)?;
        joined(section, config, &["name"])
    };
    let same = |section: &dyn Told, config: &Config| Some(digest(section, config));
    type Identity<'a> = (bool, &'a dyn Fn(&dyn Told, &Config) -> Option<[u8; 16]>);
    let hop = |s: &dyn Told, c: &Config| {
        joined(s, c, &["to", "via", "interface", "tunnel", "gateway", "blackhole"])
    };
    let to = |s: &dyn Told, c: &Config| joined(s, c, &["to"]);
    let spi = |s: &dyn Told, c: &Config| joined(s, c, &["spi"]);
    // A name goes before what is said: a rule with the same name and other words is the same rule, changed.
    let passes: Vec<Identity<'_>> = match key {
        "route" => vec![(true, &same), (false, &hop), (false, &to)],
        "in" => vec![(false, &spi)],
        _ => vec![(false, &named), (true, &same)],
    };
    let mut pairs = vec![None; old.0.len()];
    let mut left: Vec<usize> = (0..new.0.len()).collect();
    for (same, identity) in passes {
        let mut places: HashMap<[u8; 16], VecDeque<usize>> = HashMap::new();
        for &place in &left {
            if let Some(id) = new.0.get(place).and_then(|section| identity(*section, new.1)) {
                places.entry(id).or_default().push_back(place);
            }
        }
        let mut taken = vec![false; new.0.len()];
        for (section, pair) in old.0.iter().zip(&mut pairs) {
            if pair.is_none()
                && let Some(id) = identity(*section, old.1)
            {
                let place = places.get_mut(&id).and_then(VecDeque::pop_front);
                *pair = place.map(|place| (place, same));
                if let Some(taken) = place.and_then(|place| taken.get_mut(place)) {
                    *taken = true;
                }
            }
        }
        left.retain(|place| !taken.get(*place).copied().unwrap_or(false));
        if left.is_empty() {
            break;
        }
    }
    pairs
}

/// The fewest places of a list without which the rest ascends.
fn out_of_order(list: &[usize]) -> Vec<usize> {
    // The usual patience: for each length the place of the smallest end, and for each place the one before it.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(list.len());
    let value = |place: &usize| list.get(*place).copied().unwrap_or(usize::MAX);
    for (place, number) in list.iter().enumerate() {
        let length = ends.partition_point(|end| value(end) < *number);
        before.push(length.checked_sub(1).and_then(|shorter| ends.get(shorter)).copied());
        match ends.get_mut(length) {
            Some(end) => *end = place,
            None => ends.push(place),
        }
    }
    let mut keeps = vec![false; list.len()];
    let mut at = ends.last().copied();
    while let Some(place) = at {
        keeps.iter_mut().skip(place).take(1).for_each(|keep| *keep = true);
        at = before.get(place).copied().flatten();
    }
    keeps.iter().enumerate().filter(|(_, keep)| !**keep).map(|(place, _)| place).collect()
}

impl Difference {
    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What a running gateway cannot take up.
    pub fn needs_restart(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| !change.live)
    }

    /// Keeps the first changes, those that need a restart before the others, and the number of the rest.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        if self.changes.len() > most {
            self.changes.sort_by_key(|change| change.live);
            self.left_out += self.changes.len() - most;
            self.changes.truncate(most);
        }
        self
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            Kind::Added => '+',
            Kind::Removed => '-',
            Kind::Changed => '~',
            Kind::Moved => '>',
        };
        write!(f, "{sign} {}", self.section)?;
        if let Some(item) = &self.item {
            write!(f, " {item}")?;
        }
        let side = |text: &Option<String>, default: bool| match text {
            Some(text) => format!("{text}{}", if default { " (default)" } else { "" }),
            None => "(none)".to_owned(),
        };
        let arrow = || format!("{} → {}", side(&self.old, self.default.0), side(&self.new, self.default.1));
        match (self.kind, &self.key) {
            (Kind::Changed, Some(key)) if self.old.is_none() && self.new.is_none() => {
                write!(f, ": {key} changed (not shown)")?;
            }
            (Kind::Changed, key) => write!(f, ": {} {}", key.as_deref().unwrap_or("value"), arrow())?,
            (Kind::Moved, _) if self.old.is_some() => write!(f, ": moved, {}", arrow())?,
            (Kind::Moved, _) => write!(f, ": moved")?,
            (Kind::Added, _) => write!(f, ": {}", self.new.as_deref().unwrap_or_default())?,
            (Kind::Removed, _) => write!(f, ": {}", self.old.as_deref().unwrap_or_default())?,
        }
        if !self.live {
            f.write_str("  [restart]")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "… and {} more", self.left_out)?;
        }
        let (all, restart) = (self.changes.len() + self.left_out, self.needs_restart().count());
        match (all, restart) {
            (0, _) => write!(f, "no difference"),
            (1, 0) => write!(f, "1 change, which takes effect live"),
            (all, 0) => write!(f, "{all} changes, all take effect live"),
            (all, restart) => {
                let (plural, needs) =
                    (if all == 1 { "" } else { "s" }, if restart == 1 { "needs" } else { "need" });
                write!(f, "{all} change{plural}, {restart} of them {needs} a restart")
            }
        }
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
