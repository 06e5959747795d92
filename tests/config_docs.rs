//! The schema and the reference in `docs/` are what the code declares. `UPDATE_DOCS=1` writes them.

use std::path::Path;

use causeway::config::reference;

fn compare(file: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/{file} is stale: run UPDATE_DOCS=1 cargo test --test config_docs");
}

#[test]
fn the_schema_is_current() {
    let schema = serde_json::to_string_pretty(&reference::json_schema()).unwrap() + "\n";
    compare("schema.json", &schema);
}

#[test]
fn the_reference_is_current() {
    compare("configuration.md", &reference::markdown());
}
