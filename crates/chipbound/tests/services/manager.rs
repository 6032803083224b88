//! systemd as the first process of namespaces of its own: it has its own control group, its own /run, /var/lib, /usr/local/bin and users,
//! reads its units from one folder, and can change nothing of the machine's settings. It ends, with all it started, with its value.

use crate::common::{CHIPBOUND, good};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Where Debian has it.
const SYSTEMD: &str = "/lib/systemd/systemd";
/// Users and groups that live in the namespaces alone.
const USERS: &str = "chipbound:x:54421:54423::/nonexistent:/usr/sbin/nologin\napp:x:54422:54422::/nonexistent:/usr/sbin/nologin\n";
const GROUPS: &str = "chipbound:x:54423:\napp:x:54422:\n";
/// What units name, and what is not there.
const TARGETS: [&str; 5] = ["sysinit.target", "basic.target", "shutdown.target", "network-online.target", "all.target"];
/// How often something is looked at that must come about, and how long between two looks.
const LOOKS: usize = 400;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Joins the control group $1, and makes the namespaces; a signal that ends it ends everything in them.
const OUTSIDE: &str = r#"echo $$ > "$1/cgroup.procs"
exec unshare --fork --kill-child --pid --mount --mount-proc --cgroup --uts --ipc -- sh -e -c "$2" inside "$3" "$4""#;
/// In the folder $1 are the units, the users, and the command.
const INSIDE: &str = r#"mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for place in /run /var/lib /usr/local/bin; do mount -t tmpfs -o mode=755 tmpfs $place; done
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
for file in passwd group machine-id; do mount --bind "$1/$file" /etc/$file; done
mount --bind /dev/null /dev/console
cp "$1/chipbound" /usr/local/bin/
printf '#!/bin/sh\nexec /usr/local/bin/chipbound processor "$@"\n' > /usr/local/bin/chipbound-processor
chmod 755 /usr/local/bin/*
exec env -i container=test PATH=/usr/bin:/bin SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_GENERATOR_PATH="$1" SYSTEMD_LOG_TARGET=console \
    "$2" --system --unit=all.target"#;

/// A running systemd.
pub(crate) struct Manager {
    outside: Child,
    /// The number of systemd as the machine counts.
    pid: u32,
    group: PathBuf,
    folder: PathBuf,
}

impl Manager {
    /// Starts it with these units, its files in `folder`; `None`, said so, where that cannot be had.
    pub(crate) fn start(folder: &Path, units: &[(&str, &str)]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new(SYSTEMD).exists() {
            println!("not run here: it takes root and systemd");
            return None;
        }
        let Some(group) = control_group() else {
            println!("not run here: no control group can be made");
            return None;
        };
        fs::create_dir_all(folder.join("units")).unwrap();
        for target in TARGETS {
            fs::write(folder.join("units").join(target), "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n").unwrap();
        }
        for (name, text) in units {
            fs::write(folder.join("units").join(name), text).unwrap();
        }
        for (name, more) in [("passwd", USERS), ("group", GROUPS)] {
            fs::write(folder.join(name), fs::read_to_string(Path::new("/etc").join(name)).unwrap() + more).unwrap();
        }
        fs::write(folder.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        good(Command::new("cp").arg(CHIPBOUND).arg(folder.join("chipbound")));
        let said = fs::File::create(folder.join("systemd.log")).unwrap();
        let mut outside = Command::new("sh");
        outside.args(["-e", "-c", OUTSIDE, "outside"]).arg(&group).args([OsStr::new(INSIDE), folder.as_os_str(), OsStr::new(SYSTEMD)]);
        outside.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let outside = outside.spawn().unwrap();
        let mut manager = Self { outside, pid: 0, group, folder: folder.to_owned() };
        let children = format!("/proc/{0}/task/{0}/children", manager.outside.id());
        manager.pid = manager.awaits("systemd", || {
            let pid: u32 = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            (fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "systemd\n").then_some(pid)
        });
        manager.awaits("systemd's answer", || manager.systemctl(&["is-active", "all.target"]).status.success().then_some(()));
        Some(manager)
    }

    /// The same command among systemd's processes, in its folder and with its own variables.
    pub(crate) fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--cgroup", "--uts", "--ipc"]);
        if let Some(folder) = command.get_current_dir() {
            inside.arg(format!("--wdns={}", folder.to_str().unwrap()));
        }
        inside.arg("--").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// A line of a shell there that ends well; what it printed.
    #[track_caller]
    pub(crate) fn shell(&self, line: &str) -> String {
        let output = good(self.inside(Command::new("sh").args(["-e", "-c", line])));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `systemctl` did there.
    pub(crate) fn systemctl(&self, arguments: &[&str]) -> Output {
        self.inside(Command::new("systemctl").args(arguments)).output().unwrap()
    }

    /// A property of a unit.
    pub(crate) fn shows(&self, unit: &str, property: &str) -> String {
        let output = self.systemctl(&["show", "--value", "--property", property, unit]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until `found` finds something.
    #[track_caller]
    pub(crate) fn awaits<T>(&self, what: &str, found: impl Fn() -> Option<T>) -> T {
        for _ in 0..LOOKS {
            if let Some(found) = found() {
                return found;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("{what} did not come about; systemd said:\n{}", fs::read_to_string(self.folder.join("systemd.log")).unwrap());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        for _ in 0..LOOKS {
            if removed(&self.group) {
                return;
            }
            std::thread::sleep(LOOK_EVERY); // Its processes are ending.
        }
        println!("{} could not be taken away", self.group.display());
    }
}

/// A control group below the root of the unified hierarchy; none where it is not there or may not be changed.
fn control_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let root = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })?;
    static GROUPS_MADE: AtomicU32 = AtomicU32::new(0);
    let group = root.join(format!("chipbound-test-{}-{}", std::process::id(), GROUPS_MADE.fetch_add(1, Relaxed)));
    fs::create_dir(&group).ok()?;
    let whole = fs::metadata(group.join("cgroup.procs")).is_ok();
    (whole || !removed(&group)).then_some(group)
}

/// Takes a control group and those in it away; false while there are processes in it.
fn removed(group: &Path) -> bool {
    for inside in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        removed(&inside.path());
    }
    fs::remove_dir(group).is_ok()
}
