-- Which revision of its space a vector is of, so that an index beside the store can be brought up by what changed.

ALTER TABLE vector ADD COLUMN revision bigint NOT NULL DEFAULT 0;

CREATE INDEX vector_by_revision ON vector (crew, revision, id);

-- A factory of an older release, which may write beside a newer one, says nothing of revisions.
CREATE FUNCTION vector_is_of_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.revision := (SELECT revision FROM vector_space WHERE crew = NEW.crew);
  RETURN NEW;
END $$;

CREATE TRIGGER vector_put_of_revision BEFORE INSERT ON vector
  FOR EACH ROW WHEN (NEW.revision = 0) EXECUTE FUNCTION vector_is_of_revision();

CREATE TRIGGER vector_replaced_of_revision BEFORE UPDATE ON vector
  FOR EACH ROW WHEN (NEW.revision = OLD.revision) EXECUTE FUNCTION vector_is_of_revision();
