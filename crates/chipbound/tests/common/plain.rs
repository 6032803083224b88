//! A program plain and protected, side by side: everything that its user sees is compared.

use super::{CHIPBOUND, World, good, json_lines};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// One call of a program: its arguments and its stdin.
pub(crate) type Call<'a> = (&'a [&'a str], &'a [u8]);

/// The file of a program, following links; a missing one fails with the Debian package that brings it.
#[track_caller]
pub(crate) fn installed(path: &str, package: &str) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|e| panic!("{path}: {e}; install the Debian package {package} (./test does)"))
}

/// Everything a program sees but its code is the same for both: folder, environment, its own name.
pub(crate) fn prepared(mut command: Command, folder: &Path, call: Call<'_>) -> Output {
    command.current_dir(folder).env_clear();
    for (name, value) in [("PATH", "/usr/bin:/bin"), ("LC_ALL", "C"), ("GIT_CONFIG_NOSYSTEM", "1"), ("PERL_HASH_SEED", "0")] {
        command.env(name, value);
    }
    command.env("HOME", folder).args(call.0);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = call.1.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input))); // A program need not read.
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// A folder for one run, with the same name for both, so that programs that print it print the same.
pub(crate) fn fresh(world: &World) -> PathBuf {
    let folder = world.folder.path().join("run");
    let _ = std::fs::remove_dir_all(&folder); // The first run finds none.
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// All files that a run left, with their content.
pub(crate) fn left(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(|e| e.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push((entry.path(), std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    found.sort();
    found
}

/// Publishes `program` with each profile, buys one in direct mode and the other in common mode, and makes each call plain and protected.
#[track_caller]
pub(crate) fn same_as_plain(world: &World, suite: &str, program: &Path, calls: &[Call<'_>]) {
    let name = program.file_name().unwrap().to_str().unwrap();
    for (mode, profile) in [("direct", "code"), ("common", "code+constants")] {
        world.publish(program, name, profile, &["--profile", profile]);
        let copy = format!("{name}-{mode}");
        let bought = json_lines(&good(world.ada(&["--json", "buy", name, "--again", "--key-mode", mode, "-o", &copy])));
        let chosen = bought.last().unwrap()["chosen"].as_str().unwrap();
        assert!(chosen.contains(suite) && chosen.contains(mode), "{chosen}");
        let package = world.work(&copy);
        assert!(std::fs::read(&package).unwrap() != std::fs::read(program).unwrap());
        for &call in calls {
            let folder = fresh(world);
            let mut plain = Command::new(program);
            plain.arg0(&package);
            let plain = prepared(plain, &folder, call);
            let plain_left = left(&folder);
            let folder = fresh(world);
            let mut protected = Command::new(CHIPBOUND);
            protected.arg("run").arg("--processor").arg(&world.daemons.sockets[0]).arg(&package);
            let protected = prepared(protected, &folder, call);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let about = format!("{copy} {:?}", call.0);
            assert_eq!(text(&protected.stderr), text(&plain.stderr), "{about}");
            assert!(protected.stdout == plain.stdout, "{about}: {}\n{}", text(&protected.stdout), text(&plain.stdout));
            assert_eq!(protected.status, plain.status, "{about}");
            assert!(left(&folder) == plain_left, "{about}: it leaves the same files");
        }
    }
}

/// Builds a program here; `build` gets source and program.
pub(crate) fn built(world: &World, name: &str, source: &str, build: impl FnOnce(&Path, &Path) -> Command) -> PathBuf {
    let (from, to) = (world.folder.path().join(format!("{name}.source")), world.folder.path().join(name));
    std::fs::write(&from, source).unwrap();
    good(build(&from, &to));
    std::fs::set_permissions(&to, Permissions::from_mode(0o755)).unwrap();
    to
}
