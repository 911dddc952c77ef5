-- Crews under lock, and what is written about them.

-- The gate comes before the row's lock, as waiting for a row may draw a transaction's number, and waiting at a
-- gate does not: those numbers must rise with the crew's sequences.

-- name: crew_lock
WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock(4711, hashtext(%(crew)s::text)))
SELECT id, state, wish_gone, failed, solo, min_ready, last_sequence, reason, message, ready_at, drain_until
  FROM gate, crew WHERE id = %(crew)s FOR NO KEY UPDATE OF crew;

-- name: crew_lock_of_agent
WITH mine AS MATERIALIZED (SELECT crew FROM agent WHERE id = %(agent)s),
gate AS MATERIALIZED (SELECT crew AS own, pg_advisory_xact_lock(4711, hashtext(crew)) FROM mine)
SELECT id, state, wish_gone, failed, solo, min_ready, last_sequence, reason, message, ready_at, drain_until
  FROM gate, crew WHERE id = own FOR NO KEY UPDATE OF crew;

-- name: crew_members
SELECT clock_timestamp() AS now, array_agg(id) AS ids, array_agg(state) AS states
  FROM agent WHERE crew = %(crew)s AND state <> 'STOPPED';

-- name: crew_agents_chosen
SELECT * FROM agent_now WHERE id = ANY(%(agents)s::text[]) AND crew = %(crew)s;

-- name: crew_agents_live
SELECT * FROM agent_now WHERE crew = %(crew)s AND state <> 'STOPPED' ORDER BY id;

-- name: crew_agents
SELECT * FROM agent_now WHERE crew = %(crew)s;

-- name: crew_insert
INSERT INTO crew (id, uid, name, manifest, labels, min_ready, state, solo, created_at, updated_at, expires_at,
                  lease_owner, lease_until)
VALUES (%(id)s, %(uid)s, %(name)s, %(manifest)s, %(labels)s::jsonb, %(min_ready)s, 'ASSEMBLING', %(solo)s,
        %(now)s, %(now)s, %(now)s::timestamptz + make_interval(secs => %(ttl_s)s::float8),
        %(owner)s, %(now)s::timestamptz + make_interval(secs => %(lease_s)s::float8));

-- name: crew_write
UPDATE crew
   SET state = %(state)s, last_sequence = %(last_sequence)s, reason = %(reason)s, message = %(message)s,
       ready_at = %(ready_at)s, wish_gone = %(wish_gone)s, failed = %(failed)s, drain_until = %(drain_until)s,
       updated_at = CASE WHEN state = %(state)s AND wish_gone = %(wish_gone)s THEN updated_at ELSE %(now)s END
 WHERE id = %(crew)s AND last_sequence = %(expected)s
RETURNING id;

-- name: crew_update
UPDATE crew
   SET manifest = %(manifest)s, labels = %(labels)s::jsonb, min_ready = %(min_ready)s,
       expires_at = %(expires_at)s, updated_at = clock_timestamp()
 WHERE id = %(crew)s;

-- name: crew_get
SELECT * FROM crew WHERE id = %(crew)s;

-- name: crew_list
SELECT * FROM crew
 WHERE id > %(after)s AND state = ANY(%(states)s::text[]) AND labels @> %(labels)s::jsonb
 ORDER BY id LIMIT %(size)s;

-- name: crew_list_by_name
SELECT * FROM crew
 WHERE name = %(name)s AND id > %(after)s AND state = ANY(%(states)s::text[]) AND labels @> %(labels)s::jsonb
 ORDER BY id LIMIT %(size)s;

-- name: crews_agents
SELECT * FROM agent_now WHERE crew = ANY(%(crews)s::text[]);

-- name: crews_lease
WITH due AS MATERIALIZED (
  SELECT id FROM crew
   WHERE state NOT IN ('DISBANDED', 'FAILED')
     AND (lease_until IS NULL OR lease_until <= clock_timestamp() OR lease_owner = %(owner)s)
   ORDER BY lease_until NULLS FIRST, id
   LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
UPDATE crew c
   SET lease_owner = %(owner)s,
       lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s::float8)
  FROM due WHERE c.id = due.id
RETURNING c.id;

-- name: crews_release
UPDATE crew SET lease_owner = '', lease_until = NULL WHERE lease_owner = %(owner)s;

-- name: crew_lease_if_free
UPDATE crew
   SET lease_owner = %(owner)s,
       lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s::float8)
 WHERE id = %(crew)s
   AND (lease_until IS NULL OR lease_until <= clock_timestamp() OR lease_owner = %(owner)s);
