//! `run --with NAME=PACKAGE` (source \[63\]): data that a program finds open when it starts, under a path in its environment.
//!
//! This process never has the plaintext. It only chooses the number of the descriptor, and keeps it taken until its exec; the processor
//! puts the data there once nobody but the program can get at it.

use crate::verbs::package::file;
use chipbound_processor::run::LOADER_VARIABLES;
use chipbound_wire::limits::MAX_WITH;
use chipbound_wire::{Code, Refusal, Result};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;

/// The lowest number of a descriptor for data: those below are what shell scripts use for themselves.
const LOWEST: i32 = 10;

/// One `--with`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct With {
    /// The environment variable.
    pub name: String,
    /// The package of data.
    pub package: PathBuf,
}

impl FromStr for With {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            Some((name, _)) if LOADER_VARIABLES.iter().any(|start| format!("{name}=").starts_with(start)) => {
                Err(format!("{name} is the dynamic linker's own: name another variable"))
            }
            Some((name, package)) if !name.is_empty() && !package.is_empty() => Ok(Self { name: name.to_owned(), package: package.into() }),
            _ => Err("expected NAME=PACKAGE: the environment variable that gets the path, and a package of data".into()),
        }
    }
}

/// Packages of data that are open, and places for them among the descriptors that the program will have.
#[derive(Debug, Default)]
pub struct Taken(Vec<(String, File, OwnedFd)>);

impl Taken {
    /// Opens the packages and takes the places.
    pub fn take(with: &[With]) -> Result<Self> {
        if with.len() > MAX_WITH {
            return Err(Refusal::new(Code::TooLarge, format!("{} packages of data where {MAX_WITH} are allowed", with.len())));
        }
        let mut taken = Self::default();
        for With { name, package } in with {
            if taken.0.iter().any(|(other, ..)| other == name) {
                return Err(Refusal::new(Code::ConfigInvalid, format!("--with {name}=… is there twice")));
            }
            taken.0.push((name.clone(), file(package)?, place().map_err(|e| Refusal::io("a descriptor for data", e))?));
        }
        Ok(taken)
    }

    /// The packages, for the processor.
    pub fn packages(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, file, _)| file.as_fd())
    }

    /// The numbers of the places.
    #[must_use]
    pub fn numbers(&self) -> Vec<u32> {
        self.0.iter().map(|(.., place)| place.as_raw_fd().cast_unsigned()).collect()
    }

    /// What the program's environment says of them.
    pub fn environment(&self) -> impl Iterator<Item = (OsString, OsString)> {
        self.0.iter().map(|(name, _, place)| (name.into(), format!("/proc/self/fd/{}", place.as_raw_fd()).into()))
    }
}

/// A descriptor that stays open in what this process executes.
fn place() -> std::io::Result<OwnedFd> {
    let place = fcntl_dupfd_cloexec(File::open("/dev/null")?, LOWEST)?;
    fcntl_setfd(&place, FdFlags::empty())?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_and_a_package_are_told_apart_at_the_first_equals_sign() {
        assert_eq!("A=b=c".parse(), Ok(With { name: "A".into(), package: "b=c".into() }));
        for bad in ["", "A", "=b", "A=", "=", "LD_PRELOAD=b", "GLIBC_TUNABLES=b"] {
            assert!(bad.parse::<With>().is_err(), "{bad}");
        }
    }

    #[test]
    fn places_are_apart_and_above_those_of_scripts_and_stay_open_over_an_exec() {
        let with = |name: &str| With { name: name.into(), package: "/proc/self/exe".into() };
        let taken = Taken::take(&[with("A"), with("B")]).expect("taken");
        let numbers = taken.numbers();
        assert!(numbers[0] != numbers[1] && numbers.iter().all(|n| *n >= 10), "{numbers:?}");
        assert!(taken.0.iter().all(|(.., place)| rustix::io::fcntl_getfd(place).expect("flags").is_empty()));
        let environment: Vec<_> = taken.environment().collect();
        assert_eq!(environment[1], ("B".into(), format!("/proc/self/fd/{}", numbers[1]).into()));
        assert_eq!(Taken::take(&[with("A"), with("A")]).expect_err("twice").code, Code::ConfigInvalid);
        assert_eq!(Taken::take(&vec![with("A"); MAX_WITH + 1]).expect_err("too many").code, Code::TooLarge);
    }
}
