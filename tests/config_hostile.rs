//! Whatever a file holds, the answer is a configuration or a list of errors that can be shown: no panic, no overflow
//! of the stack, no endless work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use causeway::config::{Config, Diagnostics, MOST_PROBLEMS, load, parse};
use proptest::prelude::*;

fn environment(_: &str) -> Option<String> {
    Some("00112233445566778899aabbccddeeff01020304".into())
}

/// Parses, and shows what is wrong in every way there is.
fn answer(text: &str) -> Result<Config, Diagnostics> {
    let (result, diagnostics) = match parse(Path::new("hostile.toml"), text, &environment) {
        Ok((config, warnings)) => (Ok(config), warnings),
        Err(errors) => (Err(errors.clone()), errors),
    };
    assert_eq!(result.is_err(), diagnostics.errors() > 0);
    let mut shown = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut shown, &diagnostics).unwrap();
    let lines = text.lines().count().max(1);
    for problem in &diagnostics.problems {
        assert!((1..=lines + 1).contains(&problem.line()), "{problem:?}");
        assert!(problem.help.is_some(), "{problem:?}");
    }
    assert_eq!(diagnostics.to_json().as_array().unwrap().len(), diagnostics.problems.len());
    result
}

fn examples() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let files = ["site-to-site/idc.toml", "site-to-site/cloud.toml", "direct-connect/gateway.toml"];
    let more = ["bench-forward/gateway.toml", "bench-gateway/gateway.toml"];
    files.iter().chain(&more).map(|file| fs::read_to_string(root.join(file)).unwrap()).collect()
}

/// One change of a text: bytes that mean something in TOML are put in, or a piece is taken out or doubled.
fn mutate(text: &mut String, at: usize, length: usize, what: usize) {
    const PIECES: [&str; 20] = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "=",
        ".",
        ",",
        "\n",
        "#",
        "\\",
        "\"\"\"",
        "\u{0}",
        "é",
        "-1",
        "1e400",
        "[[",
        "true",
        "99999999999999999999999999",
    ];
    let boundary = |mut i: usize| {
        while !text.is_char_boundary(i) {
            i -= 1;
        }
        i
    };
    let start = boundary(at % (text.len() + 1));
    let end = boundary((start + length).min(text.len())).max(start);
    match what % 24 {
        20 | 21 => text.replace_range(start..end, ""),
        22 | 23 => {
            let piece = text[start..end].to_owned();
            text.insert_str(start, &piece);
        }
        piece => text.insert_str(start, PIECES[piece]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text(text in "\\PC*") {
        let _ = answer(&text);
    }

    #[test]
    fn any_soup_of_tokens(tokens in proptest::collection::vec(proptest::sample::select(vec![
        "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", " ", "\"", "'", "\"\"\"", "#", "system", "port", "gateway",
        "interface", "tunnel", "vpc", "a", "policy", "route", "nat", "key", "hex", "in", "out", "name", "\"a\"", "1",
        "0x", "1979-05-27", "nan", "-", "+", "true", "é", "\\", "\r", "\t",
    ]), 0..60)) {
        let _ = answer(&tokens.concat());
    }

    #[test]
    fn any_damage_to_a_good_file(
        which in 0usize..5,
        changes in proptest::collection::vec((any::<usize>(), 0usize..60, any::<usize>()), 1..6),
    ) {
        let mut text = examples().swap_remove(which);
        for (at, length, what) in changes {
            mutate(&mut text, at, length, what);
        }
        let _ = answer(&text);
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let file = written(&bytes);
        if let Err(errors) = load(file.path()) {
            prop_assert!(!errors.problems.is_empty());
        }
    }
}

#[test]
fn a_known_table_of_every_type_in_every_place() {
    for key in ["system", "port", "gateway", "interface", "tunnel"] {
        for value in
            ["1", "1.5", "\"x\"", "true", "1979-05-27", "[]", "[1]", "{}", "{ a = 1 }", "[{}]", "{ a = {} }"]
        {
            let text = format!("{key} = {value}\n");
            let _ = answer(&text);
        }
    }
    for key in ["policy", "route", "nat", "prefixes"] {
        for value in ["1", "{}", "[1]", "[{}]", "[[]]", "[{ to = {} }]"] {
            assert!(
                answer(&format!("[gateway.vpc]\n{key} = {value}\n")).is_err() || value == "[]",
                "{key} {value}"
            );
        }
    }
}

#[test]
fn depth_is_bounded() {
    const DEEP: usize = 200_000;
    for text in [
        format!("a = {}", "[".repeat(DEEP)),
        format!("a = {}{}", "[".repeat(DEEP), "]".repeat(DEEP)),
        format!("a = {}", "{ a = ".repeat(DEEP)),
        format!("a{} = 1", ".a".repeat(DEEP)),
        format!("a{} = 1", " . \"a\"".repeat(DEEP)),
        format!("[a{}]", ".a".repeat(DEEP)),
        format!("x = {{ a{} = 1 }}\nx = {{ a{} = 1 }}", ".a".repeat(DEEP), ".b".repeat(DEEP)),
        // As deep as the limits together allow, twice, so that one tree is thrown away while parsing.
        format!("x = {0}1{1}\nx = {0}1{1}", "{ a.a.a.a.a.a.a.a = ".repeat(79), "}".repeat(79)),
        "[".repeat(DEEP),
        "[[".repeat(DEEP),
        "[a\n".repeat(DEEP),
    ] {
        assert!(answer(&text).is_err());
    }
}

#[test]
fn a_million_lines_are_read() {
    let mut text = String::from(
        "[port.a]\ndriver = \"memory\"\n[interface.a]\nport = \"a\"\ngateway = \"g\"\nside = \"peer\"\n\
         addresses = [\"192.0.2.1/24\"]\n[gateway.g]\n",
    );
    for i in 0..333_333u32 {
        let [a, b, c, _] = (0x0a00_0000 + (i << 8)).to_be_bytes();
        text += &format!("[[gateway.g.route]]\nto = \"{a}.{b}.{c}.0/24\"\nvia = \"192.0.2.2\"\n");
    }
    // 65,536 prefixes fit 10.0.0.0/8; the rest runs on into 11, 12 and so on, each once.
    let config = answer(&text).unwrap();
    assert_eq!(config.gateways[0].routes.len(), 333_333);
}

#[test]
fn a_million_wrong_lines_are_answered() {
    for line in ["colour = 1\n", "]\n", "= =\n", "x.y = [\n", "[[gateway.g.route]]\n", "\"\n"] {
        let errors = answer(&line.repeat(1_000_000)).unwrap_err();
        assert!(errors.problems.len() <= MOST_PROBLEMS, "{line}");
    }
    let different: String = (0..1_000_000).map(|i| format!("k{i} = 1\n")).collect();
    let errors = answer(&different).unwrap_err();
    assert_eq!(errors.problems.len() + errors.left_out, 1_000_000);
    assert!(errors.to_string().contains("1000000 errors, of which the first 500 are shown"), "{errors}");
}

#[test]
fn many_names_and_many_references() {
    let mut text = String::new();
    for i in 0..50_000 {
        text += &format!(
            "[gateway.g{i}]\n[[gateway.g{i}.route]]\nto = \"10.0.0.0/8\"\ngateway = \"g{}\"\n",
            i + 1
        );
    }
    assert!(answer(&text).is_err());
}

fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn code(path: &Path) -> (&'static str, String) {
    let problem = load(path).unwrap_err().problems.remove(0);
    (problem.code, problem.message)
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(code(&folder.path().join("none.toml")).0, "unreadable");
    assert_eq!(code(folder.path()).0, "unreadable");
    assert_eq!(code(Path::new("/dev/zero")).0, "unreadable");
    assert_eq!(code(Path::new("")).0, "unreadable");
    let fifo = folder.path().join("fifo.toml");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(code(&fifo).0, "unreadable");
    let huge = folder.path().join("huge.toml");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(code(&huge).0, "too-large");
}

#[test]
fn what_is_not_utf_8_has_a_place() {
    let file = written(b"[system]\nname = \"b\xffx\"\n");
    let errors = load(file.path()).unwrap_err();
    assert_eq!(errors.problems[0].code, "not-utf-8");
    assert_eq!((errors.problems[0].line(), errors.problems[0].column()), (2, 10));
}

/// A folder with a configuration, and the key file it names.
fn with_key(source: &str, mode: u32, key: &[u8], key_mode: u32) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/site-to-site/idc.toml"));
    let text = text
        .unwrap()
        .replace("{ env = \"CAUSEWAY_CLOUD_KEY_A\" }", source)
        .replace("{ env = \"CAUSEWAY_CLOUD_KEY_B\" }", "{ file = \"b.key\" }");
    let path = folder.path().join("idc.toml");
    for (path, bytes, mode) in [
        (&path, text.as_bytes(), mode),
        (&folder.path().join("a.key"), key, key_mode),
        (&folder.path().join("b.key"), b"10112233445566778899aabbccddeeff01020304\n", 0o600),
    ] {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    (folder, path)
}

#[test]
fn keys_come_from_closed_files_only() {
    const KEY: &[u8] = b"00112233445566778899aabbccddeeff01020304\n";
    const FILE: &str = "{ file = \"a.key\" }";
    const HEX: &str = "{ hex = \"00112233445566778899aabbccddeeff01020304\" }";
    for (source, mode, key, key_mode, wanted) in [
        (FILE, 0o644, KEY, 0o600, None),
        (FILE, 0o644, KEY, 0o640, None),
        (FILE, 0o644, KEY, 0o644, Some("open-secret")),
        (FILE, 0o644, KEY, 0o620, Some("open-secret")),
        (FILE, 0o644, KEY, 0o602, Some("open-secret")),
        (FILE, 0o644, b"\xff\xfe", 0o600, Some("bad-key")),
        (FILE, 0o644, b"", 0o600, Some("bad-key")),
        (FILE, 0o644, &[b'0'; 40], 0o600, Some("bad-key")),
        (FILE, 0o644, &[b'7'; 5000], 0o600, Some("bad-key")),
        ("{ file = \"..\" }", 0o644, KEY, 0o600, Some("bad-key")),
        ("{ file = \"/dev/zero\" }", 0o644, KEY, 0o600, Some("bad-key")),
        ("{ file = \"none.key\" }", 0o644, KEY, 0o600, Some("missing-secret")),
        ("{ env = \"CAUSEWAY_NO_SUCH_VARIABLE\" }", 0o644, KEY, 0o600, Some("missing-secret")),
        ("{ env = \"a=b\\u0000\" }", 0o644, KEY, 0o600, Some("missing-secret")),
        (HEX, 0o600, KEY, 0o600, None),
        (HEX, 0o644, KEY, 0o600, Some("open-secret")),
    ] {
        let (_folder, path) = with_key(source, mode, key, key_mode);
        let found = load(&path).err().map(|errors| errors.problems[0].code);
        assert_eq!(found, wanted, "{source} {mode:o} {key_mode:o}");
    }
}
