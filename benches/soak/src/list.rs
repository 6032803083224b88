//! The list of programs, a plain file: which Debian package brings them, and how they are called.

use chipbound_soak::{Outcome, failed};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where programs are looked for that are named without a path.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";

/// The list, by program.
pub(crate) struct List {
    /// Files that lie in the folder of every run: name and contents.
    pub(crate) files: BTreeMap<String, String>,
    /// Each program once, with all its calls.
    pub(crate) programs: Vec<Program>,
}

/// A program and what is done with it.
pub(crate) struct Program {
    /// As it is called.
    pub(crate) name: String,
    /// The Debian package.
    pub(crate) package: String,
    /// A folder around the program that it needs beside itself, mirrored by links.
    pub(crate) tree: Option<PathBuf>,
    /// Links that it needs near itself: their paths, from its own folder on, and where they lead.
    pub(crate) links: BTreeMap<String, PathBuf>,
    pub(crate) calls: Vec<Call>,
    /// Why it is known not to be equal.
    pub(crate) unequal: Option<String>,
}

/// One call.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    /// The program's name or path, then its arguments.
    call: Vec<String>,
    /// What it reads from stdin.
    #[serde(default)]
    pub(crate) stdin: String,
    /// A file of its folder that it gets as stdin instead.
    #[serde(default)]
    pub(crate) input: Option<String>,
    /// What a shell does in its folder before.
    #[serde(default)]
    pub(crate) before: Option<String>,
    /// Variables that it needs besides those that all get.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// The exit code that the plain program must have, or 128 and the signal that ends it.
    #[serde(default)]
    pub(crate) status: i32,
    /// Whether the files that it leaves are compared.
    #[serde(default = "yes")]
    pub(crate) left: bool,
}

fn yes() -> bool {
    true
}

impl Call {
    pub(crate) fn arguments(&self) -> &[String] {
        &self.call[1..]
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    files: BTreeMap<String, String>,
    packages: BTreeMap<String, Package>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    tree: Option<PathBuf>,
    #[serde(default)]
    links: BTreeMap<String, PathBuf>,
    calls: Vec<Entry>,
    /// Program and reason.
    #[serde(default)]
    unequal: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Short(Vec<String>),
    Long(Call),
}

/// Reads the list.
pub(crate) fn read(path: &Path) -> Outcome<List> {
    let text = std::fs::read_to_string(path).map_err(|e| failed(format!("{}: {e}", path.display())))?;
    parse(&text).map_err(|e| failed(format!("{}: {e}", path.display())))
}

fn parse(text: &str) -> Outcome<List> {
    let written: Written = toml::from_str(text)?;
    let mut programs: Vec<Program> = Vec::new();
    for (package, Package { tree, links, calls, unequal }) in written.packages {
        let first = programs.len();
        for entry in calls {
            let call = match entry {
                Entry::Short(call) => Call { call, left: true, ..Call::default() },
                Entry::Long(call) => call,
            };
            let name = call.call.first().ok_or_else(|| failed(format!("{package} has a call without a program")))?.clone();
            match programs[first..].iter_mut().find(|p| p.name == name) {
                Some(program) => program.calls.push(call),
                None => {
                    let unequal = unequal.get(&name).cloned();
                    programs.push(Program {
                        name,
                        package: package.clone(),
                        tree: tree.clone(),
                        links: links.clone(),
                        calls: vec![call],
                        unequal,
                    });
                }
            }
        }
        if let Some(name) = unequal.keys().find(|name| !programs[first..].iter().any(|p| p.name == **name)) {
            return Err(failed(format!("{package} has no program {name}")));
        }
    }
    Ok(List { files: written.files, programs })
}

impl Program {
    /// The file that the name means, without links.
    pub(crate) fn file(&self) -> Outcome<PathBuf> {
        let at = |folder: &str| Path::new(folder).join(&self.name);
        PATH.split(':')
            .map(at)
            .find(|path| path.is_file())
            .ok_or_else(|| failed(format!("it is not installed; the Debian package {} brings it", self.package)))?
            .canonicalize()
            .map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_reads_and_has_at_least_150_programs() {
        let list = parse(include_str!("../corpus.toml")).unwrap();
        assert!(list.programs.len() >= 150, "{}", list.programs.len());
        assert!(list.programs.iter().all(|p| !p.calls.is_empty()));
    }

    #[test]
    fn calls_of_one_program_come_together() {
        let text = "[files]\n[packages.one]\ncalls = [[\"a\", \"1\"], [\"b\"], { call = [\"a\"], status = 3 }]\n";
        let list = parse(text).unwrap();
        assert_eq!(list.programs.len(), 2);
        assert_eq!(list.programs[0].calls[0].arguments(), ["1"]);
        assert_eq!(list.programs[0].calls[1].status, 3);
    }

    #[test]
    fn a_reason_for_no_program_and_unknown_words_are_refused() {
        for text in [
            "[files]\n[packages.one]\ncalls = [[\"a\"]]\nunequal = { b = \"why\" }\n",
            "[files]\nwhat = 1\n[packages]\n",
            "[files]\n[packages.one]\ncalls = [[]]\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
