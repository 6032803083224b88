//! What an enrolment or a renewal asks for, and what is checked before anybody is challenged (source \[33\]-\[35\]; A4, A6, A28).

use crate::authority::Authority;
use crate::request::requested_key;
use crate::store::{Certificate, voucher_invalid};
use chipbound_wire::bounded::List;
use chipbound_wire::certificate::{Certified, Chain, Role, SealingKey, SealingKeys};
use chipbound_wire::enrolment::{Authorisation, Begin, renewal_message};
use chipbound_wire::limits::MAX_CHOICES;
use chipbound_wire::signature::verify;
use chipbound_wire::{Code, Digest, Refusal, Result, Time};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use crate::store::Right;

/// What will be certified once the sealing keys are proved.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) right: Right,
    pub(crate) role: Role,
    pub(crate) subject: String,
    pub(crate) spki: Vec<u8>,
    pub(crate) sealing: Option<SealingKeys>,
}

impl Wanted {
    /// Whether the same voucher or certificate asks for the same role.
    pub(crate) fn is_same_right(&self, other: &Self) -> bool {
        self.right == other.right && self.role == other.role
    }
}

/// Checks everything in `begin` but the possession of the sealing keys. The right to ask comes first: no work with public
/// keys is done for a stranger.
pub(crate) async fn check(authority: &Authority, begin: &Begin, now: Time) -> Result<Wanted> {
    let (right, subject) = match &begin.authorisation {
        Authorisation::Voucher(secret) => check_voucher(authority, secret, begin.role, now).await?,
        Authorisation::Renewal { chain, proof } => check_renewal(authority, chain, proof, begin, now).await?,
    };
    let sealing = check_sealing(authority, begin)?;
    let spki = requested_key(&begin.request)?;
    Ok(Wanted { right, role: begin.role, subject, spki, sealing })
}

async fn check_voucher(authority: &Authority, secret: &[u8], role: Role, now: Time) -> Result<(Right, String)> {
    let digest = Digest::of(secret);
    let voucher = authority.store().voucher(&digest).await?;
    // Whether the role is used up is decided when the certificate is recorded, in one transaction with its use.
    let voucher = voucher.filter(|v| now <= v.expires_at && v.kind.roles().contains(&role)).ok_or_else(voucher_invalid)?;
    Ok((Right::Voucher(digest), voucher.name))
}

async fn check_renewal(authority: &Authority, chain: &Chain, proof: &[u8], begin: &Begin, now: Time) -> Result<(Right, String)> {
    let known = issued_here(authority, chain).await?;
    let trust = authority.trust(now).await?;
    let certified: Certified = trust.verify(chain, begin.role, now)?;
    verify(certified.spki(), &renewal_message(&begin.request), proof)
        .map_err(|e| Refusal::new(Code::PossessionUnproven, "the renewal was not signed by the certified key").because(e))?;
    Ok((Right::Renewal(known.serial), known.subject))
}

/// The record of the leaf of `chain`: what this authority does not remember issuing, it does not look at further.
async fn issued_here(authority: &Authority, chain: &Chain) -> Result<Certificate> {
    let foreign = || Refusal::new(Code::CertificateForeign, "this authority did not issue that certificate");
    let leaf = chain.first().ok_or_else(foreign)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| foreign())?;
    let known = authority.store().certificate(parsed.raw_serial()).await?;
    known.filter(|c| c.der == leaf[..]).ok_or_else(foreign)
}

/// A processor brings a class that is admitted and at least one sealing key, one for each mechanism; others bring neither.
fn check_sealing(authority: &Authority, begin: &Begin) -> Result<Option<SealingKeys>> {
    let keys: &List<SealingKey, MAX_CHOICES> = &begin.sealing_keys;
    if begin.role != Role::Processor {
        return match (begin.class, keys.is_empty()) {
            (None, true) => Ok(None),
            _ => Err(Refusal::new(Code::Malformed, format!("a {} has no sealing keys and no class", begin.role))),
        };
    }
    let class = begin.class.ok_or_else(|| Refusal::new(Code::Malformed, "a processor names the class of its key store"))?;
    if !authority.config().classes.contains(&class) {
        return Err(Refusal::new(Code::NotSupported, format!("this authority does not certify the class {class}")));
    }
    let doubled = keys.iter().enumerate().any(|(at, key)| keys[..at].iter().any(|k| k.kem == key.kem));
    if keys.is_empty() || doubled {
        return Err(Refusal::new(Code::Malformed, "a processor brings at least one sealing key and at most one for each mechanism"));
    }
    Ok(Some(SealingKeys { class, keys: keys.clone() }))
}
