-- Orders as a whole state machine, receipts numbered by each seller, refunds, payouts, shares and taxes. SQLite changes no constraint of
-- a table that is there: tables are written anew under the same ids, and what refers to them is compared when this is committed.

PRAGMA defer_foreign_keys = ON;
DROP TRIGGER receipts_are_gapless;
DROP TRIGGER entries_sum_to_zero;
DROP TRIGGER balances_stay_above_zero;
DROP TRIGGER postings_precede_their_entry;
DROP TRIGGER entries_are_kept;
DROP TRIGGER entries_stay;
DROP TRIGGER postings_are_kept;
DROP TRIGGER postings_stay;
DROP TRIGGER postings_make_balances;

CREATE TEMP TABLE kept AS SELECT * FROM orders;
DROP TABLE orders;
CREATE TABLE orders (
    order_id         BLOB PRIMARY KEY CHECK (length(order_id) = 16),
    account          BLOB NOT NULL REFERENCES accounts,
    manifest         BLOB NOT NULL REFERENCES releases,
    seller           BLOB NOT NULL REFERENCES accounts, -- the vendor's account, which earns the price
    processor        BLOB NOT NULL CHECK (length(processor) = 32),
    key_mode         TEXT NOT NULL,
    price            INTEGER NOT NULL CHECK (price >= 0),
    currency         TEXT NOT NULL CHECK (length(currency) = 3),
    state            TEXT NOT NULL CHECK (state IN ('confirmed', 'authorised', 'delivering', 'acknowledged', 'capture-requested',
                                                    'captured', 'released', 'cancelled', 'expired', 'refunded')),
    confirmation     BLOB NOT NULL,
    idempotency_key  TEXT NOT NULL,
    parameters       BLOB NOT NULL CHECK (length(parameters) = 32),
    issued_at        INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    redownload_until INTEGER NOT NULL,
    readmitted_until INTEGER NOT NULL DEFAULT 0, -- a receipt was shown: tickets for a paid order until then
    holds            INTEGER NOT NULL DEFAULT 0 CHECK (holds >= 0), -- how often the price was held
    seal_digest      BLOB CHECK (length(seal_digest) = 32), -- the delivery that was acknowledged first, and what was said of it
    acknowledgement  BLOB,
    capture_key      TEXT, -- under which the provider is asked to take the price; written before it is asked
    UNIQUE (account, idempotency_key),
    CHECK ((seal_digest IS NULL) = (acknowledgement IS NULL)),
    CHECK (capture_key IS NOT NULL OR state <> 'capture-requested'),
    CHECK (seal_digest IS NOT NULL OR state NOT IN ('acknowledged', 'capture-requested'))
) STRICT;
INSERT INTO orders (order_id, account, manifest, seller, processor, key_mode, price, currency, state, confirmation, idempotency_key,
    parameters, issued_at, expires_at, redownload_until, readmitted_until, holds)
SELECT k.order_id, k.account, k.manifest, r.vendor, k.processor, k.key_mode, k.price, k.currency,
    CASE WHEN k.state = 'settled' THEN 'released'
         WHEN k.state = 'authorised' AND EXISTS (SELECT 1 FROM deliveries d WHERE d.order_id = k.order_id) THEN 'delivering'
         ELSE k.state END,
    k.confirmation, k.idempotency_key,
    k.parameters, k.issued_at, k.expires_at, k.redownload_until, k.readmitted_until,
    (SELECT count(*) FROM entries e WHERE e.order_id = k.order_id AND e.kind = 'hold')
FROM kept k JOIN releases r USING (manifest);
DROP TABLE kept;
CREATE INDEX orders_of_an_account ON orders (account, issued_at, order_id);
CREATE INDEX orders_not_agreed_to ON orders (account) WHERE state = 'confirmed';
CREATE INDEX orders_that_run_out ON orders (expires_at) WHERE state IN ('confirmed', 'authorised', 'delivering');
CREATE INDEX orders_to_be_captured ON orders (order_id) WHERE state IN ('acknowledged', 'capture-requested');

-- Receipts are numbered by each seller without a gap. The first ones were numbered by the server: they are the series of nobody.
CREATE TABLE sellers (
    seller   BLOB PRIMARY KEY CHECK (length(seller) = 16),
    receipts INTEGER NOT NULL CHECK (receipts >= 0)
) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE kept AS SELECT * FROM receipts;
DROP TABLE receipts;
CREATE TABLE receipts (
    seller    BLOB NOT NULL REFERENCES sellers,
    number    INTEGER NOT NULL CHECK (number > 0),
    order_id  BLOB NOT NULL UNIQUE REFERENCES orders,
    account   BLOB NOT NULL REFERENCES accounts,
    receipt   BLOB NOT NULL,
    issued_at INTEGER NOT NULL DEFAULT 0,
    log_index INTEGER, -- its place in the log; the first receipts are in none
    PRIMARY KEY (seller, number)
) STRICT;
INSERT INTO sellers SELECT zeroblob(16), count(*) FROM kept HAVING count(*) > 0;
INSERT INTO receipts (seller, number, order_id, account, receipt, issued_at, log_index)
SELECT zeroblob(16), number, order_id, account, receipt,
    (SELECT e.at FROM entries e WHERE e.order_id = kept.order_id AND e.kind = 'capture'), log_index
FROM kept ORDER BY number;
DROP TABLE kept;
CREATE INDEX receipts_of_an_account ON receipts (account, issued_at, order_id);
CREATE TRIGGER receipts_are_gapless BEFORE INSERT ON receipts
WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM receipts WHERE seller = NEW.seller)
BEGIN SELECT RAISE(ABORT, 'receipt numbers have no gaps'); END;
CREATE TRIGGER receipts_are_kept BEFORE DELETE ON receipts BEGIN SELECT RAISE(ABORT, 'a receipt is kept'); END;
CREATE TRIGGER receipts_stay BEFORE UPDATE ON receipts BEGIN SELECT RAISE(ABORT, 'a receipt is kept'); END;

-- The ledger: double entry, append only. The postings of an entry are written first, then the entry, which is refused unless
-- they sum to zero in each currency and leave no customer below zero.
--   deposits   what came in from outside and did not go out again, negative
--   card       what a card provider owes for it, negative
--   funds      what a customer is free to spend
--   held       what is held of it for orders
--   revenue    what a vendor earned and was not paid yet
--   tax        the taxes contained in what a vendor sold
--   fees       the house's share of what a vendor sold
-- A hold ends once, by a release or a capture; an order may be held again after a release. It is captured once and refunded once.
CREATE TEMP TABLE kept AS SELECT * FROM entries;
DROP TABLE entries;
CREATE TABLE entries (
    entry    INTEGER PRIMARY KEY CHECK (entry > 0),
    kind     TEXT NOT NULL CHECK (kind IN ('deposit', 'payout', 'hold', 'release', 'capture', 'refund')),
    order_id BLOB REFERENCES orders,
    round    INTEGER NOT NULL DEFAULT 0 CHECK (round >= 0), -- which hold of the order it is or ends
    at       INTEGER NOT NULL,
    note     TEXT NOT NULL DEFAULT '',
    CHECK ((kind IN ('deposit', 'payout')) = (order_id IS NULL)),
    CHECK ((kind IN ('hold', 'release', 'capture')) = (round > 0))
) STRICT;
INSERT INTO entries SELECT entry, kind, order_id, CASE WHEN kind IN ('hold', 'release', 'capture') THEN 1 ELSE 0 END, at, '' FROM kept;
DROP TABLE kept;
CREATE UNIQUE INDEX a_round_is_held_once ON entries (order_id, round) WHERE kind = 'hold';
CREATE UNIQUE INDEX a_hold_ends_once ON entries (order_id, round) WHERE kind IN ('capture', 'release');
CREATE UNIQUE INDEX an_order_is_captured_once ON entries (order_id) WHERE kind = 'capture';
CREATE UNIQUE INDEX an_order_is_refunded_once ON entries (order_id) WHERE kind = 'refund';

CREATE TEMP TABLE kept AS SELECT * FROM postings;
DROP TABLE postings;
CREATE TABLE postings (
    entry    INTEGER NOT NULL REFERENCES entries DEFERRABLE INITIALLY DEFERRED,
    book     TEXT NOT NULL CHECK (book IN ('deposits', 'card', 'funds', 'held', 'revenue', 'tax', 'fees')),
    account  BLOB NOT NULL REFERENCES accounts,
    currency TEXT NOT NULL CHECK (length(currency) = 3),
    minor    INTEGER NOT NULL,
    PRIMARY KEY (entry, book, account, currency)
) STRICT, WITHOUT ROWID;
INSERT INTO postings SELECT entry, book, account, currency, minor FROM kept;
DROP TABLE kept;
CREATE INDEX postings_of_an_account ON postings (account, entry);

CREATE TRIGGER postings_make_balances AFTER INSERT ON postings
BEGIN
    INSERT INTO balances VALUES (NEW.account, NEW.book, NEW.currency, NEW.minor)
    ON CONFLICT (account, book, currency) DO UPDATE SET minor = minor + excluded.minor;
END;
CREATE TRIGGER entries_sum_to_zero BEFORE INSERT ON entries
WHEN NOT EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry)
  OR EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry GROUP BY currency HAVING sum(minor) <> 0)
BEGIN SELECT RAISE(ABORT, 'an entry sums to zero in each currency'); END;
-- A refund may leave a vendor below zero who was paid already; a payout may not.
CREATE TRIGGER balances_stay_above_zero BEFORE INSERT ON entries
WHEN EXISTS (
    SELECT 1 FROM postings p JOIN balances b USING (account, book, currency)
    WHERE p.entry = NEW.entry AND b.minor < 0 AND (p.book IN ('funds', 'held') OR (p.book = 'revenue' AND NEW.kind = 'payout')))
BEGIN SELECT RAISE(ABORT, 'no balance falls below zero'); END;
CREATE TRIGGER postings_precede_their_entry BEFORE INSERT ON postings
WHEN EXISTS (SELECT 1 FROM entries WHERE entry = NEW.entry)
BEGIN SELECT RAISE(ABORT, 'an entry is closed once it is written'); END;
CREATE TRIGGER entries_are_kept BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER postings_are_kept BEFORE DELETE ON postings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER postings_stay BEFORE UPDATE ON postings BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
