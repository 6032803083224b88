-- An order is for another processor from then on: its own gave it up, with its signed word, or is revoked.
CREATE TABLE transfers (
    order_id       BLOB NOT NULL REFERENCES orders,
    from_processor BLOB NOT NULL CHECK (length(from_processor) = 32),
    to_processor   BLOB NOT NULL CHECK (length(to_processor) = 32),
    retirement     BLOB, -- the signed retirement; none: the processor was revoked
    transfer       BLOB NOT NULL, -- the server's signed word
    at             INTEGER NOT NULL,
    PRIMARY KEY (order_id, from_processor)
) STRICT, WITHOUT ROWID;
