//! Starts a program whose code lies encrypted on disk, natively and in the process that asked for it (source paragraphs 53 and 65).
//!
//! The loader runs inside the processor. It is given the original program, verified and opened, as a [`PageSource`]; it never sees a
//! key, knows no package format and decides nothing about who may run what. It starts nobody: the *client* is a process that wants
//! to become the program, and the kernel starts the package in it in the ordinary way, so that its pid, its terminal, its
//! descriptors, its environment, its limits, its argv and its parent are what they would be without us. The package is a valid ELF
//! file whose executable segments are ciphertext and carry no execute flag; without the loader it ends with SIGSEGV at the first
//! instruction of its own.
//!
//! # The image
//!
//! [`Image::build`] lays out, once per build, every `PT_LOAD` of the **original** in a memfd, page for page as the kernel would have
//! mapped it, and seals it. All processes of this program share its pages. After the start nothing of the package's file counts any
//! more but what the kernel itself read of it, and step 4 checks that.
//!
//! # The start, in order
//!
//! 1. **Seize.** [`Tracer::seize`]: `PTRACE_SEIZE` with `TRACEEXEC | EXITKILL | TRACESYSGOOD`. The client runs on; what signals it
//!    gets until its exec are its own. If this side dies from here on, so does the client: never half a program.
//! 2. **Exec.** The client calls execve on the package. [`Tracer::await_exec`] takes the exec stop. The kernel has
//!    the result register still to write there: the code of step 5 sets it anew, single calls are made only behind the end of execve.
//!
//!    A client that stands in our own interpreter, begun there by the kernel for the package, needs no further exec:
//!    [`Tracer::take_over`] stops it and sets its registers back. Only for clients against whose user nothing is promised: whoever traced it
//!    over that exec has had it in his hands.
//! 3. **Which file.** The caller compares [`AtExec::exe_identity`] with the file it verified; a path from the client means nothing.
//!    Where its policy says so, it takes away the variables that would bring foreign code in
//!    ([`AtExec::drop_variables`]).
//! 4. **Which process.** [`AtExec::complete`] compares what the kernel made with what the original's headers say: entry point,
//!    address and number of program headers, base of the interpreter (auxiliary vector on the stack), instruction pointer, and every
//!    mapping, with the interpreter found by the path that the verified program names. Whatever is there too, is missing or lies
//!    elsewhere is [`LoadError::ProcessMismatch`].
//! 5. **Quiet.** All signals are blocked; those that come wait and are the program's own afterwards. The calls of the next steps are
//!    written as tables below the stack of the process, and a hundred bytes of machine code go through them: one resumption and one
//!    stop for many calls, the first that fails ends them. That code takes the place of the ELF header of the process's vDSO, on a page of
//!    its own as for a debugger's breakpoint, until step 9. Where the kernel forbids that, each call is made by itself with the system
//!    call instruction of the vDSO. Anything else that happens meanwhile ends the start.
//! 6. **`prctl(PR_SET_DUMPABLE, 0)`** before anything secret: from here on no process of the same user can read its memory, duplicate
//!    its descriptors or trace it, and there are no core dumps. (A descriptor of its `/proc/PID/mem` that was opened between exec and
//!    now goes on working. Only a package that its user may execute but not read closes that: such a process is not dumpable from its
//!    exec on.) It stays so while the program runs, unless the program itself changes it.
//! 7. **Receive.** The process itself opens a connection to a fresh socket of this start, and gets the memfd on it if `SO_PEERCRED`
//!    says that it is the one. A socket that the client ever held would not do: the client can have duplicated it and would get the
//!    memfd too.
//!    Files that the program is to find open ([`AtExec::give`]) come the same way, before the memfd.
//! 8. **Map.** Every segment is mapped over, private, with its original protection; executable ones are left out of core dumps. The
//!    first one brings back the original program headers, which dynamic linkers and unwinders read. Where the kernel began in our own
//!    interpreter ([`AtExec::own_interpreter`]), that is unmapped, and the dynamic linker that the headers name is mapped from this side's
//!    descriptor where the kernel would have had it; AT_BASE and the kernel's books of the process follow.
//! 9. **Restore.** Descriptors are closed, the bytes of the vDSO, those below the stack and the registers are given back, then the signal
//!    mask, then the process itself. What the program sees of all this is that `PR_GET_DUMPABLE` says 0, and that it was stopped for a moment.
//!
//! Relocations, text relocations, RELRO, IFUNC resolvers and constructors come after that, in the process, on private pages, as
//! always.
//!
//! ```no_run
//! # use chipbound_loader::{Identity, Image, LoadError, PageSource, Pid, Started, Tracer, Workshop};
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! # fn start(pages: Arc<dyn PageSource>, client: Pid, verified: Identity, tell: impl Fn()) -> Result<Started, LoadError> {
//! let image = Image::build(pages, &Workshop::default())?; // once per build of the program
//! let tracer = Tracer::seize(client)?;
//! tell(); // the client may exec now
//! let process = tracer.await_exec(Duration::from_secs(10))?;
//! if process.exe_identity()? != verified {
//!     process.refuse("chipbound: this is not the package that was verified\n", chipbound_loader::NOT_STARTED)?;
//!     return Err(LoadError::ProcessMismatch("it executes another file".into()));
//! }
//! process.complete(&image)
//! # }
//! ```
//!
//! # Other ways
//!
//! [`Mapping`] names them. [`AtExec::in_huge_pages`]: in step 8 code is copied into anonymous memory first (`pread` by the process itself, from
//! the same memfd) and becomes executable then. [`Image::executable`] needs no tracing and none of these steps: the client executes a memory
//! file. [`Mapping::obstacle`] and [`trace_obstacle`] say what of this machine forbids a way. All need `memfd_create`: where that is
//! forbidden nothing is started, for opened code lies nowhere else.
//!
//! # When it goes wrong
//!
//! Before the exec, an abandoned client is let go unharmed. After it, on any error, the process prints the reason on its standard error
//! and ends with [`NOT_STARTED`]; if it cannot even do that, it is killed. One deadline covers all; a stuck client costs this side one
//! thread for that long.
//!
//! # Privileges
//!
//! Works without any, if processor and client are the same user, and then promises nothing against that user. Works with
//! `CAP_SYS_PTRACE` and a uid of its own: no `CAP_KILL` and no `CAP_DAC_OVERRIDE` is needed. ptrace knows the tracing *thread*: the whole
//! start happens on one, which the types enforce by not being [`Send`]. The client must call execve from its first thread. Nothing else
//! in this process may wait for *any* child (`waitpid(-1)`): it could take a stop away. The deadline uses the signal `SIGRTMAX - 1`, whose handler
//! does nothing.
//!
//! # Limits
//!
//! The memfd can be swapped out unless it is locked ([`Image::lock`]). The program's own `/proc/self` belongs to root while it is not dumpable. `VmExe` in its status is
//! wrong where the process did not begin in our own interpreter, because the kernel looks for it among segments marked executable. Each process keeps a copy of its own of one page of the vDSO. The path of the interpreter is resolved in the processor's
//! mount namespace. Set-user-id programs are refused. Everybody with `CAP_SYS_PTRACE` can read everything.

mod client;
mod direct;
mod elf;
mod error;
mod exec;
mod handover;
mod image;
mod inject;
mod interpreter;
mod layout;
mod libraries;
mod locked;
mod mapping;
mod script;
mod stack;
mod sys;
mod trace;
mod workshop;

pub use client::allow_tracer;
pub use direct::OwnInterpreter;
pub use error::LoadError;
pub use exec::{AtExec, Given, Identity, MAX_MESSAGE, NOT_STARTED, Started};
pub use image::{Image, PageSource, Piece, STEP};
pub use libraries::{Libraries, check_file};
pub use locked::Locked;
pub use mapping::{Mapping, trace_obstacle};
pub use rustix::process::Pid;
pub use stack::LOADER_VARIABLES;
pub use trace::{Tracer, proc_text};
pub use workshop::Workshop;
