//! Protected shared libraries: a protected program loads them through DT_NEEDED and dlopen as plain ones, and nobody else does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "own_uid/installed.rs"]
mod installed;

use chipbound::demo::world::Daemon;
use chipbound_wire::Code;
use common::{PROCESSOR, World, good, json_lines, refused, script};
use installed::{CUSTOMER, Installed, lines, mode, own, root_with_setpriv};
use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Compiles a source beside this file into the world's `plain` folder.
fn compiled(world: &World, compiler: &str, source: &str, name: &str, options: &[&str]) -> PathBuf {
    let folder = world.folder.path().join("plain");
    fs::create_dir_all(&folder).unwrap();
    let (source, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libraries").join(source), folder.join(name));
    good(Command::new(compiler).args(["-O1", "-w", "-o"]).arg(&to).arg(source).current_dir(&folder).args(options));
    to
}

/// acme publishes a file and ada buys it under its own name.
fn bought(world: &World, plain: &Path, more: &[&str]) -> PathBuf {
    let name = plain.file_name().unwrap().to_str().unwrap();
    let published = name.replace('.', "-");
    world.publish(plain, &published, "1", more);
    good(world.ada(&["buy", &published, "-o", name]));
    world.work(name)
}

/// A program with a library that it needs, both plain and both protected.
struct Linked {
    world: World,
    plain: PathBuf,
    program: PathBuf,
    library: PathBuf,
}

impl Linked {
    fn new(library_options: &[&str]) -> Self {
        let world = World::start("", 1);
        let library = compiled(&world, "cc", "greet.c", "libgreet.so", &[&["-shared", "-fPIC"], library_options].concat());
        let plain = compiled(&world, "cc", "linked.c", "linked", &["-L.", "-lgreet", "-Wl,-rpath,$ORIGIN"]);
        let library = bought(&world, &library, &[]);
        let program = bought(&world, &plain, &[]);
        Self { world, plain, program, library }
    }
}

/// A library, and a program that loads what it is told to, both plain and both protected.
struct Opened {
    world: World,
    plain: PathBuf,
    program: PathBuf,
}

impl Opened {
    fn new() -> Self {
        let world = World::start("", 1);
        let library = compiled(&world, "cc", "greet.c", "libgreet.so", &["-shared", "-fPIC"]);
        let plain = compiled(&world, "cc", "opener.c", "opener", &["-pthread", "-ldl"]);
        bought(&world, &library, &[]);
        let program = bought(&world, &plain, &[]);
        Self { world, plain, program }
    }

    /// The protected program, loading the protected library when a line comes.
    fn waiting(&self, library: &str) -> Child {
        let mut command = Command::new(&self.program);
        command.args(["wait", library]).current_dir(self.world.work(""));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        said_in(&mut child, "hello");
        child
    }
}

/// Reads the program's stdout up to this line.
fn said_in(child: &mut Child, line: &str) {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(format!("{line}\n").as_bytes()) {
        assert_eq!(child.stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1, "{line} is not said: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
}

fn type_line(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
}

/// Runs a program in its own folder, where its libraries are.
fn ran(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(program.parent().unwrap()).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn same(plain: &Path, protected: &Path, arguments: &[&str]) -> Output {
    let (plain, protected) = (ran(plain, arguments), ran(protected, arguments));
    assert_eq!(text(&protected.stderr), text(&plain.stderr), "{arguments:?}");
    assert_eq!(text(&protected.stdout), text(&plain.stdout), "{arguments:?}");
    assert_eq!(protected.status, plain.status, "{arguments:?}");
    plain
}

/// A program that ended with 126 because of its library, without having run anything of it; what it said.
#[track_caller]
fn ended(output: &Output, code: Code) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(126), "{output:?}");
    assert!(said.contains(&format!("chipbound: error[{code}]: ")) && said.contains("\nwhat to do: "), "{said}");
    assert!(!text(&output.stdout).contains("constructed"), "{output:?}");
    said
}

#[test]
fn a_program_with_a_protected_library_runs_as_the_plain_one() {
    for (number, options) in
        [&[][..], &["-Wl,-z,noseparate-code"], &["-s", "-Wl,-z,now"], &["-Wl,--hash-style=sysv", "-nostartfiles"]].into_iter().enumerate()
    {
        let linked = Linked::new(options);
        let plain = same(&linked.plain, &linked.program, &["a", "b"]);
        assert_eq!(plain.status.code(), Some(7), "{options:?}");
        // Its code is not in the file, and nothing of it can be executed from there.
        let (sold, file) = (fs::read(linked.plain.with_file_name("libgreet.so")).unwrap(), fs::read(&linked.library).unwrap());
        assert!(file.windows(64).all(|w| w != &sold[code_at(&sold)..][..64]), "{options:?}");
        if number == 0 {
            let by_command = linked.world.ada(&["run", "./linked", "a", "b"]).output().unwrap();
            assert_eq!((by_command.stdout, by_command.status), (plain.stdout, plain.status));
        }
    }
}

#[test]
fn a_library_whose_constants_are_sealed_too_runs_as_plain() {
    let world = World::start("", 1);
    let library = compiled(&world, "cc", "greet.c", "libgreet.so", &["-shared", "-fPIC"]);
    let plain = compiled(&world, "cc", "linked.c", "linked", &["-L.", "-lgreet", "-Wl,-rpath,$ORIGIN"]);
    let sealed = bought(&world, &library, &["--profile", "code+constants"]);
    let program = bought(&world, &plain, &[]);
    assert_eq!(same(&plain, &program, &["a", "b"]).status.code(), Some(7));
    let holds = |file: &Path| memchr::memmem::find(&fs::read(file).unwrap(), b"constructed with").is_some();
    assert!(holds(&library) && !holds(&sealed), "its strings are sealed");
}

/// Where `greet` lies in the file of a library: behind the first bytes of a function of its own.
fn code_at(library: &[u8]) -> usize {
    let symbol = |header: &object::elf::FileHeader64<object::LittleEndian>| {
        use object::read::elf::{FileHeader, SectionHeader};
        let sections = header.sections(object::LittleEndian, library).unwrap();
        let (_, text) = sections.section_by_name(object::LittleEndian, b".text").unwrap();
        text.sh_offset(object::LittleEndian) as usize
    };
    symbol(object::read::elf::FileHeader::parse(library).unwrap()) + 64
}

#[test]
fn tools_read_a_library_as_before() {
    let linked = Linked::new(&[]);
    let shown = |options: &[&str], file: &Path| text(&good(Command::new(options[0]).args(&options[1..]).arg(file)).stdout);
    let dynamic = |file: &Path| {
        let all = shown(&["readelf", "-dW"], file);
        all.lines().filter(|line| !line.contains("(INIT)")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(dynamic(&linked.library), dynamic(&linked.plain.with_file_name("libgreet.so")));
    for options in [["readelf", "--dyn-syms"], ["nm", "-D"]] {
        let of = |file: &Path| shown(&options, file);
        assert_eq!(of(&linked.library), of(&linked.plain.with_file_name("libgreet.so")));
    }
    let found = shown(&["ldd"], &linked.program);
    assert!(found.contains(&format!("libgreet.so => {}", linked.library.display())), "{found}");
    assert!(shown(&["ldd"], &linked.library).contains("libc.so.6 => /"));
    let verified = good(linked.world.ada(&["verify", "./libgreet.so"]));
    assert!(text(&verified.stdout).contains("shared library: it asks this machine's processor"), "{verified:?}");
    refused(linked.world.ada(&["run", "./libgreet.so"]), Code::UnsupportedProgram);
}

#[test]
fn a_library_is_loaded_in_every_way_as_the_plain_one() {
    let opened = Opened::new();
    for mode in ["now", "lazy", "again", "threads", "fork", "loaded-fork"] {
        let plain = same(&opened.plain, &opened.program, &[mode, "./libgreet.so"]);
        assert!(text(&plain.stdout).contains("answer 46"), "{mode}: {plain:?}");
    }
    if rustix::process::geteuid().is_root() {
        same(&opened.plain, &opened.program, &["orphan", "./libgreet.so"]);
    } else {
        // Such a processor cannot look at the child, whose parent has ended.
        let orphan = ran(&opened.program, &["orphan", "./libgreet.so"]);
        assert!(text(&orphan.stderr).contains("error[process_mismatch]") && orphan.stdout.is_empty(), "{orphan:?}");
    }
    same(&opened.plain, &opened.program, &["now", "./libnothing.so"]);
}

#[test]
fn a_library_of_another_c_library_is_loaded_as_the_plain_one() {
    let world = World::start("", 1);
    let library = compiled(&world, "musl-gcc", "greet.c", "libgreet.so", &["-shared", "-fPIC"]);
    let linked = compiled(&world, "musl-gcc", "linked.c", "linked", &["-L.", "-lgreet", "-Wl,-rpath,$ORIGIN"]);
    let opener = compiled(&world, "musl-gcc", "opener.c", "opener", &["-rdynamic"]);
    bought(&world, &library, &[]);
    same(&linked, &bought(&world, &linked, &[]), &["a"]);
    let program = bought(&world, &opener, &[]);
    for mode in ["now", "threads", "fork"] {
        same(&opener, &program, &[mode, "./libgreet.so"]);
    }
}

#[test]
fn objects_and_exceptions_of_a_library_are_as_plain() {
    let world = World::start("", 1);
    let library = compiled(&world, "g++", "objects.cc", "libobjects.so", &["-shared", "-fPIC"]);
    let plain = compiled(&world, "g++", "catcher.cc", "catcher", &["-pthread", "-L.", "-lobjects", "-Wl,-rpath,$ORIGIN"]);
    bought(&world, &library, &[]);
    let output = same(&plain, &bought(&world, &plain, &[]), &[]);
    assert!(text(&output.stdout).contains("caught outside: no area") && output.status.code() == Some(5), "{output:?}");
}

#[test]
fn nobody_but_a_program_of_this_processor_has_it_opened() {
    let opened = Opened::new();
    let plain = Command::new(&opened.plain).args(["now", "./libgreet.so"]).current_dir(opened.world.work("")).output().unwrap();
    let said = ended(&plain, Code::ProcessMismatch);
    assert!(said.contains("libgreet.so"), "{said}");
    // A plain child of the protected program is nobody either.
    opened.world.publish(Path::new("/bin/dash"), "sh", "1", &[]);
    let shell = opened.world.buy("sh", &[]);
    let script = format!("{} now ./libgreet.so; echo $?", opened.plain.display());
    let child = ran(&shell, &["-c", &script]);
    assert!(text(&child.stdout) == "126\n" && text(&child.stderr).contains("process_mismatch"), "{child:?}");
    let script = format!("exec {} now ./libgreet.so", opened.plain.display());
    ended(&ran(&shell, &["-c", &script]), Code::ProcessMismatch);
}

#[test]
fn a_connection_from_before_the_start_gets_no_library() {
    let opened = Opened::new();
    let handed = compiled(&opened.world, "cc", "handed.c", "handed", &[]);
    let go = opened.world.folder.path().join("go");
    let mut command = Command::new(&handed);
    command.arg(&opened.world.daemons.sockets[0]).arg(opened.world.work("libgreet.so")).arg(&go).arg(&opened.program);
    command.args(["wait", "./libgreet.so"]).current_dir(opened.world.work(""));
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    said_in(&mut program, "hello");
    // The program has its library.
    type_line(&mut program);
    said_in(&mut program, "loaded");
    // Where it lies; nobody but root finds that out, and asks anybody for it.
    let maps = fs::read_to_string(format!("/proc/{}/maps", program.id())).unwrap_or_default();
    let stub = maps.lines().find(|line| line.contains(" r-xp ") && line.ends_with("/libgreet.so"));
    let address = stub.map_or(0, |line| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap());
    script(&go.with_extension("new"), &address.to_string());
    fs::rename(go.with_extension("new"), &go).unwrap();
    let (mut stderr, mut said) = (program.stderr.take().unwrap(), String::new());
    while !said.ends_with('\n') {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{said}");
        said.push(char::from(byte[0]));
    }
    assert_eq!(said, "connected 0, got 0 bytes and 0 of control\n");
    program.stdin.take().unwrap().write_all(b"\n\n").unwrap();
    assert!(program.wait().unwrap().success());
}

#[test]
fn a_library_is_for_programs_of_its_vendor_or_those_that_its_manifest_names() {
    let world = World::start("", 1);
    world.runtime.block_on(async {
        world.daemons.account("zeta", "vendor", common::PASSWORD, None).await.unwrap();
        world.daemons.log_in("zeta", common::PASSWORD).await.unwrap();
        let voucher = world.daemons.voucher("vendor").await.unwrap();
        let arguments = ["vendor", "init", "--authority", &world.daemons.authority_url, "--voucher", &voucher, "--home"];
        world.daemons.chipbound(&arguments, &[&world.daemons.path("home-zeta")]).await.unwrap();
    });
    let library = compiled(&world, "cc", "greet.c", "libgreet.so", &["-shared", "-fPIC"]);
    let plain = compiled(&world, "cc", "opener.c", "opener", &["-pthread", "-ldl"]);
    bought(&world, &library, &[]);
    let mut publish =
        world.as_user("zeta", &["publish", "--name", "foreign", "--version", "1", "--price", "10 EUR", "--class", "software"]);
    good(publish.arg(&plain));
    let foreign = world.buy("foreign", &[]);
    let said = ended(&ran(&foreign, &["now", "./libgreet.so"]), Code::UseForbidden);
    assert!(said.contains("is not for"), "{said}");
    // Its vendor names it.
    let id = json_lines(&good(world.ada(&["--json", "catalogue"]))).iter().find_map(|line| {
        let id = line["program"].as_str()?;
        id.ends_with("/foreign").then(|| id.to_owned())
    });
    world.publish(&library, "named", "1", &["--reader", &id.unwrap()]);
    good(world.ada(&["buy", "named", "-o", "libnamed.so"]));
    same(&plain, &foreign, &["lazy", "./libnothing.so"]);
    let output = ran(&foreign, &["now", "./libnamed.so"]);
    assert!(output.status.success() && text(&output.stdout).contains("answer 46"), "{output:?}");
    // A program into which its caller may bring code is none of them.
    world.publish(&plain, "open", "1", &["--loader-variables", "allow"]);
    let open = world.buy("open", &[]);
    let said = ended(&ran(&open, &["now", "./libgreet.so"]), Code::UseForbidden);
    assert!(said.contains("allows loader variables"), "{said}");
}

#[test]
fn an_altered_library_is_refused_before_anything_of_it_runs() {
    let opened = Opened::new();
    let library = opened.world.work("libgreet.so");
    let good = fs::read(&library).unwrap();
    let plain = fs::read(opened.plain.with_file_name("libgreet.so")).unwrap();
    let word = memchr::memmem::find(&good, b"constructed with").unwrap();
    for (at, code) in [(code_at(&plain), Code::PageAltered), (word, Code::PlainPartsAltered), (plain.len() + 40, Code::PageAltered)] {
        let altered = opened.world.work("altered.so");
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&altered, bytes).unwrap();
        let output = ran(&opened.program, &["now", "./altered.so"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{output:?}");
        assert!([code, Code::SealMismatch, Code::Malformed].iter().any(|code| said.contains(&format!("error[{code}]"))), "{at}: {said}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    // As it was delivered, before it was put in place: it asks nobody, and its first instruction is none.
    let delivered = opened.world.work("delivered.so");
    fs::write(&delivered, &good).unwrap();
    let file = fs::File::options().read(true).write(true).open(&delivered).unwrap();
    assert!(!chipbound::client::placing::name_interpreter(&file, None).unwrap());
    let output = ran(&opened.program, &["now", "./delivered.so"]);
    assert_eq!((output.status.signal(), output.stdout.len()), (Some(11), 0), "{output:?}");
}

#[test]
fn without_its_processor_a_library_says_so_and_a_new_one_knows_no_old_programs() {
    let mut opened = Opened::new();
    let (first, mut second) = (opened.waiting("./libgreet.so"), opened.waiting("./libgreet.so"));
    opened.world.daemons.daemons[PROCESSOR].stop();
    let end = |mut child: Child| {
        type_line(&mut child);
        drop(child.stdin.take());
        ended(&child.wait_with_output().unwrap(), Code::ProcessorUnreachable)
    };
    assert!(end(first).contains("libgreet.so: its processor cannot be reached: no such file"));
    let config = opened.world.folder.path().join("processor-1/processor.toml");
    let arguments = ["processor".as_ref(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
    let log = opened.world.folder.path().join("again.log");
    let (daemon, _) = opened.world.runtime.block_on(Daemon::start(Path::new(common::CHIPBOUND), &arguments, &log)).unwrap();
    opened.world.daemons.daemons[PROCESSOR] = daemon;
    type_line(&mut second);
    drop(second.stdin.take());
    ended(&second.wait_with_output().unwrap(), Code::ProcessMismatch);
    assert!(ran(&opened.program, &["now", "./libgreet.so"]).status.success(), "started anew it has its library");
}

#[test]
fn instances_share_the_memory_of_a_library() {
    let opened = Opened::new();
    let memory = |child: &Child| {
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let of_code = maps.lines().filter(|line| line.contains(" r-xp ") && line.contains("/memfd:chipbound"));
        of_code.map(|line| line.split_ascii_whitespace().nth(4).unwrap().to_owned()).collect::<HashSet<_>>()
    };
    let mut children = [(); 2].map(|()| {
        let mut child = opened.waiting("./libgreet.so");
        type_line(&mut child);
        said_in(&mut child, "loaded");
        child
    });
    if rustix::process::geteuid().is_root() {
        let [first, second] = [&children[0], &children[1]].map(memory);
        assert_eq!((first.len(), &first), (2, &second), "the program's and the library's");
    } else {
        println!("not run here: only root sees what such a process has mapped");
    }
    for child in &mut children {
        child.stdin.take().unwrap().write_all(b"\n\n").unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_library_is_installed_for_everybody_to_load() {
    let opened = Opened::new();
    let folder = opened.world.folder.path().join("lib");
    good(opened.world.ada(&["install", "./libgreet.so", "--bin", folder.to_str().unwrap()]));
    let installed = folder.join("libgreet.so");
    assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    let output = ran(&opened.program, &["now", installed.to_str().unwrap()]);
    assert!(output.status.success() && text(&output.stdout).contains("answer 46"), "{output:?}");
    good(opened.world.ada(&["uninstall", "libgreet.so", "--bin", folder.to_str().unwrap()]));
    assert!(!installed.exists());
}

#[test]
fn a_library_that_cannot_be_protected_is_refused_when_it_is_published() {
    let world = World::start("", 1);
    let source = world.folder.path().join("resolver.c");
    fs::write(&source, "static int one(void) { return 1; }\nstatic void *resolve(void) { return one; }\nint chosen(void) __attribute__((ifunc(\"resolve\")));\n")
        .unwrap();
    let library = source.with_file_name("libresolver.so");
    good(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]));
    let publish = ["publish", "--name", "resolver", "--version", "1", "--price", "1 EUR", "--class", "software"];
    let said = refused(world.as_user("acme", &publish).arg(&library), Code::UnsupportedProgram);
    assert!(said.contains("IFUNC"), "{said}");
}

/// The library as an administrator puts it where programs find it.
fn for_everybody(library: &Path) {
    chown(library, Some(0), Some(0)).unwrap();
    mode(library, 0o644);
}

/// Starts a program that loads a library with a marker and waits; the address of the marker.
fn holding(installed: &Installed, mut command: Command, library: &Path) -> (Child, String) {
    let mut child = installed.waiting_as({
        command.arg(library);
        command
    });
    let (mut address, mut byte) = (String::new(), [0]);
    while child.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        address.push(char::from(byte[0]));
    }
    (child, address)
}

#[test]
fn a_customer_reads_no_code_of_a_library_and_has_none_opened_that_he_can_change() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let root = installed.world.folder.path().to_owned();
    let sold = compiled(&installed.world, "cc", "secret.c", "libsecret.so", &["-shared", "-fPIC"]);
    let plain = compiled(&installed.world, "cc", "holder.c", "holder", &["-ldl"]);
    let (package, library) = (root.join("bin/holder"), root.join("bin/libsecret.so"));
    installed.install(&plain, "holder", &package, &[]);
    installed.install(&sold, "libsecret", &library, &[]);
    for_everybody(&library);

    let ways = |(child, address): (Child, String)| {
        let arguments = ["try", &child.id().to_string(), &address];
        let found = lines(&good(&mut installed.customer(&installed.attacker, &arguments)));
        assert!(child.wait_with_output().unwrap().status.success());
        found
    };
    let open = ways(holding(&installed, installed.customer(&plain, &[]), &sold));
    assert!(open.iter().any(|way| way == "the code, from mem"), "the control: {open:?}");
    assert_eq!(ways(holding(&installed, installed.customer(&package, &[]), &library)), Vec::<String>::new());
    assert_eq!(ways(holding(&installed, installed.run_package(&package, &[]), &library)), Vec::<String>::new());

    let is_refused = |library: &Path, code: Code| {
        let output = installed.customer(&package, &[library.to_str().unwrap()]).output().unwrap();
        assert!(output.stdout.is_empty(), "{output:?}");
        ended(&output, code)
    };
    // In a folder of his own, whoever's it is; writable by him; another's than root's.
    let own_copy = installed.world.work("libsecret.so");
    fs::copy(&library, &own_copy).unwrap();
    for_everybody(&own_copy);
    is_refused(&own_copy, Code::ForeignLibrary);
    for (owner, bits) in [(0, 0o666), (0, 0o664), (CUSTOMER, 0o644)] {
        chown(&library, Some(owner), Some(0)).unwrap();
        mode(&library, bits);
        is_refused(&library, Code::ForeignLibrary);
    }
    for_everybody(&library);
    // A program of his own that says that it is ours.
    let output = installed.customer(&plain, &[library.to_str().unwrap()]).output().unwrap();
    ended(&output, Code::ProcessMismatch);
    ways(holding(&installed, installed.customer(&package, &[]), &library));
}

#[test]
fn a_processor_with_a_user_of_its_own_opens_libraries_in_every_way() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    let root = installed.world.folder.path().to_owned();
    let greet = compiled(&installed.world, "cc", "greet.c", "libgreet.so", &["-shared", "-fPIC"]);
    let opener = compiled(&installed.world, "cc", "opener.c", "opener", &["-pthread", "-ldl"]);
    let linked = compiled(&installed.world, "cc", "linked.c", "linked", &["-L.", "-lgreet", "-Wl,-rpath,$ORIGIN"]);
    let folder = root.join("bin");
    let library = folder.join("libgreet.so");
    for (plain, name) in [(&opener, "opener"), (&linked, "linked")] {
        installed.install(plain, name, &folder.join(name), &[]);
    }
    installed.install(&greet, "libgreet", &library, &[]);
    for_everybody(&library);
    let by_customer = |program: &Path, arguments: &[&str]| {
        let output = installed.customer(program, arguments).current_dir(program.parent().unwrap()).output().unwrap();
        (text(&output.stdout), text(&output.stderr), output.status)
    };
    for mode in ["now", "lazy", "again", "threads", "fork", "loaded-fork", "orphan"] {
        let arguments = [mode, "./libgreet.so"];
        assert_eq!(by_customer(&folder.join("opener"), &arguments), by_customer(&opener, &arguments), "{mode}");
    }
    assert_eq!(by_customer(&folder.join("linked"), &["a"]), by_customer(&linked, &["a"]));
    // What it is linked with is looked at before it starts, protected or not.
    mode(&library, 0o666);
    let refused = installed.customer(folder.join("linked"), &["a"]).output().unwrap();
    assert!(text(&refused.stderr).contains(&format!("{} can be written to by others", library.display())), "{refused:?}");
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(126), 0));
}

#[test]
fn an_ordinary_user_without_capabilities_has_his_libraries_opened_too() {
    if !root_with_setpriv() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    own(folder.path(), CUSTOMER);
    let user = CUSTOMER.to_string();
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
    setpriv.env("TMPDIR", folder.path()).env("HOME", folder.path()).current_dir(folder.path());
    if !setpriv.arg(common::CHIPBOUND).arg("--version").output().unwrap().status.success() {
        println!("not run here: an ordinary user may not execute what is built here");
        return;
    }
    let mut again = Command::new("setpriv");
    again.args(setpriv.get_args().take(7)).arg(std::env::current_exe().unwrap()).arg("--exact");
    again.args(["a_library_is_loaded_in_every_way_as_the_plain_one", "nobody_but_a_program_of_this_processor_has_it_opened"]);
    again.env("TMPDIR", folder.path()).env("HOME", folder.path()).current_dir(folder.path());
    let output = again.output().unwrap();
    assert!(text(&output.stdout).contains("2 passed"), "{}", text(&output.stdout));
}
