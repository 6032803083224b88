//! The strict profile: what a verifier of certificates takes and what it refuses, each with its own code (A5, A31).

use chipbound_testkit::pki::idle_sealing_keys;
use chipbound_testkit::{Holder, MemoryKey, Pki, Wanted};
use chipbound_wire::bounded::{List, encode};
use chipbound_wire::certificate::{Role, SEALING_KEYS_OID, SealingKeys, Trust};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Refusal, Time};
use rcgen::{BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

const NOW: Time = Time(1_790_000_000);

fn refusal(trust: &Trust, holder: &Holder, role: Role, at: Time) -> Refusal {
    trust.verify(&holder.chain, role, at).expect_err("this certificate must be refused")
}

fn code(pki: &Pki, holder: &Holder, role: Role) -> Code {
    refusal(&pki.trust(), holder, role, NOW).code
}

#[test]
fn every_role_is_certified_and_no_certificate_counts_for_another_role() {
    let pki = Pki::new(NOW);
    for role in Role::ALL.iter().copied() {
        let holder = pki.holder(role);
        let certified = pki.trust().verify(&holder.chain, role, NOW).expect("its own role");
        assert_eq!((certified.role(), certified.key_id(), certified.subject()), (role, holder.id(), role.as_str()));
        assert_eq!((certified.serial(), certified.spki()), (&holder.serial[..], holder.key.spki()));
        assert_eq!(certified.sealing().is_some(), role == Role::Processor);
        for other in Role::ALL.iter().copied().filter(|r| *r != role) {
            assert_eq!(code(&pki, &holder, other), Code::CertificateRole, "{role} as {other}");
        }
    }
}

#[test]
fn a_certificate_counts_from_its_first_to_its_last_second() {
    let pki = Pki::new(NOW);
    let window = Wanted { not_before: Some(Time(NOW.0 - 10)), not_after: Some(NOW.after(10)), ..Wanted::role(Role::Vendor) };
    let holder = pki.holder_of(&window);
    let trust = pki.trust();
    for at in [Time(NOW.0 - 10), NOW, NOW.after(10)] {
        let certified = trust.verify(&holder.chain, Role::Vendor, at).expect("within its window");
        assert_eq!(certified.validity(), (Time(NOW.0 - 10), NOW.after(10)));
    }
    assert_eq!(refusal(&trust, &holder, Role::Vendor, Time(NOW.0 - 11)).code, Code::CertificateNotYetValid);
    assert_eq!(refusal(&trust, &holder, Role::Vendor, NOW.after(11)).code, Code::CertificateExpired);
}

#[test]
fn a_revoked_certificate_is_refused_and_its_neighbour_is_not() {
    let pki = Pki::new(NOW);
    let (revoked, neighbour) = (pki.holder(Role::Processor), pki.holder(Role::Processor));
    let trust = pki.trust().with_revocations(&pki.revocations(&[&revoked])).expect("a list");
    assert_eq!(refusal(&trust, &revoked, Role::Processor, NOW).code, Code::CertificateRevoked);
    trust.verify(&neighbour.chain, Role::Processor, NOW).expect("not revoked");
    let empty = pki.trust().with_revocations(&pki.revocations(&[])).expect("an empty list");
    empty.verify(&revoked.chain, Role::Processor, NOW).expect("nobody is revoked");
}

#[test]
fn a_list_past_its_next_update_refuses_everybody() {
    let pki = Pki::new(NOW);
    let holder = pki.holder(Role::Vendor);
    let trust = pki.trust().with_revocations(&pki.revocations_until(&[], NOW.after(60))).expect("a list");
    trust.verify(&holder.chain, Role::Vendor, NOW.after(59)).expect("the list is fresh");
    assert_eq!(refusal(&trust, &holder, Role::Vendor, NOW.after(61)).code, Code::RevocationListStale);
}

#[test]
fn a_foreign_authoritys_list_vouches_for_nobody() {
    let (pki, foreign) = (Pki::new(NOW), Pki::new(NOW));
    let holder = pki.holder(Role::Vendor);
    let trust = pki.trust().with_revocations(&foreign.revocations(&[])).expect("a list");
    let code = refusal(&trust, &holder, Role::Vendor, NOW).code;
    assert!(matches!(code, Code::CertificateForeign | Code::RevocationListStale), "{code}");
    let mut altered = pki.revocations(&[&holder]);
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let code = pki.trust().with_revocations(&altered).map_or_else(|r| r.code, |t| refusal(&t, &holder, Role::Vendor, NOW).code);
    assert!(matches!(code, Code::CertificateForeign | Code::Malformed), "{code}");
}

#[test]
fn a_foreign_chain_is_refused_even_under_the_same_names() {
    let (pki, foreign) = (Pki::new(NOW), Pki::new(NOW));
    assert_eq!(code(&pki, &foreign.holder(Role::Processor), Role::Processor), Code::CertificateForeign);
    let mut mixed = pki.holder(Role::Processor);
    mixed.chain[1] = foreign.issuing().to_vec();
    assert_eq!(code(&pki, &mixed, Role::Processor), Code::CertificateForeign);
    let mut bare = pki.holder(Role::Processor);
    bare.chain.truncate(1);
    assert_eq!(code(&pki, &bare, Role::Processor), Code::CertificateForeign);
}

#[test]
fn exactly_one_extended_key_usage_is_allowed() {
    let pki = Pki::new(NOW);
    let wanted = Wanted::role(Role::ServerStatement);
    let second = |usage: ExtendedKeyUsagePurpose| pki.forge(&wanted, |p| p.extended_key_usages.push(usage));
    for usage in [
        ExtendedKeyUsagePurpose::Other(Role::ServerReceipt.oid().to_vec()),
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::Any,
        ExtendedKeyUsagePurpose::OcspSigning,
    ] {
        assert_eq!(code(&pki, &second(usage.clone()), Role::ServerStatement), Code::CertificateProfile, "{usage:?}");
    }
    let none = pki.forge(&wanted, |p| p.extended_key_usages.clear());
    assert_eq!(code(&pki, &none, Role::ServerStatement), Code::CertificateRole);
    let any = pki.forge(&wanted, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]);
    assert_eq!(code(&pki, &any, Role::ServerStatement), Code::CertificateRole);
}

#[test]
fn an_empty_extended_key_usage_is_refused() {
    let pki = Pki::new(NOW);
    let empty = pki.forge(&Wanted::role(Role::Vendor), |p| {
        p.extended_key_usages.clear();
        p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 37], vec![0x30, 0]));
    });
    assert_eq!(code(&pki, &empty, Role::Vendor), Code::CertificateRole);
}

#[test]
fn an_authoritys_certificate_is_no_leaf() {
    let pki = Pki::new(NOW);
    let authority = pki.forge(&Wanted::role(Role::Vendor), |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(code(&pki, &authority, Role::Vendor), Code::CertificateProfile);
    let chain = [pki.issuing().to_vec(), pki.root().to_vec()];
    assert_eq!(pki.trust().verify(&chain, Role::Vendor, NOW).expect_err("the issuing certificate").code, Code::CertificateProfile);
}

#[test]
fn a_leaf_issues_nothing() {
    let pki = Pki::new(NOW);
    let (vendor, wanted) = (pki.holder(Role::Vendor), pki.holder(Role::Processor));
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "vendor");
    let pair = rcgen::KeyPair::generate().expect("a key");
    let by_leaf = params.signed_by(&pair, &rcgen::Issuer::from_params(&params, &pair)).expect("a certificate");
    let chain = [by_leaf.der().to_vec(), vendor.chain[0].clone(), pki.issuing().to_vec()];
    assert!(pki.trust().verify(&chain, Role::Processor, NOW).is_err());
    let chain = [wanted.chain[0].clone(), vendor.chain[0].clone()];
    assert_eq!(pki.trust().verify(&chain, Role::Processor, NOW).expect_err("no path").code, Code::CertificateForeign);
}

#[test]
fn a_leaf_that_may_do_more_than_sign_is_refused() {
    let pki = Pki::new(NOW);
    for usages in [vec![], vec![KeyUsagePurpose::KeyAgreement], vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]] {
        let holder = pki.forge(&Wanted::role(Role::Vendor), |p| p.key_usages = usages.clone());
        assert_eq!(code(&pki, &holder, Role::Vendor), Code::CertificateProfile, "{usages:?}");
    }
}

#[test]
fn a_key_on_another_curve_is_refused() {
    let pki = Pki::new(NOW);
    // The template's key is replaced by one of P-384, signed by rcgen itself under a root of the test.
    let root_key = rcgen::KeyPair::generate().expect("a key");
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_der = root.self_signed(&root_key).expect("a root");
    let large = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let mut leaf = None;
    let _holder = pki.forge(&Wanted::role(Role::Vendor), |p| leaf = Some(p.clone()));
    let leaf = leaf.expect("the template").signed_by(&large, &rcgen::Issuer::from_params(&root, &root_key)).expect("a leaf");
    let trust = Trust::new(root_der.der()).expect("a root");
    let refused = trust.verify(&[leaf.der().to_vec()], Role::Vendor, NOW).expect_err("P-384");
    assert_eq!(refused.code, Code::CertificateProfile, "{refused}");
}

#[test]
fn bytes_after_a_certificate_are_refused() {
    let pki = Pki::new(NOW);
    let mut holder = pki.holder(Role::Vendor);
    holder.chain[0].push(0);
    assert_eq!(code(&pki, &holder, Role::Vendor), Code::CertificateProfile);
    assert_eq!(
        pki.trust().verify(&[b"not a certificate".to_vec()], Role::Vendor, NOW).expect_err("garbage").code,
        Code::CertificateProfile
    );
    assert_eq!(pki.trust().verify::<Vec<u8>>(&[], Role::Vendor, NOW).expect_err("nothing").code, Code::CertificateProfile);
    let long = vec![pki.root().to_vec(); 4];
    assert_eq!(pki.trust().verify(&long, Role::Vendor, NOW).expect_err("four certificates").code, Code::TooLarge);
    assert_eq!(Trust::new(b"no root").expect_err("garbage").code, Code::CertificateProfile);
    assert_eq!(pki.trust().with_revocations(b"no list").expect_err("garbage").code, Code::Malformed);
}

#[test]
fn sealing_keys_belong_to_processors_once_and_readable() {
    let pki = Pki::new(NOW);
    let extension = |keys: &SealingKeys| CustomExtension::from_oid_content(&SEALING_KEYS_OID, encode(keys));
    let keys = idle_sealing_keys();

    let without = pki.forge(&Wanted::role(Role::Processor), |p| p.custom_extensions.clear());
    assert_eq!(code(&pki, &without, Role::Processor), Code::CertificateProfile);
    let vendor = pki.forge(&Wanted::role(Role::Vendor), |p| p.custom_extensions = vec![extension(&keys)]);
    assert_eq!(code(&pki, &vendor, Role::Vendor), Code::CertificateProfile);
    let twice = pki.forge(&Wanted::role(Role::Processor), |p| p.custom_extensions.push(extension(&keys)));
    assert_eq!(code(&pki, &twice, Role::Processor), Code::CertificateProfile);

    let same_kem = SealingKeys { keys: List::new(vec![keys.keys[0].clone(), idle_sealing_keys().keys[0].clone()]).expect("two"), ..keys };
    let doubled = pki.holder_of(&Wanted { sealing: Some(same_kem), ..Wanted::role(Role::Processor) });
    assert_eq!(code(&pki, &doubled, Role::Processor), Code::CertificateProfile);
    let garbage = pki.forge(&Wanted::role(Role::Processor), |p| {
        p.custom_extensions = vec![CustomExtension::from_oid_content(&SEALING_KEYS_OID, vec![0xff; 8])];
    });
    assert!(matches!(code(&pki, &garbage, Role::Processor), Code::Malformed | Code::CertificateProfile));
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let pki = Pki::new(NOW);
    let holder = pki.forge(&Wanted::role(Role::Vendor), |p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32473, 9], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    assert_eq!(code(&pki, &holder, Role::Vendor), Code::CertificateProfile);
}

#[test]
fn an_identity_is_its_key_and_not_its_name() {
    let pki = Pki::new(NOW);
    let honest = pki.holder(Role::Processor);
    let impostor = pki.holder_of(&Wanted { key: Some(MemoryKey::generate()), ..Wanted::role(Role::Processor) });
    let id = |h: &Holder| pki.trust().verify(&h.chain, Role::Processor, NOW).expect("certified").key_id();
    assert_ne!(id(&honest), id(&impostor), "both are called processor");
}
