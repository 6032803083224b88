-- Ids and digests are BLOBs, times are seconds since 1970 UTC, amounts are minor units of their currency.

CREATE TABLE accounts (
    account    BLOB PRIMARY KEY CHECK (length(account) = 16),
    user       TEXT NOT NULL UNIQUE,
    role       TEXT NOT NULL CHECK (role IN ('customer', 'vendor')),
    password   TEXT NOT NULL, -- PHC string of Argon2id
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    token      BLOB PRIMARY KEY CHECK (length(token) = 32), -- digest of the bearer token
    account    BLOB NOT NULL REFERENCES accounts,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE releases (
    manifest        BLOB PRIMARY KEY CHECK (length(manifest) = 32), -- digest of the signed manifest
    program         TEXT NOT NULL,
    name            TEXT NOT NULL, -- of the program, after its slash
    version         TEXT NOT NULL,
    sequence        INTEGER NOT NULL,
    vendor          BLOB NOT NULL REFERENCES accounts,
    price           INTEGER NOT NULL CHECK (price >= 0),
    currency        TEXT NOT NULL CHECK (length(currency) = 3),
    signed_manifest BLOB NOT NULL,
    layout          BLOB NOT NULL,
    plain_digest    BLOB NOT NULL CHECK (length(plain_digest) = 32),
    sealed_bytes    INTEGER NOT NULL,
    blob            TEXT NOT NULL UNIQUE,
    published_at    INTEGER NOT NULL,
    UNIQUE (program, version),
    UNIQUE (program, sequence)
) STRICT;
CREATE INDEX releases_by_name ON releases (name);

CREATE TABLE uploads (
    upload          TEXT PRIMARY KEY,
    account         BLOB NOT NULL REFERENCES accounts,
    signed_manifest BLOB NOT NULL,
    price           INTEGER NOT NULL CHECK (price >= 0),
    currency        TEXT NOT NULL CHECK (length(currency) = 3),
    expires_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX uploads_of_an_account ON uploads (account);

-- Common key mode: one content key and one ciphertext for a release and an AEAD; the format is the release's.
CREATE TABLE common_packages (
    manifest       BLOB NOT NULL REFERENCES releases,
    aead           TEXT NOT NULL,
    package_id     BLOB NOT NULL UNIQUE CHECK (length(package_id) = 32),
    content_key    BLOB NOT NULL, -- sealed at rest
    blob           TEXT NOT NULL UNIQUE,
    body_root      BLOB NOT NULL CHECK (length(body_root) = 32),
    body_size      INTEGER NOT NULL,
    table_root     BLOB NOT NULL CHECK (length(table_root) = 32),
    table_size     INTEGER NOT NULL,
    PRIMARY KEY (manifest, aead)
) STRICT, WITHOUT ROWID;

CREATE TABLE orders (
    order_id         BLOB PRIMARY KEY CHECK (length(order_id) = 16),
    account          BLOB NOT NULL REFERENCES accounts,
    manifest         BLOB NOT NULL REFERENCES releases,
    processor        BLOB NOT NULL CHECK (length(processor) = 32),
    key_mode         TEXT NOT NULL,
    price            INTEGER NOT NULL CHECK (price >= 0),
    currency         TEXT NOT NULL CHECK (length(currency) = 3),
    state            TEXT NOT NULL CHECK (state IN ('confirmed', 'authorised', 'settled', 'expired')),
    confirmation     BLOB NOT NULL,
    idempotency_key  TEXT NOT NULL,
    parameters       BLOB NOT NULL CHECK (length(parameters) = 32),
    issued_at        INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    redownload_until INTEGER NOT NULL,
    readmitted_until INTEGER NOT NULL DEFAULT 0, -- a receipt was shown: tickets for a settled order until then
    UNIQUE (account, idempotency_key)
) STRICT;
CREATE INDEX orders_not_agreed_to ON orders (account) WHERE state = 'confirmed';
CREATE INDEX orders_that_run_out ON orders (expires_at) WHERE state IN ('confirmed', 'authorised');

CREATE TABLE tickets (
    ticket     BLOB PRIMARY KEY CHECK (length(ticket) = 32), -- digest
    order_id   BLOB NOT NULL REFERENCES orders,
    account    BLOB NOT NULL REFERENCES accounts,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tickets_of_an_order ON tickets (order_id);

-- One row for each package that was sent whole.
CREATE TABLE deliveries (
    terms_digest    BLOB PRIMARY KEY CHECK (length(terms_digest) = 32),
    order_id        BLOB NOT NULL REFERENCES orders,
    terms           BLOB NOT NULL,
    wrap            BLOB NOT NULL,
    kem             TEXT NOT NULL,
    sealing_key     BLOB NOT NULL, -- the processor's, certified, to which the wrap went
    release_secret  BLOB NOT NULL, -- sealed at rest
    seal            BLOB NOT NULL,
    seal_digest     BLOB NOT NULL UNIQUE CHECK (length(seal_digest) = 32),
    acknowledgement BLOB,
    token           BLOB,
    created_at      INTEGER NOT NULL,
    CHECK ((acknowledgement IS NULL) = (token IS NULL))
) STRICT;
CREATE INDEX deliveries_of_an_order ON deliveries (order_id);

CREATE TABLE receipts (
    number   INTEGER PRIMARY KEY CHECK (number > 0),
    order_id BLOB NOT NULL UNIQUE REFERENCES orders,
    account  BLOB NOT NULL REFERENCES accounts,
    receipt  BLOB NOT NULL
) STRICT;
CREATE INDEX receipts_of_an_account ON receipts (account);
CREATE TRIGGER receipts_are_gapless BEFORE INSERT ON receipts
WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM receipts)
BEGIN SELECT RAISE(ABORT, 'receipt numbers have no gaps'); END;

-- The ledger: double entry, append only. The postings of an entry are written first, then the entry, which is refused unless
-- they sum to zero in each currency and leave no customer below zero. What a customer has, positive: funds (free) and held.
-- What came in from outside, negative: deposits. What vendors earned, positive: revenue.
CREATE TABLE entries (
    entry    INTEGER PRIMARY KEY CHECK (entry > 0),
    kind     TEXT NOT NULL CHECK (kind IN ('deposit', 'hold', 'capture', 'release')),
    order_id BLOB REFERENCES orders,
    at       INTEGER NOT NULL,
    CHECK ((kind = 'deposit') = (order_id IS NULL))
) STRICT;
CREATE UNIQUE INDEX an_order_is_held_once ON entries (order_id) WHERE kind = 'hold';
CREATE UNIQUE INDEX a_hold_ends_once ON entries (order_id) WHERE kind IN ('capture', 'release');

CREATE TABLE postings (
    entry    INTEGER NOT NULL REFERENCES entries DEFERRABLE INITIALLY DEFERRED,
    book     TEXT NOT NULL CHECK (book IN ('deposits', 'funds', 'held', 'revenue')),
    account  BLOB NOT NULL REFERENCES accounts,
    currency TEXT NOT NULL CHECK (length(currency) = 3),
    minor    INTEGER NOT NULL,
    PRIMARY KEY (entry, book, account, currency)
) STRICT, WITHOUT ROWID;
CREATE INDEX postings_of_a_book ON postings (account, book, currency, minor);

CREATE TRIGGER entries_sum_to_zero BEFORE INSERT ON entries
WHEN NOT EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry)
  OR EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry GROUP BY currency HAVING sum(minor) <> 0)
BEGIN SELECT RAISE(ABORT, 'an entry sums to zero in each currency'); END;

CREATE TRIGGER balances_stay_above_zero BEFORE INSERT ON entries
WHEN EXISTS (
    SELECT 1 FROM (SELECT DISTINCT account, book, currency FROM postings WHERE entry = NEW.entry AND book IN ('funds', 'held')) touched
    WHERE (SELECT sum(p.minor) FROM postings p
           WHERE p.account = touched.account AND p.book = touched.book AND p.currency = touched.currency) < 0)
BEGIN SELECT RAISE(ABORT, 'no balance falls below zero'); END;

CREATE TRIGGER postings_precede_their_entry BEFORE INSERT ON postings
WHEN EXISTS (SELECT 1 FROM entries WHERE entry = NEW.entry)
BEGIN SELECT RAISE(ABORT, 'an entry is closed once it is written'); END;

CREATE TRIGGER entries_are_kept BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER postings_are_kept BEFORE DELETE ON postings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER postings_stay BEFORE UPDATE ON postings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
