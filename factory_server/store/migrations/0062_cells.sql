-- Cells: networks that wait for a crew together with warm instances that are members already.

-- How many members it waits with (0: it is no cell), and who makes them.
ALTER TABLE network ADD COLUMN members integer NOT NULL DEFAULT 0;
ALTER TABLE network ADD COLUMN maker text NOT NULL DEFAULT '';
-- The cell that an instance was made for; '' for those of the pools and of agents.
ALTER TABLE instance ADD COLUMN network text NOT NULL DEFAULT '';

CREATE INDEX instance_cell ON instance (network, created_at, id) WHERE agent IS NULL AND network <> '';
