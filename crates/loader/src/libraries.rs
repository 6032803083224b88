//! The libraries that a dynamic linker will load for a program, and whether anybody but the administrator could have put them there.
//!
//! A library sees the code of the program that loads it. Where the vendor forbids foreign code, each file that the dynamic linker will
//! open, and each folder that it will look into before it finds the file, must belong to root or to this processor's user and be
//! writable by nobody else; so must every folder on the way there. Then nothing can change between this look and the dynamic
//! linker's, but by the administrator.
//!
//! What is followed is glibc's way, and musl's: `DT_NEEDED` (and filters and audit libraries) of the program and of each library, in
//! `DT_RPATH` of the library that needs it and of those before it, `DT_RUNPATH`, `/etc/ld.so.cache`, the system's folders; `$ORIGIN`,
//! `$LIB` and `$PLATFORM`; the folders for better processors below each. `LD_LIBRARY_PATH` is not: the caller takes it away. What a
//! program loads later by itself (dlopen), and which plug-ins its libraries load by their own configuration, is its vendor's affair.

mod linker_cache;
mod needs;
mod trust;

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use crate::error::LoadError;
use crate::image::PageSource;
use linker_cache::LinkerCache;
use needs::Needs;
use trust::{Seen, Walk};

/// The most libraries of one program.
const MAX_LIBRARIES: usize = 1024;
/// Folders below a library folder that glibc prefers on better processors; 2.36 and earlier know the last four at any depth.
const BETTER: &[&str] = &["glibc-hwcaps", "x86-64-v2", "x86-64-v3", "x86-64-v4", "tls", "haswell", "avx512_1", "x86_64"];
/// How deep [`BETTER`] folders nest.
const MAX_BETTER: usize = 4;
/// What `$LIB` stands for on one system or another.
const LIB: &[&str] = &["lib/x86_64-linux-gnu", "lib64", "lib"];
/// What `$PLATFORM` stands for on one machine or another.
const PLATFORM: &[&str] = &["x86_64", "haswell", "xeon_phi"];
/// Where glibc looks last, on one system or another.
const GLIBC_FOLDERS: &[&str] = &["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
/// Where musl looks last unless its own file says otherwise.
const MUSL_FOLDERS: &str = "/lib:/usr/local/lib:/usr/lib";
const MUSL_PATHS: &str = "/etc/ld-musl-x86_64.path";

/// What a program will load, followed when it is asked for and remembered while no file on the way changes.
#[derive(Debug)]
pub struct Libraries {
    interpreter: Option<PathBuf>,
    needs: Needs,
    known: Mutex<Option<Known>>,
}

/// A look that found nothing wrong.
#[derive(Debug)]
struct Known {
    program: PathBuf,
    seen: Seen,
}

impl Libraries {
    /// Reads what the program needs from its verified original.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] if its dynamic section cannot be followed, [`LoadError::Source`] if the source fails.
    pub fn of(source: &dyn PageSource) -> Result<Self, LoadError> {
        let needs = Needs::read(source.len(), &|offset, buf| source.read_at(offset, buf))?;
        Ok(Self { interpreter: needs.interpreter.clone(), needs, known: Mutex::default() })
    }

    /// Refuses the program at this path, as the kernel names it, if somebody could have put foreign code where its dynamic linker will
    /// look. A program without one needs nothing.
    ///
    /// # Errors
    /// [`LoadError::ForeignLibrary`] names the file or folder and what is wrong with it.
    pub fn check(&self, program: &Path) -> Result<(), LoadError> {
        let Some(interpreter) = &self.interpreter else { return Ok(()) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| known.program == program && known.seen.is_unchanged()) {
            return Ok(());
        }
        *known = None;
        let mut search = Search::begin(interpreter, program)?;
        search.follow(&self.needs)?;
        *known = Some(Known { program: program.to_owned(), seen: search.walk.into_seen() });
        Ok(())
    }
}

/// Refuses a file that is there at this path, as the kernel names it, if somebody but the administrator could change it or put another
/// in its place.
///
/// # Errors
/// As [`Libraries::check`]; one that is not there too.
pub fn check_file(path: &Path) -> Result<(), LoadError> {
    if Walk::default().file(path)? { Ok(()) } else { Err(foreign(path, "is not there any more")) }
}

/// One look.
struct Search {
    walk: Walk,
    cache: LinkerCache,
    system: Vec<PathBuf>,
    /// The name by which a library was asked for; each is loaded once.
    names: HashSet<Vec<u8>>,
    queue: VecDeque<Found>,
}

/// A library whose needs are to be followed, or the program itself.
struct Found {
    needs: Needs,
    /// Its folder: `$ORIGIN`.
    origin: PathBuf,
    /// `DT_RPATH` folders of those that needed it.
    inherited: Rc<Vec<PathBuf>>,
}

impl Search {
    fn begin(interpreter: &Path, program: &Path) -> Result<Self, LoadError> {
        let mut walk = Walk::default();
        walk.file(interpreter)?;
        let musl = interpreter.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-musl-"));
        let (cache, system) = if musl {
            let paths = std::fs::read_to_string(MUSL_PATHS).unwrap_or_else(|_| MUSL_FOLDERS.into());
            (LinkerCache::default(), paths.split([':', '\n']).filter(|p| !p.is_empty()).map(PathBuf::from).collect())
        } else {
            (LinkerCache::read(&mut walk)?, GLIBC_FOLDERS.iter().map(PathBuf::from).collect())
        };
        let origin = program.parent().unwrap_or(Path::new("/")).to_owned();
        let mut search = Self { walk, cache, system, names: HashSet::new(), queue: VecDeque::new() };
        search.names.extend(interpreter.file_name().map(|name| name.as_bytes().to_vec()));
        search.queue.push_back(Found { needs: Needs::default(), origin, inherited: Rc::default() });
        Ok(search)
    }

    /// Follows all libraries, breadth first, as dynamic linkers load them.
    fn follow(&mut self, program: &Needs) -> Result<(), LoadError> {
        if let Some(first) = self.queue.front_mut() {
            first.needs = program.clone();
        }
        while let Some(found) = self.queue.pop_front() {
            let (own, inherited) = self.folders(&found)?;
            let inherited = Rc::new(inherited);
            for name in &found.needs.libraries {
                if self.names.len() > MAX_LIBRARIES {
                    return Err(foreign(Path::new(OsStr::from_bytes(name)), "is one library too many"));
                }
                if self.names.insert(name.clone()) {
                    self.library(name, &found.origin, &own, &inherited)?;
                }
            }
        }
        Ok(())
    }

    /// The folders in which an object's needs are looked for before the system's, and those of them that its libraries inherit.
    fn folders(&mut self, found: &Found) -> Result<(Vec<PathBuf>, Vec<PathBuf>), LoadError> {
        let (run_path, old_path) = (&found.needs.run_path, &found.needs.old_path);
        // DT_RUNPATH makes its object's own DT_RPATH void, and whatever it would inherit.
        let mut inherited = Vec::new();
        for entry in old_path.iter().filter(|_| run_path.is_empty()) {
            inherited.extend(expanded(entry, &found.origin)?);
        }
        inherited.extend(found.inherited.iter().cloned());
        let mut own = if run_path.is_empty() { inherited.clone() } else { Vec::new() };
        for entry in run_path {
            own.extend(expanded(entry, &found.origin)?);
        }
        for folder in &own {
            self.walk.folder(folder)?;
        }
        Ok((own, inherited))
    }

    /// Finds one library and checks it; one that is nowhere is no danger, the dynamic linker will say so.
    fn library(&mut self, name: &[u8], origin: &Path, own: &[PathBuf], inherited: &Rc<Vec<PathBuf>>) -> Result<(), LoadError> {
        if name.contains(&b'/') {
            for path in expanded(name, origin)? {
                self.take(&path, inherited)?;
            }
            return Ok(());
        }
        let name = OsStr::from_bytes(name);
        for folder in own {
            if self.in_folder(folder, name, inherited)? {
                return Ok(());
            }
        }
        let cached: Vec<PathBuf> = self.cache.paths(name.as_bytes()).map(Path::to_owned).collect();
        for path in &cached {
            self.take(path, inherited)?;
        }
        if !cached.is_empty() {
            return Ok(());
        }
        for folder in self.system.clone() {
            self.walk.folder(&folder)?;
            if self.in_folder(&folder, name, inherited)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the library is in this folder, or below it for better processors: every one that could be chosen is checked.
    fn in_folder(&mut self, folder: &Path, name: &OsStr, inherited: &Rc<Vec<PathBuf>>) -> Result<bool, LoadError> {
        let mut folders = vec![(folder.to_owned(), 0)];
        let mut there = false;
        while let Some((folder, depth)) = folders.pop() {
            there |= self.take(&folder.join(name), inherited)?;
            for better in BETTER.iter().map(|b| folder.join(b)).filter(|_| depth < MAX_BETTER) {
                if better.is_dir() {
                    self.walk.folder(&better)?;
                    folders.push((better, depth + 1));
                }
            }
        }
        Ok(there)
    }

    /// Checks a library if it is there, and will follow what it needs in turn. One of another machine is passed over, as dynamic
    /// linkers do.
    fn take(&mut self, path: &Path, inherited: &Rc<Vec<PathBuf>>) -> Result<bool, LoadError> {
        if !self.walk.file(path)? {
            return Ok(false);
        }
        let file = File::open(path).map_err(|e| foreign(path, &format!("cannot be examined by the processor: {e}")))?;
        let len = file.metadata().map_err(|e| foreign(path, &format!("cannot be examined by the processor: {e}")))?.len();
        match Needs::read(len, &|offset, buf| file.read_exact_at(buf, offset)) {
            Ok(needs) => {
                let origin = path.parent().unwrap_or(Path::new("/")).to_owned();
                self.queue.push_back(Found { needs, origin, inherited: Rc::clone(inherited) });
                Ok(true)
            }
            Err(LoadError::Unsupported(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The places that an entry of a library path can mean. One that depends on the folder in which the program is started is refused.
fn expanded(entry: &[u8], origin: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut places = vec![Vec::new()];
    let mut rest = entry;
    while let Some(at) = rest.iter().position(|&byte| byte == b'$') {
        let (before, token) = rest.split_at(at);
        let known: [(&str, Vec<&OsStr>); 3] = [
            ("ORIGIN", vec![origin.as_os_str()]),
            ("LIB", LIB.iter().map(OsStr::new).collect()),
            ("PLATFORM", PLATFORM.iter().map(OsStr::new).collect()),
        ];
        let matched = known.iter().find_map(|(name, values)| {
            let forms = [format!("${{{name}}}"), format!("${name}")];
            forms.iter().find(|form| token.starts_with(form.as_bytes())).map(|form| (form.len(), values))
        });
        let (length, values) = matched.ok_or_else(|| foreign(Path::new(OsStr::from_bytes(entry)), "means nothing that is known here"))?;
        places = places.iter().flat_map(|place| values.iter().map(move |value| [place, before, value.as_bytes()].concat())).collect();
        rest = &token[length..];
    }
    let places: Vec<PathBuf> = places.into_iter().map(|p| PathBuf::from(OsStr::from_bytes(&[&p[..], rest].concat()))).collect();
    match places.iter().find(|place| !place.is_absolute()) {
        Some(relative) => Err(foreign(relative, "depends on the folder in which the program is started")),
        None => Ok(places),
    }
}

fn foreign(path: &Path, what: &str) -> LoadError {
    LoadError::ForeignLibrary(format!("{} {what}", path.display()))
}

#[cfg(test)]
mod tests;
