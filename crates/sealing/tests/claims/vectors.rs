//! Vectors: published ones of Decap(), and those of our own formats, computed by another implementation of their primitives.

use chipbound_sealing::{ContentKey, Decapsulate, Layout, PageKeys, Sealer, SealingKeyPair, at_rest, plain_digest};
use chipbound_wire::suite::{Aead, Format, Kem};
use chipbound_wire::{Code, Digest, Hex};

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal")).collect()
}

/// The key pair with this private key (skRm), stored as one byte of mechanism and 32 secret bytes.
fn stored(kem: Kem, private: &str) -> SealingKeyPair {
    SealingKeyPair::deserialize(&[&[kem.number()], bytes(private).as_slice()].concat()).expect("a stored key")
}

#[test]
fn decapsulation_gives_the_shared_secrets_of_rfc_9180() {
    // RFC 9180, A.3.1 and A.3.2: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, base and PSK: skRm, enc, shared_secret.
    let vectors = [
        (
            "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2",
            "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4",
            "c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8",
        ),
        (
            "438d8bcef33b89e0e9ae5eb0957c353c25a94584b0dd59c991372a75b43cb661",
            "04305d35563527bce037773d79a13deabed0e8e7cde61eecee403496959e89e4d0ca701726696d1485137ccb5341b3c1c7aaee90a4a02449725e744b1193b53b5f",
            "2e783ad86a1beae03b5749e0f3f5e9bb19cb7eb382f2fb2dd64c99f15ae0661b",
        ),
    ];
    for (private, enc, secret) in vectors {
        let opened = stored(Kem::DhkemP256, private).decapsulate(Kem::DhkemP256, &bytes(enc)).expect("decapsulated");
        assert_eq!(Hex(&opened).to_string(), secret);
    }
}

#[test]
fn decapsulation_gives_the_shared_secret_of_the_x_wing_vector() {
    // draft-ietf-hpke-pq, the vectors of filippo.io/hpke: X-Wing, HKDF-SHA256, ChaCha20Poly1305, base: skRm, enc, shared_secret.
    let pair = stored(Kem::XWing, "b3f98b03126a431ccecc62ae0f68e102c2d8e1cc7b21ba85d821d8e31761e0f8");
    let opened = pair.decapsulate(Kem::XWing, &bytes(XWING_ENC)).expect("decapsulated");
    assert_eq!(Hex(&opened).to_string(), "b90cf181d95351d1091569487caaf6c3434eeb181a2c4c04631980ce139afa67");
}

#[test]
fn a_key_store_refuses_mechanisms_and_encapsulated_keys_that_are_not_its_own() {
    let pair = stored(Kem::XWing, "b3f98b03126a431ccecc62ae0f68e102c2d8e1cc7b21ba85d821d8e31761e0f8");
    assert_eq!(pair.decapsulate(Kem::DhkemP256, &[4; 65]).expect_err("another mechanism").code, Code::NotSupported);
    assert_eq!(pair.decapsulate(Kem::XWing, &[4; 65]).expect_err("too short").code, Code::WrapInvalid);
    assert!(pair.public(Kem::DhkemP256).is_none());
    for bad in [vec![], vec![1; 32], vec![1; 34], vec![9; 33], [&[2], [0; 32].as_slice()].concat()] {
        assert_eq!(SealingKeyPair::deserialize(&bad).expect_err("no key").code, Code::Malformed);
    }
}

#[test]
fn page_keys_and_sealed_units_are_those_of_the_vectors() {
    let content = ContentKey::from_bytes(&[1; 32]).expect("32 bytes");
    let vectors = [
        (
            Aead::Aes256Gcm,
            "c24769ff2e02aa22023d1989bb68133a74e4ecf5c07ef472217726c0458d81ff", // key commitment
            "1693971f6dfb9c65998a307cc9ef8c45e04f7b7b3f",                       // "hello" sealed, tag
        ),
        (
            Aead::ChaCha20Poly1305,
            "9d0493551be1173e16191bb2eaeb2f434a7eb3e62f286759394c4ec7c1d7ef3b",
            "7ef42a744001516dca356fc2b80dcfbbe8a8a8c33d",
        ),
    ];
    for (aead, commitment, sealed) in vectors {
        // Package id 02.., plain digest 03..; one unit: ordinal 0, offset 0, 5 bytes.
        let keys = PageKeys::derive(&content, &Digest([2; 32]), &Digest([3; 32]), aead, Format::Data);
        assert_eq!(keys.commitment().to_string(), commitment);
        let mut sealer = Sealer::new(&Layout::data(5).expect("data"), &keys).expect("a sealer");
        let (mut bytes, mut tags) = (*b"hello", Vec::new());
        sealer.seal_chunk(&mut bytes, &mut tags).expect("sealed");
        assert_eq!(format!("{}{}", Hex(&bytes), Hex(&tags)), sealed);
    }
}

#[test]
fn layout_and_plain_digest_are_those_of_the_vectors() {
    let layout = Layout::data(5).expect("data");
    // A map: 0 format data, 1 size 5, 2 one sealed range (0, 5), 3 no patches.
    let encoded = bytes("a40001010502818200050380");
    assert_eq!(layout.encode(), encoded);
    let digest = plain_digest(&b"hello".as_slice(), &layout).expect("digest");
    assert_eq!(digest, Digest::of(&[b"chipbound/1 plain digest".as_slice(), &encoded].concat()));
}

#[test]
fn a_secret_at_rest_is_that_of_the_vector() {
    let sealed = bytes(concat!(
        "01",                                                               // version
        "0404040404040404040404040404040404040404040404040404040404040404", // salt
        "79413df8b2a5",                                                     // "secret" sealed
        "b67758b01aace63a34d19066c28998bd",                                 // tag
    ));
    assert_eq!(at_rest::open(&[5; 32], "identity key", &sealed).expect("opens")[..], *b"secret");
}

const XWING_ENC: &str = concat!(
    "b440cb006466e8ee9d161b371b6fa1ec419d6a7589492378dc678fedbcf9e7debfb47f7e0b5368b0e77ef5b5866686b65231dbd1c1a42e0af9b0abb06c795a1a",
    "f0734b450dbb60fe0486b1497d7b09d0c46617a40c5f8c8ab51c2e8e1f48023f73b7c4716bba2e905d5fb42c3dedff166553ecf033305a57bf436317e6513dee",
    "a2f65537065bb5d82dc4b8a965c3e939b910dc6b027e01673a6e1399b93976292ef9fd81120ef2f6c47d94a1c77d9fe16ba7107a8a6a4ce9ce0d302847d60216",
    "7de077e17dbb7e0154202f76c381c4b6d8bca51680dab4dbf373da8f09aa23d2174fb36681ce42108f7baadcb35626baf30a416bd79b3e249585079c277b79b7",
    "b31108ef061f25b5d4e548f6f5cc3d4c24fa0f1716843bb63ad00a78f37d2e2b81517810abe9853829bed7b3ba309ad697d8a5f66af4dd237c25725e9c626374",
    "4bf8641d475d4792ab0535d2b4fdfcf0c5d95118f5779521023016d49751794a1ce66f2a652436843978937562a4a5e8628d2b720890d7f3b21c151399ba7db0",
    "3cd15516c6a94b84f6d01a37ba92cc7ac6c480dc9f67c3a066378180bcd2922d3f5c65d69fd0b96aadc055d6b05ebb1105acc609f200e0c945a10e4e11371e23",
    "369de2069ccd7175a652c3cd09eb7f17c9b65b4aa79b26468f9b21f8c0aa8f7471d5cfbf3697d3eedea9351597ce981e7cf745c2950070c1f82f132b48584d03",
    "ba1262cb856ff6b5ae25992df8612d24f068b4325d3360673ed3ef6e2a57de297d5482c5cc355bc07f1d975fc6d60cd7109bf5a77a0ff7b2c5d9f4a276d30cb4",
    "9da48b8b90b644b15a5b68fcc67c25f09a8e567cbe4fa2e2ba11c02993e9e9b4116a7c60da64a71932800aec2fb4d2eceef57c6fc2308f3adcd9b46a28748516",
    "284bdb4b3a36851512c5e0e6ed37ef5f00b07dc3c42667cf95cad764e47f48a994d17c103f8225755c76008013897c03c31043df0eb39a603e09caeaa41ae244",
    "88fe96e4d83b4ae5481045f4a7cfd7c80b31ce9eeb8fdecd34be1245f368ab5a3215cbcdfbe0529e1fbc4ba0041cfaba09836c25dd6219e75fbc6f143e74d686",
    "ecd9e1a416881bc21a9129fb865e82332985798f701f7952c4e69e7b4e6bd03bffdc0c65e2a2fde89f73b8659fd2cc7dfb070d3e95581d1bc587a2d9c4bf142f",
    "dc1f20856d3cfb64d35744ee279b829184723221e9fb19f012ab99c4bb1a904a116727b667c5a11a0e11f3e31682b0c114345ecc3ee153bccd884654bd5a8a02",
    "3aa3db878148736f6a090f92785423a9ba2b037b3b90ee91657ba48a125360dae75a6fddfea406ca823a5e4fbb54aa8909fbd85d95d2ed256ed5d6a9194fad0d",
    "81a44d3172abf6b90cecd1ed2080762d670db4d3437ef8e9e7d39db4b4215c33f8d19240ed4bf2de8b1076b345707043a735bf9e96e16c8b670cf2df0ce8db63",
    "8c7d84a13ee7b35266c7f0e60d2cb2e5734e9d646a871d0dfd8b4ee5f825bf799a1251ed21e54510e9c605bc83a0bd9673aee80e8d064a95c3c3151ffd276081",
    "73637fb9de30b3c02d96eecac05dbf7c2fbc98b4a1f6972ce928322a22e2b75c",
);

#[test]
fn layouts_of_data_and_of_real_programs_follow_the_contract() {
    let contract = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/chipbound.cddl")).expect("the contract");
    let contract = format!("checked = layout\n{contract}");
    let check = |bytes: &[u8]| cddl::validate_cbor_from_slice(&contract, bytes, None);
    check(&Layout::data(1 << 30).expect("data").encode()).expect("data");
    for program in ["/bin/ls", "/usr/bin/perl"] {
        let layout = Layout::detect(&std::fs::File::open(program).expect(program)).expect(program);
        assert!(!layout.patches().is_empty(), "{program} is a program");
        check(&layout.encode()).expect(program);
    }
    assert!(check(&[0xa1, 0x00, 0x01]).is_err(), "a layout without its ranges");
}
