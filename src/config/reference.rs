//! What the tables of fields say about the file: the JSON Schema for editors, and the reference for people.
//!
//! `tests/config_docs.rs` compares both with `docs/`, so they cannot go stale.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use super::decode::{Count, Field, Presence, Section, SectionShape};
use super::model::{Gateway, Interface, Port, System, Tunnel};

/// The sections at the top of the file, and whether each is one of many under a name.
fn top() -> [(&'static str, SectionShape, bool); 5] {
    [
        ("system", System::SHAPE, false),
        ("port", Port::SHAPE, true),
        ("gateway", Gateway::SHAPE, true),
        ("interface", Interface::SHAPE, true),
        ("tunnel", Tunnel::SHAPE, true),
    ]
}

/// A doc comment as one text.
fn prose(docs: &[&str]) -> String {
    docs.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// The JSON Schema of the file (draft 2020-12). It knows keys, types and ranges; what must fit together between
/// sections is for `causeway check`.
pub fn json_schema() -> Json {
    let mut properties = Map::new();
    for (key, shape, named) in top() {
        let section = section_schema(shape);
        let schema = match named {
            false => section,
            true => json!({
                "type": "object",
                "description": prose(shape.docs),
                "patternProperties": { "^[a-z0-9-]{1,32}$": section },
                "additionalProperties": false,
            }),
        };
        properties.insert(key.to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Causeway gateway configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn section_schema(section: SectionShape) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in section.fields {
        let mut schema = (field.shape)().schema;
        schema["description"] = json!(prose(field.docs));
        if let Presence::Default(toml) = field.presence {
            schema["default"] = toml_to_json(toml);
        }
        if field.presence == Presence::Required {
            required.push(field.key);
        }
        properties.insert(field.key.to_owned(), schema);
    }
    for child in section.children {
        let inner = section_schema((child.section)());
        let mut schema = match child.count {
            Count::One | Count::Maybe => inner,
            Count::Some => json!({ "type": "array", "items": inner, "minItems": 1 }),
            Count::Many => json!({ "type": "array", "items": inner }),
        };
        schema["description"] = json!(prose(child.docs));
        if !matches!(child.count, Count::Many | Count::Maybe) {
            required.push(child.key);
        }
        properties.insert(child.key.to_owned(), schema);
    }
    json!({
        "type": "object",
        "description": prose(section.docs),
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// A default, which is declared in TOML.
fn toml_to_json(text: &str) -> Json {
    let document: Result<toml::Table, _> = toml::from_str(&format!("value = {text}"));
    let value = document.ok().and_then(|mut table| table.remove("value"));
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or(Json::Null)
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Written by `UPDATE_DOCS=1 cargo test --test config_docs` from src/config/model.rs. Change it there. -->

One TOML file describes one box: its lines (`port`), the VLANs on them (`interface`), the virtual gateways they lead
into (`gateway`, with its policies, routes and address mappings), and the IPsec tunnels (`tunnel`). The folders under
`pipelines/` hold complete examples.

`causeway check FILE` reads a file without starting anything and lists everything that is wrong with it, each with
its line and what would be right. Editors that know JSON Schema check while you type: `docs/schema.json`.

**Names** of ports, gateways, interfaces and tunnels have 1 to 32 characters of `a-z`, `0-9` and `-`.
**Prefixes** have no bits beyond their length: `10.0.0.0/8`, not `10.1.2.3/8`.
**Times** have a unit: `50us`, `20ms`, `300s`. **Paths** start at the directory of the file.

**Keys** are an AES key of 16, 24 or 32 bytes followed by a salt of 4 bytes, as 40, 56 or 72 hexadecimal digits.
`head -c 20 /dev/urandom | xxd -p` makes one for AES-128-GCM, `head -c 36 /dev/urandom | xxd -p -c 36` one for
AES-256-GCM. The two ends of a tunnel have the same two keys, one for each direction; no key is used twice. A file
with a key must be closed to others (`chmod 600`; a group may read), and so must the configuration file if a key
stands in it. Keys appear in no message, log or statistic.
";

/// The reference of the file, in Markdown.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (_, shape, _) in top() {
        section_page(shape, 2, &mut page);
    }
    page
}

fn section_page(section: SectionShape, level: usize, page: &mut String) {
    // Writing to a String does not fail.
    let _ = write!(page, "\n{} `{}`\n\n{}\n", "#".repeat(level), section.title, prose(section.docs));
    if !section.fields.is_empty() {
        page.push_str("\n| key | value | without it | meaning |\n|---|---|---|---|\n");
    }
    for field in section.fields {
        let _ = writeln!(
            page,
            "| `{}` | {}, such as `{}` | {} | {} |",
            field.key,
            cell(&(field.shape)().words),
            cell(field.example),
            cell(&without(field)),
            cell(&meaning(field)),
        );
    }
    for child in section.children {
        let inner = (child.section)();
        let (count, without) = match child.count {
            Count::One => ("one", "**required**"),
            Count::Maybe => ("one", "none"),
            Count::Some => ("a list of at least one", "**required**"),
            Count::Many => ("a list of sections", "none"),
        };
        let _ = writeln!(
            page,
            "| `{}` | {count} `{}` | {without} | {} |",
            child.key,
            cell(inner.title),
            cell(&prose(child.docs))
        );
    }
    let mut shown: Vec<&str> = Vec::new();
    for inner in section.children.iter().map(|child| (child.section)()) {
        if !shown.contains(&inner.title) {
            shown.push(inner.title);
            section_page(inner, level + 1, page);
        }
    }
}

/// What the field means, with a line for each choice it has.
fn meaning(field: &Field) -> String {
    let mut text = prose(field.docs);
    let schema = (field.shape)().schema;
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    for choice in choices {
        if let (Some(word), Some(docs)) = (choice["const"].as_str(), choice["description"].as_str()) {
            let _ = write!(text, "<br>`{word}`: {docs}");
        }
    }
    text
}

fn without(field: &Field) -> String {
    match field.presence {
        Presence::Required => "**required**".to_owned(),
        Presence::Optional(words) | Presence::Derived(words) => words.to_owned(),
        Presence::Default(toml) => format!("`{toml}`"),
    }
}

/// A text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::{Context, Names};
    use toml::de::DeValue;

    fn each(section: SectionShape, see: &mut dyn FnMut(SectionShape, &Field)) {
        section.fields.iter().for_each(|field| see(section, field));
        section.children.iter().for_each(|child| each((child.section)(), see));
    }

    fn accepted(field: &Field, toml: &str) -> bool {
        let environment = |_: &str| Some("00112233445566778899aabbccddeeff01020304".to_owned());
        let mut names = Names::default();
        names.ports.push("line");
        ["vpc", "internet", "hub"].into_iter().for_each(|name| names.gateways.push(name));
        names.interfaces.push("wan");
        ["dc", "dc-2"].into_iter().for_each(|name| names.tunnels.push(name));
        let mut cx = Context {
            base_dir: std::path::Path::new("."),
            environment: &environment,
            file_mode: None,
            box_name: None,
            names,
            incomplete: false,
            problems: Vec::new(),
            left_out: 0,
        };
        let value = DeValue::parse(toml).unwrap_or_else(|e| panic!("{}: {toml}: {e}", field.key));
        (field.accepts)(value.get_ref(), &mut cx) && cx.problems.is_empty()
    }

    #[test]
    fn examples_and_defaults_are_accepted() {
        let mut fields = 0;
        for (_, section, _) in top() {
            each(section, &mut |section, field| {
                fields += 1;
                assert!(!field.docs.is_empty(), "{} {}", section.title, field.key);
                assert!(
                    accepted(field, field.example),
                    "{} {} = {}",
                    section.title,
                    field.key,
                    field.example
                );
                if let Presence::Default(toml) = field.presence {
                    assert!(accepted(field, toml), "{} {} = {toml}", section.title, field.key);
                    assert_ne!(toml_to_json(toml), Json::Null, "{toml}");
                }
            });
        }
        assert!(fields > 50, "only {fields} fields were seen");
    }
}
