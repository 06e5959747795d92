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
    /// The place, first; then the other places that matter, each with a word on why.
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

/// The text of the file as it may be shown: keys are masked, and lines are found without a scan.
#[derive(Debug, Clone)]
pub struct Source {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    /// Takes a copy of `text` with everything that may be a key masked.
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let text = redact(text.to_owned());
        let line_starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        Source { name: name.to_owned(), text, line_starts }
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last start of a character at or before a byte.
    fn boundary(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        (0..=offset).rev().find(|i| self.text.is_char_boundary(*i)).unwrap_or(0)
    }

    /// The line that holds a byte, from 0.
    fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    /// The line and column, from 1, of a byte. Columns count characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line_of(offset.min(self.text.len()));
        let start = self.line_starts[line];
        let end = offset.clamp(start, self.text.len());
        let before = String::from_utf8_lossy(&self.text.as_bytes()[start..end]);
        (line + 1, before.chars().count() + 1)
    }
}

impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let start = span.offset().min(self.text.len());
        let end = start.saturating_add(span.len()).min(self.text.len());
        let first = self.line_of(start).saturating_sub(lines_before);
        let last = self.line_of(end).saturating_add(lines_after);
        let from = self.line_starts[first];
        let to = self.line_starts.get(last + 1).copied().unwrap_or(self.text.len());
        // A marker inside a character of several bytes would split it; spans of the parser never do.
        let column = if lines_before == 0 { self.position(start).1 - 1 } else { 0 };
        let from = if lines_before == 0 { start } else { from };
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            &self.text.as_bytes()[from..to],
            (from, to - from).into(),
            self.line_of(from),
            column,
            self.line_starts.len(),
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
    pub(crate) fn new(source: Source, mut problems: Vec<Problem>, left_out: usize) -> Self {
        for problem in &mut problems {
            // A label past the end of the file is shown at its end.
            for (span, _) in &mut problem.places {
                span.start = source.boundary(span.start);
                span.end = source.boundary(span.end).max(span.start);
            }
            (problem.line, problem.column) = source.position(problem.places[0].0.start);
        }
        problems.sort_by_key(|p| (p.places[0].0.start, p.places[0].0.end));
        problems
            .dedup_by(|b, a| a.code == b.code && a.places[0].0 == b.places[0].0 && a.message == b.message);
        Diagnostics { source, problems, left_out }
    }

    /// A file that could not be read at all.
    pub(crate) fn unreadable(name: &str, problem: Problem) -> Self {
        Diagnostics::new(Source::new(name, ""), vec![problem], 0)
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
