//! Runs one program plain and protected, and compares.

use crate::kind;
use crate::list::{Call, List, PATH, Program};
use crate::outcome::Verdict;
use crate::shop::Shop;
use crate::{Options, Outcome, failed};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Distance of the looks at a running program.
const LOOK: Duration = Duration::from_millis(2);
/// The longest difference that is shown, characters.
const SHOWN: usize = 160;

/// What one run gave.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    /// The exit code, or 128 and the signal; none when it took too long.
    status: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    left: Vec<(PathBuf, Vec<u8>)>,
}

/// Publishes and buys the program, makes every call plain and protected, and says how they compare.
pub(crate) fn compare(program: &Program, list: &List, shop: &Shop, options: &Options) -> Verdict {
    let verdict = Place::new(program, list, shop, options).and_then(|place| {
        let verdict = place.compare(shop);
        fs::remove_dir_all(&place.folder)?;
        verdict
    });
    let verdict = verdict.unwrap_or_else(|error| Verdict::Unfit { why: error.to_string() });
    match (verdict, &program.unequal) {
        (Verdict::Unequal { .. }, Some(reason)) => Verdict::Known { reason: reason.clone() },
        (Verdict::Equal, Some(_)) => Verdict::Unfit { why: "the list says that it is not equal, but it is".to_owned() },
        (verdict, _) => verdict,
    }
}

/// Where one program is run: plain and protected at the same path, one after the other.
struct Place<'a> {
    program: &'a Program,
    list: &'a List,
    folder: PathBuf,
    original: PathBuf,
    /// The path of both.
    path: PathBuf,
    /// Whether the package is started by its plain name as well.
    directly: bool,
    limit: Duration,
}

impl<'a> Place<'a> {
    fn new(program: &'a Program, list: &'a List, shop: &Shop, options: &Options) -> Outcome<Self> {
        let original = program.file()?;
        let name = Path::new(&program.name).file_name().ok_or_else(|| failed("a program without a name"))?;
        let folder = shop.folder.join(format!("place-{}-{}", program.package, name.display()));
        fs::create_dir(&folder)?;
        let path = match &program.tree {
            None => folder.join("bin").join(name),
            Some(tree) => {
                let tree = tree.canonicalize()?;
                shell(&folder, r#"cp -rs "$1" tree"#, &[&tree])?;
                folder.join("tree").join(original.strip_prefix(&tree)?)
            }
        };
        let beside = path.parent().expect("it has a folder above");
        fs::create_dir_all(beside)?;
        for (link, target) in &program.links {
            std::os::unix::fs::symlink(target, beside.join(link))?;
        }
        let (directly, limit) = (options.mapping.is_none(), Duration::from_secs(options.seconds));
        Ok(Self { program, list, folder, original, path, directly, limit })
    }

    fn compare(&self, shop: &Shop) -> Outcome<Verdict> {
        // By another process: had this one it open for writing while another thread starts a child, it could not be executed.
        shell(&self.folder, r#"rm -f "$2"; cp "$1" "$2""#, &[&self.original, &self.path])?;
        let plain = || self.program.calls.iter().map(|call| self.run(Command::new(&self.path), call)).collect::<Outcome<Vec<_>>>();
        let first = plain()?;
        for (seen, call) in first.iter().zip(&self.program.calls) {
            if seen.status != Some(call.status) {
                let said = String::from_utf8_lossy(if seen.stderr.is_empty() { &seen.stdout } else { &seen.stderr }).into_owned();
                return Err(failed(cut(&format!("plain, {:?} ends with {:?}: {said}", call.arguments(), seen.status))));
            }
        }
        let second = plain()?;
        if let Some(what) = self.difference(&first, &second) {
            return Err(failed(cut(&format!("plain it does not do the same twice: {what}"))));
        }
        fs::remove_file(&self.path)?;
        let name = format!("{}-{}", self.program.package, self.path.file_name().expect("it has a name").display());
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        if let Err(error) = shop.buy(&self.original, &name, &self.path) {
            return Ok(Verdict::Unequal { difference: error.to_string() });
        }
        let protected = |command: &dyn Fn() -> Command| -> Outcome<Option<String>> {
            let seen = self.program.calls.iter().map(|call| self.run(command(), call)).collect::<Outcome<Vec<_>>>()?;
            Ok(self.difference(&first, &seen))
        };
        if let Some(difference) = protected(&|| shop.run(&self.path))? {
            return Ok(Verdict::Unequal { difference: cut(&difference) });
        }
        // A package that was placed for it is started by its plain name as well.
        if self.directly
            && kind::interpreter(&self.path) != kind::interpreter(&self.original)
            && let Some(difference) = protected(&|| Command::new(&self.path))?
        {
            return Ok(Verdict::Unequal { difference: cut(&format!("started directly: {difference}")) });
        }
        Ok(Verdict::Equal)
    }

    /// The first difference between two series of runs.
    fn difference(&self, one: &[Seen], other: &[Seen]) -> Option<String> {
        let pairs = one.iter().zip(other).zip(&self.program.calls);
        pairs.into_iter().find_map(|((a, b), call)| Some(format!("{:?}: {}", call.arguments(), differs(a, b)?)))
    }

    /// One run in a fresh folder, with a fresh home beside it.
    fn run(&self, mut command: Command, call: &Call) -> Outcome<Seen> {
        let (folder, home) = (self.folder.join("run"), self.folder.join("home"));
        for fresh in [&folder, &home] {
            let _ = fs::remove_dir_all(fresh); // The first run finds none.
            fs::create_dir(fresh)?;
        }
        for (name, contents) in &self.list.files {
            fs::write(folder.join(name), contents)?;
        }
        if let Some(before) = &call.before {
            let mut shell = Command::new("sh");
            let output = environment(shell.args(["-ec", before]), &folder, &home).stdin(Stdio::null()).output()?;
            if !output.status.success() {
                return Err(failed(format!("before: {}", String::from_utf8_lossy(&output.stderr))));
            }
        }
        let stdin = match &call.input {
            Some(name) => folder.join(name),
            None => {
                fs::write(self.folder.join("stdin"), &call.stdin)?;
                self.folder.join("stdin")
            }
        };
        let (out, err) = (self.folder.join("stdout"), self.folder.join("stderr"));
        environment(command.args(call.arguments()), &folder, &home).envs(&call.env).stdin(File::open(stdin)?);
        let status = finish(command.stdout(File::create(&out)?).stderr(File::create(&err)?), self.limit)?;
        let left = if call.left { left(&folder)? } else { Vec::new() };
        Ok(Seen { status: status.map(code), stdout: fs::read(out)?, stderr: fs::read(err)?, left })
    }
}

/// Everything that a program can see, the same for all.
fn environment<'a>(command: &'a mut Command, folder: &Path, home: &Path) -> &'a mut Command {
    command
        .current_dir(folder)
        .env_clear()
        .env("HOME", home)
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env("TERM", "dumb");
    command.env("PERL_HASH_SEED", "0").env("SOURCE_DATE_EPOCH", "1000000000").env("USER", "somebody");
    for (name, value) in [("NAME", "A U Thor"), ("EMAIL", "author@example.com"), ("DATE", "1000000000 +0000")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    command
}

/// Waits for the end; a program that takes too long is killed with its children.
fn finish(command: &mut Command, limit: Duration) -> Outcome<Option<ExitStatus>> {
    let mut child = command.process_group(0).spawn()?;
    let group = Pid::from_child(&child);
    let begun = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if begun.elapsed() > limit => break None,
            None => std::thread::sleep(LOOK),
        }
    };
    let _ = kill_process_group(group, Signal::KILL); // Children may be left, or none.
    child.wait()?;
    Ok(status)
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// All files below a folder, with their contents; of links, where they lead.
fn left(folder: &Path) -> Outcome<Vec<(PathBuf, Vec<u8>)>> {
    use std::os::unix::ffi::OsStringExt;
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            match (kind.is_dir(), kind.is_file(), kind.is_symlink()) {
                (true, _, _) => folders.push(path),
                (_, true, _) => found.push((path.clone(), fs::read(path).unwrap_or_default())), // It may be unreadable by its mode.
                (_, _, true) => found.push((path.clone(), fs::read_link(path)?.into_os_string().into_vec())),
                _ => found.push((path, Vec::new())),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What differs between two runs.
fn differs(a: &Seen, b: &Seen) -> Option<String> {
    if a.status != b.status {
        let said = String::from_utf8_lossy(&b.stderr);
        return Some(format!("exit code {:?} and {:?}: {}", a.status, b.status, said.lines().next().unwrap_or_default()));
    }
    for (name, one, other) in [("stderr", &a.stderr, &b.stderr), ("stdout", &a.stdout, &b.stdout)] {
        if one != other {
            let line =
                |bytes: &[u8], at: usize| String::from_utf8_lossy(bytes.split(|b| *b == b'\n').nth(at).unwrap_or_default()).into_owned();
            let at = one.split(|b| *b == b'\n').zip(other.split(|b| *b == b'\n')).take_while(|(x, y)| x == y).count();
            return Some(format!("{name}, line {}: `{}` and `{}`", at + 1, line(one, at), line(other, at)));
        }
    }
    let names = |seen: &Seen| seen.left.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    if names(a) != names(b) {
        return Some("it leaves other files".to_owned());
    }
    let other = a.left.iter().zip(&b.left).find(|(x, y)| x != y)?;
    Some(format!("it leaves another {}", other.0.0.file_name().unwrap_or_default().display()))
}

fn cut(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    one_line.chars().take(SHOWN).collect()
}

fn shell(folder: &Path, script: &str, arguments: &[&Path]) -> Outcome<()> {
    let output = Command::new("sh").args(["-ec", script, "sh"]).args(arguments).current_dir(folder).stdin(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&output.stderr).trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: i32, stdout: &str) -> Seen {
        Seen { status: Some(status), stdout: stdout.into(), stderr: Vec::new(), left: vec![("/a".into(), b"x".to_vec())] }
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        assert_eq!(differs(&seen(0, "a\nb\n"), &seen(0, "a\nb\n")), None);
        assert!(differs(&seen(0, "a"), &seen(1, "a")).unwrap().contains("exit code"));
        assert_eq!(differs(&seen(0, "a\nb\n"), &seen(0, "a\nc\n")).unwrap(), "stdout, line 2: `b` and `c`");
        assert!(differs(&seen(0, "a\n"), &seen(0, "a\nc\n")).is_some());
        let mut other = seen(0, "");
        other.left[0].1 = b"y".to_vec();
        assert!(differs(&seen(0, ""), &other).unwrap().contains("another a"));
        other.left.clear();
        assert!(differs(&seen(0, ""), &other).unwrap().contains("other files"));
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $! >pid; wait"]).current_dir(folder.path()).stdin(Stdio::null());
        assert_eq!(finish(&mut command, Duration::from_millis(300)).unwrap(), None);
        let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
        let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok().filter(|stat| !stat.contains(") Z "));
        while state().is_some() {
            std::thread::sleep(LOOK);
        }
    }
}
