//! What a protected program costs beside its start, which `start` measures: while it runs, while its pages are opened, and in memory.

use crate::lab::{KeyMode, Lab, Way};
use crate::process::run;
use crate::{Options, Outcome, instances, opening, steady};
use std::path::{Path, PathBuf};

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    steady::measure(options, folder, &lab)?;
    opening::measure(options)?;
    instances::measure(options, folder, &lab)
}

/// The package of a program, bought.
pub(crate) fn protect(lab: &Lab, program: &Path, name: &str) -> Outcome<PathBuf> {
    let package = program.with_extension("package");
    run(&mut lab.publish(program, name, false))?;
    run(&mut lab.buy(name, KeyMode::Direct, Way::Tunnel, &package))?;
    Ok(package)
}
