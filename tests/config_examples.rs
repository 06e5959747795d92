//! Every example under `pipelines/` is right.

use std::path::{Path, PathBuf};

use causeway::config::{Config, parse};

/// A key of its own for every variable.
fn environment(name: &str) -> Option<String> {
    let mut hash = 1469598103934665603u128;
    name.bytes().for_each(|b| hash = (hash ^ u128::from(b)).wrapping_mul(0x0100_0000_01b3));
    Some(format!("{hash:032x}01020304"))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml")
            && !path.components().any(|part| part.as_os_str() == "golden")
        {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> Config {
    let text = std::fs::read_to_string(path).unwrap();
    let (config, warnings) =
        parse(path, &text, &environment).unwrap_or_else(|e| panic!("{:?}", miette::Report::new(e)));
    assert!(warnings.problems.is_empty(), "{}: {:#?}", path.display(), warnings.problems);
    config
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines")
}

#[test]
fn every_example_is_right() {
    let mut found = Vec::new();
    files(&root(), &mut found);
    assert!(found.len() >= 20, "{found:?}");
    found.iter().for_each(|path| drop(read(path)));
}

#[test]
fn the_two_boxes_of_a_site_to_site_pair_fit() {
    let (idc, cloud) =
        (read(&root().join("site-to-site/idc.toml")), read(&root().join("site-to-site/cloud.toml")));
    let (a, b) = (&idc.tunnels[0], &cloud.tunnels[0]);
    assert_eq!((a.local.value, a.remote.value), (b.remote.value, b.local.value));
    assert_eq!(a.esn, b.esn);
    for (out, into) in [(&a.outbound, &b.inbound[0]), (&b.outbound, &a.inbound[0])] {
        assert_eq!(out.spi, into.spi);
        assert_eq!((out.key.aes(), out.key.salt()), (into.key.aes(), into.key.salt()));
    }
    let (there, back) = (&idc.gateways[0].policies[0], &cloud.gateways[0].policies[0]);
    assert_eq!((&there.source, &there.destination), (&back.destination, &back.source));
}
