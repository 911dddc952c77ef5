-- Each crew's ephemeral vectors. The space goes when the crew ends, and its vectors with it.

CREATE TABLE vector_space (
  crew text NOT NULL,
  dimension integer NOT NULL,
  revision bigint NOT NULL,
  CONSTRAINT vector_space_pkey PRIMARY KEY (crew),
  CONSTRAINT vector_space_of_crew FOREIGN KEY (crew) REFERENCES crew (id) ON DELETE CASCADE,
  CONSTRAINT vector_space_dimension_range CHECK (dimension BETWEEN 1 AND 4096)
);

-- Coordinates are float32, little endian.
CREATE TABLE vector (
  crew text NOT NULL,
  id text NOT NULL,
  coordinates bytea NOT NULL,
  metadata bytea NOT NULL,
  CONSTRAINT vector_pkey PRIMARY KEY (crew, id),
  CONSTRAINT vector_of_space FOREIGN KEY (crew) REFERENCES vector_space (crew) ON DELETE CASCADE
);

-- Numbers do not compress, and their size is asked for without reading them.
ALTER TABLE vector ALTER COLUMN coordinates SET STORAGE EXTERNAL;
ALTER TABLE vector ALTER COLUMN metadata SET STORAGE EXTERNAL;

-- Whoever ends a crew ends its space, in the same transaction.
CREATE FUNCTION vector_space_ends() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM vector_space WHERE crew = NEW.id;
  RETURN NULL;
END $$;

CREATE TRIGGER vector_space_ends AFTER UPDATE OF state ON crew
  FOR EACH ROW WHEN (NEW.state IN ('DISBANDED', 'FAILED') AND OLD.state <> NEW.state)
  EXECUTE FUNCTION vector_space_ends();
