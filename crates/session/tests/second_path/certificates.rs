//! Certificates that must not pass, on either side: both ends report the same code.

use crate::common::{NOW, Standing, World, assert_both, assert_same, deliver, honest, of_server};
use chipbound_session::tls::{Identity, SharedTrust, processor_config};
use chipbound_testkit::{Holder, MemoryKey, Pki, Wanted};
use chipbound_wire::certificate::Role;
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Result, Time};
use std::sync::Arc;

/// A world whose processor is this one.
fn with_processor(make: impl FnOnce(&World) -> Holder) -> World {
    let mut world = World::new();
    world.processor = make(&world);
    world.confirmation.processor = world.processor.id();
    world.terms.processor = world.processor.id();
    world
}

fn with_server(make: impl FnOnce(&World) -> Holder) -> World {
    let mut world = World::new();
    world.server = make(&world);
    world
}

fn refused(world: &World, code: Code) {
    assert_both(deliver(world, &honest, &honest), code);
}

#[test]
fn a_certificate_that_ran_out_is_refused_and_both_ends_say_so() {
    let old = |role| Wanted { not_before: Some(Time(NOW.0 - 100)), not_after: Some(Time(NOW.0 - 1)), ..of_server(role) };
    refused(&with_processor(|w| w.pki.holder_of(&old(Role::Processor))), Code::CertificateExpired);
    refused(&with_server(|w| w.pki.holder_of(&old(Role::ServerSecondPath))), Code::CertificateExpired);
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_refused_and_both_ends_say_so() {
    let early = |role| Wanted { not_before: Some(NOW.after(100)), ..of_server(role) };
    refused(&with_processor(|w| w.pki.holder_of(&early(Role::Processor))), Code::CertificateNotYetValid);
    refused(&with_server(|w| w.pki.holder_of(&early(Role::ServerSecondPath))), Code::CertificateNotYetValid);
}

#[test]
fn a_revoked_certificate_is_refused_and_both_ends_say_so() {
    let world = World::new();
    world.server_trust.replace(world.pki.trust().with_revocations(&world.pki.revocations(&[&world.processor])).unwrap());
    refused(&world, Code::CertificateRevoked);
    let world = World::new();
    world.processor_trust.replace(world.pki.trust().with_revocations(&world.pki.revocations(&[&world.server])).unwrap());
    refused(&world, Code::CertificateRevoked);
}

#[test]
fn a_fresh_revocation_list_takes_effect_while_the_server_runs() {
    let world = World::new();
    let (processor, server) = deliver(&world, &honest, &honest);
    processor.expect("before the revocation");
    server.expect("before the revocation");
    world.server_trust.replace(world.pki.trust().with_revocations(&world.pki.revocations(&[&world.processor])).unwrap());
    refused(&world, Code::CertificateRevoked);
}

#[test]
fn a_revocation_list_past_its_next_update_refuses_and_both_ends_say_so() {
    let stale = |w: &World| w.pki.trust().with_revocations(&w.pki.revocations_until(&[], Time(NOW.0 - 1))).unwrap();
    let world = World::new();
    world.server_trust.replace(stale(&world));
    refused(&world, Code::RevocationListStale);
    let world = World::new();
    world.processor_trust.replace(stale(&world));
    refused(&world, Code::RevocationListStale);
}

#[test]
fn a_revoked_statement_or_vendor_key_signs_nothing_any_more() {
    for withdrawn in [|w: &World| w.statement.clone(), |w: &World| w.vendor.clone()] {
        let world = World::new();
        let list = world.pki.revocations(&[&withdrawn(&world)]);
        world.processor_trust.replace(world.pki.trust().with_revocations(&list).unwrap());
        refused(&world, Code::CertificateRevoked);
    }
}

#[test]
fn a_certificate_of_a_foreign_authority_is_refused_and_both_ends_say_so() {
    refused(&with_processor(|_| Pki::new(NOW).holder(Role::Processor)), Code::CertificateForeign);
    refused(&with_server(|_| Pki::new(NOW).holder_of(&of_server(Role::ServerSecondPath))), Code::CertificateForeign);
}

#[test]
fn a_certificate_of_another_role_is_refused_and_both_ends_say_so() {
    refused(&with_processor(|w| w.pki.holder(Role::Vendor)), Code::CertificateRole);
    refused(&with_processor(|w| w.pki.holder_of(&of_server(Role::ServerSecondPath))), Code::CertificateRole);
    refused(&with_server(|w| w.pki.holder_of(&of_server(Role::ServerStatement))), Code::CertificateRole);
    refused(&with_server(|w| w.pki.holder(Role::Processor)), Code::CertificateRole);
}

#[test]
fn a_certificate_outside_the_profile_is_refused_and_both_ends_say_so() {
    use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
    let two_uses = |w: &World, role| w.pki.forge(&of_server(role), |p| p.extended_key_usages.push(ServerAuth));
    refused(&with_processor(|w| two_uses(w, Role::Processor)), Code::CertificateProfile);
    refused(&with_server(|w| two_uses(w, Role::ServerSecondPath)), Code::CertificateProfile);
}

/// Shows one key and signs with another.
struct Impostor {
    shown: MemoryKey,
    held: MemoryKey,
}

impl Sign for Impostor {
    fn spki(&self) -> &[u8] {
        self.shown.spki()
    }
    fn sign(&self, message: &[u8]) -> Result<[u8; 64]> {
        self.held.sign(message)
    }
}

#[test]
fn a_certificate_without_its_private_key_is_refused_on_both_sides() {
    let world = World::new();
    let impostor = |holder: &Holder| Identity {
        key: Arc::new(Impostor { shown: holder.key.clone(), held: MemoryKey::generate() }),
        chain: holder.chain.clone(),
    };
    for (processor, server) in [
        (impostor(&world.processor), crate::common::identity(&world.server)),
        (crate::common::identity(&world.processor), impostor(&world.server)),
    ] {
        let (at_processor, at_server) = crate::common::handshake(&world, &processor, &server);
        let refused = (at_processor.expect_err("the processor's end"), at_server.expect_err("the server's end"));
        assert_same(&refused.0, &refused.1, Code::SignatureInvalid);
    }
}

#[test]
fn a_key_without_its_certificate_makes_no_configuration() {
    let world = World::new();
    let mixed = Identity { key: Arc::new(MemoryKey::generate()), chain: world.processor.chain.clone() };
    let trust = SharedTrust::new(world.pki.trust());
    let refusal = processor_config(&mixed, trust, Arc::new(Standing(NOW))).expect_err("another key");
    assert_eq!(refusal.code, Code::IdentityMismatch);
}
