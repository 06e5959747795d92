//! From a parsed TOML table to a section's fields: every field is tried, every problem is kept.

use std::path::Path;

use serde_json::{Value as Json, json};
use toml::de::{DeTable, DeValue};

use super::diagnostics::{MOST_PROBLEMS, Problem};
use super::keys::Environment;
use super::span::{At, Span};

/// What a decoder may ask and tell.
pub(crate) struct Context<'a> {
    /// Relative paths of the file start here.
    pub base_dir: &'a Path,
    /// Looks up environment variables.
    pub environment: &'a dyn Environment,
    /// The permission bits of the configuration file itself, where it is a file.
    pub file_mode: Option<u32>,
    /// What the box is called, unless the file says it. Otherwise the name of the file.
    pub box_name: Option<&'a str>,
    /// The names each kind of section declares, in the order of the file.
    pub names: Names,
    /// The text has syntax errors: parts are lost, so nothing is called missing or undefined.
    pub incomplete: bool,
    pub problems: Vec<Problem>,
    /// How many problems came after the list was full.
    pub left_out: usize,
}

/// The names that references resolve to; the index is the identity.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub ports: NameList,
    pub gateways: NameList,
    pub interfaces: NameList,
    pub tunnels: NameList,
}

/// Names in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct NameList {
    pub list: Vec<String>,
    index: std::collections::HashMap<String, usize>,
}

impl NameList {
    pub fn push(&mut self, name: &str) {
        self.index.insert(name.to_owned(), self.list.len());
        self.list.push(name.to_owned());
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }
}

impl Context<'_> {
    /// Keeps a problem, or counts it once the list is full.
    pub fn report(&mut self, problem: Problem) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        } else if problem.severity == super::Severity::Error {
            self.left_out += 1;
        }
    }

    /// Whether the list is full: then there is no use in finding good words for another problem.
    pub fn is_full(&self) -> bool {
        self.problems.len() >= MOST_PROBLEMS
    }

    /// Says that a value is of another type than it must be.
    pub fn wrong_type(&mut self, span: Span, wanted: &Shape, found: &DeValue<'_>) {
        let article = |word: &str| match word {
            "array" | "integer" => format!("an {word}"),
            _ => format!("a {word}"),
        };
        self.report(
            Problem::new(
                "wrong-type",
                span,
                format!("expected {}, found {}", wanted.words, article(found.type_str())),
            )
            .help(format!("write it as {}", wanted.example))
            .label(format!("this is {}", article(found.type_str()))),
        );
    }
}

/// How a value is written: in words for messages and the documentation, as an example, and as JSON Schema.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// With its article: "a prefix".
    pub words: String,
    /// In TOML.
    pub example: String,
    /// Draft 2020-12.
    pub schema: Json,
}

/// A value that stands in the file.
pub(crate) trait Value: Sized {
    /// Reads the value, or reports what is wrong with it.
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self>;
    /// How it is written.
    fn shape() -> Shape;
}

/// Why a text is not what it must be.
#[derive(Debug)]
pub(crate) struct Complaint {
    pub code: &'static str,
    pub message: String,
    pub help: String,
}

impl Complaint {
    /// A value that is wrong on its own.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Complaint { code: "bad-value", message: message.into(), help: help.into() }
    }
}

/// A value that is written as a string.
pub(crate) trait Text: Sized {
    /// What it is called, with its article.
    const WORDS: &'static str;
    /// An example, without quotes.
    const EXAMPLE: &'static str;
    /// A regular expression for the schema, where one says something.
    const PATTERN: Option<&'static str> = None;
    /// Reads it.
    fn read(text: &str) -> Result<Self, Complaint>;
}

impl<T: Text> Value for T {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let DeValue::String(text) = value else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        match T::read(text) {
            Ok(value) => Some(value),
            Err(why) => {
                cx.report(Problem::new(why.code, span, why.message).help(why.help));
                None
            }
        }
    }

    fn shape() -> Shape {
        let mut schema = json!({ "type": "string" });
        if let Some(pattern) = T::PATTERN {
            schema["pattern"] = json!(pattern);
        }
        Shape { words: T::WORDS.to_owned(), example: format!("\"{}\"", T::EXAMPLE), schema }
    }
}

impl Value for bool {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        if value.as_bool().is_none() {
            cx.wrong_type(span, &Self::shape(), value);
        }
        value.as_bool()
    }

    fn shape() -> Shape {
        Shape { words: "true or false".into(), example: "true".into(), schema: json!({ "type": "boolean" }) }
    }
}

/// A list: a wrong element does not hide the next.
impl<T: Value> Value for Vec<At<T>> {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let DeValue::Array(array) = value else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        let decoded: Vec<Option<At<T>>> = array
            .iter()
            .map(|item| {
                let span = item.span().into();
                T::decode(item.get_ref(), span, cx).map(|value| At::new(value, span))
            })
            .collect();
        decoded.into_iter().collect()
    }

    fn shape() -> Shape {
        let item = T::shape();
        Shape {
            words: format!("a list, each element {}", item.words),
            example: format!("[{}]", item.example),
            schema: json!({ "type": "array", "items": item.schema }),
        }
    }
}

/// An integer of the file as an `i128`, which holds every number a field could mean.
pub(crate) fn integer(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    // Only a number of more than 38 digits does not fit; it is out of every range.
    Some(i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX))
}

/// What became of a field.
#[derive(Debug, Clone)]
pub(crate) enum Slot<T> {
    /// Not in the file, and no default.
    Absent,
    /// In the file but wrong, or missing where it must be; reported already.
    Broken,
    /// Not in the file; the default.
    Default(At<T>),
    /// In the file.
    Given(At<T>),
}

impl<T> Slot<T> {
    /// The value, given or default.
    pub fn get(&self) -> Option<&At<T>> {
        match self {
            Slot::Given(at) | Slot::Default(at) => Some(at),
            _ => None,
        }
    }

    /// The value where the file gives it.
    pub fn given(&self) -> Option<&At<T>> {
        match self {
            Slot::Given(at) => Some(at),
            _ => None,
        }
    }

    /// The file says something here, right or wrong.
    pub fn is_present(&self) -> bool {
        matches!(self, Slot::Given(_) | Slot::Broken)
    }

    /// Puts a derived value where the file says nothing.
    pub fn derive(&mut self, value: T, span: Span) {
        if matches!(self, Slot::Absent) {
            *self = Slot::Default(At::new(value, span));
        }
    }

    pub fn into_value(self) -> Option<At<T>> {
        match self {
            Slot::Given(at) | Slot::Default(at) => Some(at),
            _ => None,
        }
    }
}

/// Whether a field must be written, and what holds when it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// An error when it is missing.
    Required,
    /// Absent is a meaning of its own; the words say which.
    Optional(&'static str),
    /// This TOML holds when it is missing.
    Default(&'static str),
    /// Computed when it is missing; the words say how.
    Derived(&'static str),
}

/// One key of a section, declared once in `model.rs`: messages, the schema and the documentation come from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub key: &'static str,
    pub docs: &'static [&'static str],
    pub presence: Presence,
    /// In TOML; a test reads it.
    pub example: &'static str,
    pub shape: fn() -> Shape,
    /// Reads the example; for the test.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the test of the examples reads it"))]
    pub accepts: fn(&DeValue<'_>, &mut Context<'_>) -> bool,
}

/// How often a section stands inside another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// Exactly once.
    One,
    /// Once, or not at all.
    Maybe,
    /// At least once, as a list.
    Some,
    /// Any number, as a list.
    Many,
}

/// A section inside a section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub key: &'static str,
    pub docs: &'static [&'static str],
    pub count: Count,
    pub section: fn() -> SectionShape,
}

/// What the schema and the documentation need of a section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SectionShape {
    pub title: &'static str,
    pub docs: &'static [&'static str],
    pub fields: &'static [Field],
    pub children: &'static [Child],
}

/// A table of the file with declared keys.
pub(crate) trait Section: Sized {
    /// The section while its problems are still being found: every field may be missing.
    type Draft;
    const SHAPE: SectionShape;
    /// Reads what can be read.
    fn decode(table: &DeTable<'_>, at: Span, cx: &mut Context<'_>) -> Self::Draft;
    /// The section, when nothing in it was wrong.
    fn finish(draft: Self::Draft) -> Option<Self>;
}

/// Declares a section: the Rust struct, its draft, how it is read, and its documentation, from one list.
///
/// A field is `"key" name: Type, presence "default or words", "example";` with presence `required`,
/// `optional`, `default` or `derived`. A child is `"key" name: one|maybe|some|many Section;`. A computed field stands
/// only in the struct: checks fill it.
macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        $name:ident, $draft:ident, $title:literal {
            $(
                $(#[doc = $field_doc:literal])*
                $key:literal $field:ident : $ty:ty, $presence:ident $($rule:literal)?, $example:literal;
            )*
        }
        children {
            $(
                $(#[doc = $child_doc:literal])*
                $child_key:literal $child:ident : $count:ident $child_ty:ident;
            )*
        }
        computed {
            $(
                $(#[doc = $computed_doc:literal])*
                $computed:ident : $computed_ty:ty;
            )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone)]
        pub struct $name {
            /// Where the section starts.
            #[allow(dead_code, reason = "a section that is only part of a value is not asked where it was")]
            pub at: Span,
            $( $(#[doc = $computed_doc])* pub $computed: $computed_ty, )*
            $( $(#[doc = $field_doc])* pub $field: section!(@final $presence $ty), )*
            $( $(#[doc = $child_doc])* pub $child: section!(@final_child $count $child_ty), )*
        }

        /// The section while its problems are still being found.
        #[derive(Debug)]
        pub(crate) struct $draft {
            pub at: Span,
            $( pub $computed: Option<$computed_ty>, )*
            $( pub $field: Slot<$ty>, )*
            $( pub $child: section!(@draft_child $count $child_ty), )*
        }

        impl Section for $name {
            type Draft = $draft;

            const SHAPE: SectionShape = SectionShape {
                title: $title,
                docs: &[$($doc),*],
                fields: &[$( Field {
                    key: $key,
                    docs: &[$($field_doc),*],
                    presence: section!(@presence $presence $($rule)?),
                    example: $example,
                    shape: <$ty as Value>::shape,
                    accepts: |value, cx| <$ty as Value>::decode(value, Span::default(), cx).is_some(),
                } ),*],
                children: &[$( Child {
                    key: $child_key,
                    docs: &[$($child_doc),*],
                    count: section!(@count $count),
                    section: || <$child_ty as Section>::SHAPE,
                } ),*],
            };

            fn decode(table: &DeTable<'_>, at: Span, cx: &mut Context<'_>) -> $draft {
                #[allow(unused_mut, unused_variables, reason = "a section may have no fields or no children")]
                let mut reader = Reader::new(table, at, Self::SHAPE, cx);
                $draft {
                    at,
                    $( $computed: None, )*
                    $( $field: reader.field::<$ty>(), )*
                    $( $child: section!(@read_child reader $count $child_ty), )*
                }
            }

            fn finish(draft: $draft) -> Option<Self> {
                Some($name {
                    at: draft.at,
                    $( $computed: draft.$computed?, )*
                    $( $field: section!(@finish $presence draft.$field), )*
                    $( $child: section!(@finish_child $count $child_ty, draft.$child), )*
                })
            }
        }

        impl $crate::config::written::Told for $name {
            fn at(&self) -> Span {
                self.at
            }

            fn shape(&self) -> SectionShape {
                Self::SHAPE
            }

            #[allow(unused_assignments, unused_mut, unused_variables, reason = "a section may have no fields")]
            fn fields(&self, visit: &mut dyn FnMut(usize, Span, &dyn $crate::config::written::AnyWritten)) {
                let mut number = 0;
                $(
                    section!(@tell $presence self.$field, number, visit);
                    number += 1;
                )*
            }

            fn children(&self) -> Vec<Vec<&dyn $crate::config::written::Told>> {
                vec![$( section!(@children $count self.$child) ),*]
            }
        }
    };

    (@final optional $ty:ty) => { Option<At<$ty>> };
    (@final $presence:ident $ty:ty) => { At<$ty> };
    (@finish optional $slot:expr) => {
        match $slot { Slot::Broken => return None, slot => slot.into_value() }
    };
    (@finish $presence:ident $slot:expr) => { $slot.into_value()? };

    (@presence required) => { Presence::Required };
    (@presence optional $words:literal) => { Presence::Optional($words) };
    (@presence default $toml:literal) => { Presence::Default($toml) };
    (@presence derived $words:literal) => { Presence::Derived($words) };

    (@count one) => { Count::One };
    (@count maybe) => { Count::Maybe };
    (@count some) => { Count::Some };
    (@count many) => { Count::Many };

    (@final_child one $ty:ident) => { $ty };
    (@final_child maybe $ty:ident) => { Option<$ty> };
    (@final_child $count:ident $ty:ident) => { Vec<$ty> };
    (@draft_child one $ty:ident) => { Option<<$ty as Section>::Draft> };
    (@draft_child maybe $ty:ident) => { Option<<$ty as Section>::Draft> };
    (@draft_child $count:ident $ty:ident) => { Vec<<$ty as Section>::Draft> };
    (@read_child $reader:ident one $ty:ident) => { $reader.one::<$ty>() };
    (@read_child $reader:ident maybe $ty:ident) => { $reader.maybe::<$ty>() };
    (@read_child $reader:ident $count:ident $ty:ident) => { $reader.many::<$ty>() };
    (@tell optional $field:expr, $number:ident, $visit:ident) => {
        if let Some(at) = &$field {
            $visit($number, at.span, &at.value);
        }
    };
    (@tell $presence:ident $field:expr, $number:ident, $visit:ident) => {
        $visit($number, $field.span, &$field.value)
    };
    (@children one $child:expr) => { vec![&$child as &dyn $crate::config::written::Told] };
    (@children $count:ident $child:expr) => {
        $child.iter().map(|section| section as &dyn $crate::config::written::Told).collect()
    };

    (@finish_child one $ty:ident, $draft:expr) => { <$ty as Section>::finish($draft?)? };
    (@finish_child maybe $ty:ident, $draft:expr) => {
        match $draft { Some(draft) => Some(<$ty as Section>::finish(draft)?), None => None }
    };
    (@finish_child $count:ident $ty:ident, $draft:expr) => {
        $draft.into_iter().map(<$ty as Section>::finish).collect::<Option<Vec<_>>>()?
    };
}

pub(crate) use section;
