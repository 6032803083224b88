//! Which processes run programs that this daemon started: who may have a shared library opened in itself.
//!
//! A process counts as such a program if it, or the process that it was forked from, however far back, was started here; if it executes
//! that very file still; and if the memory of the opened program lies in it, which this daemon gives to such processes alone and which
//! no exec survives. A child whose parent has ended is known by the last two. What of this can be seen depends on the kernel: it
//! shows a process that nobody may look into (its file, its memory) to those who have `CAP_SYS_PTRACE`, or to nobody. A daemon without it
//! is of the same user as the program and promises nothing against that user; it believes the process numbers.

use crate::processor::Program;
use chipbound_loader::Identity;
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Code, ProgramId, Refusal, Result};
use rustix::fs::fstat;
use rustix::process::Pid;
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Processes that are remembered. Beyond, those that ended are forgotten, and then those that began first.
const MAX_PROCESSES: usize = 4096;
/// Forks between a process and the one that was started.
const MAX_GENERATIONS: usize = 64;

/// A program in a process.
#[derive(Debug)]
pub struct Running {
    /// Which program.
    pub program: ProgramId,
    /// Whether its caller may bring code into it.
    pub loader_variables: LoaderVariables,
    /// Device and inode of the file that it executes.
    executed: (u64, u64),
    /// Device and inode of the opened program's memory file, if it is mapped.
    memory: Option<(u64, u64)>,
    /// Rises with every start.
    number: u64,
}

/// The processes.
#[derive(Debug, Default)]
pub struct Started(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    processes: HashMap<Process, Arc<Running>>,
    starts: u64,
}

/// A process: its number and when it began, in clock ticks since the machine started. No other ever has both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    pid: i32,
    began: u64,
}

/// What everybody may know of a process.
struct Status {
    process: Process,
    parent: i32,
}

impl Started {
    /// This process, which is about to execute or to go on executing that file, runs the program; `memory` is mapped into it.
    pub fn remember(&self, pid: Pid, program: &Program, executed: &Identity, memory: Option<BorrowedFd<'_>>) -> Result<()> {
        let status = status(pid.as_raw_nonzero().get()).map_err(|e| Refusal::io("the process that is started", e))?;
        let memory = memory.map(fstat).transpose().map_err(|e| Refusal::io("the memory of a program", e.into()))?;
        let mut known = self.lock();
        known.starts += 1;
        let running = Running {
            program: program.program.clone(),
            loader_variables: program.loader_variables,
            executed: (executed.device, executed.inode),
            memory: memory.map(|stat| (stat.st_dev, stat.st_ino)),
            number: known.starts,
        };
        known.shrink();
        known.processes.insert(status.process, Arc::new(running));
        Ok(())
    }

    /// The program that a process runs now.
    ///
    /// # Errors
    /// [`Code::ProcessMismatch`] where it runs none that was started here, as far as can be seen.
    pub fn program_of(&self, pid: Pid) -> Result<Arc<Running>> {
        let pid = pid.as_raw_nonzero().get();
        let found = self.by_descent(pid);
        let look = Look::at(pid);
        let running = match (found, &look) {
            (Some(running), _) => running,
            (None, Look::Seen { .. }) => self.lock().processes.values().find(|r| look.shows(r)).map(Arc::clone).ok_or_else(stranger)?,
            (None, Look::Hidden) => return Err(stranger()),
        };
        if look.shows(&running) { Ok(running) } else { Err(stranger()) }
    }

    fn by_descent(&self, pid: i32) -> Option<Arc<Running>> {
        let mut next = pid;
        for _ in 0..MAX_GENERATIONS {
            let status = status(next).ok()?;
            if let Some(running) = self.lock().processes.get(&status.process) {
                return Some(Arc::clone(running));
            }
            next = status.parent;
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn shrink(&mut self) {
        if self.processes.len() < MAX_PROCESSES {
            return;
        }
        self.processes.retain(|process, _| status(process.pid).is_ok_and(|now| now.process == *process));
        while self.processes.len() >= MAX_PROCESSES
            && let Some(oldest) = self.processes.iter().min_by_key(|(_, running)| running.number).map(|(process, _)| *process)
        {
            self.processes.remove(&oldest);
        }
    }
}

/// What the kernel shows of a process.
enum Look {
    /// The file that it executes, and the files that are mapped into it, by device and inode.
    Seen {
        executed: (u64, u64),
        mapped: Vec<(u64, u64)>,
    },
    Hidden,
}

impl Look {
    fn at(pid: i32) -> Self {
        let executed = std::fs::metadata(format!("/proc/{pid}/exe")).map(|m| (m.dev(), m.ino()));
        let maps = chipbound_loader::proc_text(format!("/proc/{pid}/maps"));
        match (executed, maps) {
            (Err(e), _) | (_, Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => Self::Hidden,
            (Ok(executed), Ok(maps)) => Self::Seen { executed, mapped: maps.lines().filter_map(file_in).collect() },
            _ => Self::Seen { executed: (0, 0), mapped: Vec::new() }, // It has ended: it is nobody.
        }
    }

    fn shows(&self, running: &Running) -> bool {
        match self {
            Self::Seen { executed, mapped } => {
                *executed == running.executed && running.memory.is_none_or(|memory| mapped.contains(&memory))
            }
            Self::Hidden => true,
        }
    }
}

/// Device and inode in a line of /proc/PID/maps.
pub(crate) fn file_in(line: &str) -> Option<(u64, u64)> {
    let mut columns = line.split_ascii_whitespace().skip(3);
    let (major, minor) = columns.next()?.split_once(':')?;
    let inode = columns.next()?.parse().ok()?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    (inode != 0).then_some((rustix::fs::makedev(number(major)?, number(minor)?), inode))
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)): the parent is field 4, the beginning field 22. The name before them may hold anything.
fn status(pid: i32) -> io::Result<Status> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    let end = text.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&text[end..]);
    let field = |number: usize| text.split_ascii_whitespace().nth(number - 3).ok_or(io::ErrorKind::InvalidData);
    let parent = field(4)?.parse().map_err(|_| io::ErrorKind::InvalidData)?;
    let began = field(22)?.parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Status { process: Process { pid, began }, parent })
}

fn stranger() -> Refusal {
    Refusal::new(
        Code::ProcessMismatch,
        "a protected library is opened only in a program that this processor started, and while it runs on since",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_wire::KeyId;
    use std::process::{Command, Stdio};

    fn running(executed: (u64, u64), number: u64) -> Arc<Running> {
        let program = ProgramId::new(&KeyId([1; 32]), "program").expect("a good name");
        Arc::new(Running { program, loader_variables: LoaderVariables::Forbid, executed, memory: None, number })
    }

    fn own_file() -> (u64, u64) {
        std::fs::metadata("/proc/self/exe").map(|m| (m.dev(), m.ino())).expect("a test executes a file")
    }

    #[test]
    fn a_process_is_its_number_and_its_beginning() {
        let own = status(std::process::id().cast_signed()).expect("this process");
        assert_eq!(own.parent, std::os::unix::process::parent_id().cast_signed());
        let started = Started::default();
        let pid = rustix::process::getpid();
        assert_eq!(started.program_of(pid).expect_err("a stranger").code, Code::ProcessMismatch);
        let another = Process { began: own.process.began + 1, ..own.process };
        started.lock().processes.insert(another, running((7, 7), 1));
        assert!(started.program_of(pid).is_err(), "the number alone is nobody");
        started.lock().processes.insert(own.process, running(own_file(), 2));
        assert_eq!(started.program_of(pid).expect("known").number, 2);
        started.lock().processes.insert(own.process, running((7, 7), 3));
        assert!(started.program_of(pid).is_err(), "it executes another file");
    }

    #[test]
    fn a_child_is_its_parents_program_until_it_executes_another() {
        let started = Started::default();
        let own = status(std::process::id().cast_signed()).expect("this process");
        started.lock().processes.insert(own.process, running(own_file(), 1));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
        let pid = Pid::from_child(&child);
        assert!(started.by_descent(pid.as_raw_nonzero().get()).is_some());
        assert!(started.program_of(pid).is_err(), "it executes cat");
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert!(started.program_of(pid).is_err(), "it has ended");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_those_that_live_stay_longest() {
        let mut known = Known::default();
        let own = status(std::process::id().cast_signed()).expect("this process").process;
        known.processes.insert(own, running((7, 7), 0));
        let gone = |number: u64| Process { pid: own.pid, began: own.began + number };
        known.processes.extend((1..MAX_PROCESSES as u64).map(|n| (gone(n), running((7, 7), n))));
        known.shrink();
        assert_eq!(known.processes.keys().collect::<Vec<_>>(), [&own], "those that ended are forgotten");
    }

    #[test]
    fn the_file_of_a_mapping_is_read_as_the_kernel_writes_it() {
        let line = "7f2b3c000000-7f2b3c021000 r-xp 00001000 fe:01 1234      /usr/lib/a b.so";
        assert_eq!(file_in(line), Some((rustix::fs::makedev(0xfe, 1), 1234)));
        assert_eq!(file_in("7f2b3c000000-7f2b3c021000 rw-p 00000000 00:00 0 "), None);
        assert_eq!(file_in(""), None);
    }
}
