//! Where threads may write: Landlock(7).

use super::Work;
use crate::config::Config;
use chipbound_wire::{Code, Refusal, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, make_bitflags,
};
use std::path::Path;

/// Files are made, written, renamed within their folder, and removed.
const KEEP: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | MakeReg | RemoveFile | Truncate});

/// Packages and libraries lie anywhere, and names are looked up.
const LOOK: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// The rules of this daemon.
#[derive(Debug)]
pub(super) struct Folders {
    session: RulesetCreated,
    control: RulesetCreated,
}

impl Folders {
    /// None where the kernel has no Landlock.
    pub(super) fn of(config: &Config) -> Result<Option<Self>> {
        // The oldest of all rights is refused only where there are none at all.
        if Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::ReadFile).is_err() {
            return Ok(None);
        }
        let own = [(Path::new("/"), LOOK), (&config.state, KEEP), (&config.spool, KEEP)];
        let socket = config.socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let session = rules(&own)?;
        let control = rules(&[&own[..], &[(socket, AccessFs::RemoveFile.into())]].concat())?;
        Ok(Some(Self { session, control }))
    }

    /// Closes all other folders to the calling thread. One that starts programs stays as it is: under Landlock it could not trace.
    pub(super) fn close(&self, work: Work) -> Result<()> {
        let rules = match work {
            Work::Start => return Ok(()),
            Work::Session | Work::Data => &self.session,
            Work::Control => &self.control,
        };
        let rules = rules.try_clone().map_err(|e| Refusal::io("the rules for folders", e))?;
        rules.restrict_self().map(drop).map_err(refused)
    }
}

/// Everything that Landlock knows of files is closed but what is listed, and nobody may listen on the network. An older kernel
/// closes what it knows.
fn rules(open: &[(&Path, BitFlags<AccessFs>)]) -> Result<RulesetCreated> {
    let rules = Ruleset::default().handle_access(AccessFs::from_all(ABI::V5)).map_err(refused)?;
    let mut rules = rules.handle_access(AccessNet::BindTcp).map_err(refused)?.create().map_err(refused)?;
    for (folder, access) in open {
        let at = PathFd::new(folder).map_err(|e| Refusal::new(Code::Io, format!("{}: {e}", folder.display())).because(e))?;
        rules = rules.add_rule(PathBeneath::new(at, *access)).map_err(refused)?;
    }
    Ok(rules)
}

fn refused(error: landlock::RulesetError) -> Refusal {
    Refusal::new(Code::Internal, format!("the kernel does not close folders: {error}")).because(error)
}
