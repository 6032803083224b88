//! What vendors may publish, and what not.

use crate::world::{World, code, eur, sample};
use chipbound_testkit::{Pki, Wanted};
use chipbound_wire::api::{Base64, Catalogue, NewRelease, Upload};
use chipbound_wire::bounded::List;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::{Format, Profile};
use chipbound_wire::{Code, Digest, ProgramId};
use std::time::Duration;

/// Between two looks at what is on the disk.
const LOOK: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_shows_only_the_newest_release() {
    let world = World::new().await;
    let vera = world.log_in("vera").await;
    for (version, sequence) in [("1.0", 1), ("1.1", 5)] {
        let plain = sample(1000 + sequence as usize);
        let manifest = world.vendor.sign(&world.manifest("tool", version, sequence, &plain));
        let published = vera.publish(&manifest, eur(250), &plain).await.unwrap();
        assert_eq!((published.sealed_bytes, published.release.manifest), (plain.len() as u64, Digest::of(&manifest)));
    }
    let catalogue: Catalogue = world.log_in("ann").await.get("/v1/programs").await.unwrap();
    assert_eq!(catalogue.programs.len(), 1);
    let newest = &catalogue.programs[0];
    assert_eq!((newest.version.as_str(), newest.sequence, newest.size, newest.format), ("1.1", 5, 1005, Format::Data));
    let lower = world.manifest("tool", "1.2", 4, b"x");
    assert_eq!(code(vera.publish(&world.vendor.sign(&lower), eur(250), b"x").await), Code::Conflict);
    let again = world.manifest("tool", "1.0", 6, b"x");
    assert_eq!(code(vera.publish(&world.vendor.sign(&again), eur(250), b"x").await), Code::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plaintext_that_is_not_the_manifests_is_not_published_and_leaves_nothing() {
    let world = World::new().await;
    let vera = world.log_in("vera").await;
    let plain = sample(70_000);
    let manifest = world.vendor.sign(&world.manifest("tool", "1.0", 1, &plain));
    let announced: Upload = vera.post("/v1/releases", &NewRelease { manifest: Base64(manifest), price: eur(250) }).await.unwrap();
    let mut flipped = plain.clone();
    flipped[69_999] ^= 1;
    assert_eq!(code(vera.upload(&announced.upload, &flipped).await), Code::PlaintextMismatch);
    assert_eq!(code(vera.upload(&announced.upload, &plain[1..]).await), Code::PlaintextMismatch);
    let catalogue: Catalogue = vera.get("/v1/programs").await.unwrap();
    assert!(catalogue.programs.is_empty());
    vera.upload(&announced.upload, &plain).await.expect("the true one, after all");
    let left = || std::fs::read_dir(world.folder.path().join("blobs/plain")).unwrap().count();
    while left() > 1 {
        tokio::task::yield_now().await; // What was refused is removed in the background.
    }
    assert_eq!(left(), 1);
    assert_eq!(code(vera.upload(&announced.upload, &plain).await), Code::NotFound, "an upload is used once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_who_goes_away_while_the_release_is_recorded_leaves_it_whole() {
    let world = World::new().await;
    let vera = world.log_in("vera").await;
    let plain = sample(70_000);
    let manifest = world.vendor.sign(&world.manifest("tool", "1.0", 1, &plain));
    let new = NewRelease { manifest: Base64(manifest), price: eur(250) };
    let plaintexts = || {
        let names = std::fs::read_dir(world.folder.path().join("blobs/plain")).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| !name.to_string_lossy().contains('#')).count() // Unfinished ones have that in their names.
    };
    let published = async || vera.get::<Catalogue>("/v1/programs").await.unwrap().programs.len();
    let mut cut_after = Duration::ZERO;
    while published().await == 0 {
        let announced: Upload = vera.post("/v1/releases", &new).await.unwrap();
        // Another process has the books to itself, so that the plaintext is there and the release is not on record.
        let books = rusqlite::Connection::open(world.folder.path().join("server.db")).unwrap();
        books.execute_batch("BEGIN IMMEDIATE").unwrap();
        let cut = async {
            while plaintexts() == 0 {
                tokio::time::sleep(LOOK).await;
            }
            tokio::time::sleep(cut_after).await;
        };
        tokio::select! {
            _ = vera.upload(&announced.upload, &plain) => panic!("it waits for the books"),
            () = cut => {} // The vendor's connection goes with the request.
        }
        tokio::time::sleep(10 * LOOK).await; // The server notices.
        books.execute_batch("ROLLBACK").unwrap();
        // It was cut before it came to the books, or it is in them.
        for _ in 0..200 {
            if plaintexts() == published().await {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        assert_eq!(plaintexts(), published().await, "cut after {cut_after:?}");
        cut_after += 2 * LOOK;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_announced_again_and_again_takes_one_place() {
    let world = World::new().await;
    let vera = world.log_in("vera").await;
    let plain = sample(70_000);
    let announce = async |version: &str, price| {
        let manifest = world.vendor.sign(&world.manifest("tool", version, 1, &plain));
        vera.post::<Upload>("/v1/releases", &NewRelease { manifest: Base64(manifest), price: eur(price) }).await
    };
    for turn in 1..64 {
        announce(&format!("0.{turn}"), 100).await.expect("another version");
    }
    let first = announce("1.0", 100).await.expect("the last place");
    let mut newest = first.upload.clone();
    for _ in 0..100 {
        newest = announce("1.0", 250).await.expect("the same version").upload; // As after a publish that was killed.
    }
    assert_eq!(code(announce("1.1", 100).await), Code::RateLimited);
    assert_eq!(code(vera.upload(&first.upload, &plain).await), Code::NotFound, "the newest announcement counts");
    vera.upload(&newest, &plain).await.expect("the newest");
    let catalogue: Catalogue = vera.get("/v1/programs").await.unwrap();
    assert_eq!(catalogue.programs.iter().map(|r| (r.version.as_str(), r.price)).collect::<Vec<_>>(), [("1.0", eur(250))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_no_certified_vendor_signed_for_itself_is_refused() {
    let world = World::new().await;
    let vera = world.log_in("vera").await;
    let plain = sample(100);
    let good = world.manifest("tool", "1.0", 1, &plain);
    let other = world.pki.holder(Role::Vendor);
    let stranger = Pki::new(world.now()).holder(Role::Vendor);
    let expired = world.pki.holder_of(&Wanted { not_after: Some(chipbound_wire::Time(world.now().0 - 1)), ..Wanted::role(Role::Vendor) });
    let of = |holder: &chipbound_testkit::Holder| {
        holder.sign(&Manifest { program: ProgramId::new(&holder.id(), "tool").unwrap(), ..good.clone() })
    };
    let mut bent = of(&world.vendor);
    let end = bent.len() - 1;
    bent[end] ^= 1;
    let elf_profile = Manifest { profile: Profile::Code, ..good.clone() };
    let no_modes = Manifest { key_modes: List::new(vec![]).unwrap(), ..good.clone() };
    let no_class = Manifest { classes: List::new(vec![]).unwrap(), ..good.clone() };
    let withdrawn = Manifest { minimum_sequence: 2, ..good.clone() };
    for (what, manifest, refused) in [
        ("another vendor's program", other.sign(&good), Code::ManifestMismatch),
        ("a foreign authority", of(&stranger), Code::CertificateForeign),
        ("an expired certificate", of(&expired), Code::CertificateExpired),
        ("an altered signature", bent, Code::SignatureInvalid),
        (
            "another kind of document",
            world.vendor.sign(&chipbound_testkit::documents::receipt(
                &chipbound_testkit::documents::confirmation(&good, b"", world.vendor.id(), world.now()),
                world.now(),
            )),
            Code::WrongDocument,
        ),
        ("a profile of another format", world.vendor.sign(&elf_profile), Code::NotSupported),
        ("no key mode", world.vendor.sign(&no_modes), Code::ManifestMismatch),
        ("no class of processor", world.vendor.sign(&no_class), Code::ManifestMismatch),
        ("a release that withdraws itself", world.vendor.sign(&withdrawn), Code::ManifestMismatch),
        ("garbage", vec![1, 2, 3], Code::Malformed),
    ] {
        assert_eq!(code(vera.publish(&manifest, eur(250), &plain).await), refused, "{what}");
    }
    let revoked = world.pki.revocations(&[&world.vendor]);
    world.trust.replace(world.pki.trust().with_revocations(&revoked).unwrap());
    assert_eq!(code(vera.publish(&of(&world.vendor), eur(250), &plain).await), Code::CertificateRevoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_program_is_not_published_as_one_and_a_program_may_be_data() {
    let world = World::new().await;
    let vera = world.log_in("vera").await;
    let text = sample(5000);
    let posing = Manifest { format: Format::ElfX8664, profile: Profile::Code, ..world.manifest("text", "1.0", 1, &text) };
    assert_eq!(code(vera.publish(&world.vendor.sign(&posing), eur(1), &text).await), Code::UnsupportedProgram);
    let elf = std::fs::read("/bin/true").unwrap();
    let published = world.publish_elf("true", &elf).await;
    assert!(published.sealed_bytes > 0 && published.sealed_bytes < elf.len() as u64, "only the code is sealed");
    let as_data = world.vendor.sign(&world.manifest("true-as-data", "1.0", 1, &elf));
    assert_eq!(vera.publish(&as_data, eur(1), &elf).await.unwrap().sealed_bytes, elf.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_vendors_account_earns_nothing_with_these_programs() {
    let world = World::new().await;
    world.publish("tool", b"plain").await;
    let vito = world.log_in("vito").await;
    let manifest = world.vendor.sign(&world.manifest("tool", "2.0", 2, b"newer"));
    assert_eq!(code(vito.publish(&manifest, eur(1), b"newer").await), Code::Forbidden);
    let vera = world.log_in("vera").await;
    let announced: Upload = vera.post("/v1/releases", &NewRelease { manifest: Base64(manifest), price: eur(1) }).await.unwrap();
    assert_eq!(code(vito.upload(&announced.upload, b"newer").await), Code::NotFound, "nor with a foreign upload");
}
