//! Walks a table along the fields of its section: what is missing, what nobody knows.

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use super::{
    decode::{Context, Count, Presence, Section, SectionShape, Shape, Slot, Value},
    diagnostics::Problem,
    span::{At, Span},
    suggest,
};

/// Walks a table along the fields of its section.
pub(crate) struct Reader<'r, 'a, 'i> {
    table: &'r DeTable<'i>,
    at: Span,
    shape: SectionShape,
    field: usize,
    child: usize,
    pub cx: &'r mut Context<'a>,
}

impl<'r, 'a, 'i> Reader<'r, 'a, 'i> {
    /// Reports the keys that the section does not have.
    pub fn new(table: &'r DeTable<'i>, at: Span, shape: SectionShape, cx: &'r mut Context<'a>) -> Self {
        let known = || shape.fields.iter().map(|f| f.key).chain(shape.children.iter().map(|c| c.key));
        for key in table.keys() {
            if !known().any(|name| name == key.get_ref()) {
                unknown_key(key.get_ref(), key.span().into(), shape.title, known(), cx);
            }
        }
        Reader { table, at, shape, field: 0, child: 0, cx }
    }

    /// The next field, in the order of the declaration.
    pub fn field<T: Value>(&mut self) -> Slot<T> {
        let field = self.shape.fields[self.field];
        self.field += 1;
        if let Some(value) = self.table.get(field.key) {
            let span = value.span().into();
            return match T::decode(value.get_ref(), span, self.cx) {
                Some(value) => Slot::Given(At::new(value, span)),
                None => Slot::Broken,
            };
        }
        match field.presence {
            Presence::Optional(_) | Presence::Derived(_) => Slot::Absent,
            Presence::Required => {
                self.missing(field.key, field.example);
                Slot::Broken
            }
            Presence::Default(text) => DeValue::parse(text)
                .ok()
                .and_then(|value| T::decode(value.get_ref(), self.at, self.cx))
                .map_or(Slot::Broken, |value| Slot::Default(At::new(value, self.at))),
        }
    }

    /// The next child that stands exactly once.
    pub fn one<S: Section>(&mut self) -> Option<S::Draft> {
        let child = self.shape.children[self.child];
        self.child += 1;
        match self.table.get(child.key) {
            None => {
                self.missing(child.key, "{ … }");
                None
            }
            Some(value) => read_section::<S>(value.get_ref(), value.span().into(), self.cx),
        }
    }

    /// The next child that stands once or not at all.
    pub fn maybe<S: Section>(&mut self) -> Option<S::Draft> {
        let child = self.shape.children[self.child];
        self.child += 1;
        let value = self.table.get(child.key)?;
        read_section::<S>(value.get_ref(), value.span().into(), self.cx)
    }

    /// The next child that stands in a list. An element that is no table is reported and left out.
    pub fn many<S: Section>(&mut self) -> Vec<S::Draft> {
        let child = self.shape.children[self.child];
        self.child += 1;
        let Some(value) = self.table.get(child.key) else {
            if child.count == Count::Some {
                self.missing(child.key, "[ { … } ]");
            }
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            let wanted = Shape {
                words: "a list of tables".into(),
                example: format!("{} = [ {{ … }} ], or as sections {}", child.key, S::SHAPE.title),
                schema: Json::Null,
            };
            self.cx.wrong_type(value.span().into(), &wanted, value.get_ref());
            return Vec::new();
        };
        if array.is_empty() && child.count == Count::Some {
            let problem =
                Problem::new("missing-key", value.span().into(), format!("`{}` is empty", child.key));
            self.cx.report(problem.help("give at least one"));
        }
        array
            .iter()
            .filter_map(|item| read_section::<S>(item.get_ref(), item.span().into(), self.cx))
            .collect()
    }

    fn missing(&mut self, key: &str, example: &str) {
        if !self.cx.incomplete {
            self.cx.report(
                Problem::new("missing-key", self.at, format!("{} has no `{key}`", self.shape.title))
                    .help(format!("add `{key} = {example}`"))
                    .label("in this section"),
            );
        }
    }
}

/// Reads a table as a section.
fn read_section<S: Section>(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<S::Draft> {
    let DeValue::Table(table) = value else {
        let wanted = Shape { words: "a table".into(), example: "{ … }".into(), schema: Json::Null };
        cx.wrong_type(span, &wanted, value);
        return None;
    };
    Some(S::decode(table, span, cx))
}

/// Reports a key nobody knows, and what was probably meant.
pub(crate) fn unknown_key(
    key: &str,
    span: Span,
    section: &str,
    known: impl Iterator<Item = &'static str> + Clone,
    cx: &mut Context<'_>,
) {
    if cx.is_full() {
        cx.left_out += 1;
        return;
    }
    let mut help = match suggest::nearest(key, known.clone()) {
        Some(near) => format!("did you mean `{near}`? "),
        None => String::new(),
    };
    let all: Vec<&str> = known.collect();
    help += &format!("{section} takes: {}", all.join(", "));
    let key = suggest::shorten(key);
    cx.report(Problem::new("unknown-key", span, format!("{section} has no key `{key}`")).help(help));
}
