-- The event log, and what is dropped with age.

-- name: events_insert
INSERT INTO event (crew, sequence, type, agent, data, time)
SELECT %(crew)s, %(after)s::bigint + e.place, e.type, e.agent, e.data, %(now)s
  FROM unnest(%(types)s::smallint[], %(agents)s::text[], %(data)s::bytea[]) WITH ORDINALITY
    AS e(type, agent, data, place);

-- name: events_append
WITH c AS (
  UPDATE crew SET last_sequence = last_sequence + %(count)s WHERE id = %(crew)s RETURNING last_sequence)
INSERT INTO event (crew, sequence, type, agent, data, time)
SELECT %(crew)s, c.last_sequence - %(count)s + e.place, e.type, e.agent, e.data, clock_timestamp()
  FROM c, unnest(%(types)s::smallint[], %(agents)s::text[], %(data)s::bytea[]) WITH ORDINALITY
    AS e(type, agent, data, place)
RETURNING sequence;

-- name: events_read
SELECT crew, sequence, type, agent, data, time FROM event
 WHERE crew = %(crew)s AND sequence > %(after)s ORDER BY sequence LIMIT %(limit)s;

-- name: events_bounds
SELECT c.last_sequence AS head,
       coalesce((SELECT min(sequence) FROM event e WHERE e.crew = c.id), c.last_sequence + 1) AS oldest
  FROM crew c WHERE c.id = %(crew)s;

-- name: events_read_all
SELECT crew, sequence, type, agent, data, time, xid::text AS written_by, id FROM event
 WHERE (xid, id) > (%(xid)s::text::xid8, %(id)s::bigint)
   AND xid < pg_snapshot_xmin(pg_current_snapshot())
   AND (%(seen)s::text = '' OR NOT pg_visible_in_snapshot(xid, nullif(%(seen)s::text, '')::pg_snapshot))
 ORDER BY xid, id LIMIT %(limit)s;

-- name: events_latest
SELECT pg_current_snapshot()::text AS seen, pg_snapshot_xmin(pg_current_snapshot())::text AS xmin;

-- name: compact_events
WITH beyond AS MATERIALIZED (
  SELECT e.crew, e.sequence
    FROM crew c
   CROSS JOIN LATERAL greatest(
     c.last_sequence - %(keep_per_crew)s::bigint,
     (SELECT o.sequence FROM event o
       WHERE o.crew = c.id AND o.time < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
       ORDER BY o.sequence DESC LIMIT 1)) AS upto
   CROSS JOIN LATERAL (
     SELECT f.crew, f.sequence FROM event f WHERE f.crew = c.id AND f.sequence <= upto
      ORDER BY f.sequence LIMIT %(limit)s) AS e
   LIMIT %(limit)s)
DELETE FROM event e USING beyond b WHERE e.crew = b.crew AND e.sequence = b.sequence RETURNING 1 AS gone;

-- name: compact_requests
DELETE FROM request WHERE created_at < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
RETURNING 1 AS gone;

-- name: compact_tasks
DELETE FROM task WHERE ended_at < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
RETURNING 1 AS gone;

-- name: compact_broadcasts
DELETE FROM broadcast WHERE done_at < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
RETURNING 1 AS gone;

-- name: compact_crews
-- What ended long ago, once its events have gone by their own retention and nothing runs for it any more.
WITH gone AS MATERIALIZED (
  SELECT c.id FROM crew c
   WHERE c.state IN ('DISBANDED', 'FAILED')
     AND c.updated_at < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
     AND NOT EXISTS (SELECT FROM event e WHERE e.crew = c.id)
     AND NOT EXISTS (SELECT FROM instance i JOIN agent a ON a.id = i.agent WHERE a.crew = c.id)
   ORDER BY c.updated_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
health AS (DELETE FROM agent_health h USING agent a, gone g WHERE a.crew = g.id AND h.agent = a.id),
tasks AS (DELETE FROM task t USING gone g WHERE t.crew = g.id),
broadcasts AS (DELETE FROM broadcast b USING gone g WHERE b.crew = g.id),
contexts AS (DELETE FROM context x USING gone g WHERE x.crew = g.id),
vectors AS (DELETE FROM vector_space v USING gone g WHERE v.crew = g.id),
agents AS (DELETE FROM agent a USING gone g WHERE a.crew = g.id)
DELETE FROM crew c USING gone g WHERE c.id = g.id RETURNING 1 AS gone;

-- name: compact_audit
-- Rows come in order of time, so that the oldest few tell whether any is too old.
DELETE FROM audit
 WHERE id IN (SELECT id FROM audit ORDER BY id LIMIT %(limit)s)
   AND time < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
RETURNING 1 AS gone;
