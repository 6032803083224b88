-- What the authority knows. Times are seconds since 1970-01-01 UTC; digests and key ids are BLAKE3, 32 bytes.

-- One row for the whole authority.
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,       -- rises with each revocation
    list_number INTEGER NOT NULL     -- the number of the newest revocation list
) STRICT;
INSERT INTO state VALUES (1, 0, 0);

-- Vouchers, by the digest of their secret.
CREATE TABLE vouchers (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    kind TEXT NOT NULL CHECK (kind IN ('processor', 'server', 'vendor')),
    name TEXT NOT NULL,              -- becomes the subject
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Every certificate of a role that was ever issued.
CREATE TABLE certificates (
    serial BLOB PRIMARY KEY CHECK (length(serial) BETWEEN 1 AND 20),
    key_id BLOB NOT NULL CHECK (length(key_id) = 32),
    role TEXT NOT NULL,
    subject TEXT NOT NULL,
    sealing BLOB NOT NULL,           -- digest of the sealing keys in CBOR
    der BLOB NOT NULL,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX certificates_by_key ON certificates (key_id);
CREATE INDEX certificates_by_subject ON certificates (subject);

-- A voucher serves each of its roles once.
CREATE TABLE voucher_uses (
    voucher BLOB NOT NULL REFERENCES vouchers (digest),
    role TEXT NOT NULL,
    serial BLOB NOT NULL REFERENCES certificates (serial),
    PRIMARY KEY (voucher, role)
) STRICT;
