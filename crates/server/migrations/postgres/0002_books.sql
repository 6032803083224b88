-- The form of SQLite's second migration, under its number. Ids and digests are BYTEA, times are seconds since 1970 UTC, amounts are
-- minor units of their currency.

CREATE TABLE accounts (
    account    BYTEA PRIMARY KEY CHECK (length(account) = 16),
    "user"     TEXT COLLATE "C" NOT NULL UNIQUE,
    role       TEXT NOT NULL CHECK (role IN ('customer', 'vendor')),
    password   TEXT NOT NULL, -- PHC string of Argon2id
    created_at BIGINT NOT NULL
);

CREATE TABLE sessions (
    token      BYTEA PRIMARY KEY CHECK (length(token) = 32), -- digest of the bearer token
    account    BYTEA NOT NULL REFERENCES accounts,
    expires_at BIGINT NOT NULL
);
CREATE INDEX sessions_of_an_account ON sessions (account);

CREATE TABLE releases (
    manifest        BYTEA PRIMARY KEY CHECK (length(manifest) = 32), -- digest of the signed manifest
    program         TEXT COLLATE "C" NOT NULL,
    name            TEXT NOT NULL, -- of the program, after its slash
    version         TEXT NOT NULL,
    sequence        BIGINT NOT NULL,
    vendor          BYTEA NOT NULL REFERENCES accounts,
    price           BIGINT NOT NULL CHECK (price >= 0),
    currency        TEXT NOT NULL CHECK (length(currency) = 3),
    signed_manifest BYTEA NOT NULL,
    layout          BYTEA NOT NULL,
    plain_digest    BYTEA NOT NULL CHECK (length(plain_digest) = 32),
    sealed_bytes    BIGINT NOT NULL,
    blob            TEXT NOT NULL UNIQUE,
    published_at    BIGINT NOT NULL,
    UNIQUE (program, version),
    UNIQUE (program, sequence)
);
CREATE INDEX releases_by_name ON releases (name);

CREATE TABLE uploads (
    upload          TEXT PRIMARY KEY,
    account         BYTEA NOT NULL REFERENCES accounts,
    signed_manifest BYTEA NOT NULL,
    price           BIGINT NOT NULL CHECK (price >= 0),
    currency        TEXT NOT NULL CHECK (length(currency) = 3),
    expires_at      BIGINT NOT NULL
);
CREATE INDEX uploads_of_an_account ON uploads (account);

-- Common key mode: one content key and one ciphertext for a release and an AEAD; the format is the release's.
CREATE TABLE common_packages (
    manifest    BYTEA NOT NULL REFERENCES releases,
    aead        TEXT NOT NULL,
    package_id  BYTEA NOT NULL UNIQUE CHECK (length(package_id) = 32),
    content_key BYTEA NOT NULL, -- sealed at rest
    blob        TEXT NOT NULL UNIQUE,
    body_root   BYTEA NOT NULL CHECK (length(body_root) = 32),
    body_size   BIGINT NOT NULL,
    table_root  BYTEA NOT NULL CHECK (length(table_root) = 32),
    table_size  BIGINT NOT NULL,
    PRIMARY KEY (manifest, aead)
);

CREATE TABLE orders (
    order_id         BYTEA PRIMARY KEY CHECK (length(order_id) = 16),
    account          BYTEA NOT NULL REFERENCES accounts,
    manifest         BYTEA NOT NULL REFERENCES releases,
    processor        BYTEA NOT NULL CHECK (length(processor) = 32),
    key_mode         TEXT NOT NULL,
    price            BIGINT NOT NULL CHECK (price >= 0),
    currency         TEXT NOT NULL CHECK (length(currency) = 3),
    state            TEXT NOT NULL CHECK (state IN ('confirmed', 'authorised', 'settled', 'expired')),
    confirmation     BYTEA NOT NULL,
    idempotency_key  TEXT NOT NULL,
    parameters       BYTEA NOT NULL CHECK (length(parameters) = 32),
    issued_at        BIGINT NOT NULL,
    expires_at       BIGINT NOT NULL,
    redownload_until BIGINT NOT NULL,
    readmitted_until BIGINT NOT NULL DEFAULT 0, -- a receipt was shown: tickets for a settled order until then
    UNIQUE (account, idempotency_key)
);
CREATE INDEX orders_not_agreed_to ON orders (account) WHERE state = 'confirmed';
CREATE INDEX orders_that_run_out ON orders (expires_at) WHERE state IN ('confirmed', 'authorised');

CREATE TABLE tickets (
    ticket     BYTEA PRIMARY KEY CHECK (length(ticket) = 32), -- digest
    order_id   BYTEA NOT NULL REFERENCES orders,
    account    BYTEA NOT NULL REFERENCES accounts,
    expires_at BIGINT NOT NULL
);
CREATE INDEX tickets_of_an_order ON tickets (order_id);

-- One row for each package that was sent whole.
CREATE TABLE deliveries (
    terms_digest    BYTEA PRIMARY KEY CHECK (length(terms_digest) = 32),
    order_id        BYTEA NOT NULL REFERENCES orders,
    terms           BYTEA NOT NULL,
    wrap            BYTEA NOT NULL,
    kem             TEXT NOT NULL,
    sealing_key     BYTEA NOT NULL, -- the processor's, certified, to which the wrap went
    release_secret  BYTEA NOT NULL, -- sealed at rest
    seal            BYTEA NOT NULL,
    seal_digest     BYTEA NOT NULL UNIQUE CHECK (length(seal_digest) = 32),
    acknowledgement BYTEA,
    token           BYTEA,
    created_at      BIGINT NOT NULL,
    CHECK ((acknowledgement IS NULL) = (token IS NULL))
);
CREATE INDEX deliveries_of_an_order ON deliveries (order_id);

CREATE TABLE receipts (
    number   BIGINT PRIMARY KEY CHECK (number > 0),
    order_id BYTEA NOT NULL UNIQUE REFERENCES orders,
    account  BYTEA NOT NULL REFERENCES accounts,
    receipt  BYTEA NOT NULL
);
CREATE INDEX receipts_of_an_account ON receipts (account);
CREATE FUNCTION receipts_are_gapless() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM receipts) THEN
        RAISE EXCEPTION 'receipt numbers have no gaps';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER receipts_are_gapless BEFORE INSERT ON receipts FOR EACH ROW EXECUTE FUNCTION receipts_are_gapless();

-- The ledger: double entry, append only. The postings of an entry are written first, then the entry, which is refused unless
-- they sum to zero in each currency and leave no customer below zero. What a customer has, positive: funds (free) and held.
-- What came in from outside, negative: deposits. What vendors earned, positive: revenue.
CREATE SEQUENCE entry_numbers;
CREATE TABLE entries (
    entry    BIGINT PRIMARY KEY CHECK (entry > 0),
    kind     TEXT NOT NULL CHECK (kind IN ('deposit', 'hold', 'capture', 'release')),
    order_id BYTEA REFERENCES orders,
    at       BIGINT NOT NULL,
    CHECK ((kind = 'deposit') = (order_id IS NULL))
);
CREATE UNIQUE INDEX an_order_is_held_once ON entries (order_id) WHERE kind = 'hold';
CREATE UNIQUE INDEX a_hold_ends_once ON entries (order_id) WHERE kind IN ('capture', 'release');

CREATE TABLE postings (
    entry    BIGINT NOT NULL REFERENCES entries DEFERRABLE INITIALLY DEFERRED,
    book     TEXT NOT NULL CHECK (book IN ('deposits', 'funds', 'held', 'revenue')),
    account  BYTEA NOT NULL REFERENCES accounts,
    currency TEXT NOT NULL CHECK (length(currency) = 3),
    minor    BIGINT NOT NULL,
    PRIMARY KEY (entry, book, account, currency)
);

-- What the postings of a book come to, kept as they are written.
CREATE TABLE balances (
    account  BYTEA NOT NULL REFERENCES accounts,
    book     TEXT NOT NULL,
    currency TEXT COLLATE "C" NOT NULL,
    minor    BIGINT NOT NULL,
    PRIMARY KEY (account, book, currency)
);

CREATE FUNCTION postings_make_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO balances VALUES (NEW.account, NEW.book, NEW.currency, NEW.minor)
    ON CONFLICT (account, book, currency) DO UPDATE SET minor = balances.minor + excluded.minor;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_make_balances AFTER INSERT ON postings FOR EACH ROW EXECUTE FUNCTION postings_make_balances();

CREATE FUNCTION entries_are_right() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry)
       OR EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry GROUP BY currency HAVING sum(minor) <> 0) THEN
        RAISE EXCEPTION 'an entry sums to zero in each currency';
    END IF;
    IF EXISTS (SELECT 1 FROM postings p JOIN balances b USING (account, book, currency)
               WHERE p.entry = NEW.entry AND p.book IN ('funds', 'held') AND b.minor < 0) THEN
        RAISE EXCEPTION 'no balance falls below zero';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER entries_are_right BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION entries_are_right();

CREATE FUNCTION postings_precede_their_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM entries WHERE entry = NEW.entry) THEN
        RAISE EXCEPTION 'an entry is closed once it is written';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER postings_precede_their_entry BEFORE INSERT ON postings FOR EACH ROW EXECUTE FUNCTION postings_precede_their_entry();

CREATE FUNCTION the_ledger_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger only grows';
END $$;
CREATE TRIGGER entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON entries EXECUTE FUNCTION the_ledger_only_grows();
CREATE TRIGGER postings_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON postings EXECUTE FUNCTION the_ledger_only_grows();
CREATE TRIGGER balances_are_kept BEFORE DELETE OR TRUNCATE ON balances EXECUTE FUNCTION the_ledger_only_grows();
