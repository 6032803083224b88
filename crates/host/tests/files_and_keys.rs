//! Durable files and sealed keys, through the crate's public face.

use chipbound_host::files::{self, PRIVATE, Pending};
use chipbound_host::{FileKey, Kek, config, signing_request};
use chipbound_wire::Code;
use chipbound_wire::signature::{Sign, verify};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

fn names(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_pending_file_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("folder");
    let target = folder.path().join("target");
    let mut pending = Pending::create(&target, PRIVATE).expect("pending");
    pending.file().write_all(b"half").expect("written");
    assert!(!target.exists());
    drop(pending);
    assert!(names(folder.path()).is_empty(), "nothing half-written is left");

    files::write_durably(&target, b"one", PRIVATE).expect("written");
    files::write_durably(&target, b"two", PRIVATE).expect("replaced");
    assert_eq!(std::fs::read(&target).expect("read"), b"two");
    assert_eq!(files::write_new(&target, b"three", PRIVATE).expect_err("taken").code, Code::Conflict);
    assert_eq!(std::fs::read(&target).expect("read"), b"two");
    assert_eq!(names(folder.path()), ["target"]);
}

#[test]
fn what_killed_processes_left_of_a_target_goes_with_the_next_and_what_is_at_work_or_anothers_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let target = folder.path().join("target");
    std::mem::forget(Pending::create(&target, PRIVATE).expect("as if it were killed"));
    let others = [".other.0123456789abcdef.part", ".target.0123456789abcde.part", ".target.0123456789abcdef", "target.part"];
    others.iter().for_each(|name| std::fs::write(folder.path().join(name), "x").expect("written"));
    std::os::unix::fs::symlink("target.part", folder.path().join(".target.fedcba9876543210.part")).expect("a link");
    let first = Pending::create_anew(&target, PRIVATE).expect("pending");
    assert_eq!(names(folder.path()).len(), others.len() + 2, "{:?}", names(folder.path()));
    let second = Pending::create_anew(&target, PRIVATE).expect("two at once");
    assert_eq!(names(folder.path()).len(), others.len() + 3, "{:?}", names(folder.path()));
    first.keep().expect("kept");
    second.keep().expect("kept");
    let left = names(folder.path());
    assert!(others.iter().all(|name| left.iter().any(|n| n == name)) && left.len() == others.len() + 2, "{left:?}");
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("not run here: mounting a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mount =
        |arguments: &[&str]| std::process::Command::new("mount").args(arguments).arg(folder.path()).status().expect("mount").success();
    assert!(mount(&["-t", "tmpfs", "-o", "size=64k", "none"]));
    let refused = files::write_durably(&folder.path().join("large"), &vec![7; 1 << 20], PRIVATE).expect_err("no room");
    let left = names(folder.path());
    assert!(std::process::Command::new("umount").arg(folder.path()).status().expect("umount").success());
    assert_eq!(refused.code, Code::DiskFull);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_key_file_is_sealed_private_and_bound_to_its_purpose() {
    let folder = tempfile::tempdir().expect("folder");
    let (kek_path, key_path) = (folder.path().join("kek"), folder.path().join("key"));
    let kek = Kek::create(&kek_path).expect("kek");
    let key = FileKey::create(&key_path, &kek, "test identity").expect("key");
    for path in [&kek_path, &key_path] {
        assert_eq!(std::fs::metadata(path).expect("meta").permissions().mode() & 0o777, 0o600);
    }
    let on_disk = std::fs::read(&key_path).expect("read");
    let oid_of_ec_keys = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    assert!(!on_disk.windows(7).any(|w| w == oid_of_ec_keys), "no PKCS#8 in the clear");

    let again = FileKey::load(&key_path, &Kek::load(&kek_path).expect("kek"), "test identity").expect("loads");
    assert_eq!(again.key_id(), key.key_id());
    verify(key.spki(), b"message", &again.sign(b"message").expect("signature")).expect("the same key");

    assert_eq!(FileKey::load(&key_path, &kek, "another purpose").expect_err("purpose").code, Code::Unsealable);
    let other = Kek::create(&folder.path().join("other")).expect("kek");
    assert_eq!(FileKey::load(&key_path, &other, "test identity").expect_err("kek").code, Code::Unsealable);
    assert_eq!(FileKey::create(&key_path, &kek, "test identity").expect_err("never overwritten").code, Code::Conflict);

    std::fs::set_permissions(&key_path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    assert_eq!(FileKey::load(&key_path, &kek, "test identity").expect_err("mode").code, Code::InsecurePermissions);
}

#[test]
fn a_signing_request_proves_possession_of_its_key() {
    let (key, _) = FileKey::generate().expect("key");
    let key = Arc::new(key);
    let request = signing_request(key.clone()).expect("request");
    let parsed = rcgen::CertificateSigningRequestParams::from_der(&request.as_slice().into()).expect("verifies its own signature");
    assert_eq!(rcgen::PublicKeyData::der_bytes(&parsed.public_key), &key.spki()[26..]);
    let mut forged = request.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(rcgen::CertificateSigningRequestParams::from_der(&forged.as_slice().into()).is_err());
}

#[test]
fn a_mistake_in_a_configuration_names_file_line_and_field() {
    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[allow(dead_code, reason = "only its parsing is tested")]
        listen: String,
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("x.toml");
    std::fs::write(&path, "listen = \"127.0.0.1:1\"\nlisten_too = 3\n").expect("written");
    let refused = config::load::<Config>(&path).expect_err("unknown field");
    assert_eq!(refused.code, Code::ConfigInvalid);
    assert!(refused.detail.contains("x.toml:2") && refused.detail.contains("listen_too"), "{}", refused.detail);
    assert_eq!(config::load::<Config>(&folder.path().join("none")).expect_err("absent").code, Code::ConfigInvalid);
}
