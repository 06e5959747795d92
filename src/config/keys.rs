//! Key material: where the file says it is, read, checked and kept out of sight.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde_json::json;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::decode::{Context, Shape, Value};
use super::diagnostics::Problem;
use super::reader::unknown_key;
use super::span::Span;
use super::suggest::shorten;

/// Looks up environment variables: the process's own in the program, a table in tests.
pub trait Environment {
    /// The value of a variable, where it is set.
    fn variable(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Environment for F {
    fn variable(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// The environment of this process. A variable that is not UTF-8 counts as not set: no key is.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// An AES key of 16, 24 or 32 bytes followed by the salt of 4 bytes (KEYMAT, RFC 4106 8.1).
///
/// Zeroed when dropped; never shown.
#[derive(Clone)]
pub struct Key {
    material: Zeroizing<Vec<u8>>,
}

/// The bytes of a salt.
const SALT: usize = 4;

impl Key {
    /// The AES key.
    pub fn aes(&self) -> &[u8] {
        self.material.split_at(self.material.len() - SALT).0
    }

    /// The salt: the first four bytes of every nonce.
    pub fn salt(&self) -> [u8; SALT] {
        let mut salt = [0; SALT];
        salt.copy_from_slice(self.material.split_at(self.material.len() - SALT).1);
        salt
    }

    /// 128, 192 or 256.
    pub fn bits(&self) -> usize {
        self.aes().len() * 8
    }

    /// Reads the key in a file, as `{ file = "…" }` of the configuration does.
    ///
    /// # Errors
    /// What is wrong with the file, and what would be right.
    pub fn read(path: &Path) -> Result<Self, String> {
        let nothing = |_: &str| None;
        let mut cx = Context {
            base_dir: Path::new("/"),
            environment: &nothing,
            file_mode: None,
            box_name: None,
            names: Default::default(),
            incomplete: false,
            problems: Vec::new(),
            left_out: 0,
        };
        match from_file(path, Span::default(), &mut cx) {
            Some(text) => Self::from_hex(&text).map_err(|(message, help)| format!("{message}: {help}")),
            None => Err(cx.problems.first().map_or_else(String::new, |problem| problem.message.clone())),
        }
    }

    /// Reads hexadecimal digits; white space around them does not count. The error never quotes them.
    fn from_hex(text: &str) -> Result<Self, (String, &'static str)> {
        const HELP: &str = "a key is the AES key and the salt of 4 bytes: 20, 28 or 36 bytes, so 40, 56 or 72 \
                            hexadecimal digits; `head -c 20 /dev/urandom | xxd -p` makes one for AES-128";
        let digits = text.trim_ascii().as_bytes();
        if let Some(at) = digits.iter().position(|b| !b.is_ascii_hexdigit()) {
            return Err((format!("character {} of the key is not a hexadecimal digit", at + 1), HELP));
        }
        if !matches!(digits.len(), 40 | 56 | 72) {
            return Err((format!("the key has {} hexadecimal digits", digits.len()), HELP));
        }
        let nibble = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
        let mut material = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
        material.extend(digits.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])));
        if material.iter().all(|b| *b == 0) {
            return Err(("the key is all zeros".into(), HELP));
        }
        Ok(Key { material })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(AES-{}-GCM, hidden)", self.bits())
    }
}

const SOURCES: [&str; 3] = ["hex", "file", "env"];

impl Value for Key {
    fn decode(value: &DeValue<'_>, span: Span, cx: &mut Context<'_>) -> Option<Self> {
        let DeValue::Table(table) = value else {
            cx.wrong_type(span, &Self::shape(), value);
            return None;
        };
        for key in table.keys().filter(|k| !SOURCES.contains(&k.get_ref().as_ref())) {
            unknown_key(key.get_ref(), key.span().into(), "a key", SOURCES.into_iter(), cx);
        }
        let given: Vec<&str> = SOURCES.into_iter().filter(|s| table.get(*s).is_some()).collect();
        let [source] = given[..] else {
            let help = "write one of { file = \"…\" }, { env = \"…\" } and { hex = \"…\" }";
            let message = match given.len() {
                0 => "the key says nowhere where it is".to_owned(),
                _ => format!("the key stands in more than one place: {}", given.join(" and ")),
            };
            cx.report(Problem::new("bad-key", span, message).help(help));
            return None;
        };
        let (text, span) = string(table, source, cx)?;
        let read = match source {
            "hex" => from_here(text, span, cx),
            "file" => from_file(&cx.base_dir.join(text), span, cx),
            _ => from_environment(text, span, cx),
        }?;
        match Key::from_hex(&read) {
            Ok(key) => Some(key),
            Err((message, help)) => {
                cx.report(Problem::new("bad-key", span, message).help(help));
                None
            }
        }
    }

    fn shape() -> Shape {
        let one = |key: &str, schema: serde_json::Value| {
            json!({
                "type": "object", "properties": { key: schema }, "required": [key], "additionalProperties": false,
            })
        };
        Shape {
            words: "where the key is".into(),
            example: "{ file = \"keys/dc.key\" } or { env = \"DC_KEY\" } or { hex = \"…\" }".into(),
            schema: json!({ "oneOf": [
                one("file", json!({ "type": "string" })),
                one("env", json!({ "type": "string" })),
                one("hex", json!({
                    "type": "string", "pattern": "^([0-9a-fA-F]{40}|[0-9a-fA-F]{56}|[0-9a-fA-F]{72})$",
                })),
            ]}),
        }
    }
}

fn string<'t>(table: &'t DeTable<'_>, key: &str, cx: &mut Context<'_>) -> Option<(&'t str, Span)> {
    let value = table.get(key)?;
    let span = value.span().into();
    let text = value.get_ref().as_str();
    if text.is_none() {
        let wanted = Shape { words: "a string".into(), example: "\"…\"".into(), schema: json!(null) };
        cx.wrong_type(span, &wanted, value.get_ref());
    }
    text.map(|text| (text, span))
}

fn from_here(text: &str, span: Span, cx: &mut Context<'_>) -> Option<Zeroizing<String>> {
    if let Some(mode) = cx.file_mode.filter(|mode| mode & OPEN_TO_OTHERS != 0) {
        cx.report(
            Problem::new(
                "open-secret",
                span,
                format!("a key stands in a file that others may use (mode {mode:04o})"),
            )
            .help("`chmod 600` the configuration file, or keep the key in a file of its own"),
        );
        return None;
    }
    Some(Zeroizing::new(text.to_owned()))
}

fn from_environment(name: &str, span: Span, cx: &mut Context<'_>) -> Option<Zeroizing<String>> {
    let value = cx.environment.variable(name).map(Zeroizing::new);
    if value.is_none() {
        cx.report(
            Problem::new(
                "missing-secret",
                span,
                format!("the environment has no variable `{}`", shorten(name)),
            )
            .help("set it before the start, as with EnvironmentFile in a unit of systemd"),
        );
    }
    value
}

/// Bits of a mode that make a secret none: anything for others, writing for the group. A group may read, so that
/// a service can run under its own user.
const OPEN_TO_OTHERS: u32 = 0o027;

/// A key file is a line of text; what is longer is something else.
const LONGEST_KEY_FILE: u64 = 4096;

fn from_file(path: &Path, span: Span, cx: &mut Context<'_>) -> Option<Zeroizing<String>> {
    let shown = shorten(&path.display().to_string());
    let fail = |cx: &mut Context<'_>, code, message: String, help: String| {
        cx.report(Problem::new(code, span, message).help(help));
        None
    };
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) => {
            let help = "make the file, or correct the path; it is relative to the configuration file".into();
            return fail(cx, "missing-secret", format!("cannot open the key file {shown}: {error}"), help);
        }
    };
    let metadata = match file.metadata() {
        Ok(metadata) if metadata.is_file() => metadata,
        _ => {
            let help = "a key is a regular file with one line of hexadecimal digits".into();
            return fail(cx, "bad-key", format!("the key file {shown} is not a regular file"), help);
        }
    };
    let mode = metadata.mode() & 0o7777;
    if mode & OPEN_TO_OTHERS != 0 {
        let message = format!("others may use the key file {shown} (mode {mode:04o})");
        return fail(cx, "open-secret", message, format!("`chmod 600 {shown}`"));
    }
    if metadata.len() > LONGEST_KEY_FILE {
        let message = format!("the key file {shown} has {} bytes", metadata.len());
        return fail(cx, "bad-key", message, "a key is one line of at most 72 hexadecimal digits".into());
    }
    let mut text = Zeroizing::new(String::with_capacity(LONGEST_KEY_FILE as usize));
    match file.by_ref().take(LONGEST_KEY_FILE).read_to_string(&mut text) {
        Ok(_) => Some(text),
        Err(error) => {
            let help = "a key file is text: one line of hexadecimal digits".into();
            fail(cx, "bad-key", format!("cannot read the key file {shown}: {error}"), help)
        }
    }
}

/// Opens a file that may be anything: a FIFO without a writer must not stop the program.
pub(crate) fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}
