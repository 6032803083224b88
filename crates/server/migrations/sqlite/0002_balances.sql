-- What the postings of a book come to, kept as they are written: a purchase costs the same after ten thousand others.

CREATE TABLE balances (
    account  BLOB NOT NULL REFERENCES accounts,
    book     TEXT NOT NULL,
    currency TEXT NOT NULL,
    minor    INTEGER NOT NULL,
    PRIMARY KEY (account, book, currency)
) STRICT, WITHOUT ROWID;
INSERT INTO balances SELECT account, book, currency, sum(minor) FROM postings GROUP BY account, book, currency;

CREATE TRIGGER postings_make_balances AFTER INSERT ON postings
BEGIN
    INSERT INTO balances VALUES (NEW.account, NEW.book, NEW.currency, NEW.minor)
    ON CONFLICT (account, book, currency) DO UPDATE SET minor = minor + excluded.minor;
END;
CREATE TRIGGER balances_are_kept BEFORE DELETE ON balances BEGIN SELECT RAISE(ABORT, 'a balance is not forgotten'); END;

DROP TRIGGER balances_stay_above_zero;
CREATE TRIGGER balances_stay_above_zero BEFORE INSERT ON entries
WHEN EXISTS (
    SELECT 1 FROM postings p JOIN balances b USING (account, book, currency)
    WHERE p.entry = NEW.entry AND p.book IN ('funds', 'held') AND b.minor < 0)
BEGIN SELECT RAISE(ABORT, 'no balance falls below zero'); END;

DROP INDEX postings_of_a_book;
