//! What the operator does over the first path: accounts are made, listed and shut out. Money is added on the server's own machine
//! alone (`chipbound account deposit`).

use crate::accounts::new_account;
use crate::pages::{Page, next};
use crate::server::Server;
use crate::storage::Repository;
use chipbound_wire::Result;
use chipbound_wire::api::{AccountInfo, Accounts, NewAccount};
use zeroize::Zeroizing;

impl<R: Repository> Server<R> {
    /// A page of the accounts, by user id.
    pub async fn accounts(&self, page: &Page) -> Result<Accounts> {
        let limit = page.limit()?;
        let after = page.after("accounts")?.unwrap_or_default();
        let mut found = self.repository.accounts(&after, limit + 1).await?;
        let next = next("accounts", &mut found, limit, |p| p.user.clone());
        let accounts = found.into_iter().map(|p| AccountInfo { account: p.account, user: p.user, role: p.role });
        Ok(Accounts { accounts: accounts.collect(), next })
    }

    /// Makes an account; [`chipbound_wire::Code::Conflict`] for a user id that is taken.
    pub async fn make_account(&self, new: NewAccount) -> Result<AccountInfo> {
        let (password, created_at) = (Zeroizing::new(new.password), self.now());
        let (user, role) = (new.user, new.role);
        let hashing = {
            let user = user.clone();
            tokio::task::spawn_blocking(move || new_account(&user, role, &password, created_at))
        };
        let internal = |e| chipbound_wire::Refusal::new(chipbound_wire::Code::Internal, "hashing a password failed").because(e);
        let account = hashing.await.map_err(internal)??;
        self.repository.add_account(&account).await?;
        Ok(AccountInfo { account: account.account, user, role })
    }

    /// Ends every session and API token of a user; [`chipbound_wire::Code::NotFound`] where there is none.
    pub async fn shut_out(&self, user: &str) -> Result<()> {
        self.repository.shut_out(user).await
    }
}
