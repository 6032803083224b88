//! Which way a program's code takes into its process: what the machine allows, what the vendor allows, what the client asked for.

use crate::connection::Peer;
use crate::processor::Program;
use chipbound_loader::{LoadError, Tracer, trace_obstacle};
use chipbound_wire::bounded::{List, Text};
use chipbound_wire::control::{How, Response, WayHere};
use chipbound_wire::suite::{LoaderVariables, Mapping};
use chipbound_wire::{Code, Refusal, Result};

/// What this machine puts in the way of each way. Looked at once, before the daemon confines itself.
#[derive(Clone, Debug)]
pub struct Obstacles([Option<String>; 3]);

/// How one client starts.
#[derive(Debug)]
pub enum Way {
    /// It is traced, and its code mapped so.
    Traced(Tracer, Mapping),
    /// It executes a memory file.
    Executed,
}

/// Each way for one client and program, and the tracer if there can be one.
#[derive(Debug)]
pub struct Ways {
    tracer: Option<Tracer>,
    obstacles: [Option<String>; 3],
    /// What stands in all of them.
    exposed: Option<&'static str>,
}

/// The preferred first.
const ALL: [Mapping; 3] = [Mapping::SealedMemfd, Mapping::Anonymous, Mapping::MemfdExec];

impl Obstacles {
    /// Tries each way.
    #[must_use]
    pub fn here() -> Self {
        Self(ALL.map(|mapping| loaders(mapping).obstacle()))
    }
}

impl Ways {
    /// Begins to trace the client and says what stands in each way. `how` is absent where the client knows tracing alone. `data` is
    /// whether the program is to find data open, which only a traced process can be given; `unread` whether this user shall never read the
    /// program.
    pub fn of(peer: Peer, how: Option<&How>, program: &Program, (data, unread): (bool, bool), machine: &Obstacles) -> Result<Self> {
        let mut obstacles = machine.0.clone();
        let seized = match how.and_then(|how| how.mapping) {
            Some(Mapping::MemfdExec) if how.is_some_and(|how| !how.explain) => Ok(None),
            _ => Tracer::seize(peer.pid).map(Some),
        };
        let tracer = match seized {
            Ok(tracer) => tracer,
            Err(LoadError::TraceRefused(error)) => {
                let why = trace_obstacle(peer.pid, &error);
                for (mapping, obstacle) in ALL.iter().zip(&mut obstacles) {
                    if loaders(*mapping).traces() {
                        obstacle.get_or_insert_with(|| why.clone());
                    }
                }
                None
            }
            Err(error) => return Err(crate::run::refusal_of(error)),
        };
        let untraced =
            if data { Some("only a process that is traced can be given data".into()) } else { forbidden_unseen(peer, how, program) };
        if let Some(why) = untraced {
            obstacles[2].get_or_insert(why);
        }
        let exposed = Some(EXPOSED).filter(|_| unread && program.loader_variables == LoaderVariables::Forbid && dumps_what_is_unreadable());
        Ok(Self { tracer, obstacles, exposed })
    }

    /// The way to take: the one that was asked for, else the first that nothing stands in. [`Code::TraceRefused`] where the kernel
    /// forbids tracing and nothing else is left, [`Code::StartFailed`] where what was asked for cannot be done, or the kernel would let this
    /// user read a program that he may not.
    pub fn choose(self, wanted: Option<Mapping>) -> Result<Way> {
        if let Some(why) = self.exposed {
            return Err(Refusal::new(Code::StartFailed, why));
        }
        let mapping = match wanted {
            Some(mapping) => match self.obstacle(mapping) {
                None => mapping,
                Some(why) if mapping.traces() && self.tracer.is_none() => return Err(Refusal::new(Code::TraceRefused, why)),
                Some(why) => return Err(Refusal::new(Code::StartFailed, format!("{mapping} is impossible here: {why}"))),
            },
            None => self.chosen(None).ok_or_else(|| self.refusal())?,
        };
        Ok(match self.tracer {
            Some(tracer) if mapping.traces() => Way::Traced(tracer, mapping),
            _ => Way::Executed,
        })
    }

    /// What the client is told instead of a start.
    pub fn explained(&self, wanted: Option<Mapping>) -> Result<Response> {
        let here = |mapping: &Mapping| WayHere { mapping: *mapping, obstacle: self.obstacle(*mapping).map(Text::cut) };
        Ok(Response::Explained { chosen: self.chosen(wanted), ways: List::new(ALL.iter().map(here).collect())? })
    }

    fn chosen(&self, wanted: Option<Mapping>) -> Option<Mapping> {
        let asked = |mapping: &Mapping| wanted.is_none_or(|wanted| wanted == *mapping);
        ALL.into_iter().filter(asked).find(|mapping| self.obstacle(*mapping).is_none())
    }

    fn obstacle(&self, mapping: Mapping) -> Option<&str> {
        if self.exposed.is_some() {
            return self.exposed;
        }
        ALL.iter().zip(&self.obstacles).find(|(one, _)| **one == mapping)?.1.as_deref()
    }

    fn refusal(&self) -> Refusal {
        let each: Vec<_> = ALL.iter().filter_map(|m| Some(format!("{m}: {}", self.obstacle(*m)?))).collect();
        let code = if self.tracer.is_none() { Code::TraceRefused } else { Code::StartFailed };
        Refusal::new(code, each.join("; "))
    }
}

/// Where the kernel keeps whether it lets users dump and trace processes of files that they may not read.
const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";
/// What is said of that.
pub(crate) const EXPOSED: &str = "fs.suid_dumpable is 1, with which the kernel lets users trace and dump programs that they may not read; \
    set it to 0 or 2 (sysctl fs.suid_dumpable=0)";

/// Whether a process of a file that its user may execute and not read is as open to him as any other. The administrator may set that at any
/// time.
pub(crate) fn dumps_what_is_unreadable() -> bool {
    std::fs::read(SUID_DUMPABLE).is_ok_and(|value| value.trim_ascii() == b"1")
}

/// Whether the client is traced for a way.
trait Traces {
    fn traces(self) -> bool;
}

impl Traces for Mapping {
    fn traces(self) -> bool {
        loaders(self).traces()
    }
}

/// Why this program may not be started without being looked at.
fn forbidden_unseen(peer: Peer, how: Option<&How>, program: &Program) -> Option<String> {
    if how.is_none() {
        return Some("the client cannot execute a memory file".into());
    }
    let own_user = peer.uid == rustix::process::geteuid().as_raw();
    let unprotected = program.loader_variables == LoaderVariables::Forbid && !own_user;
    unprotected.then(|| "the vendor forbids loader variables, which nobody can take away from a process that is not traced".into())
}

/// The loader's name for a way.
fn loaders(mapping: Mapping) -> chipbound_loader::Mapping {
    match mapping {
        Mapping::SealedMemfd => chipbound_loader::Mapping::SealedMemfd,
        Mapping::Anonymous => chipbound_loader::Mapping::Anonymous,
        Mapping::MemfdExec => chipbound_loader::Mapping::MemfdExec,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_ways_are_the_loaders() {
        assert_eq!(ALL.map(Mapping::as_str), ALL.map(|mapping| loaders(mapping).name()));
        assert_eq!(ALL.map(loaders), chipbound_loader::Mapping::ALL);
    }
}
