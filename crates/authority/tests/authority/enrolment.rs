//! Enrolment and renewal over real HTTPS on the loopback (source \[33\]-\[35\]; A4, A6, A28, A31).

use crate::common::{Applicant, Running};
use chipbound_authority::command::new_voucher;
use chipbound_authority::config::Span;
use chipbound_authority::store::{Certificate, Kind, MOST_LIVING, Right, Target};
use chipbound_host::now;
use chipbound_transport::enrolment::{Application, enroll, renew, revocations};
use chipbound_transport::{Client, ServerTrust};
use chipbound_wire::bounded::{Bytes, List, decode, encode};
use chipbound_wire::certificate::{Role, Trust};
use chipbound_wire::enrolment::{Authorisation, Begin, Challenges, Finish, Issued, Voucher};
use chipbound_wire::signature::Sign;
use chipbound_wire::{Code, Digest, KeyId, Refusal, Time};

fn code<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Code {
    result.expect_err("must be refused").code
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_enrolls_with_its_voucher_and_gets_its_own_certificate() {
    let authority = Running::new().await;
    for kind in [Kind::Processor, Kind::Server, Kind::Vendor] {
        let voucher = authority.voucher(kind).await;
        let mut subjects = Vec::new();
        for role in kind.roles() {
            let applicant = Applicant::new(*role);
            let enrolled = applicant.enroll(&authority, &voucher).await.expect("a good voucher");
            let certified = &enrolled.certified;
            assert_eq!((certified.role(), certified.key_id()), (*role, applicant.key.key_id()));
            assert_eq!(certified.sealing().is_some(), *role == Role::Processor);
            assert_eq!(Digest::of(&enrolled.root), voucher.root);
            subjects.push(certified.subject().to_owned());
        }
        subjects.dedup();
        assert_eq!(subjects.len(), 1, "one voucher, one subject");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voucher_certifies_each_of_its_roles_once() {
    let authority = Running::new().await;
    for kind in [Kind::Processor, Kind::Server] {
        let voucher = authority.voucher(kind).await;
        for role in kind.roles() {
            Applicant::new(*role).enroll(&authority, &voucher).await.expect("the first");
            assert_eq!(code(Applicant::new(*role).enroll(&authority, &voucher).await), Code::VoucherInvalid, "the second {role}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_exactly_one_gets_the_voucher() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Vendor).await;
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = authority.authority.store().clone();
        let right = Right::Voucher(Digest::of(&voucher.secret));
        let certificate = Certificate {
            serial: vec![1, n],
            key_id: KeyId::of_spki(&[n]),
            role: Role::Vendor,
            subject: "vendor".to_owned(),
            sealing: Digest::of(b""),
            der: vec![n],
            not_before: now(),
            not_after: now().after(60),
            revoked_at: None,
        };
        tries.spawn(async move { store.record(&certificate, &right, now()).await.map_err(|e| e.code) });
    }
    let outcomes = tries.join_all().await;
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1, "{outcomes:?}");
    assert!(outcomes.into_iter().filter_map(Result::err).all(|code| code == Code::VoucherInvalid));
    assert_eq!(authority.authority.store().certificates().await.expect("a list").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewing_in_a_loop_ends_before_the_disk_does() {
    let authority = Running::new().await;
    let applicant = Applicant::new(Role::Vendor);
    let enrolled = applicant.enroll(&authority, &authority.voucher(Kind::Vendor).await).await.expect("a good voucher");
    for _ in 1..MOST_LIVING {
        applicant.renew(&authority, &enrolled).await.expect("within the limit");
    }
    assert_eq!(code(applicant.renew(&authority, &enrolled).await), Code::RateLimited);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_the_answer_gets_the_same_certificate_again() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Processor).await;
    let mut applicant = Applicant::new(Role::Processor);
    let first = applicant.enroll(&authority, &voucher).await.expect("a good voucher");
    let again = applicant.enroll(&authority, &voucher).await.expect("the same keys");
    assert_eq!(first.chain, again.chain);
    applicant.sealing.pop();
    assert_eq!(code(applicant.enroll(&authority, &voucher).await), Code::VoucherInvalid, "other sealing keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_an_expired_and_another_roles_voucher_are_refused_alike() {
    let authority = Running::new().await;
    let good = authority.voucher(Kind::Processor).await;
    let unknown = Voucher { secret: [7; 16], root: good.root };
    let made = new_voucher(authority.authority.config(), Kind::Vendor, None, Span(1), Time(now().0 - 10)).await;
    let expired = made.expect("a voucher").0;
    let vendor = Applicant::new(Role::Vendor);
    let mut details = Vec::new();
    for voucher in [&unknown, &expired, &good] {
        let refusal = vendor.enroll(&authority, voucher).await.expect_err("no right");
        assert_eq!(refusal.code, Code::VoucherInvalid);
        details.push(refusal.detail);
    }
    details.dedup();
    assert_eq!(details.len(), 1, "nobody learns which secret was once good");
    Applicant::new(Role::Processor).enroll(&authority, &good).await.expect("the good one is untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_answer_to_a_challenge_is_refused_and_the_voucher_stays() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Processor).await;
    let applicant = Applicant::new(Role::Processor);
    let wrong = enroll(&authority.url, &voucher, &applicant.application(), |_, _| Ok([0; 32]), now()).await;
    assert_eq!(code(wrong), Code::PossessionUnproven);
    applicant.enroll(&authority, &voucher).await.expect("the voucher is still good");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_sealing_key_cannot_be_certified() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Processor).await;
    let (thief, victim) = (Applicant::new(Role::Processor), Applicant::new(Role::Processor));
    let application = Application { sealing_keys: victim.application().sealing_keys, ..thief.application() };
    let answer = enroll(&authority.url, &voucher, &application, |w, s| thief.answer(w, s), now()).await;
    assert!(answer.is_err());
    assert!(authority.authority.store().certificates().await.expect("a list").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_its_key_did_not_sign_is_refused() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Vendor).await;
    let (thief, victim) = (Applicant::new(Role::Vendor), Applicant::new(Role::Vendor));
    let mut request = thief.application().request;
    let (own, other) = (thief.key.spki(), victim.key.spki());
    let at = request.windows(own.len()).position(|w| w == own).expect("the key is in the request");
    request[at..at + own.len()].copy_from_slice(other);
    let answer = enroll(&authority.url, &voucher, &Application::plain(Role::Vendor, request), |w, s| thief.answer(w, s), now()).await;
    assert_eq!(code(answer), Code::PossessionUnproven);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certified_key_enrolls_under_no_second_name_or_role() {
    let authority = Running::new().await;
    let applicant = Applicant::new(Role::Vendor);
    applicant.enroll(&authority, &authority.voucher(Kind::Vendor).await).await.expect("a good voucher");
    assert_eq!(code(applicant.enroll(&authority, &authority.voucher(Kind::Vendor).await).await), Code::Conflict);
    let elsewhere = Applicant { role: Role::ServerReceipt, ..applicant };
    assert_eq!(code(elsewhere.enroll(&authority, &authority.voucher(Kind::Server).await).await), Code::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_name_gets_no_second_voucher() {
    let authority = Running::new().await;
    let config = authority.authority.config();
    let named = || new_voucher(config, Kind::Vendor, Some("Acme".to_owned()), Span(3600), now());
    let voucher = named().await.expect("a free name").0;
    assert_eq!(code(named().await), Code::Conflict, "an open voucher has the name");
    let enrolled = Applicant::new(Role::Vendor).enroll(&authority, &voucher).await.expect("a good voucher");
    assert_eq!(enrolled.certified.subject(), "Acme");
    assert_eq!(code(named().await), Code::Conflict, "a certificate has the name");
    let target = Target::Key(enrolled.certified.key_id());
    authority.authority.store().revoke(&target, now()).await.expect("revoked");
    named().await.expect("the name is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_without_class_or_keys_and_others_with_them_are_refused() {
    let authority = Running::new().await;
    let processor = Applicant::new(Role::Processor);
    let good = processor.application();
    let mut doubled = good.sealing_keys.clone();
    doubled.push(good.sealing_keys[0].clone());
    let bad = [
        Application { class: None, ..good.clone() },
        Application { sealing_keys: Vec::new(), ..good.clone() },
        Application { sealing_keys: doubled, ..good.clone() },
    ];
    let voucher = authority.voucher(Kind::Processor).await;
    for application in bad {
        let answer = enroll(&authority.url, &voucher, &application, |w, s| processor.answer(w, s), now()).await;
        assert_eq!(code(answer), Code::Malformed);
    }
    let vendor = Application { role: Role::Vendor, ..good };
    let voucher = authority.voucher(Kind::Vendor).await;
    assert_eq!(code(enroll(&authority.url, &voucher, &vendor, |w, s| processor.answer(w, s), now()).await), Code::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_with_the_same_key_and_with_a_new_one() {
    let authority = Running::new().await;
    let old = Applicant::new(Role::Processor);
    let first = old.enroll(&authority, &authority.voucher(Kind::Processor).await).await.expect("a good voucher");
    let second = old.renew(&authority, &first).await.expect("the same keys");
    assert_ne!(first.certified.serial(), second.certified.serial());
    assert_eq!((first.certified.key_id(), first.certified.subject()), (second.certified.key_id(), second.certified.subject()));

    let new = Applicant::new(Role::Processor);
    let answer = |w: &_, s: &_| new.answer(w, s);
    let third = renew(&authority.url, &first.root, &second.chain, &*old.key, &new.application(), answer, now()).await.expect("a new key");
    assert_eq!((third.certified.key_id(), third.certified.subject()), (new.key.key_id(), first.certified.subject()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_changes_neither_role_nor_owner() {
    let authority = Running::new().await;
    let (vendor, other) = (Applicant::new(Role::Vendor), Applicant::new(Role::Vendor));
    let enrolled = vendor.enroll(&authority, &authority.voucher(Kind::Vendor).await).await.expect("a good voucher");
    let others = other.enroll(&authority, &authority.voucher(Kind::Vendor).await).await.expect("a good voucher");

    let receipt = Applicant { key: vendor.key.clone(), sealing: vec![], role: Role::ServerReceipt };
    assert_eq!(code(receipt.renew(&authority, &enrolled).await), Code::CertificateRole);
    assert_eq!(code(other.renew(&authority, &enrolled).await), Code::PossessionUnproven, "signed by a key that is not certified");
    let answer = |w: &_, s: &_| other.answer(w, s);
    let taken = renew(&authority.url, &others.root, &enrolled.chain, &*vendor.key, &other.application(), answer, now()).await;
    assert_eq!(code(taken), Code::Conflict, "the key belongs to another subject");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_authoritys_certificate_is_not_renewed() {
    let (authority, foreign) = (Running::new().await, Running::new().await);
    let applicant = Applicant::new(Role::Vendor);
    let mut enrolled = applicant.enroll(&foreign, &foreign.voucher(Kind::Vendor).await).await.expect("a good voucher");
    enrolled.root = authority.authority.root().to_vec();
    assert_eq!(code(applicant.renew(&authority, &enrolled).await), Code::CertificateForeign);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_not_renewed() {
    let authority = Running::with(|c| c.replace("vendor = \"1800d\"", "vendor = \"1s\"")).await;
    let applicant = Applicant::new(Role::Vendor);
    let enrolled = applicant.enroll(&authority, &authority.voucher(Kind::Vendor).await).await.expect("a good voucher");
    while now() <= enrolled.certified.validity().1 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(code(applicant.renew(&authority, &enrolled).await), Code::CertificateExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_served_at_once_and_ends_renewal() {
    let authority = Running::new().await;
    let (applicant, neighbour) = (Applicant::new(Role::Processor), Applicant::new(Role::Processor));
    let enrolled = applicant.enroll(&authority, &authority.voucher(Kind::Processor).await).await.expect("a good voucher");
    let other = neighbour.enroll(&authority, &authority.voucher(Kind::Processor).await).await.expect("a good voucher");

    let trust = |list: Vec<u8>| Trust::new(&enrolled.root).and_then(|t| t.with_revocations(&list)).expect("root and list");
    let list = revocations(&authority.url, &enrolled.root).await.expect("a list");
    assert_eq!(revocations(&authority.url, &enrolled.root).await.expect("a list"), list, "signed once, for whoever asks");
    let before = trust(list);
    before.verify(&enrolled.chain, Role::Processor, now()).expect("not revoked yet");

    let target = Target::Serial(enrolled.certified.serial().to_vec());
    let revoked = authority.authority.store().revoke(&target, now()).await.expect("revoked");
    assert_eq!(revoked.len(), 1);
    let after = trust(revocations(&authority.url, &enrolled.root).await.expect("a list"));
    assert_eq!(code(after.verify(&enrolled.chain, Role::Processor, now())), Code::CertificateRevoked);
    after.verify(&other.chain, Role::Processor, now()).expect("the neighbour is not revoked");
    assert_eq!(code(applicant.renew(&authority, &enrolled).await), Code::CertificateRevoked);

    let voucher = authority.voucher(Kind::Processor).await;
    assert_eq!(code(applicant.enroll(&authority, &voucher).await), Code::Conflict, "a revoked key stays out");
    let again = authority.authority.store().revoke(&target, now()).await.expect("known");
    assert!(again.is_empty(), "withdrawn before");
    let nobody = Target::Serial(vec![1, 2, 3]);
    assert_eq!(code(authority.authority.store().revoke(&nobody, now()).await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_name_ends_its_certificates_and_its_voucher() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Server).await;
    let first = Applicant::new(Role::ServerSecondPath).enroll(&authority, &voucher).await.expect("a good voucher");
    let name = Target::Name(first.certified.subject().to_owned());
    assert_eq!(authority.authority.store().revoke(&name, now()).await.expect("known").len(), 1);
    assert_eq!(code(Applicant::new(Role::ServerReceipt).enroll(&authority, &voucher).await), Code::VoucherInvalid);
    let trust = authority.authority.trust(now()).await.expect("a list");
    assert_eq!(code(trust.verify(&first.chain, Role::ServerSecondPath, now())), Code::CertificateRevoked);
    let nobody = authority.authority.store().revoke(&Target::Name("nobody".to_owned()), now()).await;
    assert_eq!(code(nobody), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_vouchers_certificates_and_revocations() {
    let authority = Running::new().await;
    let (used, open) = (authority.voucher(Kind::Vendor).await, authority.voucher(Kind::Vendor).await);
    let applicant = Applicant::new(Role::Vendor);
    let enrolled = applicant.enroll(&authority, &used).await.expect("a good voucher");
    let revoked = Applicant::new(Role::ServerReceipt);
    let lost = revoked.enroll(&authority, &authority.voucher(Kind::Server).await).await.expect("a good voucher");
    authority.authority.store().revoke(&Target::Key(lost.certified.key_id()), now()).await.expect("revoked");

    let authority = authority.restart().await;
    assert_eq!(code(Applicant::new(Role::Vendor).enroll(&authority, &used).await), Code::VoucherInvalid);
    applicant.renew(&authority, &enrolled).await.expect("still certified");
    assert_eq!(code(revoked.renew(&authority, &lost).await), Code::CertificateRevoked);
    Applicant::new(Role::Vendor).enroll(&authority, &open).await.expect("still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_the_two_requests_leaves_the_voucher_usable() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Vendor).await;
    let applicant = Applicant::new(Role::Vendor);
    let (client, session) = begin(&authority, &voucher, &applicant).await;
    drop(client);

    let authority = authority.restart().await;
    let client = Client::new(&authority.url, ServerTrust::Pinned(voucher.root)).expect("a client");
    assert_eq!(code(client.post_cbor("/v1/enrolments/finish", encode(&finish(session))).await), Code::TimedOut);
    applicant.enroll(&authority, &voucher).await.expect("nothing was used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_finished_once() {
    let authority = Running::new().await;
    let voucher = authority.voucher(Kind::Vendor).await;
    let (client, session) = begin(&authority, &voucher, &Applicant::new(Role::Vendor)).await;
    let answer = client.post_cbor("/v1/enrolments/finish", encode(&finish(session.clone()))).await.expect("issued");
    decode::<Issued>(&answer).expect("what was issued");
    assert_eq!(code(client.post_cbor("/v1/enrolments/finish", encode(&finish(session))).await), Code::TimedOut);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_known_by_the_vouchers_digest_alone() {
    let (authority, foreign) = (Running::new().await, Running::new().await);
    let mut voucher = authority.voucher(Kind::Vendor).await;
    voucher.root = Digest::of(foreign.authority.root());
    assert_eq!(code(Applicant::new(Role::Vendor).enroll(&authority, &voucher).await), Code::ServerUntrusted);
    let nowhere = revocations("https://127.0.0.1:1", foreign.authority.root()).await;
    assert_eq!(code(nowhere), Code::AuthorityUnreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_other_media_types_are_refused() {
    let authority = Running::new().await;
    let root = Digest::of(authority.authority.root());
    let client = Client::new(&authority.url, ServerTrust::Pinned(root)).expect("a client");
    for path in ["/v1/enrolments", "/v1/enrolments/finish"] {
        assert_eq!(code(client.post_cbor(path, b"garbage".to_vec()).await), Code::Malformed);
        assert_eq!(code(client.post_cbor(path, Vec::new()).await), Code::Malformed);
        assert_eq!(code(client.post_cbor(path, vec![0; 128 * 1024]).await), Code::TooLarge);
        assert_eq!(code(client.post_json::<_, ()>(path, None, &[], &()).await), Code::Malformed);
    }
    assert_eq!(client.get_bytes("/v1/root", None, 8192).await.expect("the root"), authority.authority.root());
}

async fn begin(authority: &Running, voucher: &Voucher, applicant: &Applicant) -> (Client, Bytes<16>) {
    let client = Client::new(&authority.url, ServerTrust::Pinned(voucher.root)).expect("a client");
    let begin = Begin {
        authorisation: Authorisation::Voucher(Bytes::new(voucher.secret.to_vec()).expect("16 bytes")),
        role: applicant.role,
        class: None,
        request: Bytes::new(applicant.application().request).expect("a request"),
        sealing_keys: List::new(Vec::new()).expect("none"),
    };
    let answer = client.post_cbor("/v1/enrolments", encode(&begin)).await.expect("a good voucher");
    let challenges: Challenges = decode(&answer).expect("challenges");
    (client, challenges.session)
}

fn finish(session: Bytes<16>) -> Finish {
    Finish { session, answers: List::default() }
}
