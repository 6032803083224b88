//! How the daemon comes by a FUSE connection: a file system of its own that is nowhere in the tree of files, so that nobody opens
//! anything in it but whom the daemon gives its root folder for a moment.
//!
//! Root makes it by itself, detached from the first. Anybody else has it mounted by `fusermount3` on an empty folder of mode 0700
//! of his own, and detaches it at once. This comes before the daemon confines itself, which ends both ways.

use crate::config::{Clients, Config};
use chipbound_wire::{Code, Refusal, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// How long the helper may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file system that nobody serves yet.
#[derive(Debug)]
pub struct Mounted {
    /// Where the kernel asks.
    pub(crate) device: OwnedFd,
    /// Its root folder, open as a place only.
    pub(crate) root: OwnedFd,
}

/// Makes the file system; [`Code::DataUnavailable`] says what is in the way.
pub fn mount(config: &Config) -> Result<Mounted> {
    match mount_directly() {
        Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => mount_with_helper(config),
        Err(e) => Err(unavailable(format!("this kernel makes no FUSE file system: {DEVICE}: {e}"))),
        Ok(mounted) => Ok(mounted),
    }
}

fn mount_directly() -> rustix::io::Result<Mounted> {
    let device = open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let system = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let settings = [
        ("source", "chipbound".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", user.as_raw().to_string()),
        ("group_id", group.as_raw().to_string()),
    ];
    for (key, value) in settings {
        fsconfig_set_string(&system, key, &*value)?;
    }
    for flag in ["allow_other", "ro"] {
        fsconfig_set_flag(&system, flag)?;
    }
    fsconfig_create(&system)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(Mounted { device, root })
}

/// Programs of other users read only with `allow_other`, which root allows ordinary users in /etc/fuse.conf.
fn mount_with_helper(config: &Config) -> Result<Mounted> {
    let folder = config.state.join("data");
    chipbound_host::files::create_private_folder(&folder)?;
    detach(&folder); // What a daemon left that was killed between the next two lines.
    let device = ask_helper(&folder, config.clients == Clients::Everyone)?;
    let root = open(&folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    detach(&folder);
    root.map(|root| Mounted { device, root }).map_err(|e| unavailable(format!("{}: {e}", folder.display())))
}

fn ask_helper(folder: &Path, everyone: bool) -> Result<OwnedFd> {
    let failed = |e: std::io::Error| unavailable(format!("{HELPER}: {e}"));
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let options = format!("ro,nosuid,nodev,noexec,fsname=chipbound{}", if everyone { ",allow_other" } else { "" });
    let mut command = Command::new(HELPER);
    // The helper sends its answer on the descriptor that this variable names: its standard input here.
    command.args(["-o", &options, "--"]).arg(folder).env("_FUSE_COMMFD", "0");
    let child = command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    drop(command); // With its end of the pair: the helper's own end tells when it is gone.
    let child = child.map_err(|e| match e.kind() {
        ErrorKind::NotFound => unavailable(format!("the daemon may not mount and there is no {HELPER}: install the package fuse3")),
        _ => failed(e),
    })?;
    let device = receive(&ours);
    let said = child.wait_with_output().map_err(failed)?;
    device.ok_or_else(|| {
        let why = String::from_utf8_lossy(&said.stderr);
        unavailable(format!("{HELPER} refused: {}", why.trim().replace('\n', "; ")))
    })
}

/// The descriptor that the helper sent, if it did.
fn receive(from: &UnixStream) -> Option<OwnedFd> {
    let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    })
}

/// Takes the file system away from the folder. It lives on as long as somebody has it open.
fn detach(folder: &Path) {
    let mut command = Command::new(HELPER);
    command.args(["-u", "-z", "-q", "--"]).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = command.status(); // There may be nothing to detach; what stays lies in a folder that is closed to others.
}

fn unavailable(detail: String) -> Refusal {
    Refusal::new(Code::DataUnavailable, detail)
}
