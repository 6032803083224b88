//! The server's standing with its authority: whom it trusts, the newest revocation list, and certificates that are renewed in time.

use crate::keys::{ROLES, SharedKeys, store_chain};
use crate::server::Clock;
use chipbound_host::files::{PUBLIC, read, write_durably};
use chipbound_host::signing_request;
use chipbound_session::tls::SharedTrust;
use chipbound_transport::enrolment::{Application, renew, revocations};
use chipbound_wire::certificate::{Certified, Role, Trust};
use chipbound_wire::limits::{MAX_CERTIFICATE, MAX_REVOCATION_LIST};
use chipbound_wire::{Code, Refusal, Result, Time};
use std::path::{Path, PathBuf};

/// Keeps the standing of one server.
pub struct Standing {
    /// `https://host:port` of the authority.
    pub authority: String,
    /// The folder of keys and certificates.
    pub folder: PathBuf,
    /// The keys in use.
    pub keys: SharedKeys,
    /// Whom deliveries and requests trust.
    pub trust: SharedTrust,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Standing(with {})", self.authority)
    }
}

fn root_file(folder: &Path) -> PathBuf {
    folder.join("root.der")
}

fn revocations_file(folder: &Path) -> PathBuf {
    folder.join("revocations.der")
}

/// Keeps root and revocation list of the authority (DER).
pub fn store_trust(folder: &Path, root: &[u8], revocations: &[u8]) -> Result<()> {
    write_durably(&root_file(folder), root, PUBLIC)?;
    write_durably(&revocations_file(folder), revocations, PUBLIC)
}

/// Whom to trust by what is on the disk. A list that is too old by now is taken: it refuses everything
/// ([`Code::RevocationListStale`]) until a fresh one comes.
pub fn load_trust(folder: &Path) -> Result<Trust> {
    let root = read(&root_file(folder), MAX_CERTIFICATE)?;
    Trust::new(&root)?.with_revocations(&read(&revocations_file(folder), MAX_REVOCATION_LIST)?)
}

impl Standing {
    /// Asks the authority for its revocation list, and renews what is due. What fails is logged and tried again the next time:
    /// meanwhile the list on hand and the certificates count for as long as they say.
    pub async fn keep(&self) {
        if let Err(refusal) = self.refresh_revocations().await {
            tracing::warn!(%refusal, "no fresh revocation list");
        }
        for role in ROLES {
            if let Err(refusal) = self.renew_if_due(role).await {
                tracing::warn!(%role, %refusal, "the certificate was not renewed");
            }
        }
    }

    /// Reads the authority's revocation list and trusts it from now on, once it proved to be the authority's and fresh.
    pub async fn refresh_revocations(&self) -> Result<()> {
        let trust = self.trust.get();
        let list = revocations(&self.authority, trust.root()).await?;
        let fresh = trust.with_revocations(&list)?;
        // A certificate of our own shows whether the list is good; that we are on it ourselves is no fault of the list.
        match fresh.verify(&self.keys.get().second_path.chain, Role::ServerSecondPath, (self.clock)()) {
            Err(refusal) if !matches!(refusal.code, Code::CertificateRevoked | Code::CertificateExpired) => return Err(refusal),
            Err(refusal) => tracing::error!(%refusal, "this server's own certificate does not count any more"),
            Ok(_) => {}
        }
        write_durably(&revocations_file(&self.folder), &list, PUBLIC)?;
        self.trust.replace(fresh);
        Ok(())
    }

    /// Renews the certificate of `role` when no more than a third of its validity is left; returns whether it did.
    pub async fn renew_if_due(&self, role: Role) -> Result<bool> {
        let (keys, trust, now) = (self.keys.get(), self.trust.get(), (self.clock)());
        let identity = keys.get(role).ok_or_else(|| Refusal::new(Code::Internal, "not a role of a server"))?;
        if !is_due(&trust.verify(&identity.chain, role, now)?, now) {
            return Ok(false);
        }
        let application = Application::plain(role, signing_request(identity.key.clone())?);
        let no_challenge = |_: &_, _: &_| Err(Refusal::new(Code::UnexpectedMessage, "a challenge to a server, which has no sealing keys"));
        let renewed = renew(&self.authority, trust.root(), &identity.chain, &*identity.key, &application, no_challenge, now).await?;
        store_chain(&self.folder, role, &renewed.chain)?;
        self.keys.renewed(role, renewed.chain);
        tracing::info!(%role, until = renewed.certified.validity().1.0, "certificate renewed");
        Ok(true)
    }
}

fn is_due(certified: &Certified, now: Time) -> bool {
    let (from, until) = certified.validity();
    until.0.saturating_sub(now.0) <= until.0.saturating_sub(from.0) / 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_testkit::pki::{Pki, Wanted};

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_time_is_left() {
        let now = Time(1_800_000_000);
        let pki = Pki::new(now);
        let wanted = Wanted { not_before: Some(Time(now.0 - 200)), not_after: Some(now.after(100)), ..Wanted::role(Role::ServerReceipt) };
        let certified = pki.trust().verify(&pki.holder_of(&wanted).chain, Role::ServerReceipt, now).expect("a certificate");
        assert!(!is_due(&certified, Time(now.0 - 1)) && is_due(&certified, now));
    }
}
