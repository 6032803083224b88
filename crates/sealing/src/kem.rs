//! Sealing keys, and the one thing that a key store must do with them: decapsulate. The HPKE key schedule stays above it.

use chipbound_wire::bounded::Bytes;
use chipbound_wire::certificate::SealingKey;
use chipbound_wire::random::Random;
use chipbound_wire::suite::Kem;
use chipbound_wire::{Code, Refusal, Result};
use hpke::kem::{DhP256HkdfSha256, XWing};
use hpke::{Deserializable, Kem as HpkeKem, Serializable};
use std::fmt;
use zeroize::Zeroizing;

/// A holder of sealing keys: a software key, a key of one session, or an adapter to a chip.
pub trait Decapsulate {
    /// The public key for that mechanism, as RFC 9180 serialises it; `None` where there is none.
    fn public(&self, kem: Kem) -> Option<Vec<u8>>;

    /// Decap() of RFC 9180 §4: the KEM's final shared secret, 32 bytes for every supported mechanism. For DHKEM this is what
    /// ExtractAndExpand (§4.1) makes of the Diffie-Hellman value: the adapter to a chip that gives out the raw ECDH value
    /// does that above the chip. [`Code::NotSupported`] without such a key, [`Code::WrapInvalid`] for an `enc` that is no
    /// encapsulated key.
    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>>;
}

/// A sealing key in software.
pub struct SealingKeyPair(Private);

enum Private {
    XWing(Box<<XWing as HpkeKem>::PrivateKey>),
    P256(Box<<DhP256HkdfSha256 as HpkeKem>::PrivateKey>),
}

impl SealingKeyPair {
    /// Makes a new pair.
    #[must_use]
    pub fn generate(kem: Kem, random: &mut dyn Random) -> Self {
        let mut ikm = Zeroizing::new([0; 32]);
        random.fill(ikm.as_mut_slice());
        Self(match kem {
            Kem::XWing => Private::XWing(Box::new(XWing::derive_keypair(ikm.as_slice()).0)),
            Kem::DhkemP256 => Private::P256(Box::new(DhP256HkdfSha256::derive_keypair(ikm.as_slice()).0)),
        })
    }

    /// The mechanism.
    #[must_use]
    pub fn kem(&self) -> Kem {
        match self.0 {
            Private::XWing(_) => Kem::XWing,
            Private::P256(_) => Kem::DhkemP256,
        }
    }

    /// The public half as it travels.
    #[must_use]
    pub fn sealing_key(&self) -> SealingKey {
        let public = match &self.0 {
            Private::XWing(key) => XWing::sk_to_pk(key).to_bytes().to_vec(),
            Private::P256(key) => DhP256HkdfSha256::sk_to_pk(key).to_bytes().to_vec(),
        };
        SealingKey { kem: self.kem(), public: Bytes::new(public).expect("public keys of supported mechanisms are within the limit") }
    }

    /// The pair as one byte for the mechanism and 32 secret bytes, for storing them sealed.
    #[must_use]
    pub fn serialize(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(vec![0; SERIALIZED]);
        bytes[0] = self.kem().number();
        match &self.0 {
            Private::XWing(key) => key.write_exact(&mut bytes[1..]),
            Private::P256(key) => key.write_exact(&mut bytes[1..]),
        }
        bytes
    }

    /// Reads what [`Self::serialize`] wrote; [`Code::Malformed`] for anything else.
    pub fn deserialize(bytes: &[u8]) -> Result<Self> {
        let bad = || Refusal::new(Code::Malformed, "not a sealing key");
        let (number, secret) = bytes.split_first().filter(|_| bytes.len() == SERIALIZED).ok_or_else(bad)?;
        let kem = Kem::ALL.iter().find(|k| k.number() == *number).ok_or_else(bad)?;
        let private = match kem {
            Kem::XWing => Deserializable::from_bytes(secret).map(|key| Private::XWing(Box::new(key))),
            Kem::DhkemP256 => Deserializable::from_bytes(secret).map(|key| Private::P256(Box::new(key))),
        };
        private.map(Self).map_err(|_| bad())
    }
}

impl Decapsulate for SealingKeyPair {
    fn public(&self, kem: Kem) -> Option<Vec<u8>> {
        (kem == self.kem()).then(|| self.sealing_key().public.into_vec())
    }

    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        match &self.0 {
            Private::XWing(key) if kem == Kem::XWing => decap::<XWing>(key, enc),
            Private::P256(key) if kem == Kem::DhkemP256 => decap::<DhP256HkdfSha256>(key, enc),
            _ => Err(Refusal::new(Code::NotSupported, format!("there is no sealing key for {kem}"))),
        }
    }
}

fn decap<K: HpkeKem>(key: &K::PrivateKey, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    K::EncappedKey::from_bytes(enc)
        .and_then(|enc| K::decap(key, None, &enc))
        .map(|secret| Zeroizing::new(secret.0.to_vec()))
        .map_err(|e| Refusal::new(Code::WrapInvalid, "the encapsulated key is not one").because(e))
}

impl fmt::Debug for SealingKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKeyPair({}, ..)", self.kem())
    }
}

/// The sealing key of one session of the second path: in memory only, erased when dropped.
#[derive(Debug)]
pub struct SessionKey(SealingKeyPair);

impl SessionKey {
    /// Makes a new one.
    #[must_use]
    pub fn generate(kem: Kem, random: &mut dyn Random) -> Self {
        Self(SealingKeyPair::generate(kem, random))
    }

    /// The public half, for the `Hello` message.
    #[must_use]
    pub fn sealing_key(&self) -> SealingKey {
        self.0.sealing_key()
    }
}

impl Decapsulate for SessionKey {
    fn public(&self, kem: Kem) -> Option<Vec<u8>> {
        self.0.public(kem)
    }
    fn decapsulate(&self, kem: Kem, enc: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.0.decapsulate(kem, enc)
    }
}

/// Bytes of a stored pair.
const SERIALIZED: usize = 33;
