//! Imports run one way: each layer uses only those before it.

use std::{fs, path::Path};

/// The layers, each with those before it that it may not use either.
const LAYERS: [&str; 11] =
    ["wire", "crypto", "packet", "stats", "table", "stage", "io", "runtime", "config", "control", "cli"];

/// Layers that a layer may use; where nothing is said, all before it.
fn allowed(layer: &str) -> Vec<&'static str> {
    match layer {
        "wire" | "crypto" => vec![],
        "packet" => vec![],
        "io" => vec!["packet", "stats"],
        _ => {
            let place = LAYERS.iter().position(|l| *l == layer).unwrap();
            // A stage can name no driver, and nothing before `io` can.
            LAYERS[..place].to_vec()
        }
    }
}

fn rust_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Names of layers that follow `crate::` in the text, grouped imports included.
fn used(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            let mut at_start = true;
            for c in group.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => at_start = true,
                    c if depth == 0 && at_start && (c.is_alphanumeric() || c == '_') => word.push(c),
                    c if !c.is_whitespace() && depth == 0 => {
                        at_start = false;
                        names.push(std::mem::take(&mut word));
                    }
                    _ => {}
                }
                if at_start && c == ',' && !word.is_empty() {
                    names.push(std::mem::take(&mut word));
                }
            }
            names.push(word);
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

#[test]
fn imports_run_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for layer in LAYERS {
        let may = allowed(layer);
        let mut files = Vec::new();
        rust_files(&source.join(layer), &mut files);
        assert!(!files.is_empty(), "layer {layer} has no files");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            // Tests, which stand last in a file, may use what they need.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code: String =
                code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            for name in used(&code) {
                if LAYERS.contains(&name.as_str()) && name != layer && !may.contains(&name.as_str()) {
                    wrong.push(format!("{}: {layer} uses {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_imports_of_every_form() {
    let text =
        "use crate::wire::x; use crate::{\n io::{any, mem},\n packet::{A},\n stats,\n}; crate::cli::run();";
    let mut names = used(text);
    names.retain(|n| LAYERS.contains(&n.as_str()));
    names.sort();
    assert_eq!(names, ["cli", "io", "packet", "stats", "wire"]);
}
