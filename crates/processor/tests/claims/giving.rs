//! Which programs may have which data, and how it is opened in memory where it cannot be served as it is read.

use crate::kept::echo;
use crate::world::{World, now, sample};
use chipbound_authority::issuing::{Validity, Withdrawn};
use chipbound_processor::data::ready;
use chipbound_processor::processor::Program;
use chipbound_wire::bounded::List;
use chipbound_wire::certificate::Role;
use chipbound_wire::documents::Manifest;
use chipbound_wire::suite::LoaderVariables;
use chipbound_wire::{Code, ProgramId, Result, Time};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

/// A program of that name by the vendor of the world.
fn program(world: &World, name: &str) -> Program {
    echo(ProgramId::new(&world.vendor.id(), name).expect("a good name"))
}

/// A package of `sample(100_000)` with the vendor's word on it.
fn package(world: &World, change: impl FnOnce(&mut Manifest)) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&world.package(&world.ship(&sample(100_000), change))).expect("written");
    file
}

/// What `program` reads of the data that it is given.
fn given(world: &World, data: &File, program: &Program) -> Result<Vec<u8>> {
    let given = ready(data.try_clone().expect("a duplicate"), program, &world.us)?.given(12)?;
    assert!(given.number == 12 && given.name.is_none(), "nobody serves data in this process");
    let (mut file, mut read) = (File::from(given.file), Vec::new());
    assert!(file.write_all(b"x").is_err(), "for reading alone");
    file.read_to_end(&mut read).expect("read");
    file.seek(SeekFrom::Start(0)).expect("its place is its own");
    Ok(read)
}

#[test]
fn data_that_may_not_be_opened_to_a_file_is_for_programs_of_its_vendor() {
    let world = World::new();
    let data = package(&world, |m| m.open_to_file = false);
    let own = program(&world, "own");
    for _ in 0..2 {
        assert_eq!(given(&world, &data, &own).expect("its vendor's"), sample(100_000));
    }
    let other = echo(ProgramId::new(&world.pki.holder(Role::Vendor).id(), "own").expect("a good name"));
    assert_eq!(given(&world, &data, &other).expect_err("another vendor's").code, Code::UseForbidden);
    let open = Program { loader_variables: LoaderVariables::Allow, ..program(&world, "own") };
    assert_eq!(given(&world, &data, &open).expect_err("its caller could read with a library of his own").code, Code::UseForbidden);
}

#[test]
fn a_manifest_that_names_readers_means_those_and_no_others() {
    let world = World::new();
    let foreign = ProgramId::new(&world.pki.holder(Role::Vendor).id(), "player").expect("a good name");
    let readers = List::new(vec![foreign.clone(), ProgramId::new(&world.vendor.id(), "own").expect("a good name")]).expect("two");
    let data = package(&world, |m| (m.open_to_file, m.readers) = (false, Some(readers)));
    given(&world, &data, &echo(foreign)).expect("named");
    given(&world, &data, &program(&world, "own")).expect("named");
    assert_eq!(given(&world, &data, &program(&world, "another")).expect_err("not named").code, Code::UseForbidden);
}

#[test]
fn data_that_may_be_opened_to_a_file_may_be_given_to_any_program_and_programs_are_no_data() {
    let world = World::new();
    let data = package(&world, |m| m.open_to_file = true);
    let foreign = echo(ProgramId::new(&world.pki.holder(Role::Vendor).id(), "any").expect("a good name"));
    given(&world, &data, &Program { loader_variables: LoaderVariables::Allow, ..foreign }).expect("any");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&world.package(&world.ship(&std::fs::read("/bin/echo").expect("a program"), |_| {}))).expect("written");
    assert_eq!(given(&world, &file, &program(&world, "own")).expect_err("a program").code, Code::UnsupportedProgram);
}

#[test]
fn what_is_too_large_for_memory_is_refused_with_what_is_needed() {
    let mut world = World::new();
    world.us.config.limits.data_in_memory_bytes = 99_999;
    let refusal = given(&world, &package(&world, |_| {}), &program(&world, "own")).expect_err("too large");
    assert_eq!(refusal.code, Code::DataUnavailable, "{refusal}");
    assert!(refusal.detail.contains("no file system of data was asked for"), "{refusal}");
}

#[test]
fn an_altered_package_gives_nothing_where_all_of_it_is_opened() {
    let world = World::new();
    let mut data = package(&world, |_| {});
    data.seek(SeekFrom::Start(70_000)).expect("within");
    data.write_all(b"altered").expect("written");
    assert_eq!(given(&world, &data, &program(&world, "own")).expect_err("altered").code, Code::PageAltered);
}

#[test]
fn data_in_memory_is_dropped_as_programs_are_and_stays_with_whoever_reads_it() {
    let world = World::new();
    let (data, own) = (package(&world, |_| {}), program(&world, "own"));
    let held = ready(data.try_clone().expect("a duplicate"), &own, &world.us).expect("ready").given(3).expect("given");
    let withdrawn = [Withdrawn { serial: world.us.vault.enrolment().expect("enrolled").certified.serial().to_vec(), at: now() }];
    let validity = Validity { not_before: Time(now().0 - 60), not_after: now().after(3600) };
    let list = world.pki.issuer().revocations(3, &withdrawn, validity).expect("a list");
    world.us.take_revocations(list).expect("this processor was withdrawn");
    assert_eq!(world.us.drop_where("the test looks", |_| true).builds, 0, "nothing is kept");
    let mut read = Vec::new();
    File::from(held.file).read_to_end(&mut read).expect("read");
    assert_eq!(read, sample(100_000));
}
