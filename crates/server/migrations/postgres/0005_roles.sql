-- Operators and auditors; API tokens; orders are listed.

ALTER TABLE accounts DROP CONSTRAINT accounts_role_check;
ALTER TABLE accounts ADD CONSTRAINT accounts_role_check CHECK (role IN ('customer', 'vendor', 'operator', 'auditor'));

CREATE TABLE tokens (
    token      BYTEA PRIMARY KEY CHECK (length(token) = 32), -- digest of the bearer token
    account    BYTEA NOT NULL REFERENCES accounts,
    name       TEXT COLLATE "C" NOT NULL,
    scopes     TEXT NOT NULL, -- with spaces between
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    UNIQUE (account, name)
);

CREATE INDEX orders_of_an_account ON orders (account, issued_at, order_id);
