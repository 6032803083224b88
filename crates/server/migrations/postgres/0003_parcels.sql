-- A delivery that is cut short goes on with the same terms and ciphertext under a seal of its own, so that terms may be those of several
-- deliveries; its content key is needed again to wrap it to each session.
ALTER TABLE deliveries DROP CONSTRAINT deliveries_pkey;
ALTER TABLE deliveries ADD PRIMARY KEY (seal_digest);
ALTER TABLE deliveries ALTER COLUMN terms_digest SET NOT NULL;
ALTER TABLE deliveries ADD COLUMN content_key BYTEA NOT NULL DEFAULT ''; -- sealed at rest; empty where a version did not keep it
ALTER TABLE deliveries ALTER COLUMN content_key DROP DEFAULT;
DROP INDEX deliveries_of_an_order;
CREATE INDEX deliveries_of_an_order ON deliveries (order_id, terms_digest);

-- What it takes to go on, until the processor has everything.
CREATE TABLE parcels (
    order_id       BYTEA PRIMARY KEY REFERENCES orders,
    terms_digest   BYTEA NOT NULL CHECK (length(terms_digest) = 32),
    terms          BYTEA NOT NULL,
    wrap           BYTEA NOT NULL,
    kem            TEXT NOT NULL,
    sealing_key    BYTEA NOT NULL,
    release_secret BYTEA NOT NULL, -- sealed at rest
    content_key    BYTEA NOT NULL, -- sealed at rest
    blob           TEXT UNIQUE,    -- none: the release's common ciphertext
    body_root      BYTEA NOT NULL CHECK (length(body_root) = 32),
    body_size      BIGINT NOT NULL,
    table_root     BYTEA NOT NULL CHECK (length(table_root) = 32),
    table_size     BIGINT NOT NULL,
    until          BIGINT NOT NULL
);
CREATE INDEX parcels_that_run_out ON parcels (until);
