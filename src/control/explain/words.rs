//! A packet in words, as people ask about it: `from 10.0.0.5 to 10.2.0.9 tcp 51000>443 in vpc-a`.

use std::{net::IpAddr, str::FromStr};

use super::{Content, Entry, Packet};
use crate::{config::Side, wire::ip::protocol};

const ALLOWED: &str =
    "from, to, tcp, udp, icmp, icmpv6, protocol, esp, gre, ospf, sctp, in, on, size, df, ttl";

fn set<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{what} is said twice; say it once")),
    }
}

fn number<T: FromStr>(word: &str, what: &str, range: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is no {what}: write a number, {range}"))
}

fn address(word: Option<&str>, after: &str) -> Result<IpAddr, String> {
    let word =
        word.ok_or_else(|| format!("an address is missing after {after:?}, as in \"{after} 10.0.0.5\""))?;
    let hint = "write an IPv4 or IPv6 address, such as 10.0.0.5 or 2001:db8::5";
    word.parse().map_err(|_| format!("{word:?} after {after:?} is no address: {hint}"))
}

fn ports(word: &str) -> Result<Content, String> {
    let range = "1 to 65535, as in \"51000>443\"";
    let (source, destination) = word.split_once('>').unwrap_or(("", word));
    // Of what nothing is said: a port that no service has.
    let source = if source.is_empty() { 51_000 } else { number(source, "port", range)? };
    Ok(Content::Ports(source, number(destination, "port", range)?))
}

fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
}

/// Reads a packet's words.
///
/// # Errors
/// What is wrong, and what is allowed there.
pub fn parse(text: &str) -> Result<Packet, String> {
    let mut words = text.split_whitespace().peekable();
    let (mut source, mut destination, mut above, mut entry) = (None, None, None, None);
    let (mut size, mut df, mut ttl) = (None, None, None);
    while let Some(word) = words.next() {
        match word {
            "from" => set(&mut source, address(words.next(), "from")?, "\"from\"")?,
            "to" => set(&mut destination, address(words.next(), "to")?, "\"to\"")?,
            "tcp" | "udp" => {
                let number = if word == "tcp" { protocol::TCP } else { protocol::UDP };
                let hint = || format!("ports are missing after {word:?}: write \"{word} 51000>443\"");
                let content = ports(words.next().ok_or_else(hint)?)?;
                set(&mut above, (number, content), "the protocol")?;
            }
            "icmp" | "icmpv6" => {
                let (proto, echo) =
                    if word == "icmp" { (protocol::ICMPV4, 8) } else { (protocol::ICMPV6, 128) };
                let range = "0 to 255, as in \"icmp 8/0\"";
                let mut content = Content::Icmp(echo, 0);
                if let Some(kind) = words.next_if(|word| is_number(word)) {
                    let (kind, code) = match kind.split_once('/') {
                        Some((kind, code)) => (kind, Some(code)),
                        None => (kind, words.next_if(|word| is_number(word))),
                    };
                    let code = code.map_or(Ok(0), |code| number(code, "ICMP code", range))?;
                    content = Content::Icmp(number(kind, "ICMP type", range)?, code);
                }
                set(&mut above, (proto, content), "the protocol")?;
            }
            "protocol" => {
                let word = words.next().ok_or("a number is missing after \"protocol\": 0 to 255")?;
                let number: u8 = number(word, "protocol", "0 to 255")?;
                set(&mut above, (number, Content::Opaque), "the protocol")?;
            }
            "gre" => set(&mut above, (47, Content::Opaque), "the protocol")?,
            "esp" => set(&mut above, (50, Content::Opaque), "the protocol")?,
            "ospf" => set(&mut above, (89, Content::Opaque), "the protocol")?,
            "sctp" => set(&mut above, (132, Content::Opaque), "the protocol")?,
            "in" => {
                let name = words.next().ok_or("the name of a gateway is missing after \"in\"")?;
                let side = match words.next_if(|word| matches!(*word, "from-peer" | "from-local")) {
                    Some("from-peer") => Side::Peer,
                    _ => Side::Local,
                };
                let entry_of = "where it comes in (\"in\" or \"on\")";
                set(&mut entry, Entry::Gateway(name.into(), side), entry_of)?;
            }
            "on" => {
                let name = words.next().ok_or("the name of an interface is missing after \"on\"")?;
                set(&mut entry, Entry::Interface(name.into()), "where it comes in (\"in\" or \"on\")")?;
            }
            "size" => {
                let word = words.next().ok_or("a number of bytes is missing after \"size\"")?;
                set(&mut size, number(word, "size", "in bytes, as in \"size 1500\"")?, "\"size\"")?;
            }
            "ttl" => {
                let word = words.next().ok_or("a number is missing after \"ttl\": 0 to 255")?;
                set(&mut ttl, number(word, "TTL", "0 to 255")?, "\"ttl\"")?;
            }
            "df" => set(&mut df, (), "\"df\"")?,
            "from-peer" | "from-local" => {
                return Err(format!("{word:?} goes behind a gateway: \"in GATEWAY {word}\""));
            }
            bare if above.is_none() && bare.parse::<u8>().is_ok() => {
                set(&mut above, (number(bare, "protocol", "0 to 255")?, Content::Opaque), "the protocol")?;
            }
            other => {
                let all = ALLOWED.split(", ");
                let near = all.min_by_key(|known| strsim::damerau_levenshtein(known, other));
                let near = near.filter(|near| strsim::damerau_levenshtein(near, other) <= 2);
                let near = near.map_or_else(String::new, |near| format!(" Did you mean {near}?"));
                return Err(format!("{other:?} says nothing about a packet.{near} Allowed are: {ALLOWED}"));
            }
        }
    }
    let missing = |what: &str, example: &str| format!("the packet has no {what}: add \"{example}\"");
    let source = source.ok_or_else(|| missing("source", "from 10.0.0.5"))?;
    let destination = destination.ok_or_else(|| missing("destination", "to 10.2.0.9"))?;
    let (protocol, content) = above.ok_or_else(|| missing("protocol", "tcp 51000>443"))?;
    let entry = entry.ok_or_else(|| missing("way in", "in GATEWAY\" or \"on INTERFACE"))?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(format!("{source} and {destination} are of two IP versions; both must be of one"));
    }
    let wrong = match (source.is_ipv4(), content, protocol) {
        (true, Content::Icmp(..), protocol::ICMPV6) => Some("icmpv6 goes over IPv6; write icmp"),
        (false, Content::Icmp(..), protocol::ICMPV4) => Some("icmp goes over IPv4; write icmpv6"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        return Err(wrong.into());
    }
    if df.is_some() && !source.is_ipv4() {
        return Err("df is for IPv4: no router fragments an IPv6 packet anyway".into());
    }
    let ttl = ttl.unwrap_or(64);
    Ok(Packet { source, destination, protocol, content, entry, size, dont_fragment: df.is_some(), ttl })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_a_packet() {
        let packet = parse("from 10.0.0.5 to 10.2.0.9 tcp 51000>443 in vpc-a").unwrap();
        assert_eq!((packet.source, packet.destination), ([10, 0, 0, 5].into(), [10, 2, 0, 9].into()));
        assert_eq!((packet.protocol, packet.content), (6, Content::Ports(51_000, 443)));
        assert_eq!(packet.entry, Entry::Gateway("vpc-a".into(), Side::Local));
        assert_eq!((packet.size, packet.dont_fragment, packet.ttl), (None, false, 64));
        let packet = parse("on wan size 1500 df ttl 1 udp 53 to 10.2.0.9 from 10.0.0.5").unwrap();
        assert_eq!(packet.content, Content::Ports(51_000, 53));
        assert_eq!(packet.entry, Entry::Interface("wan".into()));
        assert_eq!((packet.size, packet.dont_fragment, packet.ttl), (Some(1500), true, 1));
        let of = |words: &str| {
            let packet = parse(&format!("from 10.0.0.5 to 10.2.0.9 {words} in g from-peer")).unwrap();
            assert_eq!(packet.entry, Entry::Gateway("g".into(), Side::Peer));
            (packet.protocol, packet.content)
        };
        assert_eq!(of("icmp"), (1, Content::Icmp(8, 0)));
        assert_eq!(of("icmp 3/4"), (1, Content::Icmp(3, 4)));
        assert_eq!(of("icmp 3 4"), (1, Content::Icmp(3, 4)));
        assert_eq!(of("icmp 13"), (1, Content::Icmp(13, 0)));
        assert_eq!(of("protocol 103"), (103, Content::Opaque));
        assert_eq!(of("103"), (103, Content::Opaque));
        assert_eq!(of("gre"), (47, Content::Opaque));
        let packet = parse("from 2001:db8::5 to 2001:db8:1::9 icmpv6 on a").unwrap();
        assert_eq!((packet.protocol, packet.content), (58, Content::Icmp(128, 0)));
    }

    #[test]
    fn errors_say_what_is_allowed() {
        let both = "from 10.0.0.5 to 10.2.0.9";
        for (text, error) in [
            ("", "no source"),
            ("from 10.0.0.5", "add \"to 10.2.0.9\""),
            ("from 10.0.0 to 10.2.0.9", "is no address: write an IPv4 or IPv6"),
            ("from", "an address is missing"),
            (both, "add \"tcp 51000>443\""),
            (&format!("{both} tcp"), "ports are missing"),
            (&format!("{both} tcp 1>70000 in g"), "\"70000\" is no port"),
            (&format!("{both} tcp in g"), "\"in\" is no port"),
            (&format!("{both} tcp 80"), "no way in"),
            (&format!("{both} tcp 80 udp 80 in g"), "the protocol is said twice"),
            (&format!("{both} tcp 80 in g on i"), "said twice"),
            (&format!("{both} tpc 80 in g"), "Did you mean tcp?"),
            (&format!("{both} protocol 256 in g"), "0 to 255"),
            (&format!("{both} tcp 80 in g size big"), "\"big\" is no size"),
            (&format!("{both} tcp 80 in g ttl 256"), "is no TTL"),
            (&format!("{both} icmp 8/x in g"), "is no ICMP code"),
            (&format!("{both} icmpv6 in g"), "write icmp"),
            (&format!("{both} tcp 80 from-peer in g"), "goes behind a gateway"),
            ("from 10.0.0.5 to 2001:db8::1 tcp 80 in g", "two IP versions"),
            ("from 2001:db8::2 to 2001:db8::1 icmp in g", "write icmpv6"),
            ("from 2001:db8::2 to 2001:db8::1 tcp 80 in g df", "df is for IPv4"),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.contains(error), "{text:?} gives {found:?}, not {error:?}");
        }
    }
}
