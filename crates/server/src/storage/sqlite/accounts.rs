//! Accounts, sessions and deposits.

use super::{Columns, SqliteRepository, all, execute, first, ledger, signed};
use crate::storage::{Accounts, Credentials, NewAccount, Principal};
use chipbound_wire::api::Balance;
use chipbound_wire::{AccountId, Amount, Code, Digest, Refusal, Result, Time};
use rusqlite::{Row, params};

fn principal(row: &Row<'_>) -> Result<Principal> {
    Ok(Principal { account: AccountId(row.id("account")?), user: row.text("user")?, role: row.parsed("role")? })
}

impl Accounts for SqliteRepository {
    async fn add_account(&self, new: &NewAccount) -> Result<()> {
        let new = new.clone();
        let insert = "INSERT INTO accounts (account, user, role, password, created_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
        let add = move |tx: &_| {
            let values = params![new.account.0, new.user, new.role.as_str(), new.password, signed(new.created_at.0)?];
            match execute(tx, insert, values)? {
                1 => Ok(()),
                _ => Err(Refusal::new(Code::Conflict, format!("there is an account {:?} already", new.user))),
            }
        };
        self.connections.write(add).await
    }

    async fn accounts(&self) -> Result<Vec<Principal>> {
        let list = "SELECT account, user, role FROM accounts ORDER BY user";
        self.connections.read_long(move |books| all(books, list, [], principal)).await
    }

    async fn credentials(&self, user: &str) -> Result<Option<Credentials>> {
        self.connections.read(|books| {
            first(books, "SELECT account, password FROM accounts WHERE user = ?", [user], |row| {
                Ok(Credentials { account: AccountId(row.id("account")?), password: row.text("password")? })
            })
        })
    }

    async fn open_session(&self, account: AccountId, token: Digest, expires_at: Time, most: u32) -> Result<()> {
        let open = move |tx: &_| {
            let values = params![token.0, account.0, signed(expires_at.0)?];
            execute(tx, "INSERT INTO sessions (token, account, expires_at) VALUES (?, ?, ?)", values)?;
            execute(
                tx,
                "DELETE FROM sessions WHERE account = ?1 AND token <> ?2 AND token NOT IN
                 (SELECT token FROM sessions WHERE account = ?1 ORDER BY expires_at DESC LIMIT ?3)",
                params![account.0, token.0, most],
            )?;
            Ok(())
        };
        self.connections.write(open).await
    }

    async fn session(&self, token: Digest, now: Time) -> Result<Option<Principal>> {
        let find = "SELECT account, user, role FROM sessions JOIN accounts USING (account) WHERE token = ? AND expires_at >= ?";
        let now = signed(now.0)?;
        self.connections.read(|books| first(books, find, params![token.0, now], principal))
    }

    async fn close_session(&self, token: Digest) -> Result<()> {
        self.connections.write(move |tx| execute(tx, "DELETE FROM sessions WHERE token = ?", [token.0]).map(drop)).await
    }

    async fn deposit(&self, user: &str, amount: Amount, at: Time) -> Result<Balance> {
        let user = user.to_owned();
        let deposit = move |tx: &_| {
            let account = first(tx, "SELECT account FROM accounts WHERE user = ?", [&user], |row| row.id("account").map(AccountId))?;
            let account = account.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no account {user:?}")))?;
            ledger::deposit(tx, account, amount, at)?;
            ledger::balance(tx, account, amount.currency)
        };
        self.connections.write(deposit).await
    }

    async fn balances(&self, account: AccountId) -> Result<Vec<Balance>> {
        self.connections.read(|books| ledger::balances(books, account))
    }
}
