-- The receipts' log: an append-only Merkle tree (RFC 9162), of which every entry is a commitment to one signed receipt.

-- Level 0: the entries, each after the other. Level n: the roots over 256 to the power of n of them.
CREATE TABLE log_nodes (
    level    INTEGER NOT NULL CHECK (level >= 0),
    position INTEGER NOT NULL CHECK (position >= 0),
    value    BLOB NOT NULL CHECK (length(value) = 32),
    PRIMARY KEY (level, position)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER log_nodes_stay BEFORE UPDATE ON log_nodes BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER log_nodes_are_kept BEFORE DELETE ON log_nodes BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;

-- The receipt key's statements on the keys that signed the log, by their digests.
CREATE TABLE log_statements (
    digest    BLOB PRIMARY KEY CHECK (length(digest) = 32),
    statement BLOB NOT NULL
) STRICT;

-- One for each batch of receipts.
CREATE TABLE log_checkpoints (
    size      INTEGER PRIMARY KEY CHECK (size > 0),
    note      TEXT NOT NULL,
    statement BLOB NOT NULL REFERENCES log_statements
) STRICT;
CREATE TRIGGER log_checkpoints_stay BEFORE UPDATE ON log_checkpoints BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER log_checkpoints_are_kept BEFORE DELETE ON log_checkpoints BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;

-- The right edge of the tree, and who signed last.
CREATE TABLE log_head (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    size      INTEGER NOT NULL,
    edge      BLOB NOT NULL,
    statement BLOB
) STRICT;
INSERT INTO log_head VALUES (1, 0, x'', NULL);
CREATE TRIGGER log_head_grows BEFORE UPDATE ON log_head WHEN NEW.size <= OLD.size
BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;

-- Where a receipt is in the log; the first receipts are not.
ALTER TABLE receipts ADD COLUMN log_index INTEGER;
