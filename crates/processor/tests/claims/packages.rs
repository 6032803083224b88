//! Package files that somebody edited (A9-A11), and certificates that ran out or were withdrawn in the meantime.

use crate::world::{Lies, World, now, sample};
use chipbound_processor::vault::Vault;
use chipbound_sealing::{Decapsulate, Layout, Package, ReadAt};
use chipbound_trusted_core::{KeyStore, Memory, Record, SoftwareKeyStore, open_in_one_pass, open_package};
use chipbound_wire::bounded::encode;
use chipbound_wire::certificate::{SealingKey, Trust};
use chipbound_wire::documents::{Manifest, PackageDocuments};
use chipbound_wire::signature::Sign;
use chipbound_wire::suite::{Class, Format, Profile};
use chipbound_wire::{Code, Digest, OrderId, Result, Time};
use object::{Object, ObjectSection};
use std::sync::Arc;

/// What a package opens to, in two passes and in one: both say the same.
fn open(world: &World, package: &[u8]) -> Result<Vec<u8>> {
    let opened = open_package(package, &world.us.vault, &*world.us.vault.keys(), &world.root(), true).and_then(|opened| {
        let mut plain = vec![0; opened.plaintext.size() as usize];
        opened.plaintext.read(&mut plain, 0).map(|()| plain)
    });
    let at_once = in_one_pass(package, &world.us.vault, &*world.us.vault.keys(), &world.root());
    let said = |opened: &Result<Vec<u8>>| opened.as_ref().map(Vec::len).map_err(|refusal| refusal.code);
    assert_eq!(said(&opened), said(&at_once));
    opened
}

fn in_one_pass(package: &[u8], memory: &dyn Memory, keys: &dyn KeyStore, root: &Trust) -> Result<Vec<u8>> {
    let opened = open_in_one_pass(package, memory, keys, root)?;
    let mut plain = vec![0; opened.plaintext.size() as usize];
    let read = opened.plaintext.read(&mut plain, 0);
    let (_, settled) = opened.settle()?;
    read?;
    let mut again = vec![0; plain.len()];
    settled.read(&mut again, 0)?;
    assert!(plain == again);
    Ok(plain)
}

/// A key store whose sealing keys are gone.
#[derive(Debug)]
struct Keyless(Arc<SoftwareKeyStore>);

impl Sign for Keyless {
    fn spki(&self) -> &[u8] {
        self.0.spki()
    }
    fn sign(&self, message: &[u8]) -> Result<[u8; 64]> {
        self.0.sign(message)
    }
}

impl KeyStore for Keyless {
    fn class(&self) -> Class {
        self.0.class()
    }
    fn sealing_keys(&self) -> Vec<SealingKey> {
        Vec::new()
    }
    fn generations(&self) -> Vec<&dyn Decapsulate> {
        Vec::new()
    }
    fn generation_of(&self, _: &[SealingKey]) -> Option<&dyn Decapsulate> {
        None
    }
}

/// What the vault remembers, but for the secrets.
struct Forgetful<'a>(&'a Vault);

impl Memory for Forgetful<'_> {
    fn record(&self, seal: &Digest) -> Result<Record> {
        self.0.record(seal)
    }
    fn check_sequence(&self, manifest: &Manifest) -> Result<()> {
        self.0.check_sequence(manifest)
    }
    fn check_order(&self, order: &OrderId) -> Result<()> {
        self.0.check_order(order)
    }
}

#[test]
fn what_was_released_needs_no_decapsulation_again_and_opens_by_nothing_but_its_own_secrets() {
    let world = World::new();
    let (plain, package) = program(&world);
    let keyless = Keyless(world.us.vault.keys());
    let reopened = Vault::open(&world.us.config.state).expect("a later life of the daemon");
    assert!(in_one_pass(&package, &reopened, &keyless, &world.root()).expect("opens") == plain);
    let refusal = in_one_pass(&package, &Forgetful(&reopened), &keyless, &world.root()).expect_err("no secret, no key");
    assert!(matches!(refusal.code, Code::WrapInvalid | Code::TokenMismatch), "{refusal}");
    let record = reopened.record(&Digest::of(&Package::read(&package).expect("a package").documents.seal)).expect("recorded");
    let settled = record.release.and_then(|release| release.settled).expect("settled");
    assert_eq!(settled.open_secrets(&record.terms, &[0; 32]).expect_err("another key and place").code, Code::Unsealable);
}

#[test]
fn before_its_release_nothing_is_settled() {
    let world = World::new();
    let (held, _) = world.deliver(&world.ship(&sample(1000), |_| {}), &Lies::default());
    let seal = held.expect("received").acknowledged.seal.digest();
    assert!(world.us.vault.record(&seal).expect("recorded").release.is_none(), "and secrets are kept with a release alone");
}

/// A real program and its package.
fn program(world: &World) -> (Vec<u8>, Vec<u8>) {
    let plain = std::fs::read("/bin/ls").expect("a program of every Debian");
    let package = world.package(&world.ship(&plain, |m| assert_eq!(m.format, Format::ElfX8664)));
    (plain, package)
}

#[test]
fn a_program_package_opens_to_the_vendors_program() {
    let world = World::new();
    let (plain, package) = program(&world);
    assert_eq!(open(&world, &package).expect("opens"), plain);
    assert_eq!(&package[..4], b"\x7fELF", "the package is an ELF file still");
}

/// Every place of a program that stays plain, one flipped bit at a time.
#[test]
fn a_changed_byte_in_any_plain_part_is_refused_by_name() {
    let world = World::new();
    let (plain, package) = program(&world);
    let layout = Layout::of(Profile::Code, &plain).expect("a layout");
    let sealed = |at: u64| layout.sealed().iter().any(|r| (r.offset..r.end()).contains(&at));
    let file = object::File::parse(&plain[..]).expect("an ELF file");
    let mut places: Vec<(String, u64)> = vec![
        ("the class".into(), 4),
        ("the entry point".into(), 24),
        ("the flags of the first segment".into(), 64 + 4),
        ("the address of the second segment".into(), 64 + 56 + 16),
        ("the section headers".into(), plain.len() as u64 - 8),
    ];
    for section in file.sections() {
        let name = section.name().unwrap_or("?").to_owned();
        if let Some((offset, size)) = section.file_range().filter(|(offset, size)| *size > 0 && !sealed(*offset)) {
            places.push((format!("the start of {name}"), offset));
            places.push((format!("the end of {name}"), offset + size - 1));
        }
    }
    for wanted in [".interp", ".dynamic", ".data", ".init_array", ".dynsym", ".rela.dyn", ".rodata"] {
        assert!(places.iter().any(|(name, _)| name.ends_with(wanted)), "{wanted} is among the plain parts");
    }
    for (what, at) in places {
        let mut edited = package.clone();
        edited[at as usize] ^= 1;
        let refusal = open(&world, &edited).expect_err(&what);
        assert_eq!(refusal.code, Code::PlainPartsAltered, "{what}: {refusal}");
    }
}

#[test]
fn a_changed_moved_or_missing_page_is_refused_by_name() {
    let world = World::new();
    let (_, package) = program(&world);
    let parsed = Package::read(&package).expect("a package");
    let text = parsed.layout.sealed()[0];
    let mut flipped = package.clone();
    flipped[(text.offset + text.len / 2) as usize] ^= 0x10;
    assert_eq!(open(&world, &flipped).expect_err("flipped").code, Code::PageAltered);
    let mut moved = package.clone();
    let page = (text.offset.next_multiple_of(4096)) as usize;
    moved.copy_within(page..page + 4096, page + 4096);
    assert_eq!(open(&world, &moved).expect_err("moved").code, Code::PageAltered);
    let tags = (parsed.layout.body_size() as usize) + parsed.layout.encode().len();
    let mut tag = package.clone();
    tag[tags + 5] ^= 1;
    assert_eq!(open(&world, &tag).expect_err("a changed tag").code, Code::PageAltered);
    for cut in [1, 100, 5000, package.len() / 2, package.len()] {
        let code = open(&world, &package[..package.len() - cut]).expect_err("cut").code;
        assert!(matches!(code, Code::NotAPackage | Code::PackageTruncated), "{cut}: {code}");
    }
}

/// A11, A13: documents of two packages put together in every way.
#[test]
fn documents_of_another_package_of_the_same_processor_do_not_fit() {
    let world = World::new();
    let (first, second) = (world.package(&world.ship(&sample(70_000), |_| {})), world.package(&world.ship(&sample(70_000), |_| {})));
    let (one, other) = (Package::read(&first).expect("a package"), Package::read(&second).expect("a package"));
    let mixed = |mix: fn(&mut PackageDocuments, &PackageDocuments)| {
        let mut documents = one.documents.clone();
        mix(&mut documents, &other.documents);
        let body = &first[..one.layout.body_size() as usize];
        open(&world, &[body, &chipbound_sealing::package::trailer(&one.layout, &one.tags, &documents)].concat())
    };
    assert_eq!(mixed(|_, _| {}).expect("its own documents"), sample(70_000));
    type Mix = fn(&mut PackageDocuments, &PackageDocuments);
    let mixes: [(&str, Mix, Code); 6] = [
        ("terms", |d, o| d.terms = o.terms.clone(), Code::SealMismatch),
        ("wrap", |d, o| d.wrap = o.wrap.clone(), Code::SealMismatch),
        ("seal", |d, o| d.seal = o.seal.clone(), Code::SealMismatch),
        ("token", |d, o| d.token = o.token.clone(), Code::TokenMismatch),
        ("manifest", |d, o| d.sealed_manifest = o.sealed_manifest.clone(), Code::ManifestMismatch),
        ("terms, wrap, seal, token and manifest", |d, o| *d = o.clone(), Code::PageAltered),
    ];
    for (what, mix, code) in mixes {
        let refusal = mixed(mix).expect_err(what);
        assert_eq!(refusal.code, code, "{what}: {refusal}");
    }
}

#[test]
fn no_flipped_bit_anywhere_in_the_appended_part_is_taken() {
    let world = World::new();
    let package = world.package(&world.ship(&sample(1000), |_| {}));
    let mut refused = 0;
    for at in (1000..package.len()).step_by(3) {
        let mut edited = package.clone();
        edited[at] ^= 1 << (at % 8);
        let refusal = open(&world, &edited).expect_err("edited");
        assert!(refusal.code != Code::Internal, "{at}: {refusal}");
        refused += 1;
    }
    assert!(refused > 1000);
    let whole = Package::read(&package).expect("a package").documents;
    assert!(encode(&whole).len() > 3000, "terms, wrap, seal, token and manifest are in there");
}

#[test]
fn a_withdrawn_or_expired_server_delivers_nothing_but_what_was_bought_still_opens() {
    let world = World::new();
    let package = world.package(&world.ship(&sample(1000), |_| {}));
    let list = world.pki.revocations(&[&world.second_path]);
    world.us.vault.take_revocations(list).expect("the authority's own list");
    let (held, server) = world.deliver(&world.ship(&sample(10), |_| {}), &Lies::default());
    assert_eq!(held.expect_err("withdrawn").code, Code::CertificateRevoked);
    assert_eq!(server.expect_err("told").code, Code::CertificateRevoked);
    let list = world.pki.revocations(&[&world.statement]);
    world.us.vault.take_revocations(list).expect("the authority's own list");
    let (held, server) = world.deliver(&world.ship(&sample(10), |_| {}), &Lies::default());
    assert_eq!(held.expect_err("withdrawn").code, Code::CertificateRevoked, "its statements count no more, either");
    assert_eq!(server.expect_err("told").code, Code::CertificateRevoked);
    assert_eq!(open(&world, &package).expect("was bought and compared before"), sample(1000));
}

#[test]
fn a_stale_or_foreign_revocation_list_is_not_taken() {
    let world = World::new();
    let stale = world.pki.revocations_until(&[], Time(now().0 - 10));
    assert_eq!(world.us.vault.take_revocations(stale).expect_err("stale").code, Code::RevocationListStale);
    let foreign = World::new().pki.revocations(&[]);
    let refusal = world.us.vault.take_revocations(foreign).expect_err("foreign");
    assert!(matches!(refusal.code, Code::CertificateForeign | Code::RevocationListStale), "{refusal}");
    assert_eq!(world.us.vault.take_revocations(vec![1; 100]).expect_err("garbage").code, Code::Malformed);
    world.delivered(&world.ship(&sample(10), |_| {}));
}
