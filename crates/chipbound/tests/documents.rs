//! The documents say what is there: each test that the source map names exists, each row of the source has one, each command that
//! README shows is a verb.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use chipbound_wire::Code;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn document(name: &str) -> String {
    fs::read_to_string(workspace().join(name)).unwrap()
}

/// Every Rust file below `folder`, without what is built.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() && entry.file_name() != "target" {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The names of all functions under `#[test]` or its like, and of those that the processor's own harness runs.
fn tests() -> BTreeSet<String> {
    let (mut files, mut names) = (Vec::new(), BTreeSet::new());
    ["crates", "testkit", "benches"].iter().for_each(|folder| sources(&workspace().join(folder), &mut files));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            let function = line.split("fn ").nth(1).and_then(|rest| rest.split('(').next()).filter(|_| line.ends_with('{'));
            match function {
                Some(name) if marked => drop(names.insert(name.to_owned())),
                _ => {}
            }
            marked =
                line.starts_with("#[test]") || line.contains("::test]") || line.contains("::test(") || (marked && line.starts_with("#["));
        }
        if let Some(list) = text.split("\ntests! {").nth(1) {
            let list = list.split('}').next().unwrap();
            names.extend(list.split(',').filter_map(|n| Some(n.trim().split("::").nth(1)?.to_owned())));
        }
    }
    names
}

/// What stands in backticks and reads like the name of a test.
fn named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_name =
        |word: &&str| word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    quoted.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_test_named_in_the_source_map_exists() {
    let tests = tests();
    assert!(tests.len() > 400 && tests.contains("every_test_named_in_the_source_map_exists"), "{} tests were found", tests.len());
    let named = named(&document("docs/source-map.md"));
    assert!(named.len() > 100, "{} tests are named", named.len());
    let missing: Vec<_> = named.difference(&tests).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_row_of_the_source_has_a_place_and_a_test() {
    let map = document("docs/source-map.md");
    let rows = (1..=27).map(|n| format!("S{n}")).chain((1..=19).map(|n| n.to_string())).chain((1..=31).map(|n| format!("A{n}")));
    for row in rows {
        let lines: Vec<_> = map.lines().filter(|line| line.starts_with(&format!("| {row} |"))).collect();
        assert_eq!(lines.len(), 1, "{row}");
        assert!(!named(lines[0]).is_empty(), "{row} names no test");
        let cells: Vec<_> = lines[0].split('|').map(str::trim).collect();
        assert!(cells[1..cells.len() - 1].iter().all(|cell| !cell.is_empty()), "{row} has an empty cell");
    }
}

#[test]
fn every_module_named_in_the_source_map_exists() {
    let map = document("docs/source-map.md");
    let modules: BTreeSet<_> = map.split('`').skip(1).step_by(2).filter(|word| word.contains("::") && *word != "crate::module").collect();
    assert!(modules.len() > 20, "{modules:?}");
    for module in modules {
        let (package, path) = module.split_once("::").unwrap();
        let file = workspace().join("crates").join(package.replace('_', "-")).join("src").join(path.replace("::", "/"));
        assert!(file.is_dir() || file.with_extension("rs").is_file(), "{module}");
    }
}

#[test]
fn every_code_in_the_documents_is_one_of_the_wires() {
    let mut codes = 0;
    for name in ["README.md", "SECURITY.md", "docs/protocol.md", "docs/source-map.md"] {
        let text = document(name);
        let words = text.split('`').skip(1).step_by(2).filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        for word in words.filter(|word| word.contains('_') && !named(&format!("`{word}`")).contains(*word)) {
            assert!(Code::parse(word).is_some(), "{name}: {word}");
            codes += 1;
        }
    }
    assert!(codes > 8, "{codes}");
}

#[test]
fn every_command_that_readme_shows_is_a_verb() {
    let readme = document("README.md");
    let blocks = readme.split("\n```").skip(1).step_by(2);
    let mut verbs = BTreeSet::new();
    for line in blocks.flat_map(str::lines) {
        for shown in [line.strip_prefix("$ chipbound "), line.split("$(chipbound ").nth(1)].into_iter().flatten() {
            verbs.insert(
                shown.split(' ').take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).map(str::to_owned).collect::<Vec<_>>(),
            );
        }
    }
    assert!(verbs.len() > 10, "{verbs:?}");
    for mut verb in verbs {
        // What follows a verb may be its argument; the verb is one word, or two.
        let known = (1..=2).rev().any(|words| {
            verb.truncate(words);
            let help = Command::new(env!("CARGO_BIN_EXE_chipbound")).args(&verb).arg("--help").output().unwrap();
            help.status.success() && !String::from_utf8_lossy(&help.stdout).contains("\nCommands:")
        });
        assert!(known, "chipbound {verb:?}");
    }
}
