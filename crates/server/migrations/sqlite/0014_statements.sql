-- PostgreSQL's form of this number has its guards look at all rows of a statement at once. SQLite has triggers for each row alone.
SELECT 1;
