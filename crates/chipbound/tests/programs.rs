//! Real programs of Debian, and ones built here, go the whole way: published, bought, delivered, run. What they print, how they
//! end and what they leave behind is what the plain program does, in both key modes and with every suite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::plain::{Call, built, installed, prepared, same_as_plain};
use common::{World, good};
use std::process::Command;

/// A system whose server has one suite only.
fn world_of(suite: &str) -> World {
    World::start(&format!("suites = [\"{suite}\"]\n"), 1)
}

/// Text that repeats and does not, of about a mebibyte.
fn text() -> Vec<u8> {
    (0..24_000_u64).flat_map(|n| format!("line {n} of many: {:x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()).collect()
}

#[test]
fn a_small_pie_python_with_threads_and_git_run_as_plain() {
    let suite = "x-wing+aes-256-gcm";
    let world = world_of(suite);
    let sort = installed("/usr/bin/sort", "coreutils");
    same_as_plain(&world, suite, &sort, &[(&["--parallel=4", "-r"], &text()), (&["/nonexistent"], b""), (&["--version"], b"")]);
    let python = installed("/usr/bin/python3", "python3");
    let calls: [Call<'_>; 3] = [(&["-I", "-c", SCRIPT, "a", "b c"], &text()), (&["-I", "-c", "1/0"], b""), (&["-I", "-"], b"print(6 * 7)")];
    same_as_plain(&world, suite, &python, &calls);
    let git = installed("/usr/bin/git", "git");
    let repository = world.folder.path().join("repository");
    let repository = repository.to_str().unwrap();
    good(Command::new("sh").args(["-ec", MAKE_REPOSITORY, "sh", repository]).env("HOME", world.folder.path()));
    let calls: [Call<'_>; 6] = [
        (&["-C", repository, "log", "-p", "--format=%s %T"], b""),
        (&["clone", "-q", "--bare", "--no-local", repository, "copy.git"], b""),
        (&["init", "-q", "-b", "main", "new"], b""),
        (&["hash-object", "--stdin"], &text()),
        (&["-C", repository, "fsck", "--strict"], b""),
        (&["-C", "/", "log"], b""),
    ];
    same_as_plain(&world, suite, &git, &calls);
}

#[test]
fn busybox_openssl_and_perl_run_as_plain() {
    let suite = "x-wing+chacha20-poly1305";
    let world = world_of(suite);
    let busybox = installed("/bin/busybox", "busybox-static");
    let calls: [Call<'_>; 4] = [
        (&["awk", "{ s += length($0) } END { print NR, s; exit 3 }"], &text()),
        (&["sh", "-c", "for i in 1 2 3; do echo $i | md5sum & wait; done; touch left; exit 4"], b""),
        (&["gzip", "-9c"], &text()),
        (&["nosuchapplet"], b""),
    ];
    same_as_plain(&world, suite, &busybox, &calls);
    let openssl = installed("/usr/bin/openssl", "openssl");
    let (key, iv) = ("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "000102030405060708090a0b0c0d0e0f");
    let calls: [Call<'_>; 4] = [
        (&["dgst", "-sha3-512"], &text()),
        (&["enc", "-aes-256-ctr", "-K", key, "-iv", iv], &text()),
        (&["enc", "-chacha20", "-K", key, "-iv", iv, "-out", "left"], &text()),
        (&["prime", "-checks", "20", "170141183460469231731687303715884105727"], b""),
    ];
    same_as_plain(&world, suite, &openssl, &calls);
    let perl = installed("/usr/bin/perl", "perl");
    let script = r#"my %c; while (<STDIN>) { $c{$_}++ for split /\W+/ } print "$_ $c{$_}\n" for sort keys %c;
        $| = 1; if (my $pid = fork) { waitpid $pid, 0; print "child ", $? >> 8, "\n"; exit 5 } exit 6"#;
    same_as_plain(&world, suite, &perl, &[(&["-e", script], &text()), (&["-e", "die qq(no\\n)"], b""), (&["-e", "kill 9, $$"], b"")]);
}

#[test]
fn static_go_dynamic_go_and_static_rust_run_as_plain() {
    let suite = "dhkem-p256+aes-256-gcm";
    let world = world_of(suite);
    let gojq = installed("/usr/bin/gojq", "gojq");
    let document = br#"{"a": [1, 2, {"b": "text"}], "c": null}"#;
    same_as_plain(&world, suite, &gojq, &[(&["-S", ".a[2].b, (.a[:2] | add)"], document), (&[".["], document), (&["-e", ".c"], document)]);
    let fzf = installed("/usr/bin/fzf", "fzf");
    same_as_plain(&world, suite, &fzf, &[(&["--filter", "line77 many"], &text()), (&["--filter", "nothing has this"], &text())]);
    let program = built(&world, "rusty", RUST, |from, to| {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2021", "-O", "-C", "target-feature=+crt-static", "-o"]).arg(to).arg(from);
        rustc
    });
    same_as_plain(&world, suite, &program, &[(&["a", "b"], &text()), (&["panic"], b"")]);
}

#[test]
fn threads_in_c_xz_and_pigz_run_as_plain() {
    let suite = "dhkem-p256+chacha20-poly1305";
    let world = world_of(suite);
    let program = built(&world, "threaded", C, |from, to| {
        let mut cc = Command::new("cc");
        cc.args(["-x", "c", "-O2", "-pthread", "-o"]).arg(to).arg(from);
        cc
    });
    same_as_plain(&world, suite, &program, &[(&["16"], b""), (&["1"], b"")]);
    let packed = |program: &str| prepared(Command::new(program), world.folder.path(), (&["-c"], &text())).stdout;
    let xz = installed("/usr/bin/xz", "xz-utils");
    let calls: [Call<'_>; 3] = [(&["-c", "-T4", "--block-size=100KiB"], &text()), (&["-dc"], &packed("/usr/bin/xz")), (&["-dc"], b"no xz")];
    same_as_plain(&world, suite, &xz, &calls);
    let pigz = installed("/usr/bin/pigz", "pigz");
    same_as_plain(&world, suite, &pigz, &[(&["-cn", "-p4", "-b128"], &text()), (&["-dc"], &packed("/usr/bin/pigz")), (&["-dc"], b"no gz")]);
}

const SCRIPT: &str = r#"
import hashlib, queue, sys, threading, subprocess
results, work = {}, queue.Queue()
def worker():
    while (n := work.get()) is not None:
        results[n] = hashlib.blake2b(str(n).encode() * 10000).hexdigest()
threads = [threading.Thread(target=worker) for _ in range(8)]
[t.start() for t in threads]
[work.put(n) for n in range(200)]
[work.put(None) for _ in threads]
[t.join() for t in threads]
for n in sorted(results): print(n, results[n])
print(len(sys.stdin.buffer.read()), sys.argv[1:])
print(subprocess.run(["/bin/echo", "child"], capture_output=True).stdout)
open("left", "w").write("by python")
print("to stderr", file=sys.stderr)
sys.exit(9)
"#;

const MAKE_REPOSITORY: &str = r#"
git init -q -b main "$1"; cd "$1"; git config user.name a; git config user.email a@b
echo one > a; git add a; git commit -qm one; echo two >> a; git commit -qam two; git branch side"#;

const RUST: &str = r#"
use std::io::Read;
fn main() {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).unwrap();
    let parts: Vec<u64> = input.chunks(100_000).map(|c| c.to_vec())
        .map(|c| std::thread::spawn(move || c.iter().fold(7u64, |h, b| h.rotate_left(5) ^ u64::from(*b)))).map(|t| t.join().unwrap()).collect();
    println!("{parts:x?} {:?}", std::env::args().skip(1).collect::<Vec<_>>());
    let caught = std::panic::catch_unwind(|| if std::env::args().count() == 2 { std::panic::resume_unwind(Box::new(1)) });
    std::process::exit(if caught.is_err() { 101 } else { 17 });
}"#;

const C: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local unsigned long own;
static unsigned long sum;
static void *work(void *n) {
    for (unsigned long i = 0; i < 200000; i++) own = own * 31 + i + (unsigned long)n;
    pthread_mutex_lock(&lock); sum ^= own; pthread_mutex_unlock(&lock);
    return NULL;
}
int main(int argc, char **argv) {
    pthread_t threads[64]; long count = atol(argv[1]);
    for (long n = 0; n < count; n++) pthread_create(&threads[n], NULL, work, (void *)n);
    for (long n = 0; n < count; n++) pthread_join(threads[n], NULL);
    printf("%ld threads: %lx\n", count, sum);
    return 42 + argc;
}"#;
