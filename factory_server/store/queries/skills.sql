-- Skill packs, and which of them an agent has.

-- name: skill_lock
SELECT pg_advisory_xact_lock(4712);

-- name: skill_totals
SELECT count(*) AS packs, coalesce(sum(size), 0)::bigint AS bytes FROM skill_pack;

-- name: skill_insert
INSERT INTO skill_pack (digest, name, frontmatter, files, content, size, signature, key_id, publisher, created_at)
VALUES (%(digest)s, %(name)s, %(frontmatter)s::jsonb, %(files)s::jsonb, %(content)s, %(size)s, %(signature)s,
        %(key_id)s, %(publisher)s, clock_timestamp());

-- name: skill_renew
-- The caller has just computed the digest of this content and signed it: whatever of the row differs was signed by
-- a key that is gone, or was changed by others.
UPDATE skill_pack
   SET name = %(name)s, frontmatter = %(frontmatter)s::jsonb, files = %(files)s::jsonb, content = %(content)s,
       size = %(size)s, signature = %(signature)s, key_id = %(key_id)s
 WHERE digest = %(digest)s
   AND (name, frontmatter, files, content, size, signature, key_id) IS DISTINCT FROM
       (%(name)s, %(frontmatter)s::jsonb, %(files)s::jsonb, %(content)s, %(size)s, %(signature)s, %(key_id)s);

-- name: skill_get
SELECT id, digest, name, frontmatter, files, signature, key_id, publisher, created_at
  FROM skill_pack WHERE digest = %(digest)s;

-- name: skill_newest
SELECT id, digest, name, frontmatter, files, signature, key_id, publisher, created_at
  FROM skill_pack WHERE name = %(name)s ORDER BY id DESC LIMIT 1;

-- name: skills_get
SELECT id, digest, name, frontmatter, files, signature, key_id, publisher, created_at
  FROM skill_pack WHERE digest = ANY(%(digests)s::text[]);

-- name: skill_content
SELECT content FROM skill_pack WHERE digest = %(digest)s;

-- name: skill_entry
SELECT substring(content FROM %(begin)s::int FOR %(size)s::int) AS entry FROM skill_pack WHERE digest = %(digest)s;

-- name: skill_list
SELECT id, digest, name, frontmatter, files, signature, key_id, publisher, created_at
  FROM skill_pack
 WHERE name > %(name)s OR (name = %(name)s AND id < %(id)s)
 ORDER BY name, id DESC LIMIT %(size)s;

-- name: agent_respecify
UPDATE agent SET spec = %(spec)s, updated_at = %(now)s, row_xid = pg_current_xact_id()
 WHERE id = %(agent)s AND generation = %(generation)s
RETURNING id;
