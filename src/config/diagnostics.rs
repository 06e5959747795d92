//! What is wrong with a file: every problem, with its place, shown by `miette` or as JSON.

use std::fmt;

use miette::{
    Diagnostic, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use serde_json::{Value as Json, json};

use super::redact::redact;
use super::span::Span;

/// How many problems of one file are kept. What is above is counted and said in one line, so that a file of
/// a million wrong lines still gets an answer that can be read.
pub const MOST_PROBLEMS: usize = 500;

/// Whether a problem stops the configuration from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is used; somebody should look.
    Warning,
}

/// One thing wrong with the file.
#[derive(Debug, Clone)]
pub struct Problem {
    /// What kind of problem: the part after `config::`, stable over releases.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// The place, first; then the other places that matter, each with a word on why. Once they are part of
    /// [`Diagnostics`], the spans are of its source.
    pub places: Vec<(Span, String)>,
    line: usize,
    column: usize,
}

impl Problem {
    /// An error at `span`; `label` stands beside the marker.
    pub(crate) fn new(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Problem {
            code,
            severity: Severity::Error,
            message: redact(message.into()),
            help: None,
            places: vec![(span, "here".to_owned())],
            line: 1,
            column: 1,
        }
    }

    /// The same, as a warning.
    pub(crate) fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Problem { severity: Severity::Warning, ..Problem::new(code, span, message) }
    }

    /// Says what would be right.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(redact(help.into()));
        self
    }

    /// Changes the words beside the marker.
    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.places[0].1 = redact(label.into());
        self
    }

    /// Adds another place that matters.
    pub(crate) fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.places.push((span, redact(label.into())));
        self
    }

    /// The line of the place, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column of the place in characters, from 1.
    pub fn column(&self) -> usize {
        self.column
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(format!("config::{}", self.code)))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.places.iter().enumerate().map(|(i, (span, label))| {
            let range = (span.start, span.end.saturating_sub(span.start));
            match i {
                0 => LabeledSpan::new_primary_with_span(Some(label.clone()), range),
                _ => LabeledSpan::new_with_span(Some(label.clone()), range),
            }
        })))
    }
}

/// How many bytes of a line are shown. `miette` cannot lay out lines of many thousands, and nobody can read them.
const LONGEST_LINE: usize = 400;

/// The text of the file as it may be shown: keys are masked, long lines cut, and lines are found without a scan.
#[derive(Debug, Clone)]
pub struct Source {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Where the lines of a text start.
fn line_starts(text: &str) -> Vec<usize> {
    let after = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
    std::iter::once(0).chain(after).collect()
}

/// The line that holds a byte, from 0.
fn line_of(starts: &[usize], offset: usize) -> usize {
    starts.partition_point(|start| *start <= offset).saturating_sub(1)
}

/// The last start of a character at or before a byte.
fn boundary(text: &str, offset: usize) -> usize {
    let offset = offset.min(text.len());
    (0..=offset).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

/// The text with its keys masked, and the same with its long lines cut: places are found in the first and shown in
/// the second.
struct Pages {
    full: String,
    full_starts: Vec<usize>,
    shown: Source,
}

impl Pages {
    fn new(name: &str, text: &str) -> Self {
        let full = redact(text.to_owned());
        let mut shown = String::with_capacity(full.len());
        for line in full.split_inclusive('\n') {
            if line.len() <= LONGEST_LINE {
                shown.push_str(line);
                continue;
            }
            shown.push_str(&line[..boundary(line, LONGEST_LINE)]);
            shown.push_str(if line.ends_with('\n') { "…\n" } else { "…" });
        }
        let source = Source { name: name.to_owned(), line_starts: line_starts(&shown), text: shown };
        Pages { full_starts: line_starts(&full), full, shown: source }
    }

    /// The line and column, from 1, of a byte. Columns count characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let offset = boundary(&self.full, offset);
        let line = line_of(&self.full_starts, offset);
        (line + 1, self.full[self.full_starts[line]..offset].chars().count() + 1)
    }

    /// Where a span is marked: within its first line, and within what is shown of that.
    fn marked(&self, span: Span) -> Span {
        let start = boundary(&self.full, span.start);
        let line = line_of(&self.full_starts, start);
        let from = self.shown.line_starts[line];
        let next = self.shown.line_starts.get(line + 1).copied().unwrap_or(self.shown.text.len());
        let length = self.shown.text[from..next].trim_end_matches(['\n', '\r']).len();
        let place = |offset: usize| {
            let in_line = boundary(&self.full, offset).saturating_sub(self.full_starts[line]);
            boundary(&self.shown.text, from + in_line.min(length))
        };
        Span { start: place(start), end: place(span.end.max(start)) }
    }
}

impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let start = boundary(&self.text, span.offset());
        let end = boundary(&self.text, span.offset().saturating_add(span.len()));
        let first = line_of(&self.line_starts, start).saturating_sub(lines_before);
        let last = line_of(&self.line_starts, end).saturating_add(lines_after);
        let to = self.line_starts.get(last + 1).copied().unwrap_or(self.text.len());
        let line_start = self.line_starts[first];
        // Without context the contents start at the span itself: that is how `miette` asks for its line and column.
        let from = if lines_before == 0 { start } else { line_start };
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            &self.text.as_bytes()[from..to],
            (from, to - from).into(),
            first,
            self.text[line_start..from].chars().count(),
            last - first + 1,
        )))
    }
}

/// Everything wrong with one file.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    source: Source,
    /// The problems in the order of the file, warnings among them.
    pub problems: Vec<Problem>,
    /// How many more there were than [`MOST_PROBLEMS`].
    pub left_out: usize,
}

impl Diagnostics {
    /// Sorts the problems by place and finds their lines.
    pub(crate) fn new(name: &str, text: &str, mut problems: Vec<Problem>, left_out: usize) -> Self {
        problems.sort_by_key(|p| (p.places[0].0.start, p.places[0].0.end));
        problems
            .dedup_by(|b, a| a.code == b.code && a.places[0].0 == b.places[0].0 && a.message == b.message);
        let pages = Pages::new(name, text);
        for problem in &mut problems {
            (problem.line, problem.column) = pages.position(problem.places[0].0.start);
            for (span, _) in &mut problem.places {
                *span = pages.marked(*span);
            }
        }
        Diagnostics { source: pages.shown, problems, left_out }
    }

    /// A file that could not be read at all.
    pub(crate) fn unreadable(name: &str, problem: Problem) -> Self {
        Diagnostics::new(name, "", vec![problem], 0)
    }

    /// The text as it may be shown.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// How many errors there are, those left out included.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count() + self.left_out
    }

    /// The problems as a JSON array of `{file, line, column, severity, code, message, help}`.
    pub fn to_json(&self) -> Json {
        problems_to_json(self.source.name(), &self.problems)
    }
}

/// Problems as a JSON array: for editors, scripts and the control socket.
pub fn problems_to_json(file: &str, problems: &[Problem]) -> Json {
    let entry = |p: &Problem| {
        json!({
            "file": file,
            "line": p.line,
            "column": p.column,
            "severity": match p.severity { Severity::Error => "error", Severity::Warning => "warning" },
            "code": format!("config::{}", p.code),
            "message": p.message,
            "help": p.help,
        })
    };
    Json::Array(problems.iter().map(entry).collect())
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.errors();
        let plural = if errors == 1 { "error" } else { "errors" };
        write!(f, "{}: {errors} {plural}", self.source.name())?;
        if self.left_out > 0 {
            write!(f, ", of which the first {} are shown", self.problems.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl Diagnostic for Diagnostics {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|p| p as &dyn Diagnostic)))
    }
}
