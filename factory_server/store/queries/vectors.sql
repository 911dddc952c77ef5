-- Crews' vectors.

-- name: vector_space_touch
INSERT INTO vector_space (crew, dimension, revision) VALUES (%(crew)s, %(dimension)s, 1)
ON CONFLICT ON CONSTRAINT vector_space_pkey DO UPDATE SET revision = vector_space.revision + 1
RETURNING dimension, revision;

-- name: vector_space_get
SELECT dimension, revision FROM vector_space WHERE crew = %(crew)s;

-- name: vectors_upsert
INSERT INTO vector (crew, id, coordinates, metadata, revision)
SELECT %(crew)s, v.id, v.coordinates, v.metadata, %(revision)s
  FROM unnest(%(ids)s::text[], %(coordinates)s::bytea[], %(metadata)s::bytea[]) AS v(id, coordinates, metadata)
ON CONFLICT ON CONSTRAINT vector_pkey
  DO UPDATE
    SET coordinates = EXCLUDED.coordinates, metadata = EXCLUDED.metadata, revision = EXCLUDED.revision;

-- name: vectors_size
SELECT count(*) AS vectors,
       coalesce(sum(octet_length(id) + octet_length(coordinates) + octet_length(metadata)), 0)::bigint AS bytes
  FROM vector WHERE crew = %(crew)s;

-- name: vectors_read
SELECT s.dimension, s.revision, v.id, v.coordinates
  FROM vector_space s LEFT JOIN vector v ON v.crew = s.crew
 WHERE s.crew = %(crew)s ORDER BY v.id;

-- name: vectors_metadata
SELECT id, metadata FROM vector WHERE crew = %(crew)s AND id = ANY (%(ids)s);

-- name: vectors_changed
-- A page of what changed after a row, oldest first, and how many there are in all.
SELECT s.dimension, s.revision AS space_revision, v.id, v.coordinates, v.revision,
       (SELECT count(*) FROM vector WHERE crew = s.crew) AS vectors
  FROM vector_space s LEFT JOIN LATERAL (
    SELECT id, coordinates, revision FROM vector
     WHERE crew = s.crew AND (revision, id) > (%(revision)s, %(id)s)
     ORDER BY revision, id LIMIT %(limit)s) v ON true
 WHERE s.crew = %(crew)s ORDER BY v.revision, v.id;

-- name: vectors_near
-- The vectors with these ids, and those that changed after a revision.
SELECT s.dimension, s.revision AS space_revision, v.id, v.coordinates, v.revision
  FROM vector_space s LEFT JOIN LATERAL (
    (SELECT id, coordinates, revision FROM vector
      WHERE crew = s.crew AND revision > %(since)s ORDER BY revision, id LIMIT %(limit)s)
    UNION ALL
    SELECT id, coordinates, revision FROM vector
     WHERE crew = s.crew AND id = ANY (%(ids)s) AND revision <= %(since)s) v ON true
 WHERE s.crew = %(crew)s;
