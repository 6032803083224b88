//! API tokens: bearer tokens for programs, with a name, scopes and an end. Only their digests are kept.

use crate::server::Server;
use crate::storage::{Principal, Repository, StoredToken};
use chipbound_wire::api::{MadeToken, NewToken, Scope, TokenInfo, Tokens};
use chipbound_wire::random::fresh;
use chipbound_wire::{Code, Digest, Refusal, Result, SystemRandom};
use zeroize::Zeroizing;

/// What an API token begins with, so that people and scanners of sources know one when they see it.
pub(crate) const PREFIX: &str = "cbt-";
/// API tokens of one account at once.
const MOST: u32 = 64;
/// Bytes of a name; days of a life.
const MAX_NAME: usize = 64;
const MAX_DAYS: u32 = 366;
const DAY: u64 = 24 * 3600;

impl<R: Repository> Server<R> {
    /// Makes an API token for the account, of which only the digest is kept. Refuses a scope that the role has not with
    /// [`Code::Forbidden`], names and lives outside their limits with [`Code::Malformed`], a name that is there with
    /// [`Code::Conflict`].
    pub async fn make_token(&self, principal: &Principal, new: NewToken) -> Result<MadeToken> {
        let name_is_good = (1..=MAX_NAME).contains(&new.name.len())
            && new.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !name_is_good {
            return Err(Refusal::new(Code::Malformed, "the name of an API token is 1 to 64 letters, digits, points, underscores, hyphens"));
        }
        if !(1..=MAX_DAYS).contains(&new.days) || new.scopes.is_empty() {
            return Err(Refusal::new(Code::Malformed, format!("an API token has 1 to {MAX_DAYS} days and at least one scope")));
        }
        let role = principal.role;
        if let Some(beyond) = new.scopes.iter().find(|s| !role.scopes().contains(s)) {
            return Err(Refusal::new(Code::Forbidden, format!("a {} cannot give the scope {}", role.as_str(), beyond.as_str())));
        }
        let secret = Zeroizing::new(fresh::<32>(&mut SystemRandom));
        let token = format!("{PREFIX}{}", data_encoding::BASE64URL_NOPAD.encode(&*secret));
        let created_at = self.now();
        let expires_at = created_at.after(u64::from(new.days) * DAY);
        let scopes: Vec<Scope> = Scope::ALL.into_iter().filter(|s| new.scopes.contains(s)).collect();
        let info = TokenInfo { name: new.name, scopes, created_at, expires_at };
        let stored = StoredToken { token: Digest::of(token.as_bytes()), account: principal.account, info };
        self.repository.add_token(&stored, MOST).await?;
        Ok(MadeToken { token, expires_at })
    }

    /// The account's API tokens.
    pub async fn tokens(&self, principal: &Principal) -> Result<Tokens> {
        Ok(Tokens { tokens: self.repository.tokens(principal.account).await? })
    }

    /// Forgets an API token of the account: it counts for nothing from now on.
    pub async fn revoke_token(&self, principal: &Principal, name: &str) -> Result<()> {
        self.repository.revoke_token(principal.account, name).await
    }
}
