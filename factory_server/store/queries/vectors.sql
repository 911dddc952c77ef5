-- Crews' vectors.

-- name: vector_space_touch
INSERT INTO vector_space (crew, dimension, revision) VALUES (%(crew)s, %(dimension)s, 1)
ON CONFLICT ON CONSTRAINT vector_space_pkey DO UPDATE SET revision = vector_space.revision + 1
RETURNING dimension;

-- name: vector_space_get
SELECT dimension, revision FROM vector_space WHERE crew = %(crew)s;

-- name: vectors_upsert
INSERT INTO vector (crew, id, coordinates, metadata)
SELECT %(crew)s, v.id, v.coordinates, v.metadata
  FROM unnest(%(ids)s::text[], %(coordinates)s::bytea[], %(metadata)s::bytea[]) AS v(id, coordinates, metadata)
ON CONFLICT ON CONSTRAINT vector_pkey
  DO UPDATE SET coordinates = EXCLUDED.coordinates, metadata = EXCLUDED.metadata;

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
