//! Real documents against the contract in `docs/chipbound.cddl`.

use chipbound_testkit::documents as sample;
use chipbound_testkit::pki::{Pki, idle_sealing_keys};
use chipbound_wire::bounded::{Bytes, List, Text, encode};
use chipbound_wire::certificate::{Role, SealingKey};
use chipbound_wire::documents::*;
use chipbound_wire::enrolment::{Authorisation, Begin, Challenges, Finish, Issued};
use chipbound_wire::messages::{Abort, Hello, Start};
use chipbound_wire::signed::{Document, read_claims};
use chipbound_wire::suite::{Aead, Class, Format, Kem, KeyMode, Suite};
use chipbound_wire::{Code, Digest, KeyId, OrderId, Refusal, Time};

const NOW: Time = Time(1_790_000_000);

fn check(rule: &str, bytes: &[u8]) -> Result<(), String> {
    let contract = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/chipbound.cddl");
    let contract = std::fs::read_to_string(contract).expect("the contract");
    cddl::validate_cbor_from_slice(&format!("checked = {rule}\n{contract}"), bytes, None).map_err(|e| e.to_string())
}

fn holds(rule: &str, bytes: &[u8]) {
    check(rule, bytes).unwrap_or_else(|why| panic!("{rule}: {why}"));
}

fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

fn wrap() -> Wrap {
    Wrap { kem: Kem::XWing, enc: Bytes::new(vec![1; 1120]).expect("short"), ciphertext: Bytes::new(vec![2; 48]).expect("short") }
}

fn facts() -> ExchangeFacts {
    let session_key = SealingKey { kem: Kem::XWing, public: Bytes::new(vec![7; 1216]).expect("short") };
    ExchangeFacts {
        processor_challenge: digest(1),
        server_challenge: digest(2),
        processor: KeyId([3; 32]),
        server: KeyId([4; 32]),
        statement_key: KeyId([5; 32]),
        session_key,
        order: OrderId([6; 16]),
        exporter: digest(8),
    }
}

fn seal() -> Seal {
    Seal {
        terms: digest(1),
        wrap: digest(2),
        session_wrap: digest(3),
        exchange: digest(4),
        plain_digest: digest(5),
        body_root: digest(6),
        body_size: 1 << 40,
        table_root: digest(7),
        table_size: 12,
    }
}

fn offer() -> Offer {
    let suites = [Kem::XWing, Kem::DhkemP256].map(|kem| Suite { kem, aead: Aead::ChaCha20Poly1305 });
    Offer {
        exchange: digest(1),
        suites: List::new(suites.to_vec()).expect("few"),
        formats: List::new(Format::ALL.to_vec()).expect("few"),
        key_modes: List::new(KeyMode::ALL.to_vec()).expect("few"),
        max_plain_size: u64::MAX,
        kept: None,
    }
}

#[test]
fn every_signed_document_follows_the_contract() {
    fn signed<D: Document>(pki: &Pki, rule: &str, document: &D) -> Vec<u8> {
        let bytes = pki.holder(D::ROLE).sign(document);
        holds("signed-document", &bytes);
        holds(rule, &encode(document));
        let _: D = read_claims(&bytes).expect("its own kind");
        bytes
    }
    let pki = Pki::new(NOW);
    let vendor = pki.holder(Role::Vendor);
    let manifest = sample::manifest(&vendor.id(), b"the program");
    let signed_manifest = signed(&pki, "manifest", &manifest);
    let confirmation = sample::confirmation(&manifest, &signed_manifest, KeyId([9; 32]), NOW);
    signed(&pki, "confirmation", &confirmation);
    signed(&pki, "server-exchange", &ServerExchange { facts: facts() });
    signed(&pki, "processor-exchange", &ProcessorExchange { facts: facts() });
    signed(&pki, "offer", &offer());
    signed(&pki, "offer", &Offer { kept: Some(Kept { terms: digest(3), bytes: 1 << 20 }), ..offer() });
    let terms = sample::terms(&confirmation, Format::ElfX8664);
    let signed_terms = signed(&pki, "terms", &terms);
    let signed_seal = signed(&pki, "seal", &seal());
    signed(&pki, "acknowledgement", &sample::acknowledgement(terms.order, &signed_terms, &signed_seal, NOW));
    let receipt = sample::receipt(&confirmation, NOW);
    let exported = Bytes::new(signed(&pki, "receipt", &receipt)).expect("short");
    let proof = Some(Bytes::new(b"a proof".to_vec()).expect("short"));
    holds("exported-receipt", &encode(&ExportedReceipt { receipt: exported, proof }));
    signed(&pki, "receipt", &Receipt { sale: None, log: None, ..receipt });
    let key = Bytes::new(vec![1; 32]).expect("short");
    signed(&pki, "log", &LogStatement { origin: Text::new("a/log").expect("short"), key, issued_at: NOW });
    let token = ReleaseToken { order: terms.order, terms: Digest::of(&signed_terms), processor: terms.processor, release: wrap() };
    let token = signed(&pki, "release-token", &token);

    let (order, from, to) = (terms.order, KeyId([1; 32]), KeyId([2; 32]));
    let request = RetirementRequest { order, from, to, program: manifest.program.clone(), until: NOW };
    signed(&pki, "retirement-request", &request);
    signed(&pki, "retirement", &Retirement { order, to, at: NOW });
    signed(&pki, "transfer", &Transfer { order, account: terms.account, from, to, at: NOW });

    let bytes = |b: Vec<u8>| Bytes::new(b).expect("short");
    let documents = PackageDocuments {
        terms: bytes(signed_terms.clone()),
        wrap: wrap(),
        seal: bytes(signed_seal),
        token: bytes(token),
        sealed_manifest: bytes(vec![1; 900]),
    };
    holds("package-documents", &encode(&documents));
    let mut start = Start {
        terms: bytes(signed_terms),
        manifest: bytes(signed_manifest),
        wrap: wrap(),
        session_wrap: wrap(),
        layout: Bytes::new(vec![0x80]).expect("short"),
        plain_digest: digest(1),
        from: None,
    };
    holds("start", &encode(&start));
    start.from = Some(1 << 20);
    holds("start", &encode(&start));
}

#[test]
fn messages_and_enrolment_follow_the_contract() {
    let hello = Hello { order: OrderId([1; 16]), challenge: digest(2), session_key: facts().session_key };
    holds("hello", &encode(&hello));
    holds("abort", &encode(&Abort::of(&Refusal::new(Code::PageAltered, "page 7"))));
    holds("sealing-keys", &encode(&idle_sealing_keys()));

    let pki = Pki::new(NOW);
    let chain = pki.holder(Role::Vendor).wire_chain();
    let request = Bytes::new(vec![1; 200]).expect("short");
    let mut begin = Begin {
        authorisation: Authorisation::Voucher(Bytes::new(vec![1; 16]).expect("short")),
        role: Role::Processor,
        class: Some(Class::Software),
        request,
        sealing_keys: idle_sealing_keys().keys,
    };
    holds("begin", &encode(&begin));
    begin.authorisation = Authorisation::Renewal { chain: chain.clone(), proof: Bytes::new(vec![2; 64]).expect("short") };
    begin.class = None;
    holds("begin", &encode(&begin));
    let session = Bytes::new(vec![3; 16]).expect("short");
    holds("challenges", &encode(&Challenges { session: session.clone(), challenges: List::new(vec![wrap()]).expect("few") }));
    let answers = List::new(vec![Bytes::new(vec![4; 32]).expect("short")]).expect("few");
    holds("finish", &encode(&Finish { session, answers }));
    let root = Bytes::new(pki.root().to_vec()).expect("short");
    holds("issued", &encode(&Issued { chain, root, revocations: Bytes::new(pki.revocations(&[])).expect("short") }));
}

#[test]
fn the_contract_refuses_what_it_does_not_describe() {
    assert!(check("seal", &encode(&offer())).is_err());
    let long_name = Abort { code: Text::cut(&"x".repeat(128)), detail: Text::cut("") };
    holds("abort", &encode(&long_name));
    let mut with_another_key = encode(&long_name);
    with_another_key[0] += 1;
    with_another_key.extend([0x18, 0x63, 0x01]);
    assert!(check("abort", &with_another_key).is_err());
    assert!(check("digest", &encode(&OrderId([1; 16]))).is_err());
}
