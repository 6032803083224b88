//! First starts: nothing of the program is in the processor's memory, and in some of them nothing of any of its files in the kernel's.

use crate::lab::Lab;
use crate::process::output;
use crate::start::{Subject, by_env, milliseconds, protected};
use crate::stats::Series;
use crate::{Outcome, failed};
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// What was measured of one program, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Cold {
    /// The plain program, its file not in the page cache.
    pub(crate) plain: Series,
    /// The protected one, its package not in the page cache, by a processor that was started just before.
    pub(crate) run: Series,
    /// The same, its package in the page cache.
    pub(crate) first: Series,
}

impl Cold {
    /// What a cold protected start takes of a cold plain one.
    pub(crate) fn over_plain(&self) -> f64 {
        self.run.median() / self.plain.median()
    }
}

/// Which start.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    Run,
    First,
}

/// Rounds of one start of each kind. Who begins changes from round to round. The processor is started anew before each, the plain ones too,
/// so that the same went before all of them. Libraries stay in the page cache.
///
/// The plain program is a copy beside the package: of its own file others may have pages mapped, which the kernel then keeps.
pub(crate) fn cold_starts(lab: &mut Lab, subject: &Subject, package: &Path, rounds: usize) -> Outcome<Cold> {
    let program = package.with_extension("plain");
    fs::copy(&subject.program, &program)?;
    let mut cold = Cold::default();
    for round in 0..rounds {
        let mut kinds = [Kind::Plain, Kind::Run, Kind::First];
        let first = round % kinds.len();
        kinds.rotate_left(first);
        for kind in kinds {
            lab.restart_processor()?;
            let (series, mut command) = match kind {
                Kind::Plain => (&mut cold.plain, by_env(lab, subject, &program)),
                Kind::Run => (&mut cold.run, protected(lab, subject, package)),
                Kind::First => (&mut cold.first, protected(lab, subject, package)),
            };
            match kind {
                Kind::Plain => forget(&program)?,
                Kind::Run => forget(package)?,
                Kind::First => keep(package)?,
            }
            series.push(milliseconds(&mut command)?);
        }
    }
    fs::remove_file(program)?;
    Ok(cold)
}

/// How often the kernel is asked to forget a file, and the pause between.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Has the kernel forget what it keeps of a file's bytes, and looks whether it did.
pub(crate) fn forget(path: &Path) -> Outcome<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    for _ in 0..TRIES {
        fadvise(&file, 0, None, Advice::DontNeed)?;
        if pages(path)? == 0 {
            return Ok(());
        }
        sleep(PAUSE); // Whoever ended last may not have given everything back.
    }
    Err(failed(format!("{} pages of {} stay in the page cache", pages(path)?, path.display())))
}

/// Has the kernel keep all of a file's bytes.
fn keep(path: &Path) -> Outcome<()> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// How many pages of a file the kernel keeps.
fn pages(path: &Path) -> Outcome<u64> {
    Ok(output(Command::new("fincore").args(["--noheadings", "--output", "PAGES"]).arg(path))?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_forgotten_is_not_in_the_page_cache_and_comes_back_when_it_is_read() {
        let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap(); // On a disk.
        let file = folder.path().join("file");
        fs::write(&file, vec![7; 40_000]).unwrap();
        keep(&file).unwrap();
        assert_eq!(pages(&file).unwrap(), 10);
        forget(&file).unwrap();
        assert_eq!(pages(&file).unwrap(), 0);
        keep(&file).unwrap();
        assert_eq!(pages(&file).unwrap(), 10);
    }
}
