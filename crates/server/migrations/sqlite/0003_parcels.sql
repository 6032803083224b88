-- A delivery that is cut short goes on with the same terms and ciphertext under a seal of its own, so that terms may be those of several
-- deliveries; its content key is needed again to wrap it to each session.
CREATE TABLE deliveries_of_parcels (
    seal_digest     BLOB PRIMARY KEY CHECK (length(seal_digest) = 32),
    order_id        BLOB NOT NULL REFERENCES orders,
    terms_digest    BLOB NOT NULL CHECK (length(terms_digest) = 32),
    terms           BLOB NOT NULL,
    wrap            BLOB NOT NULL,
    kem             TEXT NOT NULL,
    sealing_key     BLOB NOT NULL, -- the processor's, certified, to which the wrap went
    release_secret  BLOB NOT NULL, -- sealed at rest
    content_key     BLOB NOT NULL, -- sealed at rest; empty where the delivery is of a version that did not keep it
    seal            BLOB NOT NULL,
    acknowledgement BLOB,
    token           BLOB,
    created_at      INTEGER NOT NULL,
    CHECK ((acknowledgement IS NULL) = (token IS NULL))
) STRICT;
INSERT INTO deliveries_of_parcels
SELECT seal_digest, order_id, terms_digest, terms, wrap, kem, sealing_key, release_secret, x'', seal, acknowledgement, token, created_at
FROM deliveries;
DROP TABLE deliveries;
ALTER TABLE deliveries_of_parcels RENAME TO deliveries;
CREATE INDEX deliveries_of_an_order ON deliveries (order_id, terms_digest);

-- What it takes to go on, until the processor has everything.
CREATE TABLE parcels (
    order_id       BLOB PRIMARY KEY REFERENCES orders,
    terms_digest   BLOB NOT NULL CHECK (length(terms_digest) = 32),
    terms          BLOB NOT NULL,
    wrap           BLOB NOT NULL,
    kem            TEXT NOT NULL,
    sealing_key    BLOB NOT NULL,
    release_secret BLOB NOT NULL, -- sealed at rest
    content_key    BLOB NOT NULL, -- sealed at rest
    blob           TEXT UNIQUE,   -- none: the release's common ciphertext
    body_root      BLOB NOT NULL CHECK (length(body_root) = 32),
    body_size      INTEGER NOT NULL,
    table_root     BLOB NOT NULL CHECK (length(table_root) = 32),
    table_size     INTEGER NOT NULL,
    until          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX parcels_that_run_out ON parcels (until);
