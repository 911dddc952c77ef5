-- Who makes an instance for the pool: its successor need not wait to see that nobody does any more.

ALTER TABLE instance ADD COLUMN maker text NOT NULL DEFAULT '';
