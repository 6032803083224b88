//! What a processor whose certificate was withdrawn keeps opened: nothing.

use crate::world::{World, now};
use chipbound_authority::issuing::{Validity, Withdrawn};
use chipbound_loader::{Identity, Image, Libraries, PageSource, Workshop};
use chipbound_processor::processor::Program;
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Digest, KeyId, ProgramId, Time};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

struct Plain(File);

impl PageSource for Plain {
    fn len(&self) -> u64 {
        self.0.metadata().expect("its size").len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// `/bin/echo` as a program of that name.
pub(crate) fn echo(program: ProgramId) -> Program {
    let file = File::open("/bin/echo").expect("a program of every Debian");
    let source = Arc::new(Plain(file));
    let libraries = Libraries::of(&*source).expect("its libraries");
    let image = Image::build(source, &Workshop::default()).expect("an image");
    Program { image, program, sequence: 1, loader_variables: LoaderVariables::Forbid, libraries, library: None, locked: OnceLock::new() }
}

/// Whether a program had to be opened.
fn opens(world: &World) -> bool {
    let file = File::open("/bin/echo").expect("a program of every Debian");
    let identity = Identity::of(&file).expect("its identity");
    let mut opened = false;
    let open = |()| {
        opened = true;
        Ok(echo(ProgramId::new(&KeyId([1; 32]), "echo").expect("a good name")))
    };
    world.us.programs.get(&identity, || Ok((Digest([1; 32]), ())), Ok, open).expect("opened");
    opened
}

#[test]
fn a_processor_whose_certificate_was_withdrawn_keeps_nothing_opened() {
    let world = World::new();
    assert!(opens(&world) && !opens(&world));
    world.us.take_revocations(world.pki.revocations(&[&world.second_path])).expect("a server was withdrawn");
    assert!(!opens(&world), "that does not concern what is opened here");
    let enrolment = world.us.vault.enrolment().expect("enrolled");
    let withdrawn = [Withdrawn { serial: enrolment.certified.serial().to_vec(), at: now() }];
    let validity = Validity { not_before: Time(now().0 - 60), not_after: now().after(3600) };
    let list = world.pki.issuer().revocations(3, &withdrawn, validity).expect("a list");
    world.us.take_revocations(list).expect("this processor was withdrawn");
    assert!(opens(&world));
}
