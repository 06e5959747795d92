//! From bytes to a TOML table, with a bound on everything and every syntax error.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_parser::lexer::TokenKind;

use super::decode::{Context, NameList, Names, Section, Shape};
use super::diagnostics::Problem;
use super::model::{
    Gateway, GatewayDraft, Interface, InterfaceDraft, Port, PortDraft, System, SystemDraft, Tunnel,
    TunnelDraft,
};
use super::reader::unknown_key;
use super::span::{At, Span};
use super::types::Name;

/// The sections at the top of a file.
pub(crate) const TOP: [&str; 5] = ["system", "port", "gateway", "interface", "tunnel"];

/// A dotted key of the schema has at most four parts. More than this and the tables inside tables would be so deep
/// that taking them apart again overflows the stack; arrays and inline tables are bounded by `toml` itself.
const MOST_PARTS: usize = 8;

/// The whole file while its problems are still being found.
#[derive(Debug)]
pub(crate) struct Draft {
    pub system: SystemDraft,
    pub ports: Vec<PortDraft>,
    pub gateways: Vec<GatewayDraft>,
    pub interfaces: Vec<InterfaceDraft>,
    pub tunnels: Vec<TunnelDraft>,
}

/// Refuses keys with too many parts before anything is built from them.
pub(crate) fn too_deep(text: &str) -> Option<Problem> {
    let mut parts = 1;
    for token in toml_parser::Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => parts += 1,
            TokenKind::Atom | TokenKind::BasicString | TokenKind::LiteralString | TokenKind::Whitespace => {}
            _ => parts = 1,
        }
        if parts > MOST_PARTS {
            let span = Span { start: token.span().start(), end: token.span().end() };
            let problem = Problem::new("too-deep", span, format!("a key with more than {MOST_PARTS} parts"));
            return Some(problem.help("keys have at most four parts, such as [tunnel.dc.out]"));
        }
    }
    None
}

/// Parses the text; syntax errors go to the context, what can be read comes back.
pub(crate) fn parse<'i>(text: &'i str, cx: &mut Context<'_>) -> DeTable<'i> {
    let (document, errors) = DeTable::parse_recoverable(text);
    cx.incomplete = !errors.is_empty();
    for error in errors {
        let span = error.span().map_or(Span { start: text.len(), end: text.len() }, Span::from);
        cx.report(Problem::new("syntax", span, error.message()).help(
            "the file is TOML: [section] headers, then one `key = value` a line; strings stand in double quotes",
        ));
    }
    document.into_inner()
}

/// Reads every section.
pub(crate) fn decode(document: &DeTable<'_>, path: &Path, cx: &mut Context<'_>) -> Draft {
    for key in document.keys().filter(|k| !TOP.contains(&k.get_ref().as_ref())) {
        unknown_key(key.get_ref(), key.span().into(), "the file", TOP.into_iter(), cx);
    }
    let ports = named(document, "port", cx);
    let gateways = named(document, "gateway", cx);
    let interfaces = named(document, "interface", cx);
    let tunnels = named(document, "tunnel", cx);
    cx.names = Names {
        ports: names(&ports),
        gateways: names(&gateways),
        interfaces: names(&interfaces),
        tunnels: names(&tunnels),
    };
    let mut draft = Draft {
        system: system(document, cx),
        ports: ports
            .iter()
            .map(|s| PortDraft { name: s.name(), ..Port::decode(s.table, s.span, cx) })
            .collect(),
        gateways: gateways
            .iter()
            .map(|s| GatewayDraft { name: s.name(), ..Gateway::decode(s.table, s.span, cx) })
            .collect(),
        interfaces: interfaces
            .iter()
            .map(|s| InterfaceDraft { name: s.name(), ..Interface::decode(s.table, s.span, cx) })
            .collect(),
        tunnels: tunnels
            .iter()
            .map(|s| TunnelDraft { name: s.name(), ..Tunnel::decode(s.table, s.span, cx) })
            .collect(),
    };
    super::derive::fill(&mut draft, path, cx);
    draft
}

fn system(document: &DeTable<'_>, cx: &mut Context<'_>) -> SystemDraft {
    let empty = DeTable::new();
    let Some(value) = document.get("system") else {
        return System::decode(&empty, Span::default(), cx);
    };
    let span = value.span().into();
    match value.get_ref() {
        DeValue::Table(table) => System::decode(table, span, cx),
        other => {
            not_a_table("system", span, other, cx);
            System::decode(&empty, span, cx)
        }
    }
}

fn not_a_table(name: &str, span: Span, found: &DeValue<'_>, cx: &mut Context<'_>) {
    let example = format!("a section [{name}]");
    cx.wrong_type(
        span,
        &Shape { words: "a section".into(), example, schema: serde_json::Value::Null },
        found,
    );
}

/// A section `[kind.name]`.
struct Named<'t, 'i> {
    text: &'t str,
    valid: Option<Name>,
    table: &'t DeTable<'i>,
    /// The name in the header.
    span: Span,
}

impl Named<'_, '_> {
    fn name(&self) -> Option<At<Name>> {
        self.valid.clone().map(|name| At::new(name, self.span))
    }
}

fn names(sections: &[Named<'_, '_>]) -> NameList {
    let mut list = NameList::default();
    sections.iter().for_each(|section| list.push(section.text));
    list
}

/// The sections of one kind in the order of the file.
fn named<'t, 'i>(document: &'t DeTable<'i>, kind: &str, cx: &mut Context<'_>) -> Vec<Named<'t, 'i>> {
    let Some(value) = document.get(kind) else {
        return Vec::new();
    };
    let DeValue::Table(all) = value.get_ref() else {
        not_a_table(&format!("{kind}.NAME"), value.span().into(), value.get_ref(), cx);
        return Vec::new();
    };
    let mut entries: Vec<(&Spanned<_>, &Spanned<DeValue<'i>>)> = all.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut sections = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let span = key.span().into();
        let text: &str = key.get_ref();
        let valid = match <Name as super::decode::Text>::read(text) {
            Ok(name) => Some(name),
            Err(why) => {
                cx.report(Problem::new(why.code, span, why.message).help(why.help));
                None
            }
        };
        match value.get_ref() {
            DeValue::Table(table) => sections.push(Named { text, valid, table, span }),
            other => not_a_table(&format!("{kind}.NAME"), value.span().into(), other, cx),
        }
    }
    sections
}
