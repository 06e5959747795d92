//! `docs/drop-reasons.md` is what the code declares. `UPDATE_DOCS=1` writes it.

use std::{fmt::Write, path::Path};

use causeway::packet::DropReason;

fn markdown() -> String {
    let mut text = String::from(
        "# Drop reasons\n\n\
         Every packet that a gateway does not pass on is counted under exactly one of these reasons, by the interface\n\
         it came in by. `causeway show drops --explain` shows the counts with their meanings. Some are no loss: a\n\
         packet that was answered (`arp-consumed`, `nd-consumed`, `local-consumed`) has done its work.\n\n\
         This page is made from `src/packet/drop.rs`; after a change run\n\
         `UPDATE_DOCS=1 cargo test --test show_docs`.\n\n\
         | name | meaning |\n|---|---|\n",
    );
    for reason in DropReason::ALL {
        let explanation = reason.explanation().trim().replace('|', "\\|");
        writeln!(text, "| `{}` | {explanation} |", reason.name()).unwrap();
    }
    text
}

#[test]
fn the_list_of_drop_reasons_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drop-reasons.md");
    let wanted = markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/drop-reasons.md is stale: run UPDATE_DOCS=1 cargo test --test show_docs");
}

#[test]
fn operations_names_only_reasons_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("## Troubleshooting").expect("a chapter on troubleshooting");
    // Of its two tables the first is by reason.
    let lines =
        table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let rows: Vec<&str> = lines.filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() >= 10, "{rows:?}");
    for row in rows {
        let reasons = row.split('|').nth(1).unwrap();
        for name in reasons.split('`').skip(1).step_by(2) {
            let known = DropReason::ALL.iter().any(|reason| reason.name() == name);
            assert!(known, "there is no drop reason {name}");
        }
    }
}
