-- Payments at the card provider, one for each order that a card pays. Of the card nothing is kept: the payment method that the
-- customer named only as a digest, by which a repeated request is known.
CREATE TABLE payments (
    order_id  BYTEA PRIMARY KEY REFERENCES orders,
    attempt   BIGINT NOT NULL CHECK (attempt >= 0),
    method    BYTEA NOT NULL CHECK (length(method) = 32),
    state     TEXT NOT NULL CHECK (state IN ('asked', 'undecided', 'held', 'declined', 'ending', 'ended', 'captured',
                                            'refunding', 'refunded')),
    reference TEXT NOT NULL, -- what the provider calls it
    CHECK (reference <> '' OR state IN ('asked', 'declined', 'ended'))
);
CREATE INDEX payments_to_look_after ON payments (order_id) WHERE state IN ('asked', 'undecided', 'ending', 'refunding');
