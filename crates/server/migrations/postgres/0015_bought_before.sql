-- What an account bought before for a processor is not charged a second time by habit.
CREATE INDEX orders_that_were_bought ON orders (account, manifest, processor)
WHERE state IN ('acknowledged', 'capture-requested', 'captured', 'released');
CREATE INDEX transfers_from_a_processor ON transfers (from_processor);
