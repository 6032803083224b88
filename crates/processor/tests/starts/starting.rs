//! The client's side of a start, and how tests call it.

use crate::client::{Client, bytes};
use chipbound_wire::bounded::List;
use chipbound_wire::control::{Request, Response};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{PTracer, set_ptracer};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

/// A process that holds a duplicate of the client's connection and takes whatever comes on it (A25).
fn spy_on(client: &Client) -> Child {
    let duplicate = client.stream.try_clone().expect("a duplicate");
    let own = std::env::current_exe().expect("this binary");
    Command::new(own).arg("--spy").stdin(OwnedFd::from(duplicate)).stdout(Stdio::null()).spawn().expect("a spy")
}

/// The spy: says what it got when the connection ends.
pub(crate) fn spy() -> ExitCode {
    let connection = std::io::stdin().as_fd().try_clone_to_owned().expect("the connection");
    let mut client = Client::of(connection.into());
    let answers = std::iter::from_fn(|| client.next()).count();
    eprintln!("spied {answers} answers, {} descriptors", client.descriptors.len());
    ExitCode::SUCCESS
}

/// The client: `SOCKET PACKAGE EXECUTED LINGER ARGUMENTS…`. Asks the processor to run PACKAGE, lingers for so many seconds (or
/// leaves a spy behind) and becomes EXECUTED.
pub(crate) fn client(arguments: &[String]) -> ExitCode {
    let [socket, package, executed, linger, arguments @ ..] = arguments else { return ExitCode::from(2) };
    let mut client = Client::connect(Path::new(socket));
    let daemon = rustix::net::sockopt::socket_peercred(&client.stream).expect("the daemon").pid;
    let _ = set_ptracer(PTracer::ProcessID(daemon)); // Only kernels with Yama know it.
    let file = File::open(package).ok();
    let descriptors: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    // Data that the program is to find, its path in the variable DATA.
    let data = std::env::var_os(DATA).map(|data| {
        let place = fcntl_dupfd_cloexec(File::open("/dev/null").expect("a file"), 10).expect("a place");
        fcntl_setfd(&place, FdFlags::empty()).expect("open over the exec");
        (File::open(data).expect("the data"), place)
    });
    let descriptors = descriptors.into_iter().chain(data.iter().map(|(data, _)| data.as_fd())).collect::<Vec<_>>();
    let numbers: Vec<u32> = data.iter().map(|(_, place)| place.as_raw_fd().cast_unsigned()).collect();
    let variable = numbers.iter().map(|number| (DATA, format!("/proc/self/fd/{number}"))).collect::<Vec<_>>();
    let with = (!numbers.is_empty()).then(|| List::new(numbers).expect("few"));
    client.ask(&Request::Run { path: bytes(package.as_bytes()), how: None, begun: None, with }, &descriptors);
    match client.answer() {
        Ok(Response::Ready) => {
            match linger.as_str() {
                "spy" => drop(spy_on(&client)),
                seconds => std::thread::sleep(Duration::from_secs(seconds.parse().expect("seconds"))),
            }
            let error = Command::new(executed).args(arguments).envs(variable).exec();
            eprintln!("{executed}: {error}");
        }
        Ok(other) => eprintln!("{other:?}"),
        Err(refusal) => eprintln!("{refusal}"),
    }
    ExitCode::from(126)
}

/// Names a package of data to the client, and the data to the program.
pub(crate) const DATA: &str = "DATA";

/// A client process that will start `package` through `socket`.
pub(crate) fn starter(socket: &Path, package: &Path, arguments: &[&str]) -> Command {
    starter_of(&std::env::current_exe().expect("this binary"), socket, package, package, "0", arguments)
}

/// The same with everything that differs in attacks.
pub(crate) fn starter_of(binary: &Path, socket: &Path, package: &Path, executed: &Path, linger: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.arg("--client").arg(socket).arg(package).arg(executed).arg(linger).args(arguments);
    command
}

/// Runs a command with this input.
pub(crate) fn output(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawned");
    let _ = child.stdin.take().expect("piped").write_all(input); // A program that ended early reads nothing.
    child.wait_with_output().expect("ended")
}
