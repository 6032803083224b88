//! The units for a service manager in `deploy`: systemd reads them, and none asks for what a start would be refused for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

const UNITS: [(&str, &str); 2] = [
    ("chipbound-processor.service", include_str!("../../../deploy/chipbound-processor.service")),
    ("example-program.service", include_str!("../../../deploy/example-program.service")),
];

/// What makes a mount or user namespace (systemd.exec(5)): the processor and the programs live in the machine's.
const NAMESPACES: &[&str] = &[
    "BindPaths",
    "BindReadOnlyPaths",
    "CacheDirectory",
    "DynamicUser",
    "ExecPaths",
    "InaccessiblePaths",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
];
/// What sets a filter of system calls.
const FILTERS: &[&str] = &[
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "ProtectClock",
    "ProtectHostname",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SystemCallArchitectures",
    "SystemCallFilter",
    "SystemCallLog",
];

fn settings(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn no_unit_has_a_namespace_of_its_own_and_the_programs_no_filter() {
    for (name, text) in UNITS {
        let settings = settings(text);
        assert!(settings.iter().any(|(key, _)| *key == "ExecStart"), "{name}");
        let namespace = settings.iter().find(|(key, _)| NAMESPACES.contains(key));
        assert_eq!(namespace, None, "{name}");
    }
    let filter = settings(UNITS[1].1).into_iter().find(|(key, _)| FILTERS.contains(key));
    assert_eq!(filter, None);
    for wanted in [("AmbientCapabilities", "CAP_SYS_PTRACE"), ("CapabilityBoundingSet", "CAP_SYS_PTRACE"), ("MemorySwapMax", "0")] {
        assert!(settings(UNITS[0].1).contains(&wanted), "{wanted:?}");
    }
}

#[test]
fn systemd_reads_the_units_without_a_complaint() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("not run here: there is no systemd-analyze");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in UNITS {
        // It looks whether the command is there.
        let command = settings(text).into_iter().find(|(key, _)| *key == "ExecStart").unwrap().1;
        let program = command.split(' ').next().unwrap();
        assert!(Path::new(program).starts_with("/usr/local/bin"), "{command}");
        let unit = folder.path().join(name);
        fs::write(&unit, text.replace(program, env!("CARGO_BIN_EXE_chipbound"))).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(name), "{said}");
        // It does complain.
        fs::write(&unit, text.replace("\nType=", "\nType=non")).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains(name), "{output:?}");
    }
}
