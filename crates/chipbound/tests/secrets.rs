//! Ks and every other secret stay where they belong (source \[36\], S8): planted and known secrets are searched for in every file,
//! every log line and every process's environment, and another user gets at none of it. A search that finds nothing is shown to
//! find what is planted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use chipbound_host::Kek;
use chipbound_wire::enrolment::Voucher;
use common::{CHIPBOUND, PASSWORD, World, good, json_lines, noise, script};
use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

/// In the executable segment of the program that is sold.
const CODE_MARKER: &str = "the-code-that-only-one-processor-may-read/4b1d7c93";
/// Over and over in the data that are sold.
const DATA_MARKER: &str = "the-data-that-only-one-processor-may-read/9e02c6aa";

/// One secret, and the files that may hold it, by the beginnings of their paths below the world's folder: all of those must.
struct Secret {
    name: String,
    bytes: Vec<u8>,
    homes: Vec<&'static str>,
}

impl Secret {
    fn new(name: impl Into<String>, bytes: impl AsRef<[u8]>, homes: &[&'static str]) -> Self {
        Self { name: name.into(), bytes: bytes.as_ref().to_vec(), homes: homes.to_vec() }
    }

    /// How it could be written: as it is, as text of several alphabets, as numbers, escaped.
    fn forms(&self) -> Vec<Vec<u8>> {
        let mut forms = vec![
            self.bytes.clone(),
            HEXLOWER.encode(&self.bytes).into_bytes(),
            HEXUPPER.encode(&self.bytes).into_bytes(),
            BASE32_NOPAD.encode(&self.bytes).into_bytes(),
            format!("{:?}", self.bytes).trim_matches(['[', ']']).as_bytes().to_vec(),
            self.bytes.escape_ascii().to_string().into_bytes(),
        ];
        // Inside a longer run of bytes, base64 begins at one of three places; its first and last character depend on neighbours.
        for skip in 0..3 {
            let whole = &self.bytes[skip..skip + (self.bytes.len() - skip) / 3 * 3];
            forms.extend([BASE64_NOPAD.encode(whole).into_bytes(), BASE64URL_NOPAD.encode(whole).into_bytes()]);
        }
        forms
    }
}

/// All files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
        match entry.file_type().unwrap() {
            t if t.is_dir() => found.extend(files(&entry.path())),
            t if t.is_file() => found.push(entry.path()),
            _ => {} // The processor's socket.
        }
    }
    found
}

/// The files below `folder` that hold the secret in any form.
fn holders(folder: &Path, secret: &Secret) -> Vec<String> {
    let forms = secret.forms();
    let finders: Vec<_> = forms.iter().map(memchr::memmem::Finder::new).collect();
    let holds = |path: &PathBuf| {
        let content = fs::read(path).unwrap();
        finders.iter().any(|f| f.find(&content).is_some())
    };
    files(folder).iter().filter(|p| holds(p)).map(|p| p.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()).collect()
}

/// A system whose daemons log all that they can, allow core dumps as far as they are asked, and keep what they print.
fn talkative() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let exe = folder.path().join("chipbound");
    let text = format!(
        "#!/bin/bash\nexport RUST_LOG=trace\nulimit -c unlimited\n\
         if [ \"$2\" = run ]; then cd \"$(dirname \"$4\")/..\"; exec '{CHIPBOUND}' \"$@\" > >(exec tee -a \"$1.stdout.log\"); fi\n\
         exec '{CHIPBOUND}' \"$@\""
    );
    script(&exe, &text);
    (World::start_by(&exe, "", 1), folder)
}

/// A client whose arguments, environment and words are kept in `name.proc` and `name.out` in the world's folder, with the data
/// marker searched for meanwhile. Returns how often there was a spool to search.
fn watched(world: &World, mut command: Command, name: &str) -> usize {
    let root = world.folder.path();
    let to = |end: &str| fs::File::create(root.join(format!("{name}.{end}"))).unwrap();
    command.env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(to("out")).stderr(to("err"));
    let mut child = command.spawn().unwrap();
    let marker = Secret::new("data", DATA_MARKER, &[]);
    let (mut seen, mut spools) = (Vec::new(), 0);
    let status = loop {
        for file in ["cmdline", "environ"] {
            seen.extend(fs::read(format!("/proc/{}/{file}", child.id())).unwrap_or_default());
        }
        for folder in [root.join("processor-1/spool"), root.join("work")] {
            for path in files_while_they_change(&folder) {
                let content = fs::read(&path).unwrap_or_default();
                assert!(marker.forms().iter().all(|f| memchr::memmem::find(&content, f).is_none()), "{}", path.display());
                spools += usize::from(content.len() > DATA_MARKER.len());
            }
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    fs::write(root.join(format!("{name}.proc")), &seen).unwrap();
    let said = fs::read_to_string(root.join(format!("{name}.err"))).unwrap();
    assert!(status.success(), "{name}: {status:?} {said}");
    assert!(!seen.is_empty() || name.starts_with("run"), "{name} was seen while it ran; a program that only says hello may have ended");
    spools
}

fn files_while_they_change(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().filter_map(|e| Some(e.ok()?.path())).collect()
}

/// A program that says hello and carries the marker among its instructions.
fn program(world: &World) -> PathBuf {
    let (source, program) = (world.folder.path().join("hello.c"), world.folder.path().join("hello"));
    let text = format!(
        "#include <stdio.h>\n__asm__(\".text\\n.globl marker\\nmarker: .ascii \\\"{CODE_MARKER}\\\"\\n\");\n\
         int main(void) {{ puts(\"hello\"); }}\n"
    );
    fs::write(&source, text).unwrap();
    good(Command::new("cc").arg("-o").arg(&program).arg(&source));
    fs::remove_file(source).unwrap();
    program
}

/// The private key in a PKCS#8 document of a P-256 key (RFC 5958, RFC 5915).
fn scalar(pkcs8: &[u8]) -> Vec<u8> {
    let at = memchr::memmem::find(pkcs8, &[2, 1, 1, 4, 32]).unwrap() + 5;
    pkcs8[at..at + 32].to_vec()
}

/// Every private key and every key-encryption key of the system, unsealed by whoever has both.
fn keys(root: &Path) -> Vec<Secret> {
    let kek = |file: &'static str| (Kek::load(&root.join(file)).unwrap(), Secret::new(file, fs::read(root.join(file)).unwrap(), &[file]));
    let (issuing, issuing_kek) = kek("authority/issuing.kek");
    let (offline, offline_kek) = kek("authority/offline/root.kek");
    let (server, server_kek) = kek("server/kek");
    let (vendor, vendor_kek) = kek("home-acme/vendor/kek");
    let (processor, processor_kek) = kek("processor-1/state/kek");
    let mut found = vec![issuing_kek, offline_kek, server_kek, vendor_kek, processor_kek];
    let mut pkcs8 = |kek: &Kek, file: &str, context: &str| {
        let key = kek.load_sealed(&root.join(file), context).unwrap();
        found.push(Secret::new(file, scalar(&key), &[]));
    };
    pkcs8(&issuing, "authority/issuing.key", "chipbound authority issuing key");
    pkcs8(&offline, "authority/offline/root.key", "chipbound authority root key");
    for name in ["server-second-path", "server-statement", "server-receipt"] {
        pkcs8(&server, &format!("server/keys/{name}.key"), &format!("server key {name}"));
    }
    pkcs8(&server, "server/keys/tls.key", "server key tls.key");
    pkcs8(&vendor, "home-acme/vendor/vendor.key", "vendor key");
    let store = processor.load_sealed(&root.join("processor-1/state/keys.sealed"), "chipbound/1 processor keys").unwrap();
    found.push(Secret::new("the processor's identity key", scalar(&store), &[]));
    // The store: the identity key, then generations of sealing keys, each a mechanism and 32 secret bytes.
    let mut stored = minicbor::Decoder::new(&store);
    stored.array().unwrap();
    stored.bytes().unwrap();
    for _ in 0..stored.array().unwrap().unwrap() {
        for _ in 0..stored.array().unwrap().unwrap() {
            let key = stored.bytes().unwrap();
            found.push(Secret::new("a sealing key of the processor", &key[key.len() - 32..], &[]));
        }
    }
    assert!(found.len() >= 5 + 8 + 2, "with a sealing key of each kind");
    found
}

/// Everything is bought, run and fetched again, and the secrets of all that.
fn used() -> (World, tempfile::TempDir, Vec<Secret>) {
    let (mut world, wrapper) = talkative();
    let root = world.folder.path().to_owned();
    let hello = program(&world);
    let plain = fs::read(&hello).unwrap();
    world.publish(&hello, "hello", "1", &[]);
    fs::remove_file(&hello).unwrap();
    let data = root.join("data");
    let mut content = noise(&data, 24 << 20);
    content.chunks_mut(4096).for_each(|c| c[..DATA_MARKER.len()].copy_from_slice(DATA_MARKER.as_bytes()));
    fs::write(&data, &content).unwrap();
    world.publish(&data, "data", "1", &[]);
    fs::remove_file(&data).unwrap();

    let (url, tls) = (world.daemons.server_url.clone(), world.daemons.tls_root());
    fs::write(root.join("typed.password"), PASSWORD).unwrap();
    let mut login = world.ada(&["login", &url, "--user", "ada", "--password-file"]);
    login.arg(root.join("typed.password")).arg("--tls-root").arg(tls);
    watched(&world, login, "login");
    let spools = watched(&world, world.ada(&["--json", "buy", "data"]), "buy-data");
    assert!(spools > 0, "the spool was searched while the delivery went on");
    watched(&world, world.ada(&["buy", "hello", "--key-mode", "common"]), "buy-hello");
    watched(&world, world.ada(&["run", "./hello"]), "run-hello");
    assert_eq!(fs::read(root.join("run-hello.out")).unwrap(), b"hello\n");
    let listed = json_lines(&good(world.ada(&["--json", "receipts"])));
    let order = listed.iter().find(|l| l["program"].as_str().unwrap().ends_with("/hello")).unwrap()["order"].as_str().unwrap().to_owned();
    watched(&world, world.ada(&["redownload", &order, "-o", "again", "--own-line"]), "redownload");

    let mut secrets = keys(&root);
    let passwords = ["ada.password", "acme.password", "typed.password"];
    secrets.push(Secret::new("the password", PASSWORD, &passwords));
    for user in ["ada", "acme"] {
        let session = world.home(user).session().unwrap();
        let home = if user == "ada" { "home-ada/session.json" } else { "home-acme/session.json" };
        secrets.push(Secret::new(format!("{user}'s token"), &session.token, &[home]));
    }
    secrets.push(Secret::new("the program's code", CODE_MARKER, &["server/blobs/plain/"]));
    secrets.push(Secret::new("the data", DATA_MARKER, &["server/blobs/plain/"]));
    // Whoever has the digest of the plaintext can test guesses of it.
    secrets.push(Secret::new("the program's digest", blake3::hash(&plain).as_bytes(), &["server/server.db"]));
    secrets.extend(credentials(&mut world));
    (world, wrapper, secrets)
}

/// A voucher and a ticket, both used.
fn credentials(world: &mut World) -> Vec<Secret> {
    let runtime = &world.runtime;
    let (voucher, ticket) = runtime.block_on(async {
        let voucher = world.daemons.voucher("vendor").await.unwrap();
        let url = world.daemons.authority_url.clone();
        let home = world.daemons.path("home-second-vendor");
        world.daemons.chipbound(&["vendor", "init", "--authority", &url, "--voucher", &voucher, "--home"], &[&home]).await.unwrap();
        let api = chipbound::api::Api::with(&world.home("ada").session().unwrap()).unwrap();
        let processor = chipbound::control::describe(&world.daemons.sockets[0]).unwrap().processor;
        let wish = chipbound_wire::api::NewOrder { program: "hello".into(), version: None, processor, key_mode: None, again: true };
        let order = api.order("a-key-for-the-ticket", &wish).await.unwrap();
        api.agree(&order.order, chipbound_wire::Digest::of(&order.confirmation.0), chipbound_wire::api::Payment::Prepaid).await.unwrap();
        let ticket = api.ticket(&order.order).await.unwrap();
        drop(api.tunnel(&ticket).await.unwrap());
        (voucher, ticket)
    });
    let secret = Voucher::from_str(&voucher).unwrap().secret;
    vec![
        Secret::new("the voucher", voucher, &[]),
        Secret::new("the voucher's secret", secret, &[]),
        Secret::new("the ticket", ticket.ticket.0, &[]),
    ]
}

#[test]
fn no_secret_is_on_a_disk_in_a_log_or_in_an_environment_where_it_does_not_belong() {
    let (mut world, _wrapper, secrets) = used();
    let root = world.folder.path().to_owned();
    for (number, daemon) in world.daemons.daemons.iter().enumerate() {
        for file in ["cmdline", "environ"] {
            let content = match fs::read(format!("/proc/{}/{file}", daemon.pid())) {
                Err(e) if e.kind() == ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => continue, // Not even its user may.
                content => content.unwrap(),
            };
            assert!(file == "cmdline" || memchr::memmem::find(&content, b"RUST_LOG=trace").is_some());
            fs::write(root.join(format!("daemon-{number}.{file}")), content).unwrap();
        }
    }
    world.daemons.daemons.iter_mut().for_each(|d| d.stop()); // So that all that they wrote is in the files.
    for name in ["authority", "server", "processor-1"] {
        let log = fs::read_to_string(root.join(format!("{name}.log"))).unwrap();
        assert!(log.contains(" INFO "), "{name} logs:\n{log}");
        assert!(name != "server" || log.contains(" TRACE ") || log.contains(" DEBUG "), "all that there is to say is said");
    }
    assert!(fs::read_to_string(root.join("server.stdout.log")).unwrap().contains("ready"), "what they print is kept");
    for secret in &secrets {
        let found = holders(&root, secret);
        for file in &found {
            assert!(secret.homes.iter().any(|home| file.starts_with(home)), "{} is in {file}", secret.name);
        }
        for home in &secret.homes {
            assert!(found.iter().any(|file| file.starts_with(home)), "{} is not found where it is: {home}", secret.name);
        }
    }
    let dumps: Vec<_> = files(&root).into_iter().filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("core")).collect();
    assert!(dumps.is_empty(), "{dumps:?}");
    // What is planted is found, in each form and beside whatever neighbours.
    let planted = root.join("planted");
    fs::create_dir(&planted).unwrap();
    for secret in &secrets {
        for (number, form) in secret.forms().into_iter().enumerate() {
            fs::write(planted.join(format!("{number}")), [b"before ".as_slice(), &form, b" after"].concat()).unwrap();
        }
        for (number, before) in ["", "x", "xy"].into_iter().enumerate() {
            let long = [before.as_bytes(), &secret.bytes, b"behind"].concat();
            fs::write(planted.join(format!("base64-{number}")), BASE64_NOPAD.encode(&long)).unwrap();
        }
        assert_eq!(holders(&planted, secret).len(), files(&planted).len(), "{}", secret.name);
    }
}

#[test]
fn folders_and_files_are_their_owners_alone() {
    let (world, _wrapper, _) = used();
    let root = world.folder.path();
    let public = ["toml", "pem", "der", "chain", "cbor"];
    let mut seen = 0;
    for top in ["authority", "server", "processor-1", "home-ada", "home-acme"] {
        let mut folders = vec![root.join(top)];
        while let Some(folder) = folders.pop() {
            let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(&folder), 0o700, "{}", folder.display());
            for entry in fs::read_dir(&folder).unwrap().map(|e| e.unwrap()) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(path);
                    continue;
                }
                seen += 1;
                let known = path.extension().is_some_and(|e| public.contains(&e.to_str().unwrap()));
                // The interpreter holds no secret: everybody who starts a package executes it.
                let executed = path.file_name().is_some_and(|name| name == "interpreter") && mode(&path) == 0o755;
                let fit = mode(&path) == 0o600 || (known && mode(&path) == 0o644) || executed;
                assert!(fit, "{} {:o}", path.display(), mode(&path));
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

/// Where in the memory of a process, as its owner or root reads it, one of these byte strings lies; and how many mappings named
/// `secretmem` gave nothing.
fn in_memory(pid: u32, wanted: &[Vec<u8>]) -> (Vec<String>, usize) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut found, mut hidden) = (Vec::new(), 0);
    for line in maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with('r'))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (number(to) - number(from)) as usize];
        match memory.read_exact_at(&mut bytes, number(from)) {
            Ok(()) if wanted.iter().any(|w| memchr::memmem::find(&bytes, w).is_some()) => found.push(line.to_owned()),
            Ok(()) => {}
            Err(_) => hidden += usize::from(line.contains("secretmem")),
        }
    }
    (found, hidden)
}

#[test]
fn whoever_reads_the_processors_whole_memory_finds_no_key_that_outlives_a_delivery() {
    if !rustix::process::geteuid().is_root() {
        println!("not run here: only root may read the daemon's memory");
        return;
    }
    let (world, _wrapper, secrets) = used();
    let pid = world.daemons.daemons.last().unwrap().pid();
    let public = chipbound::control::describe(&world.daemons.sockets[0]).unwrap().processor;
    let (found, hidden) = in_memory(pid, &[public.0.to_vec()]);
    assert!(!found.is_empty(), "the control: what is no secret is found");
    let log = fs::read_to_string(world.folder.path().join("processor-1.log")).unwrap();
    if hidden == 0 {
        println!("not run here: this kernel has no memfd_secret, and the log says so");
        assert!(log.contains("memory for keys"), "{log}");
        return;
    }
    let lasting: Vec<_> = secrets
        .iter()
        .filter(|s| s.name.contains("of the processor") || s.name.contains("processor's") || s.name.contains("processor-1"))
        .collect();
    assert!(lasting.len() >= 4, "the key-encryption key, the identity key, two sealing keys");
    for secret in lasting {
        let reversed = secret.bytes.iter().rev().copied().collect();
        let (found, _) = in_memory(pid, &[secret.bytes.clone(), reversed]);
        assert!(found.is_empty(), "{} is in {found:#?}", secret.name);
    }
}

/// Prints each path of its arguments that it can open, read the link of, or list.
const TRY: &str = r#"exec 2>/dev/null
for p; do
    if [ -L "$p" ]; then readlink "$p" >/dev/null; elif [ -d "$p" ]; then ls "$p" >/dev/null; else (exec 3<"$p"); fi && echo "$p"
done
exit 0"#;

#[test]
fn another_user_gets_at_nothing_of_the_daemons_and_a_crash_leaves_no_dump() {
    if !rustix::process::geteuid().is_root() {
        println!("not run here: only root can act as another user");
        return;
    }
    let (world, _wrapper, _) = used();
    let root = world.folder.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let tops = ["authority", "server", "processor-1", "home-ada", "home-acme"].map(|top| root.join(top));
    let mut paths: Vec<_> = tops.iter().flat_map(|top| files(top)).chain(tops.clone()).collect();
    let pids: Vec<_> = world.daemons.daemons.iter().map(|d| d.pid()).collect();
    for pid in &pids {
        paths.extend(["mem", "environ", "maps", "fd/", "exe", "cwd", "auxv", "io", "pagemap"].map(|f| format!("/proc/{pid}/{f}").into()));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(core[4..6], ["0", "0"], "core dumps are off, and stay off");
    }
    let opened = |mut shell: Command| {
        let output = good(shell.args(["sh", "-c", TRY, "try"]).args(&paths));
        String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect::<Vec<_>>()
    };
    assert_eq!(opened(Command::new("env")).len(), paths.len(), "the owner and root can");
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", "-all", "--bounding-set", "-all"]);
    let opened = opened(nobody);
    assert!(opened.is_empty(), "{opened:?}");
    for pid in pids {
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::SEGV).unwrap();
    }
    drop(world.runtime);
    let mut daemons = world.daemons;
    daemons.daemons.iter_mut().for_each(|d| d.stop());
    let dumps: Vec<_> = files(root).into_iter().filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("core")).collect();
    assert!(dumps.is_empty(), "{dumps:?}");
}
