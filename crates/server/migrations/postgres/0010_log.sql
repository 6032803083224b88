-- The receipts' log: an append-only Merkle tree (RFC 9162), of which every entry is a commitment to one signed receipt.

-- Level 0: the entries, each after the other. Level n: the roots over 256 to the power of n of them.
CREATE TABLE log_nodes (
    level    BIGINT NOT NULL CHECK (level >= 0),
    position BIGINT NOT NULL CHECK (position >= 0),
    value    BYTEA NOT NULL CHECK (length(value) = 32),
    PRIMARY KEY (level, position)
);

-- The receipt key's statements on the keys that signed the log, by their digests.
CREATE TABLE log_statements (
    digest    BYTEA PRIMARY KEY CHECK (length(digest) = 32),
    statement BYTEA NOT NULL
);

-- One for each batch of receipts.
CREATE TABLE log_checkpoints (
    size      BIGINT PRIMARY KEY CHECK (size > 0),
    note      TEXT NOT NULL,
    statement BYTEA NOT NULL REFERENCES log_statements
);

-- The right edge of the tree, and who signed last.
CREATE TABLE log_head (
    one       BIGINT PRIMARY KEY CHECK (one = 1),
    size      BIGINT NOT NULL,
    edge      BYTEA NOT NULL,
    statement BYTEA
);
INSERT INTO log_head VALUES (1, 0, '', NULL);

CREATE FUNCTION the_log_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log only grows';
END $$;
CREATE TRIGGER log_nodes_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON log_nodes EXECUTE FUNCTION the_log_only_grows();
CREATE TRIGGER log_checkpoints_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON log_checkpoints EXECUTE FUNCTION the_log_only_grows();
CREATE TRIGGER log_head_grows BEFORE UPDATE ON log_head FOR EACH ROW WHEN (NEW.size <= OLD.size) EXECUTE FUNCTION the_log_only_grows();
CREATE TRIGGER log_head_stays BEFORE DELETE OR TRUNCATE ON log_head EXECUTE FUNCTION the_log_only_grows();

-- Where a receipt is in the log; the first receipts are not.
ALTER TABLE receipts ADD COLUMN log_index BIGINT;
