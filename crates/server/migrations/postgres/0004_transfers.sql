-- An order is for another processor from then on: its own gave it up, with its signed word, or is revoked.
CREATE TABLE transfers (
    order_id       BYTEA NOT NULL REFERENCES orders,
    from_processor BYTEA NOT NULL CHECK (length(from_processor) = 32),
    to_processor   BYTEA NOT NULL CHECK (length(to_processor) = 32),
    retirement     BYTEA, -- the signed retirement; none: the processor was revoked
    transfer       BYTEA NOT NULL, -- the server's signed word
    at             BIGINT NOT NULL,
    PRIMARY KEY (order_id, from_processor)
);
