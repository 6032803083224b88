//! On a terminal: job control of a protected program is the shell's and its own, and people see progress. The terminals are
//! pseudo-terminals of python3, whose script types and answers with everything that was printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::World;
use std::path::Path;
use std::process::Command;

/// Types each line of `dialogue` (a row "after", a row "type") into `sh -i` on a terminal once the text "after" was printed
/// since the last one, and prints what the terminal showed.
const TERMINAL: &str = r#"
import os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.environ["PS1"] = "READY> "
    os.execvp(sys.argv[1], sys.argv[1:sys.argv.index("--")])
dialogue = sys.argv[sys.argv.index("--") + 1:]
shown, seen, deadline = b"", 0, time.monotonic() + 60
while time.monotonic() < deadline:
    ready, _, _ = select.select([terminal], [], [], 0.1)
    if ready:
        try:
            more = os.read(terminal, 65536)
        except OSError:
            break
        if not more:
            break
        shown += more
    if dialogue:
        at = shown.find(dialogue[0].encode(), seen)
        if at >= 0:
            seen = at + len(dialogue[0])
            os.write(terminal, dialogue[1].encode().decode("unicode_escape").encode())
            dialogue = dialogue[2:]
sys.stdout.buffer.write(shown)
if dialogue:
    sys.exit("never saw %r" % dialogue[0])
os.waitpid(pid, 0)
"#;

/// Says when it begins, when it is continued, and what it hears.
const TALKER: &str = r#"
$| = 1; $SIG{CONT} = sub { print "continued\n" };
print "started\n"; while (<STDIN>) { print "heard $_" }
"#;

fn on_a_terminal(world: &World, command: &[&str], dialogue: &[(&str, &str)]) -> String {
    let mut python = Command::new("python3");
    python.args(["-c", TERMINAL]).args(command).arg("--").args(dialogue.iter().flat_map(|(after, typed)| [*after, *typed]));
    python.current_dir(world.work("")).env("PATH", "/usr/bin:/bin").env("TERM", "xterm");
    python.env("CHIPBOUND_HOME", world.home("ada").path()).env("CHIPBOUND_PROCESSOR", &world.daemons.sockets[0]);
    let output = python.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{shown}", String::from_utf8_lossy(&output.stderr));
    shown
}

#[test]
fn a_protected_program_is_stopped_continued_and_interrupted_from_its_terminal_like_a_plain_one() {
    let world = World::start("", 1);
    world.publish(Path::new("/usr/bin/perl"), "perl", "1", &[]);
    world.buy("perl", &[]);
    std::fs::write(world.work("talk.pl"), TALKER).unwrap();
    let talk = |start: &str| {
        let start = format!("{start} talk.pl");
        let line = format!("{start}\\n");
        let dialogue = [
            ("READY> ", line.as_str()),
            ("started\r\n", "once\\n"),
            ("heard once", "\\x1a"),
            ("Stopped", ""),
            ("READY> ", "fg\\n"),
            ("continued\r\n", "again\\n"),
            ("heard again", "\\x03"),
            ("READY> ", "echo status $?; exit\\n"),
        ];
        on_a_terminal(&world, &["bash", "--norc", "--noprofile", "-i"], &dialogue).replace(&start, "PROGRAM")
    };
    let (plain, with_the_processor) = (talk("/usr/bin/perl"), talk(&format!("{} run ./perl", common::CHIPBOUND)));
    assert!(plain.contains("status 130"), "{plain}");
    let words = |shown: &str| shown.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&with_the_processor), words(&plain));
}

#[test]
fn on_a_terminal_a_purchase_shows_its_progress_and_in_a_pipe_plain_lines() {
    let world = World::start("", 1);
    common::noise(&world.work("film"), 24 << 20);
    world.publish(&world.work("film"), "film", "1", &["--open-to-file"]);
    let shown = on_a_terminal(&world, &[common::CHIPBOUND, "buy", "film", "-o", "film.package"], &[]);
    assert!(shown.contains("B/24.00 MiB") && shown.contains("\u{1b}["), "{shown:?}");

    let piped = common::good(world.ada(&["redownload", "1", "-o", "again.package"]));
    let said = [piped.stdout, piped.stderr].concat();
    assert!(!said.contains(&b'\r') && !said.contains(&0x1b), "{}", String::from_utf8_lossy(&said));
    assert!(String::from_utf8_lossy(&said).contains("1007"));
}
