//! A root, an issuing authority and holders of every role, in memory.

use aws_lc_rs::rand::SystemRandom as AwsRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use chipbound_authority::issuing::{self, Issuer, Leaf, Validity, Withdrawn};
use chipbound_wire::bounded::{Bytes, List};
use chipbound_wire::certificate::{Chain, Role, SealingKey, SealingKeys, Trust};
use chipbound_wire::signature::{Sign, p256_point, p256_spki};
use chipbound_wire::signed::{Document, Signer};
use chipbound_wire::suite::{Class, Kem};
use chipbound_wire::{Code, KeyId, Refusal, Result, SystemRandom, Time};
use rcgen::CertificateParams;
use std::sync::Arc;

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// An ECDSA P-256 key in memory.
#[derive(Clone)]
pub struct MemoryKey {
    pair: Arc<EcdsaKeyPair>,
    spki: Vec<u8>,
}

impl MemoryKey {
    /// A fresh key.
    #[must_use]
    pub fn generate() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("aws-lc generates P-256 keys");
        let point = pair.public_key().as_ref().try_into().expect("an uncompressed point has 65 bytes");
        Self { spki: p256_spki(point), pair: Arc::new(pair) }
    }
}

impl std::fmt::Debug for MemoryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryKey({})", self.key_id())
    }
}

impl Sign for MemoryKey {
    fn spki(&self) -> &[u8] {
        &self.spki
    }
    fn sign(&self, message: &[u8]) -> Result<[u8; 64]> {
        let signature = self.pair.sign(&AwsRandom::new(), message);
        let signature = signature.map_err(|e| Refusal::new(Code::Internal, "signing failed").because(e))?;
        Ok(signature.as_ref().try_into().expect("the fixed form has 64 bytes"))
    }
}

/// A certified key.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The key.
    pub key: MemoryKey,
    /// Its certificates in DER: leaf, issuing.
    pub chain: Vec<Vec<u8>>,
    /// The serial number of the leaf.
    pub serial: Vec<u8>,
}

impl Holder {
    /// The id of the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.key.key_id()
    }

    /// For signing documents.
    #[must_use]
    pub fn signer(&self) -> Signer<'_> {
        Signer { key: &self.key, chain: &self.chain }
    }

    /// Signs a document.
    #[must_use]
    pub fn sign<D: Document>(&self, document: &D) -> Vec<u8> {
        self.signer().sign(document).expect("sample documents are within their limits")
    }

    /// The chain as messages carry it.
    #[must_use]
    pub fn wire_chain(&self) -> Chain {
        let certificates = self.chain.iter().map(|c| Bytes::new(c.clone()).expect("certificates are within their limit"));
        List::new(certificates.collect()).expect("two certificates are within the limit")
    }
}

/// What a certificate of a test shall say; begin with [`Wanted::role`] and set what matters.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The role.
    pub role: Role,
    /// The common name.
    pub subject: String,
    /// First second of validity; a minute before the infrastructure's now if left out.
    pub not_before: Option<Time>,
    /// Last second of validity; 30 days after the infrastructure's now if left out.
    pub not_after: Option<Time>,
    /// The sealing keys of a processor; a P-256 key that nobody holds if left out.
    pub sealing: Option<SealingKeys>,
    /// The key; a fresh one if left out.
    pub key: Option<MemoryKey>,
}

impl Wanted {
    /// The usual certificate of a role; the subject is the role's name.
    #[must_use]
    pub fn role(role: Role) -> Self {
        Self { role, subject: role.as_str().to_owned(), not_before: None, not_after: None, sealing: None, key: None }
    }
}

/// A root and its issuing authority.
#[derive(Debug)]
pub struct Pki {
    now: Time,
    root: Vec<u8>,
    issuing: Vec<u8>,
    issuing_key: MemoryKey,
}

impl Pki {
    /// A new one, valid from a day before `now` for ten years. Two of them do not trust each other.
    #[must_use]
    pub fn new(now: Time) -> Self {
        let (root_key, issuing_key) = (MemoryKey::generate(), MemoryKey::generate());
        let validity = Validity { not_before: Time(now.0.saturating_sub(DAY)), not_after: now.after(3650 * DAY) };
        let root = issuing::root(&root_key, "test root", validity, &mut SystemRandom).expect("a root");
        let issuing = Issuer::new(&root, &root_key)
            .and_then(|issuer| issuer.issuing(issuing_key.spki(), "test authority", validity, &mut SystemRandom))
            .expect("an issuing authority");
        Self { now, root, issuing, issuing_key }
    }

    /// The root certificate in DER.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// The issuing certificate in DER.
    #[must_use]
    pub fn issuing(&self) -> &[u8] {
        &self.issuing
    }

    /// Trust in this root, without a revocation list.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust::new(&self.root).expect("a root")
    }

    /// A holder of the usual certificate of `role`.
    #[must_use]
    pub fn holder(&self, role: Role) -> Holder {
        self.holder_of(&Wanted::role(role))
    }

    /// A processor with these sealing keys.
    #[must_use]
    pub fn processor(&self, keys: Vec<SealingKey>) -> Holder {
        let keys = List::new(keys).expect("few sealing keys");
        self.holder_of(&Wanted { sealing: Some(SealingKeys { class: Class::Software, keys }), ..Wanted::role(Role::Processor) })
    }

    /// A holder of a certificate of the profile.
    #[must_use]
    pub fn holder_of(&self, wanted: &Wanted) -> Holder {
        self.forge(wanted, |_| {})
    }

    /// A holder of a certificate that `change` bent out of the profile before it was signed.
    #[must_use]
    pub fn forge(&self, wanted: &Wanted, change: impl FnOnce(&mut CertificateParams)) -> Holder {
        let key = wanted.key.clone().unwrap_or_else(MemoryKey::generate);
        let idle = (wanted.role == Role::Processor).then(idle_sealing_keys);
        let leaf = Leaf {
            role: wanted.role,
            subject: &wanted.subject,
            spki: key.spki(),
            validity: Validity {
                not_before: wanted.not_before.unwrap_or(Time(self.now.0.saturating_sub(60))),
                not_after: wanted.not_after.unwrap_or(self.now.after(30 * DAY)),
            },
            sealing: wanted.sealing.as_ref().or(idle.as_ref()),
        };
        let mut params = issuing::leaf_params(&leaf, &mut SystemRandom).expect("a leaf");
        change(&mut params);
        let serial = params.serial_number.clone().map(|s| s.to_bytes()).expect("leaves have a serial number");
        let certificate = self.issuer().certify(&params, key.spki()).expect("a leaf");
        Holder { key, chain: vec![certificate, self.issuing.clone()], serial }
    }

    /// A revocation list that names these holders, fresh for a day.
    #[must_use]
    pub fn revocations(&self, withdrawn: &[&Holder]) -> Vec<u8> {
        self.revocations_until(withdrawn, self.now.after(DAY))
    }

    /// A revocation list that names these holders and counts until `next_update`.
    #[must_use]
    pub fn revocations_until(&self, withdrawn: &[&Holder], next_update: Time) -> Vec<u8> {
        let withdrawn: Vec<_> = withdrawn.iter().map(|h| Withdrawn { serial: h.serial.clone(), at: self.now }).collect();
        let validity = Validity { not_before: Time(self.now.0.saturating_sub(DAY)), not_after: next_update };
        self.issuer().revocations(1, &withdrawn, validity).expect("a revocation list")
    }

    /// The issuing authority, for certificates that nothing else here makes.
    #[must_use]
    pub fn issuer(&self) -> Issuer<'_> {
        Issuer::new(&self.issuing, &self.issuing_key).expect("the issuing authority's own key")
    }
}

/// One P-256 sealing key whose private half is thrown away.
#[must_use]
pub fn idle_sealing_keys() -> SealingKeys {
    let point = p256_point(MemoryKey::generate().spki()).expect("a P-256 key");
    let key = SealingKey { kem: Kem::DhkemP256, public: Bytes::new(point.to_vec()).expect("65 bytes") };
    SealingKeys { class: Class::Software, keys: List::new(vec![key]).expect("one key") }
}
