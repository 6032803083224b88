-- The form of SQLite's migration of this number; what the tables mean is said there.

ALTER TABLE orders DROP CONSTRAINT orders_state_check;
ALTER TABLE orders
    ADD COLUMN seller          BYTEA REFERENCES accounts,
    ADD COLUMN holds           BIGINT NOT NULL DEFAULT 0 CHECK (holds >= 0),
    ADD COLUMN seal_digest     BYTEA CHECK (length(seal_digest) = 32),
    ADD COLUMN acknowledgement BYTEA,
    ADD COLUMN capture_key     TEXT;
UPDATE orders o SET
    state = CASE WHEN o.state = 'settled' THEN 'released'
                 WHEN o.state = 'authorised' AND EXISTS (SELECT 1 FROM deliveries d WHERE d.order_id = o.order_id) THEN 'delivering'
                 ELSE o.state END,
    seller = (SELECT vendor FROM releases r WHERE r.manifest = o.manifest),
    holds = (SELECT count(*) FROM entries e WHERE e.order_id = o.order_id AND e.kind = 'hold');
ALTER TABLE orders
    ALTER COLUMN seller SET NOT NULL,
    ADD CONSTRAINT orders_state_check CHECK (state IN ('confirmed', 'authorised', 'delivering', 'acknowledged', 'capture-requested',
                                                       'captured', 'released', 'cancelled', 'expired', 'refunded')),
    ADD CHECK ((seal_digest IS NULL) = (acknowledgement IS NULL)),
    ADD CHECK (capture_key IS NOT NULL OR state <> 'capture-requested'),
    ADD CHECK (seal_digest IS NOT NULL OR state NOT IN ('acknowledged', 'capture-requested'));
DROP INDEX orders_that_run_out;
CREATE INDEX orders_that_run_out ON orders (expires_at) WHERE state IN ('confirmed', 'authorised', 'delivering');
CREATE INDEX orders_to_be_captured ON orders (order_id) WHERE state IN ('acknowledged', 'capture-requested');

CREATE TABLE sellers (
    seller   BYTEA PRIMARY KEY CHECK (length(seller) = 16),
    receipts BIGINT NOT NULL CHECK (receipts >= 0)
);
ALTER TABLE receipts
    DROP CONSTRAINT receipts_pkey,
    ADD COLUMN seller    BYTEA NOT NULL DEFAULT decode(repeat('00', 16), 'hex'),
    ADD COLUMN issued_at BIGINT NOT NULL DEFAULT 0;
UPDATE receipts r SET issued_at = (SELECT e.at FROM entries e WHERE e.order_id = r.order_id AND e.kind = 'capture');
INSERT INTO sellers SELECT decode(repeat('00', 16), 'hex'), count(*) FROM receipts HAVING count(*) > 0;
ALTER TABLE receipts
    ALTER COLUMN seller DROP DEFAULT,
    ADD PRIMARY KEY (seller, number),
    ADD FOREIGN KEY (seller) REFERENCES sellers;
DROP INDEX receipts_of_an_account;
CREATE INDEX receipts_of_an_account ON receipts (account, issued_at, order_id);
CREATE OR REPLACE FUNCTION receipts_are_gapless() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM receipts WHERE seller = NEW.seller) THEN
        RAISE EXCEPTION 'receipt numbers have no gaps';
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION a_receipt_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a receipt is kept';
END $$;
CREATE TRIGGER receipts_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON receipts EXECUTE FUNCTION a_receipt_is_kept();

DROP TRIGGER entries_stay ON entries;
ALTER TABLE entries
    DROP CONSTRAINT entries_kind_check,
    DROP CONSTRAINT entries_check,
    ADD COLUMN round BIGINT NOT NULL DEFAULT 0 CHECK (round >= 0),
    ADD COLUMN note TEXT NOT NULL DEFAULT '';
UPDATE entries SET round = 1 WHERE kind IN ('hold', 'release', 'capture');
ALTER TABLE entries
    ADD CHECK (kind IN ('deposit', 'payout', 'hold', 'release', 'capture', 'refund')),
    ADD CHECK ((kind IN ('deposit', 'payout')) = (order_id IS NULL)),
    ADD CHECK ((kind IN ('hold', 'release', 'capture')) = (round > 0));
DROP INDEX an_order_is_held_once;
DROP INDEX a_hold_ends_once;
CREATE UNIQUE INDEX a_round_is_held_once ON entries (order_id, round) WHERE kind = 'hold';
CREATE UNIQUE INDEX a_hold_ends_once ON entries (order_id, round) WHERE kind IN ('capture', 'release');
CREATE UNIQUE INDEX an_order_is_captured_once ON entries (order_id) WHERE kind = 'capture';
CREATE UNIQUE INDEX an_order_is_refunded_once ON entries (order_id) WHERE kind = 'refund';
ALTER TABLE postings
    DROP CONSTRAINT postings_book_check,
    ADD CHECK (book IN ('deposits', 'card', 'funds', 'held', 'revenue', 'tax', 'fees'));
CREATE INDEX postings_of_an_account ON postings (account, entry);
CREATE OR REPLACE FUNCTION entries_are_right() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry)
       OR EXISTS (SELECT 1 FROM postings WHERE entry = NEW.entry GROUP BY currency HAVING sum(minor) <> 0) THEN
        RAISE EXCEPTION 'an entry sums to zero in each currency';
    END IF;
    -- A refund may leave a vendor below zero who was paid already; a payout may not.
    IF EXISTS (SELECT 1 FROM postings p JOIN balances b USING (account, book, currency)
               WHERE p.entry = NEW.entry AND b.minor < 0
                 AND (p.book IN ('funds', 'held') OR (p.book = 'revenue' AND NEW.kind = 'payout'))) THEN
        RAISE EXCEPTION 'no balance falls below zero';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON entries EXECUTE FUNCTION the_ledger_only_grows();
