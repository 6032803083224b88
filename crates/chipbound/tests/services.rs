//! The units in `deploy`, word for word, under a real systemd: the processor as a service with a user of its own, and an installed package as
//! another one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "services/manager.rs"]
mod manager;

use common::{World, good};
use manager::Manager;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// A unit whose program says something and ends, and that asks for no other unit.
const SAYS: &str = "[Service]\nType=oneshot\nUser=app\nCapabilityBoundingSet=\nLimitCORE=0\n
ExecStart=perl5 -e 'print \"$0 \", 6 * 7, \"\\n\"; exit 3'\nStandardOutput=append:/run/said\nStandardError=append:/run/said\n";
const UNITS: [(&str, &str); 3] = [
    ("chipbound-processor.service", include_str!("../../../deploy/chipbound-processor.service")),
    ("example-program.service", include_str!("../../../deploy/example-program.service")),
    ("says.service", SAYS),
];

/// What the comment of a unit tells its administrator to do, but for what these namespaces have or do otherwise.
fn once(unit: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("#   "));
    lines.filter(|line| !line.contains("useradd") && !line.contains("systemctl")).map(str::to_owned).collect()
}

#[test]
fn the_units_of_deploy_run_the_processor_and_an_installed_package_under_systemd() {
    let mut world = World::start("", 0);
    fs::set_permissions(world.folder.path(), Permissions::from_mode(0o755)).unwrap();
    let Some(manager) = Manager::start(&world.folder.path().join("systemd"), &UNITS) else { return };
    let started = |unit: &str| {
        let output = manager.systemctl(&["start", unit]);
        assert!(output.status.success(), "{unit}: {output:?}\n{}", String::from_utf8_lossy(&manager.systemctl(&["status", unit]).stdout));
    };

    for line in once(UNITS[0].1) {
        manager.shell(&line);
    }
    started("chipbound-processor");
    let processor = manager.shows("chipbound-processor", "MainPID");
    let status = manager.shell(&format!("cat /proc/{processor}/status"));
    assert!(status.contains("Uid:\t54421\t54421") && status.contains("CapEff:\t0000000000080000"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");

    world.daemons.sockets.push("/run/chipbound/processor.sock".into());
    let voucher = world.runtime.block_on(world.daemons.voucher("processor")).unwrap();
    let enroll = format!("chipbound processor enroll --authority {} --voucher {voucher} --home /run/home", world.daemons.authority_url);
    manager.shell(&enroll);
    let perl = fs::canonicalize("/usr/bin/perl").unwrap();
    world.publish(&perl, "perl5", "1", &[]);
    good(manager.inside(&world.ada(&["buy", "perl5", "-o", "perl5.package"])));
    for line in once(UNITS[1].1) {
        manager.shell(&format!("cd {}; {line}", world.work("").display()));
    }

    started("example-program");
    let program = manager.shows("example-program", "MainPID");
    manager.awaits("perl", || manager.shell(&format!("cat /proc/{program}/maps")).contains("/memfd:chipbound").then_some(()));
    assert_eq!(manager.shell(&format!("readlink /proc/{program}/exe")), "/usr/local/bin/perl5\n");
    let status = manager.shell(&format!("cat /proc/{program}/status"));
    assert!(status.contains("Uid:\t54422\t54422"), "{status}");
    let as_app = |file: &str| {
        let read = ["--reuid=app", "--regid=app", "--clear-groups", "cat", file];
        manager.inside(Command::new("setpriv").args(read)).output().unwrap()
    };
    for closed in [format!("/proc/{program}/maps"), "/usr/local/bin/perl5".to_owned()] {
        assert!(!as_app(&closed).status.success(), "{closed}");
    }

    // A unit's own words and its exit code are the program's.
    let says = manager.systemctl(&["start", "says"]);
    assert!(!says.status.success(), "{says:?}");
    assert_eq!(manager.shows("says", "ExecMainStatus"), "3");
    assert_eq!(manager.shell("cat /run/said"), "-e 42\n");

    // Another processor's process serves what starts next; what runs goes on.
    assert!(manager.systemctl(&["restart", "chipbound-processor"]).status.success());
    assert_ne!(manager.shows("chipbound-processor", "MainPID"), processor);
    assert_eq!(
        (manager.shows("example-program", "MainPID"), manager.shows("example-program", "ActiveState")),
        (program, "active".to_owned())
    );
    manager.systemctl(&["start", "says"]);
    assert_eq!(manager.shell("cat /run/said"), "-e 42\n-e 42\n");

    assert!(manager.systemctl(&["stop", "chipbound-processor"]).status.success());
    manager.systemctl(&["start", "says"]);
    assert_eq!(manager.shows("says", "ExecMainStatus"), "126");
    assert!(manager.shell("cat /run/said").contains("error[processor_unreachable]"));
    // The unit of the example asks for the processor: it comes back, and is waited for until it serves.
    assert!(manager.systemctl(&["restart", "example-program"]).status.success());
    assert_eq!(manager.shows("chipbound-processor", "ActiveState"), "active");
    assert!(manager.systemctl(&["stop", "example-program"]).status.success());
    assert_eq!(manager.shows("example-program", "Result"), "success");
}

#[test]
fn systemd_of_the_test_leaves_the_machine_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let state = || {
        let settings = ["kernel/core_pattern", "fs/nr_open", "fs/file-max", "kernel/hostname"];
        let settings = settings.map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap());
        (
            settings,
            fs::read_to_string("/proc/self/cgroup").unwrap(),
            fs::read_to_string("/proc/self/mounts").unwrap(),
            fs::read("/etc/passwd").unwrap(),
        )
    };
    let before = state();
    let Some(manager) = Manager::start(folder.path(), &[]) else { return };
    drop(manager);
    assert_eq!(state(), before);
}
