-- By what rates a capture was divided: {"house":HUNDREDTHS OF A PERCENT,"taxes":[{"name":NAME,"rate":HUNDREDTHS OF A PERCENT}]}. Captures of
-- before say nothing of it.
ALTER TABLE entries ADD COLUMN shares TEXT CHECK (shares IS NULL OR kind = 'capture');

-- Deposits and payouts by the key under which the operator asked for them: each is carried out once, and answered the same each time.
CREATE TABLE instructions (
    account    BLOB NOT NULL REFERENCES accounts,
    key        TEXT NOT NULL CHECK (length(key) BETWEEN 1 AND 128),
    parameters BLOB NOT NULL CHECK (length(parameters) = 32), -- a digest of what was asked for
    entry      INTEGER NOT NULL UNIQUE REFERENCES entries DEFERRABLE INITIALLY DEFERRED,
    available  INTEGER NOT NULL CHECK (available >= 0), -- what the account had after it, in that currency
    held       INTEGER NOT NULL CHECK (held >= 0),
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER instructions_are_kept BEFORE DELETE ON instructions BEGIN SELECT RAISE(ABORT, 'an instruction is kept'); END;
CREATE TRIGGER instructions_stay BEFORE UPDATE ON instructions BEGIN SELECT RAISE(ABORT, 'an instruction is kept'); END;
