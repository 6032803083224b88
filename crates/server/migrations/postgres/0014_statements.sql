-- The ledger's own guards look at all rows of a statement at once instead of at each: one entry is two postings, a batch of settlements is
-- a hundred. What they refuse is what they refused.

-- Postings make balances.
DROP TRIGGER postings_make_balances ON postings;
CREATE OR REPLACE FUNCTION postings_make_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM written w JOIN entries e USING (entry)) THEN
        RAISE EXCEPTION 'an entry is closed once it is written';
    END IF;
    -- In one order, so that no two wait for each other.
    INSERT INTO balances
    SELECT account, book, currency, sum(minor) FROM written GROUP BY account, book, currency ORDER BY account, book, currency
    ON CONFLICT (account, book, currency) DO UPDATE SET minor = balances.minor + excluded.minor;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_make_balances AFTER INSERT ON postings REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION postings_make_balances();
DROP TRIGGER postings_precede_their_entry ON postings;
DROP FUNCTION postings_precede_their_entry;

-- An entry is right.
DROP TRIGGER entries_are_right ON entries;
CREATE OR REPLACE FUNCTION entries_are_right() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unbalanced BOOLEAN;
    below      BOOLEAN;
BEGIN
    -- A refund may leave a vendor below zero who was paid already; a payout may not.
    SELECT bool_or(sums.unbalanced), bool_or(sums.below) INTO unbalanced, below FROM (
        SELECT sum(p.minor) IS DISTINCT FROM 0 AS unbalanced,
               bool_or(b.minor < 0 AND (p.book IN ('funds', 'held') OR (p.book = 'revenue' AND w.kind = 'payout'))) AS below
        FROM written w LEFT JOIN postings p USING (entry) LEFT JOIN balances b USING (account, book, currency)
        GROUP BY w.entry, p.currency) sums;
    IF unbalanced THEN
        RAISE EXCEPTION 'an entry sums to zero in each currency';
    END IF;
    IF below THEN
        RAISE EXCEPTION 'no balance falls below zero';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER entries_are_right AFTER INSERT ON entries REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION entries_are_right();

-- Receipts have no gaps: of each seller those of one statement are as many as the numbers above the last one before them.
DROP TRIGGER receipts_are_gapless ON receipts;
CREATE OR REPLACE FUNCTION receipts_are_gapless() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM (SELECT seller, min(number) AS first, max(number) AS last, count(*) AS many FROM written GROUP BY seller) w
               WHERE w.last - w.first + 1 <> w.many
                  OR w.first <> 1 + coalesce((SELECT r.number FROM receipts r WHERE r.seller = w.seller AND r.number < w.first
                                              ORDER BY r.number DESC LIMIT 1), 0)
                  OR EXISTS (SELECT 1 FROM receipts r WHERE r.seller = w.seller AND r.number > w.last)) THEN
        RAISE EXCEPTION 'receipt numbers have no gaps';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER receipts_are_gapless AFTER INSERT ON receipts REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION receipts_are_gapless();

-- What is the same said twice: an account with postings has a balance, which refers to it; the seller of an order is the vendor of its
-- release, and so one reference says both, and that they belong together.
ALTER TABLE postings DROP CONSTRAINT postings_account_fkey;
ALTER TABLE releases ADD UNIQUE (manifest, vendor);
ALTER TABLE orders
    DROP CONSTRAINT orders_manifest_fkey,
    DROP CONSTRAINT orders_seller_fkey,
    ADD FOREIGN KEY (manifest, seller) REFERENCES releases (manifest, vendor);

-- Rows that change in place keep room for it in their page; balances and the log's head change with every order.
ALTER TABLE orders SET (fillfactor = 70);
ALTER TABLE deliveries SET (fillfactor = 80);
ALTER TABLE balances SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE sellers SET (fillfactor = 50);
ALTER TABLE log_head SET (fillfactor = 10);
