//! What the auditor stands on.

use std::path::Path;

#[test]
fn the_auditor_stands_on_the_wires_documents_alone() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("its own manifest");
    let dependencies = manifest.split("[dependencies]").nth(1).expect("a section").split("\n[").next().expect("its lines");
    let names: Vec<_> = dependencies.lines().filter_map(|line| line.split_once('.').map(|(name, _)| name)).collect();
    assert_eq!(names, ["chipbound-wire", "serde", "serde_json"], "no code of the books, and nothing that opens a database");
}
