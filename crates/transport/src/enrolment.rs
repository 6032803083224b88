//! The client's side of enrolment and renewal at an authority (source \[33\]-\[35\]), for the processor, the server and
//! vendors. What comes back was verified under the pinned root before anybody sees it.

use crate::client::Client;
use crate::tls::ServerTrust;
use chipbound_wire::bounded::{Bytes, List, decode, encode};
use chipbound_wire::certificate::{Certified, Chain, Role, SealingKey, Trust};
use chipbound_wire::documents::Wrap;
use chipbound_wire::enrolment::{Authorisation, Begin, CONTENT_TYPE, Challenges, Finish, Issued, Voucher, renewal_message};
use chipbound_wire::limits::{MAX_JSON, MAX_REVOCATION_LIST};
use chipbound_wire::signature::Sign;
use chipbound_wire::suite::Class;
use chipbound_wire::{Code, Digest, Refusal, Result, Time};
use http::Method;

/// What is to be certified.
#[derive(Clone, Debug)]
pub struct Application {
    /// The role.
    pub role: Role,
    /// The class of key store: a processor's, nobody else's.
    pub class: Option<Class>,
    /// The signing request (PKCS#10 in DER) by the key to be certified.
    pub request: Vec<u8>,
    /// The sealing keys: a processor's, nobody else's.
    pub sealing_keys: Vec<SealingKey>,
}

impl Application {
    /// That of a role without sealing keys.
    #[must_use]
    pub fn plain(role: Role, request: Vec<u8>) -> Self {
        Self { role, class: None, request, sealing_keys: Vec::new() }
    }
}

/// What the authority issued, verified: the chain under the root for the role and the keys applied for, and not revoked.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// The chain, leaf first, root left out.
    pub chain: Vec<Vec<u8>>,
    /// The root certificate, which is the pinned one.
    pub root: Vec<u8>,
    /// The revocation list that came along.
    pub revocations: Vec<u8>,
    /// What the leaf says.
    pub certified: Certified,
}

/// Enrolls with a voucher at `authority` (`https://host:port`), which must be the one whose root the voucher names.
/// `answer` opens a challenge to one of the sealing keys: `sealing::open_possession(store, session, wrap)`.
///
/// Asking again with the same voucher and the same keys, after the answer was lost, gets the same certificate.
///
/// # Errors
/// The authority's refusals; [`Code::AuthorityUnreachable`], [`Code::ServerUntrusted`] for another authority than the
/// voucher's; a certificate code for an answer that does not verify or is about other keys.
pub async fn enroll(
    authority: &str,
    voucher: &Voucher,
    application: &Application,
    answer: impl FnMut(&Wrap, &[u8; 16]) -> Result<[u8; 32]>,
    now: Time,
) -> Result<Enrolled> {
    let right = Authorisation::Voucher(Bytes::new(voucher.secret.to_vec())?);
    certify(authority, voucher.root, right, application, answer, now).await
}

/// Renews the certificate `chain` of `key` at the authority with this root certificate. The application may name a new key,
/// whose signing request it holds.
///
/// # Errors
/// As for [`enroll`]; [`Code::CertificateExpired`] or [`Code::CertificateRevoked`] when it is too late.
pub async fn renew(
    authority: &str,
    root: &[u8],
    chain: &[Vec<u8>],
    key: &dyn Sign,
    application: &Application,
    answer: impl FnMut(&Wrap, &[u8; 16]) -> Result<[u8; 32]>,
    now: Time,
) -> Result<Enrolled> {
    let proof = Bytes::new(key.sign(&renewal_message(&application.request))?.to_vec())?;
    let chain: Chain = List::new(chain.iter().map(|c| Bytes::new(c.clone())).collect::<Result<_>>()?)?;
    let right = Authorisation::Renewal { chain, proof };
    certify(authority, Digest::of(root), right, application, answer, now).await
}

/// Reads the current revocation list (DER) of the authority with this root certificate. Its signature and age are checked
/// by whoever verifies with it ([`Trust::with_revocations`]).
pub async fn revocations(authority: &str, root: &[u8]) -> Result<Vec<u8>> {
    let client = Client::new(authority, ServerTrust::Pinned(Digest::of(root)))?;
    Ok(client.get_bytes("/v1/revocations", None, MAX_REVOCATION_LIST).await.map_err(of_authority)?.into())
}

async fn certify(
    authority: &str,
    root: Digest,
    authorisation: Authorisation,
    application: &Application,
    mut answer: impl FnMut(&Wrap, &[u8; 16]) -> Result<[u8; 32]>,
    now: Time,
) -> Result<Enrolled> {
    let client = Client::new(authority, ServerTrust::Pinned(root))?;
    let begin = Begin {
        authorisation,
        role: application.role,
        class: application.class,
        request: Bytes::new(application.request.clone())?,
        sealing_keys: List::new(application.sealing_keys.clone())?,
    };
    let challenges: Challenges = decode(&post(&client, "/v1/enrolments", encode(&begin)).await?)?;
    let session =
        <[u8; 16]>::try_from(&*challenges.session).map_err(|_| Refusal::new(Code::Malformed, "the authority's session is not 16 bytes"))?;
    let answers = challenges.challenges.iter().map(|wrap| Bytes::new(answer(wrap, &session)?.to_vec()));
    let finish = Finish { session: challenges.session.clone(), answers: List::new(answers.collect::<Result<_>>()?)? };
    let issued: Issued = decode(&post(&client, "/v1/enrolments/finish", encode(&finish)).await?)?;
    verify(issued, root, application, now)
}

/// Takes only what the pinned root stands for and what was applied for.
fn verify(issued: Issued, root: Digest, application: &Application, now: Time) -> Result<Enrolled> {
    if Digest::of(&issued.root) != root {
        return Err(Refusal::new(Code::CertificateForeign, "the authority answered with another root certificate"));
    }
    let trust = Trust::new(&issued.root)?.with_revocations(&issued.revocations)?;
    let certified = trust.verify(&issued.chain, application.role, now)?;
    let sealing = certified.sealing().map(|s| &*s.keys).unwrap_or_default();
    let own_key = application.request.windows(certified.spki().len()).any(|w| w == certified.spki());
    if !own_key || *sealing != application.sealing_keys[..] {
        return Err(Refusal::new(Code::PossessionUnproven, "the authority certified other keys than those it was asked for"));
    }
    let chain = issued.chain.into_vec().into_iter().map(Bytes::into_vec).collect();
    Ok(Enrolled { chain, root: issued.root.into_vec(), revocations: issued.revocations.into_vec(), certified })
}

async fn post(client: &Client, path: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    let answer = client.request(Method::POST, path, None, &[], CONTENT_TYPE, body, MAX_REVOCATION_LIST + MAX_JSON).await;
    Ok(answer.map_err(of_authority)?.into())
}

/// The client speaks of servers; the one here is the authority.
fn of_authority(refusal: Refusal) -> Refusal {
    match refusal.code {
        Code::ServerUnreachable => Refusal::new(Code::AuthorityUnreachable, refusal.detail.clone()).because(refusal),
        _ => refusal,
    }
}
