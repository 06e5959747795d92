//! What was probably meant.

/// Names longer than this are no slip of the finger, and comparing them takes time.
const LONGEST: usize = 64;

/// How many names are compared: a reader learns nothing from more, and a hostile file must not take minutes.
const MOST: usize = 1000;

/// The name most like `wrong`, when one is near enough.
pub(crate) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wrong.len() > LONGEST {
        return None;
    }
    let wrong = wrong.to_lowercase();
    let allowed = (wrong.chars().count() / 3).max(1);
    names
        .take(MOST)
        .filter(|name| name.len() <= LONGEST)
        .map(|name| (strsim::damerau_levenshtein(&wrong, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The names there are, for a help: all, or the first few and a count.
pub(crate) fn listing(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| shorten(n)).collect();
    let list = shown.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

/// Text of the file for a message: without control characters, and not too long.
pub(crate) fn shorten(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut short: String = text.chars().take(LONGEST).map(clean).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let known = ["driver", "device", "mtu", "ring"];
        assert_eq!(nearest("drivr", known.into_iter()), Some("driver"));
        assert_eq!(nearest("MTU", known.into_iter()), Some("mtu"));
        assert_eq!(nearest("rign", known.into_iter()), Some("ring"));
        assert_eq!(nearest("colour", known.into_iter()), None);
        assert_eq!(nearest(&"x".repeat(100_000), known.into_iter()), None);
    }

    #[test]
    fn quoted_text_is_short_and_clean() {
        assert_eq!(shorten("a\u{1b}[31m"), "a\u{fffd}[31m");
        assert_eq!(shorten(&"x".repeat(100)).chars().count(), LONGEST + 1);
    }
}
