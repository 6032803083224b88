//! Accounts, sessions and deposits.

use super::books::Books;
use super::sql::{Row, Tx, all, first, number, signed, values};
use super::{Accounts, BookBalance, Credentials, NewAccount, Principal, Statement, StoredToken, ledger};
use chipbound_wire::api::{AccountRole, Balance, Scope, TokenInfo};
use chipbound_wire::{AccountId, Amount, Code, Digest, Refusal, Result, Time};
use serde::Serialize;

fn principal(row: &dyn Row) -> Result<Principal> {
    Ok(Principal { account: AccountId(row.id("account")?), user: row.text("user")?, role: row.parsed("role")?, scopes: None })
}

fn scopes(row: &dyn Row) -> Result<Vec<Scope>> {
    row.text("scopes")?.split(' ').map(str::parse).collect()
}

/// The account of that user id; [`Code::NotFound`].
fn named(books: &dyn Tx, user: &str) -> Result<Principal> {
    let find = r#"SELECT account, "user", role FROM accounts WHERE "user" = $1"#;
    let found = first(books, find, values![user], principal)?;
    found.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no account {user:?}")))
}

/// Locks an account, for what is limited for each account.
pub(super) fn lock(tx: &dyn Tx, account: &AccountId) -> Result<()> {
    tx.lock("SELECT 1 FROM accounts WHERE account = $1 FOR UPDATE", values![account])
}

/// Carries an instruction of the operator's out, unless it was under that key: returns what the account had afterwards, then as now.
/// [`Code::IdempotencyConflict`] where the key was used for something else.
fn once(
    tx: &dyn Tx,
    account: AccountId,
    key: &str,
    parameters: &impl Serialize,
    amount: Amount,
    carry_out: impl FnOnce() -> Result<u64>,
) -> Result<Balance> {
    let text = serde_json::to_vec(parameters).map_err(|e| Refusal::new(Code::Internal, "an instruction cannot be written").because(e))?;
    let parameters = Digest::of(&text);
    lock(tx, &account)?;
    let find = "SELECT parameters, available, held FROM instructions WHERE account = $1 AND key = $2";
    let of = |minor| Amount { minor, currency: amount.currency };
    let read = |row: &dyn Row| {
        let balance = Balance { available: of(row.number("available")?), held: of(row.number("held")?) };
        Ok((Digest(row.id("parameters")?), balance))
    };
    if let Some((before, balance)) = first(tx, find, values![&account, key], read)? {
        return match before == parameters {
            true => Ok(balance),
            false => Err(Refusal::new(Code::IdempotencyConflict, format!("the key {key:?} was used for something else on this account"))),
        };
    }
    let entry = carry_out()?;
    let balance = ledger::balance(tx, account, amount.currency)?;
    let insert = "INSERT INTO instructions (account, key, parameters, entry, available, held) VALUES ($1, $2, $3, $4, $5, $6)";
    let (available, held) = (signed(balance.available.minor)?, signed(balance.held.minor)?);
    tx.put(insert, values![&account, key, &parameters, signed(entry)?, available, held])?;
    Ok(balance)
}

impl Accounts for Books {
    async fn add_account(&self, new: &NewAccount) -> Result<()> {
        let new = new.clone();
        let insert =
            r#"INSERT INTO accounts (account, "user", role, password, created_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"#;
        let add = move |tx: &dyn Tx| {
            let values = values![&new.account, &new.user, new.role.as_str(), &new.password, signed(new.created_at.0)?];
            match tx.execute(insert, values)? {
                1 => Ok(()),
                _ => Err(Refusal::new(Code::Conflict, format!("there is an account {:?} already", new.user))),
            }
        };
        self.write(add).await
    }

    async fn accounts(&self, after: &str, most: u32) -> Result<Vec<Principal>> {
        let list = r#"SELECT account, "user", role FROM accounts WHERE "user" > $1 ORDER BY "user" LIMIT $2"#;
        let after = after.to_owned();
        self.read_long(move |books: &dyn Tx| all(books, list, values![&after, most], principal)).await
    }

    async fn credentials(&self, user: &str) -> Result<Option<Credentials>> {
        let user = user.to_owned();
        let find = r#"SELECT account, password FROM accounts WHERE "user" = $1"#;
        let read = |row: &dyn Row| Ok(Credentials { account: AccountId(row.id("account")?), password: row.text("password")? });
        self.read(move |books: &dyn Tx| first(books, find, values![&user], read)).await
    }

    async fn open_session(&self, account: AccountId, token: Digest, expires_at: Time, most: u32) -> Result<()> {
        let open = move |tx: &dyn Tx| {
            let insert = "INSERT INTO sessions (token, account, expires_at) VALUES ($1, $2, $3)";
            tx.put(insert, values![&token, &account, signed(expires_at.0)?])?;
            tx.put(
                "DELETE FROM sessions WHERE account = $1 AND token <> $2 AND token NOT IN
                 (SELECT token FROM sessions WHERE account = $1 ORDER BY expires_at DESC LIMIT $3)",
                values![&account, &token, most],
            )?;
            Ok(())
        };
        self.write(open).await
    }

    async fn session(&self, token: Digest, now: Time) -> Result<Option<Principal>> {
        let find = r#"SELECT account, "user", role FROM sessions JOIN accounts USING (account) WHERE token = $1 AND expires_at >= $2"#;
        let now = signed(now.0)?;
        self.read(move |books: &dyn Tx| first(books, find, values![&token, now], principal)).await
    }

    async fn close_session(&self, token: Digest) -> Result<()> {
        self.write(move |tx: &dyn Tx| tx.put("DELETE FROM sessions WHERE token = $1", values![&token])).await
    }

    async fn shut_out(&self, user: &str) -> Result<()> {
        let user = user.to_owned();
        let shut_out = move |tx: &dyn Tx| {
            let account = named(tx, &user)?.account;
            tx.put("DELETE FROM sessions WHERE account = $1", values![&account])?;
            tx.put("DELETE FROM tokens WHERE account = $1", values![&account])
        };
        self.write(shut_out).await
    }

    async fn add_token(&self, new: &StoredToken, most: u32) -> Result<()> {
        let new = new.clone();
        let add = move |tx: &dyn Tx| {
            lock(tx, &new.account)?;
            if number(tx, "SELECT count(*) AS n FROM tokens WHERE account = $1", values![&new.account])? >= u64::from(most) {
                return Err(Refusal::new(Code::RateLimited, format!("the account has {most} API tokens already: revoke one")));
            }
            let info = &new.info;
            let scopes = info.scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" ");
            let insert = "INSERT INTO tokens (token, account, name, scopes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
                          ON CONFLICT DO NOTHING";
            let times = (signed(info.created_at.0)?, signed(info.expires_at.0)?);
            match tx.execute(insert, values![&new.token, &new.account, &info.name, &scopes, times.0, times.1])? {
                1 => Ok(()),
                _ => Err(Refusal::new(Code::Conflict, format!("the account has an API token {:?} already", info.name))),
            }
        };
        self.write(add).await
    }

    async fn tokens(&self, account: AccountId) -> Result<Vec<TokenInfo>> {
        let list = "SELECT * FROM tokens WHERE account = $1 ORDER BY name";
        let read = |row: &dyn Row| {
            Ok(TokenInfo {
                name: row.text("name")?,
                scopes: scopes(row)?,
                created_at: Time(row.number("created_at")?),
                expires_at: Time(row.number("expires_at")?),
            })
        };
        self.read(move |books: &dyn Tx| all(books, list, values![&account], read)).await
    }

    async fn revoke_token(&self, account: AccountId, name: &str) -> Result<()> {
        let name = name.to_owned();
        let revoke = move |tx: &dyn Tx| match tx.execute("DELETE FROM tokens WHERE account = $1 AND name = $2", values![&account, &name])? {
            1 => Ok(()),
            _ => Err(Refusal::new(Code::NotFound, format!("the account has no API token {name:?}"))),
        };
        self.write(revoke).await
    }

    async fn token(&self, token: Digest, now: Time) -> Result<Option<Principal>> {
        let find =
            r#"SELECT account, "user", role, scopes FROM tokens JOIN accounts USING (account) WHERE token = $1 AND expires_at >= $2"#;
        let now = signed(now.0)?;
        let read = |row: &dyn Row| Ok(Principal { scopes: Some(scopes(row)?), ..principal(row)? });
        self.read(move |books: &dyn Tx| first(books, find, values![&token, now], read)).await
    }

    async fn deposit(&self, user: &str, amount: Amount, key: &str, at: Time) -> Result<Balance> {
        let (user, key) = (user.to_owned(), key.to_owned());
        let deposit = move |tx: &dyn Tx| {
            let account = named(tx, &user)?.account;
            once(tx, account, &key, &("deposit", amount, ""), amount, || ledger::deposit(tx, account, amount, at))
        };
        self.write(deposit).await
    }

    async fn payout(&self, user: &str, amount: Amount, note: &str, key: &str, at: Time) -> Result<Balance> {
        let (user, note, key) = (user.to_owned(), note.to_owned(), key.to_owned());
        let payout = move |tx: &dyn Tx| {
            let Principal { account, role, .. } = named(tx, &user)?;
            let book = if role == AccountRole::Vendor { "revenue" } else { "funds" };
            once(tx, account, &key, &("payout", amount, &note), amount, || ledger::payout(tx, account, book, amount, &note, at))
        };
        self.write(payout).await
    }

    async fn books_of(&self, account: AccountId) -> Result<Vec<BookBalance>> {
        self.read(move |books: &dyn Tx| ledger::books_of(books, account)).await
    }

    async fn statement(&self, user: &str, from: Time, until: Time) -> Result<Statement> {
        let user = user.to_owned();
        let query = move |books: &dyn Tx| ledger::statement(books, named(books, &user)?.account, from, until);
        self.read_long(query).await
    }

    async fn user_of(&self, account: AccountId) -> Result<Option<String>> {
        let find = r#"SELECT "user" FROM accounts WHERE account = $1"#;
        self.read(move |books: &dyn Tx| first(books, find, values![&account], |row| row.text("user"))).await
    }

    async fn balances(&self, account: AccountId) -> Result<Vec<Balance>> {
        self.read(move |books: &dyn Tx| ledger::balances(books, account)).await
    }
}
