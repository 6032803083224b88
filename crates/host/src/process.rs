//! This process and the clock.

use chipbound_wire::{Refusal, Result, Time};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use std::time::{SystemTime, UNIX_EPOCH};

/// Turns core dumps off, and with them reading this process through /proc and ptrace by its own user.
pub fn no_core_dumps() -> Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|e| Refusal::io("cannot turn core dumps off", e.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| Refusal::io("cannot turn core dumps off", e.into()))
}

/// The time by the system's clock.
#[must_use]
pub fn now() -> Time {
    Time(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}
