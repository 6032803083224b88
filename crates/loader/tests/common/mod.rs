//! A small packager and a client, for the tests: the loader knows neither.
//!
//! The package is the program with the bytes of its executable segments flipped and their execute flags cleared; what the kernel
//! reads of the file stays plain. The client is a shell that says its pid, waits for a word, and execs the package; another shell
//! is its parent, so that its exit code is seen as any parent sees it (128 + n for a signal).
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chipbound_loader::{AtExec, Identity, Image, LoadError, PageSource, Pid, Started, Tracer, Workshop};
use object::LittleEndian as LE;
use object::elf::{FileHeader64, PF_X, PT_GNU_PROPERTY, PT_INTERP, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

/// Long enough for the slowest machine; nothing waits for it unless something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const CLIENT: &str = r#"echo $$ >"$1"; read -r _ <"$2"; shift 2; exec "$@""#;
const PARENT: &str = r#"sh -c "$@"; exit $?"#;

/// The original, as a source of pages.
pub(crate) struct FileSource(pub(crate) File);

impl PageSource for FileSource {
    fn len(&self) -> u64 {
        self.0.metadata().expect("metadata of an open file").len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// One program in a folder of its own: plain at first, at the same path a package after [`Case::seal`].
pub(crate) struct Case {
    pub(crate) dir: TempDir,
    pub(crate) original: PathBuf,
    pub(crate) path: PathBuf,
}

impl Case {
    pub(crate) fn of(program: impl AsRef<Path>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let name = program.as_ref().file_name().expect("a file name");
        fs::create_dir(dir.path().join("bin")).expect("a folder");
        let (original, path) = (dir.path().join("original"), dir.path().join("bin").join(name));
        fs::copy(&program, &original).expect("a copy of the program");
        install(program.as_ref(), &path);
        Self { dir, original, path }
    }

    /// Compiles a C program. `None` where there is no compiler.
    pub(crate) fn compiled(name: &str, source: &str, flags: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (code, program) = (dir.path().join("code.c"), dir.path().join(name));
        fs::write(&code, source).expect("a source file");
        let built = Command::new("cc").args(["-O1", "-w", "-o"]).arg(&program).arg(&code).args(flags).output();
        match built {
            Ok(output) if output.status.success() => Some(Self::of(&program)),
            Ok(output) => panic!("{name} does not compile: {}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => {
                println!("{name}: not run here, there is no C compiler");
                None
            }
        }
    }

    pub(crate) fn source(&self) -> FileSource {
        FileSource(File::open(&self.original).expect("the original"))
    }

    pub(crate) fn image(&self) -> Image {
        Image::build(Arc::new(self.source()), &Workshop::default()).expect("an image of the original")
    }

    /// Turns the file at `path` into a package.
    pub(crate) fn seal(&self) {
        let mut bytes = fs::read(&self.original).expect("the original");
        seal(&mut bytes);
        self.write(&bytes);
    }

    /// Turns the file at `path` into a package that names this interpreter.
    pub(crate) fn place(&self, interpreter: &Path) {
        let mut bytes = fs::read(&self.original).expect("the original");
        seal(&mut bytes);
        place(&mut bytes, interpreter);
        self.write(&bytes);
    }

    /// Replaces the file at `path`.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let (data, fresh) = (self.dir.path().join("data"), self.dir.path().join("fresh"));
        fs::write(&data, bytes).expect("a new file");
        install(&data, &fresh);
        fs::rename(&fresh, &self.path).expect("a rename");
    }

    pub(crate) fn plain(&self, args: &[&str]) -> Output {
        let client = Client::spawn(self, args, "");
        client.go();
        client.output()
    }

    /// Runs the package with the loader's help.
    pub(crate) fn helped(&self, args: &[&str]) -> Output {
        let client = Client::spawn(self, args, "");
        client.start(&self.image()).expect("a start");
        client.output()
    }

    /// Runs the program plain and protected and compares all that a user sees.
    pub(crate) fn same(&self, args: &[&str]) {
        let plain = self.plain(args);
        self.seal();
        let helped = self.helped(args);
        assert_eq!(text(&helped.stdout), text(&plain.stdout), "stdout of {args:?}");
        assert_eq!(text(&helped.stderr), text(&plain.stderr), "stderr of {args:?}");
        assert_eq!(helped.status.code(), plain.status.code(), "exit code of {args:?}");
        assert!(!plain.stdout.is_empty() || !plain.stderr.is_empty(), "{args:?} says nothing, so nothing was compared");
    }
}

/// Copies a file to where it will be executed, by another process: had this one it open for writing while another thread starts a
/// child, execve would say "text file busy".
pub(crate) fn install(from: &Path, to: &Path) {
    let done = Command::new("install").args(["-m", "755"]).args([from, to]).status().expect("install(1)");
    assert!(done.success(), "{} is copied", from.display());
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Flips the executable bytes but for what the kernel reads itself, and clears the execute flags.
pub(crate) fn seal(bytes: &mut [u8]) {
    let header = FileHeader64::<LE>::parse(&*bytes).expect("an ELF header");
    let table = header.program_headers(LE, &*bytes).expect("program headers").to_vec();
    let at = header.e_phoff.get(LE) as usize;
    let size = size_of::<ProgramHeader64<LE>>();
    let mut plain = vec![0..64, at..at + table.len() * size];
    for h in &table {
        if [PT_INTERP, PT_NOTE, PT_GNU_PROPERTY].contains(&h.p_type(LE)) {
            plain.push(h.p_offset(LE) as usize..(h.p_offset(LE) + h.p_filesz(LE)) as usize);
        }
    }
    for (index, h) in table.iter().enumerate().filter(|(_, h)| h.p_type(LE) == PT_LOAD && h.p_flags(LE) & PF_X != 0) {
        let start = h.p_offset(LE) as usize;
        for (place, byte) in bytes[start..start + h.p_filesz(LE) as usize].iter_mut().enumerate() {
            if !plain.iter().any(|range| range.contains(&(start + place))) {
                *byte ^= 0xa5;
            }
        }
        bytes[at + index * size + 4] &= !(PF_X as u8);
    }
}

/// Appends the path and makes the program's interpreter header, or a note's, name it.
fn place(bytes: &mut Vec<u8>, interpreter: &Path) {
    let header = FileHeader64::<LE>::parse(&**bytes).expect("an ELF header");
    let table = header.program_headers(LE, &**bytes).expect("program headers");
    let kinds = [PT_INTERP, PT_GNU_PROPERTY, PT_NOTE];
    let index = kinds.iter().find_map(|kind| table.iter().position(|h| h.p_type(LE) == *kind)).expect("a header to spare");
    let at = header.e_phoff.get(LE) as usize + index * size_of::<ProgramHeader64<LE>>();
    let path = [interpreter.as_os_str().as_encoded_bytes(), &[0]].concat();
    let end = bytes.len() as u64;
    bytes[at..at + 4].copy_from_slice(&PT_INTERP.to_le_bytes());
    bytes[at + 8..at + 16].copy_from_slice(&end.to_le_bytes());
    bytes[at + 32..at + 40].copy_from_slice(&(path.len() as u64).to_le_bytes());
    bytes.extend(path);
}

/// A client that waits for its word. A test that fails leaves none behind.
pub(crate) struct Client {
    parent: Option<Child>,
    pub(crate) pid: Pid,
    word: PathBuf,
}

impl Client {
    /// `before` is shell code that the client runs before it says its pid, for example `ulimit -n 4;`.
    pub(crate) fn spawn(case: &Case, args: &[&str], before: &str) -> Self {
        Self::spawn_path(case, &case.path, args, before)
    }

    pub(crate) fn spawn_path(case: &Case, path: &Path, args: &[&str], before: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", PARENT, "parent"]);
        Self::spawn_under(command, case, path, args, before)
    }

    /// `command` runs its further arguments as `sh -c` does.
    pub(crate) fn spawn_under(mut command: Command, case: &Case, path: &Path, args: &[&str], before: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (said, word) = (case.dir.path().join(format!("pid{number}")), case.dir.path().join(format!("word{number}")));
        for fifo in [&said, &word] {
            mknodat(CWD, fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a fifo");
            fs::set_permissions(fifo, fs::Permissions::from_mode(0o666)).expect("permissions");
        }
        command.arg(format!("{before}{CLIENT}")).arg("client").arg(&said).arg(&word).arg(path).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let parent = command.spawn().expect("a shell");
        let mut pid = String::new();
        File::open(&said).expect("the fifo").read_to_string(&mut pid).expect("a pid");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("a pid");
        Self { parent: Some(parent), pid, word }
    }

    /// The fifo on which the client waits for its word.
    pub(crate) fn word(&self) -> &Path {
        &self.word
    }

    /// Lets the client exec.
    pub(crate) fn go(&self) {
        let mut word = fs::OpenOptions::new().write(true).open(&self.word).expect("the fifo");
        word.write_all(b"go\n").expect("a word");
    }

    pub(crate) fn at_exec(&self) -> Result<AtExec, LoadError> {
        let tracer = Tracer::seize(self.pid)?;
        self.go();
        tracer.await_exec(DEADLINE)
    }

    pub(crate) fn start(&self, image: &Image) -> Result<Started, LoadError> {
        self.at_exec()?.complete(image)
    }

    pub(crate) fn output(mut self) -> Output {
        let parent = self.parent.take().expect("taken only here and in drop");
        parent.wait_with_output().expect("the client's output")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(mut parent) = self.parent.take() {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = parent.wait();
        }
    }
}

/// A fifo that takes no byte more; it stays so while the file lives.
pub(crate) fn full_fifo(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a fifo");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("permissions");
    let mut fifo = fs::OpenOptions::new().read(true).write(true).open(path).expect("the fifo");
    rustix::io::ioctl_fionbio(&fifo, true).expect("not to wait");
    while fifo.write(&[0; 4096]).is_ok() {}
    fifo
}

/// The identity of the file at a path.
pub(crate) fn identity(path: &Path) -> Identity {
    Identity::of(File::open(path).expect("the file")).expect("its identity")
}
