//! `chipbound run PACKAGE ARGS…` (source paragraph 53) before a runtime has started: asks the processor to attach, then *becomes* the
//! program. Knows the ordinary case alone. Whatever is unusual is left to the ordinary program, which does it again from the beginning and
//! says what is wrong; what the processor refuses is given to it as it was answered, so that nobody asks twice.

use crate::ask::{NO_ANSWER, Refused, Space, attach};
use crate::stack::{AT_FLAGS, AT_SECURE, Stack};
use crate::sys::{Errno, PAGE, execute, exit, map_anonymous, may_execute, memory, open, seal_memory, stat, working_folder};
use crate::text::{PathBuffer, reason, say};
use core::ffi::CStr;

/// The exit code when a program cannot be executed, as shells have it.
const CANNOT_EXECUTE: u8 = 126;
/// Where the processor listens that was set up for the whole machine.
pub const SYSTEM_SOCKET: &[u8] = b"/run/chipbound/processor.sock";

/// What the command line says.
struct Line {
    processor: Option<&'static CStr>,
    home: Option<&'static CStr>,
    /// Which argument is the package.
    package: usize,
}

/// Becomes the program, or returns where the ordinary program is to go on; nothing is changed then, and nothing open. Where the processor
/// refused, its answer lies where the auxiliary vector's `AT_FLAGS` leads to, which is 0 for every other program.
pub fn start(stack: &mut Stack) {
    let mut answer = NO_ANSWER;
    if become_program(stack, &mut answer).is_none()
        && answer != NO_ANSWER
        && let Some(page) = kept(&answer)
    {
        stack.set_auxiliary(AT_FLAGS, page);
    }
}

/// The address of a page that begins with an answer.
fn kept(answer: &Space) -> Option<usize> {
    let page = map_anonymous(PAGE).ok()?;
    // SAFETY: the page is fresh.
    unsafe { memory(page, PAGE) }.get_mut(..answer.len())?.copy_from_slice(answer);
    // SAFETY: everything is written.
    unsafe { seal_memory(page, PAGE) }.ok().map(|()| page)
}

/// Returns where the ordinary program is to go on; `refused` holds an answer then, where there was one that refuses.
fn become_program(stack: &Stack, refused: &mut Space) -> Option<()> {
    let line = parse(stack)?;
    let mut socket = PathBuffer::default();
    find_socket(stack, &line, &mut socket)?;
    let mut path = PathBuffer::default();
    find_package(stack, stack.argument(line.package)?, &mut path)?;
    let path = path.path()?;
    if !stat(path).is_ok_and(|file| file.regular) || !may_execute(path) {
        return None;
    }
    let mut folder = PathBuffer::default();
    if !path.to_bytes().starts_with(b"/") {
        let length = working_folder(folder.spare()).ok()?;
        folder.grow(length);
    }
    let between: &[u8] = if folder.bytes().is_empty() { b"" } else { b"/" };
    // Open only where this user may read it; otherwise the processor opens the path itself.
    let file = match open(path) {
        Ok(file) => Some(file),
        Err(Errno::EACCES) => None,
        Err(_) => return None,
    };
    let mut space = NO_ANSWER;
    let asked = attach(socket.bytes(), [folder.bytes(), between, path.to_bytes()], file, false, &mut space);
    let Ok(_open_until_exec) = asked else {
        if matches!(asked, Err(Refused::Refused(..))) {
            *refused = space;
        }
        if let Some(file) = file {
            file.close();
        }
        return None;
    };
    // SAFETY: both arrays are the kernel's own.
    let error = unsafe { execute(path, stack.arguments_from(line.package), stack.environment()) };
    // The processor waits for an exec now: it cannot be asked again.
    say([b"error[start_failed]: ", path.to_bytes(), b": ", reason(error)]);
    say([b"\nwhat to do: chipbound verify ", path.to_bytes(), b"\n", b""]);
    exit(CANNOT_EXECUTE)
}

/// `run [--processor SOCKET] [--home DIR] [--] PACKAGE ARGS…`; None for every other command line.
fn parse(stack: &Stack) -> Option<Line> {
    if stack.argument(1)? != c"run" || stack.auxiliary(AT_SECURE) != Some(0) {
        return None;
    }
    let mut line = Line { processor: None, home: None, package: 2 };
    loop {
        let argument = stack.argument(line.package)?;
        let value = stack.argument(line.package + 1);
        if argument == c"--processor" {
            line.processor = Some(value?);
        } else if argument == c"--home" {
            line.home = Some(value?);
        } else if argument == c"--" {
            line.package += 1;
            return value.map(|_| line);
        } else {
            return (!argument.to_bytes().starts_with(b"-")).then_some(line);
        }
        line.package += 2;
    }
}

/// The processor's socket: as told, else `$CHIPBOUND_PROCESSOR`, else the one last enrolled, else the system's.
fn find_socket(stack: &Stack, line: &Line, into: &mut PathBuffer) -> Option<()> {
    if let Some(told) = line.processor.or_else(|| stack.variable(b"CHIPBOUND_PROCESSOR=")) {
        return into.push(told.to_bytes());
    }
    let mut remembered = PathBuffer::default();
    let told = line.home.or_else(|| stack.variable(b"CHIPBOUND_HOME="));
    let (folder, rest): (_, &[u8]) = match (told, stack.variable(b"XDG_CONFIG_HOME=")) {
        (Some(folder), _) => (folder, b"/processor"),
        (None, Some(folder)) => (folder, b"/chipbound/processor"),
        (None, None) => (stack.variable(b"HOME=")?, b"/.config/chipbound/processor"),
    };
    remembered.push(folder.to_bytes())?;
    remembered.push(rest)?;
    match open(remembered.path()?) {
        Ok(file) => {
            let read = file.read(into.spare());
            file.close();
            into.grow(read.ok().filter(|length| *length > 0)?);
            Some(())
        }
        Err(Errno::ENOENT) => into.push(SYSTEM_SOCKET),
        Err(_) => None,
    }
}

/// The file that a name means: as it stands if it has a slash, else the one in the working folder, else the first in `PATH`.
fn find_package(stack: &Stack, name: &CStr, into: &mut PathBuffer) -> Option<()> {
    let name = name.to_bytes();
    if name.contains(&b'/') {
        return into.push(name);
    }
    let mut found = |folder: &[u8], between: &[u8]| {
        into.clear();
        into.push(folder)?;
        into.push(between)?;
        into.push(name)?;
        into.path().is_some_and(|path| stat(path).is_ok_and(|file| file.regular)).then_some(())
    };
    if found(b".", b"/").is_some() {
        return Some(());
    }
    let folders = stack.variable(b"PATH=")?.to_bytes();
    folders.split(|byte| *byte == b':').find_map(|folder| found(folder, if folder.is_empty() { b"" } else { b"/" }))
}
