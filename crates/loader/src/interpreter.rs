//! The dynamic linker as this side finds it by the path in the verified program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, Stat, fstat, open, stat};

use crate::elf::Program;
use crate::error::{LoadError, system};
use crate::exec::Identity;

/// A dynamic linker, opened and read.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) file: File,
    pub(crate) stat: Stat,
    pub(crate) program: Program,
}

impl Interpreter {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(system("the interpreter of the program cannot be opened"))?;
        let stat = fstat(&fd).map_err(system("the interpreter of the program cannot be examined"))?;
        let file = File::from(fd);
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let program = Program::parse(len, &|offset, buf| file.read_exact_at(buf, offset))?;
        if program.interpreter.is_some() {
            return Err(LoadError::Unsupported("its interpreter is not a dynamic linker".into()));
        }
        Ok(Self { file, stat, program })
    }
}

/// The dynamic linker that was found last, read again only when another file stands at its path.
#[derive(Debug, Default)]
pub(crate) struct LastInterpreter(Mutex<Option<Arc<Interpreter>>>);

impl LastInterpreter {
    /// The dynamic linker at this path now.
    pub(crate) fn at(&self, path: &Path) -> Result<Arc<Interpreter>, LoadError> {
        let now = Identity::from(stat(path).map_err(system("the interpreter of the program cannot be found"))?);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = last.as_ref().filter(|known| Identity::from(known.stat) == now) {
            return Ok(Arc::clone(same));
        }
        let fresh = Arc::new(Interpreter::open(path)?);
        *last = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}
