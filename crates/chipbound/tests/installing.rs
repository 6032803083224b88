//! A package installed by root for a group that its customers are not in: they execute and cannot read it. The group stands in a mount
//! namespace of the installing command alone, so that the machine keeps no trace of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "own_uid/installed.rs"]
mod installed;

use chipbound_wire::Code;
use common::{good, json_lines, refused};
use installed::{CUSTOMER, GROUP, Installed, lines, own, root_with_setpriv};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// Root's command where the group chipbound exists; none, said so, where root may make no mount namespace.
fn with_group(installed: &Installed, arguments: &[&str]) -> Option<Command> {
    let groups = installed.world.folder.path().join("group");
    let text = fs::read_to_string("/etc/group").unwrap();
    let others: String = text.lines().filter(|line| !line.starts_with("chipbound:")).map(|line| format!("{line}\n")).collect();
    fs::write(&groups, format!("{others}chipbound:x:{GROUP}:\n")).unwrap();
    let script = r#"mount --bind "$1" /etc/group && shift && exec "$@""#;
    let possible = Command::new("unshare").args(["-m", "sh", "-c", script, "sh"]).arg(&groups).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("not run here: root may make no mount namespace");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&groups).arg(&installed.chipbound).args(arguments);
    command.current_dir(installed.world.work("")).env("CHIPBOUND_HOME", installed.world.home("ada").path());
    command.env("CHIPBOUND_PROCESSOR", &installed.world.daemons.sockets[0]);
    Some(command)
}

#[test]
fn what_root_installs_its_customers_execute_verify_and_list_and_cannot_read() {
    if !root_with_setpriv() {
        return;
    }
    let installed = Installed::new();
    installed.world.publish(&installed.plain, "tool", "1", &[]);
    own(&installed.world.folder.path().join("home-ada"), CUSTOMER);
    own(&installed.world.work(""), CUSTOMER);
    good(&mut installed.customer(&installed.chipbound, &["buy", "tool"]));
    let bin = installed.world.folder.path().join("installed");
    let (bin_text, command) = (bin.to_str().unwrap(), bin.join("tool"));
    let Some(mut install) = with_group(&installed, &["install", "./tool", "--bin", bin_text]) else { return };
    let said = String::from_utf8(good(&mut install).stdout).unwrap();
    assert!(said.contains("mode 0751; others may execute it and not read it"), "{said}");
    let meta = command.metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777), (0, GROUP, 0o751));

    // Directly, by its name from the PATH, and by `run`.
    assert_eq!(lines(&good(&mut installed.customer(&command, &[]))), ["hello"]);
    let mut named = installed.customer("sh", &["-c", "PATH=$1:$PATH; tool", "sh", bin_text]);
    assert_eq!(lines(&good(&mut named)), ["hello"]);
    assert_eq!(lines(&good(&mut installed.run_package(&command, &[]))), ["hello"]);
    let read = installed.customer("cat", &[command.to_str().unwrap()]).output().unwrap();
    assert!(!read.status.success() && read.stdout.is_empty());
    let running = installed.waiting(installed.customer(&command, &[]));
    assert_eq!(installed.ways_into(running.id()), Vec::<String>::new());
    running.wait_with_output().unwrap();

    // The processor looks for the customer, who cannot.
    let as_customer = |arguments: &[&str]| installed.customer(&installed.chipbound, arguments);
    let verified = json_lines(&good(as_customer(&["--json", "verify", command.to_str().unwrap()])));
    assert!(["whole", "opens_here", "direct_start"].iter().all(|question| verified[0][*question] == true), "{verified:?}");
    let listed = String::from_utf8(good(as_customer(&["list", "--bin", bin_text])).stdout).unwrap();
    assert!(listed.contains("tool  (may be executed, not read)  ask verify"), "{listed}");
    let values = json_lines(&good(as_customer(&["--json", "list", "--bin", bin_text])));
    assert!(values[0]["order"].is_null() && values[0]["direct_start"].is_null() && values[0]["name"] == "tool", "{values:?}");

    refused(as_customer(&["uninstall", "tool", "--bin", bin_text]), Code::Io);
    assert!(command.exists());
    good(with_group(&installed, &["uninstall", "tool", "--bin", bin_text]).unwrap());
    assert!(!command.exists() && bin.exists());
    let groups = fs::read_to_string("/etc/group").unwrap();
    assert!(!groups.contains(&format!(":{GROUP}:")), "the machine's own groups are what they were");
    assert!(Path::new("/etc/group").metadata().unwrap().ino() != installed.world.folder.path().join("group").metadata().unwrap().ino());
}
