-- Profiles.

-- name: profile_insert
INSERT INTO profile (name, version, digest, spec, stage, description, image_digest, created_at, updated_at)
VALUES (%(name)s, 1, %(digest)s, %(spec)s, %(stage)s, %(description)s, %(image_digest)s, clock_timestamp(),
        clock_timestamp())
RETURNING *;

-- name: profile_insert_if_missing
INSERT INTO profile (name, version, digest, spec, stage, description, image_digest, created_at, updated_at)
VALUES (%(name)s, 1, %(digest)s, %(spec)s, %(stage)s, %(description)s, %(image_digest)s, clock_timestamp(),
        clock_timestamp())
ON CONFLICT ON CONSTRAINT profile_pkey DO NOTHING
RETURNING *;

-- name: profile_update
UPDATE profile
   SET version = version + 1, digest = %(digest)s, spec = %(spec)s, stage = %(stage)s,
       description = %(description)s, image_digest = %(image_digest)s, updated_at = clock_timestamp()
 WHERE name = %(name)s AND version = %(expect)s
RETURNING *;

-- name: profile_refresh
UPDATE profile
   SET version = version + 1, digest = %(digest)s, spec = %(spec)s, stage = %(stage)s,
       description = %(description)s, image_digest = %(image_digest)s, updated_at = clock_timestamp()
 WHERE name = %(name)s
   AND (digest <> %(digest)s OR %(image_digest)s NOT IN ('', image_digest))
RETURNING *;

-- name: profile_keep_version
INSERT INTO profile_version (name, version, digest, spec, image_digest, created_at)
VALUES (%(name)s, %(version)s, %(digest)s, %(spec)s, %(image_digest)s, clock_timestamp());

-- name: profile_get
SELECT * FROM profile WHERE name = %(name)s;

-- name: profiles_get
SELECT * FROM profile WHERE name = ANY(%(names)s::text[]);

-- name: profile_list
SELECT * FROM profile WHERE name > %(after)s ORDER BY name LIMIT %(size)s;
