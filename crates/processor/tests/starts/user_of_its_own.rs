//! The processor under a user of its own with CAP_SYS_PTRACE and nothing else, clients under another: only root can set that up.

use crate::client::{Client, Daemon, code, until};
use crate::own_user::package;
use crate::starting::{DATA, output, starter_of};
use crate::world::World;
use chipbound_wire::Code;
use chipbound_wire::bounded::Text;
use chipbound_wire::control::Request;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Two users that no machine gives to anybody.
const PROCESSOR: u32 = 54_321;
const CUSTOMER: u32 = 54_322;

/// Installs everything as an administrator would. None, and a word about it, where that cannot be done.
fn set_up(name: &str) -> Option<(World, PathBuf, PathBuf)> {
    let able = rustix::process::geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok_and(|o| o.status.success());
    if !able {
        println!("{name}: not run here, only root with setpriv can give a processor its own user");
        return None;
    }
    let world = World::new();
    let package = package(&world, "/bin/sh", |_| {});
    let home = world.folder.path().join("processor");
    let toml = fs::read_to_string(home.join("processor.toml")).expect("the configuration");
    fs::write(home.join("processor.toml"), toml.replace("clients = \"own-user\"", "clients = \"everyone\"")).expect("written");
    // root:processor 0751: the customer may execute it and not read it, the processor may read it.
    chown(&package, Some(0), Some(PROCESSOR)).expect("owner");
    fs::set_permissions(&package, Permissions::from_mode(0o751)).expect("mode");
    for folder in [world.folder.path(), package.parent().expect("folder"), &home] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("mode");
    }
    own(&home, PROCESSOR);
    // The client's binary lies where the customer may execute it.
    let client = world.folder.path().join("client");
    fs::copy(std::env::current_exe().expect("this binary"), &client).expect("copied");
    fs::set_permissions(&client, Permissions::from_mode(0o755)).expect("mode");
    Some((world, package, client))
}

fn own(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).expect("owner");
    if path.is_dir() {
        fs::read_dir(path).expect("folder").flatten().for_each(|entry| own(&entry.path(), user));
    }
}

/// The daemon under its own user with these capabilities.
fn daemon(world: &World, capabilities: &str) -> Daemon {
    let binary = world.folder.path().join("chipbound-processor");
    fs::copy(env!("CARGO_BIN_EXE_chipbound-processor"), &binary).expect("copied");
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).expect("mode");
    let mut command = Command::new("setpriv");
    let user = PROCESSOR.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps", capabilities, "--ambient-caps", capabilities]);
    command.arg("--").arg(binary);
    Daemon::launch(command, &world.folder.path().join("processor")).expect("ready")
}

fn as_customer(command: &mut Command) -> &mut Command {
    command.uid(CUSTOMER).gid(CUSTOMER)
}

pub(crate) fn a_processor_with_its_own_user_serves_others_and_keeps_from_them_what_they_run() {
    let Some((world, package, client)) = set_up("a_processor_with_its_own_user") else { return };
    let daemon = daemon(&world, "-all,+sys_ptrace");
    let start = |arguments: &[&str]| starter_of(&client, &daemon.socket, &package, &package, "0", arguments);
    let started = output(as_customer(&mut start(&["-c", "id -u; cat; exit 7"])), b"given");
    assert_eq!((started.status.code(), &*String::from_utf8_lossy(&started.stdout)), (Some(7), "54322\ngiven"), "{started:?}");

    // While it runs, its own user reads neither its memory nor its file.
    let mut running =
        as_customer(&mut start(&["-c", "echo started; read x"])).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawned");
    let mut word = [0; 8];
    running.stdout.as_mut().expect("piped").read_exact(&mut word).expect("it runs");
    for file in ["mem", "exe", "environ"] {
        let path = format!("/proc/{}/{file}", running.id());
        let read = output(as_customer(Command::new("/bin/dd").args([&format!("if={path}"), "bs=1", "count=1"])), b"");
        assert!(!read.status.success() && String::from_utf8_lossy(&read.stderr).contains("denied"), "{path}: {read:?}");
    }
    drop(running.stdin.take());
    running.wait().expect("ended");

    // Only root and the processor's own user enroll it or make it forget.
    enrolling_and_forgetting_are_forbidden_to(&daemon);
    until("both starts are in the log", || daemon.log().matches("started").count() >= 2);
    assert!(daemon.stop().success());
}

/// Data opened in memory, by a processor that may not mount, and data served as it is read, by root's.
pub(crate) fn another_users_program_has_its_data_and_that_user_has_it_not() {
    let Some((world, package, client)) = set_up("another_users_program_has_its_data") else { return };
    let (home, data) = (world.folder.path().join("processor"), world.folder.path().join("data"));
    let lines = "the first line\n".to_owned() + &"and others\n".repeat(20_000);
    fs::write(&data, world.package(&world.ship(lines.as_bytes(), |m| m.open_to_file = false))).expect("written");
    let script = "IFS= read -r line <$DATA; echo \"$line\"; read word; exit 6";
    for user in [PROCESSOR, 0] {
        own(&home, user);
        let daemon = if user == PROCESSOR { daemon(&world, "-all,+sys_ptrace") } else { Daemon::of(&world) };
        let mut start = starter_of(&client, &daemon.socket, &package, &package, "0", &["-c", script]);
        let mut running = as_customer(start.env(DATA, &data)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawned");
        let mut first = [0; 15];
        running.stdout.as_mut().expect("piped").read_exact(&mut first).expect("its data");
        assert_eq!(&first, b"the first line\n");
        for file in ["fd/10", "fdinfo/10", "map_files"] {
            let path = format!("/proc/{}/{file}", running.id());
            let read = output(as_customer(Command::new("/bin/ls").args(["-lL", &path])), b"");
            assert!(!read.status.success() && String::from_utf8_lossy(&read.stderr).contains("denied"), "{path}: {read:?}");
        }
        drop(running.stdin.take());
        assert_eq!(running.wait().expect("ended").code(), Some(6));
        // What was served is forgotten with its last descriptor.
        if daemon.log().contains("data is served") {
            until("the kernel forgets it", || daemon.log().contains("data is not read any more"));
        } else {
            assert!(daemon.log().contains("data is in memory"), "{}", daemon.log());
        }
        assert!(daemon.stop().success());
    }
}

/// Connects as the customer by way of a thread of this process with the customer's user id.
fn enrolling_and_forgetting_are_forbidden_to(daemon: &Daemon) {
    let socket = daemon.socket.clone();
    let refused = std::thread::spawn(move || {
        rustix::thread::set_thread_res_uid(
            rustix::process::Uid::from_raw(CUSTOMER),
            rustix::process::Uid::from_raw(CUSTOMER),
            rustix::process::Uid::from_raw(CUSTOMER),
        )
        .expect("another user");
        let mut client = Client::connect(&socket);
        let text = |t: &str| Text::new(t).expect("short");
        client.ask(&Request::Enroll { authority: text("https://127.0.0.1:1"), voucher: Text::new("cbv1-x").expect("short") }, &[]);
        let enrolling = code(client.answer());
        let mut client = Client::connect(&socket);
        client.ask(&Request::Forget { program: None }, &[]);
        [enrolling, code(client.answer())]
    });
    assert_eq!(refused.join().expect("asked"), [Code::Forbidden; 2]);
}

/// A25: the pages never travel on a connection that the client ever held.
pub(crate) fn a_duplicate_of_the_clients_socket_gets_no_page_and_no_descriptor() {
    let Some((world, package, client)) = set_up("a_duplicate_of_the_clients_socket") else { return };
    let daemon = daemon(&world, "-all,+sys_ptrace");
    let mut start = starter_of(&client, &daemon.socket, &package, &package, "spy", &["-c", "echo ran"]);
    let started = output(as_customer(&mut start), b"");
    assert_eq!((started.status.code(), &started.stdout[..]), (Some(0), &b"ran\n"[..]), "{started:?}");
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(said.contains("spied 0 answers, 0 descriptors"), "{said}");
}

pub(crate) fn without_cap_sys_ptrace_another_users_start_is_refused_by_name() {
    let Some((world, package, client)) = set_up("without_cap_sys_ptrace") else { return };
    let daemon = daemon(&world, "-all");
    let mut start = starter_of(&client, &daemon.socket, &package, &package, "0", &["-c", "echo x"]);
    let started = output(as_customer(&mut start), b"");
    assert_eq!((started.status.code(), &started.stdout[..]), (Some(126), &b""[..]), "{started:?}");
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(said.contains("trace_refused"), "{said}");
}
