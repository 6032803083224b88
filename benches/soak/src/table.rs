//! The page of results.

use crate::outcome::{Report, Verdict, count};
use std::fmt::Write;
use std::fs;

/// The whole of docs/compatibility.md; `variants` is its part about runs in other ways.
pub(crate) fn document(reports: &[Report<'_>], variants: &str) -> String {
    let mut page = format!("{INTRODUCTION}{variants}## Results\n\n");
    let _ = writeln!(
        page,
        "{} **{}.**\n\n| package | program | file | calls | plain and protected |\n|---|---|---|---|---|",
        made(),
        count(reports)
    );
    for Report { program, kind, verdict } in reports {
        let result = match verdict {
            Verdict::Equal => "equal".to_owned(),
            Verdict::Known { reason } => format!("unequal: {reason}"),
            Verdict::Unequal { difference } => format!("**unequal**: {difference}"),
            Verdict::Unfit { why } => format!("not compared: {why}"),
        };
        let result = result.replace('|', "\\|");
        let name = program.name.rsplit('/').next().unwrap_or(&program.name);
        let _ = writeln!(page, "| {} | {name} | {kind} | {} | {result} |", program.package, program.calls.len());
    }
    page
}

/// On what.
pub(crate) fn made() -> String {
    let field = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("Made on Debian {}, kernel {}.", field("/etc/debian_version"), field("/proc/sys/kernel/osrelease"))
}

const INTRODUCTION: &str = "\
# Compatibility

Real programs of Debian, each published, bought and delivered by the commands that people type, then run plain, by `chipbound run`, and
started directly by its name, under an ordinary user with a processor of that user: the same path, arguments, environment, fresh folder
and stdin. Compared byte for byte are stdout, stderr, exit code or signal, and the files that were left. Nothing is normalised: calls
that print times or process ids are not in the list, and a plain program that does not do the same twice is not counted as equal.
Anybody makes this page again with

```console
$ ./soak corpus                       # installs the packages; takes some minutes
$ ./soak corpus --only git,python3
$ ./soak corpus --profile code+constants
$ ./soak corpus --mapping anonymous
$ ./soak corpus --run-option=--json   # whatever `chipbound run` knows, for every program
```

The list is [benches/soak/corpus.toml](../benches/soak/corpus.toml); a package or a call more is a line more there.

## What a protected program sees otherwise

- `/proc/self/{mem,environ,auxv,oom_score_adj,...}` belong to root, for its memory is closed to its user: an ordinary user's program
  cannot open those of its own that only their owner may open or write. Programs that it executes are not concerned.
- For the same reason it cannot read the memory of a child that it forked and traces, until that child executes another program.
- `VmExe` in `/proc/self/status` counts the wrong pages, and `PR_GET_DUMPABLE` says 0.
- `/proc/self/maps` names the program's segments `/memfd:chipbound (deleted)`. What looks there for the file of its own symbols finds none:
  backtraces of Rust's standard library have the right frames, without their names.
- Shell scripts and 32-bit programs are not sealed: they are published as data.

Packages on a FUSE mount (bindfs) are started as elsewhere (`a_package_on_a_fuse_mount_runs_and_is_refused_when_its_file_system_is_gone`);
network file systems have not been tried.

";
