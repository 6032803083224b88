//! Accounts, sessions and deposits.

use super::{Columns, SqliteRepository, commit, failed, ledger, signed};
use crate::storage::{Accounts, Credentials, NewAccount, Principal};
use chipbound_wire::api::Balance;
use chipbound_wire::{AccountId, Amount, Code, Digest, Refusal, Result, Time};
use sqlx::query;
use sqlx::sqlite::SqliteRow;

fn principal(row: &SqliteRow) -> Result<Principal> {
    Ok(Principal { account: AccountId(row.id("account")?), user: row.text("user")?, role: row.parsed("role")? })
}

impl Accounts for SqliteRepository {
    async fn add_account(&self, new: &NewAccount) -> Result<()> {
        let made = query("INSERT INTO accounts (account, user, role, password, created_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(&new.account.0[..])
            .bind(&new.user)
            .bind(new.role.as_str())
            .bind(&new.password)
            .bind(signed(new.created_at.0)?)
            .execute(&self.pool)
            .await
            .map_err(|e| failed(&e))?;
        match made.rows_affected() {
            1 => Ok(()),
            _ => Err(Refusal::new(Code::Conflict, format!("there is an account {:?} already", new.user))),
        }
    }

    async fn accounts(&self) -> Result<Vec<Principal>> {
        let rows = query("SELECT account, user, role FROM accounts ORDER BY user").fetch_all(&self.pool).await.map_err(|e| failed(&e))?;
        rows.iter().map(principal).collect()
    }

    async fn credentials(&self, user: &str) -> Result<Option<Credentials>> {
        let row = query("SELECT account, password FROM accounts WHERE user = ?").bind(user);
        let row = row.fetch_optional(&self.pool).await.map_err(|e| failed(&e))?;
        row.map(|r| Ok(Credentials { account: AccountId(r.id("account")?), password: r.text("password")? })).transpose()
    }

    async fn open_session(&self, account: AccountId, token: Digest, expires_at: Time, most: u32) -> Result<()> {
        let mut tx = self.write().await?;
        query("INSERT INTO sessions (token, account, expires_at) VALUES (?, ?, ?)")
            .bind(&token.0[..])
            .bind(&account.0[..])
            .bind(signed(expires_at.0)?)
            .execute(&mut *tx)
            .await
            .map_err(|e| failed(&e))?;
        query(
            "DELETE FROM sessions WHERE account = ?1 AND token <> ?2 AND token NOT IN
             (SELECT token FROM sessions WHERE account = ?1 ORDER BY expires_at DESC LIMIT ?3)",
        )
        .bind(&account.0[..])
        .bind(&token.0[..])
        .bind(most)
        .execute(&mut *tx)
        .await
        .map_err(|e| failed(&e))?;
        commit(tx).await
    }

    async fn session(&self, token: Digest, now: Time) -> Result<Option<Principal>> {
        let row = query("SELECT account, user, role FROM sessions JOIN accounts USING (account) WHERE token = ? AND expires_at >= ?")
            .bind(&token.0[..])
            .bind(signed(now.0)?)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| failed(&e))?;
        row.as_ref().map(principal).transpose()
    }

    async fn close_session(&self, token: Digest) -> Result<()> {
        query("DELETE FROM sessions WHERE token = ?").bind(&token.0[..]).execute(&self.pool).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    async fn deposit(&self, user: &str, amount: Amount, at: Time) -> Result<Balance> {
        let mut tx = self.write().await?;
        let row = query("SELECT account FROM accounts WHERE user = ?").bind(user).fetch_optional(&mut *tx).await.map_err(|e| failed(&e))?;
        let row = row.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no account {user:?}")))?;
        let account = AccountId(row.id("account")?);
        ledger::deposit(&mut tx, account, amount, at).await?;
        let balance = ledger::balance(&mut tx, account, amount.currency).await?;
        commit(tx).await?;
        Ok(balance)
    }

    async fn balances(&self, account: AccountId) -> Result<Vec<Balance>> {
        let mut connection = self.pool.acquire().await.map_err(|e| failed(&e))?;
        ledger::balances(&mut connection, account).await
    }
}
