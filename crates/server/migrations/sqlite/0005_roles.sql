-- Operators and auditors; API tokens; orders are listed. SQLite changes no constraint of a table that is there: the accounts are
-- written anew under the same ids, and what refers to them is compared when this is committed.

PRAGMA defer_foreign_keys = ON;
CREATE TEMP TABLE kept AS SELECT * FROM accounts;
DROP TABLE accounts;
CREATE TABLE accounts (
    account    BLOB PRIMARY KEY CHECK (length(account) = 16),
    user       TEXT NOT NULL UNIQUE,
    role       TEXT NOT NULL CHECK (role IN ('customer', 'vendor', 'operator', 'auditor')),
    password   TEXT NOT NULL, -- PHC string of Argon2id
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO accounts SELECT account, user, role, password, created_at FROM kept;
DROP TABLE kept;

CREATE TABLE tokens (
    token      BLOB PRIMARY KEY CHECK (length(token) = 32), -- digest of the bearer token
    account    BLOB NOT NULL REFERENCES accounts,
    name       TEXT NOT NULL,
    scopes     TEXT NOT NULL, -- with spaces between
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (account, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX orders_of_an_account ON orders (account, issued_at, order_id);
