//! Keeps keys out of what is shown: of source lines beside a marker, and of messages that quote the file.

/// A run of this many hexadecimal digits may be a key. The shortest key has 40; MACs, SPIs and the groups of an
/// IPv6 address are far shorter.
const SHORTEST_SECRET: usize = 20;

/// Masks what may be a key with as many `*`, so that every place in the text stays where it was: the value
/// of anything called `hex`, however badly written, and every long run of hexadecimal digits.
pub(crate) fn redact(text: String) -> String {
    let mut bytes = text.into_bytes();
    mask_values_of_hex(&mut bytes);
    mask_runs(&mut bytes);
    // Only ASCII bytes are written, over whole characters or over all bytes of a character.
    String::from_utf8(bytes).unwrap_or_default()
}

fn mask_runs(bytes: &mut [u8]) {
    let mut start = 0;
    while start < bytes.len() {
        let length = bytes[start..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if length >= SHORTEST_SECRET {
            bytes[start..start + length].fill(b'*');
        }
        start += length + 1;
    }
}

fn mask_values_of_hex(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(3).position(|w| w == b"hex") {
        at += found + 3;
        let after_name = at + count(&bytes[at..], |b| matches!(b, b' ' | b'\t' | b'"' | b'\''));
        if bytes.get(after_name) != Some(&b'=') {
            continue;
        }
        let value = after_name + 1 + count(&bytes[after_name + 1..], |b| matches!(b, b' ' | b'\t'));
        let (skip, length) = value_length(&bytes[value..]);
        let (from, to) = (value + skip, value + skip + length);
        bytes[from..to].iter_mut().filter(|b| !matches!(**b, b'\n' | b'\r')).for_each(|b| *b = b'*');
        at = to;
    }
}

/// Of a value's bytes: how many open it, and how many belong to it.
fn value_length(value: &[u8]) -> (usize, usize) {
    for quotes in [b"\"\"\"".as_slice(), b"'''"] {
        if value.starts_with(quotes) {
            let rest = &value[3..];
            return (3, rest.windows(3).position(|w| w == quotes).unwrap_or(rest.len()));
        }
    }
    match value.first() {
        Some(quote @ (b'"' | b'\'')) => (1, count(&value[1..], |b| b != *quote && b != b'\n')),
        _ => (0, count(value, |b| !matches!(b, b',' | b'}' | b'\n' | b'#'))),
    }
}

fn count(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|b| wanted(**b)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_masked_and_the_rest_is_not() {
        let shown = |text: &str| redact(text.to_owned());
        assert_eq!(shown("key = { hex = \"00ff\" }"), "key = { hex = \"****\" }");
        assert_eq!(shown("hex=00ff, b = 1"), "hex=****, b = 1");
        assert_eq!(shown("hex = 'ab\nx = 1"), "hex = '**\nx = 1");
        assert_eq!(shown("hex = \"\"\"ab\ncd\"\"\" x"), "hex = \"\"\"**\n**\"\"\" x");
        assert_eq!(shown("key = \"000102030405060708090a0b\""), "key = \"************************\"");
        assert_eq!(shown("hex = \"clé\""), "hex = \"****\"");
        for kept in ["spi = 0xdeadbeef", "2001:db8::ffff:ffff:ffff:ffff", "02:00:00:00:00:01", "hexagon"] {
            assert_eq!(shown(kept), kept);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_place_moves(text in "\\PC*(hex ?= ?[\"']?\\PC*)?") {
            let shown = redact(text.clone());
            proptest::prop_assert_eq!(shown.len(), text.len());
            proptest::prop_assert_eq!(shown.matches('\n').count(), text.matches('\n').count());
        }
    }
}
